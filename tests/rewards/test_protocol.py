"""What holds for every registered reward: TRL's protocol, the registry's promises, and robustness to odd texts."""

import math
import pickle
import random

import pytest

from lastmile_trl.rewards import REGISTRY, Task, build, prepare

ARGUMENTS = {  # where a reward cannot be built without
    "overlong": {"limit": 10},
    "format": {"pattern": r"[\w ]+\."},
}
MODELS = ("embedding", "bertscore", "classifier", "model")  # tested with a model of their own
NAMES = [name for name in REGISTRY if name not in MODELS]

TEXTS = [
    "A cat sat on 12 mats in Paris.",
    "A dog sat on 3 mats, a dog sat on 3 mats, a dog sat on 3 mats.",
    "",
    " \n ",
    "a",
    "Кот сидел на коврике в Москве, 5 раз.",
    "猫坐在垫子上。",
    "cafe\u0301 au lait 🐈‍⬛ 🐈‍⬛ 🐈‍⬛",
    "\ud800 lone",
    "İstanbul ١٢٣ ²",
]
REFERENCES = [
    "A cat sat on 12 mats in Paris.",
    ["A dog sat.", "3 mats under a dog"],
    ["Кот сидел на коврике."],
    "猫坐在垫子上",
]


def call(texts=TEXTS, chat=False):
    """A batch as a trainer passes it: one row per text."""
    rows = range(len(texts))
    prompts = [f"Say where the cat of Ann {row} sat on 12 mats." for row in rows]
    return {
        "prompts": [[{"role": "user", "content": prompt}] for prompt in prompts] if chat else prompts,
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if chat else list(texts),
        "completion_ids": [[7] * (1 + len(text.split())) + [2] for text in texts],
        "references": [REFERENCES[row % len(REFERENCES)] for row in rows],
        "concepts": [["cat", "mat"] for _ in rows],
        "slots": [{"name": ["Ann"], "area": ["Paris"]} for _ in rows],
        "id": [f"row-{row}" for row in rows],
        "trainer_state": object(),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }


def rows_of(batch, rows):
    """The batch with only these rows, in this order."""
    return {
        name: [column[row] for row in rows] if isinstance(column, list) else column for name, column in batch.items()
    }


@pytest.fixture
def reward(request):
    return made(request.param)


def made(name, **settings):
    batch = call()
    columns = {column: batch[column] for column in ("references", "concepts", "slots")}
    entry = {name: {**ARGUMENTS.get(name, {}), **settings}}
    [reward] = prepare(build([entry]), Task(columns, frozenset({2})))
    return reward


every_reward = pytest.mark.parametrize("reward", NAMES, indirect=True)


@every_reward
def test_one_finite_float_or_none_per_completion(reward):
    values = reward(**call())
    assert len(values) == len(TEXTS)
    assert all(value is None or (type(value) is float and math.isfinite(value)) for value in values)
    assert min(filter(lambda v: v is not None, values)) >= -1 and max(filter(lambda v: v is not None, values)) <= 1


@every_reward
def test_the_name_begins_with_that_of_the_registry(reward, request):
    name = request.node.callspec.params["reward"]
    assert reward.__name__ == reward.name and reward.name.split("/")[0] == name


def test_names_are_unique():
    names = [made(name).name for name in NAMES]
    assert len(set(names)) == len(names)


@every_reward
def test_chats_score_as_texts_do(reward):
    assert reward(**call(chat=True)) == reward(**call())


@every_reward
def test_a_shuffled_batch_gives_shuffled_rewards(reward):
    batch, order = call(), list(range(len(TEXTS)))
    random.Random(0).shuffle(order)
    values = reward(**batch)
    assert reward(**rows_of(batch, order)) == [values[row] for row in order]


@every_reward
def test_a_row_alone_scores_as_in_the_batch(reward):
    batch = call()
    alone = [reward(**rows_of(batch, [row]))[0] for row in range(len(TEXTS))]
    assert alone == reward(**batch)


@every_reward
def test_pickled_and_back(reward):
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward and copy(**call()) == reward(**call())


@every_reward
def test_an_empty_batch(reward):
    assert reward(**call(texts=[])) == []


@every_reward
def test_the_columns_it_needs_are_said(reward):
    """A batch that has only these columns, and the prompts, is enough."""
    batch = call()
    generated = ["completion_ids"] if hasattr(reward.function, "not_on_texts") else []
    enough = {key: batch[key] for key in ("prompts", "completions", *generated, *reward.needs)}
    assert reward(**enough) == reward(**batch)


@every_reward
def test_no_reference_is_no_score_where_references_are_needed(reward):
    if "references" in reward.needs:
        batch = call() | {"references": [None] * len(TEXTS)}
        values = reward(**batch)
        # Entities and numbers of a completion can still be looked for in the source.
        if not reward.name.startswith(("entities", "numbers")):
            assert values == [None] * len(TEXTS)
        assert reward(**batch | {"references": [[]] * len(TEXTS)}) == values


QUALITY = ["rouge", "combined_rouge", "length_adjusted_rouge", "bleu", "chrf", "cider", "exact_match", "token_f1"]


@pytest.mark.parametrize("name", QUALITY)
def test_the_reference_itself_scores_best(name):
    batch = call(["a cat sat on a mat", "a cat sat on a rug", "on the hill", ""])
    batch["references"] = ["a cat sat on a mat"] * 4
    columns = {"references": [["a cat sat on a mat"], ["dogs ran over hills"], ["one bird flew off"]]}
    [reward] = prepare(build([name]), Task(columns))
    same, near, far, nothing = reward(**batch)
    assert same == pytest.approx(1.0) and same > near >= far >= nothing == 0.0
    assert name == "exact_match" or near > far


@pytest.mark.parametrize("name", QUALITY)
def test_of_several_references_the_best_counts(name):
    columns = {"references": [["a cat sat on a mat"], ["dogs ran over hills"], ["one bird flew off"]]}
    [reward] = prepare(build([name]), Task(columns))
    one, several = reward(
        completions=["dogs ran over hills"] * 2,
        references=[["dogs ran over hills"], ["a cat sat on a mat", "dogs ran over hills"]],
    )
    # BLEU and CIDEr look at all references together: BLEU takes the best of each n-gram, CIDEr the mean.
    assert one == pytest.approx(1.0) and several == pytest.approx(0.5 if name == "cider" else 1.0)
