"""Pairs of a better and a worse answer, from every source, and what the trainers get of them."""

import pytest
from datasets import Dataset

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.preferences.negatives import Sample
from lastmile_trl.preferences.pairs import Pair, Samples, collect, dpo_rows, ranked, ready, reward_rows, source_text
from lastmile_trl.recipe import Data, Preferences

DATA = Data(path="rows.jsonl", prompt="{source} =>")
ROW = [Sample("good", True, 0.9), Sample("fair", True, 0.5), Sample("poor", False, 0.2)]


def both(pairs):
    return [(pair.chosen, pair.rejected) for pair in pairs]


# --- ready pairs ---------------------------------------------------------------------------------------------------


def test_chats_give_their_last_message():
    chat = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello. "}]
    [pair] = ready(
        [{"chosen": chat, "rejected": [{"role": "assistant", "content": "No."}]}], "chosen", "rejected"
    ).pairs
    assert (pair.chosen, pair.rejected) == ("Hello.", "No.")


def test_what_is_no_pair_is_counted():
    rows = [{"a": "x", "b": "x "}, {"a": None, "b": "x"}, {"a": "x", "b": "y", "category": "style"}]
    found = ready(rows, "a", "b")
    assert [(pair.row, pair.category) for pair in found.pairs] == [(2, "style")]
    assert found.skipped == {"pairs": {"both answers are the same": 1, "an answer is empty": 1}}
    assert found.lines() == [
        "1 pairs: style 1.",
        "pairs: no pair 1 times both answers are the same, 1 times an answer is empty.",
    ]


@pytest.mark.parametrize(("yes", "no"), [(None, False), ("", "False"), ("true", "false"), (1, 0)])
def test_whether_an_answer_ended_is_read_back(yes, no):
    row = {"chosen": "x", "rejected": "y", "chosen_ended": yes, "rejected_ended": no}
    [pair] = ready([row], "chosen", "rejected").pairs
    assert (pair.chosen_ended, pair.rejected_ended) == (True, False)


# --- ranked samples ------------------------------------------------------------------------------------------------


def test_the_best_against_the_worst():
    [pair] = ranked([ROW], Samples(), seed=0).pairs
    assert pair == Pair(0, "good", "poor", "samples", chosen_ended=True, rejected_ended=False)


def test_the_best_against_any_other():
    seen = {pair.rejected for seed in range(20) for pair in ranked([ROW], Samples(choose="best_of_n"), seed).pairs}
    assert seen == {"fair", "poor"}
    assert {pair.chosen for seed in range(20) for pair in ranked([ROW], Samples(choose="best_of_n"), seed).pairs} == {
        "good"
    }


def test_all_that_differ_by_the_margin():
    found = ranked([ROW], Samples(choose="margin", margin=0.35), seed=0)
    assert both(found.pairs) == [("good", "poor"), ("good", "fair")]


def test_equal_rewards_and_equal_texts_make_no_pair():
    alike = [Sample("one", True, 0.5), Sample("two", True, 0.5)]
    same = [Sample("one", True, 0.5), Sample(" one", True, 0.7), Sample("two", True, None), Sample(" ", True, 0.1)]
    found = ranked([alike, same], Samples(), seed=0)
    assert not found.pairs
    assert found.skipped == {"samples": {"no samples differ enough in their reward": 1, "all samples are the same": 1}}


@pytest.mark.parametrize(
    "wrong",
    [{"per_prompt": 0}, {"temperature": 0}, {"top_p": 0}, {"margin": -1}, {"choose": "best"}, {"batch_size": 0}],
)
def test_wrong_settings_of_samples_are_refused(wrong):
    with pytest.raises(InputError, match=f"preferences.samples.{next(iter(wrong))}"):
        Samples(**wrong)


# --- all sources ---------------------------------------------------------------------------------------------------


def rows():
    told = [("the red cat sat on the mat", "a cat sat"), ("a big dog ran over the hill", "a dog ran")]
    return Dataset.from_list(
        [
            {"source": source, "references": [target], "prompt": f"{source} =>", "good": target, "bad": "no"}
            for source, target in told
        ]
    )


