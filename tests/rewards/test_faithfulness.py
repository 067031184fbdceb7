import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import faithfulness
from lastmile_trl.rewards.faithfulness import (
    Copying,
    Entities,
    Novelty,
    Numbers,
    extractive,
    inner_names,
    novel,
    unsupported,
)

DIALOGUE = """Hannah: Hey, do you have Betty's number?
Amanda: Lemme check.
Amanda: Sorry, can't find it. Ask Larry, he called her last time we were at the park.
Hannah: I don't know him well.
Amanda: Don't be shy, he's very nice."""


def one(reward, completion, source=None, references=None):
    columns = {"prompts": [source], "references": [references]}
    [value] = reward([completion], **columns)
    return value


@pytest.mark.parametrize(
    ("completion", "found", "named"),
    [
        ("Hannah needs Betty's number but Amanda doesn't have it.", 3, 3),
        ("Hannah needs Jerry’s number.", 1, 2),
        ("She should ask Larry. He called Betty.", 2, 2),  # function words name nothing
        ("However, I'm sure they'd ask LARRY. Don't they?", 1, 1),
        ("Sorry, nobody can find the number.", 1, 1),  # any other word that starts a sentence does
        ("Complaining, nobody can find the number.", 0, 1),
        ("hannah and betty", 0, 0),
        ("Larry O'Brien and Jean-Claude", 1, 4),  # Larry, O'Brien, Jean, Claude: words, not spans
        ("Larry, Larry's, LARRY", 1, 1),  # a set
        ("Larry bought an iPhone at 5PM in 2B.", 1, 2),
        ("Hannah, like Łucja and Éloïse and E\u0301loise", 1, 4),
        ("Will and May met us in the US.", 0, 3),  # us, will and may are names too: a capital counts
        ("", 0, 0),
        ("🙂 ...", 0, 0),
        ("猫坐在垫子上。", 0, 0),
        ("The Isn't Ain't Can't Won't", 0, 0),
    ],
)
def test_precision_of_entities(completion, found, named):
    assert one(Entities("precision"), completion, DIALOGUE) == (found / named if named else None)


@pytest.mark.parametrize(
    ("completion", "source", "expected"),
    [
        ("Анна и Пётр", "Анны нет, но есть Пётр.", 1 / 2),
        ("O’Brien's", "mr o'brien", 1),
        ("Café", "un cafe\u0301", 1),
        ("STRASSE", "die Straße", 1),
        ("Anna", "Hanna, Annabel", 0),  # whole words
        ("Anna", "", 0),
    ],
)
def test_entities_match_whole_words_whatever_their_case(completion, source, expected):
    assert one(Entities("precision"), completion, source) == expected


def test_recall_of_entities():
    recall = Entities("recall")
    assert one(recall, "amanda cannot help", references="Hannah asks Amanda.") == 1 / 2
    assert one(recall, "Amanda", references=["Hannah asks Amanda.", "Amanda can't help."]) == 1
    assert one(recall, "", references="Hannah asks Amanda.") == 0
    assert one(recall, "Amanda", references=["She cannot help.", "Hannah"]) == 0  # of those that have names
    assert one(recall, "Amanda", references=["She cannot help."]) is None


def test_f_of_entities():
    f = Entities()
    # Of Hannah and Jerry the source has one: P = 1/2. Of Hannah, Betty and Larry the completion has one: R = 1/3.
    expected = 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)
    assert one(f, "Hannah and Jerry", DIALOGUE, "Hannah, Betty, Larry") == pytest.approx(expected)
    assert one(f, "Jerry", DIALOGUE, "Hannah") == 0
    assert one(f, "nobody", DIALOGUE, "Hannah") == 0
    assert one(f, "hannah", DIALOGUE, "Hannah") == 0  # all of the reference, and no name to be right about
    assert one(f, "Hannah and Jerry", DIALOGUE, "nobody") == 1 / 2
    assert one(f, "nobody", DIALOGUE, "nobody") == 1  # nothing to name, and nothing named


@pytest.mark.parametrize("references", [None, [], "", [" \n"]])
@pytest.mark.parametrize("kind", [Entities, Numbers])
def test_without_a_reference_only_precision_has_a_value(kind, references):
    completion = "Hannah has 3."
    assert one(kind("f"), completion, completion, references) is None
    assert one(kind("recall"), completion, completion, references) is None
    assert one(kind("precision"), completion, completion, references) == 1


