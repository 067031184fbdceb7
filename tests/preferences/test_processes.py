"""The stages on pairs in two CPU processes: slow."""

import json
import subprocess
import sys

import pytest
import yaml

from tests.conftest import sentence, write_jsonl

pytestmark = pytest.mark.slow

LORA = {"use_peft": True, "lora_r": 8, "lora_target_modules": ["all-linear"]}
TRAINING = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
}


def test_pairs_a_reward_model_rloo_on_its_base_and_dpo(tmp_path, tiny_model_folder):
    write_jsonl(
        tmp_path / "rows.jsonl",
        [{"source": sentence(n, 12), "target": sentence(n, 5), "bad": "a mat a mat"} for n in range(40)],
    )
    model = {"model_name_or_path": str(tiny_model_folder)}
    data = {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target", "held_out": 8}
    columns = {"chosen": "target", "rejected": "bad"}
    made = {"path": "runs/task/pairs", "prompt": "{source} =>", "references": "target", "eval_split": "validation"}
    ready = {"chosen": "chosen", "rejected": "rejected"}
    evaluation = {"rows": 7, "max_new_tokens": 8}
    looks = {**evaluation, "every": 3}
    group = {**TRAINING, "num_generations": 4, "max_completion_length": 8}
    stages = {
        "pairs": {"method": "pairs", "model": model, "data": data, "preferences": columns},
        "reward": {"method": "reward", "data": made, "preferences": {**ready, "require": {"accuracy": 0.5}}},
        "dpo": {"method": "dpo", "data": made, "preferences": ready},
        "rloo": {
            "method": "rloo",
            "data": data,
            "rewards": [{"model": {"model": "runs/task/reward", "share_base": True, "scale_by_deviation": True}}],
        },
    }
    (tmp_path / "recipes/task").mkdir(parents=True)
    for name, stage in stages.items():
        if name != "pairs":
            stage |= {"model": {**model, **LORA}, "training": group if name == "rloo" else TRAINING}
        stage["evaluation"] = evaluation if name == "pairs" else looks
        (tmp_path / f"recipes/task/{name}.yaml").write_text(yaml.safe_dump(stage))

    words = ["run", "recipes/task", "--accelerate", "cpu", "--num_processes", "2"]
    subprocess.run([sys.executable, "-m", "lastmile_trl", *words], cwd=tmp_path, check=True)
    for name in stages:
        environment = json.loads((tmp_path / f"runs/task/{name}/environment.json").read_text())
        assert environment["processes"] == (1 if name == "pairs" else 2)
        assert environment["finished"]
    history = [json.loads(line) for line in (tmp_path / "runs/task/rloo/history.jsonl").read_text().splitlines()]
    assert len([row for row in history if "rewards/model/mean" in row]) == 6
    assert not (tmp_path / "runs/task/rloo/reward").exists()
