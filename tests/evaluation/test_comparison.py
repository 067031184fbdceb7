import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation import comparison, postprocess
from lastmile_trl.evaluation.comparison import answer, compare, why_no_difference, why_no_value
from lastmile_trl.evaluation.decoding import Output, Several
from lastmile_trl.evaluation.significance import over_seeds
from lastmile_trl.evaluation.tables import dashes, markdown, summary, table
from lastmile_trl.rewards import Reward, build


def numbers(name, column=0):
    """A metric that reads its value from the text: `1.5/0.2 words` is 1.5 in column 0 and 0.2 in column 1."""

    def read(completions, **columns):
        cells = [completion.split()[0].split("/")[column] for completion in completions]
        return [None if cell == "-" else float(cell) for cell in cells]

    return Reward(name, read)


def outputs(*cells, tail=" and so on.", ended=True):
    return [Output(f"{cell}{tail}", [3, 4], ended) for cell in cells]


def rows(count):
    return [{"prompt": f"p{number}", "references": ["a b c d"], "id": number} for number in range(count)]


def exactly(mean, rows):
    return {"mean": pytest.approx(mean), "low": pytest.approx(mean), "high": pytest.approx(mean), "rows": rows}


def differs(mean, rows, p, p_adjusted=1.0):
    return exactly(mean, rows) | {"p": p, "p_adjusted": pytest.approx(p_adjusted)}


def two_runs():
    return {
        "sft": {"sampled": outputs("0.5", "0.5"), "greedy": outputs("0.25", "0.75")},
        "grpo": {"sampled": outputs("0.5", "0.5"), "greedy": outputs("0.5", "1.0", tail=" Go. So. So.")},
    }


def test_the_whole_result_by_hand():
    result = compare(two_runs(), rows(2), [numbers("m")], rewarded={"m", "other"}, postprocessed=["grpo"])
    assert json.loads(json.dumps(result)) == result
    assert {key: result[key] for key in ("version", "rows", "baseline", "metrics")} == {
        "version": 2,
        "rows": 2,
        "baseline": "sft",
        "metrics": {
            "m": {"rewarded": True},
            "words": {"rewarded": False},
            "length_ratio": {"rewarded": False},
            "ended": {"rewarded": False},
            "repeated_3grams": {"rewarded": False},
        },
    }
    assert [(entry["run"], entry["decoding"], entry["postprocessed"]) for entry in result["results"]] == [
        ("sft", "greedy", False),
        ("grpo", "greedy", False),
        ("grpo", "greedy", True),
        ("sft", "sampled", False),
        ("grpo", "sampled", False),
        ("grpo", "sampled", True),
    ]
    sft, grpo, processed = result["results"][:3]
    assert sft["metrics"]["m"] == {"mean": 0.5, "low": 0.25, "high": 0.75, "rows": 2}
    assert sft["difference"] is None
    assert grpo["difference"] == {
        "m": differs(0.25, 2, p=0.5),  # of 4 signs of two equal differences
        "words": differs(0, 2, p=1),
        "length_ratio": differs(0, 2, p=1),
        "ended": differs(0, 2, p=1),
        "repeated_3grams": differs(0, 2, p=1),
    }
    assert result["over_seeds"] == []
    assert processed["difference"]["words"] == differs(-1, 2, p=0.5)  # the second "So." is gone
    assert all(entry["difference_to_postprocessed"] is None for entry in result["results"])
    example = result["examples"][1]
    assert (example["prompt"], example["references"]) == ("p1", ["a b c d"])
    assert [entry["text"] for entry in example["outputs"][:3]] == [
        "0.75 and so on.",
        "1.0 Go. So. So.",
        "1.0 Go. So.",
    ]
    assert example["outputs"][1] == {
        "run": "grpo",
        "decoding": "greedy",
        "postprocessed": False,
        "text": "1.0 Go. So. So.",
        "metrics": {"m": 1.0, "words": 4.0, "length_ratio": 1.0, "ended": 1.0, "repeated_3grams": 0.0},
    }


def test_differences_are_taken_at_the_same_decoding_and_to_the_named_baseline():
    given = {"a": {"greedy": outputs("1", "1"), "sampled": outputs("5", "5")}, "b": {"sampled": outputs("2", "2")}}
    by_b = compare(given, rows(2), [numbers("m")], rewarded=set(), baseline="b")
    found = {(entry["run"], entry["decoding"]): entry["difference"] for entry in by_b["results"]}
    assert found["a", "greedy"] is None, "b has no greedy outputs"
    assert found["a", "sampled"]["m"] == differs(3, 2, p=0.5)
    assert found["b", "sampled"] is None


def test_the_post_processed_baseline_is_compared_too():
    given = {
        "sft": {"greedy": outputs("1 1. 1 1.", "1 1. 1 1.", tail="")},
        "rl": {"greedy": outputs("1 1.", "1 1.", tail="")},
    }
    result = compare(given, rows(2), [numbers("m")], rewarded=set(), postprocessed=("sft", "rl"))
    raw, processed, rl, rl_processed = result["results"]
    assert raw["difference"] is raw["difference_to_postprocessed"] is None
    assert processed["difference"]["words"] == differs(-2, 2, p=0.5)
    assert processed["difference_to_postprocessed"] is None
    assert rl["difference"]["words"] == differs(-2, 2, p=0.5)
    assert rl["difference_to_postprocessed"]["words"] == differs(0, 2, p=1)
    assert rl_processed["difference_to_postprocessed"]["words"] == differs(0, 2, p=1)


