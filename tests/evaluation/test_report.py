import json
import re
import subprocess
import sys
from copy import deepcopy
from html.parser import HTMLParser

import pytest
from report_fixture import EVIL, METRICS, histories, result

from lastmile_trl.evaluation.report import write_report


class Page(HTMLParser):
    """The tags with their attributes, the table's cells row by row, and the text of every script."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.tags, self.cells, self.scripts, self.open = html, [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif "tr" in self.open and data.strip():
            self.cells[-1][-1] += data.strip() + " "

    def find(self, tag: str, **attributes) -> list[dict]:
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]


def written(tmp_path, content=None, logs=None, notes=()) -> Page:
    path = write_report(content or result(rows=4), logs or {}, tmp_path / "report.html", notes)
    return Page(path.read_text(encoding="utf-8"))


def estimate(mean, low, high, rows=4) -> dict:
    return {"mean": mean, "low": low, "high": high, "rows": rows}


def difference(mean, low, high, p, rows=4) -> dict:
    return estimate(mean, low, high, rows) | {"p": p / 4, "p_adjusted": p}


def small() -> dict:
    """Two runs, one metric that was rewarded and one that was not."""
    entry = {"decoding": "greedy", "postprocessed": False, "difference_to_postprocessed": None}
    return {
        "version": 2,
        "rows": 4,
        "baseline": "sft",
        "metrics": {"rouge": {"rewarded": True}, "repeated_3grams": {"rewarded": False}},
        "results": [
            {
                **entry,
                "run": "sft",
                "metrics": {"rouge": estimate(0.3, 0.28, 0.32), "repeated_3grams": estimate(0.1, 0.05, 0.15)},
                "difference": None,
            },
            {
                **entry,
                "run": "grpo",
                "metrics": {"rouge": estimate(0.33, 0.31, 0.35), "repeated_3grams": estimate(0.2, 0.1, 0.3)},
                "difference": {
                    "rouge": difference(0.03, 0.01, 0.04, p=0.0004),
                    "repeated_3grams": difference(0.1, 0.02, 0.2, p=0.0123),
                },
            },
        ],
        "over_seeds": [],
        "examples": [],
    }


def test_it_returns_where_it_wrote_and_makes_the_folder(tmp_path):
    path = write_report(result(rows=4), {}, tmp_path / "run" / "report.html")
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_what_a_model_wrote_stays_text(tmp_path):
    content = result(rows=4)
    content["results"][2]["run"] = "<b>grpo</b>"
    page = written(tmp_path, content, {"<i>log</i>": [{"step": 1, "reward": 1.0}]}, notes=[EVIL])
    assert EVIL not in page.html
    assert len(page.scripts) == 2 and not page.find("img") and not page.find("b") and not page.find("i", class_="")
    data = json.loads(page.scripts[0])
    assert data["examples"][0]["outputs"][0]["text"] == EVIL
    assert data["examples"][0]["prompt"] == "Summarise " + EVIL
    assert "<" not in page.scripts[0]
    assert "innerHTML" not in page.scripts[1]


def test_nothing_is_loaded_from_anywhere(tmp_path):
    page = written(tmp_path, logs=histories(20))
    assert "http://" not in page.html and "https://" not in page.html
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", page.html)
    assert not [tag for tag, attributes in page.tags if {"src", "href", "srcset"} & attributes.keys()]


def test_the_table_says_means_intervals_and_what_moved(tmp_path):
    page = written(tmp_path, small())
    head, group, sft, grpo = page.cells
    assert [cell.split() for cell in head] == [
        ["Run"],
        ["rouge", "minus", "sft"],
        ["rouge", "rewarded"],
        ["repeated_3grams"],
    ]
    assert group == ["greedy decoding "]
    assert sft == ["sft ", "baseline ", "0.300 [0.280, 0.320] ", "0.100 [0.050, 0.150] "]
    assert grpo == [
        "grpo ",
        "+0.030 [+0.010, +0.040] p < 0.001 ",
        "↑ 0.330 [0.310, 0.350] ",
        "↑ 0.200 [0.100, 0.300] worse ",
    ]


def test_a_difference_that_is_not_shown_is_drawn_open(tmp_path):
    content = small()
    assert len(written(tmp_path, content).find("td", **{"class": "gain moved"})) == 1
    # the interval alone would say otherwise of both
    content["results"][1]["difference"]["rouge"] = difference(0.01, -0.01, 0.03, p=0.05)
    content["results"][1]["difference"]["repeated_3grams"] = difference(0.1, 0.02, 0.2, p=0.2)
    page = written(tmp_path, content)
    assert not page.find("td", **{"class": "gain moved"})
    assert page.cells[3][1:3] == ["+0.010 [−0.010, +0.030] no difference shown, p = 0.050 ", "0.330 [0.310, 0.350] "]
    assert page.cells[3][3] == "0.200 [0.100, 0.300] "
    assert "a difference is shown where it is below 0.05" in page.html
    # the line reaches from -0.01 to 0.03, so 0 lies at a quarter and the mean in the middle
    zero, reach = (line for line in page.find("line") if line["class"] in ("zero", "reach"))
    assert (zero["x1"], reach["x1"], reach["x2"]) == ("25.0%", "0.0%", "100.0%")
    assert page.find("circle")[0]["cx"] == "50.0%"


def test_the_postprocessed_baseline_gets_its_own_column(tmp_path):
    page = written(tmp_path, result(rows=40))
    assert page.cells[0][1:3] == ["rouge/rougeL minus sft ", "rouge/rougeL minus sft, post-processed "]
    assert [row[1:3] for row in page.cells[2:4]][0] == ["baseline ", "– "]
    assert page.cells[3][0] == "sft post-processed " and page.cells[3][2] == "baseline "


def test_a_difference_over_fewer_rows_says_so(tmp_path):
    content = small()
    content["results"][1]["difference"]["rouge"]["rows"] = 3
    assert written(tmp_path, content).cells[3][1] == "+0.030 [+0.010, +0.040], 3 rows p < 0.001 "


def test_an_evaluation_of_version_1_has_no_p_and_says_why(tmp_path):
    content = small() | {"version": 1}
    del content["over_seeds"]
    content["results"][1]["difference"] = {
        "rouge": estimate(0.01, -0.01, 0.03),
        "repeated_3grams": estimate(0.1, 0.02, 0.2),
    }
    page = written(tmp_path, content)
    assert page.cells[3][1] == "+0.010 [−0.010, +0.030] no difference shown, p – "
    assert page.cells[3][3] == "↑ 0.200 [0.100, 0.300] worse "
    assert "There is no p, as the evaluation is of version 1" in page.html and "randomisation" not in page.html


def test_a_recipe_over_its_seeds_has_a_row_of_its_own(tmp_path):
    content = small()
    metrics = {"rouge": estimate(0.32, 0.3, 0.34), "repeated_3grams": None}
    shared = {"decoding": "greedy", "postprocessed": False, "difference_to_postprocessed": None, "metrics": metrics}
    content["over_seeds"] = [
        {"run": "sft", "seeds": ["sft", "sft-1"], "difference": None, **shared},
        {
            "run": "grpo",
            "seeds": ["grpo", "grpo-1"],
            "difference": {"rouge": difference(0.02, 0.01, 0.03, 0.01)},
            **shared,
        },
    ]
    page = written(tmp_path, content)
    assert page.cells[4] == ["sft 2 seeds ", "baseline ", "0.320 [0.300, 0.340] ", "– "]
    assert page.cells[5] == ["grpo 2 seeds ", "+0.020 [+0.010, +0.030] p = 0.010 ", "↑ 0.320 [0.300, 0.340] ", "– "]
    assert [swatch["class"] for swatch in page.find("span") if "swatch" in swatch.get("class", "")] == [
        f"swatch run-{slot}" for slot in (0, 1, 0, 1)
    ]
    assert "Over seeds, intervals and p allow for other seeds as well as other rows" in page.html


@pytest.mark.parametrize("missing", ["absent", "null"])
def test_a_metric_without_a_value_is_a_dash(tmp_path, missing):
    content = small()
    if missing == "absent":
        del content["results"][1]["metrics"]["repeated_3grams"]
        del content["results"][1]["difference"]["repeated_3grams"]
    else:
        content["results"][1]["metrics"]["repeated_3grams"] = content["results"][1]["difference"]["repeated_3grams"] = (
            None
        )
    assert written(tmp_path, content).cells[3][3] == "– "


def test_values_that_are_no_numbers_do_not_break_the_examples(tmp_path):
    content = result(rows=2)
    content["examples"][1]["outputs"][0]["metrics"]["words"] = float("nan")
    content["examples"][1]["outputs"][0]["text"] = "half a pair \ud83d"
    del content["examples"][1]["outputs"][1]
    data = json.loads(written(tmp_path, content).scripts[0], parse_constant=pytest.fail)
    first, second = data["examples"][1]["outputs"][:2]
    assert first["values"][list(METRICS).index("words")] is None and first["text"] == "half a pair ?"
    assert second is None


def test_a_conversation_is_shown_with_its_roles(tmp_path):
    data = json.loads(written(tmp_path).scripts[0])
    assert data["examples"][1]["prompt"] == "system: Be brief.\n\nuser: Hello there"


@pytest.mark.parametrize("logs", [{}, {"sft": []}, {"sft": [{"step": 3, "train_runtime": 2.0}, {"loss": 1.0}]}])
def test_without_anything_logged_there_are_no_curves(tmp_path, logs):
    page = written(tmp_path, logs=logs)
    assert not page.find("figure") and "Training</h2>" not in page.html


def test_a_curve_is_drawn_from_corner_to_corner(tmp_path):
    logs = {"grpo": [{"step": 0, "kl": 0.0}, {"step": 5, "kl": float("nan")}, {"step": 10, "kl": 0.5}]}
    page = written(tmp_path, small(), logs)
    assert page.find("polyline") == [{"points": "46.0,130.0 312.0,8.0"}]
    assert page.find("svg", role="img")[0]["aria-label"] == "kl from 0.00 to 0.50 over steps 0 to 10"


def test_one_point_and_a_constant_are_drawn_in_the_middle(tmp_path):
    page = written(tmp_path, small(), {"grpo": [{"step": 7, "kl": 0.5}]})
    assert page.find("polyline") == [{"points": "179.0,69.0"}]


def test_panels_come_in_reading_order_without_the_machine(tmp_path):
    names = re.findall(r"<figcaption>(.*?)</figcaption>", written(tmp_path, logs=histories(100)).html)
    assert names == [
        "reward",
        "rewards/rouge/rougeL/mean",
        "rewards/length/mean",
        "eval_rouge/rougeL",
        "kl",
        "completions/mean_length",
        "completions/clipped_ratio",
        "entropy",
        "loss",
        "reward_std",
    ]


def test_long_logs_are_averaged_in_equal_bins(tmp_path):
    rows = [{"step": step, "reward": float(step % 2)} for step in range(160)]
    points = written(tmp_path, small(), {"grpo": rows}).find("polyline")[0]["points"].split()
    assert len(points) == 80
    assert {point.split(",")[1] for point in points} == {"69.0"}


def test_the_result_is_left_as_it_was(tmp_path):
    content, logs = result(rows=3), histories(10)
    before = deepcopy((content, logs))
    write_report(content, logs, tmp_path / "report.html")
    assert (content, logs) == before


def test_it_takes_what_compare_returns(tmp_path):
    from lastmile_trl.evaluation.comparison import compare
    from lastmile_trl.evaluation.decoding import Output
    from lastmile_trl.rewards import build

    rows = [{"prompt": f"Say {word}.", "references": [f"it is {word}"]} for word in ("red", "green", "blue")]
    said = {run: {"greedy": [Output(text, [3, 2], True) for text in texts]} for run, texts in {
        "sft": ["it was red", "green", "it is blue. It is blue."],
        "grpo": ["it is red", "it is green", "it is blue"],
    }.items()}  # fmt: skip
    content = compare(said, rows, build(["rouge"]), rewarded={"rouge/rougeL"}, postprocessed=("sft",))
    page = written(tmp_path, content)
    assert [row[0] for row in page.cells[2:]] == ["sft ", "sft post-processed ", "grpo "]
    assert json.loads(page.scripts[0])["examples"][2]["outputs"][2]["text"] == "it is blue"


def test_importing_it_loads_nothing_heavy():
    heavy = "{'torch', 'jinja2', 'numpy', 'transformers'}"
    code = f"import sys, lastmile_trl.evaluation.report; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    """Chromium that shows the report of 300 examples."""
    path = write_report(result(rows=300), histories(), tmp_path_factory.mktemp("report") / "report.html", ["A note."])
    chromium.report = path.as_uri()
    return chromium


@pytest.fixture
def page(browser):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(browser.report)
    yield browser
    assert browser.get_log("browser") == []


def choose(page, **values):
    """Set the fields by id as a person would, the search included."""
    for name, value in values.items():
        page.execute_script(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event(field.type === 'search' ? 'input' : 'change'));",
            name,
            str(value),
        )


def texts(page, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector
    )


def test_browser_shows_twenty_rows_at_a_time(page):
    assert texts(page, "#count") == ["20 of 300 rows shown"]
    page.execute_script("document.getElementById('more').click()")
    assert texts(page, "#count") == ["40 of 300 rows shown"]
    assert texts(page, ".example h3") == [f"Row {number}" for number in range(1, 41)]
    for _ in range(13):
        page.execute_script("document.getElementById('more').click()")
    assert len(texts(page, ".example")) == 300
    assert page.execute_script("return document.getElementById('more').hidden")


def test_browser_shows_what_a_model_wrote_as_text(page):
    assert texts(page, ".example:first-child .prompt") == ["Summarise " + EVIL]
    assert texts(page, ".example:first-child .output .text")[0] == EVIL
    assert page.execute_script("return [document.scripts.length, document.images.length]") == [2, 0]


def test_browser_searches_all_words_anywhere(page):
    choose(page, search="R0123 row")
    assert texts(page, ".example h3") == ["Row 124"]
    assert texts(page, "#count") == ["1 of 1 matching rows shown"]
    choose(page, search="no such words")
    assert texts(page, "#count") == ["No row matches."] and texts(page, ".example") == []
    choose(page, search="")
    assert texts(page, "#count") == ["20 of 300 rows shown"]


def by_hand(run: int, minus: int | None = None) -> list[float]:
    """The value that a sort looks at, row by row, from the result itself."""
    outputs = [[output["metrics"]["rouge/rougeL"] for output in e["outputs"]] for e in result(rows=300)["examples"]]
    return [row[run] - (row[minus] if minus is not None else 0) for row in outputs]


@pytest.mark.parametrize(
    ("minus", "order", "rank"),
    [
        (None, "down", lambda v: -v),
        (None, "up", lambda v: v),
        (0, "down", lambda v: -v),
        (0, "size", lambda v: -abs(v)),
    ],
)
def test_browser_sorts_by_a_metric_and_by_a_difference(page, minus, order, rank):
    choose(page, metric=0, run=2, minus="" if minus is None else minus, order=order)
    values = by_hand(2, minus)
    # rounded as the page's own numbers are, so that ties fall the same way
    expected = sorted(range(300), key=lambda row: (rank(round(values[row], 9)), row))[:20]
    assert [round(values[int(title.split()[1]) - 1], 9) for title in texts(page, ".example h3")] == [
        round(values[row], 9) for row in expected
    ]
    sign = "−" if values[expected[0]] < 0 else "+" if minus is not None else ""
    assert texts(page, ".rank")[0] == f"rouge/rougeL {sign}{abs(values[expected[0]]):.3f}"


def test_browser_starts_a_sort_with_the_last_run_minus_the_baseline(page):
    choose(page, metric=0)
    chosen = "return ['run', 'minus'].map(id => document.getElementById(id).selectedOptions[0].textContent)"
    assert page.execute_script(chosen) == ["grpo-length, greedy", "sft, greedy"]


def test_browser_shows_and_hides_outputs(page):
    assert texts(page, ".example:first-child .label b") == ["sft", "sft", "grpo", "grpo-length"]
    page.execute_script("document.querySelectorAll('#columns input')[1].click()")
    page.execute_script("document.querySelectorAll('#columns input')[4].click()")
    assert texts(page, ".example:first-child .label b") == ["sft", "grpo", "grpo-length", "sft"]


def test_browser_marks_what_an_output_repeats(page):
    marked = page.execute_script("return marked('a b c d, a b c e').map(n => n.outerHTML ?? n)")
    assert marked == ["a b c d, ", "<mark>a b c</mark>", " e"]
    assert page.execute_script("return marked('a b a b').map(n => n.outerHTML ?? n)") == ["a b a b"]


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_browser_page_never_scrolls_sideways(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    choose(page, metric=0)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    scroll, client = page.execute_script(
        "const s = document.querySelector('.scroll'); return [s.scrollWidth, s.clientWidth]"
    )
    assert scroll > client or width > 1000, "a wide table scrolls inside its own box"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_text_is_readable_in_both_schemes(page, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    colours = page.execute_script(
        "const style = getComputedStyle(document.documentElement);"
        "return ['paper', 'ink', 'soft', 'accent', 'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6']"
        ".map(name => style.getPropertyValue('--' + name).trim())"
    )
    paper, *others = map(luminance, colours)
    ratios = [(max(paper, other) + 0.05) / (min(paper, other) + 0.05) for other in others]
    assert (paper > 0.5) == (scheme == "light")
    assert min(ratios) >= 4.5


def luminance(colour: str) -> float:
    """The relative luminance that contrast ratios are made of."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
