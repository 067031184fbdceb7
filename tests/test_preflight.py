"""Wrong input is refused with one sentence before a model loads: no test here imports torch."""

import importlib.util
import json
import os
import sys
import urllib.error
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lastmile_trl import preflight, rewards
from lastmile_trl.recipe import Recipe

from .conftest import make_rows, write_jsonl

FOUND = importlib.util.find_spec


@pytest.fixture
def recipe(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(32))

    def build(method="grpo", **sections):
        values = {
            "method": method,
            "model": {"model_name_or_path": str(model)},
            "data": {"path": str(rows), "prompt": "{source} =>", "references": "target", "held_out": 8},
            "rewards": ["rouge"],
            "training": {"output_dir": str(tmp_path / "run")},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return Recipe(Path("test.yaml"), values)

    return build


def problem(recipe, **keys):
    """The one problem that a check finds."""
    (found,) = preflight.check(recipe, **keys).problems
    assert "\n" not in found and found[-1] in ".?"
    return found


def test_a_sound_recipe_has_no_problem_and_says_what_it_saw(recipe):
    findings = preflight.check(recipe())
    assert findings.problems == []
    assert "24 rows to train on, 8 held out." in findings.notes
    (line,) = [text for text in findings.notes if text.startswith("rouge/rougeL: ")]
    assert line.startswith("rouge/rougeL: 1.000 for the references, 0.")


def test_suspicious_rewards_are_warnings(recipe):
    findings = preflight.check(recipe(rewards=[{"rouge": {"measure": "recall"}}]))
    assert findings.problems == []
    assert any(text.startswith("Against the reference three times, the total") for text in findings.warnings)
    assert preflight.check(recipe()).warnings == []


def test_a_learning_rate_that_is_too_large(recipe):
    assert preflight.check(recipe(training={"learning_rate": 0.01})).warnings == []
    (said,) = preflight.check(recipe(training={"learning_rate": 0.1})).warnings
    assert said == "training.learning_rate is 0.1: what a model has learned, it would forget."


def test_references_that_rouge_cannot_read(recipe, tmp_path):
    rows = [{"source": f"слово {n}", "target": f"кот {'ид' * n}"} for n in range(32)]
    rows = write_jsonl(tmp_path / "cyrillic.jsonl", rows)
    said = problem(recipe(data={"path": str(rows)}))
    assert said.startswith("rouge/rougeL reads 0% of the references' letters and digits with tokenizer 'rouge'")
    findings = preflight.check(
        recipe(data={"path": str(rows)}, rewards=[{"rouge": {"tokenizer": "words"}}], evaluation={"metrics": ["rouge"]})
    )
    assert findings.problems == [] and len(findings.warnings) == 1 and "reads 0%" in findings.warnings[0]


def test_rewards_over_generated_tokens_and_over_the_training_rows(recipe):
    entries = ["rouge", "ending", {"overlong": {"limit": 20}}, "cider", {"repetition": {"unit": "tokens"}}]
    findings = preflight.check(recipe(rewards=entries))
    assert findings.problems == []
    assert "overlong: it counts generated tokens, so it is not tried here." in findings.notes
    assert any(text.startswith("cider: 1.000 for the references, 0.") for text in findings.notes)


SETTINGS = {"overlong": {"limit": 20}, "format": {"pattern": ".+"}}
MODELS = {"embedding": {}, "bertscore": {}, "classifier": {"label": 1}, "model": {}}


@pytest.mark.parametrize("name", [name for name in rewards.REGISTRY if name not in MODELS])
def test_every_reward_can_be_a_reward_and_a_metric(recipe, tmp_path, name):
    rows = [{**row, "concepts": ["cat"], "slots": {"place": row["source"].split()[0]}} for row in make_rows(32)]
    path = write_jsonl(tmp_path / "facts.jsonl", rows)
    entry = {name: SETTINGS.get(name, {})}
    for section in ({"rewards": [entry]}, {"evaluation": {"metrics": [entry]}}):
        assert preflight.check(recipe(data={"path": str(path)}, **section)).problems == []


@pytest.mark.parametrize("name", MODELS)
def test_the_model_of_a_reward_must_be_there(recipe, tmp_path, name):
    (tmp_path / "empty").mkdir()
    entry = {name: {"model": str(tmp_path / "empty"), **MODELS[name]}}
    for section in ({"rewards": [entry]}, {"evaluation": {"metrics": [entry]}}):
        said = problem(recipe(**section))
        assert said.startswith(f"Reward '{name}") and f": {str(tmp_path / 'empty')!r} holds no model: no conf" in said


def test_the_classifier_of_a_reward_must_have_its_label(recipe, tmp_path):
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "config.json").write_text(json.dumps(config))

    def stages(**arguments):
        entry = {"classifier": {"model": str(tmp_path / "kinds"), **arguments}}
        return recipe(rewards=["rouge", entry]), recipe(evaluation={"metrics": [entry]})

    for sound in (*stages(label="POSITIVE"), *stages(label=0)):
        assert preflight.check(sound).problems == []
    for wrong in stages(label="positive"):
        assert problem(wrong) == (
            "Reward 'classifier/positive': label 'positive' does not exist: did you mean 'POSITIVE'? Valid: NEGATIVE, "
            "POSITIVE."
        )
    said = problem(recipe(rewards=[{"classifier": {"model": recipe().model["model_name_or_path"], "label": 1}}]))
    assert said.startswith("Reward 'classifier/1': ") and "is a nameless model, no classifier: name a model" in said
    said = problem(recipe(rewards=[{"classifier": {"model": "some/classifier", "label": 1}}]))
    assert said.startswith("Reward 'classifier/1': 'some/classifier' is not a folder here, not in the cache, and the")


