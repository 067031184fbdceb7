"""The rewards' page and `lastmile rewards` are made from docstrings, so these must have every part."""

from pathlib import Path

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import REGISTRY
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
    """A word before or after "and", "or" and commas that looks like a name must be one."""
    import re

    for name in REGISTRY:
        for word in re.findall(r"\b[a-z]+_[a-z_0-9]+\b", describe(name).parts["Pair it with"]):
            assert word in REGISTRY, (name, word)


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
