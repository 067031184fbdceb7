"""A text in pieces, in any script: words, or characters where no space parts the words, and sentences."""

import re
import unicodedata

from lastmile_trl.rewards.sentences import sentences

Span = tuple[int, int]

# Scripts that put no space between words: Thai to Myanmar, Khmer, Japanese and Chinese with their punctuation.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3001-\u312f\u3400-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff"
_UNSPACED = re.compile(f"[{UNSPACED}]")
_UNIT = re.compile(rf"[^\s{UNSPACED}]+|[{UNSPACED}]")
_CHARACTER = re.compile(r"\S")
_ZWJ = "\u200d"  # joins two emoji


def units(text: str) -> list[Span]:
    """Return where the words of a text lie; in scripts without spaces, its characters.

    >>> units("on 垫子"), characters("on 垫子")
    ([(0, 2), (3, 4), (4, 5)], [(0, 1), (1, 2), (3, 4), (4, 5)])
    """
    return _spans(text, _UNIT)


def characters(text: str) -> list[Span]:
    """Return where the characters of a text lie, each with the marks that belong to it."""
    return _spans(text, _CHARACTER)


def _spans(text: str, piece: re.Pattern) -> list[Span]:
    spans: list[Span] = []
    for match in piece.finditer(text):
        start, end = match.span()
        if spans and spans[-1][1] == start and (_is_mark(text[start]) or text[start - 1] == _ZWJ):
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def _is_mark(character: str) -> bool:
    is_skin_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return character == _ZWJ or is_skin_tone or unicodedata.category(character)[0] == "M"


def sentence_spans(text: str) -> list[Span]:
    """Return where the sentences of a text lie.

    >>> sentence_spans("He left. Why?")
    [(0, 8), (9, 13)]
    """
    spans, start = [], 0
    for sentence in sentences(text):
        if sentence.strip():
            spans.append((start + len(sentence) - len(sentence.lstrip()), start + len(sentence.rstrip())))
        start += len(sentence)
    return spans


def joint(left: str, right: str) -> str:
    """Return what stands between two texts that follow each other: a space, unless their script has none.

    >>> joint("Yes.", "No."), joint("好。", "不")
    (' ', '')
    """
    return "" if _UNSPACED.match(left[-1]) or _UNSPACED.match(right) else " "


def is_unspaced(text: str) -> bool:
    """Whether most of a text is in scripts without spaces."""
    return len(_UNSPACED.findall(text)) * 2 > len(text)


def without_end_mark(text: str) -> str:
    """Return the text without the punctuation and the spaces at its end.

    >>> without_end_mark("And then ..."), without_end_mark("走了。")
    ('And then', '走了')
    """
    end = len(text)
    while end and unicodedata.category(text[end - 1])[0] in "PZC":  # punctuation, spaces, controls
        end -= 1
    return text[:end]
