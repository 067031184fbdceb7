"""Pairs whose answers a model might have given itself: how surprised it is by them, and which of them to keep.

The perplexity of an answer is exp(-(1/n) sum of log p(token | prompt, tokens before)) over its n tokens, the end token
among them. What is far above the perplexity of the model's own samples teaches it little about what it would say.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.evaluation.decoding import evaluating
from lastmile_trl.preferences.tokens import all_answer_ids
from lastmile_trl.rewards.base import check_choice, check_number, check_whole, known_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LARGEST = 700.0  # a mean above it is no number to compare: its exponential soon overflows
BINS = 12  # of the histograms
BAR = 16  # characters of the longest bar in a terminal


@dataclass(frozen=True)
class Surprise:
    """How unlikely a model finds an answer: the mean of -log p over its tokens, and how many those are.

    >>> Surprise(mean=0.0, tokens=3).perplexity
    1.0
    """

    mean: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """The number of equally likely tokens that would surprise as much."""
        return math.exp(self.mean)

    @property
    def total(self) -> float:
        """-log p of the whole answer, in nats."""
        return self.mean * self.tokens


def perplexities(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]],
    answers: Sequence[str],
    *,
    batch_size: int = 8,
    ended: Sequence[bool] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Surprise]:
    """How unlikely the model finds each answer to its prompt, in order, whatever the batches.

    An answer that has not ``ended`` by itself is measured without an end token. A model in training comes back as it
    was.
    """
    ids = all_answer_ids(tokenizer, prompts, answers, ended)
    for (before, answer), prompt in zip(ids, prompts, strict=True):
        if not before:
            raise InputError(f"The prompt {prompt!r:.80} holds no tokens; give it at least one word.")
        if not answer:
            raise InputError(f"An answer to {prompt!r:.80} is empty and did not end: leave that pair out.")
    return surprises(model, ids, prompts, batch_size=batch_size, on_batch=on_batch)


def surprises(
    model: Any,
    ids: Sequence[tuple[list[int], list[int]]],
    prompts: Sequence[str | list[dict]],
    *,
    batch_size: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Surprise]:
    """The same of prompts and answers as token ids, every one of an answer counted; an error names its prompt."""
    import torch

    order = sorted(range(len(ids)), key=lambda row: -sum(map(len, ids[row])))
    found: dict[int, Surprise] = {}
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            found |= zip(rows, _surprises(model, [ids[row] for row in rows]), strict=True)
            for row in rows:
                if not found[row].mean < LARGEST:  # nan neither
                    raise RunError(
                        f"The model gives an answer to {prompts[row]!r:.80} no likelihood: load it with another "
                        "model.dtype, or check that it was trained."
                    )
            if on_batch is not None:
                on_batch(len(found), len(ids))
    return [found[row] for row in range(len(ids))]


def _surprises(model: Any, batch: list[tuple[list[int], list[int]]]) -> list[Surprise]:
    import torch

    sizes = [len(prompt) + len(answer) for prompt, answer in batch]
    width = max(sizes)
    # Padded on the right, where no token of a causal model sees it and positions count from 0.
    inputs = [[*prompt, *answer, *[0] * (width - size)] for (prompt, answer), size in zip(batch, sizes, strict=True)]
    mask = [[1] * size + [0] * (width - size) for size in sizes]
    keep = {}
    forward = (model.get_base_model() if hasattr(model, "get_base_model") else model).forward
    if "logits_to_keep" in inspect.signature(forward).parameters:
        keep["logits_to_keep"] = width - min(len(prompt) for prompt, _ in batch) + 1
    logits = model(
        input_ids=torch.tensor(inputs, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        use_cache=False,
        **keep,
    ).logits
    left_out = width - logits.size(1)
    means = []
    for (prompt, answer), row in zip(batch, logits, strict=True):
        first = len(prompt) - 1 - left_out  # a token is predicted by the one before it
        targets = torch.tensor(answer, device=row.device)
        means.append(torch.nn.functional.cross_entropy(row[first : first + len(answer)].float(), targets))
    return [Surprise(mean, len(answer)) for mean, (_, answer) in zip(torch.stack(means).tolist(), batch, strict=True)]


# --- a file that a stopped run goes on from ------------------------------------------------------------------------


def measured(
    model_of: Callable[[], Any],
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Mapping[str, Any]],
    file: Path,
    *,
    name: str,
    batch_size: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[list[Surprise], list[Surprise]]:
    """How unlikely a model finds the chosen and the rejected answers; every batch is kept in ``file``.

    A pair has a ``prompt``, the texts ``chosen`` and ``rejected``, and may have ``chosen_ended`` and
    ``rejected_ended``. What the file holds of the same pairs and the same ``name`` of a model is not measured again,
    and ``model_of`` is called only if something is left.
    """
    lines = _kept_lines(file, _fingerprint(name, pairs))
    found = dict(pair for line in lines[1:] for pair in _from_line(line))
    # The longest first, so that what does not fit into memory fails at once.
    rows = sorted((row for row in range(len(pairs)) if row not in found), key=lambda row: -_length(pairs[row]))
    if rows:
        model = model_of()
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.new")
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        beside.replace(file)  # without a torn last line
        with file.open("a", encoding="utf-8") as out:
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                line = _measured_line(model, tokenizer, pairs, batch, batch_size)
                out.write(f"{line}\n")
                out.flush()
                found |= _from_line(line)
                if on_batch is not None:
                    on_batch(len(found), len(pairs))
    return [found[row][0] for row in range(len(pairs))], [found[row][1] for row in range(len(pairs))]


def _fingerprint(name: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    told = [[pair["prompt"], pair["chosen"], pair["rejected"], _ended(pair)] for pair in pairs]
    return hashlib.sha256(json.dumps([name, told]).encode()).hexdigest()


def _ended(pair: Mapping[str, Any]) -> list[bool]:
    return [bool(pair.get(f"{side}_ended", True)) for side in ("chosen", "rejected")]


def _length(pair: Mapping[str, Any]) -> int:
    return len(str(pair["prompt"])) + max(len(pair["chosen"]), len(pair["rejected"]))


def _kept_lines(file: Path, fingerprint: str) -> list[str]:
    """The lines to go on from, the first of which says whose they are."""
    head = json.dumps({"fingerprint": fingerprint})
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []  # what has no end is torn
    return lines if lines[:1] == [head] else [head]


def _measured_line(model: Any, tokenizer: Any, pairs: Sequence[Mapping], rows: list[int], batch_size: int) -> str:
    some = [pairs[row] for row in rows]
    prompts = [pair["prompt"] for pair in some]
    answers = [pair[side] for side in ("chosen", "rejected") for pair in some]
    ended = [ends for of_side in zip(*map(_ended, some), strict=True) for ends in of_side]
    both = perplexities(model, tokenizer, prompts * 2, answers, batch_size=batch_size, ended=ended)
    values = [[each.mean, each.tokens] for each in both]
    return json.dumps({"pairs": rows, "chosen": values[: len(rows)], "rejected": values[len(rows) :]})


def _from_line(line: str) -> list[tuple[int, tuple[Surprise, Surprise]]]:
    told = json.loads(line)
    return [
        (row, (Surprise(*chosen), Surprise(*rejected)))
        for row, chosen, rejected in zip(told["pairs"], told["chosen"], told["rejected"], strict=True)
    ]


# --- which pairs are kept ------------------------------------------------------------------------------------------

REASONS = {  # why a pair goes, in the order they are looked at -> what lets more of them stay
    "too surprising": "raise preferences.filter.quantile or max_perplexity",
    "too plain": "lower preferences.filter.lower_quantile or min_perplexity",
    "unbalanced": "raise preferences.filter.balance",
    "lengths": "raise preferences.filter.length_ratio",
}


@dataclass
class Filter:
    """The section `preferences.filter`: keep the pairs whose answers the model itself might have given."""

    keep: str = "both"  # which answers must be within the bounds: both, chosen, rejected, or any one of the two
    quantile: float = 0.95  # the upper bound: at most as surprising as this share of ...
    of: str = "samples"  # ... samples: the model's own samples; data: the answers that are looked at
    max_perplexity: float | None = None  # the upper bound as a number, in place of `quantile`
    lower_quantile: float | None = 0.005  # the lower bound: what is hardly surprising is boilerplate, or memorised
    min_perplexity: float | None = None  # the lower bound as a number, in place of `lower_quantile`
    balance: float | None = 1.0  # largest |log perplexity of chosen - that of rejected|; more teaches only fluency
    length_ratio: float | None = 2.0  # most tokens of one answer for each token of the other
    min_kept: float = 0.1  # share of the pairs; the stage stops if fewer stay
    prompts: int = 200  # how many prompts the model answers to find the bounds; each is one sample
    batch_size: int = 8

    def __post_init__(self):
        name = "preferences.filter"
        check_choice(f"{name}.keep", self.keep, ("both", "chosen", "rejected", "any"))
        check_choice(f"{name}.of", self.of, ("samples", "data"))
        _check_share(f"{name}.quantile", self.quantile)
        _check_share(f"{name}.min_kept", self.min_kept)
        if self.lower_quantile is not None:
            _check_share(f"{name}.lower_quantile", self.lower_quantile)
        for key, least in (("max_perplexity", 1), ("min_perplexity", 1), ("balance", 0), ("length_ratio", 1)):
            if getattr(self, key) is not None:
                check_number(f"{name}.{key}", getattr(self, key), least=least)
        check_whole(f"{name}.prompts", self.prompts)
        check_whole(f"{name}.batch_size", self.batch_size)
        for low, high in (("lower_quantile", "quantile"), ("min_perplexity", "max_perplexity")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least >= most:
                raise InputError(f"{name}.{low} must be below {name}.{high}, which is {most!r}, not {least!r}.")

    @property
    def needs_samples(self) -> bool:
        """Whether a bound is found from the model's own samples."""
        by_quantile = self.max_perplexity is None or (self.min_perplexity is None and self.lower_quantile is not None)
        return self.of == "samples" and by_quantile


