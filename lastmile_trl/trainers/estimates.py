"""The arithmetic of PPO, without a trainer: advantages, moments, the clipped value loss, the adaptive penalty."""

from collections.abc import Callable

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates over the tokens where mask is 1; the others are skipped as if not there.

    >>> one = torch.ones(1, 3)
    >>> gae(torch.tensor([[-0.01, -0.02, 0.97]]), torch.tensor([[0.2, 0.3, 0.5]]), one, 1.0, 0.95)
    tensor([[0.6852, 0.6265, 0.4700]])
    """
    advantages = torch.zeros_like(rewards)
    advantage = following = torch.zeros_like(rewards[:, 0])
    for token in reversed(range(rewards.size(1))):
        trained = mask[:, token].bool()
        change = rewards[:, token] + gamma * following - values[:, token]
        advantage = torch.where(trained, change + gamma * lam * advantage, advantage)
        following = torch.where(trained, values[:, token], following)
        advantages[:, token] = advantage * trained
    return advantages


def moments(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = torch.clone) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance where mask is 1; `total` adds up what several processes have.

    >>> moments(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([1.0, 1.0, 0.0]))
    (tensor(2.), tensor(1.))
    """
    number, added = total(torch.stack([mask.sum(), (values * mask).sum()]))
    mean = added / number.clamp(min=1)
    return mean, total((((values - mean) ** 2) * mask).sum()) / number.clamp(min=1)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, reach: Tensor | float) -> Tensor:
    """Half the squared error of each value, or of the value held within `reach` of the old one where that is more.

    >>> value_loss(torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2)
    tensor([0.3200])
    """
    held = old + (values - old).clamp(-reach, reach)
    return 0.5 * torch.maximum((values - returns) ** 2, (held - returns) ** 2)


def next_beta(beta: float, kl: float, target: float, number: int, horizon: int) -> float:
    """The KL penalty's weight after `number` completions whose KL divergence was `kl`, where `target` is wanted.

    >>> round(next_beta(0.15, kl=12, target=6, number=64, horizon=10000), 6)
    0.150192
    """
    return beta * (1 + max(-0.2, min(0.2, kl / target - 1)) * number / horizon)


def merged(counted: Tensor, values: Tensor) -> Tensor:
    """Number, mean and sum of squared deviations of the values counted so far and of more.

    >>> merged(merged(torch.zeros(3), torch.tensor([1.0, 3.0])), torch.tensor([5.0]))
    tensor([3., 3., 8.])
    """
    if not len(values):
        return counted
    number, mean, squares = counted
    whole, change = number + len(values), values.mean() - mean
    squares = squares + ((values - values.mean()) ** 2).sum() + change**2 * number * len(values) / whole
    return torch.stack([whole, mean + change * len(values) / whole, squares])
