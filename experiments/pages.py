"""What an experiment's README.md shows of its stored results: tables, plots and verdicts, between marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import ceil, floor
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lab import HERE, Claim, Task, known
from tables import signed, span, with_table

if TYPE_CHECKING:
    from lab import Experiment

Results = Mapping[int, Mapping[str, Any]]  # of a task, by seed
DECODINGS = ("greedy", "sampled")
SEEDS = 3  # fewer decide nothing
JUDGED = {  # what is asked of a reward model -> where its evaluation says it, and the column of the tables
    "accuracy": "held-out pairs ranked right",
    "hallucinated": "held-out pairs with changed facts ranked right",
    "length_correlation": "correlation with length",
    "sampled_correlation": "correlation with ROUGE-L, SFT's samples",
}


# --- comparing -------------------------------------------------------------------------------------------------------


def rows(kept: Mapping[str, Any], label: str, decoding: str, metric: str) -> list[float | None]:
    """A value for every held-out row, of a model that writes; of a reward model the same number twice."""
    if metric in JUDGED:
        return [judged(kept["judged"][label], metric)] * 2
    return kept["rows"][label][decoding][metric]


def judged(found: Mapping[str, Any], metric: str) -> float | None:
    """What a reward model's evaluation says; None where it is not asked, or scores or lengths are all the same."""
    if metric == "accuracy":
        return found["all"]["accuracy"]["mean"]
    if metric == "hallucinated":
        return found["categories"].get(metric, {}).get("accuracy", {}).get("mean")
    if metric == "length_correlation":
        return found["length_correlation"]
    [sampled] = [sample for sample in found["samples"] if sample["decoding"] == "sampled"]
    return sampled["correlation"]["metric"]


def difference(
    results: Results, label: str, rivals: Sequence[str], decoding: str, metric: str, against: str = ""
) -> dict[str, Any] | None:
    """To the rivals' mean, over seeds and rows, for other seeds and rows alike; of one seed, for other rows.

    None where fewer than two rows have a value.
    """
    from lastmile_trl.evaluation.significance import minus, over_seeds, paired

    by_seed = []
    for kept in results.values():
        columns = zip(*(rows(kept, rival, against or decoding, metric) for rival in rivals), strict=True)
        beside = [None if None in values else fmean(values) for values in columns]
        by_seed.append(minus(rows(kept, label, decoding, metric), beside))
    found = over_seeds(by_seed) if len(by_seed) > 1 else paired(by_seed[0], [0.0] * len(by_seed[0]))
    return {**asdict(found), "by_seed": [fmean(known(values)) for values in by_seed]} if found else None


def mean(results: Results, label: str, decoding: str, metric: str) -> str:
    """Over seeds and rows."""
    values = [value for kept in results.values() for value in known(rows(kept, label, decoding, metric))]
    return f"{fmean(values):.3f}" if values else "–"


def has(results: Results, label: str, decoding: str, metric: str) -> bool:
    """Whether every seed has it."""
    if metric in JUDGED:
        return all(label in kept.get("judged", {}) for kept in results.values())
    return all(metric in kept["rows"].get(label, {}).get(decoding, {}) for kept in results.values())


def metric_of(claim: Claim, task: Task) -> str:
    """The metric that the claim is about, on this task."""
    rewarded, facts, *_ = task.shown
    return {"": rewarded, "facts": facts}.get(claim.metric, claim.metric)


def decided(found: Mapping[str, Any]) -> str:
    """What is said of a claim: by its p among all main claims, or by its interval alone."""
    if len(found["by_seed"]) < SEEDS:
        return f"is not judged by fewer than {SEEDS} seeds"
    apart, corrected = found["low"] > 0 or found["high"] < 0, found.get("p_adjusted")
    if apart if corrected is None else corrected < 0.05:
        return "holds" if found["mean"] > 0 else "does not hold: the opposite is shown"
    return f"is not decided among all main claims (p {corrected:.2f})" if apart else "is not decided at this size"


