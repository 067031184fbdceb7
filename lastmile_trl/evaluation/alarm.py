"""Signs that a reward is being gamed, looked for on held-out rows while a run trains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from lastmile_trl.evaluation.significance import Interval, paired
from lastmile_trl.rewards.base import known_mean

# How far a mean may move from where the run started before it is worth a look.
LENGTH_FACTOR = 1.25
REPETITION = 0.05  # share of repeated word 3-grams
ENDED = 0.05  # share of outputs that end by themselves
OPENINGS = 0.2  # share of outputs that begin with the same words
OPENING_WORDS = 4

_Values = Mapping[str, Sequence[float | None]]


class Alarm:
    """Holds every look at the held-out outputs against the first one, made before the first step of RL.

    A look is a value per row and metric, as `per_row` returns it, and the rows' total rewards. `rewarded` names the
    metrics that are rewards themselves.
    """

    def __init__(self, texts: Sequence[str], measured: _Values, rewards: Sequence[float], rewarded: set[str]):
        self.texts, self.measured, self.rewards, self.rewarded = texts, measured, rewards, rewarded

    def signs(self, texts: Sequence[str], measured: _Values, rewards: Sequence[float]) -> dict[str, str]:
        """What has changed for the worse since the first look: a sentence by the name of the metric that shows it."""
        found = [
            *self._falling_while_the_reward_rises(measured, rewards),
            self._length(measured),
            self._change("repeated_3grams", measured, REPETITION, "repeat themselves more"),
            self._change("ended", measured, -ENDED, "end by themselves less often"),
            self._openings(texts),
        ]
        return dict(sign for sign in found if sign)

    def _falling_while_the_reward_rises(self, measured: _Values, rewards: Sequence[float]) -> list[tuple[str, str]]:
        rise = paired(rewards, self.rewards)
        if rise is None or rise.low <= 0:
            return []
        falls = {
            name: paired(values, self.measured[name], level=0.99)  # many looks at many metrics
            for name, values in measured.items()
            if name not in self.rewarded and name not in ("words", "length_ratio", "ended", "repeated_3grams")
        }
        return [
            (
                name,
                f"the reward has risen by {rise.mean:.3f} while {name}, which is not rewarded, has fallen by "
                f"{_size(fall)}: what is rewarded is not what is meant",
            )
            for name, fall in falls.items()
            if fall is not None and fall.high < 0
        ]

    def _length(self, measured: _Values) -> tuple[str, str] | None:
        before, now = (known_mean(values["length_ratio"]) for values in (self.measured, measured))
        if not before or now is None:
            return None
        # Back towards the references' length is no drift.
        away = now and abs(math.log(now)) > abs(math.log(before))
        if now and not (away and abs(math.log(now / before)) > math.log(LENGTH_FACTOR)):
            return None
        return "length_ratio", f"outputs are {now:.2f} times as long as the references, {before:.2f} at the start"

    def _change(self, name: str, measured: _Values, limit: float, what: str) -> tuple[str, str] | None:
        before, now = known_mean(self.measured[name]), known_mean(measured[name])
        if (now - before) / limit <= 1:
            return None
        return name, f"outputs {what}: {name} is {now:.2f}, {before:.2f} at the start"

    def _openings(self, texts: Sequence[str]) -> tuple[str, str] | None:
        (_, before), (opening, now) = most_common_opening(self.texts), most_common_opening(texts)
        if now - before <= OPENINGS:
            return None
        return "opening", f"{now:.0%} of the outputs begin with {opening!r}, {before:.0%} did so at the start"


def most_common_opening(texts: Sequence[str]) -> tuple[str, float]:
    """The first words that most texts begin with, and the share of texts that do.

    >>> most_common_opening(["The cat is on a mat.", "The cat is on it.", "A dog.", "Birds."])
    ('The cat is on', 0.5)
    """
    openings = Counter(" ".join(text.split()[:OPENING_WORDS]) for text in texts)
    [(opening, count)] = openings.most_common(1)
    return opening, count / len(texts)


def _size(fall: Interval) -> str:
    return f"{-fall.mean:.3f} [{-fall.high:.3f}, {-fall.low:.3f}]"
