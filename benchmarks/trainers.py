"""The time and memory of PPO beside GRPO, RLOO and the last PPO of TRL: `python benchmarks/trainers.py [--json FILE]`.

All train the same Llama with random weights, and sample the same number of tokens: no completion may end early. Every
measurement is a process of its own. A round runs all of them in turn; a ratio is the median of those of the rounds, for
the machine may be slower in one round than in the next. Time is that of the CPU, per roll-out, without the first one.
Memory is the peak of the process above its size after the imports; it hardly depends on the number of epochs, so it is
measured with the most only, once, over two roll-outs, in processes that give back at once what is freed. All take one
optimiser step per epoch, with AdamW and a KL penalty of 0.05. The rewards are next to free: a share of even token ids,
for the old trainer as a module without weights, since it takes no functions. It gets an environment of its own, with
the same torch and transformers, which is made in a cache folder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

OLD = "PPO of TRL 1.12"
CRITICS = {
    "PPO": {"critic": "shared"},
    "PPO, joint critic": {"critic": "shared", "critic_detach": False},
    "PPO, copied critic": {"critic": "copy"},
}
METHODS = ["GRPO", "RLOO", *CRITICS, OLD]
TUNINGS, EPOCHS = ["full", "LoRA"], [1, 4]
BARS = [  # method, against, what, tuning: at most so many times as much, with 4 epochs
    ("PPO", "RLOO", "time", "full", 1.05),
    ("PPO", "RLOO", "memory", "full", 1.05),
    ("PPO", "RLOO", "time", "LoRA", 1.05),
    ("PPO", "RLOO", "memory", "LoRA", 1.05),
    ("PPO", "GRPO", "time", "full", 1.2),
    ("PPO", "GRPO", "time", "LoRA", 1.2),
    ("PPO", OLD, "time", "full", 0.75),
    ("PPO", OLD, "memory", "full", 0.75),
]
GROUP = 4  # completions of a prompt, where a method compares them
BETA, RATE = 0.05, 1e-5
OLD_VENV = Path("~/.cache/lastmile_trl/trl-1.12").expanduser()
SAME_PACKAGES = ["torch", "transformers", "accelerate", "peft", "datasets"]  # in the old trainer's environment too
PAD, EOS = 0, 1


@dataclass(frozen=True)
class Work:
    """The model, and how much of what a measurement does with it."""

    vocabulary: int = 2048  # which leaves the output layer 9 % of the weights in use, as in models of several billions
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    prompt: int = 48  # tokens
    completion: int = 48
    batch: int = 8  # completions in a forward pass
    accumulation: int = 2  # batches in a roll-out, and in an optimiser step
    rollouts: int = 4  # the first is not timed

    @property
    def completions(self) -> int:
        """In a roll-out."""
        return self.batch * self.accumulation

    @property
    def prompts(self) -> int:
        """More than are used, as the old trainer accumulates no gradients in the last roll-out of an epoch."""
        return self.completions * (self.rollouts + 1)


QUICK = Work(vocabulary=128, hidden=32, layers=1, heads=2, prompt=8, completion=8, batch=4, rollouts=2)


@dataclass(frozen=True)
class Case:
    """One measurement."""

    method: str
    tuning: str
    epochs: int


Figures = dict[Case, float]


# -- What all train on -------------------------------------------------------------------------------------------------


def tokenizer(size: int) -> Any:
    """A tokenizer of so many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{number}": number for number in range(2, size)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def prompts(count: int, length: int, vocabulary: int) -> list[str]:
    """Prompts of that many words of the tokenizer, none like another."""
    return [
        " ".join(f"w{2 + (number * length + word) * 7919 % (vocabulary - 2)}" for word in range(length))
        for number in range(count)
    ]


