"""Every shipped recipe: its head, its keys, its arithmetic, and two steps of it with a tiny model."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from lastmile_trl import cli, rewards
from lastmile_trl.data import BEGINNING, template_columns
from lastmile_trl.evaluation.acceptance import check_require
from lastmile_trl.launch import Launch
from lastmile_trl.preferences.negatives import check_categories
from lastmile_trl.preflight import prompts_per_generation
from lastmile_trl.recipe import IN_ONE_PROCESS, METHODS, RL, Recipe, collect, load, shipped
from lastmile_trl.train import TRAINERS, run

from .conftest import sentence, write_jsonl

ROOT = shipped("recipes")
FILES = sorted(ROOT.rglob("*.yaml"))
TRAINING = [path for path in FILES if load(path).method in TRAINERS]
RUNS = {str(load(path).run): path for path in FILES}


def name(path: Path) -> str:
    """`samsum/grpo`"""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def head(path: Path) -> dict[str, str]:
    """The labelled lines a recipe begins with: `# Run: lastmile ...` is {"Run": "lastmile ..."}."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    return dict(match.groups() for line in comment[1:] if (match := re.fullmatch(r"# ([A-Z][A-Za-z ]*): +(.+)", line)))


BASELINES = {"ppo_plus_plus": "ppo", "drpo_qlora": "ppo_qlora", "aggrevated": "grpo"}  # the same without a guide
GPU = [path for path in TRAINING if path.parent.name not in ("quickstart", "last_mile_tiny")]
MANY = [path for path in GPU if "Many GPUs" in head(path)]
ADAPTERS = [path for path in TRAINING if load(path).method in RL and load(path).model.get("use_peft")]
GUIDED = {path: path.with_name(f"{BASELINES[path.stem]}.yaml") for path in TRAINING if load(path).guidance}
every_recipe = pytest.mark.parametrize("path", FILES, ids=name)
every_training = pytest.mark.parametrize("path", TRAINING, ids=name)
every_guided = pytest.mark.parametrize("path", GUIDED, ids=name)


def test_the_walk_sees_every_recipe():
    folders = {
        "commongen": 4,
        "e2e": 3,
        "imdb": 4,
        "last_mile": 4,
        "last_mile_tiny": 4,
        "local_jsonl": 2,
        "preference": 6,
        "preference_local": 6,
        "quickstart": 4,
        "samsum": 4,
        "tldr": 5,
        "tldr_7b": 2,
        "xsum": 2,
    }
    assert {folder.name: len(list(folder.iterdir())) for folder in ROOT.iterdir()} == folders
    assert [len(files) for files in (FILES, TRAINING, GPU, MANY, ADAPTERS)] == [50, 42, 36, 34, 17]


# --- heads ---------------------------------------------------------------------------------------------------------


def command(line: str) -> tuple[list[Recipe], Launch]:
    """What a command of a head would start, from the words the command line takes."""
    program, *words = shlex.split(line)
    assert program == "lastmile"
    parsed = cli._parser().parse_args(words)
    assert parsed.call is cli._run
    names, overrides = cli._split(parsed.recipe)
    return collect(names, overrides), Launch.choose(parsed.accelerate, parsed.num_processes)


def needed(recipe: Recipe) -> set[str]:
    """The runs of other recipes that one needs, and those that these need."""
    own = {need for need in recipe.needs if need in RUNS}
    return own.union(*(needed(load(RUNS[run])) for run in own))


