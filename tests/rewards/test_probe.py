import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import build
from lastmile_trl.rewards.probe import probe, unreadable

HERE = __name__

ROWS = [
    {"prompt": f"Shorten: {text} and so on and on", "references": [text]}
    for text in ("a cat sat on the mat", "two dogs ran over a hill", "birds flew under a bridge", "one fish swam home")
]


def constant(completions, **columns):
    return [0.25] * len(completions)


def in_brackets(completions, **columns):
    return [float(text.startswith("(")) for text in completions]


def short(completions, **columns):
    return [float(len(text.split()) < 100) for text in completions]


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
    rows = [{"prompt": "pp", "references": ["a b"]}]  # so the next row's reference is its own
    # Characters are 3, 3, 0, 11 (three times, with two spaces) and 2: mean 3.8, standard deviation 3.763.
    # Excess length is 0, 0, 0, -1 and 0: 0.4. So characters move the total 9.4 times as much at equal weights.
    assert drowned("length", f"{HERE}:characters", rows=rows) == []
    assert drowned("length", {f"{HERE}:characters": {"weight": -3}}, rows=rows) == [
        "characters moves the total 28 times as much as length/excess: change their weights, or `scale` one of them."
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
        "(21.750 for the references, 67.250 for the reference three times, on average)."
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
        "rouge/rougeL reads 0% of the references' letters and digits with tokenizer 'rouge', which knows only a-z and "
        "0-9: set tokenizer: words, or characters for a script without spaces."
    )
    assert probe(build([{"rouge": {"tokenizer": "words"}}]), rows).warnings == []


def test_references_of_which_only_the_digits_are_read():
    rows = [{"prompt": "Кто?", "references": [f"кот сидел {n} раз"]} for n in range(3)]
    [said] = [text for text in warnings("rouge", rows=rows) if "reads" in text]
    assert said.startswith("rouge/rougeL reads 8% of the references' letters and digits")  # 1 of 12


def test_a_script_without_spaces():
    rows = [
        {"prompt": "谁?", "references": [text]}
        for text in ("猫坐在垫子上睡觉了一整天", "狗在山上跑了很久很久才停下来", "鸟飞过树林又飞回来了两次")
    ]
    for entry, key in (("length", "unit"), ("repetition", "unit"), ("copying", "tokenizer")):
        [said] = [text for text in probe(build([entry]), rows).warnings if "single word" in text]
        assert said.endswith(f"takes most references for a single word: set {key}: characters for such a script.")
        assert not any("single word" in text for text in probe(build([{entry: {key: "characters"}}]), rows).warnings)
    # The reference three times has no spaces either.
    assert any("three times" in text for text in probe(build([{"length": {"weight": -1}}]), rows).warnings)


def test_a_reward_that_can_score_nothing():
    with pytest.raises(InputError, match="Reward 'coverage' can score none of the first 4 references."):
        probe(build(["coverage"]), [{**row, "concepts": []} for row in ROWS])


def test_what_is_not_tried():
    found = probe(build(["rouge", {"length": {"target": 20, "unit": "tokens"}}]), ROWS)
    assert found.notes[1] == "length/excess: it counts generated tokens, so it is not tried here."
    assert probe(build(["ending"]), ROWS).notes == ["ending: it looks at generated tokens, so it is not tried here."]
    assert found.warnings == []


def test_chat_prompts():
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    assert probe(build(["rouge"]), rows) == probe(build(["rouge"]), ROWS)


def test_what_is_not_tried_is_left_out_of_the_total():
    tripled, copied = warnings({"rouge": {"measure": "recall"}}, "ending")
    assert tripled.startswith("Against the reference three times, the total without ending is no higher")
    assert copied.startswith("Against a copy of the prompt, the total without ending is no higher")


def test_beside_a_model_that_judges_the_others_need_not():
    rows = [{"prompt": "Say it.", "references": [text]} for text in ("a cat sat", "one dog ran", "birds fly")]
    alone, beside = build(["length"]), build(["length", {"model": {"model": "runs/reward"}}])
    assert any("the total" in warning for warning in probe(alone, rows).warnings)
    assert not any("the total" in warning for warning in probe(beside, rows).warnings)


def test_a_gate_that_is_cheaper_than_the_penalties_behind_it():
    penalties = [{"repetition": {"n": 1}}, {"length": {"weight": 2}}]
    form = {f"{HERE}:short": {"gate": 1, "weight": 0.5}}
    [said] = [text for text in warnings("rouge", *penalties, form) if "gate" in text]
    assert said.startswith("A completion that fails the gate short loses 0.50, and one that passes it up to 2.")
    form[f"{HERE}:short"]["weight"] = 3
    assert not any("gate" in text for text in warnings("rouge", *penalties, form))


def test_a_reward_with_a_tokenizer_of_another_kind():
    pytest.importorskip("sacrebleu")
    [bleu] = build(["bleu"])
    assert unreadable(bleu, ["a cat sat"]) is None
    assert probe([bleu], ROWS).warnings == []


def test_unreadable():
    [rouge] = build(["rouge"])
    assert unreadable(rouge, ["a cat"] * 3 + ["кот"]) is None  # 12 of 15 letters
    assert unreadable(rouge, ["a cat"] * 2 + ["кот"]).startswith("rouge/rougeL reads 73% of")
    assert unreadable(build(["length"])[0], ["Paris", "Rome"]) is None  # short answers are single words
    assert unreadable(build(["token_f1"])[0], ["кот сидел"]) is None
