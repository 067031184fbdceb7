"""The pipeline of recipes/last_mile_tiny over several seeds: `python experiments/last_mile/run.py 0 1 2`.

Each seed trains SFT, the reward model, PPO with the length penalty and, for comparison, PPO without it. Runs go to
runs/last_mile-SEED; what is kept, without the texts, is results/seed-SEED.json beside this file, and the tables in
README.md are made of it.
"""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tables import cell, signed, with_table  # noqa: E402

SHOWN = {  # metric -> column
    "rouge/rougeL": "ROUGE-L",
    "fact_f1": "fact F1",
    "facts_right": "all facts right",
    "invented": "invented",
    "repeated_3grams": "repeated 3-grams",
    "length_ratio": "length / reference",
    "ended": "ended",
    "model": "learned reward",
}
RUNS = {"1_sft": "SFT", "3_ppo": "PPO", "no_length": "PPO, no length penalty"}


def folder(seed: int) -> Path:
    """Where the runs of a seed are."""
    return Path("runs", f"last_mile-{seed}")


def run(seed: int) -> None:
    """One seed from nothing; what has finished is skipped."""
    base = folder(seed)
    sft, reward = f"model.model_name_or_path={base / '1_sft'}", f"rewards.model.model={base / '2_reward'}"
    stages = [
        ("1_sft", "1_sft", []),
        ("2_reward", "2_reward", [sft]),
        ("3_ppo", "3_ppo", [sft, reward]),
        ("3_ppo", "no_length", [sft, reward, "rewards.length.weight=0"]),
    ]
    for recipe, name, more in stages:
        lastmile(recipe, f"training.output_dir={base / name}", f"training.seed={seed}", *more)
    runs = ",".join(str(base / name) for name in RUNS)
    metrics = json.dumps([*SHOWN_METRICS, {"model": {"model": str(base / "2_reward")}}])
    lastmile(
        "4_evaluate",
        f"training.output_dir={base / '4_evaluate'}",
        f"evaluation.runs=[{runs}]",
        f"evaluation.postprocess=[{','.join(RUNS)}]",
        f"evaluation.metrics={metrics}",
    )


SHOWN_METRICS = [
    "rouge",
    "length",
    *(f"lastmile_trl.synthetic:{name}" for name in ("FactsRight", "FactF1", "Invented")),
]


def lastmile(recipe: str, *overrides: str) -> None:
    """Run a stage of the recipe folder."""
    subprocess.run([sys.executable, "-m", "lastmile_trl", "run", f"last_mile_tiny/{recipe}", *overrides], check=True)


def keep(seed: int) -> None:
    """Store what was measured, without the texts."""
    base = folder(seed)
    result = json.loads((base / "4_evaluate" / "evaluation.json").read_text())
    result.pop("examples")
    reward = json.loads((base / "2_reward" / "evaluation.json").read_text())
    reward.pop("examples")
    stages = [*RUNS, "2_reward"]
    environments = {stage: json.loads((base / stage / "environment.json").read_text()) for stage in stages}
    seconds = {stage: environment["seconds"] for stage, environment in environments.items()}
    kept = {"date": environments["3_ppo"]["finished"][:10], "versions": environments["3_ppo"]["versions"]}
    kept |= {"seconds": seconds, "reward_model": reward, "evaluation": result}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"seed-{seed}.json").write_text(json.dumps(kept, indent=1) + "\n")


def stored() -> dict[int, dict]:
    """The kept results, by seed."""
    files = sorted((HERE / "results").glob("seed-*.json"))
    return {int(file.stem.removeprefix("seed-")): json.loads(file.read_text()) for file in files}


def outputs_table(results: dict[int, dict]) -> str:
    """Every run, raw and post-processed, a row for each seed."""
    lines = [f"| outputs | decoding | seed | {' | '.join(SHOWN.values())} |", "|---|---|---:|" + "---:|" * len(SHOWN)]
    entries = [
        (name, decoding, processed)
        for decoding in ("greedy", "sampled")
        for name in RUNS
        for processed in (False, True)
    ]
    for name, decoding, processed in entries:
        for seed, kept in results.items():
            [entry] = [
                e
                for e in kept["evaluation"]["results"]
                if (e["run"], e["decoding"], e["postprocessed"]) == (name, decoding, processed)
            ]
            title = f"{RUNS[name]}{', post-processed' if processed else ''}"
            cells = " | ".join(cell(entry["metrics"][metric]) for metric in SHOWN)
            lines.append(f"| {title} | {decoding} | {seed} | {cells} |")
    return "\n".join(lines) + "\n"


def differences_table(results: dict[int, dict]) -> str:
    """PPO minus SFT, and minus post-processed SFT, with intervals."""
    metrics = ["rouge/rougeL", "fact_f1", "facts_right", "invented"]
    head = " | ".join(SHOWN[metric] for metric in metrics)
    lines = [f"| outputs | decoding | minus | seed | {head} |", "|---|---|---|---:|" + "---:|" * len(metrics)]
    rivals = {"difference": "SFT", "difference_to_postprocessed": "SFT, post-processed"}
    for name in ("3_ppo", "no_length"):
        for decoding in ("greedy", "sampled"):
            for key, rival in rivals.items():
                for seed, kept in results.items():
                    [entry] = [
                        e
                        for e in kept["evaluation"]["results"]
                        if (e["run"], e["decoding"], e["postprocessed"]) == (name, decoding, False)
                    ]
                    cells = " | ".join(signed(entry[key][metric]) for metric in metrics)
                    lines.append(f"| {RUNS[name]} | {decoding} | {rival} | {seed} | {cells} |")
    return "\n".join(lines) + "\n"


def reward_table(results: dict[int, dict]) -> str:
    """The reward model's accuracy by category on held-out rows, and on what SFT really writes."""
    columns = {f"seed {seed}": kept["reward_model"] for seed, kept in results.items()}
    lines = [f"| ranked right | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for category in next(iter(columns.values()))["categories"]:
        cells = " | ".join(cell(model["categories"][category]["accuracy"]) for model in columns.values())
        lines.append(f"| reference above {category} | {cells} |")
    for number, sample in enumerate(next(iter(columns.values()))["samples"]):
        cells = " | ".join(cell(model["samples"][number]["accuracy"]) for model in columns.values())
        lines.append(f"| reference above SFT's own output, {sample['decoding']} | {cells} |")
    said = {"length_correlation": "correlation of score and length"}
    for key, title in said.items():
        lines.append(f"| {title} | {' | '.join(f'{model[key]:+.2f}' for model in columns.values())} |")
    return "\n".join(lines) + "\n"


def write_tables() -> None:
    """Put the tables between their marks in README.md."""
    results, file = stored(), HERE / "README.md"
    page = file.read_text()
    tables = {"reward": reward_table, "outputs": outputs_table, "differences": differences_table}
    for mark, table in tables.items():
        page = with_table(page, mark, table(results))
    file.write_text(page)


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        if not (folder(number) / "4_evaluate" / "evaluation.json").exists():
            run(number)
        keep(number)
    write_tables()
