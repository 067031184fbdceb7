"""Runs that may have been trained on rows that are held out here."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from .recipe import Data, Recipe
from .run_folder import stored_recipe


def leaks(runs: Mapping[str, Path], recipe: Recipe, stages: Iterable[Recipe] = ()) -> list[str]:
    """A sentence for each run that may have seen rows which the recipe holds out, itself or in a stage before it.

    `stages` are recipes that are run together with it, whose folders may be yet to come.
    """
    made = {each.run: each for each in (*stages, recipe)}
    found = []
    for name, run in runs.items():
        for stage, trained in _stages(run, made).items():
            if key := _other_rows(_rows_of(trained.data, made), _rows_of(recipe.data, made)):
                # Without the path, as a card says it to others.
                itself = name if stage == run else f"{name} goes back to {stage.name}, which"
                found.append(
                    f"{itself} was trained with another data.{key}: it may have seen rows that are held out here."
                )
                break
    return found


def _stages(run: Path, made: Mapping[Path, Recipe]) -> dict[Path, Recipe]:
    """The run and all that it goes back to, with their recipes."""
    stages: dict[Path, Recipe] = {}
    while run not in stages and (recipe := made.get(run) or stored_recipe(run)):
        stages[run] = recipe
        run = Path(recipe.model.get("model_name_or_path", ""))
    return stages


def _rows_of(data: Data, made: Mapping[Path, Recipe]) -> Data:
    """The same, or of pairs what they were made of: they hold out what that does."""
    recipe = made.get(Path(data.path)) or stored_recipe(Path(data.path))
    return recipe.data if recipe and recipe.method == "pairs" else data


def _other_rows(trained: Data, evaluated: Data) -> str | None:
    """The first key by which training may have seen what is held out.

    >>> few, many = Data("x", held_out=20), Data("x", held_out=60)
    >>> _other_rows(few, many), _other_rows(many, few)  # the first 20 of one order are among the first 60
    ('held_out', None)
    """
    keys = ("path", "name", "revision", "eval_split", *(() if evaluated.eval_split else ("split", "group_by")))
    for key in keys:
        if getattr(trained, key) != getattr(evaluated, key):
            return key
    return "held_out" if not evaluated.eval_split and trained.held_out < evaluated.held_out else None
