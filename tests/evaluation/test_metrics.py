import math
import random
import statistics

import pytest

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.comparison import compare
from lastmile_trl.evaluation.decoding import Output, Several, decode, end_ids_of
from lastmile_trl.evaluation.metrics import (
    corpus_metrics,
    described,
    distinct,
    divergences,
    length_ratio,
    per_row,
    repeated_3grams,
    scored,
    self_bleu,
)
from lastmile_trl.evaluation.significance import Interval
from lastmile_trl.preferences.perplexity import surprises
from lastmile_trl.rewards import REGISTRY, Reward, Task, build, prepare


def test_every_metric_by_hand():
    outputs = [Output("a cat sat", [7] * 4, True), Output("a b c a b c a b c", [7] * 9, False), Output("", [7], True)]
    rows = [
        {"prompt": "p", "references": ["a cat sat on it now", "a cat"]},
        {"prompt": "q", "references": ["a b c"]},
        {"prompt": "r", "references": ["a"]},
    ]
    assert per_row(outputs, rows, build(["rouge"])) == {
        "rouge/rougeL": pytest.approx([0.8, 0.5, 0.0]),  # 2*2/(3+2), 2*3/(9+3)
        "words": [3.0, 9.0, 0.0],
        "length_ratio": [1.5, 3.0, 0.0],
        "ended": [1.0, 0.0, 1.0],
        "repeated_3grams": [0.0, pytest.approx(4 / 7), 0.0],  # abc bca cab, then four repeats
    }


def test_metrics_get_what_trl_would_give_them():
    seen = {}

    def spy(completions, **columns):
        seen.update(columns, completions=completions)
        return [None] * len(completions)

    chat = [{"role": "user", "content": "Hi"}]
    rows = [
        {"prompt": chat, "completion": "gold", "references": ["x"], "domain": "mail"},
        {"prompt": chat, "completion": "gold", "references": ["y"], "domain": "chat"},
    ]
    values = per_row([Output("one", [7], True), Output("two", [7], True)], rows, [Reward("spy", spy)])
    assert values["spy"] == [None, None]
    assert seen == {
        "prompts": [chat, chat],
        "references": [["x"], ["y"]],
        "domain": ["mail", "chat"],
        "completion_ids": [[7], [7]],
        "ended": [True, True],
        "completions": [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "two"}]],
    }


def test_plain_prompts_give_plain_completions():
    echo = Reward("echo", lambda completions, **columns: [float(completion) for completion in completions])
    assert per_row([Output("2.5", [7], True)], [{"prompt": "p", "references": ["x"]}], [echo])["echo"] == [2.5]


def test_a_metric_cannot_hide_a_built_in_one():
    words = Reward("words", lambda completions, **columns: [1.0])
    with pytest.raises(InputError, match="words is taken"):
        per_row([Output("a", [7], True)], [{"prompt": "p", "references": ["x"]}], [words])


@pytest.mark.parametrize(
    ("text", "references", "expected"),
    [
        ("a b c", ["a b", "a b c d"], 1.5),  # equally near: the shorter one
        ("a b c", ["a", "a b c d"], 0.75),
        ("a b c", ["", "  ", "a b c d e f"], 0.5),
        ("a b c", ["", " "], None),
        ("a b c", [], None),
        ("", ["a b"], 0.0),
    ],
)
def test_length_ratio(text, references, expected):
    assert length_ratio(text, references) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("a a", 0), ("a a a", 0), ("a a a a", 1 / 2), ("a b c d", 0), ("a  b\nc a b c", 1 / 4)],
)
def test_repeated_3grams(text, expected):
    assert repeated_3grams(text) == expected


def test_a_row_of_several_outputs_has_the_mean_of_their_values():
    several = Several("a b", [7], True, outputs=[Output("a b", [7], True), Output("a b c d", [7], False)])
    rows = [{"prompt": "p", "references": ["a b"]}, {"prompt": "q", "references": ["x y z"]}]
    assert per_row([several, Output("x", [7], True)], rows, build(["rouge"])) == {
        "rouge/rougeL": pytest.approx([(1 + 4 / 6) / 2, 0.5]),
        "words": [3.0, 1.0],
        "length_ratio": pytest.approx([1.5, 1 / 3]),
        "ended": [0.5, 1.0],
        "repeated_3grams": [0.0, 0.0],
    }


def test_what_cannot_be_scored_does_not_count_in_a_mean():
    half = Reward("half", lambda completions, **columns: [None if text == "b" else 1.0 for text in completions])
    several = Several("a", [7], True, outputs=[Output("a", [7], True), Output("b", [7], True)])
    nothing = Several("b", [7], True, outputs=[Output("b", [7], True)])
    rows = [{"prompt": "p", "references": ["a"]}] * 2
    assert per_row([several, nothing], rows, [half])["half"] == [1.0, None]


