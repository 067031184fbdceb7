"""What a recipe's rewards say about texts whose worth is known, before any model writes one."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import Reward, score
from lastmile_trl.rewards.base import known_mean, prompt_text
from lastmile_trl.rewards.tokens import TOKENIZERS

SEPARATED = 0.75  # share of rows in which the reference must score above another text
DROWNED = 10  # times one reward may move the total as much as another
READ = 0.75  # share of the references' letters and digits that a tokenizer must keep
A_TEXT = 10  # from so many letters on, one word is a script without spaces

# What is tried on every row, by name; `other` is the reference of the next row.
_TEXTS: dict[str, Callable[[Mapping[str, Any], str], str]] = {
    "the references": lambda row, other: row["references"][0],
    "those of other rows": lambda row, other: other,
    "an empty text": lambda row, other: "",
    "the reference three times": lambda row, other: _space(row["references"][0]).join([row["references"][0]] * 3),
    "a copy of the prompt": lambda row, other: prompt_text(row["prompt"]),
}
_SHOWN = 3  # the first of them are printed for every reward

_Values = dict[str, list[float | None]]  # by text: a value per row


@dataclass
class Findings:
    """What the probes showed: a line per reward, and what is suspicious."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def probe(rewards: Sequence[Reward], rows: Sequence[Mapping[str, Any]]) -> Findings:
    """Score known texts for rows with a `prompt` and a list of `references`.

    Refuses a reward that can score no reference; warns of one that is always the same or is drowned by another, and
    of rewards that in sum do not set the references above texts that are worth nothing.

    >>> from lastmile_trl.rewards import build
    >>> rows = [{"prompt": "Say it.", "references": [text]} for text in ("a cat sat", "one dog ran", "birds fly")]
    >>> found = probe(build(["rouge"]), rows)
    >>> found.notes
    ['rouge/rougeL: 1.000 for the references, 0.000 for those of other rows, 0.000 for an empty text.']
    >>> found.warnings
    []
    """
    found, tried = Findings(), {}
    for reward in rewards:
        if reason := why_not(reward):
            found.notes.append(f"{reward.name}: {reason}, so it is not tried here.")
            continue
        values = tried[reward.name] = _try(reward, rows)
        _check_scorable(reward, values, rows, found)
        means = {name: known_mean(column) for name, column in list(values.items())[:_SHOWN]}
        said = [f"{'no value' if mean is None else f'{mean:.3f}'} for {name}" for name, mean in means.items()]
        found.notes.append(f"{reward.name}: {', '.join(said)}.")
    tried_rewards = [reward for reward in rewards if reward.name in tried]
    untried = [reward for reward in rewards if reward.name not in tried]
    if tried_rewards:
        found.warnings += [
            *_closed_gates(tried_rewards, tried),
            *_constant(tried),
            *_drowned(tried_rewards, tried),
            *_cheaper_closed(tried_rewards, tried),
        ]
        # Beside a model that tells good from bad, the others need not.
        if not any(hasattr(reward.function, "model") for reward in untried):
            found.warnings += _not_separated(tried_rewards, tried, [reward.name for reward in untried])
    return found


def unreadable(reward: Reward, references: Sequence[str]) -> str | None:
    """Say that the reward sees little or nothing of the references: an unknown script, or one without spaces."""
    choice = getattr(reward.function, "tokenizer", None)
    unit = getattr(reward.function, "unit", None)
    if choice not in TOKENIZERS and unit != "words":
        return None
    tokenize = TOKENIZERS.get(choice, str.split)
    letters = sum(char.isalnum() for text in references for char in text)
    tokens = [token for text in references for token in tokenize(text)]
    read = sum(char.isalnum() for token in tokens for char in token) / max(letters, 1)
    if read < READ:
        only = ", which knows only a-z and 0-9" if choice == "rouge" else ""
        return (
            f"{reward.name} reads {read:.0%} of the references' letters and digits with tokenizer {choice!r}{only}: "
            "set tokenizer: words, or characters for a script without spaces."
        )
    if len(tokens) <= 1.5 * len(references) and letters > A_TEXT * len(references):
        key = "unit" if choice is None else "tokenizer"
        return f"{reward.name} takes most references for a single word: set {key}: characters for such a script."
    return None


