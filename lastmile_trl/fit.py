"""Whether a model, its tokenizer, the rows and an adapter fit each other: what small files tell before weights load."""

import json
import re
from typing import TYPE_CHECKING

from .data import cell_text, render, template_columns
from .errors import InputError, first_line, unknown
from .models import load_tokenizer, read_json
from .recipe import Recipe, max_new_tokens
from .schema import keys

if TYPE_CHECKING:
    from datasets import Dataset

LONGEST = 20  # rows whose tokens are counted: those with the most characters
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def check_tokenizer(recipe: Recipe) -> None:
    """Refuse a tokenizer without an end, or with tokens that the model does not know; it loads only in doubt."""
    start, revision = _start(recipe)
    settings = read_json(start, "tokenizer_config.json", revision) or {}
    if recipe.data.messages or not settings.get("eos_token"):
        try:
            load_tokenizer(start, revision, chat=bool(recipe.data.messages))
        except InputError:
            raise
        except Exception as error:  # transformers raises many kinds
            raise InputError(
                f"The tokenizer of {start!r} cannot be loaded ({first_line(error)}): save it beside the model."
            ) from error
    known = _text_config(recipe).get("vocab_size")
    stored = read_json(start, "tokenizer.json", revision)
    if not known or not stored:
        return
    pieces = stored["model"].get("vocab", {})
    numbers = range(len(pieces)) if isinstance(pieces, list) else pieces.values()
    # Some models have special tokens that nothing ever writes, beyond what they know.
    highest = max([*numbers, *(token["id"] for token in stored["added_tokens"] if not token["special"])], default=0)
    if highest >= known:
        raise InputError(
            f"The tokenizer of {start!r} has tokens up to number {highest}, but the model knows {known}, from 0 on: "
            "use the tokenizer that was saved with the model."
        )


def check_positions(recipe: Recipe, rows: "list[Dataset]") -> None:
    """Refuse prompts and answers that are longer than what the model can read: some fail then, most write nonsense."""
    start, revision = _start(recipe)
    config = _text_config(recipe)
    positions = next((config[key] for key in POSITIONS if isinstance(config.get(key), int)), None)
    answer = max_new_tokens(recipe.values)
    if positions is None or recipe.data.max_prompt_tokens + answer <= positions:
        return
    where = "training.max_completion_length or evaluation.max_new_tokens"
    if answer >= positions:
        raise InputError(f"{start!r} reads {positions} tokens, and answers alone may have {answer}: lower {where}.")
    longest = min(_longest(recipe, rows), recipe.data.max_prompt_tokens)
    if longest + answer > positions:
        raise InputError(
            f"{start!r} reads {positions} tokens, and a prompt has {longest}, its answer up to {answer}: lower "
            f"data.max_prompt_tokens to {positions - answer}, or {where}."
        )


def _longest(recipe: Recipe, rows: "list[Dataset]") -> int:
    """How many tokens the longest prompt has, without what a chat template adds; 0 if that takes loading a model."""
    from tokenizers import Tokenizer

    stored = read_json(*_start(recipe)[:1], "tokenizer.json", _start(recipe)[1])
    columns = template_columns(recipe.data)
    if stored is None or not columns:
        return 0
    count = Tokenizer.from_str(json.dumps(stored))
    longest = 0
    for split in rows:
        sizes = [sum(len(cell_text(cell)) for cell in row.values()) for row in split.select_columns(columns)]
        for index in sorted(range(len(sizes)), key=lambda row: -sizes[row])[:LONGEST]:
            prompt = render(recipe.data, split[index])
            text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
            longest = max(longest, len(count.encode(text).ids))
    return longest


def check_adapter_targets(recipe: Recipe) -> None:
    """Refuse LoRA on modules that the model lacks: TRL says nothing as long as there is one of them."""
    asked = recipe.model.get("lora_target_modules")
    (start, revision), config = _start(recipe), _text_config(recipe)
    if not recipe.model.get("use_peft") or asked in ("all-linear", ["all-linear"]) or "auto_map" in config:
        return
    if asked is None:
        known = keys("peft.utils.constants", "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING")
        if config.get("model_type") not in known:
            raise InputError(
                f"Which modules of {start!r} ({config.get('model_type')}) LoRA adapts is not known: name them in "
                "model.lora_target_modules, or write all-linear."
            )
        return
    names = _modules(start, revision)
    for target in [asked] if isinstance(asked, str) else asked:
        found = any(re.fullmatch(target, name) for name in names) if isinstance(asked, str) else False
        if not found and not any(name == target or name.endswith(f".{target}") for name in names):
            ends = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise unknown(f"model.lora_target_modules: a module of {start!r} called", target, ends)


def _modules(start: str, revision: str) -> list[str]:
    """The names of the innermost modules with weights, of a model that is only an outline."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        outline = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(start, revision=revision))
    return [name for name, module in outline.named_modules() if [*module.parameters(recurse=False)]]


def _start(recipe: Recipe) -> tuple[str, str]:
    return recipe.model["model_name_or_path"], recipe.model.get("model_revision", "main")


def _text_config(recipe: Recipe) -> dict:
    """The configuration of the model that reads and writes; empty for an adapter, whose base was checked once."""
    config = read_json(_start(recipe)[0], "config.json", _start(recipe)[1]) or {}
    return config.get("text_config") or config
