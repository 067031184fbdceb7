import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.comparison import answer, compare, markdown, table
from lastmile_trl.evaluation.decoding import Output
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


def two_runs():
    return {
        "sft": {"sampled": outputs("0.5", "0.5"), "greedy": outputs("0.25", "0.75")},
        "grpo": {"sampled": outputs("0.5", "0.5"), "greedy": outputs("0.5", "1.0", tail=" Go. So. So.")},
    }


def test_the_whole_result_by_hand():
    result = compare(two_runs(), rows(2), [numbers("m")], rewarded={"m", "other"}, postprocessed=["grpo"])
    assert json.loads(json.dumps(result)) == result
    assert {key: result[key] for key in ("version", "rows", "baseline", "metrics")} == {
        "version": 1,
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
        "m": exactly(0.25, 2),
        "words": exactly(0, 2),
        "length_ratio": exactly(0, 2),
        "ended": exactly(0, 2),
        "repeated_3grams": exactly(0, 2),
    }
    assert processed["difference"]["words"] == exactly(-1, 2)  # the second "So." is gone
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
    assert found["a", "sampled"]["m"] == exactly(3, 2)
    assert found["b", "sampled"] is None


def test_the_post_processed_baseline_is_compared_too():
    given = {
        "sft": {"greedy": outputs("1 1. 1 1.", "1 1. 1 1.", tail="")},
        "rl": {"greedy": outputs("1 1.", "1 1.", tail="")},
    }
    result = compare(given, rows(2), [numbers("m")], rewarded=set(), postprocessed=("sft", "rl"))
    raw, processed, rl, rl_processed = result["results"]
    assert raw["difference"] is raw["difference_to_postprocessed"] is None
    assert processed["difference"]["words"] == exactly(-2, 2)
    assert processed["difference_to_postprocessed"] is None
    assert rl["difference"]["words"] == exactly(-2, 2)
    assert rl["difference_to_postprocessed"]["words"] == exactly(0, 2)
    assert rl_processed["difference_to_postprocessed"]["words"] == exactly(0, 2)


def test_rows_that_cannot_be_scored():
    given = {"a": {"greedy": outputs("1/-", "-/-", "2/-")}, "b": {"greedy": outputs("3/-", "4/-", "4/-")}}
    result = compare(given, rows(3), [numbers("m"), numbers("never", 1)], rewarded=set())
    first, second = result["results"]
    assert first["metrics"]["m"]["rows"] == 2
    assert first["metrics"]["never"] is None
    assert second["difference"]["m"] == exactly(2, 2)
    assert second["difference"]["never"] is None
    assert answer(result) == "b beats a on m by 2.000 [2.000, 2.000] (greedy, 2 of 3 held-out rows)."
    assert "| b | greedy | 2.000 [2.000, 2.000] | 3.667 [3.000, 4.000] | – | 4.000" in markdown(result)
    assert "–" in printed(result)


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


def written(difference, processed=None, *, rewarded=("rouge",), decoding="greedy"):
    """A result as read from a file: `grpo` against `sft`."""
    names = ["rouge", *(name for name in difference if name != "rouge")]
    common = {"decoding": decoding, "postprocessed": False, "metrics": dict.fromkeys(names, estimate(0.5, 0.4, 0.6))}
    return {
        "version": 1,
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
            "against post-processed sft the difference is -0.020 [-0.030, -0.010].",
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
        "sft": {"greedy": outputs("1", "1")},
        "grpo": {"greedy": outputs("2", "2")},
        "ppo": {"greedy": outputs("4", "4")},
    }
    assert answer(compare(given, rows(2), [numbers("m")], rewarded=set())).startswith("ppo beats sft on m by 3.000")
    by_ppo = compare(given, rows(2), [numbers("m")], rewarded=set(), baseline="ppo")
    assert answer(by_ppo).startswith("grpo falls behind ppo on m by 2.000")


def test_the_answer_takes_greedy_where_both_have_it_and_else_what_both_have():
    assert "(greedy, 2 held-out rows)" in answer(compare(two_runs(), rows(2), [numbers("m")], rewarded=set()))
    partly = two_runs()
    del partly["sft"]["greedy"]
    assert "(sampled, 2 held-out rows)" in answer(compare(partly, rows(2), [numbers("m")], rewarded=set()))


def test_the_answer_when_there_is_nothing_to_compare():
    alone = {"sft": {"greedy": outputs("1", "1")}}
    assert answer(compare(alone, rows(2), [numbers("m")], rewarded=set())) == (
        "sft has 1.000 [1.000, 1.000] on m (greedy, 2 held-out rows); there is no other run to compare it with."
    )
    assert answer(compare(two_runs(), rows(2), [], rewarded=set())).startswith("No metric was given")


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
    assert re.search(r"^sft +– +0.500 ", text, re.MULTILINE)
    assert "±0.250" in text
    assert "Means over 2 held-out rows with 95 % bootstrap intervals. * was a reward in training." in " ".join(
        text.split()
    )


def test_nothing_of_the_table_is_lost_on_eighty_columns():
    metrics = [*build(["rouge", {"rouge": {"variant": "rouge2"}}, "length", "repetition"])]
    result = compare(two_runs(), rows(2), metrics, rewarded={"rouge/rougeL"}, postprocessed=["sft", "grpo"])
    text = printed(result, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    body = [line for line in text.splitlines() if line.startswith("grpo")]
    assert len(body[0].split()) == 1 + 1 + 4 + 4, "run, difference, four metrics, four counts"
    assert "3grams" in text


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
        "| sft | greedy | – | 0.500 [0.250, 0.750] | 4.000 [4.000, 4.000] | 1.000 [1.000, 1.000] "
        "| 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] |",
        "| grpo | greedy | 0.250 [0.250, 0.250] | 0.750 [0.500, 1.000] | 4.000 [4.000, 4.000] "
        "| 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] |",
        "| grpo, post-processed | greedy | 0.250 [0.250, 0.250] | 0.750 [0.500, 1.000] | 3.000 [3.000, 3.000] "
        "| 0.750 [0.750, 0.750] | 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] |",
    ]
    assert markdown(result).endswith(
        "\n\nMeans over 2 held-out rows with 95 % bootstrap intervals. \\* was a reward in training.\n"
    )


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
