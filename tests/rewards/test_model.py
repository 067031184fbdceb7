"""A reward model that TRL's own trainer has made, as a reward: on a base of its own, and on the policy's."""

import copy
import json
import pickle
import random
import shutil
import statistics
from types import SimpleNamespace

import pytest
import torch

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.rewards import Task, build, model, prepare, score
from lastmile_trl.rewards.model import Model, check_is_reward_model

PROMPTS = ["Say: the red cat sat", "Say: a bird", "Say:\n", "Say: a dog ran over the big hill"]
TEXTS = ["the cat sat", "a bird flew over the tree", "", "zebra"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
TARGETS = {"policy": ["q_proj", "v_proj"], "reward": ["q_proj", "o_proj", "up_proj"]}


def lora(kind, task):
    from peft import LoraConfig

    return LoraConfig(
        r=4, lora_alpha=32, lora_dropout=0.1, target_modules=TARGETS[kind], task_type=task, revision="main"
    )


def train_reward_model(folder, base, tokenizer, peft_config=None):
    """A few steps with TRL's trainer, on pairs as token ids."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    ids = [
        [tokenizer.encode(f"Say: {text}") + [tokenizer.eos_token_id] for text in pair]
        for pair in (("the cat", "cat the the"), ("a bird flew", "bird bird"), ("the red dog ran", "ran"), ("a", "big"))
    ]
    trainer = RewardTrainer(
        model=str(base),
        args=RewardConfig(
            str(folder), max_steps=4, per_device_train_batch_size=4, learning_rate=0.02, use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"chosen_ids": [a for a, _ in ids], "rejected_ids": [b for _, b in ids]}),
        processing_class=tokenizer,
        peft_config=peft_config,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_model_folder, tokenizer):
    """A whole reward model."""
    return str(train_reward_model(tmp_path_factory.mktemp("rewards") / "plain", tiny_model_folder, tokenizer))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model_folder, tokenizer):
    """A reward model that is a LoRA adapter."""
    folder = tmp_path_factory.mktemp("rewards") / "adapter"
    return str(train_reward_model(folder, tiny_model_folder, tokenizer, lora("reward", "SEQ_CLS")))


@pytest.fixture(params=["plain", "adapter"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def by_hand(plain, adapter, tiny_model_folder, tokenizer):
    """What transformers itself says of one text: prompt, answer and end token are joined as ids."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    def load(path):
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)

    loaded = {plain: load(plain).eval(), adapter: PeftModel.from_pretrained(load(tiny_model_folder), adapter).eval()}

    def read(folder, prompt, text, ended=True):
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt)
        else:
            ids = tokenizer.encode(f"<|user|>{prompt[0]['content']}<|assistant|>")
        ids += tokenizer.encode(text) + [tokenizer.eos_token_id] * ended
        with torch.no_grad():
            return loaded[folder](torch.tensor([ids])).logits.item()

    return read


def close(values, abs=1e-5):
    return pytest.approx(values, abs=abs)


# --- what is read --------------------------------------------------------------------------------------------------


def test_scores_are_the_models_own(either, by_hand):
    reward = Model(either, centre=False)
    # A text that was not generated gets the space that SFT teaches after a word; "Say:\n" ends in none.
    followed = [" the cat sat", " a bird flew over the tree", "", " zebra"]
    expected = [by_hand(either, *row) for row in zip(PROMPTS, followed, strict=True)]
    assert reward(TEXTS, prompts=PROMPTS) == close(expected)
    assert reward(followed, prompts=PROMPTS) == close(expected)
    assert statistics.stdev(expected) > 0.05


