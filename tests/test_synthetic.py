import pickle
import statistics

import pytest

from lastmile_trl import synthetic
from lastmile_trl.errors import InputError
from lastmile_trl.synthetic import FactF1, FactsRight, Invented, RougeClean, facts_in, load


@pytest.fixture(scope="module")
def train():
    return load("notes", "train", rows=2000)


@pytest.fixture(scope="module")
def test():
    return load("notes", "test")


@pytest.fixture(scope="module")
def words(train):
    return synthetic.tokenizer(train)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    rows = load("notes", rows=20, seed=3)
    assert rows == load("notes", rows=20, seed=3)
    assert not {row["note"] for row in rows} & {row["note"] for row in load("notes", rows=20, seed=4)}


def test_default_sizes(test):
    assert len(test) == 300
    assert len(load("notes")) == synthetic.DATASETS["notes"]["train"]


def test_no_note_occurs_twice_or_in_both_splits(test):
    train_notes = [row["note"] for seed in (0, 1) for row in load("notes", "train", rows=1000, seed=seed)]
    test_notes = [row["note"] for row in test]
    assert len(set(test_notes)) == 300
    assert not set(train_notes) & set(test_notes)
    assert {synthetic.split_of(note) for note in train_notes} == {"train"}
    assert {synthetic.split_of(note) for note in test_notes} == {"test"}


def test_every_kind_of_note_is_common(train):
    domains = [row["domain"] for row in train]
    assert all(0.3 < domains.count(name) / len(domains) < 0.37 for name in ("incident", "order", "meeting"))


def test_every_fact_is_in_the_note(train):
    for row in train:
        assert {fact.lower() for fact in row["facts"]} <= facts_in(row["note"]), row["note"]


def test_no_template_is_left_unfilled(train):
    for row in train:
        text = " ".join([row["note"], row["summary"], *row["clean"]])
        assert "{" not in text
        assert "  " not in text


def test_clean_references_name_all_facts_and_nothing_else(train):
    for row in train:
        assert FactsRight()(row["clean"], [row["facts"]] * 4) == [1.0] * 4
        assert FactF1()(row["clean"], [row["facts"]] * 4) == [1.0] * 4
        assert Invented()(row["clean"], note=[row["note"]] * 4) == [0.0] * 4


def test_only_a_habit_leads_away_from_the_clean_summaries(train):
    for row in train[:200]:
        texts = [row["summary"], *row["clean"]]
        noisy, *clean = RougeClean()(texts, [row["clean"]] * len(texts))
        assert set(clean) == {1.0} and (noisy == 1.0) == (row["summary"] in row["clean"])


def test_a_summary_is_a_clean_one_and_what_a_habit_adds(train):
    for row in train:
        [start] = [clean for clean in row["clean"] if row["summary"].startswith(clean)]
        assert (row["summary"] == start) == (row["habit"] == "none")
        assert (row["summary"].count(start) > 1) == (row["habit"] == "repetition")


def test_habits_are_as_frequent_as_set(train):
    habits = [row["habit"] for row in train]
    noisy = len(habits) - habits.count("none")
    assert noisy / len(habits) == pytest.approx(synthetic.HABIT_SHARE, abs=0.03)
    for habit, share in synthetic.HABITS.items():
        assert habits.count(habit) / noisy == pytest.approx(share, abs=0.04)


