"""Shipped recipes, damaged at random: each is taken or refused in a sentence, and none runs code when it is read."""

import builtins
import copy
import functools
import importlib
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lastmile_trl import preflight, synthetic
from lastmile_trl.errors import InputError
from lastmile_trl.recipe import load, shipped, shipped_names

TEXTS = {name: (shipped("recipes") / f"{name}.yaml").read_text(encoding="utf-8") for name in shipped_names()}
WORDS = sorted({word for text in TEXTS.values() for word in re.findall(r"[\w.+-]+", text)})
HERE = {
    "data": {**yaml.safe_load(TEXTS["quickstart/grpo"])["data"], "held_out": 8},
    "model": {"model_name_or_path": "model"},
}
COLUMNS = (
    "concepts",
    "meaning_representation",
    "dialogue",
    "document",
    "input",
    "chosen",
    "rejected",
)  # of the recipes
CODE = ("os:system", "subprocess:Popen", "shutil:rmtree", "builtins:exec", "sys:exit", "planted:run", "planted:", ":")
VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 0.5, -0.5, 1e-320, 1e308, -1e308, 2**31, 2**63, 10**400,
    float("nan"), float("inf"),
    "", " ", "~", "/", "..", "null", "1e5", "nan", "é😀\u202e", "a" * 10_000, "\n", "{", "{}", "{0}", "{a.b}",
    "{note!r}", "a:b", "\ud800", "\0", "a/b/c", "https://a/b", "synthetic:", "synthetic:work_notes", "model", "base",
    "${training}", "${a.b}", "${.}", "${", "${training.seed}", [], {}, [[]], [None], {"a": {}}, {"": 1}, {1: 2},
    {None: 1}, {True: 1}, {"rouge": None}, [1, "a", {}], {"mode": "ppo++"}, *CODE,
)  # fmt: skip
RAW = (
    "!!python/object/apply:planted.run ['a']", "!!python/name:planted.run", "!!python/module:planted", "!!binary aGk=",
    "!!set {a, b}", "&a [*a]", "*a", "&a 1", "<<: {a: 1}", "2020-01-01", "0x10", "0o7", "1_000", "12:30:45", "? a",
    "|", ">", "@", "`", "~", "\t", "%YAML 1.1", "---", "...", "'", '"', "{", "[", "}", "]", "#", "\u0085", "\ufeff",
    "- ", "!!float nan", "!custom x", ": ", "\x07",
)  # fmt: skip


def places(tree, path=()):
    """The paths of all that a tree holds."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, inner in pairs for place in [(*path, key), *places(inner, (*path, key))]]


def damage(tree, chance: random.Random) -> None:
    """Set, nudge, wrap, move, rename, borrow or delete one thing."""
    *above, key = chance.choice(places(tree) or [("method",)])
    holder = functools.reduce(lambda inner, step: inner[step], above, tree)
    kind = chance.choice(["set", "set", "nudge", "nudge", "word", "borrow", "wrap", "move", "rename", "delete", "add"])
    if kind == "set":
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    elif kind == "nudge" and isinstance(holder[key], bool | int | float):
        holder[key] = not holder[key] if isinstance(holder[key], bool) else holder[key] * chance.choice([2, 0.5, -1, 0])
    elif kind == "borrow":
        other = yaml.safe_load(chance.choice(list(TEXTS.values())))
        tree.update([chance.choice(list(other.items()))])
    elif kind in ("word", "nudge"):
        holder[key] = chance.choice(WORDS)
    elif kind == "wrap":
        holder[key] = chance.choice([[holder[key]], {key: holder[key]}, str(holder[key])])
    elif kind == "move":
        tree[chance.choice([*tree, "hub", "guidance", "preferences"])] = copy.deepcopy(holder[key])
    elif kind == "delete":
        del holder[key]
    else:
        name = chance.choice([*WORDS, *CODE, "", None, 1, "method"])
        value = holder.pop(key) if kind == "rename" and isinstance(holder, dict) else chance.choice(VALUES)
        holder.append({name: value}) if isinstance(holder, list) else holder.update({name: value})


def scrawl(text: str, chance: random.Random) -> str:
    """Write over a value, between lines or anywhere; double, indent or cut."""
    lines = text.splitlines() or [""]
    line = chance.randrange(len(lines))
    kind = chance.choice(["value", "value", "line", "anywhere", "double", "indent", "cut"])
    if kind == "value":
        lines[line] = f"{lines[line].split(':')[0]}: {chance.choice(RAW)}"
    elif kind == "line":
        lines.insert(line, chance.choice(RAW))
    elif kind == "double":
        lines.insert(chance.randrange(len(lines)), lines[line])
    elif kind == "indent":
        lines[line] = f"{' ' * chance.randint(1, 4)}{lines[line]}"
    elif kind == "cut":
        lines = lines[: line + 1]
    else:
        place = chance.randrange(len(lines[line]) + 1)
        lines[line] = lines[line][:place] + chance.choice(RAW) + lines[line][place:]
    return "\n".join(lines) + "\n"


def damaged(chance: random.Random) -> tuple[bytes, list[str]]:
    """A recipe's file, and overrides for it."""
    tree = yaml.safe_load(chance.choice(list(TEXTS.values())))
    if chance.random() < 0.7:  # or its rows and its model are not here, and little else is looked at
        tree |= copy.deepcopy({name: section for name, section in HERE.items() if name in tree})
    paths = places(tree)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        damage(tree, chance)
    text = yaml.safe_dump(tree, allow_unicode=chance.random() < 0.5, sort_keys=False)
    for _ in range(chance.choice([0, 0, 0, 0, 1, 2])):
        text = scrawl(text, chance)
    overrides = [
        f"{'.'.join(map(str, chance.choice(paths)))}={chance.choice([*VALUES, *RAW, *WORDS])}"
        for _ in range(chance.choice([0, 0, 0, 0, 1, 2]))
    ]
    return text.encode(chance.choice(["utf-8"] * 49 + ["utf-16"]), errors="surrogatepass"), overrides