@pytest.mark.parametrize(
    ("completion", "numbers"),
    [
        ("1,200 and 1200 and 1,200.00", {"1200"}),
        ("3.50 3.5 3,5 3.05", {"3.5", "3.05"}),
        ("three, 3rd, 3%, $3, -3, 3.0 and 03", {"3"}),
        ("zero, two, Twelve, TWENTY, ninety", {"0", "2", "12", "20", "90"}),
        ("twenty-one, thirty two and forty, nine", {"21", "32", "40", "9"}),
        ("one of them, the second, a hundred, someone, often, tent", set()),
        ("seven, seventeen, seventy, six-year-old", {"7", "17", "70", "6"}),
        ("10:30, 09:05 and 9:05", {"10:30", "9:5"}),
        ("12/05/2024 or 12.05.2024", {"12/5/2024", "12.5.2024"}),
        ("It was 5. Then 6, 7; 8: 9/", {"5", "6", "7", "8", "9"}),
        ("1,000,000 and 12,34", {"1000000", "12.34"}),
        ("£20-£25, 5pm, 1990s", {"20", "25", "5", "1990"}),
        ("١٢٣ and ٣٫٥ and １２", {"123", "3.5", "12"}),
        ("0.0, 00 and 0", {"0"}),
        ("1" * 40 + ".50", {"1" * 40 + ".5"}),
        ("²", set()),
        ("", set()),
    ],
)
def test_numbers(completion, numbers):
    """A completion with these numbers, all and only: each is in a source of them, none in a source without it."""
    reward = Numbers("precision")
    source = " ; ".join(numbers)
    assert one(reward, completion, source) == (1 if numbers else None)
    for number in numbers:
        rest = " ; ".join(numbers - {number})
        assert one(reward, completion, rest) == pytest.approx(1 - 1 / len(numbers))


def test_a_source_is_read_once_for_all_runs(monkeypatch):
    read, numbers_of = [], faithfulness._numbers
    monkeypatch.setattr(faithfulness, "_numbers", lambda text: read.append(text) or numbers_of(text))
    sources = [f"{number} of 1,000 rows, of which this is the source" for number in range(1000)]
    for said in (5, 7, 9):
        found = Numbers("precision")([f"It is {said}."] * 1000, prompts=sources)
        assert found == [float(number == said) for number in range(1000)]
    assert unsupported(["5, 1000"], sources[7]) == [[(0, 1)]]
    assert sum(text in sources for text in read) == len(sources)


def test_measures_of_numbers():
    source, references = "Sales rose from 100 to 250 in 2023.", ["Sales rose to 250 in 2023.", "Sales reached 250."]
    assert one(Numbers("precision"), "Sales rose to 240 in 2023.", source) == 1 / 2
    assert one(Numbers("recall"), "Sales rose to 240 in 2023.", references=references) == 1 / 2  # 0 of the second
    assert one(Numbers(), "Sales rose to 240 in 2023.", source, references) == 1 / 2
    assert one(Numbers(), "Sales rose.", source, references) == 0
    assert one(Numbers(), "Sales rose.", source, ["Sales rose."]) == 1
    assert one(Numbers(), "Sales rose to 240 in 2023.", source, ["Sales rose."]) == 1 / 2


SAID = st.lists(st.sampled_from(["Hannah", "Larry", "12", "5", "the", "saw", "Betty", "three"]), max_size=8)
OTHER = st.lists(st.sampled_from(["Hannah", "Larry", "12", "5", "the", "Amanda"]), max_size=8)


@given(SAID, OTHER)
def test_an_invention_never_raises_precision(completion, source):
    text, source = " ".join(completion), " ".join(source)
    for kind, invented in ((Entities, "Zorblax"), (Numbers, "987")):
        before, after = one(kind("precision"), text, source), one(kind("precision"), f"{text} {invented}", source)
        assert after == 0 if before is None else after < before or before == after == 0


@given(SAID, OTHER)
def test_naming_more_of_the_reference_never_lowers_recall(completion, reference):
    text, reference = " ".join(completion), " ".join(reference)
    for kind in (Entities, Numbers):
        before, after = (
            one(kind("recall"), text, None, reference),
            one(kind("recall"), f"{text} Amanda 5", None, reference),
        )
        assert (before is None and after is None) or after >= before


A = "the quick brown fox jumps over the lazy dog near the river bank"
S = "the brown fox jumps over a lazy dog"


def test_extractive_of_the_known_pair():
    # the | brown fox jumps over | lazy dog: (1 + 4 + 2) / 8, (1 + 16 + 4) / 8, 13 / 8
    assert extractive(A, S) == (0.875, 2.625, 1.625)


@pytest.mark.parametrize(("n", "expected"), [(1, 1 / 8), (2, 3 / 7), (3, 4 / 6), (4, 4 / 5), (8, 1), (9, None)])
def test_novel_of_the_known_pair(n, expected):
    assert novel(A, S, n) == (pytest.approx(expected) if expected else None)


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        (A, A, (1, 13, 1)),
        (A, "", None),
        (A, " ...", None),
        ("", "a cat", (0, 0, 0)),
        ("a b c a b d", "a b d", (1, 3, 2)),  # the longest stretch, not the first
        ("a b", "a b a b", (1, 2, 0.5)),
        ("a a a", "a a a a a", (1, (9 + 4) / 5, 0.6)),
        ("A cat!", "a CAT", (1, 2, 1)),
        ("Кот сидел.", "кот лежал", (0.5, 0.5, 1)),
    ],
)
def test_extractive(source, text, expected):
    assert extractive(source, text) == expected


