"""Rewards for the length of a completion, measured against the reference's."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lastmile_trl.rewards.base import check_choice, check_number, completion_text, reference_texts


@dataclass(frozen=True)
class Length:
    """How far the completion's length is from the reference's: a brake to set beside a reward that length can buy.

    Formula, with `rho = length of the completion / length of the reference`:
        excess:   `-min(1, max(0, rho - (1 + tolerance)))`, in [-1, 0]: only what is too long costs;
        ratio:    `min(rho, 1 / rho)`, in [0, 1]: twice and half the length cost the same;
        gaussian: `exp(-(rho - 1)^2 / (2 sigma^2))`, in [0, 1]: sharp near the reference, flat far from it.
    Of several references the one nearest in length counts, of two equally near the shorter one; None where all are
    empty.

    How a policy games it: it says nothing about content. `excess` alone is best served by an empty completion, the
    other two by any text of the right length.

    Arguments:
        variant: `excess`, `ratio` or `gaussian`.
        tolerance: for `excess`, the share above the reference's length that costs nothing.
        sigma: for `gaussian`, the relative distance at which the reward has fallen to 0.61.
        unit: `words` (split at white space) or `characters`.

    >>> Length("ratio")(["two words", "now it is four"], references=["four words in all", "four words in all"])
    [0.5, 1.0]
    """

    variant: str = "excess"
    tolerance: float = 0.1
    sigma: float = 0.25
    unit: str = "words"

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("excess", "ratio", "gaussian"))
        check_choice("unit", self.unit, ("words", "characters"))
        check_number("tolerance", self.tolerance, least=0)
        check_number("sigma", self.sigma, least=0, exclusive=True)

    @property
    def __name__(self) -> str:
        return f"length/{self.variant}"

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion's length against its row's references."""
        return [
            self._score(self._length(completion_text(completion)), map(self._length, reference_texts(texts)))
            for completion, texts in zip(completions, references, strict=True)
        ]

    def _score(self, length: int, targets: Iterable[int]) -> float | None:
        target = min(filter(None, targets), key=lambda target: (abs(target - length), target), default=None)
        if target is None:
            return None
        rho = length / target
        if self.variant == "excess":
            return max(-1.0, min(0.0, 1 + self.tolerance - rho))
        if self.variant == "ratio":
            return min(length, target) / max(length, target)
        return math.exp(-((rho - 1) ** 2) / (2 * self.sigma**2))

    def _length(self, text: str) -> int:
        return len(text.split()) if self.unit == "words" else len(text.strip())
