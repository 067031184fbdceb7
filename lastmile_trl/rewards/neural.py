"""Rewards from the vectors of a neural network, for the same meaning in other words.

The models run in float32 on the trainer's device. The reward objects hold names only: models are loaded at the first
call and kept for the process.
"""

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import (
    check_choice,
    check_number,
    check_whole,
    completion_text,
    reference_texts,
    require,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS_AT_ONCE = 256  # whose token vectors BertScore holds at a time: 0.25 GB for 250 tokens of 1024 numbers


@dataclass(frozen=True)
class Embedding:
    """How near the completion's meaning is to the reference's: the cosine of their sentence embeddings.

    Formula: `cos(e(completion), e(reference))`, with `e` a model of the sentence-transformers library; of several
    references the nearest one counts.

    Range: [-1, 1], and what unrelated texts get depends on the model: often well above 0. An empty completion counts as
    unrelated: 0. None where no reference holds a character.

    Use: where many wordings are right and the references show only some of them.

    How it is gamed: by texts that are about the right thing and say nothing of it, or say the opposite: negations,
    numbers and names hardly move an embedding. What lies beyond the model's window (often 256 or 512 tokens) is not
    read. Scores lie close together, so a group of completions gives small differences, mostly of style.

    Pair it with: `numbers`, `entities`, `length`; and read what a run writes.

    Arguments:
        model: an id on the Hub or a folder; one of sentence-transformers knows how its vectors are to be pooled, of
            any other encoder the mean over tokens is taken. Each process of a run loads a copy of its own, of 4 bytes
            per parameter, onto its training device, and keeps it.
        batch_size: how many texts the model reads at a time.

    >>> Embedding("sentence-transformers/all-MiniLM-L6-v2").batch_size
    32
    """

    # sentence-transformers brings scipy and scikit-learn, 220 MB, but pools as each model was trained to.
    model: str
    batch_size: int = 32

    needs: ClassVar[tuple[str, ...]] = ("references",)
    not_on_texts: ClassVar[str] = "it loads a model"

    def __post_init__(self) -> None:
        require("sentence-transformers")
        _check_model(self.model)
        check_whole("batch_size", self.batch_size)

    @property
    def __name__(self) -> str:
        return "embedding"

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        rows = _rows(completions, references)
        texts = _texts(rows)
        vectors = {}
        if texts:
            encoder = _sentence_encoder(self.model, _device())
            arrays = encoder.encode(
                texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            vectors = dict(zip(texts, arrays, strict=True))
        values: list[float | None] = []
        for text, targets in rows:
            if not text:
                values.append(0.0 if targets else None)
            else:
                cosines = (float(vectors[text] @ vectors[target]) for target in targets)
                values.append(max((min(1.0, cosine) for cosine in cosines), default=None))
        return values


@dataclass(frozen=True)
class BertScore:
    """How well the completion's tokens match the reference's one by one, each token seen in its context.

    As the bert-score package without idf weights (Zhang et al. 2020).

    Formula: each token is the vector of a hidden layer. Precision P is the mean over the completion's tokens of the
    highest cosine with a token of the reference; recall R is the same with the roles changed; `F = 2PR / (P + R)`.
    Special tokens such as [CLS] can be matched, and are left out of the means. The value is `max(0, (x - baseline) /
    (1 - baseline))` for x one of P, R, F; of several references the one with the highest value counts.

    Range: [0, 1]. Without a baseline nearly all texts of one language get a high value, whatever they say. An empty
    completion gets 0. None where no reference holds a token.

    Use: as `embedding`, where order and detail should count for more.

    How it is gamed: less by vagueness than `embedding`, but a wrong number or name costs one token out of all, and
    that token is near the right one. `recall` grows with length. What lies beyond the model's window (often 512
    tokens) is not read.

    Pair it with: `numbers`, `entities`, `length`.

    Arguments:
        model: an encoder such as BERT or RoBERTa: an id on the Hub or a folder. Each process of a run loads a copy of
            its own, of 4 bytes per parameter, onto its training device, and keeps it.
        layer: the hidden layer whose vectors are compared, the last one if not given; bert-score takes 9 for
            bert-base-uncased, 17 for roberta-large, 40 for microsoft/deberta-xlarge-mnli.
        measure: `f`, `precision` or `recall`.
        baseline: what becomes 0, usually the value of unrelated texts, so that differences grow.
        batch_size: how many texts the model reads at a time.

    >>> BertScore("roberta-large", layer=17, baseline=0.83).__name__
    'bertscore'
    """

    model: str
    layer: int | None = None
    measure: str = "f"
    baseline: float = 0.0
    batch_size: int = 32

    needs: ClassVar[tuple[str, ...]] = ("references",)
    not_on_texts: ClassVar[str] = "it loads a model"

    def __post_init__(self) -> None:
        _check_model(self.model)
        if self.layer is not None:
            check_whole("layer", self.layer)
        check_choice("measure", self.measure, ("f", "precision", "recall"))
        check_number("baseline", self.baseline, least=0)
        if self.baseline >= 1:
            raise InputError(f"baseline must be below 1, not {self.baseline!r}.")
        check_whole("batch_size", self.batch_size)

    @property
    def __name__(self) -> str:
        return "bertscore" if self.measure == "f" else f"bertscore/{self.measure}"

    def __call__(self, completions: Sequence, references: Sequence, **columns: Any) -> list[float | None]:
        """Score each completion against its row's references."""
        rows = _rows(completions, references)
        values: list[float | None] = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            tokens = dict(self._tokens(_texts(some)))
            for text, targets in some:
                present = [tokens[target] for target in targets if tokens[target].counted.any()]
                values.append(max((self._value(tokens.get(text), target) for target in present), default=None))
        return values

    def _tokens(self, texts: Sequence[str]) -> "Iterator[tuple[str, _Tokens]]":
        """Yield each text with its tokens."""
        if not texts:
            return
        import torch

        device = _device()
        tokenizer, encoder = _token_encoder(self.model, self.layer, device)
        window = min(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", 512))
        ordered = sorted(texts, key=len)  # so that texts padded to one length have nearly that length
        for start in range(0, len(ordered), self.batch_size):
            batch = ordered[start : start + self.batch_size]
            inputs = tokenizer(
                [f" {text}" for text in batch],  # as bert-score: byte-level vocabularies hold words with their space
                padding=True,
                truncation=True,
                max_length=window,
                return_special_tokens_mask=True,
                return_tensors="pt",
            ).to(device)
            special = inputs.pop("special_tokens_mask").bool()
            with torch.no_grad():
                states = encoder(**inputs).last_hidden_state
            states = torch.nn.functional.normalize(states, dim=-1)
            for text, vectors, real, extra in zip(batch, states, inputs["attention_mask"].bool(), special, strict=True):
                yield text, _Tokens(vectors[real], ~extra[real])

    def _value(self, completion: "_Tokens | None", reference: "_Tokens") -> float:
        if completion is None or not completion.counted.any():
            return 0.0
        cosines = completion.vectors @ reference.vectors.T
        precision = max(0.0, cosines.amax(dim=1)[completion.counted].mean().item())
        recall = max(0.0, cosines.amax(dim=0)[reference.counted].mean().item())
        if self.measure == "precision":
            value = precision
        elif self.measure == "recall":
            value = recall
        else:
            value = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return min(1.0, max(0.0, (value - self.baseline) / (1 - self.baseline)))


class _Tokens(NamedTuple):
    """The tokens of a text: their vectors of length 1, and which of them are no special tokens."""

    vectors: "Tensor"
    counted: "Tensor"


def _check_model(model: Any) -> None:
    if not isinstance(model, str) or not model.strip():
        raise InputError(f"model must name a model, by its id on the Hub or its folder, not {model!r}.")


def _rows(completions: Sequence, references: Sequence) -> list[tuple[str, list[str]]]:
    """Return each completion with those of its references that hold a character, all without space around them."""
    return [
        (completion_text(completion).strip(), [text for text in map(str.strip, reference_texts(texts)) if text])
        for completion, texts in zip(completions, references, strict=True)
    ]


def _texts(rows: Iterable[tuple[str, list[str]]]) -> list[str]:
    """Return the texts that have to be read, each once."""
    pairs = ((text, target) for text, targets in rows for target in targets)
    return [text for text in dict.fromkeys(text for pair in pairs for text in pair) if text]


def _device() -> str:
    from accelerate import PartialState

    return str(PartialState().device)  # the trainer's, where there is one


@functools.lru_cache(maxsize=4)
def _sentence_encoder(model: str, device: str) -> "SentenceTransformer":
    import torch
    from sentence_transformers import SentenceTransformer

    from lastmile_trl.models import trusts_remote_code

    weights = {"dtype": torch.float32, "use_safetensors": True}
    with _beside_the_run():
        return SentenceTransformer(model, device=device, model_kwargs=weights, trust_remote_code=trusts_remote_code())


@functools.lru_cache(maxsize=4)
def _token_encoder(model: str, layer: int | None, device: str) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    import torch
    from transformers import AutoModel, AutoTokenizer

    from lastmile_trl.models import safely

    settings = safely(model)
    with _beside_the_run():
        encoder = AutoModel.from_pretrained(model, dtype=torch.float32, **settings)
        if layer is not None:
            config = copy.deepcopy(encoder.config)
            if layer > config.num_hidden_layers:
                raise ValueError(f"layer {layer} of a model that has {config.num_hidden_layers}")
            config.num_hidden_layers = layer
            cut = AutoModel.from_config(config, dtype=torch.float32)
            cut.load_state_dict(encoder.state_dict(), strict=False)  # which has the layers above, too
            encoder = cut
    return AutoTokenizer.from_pretrained(model, **settings), encoder.to(device).eval()


@contextlib.contextmanager
def _beside_the_run() -> Iterator[None]:
    """Load a model that is none of the trainer's: whole where it shards its own, and drawing none of its numbers."""
    import torch
    from transformers.integrations import deepspeed

    sharding = deepspeed._hf_deepspeed_config_weak_ref  # of ZeRO-3; transformers has no public way to ask for it
    deepspeed.unset_hf_deepspeed_config()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = sharding