def test_rows_that_cannot_be_scored():
    given = {"a": {"greedy": outputs("1/-", "-/-", "2/-")}, "b": {"greedy": outputs("3/-", "4/-", "4/-")}}
    result = compare(given, rows(3), [numbers("m"), numbers("never", 1)], rewarded=set())
    first, second = result["results"]
    assert first["metrics"]["m"]["rows"] == 2
    assert first["metrics"]["never"] is None
    assert second["difference"]["m"] == differs(2, 2, p=0.5)
    assert second["difference"]["never"] is None
    assert answer(result) == (
        "No difference is shown between b and a on m: 2.000 [2.000, 2.000] (greedy, 2 of 3 held-out rows, corrected "
        "p = 1.000)."
    )
    difference = "2.000 [2.000, 2.000], no difference shown, p = 1.000"
    assert f"| b | greedy | {difference} | 3.667 [3.000, 4.000] | – | 4.000" in markdown(result)
    assert "–" in printed(result)


# dashes and their reasons


def nothing(*reasons):
    return {"greedy": [Several(f"– ({reason})", None, False, outputs=[], why_none=reason) for reason in reasons]}


def test_every_value_that_is_missing_says_why():
    given = {
        "sft": {"greedy": outputs("1/-", "2/-")},
        "empty": nothing("no source", "no source"),
        "both": nothing("no source", "one reference"),
        "some": {"greedy": [*nothing("no source")["greedy"], *outputs("-/-")]},
    }
    metrics = [numbers("m"), numbers("never", 1)]
    result = compare(given, rows(2), metrics, rewarded=set(), postprocessed=["empty"])
    sft, empty, processed, both, some = result["results"]
    assert sft["missing"] == {"never": "no row has a value"}
    assert some["metrics"]["ended"]["rows"] == 1, "of the one that was generated"
    assert empty["missing"] == processed["missing"] == dict.fromkeys(result["metrics"], "no source")
    assert set(both["missing"].values()) == {"no source or one reference"}
    assert some["missing"] == {"m": "no row has a value", "never": "no row has a value"}, "its words are known"
    assert why_no_value(empty, "m") == "no source"
    del empty["missing"]  # as in older files
    assert why_no_value(empty, "m") == "no row has a value"


def test_what_was_not_generated_has_not_ended():
    copied = [Output("1 of the source.", None, True)] * 2
    given = {"sft": {"greedy": outputs("1", "2")}, "lead": {"greedy": copied}}
    result = compare(given, rows(2), [numbers("m")], rewarded=set(), postprocessed=["sft", "lead"])
    sft, processed, *leads = result["results"]
    assert sft["metrics"]["ended"]["mean"] == 1 and sft["missing"] == {}
    assert processed["missing"] == {"ended": "the text is not what was generated"}
    assert [lead["missing"] for lead in leads] == [{"ended": "nothing was generated"}] * 2
    assert all(lead["difference"]["ended"] is None for lead in leads)


def test_every_difference_that_is_missing_says_why():
    given = {
        "sft": {"greedy": outputs("1/-", "-/-"), "sampled": outputs("1/-", "1/-")},
        "grpo": {"greedy": outputs("-/1", "-/1"), "sampled": outputs("1/1", "-/1"), "beams": outputs("1/1", "1/1")},
    }
    metrics = [numbers("m"), numbers("other", 1)]
    result = compare(given, rows(2), metrics, rewarded=set())
    entries = {(entry["run"], entry["decoding"]): entry for entry in result["results"]}

    def why(run, decoding, metric="m", kind="difference", result=result):
        entry = entries[run, decoding]
        assert (entry[kind] or {}).get(metric) is None
        return why_no_difference(entry, kind, metric, result)

    assert why("sft", "greedy") == why("sft", "sampled", "other") == "it is the baseline itself"
    assert why("grpo", "beams") == "sft has no beams outputs"
    assert why("grpo", "greedy") == "no row has a value"
    assert why("grpo", "greedy", "other") == "of sft, no row has a value"
    assert why("grpo", "sampled") == "fewer than two rows have a value for both"
    post = "difference_to_postprocessed"
    assert why("sft", "greedy", kind=post) == "it is the baseline itself"
    assert why("grpo", "greedy", kind=post) == "sft was not post-processed"
    result = compare(given, rows(2), metrics, rewarded=set(), postprocessed=["sft"])
    entries = {(entry["run"], entry["decoding"]): entry for entry in result["results"] if not entry["postprocessed"]}
    assert why("grpo", "beams", kind=post, result=result) == "sft has no beams outputs"
    assert why("grpo", "greedy", "other", post, result) == "of sft, no row has a value"


def test_below_the_tables_every_dash_is_explained_once():
    given = {
        "sft": {"greedy": outputs("1/-", "2/-"), "sampled": outputs("1/-", "2/-")},
        "grpo": {"greedy": outputs("1/-", "2/-"), "sampled": outputs("-/-", "-/-"), "beams": outputs("1/1", "1/1")},
        "reference": nothing("one reference", "one reference"),
    }
    result = compare(given, rows(2), [numbers("m"), numbers("never", 1)], rewarded=set())
    expected = [
        "– no row has a value: never of sft and grpo (greedy, sampled); m, m minus sft of grpo (sampled)",
        "– one reference: all metrics of reference",
        "– sft has no beams outputs: m minus sft of grpo (beams)",
    ]
    assert dashes(result) == expected
    assert all(f"\n\n{line}\n" in markdown(result) for line in expected)
    assert all(line in " ".join(printed(result).split()) for line in expected)
    assert dashes(compare(two_runs(), rows(2), [numbers("m")], rewarded=set())) == []


