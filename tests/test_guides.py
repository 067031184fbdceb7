"""Guides as black boxes: the user's function, and a real client against an endpoint on 127.0.0.1."""

import logging
import re
import socket
import subprocess
import sys
import threading
import time
import traceback

import pytest

from lastmile_trl.data import completion
from lastmile_trl.errors import InputError, RunError
from lastmile_trl.guides import Endpoint, Function, build, check, kind_of

from .fake_endpoint import FakeEndpoint, Fault

URL = "http://127.0.0.1:8000/v1"
SOON = {"retry-after-ms": "1"}  # the client would wait half a second, then twice as long
KEY = "sk-planted/4f3a 9"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeEndpoint() as server:
        yield server


def chat(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def failure(guide, prompts, prefixes=None):
    with pytest.raises(RunError) as caught:
        guide(prompts, prefixes or [""] * len(prompts))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


# --- what a recipe says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guide, kind",
    [
        ("references", "references"),
        ("base", "base"),
        ("runs/samsum/sft", "model"),
        ("Qwen/Qwen2.5-0.5B", "model"),
        ("my_package.my_module:guide", "function"),
        ({"endpoint": URL, "model": "guide"}, "endpoint"),
        (URL, "endpoint"),
    ],
)
def test_what_a_recipe_names(guide, kind):
    assert kind_of(guide) == kind
    if kind in ("references", "base", "model"):
        check(guide)
        assert build(guide) is None


def test_a_guide_is_built_from_what_the_recipe_says():
    section = {"endpoint": URL, "model": "guide", "batch_size": 4, "timeout": 5, "retries": 0, "max_tokens": 32}
    guide = build(section, {"top_p": 0.92}, seed=7)
    assert guide == Endpoint(
        URL, "guide", batch_size=4, timeout=5, retries=0, max_tokens=32, sampling={"top_p": 0.92}, seed=7
    )
    assert section == {"endpoint": URL, "model": "guide", "batch_size": 4, "timeout": 5, "retries": 0, "max_tokens": 32}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"batchsize": 4},
            "guidance.guide: key 'batchsize' does not exist: did you mean 'batch_size'? Valid: endpoint,",
        ),
        ({"api_key": KEY}, "guidance.guide: key 'api_key' does not exist: did you mean 'api_key_env'?"),
        ({"seed": 1}, "guidance.guide: key 'seed' does not exist"),
        ({"sampling": {}}, "guidance.guide: key 'sampling' does not exist"),
        ({"endpoint": None}, "guidance.guide.endpoint must be a URL such as http://127.0.0.1:8000/v1, not None."),
        ({"endpoint": "127.0.0.1:8000/v1"}, "endpoint must be a URL such as http://127.0.0.1:8000/v1, not '127."),
        ({"endpoint": "ftp://127.0.0.1/v1"}, "endpoint must be a URL such as"),
        ({"endpoint": "http://127.0.0.1:many/v1"}, "endpoint must be a URL such as"),
        ({"endpoint": "http://[::1/v1"}, "endpoint must be a URL such as"),
        ({"endpoint": "http:///v1"}, "endpoint must be a URL such as"),
        ({"endpoint": "http://my host/v1"}, "endpoint must be a URL such as"),
        (
            {"endpoint": f"{URL}/chat/completions"},
            "guidance.guide.endpoint ends in /v1 or the like, without /completions",
        ),
        ({"endpoint": f"http://me:{KEY}@127.0.0.1/v1"}, "must be a URL without user, password and query"),
        ({"endpoint": f"{URL}?key={KEY}"}, "must be a URL without user, password and query"),
        ({"model": ""}, "guidance.guide.model must be the name of the served model, not ''."),
        ({"model": 7}, "guidance.guide.model must be the name of the served model, not 7."),
        ({"batch_size": 0}, "guidance.guide.batch_size must be a whole number of at least 1, not 0."),
        ({"batch_size": "16"}, "guidance.guide.batch_size must be a whole number of at least 1, not '16'."),
        ({"batch_size": True}, "guidance.guide.batch_size must be a whole number of at least 1, not True."),
        ({"timeout": 0}, "guidance.guide.timeout must be a number above 0, not 0."),
        ({"retries": -1}, "guidance.guide.retries must be a whole number of at least 0, not -1."),
        ({"max_tokens": 0}, "guidance.guide.max_tokens must be a whole number of at least 1, not 0."),
        ({"api_key_env": KEY}, "guidance.guide.api_key_env must be the name of an environment variable, not a key."),
        ({"extra": "stop"}, "guidance.guide.extra must be `key: value` pairs, not 'stop'."),
        ({"extra": {"stream": True}}, "guidance.guide.extra cannot change 'stream' of a request: leave it out."),
    ],
)
def test_what_an_endpoint_does_not_take(change, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        check({"endpoint": URL, "model": "guide", **change})
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "guide, message",
    [
        ({"endpoint": URL}, "guidance.guide needs the key 'model': write {endpoint: URL, model: NAME}."),
        ({"model": "guide"}, "guidance.guide needs the key 'endpoint'"),
        (URL, "guidance.guide is a URL and does not say which model"),
    ],
)
def test_what_an_endpoint_needs(guide, message):
    for refuse in (check, build):
        with pytest.raises(InputError, match=re.escape(message)):
            refuse(guide)


