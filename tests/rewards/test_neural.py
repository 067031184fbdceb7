import pickle
import random

import numpy as np
import pytest
import torch

from lastmile_trl.errors import InputError
from lastmile_trl.rewards import neural
from lastmile_trl.rewards.neural import BertScore, Embedding

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "on", "over", "mat", "hill", "big", "red", "not"]
COMPLETIONS = ["the cat sat on the mat", "a bird ran", "the big red dog", "a dog ran over the hill", "red", "zebra"]
REFERENCES = [
    "the dog sat on the hill",
    ["a red cat", "the bird ran over a hill"],
    "the big red dog",
    "the dog",
    "a big mat",
    "the a",
]
# Unknown characters, scripts the vocabulary lacks, and a text longer than the model's window of 24 tokens.
ODD = ["\u043a\u043e\u0442", "\u732b\u5750", "cafe\u0301 \U0001f600", "the cat " * 40, "."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT of 32 dimensions and 3 layers, drawn at random."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = "bcdefghijklmnopqrstuvwxyz"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{letter}" for letter in letters),
        ".",
    ]
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
        initializer_range=0.6,
    )
    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sentence_model(bert, tmp_path_factory):
    """The same BERT as a model of sentence-transformers that takes the vector of [CLS]."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(bert)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="cls")
    folder = tmp_path_factory.mktemp("sentence")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(params=["embedding", "bertscore"])
def make(request, bert, sentence_model):
    """Either reward over the tiny model, with the arguments given."""
    kind, model = {"embedding": (Embedding, sentence_model), "bertscore": (BertScore, bert)}[request.param]
    return lambda **arguments: kind(model, **arguments)


def score(reward, completion, references):
    [value] = reward([completion], [references])
    return value


def states(folder, text, layer):
    """The vectors of a text's tokens, [CLS] and [SEP] among them, read one text at a time."""
    from transformers import AutoTokenizer, BertModel

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        return (
            BertModel.from_pretrained(folder)
            .eval()(**inputs, output_hidden_states=True)
            .hidden_states[layer][0]
            .numpy()
        )


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("layer", [None, 1, 2, 3])
def test_bertscore_is_greedy_matching_written_out(bert, layer):
    completion, reference = "the cat sat on the mat", "a dog ran over the hill"
    ours = states(bert, completion, 3 if layer is None else layer)
    theirs = states(bert, reference, 3 if layer is None else layer)
    # The first and the last are special: the others may match them, their own matches do not count.
    precision = sum(max(cosine(own, other) for other in theirs) for own in ours[1:-1]) / 6
    recall = sum(max(cosine(own, other) for other in ours) for own in theirs[1:-1]) / 6
    expected = {"precision": precision, "recall": recall, "f": 2 * precision * recall / (precision + recall)}
    for measure, value in expected.items():
        assert score(BertScore(bert, layer, measure), completion, reference) == pytest.approx(value, abs=1e-5)
    assert len({round(value, 4) for value in expected.values()}) == 3


def test_bertscore_by_hand():
    # A [CLS] and two words against a [CLS] and one: unit vectors, so that products are cosines.
    completion = neural._Tokens(torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1]]), torch.tensor([False, True, True]))
    reference = neural._Tokens(torch.tensor([[0.8, 0.6], [0.0, 1]]), torch.tensor([False, True]))
    # (0.6, 0.8): 0.96 with [CLS], 0.8 with the word. (0, 1): 0.6 and 1. The reference's word: 0, 0.8, 1.
    precision, recall = (0.96 + 1) / 2, 1
    f = 2 * precision * recall / (precision + recall)
    for measure, expected in (("precision", precision), ("recall", recall), ("f", f)):
        assert BertScore("any", measure=measure)._value(completion, reference) == pytest.approx(expected, abs=1e-6)
        rescaled = BertScore("any", measure=measure, baseline=0.9)._value(completion, reference)
        assert rescaled == pytest.approx((expected - 0.9) / 0.1, abs=1e-5)
    opposite = neural._Tokens(-completion.vectors, completion.counted)
    assert BertScore("any")._value(opposite, reference) == 0
    assert (
        BertScore("any", baseline=0.99)._value(completion, neural._Tokens(reference.vectors[:1], torch.tensor([True])))
        == 0
    )


def test_embedding_is_the_cosine_of_the_pooled_vectors(bert, sentence_model):

    completion, reference = "the cat sat on the mat", "a dog ran"
    by_cls = cosine(*(states(bert, text, -1)[0] for text in (completion, reference)))
    assert score(Embedding(sentence_model), completion, reference) == pytest.approx(by_cls, abs=1e-5)
    # Of a model that says nothing of pooling, the mean over tokens.
    by_mean = cosine(*(states(bert, text, -1).mean(axis=0) for text in (completion, reference)))
    assert score(Embedding(bert), completion, reference) == pytest.approx(by_mean, abs=1e-5)
    assert abs(by_cls - by_mean) > 0.01


def test_the_reference_itself(make):
    reward = make()
    for text in (*COMPLETIONS, ODD[2], ODD[3]):
        value = score(reward, text, [text, "a cat"])
        assert value == pytest.approx(1, abs=1e-5) and value <= 1


def test_of_several_references_the_nearest_counts(make):
    reward = make()
    single = [score(reward, "the cat sat", reference) for reference in ("a dog", "the cat", "over")]
    assert score(reward, "the cat sat", ["a dog", "the cat", "over"]) == pytest.approx(max(single), abs=1e-5)
    assert len(set(single)) == 3
    assert score(reward, "the cat sat", ["", "a dog"]) == pytest.approx(single[0], abs=1e-5)


