"""How fast ROUGE is beside Google's rouge_score, in four minutes: `python benchmarks/rewards.py [--json FILE]`.

All times are CPU times. In every round each contender scores the same texts in turn, and a ratio is the median of those
of the rounds. The texts are of a made-up language with the word frequencies of a real one; each reference has 8
completions, which share 10 to 90 % with it. R1, R2 and L are measured on texts of one line, Lsum on texts of one
sentence per line. All contenders stem, and all must return the values of rouge_score for every pair. Peers that are not
installed are left out; `make peers` installs them.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

from lastmile_trl.rewards import build, tokens
from lastmile_trl.rewards.rouge import Rouge

GROUP = 8
PAIRS = {30: 128, 120: 64, 500: 16, 2000: 8}  # of so many tokens
ROUNDS = {30: 9, 120: 9, 500: 5, 2000: 2}  # rouge_score takes seconds for one pair of 2000 tokens
VARIANTS = {
    "R1+R2+L": ("rouge1", "rouge2", "rougeL"),
    "Lsum": ("rougeLsum",),
    "R1+R2+L+Lsum": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
}
LEAST = {  # how often as fast as rouge_score it must be
    ("R1+R2+L", 120): 20,
    ("R1+R2+L", 500): 100,
    ("Lsum", 120): 8,
    ("Lsum", 500): 40,
    ("R1+R2+L+Lsum", 120): 8,
    ("R1+R2+L+Lsum", 500): 40,
}
STEP_REWARDS = ["rouge", "length", "repetition"]
STEP_GROUPS, STEP_TOKENS, STEP_ROUNDS = 64, 120, 9
STEP_MOST = 100  # milliseconds

Texts = tuple[list[str], list[str]]  # completions and their references
Scores = list[tuple[float, ...]]  # per pair, the values of all variants


class Language:
    """A made-up language: its n-th word is 1/n as frequent as the first, and all but the most frequent have endings."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        syllables = list(map("".join, itertools.product("bcdfglmnprst", "aeiou")))
        endings = ["", "", "s", "ed", "ing", "ly", "ation", "ness"]
        self.words = self.random.sample(syllables, 50)
        self.words += [
            "".join(self.random.choices(syllables, k=self.random.randint(2, 3))) + self.random.choice(endings)
            for _ in range(20_000)
        ]
        self.weights = list(itertools.accumulate(1 / rank for rank in range(1, len(self.words) + 1)))

    def say(self, count: int) -> list[str]:
        return self.random.choices(self.words, cum_weights=self.weights, k=count)

    def retell(self, text: list[str], share: float) -> list[str]:
        """Return a text of the same length that takes about this share from the first, in spans of 3 to 12 words."""
        told = []
        while len(told) < len(text):
            start, length = len(told), self.random.randint(3, 12)
            told += text[start : start + length] if self.random.random() < share else self.say(length)
        return told[: len(text)]

    def lines(self, text: list[str]) -> str:
        """Return the text as lines of one sentence, of 8 to 25 words."""
        rest, lines = iter(text), []
        while sentence := list(itertools.islice(rest, self.random.randint(8, 25))):
            lines.append(" ".join(sentence).capitalize() + ".")
        return "\n".join(lines)

    def texts(self, groups: int, length: int) -> Texts:
        """Return the completions of so many groups, and the reference of each completion."""
        completions, references = [], []
        for _ in range(groups):
            reference = self.say(length)
            references += [self.lines(reference)] * GROUP
            shares = (self.random.uniform(0.1, 0.9) for _ in range(GROUP))
            completions += [self.lines(self.retell(reference, share)) for share in shares]
        return completions, references


# -- Contenders: given the variants, each returns a function that scores texts -----------------------------------------


def ours(variants: Sequence[str]) -> Callable[..., Scores]:
    rewards = [Rouge(variant) for variant in variants]
    return lambda *texts: list(zip(*(reward(*texts) for reward in rewards), strict=True))


