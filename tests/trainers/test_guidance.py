"""Roll-outs with a guide: who writes what, what of it is trained, and what the rewards and the logs say of it."""

import copy

import guidance_fixture
import pytest
from guidance_fixture import GUIDE, LEARNER, LONGEST, adapter_settings, author, by, rows_of, says, written
from peft import get_peft_model

from lastmile_trl.trainers.guidance_config import ROLL_IN

make, guided_by = guidance_fixture.make, guidance_fixture.guided_by
KINDS = ["grpo", "rloo", "ppo"]
SORTS = ["references", "model", "adapter", "adapter that goes on", "full", "text"]  # of guides


def groups(rows):
    return [rows[start : start + 4] for start in range(0, len(rows), 4)]


# --- who writes what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sort", SORTS)
def test_the_guide_begins_and_only_what_the_learner_adds_is_trained(guided_by, tokenizer, sort, kind):
    rows, _ = written(guided_by(sort, kind), rows_of(6, 4))
    for row in rows:
        assert row.prefix and set(row.prefix) <= by(tokenizer, GUIDE)
        assert row.own and set(row.own) <= by(tokenizer, LEARNER) | {tokenizer.eos_token_id}
        assert row.ending == []
    shared = [len({tuple(row.prefix) for row in group}) == 1 for group in groups(rows)]
    assert all(shared) if kind != "ppo" else not all(shared)
    assert len({tuple(row.prefix) for row in rows}) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sort", SORTS[1:])
def test_the_learner_begins_and_the_guide_goes_on(guided_by, tokenizer, sort, kind):
    """The learner never ends here, so every text of its own is as long as it may be."""
    rows, _ = written(guided_by(sort, kind, ends=0.0, guidance={"mode": "aggrevated"}), rows_of(6, 4))
    for row in rows:
        assert set(row.prefix + row.own) <= by(tokenizer, LEARNER)
        assert row.ending and set(row.ending) <= by(tokenizer, GUIDE) | {tokenizer.eos_token_id}
        assert 1 <= row.switch <= LONGEST - 1
        assert len(row.own) == (row.switch if kind == "ppo" else 1)
    shared = [len({tuple(row.prefix) for row in group}) == 1 for group in groups(rows)]
    assert all(shared)
    assert (len({row.switch for row in rows[:4]}) > 1) == (kind == "ppo")
    assert len({tuple(row.own) for row in rows}) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_can_be_shared_or_not_where_there_is_a_critic(guided_by, kind):
    rows, _ = written(guided_by("model", kind, guidance={"prefix_per": "group"}, num_generations=4), rows_of(6, 4))
    assert all(len({tuple(row.prefix) for row in group}) == 1 for group in groups(rows))


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
def test_the_switch_is_wherever_it_can_be(guided_by, mode):
    rows, _ = written(guided_by("text", ends=0.0, guidance={"mode": mode}), rows_of(96))
    assert {row.switch for row in rows} == set(range(1, LONGEST))


@pytest.mark.parametrize(("kind", "prefix_per"), [("grpo", None), ("rloo", None), ("ppo", "group"), ("ppo", None)])
def test_so_many_tokens_before_the_guide_are_trained(guided_by, kind, prefix_per):
    settings = {"mode": "aggrevated", "span": 3, "prefix_per": prefix_per}
    rows, _ = written(guided_by("model", kind, ends=0.0, guidance=settings, num_generations=4), rows_of(8, 4))
    assert len({row.switch for row in rows}) > 2
    for row in rows:
        assert len(row.own) == min(3, row.switch) and len(row.prefix) == max(0, row.switch - 3)
    shared = [len({tuple(row.prefix) for row in group}) == 1 for group in groups(rows)]
    assert all(shared) == (prefix_per == "group" or kind != "ppo")


def test_a_group_with_a_critic_trains_one_token_as_without(guided_by):
    settings = {"mode": "aggrevated", "prefix_per": "group"}
    rows, _ = written(guided_by("model", ends=0.0, guidance=settings, num_generations=4), rows_of(4, 4))
    assert {len(row.own) for row in rows} == {1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["lols", "d2lols"])
