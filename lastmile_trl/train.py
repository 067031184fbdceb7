"""One stage, in this process: model and data to trainer, training, evaluation, card."""

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import checkpoints, memory, models, preflight, rewards
from . import data as data_module
from .errors import InputError, RunError, first_line
from .evaluation import postprocess
from .files import LOCK, locked, write_whole
from .leakage import leaks
from .models import Loaded
from .outputs import (
    bar,
    decodings,
    fingerprint,
    held_out_rows,
    in_memory,
    is_among,
    model_of,
    outputs_of_run,
    samples_of,
    samples_of_run,
    sft_of,
    started_from,
    surprises_of_run,
    surprises_of_samples,
)
from .recipe import IN_ONE_PROCESS, METHODS, RL, Recipe, max_new_tokens, short_names
from .run_folder import (
    alarms,
    environment_of,
    history,
    keep_outputs,
    now,
    starts_of,
    stored_recipe,
    write_environment,
)
from .screen import note
from .seeds import seeds_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer
    from trl import ModelConfig

    from .evaluation.decoding import Output
    from .evaluation.postprocess import Step

REPLACED = "replaced-"  # folders in a run's: earlier runs, from what an earlier stage was before
TRAINERS = {
    "sft": "trl:SFTTrainer",
    "grpo": "trl:GRPOTrainer",
    "rloo": "trl:RLOOTrainer",
    "ppo": "lastmile_trl.trainers.ppo:PPOTrainer",
    "reward": "trl:RewardTrainer",
    "dpo": "trl:DPOTrainer",
}


def run(recipe: Recipe, force: bool = False) -> None:
    """Run the stage and fill its run folder; with `force`, whatever run it holds."""
    with checkpoints.on_full_disk(recipe.run):
        _fill(recipe, force)


def _fill(recipe: Recipe, force: bool) -> None:
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
    force = force or os.environ.get("LASTMILE_FORCE") == "1"
    if state.is_main_process:
        preflight.check_run_folder(recipe, force)
    with locked(recipe.run) if state.is_main_process else nullcontext():
        _run(recipe, state, force)


def _run(recipe: Recipe, state: Any, force: bool) -> None:
    started = time.monotonic()
    if state.is_main_process:
        _prepare_folder(recipe, force)
        write_whole(recipe.run / "recipe.yaml", recipe.yaml())
        write_environment(recipe, state)
    state.wait_for_everyone()
    with memory.explained(recipe, cpu=on_cpu()):
        if recipe.method == "evaluate":
            compare(recipe)
        elif recipe.method == "pairs":
            make_pairs(recipe)
        else:
            _train(recipe)
    if state.is_main_process:
        if recipe.method not in IN_ONE_PROCESS:
            _write_card(recipe.run)
        write_environment(recipe, state, seconds=round(time.monotonic() - started, 1), finished=now())
    state.wait_for_everyone()
    if state.is_main_process and recipe.hub.push:  # the others are done: none waits for an upload
        _push(recipe)


def _prepare_folder(recipe: Recipe, force: bool) -> None:
    """An empty folder, or that of a run from the same starts that goes on, or is only evaluated otherwise."""
    run, stored = recipe.run, environment_of(recipe.run).get("started_from")
    old = [child for child in run.iterdir() if child.name != LOCK and not child.name.startswith(REPLACED)]
    if force:
        for child in sorted(old, key=lambda child: child.name in ("recipe.yaml", "environment.json")):
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    elif old and stored != starts_of(recipe):
        number = next(number for number in count(1) if not (run / f"{REPLACED}{number}").exists())
        aside = run / f"{REPLACED}{number}"
        aside.mkdir()
        for child in old:
            child.rename(aside / child.name)
        note(f"What {run} builds on was made anew since: the run of before lies in {aside}, and this one begins anew.")


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

    state = PartialState()
    if not environment_of(recipe.run).get("trained"):
        checkpoint = _goes_on_from(recipe.run)
        trainer, held_out, task = _build(recipe, checkpoint)
        _add_callbacks(trainer, recipe, held_out, task)
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.left and trainer.state.global_step < trainer.state.max_steps:
            _leave(trainer)
        trainer.save_model(str(recipe.run))
        if state.is_main_process:
            # TRL's frozen copy of the adapter that training went on from; PEFT saves it along.
            shutil.rmtree(recipe.run / "ref", ignore_errors=True)
            checkpoints.sync(file for file in recipe.run.iterdir() if file.is_file())
            write_environment(recipe, state, trained=now())
        if trainer.left:
            _leave(trainer)
        if recipe.method != "reward":
            _evaluate(trainer, recipe, held_out, task)
            if not _asks_models(recipe):
                return
        del trainer  # its memory is needed for other models
        models.free_memory()
    # All but the evaluation is there, as after a crash in it.
    if state.is_main_process:
        rows = data_module.load(recipe.data)
        if recipe.method == "reward":
            return _accept(recipe, rows)
        outputs, held_out, likelihoods = _answers(recipe, {recipe.run.name: recipe.run}, rows)
        metrics = _untrained(recipe.evaluation.metrics, recipe, rows, recipe.run)
        steps = postprocess.build(recipe.evaluation.steps, rows.train["references"])
        _write_own_comparison(recipe, outputs, held_out, metrics, steps, likelihoods)


