"""Which runs are one recipe with several seeds."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .recipe import Recipe
from .run_folder import stored_recipe

NOT_TRAINED_WITH = ("evaluation", "hub")  # sections that no weight depends on


def seeds_of(runs: Mapping[str, Path]) -> dict[str, list[str]]:
    """The names of runs of one recipe, by a name for that, in the order of their seeds; where there are several.

    Their stored recipes are alike but for `training.seed`, `training.output_dir`, and whatever names an earlier run
    that is itself such a run of another seed. A second run of the same seeds is left out, as it shows nothing new.
    """
    _stored.cache_clear()  # a folder may hold another run by now
    groups: list[dict[tuple[int, ...], str]] = []
    for name, run in runs.items():
        if _stored(str(run)) is None:
            continue
        group = next((group for group in groups if _alike(str(run), str(runs[next(iter(group.values()))]))), None)
        if group is None:
            groups.append(group := {})
        group.setdefault(_seeds(str(run)), name)
    named: dict[str, list[str]] = {}
    for group in groups:
        if len(group) > 1:
            names = [group[seeds] for seeds in sorted(group)]
            common = common_name(names)
            named[names[0] if common in named else common] = names
    return named


def common_name(names: list[str]) -> str:
    """What the names of runs share, without a seed; the first one where they share nothing.

    >>> common_name(["grpo-0", "grpo-1"]), common_name(["seed_0/grpo", "seed_1/grpo"]), common_name(["a", "b"])
    ('grpo', 'grpo', 'a')
    """
    parts = [name.split("/") for name in names]
    if len({len(of_name) for of_name in parts}) == 1:
        same = [of_all[0] for of_all in zip(*parts, strict=True) if len(set(of_all)) == 1]
        if same:
            return "/".join(same)
    common = os.path.commonprefix(names)
    if any(name[len(common) :][:1].isdigit() for name in names):  # 10 and 11 share a digit, not a name
        common = common.rstrip("0123456789")
    return re.sub(r"([-_. ]?(seed|s))?[-_. /]*$", "", common) or names[0]


@cache
def _stored(run: str) -> Recipe | None:
    return stored_recipe(Path(run)) if os.path.isfile(os.path.join(run, "recipe.yaml")) else None  # or a long text


def _alike(first: Any, second: Any) -> bool:
    """Whether two values of recipes are the same, or name runs of one recipe."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_alike(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_alike, first, second))
    if isinstance(first, str) and isinstance(second, str) and first != second:
        stored = _stored(first), _stored(second)
        return None not in stored and _alike(*(_without_seed(recipe.values) for recipe in stored))
    return first == second


def _without_seed(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: section for name, section in values.items() if name not in NOT_TRAINED_WITH}
    training = {key: value for key, value in values["training"].items() if key not in ("seed", "output_dir")}
    return kept | {"training": training}


def _seeds(run: str) -> tuple[int, ...]:
    """The seed of a run, and those of the runs it builds on."""
    stored = _stored(run)
    return (stored.seed, *(seed for need in stored.needs for seed in _seeds(need))) if stored else ()
