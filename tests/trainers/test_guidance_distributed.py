"""Guided roll-outs in two CPU processes: the draws of one process, one prefix a group, and nobody left waiting."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from guidance_fixture import GUIDE, LEARNER, by, maker_by_sort

HERE = Path(__file__).parent
SHARED = {"num_generations": 4}  # six rows a process: the middle one of three groups lies on both
ANCHORED = {"sort": "references", "guidance": {"mode": "drpo", "anchor": 0.5, "probability": 0.7}, "worthless": True,
            "learning_rate": 0.1}  # fmt: skip
RUNS = {
    "grpo": {**ANCHORED, **SHARED, "kind": "grpo"},
    "rloo": {**ANCHORED, **SHARED, "kind": "rloo"},
    "ppo": {**ANCHORED, "kind": "ppo"},
    "model": {"sort": "model", "kind": "grpo", "guidance": {"mode": "ppo++"}, **SHARED},
    "base": {"sort": "adapter", "kind": "grpo", "ends": 0.0, "guidance": {"mode": "aggrevated", "span": 2}, **SHARED},
    "texts": {"sort": "text", "kind": "rloo", "ends": 0.0, "guidance": {"mode": "aggrevated"}, **SHARED},
    "seldom": {"sort": "adapter", "kind": "grpo", "guidance": {"mode": "lols", "mixture": 0.5, "probability": 0.3},
               **SHARED, "max_steps": 12},
    "critic": {"sort": "adapter", "kind": "ppo", "guidance": {"mode": "d2lols", "switch": 0.5, "probability": 0.2},
               "max_steps": 6},
}  # fmt: skip
COMMON = {"max_steps": 3, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1e-6}


@pytest.fixture(scope="module")
def both(tmp_path_factory, tokenizer, tiny_model_folder):
    """What each of two processes found in all runs."""
    folder = tmp_path_factory.mktemp("both")
    runs = {name: {"per_device_train_batch_size": 6} | COMMON | settings for name, settings in RUNS.items()}
    given = {"tokenizer": str(tiny_model_folder), "out": str(folder), "runs": runs}
    (folder / "settings.json").write_text(json.dumps(given))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *words, str(HERE / "guidance_processes.py"), str(folder / "settings.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"found{process}.pt", weights_only=True) for process in range(2)]


@pytest.fixture
def alone(tokenizer, tmp_path):
    """The same run in this process."""
    from guidance_processes import run

    def build(name):
        settings = {"per_device_train_batch_size": 12} | COMMON | RUNS[name]
        return run(maker_by_sort(tokenizer, tmp_path), **settings)

    return build


def rollouts(both, name):
    """The rows of each roll-out, those of the first process first."""
    return [one + other for one, other in zip(*(found[name]["rollouts"] for found in both), strict=True)]


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
def test_two_processes_draw_what_one_does_and_have_its_anchor(both, alone, name):
    """Which rows are guided, by which reference and how far; without rewards the anchor is the gradient."""
    here, there = alone(name), rollouts(both, name)
    assert len(there) == 3
    for one, shared in zip(here["rollouts"], there, strict=True):
        assert [row["prompt"] for row in one] == [row["prompt"] for row in shared]
        assert [row["prefix"] for row in one] == [row["prefix"] for row in shared]
    assert len({tuple(row["prefix"]) for rows in there for row in rows}) > 3
    numbers = both[0][name]["numbers"]
    for number in ("guidance/probability", "guidance/share", "guidance/prefix_length"):
        assert numbers[number] == pytest.approx(here["numbers"][number])
    assert numbers["anchor/loss"] == pytest.approx(here["numbers"]["anchor/loss"], abs=1e-4)
    assert max(numbers["anchor/loss"]) > min(numbers["anchor/loss"]) + 1
    for key, value in here["weights"].items():
        torch.testing.assert_close(both[0][name]["weights"][key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["model", "base", "texts"])
def test_a_group_on_two_processes_has_one_prefix(both, tokenizer, name):
    for rows in rollouts(both, name):
        for group in (rows[0:4], rows[4:8], rows[8:12]):
            assert len({row["prompt"] for row in group}) == 1
            assert len({tuple(row["prefix"]) for row in group}) == 1
            assert len({tuple(row["own"]) for row in group}) > 1
            if name != "model":  # where the guide goes on, too
                assert all(row["ending"] and set(row["own"]) <= by(tokenizer, LEARNER) for row in group)
                assert len({len(row["prefix"] + row["own"]) for row in group}) == 1
        if name == "model":
            assert all(row["prefix"] and set(row["prefix"]) <= by(tokenizer, GUIDE) for row in rows)


@pytest.mark.parametrize("name", ["seldom", "critic"])
def test_nobody_waits_where_one_process_has_nothing_to_guide(both, tokenizer, name):
    guide = by(tokenizer, GUIDE)
    found = [[bool(guide & set(row["prefix"] + row["ending"])) for row in rows] for rows in rollouts(both, name)]
    assert len(found) == RUNS[name]["max_steps"] and any(any(rows[:6]) != any(rows[6:]) for rows in found)


@pytest.mark.parametrize("name", RUNS)
def test_both_processes_have_the_same_numbers_and_weights(both, name):
    first, second = (found[name] for found in both)
    assert first["numbers"] == second["numbers"]
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
