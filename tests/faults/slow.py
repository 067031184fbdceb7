"""A reward that gives a process time to be stopped in, and that can fail in one process of several."""

import os
import time


def slowly(completions, **columns):
    """Fewer characters are better, which takes a moment to see."""
    time.sleep(float(os.environ.get("SECONDS_PER_REWARD", 0)))
    if os.environ.get("REWARD_FAILS_IN") == os.environ.get("RANK", "0"):
        raise ValueError("a fault of this process alone")
    return [-len(text) / 40 for text in completions]
