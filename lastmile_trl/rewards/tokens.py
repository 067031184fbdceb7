"""How a text becomes tokens, for every reward that compares words."""

import functools
import importlib.util
import sys
import types
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lastmile_trl.errors import InputError, unknown

Tokenizer = Callable[[str], list[str]]

# A byte of ASCII text -> its lower-case letter or digit; everything else is a space.
_ROUGE_BYTES = bytes(ord(chr(byte).lower()) if byte < 128 and chr(byte).isalnum() else ord(" ") for byte in range(256))


def rouge_tokens(text: str) -> list[str]:
    """Return the runs of a-z and 0-9, as Google's rouge_score does: no token in any other script.

    >>> rouge_tokens("Café au lait, 2 cups")
    ['caf', 'au', 'lait', '2', 'cups']
    """
    if not text.isascii():
        text = text.lower()  # first: two letters outside ASCII have an ASCII lower case
    return text.encode("ascii", "replace").translate(_ROUGE_BYTES).decode("ascii").split()


class _LettersAndDigits(dict):
    """For `str.translate`: letters, marks and digits of every script stay, everything else is a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return self[code]


_letters_and_digits = _LettersAndDigits()


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold()).translate(_letters_and_digits)


def words(text: str) -> list[str]:
    """Return the runs of letters, marks and digits of any script, without case.

    >>> words("Кот сидел, 2 раза!")
    ['кот', 'сидел', '2', 'раза']
    """
    return _clean(text).split()


def characters(text: str) -> list[str]:
    """Return every letter, mark and digit as a token of its own, for scripts that put no space between words.

    >>> characters("猫坐在垫子上。")
    ['猫', '坐', '在', '垫', '子', '上']
    """
    return list("".join(_clean(text).split()))


TOKENIZERS: dict[str, Tokenizer] = {"rouge": rouge_tokens, "words": words, "characters": characters}


def load_tokenizer(choice: str) -> Tokenizer:
    """Return one of `TOKENIZERS` by its name, or a function of the user's named as `package.module:function`."""
    if isinstance(choice, str) and choice in TOKENIZERS:
        return TOKENIZERS[choice]
    module, _, name = str(choice).partition(":")
    if not module or not name:
        error = unknown("tokenizer", choice, TOKENIZERS)
        raise InputError(f"{error} For one of your own, write package.module:function.")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise InputError(f"tokenizer {choice!r} cannot be imported: {type(error).__name__}: {error}.") from error
    if not callable(function):
        raise InputError(f"tokenizer {choice!r} is no function.")
    return function


class _Stems(dict):
    """The stems of the words met so far; full, it starts anew.

    A dict answers faster than a function, and threads that share it at worst stem a word twice.
    """

    SIZE = 1 << 16
    LONGEST = 32  # a longer word is hardly met again, and a broken policy writes many of them

    def __missing__(self, word: str) -> str:
        stemmed = _porter_stem()(word) if len(word) > 3 else word
        if len(word) <= self.LONGEST:
            if len(self) >= self.SIZE:
                self.clear()
            self[word] = stemmed
        return stemmed


_stems = _Stems()


@functools.cache
def _porter_stem() -> Callable[[str], str]:
    """Return nltk's stemmer, from packages that are empty but for it: all of nltk brings scipy, and takes seconds."""
    if "nltk" not in sys.modules:
        folder = Path(importlib.util.find_spec("nltk").origin).parent
        for name, path in (("nltk", folder), ("nltk.stem", folder / "stem")):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(path)]
        try:
            return _porter_stem.__wrapped__()
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] == "nltk"]:
                del sys.modules[name]
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem


def stem(word: str) -> str:
    """Return the Porter stem of a word; like rouge_score, leave words of up to three letters alone.

    >>> stem("running"), stem("run")
    ('run', 'run')
    """
    return _stems[word]


def stems(tokens: Iterable[str]) -> list[str]:
    """Return the stem of each word."""
    return list(map(_stems.__getitem__, tokens))


def ngrams(tokens: Sequence[str], n: int) -> Iterable:
    """Return the n-grams of a sequence; of one token, the tokens themselves.

    >>> list(ngrams("abc", 2))
    [('a', 'b'), ('b', 'c')]
    """
    return tokens if n == 1 else zip(*(tokens[start:] for start in range(n)), strict=False)