@pytest.fixture
def try_one(tmp_path, monkeypatch):
    """Read a damaged recipe and check it, where nothing can be reached and no code of others may run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted.py").write_text("import builtins\nbuiltins.planted = True\ndef run(*_, **__): return []\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    load_rows = functools.cache(synthetic.load)

    def some_rows(name, split):
        return [{**row, **dict.fromkeys(COLUMNS, row["note"])} for row in load_rows(name, split)[:160]]

    monkeypatch.setattr(synthetic, "load", some_rows)
    upcoming = {Path("runs", name) for name in TEXTS}
    monkeypatch.setattr("datasets.load_dataset", _unreachable)
    monkeypatch.setattr("datasets.get_dataset_split_names", _unreachable)
    imported = []

    def import_module(name, *more):
        imported.append(name)
        if name.partition(".")[0] != "lastmile_trl":
            raise ModuleNotFoundError(name)
        return importlib.import_module(name, *more)

    monkeypatch.setattr(
        "lastmile_trl.dotted.importlib", SimpleNamespace(import_module=import_module, util=importlib.util)
    )

    def attempt(text: bytes, overrides: list[str]) -> list[str]:
        Path("recipe.yaml").write_bytes(text)
        imported.clear()
        recipe, said = None, []
        try:
            recipe = load("recipe.yaml", overrides)
        except InputError as error:
            said = [str(error)]
        assert not imported, "reading a recipe imports what it names"
        if recipe:
            said = preflight.check(recipe, upcoming=upcoming).problems
        assert all(sentence.strip() for sentence in said)
        assert "planted" not in sys.modules and not hasattr(builtins, "planted")
        return said

    return attempt


def _unreachable(*_, **__):
    raise ConnectionError("offline")


def fuzz(try_one, examples: int, derandomize: bool) -> None:
    """Damage and try so many recipes."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def one(chance):
        try_one(*damaged(chance))

    one()


def test_a_damaged_recipe_is_taken_or_refused(try_one):
    fuzz(try_one, 200, derandomize=True)


@pytest.mark.slow
def test_many_damaged_recipes_are_taken_or_refused(try_one):
    fuzz(try_one, 5000, derandomize=False)


def test_what_the_recipes_are_damaged_with_is_taken_undamaged(try_one):
    """Or the fuzzer would never get beyond the first refusal."""
    tree = {**yaml.safe_load(TEXTS["quickstart/grpo"]), **HERE}
    assert try_one(yaml.safe_dump(tree).encode(), []) == []
