import json
import re
import subprocess
import sys
import time
from copy import deepcopy
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from report_fixture import ENTRIES, EVIL, LEVELS, METRICS, histories, result

from lastmile_trl.evaluation.charts import distributions
from lastmile_trl.evaluation.examples import browser as browser_of
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


LOOKS = {"sft": "run-0", "grpo": "run-1"}


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
    assert not [tag for tag, attributes in page.tags if {"src", "srcset"} & attributes.keys()]
    links = [attributes["href"] for _, attributes in page.tags if "href" in attributes]
    assert links == ["#distributions", "#curves", "#examples"]
    assert {link[1:] for link in links} <= {attributes.get("id") for _, attributes in page.tags}


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
    assert page.cells[2][1:3] == ["baseline ", "– it is the baseline itself "]
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
    assert page.cells[4] == ["sft 2 seeds ", "baseline ", "0.320 [0.300, 0.340] ", "– no row has a value "]
    assert page.cells[5] == [
        "grpo 2 seeds ",
        "+0.020 [+0.010, +0.030] p = 0.010 ",
        "↑ 0.320 [0.300, 0.340] ",
        "– no row has a value ",
    ]
    assert [swatch["class"] for swatch in page.find("span") if "swatch" in swatch.get("class", "")] == [
        f"swatch run-{colour}" for colour in (0, 1, 0, 1)
    ]
    assert "Over seeds, intervals and p are those of Student&#39;s t, which allow for other seeds" in page.html


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
    assert written(tmp_path, content).cells[3][3] == "– no row has a value "


def test_every_dash_of_the_table_says_why(tmp_path):
    content = small()
    content["results"][1]["metrics"]["rouge"] = content["results"][1]["difference"]["rouge"] = None
    content["results"][1]["missing"] = {"rouge": "the row has a <single> reference"}
    content["over_seeds"] = [
        {**content["results"][0], "run": "sft", "seeds": ["sft", "sft-1"]},
        {**content["results"][1], "run": "grpo", "seeds": ["grpo", "grpo-1"]}
        | {"difference": {"rouge": difference(0.1, 0.05, 0.2, p=0.01), "repeated_3grams": None}},
    ]
    page = written(tmp_path, content)
    dash = "– the row has a <single> reference "
    assert page.cells[3][1:3] == [dash, dash] and "<single>" not in page.html
    assert not [cell for row in page.cells for cell in row if cell.strip() == "–"]


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
    page = written(tmp_path, small(), logs)
    assert not page.find("figure") and "Training</h2>" not in page.html and not page.find("nav")


def test_a_curve_is_drawn_from_corner_to_corner(tmp_path):
    logs = {"grpo": [{"step": 0, "kl": 0.0}, {"step": 5, "kl": float("nan")}, {"step": 10, "kl": 0.5}]}
    page = written(tmp_path, small(), logs)
    assert page.find("polyline") == [{"points": "46.0,130.0 312.0,8.0"}]
    assert page.find("svg", role="img")[0]["aria-label"] == "kl from 0.00 to 0.50 over steps 0 to 10"


def test_one_point_and_a_constant_are_drawn_in_the_middle(tmp_path):
    page = written(tmp_path, small(), {"grpo": [{"step": 7, "kl": 0.5}]})
    assert page.find("polyline") == [{"points": "179.0,69.0"}]


