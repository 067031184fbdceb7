"""Guided roll-outs for TRL's trainers and our PPO: a guide writes the beginning or the end, the learner the rest.

`guided(GRPOTrainer)` is that trainer with a guide. To it a completion is what the learner wrote: a beginning that is
not trained stands with the prompt, and an end by the guide counts in the rewards only. So neither has a gradient, a KL
penalty or an advantage, and every trainer that turns prompts into completions can be guided.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unicodedata import east_asian_width

import torch
from accelerate.utils import gather_object, is_peft_model
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response
from trl.trainer.utils import pad, use_adapter

from lastmile_trl.trainers.attributes import replaced
from lastmile_trl.trainers.guidance_config import ALONE, ROLL_IN, ROLL_OUT, Draw, GuidanceConfig

Prompt = str | list[dict[str, Any]]
TextGuide = Callable[[list[Prompt], list[str]], list[str]]
WORD_END = 8  # tokens within which a word is expected to end, where a guide of texts goes on


@dataclass
class RollOut:
    """One completion in the making: token ids of who wrote what."""

    part: str = ALONE  # the guide's
    prefix: list[int] = field(default_factory=list)  # not trained: the guide's, or the learner's before its last span
    own: list[int] = field(default_factory=list)
    word_end: list[int] = field(default_factory=list)  # the learner's, not trained: a guide of texts goes on after it
    ending: list[int] = field(default_factory=list)  # the guide's
    budget: int = 0  # how many tokens the learner may write
    switch: int = 0  # after how many tokens the other goes on

    @property
    def ids(self) -> list[int]:
        """The whole completion."""
        return self.prefix + self.own + self.word_end + self.ending


@cache
def guided(trainer: type) -> type:
    """The trainer's class with a guide: it takes `guidance`, and where that names no references and no base, `guide`.

    >>> guided(GRPOTrainer).__name__
    'GuidedGRPOTrainer'
    """
    return type(f"Guided{trainer.__name__}", (Guided, trainer), {"__doc__": f"{trainer.__name__} with a guide."})


class Guided:
    """What a guide adds to a trainer; stands before its class."""

    def __init__(
        self,
        *args: Any,
        guidance: GuidanceConfig,
        guide: PreTrainedModel | TextGuide | None = None,
        encode: Callable[[list[Prompt], list[str]], list[list[int]]] | None = None,
        **kwargs: Any,
    ):
        """`encode` gives the ids of answers to prompts as the learner would write them, their end token included."""
        given = kwargs["model"] if "model" in kwargs else args[0]
        self._goes_on = is_peft_model(given) if not isinstance(given, str) else False
        super().__init__(*args, **kwargs)
        self.guidance, self.guide, self.encode = guidance, guide, encode or self._encode
        self._refuse_guidance()
        if guidance.guide == "base" and not is_peft_model(self.model):
            self.guide = self.ref_model
        elif isinstance(guide, torch.nn.Module):
            guide.requires_grad_(False).eval()
            if not getattr(guide, "is_quantized", False):  # such a one lies where it was loaded
                guide.to(self.accelerator.device)
        self._rows: list[dict[str, Any]] = []
        self._roll_outs: list[RollOut] = []
        self._at = (-1, 0)  # the optimiser step of the last roll-out, and its number within that step

    def _refuse_guidance(self) -> None:
        asked, critic = self.guidance, hasattr(self, "critic")
        named = asked.guide not in ("references", "base")
        masks = self.args.mask_truncated_completions or getattr(self.args, "missing_eos_penalty", None) is not None
        for wrong, why in (
            (named and self.guide is None, f"the guide {asked.guide!r} must be given as guide=, a model or a function"),
            (not named and self.guide not in (None, self.ref_model), f"{asked.guide!r} takes no guide="),
            (asked.guide == "base" and getattr(self.args, "sync_ref_model", False), "guide='base' is the policy as it "
             "was, which sync_ref_model would move: set it to false"),
            (getattr(self, "rollout_func", None) is not None, "a rollout_func writes by itself: leave it out"),
            (not critic and asked.prefix_per == "completion", "with a group's mean as the baseline, completions with "
             "different prefixes teach nothing: leave prefix_per out, or use PPO"),
            (asked.guide == "base" and self._base() is None, "guide='base' is the policy as it was, of which TRL keeps "
             "a copy only with beta above 0: set beta, or name what it starts from as the guide"),
            (asked.guide == "base" and self._base() is self.ref_model and (self.is_fsdp_enabled or
             self.is_deepspeed_enabled), "guide='base' without an adapter is a model in shards here: name what the "
             "policy starts from as the guide"),
            (self.args.use_vllm, "roll-outs are written with transformers: set use_vllm to false"),
            (asked.rolls_out and masks, f"in mode {asked.mode} the guide ends completions, so leave out "
             "mask_truncated_completions and missing_eos_penalty"),
            (asked.rolls_out and self.max_completion_length < 2, f"mode {asked.mode} needs max_completion_length of at "
             "least 2"),
        ):  # fmt: skip
            if wrong:
                raise ValueError(f"Guidance: {why}.")
        self._shares = asked.prefix_per == "group" or not critic
        self._span = asked.span or (1 if self._shares else None)

    def _base(self) -> PreTrainedModel | str | None:
        """The policy as it was: TRL's frozen copy of the model or of an adapter that goes on, or a new one's base."""
        if not is_peft_model(self.model):
            return self.ref_model
        if self._goes_on:
            return "ref" if "ref" in self.model.peft_config else None
        return "base"

    # --- before the learner writes: what is drawn, and the prefixes -------------------------------------------------

    def _tokenize_prompts(self, prompts: list[Prompt]):
        ids, *rest = super()._tokenize_prompts(prompts)
        self._prompts, self._roll_outs = prompts, [RollOut(budget=self.max_completion_length) for _ in prompts]
        self._guide_ends = False  # any completion, on any process
        if self.model.training:
            self._begin(ids)
        self._prompt_ids = ids
        return [before + roll_out.prefix for before, roll_out in zip(ids, self._roll_outs, strict=True)], *rest

    def _begin(self, prompt_ids: list[list[int]]) -> None:
        """Draw every roll-out's part, and write the prefixes."""
        size = self.num_generations if self._shares else 1
        number, processes = len(prompt_ids), self.accelerator.num_processes
        first = self.accelerator.process_index * number
        units = [(first + place) // size for place in range(number)]  # those of one unit share a prefix
        draws = self._draw(-(-number * processes // size))
        self._probability = self.guidance.probability_at(self._done)
        if all(draw.part == ALONE for draw in draws):
            return
        self._guide_ends = _part_of(draws) == ROLL_OUT
        beginnings = self._beginnings(prompt_ids, units, draws, shared=size > 1 and processes > 1)
        for roll_out, unit in zip(self._roll_outs, units, strict=True):
            if draws[unit].part != ALONE:
                self._split(roll_out, draws[unit], beginnings[unit][: self.max_completion_length])

    @property
    def _done(self) -> float:
        """The share of training that is behind us."""
        return self.state.global_step / self.state.max_steps if self.state.max_steps else 0.0

    def _draw(self, number: int) -> list[Draw]:
        step = self.state.global_step
        self._at = (step, self._at[1] + 1 if self._at[0] == step else 0)
        key = "/".join(map(str, self._at))
        return [self.guidance.draw(self.args.seed, key, unit, self._done) for unit in range(number)]

    def _beginnings(
        self, prompt_ids: list[list[int]], units: list[int], draws: list[Draw], shared: bool
    ) -> dict[int, list[int]]:
        """A whole text for each unit that is guided here, by whoever begins, to take the prefix from."""
        places = {unit: place for place, unit in reversed(list(enumerate(units))) if draws[unit].part != ALONE}
        if self.guidance.guide == "references":
            return {unit: self._reference(place, draws[unit].reference) for unit, place in places.items()}
        if self._guide_ends:
            found = self._sampled([prompt_ids[place] for place in places.values()], prompt_ids[0])
        else:
            found = self._written_by_guide(list(places.values()), prompt_ids)
        beginnings = dict(zip(places, found, strict=True))
        if shared:  # a group may lie on two processes
            beginnings = dict(reversed(gather_object(list(beginnings.items()))))
        return beginnings

    def _split(self, roll_out: RollOut, draw: Draw, text: list[int]) -> None:
        switch = draw.switch(len(text))
        if self._of_texts and draw.part == ROLL_IN:
            switch = self._word_starts(text, range(switch, 0, -1))
        if not switch:
            return
        roll_out.part, roll_out.switch = draw.part, switch
        if draw.part == ROLL_IN:
            roll_out.prefix = text[:switch]
            roll_out.budget = self.max_completion_length - switch
        else:  # sampled anew after the prefix: what follows in the text has decided how long it is
            roll_out.prefix = text[: max(0, switch - self._span)] if self._span else []
            roll_out.budget = switch - len(roll_out.prefix)

    def _reference(self, place: int, chance: float) -> list[int]:
        references = self._rows[place].get("references")
        if not references:
            raise ValueError(
                "Guidance: a row has no reference: each needs some in the column `references`, a text or a list."
            )
        references = [references] if isinstance(references, str) else references
        [ids] = self.encode([self._prompts[place]], [references[int(chance * len(references))]])
        return ids

    # --- the learner writes, and the guide goes on ------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any):
        room = WORD_END if self._guide_ends and self._of_texts else 0
        most = min(max(roll_out.budget for roll_out in self._roll_outs) + room, self.max_completion_length)
        with self._generating(max_new_tokens=most):
            found = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        written = found[0] if isinstance(found, tuple) else found
        for roll_out, ids in zip(self._roll_outs, written, strict=True):
            roll_out.own = ids[: roll_out.budget]
            if roll_out.part == ROLL_OUT and self._of_texts:
                roll_out.word_end = self._word_end(roll_out, ids)
        if self._guide_ends:
            self._end()
        own = [roll_out.own for roll_out in self._roll_outs]
        return (own, *found[1:]) if isinstance(found, tuple) else own

    def _word_end(self, roll_out: RollOut, ids: list[int]) -> list[int]:
        """What the learner wrote after its budget to end its word: to train it only where it did would be unfair."""
        whole, start = roll_out.prefix + ids, len(roll_out.prefix) + roll_out.budget
        until = self._word_starts(whole, range(start, min(len(whole), start + WORD_END + 1)))
        return whole[start : min(until, self.max_completion_length)]

    def _end(self) -> None:
        """The guide goes on where the learner has not ended."""
        unfinished = [
            place
            for place, roll_out in enumerate(self._roll_outs)
            if roll_out.part == ROLL_OUT
            and not self._ended(roll_out.own)
            and len(roll_out.ids) < self.max_completion_length
        ]
        begun = [before + roll_out.ids for before, roll_out in zip(self._prompt_ids, self._roll_outs, strict=True)]
        for place, ending in zip(unfinished, self._written_by_guide(unfinished, begun), strict=True):
            roll_out = self._roll_outs[place]
            roll_out.ending = ending[: self.max_completion_length - len(roll_out.ids)]

    def _ended(self, ids: list[int]) -> bool:
        return bool(ids) and ids[-1] in self.eos_token_ids

    # --- who writes -------------------------------------------------------------------------------------------------

    @property
    def _of_texts(self) -> bool:
        """Whether the guide knows texts, not the learner's tokens."""
        return self.guide is not None and not isinstance(self.guide, torch.nn.Module)

    def _written_by_guide(self, places: list[int], contexts: list[list[int]]) -> list[list[int]]:
        """What the guide writes after the contexts at these places, with its end token."""
        asked = [contexts[place] for place in places]
        room = max((self.max_completion_length - len(self._roll_outs[place].ids) for place in places), default=1)
        if self.guidance.guide == "base" and is_peft_model(self.model):
            return self._sampled(asked, contexts[0], base=True, max_new_tokens=room)
        if not places:
            return []
        return self._texts_of_guide(places) if self._of_texts else self._sampled_by(self.guide, asked, room)

    def _texts_of_guide(self, places: list[int]) -> list[list[int]]:
        prompts = [self._prompts[place] for place in places]
        begun = [self._text(self._roll_outs[place].ids) for place in places]
        texts = self.guide(prompts, begun)
        if len(texts) != len(places) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"Guidance: the guide was asked for {len(places)} texts and gave {texts!r:.200}.")
        return [
            self._following(before, _joined(before, text)) if before else self.encode([prompt], [text])[0]
            for prompt, before, text in zip(prompts, begun, texts, strict=True)
        ]

    def _following(self, before: str, text: str) -> list[int]:
        """The tokens of a text that follows another; alone, some tokenizers would put a space before it."""
        first, whole, alone = self._tokenizer([before, before + text, text], add_special_tokens=False)["input_ids"]
        ids = whole[len(first) :] if whole[: len(first)] == first else alone
        return ids + [self._tokenizer.eos_token_id]

    def _encode(self, prompts: list[Prompt], texts: list[str]) -> list[list[int]]:
        end = [self._tokenizer.eos_token_id]
        return [self._tokenizer(text, add_special_tokens=False)["input_ids"] + end for text in texts]

    def _generating(self, **changes: Any):
        """Other settings of generation for a while."""
        config = copy.deepcopy(self.generation_config)
        config.update(**changes)
        kwargs = {**self.generation_kwargs, **changes}
        return replaced(self, generation_config=config, generation_kwargs=kwargs)

    def _sampled(
        self, contexts: list[list[int]], other: list[int], base: bool = False, **changes: Any
    ) -> list[list[int]]:
        """What the policy, or its base, writes; one without contexts takes another, as sharded weights ask all."""
        adapter = nullcontext()
        if base:
            policy = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(policy, adapter_name="ref" if self._base() == "ref" else None)
            changes |= self._guide_sampling()
        more = (1,) if isinstance(self, GRPOTrainer) else ()  # a group's size, which RLOO's does not take
        with adapter, self._generating(**changes):
            found = super()._generate_single_turn(contexts or [other], None, {}, *more)
        written = found[0] if isinstance(found, tuple) else found
        return written[: len(contexts)]

    def _guide_sampling(self) -> dict[str, Any]:
        """The guide's settings in place of the learner's, and of those that came with a model."""
        return {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, **self.guidance.sampling}

    @torch.no_grad()
    def _sampled_by(self, model: PreTrainedModel, contexts: list[list[int]], room: int) -> list[list[int]]:
        device, tensors = self.accelerator.device, [torch.tensor(ids) for ids in contexts]
        inputs = pad(tensors, padding_value=self._tokenizer.pad_token_id, padding_side="left").to(device)
        mask = pad([torch.ones_like(ids) for ids in tensors], padding_value=0, padding_side="left").to(device)
        config = copy.deepcopy(self.generation_config)
        config.update(max_new_tokens=room, **self._guide_sampling())
        # whole on every process, so none has to wait for the others
        written = model.generate(input_ids=inputs, attention_mask=mask, generation_config=config, synced_gpus=False)
        return [self._until_end(ids) for ids in written[:, inputs.size(1) :].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(ids) if token in self.eos_token_ids]
        return ids[: ends[0] + 1] if ends else ids

    # --- words ------------------------------------------------------------------------------------------------------

    def _text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _word_starts(self, ids: list[int], places: range) -> int:
        """The first of these places at which no word is cut; 0 if there is none."""
        for place in places:
            before, after = self._text(ids[:place]), self._text(ids[: place + 1])
            if after.startswith(before) and not _in_word(before, after[len(before) :]):
                return place
        return 0

    # --- rewards of the whole, and what a person sees ---------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]):
        self._rows = inputs
        batch = super()._generate_and_score_completions(inputs)
        if self.guidance.anchor and self.model.training:
            batch |= self._anchors()
        return batch

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        for place, roll_out in enumerate(self._roll_outs):
            if roll_out.part != ALONE:  # in place, so that the table of completions shows the whole, too
                completions[place] = self._completion(place, chat=not isinstance(completions[place], str))
        ids = [roll_out.ids for roll_out in self._roll_outs]
        rewards = super()._calculate_rewards(inputs, prompts, completions, ids)
        self._log_completion_extra("guided", [roll_out.part != ALONE for roll_out in self._roll_outs])
        self._log_completion_extra("marked", [self._marked(roll_out) for roll_out in self._roll_outs])
        if self.model.training:
            self._log_guidance((rewards * self.reward_weights.to(rewards.device)).nansum(1), ~rewards.isnan().all(1))
        return rewards

    def _completion(self, place: int, chat: bool) -> str | list[dict[str, Any]]:
        """The whole text as TRL hands it to rewards."""
        ids = self._roll_outs[place].ids
        if not chat:
            return self._text(ids)
        formats = (getattr(self._tokenizer, name, None) for name in ("response_template", "response_schema"))
        if isinstance(self, GRPOTrainer) and any(formats):  # RLOO's takes answers as they are
            return [parse_response(self._tokenizer, ids, prefix=self._prompt_ids[place])]
        return [{"role": "assistant", "content": self._text(ids)}]

    def _marked(self, roll_out: RollOut) -> str:
        """The text, with the guide's part in double brackets."""
        whole = self._text(roll_out.ids)
        before = roll_out.prefix if roll_out.part == ROLL_IN else roll_out.prefix + roll_out.own + roll_out.word_end
        place = len(self._text(before))
        if roll_out.part == ROLL_IN:
            return f"[[{whole[:place]}]]{whole[place:]}"
        return f"{whole[:place]}[[{whole[place:]}]]" if roll_out.ending else whole

    def _log_guidance(self, rewards: Tensor, scored: Tensor) -> None:
        """The numbers of a roll-out, over all processes; none is logged where there is nothing to measure."""
        of_each = [[roll_out.part != ALONE, roll_out.switch, self._ended(roll_out.ids)] for roll_out in self._roll_outs]
        table = self.accelerator.gather(torch.tensor(of_each, dtype=torch.float32, device=rewards.device))
        is_guided, switch, ended = table[:, 0].bool(), table[:, 1], table[:, 2]
        metrics = self._metrics["train"]
        metrics["guidance/probability"].append(self._probability)
        metrics["guidance/share"].append(is_guided.float().mean().item())
        for name, values, where in (
            ("prefix_length", switch, is_guided),
            ("reward_guided", rewards, is_guided & scored),
            ("reward_unguided", rewards, ~is_guided & scored),
        ):
            if where.any():
                metrics[f"guidance/{name}"].append(values[where].mean().item())
        metrics["completions/clipped_ratio"][-1] = 1 - ended.mean().item()  # TRL sees only what the learner wrote

    # --- the anchor -------------------------------------------------------------------------------------------------

    def _anchors(self) -> dict[str, Tensor]:
        """Prompts with a reference, to be learned beside the roll-out; one that is too long goes without its end."""
        key = "/".join(map(str, self._at))
        first = self.accelerator.process_index * len(self._rows)
        sequences, labels = [], []
        for place, before in enumerate(self._prompt_ids):
            draw = self.guidance.draw(self.args.seed, f"{key}/anchor", first + place, self._done)
            ids = self._reference(place, draw.reference)[: self.max_completion_length]
            sequences.append(torch.tensor(before + ids))
            labels.append(torch.tensor([-100] * len(before) + ids))
        sides = {"padding_side": "right"}
        batch = {
            "anchor_ids": pad(sequences, padding_value=self._tokenizer.pad_token_id, **sides),
            "anchor_mask": pad([torch.ones_like(ids) for ids in sequences], padding_value=0, **sides),
            "anchor_labels": pad(labels, padding_value=-100, **sides),
        }
        batch = {name: values.to(self.accelerator.device) for name, values in batch.items()}
        batch["anchor_tokens"] = self.accelerator.reduce((batch["anchor_labels"] != -100).sum(), "sum")
        return batch

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if "anchor_ids" not in inputs:
            return loss
        given = {"input_ids": inputs["anchor_ids"], "attention_mask": inputs["anchor_mask"]}
        with self.accelerator.autocast():
            found = model(**given, labels=inputs["anchor_labels"], fused_lm_head=True).log_probs
        total = -found.sum()  # it is 0 where there is no label
        # A mean over the tokens of all processes in an optimiser step, which are a part of the roll-out's.
        steps = self.current_gradient_accumulation_steps
        tokens = inputs["anchor_tokens"] / self.accelerator.num_processes * steps / self.args.steps_per_generation
        labelled = (inputs["anchor_labels"] != -100).sum().to(total.dtype)
        counted = self.accelerator.reduce(torch.stack([total.detach(), labelled]), "sum")
        self._metrics["train"]["anchor/loss"].append((counted[0] / counted[1].clamp(min=1)).item())
        scale = 1 if self.loss_is_scaled_for_ga else steps
        return loss + self.guidance.anchor * scale * total / tokens.clamp(min=1)


def _part_of(draws: list[Draw]) -> str:
    """The part that the guide has in this roll-out, which is the same wherever it has one."""
    return next(draw.part for draw in draws if draw.part != ALONE)


def _in_word(before: str, after: str) -> bool:
    """Whether a text is cut within a word; scripts written without spaces can be cut anywhere.

    >>> _in_word("the ca", "t sat"), _in_word("the cat", " sat"), _in_word("the cat", ", sat"), _in_word("一起", "去")
    (True, False, False, False)
    """
    seam = before[-1:] + after[:1]
    return len(seam) == 2 and seam.isalnum() and not any(east_asian_width(letter) in "WF" for letter in seam)


def _joined(before: str, text: str) -> str:
    """What follows a text that ends with a word: words stay apart."""
    return f" {text}" if _in_word(before, text) else text
