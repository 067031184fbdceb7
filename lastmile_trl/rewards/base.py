"""What all rewards share: reading completions and references, and checking arguments."""

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from lastmile_trl.errors import InputError, unknown


@dataclass(frozen=True)
class Task:
    """What is fixed for a whole run: for rewards that need to know more than the rows of a batch.

    Such a reward has a method `for_task(task)` that returns the reward to use.
    """

    columns: Mapping[str, Sequence] = field(default_factory=dict)  # of the training rows
    end_ids: frozenset[int] = frozenset()  # the tokens that end a completion

    @classmethod
    def of(cls, train: Any, end_ids: Iterable[int] = ()) -> "Task":
        """Return the task of a data set of training rows."""
        return cls({name: train[name] for name in train.column_names}, frozenset(end_ids))


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """Return the text of a completion: a string, or the last message of a chat.

    >>> completion_text([{"role": "assistant", "content": "Hello."}])
    'Hello.'
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):
        content = completion[-1].get("content")
        if content is None:  # a message that only calls a tool says nothing
            return ""
        if isinstance(content, str):
            return content
        if isinstance(content, list):  # a message in parts: text, images, ...
            return "".join(part["text"] for part in content if part["type"] == "text")
    raise TypeError(f"a completion is a string or a non-empty list of messages, not {completion!r:.80}")


def reference_texts(references: str | list[str] | None) -> list[str]:
    """Return the references of a row as a list: one string, several, or none.

    >>> reference_texts("one"), reference_texts(["one", "two"]), reference_texts(None)
    (['one'], ['one', 'two'], [])
    """
    if references is None:
        return []
    if isinstance(references, str):
        return [references]
    if isinstance(references, list | tuple) and all(isinstance(text, str) for text in references):
        return list(references)
    raise TypeError(f"references are a string or a list of strings, not {references!r:.80}")


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """Return the text of a prompt: a string, or what the user said in a chat.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}])
    'Hello?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n".join(completion_text([message]) for message in prompt if message.get("role") == "user")


def source_texts(source: str | None, columns: Mapping[str, Sequence]) -> list[str | None]:
    """Return the text each completion was made from: a column, or the prompt where `source` names none."""
    if source is not None:
        return [None if value is None else cell_text(value) for value in columns[source]]
    if "prompts" not in columns:
        raise ValueError("it compares with the prompt, which is missing: give each row a `prompt`, or a `source`.")
    return [None if prompt is None else prompt_text(prompt) for prompt in columns["prompts"]]


def cell_text(value: Any) -> str:
    """Return a column's value as it stands in a prompt: lists are joined by commas, missing values are empty.

    >>> cell_text(["cat", "dog"]), cell_text(None), cell_text(3)
    ('cat, dog', '', '3')
    """
    if value is None:
        return ""
    return ", ".join(map(cell_text, value)) if isinstance(value, list) else str(value)


def require(package: str) -> None:
    """Refuse to go on without a package of the extra `metrics`; finding it does not import it."""
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise InputError(
            f"Reward needs the package {package}, which is not installed: pip install 'lastmile-trl[metrics]'."
        )


def check_choice(key: str, value: Any, valid: Iterable[str]) -> None:
    """Refuse a value that is not one of `valid`."""
    valid = list(valid)
    if value not in valid:
        raise unknown(key, value, valid)


def check_column(key: str, value: Any) -> None:
    """Refuse anything but the name of a column."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{key} must be the name of a column, not {value!r}.")


def known_mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None if none is.

    >>> known_mean([1.0, None, 2.0]), known_mean([None])
    (1.5, None)
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def check_flag(key: str, value: Any) -> None:
    """Refuse anything but true and false."""
    if not isinstance(value, bool):
        raise InputError(f"{key} must be true or false, not {value!r}.")


def check_whole(key: str, value: Any, *, least: int = 1) -> None:
    """Refuse anything but a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{key} must be a whole number of at least {least}, not {value!r}.")


def check_number(key: str, value: Any, *, least: float, exclusive: bool = False) -> None:
    """Refuse anything but a finite number of at least (or, if exclusive, above) `least`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < least or (exclusive and value == least):
        raise InputError(f"{key} must be a number {'above' if exclusive else 'of at least'} {least:g}, not {value!r}.")
