import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import Task
from lastmile_trl.rewards.facts import Coverage, Slots


def coverage(completion, concepts):
    [value] = Coverage()([completion], concepts=[concepts])
    return value


@pytest.mark.parametrize(
    ("completion", "concepts", "expected"),
    [
        ("A dog catches the frisbee.", ["dog", "frisbee", "catch"], 3 / 3),
        ("Two DOGS were running.", ["dog", "run", "frisbee"], 2 / 3),
        ("The dog sat.", ["dog", "sit"], 1 / 2),  # irregular forms have another stem
        ("A dogma is no animal.", ["dog"], 0),
        ("dog", ["dog", "dogs", "Dog", "cat"], 1 / 2),  # one concept, three times
        ("She eats hot dogs.", ["hot dog", "eat"], 2 / 2),
        ("A dog in the hot sun.", ["hot dog", "dog"], 1 / 2),
        ("A dog, so hot. Dogs!", ["hot dog"], 1),  # case and punctuation aside
        ("", ["dog"], 0),
        ("Кот сидел на ковриках.", ["кот", "дом"], 1 / 2),
        ("un cafe\u0301 noir", ["caf\u00e9"], 1),
        ("猫坐在垫子上。", ["猫"], 0),  # a script without spaces is one word
        ("🐈 cat", ["cat", "🐈"], 1),  # what holds no word is no concept
    ],
)
def test_coverage(completion, concepts, expected):
    assert coverage(completion, concepts) == expected


@pytest.mark.parametrize("concepts", ["dog frisbee catch", "dog, frisbee,catch", " dog\nfrisbee , catch "])
def test_concepts_as_one_text(concepts):
    assert coverage("The dog has the frisbee.", concepts) == 2 / 3


@pytest.mark.parametrize("concepts", [None, [], "", " , ", ["", "🐈"]])
def test_without_concepts_there_is_no_score(concepts):
    assert coverage("The dog has the frisbee.", concepts) is None


def test_coverage_of_another_column_and_of_chats():
    reward = Coverage(column="keywords")
    assert reward.needs == ("keywords",) and reward.__name__ == "coverage"
    assert pickle.loads(pickle.dumps(reward)) == reward
    chat = [{"role": "assistant", "content": "The dog."}]
    assert reward([chat, "a cat"], keywords=[["dog"], ("dog", "cat")]) == [1, 0.5]


WORDS = st.lists(
    st.sampled_from(["dog", "dogs", "cat", "running", "run", "hot", "tree", "trees", "the", "a"]), max_size=8
)


@given(WORDS, st.lists(st.sampled_from(["dog", "cat", "run", "hot dog", "tree"]), min_size=1))
def test_one_more_concept_never_lowers_coverage(completion, concepts):
    text = " ".join(completion)
    for concept in concepts:
        assert coverage(f"{text} {concept}", concepts) >= coverage(text, concepts)
    assert coverage(" ".join(concepts), concepts) == 1


E2E = {
    "name": ["The Eagle"],
    "eatType": "coffee shop",
    "food": ["Japanese"],
    "area": ["riverside"],
    "near": None,
}
VALUES = {
    "name": ["The Eagle", "The Rice Boat"],
    "eatType": ["coffee shop", "pub"],
    "food": ["Japanese", "Italian", "Fast food"],
    "area": ["riverside", "city centre"],
    "near": ["The Rice Boat", "Burger King"],
}


def slots(completion, row, **arguments):
    """Return the accuracy, and how often the completion omits, changes and adds."""
    names = ("accuracy", "omitted", "wrong", "added")
    return [Slots(name, **arguments)([completion], slots=[row])[0] for name in names]


@pytest.mark.parametrize(
    ("completion", "omitted", "wrong", "added"),
    [
        ("The Eagle is a Japanese coffee shop by the riverside.", 0, 0, 0),
        ("THE EAGLE: japanese, riverside; coffee-shop!", 0, 0, 0),
        ("The Eagle is a coffee shop by the riverside.", 1, 0, 0),
        ("A coffee shop.", 3, 0, 0),
        ("", 4, 0, 0),
        ("The Eagle is an Italian coffee shop by the riverside.", 0, 1, 0),
        ("The Eagle is an Italian pub in the city centre.", 0, 3, 0),
        ("The Eagle is a Japanese coffee shop by the riverside near Burger King.", 0, 0, 1),
        ("The Eagle is a Japanese and Italian coffee shop by the riverside.", 0, 0, 1),
        ("An Italian fast food pub.", 2, 2, 1),  # no name, no area; food twice wrong: changed and added
        ("The Eagle, an Italian coffee shop, not Italian at all, on the riverside.", 0, 1, 0),  # one value, said twice
    ],
)
def test_slots(completion, omitted, wrong, added):
    accuracy = max(0, 1 - (omitted + wrong + added) / 4)
    assert slots(completion, E2E, values=VALUES) == [accuracy, -omitted / 4, -wrong / 4, -added / 4]


def test_accuracy_is_never_below_nothing():
    assert slots("Italian, fast food, Burger King", {"food": "Japanese"}, values=VALUES) == [0, 0, -1, -2]