def test_a_key_that_no_header_can_hold_is_refused_before_the_run(monkeypatch):
    monkeypatch.setenv("GUIDE_KEY", f"{KEY}é")
    with pytest.raises(InputError, match="The variable GUIDE_KEY holds characters that no key has") as caught:
        check({"endpoint": URL, "model": "guide", "api_key_env": "GUIDE_KEY"})
    assert KEY not in str(caught.value)


def test_checking_asks_nobody_and_imports_nothing_heavy(server):
    code = f"""
import sys
from lastmile_trl.guides import check
check({{"endpoint": {server.url!r}, "model": "guide"}})
print(sorted({{"openai", "torch", "transformers", "datasets", "trl"}} & set(sys.modules)))
sys.modules["openai"] = None
try:
    check({{"endpoint": {server.url!r}, "model": "guide"}})
except Exception as error:
    print(type(error).__name__, error)
check("base")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "[]",
        "InputError A guide behind an endpoint needs the package openai, which is not installed: "
        "pip install 'lastmile-trl[endpoint]'.",
    ], done.stderr
    assert server.received == []


# --- functions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's, with guides that are right and wrong."""
    (tmp_path / "own_guides.py").write_text(
        "class Later:\n"
        "    def __call__(self, prompts, prefixes):\n"
        "        return [f' {prefix or prompt} and on ' for prompt, prefix in zip(prompts, prefixes)]\n"
        "later = Later()\n"
        "number = 3\n"
        "def of_one(prompts): return prompts\n"
        "async def slow(prompts, prefixes): return prompts\n"
        "def fails(prompts, prefixes):\n"
        "    return [{'a': 'yes'}[prompt] for prompt in prompts]\n"
        "def fails_on_many(prompts, prefixes):\n"
        "    if len(prompts) > 1: raise MemoryError('too many')\n"
        "    return prompts\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_guides", None)


def test_a_function_is_called_with_all_prompts(own_module):
    guide = build("own_guides:later")
    assert guide(["a", "b"], ["", "b is"]) == ["a and on", " b is and on"]


@pytest.mark.parametrize(
    "path, message",
    [
        ("no_such_module:f", "Guide 'no_such_module:f': importing 'no_such_module' failed with ModuleNotFoundError"),
        ("own_guides:latr", "Guide 'own_guides:latr': module 'own_guides' has no 'latr': did you mean 'later'?"),
        ("own_guides:number", "Guide 'own_guides:number' must be a function of (prompts, prefixes), not 3."),
        ("own_guides:Later", "Guide 'own_guides:Later' must be a function of (prompts, prefixes), not <class"),
        ("own_guides:of_one", "Guide 'own_guides:of_one' must take (prompts, prefixes)."),
        ("own_guides:slow", "Guide 'own_guides:slow' is asynchronous: give a plain function."),
    ],
)
def test_what_is_no_guide_is_refused_before_the_run(own_module, path, message):
    for refuse in (check, build):
        with pytest.raises(InputError, match=re.escape(message)):
            refuse(path)


