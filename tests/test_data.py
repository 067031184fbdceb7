import json

import pandas as pd
import pytest

from lastmile_trl.data import completion, load, read, render, sft_rows, with_prompts
from lastmile_trl.errors import InputError
from lastmile_trl.models import prompt_ids
from lastmile_trl.recipe import Data

from .conftest import make_rows, write_jsonl

PROMPT = "Shorten: {source}\nShort:"


def data(path, **keys):
    return Data(**{"path": str(path), "prompt": PROMPT, "references": "target", "held_out": 4, **keys})


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path, ending):
    rows = make_rows(12)
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        write_jsonl(path, rows)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    found = load(data(path))
    together = sorted([*found.train, *found.held_out], key=lambda row: int(row["id"]))
    assert [row["references"] for row in together] == [[row["target"]] for row in rows]
    assert len(found.held_out) == 4


def test_a_folder_has_its_splits_in_files(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", make_rows(9)[:6])
    write_jsonl(tmp_path / "validation.jsonl", make_rows(9)[6:])
    found = load(data(tmp_path, eval_split="validation"))
    assert (len(found.train), len(found.held_out)) == (6, 3)
    with pytest.raises(InputError, match="has no split 'tset'; it has train, validation"):
        load(data(tmp_path, eval_split="tset"))


def test_the_held_out_rows_are_the_same_in_every_stage(rows_file):
    first, second = load(data(rows_file)), load(data(rows_file, max_rows=5))
    assert first.held_out["id"] == second.held_out["id"]
    assert not set(first.held_out["id"]) & set(first.train["id"])
    assert len(second.train) == 5


def test_synthetic_rows_by_name():
    found = load(Data(path="synthetic:notes", prompt="{note}", references="summary", eval_split="test"))
    assert len(found.held_out) == 300
    with pytest.raises(InputError, match="notse"):
        load(Data(path="synthetic:notse", prompt="{note}", references="summary"))


def test_several_references_or_one(tmp_path):
    two = [{"source": f"a{n}", "target": ["one", " ", "two "]} for n in range(3)]
    one = [{"source": f"c{n}", "target": ["three"]} for n in range(3)]
    found = load(data(write_jsonl(tmp_path / "r.jsonl", [*two, *one]), held_out=1))
    assert sorted(map(len, found.train["references"])) in ([1, 1, 2, 2, 2], [1, 1, 1, 2, 2])
    assert ["one", "two"] in list(found.train["references"])


def test_rows_of_one_group_are_one_row_with_all_references(tmp_path):
    rows = [{"source": f"s{n // 3}", "target": f"t{n}", "concepts": [n // 3, 7]} for n in range(12)]
    found = load(data(write_jsonl(tmp_path / "r.jsonl", rows), group_by="concepts", held_out=1))
    together = sorted([*found.train, *found.held_out], key=lambda row: row["source"])
    assert [row["references"] for row in together] == [[f"t{3 * g + n}" for n in range(3)] for g in range(4)]
    assert [row["source"] for row in together] == ["s0", "s1", "s2", "s3"]
    with pytest.raises(InputError, match="data.group_by: .* has no column 'concept'"):
        load(data(tmp_path / "r.jsonl", group_by="concept", held_out=1))


def test_empty_rows_are_left_out_and_counted_or_refused(tmp_path):
    rows = [*make_rows(10), {"id": 10, "source": " ", "target": "x"}, {"id": 11, "source": "x", "target": None}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", make_rows(30)[20:])
    found = load(data(tmp_path, eval_split="test"))
    assert len(found.train) == 10
    assert found.notes == ["train: 2 of 12 rows have an empty prompt (1) or an empty reference (1); they are left out."]
    with pytest.raises(InputError, match=r"2 of 12 rows .* the first is row 10: mend"):
        load(data(tmp_path, eval_split="test", strict=True))


def test_all_references_empty(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"source": f"a{n}", "target": ""} for n in range(8)])
    with pytest.raises(InputError, match="4 of 4 rows have an empty prompt .0. or an empty reference .4."):
        load(data(path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"references": "taget"},
            "data.references: .* has no column 'taget', only id, source, target, did you mean 'target'?",
        ),
        ({"prompt": "{sorce}"}, "data.prompt: .* has no column 'sorce'"),
        ({"prompt": None, "messages": [{"role": "user", "content": "{sorce}"}]}, "data.messages: .* no column 'sorce'"),
        ({"shorten": "body"}, "data.shorten: .* no column 'body'"),
        ({"prompt": "{source"}, "not a template"),
        ({"held_out": 50}, "32 rows, too few to set data.held_out=50 aside"),
    ],
)
def test_what_does_not_fit_the_columns(rows_file, keys, message):
    with pytest.raises(InputError, match=message):
        load(data(rows_file, **keys))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jsonl", "does not exist"),
        ("./nowhere", "does not exist"),
        ("some/dataset", "the Hub cannot be reached"),
        ("no hub id at all", "cannot be re"),
    ],
)
def test_what_is_not_there(path, message):
    with pytest.raises(InputError, match=message):
        load(data(path))


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(InputError, match="not a file we read"):
        load(data(tmp_path / "rows.xlsx"))


