"""A trained reward model as one reward among others, on a base of its own or on the policy's."""

import contextlib
import copy
import functools
import importlib.util
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import (
    Task,
    check_choice,
    check_flag,
    check_whole,
    completion_text,
    known_mean,
    reference_texts,
)
from lastmile_trl.rewards.neural import _beside_the_run, _check_model, _device

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

CENTRED_ON = 256  # references whose mean score becomes 0
LEAST_DEVIATION = 1e-4  # below it, scores differ by rounding alone
DTYPES = ("auto", "bfloat16", "float16", "float32")
_EXPECTED = "name the run folder of a `method: reward` stage, or any decoder with a `score` head and one label."


class _Row(NamedTuple):
    """An answer to a prompt, whether it ended by itself, and whether a model has generated it after this prompt."""

    prompt: str | list[dict[str, Any]] | None
    text: str
    ended: bool = True
    generated: bool = False


class _State:
    """What a process finds out while it scores; the copy of a pickled reward starts anew."""

    def __init__(self) -> None:
        self.reader: _Reader | None = None  # on the policy's base
        self.mean: float | None = None
        self.deviation = _Deviation()
        self.failed = False

    def __reduce__(self) -> tuple:
        return _State, ()


@dataclass(frozen=True)
class Model:
    """What a reward model has learned to prefer: its score of the completion, read with the prompt.

    Formula: `s(prompt + completion + end token)`, with `s` the model's one number at the last token; the end token is
    there if the completion ended by itself. With `centre`, minus the mean score of up to 256 references of the
    training rows. With `scale_by_deviation`, and only where a trainer trains on it, divided by the deviation of all
    scores of the run so far.

    Range: any number; what counts is the difference between two. With `centre`, 0 is as good as the references. None
    where the prompt is missing.

    Use: where what is good cannot be counted, and pairs of a better and a worse answer can be had.

    How it is gamed: by whatever the model was never shown. It has learned to tell the pairs of its training apart, and
    a policy looks until it finds texts that score high for another reason: longer ones, a style, a phrase that opens
    or ends every answer. The longer a run, the worse.

    Pair it with: `length`, `repetition`, a KL penalty (`training.beta`), and in evaluation.metrics a measure that is
    not rewarded, such as `rouge`.

    Arguments:
        model: the run folder of a `method: reward` stage; or, in a folder or on the Hub, any decoder with a `score`
            head and one label, or a LoRA adapter for such a one. Each process loads a copy onto its training device,
            and keeps it.
        batch_size: how many texts the model reads at a time.
        centre: subtract the mean score of the references of the training rows.
        scale_by_deviation: divide by the deviation of all scores so far, over all processes; a run that resumes counts
            from zero again.
        dtype: `auto` (as stored), `bfloat16`, `float16` or `float32`.
        load_in_4bit: quantise the model, or the base of the adapter: a third of the memory.
        share_base: while a policy is trained that is a LoRA adapter on the same base, load no second base: the reward
            model's adapter joins it there, frozen. Not for a policy that FSDP or DeepSpeed shards. Elsewhere the base
            is loaded.

    >>> Model("runs/summaries/reward", share_base=True).__name__
    'model'
    """

    model: str
    batch_size: int = 16
    centre: bool = True
    scale_by_deviation: bool = False
    dtype: str = "auto"
    load_in_4bit: bool = False
    share_base: bool = False
    _end_ids: frozenset[int] = field(default=frozenset(), init=False, repr=False, compare=False)
    _references: tuple[_Row, ...] = field(default=(), init=False, repr=False, compare=False)
    _state: _State = field(default_factory=_State, init=False, repr=False, compare=False)

    needs: ClassVar[tuple[str, ...]] = ()
    not_on_texts: ClassVar[str] = "it loads a model"

    def __post_init__(self) -> None:
        _check_model(self.model)
        check_whole("batch_size", self.batch_size)
        check_choice("dtype", self.dtype, DTYPES)
        for key in ("centre", "scale_by_deviation", "load_in_4bit", "share_base"):
            check_flag(key, getattr(self, key))
        if self.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                "load_in_4bit needs the package bitsandbytes, which is not installed: "
                "pip install 'lastmile-trl[quantization]'."
            )

    @property
    def __name__(self) -> str:
        return "model"

    def for_task(self, task: Task) -> "Model":
        """Return a copy that knows the end tokens of the run, and references to be centred on."""
        fitted = replace(self)
        object.__setattr__(fitted, "_end_ids", frozenset(task.end_ids))
        if self.centre and {"prompt", "references"} <= task.columns.keys():
            object.__setattr__(fitted, "_references", _sample(task.columns["prompt"], task.columns["references"]))
        return fitted

    def for_trainer(self, trainer: "Trainer") -> None:
        """Join the policy of a trainer if the base is shared; to be called before the training starts."""
        if self.share_base:
            self._state.reader = _join(self.model, trainer)

    def __call__(
        self,
        completions: Sequence,
        prompts: Sequence | None = None,
        completion_ids: Sequence | None = None,
        ended: Sequence[bool | None] | None = None,
        trainer_state: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score each completion as the answer to its prompt."""
        if prompts is None:
            raise ValueError("it reads the prompt, which is missing: give each row a `prompt`.")
        completion_ids = [None] * len(completions) if completion_ids is None else completion_ids
        ended = [self._ended(ids) for ids in completion_ids] if ended is None else ended
        rows = [
            _Row(prompt, completion_text(completion), end is not False, ids is not None)
            for prompt, completion, ids, end in zip(prompts, completions, completion_ids, ended, strict=True)
        ]
        try:
            scores, mean = self._scores(rows), self._mean() if self.centre else 0.0
        except Exception:
            self._state.failed = True
            raise
        scores = [None if score is None else score - mean for score in scores]
        if self.scale_by_deviation and trainer_state is not None:
            deviation = self._deviation(scores)
            scores = [None if score is None else score / deviation for score in scores]
        return scores

    def _ended(self, ids: Sequence[int] | None) -> bool:
        return ids is None or not self._end_ids or (len(ids) > 0 and int(ids[-1]) in self._end_ids)

    def _scores(self, rows: Sequence[_Row]) -> list[float | None]:
        """The model's own scores, as they are."""
        known = [number for number, row in enumerate(rows) if row.prompt is not None]
        scores: list[float | None] = [None] * len(rows)
        if known:
            read = self._state.reader or _load(self.model, self.dtype, self.load_in_4bit, _device())
            found = read(_token_ids(self.model, [rows[number] for number in known]), self.batch_size)
            for number, score in zip(known, found, strict=True):
                scores[number] = score
        return scores

    def _mean(self) -> float:
        """The mean score of the references, found at the first call; 0 where none are known, which is said."""
        if self._state.mean is None:
            mean = known_mean(self._scores(self._references))
            if mean is None:
                from accelerate import PartialState

                from lastmile_trl.screen import note

                if PartialState().is_main_process:
                    note("Reward 'model' is not centred here: it knows no training rows with a prompt and references.")
            self._state.mean = mean or 0.0
        return self._state.mean

    def _deviation(self, scores: Sequence[float | None]) -> float:
        """The deviation of the scores of all calls so far, in all processes."""
        if (
            not self._state.failed
        ):  # to say where, a process that failed calls once more for each row, and does so alone
            from accelerate.utils import gather_object

            self._state.deviation.count(gather_object(list(scores)))
        return self._state.deviation.value()


class _Deviation:
    """The deviation of all numbers that were ever counted."""

    def __init__(self) -> None:
        self.number, self.mean, self.squares = 0, 0.0, 0.0

    def count(self, scores: Sequence[float | None]) -> None:
        for score in scores:
            if score is not None:
                self.number += 1
                difference = score - self.mean
                self.mean += difference / self.number
                self.squares += difference * (score - self.mean)

    def value(self) -> float:
        """The deviation, or 1 while nothing is known of it."""
        deviation = (self.squares / max(1, self.number - 1)) ** 0.5
        return deviation if deviation > LEAST_DEVIATION else 1.0


# --- texts ---------------------------------------------------------------------------------------------------------


def _sample(prompts: Sequence, references: Sequence) -> tuple[_Row, ...]:
    """The first references of some rows, the same ones in every process."""
    chosen = sorted(random.Random(0).sample(range(len(prompts)), min(CENTRED_ON, len(prompts))))
    return tuple(_Row(prompts[row], text) for row in chosen for text in reference_texts(references[row])[:1])


def _token_ids(model: str, rows: Sequence[_Row]) -> list[tuple[int, ...]]:
    """Prompt, answer, end in the reward model's own tokens: as generated, or as training on pairs has the answer."""
    from lastmile_trl.models import prompt_ids
    from lastmile_trl.preferences.tokens import all_answer_ids

    tokenizer = _tokenizer(model, chat=not isinstance(rows[0].prompt, str))
    said, told = [row for row in rows if row.generated], [row for row in rows if not row.generated]
    asked = prompt_ids(tokenizer, [row.prompt for row in said])
    texts = tokenizer([row.text for row in said], add_special_tokens=False)["input_ids"] if said else []
    generated = (
        (*before, *after, *[tokenizer.eos_token_id] * row.ended)
        for row, before, after in zip(said, asked, texts, strict=True)
    )
    pairs = all_answer_ids(
        tokenizer, [row.prompt for row in told], [row.text for row in told], [row.ended for row in told]
    )
    trained = ((*before, *answer) for before, answer in pairs)
    return [next(generated if row.generated else trained) for row in rows]


@functools.lru_cache(maxsize=8)
def _tokenizer(model: str, chat: bool) -> "PreTrainedTokenizerBase":
    from lastmile_trl.models import load_tokenizer

    return load_tokenizer(model, chat=chat)


# --- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    """A backbone and the head that turns its hidden state of the last token into a score."""

    backbone: "nn.Module"
    head: "nn.Module"
    padding: int | None  # the token that training padded with: no score was ever read there
    at_work: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    def __call__(self, sequences: Sequence[tuple[int, ...]], batch_size: int) -> list[float | None]:
        """Return the score of each sequence; None for one without a token."""
        import torch

        self._check_window(max(map(len, sequences)))
        scores: dict[tuple[int, ...], float] = {}
        # Equal texts are read once; those padded to one length have nearly that length.
        ordered = sorted(filter(None, dict.fromkeys(sequences)), key=len)
        device = next(self.backbone.parameters()).device
        with torch.no_grad(), self.at_work():
            for start in range(0, len(ordered), batch_size):
                batch = ordered[start : start + batch_size]
                width = len(batch[-1])
                ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in batch], device=device)
                mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=device)
                hidden = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                last = hidden[torch.arange(len(batch)), [self._last(ids) for ids in batch]]
                read = self.head.to(last.device)(last.float())  # bfloat16 would blur the differences within a group
                scores.update(zip(batch, read.squeeze(1).tolist(), strict=True))
        return [scores.get(sequence) for sequence in sequences]

    def _last(self, ids: tuple[int, ...]) -> int:
        """The position at which the model was trained to score."""
        return max((place for place, token in enumerate(ids) if token != self.padding), default=0)

    def _check_window(self, longest: int) -> None:
        window = getattr(self.backbone.config.get_text_config(), "max_position_embeddings", None) or longest
        if longest > window:
            raise ValueError(f"a text of {longest} tokens is longer than the {window} that the reward model can read")


