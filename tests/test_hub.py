"""Cards, merging, and pushes through the real Hub client to a hub on this machine."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from lastmile_trl import hub
from lastmile_trl.errors import InputError, RunError

from .fakehub import FakeHub, User

TOKEN = "hf_" + "Alice0" * 6
READER = "hf_" + "Reader" * 6
STRANGER = "hf_" + "Carol0" * 6
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


def test_card_of_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is not a run folder: it has no recipe.yaml"):
        hub.card(tmp_path)


# --- models --------------------------------------------------------------------------------------------------------


def build_adapter(run: Path, base: Path, base_name: str, **loading) -> Path:
    """A LoRA that starts from random weights, so that it changes what the base computes, and is trained for a step."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", **loading)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    tokens = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(run)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, run)
    return run


def logits(model) -> list[float]:
    import torch

    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[3, 4, 5, 6]])).logits.float().flatten().tolist()


def adapted_logits(base: Path, run: Path) -> list[float]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), run))


def plain_logits(folder: Path) -> list[float]:
    from transformers import AutoModelForCausalLM

    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"))


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
                    "outputs/a.jsonl", "report.html"):  # fmt: skip
        (run / private).parent.mkdir(exist_ok=True)
        (run / private).write_text(TOKEN)
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    return run


# --- merging -------------------------------------------------------------------------------------------------------


def test_merged_model_computes_what_base_and_adapter_compute(base, tmp_path):
    run = build_adapter(write_run(tmp_path / "run"), base, str(base))
    merged = hub.merge(run, tmp_path / "merged")
    expected = adapted_logits(base, run)
    assert plain_logits(merged) == pytest.approx(expected, abs=1e-4)
    assert plain_logits(base) != pytest.approx(expected, abs=1e-1)
    assert (merged / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not (merged / "adapter_config.json").exists()
    assert (merged / "README.md").read_text() == hub.card(merged)


def test_merging_keeps_the_precision_of_the_base(base, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    half = shutil.copytree(base, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    run = build_adapter(tmp_path / "run", half, str(half))
    merged = hub.merge(run, tmp_path / "merged")
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"
    assert plain_logits(merged) == pytest.approx(adapted_logits(half, run), abs=0.1)
    assert plain_logits(half) != pytest.approx(adapted_logits(half, run), abs=0.5)


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


def test_a_merge_that_changes_the_model_is_not_written(base, tmp_path, monkeypatch):
    from peft.tuners.lora.layer import Linear

    run = build_adapter(write_run(tmp_path / "run"), base, str(base))
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


def test_a_run_without_a_model_is_not_pushed(server, tmp_path):
    with pytest.raises(InputError, match="holds no model"):
        server.client(hub.push, write_run(tmp_path / "run"), "alice/x", token=TOKEN)
