"""Code of the user's own, which a recipe names as ``package.module:attribute``."""

import importlib
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

from .errors import InputError, nearest
from .screen import note


@cache
def _announce(path: str, what: str) -> None:
    """Say whose code is about to run, once: of the processes of a stage, the first to know."""
    launched = "LASTMILE_PROCESSES" in os.environ or os.environ.get("RANK", "0") != "0"
    if not launched and (where := place(path)):
        note(f"{what} runs code of {where}.")


def place(path: str) -> str | None:
    """Where the code lies that a path names, which is not run to tell; None where there is none.

    >>> place("json.tool:main").endswith("json/tool.py"), place("nowhere:found")
    (True, None)
    """
    package, *inner = path.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # no name of a package
        return None
    if spec is None or not spec.submodule_search_locations:
        return spec and spec.origin
    whole = Path(spec.submodule_search_locations[0], *inner)
    return str(whole / "__init__.py" if whole.is_dir() else whole.with_suffix(".py"))


def find(path: str, what: str) -> Any:
    """Import what a path names, which is said on the screen first; ``what`` says whose it is, there and in an error.

    >>> find("math:sqrt", "Reward 'math:sqrt'")(9)
    3.0
    """
    module_name, _, attribute = path.partition(":")
    if not module_name.startswith("lastmile_trl."):
        _announce(path, what)
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
