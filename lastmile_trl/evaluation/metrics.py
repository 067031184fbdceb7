"""What is measured on every output: the given metrics, and four plain counts no reward can hide."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.decoding import Several, each
from lastmile_trl.rewards.base import cell_text, known_mean
from lastmile_trl.rewards.faithfulness import extractive, novel
from lastmile_trl.rewards.repetition import Repetition
from lastmile_trl.rewards.tokens import ngrams

if TYPE_CHECKING:
    from lastmile_trl.evaluation.decoding import Output
    from lastmile_trl.preferences.perplexity import Surprise
    from lastmile_trl.rewards import Reward

# what counts as better; the number of words has no better
ALWAYS_MEASURED = {"words": None, "length_ratio": None, "ended": "higher", "repeated_3grams": "lower"}
AS_REWARDS = {"ended": "ending", "repeated_3grams": "repetition"}  # which rewards are the same, but for the sign

NO_TEXT = "no text of it has one"
FEW_TEXTS = "there are fewer than two texts"
OF_SAMPLES = "it is of samples"
SELF_BLEU_TEXTS = 200  # at most, drawn at random


def per_row(
    outputs: Sequence[Output], rows: Sequence[dict[str, Any]], metrics: Sequence[Reward]
) -> dict[str, list[float | None]]:
    """One value per row and metric, as `per_output` has them; a row of `Several` outputs has the mean of theirs."""
    return means(per_output(outputs, rows, metrics))


def means(measured: Mapping[str, Sequence[Sequence[float | None]]]) -> dict[str, list[float | None]]:
    """The mean of each row's values that are known.

    >>> means({"words": [[2.0, 3.0, None], []]})
    {'words': [2.5, None]}
    """
    return {name: [known_mean(of_row) for of_row in of_rows] for name, of_rows in measured.items()}


def per_output(
    outputs: Sequence[Output], rows: Sequence[dict[str, Any]], metrics: Sequence[Reward]
) -> dict[str, list[list[float | None]]]:
    """By row and metric a value for each output: the given metrics first, then those that are always measured.

    The metrics are called as TRL calls rewards, and know from `ended` whether a completion ended by itself.
    What was not generated, as `ids` say, has not `ended` either way.
    """
    for metric in metrics:
        if metric.name in ALWAYS_MEASURED:
            raise InputError(f"The metric name {metric.name} is taken by a built-in one; give yours another `name:`.")
    numbers, outputs, rows = _flat(outputs, rows)
    texts = [output.text for output in outputs]
    values = scored(outputs, rows, metrics) | {
        "words": [float(len(text.split())) for text in texts],
        "length_ratio": [length_ratio(text, row["references"]) for text, row in zip(texts, rows, strict=True)],
        "ended": [None if output.ids is None else float(output.ended) for output in outputs],
        "repeated_3grams": [repeated_3grams(text) for text in texts],
    }
    return {name: [[each[n] for n in of_row] for of_row in numbers] for name, each in values.items()}


def _flat(
    outputs: Sequence[Output], rows: Sequence[dict[str, Any]]
) -> tuple[list[range], list[Output], list[dict[str, Any]]]:
    """Every output that is measured with its row, and for each row given the places of its outputs."""
    numbers, flat, flat_rows = [], [], []
    for output, row in zip(outputs, rows, strict=True):
        several = output.outputs if isinstance(output, Several) else [output]
        references = (isinstance(output, Several) and output.references) or [row["references"]] * len(several)
        numbers.append(range(len(flat), len(flat) + len(several)))
        flat += several
        flat_rows += [row | {"references": texts} for texts in references]
    return numbers, flat, flat_rows


def scored(
    outputs: Sequence[Output], rows: Sequence[dict[str, Any]], rewards: Sequence[Reward]
) -> dict[str, list[float | None]]:
    """One value per row and reward, called as TRL calls them: every column is a list, chats get messages."""
    completions = [_completion(output.text, row["prompt"]) for output, row in zip(outputs, rows, strict=True)]
    columns = _columns(rows) | {
        "completion_ids": [output.ids for output in outputs],
        "ended": [output.ended for output in outputs],
    }
    return {reward.name: reward(completions, **columns) if rows else [] for reward in rewards}


def totals(outputs: Sequence[Output], rows: Sequence[dict[str, Any]], rewards: Sequence[Reward]) -> list[float | None]:
    """The weighted sum of the rewards of each row, as TRL sums them; None where no reward has a value."""
    values = scored(outputs, rows, rewards)
    weighted = [
        [reward.weight * values[reward.name][row] for reward in rewards if values[reward.name][row] is not None]
        for row in range(len(rows))
    ]
    return [sum(parts) if parts else None for parts in weighted]


def length_ratio(text: str, references: Sequence[str]) -> float | None:
    """Words of the text per word of the reference nearest in length; None without a reference that holds words.

    >>> length_ratio("one two three", ["one two", "one two three four five six"])
    1.5
    """
    words = len(text.split())
    lengths = [length for reference in references if (length := len(reference.split()))]
    if not lengths:
        return None
    return words / min(lengths, key=lambda length: (abs(length - words), length))


def repeated_3grams(text: str) -> float:
    """Share of the text's word 3-grams that occurred before in it.

    >>> repeated_3grams("a b c a b c")  # of abc, bca, cab, abc the last is a repeat
    0.25
    """
    return abs(Repetition(n=3)([text])[0])


# --- of a whole run ------------------------------------------------------------------------------------------------


def corpus_metrics(
    outputs: Mapping[str, Mapping[str, Sequence[Output]]], rows: Sequence[Mapping[str, Any]], source: str | None = None
) -> dict[str, dict[str, dict[str, float | None]]]:
    """What describes the texts of a run and is neither good nor bad: run -> decoding -> name -> value.

    `distinct_1` and `distinct_2` are the share of different n-grams among all of the run (Li et al. 2016), which falls
    with the number of words; `distinct_2_per_text` is the mean of each text's own. `same_opening` is the share of the
    texts that begin with the same four words. With the column of a `source`: `novel_2grams`, the share of 2-grams that
    the source does not have, and the means of `extractive_coverage` and `extractive_density` (Grusky et al. 2018).
    Where a row has several outputs, these are of its first, so that runs have equally many. `self_bleu` (Zhu et al.
    2018), of all samples, is the mean BLEU of a text against all others. What no text has is None.
    """
    sources = [None if source is None else cell_text(row[source]) for row in rows]
    return {
        run: {decoding: _corpus(of_decoding, sources, decoding) for decoding, of_decoding in of_run.items()}
        for run, of_run in outputs.items()
    }


def _corpus(outputs: Sequence[Output], sources: Sequence[str | None], decoding: str) -> dict[str, float | None]:
    from lastmile_trl.evaluation.alarm import most_common_opening  # brings numpy

    pairs = [
        ((output.outputs[0] if isinstance(output, Several) else output).text, source)
        for output, source in zip(outputs, sources, strict=True)
        if not isinstance(output, Several) or output.outputs
    ]
    texts = [text for text, _ in pairs]
    values = {
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "distinct_2_per_text": known_mean(distinct([text], 2) for text in texts),
        "same_opening": most_common_opening(texts)[1] if texts else None,
    }
    if decoding != "greedy":
        values["self_bleu"] = self_bleu([output.text for output, _ in each(outputs, sources)])
    with_source = [(text, source) for text, source in pairs if source is not None]
    if with_source:
        made = [found for text, source in with_source if (found := extractive(source, text)) is not None]
        values["novel_2grams"] = known_mean(novel(source, text, 2) for text, source in with_source)
        values["extractive_coverage"] = known_mean(coverage for coverage, _, _ in made)
        values["extractive_density"] = known_mean(density for _, density, _ in made)
    return values


def described(
    corpus: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    likelihoods: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """`corpus` with what `likelihoods` add, a number, an Interval or a reason, as evaluation.json keeps it all.

    >>> found = described({"sft": {"greedy": {"distinct_1": 0.5}}}, {"sft": {"greedy": {"kl_to_sft": "no samples"}}})
    >>> found["corpus"], found["corpus_missing"]
    ({'sft': {'greedy': {'distinct_1': 0.5, 'kl_to_sft': None}}}, {'sft': {'greedy': {'kl_to_sft': 'no samples'}}})
    """
    from lastmile_trl.evaluation.significance import Interval  # brings numpy

    values: dict[str, dict] = {}
    intervals: dict[str, dict] = {}
    missing: dict[str, dict] = {}
    names = {
        name for of in (corpus, likelihoods) for of_run in of.values() for found in of_run.values() for name in found
    }
    for run, of_run in corpus.items():
        for decoding, texts in of_run.items():
            found = {**texts, **likelihoods.get(run, {}).get(decoding, {})}
            given = {name: value for name, value in found.items() if isinstance(value, Interval)}
            intervals.setdefault(run, {})[decoding] = {name: asdict(value) for name, value in given.items()}
            found |= {name: value.mean for name, value in given.items()}
            values.setdefault(run, {})[decoding] = {
                name: None if isinstance(value, str) else value for name, value in found.items()
            }
            missing.setdefault(run, {})[decoding] = {
                name: reason for name in sorted(names) if (reason := _why_not_described(name, found, decoding))
            }
    return {"corpus": values, "corpus_intervals": intervals, "corpus_missing": missing}


def _why_not_described(name: str, found: Mapping[str, Any], decoding: str) -> str | None:
    if isinstance(value := found.get(name), str):
        return value
    if name in found:
        return (FEW_TEXTS if name == "self_bleu" else NO_TEXT) if value is None else None
    return OF_SAMPLES if decoding == "greedy" and name in ("self_bleu", "kl_to_sft") else "runs alone are asked for it"


def perplexity_of(surprises: Sequence[Surprise]) -> float:
    """The perplexity of several answers: of all their tokens, so that long answers count more.

    >>> from lastmile_trl.preferences.perplexity import Surprise
    >>> perplexity_of([Surprise(0.0, 1), Surprise(math.log(4), 1)])
    2.0
    """
    return math.exp(sum(each.mean * each.tokens for each in surprises) / sum(each.tokens for each in surprises))


def divergences(own: Sequence[Surprise], other: Sequence[Surprise]) -> list[float]:
    """An estimate of KL(own || other) in nats from each sample of `own`, by how both models find it; their mean counts.

    >>> from lastmile_trl.preferences.perplexity import Surprise
    >>> divergences([Surprise(1.0, 3), Surprise(2.0, 1)], [Surprise(1.5, 3), Surprise(1.5, 1)])
    [1.5, -0.5]
    """
    return [its.total - mine.total for mine, its in zip(own, other, strict=True)]


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Share of different word n-grams among all of the texts; None where no text has one.

    >>> distinct(["a b a b", "a b"], 2)  # ab, ba, ab; ab
    0.5
    """
    found = [gram for text in texts for gram in ngrams(text.split(), n)]
    return len(set(found)) / len(found) if found else None


