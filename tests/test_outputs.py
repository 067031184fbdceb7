"""Baselines in a recipe: refused before a model loads, found through stored recipes, decoded from real run folders."""

import json
import math
import re
import shutil
import time
from pathlib import Path

import pytest

from lastmile_trl import models, outputs, preflight, train
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
    judged = {"best_of_n": {"rewards": ["repetition"]}}
    assert "best_of_8 is held against sampled outputs, and evaluation.sampled: false leaves none: drop one." in problem(
        recipe(baselines=[judged], sampled=False)
    )
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


@pytest.fixture
def loads(monkeypatch):
    """The names of the models that are loaded, adapters aside."""
    from trl.trainer import utils

    names, real = [], utils.create_model_from_path

    def load(name, *more, **settings):
        names.append(str(name))
        return real(name, *more, **settings)

    monkeypatch.setattr(utils, "create_model_from_path", load)
    return names


def test_every_baseline_beside_real_runs(recipe, tmp_path, tiny_model_folder, loads):
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
    names = ["grpo", "lead", "reference", "oracle_best_of_3 of sft", "base", "sft"]
    best = "oracle_best_of_3 of sft"
    everywhere = [(name, decoding) for decoding in ("greedy", "sampled") for name in names]
    assert entries == [entry for entry in everywhere if entry != (best, "greedy")]
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
    assert means[best] > means["sft"]  # the first of its samples is that of sft

    rows = [(example["prompt"], text) for example in result["examples"] for text in example["references"]]
    model = AutoModelForCausalLM.from_pretrained(grpo.run)
    found = perplexities(model, AutoTokenizer.from_pretrained(grpo.run), *map(list, zip(*rows, strict=True)))
    expected = math.exp(sum(each.mean * each.tokens for each in found) / sum(each.tokens for each in found))
    corpus = result["corpus"]["grpo"]
    assert corpus["greedy"]["reference_perplexity"] == pytest.approx(expected, rel=1e-4)
    assert "kl_to_sft" not in corpus["greedy"]
    texts = [output["text"] for output in of_run(result, "grpo")]
    kl = result["corpus_intervals"]["grpo"]["sampled"]["kl_to_sft"]
    assert kl["mean"] == corpus["sampled"]["kl_to_sft"] and kl["low"] < kl["mean"] < kl["high"] and kl["rows"] == 5
    assert kl["mean"] == pytest.approx(slow_divergence(grpo.run, sft.run, prompts, texts), abs=1e-3)

    # Among the runs, sft is shown once; what was decoded before is not decoded again.
    loads.clear()
    runs = [str(sft.run), str(grpo.run)]
    both = recipe("evaluate", "both", baselines=baselines, runs=runs, likelihood=True)
    assert preflight.check(both).problems == []
    loads.clear()
    train.run(both)
    result, entries = shown(both.run)
    names = ["sft", "grpo", "lead", "reference", "oracle_best_of_3 of sft", "base"]
    assert [name for name, decoding in entries if decoding == "sampled"] == names
    assert result["beside"] == names[2:]
    assert result["baseline"] == "sft"
    assert set(loads) == {*runs, str(tiny_model_folder)}  # for the likelihoods, and to decode the base

    # Each model is asked all at once: sft twice, as only at the end are there samples of grpo to find unlikely.
    for run in runs:
        shutil.rmtree(Path(run, "outputs"))
    loads.clear()
    train.run(recipe("evaluate", "again", baselines=[judged, "sft"], runs=runs, likelihood=True))
    assert loads == [*runs, str(sft.run)]
    again, _ = shown(tmp_path / "again")
    assert again["corpus"]["sft"]["sampled"]["kl_to_sft"] is None
    assert again["corpus_missing"]["sft"]["sampled"]["kl_to_sft"] == NO_SFT
    assert again["corpus_intervals"]["grpo"] == result["corpus_intervals"]["grpo"]


NO_SFT = "it is no run of RL that goes back to a run of SFT"


