"""The lines on the pages: training curves, and how lengths and scores are spread over the rows."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from itertools import pairwise

POINTS = 80

# The curves that say how a run went, in reading order; `*` stands for a reward's or a metric's name.
CURVES = (
    "reward",
    "rewards/*/mean",
    "rewards/*",
    "eval_reward",
    "eval_rewards/*/mean",
    "eval_*",
    "guidance/reward_*guided",
    "guidance/*",
    "kl",
    "completions/mean_length",
    "completions/clipped_ratio",
    "entropy",
    "loss",
    "value/*",
    "mean_token_accuracy",
    "accuracy",
    "margin",
    "reward_std",
    "frac_reward_zero_std",
)
# Logged beside the evaluation's metrics, but about the machine or the spread.
UNINTERESTING = (
    "*runtime",
    "*per_second",
    "*num_tokens",
    "*std",
    "*completions/min_length",
    "*completions/max_length",
    "*_terminated_length",
    "*clip_ratio*",
    "*sampling/*",
    "*tools/*",
)

BINS = 20  # or a few more or less, so that they end at round numbers

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 150, 46, 8, 8, 20
CHARACTER, BESIDE = 6.4, 8  # of a label: a digit or a sign at most, and what lies beside it


# --- numbers ----------------------------------------------------------------------------------------------------------


def decimals_for(size: float) -> int:
    """How many decimals show three digits of a number of this size.

    >>> [decimals_for(size) for size in (250, 31.4, 2.7, 0.31, 0.004, 0)]
    [0, 1, 2, 3, 5, 3]
    """
    if size == 0 or 0.01 <= size < 1:
        return 3
    return min(8, max(0, 2 - math.floor(math.log10(size))))


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A number with a true minus sign and no negative zero.

    >>> number(-0.1234, 2), number(0.5, 1, sign=True), number(-0.001, 2)
    ('−0.12', '+0.5', '0.00')
    """
    value = round(value, decimals) + 0.0
    return f"{value:{'+' if sign and value else ''}.{decimals}f}".replace("-", "−")


