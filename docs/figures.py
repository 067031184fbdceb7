"""Put what was measured where the pages say it: `python docs/figures.py`.

`<!-- figure NAME -->0.055<!-- end -->` shows as 0.055. NAME is a line of FIGURES, which reads it from a stored result.
A mark on a line of its own holds a table. The heads of recipes have no marks: HEADS is what they say was measured.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT / "benchmarks")]

import pages  # noqa: E402
import quick  # noqa: E402
import significance  # noqa: E402
from lab import Task  # noqa: E402
from tables import span, with_text  # noqa: E402

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("experiments/**/README.md"))]


@cache
def result(pattern: str) -> dict:
    """The stored result that matches, the one with the last date in its name where several do."""
    files = sorted(ROOT.glob(pattern))
    if not files:
        raise SystemExit(f"No stored result is {pattern}: store it, or drop the figures that are read from it.")
    return json.loads(files[-1].read_text(encoding="utf-8"))


def results(pattern: str) -> list[dict]:
    """All stored results that match, by name."""
    return [result(str(file.relative_to(ROOT))) for file in sorted(ROOT.glob(pattern))]


def quickstart_minutes(*stages: str) -> str:
    """What the stages took together, in each of the seeds."""
    seeds = results("experiments/quickstart/results/seed-*.json")
    return span([sum(seed["seconds"][stage] for stage in stages) / 60 for seed in seeds])


def rouge_factors(tokens: int) -> str:
    """How often as fast as rouge_score ours is on texts of that length: all variants, words seen before and not."""
    rows = [row for row in result("benchmarks/results/rewards-*.json")["comparisons"] if row["tokens"] == tokens]
    return span([row[name]["ratio"] for row in rows for name in ("ours", "ours, new stems")])


def differences(name: str, *labels: str, task: str = "notes", metrics: tuple[str, ...] = ()) -> str:
    """Arms of an experiment minus its base, by some metrics of a task, else by its first two."""
    of_task = Task(task)
    columns = [
        (decoding, metric) for metric in metrics or tuple(of_task.shown)[:2] for decoding in ("greedy", "sampled")
    ]
    return "\n" + pages.short_table(quick.experiment(name), of_task, labels, columns)


METHODS = (
    "sft, post-processed",
    "sft at 0.5",
    "best_of_8",
    "grpo",
    "rloo",
    "ppo",
    "ppo_learned",
    "ppo_learned_alone",
    "dpo",
)
SIGNIFICANCE = "benchmarks/results/significance-*.json"

FIGURES = {  # name -> its text
    "quickstart minutes": lambda: quickstart_minutes("sft", "grpo"),
    "rouge factors": lambda: rouge_factors(120),
    "choosing methods": lambda: differences("rl_or_sft", *METHODS),
    "choosing clean": lambda: differences("rl_or_sft", *METHODS, metrics=("rouge_clean",)),
    "choosing methods e2e": lambda: differences("rl_or_sft", *METHODS, task="e2e"),
    "choosing facts": lambda: differences("rl_or_sft", "grpo", "grpo_facts", task="e2e"),
    "choosing rewards": lambda: differences("ablations", "rouge_alone", "recall_alone"),
    "choosing settings": lambda: differences("ablations", "beta_0.05", "beta_0.5", "group_4", "group_16"),
    "choosing weights": lambda: differences(
        "ablations",
        "full_3x",
        "full_10x",
        "lora_4",
        "lora_16_1x",
        "lora_16_3x",
        "lora_16",
        "lora_16_bf16",
        "lora_16_4bit",
    ),
    "choosing critics": lambda: differences("ablations", "ppo", "ppo_joint", "ppo_copy"),
    "choosing guides": lambda: differences("guidance", "sft_more", "anchor", "ppo++_0.3", "aggrevated_0.3", "drpo_0.3"),
    "quick minutes": lambda: f"{result('experiments/results/quick-*.json')['minutes']:.0f}",
    "significance rows": lambda: "\n" + significance.rows_table(result(SIGNIFICANCE)),
    "significance seeds": lambda: "\n" + significance.seeds_table(result(SIGNIFICANCE)),
    "significance trials": lambda: f"{result(SIGNIFICANCE)['trials']:,}",
}
HEADS = {  # recipe -> where and how long it was measured
    "recipes/quickstart/sft.yaml": lambda: f"2 CPU cores with other work, {quickstart_minutes('sft')} minutes.",
    "recipes/quickstart/grpo.yaml": lambda: f"2 CPU cores with other work, {quickstart_minutes('grpo')} minutes.",
}


def filled(page: str) -> str:
    """The page with every figure as it was measured."""
    for name in sorted(set(re.findall(r"<!-- figure (.*?) -->", page))):
        if name not in FIGURES:
            raise SystemExit(f"No figure is called '{name}': docs/figures.py has {', '.join(FIGURES)}.")
        page = with_text(page, f"figure {name}", FIGURES[name]())
    return page


def headed(recipe: str, text: str) -> str:
    """The recipe with what its head says was measured."""
    return re.sub("(?m)(?<=^# Measured on: ).*", lambda _: HEADS[recipe](), text)


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
    for recipe in HEADS:
        text = (ROOT / recipe).read_text(encoding="utf-8")
        (ROOT / recipe).write_text(headed(recipe, text), encoding="utf-8")