def _goes_on_from(run: Path) -> str | None:
    """The checkpoint that all processes go on from."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    found = [None]
    if state.is_main_process and (checkpoint := checkpoints.newest(run)):
        checkpoints.check_launch(run, state.num_processes, state.distributed_type.value)
        found = [str(checkpoint)]
    return broadcast_object_list(found)[0] if state.num_processes > 1 else found[0]


def _leave(trainer: "Trainer") -> NoReturn:
    """End the stage early, as a signal asked."""
    if trainer.accelerator.is_main_process:
        state = trainer.state
        note(f"Saved at step {state.global_step} of {state.max_steps} in {trainer.run}.")
    sys.exit(128 + trainer.left)


def _evaluate(trainer: "Trainer", recipe: Recipe, held_out: "Dataset", task: rewards.Task) -> None:
    """What all processes have just trained, on the held-out rows."""
    from .evaluation.decoding import by_row, repeated

    outputs = {}
    for decoding, settings in decodings(recipe.evaluation).items():
        samples = samples_of(recipe.evaluation, decoding)
        flat = _decode_in_training(trainer, recipe, held_out, settings, samples)
        if trainer.accelerator.is_main_process:
            prompts = repeated(held_out["prompt"], samples)
            keep_outputs(recipe.run, fingerprint(prompts, recipe, settings), flat)
        outputs[decoding] = by_row(flat, samples)
    if trainer.accelerator.is_main_process and not _asks_models(recipe):
        metrics = _metrics(recipe, task)
        _introduce(trainer, metrics)
        steps = postprocess.build(recipe.evaluation.steps, task.columns["references"])
        _write_own_comparison(recipe, {recipe.run.name: outputs}, held_out, metrics, steps)


def _asks_models(recipe: Recipe) -> bool:
    """Whether the evaluation may load other models than the one that was trained."""
    return bool(recipe.evaluation.baselines or recipe.evaluation.likelihood)


def _metrics(recipe: Recipe, task: rewards.Task) -> "list[rewards.Reward]":
    return rewards.prepare(rewards.build(recipe.evaluation.metrics), task)


def _write_own_comparison(
    recipe: Recipe,
    outputs: dict,
    held_out: "Dataset",
    metrics: "list[rewards.Reward]",
    steps: "list[Step]",
    likelihoods: dict | None = None,
) -> None:
    """A run beside itself post-processed and baselines, before it is held against others."""
    runs = {recipe.run.name: recipe.run}
    # A recipe may also name runs that only a later evaluation shows.
    shown = [each for each in preflight.post_processed(recipe) if each in outputs]
    rewarded = _rewarded(recipe.evaluation.metrics, [recipe.run])
    _write_comparison(recipe, outputs, runs, held_out, metrics, rewarded, shown, steps, likelihoods or {})


def make_pairs(recipe: Recipe) -> None:
    """`method: pairs`."""
    from accelerate import PartialState

    from .preferences.stage import make

    _check_alone(recipe)
    if not environment_of(recipe.run).get("trained"):
        make(recipe)
        write_environment(recipe, PartialState(), trained=now())


def _check_alone(recipe: Recipe) -> None:
    from accelerate import PartialState

    if PartialState().num_processes > 1:
        raise InputError(f"`method: {recipe.method}` runs in one process: leave --num_processes out.")


def _build(recipe: Recipe, checkpoint: str | None = None) -> "tuple[Trainer, Dataset, rewards.Task]":
    """The method's TRL trainer, the held-out rows with their prompts, and what rewards may know of the task."""
    from accelerate import PartialState
    from transformers import set_seed

    from .evaluation.decoding import end_ids_of

    arguments = _arguments(recipe)
    model_config = models.config_of(recipe.model, recipe.run, recipe.seed)
    chat = bool(recipe.data.messages)
    tokenizer = models.load_tokenizer(model_config.model_name_or_path, model_config.model_revision, chat)
    if chat and recipe.method == "sft":
        arguments.eos_token = tokenizer.eos_token  # written into the model's generation settings too
    if recipe.method in (*RL, "dpo") and model_config.model_revision != "main":
        arguments.model_init_kwargs = {"revision": model_config.model_revision}  # TRL loads the KL reference itself
    with PartialState().main_process_first():
        rows = data_module.load(recipe.data)
        train = data_module.with_prompts(rows.train, recipe.data, tokenizer, rows.notes)
        held_out = held_out_rows(recipe, rows, tokenizer)
        dataset, eval_dataset = _training_rows(recipe, train, held_out, tokenizer, rows.notes)
    if PartialState().is_main_process:
        for text in rows.notes:
            note(text)
    seen = data_module.fingerprint(dataset)
    if checkpoint:
        checkpoints.check_rows(Path(checkpoint), seen)
    if recipe.method == "reward":
        set_seed(arguments.seed)  # of the new head
        model = models.load_reward_model(model_config)
    else:
        model = models.load_model(model_config, trainable=True)
    task = rewards.Task.of(train, end_ids_of(model, tokenizer))
    chosen = rewards.prepare(rewards.build(recipe.rewards), task)
    trainer_class, more = _load_class(TRAINERS[recipe.method]), {}
    if recipe.method in RL:
        more["reward_funcs"] = chosen
    if recipe.guidance:
        trainer_class, guidance = _guided(trainer_class, recipe, model_config, tokenizer)
        more |= guidance
    from .trainers.lasting import lasting

    trainer = lasting(trainer_class)(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=models.new_adapter(model_config, "SEQ_CLS" if recipe.method == "reward" else "CAUSAL_LM"),
        **more,
    )
    trainer.rows = seen
    _introduce(trainer, chosen)
    return trainer, held_out, task


