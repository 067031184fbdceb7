"""PPO's arithmetic against values worked out by hand and a slow, obvious reference."""

import math

import pytest
import torch

from lastmile_trl.trainers.estimates import gae, merged, moments, next_beta, value_loss

VALUES = torch.tensor([[0.2, 0.3, 0.5]])
ONES = torch.ones(1, 3)


@pytest.mark.parametrize(
    ("rewards", "gamma", "lam", "expected"),
    [
        ([-0.01, -0.02, 0.97], 1.0, 0.95, [0.685175, 0.6265, 0.47]),
        ([-0.01, -0.02, 0.97], 1.0, 1.0, [0.74, 0.65, 0.47]),
        ([0.0, 0.0, 1.0], 0.99, 0.95, [0.722667625, 0.66525, 0.5]),
        ([-0.01, -0.02, 0.97], 1.0, 0.0, [0.09, 0.18, 0.47]),
    ],
)
def test_advantages_worked_out_by_hand(rewards, gamma, lam, expected):
    torch.testing.assert_close(gae(torch.tensor([rewards]), VALUES, ONES, gamma, lam), torch.tensor([expected]))


def by_definition(rewards, values, mask, gamma, lam):
    """The sum over later tokens of (gamma lam)^distance times their surprise, over a row's trained tokens only."""
    advantages = [[0.0] * len(row) for row in rewards]
    for row, trained in enumerate(mask):
        tokens = [token for token, keep in enumerate(trained) if keep]
        worth = [values[row][token] for token in tokens] + [0.0]
        surprises = [
            rewards[row][token] + gamma * worth[place + 1] - worth[place] for place, token in enumerate(tokens)
        ]
        for place, token in enumerate(tokens):
            advantages[row][token] = sum(
                (gamma * lam) ** (later - place) * surprises[later] for later in range(place, len(tokens))
            )
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_equal_their_definition_with_masked_tokens_anywhere(gamma, lam):
    torch.manual_seed(3)
    rewards, values = torch.randn(6, 9), torch.randn(6, 9)
    mask = (torch.rand(6, 9) > 0.4).float()
    mask[0], mask[1] = 0, 1
    expected = by_definition(rewards.tolist(), values.tolist(), mask.tolist(), gamma, lam)
    torch.testing.assert_close(gae(rewards, values, mask, gamma, lam), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_masked_token_in_the_middle_is_as_if_not_there():
    with_gap = gae(
        torch.tensor([[-0.01, 7.0, -0.02, 0.97]]), torch.tensor([[0.2, -9.0, 0.3, 0.5]]),
        torch.tensor([[1.0, 0.0, 1.0, 1.0]]), 1.0, 0.95,
    )  # fmt: skip
    torch.testing.assert_close(with_gap, torch.tensor([[0.685175, 0.0, 0.6265, 0.47]]))


def test_whitening_takes_the_biased_variance_of_the_masked_tokens():
    advantages = torch.tensor([[0.5, 1.0, -0.5], [2.0, 0.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    mean, variance = moments(advantages, mask)
    assert variance.item() == pytest.approx(0.74)
    white = (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask
    expected = torch.tensor([[-0.11625, 0.46499, -1.27872], [1.62747, -0.69749, 0.0]])
    torch.testing.assert_close(white, expected, atol=1e-5, rtol=1e-5)


def test_moments_of_no_token_are_zero_and_a_total_doubles_both_sums():
    assert [float(x) for x in moments(torch.ones(3), torch.zeros(3))] == [0, 0]
    values = torch.tensor([1.0, 2.0, 6.0])
    alone, twice = moments(values, torch.ones(3)), moments(values, torch.ones(3), lambda part: 2 * part)
    torch.testing.assert_close(alone, twice)


@pytest.mark.parametrize(("kl", "expected"), [(3, 0.149808), (6, 0.15), (12, 0.150192), (6.6, 0.150096)])
def test_the_penalty_adapts_towards_its_target(kl, expected):
    assert next_beta(0.15, kl, target=6, number=64, horizon=10000) == pytest.approx(expected, abs=1e-6)


def test_merged_counts_equal_those_of_all_values_at_once():
    torch.manual_seed(1)
    values = torch.randn(50, dtype=torch.float64) * 3 + 7
    counted = torch.zeros(3, dtype=torch.float64)
    for part in values.split([1, 20, 9, 20]):
        counted = merged(merged(counted, part), part[:0])
    expected = [50, values.mean().item(), (49 * values.var()).item()]
    assert counted.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "old", "target", "reach", "loss", "slope"),
    [
        (0.1, 0.0, 1.0, 0.2, 0.405, -0.9),  # within reach: the plain error
        (0.5, 0.0, 1.0, 0.2, 0.32, 0.0),  # past it, towards the target: no slope, or it would go on
        (-0.5, 0.0, 1.0, 0.2, 1.125, -1.5),  # past it, away from the target: pulled back in full
        (0.5, 0.0, 1.0, math.inf, 0.125, -0.5),
    ],
)
def test_the_clipped_value_loss(value, old, target, reach, loss, slope):
    value = torch.tensor([value], requires_grad=True)
    found = value_loss(value, torch.tensor([old]), torch.tensor([target]), reach)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert value.grad.item() == pytest.approx(slope)