def ours_with_new_stems(variants: Sequence[str]) -> Callable[..., Scores]:
    """As ours, but with no stem known from earlier texts: the first step of a run."""
    score = ours(variants)

    def forget_and_score(*texts: list[str]) -> Scores:
        tokens._stems.clear()
        return score(*texts)

    return forget_and_score


def rouge_score(variants: Sequence[str]) -> Callable[..., Scores]:
    scorer = RougeScorer(list(variants), use_stemmer=True)
    return lambda completions, references: [
        tuple(score.fmeasure for score in scorer.score(reference, completion).values())
        for completion, reference in zip(completions, references, strict=True)
    ]


def rouge_score_rs(variants: Sequence[str]) -> Callable[..., Scores]:
    os.environ["RAYON_NUM_THREADS"] = "1"  # on several cores it takes no less of their time
    from rouge_score_rs.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(variants), use_stemmer=True)
    return lambda completions, references: [
        tuple(score.fmeasure for score in scores.values()) for scores in scorer.score_batch(references, completions)
    ]


def torchmetrics(variants: Sequence[str]) -> Callable[..., Scores] | None:
    from torchmetrics.functional.text import rouge_score

    if "rougeLsum" in variants:  # it splits sentences with a model, not lines
        return None
    return lambda completions, references: [
        tuple(scores[f"{variant}_fmeasure"].item() for variant in variants)
        for completion, reference in zip(completions, references, strict=True)
        for scores in [rouge_score(completion, reference, use_stemmer=True, rouge_keys=tuple(variants))]
    ]


def evaluate(variants: Sequence[str]) -> Callable[..., Scores]:
    """The package evaluate with a metric of our own, which as its `rouge` on the Hub gives each pair to rouge_score."""
    from datasets import Features, Value
    from evaluate import Metric, MetricInfo

    class ByRougeScore(Metric):
        def _info(self) -> MetricInfo:
            features = Features({"predictions": Value("string"), "references": Value("string")})
            return MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Scores]:
            return {"f": rouge_score(variants)(predictions, references)}

    metric = ByRougeScore()
    return lambda completions, references: metric.compute(predictions=completions, references=references)["f"]


PEERS = {"rouge-score-rs": rouge_score_rs, "torchmetrics": torchmetrics, "evaluate": evaluate}


# -- Measuring ---------------------------------------------------------------------------------------------------------


def timed(function: Callable, *arguments: object, **keywords: object) -> tuple[float, list]:
    """Return the milliseconds of CPU that a call takes, and what it returns."""
    start = time.process_time()
    result = function(*arguments, **keywords)
    return (time.process_time() - start) * 1000, result


def compare(make: dict[str, Callable], variants: Sequence[str], texts: Texts, rounds: int) -> dict[str, dict]:
    """Return, for each contender, its milliseconds per pair, how often as fast as rouge_score it is, how far off."""
    contenders = {name: score for name, factory in make.items() if (score := factory(variants))}
    contenders["ours"](*texts)  # the stems of most words are known after the first steps of a run
    measured = []
    for _ in range(rounds):
        results = {name: timed(score, *texts) for name, score in contenders.items()}
        expected = results["rouge_score"][1]
        off = {name: largest_difference(name, values, expected) for name, (_, values) in results.items()}
        measured.append({name: time for name, (time, _) in results.items()})
    return {
        name: {
            "ms": round(statistics.median(times[name] for times in measured) / len(texts[0]), 4),
            "ratio": round(statistics.median(times["rouge_score"] / times[name] for times in measured), 1),
            "off": off[name],
        }
        for name in contenders
    }


def largest_difference(name: str, values: Scores, expected: Scores) -> float:
    """Return how far the values are off at most; ours may not be, and others by no more than single precision."""
    tolerance, largest = 0 if name.startswith("ours") else 1e-6, 0.0
    for value, right in zip(itertools.chain(*values), itertools.chain(*expected), strict=True):
        if not abs(value - right) <= tolerance:
            sys.exit(f"{name} returns {value} where rouge_score returns {right}.")
        largest = max(largest, abs(value - right))
    return largest


