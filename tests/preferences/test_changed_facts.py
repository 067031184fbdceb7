import pytest

from lastmile_trl.preferences.facts import absent, find_facts, is_english, known_names, negated


def found(text, names=frozenset()):
    return {(fact.sort, fact.value) for fact in find_facts(text, names)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Then Hannah asked Larry O'Brien.", {"Hannah", "Larry O'Brien"}),
        ("As Betty's and Ann’s friends, I'm told, are the Lees.", {"Betty", "Ann", "Lees"}),
        ("The New York office of Jean-Claude", {"New York", "Jean-Claude"}),
        ("They met Łucja and E\u0301loise.", {"Łucja", "E\u0301loise"}),
        ("И Анна, и Пётр ушли.", {"Анна", "Пётр"}),
        ("an iPhone from NASA", {"iPhone", "NASA"}),
        ("However, nobody came. 猫坐在垫子上。 ذهب الولد", set()),
        ("On Monday Ann Lee left in May", {"Ann Lee"}),  # a date is no name, and parts names
    ],
)
def test_names(text, expected):
    assert {value for sort, value in found(text) if sort == "entity"} == expected


def test_what_starts_a_sentence_must_be_known_for_a_name():
    assert found("Dogs met Rose. Rose left.\nDogs ran: Dogs!") == {("entity", "Rose")}
    assert [fact.start for fact in find_facts("Rose met Rose. Rose left", {"Bo"})] == [9]
    assert [fact.start for fact in find_facts("Bo's dog met Rose. “Bo left”", {"Bo"})] == [0, 13, 20]
    assert found("Dear Bo left. Dear Ann Lee", {"Bo"}) == {("entity", "Bo"), ("entity", "Ann Lee")}


def test_known_names():
    texts = [
        "Sorry, Bo's late: Urgh, he's with Ann.",
        "Cid: Hi, Mark!\nDi: Well, I mark it.",
        "Then Sorry came, the Ox",
    ]
    assert known_names(texts) == {"Bo", "Ann", "Cid", "Di", "Sorry", "Ox"}  # Mark is written small somewhere
    assert known_names([*texts, "so sorry"]) == {"Bo", "Ann", "Cid", "Di", "Ox"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 dogs, 12 cats and 1,200 birds at 3.50", {("0", "3"), ("0", "12"), ("0,0", "1,200"), ("0.0", "3.50")}),
        ("in 1999 at 10:30", {("0000", "1999"), ("0:0", "10:30")}),
        ("下午4点，5人", {("0", "4"), ("0", "5")}),
        ("5pm, 7%, $9, ٣", {("0", "5"), ("0", "7"), ("0", "9"), ("0", "٣")}),
        ("Two or twenty, not one", {("spelled", "two"), ("spelled", "twenty")}),
        ("the 23rd, twenty-one, B2B, F-16, 2nd", set()),
    ],
)
def test_numbers(text, expected):
    assert {each for each in found(text) if each[0] != "entity"} == {
        (f"number {sort}", value) for sort, value in expected
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("on Monday or Sunday", {("weekday", "Monday"), ("weekday", "Sunday")}),
        ("in March, 3 May, May 12", {("month", "March"), ("month", "May")}),
        ("You may go. May I?", set()),
        ("Tomorrow, not today", {("relative", "tomorrow"), ("relative", "today")}),
        ("2024-05-12 or 12/05/24", {("day", "2024-05-12"), ("day", "12/05/24")}),
    ],
)
def test_dates(text, expected):
    assert {(sort, value) for sort, value in found(text) if sort.startswith("date")} == {
        (f"date {sort}", value) for sort, value in expected
    }


def test_a_date_holds_no_number():
    assert {sort for sort, _ in found("on 2024-05-12 or 12/05/24")} == {"date day"}


def test_places():
    text = "to Ann's 3 dogs"
    assert [(fact.kind, text[fact.start : fact.end]) for fact in find_facts(text, set())] == [
        ("number", "3"),
        ("entity", "Ann"),
    ]


def test_what_references_do_not_hold():
    assert absent("number", ["3", "three", "3.0", "03", "4", "four"], "3 dogs") == ["4", "four"]
    assert absent("entity", ["Ann", "Ann Lee", "Lee", "ANN", "Bo"], "Ann's dog") == ["Lee", "Bo"]
    assert absent("date", ["Monday", "monday", "Friday"], "on Monday") == ["Friday"]
    assert absent("entity", [], "Ann") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ann is here.", ["Ann is not here."]),
        ("Ann is not here.", ["Ann is here."]),
        ("Ann isn't here, she won’t come.", ["Ann is here, she won’t come.", "Ann isn't here, she will come."]),
        ("Ann cannot come.", ["Ann can come."]),
        ("Can't Ann come?", ["Can Ann come?"]),
        ("Don't go.", ["Do go."]),
        ("He has not paid and does n't know.", ["He has paid and does n't know.", "He has not paid and does know."]),
        ("He has been ill.", ["He has not been ill."]),
        ("He has a dog and did it.", []),  # no auxiliary verbs
        ("Is Ann here? Will Bo be?", []),
        ("It is never late and not only fun.", []),
        ("They were not only late.", []),
        ("the will of a can", []),
        ("Ann walked.", []),
    ],
)
def test_negations(text, expected):
    assert negated(text) == expected


def test_english():
    assert is_english("What a day") and is_english("there") and is_english("Give them THE book")
    assert not is_english("Er was da, der will")
    assert not is_english("Анна")
    assert not is_english("theatre")
