import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.repetition import Loop, RepeatedSentences, Repetition
from lastmile_trl.rewards.sentences import sentences


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"longest": 0}, "longest must be a whole number of at least 1, not 0"),
        ({"unit": "token"}, "unit 'token' does not exist: did you mean 'tokens'?"),
    ],
)
def test_wrong_arguments_of_loop(arguments, message):
    with pytest.raises(InputError) as error:
        Loop(**arguments)
    assert message in str(error.value)


def test_names_and_pickle():
    rewards = [Repetition(n=2), Loop(longest=9), RepeatedSentences()]
    assert [reward.__name__ for reward in rewards] == ["repetition", "loop", "repeated_sentences"]
    assert pickle.loads(pickle.dumps(rewards)) == rewards


def test_tokens():
    ids = [[5, 6, 5, 6, 2], None, []]
    # 5 6 | 6 5 | 5 6 | 6 2: three of four are different; 5 6 is said again: two of five
    assert Repetition(n=2, unit="tokens")(["", "a a a", ""], completion_ids=ids) == [-1 / 4, None, 0]
    assert Loop(unit="tokens")(["", "a a a", ""], completion_ids=ids) == [-2 / 5, None, 0]


@pytest.mark.parametrize("reward", [Repetition(unit="tokens"), Loop(unit="tokens")])
def test_tokens_need_the_ids(reward):
    assert reward.needs == ("completion_ids",)
    with pytest.raises(ValueError, match="unit 'tokens' counts generated tokens: pass completion_ids"):
        reward(["a a a"])
    with pytest.raises(ValueError, match="longer"):
        reward(["a", "b"], completion_ids=[[1]])


def test_text_needs_nothing():
    assert Repetition().needs == Loop().needs == RepeatedSentences().needs == ()


def loop(completion, **arguments):
    [value] = Loop(**arguments)([completion])
    return value


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("a b a b a b", -4 / 6),
        ("a b a b a", -3 / 5),  # a round need not be whole, once the first is
        ("a a", -1 / 2),
        ("a a a a", -3 / 4),  # of periods 1 and 2, the one that says more again
        ("a b c a b c", -3 / 6),
        ("a b c a b", 0),  # the block of three is not said again in full
        ("x a b a b y c c c c", -3 / 10),  # the longest of several
        ("a b x a b y a b", 0),  # not at once
        ("go go go. go", -1 / 4),  # exact words: `go.` is another
        ("Go go", 0),
        ("\u043a\u043e\u0442 \u043a\u043e\u0442", -1 / 2),
        ("\U0001f600 \U0001f600 \U0001f600", -2 / 3),
        ("", 0),
        (" \n", 0),
        ("a", 0),
    ],
)
def test_loop(completion, expected):
    assert loop(completion) == pytest.approx(expected)


def test_a_loop_of_characters():
    assert loop("\u732b\u72d7\u732b\u72d7", unit="characters") == -2 / 4
    assert loop("hello", unit="characters") == -1 / 5
    assert loop("done.\n\n\n\n\n", unit="characters") == -4 / 10


def test_a_block_longer_than_the_longest_is_not_found():
    block = " ".join(map(str, range(50)))
    assert loop(f"{block} {block}") == -0.5
    assert loop(f"{block} x {block} x") == 0
    assert loop(f"{block} x {block} x", longest=51) == -0.5
    assert loop("a b a b", longest=1) == 0


def said_again(row, longest):
    """Count a loop's repeated units by trying every place and every period."""
    found = 0
    for period in range(1, longest + 1):
        for start in range(period, len(row)):
            end = start
            while end < len(row) and row[end] == row[end - period]:
                end += 1
            if end - start >= period:
                found = max(found, end - start)
    return found


rows = st.lists(st.integers(0, 2), max_size=40) | st.builds(
    lambda before, block, times, after: before + block * times + after,
    *[st.lists(st.integers(0, 3), max_size=12)] * 2,
    st.integers(1, 5),
    st.lists(st.integers(0, 3), max_size=12),
)


@given(rows, st.integers(1, 12))
@example([0, 1, 0, 1, 0, 1], 12)
def test_loop_is_the_longest_that_can_be_found(row, longest):
    [value] = Loop(longest, unit="tokens")([""], completion_ids=[row])
    assert value == pytest.approx(-said_again(row, longest) / max(len(row), 1))
    assert -1 < value <= 0


@given(st.lists(st.integers(), min_size=1, max_size=12, unique=True), st.integers(1, 6), st.integers(0, 12))
def test_the_longer_a_loop_runs_the_more_it_costs(block, times, more):
    row = block * times + block[:more]
    values = Loop(12, unit="tokens")([""] * 2, completion_ids=[row, (block * (times + 2))[: len(row) + 1]])
    assert values[1] <= values[0]
    assert values[0] == (pytest.approx(len(block) / len(row) - 1) if len(row) >= 2 * len(block) else 0)


@given(st.text(alphabet="ab ", max_size=30), st.integers(1, 4), st.integers(2, 5))
def test_saying_all_again_never_raises_repetition(text, n, times):
    once, again = Repetition(n)([text, " ".join([text] * times)])
    assert again <= once


def repeated_sentences(completion):
    [value] = RepeatedSentences()([completion])
    return value


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("He left. She stayed.", 0),
        ("He left. She stayed. He left.", -1 / 3),
        ("He left. HE  LEFT. he left.", -2 / 3),
        ("He left. He left", 0),  # one is without its full stop
        ("He left. He left!", 0),
        ("milk\neggs\n\nmilk", -1 / 3),
        ("\n\nHe left. He left.\n\n", -1 / 2),  # an empty line is no sentence
        ("Mr. A left. Mr. A left.", -1 / 2),
        ("\u4ed6\u8d70\u4e86\u3002\u4ed6\u8d70\u4e86\u3002\u5979\u7559\u4e0b\u3002", -1 / 3),
        ("\u041e\u043d \u0443\u0448\u0451\u043b. \u043e\u043d \u0443\u0448\u0451\u043b.", -1 / 2),
        ("", 0),
        (" \n", 0),
    ],
)
def test_repeated_sentences(completion, expected):
    assert repeated_sentences(completion) == pytest.approx(expected)


def test_repeated_sentences_of_chats():
    chat = [{"role": "user", "content": "Hi. Hi."}, {"role": "assistant", "content": "Yes. No. Yes. No."}]
    assert RepeatedSentences()([chat, "Yes."], references=[None, None]) == [-1 / 2, 0]


@given(st.lists(st.sampled_from(["He left. ", "She stayed! ", "Why? ", "\u597d\u3002"]), min_size=1, max_size=8))
def test_a_sentence_said_again_never_raises_the_value(said):
    different = len(set(said))
    assert repeated_sentences("".join(said)) == pytest.approx(different / len(said) - 1)
    assert repeated_sentences("".join([*said, said[0]])) < 0


@given(st.text(alphabet='ab.!? \n\u3002"') | st.text())
def test_sentences_joined_are_the_text(text):
    assert "".join(sentences(text)) == text