def test_panels_come_in_reading_order_without_the_machine(tmp_path):
    page = written(tmp_path, small(), histories(100))
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page.html) == [
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
    assert [row[0] for row in page.cells[2:5]] == ["sft ", "sft post-processed ", "grpo "]
    header = ["Run ", "first_block ", "repeated_sentences ", "unfinished_end "]
    assert page.cells[5:] == [header, ["sft greedy ", "0 of 3 ", "1 of 3 ", "0 of 3 "]]
    assert json.loads(page.scripts[0])["examples"][2]["outputs"][2]["text"] == "it is blue"


def test_importing_it_loads_nothing_heavy():
    heavy = "{'torch', 'jinja2', 'numpy', 'transformers'}"
    code = f"import sys, lastmile_trl.evaluation.report; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def said(text: str, prompt: str = "Ann: pay 3 euros.", **more) -> dict:
    """What the page's script gets of one output of one run."""
    content = small()
    entry = {"run": "grpo", "decoding": "greedy", "postprocessed": False, "text": text, "metrics": {"rouge": 0.25}}
    content["examples"] = [{"prompt": prompt, "references": ["Later Bob came."], "outputs": [entry | more]}]
    [example] = browser_of(content, LOOKS)["examples"]
    assert example["outputs"][0] is None, "sft has no output here"
    return example["outputs"][1]


def test_what_is_marked_comes_as_places_in_the_text():
    # Bob is a name within a sentence of the reference, so it is one at the start of a sentence too; Baking is not
    output = said("\n Bob paid 4. Baking, said Ann, who paid 4.")
    assert output == {
        "text": "Bob paid 4. Baking, said Ann, who paid 4.",
        "strange": [0, 3, 9, 10, 39, 40],
        "values": [0.25, None],
    }
    assert said("so it is, and so it is, ok")["repeats"] == [14, 23]
    assert said("Ann 3") == {"text": "Ann 3", "values": [0.25, None]}


def test_places_are_counted_as_javascript_counts():
    assert said("🙂 4")["strange"] == [3, 4]
    assert said("half a pair \ud83d 4")["strange"] == [14, 15]


def test_what_stands_for_several_samples_brings_all_of_them():
    output = said("Ann 4", samples=["Ann 4", "Ann 3", "Ann 5"])
    assert output["strange"] == [4, 5]
    assert output["samples"] == [{"text": "Ann 3"}, {"text": "Ann 5", "strange": [4, 5]}]


def test_examples_begin_with_a_decoding_of_the_baseline():
    content = small()
    sft, grpo = content["results"]
    content["results"] = [grpo | {"difference": None}, sft | {"decoding": "sampled"}, grpo | {"decoding": "sampled"}]
    shown = browser_of(content, LOOKS)
    assert (shown["baseline"], shown["last"]) == (1, 2)
    assert [column["shown"] for column in shown["columns"]] == [False, True, True]


def words_of(*outputs: tuple[str, str, list[float]]) -> list[dict]:
    """The distributions of words of runs, each with its decoding and a value a row."""
    rows = zip(*([(run, decoding, value) for value in values] for run, decoding, values in outputs), strict=True)
    entry = {"postprocessed": False, "text": ""}
    examples = [
        {"outputs": [{"run": run, "decoding": at, "metrics": {"words": value}, **entry} for run, at, value in row]}
        for row in rows
    ]
    return distributions({"metrics": {"words": {}}, "examples": examples}, LOOKS)


def test_a_distribution_is_the_share_of_each_whole_number():
    [spread] = words_of(("sft", "greedy", [1.0, 1.0, 3.0, None]), ("grpo", "greedy", [2.0, 2.0, 2.0, 2.0]))
    [panel] = spread["panels"]
    assert (panel["low"], panel["high"], panel["first"], panel["last"]) == ("0%", "100%", "1", "3")
    assert panel["bins"] == "bins of 1" and panel["said"] == "sft has the median 1.0, grpo has the median 2.0"
    # three bins from 46 to 312, two thirds and one third of the height from 130 to 8
    sft, grpo = (line["path"] for line in panel["lines"])
    assert sft == "46.0,130.0 46.0,48.7 134.7,48.7 134.7,130.0 223.3,130.0 223.3,89.3 312.0,89.3 312.0,130.0"
    assert grpo == "46.0,130.0 46.0,130.0 134.7,130.0 134.7,8.0 223.3,8.0 223.3,130.0 312.0,130.0 312.0,130.0"
    assert panel["lines"][0]["said"] == "sft: the middle half from 1.0 to 3.0, of 3"


def test_a_distribution_is_of_every_sample():
    of_row = {"run": "grpo", "decoding": "sampled", "postprocessed": False, "metrics": {"words": 4.0}}
    examples = [
        {"outputs": [of_row | {"values": {"words": [1.0, 7.0]}}]},
        {"outputs": [of_row | {"values": {"words": [7.0, None]}}]},
        {"outputs": [of_row | {"metrics": {"words": 3.0}}]},
    ]
    [spread] = distributions({"metrics": {"words": {}}, "examples": examples}, LOOKS)
    [panel] = spread["panels"]
    assert (panel["first"], panel["last"], panel["high"]) == ("1", "7", "50%")
    assert panel["lines"][0]["said"] == "grpo: the middle half from 1.0 to 7.0, of 4"


def test_a_distribution_ends_where_nearly_all_values_do():
    values = [place / 1000 for place in range(1000)] + [900.0]
    [spread] = words_of(("sft", "greedy", values))
    [panel] = spread["panels"]
    assert (panel["bins"], panel["first"], panel["last"], panel["high"]) == ("bins of 0.05", "0.00", "≥ 1.00", "5%")
    assert len(panel["lines"][0]["path"].split()) == 2 * 20 + 2


def test_distributions_come_by_decoding():
    both = words_of(("sft", "greedy", [1.0]), ("sft", "sampled", [0.5]), ("grpo", "sampled", [0.5]))
    assert [(spread["decoding"], [run["name"] for run in spread["runs"]]) for spread in both] == [
        ("greedy", ["sft"]),
        ("sampled", ["sft", "grpo"]),
    ]
    assert [(panel["first"], panel["last"]) for spread in both for panel in spread["panels"]] == [
        ("1", None),
        ("0.50", "0.55"),
    ]


@example([0.0, 1e-322])
@example([1e6 + 0.5, 1e6 + 0.5 + 1e-9])
@given(st.lists(st.floats(-1e6, 1e6) | st.integers(-50, 50).map(float), min_size=1, max_size=300))
def test_a_distribution_holds_every_value_in_bins_that_follow_each_other(values):
    [panel] = words_of(("sft", "greedy", values))[0]["panels"]
    points = [tuple(map(float, point.split(","))) for point in panel["lines"][0]["path"].split()]
    assert points[0] == (46.0, 130.0) and points[-1] == (312.0, 130.0)
    assert points == sorted(points, key=lambda point: point[0]) and len(points) <= 2 * 60 + 2
    highest = float(panel["high"].rstrip("%")) / 100
    shares = [highest * (130 - y) / 122 for _, y in points[1:-1:2]]
    assert sum(shares) == pytest.approx(1, abs=0.01 * len(shares) + 0.01)


def test_the_distributions_are_drawn_with_words_for_who_cannot_see_them(tmp_path):
    page = written(tmp_path, result(rows=40))
    labels = [svg["aria-label"] for svg in page.find("svg", role="img")]
    assert len(labels) == 2 * len(METRICS)
    assert re.fullmatch(r"words, shares of outputs in bins of 1 from \d+ to \d+: sft has the median .*", labels[0])
    assert "<summary>sampled decoding</summary>" in page.html
    rows = re.findall(r"the middle half from \S+ to \S+, of (\d+)</title>", page.html)
    assert rows == ["40"] * 3 * 2 * len(METRICS), "a line for each run's outputs as they are"


def test_all_texts_at_once_and_the_steps_have_tables(tmp_path):
    content = small() | {
        "steps": {"sft": {"greedy": {"first_block": 3, "length": 0}}},
        "processed": {"sft": {"greedy": 12}},
        "postprocessing": ["first_block", {"length": {"words": 31}}],
        "corpus": {
            "sft": {"greedy": {"distinct_1": 0.25, "self_bleu": None, "kl_to_sft": None}},
            "grpo": {"greedy": {"distinct_1": 20.5, "kl_to_sft": 0.5}},
        },
        "corpus_intervals": {"grpo": {"greedy": {"kl_to_sft": {"mean": 0.5, "low": -0.25, "high": 1.0, "rows": 9}}}},
        "corpus_missing": {"sft": {"greedy": {"kl_to_sft": "it goes <i> back"}}},
    }
    page = written(tmp_path, content)
    assert page.cells[4:] == [
        ["greedy decoding ", "distinct_1 ", "self_bleu ", "kl_to_sft "],
        ["sft ", "0.2 ", "– no text of it has one ", "– it goes <i> back "],
        ["grpo ", "20.5 ", "– not measured of it ", "0.500 [−0.250, 1.000] "],
        ["Run ", "first_block ", "length words 31 "],
        ["sft greedy ", "3 of 12 ", "0 of 12 "],
    ]
    del content["processed"]  # as in older files
    assert written(tmp_path, content).cells[-1] == ["sft greedy ", "3 ", "0 "]
    assert [link["href"] for link in page.find("a")] == ["#corpus", "#steps"]
    assert "Post-processing" not in written(tmp_path, small()).html


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
    page.execute_script(
        "for (const [name, value] of Object.entries(arguments[0])) {"
        "  const field = document.getElementById(name); field.value = value;"
        "  field.dispatchEvent(new Event(field.tagName === 'INPUT' ? 'input' : 'change'));"
        "}",
        {name: str(value) for name, value in values.items()},
    )


def texts(page, selector: str) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector
    )


