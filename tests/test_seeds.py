"""Runs are told to be one recipe with several seeds by what their folders hold."""

import pytest
import yaml

from lastmile_trl.seeds import common_name, seeds_of

SFT = {
    "method": "sft",
    "model": {"model_name_or_path": "some/model"},
    "data": {"path": "rows.jsonl", "prompt": "{source} =>" + " a long prompt" * 400, "references": "target"},
    "training": {"learning_rate": 1e-5},
}
GRPO = SFT | {"method": "grpo", "rewards": ["rouge", {"length": {"weight": 0.5}}]}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Writes the recipe of a run folder, and returns the folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, values, seed=None, start=None, **more):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        training = values["training"] | {"output_dir": f"runs/{name}"} | ({} if seed is None else {"seed": seed})
        model = {"model_name_or_path": f"runs/{start}"} if start else values["model"]
        recipe = values | more | {"training": training | more.get("training", {}), "model": model}
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return run

    return write


def test_runs_alike_but_for_the_seed_and_their_start_s_are_one_recipe(stored):
    runs = {}
    for seed in (2, 0, 1):
        runs[f"sft-{seed}"] = stored(f"sft-{seed}", SFT, seed)
        runs[f"grpo-{seed}"] = stored(f"grpo-{seed}", GRPO, seed, start=f"sft-{seed}")
    runs["alone"] = stored("alone", GRPO, 0, start="sft-0", rewards=["length"])
    runs["no run"] = runs["sft-0"].parent
    assert seeds_of(runs) == {"sft": ["sft-0", "sft-1", "sft-2"], "grpo": ["grpo-0", "grpo-1", "grpo-2"]}


def test_seeds_may_be_those_of_the_starts_alone(stored):
    for seed in (0, 1):
        stored(f"sft-{seed}", SFT, seed)
    runs = {f"grpo-{seed}": stored(f"grpo-{seed}", GRPO, start=f"sft-{seed}") for seed in (0, 1)}
    assert seeds_of(runs) == {"grpo": ["grpo-0", "grpo-1"]}


@pytest.mark.parametrize(
    "other",
    [
        {"training": {"learning_rate": 2e-5}},
        {"rewards": ["rouge", {"length": {"weight": 0.6}}]},
        {"data": SFT["data"] | {"prompt": "another {source} =>" + " a long prompt" * 400}},
        {"guidance": {"mode": "drpo"}},
    ],
)
def test_another_recipe_is_another_recipe(stored, other):
    runs = {"a": stored("a", GRPO, 0), "b": stored("b", GRPO, 1, **other)}
    assert seeds_of(runs) == {}


def test_another_start_is_another_recipe(stored):
    stored("sft", SFT, 0), stored("sft_more", SFT, 1, training={"max_steps": 9})
    runs = {"a": stored("a", GRPO, 0, start="sft"), "b": stored("b", GRPO, 1, start="sft_more")}
    assert seeds_of(runs) == {}
    assert seeds_of({"c": stored("c", GRPO, 2, start="sft"), **runs}) == {"a": ["a", "c"]}


def test_what_no_weight_depends_on_may_differ(stored):
    runs = {
        f"s{seed}": stored(f"s{seed}", GRPO, seed, evaluation={"rows": 10 + seed}, hub={"repo": f"me/{seed}"})
        for seed in (0, 1)
    }
    assert seeds_of(runs) == {"s0": ["s0", "s1"]}


def test_a_second_run_of_a_seed_is_left_out(stored):
    runs = {name: stored(name, GRPO, seed) for name, seed in {"a": 0, "again": 0, "b": 1}.items()}
    assert seeds_of(runs) == {"a": ["a", "b"]}
    assert seeds_of({name: run for name, run in runs.items() if name != "b"}) == {}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ppo-length-0", "ppo-length-1", "ppo-length-10"], "ppo-length"),
        (["grpo-10", "grpo-11"], "grpo"),
        (["seed-0/grpo", "seed-1/grpo"], "grpo"),
        (["a/seed0", "a/seed1"], "a"),
        (["grpo", "grpo_seed1"], "grpo"),
        (["grpo_s0", "grpo_s1"], "grpo"),
        (["gpt2", "gpt2-1"], "gpt2"),
        (["one", "two"], "one"),
    ],
)
def test_names(names, expected):
    assert common_name(names) == expected
