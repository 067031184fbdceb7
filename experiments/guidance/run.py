"""Does a guide help? PPO, PPO with the supervised anchor and the five guided modes at shares of guided roll-outs."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lab import Arm, Claim, Experiment  # noqa: E402

MODES = {"ppo++": "PPO++", "drpo": "DR-PO", "aggrevated": "AggreVaTeD", "lols": "LOLS", "d2lols": "D2LOLS"}
SHARES = (0.3, 0.8)  # of the roll-outs of a batch that are guided, until half-way; from there it falls to none
QUICK = "drpo_0.8"


def guided(mode: str, share: float) -> Arm:
    """PPO with the SFT model as guide; DR-PO's are the references."""
    guide = [] if mode == "drpo" else ["guidance.guide={sft}"]
    changes = [f"guidance.mode={mode}", f"guidance.probability={share}", *guide]
    tasks = ("notes",) if share == SHARES[0] else ()
    return Arm(f"{MODES[mode]}, {share}", "guided", changes=changes, tasks=tasks, quick=f"{mode}_{share}" == QUICK)


NOT_GUIDED = ["guidance.mode=drpo", "guidance.probability=0", "guidance.anchor=0.1"]
EXPERIMENT = Experiment(
    HERE,
    arms={
        "sft": Arm("SFT", "sft", start=None, quick=True),
        "sft_more": Arm("SFT that goes on", "sft_more"),
        "ppo_100": Arm("PPO", "guided", quick=True),
        "anchor": Arm("PPO, anchor 0.1", "guided", changes=NOT_GUIDED),
        **{f"{mode}_{share}": guided(mode, share) for mode in MODES for share in SHARES},
    },
    tasks=("notes", "e2e"),
    base="ppo_100",
    claims=[
        *(
            Claim(
                f"{said}, {share} of the roll-outs guided, beats PPO alone",
                f"{mode}_{share}",
                "ppo_100",
                decoding=decoding,
                main=(share, decoding) == (SHARES[1], "greedy"),
                quick=f"{mode}_{share}" == QUICK and decoding == "sampled",
            )
            for decoding in ("greedy", "sampled")
            for share in reversed(SHARES)
            for mode, said in MODES.items()
        ),
        *(
            Claim(
                f"{said} does better with {SHARES[0]} guided than with {SHARES[1]}",
                f"{mode}_{SHARES[0]}",
                f"{mode}_{SHARES[1]}",
                decoding="sampled",
            )
            for mode, said in MODES.items()
        ),
        Claim("The anchor keeps more facts than PPO alone", "anchor", "ppo_100", metric="facts"),
        Claim("The anchor beats PPO alone", "anchor", "ppo_100"),
        Claim("PPO beats SFT", "ppo_100", "sft"),
        Claim("PPO beats SFT that goes on", "ppo_100", "sft_more"),
        Claim("SFT that goes on keeps more facts than PPO", "sft_more", "ppo_100", metric="facts"),
        Claim("SFT that goes on keeps more facts than PPO with the anchor", "sft_more", "anchor", metric="facts"),
    ],
)

if __name__ == "__main__":
    EXPERIMENT.main()
