"""What an evaluation takes beside its decoding, in CPU time: `python benchmarks/evaluation.py [--json FILE]`.

1,000 made-up rows with texts of some 60 words, three runs, each greedy and sampled, the first also post-processed; the
default metrics and `novelty`. The parts are timed one after the other, as an evaluation has them.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards import environment

from lastmile_trl import synthetic
from lastmile_trl.evaluation.comparison import compare
from lastmile_trl.evaluation.decoding import Output
from lastmile_trl.evaluation.metrics import corpus_metrics
from lastmile_trl.evaluation.report import write_report
from lastmile_trl.recipe import Evaluation
from lastmile_trl.rewards import build

ROWS = 1000
RUNS = {"sft": 0.5, "grpo": 0.3, "ppo": 0.2}  # the share of the words that are not those of the reference
METRICS = [*Evaluation().metrics, "novelty"]
MOST = 10  # seconds


def rows_of(count: int) -> list[dict[str, Any]]:
    """Rows whose reference is a note after its summary."""
    notes = synthetic.load("notes", rows=count)
    return [
        {"prompt": row["note"], "note": row["note"], "references": [f"{row['summary']} {row['note']}"]} for row in notes
    ]


def outputs_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Output]]]:
    """The reference of each row with other words in it, and now and then a sentence twice."""
    drawn = random.Random(0)
    words = [word for row in rows for word in row["references"][0].split()]

    def text(reference: str, share: float) -> str:
        said = [drawn.choice(words) if drawn.random() < share else word for word in reference.split()]
        return " ".join([*said, *(said[:9] if drawn.random() < share else [])])

    return {
        run: {
            decoding: [Output(text(row["references"][0], share), None, drawn.random() > 0.1) for row in rows]
            for decoding in ("greedy", "sampled")
        }
        for run, share in RUNS.items()
    }


def measure(count: int) -> dict[str, float]:
    """CPU seconds of each part."""
    rows = rows_of(count)
    outputs, metrics, seconds = outputs_of(rows), build(METRICS), {}

    def timed(what: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = call()
        seconds[what] = time.process_time() - start
        return made

    with tempfile.TemporaryDirectory() as folder:
        compared = timed(
            "scores and statistics",
            lambda: compare(outputs, rows, metrics, rewarded={"rouge/rougeL"}, postprocessed=["sft"]),
        )
        compared["corpus"] = timed("what describes all texts", lambda: corpus_metrics(outputs, rows, "note"))
        path = Path(folder, "evaluation.json")
        timed("evaluation.json", lambda: path.write_text(json.dumps(compared, indent=1)))
        timed("report.html", lambda: write_report(compared, {}, Path(folder, "report.html")))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    seconds = {what: round(took, 2) for what, took in measure(options.rows).items()}
    results = {
        **environment(["lastmile-trl", "numpy"]),
        "rows": options.rows,
        "runs": list(RUNS),
        "metrics": METRICS,
        "seconds": seconds,
        "total": round(sum(seconds.values()), 2),
        "most": MOST,
    }
    for what, took in [*seconds.items(), ("together", results["total"])]:
        sys.stdout.write(f"{what:28}{took:6.2f} s\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
