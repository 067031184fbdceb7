"""A reward that gives a process time to be killed in, and to save in between."""

import os
import time


def slowly(completions, **columns):
    """Fewer characters are better, which takes a moment to see."""
    time.sleep(float(os.environ.get("SECONDS_PER_REWARD", 0)))
    return [-len(text) / 40 for text in completions]
