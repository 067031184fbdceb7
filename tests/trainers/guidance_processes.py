"""One process of guided runs: `torchrun guidance_processes.py SETTINGS.json`; leaves what they wrote in its folder."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from guidance_fixture import Reward, maker_by_sort, taken_apart
from ppo_fixture import logged
from transformers import AutoTokenizer


def run(build, sort: str, kind: str, worthless: bool = False, **settings) -> dict:
    """What each row was in each roll-out, what was logged, and the weights; `worthless` if all rewards are 0."""
    reward = Reward(lambda ids: 0.0) if worthless else Reward()
    trainer, rollouts = build(sort, kind, reward=reward, **settings), []
    kept = trainer._generate_and_score_completions

    def generate(inputs):
        batch = kept(inputs)
        rollouts.append([asdict(taken_apart(trainer, batch, place)) for place in range(len(inputs))])
        return batch

    trainer._generate_and_score_completions = generate
    trainer.train()
    names = ("guidance/probability", "guidance/share", "guidance/prefix_length", "guidance/reward_guided",
             "completions/clipped_ratio", "anchor/loss", "reward")  # fmt: skip
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    return {"rollouts": rollouts, "numbers": {name: logged(trainer, name) for name in names}, "weights": weights}


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    state, folder = PartialState(cpu=True), Path(given["out"])
    build = maker_by_sort(AutoTokenizer.from_pretrained(given["tokenizer"]), folder)
    found = {name: run(build, **settings) for name, settings in given["runs"].items()}
    torch.save(found, folder / f"found{state.process_index}.pt")
    state.wait_for_everyone()  # a process that leaves first may abort the others
    state.destroy_process_group()


if __name__ == "__main__":
    main()
