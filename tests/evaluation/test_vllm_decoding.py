"""Decoding with vLLM, of which a stand-in has the names and defaults: what it is asked, and what comes of it."""

import json
from pathlib import Path

import pytest
import yaml

from lastmile_trl import models, outputs, preflight, train
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.evaluation.vllm_decoding import AT_ONCE, Engines
from lastmile_trl.recipe import Recipe
from tests import fake_vllm
from tests.conftest import write_jsonl

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w4"]


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A package of that name, in which nothing has happened yet."""
    (tmp_path / "site" / "vllm" / "lora").mkdir(parents=True)
    (tmp_path / "site" / "vllm" / "__init__.py").write_text("from tests.fake_vllm import LLM, SamplingParams\n")
    (tmp_path / "site" / "vllm" / "lora" / "__init__.py").touch()
    (tmp_path / "site" / "vllm" / "lora" / "request.py").write_text("from tests.fake_vllm import LoRARequest\n")
    about = tmp_path / "site" / "vllm-0.30.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n")
    import trl  # noqa: F401  # which would look for more of it
    from trl import ModelConfig  # noqa: F401

    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for happened in (fake_vllm.started, fake_vllm.stopped, fake_vllm.asked):
        happened.clear()
    yield fake_vllm
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def base(new_model, tokenizer, tmp_path):
    """A model that ends some of its texts itself, by an end token that only its generation settings know."""
    model = new_model()
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def adapter(base, tokenizer, tmp_path):
    """Makes an adapter of a rank on the base."""

    def make(name, rank=4, **lora):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base)
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM", **lora))
        noise = torch.Generator().manual_seed(rank)
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.data = torch.randn(weight.shape, generator=noise) * 0.4
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def said(loaded, path, section=None, **settings):
    decoder = outputs.Decoder(outputs.Model(Path(path), section or {}), loaded=loaded)
    return decoder.decode(PROMPTS, "it", max_new_tokens=8, **settings)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9, "seed": 3}])
def test_texts_tokens_and_ends_are_those_of_transformers(vllm, base, adapter, settings):
    ended = set()
    for path in (base, adapter("a")):
        expected = said(models.Loaded(), path, **settings)
        assert said(Engines(), path, **settings) == expected
        ended |= {output.ended for output in expected}
    assert ended == {True, False}
    asked = vllm.asked[0]
    assert [prompt["prompt_token_ids"] for prompt in asked["prompts"]][0] == [9, 10, 11, 12, 13]  # the longest first
    assert [params.stop_token_ids for params in asked["params"]] == [[2, 7]] * 4
    seeds = [params.seed for params in asked["params"]]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    for key, value in {"temperature": 0.0, "top_p": 1.0, **settings}.items():
        assert key == "seed" or {getattr(params, key) for params in asked["params"]} == {value}


def test_adapters_take_turns_on_one_engine_with_room_for_them(vllm, base, adapter):
    small, large = adapter("small"), adapter("large", rank=20)
    engines = Engines()
    plain = {path: said(models.Loaded(), path) for path in (small, large, base)}
    for path in (small, large, small, base):
        assert said(engines, path) == plain[path]
    assert [engine["max_lora_rank"] for engine in vllm.started] == [8, 32]
    assert all((engine["model"], engine["enable_lora"], engine["max_model_len"]) == (base, True, -1)
               for engine in vllm.started)  # fmt: skip
    loras = [asked["lora"] for asked in vllm.asked]
    assert [lora and lora.lora_path for lora in loras] == [small, large, small, None]
    assert loras[0] == loras[2] and loras[0].lora_int_id != loras[1].lora_int_id
    assert vllm.stopped == vllm.started[:1]
    engines.release()
    engines.release()
    assert vllm.stopped == vllm.started
    said(Engines(), base, {"dtype": "bfloat16"})
    assert vllm.started[2]["enable_lora"] is False and vllm.started[2]["dtype"] == "bfloat16"


def test_without_generation_settings_the_models_own_end_token_counts(vllm, base):
    Path(base, "generation_config.json").unlink()
    assert said(Engines(), base) == said(models.Loaded(), base)
    assert vllm.asked[0]["params"][0].stop_token_ids == [2]


def test_what_vllm_cannot_do_is_said(vllm, base, adapter, monkeypatch):
    with pytest.raises(InputError, match="decodes bases as they are, and .* is loaded in 4 or 8 bits"):
        said(Engines(), base, {"load_in_4bit": True})
    config = Path(adapter("a"), "adapter_config.json")
    plain = json.loads(config.read_text())
    for keys, words in (({"r": 600}, "peft_type LORA and r 600"), ({"peft_type": "IA3"}, "peft_type IA3 and r 4"),
                        ({"bias": "all"}, "bias"), ({"rank_pattern": {"up_proj": 2}}, "rank_pattern")):  # fmt: skip
        config.write_text(json.dumps({**plain, **keys}))
        with pytest.raises(InputError, match=f"plain LoRA of rank 512 at most, and .* has {words}: set it to false."):
            said(Engines(), config.parent)
    assert not vllm.started
    monkeypatch.setattr(vllm.LLM, "room", 10)
    with pytest.raises(RunError, match="had no room for a prompt and 8 tokens after it"):
        said(Engines(), base)


@pytest.fixture
def evaluation(adapter, base, tmp_path):
    """The evaluation of a run of SFT, beside best_of_n and the base."""
    rows = [{"id": n, "source": f"w{n} w{n + 3}", "target": f"w{n}", "references": [f"w{n}"]} for n in range(12)]
    data = {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "prompt": "{source}", "references": "target",
            "held_out": 5}  # fmt: skip
    run = Path(adapter("sft"))
    stored = {"method": "sft", "model": {"model_name_or_path": base, "use_peft": True}, "data": data,
              "training": {"output_dir": str(run)}}  # fmt: skip
    (run / "recipe.yaml").write_text(yaml.safe_dump(stored))

    def build(**keys):
        asked = {"runs": [str(run)], "max_new_tokens": 6, "samples": 2, **keys}
        values = {"method": "evaluate", "data": data, "evaluation": asked,
                  "training": {"output_dir": str(tmp_path / "compared")}}  # fmt: skip
        return Recipe(Path("test.yaml"), values)

    return build


def test_an_evaluation_with_vllm_keeps_its_outputs_apart(vllm, evaluation):
    baselines = ["base", {"best_of_n": {"n": 2, "rewards": ["repetition"]}}]
    plain, fast = evaluation(baselines=baselines), evaluation(baselines=baselines, use_vllm=True)
    results = []
    for stage in (plain, fast, fast):
        train.run(stage)
        results.append(json.loads((stage.run / "evaluation.json").read_text()))
    assert results[1] == results[0] == results[2]  # the words are those of transformers here
    assert len(list((Path(plain.evaluation.runs[0]) / "outputs").iterdir())) == 4  # greedy and sampled, of each
    assert len(vllm.started) == 2 and vllm.stopped == vllm.started  # the base is no run, and keeps nothing
    assert [len(asked["prompts"]) for asked in vllm.asked] == [5, 10, 5, 10, 5, 10]


def test_many_rows_are_kept_part_by_part(vllm, base, monkeypatch):
    from lastmile_trl.evaluation import vllm_decoding

    monkeypatch.setattr(vllm_decoding, "AT_ONCE", 3)
    found = []
    output = said(Engines(), base, batch_size=2, known={0: outputs_of("x")}, on_outputs=found.append)
    assert AT_ONCE == 512 and [sorted(rows) for rows in found] == [[1, 2, 3]] and output[0] == outputs_of("x")


def outputs_of(text):
    from lastmile_trl.evaluation.decoding import Output

    return Output(text, [5], False)


def problems(stage):
    return " ".join(preflight.check(stage).problems)


def test_what_is_refused_before_an_engine_starts(vllm, evaluation, monkeypatch, tmp_path):
    fast = evaluation(use_vllm=True)
    assert problems(fast) == "evaluation.use_vllm needs a GPU, and this machine shows none: set it to false."
    monkeypatch.setattr(preflight, "_has_gpu", lambda: True)
    assert problems(fast) == ""
    assert "likelihood needs the probabilities of given texts" in problems(evaluation(use_vllm=True, likelihood=True))
    stored = Path(fast.evaluation.runs[0], "recipe.yaml")
    values = yaml.safe_load(stored.read_text())
    training = {**values, "evaluation": {"use_vllm": True}, "training": {"output_dir": str(tmp_path / "new")}}
    assert "is for runs that are finished" in problems(Recipe(Path("test.yaml"), training))
    values["model"]["load_in_8bit"] = True
    stored.write_text(yaml.safe_dump(values))
    assert "is loaded in 4 or 8 bits" in problems(fast)


def test_vllm_that_is_not_installed_is_refused(evaluation, monkeypatch):
    monkeypatch.setattr(preflight, "_has_gpu", lambda: True)
    assert problems(evaluation(use_vllm=True)) == (
        "evaluation.use_vllm needs the package vllm, which is not installed: pip install 'lastmile-trl[vllm]'."
    )
