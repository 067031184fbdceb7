"""Adapters merged into their base: what the plain model computes is what both computed together."""

import json
import shutil
from pathlib import Path

import pytest

from lastmile_trl.card import model_card
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.merge import merge
from lastmile_trl.rewards.model import Model

from .run_fixture import (
    REWARD,
    adapted_logits,
    build_adapter,
    change_json,
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
    with pytest.raises(InputError, match="gone, the base of .*run, cannot be loaded"):
        merge(run, tmp_path / "merged")
    quantised = shutil.copytree(base, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    write_adapter_config(run, str(quantised))
    with pytest.raises(InputError, match="is stored quantised"):
        merge(run, tmp_path / "merged")