def test_a_broken_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"source": "a"\n')
    with pytest.raises(InputError, match="cannot be read"):
        load(data(tmp_path / "rows.jsonl"))


def test_held_out_rows_are_never_trained_on(tmp_path):
    rows = [{"id": n, "source": f"s{n // 3}", "target": f"t{n}"} for n in range(60)]
    found = load(data(write_jsonl(tmp_path / "r.jsonl", rows), held_out=10))
    assert not set(found.held_out["source"]) & set(found.train["source"])
    left_out = 60 - 10 - len(found.train)
    assert left_out > 0
    assert found.notes[0].startswith(f"{left_out} rows have the prompt of a held-out row and are left out")
    with pytest.raises(InputError, match="Every prompt of .* is among the held-out ones"):
        load(data(write_jsonl(tmp_path / "same.jsonl", [{"source": "x", "target": "y"}] * 9)))


def test_a_file_has_one_split(rows_file, tmp_path):
    with pytest.raises(InputError, match="is one file and has no split 'validation': use data.held_out"):
        load(data(rows_file, eval_split="validation"))
    with pytest.raises(InputError, match="both 'train'"):
        load(data(rows_file, eval_split="train"))
    write_jsonl(tmp_path / "train.jsonl", make_rows(9))
    write_jsonl(tmp_path / "test.jsonl", make_rows(12)[6:])
    found = load(data(tmp_path, eval_split="test"))
    assert list(found.train["id"]) == list(range(6)) and len(found.held_out) == 6
    assert found.notes[0].startswith("3 rows have the prompt of a held-out row and are left out of training")


def test_names_that_trl_takes_itself_are_left_out(tmp_path):
    rows = [{**row, "completions": "x", "image": "y"} for row in make_rows(8)]
    found = load(data(write_jsonl(tmp_path / "r.jsonl", rows)))
    assert found.train.column_names == ["id", "source", "target", "references"]
    assert found.notes[0] == "Column completions, image is left out: the name is used in training."


def test_templates_take_lists_missing_values_and_braces():
    row = {"words": ["red", "big"], "more": None}
    assert render(Data(path="x", prompt="{words}|{more}|{{x}}"), row) == "red, big||{x}"
    chat = Data(path="x", messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{words}"}])
    assert render(chat, row) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "red, big"}]


@pytest.mark.parametrize("chat", [False, True])
def test_only_the_long_field_is_shortened(rows_file, tokenizer, chat):
    template = "Shorten the text. {source} END"
    keys = {"prompt": None, "messages": [{"role": "user", "content": template}]} if chat else {"prompt": template}
    settings = data(rows_file, max_prompt_tokens=24, **keys)
    notes = []
    rows = with_prompts(load(settings).train, settings, tokenizer, notes)
    for row in rows:
        text = row["prompt"][0]["content"] if chat else row["prompt"]
        assert text.startswith("Shorten the text. ") and text.endswith(" END")
        kept = text.removeprefix("Shorten the text. ").removesuffix(" END")
        assert kept and row["source"].startswith(kept)
    lengths = [len(ids) for ids in prompt_ids(tokenizer, list(rows["prompt"]))]
    assert 22 <= max(lengths) <= 24
    assert "had source cut to fit 24 tokens" in notes[0]


def test_a_prompt_that_fits_is_left_alone(rows_file, tokenizer):
    settings, notes = data(rows_file), []
    rows = with_prompts(load(settings).train, settings, tokenizer, notes)
    assert list(rows["prompt"]) == [f"Shorten: {row['source']}\nShort:" for row in rows]
    assert notes == []


def test_nothing_to_shorten(rows_file, tokenizer):
    two = data(rows_file, prompt="{source} {id}", max_prompt_tokens=8)
    with pytest.raises(InputError, match="name the column that may be cut in data.shorten"):
        with_prompts(load(two).train, two, tokenizer, [])
    no_room = data(rows_file, max_prompt_tokens=5)
    with pytest.raises(InputError, match="leaves no room"):
        with_prompts(load(no_room).train, no_room, tokenizer, [])


