"""Rows to prompts, completions and references: the same prompt in SFT, RL and evaluation."""

import csv
import hashlib
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, did_you_mean, first_line
from .models import prompt_ids
from .recipe import Data
from .rewards.base import cell_text

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FILES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
# Names that TRL or an evaluation passes to rewards itself, or that TRL takes for images and tools.
TAKEN = {"prompts", "completion", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric",
         "ended", "image", "images", "tools", "environment", "environments"}  # fmt: skip
BEGINNING = "beginning"  # the column that data.split_at makes


@dataclass
class Rows:
    """Training and held-out rows with a ``references`` column of lists, and what a person should know about them."""

    train: "Dataset"
    held_out: "Dataset"
    notes: list[str] = field(default_factory=list)


def load(data: Data) -> Rows:
    """Read the rows, check the columns, set the held-out rows aside, drop or refuse empty ones."""
    train = read(data, data.split)
    if data.eval_split == data.split:
        raise InputError(f"data.eval_split and data.split are both {data.split!r}: held-out rows must be other rows.")
    if data.eval_split:
        held_out = read(data, data.eval_split)
    else:
        if len(train) <= data.held_out:
            raise InputError(
                f"data.path {data.path!r} has {len(train)} rows, too few to set data.held_out={data.held_out} aside: "
                "lower it or name data.eval_split."
            )
        # One fixed order, so that every stage on these rows holds out the same ones.
        shuffled = train.shuffle(seed=0)
        held_out, train = shuffled.take(data.held_out), shuffled.skip(data.held_out)
    rows = Rows(train, held_out)
    if named := TAKEN - {"completion"} & {*template_columns(data)}:
        raise InputError(
            f"The template names the column {min(named)!r}, which means something else to trainers and rewards: rename "
            "it in the data."
        )
    if taken := _taken(train, data):
        rows.notes.append(f"Column {', '.join(taken)} is left out: the name is used in training.")
    rows.train = _clean(rows.train, data, data.split, rows.notes)
    rows.held_out = _clean(rows.held_out, data, data.eval_split or "held out", rows.notes)
    _leave_out_leaks(rows, data)
    if data.max_rows:
        rows.train = rows.train.take(min(data.max_rows, len(rows.train)))
    return rows


def _leave_out_leaks(rows: Rows, data: Data) -> None:
    """A held-out prompt that is trained on would make every evaluation too good."""
    columns = template_columns(data)
    if not columns:
        return

    def prompts(split: "Dataset") -> Iterator[int]:
        return (hash(repr(list(row.values()))) for row in split.select_columns(columns))

    held_out = set(prompts(rows.held_out))
    kept = [index for index, prompt in enumerate(prompts(rows.train)) if prompt not in held_out]
    left_out = len(rows.train) - len(kept)
    if not left_out:
        return
    if not kept:
        raise InputError(f"Every prompt of {data.path!r} is among the held-out ones: use data.group_by.")
    rows.train = rows.train.select(kept)
    rows.notes.append(
        f"{left_out} rows have the prompt of a held-out row and are left out of training; data.group_by makes one row "
        "of those that share a prompt."
    )


def read(data: Data, split: str, labelled: bool = True) -> "Dataset":
    """The rows of one split with the columns that the section names, split and grouped if it says so.

    Rows to predict for are not ``labelled``: they need no references, and have a ``beginning`` of their own.
    """
    rows = open_split(data, split)
    splits = labelled and data.split_at is not None
    columns = [*rows.column_names, *([BEGINNING] if splits else [])]
    template = "prompt" if data.prompt else "messages"
    named = [("shorten", data.shorten), *((template, column) for column in template_columns(data))]
    if labelled:
        named += [("references", data.references), ("group_by", data.group_by)]
    for key, column in named:
        if column is not None and column not in columns:
            raise InputError(
                f"data.{key}: {data.path!r} has no column {column!r}, only {', '.join(columns)}"
                f"{did_you_mean(column, columns)}"
            )
    rows = _split_texts(rows, data) if splits else rows
    return _group(rows, data.group_by, data.references) if labelled and data.group_by else rows


