"""Rewards for the length of a completion."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import check_choice, check_number, check_whole, completion_text, reference_texts
from lastmile_trl.rewards.units import UNITS, needed, units


@dataclass(frozen=True)
class Length:
    """How far the completion's length is from the reference's, or from a fixed one.

    Formula: with `rho = length of the completion / length of the reference`,
        excess:   `-min(1, max(0, rho - (1 + tolerance)))`: only what is too long costs;
        ratio:    `min(rho, 1 / rho)`: twice and half the length cost the same;
        gaussian: `exp(-(rho - 1)^2 / (2 sigma^2))`: sharp near the reference, flat far from it.
    Of several references the one nearest in length counts, of two equally near the shorter one.

    Range: [-1, 0] for `excess`, [0, 1] for `ratio` and `gaussian`. None where all references are empty.

    Use: as a brake beside a reward that length can buy, such as a recall.

    How it is gamed: it says nothing about content. `excess` alone is best served by an empty completion, the other
    two by any text of the right length.

    Pair it with: rouge, combined_rouge, bertscore or coverage; with `excess` never alone.

    Arguments:
        variant: `excess`, `ratio` or `gaussian`.
        tolerance: for `excess`, the share above the reference's length that costs nothing.
        sigma: for `gaussian`, the relative distance at which the reward has fallen to `exp(-1/2)`.
        unit: `words` (split at white space), `characters`, or `tokens` (the generated ones, with the end token; needs
            a target).
        target: a length in this unit to compare with; then no references are needed.

    >>> Length("ratio")(["two words", "now it is four"], references=["four words in all", "four words in all"])
    [0.5, 1.0]
    >>> Length("ratio", target=8)(["two words", "now it is four"])
    [0.25, 0.5]
    """

    variant: str = "excess"
    tolerance: float = 0.1
    sigma: float = 0.25
    unit: str = "words"
    target: float | None = None

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("excess", "ratio", "gaussian"))
        check_choice("unit", self.unit, UNITS)
        check_number("tolerance", self.tolerance, least=0)
        check_number("sigma", self.sigma, least=0, exclusive=True)
        if self.target is not None:
            check_number("target", self.target, least=0, exclusive=True)
        elif self.unit == "tokens":
            raise InputError("unit 'tokens' needs a target: references have no generated tokens to compare with.")

    @property
    def __name__(self) -> str:
        return f"length/{self.variant}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns it needs."""
        return ("references",) if self.target is None else needed(self.unit)

    def __call__(
        self,
        completions: Sequence,
        references: Sequence | None = None,
        completion_ids: Sequence | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score each completion's length against the target, or against its row's references."""
        lengths = _lengths(self.unit, completions, completion_ids)
        if self.target is not None:
            targets = [[self.target]] * len(lengths)
        elif references is not None:
            targets = [_lengths(self.unit, reference_texts(texts)) for texts in references]
        else:
            raise ValueError("there is nothing to compare the length with: pass references, or give a target.")
        return [self._score(length, several) for length, several in zip(lengths, targets, strict=True)]

    def _score(self, length: int | None, targets: Iterable[float]) -> float | None:
        if length is None:
            return None
        target = min(filter(None, targets), key=lambda target: (abs(target - length), target), default=None)
        if target is None:
            return None
        rho = length / target
        if self.variant == "excess":
            return max(-1.0, min(0.0, 1 + self.tolerance - rho))
        if self.variant == "ratio":
            return min(length, target) / max(length, target)
        return math.exp(-((rho - 1) ** 2) / (2 * self.sigma**2))


@dataclass(frozen=True)
class Overlong:
    """A soft limit: a completion that comes near the limit costs a little, one at the limit everything (from DAPO).

    Formula: `-min(1, max(0, 1 - (limit - length) / margin))`.

    Range: [-1, 0]; 0 up to `limit - margin`, -1 from `limit` on.

    Use: to keep completions within the budget of tokens, with the run's `max_completion_length` as the limit.

    How it is gamed: by any short text; below the margin it is blind.

    Pair it with: ending, and a reward for the content such as rouge.

    Arguments:
        limit: the length from which the reward is -1.
        margin: how far below the limit the penalty begins; a fifth of the limit if not given.
        unit: `tokens` (the generated ones, with the end token), `words` (split at white space) or `characters`.

    >>> Overlong(limit=4, margin=2, unit="words")(["one two", "one two three", "one two three four"])
    [0.0, -0.5, -1.0]
    """

    limit: int
    margin: float | None = None
    unit: str = "tokens"

    def __post_init__(self) -> None:
        check_whole("limit", self.limit)
        check_choice("unit", self.unit, UNITS)
        if self.margin is not None:
            check_number("margin", self.margin, least=0, exclusive=True)
            if self.margin > self.limit:
                raise InputError(f"margin must be at most the limit, {self.limit}, not {self.margin!r}.")

    @property
    def __name__(self) -> str:
        return "overlong"

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns it needs."""
        return needed(self.unit)

    def __call__(
        self, completions: Sequence, completion_ids: Sequence | None = None, **columns: Any
    ) -> list[float | None]:
        """Score each completion's length on its own."""
        return [
            None if length is None else self._score(length)
            for length in _lengths(self.unit, completions, completion_ids)
        ]

    def _score(self, length: int) -> float:
        margin = self.limit / 5 if self.margin is None else self.margin
        return max(-1.0, min(0.0, (self.limit - length) / margin - 1))


def _lengths(unit: str, completions: Sequence, completion_ids: Sequence | None = None) -> list[int | None]:
    texts = [completion_text(completion).strip() for completion in completions]
    return [None if row is None else len(row) for row in units(unit, texts, completion_ids)]
