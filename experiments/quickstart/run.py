"""The quickstart over several seeds: `python experiments/quickstart/run.py 0 1 2`, then the table in README.md.

Runs go to runs/quickstart-SEED; what is kept, without the texts, is results/seed-SEED.json beside this file.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from lastmile_trl import rewards
from lastmile_trl.evaluation.significance import interval, paired

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tables import signed, with_table  # noqa: E402

SHOWN = {  # metric -> column
    "rouge/rougeL": "ROUGE-L*",
    "repetition": "repetition*",
    "length_ratio": "length / reference",
    "fact_f1": "fact F1",
    "facts_right": "all facts right",
    "invented": "invented",
}


def run(seed: int) -> None:
    """One seed from nothing."""
    command = [sys.executable, "-m", "lastmile_trl", "quickstart", "--seed", str(seed), "--output", str(folder(seed))]
    subprocess.run(command, check=True)


def folder(seed: int) -> Path:
    """Where the runs of a seed are."""
    return Path("runs", f"quickstart-{seed}")


def keep(seed: int) -> None:
    """Store what was measured, without the texts."""
    result = json.loads((folder(seed) / "evaluate" / "evaluation.json").read_text())
    result["first_sentence"] = first_sentence(result.pop("examples"))
    environments = {
        stage: json.loads((folder(seed) / stage / "environment.json").read_text()) for stage in ("sft", "grpo")
    }
    result["seconds"] = {stage: environment["seconds"] for stage, environment in environments.items()}
    result["date"] = environments["grpo"]["finished"][:10]
    result["versions"] = environments["grpo"]["versions"]
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"seed-{seed}.json").write_text(json.dumps(result, indent=1) + "\n")


def first_sentence(examples: list[dict]) -> dict:
    """SFT cut after its first sentence, as someone would who knows that a summary here is one sentence."""
    rouge, found = rewards.build(["rouge"])[0], {}
    for decoding in ("greedy", "sampled"):
        texts = {}
        for run_name in ("sft", "grpo"):
            texts[run_name] = [
                output["text"]
                for example in examples
                for output in example["outputs"]
                if (output["run"], output["decoding"], output["postprocessed"]) == (run_name, decoding, False)
            ]
        cut = [text.split(". ")[0].rstrip(".") + "." for text in texts["sft"]]
        references = [example["references"] for example in examples]
        scores = {
            name: rouge(completions=said, references=references)
            for name, said in [("cut", cut), ("grpo", texts["grpo"])]
        }
        found[decoding] = {
            "rouge/rougeL": asdict(interval(scores["cut"])),
            "grpo_minus": asdict(paired(scores["grpo"], scores["cut"])),
        }
    return found


def stored() -> dict[int, dict]:
    """The kept results, by seed."""
    files = sorted((HERE / "results").glob("seed-*.json"))
    return {int(file.stem.removeprefix("seed-")): json.loads(file.read_text()) for file in files}


def table(result: dict) -> str:
    """One seed: the runs with what they measured, and their difference in ROUGE-L to the SFT model as it is."""
    lines = [f"| run | decoding | {' | '.join(SHOWN.values())} | ROUGE-L minus SFT's |", "|---|---|" + "---:|" * 7]
    for entry in result["results"]:
        name = f"{entry['run'].upper()}{', post-processed' if entry['postprocessed'] else ''}"
        cells = [f"{entry['metrics'][metric]['mean']:.3f}" for metric in SHOWN]
        difference = (entry["difference"] or {}).get("rouge/rougeL")
        cells.append(signed(difference) if difference else "")
        lines.append(f"| {name} | {entry['decoding']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def seeds_table(results: dict[int, dict]) -> str:
    """All seeds: GRPO minus SFT as it is, and minus post-processed SFT."""
    metrics = ["rouge/rougeL", "repetition", "fact_f1", "facts_right"]
    head = [SHOWN[metric] for metric in metrics]
    lines = [f"| seed | decoding | GRPO minus | {' | '.join(head)} |", "|---:|---|---|" + "---:|" * len(head)]
    for seed, result in results.items():
        for entry in result["results"]:
            if entry["run"] == "grpo":
                for key, rival in {"difference": "SFT", "difference_to_postprocessed": "SFT, post-processed"}.items():
                    cells = " | ".join(signed(entry[key][metric]) for metric in metrics)
                    lines.append(f"| {seed} | {entry['decoding']} | {rival} | {cells} |")
                first = signed(result["first_sentence"][entry["decoding"]]["grpo_minus"])
                lines.append(f"| {seed} | {entry['decoding']} | SFT, first sentence only | {first} |" + "  |" * 3)
    return "\n".join(lines) + "\n"


def write_tables() -> None:
    """Put the tables between their marks in the README of this folder and of the project."""
    results = stored()
    for file, mark, text in [
        (HERE.parent.parent / "README.md", "quickstart", table(results[0])),
        (HERE / "README.md", "quickstart", table(results[0])),
        (HERE / "README.md", "seeds", seeds_table(results)),
    ]:
        page = file.read_text()
        file.write_text(with_table(page, mark, text))


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        if not (folder(number) / "evaluate" / "evaluation.json").exists():
            run(number)
        keep(number)
    write_tables()