def check_is_reward_model(model: str, revision: str | None = None) -> None:
    """Refuse what is no reward model; reads small files only, so it can be asked before anything is loaded."""
    from lastmile_trl.models import adapter_config, read_json

    adapter = adapter_config(model, revision)
    if adapter is not None:
        if adapter.get("task_type") != "SEQ_CLS":
            raise InputError(f"{model!r} is an adapter for {adapter.get('task_type')}, no reward model: {_EXPECTED}")
        if "score" not in (adapter.get("modules_to_save") or []):
            raise InputError(f"{model!r} is an adapter that came without its `score` head: {_EXPECTED}")
        return
    config = read_json(model, "config.json", revision)
    if config is None:
        raise InputError(
            f"{model!r} holds no model: no config.json and no adapter_config.json; has its stage finished?"
        )
    kind, labels = (config.get("architectures") or ["nameless model"])[0], len(config.get("id2label") or (0, 1))
    if not kind.endswith("ForSequenceClassification"):
        raise InputError(f"{model!r} is a {kind}, no reward model: {_EXPECTED}")
    if labels != 1:
        raise InputError(f"{model!r} is a classifier with {labels} labels, no reward model: {_EXPECTED}")


@functools.lru_cache(maxsize=4)
def _load(model: str, dtype: str, load_in_4bit: bool, device: str) -> _Reader:
    """The reward model on a base of its own."""
    from accelerate.utils import patch_environment
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from trl import ModelConfig, get_quantization_config
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    from lastmile_trl.models import adapter_config, check_safetensors, safely

    check_is_reward_model(model)
    check_safetensors(model)
    adapter = adapter_config(model) or {}
    base = adapter.get("base_model_name_or_path", model)
    settings = safely(base, adapter.get("revision"))
    if load_in_4bit and dtype == "auto":
        dtype = AutoConfig.from_pretrained(base, **settings).dtype or "float32"
    quantisation = get_quantization_config(ModelConfig(dtype=dtype, load_in_4bit=load_in_4bit))
    # FSDP would have the model read by one process, and share it out with the policy.
    with _beside_the_run(), patch_environment(fsdp_cpu_ram_efficient_loading="false"), suppress_seqcls_warning():
        classifier = AutoModelForSequenceClassification.from_pretrained(
            base,
            **settings,
            num_labels=1,
            dtype=dtype,
            quantization_config=quantisation,
            device_map={"": device} if load_in_4bit and device != "cpu" else None,
        )
        if adapter:
            classifier = PeftModel.from_pretrained(classifier, model).get_base_model()
    if not hasattr(classifier, "score"):
        raise InputError(f"{model!r} is a {type(classifier).__name__}, which has no `score` head: {_EXPECTED}")
    classifier = (classifier if load_in_4bit else classifier.to(device)).eval().requires_grad_(False)
    padding = _padding(model) if adapter else classifier.config.get_text_config().pad_token_id
    return _Reader(classifier.base_model, copy.deepcopy(classifier.score).float(), padding)


