"""One stage, in this process: model and data to trainer, training, evaluation, card."""

import gc
import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import data as data_module
from . import models, preflight, rewards
from .errors import InputError, RunError
from .recipe import METHODS, RL, Recipe, max_new_tokens, short_names
from .run_folder import (
    alarms,
    environment_of,
    history,
    keep_outputs,
    kept_outputs,
    now,
    starts_of,
    stored_recipe,
    write_environment,
)
from .screen import note

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer

    from .evaluation.decoding import Output

TRAINERS = {
    "sft": "trl:SFTTrainer",
    "grpo": "trl:GRPOTrainer",
    "rloo": "trl:RLOOTrainer",
    "ppo": "lastmile_trl.trainers.ppo:PPOTrainer",
}
OUTPUTS = "text, ids, ended"  # what is kept of each completion


def run(recipe: Recipe) -> None:
    """Run the stage and fill its run folder."""
    from accelerate import PartialState

    state = PartialState(**_device())
    expected = int(os.environ.get("LASTMILE_PROCESSES", state.num_processes))
    if state.num_processes != expected:
        raise RunError(
            f"{expected} processes were asked for, but {state.num_processes} started: use another --accelerate."
        )
    sharded_by = os.environ.get("LASTMILE_SHARDED_BY", state.distributed_type.value)
    if state.distributed_type.value != sharded_by:
        raise RunError(f"{sharded_by} was asked for, but {state.distributed_type.value} started: see --accelerate.")
    started = time.monotonic()
    if state.is_main_process:
        _prepare_folder(recipe)
        (recipe.run / "recipe.yaml").write_text(recipe.yaml(), encoding="utf-8")
        write_environment(recipe, state)
    state.wait_for_everyone()
    compare(recipe) if recipe.method == "evaluate" else _train(recipe)
    if state.is_main_process:
        if recipe.method != "evaluate":
            _write_card(recipe.run)
        write_environment(recipe, state, seconds=round(time.monotonic() - started, 1), finished=now())
        if recipe.hub.push:
            _push(recipe)
    state.wait_for_everyone()


def _prepare_folder(recipe: Recipe) -> None:
    """An empty folder, or that of a run from the same starts that goes on, or is only evaluated otherwise."""
    force = os.environ.get("LASTMILE_FORCE") == "1"
    preflight.check_run_folder(recipe, force)
    if recipe.run.exists():
        stored = environment_of(recipe.run).get("started_from")
        if force or stored != starts_of(recipe):
            for child in recipe.run.iterdir():  # the folder itself may be a link or a mounted disk
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    recipe.run.mkdir(parents=True, exist_ok=True)


def _device() -> dict[str, Any]:
    """What accelerate has to be told about the device; it shards with DeepSpeed on a CPU only if not told so."""
    if on_cpu() and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return {"backend": "gloo"}
    return {"cpu": on_cpu()}


def on_cpu() -> bool:
    """Whether this process computes on the CPU, by lack of an accelerator or by wish."""
    import torch

    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()


def _load_class(path: str) -> type:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


# --- training ------------------------------------------------------------------------------------------------------


def _train(recipe: Recipe) -> None:
    from accelerate import PartialState
    from transformers.trainer_utils import get_last_checkpoint

    state = PartialState()
    if environment_of(recipe.run).get("trained"):  # all but the evaluation, as after a crash in it
        if state.is_main_process:
            rows = data_module.load(recipe.data)
            outputs, held_out = _outputs_of_run(recipe.run.name, recipe.run, recipe, rows)
            _write_own_comparison(recipe, outputs, held_out, rewards.Task.of(rows.train))
        return
    trainer, held_out, task = _build(recipe)
    _add_callbacks(trainer, recipe, held_out, task)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(recipe.run)))
    trainer.save_model(str(recipe.run))
    if state.is_main_process:
        # TRL's frozen copy of the adapter that training went on from; PEFT saves it along.
        shutil.rmtree(recipe.run / "ref", ignore_errors=True)
        write_environment(recipe, state, trained=now())

    outputs = {
        decoding: _decode_in_training(trainer, recipe, held_out, settings)
        for decoding, settings in _decodings(recipe.evaluation).items()
    }
    if state.is_main_process:
        for decoding, settings in _decodings(recipe.evaluation).items():
            keep_outputs(recipe.run, _fingerprint(held_out["prompt"], recipe, settings), outputs[decoding])
        _write_own_comparison(recipe, outputs, held_out, task)


