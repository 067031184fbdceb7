import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.length import Length, Overlong


def words(count):
    return " ".join(["word"] * count)


def length(completion, references, *arguments, **keywords):
    [value] = Length(*arguments, **keywords)([completion], [references])
    return value


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 0), (5, 0), (10, 0), (11, 0), (12, -0.1), (15, -0.4), (21, -1), (500, -1)]
)
def test_excess(count, expected):
    assert length(words(count), words(10)) == pytest.approx(expected)


def test_excess_without_tolerance():
    assert length(words(11), words(10), tolerance=0) == pytest.approx(-0.1)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (5, 0.5), (10, 1), (20, 0.5)])
def test_ratio(count, expected):
    assert length(words(count), words(10), "ratio") == expected


@pytest.mark.parametrize(("count", "expected"), [(8, 0.726), (10, 1), (12, 0.726), (15, 0.135), (5000, 0)])
def test_gaussian(count, expected):
    assert length(words(count), words(10), "gaussian") == pytest.approx(expected, abs=5e-4)


def test_gaussian_at_the_distance_of_sigma():
    assert length(words(15), words(10), "gaussian", sigma=0.5) == pytest.approx(0.60653, abs=1e-5)


@pytest.mark.parametrize("variant", ["excess", "ratio", "gaussian"])
@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize("references", ["", " \n", [], None, ["", " "]])
def test_without_a_reference_there_is_no_score(variant, unit, references):
    assert length("some words", references, variant, unit=unit) is None


def test_the_nearest_reference_counts():
    assert length(words(9), [words(2), words(10), words(30)], "ratio") == 0.9
    assert length(words(9), ["", words(10)], "ratio") == 0.9


def test_of_two_equally_near_references_the_shorter_counts_in_any_order():
    for references in ([words(8), words(12)], [words(12), words(8)]):
        assert length(words(10), references) == pytest.approx(-0.15)


def test_characters():
    assert length("abcd", "ab", "ratio", unit="characters") == 0.5
    assert length(" abcd\n", "abcd", "ratio", unit="characters") == 1
    assert length("\u043a\u043e\u0442", "\u043a\u043e\u0442\u044b", "ratio", unit="characters") == 0.75


def test_chats():
    assert length([{"role": "assistant", "content": words(5)}], words(10), "ratio") == 0.5


