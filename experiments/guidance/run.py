"""Does a guide help? `python experiments/guidance/run.py notes 0 1 2`, or DATA 0 1 2, a folder with E2E's files.

From one SFT model a seed: PPO, PPO with the supervised anchor, the five guided modes and SFT going on, all with the
same number of samples. The guide is the SFT model itself, as in the paper; DR-PO's are the references. Runs go to
runs/guidance; what is kept, without the texts, is results/ beside this file, and README.md's tables are made of it.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tables import signed, with_table  # noqa: E402

RUNS = Path("runs", "guidance")
STEPS, COMPLETIONS = 100, 64
TASKS = ("notes", "e2e")
DECODINGS = ("greedy", "sampled")
ARMS = {  # name -> title, overrides; SFT is where all start
    "sft": ("SFT", None),
    "sft_more": ("SFT, as many samples more", None),
    "ppo": ("PPO", []),
    "ppo_anchor": ("PPO, anchor 0.1", ["guidance.mode=drpo", "guidance.probability=0", "guidance.anchor=0.1"]),
    "ppo_plus_plus": ("PPO++", ["guidance.mode=ppo++"]),
    "drpo": ("DR-PO", ["guidance.mode=drpo"]),
    "aggrevated": ("AggreVaTeD", ["guidance.mode=aggrevated"]),
    "lols": ("LOLS", ["guidance.mode=lols"]),
    "d2lols": ("D2LOLS", ["guidance.mode=d2lols"]),
}
SHOWN = {
    "notes": {"rouge/rougeL": "ROUGE-L", "facts_right": "all facts right", "repeated_3grams": "repeated 3-grams"},
    "e2e": {"rouge/rougeL": "ROUGE-L", "slots": "facts right", "repeated_3grams": "repeated 3-grams"},
}


def recipes(task: str) -> dict[str, dict]:
    """SFT and PPO of a task: the quickstart's, with a shorter RL stage, on the task's rows."""
    from lastmile_trl.recipe import load

    values = {name: load(f"quickstart/{name}").values for name in ("sft", "ppo")}
    values["ppo"]["training"] |= {"max_steps": STEPS, "per_device_train_batch_size": COMPLETIONS}
    if task == "e2e":
        [slots] = [m for m in load("e2e/grpo").evaluation.metrics if isinstance(m, dict) and "slots" in m]
        slots["slots"]["column"] = "facts"
        rows = {"path": str(RUNS / "e2e" / "data"), "eval_split": "validation", "prompt": "{facts} =>"}
        for stage in values.values():
            stage["data"] = {**rows, "references": "references", "max_prompt_tokens": 160}
            stage["evaluation"] |= {"metrics": ["rouge", "length", "repetition", slots]}
        values["sft"]["model"]["model_name_or_path"] = str(RUNS / "e2e" / "base")
    return values


def prepare(task: str, data: Path) -> None:
    """The recipes, and for E2E its rows and an untrained model with their words."""
    folder = RUNS / task
    folder.mkdir(parents=True, exist_ok=True)
    if task == "e2e" and not (folder / "data").exists():
        from lastmile_trl.synthetic import tiny_model, tokenizer

        rows = {split: _rows(data / f"{split}.jsonl") for split in ("train", "validation")}
        words = tokenizer(
            [{"note": row["facts"], "summary": text} for row in rows["train"] for text in row["references"]]
        )
        words.save_pretrained(folder / "base")
        tiny_model(words).save_pretrained(folder / "base")
        (folder / "data").mkdir()
        for split, kept in rows.items():
            (folder / "data" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    for name, recipe in recipes(task).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def _rows(file: Path) -> list[dict]:
    """The rows with their facts under a name that no trainer takes for itself."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{"facts": row["prompt"], "references": row["references"]} for row in rows]


