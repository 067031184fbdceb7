"""The PPO trainer on a tiny model: what learns, what stays, and what the loss is made of."""

import logging
import math

import pytest
import torch
from ppo_fixture import Gradients, differing, logged, low_share, scripted, weights_of
from trl import GRPOTrainer

from tests.conftest import make_rows

CRITICS = {
    "shared": {},
    "joint": {"critic_detach": False},
    "copy": {"critic": "copy"},
    "folder": {"critic": "folder"},
}


def settings_of(critic: str, folder) -> dict:
    return {name: str(folder) if value == "folder" else value for name, value in CRITICS[critic].items()}


def all_steps(steps):
    """A roll-out of one batch of 8, used for `steps` optimiser steps."""
    return {"num_iterations": steps, "max_steps": steps}


def returns_of(make_ppo, reward, **settings):
    """The first roll-out's batch of scripted completions, as the loss gets it."""
    trainer = make_ppo(reward, rollout=scripted(settings.pop("mask", False)), **settings)
    trainer.model.train()
    prompts = [{"prompt": row["source"] + " =>"} for row in make_rows(8)]
    return trainer, trainer._generate_and_score_completions(prompts)


# --- what learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("critic", CRITICS)
def test_policy_and_critic_both_learn_and_every_weight_of_theirs_takes_part(
    make_ppo, lora, critic, adapter, tiny_model_folder
):
    settings = settings_of(critic, tiny_model_folder)
    trainer = make_ppo(peft=lora if adapter else None, beta=0.05, max_steps=3, learning_rate=1e-2, **settings)
    policy, values = weights_of(trainer.model), weights_of(trainer.critic)
    gradients = Gradients(trainer)
    trainer.train()
    # LoRA's second factor starts at 0, and so does the head's last layer: what lies below learns from the next step.
    for steps in (gradients.policy, gradients.critic):
        silent = [name for name in steps[2] if not any(step[name] is not None and step[name].any() for step in steps)]
        assert silent == []
    assert differing(policy, trainer.model) == set(gradients.policy[0])
    assert differing(values, trainer.critic) == set(gradients.critic[0])
    if adapter:
        assert all("lora" in name for name in gradients.policy[0])
    assert all(value.requires_grad for value in trainer.critic.head.parameters())


@pytest.mark.parametrize("critic", CRITICS)
def test_the_values_warm_up_before_the_policy_moves(make_ppo, critic, tiny_model_folder):
    trainer = make_ppo(max_steps=3, value_warmup_steps=3, **settings_of(critic, tiny_model_folder))
    policy, values = weights_of(trainer.model), weights_of(trainer.critic)
    trainer.train()
    assert differing(policy, trainer.model) == set()
    assert differing(values, trainer.critic) == set(values)


def test_the_policy_moves_after_the_warm_up(make_ppo):
    trainer = make_ppo(max_steps=3, value_warmup_steps=2)
    policy = weights_of(trainer.model)
    trainer.train()
    assert differing(policy, trainer.model)


def test_without_a_critic_learning_rate_only_the_policy_learns(make_ppo):
    trainer = make_ppo(critic="copy", critic_learning_rate=0.0)
    policy, values = weights_of(trainer.model), weights_of(trainer.critic)
    trainer.train()
    assert differing(policy, trainer.model) == set(policy)
    assert differing(values, trainer.critic) == set()


def test_the_head_has_a_rate_that_the_policy_does_not_slow_down(make_ppo):
    rates = lambda trainer: [group["initial_lr"] for group in trainer.critic_optimizer.param_groups]  # noqa: E731
    assert rates(make_ppo(learning_rate=1e-6)) == [pytest.approx(0.2 / 64)]
    assert rates(make_ppo(learning_rate=1e-6, critic="copy")) == [pytest.approx(0.2 / 64), 1e-6]
    assert rates(make_ppo(critic="copy", critic_learning_rate=1e-4)) == [1e-4, 1e-4]


def test_the_critics_rate_follows_the_schedule(make_ppo):
    trainer = make_ppo(critic_learning_rate=1e-2, lr_scheduler_type="linear", max_steps=4)
    trainer.train()
    assert trainer.critic_optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 4)


