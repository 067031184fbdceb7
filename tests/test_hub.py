"""Cards, merging, and pushes through the real Hub client to a hub on this machine."""

import contextlib
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lastmile_trl import hub
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.evaluation.acceptance import Sample, Scored, acceptance, markdown
from lastmile_trl.rewards.model import Model

from .fakehub import FakeHub, User

TOKEN = "hf_" + "Alice0" * 6
READER = "hf_" + "Reader" * 6
STRANGER = "hf_" + "Carol0" * 6
BASE = "alice/tiny"
TASKS = ["CAUSAL_LM", "SEQ_CLS"]
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


# --- the card ------------------------------------------------------------------------------------------------------


def test_card_says_what_the_run_is_and_how_it_was_made(tmp_path):
    run = write_adapter_config(write_run(tmp_path / "run"), BASE)
    card = hub.card(run, repo="me/short")
    assert metadata(card) == {
        "base_model": BASE,
        "datasets": ["acme/notes"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lastmile-trl", "trl", "grpo"],
    }
    for line in (
        "# me/short",
        "A LoRA adapter, trained by reinforcement learning (GRPO) with lastmile_trl.",
        "- **Start:** [alice/tiny](https://huggingface.co/alice/tiny)",
        "| rouge | 0.7 | variant=rougeL |",
        "| length | 1.0 | defaults |",
        "| kind (mine.py:f) | 2 | defaults |",
        "Shorten this:",
        "{note}",
        "This model was not evaluated.",
        'model = AutoPeftModelForCausalLM.from_pretrained("me/short")',
        "output = model.generate(**inputs, max_new_tokens=40, do_sample=False)",
        "  learning_rate: 1.0e-05",
        "Made with python 3.11, trl 1.16.0; seed 7; on 2 × cpu; 9 seconds.",
    ):
        assert line in card.splitlines(), line


def test_card_of_a_merged_and_of_a_full_model(tmp_path):
    merged = hub.card(write_run(tmp_path / "merged"))
    assert metadata(merged)["library_name"] == "transformers"
    assert (
        "A language model, trained with LoRA by reinforcement learning (GRPO) and merged into plain weights," in merged
    )
    messages = {"path": "acme/notes", "messages": [{"role": "user", "content": "{note}"}]}
    full = hub.card(write_run(tmp_path / "full", start=BASE, method="sft", rewards=[], data=messages))
    assert "A language model, trained by supervised fine-tuning (SFT) with lastmile_trl." in full
    assert 'model = AutoModelForCausalLM.from_pretrained("full")' in full
    assert "apply_chat_template" in full and "- role: user" in full and "| reward |" not in full


@pytest.mark.parametrize(
    ("start", "base", "said"),
    [
        ("acme/model", "acme/model", "[acme/model](https://huggingface.co/acme/model)"),
        ("runs/sft", "acme/model", "`runs/sft`, which started from [acme/model](https://huggingface.co/acme/model)"),
        ("runs/adapter", "acme/model", "`runs/adapter`, which started from [acme/model]"),
        ("{root}/runs/sft", "acme/model", "`sft`, which started from [acme/model]"),
        ("runs/gone", None, "trained from a local model, `runs/gone`"),
        ("{root}/elsewhere/model", None, "trained from a local model, `model`"),
        ("runs/on_local", None, "trained from a local model, `runs/on_local`, which started from `model`"),
        ("synthetic:tiny", None, "trained from a local model, `synthetic:tiny`"),
        ("runs/grpo", None, "trained from a local model, `runs/grpo`"),
        ("grpo", "grpo", "[grpo](https://huggingface.co/grpo)"),
    ],
)
def test_card_names_only_a_base_model_that_is_on_the_hub(tmp_path, start, base, said):
    write_run(tmp_path / "runs" / "sft", start="acme/model")
    write_adapter_config(tmp_path / "runs" / "adapter", "acme/model")
    write_run(tmp_path / "runs" / "on_local", start="/elsewhere/model")
    training = {"output_dir": "runs/grpo"}
    run = write_run(tmp_path / "runs" / "grpo", start=start.format(root=tmp_path), training=training)
    card = hub.card(run)
    assert metadata(card).get("base_model") == base
    assert f"- **Start:** {said}" in card


def test_card_of_an_adapter_on_a_local_model_says_what_it_needs(tmp_path):
    run = write_adapter_config(write_run(tmp_path / "run"), "/home/somebody/base")
    card = hub.card(run)
    assert "The adapter needs the local model it was trained on" in card
    assert 'model = PeftModel.from_pretrained(base, "run")' in card


@pytest.mark.parametrize(
    ("path", "datasets", "said"),
    [
        ("acme/notes", ["acme/notes"], "[acme/notes](https://huggingface.co/datasets/acme/notes)"),
        ("/home/somebody/notes.jsonl", None, "local, `notes.jsonl`"),
        ("notes.jsonl", None, "local, `notes.jsonl`"),
        ("synthetic:notes", None, "made by the package, `synthetic:notes`"),
    ],
)
def test_card_names_only_a_data_set_that_is_on_the_hub(tmp_path, path, datasets, said):
    card = hub.card(write_run(tmp_path / "run", data=RECIPE["data"] | {"path": path}))
    assert metadata(card).get("datasets") == datasets
    assert f"- **Data:** {said}, split `train`, references in `summary`" in card.splitlines()


def test_card_says_how_texts_were_split(tmp_path):
    data = {"path": "acme/reviews", "prompt": "{beginning}", "references": "text", "split_at": 50}
    card = hub.card(write_run(tmp_path / "run", data=data))
    assert "references in `text`, after its first 50 words, which are `beginning`\n- **Method:**" in card
    assert "references in `summary`\n- **Method:**" in hub.card(write_run(tmp_path / "run"))


def test_card_holds_no_absolute_path_and_no_secret(tmp_path):
    training = {"output_dir": str(tmp_path / "run"), "hub_token": TOKEN, "deepspeed": "~/zero.json"}
    data = RECIPE["data"] | {"path": str(tmp_path / "notes.csv"), "prompt": "/think {note}"}
    run = write_run(tmp_path / "run", start=str(tmp_path / "base"), training=training, data=data)
    write_adapter_config(run, str(tmp_path / "base"))
    card = hub.card(run)
    assert str(tmp_path) not in card and "~/" not in card and TOKEN not in card
    assert "deepspeed: zero.json" in card and "/think {note}" in card


def test_card_shows_the_evaluation(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    card = hub.card(run)
    [measured] = metadata(card)["model-index"][0]["results"]
    assert measured["dataset"] == {"name": "acme/notes", "type": "acme/notes"}
    # Only this run, greedy, without post-processing; a metric that scored no row is not reported.
    assert measured["metrics"] == [{"type": "rouge/rougeL", "name": "rouge/rougeL", "value": 0.5}]
    assert "0.625 [0.525, 0.725]" in card and "diary" not in card


def test_card_of_a_comparison_takes_the_last_run(tmp_path):
    run = write_run(tmp_path / "other")
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"results": EVALUATION["results"][:2]}))
    [measured] = metadata(hub.card(run))["model-index"][0]["results"]
    assert [metric["value"] for metric in measured["metrics"]] == [0.5]


