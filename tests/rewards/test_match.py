import pickle
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.match import ExactMatch, TokenF1


def exact(completion, references, **arguments):
    [value] = ExactMatch(**arguments)([completion], [references])
    return value


def overlap(completion, references, *arguments, **keywords):
    [value] = TokenF1(*arguments, **keywords)([completion], [references])
    return value


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("Eiffel Tower", "the eiffel tower", 1),
        (" The  Eiffel\nTower! ", "Eiffel tower", 1),
        ("Eiffel", "Eiffel tower", 0),
        ("tower Eiffel", "Eiffel tower", 0),
        ("U.S.", "US", 1),
        ("don't", "dont", 1),
        ("well-known", "well known", 0),  # punctuation goes and leaves no space, as in SQuAD
        ("$5", "5", 1),  # ASCII symbols are punctuation to SQuAD
        ("\u20ac5", "5", 0),  # others are not
        ("theory", "ory", 0),  # an article is a whole word
        ("\u00ab\u041a\u043e\u0442\u00bb", "\u043a\u043e\u0442", 1),
        ("\u5317\u4eac\u3002", "\u5317\u4eac", 1),
        ("caf\u00e9", "cafe\u0301", 1),  # composed and decomposed
        ("cafe", "caf\u00e9", 0),
        ("\U0001f600", "\U0001f600!", 1),
        ("\U0001f600", "\U0001f601", 0),
        ("", "Eiffel tower", 0),
        ("the", "Eiffel tower", 0),
    ],
)
def test_exact_match(completion, reference, expected):
    assert exact(completion, reference) == expected


def test_any_of_several_references_is_enough():
    assert exact("b", ["a b c", "the b", ""]) == 1
    assert exact("b", ["a b c", "c"]) == 0


@pytest.mark.parametrize("references", [None, [], "", " ", "the", "...", ["", "a"]])
def test_exact_match_without_a_word_to_match(references):
    assert exact("", references) is None
    assert exact("word", references) is None


def test_exact_match_of_the_texts_as_they_are():
    assert exact(" The cat.\n", "The cat.", normalise=False) == 1
    assert exact("The cat", "The cat.", normalise=False) == 0
    assert exact("the cat.", "The cat.", normalise=False) == 0
    assert exact("the", "the", normalise=False) == 1
    assert exact("", " ", normalise=False) is None


def squad(text):
    """Normalise as SQuAD's script describes it: lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(*[st.lists(st.sampled_from(["the ", "a ", "An", " ", "cat", "Cat", "'s", "-", ".", "$"])).map("".join)] * 2)
def test_exact_match_is_that_of_squad(completion, reference):
    expected = float(squad(completion) == squad(reference)) if squad(reference) else None
    assert exact(completion, reference) == expected


@given(st.text(alphabet=string.printable), st.text(alphabet=string.printable))
def test_exact_match_is_that_of_squad_on_any_ascii(completion, reference):
    expected = float(squad(completion) == squad(reference)) if squad(reference) else None
    assert exact(completion, reference) == expected
    assert exact(reference, reference) == (1 if squad(reference) else None)


@pytest.mark.parametrize(
    ("completion", "reference", "precision", "recall"),
    [
        ("in Paris", "Paris", 1 / 2, 1),
        ("Paris", "Paris, France", 1, 1 / 2),
        ("the cat the cat", "the cat sat", 2 / 4, 2 / 3),  # each token as often as the text that has it less often
        ("sat cat the", "The cat sat!", 1, 1),  # the order makes no difference
        ("cat", "cat cat", 1, 1 / 2),
        ("a dog", "the cat", 0, 0),
        ("", "the cat", 0, 0),
        ("...", "the cat", 0, 0),
        ("\u041a\u043e\u0442 \u0441\u043f\u0438\u0442", "\u043a\u043e\u0442", 1 / 2, 1),
        ("cafe\u0301 noir", "caf\u00e9", 1 / 2, 1),
    ],
)
def test_token_f1(completion, reference, precision, recall):
    f = 2 * precision * recall / (precision + recall) if precision else 0
    assert overlap(completion, reference) == pytest.approx(f)
    assert overlap(completion, reference, "precision") == pytest.approx(precision)
    assert overlap(completion, reference, "recall") == pytest.approx(recall)


def test_tokenizers():
    assert overlap("\u732b\u5750", "\u732b\u8d70") == 0
    assert overlap("\u732b\u5750", "\u732b\u8d70", tokenizer="characters") == 0.5
    assert overlap("caf\u00e9", "caf", tokenizer="rouge") == 1
    assert overlap("A b", "a b", tokenizer="test_match:by_space") == 0.5


def by_space(text):
    return text.split()


def test_several_references():
    references = ["a b", "a b c d", "", "x"]
    # f with each: 1, 2 * 2 / 6, none (no token), 0
    assert overlap("a b", references) == 1
    assert overlap("a b", references, aggregate="mean") == pytest.approx((1 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize("references", [None, [], "", " \n", "...", ["", "\U0001f600"]])
@pytest.mark.parametrize("measure", ["f", "precision", "recall"])
def test_token_f1_without_a_token_to_find(references, measure):
    assert overlap("word", references, measure) is None
    assert overlap("", references, measure) is None


bags = st.lists(st.sampled_from("abc"), max_size=8)


@given(bags, bags.filter(bool))
def test_token_f1_counts_what_both_have(said, reference):
    rest = list(reference)
    shared = sum(token in rest and not rest.remove(token) for token in said)
    assert overlap(" ".join(said), " ".join(reference)) == pytest.approx(2 * shared / (len(said) + len(reference)))


@given(bags, bags.filter(bool), bags)
def test_recall_never_falls_with_more_words(said, reference, more):
    assert overlap(" ".join(said + more), " ".join(reference), "recall") >= overlap(
        " ".join(said), " ".join(reference), "recall"
    )


def test_chats():
    chat = [{"role": "assistant", "content": "The cat."}]
    assert ExactMatch()([chat, "dog"], ["cat", "cat"], prompts=["x", "y"]) == [1, 0]
    assert TokenF1()([chat, "dog"], ["the cat", "cat"], prompts=["x", "y"]) == [1, 0]


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ExactMatch, {"normalise": "yes"}, "normalise must be true or false, not 'yes'"),
        (TokenF1, {"measure": "f1"}, "measure 'f1' does not exist: did you mean 'f'?"),
        (TokenF1, {"aggregate": "min"}, "aggregate 'min' does not exist"),
        (TokenF1, {"tokenizer": "word"}, "tokenizer 'word' does not exist: did you mean 'words'?"),
    ],
)
def test_wrong_arguments(make, arguments, message):
    with pytest.raises(InputError) as error:
        make(**arguments)
    assert message in str(error.value)


def test_names_needs_and_pickle():
    rewards = [ExactMatch(), TokenF1(), TokenF1("recall")]
    assert [reward.__name__ for reward in rewards] == ["exact_match", "token_f1", "token_f1/recall"]
    assert {reward.needs for reward in rewards} == {("references",)}
    assert pickle.loads(pickle.dumps(rewards)) == rewards