def test_a_rollout_of_lols_has_the_part_that_is_drawn_for_it(guided_by, tokenizer, mode, kind):
    chance = {"mixture": 0.5} if mode == "lols" else {"switch": 0.5}
    trainer = guided_by("model", kind, ends=0.0, guidance={"mode": mode} | chance, max_steps=6)
    trainer.train()
    parts = []
    for given in trainer.reward_funcs[0].given:
        [by_guide] = {ids[0] in by(tokenizer, GUIDE) for ids in given["completion_ids"]}
        parts.append(by_guide)
    drawn = [trainer.guidance.part_at(trainer.args.seed, f"{step}/0", step / 6) == ROLL_IN for step in range(6)]
    assert parts == drawn and len(set(parts)) == 2
    assert mode == "lols" or parts == [False] * 3 + [True] * 3


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_every_rollout_has_draws_of_its_own(guided_by, tokenizer, kind):
    """Two roll-outs an optimiser step, whose switches are those of the draws of their step, number and unit."""
    trainer = guided_by("text", kind, ends=0.0, gradient_accumulation_steps=2, steps_per_generation=1)
    trainer.train()
    for key, given in zip(["0/0", "0/1", "1/0", "1/1"], trainer.reward_funcs[0].given, strict=True):
        found = [sum(token in by(tokenizer, GUIDE) for token in ids) for ids in given["completion_ids"]]
        draws = [trainer.guidance.draw(trainer.args.seed, key, place // 4, 0.0) for place in range(8)]
        assert found == [draw.switch(LONGEST) for draw in draws]
    found = [tuple(map(tuple, given["completion_ids"])) for given in trainer.reward_funcs[0].given]
    assert len(set(found)) == 4


def test_each_row_takes_one_of_its_references(make, tokenizer):
    rows = [row | {"references": [" cat cat cat", " dog dog dog"]} for row in rows_of(40)]
    trainer = make(model=author(tokenizer))
    found, _ = written(trainer, rows)
    draws = [trainer.guidance.draw(trainer.args.seed, "0/0", place, 0.0) for place in range(40)]
    words = [int(draw.reference * 2) for draw in draws]
    assert [row.shown.split()[0] for row in found] == [("cat", "dog")[word] for word in words]
    assert set(words) == {0, 1}


def test_a_reference_may_be_a_text_of_its_own_and_must_be_there(make, tokenizer):
    trainer = make(model=author(tokenizer))
    found, _ = written(trainer, [row | {"references": " cat cat cat"} for row in rows_of(8)])
    assert {row.shown.split()[0] for row in found} == {"cat"}
    with pytest.raises(ValueError, match="Guidance: a row has no reference: each needs some in the column"):
        written(trainer, [{"prompt": row["prompt"]} for row in rows_of(8)])


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [False, True], ids=["pad", "pad is the end"])
@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_end_token_is_the_learners_to_write_and_is_trained(guided_by, tokenizer, kind, mode, same):
    if same:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    span = {"span": 3} if mode == "aggrevated" else {}
    trainer = guided_by("model", kind, 0.4, 0.4, guidance={"mode": mode} | span, tokenizer=tokenizer)
    rows, batch = written(trainer, rows_of(24, 4))
    assert any(row.prefix if mode == "ppo++" else row.ending for row in rows)
    for row, ids, mask in zip(rows, batch["completion_ids"].tolist(), batch["completion_mask"].tolist(), strict=True):
        assert end not in row.prefix and end not in row.own[:-1] and end not in row.ending[:-1]
        assert mask == [1] * len(row.own) + [0] * (len(mask) - len(row.own))
        assert ids[len(row.own) :] == [tokenizer.pad_token_id] * (len(mask) - len(row.own))
        assert row.ending == [] or row.own[-1] != end
    ended = [row for row in rows if row.own[-1] == end]
    assert 10 < len(ended) < len(rows)
    assert any(row.ending[-1:] == [end] for row in rows) == (mode == "aggrevated")


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_that_ends_at_once_is_left_alone_by_who_would_go_on(guided_by, tokenizer, kind):
    end = tokenizer.eos_token_id
    rows, _ = written(guided_by("model", kind, ends=1.0), rows_of(2, 4))
    assert all(row.prefix and row.own == [end] for row in rows)
    rows, _ = written(guided_by("model", kind, ends=1.0, guidance={"mode": "aggrevated"}), rows_of(2, 4))
    assert all((row.prefix, row.own, row.ending) == ([], [end], []) for row in rows)


@pytest.mark.parametrize("sort", ["model", "text", "references"])
def test_a_beginning_of_one_token_guides_nothing(make, tokenizer, sort):
    end, rows = tokenizer.eos_token_id, [row | {"references": [""]} for row in rows_of(8)]
    guide = {"model": author(tokenizer, GUIDE, ends=1.0), "text": says(""), "references": None}[sort]
    mode = {"mode": "drpo"} if sort == "references" else {"mode": "ppo++", "guide": "x:y" if sort == "text" else "x"}
    rows, _ = written(make("ppo", mode, guide=guide, model=author(tokenizer, LEARNER)), rows)
    assert all(row.prefix == [] and len(row.own) == LONGEST and end not in row.own for row in rows)


def test_a_guide_keeps_to_its_own_settings_of_sampling(make, tokenizer):
    """At a temperature of almost 0 the guide writes its likeliest word, and the learner still writes all of its own."""
    guide = author(tokenizer, GUIDE)
    guide.get_output_embeddings().weight.data[tokenizer(" dog")["input_ids"], 0] += 0.02
    settings = {"mode": "ppo++", "guide": "x", "sampling": {"temperature": 0.01}}
    rows, _ = written(make("ppo", settings, guide=guide), rows_of(40))
    assert {token for row in rows for token in row.prefix} == by(tokenizer, " dog")
    assert {token for row in rows for token in row.own} == by(tokenizer, LEARNER)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_the_settings_that_came_with_a_guide_have_no_say(make, tokenizer, name):
    guide = author(tokenizer, GUIDE)
    guide.get_output_embeddings().weight.data[tokenizer(" dog")["input_ids"], 0] += 0.02
    setattr(guide.generation_config, name, {"temperature": 0.01, "top_k": 1, "top_p": 0.01, "min_p": 1.0}[name])
    rows, _ = written(make("ppo", {"mode": "ppo++", "guide": "x"}, guide=guide), rows_of(40))
    assert {token for row in rows for token in row.prefix} == by(tokenizer, GUIDE)


@pytest.mark.parametrize("sort", ["model", "adapter", "adapter that goes on", "full"])
def test_the_learners_settings_of_sampling_are_not_the_guides(guided_by, tokenizer, sort):
    """At the learner's temperature of almost 0 either would write its likeliest word only, and the learner does."""
    trainer = guided_by(sort, temperature=0.01, guidance={"sampling": {}})
    for model in (trainer.model, trainer.guide or trainer.model):
        head = model.get_output_embeddings().weight.data
        head[tokenizer(" ran dog")["input_ids"]] += 0.02
    rows, _ = written(trainer, rows_of(40))
    assert {token for row in rows for token in row.own} == by(tokenizer, " ran")
    assert {token for row in rows for token in row.prefix} == by(tokenizer, GUIDE)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "guidance", "settings", "words"),
    [
        ("grpo", {"prefix_per": "completion"}, {}, "with a group's mean as the baseline, completions with different "
         "prefixes teach nothing: leave prefix_per out, or use PPO."),
        ("rloo", {"prefix_per": "completion"}, {}, "with a group's mean as the baseline, completions"),
        ("ppo", {"mode": "ppo++", "guide": "a/model"}, {}, "the guide 'a/model' must be given as guide=, a model or a "
         "function."),
        ("grpo", {"mode": "ppo++", "guide": "base"}, {}, "guide='base' is the policy as it was, of which TRL keeps a "
         "copy only with beta above 0: set beta, or name what it starts from as the guide."),
        ("ppo", {"mode": "lols", "guide": "base"}, {}, "guide='base' is the policy as it was"),
        ("grpo", {"mode": "aggrevated", "guide": "adapter"}, {"mask_truncated_completions": True}, "in mode aggrevated "
         "the guide ends completions, so leave out mask_truncated_completions and missing_eos_penalty."),
        ("ppo", {"mode": "d2lols", "guide": "adapter"}, {"missing_eos_penalty": 1.0}, "in mode d2lols the guide ends "),
        ("ppo", {"mode": "lols", "guide": "adapter"}, {"missing_eos_penalty": 0.0}, "in mode lols the guide ends "),
        ("rloo", {"mode": "aggrevated", "guide": "adapter"}, {"max_completion_length": 1}, "mode aggrevated needs "
         "max_completion_length of at least 2."),
    ],
)  # fmt: skip
def test_what_cannot_be_guided_is_refused(make, kind, guidance, settings, words):
    if guidance.get("guide") == "adapter":
        guidance, settings = guidance | {"guide": "base"}, settings | {"peft_config": adapter_settings()}
    with pytest.raises(ValueError) as error:
        make(kind, guidance, **settings)
    assert str(error.value).startswith(f"Guidance: {words}")


