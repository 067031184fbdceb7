"""What of a guided roll-out reaches the loss, the critic, the numbers and the table of completions."""

import math

import guidance_fixture
import pandas
import pytest
import torch
from guidance_fixture import GUIDE, LEARNER, Reward, author, by, make_guided, rows_of, says, written
from ppo_fixture import Gradients, logged, weights_of

make, guided_by = guidance_fixture.make, guidance_fixture.guided_by
KINDS = ["grpo", "rloo", "ppo"]
SGD = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "max_steps": 1}


def on_average(numbers):
    return sum(numbers) / len(numbers)


# --- gradients -------------------------------------------------------------------------------------------------------


def first_gradient(trainer):
    gradients = Gradients(trainer)
    trainer.train()
    return gradients


@pytest.mark.parametrize("kind", KINDS)
def test_another_end_of_the_same_worth_gives_the_same_gradient(make, tokenizer, kind):
    """The words of the learner count, whatever stands after them."""
    found = []
    for text in (" cat dog bird", " big"):
        own = by(tokenizer, LEARNER)
        reward = Reward(lambda ids, own=own: sum(token for token in ids if token in own) % 7)
        settings = {"mode": "aggrevated", "guide": "a.module:function"}
        trainer = make(kind, settings, guide=says(text), reward=reward, beta=0.0, **SGD)
        found.append((first_gradient(trainer), trainer))
    (one, first), (other, second) = found
    assert {ids[-2] for ids in first.reward_funcs[0].given[0]["completion_ids"]} != {
        ids[-2] for ids in second.reward_funcs[0].given[0]["completion_ids"]
    }
    assert max(gradient.abs().max() for gradient in one.policy[0].values()) > 1e-3
    assert all(torch.equal(gradient, other.policy[0][name]) for name, gradient in one.policy[0].items())
    if kind == "ppo":
        assert all(torch.equal(gradient, other.critic[0][name]) for name, gradient in one.critic[0].items()
                   if gradient is not None)  # fmt: skip


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_words_of_the_learner_become_more_or_less_likely(guided_by, tokenizer, kind, mode):
    """A step of the head's first column moves what was trained: the words of the learner against one another."""
    reward = Reward(lambda ids: sum(ids) % 11)
    trainer = guided_by("model", kind, ends=0.0, guidance={"mode": mode}, reward=reward, **SGD)
    gradients = first_gradient(trainer)
    column = gradients.policy[0]["lm_head.weight"][:, 0]
    assert {token for token in range(384) if abs(column[token]) > 1e-8} == by(tokenizer, LEARNER)


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_divergence_are_those_of_the_learners_tokens(guided_by, tokenizer, kind, mode):
    """Of two words, one had the chance 1/2 and has 4/5; to the learner the guide's words are all but impossible."""
    one, other = tokenizer(" sat ran")["input_ids"]
    trainer = guided_by("full", kind, guidance={"mode": mode}, num_generations=4, max_steps=1,
                        per_device_train_batch_size=32, learning_rate=0.0)  # fmt: skip
    for model, chance in ((trainer.ref_model, 0.5), (trainer.model, 0.8)):
        column = model.get_output_embeddings().weight.data[:, 0].fill_(-9.0)
        column[one], column[other] = (math.log(part) / 32**0.5 for part in (chance, 1 - chance))
    if mode == "aggrevated":
        trainer.guide = author(tokenizer, GUIDE)
    else:
        trainer.guide = author(tokenizer, GUIDE, ends=0.1)
    rows = {}
    kept = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: rows.setdefault("batch", kept(inputs))
    trainer.train()
    own = rows["batch"]["completion_ids"][rows["batch"]["completion_mask"].bool()]
    share = (own == one).double().mean().item()
    assert set(own.tolist()) == {one, other} and len(own) > 30
    logs = {one: math.log(0.8 / 0.5), other: math.log(0.2 / 0.5)}
    k1 = share * logs[one] + (1 - share) * logs[other]
    k3 = sum(part * (math.exp(-logs[token]) + logs[token] - 1) for token, part in ((one, share), (other, 1 - share)))
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert logged(trainer, "entropy") == pytest.approx([entropy], abs=2e-3)
    assert logged(trainer, "kl") == pytest.approx([k3 if kind == "grpo" else k1], abs=5e-3)


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
def test_the_critic_sees_tokens_of_the_learner_with_the_score_at_the_last(guided_by, mode):
    reward = Reward(lambda ids: 3.0)
    trainer = guided_by("model", "ppo", ends=0.2, guidance={"mode": mode}, reward=reward, lam=0.0,
                        whiten_advantages=False)  # fmt: skip
    rows, batch = written(trainer, rows_of(24))
    assert any(row.prefix or row.ending for row in rows) and len({len(row.own) for row in rows}) > 2
    for place, row in enumerate(rows):
        rest = [0.0] * (batch["returns"].size(1) - len(row.own))
        assert batch["advantages"][place].tolist() == [0.0] * (len(row.own) - 1) + [3.0] + rest
        assert batch["returns"][place].tolist() == [3.0] * len(row.own) + rest
    assert batch["num_items_in_batch"] == sum(len(row.own) for row in rows)
    assert batch["old_values"].shape == batch["completion_ids"].shape


