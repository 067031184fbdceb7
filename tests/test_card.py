"""Model cards, read as their readers do."""

import json
import shutil

import pytest

from lastmile_trl.card import model_card
from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.acceptance import markdown

from .run_fixture import (
    BASE,
    EVALUATION,
    RECIPE,
    REWARD,
    interval,
    judged,
    metadata,
    result,
    write_adapter_config,
    write_run,
)

TOKEN = "hf_" + "Alice0" * 6


def test_card_says_what_the_run_is_and_how_it_was_made(tmp_path):
    run = write_adapter_config(write_run(tmp_path / "run"), BASE)
    card = model_card(run, repo="me/short")
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
    merged = model_card(write_run(tmp_path / "merged"))
    assert metadata(merged)["library_name"] == "transformers"
    assert (
        "A language model, trained with LoRA by reinforcement learning (GRPO) and merged into plain weights," in merged
    )
    messages = {"path": "acme/notes", "messages": [{"role": "user", "content": "{note}"}]}
    full = model_card(write_run(tmp_path / "full", start=BASE, method="sft", rewards=[], data=messages))
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
    card = model_card(run)
    assert metadata(card).get("base_model") == base
    assert f"- **Start:** {said}" in card


def test_card_of_an_adapter_on_a_local_model_says_what_it_needs(tmp_path):
    run = write_adapter_config(write_run(tmp_path / "run"), "/home/somebody/base")
    card = model_card(run)
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
    card = model_card(write_run(tmp_path / "run", data=RECIPE["data"] | {"path": path}))
    assert metadata(card).get("datasets") == datasets
    assert f"- **Data:** {said}, split `train`, references in `summary`" in card.splitlines()


def test_card_says_how_texts_were_split(tmp_path):
    data = {"path": "acme/reviews", "prompt": "{beginning}", "references": "text", "split_at": 50}
    card = model_card(write_run(tmp_path / "run", data=data))
    assert "references in `text`, after its first 50 words, which are `beginning`\n- **Method:**" in card
    assert "references in `summary`\n- **Method:**" in model_card(write_run(tmp_path / "run"))


def test_card_holds_no_absolute_path_and_no_secret(tmp_path):
    training = {"output_dir": str(tmp_path / "run"), "hub_token": TOKEN, "deepspeed": "~/zero.json"}
    data = RECIPE["data"] | {"path": str(tmp_path / "notes.csv"), "prompt": "/think {note}"}
    run = write_run(tmp_path / "run", start=str(tmp_path / "base"), training=training, data=data)
    write_adapter_config(run, str(tmp_path / "base"))
    card = model_card(run)
    assert str(tmp_path) not in card and "~/" not in card and TOKEN not in card
    assert "deepspeed: zero.json" in card and "/think {note}" in card


def test_card_shows_the_evaluation(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    card = model_card(run)
    [measured] = metadata(card)["model-index"][0]["results"]
    assert measured["dataset"] == {"name": "acme/notes", "type": "acme/notes"}
    # Only this run, greedy, without post-processing; a metric that scored no row is not reported.
    assert measured["metrics"] == [{"type": "rouge/rougeL", "name": "rouge/rougeL", "value": 0.5}]
    assert "0.625 [0.525, 0.725]" in card and "diary" not in card


def test_card_has_only_numbers_in_its_metadata(tmp_path):
    run = write_run(tmp_path / "run")
    worthless = result("run", "greedy", False, float("nan"))
    worthless["metrics"]["length"] = interval(0.25)
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"results": [worthless]}))
    [measured] = metadata(model_card(run))["model-index"][0]["results"]
    assert measured["metrics"] == [{"type": "length", "name": "length", "value": 0.25}]


def test_card_of_a_comparison_takes_the_last_run(tmp_path):
    run = write_run(tmp_path / "other")
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"results": EVALUATION["results"][:2]}))
    [measured] = metadata(model_card(run))["model-index"][0]["results"]
    assert [metric["value"] for metric in measured["metrics"]] == [0.5]


def test_card_keeps_a_prompt_with_a_code_fence_in_its_block(tmp_path):
    data = RECIPE["data"] | {"prompt": "```\n{note}\n```"}
    assert "````text\n```\n{note}\n```\n````\n" in model_card(write_run(tmp_path / "run", data=data))


def test_card_of_a_reward_model(tmp_path):
    run = write_run(tmp_path / "run", REWARD)
    (run / "evaluation.json").write_text(json.dumps(judged(accuracy=0.9)))
    card = model_card(run, repo="me/judge")
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
    card = model_card(write_run(tmp_path / "run", **({"method": "dpo"} | changes)))
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
    card = model_card(run)
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
    alone = model_card(shutil.copytree(run, tmp_path_factory.mktemp("alone") / "runs" / "dpo"))
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
    card = model_card(write_run(tmp_path / "run", method="ppo", guidance=guidance))
    [line] = [line for line in card.splitlines(keepends=True) if line.startswith("- **Guidance:** ")]
    assert line.endswith(said)
    assert "/home/somebody" not in card


def test_card_says_nothing_of_guidance_where_there_was_none(tmp_path):
    assert "uidance" not in model_card(write_run(tmp_path / "run"))


def test_a_local_folder_is_no_data_set_of_the_hub(tmp_path):
    card = model_card(write_run(tmp_path / "run", data=RECIPE["data"] | {"path": str(tmp_path / "notes")}))
    assert "datasets" not in metadata(card) and "- **Data:** local, `notes`, split" in card


def test_card_of_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run folder: it has no recipe.yaml"):
        model_card(tmp_path)
