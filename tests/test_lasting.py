"""Runs that are stopped at some moment and go on: nothing is lost, nothing is different."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from lastmile_trl import checkpoints, preflight, run_folder, train
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.files import locked
from lastmile_trl.recipe import RL

from .test_train import recipe  # noqa: F401

LENGTHS = {"max_steps": 11, "logging_steps": 3, "save_strategy": "steps", "save_steps": 4}  # 8 steps are an epoch
FOUR_BIT = {"load_in_4bit": True, "use_peft": True, "lora_r": 4}
SEVERAL = {"steps_per_generation": 2, "num_iterations": 2}  # 4 steps of one micro-batch for each generation


@pytest.fixture
def stage(recipe):  # noqa: F811
    def build(method, run, model=None, **training):
        rewards = {"rewards": ["tests.test_train:short_completion"]} if method in RL else {}
        model = {"model_name_or_path": recipe().model["model_name_or_path"], **(model or {})}
        return recipe(method, run=run, model=model, training={**LENGTHS, **training}, **rewards)

    return build


def send(patch, step, *numbers):
    """Signals reach this process in a step."""
    whole = Trainer.training_step

    def step_with_signals(self, *args, **kwargs):
        if self.state.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return whole(self, *args, **kwargs)

    patch.setattr(Trainer, "training_step", step_with_signals)


def logged(run):
    """Every logged step without the clock."""
    rows = [row for row in run_folder.history(run) if "loss" in row]
    return [{key: value for key, value in row.items() if "time" not in key and "per_second" not in key} for row in rows]


def assert_same(one, other):
    assert logged(one) == logged(other)
    a, b = (load_file(next(run.glob("*model.safetensors"))) for run in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("method", "settings", "step", "saved"),
    [
        ("sft", {}, 5, 6),
        ("grpo", {}, 9, 10),  # in the second epoch, between two logged steps, where no checkpoint is planned
        ("rloo", {}, 4, 5),
        ("ppo", {"num_iterations": 1}, 9, 10),
        ("grpo", {"model": FOUR_BIT}, 5, 6),
        ("grpo", SEVERAL, 5, 8),  # the completions of step 4 are trained on until step 8
        ("ppo", SEVERAL, 9, None),  # all is trained before the next boundary, and only the evaluation is left
    ],
)
def test_a_run_that_gets_a_signal_saves_and_goes_on_as_if_it_had_not(stage, method, settings, step, saved):
    whole, stopped = stage(method, "whole", **settings), stage(method, "stopped", **settings)
    train.run(whole)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        send(patch, step, signal.SIGTERM, signal.SIGTERM)
        train.run(stopped)
    assert left.value.code == 128 + signal.SIGTERM
    assert run_folder.is_trained(stopped) == (saved is None)
    assert checkpoints.newest(stopped.run).name == f"checkpoint-{saved or 8}"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train.run(stopped)
    assert_same(whole.run, stopped.run)


def test_two_signals_of_the_keyboard_stop_at_once(stage, monkeypatch):
    send(monkeypatch, 1, signal.SIGINT, signal.SIGINT)
    stopped = stage("grpo", "stopped")
    with pytest.raises(KeyboardInterrupt):
        train.run(stopped)
    assert checkpoints.newest(stopped.run) is None


def test_a_run_that_is_ended_after_its_last_step_trains_no_step_more(stage, monkeypatch):
    keys = {"save_steps": 11}
    whole, ended = stage("grpo", "whole", **keys), stage("grpo", "ended", **keys)
    train.run(whole)
    with monkeypatch.context() as patch:
        patch.setattr("lastmile_trl.trainers.lasting.Lasting.save_model", fails_outside_checkpoints, raising=False)
        with pytest.raises(OSError, match="disk"):
            train.run(ended)
    assert checkpoints.newest(ended.run).name == "checkpoint-11"
    train.run(ended)
    assert_same(whole.run, ended.run)


def fails_outside_checkpoints(self, output_dir=None, _internal_call=False):
    if not _internal_call:
        raise OSError("no disk")
    super(type(self).__mro__[1], self).save_model(output_dir, _internal_call)


def test_two_commands_do_not_write_to_one_run(stage):
    first = stage("grpo", "run")
    with locked(first.run), pytest.raises(InputError, match=f"Process {os.getpid()} is at work in .*run: wait"):
        train.run(first)
    train.run(first)
    assert run_folder.is_done(first)


@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_was_stopped_in_its_first_moments_can_be_started_again(stage, force):
    """Its folder holds the lock and a recipe, and not yet what the run depends on."""
    begun = stage("sft", "run")
    begun.run.mkdir()
    (begun.run / ".lock").touch()
    (begun.run / "recipe.yaml").write_text(begun.yaml())
    train.run(begun, force=force)
    assert run_folder.is_done(begun)


def test_what_was_made_of_an_earlier_start_is_kept_aside(stage, capsys):
    sft = stage("sft", "sft")
    rl = stage("grpo", "rl", model={"model_name_or_path": str(sft.run)})
    train.run(sft)
    train.run(rl)
    (rl.run / "notes.txt").write_text("mine")
    train.run(sft, force=True)
    train.run(rl)
    assert (rl.run / "replaced-1" / "notes.txt").read_text() == "mine"
    assert (rl.run / "replaced-1" / "model.safetensors").exists() and run_folder.is_done(rl)
    assert f"the run of before lies in {rl.run / 'replaced-1'}" in capsys.readouterr().err
    train.run(rl, force=True)
    assert (rl.run / "replaced-1" / "notes.txt").exists()


def test_a_signal_that_nohup_has_switched_off_stays_so(stage):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            send(patch, 3, signal.SIGTERM)
            train.run(stage("sft", "run"))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


# --- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run folder with three whole checkpoints."""
    for step in (1, 2, 10):
        folder = tmp_path / checkpoints.WRITING / f"checkpoint-{step}"
        (folder / "ref").mkdir(parents=True)
        (folder / "weights").write_bytes(b"12345678")
        (folder / "ref" / "weights").write_bytes(b"1234")
        checkpoints.seal(folder, 1)
        checkpoints.put_in_place(folder, tmp_path)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != checkpoints.WRITING)