def _guided(
    trainer_class: type, recipe: Recipe, model_config: "ModelConfig", tokenizer: "PreTrainedTokenizerBase"
) -> tuple[type, dict[str, Any]]:
    """The trainer's class with a guide, and what it takes more."""
    from accelerate import PartialState

    from . import guides
    from .preferences.tokens import all_answer_ids
    from .trainers.guidance import guided

    def encode(prompts: list, texts: list[str]) -> list[list[int]]:
        return [answer for _, answer in all_answer_ids(tokenizer, prompts, texts)]

    named = recipe.guidance.guide
    if guides.kind_of(named) == "model":
        guide = models.load_guide(named, model_config, tokenizer)
    else:
        seed = recipe.seed + PartialState().process_index  # or two processes would get the same texts
        if isinstance(named, dict):
            named = {"max_tokens": max_new_tokens(recipe.values), **named}
        guide = guides.build(named, recipe.guidance.sampling, seed)
    return guided(trainer_class), {"guidance": recipe.guidance, "guide": guide, "encode": encode}


def _introduce(trainer: "Trainer", chosen: "list[rewards.Reward]") -> None:
    """The trainer to the rewards that use its model."""
    for reward in chosen:
        if hasattr(reward.function, "for_trainer"):
            reward.function.for_trainer(trainer)


def _training_rows(
    recipe: Recipe, train: "Dataset", held_out: "Dataset", tokenizer: "PreTrainedTokenizerBase", notes: list[str]
) -> "tuple[Dataset, Dataset | None]":
    """The rows as the method's trainer takes them, and those that it evaluates by itself."""
    if recipe.method in RL:
        return train, None
    if recipe.method == "sft":
        return data_module.sft_rows(train, recipe.data, tokenizer, notes), None
    from .preferences.pairs import collect, dpo_rows, reward_rows

    rows_of = reward_rows if recipe.method == "reward" else dpo_rows

    def pairs_of(rows: "Dataset", notes: list[str]) -> "Dataset":
        found = collect(rows, recipe.data, recipe.preferences, tokenizer, recipe.seed)
        notes += found.lines()
        return rows_of(found.pairs, rows, recipe.data, tokenizer, notes)

    looks = recipe.method == "reward" and recipe.evaluation.every
    return pairs_of(train, notes), pairs_of(held_out, []) if looks else None


