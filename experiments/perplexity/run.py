"""Do pairs that a model might have written itself teach it more? Thresholds of the perplexity filter, and chance."""

import random
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lab import Arm, Claim, Experiment  # noqa: E402

QUANTILES = (0.5, 0.8, 0.95)  # the upper bound: as surprising as this share of the model's own samples
ON_NOTES_ALONE, QUICK = 0.8, 0.5
ALONE = ("lower_quantile=null", "balance=null", "length_ratio=null", "min_kept=0.01")  # what else a filter would ask


def at_random(kept: str) -> Callable[[Mapping[str, str], int, Path], None]:
    """As many pairs as a filter kept, of all of them."""

    def make(runs: Mapping[str, str], seed: int, folder: Path) -> None:
        lines = Path(runs["pairs"], "train.jsonl").read_text().splitlines(keepends=True)
        size = len(Path(runs[kept], "train.jsonl").read_text().splitlines())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.jsonl").write_text("".join(random.Random(seed).sample(lines, size)))
        shutil.copy(Path(runs["pairs"], "validation.jsonl"), folder)

    return make


def sets(share: float) -> dict[str, Arm]:
    """What a filter keeps, and as many pairs at random."""
    kept, filter = f"kept_{share}", (f"quantile={share}", *ALONE)
    where = {"tasks": ("notes",) if share == ON_NOTES_ALONE else (), "quick": share == QUICK}
    return {
        kept: Arm(f"kept at {share}", "pairs", changes=[f"preferences.filter.{said}" for said in filter], **where),
        f"random_{share}": Arm(f"at random, as many as at {share}", make=at_random(kept), **where),
    }


def learned_from(pairs: str, stage: str, title: str) -> Arm:
    """DPO or a reward model; held-out pairs are never filtered."""
    columns = ["preferences.chosen=chosen", "preferences.rejected=rejected", "preferences.negatives=null"]
    changes = [f"data.path={{{pairs}}}", "data.eval_split=validation", *columns]
    rows = [] if stage == "reward" else ["evaluation.rows=8"]  # its texts are measured with all others
    made = SETS[pairs]
    quick = stage == "reward" and made.quick and pairs != "pairs"
    return Arm(f"{title}, {made.title}", stage, changes=[*changes, *rows], tasks=made.tasks, quick=quick)


SETS = {"pairs": Arm("all pairs", "pairs", quick=True)}
for share in QUANTILES:
    SETS |= sets(share)
EXPERIMENT = Experiment(
    HERE,
    arms={
        "sft": Arm("SFT", "sft", start=None, quick=True),
        **SETS,
        **{f"reward_{pairs}": learned_from(pairs, "reward", "reward model") for pairs in SETS},
        **{f"dpo_{pairs}": learned_from(pairs, "dpo", "DPO") for pairs in SETS},
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
                f"A reward model of pairs kept at {share} {said} one of as many at random",
                f"reward_kept_{share}",
                f"reward_random_{share}",
                metric=metric,
                main=metric == "accuracy",
                quick=metric == "accuracy" and share == QUICK,
            )
            for said, metric in (
                ("beats", "accuracy"),
                ("beats", "hallucinated"),
                ("beats", "sampled_correlation"),
                ("goes with length more than", "length_correlation"),
            )
            for share in QUANTILES
        ),
    ],
)

if __name__ == "__main__":
    EXPERIMENT.main()
