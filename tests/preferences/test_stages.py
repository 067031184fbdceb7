"""The stages `pairs`, `reward` and `dpo` with a tiny model: what they leave, what they learn, what they refuse."""

import json
import re
from datetime import date
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lastmile_trl import preflight, run_folder, train
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.leakage import leaks
from lastmile_trl.outputs import generate
from lastmile_trl.preferences import stage
from lastmile_trl.recipe import WITH_PAIRS, Recipe, collect
from lastmile_trl.rewards import model as reward_model
from tests.conftest import sentence, write_jsonl

LOOSE = {"keep": "chosen", "prompts": 16, "lower_quantile": None, "length_ratio": None, "balance": None}
LORA = {"use_peft": True, "lora_r": 8, "lora_target_modules": ["all-linear"]}


def counts(completions, **columns):
    """A reward that tells samples apart: more words of the source."""
    return [float(len(set(text.split()))) for text in completions]


@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    """A recipe on 48 rows with good and bad answers; sections are merged into it."""
    rows = [
        {"source": sentence(n, 12), "target": sentence(n, 5), "good": sentence(n, 5), "bad": "a mat a mat"}
        for n in range(48)
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)

    def build(method, run="run", **sections):
        values = {
            "method": method,
            "model": {"model_name_or_path": str(tiny_model_folder)},
            "data": {"path": str(file), "prompt": "{source} =>", "references": "target", "held_out": 16},
            "training": {"output_dir": str(tmp_path / run), "seed": 0},
            "evaluation": {"rows": 16, "max_new_tokens": 12},
        }
        if method in WITH_PAIRS:
            values["preferences"] = {"chosen": "good", "rejected": "bad"}
        if method != "pairs":
            values["training"] |= {
                "max_steps": 2,
                "per_device_train_batch_size": 8,
                "logging_steps": 1,
                "save_strategy": "no",
                "gradient_checkpointing": False,
                "learning_rate": 3e-3,
            }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return Recipe(Path("test.yaml"), values)

    return build


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def evaluation(recipe):
    return json.loads((recipe.run / "evaluation.json").read_text())


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_pairs_of_negatives_are_a_data_set_that_the_same_template_reads(recipe):
    made = recipe("pairs", preferences={"chosen": None, "rejected": None, "negatives": {"truncated": 1, "shuffled": 1}})
    train.run(made)
    assert run_folder.is_done(made)
    rows = lines(made.run / "train.jsonl")
    assert {row["category"] for row in rows} == {"truncated", "shuffled"}
    assert all(row["chosen"] == row["target"] and row["references"] == [row["target"]] for row in rows)
    assert {row["rejected_ended"] for row in rows if row["category"] == "truncated"} == {False}
    report = json.loads((made.run / "pairs.json").read_text())
    asked = 32  # rows to train on
    assert all(kind["pairs"] + sum(kind["skipped"].values()) == asked for kind in report["train"].values())
    assert "train" in (said := "\n".join(stage.lines(made.run))) and "truncated" in said
    fewer = Recipe(made.source, {**made.values, "evaluation": {**made.values["evaluation"], "rows": 8}})
    [problem] = preflight.check(fewer).problems  # the rows that are held out are those of the pairs
    assert "evaluation.rows was 16, is 8" in problem

    ready = {"path": str(made.run), "references": "references", "eval_split": "validation"}
    reward = recipe("reward", run="reward", data=ready, preferences={"chosen": "chosen", "rejected": "rejected"})
    assert not preflight.check(reward).problems
    train.run(reward)
    assert set(evaluation(reward)["categories"]) == {"truncated", "shuffled"}
    assert made.run.as_posix() in json.loads((reward.run / "environment.json").read_text())["started_from"]
    # what the pairs hold out, their own rows hold out too
    assert leaks({"reward": reward.run}, made) == []
    [said] = leaks({"reward": reward.run}, recipe("sft", run="sft", data={"held_out": 1000}))
    assert said.startswith("reward was trained with another data.held_out")


