from collections import Counter

import pytest
import torch

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.decoding import Output, decode, draws_of, repeated

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w13", "w1 w2 w3", "w20 w3 w17 w2"]


def greedy_by_hand(model, tokenizer, prompt, budget):
    """No batch, no padding, no cache, no generate."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < budget and tokenizer.eos_token_id not in ids[start:]:
            ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
    new = ids[start:]
    return Output(tokenizer.decode(new, skip_special_tokens=True), new, new[-1] == tokenizer.eos_token_id)


def next_token_distribution(model, tokenizer, prompt):
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1)


def biased(model, token, amount):
    """The same model with a token made likelier at every position."""
    bias = torch.zeros(model.config.vocab_size)
    bias[token] = amount
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias)
    return model


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_greedy_is_the_argmax_of_the_bare_model_whatever_the_padding(model, tokenizer, batch_size):
    expected = [greedy_by_hand(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert decode(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected
    assert len({output.text for output in expected}) > 3


def test_some_rows_end_early_and_the_end_token_counts(model, tokenizer):
    biased(model, tokenizer.eos_token_id, 6.0)
    outputs = decode(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert outputs == [greedy_by_hand(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert {output.ended for output in outputs} == {True, False}
    for output in outputs:
        assert len(output.ids) == (len(output.text.split()) + 1 if output.ended else 12)


def test_an_end_token_on_the_last_step_of_the_budget_ends_the_row(model, tokenizer):
    biased(model, tokenizer.eos_token_id, 100.0)
    assert decode(model, tokenizer, ["w1"], max_new_tokens=1) == [Output("", [2], True)]


def test_the_models_own_end_tokens_end_a_row_too(model, tokenizer):
    free = decode(model, tokenizer, PROMPTS, max_new_tokens=12)
    stop = tokenizer.convert_tokens_to_ids(free[0].text.split()[3])
    model.generation_config.eos_token_id = [stop, tokenizer.eos_token_id]
    stopped = decode(model, tokenizer, PROMPTS, max_new_tokens=12)[0]
    words = free[0].text.split()
    assert stopped.ended
    assert stopped.text.split() == words[: words.index(words[3]) + 1]


def test_without_any_end_token_every_row_takes_its_budget(model, tokenizer):
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    outputs = decode(model, tokenizer, PROMPTS, max_new_tokens=5)
    assert [(len(output.ids), output.ended) for output in outputs] == [(5, False)] * len(PROMPTS)


def test_a_tokenizer_without_padding_token(model, tokenizer):
    expected = decode(model, tokenizer, PROMPTS, max_new_tokens=8)
    tokenizer.pad_token = None
    assert decode(model, tokenizer, PROMPTS, max_new_tokens=8) == expected


def test_leftover_generation_settings_do_not_count_and_come_back(model, tokenizer):
    expected = decode(model, tokenizer, PROMPTS, max_new_tokens=12)
    leftover = {"repetition_penalty": 5.0, "do_sample": True, "temperature": 9.0, "top_k": 1, "num_beams": 3}
    model.generation_config.update(**leftover, max_length=5, min_new_tokens=3, no_repeat_ngram_size=1)
    model.generation_config.update(suppress_tokens=list(range(4, 32)))
    before = model.generation_config.to_dict()
    assert decode(model, tokenizer, PROMPTS, max_new_tokens=12) == expected
    assert model.generation_config.to_dict() == before
    samples = decode(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=1.0)
    assert samples != expected, "top_k=1 was left on"


def test_chat_prompts_go_through_the_template(model, tokenizer):
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = decode(model, tokenizer, [f"{prompt} w9" for prompt in PROMPTS], max_new_tokens=8)
    assert decode(model, tokenizer, chats, max_new_tokens=8) == expected
    assert decode(model, tokenizer, PROMPTS, max_new_tokens=8) != expected


def test_no_prompts_and_an_empty_prompt(model, tokenizer):
    assert decode(model, tokenizer, [], max_new_tokens=3) == []
    with pytest.raises(InputError, match="row 1 holds no tokens"):
        decode(model, tokenizer, ["w1", ""], max_new_tokens=3)


def test_progress_is_told_batch_by_batch(model, tokenizer):
    told = []
    decode(model, tokenizer, PROMPTS, max_new_tokens=2, batch_size=4, on_batch=lambda *counts: told.append(counts))
    assert told == [(4, 6), (6, 6)]


def test_samples_follow_the_seed_and_the_prompt_but_not_the_batch(model, tokenizer):
    def sample(prompts=PROMPTS, **options):
        return decode(model, tokenizer, prompts, max_new_tokens=10, temperature=1.0, **options)

    first = sample(seed=1)
    assert sample(seed=1, batch_size=1) == first
    assert sample(PROMPTS[1::2], seed=1, batch_size=2)[::2] == [first[1], first[5]]
    assert sample(PROMPTS[3::-1], seed=1) == first[3::-1], "the place of a row counts"
    assert sample(seed=2) != first
    assert first[0] != first[4], "two rows of one prompt drew the same numbers"


def test_rows_of_one_prompt_have_their_samples_wherever_and_however_often_they_are_drawn(model, tokenizer):
    def sample(prompts, draws):
        return decode(model, tokenizer, prompts, max_new_tokens=10, temperature=1.0, draws=draws)

    prompts = ["w4 w2", "w5", "w4 w2", "w4 w2"]
    ids = tokenizer(prompts)["input_ids"]
    one, three = sample(prompts, draws_of(ids)), sample(repeated(prompts, 3), draws_of(ids, 3))
    assert three[::3] == one, "the first of several is what a single one is"
    of_prompt = [three[row] for row in (0, 1, 2, 6, 7, 8, 9, 10, 11)]
    assert len({output.text for output in of_prompt}) == 9, "no two are the same draw"
    shares = [sample(prompts[start::2], draws_of(ids)[start::2]) for start in (0, 1)]
    assert [shares[0][0], shares[1][0], shares[0][1], shares[1][1]] == one, "as in two processes"


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.5, 0.6)])
def test_samples_are_distributed_as_the_model_says(model, tokenizer, temperature, top_p):
    draws = 3000
    expected = (next_token_distribution(model, tokenizer, "w4 w2").log() / temperature).softmax(-1)
    ordered, tokens = expected.sort(descending=True)
    kept = tokens[ordered.cumsum(0) - ordered < top_p]
    expected = {int(token): float(expected[token] / expected[kept].sum()) for token in kept}
    model.generation_config.eos_token_id = None
    outputs = decode(
        model, tokenizer, ["w4 w2"] * draws, max_new_tokens=1, temperature=temperature, top_p=top_p, batch_size=500
    )
    counts = Counter(tokenizer.convert_tokens_to_ids(output.text) if output.text else None for output in outputs)
    often = {token: share for token, share in expected.items() if token > 3 and share * draws > 10}
    assert len(often) > 3
    assert set(counts) - {None} <= set(expected)
    for token, share in often.items():
        assert abs(counts[token] / draws - share) <= 4 * (share * (1 - share) / draws) ** 0.5


def test_nothing_of_the_model_or_of_torch_is_changed(model, tokenizer):
    model.train()
    model.lm_head.eval()
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    decode(model, tokenizer, PROMPTS, max_new_tokens=4, temperature=1.0)
    decode(model, tokenizer, PROMPTS, max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is False
    assert model.is_gradient_checkpointing
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.requires_grad for tensor in model.parameters())


def test_the_model_is_restored_when_decoding_fails(model, tokenizer):
    model.train()
    settings = model.generation_config

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(model, tokenizer, PROMPTS, max_new_tokens=2, on_batch=fail)
    assert model.training
    assert model.generation_config is settings


def test_training_mode_and_checkpointing_do_not_change_the_outputs(model, tokenizer):
    expected = decode(model.eval(), tokenizer, PROMPTS, max_new_tokens=8)
    model.train()
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    assert decode(model, tokenizer, PROMPTS, max_new_tokens=8) == expected


def test_an_adapter_takes_part(model, tokenizer):
    from peft import LoraConfig, get_peft_model

    plain = decode(model, tokenizer, PROMPTS, max_new_tokens=8)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3
    adapted.generation_config.repetition_penalty = 5.0
    adapted.train()
    with_adapter = decode(adapted, tokenizer, PROMPTS, max_new_tokens=8)
    assert adapted.training
    assert adapted.generation_config.repetition_penalty == 5.0
    with adapted.disable_adapter():
        assert decode(adapted, tokenizer, PROMPTS, max_new_tokens=8) == plain
    merged = adapted.merge_and_unload()
    assert with_adapter == [greedy_by_hand(merged, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert with_adapter != plain


def test_a_4_bit_model_decodes_and_trains_on_as_before(new_model, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    new_model(hidden=128).save_pretrained(tmp_path)
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        device_map="cpu",
    )
    model = get_peft_model(quantised, LoraConfig(r=4, target_modules="all-linear")).train()

    def gradients():
        model.zero_grad()
        ids = tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    before = gradients()
    outputs = decode(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert all(torch.equal(*pair) for pair in zip(before, gradients(), strict=True))
    assert outputs == [greedy_by_hand(model, tokenizer, prompt, 6) for prompt in PROMPTS]


def length_reward(completions, **columns):
    return [float(len(completion.split())) for completion in completions]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_decoding_within_grpo_works_and_leaves_the_training_as_it_is(
    new_model, tokenizer, tmp_path, gradient_checkpointing, adapter
):
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Evaluate(TrainerCallback):
        def __init__(self):
            self.greedy, self.sampled = [], []

        def on_step_end(self, args, state, control, model, **kwargs):
            self.greedy.append(decode(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=4))
            self.sampled.append(decode(model, tokenizer, PROMPTS, max_new_tokens=8, temperature=1.0, batch_size=4))

    def train(callbacks):
        config = GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=3,
            learning_rate=0.05,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=6,
            gradient_checkpointing=gradient_checkpointing,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            seed=3,
        )
        trainer = GRPOTrainer(
            model=new_model(),
            reward_funcs=length_reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * 2}),
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2) if adapter else None,
        )
        trainer.train()
        return trainer.model

    evaluate = Evaluate()
    model = train([evaluate])
    alone = train([])
    weights = alone.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert decode(alone, tokenizer, PROMPTS, max_new_tokens=8) == evaluate.greedy[-1]
    assert evaluate.greedy[0] != evaluate.greedy[-1], "the training did nothing, so the test shows nothing"
    assert len(evaluate.sampled) == 3


def test_the_cache_is_used_even_where_training_switched_it_off(model, tokenizer):
    model.config.use_cache = False
    model.generation_config.use_cache = False
    widths = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[1]))
    decode(model, tokenizer, ["w5 w6 w7"], max_new_tokens=4)
    assert widths == [3, 1, 1, 1]
