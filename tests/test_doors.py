"""What must not run or be read, whatever a model, a recipe or a data set brings along."""

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from trl import ModelConfig

from lastmile_trl import models, preflight
from lastmile_trl.data import open_split
from lastmile_trl.errors import InputError
from lastmile_trl.merge import merge
from lastmile_trl.recipe import Data, load
from lastmile_trl.rewards.classifier import Classifier
from lastmile_trl.rewards.model import Model
from lastmile_trl.rewards.neural import BertScore, Embedding

from .run_fixture import build_adapter, write_adapter_config

NO_PICKLES = r"holds no (adapter_)?model.safetensors. Weights in other formats \(.bin, .pt\) may run code"


class Evil:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple:
        return open, (str(self.trace), "w")


@pytest.fixture
def trace(tmp_path) -> Path:
    """A file that is there once foreign code has run."""
    return tmp_path / "it-ran"


@pytest.fixture
def model(tiny_model_folder, tmp_path) -> Path:
    """A copy of the tiny model, to do something to."""
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def with_pickle(folder: Path, trace: Path) -> str:
    """The model with its weights as a pickle."""
    [weights] = folder.glob("*model.safetensors")
    weights.unlink()
    name = "adapter_model.bin" if weights.stem.startswith("adapter") else "pytorch_model.bin"
    (folder / name).write_bytes(pickle.dumps(Evil(trace)))
    return str(folder)


def with_code(folder: Path, trace: Path, *kinds: str) -> str:
    """The model with code of its own, without which nobody can load it."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {kind: f"foreign.{kind}" for kind in ("AutoConfig", *kinds)}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "homemade"}))
    (folder / "foreign.py").write_text(f"open({str(trace)!r}, 'w')\n")
    return str(folder)


def load_critic(name: str) -> None:
    from lastmile_trl.trainers.ppo import PPOTrainer

    tokenizer = models.load_tokenizer(name)
    args = SimpleNamespace(trust_remote_code=models.trusts_remote_code())
    PPOTrainer._load_backbone(SimpleNamespace(args=args, _tokenizer=tokenizer), name)


def load_reward_model(name: str) -> None:
    config = json.loads(Path(name, "config.json").read_text())
    one_score = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}}
    Path(name, "config.json").write_text(json.dumps(config | one_score))
    Model(name, centre=False)(["a cat"], prompts=["the"])


LOADERS = {
    "model": lambda name: models.load_model(ModelConfig(model_name_or_path=name)),
    "start of a reward model": lambda name: models.load_reward_model(ModelConfig(model_name_or_path=name)),
    "guide": lambda name: models.load_guide(name, ModelConfig(), models.load_tokenizer(name)),
    "evaluated": lambda name: models.Loaded().model(ModelConfig(model_name_or_path=name)),
    "reward model": load_reward_model,
    "classifier": lambda name: Classifier(name, label=0)(["a cat"]),
    "bertscore": lambda name: BertScore(name)(["a cat"], references=[["a dog"]]),
    "embedding": lambda name: Embedding(name)(["a cat"], references=[["a dog"]]),
    "critic": load_critic,
}
KINDS = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel")


@pytest.mark.parametrize("loader", LOADERS)
def test_no_pickle_is_ever_loaded(loader, model, trace):
    with pytest.raises((InputError, OSError), match=f"{NO_PICKLES}|no file named model.safetensors"):
        LOADERS[loader](with_pickle(model, trace))
    assert not trace.exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_code_of_a_model_runs_only_when_a_person_says_so(loader, model, trace, monkeypatch):
    name = with_code(model, trace, *KINDS)
    with pytest.raises(ValueError, match="trust_remote_code"):
        LOADERS[loader](name)
    assert not trace.exists()
    monkeypatch.setenv(models.TRUST, "1")
    with pytest.raises((ImportError, AttributeError)):  # it ran, though there is nothing to find in it
        LOADERS[loader](name)
    assert trace.exists()


def test_no_adapter_and_no_base_of_one_is_a_pickle(tiny_model_folder, model, trace, tmp_path):
    config = ModelConfig(model_name_or_path=str(tmp_path / "run"), use_peft=True)
    run = build_adapter(tmp_path / "run", model, str(tiny_model_folder))
    weights = (run / "adapter_model.safetensors").read_bytes()
    with_pickle(run, trace)
    for attempt in (
        lambda: models.load_model(config),
        lambda: models.load_reward_model(config),
        lambda: merge(run, tmp_path / "merged"),
    ):
        with pytest.raises(InputError, match=NO_PICKLES):
            attempt()
    (run / "adapter_model.safetensors").write_bytes(weights)
    write_adapter_config(run, with_pickle(model, trace))
    for attempt in (lambda: models.load_model(config), lambda: merge(run, tmp_path / "merged")):
        with pytest.raises(InputError, match=NO_PICKLES):
            attempt()
    assert not trace.exists() and not (tmp_path / "merged").exists()


def test_both_are_refused_before_a_model_loads(model, trace, monkeypatch):
    with pytest.raises(InputError, match="is made by code of its own, which runs only if you say so: read its .py"):
        preflight.check_model(with_code(model, trace, *KINDS))
    monkeypatch.setenv(models.TRUST, "1")
    assert preflight.check_model(str(model)) is None
    with pytest.raises(InputError, match=NO_PICKLES):
        preflight.check_model(with_pickle(model, trace))


@pytest.mark.parametrize("section", ["model", "training"])
def test_no_recipe_lets_code_run(section, tmp_path):
    recipe = {"method": "sft", "model": {"model_name_or_path": "x"}, "data": {"path": "x", "prompt": "x"}}
    recipe[section] = recipe.get(section, {}) | {"trust_remote_code": True}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=f"{section}.trust_remote_code is not used here: only the flag --trust-remote"):
        load(tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="only the flag --trust-remote-code"):
        load(Path("recipes/quickstart/sft.yaml"), [f"{section}.trust_remote_code=true"])


def test_the_flag_reaches_the_launched_stages(monkeypatch):
    from lastmile_trl import cli
    from lastmile_trl.launch import Launch

    monkeypatch.setattr(os, "environ", dict(os.environ))
    seen = []
    monkeypatch.setattr(cli, "_generate", lambda words: seen.append(models.trusts_remote_code()) or 0)
    for words in (["generate", "run", "--prompt", "x"], ["generate", "run", "--prompt", "x", "--trust-remote-code"]):
        with pytest.raises(SystemExit):
            cli.main(words)
    assert seen == [False, True]
    assert Launch.choose("cpu", 1).environment(False, False)[models.TRUST] == "1"


def test_a_data_set_brings_no_code(tmp_path, trace):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"open({str(trace)!r}, 'w')\n")
    (folder / "rows.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="scripts are no longer supported, but found rows.py"):
        open_split(Data(path=str(folder)), "train")
    assert not trace.exists()
    (folder / "rows.py").unlink()
    assert open_split(Data(path=str(folder)), "train").to_list() == [{"a": 1}]