def test_the_newest_is_that_of_the_last_step(run):
    assert checkpoints.newest(run) == run / "checkpoint-10"
    assert json.loads((run / "checkpoint-1" / "complete.json").read_text()) == {
        "processes": 1,
        "sharded_by": None,
        "rows": None,
        "files": {"ref/weights": 4, "weights": 8},
    }


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "weights").write_bytes(b"1234"), "weights has 4 bytes instead of 8"),
        (lambda folder: (folder / "ref" / "weights").unlink(), "ref/weights is missing"),
        (lambda folder: (folder / "complete.json").unlink(), "it has no complete.json"),
        (lambda folder: (folder / "complete.json").write_text('{"processes": 1, "fi'), "it has no complete.json"),
    ],
)
def test_a_broken_one_is_set_aside_and_said(run, capsys, damage, reason):
    damage(run / "checkpoint-10")
    kept = sorted(path.name for path in (run / "checkpoint-10").iterdir())
    assert checkpoints.newest(run) == run / "checkpoint-2"
    assert names(run) == ["broken-checkpoint-10", "checkpoint-1", "checkpoint-2"]
    assert sorted(path.name for path in (run / "broken-checkpoint-10").iterdir()) == kept
    said = capsys.readouterr().err
    assert f"{run / 'checkpoint-10'} is set aside as {run / 'broken-checkpoint-10'}" in said and reason in said


def test_of_what_was_being_written_only_the_whole_is_used(run, capsys):
    writing = run / checkpoints.WRITING
    for step in (11, 12):
        (writing / f"checkpoint-{step}").mkdir(parents=True)
        (writing / f"checkpoint-{step}" / "weights").write_bytes(b"1")
    checkpoints.seal(writing / "checkpoint-11", 1)
    assert checkpoints.newest(run) == run / "checkpoint-11"
    assert "broken-checkpoint-12" in names(run) and "is set aside" in capsys.readouterr().err
    (writing / "checkpoint-12").mkdir()
    checkpoints.newest(run)
    assert names(run)[:2] == ["broken-checkpoint-12", "broken-checkpoint-12-1"]


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    assert checkpoints.newest(tmp_path) is None


def test_another_number_of_processes_is_refused(run):
    checkpoints.check_launch(run, 1, "MULTI_GPU")
    with pytest.raises(InputError, match="written by 1 process and cannot go on with 2: use --num_processes 1"):
        checkpoints.check_launch(run, 2, "NO")


def test_another_way_to_share_weights_is_refused(run):
    with pytest.raises(InputError, match="written by processes with a whole model each and cannot go on with FSDP"):
        checkpoints.check_launch(run, 1, "FSDP")


