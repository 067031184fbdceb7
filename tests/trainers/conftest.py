"""A PPO trainer of the tiny model, its settings small enough for a second's run."""

from pathlib import Path

import pytest
from ppo_fixture import low_share

from tests.conftest import make_rows


@pytest.fixture
def make_ppo(tmp_path: Path, tiny_model_folder: Path, tokenizer):
    """Builds a PPOTrainer; settings are those of PPOConfig."""
    from datasets import Dataset

    from lastmile_trl.trainers.ppo import PPOTrainer
    from lastmile_trl.trainers.ppo_config import PPOConfig

    def make(reward=low_share, model=None, peft=None, prompts=None, callbacks=None, rollout=None, cls=PPOTrainer,
             config=PPOConfig, eval_rows=0, **settings):  # fmt: skip
        defaults = {
            "output_dir": str(tmp_path / "run"), "max_steps": 2, "per_device_train_batch_size": 8,
            "max_completion_length": 6, "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no",
            "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
            "disable_tqdm": True,
        }  # fmt: skip
        if config is PPOConfig:
            defaults |= {"num_iterations": 1, "beta": 0.0}
        prompts = prompts or [row["source"] + " =>" for row in make_rows(32)]
        return cls(
            model=model or str(tiny_model_folder),
            reward_funcs=reward,
            args=config(**(defaults | settings)),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            eval_dataset=Dataset.from_dict({"prompt": prompts[:eval_rows]}) if eval_rows else None,
            processing_class=tokenizer,
            peft_config=peft,
            callbacks=callbacks,
            rollout_func=rollout,
        )

    return make


@pytest.fixture
def lora():
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
