"""The whole tiny pipeline, for real: minutes, so `make test-slow` runs it."""

import json

import pytest

from lastmile_trl import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """SFT and the reward model of recipes/last_mile_tiny, by the command that a user gives."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as left:
            cli.main(["run", "last_mile_tiny"])
        assert left.value.code == 0
    return folder / "runs" / "last_mile_tiny"


def evaluation(run):
    return json.loads((run / "evaluation.json").read_text())


def test_the_reward_model_knows_every_category_on_held_out_rows(runs):
    judged = evaluation(runs / "2_reward")
    accuracies = {name: group["accuracy"]["mean"] for name, group in judged["categories"].items()}
    assert len(accuracies) == 8
    assert accuracies.pop("hallucinated") >= 0.8
    assert min(accuracies.values()) >= 0.95
    assert {(sample["run"], sample["decoding"]) for sample in judged["samples"]} == {
        ("1_sft", "greedy"),
        ("1_sft", "sampled"),
    }


def test_ppo_raises_the_learned_reward_and_the_page_compares_raw_and_post_processed(runs):
    results = evaluation(runs / "4_evaluate")["results"]
    assert {(entry["run"], entry["postprocessed"]) for entry in results} == {
        (run, processed) for run in ("1_sft", "3_ppo") for processed in (False, True)
    }
    sampled = {
        entry["run"]: entry for entry in results if entry["decoding"] == "sampled" and not entry["postprocessed"]
    }
    assert sampled["3_ppo"]["difference"]["model"]["low"] > 0
