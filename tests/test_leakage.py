"""Rows that are held out by one stage and trained on by another."""

from pathlib import Path

import pytest

from lastmile_trl.leakage import leaks
from lastmile_trl.recipe import Recipe

DATA = {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target"}
OWN = {
    "grpo": {"rewards": ["rouge"]},
    "pairs": {"preferences": {"negatives": {"irrelevant": 1}}},
    "dpo": {"preferences": {"chosen": "chosen", "rejected": "rejected"}},
    "evaluate": {"evaluation": {"runs": ["run"]}},
}
SEEN = "it may have seen rows that are held out here."


@pytest.fixture
def stage(tmp_path):
    """A recipe, whose run folder is there if it is `trained`."""

    def make(name, start="some/model", method="sft", trained=True, **data):
        run = tmp_path / name
        values = {"method": method, "data": DATA | data, "training": {"output_dir": str(run)}, **OWN.get(method, {})}
        if method != "evaluate":
            values["model"] = {"model_name_or_path": str(start)}
        made = Recipe(Path(f"{name}.yaml"), values)
        if trained:
            run.mkdir()
            (run / "recipe.yaml").write_text(made.yaml())
        return made

    return make


def said(evaluated, *runs, **more):
    return leaks({run.run.name: run.run for run in runs}, evaluated, **more)


@pytest.mark.parametrize(
    ("trained", "evaluated", "key"),
    [
        ({"held_out": 20}, {"held_out": 60}, "held_out"),
        ({"held_out": 60}, {"held_out": 20}, None),  # the first of one order are held out by both
        ({}, {"held_out": 200}, None),
        ({"held_out": 20, "eval_split": "test"}, {"held_out": 60, "eval_split": "test"}, None),
        ({"split": "a", "eval_split": "test"}, {"split": "b", "eval_split": "test"}, None),
        ({}, {"eval_split": "test"}, "eval_split"),
        ({"split": "a"}, {"split": "b"}, "split"),
        ({}, {"group_by": "source"}, "group_by"),
        ({}, {"path": "others.jsonl"}, "path"),
        ({"revision": "one"}, {"revision": "two", "eval_split": "test"}, "revision"),
    ],
)
def test_what_a_run_may_have_seen(stage, trained, evaluated, key):
    expected = [f"sft was trained with another data.{key}: {SEEN}"] if key else []
    assert said(stage("both", method="evaluate", trained=False, **evaluated), stage("sft", **trained)) == expected


def test_all_stages_before_a_run_count(stage):
    sft = stage("sft", held_out=20)
    middle = stage("middle", sft.run, held_out=60)
    grpo = stage("grpo", middle.run, "grpo", held_out=60)
    expected = "{} goes back to sft, which was trained with another data.held_out: " + SEEN
    evaluated = stage("both", method="evaluate", trained=False, held_out=60)
    assert said(evaluated, stage("other", held_out=60), grpo) == [expected.format("grpo")]
    assert said(grpo, grpo) == [expected.format("grpo")]
    assert said(evaluated, middle, sft) == [
        expected.format("middle"),
        f"sft was trained with another data.held_out: {SEEN}",
    ]


def test_stages_that_are_yet_to_run_count_too(stage):
    stage("sft", held_out=60)  # of an earlier command, which this one replaces
    sft = stage("sft", trained=False, held_out=20)
    grpo = stage("grpo", sft.run, "grpo", trained=False, held_out=60)
    assert said(grpo, grpo) == []
    [found] = said(grpo, grpo, stages=[sft, grpo])
    assert found.startswith("grpo goes back to sft, which was trained with another data.held_out")


def test_pairs_hold_out_what_their_own_rows_do(stage):
    pairs = stage("pairs", method="pairs", held_out=40)
    ready = {"path": str(pairs.run), "eval_split": "validation"}
    dpo = stage("dpo", method="dpo", **ready)
    assert said(stage("few", method="evaluate", held_out=40), dpo) == []
    assert said(stage("many", method="evaluate", held_out=60), dpo) == [
        f"dpo was trained with another data.held_out: {SEEN}"
    ]
    start = stage("sft", held_out=20)
    after = stage("after", start.run, method="dpo", **ready)
    [found] = said(after, after)
    assert found.startswith("after goes back to sft, which")


def test_a_run_that_starts_from_itself_ends(stage, tmp_path):
    assert said(stage("both", method="evaluate"), stage("sft", tmp_path / "sft")) == []
