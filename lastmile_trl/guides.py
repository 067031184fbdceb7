"""A recipe's guide as a black box: a function of the user's own, or a model behind an OpenAI-compatible endpoint.

A guide is called with prompts, all texts or all chats, and with what each answer already says, "" where the guide
writes it whole. It returns what follows, without repeating it.

A model is served, and named in the recipe, with a line each. Where the first says vLLM, there may stand
`llama-server -m FILE.gguf` of llama.cpp, `text-generation-launcher --model-id NAME` of TGI, or `transformers serve`,
which takes batch_size: 1 and no begun chats:

    vllm serve Qwen/Qwen2.5-7B-Instruct --port 8000
    guide: {endpoint: http://127.0.0.1:8000/v1, model: Qwen/Qwen2.5-7B-Instruct}
"""

import importlib.util
import inspect
import itertools
import os
import random
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from .data import completion
from .dotted import find
from .errors import InputError, RunError, unknown
from .rewards.base import check_number, check_whole

if TYPE_CHECKING:
    from openai import OpenAI

Prompt = str | list[dict[str, Any]]
TextGuide = Callable[[list[Prompt], list[str]], list[str]]

OURS = ("sampling", "seed")  # of an endpoint, and set elsewhere in a recipe
RESERVED = ("model", "prompt", "messages", "n", "stream", "echo")  # of a request, and not to be changed by `extra`


def kind_of(guide: str | Mapping) -> Literal["references", "base", "model", "function", "endpoint"]:
    """What a recipe's ``guidance.guide`` names.

    >>> kind_of("base"), kind_of("runs/samsum/sft"), kind_of("my_package.my_module:guide"), kind_of({"endpoint": "..."})
    ('base', 'model', 'function', 'endpoint')
    """
    if isinstance(guide, Mapping) or "://" in guide:
        return "endpoint"
    if guide in ("references", "base"):
        return guide
    return "function" if ":" in guide else "model"


def check(guide: str | Mapping) -> None:
    """Refuse a function that cannot be called or an endpoint that cannot be asked; nothing is called or asked yet."""
    kind = kind_of(guide)
    if kind == "function":
        _function(guide)
    elif kind == "endpoint":
        _endpoint(guide).key()
        if importlib.util.find_spec("openai") is None:
            raise InputError(
                "A guide behind an endpoint needs the package openai, which is not installed: "
                "pip install 'lastmile-trl[endpoint]'."
            )


def build(guide: str | Mapping, sampling: Mapping[str, float] | None = None, seed: int = 0) -> TextGuide | None:
    """Make the guide of texts that a recipe names; None for what is no black box: references, base and models.

    Each process needs another ``seed``, as those of one prompt would otherwise be given one text.

    >>> build("base"), build({"endpoint": "http://127.0.0.1:8000/v1", "model": "guide"}, {"top_p": 0.9}).sampling
    (None, {'top_p': 0.9})
    """
    check(guide)
    kind = kind_of(guide)
    if kind == "function":
        return Function(guide, _function(guide))
    return _endpoint(guide, sampling=dict(sampling or {}), seed=seed) if kind == "endpoint" else None