def _padding(model: str) -> int | None:
    """The token that TRL has padded the training of an adapter with."""
    from transformers import AutoTokenizer

    from lastmile_trl.models import trusts_remote_code

    return AutoTokenizer.from_pretrained(model, trust_remote_code=trusts_remote_code()).pad_token_id


# --- on the policy's base ------------------------------------------------------------------------------------------


def _join(model: str, trainer: "Trainer") -> _Reader:
    """The reward model as one more adapter of the policy: frozen, and active only while it reads."""
    from peft import LoraConfig
    from peft.utils import load_peft_weights, set_peft_model_state_dict
    from torch import nn

    from lastmile_trl.models import check_safetensors

    policy = trainer.accelerator.unwrap_model(trainer.model)
    _check_shareable(model, policy, trainer)
    check_safetensors(model)
    name = f"reward_{zlib.crc32(model.encode()):08x}"
    weights = load_peft_weights(model, device="cpu")
    head = {key.rpartition(".")[2]: weights.pop(key) for key in list(weights) if ".score." in key}
    if other := [key for key in weights if ".lora_" not in key]:  # they would replace the policy's own
        raise _unshareable(f"{model!r} holds more than LoRA and a head ({other[0]})")
    with _beside_the_run():  # layers draw the weights they begin with
        linear = nn.Linear(head["weight"].size(1), 1, bias="bias" in head)
        linear.load_state_dict(head)
        if not any(f".{name}." in key for key, _ in policy.named_parameters()):  # a metric may have brought it
            config = LoraConfig.from_pretrained(model)
            config.modules_to_save, config.inference_mode = None, True
            policy.add_adapter(name, config)
            found = set_peft_model_state_dict(policy, weights, name)
            # Unlisted, it is neither saved with the policy nor loaded with a checkpoint.
            del policy.peft_config[name]
            if lost := [*found.unexpected_keys, *(key for key in found.missing_keys if f".{name}." in key)]:
                raise _unshareable(f"{model!r} does not fit the policy's base ({lost[0]})")
    backbone = policy.get_base_model().base_model
    at_work = functools.partial(_wearing, policy, name)
    return _Reader(backbone, linear.float().requires_grad_(False), _padding(model), at_work)


