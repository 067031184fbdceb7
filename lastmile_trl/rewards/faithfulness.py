"""Rewards for staying with the source: its names and numbers, and neither copying it nor leaving it."""

import functools
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import (
    check_choice,
    check_column,
    check_number,
    check_whole,
    completion_text,
    reference_texts,
    source_texts,
)
from lastmile_trl.rewards.sentences import sentences
from lastmile_trl.rewards.tokens import load_tokenizer, ngrams


@dataclass(frozen=True)
class _Supported(ABC):
    """What Entities and Numbers share: precision against the source, recall against the reference."""

    measure: str = "f"
    source: str | None = None

    def __post_init__(self) -> None:
        check_choice("measure", self.measure, ("f", "precision", "recall"))
        if self.source is not None:
            check_column("source", self.source)

    @property
    def __name__(self) -> str:
        name = type(self).__name__.lower()
        return name if self.measure == "f" else f"{name}/{self.measure}"

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that the measure reads."""
        references = () if self.measure == "precision" else ("references",)
        source = () if self.measure == "recall" or self.source is None else (self.source,)
        return references + source

    def __call__(self, completions: Sequence, references: Sequence | None = None, **columns: Any) -> list[float | None]:
        """Score each completion against its row's source and references."""
        nothing = [None] * len(completions)
        sources = nothing if self.measure == "recall" else source_texts(self.source, columns)
        references = nothing if self.measure == "precision" else references
        # The rows of a group share their source and references and lie together.
        claims, support = functools.lru_cache(maxsize=64)(self._claims), functools.lru_cache(maxsize=64)(self._support)
        values = []
        for completion, source, texts in zip(completions, sources, references, strict=True):
            text = completion_text(completion)
            texts = [reference for reference in reference_texts(texts) if reference.strip()]
            if source is None and self.measure != "recall":
                values.append(None)
                continue
            precision = None if source is None else _share(claims(text), self._of_source(source))
            recalls = (_share(claims(reference), support(text)) for reference in texts)
            recall = max((value for value in recalls if value is not None), default=None)
            values.append(self._value(precision, recall) if texts or self.measure == "precision" else None)
        return values

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def _of_source(cls, source: str) -> frozenset[str]:
        """Return what a source supports, which run after run is held against."""
        return cls._support(source)

    def _value(self, precision: float | None, recall: float | None) -> float | None:
        if self.measure != "f":
            return precision if self.measure == "precision" else recall
        if recall is None:  # nothing to name: right for who names nothing, else a matter of the source
            return 1.0 if precision is None else precision
        if not precision or not recall:
            return 0.0
        return 2 * precision * recall / (precision + recall)

    @staticmethod
    @abstractmethod
    def _claims(text: str) -> frozenset[str]:
        """Return what the text names."""

    @staticmethod
    @abstractmethod
    def _support(text: str) -> frozenset[str]:
        """Return what counts as named when another text names it."""


@dataclass(frozen=True)
class Entities(_Supported):
    """Whether the names in the completion stand in the source, and those of the reference in the completion.

    Names are found without a model: every word that holds a capital letter, unless it is one of a short list of
    English function words ("The", "However", "I"). They are words, not spans: "New York" is two. The other text has
    the name if it has the word, case and a possessive 's aside. So a text in a script without capitals has no names,
    every noun of German is one, and any other word at the start of a sentence is one too, which costs nothing where
    the source has the word.

    Formula: over sets of words:
        precision: `|names of the completion in the source| / |names of the completion|`;
        recall:    `|names of the reference in the completion| / |names of the reference|`, of the best reference;
        f:         `2PR / (P + R)`; 0 for a completion without names where a reference has some. Where no reference
                   has any, 1 for a completion without names, else the precision.

    Range: [0, 1]. precision is None for a completion without names, recall where no reference has any; recall and f
    are None without a reference, all are without a source.

    Use: for summaries of texts full of names: a wrong one is a grave error and costs ROUGE one word.

    How it is gamed: `precision` by capital letters on common words of the source (naming nothing has no precision,
    which counts 0 in training, no better than an invention); `recall` by listing the names. None sees who did what.

    Pair it with: rouge or cider, numbers, length.

    Arguments:
        measure: `f`, `precision` or `recall`.
        source: the column of the source; the prompt if not given.

    >>> Entities("precision")(["Amanda's cake is for Jerry."], prompts=["Hannah: Where is the cake, Amanda?"])
    [0.5]
    """

    @staticmethod
    def _claims(text: str) -> frozenset[str]:
        return frozenset(name for _, _, name in _names(text))

    @staticmethod
    def _support(text: str) -> frozenset[str]:
        return frozenset(map(_name, _WORD.findall(text)))