# --- of a whole run ------------------------------------------------------------------------------------------------


def test_corpus_metrics_by_hand():
    rows = [{"text": "the old cat sat"}, {"text": "one dog ran off"}]
    greedy = [Output("the cat sat", [7], True), Output("the cat sat", [7], True)]
    sampled = [
        Several("a", [7], True, outputs=[Output("old dog dog", [7], True), Output("old cat", [7], True)]),
        Several("– (why)", None, False, outputs=[]),
    ]
    found = corpus_metrics({"sft": {"greedy": greedy, "sampled": sampled}}, rows, "text")["sft"]
    assert found["greedy"] == {
        "distinct_1": 3 / 6,
        "distinct_2": 2 / 4,
        "distinct_2_per_text": 1.0,
        "same_opening": 1.0,
        "novel_2grams": (1 / 2 + 1) / 2,  # `the cat` is new to the first source, all is to the second
        "extractive_coverage": (1 + 0) / 2,
        "extractive_density": ((1 + 4) / 3 + 0) / 2,  # stretches `the` and `cat sat`
    }
    assert found["sampled"] == {
        # of `old dog dog` alone, the first of the only row with samples
        "distinct_1": 2 / 3,
        "distinct_2": 1.0,
        "distinct_2_per_text": 1.0,
        "same_opening": 1.0,
        # of 3 words 1 is in the other and of 2 2-grams none, 1/2 of one; 2 words, 1 and 1/2 of 1, and it is shorter
        "self_bleu": pytest.approx(
            ((1 / 3 * 1 / 4 * 1 / 4) ** (1 / 3) + math.exp(-1 / 2) * (1 / 2 * 1 / 2) ** 0.5) / 2
        ),
        "novel_2grams": 1.0,
        "extractive_coverage": 1 / 3,
        "extractive_density": 1 / 3,
    }


def test_runs_are_described_by_as_many_texts_whatever_their_samples():
    texts = ["a b", "a c", "d e"]
    single = [Output(text, [7], True) for text in texts]
    several = [
        Several(text, [7], True, outputs=[Output(text, [7], True), *[Output("x y", [7], True)] * 3]) for text in texts
    ]
    found = corpus_metrics({"grpo": {"sampled": several}, "best_of_4": {"sampled": single}}, [{"t": "a b"}] * 3, "t")
    grpo, best = (of_run["sampled"] for of_run in found.values())
    assert grpo.pop("self_bleu") > best.pop("self_bleu"), "the samples that are alike count there"
    assert grpo == best and grpo["distinct_1"] == 5 / 6


def test_the_divergence_of_samples_is_that_of_all_that_can_be_said(new_model, tokenizer):
    import torch

    own, other, prompt = new_model(seed=0).eval(), new_model(seed=1).eval(), "w4 w2"
    before = tokenizer(prompt)["input_ids"]

    def next_tokens(model, ids):
        with torch.no_grad():
            return model(torch.tensor(ids)).logits[:, -1].double().log_softmax(-1)

    # Two tokens at most: all first ones, and after each that is no end all second ones.
    first, its_first = (next_tokens(model, [before])[0] for model in (own, other))
    goes_on = [token for token in range(len(tokenizer)) if token not in end_ids_of(own, tokenizer)]
    second, its_second = (next_tokens(model, [[*before, token] for token in goes_on]) for model in (own, other))
    exact = (first.exp() * (first - its_first)).sum() + (
        first[goes_on].exp() * (second.exp() * (second - its_second)).sum(-1)
    ).sum()
    rows = 2000
    samples = decode(own, tokenizer, [prompt] * rows, max_new_tokens=2, temperature=1.0, batch_size=1000)
    assert {(len(output.ids), output.ended) for output in samples} == {(1, True), (2, True), (2, False)}
    ids = [(before, output.ids) for output in samples]
    found = [surprises(model, ids, [prompt] * rows, batch_size=1000) for model in (own, other)]
    values = divergences(*found)
    error = statistics.stdev(values) / rows**0.5
    assert exact > 20 * error, "the other way round it would be below 0"
    assert abs(statistics.fmean(values) - float(exact)) < 4 * error
    assert min(values) < 0 < max(values)