def save_model(folder: str, work: Work) -> None:
    """Save a model with random weights, which never ends a completion, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=work.vocabulary,
            hidden_size=work.hidden,
            intermediate_size=3 * work.hidden,
            num_hidden_layers=work.layers,
            num_attention_heads=work.heads,
            max_position_embeddings=work.prompt + work.completion,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    model.generation_config.suppress_tokens = [PAD, EOS]
    model.save_pretrained(folder)
    tokenizer(work.vocabulary).save_pretrained(folder)


def arguments(work: Work, folder: str) -> dict[str, Any]:
    """The settings that every trainer takes."""
    return {
        "output_dir": f"{folder}/run",
        "per_device_train_batch_size": work.batch,
        "gradient_accumulation_steps": work.accumulation,
        "learning_rate": RATE,
        "optim": "adamw_torch",
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }


def lora(tuning: str) -> Any:
    from peft import LoraConfig

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM") if tuning == "LoRA" else None


def even_share(completion_ids: list[list[int]], length: int) -> list[float]:
    if any(len(ids) != length for ids in completion_ids):
        raise AssertionError(f"Not all completions have {length} tokens.")
    return [sum(token % 2 == 0 for token in ids) / length for ids in completion_ids]


def trainer_of(case: Case, work: Work, folder: str) -> Any:
    """GRPO, RLOO or our PPO."""
    import trl
    from datasets import Dataset

    settings = {
        **arguments(work, folder),
        "max_steps": work.rollouts * case.epochs,
        "num_iterations": case.epochs,
        "max_completion_length": work.completion,
        "beta": BETA,
    }
    if case.method in CRITICS:
        from lastmile_trl.trainers.ppo import PPOConfig, PPOTrainer

        trainer_class, config = PPOTrainer, PPOConfig(**settings, **CRITICS[case.method])
    else:
        trainer_class = getattr(trl, f"{case.method}Trainer")
        config = getattr(trl, f"{case.method}Config")(**settings, num_generations=GROUP)

    def reward(completion_ids: list[list[int]], **columns: object) -> list[float]:
        return even_share(completion_ids, work.completion)

    return trainer_class(
        model=folder,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts(work.prompts, work.prompt, work.vocabulary)}),
        peft_config=lora(case.tuning),
    )


def old_trainer_of(case: Case, work: Work, folder: str) -> Any:
    """The PPO that TRL had up to 1.12: with a value model of its own."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class EvenShare(torch.nn.Module):
        """What the trainer asks of a reward model: a backbone, whose hidden states here are the rewards, and a head."""

        base_model_prefix = "backbone"

        def backbone(self, input_ids: torch.Tensor, **columns: object) -> SimpleNamespace:
            rewards = even_share(input_ids[:, -work.completion :].tolist(), work.completion)
            return SimpleNamespace(hidden_states=[torch.tensor(rewards).view(-1, 1, 1).expand(*input_ids.shape, 1)])

        def score(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    words = AutoTokenizer.from_pretrained(folder)
    texts = prompts(work.prompts, work.prompt, work.vocabulary)
    config = PPOConfig(
        **arguments(work, folder),
        total_episodes=work.rollouts * work.completions,
        num_ppo_epochs=case.epochs,
        response_length=work.completion,
        local_rollout_forward_batch_size=work.completions,
        kl_coef=BETA,
        num_sample_generations=0,
    )
    return PPOTrainer(
        args=config,
        processing_class=words,
        model=AutoModelForCausalLM.from_pretrained(folder),
        ref_model=None,
        reward_model=EvenShare(),
        value_model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1),
        train_dataset=Dataset.from_dict({"input_ids": words(texts)["input_ids"]}),
        eval_dataset=Dataset.from_dict({"input_ids": []}),
        peft_config=lora(case.tuning),
    )


# -- Measuring ---------------------------------------------------------------------------------------------------------