def test_browser_shows_twenty_rows_at_a_time(page):
    choose(page, metric="")
    assert texts(page, "#count") == ["20 of 300 rows shown"]
    page.execute_script("document.getElementById('more').click()")
    assert texts(page, "#count") == ["40 of 300 rows shown"]
    assert texts(page, ".example h3") == [f"Row {number}" for number in range(1, 41)]
    for _ in range(13):
        page.execute_script("document.getElementById('more').click()")
    assert len(texts(page, ".example")) == 300
    assert page.execute_script("return document.getElementById('more').hidden")


def test_browser_shows_what_a_model_wrote_as_text(page):
    choose(page, metric="")
    assert texts(page, ".example:first-child .prompt") == ["Summarise " + EVIL]
    assert texts(page, ".example:first-child .output .text")[0] == EVIL
    assert page.execute_script("return [document.scripts.length, document.images.length]") == [2, 0]


def test_browser_searches_all_words_anywhere(page):
    choose(page, search="R0123 row", metric="")
    assert texts(page, ".example h3") == ["Row 124"]
    assert texts(page, "#count")[0].startswith("1 of 300 rows match, 1 shown")
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
    expected = sorted(range(300), key=lambda row: rank(values[row]))[:20]
    # rows that tie may stand in any order
    assert [rank(values[row]) for row in rows_shown(page)] == pytest.approx([rank(values[row]) for row in expected])
    first = values[rows_shown(page)[0]]
    sign = "−" if first < 0 else "+" if minus is not None else ""
    assert texts(page, ".rank")[0] == f"rouge/rougeL {sign}{abs(first):.3f}"


