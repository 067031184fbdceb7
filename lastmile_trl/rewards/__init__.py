"""Rewards: text in, one float per completion out, the same in a trainer, a test and a notebook.

A reward is a callable in TRL's protocol: `reward(completions=..., references=..., **columns) -> list[float | None]`,
with every column a list of one value per completion. Higher is better, so penalties are at most 0. None means that a
row cannot be scored.
"""

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lastmile_trl.errors import InputError, RunError, nearest, unknown

REGISTRY = {
    "length": "lastmile_trl.rewards.length:Length",
    "repetition": "lastmile_trl.rewards.repetition:Repetition",
    "rouge": "lastmile_trl.rewards.rouge:Rouge",
}

# What TRL passes to every reward function beside the columns of the data set.
_FROM_TRAINER = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


@dataclass(frozen=True)
class Reward:
    """A reward function with its name, its weight and the columns it needs; calling it checks what it returns."""

    name: str
    function: Callable[..., Sequence[float | None]]
    weight: float = 1.0
    needs: tuple[str, ...] = ()

    @property
    def __name__(self) -> str:  # the name under which TRL logs it
        return self.name

    def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        """Return one finite float or None per completion, or raise a RunError that names the reward and the row."""
        for column in self.needs:
            if column not in columns:
                raise RunError(
                    f"Reward '{self.name}' needs the column '{column}', and the rows have only: "
                    f"{', '.join(name for name in columns if name not in _FROM_TRAINER) or 'none'}."
                )
        try:
            values = self.function(completions=completions, **columns)
        except Exception as error:
            where = self._failing_row(completions, columns)
            raise RunError(f"Reward '{self.name}' failed{where}: {type(error).__name__}: {error}") from error
        return self._checked(values, completions)

    def _checked(self, values: Any, completions: Sequence) -> list[float | None]:
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise RunError(
                f"Reward '{self.name}' returned {values!r:.80}; it must return a list with one number per completion."
            )
        values = list(values)
        if len(values) != len(completions):
            raise RunError(f"Reward '{self.name}' returned {len(values)} values for {len(completions)} completions.")
        for row, value in enumerate(values):
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                raise RunError(
                    f"Reward '{self.name}' returned {value!r:.80}{_row(row, completions)}; "
                    "it must be a finite number, or None for a row that cannot be scored."
                )
        return [None if value is None else float(value) for value in values]

    def _failing_row(self, completions: Sequence, columns: dict[str, Any]) -> str:
        """Say which row makes the function fail, by calling it on one row after the other."""
        for row in range(len(completions)):
            # What is no list of one value per row belongs to the whole call.
            one = {
                name: column[row : row + 1] if isinstance(column, list) and len(column) == len(completions) else column
                for name, column in columns.items()
            }
            try:
                self.function(completions=completions[row : row + 1], **one)
            except Exception:
                return _row(row, completions)
        return " on the whole batch, though on none of its rows alone"


def _row(row: int, completions: Sequence) -> str:
    return f" on row {row} of the batch (completion {completions[row]!r:.80})"


def build(entries: Iterable[str | Mapping[str, Any]]) -> list[Reward]:
    """Make the rewards that a recipe lists.

    An entry is a name (`"rouge"`) or a name with arguments (`{"rouge": {"variant": "rouge2", "weight": 0.5}}`). The
    name is one of `REGISTRY` or `package.module:attribute`, a class that is constructed with the arguments or a
    function that is used as it is. Two arguments are for every reward: `weight`, and `name` to call it something else.

    >>> [(reward.name, reward.weight) for reward in build(["rouge", {"length": {"weight": 0.2}}])]
    [('rouge/rougeL', 1.0), ('length/excess', 0.2)]
    """
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        raise InputError(f"rewards must be a list, not {entries!r:.80}.")
    rewards: list[Reward] = []
    for entry in entries:
        reward = _build_one(entry)
        if any(reward.name == other.name for other in rewards):
            raise InputError(f"Two rewards are called '{reward.name}': give one of them `name:`.")
        rewards.append(reward)
    return rewards


