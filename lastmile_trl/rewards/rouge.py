"""ROUGE, bit for bit the values of Google's rouge_score, at the speed a training step needs.

A step scores hundreds of completions against a few references. So tokens come from two C-level string operations,
stems from a memo, whatever depends on the reference alone is computed once per group, and the longest common
subsequence (LCS) is bit-parallel: one Python integer holds a row of the table, one bit per reference token.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lastmile_trl.rewards.base import check_choice, check_flag, completion_text, reference_texts
from lastmile_trl.rewards.tokens import ngrams, rouge_clean, stem

VARIANTS = (*(f"rouge{n}" for n in range(1, 10)), "rougeL", "rougeLsum")


@dataclass(frozen=True)
class Rouge:
    """Overlap with the reference in n-grams or in longest common subsequence, as Google's rouge_score counts it.

    Formula: `P = hits / size of the completion`, `R = hits / size of the reference`, `F = 2PR / (P + R)`.
    For `rouge1` ... `rouge9` sizes are counted in n-grams, and hits are the n-grams both share, each as often as the
    text that has it less often. For `rougeL` sizes are counted in tokens, and hits are the length of their longest
    common subsequence. `rougeLsum` does the same line by line: hits are the reference tokens that lie in the common
    subsequence with any line of the completion.

    Range: [0, 1]. None where no reference holds a token; tokens are runs of a-z and 0-9, so a text in another script
    has none.

    How a policy games it: `recall` grows with length, without end; `precision` and the n-gram variants reward copying
    the source; `rouge1` rewards the right words in any order. A wrong digit or name costs one token.

    Arguments:
        variant: `rouge1` ... `rouge9`, `rougeL`, `rougeLsum`.
        measure: `f`, `precision` or `recall`.
        stem: compare word stems (Porter) rather than words.
        aggregate: `max` or `mean` of the measure over several references.

    >>> rouge = Rouge("rougeL")
    >>> rouge(["the cats sat", "a dog"], references=["the cat sat", ["the cat sat", "one dog"]])
    [1.0, 0.5]
    """

    variant: str = "rougeL"
    measure: str = "f"
    stem: bool = True
    aggregate: str = "max"

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, VARIANTS)
        check_choice("measure", self.measure, ("f", "precision", "recall"))
        check_choice("aggregate", self.aggregate, ("max", "mean"))
        check_flag("stem", self.stem)

    @property
    def __name__(self) -> str:
        return f"rouge/{self.variant}" + ("" if self.measure == "f" else f"-{self.measure}")

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        # The rows of a group share their references and lie together, so a small cache prepares each of them once.
        prepare = functools.lru_cache(maxsize=64)(self._prepare)
        return [
            self._score(completion_text(completion), [prepare(text) for text in reference_texts(texts)])
            for completion, texts in zip(completions, references, strict=True)
        ]

    def _score(self, text: str, targets: "list[_Target | None]") -> float | None:
        tokens = self._tokens(text)
        values = [self._value(target, tokens) for target in targets if target]
        if not values:
            return None
        return max(values) if self.aggregate == "max" else sum(values) / len(values)

    def _value(self, target: "_Target", tokens: list) -> float:
        hits, size = target.compare(tokens)
        precision, recall = hits / max(size, 1), hits / max(target.size, 1)
        if self.measure == "precision":
            return precision
        if self.measure == "recall":
            return recall
        return 2 * precision * recall / (precision + recall) if hits else 0.0

    def _prepare(self, reference: str) -> "_Target | None":
        tokens = self._tokens(reference)
        if not tokens:
            return None
        if self.variant == "rougeL":
            return _Subsequence(tokens)
        if self.variant == "rougeLsum":
            return _LineSubsequences(tokens)
        return _NGrams(tokens, int(self.variant.removeprefix("rouge")))

    def _tokens(self, text: str) -> list[str] | list[list[str]]:
        """Return the tokens of the text; for rougeLsum, of each line that has any."""
        clean = rouge_clean(text)
        if self.variant != "rougeLsum":
            return self._stems(clean.split())
        return [self._stems(tokens) for line in clean.split("\n") if (tokens := line.split())]

    def _stems(self, tokens: list[str]) -> list[str]:
        return list(map(stem, tokens)) if self.stem else tokens


class _NGrams:
    """A reference as its n-grams."""

    def __init__(self, tokens: list[str], n: int) -> None:
        self.n = n
        self.counts = Counter(ngrams(tokens, n))
        self.size = len(tokens) - n + 1

    def compare(self, tokens: list[str]) -> tuple[int, int]:
        """Return the number of shared n-grams and the number of n-grams of the completion."""
        shared = Counter(filter(self.counts.__contains__, ngrams(tokens, self.n)))
        hits = sum(map(min, shared.values(), map(self.counts.__getitem__, shared)))
        return hits, len(tokens) - self.n + 1


class _Subsequence:
    """A reference as one sequence: for each token, the positions where it stands, as bits of an integer."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.size = len(tokens)
        self.full = (1 << self.size) - 1
        self.positions: dict[str, int] = {}
        for position, token in enumerate(tokens):
            self.positions[token] = self.positions.get(token, 0) | 1 << position

    def compare(self, tokens: list[str]) -> tuple[int, int]:
        """Return the length of the longest common subsequence and that of the completion."""
        # A zero bit of `flat` marks a reference position where the LCS table's current row grows by one
        # (Crochemore et al. 2001; Hyyrö 2004): the addition's carry moves it, as the table's recurrence would.
        flat = self.full
        for matches in filter(None, map(self.positions.get, tokens)):
            met = flat & matches
            flat = ((flat + met) | (flat ^ met)) & self.full
        return self.size - flat.bit_count(), len(tokens)

    def common(self, tokens: list[str]) -> int:
        """Return, as bits, the positions of the one LCS that rouge_score's walk back through the table finds."""
        flat = self.full
        rows = []
        for token in tokens:
            matches = self.positions.get(token, 0)
            met = flat & matches
            flat = ((flat + met) | (flat ^ met)) & self.full
            rows.append((matches, matches | (self.full ^ flat)))
        # In a row, the walk goes down the reference until a match, which it takes, or a place where the table grows,
        # where it stays; both end the row.
        found, below = 0, self.full
        for matches, stops in reversed(rows):
            stop = 1 << (stops & below).bit_length() >> 1
            if not stop:
                break
            below = stop - 1
            if stop & matches:
                found |= stop
            else:
                below |= stop
        return found


class _LineSubsequences:
    """A reference as one sequence per line, for rougeLsum."""

    def __init__(self, lines: list[list[str]]) -> None:
        self.lines = [_Subsequence(line) for line in lines]
        self.size = sum(line.size for line in self.lines)

    def compare(self, lines: list[list[str]]) -> tuple[int, int]:
        """Return the number of reference tokens common with any line, and the number of tokens of the completion."""
        if len(self.lines) == len(lines) == 1:
            return self.lines[0].compare(lines[0])
        distinct = set(map(tuple, lines))
        found = Counter()
        for target in self.lines:
            shared = [line for line in distinct if not target.positions.keys().isdisjoint(line)]
            union = functools.reduce(int.__or__, map(target.common, shared), 0)
            found.update(token for position, token in enumerate(target.tokens) if union >> position & 1)
        # A token counts at most as often as the completion has it.
        available = Counter(token for line in lines for token in line)
        return sum(min(count, available[token]) for token, count in found.items()), available.total()


_Target = _NGrams | _Subsequence | _LineSubsequences
