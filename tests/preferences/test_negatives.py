import copy
import json
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.preferences.negatives import CATEGORIES, Sample, check_categories, make
from lastmile_trl.synthetic import load

WITHOUT_SAMPLES = [category for category in CATEGORIES if category != "model_sample"]


def row(*references, source=None, prompt=None):
    return {"prompt": prompt or f"Say {references}.", "references": list(references), "source": source}


def drawn(tokenizer, category, rows, seeds=40, samples=None, **arguments):
    """The texts that the first row gets with so many seeds, and the reasons why it gets none."""
    texts, reasons = set(), set()
    for seed in range(seeds):
        made = make(rows, {category: {"per_row": 1, **arguments}}, tokenizer, seed=seed, samples=samples)
        mine = [negative for negative in made.negatives if negative.row == 0]
        texts.update(negative.text for negative in mine)
        if not mine:
            reasons.update(made.skipped[category])
    return texts, reasons


# --- one category after the other ----------------------------------------------------------------------------------


class Recording:
    """A tokenizer that remembers what it last decoded."""

    def __init__(self, tokenizer):
        self._tokenizer, self.last = tokenizer, None

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *arguments, **options):
        return self._tokenizer(*arguments, **options)

    def decode(self, ids):
        self.last = ids
        return self._tokenizer.decode(ids)


@pytest.mark.parametrize("vocabulary", ["uniform", "unigram"])
def test_random_tokens_are_as_many_and_legal(tokenizer, vocabulary):
    recording = Recording(tokenizer)
    legal = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    seen = set()
    for seed in range(200):
        made = make([row("the cat sat on 猫")], {"random_tokens": {"vocabulary": vocabulary}}, recording, seed=seed)
        [negative] = made.negatives
        assert negative.text == tokenizer.decode(recording.last).strip()
        assert len(recording.last) == len(tokenizer("the cat sat on 猫")["input_ids"]) == 8  # 猫 is three bytes
        seen.update(recording.last)
    assert seen <= legal
    assert not [token for token in seen if "\ufffd" in tokenizer.decode([token])]
    if vocabulary == "unigram":
        assert {tokenizer.decode([token]) for token in seen} == {"the", " cat", " sat", " on", " "}
    else:
        assert len(seen) > 100


def test_random_tokens_by_frequency(tokenizer):
    rows = [row("the cat"), row(" ".join(["dog"] * 300))]
    made = make(rows, {"random_tokens": {"vocabulary": "unigram", "per_row": 1}}, tokenizer)
    counts = Counter(made.negatives[1].text.split())
    assert counts["dog"] > 280


def test_random_tokens_are_none_that_were_added(tokenizer):
    added = copy.deepcopy(tokenizer)
    added.add_tokens([f"zz{number}" for number in range(2000)])
    texts, _ = drawn(added, "random_tokens", [row("the zz1 cat zz2")])
    often, _ = drawn(added, "random_tokens", [row("the zz1 cat zz2")], vocabulary="unigram")
    assert len(texts) == 40 and not [text for text in texts | often if "zz" in text]


def test_irrelevant_is_another_rows_answer_of_like_length(tokenizer):
    own = row("a b c d e f")
    near, like, short = row("a b c d y z"), row("u v w x y z"), row("u v")
    long = row("k l m n o p q r")
    assert drawn(tokenizer, "irrelevant", [own, near, like, short, long]) == ({"u v w x y z"}, set())
    assert drawn(tokenizer, "irrelevant", [own, near, short]) == ({"u v"}, set())
    assert drawn(tokenizer, "irrelevant", [own, near], max_rouge=1) == ({"a b c d y z"}, set())
    nothing = (set(), {"no other row has a reference that is different enough"})
    assert drawn(tokenizer, "irrelevant", [own, near]) == nothing
    assert drawn(tokenizer, "irrelevant", [own]) == nothing
    assert drawn(tokenizer, "irrelevant", [own, own]) == nothing