# A word starts with a letter, and an apostrophe inside belongs to it; accents may be characters of their own.
_WORD = re.compile(r"(?<![^\W_])[^\W\d_](?:[^\W_]|[\u0300-\u036f]|['’](?=[^\W\d_]))*")

# Without "us", "will" and "may", which are names as well.
_LISTED = """
    a about above according across after afterwards again against ago ain't all almost alone along already also
    although always am among an and another any anyone anything are around as aside at away be because been before
    behind being below beside besides between both but by can can't cannot could despite did do does done down due
    during each either else even every everyone everything except few finally first for from further had has have
    having he hence her here hers herself him himself his how however i if in indeed instead into is it its itself
    just last lastly later least less let like many me meanwhile might mine more moreover most much must my myself
    near nearly neither never nevertheless next no nobody none nor not nothing now of off often oh ok okay on once
    one only onto or other others otherwise our ours ourselves out over own per perhaps please rather recently same
    second several shall she should since so some somebody someone something sometimes soon still such than thanks
    that the their theirs them themselves then there therefore these they third this those though through throughout
    thus till to today together tomorrow too toward towards two under unless unlike until up upon very via was we
    well were what whatever when whenever where whereas wherever whether which while who whoever whom whose why with
    within without won't would yes yesterday yet you your yours yourself
"""
_FUNCTION_WORDS = frozenset(_LISTED.split())


