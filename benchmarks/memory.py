"""The estimate of `lastmile check` beside the memory that training really takes: `python benchmarks/memory.py`.

Every row is a stage of this package on a random model, in a fork of its own on the CPU: the highest size of the
process during two optimiser steps, above its size after the same stage on a tiny model. What is freed goes back to the
system at once (MALLOC_MMAP_THRESHOLD_), so the size follows the tensors. No completion ends early; every fourth prompt
is shorter than the others, so batches are padded. `--only NAME ...` measures some rows anew.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers import EOS, PAD, SAME_PACKAGES, prompts, say, tokenizer

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8192, "hidden_size": 256,
         "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 4,
         "max_position_embeddings": 1024, "tie_word_embeddings": False}  # fmt: skip
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50_257, "n_embd": 256, "n_layer": 6,
        "n_head": 4, "n_positions": 1024}  # fmt: skip
QWEN = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936, "hidden_size": 256,
        "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "max_position_embeddings": 1024, "tie_word_embeddings": True}  # fmt: skip
MODELS = {"llama": LLAMA, "gpt2": GPT2, "qwen": QWEN}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "n_embd": 32,
        "num_key_value_heads": 2, "n_layer": 2, "n_head": 2, "head_dim": 16, "vocab_size": 400}  # fmt: skip
SPECIAL = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD}
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "MALLOC_MMAP_THRESHOLD_": "65536", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
PROMPT = 160  # tokens
STEPS = 2


@dataclass(frozen=True)
class Case:
    """A stage: its model and method, and what of them memory depends on."""

    model: str
    method: str
    adapter: bool = False
    dtype: str = "float32"
    checkpointing: bool = False
    batch: int = 8
    answer: int = 96  # tokens
    accumulation: int = 1
    more: tuple[tuple[str, Any], ...] = ()  # of `training`

    def __str__(self) -> str:
        words = [self.model, self.method, "LoRA" if self.adapter else "full", self.dtype]
        words += ["checkpointing"] * self.checkpointing + [f"{key}={value}" for key, value in self.more]
        return f"{' '.join(words)}, {self.accumulation} x {self.batch} x {PROMPT}+{self.answer}"


KL = (("beta", 0.02),)
CASES = [
    Case("llama", "sft", batch=8),
    Case("llama", "sft", checkpointing=True, batch=16),
    Case("llama", "sft", adapter=True, batch=8),
    Case("llama", "sft", adapter=True, dtype="bfloat16", batch=8),
    Case("gpt2", "sft", batch=8, accumulation=2),
    Case("gpt2", "sft", batch=8, more=(("bf16", True),)),
    Case("qwen", "sft", adapter=True, batch=4),
    Case("qwen", "sft", dtype="bfloat16", checkpointing=True, batch=4),
    Case("llama", "grpo", batch=8, more=KL),
    Case("llama", "grpo", adapter=True, checkpointing=True, batch=16, accumulation=2, more=KL),
    Case("gpt2", "grpo", adapter=True, batch=4),
    Case("gpt2", "grpo", checkpointing=True, batch=4),
    Case("qwen", "grpo", adapter=True, dtype="bfloat16", batch=4, more=KL),
    Case("llama", "grpo", adapter=True, checkpointing=True, batch=2, more=(("steps_per_generation", 48),)),
    Case("qwen", "rloo", batch=4, more=KL),
    Case("llama", "ppo", batch=8),
    Case("llama", "ppo", batch=4, more=(("critic", "copy"),)),
    Case("llama", "ppo", adapter=True, dtype="bfloat16", checkpointing=True, batch=16),
    Case("qwen", "ppo", adapter=True, batch=4),
    Case("llama", "dpo", batch=4),
    Case("gpt2", "reward", batch=4),
]
BY_NAME = {str(case): case for case in CASES}


def config_of(name: str, tiny: bool = False) -> dict[str, Any]:
    """The config.json of a case's model."""
    config = {**MODELS[BY_NAME[name].model], **SPECIAL}
    return {**config, **{key: value for key, value in TINY.items() if key in config}} if tiny else config


def recipe_of(name: str, folder: Path, tiny: bool = False) -> Any:
    """The stage of a case, on the model and the rows in a folder."""
    from lastmile_trl.recipe import METHODS, RL, Recipe
    from lastmile_trl.schema import annotations

    case = BY_NAME[name]
    method, adapter, dtype = case.method, case.adapter, case.dtype
    batch, accumulation = (2, 1) if tiny else (case.batch, case.accumulation)
    training = {
        "output_dir": str(folder / "run"),
        "max_steps": 1 if tiny else STEPS,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_checkpointing": case.checkpointing,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_completion_length": 8 if tiny else case.answer,
        "num_generations": 1 if method == "ppo" else 2,
        "num_iterations": 1,
        "steps_per_generation": accumulation,
        **dict(case.more),
    }
    known = annotations(METHODS[method])
    values = {
        "method": method,
        "model": {"model_name_or_path": str(folder), "dtype": dtype, "use_peft": adapter, "lora_r": 16}
        | ({"lora_target_modules": ["all-linear"]} if adapter else {}),
        "data": {
            "path": str(folder / "rows.jsonl"),
            "prompt": "{prompt}",
            "references": "answer",
            "held_out": 2,
            "max_prompt_tokens": PROMPT,
            "max_reference_tokens": BY_NAME[name].answer,
        },  # fmt: skip
        "training": {key: value for key, value in training.items() if key in known},
        "evaluation": {"metrics": ["length"], "rows": 2},
    }
    if method in RL:
        values["rewards"] = [{"length": {}}]
    if method in ("dpo", "reward"):
        values["preferences"] = {"chosen": "answer", "rejected": "worse"}
    return Recipe(folder / "recipe.yaml", values)


