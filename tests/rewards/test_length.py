import pickle

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.length import Length


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
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        Length(**arguments)
    assert message in str(error.value)


def test_names_and_pickle():
    rewards = [Length("excess"), Length("ratio"), Length("gaussian", sigma=0.5)]
    assert [reward.__name__ for reward in rewards] == ["length/excess", "length/ratio", "length/gaussian"]
    assert pickle.loads(pickle.dumps(rewards)) == rewards