def test_samples_with_the_defaults_beside_negatives(recipe):
    negatives = {"chosen": None, "rejected": None, "negatives": {"truncated": 1}, "samples": {}}
    made = recipe("pairs", rewards=["tests.preferences.test_stages:counts"], preferences=negatives)
    train.run(made)
    rows = lines(made.run / "train.jsonl")
    assert {row["category"] for row in rows[:8]} == {"truncated", "samples"}
    of_samples = recipe(
        "pairs", run="next", rewards=["rouge"], preferences=negatives | {"negatives": {"model_sample": 1}}
    )
    assert not preflight.check(of_samples).problems


def test_rows_with_what_json_cannot_say_and_a_model_made_in_code(recipe, tmp_path):
    from datasets import Dataset

    rows = [{"source": sentence(n, 12), "target": sentence(n, 5), "when": date(2024, 5, n + 1)} for n in range(24)]
    rows[0]["target"] = ""
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    made = recipe(
        "pairs",
        model={"model_name_or_path": "synthetic:tiny"},
        data={"path": str(tmp_path / "rows.parquet"), "held_out": 8},
        preferences={"chosen": None, "rejected": None, "negatives": {"truncated": 1}},
    )
    train.run(made)
    assert {row["when"][:8] for row in lines(made.run / "train.jsonl")} == {"2024-05-"}
    assert "1 of " in stage.lines(made.run)[0] and "empty reference" in stage.lines(made.run)[0]


def test_samples_ranked_by_a_reward(recipe):
    samples = {"per_prompt": 3, "choose": "best_worst"}
    made = recipe(
        "pairs",
        rewards=["tests.preferences.test_stages:counts"],
        preferences={"chosen": None, "rejected": None, "samples": samples},
    )
    train.run(made)
    rows = lines(made.run / "train.jsonl")
    assert rows and {row["category"] for row in rows} == {"samples"}
    assert all(counts([row["chosen"]]) > counts([row["rejected"]]) for row in rows)


def test_an_interrupted_stage_does_not_sample_again(recipe, monkeypatch):
    made = recipe(
        "pairs",
        rewards=["tests.preferences.test_stages:counts"],
        preferences={"chosen": None, "rejected": None, "samples": {"per_prompt": 2}},
    )
    monkeypatch.setattr(stage, "CHUNK", 8)
    from lastmile_trl.evaluation import decoding

    decode, calls = decoding.decode, []

    def failing(*args, **settings):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return decode(*args, **settings)

    monkeypatch.setattr(decoding, "decode", failing)
    with pytest.raises(KeyboardInterrupt):
        train.run(made)
    assert not run_folder.is_done(made)
    train.run(made)
    assert len(calls) == 4 + 1 + 2  # three of four chunks were kept; the held-out rows are two more
    assert run_folder.is_done(made)


def test_the_filter_keeps_what_the_model_might_say(recipe, tmp_path):
    learned = recipe("sft", run="sft", training={"max_steps": 40, "learning_rate": 1e-2})
    train.run(learned)
    made = recipe(
        "pairs",
        model={"model_name_or_path": str(learned.run)},
        preferences={
            "filter": {"keep": "chosen", "prompts": 16, "lower_quantile": None, "length_ratio": None, "balance": None}
        },
    )
    train.run(made)
    report = json.loads((made.run / "pairs.json").read_text())["filter"]
    assert 0 < report["all"]["kept"] == len(lines(made.run / "train.jsonl")) <= 32
    assert len(lines(made.run / "validation.jsonl")) == 16  # the held-out pairs stay
    assert "pairs are kept" in "\n".join(stage.lines(made.run))
    # the other way round nothing would be left: the model never says what is rejected here
    turned = recipe("pairs", run="turned", model={"model_name_or_path": str(learned.run)}, preferences={
        "chosen": "bad", "rejected": "good", "filter": made.preferences.filter})  # fmt: skip
    with pytest.raises(RunError, match="preferences.filter keeps . of 32 pairs .*min_kept"):
        train.run(turned)
    # with another filter it goes on from what was measured
    measured = (turned.run / "perplexity.jsonl").stat().st_mtime_ns
    looser = Recipe(turned.source, json.loads(json.dumps(turned.values)))
    looser.values["preferences"]["filter"] |= {"max_perplexity": 1e9}
    assert not preflight.check(looser).problems
    train.run(looser)
    assert len(lines(turned.run / "train.jsonl")) == 32
    assert (turned.run / "perplexity.jsonl").stat().st_mtime_ns == measured
    assert "preferences.filter.max_perplexity was" in preflight.check(turned).problems[0]  # its pairs are made