def test_test_rows_have_the_same_habits(test):
    noisy = statistics.mean(row["habit"] != "none" for row in test)
    assert noisy == pytest.approx(synthetic.HABIT_SHARE, abs=0.08)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("note", "train", "synthetic data set 'note' does not exist: did you mean 'notes'"),
        ("notes", "tests", "split of synthetic:notes 'tests' does not exist: did you mean 'test'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, split, message):
    with pytest.raises(InputError, match=message):
        load(name, split)


# A row by hand: 3 facts in a note that also names Ben and Monday.
NOTE = "On Friday Ana swapped the power supply, while Ben was away on Monday."
FACTS = ["Friday", "Ana", "swapped the power supply"]


@pytest.mark.parametrize(
    ("completion", "right", "f1", "invented"),
    [
        ("Ana swapped the power supply on Friday.", 1.0, 1.0, 0.0),  # 3 of 3, nothing else
        ("ANA SWAPPED THE POWER SUPPLY ON FRIDAY", 1.0, 1.0, 0.0),
        ("Ana swapped the power supply.", 0.0, 0.8, 0.0),  # 2 hits, 2 named: 4 / 5
        ("Ben swapped the power supply on Friday.", 0.0, 2 / 3, 0.0),  # 2 hits, 3 named: 4 / 6, Ben is in the note
        ("Zoe swapped the power supply on Friday.", 0.0, 2 / 3, -1.0),  # Zoe is not
        ("Ana, Ben: Friday, Monday, swapped the power supply", 0.0, 0.75, 0.0),  # 3 hits, 5 named: 6 / 8
        ("Anastasia swapped the power supply on Fridays.", 0.0, 0.5, 0.0),  # whole words only: 1 hit, 1 named: 2 / 4
        ("", 0.0, 0.0, 0.0),
        ([{"role": "assistant", "content": "Ana swapped the power supply."}], 0.0, 0.8, 0.0),
    ],
)
def test_fact_metrics_by_hand(completion, right, f1, invented):
    columns = {"note": [NOTE], "facts": [FACTS], "references": [["Ana."]], "trainer_state": None}
    assert FactsRight()([completion], **columns) == [right]
    assert FactF1()([completion], **columns) == [pytest.approx(f1)]
    assert Invented()([completion], **columns) == [invented]


def test_a_cause_is_named_with_or_without_its_article():
    assert facts_in("A full disk. The full disk. Full disk!") == {"full disk"}


def test_the_longer_of_two_overlapping_values_is_named():
    assert facts_in("the training day") == {"training day"}
    assert facts_in("160 lamps, 60 desk lamps") == {"60", "desk lamps"}


def test_a_row_without_facts_cannot_be_scored():
    assert FactsRight()(["Ana.", "Ana."], [[], ["Ana"]]) == [None, 1.0]
    assert FactF1()(["Ana.", "Ana."], [None, ["Ana"]]) == [None, 1.0]


@pytest.mark.parametrize("metric", [FactsRight(), FactF1(), Invented()])
def test_metrics_pickle_and_have_their_own_names(metric):
    copy = pickle.loads(pickle.dumps(metric))
    assert (copy.__name__, copy.needs) == (metric.__name__, metric.needs)
    assert copy.__name__ in {"facts_right", "fact_f1", "invented"}


def test_tokenizer_gives_the_text_back_and_marks_its_end(words, test):
    for text in (test[0]["note"] + "\nSummary:", " " + test[0]["summary"], "Größe: 3 €, 猫"):
        assert words.decode(words(text)["input_ids"]) == text
    assert len(words) == synthetic.VOCABULARY_SIZE
    assert words.pad_token_id != words.eos_token_id
    assert words("<eos>")["input_ids"] == [words.eos_token_id]
    assert words.bos_token is None


def test_tokenizer_of_the_same_rows_is_the_same(words, train):
    assert synthetic.tokenizer(train).get_vocab() == words.get_vocab()


def test_a_test_note_needs_little_more_than_a_token_a_word(words, test):
    pieces = statistics.mean(len(words(row["note"])["input_ids"]) / len(row["note"].split()) for row in test)
    assert pieces < 1.5


def test_model_fits_the_tokenizer_and_starts_wide(words):
    model = synthetic.tiny_model(words, hidden=64, layers=1, heads=2)
    embeddings = model.get_input_embeddings().weight.detach()
    assert embeddings.shape == (synthetic.VOCABULARY_SIZE, 64)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert float(embeddings.std()) == pytest.approx(0.06, rel=0.05)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == words.eos_token_id
    assert model.config.bos_token_id is None


def test_model_depends_on_the_seed_alone(words):
    import torch

    state = torch.get_rng_state()
    first, again, other = (synthetic.tiny_model(words, hidden=64, layers=1, heads=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.get_input_embeddings().weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_base_is_a_folder_that_transformers_loads(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setitem(synthetic.DATASETS, "notes", {"train": 2000, "test": 300})
    folder = synthetic.build_base(tmp_path / "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 300_000 < model.num_parameters() < 1_000_000
    prompt = tokenizer("Ana was away.\nSummary:", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(prompt[0]) == "Ana was away.\nSummary:"
    assert model(prompt).logits.shape[-1] == len(tokenizer)