def test_tokenizers():
    assert extractive("猫坐在垫子上。", "猫在垫子上") == (0, 0, 1)
    assert extractive("猫坐在垫子上。", "猫在垫子上", "characters") == (1, (1 + 16) / 5, 6 / 5)
    assert novel("猫坐在垫子上。", "猫在垫子上", 2, "characters") == 1 / 4
    assert Copying(tokenizer="characters")(["坐在垫子上"], prompts=["猫坐在垫子上。"]) == [1 - 5 / 4]
    assert Novelty(n=2, tokenizer="characters")(["猫在垫子上"], prompts=["猫坐在垫子上。"]) == [1 / 4 - 0.5]


def stretches(source, text):
    """The definition, step by step: at each word the longest run that the source has too."""
    lengths, start = [], 0
    while start < len(text):
        runs = range(len(text) - start, 0, -1)
        places = range(len(source))
        longest = next((n for n in runs if any(source[p : p + n] == text[start : start + n] for p in places)), 0)
        lengths += [longest] * (longest > 0)
        start += max(longest, 1)
    return lengths


TOKENS = st.lists(st.sampled_from("abc"), max_size=14)


@given(TOKENS, TOKENS.filter(bool))
def test_extractive_is_its_definition(source, text):
    lengths = stretches(source, text)
    expected = (sum(lengths) / len(text), sum(n * n for n in lengths) / len(text), len(source) / len(text))
    assert extractive(" ".join(source), " ".join(text)) == expected


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_novel_is_its_definition(source, text, n):
    def grams(tokens):
        return {tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)}

    found = grams(text)
    expected = len(found - grams(source)) / len(found) if found else None
    assert novel(" ".join(source), " ".join(text), n) == expected


@pytest.mark.parametrize(
    ("allowed", "expected"), [(1, -1), (1.5, 1 - 2.625 / 1.5), (2.5, 1 - 2.625 / 2.5), (2.625, 0), (4, 0)]
)
def test_copying(allowed, expected):
    assert one(Copying(allowed), S, A) == pytest.approx(expected)


def test_copying_more_never_pays():
    source = " ".join(f"word{number}" for number in range(40))
    texts = [" ".join([*source.split()[:copied], *["new"] * (40 - copied)]) for copied in range(41)]
    for allowed in (0.5, 4, 20):
        values = Copying(allowed)(texts, prompts=[source] * 41)
        assert values == sorted(values, reverse=True) and values[0] == 0 and values[-1] == -1


def test_copying_is_quick_for_long_and_for_looping_texts():
    source, text = [f"w{number * number % 97}" for number in range(1000)], ["w4", "w1", "w0", "x"] * 25
    for pair in (
        (source, source[300:350] + text[:50]),
        (["the"] * 1000, ["the"] * 100),
        (["a"] * 1000, ["a", "a", "b"] * 33),
    ):
        start = time.process_time()
        extractive(*map(" ".join, pair))
        assert time.process_time() - start < 0.25  # about 0.001 on an idle machine


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, 0), (0.5, 1, 3 / 7 - 0.5), (0, 0.2, 0.2 - 3 / 7), (0.4, 0.5, 0), (3 / 7, 3 / 7, 0), (1, 1, 3 / 7 - 1)],
)
def test_novelty(low, high, expected):
    assert one(Novelty(n=2, low=low, high=high), S, A) == pytest.approx(expected)


def test_novelty_of_a_copy_and_of_too_short_a_text():
    assert one(Novelty(), A, A) == -0.5
    assert one(Novelty(), "nothing of it is known", A) == 0
    assert one(Novelty(), "too short here", A) is None
    assert one(Copying(), "", A) is None


EVERY = [Entities(), Entities("precision"), Numbers(), Numbers("precision"), Copying(2), Novelty(2, low=0.9)]


@pytest.mark.parametrize("reward", EVERY)
def test_the_source_is_the_prompt_text_or_chat_or_a_column(reward):
    source, completion = "Ann and Bo saw 12 cats in the old town.", "Ann saw 12 cats in the old town of Rome on day 3."
    references = ["Ann saw 12 cats and 4 dogs."]
    value = one(reward, completion, source, references)
    assert value is not None and value != 0
    chat = [{"role": "system", "content": completion}, {"role": "user", "content": source}]
    assert one(reward, [{"role": "assistant", "content": completion}], chat, references) == value
    by_column = type(reward)(**{**vars(reward), "source": "article"})
    assert by_column([completion], references=[references], article=[source], prompts=["?"]) == [value]