def test_metrics_are_tried_before_the_training(recipe):
    said = problem(recipe(evaluation={"metrics": [{"rouge": {"name": "words"}}]}))
    assert said == "evaluation.metrics: 'words' is measured always: give yours another `name:`."
    said = problem(recipe(evaluation={"metrics": ["tests.test_preflight:not_a_number"]}))
    assert said.startswith("Reward 'not_a_number' returned nan on row 0")


def not_a_number(completions, **columns):
    return [float("nan")] * len(completions)


def test_something_must_be_measured_that_is_not_rewarded(recipe):
    rewarded = ["rouge", "length", "repetition"]
    warnings = preflight.check(recipe(rewards=rewarded, evaluation={"every": 5})).warnings
    assert any(text.startswith("Every metric is a reward too") for text in warnings)
    for evaluation in ({"every": 5, "metrics": ["rouge", "numbers"]}, {}):
        warnings = preflight.check(recipe(rewards=rewarded, evaluation=evaluation)).warnings
        assert not any(text.startswith("Every metric is a reward too") for text in warnings)


@pytest.mark.parametrize(
    ("training", "distributed", "message"),
    [
        ({"critic": "copy"}, "FSDP", "training.critic: with FSDP the policy is sharded, and only critic: shared"),
        ({"critic_detach": False}, "DEEPSPEED", "training.critic: with DEEPSPEED the policy is sharded"),
        ({"target_kl": 0.1}, "DEEPSPEED", "training.target_kl leaves optimiser steps out"),
        ({"value_warmup_steps": 2}, "DEEPSPEED", "training.value_warmup_steps leaves optimiser steps out"),
        ({"critic": "share"}, "NO", "training.critic is neither shared nor copy, so it names a model: 'share'"),
        ({"fp16": True, "target_kl": 0.1}, "NO", "training.fp16 scales gradients, which only critic: shared"),
        ({"fp16": True, "critic": "copy"}, "MULTI_GPU", "training.fp16 scales gradients, which only critic: shared"),
    ],
)
def test_critics_that_do_not_work(recipe, training, distributed, message):
    pytest.importorskip("deepspeed") if distributed == "DEEPSPEED" else None
    assert message in problem(recipe("ppo", training=training), distributed=distributed)
    assert preflight.check(recipe("ppo")).problems == []


def test_an_adapter_is_no_critic(recipe, tmp_path):
    base = recipe().model["model_name_or_path"]
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    said = problem(recipe("ppo", training={"critic": str(tmp_path / "scores")}))
    assert said.startswith(f"training.critic: {str(tmp_path / 'scores')!r} is an adapter, whose weights would stay")
    assert preflight.check(recipe("ppo", training={"critic": base})).problems == []


def test_a_metric_has_no_gate(recipe):
    said = problem(recipe(evaluation={"metrics": [{"format": {"pattern": "a", "gate": 1}}]}))
    assert said == "evaluation.metrics: 'format' has a gate, which only rewards have: drop it there."


