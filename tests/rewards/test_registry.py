import math
import statistics
import subprocess
import sys
from decimal import Decimal

import pytest

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.rewards import Reward, build, score

HERE = __name__


# -- Rewards as a user would write them --------------------------------------------------------------------------------


def shortness(completions, **columns):
    return [-len(completion) for completion in completions]


def matches(completions, answer, *, prompts, trainer_state=None, limit=3, **columns):
    return [float(completion == right) for completion, right in zip(completions, answer, strict=True)]


async def slow(completions, **columns):
    return [0.0] * len(completions)


def fails_on_bad(completions, **columns):
    return [1 / (completion != "bad") for completion in completions]


def fails_on_pairs(completions, **columns):
    if len(completions) > 1:
        raise ValueError("one at a time")
    return [0.0]


class Keyword:
    """Whether the completion holds a word."""

    def __init__(self, word, upper=False):
        if not word:
            raise ValueError("an empty word is in every text")
        self.word = word.upper() if upper else word

    def __call__(self, completions, **columns):
        return [float(self.word in completion) for completion in completions]


NUMBER = 3


# -- Building ----------------------------------------------------------------------------------------------------------


def test_entries():
    rewards = build(
        [
            "rouge",
            {"rouge": {"variant": "rouge2", "weight": 2, "name": "pairs"}},
            {"length": None},
            {f"{HERE}:Keyword": {"word": "cat", "weight": -0.5}},
            f"{HERE}:shortness",
        ]
    )
    assert [(reward.name, reward.weight, reward.needs) for reward in rewards] == [
        ("rouge/rougeL", 1.0, ("references",)),
        ("pairs", 2.0, ("references",)),
        ("length/excess", 1.0, ("references",)),
        ("Keyword", -0.5, ()),
        ("shortness", 1.0, ()),
    ]
    assert rewards[1].function.variant == "rouge2"
    assert rewards[3](["a cat", "a dog"]) == [1, 0]
    assert rewards[4].function is shortness


def test_a_function_needs_the_columns_it_cannot_do_without():
    [reward] = build([f"{HERE}:matches"])
    assert reward.needs == ("answer",)


def test_building_leaves_the_recipe_as_it_was():
    entry = {"rouge": {"variant": "rouge2", "weight": 2.0, "name": "pairs"}}
    build([entry])
    assert entry == {"rouge": {"variant": "rouge2", "weight": 2.0, "name": "pairs"}}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["rogue"], "Reward 'rogue' does not exist: did you mean 'rouge'? Valid: rouge, combined_rouge,"),
        (["zzz"], "Reward 'zzz' does not exist. Valid: rouge, combined_rouge,"),
        (
            [{"rouge": {"varient": "rouge1"}}],
            "Reward 'rouge': argument 'varient' does not exist: did you mean 'variant'?",
        ),
        ([{"rouge": {"wieght": 1}}], "Reward 'rouge': argument 'wieght' does not exist: did you mean 'weight'?"),
        ([{"rouge": {"variant": "rougel"}}], "Reward 'rouge': variant 'rougel' does not exist: did you mean 'rougeL'?"),
        ([{"repetition": {"n": 0}}], "Reward 'repetition': n must be a whole number of at least 1, not 0."),
        (["rouge", "rouge"], "Two rewards are called 'rouge/rougeL': give one of them `name:`."),
        (["rouge", {"length": {"name": "rouge/rougeL"}}], "Two rewards are called 'rouge/rougeL'"),
        ([{"rouge": {"weight": "1"}}], "Reward 'rouge': weight must be a number, not '1'."),
        ([{"rouge": {"weight": math.inf}}], "Reward 'rouge': weight must be a number, not inf."),
        ([{"rouge": {"weight": True}}], "Reward 'rouge': weight must be a number, not True."),
        ([{"rouge": {"name": ""}}], "Reward 'rouge': name must be a text, not ''."),
        ([{"rouge": "rouge1"}], "Reward 'rouge': its arguments must be `key: value` pairs, not 'rouge1'."),
        ([{"rouge": None, "variant": "rouge1"}], "A reward has one name, and this one has 2 (rouge, variant)"),
        ([{}], "A reward is a name, or a name with arguments, not {}."),
        ([3], "A reward is a name, or a name with arguments, not 3."),
        ("rouge", "rewards must be a list, not 'rouge'."),
        ({"rouge": {}}, "rewards must be a list, not {'rouge': {}}."),
        (None, "rewards must be a list, not None."),
        (["no_such_module:f"], "Reward 'no_such_module:f': importing 'no_such_module' failed with ModuleNotFoundError"),
        (["math:sqr"], "Reward 'math:sqr': module 'math' has no 'sqr': did you mean 'sqrt'?"),
        ([f"{HERE}:NUMBER"], f"Reward '{HERE}:NUMBER' is neither a function nor a class."),
        ([{f"{HERE}:shortness": {"word": "cat"}}], "takes only name, weight, clip, scale, gate here, not word"),
        ([f"{HERE}:Keyword"], "needs the argument 'word'"),
        ([{f"{HERE}:Keyword": {"word": ""}}], "an empty word is in every text"),
        ([f"{HERE}:slow"], f"Reward '{HERE}:slow' is asynchronous: give a plain function."),
    ],
)
def test_wrong_entries(entries, message):
    with pytest.raises(InputError) as error:
        build(entries)
    assert message in str(error.value)


# -- Calling -----------------------------------------------------------------------------------------------------------