def test_only_several_samples_are_listed():
    first, second = outputs("1", "2")
    of_references = Several(first.text, None, True, outputs=[first, second], references=[["a"], ["b"]])
    given = {
        "sampled": {"sampled": [Several(first.text, [3], True, outputs=[first, second]), second]},
        "reference": {"sampled": [of_references, Several(first.text, None, True, outputs=[first])]},
    }
    examples = compare(given, rows(2), [numbers("m")], rewarded=set())["examples"]
    [sampled, reference] = examples[0]["outputs"]
    assert sampled["samples"] == ["1 and so on.", "2 and so on."] and sampled["text"] == "1 and so on."
    assert sampled["metrics"]["m"] == 1.5 and sampled["values"]["m"] == [1, 2]
    assert reference["values"]["m"] == [1, 2] and reference["values"]["length_ratio"] == [4, 4]
    assert not any("values" in output for output in examples[1]["outputs"])
    assert not any("samples" in output for output in [reference, *examples[1]["outputs"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "dpo"}, "no run named 'dpo' to compare; the runs are sft, grpo"),
        ({"postprocessed": ["sftt"]}, "no run named 'sftt'"),
        ({"rows": rows(3)}, "Run sft has 2 sampled outputs for 3 rows"),
        ({"rows": []}, "nothing to compare"),
        ({"outputs": {}}, "nothing to compare"),
    ],
)
def test_wrong_input(change, message):
    given = {"outputs": two_runs(), "rows": rows(2), "metrics": [numbers("m")], "rewarded": set()} | change
    with pytest.raises(InputError, match=message):
        compare(given.pop("outputs"), given.pop("rows"), given.pop("metrics"), **given)


# the answer


def estimate(mean, low, high, rows=300):
    return {"mean": mean, "low": low, "high": high, "rows": rows}


def written(difference, processed=None, *, rewarded=("rouge",), decoding="greedy", version=1):
    """A result as read from a file: `grpo` against `sft`. Of version 1, what is shown goes by the intervals."""
    names = ["rouge", *(name for name in difference if name != "rouge")]
    common = {"decoding": decoding, "postprocessed": False, "metrics": dict.fromkeys(names, estimate(0.5, 0.4, 0.6))}
    return {
        "version": version,
        "rows": 300,
        "baseline": "sft",
        "metrics": {name: {"rewarded": name in rewarded} for name in names},
        "results": [
            {"run": "sft", "difference": None, "difference_to_postprocessed": None, **common},
            {
                "run": "grpo",
                "difference": difference,
                "difference_to_postprocessed": None if processed is None else {"rouge": processed},
                **common,
            },
        ],
        "examples": [],
    }


UP, LEVEL, DOWN = estimate(0.0312, 0.0241, 0.0384), estimate(0.003, -0.0004, 0.01), estimate(-0.02, -0.03, -0.01)


@pytest.mark.parametrize(
    ("difference", "processed", "expected"),
    [
        (UP, None, "grpo beats sft on rouge by 0.031 [0.024, 0.038] (greedy, 300 held-out rows)."),
        (DOWN, None, "grpo falls behind sft on rouge by 0.020 [0.010, 0.030] (greedy, 300 held-out rows)."),
        (
            LEVEL,
            None,
            "No difference is shown between grpo and sft on rouge: 0.003 [0.000, 0.010] (greedy, 300 held-out rows).",
        ),
        (
            UP,
            UP,
            "grpo beats sft on rouge by 0.031 [0.024, 0.038] (greedy, 300 held-out rows); "
            "against post-processed sft the difference is 0.031 [0.024, 0.038].",
        ),
        (
            UP,
            DOWN,
            "grpo beats sft on rouge by 0.031 [0.024, 0.038] (greedy, 300 held-out rows); "
            "against post-processed sft the difference is −0.020 [−0.030, −0.010].",
        ),
        (
            UP,
            LEVEL,
            "grpo beats sft on rouge by 0.031 [0.024, 0.038] (greedy, 300 held-out rows); "
            "against post-processed sft no difference is shown: 0.003 [0.000, 0.010].",
        ),
        (None, None, "grpo and sft cannot be compared on rouge: too few rows were scored for both."),
    ],
)
def test_the_answer_says_what_the_intervals_show(difference, processed, expected):
    assert answer(written({"rouge": difference}, processed)) == expected


def test_the_answer_names_what_got_worse_without_having_been_rewarded():
    small, large = estimate(-0.02, -0.03, -0.01), estimate(-0.1, -0.15, -0.05)
    worse = {"rouge": UP, "facts": small, "meaning": large, "length": estimate(-0.9, -1, -0.8), "spread": LEVEL}
    said = answer(written(worse, rewarded=("rouge", "length")))
    assert said.endswith(
        "held-out rows). But meaning, which was not rewarded, got worse by 0.100 [0.050, 0.150], and so did facts."
    )
    assert "But" not in answer(written({"rouge": UP, "facts": estimate(-0.1, -0.2, 0.0)}))
    assert "But" not in answer(written({"rouge": UP, "facts": UP}))


def test_the_answer_knows_which_way_is_worse():
    rise, fall = estimate(0.2, 0.1, 0.3), estimate(-0.2, -0.3, -0.1)
    worse = "got worse by 0.200 [0.100, 0.300]."
    assert f"repeated_3grams, which was not rewarded, {worse}" in answer(
        written({"rouge": UP, "repeated_3grams": rise})
    )
    assert f"ended, which was not rewarded, {worse}" in answer(written({"rouge": UP, "ended": fall}))
    level = {"repeated_3grams": fall, "ended": rise, "words": fall, "length_ratio": rise}
    assert "But" not in answer(written({"rouge": UP} | level))


