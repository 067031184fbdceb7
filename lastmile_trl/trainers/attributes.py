"""What several trainers do to their own attributes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Other values of attributes for a while.

    >>> owner = type("Owner", (), {})()
    >>> owner.beta = 0.5
    >>> with replaced(owner, beta=0.0):
    ...     owner.beta
    0.0
    >>> owner.beta
    0.5
    """
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
