"""How much memory a stage takes, told before a model loads, and what to change where that is too much."""

import json
import os
import shutil
import subprocess
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dry_run import Model, Work, by_layers, config_of, decoding, largest_matrix, training, weights
from .errors import RunError
from .recipe import METHODS, RL, Recipe, max_new_tokens
from .schema import default

if TYPE_CHECKING:
    from .data import Rows

GIB = 2**30
SMALL = 100 * 2**20  # bytes of weights
CPU_BASE = 0.55 * GIB  # of a process that has imported everything: 0.48 to 0.53 in benchmarks/memory.py
CUDA_BASE = 0.6 * GIB  # CUDA's context and libraries: by others' reports, not measured on a GPU here
CUDA_SLACK = 1.05  # what the caching allocator holds beyond its tensors: not measured on a GPU here
MOST_CHANGES = 3  # that are named together
LONGEST = 16  # rows, by characters, whose tokens are counted
SAMPLING_COPIES = 3  # of the last logits in float32: as they are, processed, as probabilities


@dataclass(frozen=True)
class Estimate:
    """The bytes of each part at the moment that takes most."""

    moment: str  # generating, evaluating, training, stepping
    parts: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        """All parts together.

        >>> Estimate("training", (("weights", 2 * GIB), ("activations", GIB))).total / GIB
        3.0
        """
        return sum(size for _, size in self.parts)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts if size >= 0.05 * GIB)
        return f"About {self.total / GIB:.1f} GiB on each device while {self.moment}" + (f": {parts}" if parts else "")


# --- what a recipe asks for ----------------------------------------------------------------------------------------


def estimate(
    recipe: Recipe,
    processes: int = 1,
    cpu: bool = False,
    upcoming: Collection[Path] = (),
    rows: "Rows | None" = None,
    moment: str | None = None,
) -> Estimate | None:
    """The peak of a stage's memory on each device; None where the model is not known yet, or nothing is trained.

    ``upcoming`` are the run folders of earlier stages; if it maps them to recipes, their models are told from those.
    Without ``rows`` prompts and references count as long as they may be. Of a ``moment``, its own peak is told.

    >>> recipe = Recipe(Path("sft.yaml"), {"method": "sft", "model": {"model_name_or_path": "synthetic:tiny"},
    ...     "data": {"path": "rows.jsonl", "prompt": "{text}"}, "training": {"output_dir": "runs/sft"}})
    >>> estimate(recipe) is None
    True
    """
    work = work_of(recipe, processes, cpu, upcoming, rows)
    if work is None:
        return None
    found = moments(work)
    return max([each for each in found if each.moment == moment] or found, key=lambda each: each.total)


def work_of(
    recipe: Recipe, processes: int = 1, cpu: bool = False, upcoming: Collection[Path] = (), rows: "Rows | None" = None
) -> Work | None:
    """All that the memory of a stage depends on; None as for `estimate`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not can_be_told(recipe, upcoming):
        return None
    section, evaluation = recipe.model, recipe.evaluation
    name, revision = section["model_name_or_path"], section.get("model_revision", "main")
    model = _model(name, revision, section, upcoming)
    if model is None or json.loads(model.config)["model_type"] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return None

    def setting(key: str) -> Any:
        return recipe.training.get(key, default(METHODS[recipe.method], key))

    rl = recipe.method in RL
    dtype, bits = section.get("dtype", "float32"), 4 * section.get("load_in_4bit", False) or None
    bits = bits or 8 * section.get("load_in_8bit", False) or None
    dtype = (json.loads(model.config).get("dtype") or "float32") if dtype in ("auto", None) else dtype
    prompt, answer = _lengths(recipe, upcoming, rows)
    batch, accumulation = setting("per_device_train_batch_size"), setting("gradient_accumulation_steps")
    decoded = []
    if rl and not setting("use_vllm"):
        at_once = setting("generation_batch_size") or batch * (setting("steps_per_generation") or accumulation)
        decoded.append(("generating", at_once, setting("max_completion_length")))
    if recipe.method != "reward":
        decoded.append(("evaluating", min(evaluation.batch_size, evaluation.rows), max_new_tokens(recipe.values)))
    critic = recipe.training.get("critic", "shared") if recipe.method == "ppo" else None
    named = critic not in (None, "shared", "copy")
    return Work(
        method=recipe.method,
        model=model,
        dtype=dtype,
        bits=bits,
        nested=section.get("use_bnb_nested_quant", False),
        autocast=_autocasts(recipe, cpu),
        checkpointing=setting("gradient_checkpointing"),
        dropout=recipe.method == "sft" or not recipe.training.get("disable_dropout", True),
        batch=batch * (2 if recipe.method in ("dpo", "reward") else 1),
        accumulates=accumulation > 1,
        prompt=prompt,
        answer=setting("max_completion_length") if rl else answer,
        decoded=tuple(decoded),
        reference=recipe.method == "dpo" or rl and setting("beta") != 0,
        optimiser=str(recipe.training.get("optim", "adamw_torch_fused")),
        critic=critic,
        critic_model=_model(critic, "main", {}, upcoming) if named else None,
        others=_others(recipe, dtype, bits, upcoming),
        cpu=cpu,
        processes=processes,
    )


def _autocasts(recipe: Recipe, cpu: bool) -> bool:
    """Whether passes compute in 16 bits: TRL's default on a GPU, ours on a CPU is not."""
    asked = recipe.training.get("bf16")
    return bool(recipe.training.get("fp16") or (not cpu if asked is None else asked))


