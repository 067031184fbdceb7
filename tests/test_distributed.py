"""Sharded training in two CPU processes, evaluation included: slow, and only where DeepSpeed is installed."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lastmile_trl.recipe import shipped

from .conftest import make_rows, write_jsonl


@pytest.mark.slow
def test_zero_2_and_3_train_the_same_model(tmp_path, tiny_model_folder):
    pytest.importorskip("deepspeed", reason="pip install 'lastmile-trl[deepspeed]' to run it")
    write_jsonl(tmp_path / "rows.jsonl", make_rows(32))
    short = "def short(completions, **columns):\n    return [-len(text) / 40 for text in completions]\n"
    (tmp_path / "shortness.py").write_text(short)
    recipe = {
        "method": "grpo",
        "model": {"model_name_or_path": str(tiny_model_folder)},
        "data": {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target", "held_out": 8},
        "rewards": ["shortness:short"],
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8,
                     "learning_rate": 1e-3, "beta": 0.05, "logging_steps": 1, "save_strategy": "no"},
        "evaluation": {"rows": 7, "batch_size": 2, "max_new_tokens": 8, "every": 1},
    }  # fmt: skip
    models = []
    for name in ("zero2", "zero3"):
        config = yaml.safe_load((shipped("accelerate_configs") / f"{name}.yaml").read_text())
        (tmp_path / f"{name}_cpu.yaml").write_text(yaml.safe_dump({**config, "mixed_precision": "no"}))
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        words = ["run", f"{name}.yaml", "--accelerate", f"{name}_cpu.yaml", "--num_processes", "2"]
        environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
        subprocess.run([sys.executable, "-m", "lastmile_trl", *words], cwd=tmp_path, env=environment, check=True)
        assert json.loads((tmp_path / "runs" / name / "environment.json").read_text())["distributed"] == "DEEPSPEED"
        models.append(load_file(tmp_path / "runs" / name / "model.safetensors"))
    start = load_file(tiny_model_folder / "model.safetensors")
    for key, value in models[0].items():
        torch.testing.assert_close(value, models[1][key], atol=1e-4, rtol=1e-3)
    assert any((models[0][key] - start[key]).abs().max() > 1e-4 for key in start)
