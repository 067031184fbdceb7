"""Completions of held-out prompts, tokenised as TRL tokenises them in training."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import InputError
from lastmile_trl.models import prompt_ids

if TYPE_CHECKING:
    import torch


@dataclass
class Output:
    """One completion: its text, its generated tokens (the end token included), and whether it ended by itself."""

    text: str
    ids: list[int] | None  # None: the text is not what was generated
    ended: bool


@dataclass
class Several(Output):
    """A text to show for a row whose values are means over other outputs; without any, the row has no value.

    Each is held against `references` of its own, where it is not against all of the row's.
    """

    outputs: list[Output]
    references: list[list[str]] | None = None
    why_none: str | None = None  # there are no outputs


def repeated(rows: Iterable[Any], times: int) -> list:
    """Every row several times, one beside the other.

    >>> repeated(["a", "b"], 2)
    ['a', 'a', 'b', 'b']
    """
    return [row for row in rows for _ in range(times)]


def grouped(outputs: Sequence[Output], size: int) -> list[list[Output]]:
    """The outputs of `repeated` rows by row."""
    return [list(outputs[start : start + size]) for start in range(0, len(outputs), size)]


def by_row(outputs: Sequence[Output], samples: int) -> list[Output]:
    """An output for each row: of several samples `Several`, which shows the first.

    >>> [row] = by_row([Output("a", [5], False), Output("b", [6, 2], True)], samples=2)
    >>> row.text, [output.text for output in row.outputs]
    ('a', ['a', 'b'])
    """
    if samples == 1:
        return list(outputs)
    return [
        Several(of_row[0].text, of_row[0].ids, of_row[0].ended, outputs=of_row) for of_row in grouped(outputs, samples)
    ]


def each(outputs: Iterable[Output], rows: Iterable[Any]) -> Iterator[tuple[Output, Any]]:
    """Every single output with its row."""
    for output, row in zip(outputs, rows, strict=True):
        for one in output.outputs if isinstance(output, Several) else [output]:
            yield one, row


def decode(
    model: Any,
    tokenizer: Any,
    prompts: list[str | list[dict]],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    draws: Sequence[tuple[int, int]] | None = None,
    known: Mapping[int, Output] | None = None,
    on_outputs: Callable[[dict[int, Output]], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Output]:
    """Complete every prompt once, in order; temperature 0 is greedy.

    Every row draws from a random generator of its own, seeded by `seed`, its prompt and its entry of `draws`, which are
    those of `draws_of` for all rows where these are a part of them. So a sample depends on the batch size and the other
    rows only through the rounding of padded batches, and torch's global state is not touched. The model's own
    generation settings are set aside, except its end tokens. A model in training comes back as it was; a sharded one
    must be gathered first (`trl.models.unwrap_model_for_generation`).

    Rows whose outputs are `known` are not decoded. `on_outputs` is given the new outputs of each batch by row,
    `on_batch` how many rows are done.
    """
    import torch

    end_ids = end_ids_of(model, tokenizer)

    def complete(prompts: list[list[int]], seeds: list[int]) -> list[list[int]]:
        sampling = _sampling(seeds, temperature, top_p, model.device)
        return _complete(model, tokenizer, prompts, max_new_tokens, end_ids, sampling)

    with torch.no_grad(), evaluating(model), _neutral_generation_config(model):
        return in_batches(
            complete,
            tokenizer,
            prompts,
            end_ids,
            batch_size=batch_size,
            seed=seed,
            draws=draws,
            known=known,
            on_outputs=on_outputs,
            on_batch=on_batch,
        )


def in_batches(
    complete: Callable[[list[list[int]], list[int]], list[list[int]]],
    tokenizer: Any,
    prompts: list[str | list[dict]],
    end_ids: list[int],
    *,
    batch_size: int,
    seed: int = 0,
    draws: Sequence[tuple[int, int]] | None = None,
    known: Mapping[int, Output] | None = None,
    on_outputs: Callable[[dict[int, Output]], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[Output]:
    """What `decode` does around `complete`, which continues the tokens of a batch, each with a seed of its own."""
    ids = _tokenize(tokenizer, prompts)
    if draws is None:  # a prompt that stands there again is one more sample
        draws = [(0, earlier) for earlier, _ in draws_of(ids)]
    seeds = _seeds(ids, seed, draws)
    outputs = dict(known or {})
    order = sorted((row for row in range(len(prompts)) if row not in outputs), key=lambda row: -len(ids[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        completions = [_up_to_end(said, end_ids) for said in complete([ids[r] for r in rows], [seeds[r] for r in rows])]
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        new = {
            row: Output(text=text, ids=said, ended=bool(said) and said[-1] in end_ids)
            for row, said, text in zip(rows, completions, texts, strict=True)
        }
        outputs |= new
        if on_outputs is not None:
            on_outputs(new)
        if on_batch is not None:
            on_batch(len(outputs), len(prompts))
    return [outputs[row] for row in range(len(prompts))]


def _tokenize(tokenizer: Any, prompts: list[str | list[dict]]) -> list[list[int]]:
    ids = prompt_ids(tokenizer, prompts)
    for row, tokens in enumerate(ids):
        if not tokens:
            raise InputError(f"The prompt of row {row} holds no tokens; give it at least one word.")
    return ids


def end_ids_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation settings."""
    of_model = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    candidates = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return list(dict.fromkeys(token for token in candidates if token is not None))


