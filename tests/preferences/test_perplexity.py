import json
import math
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lastmile_trl import models
from lastmile_trl.data import completion
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.preferences.perplexity import (
    REASONS,
    Filter,
    Selection,
    Surprise,
    check_kept,
    lines,
    measured,
    perplexities,
    report,
    select,
)
from lastmile_trl.preferences.tokens import all_answer_ids, answer_ids
from tests.conftest import sentence

PROMPTS = [f"{sentence(n, 1 + 5 * (n % 4))} =>" for n in range(7)] + ["Note:\n"]
ANSWERS = ["the cat", *(sentence(n + 3, 1 + 3 * (n % 3)) for n in range(5)), "", "ÄÖ 鸟 🐦"]
ENDED = [True, True, False, True, False, True, True, True]
CHATS = [
    [{"role": "system", "content": "Be brief."}] * (n % 2) + [{"role": "user", "content": prompt}]
    for n, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()


def by_hand(model, ids, answer):
    """One row, no padding, all logits, one token after the other."""
    with torch.no_grad():
        logits = model(torch.tensor([ids + answer])).logits[0].double()
    total = 0.0
    for place, token in enumerate(answer, start=len(ids)):
        total -= math.log(logits[place - 1].softmax(-1)[token])
    return total / len(answer)


def text_rows(tokenizer):
    """Prompt and answer each by itself, joined."""
    for prompt, answer, ended in zip(PROMPTS, ANSWERS, ENDED, strict=True):
        text = completion(prompt, answer) if answer else ""
        yield tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * ended


def chat_rows(tokenizer):
    """The template of the fixture, written out."""
    for chat, answer, ended in zip(CHATS, ANSWERS, ENDED, strict=True):
        head = "".join(f"<|{message['role']}|>{message['content']}" for message in chat) + "<|assistant|>"
        yield tokenizer(head)["input_ids"], tokenizer(answer + "<eos>" * ended)["input_ids"]


CASES = {"text": (PROMPTS, text_rows), "chat": (CHATS, chat_rows)}


# --- token ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CASES)
def test_ids_are_those_of_the_prompt_the_answer_and_its_end(tokenizer, kind):
    prompts, rows = CASES[kind]
    expected = list(rows(tokenizer))
    assert all_answer_ids(tokenizer, prompts, ANSWERS, ENDED) == expected
    assert [answer_ids(tokenizer, *row) for row in zip(prompts, ANSWERS, ENDED, strict=True)] == expected
    assert [ids for ids, _ in expected] == models.prompt_ids(tokenizer, prompts)


def test_answers_have_ended_unless_told(tokenizer):
    assert answer_ids(tokenizer, "a", "the cat")[1][-1] == tokenizer.eos_token_id
    assert [row[1][-1] for row in all_answer_ids(tokenizer, ["a", "b"], ["the", "cat"])] == [tokenizer.eos_token_id] * 2
    assert all_answer_ids(tokenizer, [], []) == []


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ("Sum:", "cat", " cat"),
        ("Sum:\n", "cat", "cat"),
        ("Sum:", " cat", " cat"),  # a sample as the model gave it
        ("Sum:", "\ncat", "\ncat"),
        ("Sum:", "", ""),
    ],
)
def test_a_space_before_the_answer_where_neither_side_brings_one(tokenizer, prompt, answer, text):
    assert tokenizer.decode(answer_ids(tokenizer, prompt, answer, False)[1]) == text


def with_template(tokenizer, template):
    from copy import deepcopy

    other = deepcopy(tokenizer)
    other.chat_template = template
    return other


USER = "{% for message in messages %}{% if message.role == 'user' %}<|user|>{{ message.content }}{% endif %}"
ANSWER = "{% if message.role == 'assistant' %}<|assistant|>"
REST = "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def test_an_answer_goes_up_to_its_end_and_holds_what_the_template_puts_into_it(tokenizer):
    other = with_template(tokenizer, f"{USER}{ANSWER}think {{{{ message.content | trim }}}}<eos>\n{REST}")
    chat = [{"role": "user", "content": "a"}]
    _, answer = answer_ids(other, chat, " the <eos> cat ")
    assert other.decode(answer) == "think the <eos> cat<eos>"
    assert other.decode(answer_ids(other, chat, "cat", False)[1]) == "think cat"


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer):
    other = with_template(tokenizer, f"{{% if messages|length > 1 %}}again {{% endif %}}{USER}{ANSWER}a<eos>{REST}")
    with pytest.raises(InputError, match=r"renders the prompt '<\|user\|>a<\|assistant\|>' otherwise once"):
        answer_ids(other, [{"role": "user", "content": "a"}], "b")


