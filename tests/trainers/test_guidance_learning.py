"""A task whose reward is almost never seen: who is guided learns it, who is not does not."""

import pytest
import torch
from guidance_fixture import make_guided
from ppo_fixture import logged
from transformers import LlamaConfig, LlamaForCausalLM

LETTERS = "abcdefghijkl"
TARGET = "a c a c b"


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of sixteen tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "p", "q", *LETTERS]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def reward(completions, **columns):
    """Nothing unless the first four letters are right, as one text in 65,536 of the start is; then half, and more."""
    right = [completion.split() for completion in completions]
    return [(text[:4] == TARGET.split()[:4]) * (0.5 + 0.5 * (text == TARGET.split())) for text in right]


def goes_on(prompts, prefixes):
    """A guide that goes on as is right, whatever was begun with."""
    return [" ".join(TARGET.split()[len(prefix.split()) :]) for prefix in prefixes]


SETTINGS = {
    "ppo": {"num_iterations": 4, "max_steps": 200},
    "grpo": {"num_iterations": 2, "max_steps": 120, "num_generations": 8},
}
FADING = {"probability": 0.8, "anneal": [0.2, 0.9]}
slow = pytest.mark.slow


def trained(letters, tmp_path, kind, seed, guidance=None):
    """A trainer after its run, and the reward of what its policy writes alone."""
    config = LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=16, initializer_range=0.1, bos_token_id=None,
                         eos_token_id=1, pad_token_id=0)  # fmt: skip
    torch.manual_seed(seed)
    guide = goes_on if "guide" in (guidance or {}) else None
    rows = [{"prompt": "p", "references": [TARGET]}] * 256
    trainer = make_guided(
        kind, letters, tmp_path / "run", guidance and guidance | FADING, guide, LlamaForCausalLM(config), reward,
        rows, plain=guidance is None, eval_rows=rows, seed=seed, per_device_train_batch_size=64,
        per_device_eval_batch_size=256, num_generations_eval=1, max_completion_length=6, learning_rate=1e-2,
        entropy_coef=0.03, **SETTINGS[kind],
    )  # fmt: skip
    trainer.train()
    return trainer, trainer.evaluate()["eval_reward"]


def on_average(numbers):
    return sum(numbers) / len(numbers)


GOES_ON = {"mode": "aggrevated", "guide": "a.module:function"}
EITHER = {"mode": "lols", "guide": "a.module:function", "mixture": 0.5}


@pytest.mark.parametrize(
    ("kind", "guidance", "seed"),
    [
        *(("ppo", {"mode": "drpo"}, seed) for seed in range(3)),
        *(pytest.param("grpo", GOES_ON, seed, marks=slow) for seed in range(3)),
        *(pytest.param("grpo", EITHER, seed, marks=slow) for seed in range(3)),
    ],
    ids=str,
)
def test_who_is_guided_learns_to_write_alone(letters, tmp_path, kind, guidance, seed):
    """Most of the time at least the first four letters, which are half the reward."""
    trainer, alone = trained(letters, tmp_path, kind, seed, guidance)
    unguided, guided = logged(trainer, "guidance/reward_unguided"), logged(trainer, "guidance/reward_guided")
    assert on_average(unguided[:5]) < 0.05 < 0.3 < on_average(unguided[-3:])
    assert on_average(guided[:5]) > 0.01
    assert alone > 0.3


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("ppo", 0),
        *(pytest.param("ppo", seed, marks=slow) for seed in (1, 2)),
        *(pytest.param("grpo", seed, marks=slow) for seed in range(3)),
    ],
)
def test_who_is_not_guided_learns_nothing_in_as_many_steps(letters, tmp_path, kind, seed):
    trainer, alone = trained(letters, tmp_path, kind, seed)
    assert alone < 0.05 and max(logged(trainer, "reward")) < 0.05
