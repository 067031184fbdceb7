"""Which settings matter: KL, group size, the mix of rewards, the critic, LoRA and 4 bits, each against the default."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lab import Arm, Claim, Experiment  # noqa: E402

ALONE = ["rewards.length.weight=0", "rewards.repetition.weight=0"]
EXPERIMENT = Experiment(
    HERE,
    arms={
        "sft": Arm("SFT", "sft", start=None, quick=True),
        "grpo": Arm("GRPO, as in its recipe", "grpo", quick=True),
        "rouge_alone": Arm("ROUGE-L alone", "grpo", changes=ALONE),
        "recall_alone": Arm(
            "ROUGE-L recall alone", "grpo", changes=["rewards.rouge.measure=recall", *ALONE], quick=True
        ),
        "beta_0.05": Arm("KL coefficient 0.05", "grpo", changes=["training.beta=0.05"]),
        "beta_0.5": Arm("KL coefficient 0.5", "grpo", changes=["training.beta=0.5"]),
        "group_4": Arm("groups of 4", "grpo", changes=["training.num_generations=4"]),
        "group_16": Arm("groups of 16", "grpo", changes=["training.num_generations=16"]),
        "full_3x": Arm("GRPO at three times the rate", "grpo", rate=3),
        "full_10x": Arm("GRPO at ten times the rate", "grpo", rate=10),
        "lora_4": Arm("LoRA, rank 4", "grpo_lora", changes=["model.lora_r=4", "model.lora_alpha=8"]),
        "lora_16": Arm("LoRA, rank 16", "grpo_lora"),
        "lora_16_3x": Arm("LoRA, rank 16, at three times the rate", "grpo_lora", rate=0.3),
        "lora_16_1x": Arm("LoRA, rank 16, at the same rate", "grpo_lora", rate=0.1),
        "lora_16_bf16": Arm("LoRA, rank 16, bf16", "grpo_lora", changes=["model.dtype=bfloat16"]),
        "lora_16_4bit": Arm(
            "LoRA, rank 16, 4 bits", "grpo_lora", changes=["model.dtype=bfloat16", "model.load_in_4bit=true"]
        ),
        "ppo": Arm("PPO, shared critic", "ppo"),
        "ppo_joint": Arm("PPO, joint critic", "ppo", changes=["training.critic_detach=false"]),
        "ppo_copy": Arm("PPO, a critic of its own", "ppo", changes=["training.critic=copy"]),
    },
    base="grpo",
    shown=("sft", "grpo", "rouge_alone", "recall_alone"),
    claims=[
        Claim("ROUGE-L recall alone buys length", "recall_alone", "grpo", metric="length_ratio", quick=True),
        Claim("The mix beats ROUGE-L recall alone", "grpo", "recall_alone", main=True, quick=True),
        Claim("The mix beats ROUGE-L alone", "grpo", "rouge_alone"),
        Claim("The mix beats ROUGE-L alone", "grpo", "rouge_alone", decoding="sampled"),
        Claim("The mix keeps more facts than ROUGE-L alone", "grpo", "rouge_alone", metric="facts"),
        Claim("No KL beats a coefficient of 0.05", "grpo", "beta_0.05", decoding="sampled"),
        Claim("No KL beats a coefficient of 0.5", "grpo", "beta_0.5", decoding="sampled"),
        Claim("A KL coefficient of 0.5 keeps more facts", "beta_0.5", "grpo", metric="facts"),
        Claim("Groups of 8 beat groups of 4", "grpo", "group_4", decoding="sampled"),
        Claim("Groups of 16 beat groups of 8", "group_16", "grpo", decoding="sampled"),
        Claim("LoRA of rank 16, at ten times the rate, beats full fine-tuning", "lora_16", "grpo"),
        Claim("LoRA of rank 16, at ten times the rate, beats full fine-tuning", "lora_16", "grpo", decoding="sampled"),
        *(
            Claim(f"LoRA of rank 16 beats full fine-tuning, both at {said}", lora, full, decoding=decoding)
            for said, lora, full in (
                ("ten times the rate", "lora_16", "full_10x"),
                ("three times the rate", "lora_16_3x", "full_3x"),
                ("the usual rate", "lora_16_1x", "grpo"),
            )
            for decoding in ("greedy", "sampled")
        ),
        *(
            Claim(
                f"LoRA of rank 16 at ten times the rate {said} full fine-tuning at three times",
                "lora_16",
                "full_3x",
                metric,
                decoding,
            )
            for said, metric in (("beats", ""), ("keeps more facts than", "facts"))
            for decoding in ("greedy", "sampled")
        ),
        Claim("LoRA of rank 16 beats rank 4", "lora_16", "lora_4", decoding="sampled"),
        Claim("32-bit weights under LoRA beat bf16", "lora_16", "lora_16_bf16", decoding="sampled"),
        Claim("bf16 weights under LoRA beat 4 bits", "lora_16_bf16", "lora_16_4bit", decoding="sampled"),
        Claim("bf16 weights under LoRA beat 4 bits", "lora_16_bf16", "lora_16_4bit"),
        Claim("32-bit weights under LoRA beat 4 bits", "lora_16", "lora_16_4bit", decoding="sampled"),
        Claim("Groups of 16 keep more facts than groups of 8", "group_16", "grpo", metric="facts", decoding="sampled"),
        Claim("LoRA in 4 bits beats SFT", "lora_16_4bit", "sft", main=True),
        Claim("A critic of its own beats a shared one", "ppo_copy", "ppo"),
        Claim("A critic of its own beats a shared one", "ppo_copy", "ppo", decoding="sampled"),
        Claim("A joint critic beats a detached one", "ppo_joint", "ppo", decoding="sampled"),
    ],
)

if __name__ == "__main__":
    EXPERIMENT.main()