def fill(name: str, folder: Path, tiny: bool) -> None:
    """Write the model, its tokenizer and the rows of a case."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    answer = 8 if tiny else BY_NAME[name].answer
    config, length = config_of(name, tiny), 12 if tiny else PROMPT
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    model.generation_config.suppress_tokens = [PAD, EOS]
    model.save_pretrained(folder)
    words = tokenizer(config["vocab_size"])
    words.save_pretrained(folder)
    count = 2 * STEPS * BY_NAME[name].batch * BY_NAME[name].accumulation + 64
    texts = prompts(count, length, config["vocab_size"])
    answers = prompts(2 * count, answer - 1, config["vocab_size"])
    texts = [" ".join(text.split()[length // 2 if number % 4 == 1 else 0 :]) for number, text in enumerate(texts)]
    rows = [
        {"prompt": prompt, "answer": better, "worse": worse}
        for prompt, better, worse in zip(texts, answers[:count], answers[count:], strict=True)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def imports() -> None:
    """What every case imports."""
    import peft  # noqa: F401
    import trl
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM  # noqa: F401

    from lastmile_trl import train  # noqa: F401
    from lastmile_trl.trainers.ppo import PPOTrainer  # noqa: F401

    _ = trl.SFTTrainer, trl.GRPOTrainer, trl.RLOOTrainer, trl.DPOTrainer, trl.RewardTrainer


def size(what: str) -> int:
    """The size of this process, now (VmRSS) or at its highest (VmHWM), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024


def measure(name: str, folder: Path) -> dict[str, float]:
    import gc

    from lastmile_trl import train

    def trained(tiny: bool) -> None:
        part = folder / ("tiny" if tiny else "model")
        part.mkdir()
        fill(name, part, tiny)
        trainer, *_ = train._build(recipe_of(name, part, tiny))
        trainer.train()

    trained(tiny=True)
    gc.collect()
    before = size("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest size counts from here
    trained(tiny=False)
    return {"measured_gib": round((size("VmHWM") - before) / 2**30, 3), "base_gib": round(before / 2**30, 3)}


def estimated(name: str) -> float:
    """The estimate of a case, in GiB above what a process takes anyhow."""
    from lastmile_trl import memory

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config_of(name)))
        work = memory.work_of(recipe_of(name, Path(folder)), cpu=True)
    # The evaluation after the training is not measured.
    return (max(each.total for each in memory.moments(work) if each.moment != "evaluating") - memory.CPU_BASE) / 2**30


def measured(name: str) -> dict[str, Any]:
    """The measurement in a fork of this process, which has imported everything."""
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w+") as result:
        child = os.fork()
        if not child:
            try:
                json.dump(measure(name, Path(folder)), result)
                result.flush()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{name} failed.")
        return {"name": name, **json.loads(Path(result.name).read_text())}


def write(file: Path, rows: dict[str, dict[str, Any]]) -> None:
    from rewards import environment

    in_order = [rows[name] for name in BY_NAME if name in rows]
    file.write_text(
        json.dumps({**environment(["lastmile-trl", "trl", *SAME_PACKAGES]), "rows": in_order}, indent=2) + "\n"
    )


def markdown(results: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = ["| stage | estimate, GiB | measured | ratio |", "|---|--:|--:|--:|"]
    for row in results["rows"]:
        ratio = row["estimated_gib"] / row["measured_gib"]
        lines.append(f"| {row['name']} | {row['estimated_gib']:.2f} | {row['measured_gib']:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--only", nargs="*", choices=BY_NAME, default=list(BY_NAME), metavar="NAME")
    options = parser.parse_args()
    if not SETTINGS.items() <= os.environ.items():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | SETTINGS)
    imports()
    stored = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    rows = {row["name"]: row for row in stored}
    for name in options.only:
        rows[name] = measured(name)
        say(json.dumps(rows[name]))
        if options.json:  # a long list may be cut short
            write(options.json, rows)
    for name in rows:
        rows[name]["estimated_gib"] = round(estimated(name), 3)
    say("\n" + markdown({"rows": [*rows.values()]}))
    if options.json:
        write(options.json, rows)


if __name__ == "__main__":
    main()