# --- without guidance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("grpo", "ppo++"), ("rloo", "aggrevated"), ("ppo", "ppo++")),
        *(pytest.param(kind, mode, marks=pytest.mark.slow)
          for kind, mode in (("grpo", "aggrevated"), ("rloo", "ppo++"), ("ppo", "aggrevated"))),
    ],
)  # fmt: skip
def test_a_probability_of_zero_is_the_trainer_without_a_guide(tokenizer, tmp_path, kind, mode):
    runs = []
    for plain in (True, False):
        guide = {} if plain else {"guidance": {"mode": mode, "guide": "x", "probability": 0.0},
                                  "guide": author(tokenizer, GUIDE)}  # fmt: skip
        reward = Reward(lambda ids: sum(ids) % 5)
        trainer = make_guided(kind, tokenizer, tmp_path / "run", plain=plain, reward=reward, max_steps=4,
                              model=author(tokenizer, ends=0.2), learning_rate=1e-2, eval_rows=rows_of(8),
                              eval_strategy="steps", eval_steps=2, **guide)  # fmt: skip
        trainer.train()
        runs.append(trainer)
    plain, trainer = runs
    assert all(torch.equal(value, weights_of(trainer.model)[name]) for name, value in weights_of(plain.model).items())
    for one, other in zip(plain.state.log_history, trainer.state.log_history, strict=True):
        same = {name: value for name, value in one.items() if "time" not in name and "per_second" not in name}
        assert same == {name: other[name] for name in same}
        assert not {"guidance/reward_guided", "guidance/prefix_length"} & set(other)
    assert logged(trainer, "guidance/share") == [0.0] * 4 and min(logged(plain, "grad_norm")) > 1e-2
    assert plain.reward_funcs[0].given == trainer.reward_funcs[0].given


