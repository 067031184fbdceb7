import json
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import Task
from lastmile_trl.rewards.form import Echo, Ending, Format


def test_ending_by_the_last_token():
    ids = [[5, 2], [5, 6], [2, 5], [2], [], [5, 3]]
    assert Ending(end_ids=(2, 3))([""] * 6, completion_ids=ids) == [0, -1, -1, 0, -1, 0]
    assert Ending(end_ids=[3])([""] * 6, completion_ids=ids) == [-1, -1, -1, -1, -1, 0]


def test_ending_as_the_rows_say():
    assert Ending()(["a", "b", "c"], ended=[True, False, None]) == [0, -1, None]
    assert Ending(end_ids=[2])(["a", "b"], completion_ids=[[5], [2]], ended=[True, False]) == [0, -1]


def test_a_row_without_ids_is_not_scored():
    assert Ending(end_ids=[2])(["a", "b"], completion_ids=[None, [2]]) == [None, 0]


def test_an_ending_that_is_not_known_is_no_number():
    missing = "it is not known what ended: pass ended, or completion_ids and give the reward end_ids"
    for reward, columns in [(Ending(), {}), (Ending(), {"completion_ids": [[2]]}), (Ending(end_ids=[2]), {})]:
        with pytest.raises(ValueError, match=missing):
            reward(["a"], **columns)
    with pytest.raises(ValueError, match="ended must be true or false, not 'no'"):
        Ending()(["a"], ended=["no"])
    with pytest.raises(ValueError, match="longer"):
        Ending()(["a", "b"], ended=[True])


def test_the_end_tokens_of_a_run():
    task = Task(end_ids=frozenset({9, 2}))
    assert Ending().for_task(task) == Ending(end_ids=(2, 9))
    assert Ending(end_ids=[7]).for_task(task) == Ending(end_ids=(7,)), "those it was given stay"
    assert Ending().for_task(Task()) == Ending(), "a run without end tokens knows none"
    assert Ending().for_task(task)(["", ""], completion_ids=[[5, 9], [9, 5]]) == [0, -1]


def echo(completion, prompt, **arguments):
    [value] = Echo(**arguments)([completion], prompts=[prompt])
    return value


PROMPT = "Summarise this talk in one sentence. Ann: Shall we meet at noon today?"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Summarise this talk in one, please.", -1),  # the first five words
        ("Ok. SUMMARISE, this: talk in one", -1),  # without case, whatever stands between
        ("Shall we? Yes, we meet at noon today!", -1),  # the last five
        ("Summarise this talk in a sentence.", 0),  # four in a row
        ("this talk in one sentence Ann", 0),  # five, but neither first nor last
        ("one in talk this summarise", 0),
        ("Ann wants to meet at noon.", 0),
        ("Summarise this talk in oneness", 0),  # whole words
        ("", 0),
    ],
)
def test_echo(completion, expected):
    assert echo(completion, PROMPT) == expected


def test_echo_of_more_or_fewer_words():
    assert echo("It is today.", PROMPT, words=1) == -1
    assert echo("Shall we meet at noon today?", PROMPT, words=6) == -1
    assert echo("So we meet at noon today?", PROMPT, words=6) == 0


def test_echo_of_a_prompt_that_is_shorter():
    assert echo("Tell me why! I will.", "Why? Tell me why.") == 0
    assert echo("Why? Tell me why. I will.", "Why? Tell me why.") == -1


@pytest.mark.parametrize("prompt", ["", " \n", "...", []])
def test_an_empty_prompt_cannot_be_echoed(prompt):
    assert echo("Some words.", prompt) == 0
    assert echo("", prompt) == 0


def test_echo_of_a_chat_is_of_what_the_user_said():
    prompt = [{"role": "system", "content": "Be brief and kind."}, {"role": "user", "content": "Why is that?"}]
    assert echo([{"role": "assistant", "content": "Why is that? It is so."}], prompt) == -1
    assert echo([{"role": "assistant", "content": "Be brief and kind."}], prompt) == 0


def test_echo_of_a_column():
    reward = Echo(words=2, source="article")
    assert reward.needs == ("article",)
    completions = ["A big cat sat.", "Why not?"]
    assert reward(completions, prompts=["Why not?"] * 2, article=["A big dog."] * 2) == [-1, 0]
    assert Echo(words=0, phrases=["a"], source="article").needs == (), "it is not looked at"


def test_phrases():
    arguments = {"phrases": ["Summary:", "### Input"], "words": 0}
    assert Echo(**arguments).needs == ()
    completions = ["A summary of it.", "SUMMARY: It is.", "It is.\n###  input\nMore", "It is. ###"]
    assert Echo(**arguments)(completions) == [0, -1, -1, 0]


def test_phrases_beside_the_prompt():
    reward = Echo(words=2, phrases=["TL;DR"])
    completions = ["Why not? So.", "tl;dr so", "So."]
    assert reward(completions, prompts=["Why not now?"] * 3) == [-1, -1, 0]
    assert echo("TL;DR", "", phrases=["TL;DR"]) == -1


