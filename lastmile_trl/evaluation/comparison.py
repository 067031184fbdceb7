"""Runs held against each other on the same held-out rows: the content of `evaluation.json`, and ways to say it.

    {"version": 2,
     "rows": 300,                              # held-out rows
     "baseline": "sft",                        # the run all others are held against
     "beside": ["lead"],                       # the others that are no runs, last in every table
     "metrics": {NAME: {"rewarded": bool}},    # a reward of some run may have been gamed; the first is the primary one
     "results": [                              # by decoding, greedy first; in it by run, raw first
       {"run": "grpo", "decoding": "greedy", "postprocessed": false,
        "metrics": {NAME: INTERVAL | null},
        "missing": {NAME: reason},                        # why an INTERVAL is null
        "difference": {NAME: DIFFERENCE | null} | null,   # to the baseline's raw outputs; null for these themselves
        "difference_to_postprocessed": {...} | null}],    # to the baseline's post-processed ones; null for the baseline
     "over_seeds": [                           # recipes that were run with several seeds: entries as above, and
       {"seeds": ["grpo-0", "grpo-1"], ...}],  # the runs, whose recipe "run" names
     "examples": [                             # every row
       {"prompt": ..., "references": [...],
        "outputs": [{"run", "decoding", "postprocessed", "text", "metrics": {NAME: number | null},
                     "samples": [...],             # only where there are several
                     "values": {NAME: [...]}}]}],  # of each of several outputs, of which the metrics are means
     "postprocessing": [STEP or {STEP: arguments}],  # with what was learned of the training references
     "steps": {RUN: {DECODING: {STEP: count}}},    # outputs that each of these steps changed
     "processed": {RUN: {DECODING: count}},        # of so many
     "corpus": {RUN: {DECODING: {NAME: number | null}}},  # what describes all texts of a run at once
     "corpus_intervals": {RUN: {DECODING: {NAME: INTERVAL}}},  # of those numbers that are means over rows
     "corpus_missing": {RUN: {DECODING: {NAME: reason}}},  # why there is no number
     "notes": [...]}                           # runs that may have been trained on rows that are held out here

An INTERVAL is {"mean", "low", "high", "rows"}: a mean over that many rows with its 95 % bootstrap interval. A
DIFFERENCE is one too, the mean over rows of run minus baseline at the same decoding, null where the baseline lacks it,
with "p" of a randomisation test and "p_adjusted", Holm's correction for all differences of this kind at this decoding.
Below 0.05, that one shows a difference. Over seeds, interval and p allow for other seeds as well as other rows.

Version 1 has neither "p" nor "over_seeds". docs/evaluation.md says how to read it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation import postprocess
from lastmile_trl.evaluation.decoding import Several, each
from lastmile_trl.evaluation.metrics import ALWAYS_MEASURED, NO_TEXT, means, per_output
from lastmile_trl.evaluation.significance import (
    LEVEL,
    Difference,
    Interval,
    holm,
    interval,
    minus,
    over_seeds,
    paired,
    randomisations,
)
from lastmile_trl.rewards.base import known_mean

if TYPE_CHECKING:
    from lastmile_trl.evaluation.decoding import Output
    from lastmile_trl.evaluation.postprocess import Step
    from lastmile_trl.rewards import Reward

DASH = "–"
NO_VALUE = "no row has a value"
NOT_GENERATED = "nothing was generated"
CHANGED = "the text is not what was generated"
NO_TOKENS = "it counts generated tokens, and no model has generated these texts"
ITSELF = "it is the baseline itself"
KINDS = {"difference": False, "difference_to_postprocessed": True}  # of differences: is the baseline post-processed?

# run, decoding, post-processed or not
_Key = tuple[str, str, bool]
_Variants = Mapping[_Key, "Sequence[Output]"]
# of these by metric: one value per row
_Values = dict[_Key, dict[str, list[float | None]]]


def compare(
    outputs: Mapping[str, Mapping[str, Sequence[Output]]],
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[Reward],
    *,
    rewarded: set[str],
    postprocessed: Sequence[str] = (),
    steps: Sequence[Step] | None = None,
    baseline: str | None = None,
    seeds: Mapping[str, Sequence[str]] | None = None,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the outputs of every run and decoding on the same rows; the result is described above.

    `rewarded` names the metrics that were rewards in training, `postprocessed` the runs to show a second time after
    post-processing in `steps`. The baseline is the first run unless named. `seeds` groups the runs of one recipe, by
    its name and in the order of their seeds. `beside` names those of the outputs that are no run's.
    """
    _check(
        outputs, rows, [*postprocessed, *([baseline] if baseline else []), *sum(map(list, (seeds or {}).values()), [])]
    )
    baseline = baseline or next(iter(outputs))
    steps = postprocess.build(postprocess.DEFAULT) if steps is None else steps
    variants, counts = _variants(outputs, postprocessed, steps)
    measured = {key: per_output(texts, rows, metrics) for key, texts in variants.items()}
    values = {key: means(of_run) for key, of_run in measured.items()}
    names = [*(metric.name for metric in metrics), *ALWAYS_MEASURED]
    return {
        "version": 2,
        "rows": len(rows),
        "baseline": baseline,
        "beside": [name for name in beside if name != baseline],
        "metrics": {name: {"rewarded": name in rewarded} for name in names},
        "results": _results(values, variants, metrics, baseline),
        "over_seeds": _over_seeds(seeds or {}, values, baseline),
        "examples": [_example(number, row, variants, values, measured) for number, row in enumerate(rows)],
        "postprocessing": [step.entry for step in steps],
        "steps": counts,
        "processed": {
            run: {decoding: len([*each(outputs[run][decoding], rows)]) for decoding in of_run}
            for run, of_run in counts.items()
        },
    }


