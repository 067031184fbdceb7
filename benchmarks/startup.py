"""How long a person waits for our command and TRL's, started in turns: `python benchmarks/startup.py [--json FILE]`.

CPU time is that of the command and all it starts; the time waited is longer where the machine does other work too.
`1b.yaml` trains a model so large that `lastmile check` tells its memory, after all else that it finds is printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gpu import MODELS as LLAMAS
from rewards import environment, store
from trainers import tokenizer

RECIPE = """
method: sft
model: {{model_name_or_path: {model}, use_peft: true}}
data: {{path: rows.jsonl, prompt: "{{input}}", references: output, held_out: 100}}
"""
MODELS = {"tiny.yaml": "synthetic:tiny", "1b.yaml": "model"}
COMMANDS = [
    "lastmile --help",
    "trl --help",
    "lastmile run --help",
    "trl grpo --help",
    "lastmile check tiny.yaml",
    "lastmile check 1b.yaml",
]
MOST = {"lastmile --help": 0.3, "lastmile check tiny.yaml": 3}  # seconds of CPU


def write_task(folder: str) -> None:
    """Write the recipes, their 2,000 rows, and of a Llama of 1 billion weights all but these."""
    for name, model in MODELS.items():
        Path(folder, name).write_text(RECIPE.format(model=model))
    rows = ({"input": f"text {n} " * 20, "output": f"word {n}"} for n in range(2000))
    Path(folder, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer(64).save_pretrained(Path(folder, "model"))
    Path(folder, "model", "config.json").write_text(json.dumps({"model_type": "llama", **LLAMAS["1B"]}))


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(command: str, folder: str) -> tuple[float, float]:
    """Return the seconds of CPU that a command takes, and those that one waits for it."""
    program, *words = command.split()
    words = [str(Path(sys.executable).with_name(program)), *words]
    cpu, clock = cpu_of_children(), time.perf_counter()
    subprocess.run(words, cwd=folder, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return cpu_of_children() - cpu, time.perf_counter() - clock


def measure(rounds: int) -> list[dict]:
    """The medians of each command."""
    with tempfile.TemporaryDirectory() as folder:
        write_task(folder)
        starts = [{command: start(command, folder) for command in COMMANDS} for _ in range(rounds)]
    rows = []
    for command in COMMANDS:
        cpu, waited = (
            round(statistics.median(values), 2) for values in zip(*(each[command] for each in starts), strict=True)
        )
        rows.append({"command": command, "cpu": cpu, "waited": waited, "most": MOST.get(command)})
    return rows


def bars_of(rows: list[dict]) -> list[dict]:
    """What must hold, and whether it does."""
    return [
        {"what": f"{row['command']}, s", "most": row["most"], "measured": row["cpu"]}
        | {"holds": row["cpu"] <= row["most"]}
        for row in rows
        if row["most"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--rounds", type=int, default=7, help="starts of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one start of each, to see that all runs")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    rows = measure(rounds)
    for row in rows:
        sys.stdout.write(f"{row['command']:28}{row['cpu']:6.2f} s of CPU{row['waited']:8.2f} s waited\n")
    about = environment(["lastmile-trl", "trl", "torch", "transformers"])
    if options.json:
        store({**about, "rounds": rounds, "commands": rows, "bars": bars_of(rows)}, options.json)


if __name__ == "__main__":
    main()
