"""The tokenizer and the model a stage starts from, as ``trl.ModelConfig`` describes them."""

import gc
import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .patience import patiently, reaching_hub
from .screen import note

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import ModelConfig

# Tokens that models reserve for padding or for nothing, tried in this order.
SPARE_TOKENS = (
    "<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|fim_pad|>", "<|vision_pad|>", "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>", "<|endoftext|>", "<unk>", "[UNK]",
)  # fmt: skip


TRUST = "LASTMILE_TRUST_REMOTE_CODE"  # set by the flag --trust-remote-code, for the processes of all stages


def trusts_remote_code() -> bool:
    """Whether code that comes with a model may run: only a person can say so, by a flag, never a recipe."""
    return os.environ.get(TRUST) == "1"


def safely(model: str, revision: str | None = None) -> dict[str, Any]:
    """How a plain model is loaded: from safetensors alone, and without code of its own unless that is trusted."""
    if adapter_config(model, revision):
        raise InputError(
            f"{model!r} is an adapter where a plain model is needed: make it one with `lastmile merge {model} DEST`."
        )
    check_safetensors(model, revision)
    return {"revision": revision or "main", "trust_remote_code": trusts_remote_code(), "use_safetensors": True}


def check_safetensors(model: str, revision: str | None = None) -> None:
    """Refuse weights in other formats, such as pickles, which may run code when they load; fetch those on the Hub."""
    from huggingface_hub import is_offline_mode

    here = Path(model).expanduser().is_dir()
    find = find_file if here or is_offline_mode() else _fetch
    adapter = adapter_config(model, revision) is not None
    names = ["adapter_model.safetensors"] if adapter else ["model.safetensors.index.json", "model.safetensors"]
    found = next((file for name in names if (file := find(model, name, revision))), None)
    if found and found.name == "model.safetensors.index.json":
        for shard in sorted(set(_json_of(found)["weight_map"].values())):
            find(model, shard, revision)
    if not found and (here or not is_offline_mode()):  # offline, the cache need not hold all that the Hub does
        raise InputError(
            f"{model!r} holds no {names[-1]}. Weights in other formats (.bin, .pt) may run code when they load, so "
            "they are refused: load them where that does no harm, and write them anew with `save_pretrained`."
        )


