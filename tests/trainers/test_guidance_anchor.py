"""The anchor: the references' negative log-likelihood beside the policy's loss."""

import guidance_fixture
import pytest
import torch
from guidance_fixture import LONGEST, Reward, author, says
from ppo_fixture import Gradients, logged

make = guidance_fixture.make
KINDS = ["grpo", "rloo", "ppo"]
WORDS = " cat dog sat bird ran flew red big"


def rows_with_references():
    """32 prompts with one reference each, of one to nine words: the longest are cut."""
    rows = [{"prompt": f"the {place} tree =>"} for place in range(32)]
    words = [" " + word for word in WORDS.split()] * 2
    return [row | {"references": ["".join(words[place % 7 :][: 1 + place % 9])]} for place, row in enumerate(rows)]


def mean_loss(model, tokenizer, prompts) -> torch.Tensor:
    """Of the references of these prompts, a mean over all their tokens, each row on its own."""
    answers = {row["prompt"]: row["references"][0] for row in rows_with_references()}
    parts = []
    for prompt in prompts:
        before = tokenizer(prompt)["input_ids"]
        ids = (tokenizer(answers[prompt])["input_ids"] + [tokenizer.eos_token_id])[:LONGEST]
        logits = model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
        parts.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none"))
    return torch.cat(parts).mean()


def gradients_of(make, tokenizer, kind, anchor, **settings):
    trainer = make(kind, {"mode": "drpo", "anchor": anchor, "probability": 0.5}, rows=rows_with_references(),
                   reward=Reward(lambda ids: sum(ids) % 7), model=author(tokenizer, WORDS, ends=0.1),
                   optim="sgd", max_grad_norm=0.0, learning_rate=0.0, **settings)  # fmt: skip
    gradients = Gradients(trainer)
    trainer.train()
    return trainer, gradients.policy


TWO = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("grpo", {}), ("grpo", TWO), ("rloo", TWO), ("ppo", TWO), pytest.param("rloo", {}, marks=slow),
     pytest.param("ppo", {}, marks=slow)],
    ids=str,
)  # fmt: skip
def test_it_adds_its_share_of_the_references_gradient(make, tokenizer, kind, settings):
    """Two optimiser steps, each with a roll-out of 8; the references are of unequal lengths."""
    _, without = gradients_of(make, tokenizer, kind, 0.0, **settings)
    trainer, found = gradients_of(make, tokenizer, kind, 0.1, **settings)
    for step in range(2):
        prompts = trainer.reward_funcs[0].given[step]["prompts"]
        loss = mean_loss(trainer.model, tokenizer, prompts)
        if not settings:
            assert logged(trainer, "anchor/loss")[step] == pytest.approx(loss.item(), abs=1e-4)
        names = [name for name, _ in trainer.model.named_parameters()]
        expected = torch.autograd.grad(0.1 * loss, list(trainer.model.parameters()))
        assert max(value.abs().max() for value in expected) > 1e-3
        for name, value in zip(names, expected, strict=True):
            torch.testing.assert_close(found[step][name] - without[step][name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_of_several_steps_has_it_whole_by_their_end(make, tokenizer, kind):
    """Two optimiser steps share out one roll-out: together they take twice the mean, as two steps should."""
    settings = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    _, without = gradients_of(make, tokenizer, kind, 0.0, **settings)
    trainer, found = gradients_of(make, tokenizer, kind, 0.1, **settings)
    assert len(trainer.reward_funcs[0].given) == 1 and len(found) == 2
    loss = mean_loss(trainer.model, tokenizer, trainer.reward_funcs[0].given[0]["prompts"])
    expected = torch.autograd.grad(0.1 * loss, list(trainer.model.parameters()))
    for (name, _), value in zip(trainer.model.named_parameters(), expected, strict=True):
        both = sum(with_it[name] - bare[name] for with_it, bare in zip(found, without, strict=True))
        torch.testing.assert_close(both, 2 * value, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ppo", *(pytest.param(kind, marks=slow) for kind in ("grpo", "rloo"))])
def test_it_is_learnt_where_the_reward_says_nothing(make, tokenizer, kind):
    trainer = make(kind, {"mode": "drpo", "anchor": 1.0}, rows=rows_with_references(), reward=Reward(lambda ids: 0.0),
                   model=author(tokenizer, WORDS, ends=0.01), learning_rate=5e-2, max_steps=16)  # fmt: skip
    prompts = [row["prompt"] for row in rows_with_references()]
    before = mean_loss(trainer.model, tokenizer, prompts).item()
    trainer.train()
    assert mean_loss(trainer.model, tokenizer, prompts) < before - 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_any_mode_and_guide_can_have_it(make, tokenizer, kind):
    settings = {"mode": "aggrevated", "guide": "a.module:function", "anchor": 0.1}
    trainer = make(kind, settings, guide=says(" cat"), rows=rows_with_references())
    trainer.train()
    assert len(logged(trainer, "anchor/loss")) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_it_references_are_not_needed_and_nothing_is_logged(make, tokenizer, kind):
    rows = [{"prompt": row["prompt"]} for row in rows_with_references()]
    settings = {"mode": "ppo++", "guide": "a.module:function"}
    trainer = make(kind, settings, guide=says(" cat dog"), rows=rows)
    trainer.train()
    assert logged(trainer, "anchor/loss") == []
    with pytest.raises(ValueError, match="Guidance: a row has no reference: each needs some in the column"):
        make(kind, settings | {"anchor": 0.1}, guide=says(" cat dog"), rows=rows).train()


def test_each_row_is_anchored_to_one_of_its_references(make, tokenizer):
    """The draw is one of its own: it is not the reference that the roll-out begins with."""
    rows = [row | {"references": [" cat", " dog"]} for row in rows_with_references()]
    trainer = make("ppo", {"mode": "drpo", "anchor": 0.1}, rows=rows, max_completion_length=2)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    anchors = [[token for token in ids if token != -100] for ids in batch["anchor_labels"].tolist()]
    cat, dog, end = *tokenizer(" cat dog")["input_ids"], tokenizer.eos_token_id
    begun = [ids[-1] for ids in batch["prompt_ids"].tolist()]
    taken = [ids[0] for ids in anchors]
    assert {tuple(ids) for ids in anchors} == {(cat, end), (dog, end)} and set(begun) == {cat, dog}
    assert 8 < sum(one == other for one, other in zip(begun, taken, strict=True)) < 24
    assert batch["anchor_tokens"] == 64
    again = make("ppo", {"mode": "drpo", "anchor": 0.1}, rows=rows, max_completion_length=2, seed=7)
    again.model.train()
    assert not torch.equal(again._generate_and_score_completions(rows)["anchor_labels"], batch["anchor_labels"])
