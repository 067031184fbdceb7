"""What runs are held against, by hand on texts."""

import pytest

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.evaluation.baselines import BestOfN, build
from lastmile_trl.evaluation.decoding import Output, Several
from lastmile_trl.evaluation.metrics import per_row
from lastmile_trl.recipe import Data
from lastmile_trl.rewards import build as build_rewards

DATA = Data(path="x", prompt="{text}:", references="target")


def one(entry, data=DATA):
    [baseline] = build([entry], data)
    return baseline


def test_lead_takes_the_first_sentences_of_the_source():
    rows = [{"text": " Dr. Ann called. Bob wrote.\n\nCid ran."}, {"text": "no end mark"}, {"text": None}]
    lead, two = one("lead").outputs(rows), one({"lead": {"sentences": 2}}).outputs(rows)
    assert [output.text for output in lead] == ["Dr. Ann called.", "no end mark", "– (the source is empty)"]
    assert [output.text for output in two] == ["Dr. Ann called. Bob wrote.", "no end mark", "– (the source is empty)"]
    assert lead[0] == Output("Dr. Ann called.", None, True)


@pytest.mark.parametrize(
    ("data", "arguments", "column"),
    [
        ({"prompt": "{text}:"}, None, "text"),
        ({"prompt": "{topic} {text}", "shorten": "topic"}, None, "topic"),
        ({"prompt": "{topic} {text}", "shorten": "topic"}, {"column": "text"}, "text"),
        ({"messages": [{"role": "user", "content": "{text}"}]}, None, "text"),
    ],
)
def test_the_source_of_lead(data, arguments, column):
    assert one({"lead": arguments}, Data(path="x", **data)).column == column


def test_references_are_held_against_the_others_of_their_row():
    rows = [
        {"prompt": "p", "references": ["a cat sat", "a cat", "one dog sat"]},
        {"prompt": "q", "references": ["alone"]},
    ]
    shown = one("reference").outputs(rows)
    assert [output.text for output in shown] == ["a cat sat", "– (the row has a single reference)"]
    values = per_row(shown, rows, build_rewards(["rouge"]))
    # against the best of the two others: 2*2/(3+2), 2*2/(2+3), and `sat` alone of 3 and 3 words
    assert values["rouge/rougeL"] == [pytest.approx((0.8 + 0.8 + 1 / 3) / 3), None]
    assert values["words"] == [pytest.approx(8 / 3), None]
    # 3 words against 3; 2 against 3; 3 against 3
    assert values["length_ratio"] == [pytest.approx((1 + 2 / 3 + 1) / 3), None]
    assert values["ended"] == [None, None] and values["repeated_3grams"] == [0.0, None]


def test_rows_without_any_output_have_no_value_and_ask_no_metric():
    missing = Several("– (why)", None, False, outputs=[])
    values = per_row([missing, missing], [{"prompt": "p", "references": ["a"]}] * 2, build_rewards(["rouge"]))
    assert set(values) == {"rouge/rougeL", "words", "length_ratio", "ended", "repeated_3grams"}
    assert all(of_rows == [None, None] for of_rows in values.values())


def samples(*texts):
    return [Output(text, None, True) for text in texts]


def test_best_of_n_shows_the_sample_with_the_highest_weighted_reward():
    entries = [{"repetition": {"n": 1, "weight": 2.0}}, {"tests.evaluation.test_baselines:fewer": {"weight": 0.5}}]
    best = one({"best_of_n": {"n": 2, "rewards": entries}})
    rows = [{"prompt": "p", "references": ["a"], "target": "a"}] * 2
    # 2 * -(1 - 1/2) - 0.5 * 2 = -2 against 0 - 0.5 * 3; then equals, of which the first is shown
    texts = [samples("a a", "a b c"), samples("b a", "a b")]
    assert [output.text for output in best.outputs(texts, rows, best.built)] == ["a b c", "b a"]
    assert not best.is_oracle and best.name == "best_of_2"


def fewer(completions, **columns):
    """A reward for fewer words."""
    return [-float(len(text.split())) for text in completions]


def nothing(completions, **columns):
    """A reward that can score no text."""
    return [None] * len(completions)


def peeks(completions, **columns):
    """Reads the references without saying that it needs them."""
    return [float(text in references) for text, references in zip(completions, columns["references"], strict=True)]


def reads_target(completions, target, **columns):
    """Reads the references by the name of their column."""
    return [float(text == wanted) for text, wanted in zip(completions, target, strict=True)]


@pytest.mark.parametrize("reward", ["rouge", "tests.evaluation.test_baselines:reads_target"])
def test_an_oracle_says_so_in_its_name(reward):
    best = one({"best_of_n": {"n": 2, "rewards": [reward], "of": "grpo"}})
    assert best.is_oracle and best.name == "oracle_best_of_2 of grpo"
    rows = [{"prompt": "p", "references": ["a dog"], "target": "a dog"}]
    [shown] = best.outputs([samples("a cat", "a dog")], rows, best.built)
    assert shown.text == "a dog"


def test_a_reward_that_does_not_say_so_cannot_see_the_references():
    best = one({"best_of_n": {"n": 2, "rewards": ["tests.evaluation.test_baselines:peeks"]}})
    rows = [{"prompt": "p", "references": ["a"], "target": "a"}]
    with pytest.raises(RunError, match="Reward 'peeks' failed.*KeyError: 'references'"):
        best.outputs([samples("a", "b")], rows, best.built)


def test_a_row_whose_samples_have_no_reward_shows_none():
    best = one({"best_of_n": {"n": 2, "rewards": ["tests.evaluation.test_baselines:nothing"]}})
    [shown] = best.outputs([samples("a", "b")], [{"prompt": "p", "references": ["a"]}], best.built)
    reason = "no sample has a reward"
    assert shown == Several(f"– ({reason})", None, False, outputs=[], why_none=reason)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["leed"], "evaluation.baselines: baseline 'leed' does not exist: did you mean 'lead'?"),
        ([{"lead": {"sentence": 2}}], "lead: argument 'sentence' does not exist: did you mean 'sentences'?"),
        ([{"lead": {"sentences": 0}}], "lead: sentences must be a whole number of at least 1, not 0."),
        ([{"lead": 3}], "lead: its arguments must be `key: value` pairs, not 3."),
        ([{"lead": None, "base": None}], "one is a name, or one name with arguments"),
        ([7], "one is a name, or one name with arguments, not 7."),
        (["lead", "lead"], "two are called 'lead': drop one."),
        ([{"base": {"of": "x"}}], "base: argument 'of' does not exist"),
        ([{"best_of_n": {"n": 1, "rewards": ["rouge"]}}], "best_of_n: n must be a whole number of at least 2, not 1."),
        (["best_of_n"], "best_of_n: rewards must be a list, as in the section `rewards`"),
        ([{"best_of_n": {"rewards": ["rogue"]}}], "best_of_n: Reward 'rogue' does not exist"),
    ],
)
def test_what_is_refused(entries, said):
    with pytest.raises(InputError) as error:
        build(entries, DATA)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_lead_needs_to_know_the_source():
    with pytest.raises(InputError, match="lead: the template names several columns or none"):
        build(["lead"], Data(path="x", prompt="{topic} {text}"))


def test_best_of_n_knows_its_rewards_again_when_it_is_placed():
    best = BestOfN(n=4, rewards=["rouge"])
    assert best.on(DATA).built[0].name == "rouge/rougeL" and best.on(DATA).n == 4
