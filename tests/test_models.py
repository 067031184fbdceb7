import json
from unittest.mock import Mock

import pytest
import torch
from trl import ModelConfig

from lastmile_trl import synthetic
from lastmile_trl.errors import InputError
from lastmile_trl.models import config_of, load_model, load_tokenizer, new_adapter


@pytest.fixture
def folder_with(tokenizer, tmp_path):
    """The tiny tokenizer in a folder, saved with other special tokens."""

    def save(added=(), **special):
        folder = tmp_path / "tokenizer"
        tokenizer.save_pretrained(folder)
        file = folder / "tokenizer_config.json"
        config = {**json.loads(file.read_text()), **special}
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        if added:
            text = (folder / "tokenizer.json").read_text()
            for old, new in dict(added).items():
                text = text.replace(old, new)
            (folder / "tokenizer.json").write_text(text)
        return str(folder)

    return save


def test_a_pad_token_of_its_own_is_kept(folder_with):
    loaded = load_tokenizer(folder_with())
    assert (loaded.pad_token, loaded.eos_token, loaded.padding_side) == ("<pad>", "<eos>", "left")


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_a_spare_token_pads_where_none_or_the_end_token_would(folder_with, pad):
    loaded = load_tokenizer(folder_with(pad_token=pad, added={"<|system|>": "<|fim_pad|>", "<pad>": "<|nothing|>"}))
    assert loaded.pad_token == "<|fim_pad|>" and loaded.pad_token_id == 4


def test_the_end_token_pads_only_with_a_word_about_it(folder_with, capsys):
    loaded = load_tokenizer(folder_with(pad_token=None, added={"<pad>": "<|nothing|>"}))
    assert loaded.pad_token == loaded.eos_token == "<eos>"
    assert "has no token to spare for padding, so its end token pads too" in capsys.readouterr().err


def test_a_tokenizer_without_an_end_is_refused(folder_with):
    with pytest.raises(InputError, match="has no end-of-text token"):
        load_tokenizer(folder_with(eos_token=None))


def test_dtype_and_four_bit_are_those_of_the_config(tiny_model_folder):
    def load(**keys):
        return load_model(ModelConfig(model_name_or_path=str(tiny_model_folder), **keys))

    assert load().dtype == torch.float32
    assert load(dtype="bfloat16").dtype == torch.bfloat16
    assert load(load_in_4bit=True, use_peft=True).is_loaded_in_4bit


def test_an_adapter_comes_with_its_base_and_is_trained_only_if_asked(tiny_model_folder, tmp_path):
    from peft import get_peft_model

    config = ModelConfig(model_name_or_path=str(tiny_model_folder), use_peft=True, model_revision="main")
    lora = new_adapter(config)
    assert lora.revision == "main"
    get_peft_model(load_model(config), lora).save_pretrained(tmp_path / "adapter")
    on_adapter = ModelConfig(model_name_or_path=str(tmp_path / "adapter"), use_peft=True)
    assert new_adapter(on_adapter) is None
    for trainable in (False, True):
        model = load_model(on_adapter, trainable=trainable)
        grown = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert bool(grown) is trainable and all("lora_" in name for name in grown)


def test_a_base_that_was_half_made_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setitem(synthetic.DATASETS, "notes", {"train": 50, "test": 10})
    make, section = synthetic.tiny_model, {"model_name_or_path": "synthetic:notes"}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(synthetic, "tiny_model", Mock(side_effect=KeyboardInterrupt))
        config_of(section, tmp_path, seed=0)
    assert not (tmp_path / "base").exists()
    base = config_of(section, tmp_path, seed=0).model_name_or_path
    assert base == str(tmp_path / "base") and [*tmp_path.iterdir()] == [tmp_path / "base"]
    stored = load_model(ModelConfig(base)).state_dict()
    made = make(load_tokenizer(base), seed=0).state_dict()
    assert all(torch.equal(stored[name], made[name]) for name in made)
