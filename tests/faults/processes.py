"""Real runs in real processes, as a person starts them, and what they leave behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from safetensors.torch import load_file

from lastmile_trl import run_folder

TIMES = ("time", "per_second")  # in the names of what is logged and depends on the clock


def write_recipe(folder: Path, name: str, method: str, base: Path, *, training: dict, **sections) -> None:
    """A recipe of that name on `rows.jsonl`."""
    values = {
        "method": method,
        "model": {"model_name_or_path": str(base), **sections.pop("model", {})},
        "data": {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target", "held_out": 8},
        "rewards": ["tests.faults.slow:slowly", "rouge"],
        "training": {
            "output_dir": f"runs/{name}", "max_steps": 40, "per_device_train_batch_size": 8, "num_generations": 4,
            "max_completion_length": 8, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2,
            "save_total_limit": 2, "gradient_checkpointing": False, "learning_rate": 1e-2, **training,
        },
        "evaluation": {"rows": 6, "every": 4, "max_new_tokens": 8},
        **sections,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))


def start(folder: Path, name: str, *words: str, seconds: float = 0.0, **environment: str) -> subprocess.Popen:
    """`lastmile run` on the recipe, whose reward takes that long; what it says is added to its log."""
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "lastmile_trl", "run", f"{name}.yaml", *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "SECONDS_PER_REWARD": str(seconds),
            **environment,
        },
        stdout=subprocess.DEVNULL,
        stderr=(folder / f"{name}.log").open("a"),
    )


def said(folder: Path, name: str) -> str:
    """The end of a run's log."""
    return (folder / f"{name}.log").read_text()[-5000:]


def wait_for(process: subprocess.Popen, happened: Callable[[], bool], seconds: float = 120) -> bool:
    """Whether it happened while the process was there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if happened():
            return True
        time.sleep(0.001)
    return False


def changed(file: Path) -> int:
    """When a file was written last."""
    return file.stat().st_mtime_ns if file.exists() else 0


def logged(run: Path) -> list[dict]:
    """Every logged step without what depends on the clock."""
    rows = [row for row in run_folder.history(run) if "loss" in row]
    return [{key: value for key, value in row.items() if not any(word in key for word in TIMES)} for row in rows]


def weights(run: Path) -> dict:
    """Of the adapter, or of the model where there is none."""
    (file,) = [run / name for name in ("adapter_model.safetensors", "model.safetensors") if (run / name).exists()]
    return load_file(file)
