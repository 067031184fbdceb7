import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.require import Requirement

RUNS = ["sft", "a/grpo"]
METRICS = ["rouge/rougeL", "rouge/rouge2", "other/rouge2", "length", "words"]


def result(**means):
    """An evaluation of two runs in which only the last run's greedy, raw outputs have these means."""

    def entry(run, decoding="greedy", postprocessed=False, estimate=None):
        metrics = dict.fromkeys(METRICS, {"mean": 99.0, "low": 98.0, "high": 100.0, "rows": 3}) | (estimate or {})
        return {"run": run, "decoding": decoding, "postprocessed": postprocessed, "metrics": metrics}

    named = {"rougeL": "rouge/rougeL", "words": "words"}
    estimates = {
        named[name]: mean if mean is None else {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "rows": 300}
        for name, mean in means.items()
    }
    return {
        "results": [
            entry("sft"),
            entry("a/grpo", postprocessed=True),
            entry("a/grpo", estimate=estimates),
            entry("a/grpo", decoding="sampled"),
        ]
    }


@pytest.mark.parametrize(
    ("said", "holds"),
    [
        ("rougeL>=0.25", True),
        ("rouge/rougeL > .25", False),
        ("rougeL<=0.25", True),
        ("a/grpo:rougeL<2.5e-1", False),
        ("rougeL<2.6E-1", True),
        ("rougeL>-1", True),
        ("sft:rougeL>=0.3", True),
        ("words>=7", False),
    ],
)
def test_what_holds(said, holds):
    required = Requirement.read(said).among(RUNS, METRICS)
    assert (required.failure(result(rougeL=0.25, words=6.0)) is None) == holds


def test_what_was_only_sampled_goes_by_its_samples():
    shown = result()
    shown["results"].append(shown["results"][-1] | {"run": "best_of_8"})
    required = Requirement.read("best_of_8:words<99").among([*RUNS, "best_of_8"], METRICS)
    assert required.failure(shown).endswith("fails: best_of_8 has words 99 [98, 100] over 3 rows.")


def test_all_that_the_tables_show_can_be_named():
    shown = [*RUNS, "a/grpo, post-processed"]
    required = Requirement.read("a/grpo, post-processed:words>98").among(shown, METRICS)
    assert (required.run, required.failure(result(words=6.0))) == ("a/grpo, post-processed", None)
    without = result(words=6.0)
    [entry] = [of for of in without["results"] if of["postprocessed"]]
    entry |= {"metrics": {"words": None}, "missing": {"words": "the source is empty"}}
    assert required.failure(without).endswith(
        " fails: a/grpo, post-processed has no value of words: the source is empty."
    )


def test_a_recipe_over_its_seeds_can_be_named():
    required = Requirement.read("grpo, 2 seeds:words<7").among(["grpo, 2 seeds", *RUNS], METRICS)
    over = {"run": "grpo", "decoding": "greedy", "postprocessed": False, "seeds": ["grpo-0", "grpo-1"]}
    sampled = over | {"decoding": "sampled", "metrics": {"words": {"mean": 9.0, "low": 9.0, "high": 9.0, "rows": 4}}}
    over["metrics"] = {"words": {"mean": 6.0, "low": 5.0, "high": 7.0, "rows": 4}}
    assert required.failure(result() | {"over_seeds": [sampled, over]}) is None
    over["metrics"]["words"]["mean"] = 8.0
    failure = required.failure(result() | {"over_seeds": [sampled, over]})
    assert failure.endswith(" fails: grpo, 2 seeds has words 8 [5, 7] over 4 rows.")


def test_what_fails_is_said_with_value_interval_and_rows():
    assert Requirement.read("rougeL>=0.3").among(RUNS, METRICS).failure(result(rougeL=0.28123)) == (
        "--require 'rougeL>=0.3' fails: a/grpo has rouge/rougeL 0.2812 [0.2612, 0.3012] over 300 rows."
    )
    assert Requirement.read("words<9").among(RUNS, METRICS).failure(result(words=None)) == (
        "--require 'words<9' fails: a/grpo has no value of words: no row has a value."
    )


@pytest.mark.parametrize(
    "said", ["rougeL", "rougeL=0.3", "rougeL==0.3", "rougeL>=x", ">=0.3", "rougeL>=nan", "a:b:c>1", ""]
)
def test_what_is_no_requirement(said):
    with pytest.raises(InputError, match="is no requirement: write METRIC>=NUMBER"):
        Requirement.read(said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("rougeLL>0.3", "metric 'rougeLL' does not exist: did you mean 'rouge/rougeL'"),
        ("rouge2>0.3", "rouge2 may be rouge/rouge2 or other/rouge2: say which"),
        ("a/grop:words>3", "run 'a/grop' does not exist: did you mean 'a/grpo'"),
    ],
)
def test_names_that_do_not_exist(said, message):
    with pytest.raises(InputError, match=message):
        Requirement.read(said).among(RUNS, METRICS)
