"""What the pages show is what was measured."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("quickstart_experiment", ROOT / "experiments/quickstart/run.py")
experiment = importlib.util.module_from_spec(spec)
spec.loader.exec_module(experiment)


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