def slow_divergence(run, other, prompts, texts):
    """The mean of log p(sample) - log q(sample) of the samples that the run has kept, without batches or padding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run)
    own, its = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (run, other))
    files = [[json.loads(line) for line in text.splitlines()] for text in kept(run).values()]
    [samples] = [lines for lines in files if [line["text"] for line in lines] == texts]

    def log_p(model, prompt, ids):
        before = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + ids])).logits[0].log_softmax(-1)
        return sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(ids))

    said = [(prompt, line["ids"]) for prompt, line in zip(prompts, samples, strict=True)]
    return sum(log_p(own, *each) - log_p(its, *each) for each in said) / len(said)


@pytest.fixture
def made(recipe, tmp_path, tiny_model_folder):
    """Makes the folder of a run that says what the tiny model with some noise says, without training it."""

    def make(name, noise, method="sft", start=tiny_model_folder, seed=0):
        import torch
        from transformers import AutoModelForCausalLM

        shutil.copytree(tiny_model_folder, tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        random = torch.Generator().manual_seed(noise)
        for weight in model.parameters():
            weight.data += torch.randn(weight.shape, generator=random) * 0.05
        model.save_pretrained(tmp_path / name)
        values = recipe(method, name, start).values
        values["training"]["seed"] = seed
        (tmp_path / name / "recipe.yaml").write_text(json.dumps(values))
        return str(tmp_path / name)

    return make


def test_every_seed_is_held_against_the_sft_that_it_started_from(recipe, made):
    sft = [made(f"sft-{seed}", noise=seed, seed=seed) for seed in (0, 1)]
    # What says the same as its own start is at 0 from that, and far from the other one.
    grpo = [made(f"grpo-{seed}", noise=seed, method="grpo", start=sft[seed], seed=seed) for seed in (0, 1)]
    other = made("other", 1, method="grpo", start=sft[0])
    alone = made("alone", 0, method="grpo")
    stage = recipe("evaluate", "all", runs=[*sft, *grpo, other, alone], likelihood=True, samples=2, baselines=["lead"])
    train.run(stage)
    result, _ = shown(stage.run)
    kl = {run: of_run["sampled"].get("kl_to_sft") for run, of_run in result["corpus"].items()}
    assert kl.pop("other") > 1
    none = ["sft-0", "sft-1", "alone", "lead"]
    assert kl == {"grpo-0": 0, "grpo-1": 0} | dict.fromkeys(none)
    why = {run: result["corpus_missing"][run]["sampled"]["kl_to_sft"] for run in none}
    assert why == dict.fromkeys(none, NO_SFT) | {"lead": "runs alone are asked for it"}


@pytest.mark.parametrize(
    ("evaluation", "decoding", "why"),
    [
        ({"temperature": 0.7}, "sampled", "samples must be drawn at temperature 1 and top_p 1"),
        ({"sampled": False}, "greedy", "nothing was sampled"),
    ],
)
def test_why_no_divergence_is_told(recipe, made, evaluation, decoding, why):
    grpo = made("grpo", 1, method="grpo", start=made("sft", 0))
    stage = recipe("evaluate", "both", runs=[grpo], likelihood=True, rows=2, **evaluation)
    train.run(stage)
    result, _ = shown(stage.run)
    assert result["corpus"]["grpo"][decoding]["kl_to_sft"] is None
    assert result["corpus_missing"]["grpo"][decoding]["kl_to_sft"] == why


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


def test_a_merged_run_is_loaded_as_the_full_weights_it_has(recipe, adapter, tmp_path):
    from lastmile_trl.merge import merge

    run = Path(adapter("qlora"))
    section = {**LORA, "model_name_or_path": "x", "load_in_4bit": True}
    (run / "recipe.yaml").write_text(json.dumps(recipe().values | {"model": section}))
    (run / "environment.json").write_text("{}")
    merged = merge(run, tmp_path / "merged")
    assert outputs.model_of(run).section["load_in_4bit"] is True
    decoder = outputs.Decoder(outputs.model_of(merged))
    assert decoder.config.load_in_4bit is False and not getattr(decoder.model, "is_quantized", False)
    assert decoder.decode(["the big red cat =>"], "it", max_new_tokens=4) == said(None, run)[:1]


def test_the_base_of_a_run_that_made_its_own(recipe, tmp_path):
    (tmp_path / "sft").mkdir()
    stored = recipe(start="synthetic:base").values
    (tmp_path / "sft" / "recipe.yaml").write_text(json.dumps(stored))
    runs = {"sft": tmp_path / "sft"}
    assert outputs.started_from("base", runs, recipe("evaluate", "e", runs=["x"])).path == tmp_path / "sft" / "base"


def test_words_of_the_rows_are_known(tmp_path):
    """The rows above are one sentence each, so that lead is the whole source of 12 words."""
    assert all(len(row["source"].split()) == 12 and set(row["source"].split()) <= {*WORDS} for row in make_rows(24))


def test_a_terminal_gets_a_bar_with_the_rate_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with outputs.bar("decoding sft, greedy", 4) as on_batch:
        for done in (1, 2):
            time.sleep(0.2)
            on_batch(done, 4)
    shown = capsys.readouterr().err
    assert "decoding sft, greedy:  50%" in shown and re.search(r"2/4 \[00:00<00:0\d, +[\d.]+(it/s|s/it)\]", shown)


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(capsys, monkeypatch):
    clock = iter([0.0, 40.0, 80.0, 100.0, 120.0, 160.0])
    monkeypatch.setattr(outputs.time, "monotonic", lambda: next(clock))
    with outputs.bar("decoding sft, greedy", 60, done=10) as on_batch:
        for done in (20, 30, 40, 50, 60):
            on_batch(done, 60)
    # 20 outputs in 80 seconds, so 30 more take 120; those known before took no time
    assert capsys.readouterr().err == (
        "decoding sft, greedy:  50% 30/60 [01:20<02:00,  4.00s/it]\n"
        "decoding sft, greedy: 100% 60/60 [02:40<00:00,  3.20s/it]\n"
    )


# --- several samples -----------------------------------------------------------------------------------------------


def of_run(result, run, decoding="sampled"):
    return [
        output
        for example in result["examples"]
        for output in example["outputs"]
        if (output["run"], output["decoding"], output["postprocessed"]) == (run, decoding, False)
    ]


def kept(run):
    return {file.name: file.read_text() for file in (run / "outputs").iterdir()}


def test_a_row_has_the_mean_over_its_samples_which_best_of_n_takes_too(recipe, loads):
    stage = recipe(samples=3, likelihood=True)
    train.run(stage)
    result, _ = shown(stage.run)
    sampled, greedy = of_run(result, "sft"), of_run(result, "sft", "greedy")
    assert all(len(output["samples"]) == 3 and output["text"] == output["samples"][0] for output in sampled)
    assert any(len(set(output["samples"])) > 1 for output in sampled)
    for output in sampled:
        words = [len(text.split()) for text in output["samples"]]
        assert output["metrics"]["words"] == pytest.approx(sum(words) / 3)
    assert all("samples" not in output for output in greedy)
    entry = next(entry for entry in result["results"] if entry["decoding"] == "sampled" and not entry["postprocessed"])
    assert entry["metrics"]["words"]["rows"] == 5
    texts = [text for output in sampled for text in output["samples"]]
    grams = [pair for words in map(str.split, texts) for pair in zip(words, words[1:], strict=False)]
    assert result["corpus"]["sft"]["sampled"]["distinct_2"] == pytest.approx(len(set(grams)) / len(grams))
    assert result["corpus"]["sft"]["sampled"]["reference_perplexity"] > 1

    # An evaluation later comes to the samples that were drawn in training.
    before = kept(stage.run)
    assert sorted(text.count("\n") for text in before.values()) == [5, 15]
    shutil.rmtree(stage.run / "outputs")
    train.run(recipe("evaluate", "both", runs=[str(stage.run)], samples=3))
    assert kept(stage.run) == before

    # The first of them are those of a single sample; what best_of_n of as many picks among is kept.
    loads.clear()
    single = recipe(baselines=[{"best_of_n": {"n": 3, "rewards": ["repetition"]}}])
    train.run(single)
    again, _ = shown(single.run)
    assert [output["text"] for output in of_run(again, "sft")] == [output["text"] for output in sampled]
    assert all("samples" not in output for output in of_run(again, "sft"))
    best = [output["text"] for output in of_run(again, "best_of_3")]
    assert all(text in output["samples"] for text, output in zip(best, sampled, strict=True))
    assert loads == [str(stage.run)]  # for the single sample, which was not kept

    # It is a sample: held against the samples of the run, and not shown among greedy outputs.
    assert again["baseline"] == "best_of_3" and of_run(again, "best_of_3", "greedy") == []
    found = {entry["decoding"]: entry["difference"] for entry in again["results"] if entry["run"] == "sft"}
    assert found["greedy"] is None and found["sampled"]["words"]["rows"] == 5
    page = (single.run / "report.html").read_text()
    assert "best_of_3 has no greedy outputs" in page and "too few rows" not in page


def test_rows_of_one_prompt_have_their_samples_however_many_are_drawn(recipe, tmp_path):
    stage = recipe(samples=2, rows=8)
    write_jsonl(tmp_path / "rows.jsonl", [row for row in make_rows(6) for _ in range(4)])
    train.run(stage)
    result, _ = shown(stage.run)
    assert len({example["prompt"] for example in result["examples"]}) < 8
    twice = of_run(result, "sft")
    assert len({text for output in twice for text in output["samples"]}) == 16
    shutil.rmtree(stage.run / "outputs")
    once = recipe("evaluate", "once", runs=[str(stage.run)], rows=8)
    train.run(once)
    texts = [output["text"] for output in of_run(shown(once.run)[0], "sft")]
    assert texts == [output["samples"][0] for output in twice]


def test_samples_that_nothing_draws_are_refused(recipe):
    from lastmile_trl.errors import InputError

    with pytest.raises(InputError, match="evaluation.samples draws nothing with evaluation.sampled: false: drop one."):
        recipe(samples=2, sampled=False)
    with pytest.raises(InputError, match="evaluation.samples must be at least 1, not 0."):
        recipe(samples=0)
    pairs = recipe(samples=2)
    pairs.values |= {"method": "reward", "preferences": {"negatives": {"truncated": 1}}}
    assert "`method: reward` looks at one sample" in problem(Recipe(pairs.source, pairs.values))


# --- an evaluation that was killed ---------------------------------------------------------------------------------


def evaluation_of(recipe, run, **more):
    return recipe("evaluate", "both", runs=[str(run)], samples=2, batch_size=4, **more)


def test_a_killed_evaluation_decodes_only_what_is_missing(recipe, tmp_path, monkeypatch):
    import subprocess
    import sys

    sft = recipe(sampled=False)
    train.run(sft)
    shutil.rmtree(sft.run / "outputs")
    stage = evaluation_of(recipe, sft.run)
    (tmp_path / "recipe.json").write_text(json.dumps(stage.values))
    # Killed in the third batch of the samples: of 5 rows greedy, batches of 4 and 1; of 10 samples 4, 4 and 2.
    script = f"""