def test_card_keeps_a_prompt_with_a_code_fence_in_its_block(tmp_path):
    data = RECIPE["data"] | {"prompt": "```\n{note}\n```"}
    assert "````text\n```\n{note}\n```\n````\n" in hub.card(write_run(tmp_path / "run", data=data))


def test_card_of_a_reward_model(tmp_path):
    run = write_run(tmp_path / "run", REWARD)
    (run / "evaluation.json").write_text(json.dumps(judged(accuracy=0.9)))
    card = hub.card(run, repo="me/judge")
    assert "diary" not in card
    [measured] = metadata(card).pop("model-index")[0]["results"]
    assert metadata(card)["pipeline_tag"] == measured["task"]["type"] == "text-classification"
    assert metadata(card)["tags"] == ["lastmile-trl", "trl", "reward"]
    assert measured["metrics"] == [
        {"type": "accuracy", "name": "accuracy", "value": 0.75},
        {"type": "accuracy", "name": "accuracy, shuffled", "value": 1.0},
        {"type": "accuracy", "name": "accuracy, odd\n|one", "value": 0.5},
    ]
    assert (
        "A reward model, trained with LoRA by learning to tell better answers from worse and merged into plain "
        "weights, with lastmile_trl. It reads a prompt with an answer and gives one number"
    ) in card
    for line in (
        "- **Pairs:** references against bad answers made of them, for each row 2 shuffled, 1 model_sample "
        "(quantile=0.5)",
        "- **Method:** learning to tell better answers from worse",
        "Not fit to reward: 1 requirement is not met.",
        'model = AutoModelForSequenceClassification.from_pretrained("me/judge")',
        'answered = tokenizer(" ...", add_special_tokens=False)  # the answer to score, after a space',
        "  - model: {model: me/judge}",
    ):
        assert line in card.splitlines(), line
    assert "generate" not in card and "AutoModelForCausalLM" not in card


