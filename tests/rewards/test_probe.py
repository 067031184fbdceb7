import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import build
from lastmile_trl.rewards.probe import probe, unknown_texts

HERE = __name__

ROWS = [
    {"prompt": f"Shorten: {text} and so on and on", "references": [text]}
    for text in ("a cat sat on the mat", "two dogs ran over a hill", "birds flew under a bridge", "one fish swam home")
]


def constant(completions, **columns):
    return [0.25] * len(completions)


def in_brackets(completions, **columns):
    return [float(text.startswith("(")) for text in completions]


def characters(completions, **columns):
    return [float(len(text)) for text in completions]


def warnings(*entries, rows=ROWS):
    return probe(build(entries), rows).warnings


def test_every_reward_has_its_three_means():
    found = probe(build(["rouge", {"length": {"weight": 0.5}}, {"repetition": {"n": 2}}]), ROWS)
    assert found.notes[0].startswith("rouge/rougeL: 1.000 for the references, 0.")
    assert found.notes[0].endswith("for those of other rows, 0.000 for an empty text.")
    assert found.notes[2] == (
        "repetition: 0.000 for the references, 0.000 for those of other rows, 0.000 for an empty text."
    )
    assert found.warnings == []


def test_a_constant_reward():
    assert warnings("rouge", f"{HERE}:constant") == ["constant is 0.250 for whatever text: it teaches nothing."]


def drowned(*entries, **options):
    return [text for text in warnings(*entries, **options) if "moves the total" in text]


def test_a_reward_that_drowns_the_others():
    rows = [{"prompt": "pp", "references": ["aa"]}]  # so the next row's reference is its own
    # Characters are 2, 2, 0, 8 (three times, with two spaces) and 2: mean 2.8, standard deviation 2.713.
    # Excess length is 0, 0, 0, -1 and 0: 0.4. So characters move the total 6.78 times as much at equal weights.
    assert drowned("length", f"{HERE}:characters", rows=rows) == []
    assert drowned("length", {f"{HERE}:characters": {"weight": -3}}, rows=rows) == [
        "characters moves the total 20 times as much as length/excess: change their weights, or `scale` one of them."
    ]
    assert len(drowned("length", {f"{HERE}:characters": {"scale": 3}}, rows=rows)) == 1
    assert drowned({"length": {"weight": 3}}, {f"{HERE}:characters": {"weight": 3}}, rows=rows) == []


def test_what_does_not_separate():
    said = warnings(f"{HERE}:characters")
    assert [text.split(",")[0] for text in said] == [
        "Against those of other rows",
        "Against the reference three times",
        "Against a copy of the prompt",
    ]
    assert said[1] == (
        "Against the reference three times, the total is no higher for the reference in 100% of the rows "
        "(22.250 for the references, 68.750 for the reference three times, on average)."
    )


def test_recall_alone_can_be_bought():
    [tripled, copied] = warnings({"rouge": {"measure": "recall"}})
    assert "the reference three times" in tripled and "a copy of the prompt" in copied


def test_a_gate_that_references_do_not_pass():
    said = warnings("rouge", {f"{HERE}:in_brackets": {"gate": 1}})
    assert "The gate in_brackets is closed for 4 of 4 references." in said


def test_references_that_tokenise_to_nothing():
    rows = [{"prompt": "Кто?", "references": [text]} for text in ("кот сидел", "собака бежала", "птица летела")]
    with pytest.raises(InputError) as error:
        probe(build(["rouge"]), rows)
    assert str(error.value) == (
        "rouge/rougeL: 100% of the references hold no token for tokenizer 'rouge', which knows only a-z and 0-9: set "
        "tokenizer: words, or characters for a script without spaces."
    )
    assert probe(build([{"rouge": {"tokenizer": "words"}}]), rows).warnings == []
    [said] = [text for text in warnings("rouge", rows=[*ROWS, *rows]) if "hold no token" in text]
    assert said.startswith("rouge/rougeL: 43% of the references hold no token")


def test_a_reward_that_can_score_nothing():
    with pytest.raises(InputError, match="Reward 'entities' can score none of the first 4 references."):
        probe(build(["entities"]), ROWS)


def test_what_is_not_tried():
    found = probe(build(["rouge", {"length": {"target": 20, "unit": "tokens"}}]), ROWS)
    assert found.notes[1] == "length/excess: it counts generated tokens, so it is not tried here."
    assert probe(build(["ending"]), ROWS).notes == ["ending: it looks at generated tokens, so it is not tried here."]
    assert found.warnings == []


def test_chat_prompts():
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    assert probe(build(["rouge"]), rows) == probe(build(["rouge"]), ROWS)


def test_unknown_texts():
    [rouge] = build(["rouge"])
    assert unknown_texts(rouge, ["кот"] * 5 + ["cat"] * 95) is None
    assert unknown_texts(rouge, ["кот"] * 6 + ["cat"] * 94).startswith("rouge/rougeL: 6% of")
    assert unknown_texts(build(["length"])[0], ["кот"]) is None
