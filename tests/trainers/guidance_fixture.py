"""What the tests of guidance share: models that write known words, trainers with a guide, and what a roll-out was."""

import copy
import gc
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from lastmile_trl.trainers.guidance import guided
from lastmile_trl.trainers.guidance_config import GuidanceConfig
from lastmile_trl.trainers.ppo import PPOTrainer
from lastmile_trl.trainers.ppo_config import PPOConfig

GUIDE, LEARNER, OTHER = " cat dog bird", " sat ran flew", " red big under"  # who writes which words
LONGEST = 6  # tokens of a completion
KINDS = {
    "grpo": (GRPOTrainer, GRPOConfig, {"num_generations": 4, "beta": 0.0}),
    "rloo": (RLOOTrainer, RLOOConfig, {"num_generations": 4, "beta": 0.0}),
    "ppo": (PPOTrainer, PPOConfig, {"num_iterations": 1, "beta": 0.0}),
}


def author(tokenizer, words: str = LEARNER, ends: float = 0.0) -> LlamaForCausalLM:
    """A model that writes these words, each alike, and ends after any of them with this probability."""
    config = LlamaConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.06, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.get_input_embeddings().weight.data[:, 0] = 30.0  # outweighs all else, so that this feature says it all
    write(model, tokenizer, words, ends)
    return model


def write(model: torch.nn.Module, tokenizer, words: str, ends: float = 0.0, feature: int = 0) -> None:
    """Have a model write these words where this feature outweighs all others."""
    ids = tokenizer(words)["input_ids"]
    likely = torch.full((model.config.vocab_size,), 1e-20)
    likely[ids] = max((1 - ends) / len(ids), 1e-20)
    likely[tokenizer.eos_token_id] = max(ends, 1e-20)
    after_norm = model.config.hidden_size**0.5
    model.get_output_embeddings().weight.data[:, feature] = likely.log() / after_norm


def adapter_settings():
    """An adapter that may have another feature than the first outweigh all."""
    return LoraConfig(r=1, lora_alpha=1, target_modules=["down_proj"], task_type="CAUSAL_LM")


def turn(model: torch.nn.Module, feature: int, adapter: str = "default") -> None:
    """Have the adapter put this feature above all others."""
    layer = model.get_base_model().model.layers[0].mlp
    gate, up = (
        getattr(layer, name).weight.data[:, 0] * model.config.hidden_size**0.5 for name in ("gate_proj", "up_proj")
    )
    usual = torch.nn.functional.silu(gate) * up  # what goes into the adapted layer, whatever the tokens
    layer.down_proj.lora_A[adapter].weight.data[:] = usual / usual.square().sum()
    layer.down_proj.lora_B[adapter].weight.data.zero_()[feature] = 3000.0


def rows_of(number: int, times: int = 1) -> list[dict]:
    """Rows with a prompt and two references, each so many times in a row."""
    rows = [
        {"prompt": f"the {place} tree =>", "references": [" cat dog cat dog", " bird cat bird cat bird"]}
        for place in range(number)
    ]
    return [row for row in rows for _ in range(times)]


class Reward:
    """Scores by a function of a completion's ids, and keeps what it was given."""

    __name__ = "kept"

    def __init__(self, score=len):
        self.score, self.given = score, []

    def __call__(self, prompts, completions, completion_ids, **columns):
        kept = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        self.given.append(copy.deepcopy(kept))
        return [float(self.score(ids)) for ids in completion_ids]