def score(rewards: Iterable[Reward], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Score rows outside of training: each holds a `prediction` (or `completion`) and the columns the rewards need.

    A key that only some rows have is None in the others.

    >>> score(build(["rouge"]), [{"prediction": "the cat", "references": ["the cat sat on it", "a dog"]}])
    [{'rouge/rougeL': 0.5714285714285715}]
    """
    rows = list(rows)
    completions = []
    for index, row in enumerate(rows):
        if "prediction" not in row and "completion" not in row:
            raise InputError(f"Row {index} has no `prediction` (or `completion`), only: {', '.join(row) or 'nothing'}.")
        completions.append(row["prediction"] if "prediction" in row else row["completion"])
    names = {name: None for row in rows for name in row if name not in ("prompt", "prediction", "completion")}
    columns = {name: [row.get(name) for row in rows] for name in names}
    if any("prompt" in row for row in rows):
        columns["prompts"] = [row.get("prompt") for row in rows]
    values = {reward.name: reward(completions=completions, **columns) for reward in rewards} if rows else {}
    return [{name: column[index] for name, column in values.items()} for index in range(len(rows))]


def _build_one(entry: str | Mapping[str, Any]) -> Reward:
    key, arguments = _split(entry)
    weight = arguments.pop("weight", 1.0)
    if not isinstance(weight, Real) or isinstance(weight, bool) or not math.isfinite(weight):
        raise InputError(f"Reward '{key}': weight must be a number, not {weight!r}.")
    name = arguments.pop("name", None)
    if name is not None and (not isinstance(name, str) or not name):
        raise InputError(f"Reward '{key}': name must be a text, not {name!r}.")
    function = _make(key, _load(key), arguments)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise InputError(f"Reward '{key}' is asynchronous: give a plain function.")
    return Reward(name or _own_name(function), function, float(weight), _needs(function))


def _split(entry: Any) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of an entry."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, Mapping) or not entry:
        raise InputError(f"A reward is a name, or a name with arguments, not {entry!r:.80}.")
    if len(entry) > 1:
        raise InputError(
            f"A reward has one name, and this one has {len(entry)} ({', '.join(map(str, entry))}): "
            "start each reward with `- ` and indent its arguments below its name."
        )
    [(key, arguments)] = entry.items()
    if arguments is not None and not isinstance(arguments, Mapping):
        raise InputError(f"Reward '{key}': its arguments must be `key: value` pairs, not {arguments!r:.80}.")
    return str(key), dict(arguments or {})


def _load(key: str) -> Callable:
    """Import what a name stands for."""
    if ":" not in key and key not in REGISTRY:
        error = unknown("Reward", key, REGISTRY)
        raise InputError(f"{error} For one of your own, write package.module:attribute.")
    module_name, _, attribute = REGISTRY.get(key, key).partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"Reward '{key}': importing {module_name!r} failed with {type(error).__name__}: {error}; "
            "is it installed, or its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, attribute):
        close = nearest(attribute, vars(module))
        hint = f": did you mean '{close}'?" if close else "."
        raise InputError(f"Reward '{key}': module '{module_name}' has no '{attribute}'{hint}")
    if not callable(getattr(module, attribute)):
        raise InputError(f"Reward '{key}' is neither a function nor a class.")
    return getattr(module, attribute)


def _make(key: str, found: Callable, arguments: dict[str, Any]) -> Callable:
    """Construct a class with its arguments; take a function as it is."""
    if not inspect.isclass(found):
        if arguments:
            raise InputError(
                f"Reward '{key}' is a function and takes only weight and name here, not {', '.join(arguments)}: "
                "make it a class to give it arguments."
            )
        return found
    signature = inspect.signature(found)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        for argument in arguments:
            if argument not in signature.parameters:
                error = unknown("argument", argument, [*signature.parameters, "weight", "name"])
                raise InputError(f"Reward '{key}': {error}")
    try:
        return found(**arguments)
    except Exception as error:
        raise InputError(f"Reward '{key}': {error}") from error


def _own_name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _needs(function: Callable) -> tuple[str, ...]:
    """Return the columns a reward needs: what it says, else the arguments it cannot do without."""
    if hasattr(function, "needs"):
        return (function.needs,) if isinstance(function.needs, str) else tuple(function.needs)
    return tuple(
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in _FROM_TRAINER
    )


__all__ = ["REGISTRY", "Reward", "build", "score"]