def answer(result: Mapping[str, Any]) -> str:
    """Whether the last run beats the baseline on the primary metric, raw and post-processed, and at what cost.

    Where its recipe was run with several seeds, that is said of the recipe.
    """
    primary, baseline = primary_metric(result), result["baseline"]
    if _better(primary) is None:
        return "No metric was given, so nothing says which run is better."
    entry = _of_last_run(result)
    if entry["run"] == baseline:
        score = _known(entry["metrics"][primary])
        said = with_interval(score) if score else "nothing that could be scored"
        where = _where(entry, score, result)
        return f"{entry['run']} has {said} on {primary} {where}; there is no other run to compare it with."
    entry = _over_all_seeds(entry, result) or entry
    run, difference = _over(entry["run"], entry.get("seeds", [])), _known(primary_difference(entry, result))
    if difference is None:
        return f"{run} and {baseline} cannot be compared on {primary}: too few rows were scored for both."
    sentence = f"{_verdict(run, _held_against(entry, False, result), primary, difference)} "
    sentence += _where(entry, difference, result)
    processed = _known((entry["difference_to_postprocessed"] or {}).get(primary))
    if processed is not None:
        finding = "the difference is" if processed.shown else "no difference is shown:"
        p = _corrected_p(processed, " (", ")")
        against = _held_against(entry, True, result)
        sentence += f"; against post-processed {against} {finding} {with_interval(processed)}{p}"
    return f"{sentence}.{_cost(entry, result)}"