def _split_texts(rows: "Dataset", data: Data) -> "Dataset":
    """Each text as its first words and the rest; one without more words has no rest."""
    if BEGINNING in rows.column_names:
        raise InputError(f"data.split_at makes a column {BEGINNING!r}, and {data.path!r} has one: rename it there.")
    if BEGINNING not in template_columns(data):
        raise InputError(f"data.split_at makes a column {BEGINNING!r}, which no template names: write {{{BEGINNING}}}.")
    if wrong := next((text for text in rows[data.references] if not isinstance(text, str | None)), None):
        raise InputError(f"data.split_at splits one text a row, and {data.references!r} holds {wrong!r:.80}.")

    def split(text: str | None) -> dict[str, str]:
        return dict(zip((BEGINNING, data.references), split_text(text or "", data.split_at), strict=True))

    return rows.map(split, input_columns=data.references)


def split_text(text: str, words: int) -> tuple[str, str]:
    r"""The first words of a text and what follows them, both as they stand in it.

    >>> split_text("A film\nabout  cats.", 3), split_text("A film", 3)
    (('A film\nabout', '  cats.'), ('A film', ''))
    """
    ends = [word.end() for word in islice(re.finditer(r"\S+", text), words)]
    end = ends[-1] if ends else 0
    return text[:end], text[end:]


def _group(rows: "Dataset", by: str, references: str) -> "Dataset":
    """One row for each value, the first with it; its references are those of all."""
    groups: dict[str, list[str]] = {}
    firsts = []
    for index, (value, texts) in enumerate(zip(rows[by], rows[references], strict=True)):
        if str(value) not in groups:
            groups[str(value)] = []
            firsts.append(index)
        groups[str(value)] += reference_cells(texts)
    return rows.select(firsts).remove_columns(references).add_column(references, list(groups.values()))


def open_split(data: Data, split: str) -> "Dataset":
    """The rows of one split as they are stored: made in code, in files, or on the Hub."""
    from datasets import Dataset, disable_progress_bars, get_dataset_split_names, load_dataset
    from datasets.utils.logging import CRITICAL, set_verbosity

    disable_progress_bars()
    set_verbosity(CRITICAL)  # an error is said here, in one sentence
    if data.path.startswith("synthetic:"):
        from . import synthetic

        return Dataset.from_list(synthetic.load(data.path.removeprefix("synthetic:"), split))
    path = Path(data.path).expanduser()
    if not path.exists() and (path.suffix in FILES or data.path[0] in "./~"):
        raise InputError(f"data.path {data.path!r} does not exist: check the path, relative to {Path.cwd().name}/.")
    if path.is_file() and path.suffix not in FILES:
        raise InputError(f"data.path {data.path!r} is not a file we read: use {', '.join(FILES)} or a hub id.")
    try:
        if path.is_file():
            return load_dataset(FILES[path.suffix], data_files=str(path), split=split, **_as_text(path))
        source = str(path) if path.exists() else data.path
        return load_dataset(source, data.name, revision=data.revision, split=split, **_as_text(path))
    except ValueError as error:
        if "nknown split" not in str(error):
            raise InputError(f"data.path {data.path!r} cannot be read: {first_line(error)}.") from error
        if path.is_file():
            raise InputError(
                f"data.path {data.path!r} is one file and has no split {split!r}: use data.held_out, or a folder with "
                "train and validation files."
            ) from error
        names = get_dataset_split_names(data.path, data.name, revision=data.revision)
        raise InputError(f"data.path {data.path!r} has no split {split!r}; it has {', '.join(names)}.") from error
    except ConnectionError as error:
        raise InputError(
            f"data.path {data.path!r} is not a file here, not in the cache, and the Hub cannot be reached "
            "(offline?): check the path or the connection."
        ) from error
    except Exception as error:  # datasets raises many kinds, each with the reason in its first line, or in its cause's
        reason = first_line(error.__cause__ or error)
        raise InputError(f"data.path {data.path!r} cannot be read: {reason}.") from error


