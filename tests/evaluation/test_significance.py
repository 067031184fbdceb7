import numpy as np
import pytest

from lastmile_trl.evaluation import significance
from lastmile_trl.evaluation.significance import Interval, interval, paired


def test_the_mean_and_a_slow_bootstrap_agree():
    values = [0.0, 0.1, 0.1, 0.4, 0.9, 1.0, 0.3, 0.2]
    found = interval(values, seed=5)
    random = np.random.default_rng(5)
    means = []
    for _ in range(2000):
        total = 0.0
        for row in random.integers(0, len(values), size=len(values)):
            total += values[row]
        means.append(total / len(values))
    means.sort()
    assert found.mean == pytest.approx(0.375)
    # the 2.5 % point lies between the 50th and the 51st of 2,000 sorted means
    assert means[49] <= found.low <= means[50]
    assert means[1949] <= found.high <= means[1950]
    assert found.rows == 8


def test_the_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    found = interval(values.tolist())
    half = 1.96 * values.std() / 1000**0.5
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_pairing_removes_what_the_rows_share():
    random = np.random.default_rng(1)
    hardness = random.normal(0, 10, size=200)
    baseline = hardness + random.normal(0, 0.1, size=200)
    better = hardness + 0.1 + random.normal(0, 0.1, size=200)
    found = paired(better.tolist(), baseline.tolist())
    assert found.excludes_zero
    assert found.low > 0
    assert interval(better.tolist()).high - interval(better.tolist()).low > 50 * (found.high - found.low)


def test_when_nothing_differs_zero_is_excluded_in_a_twentieth_of_the_trials():
    random = np.random.default_rng(2)
    trials = 400
    excluded = sum(
        paired(random.exponential(size=100).tolist(), random.exponential(size=100).tolist(), seed=trial).excludes_zero
        for trial in range(trials)
    )
    spread = (trials * 0.05 * 0.95) ** 0.5
    assert abs(excluded - trials * 0.05) <= 3 * spread


def test_rows_without_a_value_are_dropped_in_pairs():
    values, baseline = [1.0, None, 3.0, 5.0, None], [0.0, 2.0, None, 1.0, None]
    assert paired(values, baseline) == paired([1.0, 5.0], [0.0, 1.0])
    assert paired(values, baseline).mean == 2.5
    assert paired(values, baseline).rows == 2
    assert interval([None, 2.0, None]) == Interval(2.0, 2.0, 2.0, rows=1)


def test_nothing_to_say():
    assert interval([None, None]) is None
    assert interval([]) is None
    assert paired([None, 1.0], [1.0, None]) is None
    assert paired([1.0], [0.0]) is None, "one row shows nothing"


def test_lists_of_two_lengths_are_refused():
    with pytest.raises(ValueError):
        paired([1.0, 2.0], [1.0])


def test_seeds():
    values = list(np.random.default_rng(3).normal(size=50))
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_many_rows_are_resampled_in_parts(monkeypatch):
    shapes = []

    class Spy:
        def __init__(self, seed):
            self.inner = np.random.Generator(np.random.PCG64(seed))

        def integers(self, low, high, size):
            shapes.append(size)
            return self.inner.integers(low, high, size=size)

    monkeypatch.setattr(significance.np.random, "default_rng", Spy)
    found = interval(np.linspace(0, 1, 5000).tolist())
    assert shapes == [(800, 5000), (800, 5000), (400, 5000)]
    assert found.low < found.mean == 0.5 < found.high


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 1, True), (-2, -1, True), (0.0, 1, False), (-1, 0.0, False)]
)
def test_excludes_zero(low, high, expected):
    assert Interval(0.5, low, high, rows=9).excludes_zero is expected
