"""Pairs of a better and a worse answer: ready ones, references against negatives, samples of a model by reward."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lastmile_trl.data import completion, template_columns
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.preferences.negatives import Sample, make
from lastmile_trl.preferences.tokens import all_answer_ids
from lastmile_trl.recipe import Data, Preferences
from lastmile_trl.rewards.base import cell_text, check_choice, check_number, check_whole, completion_text

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHOICES = ("best_worst", "best_of_n", "margin")
PAIR_COLUMNS = {"chosen", "rejected", "category", "chosen_ended", "rejected_ended"}  # what a row of pairs adds


@dataclass
class Samples:
    """The section `preferences.samples`: how the model answers, and which answers to a prompt become pairs."""

    per_prompt: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 32
    choose: str = "best_worst"  # or best_of_n: the best and any other; margin: any two
    margin: float = 0.0  # by how much the better one's reward is higher, at least

    def __post_init__(self):
        check_whole("preferences.samples.per_prompt", self.per_prompt)
        check_whole("preferences.samples.batch_size", self.batch_size)
        check_number("preferences.samples.temperature", self.temperature, least=0, exclusive=True)
        check_number("preferences.samples.top_p", self.top_p, least=0, exclusive=True)
        check_number("preferences.samples.margin", self.margin, least=0)
        check_choice("preferences.samples.choose", self.choose, CHOICES)


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to the prompt of a row."""

    row: int
    chosen: str
    rejected: str
    category: str
    chosen_ended: bool = True
    rejected_ended: bool = True


@dataclass
class Collected:
    """Pairs, and where none could be made: category -> reason -> how often."""

    pairs: list[Pair]
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """How many pairs of which category, and why there are not more."""
        made = Counter(pair.category for pair in self.pairs)
        lines = [f"{len(self.pairs)} pairs: {', '.join(f'{category} {made[category]}' for category in made)}."]
        for category, reasons in self.skipped.items():
            said = ", ".join(f"{count} times {reason}" for reason, count in reasons.items())
            lines.append(f"{category}: no pair {said}.")
        return lines


def collect(
    rows: "Dataset",
    data: Data,
    asked: Preferences,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    answers: Sequence[Sequence[Sample]] | None = None,
) -> Collected:
    """The pairs that the section asks for, of rows with their prompts; `answers` are the samples of each row."""
    parts = []
    if asked.chosen:
        parts.append(ready(rows, asked.chosen, asked.rejected))
    if asked.negatives:
        parts.append(against_negatives(rows, data, asked, tokenizer, seed, answers))
    if answers is not None and "model_sample" not in (asked.negatives or {}):
        parts.append(ranked(answers, Samples(**asked.samples), seed))
    # In the order of rows: the first of them are of every kind.
    pairs = sorted((pair for part in parts for pair in part.pairs), key=lambda pair: pair.row)
    skipped = {category: reasons for part in parts for category, reasons in part.skipped.items() if reasons}
    if not pairs:
        reasons = sorted({reason for counts in skipped.values() for reason in counts})
        raise RunError(f"Of {len(rows)} rows no pair could be made ({', '.join(reasons)}): change preferences.")
    return Collected(pairs, skipped)


def ready(rows: Sequence[Mapping[str, Any]], chosen: str, rejected: str) -> Collected:
    """The pairs that rows hold in two columns; their column `category`, if there is one, tells kinds apart.

    >>> found = ready([{"good": "Yes.", "bad": "No."}, {"good": "Yes.", "bad": ""}], "good", "bad")
    >>> [(pair.chosen, pair.rejected) for pair in found.pairs], found.skipped
    ([('Yes.', 'No.')], {'pairs': {'an answer is empty': 1}})
    """
    pairs, skipped = [], Counter()
    for number, row in enumerate(rows):
        better, worse = _answer_text(row[chosen]), _answer_text(row[rejected])
        if not better or not worse:
            skipped["an answer is empty"] += 1
        elif better == worse:
            skipped["both answers are the same"] += 1
        else:
            ended = (_ended(row.get(key)) for key in ("chosen_ended", "rejected_ended"))
            pairs.append(Pair(number, better, worse, str(row.get("category") or "pairs"), *ended))
    return Collected(pairs, {"pairs": dict(skipped)})


def _ended(cell: Any) -> bool:
    """An answer ended by itself unless its row says otherwise; in a csv file that is a word."""
    return cell_text(cell).lower() not in ("false", "0")


def _answer_text(cell: Any) -> str:
    is_chat = isinstance(cell, list) and cell and isinstance(cell[0], dict)
    return (completion_text(cell) if is_chat else cell_text(cell)).strip()