def _check_share(key: str, value: Any) -> None:
    check_number(key, value, least=0)
    if value > 1:
        raise InputError(f"{key} must be a share between 0 and 1, not {value!r}.")


@dataclass(frozen=True)
class Selection:
    """Which pairs are kept, and for each pair why it is not; the perplexities an answer must lie between."""

    kept: list[int]
    reasons: list[str | None]
    low: float | None
    high: float


def select(
    filter: Filter, chosen: Sequence[Surprise], rejected: Sequence[Surprise], own: Sequence[Surprise] | None = None
) -> Selection:
    """Apply the filter to measured pairs; ``own`` are samples of the model. Bounds themselves are within bounds.

    Quantiles are of perplexities, linear between the two nearest ones, as numpy's are.

    >>> close, far = Surprise(1.0, 10), Surprise(3.0, 10)
    >>> select(Filter(max_perplexity=9, lower_quantile=None), [close, close], [close, far]).reasons
    [None, 'too surprising']
    """
    if not chosen:
        raise InputError("There are no pairs to filter.")
    low, high = _bounds(filter, chosen, rejected, own)
    reasons = [_reason(filter, low, high, *pair) for pair in zip(chosen, rejected, strict=True)]
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    return Selection(kept, reasons, low, high)


def check_kept(filter: Filter, selection: Selection) -> None:
    """Refuse to go on with fewer pairs than the filter must keep."""
    kept, pairs = len(selection.kept), len(selection.reasons)
    if kept / pairs < filter.min_kept:
        [(reason, count)] = Counter(reason for reason in selection.reasons if reason).most_common(1)
        raise RunError(
            f"preferences.filter keeps {kept} of {pairs} pairs ({kept / pairs:.1%}), a smaller share than "
            f"min_kept={filter.min_kept:g}; most go as {reason!r} ({count}): {REASONS[reason]}, or lower "
            "preferences.filter.min_kept."
        )