def _model(name: str, revision: str, section: Mapping[str, Any], upcoming: Collection[Path]) -> Model | None:
    """The model, or the base of an adapter; None where it cannot be known yet, or is made in code."""
    from .models import adapter_config, read_json

    if name.startswith("synthetic:"):
        return None
    if Path(name) in upcoming:
        stage = upcoming.get(Path(name)) if isinstance(upcoming, Mapping) else None
        if stage is None or not stage.model:
            return None
        start, revision = stage.model["model_name_or_path"], stage.model.get("model_revision", "main")
        found = _model(start, revision, stage.model, upcoming)
        return found and replace(found, goes_on=found.lora is not None)
    from transformers import CONFIG_MAPPING

    lora = None
    if adapter := adapter_config(name, revision):
        lora, name, revision = adapter, adapter["base_model_name_or_path"], adapter.get("revision")
    config = read_json(name, "config.json", revision)
    if config is None or config.get("model_type") not in CONFIG_MAPPING or "quantization_config" in config:
        return None
    if lora is None and section.get("use_peft"):
        from trl import ModelConfig, get_peft_config

        new = get_peft_config(ModelConfig(**section)).to_dict()
        return Model(json.dumps(config), json.dumps(new, default=list))
    return Model(json.dumps(config), lora and json.dumps(lora), lora is not None)


def _others(recipe: Recipe, dtype: str, bits: int | None, upcoming: Collection[Path]) -> tuple[tuple[str, float], ...]:
    """The weights of a guide and of reward models, each with the name of its part."""
    nested, found = recipe.model.get("use_bnb_nested_quant", False), []
    if recipe.guide_model and (guide := _model(recipe.guide_model, "main", {}, upcoming)):
        found.append(("guide", sum(weights(guide, dtype, bits, nested, "CausalLM"))))
    for entry in recipe.rewards if recipe.method in RL else []:
        arguments = (next(iter(entry.values())) or {}) if isinstance(entry, dict) else {}
        name = arguments.get("model")
        if not isinstance(name, str) or arguments.get("share_base"):
            continue
        if model := _model(name, arguments.get("revision") or "main", {}, upcoming):
            stored = json.loads(model.config).get("dtype") or "float32"
            asked = arguments.get("dtype", "auto") if "model" in entry else "float32"
            of_reward = 4 if arguments.get("load_in_4bit") else None
            size = weights(model, stored if asked == "auto" else asked, of_reward, False, "")
            found.append(("reward models", sum(size)))
    sizes = Counter()
    for part, size in found:
        sizes[part] += size
    return tuple(sizes.items())


