"""The rewards' page and `lastmile rewards` are made from docstrings, so these must have every part."""

import difflib
import re
from pathlib import Path

import pytest
import yaml

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import REGISTRY, build
from lastmile_trl.rewards.page import PARTS, describe, overview, page

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", REGISTRY)
def test_every_reward_says_all_there_is_to_know(name):
    described = describe(name)
    assert list(described.parts) == [part for part in PARTS if part != "Arguments"]
    assert all(described.parts.values()) and described.summary
    assert described.example.startswith(">>> ")


@pytest.mark.parametrize("name", REGISTRY)
def test_every_argument_is_explained_and_no_other(name):
    import importlib
    import inspect

    module, attribute = REGISTRY[name].split(":")
    signature = inspect.signature(getattr(importlib.import_module(module), attribute))
    public = [argument for argument in signature.parameters if not argument.startswith("_")]
    assert sorted(describe(name).arguments) == sorted(public)


def test_what_to_pair_it_with_exists():
    """Each entry names at least one reward, and nothing that looks like one and is none."""
    for name in REGISTRY:
        words = re.findall(r"[a-z_0-9]+", describe(name).parts["Pair it with"])
        assert set(words) & REGISTRY.keys() - {name}, name
        for word in words:
            close = difflib.get_close_matches(word, REGISTRY, n=1, cutoff=0.8)
            assert word in REGISTRY or not close or word.rstrip("s") in REGISTRY, (name, word, close)


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    first, trainer, own, *_ = re.findall(r"```python\n(.*?)```", page(), flags=re.DOTALL)
    scope = {}
    exec(first, scope)
    made = {}
    monkeypatch.setattr("trl.GRPOTrainer", lambda **arguments: made.update(arguments))
    monkeypatch.setattr("trl.GRPOConfig", lambda **arguments: arguments)
    exec(trainer, scope)
    assert made["args"] == {"reward_weights": [1.0, 0.2]} and len(made["reward_funcs"]) == 2
    (tmp_path / "my_rewards.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    for text in re.findall(r"```yaml\n(.*?)```", page(), flags=re.DOTALL):
        entries = yaml.safe_load(text.replace("schema.json", str(tmp_path / "schema.json")))["rewards"]
        (tmp_path / "schema.json").write_text("{}")
        names = [reward.name for reward in build(entries)]
    assert names == ["polite", "Mentions"]
    chat = [[{"role": "assistant", "content": "please, a cat"}]]
    polite, mentions = build(entries)
    assert polite(chat) == [1.0] and mentions(chat, tags=[["cat", "dog"]]) == [0.5]


def test_the_committed_page_is_the_generated_one():
    assert (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8") == page(), (
        "docs/rewards.md is not what the docstrings say: lastmile rewards --markdown > docs/rewards.md"
    )


def test_one_reward_on_the_screen():
    text = describe("repetition").text()
    assert text.startswith("repetition\n\nThe share of the completion's n-grams")
    assert "\n    n: the length of an n-gram. Default: `3`.\n" in text
    assert "\n>>> Repetition(n=2)" in text


def test_the_overview_has_a_line_for_each():
    lines = {name: (what, values) for name, what, values in overview()}
    assert list(lines) == list(REGISTRY)
    assert lines["rouge"][1] == "[0, 1]" and "\n" not in "".join(map("".join, lines.values()))


def test_an_unknown_reward():
    with pytest.raises(InputError, match="Reward 'rogue' does not exist: did you mean 'rouge'"):
        describe("rogue")
