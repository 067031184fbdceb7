"""`lastmile pairs` and `lastmile filter` on recipes of other methods, and what `run` says of such stages."""

import json

import pytest
import yaml

from lastmile_trl import cli
from tests.conftest import sentence, write_jsonl


@pytest.fixture
def folder(tmp_path, tiny_model_folder, monkeypatch):
    """A folder to work in, with a DPO recipe on negatives of 40 rows."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [{"source": sentence(n, 12), "target": sentence(n, 5)} for n in range(40)])
    recipe = {
        "method": "dpo",
        "model": {"model_name_or_path": str(tiny_model_folder)},
        "data": {"path": "rows.jsonl", "prompt": "{source} =>", "references": "target", "held_out": 8},
        "preferences": {"negatives": {"truncated": 1, "repetitive": 0.5}},
        "training": {"output_dir": "runs/task/dpo", "seed": 3, "max_steps": 1, "per_device_train_batch_size": 4},
        "evaluation": {"max_new_tokens": 8},
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def lastmile(*words):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    return left.value.code


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_pairs_of_any_recipe_to_look_at(folder, capsys):
    assert lastmile("pairs", "dpo.yaml") == 0
    said = capsys.readouterr().out
    assert "truncated" in said and "  rejected  " in said and "Pairs: runs/task/dpo-pairs" in said
    made = rows(folder / "runs/task/dpo-pairs/train.jsonl")
    assert [row["category"] for row in made].count("truncated") == 32
    assert len(rows(folder / "runs/task/dpo-pairs/validation.jsonl")) > 8
    assert lastmile("pairs", "dpo.yaml", "preferences.negatives={shuffled: 1}", "--output", "mine") == 0
    assert {row["category"] for row in rows(folder / "mine/train.jsonl")} == {"shuffled"}


def test_the_same_seed_makes_the_pairs_that_the_stage_trains_on(folder, capsys):
    assert lastmile("pairs", "dpo.yaml") == 0
    first = rows(folder / "runs/task/dpo-pairs/train.jsonl")
    assert lastmile("pairs", "dpo.yaml", "--output", "again") == 0
    assert rows(folder / "again/train.jsonl") == first
    assert lastmile("pairs", "dpo.yaml", "training.seed=4", "--output", "other") == 0
    assert rows(folder / "other/train.jsonl") != first


def test_the_filter_of_any_recipe(folder, capsys):
    loose = ["preferences.filter.max_perplexity=1e9", "preferences.filter.lower_quantile=null"]
    loose += ["preferences.filter.balance=null", "preferences.filter.length_ratio=1.5"]
    assert lastmile("filter", "dpo.yaml", *loose) == 0
    said = capsys.readouterr().out
    assert "pairs are kept" in said and "perplexity" in said and "Pairs: runs/task/dpo-filtered" in said
    kept = rows(folder / "runs/task/dpo-filtered/train.jsonl")
    assert 0 < len(kept) < 48


def test_a_folder_of_pairs_is_not_replaced_without_a_word(folder, capsys):
    assert lastmile("pairs", "dpo.yaml") == 0
    assert lastmile("pairs", "dpo.yaml", "training.seed=4") == 2
    assert "--force" in capsys.readouterr().err
    assert lastmile("pairs", "dpo.yaml", "training.seed=4", "--force") == 0


def test_a_recipe_without_pairs_is_told_what_is_missing(folder, capsys):
    recipe = yaml.safe_load((folder / "dpo.yaml").read_text())
    recipe["method"] = "sft"
    del recipe["preferences"]
    (folder / "sft.yaml").write_text(yaml.safe_dump(recipe))
    assert lastmile("pairs", "sft.yaml") == 2
    assert "needs pairs: preferences.negatives" in capsys.readouterr().err
