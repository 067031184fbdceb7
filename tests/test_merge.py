"""Adapters merged into their base: what the plain model computes is what both computed together."""

import json
import shutil
from pathlib import Path

import pytest

from lastmile_trl.card import model_card
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.merge import merge
from lastmile_trl.preflight import check_model
from lastmile_trl.rewards.model import Model

from .run_fixture import (
    REWARD,
    adapted_logits,
    build_adapter,
    change_json,
    load,
    logits,
    plain_logits,
    write_adapter_config,
    write_run,
)

TASKS = ["CAUSAL_LM", "SEQ_CLS"]


@pytest.fixture(scope="module")
def base(tiny_model_folder) -> Path:
    return tiny_model_folder


@pytest.mark.parametrize("task", TASKS)
def test_merged_model_computes_what_base_and_adapter_compute(base, tmp_path, task):
    run = build_adapter(write_run(tmp_path / "run"), base, str(base), task)
    merged = merge(run, tmp_path / "merged")
    expected = adapted_logits(base, run, task)
    assert plain_logits(merged, task) == pytest.approx(expected, abs=1e-4)
    assert plain_logits(base, task) != pytest.approx(expected, abs=1e-1)
    assert (merged / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (merged / "adapter_config.json").exists()
    assert (merged / "README.md").read_text() == model_card(merged)


@pytest.mark.parametrize("task", TASKS)
def test_merging_keeps_the_precision_of_the_base(base, tmp_path, task):
    import torch
    from transformers import AutoModelForCausalLM

    half = shutil.copytree(base, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    run = build_adapter(tmp_path / "run", half, str(half), task)
    merged = merge(run, tmp_path / "merged")
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert plain_logits(merged, task) == pytest.approx(adapted_logits(half, run, task), rel=0.05, abs=0.1)
    assert plain_logits(half, task) != pytest.approx(adapted_logits(half, run, task), abs=0.5)


def test_a_merged_reward_model_scores_where_it_was_trained_to(base, tmp_path):
    """Before the padding of the run, not of the base; and the half of its adapter that is the head is not lost."""
    run = build_adapter(write_run(tmp_path / "run", REWARD), base, str(base), "SEQ_CLS")
    change_json(run / "tokenizer_config.json", pad_token="<eos>")
    merged = merge(run, tmp_path / "merged")
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["pad_token_id"] == 1
    expected = Model(str(run), centre=False)(["a cat", "a dog"], prompts=["Say:", "Say:"])
    assert Model(str(merged), centre=False)(["a cat", "a dog"], prompts=["Say:", "Say:"]) == pytest.approx(expected)
    assert expected[0] != pytest.approx(expected[1], abs=1e-2)
    change_json(run / "adapter_config.json", modules_to_save=None)
    with pytest.raises(InputError, match="came without its `score` head"):
        merge(run, tmp_path / "headless")


@pytest.mark.parametrize("here", [".", "elsewhere"])
def test_merging_finds_a_base_by_its_relative_path(base, tmp_path, monkeypatch, here):
    shutil.copytree(base, tmp_path / "runs" / "base")
    run = write_run(tmp_path / "runs" / "grpo", training={"output_dir": "runs/grpo"})
    build_adapter(run, base, "runs/base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / here)
    merged = merge(run, Path("merged"))
    assert plain_logits(merged) == pytest.approx(adapted_logits(base, run), abs=1e-4)


def test_an_adapter_trained_in_4_bits_merges_into_the_full_base(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    run = build_adapter(write_run(tmp_path / "run"), base, str(base), quantization_config=four_bits)
    merged = merge(run, tmp_path / "merged")
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    assert plain_logits(merged) == pytest.approx(adapted_logits(base, run), abs=1e-4)


LAYERS = {
    "LoRA": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": "all-linear", "use_rslora": True},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 4]}},
    "own head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "own embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "own of both": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "LoRA on the head": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA on the embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "one LoRA on both": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}


def random_adapter(run: Path, base: Path, **settings) -> Path:
    """An adapter with random weights in all that it trains."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load(base), LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(write_run(run))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, run)
    return run


@pytest.fixture(scope="module")
def tied(base, tmp_path_factory) -> Path:
    """The tiny model with one weight for its embeddings and its head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = shutil.copytree(base, tmp_path_factory.mktemp("tied") / "model")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
def test_whatever_an_adapter_changes_is_merged(base, tied, tmp_path, layers, is_tied):
    start = tied if is_tied else base
    run = random_adapter(tmp_path / "run", start, **LAYERS[layers])
    merged = merge(run, tmp_path / "merged")
    expected = adapted_logits(start, run)
    assert plain_logits(merged) == pytest.approx(expected, abs=1e-3)
    assert plain_logits(start) != pytest.approx(expected, abs=1e-1)
    kept = is_tied and layers not in ("own head", "own embeddings", "own of both", "LoRA on the head",
                                      "LoRA on the embeddings")  # fmt: skip
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is kept


def test_an_adapter_on_a_merged_run_is_merged_into_that(base, tmp_path):
    first = random_adapter(tmp_path / "sft", base, **LAYERS["LoRA"])
    plain = merge(first, tmp_path / "sft-merged")
    second = random_adapter(tmp_path / "grpo", plain, **LAYERS["DoRA"])
    merged = merge(second, tmp_path / "merged")
    assert plain_logits(merged) == pytest.approx(adapted_logits(plain, second), abs=1e-3)
    assert plain_logits(merged) != pytest.approx(adapted_logits(base, second), abs=1e-1)


def test_an_adapter_on_an_adapter_is_refused(base, tmp_path):
    first = random_adapter(tmp_path / "sft", base, **LAYERS["LoRA"])
    second = random_adapter(tmp_path / "grpo", base, **LAYERS["LoRA"])
    change_json(second / "adapter_config.json", base_model_name_or_path=str(first))
    with pytest.raises(InputError, match=f"{str(first)!r} is an adapter where a plain model is needed: make it one"):
        merge(second, tmp_path / "merged")
    with pytest.raises(InputError, match="grpo' is an adapter on '.*sft', which is no plain model: make it one with"):
        check_model(str(second))


def test_an_adapter_that_is_no_weights_is_refused(base, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    run = write_run(tmp_path / "run")
    get_peft_model(load(base), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(run)
    with pytest.raises(InputError, match="is an adapter of the kind PROMPT_TUNING, which no weights can hold"):
        merge(run, tmp_path / "merged")


def test_what_was_written_is_what_is_checked(base, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    run = random_adapter(tmp_path / "run", base, **LAYERS["LoRA"])
    save = LlamaForCausalLM.save_pretrained

    def save_something_else(model, folder, **keywords):
        model.lm_head.weight.data *= 2
        save(model, folder, **keywords)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", save_something_else)
    with pytest.raises(RunError, match="does not compute what base and adapter compute"):
        merge(run, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_merging_a_run_that_added_tokens(base, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(100)])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    model = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "run", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "run")
    merged = merge(tmp_path / "run", tmp_path / "merged")
    assert plain_logits(merged) == pytest.approx(logits(model), abs=1e-4)
    assert len(AutoTokenizer.from_pretrained(merged)) == len(tokenizer)


@pytest.mark.parametrize("task", TASKS)
def test_a_merge_that_changes_the_model_is_not_written(base, tmp_path, monkeypatch, task):
    from peft.tuners.lora.layer import Linear

    run = build_adapter(write_run(tmp_path / "run"), base, str(base), task)
    monkeypatch.setattr(Linear, "merge", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"does not compute what base and adapter compute \(relative difference \d"):
        merge(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merging_refuses(base, tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        merge(base, tmp_path / "merged")
    run = build_adapter(tmp_path / "run", base, str(tmp_path / "gone"))
    with pytest.raises(InputError, match="is not empty"):
        merge(run, run)
    with pytest.raises(InputError, match="gone, the base of .*run, is not here: start where its path is right"):
        merge(run, tmp_path / "merged")
    quantised = shutil.copytree(base, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    write_adapter_config(run, str(quantised))
    with pytest.raises(InputError, match="is stored quantised"):
        merge(run, tmp_path / "merged")