def test_without_known_values_only_omissions_are_seen():
    text = "The Eagle is an Italian pub by the riverside near Burger King."
    assert slots(text, E2E) == [0.5, -2 / 4, 0, 0]


def test_one_of_several_values_is_enough_and_each_of_them_is_allowed():
    row = {"area": ["riverside", "city centre"]}
    assert slots("by the riverside", row, values=VALUES)[0] == 1
    assert slots("by the riverside in the city centre", row, values=VALUES)[0] == 1
    assert slots("in a field", row, values=VALUES)[0] == 0


def test_a_name_that_two_slots_share_is_no_addition_where_the_row_gives_it():
    row = {"name": ["The Eagle"], "near": ["The Rice Boat"]}
    assert slots("The Eagle is near The Rice Boat.", row, values=VALUES)[0] == 1
    # Where no slot of the row has it, it is one error and not one for each slot that could.
    assert slots("The Eagle is near The Rice Boat.", {"name": "The Eagle"}, values=VALUES) == [0, 0, 0, -1]
    # Where one of the two is missing, it stands in its place.
    assert slots("The Eagle is near The Rice Boat.", {"name": "The Eagle", "near": "Avalon"}, values=VALUES)[2] == -0.5


FAMILY = {
    "family": {
        "yes": ["family friendly", "kid friendly"],
        "no": ["not family friendly", "adults only"],
    }
}


@pytest.mark.parametrize(
    ("completion", "value", "counts"),
    [
        ("It is family-friendly.", "yes", (0, 0, 0)),
        ("It is not family-friendly.", "yes", (0, 1, 0)),  # and does not also say yes
        ("It is not family-friendly.", "no", (0, 0, 0)),
        ("It is kid friendly.", "no", (0, 1, 0)),
        ("It is kid friendly, but not family friendly.", "no", (0, 0, 1)),
        ("Yes, it is.", "yes", (1, 0, 0)),  # the value's own word is none of its phrases
        ("It is kid friendly and family friendly.", None, (0, 0, 1)),  # one value, however often it is said
    ],
)
def test_phrases(completion, value, counts):
    row = {"family": value, "food": "Thai"}
    slot_count = 1 + (value is not None)
    expected = [-count / slot_count for count in counts]
    assert slots(f"{completion} Thai.", row, phrases=FAMILY)[1:] == expected


def test_values_are_told_apart_whatever_their_type_and_case():
    phrases = {"family": {True: "kid friendly", False: ["adults only"]}, "stars": {5: ["top rated"]}}
    reward = Slots(phrases=phrases)
    text = "Kid friendly and top rated."
    rows = [{"family": "Yes", "stars": "5"}, {"family": True, "stars": 5}, {"family": "no", "stars": "4"}]
    assert reward([text] * 3, slots=rows) == [1, 1, 0]
    assert Slots(values={"stars": [4, 5]})(["5 stars", "4 stars"], slots=[{"stars": 5}] * 2) == [1, 0]


def test_yes_and_no_without_phrases_are_left_out():
    assert slots("There is no Thai food.", {"family": "no", "food": "Thai"}, values=VALUES)[0] == 1
    assert slots("There is no Thai food.", {"family": ["no"], "delivery": True})[0] is None


@pytest.mark.parametrize("row", [None, {}, "", "no slots", {"food": None}, {"food": []}, {"food": ""}, {"food": "?!"}])
def test_without_slots_there_is_no_score(row):
    assert slots("Thai food.", row, values=VALUES) == [None] * 4


def test_longer_phrases_hide_what_overlaps_with_them():
    phrases = {"rating": {"low": ["1 out of 5"], "high": ["5 stars", "high"]}, "street": {"x": ["high street"]}}
    assert slots("1 out of 5 stars", {"rating": "low"}, phrases=phrases)[0] == 1
    assert slots("on the high street", {"rating": "high", "street": "x"}, phrases=phrases)[0] == 0.5
    assert slots("high, on the high street", {"rating": "high", "street": "x"}, phrases=phrases)[0] == 1


def test_a_phrase_listed_twice_is_one():
    phrases = {"family": {"yes": ["kid friendly", "kid-friendly", "Kid Friendly", "for kids"]}}
    assert slots("Thai, kid friendly, for kids", {"food": "Thai"}, phrases=phrases)[3] == -1


def test_a_phrase_that_two_values_share_says_the_one_of_the_row():
    cheap = ["cheap", "under 20"]
    phrases = {"price": {"cheap": cheap, "less than £20": cheap, "high": ["expensive"]}}
    for value in ("cheap", "less than £20"):
        assert slots("It is under £20.", {"price": value}, phrases=phrases)[0] == 1
    assert slots("It is under £20.", {"price": "high"}, phrases=phrases) == [0, 0, -1, 0]
    assert slots("It is cheap, under £20.", {"price": "high"}, phrases=phrases) == [0, 0, -1, 0]


