"""A trained classifier as a reward: how much a text is of a kind, such as positive, formal or harmless."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lastmile_trl.errors import InputError, unknown
from lastmile_trl.rewards.base import check_choice, check_whole, completion_text, prompt_text
from lastmile_trl.rewards.neural import _beside_the_run, _check_model, _device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Classifier:
    """How sure a classifier is that the completion is of a kind: positive, formal, harmless.

    Formula: with `output: probability`, `softmax(z)[label]` for the model's numbers `z`, one for each label; the
    logistic function of `z[label]` where the model has one label, or was trained to give several at once. With
    `output: logit`, `z[label]` itself.

    Range: [0, 1] for `probability`, any number for `logit`. None where the prompt is to be read and is missing, and
    where there is no token to read.

    Use: where a model is at hand that was trained to tell what is wanted from what is not, as for sentiment.

    How it is gamed: by a few words that the classifier goes by, said again and again, and by texts that are like none
    it was trained on, of which it can be as sure. A probability near 1 hardly rises, so all that is left to learn is
    the rest: `logit` has no such end, and is gamed the longer. Of a text beyond the model's window (often 512 tokens)
    only the end is read; where the prompt alone decides, the completion need say nothing.

    Pair it with: `repetition`, a KL penalty (`training.beta`), and in evaluation.metrics another `classifier` for the
    same, trained on other data, which is not rewarded.

    Arguments:
        model: a model for sequence classification: an id on the Hub or a folder. Each process of a run loads a copy
            of its own, of 4 bytes per parameter, onto its training device, and keeps it.
        label: the name of the label that is wanted, as the model has it, or its number.
        reads: `completion`, or `prompt+completion` for one text of both, with a space where two words would run
            together.
        output: `probability` or `logit`.
        batch_size: how many texts the model reads at a time.
        revision: a branch, tag or commit of the model on the Hub.

    >>> Classifier("lvwerra/distilbert-imdb", label="POSITIVE", reads="prompt+completion").__name__
    'classifier/POSITIVE'
    """

    model: str
    label: str | int
    reads: str = "completion"  # not `on`, which is true in YAML
    output: str = "probability"
    batch_size: int = 32
    revision: str | None = None

    needs: ClassVar[tuple[str, ...]] = ()
    not_on_texts: ClassVar[str] = "it loads a model"

    def __post_init__(self) -> None:
        _check_model(self.model)
        if not isinstance(self.label, str | int) or isinstance(self.label, bool) or self.label == "":
            raise InputError(f"label must be the name or the number of one of the model's labels, not {self.label!r}.")
        check_choice("reads", self.reads, ("completion", "prompt+completion"))
        check_choice("output", self.output, ("probability", "logit"))
        check_whole("batch_size", self.batch_size)
        if self.revision is not None and (not isinstance(self.revision, str) or not self.revision):
            raise InputError(f"revision must be a branch, tag or commit, not {self.revision!r}.")

    @property
    def __name__(self) -> str:
        return f"classifier/{self.label}"

    def __call__(self, completions: Sequence, prompts: Sequence | None = None, **columns: Any) -> list[float | None]:
        """Score each completion."""
        texts = self._texts(completions, prompts)
        # Equal texts are read once; those padded to one length have nearly that length.
        ordered = sorted(dict.fromkeys(text for text in texts if text is not None), key=len)
        values: dict[str, float] = {}
        for start in range(0, len(ordered), self.batch_size):
            values.update(self._read(ordered[start : start + self.batch_size]))
        return [None if text is None else values.get(text) for text in texts]

    def _texts(self, completions: Sequence, prompts: Sequence | None) -> list[str | None]:
        texts = [completion_text(completion) for completion in completions]
        if self.reads == "completion":
            return texts
        if prompts is None:
            raise ValueError("it reads the prompt, which is missing: give each row a `prompt`.")
        return [
            None if prompt is None else _joined(prompt_text(prompt), text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _read(self, texts: Sequence[str]) -> dict[str, float]:
        """The value of each text that holds a token."""
        import torch

        tokenizer, classifier = _load(self.model, self.revision, _device())
        wanted = label_number(classifier.config.id2label, self.label)
        positions = getattr(classifier.config, "max_position_embeddings", 512)
        window = min(tokenizer.model_max_length, positions - 2)  # RoBERTa counts from 2, and may not say its length
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=window, return_tensors="pt")
        read = inputs["attention_mask"].any(dim=1)
        if not read.any():
            return {}
        inputs = {name: rows[read].to(classifier.device) for name, rows in inputs.items()}
        with torch.no_grad():
            logits = classifier(**inputs).logits
        values = logits if self.output == "logit" else _probabilities(logits, classifier.config.problem_type)
        known = [text for text, has_token in zip(texts, read.tolist(), strict=True) if has_token]
        return dict(zip(known, values[:, wanted].tolist(), strict=True))


def label_number(labels: Mapping[Any, str], label: str | int) -> int:
    """The number of a label given by name or number.

    >>> label_number({0: "NEGATIVE", 1: "POSITIVE"}, "POSITIVE"), label_number({"0": "NEGATIVE", "1": "POSITIVE"}, 1)
    (1, 1)
    """
    numbers = {name: int(number) for number, name in labels.items()}
    if label in numbers.values():
        return label
    if label not in numbers:
        raise unknown("label", label, numbers)
    return numbers[label]


def check_has_label(config: Mapping[str, Any], model: str, label: str | int) -> None:
    """Refuse, by its configuration, what is no classifier or has no such label."""
    kind = (config.get("architectures") or ["nameless model"])[0]
    if not kind.endswith("ForSequenceClassification"):
        raise InputError(f"{model!r} is a {kind}, no classifier: name a model for sequence classification.")
    label_number(config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}, label)


def _joined(prompt: str, completion: str) -> str:
    """Both as one text: decoding may have taken the space away that the completion began with.

    >>> _joined("A film", "to see."), _joined("A film", ", no more."), _joined("A film ", "to see.")
    ('A film to see.', 'A film, no more.', 'A film to see.')
    """
    run_together = completion[:1].isalnum() and prompt and not prompt[-1].isspace()
    return f"{prompt} {completion}" if run_together else prompt + completion


def _probabilities(logits: "Tensor", problem: str | None) -> "Tensor":
    several = problem == "multi_label_classification" or logits.size(1) == 1
    return logits.sigmoid() if several else logits.softmax(dim=1)


@functools.lru_cache(maxsize=4)
def _load(model: str, revision: str | None, device: str) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from lastmile_trl.models import safely

    settings = safely(model, revision)
    tokenizer = AutoTokenizer.from_pretrained(model, truncation_side="left", **settings)
    with _beside_the_run():
        classifier = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, **settings)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if classifier.config.pad_token_id is None:  # a decoder is read at its last token that is no padding
        classifier.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, classifier.to(device).eval()