def test_echo_in_other_scripts():
    prompt = "\u041a\u043e\u0442 \u0441\u043f\u0438\u0442 \u0433\u0434\u0435-\u0442\u043e"
    assert echo("\u043a\u043e\u0442 \u0421\u041f\u0418\u0422!", prompt, words=2) == -1
    chinese = "\u732b\u5750\u5728\u57ab\u5b50\u4e0a\u3002"
    assert echo("\u732b\u5750\u5728\u5bb6", chinese, words=3) == 0, "a run of Chinese is one word"
    assert echo("\u732b\u5750\u5728\u5bb6", chinese, words=3, tokenizer="characters") == -1
    assert echo("cafe\u0301 noir", "Caf\u00e9 noir, please", words=2) == -1


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8), st.text(alphabet="ab "), st.integers(1, 9))
def test_a_completion_with_the_whole_prompt_echoes_it(prompt, more, words):
    assert echo(f"{more} {' '.join(prompt)} {more}", " ".join(prompt), words=words) == -1


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=6), st.integers(1, 4))
def test_echo_is_a_run_of_words_of_the_prompt(said, asked, words):
    runs = [said[start : start + len(asked[:words])] for start in range(len(said))]
    expected = bool(asked) and (asked[:words] in runs or asked[-words:] in runs)
    assert echo(" ".join(said), " ".join(asked), words=words) == -float(expected)


def form(completion, **arguments):
    [value] = Format(**arguments)([completion])
    return value


@pytest.mark.parametrize(
    ("pattern", "completion", "expected"),
    [
        (r"Answer: \d+", "Answer: 42", 1),
        (r"Answer: \d+", " Answer: 42\n", 1),
        (r"Answer: \d+", "Answer: 42.", 0),
        (r"Answer: \d+", "The Answer: 42", 0),
        (r"<think>.*</think>.+", "<think>\none\n</think>\ntwo", 1),
        (r"(?i)yes|no", "YES", 1),
        (r"yes|no", "YES", 0),
        (r"a|ab", "ab", 1),
        (r"\w+", "\u043a\u043e\u0442", 1),
        (r"", "", 1),
        (r".+", "", 0),
    ],
)
def test_pattern(pattern, completion, expected):
    assert form(completion, pattern=pattern) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"name": "Ann", "age": 3}', 1),
        ('\n {"age": 3}\n', 1),
        ("{}", 0),  # no age
        ('{"age": "3"}', 0),
        ('{"age": 3.5}', 0),
        ('{"age": 3} ', 1),
        ('{"age": 3} Done.', 0),
        ('Here: {"age": 3}', 0),
        ('```json\n{"age": 3}\n```', 0),
        ('{"age": 3', 0),
        ("{'age': 3}", 0),
        ("3", 0),
        ("", 0),
    ],
)
def test_json_schema(completion, expected):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    assert form(completion, json_schema=schema) == expected


@pytest.mark.parametrize("completion", ["{}", "[1, 2.5e3]", '"text"', "null", "true", "-0", '{"\u732b": "\U0001f600"}'])
def test_the_empty_schema_is_any_json(completion):
    assert form(completion, json_schema={}) == 1


@pytest.mark.parametrize("completion", ["", "NaN", "[Infinity]", "[-Infinity]", "01", "text", "{} {}", "[1,]"])
def test_what_is_no_json(completion):
    assert form(completion, json_schema={}) == 0


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_whatever_json_writes_is_json(value):
    assert form(json.dumps(value), json_schema={}) == 1


@pytest.mark.parametrize("completion", ["[" * 100_000, "9" * 5_000, "[" * 900 + "]" * 900, "1" + "0" * 400, "1e999"])
def test_json_too_large_to_look_at_is_refused_rather_than_a_crash(completion):
    schema = {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"multipleOf": 0.1}]}
    assert form(completion, json_schema=schema) == 0


def test_a_schema_in_a_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"type": "array", "items": {"$ref": "#/$defs/\u732b"}, "$defs": {"\u732b": {"type": "string"}}}')
    reward = Format(json_schema=str(path))
    assert reward == Format(json_schema=path)
    path.unlink()
    assert pickle.loads(pickle.dumps(reward))(['["a"]', "[1]"]) == [1, 0]


def test_a_schema_is_a_copy():
    schema = {"type": "string"}
    reward = Format(json_schema=schema)
    schema["type"] = "number"
    assert reward(['"a"', "1"]) == [1, 0]


def test_the_draft_that_a_schema_names():
    # a list of items stands for the places of an array until draft 2019-09, and is refused since
    schema = {"items": [{"type": "string"}, {"type": "number"}]}
    draft = {"$schema": "http://json-schema.org/draft-07/schema#"}
    assert Format(json_schema=draft | schema)(['["a", 1]', '[1, "a"]']) == [1, 0]
    with pytest.raises(InputError, match=r"json_schema is no JSON schema: at \$.items"):
        Format(json_schema=schema)


