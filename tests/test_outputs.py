"""Baselines in a recipe: refused before a model loads, found through stored recipes, decoded from real run folders."""

import json
import math
import re
import shutil
import time
from pathlib import Path

import pytest

from lastmile_trl import outputs, preflight, train
from lastmile_trl.recipe import Recipe

from .conftest import WORDS, make_rows, write_jsonl


@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    """A recipe on rows of two references each."""
    several = [{**row, "target": [row["target"], row["source"]]} for row in make_rows(24)]
    rows = write_jsonl(tmp_path / "rows.jsonl", several)

    def build_recipe(method="sft", run="sft", start=tiny_model_folder, baselines=(), **evaluation):
        values = {
            "method": method,
            "model": {"model_name_or_path": str(start)},
            "data": {"path": str(rows), "prompt": "{source} =>", "references": "target", "held_out": 8},
            "training": {
                "output_dir": str(tmp_path / run),
                "max_steps": 2,
                "per_device_train_batch_size": 8,
                "save_strategy": "no",
                "gradient_checkpointing": False,
                "learning_rate": 1e-2,
            },
            "evaluation": {"rows": 5, "max_new_tokens": 8, "baselines": [*baselines], **evaluation},
        }
        if method == "grpo":
            values |= {"rewards": ["rouge"]}
            values["training"] |= {"num_generations": 4, "max_completion_length": 8}
        if method == "evaluate":
            del values["model"]
            values["training"] = {"output_dir": str(tmp_path / run)}
        return Recipe(Path("test.yaml"), values)

    return build_recipe


def problem(stage, **keys):
    [found] = preflight.check(stage, **keys).problems
    assert "\n" not in found and found[-1] in ".?"
    return found


def test_what_a_baseline_cannot_give_is_refused_before_a_model_loads(recipe, tmp_path, tiny_model_folder):
    assert "has no column 'sourse', only id, source, target, references, did you mean 'source'?" in problem(
        recipe(baselines=[{"lead": {"column": "sourse"}}])
    )
    assert "no run of RL here goes back to a run of `method: sft`" in problem(recipe(baselines=["sft"]))
    judged = {"best_of_n": {"rewards": ["tests.test_outputs:needs_more"]}}
    assert "'needs_more' needs a column 'more'" in problem(recipe(baselines=[judged]))
    broken = {"best_of_n": {"rewards": ["tests.test_outputs:broken"]}}
    assert "Reward 'broken' failed" in preflight.check(recipe(baselines=[broken])).problems[0]
    elsewhere = {"best_of_n": {"rewards": ["repetition"], "of": "sfd"}}
    assert "run 'sfd' does not exist: did you mean 'sft'?" in problem(recipe(baselines=[elsewhere]))
    assert "a run is called 'lead' too" in problem(recipe(run="lead", baselines=["lead"]))
    single = write_jsonl(tmp_path / "single.jsonl", make_rows(24))
    stage = recipe(baselines=["reference"])
    stage.values["data"]["path"] = str(single)
    assert "no held-out row has two" in problem(Recipe(stage.source, stage.values))
    whole = recipe("evaluate", "both", baselines=["base"], runs=[str(tiny_model_folder)])
    assert "is itself a base model and started from none: drop base." in problem(whole)
    pairs = recipe(baselines=["lead"])
    pairs.values |= {"method": "reward", "preferences": {"negatives": {"truncated": 1}}}
    assert "`method: reward` compares no runs" in preflight.check(Recipe(pairs.source, pairs.values)).problems[0]
    sound = ["lead", "reference", "base", {"best_of_n": {"rewards": ["repetition"]}}]
    assert preflight.check(recipe(baselines=sound)).problems == []


def needs_more(completions, more, **columns):
    """A reward for a column that is not there."""
    return [0.0] * len(completions)


def broken(completions, **columns):
    """A reward with a bug."""
    return [1 / 0 for _ in completions]


def test_baselines_of_runs_that_earlier_stages_will_make(recipe, tmp_path):
    upcoming = {tmp_path / "sft", tmp_path / "grpo"}
    grpo = recipe("grpo", "grpo", tmp_path / "sft", baselines=["sft", "base"])
    assert preflight.check(grpo, upcoming=upcoming).problems == []
    runs = [str(tmp_path / "sft"), str(tmp_path / "grpo")]
    both = recipe("evaluate", "both", baselines=["sft", "base"], runs=runs)
    assert preflight.check(both, upcoming=upcoming).problems == []


def shown(folder):
    result = json.loads((folder / "evaluation.json").read_text())
    return result, [(entry["run"], entry["decoding"]) for entry in result["results"] if not entry["postprocessed"]]