def test_the_answer_is_about_the_last_run_that_is_not_the_baseline():
    given = {
        "sft": {"greedy": outputs(*["1"] * 10)},
        "grpo": {"greedy": outputs(*["2"] * 10)},
        "ppo": {"greedy": outputs(*["4"] * 10)},
    }
    assert answer(compare(given, rows(10), [numbers("m")], rewarded=set())).startswith("ppo beats sft on m by 3.000")
    by_ppo = compare(given, rows(10), [numbers("m")], rewarded=set(), baseline="ppo")
    assert answer(by_ppo).startswith("grpo falls behind ppo on m by 2.000")


def test_the_answer_takes_greedy_where_both_have_it_and_else_what_both_have():
    assert "(greedy, 2 held-out rows, corrected p" in answer(
        compare(two_runs(), rows(2), [numbers("m")], rewarded=set())
    )
    partly = two_runs()
    del partly["sft"]["greedy"]
    assert "(sampled, 2 held-out rows, corrected p" in answer(compare(partly, rows(2), [numbers("m")], rewarded=set()))


def test_the_answer_when_there_is_nothing_to_compare():
    alone = {"sft": {"greedy": outputs("1", "1")}}
    assert answer(compare(alone, rows(2), [numbers("m")], rewarded=set())) == (
        "sft has 1.000 [1.000, 1.000] on m (greedy, 2 held-out rows); there is no other run to compare it with."
    )
    assert answer(compare(two_runs(), rows(2), [], rewarded=set())).startswith("No metric was given")


def with_p(estimate, p):
    return estimate | {"p": p / 10, "p_adjusted": p}


@pytest.mark.parametrize(
    ("difference", "processed", "expected"),
    [
        (
            with_p(UP, 0.0004),
            with_p(UP, 0.0123),
            "grpo beats sft on rouge by 0.031 [0.024, 0.038] (greedy, 300 held-out rows, corrected p < 0.001); "
            "against post-processed sft the difference is 0.031 [0.024, 0.038] (corrected p = 0.012).",
        ),
        (
            with_p(UP, 0.05),
            with_p(UP, 0.06),
            "No difference is shown between grpo and sft on rouge: 0.031 [0.024, 0.038] (greedy, 300 held-out rows, "
            "corrected p = 0.050); against post-processed sft no difference is shown: 0.031 [0.024, 0.038] "
            "(corrected p = 0.060).",
        ),
        (
            with_p(LEVEL, 0.04),
            None,
            "grpo beats sft on rouge by 0.003 [0.000, 0.010] (greedy, 300 held-out rows, corrected p = 0.040).",
        ),
    ],
)
def test_the_answer_goes_by_the_corrected_p(difference, processed, expected):
    assert answer(written({"rouge": difference}, processed, version=2)) == expected


def test_what_got_worse_goes_by_the_corrected_p_too():
    down = estimate(-0.1, -0.15, -0.05)
    assert "But" not in answer(written({"rouge": with_p(UP, 0.01), "facts": with_p(down, 0.06)}, version=2))
    said = answer(written({"rouge": with_p(UP, 0.01), "facts": with_p(down, 0.01)}, version=2))
    assert said.endswith("But facts, which was not rewarded, got worse by 0.100 [0.050, 0.150].")


# p values


def many(values, tail=" and so on."):
    return {"greedy": outputs(*values, tail=tail)}


def test_every_p_is_corrected_for_all_differences_of_its_kind_at_its_decoding():
    rows_, small, large = 12, [1] * 12, [2] * 11 + [0]
    given = {"sft": many([0] * rows_), "a": many(small), "b": many(large), "c": many([1, -1] * 6)}
    for of_run in given.values():
        of_run["sampled"] = of_run["greedy"]
    result = compare(given, rows(rows_), [numbers("m")], rewarded=set(), postprocessed=["sft"])
    # two of 4,096 signs; of large, whose last row has no say, two of 2,048; of c, every sum is as large as 0
    p = {"sft": None, "a": 2 / 4096, "b": 2 / 2048, "c": 1.0}
    # greedy and sampled are corrected apart: 3 runs x 5 metrics, and 4 of the baseline post-processed: all but ended
    adjusted = {"a": 19 * p["a"], "b": 18 * p["b"], "c": 1.0}
    for entry in result["results"]:
        if entry["run"] != "sft":
            of = entry["difference"]["m"]
            assert (of["p"], of["p_adjusted"]) == (p[entry["run"]], pytest.approx(adjusted[entry["run"]]))
            # without the post-processed baseline itself, nor ended, which that has not
            assert entry["difference_to_postprocessed"]["m"]["p_adjusted"] == pytest.approx(
                {"a": 12 * p["a"], "b": 11 * p["b"], "c": 1.0}[entry["run"]]
            )


def test_tables_mark_what_is_shown():
    given = {"sft": many([0] * 12), "grpo": many([1] * 12, tail=" and on."), "ppo": many([0] * 12)}
    result = compare(given, rows(12), [numbers("m")], rewarded=set())
    [_, _, _, grpo, ppo, *_] = markdown(result).splitlines()
    assert grpo.startswith(
        "| grpo | greedy | 1.000 [1.000, 1.000], p = 0.005 | 1.000 [1.000, 1.000] ↑ | 3.000 [3.000, 3.000] ↓ | "
    )
    assert ppo.startswith(
        "| ppo | greedy | 0.000 [0.000, 0.000], no difference shown, p = 1.000 | 0.000 [0.000, 0.000] |"
    )
    text = printed(result)
    assert re.search(r"^grpo +1.000 \[1.000, 1.000\] +1.000↑ +3.000↓ +0.750↓ +1.000 ", text, re.MULTILINE)
    assert re.search(r"^ +p = 0.005 +±0.000 +±0.000 +±0.000 ", text, re.MULTILINE)
    assert "no difference shown" in text


