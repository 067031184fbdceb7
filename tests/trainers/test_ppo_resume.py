"""Checkpoints: a resumed run is the uninterrupted one, and what is saved is a plain policy."""

import logging
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from ppo_fixture import differing, logged, weights_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

NUMBERS = (
    "reward",
    "loss",
    "value/loss",
    "value/explained_variance",
    "approx_kl",
    "entropy",
    "kl",
    "beta",
    "grad_norm",
)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("critic", ["shared", "copy"])
def test_a_resumed_run_is_the_uninterrupted_one(make_ppo, lora, adapter, critic, tmp_path):
    settings = {
        "critic": critic, "peft": lora if adapter else None, "beta": 0.05, "kl_target": 0.1, "kl_horizon": 100,
        "scale_scores": True, "num_iterations": 2, "per_device_train_batch_size": 4, "steps_per_generation": 2,
        "target_kl": 0.02, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 4, "max_steps": 12,
    }  # fmt: skip
    whole = make_ppo(**settings)
    whole.train()
    resumed = make_ppo(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))

    for one, other in ((whole.model, resumed.model), (whole.critic, resumed.critic)):
        for name, value in weights_of(other).items():
            assert torch.equal(value, one.get_parameter(name)), name
    for name in NUMBERS:
        assert logged(whole, name) and logged(whole, name) == logged(resumed, name), name
    assert whole.beta == resumed.beta != 0.05
    assert torch.equal(whole._counted_scores, resumed._counted_scores) and whole._counted_scores[0] == 24
    assert 0 < sum(logged(whole, "updates_left_out")) < 12


def test_a_run_resumed_in_its_second_epoch_sees_the_prompts_it_would_have_seen(make_ppo, tmp_path):
    """Four roll-outs of two steps are an epoch: one run goes on from its end, and one from the middle of the next."""
    settings = {"num_iterations": 2, "save_strategy": "steps", "save_steps": 4, "max_steps": 16}
    whole = make_ppo(**settings)
    whole.train()
    for step in (8, 12):
        resumed = make_ppo(**settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert logged(whole, "reward") == logged(resumed, "reward")
        assert differing(weights_of(whole.model), resumed.model) == set()


def test_resuming_within_a_rollout_is_said_to_be_inexact(make_ppo, tmp_path):
    make_ppo(num_iterations=4, save_strategy="steps", save_steps=4, max_steps=6).train()
    with pytest.warns(UserWarning, match="checkpoint-6 was saved within a roll-out of 4 optimiser steps"):
        make_ppo(num_iterations=4, max_steps=7).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make_ppo(num_iterations=4, max_steps=5).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_saving_within_a_rollout_is_moved_to_its_end(make_ppo, tmp_path):
    with pytest.warns(UserWarning, match="save_steps=3 falls within a roll-out of 4 optimiser steps: 4 is used"):
        trainer = make_ppo(num_iterations=4, save_strategy="steps", save_steps=3, max_steps=8)
    trainer.train()
    assert sorted(folder.name for folder in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("critic", ["shared", "copy"])
def test_the_saved_model_is_a_plain_policy_beside_its_critic(make_ppo, lora, adapter, critic, tmp_path, caplog):
    trainer = make_ppo(critic=critic, peft=lora if adapter else None, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    weights = load_file(tmp_path / "saved" / ("adapter_model.safetensors" if adapter else "model.safetensors"))
    assert not [name for name in weights if "critic" in name or "head.0" in name]
    assert set(load_file(tmp_path / "saved" / "critic.safetensors")) == set(trainer.critic.trained())

    caplog.clear()
    caplog.set_level(logging.WARNING)
    logging.getLogger("transformers").propagate = True
    loader = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = loader.from_pretrained(tmp_path / "saved")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    ids = torch.arange(5, 15).unsqueeze(0)
    trainer.model.eval()
    torch.testing.assert_close(loaded.eval()(ids).logits, trainer.model(ids).logits)


def test_a_checkpoint_without_a_critic_cannot_be_resumed(make_ppo, tmp_path):
    trainer = make_ppo(save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    (tmp_path / "run" / "checkpoint-1" / "critic.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="critic.safetensors"):
        make_ppo(max_steps=2).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