def test_irrelevant_up_to_the_overlap_allowed(tokenizer):
    rows = [row("a b c d e f g h i j"), row("a b q r s t u v w x")]  # ROUGE-1 F is 2/10
    assert drawn(tokenizer, "irrelevant", rows, seeds=3, max_rouge=0.21)[0] == {"a b q r s t u v w x"}
    assert drawn(tokenizer, "irrelevant", rows, seeds=3, max_rouge=0.19)[0] == set()
    other_reference = [row("a b c d e f g h i j", "q r s"), *rows[1:]]  # 2 * 3 / (3 + 10) with this one
    assert drawn(tokenizer, "irrelevant", other_reference, seeds=3, max_rouge=0.21)[0] == set()


def test_irrelevant_is_not_of_the_same_prompt_or_source(tokenizer):
    others = row("u v w", prompt="p"), row("x y z", source="s", prompt="q"), row("k l m", source="t", prompt="r")
    assert drawn(tokenizer, "irrelevant", [row("a b c", prompt="p", source="s"), *others])[0] == {"k l m"}


def test_irrelevant_reads_scripts_without_spaces_and_latin_letters(tokenizer):
    near, other = row("猫坐在垫子下"), row("我们明天去北京")
    assert drawn(tokenizer, "irrelevant", [row("猫坐在垫子上"), near, other], seeds=10)[0] == {"我们明天去北京"}
    cyrillic = [row("кот сидел на ковре"), row("кот лежал на ковре"), row("мы поедем завтра утром")]
    assert drawn(tokenizer, "irrelevant", cyrillic, seeds=10)[0] == {"мы поедем завтра утром"}


def orders(*pieces, form):
    return {form.format(*order) for order in permutations(pieces)} - {form.format(*pieces)}


def test_shuffled(tokenizer):
    too_short = {"the reference is too short to shuffle"}
    assert drawn(tokenizer, "shuffled", [row("b c\nd.")])[0] == orders("b", "c", "d.", form="{} {}\n{}")
    assert drawn(tokenizer, "shuffled", [row("b c")]) == (set(), too_short)
    assert drawn(tokenizer, "shuffled", [row("b b b")]) == (
        set(),
        {"what was drawn says the same as a reference or as another negative"},
    )
    said = {"unit": "sentence"}
    three = orders("He left.", "She stayed!", "Why?", form="{} {}  {}")
    assert drawn(tokenizer, "shuffled", [row("He left. She stayed!  Why?")], **said)[0] == three
    assert drawn(tokenizer, "shuffled", [row("He left. She stayed.")], **said) == (set(), too_short)
    threes = orders("a b c", "d e f", "g", form="{} {} {}")
    assert drawn(tokenizer, "shuffled", [row("a b c d e f g")], unit="ngram")[0] == threes
    twos = orders("a b", "c d", "e f", form="{} {} {}")
    assert drawn(tokenizer, "shuffled", [row("a b c d e f")], unit="ngram", n=2)[0] == twos


def test_shuffled_without_spaces(tokenizer):
    assert drawn(tokenizer, "shuffled", [row("猫坐垫")])[0] == orders("猫", "坐", "垫", form="{}{}{}")
    # a mark stays with its character, a word of letters is one piece
    assert drawn(tokenizer, "shuffled", [row("か\u3099ab い")])[0] == orders("か\u3099", "ab", "い", form="{}{} {}")


def test_shuffled_never_says_what_another_reference_says(tokenizer):
    assert drawn(tokenizer, "shuffled", [row("b c d", "D  c, b.")])[0].isdisjoint({"d c b", "c. D, b"})


def period(units):
    return next(
        size for size in range(1, len(units) + 1) if all(a == b for a, b in zip(units, units[size:], strict=False))
    )


def test_repetitive_says_a_stretch_at_least_twice(tokenizer):
    texts, _ = drawn(tokenizer, "repetitive", [row("bb cc dd. ee ff")], seeds=150)
    loops = set()
    for text in texts:
        units = text.split()
        size = period(units)
        assert 5 <= len(units) <= 15
        assert 2 * size <= len(units)
        loops.add(" ".join(units[:size]))
    assert loops == {"bb", "cc", "dd.", "bb cc", "cc dd.", "bb cc dd.", "ee", "ff", "ee ff"}  # up to a sentence
    assert drawn(tokenizer, "repetitive", [row("b")])[0] == {"b b", "b b b"}
    assert drawn(tokenizer, "repetitive", [row("猫坐")], seeds=100)[0] >= {"猫猫", "坐坐坐", "猫坐猫坐"}


