"""What the pages show is what was measured."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def script(name):
    """The module of an experiment."""
    spec = importlib.util.spec_from_file_location(f"{name}_experiment", ROOT / f"experiments/{name}/run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


experiment = script("quickstart")


@pytest.mark.parametrize("page", ["README.md", "experiments/quickstart/README.md"])
def test_the_tables_are_those_of_the_stored_results(page):
    text, results = (ROOT / page).read_text(), experiment.stored()
    assert sorted(results) == [0, 1, 2]
    assert experiment.table(results[0]) in text
    if page.startswith("experiments"):
        assert experiment.seeds_table(results) in text


def test_rl_raw_beat_sft_raw_on_held_out_rouge_for_every_seed():
    for seed in (0, 1, 2):
        grpo = [entry for entry in experiment.stored()[seed]["results"] if entry["run"] == "grpo"]
        assert [entry["decoding"] for entry in grpo] == ["greedy", "sampled"]
        for entry in grpo:
            assert entry["difference"]["rouge/rougeL"]["low"] > 0, seed
            assert entry["difference"]["repetition"]["low"] > 0, seed


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("perplexity", ["reward_table", "dpo_table"]),
        ("last_mile", ["reward_table", "outputs_table", "differences_table"]),
    ],
)
def test_the_tables_of_learned_rewards_are_those_of_the_stored_results(name, tables):
    text, module = (ROOT / f"experiments/{name}/README.md").read_text(), script(name)
    assert sorted(module.stored()) == [0, 1, 2]
    assert all(getattr(module, table)(module.stored()) in text for table in tables)


def test_the_tables_of_guidance_are_those_of_the_stored_results():
    text, module = (ROOT / "experiments/guidance/README.md").read_text(), script("guidance")
    assert all(sorted(module.stored(task)) == [0, 1, 2] for task in module.TASKS)
    assert all(f"<!-- {mark} -->\n{table}<!-- end -->" in text for mark, table in module.tables().items())
