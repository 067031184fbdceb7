"""What a few lines of code mend in an output without any training: the baseline that RL has to beat."""

import re

from lastmile_trl.rewards.sentences import CLOSERS, plain, sentences

_FINISHED = re.compile(rf"[.!?…。！？]{CLOSERS}\s*\Z")


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
    for sentence in sentences(text):
        first_of.setdefault(plain(sentence), sentence)
    return "".join(first_of.values()).strip()


def drop_unfinished_end(text: str) -> str:
    """The text up to its last sentence with an end mark; all of it when no sentence has one.

    >>> drop_unfinished_end("It works. It wor"), drop_unfinished_end("It wor")
    ('It works.', 'It wor')
    """
    said = sentences(text)
    finished = [number for number, sentence in enumerate(said, 1) if _FINISHED.search(sentence)]
    return "".join(said[: finished[-1]] if finished else said).strip()