def test_another_number_of_processes_is_refused_before_a_model_loads(stage):
    stopped = stage("grpo", "run")
    train.run(stopped)
    problems = preflight.check(stopped, processes=2).problems
    assert any("cannot go on with 2" in problem for problem in problems)


# --- what goes wrong while it runs ---------------------------------------------------------------------------------


def test_other_rows_than_before_are_refused(stage, tmp_path, monkeypatch):
    stopped = stage("grpo", "run")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        send(patch, 2, signal.SIGTERM)
        train.run(stopped)
    rows = Path(stopped.data.path)
    text = rows.read_text()
    rows.write_text(text.replace(text.splitlines()[0], text.splitlines()[1]))
    with monkeypatch.context() as patch:
        patch.setattr(train.models, "load_model", lambda *a, **k: 1 / 0)
        with pytest.raises(InputError, match=r"rows are not those that .*checkpoint-3 was trained on"):
            train.run(stopped)
    rows.write_text(text)
    train.run(stopped)
    assert run_folder.is_done(stopped)


@pytest.mark.parametrize("method", ["sft", "grpo"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_none_stops_the_run_and_names_the_rows(stage, monkeypatch, method, what):
    whole = Trainer.training_step

    def broken(self, *args, **kwargs):
        loss = whole(self, *args, **kwargs)
        if self.state.global_step == 2 and what == "gradient":
            next(self.model.parameters()).grad *= float("inf")
        return loss * float("nan") if self.state.global_step == 2 and what == "loss" else loss

    monkeypatch.setattr(Trainer, "training_step", broken)
    with pytest.raises(RunError, match=rf"The {what} is (nan|inf) in step 3 of 11, .*learning_rate.* rows: '.*=>"):
        train.run(stage(method, "run"))
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler  # Ctrl-C is heard as before


def test_a_critic_that_gives_no_number_stops_the_run(stage, monkeypatch):
    from lastmile_trl.trainers import ppo

    monkeypatch.setattr(ppo, "value_loss", lambda values, *more: values * float("nan"))
    with pytest.raises(RunError, match="The loss is nan in step 1 of 11"):
        train.run(stage("ppo", "run"))


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(stage, monkeypatch):
    """A checkpoint that finds no room, as four libraries say it."""
    whole, full = stage("grpo", "whole"), stage("grpo", "full")
    train.run(whole)
    for said in (
        "No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 3",
    ):
        with monkeypatch.context() as patch:

            def no_room(self, output_dir, said=said):
                if self.state.global_step == 8:
                    Path(output_dir, "optimizer.pt").write_bytes(b"half")
                    raise RuntimeError(said)
                super(type(self).__mro__[1], self)._save_optimizer_and_scheduler(output_dir)

            patch.setattr("lastmile_trl.trainers.lasting.Lasting._save_optimizer_and_scheduler", no_room, raising=False)
            with pytest.raises(RunError, match="The disk is full, so checkpoint-8 could not be written to .*full"):
                train.run(full)
    assert [name for name in names(full.run) if "checkpoint" in name] == ["checkpoint-4"]
    train.run(full)
    assert_same(whole.run, full.run)


def test_a_disk_that_is_full_at_the_end_is_said_and_the_same_command_goes_on(stage):
    full = stage("grpo", "full")
    with pytest.MonkeyPatch.context() as patch:

        def no_room(self, output_dir=None, _internal_call=False):
            if not _internal_call:
                raise OSError("No space left on device (os error 28)")
            super(type(self).__mro__[1], self).save_model(output_dir, _internal_call)

        patch.setattr("lastmile_trl.trainers.lasting.Lasting.save_model", no_room, raising=False)
        with pytest.raises(RunError, match=f"The disk is full, so {full.run} could not be finished .*: free some room"):
            train.run(full)
    assert not run_folder.is_trained(full)
    train.run(full)
    before = (full.run / "report.html").stat().st_mtime_ns
    written_first = full.run / "report.html.first"
    written_first.symlink_to("/dev/full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lastmile_trl.files.token_hex", lambda size: "first")
        with pytest.raises(RunError, match=r"The disk is full, so .*full could not be finished \(\[Errno 28\]"):
            train.run(full)
    assert (full.run / "report.html").stat().st_mtime_ns == before
    assert run_folder.is_trained(full) and not run_folder.finished(full.run) and not written_first.is_symlink()
    train.run(full)
    assert run_folder.finished(full.run)
