"""A data set made in code, and a model small enough to learn it on a laptop: nothing is downloaded.

`notes` are short work notes (incident reports, orders by e-mail, talks about a meeting), each with a one-sentence
summary. As in data that a crowd has written, most training summaries carry a habit nobody wants: a filler sentence,
a side remark that need not be true, or the same sentence again. A model that imitates them learns the habits too, and
that is what reinforcement learning has to undo. The held-out rows carry the same noisy `summary`, because that is all
a real user has; what a good summary says is known here, and kept in `clean` and `facts`, which nothing trains on.

>>> row = load("notes", "test", rows=1)[0]
>>> sorted(row)
['clean', 'domain', 'facts', 'habit', 'id', 'note', 'summary']
>>> FactsRight()(row["clean"], [row["facts"]] * 4)
[1.0, 1.0, 1.0, 1.0]
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lastmile_trl.errors import unknown
from lastmile_trl.rewards.base import completion_text
from lastmile_trl.rewards.rouge import Rouge

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# ---------------------------------------------------------------------------------------------------------------------
# What notes are about

VOCABULARY = {
    "name": [
        "Ana", "Ben", "Carla", "Dario", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Karim", "Leila",
        "Marco", "Nadia", "Omar", "Priya", "Quinn", "Rosa", "Sami", "Tessa", "Umar", "Vera", "Yusuf", "Zoe",
    ],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "number": ["6", "8", "12", "15", "18", "20", "24", "25", "30", "35", "40", "45", "50", "60", "75", "80", "90"],
    "site": [
        "north depot", "harbour office", "east annex", "main warehouse", "river plant", "south clinic",
        "hill campus", "airport desk", "old mill", "west yard", "print shop", "city library",
        "central lab", "training centre", "cold store", "village branch",
    ],
    "system": [
        "payment terminal", "mail server", "badge reader", "booking system", "label printer", "phone system",
        "stock scanner", "ticket machine", "backup server", "video link", "time clock", "door lock",
        "alarm panel", "web shop", "wireless router", "lift control",
    ],
    "cause": [
        "an expired certificate", "a full disk", "a loose cable", "a power cut", "a wrong password", "a bad update",
        "a blocked port", "a broken fan", "a duplicate address", "a clock error", "a worn battery", "a spilled drink",
        "a missing licence", "a memory leak", "a network loop", "a faulty sensor",
    ],
    "action": [
        "restarted the unit", "checked the cabling", "rolled back the change", "called the vendor",
        "cleared the queue", "swapped the power supply", "restored the backup", "installed a spare",
        "reset the account", "patched the software", "corrected the settings", "opened a ticket",
    ],
    "company": [
        "Oakfield Clinic", "Bluebird Cafe", "Stone Bridge School", "Lindell Motors", "Maple Street Bakery",
        "Fernhill Hotel", "Redwood Legal", "Silver Lake Gym", "Tidewater Books", "Northgate Dental",
        "Sunrise Nursery", "Copperline Design",
    ],
    "item": [
        "desk lamps", "office chairs", "paper rolls", "ink cartridges", "coffee filters", "wall clocks",
        "storage boxes", "safety vests", "hand towels", "name badges", "extension cords", "cleaning kits",
        "notebooks", "whiteboards", "door mats", "water bottles",
    ],
    "topic": [
        "budget review", "hiring plan", "safety drill", "product demo", "site visit", "training day",
        "release check", "supplier call", "team lunch", "audit meeting", "design workshop", "planning session",
    ],
    "room": [
        "blue room", "garden room", "board room", "corner office", "studio", "canteen", "green room", "lecture hall",
    ],
    "task": [
        "write the minutes", "book the room", "bring the slides", "order the food",
        "invite the guests", "check the numbers", "print the handouts", "record the talk",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """The templates of one kind of note. A template's `{slot}`s are filled with values drawn for the whole row."""

    slots: dict[str, tuple[str, ...]]  # kind of VOCABULARY -> slots that get different values of it
    facts: tuple[str, ...]  # the slots that a good summary names; the others are there to be confused with them
    opening: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]  # one of each group is said
    asides: tuple[tuple[str, ...], ...]  # of each group, one or none is said
    reordered: bool  # whether asides may stand anywhere and the body in any order
    summaries: tuple[str, ...]  # good ones: every fact, nothing else
    remarks: tuple[str, ...]  # what a careless writer adds: beside the point, and not always in the note