def test_nothing_heavy_is_imported():
    import subprocess

    code = "import sys, lastmile_trl.preflight, lastmile_trl.cli, lastmile_trl.launch; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "trl", "peft", "datasets"} & set(eval(loaded))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rewards": ["roge"]}, "did you mean 'rouge'?"),
        ({"rewards": ["rouge", "rouge"]}, "Two rewards are called 'rouge/rougeL'"),
        ({"rewards": [{"rouge": {"variant": "rougel"}}]}, "did you mean 'rougeL'?"),
        ({"rewards": ["lastmile_trl.synthetic:FactF1"]}, "Reward 'fact_f1' needs a column 'facts'"),
        ({"evaluation": {"metrics": ["lenght"]}}, "did you mean 'length'?"),
        ({"data": {"references": "traget"}}, "has no column 'traget', only id, source, target, did you mean 'target'?"),
        ({"data": {"path": "nowhere.jsonl"}}, "'nowhere.jsonl' does not exist"),
        ({"data": {"path": "some/dataset"}}, "'some/dataset' is not a file here, not in the cache, and the Hub cannot"),
        (
            {"model": {"model_name_or_path": "some/model"}},
            "'some/model' is not a folder here, not in the cache, and the Hub",
        ),
        ({"model": {"model_name_or_path": "./nowhere"}}, "'./nowhere' is not a folder here"),
        ({"model": {"model_name_or_path": "runs/task/sft"}}, "'runs/task/sft' is not a folder here"),
        ({"model": {"load_in_4bit": True}}, "set model.use_peft: true"),
        ({"model": {"load_in_4bit": True, "load_in_8bit": True, "use_peft": True}}, "exclude each other"),
        ({"hub": {"merge": True}}, "there is no adapter to merge"),
        ({"training": {"num_generations": 3}}, "8 completions are generated at once"),
        ({"training": {"num_generations": 1}}, "compares at least 2"),
        ({"training": {"generation_batch_size": 12}}, "generation_batch_size=12 must be a multiple of"),
        ({"training": {"generation_batch_size": 16, "steps_per_generation": 2}}, "not both"),
        ({"training": {"num_generations": 2, "gradient_accumulation_steps": 10}}, "one step takes 40 prompts"),
        ({"training": {"report_to": ["neptune"]}}, "needs the package neptune, which is not installed: pip install"),
        ({"training": {"report_to": "tensorbord"}}, "'tensorbord' does not exist: did you mean 'tensorboard'?"),
    ],
)
def test_wrong_input_gets_one_sentence(recipe, sections, message):
    assert message in problem(recipe(**sections))


def test_wandb_has_to_be_installed(recipe, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name != "wandb" and find(name, *more) or None)
    missing = problem(recipe(training={"report_to": "wandb"}))
    assert "needs the package wandb, which is not installed: pip install 'lastmile-trl[wandb]'" in missing


@pytest.mark.parametrize("trackers", ["wandb", ["tensorboard", "wandb"], "all"])
def test_wandb_needs_a_key_or_stays_here(recipe, trackers, monkeypatch):
    # What the check asks of wandb, which is no small thing to install.
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=os.environ.get("WANDB_MODE", "online")))
    wandb.login = lambda *, prompt, verify: not prompt and not verify and "WANDB_API_KEY" in os.environ
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    stage = recipe(training={"report_to": trackers})
    assert "wandb knows no API key: run `wandb login`, or set WANDB_MODE=offline" in problem(stage)
    with monkeypatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        assert preflight.check(stage).problems == []
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert preflight.check(stage).problems == []


def test_four_bit_with_vllm(recipe):
    stage = recipe(model={"load_in_4bit": True, "use_peft": True}, training={"use_vllm": True})
    assert "training.use_vllm does not work with a quantised model" in preflight.check(stage).problems[0]


def test_the_batch_of_all_processes_counts(recipe):
    stage = recipe(training={"num_generations": 6, "per_device_train_batch_size": 3})
    assert "3 completions are generated at once" in problem(stage)
    assert preflight.check(stage, processes=2).problems == []


def test_empty_references(recipe, tmp_path):
    rows = [*make_rows(30), {"id": 30, "source": "x", "target": ""}]
    path = write_jsonl(tmp_path / "holes.jsonl", rows)
    findings = preflight.check(recipe(data={"path": str(path)}))
    assert findings.problems == []
    note = "train: 1 of 23 rows have an empty prompt (0) or an empty reference (1); they are left out."
    assert note in findings.notes
    assert "an empty reference (1)" in problem(recipe(data={"path": str(path), "strict": True}))
    path = write_jsonl(tmp_path / "empty.jsonl", [{"source": f"x{n}", "target": ""} for n in range(30)])
    assert "22 of 22 rows have" in problem(recipe(data={"path": str(path)}))


