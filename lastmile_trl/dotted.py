"""Code of the user's own, which a recipe names as ``package.module:attribute``."""

import importlib
from typing import Any

from .errors import InputError, nearest


def find(path: str, what: str) -> Any:
    """Import what a path names; ``what`` says in an error whose it is.

    >>> find("math:sqrt", "Reward 'math:sqrt'")(9)
    3.0
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{what}: importing {module_name!r} failed with {type(error).__name__}: {error}; "
            "is it installed, or its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, attribute):
        close = nearest(attribute, vars(module))
        hint = f": did you mean '{close}'?" if close else "."
        raise InputError(f"{what}: module '{module_name}' has no '{attribute}'{hint}")
    return getattr(module, attribute)
