"""Rewards for the form of a completion: that it ends, does not echo the prompt, and looks as it must."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lastmile_trl.errors import InputError
from lastmile_trl.rewards.base import Task, check_flag, check_whole, completion_text, require, source_texts
from lastmile_trl.rewards.sentences import plain
from lastmile_trl.rewards.tokens import load_tokenizer


@dataclass(frozen=True)
class Ending:
    """A penalty for a completion that did not end by itself, but was cut off when its budget of tokens was spent.

    Formula: 0 if the completion ended, else -1. It ended if the column `ended` says so; without that column, if its
    last generated token is an end token.

    Range: -1 or 0. None for a row that has neither.

    Use: whenever completions are to be whole; a run knows its end tokens by itself.

    How it is gamed: by ending at once, and in the middle of a sentence.

    Pair it with: a reward for the content such as rouge, and overlong, which warns before the budget is spent.

    Arguments:
        end_ids: the ids of the tokens that end a completion; those of the run's model if not given.

    >>> Ending(end_ids=(2,))(["A cat sat.", "A cat sat on the"], completion_ids=[[7, 9, 2], [7, 9, 4]])
    [0.0, -1.0]
    >>> Ending()(["A cat sat.", "A cat sat on the"], ended=[True, False])
    [0.0, -1.0]
    """

    end_ids: tuple[int, ...] | None = None

    needs: ClassVar[tuple[str, ...]] = ()
    not_on_texts: ClassVar[str] = "it looks at generated tokens"

    def __post_init__(self) -> None:
        if self.end_ids is None:
            return
        if not isinstance(self.end_ids, list | tuple) or not self.end_ids:
            raise InputError(f"end_ids must be a list of token ids, not {self.end_ids!r}.")
        for token in self.end_ids:
            check_whole("an id in end_ids", token, least=0)
        object.__setattr__(self, "end_ids", tuple(self.end_ids))

    @property
    def __name__(self) -> str:
        return "ending"

    def for_task(self, task: Task) -> "Ending":
        """Return the reward with the end tokens of the run, unless it was given its own."""
        return replace(self, end_ids=tuple(sorted(task.end_ids))) if self.end_ids is None and task.end_ids else self

    def __call__(
        self,
        completions: Sequence,
        completion_ids: Sequence | None = None,
        ended: Sequence[bool | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score each completion on its own."""
        if ended is None:
            ended = self._ended(completion_ids)
        return [self._score(value) for value, _ in zip(ended, completions, strict=True)]

    def _ended(self, completion_ids: Sequence | None) -> list[bool | None]:
        if completion_ids is None or self.end_ids is None:
            raise ValueError("it is not known what ended: pass ended, or completion_ids and give the reward end_ids.")
        return [None if ids is None else len(ids) > 0 and int(ids[-1]) in self.end_ids for ids in completion_ids]

    def _score(self, ended: bool | None) -> float | None:
        if ended not in (True, False, None):
            raise ValueError(f"ended must be true or false, not {ended!r:.80}.")
        return None if ended is None else 0.0 if ended else -1.0


@dataclass(frozen=True)
class Echo:
    """A penalty for a completion that says the prompt again.

    Formula: -1 if the completion holds, as consecutive words, the first or the last `words` words of the prompt (all
    of a shorter one), or any of `phrases`; else 0. Case makes no difference, nor does punctuation between words.

    Range: -1 or 0; 0 where the prompt is empty.

    Use: for base models, which repeat the question or begin another example.

    How it is gamed: by a change to one word. It also strikes where the right answer quotes the beginning of its source.

    Pair it with: a reward for the content such as rouge, and copying, which sees what is copied from elsewhere.

    Arguments:
        words: how many words of the prompt make an echo; 0 to look for the phrases only.
        phrases: texts that no completion should hold, such as "Summary:"; compared letter by letter, punctuation too.
        source: the column to look at in place of the prompt. Of a chat, the prompt is what the user said.
        tokenizer: what a word is: `words`, `rouge`, `characters` (for scripts without spaces), or a function of your
            own as `package.module:function`.

    >>> echo = Echo(words=3, phrases=["Summary:"])
    >>> echo(["Why is the sky blue? It is.", "It scatters.", "Summary: air"], prompts=["Why is the sky blue?"] * 3)
    [-1.0, 0.0, -1.0]
    """

    words: int = 5
    phrases: tuple[str, ...] = ()
    source: str | None = None
    tokenizer: str = "words"

    def __post_init__(self) -> None:
        check_whole("words", self.words, least=0)
        object.__setattr__(self, "phrases", _texts("phrases", self.phrases))
        load_tokenizer(self.tokenizer)
        if not self.words and not self.phrases:
            raise InputError("there is nothing to look for: give words of at least 1, or phrases.")

    @property
    def __name__(self) -> str:
        return "echo"

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns it needs."""
        return (self.source,) if self.source is not None and self.words else ()

    def __call__(self, completions: Sequence, **columns: Any) -> list[float]:
        """Score each completion against its row's prompt."""
        texts = [completion_text(completion) for completion in completions]
        sources = source_texts(self.source, columns) if self.words else [""] * len(texts)
        return [
            None if source is None else -1.0 if self._holds_phrase(text) or self._repeats(text, source) else 0.0
            for text, source in zip(texts, sources, strict=True)
        ]

    def _holds_phrase(self, text: str) -> bool:
        text = plain(text)
        return any(plain(phrase) in text for phrase in self.phrases)

    def _repeats(self, text: str, source: str) -> bool:
        tokenize = load_tokenizer(self.tokenizer)
        said, asked = _spaced(tokenize(text)), tokenize(source)
        return bool(asked) and (_spaced(asked[: self.words]) in said or _spaced(asked[-self.words :]) in said)