def test_browser_begins_anew_when_one_comes_back(page):
    choose(page, metric=1, order="up", search="Olivia", where=0, bound=0.3)
    page.get("about:blank")
    page.back()
    values = "return ['metric', 'order', 'search', 'where', 'bound'].map(id => document.getElementById(id).value)"
    assert page.execute_script(values) == ["0", "size", "", "", ""]
    assert texts(page, "#count")[0].startswith("20 of 300 rows shown")


def test_browser_is_used_with_the_keys_alone(page):
    from selenium.webdriver.common.keys import Keys

    field = page.find_element("id", "search")
    field.send_keys("r0123", Keys.ENTER)
    assert rows_shown(page) == [123] and page.current_url == page.report
    field.send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    page.find_element("css selector", "#filter summary").send_keys(Keys.ENTER)
    for name, keys in {"metric": "order", "where": "words", "where-minus": "nothing", "bound": "20"}.items():
        page.find_element("id", name).send_keys(keys)
    words = [example["outputs"][3]["metrics"]["words"] for example in result(rows=300)["examples"]]
    assert rows_shown(page) == [row for row, count in enumerate(words) if count >= 20][:20]


CHOSEN = (
    "return ['metric', 'run', 'minus', 'order'].map(id => document.getElementById(id).selectedOptions[0].textContent)"
)


