"""Runs held against each other on the same held-out rows: the content of `evaluation.json`, and ways to say it.

    {"version": 1,
     "rows": 300,                              # held-out rows
     "baseline": "sft",                        # the run all others are held against
     "metrics": {NAME: {"rewarded": bool}},    # a reward of some run may have been gamed; the first is the primary one
     "results": [                              # by decoding, greedy first; in it by run, raw first
       {"run": "grpo", "decoding": "greedy", "postprocessed": false,
        "metrics": {NAME: INTERVAL | null},             # null: no row could be scored
        "difference": {NAME: INTERVAL | null} | null,   # to the baseline's raw outputs; null for these themselves
        "difference_to_postprocessed": {...} | null}],  # to the baseline's post-processed ones; null for the baseline
     "examples": [                             # every row
       {"prompt": ..., "references": [...],
        "outputs": [{"run", "decoding", "postprocessed", "text", "metrics": {NAME: number | null}}]}]}

An INTERVAL is {"mean", "low", "high", "rows"}: a mean over that many rows with its 95 % bootstrap interval. A
difference is the mean over rows of run minus baseline at the same decoding, null where the baseline lacks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.metrics import ALWAYS_MEASURED, per_row
from lastmile_trl.evaluation.postprocess import postprocess
from lastmile_trl.evaluation.significance import Interval, interval, paired

if TYPE_CHECKING:
    from rich.table import Table

    from lastmile_trl.evaluation.decoding import Output
    from lastmile_trl.rewards import Reward

DASH = "–"

# run, decoding, post-processed or not -> metric -> one value per row
_Values = dict[tuple[str, str, bool], dict[str, list[float | None]]]


def compare(
    outputs: Mapping[str, Mapping[str, Sequence[Output]]],
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[Reward],
    *,
    rewarded: set[str],
    postprocessed: Sequence[str] = (),
    baseline: str | None = None,
) -> dict[str, Any]:
    """Measure the outputs of every run and decoding on the same rows; the result is described above.

    `rewarded` names the metrics that were rewards in training, `postprocessed` the runs to show a second time after
    post-processing. The baseline is the first run unless named.
    """
    _check(outputs, rows, postprocessed, baseline)
    baseline = baseline or next(iter(outputs))
    variants = _variants(outputs, postprocessed)
    values = {key: per_row(texts, rows, metrics) for key, texts in variants.items()}
    names = [*(metric.name for metric in metrics), *ALWAYS_MEASURED]
    return {
        "version": 1,
        "rows": len(rows),
        "baseline": baseline,
        "metrics": {name: {"rewarded": name in rewarded} for name in names},
        "results": [_result(key, values, baseline) for key in values],
        "examples": [_example(number, row, variants, values) for number, row in enumerate(rows)],
    }


def table(result: Mapping[str, Any]) -> Table:
    """The results for a terminal of 80 columns or more: a block per decoding, intervals as ± half their width."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    compared, names = _has_differences(result), list(result["metrics"])
    legend = f"{_legend(result)} ± is half an interval's width."
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    grid.caption, grid.caption_justify = Text(legend), "left"
    grid.add_column("run", overflow="fold")
    for title in [*([_difference_title(result)] if compared else []), *(_title(name, result) for name in names)]:
        header = title.replace("/", "/\n").replace("_", "_\n")
        grid.add_column(Text(header), justify="right", overflow="fold")
    for decoding in dict.fromkeys(entry["decoding"] for entry in result["results"]):
        grid.add_section()
        grid.add_row(Text(decoding, style="bold"))
        for entry in result["results"]:
            if entry["decoding"] == decoding:
                cells = [_cell(entry["metrics"].get(name), _with_margin) for name in names]
                difference = [_cell(_primary_difference(entry, result), _with_interval)] if compared else []
                label = f"{entry['run']}, post-\nprocessed" if entry["postprocessed"] else entry["run"]
                grid.add_row(*map(Text, (label, *difference, *cells)))
    return grid


