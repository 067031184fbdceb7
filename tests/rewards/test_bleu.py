import importlib.util
import math
import pickle

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.bleu import Bleu, Chrf

REFERENCE = "a dog runs in the park"
COMPLETION = "a dog runs in a park"

TEXTS = [
    "a dog runs in the park",
    "A dog, a 'big' one: runs in 2,000.5 parks - isn't it?",
    "short",
    "two lines\nof text with <skipped> and &quot;quotes&quot;",
    "\u043a\u043e\u0442 \u0441\u0438\u0434\u0435\u043b \u043d\u0430 \u043a\u043e\u0432\u0440\u0438\u043a\u0435.",
    "\u732b\u5750\u5728\u57ab\u5b50\u4e0a\u3002\u5b83\u7761\u4e86 3 \u5c0f\u65f6",
    "cafe\u0301 na\u00efve \U0001f600\U0001f469\u200d\U0001f680 ok",
    "the the the the the the the",
]

# Letters that make n-grams meet, with punctuation and spaces that the tokenizers treat differently.
texts = st.text(alphabet="ab .,-9\n&;\u732b\u0301\U0001f600", max_size=30)


def score(metric, completion, references):
    [value] = metric([completion], [references])
    return value


def sacrebleu_says(metric, completion, references):
    """One-text scores of sacrebleu reach 100.00000000000004 by rounding."""
    return min(1.0, metric.sentence_score(completion, references).score / 100)


@pytest.mark.parametrize("completion", TEXTS)
@pytest.mark.parametrize("tokenizer", ["13a", "intl", "zh", "char", "none"])
@pytest.mark.parametrize("smoothing", ["exp", "floor", "add-k", "none"])
def test_bleu_is_sacrebleus(completion, tokenizer, smoothing):
    bleu = Bleu(tokenizer=tokenizer, smoothing=smoothing)
    for references in (*([text] for text in TEXTS), TEXTS[:2], TEXTS[::-1]):
        theirs = sacrebleu.sentence_bleu(completion, references, tokenize=tokenizer, smooth_method=smoothing)
        assert score(bleu, completion, references) == min(1.0, theirs.score / 100)


@settings(max_examples=150, deadline=None)
@given(
    completion=texts,
    references=st.lists(texts.filter(str.strip), min_size=1, max_size=3),
    tokenizer=st.sampled_from(["13a", "intl", "zh", "char", "none"]),
    smoothing=st.sampled_from([("exp", None), ("none", None), ("floor", 0.3), ("add-k", 2), ("add-k", None)]),
    effective=st.booleans(),
    lowercase=st.booleans(),
    order=st.integers(1, 6),
)
def test_bleu_is_sacrebleus_for_any_text(completion, references, tokenizer, smoothing, effective, lowercase, order):
    theirs = BLEU(lowercase, True, tokenizer, *smoothing, order, effective)
    ours = Bleu(order, *smoothing, effective, tokenizer, lowercase)
    assert score(ours, completion, references) == sacrebleu_says(theirs, completion, references)


@settings(max_examples=150, deadline=None)
@given(
    completion=texts.filter(str.strip),
    references=st.lists(texts.filter(str.strip), min_size=1, max_size=3),
    char_order=st.integers(1, 7),
    word_order=st.integers(0, 2),
    beta=st.sampled_from([0, 0.5, 1, 2, 3]),
    lowercase=st.booleans(),
    whitespace=st.booleans(),
)
def test_chrf_is_sacrebleus_for_any_text(completion, references, char_order, word_order, beta, lowercase, whitespace):
    arguments = (char_order, word_order, beta, lowercase, whitespace)
    assert score(Chrf(*arguments), completion, references) == sacrebleu_says(CHRF(*arguments), completion, references)


