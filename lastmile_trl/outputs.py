"""What runs and models answer to prompts: decoded once, and kept in their run folders."""

import gc
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import data as data_module
from . import models, preflight
from .recipe import Evaluation, Recipe, max_new_tokens
from .run_folder import keep_outputs, kept_outputs, stored_recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .evaluation.decoding import Output

KEPT = "text, ids, ended"  # of each output


def decodings(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """What is decoded, by name: greedy, and once sampled."""
    settings = {"greedy": {"temperature": 0.0}}
    if evaluation.sampled:
        settings["sampled"] = {
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "seed": evaluation.seed,
        }
    return settings


def fingerprint(prompts: list, recipe: Recipe, settings: dict) -> str:
    """Names a file of outputs by all that decides them, but the model."""
    said = json.dumps([KEPT, list(prompts), max_new_tokens(recipe.values), settings], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def held_out_rows(recipe: Recipe, rows: data_module.Rows, tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """The held-out rows that evaluation looks at, with their prompts."""
    chosen = rows.held_out.take(min(recipe.evaluation.rows, len(rows.held_out)))
    return data_module.with_prompts(chosen, recipe.data, tokenizer, rows.notes)


def outputs_of_run(name: str, run: Path, recipe: Recipe, rows: data_module.Rows) -> "tuple[dict, Dataset]":
    """A run's outputs for the held-out rows by decoding, those it has kept or new ones; and the rows."""
    tokenizer, decode = decoder(run, chat=bool(recipe.data.messages))
    held_out = held_out_rows(recipe, rows, tokenizer)
    outputs = {}
    for decoding, settings in decodings(recipe.evaluation).items():
        key = fingerprint(held_out["prompt"], recipe, settings)
        outputs[decoding] = kept_outputs(run, key)
        if outputs[decoding] is None:
            outputs[decoding] = decode(
                held_out["prompt"],
                f"{name}, {decoding}",
                max_new_tokens=max_new_tokens(recipe.values),
                batch_size=recipe.evaluation.batch_size,
                **settings,
            )
            if stored_recipe(run):
                keep_outputs(run, key, outputs[decoding])
    return outputs, held_out


def decoder(run: Path, chat: bool = False) -> "tuple[PreTrainedTokenizerBase, Callable[..., list[Output]]]":
    """The tokenizer of a run or model, and a function that loads its model at the first call."""
    from trl import ModelConfig

    preflight.check_language_model(str(run))
    stored = stored_recipe(run)
    section = {k: v for k, v in stored.model.items() if k != "model_revision"} if stored else {"dtype": "auto"}
    trust = bool(stored and stored.training.get("trust_remote_code"))
    config = ModelConfig(**{**section, "model_name_or_path": str(run)})
    tokenizer = models.load_tokenizer(str(run), trust_remote_code=trust, chat=chat)

    @cache
    def model() -> Any:
        free_memory()  # of the model of the run before
        return on_device(models.load_model(config, trust))

    def decode_rows(prompts: list, what: str, **settings: Any) -> "list[Output]":
        from .evaluation.decoding import decode

        with bar(f"decoding {what}", len(prompts)) as on_batch:
            return decode(model(), tokenizer, list(prompts), on_batch=on_batch, **settings)

    return tokenizer, decode_rows


def generate(run: Path, prompts: list, **settings: Any) -> list[str]:
    """Completions of prompts by a run or a model, greedy unless told otherwise."""
    _, decode = decoder(run, chat=not isinstance(prompts[0], str))
    return [output.text for output in decode(prompts, str(run), **settings)]


def on_device(model: Any) -> Any:
    """The model on this process's device, unless it is placed already."""
    from accelerate import PartialState

    return model if getattr(model, "hf_device_map", None) else model.to(PartialState().device)


def free_memory() -> None:
    """Give back what models hold that nothing refers to."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def bar(what: str, total: int, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as a function of how many are done."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, dynamic_ncols=True, leave=False, disable=not show) as shown:
        yield lambda done, _: shown.update(done - shown.n)
