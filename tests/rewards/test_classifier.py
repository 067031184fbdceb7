"""A classifier as a reward: against transformers itself, and against numbers worked out by hand."""

import json
import pickle
import random

import pytest
import torch

from lastmile_trl.errors import InputError, RunError
from lastmile_trl.rewards import build, classifier, score
from lastmile_trl.rewards.classifier import Classifier, check_has_label

WORDS = ["the", "a", "film", "was", "good", "bad", "very", "not", "and", "long", "cat"]
TEXTS = ["the film was good", "a very bad film", "not good and not bad", "zebra", "", "the cat was long and long"]
LABELS = {0: "NEGATIVE", 1: "POSITIVE"}


def save_bert(folder, labels, bias=None, **settings):
    """A BERT of 32 dimensions drawn at random; given a bias, that alone is what it says of every text."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ",", "."]
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24, initializer_range=0.6, id2label=labels, **settings,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    if bias:
        torch.nn.init.zeros_(model.classifier.weight)
        model.classifier.bias.data = torch.tensor(bias)
    model.save_pretrained(folder)
    BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("sentiment"), LABELS)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory, tokenizer):
    """A GPT-2 with three labels, whose tokenizer has no token for padding, nor any of its own around a text."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    folder = tmp_path_factory.mktemp("decoder")
    config = GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": None}))
    return str(folder)