def test_browser_starts_with_what_changed_most_from_the_baseline_to_the_last_run(page):
    chosen = ["rouge/rougeL", "grpo-length, greedy", "sft, greedy", "largest either way first"]
    assert page.execute_script(CHOSEN) == chosen
    assert texts(page, "[aria-pressed=true]") == ["Largest either way"]
    values = by_hand(3, 0)
    shown = [abs(values[row]) for row in rows_shown(page)]
    assert shown == pytest.approx(sorted(map(abs, values), reverse=True)[:20])
    assert texts(page, "#count") == [
        "20 of 300 rows shown, by rouge/rougeL of grpo-length (greedy) minus sft (greedy), largest either way first"
    ]


def rows_shown(page) -> list[int]:
    return [int(title.split()[1]) - 1 for title in texts(page, ".example h3")]


def press(page, text: str):
    """A click on the button that says so."""
    page.execute_script(
        "[...document.querySelectorAll('button')].find(b => b.textContent === arguments[0]).click()", text
    )


def test_browser_shows_the_biggest_wins_and_losses(page):
    values = by_hand(3, 0)
    choose(page, metric="", run=1, minus="")
    press(page, "Biggest wins")
    assert [values[row] for row in rows_shown(page)] == pytest.approx(sorted(values, reverse=True)[:20])
    press(page, "Biggest losses")
    assert [values[row] for row in rows_shown(page)] == pytest.approx(sorted(values)[:20])
    # where less is better, who lost most has the most
    choose(page, metric=list(METRICS).index("repeated_3grams"))
    assert texts(page, "[aria-pressed=true]") == ["Biggest wins"]
    press(page, "Biggest losses")
    assert page.execute_script(CHOSEN)[3] == "highest first"


@pytest.mark.parametrize(
    ("choices", "kept"),
    [
        ({"where-minus": "", "side": "least", "bound": 0.4}, lambda run, base: run >= 0.4),
        ({"where-minus": 0, "side": "most", "bound": "-0.1"}, lambda run, base: round(run - base, 9) <= -0.1),
        ({"where-minus": 0, "side": "least", "bound": ""}, lambda run, base: True),
    ],
)
def test_browser_filters_by_a_metric_and_by_a_difference(page, choices, kept):
    choose(page, metric="", where=0, **{"where-run": 2}, **choices)
    expected = [row for row, (run, base) in enumerate(zip(by_hand(2), by_hand(0), strict=True)) if kept(run, base)]
    assert rows_shown(page) == expected[:20]
    said = f"{len(expected)} of 300 rows match, 20 shown" if len(expected) < 300 else "20 of 300 rows shown"
    assert texts(page, "#count") == [said]
    # the search goes on within them
    choose(page, search=f"r{expected[3]:04d}")
    assert rows_shown(page) == [expected[3]]


def test_browser_filters_by_what_is_marked_in_the_outputs_shown(page):
    columns = [column for column, (_, decoding, _) in enumerate(ENTRIES) if decoding == "greedy"]
    browsed = browser_of(result(rows=300), dict.fromkeys(LEVELS, "run-0"))["examples"]
    for choice, kinds in (("repeats", {"repeats"}), ("strange", {"strange"}), ("any", {"repeats", "strange"})):
        choose(page, metric="", marks=choice)
        expected = [
            row for row, example in enumerate(browsed) if any(kinds & example["outputs"][c].keys() for c in columns)
        ]
        assert 20 < len(expected) < 300 or choice != "repeats"
        assert rows_shown(page) == expected[:20]


def test_browser_shows_and_hides_outputs(page):
    assert texts(page, ".example:first-child .label b") == ["sft", "sft", "grpo", "grpo-length"]
    page.execute_script("document.querySelectorAll('#columns input')[1].click()")
    page.execute_script("document.querySelectorAll('#columns input')[4].click()")
    assert texts(page, ".example:first-child .label b") == ["sft", "grpo", "grpo-length", "sft"]


def test_browser_marks_repeats_and_underlines_what_was_not_given(page):
    said = {"text": "Bob paid. Bob paid 9", "repeats": [10, 18], "strange": [10, 13, 19, 20]}
    marked = page.execute_script("return marked(arguments[0]).map(n => n.outerHTML ?? n)", said)
    strange, repeat = 'title="not in what the model was given"', 'title="said before"'
    assert marked == [
        "Bob paid. ",
        f"<mark {repeat}><u {strange}>Bob</u></mark>",
        f"<mark {repeat}> paid</mark>",
        " ",
        f"<u {strange}>9</u>",
    ]
    lines = page.execute_script(
        "return ['u', 'mark'].map(tag => { const style = getComputedStyle(document.querySelector(tag));"
        "return [style.textDecorationStyle, style.backgroundColor === 'rgba(0, 0, 0, 0)']; })"
    )
    assert lines == [["wavy", True], ["solid", False]], "they are told apart without colours too"


