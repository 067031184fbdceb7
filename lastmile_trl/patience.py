"""A Hub that does not answer, or not as it should: how long it is waited for, and what is said in the end."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

from .errors import RunError, first_line
from .screen import note

SILENCE = 60  # seconds without a sign of life from the Hub; its client would wait for ever
WAITS = (2, 10, 30, 60)  # seconds between two attempts
LONGEST = 300  # seconds that a Hub which asks for patience gets; it counts in windows of five minutes

T = TypeVar("T")


def patiently(attempt: Callable[[], T], reaching: Callable[[], AbstractContextManager]) -> T:
    """The result of an attempt, made again for some minutes while the reason that it failed may pass."""
    from huggingface_hub import constants

    own = constants.HF_HUB_DISABLE_XET
    try:
        for wait in (*WAITS, None):
            try:
                with reaching():
                    return attempt()
            except RunError as error:
                seconds = wait and _seconds_to_wait(error.__cause__, wait)
                if not seconds:
                    raise
                note(f"The Hub failed ({_said(error.__cause__)}); it is tried again in {seconds} seconds.")
                time.sleep(seconds)
                constants.HF_HUB_DISABLE_XET = True  # the older way of transfer needs no other servers than the Hub
    finally:
        constants.HF_HUB_DISABLE_XET = own


def _seconds_to_wait(error: BaseException, least: int) -> int | None:
    """How long to wait before the next attempt; None where that would fail too."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    cause = _cause(error)
    if not isinstance(cause, HfHubHTTPError):
        passes = isinstance(cause, HTTPError | ConnectionError) and not isinstance(cause, OfflineModeIsEnabled)
        return least if passes else None
    if cause.response.status_code < 500 and cause.response.status_code not in (408, 429):
        return None
    return min(max(least, _seconds_asked_for(cause.response.headers)), LONGEST)


def _seconds_asked_for(headers: Mapping[str, str]) -> int:
    """For how long a Hub that has too much to do wants to be left alone, as it says.

    >>> _seconds_asked_for({"retry-after": "20"}), _seconds_asked_for({"ratelimit": '"api";r=0;t=55'})
    (20, 55)
    """
    said = re.search(r"^\d+$|\bt=(\d+)", headers.get("retry-after") or headers.get("ratelimit") or "")
    return int(said[1] or said[0]) if said else 0


@contextmanager
def reaching_hub(failure: str, remedy: str) -> Iterator[None]:
    """Say in one sentence what any of the client's many errors means. Only calls to the Hub belong inside."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import _http

    own = _http._GLOBAL_CLIENT_FACTORY  # there is no public way to ask for it
    set_client_factory(partial(_client, own))
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the client raises all of these
        raise RunError(f"{failure} ({_said(error)}); {remedy}.") from error
    finally:
        set_client_factory(own)


def _client(own: Callable[[], Any]) -> Any:
    """The Hub's client, with an end to every wait."""
    client = own()
    client.timeout = SILENCE
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "response": [*hooks["response"], _raise_if_told_to_wait]}
    return client


def _raise_if_told_to_wait(response: Any) -> None:
    """An error at once, where the client would wait for as long as it is told to."""
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code == 429 or "retry-after" in response.headers:
        response.read()
        hf_raise_for_status(response)


def _cause(error: BaseException) -> BaseException:
    """What the Hub answered or how it did not, or else the innermost error."""
    from huggingface_hub.errors import HTTPError

    while not isinstance(error, HTTPError) and error.__cause__:
        error = error.__cause__
    return error


def _said(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    cause = _cause(error)
    if not isinstance(cause, HfHubHTTPError):
        return first_line(cause)
    response = cause.response
    said = f": {cause.server_message}" if cause.server_message else ""
    return f"the Hub answered {response.status_code} {response.reason_phrase}{said}".rstrip(".")
