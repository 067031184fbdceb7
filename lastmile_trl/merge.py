"""An adapter merged into its unquantised base: a plain model."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from . import provenance
from .card import model_card
from .errors import InputError, RunError, first_line
from .files import file_in_the_way
from .models import check_safetensors, safely
from .rewards.model import check_is_reward_model

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merge(run: Path, dest: Path) -> Path:
    """Merge an adapter into its freshly loaded, unquantised base and write a plain model to ``dest``.

    What was written must compute what base and adapter compute together, or ``dest`` is left as it was.
    """
    if not (run / "adapter_config.json").is_file():
        raise InputError(f"{run} holds no adapter (no adapter_config.json), so there is nothing to merge.")
    if file := file_in_the_way(dest):
        raise InputError(f"{file} is a file: name a new folder for the merged model.")
    if dest.exists() and any(dest.iterdir()):
        raise InputError(f"{dest} is not empty: name a new folder for the merged model.")
    check_safetensors(str(run))
    dest.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}-") as folder:
        written = Path(folder) / dest.name
        kind, expected = _write_merged(run, written)
        settings = {"dtype": "auto", **safely(str(written))}
        _check_equal(_probe(kind.from_pretrained(written, **settings).eval()), expected, run)
        for name in ("recipe.yaml", "environment.json", "evaluation.json"):
            if (run / name).is_file():
                shutil.copyfile(run / name, written / name)
        if (written / "recipe.yaml").is_file():
            (written / "README.md").write_text(model_card(written), encoding="utf-8")
        written.replace(dest)
    return dest


def _write_merged(run: Path, dest: Path) -> "tuple[type[PreTrainedModel], Tensor]":
    """Write the merged model; its class, and what base and adapter compute together."""
    from peft import PeftModel

    base, tokenizer = _load_base(run)
    model = PeftModel.from_pretrained(base, run).eval()
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = model.active_peft_config.peft_type.value
        raise InputError(f"{run} is an adapter of the kind {kind}, which no weights can hold: use it on its base.")
    expected = _probe(model)
    _untie(model)
    merged = model.merge_and_unload()
    _tie_again(merged)
    merged.save_pretrained(dest)
    tokenizer.save_pretrained(dest)
    return type(merged), expected


def _untie(model: "PeftModel") -> None:
    """Give the head weights of its own where an adapter changes it, or the embeddings that it is tied to."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import Parameter

    base = model.get_base_model()
    layers = [base.get_output_embeddings(), base.get_input_embeddings()]
    if layers[0] is None or not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    head, words = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers)
    if head.weight is words.weight:
        head.weight = Parameter(head.weight.clone())
        base.config.tie_word_embeddings = False


def _tie_again(model: "PreTrainedModel") -> None:
    """One weight for both where the adapter has changed head and embeddings alike."""
    from torch import equal

    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not words.weight and equal(head.weight, words.weight):
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _load_base(run: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The base model of an adapter in its own precision, and the tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    adapter = provenance.read_json(run / "adapter_config.json")
    name, kind, more, quietly = adapter["base_model_name_or_path"], AutoModelForCausalLM, {}, nullcontext
    scores = adapter.get("task_type") == "SEQ_CLS"
    if scores:
        from trl.trainer.reward_trainer import suppress_seqcls_warning as quietly  # the head comes with the adapter

        check_is_reward_model(str(run))
        kind, more = AutoModelForSequenceClassification, {"num_labels": 1}
    place = provenance.folder(name, run)
    if place is None and provenance.hub_id(name, run) is None:
        raise InputError(f"{name}, the base of {run}, is not here: start where its path is right.")
    place = str(place or name)
    settings = safely(place, adapter.get("revision"))
    try:
        if getattr(AutoConfig.from_pretrained(place, **settings), "quantization_config", None):
            raise InputError(f"{name}, the base of {run}, is stored quantised: adapters merge into full weights only.")
        with quietly():
            base = kind.from_pretrained(place, dtype="auto", **settings, **more)
        own = (run / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(run if own else place, **settings)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}, the base of {run}, cannot be loaded ({first_line(error)}).") from error
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer))  # as training did when tokens were added
    if scores:
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # the score stands before the padding
    return base, tokenizer


def _probe(model: Any) -> "Tensor":
    """Logits of a short text: 16 tokens from all over the vocabulary. Of one score, those of its 16 beginnings."""
    import torch

    tokens = torch.linspace(0, model.get_input_embeddings().weight.shape[0] - 1, 16).long().to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=tokens[None]).logits
        if logits.dim() == 3:
            return logits
        return torch.cat([model(input_ids=tokens[None, :end]).logits for end in range(1, 17)])


def _check_equal(logits: "Tensor", expected: "Tensor", run: Path) -> None:
    # In 16 bits, merged weights are rounded: the sum of base and adapter has no more digits than the base.
    tolerance = 1e-4 if expected.element_size() == 4 else 5e-2
    error = float((logits - expected).float().norm() / expected.float().norm())
    if not error <= tolerance:  # a NaN is an error too
        raise RunError(
            f"The merged model of {run} does not compute what base and adapter compute (relative difference "
            f"{error:.1e}, allowed {tolerance:.0e}), so it was not written; use the adapter on its base instead."
        )
