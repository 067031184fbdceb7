import random

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.comparison import compare
from lastmile_trl.evaluation.decoding import Output, Several
from lastmile_trl.evaluation.metrics import (
    corpus_metrics,
    distinct,
    length_ratio,
    per_row,
    repeated_3grams,
    scored,
    self_bleu,
)
from lastmile_trl.rewards import REGISTRY, Reward, Task, build, prepare


def test_every_metric_by_hand():
    outputs = [Output("a cat sat", [7] * 4, True), Output("a b c a b c a b c", [7] * 9, False), Output("", [7], True)]
    rows = [
        {"prompt": "p", "references": ["a cat sat on it now", "a cat"]},
        {"prompt": "q", "references": ["a b c"]},
        {"prompt": "r", "references": ["a"]},
    ]
    assert per_row(outputs, rows, build(["rouge"])) == {
        "rouge/rougeL": pytest.approx([0.8, 0.5, 0.0]),  # 2*2/(3+2), 2*3/(9+3)
        "words": [3.0, 9.0, 0.0],
        "length_ratio": [1.5, 3.0, 0.0],
        "ended": [1.0, 0.0, 1.0],
        "repeated_3grams": [0.0, pytest.approx(4 / 7), 0.0],  # abc bca cab, then four repeats
    }


def test_metrics_get_what_trl_would_give_them():
    seen = {}

    def spy(completions, **columns):
        seen.update(columns, completions=completions)
        return [None] * len(completions)

    chat = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": chat, "completion": "gold", "references": ["x"], "domain": "mail"},
        {"prompt": chat, "completion": "gold", "references": ["y"], "domain": "chat"},
    ]
    values = per_row([Output("one", [7], True), Output("two", [7], True)], rows, [Reward("spy", spy)])
    assert values["spy"] == [None, None]
    assert seen == {
        "prompts": [chat, chat],
        "references": [["x"], ["y"]],
        "domain": ["mail", "chat"],
        "completion_ids": [[7], [7]],
        "ended": [True, True],
        "completions": [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "two"}]],
    }


def test_plain_prompts_give_plain_completions():
    echo = Reward("echo", lambda completions, **columns: [float(completion) for completion in completions])
    assert per_row([Output("2.5", [7], True)], [{"prompt": "p", "references": ["x"]}], [echo])["echo"] == [2.5]


def test_a_metric_cannot_hide_a_built_in_one():
    words = Reward("words", lambda completions, **columns: [1.0])
    with pytest.raises(InputError, match="words is taken"):
        per_row([Output("a", [7], True)], [{"prompt": "p", "references": ["x"]}], [words])


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("a b c", ["a b", "a b c d"], 1.5),  # equally near: the shorter one
        ("a b c", ["a", "a b c d"], 0.75),
        ("a b c", ["", "  ", "a b c d e f"], 0.5),
        ("a b c", ["", " "], None),
        ("a b c", [], None),
        ("", ["a b"], 0.0),
    ],
)
def test_length_ratio(text, references, expected):
    assert length_ratio(text, references) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("a a", 0), ("a a a", 0), ("a a a a", 1 / 2), ("a b c d", 0), ("a  b\nc a b c", 1 / 4)],
)
def test_repeated_3grams(text, expected):
    assert repeated_3grams(text) == expected


def test_a_row_of_several_outputs_has_the_mean_of_their_values():
    several = Several("a b", [7], True, outputs=[Output("a b", [7], True), Output("a b c d", [7], False)])
    rows = [{"prompt": "p", "references": ["a b"]}, {"prompt": "q", "references": ["x y z"]}]
    assert per_row([several, Output("x", [7], True)], rows, build(["rouge"])) == {
        "rouge/rougeL": pytest.approx([(1 + 4 / 6) / 2, 0.5]),
        "words": [3.0, 1.0],
        "length_ratio": pytest.approx([1.5, 1 / 3]),
        "ended": [0.5, 1.0],
        "repeated_3grams": [0.0, 0.0],
    }


def test_what_cannot_be_scored_does_not_count_in_a_mean():
    half = Reward("half", lambda completions, **columns: [None if text == "b" else 1.0 for text in completions])
    several = Several("a", [7], True, outputs=[Output("a", [7], True), Output("b", [7], True)])
    nothing = Several("b", [7], True, outputs=[Output("b", [7], True)])
    rows = [{"prompt": "p", "references": ["a"]}] * 2
    assert per_row([several, nothing], rows, [half])["half"] == [1.0, None]


# --- of a whole run ------------------------------------------------------------------------------------------------