def _as_text(path: Path) -> dict[str, Any]:
    """What keeps the cells of a table as they are: by guessed types, one empty cell makes 42 into 42.0."""
    from datasets import Features, Value

    table = path if path.suffix == ".csv" else next(path.rglob("*.csv"), None) if path.is_dir() else None
    if table is None:
        return {}
    with table.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file), [])
    return {"features": Features({name: Value("string") for name in names}), "keep_default_na": False}


def _clean(rows: "Dataset", data: Data, split: str, notes: list[str]) -> "Dataset":
    """Make ``references`` a list, leave out rows with nothing to read or nothing to learn, and names TRL takes."""
    columns, used = rows.column_names, template_columns(data)
    sources = [data.shorten] if data.shorten else used
    references = [reference_cells(value) for value in rows[data.references]]
    empty_references = {index for index, texts in enumerate(references) if not texts}
    empty_prompts = {
        index
        for index, row in enumerate(rows.select_columns(sources) if sources else [])
        if not any(cell_text(value).strip() for value in row.values())
    }
    if "references" in columns:
        rows = rows.remove_columns("references")
    rows = rows.add_column("references", references)
    if found := len(empty_references | empty_prompts):
        problem = (
            f"{split}: {found} of {len(rows)} rows have an empty prompt ({len(empty_prompts)}) "
            f"or an empty reference ({len(empty_references)})"
        )
        first = min(empty_references | empty_prompts)
        if data.strict or found == len(rows):
            raise InputError(f"{problem}, the first is row {first}: mend data.path {data.path!r}.")
        notes.append(f"{problem}; they are left out.")
        keep = set(range(len(rows))) - empty_references - empty_prompts
        rows = rows.select(sorted(keep))
    became = {data.references} & TAKEN - {"completion"}
    return rows.remove_columns([*_taken(rows, data), *became])


def _taken(rows: "Dataset", data: Data) -> list[str]:
    """Columns that would clash with what TRL passes to rewards, but for those that become prompt and references."""
    return sorted(TAKEN & set(rows.column_names) - {*template_columns(data), data.references})


def reference_cells(value: Any) -> list[str]:
    """The non-empty references of a row.

    >>> reference_cells("a"), reference_cells(["a", " ", None, "b"]), reference_cells(None)
    (['a'], ['a', 'b'], [])
    """
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in map(cell_text, values) if text.strip()]


# --- prompts -------------------------------------------------------------------------------------------------------