def test_the_policys_warm_up_does_not_slow_the_values_own(make_ppo):
    trainer = make_ppo(
        critic_learning_rate=1.0, lr_scheduler_type="constant_with_warmup", warmup_steps=4, value_warmup_steps=2,
        max_steps=5,
    )  # fmt: skip
    kept, rates = trainer.critic_optimizer.step, []
    trainer.critic_optimizer.step = lambda: rates.append(trainer.critic_optimizer.param_groups[0]["lr"]) or kept()
    trainer.train()
    assert rates == [1, 1, 0.5, 0.75, 1]


def test_the_critics_rate_keeps_to_itself_beside_an_optimiser_with_another(make_ppo):
    trainer = make_ppo(critic_learning_rate=1e-2, learning_rate=1e-6, lr_scheduler_type="linear", max_steps=4)
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3)
    trainer.train()
    assert trainer.critic_optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 4)


def test_the_critics_gradient_is_clipped_apart_from_the_policys(make_ppo):
    steps = []
    for limit in (1e-3, 0.0):
        trainer = make_ppo(rollout=scripted(), critic="copy", max_grad_norm=limit, max_steps=1)
        kept = trainer.critic_optimizer.step
        norms = lambda trainer=trainer: torch.stack(  # noqa: E731
            [value.grad.norm() for value in trainer.critic.parameters() if value.grad is not None]
        )
        trainer.critic_optimizer.step = lambda kept=kept, norms=norms: (steps.append(norms().norm().item()), kept())
        trainer.train()
    assert steps[0] == pytest.approx(1e-3, rel=1e-3)
    assert steps[1] > 0.1


@pytest.mark.parametrize("adapter", [False, True])
def test_a_copy_shares_the_frozen_weights_and_only_those(make_ppo, lora, adapter):
    trainer = make_ppo(critic="copy", peft=lora if adapter else None)
    own = {id(parameter) for parameter in trainer.critic.backbone.parameters()}
    shared = {id(parameter) for parameter in trainer.model.parameters()} & own
    assert shared == {id(parameter) for parameter in trainer.model.parameters() if not parameter.requires_grad} & own
    assert bool(shared) == adapter
    assert not {id(p) for p in trainer.critic.trained().values()} & {id(p) for p in trainer.model.parameters()}