def test_names_and_needs():
    for kind, name in ((Entities, "entities"), (Numbers, "numbers")):
        rewards = [kind(), kind("precision"), kind("recall")]
        assert [reward.__name__ for reward in rewards] == [name, f"{name}/precision", f"{name}/recall"]
        assert [reward.needs for reward in rewards] == [("references",), (), ("references",)]
        with_source = [kind(measure, source="article").needs for measure in ("f", "precision", "recall")]
        assert with_source == [("references", "article"), ("article",), ("references",)]
    assert (Copying().__name__, Copying().needs, Copying(source="a").needs) == ("copying", (), ("a",))
    assert (Novelty().__name__, Novelty().needs, Novelty(source="a").needs) == ("novelty", (), ("a",))


@pytest.mark.parametrize("reward", EVERY)
def test_pickle(reward):
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward and one(copy, S, A, S) == one(reward, S, A, S)


@pytest.mark.parametrize(
    ("reward", "arguments", "message"),
    [
        (Entities, {"measure": "recal"}, "measure 'recal' does not exist: did you mean 'recall'?"),
        (Numbers, {"measure": "f1"}, "measure 'f1' does not exist: did you mean 'f'?"),
        (Entities, {"source": ""}, "source must be the name of a column, not ''."),
        (Numbers, {"source": 3}, "source must be the name of a column, not 3."),
        (Copying, {"source": 3}, "source must be the name of a column, not 3."),
        (Copying, {"allowed": 0}, "allowed must be a number above 0, not 0."),
        (Copying, {"tokenizer": "word"}, "tokenizer 'word' does not exist: did you mean 'words'?"),
        (Novelty, {"n": 0}, "n must be a whole number of at least 1, not 0."),
        (Novelty, {"low": -0.1}, "low must be a number of at least 0, not -0.1."),
        (Novelty, {"high": "1"}, "high must be a number of at least 0, not '1'."),
        (Novelty, {"low": 0.5, "high": 0.4}, "low and high must be shares with low <= high <= 1, not 0.5 and 0.4."),
        (Novelty, {"high": 2}, "low and high must be shares with low <= high <= 1, not 0.5 and 2."),
        (Novelty, {"source": ""}, "source must be the name of a column, not ''."),
        (Novelty, {"tokenizer": "word"}, "tokenizer 'word' does not exist: did you mean 'words'?"),
    ],
)
def test_wrong_arguments(reward, arguments, message):
    with pytest.raises(InputError) as error:
        reward(**arguments)
    assert message in str(error.value)


def strange(text, source, known=()):
    [found] = unsupported([text], source, known)
    return [text[start:end] for start, end in found]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Baking is fun. Later they left. So, Larry asked.", []),  # sentences start with capitals, whatever the word
        ('"Baking," he said.\nBaking again!\n- Baking (Cooking) on.', ["Cooking"]),
        ("He saw Dr. Baking of J. Frying.", ["Dr", "Baking", "J", "Frying"]),  # no sentence starts after a title
        ("They asked Larry and Jerry's aunt", ["Jerry's"]),
        ("Larry has two cats, 30 dogs and 1,000.0 fish at 5 p.m.", ["30", "5"]),
        ("Straße, ẞ and ﬁve dogs of İnci’s 30", ["ẞ", "ﬁve", "İnci’s", "30"]),  # of characters that become several
        ("Agent K9", ["K9", "9"]),
        ("", []),
    ],
)
def test_what_the_source_does_not_support(text, found):
    assert strange(text, "Larry paid 1000 for 2.") == found


def test_a_known_name_counts_at_the_start_of_a_sentence_too():
    known = inner_names("Then Jerry left. Baking is what Ann’s brother likes. I'M JERRY")
    assert known == {"jerry", "ann"}
    assert strange("Jerry is ill. Baking helps. Anns dog.", "Ann", known) == ["Jerry"]


class Everything:
    def __contains__(self, name):
        return True


WORDS = st.lists(
    st.sampled_from(["Ann", "ann's", "The", "Bob", "ß", "İ", "3", "three", "1,200", "is.", "É", "e\u0301", "K9", "\n"])
).map(" ".join)


@given(WORDS, WORDS)
def test_unsupported_is_what_the_rewards_count(text, source):
    claims = Entities._claims(text) - Entities._support(source), Numbers._claims(text) - Numbers._support(source)
    parts = strange(text, source, Everything())
    assert set().union(*map(Entities._claims, parts)) == claims[0]
    assert claims[1] <= set().union(*map(Numbers._claims, parts)) and bool(parts) == any(claims)
