"""Everything that can be known before a model loads, found in seconds."""

import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from . import data as data_module
from . import fit, rewards
from .checkpoints import check_launch
from .errors import InputError, RunError, did_you_mean, first_line, unknown
from .evaluation import postprocess
from .evaluation.metrics import ALWAYS_MEASURED
from .files import LOCK, file_in_the_way
from .launch import SHARDED
from .models import adapter_config, check_safetensors, is_known, is_reward_model, read_json, trusts_remote_code
from .recipe import IN_ONE_PROCESS, METHODS, RL, WITH_PAIRS, Recipe, read, short_names
from .rewards import Reward
from .rewards.classifier import Classifier, check_has_label
from .rewards.model import Model, check_is_reward_model
from .rewards.probe import probe, unreadable, why_not
from .schema import default

if TYPE_CHECKING:
    from .evaluation.baselines import Baseline

ENCODER_DECODERS = {"t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "led", "blenderbot", "m2m_100"}
LARGE_RATE = 0.01
SAMPLE = 50  # rows that the rewards are tried on


@dataclass
class Findings:
    """What a check found: what must be mended, what is suspicious, and what is good to know."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(
    recipe: Recipe,
    processes: int = 1,
    upcoming: Collection[Path] = (),
    force: bool = False,
    distributed: str = "NO",
    stages: Sequence[Recipe] = (),
) -> Findings:
    """Look for everything that would stop the recipe.

    ``upcoming`` are run folders that earlier stages will make, ``stages`` the recipes of all, ``distributed`` is
    accelerate's kind of launch.
    """
    findings = Findings()
    if any(_on_hub(name, upcoming) for name in [*recipe.builds_on, recipe.data.path]):
        _go_offline_without_connection(findings.notes)
    checks: list[Callable[[], None]] = [
        lambda: check_run_folder(recipe, force),
        lambda: None if force else check_launch(recipe.run, processes, distributed),
        lambda: _check_models(recipe, upcoming),
        lambda: _check_room(recipe, upcoming),
        lambda: _check_critic(recipe, upcoming, distributed),
        lambda: _check_guide(recipe, upcoming, distributed, findings),
        lambda: _check_packages(recipe, distributed),
        lambda: _check_vllm(recipe, upcoming),
        lambda: _check_preferences(recipe),
        lambda: _check_baselines(recipe, upcoming),
        lambda: _check_postprocessed(recipe, upcoming, findings),
        lambda: _check_data(recipe, processes, upcoming, distributed, findings),
        lambda: _check_leaks(recipe, stages, findings),
        lambda: _check_hub(recipe),
    ]
    for step in checks:
        try:
            step()
        except (InputError, RunError) as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename or 'A file'} cannot be read: {error.strerror or first_line(error)}."
        else:
            continue
        if problem not in findings.problems:  # of one model, two checks may say the same
            findings.problems.append(problem)
    return findings


def _on_hub(name: str, upcoming: Collection[Path]) -> bool:
    return not (name.startswith("synthetic:") or os.path.exists(os.path.expanduser(name)) or Path(name) in upcoming)


def _go_offline_without_connection(notes: list[str]) -> None:
    """One quick question spares the minute that the Hub's client would try, here and in the stages."""
    if "HF_HUB_OFFLINE" in os.environ:
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=10)
    except urllib.error.HTTPError:
        return  # an answer is an answer
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        notes.append("The Hub cannot be reached: only what is in the cache can be used.")


