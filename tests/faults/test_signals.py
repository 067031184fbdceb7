"""What a terminal, a rented machine or a failing reward does to `lastmile run`, in one process and in two."""

import signal
import time

import psutil
import pytest
import torch

from lastmile_trl import checkpoints

from ..conftest import make_rows, write_jsonl
from .processes import changed, logged, said, start, wait_for, weights, write_recipe

TWO = ("--accelerate", "cpu", "--num_processes", "2")
SHORT = {"max_steps": 12, "save_steps": 5}


@pytest.fixture
def folder(tmp_path, tiny_model_folder):
    """Two recipes that differ in their name alone."""
    write_jsonl(tmp_path / "rows.jsonl", make_rows(32))
    for name in ("whole", "stopped"):
        write_recipe(tmp_path, name, "grpo", tiny_model_folder, training=SHORT)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGHUP, ()), (signal.SIGTERM, TWO)]
)
def test_a_signal_to_the_command_saves_and_the_same_command_goes_on(folder, number, words):
    assert start(folder, "whole", *words).wait() == 0, said(folder, "whole")
    whole, run = folder / "runs" / "whole", folder / "runs" / "stopped"
    process = start(folder, "stopped", *words, seconds=0.3)
    assert wait_for(process, lambda: changed(run / "history.jsonl") > 0 and len(logged(run)) >= 2)
    process.send_signal(number)
    assert process.wait(60) == 128 + number, said(folder, "stopped")
    assert "was stopped; the same command goes on from runs/stopped/checkpoint-" in said(folder, "stopped")
    saved = int(checkpoints.newest(run).name.split("-")[1])
    assert 2 <= saved < 12 and saved == len(logged(run))
    if words:
        assert start(folder, "stopped").wait() == 2
        assert "written by 2 processes and cannot go on with 1: use --num_processes 2" in said(folder, "stopped")
    assert start(folder, "stopped", *words).wait() == 0, said(folder, "stopped")
    assert logged(run) == logged(whole)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())


@pytest.mark.slow
def test_two_processes_save_when_all_get_a_signal_in_a_step_longer_than_torchrun_waits(folder):
    run = folder / "runs" / "stopped"
    process = start(folder, "stopped", *TWO, seconds=3, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="1")
    assert wait_for(process, lambda: changed(run / "history.jsonl") > 0 and len(logged(run)) >= 1)
    command = psutil.Process(process.pid)
    for each in [command, *command.children(recursive=True)]:
        each.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM, said(folder, "stopped")
    assert checkpoints.newest(run) is not None
    assert "Traceback" not in said(folder, "stopped")


@pytest.mark.slow
def test_a_reward_that_fails_in_one_process_ends_the_other(folder):
    process = start(folder, "stopped", *TWO, REWARD_FAILS_IN="1")
    assert wait_for(process, lambda: "Reward 'slowly' failed" in said(folder, "stopped")), said(folder, "stopped")
    failed = time.monotonic()
    assert process.wait(90) == 1
    assert time.monotonic() - failed < 60
