"""CIDEr-D with the word statistics of the training references."""

import copy
import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import Task, check_number, completion_text, reference_texts
from lastmile_trl.rewards.tokens import Tokenizer, load_tokenizer, ngrams

_ORDERS = range(1, 5)


class _Frequencies(NamedTuple):
    """In how many rows an n-gram occurs, for those that occur in more than one."""

    rows: int
    counts: Mapping[Any, int]


@dataclass(frozen=True)
class Cider:
    """CIDEr-D: the n-grams a completion shares with its references, each weighing more the fewer rows have it.

    The original counts the rows that have an n-gram among the texts it scores, so a value depends on the other rows.
    Here they are counted once, among the training rows: a run does so by itself, and `Cider().fit(references)` does
    it in a notebook.

    Formula: for each n of 1 to 4 a text is the vector of its n-grams, with the weights `count * log(N / df)`, where
    `df` of the `N` training rows have the n-gram in a reference (1 if none has). Completion c and reference r score
    `sum of min(c_g, r_g) * r_g / (|c| |r|)` over their n-grams g, times `exp(-(difference in tokens)^2 / (2
    sigma^2))`. The value is the mean over n and over the references.

    Range: [0, 1], a tenth of the original's. 1 takes the reference itself, as the only one, with four tokens or more:
    an order that a text is too short for counts 0. None where no reference holds a token. With few training rows the
    weights say little: with one, each weight and so each value is 0.

    Use: for captions and other short texts with several references per row, where what is special to a row matters.

    How it is gamed: the rare phrases of a reference pay most, so they get much of the value whatever stands between
    them; frequent words, negations among them, can be wrong or missing at little cost. Right words in any order get a
    quarter at most. The length is held to the references', the sense is not.

    Pair it with: `coverage`, `ending`, and a start that writes fluently.

    Arguments:
        sigma: the difference in tokens at which a value has fallen to `exp(-1/2)` of itself.
        tokenizer: `words`, `characters`, `rouge`, or a function of yours as `package.module:function`.

    >>> cider = Cider().fit(["a dog runs in the park", "the cat sat on the mat", "the man reads the book"])
    >>> values = cider(["a dog runs in a park", "the cat sat"], references=["a dog runs in the park"] * 2)
    >>> [round(value, 4) for value in values]
    [0.556, 0.0]
    """

    sigma: float = 6.0
    tokenizer: str = "words"
    _frequencies: _Frequencies | None = field(default=None, init=False, repr=False, compare=False)

    needs: ClassVar[tuple[str, ...]] = ("references",)

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, least=0, exclusive=True)
        load_tokenizer(self.tokenizer)

    @property
    def __name__(self) -> str:
        return "cider"

    def for_task(self, task: Task) -> "Cider":
        """Return a copy that knows the references of the training rows."""
        if "references" not in task.columns:
            raise InputError("Reward 'cider' needs the column 'references' of the training rows.")
        return self.fit(task.columns["references"])

    def fit(self, references: Iterable[str | list[str] | None]) -> "Cider":
        """Return a copy that weighs n-grams by how many of these rows have them; a row is a text, or several."""
        tokenize = load_tokenizer(self.tokenizer)
        rows, counts = 0, Counter()
        for texts in references:
            tokens = [tokenize(text) for text in reference_texts(texts)]
            counts.update({ngram for n in _ORDERS for text in tokens for ngram in ngrams(text, n)})
            rows += any(tokens)
        if not rows:
            raise InputError("Reward 'cider' needs training rows with references, and none of them holds a token.")
        fitted = copy.copy(self)
        # An n-gram of one row weighs as much as one of none, and most n-grams are of one row.
        frequencies = _Frequencies(rows, {ngram: count for ngram, count in counts.items() if count > 1})
        object.__setattr__(fitted, "_frequencies", frequencies)
        return fitted

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        if self._frequencies is None:
            raise ValueError(
                "cider does not know how frequent words are: a run counts them in its training rows, elsewhere use "
                "Cider().fit(references) with the references of all training rows."
            )
        vectors = functools.partial(_vectors, tokenize=load_tokenizer(self.tokenizer), frequencies=self._frequencies)
        # The rows of a group share their references and lie together, so a small cache prepares each of them once.
        prepare = functools.lru_cache(maxsize=64)(vectors)
        return [
            self._score(vectors(completion_text(completion)), [prepare(text) for text in reference_texts(texts)])
            for completion, texts in zip(completions, references, strict=True)
        ]

    def _score(self, completion: "_Vectors", references: "list[_Vectors]") -> float | None:
        values = [self._similarity(completion, reference) for reference in references if reference.length]
        return sum(values) / len(values) if values else None

    def _similarity(self, completion: "_Vectors", reference: "_Vectors") -> float:
        difference = completion.length - reference.length
        cosines = map(_clipped_cosine, completion.orders, reference.orders)
        return sum(cosines) / len(_ORDERS) * math.exp(-(difference**2) / (2 * self.sigma**2))


class _Vectors(NamedTuple):
    """A text as its number of tokens and, for each n, the weights of its n-grams and their sum of squares."""

    length: int
    orders: list[tuple[dict[Any, float], float]]


def _vectors(text: str, *, tokenize: Tokenizer, frequencies: _Frequencies) -> _Vectors:
    tokens = tokenize(text)
    orders = []
    for n in _ORDERS:
        weights = {
            ngram: count * math.log(frequencies.rows / frequencies.counts.get(ngram, 1))
            for ngram, count in Counter(ngrams(tokens, n)).items()
        }
        orders.append((weights, sum(weight * weight for weight in weights.values())))
    return _Vectors(len(tokens), orders)


def _clipped_cosine(completion: tuple[dict[Any, float], float], reference: tuple[dict[Any, float], float]) -> float:
    (weights, squares), (targets, target_squares) = completion, reference
    product = sum(min(weight, targets[ngram]) * targets[ngram] for ngram, weight in weights.items() if ngram in targets)
    return product / math.sqrt(squares * target_squares) if product else 0.0