def _write_own_comparison(recipe: Recipe, outputs: dict, held_out: "Dataset", task: rewards.Task) -> None:
    """A run beside itself post-processed, before it is held against others."""
    name = recipe.run.name
    _write_comparison(recipe, {name: outputs}, {name: recipe.run}, held_out, task, _reward_names(recipe), [name])


def _build(recipe: Recipe) -> "tuple[Trainer, Dataset, rewards.Task]":
    """The method's TRL trainer, the held-out rows with their prompts, and what rewards may know of the task."""
    from accelerate import PartialState
    from trl import ModelConfig

    from .evaluation.decoding import end_ids_of

    arguments = _arguments(recipe)
    model_config = ModelConfig(**recipe.model)
    trust = arguments.trust_remote_code
    if model_config.model_name_or_path.startswith("synthetic:"):
        from .synthetic import build_base

        base = recipe.run / "base"
        with PartialState().main_process_first():
            if not base.exists():
                build_base(base, seed=arguments.seed)
        model_config = replace(model_config, model_name_or_path=str(base))
    chat = bool(recipe.data.messages)
    tokenizer = models.load_tokenizer(model_config.model_name_or_path, model_config.model_revision, trust, chat)
    if chat and recipe.method == "sft":
        arguments.eos_token = tokenizer.eos_token  # written into the model's generation settings too
    if recipe.method in RL and model_config.model_revision != "main":
        arguments.model_init_kwargs = {"revision": model_config.model_revision}  # TRL loads the KL reference itself
    with PartialState().main_process_first():
        train, held_out, notes = _rows(recipe, tokenizer)
    if PartialState().is_main_process:
        for text in notes:
            note(text)
    model = models.load_model(model_config, trust, trainable=True)
    task = rewards.Task.of(train, end_ids_of(model, tokenizer))
    chosen = rewards.prepare(rewards.build(recipe.rewards), task)
    trainer = _load_class(TRAINERS[recipe.method])(
        model=model,
        args=arguments,
        train_dataset=train,
        processing_class=tokenizer,
        peft_config=models.new_adapter(model_config),
        **({"reward_funcs": list(chosen)} if recipe.method in RL else {}),
    )
    return trainer, held_out, task


def _arguments(recipe: Recipe) -> Any:
    """The method's TRL config: what the recipe says, and what this machine and our contract ask for."""
    arguments = {
        "run_name": str(recipe.run),
        "project": "lastmile",
        "trackio_static_space_id": False,  # trackio would publish the logs on the Hub
        **recipe.training,
    }
    if on_cpu():
        asked = {"use_cpu": True} if "cpu" in _device() else {"ddp_backend": "gloo"}
        arguments = {"bf16": False, "dataloader_pin_memory": False, **arguments, **asked}
    if recipe.method == "sft":
        arguments["max_length"] = None  # data.py has shortened the prompts; TRL would cut the end off
    else:
        arguments["reward_weights"] = [reward.weight for reward in rewards.build(recipe.rewards)]
        # Dropout would make the policy differ from its own start: noise in the ratio and in the KL.
        arguments = {"log_completions": True, "num_completions_to_print": 0, "disable_dropout": True, **arguments}
    try:
        return _load_class(METHODS[recipe.method])(**arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"{recipe.source}: section `training`: {error}") from error


