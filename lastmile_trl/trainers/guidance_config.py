"""The settings of guidance."""

import random
from dataclasses import dataclass, field

MODES = ("ppo++", "drpo", "aggrevated", "lols", "d2lols")
ROLLS_OUT = ("aggrevated", "lols", "d2lols")  # modes in which the guide goes on from what the learner wrote
ALONE, ROLL_IN, ROLL_OUT = "alone", "roll_in", "roll_out"


@dataclass
class Draw:
    """What chance says of one prefix: who writes what, where the change is, and which reference is taken."""

    part: str  # the guide's: none (ALONE), the beginning (ROLL_IN) or the end (ROLL_OUT)
    position: float
    reference: float

    def switch(self, length: int) -> int:
        """After how many tokens of a text of this length the other goes on: from 1 to length - 1 alike, 0 if too short.

        >>> Draw(ROLL_IN, 0.0, 0.0).switch(5), Draw(ROLL_IN, 0.99, 0.0).switch(5), Draw(ROLL_IN, 0.5, 0.0).switch(1)
        (1, 4, 0)
        """
        return 1 + int(self.position * (length - 1)) if self.part != ALONE and length > 1 else 0


@dataclass
class GuidanceConfig:
    """How a guide takes part in roll-outs (Chang et al. 2023).

    >>> guidance = GuidanceConfig(mode="drpo", probability=0.8)
    >>> guidance.guide, guidance.probability_at(0.5), guidance.probability_at(0.75), guidance.probability_at(1.0)
    ('references', 0.8, 0.4, 0.0)
    """

    mode: str = field(
        metadata={
            "choices": ["ppo++", "drpo", "aggrevated", "lols", "d2lols"],
            "help": "ppo++: the guide begins, the learner goes on. drpo: the same, with references as the guide. "
            "aggrevated: the learner begins, the guide goes on. lols: each roll-out is one or the other, by chance. "
            "d2lols: first aggrevated, then ppo++.",
        }
    )
    guide: str | dict | None = field(
        default=None,
        metadata={
            "help": "references; base: the policy as it was (adapter off, or TRL's frozen copy); a model or adapter; "
            "package.module:function of (prompts, prefixes); or {endpoint: url, model: name, ...}."
        },
    )
    probability: float = field(default=0.8, metadata={"help": "That a roll-out is guided; the others are as ever."})
    anneal: list | None = field(
        default_factory=lambda: [0.5, 1.0],
        metadata={
            "help": "Shares of training between which the probability falls to 0, as it is in the end. None keeps it."
        },
    )
    mixture: float | None = field(
        default=None, metadata={"help": "lols: the probability that a roll-out is ppo++. Default: 0.8."}
    )
    switch: float | None = field(
        default=None, metadata={"help": "d2lols: the share of training after which it is ppo++. Default: 0.2."}
    )
    span: int | None = field(
        default=None,
        metadata={
            "help": "aggrevated: how many tokens before the guide goes on are trained. Default: 1 where a group shares "
            "its prefix, else all that the learner wrote."
        },
    )
    prefix_per: str | None = field(
        default=None,
        metadata={
            "choices": ["group", "completion"],
            "help": "Whether the completions of a prompt share one prefix, as a group's mean needs it. Default: "
            "completion with a critic, else group.",
        },
    )
    sampling: dict | None = field(
        default=None,
        metadata={"help": "temperature, top_p, top_k, min_p of the guide. Default: {top_p: 0.92}."},
    )
    anchor: float = field(
        default=0.0, metadata={"help": "Weight of the references' negative log-likelihood, beside the policy's loss."}
    )

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}.")
        if self.mode == "drpo":
            self.guide = self.guide or "references"
            if self.guide != "references":
                raise ValueError(f"mode drpo begins with references, not with {self.guide!r}: that is mode ppo++.")
        elif self.guide is None:
            raise ValueError(f"mode {self.mode} needs a guide: base, a model, package.module:function, or an endpoint.")
        elif self.guide == "references":
            other = "that is mode drpo" if self.mode == "ppo++" else "they cannot go on from what the learner wrote"
            raise ValueError(f"mode {self.mode} does not take references as its guide: {other}.")
        for name, modes in {"mixture": ("lols",), "switch": ("d2lols",), "span": ROLLS_OUT}.items():
            if getattr(self, name) is not None and self.mode not in modes:
                raise ValueError(f"{name} is for mode {', '.join(modes)}, not {self.mode}: leave it out.")
        self.mixture = 0.8 if self.mixture is None and self.mode == "lols" else self.mixture
        self.switch = 0.2 if self.switch is None and self.mode == "d2lols" else self.switch
        for name in ("probability", "mixture", "switch"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)!r}.")
        self._check_anneal()
        if self.span is not None and self.span < 1:
            raise ValueError(f"span must be at least 1, not {self.span!r}.")
        if self.prefix_per not in (None, "group", "completion"):
            raise ValueError(f"prefix_per must be group or completion, not {self.prefix_per!r}.")
        if self.anchor < 0:
            raise ValueError(f"anchor must be at least 0, not {self.anchor!r}.")
        self._check_sampling()

    def _check_anneal(self) -> None:
        if self.anneal is None:
            return
        ends = self.anneal
        numbers = len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends)
        if not numbers or not 0 <= ends[0] <= ends[1] <= 1:
            raise ValueError(f"anneal must be two shares of training such as [0.5, 1.0], or null, not {ends!r}.")

    def _check_sampling(self) -> None:
        writes = self.guide == "base" or isinstance(self.guide, dict) or ":" not in self.guide
        if self.sampling is None:
            self.sampling = {"top_p": 0.92} if writes and self.guide != "references" else {}
        elif not writes or self.guide == "references":
            raise ValueError(f"sampling has no effect on the guide {self.guide!r}: leave it out.")
        greedy = isinstance(self.guide, dict)  # a server may know temperature 0
        right = {
            "temperature": (lambda value: value > 0 or greedy and value == 0, "above 0 (for the likeliest, top_k: 1)"),
            "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
            "top_k": (lambda value: value >= 0 and value == int(value), "a whole number, 0 for all"),
            "min_p": (lambda value: 0 <= value <= 1, "between 0 and 1"),
        }
        for name, value in self.sampling.items():
            if name not in right:
                raise ValueError(f"sampling takes {', '.join(right)}, not {name!r}.")
            allowed, said = right[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not allowed(value):
                raise ValueError(f"sampling.{name} must be {said}, not {value!r}.")

    @property
    def rolls_out(self) -> bool:
        """Whether the guide ever goes on from what the learner wrote."""
        return self.mode in ROLLS_OUT

    def probability_at(self, done: float) -> float:
        """The probability of a guided roll-out after this share of training."""
        if self.anneal is None:
            return self.probability
        start, end = self.anneal
        left = (end - done) / (end - start) if end > start else float(done < end)
        return self.probability * min(1.0, max(0.0, left))

    def part_at(self, seed: int, step: str, done: float) -> str:
        """Which part the guide has in a roll-out, where it is guided."""
        if self.mode == "lols":
            return ROLL_IN if random.Random(f"{seed}/{step}").random() < self.mixture else ROLL_OUT
        rolls_out = self.mode == "aggrevated" or self.mode == "d2lols" and done < self.switch
        return ROLL_OUT if rolls_out else ROLL_IN

    def draw(self, seed: int, step: str, row: int, done: float) -> Draw:
        """What is drawn for one prefix: the same whatever process asks, and whenever."""
        chance = random.Random(f"{seed}/{step}/{row}")
        guided = chance.random() < self.probability_at(done)
        return Draw(self.part_at(seed, step, done) if guided else ALONE, chance.random(), chance.random())