def test_a_result_of_version_1_has_a_dash_and_its_reason():
    result = written({"rouge": UP})
    assert "| grpo | greedy | 0.031 [0.024, 0.038], p – | 0.500 [0.400, 0.600] ↑ |" in markdown(result)
    assert "There is no p, as the evaluation is of version 1" in markdown(result)
    assert "p –" in printed(result) and "version 1" in printed(result)


def test_the_statistics_of_a_large_comparison_take_little_time():
    """1,000 rows, 4 runs, 2 decodings, 12 metrics beside the counts: under 5 s on a core, with room for a slow one."""
    names = [f"m{number}" for number in range(12)]
    drawn = np.random.default_rng(0).random((4, 2, 12, 1000))
    values = {
        (f"run-{run}", decoding, False): {name: drawn[run, place, metric].tolist() for metric, name in enumerate(names)}
        for place, decoding in enumerate(("greedy", "sampled"))
        for run in range(4)
    }
    start = time.process_time()
    found = comparison._results(values, dict.fromkeys(values, ()), [], "run-0")
    assert time.process_time() - start < 10
    assert len(found) == 8 and found[1]["difference"]["m11"]["p_adjusted"] > 0


# seeds


def three_seeds():
    """SFT and GRPO with three seeds on four rows; GRPO is better by .1, .2 and .3 on every row, and by its seed."""
    sft = {f"sft-{seed}": many([f"{row + seed / 10:.1f}" for row in range(4)]) for seed in range(3)}
    grpo = {f"grpo-{seed}": many([f"{row + (2 * seed + 1) / 10:.1f}" for row in range(4)]) for seed in range(3)}
    return sft | grpo, {"sft": list(sft), "grpo": list(grpo)}


def test_a_recipe_over_its_seeds_by_hand():
    given, seeds = three_seeds()
    result = compare(given, rows(4), [numbers("m")], rewarded=set(), postprocessed=["sft-0"], seeds=seeds)
    sft, grpo = result["over_seeds"]
    assert {key: grpo[key] for key in ("run", "seeds", "decoding", "postprocessed")} == {
        "run": "grpo",
        "seeds": ["grpo-0", "grpo-1", "grpo-2"],
        "decoding": "greedy",
        "postprocessed": False,
    }
    assert sft["difference"] is sft["difference_to_postprocessed"] is None
    # rows 0 to 3, plus .1 on average; seeds' means vary by .01, rows' by 5/3, so nearly all degrees are the rows'
    assert sft["metrics"]["m"]["mean"] == pytest.approx(1.6)
    assert sft["metrics"]["m"].keys() == {"mean", "low", "high", "rows"}
    assert sft["metrics"]["m"]["high"] - 1.6 == pytest.approx(
        over_seeds([[row + seed / 10 for row in range(4)] for seed in range(3)]).high - 1.6
    )
    # seed by seed .1, .2, .3 on all rows: 4.3027 is Student's t of two degrees, and 2 sqrt(3) its value here
    assert grpo["difference"]["m"] == {
        "mean": pytest.approx(0.2),
        "low": pytest.approx(0.2 - 4.30265 * 0.1 / 3**0.5, abs=1e-5),
        "high": pytest.approx(0.2 + 4.30265 * 0.1 / 3**0.5, abs=1e-5),
        "rows": 4,
        "p": pytest.approx(0.07418, abs=1e-4),
        "p_adjusted": pytest.approx(5 * 0.07418, abs=1e-3),
    }
    # of post-processed SFT there is one seed: .1, .3 and .5 more than that
    assert grpo["difference_to_postprocessed"]["m"]["mean"] == pytest.approx(0.3)


def test_with_another_number_of_seeds_the_mean_of_the_baseline_s_is_the_baseline():
    given, seeds = three_seeds()
    del given["sft-2"]
    seeds["sft"].remove("sft-2")
    [_, grpo] = compare(given, rows(4), [numbers("m")], rewarded=set(), seeds=seeds)["over_seeds"]
    # the seeds have .1, .3 and .5 beside the row, the baseline's mean .05
    assert grpo["difference"]["m"]["mean"] == pytest.approx(0.25)
    assert grpo["difference"]["m"]["high"] == pytest.approx(0.25 + 4.30265 * 0.2 / 3**0.5, abs=1e-5)


def test_one_run_as_baseline_and_no_baseline_at_this_decoding():
    given, seeds = three_seeds()
    alone = {name: of_run for name, of_run in given.items() if name not in ("sft-1", "sft-2")}
    [grpo] = compare(alone, rows(4), [numbers("m")], rewarded=set(), seeds={"grpo": seeds["grpo"]})["over_seeds"]
    assert grpo["difference"]["m"]["mean"] == pytest.approx(0.3)
    alone["sft-0"] = {"sampled": alone["sft-0"]["greedy"]}
    result = compare(alone, rows(4), [numbers("m")], rewarded=set(), seeds={"grpo": seeds["grpo"]})
    assert result["over_seeds"][0]["difference"] is None
    assert "grpo, 3 seeds" in printed(result)


def test_what_is_missing_over_seeds_says_why():
    given, seeds = three_seeds()
    given["grpo-0"] = {"greedy": outputs("1/-", "-/-", "1/-", "-/-")}
    given["grpo-1"] = {"greedy": outputs("-/-", "1/-", "1/-", "-/-")}
    given["grpo-2"] = {"greedy": outputs("1/-", "1/-", "1/-", "-/-")}
    given |= {name: {"greedy": outputs(*["1/-"] * 4)} for name in seeds["sft"]}
    result = compare(given, rows(4), [numbers("m"), numbers("never", 1)], rewarded=set(), seeds=seeds)
    sft, grpo = result["over_seeds"]
    assert sft["missing"] == {"never": "no row has a value"}
    assert grpo["missing"] == {
        "m": "fewer than two rows have a value for every seed",
        "never": "no row has a value",
    }
    assert why_no_difference(sft, "difference", "m", result) == "it is the baseline itself"
    assert why_no_difference(grpo, "difference", "m", result) == "fewer than two rows have a value for every seed"


