import math
import pickle
import random
import statistics
import string
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.rouge import VARIANTS, CombinedRouge, LengthAdjustedRouge, Rouge, _Subsequences
from lastmile_trl.rewards.tokens import TOKENIZERS, load_tokenizer, rouge_tokens, stem

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


def test_a_text_said_twice():
    text = "the cat sat on the mat"
    assert rouge(f"{text} {text}", text, "rouge1") == pytest.approx(2 / 3)  # P 6/12, R 6/6


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


def test_summary_level_takes_the_common_subsequence_that_rouge_score_takes():
    # "a b" and "b a" have two, "a" and "b"; rouge_score takes "a". The line "c b" adds "b".
    assert rouge("b a\nc b", "a b", "rougeLsum", "recall") == 1
    assert rouge("b a\nb a", "a b", "rougeLsum", "recall") == 1 / 2


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
        ({"tokenizer": "word"}, "tokenizer 'word' does not exist: did you mean 'words'?"),
    ],
)
def test_wrong_arguments(arguments, message):
    for reward in (Rouge, CombinedRouge, LengthAdjustedRouge):
        if arguments.keys() <= reward.__dataclass_fields__.keys():
            with pytest.raises(InputError) as error:
                reward(**arguments)
            assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -0.1}, "tolerance must be a number of at least 0, not -0.1"),
        ({"power": -1}, "power must be a number of at least 0, not -1"),
        ({"power": "1"}, "power must be a number of at least 0, not '1'"),
    ],
)
def test_wrong_arguments_of_the_adjustment(arguments, message):
    with pytest.raises(InputError) as error:
        LengthAdjustedRouge(**arguments)
    assert message in str(error.value)


def test_names():
    names = [Rouge(variant, measure).__name__ for variant in VARIANTS for measure in MEASURES]
    assert len(set(names)) == len(names)
    assert Rouge().__name__ == "rouge/rougeL"
    assert Rouge("rouge2", "recall").__name__ == "rouge/rouge2-recall"
    assert [CombinedRouge(measure).__name__ for measure in MEASURES] == [
        "combined_rouge",
        "combined_rouge/precision",
        "combined_rouge/recall",
    ]
    assert LengthAdjustedRouge("rougeLsum").__name__ == "length_adjusted_rouge/rougeLsum"


def test_a_shuffled_batch_gets_shuffled_rewards():
    generator = random.Random(3)
    rows = [(text(generator), [text(generator) for _ in range(generator.randrange(3))]) for _ in range(200)]
    for variant in ("rouge2", "rougeL", "rougeLsum"):
        values = Rouge(variant)(*zip(*rows, strict=True))
        order = generator.sample(range(len(rows)), len(rows))
        shuffled = Rouge(variant)(*zip(*(rows[index] for index in order), strict=True))
        assert shuffled == [values[index] for index in order]


def test_a_reference_is_read_once_for_its_group(monkeypatch):
    read = []
    monkeypatch.setitem(TOKENIZERS, "rouge", lambda text: read.append(text) or rouge_tokens(text))
    Rouge()(["a", "b", "c", "d"], ["one", "one", ["two", "one"], "two"])
    assert sorted(read) == ["a", "b", "c", "d", "one", "two"]


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_recall_grows_with_the_part_of_the_reference_that_is_said(variant):
    words = ["one", "two", "three\nfour", "five", "six", "seven\neight", "nine", "ten"]
    said = [" ".join(words[:count]) for count in range(len(words) + 1)]
    values = Rouge(variant, "recall")(said, [" ".join(words)] * len(said))
    assert values == sorted(values)
    assert values[0] == 0 and values[-1] == 1


@pytest.mark.parametrize(
    "original",
    [
        Rouge("rougeLsum", "recall", stem=False, aggregate="mean"),
        Rouge(tokenizer="shlex:split"),
        CombinedRouge("precision", tokenizer="words"),
        LengthAdjustedRouge("rouge2", power=2),
    ],
)
def test_a_pickled_copy_scores_alike(original):
    rows = ["a b c", "c"], [["a b", "a c d"], "c d"]
    expected = original(*rows)
    copy = pickle.loads(pickle.dumps(original))
    assert copy == original and hash(copy) == hash(original) and copy.__name__ == original.__name__
    assert copy(*rows) == original(*rows) == expected


def test_threads_may_share_a_reward():
    generator = random.Random(4)
    completions, references = [text(generator) for _ in range(100)], [text(generator) for _ in range(100)]
    reward = Rouge("rouge2")
    expected = reward(completions, references)
    with ThreadPoolExecutor(8) as pool:
        for values in pool.map(lambda _: reward(completions, references), range(16)):
            assert values == expected