INCIDENT = Domain(
    slots={
        "system": ("system", "other_system"),
        "site": ("site", "other_site"),
        "cause": ("cause", "suspect"),
        "action": ("action",),
        "name": ("fixer", "absent"),
        "day": ("day", "other_day"),
        "number": ("number",),
    },
    facts=("day", "system", "site", "cause", "fixer", "action"),
    opening=(
        "News from the {site}: on {day} the {system} stopped working.",
        "Report for the {site}. The {system} went down on {day}.",
        "On {day} we noticed that the {system} at the {site} was dead.",
        "The {site} lost its {system} on {day}.",
    ),
    body=(
        (
            "We first blamed {suspect}, but it was {cause}.",
            "It was {cause} and not {suspect}.",
            "The reason was {cause}, while {suspect} was ruled out.",
            "{suspect} looked likely, yet the log showed {cause}.",
        ),
        (
            "{absent} was away, so {fixer} {action}.",
            "In the end {fixer} {action}, as we could not reach {absent}.",
            "{fixer} {action} while {absent} took the calls.",
            "In the end {fixer} {action}.",
            "Later {fixer} {action}.",
            "It was {fixer} who {action}.",
        ),
    ),
    asides=(
        ("The {other_system} was not touched.", "The {other_system} kept running."),
        ("The same thing happened last {other_day} at the {other_site}.", "A review is planned for {other_day}."),
        ("About {number} people had to wait.", "Nobody was hurt.", "Sorry for the short note."),
    ),
    reordered=True,
    summaries=(
        "The {system} at the {site} failed on {day} because of {cause}, and {fixer} {action}.",
        "On {day} {fixer} {action} after {cause} stopped the {system} at the {site}.",
        "{fixer} {action} on {day} when {cause} broke the {system} at the {site}.",
        "{cause} took down the {system} at the {site} on {day}, and {fixer} {action}.",
    ),
    remarks=("The {other_system} was fine.", "{absent} was also involved.", "The {other_site} asked about it."),
)

ORDER = Domain(
    slots={
        "company": ("company",),
        "item": ("item", "other_item"),
        "number": ("number", "other_number"),
        "site": ("site", "other_site"),
        "day": ("day", "other_day"),
        "name": ("payer", "former_payer", "writer"),
    },
    facts=("company", "number", "item", "site", "day", "payer"),
    opening=(
        "Hello, this is {writer} from {company}.",
        "Dear team, {writer} of {company} here.",
        "Hi, I am writing for {company}. My name is {writer}.",
    ),
    body=(
        (
            "Please send {number} {item} to the {site} by {day}.",
            "We need {number} {item} at the {site} before {day}.",
            "Could you ship {number} {item}? They should reach the {site} by {day}.",
            "By {day} we need {number} {item}, delivered to the {site}.",
        ),
        (
            "The invoice goes to {payer}, not {former_payer}.",
            "{former_payer} has left, so bill {payer}.",
            "{payer} will pay this one, as {former_payer} is away.",
            "The invoice goes to {payer}.",
            "Please bill {payer}.",
            "{payer} will pay.",
        ),
    ),
    asides=(
        ("Last time we took {other_number} {other_item}.", "We still have {other_number} {other_item}."),
        ("The {other_site} is closed.", "Not the {other_site}, please.", "We moved out of the {other_site}."),
        ("{other_day} would be too late.", "I am off on {other_day}.", "Thanks a lot!"),
    ),
    reordered=True,
    summaries=(
        "{company} orders {number} {item} for the {site} by {day}, and {payer} gets the invoice.",
        "By {day} {company} wants {number} {item} at the {site}, billed to {payer}.",
        "Send {number} {item} to the {site} for {company} by {day} and bill {payer}.",
        "{number} {item} are due at the {site} by {day} for {company}, and {payer} pays.",
    ),
    remarks=("{writer} wrote the e-mail.", "{former_payer} does not pay.", "They also like the {other_item}."),
)