def finite(value: object) -> float | None:
    """The value as a float, or None where there is no number to show."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


# --- panels -----------------------------------------------------------------------------------------------------------


def frame(
    first: float, last: float, low: float, high: float, labels: Iterable[str] = ()
) -> tuple[dict, Callable, Callable]:
    """A panel, and what turns values into places in it; what does not vary lies in the middle.

    It has room at its left for the `labels`.
    """
    left = max([LEFT, *(math.ceil(BESIDE + CHARACTER * len(text)) for text in labels)])
    right, top, bottom = WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def x(value: float) -> float:
        return round(left + (right - left) * ((value - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(top + (bottom - top) * ((high - value) / (high - low) if high > low else 0.5), 1)

    size = {"width": WIDTH, "height": HEIGHT}
    return size | {"left": left, "right": right, "top": top, "bottom": bottom}, x, y


def _path(points: Iterable[tuple[float, float]], x: Callable, y: Callable) -> str:
    return " ".join(f"{x(first)},{y(second)}" for first, second in points)


# --- training curves --------------------------------------------------------------------------------------------------


def curves(histories: dict[str, list[dict]], looks: dict[str, str]) -> dict:
    """One panel per logged quantity worth a look, one line per run in it."""
    keys = dict.fromkeys(key for rows in histories.values() for row in rows for key in row)
    panels, drawn = [], set()
    for key in in_order(keys):
        series = {run: points for run, rows in histories.items() if (points := points_of(rows, key))}
        if series:
            panels.append(_panel(key, series, looks))
            drawn.update(series)
    return {"panels": panels, "runs": [{"name": run, "look": looks[run]} for run in histories if run in drawn]}


def in_order(keys: Iterable[str]) -> list[str]:
    """The keys worth a panel, in reading order.

    >>> in_order(["loss", "eval_runtime", "grad_norm", "eval_words", "reward", "rewards/length/std"])
    ['reward', 'eval_words', 'loss']
    """
    kept = [key for key in keys if key == "reward_std" or not any(fnmatchcase(key, p) for p in UNINTERESTING)]
    return list(dict.fromkeys(key for pattern in CURVES for key in kept if fnmatchcase(key, pattern)))


def points_of(rows: list[dict], key: str) -> list[tuple[float, float]]:
    """The steps at which a finite number was logged under the key, with that number."""
    return [
        (step, value)
        for row in rows
        if (step := finite(row.get("step"))) is not None and (value := finite(row.get(key))) is not None
    ]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: the means of equal bins, as more cannot be told apart.

    >>> len(_thin([(step, 1.0) for step in range(2 * POINTS)])), _thin([(1, 0.5), (2, 0.25)])
    (80, [(1, 0.5), (2, 0.25)])
    """
    if len(points) <= POINTS:
        return points
    edges = [len(points) * index // POINTS for index in range(POINTS + 1)]
    bins = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


def _panel(key: str, series: dict[str, list[tuple[float, float]]], looks: dict[str, str]) -> dict:
    steps = [step for points in series.values() for step, _ in points]
    thinned = {run: _thin(points) for run, points in series.items()}
    values = [value for points in thinned.values() for _, value in points]
    low, high = min(values), max(values)
    decimals = max(0, 1 - math.floor(math.log10(high - low))) if high > low else decimals_for(abs(high))
    lowest, highest = number(low, decimals), number(high, decimals)
    size, x, y = frame(min(steps), max(steps), low, high, (lowest, highest))
    lines = [
        {
            "run": run,
            "look": looks[run],
            "path": _path(points, x, y),
            "dots": [(x(step), y(value)) for step, value in points] if len(points) <= 12 else [],
            "last": f"{run}: {number(points[-1][1], decimals)} at the end",
        }
        for run, points in thinned.items()
    ]
    return size | {
        "name": key,
        "low": lowest,
        "high": highest,
        "first": f"{min(steps):.0f}",
        "last": f"{max(steps):.0f}",
        "zero": y(0.0) if low < 0 < high else None,
        "lines": lines,
    }


# --- distributions ----------------------------------------------------------------------------------------------------


def distributions(result: dict, looks: dict[str, str]) -> list[dict]:
    """By decoding, one panel for the number of words and each metric, one line for each run's outputs as they are.

    Several samples of a row are several outputs.
    """
    metrics = sorted(result["metrics"], key=lambda name: name != "words")
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for output in (output for example in result["examples"] for output in example["outputs"]):
        if output["postprocessed"]:
            continue
        of_decoding = values.setdefault(output["decoding"], {})
        for name in metrics:
            of_run = of_decoding.setdefault(name, {}).setdefault(output["run"], [])
            each = output.get("values", output["metrics"]).get(name)
            known = map(finite, each if isinstance(each, list) else [each])
            of_run += [value for value in known if value is not None]
    return [
        {
            "decoding": decoding,
            "runs": [{"name": run, "look": looks[run]} for run in next(iter(of_decoding.values()))],
            "panels": [
                _spread(name, {run: sorted(known) for run, known in of_runs.items() if known}, looks)
                for name, of_runs in of_decoding.items()
                if any(of_runs.values())
            ],
        }
        for decoding, of_decoding in values.items()
    ]


def _spread(name: str, series: dict[str, list[float]], looks: dict[str, str]) -> dict:
    """The share of a run's outputs in each of equal bins; what lies far out is in the outermost ones."""
    pooled = sorted(value for known in series.values() for value in known)
    whole = all(value.is_integer() for value in pooled)
    low, high = pooled[0], pooled[-1]
    if not whole or high - low > BINS:
        low, high = _quantile(pooled, 0.01), _quantile(pooled, 0.99)
    width, start, count = _bins(low, high, whole)
    shares = {run: _shares(known, width, start, count) for run, known in series.items()}
    highest = max(max(of_run) for of_run in shares.values())
    size, x, y = frame(0, count, 0, highest)
    decimals = max(0, -math.floor(math.log10(width)))
    ends = [start * width, (start + count) * width - whole]
    first, last = (number(end, decimals) for end in ends)
    medians = {run: _quantile(known, 0.5) for run, known in series.items()}
    return size | {
        "name": name,
        "low": "0%",
        "high": f"{highest:.0%}",
        "first": f"≤ {first}" if pooled[0] < ends[0] else first,
        "last": None if first == last else f"≥ {last}" if pooled[-1] > (start + count) * width else last,
        "bins": f"bins of {number(width, decimals)}",
        "said": ", ".join(f"{run} has the median {number(of, decimals + 1)}" for run, of in medians.items()),
        "lines": [
            {
                "look": looks[run],
                "path": _path(_steps(of_run), x, y),
                "said": f"{run}: the middle half from {number(_quantile(series[run], 0.25), decimals + 1)} "
                f"to {number(_quantile(series[run], 0.75), decimals + 1)}, of {len(series[run])}",
            }
            for run, of_run in shares.items()
        ],
    }


def _bins(low: float, high: float, whole: bool) -> tuple[float, int, int]:
    """The width of a bin, how many of that width the first is from 0, and how many bins there are.

    >>> _bins(0, 1, whole=True), _bins(3, 47, whole=True), _bins(0.12, 0.9, whole=False)
    ((1, 0, 2), (5, 0, 10), (0.05, 2, 16))
    """
    size = max(1.0, abs(high))
    reach = (high - low if high - low > 1e-9 * size else size) / BINS  # rounding is no spread
    unit = 10.0 ** math.floor(math.log10(reach))
    width = next(step * unit for step in (1, 2, 5, 10) if step * unit >= reach * (1 - 1e-9))
    width = max(1, round(width)) if whole else width
    start = math.floor(low / width + 1e-9)
    end = math.floor(high / width) if whole else math.ceil(high / width - 1e-9) - 1
    return width, start, max(1, end - start + 1)


def _shares(values: list[float], width: float, start: int, count: int) -> list[float]:
    places = Counter(min(count - 1, max(0, math.floor(value / width + 1e-9) - start)) for value in values)
    return [places[place] / len(values) for place in range(count)]


def _steps(shares: list[float]) -> list[tuple[float, float]]:
    """The outline of bars, from the ground to the ground."""
    tops = [(edge, share) for place, share in enumerate(shares) for edge in (place, place + 1)]
    return [(0, 0), *tops, (len(shares), 0)]


def _quantile(values: list[float], share: float) -> float:
    """The value that this share of sorted values lies below.

    >>> _quantile([1, 2, 3, 10], 0.5), _quantile([1, 2, 3, 10], 0.99)
    (2, 10)
    """
    return values[max(0, math.ceil(share * len(values)) - 1)]