def test_another_tokenizer_is_refused(make_ppo, tiny_model_folder, tokenizer, tmp_path):
    import copy
    import shutil

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<more>"])
    folder = shutil.copytree(tiny_model_folder, tmp_path / "other")
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="has another tokenizer than the policy, so it cannot read its tokens"):
        make_ppo(critic=str(folder))


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_an_adapter_is_no_critic(make_ppo, lora, tiny_model_folder, tokenizer, tmp_path, task):
    """Loaded as a model it would be frozen, with no word about it."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    lora.task_type = task
    get_peft_model(kind.from_pretrained(tiny_model_folder), lora).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter, whose weights would stay frozen: merge it into its base"):
        make_ppo(critic=str(tmp_path / "adapter"))


def test_a_config_of_another_method_is_refused(make_ppo):
    from trl import GRPOConfig

    with pytest.raises(TypeError, match=r"PPOTrainer takes args=PPOConfig\(...\), not a GRPOConfig"):
        make_ppo(config=GRPOConfig, num_generations=2)


def test_images_are_refused_by_a_critic_that_does_not_see_them(make_ppo):
    trainer = make_ppo(critic="copy")
    trainer._passes = [(torch.zeros(1, 2), None)]
    with pytest.raises(ValueError, match="PPO: critic='copy' does not see images: use critic='shared'"):
        trainer._first_pass({"pixel_values": torch.zeros(1)}, 1)


@pytest.mark.parametrize(
    "settings", [{"critic": "copy"}, {"critic_detach": False}, {"target_kl": 0.1}, {"value_warmup_steps": 1}]
)
def test_fp16_is_refused_where_gradients_are_needed_as_they_are(make_ppo, settings):
    trainer = make_ppo()
    for name, value in settings.items():
        setattr(trainer.args, name, value)
    trainer._shared, trainer._joint = trainer.args.critic == "shared", not trainer.args.critic_detach
    trainer._refuse_what_does_not_work()
    trainer.args.fp16 = True
    with pytest.raises(ValueError, match="PPO: fp16 scales gradients.*use bf16"):
        trainer._refuse_what_does_not_work()


def test_the_reference_of_an_adapter_is_the_model_without_it(make_ppo, lora):
    trainer = make_ppo(peft=lora, beta=0.05, max_steps=6, learning_rate=3e-2)
    base = {name: value for name, value in weights_of(trainer.model).items() if "lora" not in name}
    trainer.train()
    assert logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert max(map(abs, logged(trainer, "kl")[2:])) > 1e-3
    assert all(torch.equal(value, dict(trainer.model.named_parameters())[name]) for name, value in base.items())


def test_the_penalty_is_in_the_reward_and_not_in_the_loss_too(make_ppo, lora):
    """Without advantages nothing moves the policy, however far it is from its reference."""
    trainer = make_ppo(peft=lora, beta=10.0, rollout=scripted(), max_grad_norm=0.0, **all_steps(2))
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    gradients = Gradients(trainer)
    kept = trainer._compute_loss
    trainer._compute_loss = lambda model, batch: kept(model, batch | {"advantages": 0 * batch["advantages"]})
    trainer.train()
    assert abs(logged(trainer, "kl")[0]) > 1e-3
    assert len(logged(trainer, "kl")) == 1  # TRL would log one of its own with each loss
    assert not any(value.any() for value in gradients.policy[0].values())


@pytest.mark.parametrize("critic", ["shared", "copy"])
def test_the_gradient_of_the_policy_does_not_depend_on_the_critics_loss(make_ppo, critic):
    found = []
    for limit in (0.01, None):
        trainer = make_ppo(critic=critic, cliprange_value=limit, rollout=scripted(), **all_steps(3))
        gradients = Gradients(trainer)
        trainer.train()
        found.append(gradients)
    assert any(not torch.equal(value, found[1].critic[2][name]) for name, value in found[0].critic[2].items())
    for first, second in zip(found[0].policy, found[1].policy, strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_joint_critics_loss_weighs_vf_coef(make_ppo):
    found = []
    for weight in (0.0, 0.1, 0.3):
        trainer = make_ppo(critic_detach=False, vf_coef=weight, rollout=scripted(), max_grad_norm=0.0, **all_steps(1))
        torch.manual_seed(0)
        torch.nn.init.normal_(trainer.critic.head[2].weight)
        gradients = Gradients(trainer)
        trainer.train()
        found.append(gradients.policy[0]["model.layers.0.mlp.up_proj.weight"])
    none, some, more = found
    assert (some - none).norm() > 1e-3 * none.norm()
    torch.testing.assert_close(more - none, 3 * (some - none), atol=1e-5, rtol=1e-2)


def test_the_joint_critics_loss_reaches_the_trunk_and_not_the_language_head(make_ppo):
    found = []
    for detach in (True, False):
        trainer = make_ppo(critic_detach=detach, rollout=scripted(), max_grad_norm=0.0, **all_steps(2))
        gradients = Gradients(trainer)
        trainer.train()
        found.append(gradients.policy)
    (first, second), (first_joint, second_joint) = found
    for name in first:  # the head's last layer is 0 until the first step
        torch.testing.assert_close(first[name], first_joint[name], atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(second["lm_head.weight"], second_joint["lm_head.weight"], atol=1e-6, rtol=1e-4)
    trunk = "model.layers.0.mlp.up_proj.weight"
    assert (second[trunk] - second_joint[trunk]).norm() > 1e-3 * second[trunk].norm()


# --- what the loss is made of --------------------------------------------------------------------------------------


def test_the_score_lies_on_the_last_trained_token(make_ppo):
    _, batch = returns_of(make_ppo, lambda completions, **columns: [3.0] * len(completions), gamma=0.5, mask=True)
    mask = torch.zeros(8, 6)
    for row, length in enumerate(batch["completion_mask"].sum(1)):  # as scripted() has it
        mask[row, :length] = (torch.arange(length) + length) % 4 != 0
    assert torch.equal(batch["tool_mask"] * batch["completion_mask"], mask)
    assert (mask.sum(1) < batch["completion_mask"].sum(1)).any()
    for row, trained in zip(batch["returns"], mask.bool(), strict=True):
        expected = [3.0 * 0.5**distance for distance in reversed(range(int(trained.sum())))]
        assert row[trained].tolist() == pytest.approx(expected)
        assert not row[~trained].any()


def test_the_penalty_is_the_log_ratio_of_each_token(make_ppo, lora):
    trainer, _ = returns_of(make_ppo, low_share, peft=lora, beta=0.5, missing_eos_penalty=None)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    seen = []
    trainer._first_pass, kept = lambda *a: seen.append(trainer._passes) or kept(*a), trainer._first_pass
    scored = torch.arange(8) < 4
    trainer._scores = lambda batch, mode: (torch.zeros(8), scored)
    batch = trainer._generate_and_score_completions([{"prompt": row["source"] + " =>"} for row in make_rows(8)])
    (policy, _), (reference, _) = seen[0]
    trained = batch["completion_mask"] * scored.unsqueeze(1)
    kl = (policy - reference) * trained
    assert kl.abs().max() > 0.01
    to_come = kl.flip(1).cumsum(1).flip(1) * trained
    torch.testing.assert_close(batch["returns"], -0.5 * to_come, atol=1e-5, rtol=1e-4)
    metrics = trainer._metrics["train"]
    assert metrics["kl_per_completion"][-1] == pytest.approx(kl.sum().item() / 4, abs=1e-5)
    assert metrics["kl"][-1] == pytest.approx((kl.sum() / trained.sum()).item(), abs=1e-5)


def test_the_critic_has_a_lambda_of_its_own(make_ppo):
    _, batch = returns_of(make_ppo, lambda completions, **columns: [3.0] * len(completions), lam=1.0, lam_critic=0.0)
    assert (batch["returns"] != 0).sum(1).tolist() == [1] * 8


def test_a_value_may_move_by_a_share_of_a_typical_return(make_ppo):
    trainer, batch = returns_of(make_ppo, lambda completions, **columns: [10.0] * len(completions), cliprange_value=0.2)
    assert batch["typical_return"].item() == pytest.approx(10)
    with torch.no_grad():
        trainer.critic.head[2].bias.fill_(5.0)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["value/loss"] == pytest.approx([0.5 * (10 - 2) ** 2])


@pytest.mark.parametrize("critic", ["shared", "copy"])
def test_a_value_knows_the_tokens_before_its_own_and_no_other(make_ppo, critic):
    found = []
    for third in (50, 60):
        trainer, _ = returns_of(make_ppo, low_share, critic=critic)
        with torch.no_grad():
            torch.manual_seed(0)
            trainer.critic.head[2].weight.normal_()
        trainer.rollout_func = lambda prompts, trainer, third=third: {
            "prompt_ids": [[8, 9]] * 8, "completion_ids": [[20, 30, third, 40, 41]] * 8, "logprobs": None,
        }  # fmt: skip
        found.append(trainer._generate_and_score_completions([{"prompt": "a"}] * 8)["old_values"][0])
    assert torch.equal(found[0][:3], found[1][:3])
    assert (found[0][3:] != found[1][3:]).all()
    assert len(set(found[0].tolist())) == 5


def test_a_completion_that_did_not_end_is_penalised(make_ppo):
    _, batch = returns_of(make_ppo, lambda completions, **columns: [2.0] * len(completions), missing_eos_penalty=5.0)
    ended = (batch["completion_ids"] == 1).any(1)
    assert 0 < ended.sum() < 8
    assert batch["returns"][:, 0].tolist() == [2.0 if end else -3.0 for end in ended]


def test_several_rewards_are_weighted_and_one_that_says_nothing_is_left_out(make_ppo):
    rewards = [
        lambda completions, **columns: [1.0] * len(completions),
        lambda completions, **columns: [None if row % 2 else 10.0 for row in range(len(completions))],
    ]
    _, batch = returns_of(make_ppo, rewards, reward_weights=[2.0, 0.5])
    assert batch["returns"][:, 0].tolist() == [7.0, 2.0] * 4


def test_scores_are_divided_by_their_running_deviation(make_ppo):
    scores = iter([[float(row) for row in range(8)], [10.0 * row for row in range(8)]])
    trainer, first = returns_of(make_ppo, lambda completions, **columns: next(scores), scale_scores=True)
    everyone = torch.tensor([*range(8), *range(0, 80, 10)], dtype=torch.float64)
    torch.testing.assert_close(first["returns"][:, 0], (everyone[:8] / everyone[:8].std()).float())
    prompts = [{"prompt": row["source"] + " =>"} for row in make_rows(8)]
    second = trainer._generate_and_score_completions(prompts)
    torch.testing.assert_close(second["returns"][:, 0], (everyone[8:] / everyone.std()).float())


def test_beta_follows_its_target(make_ppo, lora):
    trainer = make_ppo(peft=lora, beta=0.1, kl_target=1e-6, kl_horizon=80, max_steps=5, learning_rate=3e-2)
    trainer.train()
    betas, kl = logged(trainer, "beta"), logged(trainer, "kl_per_completion")
    assert betas[0] == 0.1 and kl[1] != 0
    for step in range(4):
        change = max(-0.2, min(0.2, kl[step] / 1e-6 - 1))
        assert betas[step + 1] == pytest.approx(betas[step] * (1 + change * 8 / 80))


def test_advantages_are_whitened_over_the_rollout(make_ppo):
    trainer, batch = returns_of(make_ppo, low_share)
    trained = batch["advantages"][batch["tool_mask"].bool()]
    assert trained.mean().item() == pytest.approx(0, abs=1e-6)
    assert trained.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert not batch["advantages"][~batch["tool_mask"].bool()].any()
    means = batch["advantages"].sum(1) / batch["tool_mask"].sum(1)
    assert list(trainer._logs["advantages"]) == pytest.approx(means.tolist())


@pytest.mark.parametrize("critic", ["shared", "copy"])
@pytest.mark.parametrize("change", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
                                    {"pad_to_multiple_of": 16}])  # fmt: skip
def test_the_gradients_depend_neither_on_micro_batches_nor_on_padding(make_ppo, change, critic):
    found = []
    for settings in ({}, change):
        trainer = make_ppo(rollout=scripted(), critic=critic, max_grad_norm=0.0, **(all_steps(2) | settings))
        gradients = Gradients(trainer)
        trainer.train()
        found.append(gradients)
    for one, other in ((found[0].policy, found[1].policy), (found[0].critic, found[1].critic)):
        for first, second in zip(one, other, strict=True):
            for name, value in first.items():
                torch.testing.assert_close(value, second[name], atol=2e-6, rtol=2e-3)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_value_loss_is_a_mean_over_the_tokens_of_a_minibatch(make_ppo, accumulation):
    trainer = make_ppo(rollout=scripted(), max_steps=1, per_device_train_batch_size=4, steps_per_generation=2,
                       gradient_accumulation_steps=accumulation)  # fmt: skip
    gradients = Gradients(trainer)
    batches = []
    kept = trainer._compute_loss
    trainer._compute_loss = lambda model, batch: batches.append(batch) or kept(model, batch)
    trainer.train()
    assert len(batches) == accumulation
    returns, mask = (torch.cat([batch[name].flatten() for batch in batches]) for name in ("returns", "tool_mask"))
    tokens = batches[0]["num_items_in_batch"] * accumulation / 2  # of an average minibatch, as in the policy's loss
    # All values are 0, so the slope of the head's last bias is minus the mean return.
    torch.testing.assert_close(gradients.critic[0]["head.2.bias"], -((returns * mask).sum() / tokens).reshape(1))
    losses = [0.5 * ((b["returns"] ** 2) * b["tool_mask"]).sum().item() / b["tool_mask"].sum().item() for b in batches]
    assert logged(trainer, "value/loss")[0] == pytest.approx(sum(losses) / accumulation)


# --- what must not learn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"mask_truncated_completions": True, "rollout": lambda prompts, trainer: {
        "prompt_ids": trainer.processing_class(prompts)["input_ids"], "completion_ids": [[7, 8, 9]] * len(prompts),
        "logprobs": None}},
    {"reward": lambda completions, **columns: [None] * len(completions), "entropy_coef": 0.5},
])  # fmt: skip
@pytest.mark.parametrize("critic", CRITICS)
def test_completions_that_say_nothing_change_nothing(make_ppo, critic, settings, tiny_model_folder, caplog):
    caplog.set_level(logging.ERROR)
    trainer = make_ppo(**settings, beta=0.05, kl_target=1.0, **settings_of(critic, tiny_model_folder))
    policy, values = weights_of(trainer.model), weights_of(trainer.critic)
    trainer.train()
    assert differing(policy, trainer.model) == set()
    assert differing(values, trainer.critic) == set()
    assert trainer.beta == 0.05
    assert not {"kl", "kl_per_completion", "ratio", "value/loss"} & set().union(*trainer.state.log_history)


def test_an_unscored_completion_is_as_if_not_there(make_ppo):
    """Its tokens neither teach nor dilute: four scored completions and four without are worth the four."""
    runs = []
    for size in (4, 8):
        trainer = make_ppo(
            lambda prompts, completions, completion_ids, **columns: [
                low_share([ids])[0] if row < 4 else None for row, ids in enumerate(completion_ids)
            ],
            rollout=scripted(), per_device_train_batch_size=size, max_grad_norm=0.0, shuffle_dataset=False,
            entropy_coef=0.5, **all_steps(2),
        )  # fmt: skip
        gradients = Gradients(trainer)
        trainer.train()
        runs.append((trainer, gradients))
    (four, first), (eight, second) = runs
    for one, other in zip(first.policy + first.critic, second.policy + second.critic, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], atol=5e-6, rtol=2e-3)
    assert logged(four, "clip_ratio/region_mean")[1] > 0.1
    for name in ("loss", "entropy", "clip_ratio/region_mean", "ratio", "value/loss", "approx_kl"):
        assert logged(four, name) == pytest.approx(logged(eight, name), rel=1e-3, abs=1e-6), name


# --- updates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (1, 3), (4, 1), (2, 3)])
def test_minibatches_and_epochs_are_optimiser_steps(make_ppo, minibatches, epochs):
    rolled = []
    trainer = make_ppo(
        rollout=lambda prompts, trainer: rolled.append(trainer.state.global_step) or scripted()(prompts, trainer),
        per_device_train_batch_size=2, gradient_accumulation_steps=2, steps_per_generation=2 * minibatches,
        num_iterations=epochs, max_steps=2 * minibatches * epochs + 1,
    )  # fmt: skip
    gradients = Gradients(trainer)
    trainer.train()
    cycle = minibatches * epochs
    assert trainer.args.optimizer_steps_per_rollout == cycle
    assert rolled == [0, cycle, 2 * cycle]
    assert len(gradients.policy) == len(gradients.critic) == 2 * cycle + 1


def test_updates_are_left_out_once_the_policy_is_too_far_and_start_afresh_with_the_next_rollout(make_ppo):
    trainer = make_ppo(learning_rate=3e-2, target_kl=0.01, num_iterations=4, max_steps=8)
    moved = []

    class Watch(Gradients):
        def on_pre_optimizer_step(self, *args, **kwargs):
            self.before = weights_of(trainer.model), weights_of(trainer.critic)

        def on_optimizer_step(self, *args, **kwargs):
            moved.append(tuple(bool(differing(before, module)) for before, module in
                               zip(self.before, (trainer.model, trainer.critic), strict=True)))  # fmt: skip

    Watch(trainer)
    trainer.train()
    drift, left_out = logged(trainer, "approx_kl"), logged(trainer, "updates_left_out")
    assert drift[0] == drift[4] == 0 and drift[1] > 0.01
    assert left_out == [0, 1, 1, 1, 0, 1, 1, 1]
    assert moved == [(not left, not left) for left in left_out]


def test_approximate_kl_and_ratio_leave_out_masked_tokens(make_ppo):
    """Padding would pull both towards their values at the start."""
    found = []
    for multiple in (None, 32):
        trainer = make_ppo(rollout=scripted(True), pad_to_multiple_of=multiple, learning_rate=1e-2, **all_steps(3))
        trainer.train()
        found.append([logged(trainer, name)[1:] for name in ("approx_kl", "ratio", "value/loss", "entropy")])
    assert found[0][0][-1] > 1e-3
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-2)


def test_a_batch_without_trained_tokens_counts_in_no_mean(make_ppo):
    trainer = make_ppo(
        rollout=lambda prompts, trainer: {
            "prompt_ids": trainer.processing_class(prompts)["input_ids"], "logprobs": None,
            "completion_ids": [[7, 8, 1] if row % 2 else [7, 8, 9] for row in range(len(prompts))],
        },
        mask_truncated_completions=True, per_device_train_batch_size=1, gradient_accumulation_steps=8, max_steps=1,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "ratio") == [pytest.approx(1, abs=1e-5)]
    assert logged(trainer, "value/loss") == [pytest.approx(0.5)]  # three low tokens are worth 1, and all values are 0


def test_the_two_estimates_of_kl_are_those_of_the_golden_vectors(make_ppo, monkeypatch):
    """k1 towards the reference as a reward, k3 towards the sampling policy as the drift."""
    ones, now, then = torch.ones(1, 3), torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.2, -1.5, -0.5]])
    batch = {"completion_ids": ones.long(), "completion_mask": ones, "ref_per_token_logps": then}
    trainer = make_ppo()
    trainer.model.train()
    trainer.beta, trainer._rewards_per_func = 1.0, torch.zeros(1, 1)
    trainer._logs["advantages"].append(0.0)
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda self, inputs: (
        self._passes.append((now, torch.zeros(1, 3))) or batch))  # fmt: skip
    batch = trainer._generate_and_score_completions([])
    torch.testing.assert_close(batch["returns"], torch.tensor([[0.3, 0.5, 0.0]]))  # what is to come of -0.2, 0.5, 0
    assert trainer._metrics["train"]["kl"] == [pytest.approx(-0.1)]
    assert trainer._metrics["train"]["kl_per_completion"] == [pytest.approx(-0.3)]

    values = torch.zeros(1, 3, requires_grad=True)
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda self, model, inputs: (
        self._passes.append((then, values)) or torch.zeros(())))  # fmt: skip
    trainer._compute_loss(trainer.model, batch)
    assert trainer._drift.tolist() == pytest.approx([0.0187308 + 0.1487212, 3])


def test_explained_variance_is_the_share_of_the_returns_that_the_values_know(make_ppo):
    trainer = make_ppo()
    returns, values = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[1.0, 2.0, 2.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    trainer._log_explained("train", returns - values, returns, mask)  # variances 2/9 and 2/3
    trainer._log_explained("train", returns - values, torch.ones(1, 4), mask)
    assert trainer._metrics["train"]["value/explained_variance"] == [pytest.approx(2 / 3)]


def test_an_error_in_a_pass_leaves_nothing_that_listens(make_ppo):
    trainer = make_ppo()
    whole = trainer.model.forward

    def fail(*args, labels=None, **inputs):
        if labels is not None:
            raise RuntimeError("out of memory")
        return whole(*args, **inputs)

    trainer.model.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert trainer._heard is None and trainer.num_iterations == 1


def test_evaluation_changes_nothing_and_has_its_own_numbers(make_ppo):
    trainer = make_ppo(beta=0.05, scale_scores=True, kl_target=1.0, eval_rows=6, per_device_eval_batch_size=3,
                       eval_strategy="steps", eval_steps=1, num_iterations=2, target_kl=1e-9, max_steps=2)  # fmt: skip
    trainer.train()
    kept = trainer.beta, trainer._counted_scores.clone(), weights_of(trainer.model), weights_of(trainer.critic)
    assert logged(trainer, "updates_left_out") == [0, 1]
    found = trainer.evaluate()
    assert trainer._left_out
    assert trainer.beta == kept[0] and torch.equal(trainer._counted_scores, kept[1]) and trainer._counted_scores[0] == 8
    assert not differing(kept[2], trainer.model) and not differing(kept[3], trainer.critic)
    assert found["eval_ratio"] == pytest.approx(1, abs=1e-5)
    assert {"eval_kl", "eval_value/loss", "eval_value/explained_variance", "eval_reward"} <= set(found)
    assert all(parameter.grad is None for parameter in trainer.critic.parameters())


def test_the_table_of_completions_has_the_advantages_of_a_batch_larger_than_itself(make_ppo):
    trainer = make_ppo(per_device_train_batch_size=4, per_device_eval_batch_size=6, eval_rows=6, eval_strategy="steps")
    trainer.model.eval()
    batch = trainer._generate_and_score_completions([{"prompt": row["source"] + " =>"} for row in make_rows(6)])
    means = batch["advantages"].sum(1) / batch["tool_mask"].sum(1)
    assert list(trainer._logs["advantages"]) == pytest.approx(means[2:].tolist())


def test_a_person_can_watch_it(make_ppo):
    trainer = make_ppo(beta=0.05, num_iterations=2, num_generations=4)
    trainer.train()
    shown = set().union(*trainer.state.log_history)
    assert {
        "value/explained_variance", "value/loss", "ratio", "approx_kl", "clip_ratio/region_mean", "kl", "reward",
        "kl_per_completion", "entropy", "rewards/low_share/mean", "completions/clipped_ratio", "updates_left_out",
    } <= shown  # fmt: skip
    assert "frac_reward_zero_std" not in shown
    assert trainer._passes == [] and trainer._heard is None  # no graph is kept


# --- kinds of models, prompts and precisions -----------------------------------------------------------------------


def chats(count: int = 32):
    return [[{"role": "user", "content": row["source"]}] for row in make_rows(count)]


def chat_low_share(completions, completion_ids, **columns):
    assert completions[0][0]["role"] == "assistant"
    return low_share(completion_ids)


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts": chats(), "reward": chat_low_share, "beta": 0.05},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "critic": "copy"},
        {"gradient_checkpointing": True, "critic_detach": False},
        {"bf16": True},
        {"bf16": True, "critic": "copy", "beta": 0.05},
        {"model_init_kwargs": {"dtype": "bfloat16"}, "critic": "copy"},
        {"num_generations": 4, "beta": 0.05},
        {"temperature": 0.7, "top_entropy_quantile": 0.5},
        {"log_completions": True},
    ],
    ids=" ".join,
)
def test_it_trains(make_ppo, settings):
    trainer = make_ppo(num_iterations=2, max_steps=4, **settings)
    policy, values = weights_of(trainer.model), weights_of(trainer.critic)
    gradients = Gradients(trainer)
    trainer.train()
    assert differing(policy, trainer.model) and differing(values, trainer.critic) == set(gradients.critic[0])
    assert {value.dtype for value in trainer.critic.trained().values()} == {torch.float32}
    assert logged(trainer, "ratio")[0] == pytest.approx(1, abs=1e-4)
    assert all(torch.isfinite(value).all() for step in gradients.policy for value in step.values())


def test_checkpointed_gradients_are_the_same(make_ppo):
    found = []
    for checkpointing in (False, True):
        trainer = make_ppo(
            rollout=scripted(), critic_detach=False, gradient_checkpointing=checkpointing, **all_steps(2)
        )
        gradients = Gradients(trainer)
        trainer.train()
        found.append(gradients)
    for first, second in zip(found[0].policy + found[0].critic, found[1].policy + found[1].critic, strict=True):
        for name, value in first.items():
            torch.testing.assert_close(value, second[name])


@pytest.mark.parametrize("critic", ["shared", "copy"])
def test_four_bits_with_an_adapter(make_ppo, lora, tiny_model_folder, critic):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        tiny_model_folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32
    )
    trainer = make_ppo(model=model, peft=lora, critic=critic, beta=0.05, max_steps=3, learning_rate=1e-2)
    before, values = weights_of(trainer.model), weights_of(trainer.critic)
    assert any(value.dtype == torch.uint8 for value in before.values())
    trainer.train()
    changed = differing(before, trainer.model)
    assert changed and all("lora" in name for name in changed)
    assert differing(values, trainer.critic) == set(trainer.critic.trained())
    assert logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-6)


def test_completions_of_vllm_are_corrected_for_what_its_sampler_thought(make_ppo):
    """All but vLLM itself: TRL's path with the sampler's log-probabilities, here 0.5 above the policy's own."""
    from types import SimpleNamespace

    def rollout(prompts, trainer):
        out = scripted()(prompts, trainer)
        out["logprobs"] = []
        for prompt, completion in zip(out["prompt_ids"], out["completion_ids"], strict=True):
            ids, size = torch.tensor([prompt + completion]), len(completion)
            logps = trainer.model(ids, labels=ids, fused_lm_head=True).log_probs[0, -size:]
            out["logprobs"].append((logps + 0.5).tolist())
        return out

    runs = []
    for sampler in (False, True):
        trainer = make_ppo(rollout=rollout if sampler else scripted(), max_grad_norm=0.0, optim="sgd",
                           vllm_importance_sampling_mode="token_truncate", beta=0.05, max_steps=1)  # fmt: skip
        trainer.use_vllm = sampler
        trainer._last_loaded_step, trainer.vllm_generation = -1, SimpleNamespace(sync_weights=lambda: None)
        gradients = Gradients(trainer)
        trainer.train()
        runs.append((trainer, gradients))
    (plain, expected), (vllm, found) = runs
    assert logged(vllm, "ratio") == [pytest.approx(1, abs=1e-4)]
    assert logged(vllm, "sampling/sampling_logp_difference/mean") == [pytest.approx(0.5, abs=1e-4)]
    for name, value in expected.policy[0].items():
        torch.testing.assert_close(found.policy[0][name], math.exp(-0.5) * value, atol=2e-6, rtol=1e-3)
    for name, value in expected.critic[0].items():
        torch.testing.assert_close(found.critic[0][name], value, atol=2e-6, rtol=1e-3)