def _fetch(model: str, name: str, revision: str | None = None) -> Path | None:
    """A large file of a hub repository, which is waited for while the Hub fails; None where it has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def attempt() -> Path | None:
        try:
            return Path(hf_hub_download(model, name, revision=revision))
        except RemoteEntryNotFoundError:
            return None

    remedy = "what has arrived is kept, so run the same again when the Hub is well"
    return patiently(attempt, partial(reaching_hub, f"{name} of {model} was not fetched", remedy))


def config_of(section: dict[str, Any], run: Path, seed: int) -> "ModelConfig":
    """The section as ``trl.ModelConfig``; a model that is made in code is made in the run folder."""
    from accelerate import PartialState
    from trl import ModelConfig

    if section["model_name_or_path"].startswith("synthetic:"):
        from .synthetic import build_base

        base = run / "base"
        with PartialState().main_process_first():
            if not base.exists():
                build_base(run / "base.part", seed=seed).rename(base)  # a base is whole or is not there
        section = {**section, "model_name_or_path": str(base)}
    return ModelConfig(**section)


def read_json(model: str, name: str, revision: str | None = None) -> dict[str, Any] | None:
    """A small file of a model folder or hub repository, without loading the model; None where it has no such file."""
    file = find_file(model, name, revision)
    return _json_of(file) if file else None


def find_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model folder or hub repository, from where it is fetched; None where it has no such file."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.is_absolute() or model[:1] in "./~" or model.count("/") > 1:
        raise InputError(f"{model!r} is not a folder here: check the path, or run its stage first.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except LocalEntryNotFoundError as error:
        if name != "config.json":  # offline, a file that the cache lacks is as good as absent
            return None
        raise InputError(
            f"{model!r} is not a folder here, not in the cache, and the Hub cannot be "
            "reached (offline?): check the name or the connection."
        ) from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise InputError(f"{model!r} is neither a folder here nor a hub id.") from error
    except HfHubHTTPError as error:
        raise InputError(
            f"{model!r} cannot be read from the Hub ({error.response.status_code}): check the "
            "name, or log in with `hf auth login` if it is private or gated."
        ) from error


def _json_of(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): fetch or save the model again.") from error


def adapter_config(model: str, revision: str | None = None) -> dict[str, Any] | None:
    """The configuration of an adapter, which names its base; None for a plain model."""
    return read_json(model, "adapter_config.json", revision)


def is_reward_model(model: str, revision: str | None = None) -> bool:
    """Whether a model, or an adapter, gives one score instead of words."""
    if adapter := adapter_config(model, revision):
        return adapter.get("task_type") == "SEQ_CLS"
    config = read_json(model, "config.json", revision) or {}
    one_label = len(config.get("id2label", {0: ""})) == 1 or config.get("num_labels") == 1
    return one_label and any("SequenceClassification" in name for name in config.get("architectures") or [])


def is_known(model_type: str | None) -> bool:
    """Whether transformers itself has the code of such models."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def load_tokenizer(model: str, revision: str | None = None, chat: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer, padding on the left as generation needs, with a pad token that is not the end token.

    For ``chat`` the end token is what the chat template ends an answer with, whatever the tokenizer says: base models
    often name another one, which no answer in SFT would ever show.
    """
    from accelerate import PartialState
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        model, revision=revision, trust_remote_code=trusts_remote_code(), padding_side="left"
    )
    if chat:
        tokenizer.eos_token = _end_of_answer(tokenizer, model)
    if tokenizer.eos_token is None:
        raise InputError(f"The tokenizer of {model!r} has no end-of-text token, so no model could learn to stop.")
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        vocabulary = tokenizer.get_vocab()
        spare = next((t for t in SPARE_TOKENS if t in vocabulary and t != tokenizer.eos_token), None)
        if spare is None and PartialState().is_main_process:
            note(
                f"The tokenizer of {model!r} has no token to spare for padding, so its end token pads too. Training "
                "masks padding by position, so the end is still learned."
            )
        tokenizer.pad_token = spare or tokenizer.eos_token
    return tokenizer


def _end_of_answer(tokenizer: "PreTrainedTokenizerBase", model: str) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            f"data.messages needs a chat template, which the tokenizer of {model!r} has not: use data.prompt."
        )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    last = next(token for token in reversed(ids) if tokenizer.decode([token]).strip())
    if last not in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
        raise InputError(
            f"The chat template of {model!r} ends an answer without a token of its own, so no model could learn to "
            "stop: use data.prompt."
        )
    return tokenizer.convert_ids_to_tokens(last)


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", prompts: list) -> list[list[int]]:
    """Token ids of prompts, as TRL's trainers make them: the one place for SFT, RL and evaluation."""
    if not prompts:
        return []
    if isinstance(prompts[0], str):
        return tokenizer(text=prompts)["input_ids"]
    return tokenizer.apply_chat_template(
        conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]


def load_model(config: "ModelConfig", trainable: bool = False) -> "PreTrainedModel":
    """The model; an adapter comes on its base, which is quantised if the config says so.

    A ``trainable`` adapter goes on being trained: TRL keeps a frozen copy of it as the KL reference.
    """
    adapter = adapter_config(config.model_name_or_path, config.model_revision)
    model = _load_plain(config, adapter)
    return _with_adapter(model, config, trainable) if adapter else model


def _with_adapter(base: "PreTrainedModel", config: "ModelConfig", trainable: bool = False) -> "PeftModel":
    from peft import PeftModel

    check_safetensors(config.model_name_or_path, config.model_revision)
    return PeftModel.from_pretrained(
        base, config.model_name_or_path, is_trainable=trainable, revision=config.model_revision
    )


def _base_of(config: "ModelConfig", adapter: dict | None) -> tuple[str, str]:
    """The plain model that is loaded, and its revision."""
    if adapter:
        return adapter["base_model_name_or_path"], adapter.get("revision") or "main"
    return config.model_name_or_path, config.model_revision


def base_settings(config: "ModelConfig", adapter: dict | None) -> dict[str, Any]:
    """All that decides which weights are loaded below an adapter, and how."""
    path, revision = _base_of(config, adapter)
    place = Path(path).expanduser()
    of_adapters = ("use_peft", "use_rslora", "use_dora")
    settings = {k: value for k, value in asdict(config).items() if k not in of_adapters and not k.startswith("lora_")}
    path = str(place.resolve()) if place.is_dir() else path
    return settings | {"model_name_or_path": path, "model_revision": revision}


def _leaves_base(adapter: dict[str, Any]) -> bool:
    """Whether a base is what it was once the adapter is taken off: of plain LoRA that is known."""
    changes = ("layer_replication", "modules_to_save", "target_parameters", "trainable_token_indices")
    return (
        adapter.get("peft_type") == "LORA"
        and adapter.get("bias", "none") == "none"
        and adapter.get("init_lora_weights", True) is True  # others move some of the base's weights into the adapter
        and not any(adapter.get(key) for key in changes)
    )


