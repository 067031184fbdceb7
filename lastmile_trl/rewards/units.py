"""What the length of a completion is counted in."""

from collections.abc import Sequence

from lastmile_trl.rewards.base import completion_text

UNITS = ("words", "characters", "tokens")


def units(unit: str, completions: Sequence, completion_ids: Sequence | None = None) -> list[Sequence | None]:
    """Return each completion as its words (split at white space), its characters, or the ids of its generated tokens.

    A row without ids has no tokens to count: None.

    >>> units("words", ["two words"]), units("characters", ["two"]), units("tokens", ["two"], [[14, 2]])
    ([['two', 'words']], ['two'], [[14, 2]])
    """
    if unit != "tokens":
        texts = map(completion_text, completions)
        return [text.split() if unit == "words" else text for text in texts]
    if completion_ids is None:
        raise ValueError("unit 'tokens' counts generated tokens: pass completion_ids, a list of ids per completion.")
    return [ids.tolist() if hasattr(ids, "tolist") else ids for ids, _ in zip(completion_ids, completions, strict=True)]


def needed(unit: str) -> tuple[str, ...]:
    """Return the columns that counting in this unit needs."""
    return ("completion_ids",) if unit == "tokens" else ()