def _names(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the names of a text, with the places where each starts and ends."""
    for word in _WORD.finditer(text):
        if word[0] != word[0].lower() and (name := _name(word[0])) not in _FUNCTION_WORDS:
            yield *word.span(), name


@functools.lru_cache(maxsize=1 << 16)
def _name(word: str) -> str:
    """Return a word without case, and without what an apostrophe adds to it: Hannah's, I'm, didn't."""
    word = unicodedata.normalize("NFC", word.casefold()).replace("’", "'")
    return re.sub(r"(?:'(?:s|m|re|ve|ll|d)|(?<!ca|wo|ai)n't)$", "", word)


@dataclass(frozen=True)
class Numbers(_Supported):
    """Whether the numbers in the completion stand in the source, and those of the reference in the completion.

    Numbers are compared by value: `1,200` is `1200`, `3.50` is `3.5`, "three" and 3rd are 3, "twenty-one" is 21, and
    the digits of other scripts are those of ASCII. A time (10:30), a date (12/05/2024, 2024-05-12) and a version
    (`1.2.3`) are one number each. Units, percent and currency signs and a minus are left aside. Not read are "one",
    which is a pronoun too, "hundred" and above, so that "5 million" is 5, and "first", "second". Points and commas are
    read as in English, except that a comma that cannot part thousands is a decimal one.

    Formula: over sets of numbers:
        precision: `|numbers of the completion in the source| / |numbers of the completion|`;
        recall:    `|numbers of the reference in the completion| / |numbers of the reference|`, of the best reference;
        f:         `2PR / (P + R)`; 0 for a completion without numbers where a reference has some. Where no reference
                   has any, 1 for a completion without numbers, else the precision.

    Range: [0, 1]. precision is None for a completion without numbers, recall where no reference has any; recall and f
    are None without a reference, all are without a source.

    Use: where figures must be right: a wrong digit costs ROUGE one word.

    How it is gamed: `precision` by repeating one number of the source (a completion without numbers has no precision,
    which counts 0 in training); `recall` by listing them. None sees what is counted.

    Pair it with: rouge or cider, entities, length.

    Arguments:
        measure: `f`, `precision` or `recall`.
        source: the column of the source; the prompt if not given.

    >>> Numbers("precision")(["Three of 1200 people paid 5%."], prompts=["Of 1,200 people, 3 paid 4.5 percent."])
    [0.6666666666666666]
    """

    @staticmethod
    def _claims(text: str) -> frozenset[str]:
        return frozenset(number for _, _, number in _numbers(text))

    _support = _claims


_SEPARATORS = str.maketrans("٫٬", ".,")  # the Arabic decimal and thousands separators
_FIGURE = re.compile(r"\d{4}-\d\d?-\d\d?(?!\d)|\d+(?:[.,:/]\d+)*")
_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TWO_WORDS = rf"({'|'.join(_TENS)})(?:[-–\s]+({'|'.join(_SMALL[1:10])}))?"
_SPELLED = re.compile(rf"\b(?:{_TWO_WORDS}|({'|'.join(word for word in _SMALL if word != 'one')}))\b")


def _numbers(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers of a text, with the places where each starts and ends."""
    folded = text.casefold().translate(_SEPARATORS)
    places = range(len(text))  # of the folded characters, of which a character may become several
    if len(folded) != len(text):
        places = [place for place, char in enumerate(text) for _ in char.casefold()]
    for pattern, read in ((_FIGURE, _figure), (_SPELLED, _spelled)):
        for found in pattern.finditer(folded):
            yield places[found.start()], places[found.end() - 1] + 1, read(*found.groups("") or [found[0]])


@functools.lru_cache(maxsize=1 << 16)
def _figure(number: str) -> str:
    """Return the one way to write a number that has several.

    >>> _figure("1,200.50"), _figure("09:30"), _figure("٣")
    ('1200.5', '9:30', '3')
    """
    digits = "".join(str(int(char)) if char.isdecimal() else char for char in number)
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", digits):
        digits = digits.replace(",", "")
    parts = re.split(r"([.,:/-])", digits)
    parts[::2] = [part.lstrip("0") or "0" for part in parts[::2]]
    if len(parts) == 3 and parts[1] in ".,":
        fraction = re.split("[.,]", digits)[1].rstrip("0")
        return f"{parts[0]}.{fraction}" if fraction else parts[0]
    return "".join(parts)


def _spelled(tens: str, unit: str, small: str) -> str:
    if small:
        return str(_SMALL.index(small))
    return str(10 * (_TENS.index(tens) + 2) + (_SMALL.index(unit) if unit else 0))


@dataclass(frozen=True)
class Copying:
    """A penalty for copying long stretches of the source, by extractive density.

    Density is the average length of the copied stretch that a word of the completion lies in (0 for a word that is
    not the source's): Grusky, Naaman and Artzi 2018.

    Formula: `-min(1, max(0, density / allowed - 1))`, with `density = sum of |f|^2 / words of the completion` over
    the stretches f, found from left to right, each as long as the source has it.

    Range: [-1, 0]. None for a completion without words, which counts 0 in training, or without a source.

    Use: where a text should put the source in its own words; measure the density of your references first.

    How it is gamed: by changing one word in every few; by inventing, which is never a copy.

    Pair it with: rouge or cider, and entities and numbers against inventions.

    Arguments:
        allowed: the density that costs nothing; twice as much costs 1. Names and set phrases are stretches of two or
            three words, so 4 leaves them alone, and a completion that is one copied stretch of eight words costs all.
        source: the column of the source; the prompt if not given.
        tokenizer: what a word is: `words`, `characters`, `rouge` or a function, `package.module:function`.

    >>> source = "The old bridge was closed on Monday because of the heavy rain."
    >>> Copying()([source, "Rain closed the old bridge."], prompts=[source, source])
    [-1.0, 0.0]
    """

    allowed: float = 4.0
    source: str | None = None
    tokenizer: str = "words"

    def __post_init__(self) -> None:
        check_number("allowed", self.allowed, least=0, exclusive=True)
        if self.source is not None:
            check_column("source", self.source)
        load_tokenizer(self.tokenizer)

    @property
    def __name__(self) -> str:
        return "copying"

    @property
    def needs(self) -> tuple[str, ...]:
        """The column of the source, if it is not the prompt."""
        return () if self.source is None else (self.source,)

    def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's source."""
        return [
            self._score(source, completion_text(completion))
            for completion, source in zip(completions, source_texts(self.source, columns), strict=True)
        ]

    def _score(self, source: str | None, text: str) -> float | None:
        measured = None if source is None else extractive(source, text, self.tokenizer)
        return None if measured is None else max(-1.0, min(0.0, 1 - measured[1] / self.allowed))


def extractive(source: str, text: str, tokenizer: str = "words") -> tuple[float, float, float] | None:
    """Return how a text is made from its source: coverage, density and compression; None for a text without words.

    Coverage is the share of its words that lie in a stretch of the source, density the average length of that
    stretch, and compression how many times longer the source is (Grusky, Naaman and Artzi 2018).

    >>> extractive("the cat sat on the mat", "a cat sat")
    (0.6666666666666666, 1.3333333333333333, 2.0)
    """
    tokenize = load_tokenizer(tokenizer)
    from_tokens, tokens = tokenize(source), tokenize(text)
    if not tokens:
        return None
    lengths = list(_stretches(from_tokens, tokens))
    squares = sum(length * length for length in lengths)
    return sum(lengths) / len(tokens), squares / len(tokens), len(from_tokens) / len(tokens)


def _stretches(source: list[str], text: list[str]) -> Iterator[int]:
    """Yield the lengths of the shared stretches: at each place of the text, the longest one, which is then skipped."""
    positions: dict[str, list[int]] = {}
    for position, token in enumerate(source):
        positions.setdefault(token, []).append(position)
    start = 0
    while start < len(text):
        longest = 0
        for position in positions.get(text[start], ()):
            room = min(len(text) - start, len(source) - position)
            if longest < room and text[start : start + longest + 1] == source[position : position + longest + 1]:
                longest += 1
                while longest < room and text[start + longest] == source[position + longest]:
                    longest += 1
        if longest:
            yield longest
        start += max(longest, 1)


@dataclass(frozen=True)
class Novelty:
    """A penalty for a share of new n-grams, those that the source does not have, outside a band.

    Formula: `-max(0, low - ratio, ratio - high)`, with
    `ratio = |n-grams of the completion that the source does not have| / |n-grams of the completion|` over sets.

    Range: [-1, 0]. None for a completion shorter than n, which counts 0 in training, or without a source.

    Use: where your references have a typical ratio: keep to it. With `low` 0 only what is too new costs, with `high` 1
    only what is too much copied.

    How it is gamed: inside the band it says nothing; `low` is reached by noise, `high` by copying.

    Pair it with: rouge or cider, and entities and numbers against inventions.

    Arguments:
        n: the length of an n-gram.
        low: the least ratio that costs nothing.
        high: the highest ratio that costs nothing.
        source: the column of the source; the prompt if not given.
        tokenizer: what a word is: `words`, `characters`, `rouge` or a function, `package.module:function`.

    >>> Novelty(n=2, low=0.5)(["the cat sat", "the fat cat"], prompts=["so the cat sat", "so the cat sat"])
    [-0.5, 0.0]
    """

    n: int = 4
    low: float = 0.5
    high: float = 1.0
    source: str | None = None
    tokenizer: str = "words"

    def __post_init__(self) -> None:
        check_whole("n", self.n)
        check_number("low", self.low, least=0)
        check_number("high", self.high, least=0)
        if not self.low <= self.high <= 1:
            raise InputError(f"low and high must be shares with low <= high <= 1, not {self.low:g} and {self.high:g}.")
        if self.source is not None:
            check_column("source", self.source)
        load_tokenizer(self.tokenizer)

    @property
    def __name__(self) -> str:
        return "novelty"

    @property
    def needs(self) -> tuple[str, ...]:
        """The column of the source, if it is not the prompt."""
        return () if self.source is None else (self.source,)

    def __call__(self, completions: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's source."""
        ratios = [
            None if source is None else novel(source, completion_text(completion), self.n, self.tokenizer)
            for completion, source in zip(completions, source_texts(self.source, columns), strict=True)
        ]
        return [None if ratio is None else min(0.0, ratio - self.low, self.high - ratio) for ratio in ratios]


def novel(source: str, text: str, n: int, tokenizer: str = "words") -> float | None:
    """Return the share of a text's n-grams that its source does not have; None for a text shorter than n.

    >>> novel("the cat sat on the mat", "a cat sat", 2)
    0.5
    """
    tokenize = load_tokenizer(tokenizer)
    found = set(ngrams(tokenize(text), n))
    return len(found.difference(ngrams(tokenize(source), n))) / len(found) if found else None


def inner_names(text: str) -> set[str]:
    """Return the words that have a capital letter within a sentence, without case: names for sure.

    >>> sorted(inner_names("Baking pleases Ann. Bob called Ann's brother."))
    ['ann']
    """
    starts = _sentence_starts(text)
    return {name for start, _, name in _names(text) if start not in starts}


def unsupported(texts: Sequence[str], source: str, known: Container[str] = ()) -> list[list[tuple[int, int]]]:
    """Return for each text where it has names and numbers, as Entities and Numbers find them, that its source has not.

    A place is where it starts and where it ends. The first word of a sentence has its capital letter from there, so it
    counts only if it is one of the `known` names.

    >>> text = "Baking costs Ann 12 euros, says Bob. Eve pays."
    >>> [found] = unsupported([text], "Ann: I paid 11 euros.", known={"eve"})
    >>> [text[start:end] for start, end in found]
    ['12', 'Bob', 'Eve']
    """
    names, numbers = Entities._of_source(source), Numbers._of_source(source)
    return [sorted(_without_support(text, names, numbers, known)) for text in texts]


def _without_support(
    text: str, names: Container[str], numbers: Container[str], known: Container[str]
) -> Iterator[tuple[int, int]]:
    starts = _sentence_starts(text)
    for start, end, name in _names(text):
        if name not in names and (start not in starts or name in known):
            yield start, end
    for start, end, number in _numbers(text):
        if number not in numbers:
            yield start, end


def _sentence_starts(text: str) -> set[int]:
    """Return the places of the first words of the sentences."""
    places = accumulate((len(sentence) for sentence in sentences(text)), initial=0)
    return {word.start() for place in places if (word := _WORD.search(text, place))}


def _share(claims: frozenset[str], support: frozenset[str]) -> float | None:
    return len(claims & support) / len(claims) if claims else None