def _arguments(recipe: Recipe) -> Any:
    """The method's TRL config: what the recipe says, and what this machine and our contract ask for."""
    # Trackio would go on with another run of the same name.
    started = environment_of(recipe.run).get("started", now()).removesuffix("+00:00")
    arguments = {
        "run_name": f"{recipe.run} {started}",
        "project": "lastmile",
        "trackio_static_space_id": False,  # trackio would publish the logs on the Hub
        "trust_remote_code": models.trusts_remote_code(),
        **recipe.training,
    }
    os.environ.setdefault("WANDB_PROJECT", arguments["project"])
    if on_cpu():
        asked = {"use_cpu": True} if "cpu" in _device() else {"ddp_backend": "gloo"}
        arguments = {"bf16": False, "dataloader_pin_memory": False, **arguments, **asked}
    if recipe.method in RL:
        arguments["reward_weights"] = [reward.weight for reward in rewards.build(recipe.rewards)]
        # Dropout would make the policy differ from its own start: noise in the ratio and in the KL.
        arguments = {"log_completions": True, "num_completions_to_print": 0, "disable_dropout": True, **arguments}
    else:
        arguments["max_length"] = None  # data.py has shortened the prompts; TRL would cut the end off, or leave it out
    if recipe.method == "reward" and recipe.evaluation.every:
        arguments |= {"eval_strategy": "steps", "eval_steps": recipe.evaluation.every}
    try:
        return _load_class(METHODS[recipe.method])(**arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"{recipe.source}: section `training`: {first_line(error)}.") from error


def _add_callbacks(trainer: "Trainer", recipe: Recipe, held_out: "Dataset", task: rewards.Task) -> None:
    from transformers import PrinterCallback, ProgressCallback

    from . import callbacks

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(callbacks.Progress(f"{recipe.method} -> {recipe.run}"))
    trainer.add_callback(callbacks.History(recipe.run))
    if recipe.method == "rloo" and trainer.log_completions:
        trainer.add_callback(callbacks.Completions(recipe.run, trainer))
    if recipe.evaluation.every and recipe.method != "reward":
        metrics = _metrics(recipe, task)
        _introduce(trainer, metrics)
        chosen = trainer.reward_funcs if recipe.method in RL else []
        rows = held_out.to_list()

        def decode() -> "list[Output]":
            return _decode_in_training(trainer, recipe, held_out, {"temperature": 0.0})

        every = recipe.evaluation.every
        start = f"start-{fingerprint(held_out['prompt'], recipe, {'temperature': 0.0})}"
        trainer.add_callback(callbacks.HeldOut(recipe.run, trainer, every, decode, start, rows, metrics, chosen))


def _rewarded(metrics: list, runs: Iterable[Path]) -> set[str]:
    """The names of what runs were rewarded for, and of the metrics that are the same by another name."""
    from .evaluation.metrics import AS_REWARDS

    keys = [*map(rewards.key_of, metrics), *AS_REWARDS.values()]
    measured = [(metric.name, metric.function) for metric in rewards.build(metrics)]
    measured += [(name, rewards.build([key])[0].function) for name, key in AS_REWARDS.items()]
    names = set()
    for run in runs:
        names |= set(environment_of(run).get("rewards", []))
        if stored := stored_recipe(run):
            alike = rewards.build(entry for entry in stored.rewards if rewards.key_of(entry) in keys)
            functions = [reward.function for reward in alike]
            names |= {name for name, function in measured if function in functions}
    return names


# --- decoding ------------------------------------------------------------------------------------------------------


