"""BLEU and chrF of single texts, with sacrebleu's values."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import (
    check_choice,
    check_flag,
    check_number,
    check_whole,
    completion_text,
    reference_texts,
    require,
)

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


class _Sacrebleu:
    """What both metrics share: a metric of sacrebleu that holds the references of a row."""

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        # The rows of a group share their references and lie together, so a small cache prepares each set once.
        prepare = functools.lru_cache(maxsize=64)(self._metric)
        try:
            return [
                self._score(completion_text(completion), prepare(tuple(filter(str.strip, reference_texts(texts)))))
                for completion, texts in zip(completions, references, strict=True)
            ]
        finally:
            _clear_tokenizers()

    def _score(self, text: str, metric: "Metric | None") -> float | None:
        if metric is None:
            return None
        if not text.strip():  # chrF with `whitespace` would see hits in it
            return 0.0
        # A corpus of one text, as only this method uses references that are prepared. Rounding can exceed 100.
        return min(1.0, metric.corpus_score([text], None).score / 100)

    def _metric(self, references: tuple[str, ...]) -> "Metric | None":
        return self._build([[text] for text in references]) if references else None


@dataclass(frozen=True)
class Bleu(_Sacrebleu):
    """How many of the completion's n-grams are in the references, as sacrebleu's sentence-level BLEU counts it.

    Formula: `BP * exp(mean of log p_n for n = 1 ... max_order)`, where `p_n` is the share of the completion's n-grams
    that are in a reference (each counted as often as the reference with most of it has it), and `BP = min(1, exp(1 -
    r / c))` for a completion of `c` tokens and the reference length `r` nearest to it. A text with no n-gram of some
    length would get 0 whatever else it shares, so single texts need smoothing. A `p_n` without a hit becomes
    `1 / (2 * n-grams)` with `exp`, halved again for each further one, and `smoothing_value / n-grams` with `floor`;
    `add-k` adds `smoothing_value` to hits and to n-grams, for n of 2 and more.

    Range: [0, 1]; 0 for a completion that shares no token with any reference, smoothed or not, and for an empty one.
    Smoothing lifts everything else: five tokens with one hit, and five in the reference, get 0 without smoothing,
    little with `floor`, more with `exp` and most with `add-k`. None where no reference holds a character.

    Use: for translation and for other tasks where wording and word order are to be the reference's.

    How it is gamed: BLEU is precision; only the brevity penalty asks for completeness, and it asks for length, not
    for content. Frequent phrases and openings that most references share pay. A wrong digit or name costs a few
    n-grams. With `effective_order` a completion of one right token has full precision, and only its length is held
    against it.

    Pair it with: `repetition`, `numbers` or `entities`. Several references per row make it fairer.

    Arguments:
        max_order: the length of the longest n-grams.
        smoothing: `exp`, `floor`, `add-k` or `none`.
        smoothing_value: for `floor` (`0.1` if not given) and `add-k` (`1` if not given).
        effective_order: leave out the orders that the completion is too short for, so that the reference itself gets
            1 however short it is. `add-k` leaves out none.
        tokenizer: sacrebleu's `13a`, `intl`, `zh`, `char` (for scripts without spaces) or `none` (split at spaces).
        lowercase: compare without case.

    >>> bleu = Bleu()
    >>> values = bleu(["a dog runs in a park", "a cat"], references=["a dog runs in the park"] * 2)
    >>> [round(value, 4) for value in values]
    [0.5373, 0.0677]
    """

    max_order: int = 4
    smoothing: str = "exp"
    smoothing_value: float | None = None
    effective_order: bool = True
    tokenizer: str = "13a"
    lowercase: bool = False

    def __post_init__(self) -> None:
        require("sacrebleu")
        check_whole("max_order", self.max_order)
        check_choice("smoothing", self.smoothing, ("exp", "floor", "add-k", "none"))
        check_choice("tokenizer", self.tokenizer, ("13a", "intl", "zh", "char", "none"))
        check_flag("effective_order", self.effective_order)
        check_flag("lowercase", self.lowercase)
        if self.smoothing_value is not None:
            check_number("smoothing_value", self.smoothing_value, least=0, exclusive=True)
            if self.smoothing not in ("floor", "add-k"):
                raise InputError(f"smoothing_value is for smoothing floor and add-k, not {self.smoothing}.")

    @property
    def __name__(self) -> str:
        return "bleu" if self.max_order == 4 else f"bleu/{self.max_order}"

    def _build(self, references: list[list[str]]) -> "Metric":
        from sacrebleu.metrics import BLEU

        return BLEU(
            lowercase=self.lowercase,
            tokenize=self.tokenizer,
            smooth_method=self.smoothing,
            smooth_value=self.smoothing_value,
            max_ngram_order=self.max_order,
            effective_order=self.effective_order,
            references=references,
        )


@dataclass(frozen=True)
class Chrf(_Sacrebleu):
    """How many character n-grams the completion shares with a reference, as sacrebleu's sentence-level chrF counts it.

    Formula: `(1 + beta^2) P R / (beta^2 P + R)`, where P and R are the means, over n = 1 ... `char_order`, of the
    share of the completion's character n-grams that are in the reference and of the reference's that are in the
    completion. Orders that one of the two is too short for are left out. Of several references the one with the
    highest value counts.

    Range: [0, 1]; 0 for an empty completion. None where no reference holds a character.

    Use: for languages with many word forms, for scripts without spaces, and where a near miss in a word's ending
    should count as near. It needs no tokenizer.

    How it is gamed: with `beta: 2` recall weighs four times as much as precision, so text that is too long costs
    little. Any two texts of one language share many short n-grams: unrelated ones do not get 0.

    Pair it with: `length`, `repetition`; or set `beta: 1`.

    Arguments:
        char_order: the length of the longest character n-grams.
        word_order: the length of the longest word n-grams that count beside them; 2 makes it chrF++, 0 has none.
        beta: recall weighs `beta` squared times as much as precision.
        lowercase: compare without case.
        whitespace: let n-grams hold the spaces between words.

    >>> chrf = Chrf()
    >>> [round(value, 4) for value in chrf(["the cats sat", "Hunde"], references=["the cat sat", "Hund"])]
    [0.7478, 0.9137]
    """

    char_order: int = 6
    word_order: int = 0
    beta: float = 2
    lowercase: bool = False
    whitespace: bool = False

    def __post_init__(self) -> None:
        require("sacrebleu")
        check_whole("char_order", self.char_order)
        check_whole("word_order", self.word_order, least=0)
        check_number("beta", self.beta, least=0)
        check_flag("lowercase", self.lowercase)
        check_flag("whitespace", self.whitespace)

    @property
    def __name__(self) -> str:
        return "chrf" + "+" * self.word_order

    def _build(self, references: list[list[str]]) -> "Metric":
        from sacrebleu.metrics import CHRF

        return CHRF(
            char_order=self.char_order,
            word_order=self.word_order,
            beta=self.beta,
            lowercase=self.lowercase,
            whitespace=self.whitespace,
            references=references,
        )


def _clear_tokenizers() -> None:
    """Empty the memos of sacrebleu's tokenizers, which would come to hold 65536 texts each: almost a gigabyte."""
    from sacrebleu.tokenizers.tokenizer_base import BaseTokenizer

    for tokenizer in BaseTokenizer.__subclasses__():
        if hasattr(tokenizer.__call__, "cache_clear"):
            tokenizer.__call__.cache_clear()
