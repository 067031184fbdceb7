"""Memory and speed of RL with 4-bit weights and LoRA on one GPU: `python benchmarks/gpu.py [--json FILE]`.

The models have the sizes of Llama 3.2 1B and Llama 3.1 8B and random weights, so nothing is downloaded, and are made
on the GPU one matrix at a time, so no more host memory is needed than for the imports. Every measurement is a process
of its own, which samples completions of equal length and goes through them four times. Generation is in generated
tokens per second; the update is in tokens of prompts and completions, times the epochs, per second of all that is not
generation: log-probabilities before the update, rewards, forward and backward passes, optimiser. The first roll-out is
not timed. Peak memory is that of the whole process, the making of the model included. `--tiny --device cpu` tries the
script where no GPU is.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers import EOS, PAD, SAME_PACKAGES, lora, prompts, say, tokenizer

METHODS = ["RLOO", "GRPO", "PPO"]
LLAMA = {"vocab_size": 128_256, "num_key_value_heads": 8, "rope_theta": 500_000.0, "max_position_embeddings": 131_072}
MODELS = {
    "1B": LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"tie_word_embeddings": True},
    "8B": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"tie_word_embeddings": False},
    "tiny": LLAMA
    | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8}
    | {"vocab_size": 512, "tie_word_embeddings": True},
}
SPARE_IDS = 256  # of a vocabulary have no word, as in models whose vocabulary is padded
FITS = ("8B", "PPO", 24)  # peak GB of 1e9 bytes: a 24 GiB card keeps the rest for CUDA itself and the screen
GROUP, EPOCHS, BETA = 4, 4, 0.05


@dataclass(frozen=True)
class Work:
    """How much of what a measurement does."""

    prompt: int = 256  # tokens
    completion: int = 128
    batch: int = 4  # completions in a forward pass
    accumulation: int = 8  # batches in a roll-out, and in an optimiser step
    rollouts: int = 3  # the first is not timed


TINY = Work(prompt=8, completion=8, accumulation=2, rollouts=2)


def random_model(name: str, device: str) -> Any:
    """A Llama with random weights in 4 bits, and its other weights in bfloat16 (on a CPU in float32)."""
    import bitsandbytes
    import torch
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.quantizers import AutoHfQuantizer

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    numbers = MODELS[name]
    config = LlamaConfig(
        **numbers,
        head_dim=numbers["hidden_size"] // numbers["num_attention_heads"],
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    # What from_pretrained does with a model's weights, done with random ones.
    quantizer = AutoHfQuantizer.from_config(
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        pre_quantized=False,
    )
    quantizer.preprocess_model(model, device_map=None)
    torch.manual_seed(0)
    for module in model.modules():
        for part, empty in list(module.named_parameters(recurse=False)):
            values = torch.empty(empty.shape, dtype=dtype, device=device)
            values = values.fill_(1) if values.dim() == 1 else values.normal_(0, config.initializer_range)
            if isinstance(empty, bitsandbytes.nn.Params4bit):
                packed = bitsandbytes.nn.Params4bit(values, requires_grad=False, **empty.__dict__).to(device)
                setattr(module, part, packed)
            else:
                setattr(module, part, torch.nn.Parameter(values))
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    model.generation_config.suppress_tokens = [PAD, EOS, *range(config.vocab_size - SPARE_IDS, config.vocab_size)]
    return model


def settings_of(work: Work, folder: str, on_cpu: bool) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": work.rollouts * EPOCHS,
        "num_iterations": EPOCHS,
        "per_device_train_batch_size": work.batch,
        "gradient_accumulation_steps": work.accumulation,
        "max_completion_length": work.completion,
        "beta": BETA,
        "learning_rate": 1e-5,
        "optim": "adamw_torch",
        "gradient_checkpointing": True,
        "bf16": not on_cpu,
        "use_cpu": on_cpu,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def estimate_of(model_name: str, method: str, work: Work, device: str) -> float:
    """What `lastmile check` says that the work takes, in GB of 1e9 bytes as torch counts them: without CUDA itself."""
    from lastmile_trl import memory
    from lastmile_trl.recipe import Recipe

    on_cpu, group = device == "cpu", {} if method == "PPO" else {"num_generations": GROUP}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps({"model_type": "llama", **MODELS[model_name]}))
        quantised = {"load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "float32" if on_cpu else "bfloat16"}
        targets = sorted(lora("LoRA").target_modules)
        values = {
            "method": method.lower(),
            "model": {"model_name_or_path": folder, "use_peft": True, "lora_r": 16, "lora_target_modules": targets}
            | quantised,
            "data": {"path": "rows.jsonl", "prompt": "{prompt}", "max_prompt_tokens": work.prompt},
            "rewards": ["length"],
            "training": settings_of(work, folder, on_cpu) | group,
        }
        found = memory.moments(memory.work_of(Recipe(Path("gpu.yaml"), values), cpu=on_cpu))
    most = max((each for each in found if each.moment != "evaluating"), key=lambda each: each.total)
    return (most.total - dict(most.parts)["libraries"]) / 1e9


def trainer_of(method: str, model: Any, work: Work, folder: str) -> Any:
    import trl
    from datasets import Dataset

    from lastmile_trl.trainers.ppo import PPOConfig, PPOTrainer

    words = model.config.vocab_size - SPARE_IDS
    settings = settings_of(work, folder, on_cpu=model.device.type == "cpu")
    if method == "PPO":
        trainer_class, config = PPOTrainer, PPOConfig(**settings)
    else:
        trainer_class = getattr(trl, f"{method}Trainer")
        config = getattr(trl, f"{method}Config")(**settings, num_generations=GROUP)

    def reward(completion_ids: list[list[int]], **columns: object) -> list[float]:
        if any(len(ids) != work.completion for ids in completion_ids):
            raise AssertionError(f"Not all completions have {work.completion} tokens.")
        return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]

    return trainer_class(
        model=model,
        processing_class=tokenizer(words),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict(
            {"prompt": prompts(work.batch * work.accumulation * work.rollouts, work.prompt, words)}
        ),
        peft_config=lora("LoRA"),
    )


def measure(model_name: str, method: str, work: Work, device: str) -> dict[str, float]:
    import torch
    from transformers import TrainerCallback

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    ends, generation = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, args: object, state: Any, control: object, **keywords: object) -> None:
            if state.global_step % EPOCHS == 0:
                ends.append(now())

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(method, random_model(model_name, device), work, folder)
        trainer.add_callback(Clock())
        generate = trainer.model.generate

        def timed(*arguments: object, **keywords: object) -> Any:
            start = now()
            ids = generate(*arguments, **keywords)
            generation.append(now() - start)
            return ids

        trainer.model.generate = timed
        trainer.train()
    if not len(ends) == len(generation) == work.rollouts:
        raise AssertionError(f"{len(generation)} times generated in {len(ends)} of {work.rollouts} roll-outs.")
    completions = work.batch * work.accumulation * (work.rollouts - 1)
    generating = sum(generation[1:])
    updating = ends[-1] - ends[0] - generating
    result = {
        "generated_tokens_per_second": round(completions * work.completion / generating, 1),
        "updated_tokens_per_second": round(completions * (work.prompt + work.completion) * EPOCHS / updating, 1),
    }
    if device == "cuda":
        result["allocated_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        result["reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
        result["gpu"] = torch.cuda.get_device_name()
    return result


def measured(model_name: str, method: str, work: Work, device: str) -> dict[str, Any]:
    """The measurement in a process of its own, or the last words of one that failed."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # the trainers would take all they see
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": first}
    command = [sys.executable, __file__, "--measure", model_name, method, json.dumps(asdict(work)), device]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet)
    row = {"model": model_name, "method": method}
    if done.returncode:
        return row | {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    return row | json.loads(done.stdout.strip().splitlines()[-1])


def fit_of(rows: list[dict]) -> dict | None:
    """Whether the large model fits a 24 GB GPU; None where that was not measured."""
    model, method, most = FITS
    for row in rows:
        if (row["model"], row["method"]) == (model, method) and ("reserved_gb" in row or "error" in row):
            return {"model": model, "method": method, "most_gb": most, "holds": row.get("reserved_gb", most) < most}
    return None


def markdown(results: dict) -> str:
    """The figures as a table."""
    lines = [
        "| model | method | peak GB estimated | allocated | reserved | generated tokens/s | updated tokens/s |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        if "error" in row:
            cells = [f"{row['estimated_gb']:.1f}", row["error"], "", "", ""]
        else:
            sizes = ("estimated_gb", "allocated_gb", "reserved_gb")
            memory = [f"{row[name]:.1f}" if name in row else "" for name in sizes]
            speed = [f"{row[name]:,.0f}" for name in ("generated_tokens_per_second", "updated_tokens_per_second")]
            cells = memory + speed
        lines.append(f"| {' | '.join([row['model'], row['method'], *cells])} |")
    if fit := results["fit"]:
        verdict = "holds" if fit["holds"] else "**missed**"
        lines += ["", f"{fit['method']} of the {fit['model']} model in less than {fit['most_gb']} GB: {verdict}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["1B", "8B"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and next to no work, to see that all runs")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        model_name, method, work, device = options.measure
        return say(json.dumps(measure(model_name, method, Work(**json.loads(work)), device)))

    import torch
    from rewards import environment

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No GPU is here: give --tiny --device cpu to try the script without one.")
    models, work = (["tiny"], TINY) if options.tiny else (options.models, Work())
    rows = []
    for model_name in models:
        for method in options.methods:
            estimate = {"estimated_gb": round(estimate_of(model_name, method, work, options.device), 2)}
            rows.append(measured(model_name, method, work, options.device) | estimate)
            say(json.dumps(rows[-1]))
    about = environment(["lastmile-trl", "trl", "bitsandbytes", *SAME_PACKAGES])
    results = {**about, "device": options.device, "work": asdict(work), "rows": rows, "fit": fit_of(rows)}
    say("\n" + markdown(results))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if any("error" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