def test_copied(tokenizer):
    source = "s t\n u v w"
    stretches = {"s t", "t\n u", "u v", "v w"}
    assert drawn(tokenizer, "copied", [row("a b", source=source)], **{"from": "lead"})[0] == {"s t"}
    assert drawn(tokenizer, "copied", [row("a b", source=source)], **{"from": "anywhere"})[0] == stretches
    rows = [row("a b", source=source, prompt=str(n)) for n in range(200)]
    made = Counter(negative.text for negative in make(rows, {"copied": 1}, tokenizer).negatives)
    assert made.keys() == stretches
    assert 100 < made["s t"] < 150  # half of them, and a quarter of the others
    assert drawn(tokenizer, "copied", [row("a b c", source="s t")])[0] == {"s t"}  # all there is
    assert drawn(tokenizer, "copied", [row("a b", source="猫坐垫")])[0] == {"猫坐", "坐垫"}


def test_copied_needs_a_source_that_says_something_else(tokenizer):
    assert drawn(tokenizer, "copied", [row("a b")]) == (set(), {"the row has no source"})
    assert drawn(tokenizer, "copied", [row("a b", source=" ")]) == (set(), {"the row has no source"})
    same = {"what was drawn says the same as a reference or as another negative"}
    assert drawn(tokenizer, "copied", [row("a b", source="A b, c")], **{"from": "lead"}) == (set(), same)


def test_runon_goes_on_with_another_row(tokenizer):
    texts, _ = drawn(tokenizer, "runon", [row("a b c d"), row("w x y")], seeds=100)
    endless = " ".join(["w x y"] * 3).split()
    assert texts == {" ".join(["a b c d", *endless[:count]]) for count in range(2, 9)}
    assert drawn(tokenizer, "runon", [row("猫坐"), row("狗跑")], seeds=50)[0] == {
        "猫坐狗",
        "猫坐狗跑",
        "猫坐狗跑狗",
        "猫坐狗跑狗跑",
    }
    nothing = (set(), {"no other row has a reference to go on with"})
    assert drawn(tokenizer, "runon", [row("a b")]) == nothing
    assert drawn(tokenizer, "runon", [row("a b"), row("a b", prompt="other")]) == nothing
    assert drawn(tokenizer, "runon", [row("a b", prompt="p"), row("c d", prompt="p")]) == nothing


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("one two three four five", {"one two", "one two three", "one two three four"}),  # 7, 13 and 18 of 23
        ("He left. She stayed.", {"He left", "He left. She"}),
        ('"Go," he said to her, "now."', {'"Go," he said', '"Go," he said to', '"Go," he said to her'}),
        ("Paris", {"Pa", "Par", "Pari"}),
        ("International ok", {"Inter", "Intern", "Interna", "Internat", "Internati", "Internatio", "Internation"}),
        ("猫坐在垫子上。", {"猫坐在", "猫坐在垫", "猫坐在垫子"}),
        ("ab 👩\u200d👧 cd", {"ab 👩\u200d👧"}),
        ("e\u0301a\u0301o\u0301", {"e\u0301", "e\u0301a\u0301"}),  # never without its accent
    ],
)
def test_truncated(tokenizer, reference, expected):
    texts, _ = drawn(tokenizer, "truncated", [row(reference)], seeds=80)
    assert texts == expected or (reference.startswith("Int") and expected <= texts)


def test_truncated_does_not_end_by_itself(tokenizer):
    rows = [row("one two three four five", source="s t u v w x")] * 2
    made = make(rows, dict.fromkeys(["shuffled", "truncated", "copied", "repetitive"], 1), tokenizer)
    assert {(negative.category, negative.ended) for negative in made.negatives} == {
        ("shuffled", True),
        ("truncated", False),
        ("copied", True),
        ("repetitive", True),
    }
    for short in ("A.", "猫", "👩\u200d👧"):
        assert drawn(tokenizer, "truncated", [row(short)])[0] == set()