def test_a_recipe_over_its_seeds_is_in_all_that_is_said():
    given, seeds = three_seeds()
    result = compare(given, rows(4), [numbers("m")], rewarded=set(), seeds=seeds)
    assert "| grpo, 3 seeds | greedy | 0.200 [−0.048, 0.448], no difference shown, p = 0.371 |" in markdown(result)
    assert "Over seeds, intervals and p are those of Student's t, which allow for other seeds" in markdown(result)
    assert re.search(r"^grpo, 3 seeds +0.200 \[−0.048, 0.448\]", printed(result), re.MULTILINE)
    with pytest.raises(InputError, match="no run named 'ppo-0' to compare"):
        compare(given, rows(4), [numbers("m")], rewarded=set(), seeds={"ppo": ["ppo-0", "ppo-1"]})


def test_the_answer_is_about_the_recipe_where_it_has_several_seeds():
    given, seeds = three_seeds()
    compared = {"rewarded": set(), "seeds": seeds}
    alone = compare(given, rows(4), [numbers("m")], **compared)
    said = (
        "No difference is shown between grpo over 3 seeds and sft over 3 seeds on m: 0.200 [−0.048, 0.448] (greedy, 4 "
        "held-out rows, corrected p = 0.371)"
    )
    assert answer(alone) == f"{said}."
    one = compare(given, rows(4), [numbers("m")], postprocessed=["sft-0"], **compared)
    assert answer(one).startswith(f"{said}; against post-processed sft-0 no difference is shown: 0.300 [")
    every = compare(given, rows(4), [numbers("m")], postprocessed=seeds["sft"], **compared)
    assert answer(every).startswith(f"{said}; against post-processed sft over 3 seeds no difference is shown: 0.200 [")


def test_what_got_worse_is_of_the_recipe_too():
    given, seeds = three_seeds()
    given |= {name: many([10] * 4, tail=" So on so on so on so.") for name in seeds["grpo"]}
    result = compare(given, rows(4), [numbers("m")], rewarded=set(), seeds=seeds)
    repeats = next(of for of in result["over_seeds"] if of["run"] == "grpo")["difference"]["repeated_3grams"]
    assert repeats["mean"] == pytest.approx(1 / 6)  # on so on
    assert answer(result).startswith("grpo over 3 seeds beats sft over 3 seeds on m by 8.400 [")
    assert "But repeated_3grams, which was not rewarded, got worse by 0." in answer(result)


def test_without_a_difference_over_seeds_the_answer_is_about_the_run():
    given, seeds = three_seeds()
    one_recipe = compare(given, rows(4), [numbers("m")], rewarded=set(), seeds={"run": list(given)})
    assert answer(one_recipe).startswith("No difference is shown between grpo-2 and sft-0 on m: 0.500 [0.500, 0.500]")


def test_what_an_evaluation_has_noted_is_said_below_the_tables():
    result = compare(two_runs(), rows(2), [numbers("m")], rewarded=set()) | {"notes": ["grpo may have seen *a row*."]}
    assert markdown(result).endswith("\n\ngrpo may have seen \\*a row\\*.\n")
    assert printed(result).rstrip().endswith("\ngrpo may have seen *a row*.")


def test_the_page_names_all_there_is():
    given, seeds = three_seeds()
    result = compare(given, rows(4), [numbers("m")], rewarded=set(), postprocessed=["sft-0"], seeds=seeds)
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    entry, example, several = result["over_seeds"][1], result["examples"][0], {"samples": [], "values": {}}
    for part in (result, entry, entry["difference"]["m"], example, example["outputs"][0], several):
        for key in part:
            assert f'"{key}"' in page, key
    assert f'"version": {result["version"]}' in page and f'"version": {result["version"]}' in comparison.__doc__


# the tables


def printed(result, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(result))
    return console.export_text()


def test_the_table_shows_runs_by_decoding_with_the_primary_difference_first():
    text = printed(compare(two_runs(), rows(2), [numbers("m")], rewarded={"m"}, postprocessed=["grpo"]))
    first_words = re.findall(r"^(greedy|sampled|sft|grpo,?) ", text, re.MULTILINE)
    assert first_words == ["greedy", "sft", "grpo", "grpo,", "sampled", "sft", "grpo", "grpo,"]
    assert "m* minus sft" in text
    assert re.search(r"^grpo +0.250 \[0.250, 0.250\] +0.750 +4.000 +1.000 +1.000 +0.000$", text, re.MULTILINE)
    assert re.search(r"^sft +baseline +0.500 ", text, re.MULTILINE)
    assert "±0.250" in text
    assert "Means over 2 held-out rows with 95 % bootstrap intervals. * was a reward in training." in " ".join(
        text.split()
    )


