"""The tensors of a model and of its passes, counted without a model: none of them has contents.

Weights are counted on the model's own classes. What lives only during a pass is found by running TRL's own code, and
adding up what is alive: of models with two and with four layers, from which that with all layers follows, since layers
are alike.
"""

import json
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig

FEW, MORE = 2, 4  # layers of the models that are run


@dataclass(frozen=True)
class Model:
    """What is known of a model from its files."""

    config: str  # config.json
    lora: str | None = None  # the settings of its adapter
    goes_on: bool = False  # whether that adapter is there already


@dataclass(frozen=True)
class Work:
    """All that the memory of a stage depends on."""

    method: str
    model: Model
    dtype: str
    bits: int | None  # of quantised weights
    nested: bool
    autocast: bool
    checkpointing: bool
    dropout: bool
    batch: int  # sequences in one pass
    accumulates: bool
    prompt: int  # tokens
    answer: int
    decoded: tuple[tuple[str, int, int], ...]  # moment, sequences at once, new tokens
    reference: bool
    optimiser: str
    critic: str | None
    critic_model: Model | None
    others: tuple[tuple[str, float], ...]  # bytes of models beside the trained one
    processes: int
    cpu: bool


# --- weights, and what is kept for each ----------------------------------------------------------------------------


def config_of(model: Model, layers: int | None = None) -> "PreTrainedConfig":
    """The model's configuration, with so many layers at most."""
    from transformers import AutoConfig

    values = json.loads(model.config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    text = config.get_text_config()
    if layers is not None and layers < text.num_hidden_layers:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    return config


def _empty(model: Model, dtype: str, kind: str, layers: int | None = None) -> "nn.Module":
    """The model's class around tensors that are made by the caller's mode or device; weights are never filled."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    config = config_of(model, layers)
    more = {"num_labels": 1} if kind == "SequenceClassification" else {}
    if kind:
        config.update(more)
        auto = getattr(transformers, f"AutoModelFor{kind}")
    else:  # a reward model is what its configuration names; its head is next to nothing
        auto = transformers.AutoModel
    with no_init_weights():
        made = auto.from_config(config, dtype=getattr(torch, dtype))
    made.tie_weights()
    return made


def _adapted(made: "nn.Module", model: Model, bits: int | None, kind: str) -> "nn.Module":
    """The model with its adapter, in the numbers that TRL trains it in."""
    import torch
    from peft import LoraConfig, get_peft_model

    given = {key: value for key, value in json.loads(model.lora).items() if key in LoraConfig.__dataclass_fields__}
    settings = LoraConfig(**{key: value for key, value in given.items() if key not in ("corda_config", "eva_config")})
    settings.inference_mode, settings.loftq_config = False, {}
    settings.task_type = "SEQ_CLS" if kind == "SequenceClassification" else "CAUSAL_LM"
    made = get_peft_model(made, settings)
    if bits and kind == "CausalLM":
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return made


@cache
def weights(model: Model, dtype: str, bits: int | None, nested: bool, kind: str) -> tuple[float, float]:
    """The bytes of a model, quantised as bitsandbytes does, and those of its adapter."""
    import torch

    with torch.device("meta"):
        made = _empty(model, dtype, kind)
        base = sum(_size(name, weight, module, bits, nested) for name, weight, module in _parameters(made))
        if model.lora is None:
            return base, 0.0
        made = _adapted(made, model, bits, kind)
        return base, float(sum(weight.nbytes for weight in made.parameters() if weight.requires_grad))


def _parameters(made: "nn.Module") -> "Iterator[tuple[str, nn.Parameter, nn.Module | None]]":
    """Each parameter once, with its module where that may be quantised."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = made.get_output_embeddings() if hasattr(made, "get_output_embeddings") else None
    seen = set()
    for module in made.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in seen:
                seen.add(id(weight))
                packed = isinstance(module, nn.Linear | Conv1D) and module is not head and name == "weight"
                yield name, weight, module if packed else None


def _size(name: str, weight: "nn.Parameter", packed: "nn.Module | None", bits: int | None, nested: bool) -> float:
    """The bytes of a parameter: 4-bit weights have a constant for every 64, 8-bit ones for every row."""
    if not bits or packed is None:
        return weight.nbytes
    count = weight.numel()
    if bits == 8:
        return count + 4 * weight.shape[0]
    constants = count / 64
    return count / 2 + (constants * (1 + 4 / 256) if nested else constants * 4)


@cache
def largest_matrix(model: Model, dtype: str) -> int:
    """The bytes of the largest weight that may be quantised, as it is when unpacked."""
    import torch

    with torch.device("meta"):
        made = _empty(model, dtype, "CausalLM", FEW)
        return max(weight.nbytes for _, weight, packed in _parameters(made) if packed is not None)


# --- passes --------------------------------------------------------------------------------------------------------


def _tracker() -> Any:
    """A mode that counts what is alive, by part, and keeps the highest count of each segment of its time."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Tracker(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.living, self.alive, self.segments = "activations", {}, Counter(), [Counter()]

        def ignore(self, module: "nn.Module") -> None:
            """What is counted elsewhere."""
            for tensor in (*module.parameters(), *module.buffers()):
                self.count(tensor, "", 0)

        def count(self, tensor: torch.Tensor, part: str, size: int | None = None) -> None:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.living:
                return
            self.living[key] = part, storage.nbytes() if size is None else size
            weakref.finalize(storage, self.gone, key).atexit = False
            self.alive[part] += self.living[key][1]
            if self.alive.total() > self.segments[-1].total():
                self.segments[-1] = self.alive.copy()

        def gone(self, key: int) -> None:
            part, size = self.living.pop(key)
            self.alive[part] -= size

        def rename(self, tensor: torch.Tensor, part: str) -> None:
            key = tensor.untyped_storage()._cdata
            before, size = self.living[key]
            self.living[key] = part, size
            self.alive[before] -= size
            self.alive[part] += size

        def next_segment(self) -> None:
            self.segments.append(self.alive.copy())

        @contextmanager
        def counting(self, part: str) -> Iterator[None]:
            before, self.part = self.part, part
            try:
                yield
            finally:
                self.part = before

        def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.count(tensor, self.part)
            return result

    return Tracker()


@contextmanager
def _head(tracker: Any, work: Work) -> Iterator[None]:
    """TRL's head, its tensors counted as logits.

    Triton's kernels, on a GPU, have none but the tile itself. On a CPU what is never written to takes no memory.
    """
    from unittest import mock

    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    original = chunked_logprob.ChunkedLogProbFunction

    class Head(original):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with tracker.counting("logits"):
                return original.forward(ctx, *args)

        @staticmethod
        def backward(ctx: Any, *args: Any) -> Any:
            with tracker.counting("logits"):
                return original.backward(ctx, *args)

    if work.cpu:
        vocabulary = config_of(work.model).get_text_config().vocab_size
        tile = min(utils._CHUNKED_LOGPROB_CHUNK_SIZE, vocabulary)
        device = mock.patch.object(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", tile)
    else:
        kernels = dict.fromkeys(("_forward_tile", "_backward_tile", "_addmm_fp32"), lambda *_, **__: None)
        device = mock.patch.multiple(chunked_logprob, **kernels)
    with mock.patch.object(utils, "_ChunkedLogProbFunction", Head), device:
        yield


def _extrapolated(few: list[Counter], more: list[Counter], layers: int) -> Counter:
    """Of models with few and with more layers, the highest count of one with so many."""
    times = (layers - FEW) / (MORE - FEW)
    found = [
        Counter({part: a[part] + times * (b[part] - a[part]) for part in a.keys() | b.keys()})
        for a, b in zip(few, more, strict=True)
    ]
    return max(found, key=Counter.total)


def _layers(model: Model) -> int:
    return config_of(model).get_text_config().num_hidden_layers


def by_layers(work: Work, run: Any) -> Counter:
    """What a pass of the whole model counts at most."""
    layers = _layers(work.model)
    if layers <= MORE:
        return max(run(work, layers), key=Counter.total)
    return _extrapolated(run(work, FEW), run(work, MORE), layers)


def _trained_model(work: Work, layers: int) -> "nn.Module":
    import torch

    kind = "SequenceClassification" if work.method == "reward" else "CausalLM"
    with torch.device("meta"):
        model = _empty(work.model, work.dtype, kind, layers)
        model = _adapted(model, work.model, work.bits, kind) if work.model.lora else model
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout) and not work.dropout:
            part.p = 0.0
    return model.train()


def _critic(work: Work, layers: int) -> "nn.Module | None":
    """PPO's second model, whose backward pass falls between the policy's two."""
    import torch

    if work.critic in (None, "shared"):
        return None
    if work.critic != "copy":
        with torch.device("meta"):
            return _empty(work.critic_model, "float32", "", layers).train()
    critic = _trained_model(work, layers)
    return critic.get_base_model().base_model if work.model.lora else critic.base_model.float()


def _without_contents(*models: "nn.Module | None") -> Any:
    """A mode whose tensors have no contents but behave as those of a CPU; the models' are made its own."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode, made = FakeTensorMode(), {}
    with mode:
        for module in (module for model in models if model is not None for module in model.modules()):
            for name, weight in module._parameters.items():
                if weight is not None and id(weight) not in made:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    made[id(weight)] = weight, torch.nn.Parameter(empty, requires_grad=weight.requires_grad)
                module._parameters[name] = weight if weight is None else made[id(weight)][1]
            for name, values in module._buffers.items():
                module._buffers[name] = values if values is None else torch.empty(values.shape, dtype=values.dtype)
    return mode


@cache
def training(work: Work, layers: int) -> list[Counter]:
    """Forwards and backwards through a model with so many layers, as TRL's trainers go."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from trl.trainer.utils import add_fused_lm_head

    def passed(model: "nn.Module", inputs: dict[str, torch.Tensor], critic: "nn.Module | None") -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if work.autocast else nullcontext():
            if work.method == "reward":
                return model(**inputs, use_cache=False).logits.float().mean()
            labels = inputs["input_ids"].clone()
            loss = -model(**inputs, labels=labels, fused_lm_head=True).log_probs.mean()
            if critic is not None:
                critic(**inputs, use_cache=False).last_hidden_state.float().mean().backward()
            return loss

    tracker = _tracker()
    model, critic = _trained_model(work, layers), _critic(work, layers)
    with _without_contents(model, critic), _head(tracker, work):
        for made in (model, critic):
            if made is None:
                continue
            tracker.ignore(made)
            if work.checkpointing:
                made.activation_checkpointing_enable()
                if work.model.lora:
                    made.enable_input_require_grads()
            for weight in made.parameters():
                if weight.requires_grad:
                    weight.register_post_accumulate_grad_hook(lambda weight: tracker.rename(weight.grad, "gradients"))
                    if work.accumulates:
                        weight.grad = torch.empty_like(weight)
                        tracker.count(weight.grad, "gradients")
        if work.method != "reward":
            names = ("log_probs", "entropy", "is_top1") if work.method == "sft" else ("log_probs", "entropy")
            add_fused_lm_head(model.get_base_model() if work.model.lora else model, outputs=names)
        _mark_last_layer(model, layers, tracker)
        shape = work.batch, work.prompt + work.answer
        inputs = {name: torch.ones(shape, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        with tracker, sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            passed(model, inputs, critic).backward()
        return tracker.segments


def _mark_last_layer(model: "nn.Module", layers: int, tracker: Any) -> None:
    """Begin a segment where the backward pass leaves the last layer: what is highest after it may lie elsewhere."""
    from torch import nn

    last = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == layers)[-1]

    def before(module: "nn.Module", args: tuple) -> None:
        if args[0].requires_grad and len(tracker.segments) == 1:
            args[0].register_hook(lambda gradient: tracker.next_segment())

    last.register_forward_pre_hook(before)


@cache
def decoding(work: Work, layers: int, count: int, tokens: int) -> list[Counter]:
    """The passes of generation over so many prompts: that over the prompts, and that over the last token."""
    import torch
    from transformers import DynamicCache

    tracker = _tracker()
    model = _trained_model(work, layers).eval()
    past = DynamicCache(config=model.config)
    update = past.update

    def counted(*args: Any, **kwargs: Any) -> Any:
        with tracker.counting("cache"):
            return update(*args, **kwargs)

    past.update = counted
    with _without_contents(model), torch.no_grad():
        tracker.ignore(model)
        mask = torch.ones(count, work.prompt, dtype=torch.long)
        with tracker:
            model(input_ids=mask, attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=1)
            with tracker.counting("cache"):
                for layer in past.layers:
                    *others, _, size = layer.keys.shape
                    shape = *others, work.prompt + tokens - 1, size
                    layer.keys, layer.values = layer.keys.new_empty(shape), layer.values.new_empty(shape)
            tracker.next_segment()
            mask = torch.ones(count, work.prompt + tokens, dtype=torch.long)
            model(input_ids=mask[:, :1], attention_mask=mask, past_key_values=past, use_cache=True, logits_to_keep=1)
        return [tracker.segments[0], tracker.segments[-1]]