def by_decoding(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """What there is to show, by decoding: the runs, the recipes over their seeds, then what stands beside them."""
    beside = result.get("beside", [])  # unknown in older files
    first = [entry for entry in result["results"] if entry["run"] not in beside]
    last = [entry for entry in result["results"] if entry["run"] in beside]
    entries: dict[str, list] = {}
    for entry in [*first, *result.get("over_seeds", []), *last]:
        entries.setdefault(entry["decoding"], []).append(entry)
    return entries


def last_run(result: Mapping[str, Any]) -> str:
    """The last run that is not the baseline; where there is none, what stands last beside it, or itself.

    >>> results = [{"run": "sft"}, {"run": "grpo"}, {"run": "lead"}]
    >>> last_run({"baseline": "sft", "results": results, "beside": ["lead"]})
    'grpo'
    """
    others = [entry["run"] for entry in result["results"] if entry["run"] != result["baseline"]]
    runs = [run for run in others if run not in result.get("beside", [])]
    return [result["baseline"], *(runs or others)][-1]


def changed(result: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Each run that was post-processed with its decodings, and how many of its outputs each step changed.

    >>> list(changed({"steps": {"sft": {"greedy": {"length": 12}}}, "processed": {"sft": {"greedy": 120}}}))
    [('sft', 'greedy', {'length': '12 of 120'})]
    """
    processed = result.get("processed", {})  # unknown in older files
    for run, of_run in result.get("steps", {}).items():
        for decoding, counts in of_run.items():
            total = f" of {processed[run][decoding]}" if processed else ""
            yield run, decoding, {step: f"{count}{total}" for step, count in counts.items()}


def label(entry: Mapping[str, Any]) -> str:
    """What a run, or a recipe over its seeds, is called.

    >>> label({"run": "grpo", "seeds": ["grpo-0", "grpo-1"], "postprocessed": False})
    'grpo, 2 seeds'
    """
    return f"{entry['run']}{', post-processed' if entry['postprocessed'] else ''}{_seeds(entry)}"


def arrow(entry: Mapping[str, Any], metric: str) -> str:
    """Where a run moved from the baseline, nothing where no difference is shown."""
    return {"higher": "↑", "lower": "↓", None: ""}[moved((entry["difference"] or {}).get(metric))]


def moved(difference: Mapping[str, Any] | None) -> str | None:
    """Which way a difference is shown: "higher", "lower", or None.

    >>> moved({"mean": -0.2, "low": -0.3, "high": -0.1, "rows": 50, "p": 0.001, "p_adjusted": 0.012})
    'lower'
    """
    if difference is None or not Difference(**difference).shown:
        return None
    return "higher" if difference["mean"] > 0 else "lower"


def why_no_value(entry: Mapping[str, Any], metric: str) -> str:
    """Why a run has no value of a metric; files of before it was kept do not say more than that.

    >>> why_no_value({"missing": {"rouge/rougeL": "the row has a single reference"}}, "rouge/rougeL")
    'the row has a single reference'
    """
    return entry.get("missing", {}).get(metric, NO_VALUE)


def why_not_described(run: str, decoding: str, name: str, result: Mapping[str, Any]) -> str:
    """Why `corpus` has no number; files of before it was kept do not say more than that.

    >>> result = {"corpus": {"lead": {"greedy": {}}}, "corpus_missing": {"lead": {"greedy": {"kl_to_sft": "no run"}}}}
    >>> why_not_described("lead", "greedy", "kl_to_sft", result)
    'no run'
    """
    if decoding not in result["corpus"][run]:
        return f"it has no {decoding} outputs"
    known = result.get("corpus_missing", {}).get(run, {}).get(decoding, {})
    return known.get(name, NO_TEXT if name in result["corpus"][run][decoding] else "not measured of it")


def why_no_difference(entry: Mapping[str, Any], kind: str, metric: str, result: Mapping[str, Any]) -> str:
    """Why a run has no difference of a kind, `difference` or `difference_to_postprocessed`, on a metric.

    >>> entry = {"run": "sft", "decoding": "greedy", "postprocessed": False, "difference": None}
    >>> why_no_difference(entry, "difference", "rouge/rougeL", {"baseline": "sft", "results": [entry]})
    'it is the baseline itself'
    """
    baseline = result["baseline"]
    if baseline in entry.get("seeds", [entry["run"]]):
        return ITSELF
    if kind != "difference" and not any(of["run"] == baseline and of["postprocessed"] for of in result["results"]):
        return f"{baseline} was not post-processed"
    at = [of for of in result["results"] if (of["run"], of["decoding"]) == (baseline, entry["decoding"])]
    base = next((of for of in at if of["postprocessed"] == KINDS[kind]), None)
    if base is None:
        return f"{baseline} has no {entry['decoding']} outputs"
    if entry["metrics"].get(metric) is None:
        return why_no_value(entry, metric)
    if base["metrics"].get(metric) is None:
        return f"of {baseline}, {why_no_value(base, metric)}"
    return "fewer than two rows have a value for both"


def outcome(difference: Difference) -> str:
    """What the test of a difference says.

    >>> outcome(Difference(0.2, -0.1, 0.3, rows=50, p=0.07, p_adjusted=0.21))
    'no difference shown, p = 0.210'
    """
    return f"{'' if difference.shown else 'no difference shown, '}{_p(difference.p_adjusted)}"


def how_tested(result: Mapping[str, Any]) -> str:
    """What stands behind the p of the tables, or why there is none."""
    if result["version"] < 2:
        return (
            "There is no p, as the evaluation is of version 1, before there was one, and what is shown goes by the "
            "intervals, uncorrected: evaluate again to have it."
        )
    seeds = (
        " Over seeds, intervals and p are those of Student's t, which allow for other seeds as well as other rows, and "
        "the baseline is that over its seeds where it has several."
    )
    return (
        "p is that of a randomisation test, corrected (Holm) for all differences of its kind at a decoding; a "
        f"difference is shown where it is below {LEVEL}.{seeds if result['over_seeds'] else ''}"
    )


def primary_metric(result: Mapping[str, Any]) -> str:
    """The metric that the answer is about.

    >>> primary_metric({"metrics": {"rouge/rougeL": {"rewarded": True}, "words": {"rewarded": False}}})
    'rouge/rougeL'
    """
    return next(iter(result["metrics"]))


def primary_difference(entry: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The difference to the baseline on that metric."""
    return (entry["difference"] or {}).get(primary_metric(result))


def greedy_first(decoding: str) -> bool:
    """The key that sorts decodings.

    >>> sorted(["beams", "sampled", "greedy"], key=greedy_first)
    ['greedy', 'beams', 'sampled']
    """
    return decoding != "greedy"


def with_interval(estimate: Interval) -> str:
    """The estimate in words.

    >>> with_interval(Interval(0.0312, -0.0001, 0.0384, rows=300))
    '0.031 [0.000, 0.038]'
    >>> with_interval(Interval(-0.02, -0.03, -0.01, rows=300))
    '−0.020 [−0.030, −0.010]'
    """
    return f"{number(estimate.mean)} [{number(estimate.low)}, {number(estimate.high)}]"


def number(value: float) -> str:
    """Three decimals, a true minus sign as on the page, and none before 0."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def _check(outputs: Mapping, rows: Sequence, named: Iterable[str]) -> None:
    if not outputs or not rows:
        raise InputError("There is nothing to compare: give the outputs of at least one run on at least one row.")
    for name in named:
        if name not in outputs:
            raise InputError(f"There is no run named {name!r} to compare; the runs are {', '.join(outputs)}.")
    for run, decodings in outputs.items():
        for decoding, texts in decodings.items():
            if len(texts) != len(rows):
                raise InputError(
                    f"Run {run} has {len(texts)} {decoding} outputs for {len(rows)} rows; decode exactly these rows."
                )


def _variants(
    outputs: Mapping[str, Mapping[str, Sequence[Output]]], postprocessed: Sequence[str], steps: Sequence[Step]
) -> tuple[_Variants, dict[str, dict[str, dict[str, int]]]]:
    """All that is measured, and how many outputs each step changed: run -> decoding -> step -> count."""
    decodings = dict.fromkeys(decoding for of_run in outputs.values() for decoding in of_run)
    variants, changed = {}, {}
    for decoding in sorted(decodings, key=greedy_first):
        for run, of_run in outputs.items():
            if decoding not in of_run:
                continue
            variants[run, decoding, False] = list(of_run[decoding])
            if run in postprocessed:
                variants[run, decoding, True], counts = postprocess.processed(of_run[decoding], steps)
                changed.setdefault(run, {})[decoding] = counts
    return variants, changed


def _results(values: _Values, variants: _Variants, metrics: Sequence[Reward], baseline: str) -> list[dict[str, Any]]:
    entries = [_entry(key, values, variants, metrics, baseline) for key in values]
    tested = [
        (entry[kind][name], minus(of_rows, values[baseline, entry["decoding"], KINDS[kind]][name]))
        for entry, of_run in zip(entries, values.values(), strict=True)
        for kind in KINDS
        for name, of_rows in of_run.items()
        if (entry[kind] or {}).get(name)
    ]
    p_values = randomisations([differences for _, differences in tested])
    for (difference, _), p in zip(tested, p_values, strict=True):
        difference["p"] = p
    return _corrected(entries)


def _entry(key: _Key, values: _Values, variants: _Variants, metrics: Sequence[Reward], baseline: str) -> dict[str, Any]:
    run, decoding, processed = key
    estimates = {name: _json(interval(of_rows)) for name, of_rows in values[key].items()}
    generated = any(output.ids is not None for output in variants[run, decoding, False])
    of_ids = {metric.name: NO_TOKENS for metric in metrics if "completion_ids" in metric.needs}
    of_ids["ended"] = CHANGED if generated else NOT_GENERATED
    return {
        "run": run,
        "decoding": decoding,
        "postprocessed": processed,
        "metrics": estimates,
        "missing": {
            name: _why_none(variants[key], of_ids.get(name)) for name, estimate in estimates.items() if estimate is None
        },
        **{kind: _difference(key, kind, values, baseline) for kind in KINDS},
    }


def _why_none(outputs: Sequence[Output], without_ids: str | None) -> str:
    """What the outputs themselves say, where they all do, or what lacks of a metric where they have no ids."""
    said = [getattr(output, "why_none", None) for output in outputs]
    if all(said):
        return " or ".join(dict.fromkeys(said))
    return without_ids if without_ids and all(output.ids is None for output in outputs) else NO_VALUE


def _difference(key: _Key, kind: str, values: _Values, baseline: str) -> dict[str, dict | None] | None:
    run, decoding, _ = key
    base = (baseline, decoding, KINDS[kind])
    if base not in values or key == base or (KINDS[kind] and run == baseline):
        return None
    return {
        name: _json((found := paired(of_rows, values[base][name])) and Difference(**asdict(found)))
        for name, of_rows in values[key].items()
    }


def _corrected(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries, every p corrected for all differences of its kind at its decoding."""
    families: dict[tuple[str, str], list[dict]] = {}
    for entry in entries:
        for kind in KINDS:
            family = families.setdefault((kind, entry["decoding"]), [])
            family += [difference for difference in (entry[kind] or {}).values() if difference]
    for family in families.values():
        adjusted = holm([difference["p"] for difference in family])
        for difference, p in zip(family, adjusted, strict=True):
            difference["p_adjusted"] = p
    return entries


def _over_seeds(seeds: Mapping[str, Sequence[str]], values: _Values, baseline: str) -> list[dict[str, Any]]:
    of_baseline = next((runs for runs in seeds.values() if baseline in runs), [baseline])
    entries = []
    for decoding in dict.fromkeys(decoding for _, decoding, _ in values):
        for name, runs in seeds.items():
            keys = [(run, decoding, False) for run in runs if (run, decoding, False) in values]
            if len(keys) < 2:
                continue
            entry = {"run": name, "seeds": [run for run, _, _ in keys], "decoding": decoding, "postprocessed": False}
            entry["metrics"] = {
                metric: _json((found := over_seeds([values[key][metric] for key in keys])) and _plain(found))
                for metric in values[keys[0]]
            }
            entry["missing"] = {
                metric: _why_none_over_seeds([values[key][metric] for key in keys])
                for metric, estimate in entry["metrics"].items()
                if estimate is None
            }
            for kind, processed in KINDS.items():
                bases = [(run, decoding, processed) for run in of_baseline if (run, decoding, processed) in values]
                known = bases and not set(runs) & set(of_baseline)
                entry[kind] = _difference_over_seeds(keys, bases, values) if known else None
            entries.append(entry)
    return _corrected(entries)


def _difference_over_seeds(keys: Sequence[_Key], bases: Sequence[_Key], values: _Values) -> dict[str, dict | None]:
    """Seed by seed where the baseline has as many, else each seed minus the mean of the baseline's."""
    differences = {}
    for metric in values[keys[0]]:
        of_bases = [values[base][metric] for base in bases]
        if len(bases) != len(keys):
            mean = [None if None in of_row else known_mean(of_row) for of_row in zip(*of_bases, strict=True)]
            of_bases = [mean] * len(keys)
        by_seed = [minus(values[key][metric], base) for key, base in zip(keys, of_bases, strict=True)]
        differences[metric] = _json(over_seeds(by_seed))
    return differences


def _why_none_over_seeds(of_seeds: Sequence[Sequence[float | None]]) -> str:
    valueless = all(value is None for of_rows in of_seeds for value in of_rows)
    return NO_VALUE if valueless else "fewer than two rows have a value for every seed"


def _plain(difference: Difference) -> Interval:
    """Without what says whether it is 0, which nobody asks of a mean."""
    return Interval(difference.mean, difference.low, difference.high, difference.rows)


def _json(estimate: Interval | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def _example(
    number: int,
    row: Mapping[str, Any],
    variants: _Variants,
    values: _Values,
    measured: Mapping[_Key, Mapping[str, Sequence[list[float | None]]]],
) -> dict[str, Any]:
    outputs = [
        {
            "run": run,
            "decoding": decoding,
            "postprocessed": processed,
            "text": texts[number].text,
            "metrics": {name: of_rows[number] for name, of_rows in values[run, decoding, processed].items()},
            **_several(texts[number], {name: of[number] for name, of in measured[run, decoding, processed].items()}),
        }
        for (run, decoding, processed), texts in variants.items()
    ]
    return {"prompt": row["prompt"], "references": list(row["references"]), "outputs": outputs}


def _several(output: Output, values: Mapping[str, list[float | None]]) -> dict[str, Any]:
    """The texts of several samples and the values of each; what is held against references of its own is no sample."""
    if not isinstance(output, Several) or len(output.outputs) < 2:
        return {}
    samples = {} if output.references else {"samples": [sample.text for sample in output.outputs]}
    return samples | {"values": dict(values)}


def _better(metric: str) -> str | None:
    return ALWAYS_MEASURED.get(metric, "higher")


def _seeds(entry: Mapping[str, Any]) -> str:
    return f", {len(entry['seeds'])} seeds" if "seeds" in entry else ""


def _of_last_run(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The raw outputs of that run, at the first decoding the baseline has too."""
    run = last_run(result)
    of_run = [entry for entry in result["results"] if entry["run"] == run and not entry["postprocessed"]]
    return next((entry for entry in of_run if entry["difference"]), of_run[0])


def _verdict(run: str, baseline: str, metric: str, difference: Difference) -> str:
    if not difference.shown:
        return f"No difference is shown between {run} and {baseline} on {metric}: {with_interval(difference)}"
    verb = "beats" if difference.mean > 0 else "falls behind"
    return f"{run} {verb} {baseline} on {metric} by {with_interval(_size(difference))}"


def _cost(entry: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The metrics that nobody rewarded and that got worse beyond doubt, the largest change first."""
    worse = []
    for name, about in result["metrics"].items():
        difference = _known(entry["difference"].get(name))
        if name == primary_metric(result) or about["rewarded"] or difference is None or not difference.shown:
            continue
        if _better(name) == ("lower" if difference.mean > 0 else "higher"):
            worse.append((name, _size(difference)))
    if not worse:
        return ""
    (name, size), *others = sorted(worse, key=lambda item: -item[1].mean)
    as_well = f", and so did {' and '.join(other for other, _ in others)}" if others else ""
    return f" But {name}, which was not rewarded, got worse by {with_interval(size)}{as_well}."


def _over_all_seeds(entry: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same of the run's recipe, where it was run with several seeds and has a difference over them."""
    recipes = [of for of in result.get("over_seeds", []) if entry["run"] in of["seeds"]]
    at = [of for of in recipes if of["decoding"] == entry["decoding"]]
    return next((of for of in at if primary_difference(of, result)), None)


def _held_against(entry: Mapping[str, Any], processed: bool, result: Mapping[str, Any]) -> str:
    """What differences are taken to: the baseline, or of a recipe over its seeds all seeds of the baseline's."""
    baseline = result["baseline"]
    recipe = next((of for of in result.get("over_seeds", []) if baseline in of["seeds"]), None)
    if recipe is None or "seeds" not in entry:
        return baseline
    alike = [of for of in result["results"] if (of["decoding"], of["postprocessed"]) == (entry["decoding"], processed)]
    runs = [of["run"] for of in alike if of["run"] in recipe["seeds"]]
    return _over(recipe["run"], runs) if len(runs) > 1 else runs[0]


def _over(run: str, seeds: Sequence[str]) -> str:
    return f"{run} over {len(seeds)} seeds" if seeds else run


def _where(entry: Mapping[str, Any], estimate: Difference | None, result: Mapping[str, Any]) -> str:
    scored, rows = estimate.rows if estimate else 0, result["rows"]
    p = _corrected_p(estimate, ", ") if estimate else ""
    return f"({entry['decoding']}, {rows if scored == rows else f'{scored} of {rows}'} held-out rows{p})"


def _corrected_p(difference: Difference, before: str, after: str = "") -> str:
    return "" if difference.p_adjusted is None else f"{before}corrected {_p(difference.p_adjusted)}{after}"


def _p(p: float | None) -> str:
    return f"p {DASH}" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _known(estimate: Mapping[str, Any] | None) -> Difference | None:
    return None if estimate is None else Difference(**estimate)


def _size(difference: Difference) -> Difference:
    """The same difference as a positive amount."""
    if difference.mean >= 0:
        return difference
    return replace(difference, mean=-difference.mean, low=-difference.high, high=-difference.low)
