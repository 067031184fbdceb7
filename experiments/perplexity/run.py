"""Do pairs that a model might have written itself teach it more? Thresholds of the perplexity filter, and chance."""

import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lab import Arm, Claim, Experiment  # noqa: E402

QUANTILES = (0.5, 0.8, 0.95)  # the upper bound: as surprising as this share of the model's own samples
ALONE = ("lower_quantile=null", "balance=null", "length_ratio=null", "min_kept=0.01")  # what else a filter would ask
QUICK = ("kept_0.5", "random_0.5")


def tasks_of(share: float) -> tuple[str, ...]:
    """Those that have the threshold: the middle one is for the work notes alone."""
    return ("notes",) if share == QUANTILES[1] else ()


def at_random(kept: str) -> Callable[[Mapping[str, str], int, Path], None]:
    """As many pairs as a filter kept, of all of them."""

    def make(runs: Mapping[str, str], seed: int, folder: Path) -> None:
        lines = Path(runs["pairs"], "train.jsonl").read_text().splitlines(keepends=True)
        size = len(Path(runs[kept], "train.jsonl").read_text().splitlines())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text("".join(random.Random(seed).sample(lines, size)))
        shutil.copy(Path(runs["pairs"], "validation.jsonl"), folder)

    return make


def learned_from(pairs: str, stage: str, title: str, tasks: Sequence[str]) -> Arm:
    """DPO or a reward model; held-out pairs are never filtered."""
    columns = ["preferences.chosen=chosen", "preferences.rejected=rejected", "preferences.negatives=null"]
    changes = [f"data.path={{{pairs}}}", "data.eval_split=validation", *columns]
    rows = [] if stage == "reward" else ["evaluation.rows=8"]  # its texts are measured with all others
    return Arm(title, stage, changes=[*changes, *rows], quick=stage == "reward" and pairs in QUICK, tasks=tasks)


SETS = {"pairs": ("all pairs", ())}  # name -> what the tables call it, and its tasks
SETS |= {f"kept_{share}": (f"kept at {share}", tasks_of(share)) for share in QUANTILES}
SETS |= {f"random_{share}": (f"at random, as many as at {share}", tasks_of(share)) for share in QUANTILES}
EXPERIMENT = Experiment(
    HERE,
    arms={
        "sft": Arm("SFT", "sft", start=None, quick=True),
        "pairs": Arm("all pairs", "pairs", quick=True),
        **{
            f"kept_{share}": Arm(
                f"kept at {share}",
                "pairs",
                tasks=tasks_of(share),
                changes=[f"preferences.filter.{said}" for said in (f"quantile={share}", *ALONE)],
                quick=f"kept_{share}" in QUICK,
            )
            for share in QUANTILES
        },
        **{
            f"random_{share}": Arm(
                f"at random, as many as at {share}",
                make=at_random(f"kept_{share}"),
                tasks=tasks_of(share),
                quick=f"random_{share}" in QUICK,
            )
            for share in QUANTILES
        },
        **{
            f"reward_{pairs}": learned_from(pairs, "reward", f"reward model, {said[0]}", said[1])
            for pairs, said in SETS.items()
        },
        **{f"dpo_{pairs}": learned_from(pairs, "dpo", f"DPO, {said[0]}", said[1]) for pairs, said in SETS.items()},
    },
    tasks=("notes", "e2e_pref"),
    claims=[
        *(
            Claim(
                f"DPO on pairs kept at {share} beats DPO on as many at random",
                f"dpo_kept_{share}",
                f"dpo_random_{share}",
                metric=metric,
                decoding=decoding,
                main=(metric, decoding) == ("", "greedy"),
            )
            for metric in ("", "facts")
            for decoding in ("greedy", "sampled")
            for share in QUANTILES
        ),
        *(
            Claim(
                f"A reward model of pairs kept at {share} beats one of as many at random",
                f"reward_kept_{share}",
                f"reward_random_{share}",
                metric=metric,
                main=metric == "accuracy",
                quick=metric == "accuracy" and f"kept_{share}" in QUICK,
            )
            for metric in ("accuracy", "sampled_correlation")
            for share in QUANTILES
        ),
    ],
)

if __name__ == "__main__":
    EXPERIMENT.main()