def lastmile(*words: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", "lastmile_trl", *words], check=True)


def run(task: str, seed: int) -> None:
    """Every arm, and their comparison; what has finished is skipped."""
    folder = RUNS / task
    sft = folder / f"sft-{seed}"
    for name, (_, overrides) in ARMS.items():
        output = [f"training.output_dir={folder / f'{name}-{seed}'}", f"training.seed={seed}"]
        start = f"model.model_name_or_path={sft}"
        if name == "sft":
            lastmile("run", str(folder / "sft.yaml"), *output)
        elif name == "sft_more":  # with the last stage's rate, as the RL stage has one of its own
            steps = STEPS * COMPLETIONS // recipes(task)["sft"]["training"]["per_device_train_batch_size"]
            more = [f"training.max_steps={steps}", "training.learning_rate=3e-4", "training.warmup_steps=0"]
            lastmile("run", str(folder / "sft.yaml"), start, *output, *more)
        else:
            needs_model = any("mode=" in text for text in overrides) and "guidance.mode=drpo" not in overrides
            guide = [f"guidance.guide={sft}"] if needs_model else []
            lastmile("run", str(folder / "ppo.yaml"), start, *output, *overrides, *guide)
    runs = [str(folder / f"{name}-{seed}") for name in ARMS]
    output = folder / f"evaluate-{seed}"
    lastmile("evaluate", *runs, "--data", str(folder / "ppo.yaml"), "--output", str(output))


def keep(task: str, seed: int) -> None:
    """Store what was measured, without the texts."""
    folder = RUNS / task
    result = json.loads((folder / f"evaluate-{seed}" / "evaluation.json").read_text())
    environments = {name: json.loads((folder / f"{name}-{seed}" / "environment.json").read_text()) for name in ARMS}
    kept = {"date": environments["ppo"]["finished"][:10], "versions": environments["ppo"]["versions"]}
    kept["training"] = {name: _training(folder / f"{name}-{seed}" / "history.jsonl") for name in ARMS}
    kept["rows"] = {name: _rows_of(f"{name}-{seed}", task, result["examples"]) for name in ARMS}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{task}-{seed}.json").write_text(json.dumps(kept) + "\n")


def _training(file: Path) -> list[dict]:
    """The rewards of guided and unguided roll-outs through training."""
    wanted = ("step", "reward", "anchor/loss")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [row for row in rows if "reward" in row]
    return [{key: value for key, value in row.items() if key in wanted or key.startswith("guidance/")} for row in rows]


def _rows_of(run: str, task: str, examples: list[dict]) -> dict[str, dict[str, list]]:
    """By decoding and metric, the value of every held-out row."""
    raw = [
        output
        for example in examples
        for output in example["outputs"]
        if output["run"] == run and not output["postprocessed"]
    ]
    return {
        decoding: {
            metric: [_rounded(output["metrics"][metric]) for output in raw if output["decoding"] == decoding]
            for metric in SHOWN[task]
        }
        for decoding in DECODINGS
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def stored(task: str) -> dict[int, dict]:
    """The kept results, by seed."""
    files = sorted((HERE / "results").glob(f"{task}-*.json"))
    return {int(file.stem.removeprefix(f"{task}-")): json.loads(file.read_text()) for file in files}


def outcome_table(task: str, results: dict[int, dict], decoding: str) -> str:
    """Every arm's means, and its difference to PPO on the same rows: a row's mean over the seeds, and each seed's."""
    from lastmile_trl.evaluation.significance import interval

    primary, facts, repeats = SHOWN[task]
    heads = SHOWN[task]
    lines = [
        f"| | {heads[primary]} | minus PPO | by seed | {heads[facts]} | minus PPO | {heads[repeats]} |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]

    def values(name: str, metric: str) -> list[list]:
        return [kept["rows"][name][decoding][metric] for kept in results.values()]

    def minus_ppo(name: str, metric: str) -> list[list]:
        return [
            [_minus(value, base) for value, base in zip(own, ppo, strict=True)]
            for own, ppo in zip(values(name, metric), values("ppo", metric), strict=True)
        ]

    def over_seeds(by_seed: list[list]) -> dict | None:
        rows = [[value for value in row if value is not None] for row in zip(*by_seed, strict=True)]
        return asdict(interval([fmean(row) if row else None for row in rows]))

    for name, (title, _) in ARMS.items():
        cells = [f"{over_seeds(values(name, primary))['mean']:.3f}"]
        if name == "ppo":
            cells += ["", ""]
        else:
            differences = minus_ppo(name, primary)
            seeds = [fmean(value for value in seed if value is not None) for seed in differences]
            cells += [signed(over_seeds(differences)), " ".join(f"{value:+.3f}" for value in seeds)]
        cells.append(f"{over_seeds(values(name, facts))['mean']:.3f}")
        cells.append("" if name == "ppo" else signed(over_seeds(minus_ppo(name, facts))))
        cells.append(f"{over_seeds(values(name, repeats))['mean']:.3f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _minus(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def training_table(results: dict[int, dict]) -> str:
    """What guided and unguided roll-outs earned while the probability was whole: the first steps, and half-way."""
    lines = [
        "| | guided, first steps | unguided, first steps | guided, half-way | unguided, half-way |",
        "|---|---:|---:|---:|---:|",
    ]

    def mean(name: str, key: str, first: int, last: int) -> str:
        found = [
            row[key]
            for kept in results.values()
            for row in kept["training"][name]
            if first < row["step"] <= last and row.get(key) is not None
        ]
        return f"{fmean(found):.3f}" if found else ""

    for name, (title, overrides) in ARMS.items():
        if overrides is None:
            continue
        keys = ("guidance/reward_guided", "guidance/reward_unguided")
        keys = keys if name not in ("ppo", "ppo_anchor") else ("", "reward")
        cells = [mean(name, key, *part) for part in ((0, 10), (40, 50)) for key in keys]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tables() -> dict[str, str]:
    """Every table of README.md, by its mark."""
    found = {}
    for task in TASKS:
        results = stored(task)
        found |= {f"{task} {decoding}": outcome_table(task, results, decoding) for decoding in DECODINGS}
        found[f"{task} training"] = training_table(results)
    return found


def write_tables() -> None:
    """Put the tables between their marks in README.md."""
    file = HERE / "README.md"
    page = file.read_text()
    for mark, table in tables().items():
        page = with_table(page, mark, table)
    file.write_text(page)


if __name__ == "__main__":
    given, *seeds = sys.argv[1:]
    task = given if given in TASKS else "e2e"
    prepare(task, Path(given))
    for seed in map(int, seeds):
        if not (RUNS / task / f"evaluate-{seed}" / "evaluation.json").exists():
            run(task, seed)
        keep(task, seed)
    write_tables()
