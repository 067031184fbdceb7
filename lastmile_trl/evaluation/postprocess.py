"""What a few lines of code mend in an output without any training: the baseline that RL has to beat.

It goes in steps, each a name, or a name with arguments, in the order of the list:

    first_block           the text up to its first blank line
    end_mark: {marks}     the text up to the first of these marks
    repeated_sentences    every sentence once
    unfinished_end        the text up to its last sentence with an end mark
    length: {quantile}    at most as many words as this share of the training references have
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lastmile_trl.data import split_text
from lastmile_trl.errors import InputError, unknown
from lastmile_trl.evaluation.decoding import Output, Several
from lastmile_trl.recipe import Evaluation
from lastmile_trl.rewards.base import check_number, check_whole
from lastmile_trl.rewards.sentences import CLOSERS, plain, sentences

_FINISHED = re.compile(rf"[.!?…。！？]{CLOSERS}\s*\Z")

DEFAULT = tuple(Evaluation().steps)


def processed(outputs: Sequence[Output], steps: "Sequence[Step]") -> tuple[list[Output], dict[str, int]]:
    """The outputs after all steps, and how many each step changed; white space around a text is no change.

    >>> outputs, changed = processed([Output("Yes. Yes. N", [7], False), Output(" Yes.", [7], True)], build(DEFAULT))
    >>> [output.text for output in outputs], changed
    (['Yes.', 'Yes.'], {'first_block': 0, 'repeated_sentences': 1, 'unfinished_end': 1})
    """
    changed = dict.fromkeys((step.name for step in steps), 0)

    def process(output: Output) -> Output:
        if isinstance(output, Several):
            several = [process(each) for each in output.outputs]
            return replace(output, text=several[0].text if several else output.text, ids=None, outputs=several)
        text = output.text
        for step in steps:
            before, text = text, step(text)
            changed[step.name] += before.strip() != text.strip()
        return replace(output, text=text, ids=None)

    return [process(output) for output in outputs], changed


@dataclass(frozen=True)
class Step:
    """One step; `arguments` are those it is built with again, what it has learned among them."""

    name: str
    function: Callable[[str], str]
    arguments: Mapping[str, Any]

    def __call__(self, text: str) -> str:
        """The text after this step."""
        return self.function(text)

    @property
    def entry(self) -> str | dict[str, dict]:
        """What a list of steps says of it, to be kept."""
        return {self.name: dict(self.arguments)} if self.arguments else self.name


def build(entries: Sequence[str | Mapping[str, Any]], references: Sequence[Sequence[str]] = ()) -> list[Step]:
    """Make the steps of a list; `references` are those of the training rows, which `length` learns from.

    >>> steps = build(["first_block", {"length": {"quantile": 0.5}}], [["a b c"], ["a", "a b"]])
    >>> [step.entry for step in steps], steps[1]("one two three")
    (['first_block', {'length': {'words': 2}}], 'one two')
    """
    if not entries:
        raise InputError(
            "evaluation.steps is empty: name a step, or show nothing post-processed with evaluation.postprocess: []."
        )
    steps: list[Step] = []
    for entry in entries:
        name, arguments = _split(entry)
        if any(name == step.name for step in steps):
            raise InputError(f"evaluation.steps: {name} is named twice: drop one.")
        try:
            steps.append(_build_one(name, arguments, references))
        except InputError as error:
            raise InputError(f"evaluation.steps: {name}: {error}") from error
    return steps


def _split(entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, str) and not (isinstance(entry, Mapping) and len(entry) == 1):
        raise InputError(f"evaluation.steps: a step is a name, or one name with arguments, not {entry!r:.80}.")
    [(name, given)] = [(entry, None)] if isinstance(entry, str) else entry.items()
    if name not in STEPS:
        raise unknown("evaluation.steps: step", name, STEPS)
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"evaluation.steps: {name}: its arguments must be `key: value` pairs, not {given!r:.80}.")
    for argument in given or {}:
        if argument not in STEPS[name]:
            raise unknown(f"evaluation.steps: {name}: argument", argument, STEPS[name])
    return name, dict(given or {})


def _build_one(name: str, arguments: dict[str, Any], references: Sequence[Sequence[str]]) -> Step:
    if name == "end_mark":
        marks = arguments.get("marks")
        if not isinstance(marks, list) or not marks or not all(isinstance(mark, str) and mark for mark in marks):
            raise InputError(f"marks must be a list of texts, where an output ends, not {marks!r:.80}.")
        return Step(name, lambda text: cut_at_mark(text, marks), {"marks": marks})
    if name == "length":
        words = _most_words(arguments, references)
        return Step(name, lambda text: split_text(text.strip(), words)[0], {"words": words})
    return Step(name, PLAIN[name], {})


def _most_words(arguments: dict[str, Any], references: Sequence[Sequence[str]]) -> int:
    if "words" in arguments:
        check_whole("words", arguments["words"])
        return arguments["words"]
    quantile = arguments.get("quantile", 0.95)
    check_number("quantile", quantile, least=0, exclusive=True)
    if quantile > 1:
        raise InputError(f"quantile must be a share of the training references, at most 1, not {quantile!r}.")
    lengths = sorted(len(text.split()) for texts in references for text in texts)
    if not lengths:
        raise InputError("there are no training references to learn from: give {words: ...}.")
    return max(1, lengths[math.ceil(quantile * len(lengths)) - 1])


def cut_at_mark(text: str, marks: Sequence[str]) -> str:
    """The text up to the first of the marks in it.

    >>> cut_at_mark("A summary. ### Next: User: hi", ["User:", "###"])
    'A summary.'
    """
    return text[: min((place for mark in marks if (place := text.find(mark)) >= 0), default=len(text))].strip()


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


PLAIN = {  # steps that are functions of the text alone
    "first_block": first_block,
    "repeated_sentences": drop_repeated_sentences,
    "unfinished_end": drop_unfinished_end,
}
STEPS = {**dict.fromkeys(PLAIN, ()), "end_mark": ("marks",), "length": ("quantile", "words")}
