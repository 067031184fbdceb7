"""The rewards' documentation, made from their docstrings: what `lastmile rewards` and docs/rewards.md say."""

import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

from lastmile_trl.errors import unknown
from lastmile_trl.rewards import REGISTRY

PARTS = ("Formula", "Range", "Use", "How it is gamed", "Pair it with", "Arguments")

HEAD = """\
# Rewards

Each reward is one object with three uses: listed under `rewards:` in a recipe it is what training maximises, listed
under `evaluation.metrics:` it is a metric, and in Python it is a function:

```python
from lastmile_trl import rewards

chosen = rewards.build(["rouge", {"length": {"weight": 0.2}}])
rewards.score(chosen, [{"prediction": "the cat sat", "references": ["the cat sat down"]}])
chosen[0](completions=["the cat sat"], references=["the cat sat down"])  # as a TRL trainer calls it
```

In a script of your own, they are reward functions of any TRL trainer; weights go to its config:

```python
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

train = Dataset.from_list([{"prompt": "Shorten: a cat sat down on it", "references": ["a cat sat"]}])
task = rewards.Task({name: train[name] for name in train.column_names})
chosen = rewards.prepare(chosen, task)  # for those that look at all rows first, such as cider and slots
trainer = GRPOTrainer(
    model="Qwen/Qwen2.5-0.5B-Instruct",
    args=GRPOConfig(reward_weights=[reward.weight for reward in chosen]),
    reward_funcs=chosen,
    train_dataset=train,
)
```

Higher is always better, so penalties are at most 0. `None` means that a row cannot be scored; TRL leaves it out of that
reward's mean, and in the total it counts 0. Of several references the best counts, unless a reward says otherwise.

`lastmile rewards` prints this list, `lastmile rewards NAME` one entry, `lastmile score FILE --reward NAME` the values
for a file, and `lastmile check RECIPE` what the recipe's rewards say about texts whose worth is known: the references,
those of other rows, an empty text, the reference three times, a copy of the prompt.

TABLE

## Combining rewards

```yaml
rewards:
  - format: {json_schema: schema.json, gate: 1}     # what does not hold the format counts nothing
  - rouge: {variant: rougeL, weight: 1.0}
  - rouge: {variant: rouge2, weight: 0.5}           # another variant, another name: rouge/rouge2
  - cider: {clip: [0, 0.5], scale: 2}               # first limited, then multiplied
  - repetition: {n: 4, name: repeated_4grams, weight: 0.5}
```

Every reward takes these arguments beside its own:

- `weight` (1): what it is multiplied with in the total. It is logged without.
- `clip`: `[low, high]`, the limits of its values.
- `scale` (1): its values are multiplied with this after `clip`, and logged so.
- `gate`: where the reward's own value is below this number, every reward that is no gate is 0 for that completion.
  Before that, each is logged by itself as `rewards/<name>/before_gates`. What a gate cannot score passes it. A gate
  counts in the total too: give it at least the weight of the penalties beside it, or a failed gate would be a way
  around them.
- `name`: what it is called in logs, tables and overrides.

What works in practice: one measure of quality against the references; a penalty for each way in which it is gamed
(the entries say which); gates for what must hold; at least one metric in `evaluation.metrics` that is *not* rewarded,
because only that can show that a reward is being gamed. While a run trains with `evaluation.every`, such metrics are
watched: when the rewards rise and one of these falls, when lengths or repetition drift, when outputs cease to end or
begin alike, the run says so on the screen, in `history.jsonl` (`eval_alarms`) and in its report.

## Your own

Any callable in TRL's protocol, named as `package.module:attribute`; the folder you work in is on the path.

```python
# my_rewards.py
from lastmile_trl.rewards import completion_text  # a completion is a text, or in a chat a list of messages


def polite(completions, **columns):
    return [float("please" in completion_text(completion)) for completion in completions]


class Mentions:
    def __init__(self, column="keywords"):
        self.column, self.needs = column, (column,)  # `lastmile check` looks for the columns a reward needs

    def __call__(self, completions, **columns):
        return [
            sum(word in completion_text(completion) for word in words) / len(words) if words else None
            for completion, words in zip(completions, columns[self.column])
        ]
```

```yaml
rewards:
  - my_rewards:polite: {weight: 0.1}
  - my_rewards:Mentions: {column: tags}
```

A function or class gets the columns of the data set by name, and `prompts`, `completions` and `completion_ids`. Chat
prompts and completions are lists of messages. What raises, or returns NaN or the wrong count, stops the run within the
step and names the reward and the row. A class with a method `for_task(task)` may look at the columns of the whole
training set once, before training (`task.columns`), and returns the reward to use.
"""


