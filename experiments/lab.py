"""What the experiments share: arms trained over seeds, measured on the same rows, and what of it is kept.

An experiment is a folder with a `run.py` that names arms and claims, results/TASK-SEED.json with every row's values,
and a README.md whose tables, plots and verdicts are made of these (pages.py). An arm is a recipe of stages/ on the rows
of a task of tasks/, with changes. Arms of the same name are the same in all experiments, and are trained once.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RUNS = Path("runs", "experiments")


@dataclass(frozen=True)
class Arm:
    """A way to train: a stage with changes, in which `{name}` is the run of another arm.

    `make` does something else in its place: it gets the runs of all arms by name, the seed and its own folder.
    """

    title: str
    stage: str = ""
    start: str | None = "sft"
    changes: Sequence[str] = ()
    rate: float = 1.0  # times the learning rate of the stage
    make: Callable[[Mapping[str, str], int, Path], None] | None = None
    quick: bool = False  # whether a quick run has it
    tasks: Sequence[str] = ()  # those that have it; all if none is named

    @property
    def writes(self) -> bool:
        """Whether it makes a model that writes, not pairs or a reward model."""
        return self.stage not in ("", "pairs", "reward")


@dataclass(frozen=True)
class Claim:
    """That a number of one arm is above that of another, or above the mean of several."""

    said: str
    arm: str
    than: str | Sequence[str]
    metric: str = ""  # the task's first if none is named; `facts` is its second
    decoding: str = "greedy"
    against: str = ""  # the decoding of the rivals, if it is another
    main: bool = False  # whether the experiment was made to decide it; the others are looked at besides
    quick: bool = False  # whether a quick run decides it in sign

    @property
    def rivals(self) -> tuple[str, ...]:
        """The arm or arms it is held against."""
        return (self.than,) if isinstance(self.than, str) else tuple(self.than)

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the others."""
        return (self.arm, *self.rivals, self.metric, self.decoding, self.against)