# --- a function ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """A guide in Python, with the name under which a recipe has it.

    >>> Function("my:guide", lambda prompts, prefixes: [" All is well." for _ in prompts])(["Summary:"], [""])
    ['All is well.']
    """

    name: str
    function: TextGuide

    def __call__(self, prompts: list[Prompt], prefixes: list[str]) -> list[str]:
        """Return one text for each prompt, or raise a RunError that names the guide."""
        try:
            texts = self.function(prompts, prefixes)
        except Exception as error:
            where = self._failing(prompts, prefixes)
            raise RunError(f"Guide '{self.name}' failed{where}: {type(error).__name__}: {error}") from error
        if not isinstance(texts, list | tuple):
            raise RunError(f"Guide '{self.name}' returned {texts!r:.80}; it must return a list with a text per prompt.")
        if len(texts) != len(prompts):
            raise RunError(f"Guide '{self.name}' returned {len(texts)} texts for {len(prompts)} prompts.")
        for prompt, text in zip(prompts, texts, strict=True):
            if not isinstance(text, str):
                raise RunError(f"Guide '{self.name}' returned {text!r:.80} and no text on the prompt {prompt!r:.200}.")
        return [_bare(text, prefix) for text, prefix in zip(texts, prefixes, strict=True)]

    def _failing(self, prompts: list[Prompt], prefixes: list[str]) -> str:
        """Say which prompt makes the function fail, by calling it on one after the other."""
        for prompt, prefix in zip(prompts, prefixes, strict=True):
            try:
                self.function([prompt], [prefix])
            except Exception:
                return f" on the prompt {prompt!r:.200}"
        return " on a whole batch, though on none of its prompts alone"


def _function(path: str) -> TextGuide:
    what = f"Guide '{path}'"
    found = find(path, what)
    if not callable(found) or inspect.isclass(found):
        raise InputError(f"{what} must be a function of (prompts, prefixes), not {found!r:.80}.")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise InputError(f"{what} is asynchronous: give a plain function.")
    try:
        inspect.signature(found).bind([], [])
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must take (prompts, prefixes).") from error
    return found


# --- an endpoint ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """The rows that are asked for at once, and how."""

    rows: list[int]
    asked: dict[str, Any]  # the prompt or the messages
    begun: bool = False  # a chat whose last message is to be gone on with


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, such as vLLM, SGLang, llama.cpp, TGI, or a provider's.

    Text prompts go to ``/completions``, chats to ``/chat/completions``. What `sampling` leaves open is as the server
    has it.

    >>> Endpoint("http://127.0.0.1:8000/v1", model="guide").batch_size
    16
    """

    endpoint: str
    model: str  # the name under which it is served
    batch_size: int = 16  # how many rows are asked for at once
    timeout: float = 60  # seconds that the server may be silent
    retries: int = 3  # after a lost connection, and the answers 408, 409, 429 and 5xx
    max_tokens: int | None = 256  # None asks for none
    api_key_env: str = "OPENAI_API_KEY"  # the variable that holds the key; local servers need none
    extra: dict[str, Any] = field(default_factory=dict)  # more keys of a request; one that is None is left out
    sampling: dict[str, float] = field(default_factory=dict)
    seed: int = 0  # what is asked for again in the same order is given again, where the server sees to it
    _calls: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False, compare=False)

    def __post_init__(self):
        _check_url(self.endpoint)
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"guidance.guide.model must be the name of the served model, not {self.model!r}.")
        check_whole("guidance.guide.batch_size", self.batch_size)
        check_number("guidance.guide.timeout", self.timeout, least=0, exclusive=True)
        check_whole("guidance.guide.retries", self.retries, least=0)
        if self.max_tokens is not None:
            check_whole("guidance.guide.max_tokens", self.max_tokens)
        if not isinstance(self.api_key_env, str) or not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            # What stands there may be the key.
            raise InputError("guidance.guide.api_key_env must be the name of an environment variable, not a key.")
        if not isinstance(self.extra, Mapping):
            raise InputError(f"guidance.guide.extra must be `key: value` pairs, not {self.extra!r:.80}.")
        if taken := [name for name in self.extra if name in RESERVED]:
            raise InputError(f"guidance.guide.extra cannot change {taken[0]!r} of a request: leave it out.")

    def key(self) -> str | None:
        """The key, None where the variable is not set."""
        key = os.environ.get(self.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"The variable {self.api_key_env} holds characters that no key has: set it again.")
        return key or None

    @cached_property
    def _client(self) -> "OpenAI":
        from openai import OpenAI

        return OpenAI(
            base_url=self.endpoint, api_key=self.key() or "none", timeout=self.timeout, max_retries=self.retries
        )

    def __call__(self, prompts: list[Prompt], prefixes: list[str]) -> list[str]:
        """Return one text for each prompt, or raise a RunError that says why the endpoint gave none."""
        if not prompts:
            return []
        if isinstance(prompts[0], str):
            requests, ask = self._of_texts(prompts, prefixes), self._client.completions.create
        else:
            requests, ask = _of_chats(prompts, prefixes), self._client.chat.completions.create
        chance = random.Random(f"{self.seed}/{next(self._calls)}")
        seeds = [chance.getrandbits(31) for _ in requests]
        at_once = self.batch_size // max(len(request.rows) for request in requests)
        with ThreadPoolExecutor(at_once) as pool:
            answers = list(pool.map(self._ask, [ask] * len(requests), requests, seeds))
        texts = {
            row: text
            for request, answer in zip(requests, answers, strict=True)
            for row, text in zip(request.rows, answer, strict=True)
        }
        return [_bare(texts[row], prefix) for row, prefix in enumerate(prefixes)]

    def _of_texts(self, prompts: Sequence[str], prefixes: Sequence[str]) -> list[_Request]:
        texts = [_joined(prompt, prefix) for prompt, prefix in zip(prompts, prefixes, strict=True)]
        requests = []
        for rows in _batches(texts, self.batch_size):
            asked = [texts[row] for row in rows]
            # Some servers know no lists.
            requests.append(_Request(rows, {"prompt": asked if len(asked) > 1 else asked[0]}))
        return requests

    def _ask(self, create: Callable, request: _Request, seed: int) -> list[str]:
        from openai import OpenAIError

        more = {"continue_final_message": True, "add_generation_prompt": False} if request.begun else {}
        settings = {"max_tokens": self.max_tokens, "seed": seed, **self.sampling, **more, **self.extra}
        settings = {name: value for name, value in settings.items() if value is not None}
        try:
            answer = create(model=self.model, **request.asked, extra_body=settings)
            return self._texts(answer, len(request.rows))
        except (OpenAIError, ValueError) as error:  # what is no JSON is a ValueError
            failure = self._failure(error, request)
        raise failure  # by itself: a server's words may hold the key

    def _texts(self, answer: Any, number: int) -> list[str]:
        try:
            choices = {choice.index: choice for choice in answer.choices}
            found = {index: _text(choice) for index, choice in choices.items()}
        except (AttributeError, TypeError) as error:
            raise ValueError("it holds no completions") from error
        if len(answer.choices) != number or found.keys() != set(range(number)):
            raise ValueError(f"completions {[*found]} for {number} prompts")
        for index, text in found.items():
            if not isinstance(text, str):
                reason = self._hidden(str(getattr(choices[index], "finish_reason", None)))
                raise RunError(
                    f"The guide at {self.endpoint} gave an answer without a text (finish_reason {reason:.80}): "
                    "if it thinks first, raise guidance.guide.max_tokens, or turn that off with guidance.guide.extra."
                )
        return [found[index] for index in range(number)]

    def _failure(self, error: Exception, request: _Request) -> RunError:
        """The error in a sentence: what happened, how often it was tried, what to do."""
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        lists = "; set batch_size to 1 if it takes no lists of prompts" if len(request.rows) > 1 else ""
        if isinstance(error, APITimeoutError):
            said = f"did not answer within {self.timeout:g} s"
            advice = "raise guidance.guide.timeout, or lower batch_size or max_tokens there"
        elif isinstance(error, APIConnectionError):
            said = f"cannot be reached ({self._first_line(error.__cause__ or error)})"
            advice = "check its address, and that it is running"
        elif isinstance(error, APIStatusError):
            said = f"answered {error.status_code} ({self._first_line(error)})"
            advice = self._advice(error.status_code, request) or f"mend guidance.guide or guidance.sampling{lists}"
        else:
            said = f"gave an answer that cannot be read ({self._first_line(error)})"
            advice = f"check that it is an OpenAI-compatible server, and that the URL ends in /v1{lists}"
        # The client counts in a header; how often it tries is also a matter of what the server says.
        tries = 1 + int(error.request.headers.get("x-stainless-retry-count", 0)) if isinstance(error, APIError) else 1
        often = f" and was asked {tries} times" if tries > 1 else ""
        return RunError(f"The guide at {self.endpoint} {said}{often}: {advice}.")

    def _advice(self, status: int, request: _Request) -> str | None:
        if status in (401, 403):
            wrong = "does not take the key in" if self.key() else "wants a key; set"
            return f"it {wrong} the variable {self.api_key_env}"
        if status == 404:
            return (
                "check guidance.guide.model, and that the URL ends in /v1; without /completions it takes no data.prompt"
            )
        if request.begun and status in (400, 422):
            return (
                "it cannot go on from a begun chat answer, or not from this one; use data.prompt, mode ppo++, or a "
                "function as the guide"
            )
        if status == 429 or status >= 500:
            return "see its log, lower guidance.guide.batch_size, or raise retries there"
        return None

    def _first_line(self, error: BaseException) -> str:
        body = getattr(error, "body", None)
        if isinstance(body, Mapping):
            body = body.get("message") or body.get("detail") or body
        said = self._hidden(str(body or error).strip()) or type(error).__name__
        return textwrap.shorten(said.splitlines()[0], 200, placeholder="...")

    def _hidden(self, said: str) -> str:
        """What a server says without the key, which some repeat."""
        key = self.key()
        return said.replace(key, "***") if key else said