def test_a_sequence_to_sequence_model(recipe, tmp_path):
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    assert "is a sequence-to-sequence model (t5)" in problem(recipe())


def test_a_folder_without_a_model(recipe, tmp_path):
    (tmp_path / "model" / "config.json").unlink()
    assert "holds no model" in problem(recipe())


def test_no_bitsandbytes(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else FOUND(name)
    )
    stage = recipe(model={"load_in_4bit": True, "use_peft": True})
    assert (
        "needs the package bitsandbytes, which is not installed: pip install 'lastmile-trl[quantization]'"
        in problem(stage)
    )


def test_an_adapter_goes_on_as_it_is(recipe, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "model"), "r": 8, "lora_alpha": 16})
    )
    start = {"model_name_or_path": str(adapter)}
    assert "is a LoRA adapter: set model.use_peft: true" in problem(recipe(model=start))
    assert "model.lora_r is 16, but the adapter" in problem(recipe(model={**start, "use_peft": True, "lora_r": 16}))
    assert preflight.check(recipe(model={**start, "use_peft": True, "lora_r": 8})).problems == []


def test_a_run_folder_of_another_recipe(recipe, tmp_path):
    first = recipe()
    first.run.mkdir()
    (first.run / "recipe.yaml").write_text(first.yaml())
    (first.run / "environment.json").write_text("{}")
    assert preflight.check(recipe()).problems == []
    assert preflight.check(recipe(evaluation={"rows": 5})).problems == []
    other = recipe(training={"learning_rate": 1e-4})
    assert "run holds another recipe's run (training.learning_rate was 'not set', is 0.0001)" in problem(other)
    assert preflight.check(other, force=True).problems == []


def test_a_stage_cannot_start_from_its_own_run_folder(recipe, tmp_path):
    for start in (tmp_path / "run", tmp_path / "run" / "checkpoint-5"):
        stage = recipe(model={"model_name_or_path": str(start)})
        assert "lies in the run folder" in preflight.check(stage, force=True).problems[0]


def test_files_that_are_no_run_are_never_replaced(recipe):
    recipe().run.mkdir()
    (recipe().run / "thesis.txt").write_text("precious")
    for force in (False, True):
        assert "holds files that are not a run of ours" in problem(recipe(), force=force)


def test_a_stage_may_start_from_a_run_that_comes_before_it(recipe, tmp_path):
    stage = recipe(model={"model_name_or_path": str(tmp_path / "sft")})
    assert "is not a folder here" in problem(stage)
    assert preflight.check(stage, upcoming={tmp_path / "sft"}).problems == []


def test_deepspeed_must_be_there(recipe, monkeypatch):
    found = preflight.check(recipe(), distributed="DEEPSPEED").problems
    assert found == [] or "needs the package deepspeed" in found[0]
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name: None if name == "deepspeed" else FOUND(name)
    )
    assert "--accelerate with DeepSpeed needs the package deepspeed" in problem(recipe(), distributed="DEEPSPEED")


def test_evaluate_checks_its_runs(recipe, tmp_path):
    values = dict(recipe().values)
    del values["model"], values["rewards"]
    stage = Recipe(
        Path("e.yaml"),
        {**values, "method": "evaluate", "evaluation": {"runs": [str(tmp_path / "model"), "no/such/run"]}},
    )
    assert "'no/such/run' is not a folder here" in problem(stage)
    stage.values["evaluation"] = {"runs": [str(tmp_path / "model")], "postprocess": ["modle"]}
    stage = Recipe(stage.source, stage.values)
    assert "evaluation.postprocess: run 'modle' does not exist: did you mean 'model'?" in problem(stage)
    stage.values["evaluation"] |= {"postprocess": ["model", "lead"], "baselines": ["lead"]}
    assert preflight.check(Recipe(stage.source, stage.values)).problems == []


