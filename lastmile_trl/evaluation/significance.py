"""How sure a mean is: 95 % percentile bootstrap intervals over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, 95 % unless asked for another, and the number of rows it was computed from."""

    mean: float
    low: float
    high: float
    rows: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval: a difference is shown.

        >>> Interval(0.2, 0.1, 0.3, rows=50).excludes_zero, Interval(0.1, -0.1, 0.3, rows=50).excludes_zero
        (True, False)
        """
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float | None], seed: int = 0) -> Interval | None:
    """The mean over the rows that have a value; None when none has.

    >>> interval([1.0, None, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0, rows=2)
    """
    kept = [value for value in values if value is not None]
    return _bootstrap(np.array(kept, dtype=float), seed) if kept else None


def paired(
    values: Sequence[float | None], baseline: Sequence[float | None], seed: int = 0, level: float = 0.95
) -> Interval | None:
    """The mean of `values - baseline` over the rows that have both; None below two rows, which show nothing.

    >>> paired([0.5, 0.75, None], [0.25, 0.5, 0.1])
    Interval(mean=0.25, low=0.25, high=0.25, rows=2)
    """
    pairs = zip(values, baseline, strict=True)
    differences = [value - base for value, base in pairs if value is not None and base is not None]
    return _bootstrap(np.array(differences), seed, level) if len(differences) > 1 else None


def _bootstrap(values: np.ndarray, seed: int, level: float = 0.95) -> Interval:
    random = np.random.default_rng(seed)
    rows = len(values)
    at_once = max(1, 4_000_000 // rows)  # bounds the memory of large test sets
    means = [
        values[random.integers(0, rows, size=(min(at_once, RESAMPLES - done), rows))].mean(axis=1)
        for done in range(0, RESAMPLES, at_once)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high), rows=rows)
