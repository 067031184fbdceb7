"""Pushes to a hub that fails in every way at every step: they arrive whole and once, or say how to push again."""

import time
from collections.abc import Collection, Iterable
from itertools import count
from pathlib import Path

import pytest

from lastmile_trl import hub, models, patience
from lastmile_trl.errors import InputError, RunError

from .fakehub import FakeHub, Fault, User
from .run_fixture import BASE, write_adapter_config, write_run

TOKEN = "hf_" + "Alice0" * 6
STEPS = {
    "whoami": ("GET", "/api/whoami-v2$"),
    "create": ("POST", "/api/repos/create$"),
    "info": ("GET", "/api/models/alice/[^/]+$"),
    "list": ("GET", "/tree/main"),
    "card": ("POST", "/api/validate-yaml$"),
    "preupload": ("POST", "/preupload/main$"),
    "batch": ("POST", "/objects/batch$"),
    "put": ("PUT", "/lfs/"),
    "verify": ("POST", "/verify$"),
    "commit": ("POST", "/commit/main$"),
}
BETWEEN = ("create", "put", "commit")  # the steps whose faults are tried in every run of the tests
REASONS = {401: "Unauthorized", 403: "Forbidden", 409: "Conflict", 413: "Request Entity Too Large"}
NAPS: list[float] = []  # of the client's process, which takes none
numbers = count()


def every(what: Iterable, quick: Collection) -> list:
    """Each fault at each step: those of `quick` always, the others in the slow tests."""
    pairs = ((step, fault) for step in STEPS for fault in what)
    return [pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow) for pair in pairs]


ONCE = [500, 503, "reset", "lost", "silent"]
FOR_EVER = [500, 429, "reset", "silent"]
TOLD_TO_WAIT = [
    (429, {"Retry-After": "7"}, 7),
    (503, {"Retry-After": "86400"}, patience.LONGEST),
    (429, {"RateLimit": '"api";r=0;t=55'}, 55),
    (429, {}, patience.WAITS[0]),
]


def take_no_naps() -> None:
    time.sleep = NAPS.append
    patience.SILENCE = 0.2


def push(run: Path, repo: str, **options) -> tuple[str, list[float]]:
    """Where the run is now, and for how long its push would have slept."""
    NAPS.clear()
    return hub.push(run, repo, **options), list(NAPS)


def naps() -> list[float]:
    return NAPS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with FakeHub(tmp_path_factory.mktemp("hub"), {TOKEN: User("alice")}) as hub_server:
        hub_server.client(take_no_naps)
        yield hub_server


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose weights the hub has never seen, and larger than what a broken connection takes in."""
    folder = write_adapter_config(write_run(tmp_path / "run"), BASE)
    (folder / "adapter_model.safetensors").write_bytes(f"{next(numbers)} ".encode() * 300_000)
    return folder


@pytest.fixture
def faults(server):
    yield server.faults
    server.faults.clear()


def repo_of(run: Path) -> str:
    return f"alice/{run.parent.name}"


def arrived(server: FakeHub, run: Path) -> bool:
    """Whether the repository holds the run's very bytes, by one commit."""
    commits = server.repos[repo_of(run)].branches["main"]
    weights = (run / "adapter_model.safetensors").read_bytes()
    return len(commits) == 2 and commits[1]["adapter_model.safetensors"] == weights and "README.md" in commits[1]


@pytest.mark.parametrize(("step", "what"), every(ONCE, {(step, what) for step in BETWEEN for what in ONCE}))
def test_what_fails_once_only_delays(server, faults, run, step, what):
    faults[STEPS[step]] = Fault(what, times=1)
    url, slept = server.client(push, run, repo_of(run), token=TOKEN)
    assert url == f"{server.url}/{repo_of(run)}"
    assert arrived(server, run)
    # Some requests the Hub's client repeats itself, after a second. A commit of which it never heard is there.
    assert slept in ([1], [2])


@pytest.mark.parametrize(("step", "status"), every(REASONS, {("create", 403), ("put", 401), ("commit", 413)}))
def test_a_refusal_is_told_at_once(server, faults, run, step, status):
    if (step, status) == ("create", 409):
        pytest.skip("this is how the Hub says that the repository is there")
    faults[STEPS[step]] = Fault(status)
    with pytest.raises((InputError, RunError)) as failure:
        server.client(push, run, repo_of(run), token=TOKEN)
    if (step, status) == ("whoami", 401):
        assert str(failure.value).startswith("The Hub refuses the token: run `hf auth login`")
    else:
        again = f"lastmile push {run} {repo_of(run)}"
        said = f"the Hub answered {status} {REASONS[status]}: injected fault"
        assert str(failure.value) == f"{run} was not pushed to {repo_of(run)} ({said}); push it again with `{again}`."
    assert server.client(naps) == []
    assert repo_of(run) not in server.repos or len(server.repos[repo_of(run)].branches["main"]) == 1
    faults.clear()
    server.client(push, run, repo_of(run), token=TOKEN)
    assert arrived(server, run)


@pytest.mark.parametrize(("step", "told"), every(TOLD_TO_WAIT, [("put", told) for told in TOLD_TO_WAIT]))
def test_a_hub_that_asks_for_time_gets_it_but_not_for_ever(server, faults, run, step, told):
    status, headers, seconds = told
    faults[STEPS[step]] = Fault(status, times=1, headers=headers)
    _, slept = server.client(push, run, repo_of(run), token=TOKEN)
    assert slept == [seconds] and arrived(server, run)