def markdown(result: Mapping[str, Any]) -> str:
    """The results as a Markdown table with a legend, for a model card or a paper."""
    compared, names = _has_differences(result), list(result["metrics"])
    header = ["run", "decoding", *([_difference_title(result)] if compared else [])]
    lines = [header + [_title(name, result) for name in names]]
    for entry in result["results"]:
        difference = [_cell(_primary_difference(entry, result), _with_interval)] if compared else []
        cells = [_cell(entry["metrics"].get(name), _with_interval) for name in names]
        lines.append([_label(entry), entry["decoding"], *difference, *cells])
    header, *body = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]
    ruler = f"| --- | --- |{' ---: |' * (len(lines[0]) - 2)}"
    return "\n".join([header, ruler, *body, "", _legend(result)]).replace("*", r"\*") + "\n"


def answer(result: Mapping[str, Any]) -> str:
    """Whether the last run beats the baseline on the primary metric, raw and post-processed, and at what cost."""
    primary, baseline = _primary(result), result["baseline"]
    if _better(primary) is None:
        return "No metric was given, so nothing says which run is better."
    entry = _last_run(result)
    if entry["run"] == baseline:
        score = _known(entry["metrics"][primary])
        said = _with_interval(score) if score else "nothing that could be scored"
        where = _where(entry, score, result)
        return f"{entry['run']} has {said} on {primary} {where}; there is no other run to compare it with."
    difference = _known(_primary_difference(entry, result))
    if difference is None:
        return f"{entry['run']} and {baseline} cannot be compared on {primary}: too few rows were scored for both."
    sentence = f"{_verdict(entry['run'], baseline, primary, difference)} {_where(entry, difference, result)}"
    processed = _known((entry["difference_to_postprocessed"] or {}).get(primary))
    if processed is not None:
        finding = "the difference is" if processed.excludes_zero else "no difference is shown:"
        sentence += f"; against post-processed {baseline} {finding} {_with_interval(processed)}"
    return f"{sentence}.{_cost(entry, result)}"


def _check(outputs: Mapping, rows: Sequence, postprocessed: Sequence[str], baseline: str | None) -> None:
    if not outputs or not rows:
        raise InputError("There is nothing to compare: give the outputs of at least one run on at least one row.")
    for name in [*postprocessed, *([baseline] if baseline else [])]:
        if name not in outputs:
            raise InputError(f"There is no run named {name!r} to compare; the runs are {', '.join(outputs)}.")
    for run, decodings in outputs.items():
        for decoding, texts in decodings.items():
            if len(texts) != len(rows):
                raise InputError(
                    f"Run {run} has {len(texts)} {decoding} outputs for {len(rows)} rows; decode exactly these rows."
                )


def _variants(
    outputs: Mapping[str, Mapping[str, Sequence[Output]]], postprocessed: Sequence[str]
) -> dict[tuple[str, str, bool], list[Output]]:
    decodings = dict.fromkeys(decoding for of_run in outputs.values() for decoding in of_run)
    variants = {}
    for decoding in sorted(decodings, key=lambda name: name != "greedy"):
        for run, of_run in outputs.items():
            if decoding not in of_run:
                continue
            variants[run, decoding, False] = list(of_run[decoding])
            if run in postprocessed:
                variants[run, decoding, True] = [
                    replace(output, text=postprocess(output.text), ids=None) for output in of_run[decoding]
                ]
    return variants


def _result(key: tuple[str, str, bool], values: _Values, baseline: str) -> dict[str, Any]:
    run, decoding, processed = key
    base, base_processed = (baseline, decoding, False), (baseline, decoding, True)
    return {
        "run": run,
        "decoding": decoding,
        "postprocessed": processed,
        "metrics": {name: _json(interval(of_rows)) for name, of_rows in values[key].items()},
        "difference": _difference(key, base, values) if key != base else None,
        "difference_to_postprocessed": _difference(key, base_processed, values) if run != baseline else None,
    }


def _difference(
    key: tuple[str, str, bool], base: tuple[str, str, bool], values: _Values
) -> dict[str, dict | None] | None:
    if base not in values:
        return None
    return {name: _json(paired(of_rows, values[base][name])) for name, of_rows in values[key].items()}