def test_the_acceptance_report_in_markdown():
    said = markdown(judged(accuracy=0.9, samples=0.5))
    wilson = "[0.095, 0.905]"  # of one in two: 0.5 ± z sqrt(1/8 + z²/16) / (1 + z²/2)
    assert said.splitlines()[:13] == [
        "Not fit to reward: 2 requirements are not met.",
        "",
        "- Accuracy on odd |one is 0.500 (1 of 2 pairs), below the 0.9 required.",
        "- Accuracy on the real samples of sft, greedy, is 0.000 (0 of 1 rows), below the 0.5 required.",
        "",
        "| held-out pairs | rows | accuracy | required | margin |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| shuffled | 2 | 1.000 [0.342, 1.000] | 0.9 | +3.00 |",
        f"| odd &#124;one | 2 | 0.500 {wilson} | 0.9 | −1.00 |",
        "| all | 4 | 0.750 [0.301, 0.954] | – | +1.00 |",
        "",
        "| reference v. sample | rows | accuracy | required | margin |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    assert "The expected calibration error is 0." in said
    assert "sft, greedy: the mean score lies at 1.50 between" in said
    assert "diary" not in said
    assert "Fit to reward: everything required is met.\n\n| held-out pairs" in markdown(judged(accuracy=0.5))


COLUMNS = {"chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preferences": COLUMNS}, "better answers in `good`, worse ones in `bad`"),
        (
            {"preferences": COLUMNS | {"negatives": {"copied": 0.5}}},
            "better answers in `good`, worse ones in `bad`; references against bad answers made of them, for each row "
            "0.5 copied",
        ),
        (
            {"method": "pairs", "preferences": {"samples": {"per_prompt": 8}}},
            "samples of `alice/tiny` (per_prompt=8), ranked by rouge (0.7), length (1.0), kind (2)",
        ),
        (
            {"method": "pairs", "preferences": COLUMNS | {"filter": {}}},
            "better answers in `good`, worse ones in `bad`; only those whose answers `alice/tiny` might have given "
            "itself, by perplexity (defaults)",
        ),
    ],
)
def test_card_says_where_the_pairs_come_from(tmp_path, changes, said):
    card = hub.card(write_run(tmp_path / "run", **({"method": "dpo"} | changes)))
    assert f"- **Pairs:** {said}" in card.splitlines()


def test_card_tells_pairs_of_earlier_stages(tmp_path, tmp_path_factory):
    made = {"samples": {}, "negatives": {"model_sample": 1}}
    write_run(tmp_path / "runs" / "pairs", method="pairs", preferences=made, training={"output_dir": "runs/pairs"})
    ready = {"path": str(tmp_path / "runs" / "pairs"), "prompt": "{note}"}
    filtered = {"chosen": "chosen", "rejected": "rejected", "filter": {"keep": "chosen"}}
    first = write_run(tmp_path / "runs" / "filtered", method="pairs", data=ready, preferences=filtered)
    (first / "pairs.json").write_text(json.dumps({"filter": {"all": {"kept": 30, "pairs": 32}}, "examples": ["diary"]}))
    data = {"path": "runs/filtered", "prompt": "{note}", "split": "other", "eval_split": "validation"}
    columns = {"chosen": "chosen", "rejected": "rejected"}
    run = write_run(tmp_path / "runs" / "dpo", method="dpo", data=data, preferences=columns,
                    training={"output_dir": "runs/dpo"})  # fmt: skip
    card = hub.card(run)
    for line in (
        "A language model, trained with LoRA by direct preference optimisation (DPO) and merged into plain weights, "
        "with lastmile_trl.",
        "- **Data:** [acme/notes](https://huggingface.co/datasets/acme/notes), split `train`, references in `summary`",
        "- **Pairs:** references against bad answers made of them, for each row 1 model_sample; samples of "
        "`alice/tiny` (defaults), ranked by rouge (0.7), length (1.0), kind (2); only those whose answers "
        "`alice/tiny` might have given itself, by perplexity (keep=chosen): 30 of 32",
        "- **Method:** direct preference optimisation (DPO)",
        "{note}",
    ):
        assert line in card.splitlines(), line
    assert metadata(card)["datasets"] == ["acme/notes"] and "diary" not in card
    # Elsewhere, without the stages before it, the card tells what the run itself knows.
    alone = hub.card(shutil.copytree(run, tmp_path_factory.mktemp("alone") / "runs" / "dpo"))
    assert "- **Data:** local, `runs/filtered`, split `other`, references in `references`" in alone.splitlines()
    assert "- **Pairs:** better answers in `chosen`, worse ones in `rejected`" in alone.splitlines()