@dataclass(frozen=True)
class Task:
    """A file of tasks/: rows, what is measured on them and how long completions are."""

    name: str

    @cached_property
    def said(self) -> dict[str, Any]:
        """The file."""
        return said("tasks", self.name)

    @property
    def shown(self) -> dict[str, str]:
        """Metric -> column of the tables; rewards are about the first and, but for one stage, never the second."""
        return self.said["shown"]

    @property
    def embedded(self) -> bool:
        """Whether its rows are made in code."""
        return "path" in self.said["data"]

    def recipe(self, stage: str, folder: Path, models: Mapping[str, Any]) -> dict[str, Any]:
        """The stage on the rows of this task."""
        values = said("stages", stage)
        values["data"] = {"path": str(folder / "data"), **self.said["data"]}
        values["evaluation"] = {
            "rows": 300, "max_new_tokens": self.said["longest"], "batch_size": 100,
            "metrics": with_phrases(self.said["metrics"]),
        }  # fmt: skip
        values.setdefault("training", {})
        if "rewards" in values:
            values["rewards"] = with_phrases(values["rewards"])
            values["training"]["max_completion_length"] = self.said["longest"]
        if "preferences" in values and "pairs" in self.said:
            values["preferences"] = dict(self.said["pairs"])
        start = models["start"]
        if start == "tiny":
            start = "synthetic:tiny" if self.embedded else str(folder / "base")
        values.setdefault("model", {})["model_name_or_path"] = start  # later stages start from another run
        for stages in (self.said.get("stages", {}), models["stages"]):
            for key, value in stages.get(stage, {}).items():
                section, name = key.split(".")
                values[section][name] = value
        return values

    def prepare(self, given: Path | None, folder: Path, models: Mapping[str, Any]) -> None:
        """Write the recipes of all stages and, where rows come from files, these and an untrained model."""
        folder.mkdir(parents=True, exist_ok=True)
        if not self.embedded and not (folder / "base").exists():
            if given is None:
                raise SystemExit(f"{self.name} needs its train.jsonl and validation.jsonl: {self.name}=FOLDER")
            self._read(given, folder)
        elif given:
            raise SystemExit(f"{folder} has the rows of {self.name} already: leave =FOLDER out, or remove it first.")
        for file in sorted((HERE / "stages").glob("*.yaml")):
            recipe = self.recipe(file.stem, folder, models)
            (folder / file.name).write_text(yaml.safe_dump(recipe, sort_keys=False))

    def _read(self, given: Path, folder: Path) -> None:
        """Rows, their prompt under a name that no trainer takes for itself, and a model that has their words."""
        from lastmile_trl.synthetic import tiny_model, tokenizer

        (folder / "data").mkdir(exist_ok=True)
        for split in ("train", "validation"):
            rows = [json.loads(line) for line in (given / f"{split}.jsonl").read_text().splitlines()]
            for row in rows:
                row["facts"] = row.pop("prompt")
            (folder / "data" / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            if split == "train":
                words = tokenizer(
                    [{"note": row["facts"], "summary": text} for row in rows for text in row["references"]]
                )
        made = folder / "base.writing"
        words.save_pretrained(made)
        tiny_model(words).save_pretrained(made)
        made.rename(folder / "base")  # where it stands, all is written


@dataclass(frozen=True)
class Experiment:
    """Arms on tasks, and what is claimed of them."""

    folder: Path
    arms: Mapping[str, Arm]
    claims: Sequence[Claim]
    tasks: Sequence[str] = ("notes",)
    base: str = "sft"  # the arm that the tables hold the others against
    beside: Mapping[str, str] = field(default_factory=dict)  # what evaluation shows beside the arms -> its title
    temperatures: Sequence[float] = ()  # at which the base is sampled too
    baselines: Sequence[str] = ()  # of the evaluation; `{name}` is the run of an arm, without which it is left out
    shown: Sequence[str] = ()  # the arms whose text of one row stands on the page
    results: str = "results"  # the folder of what is kept; that of other models has their name

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    def arms_of(self, task: str, quick: bool = False) -> dict[str, Arm]:
        """Those of a task."""
        return {
            name: arm
            for name, arm in self.arms.items()
            if (not arm.tasks or task in arm.tasks) and (arm.quick or not quick)
        }

    def run(self, task: Task, seed: int, root: Path, quick: bool = False) -> dict[str, Any]:
        """Train and measure every arm of a seed; what has finished is skipped. What is kept of it."""
        folder, arms = root / f"seed-{seed}", self.arms_of(task.name, quick)
        runs = {name: str(folder / name) for name in arms}
        for name, arm in arms.items():
            if arm.make:
                arm.make(runs, seed, Path(runs[name]))
                continue
            words = [f"training.output_dir={runs[name]}", f"training.seed={seed}"]
            if arm.start:
                words.append(f"model.model_name_or_path={runs[arm.start]}")
            recipe = root / f"{arm.stage}.yaml"
            if arm.rate != 1:
                usual = yaml.safe_load(recipe.read_text())["training"]["learning_rate"]
                words.append(f"training.learning_rate={arm.rate * usual:g}")
            lastmile("run", str(recipe), *words, *(filled(word, runs) for word in arm.changes))
        writers = [runs[name] for name, arm in arms.items() if arm.writes]
        absent = [f"{{{name}}}" for name in self.arms if name not in runs]
        baselines = [filled(text, runs) for text in self.baselines if not any(name in text for name in absent)]
        result = evaluated(
            writers,
            root,
            folder / f"evaluate-{self.name}",
            "evaluation.postprocess=[sft]",
            f"evaluation.baselines=[{', '.join(baselines)}]",
        )
        rows = rows_of(result, task)
        for temperature in () if quick else self.temperatures:
            output = folder / f"evaluate-{self.name}-{temperature}"
            cooler = evaluated([runs[self.base]], root, output, f"evaluation.temperature={temperature}")
            rows[f"{self.base} at {temperature}"] = {"sampled": rows_of(cooler, task)[self.base]["sampled"]}
        trained = {name: run for name, run in runs.items() if not arms[name].make}
        environments = {name: json.loads(Path(run, "environment.json").read_text()) for name, run in trained.items()}
        kept = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": next(iter(environments.values()))["versions"],
            "seconds": {name: environment["seconds"] for name, environment in environments.items()},
            "rows": rows,
            "example": example_of(result),
        }
        if judges := [name for name, arm in arms.items() if arm.stage == "reward"]:
            kept["judged"] = {name: without_texts(Path(runs[name], "evaluation.json")) for name in judges}
        if filters := [name for name, arm in arms.items() if arm.stage == "pairs"]:
            kept["pairs"] = {name: without_texts(Path(runs[name], "pairs.json")) for name in filters}
        return kept

    def keep(self, task: str, seed: int, kept: Mapping[str, Any]) -> None:
        """Store it, beside what other seeds have."""
        folder = self.folder / self.results
        folder.mkdir(exist_ok=True)
        (folder / f"{task}-{seed}.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")

    def stored(self, task: str) -> dict[int, dict]:
        """The kept results by seed."""
        files = (self.folder / self.results).glob(f"{task}-*.json")
        seeds = {int(file.stem.rpartition("-")[2]): file for file in files}
        return {seed: json.loads(seeds[seed].read_text()) for seed in sorted(seeds)}

    def main(self, words: Sequence[str] | None = None) -> None:
        """The command of an experiment's run.py."""
        from pages import marks, write

        parser = argparse.ArgumentParser(prog=f"python experiments/{self.name}/run.py", description=__doc__)
        parser.add_argument(
            "task", nargs="?", help=f"{', '.join(self.tasks)}; with =FOLDER of its rows where they are files"
        )
        parser.add_argument("seeds", nargs="*", type=int, help="none of them: only write the page again")
        parser.add_argument("--models", type=Path, default=HERE / "models.yaml", help="what is trained")
        given = parser.parse_args(words)
        others = "" if given.models == HERE / "models.yaml" else given.models.stem
        tried = replace(self, results=f"{self.results}_{others}") if others else self
        if given.task:
            name, _, data = given.task.partition("=")
            if name not in self.tasks:
                parser.error(f"{name} is none of its tasks, which are {', '.join(self.tasks)}")
            task, root = Task(name), RUNS / others / name
            task.prepare(Path(data) if data else None, root, yaml.safe_load(given.models.read_text()))
            for seed in given.seeds:
                tried.keep(name, seed, tried.run(task, seed, root))
        if others:  # the page is about the tiny models
            print(*(f"{mark}\n{text}" for mark, text in marks(tried).items()), sep="\n")
        else:
            write(self)


