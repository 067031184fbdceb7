import math
import pickle
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import Task
from lastmile_trl.rewards.cider import Cider

REFERENCE = "a dog runs in the park"
COMPLETION = "a dog runs in a park"
# `the` is in all three rows, so that it weighs nothing; everything else in REFERENCE is in one row alone.
TRAINING = [[REFERENCE], ["the cat sat on the mat"], ["the man reads the book"]]

texts = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)
rows = st.lists(texts, max_size=3)


def score(cider, completion, references):
    [value] = cider([completion], [references])
    return value


def naive(completion, references, training, sigma=6.0):
    """CIDEr-D written down as in its paper, over texts of words separated by spaces; without the factor of 10."""

    def counts(text, n):
        words = text.split()
        return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))

    def weight(ngram):
        n = len(ngram)
        return math.log(len(training) / max(1, sum(any(counts(text, n)[ngram] for text in row) for row in training)))

    total = 0.0
    for reference in references:
        for n in range(1, 5):
            c = {ngram: count * weight(ngram) for ngram, count in counts(completion, n).items()}
            r = {ngram: count * weight(ngram) for ngram, count in counts(reference, n).items()}
            norm = math.hypot(*c.values()) * math.hypot(*r.values())
            if norm:
                cosine = sum(min(c.get(ngram, 0), r[ngram]) * r[ngram] for ngram in r) / norm
                delta = len(completion.split()) - len(reference.split())
                total += cosine * math.exp(-(delta**2) / (2 * sigma**2)) / 4
    return total / len(references)


def test_by_hand():
    # 1-grams: `the` weighs nothing, all others alike. Completion: a counts 2, dog, runs, in, park 1, so |c|^2 = 8;
    # reference: five of 1, so |r|^2 = 5; clipped product 5; 5 / sqrt(40). 2-grams: 3 of 5 on either side, 3-grams 2
    # of 4, 4-grams 1 of 3. Lengths are equal.
    expected = (math.sqrt(5 / 8) + 3 / 5 + 2 / 4 + 1 / 3) / 4
    value = score(Cider().fit(TRAINING), COMPLETION, REFERENCE)
    assert value == pytest.approx(expected, rel=1e-12)
    assert value == pytest.approx(0.55598, abs=5e-6)


def test_a_text_said_twice():
    assert score(Cider().fit(TRAINING), f"{COMPLETION} {COMPLETION}", REFERENCE) == pytest.approx(0.16268, abs=5e-6)


def test_the_reference_itself():
    cider = Cider().fit(TRAINING)
    assert score(cider, REFERENCE, REFERENCE) == 1
    assert score(cider, "cat sat on", "cat sat on") == 0.75  # no 4-gram
    assert score(cider, REFERENCE, [REFERENCE, "cat sat on mat"]) == 0.5


def test_length_penalty():
    cider = Cider(sigma=2).fit(TRAINING)
    # Two words more, none of them counted elsewhere: each order loses to |c| and the whole to the length.
    cosines = math.sqrt(5 / 7) + math.sqrt(5 / 7) + math.sqrt(4 / 6) + math.sqrt(3 / 5)
    assert score(cider, f"{REFERENCE} x y", REFERENCE) == pytest.approx(cosines / 4 * math.exp(-(2**2) / (2 * 2**2)))


def test_with_one_training_row_everything_is_zero():
    assert score(Cider().fit([[REFERENCE]]), REFERENCE, REFERENCE) == 0


def test_rows_are_counted_and_not_texts():
    one_row = Cider().fit([[REFERENCE, COMPLETION], ["x"]])
    two_rows = Cider().fit([[REFERENCE], [COMPLETION], ["x"]])
    # 1-grams of `dog chess`: dog in one of two rows, or in two of three; chess in none.
    for cider, dog, chess in ((one_row, math.log(2), math.log(2)), (two_rows, math.log(3 / 2), math.log(3))):
        expected = dog**2 / (dog * math.hypot(dog, chess)) * math.exp(-1 / 72) / 4
        assert score(cider, "dog chess", "dog") == pytest.approx(expected)


def test_rows_without_a_token_are_not_counted():
    assert score(Cider().fit([*TRAINING, None, [], "", ["?!"]]), COMPLETION, REFERENCE) == pytest.approx(
        0.55598, abs=5e-6
    )


