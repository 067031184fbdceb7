"""The benchmarks run, judge their figures rightly, and their README shows the figures that are stored."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Import a script of the folder, which is no package."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return importlib.import_module


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_readme_shows_the_stored_figures(benchmark):
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == benchmark("readme").render()


def test_the_page_on_memory_shows_the_stored_figures(benchmark):
    assert (FOLDER.parent / "docs" / "memory.md").read_text(encoding="utf-8") == benchmark("readme").memory_page()


def test_a_ratio_is_the_median_of_those_of_the_rounds(benchmark):
    trainers = benchmark("trainers")
    ppo, rloo = trainers.Case("PPO", "full", 4), trainers.Case("RLOO", "full", 4)
    times = [{ppo: first, rloo: second} for first, second in [(6.0, 2.0), (5.0, 10.0), (4.0, 4.0)]]
    row, _ = trainers.rows_of({ppo: 110, rloo: 100}, times)
    assert row["ratios"]["RLOO"] == {"time": 1.0, "memory": 1.1}
    assert (row["seconds_per_rollout"], row["seconds_per_step"], row["megabytes"]) == (5.0, 1.25, 110)


def test_bars_are_held_against_the_most_epochs(benchmark):
    trainers = benchmark("trainers")
    fine, bad = {"time": 1.05, "memory": 1.0}, {"time": 1.06, "memory": 1.0}
    rows = [
        {"method": "PPO", "tuning": "full", "epochs": epochs, "ratios": {"RLOO": ratios}}
        for epochs, ratios in [(1, bad), (4, fine)]
    ]
    assert [(bar["what"], bar["holds"]) for bar in trainers.bars_of(rows)] == [("time", True), ("memory", True)]
    rows[1]["ratios"]["RLOO"] = bad
    assert [(bar["what"], bar["holds"]) for bar in trainers.bars_of(rows)] == [("time", False), ("memory", True)]


def test_only_a_run_that_was_measured_fits(benchmark):
    gpu = benchmark("gpu")
    large = {"model": "8B", "method": "PPO"}
    assert gpu.fit_of([{"model": "1B", "method": "PPO", "reserved_gb": 3}, large]) is None
    assert gpu.fit_of([large | {"reserved_gb": 23.9}])["holds"]
    assert not gpu.fit_of([large | {"reserved_gb": 24.0}])["holds"]
    assert not gpu.fit_of([large | {"error": "out of memory"}])["holds"]


@pytest.mark.parametrize("method, tuning", [("PPO", "full"), ("RLOO", "LoRA")])
def test_a_trainer_is_measured(benchmark, tmp_path, method, tuning):
    """With the number of optimiser steps and of tokens that all must have, which the script checks."""
    trainers = benchmark("trainers")
    trainers.save_model(str(tmp_path), trainers.QUICK)
    measured = trainers.measure(trainers.Case(method, tuning, 4), trainers.QUICK, str(tmp_path))
    assert measured["seconds"] > 0


def test_an_estimate_stands_beside_what_a_gpu_took(benchmark):
    gpu = benchmark("gpu")
    large = gpu.estimate_of("8B", "PPO", gpu.Work(), "cuda")
    assert 6.5 < large < gpu.FITS[2]  # 7 billion weights in 4 bits, and 1 billion in embeddings and head in 16
    row = {"model": "8B", "method": "PPO", "error": "out of memory", "estimated_gb": large}
    assert f"| 8B | PPO | {large:.1f} | out of memory |" in gpu.markdown({"rows": [row], "fit": None})


def test_a_model_in_4_bits_is_what_transformers_would_load(benchmark, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    gpu = benchmark("gpu")
    made = gpu.random_model("tiny", "cpu")
    LlamaForCausalLM(LlamaConfig(**gpu.MODELS["tiny"])).save_pretrained(tmp_path)
    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **settings)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=four_bits, dtype=torch.float32)

    def weights(model):
        return {
            name: (type(weight), weight.shape, weight.dtype, weight.requires_grad, hasattr(weight, "quant_state"))
            for name, weight in model.named_parameters()
        }

    assert weights(made) == weights(loaded)
    for name, buffer in loaded.named_buffers():
        torch.testing.assert_close(made.get_buffer(name), buffer)
    assert made.is_loaded_in_4bit and made.is_quantized and made.lm_head.weight is made.model.embed_tokens.weight


def test_differences_are_found_as_often_as_they_should_be(benchmark):
    significance = benchmark("significance")
    assert significance.spread_of(0, 3, 50) == 0
    assert significance.spread_of(1, 2, 50) ** 2 / 2 == pytest.approx(significance.error_of_rows(2, 50) ** 2)
    rows = [
        {"seeds": seeds, "found": {"0": none, "3": 10 * none, "5": 0.9}}
        for seeds, none in [(2, 0.01), (3, 0.03), (2, 0.05), (5, 0.04)]
    ]
    lines = significance.seeds_table({"of_seeds": rows}).splitlines()
    assert lines[2:4] == ["| 2 | 1 to 5 % | 10 to 50 % | 90 to 90 % |", "| 3 | 3 to 3 % | 30 to 30 % | 90 to 90 % |"]


def test_what_follows_decoding_takes_little_time(benchmark):
    """A third of the rows that the stored figures are of, with room for a slow machine."""
    seconds = benchmark("evaluation").measure(300)
    assert sum(seconds.values()) < 8, seconds


@pytest.mark.slow
def test_the_trainers_script_runs(tmp_path):
    file = tmp_path / "trainers.json"
    methods = ["GRPO", "RLOO", "PPO", "PPO, joint critic", "PPO, copied critic"]
    words = ["--tunings", "full", "--epochs", "4", "--methods", *methods]
    printed = run(str(FOLDER / "trainers.py"), "--quick", "--json", str(file), *words)
    results = json.loads(file.read_text())
    assert [row["method"] for row in results["rows"]] == methods
    assert len(results["bars"]) == 3 and "| time of PPO / GRPO, full |" in printed


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu(tmp_path):
    pytest.importorskip("bitsandbytes")
    file = tmp_path / "gpu.json"
    run(str(FOLDER / "gpu.py"), "--tiny", "--device", "cpu", "--json", str(file))
    results = json.loads(file.read_text())
    assert [row["method"] for row in results["rows"]] == ["RLOO", "GRPO", "PPO"]
    assert (
        all(row["estimated_gb"] > 0 and row["updated_tokens_per_second"] > 0 for row in results["rows"])
        and results["fit"] is None
    )
