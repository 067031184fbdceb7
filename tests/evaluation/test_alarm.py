import pytest

from lastmile_trl.evaluation.alarm import Alarm, most_common_opening

ROWS = 20


def look(reward=0.5, **means):
    """A look in which every row differs from the next by a fixed small amount, so that means are exact."""
    names = {"facts": 0.5, "rouge": 0.5, "words": 10.0, "length_ratio": 1.0, "ended": 1.0, "repeated_3grams": 0.0}
    wave = [0.01 * (-1) ** row for row in range(ROWS)]
    measured = {name: [mean + step for step in wave] for name, mean in {**names, **means}.items()}
    texts = [f"text {row} is its own" for row in range(ROWS)]
    return texts, measured, [reward + step for step in wave]


def alarm(**means):
    return Alarm(*look(**means), rewarded={"rouge"})


def test_nothing_to_say_about_what_stays_or_gets_better():
    assert alarm().signs(*look()) == {}
    assert alarm().signs(*look(reward=0.9, facts=0.6, rouge=0.9, ended=1.0)) == {}
    # A length that comes back to the references', and less repetition, are good news.
    assert alarm(length_ratio=2.0, repeated_3grams=0.4, ended=0.5).signs(*look(reward=0.9)) == {}


def test_a_metric_that_falls_while_the_reward_rises():
    signs = alarm().signs(*look(reward=0.7, facts=0.4))
    assert signs == {
        "facts": "the reward has risen by 0.200 while facts, which is not rewarded, has fallen by 0.100 "
        "[0.100, 0.100]: what is rewarded is not what is meant"
    }


@pytest.mark.parametrize(
    "later",
    [
        {"reward": 0.5, "facts": 0.4},  # the reward has not risen
        {"reward": 0.4, "facts": 0.4},
        {"reward": 0.7, "rouge": 0.4},  # a reward among others may fall, and its weight says so
    ],
)
def test_what_is_no_gaming(later):
    assert alarm().signs(*look(**later)) == {}


def test_a_fall_within_chance_is_none():
    texts, measured, rewards = look(reward=0.7)
    measured["facts"] = [value + (0.3 if row % 2 else -0.32) for row, value in enumerate(measured["facts"])]
    assert sum(measured["facts"]) / ROWS == pytest.approx(0.49)
    assert alarm().signs(texts, measured, rewards) == {}


def test_rows_without_a_value_are_left_out():
    texts, measured, rewards = look(reward=0.7, facts=0.4)
    measured["facts"] = [None] * ROWS
    assert alarm().signs(texts, measured, rewards) == {}
    texts, measured, rewards = look(reward=0.7)
    measured["length_ratio"] = [None] * ROWS
    assert alarm().signs(texts, measured, rewards) == {}


@pytest.mark.parametrize(
    ("before", "now", "sign"),
    [
        (1.0, 1.3, "outputs are 1.30 times as long as the references, 1.00 at the start"),
        (1.0, 1.2, None),
        (1.0, 0.7, "outputs are 0.70 times as long as the references, 1.00 at the start"),
        (0.8, 1.1, None),  # nearer to 1 than it was
        (0.9, 1.3, "outputs are 1.30 times as long as the references, 0.90 at the start"),
        (0.8, 0.0, "outputs are 0.00 times as long as the references, 0.80 at the start"),
    ],
)
def test_length_drifts(before, now, sign):
    found = alarm(length_ratio=before).signs(*look(length_ratio=now))
    assert found == ({"length_ratio": sign} if sign else {})


def test_repetition_and_endings():
    signs = alarm().signs(*look(repeated_3grams=0.06, ended=0.9))
    assert signs == {
        "repeated_3grams": "outputs repeat themselves more: repeated_3grams is 0.06, 0.00 at the start",
        "ended": "outputs end by themselves less often: ended is 0.90, 1.00 at the start",
    }
    assert alarm().signs(*look(repeated_3grams=0.04, ended=0.96)) == {}


def test_outputs_that_begin_alike():
    _, measured, rewards = look()
    texts = ["In short, it is: " + str(row) if row < 6 else f"text {row} is" for row in range(ROWS)]
    assert alarm().signs(texts, measured, rewards) == {
        "opening": "30% of the outputs begin with 'In short, it is:', 5% did so at the start"
    }
    assert alarm().signs(texts[1:] + ["another"], measured, rewards) == {}  # 25 %


def test_the_most_common_opening():
    assert most_common_opening(["a b c d e", "a b c d f", "a b c", ""]) == ("a b c d", 0.5)