def check_run_folder(recipe: Recipe, force: bool) -> None:
    """A run folder belongs to one recipe; `--force` says that an old run may go, but never what is no run of ours."""
    _check_place(recipe.run)
    for start in recipe.needs:
        place = Path(start).expanduser().resolve()
        if recipe.run.resolve() in (place, *place.parents):
            raise InputError(f"{start!r} lies in the run folder {recipe.run}: set another training.output_dir.")
    there = {child.name for child in recipe.run.iterdir()} if recipe.run.exists() else set()
    if not there - {LOCK}:
        return
    # One that was stopped in its first moments, or while --force emptied it, has its lock at least.
    if LOCK not in there and not there >= {"recipe.yaml", "environment.json"}:
        raise InputError(f"{recipe.run} holds files that are not a run of ours: set another training.output_dir.")
    found = differences(recipe)
    if recipe.method == "evaluate" and not {"method", "evaluation.runs"} & found.keys():
        return  # the same runs compared in another way
    free = ("evaluation.", "hub.", "preferences.require")
    if recipe.method == "pairs":  # evaluation says which rows are held out; without its pairs a stage may filter anew
        made = "trained" in (read_json(str(recipe.run), "environment.json") or {})
        free = ("hub.",) if made else ("hub.", "preferences.filter")
    changed = [text for key, text in found.items() if key == "evaluation.runs" or not key.startswith(free)]
    if changed and not force:
        raise InputError(
            f"{recipe.run} holds another recipe's run ({changed[0]}): set another training.output_dir, "
            "or replace it with --force."
        )


def _check_place(run: Path) -> None:
    """Refuse a place where a run cannot be written, or should not be: --force empties it."""
    where, whole = f"training.output_dir {run}", run.resolve()
    if run.parts and run.parts[0].startswith("~"):
        raise InputError(f"{where} begins with a folder called {run.parts[0]}: write the path of the home folder out.")
    for place, name in ((Path.home(), "your home folder"), (Path.cwd(), "the folder you work in")):
        if whole in (place.resolve(), *place.resolve().parents):
            raise InputError(f"{where} is or holds {name}: name a folder of its own, such as runs/my_task.")
    if ".." in run.parts and not whole.is_relative_to(Path.cwd().resolve()):
        raise InputError(f"{where} leads out of the folder you work in: write {whole} if you mean that.")
    if file := file_in_the_way(run):
        raise InputError(f"{where} cannot be a folder, as {file} is a file: name another.")
    there = _existing(whole)
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{where} cannot be written, as you have no right to write in {there}: name another folder.")


