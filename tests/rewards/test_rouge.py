import math
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.rouge import VARIANTS, Rouge

MEASURES = {"f": "fmeasure", "precision": "precision", "recall": "recall"}


def rouge(prediction, references, *arguments, **keywords):
    [value] = Rouge(*arguments, **keywords)([prediction], [references])
    return value


@pytest.mark.parametrize(("variant", "expected"), [("rouge1", 5 / 6), ("rouge2", 3 / 5), ("rougeL", 5 / 6)])
def test_one_word_of_six_differs(variant, expected):
    assert rouge("the cat was on the mat", "the cat sat on the mat", variant) == pytest.approx(expected)


def test_measures_of_an_over_long_completion():
    reference = "one two three four five six"
    completion = reference + " and ten more words which are not in the reference"
    assert rouge(completion, reference, measure="precision") == 6 / 16
    assert rouge(completion, reference, measure="recall") == 1
    assert rouge(completion, reference, measure="f") == pytest.approx(0.5454545)


def test_n_grams_count_as_often_as_the_text_that_has_them_less_often():
    assert rouge("a b a b", "a b", "rouge1", "precision") == 2 / 4
    assert rouge("a b", "a b a b", "rouge1", "recall") == 2 / 4
    assert rouge("a b a b a", "a b a b", "rouge2", "precision") == 3 / 4  # ab ba ab ba; ab ba ab


def test_order_matters_to_the_subsequence_only():
    assert rouge("d c b a", "a b c d", "rouge1") == 1
    assert rouge("d c b a", "a b c d", "rougeL") == 1 / 4


def test_summary_level_unites_the_lines():
    # Line 1 of the reference is common with "a b" in a, b and with "c" in c; line 2 with nothing.
    assert rouge("a b\nc", "a b c\nd e", "rougeLsum", "recall") == 3 / 5
    assert rouge("a b\nc", "a b c\nd e", "rougeLsum", "precision") == 1
    # As one line, "c" cannot come before "a b".
    assert rouge("c\na b", "a b c", "rougeLsum") == 1
    assert rouge("c a b", "a b c", "rougeLsum") == pytest.approx(2 / 3)


def test_summary_level_counts_a_token_once_per_time_the_completion_has_it():
    assert rouge("a", "a\na\na", "rougeLsum", "recall") == 1 / 3


def test_stems():
    assert rouge("running cats", "runs cat", "rouge1", stem=True) == 1
    assert rouge("running cats", "runs cat", "rouge1", stem=False) == 0
    assert rouge("his was", "hi wa", "rouge1", stem=True) == 0  # words of up to three letters have no stem


def test_a_run_of_the_letter_y_as_long_as_a_completion():
    assert rouge("y" * 5000, "y" * 5000) == 1


def test_tokens_are_ascii_letters_and_digits_in_lower_case():
    assert rouge("The CAT—2023", "the cat 2023", "rouge1", stem=False) == 1
    assert rouge("na\u00efve", "na ve", "rouge1", stem=False) == 1
    assert rouge("\u212aelvin", "kelvin", "rouge1", stem=False) == 1  # the Kelvin sign has an ASCII lower case
    assert rouge("\ud800 cat", "cat", "rouge1", stem=False) == 1  # half a surrogate pair, as a cut-off decode leaves it


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "references", ["", " \n", "...", "\u043a\u043e\u0442 \u0441\u0438\u0434\u0435\u043b", [], None, ["", "?"]]
)
def test_without_a_reference_token_there_is_no_score(variant, references):
    assert rouge("\u043a\u043e\u0442 \u0441\u0438\u0434\u0435\u043b", references, variant) is None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("measure", MEASURES)
def test_an_empty_completion_scores_zero(variant, measure):
    assert rouge("", "the cat", variant, measure) == 0
    assert rouge("?!", "the cat", variant, measure) == 0


def test_texts_shorter_than_n_score_zero():
    assert rouge("cat", "cat", "rouge2") == 0
    assert rouge("the cat", "cat", "rouge2") == 0


def test_several_references_by_the_chosen_measure():
    references = ["a b c d", "a"]  # with "a b": P 1 and .5, R .5 and 1, F .667 and .667
    assert rouge("a b", references, "rouge1", "recall") == 1
    assert rouge("a b", references, "rouge1", "precision") == 1
    assert rouge("a b", references, "rouge1", "recall", aggregate="mean") == 0.75
    assert rouge("a b", ["x", "a b"], "rouge1", aggregate="mean") == 0.5


