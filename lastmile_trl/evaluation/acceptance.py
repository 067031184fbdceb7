"""Whether a reward model is fit to reward: the content of its `evaluation.json`, the gate, and ways to say it.

    {"version": 1,
     "all": GROUP,                             # the held-out pairs
     "categories": {NAME: GROUP},              # the same by what is wrong with the rejected answer
     "bins": [...],                            # the edges of every histogram; a bin holds its lower edge, 0 is one
     "length_correlation": number | null,      # of score and words among the chosen answers, each counted once
     "calibration": {                          # of sigmoid(|margin|), the confidence in the answer that scores higher
       "error": 0.02,                          # expected calibration error
       "bins": [{"low", "high", "confidence", "accuracy": SHARE}]},
     "metric": NAME | null,
     "samples": [                              # what models really answer, by run and decoding
       {"run": "sft", "decoding": "greedy",
        "accuracy": SHARE,                     # of the rows, the reference scoring higher
        "score", "reference_score", "words", "reference_words",       # means
        "position": number | null,             # of the mean score: 0 at the rejected answers, 1 at the references
        "correlation": {"metric", "words"}}],  # with the score; number | null
     "require": {KEY: number},
     "failures": ["..."],                      # what is required and not met, a sentence each
     "examples": {
       "categories": {NAME: PAIR},             # the pair with the median margin
       "worst": [PAIR],                        # the largest margins of those ranked wrong
       "samples": [SAMPLE]}}                   # by run and decoding, the one furthest above its reference

A GROUP is {"accuracy": SHARE, "chosen", "rejected": mean scores, "margin": {"mean", "q05", "q25", "median", "q75",
"q95"}, "histogram": [count by bin]}. A SHARE is {"mean", "low", "high", "rows"}: how many of that many rows are
ranked right, a tie counting half, with its 95 % Wilson interval, which does not shrink to nothing where all are right
as a bootstrap does. Every correlation is Spearman's, of ranks, so that a few very long answers do not decide and
length and its logarithm say the same; it is null where nothing varies. A PAIR or SAMPLE has the fields of `Scored` or
`Sample`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from numbers import Real
from operator import attrgetter
from pathlib import Path
from statistics import correlation, fmean
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError, RunError, unknown
from lastmile_trl.evaluation import report
from lastmile_trl.evaluation.charts import POINTS, curves, decimals_for, frame, number
from lastmile_trl.evaluation.examples import plain

if TYPE_CHECKING:
    from rich.table import Table

GATES = ("accuracy", "length_correlation", "samples")
BINS = 40  # of margins, at most
CONFIDENCE_BINS = 10  # from 0.5 to 1
WORST = 8
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
DASH = "–"


@dataclass(frozen=True)
class Scored:
    """A held-out pair and its scores."""

    category: str
    chosen: float
    rejected: float
    chosen_words: int
    rejected_words: int
    prompt: str | list[dict[str, Any]]
    chosen_text: str
    rejected_text: str

    @property
    def margin(self) -> float:
        """How much higher the better answer scores."""
        return self.chosen - self.rejected


@dataclass(frozen=True)
class Sample:
    """What a model answered to a held-out row, with its score and that of the row's reference."""

    run: str
    decoding: str
    prompt: str | list[dict[str, Any]]
    text: str
    score: float
    reference_score: float
    words: int
    reference_words: int
    metric: float | None


