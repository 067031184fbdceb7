"""What a text says that could be otherwise: its names, numbers, dates and negations, found without a model."""

import functools
import re
from collections.abc import Iterable, Sequence, Set
from typing import NamedTuple

from lastmile_trl.preferences.pieces import UNSPACED
from lastmile_trl.rewards.faithfulness import Entities, Numbers

KINDS = ("entity", "number", "date", "negation")


class Fact(NamedTuple):
    """A value in a text; only one of the same sort, `kind` or `kind detail`, may take its place."""

    sort: str
    start: int
    end: int
    value: str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.sort.partition(" ")[0]


_WORD = re.compile(r"(?<!\w)[^\W\d_](?:\w|[\u0300-\u036f]|['’](?=\w))*")
_SUFFIX = re.compile(r"['’](?:s|m|d|re|ve|ll)$")
_DATE = re.compile(
    r"\b(?:(?P<weekday>(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)"
    r"|(?P<month>January|February|March|April|May(?=,? \d)|(?:(?<=\d )|(?<=\bin ))May|June|July"
    r"|August|September|October|November|December)"
    r"|(?P<relative>(?i:today|tonight|tomorrow|yesterday))"
    r"|(?P<day>\d{4}-\d\d?-\d\d?|\d\d?/\d\d?/\d{2,4}))\b"
)
_NUMBER = re.compile(
    rf"(?<![^\W{UNSPACED}])(?<!\w-)(?P<figure>\d++(?:[.,:/]\d++)*+)(?!(?:st|nd|rd|th)\b)"
    r"|(?<![\w-])(?P<spelled>(?i:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty"
    r"|sixty|seventy|eighty|ninety))(?![\w-])"
)


def find_facts(text: str, names: Set[str]) -> list[Fact]:
    """Return the dates, numbers and names of a text.

    Names are runs of capitalised words; what starts a sentence must be among `names` to be one.

    >>> [(fact.sort, fact.value) for fact in find_facts("Dogs left Ann Lee's 3 on Monday.", {"Bo"})]
    [('date weekday', 'Monday'), ('number 0', '3'), ('entity', 'Ann Lee')]
    """
    dates = [_fact("date", match) for match in _DATE.finditer(text)]
    of_dates = {place for date in dates for place in range(date.start, date.end)}
    numbers = [_fact("number", match) for match in _NUMBER.finditer(text) if match.start() not in of_dates]
    capitalised = (match for match in _WORD.finditer(text) if _is_name(match[0]) and match.start() not in of_dates)
    return [*dates, *numbers, *_entities(text, capitalised, names)]


def _fact(kind: str, match: re.Match) -> Fact:
    detail, value = match.lastgroup, match[0]
    if detail == "figure":  # a year, a time and a price are not of one sort
        detail = re.sub(r"\d+", lambda digits: "0000" if len(digits[0]) == 4 else "0", value)
    return Fact(f"{kind} {detail}", *match.span(), value.lower() if detail in ("relative", "spelled") else value)


@functools.lru_cache(maxsize=1 << 16)
def _is_name(word: str) -> bool:
    """Whether the reward Entities takes the word for a name: it has no value for a text without names."""
    return word != word.lower() and Entities("precision")([word], prompts=[""]) != [None]


def _entities(text: str, capitalised: Iterable[re.Match], names: Set[str]) -> list[Fact]:
    found: list[Fact] = []
    for match in capitalised:
        name = _SUFFIX.sub("", match[0])
        start, end = match.start(), match.start() + len(name)
        if name not in names and _starts_a_sentence(text, start):
            continue
        if found and text[found[-1].end : start] in (" ", "-"):
            start = found.pop().start
        found.append(Fact("entity", start, end, text[start:end]))
    return found


def _starts_a_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" \t")
    return not before or not (before[-1].isalnum() or before[-1] in ",;'’-&/")


def known_names(texts: Iterable[str]) -> set[str]:
    """Return the words that some text capitalises inside a sentence, or as a speaker, and none writes small.

    >>> sorted(known_names(["Bo: Hey, is Ann there?", "Dogs saw Bo.", "So they met The Dogs", "dogs ran"]))
    ['Ann', 'Bo']
    """
    inside, small = set(), set()
    for text in texts:
        for match in _WORD.finditer(text):
            if match[0].islower():
                small.add(match[0])
            elif not _starts_a_sentence(text, match.start()) or text[match.end() : match.end() + 1] == ":":
                inside.add(_SUFFIX.sub("", match[0]))
    return {word for word in inside if _is_name(word) and word.lower() not in small}


def absent(kind: str, values: Sequence[str], references: str) -> list[str]:
    """Return the values of a kind that the references do not hold, however they write them.

    >>> absent("number", ["3", "1200", "7"], "Three of 1,200 people"), absent("entity", ["Ann Lee", "Bo"], "Ms Lee's")
    (['7'], ['Bo'])
    """
    if kind == "date":
        return [value for value in values if value.casefold() not in references.casefold()]
    held = (Entities if kind == "entity" else Numbers)("precision")(values, prompts=[references] * len(values))
    return [value for value, share in zip(values, held, strict=True) if share == 0]


_ENGLISH = re.compile(r"\b(?i:the|and|that|this|with|from|they|she|his|their|there|what|about|you|your)\b")
_IS = "is|are|was|were|can|could|will|would|should|must"
_NEGATED = re.compile(rf"\b(?i:({_IS}|do|does|did|has|have|had|ca|wo)(?: ?n['’]t| not)|(can)not)\b(?! (?:only|just)\b)")
_NEGATABLE = re.compile(  # not at the start of a sentence, where it asks a question
    rf"(?<=\w )(?<!\ba )(?<!\bthe )(?:{_IS}|(?:has|have|had)(?= been\b| \w+ed\b))\b"
    r"(?!['’]| ?n['’]t\b| (?:not|never|no|none|nobody|nothing|only|just)\b)"
)


def is_english(text: str) -> bool:
    """Whether the text holds a frequent word that only English has."""
    return _ENGLISH.search(text) is not None


def negated(text: str) -> list[str]:
    """Return an English text with one "not" more or less, at each of its auxiliary verbs.

    >>> negated("Ann is here but Bo can't come.")
    ["Ann is not here but Bo can't come.", 'Ann is here but Bo can come.']
    """
    more = [f"{text[: match.end()]} not{text[match.end() :]}" for match in _NEGATABLE.finditer(text)]
    less = [
        text[: match.start()] + _verb(match[1] or match[2]) + text[match.end() :] for match in _NEGATED.finditer(text)
    ]
    return [*more, *less]


def _verb(stem: str) -> str:
    return stem[0] + {"ca": "an", "wo": "ill"}.get(stem.lower(), stem[1:])