def test_generated_texts_are_read_as_they_are(either, by_hand):
    reward = Model(either, centre=False).for_task(Task(end_ids=frozenset({1})))
    values = reward(TEXTS, prompts=PROMPTS, completion_ids=[[7, 1], [7, 8], [], [1, 7]])
    ended = [True, False, False, False]
    expected = [by_hand(either, *row) for row in zip(PROMPTS, TEXTS, ended, strict=True)]
    assert values == close(expected)
    # What evaluation says of the end counts more than ids; where a row says nothing, it ended.
    values = reward(TEXTS, prompts=PROMPTS, completion_ids=[[7]] * 4, ended=[True, False, None, True])
    assert values == close([by_hand(either, p, t, e) for p, t, e in zip(PROMPTS, TEXTS, [1, 0, 1, 1], strict=True)])
    # Without the run's end tokens, everything ended.
    unknown = Model(either, centre=False)(TEXTS, prompts=PROMPTS, completion_ids=[[7]] * 4)
    assert unknown == close([by_hand(either, *row) for row in zip(PROMPTS, TEXTS, strict=True)])
    assert abs(by_hand(either, PROMPTS[0], TEXTS[0], True) - by_hand(either, PROMPTS[0], TEXTS[0], False)) > 0.01


def test_a_space_belongs_to_the_word_that_follows(monkeypatch):
    """Older tokenizers put a space before every text: two where it begins with one, and decoding removes it."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    merges = [("_", "a"), ("_a", ":"), ("t", "h"), ("th", "e"), ("_", "the"), ("|", "|")]
    pieces = ["<unk>", "<eos>", *"_a:the|", *(left + right for left, right in merges)]
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("_"), normalizers.Replace(" ", "_"), normalizers.Replace("\n", "|")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    monkeypatch.setattr(model, "_tokenizer", lambda *_, **__: tokenizer)

    def read(*row):
        [ids] = model._token_ids("any", [model._Row(*row)])
        return tokenizer.convert_ids_to_tokens(ids)

    assert tokenizer.tokenize(" the") == ["_", "_the"]
    assert read("a:", "the") == read("a:", " the") == read("a:", "the", True, True) == ["_a:", "_the", "<eos>"]
    # Where a token spans the seam, the answer is read by itself.
    assert tokenizer.tokenize("a:\n\nthe") == ["_a:", "||", "the"]
    assert read("a:\n", "\nthe") == ["_a:", "|", "_", "|", "the", "<eos>"]


@pytest.mark.parametrize("prompts", [PROMPTS, CHATS])
def test_texts_are_read_as_training_on_pairs_has_them(prompts, plain):
    from lastmile_trl.preferences.tokens import all_answer_ids

    ended = [True, False, True, True]
    pairs = all_answer_ids(model._tokenizer(plain, chat=prompts is CHATS), prompts, TEXTS, ended)
    rows = [model._Row(*row) for row in zip(prompts, TEXTS, ended, strict=True)]
    assert model._token_ids(plain, rows) == [(*prompt, *answer) for prompt, answer in pairs]


def test_what_a_template_puts_before_an_answer_is_read_too(monkeypatch, tokenizer):
    template = tokenizer.chat_template.replace("{{ message.content }}", "{{ 'on ' if message.role == 'assistant' }}"
                                               "{{ message.content }}")  # fmt: skip
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = template
    monkeypatch.setattr(model, "_tokenizer", lambda *_, **__: thinking)
    rows = [model._Row(CHATS[0], "a cat"), model._Row(CHATS[1], "on a tree", False, True), model._Row(CHATS[2], "a")]
    told, said, last = (thinking.decode(ids) for ids in model._token_ids("any", rows))
    assert told.endswith("<|assistant|>on a cat<eos>") and last.endswith("<|assistant|>on a<eos>")
    assert said.endswith("<|assistant|>on a tree")


def test_chats(either, by_hand):
    said = [[{"role": "assistant", "content": text}] for text in TEXTS]
    expected = [by_hand(either, *row) for row in zip(CHATS, TEXTS, strict=True)]
    assert Model(either, centre=False)(said, prompts=CHATS) == close(expected)


def test_a_value_does_not_depend_on_the_batch(plain):
    rows = [(prompt, text) for prompt in PROMPTS for text in (*TEXTS, "the cat " * 20)]
    expected = [Model(plain, centre=False)([text], prompts=[prompt])[0] for prompt, text in rows]
    order = list(range(len(rows))) * 2
    for seed, batch_size in enumerate((1, 3, 64)):
        random.Random(seed).shuffle(order)
        prompts, texts = zip(*(rows[number] for number in order), strict=True)
        values = Model(plain, batch_size=batch_size, centre=False)(list(texts), prompts=list(prompts))
        assert values == close([expected[number] for number in order])


def test_the_score_is_read_where_it_was_trained(plain, tmp_path, by_hand, tokenizer):
    """A model that was trained with its end token as padding has never seen a score read there."""
    folder = tmp_path / "reward"
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": tokenizer.eos_token_id}))
    values = Model(str(folder), centre=False)(TEXTS, prompts=PROMPTS, completion_ids=[[7]] * 4)
    assert values == close([by_hand(plain, p, t, False) for p, t in zip(PROMPTS, TEXTS, strict=True)])


def test_what_cannot_be_read(plain):
    reward = Model(plain, centre=False)
    assert reward(["a", "a"], prompts=[None, PROMPTS[0]])[0] is None
    assert reward(["a"], prompts=[None]) == [None] and reward([], prompts=[]) == []
    assert reward([""], prompts=[""], ended=[False]) == [None]
    with pytest.raises(ValueError, match="it reads the prompt, which is missing"):
        reward(["a"])
    with pytest.raises(ValueError, match=r"a text of \d+ tokens is longer than the 512 that the reward model can"):
        reward(["zebra " * 120], prompts=PROMPTS[:1])


def test_dtype(plain, by_hand):
    [value] = Model(plain, centre=False, dtype="bfloat16")(TEXTS[:1], prompts=PROMPTS[:1])
    exact = by_hand(plain, PROMPTS[0], " the cat sat")
    assert value == close(exact, abs=0.1) and value != close(exact)
    assert value != torch.tensor(value).bfloat16().item()  # the head is exact even so


# --- centring and scale --------------------------------------------------------------------------------------------

TASK = Task({"prompt": PROMPTS, "references": [["the cat", "a"], "a bird", None, ["a dog ran"]]})


def test_centring(either, by_hand, capsys):
    references = [(PROMPTS[0], " the cat"), (PROMPTS[1], " a bird"), (PROMPTS[3], " a dog ran")]
    mean = statistics.fmean(by_hand(either, *row) for row in references)
    reward = Model(either).for_task(TASK)
    values = reward(TEXTS, prompts=PROMPTS)
    assert values == close([value - mean for value in Model(either, centre=False)(TEXTS, prompts=PROMPTS)])
    assert abs(mean) > 0.01
    own = reward(["the cat", "a bird", "a dog ran"], prompts=[PROMPTS[row] for row in (0, 1, 3)])
    assert sum(own) == close(0)
    assert capsys.readouterr().err.count("not centred") == 0


def test_a_few_references_stand_for_all(monkeypatch):
    rows = {"prompt": [f"p{number}\n" for number in range(40)], "references": [f"r{number}" for number in range(40)]}
    monkeypatch.setattr(model, "CENTRED_ON", 5)
    chosen = Model("any").for_task(Task(rows))._references
    numbers = [int(row.prompt[1:]) for row in chosen]
    assert [row.text for row in chosen] == [f"r{number}" for number in numbers]
    assert len(set(numbers)) == 5 and numbers != [0, 1, 2, 3, 4] and all(row.ended for row in chosen)
    assert Model("any").for_task(Task(rows))._references == chosen  # in every process
    assert Model("any", centre=False).for_task(Task(rows))._references == ()


def test_without_training_rows_it_says_that_nothing_is_centred(plain, capsys):
    raw = Model(plain, centre=False)(TEXTS, prompts=PROMPTS)
    assert capsys.readouterr().err == ""
    for task in (Task(), Task({"references": ["a"]}), Task({"prompt": ["a"], "references": [None]})):
        reward = Model(plain).for_task(task)
        assert reward(TEXTS, prompts=PROMPTS) == reward(TEXTS, prompts=PROMPTS) == close(raw)
        assert capsys.readouterr().err.splitlines() == [
            "Reward 'model' is not centred here: it knows no training rows with a prompt and references."
        ]


def test_a_file_of_rows_is_centred_on_its_own(plain):
    rows = [
        {"prompt": p, "prediction": r, "references": [r]}
        for p, r in zip(PROMPTS, ("the cat", "a", "dog", "big"), strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    values = [row["model"] for row in score(prepare(build([{"model": {"model": plain}}]), Task(columns)), rows)]
    assert sum(values) == close(0) and max(values) > 0.01


def test_scale(plain):
    train = {"trainer_state": object()}
    raw = Model(plain).for_task(TASK)(TEXTS, prompts=PROMPTS)
    reward = Model(plain, scale_by_deviation=True).for_task(TASK)
    assert reward(TEXTS, prompts=PROMPTS) == close(raw)  # nobody trains on these
    assert reward(TEXTS[:1], prompts=PROMPTS[:1], **train) == close(raw[:1])  # of one number none is known
    deviation = statistics.stdev([raw[0], raw[2], raw[1]])
    assert reward([TEXTS[2], "a", TEXTS[1]], prompts=[PROMPTS[2], None, PROMPTS[1]], **train) == close(
        [raw[2] / deviation, None, raw[1] / deviation], abs=1e-4
    )
    deviation = statistics.stdev([raw[0], raw[2], raw[1], raw[3]])
    assert reward(TEXTS[3:], prompts=PROMPTS[3:], **train) == close([raw[3] / deviation], abs=1e-4)
    anew = pickle.loads(pickle.dumps(reward))
    assert anew(TEXTS[:1] * 4, prompts=PROMPTS[:1] * 4, **train) == close(raw[:1] * 4)  # equal scores have none


def test_scale_over_processes(plain, monkeypatch):
    raw = Model(plain).for_task(TASK)(TEXTS, prompts=PROMPTS)
    asked = []

    def gather(scores):
        asked.append(scores)
        return [*scores, *raw[2:], None]  # the other process's

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    reward = Model(plain, scale_by_deviation=True).for_task(TASK)
    values = reward(TEXTS[:2], prompts=PROMPTS[:2], trainer_state=object())
    assert values == close([value / statistics.stdev(raw) for value in raw[:2]], abs=1e-4)
    # A process that fails looks for the row alone: the others would wait for ever.
    [wrapped] = prepare(build([{"model": {"model": plain, "scale_by_deviation": True}}]), TASK)
    asked.clear()
    with pytest.raises(RunError, match="Reward 'model' failed on row 1 of the batch"):
        wrapped([TEXTS[0], "zebra " * 120], prompts=PROMPTS[:2], trainer_state=object())
    assert asked == []


# --- loading -------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_once_and_never_pickled(plain):
    model._load.cache_clear()
    before = torch.get_rng_state()
    reward = Model(plain).for_task(TASK)
    values = reward(TEXTS, prompts=PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    copied = pickle.dumps(reward)
    assert len(copied) < 2000 and pickle.loads(copied) == reward
    assert pickle.loads(copied)(TEXTS, prompts=PROMPTS) == values
    assert model._load.cache_info().misses == 1
    backbone, seen = model._load(plain, "auto", False, "cpu").backbone, []
    assert not any(parameter.requires_grad for parameter in backbone.parameters()) and not backbone.training
    handle = backbone.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    reward(TEXTS, prompts=PROMPTS)
    handle.remove()
    assert seen == [False]


@pytest.mark.parametrize("kind", ["plain", "adapter"])
def test_4_bit(request, kind, tiny_model_folder, tokenizer):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification
    from trl import ModelConfig, get_quantization_config

    folder = request.getfixturevalue(kind)
    loaded = AutoModelForSequenceClassification.from_pretrained(
        folder if kind == "plain" else tiny_model_folder,
        num_labels=1,
        quantization_config=get_quantization_config(ModelConfig(load_in_4bit=True, dtype="float32")),
    )
    if kind == "adapter":
        loaded = PeftModel.from_pretrained(loaded, folder)
    ids = tokenizer.encode(PROMPTS[0]) + tokenizer.encode(" the cat sat") + [tokenizer.eos_token_id]
    with torch.no_grad():
        expected = loaded.eval()(torch.tensor([ids])).logits.item()
    for dtype in ("auto", "float32"):
        [value] = Model(folder, centre=False, load_in_4bit=True, dtype=dtype)(TEXTS[:1], prompts=PROMPTS[:1])
        assert value == close(expected, abs=1e-4)
    assert value != close(Model(folder, centre=False)(TEXTS[:1], prompts=PROMPTS[:1])[0], abs=1e-3)


def test_a_run_that_shards_its_models_leaves_this_one_whole(adapter, monkeypatch):
    from transformers.integrations import deepspeed

    class Sharding:
        def is_zero3(self):
            raise AssertionError("asked whether to shard")

    expected = Model(adapter, centre=False)(TEXTS, prompts=PROMPTS)
    model._load.cache_clear()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", Sharding)
    # as on a second process of FSDP, which waits for the weights of the first
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setattr("transformers.distributed.fsdp._is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr("transformers.modeling_utils.is_local_dist_rank_0", lambda: False)
    assert Model(adapter, centre=False)(TEXTS, prompts=PROMPTS) == expected


# --- on the policy's base ------------------------------------------------------------------------------------------


def grpo(folder, base, tokenizer, reward=None, peft_config="new", **arguments):
    """TRL's trainer with a policy that is an adapter."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    rows = Dataset.from_list([{"prompt": prompt, "references": ["the cat"]} for prompt in PROMPTS * 2])
    policy = AutoModelForCausalLM.from_pretrained(base) if isinstance(base, str) else base
    chosen = reward or Model("any")
    return GRPOTrainer(
        model=policy,
        args=GRPOConfig(
            str(folder), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=6,
            learning_rate=0.01, use_cpu=True, bf16=False, report_to="none", save_steps=1, disable_tqdm=True,
            **arguments,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        reward_funcs=[chosen],
        peft_config=lora("policy", "CAUSAL_LM") if peft_config == "new" else peft_config,
    )  # fmt: skip


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if ".default." in name}