@pytest.mark.parametrize("chat", [False, True])
def test_sft_learns_to_follow_the_very_prompt_of_rl_and_to_end(rows_file, tokenizer, tiny_model_folder, tmp_path, chat):
    """TRL's own tokenising: the prompt of RL, the reference, the end token, and the loss on the last two."""
    from trl import SFTConfig, SFTTrainer

    keys = {"prompt": None, "messages": [{"role": "user", "content": "{source}"}]} if chat else {}
    settings = data(rows_file, **keys)
    rows = with_prompts(load(settings).train, settings, tokenizer, [])
    pairs = sft_rows(rows, settings, tokenizer, [])
    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=None)
    trained = SFTTrainer(str(tiny_model_folder), config, train_dataset=pairs, processing_class=tokenizer).train_dataset
    for ids, row, learned in zip(prompt_ids(tokenizer, list(rows["prompt"])), rows, trained, strict=True):
        assert learned["input_ids"][: len(ids)] == ids
        rest = learned["input_ids"][len(ids) :]
        assert learned["labels"] == [-100] * len(ids) + rest
        assert rest[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(rest[:-1]).strip() == row["target"]


def test_every_reference_is_an_example_and_long_ones_are_left_out(tmp_path, tokenizer):
    references = ["a cat", "the big red cat sat on the mat under the tree"]
    rows = [{"source": f"cat {n}", "target": references} for n in range(4)]
    settings = data(write_jsonl(tmp_path / "r.jsonl", rows), held_out=1)
    prompted, notes = with_prompts(load(settings).train, settings, tokenizer, []), []
    assert len(sft_rows(prompted, settings, tokenizer, notes)) == 6 and notes == []
    short = data(tmp_path / "r.jsonl", held_out=1, max_reference_tokens=4)
    assert set(sft_rows(prompted, short, tokenizer, notes)["completion"]) == {" a cat"}
    assert notes == ["3 references longer than data.max_reference_tokens=4 are left out of training."]
    with pytest.raises(InputError, match="Every reference is longer"):
        sft_rows(prompted, data(tmp_path / "r.jsonl", max_reference_tokens=1), tokenizer, [])


def test_a_chat_completion_is_a_message():
    assert completion([{"role": "user", "content": "x"}], "y") == [{"role": "assistant", "content": "y"}]


def test_the_cells_of_a_table_are_texts_as_they_stand(tmp_path):
    """By guessed types one empty cell would make 42 into 42.0, and 007 lose its zeros."""
    lines = ["source,target,code", *(f"what is {n},{n},00{n}" for n in range(1, 12)), "and now,12,"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    found = load(data(tmp_path / "rows.csv"))
    rows = [*found.train, *found.held_out]
    assert sorted(row["references"][0] for row in rows) == sorted(str(n) for n in range(1, 13))
    assert sorted(row["code"] for row in rows) == sorted(["", *(f"00{n}" for n in range(1, 12))])


TEXTS = ["one two  three\nfour five", " one two three ", "", "one two three four"]


def continued(path, **keys):
    return data(path, **{"references": "text", "prompt": "{beginning}", "split_at": 3, "held_out": 1, **keys})


def test_a_text_is_its_first_words_and_how_it_goes_on(tmp_path):
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": text, "label": n} for n, text in enumerate(TEXTS)])
    rows = read(continued(path), "train")
    assert rows["beginning"] == ["one two  three", " one two three", "", "one two three"]
    assert rows["text"] == ["\nfour five", " ", "", " four"]
    assert rows["label"] == [0, 1, 2, 3]
    write_jsonl(path, [{"text": f"{n} two three four {n}"} for n in range(6)] + [{"text": "too short"}])
    found = load(continued(path))
    together = [*found.train, *found.held_out]
    assert sorted(row["references"][0] for row in together) == [f"four {n}" for n in range(6)]
    assert {render(continued(path), row) for row in together} == {f"{n} two three" for n in range(6)}
    assert any("1 of 6 rows have an empty prompt (0) or an empty reference (1)" in text for text in found.notes)


def test_rows_to_predict_for_bring_their_beginning(tmp_path):
    path = write_jsonl(tmp_path / "texts.jsonl", [{"beginning": "one two three four five"}])
    assert read(continued(path), "train", labelled=False)["beginning"] == ["one two three four five"]


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"text": "a b c d"}, {"references": "txet"}, "data.references: .* has no column 'txet'.*did you mean 'text'"),
        ({"text": "a b c d"}, {"split_at": None}, "data.prompt: .* has no column 'beginning', only text"),
        ({"text": "a b c d"}, {"prompt": "{text}"}, "makes a column 'beginning', which no template names: write {b"),
        ({"text": "a b c d", "beginning": "a"}, {}, "makes a column 'beginning', and .* has one: rename it there."),
        ({"text": ["a b", "c d"]}, {}, r"splits one text a row, and 'text' holds \['a b', 'c d'\]."),
    ],
)
def test_what_cannot_be_split(tmp_path, row, keys, message):
    path = write_jsonl(tmp_path / "texts.jsonl", [row] * 3)
    with pytest.raises(InputError, match=message):
        read(continued(path, **keys), "train")


def test_references_may_have_any_name(tmp_path):
    rows = [{**row, "prompts": row["target"]} for row in make_rows(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = load(Data(path=str(path), prompt="{source}", references="prompts", held_out=5))
    assert "prompts" not in found.train.column_names and all(found.train["references"])
