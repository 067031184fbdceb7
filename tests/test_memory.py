"""What a stage is said to take, beside hand-worked numbers and measured ones, and what is said when memory ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lastmile_trl import cli, dry_run, memory, train
from lastmile_trl.errors import RunError
from lastmile_trl.evaluation import decoding
from lastmile_trl.memory import GIB
from lastmile_trl.recipe import Recipe

from .conftest import make_rows, write_jsonl

FOLDER = Path(__file__).parents[1] / "benchmarks"
LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LINEAR = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128)  # of two layers: q, k and v, o, and the MLP's three
OTHERS = 2 * 100 * 64 + 5 * 64  # embeddings, head, norms


@pytest.fixture
def recipe(tmp_path):
    """A recipe on a model of which only the config.json is there; sections are merged into it."""
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA))

    def build(method="sft", start="llama", **sections):
        values = {
            "method": method,
            "model": {"model_name_or_path": str(tmp_path / start)},
            "data": {"path": "rows.jsonl", "prompt": "{source}", "references": "target", "max_reference_tokens": 8},
            "training": {"output_dir": str(tmp_path / method), "per_device_train_batch_size": 4},
            "evaluation": {"rows": 2},
        }
        if method in ("grpo", "rloo", "ppo"):
            values["rewards"] = ["rouge"]
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return Recipe(Path("test.yaml"), values)

    return build


def parts_at(moment, recipe, **keys):
    """The bytes of each part on a CPU."""
    (found,) = [each for each in memory.moments(memory.work_of(recipe, cpu=True, **keys)) if each.moment == moment]
    return dict(found.parts)


def test_weights_and_what_is_kept_for_each_are_counted_exactly(recipe):
    parts = parts_at("stepping", recipe())
    assert parts["weights"] == 4 * (LINEAR + OTHERS)
    assert parts["gradients"] == parts["weights"] and parts["optimiser"] == 2 * parts["weights"]
    half = parts_at("stepping", recipe(model={"dtype": "bfloat16"}, training={"optim": "adamw_bnb_8bit"}))
    assert half["weights"] == 2 * (LINEAR + OTHERS)
    assert half["optimiser"] == 2 * (LINEAR + OTHERS) * (1 + 4 / 256)
    assert "optimiser" not in parts_at("stepping", recipe(training={"optim": "adafactor"}))


@pytest.mark.parametrize(
    "asked, bytes_of_a_weight",
    [
        ({"load_in_4bit": True}, 0.5 + 4 / 64),
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, 0.5 + (1 + 4 / 256) / 64),
    ],
)
def test_quantised_weights_come_with_constants_and_leave_embeddings_and_head_whole(recipe, asked, bytes_of_a_weight):
    lora = {"dtype": "bfloat16", "use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "down_proj"]}
    parts = parts_at("stepping", recipe(model=lora | asked))
    assert parts["weights"] == LINEAR * bytes_of_a_weight + 2 * OTHERS
    adapter = 2 * 4 * ((64 + 64) + (128 + 64))
    assert parts["adapter"] == 2 * adapter and parts["optimiser"] == 4 * adapter  # TRL trains it in bfloat16
    whole = parts_at("stepping", recipe(model=lora))
    assert whole["adapter"] == 4 * adapter


def test_a_reference_is_a_copy_an_adapter_or_nothing(recipe, tmp_path):
    full = {"training": {"beta": 0.1}}
    assert parts_at("stepping", recipe("grpo", **full))["reference"] == 4 * (LINEAR + OTHERS)
    assert "reference" not in parts_at("stepping", recipe("grpo"))  # TRL's beta is 0
    assert "reference" in parts_at("stepping", recipe("dpo", preferences={"chosen": "a", "rejected": "b"}))
    lora = {"model": {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]}}
    new = parts_at("stepping", recipe("grpo", **full, **lora))
    assert "reference" not in new
    first = recipe("sft", **lora)
    goes_on = recipe("grpo", "sft", **full, model={"use_peft": True})
    later = parts_at("stepping", goes_on, upcoming={first.run: first})
    assert later["adapter"] == 2 * new["adapter"] and later["optimiser"] == new["optimiser"]


def test_a_cache_holds_keys_and_values_of_all_completions_at_once(recipe):
    asked = {"gradient_accumulation_steps": 2, "max_completion_length": 200, "num_generations": 4}
    parts = parts_at("generating", recipe("grpo", training=asked, data={"max_prompt_tokens": 8}))
    token = 2 * 8 * 2 * 16 * 4  # of one layer: keys and values, 8 completions, 2 heads of 16, float32
    # With the last token all have 208, and the last layer's values were joined to a copy.
    assert parts["cache"] == 2 * token * 208 + token / 2 * 207
    assert parts["logits"] == 8 * 100 * 4 * memory.SAMPLING_COPIES


def test_ppo_has_a_critic(recipe):
    shared, copied = (parts_at("stepping", recipe("ppo", training={"critic": name})) for name in ("shared", "copy"))
    head = 64 * 64 + 2 * 64 + 1
    assert shared["optimiser"] == 8 * (LINEAR + OTHERS + head)
    assert copied["optimiser"] == 8 * (2 * (LINEAR + OTHERS) + head)


def test_only_what_is_alive_counts():
    tracker = dry_run._tracker()
    with tracker:
        first = torch.empty(1000)
        second = first * 2
        second.view(10, 100).add_(1)  # no memory of their own
        del second
        with tracker.counting("logits"):
            third = torch.empty(500)
    assert tracker.segments == [{"activations": 8000}]
    assert tracker.alive == {"activations": 4000, "logits": 2000}
    del first, third
    assert not tracker.alive.total()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_few_layers_say_what_many_take(recipe, tmp_path, checkpointing):
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 7}))
    work = memory.work_of(recipe(training={"gradient_checkpointing": checkpointing}), cpu=True)
    whole = max(dry_run.training(work, 7), key=lambda parts: parts.total())
    few = dry_run.by_layers(work, dry_run.training)
    assert few.total() == pytest.approx(whole.total(), rel=0.01)
    assert whole.total() > 1.05 * max(parts.total() for parts in dry_run.training(work, 4))


def test_no_pass_is_larger_than_without_checkpointing(recipe):
    plain, again = (parts_at("training", recipe(training={"gradient_checkpointing": on})) for on in (False, True))
    assert again["activations"] < 0.7 * plain["activations"] and again["weights"] == plain["weights"]


def measured():
    rows = json.loads(max(FOLDER.glob("results/memory-*.json")).read_text())["rows"]
    first = {row["name"].split()[1]: row for row in reversed(rows)}.values()  # of each method
    return [pytest.param(row, id=row["name"], marks=[] if row in first else pytest.mark.slow) for row in rows]


@pytest.mark.parametrize("row", measured())
def test_estimates_are_near_what_was_measured(monkeypatch, row):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "memory", raising=False)
    import memory as benchmark

    assert benchmark.estimated(row["name"]) == pytest.approx(row["measured_gib"], rel=0.15)


# --- what is said --------------------------------------------------------------------------------------------------


def test_a_note_says_what_is_taken_and_what_is_free(recipe, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda cpu: 24 * GIB)
    stage = recipe(data={"path": "runs/pairs"}, training={"per_device_train_batch_size": 64})
    note, warning = memory.told(stage, cpu=True, upcoming={Path("runs/pairs"): None})
    assert warning is None
    assert note.startswith("About ") and note.endswith("; this machine has 24.0 GiB free.")
    assert "GiB on each device while training: activations 0." in note


def test_a_warning_names_the_change_that_helps_and_its_number(recipe, monkeypatch):
    stage = recipe(training={"gradient_checkpointing": True, "per_device_train_batch_size": 16})
    halved = memory.estimate(
        recipe(training={"gradient_checkpointing": True, "per_device_train_batch_size": 8}), cpu=True
    )
    monkeypatch.setattr(memory, "free_bytes", lambda cpu: halved.total + 1e6)
    monkeypatch.setattr(memory, "_lengths", lambda *_: (512, 8))
    _, warning = memory.told(stage, cpu=True, upcoming={Path("rows.jsonl"): None})
    assert warning.endswith(
        "With training.per_device_train_batch_size=8 training.gradient_accumulation_steps=2 it is about "
        f"{halved.total / GIB:.1f} GiB."
    )
    monkeypatch.setattr(memory, "free_bytes", lambda cpu: 100)
    _, warning = memory.told(stage, cpu=True, upcoming={Path("rows.jsonl"): None})
    assert "With " in warning  # what helps most, though it does not suffice
    monkeypatch.setattr(memory, "free_bytes", lambda cpu: 2 * (halved.total + 1e6))
    assert memory.told(stage, processes=2, cpu=True, upcoming={Path("rows.jsonl"): None})[1]


def test_nothing_is_said_of_a_model_that_cannot_be_known(recipe):
    first = recipe("sft", model={"model_name_or_path": "synthetic:tiny"})
    second = recipe("grpo", "sft")
    assert not memory.can_be_told(first)
    assert not memory.can_be_told(second, {first.run: first}) and not memory.can_be_told(second, {first.run})
    known = recipe("sft")
    assert memory.can_be_told(second, {known.run: known})
    assert memory.estimate(recipe(model={"model_name_or_path": "synthetic:tiny"})) is None


def test_a_small_model_is_seen_by_its_weights(recipe, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    stage = recipe("sft", model={"model_name_or_path": str(folder)})
    assert not memory.is_small(stage)  # its weights are not known
    (folder / "model.safetensors").write_bytes(b"1234")
    assert memory.is_small(stage)
    (folder / "adapter_config.json").touch()
    assert not memory.is_small(stage)  # the model is elsewhere
    (folder / "adapter_config.json").unlink()
    os.truncate(folder / "model.safetensors", 100 * 2**20)
    assert not memory.is_small(stage)


def test_lengths_are_those_of_the_longest_rows(tiny_model_folder, tokenizer, tmp_path):
    from lastmile_trl.data import load

    rows = write_jsonl(tmp_path / "rows.jsonl", [*make_rows(31), {"id": 31, "source": "cat " * 60, "target": "a dog"}])
    values = {
        "method": "sft",
        "model": {"model_name_or_path": str(tiny_model_folder)},
        "data": {"path": str(rows), "prompt": "{source}=>", "references": "target", "held_out": 2},
        "training": {"output_dir": "runs/x"},
    }
    stage = Recipe(Path("test.yaml"), values)
    train_rows = load(stage.data).train.to_list()
    prompts = [len(tokenizer(f"{row['source']}=>")["input_ids"]) for row in train_rows]
    answers = [len(tokenizer(row["references"][0])["input_ids"]) + 1 for row in train_rows]
    assert memory._lengths(stage, (), load(stage.data)) == (max(prompts), max(answers))
    short = Recipe(Path("test.yaml"), {**values, "data": {**values["data"], "max_prompt_tokens": 20}})
    assert memory._lengths(short, (), load(short.data))[0] == 20


def test_the_device_with_least_counts(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\nimport sys\nprint(24000 if '--id=0' in sys.argv else '24000\\n8000')\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert memory.free_bytes(cpu=False) == 8000 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert memory.free_bytes(cpu=False) == 24000 * 2**20
    tool.unlink()
    assert memory.free_bytes(cpu=False) is None


def test_check_shows_it(tiny_model_folder, rows_file, tmp_path, capsys):
    file = tmp_path / "stage.yaml"
    file.write_text(
        f"method: sft\nmodel: {{model_name_or_path: {tiny_model_folder}}}\n"
        f"data: {{path: {rows_file}, prompt: '{{source}} =>', references: target, held_out: 8}}\n"
        f"training: {{output_dir: {tmp_path / 'run'}}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(file), "--accelerate", "cpu"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "  - About 0." in printed or "  - About 1." in printed
    assert "GiB on each device while" in printed and "; this machine has" in printed


# --- what a run says that ran out of it ----------------------------------------------------------------------------


def full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def place_generate(patch):
    from transformers import GenerationMixin

    patch.setattr(GenerationMixin, "_sample", full)


def place_backward(patch):
    backward, calls = torch.Tensor.backward, []

    def first_full(*args, **kwargs):
        calls.append(args)
        return full() if len(calls) == 1 else backward(*args, **kwargs)

    patch.setattr(torch.Tensor, "backward", first_full)


def place_step(patch):
    patch.setattr(torch.optim.AdamW, "step", full)


def place_evaluation(patch):
    patch.setattr(decoding, "decode", full)


def place_loading(patch):
    patch.setattr(train.models, "load_model", lambda *_, **__: full())


@pytest.mark.parametrize(
    "method, place, said, change",
    [
        ("grpo", place_generate, "while generating (step 1),", "training.per_device_train_batch_size=4"),
        ("sft", place_backward, "in the backward pass (step 1),", "training.gradient_checkpointing=true"),
        ("sft", place_step, "in the optimiser's step (step 1),", "training.gradient_checkpointing=true"),
        ("sft", place_evaluation, "while evaluating,", "evaluation.batch_size=32"),
        ("sft", place_loading, "while the model was loaded,", "training.gradient_checkpointing=true"),
    ],
)
def test_a_run_says_where_it_ran_out_and_what_to_change(
    tiny_model_folder, rows_file, tmp_path, monkeypatch, method, place, said, change
):
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "save_strategy": "no"}
    training |= {"per_device_train_batch_size": 8, "gradient_checkpointing": False}
    values = {
        "method": method,
        "model": {"model_name_or_path": str(tiny_model_folder)},
        "data": {"path": str(rows_file), "prompt": "{source} =>", "references": "target", "held_out": 8},
        "training": training | ({"max_completion_length": 8, "num_generations": 4} if method == "grpo" else {}),
        "evaluation": {"rows": 64, "batch_size": 64, "max_new_tokens": 4},
    }
    if method == "grpo":
        values["rewards"] = ["rouge"]
    place(monkeypatch)
    with pytest.raises(RunError) as failed:
        train.run(Recipe(Path("test.yaml"), values))
    assert str(failed.value).startswith(f"Out of memory {said} at ")
    assert f"GiB. With {change}" in str(failed.value) and str(failed.value).endswith(" GiB.")


def test_other_errors_are_left_as_they_are(recipe):
    with pytest.raises(RuntimeError, match="shapes"), memory.explained(recipe(), cpu=True):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.slow
def test_an_allocator_that_refuses_is_heard(tiny_model_folder, rows_file, tmp_path):
    """With an address space that holds what is imported and no batch of that size."""
    script = f"""
import resource, sys
from pathlib import Path
from lastmile_trl import train
from lastmile_trl.errors import RunError
from lastmile_trl.recipe import Recipe

def recipe(run, batch):
    data = {{"path": {str(rows_file)!r}, "prompt": "{{source}} =>", "references": "target", "held_out": 8}}
    training = {{"output_dir": run, "max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": batch}}
    return Recipe(Path("test.yaml"), {{"method": "sft", "model": {{"model_name_or_path": {str(tiny_model_folder)!r}}},
        "data": data, "training": training, "evaluation": {{"rows": 2, "max_new_tokens": 4}}}})

train.run(recipe({str(tmp_path / "small")!r}, 1))
line = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
room = int(line.split()[1]) * 1024 + 24 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    train.run(recipe({str(tmp_path / "large")!r}, 24))
except RunError as error:
    sys.exit(f"said: {{error}}")
"""
    quiet = {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | quiet)
    assert done.returncode == 1 and "said: Out of memory in the " in done.stderr, done.stderr[-2000:]
