"""Bad answers made from good ones, one category for each fault that a model must learn to avoid.

Every draw is seeded by the row's own prompt and references, its category and its number, so the same rows get the same
negatives in any order. Other rows matter only where a category takes something from them: `irrelevant`, `runon`,
`hallucinated`, `model_sample`, and `random_tokens` with the vocabulary `unigram`.
"""

import hashlib
import json
import math
import random
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import accumulate, cycle, islice, repeat
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

from lastmile_trl.errors import InputError, unknown
from lastmile_trl.preferences.facts import KINDS, Fact, absent, find_facts, is_english, known_names, negated
from lastmile_trl.preferences.pieces import (
    Span,
    characters,
    is_unspaced,
    joint,
    sentence_spans,
    units,
    without_end_mark,
)
from lastmile_trl.rewards.base import check_choice, check_number, check_whole
from lastmile_trl.rewards.rouge import Rouge
from lastmile_trl.rewards.tokens import words

WHERE = "preferences.negatives"
TRIES = 20  # draws before a negative is given up


class Sample(NamedTuple):
    """An answer: its text, whether it ended by itself, and how good it is, if that is known."""

    text: str
    ended: bool = True
    value: float | None = None


@dataclass(frozen=True)
class Negative:
    """A bad answer to the prompt of a row, and the reference it spoils."""

    row: int
    reference: str
    category: str
    text: str
    ended: bool  # False: it did not end by itself, so no end token follows


@dataclass
class Made:
    """What was made, and how many could not be: category -> reason -> how many; together all that was asked for."""

    negatives: list[Negative] = field(default_factory=list)
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)


class _Impossible(Exception):
    """The reason why a row has no negative of a category."""


def check_categories(categories: Mapping[str, float | Mapping]) -> None:
    """Refuse what `make` cannot make.

    A category's value is how many negatives a row gets (0.5: every second row, by chance), or a mapping of `per_row`
    and the category's own arguments.

    >>> check_categories({"truncated": 0.5, "shuffled": {"per_row": 2, "unit": "sentence"}})
    >>> check_categories({"shufled": 1})
    Traceback (most recent call last):
    lastmile_trl.errors.InputError: preferences.negatives: category 'shufled' does not exist: did you mean 'shuffled'? \
Valid: random_tokens, irrelevant, shuffled, repetitive, copied, runon, truncated, hallucinated, model_sample.
    """
    _build(categories)


def make(
    rows: Sequence[Mapping[str, Any]],
    categories: Mapping[str, float | Mapping],
    tokenizer: Any,
    *,
    seed: int = 0,
    samples: Sequence[Sequence[Sample]] | None = None,
) -> Made:
    """Make bad answers for rows with a `prompt`, a list of `references` and a `source`, which may be None.

    `samples` are the model's own answers to each row, for the category `model_sample`. A negative is never equal to a
    reference of its row in letters and digits, never empty, and holds neither a special token's text nor U+FFFD.
    """
    makers = _build(categories)
    if "model_sample" in makers and samples is None:
        raise InputError(
            f"{WHERE}.model_sample takes samples of the model: set preferences.samples in a stage of `method: pairs`."
        )
    if samples is not None and len(samples) != len(rows):
        raise InputError(f"There are samples of {len(samples)} rows, and {len(rows)} rows: give every row its samples.")
    told = [_Row(number, row["prompt"], row["references"], row["source"]) for number, row in enumerate(rows)]
    corpus = _Corpus(told, tokenizer, samples)
    made = Made(skipped={category: {} for category in makers})
    for row in told:
        for category, (per_row, maker) in makers.items():
            made.negatives += _of_row(row, category, per_row, maker, corpus, seed, made.skipped[category])
    return made


def _build(categories: Mapping[str, float | Mapping]) -> "dict[str, tuple[float, _Maker]]":
    """Return how many negatives of each category a row gets, and who makes them."""
    if not isinstance(categories, Mapping) or not categories:
        raise InputError(f"{WHERE} must say how many a row gets of which category, as in `shuffled: 1`.")
    makers = {}
    for category, value in categories.items():
        if category not in CATEGORIES:
            raise InputError(f"{WHERE}: {unknown('category', category, CATEGORIES)}")
        where = f"{WHERE}.{category}"
        arguments = dict(value) if isinstance(value, Mapping) else {"per_row": value}
        per_row = arguments.pop("per_row", 1)
        check_number(f"{where}.per_row" if isinstance(value, Mapping) else where, per_row, least=0, exclusive=True)
        valid = {argument.name.rstrip("_"): argument.name for argument in fields(CATEGORIES[category])}
        for name in arguments:
            if name not in valid:
                raise InputError(f"{where}: {unknown('argument', name, ['per_row', *valid])}")
        try:
            maker = CATEGORIES[category](**{valid[name]: argument for name, argument in arguments.items()})
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        makers[category] = (per_row, maker)
    return makers


