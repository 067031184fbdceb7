"""Every figure that the pages call measured is read from a stored result."""

import re

import pytest

from tests.conftest import script

figures = script("docs/figures.py")


def test_the_pages_show_what_was_measured():
    for page in figures.PAGES:
        text = page.read_text(encoding="utf-8")
        assert figures.filled(text) == text, f"{page.name} differs from the results: python docs/figures.py"


def test_figures_by_hand(monkeypatch):
    assert [figures.span(values) for values in ([11.4, 4.6], [2.4, 1.6])] == ["5 to 11", "2"]
    of_seeds = [{"seconds": {"sft": 60, "grpo": 120, "ppo": 999}}, {"seconds": {"sft": 240, "grpo": 60, "ppo": 999}}]
    monkeypatch.setattr(figures, "results", lambda pattern: of_seeds)
    assert figures.quickstart_minutes("sft", "grpo") == "3 to 5"
    timed = {"ours": {"ratio": 30}, "ours, new stems": {"ratio": 8}, "other": {"ratio": 90}}
    rows = [timed | {"tokens": 120}, {"ours": {"ratio": 99}, "ours, new stems": {"ratio": 1}, "tokens": 500}]
    monkeypatch.setattr(figures, "result", lambda pattern: {"comparisons": rows})
    assert figures.rouge_factors(120) == "8 to 30"


def test_a_result_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match=r"No stored result is benchmarks/results/none-\*\.json"):
        figures.result("benchmarks/results/none-*.json")


def test_every_figure_is_shown():
    pages = "".join(page.read_text(encoding="utf-8") for page in figures.PAGES)
    assert [name for name in figures.FIGURES if f"<!-- figure {name} -->" not in pages] == []


def test_a_figure_is_filled_in_wherever_its_mark_is(monkeypatch):
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
def test_a_mark_that_cannot_be_filled_is_refused(monkeypatch, page, said):
    monkeypatch.setattr(figures, "FIGURES", {"gain": lambda: "+0.055"})
    with pytest.raises(SystemExit, match=said):
        figures.filled(page)


@pytest.mark.parametrize("recipe", figures.HEADS)
def test_the_heads_of_recipes_say_what_was_measured(recipe):
    text = (figures.ROOT / recipe).read_text(encoding="utf-8")
    assert f"# Measured on: {figures.HEADS[recipe]()}\n" in text, "python docs/figures.py"
    assert figures.headed(recipe, text.replace("# Measured on: 2", "# Measured on: 200")) == text


def test_no_mark_begins_a_line_of_a_paragraph():
    """There Markdown takes it for HTML, and shows the rest of the line as it is."""
    for page in figures.PAGES:
        assert not re.search(r"^<!-- figure [^>]*-->.", page.read_text(encoding="utf-8"), re.MULTILINE), page.name


# --- no figure without a mark --------------------------------------------------------------------------------------

NO_PROSE = re.compile(
    r"```.*?```|(`+).*?(?<!`)\1(?!`)"  # code
    r"|<!-- (?!end -->)((?!<!--).)* -->.*?<!-- end -->"  # what has a mark
    r"|<[^>]*>|\]\([^)]*\)|arXiv [\d.]+",
    re.DOTALL,
)
WORD = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|half an?|quarter of an"
NUMBER = rf"\b(?:\d[\d,]*|{WORD})"
UNIT = r"(?:%|percent|times|x|ms|seconds?|minutes?|hours?|days?|[KMG]i?B)"
RATIO = r"(?<!`\s)\b(?:times|twice|half|thirds?|quarters?|fifths?|tenths?)\s(?:as\s\w+|faster|slower|more|less|fewer)"
MEASURED = re.compile(rf"\d*\.\d+|{NUMBER}(?: and a half)?\s?{UNIT}(?!\w)|{RATIO}")
NOT_MEASURED = {  # page -> what is no result of ours
    "README.md": {
        "their\n95 % interval": "the level",
        "the reference\nthree times": "a text",
        "24 GB card": "hardware",
        "Apache 2.0": "a version",
    },
    "choosing.md": {
        "0.6 million weights": "a size",
        "95 % interval": "the level",
        "SFT at 0.5 is": "a temperature",
        "a temperature of 0.5": "likewise",
        "ten times the rate of full": "a setting",
        "at three times.": "likewise",
    },
    "evaluation.md": {
        "for ten minutes and for five times as long": "a setting",
        "95 % percentile bootstrap": "the level",
        "below 0.05": "the level",
        "a false alarm is 5 %": "the level",
        "an alarm at 5 %": "the level",
        "below 0.0001": "1 in 10,000",
        "p = 0.03": "2 of 64 signs",
        "sampled four times": "a setting",
        "four\ntimes the time": "the same setting",
        "vLLM 0.30.0": "a version",
        "95 % bootstrap": "the level",
    },
    "memory.md": {
        "100 MiB and more": "a setting",
        "(0.6 GiB is assumed)": "said to be no result",
        "(5 % more than its tensors is assumed)": "said to be no result",
    },
    "preferences.md": {"30 to 80 % of the reference": "a setting"},
    "rewards.md": {
        "the reference three times": "a text",
        "four times as much as precision": "beta squared",
        "squared times as much as precision": "beta squared",
        "listed twice counts once": "a definition",
        "twice as much costs 1": "a definition",
    },
    "running.md": {"30 seconds after it got the signal": "a setting of torchrun"},
    "sharing.md": {
        "four times, after 2, 10, 30 and 60 seconds": "a setting",
        "five minutes at most": "a setting",
        "half an hour": "the sum of these",
    },
}


def unmarked(page: str) -> list[str]:
    """What reads like a measured figure and has no mark."""
    return [found[0] for found in MEASURED.finditer(NO_PROSE.sub("`", page))]


@pytest.mark.parametrize(
    "text, found",
    [
        (
            "It took 5 minutes, two and a half\nhours, a quarter of an hour.",
            ["5 minutes", "two and a half\nhours", "quarter of an hour"],
        ),
        ("| GRPO | 0.690 | 6.9 % | .5 |", ["0.690", "6.9", ".5"]),
        ("Many times faster, twice as fast, a fifth slower.", ["times faster", "twice as fast", "fifth slower"]),
        ("It is <!-- figure factor -->12<!-- end --> times as fast, not 3 x.", ["3 x"]),
        ("`0.2` and ``1.0 ` 2.0`` in <!-- figure gain -->+0.055<!-- end --> of [it](page-1.5.md)", []),
        ("<!-- table -->\n| 0.690 |\n<!-- end -->\n```\n5 minutes\n```\n<img alt='0.5'>, 3 seeds, in 2017.", []),
    ],
)
def test_what_reads_like_a_measured_figure(text, found):
    assert unmarked(text) == found


PAGES = {
    page.name: page.read_text(encoding="utf-8")
    for page in figures.PAGES
    if page.parent in (figures.ROOT, figures.ROOT / "docs")
}


@pytest.mark.parametrize("name", PAGES)
def test_no_page_has_a_figure_without_a_mark(name):
    text, known = PAGES[name], NOT_MEASURED.get(name, {})
    assert [phrase for phrase in known if phrase not in text] == [], "drop what the page no longer says"
    for phrase in known:
        text = text.replace(phrase, "")
    assert unmarked(text) == [], "mark it <!-- figure NAME -->, or say in NOT_MEASURED what it is"
