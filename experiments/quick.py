"""Re-run the main findings in small and hold them against what is stored: `python experiments/quick.py`, on two cores.

One seed on the work notes, the arms that these need, less training (models_quick.yaml). What is compared is the sign:
exits with 1 if one comes out the other way. `--json FILE` keeps what was found.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from lab import RUNS, Experiment, Task, machine  # noqa: E402
from pages import made  # noqa: E402
from tables import signed  # noqa: E402

NAMES = ("rl_or_sft", "guidance", "perplexity", "ablations")
SEED, TASK = 0, Task("notes")


def experiment(name: str) -> Experiment:
    """That of a folder."""
    spec = importlib.util.spec_from_file_location(f"{name}_experiment", HERE / name / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EXPERIMENT


def lines(tried: Experiment, now: dict) -> Iterator[tuple[bool, str]]:
    """For every claim that a quick run decides: whether its sign is that of the stored results, and a line."""
    kept = {claim.key: found for claim, found in made(tried, TASK, tried.stored(TASK.name))}
    for claim, found in made(tried, TASK, {SEED: now}):
        if claim.quick:
            same = found["mean"] * kept[claim.key]["mean"] > 0
            word = "as stored" if same else "THE OTHER WAY ROUND"
            yield same, f"{word}: {claim.said}: {found['mean']:+.3f} now, {signed(kept[claim.key])} stored"


def main() -> int:
    """Whether a claim came out the other way; prints, and stores where that is asked for, what was compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to keep what was found, and how long it took")
    kept = parser.parse_args().json
    began, told, root = time.monotonic(), [], RUNS / "quick" / TASK.name
    TASK.prepare(None, root, yaml.safe_load((HERE / "models_quick.yaml").read_text()))
    for name in NAMES:
        tried = experiment(name)
        found = list(lines(tried, tried.run(TASK, SEED, root, quick=True)))
        print("\n", *(f"{line}\n" for _, line in found))
        told += found
    wrong = sum(not same for same, _ in told)
    minutes = (time.monotonic() - began) / 60
    print(f"{len(told) - wrong} of {len(told)} as stored, in {minutes:.0f} minutes.")
    if kept:
        found = {"machine": machine(), "minutes": round(minutes, 1), "lines": [line for _, line in told]}
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return min(wrong, 1)


if __name__ == "__main__":
    raise SystemExit(main())