def test_every_baseline_beside_real_runs(recipe, tmp_path, tiny_model_folder, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lastmile_trl.preferences.perplexity import perplexities

    sft = recipe()
    train.run(sft)
    judged = {"best_of_n": {"n": 3, "rewards": ["rouge"], "of": "sft"}}
    baselines = ["lead", "reference", judged, "base", "sft"]
    grpo = recipe("grpo", "grpo", sft.run, baselines=baselines, likelihood=True)
    assert preflight.check(grpo).problems == []
    train.run(grpo)
    result, entries = shown(grpo.run)
    names = ["lead", "reference", "oracle_best_of_3 of sft", "base", "sft", "grpo"]
    assert entries == [(name, decoding) for decoding in ("greedy", "sampled") for name in names]
    assert result["baseline"] == "grpo"  # several things beside it: none of them is what all are held against

    first = {output["run"]: output for output in result["examples"][0]["outputs"] if output["decoding"] == "greedy"}
    row = result["examples"][0]
    assert first["reference"]["text"] == row["references"][0]
    assert row["prompt"].startswith(first["lead"]["text"]) and first["lead"]["metrics"]["words"] == 12
    prompts = [example["prompt"] for example in result["examples"]]
    base = outputs.generate(tiny_model_folder, prompts, max_new_tokens=8)
    of_base = [
        output["text"]
        for example in result["examples"]
        for output in example["outputs"]
        if output["run"] == "base" and output["decoding"] == "greedy"
    ]
    assert of_base == base
    means = {entry["run"]: entry["metrics"]["rouge/rougeL"]["mean"] for entry in result["results"]
             if entry["decoding"] == "sampled" and not entry["postprocessed"]}  # fmt: skip
    assert means["oracle_best_of_3 of sft"] > means["sft"]  # the first of its samples is that of sft

    rows = [(example["prompt"], text) for example in result["examples"] for text in example["references"]]
    model = AutoModelForCausalLM.from_pretrained(grpo.run)
    found = perplexities(model, AutoTokenizer.from_pretrained(grpo.run), *map(list, zip(*rows, strict=True)))
    expected = math.exp(sum(each.mean * each.tokens for each in found) / sum(each.tokens for each in found))
    corpus = result["corpus"]["grpo"]
    assert corpus["greedy"]["reference_perplexity"] == pytest.approx(expected, rel=1e-4)
    assert 0 < abs(corpus["sampled"]["kl_to_sft"]) < 20 and "kl_to_sft" not in corpus["greedy"]

    # Among the runs, sft is shown once; what was decoded before is not decoded again.
    loaded = []
    real = train.models.load_model
    monkeypatch.setattr(train.models, "load_model", lambda config, *a: loaded.append(config) or real(config, *a))
    runs = [str(sft.run), str(grpo.run)]
    both = recipe("evaluate", "both", baselines=baselines, runs=runs)
    assert preflight.check(both).problems == []
    train.run(both)
    result, entries = shown(both.run)
    names = ["lead", "reference", "oracle_best_of_3 of sft", "base", "sft", "grpo"]
    assert [name for name, decoding in entries if decoding == "greedy"] == names
    assert result["baseline"] == "sft"
    assert {config.model_name_or_path for config in loaded} == {str(tiny_model_folder)}


def test_one_baseline_beside_one_run_is_what_it_is_held_against(recipe):
    stage = recipe(baselines=["lead"], sampled=False)
    train.run(stage)
    result, entries = shown(stage.run)
    assert entries == [("lead", "greedy"), ("sft", "greedy")] and result["baseline"] == "lead"
    assert result["results"][1]["difference"]["words"]["mean"] == result["results"][1]["metrics"]["words"]["mean"] - 12
    assert [*result["steps"]["sft"]["greedy"]] == ["first_block", "repeated_sentences", "unfinished_end"]
    # The lead is the whole source, one copied stretch of 12 words.
    assert result["corpus"]["lead"]["greedy"]["extractive_density"] == 12
    assert result["corpus"]["sft"].keys() == {"greedy"}


LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}


@pytest.mark.parametrize("four_bit", [False, True])
def test_base_of_an_adapter_is_the_model_under_it_loaded_as_the_run(recipe, tiny_model_folder, tmp_path, four_bit):
    stage = recipe("evaluate", "both", runs=[str(tmp_path / "rl")])
    made = recipe().values
    for run, start in (("sft", tiny_model_folder), ("rl", tmp_path / "sft")):
        section = {**LORA, "model_name_or_path": str(start), "load_in_4bit": four_bit}
        (tmp_path / run).mkdir()
        (tmp_path / run / "recipe.yaml").write_text(json.dumps({**made, "model": section}))
    model = outputs.started_from("base", {"rl": tmp_path / "rl"}, stage)
    assert (model.path, model.revision, model.section["load_in_4bit"]) == (tiny_model_folder, "main", four_bit)
    # An adapter that is no run of ours.
    shutil.rmtree(tmp_path / "rl")
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tiny_model_folder), "revision": None})
    )
    assert outputs.started_from("base", {"rl": tmp_path / "rl"}, stage).path == tiny_model_folder


def test_the_base_of_a_run_that_made_its_own(recipe, tmp_path):
    (tmp_path / "sft").mkdir()
    stored = recipe(start="synthetic:base").values
    (tmp_path / "sft" / "recipe.yaml").write_text(json.dumps(stored))
    runs = {"sft": tmp_path / "sft"}
    assert outputs.started_from("base", runs, recipe("evaluate", "e", runs=["x"])).path == tmp_path / "sft" / "base"


def test_words_of_the_rows_are_known(tmp_path):
    """The rows above are one sentence each, so that lead is the whole source of 12 words."""
    assert all(len(row["source"].split()) == 12 and set(row["source"].split()) <= {*WORDS} for row in make_rows(24))


def test_progress_shows_the_rate_and_the_time_left(capsys):
    with outputs.bar("decoding sft, greedy", 4) as on_batch:
        for done in (1, 2):
            time.sleep(0.2)
            on_batch(done, 4)
    shown = capsys.readouterr().err
    assert "decoding sft, greedy:  50%" in shown and re.search(r"2/4 \[00:00<00:0\d, +[\d.]+(it/s|s/it)\]", shown)