def made(experiment: Experiment, task: Task, results: Results) -> Iterator[tuple[Claim, dict[str, Any]]]:
    """The claims whose arms were measured, and what was found; the p of main ones is corrected for their number."""
    from lastmile_trl.evaluation.significance import holm

    there = []
    for claim in experiment.claims if results else ():
        metric, against = metric_of(claim, task), claim.against or claim.decoding
        if has(results, claim.arm, claim.decoding, metric) and all(
            has(results, rival, against, metric) for rival in claim.rivals
        ):
            found = difference(results, claim.arm, claim.rivals, claim.decoding, metric, against)
            there += [(claim, found)] if found else []
    corrected = iter(holm([found.get("p") for claim, found in there if claim.main]))
    for claim, found in there:
        yield claim, {**found, "p_adjusted": next(corrected) if claim.main else None}


# --- what is shown ---------------------------------------------------------------------------------------------------


def titles(experiment: Experiment, results: Results) -> dict[str, str]:
    """The rows of the tables: the base, what stands beside the arms, and all arms that were measured."""
    arms = {name: arm.title for name, arm in experiment.arms.items() if arm.writes}
    every = {experiment.base: arms[experiment.base], **experiment.beside, **arms}
    there = {label for kept in results.values() for label in kept["rows"]}
    return {label: title for label, title in every.items() if label in there}


def verdict(claim: Claim, found: Mapping[str, Any], task: Task) -> str:
    """A sentence with an interval."""
    metric = metric_of(claim, task)
    against = f" against {claim.against}" if claim.against else ""
    measure = JUDGED[metric] if metric in JUDGED else f"{task.shown[metric]}, {claim.decoding}{against}"
    said = f"**{decided(found)}**" if claim.main else decided(found)
    return f"* {claim.said} ({measure}): {signed(found)}, which {said}.\n"


def verdicts(experiment: Experiment, task: Task, results: Results, main: bool) -> str:
    """A sentence for each claim that is a main one, or is not."""
    found = made(experiment, task, results)
    return "".join(verdict(claim, said, task) for claim, said in found if claim.main == main)


