"""Where a sentence ends, and when two of them say the same."""

import re

CLOSERS = r"[\"'”’»)\]」』]*"
_TITLES = "".join(rf"(?<!\b{title})" for title in ("Mr", "Ms", "Dr", "St", "vs", "Mrs", "Prof"))
_FULL_STOP = rf"(?<!\b[^\W\d_]){_TITLES}\."
_SENTENCE = re.compile(rf".+?(?:(?:{_FULL_STOP}|[!?…]){CLOSERS}(?:\s+|\Z)|[。！？]{CLOSERS}\s*|\n\s*|\Z)", re.DOTALL)


def sentences(text: str) -> list[str]:
    """Return the sentences with the white space that follows each, so that joining them gives the text back.

    A sentence ends after `.`, `!`, `?` or `…`, with the quotes and brackets that follow, before white space or at the
    end of the text; after `。`, `！` or `？`; or at a line break. A full stop after a single letter (J. Smith, 5 p.m.)
    or a common title ends none.

    >>> sentences("Dr. Ann called. Bob wrote.")
    ['Dr. Ann called. ', 'Bob wrote.']
    """
    return _SENTENCE.findall(text)


def plain(text: str) -> str:
    """Return the text without case and with single spaces: two sentences that are equal like this say the same.

    >>> plain(" Ann  CALLED. ")
    'ann called.'
    """
    return " ".join(text.casefold().split())
