"""What runs and models answer to prompts: decoded once, and kept in their run folders."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import data as data_module
from . import models, preflight
from .errors import InputError, unknown
from .models import Loaded
from .recipe import RL, Evaluation, Recipe, max_new_tokens
from .run_folder import keep_outputs, keep_some_outputs, kept_outputs, some_kept_outputs, stored_recipe
from .screen import note

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .evaluation.decoding import Output
    from .evaluation.vllm_decoding import Engines
    from .preferences.perplexity import Surprise

KEPT = "text, ids, ended"  # of each output


def decodings(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """What is decoded, by name: greedy, and sampled."""
    settings = {"greedy": {"temperature": 0.0}}
    if evaluation.sampled:
        settings["sampled"] = sampling(evaluation)
    return settings


def sampling(evaluation: Evaluation) -> dict[str, float]:
    """How a sample is drawn."""
    return {"temperature": evaluation.temperature, "top_p": evaluation.top_p, "seed": evaluation.seed}


def samples_of(evaluation: Evaluation, decoding: str) -> int:
    """How many outputs of a row a decoding has."""
    return evaluation.samples if decoding == "sampled" else 1


def fingerprint(prompts: list, recipe: Recipe, settings: dict) -> str:
    """Names a file of outputs by all that decides them, but the model."""
    engine = ["vllm"] if recipe.evaluation.use_vllm else []
    said = json.dumps([KEPT, list(prompts), max_new_tokens(recipe.values), settings, *engine], sort_keys=True)
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
        if section.get("use_peft") and not (run / "adapter_config.json").exists():
            section |= {"load_in_4bit": False, "load_in_8bit": False}  # merged into full weights
    return Model(run, section)


def outputs_of_run(
    name: str, model: Model, recipe: Recipe, rows: data_module.Rows, loaded: "Loaded | Engines"
) -> "tuple[dict[str, list[Output]], Dataset]":
    """A run's outputs for the held-out rows by decoding, those it has kept or new ones; and the rows."""
    from .evaluation.decoding import by_row

    decoder = Decoder(model, chat=bool(recipe.data.messages), loaded=loaded)
    held_out = held_out_rows(recipe, rows, decoder.tokenizer)
    outputs = {}
    for decoding, settings in decodings(recipe.evaluation).items():
        samples = samples_of(recipe.evaluation, decoding)
        flat = _kept_or_new(f"{name}, {decoding}", decoder, recipe, held_out, settings, samples)
        outputs[decoding] = by_row(flat, samples)
    return outputs, held_out


def samples_of_run(
    name: str, model: Model, recipe: Recipe, rows: data_module.Rows, count: int, loaded: "Loaded | Engines"
) -> "list[list[Output]]":
    """Several samples of a run for each held-out row, those it has kept or new ones."""
    from .evaluation.decoding import grouped

    decoder = Decoder(model, chat=bool(recipe.data.messages), loaded=loaded)
    held_out = held_out_rows(recipe, rows, decoder.tokenizer)
    settings = sampling(recipe.evaluation)
    return grouped(_kept_or_new(f"{name}, {count} samples", decoder, recipe, held_out, settings, count), count)


def _kept_or_new(
    what: str, decoder: "Decoder", recipe: Recipe, rows: "Dataset", settings: dict[str, float], samples: int
) -> "list[Output]":
    from .evaluation.decoding import draws_of, repeated

    prompts, run = repeated(rows["prompt"], samples), decoder.run
    key = fingerprint(prompts, recipe, settings)
    outputs = kept_outputs(run, key)
    if outputs is None:
        settings = settings | {"max_new_tokens": max_new_tokens(recipe.values)}
        settings["batch_size"] = recipe.evaluation.batch_size
        settings["draws"] = draws_of(models.prompt_ids(decoder.tokenizer, list(rows["prompt"])), samples)
        if not stored_recipe(run):
            return decoder.decode(prompts, what, **settings)
        keep = partial(keep_some_outputs, run, key)
        outputs = decoder.decode(prompts, what, known=some_kept_outputs(run, key), on_outputs=keep, **settings)
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
        return Model(Path(adapter["base_model_name_or_path"]), section)
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


