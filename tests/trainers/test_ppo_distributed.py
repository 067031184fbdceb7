"""PPO in two CPU processes: one critic in both, the numbers of one process, and what is refused."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import make_rows

HERE = Path(__file__).parent


def launch(folder: Path, model: Path, processes: int = 2, environment=None, adapter=False, script=True, fails=False,
           **settings):  # fmt: skip
    """Runs PPO in so many processes and gives their folder, or the screen of a run that has to fail."""
    folder.mkdir(exist_ok=True)
    resume = settings.pop("resume", None)
    base = {
        "output_dir": str(folder / "run"), "max_steps": 3, "max_completion_length": 6, "learning_rate": 1e-2,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "bf16": False, "disable_tqdm": True,
        "gradient_checkpointing": False, "num_iterations": 3, "beta": 0.0,
        "per_device_train_batch_size": 8 // processes,
    }  # fmt: skip
    given = {
        "model": str(model), "adapter": adapter, "scripted": script, "out": str(folder), "settings": base | settings,
        "prompts": [row["source"] + " =>" for row in make_rows(32)], "resume": resume,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(given))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *words, str(HERE / "ppo_processes.py"), str(folder / "settings.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])} | (environment or {}),
        capture_output=True,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else folder


def found(folder: Path, process: int = 0):
    return json.loads((folder / f"found{process}.json").read_text())


def state(folder: Path, name: str):
    return torch.load(folder / f"{name}.pt", weights_only=True)


def close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance)


SGD = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "critic_learning_rate": 1e-3}


@pytest.mark.parametrize("critic", [{"critic": "shared"}, pytest.param({"critic": "copy"}, marks=pytest.mark.slow),
                                    pytest.param({"critic_detach": False}, marks=pytest.mark.slow)])  # fmt: skip
def test_two_processes_are_one(tmp_path, tiny_model_folder, critic):
    """The same eight completions of unequal lengths in one process or shared out between two."""
    alone = launch(tmp_path / "one", tiny_model_folder, processes=1, **SGD, **critic)
    shared = launch(tmp_path / "two", tiny_model_folder, **SGD, **critic)
    assert found(shared)["distributed"] == "DistributedType.MULTI_CPU"
    for name in ("critic", "policy"):
        assert all(
            torch.equal(value, state(shared, f"{name}1")[key]) for key, value in state(shared, f"{name}0").items()
        )
        close(state(alone, f"{name}0"), state(shared, f"{name}0"), atol=2e-5, rtol=1e-3)
    start = load_file(tiny_model_folder / "model.safetensors")
    assert max((value - start[key]).abs().max() for key, value in state(alone, "policy0").items()) > 1e-3
    for name, numbers in found(alone)["numbers"].items():
        assert numbers and found(shared)["numbers"][name] == pytest.approx(numbers, abs=2e-4), name


@pytest.mark.slow
def test_processes_that_sample_apart_keep_one_critic(tmp_path, tiny_model_folder):
    folder = launch(tmp_path / "two", tiny_model_folder, script=False, critic="copy", adapter=True, target_kl=0.05,
                    beta=0.05, scale_scores=True, per_device_train_batch_size=1, max_steps=9)  # fmt: skip
    for name in ("critic", "policy"):
        first, second = state(folder, f"{name}0"), state(folder, f"{name}1")
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert (state(folder, "critic0")["head.2.weight"] != 0).all()
    assert found(folder)["numbers"] == found(folder, 1)["numbers"]


def zero(stage: int) -> dict[str, str]:
    return {
        "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage), "DS_ACCELERATOR": "cpu",
        "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    }  # fmt: skip


FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "ACCELERATE_MIXED_PRECISION": "no",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_what_one_process_does(tmp_path, tiny_model_folder, stage):
    pytest.importorskip("deepspeed", reason="pip install 'lastmile-trl[deepspeed]' to run it")
    settings = SGD | {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1e6}
    alone = launch(tmp_path / "one", tiny_model_folder, processes=1, **settings)
    shared = launch(tmp_path / "two", tiny_model_folder, environment=zero(stage), **settings)
    assert found(shared)["distributed"] == "DistributedType.DEEPSPEED"
    assert all(torch.equal(value, state(shared, "critic1")[key]) for key, value in state(shared, "critic0").items())
    close(state(alone, "critic0"), state(shared, "critic0"), atol=1e-4, rtol=1e-2)
    close(*(load_file(folder / "saved" / "model.safetensors") for folder in (alone, shared)), atol=5e-4, rtol=1e-2)
    for name in ("reward", "value/loss", "approx_kl", "ratio"):
        assert found(shared)["numbers"][name] == pytest.approx(found(alone)["numbers"][name], abs=1e-3), name


@pytest.mark.slow
def test_fsdp2_trains_what_one_process_does(tmp_path, tiny_model_folder):
    settings = SGD | {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1e6}
    alone = launch(tmp_path / "one", tiny_model_folder, processes=1, **settings)
    shared = launch(tmp_path / "two", tiny_model_folder, environment=FSDP, **settings)
    assert found(shared)["distributed"] == "DistributedType.FSDP"
    assert all(torch.equal(value, state(shared, "critic1")[key]) for key, value in state(shared, "critic0").items())
    close(state(alone, "critic0"), state(shared, "critic0"), atol=1e-4, rtol=1e-2)
    close(*(load_file(folder / "saved" / "model.safetensors") for folder in (alone, shared)), atol=5e-4, rtol=1e-2)


@pytest.mark.slow
def test_fsdp2_leaves_updates_out(tmp_path, tiny_model_folder):
    folder = launch(tmp_path / "two", tiny_model_folder, environment=FSDP, value_warmup_steps=3)
    close(load_file(folder / "saved" / "model.safetensors"), load_file(tiny_model_folder / "model.safetensors"),
          atol=0, rtol=0)  # fmt: skip
    assert (state(folder, "critic0")["head.2.weight"] != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, zero(2)], ids=["ddp", "zero2"])
def test_two_processes_resume_as_if_never_stopped(tmp_path, tiny_model_folder, environment):
    if environment:
        pytest.importorskip("deepspeed", reason="pip install 'lastmile-trl[deepspeed]' to run it")
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "script": False, "environment": environment}
    whole = launch(tmp_path / "run", tiny_model_folder, **settings)
    critic, numbers = state(whole, "critic0"), found(whole)["numbers"]
    weights = load_file(whole / "saved" / "model.safetensors")
    again = launch(tmp_path / "run", tiny_model_folder, **settings, resume=str(whole / "run" / "checkpoint-3"))
    assert found(again)["numbers"] == numbers
    close(state(again, "critic0"), critic, atol=0, rtol=0)
    close(load_file(again / "saved" / "model.safetensors"), weights, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("sharded", "settings", "words"),
    [
        ("both", {"critic": "copy"}, "PPO: critic='copy' would lie whole on every process.*use critic='shared'"),
        ("both", {"critic_detach": False}, "PPO: critic_detach=False does not work with FSDP and DeepSpeed"),
        ("deepspeed", {"target_kl": 0.1}, "PPO: target_kl and value_warmup_steps leave steps out"),
        ("deepspeed", {"value_warmup_steps": 1}, "PPO: target_kl and value_warmup_steps leave steps out"),
    ],
)
def test_what_sharding_does_not_stand_is_refused(make_ppo, sharded, settings, words):
    trainer = make_ppo(**settings)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match=words):
        trainer._refuse_what_does_not_work()
    trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled = False, True
    with pytest.raises(ValueError, match=words) if sharded == "both" else nullcontext():
        trainer._refuse_what_does_not_work()


@pytest.mark.slow
def test_a_refusal_reaches_the_screen(tmp_path, tiny_model_folder):
    pytest.importorskip("deepspeed", reason="pip install 'lastmile-trl[deepspeed]' to run it")
    screen = launch(tmp_path / "two", tiny_model_folder, environment=zero(2), fails=True, critic="copy")
    assert "PPO: critic='copy' would lie whole on every process" in screen
