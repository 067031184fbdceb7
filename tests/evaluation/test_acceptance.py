import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_fixture import EVIL
from test_report import Page, browser, luminance, texts  # noqa: F401  (`browser` is a fixture)

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.evaluation.acceptance import (
    Sample,
    Scored,
    acceptance,
    check_require,
    failures,
    table,
    verdict,
    write_page,
)

judge = partial(acceptance, samples=[], metric=None)


def pair(margin, category="shuffled", *, chosen=0.0, words=5, prompt="Say it.", text="it is red"):
    return Scored(category, chosen, chosen - margin, words, 4, prompt, text, "red is it")


def pairs(*margins, category="shuffled"):
    """Pairs with these margins, every chosen answer another one."""
    return [pair(margin, category, text=f"answer {number}") for number, margin in enumerate(margins)]


def ranked(right, wrong, category="shuffled"):
    return pairs(*[1.0] * right, *[-1.0] * wrong, category=category)


def sample(score, reference, *, run="sft", decoding="greedy", words=5, metric=None, text="red"):
    return Sample(run, decoding, "Say it.", text, score, reference, words, 6, metric)


def confident(*confidences):
    """Margins whose sigmoid is the confidence; a negative one stands for a pair ranked wrong."""
    return [math.copysign(math.log(abs(p) / (1 - abs(p))), p) for p in confidences]


# Pairs


def test_a_tie_counts_half():
    accuracy = judge(pairs(2.0, 1.0, 0.0, -1.0))["all"]["accuracy"]
    assert (accuracy["mean"], accuracy["rows"]) == (0.625, 4)


def test_twenty_of_twenty_are_not_certain():
    accuracy = judge(ranked(20, 0))["all"]["accuracy"]
    assert accuracy["low"] == pytest.approx(20 / (20 + 1.959964**2))
    assert accuracy["mean"] == accuracy["high"] == 1.0


