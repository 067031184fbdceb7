"""PPO on TRL's GRPO trainer: the same rewards, prompts and generation, with a critic in place of the group's mean.

TRL's trainer samples, scores, takes the clipped policy loss and logs it. Here is what PPO adds: values of every token,
the KL penalty and the score as rewards of tokens, generalised advantages, the critic's loss, optimiser and checkpoint.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from lastmile_trl.trainers.ppo_config import PPOConfig

CRITIC_WEIGHTS, CRITIC_STATE = "critic.safetensors", "critic.pt"


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


class Critic(nn.Module):
    """Values of hidden states: those of the policy, or of a backbone of its own."""

    def __init__(self, hidden_size: int, backbone: nn.Module | None = None):
        super().__init__()
        self.backbone = backbone
        # A linear head explains nothing of a small trunk. All values are 0 at the start.
        self.head = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, 1))
        nn.init.zeros_(self.head[2].weight)
        nn.init.zeros_(self.head[2].bias)

    def forward(self, hidden: Tensor | None = None, keep: int | None = None, **inputs: Tensor) -> Tensor:
        """The value before each of the last `keep` tokens is written."""
        if self.backbone is not None:
            hidden = self.backbone(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden[:, -keep - 1 : -1].to(self.head[0].weight.dtype)).squeeze(-1).float()

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are its own."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


class _Updates(TrainerCallback):
    """Before each optimiser step of the policy: the critic's step, and whether the policy's counts."""

    def __init__(self, trainer: "PPOTrainer"):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._before_optimizer_step()


class PPOTrainer(GRPOTrainer):
    """GRPO's trainer with a critic; takes the same arguments, and a PPOConfig."""

    _tag_names = ["trl", "ppo"]
    _name = "PPO"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._refuse_what_does_not_work()
        # The processes' generators differ here, and the critics must not.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            self.critic = self._make_critic().to(self.accelerator.device).train()
        rate = self.args.critic_learning_rate
        self._critic_rate = rate if rate is not None else self.args.learning_rate * (10 if self._is_shared else 1)
        self.critic_optimizer = torch.optim.AdamW(self.critic.trained().values(), lr=self._critic_rate, weight_decay=0)
        self._joint = self._is_shared and not self.args.critic_detach
        self._values: list[Tensor] | None = None  # a list while a pass over completions is listened to
        self._logps: Tensor | None = None
        self._drift = torch.zeros(2, device=self.accelerator.device)  # sum of approximate KL, tokens
        self._left_out = False
        self._score_moments = torch.zeros(3, dtype=torch.float64)  # number, mean, sum of squared deviations
        self.add_callback(_Updates(self))

    def _refuse_what_does_not_work(self) -> None:
        args, sharded = self.args, self.is_fsdp_enabled or self.is_deepspeed_enabled
        drops = args.target_kl is not None or args.value_warmup_steps > 0
        joint = self._is_shared and not args.critic_detach
        for wrong, why in (
            (sharded and not self._is_shared, f"critic={args.critic!r} would lie whole on every process, where FSDP "
             "and DeepSpeed shard the policy: use critic='shared'"),
            (sharded and joint, "critic_detach=False does not work with FSDP and DeepSpeed: use critic_detach=True"),
            (self.is_deepspeed_enabled and drops, "target_kl and value_warmup_steps leave steps out, and DeepSpeed's "
             "optimiser takes them all: set them to null and 0"),
            (args.fp16 and (drops or joint), "fp16 scales the gradients that target_kl, value_warmup_steps and "
             "critic_detach=False need as they are: use bf16"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(f"PPO: {why}.")

    # --- the critic ------------------------------------------------------------------------------------------------

    @property
    def _is_shared(self) -> bool:
        return self.args.critic == "shared"

    def _make_critic(self) -> Critic:
        policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
        backbone = None
        if self._is_shared:
            policy.base_model.register_forward_hook(self._hear)
        elif self.args.critic == "copy":
            frozen = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
            backbone = copy.deepcopy(policy.base_model, frozen)
        else:
            backbone = self._load_backbone(self.args.critic)
        if backbone is not None and self.args.gradient_checkpointing:
            backbone.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        return Critic((backbone or policy).config.get_text_config().hidden_size, backbone)

    def _load_backbone(self, name: str) -> nn.Module:
        if AutoTokenizer.from_pretrained(name).get_vocab() != self._tokenizer.get_vocab():
            raise ValueError(f"critic={name!r} has another tokenizer than the policy, so it cannot read its tokens.")
        return AutoModel.from_pretrained(name, dtype=torch.float32)

    def _hear(self, module: nn.Module, args: tuple, output: Any) -> None:
        """While a pass over completions runs: the values of the policy's own last hidden states."""
        if self._values is not None:
            hidden = output.last_hidden_state
            hidden = hidden if self._joint else hidden.detach()
            with torch.autocast(hidden.device.type, enabled=False):
                self._values.append(self.critic(hidden, keep=self._keep))

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        self._keep, self._values = logits_to_keep, []
        found = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        heard, self._values = self._values, None
        self._passes.append((found[0], torch.cat(heard) if heard else None))
        return found

    def _own_values(self, batch: dict[str, Tensor], size: int) -> Tensor:
        """Values by a critic with a backbone of its own."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1).split(size)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).split(size)
        keep = batch["completion_ids"].size(1)
        with self.accelerator.autocast():
            return torch.cat(
                [self.critic(keep=keep, input_ids=i, attention_mask=m) for i, m in zip(ids, mask, strict=True)]
            )

    def _before_optimizer_step(self) -> None:
        """Step the critic; leave the policy's step out while the values warm up, or once the policy is too far."""
        drift, tokens = self.accelerator.reduce(self._drift, "sum").tolist()
        self._drift.zero_()
        drift /= max(tokens, 1)
        self._metrics["train"]["approx_kl"].append(drift)
        self._left_out |= self.args.target_kl is not None and drift > self.args.target_kl
        self._metrics["train"]["updates_left_out"].append(float(self._left_out))
        if self._left_out or self.state.global_step < self.args.value_warmup_steps:
            for parameter in self.model.parameters():
                parameter.grad = None
        if not self._left_out:
            self._step_critic()
        self.critic_optimizer.zero_grad()

    def _step_critic(self) -> None:
        parameters = [parameter for parameter in self.critic.trained().values() if parameter.grad is not None]
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        if self.args.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        schedule = self.lr_scheduler.get_last_lr()[0] / self.args.learning_rate if self.args.learning_rate else 1.0
        for group in self.critic_optimizer.param_groups:
            group["lr"] = self._critic_rate * schedule
        self.critic_optimizer.step()

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            weights = {name: parameter.detach().contiguous() for name, parameter in self.critic.trained().items()}
            save_file(weights, Path(output_dir or self.args.output_dir, CRITIC_WEIGHTS))

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {"optimizer": self.critic_optimizer.state_dict(), "beta": self.beta, "scores": self._score_moments}
            torch.save(state, Path(output_dir, CRITIC_STATE))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.critic.load_state_dict(load_file(Path(checkpoint, CRITIC_WEIGHTS)), strict=False)
        state = torch.load(Path(checkpoint, CRITIC_STATE), map_location="cpu", weights_only=True)
        self.critic_optimizer.load_state_dict(state["optimizer"])
        self.beta, self._score_moments = state["beta"], state["scores"]

    # --- a roll-out: values, rewards of tokens, advantages ---------------------------------------------------------

    def _calculate_rewards(self, *args, **kwargs):
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)  # TRL hands on only group advantages
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs):
        self._passes = []
        batch = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        old_logps, values = self._old_pass(batch, mode)
        mask = (batch["completion_mask"] * batch.get("tool_mask", 1)).float()
        scores, unscored = self._scores(batch, mode)
        mask = mask * ~unscored.unsqueeze(1)  # what no reward could score teaches nothing
        values = values * mask

        rewards = torch.zeros_like(values)
        if self.beta:
            kl = (old_logps - batch["ref_per_token_logps"]) * mask
            rewards -= self.beta * kl
            self._log(mode, "kl", kl, mask)
            self._log(mode, "kl_per_completion", kl.sum(1))
            if mode == "train":
                self._adapt_beta(kl.sum(1))
        last = (mask * torch.arange(1, mask.size(1) + 1, device=mask.device)).argmax(1)
        rewards[torch.arange(len(mask)), last] += scores * mask.any(1)

        advantages = gae(rewards, values, mask, self.args.gamma, self.args.lam)
        errors = gae(rewards, values, mask, self.args.gamma, self.args.lam_critic)
        batch["old_per_token_logps"], batch["old_values"], batch["returns"] = old_logps, values, values + errors
        batch["scored"] = mask
        _, spread = self._moments(batch["returns"], mask)
        self._metrics[mode]["value/explained_variance"].append(
            (1 - self._moments(errors, mask)[1] / (spread + 1e-8)).item()
        )
        batch["value_range"] = spread.sqrt() * (self.args.cliprange_value or 0)
        if self.args.whiten_advantages:
            mean, variance = self._moments(advantages, mask)
            advantages = (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask
        batch["advantages"] = advantages
        self._log_advantages(mode, advantages.sum(1) / mask.sum(1).clamp(min=1))
        return batch

    def _old_pass(self, batch: dict[str, Tensor], mode: str) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values of the sampled tokens, by the forward that the updates use too."""
        args, keep = self.args, batch["completion_ids"].size(1)
        size = args.per_device_train_batch_size if mode == "train" else args.per_device_eval_batch_size
        with torch.no_grad(), disable_gradient_checkpointing(self.model, args.gradient_checkpointing_kwargs):
            if "old_per_token_logps" not in batch:  # TRL spares them where one roll-out is one step
                self._passes = []
                ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
                attended = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
                self._get_per_token_logps_and_entropies(self.model, ids, attended, keep, size)
            logps, values = self._passes[0]  # a later one is the reference's
            return logps, values if values is not None else self._own_values(batch, size)

    def _scores(self, batch: dict[str, Tensor], mode: str) -> tuple[Tensor, Tensor]:
        """The weighted sum of the rewards of this process's completions, and which have none."""
        everyone = (self._rewards_per_func * self.reward_weights.to(self._rewards_per_func.device)).nansum(1)
        unscored = self._rewards_per_func.isnan().all(1)
        if self.args.scale_scores:
            if mode == "train":
                self._score_moments = _with(self._score_moments, everyone[~unscored].double().cpu())
            number, _, squares = self._score_moments.tolist()
            everyone = everyone / max((squares / max(number - 1, 1)) ** 0.5, 1e-8) if squares else everyone
        size = len(batch["completion_ids"])
        rows = slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)
        scores = everyone[rows]
        if self.args.missing_eos_penalty is not None:
            mask = batch["completion_mask"]
            final = batch["completion_ids"].gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0)).squeeze(1)
            ended = torch.isin(final, torch.tensor(self.eos_token_ids, device=final.device))
            scores = scores - self.args.missing_eos_penalty * ~ended
        return scores, unscored[rows]

    def _adapt_beta(self, kl: Tensor) -> None:
        if self.args.kl_target is not None:
            kl = self.accelerator.gather(kl)
            error = (kl.mean().item() / self.args.kl_target) - 1
            self._metrics["train"]["beta"].append(self.beta)
            self.beta *= 1 + max(-0.2, min(0.2, error)) * len(kl) / self.args.kl_horizon

    # --- the loss --------------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        beta, self.beta, self._passes = self.beta, 0.0, []  # the KL penalty is in the rewards, not in the loss
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        mode = "train" if self.model.training else "eval"
        mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).float()
        logps, values = self._passes[0]
        values = self._own_values(inputs, len(mask)) if values is None else values
        self._log_ratio(mode, (logps.detach() - inputs["old_per_token_logps"]) * mask, mask)

        old, returns, reach = inputs["old_values"], inputs["returns"], inputs["value_range"]
        errors = (values - returns) ** 2
        if self.args.cliprange_value is not None:
            errors = torch.max(errors, (old + (values - old).clamp(-reach, reach) - returns) ** 2)
        errors = 0.5 * errors * inputs["scored"]
        self._log(mode, "value/loss", errors.detach(), inputs["scored"])
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes  # of the roll-out
        if mode == "eval":
            return loss
        value_loss = errors.sum() / (tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation)
        if self._joint:
            return loss + self.args.vf_coef * value_loss
        value_loss.backward()  # apart from the policy's graph, whatever wraps that
        return loss

    def _log_ratio(self, mode: str, log_ratio: Tensor, mask: Tensor) -> None:
        drift = log_ratio.exp() - 1 - log_ratio  # never negative, and less noisy than the log ratio itself
        if mode == "train":
            self._drift += torch.stack([drift.sum(), mask.sum()])
        self._log(mode, "ratio", log_ratio.exp(), mask)

    # --- numbers over all processes --------------------------------------------------------------------------------

    def _moments(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over the masked tokens of all processes."""
        number, total = self.accelerator.reduce(torch.stack([mask.sum(), (values * mask).sum()]), "sum")
        mean = total / number.clamp(min=1)
        squares = self.accelerator.reduce((((values - mean) ** 2) * mask).sum(), "sum")
        return mean, squares / number.clamp(min=1)

    def _log(self, mode: str, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        mask = torch.ones_like(values) if mask is None else mask
        total, number = self.accelerator.reduce(torch.stack([(values * mask).sum(), mask.sum()]), "sum")
        self._metrics[mode][name].append((total / number.clamp(min=1)).item())

    def _log_advantages(self, mode: str, advantages: Tensor) -> None:
        """Put each completion's mean advantage in place of the group advantage that TRL logs."""
        self._metrics[mode].pop("frac_reward_zero_std", None)  # says something of groups only
        everyone = self.accelerator.gather(advantages).tolist()
        for _ in everyone:
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(everyone)


def _with(moments: Tensor, values: Tensor) -> Tensor:
    """Number, mean and sum of squared deviations with more values."""
    if not len(values):
        return moments
    number, mean, squares = moments.tolist()
    total = number + len(values)
    change = values.mean().item() - mean
    added = ((values - values.mean()) ** 2).sum().item() + change**2 * number * len(values) / total
    return torch.tensor([total, mean + change * len(values) / total, squares + added], dtype=torch.float64)


__all__ = ["PPOConfig", "PPOTrainer"]