class Loaded:
    """The one model in memory: the next one takes its place, and where both are on the same base, only the adapter's.

    >>> loaded = Loaded()
    >>> model = loaded.model(ModelConfig("runs/samsum/sft"))  # doctest: +SKIP
    >>> model = loaded.model(ModelConfig("runs/samsum/grpo"))  # doctest: +SKIP
    """

    def __init__(self):
        self._model: Any = None
        self._is: tuple | None = None  # which model it is
        self._base: tuple | None = None  # on which base, if another model may have that

    def model(self, config: "ModelConfig") -> "PreTrainedModel":
        """The model that the configuration names, in memory from now on."""
        adapter = adapter_config(config.model_name_or_path, config.model_revision)
        base = base_settings(config, adapter)
        wanted = (base, adapter and (config.model_name_or_path, config.model_revision))
        if wanted != self._is:
            model = self._plain() if base == self._base else None
            self.release()
            if model is None:
                model = on_device(_load_plain(config, adapter))
            self._model = on_device(_with_adapter(model, config)) if adapter else model
            self._is, self._base = wanted, base if not adapter or _leaves_base(adapter) else None
        return self._model

    def _plain(self) -> "PreTrainedModel":
        from peft import PeftModel

        return self._model.unload() if isinstance(self._model, PeftModel) else self._model

    def release(self) -> None:
        """Free the memory."""
        self._model = self._is = self._base = None
        free_memory()


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


def load_guide(name: str, config: "ModelConfig", tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """The model that guides a policy: loaded as that is, and with its tokenizer, whose ids it continues."""
    from .rewards.neural import _beside_the_run

    own = name == config.model_name_or_path
    revision = config.model_revision if own else "main"
    has_tokenizer = read_json(name, "tokenizer_config.json", revision) is not None  # many adapters come without
    if has_tokenizer and not own:
        vocabulary = load_tokenizer(name, revision).get_vocab()
        if vocabulary != tokenizer.get_vocab():
            raise InputError(
                f"guidance.guide {name!r} has another tokenizer than the policy, so it cannot continue its tokens: "
                "serve it and name its endpoint."
            )
    with _beside_the_run():  # whole on every process, however the policy is sharded
        return load_model(replace(config, model_name_or_path=name, model_revision=revision))


def load_reward_model(config: "ModelConfig") -> "PreTrainedModel":
    """The model with a new head that gives one score; the adapter of a language model goes on under it."""
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    path, revision = config.model_name_or_path, config.model_revision
    adapter = adapter_config(path, revision)
    with suppress_seqcls_warning():
        model = _load_plain(config, adapter, AutoModelForSequenceClassification, num_labels=1)
    if not adapter:
        return model
    settings = LoraConfig.from_pretrained(path, revision=revision)
    settings.task_type, settings.inference_mode = TaskType.SEQ_CLS, False
    model = get_peft_model(model, settings)
    check_safetensors(path, revision)
    weights = load_peft_weights(path, revision=revision, device="cpu")
    set_peft_model_state_dict(model, get_peft_model_state_dict(model) | weights)  # the head stays new
    return model


def _load_plain(
    config: "ModelConfig", adapter: dict | None, kind: type | None = None, **more: Any
) -> "PreTrainedModel":
    """A plain model, or the base of an adapter; of the kind that its configuration names, unless told."""
    from accelerate import PartialState
    from trl import get_quantization_config
    from trl.trainer.utils import create_model_from_path

    # Left alone, one process spreads the model over the GPUs it sees; each of several must hold its own.
    placement = {"device_map": None} if PartialState().num_processes > 1 else {}
    path, revision = _base_of(config, adapter)
    return create_model_from_path(
        path,
        kind,
        **safely(path, revision),
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        quantization_config=get_quantization_config(config),
        **placement,
        **more,
    )


def new_adapter(config: "ModelConfig", task: str = "CAUSAL_LM") -> "PeftConfig | None":
    """The LoRA to put on a plain model; None without ``use_peft``, or when the model is an adapter that goes on."""
    from trl import get_peft_config

    if not config.use_peft or adapter_config(config.model_name_or_path, config.model_revision):
        return None
    adapter = get_peft_config(config)
    adapter.task_type = task
    adapter.revision = config.model_revision  # of the base: later stages load the same one
    return adapter