# --- reward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [{}, LORA, {**LORA, "load_in_4bit": True, "dtype": "bfloat16"}], ids=["full", "lora", "4bit"]
)
def test_a_reward_model_learns_the_pairs_and_is_judged(recipe, model):
    required = {"require": {"accuracy": 0.9}}
    made = recipe("reward", model=model, training={"max_steps": 20}, preferences=required, evaluation={"every": 10})
    train.run(made)
    result = evaluation(made)
    assert result["categories"]["pairs"]["accuracy"]["mean"] > 0.9 and not result["failures"]
    assert {(entry["run"], entry["decoding"]) for entry in result["samples"]} == {
        ("tiny", "greedy"), ("tiny", "sampled")
    }  # fmt: skip
    shown = result["examples"]["samples"][0]  # scored as RL has it read: as it was generated
    said = {"prompts": [shown["prompt"]], "completion_ids": [[]], "ended": [False]}
    given = {"model": str(made.run), "centre": False, "load_in_4bit": bool(model.get("load_in_4bit"))}
    [score] = reward_model.Model(**given)([shown["text"]], **said)
    assert score == pytest.approx(shown["score"], abs=1e-3)
    looks = [row["eval_accuracy"] for row in run_folder.history(made.run) if "eval_accuracy" in row]
    assert len(looks) == 2 and looks[-1] > 0.9
    assert (made.run / "report.html").exists() and run_folder.is_done(made)
    weights = "adapter_model.safetensors" if model else "model.safetensors"
    assert any("score" in name for name in load_file(made.run / weights))


def test_the_adapter_of_a_language_model_goes_on_as_a_reward_model(recipe):
    sft = recipe("sft", run="sft", model=LORA, training={"max_steps": 5})
    train.run(sft)
    made = recipe(
        "reward", model={**LORA, "model_name_or_path": str(sft.run)}, training={"max_steps": 1, "learning_rate": 0.0}
    )
    assert not preflight.check(made).problems
    train.run(made)
    before, after = (load_file(run / "adapter_model.safetensors") for run in (sft.run, made.run))
    shared = [name for name in before if "lora_B" in name]
    assert shared and all((before[name] == after[name]).all() for name in shared)
    assert any(before[name].abs().sum() > 0 for name in shared)


def test_a_bad_reward_model_stops_the_pipeline_and_says_why(recipe):
    made = recipe("reward", preferences={"chosen": "bad", "rejected": "bad2", "require": {"accuracy": 0.95}})
    rows = [
        {"source": sentence(n, 12), "target": "x", "bad": sentence(n, 4), "bad2": sentence(n + 1, 4)} for n in range(48)
    ]
    write_jsonl(Path(made.data.path), rows)
    with pytest.raises(RunError, match="is not fit to be a reward: .*report.html"):
        train.run(made)
    assert evaluation(made)["failures"] and not run_folder.is_done(made)
    assert (made.run / "model.safetensors").exists()
    # trained already: with a lower bar it is only judged again
    looser = recipe("reward", preferences={"chosen": "bad", "rejected": "bad2", "require": {"accuracy": 0.0}})
    assert run_folder.is_trained(looser) and not preflight.check(looser).problems
    trained = (made.run / "model.safetensors").stat().st_mtime_ns
    train.run(looser)
    assert run_folder.is_done(looser) and (made.run / "model.safetensors").stat().st_mtime_ns == trained


