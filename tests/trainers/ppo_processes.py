"""One process of a PPO run: `torchrun ppo_processes.py SETTINGS.json`; leaves what it ends with in its folder."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from ppo_fixture import logged, low_share, scripted
from transformers import AutoTokenizer

from lastmile_trl.trainers.ppo import PPOTrainer
from lastmile_trl.trainers.ppo_config import PPOConfig


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    fsdp, deepspeed = (f"ACCELERATE_USE_{name}" in os.environ for name in ("FSDP", "DEEPSPEED"))
    sharded = fsdp or deepspeed
    state = PartialState(backend="gloo") if deepspeed else PartialState(cpu=True)
    args = PPOConfig(**given["settings"], **({"ddp_backend": "gloo"} if deepspeed else {"use_cpu": True}))
    if fsdp:  # which accelerate offers to accelerators only; PyTorch does it on CPUs as well
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    peft = None
    if given["adapter"]:
        from peft import LoraConfig

        peft = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = PPOTrainer(
        model=given["model"],
        reward_funcs=low_share,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": given["prompts"]}),
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
        peft_config=peft,
        rollout_func=scripted(True) if given["scripted"] else None,
    )
    trainer.train(resume_from_checkpoint=given.get("resume"))
    out = Path(given["out"])
    if not sharded:
        torch.save(trainer.model.state_dict(), out / f"policy{state.process_index}.pt")
    trainer.save_model(str(out / "saved"))
    torch.save(trainer.critic.state_dict(), out / f"critic{state.process_index}.pt")
    names = ("reward", "value/loss", "value/explained_variance", "approx_kl", "ratio", "updates_left_out", "loss")
    numbers = {name: logged(trainer, name) for name in names}
    found = {"distributed": str(trainer.accelerator.distributed_type), "numbers": numbers}
    (out / f"found{state.process_index}.json").write_text(json.dumps(found))
    state.wait_for_everyone()  # a process that leaves first may abort the others
    state.destroy_process_group()


if __name__ == "__main__":
    main()
