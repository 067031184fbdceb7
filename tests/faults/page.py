"""docs/errors.md, made of the table that the tests try: python -m tests.faults.page > docs/errors.md."""

import sys

from .bad_inputs import TABLE

HEAD = """# What an error says, and what to do

Wrong input is refused before a model loads: with one line that begins with `Error:` for each problem, and exit code 2.
A run that fails for a known reason ends with such a line too, and exit code 1. `--debug` shows where in the code it
was. `lastmile check RECIPE` finds all of it in seconds and starts nothing.

Every line says what is wrong, where, and what to do. Below, `...` stands for what differs from case to case. Each line
is tried by a test (`tests/faults`), of which this page is made.
"""


def page() -> str:
    """The whole page."""
    themes = [
        f"## {theme}\n\n| what is wrong | what is said |\n|---|---|\n"
        + "".join(f"| {wrong} | ``{says.removeprefix('recipe.yaml: ')}`` |\n" for wrong, _, says in cases)
        for theme, cases in TABLE.items()
    ]
    return "\n".join([HEAD, *themes])


if __name__ == "__main__":
    sys.stdout.write(page())