def test_a_function_that_fails_is_named_with_the_prompt(own_module):
    with pytest.raises(RunError) as caught:
        build("own_guides:fails")(["a", "b", "c"], ["", "", ""])
    assert str(caught.value) == "Guide 'own_guides:fails' failed on the prompt 'b': KeyError: 'b'"
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(
        RunError, match="failed on a whole batch, though on none of its prompts alone: MemoryError: too"
    ):
        build("own_guides:fails_on_many")(["a", "b"], ["", ""])


@pytest.mark.parametrize(
    "returned, message",
    [
        (["x"], "Guide 'my:guide' returned 1 texts for 2 prompts."),
        (["x", "y", "z"], "Guide 'my:guide' returned 3 texts for 2 prompts."),
        (["x", None], "Guide 'my:guide' returned None and no text on the prompt 'b'."),
        ([["x"], "y"], "Guide 'my:guide' returned ['x'] and no text on the prompt 'a'."),
        ("xy", "Guide 'my:guide' returned 'xy'; it must return a list with a text per prompt."),
        (None, "Guide 'my:guide' returned None; it must return a list with a text per prompt."),
    ],
)
def test_what_a_function_may_not_return(returned, message):
    assert failure(Function("my:guide", lambda prompts, prefixes: returned), ["a", "b"]) == message


# --- what is asked -------------------------------------------------------------------------------------------------


def test_texts_are_asked_for_in_batches_and_come_back_in_order(server):
    guide = build({"endpoint": server.url, "model": "guide", "batch_size": 2}, {"temperature": 0.7, "top_k": 5}, seed=3)
    assert guide([f"prompt {n}" for n in range(5)], [""] * 5) == [f"after {n}" for n in range(5)]
    assert [received.path for received in server.received] == ["/v1/completions"] * 3
    asked = [body["prompt"] for body in server.bodies]
    assert asked == [["prompt 0", "prompt 1"], ["prompt 2", "prompt 3"], "prompt 4"]  # one is no list
    first = server.bodies[0]
    assert first.pop("seed") >= 0
    del first["prompt"]
    assert first == {"model": "guide", "max_tokens": 256, "temperature": 0.7, "top_k": 5}
    assert guide([], []) == []


def test_a_text_is_not_asked_for_twice_in_a_request(server):
    """With one seed it would be answered alike, and those of a group are to differ."""
    guide = Endpoint(server.url, "guide", batch_size=8)
    assert guide(["a 1", "a 1", "a 2", "a 1"], ["", "", "", "b"]) == ["after 1", "after 1", "after 2", " after b"]
    requests = sorted((body["prompt"] for body in server.bodies), key=len)
    assert requests == [["a 1", "a 2", "a 1 b"], "a 1"] or requests == ["a 1", ["a 1", "a 2", "a 1 b"]]
    assert server.bodies[0]["seed"] != server.bodies[1]["seed"]


ANSWER = "All is well, they say.\nSo be it."


@pytest.mark.parametrize("prompt", ["Summary:", "Summary:\n", "Summary\n\n", ""])
@pytest.mark.parametrize("cut", [0, 3, 4, 7, 23, 26, len(ANSWER)])
@pytest.mark.parametrize("decoded", [False, True])
def test_a_prefix_stands_where_training_has_it_and_no_space_is_lost(server, prompt, cut, decoded):
    """The guide sees the beginning of what SFT teaches, and what it adds makes the whole answer."""
    whole = prompt + completion(prompt, ANSWER)

    def go_on(asked):
        assert whole.startswith(asked) and not asked.endswith(" ")
        return whole[len(asked) :]

    server.write = go_on
    prefix = ANSWER[:cut]
    if decoded and cut:  # the learner's own tokens come with the space that they began with
        prefix = completion(prompt, prefix)
    [text] = Endpoint(server.url, "guide")([prompt], [prefix])
    assert (prefix + text).strip() == ANSWER
    assert (prefix + text).startswith(prefix or "All")