def peak_megabytes() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(case: Case, work: Work, folder: str) -> dict[str, float]:
    """The time of a roll-out and the peak memory of this process, which must do nothing else."""
    import time

    import trl
    from peft import LoraConfig, get_peft_model  # noqa: F401
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, TrainerCallback  # noqa: F401

    if case.method == OLD:
        from trl.experimental.ppo import PPOTrainer  # noqa: F401
    else:
        from lastmile_trl.trainers.ppo import PPOTrainer  # noqa: F401

        _ = trl.GRPOTrainer, trl.RLOOTrainer
    imported = peak_megabytes()
    marks, steps = [], Counter()

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: object, **keywords: object) -> None:
            marks.append(time.process_time())

    counting = register_optimizer_step_post_hook(lambda optimizer, *_: steps.update([id(optimizer)]))
    trainer = (old_trainer_of if case.method == OLD else trainer_of)(case, work, folder)
    trainer.add_callback(Clock)
    trainer.train()
    counting.remove()
    if max(steps.values()) != work.rollouts * case.epochs:
        raise AssertionError(f"{max(steps.values())} optimiser steps instead of {work.rollouts * case.epochs}.")
    ends = marks[len(marks) // work.rollouts - 1 :: len(marks) // work.rollouts]
    return {"seconds": (ends[-1] - ends[0]) / (work.rollouts - 1), "megabytes": peak_megabytes() - imported}


def in_process(python: str, *words: str, **environment: str) -> str:
    """The last line that this script prints with these words, in a process of its own."""
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([python, __file__, *words], capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def old_python(folder: Path) -> str | None:
    """The Python of an environment with the old trainer; None, with a word why, if it cannot be made."""
    python = folder / "bin" / "python"
    same = [f"{name}=={version(name).partition('+')[0]}" for name in SAME_PACKAGES]
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, text=True)
        install = [python, "-m", "pip", "install", "--quiet", "trl==1.12.*", *same]
        subprocess.run(install, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"{OLD} is left out: {(getattr(error, 'stderr', '') or str(error)).strip()}")
        return None
    return str(python)


def rounds_of(cases: list[Case], work: Work, rounds: int, old: str | None) -> Iterator[tuple[Figures, list[Figures]]]:
    """Yield after each round the peak memory of the cases and their times in the rounds so far."""
    with tempfile.TemporaryDirectory() as folder:
        in_process(sys.executable, "--save", folder, json.dumps(asdict(work)))  # torch would make this process large

        def measured(what: str, cases: list[Case], work: Work, **environment: str) -> Figures:
            figures = {}
            for case in cases:
                words = "--measure", json.dumps(asdict(case)), json.dumps(asdict(work)), folder
                python = old if case.method == OLD else sys.executable
                figures[case] = json.loads(in_process(python, *words, **environment))[what]
                say(f"{case.method:20}{case.tuning:6}{case.epochs} epochs {figures[case]:9.2f} {what}")
            return figures

        most = max(case.epochs for case in cases)
        # What is freed goes back at once: the peak is that of the tensors, the same each time, but all is slower.
        at_most = [case for case in cases if case.epochs == most]
        memory = measured("megabytes", at_most, replace(work, rollouts=2), MALLOC_MMAP_THRESHOLD_="65536")
        times = []
        for _ in range(rounds):
            times.append(measured("seconds", cases, work))
            yield memory, times


def rows_of(memory: Figures, times: list[Figures]) -> list[dict]:
    """The figures of each case, and how they compare to those of the other methods."""
    rows = []
    for case in times[0]:
        seconds = statistics.median(each[case] for each in times)
        row = asdict(case) | {
            "seconds_per_rollout": round(seconds, 3),
            "seconds_per_step": round(seconds / case.epochs, 3),
            "megabytes": round(memory[case]) if case in memory else None,
            "ratios": {},
        }
        for other in ("GRPO", "RLOO", OLD):
            peer = replace(case, method=other)
            if peer in times[0]:
                row["ratios"][other] = {"time": round(statistics.median(each[case] / each[peer] for each in times), 3)}
                if case in memory:
                    row["ratios"][other]["memory"] = round(memory[case] / memory[peer], 3)
        rows.append(row)
    return rows


def bars_of(rows: list[dict]) -> list[dict]:
    """What must hold with the most epochs measured, and whether it does; what was not measured is left out."""
    found = {(row["method"], row["tuning"]): row for row in rows if row["epochs"] == max(r["epochs"] for r in rows)}
    return [
        {"method": method, "against": other, "what": what, "tuning": tuning, "most": most, "ratio": ratio}
        | {"holds": ratio <= most}
        for method, other, what, tuning, most in BARS
        if (method, tuning) in found and other in found[method, tuning]["ratios"]
        for ratio in [found[method, tuning]["ratios"][other][what]]
    ]


def markdown(results: dict) -> str:
    """The figures as tables."""
    lines = [
        "| tuning, epochs | method | s per roll-out | s per step | peak MB | time / RLOO | memory / RLOO "
        "| time / TRL 1.12 | memory / TRL 1.12 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        ratios = [
            f"{row['ratios'][other][what]:.2f}" if what in row["ratios"].get(other, ()) else ""
            for other, what in product(("RLOO", OLD), ("time", "memory"))
        ]
        cells = [f"{row['tuning']}, {row['epochs']}", row["method"], f"{row['seconds_per_rollout']:.2f}"]
        cells += [f"{row['seconds_per_step']:.2f}", str(row["megabytes"] or ""), *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| bar | at most | measured | |", "|---|--:|--:|---|"]
    for bar in results["bars"]:
        name = f"{bar['what']} of {bar['method']} / {bar['against']}, {bar['tuning']}"
        verdict = "holds" if bar["holds"] else "**missed**"
        lines.append(f"| {name} | {bar['most']:.2f} | {bar['ratio']:.2f} | {verdict} |")
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of next to no work, to see that all runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=TUNINGS)
    parser.add_argument("--epochs", nargs="+", type=int, default=EPOCHS)
    parser.add_argument(
        "--old-venv",
        type=Path,
        metavar="DIR",
        default=OLD_VENV,
        help="the old trainer's environment, made if need be (default: %(default)s)",
    )
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--save", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save:
        return save_model(options.save[0], Work(**json.loads(options.save[1])))
    if options.measure:
        case, work, folder = options.measure
        return say(json.dumps(measure(Case(**json.loads(case)), Work(**json.loads(work)), folder)))

    from rewards import environment, store

    old = old_python(options.old_venv) if OLD in options.methods else None
    methods = [method for method in METHODS if method in options.methods and (method != OLD or old)]
    cases = [Case(method, *rest) for *rest, method in product(options.tunings, options.epochs, methods)]
    work, rounds = (QUICK, 1) if options.quick else (Work(), options.rounds)
    about = {**environment(["lastmile-trl", "trl", *SAME_PACKAGES]), "work": asdict(work)}
    for memory, times in rounds_of(cases, work, rounds, old):
        rows = rows_of(memory, times)
        results = {**about, "rounds": len(times), "rows": rows, "bars": bars_of(rows)}
        if options.json:  # after every round, as the next one takes minutes
            store(results, options.json)
    say("\n" + markdown(results))


if __name__ == "__main__":
    main()