import json, os, signal
from pathlib import Path
from lastmile_trl import train
from lastmile_trl.evaluation import decoding
from lastmile_trl.recipe import Recipe
calls, complete = [], decoding._complete
def dying(*arguments):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return complete(*arguments)
decoding._complete = dying
train.run(Recipe(Path("test.yaml"), json.loads(Path({str(tmp_path / "recipe.json")!r}).read_text())))
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    [part] = [name for name in kept(sft.run) if name.endswith(".part")]
    file = sft.run / "outputs" / part
    assert len(file.read_text().splitlines()) == 2
    with file.open("a") as torn:
        torn.write('[[9, {"text": "a do')

    from lastmile_trl.evaluation import decoding

    rows, complete = [], decoding._complete
    monkeypatch.setattr(decoding, "_complete", lambda *a: rows.append(len(a[2])) or complete(*a))
    train.run(stage)
    assert rows == [2]
    resumed, (result, _) = kept(sft.run), shown(stage.run)
    assert len(resumed) == 2 and not any(name.endswith(".part") for name in resumed)

    shutil.rmtree(sft.run / "outputs")
    train.run(stage)
    assert rows == [2, 4, 1, 4, 4, 2]
    assert kept(sft.run) == resumed and shown(stage.run)[0] == result


def test_a_line_that_was_torn_is_decoded_again(tmp_path):
    from lastmile_trl.evaluation.decoding import Output
    from lastmile_trl.run_folder import keep_outputs, keep_some_outputs, kept_outputs, some_kept_outputs

    first, second = Output("a é", [5, 1], True), Output("b", [6], False)
    assert some_kept_outputs(tmp_path, "x") == {}
    keep_some_outputs(tmp_path, "x", {7: first, 2: second})
    keep_some_outputs(tmp_path, "x", {3: first})
    [file] = (tmp_path / "outputs").iterdir()
    file.write_text(file.read_text()[:-9])
    assert some_kept_outputs(tmp_path, "x") == {7: first, 2: second}
    keep_some_outputs(tmp_path, "x", {3: second})
    assert some_kept_outputs(tmp_path, "x") == {7: first, 2: second, 3: second}
    assert some_kept_outputs(tmp_path, "y") == {} and kept_outputs(tmp_path, "x") is None
    keep_outputs(tmp_path, "x", [first, second])
    assert kept_outputs(tmp_path, "x") == [first, second] and some_kept_outputs(tmp_path, "x") == {}
    assert [file.name for file in (tmp_path / "outputs").iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize("damage", ['{"text": "a d', '{"words": "a"}', "7", "\xe9"])
def test_outputs_that_are_damaged_are_named(tmp_path, damage):
    from lastmile_trl.errors import InputError
    from lastmile_trl.evaluation.decoding import Output
    from lastmile_trl.run_folder import keep_outputs, keep_some_outputs, kept_outputs, some_kept_outputs

    keep_outputs(tmp_path, "x", [Output("a", [5], True)])
    keep_some_outputs(tmp_path, "y", {0: Output("a", [5], True)})
    for name, read in (("x.jsonl", kept_outputs), ("y.part", some_kept_outputs)):
        file = tmp_path / "outputs" / name
        file.write_bytes(damage.encode("latin-1") + b"\n" + file.read_bytes())
        with pytest.raises(InputError, match=rf"{name} is damaged: delete it, and what it held is decoded again\.$"):
            read(tmp_path, name[0])


# --- one base in memory --------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path, tiny_model_folder, tokenizer):
    """Makes a run of LoRA on the tiny model, or on another one, which says something of its own."""

    def make(name, base=tiny_model_folder, **lora):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
        model = get_peft_model(model, config)
        noise = torch.Generator().manual_seed(len(name))
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.data = torch.randn(weight.shape, generator=noise) * 0.3
            elif weight.requires_grad:
                weight.data += torch.randn(weight.shape, generator=noise) * 0.3
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def said(loaded, path, four_bit=False):
    model = outputs.Model(Path(path), {"load_in_4bit": four_bit})
    decoder = outputs.Decoder(model, loaded=loaded)
    return decoder.decode(["the big red cat =>", "a dog"], "it", max_new_tokens=4)


@pytest.mark.parametrize("four_bit", [False, True])
def test_runs_on_one_base_take_turns_on_it(adapter, loads, tiny_model_folder, four_bit):
    asked = [
        adapter("a"),
        adapter("bb", r=8, target_modules=["v_proj", "down_proj"]),
        str(tiny_model_folder),
        adapter("ccc"),
    ]
    alone = [said(None, path, four_bit) for path in asked]
    assert len({str(output) for output in alone}) == 4
    loads.clear()
    loaded = models.Loaded()
    assert [said(loaded, path, four_bit) for path in [*asked, asked[0]]] == [*alone, alone[0]]
    assert loads == [str(tiny_model_folder)]


def test_another_base_or_another_way_to_load_it_loads_anew(adapter, loads, tiny_model_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    loaded, first = models.Loaded(), adapter("a")
    for path, section in [(first, {}), (first, {"dtype": "bfloat16"}), (adapter("b", other), {"dtype": "bfloat16"})]:
        outputs.Decoder(outputs.Model(Path(path), section), loaded=loaded).model  # noqa: B018
    assert loads == [str(tiny_model_folder), str(tiny_model_folder), str(other)]


@pytest.mark.parametrize("lora", [{"bias": "all"}, {"init_lora_weights": "pissa"}])
def test_a_base_that_an_adapter_may_have_changed_is_not_shared(adapter, loads, lora, tiny_model_folder):
    asked = [adapter("a", **lora), adapter("bb")]
    alone = [said(None, path) for path in asked]
    loads.clear()
    loaded = models.Loaded()
    assert [said(loaded, path) for path in asked] == alone
    assert loads == [str(tiny_model_folder)] * 2