def gradient(trainer, between=lambda: None):
    """The policy's gradient of one step, with something done between its forward and its backward pass."""
    policy, ids = trainer.model, torch.tensor([[5, 9, 20, 7]])
    policy.train()
    torch.manual_seed(0)
    policy.zero_grad()
    loss = policy(input_ids=ids, labels=ids).loss
    between()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters() if parameter.grad is not None}


def test_on_the_policys_base(adapter, tiny_model_folder, tokenizer, tmp_path):
    reward = Model(adapter, centre=False, share_base=True)
    alone = reward(TEXTS, prompts=PROMPTS)  # before it knows a trainer
    trainer = grpo(tmp_path, str(tiny_model_folder), tokenizer, gradient_checkpointing=True)
    next(p for p in trainer.model.parameters() if p.requires_grad).requires_grad_(False)  # a choice of the user's
    before = gradient(trainer)
    named = {name: p.requires_grad for name, p in trainer.model.named_parameters()}
    state = torch.get_rng_state()
    reward.for_trainer(trainer)
    assert torch.equal(torch.get_rng_state(), state)
    flags = {name: p.requires_grad for name, p in trainer.model.named_parameters()}
    # Other layers are wrapped for it, and nothing of it is trained.
    assert {name for name, flag in flags.items() if flag} == {name for name, flag in named.items() if flag}
    trainer.model.train()
    modes = [module.training for module in trainer.model.modules()]

    def check():
        assert reward(TEXTS, prompts=PROMPTS) == close(alone)
        assert {name: p.requires_grad for name, p in trainer.model.named_parameters()} == flags
        assert [module.training for module in trainer.model.modules()] == modes
        assert trainer.model.active_adapter == "default" and trainer.model.active_adapters == ["default"]

    check()
    after = gradient(trainer, between=check)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    # A second reward of this model, such as a metric, finds the adapter there.
    known = list(trainer.model.parameters())
    again = Model(adapter, centre=False, share_base=True)
    again.for_trainer(trainer)
    assert again(TEXTS, prompts=PROMPTS) == close(alone)
    assert all(new is old for new, old in zip(trainer.model.parameters(), known, strict=True))
    # A copy that was pickled knows no trainer, and loads a base.
    assert pickle.loads(pickle.dumps(reward))(TEXTS, prompts=PROMPTS) == close(alone)