def table(experiment: Experiment, task: Task, results: Results, decoding: str) -> str:
    """Every arm's means, and its differences to the base on the same rows."""
    base, named = experiment.base, titles(experiment, results)
    labels = [label for label in named if has(results, label, decoding, next(iter(task.shown)))]
    shown = {
        metric: title
        for metric, title in task.shown.items()
        if all(has(results, label, decoding, metric) for label in labels)
    }
    primary, facts, *others = shown
    heads = [shown[primary], f"minus {named[base]}", "by seed", shown[facts], f"minus {named[base]}"]
    heads += [shown[metric] for metric in others]
    lines = [f"| {decoding} | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for label in labels:
        cells = [mean(results, label, decoding, primary), "", "", mean(results, label, decoding, facts), ""]
        if label != base:
            found = difference(results, label, [base], decoding, primary)
            cells[1], cells[2] = signed(found), " ".join(f"{value:+.3f}" for value in found["by_seed"])
            cells[4] = signed(difference(results, label, [base], decoding, facts))
        cells += [mean(results, label, decoding, metric) for metric in others]
        lines.append(f"| {named[label]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def short_table(experiment: Experiment, task: Task, labels: Sequence[str], columns: Sequence[tuple[str, str]]) -> str:
    """Some arms' differences to the base: a column for each (decoding, metric)."""
    results = experiment.stored(task.name)
    named = titles(experiment, results)
    heads = [f"{task.shown[metric]}, {decoding}" for decoding, metric in columns]
    lines = [f"| minus {named[experiment.base]} | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for label in labels:
        cells = [
            signed(difference(results, label, [experiment.base], decoding, metric))
            if has(results, label, decoding, metric)
            else ""
            for decoding, metric in columns
        ]
        lines.append(f"| {named[label]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def judges_table(experiment: Experiment, results: Results) -> str:
    """The reward models: a mean over the seeds, and every seed's."""
    labels = [name for name in experiment.arms if all(name in kept.get("judged", {}) for kept in results.values())]
    columns = {
        metric: [known(judged(kept["judged"][label], metric) for kept in results.values()) for label in labels]
        for metric in JUDGED
    }
    columns = {metric: values for metric, values in columns.items() if any(values)}
    lines = [f"| | {' | '.join(JUDGED[metric] for metric in columns)} |", f"|---|{'---:|' * len(columns)}"]
    for place, label in enumerate(labels):
        cells = []
        for metric, column in columns.items():
            form = "+.2f" if "correlation" in metric else ".3f"
            seeds = " ".join(format(value, form) for value in column[place])
            cells.append(f"{fmean(column[place]):{form}} ({seeds})" if seeds else "–")
        lines.append(f"| {experiment.arms[label].title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def categories_table(results: Results) -> str:
    """How often a reward model puts the reference above each kind of answer."""
    models = [kept["judged"]["reward"] for kept in results.values()]
    lines = [f"| reference above | mean | {' | '.join(f'seed {seed}' for seed in results)} |"]
    lines.append(f"|---|{'---:|' * (len(results) + 1)}")
    ranked = {
        name: [model["categories"][name]["accuracy"]["mean"] for model in models] for name in models[0]["categories"]
    }
    for place, sample in enumerate(models[0]["samples"]):
        own = [model["samples"][place]["accuracy"]["mean"] for model in models]
        ranked[f"SFT's own output, {sample['decoding']}"] = own
    for name, values in ranked.items():
        cells = " | ".join(f"{value:.3f}" for value in (fmean(values), *values))
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def pairs_table(experiment: Experiment, results: Results) -> str:
    """What filters kept: a mean over the seeds."""
    lines = [
        "| | pairs | kept | most of these are | chosen is longer, before | after |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for name, arm in experiment.arms.items():
        found = [kept["pairs"][name]["filter"] for kept in results.values() if "filter" in kept["pairs"].get(name, {})]
        if found:
            cells = [f"{fmean(filter['all'][key] for filter in found):.0f}" for key in ("pairs", "kept")]
            cells.append(usual_kind(found))
            cells += [f"{fmean(filter['chosen_longer'][key] for filter in found):.0%}" for key in ("before", "after")]
            lines.append(f"| {arm.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def usual_kind(filters: Sequence[Mapping[str, Any]]) -> str:
    """The kind of bad answer that most of the kept pairs have, and their share; nothing where there is one kind."""
    kept = {kind: sum(filter["categories"][kind]["kept"] for filter in filters) for kind in filters[0]["categories"]}
    kind = max(kept, key=kept.get)
    return f"{kind}, {kept[kind] / sum(kept.values()):.0%}" if len(kept) > 1 else ""


def example(experiment: Experiment, results: Results) -> str:
    """What some arms write of one row, with the first seed."""
    found = next(iter(results.values()))["example"]
    texts = {"the prompt": found["prompt"], "the reference": found["reference"]}
    texts |= {titles(experiment, results)[label]: found["texts"][label] for label in experiment.shown}
    lines = ["| | |", "|---|---|", *(f"| {title} | {' '.join(text.split())} |" for title, text in texts.items())]
    return "\n".join(lines) + "\n"


def ran(results: Results) -> str:
    """When, where and how long."""
    every = results.values()
    told = [", ".join(sorted({kept["date"] for kept in every}))]
    told += sorted({kept["machine"] for kept in every if "machine" in kept})
    told.append(f"seeds {', '.join(map(str, results))}")
    if minutes := [sum(kept["seconds"].values()) / 60 for kept in every if "seconds" in kept]:
        told.append(f"{span(minutes)} minutes of training a seed, beside other work")
    return "; ".join(told) + ".\n"


def marks(experiment: Experiment) -> dict[str, str]:
    """What stands between the marks of its README.md."""
    found = {}
    for task in map(Task, experiment.tasks):
        if not (results := experiment.stored(task.name)):
            continue
        found[f"{task.name} run"] = ran(results)
        found |= {f"{task.name} {decoding}": table(experiment, task, results, decoding) for decoding in DECODINGS}
        found[f"{task.name} claims"] = verdicts(experiment, task, results, main=True)
        found[f"{task.name} besides"] = verdicts(experiment, task, results, main=False)
        first = next(iter(results.values()))
        if "reward" in first.get("judged", {}):
            found[f"{task.name} reward model"] = categories_table(results)
        elif "judged" in first:
            found[f"{task.name} reward models"] = judges_table(experiment, results)
        if experiment.shown:
            found[f"{task.name} example"] = example(experiment, results)
        if "pairs" in first:
            found[f"{task.name} pairs"] = pairs_table(experiment, results)
    return found


def plots(experiment: Experiment) -> dict[str, str]:
    """By file name: the differences of a task's arms to the base, with their intervals."""
    found = {}
    for task in map(Task, experiment.tasks):
        if not (results := experiment.stored(task.name)):
            continue
        metric, named = next(iter(task.shown)), titles(experiment, results)
        groups = {
            decoding: {
                title: difference(results, label, [experiment.base], decoding, metric)
                for label, title in named.items()
                if label != experiment.base and has(results, label, decoding, metric)
            }
            for decoding in DECODINGS
        }
        said = f"{task.shown[metric]} minus that of {named[experiment.base]}: {task.said['title']}"
        found[f"{task.name}.svg"] = forest(said, groups)
    return found


def summary(experiment: Experiment) -> str:
    """Its main claims, task by task."""
    tasks = [(task, experiment.stored(task.name)) for task in map(Task, experiment.tasks)]
    return "\n".join(
        f"{task.said['title']}:\n\n{verdicts(experiment, task, results, main=True)}"
        for task, results in tasks
        if results
    )


def write(experiment: Experiment) -> None:
    """Fill the marks of README.md, those of the index, and draw the plots."""
    index = HERE / "README.md"
    index.write_text(with_table(index.read_text(), experiment.name, summary(experiment)))
    file = experiment.folder / "README.md"
    page = file.read_text()
    for mark, text in marks(experiment).items():
        page = with_table(page, mark, text)
    file.write_text(page)
    for name, drawing in plots(experiment).items():
        (experiment.folder / name).write_text(drawing)


# --- a plot ----------------------------------------------------------------------------------------------------------

ROW, LEFT, WIDTH, MARGIN = 22, 340, 340, 28
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # between the numbers below a plot


def forest(title: str, groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Differences as dots with their intervals, a row each, around a line at 0; filled where 0 is outside."""
    from xml.sax.saxutils import escape

    every = [found for group in groups.values() for found in group.values()]
    low, high = min(0.0, *(found["low"] for found in every)), max(0.0, *(found["high"] for found in every))

    def x(value: float) -> float:
        return round(LEFT + WIDTH * (value - low) / ((high - low) or 1), 1)

    lines, y = [], 3 * ROW
    for name, group in groups.items():
        lines.append(f'<text class="bold" x="{MARGIN}" y="{y}">{escape(name)}</text>')
        y += ROW
        for label, found in group.items():
            kind = "shown" if found["low"] > 0 or found["high"] < 0 else "open"
            lines.append(
                f'<text x="{LEFT - 12}" y="{y}" text-anchor="end">{escape(label)}</text>'
                f'<line class="{kind}" x1="{x(found["low"])}" x2="{x(found["high"])}" y1="{y - 4}" y2="{y - 4}"/>'
                f'<circle class="{kind}" cx="{x(found["mean"])}" cy="{y - 4}" r="4"/>'
            )
            y += ROW
        y += ROW // 2
    step = next((step for step in STEPS if high - low <= 6 * step), STEPS[-1])
    numbers = "".join(
        f'<text x="{x(place * step)}" y="{y}" text-anchor="middle">{f"{place * step:+.2f}" if place else 0}</text>'
        for place in range(ceil(low / step), floor(high / step) + 1)
    )
    width, height = LEFT + WIDTH + MARGIN, y + ROW
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n'
        "<style>text{font:13px sans-serif;fill:#57534e}.bold{font-weight:600;fill:#1c1917}line{stroke:#a8a29e;"
        "stroke-width:2}line.shown{stroke:#b45309}circle{fill:#fff;stroke:#a8a29e;stroke-width:2}circle.shown{fill:"
        "#b45309;stroke:#b45309}line.zero{stroke-width:1;stroke-dasharray:3 3}@media(prefers-color-scheme:dark){text{"
        "fill:#d6d3d1}.bold{fill:#fafaf9}circle.open{fill:#1c1917}}</style>\n"
        f'<text class="bold" x="{MARGIN}" y="{ROW}">{escape(title)}</text>\n'
        f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="{2 * ROW}" y2="{y - ROW}"/>\n'
        + "\n".join(lines)
        + f"\n{numbers}\n</svg>\n"
    )
