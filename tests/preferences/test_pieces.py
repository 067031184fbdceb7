from hypothesis import given
from hypothesis import strategies as st

from lastmile_trl.preferences.pieces import characters, is_unspaced, joint, sentence_spans, units, without_end_mark


def cut(text, pieces):
    return [text[start:end] for start, end in pieces(text)]


def test_units():
    assert cut("The cat's\n mat, on-line.", units) == ["The", "cat's", "mat,", "on-line."]
    assert cut("我喜欢 Python3。", units) == ["我", "喜", "欢", "Python3", "。"]
    assert cut("고양이가 앉았다", units) == ["고양이가", "앉았다"]  # Korean has spaces
    assert cut("か\u3099あ\u3000い", units) == ["か\u3099", "あ", "い"]
    assert cut("\u0e01\u0e35\u0e48\u0e1b", units) == ["\u0e01\u0e35\u0e48", "\u0e1b"]  # Thai vowels and tones
    assert cut("🙂 👩\u200d👧", units) == ["🙂", "👩\u200d👧"]


def test_characters():
    assert cut("e\u0301a b", characters) == ["e\u0301", "a", "b"]
    assert cut("👩\u200d👧👍\U0001f3fd❤\ufe0f!", characters) == ["👩\u200d👧", "👍\U0001f3fd", "❤\ufe0f", "!"]


def test_sentences():
    assert cut(" He left.  Why?\n\nNo end", sentence_spans) == ["He left.", "Why?", "No end"]
    assert sentence_spans(" \n") == []


def test_joints():
    assert [joint("a", "b"), joint("好", "b"), joint("a", "好"), joint("가", "나"), joint("🙂", "🙂")] == [
        " ",
        "",
        "",
        " ",
        " ",
    ]


def test_end_marks():
    assert without_end_mark('He said "no!" ...\n') == 'He said "no'
    assert without_end_mark("नमस्ते।") == "नमस्ते"
    assert without_end_mark("It is 5 € 🙂") == "It is 5 € 🙂"
    assert without_end_mark("?!") == ""


def test_scripts():
    assert is_unspaced("猫坐在垫mat") and is_unspaced("ก็")
    assert not is_unspaced("the 猫") and not is_unspaced("") and not is_unspaced("кот")


@given(st.text(alphabet="ab .。猫\u0301\u200d🙂\U0001f3fd\n\u3000か\u3099"))
def test_pieces_lose_nothing(text):
    for pieces in (units, characters, sentence_spans):
        spans = pieces(text)
        assert all(left[1] <= right[0] for left, right in zip(spans, spans[1:], strict=False))
        assert "".join("".join(cut(text, pieces)).split()) == "".join(text.split())
