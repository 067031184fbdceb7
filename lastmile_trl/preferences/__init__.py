"""Pairs of a better and a worse answer, for a task that has references but no preferences."""
