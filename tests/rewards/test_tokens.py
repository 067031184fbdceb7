import random
import string
import subprocess
import sys

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import tokens
from lastmile_trl.rewards.tokens import (
    TOKENIZERS,
    characters,
    load_tokenizer,
    ngrams,
    rouge_tokens,
    stem,
    stems,
    words,
)


def test_rouge_tokens_are_those_of_rouge_score_for_every_character():
    from rouge_score.tokenize import tokenize

    # Each character inside a word, in texts of a hundred of them.
    for start in range(0, sys.maxunicode, 100):
        text = "".join(f" a{chr(code)}B" for code in range(start, min(start + 100, sys.maxunicode + 1)))
        assert rouge_tokens(text) == tokenize(text, None)


def test_words():
    assert words("The cat's 2nd_life, don't!") == ["the", "cat", "s", "2nd", "life", "don", "t"]
    assert words("\u041a\u043e\u0442, 2 \u0440\u0430\u0437\u0430!") == [
        "\u043a\u043e\u0442",
        "2",
        "\u0440\u0430\u0437\u0430",
    ]
    assert words("Stra\u00dfe STRASSE") == ["strasse", "strasse"]
    assert words("\u732b\u5750\u3002\u597d") == ["\u732b\u5750", "\u597d"]
    assert words("\u0663 \u00b2") == ["\u0663", "\u00b2"]
    assert words("\U0001f600 \ud800 \u2014 \n") == []


def test_a_mark_belongs_to_its_word():
    assert words("cafe\u0301 caf\u00e9 CAFE\u0301") == ["caf\u00e9"] * 3
    assert words("\u0939\u093f\u0928\u094d\u0926\u0940") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940"
    ]  # Hindi vowel signs are marks


def test_characters():
    assert characters("\u732b\u5750\u5728\u3002 A2") == ["\u732b", "\u5750", "\u5728", "a", "2"]
    assert characters("e\u0301") == ["\u00e9"]
    assert characters("...") == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_name_gives_its_tokenizer(name):
    tokenize = load_tokenizer(name)
    assert tokenize is TOKENIZERS[name]
    assert tokenize("") == []


def test_a_function_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "dashes.py").write_text("def split(text):\n    return text.split('-')\nWORD = 'a'\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_tokenizer("dashes:split")("a-b") == ["a", "b"]
    for choice, message in [
        ("dashes:WORD", "tokenizer 'dashes:WORD' is no function."),
        ("dashes:join", "tokenizer 'dashes:join' cannot be imported: AttributeError: module 'dashes' has no attribute"),
        ("no_such_module:split", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken:split", "tokenizer 'broken:split' cannot be imported: ZeroDivisionError"),
    ]:
        with pytest.raises(InputError) as error:
            load_tokenizer(choice)
        assert message in str(error.value)


@pytest.mark.parametrize("choice", ["word", "words:", ":words", "", None, 3, ["words"]])
def test_no_such_tokenizer(choice):
    with pytest.raises(InputError) as error:
        load_tokenizer(choice)
    assert f"tokenizer {choice!r} does not exist" in str(error.value)
    assert "Valid: rouge, words, characters. For one of your own, write package.module:function." in str(error.value)


def test_stems_are_those_of_rouge_score():
    from rouge_score.tokenizers import DefaultTokenizer

    generator = random.Random(1)
    endings = ["", "s", "es", "ies", "ed", "ing", "ational", "fulness", "ly", "y", "ement", "ization"]
    vocabulary = [
        "".join(generator.choices(string.ascii_lowercase + "aeiouy" * 3, k=generator.randrange(1, 7)))
        + generator.choice(endings)
        for _ in range(3_000)
    ]
    expected = DefaultTokenizer(use_stemmer=True).tokenize(" ".join(vocabulary))
    assert stems(vocabulary) == list(map(stem, vocabulary)) == expected
    assert sum(word != stemmed for word, stemmed in zip(vocabulary, expected, strict=True)) > 1_000


def test_the_memo_of_stems_is_bounded(monkeypatch):
    memo = tokens._Stems()
    monkeypatch.setattr(memo, "SIZE", 3)
    for word in ["cats", "dogs", "birds", "cats", "flies"]:
        assert memo[word] == stem(word)
        assert len(memo) <= 3
    assert memo["running" * 10] == "running" * 9 + "run"
    assert memo.keys() == {"flies"}


def test_ngrams():
    assert list(ngrams("abcd", 1)) == ["a", "b", "c", "d"]
    assert list(ngrams("abcd", 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(ngrams(["a"], 2)) == []


def test_the_stemmer_comes_without_the_rest_of_nltk():
    program = """
import sys
from lastmile_trl.rewards.tokens import stem
assert stem("running") == "run" and stem("flies") == "fli"
assert not [name for name in sys.modules if name.split(".")[0] in ("nltk", "scipy", "numpy")]
import nltk.stem.porter  # and nltk is whole for whoever wants it
assert nltk.stem.porter.PorterStemmer().stem("running") == "run" and nltk.word_tokenize
"""
    subprocess.run([sys.executable, "-c", program], check=True)