def against_negatives(
    rows: Sequence[Mapping[str, Any]],
    data: Data,
    asked: Preferences,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    answers: Sequence[Sequence[Sample]] | None = None,
) -> Collected:
    """References against bad answers that are made of them."""
    told = [
        {"prompt": row["prompt"], "references": row["references"], "source": source_text(row, data, asked)}
        for row in rows
    ]
    made = make(told, asked.negatives, tokenizer, seed=seed, samples=answers)
    pairs = [Pair(n.row, n.reference, n.text, n.category, rejected_ended=n.ended) for n in made.negatives]
    return Collected(pairs, made.skipped)


def source_text(row: Mapping[str, Any], data: Data, asked: Preferences) -> str:
    """The text that a row's answers are made from, without the instruction around it."""
    column = asked.source or data.shorten
    return "\n".join(cell_text(row[name]) for name in ([column] if column else template_columns(data)))


def ranked(answers: Sequence[Sequence[Sample]], samples: Samples, seed: int) -> Collected:
    """Pairs among the samples of each prompt: the better one has more reward.

    >>> row = [Sample("a", True, 0.1), Sample("b", True, 0.7), Sample("c", False, 0.5)]
    >>> [pair] = ranked([row], Samples(), seed=0).pairs
    >>> pair.chosen, pair.rejected
    ('b', 'a')
    """
    pairs, skipped = [], Counter()
    for number, row in enumerate(answers):
        known = {answer.text.strip(): answer for answer in row if answer.value is not None and answer.text.strip()}
        in_order = sorted(known.values(), key=lambda answer: answer.value)
        chosen = [
            (worse, better)
            for worse, better in _choose(in_order, samples.choose, random.Random(f"{seed} {number}"))
            if better.value > worse.value and better.value - worse.value >= samples.margin
        ]
        if not chosen:
            skipped["all samples are the same" if len(known) < 2 else "no samples differ enough in their reward"] += 1
        pairs += [
            Pair(number, better.text.strip(), worse.text.strip(), "samples", better.ended, worse.ended)
            for worse, better in chosen
        ]
    return Collected(pairs, {"samples": dict(skipped)})


def _choose(in_order: list[Sample], choose: str, random: random.Random) -> list[tuple[Sample, Sample]]:
    """Candidates (worse, better) among answers sorted by their reward."""
    if len(in_order) < 2:
        return []
    if choose == "margin":
        return list(combinations(in_order, 2))
    return [(in_order[0] if choose == "best_worst" else random.choice(in_order[:-1]), in_order[-1])]


# --- what TRL's trainers read --------------------------------------------------------------------------------------


def reward_rows(
    pairs: Sequence[Pair], rows: "Dataset", data: Data, tokenizer: "PreTrainedTokenizerBase", notes: list[str]
) -> "Dataset":
    """Pairs as token ids, for the RewardTrainer: an answer that did not end by itself has no end token."""
    from datasets import Dataset

    prompts = list(rows["prompt"])
    prompts = [prompts[pair.row] for pair in pairs]
    chosen = all_answer_ids(tokenizer, prompts, [p.chosen for p in pairs], [p.chosen_ended for p in pairs])
    rejected = all_answer_ids(tokenizer, prompts, [p.rejected for p in pairs], [p.rejected_ended for p in pairs])
    result = [
        {"chosen_ids": prompt + better, "rejected_ids": prompt + worse}
        for (prompt, better), (_, worse) in zip(chosen, rejected, strict=True)
        if _fits(data, better, worse)
    ]
    _say_what_is_long(len(pairs), len(result), data, notes)
    return Dataset.from_list(result)


def dpo_rows(
    pairs: Sequence[Pair], rows: "Dataset", data: Data, tokenizer: "PreTrainedTokenizerBase", notes: list[str]
) -> "Dataset":
    """Pairs as text or chat, for the DPOTrainer, which ends every answer: bad ones that stop early are bad for that."""
    from datasets import Dataset

    prompts, result = list(rows["prompt"]), []
    for pair in pairs:
        answers = [pair.chosen, pair.rejected]
        if _fits(data, *tokenizer(answers, add_special_tokens=False)["input_ids"]):
            prompt = prompts[pair.row]
            chosen, rejected = (completion(prompt, answer) for answer in answers)
            result.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    _say_what_is_long(len(pairs), len(result), data, notes)
    return Dataset.from_list(result)


def _fits(data: Data, *answers: list[int]) -> bool:
    return not data.max_reference_tokens or max(map(len, answers)) <= data.max_reference_tokens


def _say_what_is_long(pairs: int, kept: int, data: Data, notes: list[str]) -> None:
    if not kept:
        raise InputError(f"Every pair is longer than data.max_reference_tokens={data.max_reference_tokens}: raise it.")
    if kept < pairs:
        notes.append(
            f"{pairs - kept} pairs with an answer longer than data.max_reference_tokens={data.max_reference_tokens} "
            "are left out of training."
        )
