"""How long a person waits: medians over 7 starts, ours and TRL's in turns, `python benchmarks/startup.py`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """
method: sft
model: {model_name_or_path: model}
data: {path: rows.jsonl, prompt: "{input}", references: output, held_out: 100}
"""
COMMANDS = {
    "lastmile --help": ["lastmile", "--help"],
    "lastmile check recipe.yaml": ["lastmile", "check", "recipe.yaml"],
    "trl --help": ["trl", "--help"],
    "trl grpo --help": ["trl", "grpo", "--help"],
}


def main() -> None:
    """Time all commands in a folder with 2,000 rows and a model's config."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "recipe.yaml").write_text(RECIPE)
        rows = ({"input": f"text {n} " * 20, "output": f"word {n}"} for n in range(2000))
        Path(folder, "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path(folder, "model").mkdir()
        Path(folder, "model", "config.json").write_text(json.dumps({"model_type": "llama"}))
        seconds = {name: [] for name in COMMANDS}
        for _ in range(7):
            for name, (program, *words) in COMMANDS.items():
                start = time.perf_counter()
                command = [str(Path(sys.executable).with_name(program)), *words]
                subprocess.run(
                    command, cwd=folder, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
                )
                seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        sys.stdout.write(f"{name:28}{statistics.median(values):6.2f} s\n")


if __name__ == "__main__":
    main()