# -- Other tokens ------------------------------------------------------------------------------------------------------

CYRILLIC = "\u043a\u043e\u0442 \u0441\u0438\u0434\u0435\u043b \u043d\u0430 \u043a\u043e\u0432\u0440\u0438\u043a\u0435"
CHINESE = "\u732b\u5750\u5728\u57ab\u5b50\u4e0a\u3002"
ARABIC = "\u062c\u0644\u0633 \u0627\u0644\u0642\u0637"


@pytest.mark.parametrize("reward", [Rouge, CombinedRouge, LengthAdjustedRouge])
@pytest.mark.parametrize("text", [CYRILLIC, CHINESE, ARABIC])
def test_the_same_text_in_another_script(reward, text):
    # A text of one word has no bigrams to share.
    words = 2 / 3 if reward is CombinedRouge and text == CHINESE else 1
    assert reward()([text], [text]) == [None]
    assert reward(tokenizer="words")([text], [text]) == [pytest.approx(words)]
    assert reward(tokenizer="characters")([text], [text]) == [1]


def test_words_of_another_script():
    # кот сидел and кот стоял: one word of two
    assert rouge("\u041a\u043e\u0442 \u0441\u0442\u043e\u044f\u043b.", CYRILLIC[:9], tokenizer="words") == 0.5


def test_characters():
    assert rouge("\u732b\u5728", "\u732b\u5750\u5728", "rougeL", "recall", tokenizer="characters") == 2 / 3
    assert rouge("\u732b\u5728", "\u732b\u5750\u5728", "rouge2", tokenizer="characters") == 0
    # A letter is the same whether its accent is a mark of its own or not.
    assert rouge("cafe\u0301", "caf\u00e9", tokenizer="characters") == 1