def test_corpus_metrics_by_hand():
    rows = [{"text": "the old cat sat"}, {"text": "one dog ran off"}]
    greedy = [Output("the cat sat", [7], True), Output("the cat sat", [7], True)]
    sampled = [
        Several("a", [7], True, outputs=[Output("old cat", [7], True), Output("old dog", [7], True)]),
        Several("– (why)", None, False, outputs=[]),
    ]
    found = corpus_metrics({"sft": {"greedy": greedy, "sampled": sampled}}, rows, "text")["sft"]
    assert found["greedy"] == {
        "distinct_1": 3 / 6,
        "distinct_2": 2 / 4,
        "distinct_2_per_text": 1.0,
        "same_opening": 1.0,
        "novel_2grams": (1 / 2 + 1) / 2,  # `the cat` is new to the first source, all is to the second
        "extractive_coverage": (1 + 0) / 2,
        "extractive_density": ((1 + 4) / 3 + 0) / 2,  # stretches `the` and `cat sat`
    }
    assert found["sampled"] == {
        "distinct_1": 3 / 4,
        "distinct_2": 1.0,
        "distinct_2_per_text": 1.0,
        "same_opening": 0.5,
        "self_bleu": pytest.approx((1 / 2 * 1 / 2) ** 0.5),  # each has one word of two, and none of one 2-gram: 1/2
        "novel_2grams": 0.5,
        "extractive_coverage": (1 + 1 / 2) / 2,
        "extractive_density": (4 / 2 + 1 / 2) / 2,
    }


def test_corpus_metrics_without_a_source_and_without_texts():
    missing = Several("– (why)", None, False, outputs=[])
    found = corpus_metrics({"lead": {"greedy": [missing]}, "sft": {"sampled": [Output("", [7], True)]}}, [{}])
    assert found["lead"]["greedy"] == dict.fromkeys(("distinct_1", "distinct_2", "distinct_2_per_text", "same_opening"))
    assert found["sft"]["sampled"] == {
        "distinct_1": None,
        "distinct_2": None,
        "distinct_2_per_text": None,
        "same_opening": 1.0,
        "self_bleu": None,
    }


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [(["a a a"], 1, 1 / 3), (["a b", "b a"], 2, 1.0), (["a b", "a b", "c"], 2, 0.5), (["a"], 2, None), ([], 1, None)],
)
def test_distinct(texts, n, expected):
    assert distinct(texts, n) == expected


def test_self_bleu_is_the_mean_of_sacrebleus_values_against_all_others():
    pytest.importorskip("sacrebleu")
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdef", k=draw.randint(0, 9))) for _ in range(12)]
    texts += texts[:2]  # a text that is said twice is not new
    [bleu] = build([{"bleu": {"tokenizer": "none"}}])
    others = [texts[:number] + texts[number + 1 :] for number in range(len(texts))]
    rows = [{"prompt": "p", "references": of_text} for of_text in others]
    expected = scored([Output(text, [7], True) for text in texts], rows, [bleu])["bleu"]
    assert self_bleu(texts) == pytest.approx(sum(expected) / len(expected))
    assert 0.1 < self_bleu(texts) < 0.9


def test_self_bleu_of_many_texts_is_that_of_a_sample():
    texts = [f"a{number} b{number} c" for number in range(40)]
    assert self_bleu(texts, most=10, seed=1) == self_bleu(texts, most=10, seed=1)
    assert self_bleu([*texts, *texts], most=10) < self_bleu([*texts, *texts])
    assert self_bleu(["one"]) is None


# --- all of the registry -------------------------------------------------------------------------------------------

SETTINGS = {"overlong": {"limit": 3}, "format": {"pattern": r".*\."}}
TOKENS = [{"length": {"unit": "tokens", "target": 4}}, {"repetition": {"unit": "tokens"}}, {"loop": {"unit": "tokens"}}]
MODELS = ("embedding", "bertscore", "classifier", "model")  # need a model of their own
PLAIN = [{name: SETTINGS.get(name, {})} for name in REGISTRY if name not in MODELS]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("entry", [*PLAIN, *TOKENS], ids=lambda entry: "-".join([*entry, *map(str, entry.values())]))
def test_every_reward_of_the_registry_is_a_metric(entry, chat):
    """Of plain and chat prompts, samples, post-processed texts, empty ones and baselines that have none."""
    source = "Ann saw 3 cats in Rome on Monday."
    prompt = [{"role": "user", "content": source}] if chat else source
    row = {"prompt": prompt, "references": ["Ann saw 3 cats.", "Three cats."], "concepts": ["cat"]}
    rows = [row | {"slots": {"name": ["Ann"]}} for _ in range(3)]
    said = [Output("Ann saw 3 cats. Ann saw 3 cats.", [5, 6, 5, 6, 2], True), Output("", [2], True)]
    several = Several(said[0].text, [5], True, outputs=[said[0], Output("cats cats", [7] * 4, False)])
    missing = Several("– (why)", None, False, outputs=[], why_none="why")
    [metric] = prepare(build([entry]), Task({name: [row[name]] * 2 for name in ("references", "concepts")}, {2}))
    given = {"sft": {"greedy": [*said, several]}, "lead": {"greedy": [missing] * 3}}
    result = compare(given, rows, [metric], rewarded=set(), postprocessed=["sft"])
    raw, processed, lead = result["results"]
    assert raw["metrics"][metric.name]["rows"] >= 2
    # A post-processed text is not what was generated.
    counts = {metric.name: "it counts generated tokens, and no model has generated these texts"}
    missing = counts if "overlong" in entry or entry in TOKENS else {}
    assert processed["missing"] == missing | {"ended": "the text is not what was generated"}
    assert lead["missing"][metric.name] == "why"
