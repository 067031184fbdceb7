"""Wrong input, from the words of the command line to its exit: one sentence each, and no model is loaded."""

import json
import re
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lastmile_trl import cli

from ..conftest import write_jsonl
from .bad_inputs import CASES, SOUND, Case, rows
from .page import page


def merged(values: dict, change: dict) -> dict:
    """The recipe with what is changed; a section of None is left out."""
    both = {
        key: {**values[key], **section} if isinstance(section, dict) and isinstance(values.get(key), dict) else section
        for key, section in change.items()
    }
    return {key: section for key, section in {**values, **both}.items() if section is not None}


@pytest.fixture(scope="module")
def weightless(tmp_path_factory, tokenizer) -> Path:
    """The configuration of a model and its tokenizer, without a weight."""
    folder = tmp_path_factory.mktemp("weightless")
    tokenizer.save_pretrained(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 384, "hidden_size": 64,
              "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
              "max_position_embeddings": 512}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch, weightless):
    """A folder to work in, as a case describes it."""
    home = tmp_path / "home"
    home.mkdir()
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("sys.path", [*sys.path])
    sys.modules.pop("mine", None)

    def make(case: Case) -> None:
        shutil.copytree(weightless, here / "model")
        _change_json(here / "model" / "config.json", case.machine.get("config", {}))
        _change_json(here / "model" / "tokenizer_config.json", case.machine.get("tokenizer", {}))
        if case.machine.get("tokenizer"):
            (here / "model" / "chat_template.jinja").unlink(missing_ok=True)
        text = case.change if isinstance(case.change, str) else yaml.safe_dump(merged(SOUND, case.change))
        for name, content in {"rows.jsonl": rows(), "recipe.yaml": text, **case.files}.items():
            write(here / name, content)

    return make


def _change_json(file: Path, change: dict) -> None:
    values = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, list):
        write_jsonl(file, content)
    else:
        file.write_text(yaml.safe_dump(content) if isinstance(content, dict) else content)


@pytest.fixture
def machine(monkeypatch):
    """What a machine has and lacks: packages, GPUs, a folder one may write in, room on its disk."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)

    def make(wandb=None, gpus=None, locked=None, weights=None, free=None, **of_the_model) -> None:
        if wandb is not None:
            online = SimpleNamespace(settings=SimpleNamespace(mode="online"))
            fake = {"__spec__": ModuleSpec("wandb", None), "setup": lambda: online, "login": lambda **_: wandb}
            monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**fake))
        if gpus is not None:
            monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)
        if locked:
            Path(locked).mkdir()
            monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != locked)
        if weights:
            with Path("model/model.safetensors").open("wb") as file:
                file.truncate(weights)  # a hole, which takes no room
            monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))

    return make


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    """Nothing loads a model, and no stage is started."""
    import transformers

    def refuse(*given, **more):
        raise AssertionError(f"too late: {given} {more}")

    for name in ("lastmile_trl.models.load_model", "lastmile_trl.models.load_reward_model", "subprocess.Popen"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)


@pytest.mark.parametrize("case", CASES, ids=[case.wrong for case in CASES])
def test_bad_input_is_refused_with_a_sentence(case, place, machine, capfd):
    place(case)
    machine(**case.machine)
    with pytest.raises(SystemExit) as left:
        cli.main(list(case.words))
    told = capfd.readouterr().err
    lines = [line.removeprefix("Error: ") for line in told.splitlines() if line.startswith("Error: ")]
    assert left.value.code == 2 and "Traceback" not in told
    assert [like(case.says, line) for line in lines] == [True], (case.says, told)


def test_each_problem_is_a_line_and_all_are_said_at_once(place, capfd):
    place(Case("", "", change={"rewards": ["roge"], "training": {"output_dir": "rows.jsonl"}, "hub": {"merge": True}}))
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "recipe.yaml"])
    first, second, third = capfd.readouterr().err.splitlines()
    assert left.value.code == 2
    assert first.startswith("Error: recipe.yaml: training.output_dir rows.jsonl cannot be a folder")
    assert second.startswith("Error: recipe.yaml: Reward 'roge' does not exist")
    assert third.startswith("Error: recipe.yaml: hub.merge is true")


def like(says: str, line: str) -> bool:
    """Whether a sentence is what the table says; of a problem that a check finds, it leaves the recipe's name out."""
    pattern = re.escape(says.removeprefix("recipe.yaml: ")).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern, line.removeprefix("recipe.yaml: ")) is not None


def test_the_committed_page_is_the_generated_one():
    committed = Path(__file__).parents[2] / "docs" / "errors.md"
    assert committed.read_text(encoding="utf-8") == page(), "python -m tests.faults.page > docs/errors.md"