@pytest.mark.parametrize("completion", TEXTS)
def test_chrf_is_sacrebleus(completion):
    for references in (*([text] for text in TEXTS), TEXTS[:2], TEXTS[::-1]):
        assert score(Chrf(), completion, references) == sacrebleu.sentence_chrf(completion, references).score / 100
        theirs = sacrebleu.sentence_chrf(completion, references, word_order=2)
        assert score(Chrf(word_order=2), completion, references) == min(1.0, theirs.score / 100)


def test_bleu_by_hand():
    # Hits of 1- to 4-grams: a dog runs in park 5/6; a dog, dog runs, runs in 3/5; 2/4; 1/3. Equal lengths.
    assert score(Bleu(), COMPLETION, REFERENCE) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))
    assert score(Bleu(), COMPLETION, REFERENCE) == pytest.approx(0.537285, abs=1e-6)
    # Add-k leaves single words alone.
    add_k = (5 / 6 * 4 / 6 * 3 / 5 * 2 / 4) ** (1 / 4)
    assert score(Bleu(smoothing="add-k"), COMPLETION, REFERENCE) == pytest.approx(add_k)


def test_bleu_of_one_word_of_six_is_its_brevity():
    assert score(Bleu(), "dog", REFERENCE) == pytest.approx(math.exp(1 - 6), rel=1e-9)
    assert score(Bleu(smoothing="add-k"), "dog", REFERENCE) == pytest.approx(0.006738, abs=1e-6)


@pytest.mark.parametrize(("length", "expected"), [(5, 0.367879), (10, 1), (20, 0.5)])
def test_brevity_penalty(length, expected):
    twenty = [f"word{number}" for number in range(20)]
    bleu = Bleu(max_order=1)  # 20 words, of which the reference has ten: a precision of a half
    assert score(bleu, " ".join(twenty[:length]), " ".join(twenty[:10])) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [
        ("none", 0),
        ("floor", (1 / 5 * 0.1 / 4 * 0.1 / 3 * 0.1 / 2) ** (1 / 4)),
        ("exp", (1 / 5 * 1 / (2 * 4) * 1 / (4 * 3) * 1 / (8 * 2)) ** (1 / 4)),
        ("add-k", (1 / 5 * 1 / 5 * 1 / 4 * 1 / 3) ** (1 / 4)),
    ],
)
def test_what_smoothing_gives_for_one_hit_in_five(smoothing, expected):
    value = score(Bleu(smoothing=smoothing), "one b c d e", "one v w x y")
    assert value == pytest.approx(expected)
    assert round(value, 2) == {"none": 0, "floor": 0.05, "exp": 0.11, "add-k": 0.24}[smoothing]
    assert score(Bleu(smoothing=smoothing), "a b c d e", "v w x y z") == 0


def test_effective_order_lets_short_texts_reach_one():
    assert score(Bleu(), "a dog", "a dog") == pytest.approx(1)
    assert score(Bleu(effective_order=False), "a dog", "a dog") == 0
    assert score(Bleu(), REFERENCE, REFERENCE) == 1  # not 1.0000000000000004