def _decode_in_training(
    trainer: "Trainer", recipe: Recipe, rows: "Dataset", settings: dict, samples: int = 1
) -> "list[Output]":
    """Each process decodes its share of the rows with the trainer's model; all get all outputs, row by row."""
    from accelerate.utils import gather_object
    from trl.distributed import DistributedBackend
    from trl.models.utils import unwrap_model_for_generation

    from .evaluation.decoding import decode, draws_of, grouped, repeated

    accelerator = trainer.accelerator
    # Equal shares, some rows twice: sharded weights are gathered at every step, so all processes must take as many.
    size = -(-len(rows) // accelerator.num_processes)
    share = [(accelerator.process_index * size + step) % len(rows) for step in range(size)]
    draws = grouped(draws_of(models.prompt_ids(trainer.processing_class, list(rows["prompt"])), samples), samples)
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            accelerator,
            gather_deepspeed3_params=getattr(trainer.args, "ds3_gather_for_generation", True),
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model,
        DistributedBackend(accelerator).summon_full_params(trainer.model_wrapped, recurse=False),
        bar(f"evaluation of {recipe.run}", size * samples, show=accelerator.is_main_process) as on_batch,
    ):
        outputs = decode(
            model,
            trainer.processing_class,
            repeated([rows[index]["prompt"] for index in share], samples),
            max_new_tokens=max_new_tokens(recipe.values),
            batch_size=recipe.evaluation.batch_size,
            draws=[draw for index in share for draw in draws[index]],
            on_batch=on_batch,
            **settings,
        )
    of_rows = dict(gather_object(list(zip(share, grouped(outputs, samples), strict=True))))
    return [output for index in range(len(rows)) for output in of_rows[index]]


# --- comparing runs ------------------------------------------------------------------------------------------------


def compare(recipe: Recipe) -> dict[str, Any]:
    """`method: evaluate`: decode the held-out rows with every run, and write the comparison."""
    _check_alone(recipe)
    rows = data_module.load(recipe.data)
    runs = short_names(recipe.evaluation.runs)
    outputs, held_out, likelihoods = _answers(recipe, runs, rows)
    metrics = _untrained(recipe.evaluation.metrics, recipe, rows, next(iter(runs.values())))
    steps = postprocess.build(recipe.evaluation.steps, rows.train["references"])
    shown, rewarded = preflight.post_processed(recipe), _rewarded(recipe.evaluation.metrics, runs.values())
    return _write_comparison(recipe, outputs, runs, held_out, metrics, rewarded, shown, steps, likelihoods)


def _untrained(entries: Sequence, recipe: Recipe, rows: data_module.Rows, run: Path) -> "list[rewards.Reward]":
    """Rewards or metrics where no trainer has prepared the training rows, which few of them ask for."""
    train, built = rows.train, rewards.build(entries)
    if any(hasattr(each.function, "for_task") for each in built):
        tokenizer = models.load_tokenizer(str(run), chat=bool(recipe.data.messages))
        train = data_module.with_prompts(train, recipe.data, tokenizer, [])
    return rewards.prepare(built, rewards.Task.of(train))


def _answers(recipe: Recipe, runs: dict[str, Path], rows: data_module.Rows) -> "tuple[dict, Dataset, dict]":
    """The outputs of baselines and runs by decoding, the held-out rows, and the likelihoods of the runs.

    Each model is asked all there is to ask before the next one, so that it loads once. Baselines that no model
    writes stand beside every decoding.
    """
    from .evaluation.baselines import Base, BestOfN, Sft, build
    from .evaluation.metrics import perplexity_of

    loaded, first = in_memory(recipe), next(iter(runs))
    baselines = build(recipe.evaluation.baselines, recipe.data)
    asked = {name: model_of(run) for name, run in runs.items()}
    for baseline in baselines:
        if isinstance(baseline, Base | Sft):
            model = started_from(baseline.name, runs, recipe)
            if not is_among(model, runs):  # nothing is shown twice
                asked[baseline.name] = model
    best = [baseline for baseline in baselines if isinstance(baseline, BestOfN)]
    sampled = {
        baseline.name: started_from(baseline.of, runs, recipe) if baseline.of else asked[first] for baseline in best
    }
    sft = _sft_of_each(runs, recipe) if recipe.evaluation.likelihood else {}
    outputs, samples, perplexities, own = {}, {}, {}, {}

    def draw(baseline: BestOfN) -> None:
        name, model = baseline.of or first, sampled[baseline.name]
        samples[baseline.name] = samples_of_run(name, model, recipe, rows, baseline.n, loaded)

    for name, model in asked.items():
        outputs[name], held_out = outputs_of_run(name, model, recipe, rows, loaded)
        for baseline in best:
            if sampled[baseline.name].path == model.path:
                draw(baseline)
        if name in sft:
            perplexities[name] = perplexity_of(surprises_of_run(name, model, recipe, _references(held_out), loaded))
            if isinstance(sft[name], Path):
                own[name] = surprises_of_samples(name, model, recipe, held_out, outputs[name]["sampled"], loaded)
    for baseline in best:
        if baseline.name not in samples:
            draw(baseline)
    likelihoods = _likelihoods(perplexities, own, recipe, sft, outputs, held_out, loaded)
    loaded.release()  # rewards and metrics load models of their own

    shown, beside = held_out.to_list(), {}
    for baseline in baselines:
        if isinstance(baseline, Base | Sft):
            beside |= {name: outputs[name] for name in (baseline.name,) if name in asked and name not in runs}
            continue
        if isinstance(baseline, BestOfN):
            judges = _untrained(baseline.rewards, recipe, rows, runs[first])
            beside[baseline.name] = {"sampled": baseline.outputs(samples[baseline.name], shown, judges)}
        else:
            beside[baseline.name] = dict.fromkeys(decodings(recipe.evaluation), baseline.outputs(shown))
    return {**{name: outputs[name] for name in runs}, **beside}, held_out, likelihoods