def _of_row(
    row: "_Row",
    category: str,
    per_row: float,
    maker: "_Maker",
    corpus: "_Corpus",
    seed: int,
    skipped: dict[str, int],
) -> Iterator[Negative]:
    chance = random.Random(f"{seed} {row.identity} {category}")
    count = int(per_row) + (chance.random() < per_row % 1)
    references = _shuffled(row.references, chance)  # the first one is spoiled, if it can be
    taken = {_said(reference) for reference in row.references}
    for number in range(count):
        reason = "the row has no reference"
        for reference in references:
            chance = random.Random(f"{seed} {row.identity} {category} {number} {reference}")
            try:
                made = _first_legal(maker.draws(reference, row, corpus, chance), taken, corpus)
            except _Impossible as impossible:
                reason = str(impossible)
                continue
            taken.add(_said(made.text))
            yield Negative(row.number, reference, category, made.text.strip(), made.ended)
            break
        else:
            skipped[reason] = skipped.get(reason, 0) + 1


def _first_legal(draws: Iterable[Sample], taken: set[str], corpus: "_Corpus") -> Sample:
    fault = "there is nothing to draw from"
    for drawn in islice(draws, TRIES):
        if not drawn.text.strip():
            fault = "what was drawn is empty"
        elif "\ufffd" in drawn.text or corpus.special(drawn.text):
            fault = "what was drawn holds a special token or U+FFFD"
        elif _said(drawn.text) in taken:
            fault = "what was drawn says the same as a reference or as another negative"
        else:
            return drawn
    raise _Impossible(fault)


def _said(text: str) -> str:
    """Return the letters and digits without case; of a text that has none, the symbols."""
    return "".join(words(text) or text.casefold().split())


# --- what makers draw from -----------------------------------------------------------------------------------------


class _Row:
    """A row, and who it is: what it says, not where it stands."""

    def __init__(self, number: int, prompt: Any, references: Iterable[str], source: str | None) -> None:
        self.number, self.prompt = number, prompt
        self.references = [reference for reference in references if reference.strip()]
        self.source = source if source and source.strip() else None
        content = json.dumps([prompt, self.references], sort_keys=True, default=str)
        self.identity = hashlib.sha256(content.encode()).hexdigest()

    def is_like(self, other: "_Row") -> bool:
        """Whether a good answer to the other row is one to this row too."""
        return self.prompt == other.prompt or (self.source is not None and self.source == other.source)

    def need_source(self) -> str:
        """Return the source, or give up."""
        if self.source is None:
            raise _Impossible("the row has no source")
        return self.source