def test_called_as_a_trainer_calls():
    extras = {}
    call = dict(
        prompts=["p", "p", "q"],
        completions=[[{"role": "assistant", "content": text}] for text in ("the cat", "a dog", "the cat")],
        completion_ids=[[1, 2], [3], [1, 2]],
        references=[["the cat"], ["the cat"], []],
        source=["x", "y", "z"],
        trainer_state=object(),
        log_extra=extras.__setitem__,
        log_metric=extras.__setitem__,
    )
    values = {reward.name: reward(**call) for reward in build(["rouge", "length", "repetition"])}
    assert values == {"rouge/rougeL": [1, 0, None], "length/excess": [0, 0, None], "repetition": [0, 0, 0]}


def returning(values):
    return Reward("mine", lambda completions, **columns: values)


def test_numbers_become_floats_and_none_stays():
    values = returning((True, 2, None))(["a", "b", "c"])
    assert values == [1.0, 2.0, None]
    assert [type(value) for value in values] == [float, float, type(None)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, math.nan], "Reward 'mine' returned nan on row 1 of the batch (completion 'dog')"),
        ([math.inf, 0.5], "Reward 'mine' returned inf on row 0 of the batch (completion 'cat')"),
        ([0.5, "0.5"], "Reward 'mine' returned '0.5' on row 1"),
        ([[0.5], [0.5]], "Reward 'mine' returned [0.5] on row 0"),
        ([Decimal(1), 0.0], "Reward 'mine' returned Decimal('1') on row 0"),
        ([0.5], "Reward 'mine' returned 1 values for 2 completions."),
        ([0.5] * 3, "Reward 'mine' returned 3 values for 2 completions."),
        ([], "Reward 'mine' returned 0 values for 2 completions."),
        (0.5, "Reward 'mine' returned 0.5; it must return a list with one number per completion."),
        (None, "Reward 'mine' returned None; it must return a list"),
        ("ab", "Reward 'mine' returned 'ab'; it must return a list"),
        ({0: 0.1, 1: 0.2}, "it must return a list"),
    ],
)
def test_what_a_function_may_not_return(values, message):
    with pytest.raises(RunError) as error:
        returning(values)(["cat", "dog"])
    assert message in str(error.value)


def test_an_exception_names_the_reward_and_the_row():
    with pytest.raises(RunError) as error:
        Reward("mine", fails_on_bad)(["good", "fine", "bad", "bad"], prompts=list("abcd"), trainer_state=object())
    assert str(error.value) == (
        "Reward 'mine' failed on row 2 of the batch (prompt 'c', completion 'bad'): ZeroDivisionError: division by zero"
    )
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_an_exception_that_no_row_causes_alone():
    with pytest.raises(
        RunError, match="'mine' failed on the whole batch, though on none of its rows alone: ValueError"
    ):
        Reward("mine", fails_on_pairs)(["a", "b"])


def test_an_exception_of_ours_names_the_row_too():
    [reward] = build(["rouge"])
    with pytest.raises(
        RunError, match=r"'rouge/rougeL' failed on row 1 of the batch .* references are a string or a list"
    ):
        reward(["a", "b"], references=["a", 3])


def test_a_missing_column():
    [reward] = build(["rouge"])
    with pytest.raises(RunError) as error:
        reward(completions=["a"], prompts=["p"], completion_ids=[[1]], summary=["a"], log_extra=print)
    assert str(error.value) == "Reward 'rouge/rougeL' needs the column 'references', and the rows have only: summary."


# -- Scoring rows ------------------------------------------------------------------------------------------------------


def test_score():
    rewards = build(["rouge", {"repetition": {"n": 1}}, f"{HERE}:matches"])
    rows = [
        {"prompt": "p", "prediction": "a b", "references": "a b", "answer": "a b"},
        {"prompt": "p", "completion": "a a", "references": ["a b", "c"], "answer": "a"},
        {"prediction": "a b", "answer": "c"},
    ]
    assert score(rewards, rows) == [
        {"rouge/rougeL": 1.0, "repetition": 0.0, "matches": 1.0},
        {"rouge/rougeL": 0.5, "repetition": -0.5, "matches": 0.0},
        {"rouge/rougeL": None, "repetition": 0.0, "matches": 0.0},
    ]


def test_score_nothing():
    assert score(build(["rouge"]), []) == []
    assert score([], [{"prediction": "a"}]) == [{}]


def test_score_needs_predictions():
    with pytest.raises(InputError, match="Row 1 has no `prediction` .*, only: references"):
        score(build(["rouge"]), [{"prediction": "a", "references": "a"}, {"references": "a"}])


def test_score_needs_the_columns():
    with pytest.raises(RunError, match="needs the column 'references', and the rows have only: reference"):
        score(build(["rouge"]), [{"prediction": "a", "reference": "a"}])


# -- Importing ---------------------------------------------------------------------------------------------------------


def test_importing_is_light():
    program = """
import sys, time
before = time.perf_counter()
from lastmile_trl.rewards import build
build(["rouge", "length", "repetition"])
print(time.perf_counter() - before)
print([name for name in ("torch", "transformers", "trl", "datasets", "numpy", "nltk") if name in sys.modules])
"""
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        time_taken, heavy = run.stdout.splitlines()
        seconds.append(float(time_taken))
        assert heavy == "[]"
    assert statistics.median(seconds) < 0.3  # about a tenth of that on an idle machine