@settings(max_examples=200, deadline=None)
@given(
    completion=texts,
    references=st.lists(texts.filter(bool), min_size=1, max_size=3),
    training=st.lists(rows.filter(any), min_size=1, max_size=5),
    sigma=st.sampled_from([0.5, 6.0]),
)
def test_as_the_paper_has_it(completion, references, training, sigma):
    value = score(Cider(sigma=sigma).fit(training), completion, references)
    assert value == pytest.approx(naive(completion, references, training, sigma), abs=1e-9)
    assert 0 <= value <= 1 + 1e-12


def test_a_value_does_not_depend_on_the_batch():
    cider = Cider().fit(TRAINING)
    batch = [(COMPLETION, REFERENCE), ("the cat", ["the cat sat", REFERENCE]), ("", "x"), ("x", None), (REFERENCE, "x")]
    values = cider(*zip(*batch, strict=True))
    assert values == [score(cider, *row) for row in batch]
    assert cider(*zip(*batch[::-1], strict=True)) == values[::-1]


def test_empty_texts():
    cider = Cider().fit(TRAINING)
    assert score(cider, "", REFERENCE) == 0 and score(cider, "!", REFERENCE) == 0
    assert score(cider, "unseen", REFERENCE) == 0
    for references in (None, [], "", ["", " .\n"]):
        assert score(cider, COMPLETION, references) is None and score(cider, "", references) is None
    assert score(cider, COMPLETION, ["", REFERENCE]) == score(cider, COMPLETION, REFERENCE)


def test_other_scripts():
    russian = (
        "\u043a\u043e\u0442 \u0441\u0438\u0434\u0435\u043b \u043d\u0430 \u043a\u043e\u0432\u0440\u0438\u043a\u0435"
    )
    chinese = "\u732b\u5750\u5728\u57ab\u5b50\u4e0a\u3002"
    accents = "cafe\u0301 au lait \U0001f600 tre\u0300s bon"
    training = [russian, chinese, accents]
    assert score(Cider().fit(training), russian, russian.upper()) == 1
    assert score(Cider().fit(training), accents, "caf\u00e9 au lait tr\u00e8s bon") == 1
    assert score(Cider(tokenizer="characters").fit(training), chinese, chinese) == 1
    assert score(Cider().fit(training), chinese, chinese) == 0.25  # all one word
    assert score(Cider(tokenizer="rouge").fit([*training, "x"]), russian, russian) is None


def test_chats():
    assert score(Cider().fit(TRAINING), [{"role": "assistant", "content": REFERENCE}], REFERENCE) == 1


def test_a_run_fits_a_copy():
    cider = Cider()
    fitted = cider.for_task(Task(columns={"prompt": ["x"] * 3, "references": TRAINING}))
    assert score(fitted, COMPLETION, REFERENCE) == score(Cider().fit(TRAINING), COMPLETION, REFERENCE)
    with pytest.raises(ValueError, match=r"Cider\(\)\.fit\(references\)"):
        score(cider, COMPLETION, REFERENCE)


def test_names_and_pickle():
    fitted = Cider(sigma=5.0).fit(TRAINING)
    assert fitted.__name__ == "cider"
    assert repr(fitted) == "Cider(sigma=5.0, tokenizer='words')"
    restored = pickle.loads(pickle.dumps(fitted))
    assert score(restored, COMPLETION, REFERENCE) == score(fitted, COMPLETION, REFERENCE)
    assert hash(fitted) == hash(restored) == hash(Cider(sigma=5.0))


def test_the_table_holds_what_several_rows_share():
    cider = Cider().fit([["a b c"], ["a b d"], ["x y z x y z"]])
    assert cider._frequencies == (3, {"a": 2, "b": 2, ("a", "b"): 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": 0}, "sigma must be a number above 0, not 0."),
        ({"tokenizer": "word"}, "tokenizer 'word' does not exist: did you mean 'words'?"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        Cider(**arguments)
    assert message in str(error.value)


def test_training_rows_it_cannot_use():
    with pytest.raises(InputError, match="'cider' needs the column 'references' of the training rows."):
        Cider().for_task(Task())
    for training in ([], [None, "", ["."]]):
        with pytest.raises(InputError, match="'cider' needs training rows with references, and none of them holds"):
            Cider().fit(training)
