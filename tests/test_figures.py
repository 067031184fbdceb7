"""Every figure that the pages call measured is read from a stored result."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def figures():
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_show_what_was_measured(figures):
    for page in figures.PAGES:
        text = page.read_text(encoding="utf-8")
        assert figures.filled(text) == text, f"{page.name} differs from the results: python docs/figures.py"


def test_every_figure_is_shown(figures):
    pages = "".join(page.read_text(encoding="utf-8") for page in figures.PAGES)
    assert [name for name in figures.FIGURES if f"<!-- figure {name} -->" not in pages] == []


def test_a_figure_is_filled_in_wherever_its_mark_is(figures, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"gain": lambda: "+0.055", "time": lambda: r"\1"})
    page = """Gains <!-- figure gain -->0<!-- end -->, in
<!-- table -->
| <!-- figure gain --><!-- end --> |
not <!-- figure time -->a
b<!-- end -->."""
    expected = """Gains <!-- figure gain -->+0.055<!-- end -->, in
<!-- table -->
| <!-- figure gain -->+0.055<!-- end --> |
not <!-- figure time -->\\1<!-- end -->."""
    assert figures.filled(page) == expected


@pytest.mark.parametrize(
    "page, said",
    [
        ("<!-- figure gaim -->1<!-- end -->", "No figure is called 'gaim'"),
        ("<!-- figure gain -->1 <!-- figure gain -->2<!-- end -->", "no <!-- figure gain --> ... <!-- end -->"),
        ("<!-- figure gain -->1", "no <!-- figure gain --> ... <!-- end -->"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_refused(figures, monkeypatch, page, said):
    monkeypatch.setattr(figures, "FIGURES", {"gain": lambda: "+0.055"})
    with pytest.raises(SystemExit, match=said):
        figures.filled(page)


def test_no_mark_begins_a_line_of_a_paragraph(figures):
    """There Markdown takes it for HTML, and shows the rest of the line as it is."""
    for page in figures.PAGES:
        assert "\n<!-- figure" not in page.read_text(encoding="utf-8"), page.name