def test_steps_of_post_processing_are_checked_with_and_without_rows(recipe, tmp_path):
    stage = recipe(evaluation={"steps": ["first_blok"]})
    said = "evaluation.steps: step 'first_blok' does not exist: did you mean 'first_block'?"
    assert problem(stage).startswith(said)
    upcoming = recipe(evaluation={"steps": ["first_blok"]}, data={"path": str(tmp_path / "pairs")})
    assert problem(upcoming, upcoming={tmp_path / "pairs"}).startswith(said)
    assert preflight.check(recipe(evaluation={"steps": ["length"]})).problems == []
    learned = recipe(evaluation={"steps": ["length"]}, data={"path": str(tmp_path / "pairs")})
    assert preflight.check(learned, upcoming={tmp_path / "pairs"}).problems == []


def test_runs_to_post_process_that_only_a_later_evaluation_shows_are_noted(recipe):
    stage = recipe(evaluation={"postprocess": ["sft", "lead"], "baselines": ["lead"]})
    [note] = [text for text in preflight.check(stage).notes if "postprocess" in text]
    assert note == f"evaluation.postprocess: sft is not shown by this stage, only lead, {stage.run.name}."


@pytest.mark.parametrize(
    ("answer", "offline"), [(OSError("no route"), True), (urllib.error.HTTPError("", 405, "", {}, None), False)]
)
def test_without_a_connection_nothing_waits_for_the_hub(recipe, monkeypatch, answer, offline):
    def ask(request, timeout):
        raise answer

    monkeypatch.setattr(preflight.urllib.request, "urlopen", ask)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    notes = preflight.check(recipe(data={"path": "some/dataset"})).notes if offline else []
    if not offline:
        preflight._go_offline_without_connection(notes)
    assert ("HF_HUB_OFFLINE" in os.environ) is offline
    assert any("The Hub cannot be reached" in text for text in notes) is offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# --- guides --------------------------------------------------------------------------------------------------------


@pytest.fixture
def guided(recipe, tmp_path):
    """A recipe with a guide, and an adapter to start from."""
    start = tmp_path / "adapter"
    start.mkdir()
    (start / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    (start / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "model")}))

    def build(guide, method="ppo", adapter=False, **sections):
        guidance = {"mode": "ppo++", "guide": guide}
        model = {"use_peft": True} | ({"model_name_or_path": str(start)} if adapter else {})
        return recipe(method, **{"guidance": guidance, "model": model, **sections})

    return build


def a_guide(prompts, prefixes):
    return ["the cat"] * len(prompts)


def test_references_and_base_guide(guided):
    assert preflight.check(guided("base")).problems == []
    assert preflight.check(guided(None, guidance={"mode": "drpo"}, model={})).problems == []
    for adapter in (False, True):
        findings = preflight.check(guided("base", adapter=adapter))
        assert findings.problems == []
        assert not any("memory" in text for text in findings.notes)


@pytest.mark.parametrize(
    ("method", "training", "kept"),
    [
        ("ppo", {}, True),  # by default its beta is 0.05
        ("rloo", {"num_generations": 2}, True),  # and 0.05
        ("grpo", {}, False),  # and 0
        ("grpo", {"beta": 0.01}, True),
        ("ppo", {"beta": 0.0}, False),
        ("rloo", {"num_generations": 2, "beta": 0}, False),
    ],
)
def test_base_needs_a_copy_unless_an_adapter_is_new(guided, tmp_path, method, training, kept):
    adapter, whole, to_come = (str(tmp_path / name) for name in ("adapter", "model", "to_come"))
    later = {"model_name_or_path": to_come}
    for start, stage, upcoming in (
        (adapter, guided("base", method, adapter=True, training=training), set()),
        (to_come, guided("base", method, model={"use_peft": True, **later}, training=training), {Path(to_come)}),
        (whole, guided("base", method, model={"use_peft": False}, training=training), set()),
    ):
        said = (
            "guidance.guide: base is the policy as it was at the start, of which a copy is kept only where "
            f"training.beta is above 0: raise that, or name {start!r} as the guide, a second model in memory."
        )
        assert preflight.check(stage, upcoming=upcoming).problems == ([] if kept else [said])
    assert preflight.check(guided("base", method, training=training)).problems == []  # whose base stays as it is
    assert preflight.check(guided(adapter, method, adapter=True, training=training)).problems == []


def test_one_thing_is_said_once(guided):
    start = {"model_name_or_path": "./nowhere", "use_peft": True}
    assert "'./nowhere' is not a folder here" in problem(guided("base", model=start))