def _lengths(recipe: Recipe, upcoming: Collection[Path], rows: "Rows | None") -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest reference."""
    from .data import cell_text, render, template_columns
    from .models import adapter_config, prompt_ids

    most, longest = recipe.data.max_prompt_tokens, recipe.data.max_reference_tokens
    name = recipe.model["model_name_or_path"]
    while isinstance(upcoming, Mapping) and Path(name) in upcoming:
        name = upcoming[Path(name)].model["model_name_or_path"]
    if rows is None or not len(rows.train):
        return most, longest or max_new_tokens(recipe.values)
    from transformers import AutoTokenizer

    if (adapter := adapter_config(name)) and not Path(name, "tokenizer_config.json").exists():
        name = adapter["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=recipe.training.get("trust_remote_code", False))
    columns = template_columns(recipe.data)
    sample = rows.train.take(min(2000, len(rows.train))).to_list()

    def longest_of(size: Any) -> list[dict]:
        return sorted(sample, key=size)[-LONGEST:]

    by_prompt = longest_of(lambda row: sum(len(cell_text(row[column])) for column in columns))
    by_answer = longest_of(lambda row: max(map(len, row["references"]), default=0))
    prompts = prompt_ids(tokenizer, [render(recipe.data, row) for row in by_prompt])
    answers = tokenizer([text for row in by_answer for text in row["references"]] or [""])["input_ids"]
    answer = max(map(len, answers)) + 1
    return min(most, max(map(len, prompts))), min(answer, longest + 1) if longest else answer


# --- moments -------------------------------------------------------------------------------------------------------


def moments(work: Work) -> list[Estimate]:
    """What each moment of the stage takes: decoding, a training pass, the optimiser's step."""
    kept, trained, states = _kept(work)
    if work.processes > 1:  # each process holds its gradients once more, to exchange them
        kept["gradients"] += trained
    found = []
    for moment, count, tokens in work.decoded:
        sampled = Counter({"logits": count * config_of(work.model).get_text_config().vocab_size * 4 * SAMPLING_COPIES})
        passing = by_layers(work, partial(decoding, count=count, tokens=tokens))
        found.append(_estimate(work, moment, kept + states + passing + sampled))
    passing = by_layers(work, training)
    # One quantised matrix is unpacked while it is multiplied with.
    unpacked = Counter({"activations": largest_matrix(work.model, work.dtype) if work.bits else 0})
    found.append(_estimate(work, "training", kept + states + passing + unpacked))
    # Of a GPU's plain AdamW the step makes a copy of all that it trains.
    copies = trained if work.optimiser == "adamw_torch" and not work.cpu else 0
    stepping = Counter({"gradients": trained, "activations": copies})
    found.append(_estimate(work, "stepping", kept + states + stepping))
    return found


def _states(optimiser: str, trained: float, dtype_bytes: int) -> float:
    """The bytes that an optimiser keeps for trained weights of so many bytes."""
    if "8bit" in optimiser:
        return 2 * trained / dtype_bytes * (1 + 4 / 256)
    if "adafactor" in optimiser or optimiser in ("sgd", "rmsprop"):
        return 0.0
    return trained * (1 if "lion" in optimiser or optimiser == "adagrad" else 2)


def _estimate(work: Work, moment: str, parts: Counter) -> Estimate:
    parts = Counter(parts)
    if work.cpu:
        parts["libraries"] += CPU_BASE
    else:
        parts = Counter({part: size * CUDA_SLACK for part, size in parts.items()})
        parts["libraries"] += CUDA_BASE
    order = ("weights", "adapter", "reference", "critic", "guide", "reward models", "optimiser", "gradients",
             "activations", "logits", "cache", "libraries")  # fmt: skip
    return Estimate(moment, tuple((part, float(parts[part])) for part in order if parts[part]))


def _kept(work: Work) -> tuple[Counter, float, Counter]:
    """The bytes of what is there all the time, of what is trained, and of the optimiser's states."""
    import torch

    kind = "SequenceClassification" if work.method == "reward" else "CausalLM"
    base, adapter = weights(work.model, work.dtype, work.bits, work.nested, kind)
    kept = Counter({"weights": base, "adapter": adapter, **dict(work.others)})
    trained = adapter or base
    if work.reference:
        if not adapter:
            kept["reference"] = base
        elif work.model.goes_on:
            kept["adapter"] += adapter
    item = 2 if adapter and work.bits else 4 if adapter else getattr(torch, work.dtype).itemsize
    states = Counter({"optimiser": _states(work.optimiser, trained, item)})
    if work.critic:
        hidden = config_of(work.critic_model or work.model).get_text_config().hidden_size
        own = 4.0 * (hidden * hidden + 2 * hidden + 1)
        if work.critic == "copy":
            own += adapter * 4 / item if adapter else base * 4 / item
        elif work.critic_model:
            own += weights(work.critic_model, "float32", None, False, "")[0]
        kept["critic"] = own
        states["optimiser"] += 2 * own
        if work.critic == "shared":
            kept["critic"] += own + 3 * 4 * work.batch * work.answer * hidden  # gradients, and what the head keeps
    return kept, trained, states


