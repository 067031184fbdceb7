"""Do pairs that a model might have written itself teach it more? `python experiments/perplexity/run.py DATA 0 1 2`.

DATA is a folder with train.jsonl and validation.jsonl, whose rows have a prompt, references, and chosen and rejected
answers. A tiny model learns the references; its perplexity filters the pairs; reward models and DPO learn from all
pairs, from those that are kept, and, as a control, from as many at random. Everything is measured on the same held-out
pairs, which no filter has touched. Runs go to runs/perplexity; what is kept, without the texts, is results/ beside this
file, and the tables in README.md are made of it.
"""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tables import cell, signed, with_table  # noqa: E402

RUNS = Path("runs", "perplexity")
ARMS = {"all": "all pairs", "filter": "kept by the filter", "random": "as many at random"}
SHOWN = {
    "slots": "facts right",
    "rouge/rougeL": "ROUGE-L",
    "length_ratio": "length / reference",
    "ended": "ended",
}
TRAINING = {
    "gradient_checkpointing": False,
    "lr_scheduler_type": "cosine",
    "logging_steps": 20,
    "save_strategy": "no",
}


def recipes() -> dict[str, dict]:
    """The stages: one SFT, one filter, and what both trainers take."""
    from lastmile_trl.recipe import load

    [slots] = [m for m in load("e2e/grpo").evaluation.metrics if isinstance(m, dict) and "slots" in m]
    slots["slots"]["column"] = "facts"
    rows = {"eval_split": "validation", "prompt": "{facts} =>", "max_prompt_tokens": 160}
    evaluation = {"rows": 769, "max_new_tokens": 64, "batch_size": 128, "metrics": [slots, "rouge", "length"]}
    columns = {"chosen": "chosen", "rejected": "rejected"}

    def stage(method: str, start: str, training: dict, **more: dict) -> dict:
        return {
            "method": method,
            "model": {"model_name_or_path": str(RUNS / start)},
            "data": {"path": str(RUNS / "data" / "all"), **rows},
            "training": {"output_dir": str(RUNS / method), "seed": 0, **training},
            "evaluation": evaluation,
            **more,
        }

    sft = {**TRAINING, "max_steps": 600, "per_device_train_batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 20}
    reward = {**TRAINING, "max_steps": 250, "per_device_train_batch_size": 16, "learning_rate": 1e-3}
    dpo = {**TRAINING, "max_steps": 150, "per_device_train_batch_size": 16, "learning_rate": 3e-4, "beta": 0.1}
    return {
        "sft": stage("sft", "base", sft),
        "pairs": stage("pairs", "sft", {}, preferences=columns | {"filter": {}}),
        "reward": stage("reward", "sft", reward, preferences=columns),
        "dpo": stage("dpo", "sft", dpo, preferences=columns),
    }


def lastmile(*words: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", "lastmile_trl", *words], check=True)


def prepare(data: Path) -> None:
    """The model whose perplexity it is, and the three sets of pairs."""
    from lastmile_trl.synthetic import tiny_model, tokenizer

    rows = {split: _rows(data / f"{split}.jsonl") for split in ("train", "validation")}
    if not (RUNS / "base").exists():
        words = tokenizer(
            [{"note": row["facts"], "summary": text} for row in rows["train"] for text in row["references"]]
        )
        words.save_pretrained(RUNS / "base")
        tiny_model(words).save_pretrained(RUNS / "base")
    (RUNS / "recipes").mkdir(exist_ok=True)
    for name, recipe in recipes().items():
        (RUNS / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    _write("all", rows["train"], rows["validation"])
    lastmile("run", str(RUNS / "recipes" / "sft.yaml"), str(RUNS / "recipes" / "pairs.yaml"))
    kept = [json.loads(line) for line in (RUNS / "pairs" / "train.jsonl").read_text().splitlines()]
    _write("filter", kept, rows["validation"])
    _write("random", random.Random(0).sample(rows["train"], len(kept)), rows["validation"])


def _rows(file: Path) -> list[dict]:
    """The rows with their facts under a name that no trainer takes for itself."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{"facts": row["prompt"], **{key: row[key] for key in ("chosen", "rejected", "references")}} for row in rows]


def _write(arm: str, train: list[dict], validation: list[dict]) -> None:
    folder = RUNS / "data" / arm
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in {"train": train, "validation": validation}.items():
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def run(seed: int) -> None:
    """Both trainers on every set of pairs; what has finished is skipped."""
    for arm in ARMS:
        for method in ("reward", "dpo"):
            output = RUNS / f"{method}-{arm}-{seed}"
            overrides = {"data.path": RUNS / "data" / arm, "training.output_dir": output, "training.seed": seed}
            words = [f"{key}={value}" for key, value in overrides.items()]
            lastmile("run", str(RUNS / "recipes" / f"{method}.yaml"), *words)
    runs = [str(RUNS / "sft"), *(str(RUNS / f"dpo-{arm}-{seed}") for arm in ARMS)]
    data = f"data.path={RUNS / 'data' / 'all'}"
    output = RUNS / f"evaluate-{seed}"
    lastmile("evaluate", *runs, "--data", str(RUNS / "recipes" / "dpo.yaml"), data, "--output", str(output))
    result = json.loads((output / "evaluation.json").read_text())
    result.pop("examples")
    kept = {"evaluation": result, "reward": {}, "dpo": {}}
    for arm in ARMS:
        judged = json.loads((RUNS / f"reward-{arm}-{seed}" / "evaluation.json").read_text())
        judged.pop("examples")
        kept["reward"][arm] = judged
        history = [json.loads(line) for line in (RUNS / f"dpo-{arm}-{seed}" / "history.jsonl").read_text().splitlines()]
        kept["dpo"][arm] = [row for row in history if "rewards/accuracies" in row][-1]
    environment = json.loads((RUNS / f"dpo-all-{seed}" / "environment.json").read_text())
    kept |= {"date": environment["finished"][:10], "versions": environment["versions"]}
    report = json.loads((RUNS / "pairs" / "pairs.json").read_text())["filter"]
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "filter.json").write_text(json.dumps(report, indent=1) + "\n")
    (HERE / "results" / f"seed-{seed}.json").write_text(json.dumps(kept, indent=1) + "\n")


def stored() -> dict[int, dict]:
    """The kept results, by seed."""
    files = sorted((HERE / "results").glob("seed-*.json"))
    return {int(file.stem.removeprefix("seed-")): json.loads(file.read_text()) for file in files}


def reward_table(results: dict[int, dict]) -> str:
    """Held-out accuracy of the reward models, and what they make of real outputs."""
    columns = [f"seed {seed}" for seed in results]
    lines = [
        f"| reward model of | measure | {' | '.join(columns)} | mean |",
        "|---|---|" + "---:|" * (len(columns) + 1),
    ]
    for arm, title in ARMS.items():
        models = [kept["reward"][arm] for kept in results.values()]
        accuracies = [model["all"]["accuracy"] for model in models]
        cells = " | ".join(cell(accuracy) for accuracy in accuracies)
        lines.append(f"| {title} | held-out pairs ranked right | {cells} | {mean(a['mean'] for a in accuracies)} |")
        for key, measure in {"length_correlation": "correlation of score and length"}.items():
            values = [model[key] for model in models]
            cells = " | ".join(f"{value:+.2f}" for value in values)
            lines.append(f"| {title} | {measure} | {cells} | {fmean(values):+.2f} |")
        sampled = [next(s for s in model["samples"] if s["decoding"] == "sampled") for model in models]
        values = [sample["correlation"]["metric"] for sample in sampled]
        cells = " | ".join(f"{value:+.2f}" for value in values)
        lines.append(f"| {title} | correlation with facts right, SFT's samples | {cells} | {fmean(values):+.2f} |")
    return "\n".join(lines) + "\n"


def dpo_table(results: dict[int, dict]) -> str:
    """What the models write after DPO, as they are."""
    lines = [f"| model | decoding | seed | {' | '.join(SHOWN.values())} | facts right minus SFT's |"]
    lines.append("|---|---|---:|" + "---:|" * (len(SHOWN) + 1))
    for decoding in ("greedy", "sampled"):
        for name, title in {"sft": "SFT", **{f"dpo-{arm}": f"DPO, {said}" for arm, said in ARMS.items()}}.items():
            for seed, kept in results.items():
                run = name if name == "sft" else f"{name}-{seed}"
                if name == "sft" and seed != min(results):
                    continue
                [entry] = [
                    e
                    for e in kept["evaluation"]["results"]
                    if (e["run"], e["decoding"], e["postprocessed"]) == (run, decoding, False)
                ]
                cells = " | ".join(cell(entry["metrics"][metric]) for metric in SHOWN)
                difference = signed((entry["difference"] or {}).get("slots"))
                lines.append(f"| {title} | {decoding} | {'' if name == 'sft' else seed} | {cells} | {difference} |")
    return "\n".join(lines) + "\n"


def mean(values: Sequence[float]) -> str:
    """Of the seeds."""
    return f"{fmean(values):.3f}"


def write_tables() -> None:
    """Put the tables, and the filter's own report, between their marks in README.md."""
    from lastmile_trl.preferences.perplexity import lines

    results, file = stored(), HERE / "README.md"
    report = json.loads((HERE / "results" / "filter.json").read_text())
    page = with_table(file.read_text(), "filter", "```text\n" + "\n".join(lines(report)) + "\n```\n")
    for mark, table in {"reward": reward_table, "dpo": dpo_table}.items():
        page = with_table(page, mark, table(results))
    file.write_text(page)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
    for number in map(int, sys.argv[2:]):
        run(number)
    write_tables()
