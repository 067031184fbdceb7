"""What an evaluation must reach, as in `lastmile evaluate ... --require "rougeL>=0.3"`."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lastmile_trl.errors import InputError, unknown
from lastmile_trl.evaluation.comparison import by_decoding, label, why_no_value

SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
WORDS = re.compile(
    r"(?:(?P<run>[^:<>=]+):)?(?P<metric>[^:<>=]+?)\s*(?P<sign>[<>]=?)\s*(?P<bound>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Requirement:
    """A bound on a metric of the last run, or of whatever a table shows: of greedy outputs, where it has them."""

    said: str
    metric: str
    sign: str
    bound: float
    run: str | None = None

    @classmethod
    def read(cls, said: str) -> Requirement:
        """Return what a word of the command line requires.

        >>> found = Requirement.read("grpo:rougeL >= .3")
        >>> found.run, found.metric, found.sign, found.bound
        ('grpo', 'rougeL', '>=', 0.3)
        """
        found = WORDS.fullmatch(said.strip())
        if found is None:
            raise InputError(f"--require {said!r} is no requirement: write METRIC>=NUMBER, or RUN:METRIC<NUMBER.")
        return cls(said, found["metric"].strip(), found["sign"], float(found["bound"]), found["run"])

    def among(self, runs: Sequence[str], metrics: Collection[str]) -> Requirement:
        """Return the same with the full names of its run, one of `runs`, and its metric, which may be its last part.

        `runs` are all that the tables show, the last run last.
        """
        if self.run is not None and self.run not in runs:
            raise unknown(f"--require {self.said!r}: run", self.run, runs)
        meant = [name for name in metrics if self.metric in (name, name.split("/")[-1])]
        if self.metric in metrics:
            meant = [self.metric]
        if not meant:
            raise unknown(f"--require {self.said!r}: metric", self.metric, metrics)
        if len(meant) > 1:
            raise InputError(f"--require {self.said!r}: {self.metric} may be {' or '.join(meant)}: say which.")
        return replace(self, run=self.run or runs[-1], metric=meant[0])

    def failure(self, result: Mapping[str, Any]) -> str | None:
        """Return why the comparison `result` does not meet it, in a sentence; None if it does."""
        shown = (entry for entries in by_decoding(result).values() for entry in entries)
        entry = next(entry for entry in shown if label(entry) == self.run)
        found = entry["metrics"][self.metric]
        if found is None:
            reason = why_no_value(entry, self.metric)
            return f"--require {self.said!r} fails: {self.run} has no value of {self.metric}: {reason}."
        if SIGNS[self.sign](found["mean"], self.bound):
            return None
        return (
            f"--require {self.said!r} fails: {self.run} has {self.metric} {found['mean']:.4g} "
            f"[{found['low']:.4g}, {found['high']:.4g}] over {found['rows']} rows."
        )
