"""What the tests of PPO share."""

import torch
from transformers import TrainerCallback


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


class Gradients(TrainerCallback):
    """The gradients of policy and critic before each optimiser step, as this process has them."""

    def __init__(self, trainer):
        self.trainer, self.policy, self.critic = trainer, [], []
        trainer.callback_handler.callbacks.insert(0, self)  # before the critic's step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.policy.append(self._of(self.trainer.model))
        if hasattr(self.trainer, "critic"):
            self.critic.append(self._of(self.trainer.critic))

    @staticmethod
    def _of(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
        return {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }


def scripted(mask: bool = False, longest: int = 6):
    """A roll-out whose completions depend on the prompt and the place in its group only.

    Every third completion ends; `mask` hides every fourth token from training.
    """

    def rollout(prompts, trainer):
        ids, places, seen = [], [], {}
        for prompt in prompts:
            place = seen[prompt] = seen.get(prompt, -1) + 1
            number = sum(map(ord, prompt)) + 31 * place
            length = 2 + number % (longest - 1)
            ids.append([5 + (number * 13 + 7 * token) % 375 for token in range(length)])
            if number % 3 == 0:
                ids[-1][-1] = trainer._tokenizer.eos_token_id
            places.append(place)
        out = {
            "prompt_ids": trainer.processing_class(prompts)["input_ids"],
            "completion_ids": ids,
            "logprobs": None,
            "place": places,
        }
        if mask:
            out["env_mask"] = [[int((token + len(row)) % 4 != 0) for token in range(len(row))] for row in ids]
        return out

    return rollout
