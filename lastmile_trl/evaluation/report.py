"""The evaluation as one page that opens anywhere: answer, tables, curves, examples side by side."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from lastmile_trl.evaluation.charts import POINTS, curves, decimals_for, distributions, number
from lastmile_trl.evaluation.examples import browser
from lastmile_trl.evaluation.metrics import ALWAYS_MEASURED
from lastmile_trl.files import write_whole

COLOURS, DASHES = 7, 5  # of the style sheet


def write_report(result: dict, histories: dict[str, list[dict]], path: Path, notes: Sequence[str] = ()) -> Path:
    """Write the comparison `result` and the runs' training `histories` as one HTML file that needs no network.

    `result` is what `compare` returns; `histories` maps a run's name to its logged rows; `notes` are paragraphs shown
    under the table, after the result's own. Returns `path`.
    """
    from markupsafe import Markup

    from lastmile_trl.evaluation.comparison import answer, how_tested

    runs = list(dict.fromkeys([*(entry["run"] for entry in result["results"]), *histories]))
    looks = _looks(runs, result.get("over_seeds", []))
    # An unescaped `<` would let a completion close the script element that carries the examples.
    examples = json.dumps(browser(result, looks), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    drawn, spread = curves(histories, looks), distributions(result, looks)
    corpus, steps = _corpus(result, looks), _steps(result, looks)
    sections = {
        "distributions": ("Distributions", spread),
        "corpus": ("All texts at once", corpus),
        "steps": ("Post-processing", steps["rows"]),
        "curves": ("Training", drawn["panels"]),
        "examples": ("Examples", result["examples"]),
    }
    return fill(
        "report.html.jinja",
        path,
        title=_title(result),
        answer=answer(result),
        rows=result["rows"],
        baseline=result["baseline"],
        sections={id: name for id, (name, content) in sections.items() if content},
        notes=[*result.get("notes", []), *notes],
        table=_table(result, looks),
        how_tested=how_tested(result),
        distributions=spread,
        corpus=corpus,
        steps=steps,
        curves=drawn,
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


def _looks(runs: Iterable[str], over_seeds: Sequence[dict]) -> dict[str, str]:
    """How a run is drawn, as classes of the style sheet: runs of one recipe in one colour, and its seeds dashed.

    >>> _looks(["sft", "grpo-0", "grpo-1"], [{"seeds": ["grpo-0", "grpo-1"]}])
    {'sft': 'run-0', 'grpo-0': 'run-1', 'grpo-1': 'run-1 dash-1'}
    """
    recipes: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        seeds = next((entry["seeds"] for entry in over_seeds if run in entry["seeds"]), [run])
        recipes.setdefault(tuple(seeds), []).append(run)
    looks = {}
    for place, of_recipe in enumerate(recipes.values()):
        for seed, run in enumerate(of_recipe):
            dash = (place // COLOURS + seed) % DASHES  # where colours come again, dashes differ
            looks[run] = f"run-{place % COLOURS}{f' dash-{dash}' if dash else ''}"
    return looks


def _title(result: dict) -> str:
    runs = list(dict.fromkeys(entry["run"] for entry in result["results"]))
    others = [run for run in runs if run not in (result["baseline"], *result.get("beside", []))]
    return f"{', '.join(others)} against {result['baseline']}" if others else result["baseline"]


# The table


def _table(result: dict, looks: dict[str, str]) -> dict:
    """Rows grouped by decoding, because a difference is always taken at the same decoding."""
    from lastmile_trl.evaluation.comparison import by_decoding, label, why_no_difference, why_no_value

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
    line = {"low": min([0.0, *ends]), "high": max([0.0, *ends]), "rows": result["rows"]}

    groups: dict[str, list[dict]] = {}
    for entry in entries:
        runs = entry.get("seeds", [entry["run"]])
        reference = entry["postprocessed"] if baseline in runs else None
        groups.setdefault(entry["decoding"], []).append(
            {
                "run": entry["run"],
                "look": looks[runs[0]],
                "details": label(entry).removeprefix(entry["run"]).removeprefix(", "),
                "differences": [
                    None
                    if reference is processed
                    else _whisker(_of(entry, kind, primary), **line)
                    or {"why": why_no_difference(entry, kind, primary, result)}
                    for kind, processed in kinds.items()
                ],
                "cells": [
                    _cell(
                        entry["metrics"].get(name),
                        _of(entry, "difference", name),
                        ALWAYS_MEASURED.get(name, "higher"),
                        decimals[name],
                    )
                    or {"why": why_no_value(entry, name)}
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

    decimals = decimals_for(max(-low, high))
    values = {"zero": 0.0} | {key: difference[key] for key in ("low", "mean", "high")}
    return {
        "moved": moved(difference),
        "outcome": outcome(Difference(**difference)),
        "mean": number(difference["mean"], decimals, sign=True),
        "interval": f"[{', '.join(number(difference[end], decimals, sign=True) for end in ('low', 'high'))}]",
        "rows": difference["rows"] if difference["rows"] < rows else None,
        "at": {key: round(100 * (value - low) / ((high - low) or 1.0), 2) for key, value in values.items()},
    }


# The smaller tables


def _corpus(result: dict, looks: dict[str, str]) -> dict[str, dict]:
    """By decoding: what describes all texts of a run at once, a dash's reason in place of a number."""
    tables: dict[str, dict] = {}
    for run, decodings in result.get("corpus", {}).items():
        for decoding, values in decodings.items():
            tables.setdefault(decoding, {})[run] = values
    return {decoding: _described(of_runs, decoding, looks, result) for decoding, of_runs in tables.items()}


def _described(of_runs: dict[str, dict[str, float | None]], decoding: str, looks: dict[str, str], result: dict) -> dict:
    from lastmile_trl.evaluation.comparison import why_not_described

    names = dict.fromkeys(name for values in of_runs.values() for name in values)
    largest = {name: max(abs(values.get(name) or 0.0) for values in of_runs.values()) for name in names}

    def cell(run: str, name: str) -> dict[str, str | None]:
        if (value := of_runs[run].get(name)) is None:
            return {"why": why_not_described(run, decoding, name, result)}
        decimals = decimals_for(largest[name])
        interval = result.get("corpus_intervals", {}).get(run, {}).get(decoding, {}).get(name)
        between = interval and f"[{number(interval['low'], decimals)}, {number(interval['high'], decimals)}]"
        return {"value": number(value, decimals), "interval": between}

    return {
        "names": list(names),
        "rows": [{"run": run, "look": looks[run], "cells": [cell(run, name) for name in names]} for run in of_runs],
    }


def _steps(result: dict, looks: dict[str, str]) -> dict:
    """How many outputs of a run each step of post-processing changed, and with what the steps were built."""
    from lastmile_trl.evaluation.comparison import changed

    rows = [
        {"run": run, "look": looks[run], "decoding": decoding, "counts": counts}
        for run, decoding, counts in changed(result)
    ]
    built = [entry for entry in result.get("postprocessing", []) if isinstance(entry, dict)]
    arguments = {name: given for entry in built for name, given in entry.items()}
    names = rows[0]["counts"] if rows else {}
    return {"names": {name: _listed(arguments.get(name, {})) for name in names}, "rows": rows}


def _listed(arguments: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items())