def acceptance(
    pairs: Sequence[Scored],
    samples: Sequence[Sample],
    *,
    metric: str | None,
    require: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Sum up how a reward model ranks held-out pairs and real samples; the result is described above.

    `metric` names what the samples' `metric` was measured with. `require` is what `failures` holds the result against.
    """
    if not pairs:
        raise InputError("There is nothing to judge a reward model by: give at least one held-out pair.")
    _check_scores(pairs, samples)
    categories = _grouped(pairs, attrgetter("category"))
    by_run = _grouped(samples, attrgetter("run", "decoding"))
    width, bins = _bins([pair.margin for pair in pairs])
    answers = {(plain(pair.prompt), pair.chosen_text): (pair.chosen, pair.chosen_words) for pair in pairs}
    result = {
        "version": 1,
        "all": _group(pairs, width, bins),
        "categories": {name: _group(of_category, width, bins) for name, of_category in categories.items()},
        "bins": [float(f"{number * width:.12g}") for number in (*bins, bins.stop)],
        "length_correlation": _spearman(answers.values()),
        "calibration": _calibration([pair.margin for pair in pairs]),
        "metric": metric,
        "samples": [_of_run(of_run, fmean(pair.rejected for pair in pairs)) for of_run in by_run.values()],
        "require": dict(require or {}),
        "examples": {
            "categories": {name: asdict(_typical(of_category)) for name, of_category in categories.items()},
            "worst": [asdict(pair) for pair in sorted(pairs, key=attrgetter("margin"))[:WORST] if pair.margin < 0],
            "samples": [
                asdict(max(of_run, key=lambda sample: sample.score - sample.reference_score))
                for of_run in by_run.values()
            ],
        },
    }
    return result | {"failures": failures(result, result["require"])}


def failures(result: Mapping[str, Any], require: Mapping[str, float]) -> list[str]:
    """What is required and not met, a sentence each.

    `accuracy` is the least accuracy on every category that is not named itself, a category's name the least accuracy
    on it, `samples` that on the real samples of every run and decoding, `length_correlation` the largest correlation
    of score and length, in either direction: none where nothing varies. An accuracy that cannot be shown is not met.
    """
    found = []
    for name, group in result["categories"].items():
        found += _too_low(name, "pairs", group["accuracy"], _least(name, require))
    for name in require:
        if name not in GATES and name not in result["categories"]:
            found.append(f"Accuracy on {name} cannot be shown: no held-out pair is of this category.")
    if "samples" in require:
        for entry in result["samples"]:
            where = f"the real samples of {entry['run']}, {entry['decoding']},"
            found += _too_low(where, "rows", entry["accuracy"], require["samples"])
        if not result["samples"]:
            found.append("Accuracy on real samples cannot be shown: there are none.")
    correlated, most = result["length_correlation"] or 0.0, require.get("length_correlation", 1.0)
    if abs(correlated) > most:
        said = _apart(abs(correlated), most)
        found.append(
            f"Score and length of the chosen answers correlate by {'−' if correlated < 0 else ''}{said}, "
            f"beyond the {most} allowed."
        )
    return found


def check_require(require: Mapping[str, float], categories: Collection[str] | None) -> None:
    """Refuse requirements that nothing can meet or miss; without `categories` any name may be one.

    >>> check_require({"accuracy": 0.95, "hallucinated": 0.8}, ["shuffled", "hallucinated"])
    """
    for key, value in require.items():
        if categories is not None and key not in (valid := [*GATES, *categories]):
            raise unknown("preferences.require: key", key, valid)
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
            raise InputError(f"preferences.require.{key} must be a number between 0 and 1, not {value!r}.")


def verdict(result: Mapping[str, Any]) -> str:
    """Whether the reward model may be used, in one sentence."""
    if not result["require"]:
        return "Nothing is required of this reward model, so nothing says whether it is fit to reward."
    failed = result["failures"]
    if not failed:
        return "Fit to reward: everything required is met."
    return f"Not fit to reward: {len(failed)} {'requirements are' if len(failed) > 1 else 'requirement is'} not met."


def table(result: Mapping[str, Any]) -> Table:
    """Pairs by category, then real samples against their references, for a terminal of 80 columns or more."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    decimals = _decimals(result)
    said = [_legend(result), *(_of_samples(entry, result["metric"]) for entry in result["samples"])]
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    grid.caption, grid.caption_justify = Text("\n".join(said)), "left"
    grid.add_column("", overflow="fold")
    for title in ("rows", "accuracy", "required", "margin", "better", "worse"):
        grid.add_column(title, justify="right")
    for title, entries in _blocks(result).items():
        grid.add_section()
        grid.add_row(Text(title, style="bold"))
        for entry in entries:
            accuracy, least, better, worse = (entry[of] for of in ("accuracy", "least", "chosen", "rejected"))
            grid.add_row(
                Text(entry["name"]),
                str(accuracy["rows"]),
                Text(f"{accuracy['mean']:.3f} {_bounds(accuracy, 2)}", style="red" if _failed(accuracy, least) else ""),
                DASH if least is None else str(least),
                *(number(value, decimals) for value in (better - worse, better, worse)),
            )
    return grid


def markdown(result: Mapping[str, Any]) -> str:
    """The verdict, what is not met, and the tables with a legend as Markdown, for a model card or a paper."""
    decimals = _decimals(result)
    parts = [verdict(result), "\n".join(f"- {_one_line(failure)}" for failure in result["failures"])]
    for title, entries in _blocks(result).items():
        lines = [[title, "rows", "accuracy", "required", "margin"], ["---", *["---:"] * 4]]
        for entry in entries:
            accuracy, least = entry["accuracy"], entry["least"]
            lines.append([
                _one_line(entry["name"]),
                str(accuracy["rows"]),
                f"{accuracy['mean']:.3f} {_bounds(accuracy)}",
                DASH if least is None else str(least),
                number(entry["chosen"] - entry["rejected"], decimals, sign=True),
            ])  # fmt: skip
        parts.append("\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines))
    parts.append(f"{_legend(result)} The margin is by how much the better answer scores higher, on average.")
    parts += [_of_samples(entry, result["metric"]) for entry in result["samples"]]
    return "\n\n".join(filter(None, parts)).replace("*", r"\*") + "\n"


def write_page(
    result: Mapping[str, Any], histories: dict[str, list[dict]], path: Path, notes: Sequence[str] = ()
) -> Path:
    """Write `result` and the training `histories`, by run, as one HTML file that needs no network. Returns `path`."""
    looks = {run: f"run-{1 + index % (report.COLOURS - 1)}" for index, run in enumerate(histories)}
    return report.fill(
        "acceptance.html.jinja",
        path,
        title=f"Acceptance of {', '.join(histories) or 'a reward model'}",
        verdict=verdict(result),
        failures=result["failures"],
        legend=_legend(result),
        notes=notes,
        accuracies=_accuracies(result),
        margins=_margins(result),
        calibration=_reliability(result["calibration"]),
        metric=result["metric"],
        reality=_reality(result),
        examples=_examples(result),
        curves=curves(histories, looks),
        points=POINTS,
        colours=report.COLOURS,
    )


# What is measured


def _check_scores(pairs: Sequence[Scored], samples: Sequence[Sample]) -> None:
    scores = [
        *(score for pair in pairs for score in (pair.chosen, pair.rejected)),
        *(score for sample in samples for score in (sample.score, sample.reference_score)),
    ]
    if wrong := sum(score is None or not math.isfinite(score) for score in scores):
        raise RunError(
            f"The reward model gave {wrong} of {len(scores)} answers no finite score: train it again with a smaller "
            "training.learning_rate."
        )


def _grouped(items: Iterable[Any], key: Callable[[Any], Hashable]) -> dict[Any, list]:
    groups: dict[Any, list] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _group(pairs: Sequence[Scored], width: float, bins: range) -> dict[str, Any]:
    margins = sorted(pair.margin for pair in pairs)
    counts = Counter(math.floor(margin / width) for margin in margins)
    return {
        "accuracy": _share([_right(margin) for margin in margins]),
        "chosen": fmean(pair.chosen for pair in pairs),
        "rejected": fmean(pair.rejected for pair in pairs),
        "margin": {"mean": fmean(margins)} | {name: _quantile(margins, at) for name, at in QUANTILES.items()},
        "histogram": [counts[number] for number in bins],
    }


def _of_run(samples: Sequence[Sample], rejected: float) -> dict[str, Any]:
    score, reference = fmean(each.score for each in samples), fmean(each.reference_score for each in samples)
    measured = [(each.score, each.metric) for each in samples if each.metric is not None]
    return {
        "run": samples[0].run,
        "decoding": samples[0].decoding,
        "accuracy": _share([_right(each.reference_score - each.score) for each in samples]),
        "score": score,
        "reference_score": reference,
        "words": fmean(each.words for each in samples),
        "reference_words": fmean(each.reference_words for each in samples),
        "position": (score - rejected) / (reference - rejected) if reference > rejected else None,
        "correlation": {
            "metric": _spearman(measured),
            "words": _spearman([(each.score, each.words) for each in samples]),
        },
    }


def _right(margin: float) -> float:
    """1 for a pair ranked right, 0 for one ranked wrong, a half for a tie."""
    return (margin > 0) + 0.5 * (margin == 0)


def _share(values: Sequence[float]) -> dict[str, Any]:
    """A mean of values in [0, 1] with its 95 % Wilson interval.

    >>> {key: round(value, 3) for key, value in _share([1.0] * 9 + [0.0]).items()}
    {'mean': 0.9, 'low': 0.596, 'high': 0.982, 'rows': 10}
    """
    rows, mean, z2 = len(values), sum(values) / len(values), 1.959964**2
    centre = (mean + z2 / (2 * rows)) / (1 + z2 / rows)
    reach = math.sqrt(z2 * (mean * (1 - mean) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    # Where all are alike, an end is the mean itself, but for the last digit.
    low, high = min(mean, max(0.0, centre - reach)), max(mean, min(1.0, centre + reach))
    return {"mean": mean, "low": low, "high": high, "rows": rows}


def _quantile(ordered: Sequence[float], at: float) -> float:
    """Between two values, as much of each as the quantile is near to it.

    >>> _quantile([0.0, 1.0, 4.0], 0.5), _quantile([0.0, 1.0, 4.0], 0.75)
    (1.0, 2.5)
    """
    below, part = divmod(at * (len(ordered) - 1), 1)
    low, high = ordered[int(below)], ordered[math.ceil(below + part)]
    return low + part * (high - low)


def _typical(pairs: Sequence[Scored]) -> Scored:
    return sorted(pairs, key=attrgetter("margin"))[(len(pairs) - 1) // 2]


def _bins(margins: Sequence[float]) -> tuple[float, range]:
    """The width of equal bins, 1, 2 or 5 times a power of ten, and their numbers; bin 0 begins at 0.

    >>> _bins([-1.5, 0.0, 15.0])
    (0.5, range(-3, 31))
    """
    low, high = min(0.0, *margins), max(0.0, *margins)
    least = (high - low) / BINS
    power = 10.0 ** math.floor(math.log10(least)) if least else 1.0
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= least)
    return width, range(math.floor(low / width), math.floor(high / width) + 1)


def _calibration(margins: Sequence[float]) -> dict[str, Any]:
    """How often the answer that scores higher is the better one, by how sure of it the model is.

    A model trained on pairs says sigmoid(margin) for the probability that one answer is the better of two.
    """
    rated = sorted((1 / (1 + math.exp(-abs(margin))), _right(margin)) for margin in margins)

    def bin_of(rating: tuple[float, float]) -> int:
        return min(int((rating[0] - 0.5) * 2 * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)

    bins = []
    for place, group in groupby(rated, key=bin_of):
        confidences, right = zip(*group, strict=True)
        edges = {name: 0.5 + (place + step) / (2 * CONFIDENCE_BINS) for name, step in (("low", 0), ("high", 1))}
        bins.append(edges | {"confidence": fmean(confidences), "accuracy": _share(right)})
    gaps = [each["accuracy"]["rows"] * abs(each["accuracy"]["mean"] - each["confidence"]) for each in bins]
    return {"error": sum(gaps) / len(margins), "bins": bins}


def _spearman(points: Iterable[tuple[float, float]]) -> float | None:
    """The correlation of the ranks; None where nothing varies.

    >>> _spearman([(1, 10), (2, 1000), (3, 100)]), _spearman([(1, 5), (2, 5)])
    (0.5, None)
    """
    columns = list(zip(*points, strict=True))
    if not columns or any(len(set(column)) < 2 for column in columns):
        return None
    return min(1.0, max(-1.0, correlation(*map(_ranks, columns))))


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in order; equal values share the mean of theirs.

    >>> _ranks([7, 3, 7, 1])
    [2.5, 1.0, 2.5, 0.0]
    """
    ranks, first = {}, 0
    for value, count in sorted(Counter(values).items()):
        ranks[value], first = first + (count - 1) / 2, first + count
    return [ranks[value] for value in values]


# What is required


def _least(category: str, require: Mapping[str, float]) -> float | None:
    return require[category] if category in require and category not in GATES else require.get("accuracy")


def _too_low(where: str, what: str, accuracy: Mapping[str, Any], least: float | None) -> list[str]:
    if not _failed(accuracy, least):
        return []
    right = round(2 * accuracy["mean"] * accuracy["rows"]) / 2
    said = f"{_apart(accuracy['mean'], least)} ({right:g} of {accuracy['rows']} {what})"
    return [f"Accuracy on {where} is {said}, below the {least} required."]


def _failed(accuracy: Mapping[str, Any], least: float | None) -> bool:
    return least is not None and accuracy["mean"] < least


def _apart(value: float, bar: float) -> str:
    """The value with three decimals, or as many as tell it from the bar.

    >>> _apart(0.9, 0.95), _apart(0.94996, 0.95)
    ('0.900', '0.94996')
    """
    decimals = next((number for number in range(3, 17) if round(value, number) != round(bar, number)), 17)
    return f"{value:.{decimals}f}"


# How it is said


def _blocks(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What was ranked, by title: pairs by category, and references against real samples by run and decoding."""
    require = result["require"]
    pairs = [{"name": name, "least": _least(name, require), **of} for name, of in result["categories"].items()]
    if len(pairs) > 1:
        pairs.append({"name": "all", "least": None, **result["all"]})
    samples = [
        {"name": _name(of), "least": require.get("samples"), "accuracy": of["accuracy"]}
        | {"chosen": of["reference_score"], "rejected": of["score"]}
        for of in result["samples"]
    ]
    titled = {"held-out pairs": pairs, "reference v. sample": samples}
    return {title: entries for title, entries in titled.items() if entries}


def _name(entry: Mapping[str, Any]) -> str:
    return f"{entry['run']}, {entry['decoding']}"


def _decimals(result: Mapping[str, Any]) -> int:
    scores = [entry[of] for entries in _blocks(result).values() for entry in entries for of in ("chosen", "rejected")]
    return decimals_for(max(map(abs, scores)))


def _legend(result: Mapping[str, Any]) -> str:
    return (
        "Accuracy is the share ranked right, a tie counting half, with its 95 % Wilson interval. "
        f"Score and length of the chosen answers correlate by {_coefficient(result['length_correlation'])}. "
        f"The expected calibration error is {result['calibration']['error']:.3f}."
    )


def _of_samples(entry: Mapping[str, Any], metric: str | None) -> str:
    named = {metric: entry["correlation"]["metric"], "length": entry["correlation"]["words"]}
    correlated = " and ".join(f"with {name} by {_coefficient(value)}" for name, value in named.items() if name)
    return f"{_name(entry)}: the mean score lies {_position(entry)}; scores correlate {correlated}."


def _position(entry: Mapping[str, Any]) -> str:
    if entry["position"] is None:
        return "nowhere between, as references score no higher than rejected answers"
    return f"at {number(entry['position'], 2)} between the rejected answers (0) and the references (1)"


def _coefficient(value: float | None) -> str:
    return DASH if value is None else number(value, 2, sign=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _bounds(share: Mapping[str, Any], decimals: int = 3) -> str:
    return f"[{share['low']:.{decimals}f}, {share['high']:.{decimals}f}]"


# The page


def _accuracies(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the first table, the intervals as per cent of a line that ends at 1."""
    blocks, decimals = _blocks(result), _decimals(result)
    left = min(0.5, *(entry["accuracy"]["low"] for entries in blocks.values() for entry in entries))

    def at(share: float) -> float:
        return round(100 * (share - left) / (1 - left), 2)

    def row(entry: Mapping[str, Any]) -> dict[str, Any]:
        accuracy, least = entry["accuracy"], entry["least"]
        margin = entry.get("margin")
        return {
            "name": entry["name"],
            "rows": accuracy["rows"],
            "accuracy": f"{accuracy['mean']:.3f}",
            "bounds": _bounds(accuracy),
            "at": {name: at(accuracy[name]) for name in ("low", "mean", "high")},
            "least": None if least is None else {"said": str(least), "at": max(0.0, at(least))},
            "failed": _failed(accuracy, least),
            "margin": number(entry["chosen"] - entry["rejected"], decimals, sign=True),
            "spread": margin and [number(margin[name], decimals, sign=True) for name in ("q05", "q95")],
            "chosen": number(entry["chosen"], decimals),
            "rejected": number(entry["rejected"], decimals),
        }

    return {title: [row(entry) for entry in entries] for title, entries in blocks.items()}


def _margins(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A histogram by category, all from the same least to the same largest margin."""
    edges = result["bins"]
    figures = []
    for name, group in result["categories"].items():
        rows, most = group["accuracy"]["rows"], max(group["histogram"])
        panel, x, y = frame(edges[0], edges[-1], 0, most)
        bars = [
            {
                "x": x(low),
                "y": y(count),
                "width": round(x(high) - x(low) - 0.5, 1),
                "height": round(y(0) - y(count), 1),
                "wrong": high <= 0,
                "said": f"{_edge(low)} to {_edge(high)}: {count} of {rows} pairs",
            }
            for (low, high), count in zip(pairwise(edges), group["histogram"], strict=True)
            if count
        ]
        said = {"low": _edge(edges[0]), "high": _edge(edges[-1]), "most": f"{most / rows:.0%}"}
        figures.append(panel | said | {"name": name, "bars": bars, "zero": x(0.0)})
    return figures


def _edge(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _reliability(calibration: Mapping[str, Any]) -> dict[str, Any]:
    panel, x, y = frame(0.5, 1.0, 0.0, 1.0)
    most = max(each["accuracy"]["rows"] for each in calibration["bins"])
    points = [
        {
            "x": x(each["confidence"]),
            "y": y(each["accuracy"]["mean"]),
            "low": y(each["accuracy"]["low"]),
            "high": y(each["accuracy"]["high"]),
            "radius": round(2 + 4 * math.sqrt(each["accuracy"]["rows"] / most), 1),
            "said": f"{each['accuracy']['rows']} pairs: confidence {each['confidence']:.3f}, "
            f"accuracy {each['accuracy']['mean']:.3f} {_bounds(each['accuracy'])}",
        }
        for each in calibration["bins"]
    ]
    diagonal = {"from": (x(0.5), y(0.5)), "to": (x(1.0), y(1.0))}
    return panel | {"points": points, "diagonal": diagonal, "error": f"{calibration['error']:.3f}"}


def _reality(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table of real samples, their mean score as per cent of a line that holds 0 and 1."""
    decimals = _decimals(result)
    known = [entry["position"] for entry in result["samples"] if entry["position"] is not None]
    low, high = min([0.0, *known]), max([1.0, *known])

    def at(position: float) -> float:
        return round(100 * (position - low) / (high - low), 2)

    return [
        {
            "name": _name(entry),
            "score": number(entry["score"], decimals),
            "position": None if position is None else number(position, 2),
            "at": None if position is None else {"worse": at(0.0), "better": at(1.0), "mean": at(position)},
            "outside": position is None or not 0 < position < 1,
            "metric": _coefficient(entry["correlation"]["metric"]),
            "length": _coefficient(entry["correlation"]["words"]),
            "words": f"{entry['words']:.1f}",
            "reference_words": f"{entry['reference_words']:.1f}",
        }
        for entry in result["samples"]
        for position in [entry["position"]]
    ]


def _examples(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    examples, decimals = result["examples"], _decimals(result)

    def answer(how: str, score: float, text: str) -> dict[str, str]:
        return {"how": how, "score": number(score, decimals), "text": text}

    def pair(of: Mapping[str, Any]) -> dict[str, Any]:
        answers = [answer(how, of[how], of[f"{how}_text"]) for how in ("chosen", "rejected")]
        return {"name": of["category"], "prompt": plain(of["prompt"]), "answers": answers}

    def sample(of: Mapping[str, Any]) -> dict[str, Any]:
        answers = [answer(f"sample, the reference scoring {number(of['reference_score'], decimals)}",
                          of["score"], of["text"])]  # fmt: skip
        return {"name": _name(of), "prompt": plain(of["prompt"]), "answers": answers}

    titled = {
        "Ranked wrong, the largest margins first": [pair(of) for of in examples["worst"]],
        "A typical pair of each category": [pair(of) for of in examples["categories"].values()],
        "The real sample furthest above its reference": [sample(of) for of in examples["samples"]],
    }
    return [{"title": title, "examples": shown} for title, shown in titled.items() if shown]