def in_memory(recipe: Recipe) -> "Loaded | Engines":
    """Nothing yet: what will hold the model that is asked."""
    if not recipe.evaluation.use_vllm:
        return Loaded()
    from .evaluation.vllm_decoding import Engines

    return Engines()


class Decoder:
    """A model that answers prompts, and its tokenizer; the model loads at its first use."""

    def __init__(self, model: Model, chat: bool = False, loaded: "Loaded | Engines | None" = None):
        from trl import ModelConfig

        preflight.check_language_model(str(model.path), model.revision)
        self.run = model.path
        self.config = ModelConfig(**{**model.section, "model_name_or_path": str(model.path)})
        self.tokenizer = models.load_tokenizer(str(model.path), self.config.model_revision, chat)
        self.loaded = loaded or Loaded()

    @property
    def model(self) -> Any:
        """The loaded model."""
        return self.loaded.model(self.config)

    def decode(self, prompts: list, what: str, **settings: Any) -> "list[Output]":
        """Completions of prompts."""
        from .evaluation.decoding import decode
        from .evaluation.vllm_decoding import Engine

        model = self.model
        answer = model.decode if isinstance(model, Engine) else partial(decode, model)
        with bar(f"decoding {what}", len(prompts), done=len(settings.get("known") or {})) as on_batch:
            return answer(self.tokenizer, list(prompts), on_batch=on_batch, **settings)


def surprises_of_run(
    name: str, model: Model, recipe: Recipe, answers: "list[tuple[str | list[dict], str, bool]]", loaded: Loaded
) -> "list[Surprise]":
    """How unlikely a model finds answers, each a prompt, a text, and whether that ended by itself."""
    from .preferences.perplexity import perplexities

    decoder = Decoder(model, chat=bool(recipe.data.messages), loaded=loaded)
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


def surprises_of_samples(
    name: str, model: Model, recipe: Recipe, rows: "Dataset", outputs: "list[Output]", loaded: Loaded
) -> "list[Surprise]":
    """How unlikely a model finds the very tokens that were generated for the rows, by itself or by another model."""
    from .evaluation.decoding import each
    from .preferences.perplexity import surprises

    decoder = Decoder(model, chat=bool(recipe.data.messages), loaded=loaded)
    prompts, said = zip(*((row["prompt"], output.ids) for output, row in each(outputs, rows)), strict=True)
    ids = list(zip(models.prompt_ids(decoder.tokenizer, list(prompts)), said, strict=True))
    with bar(f"samples under {name}", len(ids)) as on_batch:
        return surprises(decoder.model, ids, prompts, batch_size=recipe.evaluation.batch_size, on_batch=on_batch)


def generate(run: Path, prompts: list, **settings: Any) -> list[str]:
    """Completions of prompts by a run or a model, greedy unless told otherwise."""
    decoder = Decoder(model_of(run), chat=not isinstance(prompts[0], str))
    return [output.text for output in decoder.decode(prompts, str(run), **settings)]


@contextmanager
def bar(what: str, total: int, show: bool = True, done: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Progress as a function of how many are done: a bar on a terminal, in a log a line a minute and one at the end."""
    from tqdm import tqdm

    if not show:
        yield lambda done, _: None
    elif sys.stderr.isatty():
        with tqdm(total=total, desc=what, dynamic_ncols=True, leave=False, initial=done) as shown:
            yield lambda done, _: shown.update(done - shown.n)
    else:
        yield _Lines(what, done).tell


class _Lines:
    """Progress in a file."""

    EVERY = 60.0  # seconds

    def __init__(self, what: str, known: int):
        self.what, self.known = what, known
        self.started = self.told = time.monotonic()

    def tell(self, done: int, total: int) -> None:
        from tqdm import tqdm

        now = time.monotonic()
        if done == total or now - self.told >= self.EVERY:
            self.told = now
            note(tqdm.format_meter(done, total, now - self.started, ncols=0, prefix=self.what, initial=self.known))
