"""A comparison of three runs as `compare` returns it, and their training histories, made without a model."""

import math
import random

METRICS = {
    "rouge/rougeL": {"rewarded": True},
    "rouge/rouge2": {"rewarded": False},
    "words": {"rewarded": False},
    "length_ratio": {"rewarded": False},
    "ended": {"rewarded": False},
    "repeated_3grams": {"rewarded": False},
}
ENTRIES = [
    ("sft", "greedy", False),
    ("sft", "greedy", True),
    ("grpo", "greedy", False),
    ("grpo-length", "greedy", False),
    ("sft", "sampled", False),
    ("grpo", "sampled", False),
    ("grpo-length", "sampled", False),
]
LEVELS = {"sft": 0.31, "grpo": 0.35, "grpo-length": 0.312}
SENTENCES = (
    "Amanda baked cookies and will bring Jerry some tomorrow.",
    "Olivia and Olivier are voting for the liberals in this election.",
    "Tim asks Kim what she is doing and she is doing the laundry.",
    "Edward thinks he is in love with Bella and she is not sure.",
    "The meeting is moved to Friday at ten because Sam is ill.",
    "Hannah needs Betty's number but Amanda does not have it.",
)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & done"


def result(rows: int = 300, evil: bool = True) -> dict:
    """A result in which grpo clearly gains on its reward and grpo-length does not."""
    source = random.Random(7)
    examples = [_example(index, source) for index in range(rows)]
    if evil:
        examples[0]["outputs"][0]["text"] = EVIL
        examples[0]["prompt"] = "Summarise " + EVIL
        examples[0]["references"] = [EVIL]
        examples[1]["prompt"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
    results = []
    for position, (run, decoding, postprocessed) in enumerate(ENTRIES):
        base = ENTRIES.index(("sft", decoding, False))
        processed = ENTRIES.index(("sft", decoding, True)) if decoding == "greedy" and run != "sft" else None
        results.append(
            {
                "run": run,
                "decoding": decoding,
                "postprocessed": postprocessed,
                "metrics": {name: _interval(_values(examples, position, name)) for name in METRICS},
                "missing": {},
                "difference": None if position == base else _differences(examples, position, base),
                "difference_to_postprocessed": None
                if processed is None
                else _differences(examples, position, processed),
            }
        )
    return {
        "version": 2,
        "rows": rows,
        "baseline": "sft",
        "metrics": METRICS,
        "results": results,
        "over_seeds": [],
        "examples": examples,
    }


def _example(index: int, source: random.Random) -> dict:
    sentences = source.sample(SENTENCES, 3)
    outputs = []
    hard = source.gauss(0, 0.08)
    for run, decoding, postprocessed in ENTRIES:
        text = source.choice(sentences)
        if source.random() < (0.35 if run == "grpo" else 0.2):
            text += " " + text
        rouge = min(1.0, max(0.0, LEVELS[run] + hard + source.gauss(0, 0.1) - 0.02 * (decoding == "sampled")))
        words = len(text.split())
        outputs.append(
            {
                "run": run,
                "decoding": decoding,
                "postprocessed": postprocessed,
                "text": text,
                "metrics": {
                    "rouge/rougeL": round(rouge, 4),
                    "rouge/rouge2": round(rouge * 0.45, 4),
                    "length_ratio": round(words / 11, 3),
                    "words": float(words),
                    "repeated_3grams": 0.45 if words > 14 else 0.0,
                    "ended": float(source.random() < 0.95),
                },
            }
        )
    dialogue = "\n".join(f"{who}: {source.choice(SENTENCES)}" for who in ("Amanda", "Jerry", "Amanda", "Jerry"))
    return {
        "prompt": f"Summarize the dialogue.\n\n{dialogue}\n\nRow marker r{index:04d}\n\nSummary:",
        "references": sentences[: 1 + index % 2],
        "outputs": outputs,
    }


def _values(examples: list[dict], position: int, name: str) -> list[float]:
    return [example["outputs"][position]["metrics"][name] for example in examples]


def _differences(examples: list[dict], position: int, base: int) -> dict[str, dict]:
    return {
        name: _tested(
            [a - b for a, b in zip(_values(examples, position, name), _values(examples, base, name), strict=True)]
        )
        for name in METRICS
    }


def _tested(values: list[float]) -> dict:
    """A difference with a p by the normal approximation, corrected for the metrics of two runs."""
    found = _interval(values)
    error = (found["high"] - found["mean"]) / 1.96
    p = math.erfc(abs(found["mean"]) / error / math.sqrt(2)) if error else 1.0
    return found | {"p": p, "p_adjusted": min(1.0, 2 * len(METRICS) * p)}


def _interval(values: list[float]) -> dict:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    reach = 1.96 * spread / math.sqrt(len(values))
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "rows": len(values)}


def histories(steps: int = 400) -> dict[str, list[dict]]:
    """Logged rows of two RL runs with an evaluation every fifty steps, and of the SFT run before them."""
    source = random.Random(11)
    found: dict[str, list[dict]] = {"sft": []}
    for step in range(10, steps + 1, 10):
        found["sft"].append(
            {"step": step, "loss": 1.2 + 2 * math.exp(-step / 80) + source.gauss(0, 0.03), "grad_norm": 1.0}
        )
    for run, gain in (("grpo", 0.06), ("grpo-length", 0.02)):
        rows = found[run] = []
        for step in range(1, steps + 1):
            progress = 1 - math.exp(-step / 120)
            rows.append(
                {
                    "step": step,
                    "reward": 0.3 + gain * progress + source.gauss(0, 0.02),
                    "reward_std": 0.1 - 0.03 * progress + source.gauss(0, 0.01),
                    "rewards/rouge/rougeL/mean": 0.31 + gain * progress + source.gauss(0, 0.02),
                    "rewards/rouge/rougeL/std": 0.1,
                    "rewards/length/mean": -0.05 + gain * progress / 2 + source.gauss(0, 0.01),
                    "kl": 0.02 * progress + abs(source.gauss(0, 0.001)),
                    "completions/mean_length": 24 - 5 * progress + source.gauss(0, 1),
                    "completions/clipped_ratio": 0.0,
                    "entropy": 1.1 - 0.4 * progress + source.gauss(0, 0.04),
                    "loss": source.gauss(0, 0.01),
                }
            )
            if step % 50 == 0:
                rows.append({"step": step, "eval_rouge/rougeL": 0.31 + gain * progress, "eval_runtime": 12.0})
        rows.append({"step": steps, "train_runtime": 900.0, "train_loss": 0.0})
    return found