def said(kind: str, name: str) -> dict[str, Any]:
    """A file of stages/ or tasks/; one that is `like` another has its sections, with changes."""
    values = yaml.safe_load((HERE / kind / f"{name}.yaml").read_text())
    whole = said(kind, values.pop("like")) if "like" in values else {}
    for key, section in values.items():
        whole[key] = {**whole.get(key, {}), **section} if isinstance(section, dict) else section
    return whole


def with_phrases(entries: Iterable[Any]) -> list[Any]:
    """Metrics or rewards, with the phrases of `slots` where they name a recipe that has them."""
    from lastmile_trl.recipe import load

    def whole(entry: Any) -> Any:
        if not (isinstance(entry, dict) and isinstance(entry.get("slots", {}).get("phrases"), str)):
            return entry
        shipped = load(entry["slots"]["phrases"]).evaluation.metrics
        [phrases] = [metric["slots"]["phrases"] for metric in shipped if isinstance(metric, dict) and "slots" in metric]
        return {"slots": entry["slots"] | {"phrases": phrases}}

    return [whole(entry) for entry in entries]


def lastmile(*words: str) -> None:
    """Run a command of the package."""
    subprocess.run([sys.executable, "-m", "lastmile_trl", *words], check=True)


def evaluated(runs: Sequence[str], root: Path, output: Path, *words: str) -> dict[str, Any]:
    """What `lastmile evaluate` finds of runs on the rows that GRPO's recipe holds out."""
    lastmile("evaluate", *runs, "--data", str(root / "grpo.yaml"), "--output", str(output), *words)
    return json.loads((output / "evaluation.json").read_text())


def filled(word: str, runs: Mapping[str, str]) -> str:
    """The word with the runs of arms in place of their names."""
    for name, run in runs.items():
        word = word.replace(f"{{{name}}}", run)
    return word


def machine() -> str:
    """What it runs on."""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def without_texts(file: Path) -> dict[str, Any]:
    """What a stage found, without its examples."""
    found = json.loads(file.read_text())
    found.pop("examples", None)
    return found


def rows_of(result: Mapping[str, Any], task: Task) -> dict[str, dict[str, dict[str, list]]]:
    """By what the tables show, decoding and metric: the value of every row."""
    found: dict[str, dict[str, dict[str, list]]] = {}
    for example in result["examples"]:
        for output in example["outputs"]:
            label = output["run"] + (", post-processed" if output["postprocessed"] else "")
            columns = found.setdefault(label, {}).setdefault(output["decoding"], {name: [] for name in task.shown})
            for name, column in columns.items():
                value = output["metrics"].get(name)
                column.append(None if value is None else round(value, 3))
    return found


def example_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The first row, and what was written greedily."""
    first = result["examples"][0]
    raw = [output for output in first["outputs"] if output["decoding"] == "greedy" and not output["postprocessed"]]
    texts = {output["run"]: output["text"] for output in raw}
    return {"prompt": first["prompt"], "reference": first["references"][0], "texts": texts}


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if value is not None]