def test_chrf_by_hand():
    # Characters abc and abd: orders 1 to 3 have precision = recall = 2/3, 1/2, 0; longer ones neither has.
    assert score(Chrf(), "abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # ab against abcd: P = (1 + 1) / 2, R = (2/4 + 1/3) / 2.
    precision, recall = 1, (2 / 4 + 1 / 3) / 2
    assert score(Chrf(), "ab", "abcd") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert score(Chrf(beta=1), "ab", "abcd") == pytest.approx(2 * precision * recall / (precision + recall))


def test_chrf_arguments_count():
    assert score(Chrf(lowercase=True), "ABC", "abc") == 1 and score(Chrf(), "ABC", "abc") == 0
    assert score(Chrf(), "a b c", "abc") == 1 and score(Chrf(whitespace=True), "a b c", "abc") < 1
    assert score(Chrf(word_order=2), "a b c", "abc") < 1


@pytest.mark.parametrize("metric", [Bleu(), Chrf(), Chrf(word_order=2)])
def test_several_references(metric):
    other = "no match 9"
    for references in ([REFERENCE, other], [other, REFERENCE], ["", REFERENCE, " "]):
        assert score(metric, REFERENCE, references) == 1
    assert score(metric, COMPLETION, [REFERENCE, ""]) == score(metric, COMPLETION, REFERENCE)


@pytest.mark.parametrize("metric", [Bleu(), Bleu(smoothing="add-k"), Chrf(), Chrf(word_order=2, whitespace=True)])
def test_empty_texts(metric):
    for empty in ("", " \n"):
        assert score(metric, empty, REFERENCE) == 0
        assert score(metric, empty, ["", REFERENCE]) == 0
        for references in (None, [], "", ["", " \n"]):
            assert score(metric, empty, references) is None
            assert score(metric, "text", references) is None


@pytest.mark.parametrize("metric", [Bleu(), Bleu(tokenizer="zh"), Chrf()])
def test_rows_are_independent(metric):
    rows = [(completion, references) for completion in TEXTS for references in (TEXTS[0], TEXTS[3:6], None, TEXTS[2])]
    values = metric(*zip(*rows, strict=True))
    assert values == [score(metric, *row) for row in rows]
    assert values[::-1] == metric(*zip(*rows[::-1], strict=True))


def test_chats():
    assert score(Bleu(), [{"role": "assistant", "content": REFERENCE}], REFERENCE) == 1


def test_no_text_stays_in_memory():
    texts = [f"text number {number}." for number in range(300)]
    Bleu()(texts, texts)
    assert Tokenizer13a.__call__.cache_info().currsize == TokenizerRegexp.__call__.cache_info().currsize == 0
    with pytest.raises(TypeError, match="references are"):
        Bleu()([*texts, "one more"], [*texts, 3])
    assert Tokenizer13a.__call__.cache_info().currsize == TokenizerRegexp.__call__.cache_info().currsize == 0


def test_names_and_pickle():
    metrics = [Bleu(), Bleu(2), Chrf(), Chrf(word_order=2)]
    assert [metric.__name__ for metric in metrics] == ["bleu", "bleu/2", "chrf", "chrf++"]
    values = [metric([COMPLETION], [REFERENCE]) for metric in metrics]
    copies = pickle.loads(pickle.dumps(metrics))
    assert copies == metrics
    assert [metric([COMPLETION], [REFERENCE]) for metric in copies] == values


@pytest.mark.parametrize(
    ("metric", "arguments", "message"),
    [
        (Bleu, {"max_order": 0}, "max_order must be a whole number of at least 1, not 0."),
        (Bleu, {"smoothing": "addk"}, "smoothing 'addk' does not exist: did you mean 'add-k'?"),
        (Bleu, {"smoothing": "floor", "smoothing_value": 0}, "smoothing_value must be a number above 0, not 0."),
        (Bleu, {"smoothing_value": 1}, "smoothing_value is for smoothing floor and add-k, not exp."),
        (Bleu, {"tokenizer": "spm"}, "tokenizer 'spm' does not exist"),
        (Bleu, {"effective_order": 1}, "effective_order must be true or false, not 1."),
        (Bleu, {"lowercase": "no"}, "lowercase must be true or false, not 'no'."),
        (Chrf, {"char_order": 0}, "char_order must be a whole number of at least 1, not 0."),
        (Chrf, {"word_order": -1}, "word_order must be a whole number of at least 0, not -1."),
        (Chrf, {"beta": -1}, "beta must be a number of at least 0, not -1."),
        (Chrf, {"lowercase": None}, "lowercase must be true or false, not None."),
        (Chrf, {"whitespace": 1}, "whitespace must be true or false, not 1."),
    ],
)
def test_wrong_arguments(metric, arguments, message):
    with pytest.raises(InputError) as error:
        metric(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("metric", [Bleu, Chrf])
def test_without_the_package(metric, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        metric()
    assert str(error.value) == (
        "Reward needs the package sacrebleu, which is not installed: pip install 'lastmile-trl[metrics]'."
    )