NOTHING = "the reference has nothing to change"


@pytest.mark.parametrize(
    ("reference", "source", "others", "expected"),
    [
        ("Ann called Bob.", "So Ann, Bob and Cid met", [], {"Cid called Bob.", "Ann called Cid."}),
        ("Ann's dog", None, ["It was Bo Lee who saw Ann."], {"Bo Lee's dog"}),
        ("It costs 5 euros.", "It was 5, 5.0 or 7 euros, in 1999", [], {"It costs 7 euros."}),
        ("Three came.", "three or five came, not 3 or 5", [], {"Five came."}),
        ("at 10:30, or 10:30 sharp", "10:30, 11:45, 9", [], {"at 11:45, or 11:45 sharp"}),  # wherever it is said
        ("on Monday", "Monday, Friday or in May", ["on Sunday"], {"on Friday", "on Sunday"}),
        ("Today at noon", "today or tomorrow", [], {"Tomorrow at noon"}),
        ("The cat is on the mat.", None, [], {"The cat is not on the mat."}),
        ("She can't see the cat.", None, [], {"She can see the cat."}),
        ("kim was late", "the man came", [], {"kim was not late"}),  # the source is English
        ("kai was da", "Die Katze war da", [], set()),  # not English
        ("猫坐在垫子上。", "猫坐在垫子上。", [], set()),
    ],
)
def test_hallucinated(tokenizer, reference, source, others, expected):
    rows = [row(reference, source=source), *map(row, others)]
    texts, reasons = drawn(tokenizer, "hallucinated", rows)
    assert texts == expected
    assert reasons == (set() if expected else {f"{NOTHING} (entity, number, date, negation)"})


def test_hallucinated_value_is_in_no_reference(tokenizer):
    rows = [row("Ann won.", "Cid, 5 points", source="So Ann and Cid and Dan, 5 points")]
    assert drawn(tokenizer, "hallucinated", rows)[0] == {"Dan won.", "Dan, 5 points"}


def test_hallucinated_kinds(tokenizer):
    rows = [row("Ann is there with 5 dogs on Monday.", source="So Bo has 7 dogs, Ann none, on Friday.")]
    changed = {
        "entity": "Bo is there with 5 dogs on Monday.",
        "number": "Ann is there with 7 dogs on Monday.",
        "date": "Ann is there with 5 dogs on Friday.",
        "negation": "Ann is not there with 5 dogs on Monday.",
    }
    for kind, text in changed.items():
        assert drawn(tokenizer, "hallucinated", rows, seeds=5, kinds=[kind]) == ({text}, set())
    assert drawn(tokenizer, "hallucinated", rows)[0] == set(changed.values())
    assert drawn(tokenizer, "hallucinated", [row("nothing to see", source="x")], kinds=["date", "number"]) == (
        set(),
        {f"{NOTHING} (date, number)"},
    )


def test_model_sample_is_among_the_worst(tokenizer):
    rows = [row("a b", prompt="p"), row("c d", prompt="q")]
    samples = [
        [Sample("one", False, 0.1), Sample("two", True, 0.5), Sample("a b", True, 0.0), Sample("none", True, None)],
        [Sample("three", True, 0.9), Sample("four", True, 0.6)],
    ]
    # Values are 0, 0.1, 0.5, 0.6 and 0.9: the lowest 25 % of five are two of them, and one is the reference.
    made = make(rows, {"model_sample": 1}, tokenizer, samples=samples)
    assert [(negative.row, negative.text, negative.ended) for negative in made.negatives] == [(0, "one", False)]
    assert made.skipped == {"model_sample": {"no sample of the row is bad enough": 1}}
    plain = [[tuple(sample) for sample in of_row] for of_row in samples]
    assert make(rows, {"model_sample": 1}, tokenizer, samples=plain) == made
    lowest = {"model_sample": {"quantile": 0.2}}  # only the reference's
    assert make(rows, lowest, tokenizer, samples=samples).negatives == []
    every = {"model_sample": {"quantile": 1, "per_row": 3}}  # but the best
    assert sorted(n.text for n in make(rows, every, tokenizer, samples=samples).negatives) == ["four", "one", "two"]


