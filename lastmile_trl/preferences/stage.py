"""`method: pairs`: what the model answers, pairs, the perplexity filter, and what a person should see of them."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastmile_trl import data as data_module
from lastmile_trl import models, rewards
from lastmile_trl.errors import RunError
from lastmile_trl.evaluation.metrics import totals
from lastmile_trl.outputs import bar, fingerprint, held_out_rows
from lastmile_trl.preferences import perplexity
from lastmile_trl.preferences.negatives import Sample
from lastmile_trl.preferences.pairs import Collected, Pair, Samples, collect
from lastmile_trl.recipe import Recipe, max_new_tokens
from lastmile_trl.run_folder import keep_outputs, kept_outputs
from lastmile_trl.screen import note

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from lastmile_trl.evaluation.decoding import Output

CHUNK = 256  # prompts; an interrupted stage keeps the samples of those that were finished
EXAMPLES = 3  # of each category


def make(recipe: Recipe) -> None:
    """Fill the run folder: `train.jsonl` and `validation.jsonl` to train on, `pairs.json` to look at.

    The filter is for training: the held-out pairs stay as they are, so that filters can be compared on them.
    """
    config = models.config_of(recipe.model, recipe.run, recipe.seed)
    chat = bool(recipe.data.messages)
    tokenizer = models.load_tokenizer(config.model_name_or_path, config.model_revision, chat=chat)
    model = cache(lambda: models.on_device(models.load_model(config)))

    rows = data_module.load(recipe.data)
    train = data_module.with_prompts(rows.train, recipe.data, tokenizer, rows.notes)
    prompted = {"train": train, "validation": held_out_rows(recipe, rows, tokenizer)}
    task = rewards.Task.of(train)
    report: dict[str, Any] = {"notes": rows.notes}
    for split, raw in (("train", rows.train), ("validation", rows.held_out)):
        answers = None
        if recipe.preferences.samples is not None:
            answers = _answers(recipe, prompted[split], task, tokenizer, model)
        found = collect(prompted[split], recipe.data, recipe.preferences, tokenizer, recipe.seed, answers)
        report[split] = _counts(found)
        if split == "train" and recipe.preferences.filter is not None:
            found.pairs, report["filter"] = _filtered(recipe, found.pairs, train, tokenizer, model)
        if split == "train":
            report["examples"] = _examples(found.pairs, train)
        told = (_line(pair, raw[pair.row]) for pair in found.pairs)
        lines = (json.dumps(line, ensure_ascii=False, default=str) for line in told)  # a date becomes a text
        (recipe.run / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (recipe.run / "pairs.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


def _line(pair: Pair, row: dict[str, Any]) -> dict[str, Any]:
    """A pair with the columns of its row, so that the same template makes the same prompt of it."""
    answers = asdict(pair)
    del answers["row"]
    return row | answers


def _counts(found: Collected) -> dict[str, Any]:
    """Pairs made, pairs that could not be, and words, by category."""
    made = Counter(pair.category for pair in found.pairs)

    def words(side: str, category: str) -> float:
        texts = [getattr(pair, side) for pair in found.pairs if pair.category == category]
        return round(sum(len(text.split()) for text in texts) / len(texts), 1)

    return {
        category: {
            "pairs": made[category],
            "skipped": found.skipped.get(category, {}),
            **({f"{side}_words": words(side, category) for side in ("chosen", "rejected")} if made[category] else {}),
        }
        for category in [*made, *(category for category in found.skipped if category not in made)]
    }


def _examples(pairs: Sequence[Pair], rows: "Dataset") -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    examples = []
    for pair in pairs:
        seen[pair.category] += 1
        if seen[pair.category] <= EXAMPLES:
            prompt = rows[pair.row]["prompt"]
            told = {key: getattr(pair, key) for key in ("category", "chosen", "rejected")}
            examples.append(told | {"prompt": prompt})
    return sorted(examples, key=lambda example: example["category"])


# --- samples of the model ------------------------------------------------------------------------------------------


def _answers(
    recipe: Recipe, rows: "Dataset", task: rewards.Task, tokenizer: "PreTrainedTokenizerBase", model: Callable[[], Any]
) -> list[list[Sample]]:
    """Several samples for each row, with the weighted sum of the recipe's rewards."""
    asked = Samples(**recipe.preferences.samples)
    repeated = [row for row in rows.to_list() for _ in range(asked.per_prompt)]
    outputs = _sample(recipe, asked, [row["prompt"] for row in repeated], tokenizer, model)
    ranking = rewards.prepare(rewards.build(recipe.rewards), task)
    values = totals(outputs, repeated, ranking)
    answers = [Sample(output.text, output.ended, value) for output, value in zip(outputs, values, strict=True)]
    return [answers[start : start + asked.per_prompt] for start in range(0, len(answers), asked.per_prompt)]


