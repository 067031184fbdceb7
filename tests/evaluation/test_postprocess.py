import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.decoding import Output, Several
from lastmile_trl.evaluation.postprocess import (
    DEFAULT,
    build,
    cut_at_mark,
    drop_repeated_sentences,
    drop_unfinished_end,
    first_block,
    processed,
)


def postprocess(text):
    [output], _ = processed([Output(text, [7], True)], build(DEFAULT))
    return output.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ann called. Bob wrote.", "Ann called. Bob wrote."),
        ("  Ann called.  ", "Ann called."),
        ("", ""),
        (" \n\n ", ""),
        ("\n\nAnn called.\n\nDialogue: Bob", "Ann called."),
        ("Ann called.\n \t\nBob", "Ann called."),
        ("Ann called.\r\n\r\nBob.", "Ann called."),
        ("- milk\n- eggs\n- milk", "- milk\n- eggs"),
        ("Ann called. Bob wrote. ann  CALLED. Cid ran.", "Ann called. Bob wrote. Cid ran."),
        ("Ann called. Ann called. Ann cal", "Ann called."),
        ("Ann cal", "Ann cal"),
        ("Ann called. Ann called", "Ann called."),
        ("Mr. A saw Mr. B. Mr. C saw Mr. D.", "Mr. A saw Mr. B. Mr. C saw Mr. D."),
        ("It is at 5 p.m. sharp. It is at 5 p.m. now.", "It is at 5 p.m. sharp. It is at 5 p.m. now."),
        ("Version 2.5 is out. Versio", "Version 2.5 is out."),
        ('She said "Go!" (He went.) Then', 'She said "Go!" (He went.)'),
        ("Wait... what?! Wait... No", "Wait... what?!"),
        ("他走了。他走了。她也", "他走了。"),
        ("ok ok ok ok", "ok ok ok ok"),
    ],
)
def test_postprocess(text, expected):
    assert postprocess(text) == expected


def test_each_step_does_its_own_work_only():
    text = "Ann called. Ann called.\n\nBob wr"
    assert first_block(text) == "Ann called. Ann called."
    assert drop_repeated_sentences(text) == "Ann called. Bob wr"
    assert drop_unfinished_end(text) == "Ann called. Ann called."


# few characters, so that sentences, repeats, blank lines and titles meet often
texts = st.one_of(
    st.text(),
    st.text(alphabet='ab. !?…\n\r\t\x85"”)。'),
    st.lists(
        st.sampled_from(["Mr. ", "a. ", "A.", "b! ", "x\n", "\n", " ", "Prof", ".", "。", '"', "p.m.", "end"])
    ).map("".join),
)


@given(texts)
@example("A.\nheading\ncut")
@example("a\n b\na\n\nb.")
def test_a_second_time_changes_nothing(text):
    once = postprocess(text)
    assert postprocess(once) == once


@given(texts)
def test_nothing_is_made_up(text):
    kept = iter(text)
    assert all(character in kept for character in postprocess(text)), "the result is not a subsequence of the text"


@given(texts)
def test_a_text_never_becomes_empty(text):
    assert bool(postprocess(text)) == bool(text.strip())


# --- in steps ------------------------------------------------------------------------------------------------------


@given(texts)
def test_the_default_steps_are_the_three_functions_one_after_the_other(text):
    expected = drop_unfinished_end(drop_repeated_sentences(first_block(text)))
    [output], _ = processed([Output(text, [7], True)], build(DEFAULT))
    assert output == Output(expected, None, True)


def test_every_step_counts_what_it_changed():
    outputs = [
        Output("Ann called. Ann called. Bob\n\nDialogue: Cid", [7], False),
        Output(" Ann called. ", [7], True),
        Output("Ann called. STOP Bob", [7], True),
        Output("one two three four five.", [7], True),
    ]
    steps = build([{"end_mark": {"marks": ["STOP"]}}, *DEFAULT, {"length": {"words": 4}}])
    shown, changed = processed(outputs, steps)
    assert [output.text for output in shown] == ["Ann called.", "Ann called.", "Ann called.", "one two three four"]
    assert changed == {"end_mark": 1, "first_block": 1, "repeated_sentences": 1, "unfinished_end": 1, "length": 1}
    assert all(output.ids is None for output in shown) and [output.ended for output in shown] == [False, *[True] * 3]
    assert outputs[0].text.endswith("Cid")