def test_model_sample_by_rouge(tokenizer):
    rows = [row("a b c d", "x y"), row("кот спит")]
    samples = [[Sample("a b q"), Sample("x z")], [Sample("кот ест"), Sample("кот спит тут")]]
    # ROUGE-L against the best reference: 4/7, 1/2; 1/2, 4/5.
    made = make(rows, {"model_sample": {"quantile": 0.5}}, tokenizer, samples=samples)
    assert [negative.text for negative in made.negatives] == ["x z", "кот ест"]
    all_the_same = [[Sample("a")], [Sample("кот", True)]]
    made = make([row("a b"), row("кот спит")], {"model_sample": 1}, tokenizer, samples=all_the_same)
    assert made.negatives == []  # as good as any


def test_model_sample_without_values(tokenizer):
    assert drawn(tokenizer, "model_sample", [row("!")], 1, samples=[[Sample("?")]]) == (
        set(),
        {"no sample has a value"},
    )


# --- what holds for all of them ------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        "the", "Cat", "sat.", "Ann", "is", "not", "5", "12:30", "Monday", " ", "\n", "", "!", "—",
        "кот", "Пётр", "сидел.", "القط", "جلس", "猫", "坐在", "。", "ก็", "नमस्ते", "e\u0301", "か\u3099",
        "🙂", "👩\u200d👧", "👍\U0001f3fd", "<eos>", "\ufffd",
    ]
)  # fmt: skip
texts = st.one_of(st.lists(pieces, max_size=12).map(" ".join), st.lists(pieces, max_size=8).map("".join), st.text())
multilingual_rows = st.lists(
    st.builds(
        lambda references, source, prompt: {"references": references, "source": source, "prompt": prompt},
        st.lists(texts, max_size=3),
        st.none() | texts,
        texts | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": texts}), max_size=2),
    ),
    max_size=4,
)


def letters(text):
    text = unicodedata.normalize("NFC", text.casefold())
    return "".join(char for char in text if unicodedata.category(char)[0] in "LMN") or "".join(text.split())


@settings(max_examples=60, deadline=None)
@given(multilingual_rows, st.integers(0, 3), st.data())
def test_every_negative(tokenizer, rows, seed, data):
    samples = [
        data.draw(st.lists(st.builds(Sample, texts, st.booleans(), st.none() | st.floats(0, 1)), max_size=3))
        for _ in rows
    ]
    categories = {**dict.fromkeys(CATEGORIES, 2), "copied": {"from": "anywhere", "per_row": 2}}
    made = make(rows, categories, tokenizer, seed=seed, samples=samples)
    assert make(rows, categories, tokenizer, seed=seed, samples=samples) == made
    counts = Counter(negative.category for negative in made.negatives)
    for category in CATEGORIES:
        assert counts[category] + sum(made.skipped[category].values()) == 2 * len(rows)
    per_row = Counter((negative.row, negative.category, letters(negative.text)) for negative in made.negatives)
    assert set(per_row.values()) <= {1}
    for negative in made.negatives:
        references = rows[negative.row]["references"]
        assert negative.reference in references
        assert letters(negative.text) not in map(letters, references)
        assert " ".join(negative.text.casefold().split()) not in {" ".join(r.casefold().split()) for r in references}
        assert negative.text.strip() == negative.text != ""
        assert "\ufffd" not in negative.text
        assert not re.search(r"<pad>|<eos>|<\|(user|assistant|system)\|>", negative.text)
        check_shape(negative)


