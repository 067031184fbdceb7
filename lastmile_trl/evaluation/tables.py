"""An evaluation as tables: in a terminal, and as Markdown for a model card or a paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lastmile_trl.evaluation.comparison import (
    DASH,
    ITSELF,
    answer,
    arrow,
    by_decoding,
    changed,
    greedy_first,
    how_tested,
    label,
    number,
    outcome,
    primary_difference,
    primary_metric,
    why_no_difference,
    why_no_value,
    why_not_described,
    with_interval,
)
from lastmile_trl.evaluation.significance import Difference, Interval

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group
    from rich.table import Table

OF_CORPUS = "This describes all texts of a run at once: no better or worse, no test."


def table(result: Mapping[str, Any]) -> Group:
    """The results for a terminal of 80 columns or more: a block per decoding, intervals as ± half their width."""
    from rich.console import Group
    from rich.text import Text

    compared, names = _has_differences(result), list(result["metrics"])
    titles = [*([_difference_title(result)] if compared else []), *(_title(name, result) for name in names)]
    header = ["run", *(title.replace("/", "/\n").replace("_", "_\n") for title in titles)]
    blocks: dict[str, list[list[str]]] = {}
    for decoding, entries in by_decoding(result).items():
        for entry in entries:
            cells = [_cell(entry["metrics"].get(name), _with_margin, arrow(entry, name)) for name in names]
            difference = [_difference_cell(entry, result, _in_lines)] if compared else []
            details = label(entry).removeprefix(entry["run"]).replace("post-", "post-\n")
            blocks.setdefault(decoding, []).append([entry["run"] + details, *difference, *cells])
    below = [f"{_legend(result)} ± is half an interval's width.", *dashes(result), *_post_processing(result)]
    below += result.get("notes", [])
    return Group(_Parts(header, blocks), Text("\n".join(below)), *_corpus_table(result))


def markdown(result: Mapping[str, Any]) -> str:
    """The results as Markdown tables with legends, for a model card or a paper."""
    compared, names = _has_differences(result), list(result["metrics"])
    header = ["run", "decoding", *([_difference_title(result)] if compared else [])]
    lines = [header + [_title(name, result) for name in names]]
    for decoding, entries in by_decoding(result).items():
        for entry in entries:
            difference = [_difference_cell(entry, result, _with_p)] if compared else []
            cells = [_cell(entry["metrics"].get(name), with_interval, f" {arrow(entry, name)}") for name in names]
            lines.append([label(entry), decoding, *difference, *map(str.strip, cells)])
    below = [_legend(result), *dashes(result), *_post_processing(result), *result.get("notes", [])]
    below += _corpus_markdown(result)
    return "\n\n".join([_markdown_table(lines), *below]).replace("*", r"\*") + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """The answer and the tables, the `evaluation.md` of a run folder."""
    return "{}\n\n{}".format(answer(result).replace("*", r"\*"), markdown(result))


def dashes(result: Mapping[str, Any]) -> list[str]:
    """What the dashes of a table mean, a line for each reason.

    >>> entry = {"run": "lead", "decoding": "greedy", "postprocessed": False, "difference": None}
    >>> entry |= {"metrics": {"rouge/rougeL": None, "words": None}, "missing": {}}
    >>> dashes({"metrics": dict.fromkeys(entry["metrics"]), "results": [entry]})
    ['– no row has a value: all metrics of lead']
    """
    entries = [entry for entries in by_decoding(result).values() for entry in entries]
    decodings = _grouped((label(entry), entry["decoding"]) for entry in entries)
    cells = [
        (reason, label(entry), entry["decoding"], what)
        for entry in entries
        for what, reason in _missing(entry, result).items()
    ]
    return _dash_lines(cells, decodings, set(result["metrics"]))


def _dash_lines(
    missing: Iterable[tuple[str, str, str, str]], decodings: Mapping[str, list[str]], metrics: set[str]
) -> list[str]:
    """A line for each reason, of cells by reason, run, decoding and what is not there."""
    cells = _grouped(((reason, name, what), decoding) for reason, name, decoding, what in missing)
    whats = _grouped(
        ((reason, name if set(at) == set(decodings[name]) else f"{name} ({', '.join(at)})"), what)
        for (reason, name, what), at in cells.items()
    )
    places = _grouped(
        ((reason, "all metrics" if metrics <= {*what} else ", ".join(what)), place)
        for (reason, place), what in whats.items()
    )
    lines = _grouped((reason, f"{what} of {' and '.join(where)}") for (reason, what), where in places.items())
    return [f"{DASH} {reason}: {'; '.join(where)}" for reason, where in lines.items()]


@dataclass(frozen=True)
class _Parts:
    """A table that goes on below where not all of its columns fit, so that no number is broken."""

    header: Sequence[str]
    blocks: Mapping[str, Sequence[Sequence[str]]]  # of lines, by what stands above them

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | str]:
        width = options.max_width
        columns = list(zip(*(line for block in self.blocks.values() for line in block), strict=True))
        columns[0] = (*columns[0], *self.blocks)
        words = [_longest(column) for column in columns]
        words[0] = min(words[0], width // 3)
        wishes = [  # whole words in the header, then whole lines
            [max(least, _longest([title])) for least, title in zip(words, self.header, strict=True)],
            [_longest((title, *column), "\n") for title, column in zip(self.header, columns, strict=True)],
        ]
        for place, part in enumerate(_that_fit(words, width)):
            yield from [""] if place else []  # an empty line
            yield self._grid(_widened({column: words[column] for column in part}, wishes, width))

    def _grid(self, widths: Mapping[int, int]) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        for column, width in widths.items():
            grid.add_column(
                Text(self.header[column]), justify="right" if column else "left", overflow="fold", width=width
            )
        for above, lines in self.blocks.items():
            grid.add_section()
            grid.add_row(Text(above, style="bold"))
            for line in lines:
                grid.add_row(*(Text(line[column]) for column in widths))
        return grid


def _longest(texts: Iterable[str], separator: str | None = None) -> int:
    """The length of the longest piece, a word where nothing else separates."""
    return max(len(piece) for text in texts for piece in text.split(separator) or [""])


def _that_fit(words: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each part, the first one in all of them; a space is between two."""
    parts = [[0]]
    for column in range(1, len(words)):
        taken = sum(words[each] + 1 for each in parts[-1])
        if len(parts[-1]) > 1 and taken + words[column] > width:
            parts.append([0])
        parts[-1].append(column)
    return parts