def test_a_template_without_the_end_token_is_refused(tokenizer):
    other = with_template(tokenizer, f"{USER}{ANSWER}{{{{ message.content }}}}\n{REST}")
    with pytest.raises(InputError, match="does not end an answer with the tokenizer's end token '<eos>'"):
        answer_ids(other, [{"role": "user", "content": "a"}], "b", ended=False)


BARE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"


def small_tokenizer(*pieces, normalizer=None):
    """A tokenizer of these pieces, of which the first that fits is taken; `<s>` begins a text, but not a chat."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: number for number, piece in enumerate(["<pad>", "<eos>", "<s>", *pieces])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(pieces)), "isolated")
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    if normalizer is not None:
        inner.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", chat_template=BARE)


def test_a_token_across_the_seam_is_none_that_the_model_would_see():
    small = small_tokenizer("a ", "a", " b", "b")
    assert small("a b")["input_ids"] == [2, 3, 6]
    assert answer_ids(small, "a", "b") == ([2, 4], [5, 1])
    chat = [{"role": "user", "content": "a"}]
    assert answer_ids(small, chat, " b") == ([4], [5, 1])
    assert answer_ids(small, chat, "b") == ([4], [6, 1])


def test_an_answer_does_not_begin_as_a_text_of_its_own_does():
    from tokenizers import normalizers

    spaced = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_")])
    small = small_tokenizer("_a", "_b", "_", normalizer=spaced)
    assert small(" b")["input_ids"] == [2, 5, 4]
    assert answer_ids(small, "a", "b") == ([2, 3], [4, 1])
    assert answer_ids(small, [{"role": "user", "content": "a"}], " b") == ([3], [4, 1])


# --- perplexity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CASES)
def test_as_one_row_at_a_time_whatever_batches_order_and_padding(model, tokenizer, kind):
    prompts, rows = CASES[kind]
    expected = [(by_hand(model, ids, answer), len(answer)) for ids, answer in rows(tokenizer)]
    assert len({round(mean, 2) for mean, _ in expected}) == len(expected)
    side = tokenizer.padding_side
    try:
        for batch_size, seed, tokenizer.padding_side in [
            (1, 0, "left"),
            (3, 1, "left"),
            (3, 2, "right"),
            (8, 3, "right"),
        ]:
            order = random.Random(seed).sample(range(len(prompts)), len(prompts))
            found = perplexities(
                model,
                tokenizer,
                [prompts[row] for row in order],
                [ANSWERS[row] for row in order],
                ended=[ENDED[row] for row in order],
                batch_size=batch_size,
            )
            assert [each.tokens for each in found] == [expected[row][1] for row in order]
            assert [each.mean for each in found] == pytest.approx([expected[row][0] for row in order], abs=1e-5)
    finally:
        tokenizer.padding_side = side


def test_perplexity_is_the_number_of_equally_likely_tokens(model, tokenizer):
    from copy import deepcopy

    even = deepcopy(model)
    even.lm_head.weight.data.zero_()
    assert perplexities(even, tokenizer, ["a"], ["the cat"])[0].perplexity == pytest.approx(384)
    assert perplexities(even, tokenizer, [], []) == []


@contextmanager
def outputs_of(layer):
    """All that a layer gives meanwhile."""
    outputs = []
    hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    yield outputs
    hook.remove()


def test_the_logits_are_those_of_the_answers_only_and_have_no_gradient(model, tokenizer):
    prompt = sentence(0, 40)
    with outputs_of(model.lm_head) as logits:
        perplexities(model, tokenizer, [prompt, prompt], ["the cat", "the"])
    answer = len(answer_ids(tokenizer, prompt, "the cat")[1])
    assert [(tuple(each.shape), each.requires_grad) for each in logits] == [((2, answer + 1, 384), False)]


def test_rows_of_a_batch_are_about_as_long_and_the_longest_come_first(model, tokenizer):
    lengths = [len(ids) + len(answer) for ids, answer in text_rows(tokenizer)]
    with outputs_of(model.get_input_embeddings()) as embedded:
        perplexities(model, tokenizer, PROMPTS, ANSWERS, ended=ENDED, batch_size=3)
    assert [each.shape[1] for each in embedded] == sorted(lengths, reverse=True)[::3]


class WithoutLogitsToKeep(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.device = inner, inner.device

    def forward(self, input_ids, attention_mask, use_cache):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_other_models_adapters_dropout_and_what_is_restored(model, tokenizer):
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    # Absolute positions, dropout in every layer.
    config = GPT2Config(
        vocab_size=384,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=128,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        gpt2 = GPT2LMHeadModel(config)
    expected = [by_hand(gpt2.eval(), ids, answer) for ids, answer in text_rows(tokenizer)]
    adapted = get_peft_model(gpt2, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.5))
    adapted.train()
    adapted.base_model.model.lm_head.eval()
    modes = [module.training for module in adapted.modules()]
    assert gpt2.transformer.drop.p > 0

    def means(of):
        return [each.mean for each in perplexities(of, tokenizer, PROMPTS, ANSWERS, ended=ENDED, batch_size=3)]

    with outputs_of(gpt2.lm_head) as logits:
        assert means(adapted) == pytest.approx(expected, abs=1e-4)
    longest = max(len(ids) + len(answer) for ids, answer in text_rows(tokenizer))
    assert logits[0].shape[1] < longest, "the adapter hides what the model can do"
    assert [module.training for module in adapted.modules()] == modes
    assert torch.is_grad_enabled()
    assert means(WithoutLogitsToKeep(gpt2)) == pytest.approx(expected, abs=1e-4)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.5)
    assert abs(means(adapted)[0] - expected[0]) > 1e-3, "the adapter takes no part"


def test_the_logarithm_is_taken_in_float32(model, tokenizer):
    from copy import deepcopy

    coarse = deepcopy(model).to(torch.bfloat16)
    ids, answer = next(text_rows(tokenizer))
    found = perplexities(coarse, tokenizer, PROMPTS[:1], ANSWERS[:1])[0].mean
    assert found == pytest.approx(by_hand(coarse, ids, answer), abs=1e-4)


def test_progress_and_a_stop_in_between(model, tokenizer):
    told = []
    perplexities(model, tokenizer, PROMPTS, ANSWERS, batch_size=3, on_batch=lambda *counts: told.append(counts))
    assert told == [(3, 8), (6, 8), (8, 8)]

    def stop(done, total):
        raise KeyboardInterrupt

    model.train()
    with pytest.raises(KeyboardInterrupt):
        perplexities(model, tokenizer, PROMPTS, ANSWERS, on_batch=stop)
    assert model.training
    model.eval()


def test_what_cannot_be_measured(model, tokenizer):
    from copy import deepcopy

    with pytest.raises(InputError, match="An answer to 'a' is empty and did not end"):
        perplexities(model, tokenizer, ["b", "a"], ["", ""], ended=[True, False])
    with pytest.raises(InputError, match="The prompt '' holds no tokens"):
        perplexities(model, tokenizer, [""], ["b"])
    broken = deepcopy(model)
    broken.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(RunError, match="gives an answer to 'a' no likelihood: load it with another model.dtype"):
        perplexities(broken, tokenizer, ["a"], ["b"])


# --- a file to go on from ------------------------------------------------------------------------------------------

PAIRS = [
    {"prompt": prompt, "chosen": answer, "rejected": sentence(n, 4), "chosen_ended": ended}
    for n, (prompt, answer, ended) in enumerate(zip(PROMPTS, ANSWERS, ENDED, strict=True))
]


class Counting:
    """A model that is loaded at the first call, and the forward passes it makes."""

    def __init__(self, model):
        self.model, self.loaded, self.sizes = model, 0, []
        model.register_forward_pre_hook(
            lambda module, _, inputs: self.sizes.append(len(inputs["input_ids"])), with_kwargs=True
        )

    def __call__(self):
        self.loaded += 1
        return self.model

    def seen(self):
        sizes, self.sizes = self.sizes, []
        return sum(sizes)


@pytest.fixture
def counting(model):
    from copy import deepcopy

    return Counting(deepcopy(model))


def test_measured_pairs_are_those_of_their_answers(counting, tokenizer, tmp_path):
    told, file = [], tmp_path / "new" / "file"

    def tell(done, total):
        assert len(file.read_text().splitlines()) == 2 + len(told), "a crash would lose a batch"
        told.append((done, total))

    chosen, rejected = measured(counting, tokenizer, PAIRS, file, name="a", batch_size=3, on_batch=tell)
    assert told == [(3, 8), (6, 8), (8, 8)]
    assert counting.loaded == 1 and counting.seen() == 16
    expected = perplexities(counting.model, tokenizer, PROMPTS, ANSWERS, ended=ENDED)
    assert [each.tokens for each in chosen] == [each.tokens for each in expected]
    assert [each.mean for each in chosen] == pytest.approx([each.mean for each in expected], abs=1e-5)
    expected = perplexities(counting.model, tokenizer, PROMPTS, [pair["rejected"] for pair in PAIRS])
    assert [each.tokens for each in rejected] == [each.tokens for each in expected]
    assert [each.mean for each in rejected] == pytest.approx([each.mean for each in expected], abs=1e-5)


def test_a_stopped_measurement_goes_on_where_it_was(counting, tokenizer, tmp_path):
    file = tmp_path / "file"

    def stop(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(counting, tokenizer, PAIRS, file, name="a", batch_size=2, on_batch=stop)
    assert counting.seen() == 12
    whole = file.read_text()
    assert len(whole.splitlines()) == 4
    file.write_text(whole[:-10])  # the third line was not written to its end
    resumed = measured(counting, tokenizer, PAIRS, file, name="a", batch_size=2)
    assert counting.seen() == 8
    done = [json.loads(line)["pairs"] for line in file.read_text().splitlines()[1:]]
    assert sorted(sum(done, [])) == list(range(8))
    assert resumed == measured(counting, tokenizer, PAIRS, tmp_path / "another", name="a", batch_size=2)
    counting.seen()

    def unused():
        raise AssertionError

    assert measured(unused, tokenizer, PAIRS, file, name="a") == resumed
    assert list(tmp_path.glob("*.new")) == []


@pytest.mark.parametrize("what", ["name", "chosen", "prompt", "rejected_ended", "cut"])
def test_another_model_or_other_pairs_are_measured_anew(counting, tokenizer, tmp_path, what):
    measured(counting, tokenizer, PAIRS, tmp_path / "file", name="a")
    counting.seen()
    pairs, name = PAIRS, "a"
    if what == "name":
        name = "b"
    elif what == "cut":
        pairs = PAIRS[:-1]
    else:
        pairs = [{**PAIRS[0], what: False if what == "rejected_ended" else "other"}, *PAIRS[1:]]
    found = measured(counting, tokenizer, pairs, tmp_path / "file", name=name)
    assert counting.seen() == 2 * len(pairs)
    assert found == measured(counting, tokenizer, pairs, tmp_path / "file", name=name)
    assert counting.seen() == 0


# --- the filter ----------------------------------------------------------------------------------------------------


def of(*perplexities, tokens=10):
    return [Surprise(math.log(value), tokens) for value in perplexities]


OPEN = {"lower_quantile": None, "balance": None, "length_ratio": None, "min_kept": 0.0}
CHOSEN, REJECTED = of(2, 2, 9, 9, 1.1, 1.1, 9), of(2, 9, 2, 9, 2, 1.1, 1.1)
HIGH, LOW = "too surprising", "too plain"


@pytest.mark.parametrize(
    ("keep", "reasons"),
    [
        ("both", [None, HIGH, HIGH, HIGH, LOW, LOW, HIGH]),
        ("chosen", [None, None, HIGH, HIGH, LOW, LOW, HIGH]),
        ("rejected", [None, HIGH, None, HIGH, None, LOW, LOW]),
        ("any", [None, None, None, HIGH, None, LOW, HIGH]),
    ],
)
def test_which_answers_must_be_within_the_bounds(keep, reasons):
    filter = Filter(keep=keep, max_perplexity=4, **{**OPEN, "min_perplexity": 1.5})
    found = select(filter, CHOSEN, REJECTED)
    assert found.reasons == reasons
    assert found.kept == [row for row, reason in enumerate(reasons) if reason is None]
    assert (found.low, found.high) == (1.5, 4)


def test_bounds_are_within_the_bounds():
    edge = Filter(
        max_perplexity=math.exp(2), **{**OPEN, "min_perplexity": math.exp(1), "balance": 1, "length_ratio": 2}
    )
    assert select(edge, [Surprise(1, 10)], [Surprise(2, 20)]).kept == [0]
    assert select(edge, [Surprise(1, 20)], [Surprise(2, 10)]).kept == [0]
    assert select(edge, [Surprise(1, 21)], [Surprise(2, 10)]).reasons == ["lengths"]
    assert select(edge, [Surprise(1, 10)], [Surprise(2, 21)]).reasons == ["lengths"]
    assert select(edge, [Surprise(1, 10)], [Surprise(2.001, 10)]).reasons == [HIGH]
    assert select(edge, [Surprise(0.999, 10)], [Surprise(1.5, 10)]).reasons == [LOW]


def test_pairs_of_which_one_is_likelier_or_longer_go_whatever_is_kept():
    chosen, rejected = of(2, 6, 2, 2), [*of(2 * 2.7, 2, 2 * 2.8), Surprise(math.log(2), 21)]
    for keep in ("both", "chosen", "rejected", "any"):
        filter = Filter(keep=keep, max_perplexity=100, **{**OPEN, "balance": 1.0, "length_ratio": 2.0})
        assert select(filter, chosen, rejected).reasons == [None, "unbalanced", "unbalanced", "lengths"]
    assert select(Filter(max_perplexity=100, **OPEN), chosen, rejected).reasons == [None] * 4


def test_the_first_reason_counts():
    surprising = [Surprise(5, 10)], [Surprise(0.1, 100)]
    filter = {"max_perplexity": 10.0, "min_kept": 0.0, "min_perplexity": 1.5}
    assert select(Filter(**filter), *surprising).reasons == [HIGH]
    assert select(Filter(**{**filter, "max_perplexity": 200.0}), *surprising).reasons == [LOW]
    assert select(Filter(max_perplexity=200, **{**OPEN, "balance": 1.0}), *surprising).reasons == ["unbalanced"]


def test_quantiles_of_the_samples_by_hand():
    # Five perplexities lie at quantiles 0, 1/4, 1/2, 3/4 and 1: 0.9 is 3.6 steps from the least.
    own = of(8, 1, 2, 3, 5)
    filter = Filter(quantile=0.9, lower_quantile=0.1, balance=None, length_ratio=None, min_kept=0)
    found = select(filter, of(2, 6.79, 6.81, 1.41, 1.39), of(2, 2, 2, 2, 2), own)
    assert found.high == pytest.approx(5 + 0.6 * 3)
    assert found.low == pytest.approx(1 + 0.4 * 1)
    assert found.reasons == [None, None, HIGH, None, LOW]


def test_the_default_bounds_of_200_samples():
    # 0.95 * 199 = 189.05 and 0.005 * 199 = 0.995 steps from the least of 2 ... 201.
    own = of(*random.Random(0).sample(range(2, 202), 200))
    found = select(Filter(), of(100), of(100), own)
    assert found.high == pytest.approx(191.05)
    assert found.low == pytest.approx(2.995)


@pytest.mark.parametrize(("keep", "values"), [("both", "cr"), ("any", "cr"), ("chosen", "c"), ("rejected", "r")])
def test_quantiles_of_the_answers_are_of_those_that_are_looked_at(keep, values):
    answers = {"c": [2.0, 3.0, 4.0], "r": [5.0, 7.0, 8.0]}
    expected = np.quantile([value for side in values for value in answers[side]], [0.1, 0.8])
    filter = Filter(keep=keep, of="data", quantile=0.8, lower_quantile=0.1, balance=None, min_kept=0)
    found = select(filter, of(*answers["c"]), of(*answers["r"]), own=of(100))
    assert (found.low, found.high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


def test_when_samples_are_needed():
    assert Filter().needs_samples
    assert Filter(max_perplexity=9).needs_samples, "for the lower bound"
    assert Filter(min_perplexity=2).needs_samples, "for the upper bound"
    assert not Filter(of="data").needs_samples
    assert not Filter(max_perplexity=9, lower_quantile=None).needs_samples
    assert not Filter(max_perplexity=9, min_perplexity=2).needs_samples
    for own in (None, []):
        with pytest.raises(InputError, match="of is 'samples', but there are no samples of the model"):
            select(Filter(), of(2), of(2), own)
    with pytest.raises(InputError, match="no pairs"):
        select(Filter(), [], [], of(2))


def test_a_number_takes_the_place_of_a_quantile():
    found = select(Filter(max_perplexity=9, min_perplexity=2), of(3), of(3), of(4, 5, 6))
    assert (found.low, found.high) == (2, 9)


MEANS = st.floats(0, 6).map(lambda mean: Surprise(mean, 1 + int(mean * 7) % 40))


@given(st.lists(st.tuples(MEANS, MEANS), min_size=1, max_size=12), st.lists(MEANS, min_size=1, max_size=12))
def test_a_looser_filter_keeps_all_that_a_stricter_one_keeps(pairs, own):
    chosen, rejected = zip(*pairs, strict=True)

    def kept(**settings):
        return set(select(Filter(**{"min_kept": 0.0, **settings}), chosen, rejected, own).kept)

    some = kept()
    looser = [{"quantile": 1.0}, {"lower_quantile": None}, {"balance": 3.0}, {"length_ratio": None}, {"keep": "chosen"}]
    for settings in looser:
        assert some <= kept(**settings)
    assert kept(keep="chosen") & kept(keep="rejected") == some
    assert kept(keep="chosen") | kept(keep="rejected") == kept(keep="any")
    assert len(select(Filter(min_kept=0), chosen, rejected, own).reasons) == len(pairs)


@pytest.mark.parametrize(
    ("settings", "reason", "advice"),
    [
        ({"max_perplexity": 3.0}, "too surprising' .2.", "quantile or max_perplexity"),
        ({"min_perplexity": 6.0, "max_perplexity": 8.0}, "too plain' .2.", "lower_quantile or min_perplexity"),
        ({"max_perplexity": 99.0, "balance": 0.0}, "unbalanced' .2.", "balance"),
        ({"max_perplexity": 99.0, "length_ratio": 1.0}, "lengths' .2.", "length_ratio"),
    ],
)
def test_too_few_pairs_stop_the_stage(settings, reason, advice):
    chosen, rejected = [Surprise(math.log(4), 9), *of(4, 2)], [Surprise(math.log(5), 10), *of(5, 2)]
    rejected[1] = Surprise(math.log(5), 12)
    if "min_perplexity" in settings:
        chosen[2] = rejected[2] = of(7)[0]
    limits = {"lower_quantile": None, "balance": None, "length_ratio": None, **settings}
    selection = select(Filter(**limits), chosen, rejected)
    assert selection.kept == [2]
    check_kept(Filter(min_kept=1 / 3), selection)
    with pytest.raises(
        RunError, match=rf"keeps 1 of 3 pairs \(33.3%\).*min_kept=0.34; .*'{reason}.*{advice}, or lower"
    ):
        check_kept(Filter(min_kept=0.34), selection)


def test_the_reason_that_is_told_is_that_of_most_pairs():
    filter = Filter(max_perplexity=4, min_perplexity=1.5)
    for values, reason in ([(9, 1, 1), LOW], [(9, 9, 1), HIGH]):
        with pytest.raises(RunError, match=f"most go as '{reason}' .2."):
            check_kept(filter, select(filter, of(*values), of(*values)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": "chosem"}, "preferences.filter.keep 'chosem' does not exist: did you mean 'chosen'?"),
        ({"of": "samples of mine"}, "preferences.filter.of 'samples of mine' does not exist"),
        ({"quantile": 95}, "preferences.filter.quantile must be a share between 0 and 1, not 95"),
        ({"quantile": None}, "preferences.filter.quantile must be a number"),
        ({"lower_quantile": -0.1}, "preferences.filter.lower_quantile must be a number of at least 0"),
        ({"lower_quantile": 0.95}, "preferences.filter.lower_quantile must be below preferences.filter.quantile"),
        ({"max_perplexity": 0.9}, "preferences.filter.max_perplexity must be a number of at least 1"),
        ({"min_perplexity": float("nan")}, "preferences.filter.min_perplexity must be a number"),
        ({"min_perplexity": 5, "max_perplexity": 4}, "preferences.filter.min_perplexity must be below"),
        ({"balance": -1}, "preferences.filter.balance must be a number of at least 0"),
        ({"length_ratio": 0.5}, "preferences.filter.length_ratio must be a number of at least 1"),
        ({"min_kept": 10}, "preferences.filter.min_kept must be a share between 0 and 1, not 10"),
        ({"prompts": 0}, "preferences.filter.prompts must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "preferences.filter.batch_size must be a whole number of at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError) as error:
        Filter(**settings)
    assert str(error.value).startswith(message)


# --- the report ----------------------------------------------------------------------------------------------------


@pytest.fixture
def example():
    """Four pairs of two categories; the second is too surprising, the fourth too long. Answers of the first tie."""
    chosen = [Surprise(0.0, 12), Surprise(1.0, 20), Surprise(1.0, 30), Surprise(2.0, 40)]
    rejected = [Surprise(1.0, 12), Surprise(12.0, 10), Surprise(1.0, 20), Surprise(2.0, 10)]
    selection = Selection([0, 2], [None, HIGH, None, "lengths"], low=None, high=math.exp(3))
    own = [Surprise(6.0, 5), Surprise(6.5, 5)]
    return report(selection, chosen, rejected, own, ["noise", "noise", "cut", None])


def test_a_report_by_hand(example):
    nothing = dict.fromkeys(REASONS, 0)
    assert example["low"] is None and example["high"] == math.exp(3)
    assert example["all"] == {"pairs": 4, "kept": 2, "share": 0.5, "removed": {**nothing, HIGH: 1, "lengths": 1}}
    assert example["categories"] == {
        "noise": {"pairs": 2, "kept": 1, "share": 0.5, "removed": {**nothing, HIGH: 1}},
        "cut": {"pairs": 1, "kept": 1, "share": 1.0, "removed": nothing},
    }
    assert example["tokens"] == {"chosen": {"before": 25.5, "after": 21}, "rejected": {"before": 13, "after": 16}}
    assert example["chosen_longer"] == {"before": 0.75, "after": 0.5}
    histograms = example["log_perplexity"]
    assert histograms["edges"] == pytest.approx(list(range(13)))
    assert histograms["chosen"] == [1, 2, 1] + [0] * 9
    assert histograms["rejected"] == [0, 2, 1] + [0] * 8 + [1]
    assert histograms["own"] == [0] * 6 + [2] + [0] * 5
    assert json.loads(json.dumps(example)) == example


def test_the_lines_for_a_terminal(example):
    assert lines(example)[:19] == [
        "2 of 4 pairs are kept; perplexity had to be at most 20.1.",
        "",
        "       pairs  kept  too surprising  too plain  unbalanced  lengths",
        "noise      2   50%               1          0           0        0",
        "cut        1  100%               0          0           0        0",
        "all        4   50%               1          0           0        1",
        "",
        "                  before  after",
        "tokens, chosen      25.5   21.0",
        "tokens, rejected    13.0   16.0",
        "chosen is longer     75%    50%",
        "",
        "perplexity       chosen    rejected  own samples",
        "1 to 2.72        ####",
        "2.72 to 7.39     ########  ########",
        "7.39 to 20.1     ####      ####",
        "20.1 to 54.6",
        "54.6 to 148",
        "148 to 403",
    ]
    assert lines(example)[19].split() == ["403", "to", "1097", "#" * 16]


def test_a_report_without_samples_categories_and_kept_pairs():
    selection = select(Filter(max_perplexity=3, min_perplexity=2, min_kept=0), of(9), of(9))
    told = report(selection, of(9), of(9))
    assert told["tokens"]["chosen"] == {"before": 10, "after": None}
    assert told["categories"] == {} and "own" not in told["log_perplexity"]
    said = lines(told)
    assert said[0] == "0 of 1 pairs are kept; perplexity had to be from 2 to 3."
    assert "tokens, chosen      10.0      –" in said
    assert sum("#" in line for line in said) == 1
