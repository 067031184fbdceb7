"""PPO whose critic is switched off is GRPO, which here serves as the specification of the policy's side."""

import pytest
import torch
from ppo_fixture import Gradients, logged, scripted
from trl import GRPOConfig, GRPOTrainer

SAME = {"num_generations": 2, "beta": 0.0, "loss_type": "dapo", "max_grad_norm": 0.0, "optim": "sgd",
        "learning_rate": 0.05}  # fmt: skip
OFF = {"lam": 1.0, "critic_learning_rate": 0.0, "whiten_advantages": False}


def centred(prompts, place, **columns):
    """A reward whose mean within each group of two is 0 already."""
    return [(1 - 2 * place[row]) * (0.5 + len(prompt) % 7) for row, prompt in enumerate(prompts)]


def both(make_ppo, mask=False, **settings):
    runs = []
    for method in (
        {},
        {"cls": GRPOTrainer, "config": GRPOConfig, "scale_rewards": "none", "num_iterations": 1},
    ):
        own = OFF if not method else {}
        trainer = make_ppo(centred, rollout=scripted(mask), **(SAME | own | method | settings))
        gradients = Gradients(trainer)
        torch.manual_seed(0)  # of the shuffle into minibatches
        trainer.train()
        runs.append((trainer, gradients.policy))
    return runs


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (4, 2)])
def test_one_step_has_the_gradient_of_grpo(make_ppo, size, accumulation, mask):
    (_, ppo), (_, grpo) = both(
        make_ppo, mask, max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
    )
    assert max(gradient.abs().max() for gradient in grpo[0].values()) > 0.01
    for name, gradient in grpo[0].items():
        torch.testing.assert_close(ppo[0][name], gradient, atol=1e-6, rtol=1e-4)


def test_minibatches_and_epochs_clip_as_in_grpo(make_ppo):
    (ppo, _), (grpo, _) = both(
        make_ppo, max_steps=8, per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2
    )
    for name in ("clip_ratio/high_mean", "clip_ratio/low_mean", "entropy", "loss", "reward", "completions/mean_length"):
        assert logged(ppo, name) == pytest.approx(logged(grpo, name), abs=1e-4)
    assert max(logged(grpo, "clip_ratio/region_mean")) > 0.05
    weights = dict(grpo.model.named_parameters())
    for name, value in ppo.model.named_parameters():
        torch.testing.assert_close(value, weights[name], atol=1e-4, rtol=1e-3)
