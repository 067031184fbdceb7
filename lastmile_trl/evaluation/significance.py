"""How sure a mean is: bootstrap intervals over rows, randomisation tests of differences, and other seeds as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
FLIPS = 9999
EXACT = 13  # rows whose 8,192 flips are all looked at
LEVEL = 0.05  # a corrected p below it shows a difference
CELLS = 4_000_000  # of a random matrix at once: bounds the memory of large test sets


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, 95 % unless asked for another, and the number of rows it was computed from."""

    mean: float
    low: float
    high: float
    rows: int

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval.

        >>> Interval(0.2, 0.1, 0.3, rows=50).excludes_zero, Interval(0.1, -0.1, 0.3, rows=50).excludes_zero
        (True, False)
        """
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference with its p, alone and corrected for all that it stands among; None where nobody tested it."""

    p: float | None = None
    p_adjusted: float | None = None

    @property
    def shown(self) -> bool:
        """Whether there is a difference: by the corrected p, or by the interval where there is no p.

        >>> Difference(0.2, 0.1, 0.3, rows=50, p=0.01, p_adjusted=0.3).shown, Difference(0.2, 0.1, 0.3, rows=50).shown
        (False, True)
        """
        return self.excludes_zero if self.p_adjusted is None else self.p_adjusted < LEVEL


def interval(values: Sequence[float | None], seed: int = 0) -> Interval | None:
    """The mean over the rows that have a value; None when none has.

    >>> interval([1.0, None, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0, rows=2)
    """
    kept = [value for value in values if value is not None]
    return _bootstrap(np.array(kept, dtype=float), seed) if kept else None


def minus(values: Sequence[float | None], baseline: Sequence[float | None]) -> list[float | None]:
    """The differences row by row, None where either has no value.

    >>> minus([0.5, 0.75, None], [0.25, 0.5, 0.1])
    [0.25, 0.25, None]
    """
    pairs = zip(values, baseline, strict=True)
    return [None if value is None or base is None else value - base for value, base in pairs]


def paired(
    values: Sequence[float | None], baseline: Sequence[float | None], seed: int = 0, level: float = 0.95
) -> Interval | None:
    """The mean of `values - baseline` over the rows that have both; None below two rows, which show nothing.

    >>> paired([0.5, 0.75, None], [0.25, 0.5, 0.1])
    Interval(mean=0.25, low=0.25, high=0.25, rows=2)
    """
    differences = [difference for difference in minus(values, baseline) if difference is not None]
    return _bootstrap(np.array(differences), seed, level) if len(differences) > 1 else None


def randomisation(differences: Sequence[float | None], seed: int = 0) -> float | None:
    """The two-sided p of a mean difference: how often random signs of the rows' differences make it as large.

    If neither run were better, each row's difference could as well have had the other sign. Few rows have all their
    signs looked at, more have 9,999 draws. None below two rows.

    >>> randomisation([1.0, 2.0, 3.0, None])  # of 8 sums, 6 and -6 are as large
    0.25
    """
    return randomisations([differences], seed)[0]


def randomisations(columns: Sequence[Sequence[float | None]], seed: int = 0) -> list[float | None]:
    """The p of every column of differences, all of the same rows and under the same signs.

    >>> randomisations([[1.0, 2.0, 3.0], [1.0, 0.0, -1.0], [0.5, None, None]])
    [0.25, 1.0, None]
    """
    if not columns:
        return []
    given = np.array(columns, dtype=float)  # None becomes nan
    values = np.nan_to_num(given)  # a difference of 0 has no say in any sum
    sums = abs(values.sum(axis=1)) - 1e-10 * abs(values).sum(axis=1)  # the order of adding makes no difference
    few = np.count_nonzero(values, axis=1) <= EXACT
    p = np.ones(len(values))
    p[few] = [_all_flips(row[row != 0], least) for row, least in zip(values[few], sums[few], strict=True)]
    if not few.all():
        as_large = sum(
            (abs(values[~few] @ signs.T) >= sums[~few, None]).sum(axis=1) for signs in _signs(values.shape[1], seed)
        )
        p[~few] = (1 + as_large) / (1 + FLIPS)
    enough = (~np.isnan(given)).sum(axis=1) > 1
    return [float(value) if tested else None for value, tested in zip(p, enough, strict=True)]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrected for their number: the chance of any false alarm among those below 0.05 is 5 %, however they depend.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for done, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - done) * p))
        adjusted[place] = least
    return adjusted


