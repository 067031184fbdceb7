"""PPO on TRL's GRPO trainer: the same rewards, prompts and generation, with a critic in place of the group's mean.

TRL's trainer samples, scores, takes the clipped policy loss and logs it. Here is what PPO adds: values of every token,
the KL penalty and the score as rewards of tokens, generalised advantages, the critic's loss, optimiser and checkpoint.
"""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, is_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, TrainerCallback
from transformers.utils import find_adapter_config_file
from trl import GRPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from lastmile_trl.trainers.attributes import replaced
from lastmile_trl.trainers.estimates import gae, merged, moments, next_beta, value_loss
from lastmile_trl.trainers.ppo_config import PPOConfig

CRITIC_WEIGHTS, CRITIC_STATE = "critic.safetensors", "critic.pt"


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
        with torch.autocast(hidden.device.type, enabled=False):  # values differ by less than bfloat16 can tell
            return self.head(hidden[:, -keep - 1 : -1].float()).squeeze(-1)

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
    _paper = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, PPOConfig):
            raise TypeError(f"PPOTrainer takes args=PPOConfig(...), not a {type(self.args).__name__}.")
        self._shared = self.args.critic == "shared"
        self._joint = self._shared and not self.args.critic_detach
        self._refuse_what_does_not_work()
        self.critic = self._make_critic().to(self.accelerator.device).train()
        for parameter in self.critic.trained().values():  # bfloat16 loses small steps; the processes' seeds differ
            parameter.data = broadcast(parameter.data.float())
        self.critic_optimizer = self._make_optimizer()
        self._heard: list[Tensor] | None = None  # a list while a pass over completions is listened to
        self._passes: list[tuple[Tensor, Tensor | None]] = []
        self._drift = torch.zeros(2, device=self.accelerator.device)  # sum of approximate KL, tokens
        self._left_out = False
        self._counted_scores = torch.zeros(3, dtype=torch.float64)
        self.add_callback(_Updates(self))

    def _refuse_what_does_not_work(self) -> None:
        args, sharded = self.args, self.is_fsdp_enabled or self.is_deepspeed_enabled
        drops = args.target_kl is not None or args.value_warmup_steps > 0
        for wrong, why in (
            (sharded and not self._shared, f"critic={args.critic!r} would lie whole on every process, where FSDP "
             "and DeepSpeed shard the policy: use critic='shared'"),
            (sharded and self._joint, "critic_detach=False does not work with FSDP and DeepSpeed: set it to true"),
            (self.is_deepspeed_enabled and drops, "target_kl and value_warmup_steps leave steps out, and DeepSpeed's "
             "optimiser takes them all: set them to null and 0"),
            (args.fp16 and (drops or self._joint or not self._shared), "fp16 scales gradients, which only a shared "
             "critic with critic_detach=True, without target_kl and value_warmup_steps, stands: use bf16"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(f"PPO: {why}.")

    def _make_critic(self) -> Critic:
        policy = self.model.get_base_model() if is_peft_model(self.model) else self.model
        backbone = None
        if self._shared:
            policy.base_model.register_forward_hook(self._hear)
        elif self.args.critic == "copy":
            frozen = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
            backbone = copy.deepcopy(policy.base_model, frozen)
        else:
            backbone = self._load_backbone(self.args.critic)
        if backbone is not None:
            disable_dropout_in_model(backbone)
            if self.args.gradient_checkpointing:
                backbone.gradient_checkpointing_enable(self.args.gradient_checkpointing_kwargs)
        return Critic((backbone or policy).config.get_text_config().hidden_size, backbone)

    def _load_backbone(self, name: str) -> nn.Module:
        if find_adapter_config_file(name):
            raise ValueError(f"critic={name!r} is an adapter, whose weights would stay frozen: merge it into its base.")
        settings = {"trust_remote_code": self.args.trust_remote_code}
        if AutoTokenizer.from_pretrained(name, **settings).get_vocab() != self._tokenizer.get_vocab():
            raise ValueError(f"critic={name!r} has another tokenizer than the policy, so it cannot read its tokens.")
        return AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **settings)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW, with a rate of its own for the new head: the policy's would never teach it."""
        head = list(self.critic.head.parameters())
        rest = [parameter for name, parameter in self.critic.trained().items() if not name.startswith("head.")]
        rate, new_rate = self.args.critic_learning_rate, 0.2 / head[0].size(0)  # a value moves by about 0.1 a step
        rates = (new_rate, self.args.learning_rate) if rate is None else (rate, rate)
        groups = [{"params": part, "initial_lr": rate} for part, rate in zip((head, rest), rates, strict=True) if part]
        return torch.optim.AdamW(groups, weight_decay=0)

    def _hear(self, module: nn.Module, args: tuple, output: Any) -> None:
        """While a pass over completions runs: the values of the policy's own last hidden states."""
        if self._heard is not None:
            hidden = output.last_hidden_state
            self._heard.append(self.critic(hidden if self._joint else hidden.detach(), keep=self._keep))

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        self._keep = logits_to_keep
        given = (model, input_ids, attention_mask, logits_to_keep, *args)
        with replaced(self, _heard=[]):
            found = super()._get_per_token_logps_and_entropies(*given, **kwargs)
            self._passes.append((found[0], torch.cat(self._heard) if self._heard else None))
        return found

    def _first_pass(self, batch: dict[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values of the pass over the policy; one over its reference may follow."""
        (logps, values), self._passes = self._passes[0], []
        if values is not None:
            return logps, values
        if "pixel_values" in batch:
            raise ValueError(f"PPO: critic={self.args.critic!r} does not see images: use critic='shared'.")
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1).split(size)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).split(size)
        inputs = [{"input_ids": part, "attention_mask": seen} for part, seen in zip(ids, mask, strict=True)]
        with self.accelerator.autocast():
            return logps, torch.cat([self.critic(keep=logps.size(1), **part) for part in inputs])

    # --- a roll-out: values, rewards of tokens, advantages ---------------------------------------------------------

    def _calculate_rewards(self, *args, **kwargs):
        self._rewards_per_func = super()._calculate_rewards(*args, **kwargs)  # TRL hands on only group advantages
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs):
        args, mode = self.args, "train" if self.model.training else "eval"
        self._passes = []
        with replaced(self, num_iterations=math.inf):  # TRL spares the old log-probabilities where one step uses them
            batch = super()._generate_and_score_completions(inputs)
        with torch.no_grad():
            old_logps, values = self._first_pass(batch, getattr(args, f"per_device_{mode}_batch_size"))
        scores, scored = self._scores(batch, mode)
        mask = (batch["completion_mask"] * batch.get("tool_mask", 1) * scored.unsqueeze(1)).float()
        values = values * mask

        rewards = torch.zeros_like(values)
        if self.beta:
            kl = (old_logps - batch["ref_per_token_logps"]) * mask
            rewards -= self.beta * kl
            self._log(mode, "kl", kl, mask)
            mean = self._log(mode, "kl_per_completion", kl.sum(1), mask.any(1))
            if mode == "train" and args.kl_target is not None and mean is not None:
                self._metrics[mode]["beta"].append(self.beta)
                self.beta = next_beta(self.beta, mean, args.kl_target, args.generation_batch_size, args.kl_horizon)
        last = (mask * torch.arange(1, mask.size(1) + 1, device=mask.device)).argmax(1)
        rewards[torch.arange(len(mask)), last] += scores * mask.any(1)

        advantages = gae(rewards, values, mask, args.gamma, args.lam)
        errors = gae(rewards, values, mask, args.gamma, args.lam_critic)
        returns = values + errors
        self._log_explained(mode, errors, returns, mask)
        if args.whiten_advantages:
            mean, variance = moments(advantages, mask, self._total)
            advantages = (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask
        self._log_advantages(mode, advantages.sum(1) / mask.sum(1).clamp(min=1))
        self._left_out &= mode == "eval"  # every roll-out starts afresh
        return batch | {
            "old_per_token_logps": old_logps,
            "old_values": values,
            "returns": returns,
            "advantages": advantages,
            "tool_mask": mask,  # so TRL's own sums and means leave out what is not trained, too
            "num_items_in_batch": self._total(mask.sum()),
            "typical_return": moments(returns**2, mask, self._total)[0].sqrt(),
        }

    def _scores(self, batch: dict[str, Tensor], mode: str) -> tuple[Tensor, Tensor]:
        """The weighted sum of the rewards of this process's completions, and which have any."""
        everyone = (self._rewards_per_func * self.reward_weights.to(self._rewards_per_func.device)).nansum(1)
        scored = ~self._rewards_per_func.isnan().all(1)
        if self.args.scale_scores:
            if mode == "train":
                self._counted_scores = merged(self._counted_scores, everyone[scored].double().cpu())
            number, _, squares = self._counted_scores.tolist()
            everyone = everyone / (squares / (number - 1)) ** 0.5 if squares else everyone
        size = len(batch["completion_ids"])
        rows = slice(self.accelerator.process_index * size, (self.accelerator.process_index + 1) * size)
        scores = everyone[rows]
        if self.args.missing_eos_penalty is not None:
            final = (batch["completion_mask"].sum(1, keepdim=True) - 1).clamp(min=0)
            ends = torch.tensor(self.eos_token_ids, device=final.device)
            ended = torch.isin(batch["completion_ids"].gather(1, final).squeeze(1), ends)
            scores = scores - self.args.missing_eos_penalty * ~ended
        return scores, scored[rows]

    # --- the updates -----------------------------------------------------------------------------------------------

    def _compute_loss(self, model, inputs):
        mode, mask = "train" if self.model.training else "eval", inputs["tool_mask"]
        self._passes = []
        with replaced(self, beta=0.0):  # the KL penalty is in the rewards
            loss = super()._compute_loss(model, inputs)
        logps, values = self._first_pass(inputs, len(mask))

        log_ratio = (logps.detach() - inputs["old_per_token_logps"]) * mask
        self._log(mode, "ratio", log_ratio.exp(), mask)
        limit = self.args.cliprange_value
        reach = math.inf if limit is None else limit * inputs["typical_return"]
        errors = value_loss(values, inputs["old_values"], inputs["returns"], reach) * mask
        self._log(mode, "value/loss", errors.detach(), mask)
        if mode == "eval":
            return loss

        drift = log_ratio.exp() - 1 - log_ratio  # never negative, and less noisy than the log ratio itself
        self._drift += torch.stack([drift.sum(), mask.sum()])
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes  # of a roll-out
        errors = errors.sum() / (tokens * self.args.gradient_accumulation_steps / self.args.steps_per_generation)
        if self._joint:
            return loss + self.args.vf_coef * errors
        errors.backward()  # apart from the policy's graph, whatever wraps that
        return loss + 0 * errors.detach()  # if that is no number, the loss is none

    def _before_optimizer_step(self) -> None:
        """Step the critic; leave the policy's step out while the values warm up, or once the policy is too far."""
        drift, tokens = self._total(self._drift).tolist()
        self._drift = torch.zeros_like(self._drift)
        drift /= max(tokens, 1)
        self._left_out |= self.args.target_kl is not None and drift > self.args.target_kl
        self._metrics["train"]["approx_kl"].append(drift)
        self._metrics["train"]["updates_left_out"].append(float(self._left_out))
        if self._left_out or self.state.global_step < self.args.value_warmup_steps:
            for parameter in self.model.parameters():
                parameter.grad = None
        if not self._left_out:
            self._step_critic()
        self.critic_optimizer.zero_grad()

    def _step_critic(self) -> None:
        parameters = [parameter for parameter in self.critic.parameters() if parameter.grad is not None]
        for parameter in parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        if self.args.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        start = getattr(self.lr_scheduler, "base_lrs", [self.args.learning_rate])[0]
        scheduled = start and self.state.global_step >= self.args.value_warmup_steps  # a warm-up is the policy's
        schedule = self.lr_scheduler.get_last_lr()[0] / start if scheduled else 1.0
        for group in self.critic_optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule
        self.critic_optimizer.step()

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            weights = {name: parameter.detach().contiguous() for name, parameter in self.critic.trained().items()}
            save_file(weights, Path(output_dir or self.args.output_dir, CRITIC_WEIGHTS))

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {"optimizer": self.critic_optimizer.state_dict(), "beta": self.beta, "scores": self._counted_scores}
            torch.save(state, Path(output_dir, CRITIC_STATE))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        weights = load_file(Path(checkpoint, CRITIC_WEIGHTS))
        for name, parameter in self.critic.trained().items():
            parameter.data.copy_(weights[name])
        state = torch.load(Path(checkpoint, CRITIC_STATE), map_location="cpu", weights_only=True)
        self.critic_optimizer.load_state_dict(state["optimizer"])
        self.beta, self._counted_scores = state["beta"], state["scores"]
        for _ in range(int(self.state.epoch)):  # the order of each epoch is drawn from where the last one left off
            next(iter(getattr(self, "_sampler", ())), None)
        self.args.warn_within_rollout(checkpoint, self.state.global_step)

    def _get_train_sampler(self, dataset=None):
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    # --- numbers over all processes --------------------------------------------------------------------------------

    def _total(self, part: Tensor) -> Tensor:
        return self.accelerator.reduce(part, "sum")

    def _log(self, mode: str, name: str, values: Tensor, mask: Tensor) -> float | None:
        """The mean where mask is 1, which is not logged where nothing is."""
        total, number = self._total(torch.stack([(values * mask).sum(), mask.sum()])).tolist()
        if number:
            self._metrics[mode][name].append(total / number)
        return total / number if number else None

    def _log_explained(self, mode: str, errors: Tensor, returns: Tensor, mask: Tensor) -> None:
        """The share of the returns' variance that the values explain; none is logged where all returns are alike."""
        left, spread = (moments(of, mask, self._total)[1].item() for of in (errors, returns))
        if spread > 1e-8:
            self._metrics[mode]["value/explained_variance"].append(1 - left / spread)

    def _log_advantages(self, mode: str, advantages: Tensor) -> None:
        """Put each completion's mean advantage in place of the group advantage that TRL logs."""
        self._metrics[mode].pop("frac_reward_zero_std", None)  # says something of groups only
        logged, everyone = self._logs["advantages"], self.accelerator.gather(advantages).tolist()
        for place in range(1, 1 + min(len(logged), len(everyone))):
            logged[-place] = everyone[-place]