@pytest.mark.parametrize("mode", ["drpo", "aggrevated"])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_has_no_guide_and_no_anchor(make, tokenizer, kind, mode):
    guide = {} if mode == "drpo" else {"guide": "a.module:function"}
    asked = says(GUIDE)
    trainer = make(kind, {"mode": mode, "anchor": 0.5} | guide, guide=asked if guide else None, eval_rows=rows_of(8),
                   per_device_eval_batch_size=8, num_generations_eval=2)  # fmt: skip
    found = trainer.evaluate()
    given = trainer.reward_funcs[0].given
    words = {token for call in given for ids in call["completion_ids"] for token in ids}
    assert words == by(tokenizer, LEARNER) and asked.asked == []
    assert not any("guidance" in name or "anchor" in name for name in found)
    trainer.train()
    words = {token for call in trainer.reward_funcs[0].given for ids in call["completion_ids"] for token in ids}
    assert words & by(tokenizer, GUIDE)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_a_rollout_are_logged(guided_by, tokenizer, kind, mode):
    end, guide = tokenizer.eos_token_id, by(tokenizer, GUIDE)
    settings = {"mode": mode, "probability": 0.5, "anneal": [0.0, 1.0]}
    trainer = guided_by("model", kind, ends=0.1, guide_ends=0.3, guidance=settings, max_steps=4,
                        per_device_train_batch_size=32)  # fmt: skip
    trainer.train()
    assert logged(trainer, "guidance/probability") == [0.5, 0.375, 0.25, 0.125]
    for step, given in enumerate(trainer.reward_funcs[0].given):
        completions = given["completion_ids"]
        part = [[token in guide for token in ids] for ids in completions]
        draws = [trainer.guidance.draw(trainer.args.seed, f"{step}/0", place // (1 if kind == "ppo" else 4), step / 4)
                 for place in range(32)]  # fmt: skip
        ended = [ids[-1] == end for ids in completions]
        assert logged(trainer, "completions/clipped_ratio")[step] == pytest.approx(1 - on_average(ended))
        assert logged(trainer, "reward")[step] == pytest.approx(on_average([len(ids) for ids in completions]))
        if mode == "ppo++":  # what the guide wrote is seen: its words, and never an end
            guided = [any(row) for row in part]
            assert all(draw.part != "alone" for draw, is_guided in zip(draws, guided, strict=True) if is_guided)
            assert logged(trainer, "guidance/share")[step] == pytest.approx(on_average(guided))
            rewards = {True: [], False: []}
            for is_guided, ids in zip(guided, completions, strict=True):
                rewards[is_guided].append(len(ids))
            for name, expected in (
                ("reward_guided", rewards[True]),
                ("reward_unguided", rewards[False]),
                ("prefix_length", [sum(row) for row in part if any(row)]),
            ):
                found = [entry.get(f"guidance/{name}") for entry in trainer.state.log_history if "loss" in entry]
                assert found[step] == (pytest.approx(on_average(expected)) if expected else None), name
    shares = logged(trainer, "guidance/share")
    assert 0 < max(shares) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_guides_end_is_an_end_and_its_switch_a_length(guided_by, kind):
    trainer = guided_by("text", kind, ends=0.0, guidance={"mode": "aggrevated"}, max_completion_length=20, max_steps=1)
    trainer.train()
    assert logged(trainer, "completions/clipped_ratio") == [
        pytest.approx(on_average([ids[-1] != 1 for ids in trainer.reward_funcs[0].given[0]["completion_ids"]]))
    ]
    assert logged(trainer, "completions/clipped_ratio")[0] < 1
    [length] = logged(trainer, "guidance/prefix_length")
    draws = [trainer.guidance.draw(trainer.args.seed, "0/0", place // (1 if kind == "ppo" else 4), 0.0).switch(20)
             for place in range(8)]  # fmt: skip
    assert length == pytest.approx(on_average(draws))


def test_a_row_that_no_reward_scores_is_in_no_mean(make, tokenizer):
    def reward(completion_ids, **columns):
        return [None if place == 0 else float(place) for place in range(len(completion_ids))]

    trainer = make("ppo", reward=reward, model=author(tokenizer), max_steps=1)
    trainer.train()
    assert logged(trainer, "guidance/reward_guided") == [4.0]


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_count_as_they_are_weighted(make, kind):
    trainer = make(kind, reward=[Reward(lambda ids: 1.0), Reward(lambda ids: 10.0)], reward_weights=[2.0, 0.5],
                   max_steps=1)  # fmt: skip
    trainer.train()
    assert logged(trainer, "guidance/reward_guided") == [7.0]


# --- the table of completions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_table_shows_the_whole_and_marks_the_guides_part(guided_by, tokenizer, tmp_path, kind, mode):
    trainer = guided_by("model", kind, guidance={"mode": mode, "probability": 0.6}, max_steps=1, log_completions=True,
                        num_completions_to_print=0, per_device_train_batch_size=32)  # fmt: skip
    trainer.train()
    table = pandas.read_parquet(tmp_path / "run" / "completions" / "completions_00001.parquet")
    given, words = trainer.reward_funcs[0].given[0], GUIDE.split()
    assert list(table["completion"]) == given["completions"] and list(table["prompt"]) == given["prompts"]
    assert 0 < sum(table["guided"]) < len(table)
    for whole, marked, is_guided in zip(table["completion"], table["marked"], table["guided"], strict=True):
        assert marked.replace("[[", "").replace("]]", "") == whole
        inside = marked[marked.find("[[") + 2 : marked.find("]]")] if "[[" in marked else ""
        assert inside.split() == [word for word in whole.split() if word in words]
        assert is_guided or not inside
        if inside:
            assert marked.startswith("[[") if mode == "ppo++" else marked.endswith("]]")


def test_rloo_keeps_the_same_columns(guided_by):
    trainer = guided_by("model", "rloo", max_steps=1)
    trainer.train()
    extra = trainer._logs["extra"]
    assert list(extra["guided"]) == [True] * 8
    assert all(marked.startswith("[[ ") and "]] " in marked for marked in extra["marked"])