def test_columns_and_negatives_together(tokenizer):
    asked = Preferences(chosen="good", rejected="bad", negatives={"truncated": 1, "copied": 1})
    found = collect(rows(), DATA, asked, tokenizer, seed=0)
    kinds = [pair.category for pair in found.pairs]
    assert sorted(kinds[:3]) == sorted(kinds[3:]) == ["copied", "pairs", "truncated"]  # the first row, then the second
    truncated = next(pair for pair in found.pairs if pair.category == "truncated")
    assert truncated.chosen.startswith(truncated.rejected) and not truncated.rejected_ended


def test_negatives_differ_by_seed_only(tokenizer):
    asked = Preferences(negatives={"random_tokens": 1})
    once, again, other = (collect(rows(), DATA, asked, tokenizer, seed=seed).pairs for seed in (0, 0, 1))
    assert once == again != other


def test_bad_samples_of_the_model_are_negatives(tokenizer):
    answers = [[Sample("a cat flew", True, 0.1), Sample("a cat sat", True, 1.0)], [Sample("a dog ran", True, 1.0)] * 2]
    asked = Preferences(negatives={"model_sample": {"quantile": 0.5}}, samples={})
    found = collect(rows(), DATA, asked, tokenizer, seed=0, answers=answers)
    assert both(found.pairs) == [("a cat sat", "a cat flew")]
    assert sum(found.skipped["model_sample"].values()) == 1


def test_where_no_pair_can_be_made_is_said(tokenizer):
    alike = Dataset.from_list([{"prompt": "p", "a": "x", "b": "x", "references": ["x"]}])
    with pytest.raises(RunError, match=r"Of 1 rows no pair could be made \(both answers are the same\)"):
        collect(alike, DATA, Preferences(chosen="a", rejected="b"), tokenizer, seed=0)


def test_the_source_is_the_text_without_the_instruction():
    row = {"title": "Cats", "text": "They sit.", "note": "n"}
    two = Data(path="x", prompt="Title: {title}\n{text}\nSummary:")
    assert source_text(row, two, Preferences()) == "Cats\nThey sit."
    assert source_text(row, Data(path="x", prompt="{title} {text}", shorten="text"), Preferences()) == "They sit."
    assert source_text(row, two, Preferences(source="note")) == "n"


# --- what TRL's trainers get ---------------------------------------------------------------------------------------


def test_the_reward_trainer_gets_an_end_only_where_an_answer_ended(tokenizer):
    pairs = [Pair(0, "a cat sat", "a cat", "truncated", rejected_ended=False)]
    [row] = reward_rows(pairs, rows(), DATA, tokenizer, [])
    prompt = tokenizer("the red cat sat on the mat =>")["input_ids"]
    assert row["chosen_ids"] == prompt + tokenizer(" a cat sat")["input_ids"] + [tokenizer.eos_token_id]
    assert row["rejected_ids"] == prompt + tokenizer(" a cat")["input_ids"]


def test_dpo_gets_text_or_chat(tokenizer):
    pairs = [Pair(1, "a dog ran", "a dog", "truncated", rejected_ended=False)]
    [row] = dpo_rows(pairs, rows(), DATA, tokenizer, [])
    assert row == {"prompt": "a big dog ran over the hill =>", "chosen": " a dog ran", "rejected": " a dog"}
    chat = Dataset.from_list([{"prompt": [{"role": "user", "content": "cat?"}]}])
    [row] = dpo_rows([Pair(0, "a cat", "a dog", "x")], chat, DATA, tokenizer, [])
    assert row["rejected"] == [{"role": "assistant", "content": "a dog"}]


@pytest.mark.parametrize("make", [reward_rows, dpo_rows])
def test_long_pairs_are_left_out_and_counted(make, tokenizer):
    short = Data(path="x", prompt="{source} =>", max_reference_tokens=4)
    pairs = [Pair(0, "a cat", "a dog", "x"), Pair(0, "a cat", "a dog " * 5, "x")]
    notes = []
    assert len(make(pairs, rows(), short, tokenizer, notes)) == 1
    assert notes == ["1 pairs with an answer longer than data.max_reference_tokens=4 are left out of training."]
    with pytest.raises(InputError, match="Every pair is longer"):
        make(pairs[1:], rows(), short, tokenizer, [])