def _bounds(
    filter: Filter, chosen: Sequence[Surprise], rejected: Sequence[Surprise], own: Sequence[Surprise] | None
) -> tuple[float | None, float]:
    import numpy as np

    if filter.needs_samples and not own:
        raise InputError(
            "preferences.filter.of is 'samples', but there are no samples of the model: set it to data, or give "
            "max_perplexity and min_perplexity."
        )
    looked_at = {"chosen": chosen, "rejected": rejected}.get(filter.keep, [*chosen, *rejected])
    values = [each.perplexity for each in (own or [] if filter.of == "samples" else looked_at)]
    low, high = filter.min_perplexity, filter.max_perplexity
    if low is None and filter.lower_quantile is not None:
        low = float(np.quantile(values, filter.lower_quantile))
    return low, float(np.quantile(values, filter.quantile)) if high is None else high


def _reason(filter: Filter, low: float | None, high: float, chosen: Surprise, rejected: Surprise) -> str | None:
    """The first of REASONS for which a pair goes, or None."""
    looked_at = {"chosen": [chosen], "rejected": [rejected]}.get(filter.keep, [chosen, rejected])
    above = [each.perplexity > high for each in looked_at]
    below = [low is not None and each.perplexity < low for each in looked_at]
    outside = [too_high or too_low for too_high, too_low in zip(above, below, strict=True)]
    if all(outside) if filter.keep == "any" else any(outside):
        return "too surprising" if any(above) else "too plain"
    if filter.balance is not None and abs(chosen.mean - rejected.mean) > filter.balance:
        return "unbalanced"
    shorter, longer = sorted((chosen.tokens, rejected.tokens))
    if filter.length_ratio is not None and longer > filter.length_ratio * shorter:
        return "lengths"
    return None


