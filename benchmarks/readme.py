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

`make peers` measures all that has peers, which is trainers, rewards and start-up, in one run: it installs the peers
(the extra `peers`, and an environment of its own for TRL 1.12), stores the figures in `results/`, and writes this page.
`make peers OPTIONS="--rounds 1"` takes less time, and `OPTIONS=--quick` only tries it. Each part, and what has no
peers, is a command of its own too, which writes its figures with `--json FILE`.

The tables are those of the newest files in `results/`, and a test holds them against each other. Times are those of the
CPU: other work on the machine hardly changes them. All was measured on a CPU; nothing on a GPU yet.

## In short

* **PPO** takes {time_rloo} of the time of TRL's RLOO ({time_once} with 1 epoch) and {memory_rloo} of its memory, and
  {time_old} and {memory_old} of those of the PPO that TRL had up to 1.12 (full fine-tuning, 4 epochs). What it saves
  there is the critic, a head on the policy: with `critic: copy`, a model of its own as in TRL 1.12, it takes
  {time_copied} and {memory_copied}. The head has its price too: [it explains less](../docs/ppo.md#the-critic).
* **ROUGE**: ours is {least_ours} to {most_ours} times as fast as rouge_score, the more the longer the texts, and
  {least_new} to {most_new} times where no word was seen before; evaluate and torchmetrics are {least_slow} to
  {most_slow} times as fast. **rouge-score-rs, which is compiled, is faster than ours** in
  {faster}, and slower in {slower}.
  The values of rouge_score to the last bit have {exact}; in single precision {near}.
  To score large files as fast as can be, take rouge-score-rs. Ours is plain Python, and takes what a recipe says:
  measure, mean or maximum over references, tokenizer. In a training step it weighs little: ROUGE-L, length and
  repetition of {completions} completions of {tokens} tokens take {step_ms} ms.
* **Start-up**: `lastmile --help` takes {help} s of CPU, `trl --help` {trl_help}, `trl grpo --help` {trl_grpo_help}.
  `lastmile check`, which TRL does not have, takes {check}, and {check_memory} where it tells the memory too.

## Trainers: what PPO costs

`python benchmarks/trainers.py` measures PPO with its three critics beside GRPO and RLOO, which are TRL's own trainers,
and beside the last PPO that TRL had: CPU time per roll-out and per optimiser step, and peak memory above the imports.
All train one small Llama with random weights on the same number of tokens, with the same rewards, KL penalty and
optimiser steps. How well they learn is not measured here. A ratio is the median of those of the rounds; below 1 is less
than the other takes. `--quick` tries it with next to no work.

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
rouge_score it is. Ours remembers stems: in "ours" every word was seen before, in "new stems" none, as in the first step
of a run.

torchmetrics scores pair by pair, as it tells of many only the mean, and no Lsum, as it splits sentences with a model.
The `rouge` of evaluate is a script on the Hub and not in the package; measured was, offline, a metric of ours in its
place which does the same: the rows through evaluate's table, then each pair to rouge_score. rouge-score-rs is timed on
one core, and can use all.

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

`python benchmarks/startup.py` starts our command and TRL's in turns; the CPU time is what one waits on a machine with
nothing else to do. `trl grpo --help` imports torch to list every setting there is; `lastmile run --help` lists none, as
they stand in the recipe. `lastmile check` has no like in TRL: it reads the recipe and 2,000 rows of data and loads the
tokenizer (`tiny.yaml`), and for a model that is not tiny it tells the memory that training takes, here of a Llama of 1
billion weights with LoRA (`1b.yaml`): that takes longest, and comes after all else is printed.

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
        f"Rounds: {results['rounds']}; timed roll-outs in each: {work['rollouts'] - 1}, of "
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


def columns_of(results: dict) -> list[str]:
    """The contenders that were measured beside rouge_score."""
    about = ("metric", "tokens", "least_ratio", "rouge_score")
    return [name for name in results["comparisons"][0] if name not in about]


def rewards_section() -> str:
    results = json.loads(newest("rewards-*.json").read_text())
    names = columns_of(results)
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
    return "\n".join([provenance(results), "", *lines, "", f"{took} {verdict(results)}"])


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
    results = json.loads(newest("startup-*.json").read_text())
    lines = ["| command | CPU, s | at most |", "|---|--:|--:|"]
    for row in results["commands"]:
        most = f"{row['most']:g}" if row["most"] else ""
        lines.append(f"| `{row['command']}` | {row['cpu']:.2f} | {most} |")
    how = f"Medians of {results['rounds']} starts. {provenance(results)}"
    return "\n".join([how, "", *lines, "", verdict(results)])


def verdict(results: dict) -> str:
    """How many of the bars hold, and which do not."""
    missed = [f"{bar['what']}: {bar['measured']:g}" for bar in results["bars"] if not bar["holds"]]
    held = f"{len(results['bars']) - len(missed)} of {len(results['bars'])} bars hold"
    return f"{held}; **missed**: {', '.join(missed)}." if missed else f"{held}."


def short_of_trainers() -> dict[str, str]:
    """The figures of PPO beside the others, in full fine-tuning."""
    rows = [row for row in json.loads(newest("trainers-*.json").read_text())["rows"] if row["tuning"] == "full"]
    ratios = {(row["method"], row["epochs"]): row["ratios"] for row in rows}
    pairs = {
        "rloo": ratios["PPO", 4]["RLOO"],
        "old": ratios["PPO", 4][trainers.OLD],
        "copied": ratios["PPO, copied critic", 4][trainers.OLD],
    }
    figures = {f"{what}_{name}": f"{pair[what]:.2f}" for name, pair in pairs.items() for what in ("time", "memory")}
    return figures | {"time_once": f"{ratios['PPO', 1]['RLOO']['time']:.2f}"}


def short_of_rewards() -> dict[str, str]:
    """The figures of ROUGE beside the others, over all metrics and lengths."""
    results = json.loads(newest("rewards-*.json").read_text())
    rows, step = results["comparisons"], results["step"]
    ours, new = ([row[name]["ratio"] for row in rows] for name in ("ours", "ours, new stems"))
    slow = [row[name]["ratio"] for row in rows for name in ("evaluate", "torchmetrics") if name in row]
    beside = [row["rouge-score-rs"]["ratio"] / row["ours"]["ratio"] for row in rows]
    exact = {name: all(row[name]["off"] == 0 for row in rows if name in row) for name in columns_of(results)}

    def cases(factors: list[float]) -> str:
        return f"{len(factors)} of {len(rows)} cases, by up to {max(factors):.1f} times" if factors else "none"

    return {
        "least_ours": f"{min(ours):.0f}",
        "most_ours": f"{max(ours):.0f}",
        "least_new": f"{min(new):.0f}",
        "most_new": f"{max(new):.0f}",
        "least_slow": f"{min(slow):.1f}",
        "most_slow": f"{max(slow):.1f}",
        "faster": cases([factor for factor in beside if factor > 1]),
        "slower": cases([1 / factor for factor in beside if factor < 1]),
        "exact": ", ".join(name for name in exact if exact[name] and "," not in name),
        "near": ", ".join(name for name in exact if not exact[name]) or "none",
        "completions": str(step["groups"] * step["completions"]),
        "tokens": str(step["tokens"]),
        "step_ms": f"{step['ms']:.0f}",
    }


def short_of_startup() -> dict[str, str]:
    """The CPU time of the commands."""
    rows = json.loads(newest("startup-*.json").read_text())["commands"]
    cpu = {row["command"]: f"{row['cpu']:.2f}" for row in rows}
    return {
        "help": cpu["lastmile --help"],
        "trl_help": cpu["trl --help"],
        "trl_grpo_help": cpu["trl grpo --help"],
        "check": cpu["lastmile check tiny.yaml"],
        "check_memory": cpu["lastmile check 1b.yaml"],
    }


def memory_page() -> str:
    """The text of docs/memory.md, with the newest table between its markers."""
    results = json.loads(newest("memory-*.json").read_text())
    table = f"{memory.markdown(results)}\n\n{provenance(results)}\n"
    return with_table(MEMORY.read_text(encoding="utf-8"), "measured", table)


def render() -> str:
    """The text of benchmarks/README.md."""
    return TEXT.format(
        **short_of_trainers(),
        **short_of_rewards(),
        **short_of_startup(),
        trainers=trainers_section(),
        gpu=gpu_section(),
        rewards=rewards_section(),
        evaluation=evaluation_section(),
        startup=startup_section(),
    )


def write() -> None:
    """Write both pages."""
    (FOLDER / "README.md").write_text(render(), encoding="utf-8")
    MEMORY.write_text(memory_page(), encoding="utf-8")


if __name__ == "__main__":
    write()