def make_guided(kind, tokenizer, out, guidance=None, guide=None, model=None, reward=None, rows=None, plain=False,
                **settings):  # fmt: skip
    """A trainer of this kind; `guidance` are the settings of GuidanceConfig, none for a trainer that has no guide."""
    cls, config, own = KINDS[kind]
    defaults = {
        "output_dir": str(out), "max_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": LONGEST,
        "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip
    rows = rows or rows_of(64)
    evaluated = settings.pop("eval_rows", None)
    more = {name: settings.pop(name) for name in ("peft_config", "encode", "callbacks") if name in settings}
    if not plain:
        cls = guided(cls)
        more |= {"guidance": GuidanceConfig(**({"mode": "drpo", "anneal": None} | (guidance or {}))), "guide": guide}
    trainer = cls(
        model=author(tokenizer) if model is None else model,
        reward_funcs=Reward() if reward is None else reward,
        args=config(**(defaults | own | settings)),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(evaluated) if evaluated else None,
        processing_class=tokenizer,
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def spared():
    """The collection of garbage that ends a run leaves out all that is imported, which would take the longest."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def make(tokenizer, tmp_path):
    """Builds a guided trainer, of which one word names the kind."""
    with spared():
        yield maker(tokenizer, tmp_path)


def maker(tokenizer, folder):
    def build(kind="ppo", guidance=None, tokenizer=tokenizer, **settings):
        return make_guided(kind, tokenizer, folder / "run", {"probability": 1.0} | (guidance or {}), **settings)

    return build


@pytest.fixture
def guided_by(tokenizer, tmp_path):
    """Builds a trainer with a guide of this sort, which writes its words where the learner writes others."""
    with spared():
        yield maker_by_sort(tokenizer, tmp_path)


def maker_by_sort(tokenizer, folder):
    def build(sort, kind="ppo", ends=0.1, guide_ends=0.0, guidance=None, **settings):
        make_here = partial(maker(tokenizer, folder), kind, **settings)
        own = {"mode": "ppo++"} | (guidance or {})
        if sort == "references":
            return make_here({**own, "mode": "drpo"}, model=author(tokenizer, LEARNER, ends))
        if sort in ("model", "text"):
            guide = author(tokenizer, GUIDE, guide_ends) if sort == "model" else says(GUIDE + GUIDE)
            name = "a/model" if sort == "model" else "a.module:function"
            return make_here(own | {"guide": name}, guide=guide, model=author(tokenizer, LEARNER, ends))
        own["guide"] = "base"
        base = author(tokenizer, OTHER if sort == "adapter that goes on" else GUIDE, guide_ends)
        write(base, tokenizer, LEARNER, ends, feature=1)
        write(base, tokenizer, GUIDE, guide_ends, feature=2)
        if sort == "full":
            base.save_pretrained(folder / "base")
            trainer = make_here(own, model=str(folder / "base"), beta=0.01)
            write(trainer.model, tokenizer, LEARNER, ends)
            return trainer
        if sort == "adapter":
            trainer = make_here(own, model=base, peft_config=adapter_settings())
        else:
            policy = get_peft_model(base, adapter_settings())
            turn(policy, 2)
            trainer = make_here(own, model=policy, beta=0.01)
        turn(trainer.model, 1)
        return trainer

    return build


def says(*texts):
    """A guide that says the same, whatever the prompt; it keeps what it was asked."""

    def guide(prompts, prefixes):
        guide.asked += list(zip(prompts, prefixes, strict=True))
        return [texts[place % len(texts)] for place in range(len(prompts))]

    guide.asked = []
    return guide


@dataclass
class Written:
    """One completion as the trainer and the reward got it."""

    prefix: list[int]
    own: list[int]
    ending: list[int]
    shown: str
    prompt: str | list[dict]

    @property
    def switch(self) -> int:
        """After how many tokens the guide goes on, or the learner."""
        return len(self.prefix + self.own) if self.ending else len(self.prefix)


def written(trainer, rows: list[dict]) -> tuple[list[Written], dict]:
    """One roll-out of these rows, taken apart, and the batch that the loss gets."""
    trainer.model.train()
    batch = trainer._generate_and_score_completions([dict(row) for row in rows])
    return [taken_apart(trainer, batch, place) for place in range(len(rows))], batch


def taken_apart(trainer, batch: dict, place: int) -> Written:
    """Who wrote what, as said by what is trained on and by what the reward was given."""
    tokenizer, given = trainer.processing_class, trainer.reward_funcs[0].given[-1]
    prompt = given["prompts"][place]
    before = (
        tokenizer(prompt)["input_ids"]
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    )
    begun = batch["prompt_ids"][place][batch["prompt_mask"][place].bool()].tolist()
    own = batch["completion_ids"][place][batch["completion_mask"][place].bool()].tolist()
    whole = given["completion_ids"][place]
    prefix = begun[len(before) :]
    assert begun == before + whole[: len(prefix)]
    assert whole[len(prefix) : len(prefix + own)] == own
    assert len(whole) <= trainer.args.max_completion_length
    shown = given["completions"][place]
    shown = shown if isinstance(prompt, str) else shown[0]["content"]
    assert shown == tokenizer.decode(whole, skip_special_tokens=True)
    return Written(prefix, own, whole[len(prefix + own) :], shown, prompt)


def by(tokenizer, words: str) -> set[int]:
    """The tokens of who writes these words."""
    return set(tokenizer(words)["input_ids"])
