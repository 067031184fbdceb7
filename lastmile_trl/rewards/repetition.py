"""Penalties for text that repeats itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, ClassVar

from lastmile_trl.rewards.base import check_choice, check_whole, completion_text
from lastmile_trl.rewards.sentences import plain, sentences
from lastmile_trl.rewards.tokens import ngrams
from lastmile_trl.rewards.units import UNITS, needed, units


class _OverUnits:
    """What Repetition and Loop share: each completion is scored as the row of its units."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns it needs."""
        return needed(self.unit)

    def __call__(
        self, completions: Sequence, completion_ids: Sequence | None = None, **columns: Any
    ) -> list[float | None]:
        """Score each completion on its own."""
        rows = units(self.unit, completions, completion_ids)
        return [None if row is None else self._score(row) for row in rows]


@dataclass(frozen=True)
class Repetition(_OverUnits):
    """The share of the completion's n-grams that it has already said, as a penalty.

    Formula: `-(1 - different n-grams / n-grams)`.

    Range: (-1, 0]; 0 for a text that never repeats itself, and for one too short to hold an n-gram.

    Use: whenever completions run to more than a sentence or two.

    How it is gamed: by short texts, and by loops that change a little each time (numbering, synonyms). A long text
    that repeats itself once hardly feels it.

    Pair it with: loop, which sees one long loop at once, and a reward for the content such as rouge.

    Arguments:
        n: the length of an n-gram.
        unit: `words` (split at white space), `characters`, or `tokens` (the generated ones).

    >>> Repetition(n=2)(["a b c a b c a b c", "a b c"])
    [-0.625, 0.0]
    """

    n: int = 3
    unit: str = "words"

    def __post_init__(self) -> None:
        check_whole("n", self.n)
        check_choice("unit", self.unit, UNITS)

    @property
    def __name__(self) -> str:
        return "repetition"

    def _score(self, row: Sequence) -> float:
        total = len(row) - self.n + 1
        return len(set(ngrams(row, self.n))) / total - 1 if total > 0 else 0.0


@dataclass(frozen=True)
class Loop(_OverUnits):
    """The longest loop of the completion, a block that is said again at once, as a penalty.

    Formula: `-(units said again in the longest loop / units)`. A loop of period p is a stretch in which every unit
    equals the one p places before, and which holds its first p units at least twice: in `a b a b a b` four of six
    units are said again.

    Range: (-1, 0]; 0 for a text without a loop.

    Use: for models that fall into a loop and do not come out; one loop costs the more, the longer it runs.

    How it is gamed: by a loop that changes a little each time (numbering, synonyms), by one with a block longer than
    `longest`, and by a few words between the rounds.

    Pair it with: repetition and repeated_sentences, which see what is said again later.

    Arguments:
        longest: the longest block, in units, that is looked for.
        unit: `words` (split at white space), `characters` (any double letter is a short loop), or `tokens` (the
            generated ones).

    >>> Loop()(["a b a b", "a b c a b"])
    [-0.5, 0.0]
    """

    longest: int = 50
    unit: str = "words"

    def __post_init__(self) -> None:
        check_whole("longest", self.longest)
        check_choice("unit", self.unit, UNITS)

    @property
    def __name__(self) -> str:
        return "loop"

    def _score(self, row: Sequence) -> float:
        return -self._said_again(row) / max(len(row), 1)

    def _said_again(self, row: Sequence) -> int:
        found = 0
        for period in range(1, min(self.longest, len(row) // 2) + 1):
            equal = bytes(map(eq, row, row[period:]))  # a byte per place, as searching bytes is fast
            if b"\1" * period in equal:
                found = max(found, *map(len, equal.split(b"\0")))
        return found


@dataclass(frozen=True)
class RepeatedSentences:
    """The share of the completion's sentences that it has already said, as a penalty.

    Formula: `-(1 - different sentences / sentences)`; case and white space make no difference. A line without an end
    mark is a sentence too.

    Range: (-1, 0]; 0 for a text that says no sentence twice.

    Use: for summaries and answers of several sentences, where a sentence said again is a plain fault.

    How it is gamed: by one very long sentence, and by a word changed in the sentence that is said again.

    Pair it with: repetition, which sees a sentence that is said again with a word changed.

    Arguments: none.

    >>> RepeatedSentences()(["He left. She stayed. he  left. He left.", "He left."])
    [-0.5, 0.0]
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def __name__(self) -> str:
        return "repeated_sentences"

    def __call__(self, completions: Sequence, **columns: Any) -> list[float]:
        """Score each completion on its own."""
        return [self._score(completion_text(completion)) for completion in completions]

    def _score(self, text: str) -> float:
        said = list(filter(None, map(plain, sentences(text))))
        return len(set(said)) / len(said) - 1 if said else 0.0