def test_the_policy_trains_the_same_and_resumes(adapter, tiny_model_folder, tokenizer, tmp_path):
    task, runs, finals = Task({"prompt": PROMPTS, "references": ["the cat"] * 4}), {}, {}
    for share in (False, True):
        reward = Model(adapter, share_base=share, scale_by_deviation=True).for_task(task)
        trainer = runs[share] = grpo(tmp_path / str(share), str(tiny_model_folder), tokenizer, reward)
        reward.for_trainer(trainer)
        trainer.train()
        finals[share] = weights(trainer)
    assert max(value.abs().max() for name, value in finals[True].items() if "lora_B" in name) > 1e-3
    for name, value in finals[False].items():
        assert torch.allclose(finals[True][name], value, atol=1e-5), name
    # Neither the run nor its checkpoints hold the reward model.
    runs[True].save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "final", tmp_path / "True" / "checkpoint-1"):
        assert [path.parent for path in folder.rglob("adapter_config.json")] == [folder]
    # scale_by_deviation starts anew, so what goes on is compared without it.
    resumed = {}
    for share in (False, True):
        reward = Model(adapter, share_base=share).for_task(task)
        trainer = grpo(tmp_path / str(share), str(tiny_model_folder), tokenizer, reward)
        reward.for_trainer(trainer)
        trainer.train(resume_from_checkpoint=str(tmp_path / str(share) / "checkpoint-1"))
        assert trainer.state.global_step == 2
        resumed[share] = weights(trainer)
        alone = Model(adapter).for_task(task)(TEXTS, prompts=PROMPTS)
        assert reward(TEXTS, prompts=PROMPTS) == close(alone)
    for name, value in resumed[False].items():
        assert torch.allclose(resumed[True][name], value, atol=1e-5), name