@dataclass(frozen=True)
class Format:
    """Whether the completion has the form it must have: a pattern, JSON that fits a schema, or one of some choices.

    Formula: 1 if the completion, without white space at its ends, has the form, else 0. JSON is what the standard
    calls so: no NaN, no text before or after it, no Markdown fence around it.

    Range: 0 or 1.

    Use: where a program reads the output.

    How it is gamed: by the shortest text that has the form.

    Pair it with: exact_match or token_f1, which look at the content.

    Arguments:
        pattern: a regular expression that all of the completion matches; `.` matches a line end too.
        json_schema: a JSON schema (a mapping, or the path of a file that holds one); `{}` is any JSON.
        choices: a list of texts, one of which the completion is.
        ignore_case: for choices: case makes no difference.

    >>> Format(pattern="Answer: .+")(["Answer: 42", "42"])
    [1.0, 0.0]
    >>> Format(choices=["yes", "no"], ignore_case=True)(["Yes", "yes, but"])
    [1.0, 0.0]
    """

    pattern: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    choices: tuple[str, ...] | None = None
    ignore_case: bool = False

    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        given = [key for key in ("pattern", "json_schema", "choices") if getattr(self, key) is not None]
        if len(given) != 1:
            raise InputError(f"give one of pattern, json_schema and choices, not {' and '.join(given) or 'none'}.")
        check_flag("ignore_case", self.ignore_case)
        if self.ignore_case and self.choices is None:
            raise InputError("ignore_case is for choices; a pattern ignores case if it begins with (?i).")
        if self.pattern is not None:
            _check_pattern(self.pattern)
        elif self.choices is not None:
            object.__setattr__(self, "choices", _texts("choices", self.choices, least=1))
        else:
            require("jsonschema")
            object.__setattr__(self, "json_schema", _read_schema(self.json_schema))
            _check_schema(self.json_schema)

    @property
    def __name__(self) -> str:
        return "format"

    def __call__(self, completions: Sequence, **columns: Any) -> list[float]:
        """Score each completion on its own."""
        has_form = self._test()
        return [float(has_form(completion_text(completion).strip())) for completion in completions]

    def _test(self) -> Callable[[str], bool]:
        if self.pattern is not None:
            matches = re.compile(self.pattern, re.DOTALL).fullmatch
            return lambda text: matches(text) is not None
        if self.choices is not None:
            form = str.casefold if self.ignore_case else str
            valid = {form(choice.strip()) for choice in self.choices}
            return lambda text: form(text) in valid
        return functools.partial(_is_json, _validator(self.json_schema))


def _texts(key: str, texts: Any, *, least: int = 0) -> tuple[str, ...]:
    """Return a list of texts as a tuple, or refuse what is none."""
    if not isinstance(texts, list | tuple) or len(texts) < least:
        raise InputError(f"{key} must be a list of texts, not {texts!r:.80}.")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{key} must be a list of texts, and {text!r:.80} is none: put it in quotes.")
        if not text.strip():
            raise InputError(f"{key} must not hold an empty text.")
    return tuple(texts)


def _spaced(words: Sequence[str]) -> str:
    """Join words so that one such text holds another only where its words are consecutive words of it."""
    return f" {' '.join(words)} "


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise InputError(f"pattern must be a regular expression, not {pattern!r:.80}.")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"pattern {pattern!r:.80} is no regular expression: {error}.") from error


def _read_schema(schema: Any) -> dict[str, Any]:
    """Return the schema as a copy in plain JSON, from the file if it is a path."""
    try:
        text = Path(schema).read_text(encoding="utf-8") if isinstance(schema, str | Path) else json.dumps(schema)
        found = json.loads(text)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"json_schema {schema!r:.80} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"json_schema must be a mapping or the path of a file that holds one, not {found!r:.80}.")
    return found


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY

    # With a registry given, a reference to another schema is an error rather than a download.
    return validator_for(schema, default=Draft202012Validator)(schema, registry=REGISTRY)


def _check_schema(schema: dict[str, Any]) -> None:
    from jsonschema.exceptions import SchemaError
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        _validator(schema).check_schema(schema)
        resource = Resource.from_contents(schema, default_specification=DRAFT202012)
        _look_up_references(resource, REGISTRY.resolver_with_root(resource))
    except SchemaError as error:
        raise InputError(f"json_schema is no JSON schema: at {error.json_path}, {error.message}.") from error
    except Unresolvable as error:
        raise InputError(f"json_schema refers to {error.ref!r}, which it does not hold.") from error


def _look_up_references(resource: Any, resolver: Any) -> None:
    if isinstance(resource.contents, dict) and "$ref" in resource.contents:
        resolver.lookup(resource.contents["$ref"])
    for inner in resource.subresources():
        _look_up_references(inner, resolver.in_subresource(inner))


def _is_json(validator: Any, text: str) -> bool:
    try:
        return validator.is_valid(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError, OverflowError):  # no JSON; nested too deep or numbers too large to look at
        return False


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON.")
