"""Weight, clip, scale and gates: what is done to a reward's values, and what a trainer logs of it."""

import pickle
import time

import pytest

from lastmile_trl import rewards as rewards_module
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.rewards import Task, build, prepare, score

HERE = __name__


def number(completions, **columns):
    return [None if text == "none" else float(text) for text in completions]


def tensor(completions, **columns):
    import torch

    return torch.tensor([float(len(text)) for text in completions])


def napping(completions, **columns):
    time.sleep(0.2)
    return [0.0] * len(completions)


def in_brackets(completions, **columns):
    return [float(text.startswith("(")) for text in completions]


class Seen:
    """A reward that wants to know the training rows."""

    def __init__(self, words=()):
        self.words = frozenset(words)

    def for_task(self, task):
        return Seen(word for texts in task.columns["references"] for text in texts for word in text.split())

    def __call__(self, completions, **columns):
        return [float(text in self.words) for text in completions]


class Fails:
    def __call__(self, completions, **columns):
        raise ZeroDivisionError("by hand")


def test_a_value_is_clipped_and_then_scaled():
    [reward] = build([{f"{HERE}:number": {"clip": [-1, 2], "scale": 10}}])
    assert reward(["-3", "0.5", "7", "none"]) == [-10.0, 5.0, 20.0, None]


def test_what_a_trainer_can_not_hold_is_refused_after_scaling():
    [reward] = build([{f"{HERE}:number": {"scale": 1e30}}])
    assert reward(["1e8"]) == [1e38]
    with pytest.raises(RunError, match="Reward 'number' returned 1e\\+40 on row 1 of the batch"):
        reward(["1", "1e10"])


def test_numbers_of_torch_and_numpy():
    import torch

    [reward] = build([{f"{HERE}:tensor": {"scale": 2}}])
    assert reward(["a", "bc"]) == [2.0, 4.0]
    [repetition] = build([{"repetition": {"n": 1, "unit": "tokens"}}])
    assert repetition(["x"], completion_ids=[torch.tensor([2, 2, 2, 2])]) == [-0.75]
    assert build([{"ending": {"end_ids": [2]}}])[0](["x"], completion_ids=[torch.tensor([7, 2])]) == [0.0]


def test_scale_alone_and_negative():
    [reward] = build([{f"{HERE}:number": {"scale": -0.5}}])
    assert reward(["2", "-4"]) == [-1.0, 2.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 1}, "clip must be [low, high], two numbers with low < high, not 1."),
        ({"clip": [1]}, "clip must be [low, high], two numbers with low < high, not [1]."),
        ({"clip": [1, 1]}, "clip must be [low, high], two numbers with low < high, not [1, 1]."),
        ({"clip": [2, 1]}, "clip must be [low, high], two numbers with low < high, not [2, 1]."),
        ({"clip": ["0", 1]}, "clip must be [low, high], two numbers with low < high, not ['0', 1]."),
        ({"scale": "2"}, "scale must be a number, not '2'."),
        ({"scale": float("nan")}, "scale must be a number, not nan."),
        ({"gate": True}, "gate must be a number, not True."),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError) as error:
        build([{f"{HERE}:number": settings}])
    assert str(error.value) == f"Reward '{HERE}:number': {message}"


def test_where_a_gate_is_closed_the_other_rewards_are_zero():
    rouge, length, gate = build(["rouge", "length", {f"{HERE}:in_brackets": {"gate": 1}}])
    call = dict(completions=["(a cat)", "a cat", "a cat and dogs"], references=["a cat"] * 3)
    assert rouge(**call) == [1.0, 0.0, 0.0]
    assert length(**call) == [0.0, 0.0, 0.0]
    assert gate(**call) == [1.0, 0.0, 0.0]


def test_a_gate_is_the_least_value_and_none_passes():
    rouge, gate = build(["rouge", {f"{HERE}:number": {"gate": 0.5}}])
    completions = ["0.4", "0.5", "none"]
    assert rouge(completions, references=completions) == [0.0, 1.0, 1.0]
    assert gate(completions) == [0.4, 0.5, None]