def test_beside_a_reference_in_4_bits(adapter, tiny_model_folder, tokenizer, tmp_path, monkeypatch):
    """An adapter that goes on being trained has a frozen copy of itself for the KL; the base is quantised."""
    reward = Model(adapter, load_in_4bit=True, share_base=True).for_task(TASK)
    model._load.cache_clear()
    with monkeypatch.context() as patched:  # a model that is never trained is packed, and its sums are rounded
        patched.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
        alone = reward(TEXTS, prompts=PROMPTS)
    model._load.cache_clear()
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig, get_quantization_config

    base = AutoModelForCausalLM.from_pretrained(
        tiny_model_folder,
        quantization_config=get_quantization_config(ModelConfig(load_in_4bit=True, dtype="float32")),
    )
    policy = get_peft_model(base, lora("policy", "CAUSAL_LM"))
    trainer = grpo(tmp_path, policy, tokenizer, reward, peft_config=None, beta=0.1)
    reward.for_trainer(trainer)
    assert reward(TEXTS, prompts=PROMPTS) == close(alone, abs=1e-4)
    quantised = [module for module in policy.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert quantised and not any(hasattr(each.weight.quant_state, "packing_format_for_cpu") for each in quantised)
    trainer.train()
    assert trainer.model.peft_config.keys() == {"default", "ref"}
    assert max(value.abs().max() for name, value in weights(trainer).items() if "lora_B" in name) > 1e-3
    assert reward(TEXTS, prompts=PROMPTS) == close(alone, abs=1e-4)  # whatever the policy has become
    assert {path.name for path in (tmp_path / "checkpoint-2").iterdir() if path.is_dir()} == {"ref"}


def test_where_no_base_can_be_shared(plain, adapter, tiny_model_folder, tmp_path):
    from peft import get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    def changed(name, **values):
        folder = tmp_path / name
        shutil.copytree(adapter, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))
        return folder

    def refusal(folder, policy, **kinds):
        trainer = SimpleNamespace(
            model=policy,
            accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
            **{"is_fsdp_enabled": False, "is_deepspeed_enabled": False, **kinds},
        )
        before = {name: value.clone() for name, value in policy.named_parameters()}
        with pytest.raises(InputError) as error:
            Model(str(folder), share_base=True).for_trainer(trainer)
        assert all(torch.equal(value, before[name]) for name, value in policy.named_parameters() if name in before)
        said = str(error.value)
        assert said.startswith("Reward 'model': share_base does not work here, as ")
        assert said.endswith(": set share_base: false.")
        return said

    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert "the policy is no adapter on a base (model.use_peft)" in refusal(adapter, base)
    policy = get_peft_model(base, lora("policy", "CAUSAL_LM"))
    assert f"{plain!r} is a whole model and no adapter on a base" in refusal(plain, policy)
    for kind in ("is_fsdp_enabled", "is_deepspeed_enabled"):
        assert "FSDP and DeepSpeed shard the policy's base" in refusal(adapter, policy, **{kind: True})
    other = changed("other", base_model_name_or_path="org/other")
    said = refusal(other, policy)
    assert f"the base of '{other}' is org/other at main, that of the policy {tiny_model_folder} at main" in said
    assert "at v2, that of" in refusal(changed("revision", revision="v2"), policy)
    assert "is no plain LoRA" in refusal(changed("pissa", init_lora_weights="pissa"), policy)
    more = changed("more")
    found = load_file(more / "adapter_model.safetensors")
    embedding = {"base_model.model.model.embed_tokens.weight": torch.zeros(384, 64)}
    save_file(found | embedding, more / "adapter_model.safetensors")
    assert "holds more than LoRA and a head (base_model.model.model.embed_tokens.weight)" in refusal(more, policy)
    less = changed("less")
    lost = next(name for name in found if "o_proj.lora_B" in name)
    save_file({name: v for name, v in found.items() if name != lost}, less / "adapter_model.safetensors")
    assert "does not fit the policy's base" in refusal(less, policy)