def test_white_space_around_a_whole_answer_is_no_part_of_it(server):
    server.write = lambda asked: "\n\n All is well.\n"
    guide = Endpoint(server.url, "guide")
    assert guide(["Summary:", "Summary:"], ["", " "]) == ["All is well.", "All is well."]
    assert guide([chat("Hello")], [""]) == ["All is well."]
    assert guide(["Summary:"], ["Yes."]) == ["\n\n All is well."]


def test_chats_are_asked_for_one_by_one(server):
    guide = Endpoint(server.url, "guide", sampling={"top_p": 0.9, "min_p": 0.1}, max_tokens=8)
    assert guide([chat("Hello you"), chat("Bye you two")], ["", ""]) == ["after you", "after two"]
    assert {received.path for received in server.received} == {"/v1/chat/completions"}
    for body, said in zip(
        sorted(server.bodies, key=lambda body: -len(str(body))), ["Bye you two", "Hello you"], strict=True
    ):
        assert isinstance(body.pop("seed"), int)
        settings = {"model": "guide", "max_tokens": 8, "top_p": 0.9, "min_p": 0.1}
        assert body == {**settings, "messages": chat(said)}


def test_a_begun_chat_answer_is_gone_on_with(server):
    prompts = [chat("Hello you")]
    assert Endpoint(server.url, "guide")(prompts, ["All is "]) == ["after is"]
    [body] = server.bodies
    assert body["messages"] == [*chat("Hello you"), {"role": "assistant", "content": "All is"}]
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert prompts == [chat("Hello you")]
    server.received.clear()
    Endpoint(server.url, "guide")(prompts, ["  "])
    assert server.bodies[0]["messages"] == prompts[0] and "continue_final_message" not in server.bodies[0]


@pytest.mark.parametrize("chats", [True, False])
def test_as_many_rows_at_once_as_a_batch_has(server, chats):
    """Three answers wait for each other: with fewer at once none comes, and more are counted."""
    together = threading.Barrier(3)

    def write(asked):
        together.wait(10)
        return asked

    server.write = write
    guide = Endpoint(server.url, "guide", batch_size=3, retries=0)
    prompts = [chat(f"{n}") for n in range(9)] if chats else ["same"] * 9
    assert guide(prompts, [""] * 9) == ([f"{n}" for n in range(9)] if chats else ["same"] * 9)
    assert len(server.received) == 9 and server.most_at_once == 3


def test_full_batches_follow_each_other(server):
    server.write = lambda asked: time.sleep(0.05) or asked
    Endpoint(server.url, "guide", batch_size=3)([f"{n}" for n in range(9)], [""] * 9)
    assert len(server.received) == 3 and server.most_at_once == 1


def test_a_rerun_asks_for_the_same_with_the_same_seeds(server):
    def seeds(seed):
        server.received.clear()
        guide = build({"endpoint": server.url, "model": "guide", "batch_size": 1}, seed=seed)
        for _ in range(2):
            guide(["a", "b"], ["", ""])
        return [body["seed"] for body in server.bodies]

    first = seeds(1)
    assert len(set(first)) == 4
    assert seeds(1) == first
    assert not set(seeds(2)) & set(first)


def test_more_keys_of_a_request_and_fewer(server):
    extra = {"stop": ["\n"], "seed": None, "chat_template_kwargs": {"enable_thinking": False}}
    Endpoint(server.url, "guide", max_tokens=None, extra=extra)(["a"], [""])
    assert server.bodies == [
        {"model": "guide", "prompt": "a", "stop": ["\n"], "chat_template_kwargs": {"enable_thinking": False}}
    ]


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_server_that_is_overloaded_for_a_moment_is_asked_again(server):
    server.faults = [
        Fault(503, headers=SOON),
        Fault(503, headers=SOON),
        Fault(429, headers=SOON),
    ]
    assert Endpoint(server.url, "guide")(["a"], [""]) == ["after a"]
    assert len(server.received) == 4
    assert len({body["seed"] for body in server.bodies}) == 1


@pytest.mark.parametrize("fault", [Fault(408, headers=SOON), Fault(409, headers=SOON), Fault(hangs_up=True)])
def test_what_else_is_tried_again(server, fault):
    server.faults = [fault]
    assert Endpoint(server.url, "guide", retries=1)([chat("a")], [""]) == ["after a"]
    assert len(server.received) == 2


