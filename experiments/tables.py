"""Cells of the experiments' tables, and where they go in a page."""


def cell(estimate: dict | None) -> str:
    """A mean with its 95 % interval."""
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" if estimate else ""


def signed(estimate: dict | None) -> str:
    """A difference with its 95 % interval."""
    return f"{estimate['mean']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]" if estimate else ""


def with_table(page: str, mark: str, text: str) -> str:
    """The page with the table between `<!-- mark -->` and `<!-- end -->` replaced."""
    before, found, rest = page.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not (found and end):
        raise SystemExit(f"no <!-- {mark} --> ... <!-- end --> in the page")
    return f"{before}{found}{text}{end}{after}"