def test_what_is_not_described_says_why():
    greedy, sampled = {"distinct_1": 0.5}, {"distinct_1": 0.5, "self_bleu": None}
    likelihoods = {
        "sft": {of: {"reference_perplexity": 9.0} for of in ("greedy", "sampled")},
        "grpo": {"greedy": {"reference_perplexity": 8.0}, "sampled": {"kl_to_sft": Interval(0.5, -0.1, 1.0, 3)}},
    }
    likelihoods["sft"]["sampled"]["kl_to_sft"] = "none"
    corpus = {"lead": {"greedy": greedy}, **{run: {"greedy": greedy, "sampled": sampled} for run in ("sft", "grpo")}}
    found = described(corpus, likelihoods)
    assert found["corpus"]["grpo"]["sampled"] == {"distinct_1": 0.5, "self_bleu": None, "kl_to_sft": 0.5}
    assert found["corpus"]["sft"]["sampled"]["kl_to_sft"] is None
    assert found["corpus_intervals"]["grpo"]["sampled"] == {
        "kl_to_sft": {"mean": 0.5, "low": -0.1, "high": 1.0, "rows": 3}
    }
    assert found["corpus_intervals"]["sft"] == {"greedy": {}, "sampled": {}}
    missing = found["corpus_missing"]
    assert missing["sft"]["sampled"] == {"kl_to_sft": "none", "self_bleu": "there are fewer than two texts"}
    assert missing["lead"]["greedy"]["reference_perplexity"] == "runs alone are asked for it"
    assert missing["sft"]["greedy"] == {"self_bleu": "it is of samples", "kl_to_sft": "it is of samples"}


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [(["a a a"], 1, 1 / 3), (["a b", "b a"], 2, 1.0), (["a b", "a b", "c"], 2, 0.5), (["a"], 2, None), ([], 1, None)],
)
def test_distinct(texts, n, expected):
    assert distinct(texts, n) == expected


def test_self_bleu_is_the_mean_of_sacrebleus_values_against_all_others():
    pytest.importorskip("sacrebleu")
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdef", k=draw.randint(0, 9))) for _ in range(12)]
    texts += texts[:2]  # a text that is said twice is not new
    [bleu] = build([{"bleu": {"tokenizer": "none"}}])
    others = [texts[:number] + texts[number + 1 :] for number in range(len(texts))]
    rows = [{"prompt": "p", "references": of_text} for of_text in others]
    expected = scored([Output(text, [7], True) for text in texts], rows, [bleu])["bleu"]
    assert self_bleu(texts) == pytest.approx(sum(expected) / len(expected))
    assert 0.1 < self_bleu(texts) < 0.9


def test_self_bleu_of_many_texts_is_that_of_a_sample():
    texts = [f"a{number} b{number} c" for number in range(40)]
    assert self_bleu(texts, most=10, seed=1) == self_bleu(texts, most=10, seed=1)
    assert self_bleu([*texts, *texts], most=10) < self_bleu([*texts, *texts])
    assert self_bleu(["one"]) is None


# --- all of the registry -------------------------------------------------------------------------------------------

SETTINGS = {"overlong": {"limit": 3}, "format": {"pattern": r".*\."}}
TOKENS = [{"length": {"unit": "tokens", "target": 4}}, {"repetition": {"unit": "tokens"}}, {"loop": {"unit": "tokens"}}]
MODELS = ("embedding", "bertscore", "classifier", "model")  # need a model of their own
PLAIN = [{name: SETTINGS.get(name, {})} for name in REGISTRY if name not in MODELS]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("entry", [*PLAIN, *TOKENS], ids=lambda entry: "-".join([*entry, *map(str, entry.values())]))
def test_every_reward_of_the_registry_is_a_metric(entry, chat):
    """Of plain and chat prompts, samples, post-processed texts, empty ones and baselines that have none."""
    source = "Ann saw 3 cats in Rome on Monday."
    prompt = [{"role": "user", "content": source}] if chat else source
    row = {"prompt": prompt, "references": ["Ann saw 3 cats.", "Three cats."], "concepts": ["cat"]}
    rows = [row | {"slots": {"name": ["Ann"]}} for _ in range(3)]
    said = [Output("Ann saw 3 cats. Ann saw 3 cats.", [5, 6, 5, 6, 2], True), Output("", [2], True)]
    several = Several(said[0].text, [5], True, outputs=[said[0], Output("cats cats", [7] * 4, False)])
    missing = Several("– (why)", None, False, outputs=[], why_none="why")
    [metric] = prepare(build([entry]), Task({name: [row[name]] * 2 for name in ("references", "concepts")}, {2}))
    given = {"sft": {"greedy": [*said, several]}, "lead": {"greedy": [missing] * 3}}
    result = compare(given, rows, [metric], rewarded=set(), postprocessed=["sft"])
    raw, processed, lead = result["results"]
    assert raw["metrics"][metric.name]["rows"] >= 2
    # A post-processed text is not what was generated.
    counts = {metric.name: "it counts generated tokens, and no model has generated these texts"}
    missing = counts if "overlong" in entry or entry in TOKENS else {}
    assert processed["missing"] == missing | {"ended": "the text is not what was generated"}
    assert lead["missing"][metric.name] == "why"
