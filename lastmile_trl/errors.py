"""What the user did that cannot work, said in one sentence."""


class InputError(Exception):
    """Wrong input: the message says what is wrong, where, and what to do. The command exits with 2."""


class RunError(Exception):
    """A run that failed for a known reason. The command exits with 1."""
