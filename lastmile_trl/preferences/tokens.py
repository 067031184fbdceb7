"""A prompt and an answer to it as token ids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lastmile_trl.data import completion
from lastmile_trl.errors import InputError
from lastmile_trl.models import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_ids(
    tokenizer: "PreTrainedTokenizerBase", prompt: str | list[dict], answer: str, ended: bool = True
) -> tuple[list[int], list[int]]:
    """The ids of a prompt, and those of an answer with its end token; one that has not ``ended`` has none.

    The answer is plain text, whatever the prompt is. After a text prompt it follows a space, unless either brings its
    own; in a chat it is what the template renders after the generation prompt.
    """
    return all_answer_ids(tokenizer, [prompt], [answer], [ended])[0]


def all_answer_ids(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str | list[dict]],
    answers: Sequence[str],
    ended: Sequence[bool] | None = None,
) -> list[tuple[list[int], list[int]]]:
    """``answer_ids`` of many rows at once, which is faster; the prompts are all texts or all chats."""
    if not prompts:
        return []
    prompts, ended = list(prompts), [True] * len(prompts) if ended is None else ended
    chat = not isinstance(prompts[0], str)
    if chat:
        heads, tails = _rendered(tokenizer, prompts, answers)
    else:
        heads, tails = prompts, [_after(*row) for row in zip(prompts, answers, strict=True)]
    joined = [head + tail for head, tail in zip(heads, tails, strict=True)]
    wholes = tokenizer(joined, add_special_tokens=not chat)["input_ids"]
    result = []
    for before, whole, tail, ends in zip(prompt_ids(tokenizer, prompts), wholes, tails, ended, strict=True):
        # Together, as SFT has them; where a token spans the seam, apart, as a model that is given the prompt has them.
        together = whole[: len(before)] == before
        answer = whole[len(before) :] if together else tokenizer(tail, add_special_tokens=False)["input_ids"]
        result.append((before, answer + [tokenizer.eos_token_id] * bool(ends)))
    return result


def _after(prompt: str, answer: str) -> str:
    """A sample comes with the space it began with, and one that is empty has none."""
    return completion(prompt, answer) if answer[:1].strip() else answer


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", prompts: list[list[dict]], answers: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Chats up to where an answer begins, and the answers, without their end token and what follows it."""
    chats = [
        [*prompt, {"role": "assistant", "content": answer}] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    heads = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    tails = []
    for head, whole in zip(heads, tokenizer.apply_chat_template(chats, tokenize=False), strict=True):
        if not whole.startswith(head):
            raise InputError(
                f"The chat template renders the prompt {head!r:.200} otherwise once an answer follows, so where the "
                "answer begins cannot be told: use data.prompt, or save the tokenizer with a template that does not."
            )
        tail, end, _ = whole[len(head) :].rpartition(tokenizer.eos_token)
        if not end:
            raise InputError(
                f"The chat template does not end an answer with the tokenizer's end token {tokenizer.eos_token!r}: use "
                "data.prompt, or save the tokenizer with the end token of its template."
            )
        tails.append(tail)
    return heads, tails