def test_a_tokenizer_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "own_tokens.py").write_text("def at_spaces(text):\n    return text.split()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert rouge("Cat, sat", "Cat sat", stem=False, tokenizer="own_tokens:at_spaces") == 0.5
    assert rouge("cat\nsat", "sat\ncat", "rougeLsum", tokenizer="own_tokens:at_spaces") == 1


# -- Combined ----------------------------------------------------------------------------------------------------------


def test_combined():
    [value] = CombinedRouge()(["the cat was on the mat"], ["the cat sat on the mat"])
    assert value == pytest.approx((5 / 6 + 3 / 5 + 5 / 6) / 3)
    assert CombinedRouge()([], []) == []
    assert CombinedRouge()(["", "a b"], ["a b", ""]) == [0, None]


def test_of_several_references_each_part_takes_its_best():
    # "a b c" has with "c b a" rouge1 1, rouge2 0, rougeL 1/3; with "a b d" 2/3, 1/2, 2/3.
    references = ["c b a", "a b d"]
    [value] = CombinedRouge()(["a b c"], [references])
    assert value == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    [value] = CombinedRouge(aggregate="mean")(["a b c"], [references])
    assert value == pytest.approx((5 / 6 + 1 / 4 + 1 / 2) / 3)


@pytest.mark.parametrize("arguments", [("f",), ("recall", False, "mean"), ("precision", True, "max", "words")])
def test_combined_is_the_mean_of_its_parts(arguments):
    rows = random_rows(200, seed=8)
    parts = [Rouge(variant, *arguments)(*rows) for variant in ("rouge1", "rouge2", "rougeL")]
    expected = [None if None in values else sum(values) / 3 for values in zip(*parts, strict=True)]
    assert CombinedRouge(*arguments)(*rows) == expected
    assert None in expected and any(expected)


# -- Adjusted for length -----------------------------------------------------------------------------------------------


def adjusted(prediction, reference, *arguments, **keywords):
    [value] = LengthAdjustedRouge(*arguments, **keywords)([prediction], [reference])
    return value


def numbers(count):
    return " ".join(map(str, range(count)))


def test_within_the_tolerance_the_length_costs_nothing():
    for count in (10, 11):
        assert adjusted(numbers(count), numbers(10)) == rouge(numbers(count), numbers(10)) > 0.9
    assert adjusted(numbers(8), numbers(10), tolerance=0.25) == rouge(numbers(8), numbers(10))


@pytest.mark.parametrize(
    ("count", "tolerance", "power", "factor"),
    [
        (20, 0, 1, 1 / 2),
        (5, 0, 1, 1 / 2),
        (20, 0.1, 1, 1.1 / 2),
        (20, 0.1, 2, 1.1**2 / 4),
        (40, 0.1, 1, 1.1 / 4),
        (8, 0.1, 1, 1.1 * 0.8),
        (8, 0.1, 0.5, math.sqrt(1.1 * 0.8)),
        (40, 0.1, 0, 1),
    ],
)
def test_outside_of_the_tolerance(count, tolerance, power, factor):
    value = adjusted(numbers(count), numbers(10), tolerance=tolerance, power=power)
    assert value == pytest.approx(factor * rouge(numbers(count), numbers(10)))


def test_an_empty_completion_or_reference():
    assert adjusted("", "a b") == 0
    assert adjusted("a b", "...") is None


def test_no_step_at_the_edge_of_the_tolerance():
    reference = numbers(1000)
    for edge in (1100, 909):
        factors = [
            adjusted(numbers(count), reference) / rouge(numbers(count), reference)
            for count in (edge - 1, edge, edge + 1)
        ]
        assert max(factors) == 1 > min(factors) > 0.998


def test_the_further_off_the_length_the_lower():
    counts = range(61)
    values = LengthAdjustedRouge()([numbers(count) for count in counts], [numbers(20)] * 61)
    plain = Rouge()([numbers(count) for count in counts], [numbers(20)] * 61)
    assert all(value <= most for value, most in zip(values, plain, strict=True))
    factors = [value / most if most else 0 for value, most in zip(values, plain, strict=True)]
    assert factors[:21] == sorted(factors[:21]) and factors[20:] == sorted(factors[20:], reverse=True)
    assert len(set(factors[1:19])) == 18 and len(set(factors[22:])) == 39  # strictly so outside of the tolerance


def test_as_much_too_long_as_too_short_costs_the_same():
    for times in (2, 3, 5):
        long = adjusted(numbers(30 * times), numbers(30)) / rouge(numbers(30 * times), numbers(30))
        short = adjusted(numbers(30), numbers(30 * times)) / rouge(numbers(30), numbers(30 * times))
        assert long == pytest.approx(short) and long < 1


def test_the_length_is_that_of_each_reference():
    # With "a b": F 2/3, factor 1/2; with "a b c x": F 3/4, factor 1.
    assert adjusted("a b c d", ["a b", "a b c x"]) == 3 / 4
    assert adjusted("a b c d", ["a b", "a b c x"], tolerance=0, aggregate="mean") == pytest.approx((1 / 3 + 3 / 4) / 2)


def test_the_length_is_in_tokens_in_every_variant():
    # Twice as many tokens, whatever the variant counts.
    for variant in ("rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum"):
        for prediction in (numbers(12), numbers(12).replace(" ", "\n")):
            plain = rouge(prediction, numbers(6), variant)
            assert adjusted(prediction, numbers(6), variant, tolerance=0) == pytest.approx(plain / 2)
    # One word of eight letters, and one of four: F is 2/3, the factor 1/2 in characters.
    assert adjusted("abcdefgh", "abcd", tolerance=0, tokenizer="characters") == pytest.approx(1 / 3)


@pytest.mark.parametrize("variant", ["rouge2", "rougeL", "rougeLsum"])
def test_never_more_than_without_the_adjustment(variant):
    rows = random_rows(200, seed=9)
    for value, most in zip(LengthAdjustedRouge(variant)(*rows), Rouge(variant)(*rows), strict=True):
        assert (value is None) == (most is None)
        assert value is None or 0 <= value <= most
    assert LengthAdjustedRouge(variant, power=0)(*rows) == Rouge(variant)(*rows)


# -- Equality with rouge_score -----------------------------------------------------------------------------------------

WORDS = ["cats", "cat", "running", "runs", "happily", "happiness", "flies", "dying", "yyyyy", "2023", "x1", "the", "of"]
WORDS += ["stra\u00dfe", "\u0130stanbul", "\u212a"]  # lower-casing the last two gives ASCII letters
SEPARATORS = [" ", " ", " ", " ", "\n", ", ", "\r\n", "\n\n", "\x0b", "\x85", "\u2028", "\u0663", "-"]


def text(generator):
    """Return a text of one of six kinds, most of them made to hit rules and ties."""
    kind = generator.randrange(6)
    if kind == 0:
        return "".join(generator.choice(WORDS) + generator.choice(SEPARATORS) for _ in range(generator.randrange(40)))
    if kind == 1:  # two to four letters: many equally long common subsequences
        letters = "abcd"[: generator.randrange(2, 5)]
        return "".join(generator.choice(letters) + generator.choice("   \n") for _ in range(generator.randrange(50)))
    if kind == 2:
        return "".join(map(chr, (generator.randrange(0x110000) for _ in range(generator.randrange(20)))))
    if kind == 3:
        return "".join(map(chr, (generator.randrange(9, 127) for _ in range(generator.randrange(60)))))
    if kind == 4:  # few lines, each said again and again
        pool = [" ".join(generator.choices("abc", k=generator.randrange(6))) for _ in range(3)]
        return "\n".join(generator.choices(pool, k=generator.randrange(8)))
    return "".join(map(chr, (generator.randrange(97, 123) for _ in range(generator.randrange(12))))) + "ational"


def near_copy(original, generator):
    """Return the text with some pieces of it dropped, doubled or moved."""
    pieces = original.split(" ")
    kept = [piece for piece in pieces for _ in range(generator.choice((0, 1, 1, 1, 2)))]
    if generator.random() < 0.3:
        generator.shuffle(kept)
    return generator.choice((" ", "\n")).join(kept)


def random_pairs(count, seed):
    """Return predictions and references, half of them near copies of each other."""
    generator = random.Random(seed)
    references = [text(generator) for _ in range(count)]
    predictions = [near_copy(one, generator) if generator.random() < 0.5 else text(generator) for one in references]
    return predictions, references


def random_rows(count, seed):
    """Return predictions with none to two references, the first of them the likest."""
    generator = random.Random(seed)
    predictions, references = random_pairs(count, seed)
    return predictions, [[one, text(generator)][: generator.randrange(3)] for one in references]


def assert_equal_to_rouge_score(predictions, references, stemmed, tokenizer="rouge"):
    from rouge_score.rouge_scorer import RougeScorer

    tokenize = load_tokenizer(tokenizer)
    own = SimpleNamespace(tokenize=lambda text: list(map(stem, tokenize(text))) if stemmed else tokenize(text))
    variants = ["rouge1", "rouge2", "rouge3", "rouge9", "rougeL", "rougeLsum"]
    scorer = RougeScorer(variants, use_stemmer=stemmed, tokenizer=None if tokenizer == "rouge" else own)
    scores = list(map(scorer.score, references, predictions))
    for variant in variants:
        for measure, field in MEASURES.items():
            values = Rouge(variant, measure, stemmed, tokenizer=tokenizer)(predictions, references)
            for value, score, reference, prediction in zip(values, scores, references, predictions, strict=True):
                if tokenize(reference):
                    assert value == getattr(score[variant], field), (variant, field, reference, prediction)
                else:
                    assert value is None
            # The texts must have something in common, or equality says little.
            assert variant == "rouge9" or sum(map(bool, values)) > len(values) / 10


@pytest.mark.parametrize("stem", [True, False])
def test_equal_to_rouge_score(stem):
    assert_equal_to_rouge_score(*random_pairs(1_000, seed=1), stem)


@pytest.mark.slow
@pytest.mark.parametrize("stem", [True, False])
def test_equal_to_rouge_score_on_many_texts(stem):
    assert_equal_to_rouge_score(*random_pairs(20_000, seed=2), stem)


@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("tokenizer", ["words", "characters"])
@pytest.mark.parametrize("script", [ord("a"), 0x430, 0x4E00, 0x627])
def test_equal_to_rouge_score_with_other_tokens(tokenizer, stem, script):
    letters = str.maketrans(string.ascii_lowercase, "".join(map(chr, range(script, script + 26))))
    predictions, references = ([text.translate(letters) for text in texts] for texts in random_pairs(100, seed=script))
    assert_equal_to_rouge_score(predictions, references, stem, tokenizer)


def test_the_walk_back_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import lcs_ind

    generator = random.Random(10)
    for _ in range(1_000):
        letters = "abcd"[: generator.randrange(1, 5)]
        lines = [generator.choices(letters, k=generator.randrange(1, 20)) for _ in range(generator.randrange(1, 5))]
        line = generator.choices(letters + "x", k=generator.randrange(20))
        expected, start = set(), 0
        for reference in lines:
            expected |= {start + position for position in lcs_ind(reference, line)}
            start += len(reference) + 1
        found = _Subsequences(lines)._lcs(line)
        assert {position for position in range(found.bit_length()) if found >> position & 1} == expected


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


def test_faster_than_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    generator = random.Random(11)
    vocabulary = ["".join(generator.choices(string.ascii_lowercase, k=7)) + "ing" for _ in range(500)]
    reference = " ".join(generator.choices(vocabulary, k=120))
    predictions = [near_copy(reference, generator) for _ in range(8)]
    variants = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(variants, use_stemmer=True)
    rewards = [Rouge(variant) for variant in variants]

    def seconds(function):
        start = time.thread_time()
        function()
        return time.thread_time() - start

    def ours():
        return [reward(predictions, [reference] * 8) for reward in rewards]

    def theirs():
        return [scorer.score(reference, prediction) for prediction in predictions]

    ours()  # imports the stemmer
    assert statistics.median(seconds(theirs) / seconds(ours) for _ in range(5)) > 10