def _widened(least: Mapping[int, int], wishes: Sequence[Sequence[int]], width: int) -> dict[int, int]:
    """The widths of columns: what is left over goes to the wishes, one after the other."""
    widths = dict(least)
    spare = width - sum(widths.values()) - len(widths) + 1
    for wish in wishes:
        for column in widths:
            more = max(0, min(spare, wish[column] - widths[column]))
            widths[column] += more
            spare -= more
    return widths


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    header, *body = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]
    ruler = f"| --- | --- |{' ---: |' * (len(lines[0]) - 2)}"
    return "\n".join([header, ruler, *body])


def _corpus_table(result: Mapping[str, Any]) -> list[Any]:
    """What describes all texts of a run, a column for each run, and what it is; nothing where it was not measured."""
    from rich.text import Text

    runs = result.get("corpus", {})
    if not runs:
        return []
    header = ["all texts at once", *(run.replace("_", "_\n").replace(" ", "\n") for run in runs)]
    blocks = {
        decoding: [[name, *(_described(run, decoding, name, result, _with_margin) for run in runs)] for name in names]
        for decoding, names in _corpus_names(result).items()
    }
    shown = [
        (run, decoding, name) for decoding, names in _corpus_names(result).items() for name in names for run in runs
    ]
    return [Text(), _Parts(header, blocks), Text("\n".join([OF_CORPUS, *_corpus_dashes(shown, result)]))]


def _corpus_markdown(result: Mapping[str, Any]) -> list[str]:
    """The same with a line for each run and decoding, as in the other table."""
    named = _corpus_names(result)
    names = list(dict.fromkeys(name for names in named.values() for name in names))
    rows = [(run, decoding) for decoding in named for run in result["corpus"] if result["corpus"][run].get(decoding)]
    if not rows:
        return []
    lines = [[*row, *(_described(*row, name, result, with_interval) for name in names)] for row in rows]
    below = _corpus_dashes([(*row, name) for row in rows for name in names], result)
    return [_markdown_table([["run", "decoding", *names], *lines]), OF_CORPUS, *below]


def _described(run: str, decoding: str, name: str, result: Mapping[str, Any], form: Callable[[Interval], str]) -> str:
    """A number that describes all texts of a run, with its interval where it has one."""
    found = result.get("corpus_intervals", {}).get(run, {}).get(decoding, {}).get(name)
    return form(Interval(**found)) if found else _plain(result["corpus"][run].get(decoding, {}).get(name))