def _check_shareable(model: str, policy: "PreTrainedModel", trainer: "Trainer") -> None:
    from peft import PeftModel

    from lastmile_trl.models import adapter_config

    check_is_reward_model(model)
    adapter = adapter_config(model)
    if adapter is None:
        raise _unshareable(f"{model!r} is a whole model and no adapter on a base")
    if not isinstance(policy, PeftModel):
        raise _unshareable("the policy is no adapter on a base (model.use_peft)")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise _unshareable("FSDP and DeepSpeed shard the policy's base")
    own = policy.peft_config[policy.active_adapters[0]].to_dict()
    if (base := _base(adapter)) != (other := _base(own)):
        raise _unshareable(f"the base of {model!r} is {' at '.join(base)}, that of the policy {' at '.join(other)}")
    start = adapter.get("init_lora_weights", True)
    if {adapter["peft_type"], own["peft_type"]} != {"LORA"} or (isinstance(start, str) and start != "gaussian"):
        raise _unshareable(f"{model!r} or the policy is no plain LoRA")  # such as PiSSA, which changes the base too


def _unshareable(reason: str) -> InputError:
    return InputError(f"Reward 'model': share_base does not work here, as {reason}: set share_base: false.")


def _base(adapter: dict[str, Any]) -> tuple[str, str]:
    """The name of an adapter's base, and its revision."""
    name = str(adapter["base_model_name_or_path"])
    return str(Path(name).resolve()) if Path(name).is_dir() else name, adapter.get("revision") or "main"


@contextlib.contextmanager
def _wearing(policy: "PeftModel", adapter: str) -> Iterator[None]:
    """The policy with another adapter and in evaluation mode; then all is as it was, to the last gradient flag."""
    tuner = policy.base_model
    active, flags = tuner.active_adapter, [(each, each.requires_grad) for each in policy.parameters()]
    modes = [(module, module.training) for module in policy.modules()]
    try:
        policy.eval()
        for module, _ in modes:
            # in evaluation mode on a CPU, a 4-bit layer packs its weights, and no gradient passes it again
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.training = True
        tuner.set_adapter(adapter, inference_mode=True)
        yield
    finally:
        tuner.set_adapter(active)
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training