# --- what the filter did -------------------------------------------------------------------------------------------


def report(
    selection: Selection,
    chosen: Sequence[Surprise],
    rejected: Sequence[Surprise],
    own: Sequence[Surprise] | None = None,
    categories: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """What was kept and why not, overall and by category; lengths before and after; histograms of log perplexity.

    The result can be written as JSON: {"low", "high", "all": COUNTS, "categories": {NAME: COUNTS}, "tokens": {"chosen"
    and "rejected": {"before", "after"}}, "chosen_longer": {"before", "after"}, "log_perplexity": {"edges", "chosen",
    "rejected", "own"}}, where COUNTS are {"pairs", "kept", "share", "removed": {REASON: number}}.
    """
    every = range(len(chosen))
    by_category: dict[str, list[int]] = {}
    for row, category in zip(every, categories or [None] * len(chosen), strict=True):
        if category is not None:
            by_category.setdefault(category, []).append(row)

    def before_and_after(values: Sequence[float]) -> dict[str, float | None]:
        return {"before": known_mean(values), "after": known_mean(values[row] for row in selection.kept)}

    pairs = list(zip(chosen, rejected, strict=True))
    return {
        "low": selection.low,
        "high": selection.high,
        "all": _counts(selection, every),
        "categories": {category: _counts(selection, rows) for category, rows in by_category.items()},
        "tokens": {
            "chosen": before_and_after([each.tokens for each in chosen]),
            "rejected": before_and_after([each.tokens for each in rejected]),
        },
        "chosen_longer": before_and_after([float(better.tokens > worse.tokens) for better, worse in pairs]),
        "log_perplexity": _histograms({"chosen": chosen, "rejected": rejected, "own": own or []}),
    }


def _counts(selection: Selection, rows: Sequence[int]) -> dict[str, Any]:
    removed = Counter(selection.reasons[row] for row in rows)
    kept = removed[None]
    return {
        "pairs": len(rows),
        "kept": kept,
        "share": kept / len(rows),
        "removed": {reason: removed[reason] for reason in REASONS},
    }


def _histograms(surprises: Mapping[str, Sequence[Surprise]]) -> dict[str, list]:
    import numpy as np

    edges = np.histogram_bin_edges([each.mean for some in surprises.values() for each in some], bins=BINS)
    counts = {
        name: np.histogram([each.mean for each in some], bins=edges)[0].tolist()
        for name, some in surprises.items()
        if some
    }
    return {"edges": edges.tolist(), **counts}


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report for a terminal: how many were kept, tables of reasons and lengths, histograms."""
    whole, low, high = report["all"], report["low"], report["high"]
    least = f"from {_number(low)} to" if low is not None else "at most"
    reasons = [["", "pairs", "kept", *REASONS]]
    for name, counts in [*report["categories"].items(), ("all", whole)]:
        removed = (str(counts["removed"][reason]) for reason in REASONS)
        reasons.append([name, str(counts["pairs"]), f"{counts['share']:.0%}", *removed])
    lengths = [["", "before", "after"]]
    for name, of_side in report["tokens"].items():
        lengths.append([f"tokens, {name}", *("–" if value is None else f"{value:.1f}" for value in of_side.values())])
    longer = report["chosen_longer"].values()
    lengths.append(["chosen is longer", *("–" if value is None else f"{value:.0%}" for value in longer)])
    return [
        f"{whole['kept']} of {whole['pairs']} pairs are kept; perplexity had to be {least} {_number(high)}.",
        "",
        *_aligned(reasons, str.rjust),
        "",
        *_aligned(lengths, str.rjust),
        "",
        *_aligned(_bars(report["log_perplexity"]), str.ljust),
    ]


def _bars(histograms: Mapping[str, list]) -> list[list[str]]:
    edges = [_number(math.exp(edge)) for edge in histograms["edges"]]
    shares = {name: [n / sum(counts) for n in counts] for name, counts in histograms.items() if name != "edges"}
    highest = max(max(of_series) for of_series in shares.values())
    titles = ["own samples" if name == "own" else name for name in shares]
    rows = [["perplexity", *titles]]
    for bin in range(len(edges) - 1):
        bars = ["#" * math.ceil(BAR * of_series[bin] / highest) for of_series in shares.values()]
        rows.append([f"{edges[bin]} to {edges[bin + 1]}", *bars])
    return rows


def _aligned(rows: list[list[str]], place: Callable[[str, int], str]) -> list[str]:
    """Columns as wide as their widest cell, the first one flush left."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join([row[0].ljust(first), *map(place, row[1:], others)]).rstrip() for row in rows]


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
