"""What all rewards share: reading completions and references, and checking arguments."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from lastmile_trl.errors import InputError, unknown


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


def check_choice(key: str, value: Any, valid: Iterable[str]) -> None:
    """Refuse a value that is not one of `valid`."""
    valid = list(valid)
    if value not in valid:
        raise unknown(key, value, valid)


def check_number(key: str, value: Any, *, least: float, exclusive: bool = False) -> None:
    """Refuse anything but a finite number of at least (or, if exclusive, above) `least`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < least or (exclusive and value == least):
        raise InputError(f"{key} must be a number {'above' if exclusive else 'of at least'} {least:g}, not {value!r}.")