class _Corpus:
    """What is known of all rows together, each piece found when a category first asks for it."""

    def __init__(self, rows: Sequence[_Row], tokenizer: Any, samples: Sequence[Sequence[Sample]] | None) -> None:
        self.rows, self.tokenizer, self._samples = rows, tokenizer, samples
        added = tokenizer.added_tokens_decoder
        self._left_out = {*added, *tokenizer.all_special_ids}
        special = {*tokenizer.all_special_tokens, *(str(token) for token in added.values() if token.special)}
        self.special = re.compile("|".join(map(re.escape, sorted(special))) or "(?!)").search
        self._decodes: dict[int, bool] = {}

    @cached_property
    def references(self) -> list[tuple[int, str, _Row]]:
        """Every reference with its length and its row, the shortest first."""
        every = [(len(reference), reference, row) for row in self.rows for reference in row.references]
        return sorted(every, key=lambda entry: (*entry[:2], entry[2].identity))

    # --- tokens

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def vocabulary(self) -> list[int]:
        """The tokens that are neither special nor added."""
        return sorted(set(self.tokenizer.get_vocab().values()) - self._left_out)

    @cached_property
    def frequencies(self) -> tuple[list[int], list[int]]:
        """Those of them that references hold, and how often each and the ones before it occur."""
        counts = Counter(token for _, reference, _ in self.references for token in self.ids(reference))
        tokens = sorted(counts.keys() - self._left_out)
        return tokens, list(accumulate(counts[token] for token in tokens))

    def is_text(self, token: int) -> bool:
        """Whether a token is a text by itself, not a part of a character."""
        if token not in self._decodes:
            self._decodes[token] = "\ufffd" not in self.tokenizer.decode([token])
        return self._decodes[token]

    # --- facts

    @cached_property
    def names(self) -> set[str]:
        """The words that are known for names."""
        return known_names([row.source or "" for row in self.rows] + [reference for _, reference, _ in self.references])

    @cached_property
    def facts(self) -> dict[str, list[str]]:
        """The values of all references, by sort."""
        found: dict[str, set[str]] = {}
        for _, reference, _ in self.references:
            for fact in find_facts(reference, self.names):
                found.setdefault(fact.sort, set()).add(fact.value)
        return {sort: sorted(values) for sort, values in found.items()}

    # --- samples

    @cached_property
    def samples(self) -> list[list[Sample]]:
        """The samples of each row; without any value, with the ROUGE-L that they reach."""
        samples = [[Sample(*sample) for sample in of_row] for of_row in self._samples]
        if any(sample.value is not None for of_row in samples for sample in of_row):
            return samples
        rated = []
        for row, of_row in zip(self.rows, samples, strict=True):
            texts = [sample.text for sample in of_row]
            values = _rouge("rougeL", row.references)(texts, references=[row.references] * len(texts))
            rated.append([Sample(text, ended, value) for (text, ended, _), value in zip(of_row, values, strict=True)])
        return rated

    @cached_property
    def values(self) -> list[float]:
        """The values of all samples, the lowest first."""
        return sorted(each.value for of_row in self.samples for each in of_row if each.value is not None)


def _rouge(variant: str, references: Sequence[str]) -> Rouge:
    """Return the ROUGE that can read the references."""
    return Rouge(variant, tokenizer="characters" if is_unspaced("".join(references)) else "words")


# --- makers --------------------------------------------------------------------------------------------------------


class _Maker(Protocol):
    """What a category is: its arguments, checked, and the bad answers it draws from a reference, to try in turn."""

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]: ...


@dataclass(frozen=True)
class RandomTokens:
    """As many tokens as the reference has, drawn from the whole vocabulary or as often as references have them."""

    vocabulary: str = "uniform"  # or unigram, which is harder to tell from a reference

    def __post_init__(self) -> None:
        check_choice("vocabulary", self.vocabulary, ("uniform", "unigram"))

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield candidates without end."""
        tokens, until = corpus.frequencies if self.vocabulary == "unigram" else (corpus.vocabulary, None)
        if not any(map(corpus.is_text, tokens)):
            raise _Impossible("the vocabulary holds no token that is a text by itself")
        drawn = (chance.choices(tokens, cum_weights=until)[0] for _ in repeat(None))
        texts = filter(corpus.is_text, drawn)
        count = len(corpus.ids(reference))
        while True:
            yield Sample(corpus.tokenizer.decode(list(islice(texts, count))))


@dataclass(frozen=True)
class Irrelevant:
    """A good answer to another row, of about the same length if there is one."""

    max_rouge: float = 0.2  # the most ROUGE-1 that it may share with a reference

    def __post_init__(self) -> None:
        check_number("max_rouge", self.max_rouge, least=0)

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield the candidates that are different enough."""
        every, length = corpus.references, len(reference)
        similar = range(
            bisect_left(every, 0.8 * length, key=itemgetter(0)), bisect_right(every, 1.2 * length, key=itemgetter(0))
        )
        places = [chance.choice(among) for among in (similar, range(len(every))) for _ in range(2 * TRIES)]
        others = [text for _, text, other in map(every.__getitem__, places) if not row.is_like(other)]
        shared = _rouge("rouge1", row.references).overlaps(others, [row.references] * len(others))
        found = False
        for text, overlaps in zip(others, shared, strict=True):
            if all(overlap.f <= self.max_rouge for overlap in overlaps):
                found = True
                yield Sample(text)
        if not found:
            raise _Impossible("no other row has a reference that is different enough")