def _complete(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, end_ids: list[int], sampling: list
) -> list[list[int]]:
    """The token ids that follow each prompt, padded behind the first end token."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    width = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_ids or [0])[0]
    input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,  # training switches it off in the model's config
        eos_token_id=end_ids or None,
        pad_token_id=pad,
        bos_token_id=tokenizer.bos_token_id,
        disable_compile=True,
    )
    generated = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList(sampling),
    )
    return generated[:, width:].tolist()


def _up_to_end(ids: list[int], end_ids: list[int]) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in end_ids), len(ids) - 1)
    return ids[: end + 1]


def draws_of(prompts: Iterable[list[int]], samples: int = 1) -> list[tuple[int, int]]:
    """What tells apart the rows of one prompt and their samples: how often it came before, and which sample it is.

    >>> draws_of([[5, 6], [7], [5, 6]], samples=2)
    [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    """
    earlier: Counter = Counter()
    draws = []
    for ids in map(tuple, prompts):
        draws += [(earlier[ids], sample) for sample in range(samples)]
        earlier[ids] += 1
    return draws


def _seeds(prompts: list[list[int]], seed: int, draws: Sequence[tuple[int, int]]) -> list[int]:
    """A seed per row that no other row shares, wherever the row stands and whichever process decodes it."""
    seeds = []
    for ids, (earlier, sample) in zip(map(tuple, prompts), draws, strict=True):
        # torch's generators want well mixed seeds, and Python mixes a text into one
        text = f"{seed} {sample} {ids}{f' {earlier}' if earlier else ''}"
        seeds.append(random.Random(text).getrandbits(63))
    return seeds


def _sampling(seeds: list[int], temperature: float, top_p: float, device: torch.device) -> list:
    """The steps from logits to a sample; none for greedy decoding."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    if temperature == 0:
        return []
    warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1 else []
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return [*warpers, _GumbelNoise(seeds, device)]


class _GumbelNoise:
    """Turns the greedy choice into a sample: argmax(logits + Gumbel noise) is distributed as softmax(logits)."""

    def __init__(self, seeds: list[int], device: torch.device):
        import torch

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min(torch.finfo(torch.float32).tiny).log()


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, which also switches gradient checkpointing off, then every module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        # at its first use in evaluation mode on a CPU, a 4-bit layer packs its weights, and no gradient passes it again
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.training = True
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _neutral_generation_config(model: Any) -> Iterator[None]:
    """Without this, `generate` fills what our settings leave open from the model's own ones."""
    from transformers import GenerationConfig

    # a PEFT model and the model inside it may both hold one
    own = [(module, module.generation_config) for module in model.modules() if "generation_config" in vars(module)]
    for module, _ in own:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, config in own:
            module.generation_config = config
