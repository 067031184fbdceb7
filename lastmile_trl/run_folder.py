"""What a run folder holds, beside the model: its recipe, what it depends on, its history, its outputs."""

import importlib.util
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import preflight, rewards
from .errors import InputError
from .files import write_whole
from .recipe import Recipe, load

if TYPE_CHECKING:
    from .evaluation.decoding import Output

PACKAGES = ("lastmile-trl", "trl", "transformers", "torch", "peft", "accelerate", "datasets", "bitsandbytes", "vllm")


def history(run: Path) -> list[dict[str, Any]]:
    """The logged steps of a run, and the alarms between them; without a line that is just being written."""
    file = run / "history.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{file}, line {number} is damaged: delete that line.") from error
    return rows


def stored_recipe(run: Path) -> Recipe | None:
    """The recipe a run folder was made with; None for a model that is not a run of ours."""
    return load(run / "recipe.yaml") if (run / "recipe.yaml").exists() else None


def write_history(run: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the history."""
    write_whole(run / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def add_history(run: Path, row: dict[str, Any]) -> None:
    """Add a line to the history."""
    with (run / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def alarms(runs: Mapping[str, Path]) -> list[str]:
    """The signs of a gamed reward that were said while the runs trained."""
    return [
        f"Alarm of {name} at step {row['step']}: {row['alarm']}."
        for name, run in runs.items()
        for row in history(run)
        if "alarm" in row
    ]


def write_environment(recipe: Recipe, state: Any, **more: Any) -> None:
    """`environment.json`: what the run depends on beside its recipe; `trained` and `finished` say when, `pushed` where.

    Once trained, it stays what it was in training, whatever evaluates the run again.
    """
    environment = environment_of(recipe.run)
    if "trained" not in environment:
        environment = {
            "versions": {"python": platform.python_version(), **_versions()},
            "seed": recipe.seed,
            "commit": _commit(),
            "device": _device_name(state),
            "processes": state.num_processes,
            "distributed": state.distributed_type.value,
            "started": environment.get("started", now()),
            "started_from": starts_of(recipe),
            "rewards": sorted(reward.name for reward in rewards.build(recipe.rewards)),
        }
    for later in ("finished", "pushed"):
        environment.pop(later, None)
    _write_environment(recipe.run, {**more, **environment})


def has_arrived(run: Path, address: str) -> None:
    """Say in `environment.json` where on the Hub the run is, from which a later start knows that it is there."""
    _write_environment(run, {**environment_of(run), "pushed": address})


def training_begins(run: Path, step: int, steps: int) -> None:
    """Say in `environment.json` when training began, at which step, for how many and who does it, until it is done."""
    begins = {"began": now(), "from_step": step, "steps": steps, "machine": _machine(), "process": os.getpid()}
    _write_environment(run, {**environment_of(run), "training": begins})


def has_ended(training: Mapping[str, Any]) -> bool:
    """Whether the process that trains is known to be no more; on another machine, nobody can tell."""
    here = training["machine"] is not None and training["machine"] == _machine()
    return here and not Path("/proc", str(training["process"])).exists()


def _machine() -> str | None:
    """Where a process has its number: a host and, as containers count by themselves, a namespace."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()} {namespace.readlink()}" if namespace.exists() else None


def _write_environment(run: Path, environment: dict[str, Any]) -> None:
    write_whole(run / "environment.json", json.dumps(environment, indent=1))


def environment_of(run: Path) -> dict[str, Any]:
    """What `write_environment` wrote; nothing for what is no run."""
    file = run / "environment.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is damaged: delete the folder {run} to run the stage again.") from error


def now() -> str:
    """The time, as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def starts_of(recipe: Recipe) -> dict[str, str | None]:
    """When each run that the recipe builds on was trained: another time is another model, or other pairs."""
    trained = {need: environment_of(Path(need)).get("trained") for need in recipe.needs}
    return {need: when for need, when in trained.items() if when or need in recipe.starts_from}


def finished(run: Path) -> str | None:
    """When a run finished; None if it did not, or is no run."""
    return environment_of(run).get("finished")


def is_trained(recipe: Recipe) -> bool:
    """Whether the run folder holds the trained model of the recipe, so that at most its evaluation is missing."""
    environment = environment_of(recipe.run)
    return "trained" in environment and environment["started_from"] == starts_of(recipe)


def is_done(recipe: Recipe) -> bool:
    """Whether the run folder holds this very recipe, finished, from the same starts."""
    environment = environment_of(recipe.run)
    unchanged = not preflight.differences(recipe) and environment.get("started_from") == starts_of(recipe)
    return unchanged and "finished" in environment


def lacks_push(recipe: Recipe) -> bool:
    """Whether the recipe's run is finished but not on the Hub, though the recipe wants it there."""
    return recipe.hub.push and is_done(recipe) and "pushed" not in environment_of(recipe.run)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        if importlib.util.find_spec(package.replace("-", "_")):
            found[package] = version(package)
    return found


def _commit() -> str | None:
    """The commit of the folder the run was started in, if it is a git checkout."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return asked.stdout.strip() or None


def _device_name(state: Any) -> str:
    import torch

    return torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else state.device.type


def _outputs_file(run: Path, fingerprint: str, suffix: str = ".jsonl") -> Path:
    return run / "outputs" / f"{fingerprint}{suffix}"


def keep_outputs(run: Path, fingerprint: str, outputs: "list[Output]") -> None:
    """Keep a run's outputs, so that comparing runs does not decode again."""
    file = _outputs_file(run, fingerprint)
    file.parent.mkdir(exist_ok=True)
    write_whole(file, "".join(json.dumps(asdict(output)) + "\n" for output in outputs))
    _outputs_file(run, fingerprint, ".part").unlink(missing_ok=True)


def kept_outputs(run: Path, fingerprint: str) -> "list[Output] | None":
    """The outputs kept under this fingerprint; None if there are none."""
    from .evaluation.decoding import Output

    file = _outputs_file(run, fingerprint)
    if not file.exists():
        return None
    with _readable(file):
        return [Output(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Name the file of outputs that is damaged."""
    try:
        yield
    except (ValueError, TypeError) as error:  # no JSON, no text, or no outputs
        raise InputError(f"{file} is damaged: delete it, and what it held is decoded again.") from error


def keep_some_outputs(run: Path, fingerprint: str, outputs: "Mapping[int, Output]") -> None:
    """Keep the outputs of some rows, as a line, until `keep_outputs` has those of all."""
    file = _outputs_file(run, fingerprint, ".part")
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as part:
        part.write(json.dumps([[row, asdict(output)] for row, output in outputs.items()]) + "\n")


def some_kept_outputs(run: Path, fingerprint: str) -> "dict[int, Output]":
    """What a decoding that was stopped has kept, by row."""
    from .evaluation.decoding import Output

    file = _outputs_file(run, fingerprint, ".part")
    if not file.exists():
        return {}
    with _readable(file):
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        os.truncate(file, len(whole))  # a torn last line goes; JSON is ASCII
        return {row: Output(**output) for line in whole.splitlines() for row, output in json.loads(line)}