def _space(text: str) -> str:
    return " " if " " in text else ""


def why_not(reward: Reward) -> str | None:
    """Why a reward cannot be tried on texts that no model has generated; None if it can."""
    if "completion_ids" in reward.needs:
        return "it counts generated tokens"
    return getattr(reward.function, "not_on_texts", None)


def _try(reward: Reward, rows: Sequence[Mapping[str, Any]]) -> _Values:
    others = [row["references"][0] for row in (*rows[1:], *rows[:1])]
    values = {}
    for name, text in _TEXTS.items():
        tried = [{**row, "prediction": text(row, other)} for row, other in zip(rows, others, strict=True)]
        values[name] = [scored[reward.name] for scored in score([reward], tried)]
    return values


def _check_scorable(reward: Reward, values: _Values, rows: Sequence[Mapping[str, Any]], found: Findings) -> None:
    reason = unreadable(reward, [row["references"][0] for row in rows])
    if all(value is None for value in values["the references"]):
        raise InputError(reason or f"Reward {reward.name!r} can score none of the first {len(rows)} references.")
    if reason:
        found.warnings.append(reason)


def _closed_gates(rewards: Sequence[Reward], tried: dict[str, _Values]) -> list[str]:
    warnings = []
    for gate in (reward for reward in rewards if reward.gate is not None):
        values = tried[gate.name]["the references"]
        closed = sum(value is not None and value < gate.gate for value in values)
        if closed:
            warnings.append(f"The gate {gate.name} is closed for {closed} of {len(values)} references.")
    return warnings


def _constant(tried: dict[str, _Values]) -> list[str]:
    return [
        f"{name} is {known.pop():.3f} for whatever text: it teaches nothing."
        for name, values in tried.items()
        if len(known := {value for column in values.values() for value in column if value is not None}) == 1
    ]


def _drowned(rewards: Sequence[Reward], tried: dict[str, _Values]) -> list[str]:
    spreads = {}
    for reward in rewards:
        known = [value for column in tried[reward.name].values() for value in column if value is not None]
        spreads[reward.name] = abs(reward.weight) * statistics.pstdev(known)
    loudest = max(spreads, key=spreads.get)
    return [
        f"{loudest} moves the total {spreads[loudest] / spread:.0f} times as much as {name}: change their weights, or "
        "`scale` one of them."
        for name, spread in spreads.items()
        if 0 < spread * DROWNED < spreads[loudest]
    ]


def _cheaper_closed(rewards: Sequence[Reward], tried: dict[str, _Values]) -> list[str]:
    """A gate that costs less than the penalties behind it is a way around them."""
    lowest = {
        reward.name: min(reward.weight * value for column in tried[reward.name].values() for value in column if value)
        for reward in rewards
        if reward.gate is None and any(value for column in tried[reward.name].values() for value in column)
    }
    worst = sum(min(value, 0.0) for value in lowest.values())
    return [
        f"A completion that fails the gate {gate.name} loses {gate.weight * gate.gate:.2f}, and one that passes it "
        f"up to {-worst:.2f} by penalties: give the gate more weight."
        for gate in rewards
        if gate.gate is not None and gate.gate > 0 and gate.weight * gate.gate + worst < 0
    ]


def _not_separated(rewards: Sequence[Reward], tried: dict[str, _Values], untried: Sequence[str]) -> list[str]:
    totals = {
        text: [
            sum(reward.weight * (tried[reward.name][text][row] or 0.0) for reward in rewards)
            for row in range(len(tried[rewards[0].name][text]))
        ]
        for text in _TEXTS
    }
    references = totals.pop("the references")
    without = f" without {', '.join(untried)}" if untried else ""
    warnings = []
    for text, values in totals.items():
        above = statistics.fmean(own > value for own, value in zip(references, values, strict=True))
        if above < SEPARATED:
            warnings.append(
                f"Against {text}, the total{without} is no higher for the reference in {1 - above:.0%} of the rows "
                f"({statistics.fmean(references):.3f} for the references, {statistics.fmean(values):.3f} for "
                f"{text}, on average)."
            )
    return warnings