def _endpoint(guide: str | Mapping, **ours: Any) -> Endpoint:
    if not isinstance(guide, Mapping):
        raise InputError("guidance.guide is a URL and does not say which model: write {endpoint: URL, model: NAME}.")
    known = [key.name for key in fields(Endpoint) if key.init and key.name not in OURS]
    for name in guide:
        if name not in known:
            raise InputError(f"guidance.guide: {unknown('key', name, known)}")
    for name in ("endpoint", "model"):
        if name not in guide:
            raise InputError(f"guidance.guide needs the key {name!r}: write {{endpoint: URL, model: NAME}}.")
    return Endpoint(**guide, **ours)


def _check_url(url: Any) -> None:
    if isinstance(url, str) and set("@?#") & set(url):  # not repeated, as it may hold a key
        raise InputError(
            "guidance.guide.endpoint must be a URL without user, password and query: the key is read from the variable "
            "that api_key_env names."
        )
    if not isinstance(url, str) or not _is_url(url):
        raise InputError(f"guidance.guide.endpoint must be a URL such as http://127.0.0.1:8000/v1, not {url!r:.200}.")
    if url.rstrip("/").endswith("/completions"):
        raise InputError(f"guidance.guide.endpoint ends in /v1 or the like, without /completions, and is {url!r}.")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False
    return whole and text.isprintable() and " " not in text


