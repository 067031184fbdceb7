"""ROUGE, bit for bit the values of Google's rouge_score, at the speed a training step needs.

A step scores hundreds of completions against a few references. So tokens come from two C-level string operations,
stems from a memo, whatever depends on the reference alone is computed once per group, and the longest common
subsequence (LCS) is bit-parallel: one Python integer holds a row of the table, one bit per reference token, for all
lines of the reference at once.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, ClassVar, NamedTuple

from lastmile_trl.rewards.base import check_choice, check_flag, check_number, completion_text, reference_texts
from lastmile_trl.rewards.tokens import load_tokenizer, ngrams, stems

VARIANTS = (*(f"rouge{n}" for n in range(1, 10)), "rougeL", "rougeLsum")


@dataclass(frozen=True)
class Rouge:
    """Overlap with the reference in n-grams or in longest common subsequence, as Google's rouge_score counts it.

    Formula: `P = hits / size of the completion`, `R = hits / size of the reference`, `F = 2PR / (P + R)`.
    For `rouge1` ... `rouge9` sizes are counted in n-grams, and hits are the n-grams both share, each as often as the
    text that has it less often. For `rougeL` sizes are counted in tokens, and hits are the length of their longest
    common subsequence. `rougeLsum` does the same line by line: hits are the reference tokens that lie in the common
    subsequence with any line of the completion, each token as often as the completion has it.

    Range: [0, 1]. None where no reference holds a token. With the tokenizer `rouge` tokens are runs of a-z and 0-9, so
    a reference in Cyrillic, Chinese or Arabic has none; `words` or `characters` give it a score.

    Use: when the reference is one good way to say it: summaries, translations, descriptions.

    How it is gamed: `recall` grows with length, without end; `precision` and the n-gram variants reward copying the
    source; `rouge1` rewards the right words in any order. A wrong digit or name costs one token.

    Pair it with: length and repetition; copying where the source holds much of the reference.

    Arguments:
        variant: `rouge1` ... `rouge9`, `rougeL`, `rougeLsum`.
        measure: `f`, `precision` or `recall`.
        stem: compare word stems (Porter's, for English) rather than words.
        aggregate: `max` or `mean` of the measure over several references.
        tokenizer: `rouge` (the tokens of rouge_score), `words` (of any script), `characters` (for scripts that put no
            space between words), or a function of your own as `package.module:function`.

    >>> rouge = Rouge("rougeL")
    >>> rouge(["the cats sat", "a dog"], references=["the cat sat", ["the cat sat", "one dog"]])
    [1.0, 0.5]
    """

    variant: str = "rougeL"
    measure: str = "f"
    stem: bool = True
    aggregate: str = "max"
    tokenizer: str = "rouge"

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("measure", self.measure, ("f", "precision", "recall"))
        check_choice("aggregate", self.aggregate, ("max", "mean"))
        check_flag("stem", self.stem)
        load_tokenizer(self.tokenizer)

    @property
    def __name__(self) -> str:
        return f"rouge/{self.variant}" + ("" if self.measure == "f" else f"-{self.measure}")

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        return [
            _aggregate(self.aggregate, [getattr(overlap, self.measure) for overlap in overlaps])
            for overlaps in self.overlaps(completions, references)
        ]

    def overlaps(self, completions: Sequence, references: Sequence) -> Iterator[list["Overlap"]]:
        """Yield each completion's overlap with every one of its references that holds a token."""
        # The rows of a group share their references and lie together, so a small cache prepares each of them once.
        prepare = functools.lru_cache(maxsize=64)(self._prepare)
        for completion, texts in zip(completions, references, strict=True):
            lines = self._lines(completion_text(completion))
            yield [target.overlap(lines) for text in reference_texts(texts) if (target := prepare(text))]

    def _prepare(self, reference: str) -> "_NGrams | _Subsequences | None":
        lines = self._lines(reference)
        if not lines:
            return None
        n = self.variant.removeprefix("rouge")
        return _NGrams(lines, int(n)) if n.isdigit() else _Subsequences(lines)

    def _lines(self, text: str) -> list[list[str]]:
        """Return the tokens of each line that has any; but for rougeLsum, the whole text is one line."""
        tokenize = load_tokenizer(self.tokenizer)
        lines = map(tokenize, text.split("\n") if self.variant == "rougeLsum" else [text])
        return [stems(tokens) if self.stem else tokens for tokens in lines if tokens]


@dataclass(frozen=True)
class CombinedRouge:
    """The mean of ROUGE-1, ROUGE-2 and ROUGE-L: words, phrases and order in one number.

    Formula: `(rouge1 + rouge2 + rougeL) / 3`, each as the reward `rouge` gives it; of several references each of the
    three may choose another.

    Range: [0, 1]. None where no reference holds a token.

    Use: when one of the three alone is too noisy or too easily had; ROUGE-2 gives the signal that ROUGE-1 lacks.

    How it is gamed: as `rouge` is: by the length that suits F best, and by copying the source.

    Pair it with: length and repetition.

    Arguments:
        measure: `f`, `precision` or `recall`.
        stem: compare word stems (Porter's, for English) rather than words.
        aggregate: `max` or `mean` of the measure over several references.
        tokenizer: as for `rouge`: `rouge`, `words`, `characters` or `package.module:function`.

    >>> CombinedRouge()(["the cat was on the mat"], references=["the cat sat on the mat"])  # of 5/6, 3/5 and 5/6
    [0.7555555555555555]
    """

    measure: str = "f"
    stem: bool = True
    aggregate: str = "max"
    tokenizer: str = "rouge"

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        self._parts()

    @property
    def __name__(self) -> str:
        return "combined_rouge" + ("" if self.measure == "f" else f"/{self.measure}")

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        parts = [part(completions, references) for part in self._parts()]
        return [None if None in values else sum(values) / len(values) for values in zip(*parts, strict=True)]

    def _parts(self) -> list[Rouge]:
        """Return the three rewards, whose construction checks the arguments."""
        arguments = (self.measure, self.stem, self.aggregate, self.tokenizer)
        return [Rouge(variant, *arguments) for variant in ("rouge1", "rouge2", "rougeL")]


@dataclass(frozen=True)
class LengthAdjustedRouge:
    """ROUGE that only a completion of about the reference's length gets in full. The definition is our own.

    Formula: `F * min(1, (1 + tolerance) * min(rho, 1 / rho)) ^ power`, with F of `rouge` and
    `rho = tokens of the completion / tokens of the reference`, tokens being those of the tokenizer. So the factor is 1
    from `1 / (1 + tolerance)` to `1 + tolerance` and falls from there without a step, alike for a text k times too
    long and one k times too short.

    Range: [0, 1], never above F. None where no reference holds a token.

    Use: instead of `rouge` when completions drift in length and a second reward is not wanted.

    How it is gamed: by any text of the right length that shares frequent words; a good text of another length loses.

    Pair it with: repetition, as a loop can fill the length; not with length, which it holds already.

    Arguments:
        variant: `rouge1` ... `rouge9`, `rougeL`, `rougeLsum`.
        stem: compare word stems (Porter's, for English) rather than words.
        tolerance: how far the length may be off, as a share, at no cost.
        power: how steeply the factor falls; 0 makes it `rouge`.
        aggregate: `max` or `mean` of the adjusted values over several references.
        tokenizer: as for `rouge`: `rouge`, `words`, `characters` or `package.module:function`.

    >>> twice = "the cat sat on the mat"
    >>> LengthAdjustedRouge(tolerance=0)([twice], references=["the cat sat"])  # F is 2/3, the factor 1/2
    [0.3333333333333333]
    """

    variant: str = "rougeL"
    stem: bool = True
    tolerance: float = 0.1
    power: float = 1.0
    aggregate: str = "max"
    tokenizer: str = "rouge"

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        self._rouge()
        check_number("tolerance", self.tolerance, least=0)
        check_number("power", self.power, least=0)

    @property
    def __name__(self) -> str:
        return f"length_adjusted_rouge/{self.variant}"

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        return [
            _aggregate(self.aggregate, [overlap.f * self._factor(overlap) for overlap in overlaps])
            for overlaps in self._rouge().overlaps(completions, references)
        ]

    def _factor(self, overlap: "Overlap") -> float:
        shorter, longer = sorted((overlap.length, overlap.target_length))
        return min(1.0, (1 + self.tolerance) * shorter / longer) ** self.power

    def _rouge(self) -> Rouge:
        """Return the reward to adjust, whose construction checks the arguments they share."""
        return Rouge(self.variant, "f", self.stem, self.aggregate, self.tokenizer)


def _aggregate(aggregate: str, values: list[float]) -> float | None:
    """Return the maximum or the mean over the references, or None where there is none."""
    if not values:
        return None
    return max(values) if aggregate == "max" else sum(values) / len(values)


class Overlap(NamedTuple):
    """What a completion shares with one reference. Lengths are in tokens; hits are n-grams, or tokens where n is 1."""

    hits: int
    length: int
    target_length: int
    n: int = 1

    @property
    def precision(self) -> float:
        """The share of the completion that is in the reference."""
        return self.hits / max(self.length - self.n + 1, 1)

    @property
    def recall(self) -> float:
        """The share of the reference that is in the completion."""
        return self.hits / max(self.target_length - self.n + 1, 1)

    @property
    def f(self) -> float:
        """The harmonic mean of both, in rouge_score's order of operations."""
        precision, recall = self.precision, self.recall
        return 2 * precision * recall / (precision + recall) if self.hits else 0.0


class _NGrams:
    """A reference as its n-grams."""

    def __init__(self, lines: list[list[str]], n: int) -> None:
        self.n = n
        self.length = _length(lines)
        self.counts = Counter(self._ngrams(lines))

    def overlap(self, lines: list[list[str]]) -> Overlap:
        """Count the n-grams that the completion shares, each as often as the text that has it less often."""
        shared = Counter(filter(self.counts.__contains__, self._ngrams(lines)))
        hits = sum(map(min, shared.values(), map(self.counts.__getitem__, shared)))
        return Overlap(hits, _length(lines), self.length, self.n)

    def _ngrams(self, lines: list[list[str]]) -> Iterable:
        return chain.from_iterable(ngrams(line, self.n) for line in lines)


class _Subsequences:
    """A reference as the bits of an integer, which hold a row of the LCS table of each line, side by side.

    The bits of a line are its field. Above each field one bit stays 0: there the carry of a line's addition ends.
    """

    def __init__(self, lines: list[list[str]]) -> None:
        self.length = _length(lines)
        self.lines = len(lines)
        self.fields = 0
        self.positions: dict[str, int] = {}  # of each token, in all lines
        start = 0
        for line in lines:
            for position, token in enumerate(line, start):
                self.positions[token] = self.positions.get(token, 0) | 1 << position
            self.fields |= ((1 << len(line)) - 1) << start
            start += len(line) + 1
        self.repeated = {token: bits for token, bits in self.positions.items() if bits.bit_count() > 1}
        # For each shift by 1, 2, 4 ... the bits that come from the same field.
        self.shifts = []
        inside = self.fields & (self.fields >> 1)
        while inside:
            shift = 1 << len(self.shifts)
            self.shifts.append((shift, inside))
            inside &= inside >> shift

    def overlap(self, lines: list[list[str]]) -> Overlap:
        """Count the reference tokens that lie in the LCS of their line with any line of the completion."""
        length = _length(lines)
        if self.lines == len(lines) == 1:
            return Overlap(self._lcs_length(lines[0]), length, self.length)
        union = functools.reduce(int.__or__, map(self._lcs, set(map(tuple, lines))), 0)
        # A token counts at most as often as the completion has it.
        available = Counter(chain.from_iterable(lines))
        excess = sum(max(0, (union & bits).bit_count() - available[token]) for token, bits in self.repeated.items())
        return Overlap(union.bit_count() - excess, length, self.length)

    def _lcs_length(self, tokens: Sequence[str]) -> int:
        # A zero bit of `flat` marks a reference position where the LCS table's current row grows by one
        # (Crochemore et al. 2001; Hyyrö 2004): the addition's carry moves it, as the table's recurrence would.
        flat = self.fields
        for matches in filter(None, map(self.positions.get, tokens)):
            met = flat & matches
            flat = ((flat + met) | (flat ^ met)) & self.fields
        return (self.fields ^ flat).bit_count()

    def _lcs(self, tokens: Sequence[str]) -> int:
        """Return, as bits, the one LCS with each line that rouge_score's walk back through the table finds."""
        flat = self.fields
        rows = []
        before = 0
        for matches in map(self.positions.get, tokens, repeat(0)):
            if matches or before:  # of several rows without a match, the walk passes all but one without a move
                met = flat & matches
                flat = ((flat + met) | (flat ^ met)) & self.fields
                rows.append((matches, matches | (self.fields ^ flat)))
            before = matches
        # In a row, the walk goes down the reference until a match, which it takes, or a place where the table grows,
        # where it stays; both end the row. So it stops at the highest such bit among those of a field still ahead.
        taken, ahead = 0, self.fields
        for matches, stops in reversed(rows):
            reached = stops & ahead
            for shift, inside in self.shifts:
                reached |= (reached >> shift) & inside  # in the end, every bit from the highest stop of a field down
            match = matches & reached & ~(reached >> 1)
            taken |= match
            ahead = reached ^ match
        return taken


def _length(lines: list[list[str]]) -> int:
    return sum(map(len, lines))