def test_a_reward_model_rewards(recipe):
    made = recipe("reward", run="reward", training={"max_steps": 10})
    train.run(made)
    policy = recipe("grpo", run="grpo", rewards=[{"model": {"model": str(made.run)}}], training={
        "num_generations": 4, "max_completion_length": 12})  # fmt: skip
    assert not preflight.check(policy).problems
    train.run(policy)
    logged = [row["rewards/model/mean"] for row in run_folder.history(policy.run) if "rewards/model/mean" in row]
    assert len(logged) == 2 and all(logged)
    assert str(made.run) in json.loads((policy.run / "environment.json").read_text())["started_from"]
    # it scores, and does not write
    for method, sections in (("dpo", {"model": {"model_name_or_path": str(made.run)}}),
                             ("reward", {"evaluation": {"runs": [str(made.run)]}})):  # fmt: skip
        [problem] = preflight.check(recipe(method, run="next", **sections)).problems
        assert "is a reward model" in problem
    with pytest.raises(InputError, match="is a reward model"):
        generate(made.run, ["the cat"])


def test_a_metric_on_the_policys_base_loads_no_second_one(recipe, monkeypatch):
    made = recipe("reward", run="reward", model=LORA)
    train.run(made)
    monkeypatch.setattr(reward_model, "_load", lambda *_: pytest.fail("a second base"))
    metrics = [{"model": {"model": str(made.run), "share_base": True}}]
    policy = recipe("grpo", run="grpo", model=LORA, rewards=["tests.preferences.test_stages:counts"], training={
        "num_generations": 4, "max_completion_length": 12}, evaluation={"metrics": metrics})  # fmt: skip
    train.run(policy)
    assert all("model" in entry["metrics"] for entry in evaluation(policy)["results"])


def test_long_rows_are_cut_for_the_reward_model_too(recipe, tmp_path, tiny_model_folder):
    """Also where no trainer has prepared the rows: the model reads 512 tokens."""
    made = recipe("reward", run="reward", data={"max_prompt_tokens": 64}, evaluation={"metrics": []})
    rows = [
        {"source": sentence(n, 600), "target": sentence(n, 5), "good": sentence(n, 5), "bad": "a"} for n in range(48)
    ]
    write_jsonl(Path(made.data.path), rows)
    train.run(made)
    assert evaluation(made)["metric"] is None
    metrics = [{"model": {"model": str(made.run)}}]
    compared = {"rows": 4, "max_new_tokens": 4, "runs": [str(tiny_model_folder)], "metrics": metrics}
    values = {"data": made.values["data"], "evaluation": compared, "training": {"output_dir": str(tmp_path / "both")}}
    train.run(Recipe(Path("both.yaml"), {"method": "evaluate", **values}))


# --- dpo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])
def test_dpo_learns_to_prefer(recipe, model):
    made = recipe("dpo", model=model, training={"max_steps": 20, "learning_rate": 1e-3, "loss_type": ["sigmoid", "sft"],
                                                "loss_weights": [1.0, 0.1]}, evaluation={"every": 10})  # fmt: skip
    assert not preflight.check(made).problems
    train.run(made)
    logged = run_folder.history(made.run)
    accuracies = [row["rewards/accuracies"] for row in logged if "rewards/accuracies" in row]
    assert accuracies[0] < 0.6 and accuracies[-1] > 0.9
    assert any("eval_rouge/rougeL" in row for row in logged)
    assert {entry["run"] for entry in evaluation(made)["results"]} == {"run"}


# --- what is refused before a model loads --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "sections", "said"),
    [
        ("grpo", {"rewards": ["rouge"], "preferences": {"chosen": "good"}}, "`method: grpo` has no use for pairs"),
        ("reward", {"preferences": {"rejected": None}}, "columns of a pair: set both"),
        ("dpo", {"preferences": {"chosen": None, "rejected": None}}, "needs pairs: preferences.negatives"),
        ("dpo", {"preferences": {"filter": {}}}, "preferences.filter asks the model"),
        ("reward", {"preferences": {"samples": {}}}, "preferences.samples asks the model"),
        ("dpo", {"preferences": {"require": {"accuracy": 0.9}}}, "preferences.require is for `method: reward`"),
        ("pairs", {"preferences": {"samples": {}}}, "rewards of `method: pairs` rank"),
        ("pairs", {"rewards": ["rouge"]}, "rewards of `method: pairs` rank"),
        ("pairs", {"hub": {"push": True, "repo": "me/x"}}, "makes no model to push"),
        ("reward", {"rewards": ["rouge"]}, "does not use rewards"),
        ("reward", {"preferences": {"chose": "x"}}, "unknown key preferences.chose, did you mean 'chosen'"),
    ],
)
def test_sections_that_make_no_sense_are_refused(recipe, method, sections, said):
    with pytest.raises(InputError, match=said):
        recipe(method, **sections)