def test_an_empty_reference_among_others_does_not_count():
    assert rouge("a b", ["", "a b"], "rouge1", aggregate="mean") == 1


def test_chats_and_strings_score_alike():
    chat = [{"role": "assistant", "content": "let me see"}, {"role": "assistant", "content": "the cat sat"}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "the cat "}, {"type": "text", "text": "sat"}]}]
    silent = [{"role": "assistant", "content": None}]
    values = Rouge()(["the cat sat", chat, parts, silent], ["the cat sat on it too"] * 4)
    assert values == [pytest.approx(2 / 3)] * 3 + [0]


@pytest.mark.parametrize("completion", [None, 3, [], ["text"], [{"content": 3}]])
def test_what_is_no_completion_is_refused(completion):
    with pytest.raises(TypeError, match="completion"):
        Rouge()([completion], ["the cat"])


@pytest.mark.parametrize("references", [3, [None], {"text": "a"}])
def test_what_is_no_reference_is_refused(references):
    with pytest.raises(TypeError, match="references"):
        Rouge()(["the cat"], [references])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "rougel"}, "variant 'rougel' does not exist: did you mean 'rougeL'?"),
        ({"variant": "rouge0"}, "variant 'rouge0' does not exist"),
        ({"variant": 2}, "variant 2 does not exist"),
        ({"measure": "recal"}, "measure 'recal' does not exist: did you mean 'recall'?"),
        ({"aggregate": "maximum"}, "aggregate 'maximum' does not exist: did you mean 'max'?"),
        ({"stem": "yes"}, "stem must be true or false, not 'yes'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        Rouge(**arguments)
    assert message in str(error.value)


def test_names():
    names = [Rouge(variant, measure).__name__ for variant in VARIANTS for measure in MEASURES]
    assert len(set(names)) == len(names)
    assert Rouge().__name__ == "rouge/rougeL"
    assert Rouge("rouge2", "recall").__name__ == "rouge/rouge2-recall"


def test_a_shuffled_batch_gets_shuffled_rewards():
    generator = random.Random(3)
    rows = [(text(generator), [text(generator) for _ in range(generator.randrange(3))]) for _ in range(200)]
    for variant in ("rouge2", "rougeL", "rougeLsum"):
        values = Rouge(variant)(*zip(*rows, strict=True))
        order = generator.sample(range(len(rows)), len(rows))
        shuffled = Rouge(variant)(*zip(*(rows[index] for index in order), strict=True))
        assert shuffled == [values[index] for index in order]


def test_a_reference_is_prepared_once_for_its_group(monkeypatch):
    prepared = []
    prepare = Rouge._prepare
    monkeypatch.setattr(Rouge, "_prepare", lambda self, text: prepared.append(text) or prepare(self, text))
    Rouge()(["a", "b", "c", "d"], ["one", "one", ["two", "one"], "two"])
    assert prepared == ["one", "two"]


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_recall_grows_with_the_part_of_the_reference_that_is_said(variant):
    words = ["one", "two", "three\nfour", "five", "six", "seven\neight", "nine", "ten"]
    said = [" ".join(words[:count]) for count in range(len(words) + 1)]
    values = Rouge(variant, "recall")(said, [" ".join(words)] * len(said))
    assert values == sorted(values)
    assert values[0] == 0 and values[-1] == 1


def test_a_pickled_copy_scores_alike():
    original = Rouge("rougeLsum", "recall", stem=False, aggregate="mean")
    original(["warm up"], ["warm up"])
    copy = pickle.loads(pickle.dumps(original))
    assert copy == original and copy.__name__ == original.__name__
    assert copy(["a b"], [["a", "a c"]]) == original(["a b"], [["a", "a c"]]) == [0.75]


def test_threads_may_share_a_reward():
    generator = random.Random(4)
    completions, references = [text(generator) for _ in range(100)], [text(generator) for _ in range(100)]
    reward = Rouge("rouge2")
    expected = reward(completions, references)
    with ThreadPoolExecutor(8) as pool:
        for values in pool.map(lambda _: reward(completions, references), range(16)):
            assert values == expected


# -- Equality with rouge_score -----------------------------------------------------------------------------------------

WORDS = ["cats", "cat", "running", "runs", "happily", "happiness", "flies", "dying", "yyyyy", "2023", "x1", "the", "of"]
WORDS += ["stra\u00dfe", "\u0130stanbul", "\u212a"]  # lower-casing the last two gives ASCII letters
SEPARATORS = [" ", " ", " ", " ", "\n", ", ", "\r\n", "\n\n", "\x0b", "\x85", "\u2028", "\u0663", "-"]


def text(generator):
    """Return a text of one of five kinds, most of them made to hit rules and ties."""
    kind = generator.randrange(5)
    if kind == 0:
        return "".join(generator.choice(WORDS) + generator.choice(SEPARATORS) for _ in range(generator.randrange(40)))
    if kind == 1:  # two to four letters: many equally long common subsequences
        letters = "abcd"[: generator.randrange(2, 5)]
        return "".join(generator.choice(letters) + generator.choice("   \n") for _ in range(generator.randrange(50)))
    if kind == 2:
        return "".join(map(chr, (generator.randrange(0x110000) for _ in range(generator.randrange(20)))))
    if kind == 3:
        return "".join(map(chr, (generator.randrange(9, 127) for _ in range(generator.randrange(60)))))
    return "".join(map(chr, (generator.randrange(97, 123) for _ in range(generator.randrange(12))))) + "ational"


def near_copy(original, generator):
    """Return the text with some pieces of it dropped, doubled or moved."""
    pieces = original.split(" ")
    kept = [piece for piece in pieces for _ in range(generator.choice((0, 1, 1, 1, 2)))]
    if generator.random() < 0.3:
        generator.shuffle(kept)
    return generator.choice((" ", "\n")).join(kept)


def assert_equal_to_rouge_score(stem, pairs, seed):
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    variants = ["rouge1", "rouge2", "rouge3", "rouge9", "rougeL", "rougeLsum"]
    scorer = RougeScorer(variants, use_stemmer=stem)
    rewards = [
        (variant, field, Rouge(variant, measure, stem)) for variant in variants for measure, field in MEASURES.items()
    ]
    generator = random.Random(seed)
    scored = 0
    for _ in range(pairs):
        reference = text(generator)
        prediction = near_copy(reference, generator) if generator.random() < 0.5 else text(generator)
        expected = scorer.score(reference, prediction)
        for variant, field, reward in rewards:
            [value] = reward([prediction], [reference])
            if value is None:
                assert not tokenize(reference, None)
            else:
                assert value == getattr(expected[variant], field), (variant, field, reference, prediction)
                scored += value > 0
    assert scored > pairs  # the texts must have something in common, or equality says little


@pytest.mark.parametrize("stem", [True, False])
def test_equal_to_rouge_score(stem):
    assert_equal_to_rouge_score(stem, pairs=1_000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("stem", [True, False])
def test_equal_to_rouge_score_on_many_texts(stem):
    assert_equal_to_rouge_score(stem, pairs=20_000, seed=2)


def test_equal_to_rouge_score_on_long_texts():
    from rouge_score.rouge_scorer import RougeScorer

    generator = random.Random(5)
    words = ["".join(generator.choices("aeinrst", k=generator.randrange(1, 6))) for _ in range(150)]
    for _ in range(4):
        reference, prediction = (
            "".join(generator.choice(words) + generator.choice(" " * 15 + "\n") for _ in range(300)) for _ in range(2)
        )
        for variant, expected in (
            RougeScorer(["rouge2", "rougeL", "rougeLsum"], use_stemmer=True).score(reference, prediction).items()
        ):
            assert rouge(prediction, reference, variant) == expected.fmeasure > 0


def test_best_reference_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    generator = random.Random(6)
    scorer = RougeScorer(["rouge1", "rougeL", "rougeLsum"], use_stemmer=True)
    for _ in range(200):
        references = [text(generator) + " end" for _ in range(3)]
        prediction = near_copy(references[0], generator)
        for variant, expected in scorer.score_multi(references, prediction).items():
            assert rouge(prediction, references, variant) == expected.fmeasure


def test_values_are_plain_floats():
    values = [rouge(completion, "a b", variant) for variant in VARIANTS for completion in ("", "a b", "c")]
    assert all(type(value) is float and math.isfinite(value) for value in values)
