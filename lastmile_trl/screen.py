"""What a person is told while something runs, on standard error: standard output is for results."""

import sys


def note(text: str) -> None:
    """One line for the person watching."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
