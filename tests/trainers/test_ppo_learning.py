"""A toy task whose worth depends on the prompt and on every token: both the policy and the critic have to learn."""

import pytest
from ppo_fixture import logged, low_share


def prompt_and_tokens(prompts, completion_ids, **columns):
    """Half a point for prompts about cats, whatever is written, and the share of low tokens."""
    shares = low_share(completion_ids)
    return [share + 0.5 * (" cat" in prompt) for prompt, share in zip(prompts, shares, strict=True)]


def mean(values):
    return sum(values) / len(values)


slow = pytest.mark.slow


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "critic",
    [
        {"critic": "shared"},
        pytest.param({"critic": "copy"}, marks=slow),
        pytest.param({"critic_detach": False}, marks=slow),
    ],
    ids=str,
)
def test_the_reward_rises_and_the_values_explain_it(make_ppo, critic, seed):
    trainer = make_ppo(
        prompt_and_tokens, seed=seed, max_steps=72, num_iterations=4, per_device_train_batch_size=32,
        lr_scheduler_type="constant", target_kl=0.05, **critic,
    )  # fmt: skip
    trainer.train()
    rewards, explained = logged(trainer, "reward"), logged(trainer, "value/explained_variance")
    assert mean(rewards[-4:]) > mean(rewards[:4]) + 0.1
    assert mean(explained[-6:]) > 0.15
    assert explained[0] == 0