@given(right=st.integers(0, 60), wrong=st.integers(0, 60), ties=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_the_interval_ends_where_the_mean_lies_at_the_edge_of_chance(right, wrong, ties):
    if not right + wrong + ties:
        return
    accuracy = judge(pairs(*[1.0] * right, *[-1.0] * wrong, *[0.0] * ties))["all"]["accuracy"]
    for end in ("low", "high"):
        spread = math.sqrt(accuracy[end] * (1 - accuracy[end]) / accuracy["rows"])
        assert abs(accuracy["mean"] - accuracy[end]) == pytest.approx(1.959964 * spread, abs=1e-6)
    assert 0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 1


def test_scores_and_margins_by_hand():
    result = judge([pair(2.0, chosen=1.0), pair(4.0, chosen=3.0), pair(-1.0, "copied", chosen=-2.0)])
    shuffled, copied = result["categories"]["shuffled"], result["categories"]["copied"]
    assert (shuffled["chosen"], shuffled["rejected"]) == (2.0, -1.0)
    assert (copied["chosen"], copied["rejected"]) == (-2.0, -1.0)
    assert shuffled["margin"] == {
        "mean": 3.0,
        "q05": 2.1,
        "q25": 2.5,
        "median": 3.0,
        "q75": 3.5,
        "q95": pytest.approx(3.9),
    }
    assert set(copied["margin"].values()) == {-1.0}
    assert result["all"]["accuracy"]["rows"] == 3
    assert result["all"]["accuracy"]["mean"] == pytest.approx(2 / 3)
    assert result["all"]["margin"]["mean"] == pytest.approx(5 / 3)


def test_every_histogram_has_the_same_bins_of_round_width():
    result = judge([*pairs(-1.5, 0.0, 0.4, 15.0), pair(-1.2, "copied")])
    # a span of 16.5 in at most 40 bins needs 0.4125, and 0.5 is the next of 1, 2, 5 times a power of ten
    assert result["bins"] == [step / 2 for step in range(-3, 32)]
    assert result["categories"]["shuffled"]["histogram"] == [1, 0, 0, 2, *[0] * 29, 1]
    assert result["categories"]["copied"]["histogram"] == [1, *[0] * 33]


@given(st.lists(st.floats(-1e4, 1e4).map(lambda value: round(value, 4)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_every_margin_is_in_its_bin(margins):
    result = judge(pairs(*margins))
    edges, counts = result["bins"], result["all"]["histogram"]
    assert 0.0 in edges and len(counts) == len(edges) - 1 <= 42
    assert sum(counts) == len(margins)
    # wrong pairs, and only these, lie below 0
    assert sum(counts[: edges.index(0.0)]) == sum(margin < 0 for margin in margins)
    inside = Counter()
    for number, (low, high) in enumerate(pairwise(edges)):
        inside[number] = sum(low - 1e-6 <= margin <= high + 1e-6 for margin in margins)
    assert all(count <= inside[number] for number, count in enumerate(counts))


@pytest.mark.parametrize("margin", [0.0, 3.0, -3.0, 1e-9])
def test_margins_that_are_all_alike_are_drawn_beside_zero(margin):
    result = judge(pairs(margin, margin))
    assert sum(result["all"]["histogram"]) == 2 and result["bins"][0] <= min(margin, 0) and 0.0 in result["bins"]


def test_the_examples_are_the_typical_pairs_and_the_worst():
    result = judge([*pairs(3.0, -1.0, 5.0, 4.0), *pairs(-2.0, 0.0, category="copied")])
    found = {name: of["chosen"] - of["rejected"] for name, of in result["examples"]["categories"].items()}
    assert found == {"shuffled": 3.0, "copied": -2.0}
    assert [of["chosen"] - of["rejected"] for of in result["examples"]["worst"]] == [-2.0, -1.0]
    assert result["examples"]["worst"][0]["category"] == "copied"
    assert len(judge(ranked(1, 50))["examples"]["worst"]) == 8


def test_only_the_examples_hold_texts():
    result = acceptance([pair(1.0, prompt="SECRET", text="SECRET")], [sample(1, 2, text="SECRET")], metric="rouge")
    assert "SECRET" in json.dumps(result["examples"])
    assert "SECRET" not in json.dumps({key: value for key, value in result.items() if key != "examples"})


# Correlations


def of_chosen(points):
    found = [pair(1.0, chosen=score, words=words, text=str(number)) for number, (score, words) in enumerate(points)]
    return judge(found)["length_correlation"]


def test_the_correlation_with_length_by_hand():
    assert of_chosen([(1, 10), (2, 20), (3, 400)]) == pytest.approx(1.0)
    assert of_chosen([(3, 10), (2, 20), (1, 400)]) == pytest.approx(-1.0)
    # ranks 0 1.5 1.5 3 against 0 1 2 3: 4.5 / sqrt(4.5 * 5)
    assert of_chosen([(1, 2), (2, 3), (2, 5), (3, 9)]) == pytest.approx(4.5 / math.sqrt(22.5))
    assert of_chosen([(1, 5), (2, 5)]) is None
    assert of_chosen([(1, 5)]) is None


@given(st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 500)), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_correlation_of_ranks_is_the_same_of_logarithms_and_turns_its_sign(points):
    found = of_chosen(points)
    if found is None:
        assert len({score for score, _ in points}) == 1 or len({words for _, words in points}) == 1
        return
    assert -1 <= found <= 1
    assert of_chosen([(score, 10 * words + 3) for score, words in points]) == found
    assert of_chosen([(-score, words) for score, words in points]) == pytest.approx(-found, abs=1e-9)


def test_an_answer_in_many_pairs_counts_once():
    three = [pair(1.0, chosen=score, words=words, text=str(score)) for score, words in ((1, 3), (2, 9), (3, 6))]
    many = [*three, *[replace(three[0], category="copied", rejected=number) for number in range(5)]]
    assert judge(many)["length_correlation"] == judge(three)["length_correlation"] == pytest.approx(0.5)
    # the same words under another prompt are another answer: ranks 0 1 2 3 against 0.5 3 2 0.5
    elsewhere = replace(three[0], prompt="Else?", chosen=9.0)
    assert judge([*three, elsewhere])["length_correlation"] == pytest.approx(-0.5 / math.sqrt(5 * 4.5))


# Calibration


def test_calibration_by_hand():
    right_half, right_always = confident(0.77, 0.77, -0.77, -0.77), confident(0.99, 0.99, 0.99, 0.99)
    calibration = judge(pairs(*right_half, *right_always))["calibration"]
    assert calibration["error"] == pytest.approx((0.27 + 0.01) / 2)
    low, high = calibration["bins"]
    assert (low["low"], low["high"], low["accuracy"]["mean"]) == (0.75, 0.8, 0.5)
    assert (high["low"], high["high"], high["accuracy"]["mean"]) == (0.95, 1.0, 1.0)
    assert low["confidence"] == pytest.approx(0.77) and low["accuracy"]["rows"] == 4


def test_who_is_right_as_often_as_it_says_has_no_error():
    assert judge(pairs(*confident(*[0.8125] * 13, *[-0.8125] * 3)))["calibration"]["error"] == pytest.approx(0)


def test_the_least_and_the_largest_margin_have_a_bin():
    low, high = judge(pairs(0.0, 1000.0, -1000.0))["calibration"]["bins"]
    assert (low["low"], low["confidence"], low["accuracy"]["mean"]) == (0.5, 0.5, 0.5)
    assert (high["high"], high["confidence"], high["accuracy"]["mean"]) == (1.0, 1.0, 0.5)


@given(st.lists(st.floats(-6, 6).filter(lambda margin: abs(margin) > 1e-3), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_error_is_that_of_all_pairs_shown_both_ways_round(margins):
    found = judge(pairs(*margins))["calibration"]["error"]
    bins = {}
    for margin in margins:
        for first, is_better in ((margin, 1), (-margin, 0)):
            predicted = 1 / (1 + math.exp(-first))
            # mirrored bins, as an edge belongs to the bin that is further from a half
            number = int((max(predicted, 1 - predicted) - 0.5) * 20)
            bins.setdefault((number, predicted > 0.5), []).append((predicted, is_better))
    gaps = [abs(sum(p - y for p, y in of_bin)) for of_bin in bins.values()]
    assert found == pytest.approx(sum(gaps) / (2 * len(margins)), abs=0.02 if near_an_edge(margins) else 1e-9)


def near_an_edge(margins):
    positions = [20 / (1 + math.exp(-abs(margin))) for margin in margins]
    return any(abs(position - round(position)) < 1e-9 for position in positions)


# Real samples


def test_real_samples_by_hand():
    rejected_at_minus_two = [pair(2.0), pair(2.0, "copied")]
    samples = [
        sample(1.0, 2.0, words=4, metric=0.2),
        sample(0.0, 3.0, words=8, metric=0.1),
        sample(2.0, 1.0, words=6, metric=None),
        sample(4.0, 4.0, words=10, metric=0.0),
        sample(-9.0, 0.0, run="grpo", decoding="sampled"),
    ]
    sft, grpo = acceptance(rejected_at_minus_two, samples, metric="rouge")["samples"]
    assert (sft["run"], sft["decoding"]) == ("sft", "greedy")
    assert (sft["accuracy"]["mean"], sft["accuracy"]["rows"]) == (0.625, 4)
    assert (sft["score"], sft["reference_score"], sft["words"], sft["reference_words"]) == (1.75, 2.5, 7.0, 6.0)
    assert sft["position"] == pytest.approx((1.75 + 2) / (2.5 + 2))
    assert sft["correlation"]["metric"] == pytest.approx(-0.5)  # ranks 1 0 2 against 2 1 0, of those that have one
    assert sft["correlation"]["words"] == pytest.approx(0.4)  # ranks 1 0 2 3 against 0 2 1 3
    assert (grpo["run"], grpo["decoding"], grpo["accuracy"]["mean"]) == ("grpo", "sampled", 1.0)
    assert grpo["position"] == pytest.approx(-7 / 2)
    assert grpo["correlation"] == {"metric": None, "words": None}


@pytest.mark.parametrize("reference", [0.5, 1.0])
def test_nothing_lies_between_references_and_better_rejected_answers(reference):
    [entry] = acceptance([pair(-1.0)], [sample(0.0, reference)], metric=None)["samples"]
    assert entry["position"] is None


def test_the_sample_furthest_above_its_reference_is_shown():
    samples = [sample(5.0, 5.0), sample(3.0, 1.0, text="best"), sample(-1.0, 0.0, run="grpo", text="only")]
    result = acceptance([pair(1.0)], samples, metric=None)
    assert [of["text"] for of in result["examples"]["samples"]] == ["best", "only"]


# The gate


def test_nothing_required_nothing_failed():
    result = judge(ranked(0, 5))
    assert result["require"] == {} and result["failures"] == []
    assert verdict(result) == "Nothing is required of this reward model, so nothing says whether it is fit to reward."


def test_a_bar_that_is_just_reached_is_reached():
    assert judge(ranked(19, 1), require={"accuracy": 0.95})["failures"] == []
    result = judge(ranked(18, 2), require={"accuracy": 0.95})
    assert result["failures"] == ["Accuracy on shuffled is 0.900 (18 of 20 pairs), below the 0.95 required."]
    assert verdict(result) == "Not fit to reward: 1 requirement is not met."


def test_a_value_just_below_its_bar_never_looks_like_it():
    [failure] = judge(ranked(9499, 501), require={"shuffled": 0.95})["failures"]
    assert failure == "Accuracy on shuffled is 0.9499 (9499 of 10000 pairs), below the 0.95 required."


def test_a_category_named_has_its_own_bar():
    found = [*ranked(9, 1, "shuffled"), *ranked(8, 2, "hallucinated")]
    assert judge(found, require={"accuracy": 0.9, "hallucinated": 0.8})["failures"] == []
    assert judge(found, require={"hallucinated": 0.8})["failures"] == []
    assert judge(found, require={"accuracy": 0.9, "hallucinated": 0.81})["failures"] == [
        "Accuracy on hallucinated is 0.800 (8 of 10 pairs), below the 0.81 required."
    ]
    both = judge(found, require={"accuracy": 1})
    assert [failure.split()[2] for failure in both["failures"]] == ["shuffled", "hallucinated"]
    assert verdict(both) == "Not fit to reward: 2 requirements are not met."


def test_a_category_with_the_name_of_a_gate_is_held_to_the_accuracy():
    found = ranked(1, 1, "samples")
    assert judge(found, require={"accuracy": 0.5})["failures"] == []
    assert len(judge(found, require={"accuracy": 0.6})["failures"]) == 1
    accepted = acceptance(found, [sample(0, 1)], metric=None, require={"accuracy": 0.6, "samples": 0.4})
    assert [failure.split()[2] for failure in accepted["failures"]] == ["samples"]


def test_what_cannot_be_shown_is_not_met():
    assert judge(ranked(5, 0), require={"copied": 0.5, "samples": 0.0})["failures"] == [
        "Accuracy on copied cannot be shown: no held-out pair is of this category.",
        "Accuracy on real samples cannot be shown: there are none.",
    ]


def test_real_samples_of_every_run_and_decoding_have_a_bar():
    samples = [sample(0, 1), sample(1, 0), sample(0, 1, decoding="sampled"), sample(1, 0, run="grpo")]
    result = acceptance([pair(1.0)], samples, metric=None, require={"samples": 0.5})
    assert result["failures"] == [
        "Accuracy on the real samples of grpo, greedy, is 0.000 (0 of 1 rows), below the 0.5 required."
    ]


def test_a_tie_is_counted_in_the_sentence():
    [failure] = judge(pairs(1.0, 0.0), require={"accuracy": 0.8})["failures"]
    assert failure == "Accuracy on shuffled is 0.750 (1.5 of 2 pairs), below the 0.8 required."


@pytest.mark.parametrize("sign", [1, -1])
def test_the_correlation_with_length_has_a_bar_in_both_directions(sign):
    found = [pair(1.0, chosen=sign * score, words=words, text=str(score)) for score, words in ((1, 3), (2, 9), (3, 6))]
    assert judge(found, require={"length_correlation": 0.5})["failures"] == []
    said = "0.500" if sign > 0 else "−0.500"
    assert judge(found, require={"length_correlation": 0.49})["failures"] == [
        f"Score and length of the chosen answers correlate by {said}, beyond the 0.49 allowed."
    ]


def test_answers_of_one_length_have_no_correlation_with_it():
    assert judge(pairs(1.0, 2.0), require={"length_correlation": 0.0})["failures"] == []


@given(
    right=st.integers(0, 30),
    wrong=st.integers(1, 30),
    bar=st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_the_gate_is_the_accuracy_against_the_bar(right, wrong, bar):
    assert bool(judge(ranked(right, wrong), require={"accuracy": bar})["failures"]) == (right / (right + wrong) < bar)


def test_a_stored_result_can_be_held_against_something_else():
    result = json.loads(json.dumps(judge(ranked(3, 1), require={"accuracy": 0.9})))
    assert len(failures(result, {"accuracy": 0.9})) == 1 and failures(result, {"accuracy": 0.75}) == []


@pytest.mark.parametrize(
    ("require", "says"),
    [
        ({"acuracy": 0.9}, "preferences.require: key 'acuracy' does not exist: did you mean 'accuracy'? Valid: acc"),
        ({"shufled": 0.9}, "did you mean 'shuffled'?"),
        ({"accuracy": 95}, "preferences.require.accuracy must be a number between 0 and 1, not 95."),
        ({"accuracy": -0.1}, "not -0.1."),
        ({"accuracy": float("nan")}, "not nan."),
        ({"shuffled": "0.9"}, "preferences.require.shuffled must be a number between 0 and 1, not '0.9'."),
        ({"samples": True}, "not True."),
        ({"samples": None}, "not None."),
    ],
)  # fmt: skip
def test_requirements_that_make_no_sense_are_refused(require, says):
    with pytest.raises(InputError) as error:
        check_require(require, ["shuffled", "copied"])
    assert says in str(error.value)


def test_requirements_that_make_sense():
    check_require({"accuracy": 0.95, "length_correlation": 0, "samples": 1, "copied": 0.5}, ["shuffled", "copied"])
    check_require({"whatever": 0.5}, None)
    check_require({}, [])
    with pytest.raises(InputError, match="does not exist"):
        check_require({"whatever": 0.5}, [])
    with pytest.raises(InputError, match="between 0 and 1"):
        check_require({"whatever": 2}, None)


def test_without_pairs_there_is_nothing_to_judge():
    with pytest.raises(InputError, match="at least one held-out pair"):
        judge([])


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_scores_that_are_no_numbers_stop_everything(broken):
    with pytest.raises(RunError, match="gave 1 of 4 answers no finite score"):
        acceptance([replace(pair(1.0), chosen=broken)], [sample(0, 1)], metric=None)
    with pytest.raises(RunError, match="gave 1 of 4 answers no finite score"):
        acceptance([pair(1.0)], [sample(0, broken)], metric=None)


# How it is said


def full(require=None):
    """Three categories, of which one is hard, and real samples of two runs."""
    found = [
        pair(margin(number), category, chosen=number % 7, words=5 + number % 9, text=str(number))
        for category, margin in (
            ("shuffled", lambda number: 2 + number % 5),
            ("copied", lambda number: 0.5 + number % 3),
            ("hallucinated", lambda number: (number % 10 - 2) / 4),
        )
        for number in range(40)
    ]
    found[0] = replace(found[0], prompt=[{"role": "user", "content": EVIL}])
    found[80] = replace(found[80], prompt="Say " + EVIL, chosen_text=EVIL, rejected_text="", rejected=3.0)
    samples = [
        sample(
            1 + number % 5 / 2, 1 + number % 4, run=run, decoding=how, words=number % 11, metric=number % 6, text=EVIL
        )
        for run in ("sft", "<b>grpo</b>")
        for how in ("greedy", "sampled")
        for number in range(20)
    ]
    require = {"accuracy": 0.95, "hallucinated": 0.8, "samples": 0.9} if require is None else require
    return json.loads(json.dumps(acceptance(found, samples, metric="rouge/rougeL", require=require)))


HISTORY = [{"step": 0, "loss": 0.7, "accuracy": 0.5}, {"step": 10, "loss": 0.2, "accuracy": 1.0, "grad_norm": 1.0}]


def printed(result, width=80):
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(result))
    return capture.get()


def test_the_terminal_shows_pairs_and_samples_within_eighty_columns():
    said = printed(full())
    lines = [line.split() for line in said.splitlines()]
    assert ["copied", "40", "1.000", "[0.91,", "1.00]", "0.95", "1.48", "2.88", "1.40"] in lines
    hard = next(line for line in lines if line and line[0] == "hallucinated")
    assert hard[1:3] == ["40", "0.750"] and hard[5] == "0.8"
    assert any(line[:3] == ["sft,", "greedy", "20"] for line in lines)
    assert next(line for line in lines if line and line[0] == "all")[5] == "–"
    assert max(map(len, said.splitlines())) <= 80
    assert "the mean score lies at" in said and "with rouge/rougeL by" in said


def test_one_category_is_not_summed_up_again():
    assert "all" not in printed(judge(pairs(1.0, 2.0))).split("Accuracy is")[0]


@pytest.mark.parametrize("require", [{}, {"accuracy": 0.5}])
def test_a_small_result_is_said_too(require, tmp_path):
    result = json.loads(json.dumps(judge(pairs(0.0), require=require)))
    assert "0.500 [0.05, 0.95]" in printed(result)
    page = written(tmp_path, result)
    assert not page.find("table", id="reality") and "correlate by –" in page.html
    assert verdict(result) in page.html


def written(tmp_path, result=None, logs=None, notes=()):
    path = write_page(result or full(), logs or {}, tmp_path / "run" / "report.html", notes)
    assert path == tmp_path / "run" / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_says_the_verdict_and_what_failed_first(tmp_path):
    result = full()
    html = written(tmp_path, result).html
    assert len(result["failures"]) >= 2
    places = [html.index(f">{said}<") for said in (verdict(result), *escaped(result["failures"]))]
    assert places == sorted(places) and places[-1] < html.index("<table")
    assert "<ul" not in written(tmp_path, full(require={"shuffled": 1})).html


def escaped(said):
    from markupsafe import escape

    return [str(escape(each)) for each in said]


def test_the_table_marks_what_is_missed(tmp_path):
    page = written(tmp_path, full(require={"accuracy": 0.95, "hallucinated": 0.8}))
    rows = {row[0].strip(): row[1:] for row in page.cells if len(row) == 7}
    assert rows["copied"][:3] == ["1.000 [0.912, 1.000] ", "0.95 ", "+1.48 +0.50 to +2.50 "]
    assert rows["hallucinated"][1] == "0.8 missed "
    assert rows["sft, greedy"][1] == "– "
    assert len(page.find("tr", **{"class": "failed"})) == 1


def test_samples_that_score_beyond_pairs_and_references_are_marked(tmp_path):
    samples = [sample(1.0, 2.0, run="inside"), sample(3.0, 2.0, run="above"), sample(-1.0, -1.0, run="below")]
    result = acceptance([pair(1.0, chosen=1.0)], samples, metric=None, require={"samples": 0.4})
    page = written(tmp_path, result)
    accuracies, (_, *positions) = page.cells[:7], page.cells[7:]
    assert [row[2] for row in accuracies[4:]] == ["0.4 ", "0.4 missed ", "0.4 "]
    assert [row[:3] for row in positions] == [
        ["inside, greedy ", "1.00 ", "0.50 "],
        ["above, greedy ", "3.00 ", "1.50 "],
        ["below, greedy ", "−1.00 ", "– references score no higher "],
    ]
    marked = page.html[page.html.index('<table id="reality">') :].count('<tr class="failed">')
    assert marked == 2
    dots = [circle["cx"] for circle in page.find("circle", r="3.5")[4:]]
    assert dots == ["33.33%", "100.0%"]  # of a line from 0 to 1.5
    said = " ".join(printed(result).split())
    assert "inside, greedy: the mean score lies at 0.50 between the rejected answers (0) and the references (1)" in said
    assert "below, greedy: the mean score lies nowhere between, as references score no higher than rejected" in said


def test_bars_stand_where_their_margins_are(tmp_path):
    page = written(tmp_path, judge(pairs(-1.0, -1.0, -0.05, 2.75)))
    # 38 bins of 0.1, each 7 of a line from 46 to 312, with half a unit between two bars
    assert page.find("rect") == [
        {"class": "wrong", "x": "46.0", "y": "8.0", "width": "6.5", "height": "122.0"},
        {"class": "wrong", "x": "109.0", "y": "69.0", "width": "6.5", "height": "61.0"},
        {"class": "right", "x": "305.0", "y": "69.0", "width": "6.5", "height": "61.0"},
    ]
    assert page.find("line", **{"class": "zero"})[0]["x1"] == "116.0"
    assert "−1 to −0.9: 2 of 4 pairs" in page.html


def test_the_reliability_dots_by_hand(tmp_path):
    page = written(tmp_path, judge(pairs(*confident(0.77, 0.77, -0.77, -0.77), *confident(0.99))))
    low, high = page.find("circle", **{"class": "right"})
    assert (low["cx"], low["cy"], low["r"]) == ("189.6", "69.0", "6.0")  # 54 % of the way, half as high
    assert (high["cx"], high["cy"], high["r"]) == ("306.7", "8.0", "4.0")


def test_what_anybody_wrote_stays_text(tmp_path):
    page = written(tmp_path, logs={"<i>rm</i>": HISTORY}, notes=[EVIL])
    assert EVIL not in page.html and page.html.count(escaped([EVIL])[0]) >= 5
    assert not page.scripts and not page.find("img") and not page.find("i", **{}) and "<b>grpo" not in page.html


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = written(tmp_path, logs={"rm": HISTORY})
    assert "http://" not in page.html and "https://" not in page.html
    assert not [tag for tag, attributes in page.tags if {"src", "href", "srcset"} & attributes.keys()]


def test_the_curves_of_training_are_those_of_other_reports(tmp_path):
    page = written(tmp_path, logs={"rm": HISTORY})
    assert "Acceptance of rm</h1>" in page.html
    assert "Training</h2>" in page.html and "grad_norm" not in page.html
    assert page.find("polyline") == [{"points": "46.0,8.0 312.0,130.0"}, {"points": "46.0,130.0 312.0,8.0"}]
    assert "Training</h2>" not in written(tmp_path).html


def test_importing_it_loads_nothing_heavy():
    heavy = "{'torch', 'jinja2', 'numpy', 'transformers', 'rich'}"
    code = f"import sys, lastmile_trl.evaluation.acceptance; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("acceptance")
    return write_page(full(), {"rm": HISTORY}, folder / "report.html", ["A note."]).as_uri()


@pytest.fixture
def page(request, address):
    driver = request.getfixturevalue("browser")
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.get(address)
    yield driver
    assert driver.get_log("browser") == []


def test_browser_shows_what_a_model_wrote_as_text(page):
    assert EVIL in texts(page, ".answer .text")
    assert "user: " + EVIL in texts(page, ".prompt") or "Say " + EVIL in texts(page, ".prompt")
    assert page.execute_script("return [document.scripts.length, document.images.length]") == [0, 0]
    assert "(nothing written)" in texts(page, ".answer .empty")


def test_browser_draws_every_figure(page):
    assert texts(page, "#margins figcaption") == ["shuffled", "copied", "hallucinated"]
    sizes = page.execute_script(
        "return [...document.querySelectorAll('.panel')].map(node => node.getBoundingClientRect())"
        ".map(box => box.width > 200 && box.height > 90)"
    )
    assert sizes == [True] * 6  # three categories, calibration, two curves
    outside = page.execute_script(
        "return [...document.querySelectorAll('.panel :is(rect, circle, text)')].filter(node => {"
        " const box = node.getBoundingClientRect(), frame = node.closest('svg').getBoundingClientRect();"
        " return box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1; }).length"
    )
    assert outside == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_browser_page_never_scrolls_sideways(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_text_is_readable_in_both_schemes(page, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    colours = page.execute_script(
        "const style = getComputedStyle(document.documentElement);"
        "return ['paper', 'ink', 'soft', 'accent', 'c1'].map(name => style.getPropertyValue('--' + name).trim())"
    )
    paper, *others = map(luminance, colours)
    assert (paper > 0.5) == (scheme == "light")
    assert min((max(paper, other) + 0.05) / (min(paper, other) + 0.05) for other in others) >= 4.5