def test_browser_says_why_an_example_has_a_dash(page, tmp_path):
    content = result(rows=3)
    for row in content["examples"]:
        row["outputs"][2]["metrics"]["ended"] = None
    content["results"][2]["metrics"]["ended"] = None
    content["results"][2]["missing"] = {"ended": "grpo was not asked <i>"}
    content["examples"][1]["outputs"][2]["metrics"] |= {"rouge/rougeL": None, "rouge/rouge2": None}
    del content["examples"][2]["outputs"][3]
    page.get(write_report(content, {}, tmp_path / "report.html").as_uri())
    choose(page, metric=0, run=2, minus="", order="up")
    assert rows_shown(page)[-1] == 1 and texts(page, ".rank")[-1] == "rouge/rougeL –, as it has no value in this row"
    choose(page, metric="")
    assert texts(page, ".example:nth-child(2) .output:nth-child(3) .missing") == [
        "rouge/rougeL, rouge/rouge2 –: this row has nothing that it measures",
        "ended –: grpo was not asked <i>",
    ]
    assert "ended" not in texts(page, ".example:nth-child(2) .output:nth-child(3) .values")[0]
    assert texts(page, ".example:nth-child(3) .empty") == ["– (this run has no output for this row)"]


def test_browser_shows_all_samples_of_a_row(page, tmp_path):
    content = result(rows=2)
    content["examples"][1]["outputs"][0] |= {"text": "one", "samples": ["one", "not of Zed", "nor that"]}
    page.get(write_report(content, {}, tmp_path / "report.html").as_uri())
    choose(page, metric="", search="zed")
    assert rows_shown(page) == [1]
    assert texts(page, ".samples summary") == ["2 more of this row; the values are means over all"]
    assert texts(page, ".output:first-child .text") == ["one", "not of Zed", "nor that"]
    assert texts(page, ".samples u") == ["Zed"]
    page.find_element("css selector", ".samples summary").click()
    assert page.find_element("css selector", ".samples u").is_displayed()


def test_browser_needs_no_network(page):
    page.execute_cdp_cmd("Network.enable", {})
    nothing = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.execute_cdp_cmd("Network.emulateNetworkConditions", nothing)
    page.get(page.report)
    assert len(texts(page, ".example")) == 20 and len(texts(page, "svg.panel")) > 20
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    page.execute_cdp_cmd("Network.disable", {})


def test_browser_without_scripts_says_what_is_missing(page):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.get(page.report)
    shown = page.find_element("tag name", "body").text
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "The examples need JavaScript" in shown and "Distributions" in shown and "Search" not in shown


