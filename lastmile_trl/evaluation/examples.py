"""What the page's script shows of the examples: texts, values, and what is marked in the texts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from lastmile_trl.evaluation.charts import finite
from lastmile_trl.evaluation.metrics import ALWAYS_MEASURED
from lastmile_trl.rewards.faithfulness import inner_names, unsupported
from lastmile_trl.rewards.tokens import ngrams

REPEATED = 3  # words in a row


def browser(result: dict, looks: dict[str, str]) -> dict:
    """A column per output, and per example the texts and values in that order."""
    from lastmile_trl.evaluation.comparison import last_run, why_no_value

    metrics, entries = list(result["metrics"]), result["results"]
    known = set().union(*map(inner_names, _texts(result["examples"])))
    first = next(of["decoding"] for of in entries if of["run"] == result["baseline"])
    raw = [index for index, of in enumerate(entries) if of["decoding"] == first and not of["postprocessed"]]
    place = {entries[index]["run"]: index for index in raw}
    return {
        "metrics": [{"name": name, "better": ALWAYS_MEASURED.get(name, "higher")} for name in metrics],
        "baseline": place[result["baseline"]],
        "last": place.get(last_run(result), raw[-1]),
        "columns": [
            {
                "run": of["run"],
                "how": of["decoding"] + (", post-processed" if of["postprocessed"] else ""),
                "look": looks[of["run"]],
                "shown": of["decoding"] == first,
                "why": [None if of["metrics"].get(name) else why_no_value(of, name) for name in metrics],
            }
            for of in entries
        ],
        "examples": [_example(example, entries, metrics, known) for example in result["examples"]],
    }


def _texts(examples: Iterable[dict]) -> Iterator[str]:
    for example in examples:
        yield from (plain(example["prompt"]), *example["references"], *(of["text"] for of in example["outputs"]))


def _example(example: dict, entries: Sequence[dict], metrics: Sequence[str], known: set[str]) -> dict:
    of_entry, prompt = {_key(output): output for output in example["outputs"]}, plain(example["prompt"])
    outputs = [of_entry.get(_key(entry)) for entry in entries]
    texts = [(output.get("samples") or [output["text"]]) if output else [] for output in outputs]
    marked = iter(_marked(list(chain.from_iterable(texts)), prompt, known))
    return {
        "prompt": prompt,
        "references": example["references"],
        "outputs": [
            output and _output(output, list(islice(marked, len(of_output))), metrics)
            for output, of_output in zip(outputs, texts, strict=True)
        ],
    }


def _key(entry: dict) -> tuple[str, str, bool]:
    return entry["run"], entry["decoding"], entry["postprocessed"]


def _output(output: dict, marked: Sequence[dict], metrics: Sequence[str]) -> dict:
    values = [finite(output["metrics"].get(name)) for name in metrics]
    first, *others = marked
    samples = {"samples": others} if others else {}
    return first | {"values": [None if value is None else float(f"{value:.6g}") for value in values]} | samples


def _marked(texts: Sequence[str], prompt: str, known: set[str]) -> list[dict]:
    """Texts with what is marked in them: starts and ends in turn, counted as JavaScript counts characters."""
    marked, texts = [], [text.strip() for text in texts]
    for text, strange in zip(texts, unsupported(texts, prompt, known), strict=True):
        spans = {"repeats": repeats(text), "strange": strange}
        marked.append({"text": text} | {name: _places(text, found) for name, found in spans.items() if found})
    return marked


def _places(text: str, spans: Iterable[tuple[int, int]]) -> list[int]:
    return [len(text[:place].encode("utf-16-le", "surrogatepass")) // 2 for place in chain.from_iterable(spans)]


def repeats(text: str) -> list[tuple[int, int]]:
    """Where a text says three words in a row that it said before.

    >>> text = "so it is, and so it is, he said"
    >>> [text[start:end] for start, end in repeats(text)]
    ['so it is,']
    """
    words, seen, again = list(re.finditer(r"\S+", text)), set(), set()
    for number, gram in enumerate(ngrams([word[0] for word in words], REPEATED)):
        if gram in seen:
            again.update(range(number, number + REPEATED))
        seen.add(gram)
    found: list[tuple[int, int]] = []
    for number in sorted(again):
        start, end = words[number].span()
        found.append((found.pop()[0] if number - 1 in again else start, end))
    return found


def plain(prompt: str | list[dict]) -> str:
    """A prompt as text; of a conversation every message with its role before it.

    >>> plain([{"role": "user", "content": "Hello?"}])
    'user: Hello?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {_content(message['content'])}" for message in prompt)


def _content(content: str | list[dict] | None) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""
