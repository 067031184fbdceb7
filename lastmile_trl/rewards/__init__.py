"""Rewards: text in, one float per completion out, the same in a trainer, a test and a notebook.

A reward is a callable in TRL's protocol: `reward(completions=..., references=..., **columns) -> list[float | None]`,
with every column a list of one value per completion. Higher is better, so penalties are at most 0. None means that a
row cannot be scored.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from threading import Timer
from typing import Any

from lastmile_trl.dotted import find
from lastmile_trl.errors import InputError, RunError, unknown
from lastmile_trl.rewards.base import Task, completion_text
from lastmile_trl.screen import note

REGISTRY = {
    "rouge": "lastmile_trl.rewards.rouge:Rouge",
    "combined_rouge": "lastmile_trl.rewards.rouge:CombinedRouge",
    "length_adjusted_rouge": "lastmile_trl.rewards.rouge:LengthAdjustedRouge",
    "bleu": "lastmile_trl.rewards.bleu:Bleu",
    "chrf": "lastmile_trl.rewards.bleu:Chrf",
    "cider": "lastmile_trl.rewards.cider:Cider",
    "exact_match": "lastmile_trl.rewards.match:ExactMatch",
    "token_f1": "lastmile_trl.rewards.match:TokenF1",
    "embedding": "lastmile_trl.rewards.neural:Embedding",
    "bertscore": "lastmile_trl.rewards.neural:BertScore",
    "classifier": "lastmile_trl.rewards.classifier:Classifier",
    "model": "lastmile_trl.rewards.model:Model",
    "coverage": "lastmile_trl.rewards.facts:Coverage",
    "slots": "lastmile_trl.rewards.facts:Slots",
    "entities": "lastmile_trl.rewards.faithfulness:Entities",
    "numbers": "lastmile_trl.rewards.faithfulness:Numbers",
    "copying": "lastmile_trl.rewards.faithfulness:Copying",
    "novelty": "lastmile_trl.rewards.faithfulness:Novelty",
    "length": "lastmile_trl.rewards.length:Length",
    "overlong": "lastmile_trl.rewards.length:Overlong",
    "ending": "lastmile_trl.rewards.form:Ending",
    "repetition": "lastmile_trl.rewards.repetition:Repetition",
    "loop": "lastmile_trl.rewards.repetition:Loop",
    "repeated_sentences": "lastmile_trl.rewards.repetition:RepeatedSentences",
    "echo": "lastmile_trl.rewards.form:Echo",
    "format": "lastmile_trl.rewards.form:Format",
}

# What TRL passes to every reward function beside the columns of the data set.
FROM_TRAINER = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")

LARGEST = 3e38  # what a trainer's 32 bits can hold

PATIENCE = 60  # seconds that a reward may take without a word

SETTINGS = ("name", "weight", "clip", "scale", "gate")  # arguments of every reward, explained in `build`


@dataclass(frozen=True)
class Reward:
    """A reward function with its name, its weight, the columns it needs, and what is done to its values.

    A value is first limited to `clip`, then multiplied by `scale`; where a gate of another reward is closed, it is 0.
    """

    name: str
    function: Callable[..., Sequence[float | None]]
    weight: float = 1.0
    needs: tuple[str, ...] = ()
    clip: tuple[float, float] | None = None
    scale: float = 1.0
    gate: float | None = None  # the least value with which the other rewards count
    gates: "tuple[Reward, ...]" = ()  # the rewards that must reach their gate for this one to count

    @property
    def __name__(self) -> str:  # the name under which TRL logs it
        return self.name

    def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        """Return one finite float or None per completion, or raise a RunError that names the reward and the row."""
        values = self._own_values(completions, columns)
        if not self.gates:
            return values
        self._log_before_gates(values, columns)
        opened = [gate._opens(completions, columns) for gate in self.gates]
        return [value if value is None or all(row) else 0.0 for value, *row in zip(values, *opened, strict=True)]

    def _opens(self, completions: Sequence, columns: dict[str, Any]) -> list[bool]:
        """Say for each completion whether this gate lets the other rewards count; what it cannot score, passes."""
        return [value is None or value >= self.gate for value in self._own_values(completions, columns)]

    def _log_before_gates(self, values: list[float | None], columns: dict[str, Any]) -> None:
        """Let the trainer log the reward by itself: what it logs of its own accord has zeros of the gates in it."""
        known = [value for value in values if value is not None]
        if known and "log_metric" in columns:
            columns["log_metric"](f"rewards/{self.name}/before_gates", sum(known) / len(known))

    def _own_values(self, completions: Sequence, columns: dict[str, Any]) -> list[float | None]:
        for column in self.needs:
            if column not in columns:
                raise RunError(
                    f"Reward '{self.name}' needs the column '{column}', and the rows have only: "
                    f"{', '.join(name for name in columns if name not in FROM_TRAINER) or 'none'}."
                )
        said = f"Reward '{self.name}' has taken {PATIENCE} s for {len(completions)} completions, and is still at it."
        slow = Timer(PATIENCE, note, [said])
        slow.daemon = True
        slow.start()
        try:
            values = self.function(completions=completions, **columns)
        except Exception as error:
            where = self._failing_row(completions, columns)
            raise RunError(f"Reward '{self.name}' failed{where}: {type(error).__name__}: {error}") from error
        finally:
            slow.cancel()
        return self._checked(values, completions, columns)

    def _checked(self, values: Any, completions: Sequence, columns: dict[str, Any]) -> list[float | None]:
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise RunError(
                f"Reward '{self.name}' returned {values!r:.80}; it must return a list with one number per completion."
            )
        # A trainer's tensors and numpy's numbers hold one number each.
        values = [value.item() if hasattr(value, "item") else value for value in values]
        if len(values) != len(completions):
            raise RunError(f"Reward '{self.name}' returned {len(values)} values for {len(completions)} completions.")
        low, high = self.clip or (-math.inf, math.inf)
        checked: list[float | None] = []
        for row, value in enumerate(values):
            if isinstance(value, Real) and math.isfinite(value):
                value = float(self.scale * min(max(value, low), high))
            if value is not None and not (isinstance(value, float) and abs(value) <= LARGEST):
                raise RunError(
                    f"Reward '{self.name}' returned {value!r:.80}{_row(row, completions, columns)}; "
                    "it must be a finite number, or None for a row that cannot be scored."
                )
            checked.append(value)
        return checked

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
                return _row(row, completions, columns)
        return " on the whole batch, though on none of its rows alone"


def _row(row: int, completions: Sequence, columns: dict[str, Any]) -> str:
    known = {"id": columns.get("id"), "prompt": columns.get("prompts"), "completion": completions}
    said = ", ".join(f"{name} {column[row]!r:.80}" for name, column in known.items() if column)
    return f" on row {row} of the batch ({said})"


def build(entries: Iterable[str | Mapping[str, Any]]) -> list[Reward]:
    """Make the rewards that a recipe lists.

    An entry is a name (`"rouge"`) or a name with arguments (`{"rouge": {"variant": "rouge2", "weight": 0.5}}`). The
    name is one of `REGISTRY` or `package.module:attribute`, a class that is constructed with the arguments or a
    function that is used as it is. Some arguments are for every reward:
        weight: what it is multiplied with in the total.
        name: to call it something else, as two of one name would be one to TRL.
        clip: [low, high], the limits of its values.
        scale: a number its values are multiplied with, after `clip`; unlike a weight, it shows in what is logged.
        gate: where its value is less than this number, all rewards that are no gates are 0.

    >>> [(reward.name, reward.weight) for reward in build(["rouge", {"length": {"weight": 0.2}}])]
    [('rouge/rougeL', 1.0), ('length/excess', 0.2)]
    >>> rouge, form = build(["rouge", {"format": {"choices": ["yes", "no"], "gate": 1}}])
    >>> rouge(["yes", "yes, or no"], references=["yes", "yes"])
    [1.0, 0.0]
    """
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        raise InputError(f"rewards must be a list, not {entries!r:.80}.")
    rewards: list[Reward] = []
    for entry in entries:
        reward = _build_one(entry)
        if any(reward.name == other.name for other in rewards):
            raise InputError(f"Two rewards are called '{reward.name}': give one of them `name:`.")
        rewards.append(reward)
    return _with_gates(rewards)


def _with_gates(rewards: list[Reward]) -> list[Reward]:
    gates = tuple(reward for reward in rewards if reward.gate is not None)
    return [reward if reward.gate is not None else replace(reward, gates=gates) for reward in rewards]


def prepare(rewards: Iterable[Reward], task: Task) -> list[Reward]:
    """Give the task to the rewards that want to know more than the rows of a batch, as document frequencies.

    >>> [cider] = prepare(build(["cider"]), Task({"references": [["a cat"], ["a dog"], ["one bird"]]}))
    >>> cider(["a cat", "a bird"], references=["a cat", "a dog"])[0] > 0
    True
    """
    return _with_gates(
        [
            replace(reward, function=reward.function.for_task(task)) if hasattr(reward.function, "for_task") else reward
            for reward in rewards
        ]
    )


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
    settings = {argument: arguments.pop(argument) for argument in SETTINGS if argument in arguments}
    _check_settings(key, settings)
    function = _make(key, _load(key), arguments)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        raise InputError(f"Reward '{key}' is asynchronous: give a plain function.")
    if "clip" in settings:
        settings["clip"] = tuple(settings["clip"])
    return Reward(**{"name": _own_name(function), "function": function, "needs": _needs(function), **settings})


def _check_settings(key: str, settings: dict[str, Any]) -> None:
    for setting, value in settings.items():
        if setting == "name":
            valid, wanted = isinstance(value, str) and value != "", "a text"
        elif setting == "clip":
            is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
            valid, wanted = is_pair and value[0] < value[1], "[low, high], two numbers with low < high"
        else:
            valid, wanted = _is_number(value), "a number"
        if not valid:
            raise InputError(f"Reward '{key}': {setting} must be {wanted}, not {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= LARGEST


def key_of(entry: str | Mapping[str, Any]) -> str:
    """Return which reward an entry of a recipe makes, whatever it calls it.

    >>> key_of("rouge"), key_of({"rouge": {"name": "overlap"}})
    ('rouge', 'rouge')
    """
    return _split(entry)[0]


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
    found = find(REGISTRY.get(key, key), f"Reward '{key}'")
    if not callable(found):
        raise InputError(f"Reward '{key}' is neither a function nor a class.")
    return found


def _make(key: str, found: Callable, arguments: dict[str, Any]) -> Callable:
    """Construct a class with its arguments; take a function as it is."""
    if not inspect.isclass(found):
        if arguments:
            raise InputError(
                f"Reward '{key}' is a function and takes only {', '.join(SETTINGS)} here, not "
                f"{', '.join(arguments)}: make it a class to give it arguments."
            )
        return found
    signature = inspect.signature(found)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        for argument in arguments:
            if argument not in signature.parameters:
                error = unknown("argument", argument, [*signature.parameters, *SETTINGS])
                raise InputError(f"Reward '{key}': {error}")
    for argument, parameter in signature.parameters.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and argument not in arguments:
            raise InputError(f"Reward '{key}' needs the argument {argument!r}: `- {key}: {{{argument}: ...}}`.")
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
        and name not in FROM_TRAINER
    )


__all__ = ["REGISTRY", "Reward", "Task", "build", "completion_text", "prepare", "score"]
