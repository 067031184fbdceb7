import pickle

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.repetition import Repetition


def repetition(completion, **arguments):
    [value] = Repetition(**arguments)([completion])
    return value


@pytest.mark.parametrize(("n", "expected"), [(1, -6 / 9), (2, -5 / 8), (3, -4 / 7), (9, 0)])
def test_three_times_the_same(n, expected):
    assert repetition("a b c a b c a b c", n=n) == pytest.approx(expected)


@pytest.mark.parametrize("completion", ["", "   ", "a", "a a", "a a a", "a b c d"])
def test_too_short_or_without_repetition(completion):
    assert repetition(completion) == 0


def test_a_loop_comes_near_to_minus_one():
    values = Repetition()(["spam " * count for count in (4, 10, 100, 1000)])
    assert values == [-1 / 2, -7 / 8, pytest.approx(-97 / 98), pytest.approx(-997 / 998)]
    assert values == sorted(values, reverse=True)


def test_characters():
    assert repetition("abab", n=2, unit="characters") == pytest.approx(-1 / 3)
    assert repetition("\u043a\u043e\u0442\u043a\u043e\u0442", n=3, unit="characters") == -0.25


def test_chats_and_other_columns():
    chat = [{"role": "assistant", "content": "a b a b"}]
    assert Repetition(n=2)([chat, "a b"], prompts=["x", "y"], references=[None, None]) == [pytest.approx(-1 / 3), 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be a whole number of at least 1, not 0"),
        ({"n": 2.0}, "n must be a whole number of at least 1, not 2.0"),
        ({"n": True}, "n must be a whole number"),
        ({"unit": "chars"}, "unit 'chars' does not exist: did you mean 'characters'?"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        Repetition(**arguments)
    assert message in str(error.value)


def test_name_and_pickle():
    reward = Repetition(n=2)
    assert reward.__name__ == "repetition"
    assert pickle.loads(pickle.dumps(reward)) == reward
