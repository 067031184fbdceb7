"""Pages of runs whose every name and text tries to be a part of the page."""

from typing import Any

import pytest
from report_fixture import ENTRIES, METRICS, histories, result

from lastmile_trl import run_folder
from lastmile_trl.evaluation import live
from lastmile_trl.evaluation.report import write_report
from lastmile_trl.evaluation.tables import table

EVIL = "</script></style><script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">"
MARKUP = "[/red][link=x]"
KNOWN = {*METRICS, *(run for run, _, _ in ENTRIES)}


def hostile(value: Any, key: str = "", evil: str = EVIL) -> Any:
    """The same with evil in each name of a run or metric, and in all that was read or written."""
    if isinstance(value, dict):
        return {name + evil if name in KNOWN else name: hostile(inner, name, evil) for name, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, key, evil) for inner in value]
    is_text = key in ("text", "prompt", "content", "references")
    return value + evil if isinstance(value, str) and (is_text or value in KNOWN) else value


def live_page(folder, logs):
    run = folder / "run"
    run.mkdir()
    for name, rows in logs.items():
        for row in rows[:5]:
            run_folder.add_history(run, {**row, f"rewards/{name}/mean": 1.0, f"eval_{name}": 0.5})
        run_folder.add_history(run, {"step": 100, "sign": "words", "alarm": EVIL})
    return live.write_page(live.look(run, EVIL, 0.0), run, 60)


def report_page(folder, logs):
    return write_report(hostile(result(rows=6, evil=False)), logs, folder / "report.html", [EVIL])


@pytest.mark.parametrize("write", [report_page, live_page])
def test_no_name_and_no_text_becomes_a_part_of_the_page(write, tmp_path, chromium):
    path = write(tmp_path, hostile(histories(20)))
    page = path.read_text(encoding="utf-8")
    assert "evil" in page and EVIL not in page and "<img" not in page
    chromium.get(path.as_uri())
    assert "evil" in chromium.find_element("tag name", "body").text
    assert chromium.title != "evil"
    assert chromium.execute_script("return document.images.length") == 0
    assert not [entry for entry in chromium.get_log("browser") if "Refused" not in entry["message"]]


def test_no_name_is_markup_of_the_terminal(capsys):
    from rich.console import Console

    Console(width=1000).print(table(hostile(result(rows=6, evil=False), evil=MARKUP)))
    assert f"grpo{MARKUP}" in capsys.readouterr().out