@every_recipe
def test_the_first_line_says_what_it_is_for(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# [A-Z].{20,}\.", first)
    assert len(first) <= 120


@every_recipe
def test_the_run_line_starts_this_recipe_last_and_what_it_needs_first(path):
    recipes, launch = command(head(path)["Run"])
    assert recipes[-1].source == path
    assert recipes[-1].values == load(path).values
    if path.parent.name != "quickstart":  # whose comparison may leave PPO out
        assert {str(recipe.run) for recipe in recipes[:-1]} == needed(recipes[-1])
    if recipes[-1].method in RL:
        assert prompts_per_generation(recipes[-1], launch.processes) > 0  # raises where the batches do not divide


@every_recipe
def test_the_change_line_changes_it(path):
    (recipe,), launch = command(head(path)["Change"])
    assert recipe.source == path
    assert recipe.values != load(path).values
    rewards.build(recipe.rewards)
    if recipe.method in RL:
        assert prompts_per_generation(recipe, launch.processes) > 0


@pytest.mark.parametrize("path", MANY, ids=name)
def test_many_gpus_take_the_batch_of_one(path):
    one = load(path)
    (many,), launch = command(head(path)["Many GPUs"])
    assert many.source == path
    assert launch.processes > 1

    def batch(recipe, processes):
        said = recipe.training
        return processes * said["per_device_train_batch_size"] * said["gradient_accumulation_steps"]

    assert batch(many, launch.processes) == batch(one, 1)
    if many.method in RL:
        assert prompts_per_generation(many, launch.processes) == prompts_per_generation(one, 1)


@pytest.mark.parametrize("path", GPU, ids=name)
def test_the_head_names_the_hardware_and_how_to_track_a_run(path):
    assert re.search(r"\d+ GB GPUs?, by arithmetic; not yet run on ", head(path)["Sized for"])
    (tracked,), _ = command(head(path)["Track"])
    assert tracked.training["report_to"] == "trackio"


@every_guided
def test_the_compare_line_holds_a_guided_run_against_its_baseline(path):
    words = shlex.split(head(path)["Compare"])
    own, baseline = str(load(path).run), str(load(GUIDED[path]).run)
    if words[:2] == ["lastmile", "run"]:
        recipes, _ = command(head(path)["Compare"])
        assert recipes[-1].method == "evaluate" and {own, baseline} <= set(recipes[-1].evaluation.runs)
        return
    parsed = cli._parser().parse_args(words[1:])
    assert parsed.call is cli._evaluate
    assert [str(run) for run in parsed.run] == [baseline, own]
    assert load(parsed.data).source == GUIDED[path]


# --- contents ------------------------------------------------------------------------------------------------------


@every_recipe
def test_it_writes_to_the_folder_of_its_name(path):
    assert load(path).values["training"]["output_dir"] == f"runs/{name(path)}"


@every_recipe
def test_a_task_has_one_data_section(path):
    recipe = load(path)
    [sft] = [load(other) for other in path.parent.glob("*.yaml") if load(other).method == "sft"]
    data, first = recipe.values["data"], sft.values["data"]
    if data["path"] in RUNS:  # pairs that another stage made of the same rows
        shared = ("prompt", "references", "shorten", "max_prompt_tokens", "max_reference_tokens")
        data, first = ({key: section.get(key) for key in shared} for section in (data, first))
    assert data == first
    assert recipe.evaluation.max_new_tokens == sft.evaluation.max_new_tokens
    if recipe.method not in ("sft", "evaluate"):
        assert recipe.model["model_name_or_path"] == str(sft.run)
    if recipe.method in TRAINERS:
        assert recipe.model.get("use_peft", False) == sft.model.get("use_peft", False)
        four_bits = path.stem.endswith("_qlora") or sft.model.get("load_in_4bit", False)
        assert recipe.model.get("load_in_4bit", False) == four_bits
    if recipe.method in RL:
        assert recipe.training["max_completion_length"] == recipe.evaluation.max_new_tokens


@pytest.mark.parametrize("path", [path for path in TRAINING if load(path).method in RL], ids=name)
def test_its_defaults_are_those_that_the_experiments_speak_for(path):
    """docs/choosing.md, "What the recipes do with it"."""
    recipe = load(path)
    named = {key for reward in recipe.rewards for key in (reward if isinstance(reward, dict) else [reward])}
    assert named & {"length", "repetition"}
    assert recipe.training["beta"] <= 0.05
    assert recipe.training.get("num_generations", 1) in ((1,) if recipe.method == "ppo" else (4, 8))
    assert recipe.training.get("critic", "shared") == "shared"
    if recipe.model.get("use_peft"):
        [sft] = [load(other) for other in path.parent.glob("*.yaml") if load(other).method == "sft"]
        assert sft.model["lora_target_modules"] == ["all-linear"] and sft.model["lora_r"] >= 16


@every_guided
def test_a_guided_recipe_is_its_baseline_with_a_guide(path):
    guided, baseline = (load(each).values for each in (path, GUIDED[path]))
    assert {**guided, "guidance": None, "training": None, "evaluation": None} == {
        **baseline, "guidance": None, "training": None, "evaluation": None,
    }  # fmt: skip
    assert {**guided["training"], "output_dir": baseline["training"]["output_dir"]} == baseline["training"]
    metrics = {"metrics": []}  # where the baseline's are many lines, a guided recipe compares with them
    assert guided["evaluation"] | metrics == baseline["evaluation"] | metrics


@every_training
def test_trl_takes_its_sections(path, tmp_path):
    from trl import ModelConfig, get_peft_config

    recipe = load(path)
    module, kind = METHODS[recipe.method].split(":")
    overrides = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    config = getattr(importlib.import_module(module), kind)(**{**recipe.training, **overrides})
    assert config.learning_rate == recipe.training["learning_rate"]
    model = ModelConfig(**recipe.model)
    if "lora_target_modules" in recipe.model:
        assert get_peft_config(model).target_modules == "all-linear"
    rewards.build(recipe.evaluation.metrics)
    if recipe.preferences.negatives:
        check_categories(recipe.preferences.negatives)
        check_require(recipe.preferences.require, recipe.preferences.negatives)
    if recipe.method in RL and recipe.training.get("save_strategy") != "no":
        # A checkpoint within a round of generation would resume with other completions.
        steps = config.steps_per_generation * config.num_iterations / config.gradient_accumulation_steps
        assert config.save_steps % steps == 0


# --- two steps -----------------------------------------------------------------------------------------------------


def tiny_rows(recipe: Recipe, count: int, first: int = 0) -> list[dict]:
    """Rows with the columns that a recipe names."""
    columns = [column for column in template_columns(recipe.data) if column != BEGINNING]
    group, words = recipe.data.group_by or "id", 5 + (recipe.data.split_at or 0)
    return [
        {
            group: str(number),
            **{c: ["cat", f"dog{number}"] if c == "concepts" else sentence(number, 12) for c in columns},
            recipe.data.references: sentence(number, words),
            "rejected": sentence(number + 1, 6),
        }
        for number in range(first, first + count)
    ]


SMALL = {
    "data": {"max_rows": 24, "held_out": 8},
    "evaluation": {"every": 1, "rows": 4, "max_new_tokens": 8},
}
TWO_STEPS = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
}
KEEP_ALL = {"max_perplexity": 1e9, "lower_quantile": None, "balance": None, "length_ratio": None}


