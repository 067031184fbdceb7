"""Rewards for saying what has to be said: the concepts of a row, or the slots of a meaning representation."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import Task, check_choice, check_column, completion_text
from lastmile_trl.rewards.tokens import stem, words

# A row's slots as one text: "name[The Eagle], area[riverside]".
_SLOT = re.compile(r"([^\[\](),]+)\[([^\]]*)\]")

# What a slot of two values says is no text: "no" stands in many a sentence that is not about the slot.
_NO_TEXT = ("yes", "no", "true", "false")


@dataclass(frozen=True)
class Coverage:
    """The share of a row's concepts that the completion mentions: the main measure of CommonGen.

    Formula: `|concepts found| / |concepts|`. A concept is found if its word stems (Porter) stand in the completion,
    those of a concept of several words next to one another. A concept listed twice counts once.

    Range: [0, 1]. None for a row without concepts.

    Use: when a text has to mention given words, in whatever order and form.

    How it is gamed: by listing the concepts, without any sentence around them.

    Pair it with: rouge or cider for the sentence, echo and length against the list.

    Arguments:
        column: the column of concepts: per row a list of texts, or one text split at white space and commas.

    Irregular forms are not found: "sat" has another stem than "sit". Scripts that put no space between words cannot
    be matched.

    >>> Coverage()(["Two dogs ran to catch it.", "dog"], concepts=[["dog", "catch", "run"], "dog, frisbee"])
    [0.6666666666666666, 0.5]
    """

    column: str = "concepts"

    def __post_init__(self) -> None:
        check_column("column", self.column)

    @property
    def __name__(self) -> str:
        return "coverage"

    @property
    def needs(self) -> tuple[str, ...]:
        """The column of concepts."""
        return (self.column,)

    def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's concepts."""
        return [
            _covered(_stems(completion_text(completion)), _concepts(concepts))
            for completion, concepts in zip(completions, columns[self.column], strict=True)
        ]


def _concepts(concepts: str | Sequence[str] | None) -> set[str]:
    texts = re.split(r"[\s,]+", concepts) if isinstance(concepts, str) else concepts or ()
    return set(map(_stems, texts)) - {""}


def _stems(text: str) -> str:
    return " ".join(map(stem, words(text)))


def _covered(stems: str, concepts: set[str]) -> float | None:
    return sum(f" {concept} " in f" {stems} " for concept in concepts) / len(concepts) if concepts else None


@dataclass(frozen=True)
class Slots:
    """Whether the completion says the values of the row's slots and no others, for data-to-text such as E2E.

    Formula: with counts per completion, over the `n` slots that the row gives:
        omitted:  slots given of which no value is found, and no other known value of the slot either;
        wrong:    slots given of which another known value is found in place of the row's;
        added:    every other known value that is found though no slot of the row has it;
        accuracy: `max(0, 1 - (omitted + wrong + added) / n)`; the others are penalties, `-count / n`.

    Range: accuracy [0, 1], omitted and wrong [-1, 0], added at most 0. None for a row whose slots have no value that
    can be found.

    Use: when the facts that a text must say are there as slots and their wording varies little.

    How it is gamed: by naming the values in a list, or next to a denial that `phrases` does not know.

    Pair it with: rouge or cider for the sentence, echo against the list.

    Arguments:
        measure: `accuracy`, `omitted`, `wrong` or `added`.
        column: the column of slots: per row a mapping from slot to its value, or to a list of values of which one has
            to be said; or such a mapping as a text, `name[The Eagle], area[riverside]`. None is a slot not given.
        phrases: slot -> value -> the phrases that say it, in place of the value's own text.
        values: slot -> the values it is known to take; in a run, slots not named here take those of the training rows.

    A value is found if its words, or those of one of its phrases, stand next to one another in the completion, case
    and punctuation aside. Each word of the completion counts for one phrase, and longer phrases go first: with "not
    kid friendly" among the phrases of no, these words do not say "kid friendly". A phrase that several values share
    says whichever of them the row gives. The values yes and no are looked for by their phrases only; without any, the
    slot is left out. All this is matching and no understanding: a wording that is not listed is an omission, so
    measure your references before you train, and a value that is an everyday word ("high") needs phrases that say
    what it is about ("high price"). Scripts that put no space between words cannot be matched.

    >>> slots = Slots(phrases={"family": {"yes": ["kid friendly"], "no": ["not kid friendly"]}},
    ...               values={"food": ["Thai", "Italian"]})
    >>> slots(["Kid-friendly Italian food.", "It is not kid friendly."], slots=[{"food": "Thai", "family": "yes"}] * 2)
    [0.5, 0.0]
    """

    measure: str = "accuracy"
    column: str = "slots"
    phrases: Mapping[str, Mapping[Any, str | Sequence[str]]] | None = None
    values: Mapping[str, Sequence] | None = None

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, ("accuracy", "omitted", "wrong", "added"))
        check_column("column", self.column)
        values, phrases = self.values or {}, self.phrases or {}
        if not isinstance(values, Mapping) or not all(isinstance(listed, list | tuple) for listed in values.values()):
            raise InputError(f"values must map each slot to a list of values, not {values!r:.80}.")
        if not isinstance(phrases, Mapping) or not all(isinstance(listed, Mapping) for listed in phrases.values()):
            raise InputError(f"phrases must map each slot to its values, and these to phrases, not {phrases!r:.80}.")
        for slot, by_value in phrases.items():
            for value, listed in by_value.items():
                texts = _listed(listed)
                if not texts or not all(isinstance(text, str) and words(text) for text in texts):
                    raise InputError(f"The phrases of {slot}: {value} must be texts with words, not {listed!r:.80}.")

    @property
    def __name__(self) -> str:
        return "slots" if self.measure == "accuracy" else f"slots/{self.measure}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The column of slots."""
        return (self.column,)

    def for_task(self, task: Task) -> "Slots":
        """Return this reward with the values that the slots take in the training rows."""
        known: dict[str, dict] = {}
        for row in task.columns.get(self.column, ()):
            for slot, values in _slots(row).items():
                known.setdefault(slot, {}).update(dict.fromkeys(values))
        return replace(self, values={**{slot: tuple(values) for slot, values in known.items()}, **(self.values or {})})

    def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's slots."""
        lexicon = _Lexicon(self.phrases or {}, self.values or {})
        return [
            self._score(words(completion_text(completion)), lexicon, _slots(row))
            for completion, row in zip(completions, columns[self.column], strict=True)
        ]

    def _score(self, tokens: list[str], lexicon: "_Lexicon", row: dict[str, list[str]]) -> float | None:
        given = {(slot, value) for slot, values in row.items() for value in values if lexicon.phrases(slot, value)}
        if not given:
            return None
        missing = {slot for slot, _ in given}
        slots = len(missing)
        found = lexicon.find(tokens, row)
        missing.difference_update(slot for values in found for slot, value in values if (slot, value) in given)
        wrong = added = 0
        for values in found:
            if given.isdisjoint(values):
                replaced = next((slot for slot, _ in values if slot in missing), None)
                missing.discard(replaced)
                wrong, added = wrong + (replaced is not None), added + (replaced is None)
        counts = {"omitted": len(missing), "wrong": wrong, "added": added}
        if self.measure == "accuracy":
            return max(0.0, 1 - sum(counts.values()) / slots)
        return -counts[self.measure] / slots


