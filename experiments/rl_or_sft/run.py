"""Does RL raw beat SFT raw, and how much of that does post-processing give? `... run.py notes 0 1 2`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lab import Arm, Claim, Experiment  # noqa: E402

LEARNED = "rewards.model.model={reward}"
WITH_PAIRS = ("notes", "e2e")
EXPERIMENT = Experiment(
    HERE,
    arms={
        "sft": Arm("SFT", "sft", start=None, quick=True),
        "grpo": Arm("GRPO", "grpo", quick=True),
        "rloo": Arm("RLOO", "grpo", changes=["method=rloo"]),
        "grpo_twice": Arm("GRPO, twice the optimiser steps", "grpo_twice"),
        "grpo_facts": Arm("GRPO, facts rewarded too", "grpo_facts", tasks=("e2e",)),
        "ppo": Arm("PPO", "ppo"),
        "reward": Arm("the reward model", "reward", tasks=WITH_PAIRS),
        "ppo_learned": Arm("PPO, learned reward, length penalty", "ppo_learned", changes=[LEARNED], tasks=WITH_PAIRS),
        "ppo_learned_alone": Arm(
            "PPO, learned reward alone",
            "ppo_learned",
            changes=[LEARNED, "rewards.length.weight=0"],
            tasks=WITH_PAIRS,
        ),
        "dpo": Arm("DPO on the reward model's pairs", "dpo", tasks=WITH_PAIRS),
    },
    temperatures=(0.5,),
    beside={
        "sft at 0.5": "SFT, temperature 0.5",
        "sft, post-processed": "SFT, post-processed",
        "best_of_8": "SFT, best of 8 by the reward model",
        "oracle_best_of_8": "SFT, best of 8 by ROUGE-L with the references",
    },
    baselines=[
        "{best_of_n: {n: 8, rewards: [{model: {model: {reward}}}]}}",
        "{best_of_n: {n: 8, rewards: [{rouge: {variant: rougeL}}]}}",
    ],
    tasks=("notes", "e2e", "commongen"),
    claims=[
        Claim("GRPO raw beats SFT raw", "grpo", "sft", main=True, quick=True),
        Claim("GRPO raw beats SFT post-processed", "grpo", "sft, post-processed", main=True, quick=True),
        Claim("PPO with a learned reward and a length penalty beats SFT", "ppo_learned", "sft", main=True),
        Claim("GRPO raw beats SFT raw", "grpo", "sft", decoding="sampled", quick=True),
        *(
            Claim(f"{said} raw beats SFT raw", arm, "sft", decoding=decoding)
            for arm, said in (("rloo", "RLOO"), ("ppo", "PPO"))
            for decoding in ("greedy", "sampled")
        ),
        Claim("GRPO's samples beat SFT's greedy outputs", "grpo", "sft", decoding="sampled", against="greedy"),
        Claim("GRPO's samples beat SFT's at a temperature of 0.5", "grpo", "sft at 0.5", decoding="sampled"),
        Claim("SFT's samples at a temperature of 0.5 beat those at 1", "sft at 0.5", "sft", decoding="sampled"),
        Claim(
            "SFT's samples at 0.5 have more facts right than GRPO's",
            "sft at 0.5",
            "grpo",
            metric="facts",
            decoding="sampled",
        ),
        *(
            Claim("GRPO comes nearer to the clean summaries", "grpo", "sft", "rouge_clean", decoding)
            for decoding in ("greedy", "sampled")
        ),
        Claim(
            "GRPO's samples come nearer to the clean summaries than SFT's at 0.5",
            "grpo",
            "sft at 0.5",
            "rouge_clean",
            "sampled",
        ),
        Claim("GRPO beats SFT in facts, which nobody rewards", "grpo", "sft", metric="facts"),
        Claim("GRPO beats SFT in facts, which nobody rewards", "grpo", "sft", metric="facts", decoding="sampled"),
        *(
            Claim(f"GRPO with facts rewarded beats {said}", "grpo_facts", rival, metric, decoding)
            for said, rival, metric in (
                ("GRPO without in facts", "grpo", "facts"),
                ("GRPO without", "grpo", ""),
                ("SFT in facts", "sft", "facts"),
                ("SFT", "sft", ""),
            )
            for decoding in ("greedy", "sampled")
        ),
        Claim("Post-processing improves SFT", "sft, post-processed", "sft", quick=True),
        Claim("Post-processing improves SFT", "sft, post-processed", "sft", decoding="sampled"),
        Claim("Post-processing closes more than half of the way to GRPO", "sft, post-processed", ("sft", "grpo")),
        Claim("GRPO raw beats SFT post-processed", "grpo", "sft, post-processed", decoding="sampled"),
        Claim("The best of 8 by a learned reward beats one sample of SFT", "best_of_8", "sft", decoding="sampled"),
        Claim("SFT decoded greedily beats that best of 8", "sft", "best_of_8", against="sampled"),
        Claim("GRPO beats that best of 8", "grpo", "best_of_8", decoding="sampled"),
        Claim("PPO with a learned reward beats SFT", "ppo_learned", "sft", decoding="sampled"),
        Claim("SFT keeps more facts than PPO with a learned reward", "sft", "ppo_learned", metric="facts"),
        Claim("The length penalty helps a learned reward", "ppo_learned", "ppo_learned_alone"),
        Claim("The length penalty helps a learned reward", "ppo_learned", "ppo_learned_alone", decoding="sampled"),
        Claim("DPO on the same pairs beats SFT", "dpo", "sft"),
        Claim("DPO on the same pairs beats SFT", "dpo", "sft", decoding="sampled"),
        Claim("SFT's samples at 0.5 beat DPO's", "sft at 0.5", "dpo", decoding="sampled"),
        *(
            Claim(said, "ppo", rival, decoding=decoding)
            for said, rival in (
                ("PPO, with twice the optimiser steps, beats GRPO", "grpo"),
                ("PPO beats GRPO that learns from each completion as often", "grpo_twice"),
            )
            for decoding in ("greedy", "sampled")
        ),
        Claim(
            "GRPO that learns from each completion as often keeps more facts than PPO",
            "grpo_twice",
            "ppo",
            metric="facts",
        ),
        Claim("RLOO beats GRPO", "rloo", "grpo", decoding="sampled"),
    ],
)

if __name__ == "__main__":
    EXPERIMENT.main()
