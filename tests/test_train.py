"""Real trainers on a tiny model: what a run folder holds, and that what should learn learns."""

import json
import os
import re
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from lastmile_trl import cli, outputs, preflight, run_folder, train
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.evaluation.metrics import ALWAYS_MEASURED
from lastmile_trl.recipe import Recipe

from .conftest import make_rows, write_jsonl

RUN_FILES = {"recipe.yaml", "environment.json", "history.jsonl", "README.md"}
RUN_FILES |= {"evaluation.json", "evaluation.md", "report.html"}


PPO = {"ppo": {"critic_learning_rate": 1e-3, "num_iterations": 2, "max_steps": 30}}


def short_completion(completions, **columns):
    """A reward that any policy can raise: fewer characters."""
    return [-len(text) / 40 for text in completions]


def words_said(completions, **columns):
    """A metric that this reward is paid for with."""
    return [len(text.split()) for text in completions]


@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    """A recipe on 24 rows; sections are merged into it."""
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(24))

    def build(method="sft", run="run", **sections):
        values = {
            "method": method,
            "model": {"model_name_or_path": str(tiny_model_folder)},
            "data": {"path": str(rows), "prompt": "{source} =>", "references": "target", "held_out": 8},
            "training": {
                "output_dir": str(tmp_path / run),
                "max_steps": 2,
                "per_device_train_batch_size": 8,
                "logging_steps": 1,
                "save_strategy": "no",
                "gradient_checkpointing": False,
                "learning_rate": 1e-2,
            },
            "evaluation": {"rows": 6, "max_new_tokens": 12},
        }
        if method in ("grpo", "rloo", "ppo"):
            values["rewards"] = ["rouge"]
            values["training"] |= {"num_generations": 4, "max_completion_length": 12}
        if method == "ppo":
            values["training"]["num_iterations"] = 1  # so that every step has completions to log
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return Recipe(Path("test.yaml"), values)

    return build


def history(recipe):
    return run_folder.history(recipe.run)


@pytest.mark.parametrize("method", ["sft", "grpo", "rloo", "ppo"])
def test_a_run_leaves_everything_in_its_folder(recipe, method):
    stage = recipe(method, evaluation={"every": 1})
    train.run(stage)
    assert RUN_FILES | {"model.safetensors", "tokenizer.json", "config.json"} <= {p.name for p in stage.run.iterdir()}
    logged = history(stage)
    assert [row["step"] for row in logged if "loss" in row] == [1, 2]
    assert all("eval_rouge/rougeL" in row and "eval_ended" in row for row in logged if "loss" in row)
    environment = json.loads((stage.run / "environment.json").read_text())
    assert environment["finished"] and environment["device"] == "cpu" and environment["processes"] == 1
    evaluation = json.loads((stage.run / "evaluation.json").read_text())
    assert {(r["decoding"], r["postprocessed"]) for r in evaluation["results"]} == {
        (decoding, post) for decoding in ("greedy", "sampled") for post in (False, True)
    }
    assert evaluation["metrics"]["rouge/rougeL"]["rewarded"] is (method != "sft")
    if method != "sft":
        assert all("rewards/rouge/rougeL/mean" in row for row in logged if "loss" in row)
        assert len(list((stage.run / "completions").glob("*.parquet"))) == 2
    assert run_folder.is_done(stage)
    assert not run_folder.is_done(recipe(method, evaluation={"every": 2}))