def over_seeds(values: Sequence[Sequence[float | None]]) -> Difference | None:
    """The mean of seeds x rows with a 95 % interval and a p of its being 0, for other seeds and other rows alike.

    Seeds and rows are crossed. The variance of the mean is that of the seeds' means / seeds + that of the rows' means
    / rows - what they share, and at least the larger of the two; the interval is Student's t with Satterthwaite's
    degrees of freedom, and at least that of the seeds' means alone, without which two or three seeds would raise
    false alarms. Rows that lack a value for any seed are left out; None below two seeds or two rows.

    Few seeds find only what is large beside their spread, of which so few numbers hardly tell: what is not shown may
    well be there, as docs/evaluation.md says in figures.

    >>> found = over_seeds([[0.1, 0.3, 0.2], [0.2, 0.4, 0.3]])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), round(found.p, 3)
    (0.25, -0.385, 0.885, 0.126)
    """
    given = np.array(values, dtype=float)
    if len(given) < 2:
        return None
    given = given[:, ~np.isnan(given).any(axis=0)]
    seeds, rows = given.shape
    if rows < 2:
        return None
    mean, of_seeds, of_rows = given.mean(), given.mean(axis=1), given.mean(axis=0)
    residual = given - of_seeds[:, None] - of_rows + mean
    by_seed, by_row = of_seeds.var(ddof=1) / seeds, of_rows.var(ddof=1) / rows
    shared = (residual**2).sum() / ((seeds - 1) * (rows - 1)) / (seeds * rows)
    variance = max(by_seed + by_row - shared, by_seed, by_row)
    weights = by_seed**2 / (seeds - 1) + by_row**2 / (rows - 1)
    freedom = max(1.0, variance**2 / weights) if weights else 1.0
    (reach, p), (least, least_p) = _student(mean, variance, freedom), _student(mean, by_seed, seeds - 1)
    reach = max(reach, least)
    return Difference(float(mean), float(mean - reach), float(mean + reach), rows, max(p, least_p))


def _student(mean: float, variance: float, freedom: float) -> tuple[float, float]:
    """Half the 95 % interval of a mean, and the p of its being 0, by Student's t.

    Where the angle of t is arctan(t / sqrt(freedom)), its density is cos(angle) ** (freedom - 1): easily summed.
    """
    freedom = min(freedom, 10_000)  # as good as normal, and a peak that the grid still holds
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    share = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    share /= share[-1]
    scale = np.sqrt(variance * freedom)
    reach = scale * np.tan(np.interp(1 - LEVEL, share, angles))
    return float(reach), float(1 - np.interp(np.arctan2(abs(mean), scale), angles, share))


def _all_flips(values: np.ndarray, least: float) -> float:
    signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    return (abs(signs @ values) >= least).mean()


def _signs(rows: int, seed: int) -> Iterator[np.ndarray]:
    random, at_once = np.random.default_rng(seed), max(1, CELLS // rows)
    for done in range(0, FLIPS, at_once):
        yield 1.0 - 2.0 * random.integers(0, 2, size=(min(at_once, FLIPS - done), rows), dtype=np.int8)


def _bootstrap(values: np.ndarray, seed: int, level: float = 0.95) -> Interval:
    means = np.concatenate([values[drawn].mean(axis=1) for drawn in _resamples(len(values), seed)])
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high), rows=len(values))


def _resamples(rows: int, seed: int) -> Iterator[np.ndarray]:
    if rows * RESAMPLES <= CELLS:
        yield _few_resamples(rows, seed)
        return
    random, at_once = np.random.default_rng(seed), max(1, CELLS // rows)
    for done in range(0, RESAMPLES, at_once):
        yield random.integers(0, rows, size=(min(at_once, RESAMPLES - done), rows))


@lru_cache(maxsize=4)  # all metrics of a test set use the same
def _few_resamples(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, rows, size=(RESAMPLES, rows))
