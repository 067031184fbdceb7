"""Keys of the environment stay there: a stage with all that may speak to others writes and prints none of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from .conftest import make_rows, write_jsonl
from .fake_endpoint import FakeEndpoint
from .fakehub import FakeHub, User

KEYS = {
    "HF_TOKEN": "hf_" + "Alice0" * 6,
    "WANDB_API_KEY": "wandb-key-" + "7" * 30,
    "OPENAI_API_KEY": "sk-guide-" + "q" * 30,
}


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_no_key_is_written_or_printed(tiny_model_folder, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    write_jsonl(work / "rows.jsonl", make_rows(24))
    with FakeEndpoint() as endpoint, FakeHub(tmp_path / "hub", {KEYS["HF_TOKEN"]: User("alice")}) as server:
        recipe = {
            "method": "grpo",
            "model": {"model_name_or_path": str(tiny_model_folder), "use_peft": True},
            "data": {"path": "rows.jsonl", "prompt": "{source}", "references": "target", "held_out": 4},
            "rewards": ["rouge"],
            "guidance": {
                "mode": "ppo++", "probability": 1.0, "anneal": None,
                "guide": {"endpoint": endpoint.url, "model": "guide"},
            },
            "training": {
                "output_dir": "run", "max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4,
                "max_completion_length": 8, "save_steps": 1, "logging_steps": 1,
                "report_to": ["tensorboard", "trackio"],
            },
            "evaluation": {"rows": 4, "every": 1, "max_new_tokens": 8},
            "hub": {"push": True, "repo": "alice/run"},
        }  # fmt: skip
        (work / "recipe.yaml").write_text(json.dumps(recipe))
        environment = {**os.environ, **server.environment, **KEYS, "TRACKIO_DIR": str(work / "trackio")}
        environment |= {"TMPDIR": str(work), "LASTMILE_DEBUG": "1"}
        command = [sys.executable, "-m", "lastmile_trl", "run", "recipe.yaml", "--debug"]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Pushed to {server.url}/alice/run" in done.stderr.decode()
    assert endpoint.received[0].headers["authorization"] == f"Bearer {KEYS['OPENAI_API_KEY']}"  # so it was in use
    kept = everything_in(work)
    for name in ("training_args.bin", "trainer_state.json", "environment.json", "history.jsonl", "recipe.yaml",
                 "README.md", "report.html", "checkpoint-1", "tfevents", "trackio"):  # fmt: skip
        assert any(name in file for file in kept), name
    pushed = server.repos["alice/run"].files()
    assert "recipe.yaml" in pushed
    kept |= {"standard output": done.stdout, "standard error": done.stderr, **pushed, **server.blobs}
    for name, key in KEYS.items():
        assert not [file for file, content in kept.items() if key.encode() in content], name
    for name, content in pushed.items():
        assert str(tmp_path).encode() not in content and endpoint.url.encode() not in content, name
