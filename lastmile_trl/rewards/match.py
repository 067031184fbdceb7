"""Rewards for short answers: the same answer, or the same words."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lastmile_trl.rewards.base import check_choice, check_flag, completion_text, reference_texts
from lastmile_trl.rewards.tokens import load_tokenizer

_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class ExactMatch:
    """Whether the completion is the reference, as SQuAD compares answers.

    Formula: 1 if the completion equals any of the references, else 0. Both are normalised first: lower case, no
    punctuation, no English article, single spaces.

    Range: 0 or 1. None where no reference has a word besides articles.

    Use: for answers of a few words with one right form: names, labels. For numbers set `normalise: false`.

    How it is gamed: hardly, but `3.5` and `35` are the same without punctuation. And nearly all completions of a hard
    prompt get 0, and then there is nothing to learn from.

    Pair it with: token_f1, which tells a near miss from a miss.

    Arguments:
        normalise: false compares the texts as they are, but for white space at the ends.

    >>> ExactMatch()(["The Eiffel Tower!", "a tower"], references=["Eiffel tower", ["the Eiffel tower", "a town"]])
    [1.0, 0.0]
    """

    normalise: bool = True

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        check_flag("normalise", self.normalise)

    @property
    def __name__(self) -> str:
        return "exact_match"

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        return [
            self._score(completion_text(completion), reference_texts(texts))
            for completion, texts in zip(completions, references, strict=True)
        ]

    def _score(self, text: str, references: list[str]) -> float | None:
        answers = set(filter(None, map(self._form, references)))
        return float(self._form(text) in answers) if answers else None

    def _form(self, text: str) -> str:
        return _normalise(text) if self.normalise else text.strip()


@dataclass(frozen=True)
class TokenF1:
    """Overlap with the reference in single tokens, whatever their order: SQuAD's F1.

    Formula: `P = shared / tokens of the completion`, `R = shared / tokens of the reference`, `F = 2PR / (P + R)`.
    Shared are the tokens both have, each as often as the text that has it less often.

    Range: [0, 1]. None where no reference holds a token.

    Use: for short answers with more than one right form; for longer text take rouge.

    How it is gamed: by the right words in any order; `recall` grows with length, without end; `precision` is best
    served by one safe word.

    Pair it with: exact_match; with `recall`, length or overlong.

    Arguments:
        measure: `f`, `precision` or `recall`.
        tokenizer: `words`, `rouge`, `characters`, or a function of your own as `package.module:function`.
        aggregate: `max` or `mean` of the measure over several references.

    >>> TokenF1()(["in Paris", "Rome"], references=["Paris", ["Lyon", "Rome"]])
    [0.6666666666666666, 1.0]
    """

    measure: str = "f"
    tokenizer: str = "words"
    aggregate: str = "max"

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, ("f", "precision", "recall"))
        check_choice("aggregate", self.aggregate, ("max", "mean"))
        load_tokenizer(self.tokenizer)

    @property
    def __name__(self) -> str:
        return "token_f1" + ("" if self.measure == "f" else f"/{self.measure}")

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        tokenize = load_tokenizer(self.tokenizer)
        return [
            self._score(Counter(tokenize(completion_text(completion))), map(Counter, map(tokenize, texts)))
            for completion, texts in zip(completions, map(reference_texts, references), strict=True)
        ]

    def _score(self, said: Counter, references: Iterable[Counter]) -> float | None:
        values = [self._value((said & reference).total(), said, reference) for reference in references if reference]
        if not values:
            return None
        return max(values) if self.aggregate == "max" else sum(values) / len(values)

    def _value(self, shared: int, said: Counter, reference: Counter) -> float:
        if self.measure == "precision":
            return shared / max(said.total(), 1)
        if self.measure == "recall":
            return shared / reference.total()
        return 2 * shared / (said.total() + reference.total())


class _WithoutPunctuation(dict):
    """For `str.translate`: punctuation of every script goes, and the ASCII symbols that SQuAD counts as such."""

    def __missing__(self, code: int) -> int | None:
        kind = unicodedata.category(chr(code))[0]
        self[code] = None if kind == "P" or (kind == "S" and code < 128) else code
        return self[code]


_without_punctuation = _WithoutPunctuation()


def _normalise(text: str) -> str:
    bare = unicodedata.normalize("NFC", text.casefold()).translate(_without_punctuation)
    return " ".join(word for word in bare.split() if word not in _ARTICLES)