# --- whether it is enough ------------------------------------------------------------------------------------------


def can_be_told(recipe: Recipe, upcoming: Collection[Path] = ()) -> bool:
    """Whether there is a model to train that is known by its name: nothing is imported to see this."""
    return _first_start(recipe, upcoming) is not None


def is_small(recipe: Recipe, upcoming: Collection[Path] = ()) -> bool:
    """Whether the model is of so few weights that its memory is not worth the seconds that it takes to tell."""
    start = _first_start(recipe, upcoming)
    if start is None or Path(start, "adapter_config.json").exists():
        return False
    files = list(Path(start).glob("*.safetensors"))
    return bool(files) and sum(file.stat().st_size for file in files) < SMALL


def _first_start(recipe: Recipe, upcoming: Collection[Path]) -> str | None:
    """The model that a stage, or the earlier ones that it goes on from, will load; None if that is not known yet."""
    if recipe.method not in (*RL, "sft", "dpo", "reward"):
        return None
    name = recipe.model["model_name_or_path"]
    while Path(name) in upcoming:
        stage = upcoming.get(Path(name)) if isinstance(upcoming, Mapping) else None
        if stage is None or not stage.model:
            return None
        name = stage.model["model_name_or_path"]
    return None if name.startswith("synthetic:") else name


def told(
    recipe: Recipe, processes: int = 1, cpu: bool = False, upcoming: Collection[Path] = ()
) -> tuple[str | None, str | None]:
    """A note on what a stage takes, and a warning where that is more than is free; None where nothing can be said."""
    rows = None
    if Path(recipe.data.path) not in upcoming:
        from .data import load

        rows = load(recipe.data)
    found, free = estimate(recipe, processes, cpu, upcoming, rows), free_bytes(cpu)
    if found is None or free is None:
        return found and f"{found}.", None
    each = free / processes if cpu else free
    note = f"{found}; {'this machine' if cpu else 'the device'} has {free / GIB:.1f} GiB free."
    if found.total <= each:
        return note, None
    warning = f"Memory may not suffice: {found.total / GIB:.1f} GiB of {each / GIB:.1f}."
    return note, f"{warning} {advice(recipe, each, processes, cpu, upcoming, rows)}".rstrip()


def free_bytes(cpu: bool) -> int | None:
    """What is free on the device that has least; None where there is no way to ask without using it."""
    if cpu:
        import psutil

        return psutil.virtual_memory().available
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command.append(f"--id={visible}")
    answer = subprocess.run(command, capture_output=True, text=True)
    sizes = [int(line) for line in answer.stdout.split() if line.isdigit()]
    return min(sizes) * 2**20 if sizes and not answer.returncode else None


def advice(
    recipe: Recipe,
    limit: float,
    processes: int = 1,
    cpu: bool = False,
    upcoming: Collection[Path] = (),
    rows: "Rows | None" = None,
    moment: str | None = None,
) -> str:
    """The changes that keep a stage below a limit, or those that help most; "" where nothing would help.

    What leaves the training as it is comes first; a second or third change only where one is not enough. With a
    ``moment``, that one's memory is looked at.
    """
    changed: dict[str, Any] = {}
    now = estimate(recipe, processes, cpu, upcoming, rows, moment)
    for _ in range(MOST_CHANGES):
        best: tuple[dict[str, Any], Estimate] | None = None
        for changes in _changes(recipe):
            found = estimate(_changed(recipe, changes), processes, cpu, upcoming, rows, moment)
            if found and now and found.total < (best[1] if best else now).total:
                best = changes, found
                if found.total <= limit:
                    break
        if best is None:
            break
        recipe, now = _changed(recipe, best[0]), best[1]
        changed |= best[0]
        if now.total <= limit:
            break
    if not changed:
        return ""
    words = " ".join(f"{key}={str(value).lower()}" for key, value in changed.items())
    return f"With {words} it is about {now.total / GIB:.1f} GiB."


