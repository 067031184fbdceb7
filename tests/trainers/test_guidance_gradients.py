"""The mean gradient of guided roll-outs is that of their objective, which six tokens let us write out in full."""

import math
import random
from functools import cache, partial
from itertools import product

import pytest
import torch
from guidance_fixture import make_guided
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

LENGTH, VOCABULARY, END = 3, ["<pad>", "<eos>", "q", "a", "b", "c"], 1
PROMPT = [2]
REFERENCES = ["a b", "c c c", "b"]  # with their end and cut, of 3, 3 and 2 tokens
SAMPLING = {"temperature": 0.7, "top_p": 1.0}


def learner() -> LlamaForCausalLM:
    return small_model(2)


@pytest.fixture(scope="module")
def guide():
    return small_model(7, spread=1.0)


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of six tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(VOCABULARY)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def small_model(seed: int, spread: float = 0.4) -> LlamaForCausalLM:
    config = LlamaConfig(vocab_size=6, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                         max_position_embeddings=16, initializer_range=spread, bos_token_id=None, eos_token_id=END,
                         pad_token_id=0)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def texts(begun: tuple = (), most: int = LENGTH) -> list[tuple]:
    """All texts that go on from what is begun with at most so many tokens."""
    if most == 0 or begun[-1:] == (END,):
        return [begun]
    return [text for token in range(6) for text in texts((*begun, token), most - 1)]


@cache
def worth() -> dict[tuple, float]:
    """The reward of every text."""
    chance = random.Random(4)
    return {text: chance.gauss(0, 1) for text in texts()}


def reward(completion_ids, **columns):
    return [worth()[tuple(ids)] for ids in completion_ids]


class Chances:
    """What a model writes next, with gradients where they are asked for."""

    def __init__(self, model, temperature: float = 1.0):
        begun = list(product(range(len(VOCABULARY)), repeat=LENGTH - 1))
        logits = model(torch.tensor([[*PROMPT, *text] for text in begun])).logits[:, len(PROMPT) - 1 :]
        chances = torch.log_softmax(logits / temperature, -1)
        self.after = {text[:at]: chances[place, at] for place, text in enumerate(begun) for at in range(LENGTH)}

    def of(self, text: tuple, start: int = 0) -> torch.Tensor:
        """The chance that this text follows its first `start` tokens."""
        return sum((self.after[text[:at]][text[at]] for at in range(start, len(text))), torch.tensor(0.0)).exp()

    def on_from(self, begun: tuple, most: int) -> list[tuple[tuple, torch.Tensor]]:
        return [(text, self.of(text, len(begun))) for text in texts(begun, most)]


# --- the objectives --------------------------------------------------------------------------------------------------


def rest(writer: Chances, begun: tuple) -> torch.Tensor:
    """The worth of what this writer makes of what is begun."""
    return sum(chance * worth()[text] for text, chance in writer.on_from(begun, LENGTH - len(begun)))


def objective(mode: str, span: int | None, policy, guide, probability: float) -> torch.Tensor:
    """What is to be raised: the mean over who begins, over the switch, and over who goes on."""
    learner, other = Chances(policy), Chances(guide, SAMPLING["temperature"])
    by_learner, by_guide = cache(partial(rest, learner)), cache(partial(rest, other))

    @cache
    def before_guide(begun: tuple, most: int) -> torch.Tensor:
        return sum(chance * by_guide(text).detach() for text, chance in learner.on_from(begun, most))

    def value(text: tuple, switch: int) -> torch.Tensor:
        if mode != "aggrevated":
            return by_learner(text[:switch])
        start = max(0, switch - span) if span else 0
        return before_guide(text[:start], switch - start)

    if mode == "drpo":
        ids = [(*(VOCABULARY.index(word) for word in text.split()), END) for text in REFERENCES]
        beginnings = [(text[:LENGTH], 1 / len(REFERENCES)) for text in ids]
    else:
        writer = other if mode == "ppo++" else learner
        beginnings = [(text, chance.detach()) for text, chance in writer.on_from((), LENGTH)]
    total = torch.tensor(0.0)
    for text, chance in beginnings:
        values = [value(text, switch) for switch in range(1, len(text))] or [by_learner(())]
        total = total + chance * sum(values) / len(values)
    return probability * total + (1 - probability) * by_learner(())


# --- what the trainer does -------------------------------------------------------------------------------------------


class Estimates(TrainerCallback):
    """The gradient of every optimiser step, as an estimate of that of the objective."""

    def __init__(self, trainer, kind: str):
        self.trainer, self.kind, self.found = trainer, kind, []
        trainer.callback_handler.callbacks.insert(0, self)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        size = args.per_device_train_batch_size
        tokens = self.trainer._buffered_inputs[0].get("num_items_in_batch")
        number, group = args.max_completion_length, args.num_generations
        scale = {"ppo": lambda: tokens / size, "grpo": lambda: number * group / (group - 1), "rloo": lambda: 1.0}
        gradient = torch.cat([value.grad.flatten() for value in self.trainer.model.parameters()])
        self.found.append(-scale[self.kind]() * gradient)


