"""What a few lines of code mend in an output without any training: the baseline that RL has to beat.

A sentence ends after `.`, `!`, `?` or `…`, with the quotes and brackets that follow, before white space or at the end
of the text; after `。`, `！` or `？`; or at a line break. A full stop after a single letter (J. Smith, 5 p.m.) or a
common title ends none.
"""

import re

_CLOSERS = r"[\"'”’»)\]」』]*"
_TITLES = "".join(rf"(?<!\b{title})" for title in ("Mr", "Ms", "Dr", "St", "vs", "Mrs", "Prof"))
_FULL_STOP = rf"(?<!\b[^\W\d_]){_TITLES}\."
_SENTENCE = re.compile(rf".+?(?:(?:{_FULL_STOP}|[!?…]){_CLOSERS}(?:\s+|\Z)|[。！？]{_CLOSERS}\s*|\n\s*|\Z)", re.DOTALL)
_FINISHED = re.compile(rf"[.!?…。！？]{_CLOSERS}\s*\Z")


def postprocess(text: str) -> str:
    """The first block of the text, without repeated sentences and without an unfinished end.

    >>> postprocess("Ann moved the call. Ann moved  the call. It is on Mon")
    'Ann moved the call.'
    """
    return drop_unfinished_end(drop_repeated_sentences(first_block(text)))


def first_block(text: str) -> str:
    """The text up to its first blank line.

    >>> first_block("A summary.\\n\\nDialogue: and on it goes")
    'A summary.'
    """
    return re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].strip()


def drop_repeated_sentences(text: str) -> str:
    """Every sentence once, where it occurs first; case and white space make no difference.

    >>> drop_repeated_sentences("Yes. No. YES. Maybe.")
    'Yes. No. Maybe.'
    """
    first_of = {}
    for sentence in _sentences(text):
        first_of.setdefault(" ".join(sentence.casefold().split()), sentence)
    return "".join(first_of.values()).strip()


def drop_unfinished_end(text: str) -> str:
    """The text up to its last sentence with an end mark; all of it when no sentence has one.

    >>> drop_unfinished_end("It works. It wor"), drop_unfinished_end("It wor")
    ('It works.', 'It wor')
    """
    sentences = _sentences(text)
    finished = [number for number, sentence in enumerate(sentences, 1) if _FINISHED.search(sentence)]
    return "".join(sentences[: finished[-1]] if finished else sentences).strip()


def _sentences(text: str) -> list[str]:
    """The sentences with the white space that follows each, so that joining them gives the text back."""
    return _SENTENCE.findall(text)