def self_bleu(texts: Sequence[str], most: int = SELF_BLEU_TEXTS, seed: int = 0) -> float | None:
    """Mean BLEU-4 of each text against all others, smoothed as the reward `bleu` is; None for fewer than two texts.

    A sample of the texts stands for all where there are more than `most`. Words are split at white space.

    >>> self_bleu(["a cat sat", "a cat sat"]), self_bleu(["a cat", "one dog"])
    (1.0, 0.0)
    """
    if len(texts) < 2:
        return None
    chosen = random.Random(seed).sample(list(texts), most) if len(texts) > most else texts
    words = [text.split() for text in chosen]
    counts = [[Counter(ngrams(of_text, n)) for of_text in words] for n in range(1, 5)]
    highest = [_two_highest(of_order) for of_order in counts]
    lengths = Counter(len(of_text) for of_text in words if of_text)
    return sum(_bleu(number, words, counts, highest, lengths) for number in range(len(words))) / len(words)


def _two_highest(counts: Sequence[Counter]) -> dict[Any, tuple[int, int]]:
    """The two highest counts of each n-gram in any of the texts: without one text, the highest is one of them."""
    found: dict[Any, tuple[int, int]] = {}
    for of_text in counts:
        for gram, count in of_text.items():
            first, second = found.get(gram, (0, 0))
            found[gram] = (count, first) if count > first else (first, max(second, count))
    return found


