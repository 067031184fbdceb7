"""The evaluation as one page that opens anywhere: answer, table, training curves, examples side by side."""

import json
import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

from lastmile_trl.evaluation.metrics import ALWAYS_MEASURED
from lastmile_trl.files import write_whole

COLOURS = 7
POINTS = 80

# The curves that say how a run went, in reading order; `*` stands for a reward's or a metric's name.
CURVES = (
    "reward",
    "rewards/*/mean",
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
    "value_loss",
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

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 150, 46, 8, 8, 20


def write_report(result: dict, histories: dict[str, list[dict]], path: Path, notes: Sequence[str] = ()) -> Path:
    """Write the comparison `result` and the runs' training `histories` as one HTML file that needs no network.

    `result` is what `compare` returns; `histories` maps a run's name to its logged rows; `notes` are paragraphs shown
    under the table. Returns `path`.
    """
    from markupsafe import Markup

    from lastmile_trl.evaluation.comparison import answer, how_tested

    runs = list(dict.fromkeys([*(entry["run"] for entry in result["results"]), *histories]))
    slots = {run: index % COLOURS for index, run in enumerate(runs)}
    # An unescaped `<` would let a completion close the script element that carries the examples.
    examples = json.dumps(_browser(result, slots), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return fill(
        "report.html.jinja",
        path,
        title=_title(result),
        answer=answer(result),
        rows=result["rows"],
        baseline=result["baseline"],
        notes=notes,
        table=_table(result, slots),
        how_tested=how_tested(result),
        curves=curves(histories, slots),
        points=POINTS,
        colours=COLOURS,
        examples=Markup(examples),
    )


def fill(template: str, path: Path, **content: object) -> Path:
    """Write one of the package's pages with its content, all of which is escaped. Returns `path`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lastmile_trl"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(content)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    return path


def _title(result: dict) -> str:
    runs = list(dict.fromkeys(entry["run"] for entry in result["results"]))
    others = [run for run in runs if run != result["baseline"]]
    return f"{', '.join(others)} against {result['baseline']}" if others else result["baseline"]


# The table


def _table(result: dict, slots: dict[str, int]) -> dict:
    """Rows grouped by decoding, because a difference is always taken at the same decoding."""
    from lastmile_trl.evaluation.comparison import by_decoding, label

    shown, primary, baseline = by_decoding(result), next(iter(result["metrics"])), result["baseline"]
    entries = [entry for of_decoding in shown.values() for entry in of_decoding]
    decimals = {
        name: decimals_for(_largest(entry["metrics"].get(name) for entry in entries)) for name in result["metrics"]
    }
    kinds = {
        kind: processed
        for kind, processed in (("difference", False), ("difference_to_postprocessed", True))
        if any(_of(entry, kind, primary) for entry in entries)
    }
    ends = [
        d[end] for entry in entries for kind in kinds if (d := _of(entry, kind, primary)) for end in ("low", "high")
    ]
    low, high = min([0.0, *ends]), max([0.0, *ends])

    groups: dict[str, list[dict]] = {}
    for entry in entries:
        runs = entry.get("seeds", [entry["run"]])
        reference = entry["postprocessed"] if baseline in runs else None
        groups.setdefault(entry["decoding"], []).append(
            {
                "run": entry["run"],
                "slot": slots[runs[0]],
                "details": label(entry).removeprefix(entry["run"]).removeprefix(", "),
                "differences": [
                    "baseline"
                    if reference is processed
                    else _whisker(_of(entry, kind, primary), low, high, result["rows"])
                    for kind, processed in kinds.items()
                ],
                "cells": [
                    _cell(
                        entry["metrics"].get(name),
                        _of(entry, "difference", name),
                        ALWAYS_MEASURED.get(name, "higher"),
                        decimals[name],
                    )
                    for name in result["metrics"]
                ],
            }
        )
    return {
        "primary": primary,
        "against": [f"{baseline}, post-processed" if processed else baseline for processed in kinds.values()],
        "metrics": [{"name": name, "rewarded": about["rewarded"]} for name, about in result["metrics"].items()],
        "groups": groups,
    }


def _of(entry: dict, kind: str, metric: str) -> dict | None:
    return (entry[kind] or {}).get(metric)


def _largest(intervals: Iterable[dict | None]) -> float:
    return max((abs(interval["mean"]) for interval in intervals if interval), default=0.0)


def _cell(interval: dict | None, difference: dict | None, better: str | None, decimals: int) -> dict | None:
    if interval is None:
        return None
    from lastmile_trl.evaluation.comparison import moved

    where = moved(difference)
    return {
        "mean": number(interval["mean"], decimals),
        "interval": f"[{number(interval['low'], decimals)}, {number(interval['high'], decimals)}]",
        "moved": where,
        "worse": bool(where and better) and where != better,
    }


def _whisker(difference: dict | None, low: float, high: float, rows: int) -> dict | None:
    """The interval as numbers to read, and as per cent of a line from `low` to `high` to draw."""
    if difference is None:
        return None
    from lastmile_trl.evaluation.comparison import moved, outcome
    from lastmile_trl.evaluation.significance import Difference

    decimals = decimals_for(max(abs(difference["low"]), abs(difference["high"])))
    values = {"zero": 0.0} | {key: difference[key] for key in ("low", "mean", "high")}
    return {
        "moved": moved(difference),
        "outcome": outcome(Difference(**difference)),
        "mean": number(difference["mean"], decimals, sign=True),
        "interval": f"[{', '.join(number(difference[end], decimals, sign=True) for end in ('low', 'high'))}]",
        "rows": difference["rows"] if difference["rows"] < rows else None,
        "at": {key: round(100 * (value - low) / ((high - low) or 1.0), 2) for key, value in values.items()},
    }


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


def _finite(value: object) -> float | None:
    """The value as a float, or None where there is no number to show."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


# The training curves


def curves(histories: dict[str, list[dict]], slots: dict[str, int]) -> dict:
    """One panel per logged quantity worth a look, one line per run in it."""
    keys = dict.fromkeys(key for rows in histories.values() for row in rows for key in row)
    panels, drawn = [], set()
    for key in in_order(keys):
        series = {run: points for run, rows in histories.items() if (points := points_of(rows, key))}
        if series:
            panels.append(_panel(key, series, slots))
            drawn.update(series)
    return {"panels": panels, "runs": [{"name": run, "slot": slots[run]} for run in histories if run in drawn]}


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
        if (step := _finite(row.get("step"))) is not None and (value := _finite(row.get(key))) is not None
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


def _panel(key: str, series: dict[str, list[tuple[float, float]]], slots: dict[str, int]) -> dict:
    steps = [step for points in series.values() for step, _ in points]
    thinned = {run: _thin(points) for run, points in series.items()}
    values = [value for points in thinned.values() for _, value in points]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    decimals = max(0, 1 - math.floor(math.log10(high - low))) if high > low else decimals_for(abs(high))

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * ((step - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * ((high - value) / (high - low) if high > low else 0.5), 1)

    lines = [
        {
            "run": run,
            "slot": slots[run],
            "path": " ".join(f"{x(step)},{y(value)}" for step, value in points),
            "dots": [(x(step), y(value)) for step, value in points] if len(points) <= 12 else [],
            "last": f"{run}: {number(points[-1][1], decimals)} at the end",
        }
        for run, points in thinned.items()
    ]
    return {
        "name": key,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "low": number(low, decimals),
        "high": number(high, decimals),
        "first": f"{first:.0f}",
        "last": f"{last:.0f}",
        "zero": y(0.0) if low < 0 < high else None,
        "lines": lines,
    }


# The examples


def _browser(result: dict, slots: dict[str, int]) -> dict:
    """What the page's script needs: a column per output, and per example the texts and values in that order."""
    metrics = list(result["metrics"])
    entries = [(entry["run"], entry["decoding"], entry["postprocessed"]) for entry in result["results"]]
    examples = []
    for example in result["examples"]:
        outputs = {(o["run"], o["decoding"], o["postprocessed"]): o for o in example["outputs"]}
        examples.append(
            {
                "prompt": plain(example["prompt"]),
                "references": example["references"],
                "outputs": [_output(outputs.get(entry), metrics) for entry in entries],
            }
        )
    first = entries[0][1]
    raw = [index for index, (_, decoding, processed) in enumerate(entries) if decoding == first and not processed]
    others = [index for index in raw if entries[index][0] != result["baseline"]]
    return {
        "metrics": metrics,
        "baseline": next((index for index in raw if index not in others), None),
        "last": (others or raw)[-1],
        "columns": [
            {
                "run": run,
                "how": decoding + (", post-processed" if postprocessed else ""),
                "slot": slots[run],
                "shown": decoding == first,
            }
            for run, decoding, postprocessed in entries
        ],
        "examples": examples,
    }


def _output(output: dict | None, metrics: list[str]) -> dict | None:
    if output is None:
        return None
    values = [_finite(output["metrics"].get(name)) for name in metrics]
    return {"text": output["text"], "values": [None if v is None else float(f"{v:.6g}") for v in values]}


def plain(prompt: str | list[dict]) -> str:
    """A prompt as text; of a conversation every message with its role before it.

    >>> plain([{"role": "user", "content": "Hello?"}])
    'user: Hello?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {_content(message['content'])}" for message in prompt)


def _content(content: str | list[dict] | None) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""