@dataclass(frozen=True)
class Description:
    """A reward's docstring by its parts."""

    name: str
    summary: str
    parts: dict[str, str]
    arguments: dict[str, str]
    remark: str
    example: str

    def text(self) -> str:
        """The reward as it is shown on the screen."""
        parts = [f"{part}: {text}" for part, text in self.parts.items()]
        arguments = [f"    {name}: {text}" for name, text in self.arguments.items()] or ["    none"]
        remark = [self.remark] if self.remark else []
        return "\n\n".join(
            [self.name, self.summary, *parts, "\n".join(["Arguments:", *arguments]), *remark, self.example]
        )

    def markdown(self) -> str:
        """The reward as a section of a page."""
        lines = [f"## `{self.name}`", "", self.summary, ""]
        lines += [f"- **{part}**: {_one_item(text)}" for part, text in self.parts.items()]
        if self.arguments:
            lines += ["- **Arguments**:", *(f"  - `{name}`: {text}" for name, text in self.arguments.items())]
        lines += ["", self.remark] if self.remark else []
        return "\n".join([*lines, "", "```python", self.example, "```", ""])


def describe(name: str) -> Description:
    """Read a reward's docstring.

    >>> describe("repetition").parts["Range"].split(";")[0]
    '(-1, 0]'
    """
    if name not in REGISTRY:
        raise unknown("Reward", name, REGISTRY)
    module, _, attribute = REGISTRY[name].partition(":")
    reward = getattr(importlib.import_module(module), attribute)
    text, arrow, example = inspect.getdoc(reward).partition(">>>")
    labels = "|".join(map(re.escape, PARTS))
    summary, *rest = re.split(rf"^({labels}):", text, flags=re.MULTILINE)
    parts = {label: body.strip() for label, body in zip(rest[::2], rest[1::2], strict=True)}
    listed, _, remark = parts.pop("Arguments").partition("\n\n")
    arguments = _arguments(listed, inspect.signature(reward))
    return Description(name, summary.strip(), parts, arguments, remark.strip(), arrow + example.rstrip())


def _arguments(text: str, signature: inspect.Signature) -> dict[str, str]:
    """What each argument means, with its default."""
    entries = re.findall(r"^ *(\w+): (.*(?:\n(?! *\w+: ).*)*)", text, flags=re.MULTILINE)
    return {name: f"{_joined(meaning)}{_default(signature.parameters[name].default)}" for name, meaning in entries}


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return " Required."
    if isinstance(value, bool):
        return f" Default: `{str(value).lower()}`."
    return "" if value in (None, (), "") else f" Default: `{value}`."


def _joined(text: str) -> str:
    return " ".join(text.split())


def _one_item(text: str) -> str:
    """The text as one item of a list: its further lines are indented below the first."""
    lines = text.splitlines()
    return "\n".join(
        f"    {line.strip()}" if number and line.strip() else line.strip() for number, line in enumerate(lines)
    )


def overview() -> list[tuple[str, str, str]]:
    """Each reward's name, first sentence and range."""
    described = map(describe, REGISTRY)
    return [(one.name, _first(one.summary), _first(one.parts["Range"])) for one in described]


def _first(text: str) -> str:
    """The first sentence, without its full stop; one within brackets ends none."""
    return re.split(r"(?<=\.)\s(?![^\[(]*[\])])", _joined(text), maxsplit=1)[0].rstrip(".")


def page() -> str:
    """The whole page, as Markdown."""
    rows = [f"| [`{name}`](#{name}) | {what} | {range} |" for name, what, range in overview()]
    table = "\n".join(["| reward | what it is | range |", "| --- | --- | --- |", *rows])
    return "\n".join([HEAD.replace("TABLE", table), *(describe(name).markdown() for name in REGISTRY)])
