"""What a run folder tells others: its recipe, and where it comes from, without secrets or paths of this machine."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .errors import InputError

SECRETS = {"endpoint", "token", "hub_token", "push_to_hub_token", "use_auth_token", "api_key", "password", "secret"}
DATA_FILES = (".json", ".jsonl", ".csv", ".parquet")


def recipe(run: Path) -> dict[str, Any]:
    """The recipe, fit to be read by others: no secrets, no absolute paths."""
    from omegaconf import OmegaConf

    file = run / "recipe.yaml"
    if not file.is_file():
        raise InputError(f"{run} is not a run folder: it has no recipe.yaml; name a folder that `lastmile run` made.")
    return portable(OmegaConf.to_container(OmegaConf.load(file), resolve=False))


def read_json(file: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def evaluation(run: Path) -> dict[str, Any]:
    """The evaluation without its examples, which are the user's data."""
    return {key: value for key, value in read_json(run / "evaluation.json").items() if key != "examples"}


def to_yaml(value: Any) -> str:
    """The value as YAML; no text for nothing."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(value)) if value else ""


def portable(value: Any) -> Any:
    """The value without secrets, and with absolute paths cut to their last part; prompts stay as they are.

    >>> portable({"path": "/home/me/notes.jsonl", "hub_token": "x", "prompt": "/think {text}"})
    {'path': 'notes.jsonl', 'prompt': '/think {text}'}
    """
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key not in SECRETS}
        return {key: inner if key in ("prompt", "messages") else portable(inner) for key, inner in kept.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    if not isinstance(value, str):
        return value
    path = value.removeprefix("file://")
    if path.startswith(("/", "~")):
        return PurePosixPath(path).name
    return PureWindowsPath(path).name if PureWindowsPath(path).is_absolute() else value


def starts(run: Path) -> list[str]:
    """The model the run started from, the model that one started from, and so on to the first that says no more."""
    found: list[str] = []
    here: Path | None = run
    while here and (before := start(here)) and before not in found:
        found.append(before)
        here = folder(before, here)
    return found


def start(run: Path) -> str | None:
    """The model that a run started from, or the base of an adapter."""
    base = read_json(run / "adapter_config.json").get("base_model_name_or_path")
    return recipe_value(run, "model.model_name_or_path") or base


def recipe_value(run: Path, key: str) -> Any:
    """One value of the recipe as it is; None where there is none."""
    from omegaconf import OmegaConf

    file = run / "recipe.yaml"
    return OmegaConf.select(OmegaConf.load(file), key) if file.is_file() else None


def _roots(run: Path) -> list[Path]:
    """Where relative paths of a run may start: here, or where it was trained, which its output_dir tells."""
    output = Path(recipe_value(run, "training.output_dir") or "/")
    trained = [] if output.is_absolute() else [root for root in run.resolve().parents if (root / output).is_dir()]
    return [Path(), *trained]


def folder(name: str, run: Path) -> Path | None:
    """The folder of a model or run, None where the name is no folder on this machine."""
    places = [root / Path(name).expanduser() for root in _roots(run)]
    marks = ("config.json", "adapter_config.json", "recipe.yaml")
    return next((place for place in places if any((place / mark).is_file() for mark in marks)), None)


def hub_id(name: str, run: Path) -> str | None:
    """The name, if it can be the id of a Hub repository: `runs/sft` is not where there is a folder `runs`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if any((root / Path(name).parts[0]).exists() for root in _roots(run)) else name


def stages(run: Path) -> list[Path]:
    """The run, and before it the stages of `method: pairs` that made its rows, the first one first."""
    found = [run]
    while (made := folder(recipe_value(found[0], "data.path"), found[0])) and made not in found:
        if recipe_value(made, "method") != "pairs":
            break
        found.insert(0, made)
    return found


def data(run: Path) -> dict[str, Any]:
    """The data section of a run, with the `id` of its data set on the Hub, if it is there."""
    path = recipe_value(run, "data.path")
    found = {"id": None if path.endswith(DATA_FILES) else hub_id(path, run)}
    return dict.fromkeys(("name", "split", "eval_split", "references", "split_at")) | recipe(run)["data"] | found