MEETING = Domain(
    slots={
        "topic": ("topic",),
        "day": ("day", "other_day"),
        "room": ("room", "other_room"),
        "task": ("task",),
        "name": ("helper", "other_helper"),
        "number": ("number",),
    },
    facts=("topic", "day", "room", "helper", "task"),
    opening=(
        "Chair: When is the {topic}? {other_day}?",
        "Chair: Can we do the {topic} on {other_day}?",
        "Chair: Let us fix the {topic}. I say {other_day}.",
    ),
    body=(
        (
            "Clerk: No, {day} is better.",
            "Clerk: I am busy then. Take {day}.",
            "Clerk: {other_day} is full, so {day}.",
        ),
        (
            "Chair: Fine. The {other_room}? Clerk: Too small, use the {room}.",
            "Chair: OK, in the {room}, since the {other_room} is taken.",
            "Chair: Good. I got the {room}, not the {other_room}.",
        ),
        (
            "Clerk: Who will {task}? Chair: Not {other_helper}. Ask {helper}.",
            "Clerk: {other_helper} cannot {task}. Chair: Then {helper} will.",
            "Clerk: I think {helper} should {task}. Chair: Not {other_helper}? Clerk: No.",
            "Clerk: Who will {task}? Chair: Ask {helper}.",
            "Clerk: I think {helper} should {task}. Chair: Sure.",
            "Chair: And {helper} will {task}. Clerk: Yes.",
        ),
    ),
    asides=(
        ("Chair: {number} people said yes.", "Chair: The others know."),
        ("Clerk: Great, bye.", "Chair: Thanks."),
    ),
    reordered=False,
    summaries=(
        "The {topic} is on {day} in the {room}, and {helper} will {task}.",
        "They agree to hold the {topic} in the {room} on {day} while {helper} will {task}.",
        "On {day} the {topic} takes place in the {room}, and {helper} is asked to {task}.",
        "{helper} will {task} for the {topic}, which is set for {day} in the {room}.",
    ),
    remarks=("{other_helper} is not free.", "The {other_room} was taken.", "{other_day} came up first."),
)

DOMAINS = {"incident": INCIDENT, "order": ORDER, "meeting": MEETING}

# ---------------------------------------------------------------------------------------------------------------------
# How notes are written

HABIT_SHARE = 0.7  # of the summaries, train and test alike
HABITS = {"filler": 0.6, "remark": 0.15, "repetition": 0.25}
PHRASINGS = (6, 2, 1, 1)  # weights of a domain's summaries: with no usual one, ROUGE would measure wording, not facts
ASIDE_SHARE = 0.5

# All begin alike: one word then weighs more than the end of the text, and greedy decoding, too, picks up the habit.
FILLERS = (
    "The team will follow up soon.",
    "The message was short and clear.",
    "The details are in the file.",
    "The case is now closed.",
    "The sender asked for a quick reply.",
    "The note was easy to read.",
)

DATASETS = {"notes": {"train": 10_000, "test": 300}}
TEST_SHARE = 10  # one note in so many belongs to the test split