# --- refusals ------------------------------------------------------------------------------------------------------


def test_reward_models_are_known_by_their_files(plain, adapter):
    check_is_reward_model(plain)
    check_is_reward_model(adapter)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no model: no config.json and no adapter_config.json; has its stage finished?"),
        (
            {"config.json": {"architectures": ["LlamaForCausalLM"]}},
            "is a LlamaForCausalLM, no reward model: name the run folder of a `method: reward` stage, or any decoder "
            "with a `score` head and one label.",
        ),
        ({"config.json": {"model_type": "llama"}}, "is a nameless model, no reward model: name"),
        ({"config.json": {"architectures": ["BertForSequenceClassification"]}}, "is a classifier with 2 labels, no"),
        (
            {"config.json": {"architectures": ["BertForSequenceClassification"], "id2label": dict.fromkeys("abc")}},
            "is a classifier with 3 labels, no reward model",
        ),
        ({"adapter_config.json": {"task_type": "CAUSAL_LM"}}, "is an adapter for CAUSAL_LM, no reward model: name"),
        (
            {"adapter_config.json": {"task_type": "SEQ_CLS", "modules_to_save": None}},
            "is an adapter that came without its `score` head: name",
        ),
    ],
)
def test_what_is_no_reward_model(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        check_is_reward_model(str(tmp_path))
    assert str(error.value).startswith(f"{str(tmp_path)!r} {message}")
    with pytest.raises(InputError):
        Model(str(tmp_path), centre=False)(["a"], prompts=["a"])


def test_a_classifier_without_a_score_head(tmp_path, tokenizer):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=380, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a BertForSequenceClassification, which has no `score` head: name the"):
        Model(str(tmp_path), centre=False)(["a"], prompts=["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": " "}, "model must name a model, by its id on the Hub or its folder, not ' '."),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0."),
        ({"dtype": "bf16"}, "dtype 'bf16' does not exist: did you mean 'bfloat16'?"),
        ({"centre": 1}, "centre must be true or false, not 1."),
        ({"scale_by_deviation": "yes"}, "scale_by_deviation must be true or false, not 'yes'."),
        ({"load_in_4bit": None}, "load_in_4bit must be true or false, not None."),
        ({"share_base": 0}, "share_base must be true or false, not 0."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        Model(**{"model": "any", **arguments})
    assert message in str(error.value)


def test_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: pip install 'lastmile-trl\[quantization\]'."):
        Model("any", load_in_4bit=True)
    assert Model("any").__name__ == "model"