def logits(folder, text):
    """What transformers says of one text."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits[0]


def close(values):
    return pytest.approx(values, abs=1e-5)


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "bias", "output", "expected"),
    [
        ({}, [0.0, 1.0], "probability", 0.7310586),  # e / (1 + e)
        ({}, [0.0, 1.0, 2.0], "probability", 0.2447285),  # e / (1 + e + e^2)
        ({}, [0.0, 1.0, 2.0], "logit", 1.0),
        ({"problem_type": "multi_label_classification"}, [0.0, 1.0, 2.0], "probability", 0.7310586),  # 1 / (1 + 1/e)
    ],
)
def test_values_by_hand(tmp_path, settings, bias, output, expected):
    folder = save_bert(tmp_path, {number: f"kind{number}" for number in range(len(bias))}, bias, **settings)
    assert Classifier(folder, "kind1", output=output)(["the film", "a cat"]) == close([expected, expected])


def test_one_label_has_a_probability_of_its_own(tmp_path):
    folder = save_bert(tmp_path, {0: "GOOD"}, [1.0])
    assert Classifier(folder, "GOOD")(["the film"]) == close([0.7310586])
    assert Classifier(folder, 0, output="logit")(["the film"]) == close([1.0])


def test_values_are_the_classifiers_own(sentiment):
    expected = [logits(sentiment, text).softmax(0)[1].item() for text in TEXTS]
    assert Classifier(sentiment, "POSITIVE")(TEXTS) == close(expected)
    assert Classifier(sentiment, "NEGATIVE")(TEXTS) == close([1 - value for value in expected])
    assert Classifier(sentiment, 1, output="logit")(TEXTS) == close(
        [logits(sentiment, text)[1].item() for text in TEXTS]
    )
    assert max(expected) - min(expected) > 0.05


def test_a_decoder_is_read_before_its_padding(decoder):
    texts = ["the cat sat", "a dog", "the big red bird flew over the hill"]
    expected = [logits(decoder, text).softmax(0)[2].item() for text in texts]
    assert Classifier(decoder, "LABEL_2")(texts) == close(expected)
    assert Classifier(decoder, 2)(["", texts[0], ""]) == [None, close(expected[0]), None]  # no token to read
    assert Classifier(decoder, 2)(["", ""]) == [None, None]


# --- what is read --------------------------------------------------------------------------------------------------


def test_the_prompt_is_read_before_the_completion(sentiment):
    reward, alone = Classifier(sentiment, "POSITIVE", reads="prompt+completion"), Classifier(sentiment, "POSITIVE")
    whole = alone(["the film was good", "the film was good", "the film, was bad", "the film was", "good"])
    prompts = ["the film was", "the film was ", "the film", "the film was", ""]
    assert reward(["good", " good", ", was bad", "", "good"], prompts=prompts) == close(whole)
    assert alone(["good"], prompts=["the film was"]) == close(whole[4:])
    assert len({round(value, 5) for value in whole}) == 4


def test_a_chat_is_read_as_what_the_user_said_and_the_answer(sentiment):
    chat = [{"role": "system", "content": "a cat"}, {"role": "user", "content": "the film was"}]
    answer = [{"role": "assistant", "content": "good"}]
    reward = Classifier(sentiment, "POSITIVE", reads="prompt+completion")
    assert reward([answer], prompts=[chat]) == close(Classifier(sentiment, "POSITIVE")(["the film was good"]))
    assert Classifier(sentiment, "POSITIVE")([answer]) == close(Classifier(sentiment, "POSITIVE")(["good"]))


def test_without_a_prompt(sentiment):
    [reward] = build([{"classifier": {"model": sentiment, "label": "POSITIVE", "reads": "prompt+completion"}}])
    assert reward(["good", "bad"], prompts=["a film was", None])[1] is None
    with pytest.raises(RunError, match="Reward 'classifier/POSITIVE' failed.* reads the prompt, which is missing"):
        reward(["good"])


def test_of_a_long_text_the_end_is_read(sentiment):
    reward = Classifier(sentiment, "POSITIVE")
    twenty = "the cat was long " * 5  # of the 24 positions two are kept free, and two are special tokens'
    assert reward(["bad film " + twenty]) == close(reward([twenty]))
    assert reward([twenty + "bad film"]) != close(reward([twenty]))


def test_a_value_does_not_depend_on_the_batch(sentiment):
    texts = TEXTS * 3
    random.Random(0).shuffle(texts)
    expected = {text: Classifier(sentiment, "POSITIVE")([text])[0] for text in TEXTS}
    for size in (1, 4, 32):
        assert Classifier(sentiment, "POSITIVE", batch_size=size)(texts) == close([expected[text] for text in texts])
    assert Classifier(sentiment, "POSITIVE")([]) == []


def test_equal_texts_are_read_once(sentiment, monkeypatch):
    read, own = [], Classifier._read
    monkeypatch.setattr(Classifier, "_read", lambda self, texts: read.append(texts) or own(self, texts))
    Classifier(sentiment, "POSITIVE", batch_size=2)(["a cat", "the film", "a cat", "good"])
    assert read == [["good", "a cat"], ["the film"]]


# --- as a reward ---------------------------------------------------------------------------------------------------


def test_in_a_recipe_and_as_a_metric(sentiment):
    entries = [{"classifier": {"model": sentiment, "label": label, "weight": 0.5}} for label in ("POSITIVE", 0)]
    rewards = build(entries)
    assert [(reward.name, reward.weight, reward.needs) for reward in rewards] == [
        ("classifier/POSITIVE", 0.5, ()),
        ("classifier/0", 0.5, ()),
    ]
    [row] = score(rewards, [{"prediction": "a good film"}])
    assert sum(row.values()) == close(1)


def test_pickled_it_is_a_few_names(sentiment):
    reward = Classifier(sentiment, "POSITIVE")
    value = reward(["a good film"])
    assert len(pickle.dumps(reward)) < 1000
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward and copy(["a good film"]) == value


def test_loading_is_lazy_happens_once_and_draws_no_random_numbers(sentiment):
    classifier._load.cache_clear()
    before = torch.get_rng_state()
    first, second = Classifier(sentiment, "POSITIVE"), Classifier(sentiment, "NEGATIVE", batch_size=2)
    assert classifier._load.cache_info().misses == 0
    first(["a cat"]), second(["a cat"])
    assert classifier._load.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), before)
    Classifier("nowhere/to/be/found", "POSITIVE")  # is no error before it is called


def test_a_run_that_shards_its_models_leaves_this_one_whole(sentiment, monkeypatch):
    from transformers.integrations import deepspeed

    class Sharding:
        def is_zero3(self):
            raise AssertionError("asked whether to shard")

    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", Sharding)
    classifier._load.cache_clear()
    assert Classifier(sentiment, "POSITIVE")(["a cat"])[0] > 0
    assert deepspeed._hf_deepspeed_config_weak_ref is Sharding


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "label", "message"),
    [
        ({}, "positive", "label 'positive' does not exist: did you mean 'POSITIVE'? Valid: NEGATIVE, POSITIVE."),
        ({}, 2, "label 2 does not exist. Valid: NEGATIVE, POSITIVE."),
        ({}, "1", "label '1' does not exist. Valid: NEGATIVE, POSITIVE."),
        ({"id2label": None}, "POSITIVE", "label 'POSITIVE' does not exist. Valid: LABEL_0, LABEL_1."),
        ({"architectures": ["BertModel"]}, 1, "'m' is a BertModel, no classifier: name a model for sequence classific"),
        (
            {"architectures": None},
            1,
            "'m' is a nameless model, no classifier: name a model for sequence classification",
        ),
    ],
)
def test_what_is_no_classifier_or_lacks_the_label(sentiment, config, label, message):
    stored = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}
    with pytest.raises(InputError) as error:
        check_has_label(stored | config, "m", label)
    assert message in str(error.value)
    for known in ("NEGATIVE", "POSITIVE", 0, 1):
        check_has_label(stored, "m", known)


def test_an_unknown_label_where_nothing_was_checked(sentiment):
    [reward] = build([{"classifier": {"model": sentiment, "label": "GOOD"}}])
    with pytest.raises(RunError, match="label 'GOOD' does not exist. Valid: NEGATIVE, POSITIVE."):
        reward(["a cat"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model must name a model, by its id on the Hub or its folder, not ''."),
        ({"label": ""}, "label must be the name or the number of one of the model's labels, not ''."),
        ({"label": True}, "label must be the name or the number of one of the model's labels, not True."),
        ({"reads": "prompt"}, "reads 'prompt' does not exist. Valid: completion, prompt+completion."),
        ({"output": "logits"}, "output 'logits' does not exist: did you mean 'logit'?"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0."),
        ({"revision": 3}, "revision must be a branch, tag or commit, not 3."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError) as error:
        Classifier(**{"model": "m", "label": "POSITIVE", **arguments})
    assert message in str(error.value)


def test_the_label_has_to_be_given():
    with pytest.raises(InputError, match="Reward 'classifier' needs the argument 'label'"):
        build([{"classifier": {"model": "m"}}])