def _references(rows: "Dataset") -> list[tuple]:
    return [(row["prompt"], text, True) for row in rows for text in row["references"]]


def _sft_of_each(runs: dict[str, Path], recipe: Recipe) -> dict[str, Path | str]:
    """The run of SFT that each run goes back to, or why `kl_to_sft` cannot be told of it."""
    if not recipe.evaluation.sampled:
        return dict.fromkeys(runs, "nothing was sampled")
    if not recipe.evaluation.temperature == recipe.evaluation.top_p == 1:
        return dict.fromkeys(runs, "samples must be drawn at temperature 1 and top_p 1")
    return {
        name: sft_of({name: run}, recipe) or "it is no run of RL that goes back to a run of SFT"
        for name, run in runs.items()
    }


def _likelihoods(
    perplexities: dict[str, float],
    own: dict[str, list],
    recipe: Recipe,
    sft: dict,
    outputs: dict,
    rows: "Dataset",
    loaded: Loaded,
) -> dict[str, dict[str, dict[str, Any]]]:
    """`reference_perplexity` and `kl_to_sft` of each run: a number, an interval, or the reason why there is none."""
    from .evaluation.decoding import grouped
    from .evaluation.metrics import divergences
    from .evaluation.significance import interval
    from .rewards.base import known_mean

    found = {}
    for name, perplexity in perplexities.items():
        found[name] = {decoding: {"reference_perplexity": perplexity} for decoding in outputs[name]}
        kl = sft[name]
        if name in own:
            other = surprises_of_samples("sft", model_of(kl), recipe, rows, outputs[name]["sampled"], loaded)
            of_rows = grouped(divergences(own[name], other), samples_of(recipe.evaluation, "sampled"))
            kl = interval([known_mean(of_row) for of_row in of_rows])
        found[name]["sampled" if recipe.evaluation.sampled else "greedy"]["kl_to_sft"] = kl
    return found