def _corpus_dashes(shown: Iterable[tuple[str, str, str]], result: Mapping[str, Any]) -> list[str]:
    """What the dashes mean among the numbers that are shown, each by run, decoding and name."""
    missing = [
        (why_not_described(run, decoding, name, result), run, decoding, name if decoding in of_run else "all")
        for run, decoding, name in shown
        if (of_run := result["corpus"][run]).get(decoding, {}).get(name) is None
    ]
    return _dash_lines(
        dict.fromkeys(missing),
        _grouped((run, decoding) for run, of_run in result["corpus"].items() for decoding in of_run),
        {name for of_run in result["corpus"].values() for found in of_run.values() for name in found},
    )


def _corpus_names(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is known of some run, by decoding, greedy first."""
    corpus = result.get("corpus", {}).values()
    decodings = dict.fromkeys(decoding for of_run in corpus for decoding in of_run)
    return {
        decoding: list(dict.fromkeys(name for of_run in corpus for name in of_run.get(decoding, {})))
        for decoding in sorted(decodings, key=greedy_first)
    }


def _post_processing(result: Mapping[str, Any]) -> list[str]:
    """How many outputs each step of post-processing changed, in a sentence."""
    titles = {}
    for step in result.get("postprocessing", []):
        [(name, given)] = [(step, {})] if isinstance(step, str) else step.items()
        arguments = ", ".join(f"{key}: {value}" for key, value in given.items())
        titles[name] = f"{name} ({arguments})" if given else name
    said = [
        f"{run}, {decoding}: " + ", ".join(f"{titles.get(name, name)} {count}" for name, count in counts.items())
        for run, decoding, counts in changed(result)
    ]
    return [f"Outputs that each step of post-processing changed: {'; '.join(said)}."] if said else []


def _missing(entry: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str]:
    """Why there is nothing to show, by what the tables would show."""
    missing = {name: why_no_value(entry, name) for name in result["metrics"] if entry["metrics"].get(name) is None}
    if _has_differences(result) and not primary_difference(entry, result):
        reason = why_no_difference(entry, "difference", primary_metric(result), result)
        missing |= {} if reason == ITSELF else {_difference_title(result): reason}
    return missing


def _grouped(pairs: Iterable[tuple[Any, str]]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _difference_cell(entry: Mapping[str, Any], result: Mapping[str, Any], form: Callable[[Difference], str]) -> str:
    """The difference on the primary metric; what all are held against says so."""
    difference = primary_difference(entry, result)
    if difference is None and why_no_difference(entry, "difference", primary_metric(result), result) == ITSELF:
        return "baseline"
    return _cell(difference, form)


def _cell(estimate: Mapping[str, Any] | None, form: Callable[[Difference], str], mark: str = "") -> str:
    """The estimate with a mark at the end of its first line."""
    if estimate is None:
        return DASH
    first, *others = form(Difference(**estimate)).split("\n")
    return "\n".join([first + mark, *others])


def _plain(value: float | None) -> str:
    return DASH if value is None else number(value)


def _title(name: str, result: Mapping[str, Any]) -> str:
    return f"{name}*" if result["metrics"][name]["rewarded"] else name


def _difference_title(result: Mapping[str, Any]) -> str:
    return f"{_title(primary_metric(result), result)} minus {result['baseline']}"


def _legend(result: Mapping[str, Any]) -> str:
    said = [f"Means over {result['rows']} held-out rows with 95 % bootstrap intervals."]
    if any(of["rewarded"] for of in result["metrics"].values()):
        said.append("* was a reward in training.")
    if _has_differences(result):
        said += [f"↑ and ↓: a difference to {result['baseline']} is shown.", how_tested(result)]
    return " ".join(said)


def _with_p(difference: Difference) -> str:
    return f"{with_interval(difference)}, {outcome(difference)}"


def _in_lines(difference: Difference) -> str:
    return f"{with_interval(difference)}\n{outcome(difference)}".replace(", p", "\np")


def _with_margin(estimate: Interval) -> str:
    return f"{number(estimate.mean)}\n±{number((estimate.high - estimate.low) / 2)}"


def _has_differences(result: Mapping[str, Any]) -> bool:
    return any(entry["difference"] for entry in result["results"])