@pytest.mark.parametrize("kind", ["grpo", "ppo"])  # RLOO's trainer always keeps one
def test_an_adapter_that_goes_on_is_its_own_base_only_where_a_copy_is_kept(make, tokenizer, kind):
    policy = get_peft_model(author(tokenizer), adapter_settings())
    with pytest.raises(ValueError, match="Guidance: guide='base' is the policy as it was, of which TRL keeps a copy"):
        make(kind, {"mode": "ppo++", "guide": "base"}, model=policy)


def test_what_begins_may_be_masked_and_be_short(make):
    make("ppo", mask_truncated_completions=True, missing_eos_penalty=1.0)
    rows, _ = written(make("grpo", max_completion_length=1), rows_of(8))
    assert all(row.prefix == [] and len(row.own) == 1 for row in rows)


def test_other_engines_and_copies_in_shards_are_refused(make, guided_by):
    trainer = make("grpo")
    trainer.args.use_vllm = True
    with pytest.raises(ValueError, match="Guidance: roll-outs are written with transformers: set use_vllm to false."):
        trainer._refuse_guidance()
    trainer = guided_by("full", "grpo")
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="Guidance: guide='base' without an adapter is a model in shards here: name"):
        trainer._refuse_guidance()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_as_the_guide_is_not_trained(guided_by, kind):
    trainer = guided_by("model", kind)
    trainer.guide.get_output_embeddings().weight.requires_grad_(True)
    before = copy.deepcopy(trainer.guide.state_dict())
    guide = guided_by("model", kind).guide
    assert not guide.training and not any(value.requires_grad for value in guide.parameters())
    trainer.train()
    assert all((value == before[name]).all() for name, value in trainer.guide.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sort", ["adapter", "adapter that goes on"])
def test_the_adapter_is_trained_after_the_base_has_written(guided_by, kind, sort):
    """The base writes with another adapter or none, and what the learner trains is afterwards what it was."""
    trainer = guided_by(sort, kind, max_steps=3, learning_rate=1e-2)
    trained = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    kept = {name: value.clone() for name, value in trainer.model.named_parameters() if not value.requires_grad}
    assert len(trained) == 2 and all(".default." in name for name in trained)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert {name for name, value in after.items() if value.requires_grad} == set(trained)
    assert all((after[name] != value).any() for name, value in trained.items())
    assert all((after[name] == value).all() for name, value in kept.items())