class _Lexicon:
    """What says which value of which slot."""

    def __init__(self, phrases: Mapping[str, Mapping], values: Mapping[str, Iterable]) -> None:
        self.listed = {
            (slot, _text(value)): tuple(dict.fromkeys(map(_words, _listed(texts))))
            for slot, by_value in phrases.items()
            for value, texts in by_value.items()
        }
        self.known = dict.fromkeys(self.listed)
        self.known.update(dict.fromkeys((slot, _text(value)) for slot, texts in values.items() for value in texts))
        self.said_by = self._index(self.known)

    def phrases(self, slot: str, value: str) -> tuple[tuple[str, ...], ...]:
        """Return the phrases that say a value, as words."""
        if (slot, value) in self.listed:
            return self.listed[slot, value]
        own = () if value in _NO_TEXT else _words(value)
        return (own,) if own else ()

    def find(self, tokens: list[str], row: dict[str, list[str]]) -> list[tuple[tuple[str, str], ...]]:
        """Return what the text says: for each different thing, the values of slots it may be."""
        own = [(slot, value) for slot, values in row.items() for value in values]
        known = self.known.keys() >= set(own)
        said_by = self.said_by if known else self._index(dict.fromkeys([*self.known, *own]))
        return list(dict.fromkeys(tuple(said_by[phrase]) for phrase in _longest_first(tokens, said_by)))

    def _index(self, values: Iterable[tuple[str, str]]) -> dict[tuple[str, ...], list[tuple[str, str]]]:
        said_by: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for slot, value in values:
            for phrase in self.phrases(slot, value):
                said_by.setdefault(phrase, []).append((slot, value))
        return said_by


def _longest_first(tokens: list[str], phrases: Mapping[tuple[str, ...], Any]) -> Iterator[tuple[str, ...]]:
    """Yield the phrases in the text, the longest first; no word of the text belongs to two of them."""
    free = set(range(len(tokens)))
    for length in sorted(set(map(len, phrases)), reverse=True):
        for start in range(len(tokens) - length + 1):
            place = range(start, start + length)
            if free.issuperset(place) and (phrase := tuple(tokens[start : start + length])) in phrases:
                free.difference_update(place)
                yield phrase


def _slots(row: Mapping[str, Any] | str | None) -> dict[str, list[str]]:
    """Return the values of each slot that a row gives."""
    given: dict[str, list[str]] = {}
    pairs = _SLOT.findall(row) if isinstance(row, str) else (row or {}).items()
    for slot, values in pairs:
        if texts := [text for value in _listed(values) if (text := _text(value))]:
            given.setdefault(slot.strip(), []).extend(texts)
    return given


def _listed(values: Any) -> list:
    """Return one value or several as a list."""
    return [value for value in (values if isinstance(values, list | tuple) else [values]) if value is not None]


def _text(value: Any) -> str:
    """Return a value without case; true and false, also what YAML makes of an unquoted yes and no, as yes and no."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value).strip().casefold()


@functools.lru_cache(maxsize=1 << 16)
def _words(text: str) -> tuple[str, ...]:
    return tuple(words(text))