def comparisons(make: dict[str, Callable], language: Language, rounds: dict[int, int]) -> Iterator[dict]:
    """Yield one comparison for every metric and length, and print it."""
    names = [name for name in make if name != "rouge_score"]
    print_row("metric", "tokens", "rouge_score", *names, "least")
    for length in rounds:
        completions, references = language.texts(PAIRS[length] // GROUP, length)
        for metric, variants in VARIANTS.items():
            texts = completions, references
            if "rougeLsum" not in variants:
                texts = tuple([text.replace("\n", " ") for text in side] for side in texts)
            results = compare(make, variants, texts, rounds[length])
            least = LEAST.get((metric, length))
            ratios = [f"{results[name]['ratio']} x" if name in results else "" for name in names]
            print_row(metric, length, f"{results['rouge_score']['ms']:.2f} ms", *ratios, f"{least} x" if least else "")
            yield {"metric": metric, "tokens": length, "least_ratio": least, **results}


def step(language: Language, rounds: int) -> dict:
    """Return the time that the rewards of a training step take, each round on new texts of the same language."""
    rewards = build(STEP_REWARDS)
    times = []
    for _ in range(rounds):
        completions, references = language.texts(STEP_GROUPS, STEP_TOKENS)
        columns = {"completions": completions, "references": references}
        times.append(sum(timed(reward, **columns)[0] for reward in rewards))
    median = round(statistics.median(times), 1)
    print_row(
        f"{' + '.join(STEP_REWARDS)}, a step of {STEP_GROUPS} x {GROUP} completions of {STEP_TOKENS} tokens: "
        f"{median} ms of CPU (at most {STEP_MOST} ms)"
    )
    shape = {"groups": STEP_GROUPS, "completions": GROUP, "tokens": STEP_TOKENS}
    return {"rewards": STEP_REWARDS, **shape, "ms": median, "most_ms": STEP_MOST}


def bars_of(compared: list[dict], step: dict) -> list[dict]:
    """What must hold, and whether it does."""
    bars = [
        {"what": f"{row['metric']} of {row['tokens']} tokens", "least": least, "measured": row["ours"]["ratio"]}
        | {"holds": row["ours"]["ratio"] >= least}
        for row in compared
        if (least := row["least_ratio"])
    ]
    took = {"most": step["most_ms"], "measured": step["ms"], "holds": step["ms"] <= step["most_ms"]}
    return [*bars, {"what": "the rewards of a step, ms", **took}]


def available_peers() -> dict[str, Callable]:
    """Return the peers that are installed, and say which are left out."""
    peers = {}
    for name, factory in PEERS.items():
        try:
            factory(("rouge1",))
        except ImportError as error:
            print_row(f"{name} is left out: {error}")
        else:
            peers[name] = factory
    return peers


def environment(packages: Sequence[str]) -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def print_row(*cells: object) -> None:
    first, *rest = map(str, cells)
    sys.stdout.write(f"{first:15}" + "".join(f"{cell:>16}" for cell in rest) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--quick", action="store_true", help="one round of short texts, to see that all runs")
    options = parser.parse_args()
    rounds, step_rounds = ({min(ROUNDS): 1}, 1) if options.quick else (ROUNDS, STEP_ROUNDS)
    peers = available_peers()
    language = Language(seed=1)
    make = {"rouge_score": rouge_score, "ours": ours, "ours, new stems": ours_with_new_stems, **peers}
    about = environment(["lastmile-trl", "rouge-score", "nltk", *peers])
    compared, took = list(comparisons(make, language, rounds)), step(language, step_rounds)
    results = {**about, "comparisons": compared, "step": took, "bars": bars_of(compared, took)}
    if options.json:
        store(results, options.json)


def store(results: dict, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
