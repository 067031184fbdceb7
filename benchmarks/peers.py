"""All that is measured beside our peers, in one run: `make peers`, or `python benchmarks/peers.py` with them installed.

Runs `rewards.py`, `trainers.py` and `startup.py` one after the other, stores their figures in `results/` under today's
date, and writes the README and what other pages say of them anew.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import readme
import rewards
import trainers

FOLDER = Path(__file__).parent
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as CPU times are compared
FEW_TRAINERS = ["--quick", "--tunings", "full", "--epochs", "4", "--methods", "RLOO", "PPO"]


def measure(folder: Path, quick: bool = False, rounds: int | None = None) -> list[dict]:
    """Run the scripts, store their figures in the folder, and return the bars they state."""
    often = ["--rounds", str(rounds)] if rounds else []
    parts = {"rewards": [], "trainers": often, "startup": often}
    if quick:
        parts = {"rewards": ["--quick"], "trainers": FEW_TRAINERS, "startup": ["--quick"]}
    bars = []
    for part, words in parts.items():
        file = folder / f"{part}-{datetime.date.today()}.json"
        command = [sys.executable, FOLDER / f"{part}.py", "--json", file, *words]
        subprocess.run(command, check=True, env=os.environ | ONE_THREAD)
        bars += json.loads(file.read_text())["bars"]
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of the trainers, and starts of each command")
    parser.add_argument("--quick", action="store_true", help="see that all runs; nothing is stored")
    options = parser.parse_args()
    if options.quick and options.rounds:
        parser.error("--quick has one round: leave --rounds out.")
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), quick=True)
        return
    if len(rewards.available_peers()) < len(rewards.PEERS) or not trainers.old_python(trainers.OLD_VENV):
        sys.exit("Not all peers are there: install them with `make peers`, or pip install '.[peers]'.")
    bars = measure(FOLDER / "results", rounds=options.rounds)
    readme.write()
    subprocess.run([sys.executable, FOLDER.parent / "docs" / "figures.py"], check=True)
    missed = [bar for bar in bars if not bar["holds"]]
    sys.stdout.write(f"\n{len(bars) - len(missed)} of {len(bars)} bars hold: see {FOLDER / 'README.md'}\n")
    for bar in missed:
        sys.stdout.write(f"missed: {json.dumps(bar)}\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