def _json(estimate: Interval | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def _example(number: int, row: Mapping[str, Any], variants: Mapping, values: _Values) -> dict[str, Any]:
    outputs = [
        {
            "run": run,
            "decoding": decoding,
            "postprocessed": processed,
            "text": texts[number].text,
            "metrics": {name: of_rows[number] for name, of_rows in values[run, decoding, processed].items()},
        }
        for (run, decoding, processed), texts in variants.items()
    ]
    return {"prompt": row["prompt"], "references": list(row["references"]), "outputs": outputs}


def _primary(result: Mapping[str, Any]) -> str:
    return next(iter(result["metrics"]))


def _better(metric: str) -> str | None:
    return ALWAYS_MEASURED.get(metric, "higher")


def _has_differences(result: Mapping[str, Any]) -> bool:
    return any(entry["difference"] for entry in result["results"])


def _primary_difference(entry: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return (entry["difference"] or {}).get(_primary(result))


def _title(name: str, result: Mapping[str, Any]) -> str:
    return f"{name}*" if result["metrics"][name]["rewarded"] else name


def _difference_title(result: Mapping[str, Any]) -> str:
    return f"{_title(_primary(result), result)} minus {result['baseline']}"


def _label(entry: Mapping[str, Any]) -> str:
    return f"{entry['run']}, post-processed" if entry["postprocessed"] else entry["run"]


def _cell(estimate: Mapping[str, Any] | None, form: Callable[[Interval], str]) -> str:
    return DASH if estimate is None else form(Interval(**estimate))


def _legend(result: Mapping[str, Any]) -> str:
    rewarded = " * was a reward in training." if any(of["rewarded"] for of in result["metrics"].values()) else ""
    return f"Means over {result['rows']} held-out rows with 95 % bootstrap intervals.{rewarded}"


def _last_run(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The raw outputs of the last run that is not the baseline, at the first decoding the baseline has too."""
    raw = [entry for entry in result["results"] if not entry["postprocessed"]]
    runs = list(dict.fromkeys(entry["run"] for entry in raw))
    run = next((run for run in reversed(runs) if run != result["baseline"]), result["baseline"])
    of_run = [entry for entry in raw if entry["run"] == run]
    return next((entry for entry in of_run if entry["difference"]), of_run[0])


def _verdict(run: str, baseline: str, metric: str, difference: Interval) -> str:
    if not difference.excludes_zero:
        return f"No difference is shown between {run} and {baseline} on {metric}: {_with_interval(difference)}"
    verb = "beats" if difference.mean > 0 else "falls behind"
    return f"{run} {verb} {baseline} on {metric} by {_with_interval(_size(difference))}"


def _cost(entry: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The metrics that nobody rewarded and that got worse beyond doubt, the largest change first."""
    worse = []
    for name, about in result["metrics"].items():
        difference = _known(entry["difference"].get(name))
        if name == _primary(result) or about["rewarded"] or difference is None or not difference.excludes_zero:
            continue
        if _better(name) == ("lower" if difference.mean > 0 else "higher"):
            worse.append((name, _size(difference)))
    if not worse:
        return ""
    (name, size), *others = sorted(worse, key=lambda item: -item[1].mean)
    as_well = f", and so did {' and '.join(other for other, _ in others)}" if others else ""
    return f" But {name}, which was not rewarded, got worse by {_with_interval(size)}{as_well}."


def _where(entry: Mapping[str, Any], estimate: Interval | None, result: Mapping[str, Any]) -> str:
    scored, rows = estimate.rows if estimate else 0, result["rows"]
    return f"({entry['decoding']}, {rows if scored == rows else f'{scored} of {rows}'} held-out rows)"


def _known(estimate: Mapping[str, Any] | None) -> Interval | None:
    return None if estimate is None else Interval(**estimate)


def _size(difference: Interval) -> Interval:
    """The same difference as a positive amount."""
    if difference.mean >= 0:
        return difference
    return replace(difference, mean=-difference.mean, low=-difference.high, high=-difference.low)


def _with_interval(estimate: Interval) -> str:
    return f"{_number(estimate.mean)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _with_margin(estimate: Interval) -> str:
    return f"{_number(estimate.mean)}\n±{_number((estimate.high - estimate.low) / 2)}"


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # adding 0.0 turns -0.000 into 0.000
