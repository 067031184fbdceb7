"""Run folders as `lastmile run` leaves them, made by hand, with adapters on the tiny model."""

import json
import shutil
from pathlib import Path

import yaml

from lastmile_trl.evaluation.acceptance import Sample, Scored, acceptance

BASE = "alice/tiny"
RECIPE = {
    "method": "grpo",
    "model": {"model_name_or_path": BASE, "use_peft": True},
    "data": {"path": "acme/notes", "prompt": "Shorten this:\n{note}\nShort:", "references": "summary"},
    "rewards": [
        {"rouge": {"variant": "rougeL", "weight": 0.7}},
        "length",
        {"mine.py:f": {"name": "kind", "weight": 2}},
    ],
    "training": {"output_dir": "/home/somebody/runs/grpo", "learning_rate": 1e-05, "max_completion_length": 40},
}
ENVIRONMENT = {
    "versions": {"python": "3.11", "trl": "1.16.0"},
    "seed": 7,
    "device": "cpu",
    "processes": 2,
    "seconds": 9,
}


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "rows": 3}


def result(run, decoding, postprocessed, mean):
    metrics = {"rouge/rougeL": interval(mean), "faithfulness": None}
    entry = {"run": run, "decoding": decoding, "postprocessed": postprocessed, "metrics": metrics}
    return entry | {"difference": None, "difference_to_postprocessed": None}


EVALUATION = {
    "version": 1,
    "rows": 3,
    "baseline": "sft",
    "metrics": {"rouge/rougeL": {"rewarded": True}, "faithfulness": {"rewarded": False}},
    "results": [
        result("sft", "greedy", False, 0.25),
        result("run", "greedy", False, 0.5),
        result("run", "greedy", True, 0.625),
        result("run", "sampled", False, 0.375),
    ],
    "examples": [{"prompt": "the diary of a user", "references": [], "outputs": []}],
}

REWARD = {key: RECIPE[key] for key in ("model", "data")} | {
    "method": "reward",
    "preferences": {"negatives": {"shuffled": 2, "model_sample": {"per_row": 1, "quantile": 0.5}}},
    "training": {"output_dir": "runs/reward"},
}


def judged(**require) -> dict:
    """Three of four pairs ranked right, one in two of a category whose name is as odd as a row may hold."""
    margins = {"shuffled": [2.0, 4.0], "odd\n|one": [1.0, -3.0]}
    pairs = [
        Scored(category, margin, 0.0, 3, 3, "the diary of a user", f"chosen {margin}", "the diary rejected")
        for category, of_category in margins.items()
        for margin in of_category
    ]
    sample = Sample("sft", "greedy", "the diary of a user", "the diary told", 1.5, 1.0, 3, 3, 0.25)
    return acceptance(pairs, [sample], metric="rouge/rougeL", require=require)


def write_run(folder: Path, recipe: dict = RECIPE, start: str | None = None, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe | changes | ({"model": {"model_name_or_path": start}} if start else {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder


def write_adapter_config(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def build_adapter(run: Path, base: Path, base_name: str, task: str = "CAUSAL_LM", **loading) -> Path:
    """A LoRA that starts from random weights, so that it changes what the base computes, and is trained for a step."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load(base, task, **loading)
    torch.manual_seed(0)
    if task == "SEQ_CLS":
        torch.nn.init.normal_(model.score.weight, std=0.3)  # large enough to tell texts and adapters apart
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type=task)
    model = get_peft_model(model, lora)
    tokens = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=tokens, labels=tokens if task == "CAUSAL_LM" else torch.ones(1)).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(run)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, run)
    return run


def load(folder: Path, task: str = "CAUSAL_LM", **loading):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if task == "CAUSAL_LM":
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **loading)
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto", num_labels=1, **loading)


def logits(model) -> list[float]:
    import torch

    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[3, 4, 5, 6]])).logits.float().flatten().tolist()


def adapted_logits(base: Path, run: Path, task: str = "CAUSAL_LM") -> list[float]:
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(load(base, task), run))


def plain_logits(folder: Path, task: str = "CAUSAL_LM") -> list[float]:
    return logits(load(folder, task))
