import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.decoding import Output
from lastmile_trl.evaluation.metrics import length_ratio, per_row, repeated_3grams
from lastmile_trl.rewards import Reward, build


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