def test_slots_as_a_text():
    row = "name[The Eagle], eatType[coffee shop], food[Japanese], customer rating[3 out of 5]"
    assert slots("The Eagle, Japanese, 3 out of 5.", row) == [0.75, -0.25, 0, 0]
    assert slots("A bad game.", "inform(name[Doom], rating[bad])")[0] == 0.5
    assert slots("A pub.", "eatType[pub], eatType[restaurant]")[0] == 1  # one of two values


def test_the_training_rows_tell_the_values():
    rows = [{"food": ["Thai"], "near": None}, {"food": ["Italian", "Thai"], "near": "Ranch"}, None]
    reward = Slots("added").for_task(Task({"slots": rows}))
    assert reward.values == {"food": ("thai", "italian"), "near": ("ranch",)}
    assert reward(["Thai and Italian, near Ranch."], slots=[{"food": "Thai"}]) == [-2]
    assert Slots("added")(["Thai and Italian, near Ranch."], slots=[{"food": "Thai"}]) == [0]


def test_values_by_hand_go_before_those_of_the_training_rows():
    reward = Slots("added", values={"near": []}).for_task(Task({"slots": [{"food": "Italian", "near": "Ranch"}]}))
    assert reward(["Thai and Italian, near Ranch."], slots=[{"food": "Thai"}]) == [-1]


def test_a_task_without_the_column_changes_nothing():
    assert Slots(values=VALUES).for_task(Task()) == Slots(values=VALUES)


def test_values_of_one_row_are_not_known_in_another():
    rows = [{"food": "Thai"}, {"food": "Greek"}]
    texts = ["Thai and Greek", "Thai and Greek"]
    assert Slots("added")(texts, slots=rows) == [0, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    [("Это Кафе Пушкинъ.", "кафе пушкинъ"), ("Near Cafe\u0301 Rouge.", "Caf\u00e9 Rouge"), ("😀 Ranch 😀", "ranch")],
)
def test_unicode(text, value):
    assert slots(text, {"near": value})[0] == 1
    assert slots(text, {"near": value + "s"})[0] == 0


FACTS = {slot: [value for value in values if value != "The Rice Boat"] for slot, values in VALUES.items()}


@given(st.data())
def test_slots_counts_what_was_put_in(data):
    """Texts made of value names: against counts that need no matching."""
    row = {slot: data.draw(st.sampled_from(values)) for slot, values in FACTS.items() if data.draw(st.booleans())}
    said = [(slot, value) for slot, values in FACTS.items() for value in values if data.draw(st.booleans())]
    random.Random(0).shuffle(said)
    text = ", then ".join(value for _, value in said)
    if not row:
        assert slots(text, row, values=FACTS)[0] is None
        return
    others = {slot: sum(slot == s and value != row.get(slot) for s, value in said) for slot in FACTS}
    lacking = [slot for slot, value in row.items() if (slot, value) not in said]
    wrong = sum(others[slot] > 0 for slot in lacking)
    omitted = len(lacking) - wrong
    added = sum(others.values()) - wrong
    expected = [max(0, 1 - (omitted + wrong + added) / len(row)), *(-n / len(row) for n in (omitted, wrong, added))]
    assert slots(text, row, values=FACTS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reward", "arguments", "message"),
    [
        (Coverage, {"column": ""}, "column must be the name of a column, not ''."),
        (Slots, {"column": 3}, "column must be the name of a column, not 3."),
        (Slots, {"measure": "ommitted"}, "measure 'ommitted' does not exist: did you mean 'omitted'?"),
        (Slots, {"values": ["a"]}, "values must map each slot to a list of values, not ['a']."),
        (Slots, {"values": {"food": "Thai"}}, "values must map each slot to a list of values, not {'food': 'Thai'}."),
        (Slots, {"phrases": ["a"]}, "phrases must map each slot to its values, and these to phrases, not ['a']."),
        (Slots, {"phrases": {"f": ["a"]}}, "phrases must map each slot to its values, and these to phrases, not {'f'"),
        (Slots, {"phrases": {"f": {"yes": []}}}, "The phrases of f: yes must be texts with words, not []."),
        (Slots, {"phrases": {"f": {"yes": ["£"]}}}, "The phrases of f: yes must be texts with words, not ['£']."),
        (Slots, {"phrases": {"f": {"yes": [20]}}}, "The phrases of f: yes must be texts with words, not [20]."),
    ],
)
def test_wrong_arguments(reward, arguments, message):
    with pytest.raises(InputError) as error:
        reward(**arguments)
    assert message in str(error.value)


def test_names_needs_and_pickle():
    rewards = [Slots(), Slots("omitted"), Slots("wrong", column="facts"), Slots("added", phrases=FAMILY, values=VALUES)]
    assert [reward.__name__ for reward in rewards] == ["slots", "slots/omitted", "slots/wrong", "slots/added"]
    assert [reward.needs for reward in rewards] == [("slots",), ("slots",), ("facts",), ("slots",)]
    copies = pickle.loads(pickle.dumps(rewards))
    assert copies == rewards and copies[3](["Ranch"], slots=[E2E]) == rewards[3](["Ranch"], slots=[E2E])


def test_slots_of_chats():
    assert Slots()([[{"role": "assistant", "content": "Thai"}]], slots=[{"food": "thai"}]) == [1]