def template_columns(data: Data) -> list[str]:
    """The columns a template names, in order.

    >>> template_columns(Data(path="x", prompt="{a}: {b} {{json}} {a}"))
    ['a', 'b']
    """
    templates = [data.prompt] if data.prompt else [message["content"] for message in data.messages]
    try:
        names = [name for text in templates for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise InputError(f"data.prompt is not a template: {error}; write {{{{ and }}}} for braces.") from error
    return list(dict.fromkeys(names))


def render(data: Data, row: dict) -> str | list[dict]:
    """The prompt of a row, plain text or chat messages.

    >>> render(Data(path="x", prompt="{topic}: {words} "), {"topic": "pets", "words": ["cat", "dog"]})
    'pets: cat, dog'
    """
    values = {column: cell_text(row[column]) for column in template_columns(data)}

    def fill(text: str) -> str:
        return "".join(
            literal + (values[name] if name is not None else "")
            for literal, name, _, _ in string.Formatter().parse(text)
        )

    if data.prompt:
        # A trailing space would be a token of its own, which no completion in SFT ever follows.
        return fill(data.prompt).rstrip(" ")
    return [{**message, "content": fill(message["content"])} for message in data.messages]


def with_prompts(rows: "Dataset", data: Data, tokenizer: "PreTrainedTokenizerBase", notes: list[str]) -> "Dataset":
    """Add the ``prompt`` column, its one long field shortened to fit ``data.max_prompt_tokens``."""
    columns = template_columns(data)
    long = data.shorten or (columns[0] if len(columns) == 1 else None)
    shortened = 0

    def build(batch: dict[str, list]) -> dict[str, list]:
        nonlocal shortened
        batch_rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        prompts = [render(data, row) for row in batch_rows]
        for index, ids in enumerate(prompt_ids(tokenizer, prompts)):
            if len(ids) > data.max_prompt_tokens:
                prompts[index] = _shorten(data, batch_rows[index], long, len(ids), tokenizer)
                shortened += 1
        return {"prompt": prompts}

    # Not cached: the count of shortened prompts is a result too.
    rows = rows.map(build, batched=True, batch_size=500, load_from_cache_file=False)
    if shortened:
        notes.append(f"{shortened} of {len(rows)} prompts had {long} cut to fit {data.max_prompt_tokens} tokens.")
    return rows


def _shorten(data: Data, row: dict, column: str | None, tokens: int, tokenizer: "PreTrainedTokenizerBase") -> Any:
    if column is None:
        raise InputError(
            f"A prompt has {tokens} tokens, more than data.max_prompt_tokens={data.max_prompt_tokens}: "
            "name the column that may be cut in data.shorten."
        )
    text = cell_text(row[column])
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    keep = len(ends)
    # Cutting can merge or split a token at the seam, so measure again after each cut.
    while tokens > data.max_prompt_tokens and keep > 0:
        keep = max(0, keep - (tokens - data.max_prompt_tokens))
        row = {**row, column: text[: ends[keep - 1]] if keep else ""}
        tokens = len(prompt_ids(tokenizer, [render(data, row)])[0])
    if keep == 0:
        raise InputError(
            f"The prompt without {column!r} already has {tokens} tokens, and data.max_prompt_tokens="
            f"{data.max_prompt_tokens} leaves no room for it: raise it or shorten the instruction."
        )
    return render(data, row)


def sft_rows(rows: "Dataset", data: Data, tokenizer: "PreTrainedTokenizerBase", notes: list[str]) -> "Dataset":
    """One ``prompt``/``completion`` pair for every reference of every row."""
    limit, left_out = data.max_reference_tokens, 0

    def pairs(batch: dict[str, list]) -> dict[str, list]:
        nonlocal left_out
        result: dict[str, list] = {"prompt": [], "completion": []}
        for prompt, references in zip(batch["prompt"], batch["references"], strict=True):
            for reference in references:
                if limit and len(tokenizer(reference, add_special_tokens=False)["input_ids"]) > limit:
                    left_out += 1
                    continue
                result["prompt"].append(prompt)
                result["completion"].append(completion(prompt, reference))
        return result

    result = rows.map(pairs, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)
    if left_out:
        notes.append(f"{left_out} references longer than data.max_reference_tokens={limit} are left out of training.")
    if not len(result):
        raise InputError(f"Every reference is longer than data.max_reference_tokens={limit}: raise it.")
    return result


def completion(prompt: str | list[dict], reference: str) -> str | list[dict]:
    """What SFT teaches to follow a prompt; a plain one that ends in a word is followed by a space.

    >>> completion("Summary:", "All is well."), completion("Summary:\\n", "All is well.")
    (' All is well.', 'All is well.')
    """
    if not isinstance(prompt, str):
        return [{"role": "assistant", "content": reference}]
    return reference if prompt[-1:].isspace() or not prompt else f" {reference}"


def fingerprint(rows: "Dataset") -> str:
    """Names rows by their content and order, wherever they were read from."""
    digest = hashlib.sha256(" ".join(rows.column_names).encode())
    for part in rows.with_format("arrow").iter(1000):
        for batch in part.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]