def test_the_server_says_how_long_to_wait(server):
    server.faults = [Fault(429, headers={"retry-after": "1"})]
    Endpoint(server.url, "guide")(["a"], [""])
    first, second = server.received
    assert 1 <= second.at - first.at < 10  # by itself the client waits at most half a second


def test_it_gives_up_after_the_retries(server):
    server.faults = [Fault(503, {"error": {"message": "Overloaded.\nSee below"}}, SOON)] * 9
    assert failure(Endpoint(server.url, "guide", retries=2), ["a"]) == (
        f"The guide at {server.url} answered 503 (Overloaded.) and was asked 3 times: see its log, lower "
        "guidance.guide.batch_size, or raise retries there."
    )
    assert len(server.received) == 3


def test_it_does_not_insist_where_the_server_says_so(server):
    server.faults = [Fault(500, headers={"x-should-retry": "false"})]
    assert failure(Endpoint(server.url, "guide"), ["a"]).startswith(
        f"The guide at {server.url} answered 500 (Error code: 500): see its log"
    )
    assert len(server.received) == 1


def test_a_server_that_stays_silent(server):
    server.faults = [Fault(silent=30)] * 2
    start = time.monotonic()
    assert failure(Endpoint(server.url, "guide", timeout=0.2, retries=1), ["a"]) == (
        f"The guide at {server.url} did not answer within 0.2 s and was asked 2 times: raise guidance.guide.timeout, "
        "or lower batch_size or max_tokens there."
    )
    assert time.monotonic() - start < 10


def test_nobody_is_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        message = failure(Endpoint(url, "guide", retries=1), [chat("a")])
    assert re.sub(r"\[Errno \d+\] ", "", message) == (
        f"The guide at {url} cannot be reached (Connection refused) and was asked 2 times: check its address, and that "
        "it is running."
    )


@pytest.mark.parametrize(
    "fault, said",
    [
        (
            Fault(401, {"error": {"message": "No key"}}),
            "401 (No key): it wants a key; set the variable OPENAI_API_KEY.",
        ),
        (
            Fault(404, {"detail": "Not Found"}),
            "404 (Not Found): check guidance.guide.model, and that the URL ends in /v1",
        ),
        (Fault(400, {"object": "error", "message": "top_p must be"}), "400 (top_p must be): mend guidance.guide or "),
        (
            Fault(422, {"error": "Input validation", "error_type": "x"}),
            "422 (Input validation): mend guidance.guide or",
        ),
        (Fault(413, "<html>\n<p>Too large", {"content-type": "text/html"}), "413 (<html>): mend guidance.guide or"),
    ],
)
@pytest.mark.parametrize("chats", [True, False])
def test_what_the_server_refuses_is_not_tried_again(server, fault, said, chats):
    server.faults = [fault]
    assert f" answered {said}" in failure(Endpoint(server.url, "guide"), [chat("a") if chats else "a"])
    assert len(server.received) == 1


def test_a_server_that_takes_no_lists(server):
    server.faults = [Fault(400, {"detail": "prompt must be a string."})]
    assert failure(Endpoint(server.url, "guide"), ["a", "b"]) == (
        f"The guide at {server.url} answered 400 (prompt must be a string.): mend guidance.guide or guidance.sampling; "
        "set batch_size to 1 if it takes no lists of prompts."
    )


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_cannot_go_on_from_a_begun_answer(server, status):
    fault = Fault(status, {"error": {"message": "Unrecognized request argument: continue_final_message"}})
    server.faults = [fault]
    assert failure(Endpoint(server.url, "guide"), [chat("a")], ["All is"]) == (
        f"The guide at {server.url} answered {status} (Unrecognized request argument: continue_final_message): it "
        "cannot go on from a begun chat answer, or not from this one; use data.prompt, mode ppo++, or a function as "
        "the guide."
    )
    server.faults = [fault]
    assert "begun" not in failure(Endpoint(server.url, "guide"), [chat("a")])