def _rows(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> "tuple[Dataset, Dataset, list[str]]":
    rows = data_module.load(recipe.data)
    train = data_module.with_prompts(rows.train, recipe.data, tokenizer, rows.notes)
    held_out = held_out_rows(recipe, rows, tokenizer)
    if recipe.method == "sft":
        train = data_module.sft_rows(train, recipe.data, tokenizer, rows.notes)
    return train, held_out, rows.notes


def held_out_rows(recipe: Recipe, rows: data_module.Rows, tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """The held-out rows that evaluation looks at, with their prompts."""
    chosen = rows.held_out.take(min(recipe.evaluation.rows, len(rows.held_out)))
    return data_module.with_prompts(chosen, recipe.data, tokenizer, rows.notes)


def _add_callbacks(trainer: "Trainer", recipe: Recipe, held_out: "Dataset", task: rewards.Task) -> None:
    from transformers import PrinterCallback, ProgressCallback

    from . import callbacks

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(callbacks.Progress(f"{recipe.method} -> {recipe.run}"))
    trainer.add_callback(callbacks.History(recipe.run))
    if recipe.method == "rloo" and trainer.log_completions:
        trainer.add_callback(callbacks.Completions(recipe.run, trainer))
    if recipe.evaluation.every:
        metrics = rewards.prepare(rewards.build(recipe.evaluation.metrics), task)
        chosen = trainer.reward_funcs if recipe.method in RL else []
        rows = held_out.to_list()

        def decode() -> "list[Output]":
            return _decode_in_training(trainer, recipe, held_out, {"temperature": 0.0})

        every = recipe.evaluation.every
        start = f"start-{_fingerprint(held_out['prompt'], recipe, {'temperature': 0.0})}"
        trainer.add_callback(callbacks.HeldOut(recipe.run, trainer, every, decode, start, rows, metrics, chosen))


def _reward_names(recipe: Recipe) -> set[str]:
    return {reward.name for reward in rewards.build(recipe.rewards)}


# --- decoding ------------------------------------------------------------------------------------------------------


def _decodings(evaluation: Any) -> dict[str, dict[str, float]]:
    """What is decoded, by name: greedy, and once sampled."""
    settings = {"greedy": {"temperature": 0.0}}
    if evaluation.sampled:
        settings["sampled"] = {
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "seed": evaluation.seed,
        }
    return settings


def _decode_in_training(trainer: "Trainer", recipe: Recipe, rows: "Dataset", settings: dict) -> "list[Output]":
    """Each process decodes its share of the rows with the trainer's model; all get all outputs."""
    from accelerate.utils import gather_object
    from trl.distributed import DistributedBackend
    from trl.models.utils import unwrap_model_for_generation

    from .evaluation.decoding import decode

    accelerator = trainer.accelerator
    # Equal shares, some rows twice: sharded weights are gathered at every step, so all processes must take as many.
    size = -(-len(rows) // accelerator.num_processes)
    share = [(accelerator.process_index * size + step) % len(rows) for step in range(size)]
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            accelerator,
            gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model,
        DistributedBackend(accelerator).summon_full_params(trainer.model_wrapped, recurse=False),
        _bar(f"evaluation of {recipe.run}", size, show=accelerator.is_main_process) as on_batch,
    ):
        outputs = decode(
            model,
            trainer.processing_class,
            [rows[index]["prompt"] for index in share],
            max_new_tokens=max_new_tokens(recipe.values),
            batch_size=recipe.evaluation.batch_size,
            on_batch=on_batch,
            **settings,
        )
    by_row = dict(gather_object(list(zip(share, outputs, strict=True))))
    return [by_row[index] for index in range(len(rows))]


def _fingerprint(prompts: list, recipe: Recipe, settings: dict) -> str:
    """Names a file of outputs by all that decides them, but the model."""
    said = json.dumps([OUTPUTS, list(prompts), max_new_tokens(recipe.values), settings], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


# --- comparing runs ------------------------------------------------------------------------------------------------


def compare(recipe: Recipe) -> dict[str, Any]:
    """`method: evaluate`: decode the held-out rows with every run, and write the comparison."""
    from accelerate import PartialState

    if PartialState().num_processes > 1:
        raise InputError("`method: evaluate` runs in one process: leave --num_processes out.")
    rows = data_module.load(recipe.data)
    task = rewards.Task.of(rows.train)
    runs = short_names(recipe.evaluation.runs)
    postprocess = recipe.evaluation.postprocess
    postprocess = [next(iter(runs))] if postprocess is None else postprocess
    outputs, rewarded, held_out, notes = {}, set(), None, []
    for name, run in runs.items():
        outputs[name], held_out = _outputs_of_run(name, run, recipe, rows)
        rewarded |= set(environment_of(run).get("rewards", []))
        if (stored := stored_recipe(run)) and (key := _other_rows(stored.data, recipe.data)):
            notes.append(f"{name} was trained with another data.{key}: it may have seen rows that are held out here.")
    for text in notes:
        note(text)
    return _write_comparison(recipe, outputs, runs, held_out, task, rewarded, postprocess, notes)


def _outputs_of_run(name: str, run: Path, recipe: Recipe, rows: data_module.Rows) -> "tuple[dict, Dataset]":
    """A run's outputs for the held-out rows by decoding, those it has kept or new ones; and the rows."""
    tokenizer, decode = _decoder(run, chat=bool(recipe.data.messages))
    held_out = held_out_rows(recipe, rows, tokenizer)
    outputs = {}
    for decoding, settings in _decodings(recipe.evaluation).items():
        fingerprint = _fingerprint(held_out["prompt"], recipe, settings)
        outputs[decoding] = kept_outputs(run, fingerprint)
        if outputs[decoding] is None:
            outputs[decoding] = decode(
                held_out["prompt"],
                f"{name}, {decoding}",
                max_new_tokens=max_new_tokens(recipe.values),
                batch_size=recipe.evaluation.batch_size,
                **settings,
            )
            if stored_recipe(run):
                keep_outputs(run, fingerprint, outputs[decoding])
    return outputs, held_out


def _other_rows(trained: Any, evaluated: Any) -> str | None:
    """The first key by which two data sections hold out different rows."""
    keys = ("path", "name", "revision", "split", "eval_split", "held_out", "group_by")
    return next((key for key in keys if getattr(trained, key) != getattr(evaluated, key)), None)


def _write_comparison(
    recipe: Recipe,
    outputs: dict,
    runs: dict[str, Path],
    held_out: "Dataset",
    task: rewards.Task,
    rewarded: set[str],
    postprocess: list[str],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    from .evaluation import comparison
    from .evaluation.report import write_report

    result = comparison.compare(
        outputs,
        held_out.to_list(),
        rewards.prepare(rewards.build(recipe.evaluation.metrics), task),
        rewarded=rewarded,
        postprocessed=postprocess,
    )
    (recipe.run / "evaluation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    histories = {name: history(run) for name, run in runs.items()}
    write_report(result, histories, recipe.run / "report.html", [*notes, *alarms(runs), *recipe.evaluation.notes])
    return result


def _decoder(run: Path, chat: bool = False) -> "tuple[PreTrainedTokenizerBase, Callable[..., list[Output]]]":
    """The tokenizer of a run or model, and a function that loads its model at the first call."""
    import torch
    from trl import ModelConfig

    preflight.check_model(str(run))
    stored = stored_recipe(run)
    section = {k: v for k, v in stored.model.items() if k != "model_revision"} if stored else {"dtype": "auto"}
    trust = bool(stored and stored.training.get("trust_remote_code"))
    config = ModelConfig(**{**section, "model_name_or_path": str(run)})
    tokenizer = models.load_tokenizer(str(run), trust_remote_code=trust, chat=chat)

    @cache
    def model() -> Any:
        gc.collect()  # the model of the run before
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return _on_device(models.load_model(config, trust))

    def decode_rows(prompts: list, what: str, **settings: Any) -> "list[Output]":
        from .evaluation.decoding import decode

        with _bar(f"decoding {what}", len(prompts)) as on_batch:
            return decode(model(), tokenizer, list(prompts), on_batch=on_batch, **settings)

    return tokenizer, decode_rows


def _on_device(model: Any) -> Any:
    from accelerate import PartialState

    return model if getattr(model, "hf_device_map", None) else model.to(PartialState().device)


@contextmanager
def _bar(what: str, total: int, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(total=total, desc=what, dynamic_ncols=True, leave=False, disable=not show) as bar:
        yield lambda done, _: bar.update(done - bar.n)


def generate(run: Path, prompts: list, **settings: Any) -> list[str]:
    """Completions of prompts by a run or a model, greedy unless told otherwise."""
    _, decode = _decoder(run, chat=not isinstance(prompts[0], str))
    return [output.text for output in decode(prompts, str(run), **settings)]


def _write_card(run: Path) -> None:
    from .hub import card

    (run / "README.md").write_text(card(run), encoding="utf-8")


def _push(recipe: Recipe) -> None:
    """A push that fails never loses a finished run: it says how to push again."""
    from .hub import push

    hub = recipe.hub
    try:
        url = push(recipe.run, hub.repo, private=hub.private, merge=hub.merge, revision=hub.revision)
        note(f"Pushed to {url}")
    except (RunError, InputError) as error:
        note(f"The run is finished, but its push failed. {error}")
