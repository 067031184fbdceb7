"""Guides that know texts only: where they are spliced, what they are asked, and what they may not answer."""

import re

import guidance_fixture
import pytest
from guidance_fixture import GUIDE, LEARNER, author, by, rows_of, says, written

from lastmile_trl.trainers.guidance import _in_word, _joined

make, guided_by = guidance_fixture.make, guidance_fixture.guided_by
KINDS = ["grpo", "rloo", "ppo"]
ASKED = {"mode": "ppo++", "guide": "a.module:function"}


def sampled_by(trainer):
    """The ids that the learner's own last pass of generation gave, row by row."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    kept = model.generate

    def generate(input_ids, **settings):
        found = kept(input_ids=input_ids, **settings)
        generate.last = found[:, input_ids.size(1) :].tolist()
        return found

    model.generate = generate
    return generate


# --- where the learner goes on ---------------------------------------------------------------------------------------


def test_the_learner_goes_on_between_two_words(make, tokenizer):
    """The guide's words are of up to eight tokens; a switch within the first leaves nothing to begin with."""
    text = "concatenation, of birds"
    trainer = make("ppo", ASKED, guide=says(text), max_completion_length=20)
    rows, _ = written(trainer, rows_of(200))
    begun = {tokenizer.decode(row.prefix) for row in rows}
    ends = ("", "concatenation", "concatenation,", "concatenation, of", "concatenation, of bird", text)
    assert begun == set(ends) - {"concatenation, of bird"}
    for row in rows:
        assert row.prefix == tokenizer(text)["input_ids"][: len(row.prefix)]
        assert set(row.own) <= by(tokenizer, LEARNER)


def test_a_word_longer_than_a_completion_begins_nothing(make):
    rows, _ = written(make("ppo", ASKED, guide=says("concatenation")), rows_of(40))
    assert all(row.prefix == [] and len(row.own) == 6 for row in rows)


def test_the_text_is_cut_at_the_longest_completion(make, tokenizer):
    rows, _ = written(make("ppo", ASKED, guide=says(GUIDE * 50), max_completion_length=4), rows_of(40))
    assert {len(row.prefix) for row in rows} == {1, 2, 3}
    assert {len(row.prefix + row.own) for row in rows} == {4}


# --- where the guide goes on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "after"), [("cat dog", " cat dog"), (" cat dog", " cat dog"), (", cat", ", cat"), ("", "")]
)
def test_words_are_kept_apart(make, tokenizer, text, after):
    guide, settings = says(text), {**ASKED, "mode": "aggrevated"}
    trainer = make("grpo", settings, guide=guide, model=author(tokenizer, " sat"), max_completion_length=9)
    rows, _ = written(trainer, rows_of(6, 4))
    for row in rows:
        begun = " sat" * len(row.prefix + row.own)
        ending = tokenizer(after)["input_ids"] + [tokenizer.eos_token_id]
        assert row.ending == ending[: 9 - len(row.prefix + row.own)] and row.shown.startswith(begun)
        assert {begun} == {prefix for prompt, prefix in guide.asked if prompt == row.prompt}


def test_nothing_is_put_before_a_text_where_no_word_ends(make, tokenizer):
    rows, _ = written(make("ppo", {**ASKED, "mode": "aggrevated"}, guide=says("cat"), model=author(tokenizer, "("),
                           max_completion_length=12), rows_of(8))  # fmt: skip
    assert {row.shown.lstrip("(") for row in rows} == {"cat"}


