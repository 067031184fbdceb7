"""The settings of PPO."""

import os
import warnings
from dataclasses import dataclass, field

from trl.trainer.grpo_config import GRPOConfig


@dataclass
class PPOConfig(GRPOConfig):
    """The settings of PPO, on top of GRPO's.

    A roll-out is `steps_per_generation` batches, gone through `num_iterations` times, with an optimiser step every
    `gradient_accumulation_steps` batches: so `steps_per_generation / gradient_accumulation_steps` minibatches an epoch.

    >>> here = {"bf16": False, "save_strategy": "no"}
    >>> settings = PPOConfig("runs/ppo", steps_per_generation=8, gradient_accumulation_steps=2, **here)
    >>> settings.generation_batch_size, settings.optimizer_steps_per_rollout
    (64, 16)
    """

    num_generations: int = field(default=1, metadata={"help": "Completions of each prompt in a roll-out."})
    num_iterations: int = field(default=4, metadata={"help": "Epochs over a roll-out."})
    disable_dropout: bool = field(default=True, metadata={"help": "Dropout would move the ratio and the KL penalty."})
    beta: float = field(default=0.05, metadata={"help": "Weight of the KL penalty, which is part of the reward."})
    kl_target: float | None = field(
        default=None,
        metadata={"help": "Adapt beta so that the KL divergence of a completion comes to this. None keeps it fixed."},
    )
    kl_horizon: int = field(default=10000, metadata={"help": "Completions over which beta adapts."})
    gamma: float = field(default=1.0, metadata={"help": "Discount from token to token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of the generalised advantage estimate."})
    lam_critic: float = field(default=1.0, metadata={"help": "Lambda of the returns that the critic learns."})
    scale_rewards: str = field(default="none", metadata={"help": "GRPO's; has no part in PPO."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Mean 0, deviation 1 over the whole roll-out."})
    scale_scores: bool = field(default=False, metadata={"help": "Divide scores by their running deviation."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a completion that did not end within its budget."}
    )
    target_kl: float | None = field(
        default=None,
        metadata={"help": "Leave out the rest of a roll-out's updates once the policy is this far (in approximate KL "
                          "per token) from the one that sampled it."},
    )  # fmt: skip
    critic: str = field(
        default="shared",
        metadata={"help": "'shared': a head on the policy's last hidden states. 'copy': trainable weights of its own "
                          "(its own LoRA adapter, or all of them) over the policy's frozen ones. Else a model, such as "
                          "a reward model with the policy's tokenizer."},
    )  # fmt: skip
    critic_detach: bool = field(
        default=True, metadata={"help": "Whether the shared critic leaves the policy's weights alone."}
    )
    critic_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Default: 0.2 / hidden size for the critic's new head, learning_rate for weights below it."},
    )
    value_warmup_steps: int = field(default=0, metadata={"help": "First steps in which only the critic learns."})
    cliprange_value: float | None = field(
        default=0.2,
        metadata={"help": "How far a value may move in a roll-out, as a share of the root mean square of the returns. "
                          "None is no limit."},
    )  # fmt: skip
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss where it reaches the policy."})

    def __post_init__(self):
        for name, (valid, what) in {
            "loss_type": (("dapo",), "its losses are sums over the tokens of all processes"),
            "importance_sampling_level": (("token",), "it has an advantage for every token"),
            "multi_objective_aggregation": (("sum_then_normalize",), "its critic needs one score"),
            "scale_rewards": (("none", False), "whiten_advantages and scale_scores scale here"),
            "off_policy_mask_threshold": ((None,), "the clipped ratio bounds each update"),
        }.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"PPO takes {name}={valid[0]!r} only, not {getattr(self, name)!r}: {what}.")
        for name in ("critic_learning_rate", "value_warmup_steps", "missing_eos_penalty", "target_kl", "vf_coef"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)!r}.")
        for name in ("kl_target", "kl_horizon", "cliprange_value"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}.")
        for name in ("gamma", "lam", "lam_critic"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)!r}.")
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("kl_target adapts beta by a factor, so beta must not be 0.")
        group = self.num_generations
        if group == 1:  # GRPO refuses a group of one; a critic needs no group, and any group size divides by one
            self.num_generations, self.num_generations_eval = self._two_or_more(), self.num_generations_eval or 1
        super().__post_init__()
        self.num_generations = group
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}), so that a roll-out is a whole number of minibatches."
            )
        if self.kl_target is not None and self.kl_horizon < self.generation_batch_size:
            raise ValueError(
                f"kl_horizon ({self.kl_horizon}) must be at least the completions of a roll-out "
                f"({self.generation_batch_size}), or beta jumps and may turn negative."
            )
        self._save_on_boundaries()

    def _two_or_more(self) -> int:
        """A group size that GRPO's own check of the batch lets pass."""
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        size = self.generation_batch_size or self.per_device_train_batch_size * steps
        if size < 2:  # the number of processes is known to the parent class only later
            size *= int(os.environ.get("WORLD_SIZE", 1))
        if size < 2:
            raise ValueError("PPO whitens over a roll-out, so one needs at least 2 completions: raise a batch size.")
        return size

    def _save_on_boundaries(self) -> None:
        """Between two roll-outs a resumed run is the uninterrupted one; within one, its completions would be lost."""
        cycle = self.optimizer_steps_per_rollout
        if self.save_strategy != "steps" or self.save_steps % cycle == 0:
            return
        if self.save_steps < 1:
            raise ValueError(f"save_steps must be a whole number of steps, not {self.save_steps!r}.")
        steps = int(-(-self.save_steps // cycle) * cycle)
        warnings.warn(
            f"save_steps={self.save_steps:g} falls within a roll-out of {cycle} optimiser steps: {steps} is used.",
            stacklevel=4,
        )
        self.save_steps = steps

    def warn_within_rollout(self, checkpoint: str, step: int) -> None:
        """Say it where a run goes on from within a roll-out, as after a last save that no boundary fell on."""
        cycle = self.optimizer_steps_per_rollout
        if step % cycle:
            warnings.warn(
                f"{checkpoint} was saved within a roll-out of {cycle} optimiser steps, whose completions are lost: the "
                "run goes on with new ones, not as it would have.",
                stacklevel=2,
            )

    @property
    def optimizer_steps_per_rollout(self) -> int:
        """How many optimiser steps one roll-out is used for."""
        return self.steps_per_generation // self.gradient_accumulation_steps * self.num_iterations