def _changes(recipe: Recipe) -> list[dict[str, Any]]:
    """What might be changed, each one harmless as those before it or less."""
    model = recipe.model

    def setting(key: str) -> Any:
        return recipe.training.get(key, default(METHODS[recipe.method], key))

    found: list[dict[str, Any]] = []
    if not setting("gradient_checkpointing"):
        found.append({"training.gradient_checkpointing": True})
    if recipe.evaluation.batch_size > 1:
        found.append({"evaluation.batch_size": recipe.evaluation.batch_size // 2})
    batch, accumulation = setting("per_device_train_batch_size"), setting("gradient_accumulation_steps")
    if batch % 2 == 0:
        halved = {
            "training.per_device_train_batch_size": batch // 2,
            "training.gradient_accumulation_steps": 2 * accumulation,
        }
        if recipe.training.get("steps_per_generation"):
            halved["training.steps_per_generation"] = 2 * recipe.training["steps_per_generation"]
        found.append(halved)
    packed = model.get("load_in_4bit") or model.get("load_in_8bit")
    if model.get("use_peft") and not packed and not recipe.training.get("use_vllm"):
        found.append({"model.load_in_4bit": True})
    if recipe.method in RL and (length := setting("max_completion_length")) > 1:
        found.append({"training.max_completion_length": length // 2})
    if recipe.method in RL and (batch * accumulation) % (2 * setting("num_generations")) == 0:
        key = "gradient_accumulation_steps" if accumulation % 2 == 0 else "per_device_train_batch_size"
        found.append({f"training.{key}": setting(key) // 2})
    found.append({"data.max_prompt_tokens": recipe.data.max_prompt_tokens // 2})
    if not model.get("use_peft"):
        found.append({"model.use_peft": True})
    return found


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    values = {name: dict(section) if isinstance(section, dict) else section for name, section in recipe.values.items()}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    return Recipe(recipe.source, values)


# --- what a run ran out of -----------------------------------------------------------------------------------------

# Of Python's calls where memory ran out, the first of these that is among them says what was being done.
DOING = {
    "_evaluate": "while evaluating",
    "_decode_in_training": "while evaluating",
    "outputs_of_run": "while evaluating",
    "_accept": "while evaluating",
    "_build": "while the model was loaded",
    "_save_checkpoint": "while a checkpoint was saved",
    "generate": "while generating",
    "backward": "in the backward pass",
    "_step_critic": "in the critic's step",
    "optimizer_step": "in the optimiser's step",
    "step": "in the optimiser's step",
    "_calculate_rewards": "while the rewards were computed",
    "compute_loss": "in the forward pass",
    "_generate_and_score_completions": "while completions were scored",
}
SIGNS = ("can't allocate memory", "DefaultCPUAllocator", "std::bad_alloc", "CUDA out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator has refused, in any of the ways of torch and Python.

    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")), is_out_of_memory(
    ...     MemoryError()), is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    (True, True, False)
    """
    kinds = [kind.__name__ for kind in type(error).__mro__]
    refused = "OutOfMemoryError" in kinds or isinstance(error, MemoryError)
    return refused or isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def explained(recipe: Recipe, cpu: bool) -> Iterator[None]:
    """Memory that ran out becomes a sentence: where, in which step, how much there was, and what to change."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        calls = [frame.f_code.co_name for frame in frames]
        doing = next((words for name, words in DOING.items() if name in calls), "")
        trainer = next((frame.f_locals["trainer"] for frame in frames if "trainer" in frame.f_locals), None)
        step = f" (step {trainer.state.global_step + 1})" if trainer and "evaluating" not in doing else ""
        del trainer, frames
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        where = f"Out of memory{doing and f' {doing}'}{step}"
        raise RunError(f"{where}, at {_highest(cpu) / GIB:.1f} GiB. {_ways_out(recipe, cpu, doing)}") from error


def _highest(cpu: bool) -> float:
    if cpu:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    return torch.cuda.max_memory_allocated()


def _ways_out(recipe: Recipe, cpu: bool, doing: str) -> str:
    """What to change, in numbers; without them where nothing was trained or not even they can be computed any more."""
    keys = "training.per_device_train_batch_size, training.max_completion_length, data.max_prompt_tokens"
    plain = f"Lower {keys} or evaluation.batch_size, or set training.gradient_checkpointing or model.load_in_4bit."
    if recipe.method not in (*RL, "sft", "dpo", "reward"):
        return "Lower evaluation.batch_size."
    moment = doing.removeprefix("while ")
    moment = moment if moment in ("generating", "evaluating") else "training"
    try:
        found = estimate(recipe, cpu=cpu, moment=moment)
        if found is None:
            return plain
        spare = (found.total - dict(found.parts)["libraries"]) / 4
        return advice(recipe, found.total - spare, cpu=cpu, moment=moment) or plain
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return plain
