"""A penalty for text that repeats itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lastmile_trl.rewards.base import check_choice, check_whole, completion_text


@dataclass(frozen=True)
class Repetition:
    """The share of the completion's n-grams that it has already said, as a penalty.

    Formula: `-(1 - different n-grams / n-grams)`.

    Range: (-1, 0]; 0 for a text that never repeats itself, and for one too short to hold an n-gram.

    How a policy games it: by short texts, and by loops that change a little each time (numbering, synonyms).

    Arguments:
        n: the length of an n-gram.
        unit: `words` (split at white space) or `characters`.

    >>> Repetition(n=2)(["a b c a b c a b c", "a b c"])
    [-0.625, 0.0]
    """

    n: int = 3
    unit: str = "words"

    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_whole("n", self.n)
        check_choice("unit", self.unit, ("words", "characters"))

    @property
    def __name__(self) -> str:
        return "repetition"

    def __call__(self, completions: Sequence, **columns: Any) -> list[float]:
        """Score each completion on its own."""
        return [self._score(completion_text(completion)) for completion in completions]

    def _score(self, text: str) -> float:
        units = text.split() if self.unit == "words" else text
        total = len(units) - self.n + 1
        if total < 1:
            return 0.0
        ngrams = zip(*(units[start:] for start in range(self.n)), strict=False)
        return len(set(ngrams)) / total - 1