def _of_chats(prompts: Sequence[list[dict[str, Any]]], prefixes: Sequence[str]) -> list[_Request]:
    requests = []
    for row, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
        begun = bool(prefix.strip())
        answer = [{"role": "assistant", "content": prefix.rstrip(" ")}] if begun else []
        requests.append(_Request([row], {"messages": [*prompt, *answer]}, begun))
    return requests


def _text(choice: Any) -> str | None:
    return choice.message.content if hasattr(choice, "message") else choice.text


def _batches(texts: Sequence[str], size: int) -> list[list[int]]:
    """The rows of each request, none with a text twice: from one seed it would get one answer.

    >>> _batches(["a", "a", "b", "c", "a"], 2)
    [[0, 2], [3], [1], [4]]
    """
    rounds: dict[int, list[int]] = {}
    seen: Counter[str] = Counter()
    for row, text in enumerate(texts):
        rounds.setdefault(seen[text], []).append(row)
        seen[text] += 1
    return [rows[start : start + size] for rows in rounds.values() for start in range(0, len(rows), size)]


# --- where one text ends and the next begins -----------------------------------------------------------------------


def _joined(prompt: str, prefix: str) -> str:
    """A prompt and the beginning of its answer, as in training; what is decoded has its own space.

    >>> _joined("Summary:", "All is"), _joined("Summary:", " All is "), _joined("Summary:", "")
    ('Summary: All is', 'Summary: All is', 'Summary:')
    """
    return prompt + (completion(prompt, prefix) if prefix[:1].strip() else prefix).rstrip(" ")


def _bare(text: str, prefix: str) -> str:
    """A text without the white space around a whole answer, or the space that the prefix already has.

    >>> _bare(" All is well.\\n", ""), _bare(" is well.", "All"), _bare(" is well.", "All ")
    ('All is well.', ' is well.', 'is well.')
    """
    if not prefix.strip():
        return text.strip()
    return text.rstrip().removeprefix(" " if prefix.endswith(" ") else "")
