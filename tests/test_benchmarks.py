"""The benchmarks run, judge their figures rightly, and their README shows the figures that are stored."""

import importlib
import json
import math
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


def test_bars_of_rewards_are_those_of_ours(benchmark):
    compared = [
        {"metric": "Lsum", "tokens": tokens, "least_ratio": least, "ours": {"ratio": ours}, "peer": {"ratio": 99}}
        for tokens, least, ours in [(30, None, 1), (120, 8, 8.0), (500, 40, 39.9)]
    ]
    bars = benchmark("rewards").bars_of(compared, {"ms": 101, "most_ms": 100})
    assert [(bar["what"], bar["holds"]) for bar in bars] == [
        ("Lsum of 120 tokens", True),
        ("Lsum of 500 tokens", False),
        ("the rewards of a step, ms", False),
    ]
    missed = "**missed**: Lsum of 500 tokens: 39.9, the rewards of a step, ms: 101."
    assert benchmark("readme").verdict({"bars": bars}) == f"1 of 3 bars hold; {missed}"
    assert benchmark("readme").verdict({"bars": bars[:1]}) == "1 of 1 bars hold."


def test_values_that_are_off_are_told_and_ours_may_not_be(benchmark):
    largest_difference = benchmark("rewards").largest_difference
    right, near = [(0.5, 1.0), (0.0, 0.25)], [(0.5, 1.0), (2**-21, 0.25)]
    assert (largest_difference("peer", near, right), largest_difference("ours", right, right)) == (2**-21, 0)
    for name, values in [("ours, new stems", near), *(("peer", [(0.5, 1.0), (off, 0.25)]) for off in (0.1, math.nan))]:
        with pytest.raises(SystemExit, match=f"{name} returns"):
            largest_difference(name, values, right)


@pytest.mark.parametrize("peer", ["rouge-score-rs", "torchmetrics", "evaluate"])
def test_a_peer_is_asked_for_the_same_as_rouge_score(benchmark, peer):
    rewards = benchmark("rewards")
    pytest.importorskip(peer.replace("-", "_"))
    variants, texts = ("rouge1", "rougeL"), (["the cats sat", "a dog"], ["the cat sat", "one dog ran"])
    f = [1.0, 0.4]  # of the second, 1 of 2 and of 3 tokens
    assert rewards.rouge_score(variants)(*texts) == [(value, value) for value in f]
    assert rewards.PEERS[peer](variants)(*texts) == [pytest.approx((value, value)) for value in f]


def test_the_time_of_a_start_is_the_cpu_s_and_what_one_waits(benchmark, tmp_path):
    start = benchmark("startup").start
    cpu, waited = start("python -c __import__('time').sleep(0.5)", str(tmp_path))
    working, _ = start("python -c sum(range(2*10**7))", str(tmp_path))
    assert cpu < 0.5 < waited and cpu + 0.1 < working


def test_what_the_readme_says_in_short_is_what_was_measured(benchmark, tmp_path, monkeypatch):
    """Also where a peer is faster."""
    readme = benchmark("readme")
    monkeypatch.setattr(readme, "FOLDER", tmp_path)
    figures = [(10, 20, 1.1, 0.0), (40, 10, 0.9, 1e-8), (30, 45, 1.0, 0.0)]
    compared = [
        {
            **{"metric": "R1", "tokens": 30, "least_ratio": None, "rouge_score": {"ratio": 1, "off": 0.0}},
            "ours": {"ratio": ours, "off": 0.0},
            "ours, new stems": {"ratio": ours / 10, "off": 0.0},
            "rouge-score-rs": {"ratio": compiled, "off": 0.0},
            "torchmetrics": {"ratio": slow, "off": off},
        }
        for ours, compiled, slow, off in figures
    ]
    step = {"groups": 2, "completions": 8, "tokens": 120, "ms": 7.4}
    (tmp_path / "results").mkdir()
    (tmp_path / "results/rewards-2026-01-01.json").write_text(json.dumps({"comparisons": compared, "step": step}))
    said = readme.short_of_rewards()
    assert (said["least_ours"], said["most_ours"]) == ("10", "40")
    assert (said["least_new"], said["most_new"]) == ("1", "4")
    assert (said["least_slow"], said["most_slow"]) == ("0.9", "1.1")
    assert said["faster"] == "2 of 3 cases, by up to 2.0 times"
    assert said["slower"] == "1 of 3 cases, by up to 4.0 times"
    assert (said["exact"], said["near"]) == ("ours, rouge-score-rs", "torchmetrics")
    assert (said["completions"], said["step_ms"]) == ("16", "7")

    rows = [
        {"method": method, "tuning": tuning, "epochs": epochs}
        | {"ratios": {other: {"time": time + epochs, "memory": time} for other in ("RLOO", "PPO of TRL 1.12")}}
        for method, time in [("PPO", 0.5), ("PPO, copied critic", 0.75)]
        for tuning in ("full", "LoRA")
        for epochs in (4, 1)
    ]
    (tmp_path / "results/trainers-2026-01-01.json").write_text(json.dumps({"rows": rows}))
    said = readme.short_of_trainers()
    assert (said["time_rloo"], said["time_once"]) == ("4.50", "1.50")
    assert (said["memory_old"], said["time_copied"]) == ("0.50", "4.75")


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
def test_all_peers_are_measured_in_one_run(benchmark, tmp_path, monkeypatch):
    """Next to no work, all of whose figures the README can show."""
    peers, readme = benchmark("peers"), benchmark("readme")
    (tmp_path / "results").mkdir()
    bars = peers.measure(tmp_path / "results", quick=True)
    assert [bar["what"] for bar in bars] == [
        "the rewards of a step, ms",
        *("time", "memory"),
        *("lastmile --help, s", "lastmile check tiny.yaml, s"),
    ]
    monkeypatch.setattr(readme, "FOLDER", tmp_path)
    assert "| R1+R2+L | 30 |" in readme.rewards_section()
    assert "| full, 4 | PPO |" in readme.trainers_section()
    assert "| `lastmile check 1b.yaml` |" in readme.startup_section()


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