def check_shape(negative):
    text, reference = negative.text, negative.reference.strip()
    if negative.category == "truncated":
        assert reference.startswith(text)
        assert 0.3 <= len(text) / len(reference) <= 0.8
        assert text[-1] not in ".!。—"
        assert not negative.ended
    elif negative.category != "model_sample":
        assert negative.ended
    if negative.category == "shuffled":
        assert Counter("".join(text.split())) == Counter("".join(reference.split()))
    if negative.category == "runon":
        assert text.startswith(reference) and len(text) > len(reference)
    if negative.category == "repetitive":
        assert set("".join(text.split())) <= set(reference)


ROWS = [
    row(entry["summary"], entry["clean"][0], source=entry["note"], prompt=f"Shorten: {entry['note']}")
    for entry in load("notes", "train", rows=40)
]


def by_row(made, rows):
    return {
        (rows[negative.row]["prompt"], negative.category, negative.reference, negative.text)
        for negative in made.negatives
    }


def test_the_order_of_rows_makes_no_difference(tokenizer):
    categories = {**dict.fromkeys(WITHOUT_SAMPLES, 1), "random_tokens": {"vocabulary": "unigram", "per_row": 1.5}}
    made = make(ROWS, categories, tokenizer)
    backwards = ROWS[::-1]
    assert by_row(make(backwards, categories, tokenizer), backwards) == by_row(made, ROWS)
    assert [negative.row for negative in made.negatives] == sorted(negative.row for negative in made.negatives)


def test_other_rows_make_no_difference_where_none_is_needed(tokenizer):
    own = ["random_tokens", "shuffled", "repetitive", "copied", "truncated"]
    categories = dict.fromkeys(own, 1.5)
    every = make(ROWS, categories, tokenizer)
    few = make(ROWS[20:25], categories, tokenizer)
    chosen = {each for each in by_row(every, ROWS) if each[0] in {row["prompt"] for row in ROWS[20:25]}}
    assert by_row(few, ROWS[20:25]) == chosen
    alone = make(ROWS[20:25], {"truncated": 1.5}, tokenizer)  # nor do other categories
    assert alone.negatives == [negative for negative in few.negatives if negative.category == "truncated"]


def test_seeds_and_references_differ(tokenizer):
    first, second = (make(ROWS, {"truncated": 1, "shuffled": 1}, tokenizer, seed=seed) for seed in (0, 1))
    assert len(by_row(first, ROWS) & by_row(second, ROWS)) < 10
    assert 20 < sum(negative.reference == ROWS[negative.row]["references"][0] for negative in first.negatives) < 60
    truncated, shuffled = (
        [n.reference for n in first.negatives if n.category == category] for category in ("truncated", "shuffled")
    )
    assert truncated != shuffled


def test_how_many_a_row_gets(tokenizer):
    rows = [row(f"number {n} of many rows") for n in range(400)]
    made = make(rows, {"shuffled": 0.5, "truncated": {"per_row": 1.25}}, tokenizer)
    counts = Counter((negative.category, negative.row) for negative in made.negatives)
    assert made.skipped == {"shuffled": {}, "truncated": {}}
    assert 160 < sum(category == "shuffled" for category, _ in counts) < 240
    assert {counts["shuffled", n] for n in range(400)} == {0, 1}
    assert {counts["truncated", n] for n in range(400)} == {1, 2}
    assert 460 < sum(n for (category, _), n in counts.items() if category == "truncated") < 540


def test_another_reference_serves_where_one_cannot(tokenizer):
    made = make([row("too short", "this is long enough")] * 20, {"shuffled": 1}, tokenizer)
    assert {negative.reference for negative in made.negatives} == {"this is long enough"}
    assert len(made.negatives) == 20


def test_rows_without_references(tokenizer):
    made = make([row(), row(" ", "\n")], dict.fromkeys(WITHOUT_SAMPLES, 1), tokenizer)
    assert made.negatives == []
    assert made.skipped == dict.fromkeys(WITHOUT_SAMPLES, {"the row has no reference": 2})
    assert make([], {"copied": 1}, tokenizer).skipped == {"copied": {}}