@pytest.mark.parametrize(
    "body, headers, said",
    [
        ("{oops", {}, "Expecting property name enclosed in double quotes"),
        ("", {}, "Expecting value"),
        ("<html>Welcome", {"content-type": "text/html"}, "it holds no completions"),
        ({"choices": None}, {}, "it holds no completions"),
        ({"choices": ["a", "b"]}, {}, "it holds no completions"),
        ([{"choices": []}], {}, "it holds no completions"),
        ({"choices": [{"index": 0, "text": "x"}]}, {}, "completions [0] for 2 prompts"),
        ({"choices": [{"index": 0, "text": "x"}] * 2}, {}, "completions [0] for 2 prompts"),
        ({"choices": [{"index": index, "text": "x"} for index in (1, 2)]}, {}, "completions [1, 2] for 2 prompts"),
        ({"choices": [{"index": index, "text": "x"} for index in (0, 1, 1)]}, {}, "completions [0, 1] for 2 prompts"),
    ],
)
def test_an_answer_that_cannot_be_read(server, body, headers, said):
    server.faults = [Fault(200, body, headers)]
    message = failure(Endpoint(server.url, "guide"), ["a", "b"])
    assert f"gave an answer that cannot be read ({said}" in message
    assert "the URL ends in /v1; set batch_size to 1 if it takes no lists of prompts." in message


def test_an_answer_without_a_text(server):
    server.write = lambda asked: None
    for prompt in ("a", chat("a")):
        assert failure(Endpoint(server.url, "guide"), [prompt]) == (
            f"The guide at {server.url} gave an answer without a text (finish_reason stop): if it thinks first, raise "
            "guidance.guide.max_tokens, or turn that off with guidance.guide.extra."
        )


def test_one_chat_that_fails_among_many(server):
    server.write = lambda asked: time.sleep(0.3) or asked
    server.faults = [Fault(400, {"message": "Too long"})]
    assert "answered 400 (Too long)" in failure(Endpoint(server.url, "guide", batch_size=2), [chat("a")] * 6)
    assert len(server.received) < 6


# --- the key -------------------------------------------------------------------------------------------------------


def test_the_key_is_sent(server, monkeypatch):
    guide = Endpoint(server.url, "guide", api_key_env="GUIDE_KEY")
    monkeypatch.setenv("GUIDE_KEY", f" {KEY}\n")
    guide(["a"], [""])
    monkeypatch.delenv("GUIDE_KEY")
    Endpoint(server.url, "guide", api_key_env="GUIDE_KEY")(["a"], [""])
    assert [received.headers["authorization"] for received in server.received] == [f"Bearer {KEY}", "Bearer none"]


@pytest.mark.parametrize(
    "body, headers",
    [
        ({"error": {"message": f"Incorrect key {KEY}"}}, {}),
        (f"{'x' * 190}{KEY}", {"content-type": "text/plain"}),
        ({"detail": [{"key": KEY}]}, {}),
    ],
)
@pytest.mark.parametrize("status", [401, 400, 500])
def test_the_key_is_never_shown(server, monkeypatch, caplog, capfd, status, body, headers):
    """Not even where the server repeats it, in what the client logs, or in a traceback."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    guide = Endpoint(server.url, "guide", retries=1)
    server.faults = [Fault(status, body, {**SOON, **headers})] * 2
    with pytest.raises(RunError) as caught:
        guide([chat("a")], ["b"])
    shown = [
        *traceback.format_exception(caught.value),
        repr(guide),
        repr(caught.value),
        caplog.text,
        *capfd.readouterr(),
    ]
    assert len(caplog.records) > 5
    assert server.received[-1].headers["authorization"] == f"Bearer {KEY}"
    for part in (KEY, KEY[:8]):
        assert part not in "\n".join(shown)
    if status == 401:
        assert str(caught.value).endswith(": it does not take the key in the variable OPENAI_API_KEY.")


def test_the_key_is_not_shown_in_an_answer_without_a_text_either(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults = [Fault(200, {"choices": [{"index": 0, "text": None, "finish_reason": KEY}]})]
    assert KEY not in failure(Endpoint(server.url, "guide"), ["a"])