GUIDED = "Only tokens that the model wrote itself were trained, while rewards read the whole text."
FALLS = "This share fell to 0 between 50% and 100% of the training. "
ALONE = " No guide has a part in the evaluation, nor in use.\n"


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        (
            {"mode": "ppo++", "guide": "base"},
            "mode `ppo++`. In 80% of the completions a guide, the model as it was before, began, and the "
            f"model went on. {FALLS}{GUIDED}{ALONE}",
        ),
        (
            {"mode": "drpo", "probability": 1.0, "anneal": None, "anchor": 0.1},
            "mode `drpo`. In 100% of the completions a guide, a reference of the row, began, and the "
            f"model went on. {GUIDED} The references' likelihood was part of the loss, with weight 0.1.{ALONE}",
        ),
        (
            {"mode": "aggrevated", "guide": "/home/somebody/runs/sft", "anneal": [0, 0.25]},
            "mode `aggrevated`. In 80% of the completions a guide, `sft`, ended what the model had begun. "
            f"This share fell to 0 between 0% and 25% of the training. {GUIDED}{ALONE}",
        ),
        (
            {"mode": "lols", "guide": "mine:guide", "mixture": 0.75},
            "a guide, `mine:guide`, began, and the model went on, or (in 25% of the roll-outs) it ended what the model "
            f"had begun. {FALLS}{GUIDED}{ALONE}",
        ),
        (
            {"mode": "d2lols", "guide": {"endpoint": "http://127.0.0.1:8000/v1", "model": "big"}},
            "a guide, `big` on a server, ended what the model had begun, and after 20% of the training began, and the "
            f"model went on. {FALLS}{GUIDED}{ALONE}",
        ),
    ],
)
def test_card_says_what_a_guide_did(tmp_path, guidance, said):
    card = hub.card(write_run(tmp_path / "run", method="ppo", guidance=guidance))
    [line] = [line for line in card.splitlines(keepends=True) if line.startswith("- **Guidance:** ")]
    assert line.endswith(said)
    assert "/home/somebody" not in card


def test_card_says_nothing_of_guidance_where_there_was_none(tmp_path):
    assert "uidance" not in hub.card(write_run(tmp_path / "run"))


def test_a_local_folder_is_no_data_set_of_the_hub(tmp_path):
    card = hub.card(write_run(tmp_path / "run", data=RECIPE["data"] | {"path": str(tmp_path / "notes")}))
    assert "datasets" not in metadata(card) and "- **Data:** local, `notes`, split" in card


def test_card_of_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run folder: it has no recipe.yaml"):
        hub.card(tmp_path)


# --- models --------------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def base(tiny_model_folder) -> Path:
    return tiny_model_folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """An adapter whose base is the public model on the hub."""
    return build_adapter(write_run(tmp_path_factory.mktemp("adapter") / "run"), base, BASE)


@pytest.fixture
def adapter_run(adapter, tmp_path) -> Path:
    """A copy of the adapter's run folder, with all that training leaves in it and nobody else should see."""
    run = shutil.copytree(adapter, tmp_path / "run")
    for private in ("training_args.bin", "history.jsonl", "optimizer.pt", "critic.safetensors",
                    "checkpoint-5/adapter_model.safetensors", "completions/completions_5.parquet",
                    "outputs/a.jsonl", "report.html", "pairs.json", "train.jsonl", "validation.jsonl",
                    "perplexity.jsonl"):  # fmt: skip
        (run / private).parent.mkdir(exist_ok=True)
        (run / private).write_text(TOKEN)
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    return run


