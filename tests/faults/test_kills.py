"""A real run killed at random moments and in the middle of saves: nothing is lost, the end is the same."""

import json
import random
import time

import psutil
import pytest
import torch

from lastmile_trl import checkpoints

from ..conftest import make_rows, write_jsonl
from .processes import changed, logged, said, start, wait_for, weights, write_recipe

STAGES = {  # with all that a checkpoint has to hold: an adapter, sums over unlogged steps, a critic
    "grpo": {"model": {"use_peft": True, "lora_r": 4}, "training": {"steps_per_generation": 2, "num_iterations": 2}},
    "rloo": {"training": {"logging_steps": 3}},
    "ppo": {"training": {"num_iterations": 2, "beta": 0.05}},
}
KILLS = {"grpo": 7, "rloo": 6, "ppo": 7}


def kill(process):
    """As a power cut: all at once, and none is asked."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family[1:])
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("method", STAGES)
def test_a_killed_run_ends_as_one_that_was_not(method, tmp_path, tiny_model_folder):
    write_jsonl(tmp_path / "rows.jsonl", make_rows(32))
    for name in ("whole", "killed"):
        write_recipe(tmp_path, name, method, tiny_model_folder, **STAGES[method])
    assert start(tmp_path, "whole").wait() == 0, said(tmp_path, "whole")
    chance, run, reached, in_saves = random.Random(method), tmp_path / "runs" / "killed", 0, 0
    for number in range(KILLS[method]):
        process = start(tmp_path, "killed", seconds=0.15)
        if number % 2:
            assert wait_for(process, (run / checkpoints.WRITING).exists), "it never saved"
            time.sleep(chance.uniform(0, 0.03))
        else:
            before = changed(run / "history.jsonl")
            assert wait_for(process, lambda before=before: changed(run / "history.jsonl") > before), "it never logged"
            time.sleep(chance.uniform(0, 1.5))
        kill(process)
        in_saves += (run / checkpoints.WRITING).exists()
        whole = [path for path in run.glob("checkpoint-*") if not checkpoints.broken(path)]
        newest = max((int(path.name.split("-")[1]) for path in whole), default=0)
        assert newest >= reached, "what was saved before is gone"
        reached = newest
    assert 0 < reached < 40 and in_saves, (reached, in_saves)
    assert start(tmp_path, "killed").wait() == 0, said(tmp_path, "killed")
    whole = tmp_path / "runs" / "whole"
    assert logged(run) == logged(whole) and len(logged(whole)) >= 13
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    ours, theirs = ((path / "evaluation.json").read_text() for path in (run, whole))
    assert json.loads(ours.replace("killed", "whole")) == json.loads(theirs)