@pytest.mark.parametrize(("step", "what"), every(FOR_EVER, {("put", 500), ("commit", "reset"), ("create", 429)}))
def test_what_fails_for_ever_ends(server, faults, run, step, what):
    if step == "verify":
        pytest.skip("the next attempt finds the file on the Hub, and does not verify it again")
    faults[STEPS[step]] = Fault(what, headers={"Retry-After": "86400"} if what == 429 else {})
    with pytest.raises(RunError) as failure:
        server.client(push, run, repo_of(run), token=TOKEN)
    assert str(failure.value).startswith(f"{run} was not pushed to {repo_of(run)} (")
    assert str(failure.value).endswith(f"); push it again with `lastmile push {run} {repo_of(run)}`.")
    slept = server.client(naps)
    assert len(patience.WAITS) <= len(slept) and sum(slept) <= len(patience.WAITS) * patience.LONGEST
    faults.clear()
    server.client(push, run, repo_of(run), token=TOKEN)
    assert arrived(server, run)


@pytest.mark.parametrize(("step", "what"), [("commit", "lost"), ("commit", 500), ("list", "reset")])
def test_a_proposal_is_made_once(server, faults, run, step, what):
    step = ("GET", "/discussions$") if step == "list" else STEPS[step]
    faults[step] = Fault(what, times=1)
    url, _ = server.client(push, run, repo_of(run), create_pr=True, token=TOKEN)
    branches = server.repos[repo_of(run)].branches
    assert url == f"{server.url}/{repo_of(run)}/discussions/1"
    assert list(branches) == ["main", "refs/pr/1"] and len(branches["refs/pr/1"]) == 1


def test_several_faults_in_one_push(server, faults, run):
    faults[STEPS["create"]] = Fault(503, times=1)
    faults[STEPS["put"]] = Fault("reset", times=1)
    faults[STEPS["commit"]] = Fault("lost", times=1)
    server.client(push, run, repo_of(run), revision="v2", token=TOKEN)
    branches = server.repos[repo_of(run)].branches
    assert len(branches["v2"]) == 2 and len(branches["main"]) == 1


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, ""),
        ({"private": False, "create_pr": True}, " --public --create-pr"),
        ({"revision": "a branch"}, " --revision 'a branch'"),
    ],
)
def test_the_command_to_push_again_has_the_same_flags(server, faults, run, options, flags):
    faults[STEPS["create"]] = Fault(403)
    with pytest.raises(RunError) as failure:
        server.client(push, run, "x", token=TOKEN, **options)
    assert str(failure.value).endswith(f"push it again with `lastmile push {run} x{flags}`.")


def fetch(repo: str) -> tuple[list[float], bytes]:
    """For how long the client slept, and the weights that came."""
    NAPS.clear()
    models.check_safetensors(repo)
    return list(NAPS), models.find_file(repo, "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("what", [500, 429, "reset", "lost", "silent"])
def test_weights_are_waited_for(server, faults, run, what):
    server.client(push, run, repo_of(run), token=TOKEN)
    faults["GET", "/resolve/main/adapter_model"] = Fault(what, times=1, headers={"Retry-After": "7"})
    slept, weights = server.client(fetch, repo_of(run), token=TOKEN)
    assert slept and sum(slept) <= 7 and weights == (run / "adapter_model.safetensors").read_bytes()


def test_weights_that_never_come(server, faults, run):
    server.client(push, run, repo_of(run), token=TOKEN)
    faults["GET", "/resolve/main/adapter_model"] = Fault(503)
    with pytest.raises(RunError) as failure:
        server.client(fetch, repo_of(run), token=TOKEN)
    assert str(failure.value) == (
        f"adapter_model.safetensors of {repo_of(run)} was not fetched (the Hub answered 503 Service Unavailable: "
        "injected fault); what has arrived is kept, so run the same again when the Hub is well."
    )


def push_with_xet(run: Path, repo: str) -> tuple[list[float], bool]:
    """Push by the way of transfer that the client takes by itself; whether that is left on."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_XET = False
    try:
        return push(run, repo)[1], not constants.HF_HUB_DISABLE_XET
    finally:
        constants.HF_HUB_DISABLE_XET = True


@pytest.mark.parametrize("status", [403, 404])
def test_where_one_way_of_transfer_is_shut_the_other_is_taken(server, faults, run, status):
    pytest.importorskip("hf_xet")
    faults["GET", "/xet-write-token/"] = Fault(status)
    assert server.client(push_with_xet, run, repo_of(run), token=TOKEN) == ([2], True)
    assert arrived(server, run)


def push_to_nobody(run: Path) -> None:
    """Push while no server listens where the Hub should be."""
    from huggingface_hub import constants

    endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
    try:
        hub.push(run, "alice/x")
    finally:
        constants.ENDPOINT = endpoint


def test_a_hub_that_is_not_there(server, run):
    with pytest.raises(RunError, match=r"was not pushed to alice/x \(.*Connection refused\); push it again"):
        server.client(push_to_nobody, run, token=TOKEN)


def settings_after_a_push(run: Path) -> tuple:
    from huggingface_hub import get_session

    hub.push(run, "alice/settings")
    return get_session().timeout.read, len(get_session().event_hooks["response"])


def test_the_client_is_as_it_was_before_a_push(server, run):
    assert server.client(settings_after_a_push, run, token=TOKEN) == (None, 0)
