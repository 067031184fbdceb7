"""What the tests of PPO share."""

import torch


def low_share(completion_ids, **columns):
    """The share of tokens from the vocabulary's lower half: near 0.5 at the start, and soon learnt."""
    return [sum(token < 192 for token in ids) / len(ids) for ids in completion_ids]


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def differing(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    """The names of the parameters that are not bit for bit what they were."""
    return {name for name, value in module.named_parameters() if not torch.equal(before[name], value)}


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