@dataclass(frozen=True)
class Shuffled:
    """The words of the reference in another order."""

    unit: str = "word"  # or ngram: n words stay together; or sentence
    n: int = 3

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("word", "ngram", "sentence"))
        check_whole("n", self.n, least=2)

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield orders without end."""
        spans = self._spans(reference)
        if len(spans) < 3:
            raise _Impossible("the reference is too short to shuffle")
        ends = [end for _, end in spans]
        between = [reference[end:start] for end, (start, _) in zip(ends, spans[1:], strict=False)]
        pieces = [reference[start:end] for start, end in spans]
        while True:
            chance.shuffle(pieces)
            yield Sample("".join(piece + space for piece, space in zip(pieces, [*between, ""], strict=True)))

    def _spans(self, reference: str) -> list[Span]:
        if self.unit == "sentence":
            return sentence_spans(reference)
        spans = units(reference)
        n = self.n if self.unit == "ngram" else 1
        return [(spans[first][0], spans[first : first + n][-1][1]) for first in range(0, len(spans), n)]


@dataclass(frozen=True)
class Repetitive:
    """A stretch of the reference, a word to a sentence, again and again for one to three times its length."""

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield loops without end."""
        length = len(units(reference))
        said = sentence_spans(reference)
        while True:
            start, end = chance.choice(said)
            sentence = reference[start:end]
            spans = units(sentence)
            target = max(2, round(chance.uniform(1, 3) * length))
            size = chance.randint(1, min(len(spans), target // 2))  # so that it comes at least twice
            first = chance.randrange(len(spans) - size + 1)
            yield Sample(_looped(sentence, spans[first : first + size], target))


def _looped(text: str, spans: list[Span], length: int) -> str:
    """Return a stretch of a text from its beginning again and again, until it has so many units."""
    pieces = [text[start:end] for start, end in spans]
    spaces = [text[end:start] for (_, end), (start, _) in zip(spans, spans[1:], strict=False)]
    spaces.append(joint(pieces[-1], pieces[0]))
    looped = islice(cycle(zip(pieces, spaces, strict=True)), length)
    return "".join(piece + space for piece, space in looped).rstrip()


@dataclass(frozen=True)
class Copied:
    """A stretch of the source, as long as the reference: for tasks whose answers put the source in other words."""

    from_: str = "both"  # lead: its beginning; anywhere; both: half of the rows each

    def __post_init__(self) -> None:
        check_choice("from", self.from_, ("lead", "anywhere", "both"))

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield the beginning once, or stretches without end."""
        source = row.need_source()
        spans = units(source)
        length = min(len(units(reference)), len(spans))
        lead = self.from_ == "lead" or (self.from_ == "both" and chance.random() < 0.5)
        if lead:
            yield Sample(source[spans[0][0] : spans[length - 1][1]])
        while self.from_ != "lead":
            first = chance.randrange(len(spans) - length + 1)
            yield Sample(source[spans[first][0] : spans[first + length - 1][1]])


@dataclass(frozen=True)
class Runon:
    """The reference, and the beginning of another row's, of half to twice its length: an answer that does not stop."""

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield continuations without end."""
        length = len(units(reference))
        while True:
            text, missing = reference.strip(), max(1, round(chance.uniform(0.5, 2) * length))
            while missing:
                other = self._other(row, corpus, chance)
                spans = units(other)[:missing]
                more = other[spans[0][0] : spans[-1][1]]
                text += joint(text, more) + more
                missing -= len(spans)
            yield Sample(text)

    def _other(self, row: _Row, corpus: _Corpus, chance: random.Random) -> str:
        for _ in range(TRIES):
            _, text, other = chance.choice(corpus.references)
            if not row.is_like(other) and text not in row.references:
                return text
        raise _Impossible("no other row has a reference to go on with")


@dataclass(frozen=True)
class Truncated:
    """The first 30 to 80 % of the reference, up to a word and without an end mark; it does not end by itself."""

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield every beginning of that length once; of a word, beginnings of it."""
        reference = reference.strip()
        for pieces in (units, characters):
            beginnings = {without_end_mark(reference[:end]) for _, end in pieces(reference)}
            cut = [text for text in beginnings if 0.3 <= len(text) / len(reference) <= 0.8]
            if cut:
                cut.sort(key=len)
                chance.shuffle(cut)
                yield from (Sample(text, ended=False) for text in cut)
                return
        raise _Impossible("the reference is too short to cut")


@dataclass(frozen=True)
class ModelSample:
    """A sample of the model that is among the worst: what a good model still gets wrong."""

    quantile: float = 0.25  # the share of all samples that is bad enough; the best ones never are

    def __post_init__(self) -> None:
        check_number("quantile", self.quantile, least=0, exclusive=True)
        if self.quantile > 1:
            raise InputError(f"quantile must be a share of at most 1, not {self.quantile!r}.")

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield the row's bad samples once."""
        if not corpus.values:
            raise _Impossible("no sample has a value")
        worst = corpus.values[math.ceil(self.quantile * len(corpus.values)) - 1]
        best = corpus.values[-1]
        bad = [each for each in corpus.samples[row.number] if each.value is not None and each.value <= worst]
        bad = [each for each in bad if each.value < best]
        if not bad:
            raise _Impossible("no sample of the row is bad enough")
        yield from _shuffled(bad, chance)


@dataclass(frozen=True)
class Hallucinated:
    """The reference with a fact changed: another name, number or date, of the source or another row; or a "not".

    One changed fact is hard to tell, above all by what the source says of something else; several are easier. Names
    are runs of capitalised words; days, months and negations are those of English. A value that any reference of the
    row holds is never put in.
    """

    facts: int = 1  # how many are changed, at most
    kinds: Sequence[str] = KINDS
    from_: str = "both"  # where another value comes from: the source; elsewhere: the source does not hold it; both

    def __post_init__(self) -> None:
        check_whole("facts", self.facts)
        check_choice("from", self.from_, ("source", "elsewhere", "both"))
        if not isinstance(self.kinds, list | tuple) or not self.kinds:
            raise InputError(f"kinds must be a list of {', '.join(KINDS)}, not {self.kinds!r}.")
        for kind in self.kinds:
            check_choice("kinds", kind, KINDS)

    def draws(self, reference: str, row: _Row, corpus: _Corpus, chance: random.Random) -> Iterator[Sample]:
        """Yield texts that begin with a change or two of every fact, one kind after the other."""
        found = False
        for text, value in self._changes(reference, set(), row, corpus, chance):
            found, changed = True, {value}
            while len(changed) < self.facts:
                text, value = next(self._changes(text, changed, row, corpus, chance), (text, None))
                if value is None:
                    break
                changed.add(value)
            yield Sample(text)
        if not found:
            raise _Impossible(f"the reference has nothing to change ({', '.join(self.kinds)})")

    def _changes(
        self, text: str, changed: set[str], row: _Row, corpus: _Corpus, chance: random.Random
    ) -> Iterator[tuple[str, str]]:
        """Yield the text with one fact changed that is not among the changed ones, and the new value."""
        for kind in _shuffled(self.kinds, chance):
            if kind != "negation":
                yield from _swaps(kind, self.from_, text, changed, row, corpus, chance)
            elif kind not in changed and (is_english(text) or is_english(row.source or "")):
                yield from ((negative, kind) for negative in _shuffled(negated(text), chance))


def _swaps(
    kind: str, origin: str, text: str, changed: set[str], row: _Row, corpus: _Corpus, chance: random.Random
) -> Iterator[tuple[str, str]]:
    said = "\n".join(row.references)
    unsaid = f"{said}\n{row.source or ''}" if origin == "elsewhere" else said
    of_kind = [fact for fact in find_facts(text, corpus.names) if fact.kind == kind and fact.value not in changed]
    of_source = find_facts(row.source or "", corpus.names) if of_kind else []
    places: dict[tuple[str, str], list[Fact]] = {}
    for fact in of_kind:
        places.setdefault((fact.sort, fact.value), []).append(fact)
    for (sort, _), facts in _shuffled(list(places.items()), chance):
        near, far = [other.value for other in of_source if other.sort == sort], corpus.facts[sort]
        for values in _shuffled({"source": [near], "elsewhere": [far]}.get(origin, [near, far]), chance):
            for value in absent(kind, chance.sample(values, min(len(values), TRIES)), unsaid)[:1]:
                yield _replaced(text, facts, value), value


def _replaced(text: str, facts: Sequence[Fact], value: str) -> str:
    for fact in reversed(facts):
        capital = text[fact.start].isupper()
        text = text[: fact.start] + (value[0].upper() + value[1:] if capital else value) + text[fact.end :]
    return text


def _shuffled(values: Sequence, chance: random.Random) -> list:
    return chance.sample(values, len(values))


CATEGORIES: dict[str, type[_Maker]] = {
    "random_tokens": RandomTokens,
    "irrelevant": Irrelevant,
    "shuffled": Shuffled,
    "repetitive": Repetitive,
    "copied": Copied,
    "runon": Runon,
    "truncated": Truncated,
    "hallucinated": Hallucinated,
    "model_sample": ModelSample,
}
