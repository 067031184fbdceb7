"""What the user did that cannot work, said in one sentence."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(Exception):
    """Wrong input: the message says what is wrong, where, and what to do. The command exits with 2."""


class RunError(Exception):
    """A run that failed for a known reason. The command exits with 1."""


def first_line(error: BaseException) -> str:
    """What an error says first, to stand in a sentence.

    >>> first_line(ValueError("No such key.\\nSee the manual.")), first_line(KeyboardInterrupt())
    ('No such key', 'KeyboardInterrupt')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that looks most like `word`, whatever its case, or None when none does.

    >>> nearest("rougel", ["rouge1", "rougeL"])
    'rougeL'
    """
    by_lower_case = {name.lower(): name for name in valid}
    matches = difflib.get_close_matches(str(word).lower(), by_lower_case, n=1)
    return by_lower_case[matches[0]] if matches else None


def did_you_mean(word: Any, valid: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest valid one, or nothing.

    >>> did_you_mean("learning_rat", ["learning_rate", "seed"])
    ", did you mean 'learning_rate'?"
    """
    close = nearest(word, valid)
    return f", did you mean {close!r}?" if close else "."


def unknown(what: str, word: Any, valid: Iterable[str]) -> InputError:
    """Return the error for a name that does not exist: the nearest valid one, and all of them.

    >>> print(unknown("unit", "word", ["words", "characters"]))
    unit 'word' does not exist: did you mean 'words'? Valid: words, characters.
    """
    valid = list(valid)
    close = nearest(word, valid)
    hint = f": did you mean '{close}'?" if close else "."
    return InputError(f"{what} {word!r} does not exist{hint} Valid: {', '.join(valid)}.")
