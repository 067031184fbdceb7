"""Write the README of the benchmarks, and a table of docs/memory.md, from the newest results."""

import json
import sys
from pathlib import Path

import gpu
import memory
import trainers

FOLDER = Path(__file__).parent
MEMORY = FOLDER.parent / "docs" / "memory.md"
sys.path.append(str(FOLDER.parent / "experiments"))

from tables import with_table  # noqa: E402

TEXT = """\
# Benchmarks

Each is one command, and writes its figures with `--json FILE`. The tables below are those of the newest files in
`results/`, put here by `python benchmarks/readme.py`; a test holds them against each other.

## Trainers: what PPO costs

`python benchmarks/trainers.py` measures PPO with its three critics beside TRL's GRPO and RLOO, and beside the last PPO
that TRL had, which gets an environment of its own: CPU time per roll-out and per optimiser step, and peak memory above
the imports. All train one small Llama with random weights on the same number of tokens, with the same rewards, KL
penalty and optimiser steps. A ratio is the median of those of the rounds. `--quick` tries it with next to no work.

{trainers}

## GPU: memory and speed of 4-bit LoRA

`python benchmarks/gpu.py` measures RLOO, GRPO and PPO on one GPU with models of the sizes of Llama 3.2 1B and Llama 3.1
8B: peak memory beside what `lastmile check` says of it, generated tokens per second, and tokens per second of the
update. It needs no download, and checks that PPO of the 8B model fits 24 GB. `--tiny --device cpu` tries the script
without a GPU.

{gpu}

## Memory: what is said before, and what is taken

`python benchmarks/memory.py` holds the estimates of `lastmile check` against the memory that training takes on a CPU.
The table stands in [docs/memory.md](../docs/memory.md).

## Rewards: how fast ROUGE is

`python benchmarks/rewards.py` times our ROUGE beside rouge_score and its successors, on texts of a made-up language
with the word frequencies of a real one, and checks that the values are equal. A factor says how often as fast as
rouge_score it is. "New stems" is the first step of a run, in which no word was seen before.

{rewards}

## Evaluation: what it takes beside decoding

`python benchmarks/evaluation.py` times what follows the decoding of three runs, greedy and sampled, on made-up rows
with texts of some 60 words: scores and statistics, as they are and of one run post-processed, and the files.

{evaluation}

## Significance: how often a difference is shown

`python benchmarks/significance.py` draws data in which nothing differs, and data in which something does, many times,
and counts what is called significant. The tables stand in
[docs/evaluation.md](../docs/evaluation.md#what-it-rests-on).

## Start-up: how long a person waits

`python benchmarks/startup.py` prints the medians of seven starts of our command and of TRL's, in turns.

{startup}
"""


def newest(pattern: str) -> Path | None:
    """The results with the last date in their name."""
    return max(FOLDER.glob(f"results/{pattern}"), default=None)


def provenance(results: dict) -> str:
    """When, where and with what something was measured."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in results["packages"].items())
    return f"{results['date']}, {machine['cores']} cores of {machine['cpu']}, Python {results['python']}, {packages}."


def trainers_section() -> str:
    file = newest("trainers-*.json")
    if not file:
        return "Not measured yet."
    results = json.loads(file.read_text())
    work = results["work"]
    how = (
        f"{results['rounds']} rounds; timed roll-outs in each: {work['rollouts'] - 1}, of "
        f"{work['batch'] * work['accumulation']} completions of {work['completion']} tokens to prompts of "
        f"{work['prompt']}. {provenance(results)}"
    )
    return f"{how}\n\n{trainers.markdown(results)}"


def gpu_section() -> str:
    file = newest("gpu-*.json")
    if not file:
        return "**Not measured yet: no GPU was at hand.** The script was tried on a CPU with a tiny model only."
    results = json.loads(file.read_text())
    return f"{results['rows'][0].get('gpu', results['device'])}. {provenance(results)}\n\n{gpu.markdown(results)}"


def rewards_section() -> str:
    results = json.loads(newest("rewards-*.json").read_text())
    names = [
        name for name in results["comparisons"][0] if name not in ("metric", "tokens", "least_ratio", "rouge_score")
    ]
    lines = [
        f"| metric | tokens | rouge_score, ms per pair | {' | '.join(names)} | at least |",
        "|---|--:|--:|" + "--:|" * (len(names) + 1),
    ]
    for row in results["comparisons"]:
        factors = [f"{row[name]['ratio']:g} x" if name in row else "" for name in names]
        least = f"{row['least_ratio']} x" if row["least_ratio"] else ""
        cells = [row["metric"], str(row["tokens"]), f"{row['rouge_score']['ms']:.2f}", *factors, least]
        lines.append(f"| {' | '.join(cells)} |")
    step = results["step"]
    shape = f"{step['groups']} x {step['completions']} completions of {step['tokens']} tokens"
    took = f"{' + '.join(step['rewards'])} of a step of {shape}: {step['ms']} ms of CPU (at most {step['most_ms']} ms)."
    return "\n".join([provenance(results), "", *lines, "", took])


def evaluation_section() -> str:
    file = newest("evaluation-*.json")
    if not file:
        return "Not measured yet."
    results = json.loads(file.read_text())
    parts = [f"| {what} | {took:.2f} |" for what, took in results["seconds"].items()]
    together = f"| together, at most {results['most']} | {results['total']:.2f} |"
    how = f"{results['rows']:,} rows; the metrics {', '.join(results['metrics'])}. {provenance(results)}"
    return "\n".join([how, "", "| part | CPU, s |", "|---|--:|", *parts, together])


def startup_section() -> str:
    file = newest("startup-*.txt")
    if not file:
        return "Not measured yet."
    return f"{file.stem.removeprefix('startup-')}:\n\n```\n{file.read_text().rstrip()}\n```"


def memory_page() -> str:
    """The text of docs/memory.md, with the newest table between its markers."""
    results = json.loads(newest("memory-*.json").read_text())
    table = f"{memory.markdown(results)}\n\n{provenance(results)}\n"
    return with_table(MEMORY.read_text(encoding="utf-8"), "measured", table)


def render() -> str:
    """The text of benchmarks/README.md."""
    return TEXT.format(
        trainers=trainers_section(),
        gpu=gpu_section(),
        rewards=rewards_section(),
        evaluation=evaluation_section(),
        startup=startup_section(),
    )


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(render(), encoding="utf-8")
    MEMORY.write_text(memory_page(), encoding="utf-8")
