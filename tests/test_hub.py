"""Pushes through the real Hub client to a hub on this machine."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from lastmile_trl import hub, train
from lastmile_trl.card import model_card
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.recipe import Recipe

from .fakehub import FakeHub, Fault, User
from .run_fixture import (
    BASE,
    EVALUATION,
    RECIPE,
    REWARD,
    adapted_logits,
    build_adapter,
    change_json,
    judged,
    load,
    logits,
    metadata,
    plain_logits,
    write_run,
)

TOKEN = "hf_" + "Alice0" * 6
READER = "hf_" + "Reader" * 6
STRANGER = "hf_" + "Carol0" * 6


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


def test_a_second_proposal_goes_on_with_the_first(server, adapter_run):
    for weight in ("0.7", "0.8"):
        (adapter_run / "recipe.yaml").write_text((adapter_run / "recipe.yaml").read_text().replace("0.7", weight))
        url = server.client(hub.push, adapter_run, "alice/proposed", create_pr=True, token=TOKEN)
        assert url == f"{server.url}/alice/proposed/discussions/1"
    branches = server.repos["alice/proposed"].branches
    assert [b"weight: 0.8" in files["recipe.yaml"] for files in branches["refs/pr/1"]] == [False, True]
    assert list(branches) == ["main", "refs/pr/1"] and branches["main"] == [{".gitattributes": b""}]


def test_a_proposal_to_a_branch_is_refused(adapter_run):
    with pytest.raises(InputError, match="A pull request goes to the main branch"):
        hub.push(adapter_run, "alice/x", create_pr=True, revision="v2")


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
    faults["GET", "/api/whoami-v2$"] = Fault(503)
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
    card = model_card(local)
    assert "rewards:" not in card
    code = card.replace("path/to/the/local/model", str(base)).replace('"run"', repr(str(local)))
    assert run_code(code) == pytest.approx(expected)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("method", ["pairs", "evaluate"])
def test_a_stage_that_trains_no_model_is_not_pushed(tmp_path, method, merge):
    run = write_run(tmp_path / "run", method=method, preferences={"negatives": {"shuffled": 1}})
    (run / "train.jsonl").write_text("{}")
    with pytest.raises(InputError, match=f"run holds no model, as `method: {method}` trains none"):
        hub.push(run, "alice/x", merge=merge)


def test_a_run_without_a_model_is_not_pushed(server, tmp_path):
    with pytest.raises(InputError, match="holds no model"):
        server.client(hub.push, write_run(tmp_path / "run"), "alice/x", token=TOKEN)


@pytest.mark.parametrize("error", [RunError("No room."), KeyError("commitOid"), OSError()])
def test_no_error_of_a_push_fails_a_finished_run(adapter_run, monkeypatch, capsys, error):
    def fail(*given, **more):
        raise error

    monkeypatch.setattr(hub, "push", fail)
    sections = {"method": "sft", "model": {"model_name_or_path": BASE}, "data": {"path": "x", "prompt": "x"}}
    pushed = {"push": True, "repo": "me/x", "merge": True, "private": False}
    recipe = Recipe(Path("r.yaml"), sections | {"training": {"output_dir": str(adapter_run)}, "hub": pushed})
    train._push(recipe)
    said = capsys.readouterr().err
    announced, said = said.split("\n", 1)
    command = f"`lastmile push {adapter_run} me/x --merge --public`"
    assert announced.endswith(f" If that is stopped, push it with {command}.")
    assert said.startswith(f"Warning: {adapter_run} is finished, but its push failed. ") and ".." not in said
    assert said.endswith(f" Push it with {command}.\n")