def _sample(
    recipe: Recipe, asked: Samples, prompts: list, tokenizer: "PreTrainedTokenizerBase", model: Callable[[], Any]
) -> "list[Output]":
    from lastmile_trl.evaluation.decoding import decode

    settings = {"temperature": asked.temperature, "top_p": asked.top_p, "seed": recipe.seed}
    step, outputs = CHUNK * asked.per_prompt, []
    with bar(f"samples of {recipe.model['model_name_or_path']}", len(prompts)) as on_batch:
        for start in range(0, len(prompts), step):
            part = prompts[start : start + step]
            key = fingerprint(part, recipe, settings)
            kept = kept_outputs(recipe.run, key)
            if kept is None:
                limit = max_new_tokens(recipe.values)
                kept = decode(model(), tokenizer, part, max_new_tokens=limit, batch_size=asked.batch_size, **settings)
                keep_outputs(recipe.run, key, kept)
            outputs += kept
            on_batch(len(outputs), len(prompts))
    return outputs


# --- the perplexity filter -----------------------------------------------------------------------------------------


def _filtered(
    recipe: Recipe,
    pairs: Sequence[Pair],
    rows: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    model: Callable[[], Any],
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs that pass, and the filter's report."""
    asked, name = perplexity.Filter(**recipe.preferences.filter), str(recipe.starts_from[0])
    prompts = list(rows["prompt"])
    told = [asdict(pair) | {"prompt": prompts[pair.row]} for pair in pairs]
    with bar(f"perplexity under {name}", len(pairs)) as on_batch:
        chosen, rejected = perplexity.measured(
            model,
            tokenizer,
            told,
            recipe.run / "perplexity.jsonl",
            name=name,
            batch_size=asked.batch_size,
            on_batch=on_batch,
        )
    own = _own_surprises(recipe, prompts, asked, tokenizer, model) if asked.needs_samples else None
    selection = perplexity.select(asked, chosen, rejected, own)
    report = perplexity.report(selection, chosen, rejected, own, [pair.category for pair in pairs])
    try:
        perplexity.check_kept(asked, selection)
    except RunError:
        note("\n".join(perplexity.lines(report)))
        raise
    return [pairs[row] for row in selection.kept], report


def _own_surprises(
    recipe: Recipe,
    prompts: list,
    asked: perplexity.Filter,
    tokenizer: "PreTrainedTokenizerBase",
    model: Callable[[], Any],
) -> list[perplexity.Surprise]:
    """How the model finds what it samples itself, for some of the prompts."""
    some = random.Random(recipe.seed).sample(prompts, min(asked.prompts, len(prompts)))
    outputs = _sample(recipe, Samples(), some, tokenizer, model)
    said = [(prompt, output) for prompt, output in zip(some, outputs, strict=True) if output.text.strip()]
    return perplexity.perplexities(
        model(),
        tokenizer,
        [prompt for prompt, _ in said],
        [output.text for _, output in said],
        ended=[output.ended for _, output in said],
        batch_size=asked.batch_size,
    )


# --- what a person sees --------------------------------------------------------------------------------------------


def lines(run: Path) -> list[str]:
    """The report of a run folder for a terminal: counts, what the filter did, a pair of each category."""
    report = json.loads((run / "pairs.json").read_text(encoding="utf-8"))
    shown = list(report["notes"])
    for split in ("train", "validation"):
        for category, counts in report[split].items():
            skipped = "".join(f"; {count} not: {reason}" for reason, count in counts["skipped"].items())
            shown.append(f"{split:12}{category:16}{counts['pairs']:7} pairs{skipped}")
    if "filter" in report:
        shown += ["", *perplexity.lines(report["filter"])]
    first = {example["category"]: example for example in reversed(report["examples"])}
    for category, example in sorted(first.items()):
        shown += ["", f"{category}", f"  chosen    {example['chosen']}", f"  rejected  {example['rejected']}"]
    return shown