def _existing(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _check_room(recipe: Recipe, upcoming: Collection[Path]) -> None:
    """Refuse a new run whose first checkpoint would fill the disk."""
    start = Path(recipe.model.get("model_name_or_path", ""))
    if recipe.method in IN_ONE_PROCESS or recipe.model.get("use_peft") or start in upcoming or recipe.run.exists():
        return
    weights = sum(file.stat().st_size for file in start.expanduser().glob("*.safetensors"))
    moments = 2 if recipe.training.get("optim", "adamw_torch").startswith("adamw_torch") else 0
    checkpoint = 0 if recipe.training.get("save_strategy") == "no" else weights * (1 + moments)
    free = shutil.disk_usage(_existing(recipe.run.resolve())).free
    if free < weights + checkpoint:
        raise InputError(
            f"training.output_dir {recipe.run}: the model and a checkpoint take {(weights + checkpoint) / 1e9:.1f} GB "
            f"or more, and {free / 1e9:.1f} GB are free there: make room, or name a folder on another disk."
        )


def differences(recipe: Recipe) -> dict[str, str]:
    """What a stored run's recipe says otherwise than this one, by key."""
    stored = recipe.run / "recipe.yaml"
    if not stored.exists():
        return {}
    old, new = _flat(read(stored)), _flat(recipe.values)
    return {
        key: f"{key} was {old.get(key, 'not set')!r}, is {new.get(key, 'not set')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# --- models --------------------------------------------------------------------------------------------------------


def _check_models(recipe: Recipe, upcoming: Collection[Path]) -> None:
    model = recipe.model
    if model.get("load_in_4bit") and model.get("load_in_8bit"):
        raise InputError("model.load_in_4bit and model.load_in_8bit exclude each other: keep one.")
    quantised = model.get("load_in_4bit") or model.get("load_in_8bit")
    if quantised and not model.get("use_peft"):
        raise InputError("A quantised model cannot be trained itself: set model.use_peft: true for LoRA.")
    if quantised and recipe.training.get("use_vllm"):
        raise InputError(
            "training.use_vllm does not work with a quantised model, as packed weights cannot be sent to vLLM: "
            "set use_vllm: false, or drop load_in_4bit."
        )
    for start in recipe.starts_from:
        if Path(start) in upcoming or start.startswith("synthetic:"):
            continue
        own = start == model.get("model_name_or_path")
        check_start = check_model if own and recipe.method == "reward" else check_language_model
        adapter = check_start(start, model.get("model_revision", "main") if own else "main")
        if adapter and own and recipe.method != "pairs":
            _check_adapter(start, adapter, recipe)
        if own:
            fit.check_tokenizer(recipe)
        if own and not adapter:
            fit.check_adapter_targets(recipe)


def check_model(start: str, revision: str = "main") -> dict | None:
    """Refuse what is no decoder-only model; the configuration of an adapter, None for a plain model."""
    adapter = adapter_config(start, revision)
    if adapter:
        base = adapter["base_model_name_or_path"]
        config = read_json(base, "config.json", adapter.get("revision"))
        if config is None:
            raise InputError(
                f"{start!r} is an adapter on {base!r}, which is no plain model: make it one with "
                f"`lastmile merge {base} DEST`, and train an adapter on that."
            )
    else:
        config = read_json(start, "config.json", revision)
    if config is None:
        raise InputError(
            f"{start!r} holds no model: no config.json and no adapter_config.json; has its stage finished?"
        )
    if any(Path(start).glob("*model*.bin")):  # of what is on the Hub, nothing large is fetched here
        check_safetensors(start)
    if "auto_map" in config and not trusts_remote_code() and not is_known(config.get("model_type")):
        raise InputError(
            f"{start!r} is made by code of its own, which runs only if you say so: read its .py files, then add "
            "--trust-remote-code to the command."
        )
    if config.get("is_encoder_decoder") or config.get("model_type") in ENCODER_DECODERS:
        raise InputError(
            f"{start!r} is a sequence-to-sequence model ({config.get('model_type')}), which TRL's trainers cannot "
            "train: use a decoder-only model such as Qwen, Llama or GPT-2."
        )
    return adapter


def check_language_model(start: str, revision: str = "main") -> dict | None:
    """Refuse a reward model too: it loads as a model that writes, with a head that has learned nothing."""
    adapter = check_model(start, revision)
    if is_reward_model(start, revision):
        raise InputError(f"{start!r} is a reward model, which scores and does not write: name a language model.")
    return adapter


def _check_adapter(start: str, adapter: dict, recipe: Recipe) -> None:
    """An adapter goes on being trained as it is."""
    if not recipe.model.get("use_peft"):
        raise InputError(
            f"{start!r} is a LoRA adapter: set model.use_peft: true to go on training it, or make it a plain model "
            f"with `lastmile merge {start} DEST`."
        )
    for key, name in {"lora_r": "r", "lora_alpha": "lora_alpha"}.items():
        if key in recipe.model and recipe.model[key] != adapter.get(name):
            raise InputError(
                f"model.{key} is {recipe.model[key]}, but the adapter {start!r} that goes on being trained has "
                f"{adapter.get(name)}: drop the key or use the same value."
            )


def _check_critic(recipe: Recipe, upcoming: Collection[Path], distributed: str) -> None:
    """What PPO's trainer would refuse after the model has loaded."""
    if recipe.method != "ppo":
        return
    training, sharded = recipe.training, distributed in SHARDED
    critic = training.get("critic", "shared")
    adapter = None
    if critic not in ("shared", "copy") and Path(critic) not in upcoming:
        try:
            adapter = check_model(critic)
        except InputError as error:
            raise InputError(f"training.critic is neither shared nor copy, so it names a model: {error}") from error
    if adapter:
        raise InputError(
            f"training.critic: {critic!r} is an adapter, whose weights would stay frozen: make it a plain model with "
            f"`lastmile merge {critic} DEST`, and name that."
        )
    apart = critic != "shared" or training.get("critic_detach") is False
    if sharded and apart:
        raise InputError(
            f"training.critic: with {distributed} the policy is sharded, and only critic: shared with critic_detach: "
            "true works: change them, or use --accelerate multi_gpu."
        )
    if training.get("fp16") and (apart or training.get("target_kl") is not None or training.get("value_warmup_steps")):
        raise InputError(
            "training.fp16 scales gradients, which only critic: shared with critic_detach: true, without target_kl and "
            "value_warmup_steps, stands: use bf16."
        )
    for key in ("target_kl", "value_warmup_steps"):
        if distributed == "DEEPSPEED" and training.get(key):
            raise InputError(
                f"training.{key} leaves optimiser steps out, and DeepSpeed takes them all: set {key}=null, or use "
                "--accelerate fsdp2."
            )


def _check_guide(recipe: Recipe, upcoming: Collection[Path], distributed: str, findings: Findings) -> None:
    """What a guided trainer, or the guide itself, would refuse after the model has loaded."""
    if recipe.guidance is None:
        return
    from . import guides

    guides.check(recipe.guidance.guide)
    if recipe.guidance.guide == "base":
        _check_base_as_guide(recipe, upcoming, distributed)
    if recipe.guide_model:
        _check_model_as_guide(recipe, recipe.guide_model, upcoming)
        findings.notes.append(f"The guide {recipe.guide_model!r} is a second model in memory, frozen.")


def _check_base_as_guide(recipe: Recipe, upcoming: Collection[Path], distributed: str) -> None:
    """A new adapter can be turned off; what else there was at the start is there only as the KL penalty's copy."""
    start, adapts = recipe.model["model_name_or_path"], recipe.model.get("use_peft")
    # An earlier stage that this one, with LoRA, goes on from has most likely made an adapter.
    goes_on = (
        Path(start) in upcoming
        or not start.startswith("synthetic:")
        and adapter_config(start, recipe.model.get("model_revision", "main"))
    )
    if adapts and not goes_on:
        return
    if not recipe.training.get("beta", default(METHODS[recipe.method], "beta")):
        raise InputError(
            "guidance.guide: base is the policy as it was at the start, of which a copy is kept only where "
            f"training.beta is above 0: raise that, or name {start!r} as the guide, a second model in memory."
        )
    if not adapts and distributed in SHARDED:
        raise InputError(
            f"guidance.guide: base is a whole model that {distributed} shards, which cannot guide: name {start!r} as "
            "the guide, or train an adapter (model.use_peft)."
        )


def _check_model_as_guide(recipe: Recipe, guide: str, upcoming: Collection[Path]) -> None:
    if Path(guide) in upcoming:
        return
    try:
        check_language_model(guide)
    except InputError as error:
        raise InputError(f"guidance.guide names a model: {error}") from error
    start, revision = recipe.model["model_name_or_path"], recipe.model.get("model_revision", "main")
    if start == guide or Path(start) in upcoming or start.startswith("synthetic:"):
        return
    own, other = _vocabulary(start, revision), _vocabulary(guide)
    if own and other and own != other:
        raise InputError(
            f"guidance.guide: {guide!r} has another vocabulary than {start!r}, so it cannot read its tokens: name a "
            "model of the same family, or serve it and name its endpoint, which takes texts."
        )


def _vocabulary(model: str, revision: str | None = None) -> dict[str, int] | None:
    """The number of each token; None where the tokenizer is not stored as one file, and the trainer has to look."""
    stored = read_json(model, "tokenizer.json", revision)
    if stored is None:
        return None
    pieces = stored["model"]["vocab"]
    if isinstance(pieces, list):  # with the probability of each, in order
        pieces = {piece: number for number, (piece, _) in enumerate(pieces)}
    return pieces | {token["content"]: token["id"] for token in stored["added_tokens"]}


def _check_reward_models(chosen: list[Reward], recipe: Recipe, upcoming: Collection[Path], distributed: str) -> None:
    """The models that rewards and metrics load at their first call have to be there."""
    for reward in chosen:
        name = getattr(reward.function, "model", None)
        if not hasattr(reward.function, "not_on_texts") or not isinstance(name, str):
            continue
        if getattr(reward.function, "share_base", False):
            _check_shared_base(reward, recipe, distributed)
        if Path(name) in upcoming:
            continue
        try:
            _check_reward_model(reward.function, name)
        except InputError as error:
            raise InputError(f"Reward {reward.name!r}: {error}") from error


def _check_reward_model(function: Callable, model: str) -> None:
    if isinstance(function, Model):
        return check_is_reward_model(model)
    revision = getattr(function, "revision", None)
    config = read_json(model, "config.json", revision)
    if config is None and read_json(model, "modules.json", revision) is None:
        raise InputError(f"{model!r} holds no model: no config.json.")
    if isinstance(function, Classifier):
        check_has_label(config or {}, model, function.label)


def _check_shared_base(reward: Reward, recipe: Recipe, distributed: str) -> None:
    if not recipe.model.get("use_peft") or recipe.method not in RL:
        raise InputError(
            f"Reward {reward.name!r}: share_base puts the reward model's adapter on the base of a policy that trains "
            "with LoRA: set model.use_peft: true, or share_base: false."
        )
    if distributed in SHARDED:
        raise InputError(
            f"Reward {reward.name!r}: share_base does not work with {distributed}, which shards the base: set "
            "share_base: false, or use --accelerate multi_gpu."
        )


# --- packages ------------------------------------------------------------------------------------------------------

EXTRAS = {"bitsandbytes": "quantization", "vllm": "vllm", "trackio": "tracking", "tensorboard": "tracking",
          "wandb": "wandb", "deepspeed": "deepspeed"}  # fmt: skip
# Those that transformers knows.
TRACKERS = ("azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow",
            "neptune", "swanlab", "tensorboard", "trackio", "wandb")  # fmt: skip


def _check_packages(recipe: Recipe, distributed: str) -> None:
    needed = {"deepspeed": "--accelerate with DeepSpeed"} if distributed == "DEEPSPEED" else {}
    if recipe.model.get("load_in_4bit") or recipe.model.get("load_in_8bit"):
        needed["bitsandbytes"] = "4-bit and 8-bit models"
    if recipe.training.get("use_vllm"):
        needed["vllm"] = "training.use_vllm"
    if recipe.evaluation.use_vllm and recipe.method == "evaluate":
        needed["vllm"] = "evaluation.use_vllm"
    trackers = recipe.training.get("report_to") or []
    trackers = [trackers] if isinstance(trackers, str) else trackers
    for tracker in trackers:
        if tracker not in ("none", "all"):
            if tracker not in TRACKERS:
                raise InputError(f"training.report_to: {unknown('tracker', tracker, TRACKERS)}")
            needed[tracker] = f"training.report_to: {tracker}"
    for package, purpose in needed.items():
        if importlib.util.find_spec(package) is None:
            extra = EXTRAS.get(package)
            command = f"pip install 'lastmile-trl[{extra}]'" if extra else f"pip install {package}"
            raise InputError(f"{purpose} needs the package {package}, which is not installed: {command}.")
    if "wandb" in trackers or "all" in trackers and importlib.util.find_spec("wandb"):
        _check_wandb()


def _check_wandb() -> None:
    """Without a key it would stop the run at its first step, after the model has loaded."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled"):
        return
    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "training.report_to: wandb knows no API key: run `wandb login`, or set WANDB_MODE=offline in the "
            "environment to keep the logs here."
        )


# --- data, rewards, batches ----------------------------------------------------------------------------------------


def _check_preferences(recipe: Recipe) -> None:
    """Refuse what the section's parts would refuse in the stage."""
    if recipe.method not in WITH_PAIRS:
        return
    from .evaluation.acceptance import check_require
    from .preferences.negatives import check_categories
    from .preferences.pairs import PAIR_COLUMNS, Samples
    from .preferences.perplexity import Filter

    asked = recipe.preferences
    if asked.negatives is not None:
        check_categories(asked.negatives)
        if "model_sample" in asked.negatives and asked.samples is None:
            raise InputError(
                "preferences.negatives.model_sample takes samples of a model, which a stage of `method: pairs` makes: "
                "set preferences.samples there."
            )
    for key, section in {"samples": Samples, "filter": Filter}.items():
        given = getattr(asked, key)
        if given is not None:
            _check_keys(f"preferences.{key}", given, section)
            section(**given)
    check_require(asked.require, None if asked.chosen else [*(asked.negatives or {})])
    if recipe.method == "pairs" and (taken := PAIR_COLUMNS & {*data_module.template_columns(recipe.data)}):
        raise InputError(
            f"The template names the column {min(taken)!r}, which means something else in the pairs that this stage "
            "writes: rename it in the data."
        )


def _check_keys(key: str, given: dict, section: type) -> None:
    known = [field.name for field in fields(section)]
    for name in given:
        if name not in known:
            raise InputError(f"{key}: {unknown('key', name, known)}")


def _check_data(
    recipe: Recipe, processes: int, upcoming: Collection[Path], distributed: str, findings: Findings
) -> None:
    prompts = prompts_per_generation(recipe, processes) if recipe.method in RL else 0
    chosen = rewards.build(recipe.rewards)
    metrics = rewards.build(recipe.evaluation.metrics)
    baselines = _baselines(recipe)
    judges = [reward for baseline in baselines for reward in getattr(baseline, "built", ())]
    if gate := next((metric.name for metric in metrics if metric.gate is not None), None):
        raise InputError(f"evaluation.metrics: {gate!r} has a gate, which only rewards have: drop it there.")
    _check_reward_models([*chosen, *metrics, *judges], recipe, upcoming, distributed)
    if Path(recipe.data.path) in upcoming:
        findings.notes.append(f"The rows come from {recipe.data.path}, an earlier stage: they are looked at after it.")
        postprocess.build(recipe.evaluation.steps, [["a reference of rows that are not there yet"]])
        return
    rows = data_module.load(recipe.data)
    postprocess.build(recipe.evaluation.steps, rows.train["references"])
    findings.notes += rows.notes
    findings.notes.append(f"{len(rows.train)} rows to train on, {len(rows.held_out)} held out.")
    if recipe.training.get("learning_rate", 0) > LARGE_RATE:
        findings.warnings.append(
            f"training.learning_rate is {recipe.training['learning_rate']}: what a model has learned, it would forget."
        )
    for key in ("chosen", "rejected", "source"):
        column = getattr(recipe.preferences, key)
        if column is not None and column not in rows.train.column_names:
            raise InputError(
                f"preferences.{key}: {recipe.data.path!r} has no column {column!r}, only "
                f"{', '.join(rows.train.column_names)}{did_you_mean(column, rows.train.column_names)}"
            )
    for reward in [*chosen, *metrics, *judges]:
        for column in reward.needs:
            if column not in (*rows.train.column_names, *rewards.FROM_TRAINER):
                raise InputError(
                    f"Reward {reward.name!r} needs a column {column!r}, which {recipe.data.path!r} has not; columns "
                    f"are {', '.join(rows.train.column_names)}."
                )
    if len(rows.train) < prompts:  # TRL would train nothing, without a word
        raise InputError(
            f"{recipe.data.path!r} has {len(rows.train)} rows to train on, but one step takes {prompts} prompts: lower "
            "training.per_device_train_batch_size or training.gradient_accumulation_steps."
        )
    start = recipe.model.get("model_name_or_path", "synthetic:")
    if Path(start) not in upcoming and not start.startswith("synthetic:"):
        fit.check_positions(recipe, [rows.train, rows.held_out])
    if chosen:
        _try_rewards(recipe, chosen, rows, findings)
    if taken := next((metric.name for metric in metrics if metric.name in ALWAYS_MEASURED), None):
        raise InputError(f"evaluation.metrics: {taken!r} is measured always: give yours another `name:`.")
    others = [metric for metric in metrics if all(metric.function != reward.function for reward in chosen)]
    known = [reward.function for reward in [*chosen, *metrics]]
    judges = [reward for reward in judges if reward.function not in known]
    _try_metrics(recipe, [*others, *judges], rows, findings)
    _check_texts(baselines, rows, recipe)
    if recipe.method in RL and recipe.evaluation.every and not others:
        findings.warnings.append(
            "Every metric is a reward too, so nothing would show that a reward is gamed: add one to "
            "evaluation.metrics that is not rewarded (`lastmile rewards` lists them)."
        )


def _baselines(recipe: Recipe) -> "list[Baseline]":
    if not recipe.evaluation.baselines:
        return []
    from .evaluation.baselines import build

    return build(recipe.evaluation.baselines, recipe.data)


def _check_baselines(recipe: Recipe, upcoming: Collection[Path]) -> None:
    """What the baselines need of the recipe and of the runs that are there."""
    if recipe.evaluation.baselines and recipe.method in ("pairs", "reward"):
        raise InputError(f"evaluation.baselines: `method: {recipe.method}` compares no runs: drop it.")
    if recipe.evaluation.samples > 1 and recipe.method in ("pairs", "reward"):
        raise InputError(f"evaluation.samples: `method: {recipe.method}` looks at one sample of a row: drop it.")
    from .evaluation.baselines import BestOfN
    from .outputs import is_among, started_from

    runs = _runs(recipe)
    for baseline in _baselines(recipe):
        if isinstance(baseline, BestOfN) and not recipe.evaluation.sampled:
            raise InputError(
                f"evaluation.baselines: {baseline.name} is held against sampled outputs, and evaluation.sampled: false "
                "leaves none: drop one."
            )
        model = started_from(baseline.of, runs, recipe, upcoming) if baseline.of else None
        if model and model.path not in (recipe.run, recipe.run / "base", *upcoming):
            check_language_model(str(model.path), model.revision)
        unclear = baseline.of and model is None  # an upcoming run will say
        if baseline.name in runs and not unclear and not (model and is_among(model, runs)):
            raise InputError(
                f"evaluation.baselines: a run is called {baseline.name!r} too: drop the baseline, or move that run to "
                "another folder."
            )


def _runs(recipe: Recipe) -> dict[str, Path]:
    return short_names(recipe.evaluation.runs) if recipe.method == "evaluate" else {recipe.run.name: recipe.run}


def shown(recipe: Recipe, upcoming: Collection[Path] = ()) -> list[str]:
    """What the stage's comparison shows, by name: the baselines that are none of the runs, and the runs."""
    from .outputs import is_among, started_from

    runs, beside = _runs(recipe), []
    for baseline in _baselines(recipe):
        model = started_from(baseline.of, runs, recipe, upcoming) if baseline.of == baseline.name else None
        if not (model and is_among(model, runs)):
            beside.append(baseline.name)
    return [*beside, *runs]


def post_processed(recipe: Recipe) -> list[str]:
    """What is also shown post-processed: the first run with all seeds of its recipe, unless the recipe names others."""
    if recipe.evaluation.postprocess is not None:
        return recipe.evaluation.postprocess
    from .seeds import seeds_of

    runs = _runs(recipe)
    first = next(iter(runs))
    return next((names for names in seeds_of(runs).values() if first in names), [first])


def _check_texts(baselines: "list[Baseline]", rows: data_module.Rows, recipe: Recipe) -> None:
    """What the baselines need of the rows."""
    columns = rows.held_out.column_names
    for baseline in baselines:
        column = getattr(baseline, "column", None)
        if column is not None and column not in columns:
            raise InputError(
                f"evaluation.baselines: {baseline.name}: {recipe.data.path!r} has no column {column!r}, only "
                f"{', '.join(columns)}{did_you_mean(column, columns)}"
            )
        shown = rows.held_out.take(min(recipe.evaluation.rows, len(rows.held_out)))
        if baseline.name == "reference" and all(len(texts) < 2 for texts in shown["references"]):
            raise InputError(
                "evaluation.baselines: reference holds one reference of a row against its others, and no held-out row "
                "has two: drop it."
            )


def _check_postprocessed(recipe: Recipe, upcoming: Collection[Path], findings: Findings) -> None:
    names = shown(recipe, upcoming)
    for name in post_processed(recipe):
        if name in names:
            continue
        if recipe.method == "evaluate":
            raise unknown("evaluation.postprocess: run", name, names)
        findings.notes.append(f"evaluation.postprocess: {name} is not shown by this stage, only {', '.join(names)}.")


def _check_vllm(recipe: Recipe, upcoming: Collection[Path]) -> None:
    """What vLLM could not decode, or only something else."""
    if not recipe.evaluation.use_vllm:
        return
    if recipe.method != "evaluate":
        raise InputError(
            "evaluation.use_vllm is for runs that are finished, and a stage looks with the model that it trains: drop "
            "it here, and say it to `lastmile evaluate`."
        )
    if recipe.evaluation.likelihood:
        raise InputError(
            "evaluation.likelihood needs the probabilities of given texts, for which vLLM is not asked: set "
            "evaluation.use_vllm to false."
        )
    if not _has_gpu():
        raise InputError("evaluation.use_vllm needs a GPU, and this machine shows none: set it to false.")
    from .evaluation.vllm_decoding import suited
    from .outputs import model_of

    for run in map(Path, recipe.evaluation.runs):
        if run not in upcoming:
            section = model_of(run).section
            suited(str(run), quantised=section.get("load_in_4bit") or section.get("load_in_8bit"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_leaks(recipe: Recipe, stages: Sequence[Recipe], findings: Findings) -> None:
    if recipe.method != "pairs":
        from .leakage import leaks

        findings.warnings += leaks(_runs(recipe), recipe, stages)


def prompts_per_generation(recipe: Recipe, processes: int) -> int:
    """How many prompts one round of generation takes; refuses what TRL would refuse after the model has loaded."""

    def value(key: str) -> int | None:
        return recipe.training.get(key, default(METHODS[recipe.method], key))

    batch, group = value("per_device_train_batch_size") * processes, value("num_generations")
    completions, steps = value("generation_batch_size"), value("steps_per_generation")
    if group < 2 and recipe.method != "ppo":
        raise InputError(f"training.num_generations is {group}, but {recipe.method} compares at least 2 completions.")
    if completions and steps:
        raise InputError("Set training.generation_batch_size or training.steps_per_generation, not both.")
    if completions and completions % batch:
        raise InputError(
            f"training.generation_batch_size={completions} must be a multiple of the batch of all processes, "
            f"{batch} (per_device_train_batch_size x {processes} processes)."
        )
    completions = completions or batch * (steps or value("gradient_accumulation_steps"))
    if completions % group:
        raise InputError(
            f"{completions} completions are generated at once (per_device_train_batch_size x {processes} processes x "
            f"gradient_accumulation_steps), which is no multiple of training.num_generations={group}: change one."
        )
    return completions // group


def _try_rewards(recipe: Recipe, chosen: list[Reward], rows: data_module.Rows, findings: Findings) -> None:
    """Score texts whose worth is known: rewards that cannot tell them apart are of no use."""
    prompted, task = _sample(recipe, rows)
    found = probe(rewards.prepare(chosen, task), prompted)
    findings.notes += found.notes
    findings.warnings += found.warnings


def _try_metrics(recipe: Recipe, metrics: list[Reward], rows: data_module.Rows, findings: Findings) -> None:
    """A metric that fails would do so after the training."""
    prompted, task = _sample(recipe, rows)
    for metric in rewards.prepare(metrics, task):
        if not why_not(metric):
            rewards.score([metric], [{**row, "prediction": row["references"][0]} for row in prompted])
        if reason := unreadable(metric, [row["references"][0] for row in prompted]):
            findings.warnings.append(reason)


def _sample(recipe: Recipe, rows: data_module.Rows) -> tuple[list[dict], rewards.Task]:
    """A few rows with their prompts, and what rewards may know of all of them."""
    sample = rows.train.take(min(SAMPLE, len(rows.train))).to_list()
    return [{**row, "prompt": data_module.render(recipe.data, row)} for row in sample], rewards.Task.of(rows.train)


def _check_hub(recipe: Recipe) -> None:
    if recipe.hub.merge and not recipe.model.get("use_peft"):
        raise InputError("hub.merge is true, but without model.use_peft there is no adapter to merge: drop it.")
    if recipe.hub.push:
        from .hub import check_access

        check_access(recipe.hub.repo)