def test_a_value_does_not_depend_on_the_batch(make):
    rows = list(zip(COMPLETIONS + ODD + [""], REFERENCES + ["the cat"] * 4 + [None, "a"], strict=True)) * 2
    expected = [score(make(), *row) for row in rows]
    order = list(range(len(rows)))
    for seed, batch_size in enumerate((1, 8, 32)):
        random.Random(seed).shuffle(order)
        values = make(batch_size=batch_size)(*zip(*(rows[index] for index in order), strict=True))
        for index, value in zip(order, values, strict=True):
            assert value == (None if expected[index] is None else pytest.approx(expected[index], abs=1e-5))


def test_more_rows_than_bertscore_holds_at_a_time(bert, monkeypatch):
    values = BertScore(bert)(COMPLETIONS, REFERENCES)
    monkeypatch.setattr(neural, "_ROWS_AT_ONCE", 2)
    assert BertScore(bert)(COMPLETIONS, REFERENCES) == pytest.approx(values, abs=1e-5)


def test_equal_texts_are_read_once(make, monkeypatch):
    read = []
    texts = neural._texts
    monkeypatch.setattr(neural, "_texts", lambda rows: read.append(texts(rows)) or read[-1])
    make()(["the cat", "the cat ", "a dog", ""], ["the cat", "a dog", ["a bird", "the cat"], "a bird"])
    assert read == [["the cat", "a dog", "a bird"]]


def test_empty_texts(make):
    reward = make()
    for empty in ("", " \n"):
        assert score(reward, empty, "the cat") == 0
        for references in (None, [], "", ["", " "]):
            assert score(reward, empty, references) is None
            assert score(reward, "the cat", references) is None
    assert reward([], []) == []


def test_texts_in_which_bertscore_finds_no_token(bert):
    zero_width = "\u200b"  # which BERT's tokenizer removes
    assert score(BertScore(bert), zero_width, "the cat") == 0
    assert score(BertScore(bert, baseline=0.5), zero_width, "the cat") == 0
    assert score(BertScore(bert), "the cat", zero_width) is None
    assert score(BertScore(bert), "the cat", [zero_width, "the cat"]) == pytest.approx(1, abs=1e-5)


def test_what_lies_beyond_the_window_is_not_read(make):
    reward = make()
    assert score(reward, "the cat " * 40 + "dog", "the cat") == score(reward, "the cat " * 40, "the cat")


def test_chats(make):
    chat = [{"role": "assistant", "content": "the cat sat"}]
    assert score(make(), chat, "the cat") == pytest.approx(score(make(), "the cat sat", "the cat"), abs=1e-6)


def test_loading_draws_no_random_numbers(bert):
    neural._token_encoder.cache_clear()
    before = torch.get_rng_state()
    score(BertScore(bert, layer=2), "the cat", "a dog")  # a cut model is made before it gets its weights
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_is_loaded_once(make):
    neural._sentence_encoder.cache_clear()
    neural._token_encoder.cache_clear()
    score(make(), "the cat", "a dog")
    score(make(batch_size=2), "the bird", "a dog")
    sentences, tokens = neural._sentence_encoder.cache_info(), neural._token_encoder.cache_info()
    assert sentences.misses + tokens.misses == 1 and sentences.hits + tokens.hits == 1


def test_a_run_that_shards_its_models_leaves_these_whole(bert, sentence_model, monkeypatch):
    from transformers.integrations import deepspeed

    class Sharding:
        def is_zero3(self):
            raise AssertionError("asked whether to shard")

    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", Sharding)
    neural._sentence_encoder.cache_clear()
    neural._token_encoder.cache_clear()
    for reward in (BertScore(bert, layer=2), Embedding(sentence_model)):
        assert score(reward, "the cat", "the cat") == pytest.approx(1, abs=1e-5)
    assert deepspeed._hf_deepspeed_config_weak_ref is Sharding


def test_names_and_pickle(bert, sentence_model):
    rewards = [BertScore(bert), BertScore(bert, measure="recall"), Embedding(sentence_model)]
    assert [reward.__name__ for reward in rewards] == ["bertscore", "bertscore/recall", "embedding"]
    for reward in rewards:
        value = score(reward, "the cat", "a dog")
        assert len(pickle.dumps(reward)) < 1000
        assert score(pickle.loads(pickle.dumps(reward)), "the cat", "a dog") == value


def test_a_layer_the_model_has_not(bert):
    with pytest.raises(ValueError, match="layer 4 of a model that has 3"):
        score(BertScore(bert, layer=4), "the cat", "a dog")


@pytest.mark.parametrize(
    ("reward", "arguments", "message"),
    [
        (Embedding, {"model": " "}, "model must name a model, by its id on the Hub or its folder, not ' '."),
        (Embedding, {"model": "m", "batch_size": 0}, "batch_size must be a whole number of at least 1, not 0."),
        (BertScore, {"model": 3}, "model must name a model, by its id on the Hub or its folder, not 3."),
        (BertScore, {"model": "m", "layer": 0}, "layer must be a whole number of at least 1, not 0."),
        (BertScore, {"model": "m", "measure": "F"}, "measure 'F' does not exist: did you mean 'f'?"),
        (BertScore, {"model": "m", "baseline": -0.1}, "baseline must be a number of at least 0, not -0.1."),
        (BertScore, {"model": "m", "baseline": 1}, "baseline must be below 1, not 1."),
        (BertScore, {"model": "m", "batch_size": 2.0}, "batch_size must be a whole number of at least 1, not 2.0."),
    ],
)
def test_wrong_arguments(reward, arguments, message):
    with pytest.raises(InputError) as error:
        reward(**arguments)
    assert message in str(error.value)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        Embedding("some/model")
    assert str(error.value) == (
        "Reward needs the package sentence-transformers, which is not installed: pip install 'lastmile-trl[metrics]'."
    )
    BertScore("some/model")  # which needs no package that a run does not have