# --- merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_merged_model_computes_what_base_and_adapter_compute(base, tmp_path, task):
    run = build_adapter(write_run(tmp_path / "run"), base, str(base), task)
    merged = hub.merge(run, tmp_path / "merged")
    expected = adapted_logits(base, run, task)
    assert plain_logits(merged, task) == pytest.approx(expected, abs=1e-4)
    assert plain_logits(base, task) != pytest.approx(expected, abs=1e-1)
    assert (merged / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (merged / "adapter_config.json").exists()
    assert (merged / "README.md").read_text() == hub.card(merged)


@pytest.mark.parametrize("task", TASKS)
def test_merging_keeps_the_precision_of_the_base(base, tmp_path, task):
    import torch
    from transformers import AutoModelForCausalLM

    half = shutil.copytree(base, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    run = build_adapter(tmp_path / "run", half, str(half), task)
    merged = hub.merge(run, tmp_path / "merged")
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert plain_logits(merged, task) == pytest.approx(adapted_logits(half, run, task), rel=0.05, abs=0.1)
    assert plain_logits(half, task) != pytest.approx(adapted_logits(half, run, task), abs=0.5)


def test_a_merged_reward_model_scores_where_it_was_trained_to(base, tmp_path):
    """Before the padding of the run, not of the base; and the half of its adapter that is the head is not lost."""
    run = build_adapter(write_run(tmp_path / "run", REWARD), base, str(base), "SEQ_CLS")
    change_json(run / "tokenizer_config.json", pad_token="<eos>")
    merged = hub.merge(run, tmp_path / "merged")
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and config["pad_token_id"] == 1
    expected = Model(str(run), centre=False)(["a cat", "a dog"], prompts=["Say:", "Say:"])
    assert Model(str(merged), centre=False)(["a cat", "a dog"], prompts=["Say:", "Say:"]) == pytest.approx(expected)
    assert expected[0] != pytest.approx(expected[1], abs=1e-2)
    change_json(run / "adapter_config.json", modules_to_save=None)
    with pytest.raises(InputError, match="came without its `score` head"):
        hub.merge(run, tmp_path / "headless")


@pytest.mark.parametrize("here", [".", "elsewhere"])
def test_merging_finds_a_base_by_its_relative_path(base, tmp_path, monkeypatch, here):
    shutil.copytree(base, tmp_path / "runs" / "base")
    run = write_run(tmp_path / "runs" / "grpo", training={"output_dir": "runs/grpo"})
    build_adapter(run, base, "runs/base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / here)
    merged = hub.merge(run, Path("merged"))
    assert plain_logits(merged) == pytest.approx(adapted_logits(base, run), abs=1e-4)


def test_an_adapter_trained_in_4_bits_merges_into_the_full_base(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    run = build_adapter(write_run(tmp_path / "run"), base, str(base), quantization_config=four_bits)
    merged = hub.merge(run, tmp_path / "merged")
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
    merged = hub.merge(tmp_path / "run", tmp_path / "merged")
    assert plain_logits(merged) == pytest.approx(logits(model), abs=1e-4)
    assert len(AutoTokenizer.from_pretrained(merged)) == len(tokenizer)


@pytest.mark.parametrize("task", TASKS)
def test_a_merge_that_changes_the_model_is_not_written(base, tmp_path, monkeypatch, task):
    from peft.tuners.lora.layer import Linear

    run = build_adapter(write_run(tmp_path / "run"), base, str(base), task)
    monkeypatch.setattr(Linear, "merge", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"does not compute what base and adapter compute \(relative difference \d"):
        hub.merge(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merging_refuses(base, tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        hub.merge(base, tmp_path / "merged")
    run = build_adapter(tmp_path / "run", base, str(tmp_path / "gone"))
    with pytest.raises(InputError, match="is not empty"):
        hub.merge(run, run)
    with pytest.raises(InputError, match="gone, the base of .*run, cannot be loaded"):
        hub.merge(run, tmp_path / "merged")
    quantised = shutil.copytree(base, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    write_adapter_config(run, str(quantised))
    with pytest.raises(InputError, match="is stored quantised"):
        hub.merge(run, tmp_path / "merged")


# --- pushing -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(base, tmp_path_factory):
    users = {
        TOKEN: User("alice", orgs=(("lab", "write"), ("guests", "read"))),
        READER: User("bob", role="read"),
        STRANGER: User("carol"),
    }
    with FakeHub(tmp_path_factory.mktemp("hub"), users) as hub_server:
        run = write_run(shutil.copytree(base, tmp_path_factory.mktemp("full") / "sft"), start="acme/model")
        hub_server.client(hub.push, run, BASE, private=False, token=TOKEN)
        yield hub_server


@pytest.fixture
def faults(server):
    yield server.faults
    server.faults.clear()


def download(repo: str, **options) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, **options))


def downloaded_logits(repo: str, kind: str) -> list[float]:
    import peft
    import transformers

    loader = {"adapter": peft.AutoPeftModelForCausalLM, "model": transformers.AutoModelForCausalLM}[kind]
    return logits(loader.from_pretrained(repo))


def is_invisible(repo: str) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        download(repo)
    except RepositoryNotFoundError:
        return True
    return False


def test_a_pushed_model_is_the_same_when_it_comes_back(server, base):
    folder = server.client(download, BASE)
    sent = {file.name: file.read_bytes() for file in base.iterdir()}
    came_back = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert came_back.keys() == sent.keys() | {".gitattributes", "README.md", "recipe.yaml"}
    assert {name: came_back[name] for name in sent} == sent
    assert server.client(downloaded_logits, BASE, "model") == plain_logits(base)
    assert metadata(came_back["README.md"].decode())["base_model"] == "acme/model"


def test_a_pushed_adapter_is_the_same_when_it_comes_back(server, adapter_run, base):
    url = server.client(hub.push, adapter_run, "adapter", token=TOKEN)
    assert url == f"{server.url}/alice/adapter"
    folder = server.client(download, "alice/adapter", token=TOKEN)
    for name in ("adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "README.md"):
        assert (folder / name).read_bytes() == (adapter_run / name).read_bytes()
    came_back = server.client(downloaded_logits, "alice/adapter", "adapter", token=TOKEN)
    assert came_back == pytest.approx(adapted_logits(base, adapter_run), abs=1e-6)


def test_only_the_model_and_how_it_was_made_are_pushed(server, adapter_run):
    recipe = RECIPE | {"training": {"output_dir": str(adapter_run), "hub_token": TOKEN}}
    write_run(adapter_run, recipe)
    server.client(hub.push, adapter_run, "alice/allowed", token=TOKEN)
    files = server.repos["alice/allowed"].files()
    assert sorted(files) == [
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "evaluation.json", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    everything = b"".join([*files.values(), *server.blobs.values()])
    for secret in (TOKEN, "diary", str(adapter_run.parent)):
        assert secret.encode() not in everything
    assert json.loads(files["evaluation.json"]) == {key: EVALUATION[key] for key in EVALUATION if key != "examples"}
    assert yaml.safe_load(files["recipe.yaml"])["training"] == {"output_dir": "run"}


def test_a_token_in_a_file_stops_the_push(server, adapter_run):
    config = adapter_run / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": TOKEN}))
    with pytest.raises(InputError, match="tokenizer_config.json holds your Hub token, so nothing was pushed"):
        server.client(hub.push, adapter_run, "alice/leak", token=TOKEN)
    assert "alice/leak" not in server.repos


def test_pushing_again_makes_no_commit(server, adapter_run):
    for _ in range(2):
        server.client(hub.push, adapter_run, "alice/twice", token=TOKEN)
    assert len(server.repos["alice/twice"].branches["main"]) == 2  # the empty repository, and one push


def test_a_merged_push_replaces_the_adapter(server, adapter_run, base):
    server.client(hub.push, adapter_run, "alice/merged", token=TOKEN)
    server.repos["alice/merged"].files()["notes/mine.safetensors"] = b"not ours"
    before = sorted(adapter_run.iterdir())
    server.client(hub.push, adapter_run, "alice/merged", merge=True, token=TOKEN)
    files = server.repos["alice/merged"].files()
    assert not [name for name in files if name.startswith("adapter_")]
    assert files["notes/mine.safetensors"] == b"not ours"
    assert "merged into plain weights" in files["README.md"].decode()
    assert metadata(files["README.md"].decode())["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert sorted(adapter_run.iterdir()) == before
    came_back = server.client(downloaded_logits, "alice/merged", "model", token=TOKEN)
    assert came_back == pytest.approx(adapted_logits(base, adapter_run), abs=1e-4)


def test_an_adapter_on_a_local_model_does_not_tell_its_path(server, adapter_run, base):
    config = json.loads((adapter_run / "adapter_config.json").read_text())
    (adapter_run / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    write_run(adapter_run, start=str(base))
    server.client(hub.push, adapter_run, "alice/local", token=TOKEN)
    pushed = json.loads(server.repos["alice/local"].files()["adapter_config.json"])
    assert pushed == config | {"base_model_name_or_path": base.name}
    # The local run goes on working.
    assert json.loads((adapter_run / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


def test_the_hub_refuses_a_local_base_model_in_a_card(server, adapter_run):
    """As the real one does: without this the tests of the card's `base_model` would prove little."""
    card = f"---\nbase_model: {adapter_run}\n---\n"
    with pytest.raises(ValueError, match='"base_model" with value ".*" is not valid'):
        server.client(push_card, card, token=TOKEN)


def push_card(card: str) -> None:
    from huggingface_hub import HfApi

    HfApi().upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=BASE)


def test_a_private_push_is_seen_by_nobody_else(server, adapter_run):
    server.client(hub.push, adapter_run, "alice/secret", token=TOKEN)
    assert server.client(is_invisible, "alice/secret")
    assert server.client(is_invisible, "alice/secret", token=STRANGER)
    assert not server.client(is_invisible, BASE)


def test_a_private_push_to_a_public_repository_is_refused(server, adapter_run):
    server.client(hub.push, adapter_run, "alice/open", private=False, token=TOKEN)
    commits = len(server.repos["alice/open"].branches["main"])
    (adapter_run / "recipe.yaml").write_text((adapter_run / "recipe.yaml").read_text().replace("0.7", "0.8"))
    with pytest.raises(InputError, match="alice/open exists and is public, but a private push was asked for"):
        server.client(hub.push, adapter_run, "alice/open", token=TOKEN)
    assert len(server.repos["alice/open"].branches["main"]) == commits


def test_pushing_to_a_branch_and_as_a_pull_request(server, adapter_run):
    server.client(hub.push, adapter_run, "alice/branches", token=TOKEN)
    (adapter_run / "recipe.yaml").write_text((adapter_run / "recipe.yaml").read_text().replace("0.7", "0.8"))
    url = server.client(hub.push, adapter_run, "alice/branches", revision="v2", token=TOKEN)
    assert url == f"{server.url}/alice/branches/tree/v2"
    url = server.client(hub.push, adapter_run, "alice/branches", create_pr=True, token=TOKEN)
    assert url == f"{server.url}/alice/branches/discussions/1"
    branches = server.repos["alice/branches"].branches
    weights = {name: b"weight: 0.8" in commits[-1]["recipe.yaml"] for name, commits in branches.items()}
    assert weights == {"main": False, "v2": True, "refs/pr/1": True}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (("POST", "/api/repos/create$", 500), "the Hub answered 500 Internal Server Error: injected fault"),
        (("POST", "/commit/main$", 500), "the Hub answered 500 Internal Server Error: injected fault"),
        (("PUT", "/lfs/", 403), "the Hub answered 403 Forbidden: injected fault"),
        (("POST", "/commit/main$", 413), "the Hub answered 413 Request Entity Too Large: injected fault"),
        (("GET", "/api/whoami-v2$", 500), "the Hub answered 500 Internal Server Error: injected fault"),
    ],
)
def test_a_failed_push_says_why_and_how_to_push_again(server, faults, adapter_run, fault, cause):
    repo = "alice/failed-" + hashlib.md5(repr(fault).encode()).hexdigest()
    weights = adapter_run / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + repo.encode())  # so that they are not on the hub yet
    method, path, status = fault
    faults[method, path] = status
    with pytest.raises(RunError) as failure:
        server.client(hub.push, adapter_run, repo, token=TOKEN)
    again = f"lastmile push {adapter_run} {repo}"
    assert str(failure.value) == f"{adapter_run} was not pushed to {repo} ({cause}); push it again with `{again}`."
    faults.clear()
    assert server.client(hub.push, adapter_run, repo, token=TOKEN) == f"{server.url}/{repo}"


def test_the_command_to_push_again_has_the_same_flags(server, faults, adapter_run):
    faults["POST", "/api/repos/create$"] = 503
    with pytest.raises(RunError, match=r"with `lastmile push \S+ x --public --create-pr --revision v2`\."):
        server.client(
            hub.push, adapter_run, "x", private=False, create_pr=True, revision="v2", token=TOKEN
        )  # fmt: skip


def push_impatiently(run: Path) -> None:
    patience, hub.PATIENCE = hub.PATIENCE, 0.3
    try:
        hub.push(run, "alice/x")
    finally:
        hub.PATIENCE = patience


def test_a_hub_that_never_answers(server, faults, adapter_run):
    faults["POST", "/api/repos/create$"] = None
    with pytest.raises(RunError, match=r"was not pushed to alice/x \(.*timed out\); push it again"):
        server.client(push_impatiently, adapter_run, token=TOKEN)


def push_to_nobody(run: Path) -> None:
    """Push while no server listens where the Hub should be."""
    from huggingface_hub import constants

    endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
    try:
        hub.push(run, "alice/x")
    finally:
        constants.ENDPOINT = endpoint


def test_a_hub_that_is_not_there(server, adapter_run):
    with pytest.raises(RunError, match=r"was not pushed to alice/x \(.*Connection refused\); push it again"):
        server.client(push_to_nobody, adapter_run, token=TOKEN)


@pytest.mark.parametrize(
    ("token", "repo", "said"),
    [
        (None, "alice/x", "There is no Hub token to push with: run `hf auth login` or set HF_TOKEN"),
        ("hf_unknown", "alice/x", "The Hub refuses the token"),
        (READER, "bob/x", "The token of bob may only read"),
        (TOKEN, "carol/x", "alice may not push to 'carol', only to alice, lab"),
        (TOKEN, "guests/x", "alice may not push to 'guests', only to alice, lab"),
        (TOKEN, "a/b/c", "'a/b/c' is not the name of a Hub repository"),
    ],
)
def test_access_is_refused_before_anything_is_pushed(server, adapter_run, token, repo, said):
    with pytest.raises(InputError, match=said):
        server.client(hub.check_access, repo, token=token)
    with pytest.raises(InputError, match=said):
        server.client(hub.push, adapter_run, repo, token=token)


def test_access_is_granted_and_faults_are_told_apart(server, faults):
    for repo in ("alice/new", "new", "lab/new"):
        assert server.client(hub.check_access, repo, token=TOKEN) is None
    faults["GET", "/api/whoami-v2$"] = 503
    with pytest.raises(RunError, match=r"could not be asked whether you may push to new \(the Hub answered 503"):
        server.client(hub.check_access, "new", token=TOKEN)


# --- reward models -------------------------------------------------------------------------------------------------

CHAT = {"path": "acme/notes", "messages": [{"role": "user", "content": "{note}"}]}
SAID = "the red cat sat", "a bird"


def scored_as_the_card_says(repo: str) -> tuple[float, float]:
    """A score by the code of the card of a repository, and one by the recipe in it."""
    from lastmile_trl import rewards

    card = (download(repo) / "README.md").read_text()
    recipe = yaml.safe_load(re.search(r"```yaml\n(rewards:\n.*?)```", card, flags=re.DOTALL)[1])
    [reward] = rewards.build(recipe["rewards"])
    prompt, answer = SAID
    if "apply_chat_template" in card:
        prompt, answer = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}]
    [rewarded] = reward.function([answer], [prompt])
    return run_code(card), rewarded


def run_code(card: str) -> float:
    """What the code of a card prints for a prompt and an answer in place of its dots."""
    said = iter(SAID)
    code = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]
    code = re.sub(r'"( ?)\.\.\."', lambda dots: repr(dots[1] + next(said)), code)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    return float(printed.getvalue())


def score_by_hand(model, folder: Path, text: str) -> float:
    import torch
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([ids])).logits.item()


@pytest.mark.parametrize(
    ("repo", "changes", "text"),
    [
        ("alice/judge", {}, "the red cat sat a bird<eos>"),
        ("alice/chat-judge", {"data": CHAT}, "<|user|>the red cat sat<|assistant|>a bird<eos>"),
    ],
)
def test_a_pushed_reward_model_scores_as_its_card_says(server, base, tmp_path, repo, changes, text):
    model = load(base, "SEQ_CLS")
    model.score.weight.data.normal_()
    run = write_run(shutil.copytree(base, tmp_path / "run"), REWARD, start=BASE, **changes)
    model.save_pretrained(run)
    server.client(hub.push, run, repo, private=False, token=TOKEN)
    expected = score_by_hand(model, run, text)
    assert server.client(scored_as_the_card_says, repo, token=TOKEN) == pytest.approx((expected,) * 2)
    assert expected != pytest.approx(score_by_hand(model, run, text.removesuffix("<eos>")), abs=1e-2)


def test_a_pushed_reward_adapter_scores_as_its_card_says_merged_or_not(server, base, tmp_path):
    from peft import PeftModel

    run = build_adapter(write_run(tmp_path / "run", REWARD), base, BASE, "SEQ_CLS")
    change_json(run / "tokenizer_config.json", pad_token="<eos>")  # so the end was never read in training
    (run / "evaluation.json").write_text(json.dumps(judged()))
    for private in ("pairs.json", "perplexity.jsonl", "train.jsonl", "validation.jsonl"):
        (run / private).write_text("the diary of a user")
    expected = score_by_hand(PeftModel.from_pretrained(load(base, "SEQ_CLS"), run), run, "the red cat sat a bird")
    for repo, merge in (("alice/adapted-judge", False), ("alice/merged-judge", True)):
        server.client(hub.push, run, repo, merge=merge, private=False, token=TOKEN)
        assert server.client(scored_as_the_card_says, repo, token=TOKEN) == pytest.approx((expected,) * 2, rel=1e-4)
        assert "adapter_config.json" in server.repos[repo].files() or merge
        assert not [name for name, content in server.repos[repo].files().items() if b"diary" in content]
        assert "categories" in json.loads(server.repos[repo].files()["evaluation.json"])
    # On a base that is on this machine alone, the card says where to put it, and does not promise more.
    local = shutil.copytree(run, tmp_path / "local" / "run")
    change_json(local / "adapter_config.json", base_model_name_or_path=str(base))
    card = hub.card(local)
    assert "rewards:" not in card
    code = card.replace("path/to/the/local/model", str(base)).replace('"run"', repr(str(local)))
    assert run_code(code) == pytest.approx(expected)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("method", ["pairs", "evaluate"])
def test_a_stage_that_trains_no_model_is_not_pushed(tmp_path, method, merge):
    run = write_run(tmp_path / "run", method=method, preferences=COLUMNS)
    (run / "train.jsonl").write_text("{}")
    with pytest.raises(InputError, match=f"run holds no model, as `method: {method}` trains none"):
        hub.push(run, "alice/x", merge=merge)


def test_a_run_without_a_model_is_not_pushed(server, tmp_path):
    with pytest.raises(InputError, match="holds no model"):
        server.client(hub.push, write_run(tmp_path / "run"), "alice/x", token=TOKEN)