@pytest.mark.parametrize(
    ("method", "preferences", "said"),
    [
        ("dpo", {"chosen": "goode"}, "preferences.chosen: .* has no column 'goode', only .*did you mean 'good'"),
        ("reward", {"negatives": {"shufled": 1}}, "did you mean 'shuffled'"),
        ("reward", {"negatives": {"model_sample": 1}}, "takes samples of a model"),
        ("reward", {"negatives": {"copied": 1}, "source": "nowhere"}, "preferences.source: .*'nowhere'"),
        (
            "reward",
            {"chosen": None, "rejected": None, "negatives": {"copied": 1}, "require": {"acuracy": 1}},
            "preferences.require.*'accuracy'",
        ),
        ("pairs", {"filter": {"quantil": 1}}, "preferences.filter: key 'quantil' does not exist: did you mean"),
        ("pairs", {"filter": {"keep": "none"}}, "preferences.filter.keep"),
    ],
)
def test_what_would_stop_the_stage_is_found_before(recipe, method, preferences, said):
    [problem] = preflight.check(recipe(method, preferences=preferences)).problems
    assert re.search(said, problem)


def test_a_column_that_pairs_would_write_over_is_found_before(recipe):
    problems = preflight.check(recipe("pairs", data={"prompt": "{category}: {source}"})).problems
    assert "The template names the column 'category'" in problems[0]


def test_a_base_that_cannot_be_shared_is_found_before_its_reward_model_is_trained(recipe, tmp_path):
    rewarded = [{"model": {"model": str(tmp_path / "reward"), "share_base": True}}]
    policy = recipe("grpo", rewards=rewarded, training={"num_generations": 4})
    assert "share_base" in preflight.check(policy, upcoming={tmp_path / "reward"}).problems[0]
    policy.model["use_peft"] = True
    assert not preflight.check(policy, upcoming={tmp_path / "reward"}).problems
    assert "FSDP" in preflight.check(policy, upcoming={tmp_path / "reward"}, distributed="FSDP").problems[0]


def test_a_reward_that_is_no_reward_model_is_found_before(recipe, tiny_model_folder):
    policy = recipe("grpo", rewards=[{"model": {"model": str(tiny_model_folder)}}], training={"num_generations": 4})
    [problem] = preflight.check(policy).problems
    assert "no reward model" in problem


def test_a_folder_runs_in_the_order_of_what_is_needed(tmp_path):
    (tmp_path / "recipes/task").mkdir(parents=True)
    data = "data: {path: rows.jsonl, prompt: '{source}', references: target}\n"
    stages = {
        "a_policy": "method: grpo\nmodel: {model_name_or_path: runs/task/d_sft}\n"
        "rewards: [{model: {model: runs/task/b_reward}}]\n" + data,
        "b_reward": "method: reward\nmodel: {model_name_or_path: runs/task/d_sft}\n"
        "preferences: {chosen: chosen, rejected: rejected}\n" + data.replace("rows.jsonl", "runs/task/c_pairs"),
        "c_pairs": "method: pairs\nmodel: {model_name_or_path: runs/task/d_sft}\n"
        "preferences: {negatives: {shuffled: 1}}\n" + data,
        "d_sft": "method: sft\nmodel: {model_name_or_path: base}\n" + data,
        "e_compare": "method: evaluate\nevaluation: {runs: [runs/task/d_sft, runs/task/a_policy]}\n" + data,
    }
    for name, text in stages.items():
        (tmp_path / f"recipes/task/{name}.yaml").write_text(text)
    recipes = collect([tmp_path / "recipes/task"], ["training.seed=3", "training.report_to=none"])
    assert [recipe.source.stem for recipe in recipes] == ["d_sft", "c_pairs", "b_reward", "a_policy", "e_compare"]
    assert [recipe.training.get("seed") for recipe in recipes] == [3, 3, 3, 3, None]
    assert [recipe.overrides for recipe in recipes][-1] == ()