def _write_comparison(
    recipe: Recipe,
    outputs: dict,
    runs: dict[str, Path],
    held_out: "Dataset",
    metrics: "list[rewards.Reward]",
    rewarded: set[str],
    postprocessed: list[str],
    steps: "list[Step]",
    likelihoods: dict[str, dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    from .evaluation import comparison
    from .evaluation.baselines import source_column
    from .evaluation.metrics import corpus_metrics, described
    from .evaluation.report import write_report
    from .evaluation.tables import summary

    rows = held_out.to_list()
    beside = [name for name in outputs if name not in runs]
    # A run is held against another run, or against the only thing there is.
    baseline = beside[0] if len(beside) == len(runs) == 1 else next(iter(runs))
    result = comparison.compare(
        {baseline: outputs[baseline], **outputs},
        rows,
        metrics,
        rewarded=rewarded,
        postprocessed=postprocessed,
        steps=steps,
        seeds=seeds_of(runs),
        baseline=baseline,
        beside=beside,
    )
    result |= described(corpus_metrics(outputs, rows, source_column(recipe.data)), likelihoods)
    result["notes"] = leaks(runs, recipe)
    write_whole(recipe.run / "evaluation.json", json.dumps(result, indent=1))
    write_whole(recipe.run / "evaluation.md", summary(result))
    histories = {name: history(run) for name, run in runs.items()}
    write_report(result, histories, recipe.run / "report.html", [*alarms(runs), *recipe.evaluation.notes])
    return result


# --- reward models -------------------------------------------------------------------------------------------------


def _accept(recipe: Recipe, rows: data_module.Rows) -> None:
    """What the reward model says of held-out pairs and of what models really answer, and whether that will do."""
    from .evaluation import acceptance, metrics
    from .preferences.pairs import collect

    tokenizer = models.load_tokenizer(str(recipe.run), chat=bool(recipe.data.messages))
    held_out = held_out_rows(recipe, rows, tokenizer)
    rated = held_out.to_list()
    arguments = {"model": str(recipe.run), "centre": False, "load_in_4bit": bool(recipe.model.get("load_in_4bit"))}
    [model] = rewards.build([{"model": arguments}])

    def scores(prompts: list, texts: list[str], ended: list[bool]) -> list[float]:
        completions = [
            data_module.completion(prompt, text.strip()) for prompt, text in zip(prompts, texts, strict=True)
        ]
        return model(completions, prompts=prompts, ended=ended)

    pairs = collect(held_out, recipe.data, recipe.preferences, tokenizer, recipe.seed).pairs
    prompts = [rated[pair.row]["prompt"] for pair in pairs]
    chosen = scores(prompts, [pair.chosen for pair in pairs], [pair.chosen_ended for pair in pairs])
    rejected = scores(prompts, [pair.rejected for pair in pairs], [pair.rejected_ended for pair in pairs])
    scored = [
        acceptance.Scored(
            pair.category, better, worse, len(pair.chosen.split()), len(pair.rejected.split()), prompt, pair.chosen,
            pair.rejected,
        )
        for pair, prompt, better, worse in zip(pairs, prompts, chosen, rejected, strict=True)
    ]  # fmt: skip

    prompts, references = [row["prompt"] for row in rated], [row["references"][0] for row in rated]
    of_references = scores(prompts, references, [True] * len(rated))
    first = _untrained(recipe.evaluation.metrics, recipe, rows, recipe.run)[:1]
    samples, loaded = [], Loaded()
    for name, run in _language_models(recipe).items():
        for decoding, outputs in outputs_of_run(name, model_of(run), recipe, rows, loaded)[0].items():
            [of_outputs] = metrics.scored(outputs, rated, [model]).values()  # as RL has them read
            [measured] = metrics.scored(outputs, rated, first).values() or [[None] * len(rated)]
            samples += [
                acceptance.Sample(
                    name, decoding, row["prompt"], output.text, score, of_reference, len(output.text.split()),
                    len(reference.split()), value,
                )
                for row, output, score, of_reference, reference, value in zip(
                    rated, outputs, of_outputs, of_references, references, measured, strict=True
                )
            ]  # fmt: skip
    metric = first[0].name if first else None
    result = acceptance.acceptance(scored, samples, metric=metric, require=recipe.preferences.require)
    write_whole(recipe.run / "evaluation.json", json.dumps(result, indent=1))
    write_whole(recipe.run / "evaluation.md", acceptance.markdown(result))
    histories = {recipe.run.name: history(recipe.run)}
    acceptance.write_page(result, histories, recipe.run / "report.html", recipe.evaluation.notes)
    if result["failures"]:
        raise RunError(
            f"{recipe.run} is not fit to be a reward: {' '.join(result['failures'])} See {recipe.run / 'report.html'}; "
            "train it longer or on other pairs, or lower preferences.require."
        )


def _language_models(recipe: Recipe) -> dict[str, Path]:
    """The models whose outputs a reward model is tried on: those named, else the one it started from."""
    start = recipe.model["model_name_or_path"]
    named = recipe.evaluation.runs or (
        [] if start.startswith("synthetic:") or models.is_reward_model(start) else [start]
    )
    return short_names(named)


def _write_card(run: Path) -> None:
    from .card import model_card

    (run / "README.md").write_text(model_card(run), encoding="utf-8")


def _push(recipe: Recipe) -> None:
    """A push that fails never loses a finished run, nor stops the stages after it: it says how to push again."""
    from .hub import command, options_of, push

    given = recipe.run, recipe.hub.repo
    again = command(*given, **options_of(recipe))
    note(f"{recipe.run} is finished and is being pushed. If that is stopped, push it with `{again}`.")
    try:
        note(f"Pushed to {push(*given, **options_of(recipe))}")
    except Exception as error:  # whatever it is, the run is finished
        remedy = "" if again in str(error) else f" Push it with `{again}`."
        note(f"Warning: {recipe.run} is finished, but its push failed. {first_line(error)}.{remedy}")
