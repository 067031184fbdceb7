"""A real run in real processes, killed at random moments and in the middle of saves: the end is the same."""

import json
import os
import random
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lastmile_trl import checkpoints, run_folder

from ..conftest import make_rows, write_jsonl

STEPS = 40
STAGES = {  # what is trained on for several steps, LoRA, four bits: all that a checkpoint has to hold
    "grpo": {"model": {"use_peft": True, "lora_r": 4}, "training": {"steps_per_generation": 2, "num_iterations": 2}},
    "rloo": {"training": {"logging_steps": 3}},
    "ppo": {"training": {"num_iterations": 2, "beta": 0.05}},
}
KILLS = {"grpo": 7, "rloo": 6, "ppo": 7}
TIMES = ("time", "per_second")  # in the names of what is logged and depends on the clock


def write_recipe(folder, method, model, name):
    stage = STAGES[method]
    values = {
        "method": method,
        "model": {"model_name_or_path": str(model), **stage.get("model", {})},
        "data": {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target", "held_out": 8},
        "rewards": ["tests.faults.slow:slowly", "rouge"],
        "training": {
            "output_dir": f"runs/{name}", "max_steps": STEPS, "per_device_train_batch_size": 8, "num_generations": 4,
            "max_completion_length": 8, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2,
            "save_total_limit": 2, "gradient_checkpointing": False, "learning_rate": 1e-2, **stage["training"],
        },
        "evaluation": {"rows": 6, "every": 4, "max_new_tokens": 8},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))


def start(folder, name, seconds=0.0):
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "lastmile_trl", "run", f"{name}.yaml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "SECONDS_PER_REWARD": str(seconds), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / f"{name}.log").open("a"),
    )


def kill(process):
    """As a power cut: all at once, and none is asked."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family[1:])
    process.wait()


def wait_for(process, happened, seconds=120):
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if happened():
            return True
        time.sleep(0.001)
    return False


def changed(file):
    return file.stat().st_mtime_ns if file.exists() else 0


def logged(run):
    rows = [row for row in run_folder.history(run) if "loss" in row]
    return [{key: value for key, value in row.items() if not any(word in key for word in TIMES)} for row in rows]


def weights(run):
    (file,) = [run / name for name in ("adapter_model.safetensors", "model.safetensors") if (run / name).exists()]
    return load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES)
def test_a_killed_run_ends_as_one_that_was_not(method, tmp_path, tiny_model_folder):
    write_jsonl(tmp_path / "rows.jsonl", make_rows(32))
    for name in ("whole", "killed"):
        write_recipe(tmp_path, method, tiny_model_folder, name)
    assert start(tmp_path, "whole").wait() == 0, (tmp_path / "whole.log").read_text()[-3000:]
    chance, run, reached, in_saves = random.Random(method), tmp_path / "runs" / "killed", 0, 0
    for number in range(KILLS[method]):
        process = start(tmp_path, "killed", seconds=0.15)
        if number % 2:
            assert wait_for(process, (run / checkpoints.WRITING).exists), "it never saved"
            time.sleep(chance.uniform(0, 0.03))
        else:
            before = changed(run / "history.jsonl")
            assert wait_for(process, lambda before=before: changed(run / "history.jsonl") > before), "it never logged"
            time.sleep(chance.uniform(0, 1.5))
        kill(process)
        in_saves += (run / checkpoints.WRITING).exists()
        whole = [path for path in run.glob("checkpoint-*") if not checkpoints.broken(path)]
        newest = max((int(path.name.split("-")[1]) for path in whole), default=0)
        assert newest >= reached, "what was saved before is gone"
        reached = newest
    assert 0 < reached < STEPS and in_saves, (reached, in_saves)
    assert start(tmp_path, "killed").wait() == 0, (tmp_path / "killed.log").read_text()[-3000:]
    whole = tmp_path / "runs" / "whole"
    assert logged(run) == logged(whole) and len(logged(whole)) >= STEPS // 3
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    ours, theirs = ((path / "evaluation.json").read_text() for path in (run, whole))
    assert json.loads(ours.replace("killed", "whole")) == json.loads(theirs)