def test_after_no_words_the_guide_writes_a_whole_answer(make, tokenizer):
    """Half of what the learner writes are marks that are no part of a text."""

    def answers(prompts, texts):
        return [tokenizer(f" {text}!")["input_ids"] + [tokenizer.eos_token_id] for text in texts]

    rows, _ = written(make("ppo", {**ASKED, "mode": "aggrevated"}, guide=says("cat"), encode=answers,
                           model=author(tokenizer, " sat<|user|>"), max_completion_length=9), rows_of(40))  # fmt: skip
    endings = {bool(tokenizer.decode(row.own, skip_special_tokens=True)): tokenizer.decode(row.ending) for row in rows
               if len(row.own) < 7}  # fmt: skip
    assert endings == {True: " cat<eos>", False: " cat!<eos>"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_guide_goes_on_after_the_learners_word(make, tokenizer, kind):
    pieces = author(tokenizer, " onew")  # two tokens, of which only the first begins a word
    settings = {**ASKED, "mode": "aggrevated"}
    rows, _ = written(
        make(kind, settings, guide=says(GUIDE * 9), model=pieces, max_completion_length=16), rows_of(9, 4)
    )
    assert all(row.ending for row in rows)
    rests = [row.shown[len(tokenizer.decode(row.prefix + row.own)) :] for row in rows]
    ends = [re.match("(ew)*", rest)[0] for rest in rests]  # the learner's words are whole, and their ends not trained
    assert "" in ends and "ew" in ends
    assert all(
        f"{end} cat dog bird cat".startswith(rest[: len(end) + 8]) for end, rest in zip(ends, rests, strict=True)
    )
    sizes = {len(row.own) for row in rows}
    assert len(sizes) > 2 if kind == "ppo" else sizes == {1}  # a group shares all but the last token


def test_a_tokenizer_that_puts_a_space_before_every_text_adds_none(make, tokenizer):
    """As those of SentencePiece do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "\u2581the", "\u2581cat", "\u2581sat", "\u2581", ",", "s"]
    backend = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = make("ppo")
    trainer._tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    for text in (", the cat", " sat", "s sat"):
        whole = trainer._tokenizer("the cat" + text)["input_ids"]
        assert trainer._following("the cat", text) == [*whole[2:], 1]


def test_a_script_without_spaces_is_cut_anywhere():
    assert not _in_word("\u4e00\u8d77", "\u53bb") and _joined("\u4e00\u8d77", "\u53bb") == "\u53bb"
    assert _joined("the cat", "sat") == " sat" and _joined("the cat", ", sat") == ", sat"


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_that_does_not_end_does_not_make_a_completion_too_long(make, tokenizer, kind):
    """Others of the batch write on without a guide, and so is more sampled than one that is guided may take."""
    pieces = author(tokenizer, "ewewewew on")
    settings = {**ASKED, "mode": "aggrevated", "probability": 0.5}
    rows, _ = written(
        make(kind, settings, guide=says(GUIDE * 9), model=pieces, max_completion_length=8), rows_of(40, 4)
    )
    assert {len(row.prefix + row.own + row.ending) for row in rows} == {8}
    assert 20 < sum(bool(row.ending) for row in rows) < 120


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_learner_wrote_is_trained_as_it_was_sampled(make, tokenizer, kind, mode):
    """Its bytes are put together otherwise by the tokenizer, so that text and back would be another completion."""
    pieces = author(tokenizer, "e w o n c a t", ends=0.02)
    trainer = make(
        kind, {**ASKED, "mode": mode}, guide=says(" cat dog bird" * 9), model=pieces, max_completion_length=12
    )
    sampled = sampled_by(trainer)
    rows, _ = written(trainer, rows_of(10, 4))
    assert all(ids[: len(row.own)] == row.own for row, ids in zip(rows, sampled.last, strict=True))
    again = [tokenizer(tokenizer.decode(row.own, skip_special_tokens=True))["input_ids"] for row in rows]
    assert any(ids != row.own for ids, row in zip(again, rows, strict=True))


def test_an_end_of_the_learners_is_an_end(make, tokenizer):
    guide = says(GUIDE)
    rows, _ = written(make("ppo", {**ASKED, "mode": "aggrevated"}, guide=guide, model=author(tokenizer, ends=0.5)),
                      rows_of(40))  # fmt: skip
    ended = [row for row in rows if row.own[-1] == tokenizer.eos_token_id]
    assert ended and all(row.ending == [] for row in ended)
    assert len(guide.asked) == sum(row.ending != [] for row in rows) > 0


# --- what it is asked, and what it says ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "times"), [("grpo", 4), ("rloo", 4), ("ppo", 1)])
def test_it_is_asked_once_a_prefix_and_only_where_it_has_a_part(make, kind, times):
    guide, settings = says(GUIDE), {**ASKED, "probability": 0.5}
    rows, _ = written(make(kind, settings, guide=guide), rows_of(24, times))
    asked = [row["prompt"] for row, found in zip(rows_of(24), rows[::times], strict=True) if found.prefix]
    assert sorted(guide.asked) == sorted((prompt, "") for prompt in asked) and 5 < len(asked) < 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
def test_prompts_may_be_messages(make, tokenizer, kind, mode):
    def answers(prompts, texts):
        return [tokenizer(" " + text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]

    chats = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows_of(6, 4)]
    guide = says(GUIDE.strip())
    trainer = make(kind, {**ASKED, "mode": mode}, guide=guide, rows=chats, encode=answers)
    rows, _ = written(trainer, chats)
    assert all(prompt[0]["role"] == "user" for prompt, _ in guide.asked)
    who = {bool(set(row.prefix + row.ending) & by(tokenizer, GUIDE)) for row in rows}
    assert who == {True}
    for shown in trainer.reward_funcs[0].given[-1]["completions"]:
        assert [message["role"] for message in shown] == ["assistant"]
    if mode == "ppo++":
        assert all(row.prefix == answers([], [GUIDE.strip()])[0][: len(row.prefix)] for row in rows)


def test_its_beginnings_are_encoded_as_the_learner_would_write_them(make, tokenizer):
    def answers(prompts, texts):
        return [tokenizer(f" {text}!")["input_ids"] + [tokenizer.eos_token_id] for text in texts]

    rows, _ = written(make("ppo", ASKED, guide=says("cat"), encode=answers), rows_of(40))
    assert {tokenizer.decode(row.prefix) for row in rows} == {" cat", " cat!"}


@pytest.mark.parametrize("mode", ["ppo++", "aggrevated"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda prompts, prefixes: ["cat"], r"Guidance: the guide was asked for 8 texts and gave \['cat'\]"),
        (lambda prompts, prefixes: [None] * len(prompts), r"was asked for 8 texts and gave \[None, None, "),
        (lambda prompts, prefixes: [["cat"]] * len(prompts), r"was asked for 8 texts and gave \[\['cat'\]"),
    ],
)
def test_it_must_give_a_text_for_each(make, mode, answer, words):
    with pytest.raises(ValueError, match=words):
        written(make("ppo", {**ASKED, "mode": mode}, guide=answer), rows_of(8))
