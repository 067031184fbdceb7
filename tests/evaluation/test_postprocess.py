import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lastmile_trl.evaluation.postprocess import drop_repeated_sentences, drop_unfinished_end, first_block, postprocess


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
