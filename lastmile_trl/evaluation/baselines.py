"""What runs are held against beside each other, by name: the entries of `evaluation.baselines`.

`lead` and `reference` are texts of the row, `best_of_n` is picked among samples of a run, `base` and `sft` are models
that are decoded like runs. A row for which a baseline has no text has no value there, and its text says why. `of` names
the model whose outputs are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from lastmile_trl import rewards as rewards_module
from lastmile_trl.data import template_columns
from lastmile_trl.errors import InputError, unknown
from lastmile_trl.evaluation.decoding import Output, Several
from lastmile_trl.evaluation.metrics import totals
from lastmile_trl.recipe import Data
from lastmile_trl.rewards import Reward
from lastmile_trl.rewards.base import cell_text, check_column, check_whole
from lastmile_trl.rewards.sentences import sentences


def source_column(data: Data) -> str | None:
    """The column with the text that answers are made from: the one that is shortened, or the template's only one."""
    columns = template_columns(data)
    return data.shorten or (columns[0] if len(columns) == 1 else None)


@dataclass(frozen=True)
class Lead:
    """The first sentences of the source: what copying its start is worth.

    >>> [output.text for output in Lead(2, "text").outputs([{"text": "One. Two. Three."}])]
    ['One. Two.']
    """

    sentences: int = 1
    column: str | None = None  # of the source
    of: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_whole("sentences", self.sentences)
        if self.column is not None:
            check_column("column", self.column)

    @property
    def name(self) -> str:
        """What the tables call it: `lead`, or `lead_3` for three sentences."""
        return "lead" if self.sentences == 1 else f"lead_{self.sentences}"

    def on(self, data: Data) -> Lead:
        """The same with its column."""
        column = self.column or source_column(data)
        if column is None:
            raise InputError("the template names several columns or none: say which is the source, {column: ...}.")
        return replace(self, column=column)

    def outputs(self, rows: Sequence[Mapping[str, Any]]) -> list[Output]:
        """One for each row."""
        texts = ["".join(sentences(cell_text(row[self.column]).strip())[: self.sentences]) for row in rows]
        return [_text(text.strip()) if text else _nothing("the source is empty") for text in texts]


@dataclass(frozen=True)
class Reference:
    """What a person's text is worth: each reference scored against the others of its row, as the mean over them.

    It is scored against one reference less than the runs, which costs it a little where the best one counts.

    >>> [output] = Reference().outputs([{"references": ["a cat", "one cat"]}])
    >>> [each.text for each in output.outputs], output.references
    (['a cat', 'one cat'], [['one cat'], ['a cat']])
    """

    name: ClassVar[str] = "reference"
    of: ClassVar[None] = None

    def outputs(self, rows: Sequence[Mapping[str, Any]]) -> list[Output]:
        """One for each row, which shows the first reference."""
        return [self._output(row["references"]) for row in rows]

    def _output(self, texts: list[str]) -> Output:
        if len(texts) < 2:
            return _nothing("the row has a single reference")
        others = [texts[:number] + texts[number + 1 :] for number in range(len(texts))]
        return Several(texts[0], None, True, outputs=[_text(text) for text in texts], references=others)