def test_sft_learns_and_then_says_what_it_learned(recipe, tmp_path):
    rows = [{"source": row["source"], "target": "dog on mat"} for row in make_rows(40)]
    write_jsonl(tmp_path / "same.jsonl", rows)
    stage = recipe(data={"path": str(tmp_path / "same.jsonl")}, training={"max_steps": 30})
    train.run(stage)
    losses = [row["loss"] for row in history(stage) if "loss" in row]
    assert losses[-1] < losses[0] / 10
    assert outputs.generate(stage.run, ["the big red cat =>"], max_new_tokens=12) == [" dog on mat"]


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_the_reward_rises(recipe, method):
    stage = recipe(
        method,
        rewards=[{"tests.test_train:short_completion": {"weight": 1.0}}],
        training={"max_steps": 15, "num_generations": 8, "per_device_train_batch_size": 32, **PPO.get(method, {})},
    )
    train.run(stage)
    rewards = [row["reward"] for row in history(stage) if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.08


def slowly(completions, **columns):
    """A reward that takes its time, so that a look falls between two steps."""
    time.sleep(0.1)
    return [float(len(text)) for text in completions]


def test_a_watched_run_is_shown_from_its_first_step_to_its_report(recipe, capsys):
    rewarded = ["tests.test_train:slowly"]
    stage = recipe("grpo", rewards=rewarded, training={"max_steps": 6}, evaluation={"every": 3})
    page, codes, versions = stage.run / "report.html", [], []

    def report(*words):
        with pytest.raises(SystemExit) as left:
            cli.main(["report", str(stage.run), *words])
        return left.value.code

    def watching():
        while not (stage.run / "environment.json").exists():
            time.sleep(0.01)
        codes.append(report("--watch", "0.02"))

    def reading():
        while not codes:
            text = page.read_text() if page.exists() else ""
            if text and text not in versions[-1:]:
                versions.append(text)
            time.sleep(0.005)

    threads = [threading.Thread(target=each) for each in (watching, reading)]
    for thread in threads:
        thread.start()
    train.run(stage)
    for thread in threads:
        thread.join(60)
    assert codes == [0] and capsys.readouterr().out.strip() == str(page)
    assert all(text.rstrip().endswith("</html>") for text in versions)
    during = {}
    for text in versions:
        if found := re.search(r"<title>run: step (\d) of 6</title>", text):
            during[int(found[1])] = text
    assert list(during) == sorted(during) and {0, 5} <= during.keys()
    assert "Running. " in during[5] and " s a step, about " in during[5] and "<td>5</td>" in during[5]
    assert "eval_rouge/rougeL</th>" in during[5] and "rewards/slowly/mean</figcaption>" in during[5]
    assert "training" not in run_folder.environment_of(stage.run)
    last = page.read_text()
    assert "refresh" not in last and "held-out rows, baseline run" in last
    for words in ([], ["--watch"]):
        page.unlink()
        assert report(*words) == 0 and page.read_text() == last


def test_a_gamed_reward_raises_an_alarm(recipe, capsys):
    stage = recipe(
        "grpo",
        rewards=["tests.test_train:short_completion"],
        training={"max_steps": 15, "num_generations": 8, "per_device_train_batch_size": 32, "learning_rate": 3e-3},
        evaluation={"every": 15, "rows": 16, "metrics": ["tests.test_train:words_said"]},
    )
    train.run(stage)
    start, *_ = history(stage)
    [said] = [row for row in history(stage) if "alarm" in row and "words_said" in row["alarm"]]
    [look] = [row for row in history(stage) if "eval_alarms" in row]
    assert start["step"] == 0 and look["step"] == said["step"] == 15 and look["eval_alarms"] >= 1
    assert look["eval_reward"] > start["eval_reward"] and look["eval_words_said"] < start["eval_words_said"]
    assert "the reward has risen by" in said["alarm"] and "while words_said, which is not rewarded" in said["alarm"]
    assert f"Alarm at step 15: {said['alarm']}." in capsys.readouterr().err
    assert "Alarm of run at step 15: the reward has risen" in (stage.run / "report.html").read_text()


def test_weights_of_rewards_reach_the_trainer(recipe):
    stage = recipe("grpo", rewards=[{"rouge": {"weight": 2.0}}, {"length": {"weight": 0.5}}])
    train.run(stage)
    for row in history(stage):
        if "reward" in row:
            parts = 2.0 * row["rewards/rouge/rougeL/mean"] + 0.5 * row["rewards/length/excess/mean"]
            assert row["reward"] == pytest.approx(parts, abs=1e-5)


def test_the_same_seed_is_the_same_run_and_evaluation_does_not_change_it(recipe):
    stages = [
        recipe("grpo", run="a"),
        recipe("grpo", run="b", evaluation={"every": 1}),
        recipe("grpo", run="c", training={"seed": 1}),
    ]
    for stage in stages:
        train.run(stage)
    a, b, c = (load_file(stage.run / "model.safetensors") for stage in stages)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    # Beside the times, what was logged is the same too.
    histories = [[row for row in history(stage) if row["step"]] for stage in stages]
    for left, right in zip(*histories[:2], strict=True):
        for key in left.keys() - {"step_time"}:
            if "runtime" not in key and "per_second" not in key:
                assert left[key] == right[key], key


def test_every_tracker_of_transformers_is_known():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(preflight.TRACKERS) == set(INTEGRATION_TO_CALLBACK)


def from_tensorboard(stage):
    """Every logged value by its name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = (stage.run / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    return {(name, point.step): point.value for name in events.Tags()["scalars"] for point in events.Scalars(name)}


def from_trackio(stage):
    """The same, of each of its runs whose name begins with that of the run folder."""
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"], "lastmile.db")) as database:
        rows = database.execute("select run_name, metrics from metrics").fetchall()
    runs = {}
    for name, metrics in rows:
        values = json.loads(metrics)
        if name.startswith(f"{stage.run} 20") and (step := values.pop("train/global_step", None)) is not None:
            runs.setdefault(name, {}).update({(key, step): value for key, value in values.items()})
    return list(runs.values())


def test_trackers_get_all_that_is_logged_under_the_same_names(recipe):
    sections = {"guidance": {"mode": "drpo"}, "evaluation": {"every": 1}}
    stage = recipe("grpo", training={"report_to": ["tensorboard", "trackio"], "beta": 0.1}, **sections)
    train.run(stage)
    logged = {
        (re.sub("^eval_|^", lambda found: "eval/" if found[0] else "train/", name, count=1), row["step"]): value
        for row in history(stage)
        for name, value in row.items()
        if name not in ("step", "sign", "alarm")
    }
    wanted = {"train/reward", "train/rewards/rouge/rougeL/mean", "train/kl", "train/guidance/share", "eval/alarms"}
    assert wanted <= {name for name, step in logged if step == 1}
    assert {("eval/reward", 0), ("eval/rouge/rougeL", 0)} <= logged.keys()  # the look before the first step
    assert from_tensorboard(stage) == pytest.approx(logged, rel=1e-5)
    summary = {"runtime", "samples_per_second", "steps_per_second", "loss", "flos"}
    left_out = {key for key in logged if key[0].startswith(("train/train_", "train/total_flos"))}
    assert {name.removeprefix("train/train_").removeprefix("train/total_") for name, _ in left_out} == summary
    assert from_trackio(stage) == [{key: value for key, value in logged.items() if key not in left_out}]
    train.run(stage, force=True)
    assert len(from_trackio(stage)) == 2


def test_an_exception_in_a_reward_stops_the_run_and_names_it(recipe):
    stage = recipe("grpo", rewards=[{"tests.test_train:broken": {}}])
    with pytest.raises(RunError, match="Reward 'broken' failed on row 0 .*ZeroDivisionError"):
        train.run(stage)
    assert run_folder.finished(stage.run) is None


def broken(completions, **columns):
    """A user's reward with a bug."""
    return [1 / 0 for _ in completions]


# --- LoRA ----------------------------------------------------------------------------------------------------------

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": "all-linear"}


def lora(recipe, start, **keys):
    return {"model_name_or_path": str(start), **LORA, **keys}


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
@pytest.mark.parametrize("four_bit", [False, True])
def test_rl_goes_on_with_the_sft_adapter_and_its_kl_is_to_the_sft_model(recipe, tiny_model_folder, method, four_bit):
    quantised = {"load_in_4bit": True} if four_bit else {}
    sft = recipe(run="sft", model=lora(recipe, tiny_model_folder, **quantised), training={"max_steps": 6})
    train.run(sft)
    rl = recipe(method, run="rl", model=lora(recipe, sft.run, **quantised), training={"beta": 0.1, "max_steps": 3})
    trainer, *_ = train._build(rl)
    shutil.rmtree(rl.run, ignore_errors=True)
    adapters = trainer.model.peft_config
    assert sorted(adapters) == ["default", "ref"]
    trained_by_sft = load_file(sft.run / "adapter_model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        if ".ref." in name or ".default." in name:
            stored = trained_by_sft[name.replace(".ref.", ".").replace(".default.", ".")]
            torch.testing.assert_close(parameter.float().cpu(), stored.float(), atol=1e-2, rtol=1e-2)
            assert parameter.requires_grad is (".default." in name)
    assert any(tensor.abs().max() > 0 for name, tensor in trained_by_sft.items() if "lora_B" in name)

    train.run(rl)
    kl = [row["kl"] for row in history(rl) if "kl" in row]
    # The policy is the SFT model before the first step: against the bare base this would be far from 0.
    assert abs(kl[0]) < 1e-3
    assert max(map(abs, kl[1:])) > 1e-5
    trained_by_rl = load_file(rl.run / "adapter_model.safetensors")
    assert trained_by_rl.keys() == trained_by_sft.keys()
    assert any(not torch.equal(trained_by_rl[name].float(), trained_by_sft[name].float()) for name in trained_by_rl)
    assert not (rl.run / "ref").exists()
    base = json.loads((rl.run / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny_model_folder)


def test_a_new_adapter_on_a_full_sft_model(recipe):
    sft = recipe(run="sft")
    train.run(sft)
    rl = recipe("grpo", run="rl", model=lora(recipe, sft.run), training={"beta": 0.1})
    train.run(rl)
    assert abs(history(rl)[0]["kl"]) < 1e-4
    assert json.loads((rl.run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(sft.run)
    assert not (rl.run / "model.safetensors").exists()


# --- resuming and comparing ----------------------------------------------------------------------------------------


def breaks_once(completions, trainer_state=None, **columns):
    """Raises in the third step, unless a file says that it has."""
    mark = Path(os.environ["BREAKS_ONCE"])
    if trainer_state and trainer_state.global_step == 2 and not mark.exists():
        mark.touch()
        raise KeyError("a power cut")
    return [-len(text) / 40 for text in completions]


def test_an_unfinished_run_goes_on_from_its_checkpoint(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("BREAKS_ONCE", str(tmp_path / "mark"))
    keys = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "report_to": "trackio"}
    rewards = ["tests.test_train:breaks_once"]
    broken_off = recipe("grpo", run="broken", training=keys, rewards=rewards)
    with pytest.raises(RunError, match="a power cut"):
        train.run(broken_off)
    assert run_folder.finished(broken_off.run) is None
    train.run(broken_off)
    whole = recipe("grpo", run="whole", training=keys, rewards=rewards)
    train.run(whole)
    assert [row["step"] for row in history(broken_off) if "loss" in row] == [1, 2, 3, 4]
    [tracked] = from_trackio(broken_off)
    assert [step for name, step in tracked if name == "train/loss"] == [1, 2, 3, 4]
    a, b = load_file(whole.run / "model.safetensors"), load_file(broken_off.run / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_was_trained_but_not_evaluated_is_only_evaluated(recipe, monkeypatch):
    stage = recipe("grpo")
    with monkeypatch.context() as patch:
        patch.setattr(train, "_decode_in_training", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.run(stage)
    trained = (stage.run / "model.safetensors").stat().st_mtime_ns
    assert run_folder.finished(stage.run) is None
    monkeypatch.setattr(train, "_build", lambda recipe: 1 / 0)
    train.run(stage)
    assert (stage.run / "model.safetensors").stat().st_mtime_ns == trained
    assert run_folder.is_done(stage) and (stage.run / "report.html").exists() and (stage.run / "README.md").exists()


def test_other_evaluation_settings_only_evaluate_again(recipe):
    stage = recipe("grpo")
    train.run(stage)
    trained = (stage.run / "model.safetensors").stat().st_mtime_ns
    other = recipe("grpo", evaluation={"rows": 3, "metrics": ["length"]})
    assert not run_folder.is_done(other)
    train.run(other)
    assert (stage.run / "model.safetensors").stat().st_mtime_ns == trained
    evaluation = json.loads((stage.run / "evaluation.json").read_text())
    assert evaluation["rows"] == 3 and "rouge/rougeL" not in evaluation["metrics"]


def test_evaluating_a_start_again_does_not_train_what_came_from_it(recipe):
    sft = recipe(run="sft")
    grpo = recipe("grpo", run="grpo", model={"model_name_or_path": str(sft.run)})
    for stage in (sft, grpo):
        train.run(stage)
    trained = json.loads((sft.run / "environment.json").read_text())
    train.run(recipe(run="sft", evaluation={"rows": 3}))
    again = json.loads((sft.run / "environment.json").read_text())
    assert again["finished"] > trained["finished"]
    assert {**again, "finished": None} == {**trained, "finished": None}
    assert run_folder.is_done(grpo)


def test_a_stage_is_trained_again_when_its_start_was(recipe):
    """Checkpoints and kept outputs of the earlier run must not come back."""
    checkpoints = {"save_strategy": "steps", "save_steps": 1}
    sft = recipe(run="sft", training={"max_steps": 3})
    grpo = recipe("grpo", run="grpo", model={"model_name_or_path": str(sft.run)}, training=checkpoints)
    for stage in (sft, grpo):
        train.run(stage)
    before = load_file(grpo.run / "model.safetensors")
    other = recipe(run="sft", training={"max_steps": 6})
    with pytest.raises(InputError, match="holds another recipe's run .training.max_steps was 3, is 6."):
        train.run(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LASTMILE_FORCE", "1")
        train.run(other)
    assert not run_folder.is_done(grpo)
    train.run(grpo)
    after = load_file(grpo.run / "model.safetensors")
    assert any((before[name] - after[name]).abs().max() > 1e-3 for name in before)
    assert run_folder.is_done(grpo)


def test_comparing_runs_reuses_their_outputs_and_reports(recipe, monkeypatch, tiny_model_folder):
    sft = recipe(run="sft", training={"max_steps": 4})
    grpo = recipe("grpo", run="grpo", model={"model_name_or_path": str(sft.run)})
    for stage in (sft, grpo):
        train.run(stage)
    values = {
        "method": "evaluate",
        "data": sft.values["data"],
        "training": {"output_dir": str(sft.run.parent / "both")},
        "evaluation": {**sft.values["evaluation"], "runs": [str(sft.run), str(grpo.run)]},
    }
    loaded = []
    monkeypatch.setattr(train.models, "load_model", lambda *a, **k: loaded.append(a))
    both = Recipe(Path("both.yaml"), values)
    result = train.compare(_with_folder(both))
    assert loaded == []
    shown = [(r["run"], r["decoding"], r["postprocessed"]) for r in result["results"]]
    assert shown == [(run, d, post) for d in ("greedy", "sampled")
                     for run, post in (("sft", False), ("sft", True), ("grpo", False))]  # fmt: skip
    assert result["baseline"] == "sft"
    assert (both.run / "report.html").stat().st_size > 10_000
    alone = json.loads((sft.run / "evaluation.json").read_text())["results"][0]["metrics"]
    assert result["results"][0]["metrics"]["rouge/rougeL"] == alone["rouge/rougeL"]


def test_a_model_that_is_no_run_can_be_compared(recipe, tiny_model_folder):
    sft = recipe(run="sft")
    train.run(sft)
    values = {
        "method": "evaluate",
        "data": sft.values["data"],
        "training": {"output_dir": str(sft.run.parent / "both")},
        "evaluation": {**sft.values["evaluation"], "runs": [str(tiny_model_folder), str(sft.run)], "postprocess": []},
    }
    result = train.compare(_with_folder(Recipe(Path("both.yaml"), values)))
    assert [r["run"] for r in result["results"]] == ["tiny", "sft"] * 2
    assert not (tiny_model_folder / "outputs").exists()


def test_baselines_are_post_processed_in_the_steps_of_the_recipe(recipe, tiny_model_folder, tmp_path):
    """The training references have 1, 2, 3 and 9 words, the held-out ones 7: `length` learns from the former."""
    train_rows = [{"source": "red cat. red cat. big dog", "target": " ".join(["w"] * words)} for words in (1, 2, 3, 9)]
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", train_rows)
    held_out = [{"source": f"the hill {n}. the hill {n}. A tree. on", "target": "a b c d e f g"} for n in range(3)]
    write_jsonl(tmp_path / "data" / "validation.jsonl", held_out)
    steps = ["repeated_sentences", {"length": {"quantile": 0.75}}]
    lead = {"lead": {"sentences": 4}}
    values = {
        "method": "evaluate",
        "data": {**recipe().values["data"], "path": str(tmp_path / "data"), "eval_split": "validation"},
        "training": {"output_dir": str(tmp_path / "both")},
        "evaluation": {"runs": [str(tiny_model_folder)], "baselines": [lead], "steps": steps, "max_new_tokens": 4},
    }
    values["evaluation"] |= {"postprocess": ["lead_4"], "sampled": False, "metrics": ["rouge"]}
    stage = Recipe(Path("both.yaml"), values)
    assert preflight.check(stage).problems == []
    result = train.compare(_with_folder(stage))
    assert result["postprocessing"] == ["repeated_sentences", {"length": {"words": 3}}]
    assert result["steps"] == {"lead_4": {"greedy": {"repeated_sentences": 3, "length": 3}}}
    shown = {(each["run"], each["postprocessed"]): each["text"] for each in result["examples"][1]["outputs"]}
    assert shown["lead_4", False] == "the hill 1. the hill 1. A tree. on" and shown["lead_4", True] == "the hill 1."
    assert ("tiny", True) not in shown and json.loads((stage.run / "evaluation.json").read_text()) == result


def test_a_rewarded_metric_is_marked_whatever_the_reward_was_called(recipe, tiny_model_folder, tmp_path):
    """By its name, as in older runs, or by what it computes; another variant is another metric."""
    rewards = [
        {"rouge": {"name": "overlap", "weight": 2.0, "clip": [0, 1]}},
        {"length": {"name": "short"}},
        "tests.test_train:short_completion",
    ]
    grpo = recipe("grpo", run="grpo", rewards=rewards)
    shutil.copytree(tiny_model_folder, grpo.run)
    (grpo.run / "recipe.yaml").write_text(grpo.yaml())
    (grpo.run / "environment.json").write_text(json.dumps({"rewards": ["overlap", "short", "short_completion"]}))
    metrics = [
        {"rouge": {"variant": "rougeL"}},
        {"rouge": {"variant": "rouge1"}},
        {"length": {"name": "mine", "tolerance": 0.5}},
        {"repetition": {"name": "short"}},
        {"tests.test_train:short_completion": {"name": "brief"}},
    ]
    marked = train._rewarded(metrics, [grpo.run, tiny_model_folder])
    names = ["rouge/rougeL", "rouge/rouge1", "mine", "short", "brief"]
    assert [name in marked for name in names] == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("rewards", "marked"),
    [
        (["rouge", {"repetition": {"weight": 0.2}}], {"repeated_3grams"}),
        (["rouge", {"repetition": {"n": 3, "name": "loops"}}, "ending"], {"repeated_3grams", "ended"}),
        (["rouge", {"repetition": {"n": 4}}, "length"], set()),
    ],
)
def test_a_count_that_is_a_reward_by_another_sign_is_marked(recipe, rewards, marked):
    grpo = recipe("grpo", run="grpo", rewards=rewards)
    grpo.run.mkdir(parents=True)
    (grpo.run / "recipe.yaml").write_text(grpo.yaml())
    assert train._rewarded(["rouge"], [grpo.run]) & {*ALWAYS_MEASURED} == marked


def test_a_stage_post_processes_what_it_shows_of_the_names(recipe):
    asked = {"baselines": ["lead"], "postprocess": ["lead", "other"], "sampled": False, "steps": ["length"]}
    stage = recipe(evaluation=asked)
    train.run(stage)
    result = json.loads((stage.run / "evaluation.json").read_text())
    assert [entry["run"] for entry in result["results"] if entry["postprocessed"]] == ["lead"]
    assert result["postprocessing"] == [{"length": {"words": 5}}]
    plain = recipe(run="plain", evaluation={"sampled": False, "steps": ["length"]})
    train.run(plain)
    result = json.loads((plain.run / "evaluation.json").read_text())
    assert [(entry["run"], entry["postprocessed"]) for entry in result["results"]] == [
        ("plain", False),
        ("plain", True),
    ]
    assert result["postprocessing"] == [{"length": {"words": 5}}]


def _with_folder(recipe):
    recipe.run.mkdir(parents=True)
    return recipe


# --- refusals that need the tokenizer or TRL -----------------------------------------------------------------------


@pytest.fixture
def chat_model(tiny_model_folder, tmp_path):
    """The tiny model with another chat template."""

    def make(template):
        folder = tmp_path / "chat"
        shutil.copytree(tiny_model_folder, folder)
        (folder / "chat_template.jinja").unlink()
        if template:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


def with_messages(stage):
    values = {**stage.values, "data": {**stage.values["data"], "messages": [{"role": "user", "content": "{source}"}]}}
    del values["data"]["prompt"]
    return Recipe(stage.source, values)


def test_chat_messages_without_a_chat_template(recipe, chat_model):
    stage = recipe("grpo", model={"model_name_or_path": str(chat_model(None))})
    with pytest.raises(InputError, match="data.messages needs a chat template"):
        train.run(with_messages(stage))


def test_a_chat_template_that_ends_an_answer_with_nothing(recipe, chat_model):
    template = "{% for message in messages %}<|user|>{{ message.content }}{% endfor %}"
    stage = recipe("grpo", model={"model_name_or_path": str(chat_model(template))})
    with pytest.raises(InputError, match="ends an answer without a token of its own"):
        train.run(with_messages(stage))


def test_chat_sft_learns_to_end_with_the_token_of_the_template(recipe, chat_model, tmp_path):
    """As in base models whose tokenizer names an end token that the chat template never writes."""
    template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|system|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    rows = [{"source": row["source"], "target": "dog on mat"} for row in make_rows(40)]
    write_jsonl(tmp_path / "same.jsonl", rows)
    sft = with_messages(
        recipe(
            run="sft",
            model={"model_name_or_path": str(chat_model(template))},
            data={"path": str(tmp_path / "same.jsonl")},
            training={"max_steps": 40},
        )
    )
    train.run(sft)
    measured = json.loads((sft.run / "evaluation.json").read_text())["results"][0]["metrics"]
    assert measured["ended"]["mean"] == 1.0 and measured["rouge/rougeL"]["mean"] == 1.0
    assert json.loads((sft.run / "tokenizer_config.json").read_text())["eos_token"] == "<|system|>"
    assert 4 in json.loads((sft.run / "generation_config.json").read_text())["eos_token_id"]
    grpo = with_messages(
        recipe(
            "grpo", run="grpo", model={"model_name_or_path": str(sft.run)}, data={"path": str(tmp_path / "same.jsonl")}
        )
    )
    train.run(grpo)
    assert history(grpo)[0]["completions/clipped_ratio"] < 0.2


def test_what_trl_itself_refuses_is_said_with_the_section(recipe):
    with pytest.raises(InputError, match="section `training`: .*importance"):
        train.run(
            recipe(
                "grpo", training={"vllm_importance_sampling_clip_max": 1.0, "vllm_importance_sampling_clip_min": 2.0}
            )
        )


def test_chat_prompts_train_too(recipe):
    stage = with_messages(recipe("grpo"))
    train.run(stage)
    assert [row["step"] for row in history(stage) if "loss" in row] == [1, 2]


def test_runs_that_held_out_other_rows_are_named(recipe):
    sft = recipe(run="sft")
    train.run(sft)
    both = Recipe(
        Path("both.yaml"),
        {
            "method": "evaluate",
            "data": {**sft.values["data"], "held_out": 10},
            "training": {"output_dir": str(sft.run.parent / "both")},
            "evaluation": {**sft.values["evaluation"], "runs": [str(sft.run)]},
        },
    )
    train.run(both)
    said = "sft was trained with another data.held_out: it may have seen rows that are held out here."
    assert json.loads((both.run / "evaluation.json").read_text())["notes"] == [said]
    assert said in (both.run / "report.html").read_text()


def test_a_stage_says_so_of_those_before_it_and_keeps_it(recipe, capsys):
    sft = recipe(run="sft")
    train.run(sft)
    more = {"held_out": sft.values["data"]["held_out"] + 2}
    grpo = recipe(
        "grpo", run="grpo", model={"model_name_or_path": str(sft.run)}, data=more, evaluation={"sampled": False}
    )
    said = "grpo goes back to sft, which was trained with another data.held_out"
    [warning] = preflight.check(grpo).warnings
    assert warning.startswith(said)
    train.run(grpo)
    page = grpo.run / "report.html"
    assert said in page.read_text()
    page.unlink()
    with pytest.raises(SystemExit):
        cli.main(["report", str(grpo.run)])
    assert page.read_text().count(said) == 1
    cli._show(grpo.run)
    assert said in " ".join(capsys.readouterr().out.split())


def test_what_trl_says_of_its_settings_is_one_line(recipe, monkeypatch):
    refuses = Mock(side_effect=ValueError("These do not match.\n- one\n- two"))
    monkeypatch.setattr(train, "_load_class", lambda path: refuses)
    stage = recipe("sft")
    with pytest.raises(InputError) as refused:
        train._arguments(stage)
    assert str(refused.value) == f"{stage.source}: section `training`: These do not match."