@pytest.fixture(scope="module")
def tiny_classifier(tmp_path_factory, tokenizer):
    """A GPT-2 that reads the tests' words, and has the labels that recipes name."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = GPT2Config(vocab_size=384, n_embd=32, n_layer=1, n_head=2, n_positions=256, id2label=labels)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, tiny_model_folder, tiny_classifier):
    """Run two steps of a recipe, once, after two steps of all that it needs."""
    folder = tmp_path_factory.mktemp("recipes")
    done: dict[Path, Recipe] = {}

    def two_steps(path: Path) -> Recipe:
        if path in done:
            return done[path]
        recipe = load(path)
        for run_folder in recipe.needs:
            if run_folder in RUNS:
                two_steps(RUNS[run_folder])
        # all runs go to, and are looked for in, the test's folder
        values = json.loads(json.dumps(recipe.values).replace('"runs/', f'"{folder}/runs/'))
        for entry in [*values.get("rewards", []), *values["evaluation"].get("metrics", [])]:
            if "classifier" in entry:
                entry["classifier"]["model"] = tiny_classifier
        for section, small in SMALL.items():
            values[section] = {**values.get(section, {}), **small}
        if recipe.method in TRAINERS:
            values["training"] |= TWO_STEPS
            if recipe.model["model_name_or_path"] not in RUNS:
                values["model"]["model_name_or_path"] = str(tiny_model_folder)
        if recipe.method in RL:
            values["training"]["max_completion_length"] = 8
        if recipe.method == "ppo":
            values["training"]["num_iterations"] = 1  # every step has completions to log
        if recipe.method == "reward":
            values["preferences"]["require"] = {}
            if recipe.preferences.negatives:  # the others are longer than the model can read
                values["preferences"]["negatives"] = {"truncated": 1}
        if recipe.method == "pairs":
            values["preferences"]["filter"] |= KEEP_ALL
        if recipe.method == "evaluate":
            del values["evaluation"]["every"]
        if recipe.data.path.startswith("synthetic:"):
            values["data"]["max_prompt_tokens"] = 96  # of the tests' tokenizer, which has few of the words
        elif recipe.data.path not in RUNS:
            rows = folder / "data" / path.parent.name
            rows.mkdir(parents=True, exist_ok=True)
            train = write_jsonl(rows / "train.jsonl", tiny_rows(recipe, 24))
            if recipe.data.eval_split:
                write_jsonl(rows / f"{recipe.data.eval_split}.jsonl", tiny_rows(recipe, 8, first=24))
            values["data"] |= {"path": str(rows if recipe.data.eval_split else train), "name": None, "revision": None}
        done[path] = Recipe(path, values)
        run(done[path])
        return done[path]

    return two_steps


EVALUATED = {"evaluation.json", "evaluation.md", "report.html"}


@pytest.mark.parametrize("path", [path for path in FILES if load(path).method in IN_ONE_PROCESS], ids=name)
def test_a_stage_that_trains_nothing_runs_too(path, two_steps):
    recipe = two_steps(path)
    kept = {"pairs": {"train.jsonl", "validation.jsonl", "pairs.json"}, "evaluate": EVALUATED}
    assert kept[recipe.method] <= {file.name for file in recipe.run.iterdir()}


@every_training
def test_two_steps_fill_the_run_folder(path, two_steps):
    recipe = two_steps(path)
    files = {file.name for file in recipe.run.iterdir()}
    assert {"recipe.yaml", "environment.json", "history.jsonl", "README.md"} | EVALUATED <= files
    weights = "adapter_model.safetensors" if recipe.model.get("use_peft") else "model.safetensors"
    assert weights in files

    history = [json.loads(line) for line in (recipe.run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row for row in history if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    if recipe.method == "reward":
        assert len([row for row in history if "eval_accuracy" in row]) == 2
    else:
        measured = rewards.build(recipe.evaluation.metrics)[0].name
        assert all(f"eval_{measured}" in row and "eval_words" in row for row in steps)
    names = [reward.name for reward in rewards.build(recipe.rewards)]
    for row in steps:
        assert ("reward" in row) == (recipe.method in RL)
        assert all(f"rewards/{reward}/mean" in row for reward in names)

    evaluation = json.loads((recipe.run / "evaluation.json").read_text(encoding="utf-8"))
    if recipe.method == "reward":
        assert evaluation["all"]["accuracy"]["rows"] > 0
    else:
        assert evaluation["rows"] == 4
    results = evaluation["samples" if recipe.method == "reward" else "results"]
    assert {result["decoding"] for result in results} == {"greedy", "sampled"}


@pytest.mark.parametrize("path", ADAPTERS, ids=name)
def test_an_rl_stage_goes_on_with_the_adapter_of_sft(path, two_steps):
    recipe = two_steps(path)
    start = json.loads((Path(recipe.starts_from[0]) / "adapter_config.json").read_text(encoding="utf-8"))
    result = json.loads((recipe.run / "adapter_config.json").read_text(encoding="utf-8"))
    assert result["base_model_name_or_path"] == start["base_model_name_or_path"]
    assert (result["r"], sorted(result["target_modules"])) == (16, sorted(start["target_modules"]))


@every_guided
def test_a_guide_takes_part_in_the_roll_outs(path, two_steps):
    recipe = two_steps(path)
    history = [json.loads(line) for line in (recipe.run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    first, second = (row for row in history if "guidance/share" in row)
    assert first["guidance/probability"] == recipe.guidance.probability and first["guidance/share"] > 0
    assert second["step"] == 2