def test_inner_schemas_with_names_of_their_own():
    inner = {"$id": "age", "$ref": "#/$defs/whole", "$defs": {"whole": {"type": "integer"}}}
    schema = {"$id": "https://example.org/ann", "properties": {"age": {"$ref": "age"}}, "$defs": {"age": inner}}
    assert Format(json_schema=schema)(['{"age": 3}', '{"age": "3"}']) == [1, 0]


def test_choices():
    choices = ["yes", " no ", "\u043d\u0435 \u0437\u043d\u0430\u044e"]
    completions = ["yes", "no\n", "Yes", "yes.", "\u041d\u0435 \u0437\u043d\u0430\u044e", ""]
    assert Format(choices=choices)(completions) == [1, 1, 0, 0, 0, 0]
    assert Format(choices=choices, ignore_case=True)(completions) == [1, 1, 1, 0, 1, 0]


def test_format_of_chats():
    chat = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "yes"}]
    assert Format(choices=["yes"])([chat, "no"], prompts=["x", "y"]) == [1, 0]


def test_only_a_schema_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # as if it were not installed
    assert Format(choices=["a"])(["a"]) == Format(pattern="a")(["a"]) == [1]
    with pytest.raises(InputError, match=r"jsonschema.*pip install 'lastmile-trl\[metrics\]'"):
        Format(json_schema={})


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Ending, {"end_ids": 2}, "end_ids must be a list of token ids, not 2"),
        (Ending, {"end_ids": []}, "end_ids must be a list of token ids, not []"),
        (Ending, {"end_ids": ["</s>"]}, "an id in end_ids must be a whole number of at least 0, not '</s>'"),
        (Echo, {"words": -1}, "words must be a whole number of at least 0, not -1"),
        (Echo, {"words": 0}, "there is nothing to look for: give words of at least 1, or phrases"),
        (Echo, {"phrases": "Summary:"}, "phrases must be a list of texts, not 'Summary:'"),
        (Echo, {"phrases": ["a", " "]}, "phrases must not hold an empty text"),
        (Echo, {"phrases": [5]}, "phrases must be a list of texts, and 5 is none: put it in quotes"),
        (Echo, {"tokenizer": "word"}, "tokenizer 'word' does not exist: did you mean 'words'?"),
        (Format, {}, "give one of pattern, json_schema and choices, not none"),
        (
            Format,
            {"pattern": "a", "json_schema": {}},
            "give one of pattern, json_schema and choices, not pattern and json_schema",
        ),
        (Format, {"pattern": "("}, "pattern '(' is no regular expression: missing ), unterminated subpattern"),
        (Format, {"pattern": 5}, "pattern must be a regular expression, not 5"),
        (Format, {"choices": []}, "choices must be a list of texts, not []"),
        (Format, {"choices": "yes"}, "choices must be a list of texts, not 'yes'"),
        (Format, {"choices": [True, False]}, "choices must be a list of texts, and True is none: put it in quotes"),
        (Format, {"choices": ["a"], "ignore_case": "yes"}, "ignore_case must be true or false, not 'yes'"),
        (Format, {"pattern": "a", "ignore_case": True}, "ignore_case is for choices; a pattern ignores case if"),
        (Format, {"json_schema": [1]}, "json_schema must be a mapping or the path of a file that holds one, not [1]"),
        (Format, {"json_schema": {"enum": {1}}}, "cannot be read: Object of type set is not JSON serializable"),
        (Format, {"json_schema": "no.json"}, "json_schema 'no.json' cannot be read: [Errno 2] No such file"),
        (Format, {"json_schema": {"type": "strin"}}, "json_schema is no JSON schema: at $.type, 'strin' is not valid"),
        (
            Format,
            {"json_schema": {"pattern": "("}},
            "json_schema is no JSON schema: at $.pattern, '(' is not a 'regex'",
        ),
        (
            Format,
            {"json_schema": {"items": {"$ref": "#/$defs/a"}}},
            "json_schema refers to '/$defs/a', which it does not hold",
        ),
        (
            Format,
            {"json_schema": {"$ref": "https://example.org/a"}},
            "json_schema refers to 'https://example.org/a', which it does not hold",
        ),
    ],
)
def test_wrong_arguments(make, arguments, message):
    with pytest.raises(InputError) as error:
        make(**arguments)
    assert message in str(error.value)


def test_a_file_that_holds_no_schema(tmp_path):
    path = tmp_path / "schema.json"
    for text, message in [
        ("{", "cannot be read: Expecting"),
        ("[]", "must be a mapping"),
        ("\udcff", "cannot be read"),
    ]:
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match=message):
            Format(json_schema=str(path))


def test_names_needs_and_pickle():
    rewards = [Ending(end_ids=[2]), Echo(phrases=["a"]), Format(pattern="a"), Format(json_schema={"type": "string"})]
    assert [reward.__name__ for reward in rewards] == ["ending", "echo", "format", "format"]
    assert [reward.needs for reward in rewards] == [(), (), (), ()]
    assert pickle.loads(pickle.dumps(rewards)) == rewards
    assert {Ending(end_ids=[2]), Echo(phrases=["a"]), Format(choices=["a"])} >= {Ending((2,)), Format(choices=("a",))}