def test_the_order_of_the_list_is_the_order_of_the_steps():
    outputs, length = [Output("One two. Three four", [7], True)], {"length": {"words": 3}}
    [first], changed = processed(outputs, build([length, *DEFAULT]))
    assert first.text == "One two." and changed["length"] == changed["unfinished_end"] == 1
    [last], changed = processed(outputs, build([*DEFAULT, length]))
    assert last.text == "One two." and changed["length"] == 0


def test_of_several_outputs_each_is_processed_and_what_is_missing_stays():
    samples = [Output("Ann ran. B", [7], True), Output("Cid ran. Cid ran.", [8], True)]
    several = Several("Ann ran. B", [7], True, outputs=samples)
    missing = Several("– (why)", None, False, outputs=[])
    shown, changed = processed([several, missing], build(DEFAULT))
    assert [output.text for output in shown] == ["Ann ran.", "– (why)"]
    assert [output.text for output in shown[0].outputs] == ["Ann ran.", "Cid ran."] and shown[1] == missing
    assert changed == {"first_block": 0, "repeated_sentences": 1, "unfinished_end": 1}


@pytest.mark.parametrize(
    ("text", "marks", "expected"),
    [
        ("a STOP b", ["STOP"], "a"),
        ("a b STOP c END d", ["END", "STOP"], "a b"),
        ("a stop", ["STOP"], "a stop"),
        ("STOP a", ["STOP"], ""),
        ("", ["STOP"], ""),
    ],
)
def test_an_end_mark(text, marks, expected):
    assert cut_at_mark(text, marks) == expected


REFERENCES = [["a", "a b"], ["a b c"], ["a b c d e f g h i j"]]  # 1, 2, 3 and 10 words


@pytest.mark.parametrize(
    ("quantile", "words"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 10), (1, 10), (0.01, 1)]
)
def test_length_is_learned_from_the_training_references_and_kept(quantile, words):
    [step] = build([{"length": {"quantile": quantile}}], REFERENCES)
    assert step.entry == {"length": {"words": words}}
    text = " ".join("w" * 12)
    assert len(step(text).split()) == words
    [again] = build([step.entry])  # without the references
    assert again(text) == step(text)


def test_length_without_arguments_is_the_95_quantile():
    references = [[" ".join("w" * number)] for number in range(1, 101)]
    assert build(["length"], references)[0].entry == {"length": {"words": 95}}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["first_blok"], "step 'first_blok' does not exist: did you mean 'first_block'?"),
        (["first_block", "first_block"], "first_block is named twice: drop one."),
        ([{"first_block": {"n": 1}}], "first_block: argument 'n' does not exist."),
        ([{"length": {"quantil": 1}}], "length: argument 'quantil' does not exist: did you mean 'quantile'?"),
        ([{"length": {"quantile": 1.5}}], "length: quantile must be a share of the training references, at most 1"),
        ([{"length": {"quantile": 0}}], "length: quantile must be a number above 0, not 0."),
        ([{"length": {"words": 0}}], "length: words must be a whole number of at least 1, not 0."),
        (["length"], "length: there are no training references to learn from: give {words: ...}."),
        (["end_mark"], "end_mark: marks must be a list of texts, where an output ends, not None."),
        ([{"end_mark": {"marks": [""]}}], "end_mark: marks must be a list of texts"),
        ([{"end_mark": "STOP"}], "end_mark: its arguments must be `key: value` pairs, not 'STOP'."),
        ([], "is empty: name a step, or show nothing post-processed with evaluation.postprocess: []."),
        ([3], "a step is a name, or one name with arguments, not 3."),
    ],
)
def test_what_is_refused(entries, said):
    with pytest.raises(InputError) as error:
        build(entries)
    assert str(error.value).startswith("evaluation.steps") and said in str(error.value)
