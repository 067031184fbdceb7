"""Cells of the experiments' tables, and where they go in a page."""

import re


def cell(estimate: dict | None) -> str:
    """A mean with its 95 % interval."""
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" if estimate else ""


def signed(estimate: dict | None) -> str:
    """A difference with its 95 % interval."""
    return f"{estimate['mean']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]" if estimate else ""


def span(values: list[float], digits: str = ".0f") -> str:
    """From the least to the largest: "4 to 11"."""
    return " to ".join(dict.fromkeys(format(value, digits) for value in (min(values), max(values))))


def with_text(page: str, mark: str, text: str) -> str:
    """The page with what stands between each `<!-- mark -->` and `<!-- end -->` replaced."""
    begin, end = f"<!-- {mark} -->", "<!-- end -->"
    between = f"(?<={re.escape(begin)})((?!<!--).)*(?={end})"
    page, filled = re.subn(between, lambda _: text, page, flags=re.DOTALL)
    if not filled or filled != page.count(begin):
        raise SystemExit(f"no {begin} ... {end} in the page")
    return page


def with_table(page: str, mark: str, text: str) -> str:
    """The page with the table between `<!-- mark -->` and `<!-- end -->` replaced."""
    return with_text(page, mark, f"\n{text}")