def test_a_gate_looks_at_the_clipped_and_scaled_value():
    rouge, _ = build(["rouge", {f"{HERE}:number": {"gate": 1, "clip": [0, 1], "scale": 2}}])
    assert rouge(["0.4", "0.5", "9"], references=["0.4", "0.5", "9"]) == [0.0, 1.0, 1.0]


def test_every_gate_must_be_open_and_what_cannot_be_scored_stays_so():
    rouge, *_ = build(["rouge", {f"{HERE}:in_brackets": {"gate": 1}}, {"length": {"gate": -0.5}}])
    completions = ["(a cat", "(a cat b c d e", "a cat", "a cat"]
    assert rouge(completions, references=["a cat", "a cat", "a cat", []]) == [1.0, 0.0, 0.0, None]


def test_gates_do_not_gate_each_other():
    first, second = build([{f"{HERE}:in_brackets": {"gate": 1}}, {"length": {"gate": 0, "variant": "ratio"}}])
    assert second(["a cat"], references=["a cat"]) == [1.0]
    assert first(["a cat"], references=["a cat"]) == [0.0]


def test_a_gated_reward_is_logged_by_itself_too():
    logged = []
    rouge, gate = build(["rouge", {f"{HERE}:in_brackets": {"gate": 1}}])
    call = dict(completions=["(a cat)", "a cat"], references=["a cat"] * 2)
    assert rouge(**call, log_metric=lambda *pair: logged.append(pair)) == [1.0, 0.0]
    gate(**call, log_metric=lambda *pair: logged.append(pair))
    assert logged == [("rewards/rouge/rougeL/before_gates", 1.0)]


def test_a_gate_that_fails_names_itself():
    rouge, _ = build(["rouge", {f"{HERE}:Fails": {"gate": 1}}])
    with pytest.raises(RunError, match="Reward 'Fails' failed on row 0 of the batch .*ZeroDivisionError: by hand"):
        rouge(["a"], references=["a"])


def test_the_row_is_named_by_its_id_and_its_prompt():
    [reward] = build([f"{HERE}:number"])
    with pytest.raises(RunError) as error:
        reward(["1", "x"], id=["note-1", "note-2"], prompts=["p", "q"])
    assert str(error.value) == (
        "Reward 'number' failed on row 1 of the batch (id 'note-2', prompt 'q', completion 'x'): "
        "ValueError: could not convert string to float: 'x'"
    )


def test_a_reward_that_asks_for_the_task_gets_it_also_as_a_gate():
    rewards = build(["rouge", {f"{HERE}:Seen": {"gate": 1, "weight": 0.5}}])
    rouge, seen = prepare(rewards, Task({"references": [["a cat"], ["dogs"]]}))
    assert seen(["cat", "bird"]) == [1.0, 0.0] and seen.weight == 0.5
    assert rouge(["cat", "bird"], references=["cat", "bird"]) == [1.0, 0.0]
    assert rewards[1](["cat"]) == [0.0]  # the one it was made of is as it was


def test_gates_are_pickled_along():
    rouge, _ = pickle.loads(pickle.dumps(build(["rouge", {f"{HERE}:in_brackets": {"gate": 1}}])))
    assert rouge(["a", "(a"], references=["a", "a"]) == [0.0, 1.0]


def test_scoring_rows_uses_gates():
    rewards = build(["rouge", {"format": {"pattern": "yes|no", "gate": 1}}])
    rows = [{"prediction": "yes", "references": "yes"}, {"prediction": "yes sir", "references": "yes sir"}]
    assert score(rewards, rows) == [{"rouge/rougeL": 1.0, "format": 1.0}, {"rouge/rougeL": 0.0, "format": 0.0}]


def test_a_slow_reward_is_named_once_and_a_quick_one_not(monkeypatch, capsys):
    monkeypatch.setattr(rewards_module, "PATIENCE", 0.05)
    quick, slow = build([f"{HERE}:number", f"{HERE}:napping"])
    capsys.readouterr()
    quick(["1"])
    slow(["a", "b"])
    time.sleep(0.1)  # the quick one's time would be over too
    assert capsys.readouterr().err == ("Reward 'napping' has taken 0.05 s for 2 completions, and is still at it.\n")