SETTINGS = {
    "grpo": {"num_generations": 2, "loss_type": "dr_grpo", "scale_rewards": "none"},
    "rloo": {"num_generations": 4},
    "ppo": {"lam": 1.0, "whiten_advantages": False, "critic_learning_rate": 0.0},
}


def trainer_of(kind, letters, tmp_path, guidance, guide, size, references=REFERENCES, **settings):
    rows = [{"prompt": "q", "references": references}] * size
    named = {} if guidance["mode"] == "drpo" else {"guide": "a/model", "sampling": SAMPLING}
    return make_guided(kind, letters, tmp_path / "run", named | guidance, guide=guide if named else None, rows=rows,
                       reward=reward, model=learner(), max_completion_length=LENGTH, per_device_train_batch_size=size,
                       **(SETTINGS[kind] | settings))  # fmt: skip


def gradient_of(value: torch.Tensor, model) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, list(model.parameters()))])


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [
        ("grpo", {"mode": "ppo++"}),
        ("ppo", {"mode": "drpo"}),
        ("rloo", {"mode": "aggrevated"}),
        pytest.param("ppo", {"mode": "aggrevated"}, marks=slow),
        pytest.param("ppo", {"mode": "ppo++", "probability": 0.6}, marks=slow),
        pytest.param("rloo", {"mode": "ppo++"}, marks=slow),
        pytest.param("rloo", {"mode": "drpo", "probability": 0.6}, marks=slow),
        pytest.param("grpo", {"mode": "drpo"}, marks=slow),
        pytest.param("ppo", {"mode": "ppo++", "prefix_per": "group"}, marks=slow),
        pytest.param("grpo", {"mode": "aggrevated", "probability": 0.6}, marks=slow),
        pytest.param("rloo", {"mode": "aggrevated", "span": 2}, marks=slow),
        pytest.param("ppo", {"mode": "aggrevated", "span": 1}, marks=slow),
        pytest.param("ppo", {"mode": "aggrevated", "prefix_per": "group"}, marks=slow),
    ],
    ids=str,
)
def test_the_mean_gradient_is_that_of_the_objective(letters, guide, tmp_path, kind, guidance):
    guidance = {"probability": 1.0} | guidance
    in_groups = kind != "ppo" or "prefix_per" in guidance
    span = guidance.get("span", 1 if in_groups else None)
    policy = learner()
    exact = gradient_of(objective(guidance["mode"], span, policy, guide, guidance["probability"]), policy)
    group = {"num_generations": 4} if "prefix_per" in guidance else {}
    trainer = trainer_of(kind, letters, tmp_path, guidance, guide, 2048, max_steps=10, learning_rate=0.0,
                         max_grad_norm=0.0, **group)  # fmt: skip
    estimates = Estimates(trainer, kind)
    trainer.train()
    found = torch.stack(estimates.found)
    shares = found @ exact / exact.square().sum()
    error = shares.std() / math.sqrt(len(shares))
    assert torch.cosine_similarity(found.mean(0), exact, dim=0) > 0.99
    assert abs(shares.mean() - 1) < 4 * error < 0.3


def test_the_objectives_are_not_alike(guide):
    """So that no gradient above can pass for another."""
    policy, whole = learner(), [("ppo++", None), ("drpo", None), ("aggrevated", 1), ("aggrevated", None)]
    found = [gradient_of(objective(mode, span, policy, guide, 1.0), policy) for mode, span in whole]
    found.append(gradient_of(rest(Chances(policy), ()), policy))
    for place, one in enumerate(found):
        for other in found[:place]:
            assert torch.cosine_similarity(one, other, dim=0) < 0.97


@slow
@pytest.mark.parametrize(
    ("kind", "mode"), [("ppo", "drpo"), ("rloo", "ppo++"), ("grpo", "aggrevated"), ("ppo", "aggrevated")]
)
def test_training_climbs_as_high_as_the_objective_itself(letters, guide, tmp_path, kind, mode):
    """Against as many steps up the exact gradient, with the same optimiser."""
    steps, rate, span = 40, 2e-2, 1 if kind == "grpo" else None
    policy = learner()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0)
    heights = []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        heights.append(objective(mode, span, policy, guide, 1.0))
        optimiser.zero_grad()
        (-heights[-1]).backward()
        optimiser.step()
    trainer = trainer_of(kind, letters, tmp_path, {"mode": mode, "probability": 1.0}, guide, 256, max_steps=steps,
                         learning_rate=rate)  # fmt: skip
    trainer.train()
    found = objective(mode, span, trainer.model.eval(), guide, 1.0)
    assert heights[0] < 0.5 * heights[-1] < 0.9 * heights[-1] < found
