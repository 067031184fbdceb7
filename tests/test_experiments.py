"""What the pages of experiments show is what was measured, and every arm is a recipe that can be run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from .conftest import script

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import lab  # noqa: E402
import pages  # noqa: E402
import quick  # noqa: E402
from tables import signed  # noqa: E402

MODELS = {
    name: yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())
    for name in ("models", "models_gpu", "models_quick")
}


quickstart = script("experiments/quickstart/run.py")


@pytest.mark.parametrize("page", ["README.md", "experiments/quickstart/README.md"])
def test_the_tables_are_those_of_the_stored_results(page):
    text, results = (ROOT / page).read_text(), quickstart.stored()
    assert sorted(results) == [0, 1, 2]
    assert quickstart.table(results[0]) in text
    if page.startswith("experiments"):
        assert quickstart.seeds_table(results) in text


def test_rl_raw_beat_sft_raw_on_held_out_rouge_for_every_seed():
    for seed in (0, 1, 2):
        grpo = [entry for entry in quickstart.stored()[seed]["results"] if entry["run"] == "grpo"]
        assert [entry["decoding"] for entry in grpo] == ["greedy", "sampled"]
        for entry in grpo:
            assert entry["difference"]["rouge/rougeL"]["low"] > 0, seed
            assert entry["difference"]["repetition"]["low"] > 0, seed


@pytest.mark.parametrize("name", quick.NAMES)
def test_a_page_shows_the_stored_results(name):
    experiment = quick.experiment(name)
    page = (experiment.folder / "README.md").read_text()
    for mark, text in pages.marks(experiment).items():
        assert f"<!-- {mark} -->\n{text}<!-- end -->" in page, f"python experiments/{name}/run.py"
    for file, drawing in pages.plots(experiment).items():
        assert (experiment.folder / file).read_text() == drawing, f"python experiments/{name}/run.py"
        assert f"]({file})" in page


def test_the_index_shows_every_claim():
    text = (EXPERIMENTS / "README.md").read_text()
    for name in quick.NAMES:
        experiment = quick.experiment(name)
        assert f"<!-- {name} -->\n{pages.summary(experiment)}<!-- end -->" in text, f"python experiments/{name}/run.py"


@pytest.mark.parametrize("name", quick.NAMES)
def test_results_are_of_three_seeds_at_least_and_hold_every_arm(name):
    experiment = quick.experiment(name)
    for task in experiment.tasks:
        results = experiment.stored(task)
        assert len(results) >= 3 or not results, task
        writers = {arm for arm, found in experiment.arms_of(task).items() if found.writes}
        for kept in results.values():
            assert writers <= set(kept["rows"]), task
    assert experiment.stored("notes"), "what a quick run is held against"


@pytest.mark.parametrize("name", quick.NAMES)
def test_a_quick_run_is_asked_for_signs_that_the_stored_intervals_have(name):
    experiment = quick.experiment(name)
    task, arms = quick.TASK, experiment.arms_of("notes", quick=True)
    found = {claim.key: (claim, said) for claim, said in pages.made(experiment, task, experiment.stored("notes"))}
    elsewhere = set(experiment.arms) - set(experiment.arms_of("notes"))
    assert len(found) == sum(not {claim.arm, *claim.rivals} & elsewhere for claim in experiment.claims)
    asked = [(claim, said) for claim, said in found.values() if claim.quick]
    assert asked
    for claim, said in asked:
        assert said["low"] > 0 or said["high"] < 0, claim.said
        assert {claim.arm, *claim.rivals} <= {*arms, *experiment.beside}, claim.said


def test_an_arm_of_the_same_name_is_the_same_everywhere():
    """They share a run."""
    seen = {}
    for name in quick.NAMES:
        for arm, found in quick.experiment(name).arms.items():
            same = replace(found, title="", quick=False, make=None, tasks=())
            assert seen.setdefault(arm, same) == same, arm


@pytest.mark.parametrize("models", MODELS)
@pytest.mark.parametrize("name", quick.NAMES)
def test_every_arm_is_a_recipe(name, models, tmp_path, monkeypatch):
    from lastmile_trl.recipe import load

    monkeypatch.chdir(tmp_path)
    experiment = quick.experiment(name)
    for task in experiment.tasks:
        folder = tmp_path / models / task
        (folder / "base").mkdir(parents=True)
        lab.Task(task).prepare(None, folder, MODELS[models])
        arms = experiment.arms_of(task)
        for arm in arms.values():
            if arm.stage:
                changes = [lab.filled(change, dict.fromkeys(arms, "runs/x")) for change in arm.changes]
                recipe = load(folder / f"{arm.stage}.yaml", ["model.model_name_or_path=runs/x", *changes])
                method = yaml.safe_load((folder / f"{arm.stage}.yaml").read_text())["method"]
                assert recipe.method == next((c.removeprefix("method=") for c in changes if "method=" in c), method)


def test_another_models_file_says_the_rate_of_every_stage_that_trains():
    """Else a large model would train at the rate of a tiny one."""
    stages = {file.stem for file in (EXPERIMENTS / "stages").glob("*.yaml")}
    said = {stage for stage, values in MODELS["models_gpu"]["stages"].items() if "training.learning_rate" in values}
    assert said == stages - {"pairs"}


def test_facts_are_rewarded_as_they_are_measured(tmp_path):
    recipe = lab.Task("e2e").recipe("grpo_facts", tmp_path, MODELS["models"])
    rewarded, measured = (
        next(entry["slots"] for entry in entries if isinstance(entry, dict) and "slots" in entry)
        for entries in (recipe["rewards"], recipe["evaluation"]["metrics"])
    )
    assert rewarded == {**measured, "weight": 1.0} and len(rewarded["phrases"]) > 1


def test_the_usual_kind_of_kept_pairs():
    filters = [{"categories": {"a": {"kept": 1}, "b": {"kept": kept}}} for kept in (2, 5)]
    assert pages.usual_kind(filters) == "b, 78%"  # 7 of 9
    assert pages.usual_kind([{"categories": {"pairs": {"kept": 9}}}]) == ""


def test_a_rate_is_times_that_of_the_stage(tmp_path, monkeypatch):
    said = []

    def told(*words):
        said.extend(words)
        raise KeyboardInterrupt

    monkeypatch.setattr(lab, "lastmile", told)
    task, arm = lab.Task("notes"), lab.Arm("GRPO at three times the rate", "grpo", start=None, rate=3)
    task.prepare(None, tmp_path, {"start": "tiny", "stages": {"grpo": {"training.learning_rate": 2.0e-6}}})
    with pytest.raises(KeyboardInterrupt):
        lab.Experiment(Path("x"), {"a": arm}, []).run(task, 0, tmp_path)
    assert said[-1] == "training.learning_rate=6e-06"


def test_files_are_read_and_the_model_has_their_words(tmp_path):
    from transformers import AutoTokenizer

    rows = [{"prompt": f"name[Blue Spice {n}]", "references": [f"Blue Spice {n} is a pub."]} for n in range(40)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lab.Task("e2e").prepare(tmp_path, tmp_path / "made", MODELS["models"])
    first = json.loads((tmp_path / "made/data/train.jsonl").read_text().splitlines()[0])
    assert first == {"facts": "name[Blue Spice 0]", "references": ["Blue Spice 0 is a pub."]}
    words = AutoTokenizer.from_pretrained(tmp_path / "made/base")
    assert words.decode(words("Spice is a pub")["input_ids"], skip_special_tokens=True) == "Spice is a pub"
    recipe = yaml.safe_load((tmp_path / "made/sft.yaml").read_text())
    assert recipe["model"] == {"model_name_or_path": str(tmp_path / "made/base")}
    [slots] = [metric["slots"] for metric in recipe["evaluation"]["metrics"] if isinstance(metric, dict)]
    assert (
        "kid friendly"
        in slots["phrases"]["familyFriendly"]["yes" if "yes" in slots["phrases"]["familyFriendly"] else True]
    )


def test_a_task_of_files_asks_for_them(tmp_path):
    with pytest.raises(SystemExit, match="e2e needs its train.jsonl and validation.jsonl: e2e=FOLDER"):
        lab.Task("e2e").prepare(None, tmp_path, MODELS["models"])


KEPT = {
    seed: {
        "rows": {
            "a": {"greedy": {"m": [0.0, 1.0, None]}},
            "b": {"greedy": {"m": [1.0, 1.0 + shift, 0.5]}},
        },
        "judged": {
            "r": {
                "all": {"accuracy": {"mean": 0.9 + shift}},
                "categories": {"hallucinated": {"accuracy": {"mean": 0.7}}},
                "length_correlation": 0.25,
                "samples": [{"decoding": "sampled", "correlation": {"metric": -0.5}}],
            }
        },
    }
    for seed, shift in ((0, 0.0), (1, 0.5))
}


def test_a_difference_is_over_rows_and_seeds():
    found = pages.difference(KEPT, "b", ["a"], "greedy", "m")
    assert found["by_seed"] == [0.5, 0.75]  # (1 + 0) / 2 and (1 + 0.5) / 2: the row without a value counts for neither
    assert found["mean"] == pytest.approx(0.625)
    assert found["low"] < 0 < found["high"]
    halfway = pages.difference(KEPT, "b", ["a", "b"], "greedy", "m")
    assert halfway["mean"] == pytest.approx(0.3125)


def test_a_reward_model_differs_between_seeds_alone():
    one = pages.judged(KEPT[0]["judged"]["r"], "accuracy"), pages.judged(KEPT[1]["judged"]["r"], "accuracy")
    assert one == (0.9, 1.4)
    assert pages.judged(KEPT[0]["judged"]["r"], "sampled_correlation") == -0.5
    assert pages.judged(KEPT[0]["judged"]["r"], "hallucinated") == 0.7
    assert pages.judged({"categories": {"pairs": {"accuracy": {"mean": 0.7}}}}, "hallucinated") is None
    two = {seed: {"judged": {"r": kept["judged"]["r"], "s": KEPT[0]["judged"]["r"]}} for seed, kept in KEPT.items()}
    found = pages.difference(two, "r", ["s"], "greedy", "accuracy")
    assert found["mean"] == pytest.approx(0.25)
    assert found["high"] - found["mean"] == pytest.approx(12.706 * 0.25, rel=1e-3)  # Student's t of two seeds


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"mean": 0.15, "low": 0.1, "high": 0.2}, "holds"),
        ({"mean": -0.15, "low": -0.2, "high": -0.1}, "does not hold: the opposite is shown"),
        ({"mean": 0.05, "low": -0.1, "high": 0.2}, "is not decided at this size"),
        (
            {"mean": 0.15, "low": 0.1, "high": 0.2, "p_adjusted": 0.06},
            "is not decided among all main claims (p 0.06)",
        ),
        ({"mean": 0.15, "low": -0.1, "high": 0.2, "p_adjusted": 0.6}, "is not decided at this size"),
        ({"mean": -0.15, "low": -0.2, "high": 0.1, "p_adjusted": 0.04}, "does not hold: the opposite is shown"),
        ({"mean": 0.15, "low": 0.1, "high": 0.2, "by_seed": [0.1, 0.2]}, "is not judged by fewer than 3 seeds"),
    ],
)
def test_what_is_said_of_a_claim(found, said):
    assert pages.decided({"by_seed": [0.1] * 3, **found}) == said


def test_the_p_of_main_claims_is_corrected_for_their_number(monkeypatch):
    import numpy as np

    random = np.random.default_rng(0)
    drawn = {
        label: [random.normal(shift, 0.1, 50).tolist() for _ in range(3)] for label, shift in (("a", 0), ("b", 0.4))
    }
    results = {
        seed: {"rows": {label: {"greedy": {"rouge/rougeL": values[seed]}} for label, values in drawn.items()}}
        for seed in range(3)
    }
    claims = [
        lab.Claim("b > a", "b", "a", main=True),
        lab.Claim("a > b", "a", "b", main=True),
        lab.Claim("b", "b", "a"),
    ]
    tried = lab.Experiment(Path("x"), {}, claims)
    first, second, besides = [found for _, found in pages.made(tried, lab.Task("notes"), results)]
    assert first["p_adjusted"] == pytest.approx(2 * first["p"]) and second["p_adjusted"] == pytest.approx(
        2 * second["p"]
    )
    assert besides["p_adjusted"] is None and besides["mean"] == first["mean"] == pytest.approx(0.4, abs=0.05)
    assert list(pages.made(tried, lab.Task("notes"), {})) == []


def test_a_plot_has_a_dot_and_a_line_for_each_difference():
    found = {"mean": 0.1, "low": -0.1, "high": 0.3}
    drawing = pages.forest("a < b", {"greedy": {"one": found, "two": {**found, "low": 0.05}}})
    assert drawing.count("<circle") == 2 and drawing.count('class="shown"') == 2 and drawing.count('class="open"') == 2
    assert "a &lt; b" in drawing
    left, width = pages.LEFT, pages.WIDTH
    assert f'<line class="zero" x1="{left + width / 4}"' in drawing  # 0 is a quarter of the way from -0.1 to 0.3
    assert f'cx="{left + width / 2}"' in drawing


def test_a_claim_that_comes_out_the_other_way_is_told(monkeypatch):
    claim = lab.Claim("b beats a", "b", "a", metric="m", quick=True)
    tried = lab.Experiment(Path("x"), {}, [claim])
    monkeypatch.setattr(lab.Experiment, "stored", lambda self, task: KEPT)
    again = {"rows": {"a": {"greedy": {"m": [1.0, 1.0]}}, "b": {"greedy": {"m": [0.0, 0.5]}}}}
    [(same, line)] = quick.lines(tried, again)
    assert not same and line.startswith("THE OTHER WAY ROUND: b beats a: -0.750 now")
    [(same, line)] = quick.lines(tried, KEPT[0])
    stored = pages.difference(KEPT, "b", ["a"], "greedy", "m")
    assert same and line == f"as stored: b beats a: +0.500 now, {signed(stored)} stored"


def test_a_quick_run_keeps_what_it_found(tmp_path, monkeypatch, capsys):
    claim = lab.Claim("b beats a", "b", "a", metric="m", quick=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quick, "NAMES", ("one", "two"))
    monkeypatch.setattr(quick, "experiment", lambda name: lab.Experiment(Path(name), {}, [claim]))
    monkeypatch.setattr(lab.Experiment, "stored", lambda self, task: KEPT)
    runs = {"one": KEPT[0], "two": {"rows": {label: KEPT[0]["rows"][other] for label, other in ("ab", "ba")}}}
    monkeypatch.setattr(lab.Experiment, "run", lambda self, *words, quick: runs[self.name] if quick else None)
    monkeypatch.setattr(sys, "argv", ["quick.py", "--json", "kept.json"])
    assert quick.main() == 1 and "\n1 of 2 as stored, in 0 minutes." in capsys.readouterr().out
    kept = json.loads(Path("kept.json").read_text())
    assert kept["minutes"] < 1 and [line[:10] for line in kept["lines"]] == ["as stored:", "THE OTHER "]


@pytest.mark.slow
def test_an_experiment_runs(tmp_path, monkeypatch, capsys):
    """Real stages with next to no training: what a run of a whole experiment does, in small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = {"training.max_steps": 2, "evaluation.rows": 4}
    models = {"start": "tiny", "stages": {stage: few for stage in ("sft", "grpo", "reward")}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(models))
    whole = quick.experiment("rl_or_sft")
    arms = {name: whole.arms[name] for name in ("sft", "grpo", "reward")}
    tried = replace(whole, folder=tmp_path, arms=arms)
    tried.main(["notes", "0", "--models", str(tmp_path / "small.yaml")])
    kept = json.loads((tmp_path / "results_small" / "notes-0.json").read_text())
    assert set(kept["rows"]) >= {"sft", "sft, post-processed", "grpo", "best_of_8", "oracle_best_of_8"}
    assert set(kept["judged"]) == {"reward"} and set(kept["seconds"]) == set(arms)
    assert [len(values) for values in kept["rows"]["grpo"]["greedy"].values()] == [4] * 5
    assert set(kept["rows"]["sft at 0.5"]) == {"sampled"}
    assert kept["rows"]["sft at 0.5"]["sampled"] != kept["rows"]["sft"]["sampled"]
    shown = capsys.readouterr().out
    assert "| GRPO |" in shown and "GRPO raw beats SFT raw (ROUGE-L, greedy)" in shown


@pytest.mark.slow
def test_a_filter_is_held_against_as_many_pairs_at_random(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = {"training.max_steps": 2, "evaluation.rows": 4}
    models = {"start": "tiny", "stages": {"sft": few, "reward": few, "pairs": {"data.max_rows": 40}}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(models))
    whole = quick.experiment("perplexity")
    names = ("sft", "pairs", "kept_0.95", "random_0.95", "reward_random_0.95")
    tried = replace(whole, folder=tmp_path, arms={name: whole.arms[name] for name in names})
    tried.main(["notes", "0", "--models", str(tmp_path / "small.yaml")])
    kept = json.loads((tmp_path / "results_small" / "notes-0.json").read_text())
    root = tmp_path / lab.RUNS / "small" / "notes" / "seed-0"
    every, filtered, drawn = (set((root / name / "train.jsonl").read_text().splitlines()) for name in names[1:4])
    assert len({(root / name / "validation.jsonl").read_text() for name in names[1:4]}) == 1
    assert 0 < len(filtered) == len(drawn) < len(every) and drawn < every and drawn != filtered
    assert kept["pairs"]["kept_0.95"]["filter"]["all"]["kept"] == len(filtered)
    assert set(kept["judged"]) == {"reward_random_0.95"}