def test_browser_prints_tables_and_the_rows_shown_without_the_fields(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    heights = "return [...document.querySelectorAll(arguments[0])].map(node => node.offsetHeight)"
    fields, examples = (page.execute_script(heights, of) for of in ("nav, #form, #more", ".example"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert fields == [0, 0, 0] and len(examples) == 20 and min(examples) > 100


MILLISECONDS = """
const [name, value, done] = arguments, field = document.getElementById(name), start = performance.now();
field.value = value;
field.dispatchEvent(new Event(field.tagName === "INPUT" ? "input" : "change"));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
"""


def test_browser_stays_quick_with_two_thousand_rows(page, tmp_path):
    content = result(rows=200)
    content["results"] = [entry for entry in content["results"] if entry["decoding"] == "greedy"]
    for row in content["examples"]:
        row["outputs"] = [output for output in row["outputs"] if output["decoding"] == "greedy"]
    content["examples"] *= 10
    path = write_report(content, {}, tmp_path / "report.html")
    start = time.perf_counter()
    page.get(path.as_uri())
    loaded = 1000 * (time.perf_counter() - start)
    assert texts(page, "#count")[0].startswith("20 of 2000 rows shown")
    choices = {"order": "down", "metric": 1, "search": "laundry", "where": 0, "bound": 0.02, "marks": "any"}
    took = {name: page.execute_async_script(MILLISECONDS, name, str(value)) for name, value in choices.items()}
    assert "rows match, 20 shown" in texts(page, "#count")[0]
    # several times what it takes on a machine that is busy
    assert loaded < 5000 and max(took.values()) < 1000


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_browser_page_never_scrolls_sideways(page, width):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    page.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    scroll, client = page.execute_script(
        "const s = document.querySelector('.scroll'); return [s.scrollWidth, s.clientWidth]"
    )
    assert scroll > client or width > 1000, "a wide table scrolls inside its own box"


def test_browser_shows_labels_of_axes_whole(page, tmp_path):
    logged = {"kl": (-0.0009, 0.0004), "loss": (-12345.6, -12345.5), "reward": (-0.00090001, -0.00089998)}
    logs = {"grpo": [{"step": step} | {name: ends[step] for name, ends in logged.items()} for step in range(2)]}
    page.get(write_report(small(), logs, tmp_path / "report.html").as_uri())
    labels = texts(page, ".panel text")
    assert {"−0.0009", "−12345.60", "−0.000900010"} <= set(labels)
    starts = page.execute_script("return [...document.querySelectorAll('.panel text')].map(text => text.getBBox().x)")
    assert len(starts) == len(labels) and min(starts) >= 0


def test_browser_shows_the_run_on_the_first_screen_beside_five_baselines(page, tmp_path):
    content, (sft, run) = small(), small()["results"]
    beside = ["lead", "lead_3", "reference", "oracle_best_of_128_with_a_long_name of sft", "base"]
    content["results"] = [sft, run, *(run | {"run": name} for name in beside)]
    content["beside"] = beside
    page.get(write_report(content, {}, tmp_path / "report.html").as_uri())
    assert texts(page, "h1") == ["grpo against sft"]
    assert [name.strip() for name in texts(page, "tbody [scope=row]")] == ["sft", "grpo", *beside]
    for width, height in ((1280, 800), (390, 844)):
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        width, bottom = page.execute_script(
            "const { right, bottom } = document.querySelectorAll('tbody [scope=row]')[1].getBoundingClientRect();"
            "return [right, bottom];"
        )
        assert bottom < height
    assert width < 0.4 * 390, "of a phone: names wrap"


def test_browser_draws_seeds_of_a_recipe_in_its_colour_and_each_recipe_in_another(page, tmp_path):
    content, (sft, grpo) = small(), small()["results"]
    names = {recipe: [f"{recipe}-{seed}" for seed in range(5)] for recipe in ("sft", "grpo")}
    content["baseline"] = "sft-0"
    content["results"] = [of | {"run": name} for recipe, of in (("sft", sft), ("grpo", grpo)) for name in names[recipe]]
    content["over_seeds"] = [of | {"run": of["run"], "seeds": names[of["run"]]} for of in (sft, grpo)]
    logs = {run: [{"step": step, "kl": step / 10} for step in range(2)] for run in [*names["grpo"], "another"]}
    page.get(write_report(content, logs, tmp_path / "report.html").as_uri())
    drawn = {
        place: page.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(line => {"
            "  const style = getComputedStyle(line); return [style.stroke, style.strokeDasharray]; })",
            selector,
        )
        for place, selector in (("key", ".keys polyline"), ("panel", "#training .panel polyline"))
    }
    assert drawn["key"] == drawn["panel"] and len({*map(tuple, drawn["key"])}) == 6
    *of_recipe, other = [colour for colour, _ in drawn["key"]]
    assert len({*of_recipe}) == 1 and other != of_recipe[0]
    assert [dash for _, dash in drawn["key"]][::5] == ["none", "none"]
    swatches = page.execute_script(
        "return [...document.querySelectorAll('tbody .swatch')].map(dot => getComputedStyle(dot).backgroundColor)"
    )
    assert len(set(swatches[:5])) == len(set(swatches[5:10])) == 1 and swatches[0] != swatches[5]


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