def test_monotone_in_the_distance():
    counts = range(41)
    for variant in ("excess", "ratio", "gaussian"):
        values = Length(variant)([words(count) for count in counts], [words(10)] * 41)
        assert values[10:] == sorted(values[10:], reverse=True)
        assert values[:11] == sorted(values[:11])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "gausian"}, "variant 'gausian' does not exist: did you mean 'gaussian'?"),
        ({"unit": "word"}, "unit 'word' does not exist: did you mean 'words'?"),
        ({"tolerance": -0.1}, "tolerance must be a number of at least 0, not -0.1"),
        ({"tolerance": "0.1"}, "tolerance must be a number of at least 0, not '0.1'"),
        ({"tolerance": float("nan")}, "tolerance must be a number"),
        ({"sigma": 0}, "sigma must be a number above 0, not 0"),
        ({"sigma": True}, "sigma must be a number above 0, not True"),
        ({"target": 0}, "target must be a number above 0, not 0"),
        ({"target": "20"}, "target must be a number above 0, not '20'"),
        ({"unit": "tokens"}, "unit 'tokens' needs a target: references have no generated tokens to compare with."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        Length(**arguments)
    assert message in str(error.value)


def test_names_and_pickle():
    rewards = [Length("excess"), Length("ratio"), Length("gaussian", sigma=0.5, target=20), Overlong(100)]
    assert [reward.__name__ for reward in rewards] == ["length/excess", "length/ratio", "length/gaussian", "overlong"]
    assert pickle.loads(pickle.dumps(rewards)) == rewards


@pytest.mark.parametrize(
    ("variant", "target", "expected"),
    [("excess", 8, 1.1 - 10 / 8), ("excess", 12.5, 0), ("ratio", 8, 0.8), ("ratio", 12.5, 0.8), ("gaussian", 10, 1)],
)
def test_a_target_needs_no_references_and_ignores_them(variant, target, expected):
    reward = Length(variant, target=target)
    assert reward([words(10)]) == reward([words(10)], references=["three words only"]) == [pytest.approx(expected)]


def test_a_target_in_each_unit():
    assert Length("ratio", unit="characters", target=8)([" abcd\n"]) == [0.5]
    assert Length("ratio", unit="tokens", target=8)(["", "x"], completion_ids=[[5, 6, 7, 2], [2]]) == [0.5, 0.125]


def test_a_row_without_ids_has_no_tokens_to_count():
    assert Length("ratio", unit="tokens", target=2)(["a", "b"], completion_ids=[None, [3, 2]]) == [None, 1]
    assert Overlong(10)(["a", "b"], completion_ids=[None, [3, 2]]) == [None, 0]


def test_the_columns_that_are_needed():
    assert Length().needs == Length(unit="characters").needs == ("references",)
    assert Length(target=5).needs == Overlong(5, unit="words").needs == ()
    assert Length(target=5, unit="tokens").needs == Overlong(5).needs == ("completion_ids",)


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="nothing to compare the length with: pass references, or give a target"):
        Length()(["some words"])
    for reward in (Length(target=5, unit="tokens"), Overlong(5)):
        with pytest.raises(ValueError, match="unit 'tokens' counts generated tokens: pass completion_ids"):
            reward(["some words"])
        with pytest.raises(ValueError, match="longer than"):
            reward(["some words", "more"], completion_ids=[[1]])


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 50), st.floats(0, 2))
def test_more_words_beyond_the_reference_never_raise_excess(reference, count, more, tolerance):
    shorter, longer = Length(tolerance=tolerance)([words(count), words(count + more)], [words(reference)] * 2)
    assert -1 <= longer <= shorter <= 0
    assert shorter == 0 or count > reference


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1)])
def test_overlong(count, expected):
    assert Overlong(100, 20)([""], completion_ids=[[7] * count]) == [pytest.approx(expected)]
    assert Overlong(100)([""], completion_ids=[[7] * count]) == [pytest.approx(expected)], "a fifth is the default"
    assert Overlong(100, 20, "words")([words(count)]) == [pytest.approx(expected)]
    assert Overlong(100, 20, "characters")([" " + "\u732b" * count + "\n"]) == [pytest.approx(expected)]


def test_overlong_with_the_limit_as_margin():
    assert Overlong(4, margin=4, unit="words")(["", "a", "a b", "a b c d"]) == [0, -0.25, -0.5, -1]


def test_overlong_of_chats_counts_the_last_message():
    chat = [{"role": "user", "content": words(50)}, {"role": "assistant", "content": words(3)}]
    assert Overlong(4, margin=2, unit="words")([chat]) == [-0.5]


@given(st.integers(1, 300), st.floats(0.01, 1), st.integers(0, 400))
def test_overlong_never_rises_with_length(limit, share, count):
    values = Overlong(limit, limit * share)(["", ""], completion_ids=[[7] * count, [7] * (count + 1)])
    assert -1 <= values[1] <= values[0] <= 0
    assert (values[0] == -1) == (count >= limit)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit must be a whole number of at least 1, not 0"),
        ({"limit": 9.5}, "limit must be a whole number of at least 1, not 9.5"),
        ({"limit": 10, "margin": 0}, "margin must be a number above 0, not 0"),
        ({"limit": 10, "margin": 11}, "margin must be at most the limit, 10, not 11"),
        ({"limit": 10, "unit": "token"}, "unit 'token' does not exist: did you mean 'tokens'?"),
    ],
)
def test_wrong_arguments_of_overlong(arguments, message):
    with pytest.raises(InputError) as error:
        Overlong(**arguments)
    assert message in str(error.value)