def test_special_tokens_are_never_written(tokenizer):
    reasons = {"what was drawn holds a special token or U+FFFD"}
    assert drawn(tokenizer, "shuffled", [row("a b <eos>")], 3) == (set(), reasons)
    assert drawn(tokenizer, "copied", [row("a b", source="<|user|> a \ufffd")], 3) == (set(), reasons)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ({}, "preferences.negatives must say how many a row gets of which category, as in `shuffled: 1`."),
        (["shuffled"], "preferences.negatives must say how many"),
        ({"copy": 1}, "preferences.negatives: category 'copy' does not exist: did you mean 'copied'?"),
        ({"copied": 0}, "preferences.negatives.copied must be a number above 0, not 0."),
        ({"copied": -1}, "preferences.negatives.copied must be a number above 0, not -1."),
        ({"copied": True}, "preferences.negatives.copied must be a number above 0, not True."),
        ({"copied": None}, "preferences.negatives.copied must be a number above 0, not None."),
        ({"copied": float("inf")}, "preferences.negatives.copied must be a number above 0, not inf."),
        ({"copied": {"per_row": "1"}}, "preferences.negatives.copied.per_row must be a number above 0, not '1'."),
        (
            {"copied": {"form": "lead"}},
            "preferences.negatives.copied: argument 'form' does not exist: did you mean 'from'? Valid: per_row, from.",
        ),
        ({"truncated": {"from": "lead"}}, "argument 'from' does not exist. Valid: per_row."),
        ({"copied": {"from": "led"}}, "preferences.negatives.copied.from 'led' does not exist: did you mean 'lead'?"),
        ({"random_tokens": {"vocabulary": "unigrams"}}, "random_tokens.vocabulary 'unigrams' does not exist"),
        ({"irrelevant": {"max_rouge": -0.1}}, "irrelevant.max_rouge must be a number of at least 0, not -0.1."),
        ({"shuffled": {"unit": "words"}}, "shuffled.unit 'words' does not exist: did you mean 'word'?"),
        ({"shuffled": {"n": 1}}, "shuffled.n must be a whole number of at least 2, not 1."),
        ({"hallucinated": {"kinds": "date"}}, "hallucinated.kinds must be a list of entity, number, date, negation"),
        ({"hallucinated": {"kinds": []}}, "hallucinated.kinds must be a list"),
        ({"hallucinated": {"kinds": ["dates"]}}, "hallucinated.kinds 'dates' does not exist: did you mean 'date'?"),
        ({"model_sample": {"quantile": 0}}, "model_sample.quantile must be a number above 0, not 0."),
        ({"model_sample": {"quantile": 1.5}}, "model_sample.quantile must be a share of at most 1, not 1.5."),
    ],
)
def test_refusals(tokenizer, categories, message):
    for refuse in (lambda: check_categories(categories), lambda: make([], categories, tokenizer)):
        with pytest.raises(InputError) as error:
            refuse()
        assert message in str(error.value)


def test_white_space_between_symbols_says_nothing_new(tokenizer):
    texts, _ = drawn(tokenizer, "repetitive", [row("。 。")])
    assert "。。。" in texts and "。。" not in texts


def test_every_category_can_be_asked_for():
    assert check_categories(dict.fromkeys(CATEGORIES, 1)) is None
    assert check_categories({category: {} for category in CATEGORIES}) is None


def test_samples_are_missing(tokenizer):
    with pytest.raises(InputError, match=r"set preferences\.samples in a stage of `method: pairs`"):
        make([row("a b")], {"model_sample": 1}, tokenizer)
    with pytest.raises(InputError, match="samples of 1 rows, and 2 rows"):
        make([row("a b")] * 2, {"model_sample": 1}, tokenizer, samples=[[]])


def test_nothing_heavy_is_imported():
    heavy = "{'torch', 'transformers', 'trl', 'numpy', 'datasets'}"
    code = f"import sys, lastmile_trl.preferences.negatives; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_speed(tokenizer):
    rows = [{**ROWS[n % 40], "prompt": json.dumps(n)} for n in range(400)]
    start = time.process_time()
    made = make(rows, dict.fromkeys(WITHOUT_SAMPLES, 1), tokenizer)
    assert time.process_time() - start < 4
    assert len(made.negatives) > 3160
