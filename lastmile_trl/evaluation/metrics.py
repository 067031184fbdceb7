"""What is measured on every output: the given metrics, and four plain counts no reward can hide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.repetition import Repetition

if TYPE_CHECKING:
    from lastmile_trl.evaluation.decoding import Output
    from lastmile_trl.rewards import Reward

# what counts as better; the number of words has no better
ALWAYS_MEASURED = {"words": None, "length_ratio": None, "ended": "higher", "repeated_3grams": "lower"}


def per_row(
    outputs: Sequence[Output], rows: Sequence[dict[str, Any]], metrics: Sequence[Reward]
) -> dict[str, list[float | None]]:
    """One value per row and metric: the given metrics first, then `words`, `length_ratio`, `ended`, `repeated_3grams`.

    The metrics are called as TRL calls rewards, and know from `ended` whether a completion ended by itself.
    """
    for metric in metrics:
        if metric.name in ALWAYS_MEASURED:
            raise InputError(f"The metric name {metric.name} is taken by a built-in one; give yours another `name:`.")
    texts = [output.text for output in outputs]
    return scored(outputs, rows, metrics) | {
        "words": [float(len(text.split())) for text in texts],
        "length_ratio": [length_ratio(text, row["references"]) for text, row in zip(texts, rows, strict=True)],
        "ended": [float(output.ended) for output in outputs],
        "repeated_3grams": [repeated_3grams(text) for text in texts],
    }


def scored(
    outputs: Sequence[Output], rows: Sequence[dict[str, Any]], rewards: Sequence[Reward]
) -> dict[str, list[float | None]]:
    """One value per row and reward, called as TRL calls them: every column is a list, chats get messages."""
    completions = [_completion(output.text, row["prompt"]) for output, row in zip(outputs, rows, strict=True)]
    columns = _columns(rows) | {
        "completion_ids": [output.ids for output in outputs],
        "ended": [output.ended for output in outputs],
    }
    return {reward.name: reward(completions, **columns) for reward in rewards}


def totals(outputs: Sequence[Output], rows: Sequence[dict[str, Any]], rewards: Sequence[Reward]) -> list[float | None]:
    """The weighted sum of the rewards of each row, as TRL sums them; None where no reward has a value."""
    values = scored(outputs, rows, rewards)
    weighted = [
        [reward.weight * values[reward.name][row] for reward in rewards if values[reward.name][row] is not None]
        for row in range(len(rows))
    ]
    return [sum(parts) if parts else None for parts in weighted]


def length_ratio(text: str, references: Sequence[str]) -> float | None:
    """Words of the text per word of the reference nearest in length; None without a reference that holds words.

    >>> length_ratio("one two three", ["one two", "one two three four five six"])
    1.5
    """
    words = len(text.split())
    lengths = [length for reference in references if (length := len(reference.split()))]
    if not lengths:
        return None
    return words / min(lengths, key=lambda length: (abs(length - words), length))


def repeated_3grams(text: str) -> float:
    """Share of the text's word 3-grams that occurred before in it.

    >>> repeated_3grams("a b c a b c")  # of abc, bca, cab, abc the last is a repeat
    0.25
    """
    return abs(Repetition(n=3)([text])[0])


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list]:
    names = [name for name in (rows[0] if rows else {}) if name not in ("prompt", "completion")]
    return {"prompts": [row["prompt"] for row in rows]} | {name: [row[name] for row in rows] for name in names}


def _completion(text: str, prompt: str | list[dict]) -> str | list[dict]:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