def test_a_base_in_shards_does_not_guide(guided):
    whole = guided("base", model={"use_peft": False})
    assert "guidance.guide: base is a whole model that FSDP shards, which cannot" in problem(whole, distributed="FSDP")
    for stage, distributed in ((whole, "MULTI_GPU"), (guided("base"), "FSDP"), (guided("base", adapter=True), "FSDP")):
        assert preflight.check(stage, distributed=distributed).problems == []


@pytest.fixture
def other(tmp_path):
    """A second model, with vocabularies for it and for the policy's."""

    def build(own=None, other=None, **config):
        folder = tmp_path / "other"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        for place, vocabulary in ((tmp_path / "model", own), (folder, other)):
            if vocabulary is not None:
                tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 9, "content": "<eos>"}]}
                (place / "tokenizer.json").write_text(json.dumps(tokenizer))
        return str(folder)

    return build


def test_a_model_guides(guided, other, tmp_path):
    for guide in (other(), other({"a": 0}, {"a": 0}), str(tmp_path / "model"), str(tmp_path / "adapter")):
        findings = preflight.check(guided(guide))
        assert findings.problems == []
        assert f"The guide {guide!r} is a second model in memory, frozen." in findings.notes
    assert preflight.check(guided(str(tmp_path / "sft")), upcoming={tmp_path / "sft"}).problems == []


def test_a_model_guide_must_be_there_and_write(guided, other, tmp_path):
    start = "guidance.guide names a model: "
    assert problem(guided("./nowhere")).startswith(start + "'./nowhere' is not a folder here: check the path, or run")
    assert problem(guided("some/model")).startswith(start + "'some/model' is not a folder here, not in the cache, and")
    (tmp_path / "empty").mkdir()
    assert "holds no model: no config.json" in problem(guided(str(tmp_path / "empty")))
    scores = other(architectures=["LlamaForSequenceClassification"], id2label={"0": "LABEL_0"})
    assert problem(guided(scores)).endswith(
        "is a reward model, which scores and does not write: name a language model."
    )
    assert "is a sequence-to-sequence model (t5)" in problem(guided(other(model_type="t5")))


@pytest.mark.parametrize(
    ("own", "others", "same"),
    [
        ({"a": 0, "b": 1}, {"b": 1, "a": 0}, True),
        ({"a": 0, "b": 1}, {"a": 1, "b": 0}, False),
        ({"a": 0, "b": 1}, {"a": 0}, False),
        ({"a": 0, "b": 1}, [["a", -1.5], ["b", -2.0]], True),  # of sentencepiece's unigrams
        ({"a": 0, "b": 1}, [["b", -1.5], ["a", -2.0]], False),
        ({"a": 0}, None, True),  # of which nothing is known here
    ],
)
def test_a_model_guide_reads_the_policys_tokens(guided, other, tmp_path, own, others, same):
    guide = other(own, others)
    for stage in (guided(guide), guided(guide, adapter=True)):
        found = preflight.check(stage).problems
        if same or stage.model["model_name_or_path"] == str(tmp_path / "adapter"):
            assert found == []
        else:
            assert found == [
                f"guidance.guide: {guide!r} has another vocabulary than {str(tmp_path / 'model')!r}, so it cannot read "
                "its tokens: name a model of the same family, or serve it and name its endpoint, which takes texts."
            ]


def test_a_guide_cannot_lie_in_the_run_folder(guided, other, tmp_path):
    own = guided(other(), training={"output_dir": other()})
    assert f"{other()!r} lies in the run folder" in preflight.check(own, force=True).problems[0]


def test_a_function_guides(guided):
    findings = preflight.check(guided("tests.test_preflight:a_guide"))
    assert findings.problems == [] and not any("memory" in text for text in findings.notes)
    assert "Guide 'tests.test_preflight:a_gide'" in problem(guided("tests.test_preflight:a_gide"))
    assert "Guide 'nowhere.to_be:found'" in problem(guided("nowhere.to_be:found"))


def test_an_endpoint_guides_and_is_not_asked(guided):
    pytest.importorskip("openai")
    served = {"endpoint": "http://127.0.0.1:9/v1", "model": "big"}  # a port that nothing listens at
    assert preflight.check(guided(served)).problems == []
    assert "'batchsize'" in problem(guided({**served, "batchsize": 3}))
    assert "guidance.guide needs the key 'model'" in problem(guided({"endpoint": served["endpoint"]}))
