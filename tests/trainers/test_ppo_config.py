"""PPO's settings: what is refused, in which words, and what is rounded."""

import warnings

import pytest

from lastmile_trl.trainers.ppo_config import PPOConfig


def config(tmp_path, **settings):
    base = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
    return PPOConfig(**(base | settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_type": "grpo"}, "PPO takes loss_type='dapo' only, not 'grpo': its losses are sums"),
        ({"importance_sampling_level": "sequence"}, "PPO takes importance_sampling_level='token' only"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "its critic needs one score"),
        ({"scale_rewards": "group"}, "PPO takes scale_rewards='none' only, not 'group': whiten_advantages and"),
        ({"off_policy_mask_threshold": 0.5}, "the clipped ratio bounds each update"),
        ({"critic_learning_rate": -1.0}, "critic_learning_rate must be at least 0, not -1.0"),
        ({"value_warmup_steps": -1}, "value_warmup_steps must be at least 0, not -1"),
        ({"missing_eos_penalty": -0.5}, "missing_eos_penalty must be at least 0, not -0.5"),
        ({"target_kl": -0.5}, "target_kl must be at least 0"),
        ({"vf_coef": -0.5}, "vf_coef must be at least 0"),
        ({"kl_target": 0.0}, "kl_target must be above 0, not 0.0"),
        ({"kl_horizon": 0}, "kl_horizon must be above 0, not 0"),
        ({"kl_target": 6.0, "kl_horizon": 7, "per_device_train_batch_size": 8},
         r"kl_horizon \(7\) must be at least the completions of a roll-out \(8\)"),
        ({"cliprange_value": 0.0}, "cliprange_value must be above 0, not 0.0"),
        ({"gamma": 1.5}, "gamma must be between 0 and 1, not 1.5"),
        ({"lam": -0.1}, "lam must be between 0 and 1, not -0.1"),
        ({"lam_critic": 2}, "lam_critic must be between 0 and 1, not 2"),
        ({"kl_target": 6.0, "beta": 0.0}, "kl_target adapts beta by a factor, so beta must not be 0"),
        ({"per_device_train_batch_size": 1}, "one needs at least 2 completions: raise a batch size"),
        ({"save_strategy": "steps", "save_steps": 0.5}, "save_steps must be a whole number of steps, not 0.5"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2},
         r"steps_per_generation \(3\) must be a multiple of gradient_accumulation_steps \(2\)"),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4}, "must be a multiple"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **settings)


def test_a_group_may_be_one_in_training_and_in_evaluation(tmp_path):
    settings = config(tmp_path, per_device_train_batch_size=6, eval_strategy="steps", per_device_eval_batch_size=5)
    assert (settings.num_generations, settings.num_generations_eval) == (1, 1)
    assert settings.generation_batch_size == 6
    several = config(tmp_path, per_device_train_batch_size=6, num_generations=3, num_generations_eval=2)
    assert (several.num_generations, several.num_generations_eval) == (3, 2)
    with pytest.raises(ValueError, match="divisible by num_generations"):
        config(tmp_path, per_device_train_batch_size=6, num_generations=4)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"gradient_accumulation_steps": 4}, 4),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 6}, 12),
        ({"generation_batch_size": 32, "num_iterations": 1}, 4),
    ],
)
def test_optimizer_steps_per_rollout(tmp_path, settings, steps):
    assert config(tmp_path, per_device_train_batch_size=8, **settings).optimizer_steps_per_rollout == steps


def test_saving_is_moved_to_the_end_of_a_rollout(tmp_path):
    with pytest.warns(UserWarning, match="save_steps=10 falls within a roll-out of 4 optimiser steps: 12 is used"):
        assert config(tmp_path, save_strategy="steps", save_steps=10).save_steps == 12
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert config(tmp_path, save_strategy="steps", save_steps=12).save_steps == 12
        assert config(tmp_path, save_strategy="no", save_steps=10).save_steps == 10