def _bleu(number: int, words: Sequence, counts: Sequence, highest: Sequence, lengths: Counter) -> float:
    """Sentence BLEU of one text against all others; orders that it is too short for are left out."""
    size, logs, halvings = len(words[number]), [], 0
    for n, (of_order, tops) in enumerate(zip(counts, highest, strict=True), 1):
        if size < n:
            break
        own = of_order[number]
        # Where this text has the highest count itself, the others have at most the second.
        hits = sum(
            min(count, tops[gram][1] if count == tops[gram][0] else tops[gram][0]) for gram, count in own.items()
        )
        if n == 1 and not hits:
            return 0.0
        halvings += not hits
        logs.append(math.log(hits / (size - n + 1) if hits else 1 / (2**halvings * (size - n + 1))))
    if not logs:
        return 0.0
    others = [length for length, count in lengths.items() if count > (length == size)]
    nearest = min(others, key=lambda length: (abs(length - size), length))
    return min(1.0, math.exp(1 - nearest / size)) * math.exp(sum(logs) / len(logs))


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list]:
    names = [name for name in (rows[0] if rows else {}) if name not in ("prompt", "completion")]
    return {"prompts": [row["prompt"] for row in rows]} | {name: [row[name] for row in rows] for name in names}


def _completion(text: str, prompt: str | list[dict]) -> str | list[dict]:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