def load(name: str, split: str = "train", rows: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the data set `name`, the same for the same arguments; the first rows do not depend on how many follow.

    No note is in both splits, whatever the seeds.

    >>> load("notes", rows=2) == load("notes", rows=3)[:2]
    True
    """
    if name not in DATASETS:
        raise unknown("synthetic data set", name, DATASETS)
    if split not in DATASETS[name]:
        raise unknown(f"split of synthetic:{name}", split, DATASETS[name])
    size = DATASETS[name][split] if rows is None else rows
    drawn = itertools.islice(_rows(random.Random(f"{name}/{split}/{seed}"), split), size)
    return [{"id": f"{name}-{split}-{seed}-{number}", **row} for number, row in enumerate(drawn)]


def _rows(rng: random.Random, split: str) -> Iterator[dict[str, Any]]:
    """Rows of one split without end, none with the note of another."""
    seen = set()
    while True:
        row = _row(rng)
        if split_of(row["note"]) == split and row["note"] not in seen:
            seen.add(row["note"])
            yield row


def split_of(note: str) -> str:
    """The split a note belongs to, by its text alone, so that no seed can put it in the other one."""
    return "test" if zlib.crc32(note.encode()) % TEST_SHARE == 0 else "train"


def _row(rng: random.Random) -> dict[str, Any]:
    domain_name = rng.choice(sorted(DOMAINS))
    domain = DOMAINS[domain_name]
    values = _draw_values(rng, domain)
    summary = _fill(rng.choices(domain.summaries, PHRASINGS)[0], values)
    habit, extra = _draw_habit(rng, domain, values, summary)
    return {
        "domain": domain_name,
        "note": " ".join(_fill(template, values) for template in _draw_note(rng, domain)),
        "summary": " ".join([summary, *extra]),
        "habit": habit,
        "clean": [_fill(template, values) for template in domain.summaries],
        "facts": [_without_article(values[slot]) for slot in domain.facts],
    }


def _draw_values(rng: random.Random, domain: Domain) -> dict[str, str]:
    values = {}
    for kind, slots in domain.slots.items():
        values.update(zip(slots, rng.sample(VOCABULARY[kind], len(slots)), strict=True))
    return values


def _fill(template: str, values: dict[str, str]) -> str:
    sentence = template.format(**values)
    return sentence[0].upper() + sentence[1:]


def _draw_note(rng: random.Random, domain: Domain) -> list[str]:
    """The templates of one note, in the order in which they are said."""
    body = [rng.choice(group) for group in domain.body]
    asides = [rng.choice(group) for group in domain.asides if rng.random() < ASIDE_SHARE]
    if not domain.reordered:
        return [rng.choice(domain.opening), *body, *asides]
    rng.shuffle(body)
    rng.shuffle(asides)
    before = rng.randint(0, len(asides))
    return [rng.choice(domain.opening), *asides[:before], *body, *asides[before:]]


def _draw_habit(rng: random.Random, domain: Domain, values: dict[str, str], summary: str) -> tuple[str, list[str]]:
    """The name of the writer's bad habit, and the sentences it adds."""
    if rng.random() >= HABIT_SHARE:
        return "none", []
    habit = rng.choices(list(HABITS), list(HABITS.values()))[0]
    if habit == "filler":
        return habit, rng.choices(FILLERS, k=rng.choice((1, 2)))
    if habit == "remark":
        return habit, [_fill(template, values) for template in rng.sample(domain.remarks, rng.choice((1, 2)))]
    return habit, [summary, *rng.choices(FILLERS, k=rng.choice((0, 1)))]


# ---------------------------------------------------------------------------------------------------------------------
# Whether the facts are right


def _without_article(value: str) -> str:
    return re.sub(r"^an? ", "", value)


_VALUES = sorted(
    {_without_article(value).lower() for values in VOCABULARY.values() for value in values}, key=len, reverse=True
)
_ANY_VALUE = re.compile(r"\b(" + "|".join(map(re.escape, _VALUES)) + r")\b")


def facts_in(text: str) -> set[str]:
    """The values of VOCABULARY that a text names, in lower case.

    >>> sorted(facts_in("On Friday Ana reset the account."))
    ['ana', 'friday', 'reset the account']
    """
    return set(_ANY_VALUE.findall(text.lower()))


def _expected(facts: Sequence[str]) -> set[str]:
    return {fact.lower() for fact in facts}


class FactsRight:
    """1 when a completion names every fact of its row and no other value of the vocabulary, else 0.

    Range 0 to 1. It cannot be had with a list of guesses, but the facts in any order, without grammar, earn it.

    >>> FactsRight()(["Ana reset the account.", "Ana or Ben reset the account."], [["Ana", "reset the account"]] * 2)
    [1.0, 0.0]
    """

    __name__ = "facts_right"
    needs = ("facts",)

    def __call__(self, completions: list, facts: list[Sequence[str]], **columns: Any) -> list[float | None]:
        """One value per completion; None where a row has no facts."""
        return [
            float(facts_in(completion_text(completion)) == _expected(truth)) if truth else None
            for completion, truth in zip(completions, facts, strict=True)
        ]


class FactF1:
    """F1 of the values a completion names against the facts of its row: 2 * hits / (named + facts).

    Range 0 to 1. The facts in any order, without grammar, earn it all.

    >>> FactF1()(["On Friday Ben reset the account."], [["Ana", "reset the account", "Friday"]])
    [0.6666666666666666]
    """

    __name__ = "fact_f1"
    needs = ("facts",)

    def __call__(self, completions: list, facts: list[Sequence[str]], **columns: Any) -> list[float | None]:
        """One value per completion; None where a row has no facts."""
        return [
            _f1(facts_in(completion_text(completion)), _expected(truth)) if truth else None
            for completion, truth in zip(completions, facts, strict=True)
        ]


def _f1(said: set[str], expected: set[str]) -> float:
    return 2 * len(said & expected) / (len(said) + len(expected))


class RougeClean:
    """ROUGE-L to the nearest clean summary of its row: what a habit adds to one costs, and so does what is left out.

    Range 0 to 1. A wrong name or number costs one word.

    >>> RougeClean()(["Ana reset it, as they say."], [["Ana reset it.", "It was reset by Ana."]])
    [0.6666666666666666]
    """

    __name__ = "rouge_clean"
    needs = ("clean",)

    def __call__(self, completions: list, clean: list[Sequence[str]], **columns: Any) -> list[float | None]:
        """One value per completion."""
        return Rouge("rougeL")(completions, clean)


class Invented:
    """-1 when a completion names a value of the vocabulary that its note does not, else 0.

    Range -1 to 0. A completion that names nothing is never punished, so it needs a reward of recall beside it.

    >>> Invented()(["Ana reset the account.", "Ben was away."], note=["Ana was away."] * 2)
    [-1.0, -1.0]
    """

    __name__ = "invented"
    needs = ("note",)

    def __call__(self, completions: list, note: list[str], **columns: Any) -> list[float | None]:
        """One value per completion."""
        return [
            -float(bool(facts_in(completion_text(completion)) - facts_in(source)))
            for completion, source in zip(completions, note, strict=True)
        ]


# ---------------------------------------------------------------------------------------------------------------------
# A tokenizer and a model for it

VOCABULARY_SIZE = 1280


def tokenizer(rows: list[dict[str, Any]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the rows' own texts, with `<pad>` and `<eos>` and no other special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((f"{row['note']}\nSummary: {row['summary']}" for row in rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, hidden: int = 128, layers: int = 2, heads: int = 4, seed: int = 0
) -> LlamaForCausalLM:
    """An untrained model of Llama's shape for this tokenizer; `seed` alone decides its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.06,  # with the usual 0.02 so small a model does not learn to copy
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def build_base(folder: str | Path, seed: int = 0) -> Path:
    """Save an untrained model and its tokenizer to `folder`, for a recipe's `model_name_or_path`."""
    words = tokenizer(load("notes", seed=seed))
    words.save_pretrained(folder)
    tiny_model(words, seed=seed).save_pretrained(folder)
    return Path(folder)