@dataclass(frozen=True)
class BestOfN:
    """The best of several samples of a run, by the weighted sum of rewards: what RL's reward buys without training.

    Rewards that read the references make it an oracle, which nobody could use and whose name says so. The others do
    not get to see them.
    """

    n: int = 8
    rewards: Any = ()  # as in the section `rewards`
    of: str | None = None  # the name of a run, `base` or `sft`; default: the first run
    built: tuple[Reward, ...] = field(default=(), init=False)
    answers: frozenset[str] = field(default=frozenset(), init=False)  # the columns that hold the references

    def __post_init__(self) -> None:
        check_whole("n", self.n, least=2)
        if not isinstance(self.rewards, list) or not self.rewards:
            raise InputError("rewards must be a list, as in the section `rewards`: what picks the best sample.")
        object.__setattr__(self, "built", tuple(rewards_module.build(self.rewards)))

    def on(self, data: Data) -> BestOfN:
        """The same for these rows."""
        placed = replace(self)
        object.__setattr__(placed, "answers", frozenset({"references", data.references}))
        return placed

    @property
    def is_oracle(self) -> bool:
        """Whether a reward reads the references."""
        return any(self.answers & {*reward.needs} for reward in self.built)

    @property
    def name(self) -> str:
        """What the tables call it: `best_of_8`, `oracle_best_of_8`, `best_of_8 of grpo`."""
        return f"{'oracle_' if self.is_oracle else ''}best_of_{self.n}{f' of {self.of}' if self.of else ''}"

    def outputs(
        self, samples: Sequence[Sequence[Output]], rows: Sequence[Mapping[str, Any]], rewards: Sequence[Reward]
    ) -> list[Output]:
        """The best sample of each row by the rewards, which are `built` once they know the task; the first of equals.

        >>> best = BestOfN(n=2, rewards=["repetition"]).on(Data(path="x"))
        >>> samples = [[Output("a b c a b c", None, True), Output("a b c", None, True)]]
        >>> best.name, best.outputs(samples, [{"prompt": "p", "references": ["b"]}], best.built)[0].text
        ('best_of_2', 'a b c')
        """
        hidden = frozenset() if self.is_oracle else self.answers
        seen = [{name: value for name, value in row.items() if name not in hidden} for row in rows]
        repeated = [row for row, of_row in zip(seen, samples, strict=True) for _ in of_row]
        values = iter(totals([output for of_row in samples for output in of_row], repeated, rewards))
        return [_best(of_row, [next(values) for _ in of_row]) for of_row in samples]


def _best(samples: Sequence[Output], values: Sequence[float | None]) -> Output:
    scored = [number for number, value in enumerate(values) if value is not None]
    if not scored:
        return _nothing("no sample has a reward")
    return samples[max(scored, key=lambda number: values[number])]


@dataclass(frozen=True)
class Base:
    """The model that the first run goes back to, untrained; of an adapter, the model under it."""

    name: ClassVar[str] = "base"
    of: ClassVar[str] = "base"


@dataclass(frozen=True)
class Sft:
    """The stage of `method: sft` that the first run of RL goes back to."""

    name: ClassVar[str] = "sft"
    of: ClassVar[str] = "sft"


Baseline = Lead | Reference | BestOfN | Base | Sft
BASELINES = {"lead": Lead, "reference": Reference, "best_of_n": BestOfN, "base": Base, "sft": Sft}


def build(entries: Iterable[str | Mapping[str, Any]], data: Data) -> list[Baseline]:
    """Make the baselines that a recipe lists, each a name, or a name with arguments, as rewards are.

    >>> [baseline.name for baseline in build(["lead", {"lead": {"sentences": 3}}], Data(path="x", prompt="{text}:"))]
    ['lead', 'lead_3']
    """
    baselines: list[Baseline] = []
    for entry in entries:
        baseline = _build_one(entry, data)
        if any(baseline.name == other.name for other in baselines):
            raise InputError(f"evaluation.baselines: two are called {baseline.name!r}: drop one.")
        baselines.append(baseline)
    return baselines


def _build_one(entry: Any, data: Data) -> Baseline:
    if not isinstance(entry, str) and not (isinstance(entry, Mapping) and len(entry) == 1):
        raise InputError(f"evaluation.baselines: one is a name, or one name with arguments, not {entry!r:.80}.")
    [(key, given)] = [(entry, None)] if isinstance(entry, str) else entry.items()
    if key not in BASELINES:
        raise unknown("evaluation.baselines: baseline", key, BASELINES)
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"evaluation.baselines: {key}: its arguments must be `key: value` pairs, not {given!r}.")
    kind, arguments = BASELINES[key], dict(given or {})
    known = [known.name for known in fields(kind) if known.init]
    for argument in arguments:
        if argument not in known:
            raise unknown(f"evaluation.baselines: {key}: argument", argument, known)
    try:
        baseline = kind(**arguments)
        return baseline.on(data) if hasattr(baseline, "on") else baseline
    except InputError as error:
        raise InputError(f"evaluation.baselines: {key}: {error}") from error


def _text(text: str) -> Output:
    return Output(text, None, True)


def _nothing(reason: str) -> Output:
    return Several(f"– ({reason})", None, False, outputs=[], why_none=reason)
