"""How often an evaluation sees a difference, of none and of some: `python benchmarks/significance.py [--json FILE]`.

Data are drawn many times in which nothing differs, and what calls itself significant is counted: the interval and the p
of one difference over rows, and those over seeds and rows, these also where something does differ.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np

from lastmile_trl.evaluation.significance import LEVEL, over_seeds, paired, randomisations

TRIALS = 3000
ROWS = [20, 50, 300]
SEEDS, ROWS_OF_SEEDS = [2, 3, 5], [50, 300]
SHARES = [0, 1, 10]  # of the seeds in the variance of the mean, to that of the rows
ERRORS = [0, 3, 5]  # how large a difference is, in standard errors of the mean


def rouge(source: np.random.Generator, trials: int, rows: int) -> np.ndarray:
    """Two runs, alike, whose scores share how hard a row is, skewed and cut off at 0 and 1."""
    hard = source.normal(0, 0.15, size=(trials, rows))
    first, second = (np.clip(source.beta(1.5, 4, size=(trials, rows)) + hard, 0, 1) for _ in range(2))
    return first - second


def zero_one(source: np.random.Generator, trials: int, rows: int) -> np.ndarray:
    """A row is solved with a chance of its own, near 0 or 1 for most."""
    chance = source.beta(0.5, 0.5, size=(trials, rows))
    first, second = ((source.random((trials, rows)) < chance).astype(float) for _ in range(2))
    return first - second


def skewed(source: np.random.Generator, trials: int, rows: int) -> np.ndarray:
    """Many small losses and few large gains, level on the whole: not what two runs that are alike would give."""
    return source.exponential(size=(trials, rows)) - 1


NULLS = {  # what is drawn -> what the page calls it
    rouge: "as of ROUGE: two runs alike, skewed scores, hard and easy rows",
    zero_one: "as of a metric of 0 and 1: two runs alike, most rows solved nearly always or never",
    skewed: "level on average, but many small losses and few large gains (exponential)",
}


def crossed(source: np.random.Generator, trials: int, seeds: int, rows: int, spread: float) -> np.ndarray:
    """Differences of seeds x rows; `spread` is the standard deviation of the seeds' own."""
    of_rows = source.exponential(size=(trials, 1, rows)) - 1
    return of_rows + source.normal(size=(trials, seeds, rows)) + spread * source.normal(size=(trials, seeds, 1))


def error_of_rows(seeds: int, rows: int) -> float:
    """The standard error of the mean of `crossed` where the seeds have no share in it."""
    return ((1 + 1 / seeds) / rows) ** 0.5


def spread_of(share: float, seeds: int, rows: int) -> float:
    """The spread of the seeds that gives them this share."""
    return error_of_rows(seeds, rows) * (share * seeds) ** 0.5


def of_rows(trials: int) -> list[dict]:
    """False alarms of one difference, by the interval and by p."""
    found = []
    for null, rows in product(NULLS, ROWS):
        drawn = null(np.random.default_rng(rows), trials, rows).tolist()
        intervals = np.mean([paired(row, [0.0] * rows).excludes_zero for row in drawn])
        p = np.mean([value < LEVEL for value in randomisations(drawn)])
        found.append({"null": null.__name__, "rows": rows, "interval": float(intervals), "p": float(p)})
    return found


def of_seeds(trials: int) -> list[dict]:
    """How often differences of several seeds are found, by their size."""
    found = []
    for seeds, rows, share in product(SEEDS, ROWS_OF_SEEDS, SHARES):
        drawn = crossed(np.random.default_rng(seeds * rows + share), trials, seeds, rows, spread_of(share, seeds, rows))
        error = error_of_rows(seeds, rows) * (1 + share) ** 0.5
        shown = {
            str(size): float(np.mean([over_seeds(values + size * error).p < LEVEL for values in drawn]))
            for size in ERRORS
        }
        found.append({"seeds": seeds, "rows": rows, "share": share, "found": shown})
    return found


def rows_table(results: dict) -> str:
    """Kinds of data x rows."""
    names = {null.__name__: text for null, text in NULLS.items()}
    lines = ["| differences of a row | rows | interval without 0 | p below 0.05 |", "|---|---:|---:|---:|"]
    for row in results["of_rows"]:
        name = names.pop(row["null"], "")
        lines.append(f"| {name} | {row['rows']} | {100 * row['interval']:.1f} % | {100 * row['p']:.1f} % |")
    return "\n".join(lines) + "\n"


def seeds_table(results: dict) -> str:
    """Seeds x the size of the difference: the least and the most of all rows and shares."""
    lines = ["| seeds | false alarms | a difference of 3 standard errors is found | of 5 |", "|---:|" + "---:|" * 3]
    for seeds in SEEDS:
        cells = []
        for size in ERRORS:
            shares = [100 * row["found"][str(size)] for row in results["of_seeds"] if row["seeds"] == seeds]
            cells.append(f"{min(shares):.0f} to {max(shares):.0f} %")
        lines.append(f"| {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from rewards import environment

    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--trials", type=int, default=TRIALS)
    options = parser.parse_args()
    trials = options.trials
    results = {
        **environment(["lastmile-trl", "numpy"]),
        "trials": trials,
        "of_rows": of_rows(trials),
        "of_seeds": of_seeds(trials),
    }
    sys.stdout.write(f"{rows_table(results)}\n{seeds_table(results)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
