"""What runs and models answer to prompts: decoded once, and kept in their run folders."""

import gc
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import data as data_module
from . import models, preflight
from .errors import InputError, unknown
from .recipe import RL, Evaluation, Recipe, max_new_tokens
from .run_folder import keep_outputs, kept_outputs, stored_recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .evaluation.decoding import Output
    from .preferences.perplexity import Surprise

KEPT = "text, ids, ended"  # of each output


def decodings(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """What is decoded, by name: greedy, and once sampled."""
    settings = {"greedy": {"temperature": 0.0}}
    if evaluation.sampled:
        settings["sampled"] = sampling(evaluation)
    return settings


def sampling(evaluation: Evaluation) -> dict[str, float]:
    """How a sample is drawn."""
    return {"temperature": evaluation.temperature, "top_p": evaluation.top_p, "seed": evaluation.seed}


def fingerprint(prompts: list, recipe: Recipe, settings: dict) -> str:
    """Names a file of outputs by all that decides them, but the model."""
    said = json.dumps([KEPT, list(prompts), max_new_tokens(recipe.values), settings], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def held_out_rows(recipe: Recipe, rows: data_module.Rows, tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """The held-out rows that evaluation looks at, with their prompts."""
    chosen = rows.held_out.take(min(recipe.evaluation.rows, len(rows.held_out)))
    return data_module.with_prompts(chosen, recipe.data, tokenizer, rows.notes)


@dataclass(frozen=True)
class Model:
    """A model to decode with: its folder or hub id, and how it is loaded."""

    path: Path
    section: dict[str, Any]  # of `trl.ModelConfig`
    trust_remote_code: bool = False

    @property
    def revision(self) -> str:
        """Of the hub's repository."""
        return self.section.get("model_revision", "main")


def model_of(run: Path, like: Recipe | None = None) -> Model:
    """A run as its recipe says, or what is no run of ours, loaded as the recipe says that it is ``like``."""
    stored = stored_recipe(run)
    recipe = stored or like
    section = {**recipe.model} if recipe else {"dtype": "auto"}
    if stored:
        section.pop("model_revision", None)  # it is that of the model the run started from
    return Model(run, section, bool(recipe and recipe.training.get("trust_remote_code")))


def outputs_of_run(
    name: str, model: Model, recipe: Recipe, rows: data_module.Rows
) -> "tuple[dict[str, list[Output]], Dataset]":
    """A run's outputs for the held-out rows by decoding, those it has kept or new ones; and the rows."""
    decoder = Decoder(model, chat=bool(recipe.data.messages))
    held_out = held_out_rows(recipe, rows, decoder.tokenizer)
    return {
        decoding: _kept_or_new(
            f"{name}, {decoding}", model.path, recipe, list(held_out["prompt"]), settings, decoder.decode
        )
        for decoding, settings in decodings(recipe.evaluation).items()
    }, held_out


def samples_of_run(name: str, model: Model, recipe: Recipe, rows: data_module.Rows, count: int) -> "list[list[Output]]":
    """Several samples of a run for each held-out row, those it has kept or new ones."""
    decoder = Decoder(model, chat=bool(recipe.data.messages))
    prompts = [prompt for prompt in held_out_rows(recipe, rows, decoder.tokenizer)["prompt"] for _ in range(count)]
    flat = _kept_or_new(
        f"{name}, {count} samples", model.path, recipe, prompts, sampling(recipe.evaluation), decoder.decode
    )
    return [flat[start : start + count] for start in range(0, len(flat), count)]


def _kept_or_new(
    what: str,
    run: Path,
    recipe: Recipe,
    prompts: list,
    settings: dict[str, float],
    decode: "Callable[..., list[Output]]",
) -> "list[Output]":
    key = fingerprint(prompts, recipe, settings)
    outputs = kept_outputs(run, key)
    if outputs is None:
        limit, batch_size = max_new_tokens(recipe.values), recipe.evaluation.batch_size
        outputs = decode(prompts, what, max_new_tokens=limit, batch_size=batch_size, **settings)
        if stored_recipe(run):
            keep_outputs(run, key, outputs)
    return outputs


# --- which model a baseline is -------------------------------------------------------------------------------------


def started_from(name: str, runs: Mapping[str, Path], recipe: Recipe, upcoming: Collection[Path] = ()) -> Model | None:
    """The model that ``base`` or ``sft`` stands for, or the run of that name; None if it comes from an upcoming run."""
    if name == "base":
        return _base(next(iter(runs.values())), recipe, upcoming)
    if name == "sft":
        run = sft_of(runs, recipe, upcoming)
        if run is None:
            raise InputError(
                "evaluation.baselines: no run of RL here goes back to a run of `method: sft`, so there is no sft to "
                "show: drop it, or name that run among the runs."
            )
        return None if run in upcoming else model_of(run)
    if name not in runs:
        raise unknown("evaluation.baselines: run", name, [*runs, "base", "sft"])
    return model_of(runs[name])


def is_among(model: Model, runs: Mapping[str, Path]) -> bool:
    """Whether a model is one of the runs."""
    return model.path.resolve() in [run.resolve() for run in runs.values()]


def _made_with(run: Path, recipe: Recipe) -> Recipe | None:
    """The recipe of a run, which may be that of this very stage."""
    return recipe if run == recipe.run else stored_recipe(run)


def _base(run: Path, recipe: Recipe, upcoming: Collection[Path]) -> Model | None:
    path, like = run, None
    while made := _made_with(path, recipe):
        start, like = made.model["model_name_or_path"], made
        if start.startswith("synthetic:"):
            return model_of(path / "base", like)
        path = Path(start)
    if path in upcoming:
        return None
    found = model_of(path, like)
    if adapter := models.adapter_config(str(path), found.revision):
        section = {**found.section, "model_revision": adapter.get("revision") or "main"}
        return Model(Path(adapter["base_model_name_or_path"]), section, found.trust_remote_code)
    if like is None:
        raise InputError(f"evaluation.baselines: {str(run)!r} is itself a base model and started from none: drop base.")
    return found


def sft_of(runs: Mapping[str, Path], recipe: Recipe, upcoming: Collection[Path] = ()) -> Path | None:
    """The run of `method: sft` that the first run of RL goes back to, or the upcoming run on the way to it."""
    for run in runs.values():
        made = _made_with(run, recipe)
        if made is None and run in upcoming:
            return run
        is_rl = made is not None and made.method in RL
        while is_rl and made and made.method != "sft":
            run = Path(made.model["model_name_or_path"])
            if run in upcoming:
                return run
            made = _made_with(run, recipe)
        if is_rl and made:
            return run
    return None


# --- loading and asking a model ------------------------------------------------------------------------------------


class Decoder:
    """A model that answers prompts, and its tokenizer; the model loads at its first use."""

    def __init__(self, model: Model, chat: bool = False):
        from trl import ModelConfig

        preflight.check_language_model(str(model.path), model.revision)
        self.config = ModelConfig(**{**model.section, "model_name_or_path": str(model.path)})
        self.trust = model.trust_remote_code
        self.tokenizer = models.load_tokenizer(str(model.path), self.config.model_revision, self.trust, chat)

    @cached_property
    def model(self) -> Any:
        """The loaded model."""
        free_memory()  # of the model of the run before
        return on_device(models.load_model(self.config, self.trust))

    def decode(self, prompts: list, what: str, **settings: Any) -> "list[Output]":
        """Completions of prompts."""
        from .evaluation.decoding import decode

        with bar(f"decoding {what}", len(prompts)) as on_batch:
            return decode(self.model, self.tokenizer, list(prompts), on_batch=on_batch, **settings)


def surprises_of_run(
    name: str, model: Model, recipe: Recipe, answers: "list[tuple[str | list[dict], str, bool]]"
) -> "list[Surprise]":
    """How unlikely a model finds answers, each a prompt, a text, and whether that ended by itself."""
    from .preferences.perplexity import perplexities

    decoder = Decoder(model, chat=bool(recipe.data.messages))
    prompts, texts, ended = (list(each) for each in zip(*answers, strict=True))
    with bar(f"likelihoods under {name}", len(prompts)) as on_batch:
        return perplexities(
            decoder.model,
            decoder.tokenizer,
            prompts,
            texts,
            batch_size=recipe.evaluation.batch_size,
            ended=ended,
            on_batch=on_batch,
        )


def generate(run: Path, prompts: list, **settings: Any) -> list[str]:
    """Completions of prompts by a run or a model, greedy unless told otherwise."""
    decoder = Decoder(model_of(run), chat=not isinstance(prompts[0], str))
    return [output.text for output in decoder.decode(prompts, str(run), **settings)]


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