def test_nothing_of_the_table_is_lost_on_eighty_columns():
    metrics = [*build(["rouge", {"rouge": {"variant": "rouge2"}}, "length", "repetition"])]
    result = compare(two_runs(), rows(2), metrics, rewarded={"rouge/rougeL"}, postprocessed=["sft", "grpo"])
    names = ("reference_perplexity", "distinct_2_per_text")
    result["corpus"] = {f"oracle_best_of_{n} of sft": {"greedy": dict.fromkeys(names, 0.5)} for n in range(8)}
    text = printed(result, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    body = [line for line in text.splitlines() if line.startswith("grpo")]
    assert len(body[0].split()) == 1 + 1 + 4 + 4, "run, difference, four metrics, four counts"
    assert "3grams" in text
    body = [line for line in text.splitlines() if line.startswith(names)]
    assert [line.split() for line in body] == [[name, *["0.500"] * 8] for name in names]


@pytest.mark.parametrize(("width", "parts"), [(60, 3), (80, 2), (200, 1)])
def test_a_table_that_is_too_wide_goes_on_below_with_its_numbers_whole(width, parts):
    said = {"greedy": outputs("-120.5", "0.25"), "sampled": outputs("3", "120.5")}
    metrics = [Reward(f"a_long/name_{letter}", numbers("m").function) for letter in "abcdefghijkl"]
    result = compare({"sft": said, "grpo": two_runs()["grpo"]}, rows(2), metrics, rewarded=set())
    text = printed(result, width=width).partition("Means over")[0].replace("3grams", "")
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert {re.fullmatch(r"\d+\.\d{3}", number) is None for number in re.findall(r"[\d.]+", text)} == {False}
    means = re.findall(r"(?<![±\[\d.−])−?\d+\.\d{3}(?![\]\d])", "\n".join(re.findall("^grpo .*", text, re.MULTILINE)))
    assert len(means) == 2 * (1 + 12 + 4), "a difference, 12 metrics and 4 counts of each decoding"
    assert text.count("─\n") == len(re.findall(r"^greedy *$", text, re.MULTILINE)) == parts


def test_what_stands_beside_the_runs_comes_after_them():
    """The baseline, the runs and the recipe over its seeds come first; the answer is about the last of the runs."""
    given = {
        "sft": {"greedy": outputs("0", "0", "0", "1")},
        "grpo-0": {"greedy": outputs("1", "1", "1", "2")},
        "grpo-1": {"greedy": outputs("1", "1", "1", "2")},
        "lead": {"greedy": outputs("2", "2", "2", "3")},
    }
    asked = {"rewarded": set(), "postprocessed": ["lead", "sft"], "seeds": {"grpo": ["grpo-0", "grpo-1"]}}
    result = compare(given, rows(4), [numbers("m")], **asked, beside=["lead"])
    assert result["beside"] == ["lead"]
    names = ["sft", "sft, post-processed", "grpo-0", "grpo-1", "grpo, 2 seeds", "lead", "lead, post-processed"]
    assert re.findall(r"^\| (.*?) \| greedy", markdown(result), re.MULTILINE) == names
    assert re.findall(r"^(?:sft|grpo|lead)\S*", printed(result), re.MULTILINE) == [re.split(" ", n)[0] for n in names]
    assert answer(result).startswith(answer(compare(dict([*given.items()][:3]), rows(4), [numbers("m")], **{
        **asked, "postprocessed": ["sft"]})).split(" (")[0])  # fmt: skip
    # With nothing else, the answer is about what stands beside the run.
    alone = {name: given[name] for name in ("sft", "lead")}
    assert "between lead and sft" in answer(compare(alone, rows(4), [numbers("m")], rewarded=set(), beside=["lead"]))
    # An older file does not say what is beside its runs, which then came first.
    del result["beside"]
    assert comparison.last_run(result) == "lead"


def test_a_single_run_has_no_difference_column():
    result = compare({"sft": {"greedy": outputs("1", "1")}}, rows(2), [numbers("m")], rewarded=set())
    assert "minus" not in printed(result)
    assert "minus" not in markdown(result)
    assert "reward" not in markdown(result)


def test_names_are_never_read_as_markup():
    given = {"a[bold]": {"greedy": outputs("1", "1")}, "b|c": {"greedy": outputs("1", "1")}}
    result = compare(given, rows(2), [numbers("[red]m")], rewarded=set())
    assert "a[bold]" in printed(result)
    assert "[red]m" in printed(result)
    lines = markdown(result).splitlines()
    assert {line.count("|") for line in lines[:4]} == {lines[1].count("|")}


def test_markdown_by_hand():
    result = compare(two_runs(), rows(2), [numbers("m")], rewarded={"m"}, postprocessed=["grpo"])
    assert markdown(result).splitlines()[:5] == [
        r"| run | decoding | m\* minus sft | m\* | words | length_ratio | ended | repeated_3grams |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| sft | greedy | baseline | 0.500 [0.250, 0.750] | 4.000 [4.000, 4.000] | 1.000 [1.000, 1.000] "
        "| 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] |",
        "| grpo | greedy | 0.250 [0.250, 0.250], no difference shown, p = 1.000 "
        "| 0.750 [0.500, 1.000] | 4.000 [4.000, 4.000] | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] "
        "| 0.000 [0.000, 0.000] |",
        "| grpo, post-processed | greedy | 0.250 [0.250, 0.250], no difference shown, p = 1.000 "
        "| 0.750 [0.500, 1.000] | 3.000 [3.000, 3.000] | 0.750 [0.750, 0.750] | – | 0.000 [0.000, 0.000] |",
    ]
    del result["steps"], result["postprocessing"]  # as in older files
    assert markdown(result).endswith(
        "\n\nMeans over 2 held-out rows with 95 % bootstrap intervals. \\* was a reward in training. ↑ and ↓: a "
        "difference to sft is shown. p is that of a randomisation test, corrected (Holm) for all differences "
        "of its kind at a decoding; a difference is shown where it is below 0.05."
        "\n\n– the text is not what was generated: ended of grpo, post-processed\n"
    )


def test_the_summary_is_the_answer_and_the_tables_in_which_nothing_is_markup():
    result = compare(two_runs(), rows(2), [numbers("m*")], rewarded=set())
    first, empty, *tables = summary(result).split("\n")
    assert first.startswith(r"No difference is shown between grpo and sft on m\*: 0.250 [") and empty == ""
    assert "\n".join(tables) == markdown(result)


def test_what_each_step_changed_is_counted_and_said():
    steps = postprocess.build(["repeated_sentences", "length"], [["a b c"]])
    given = {
        "sft": {"sampled": outputs("1", "2"), "greedy": outputs("1 on. 1 on.", "2 on.", tail="")},
        "lead": {"greedy": [Several("3", None, True, outputs=outputs("3", "4")), *nothing("no source")["greedy"]]},
    }
    result = compare(given, rows(2), [numbers("m")], rewarded=set(), postprocessed=["lead", "sft"], steps=steps)
    assert result["postprocessing"] == ["repeated_sentences", {"length": {"words": 3}}]
    assert result["steps"] == {
        "sft": {
            "greedy": {"repeated_sentences": 1, "length": 0},
            "sampled": {"repeated_sentences": 0, "length": 2},
        },
        "lead": {"greedy": {"repeated_sentences": 0, "length": 2}},
    }
    # lead has two outputs of one row and none of the other
    assert result["processed"] == {"sft": {"greedy": 2, "sampled": 2}, "lead": {"greedy": 2}}
    shown = {(output["run"], output["postprocessed"]): output for output in result["examples"][0]["outputs"]}
    assert shown["sft", True]["text"] == "1 and so" and shown["lead", True]["samples"] == ["3 and so", "4 and so"]
    assert shown["lead", True]["metrics"]["words"] == 3
    said = (
        "Outputs that each step of post-processing changed: "
        "sft, greedy: repeated_sentences 1 of 2, length (words: 3) 0 of 2; "
        "sft, sampled: repeated_sentences 0 of 2, length (words: 3) 2 of 2; "
        "lead, greedy: repeated_sentences 0 of 2, length (words: 3) 2 of 2."
    )
    assert said in " ".join(printed(result, width=80).split()) and f"\n\n{said}\n" in markdown(result)
    alone = compare(given, rows(2), [numbers("m")], rewarded=set())
    assert alone["steps"] == {} and "post-processing" not in markdown(alone)


def corpus_result():
    result = compare(two_runs(), rows(2), [numbers("m")], rewarded=set())
    described = {"distinct_1": 0.25, "same_opening": None}
    result["corpus"] = {
        "sft": {"sampled": {**described, "self_bleu": 0.5}, "greedy": described},
        "grpo": {"greedy": described | {"distinct_1": 0.5}, "sampled": described | {"kl_to_sft": 1234.5678}},
        "best": {"sampled": described | {"kl_to_sft": None}},
    }
    result["corpus_intervals"] = {"grpo": {"sampled": {"kl_to_sft": exactly(1234.5678, 2) | {"low": 1000.0}}}}
    result["corpus_intervals"]["grpo"]["sampled"]["kl_to_sft"] |= {"mean": 1234.5678, "high": 1300.0}
    result["corpus_missing"] = {"best": {"sampled": {"kl_to_sft": "it was not asked"}}}
    return result


def test_what_describes_all_texts_of_a_run_is_shown_below():
    result = corpus_result()
    text = printed(result, width=80)
    lines = [line.split() for line in text.partition("all texts at once")[2].splitlines()]
    described = "This describes all texts of a run at once: no better or worse, no test."
    expected = [
        ["sft", "grpo", "best"],
        ["greedy"],
        ["distinct_1", "0.250", "0.500", "–"],
        ["same_opening", "–", "–", "–"],
        ["sampled"],
        ["distinct_1", "0.250", "0.250", "0.250"],
        ["same_opening", "–", "–", "–"],
        ["self_bleu", "0.500", "–", "–"],
        ["kl_to_sft", "–", "1234.568", "–"],
        ["±150.000"],
    ]
    assert [line for line in lines if line and "─" not in line[0]][:10] == expected
    assert described in " ".join(text.split())
    assert " ".join(" ".join(map(" ".join, lines)).split()).endswith(
        "– it has no greedy outputs: all of best (greedy) – no text of it has one: same_opening of sft and grpo and "
        "best – not measured of it: self_bleu of grpo (sampled) and best; kl_to_sft of sft (sampled) "
        "– it was not asked: kl_to_sft of best"
    )
    assert markdown(result).partition("| run | decoding | distinct_1")[2].splitlines() == [
        " | same_opening | self_bleu | kl_to_sft |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| sft | greedy | 0.250 | – | – | – |",
        "| grpo | greedy | 0.500 | – | – | – |",
        "| sft | sampled | 0.250 | – | 0.500 | – |",
        "| grpo | sampled | 0.250 | – | – | 1234.568 [1000.000, 1300.000] |",
        "| best | sampled | 0.250 | – | – | – |",
        "",
        described,
        "",
        "– no text of it has one: same_opening of sft and grpo and best",
        "",
        "– not measured of it: self_bleu of sft (greedy) and grpo and best; kl_to_sft of sft and grpo (greedy)",
        "",
        "– it was not asked: kl_to_sft of best",
    ]
    del result["corpus"]  # as in older files
    assert "all texts" not in printed(result) + markdown(result)


def test_a_result_survives_its_file(tmp_path):
    result = compare(two_runs(), rows(2), [numbers("m")], rewarded={"m"}, postprocessed=["sft"])
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(result))
    read = json.loads(file.read_text())
    assert (answer(read), markdown(read), printed(read)) == (answer(result), markdown(result), printed(result))


def test_comparing_needs_no_torch():
    code = (
        "import sys, lastmile_trl.evaluation.comparison, lastmile_trl.evaluation.decoding; "
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
