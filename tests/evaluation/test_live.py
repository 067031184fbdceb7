"""The page of a run that trains: real runs, real processes, a real browser."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest

from lastmile_trl import cli, run_folder
from lastmile_trl.errors import InputError
from lastmile_trl.evaluation import live
from lastmile_trl.files import write_whole

BEGAN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
START = BEGAN.timestamp()
RECIPE = """
method: grpo
model: {model_name_or_path: x}
data: {path: x, prompt: "{source} =>", references: target}
rewards: [rouge]
"""


def test_two_threads_may_write_one_page_at_once(tmp_path):
    def writing(text):
        try:
            for _ in range(200):
                write_whole(tmp_path / "page.html", text)
        except OSError as error:
            failed.append(error)

    failed, texts = [], [letter * 10_000 for letter in "ab"]
    threads = [threading.Thread(target=writing, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() in texts


def clock(seconds):
    return datetime.fromtimestamp(START + seconds).strftime("%Y-%m-%d %H:%M:%S")


@pytest.fixture
def folder(tmp_path):
    """A run of 300 steps that began at noon, at step 0; `log` writes a line, some seconds later."""
    run = tmp_path / "grpo"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    begin(run)

    def log(step, seconds, **values):
        run_folder.add_history(run, {"step": step, **values})
        os.utime(run / "history.jsonl", (START + seconds,) * 2)

    return run, log


def begin(run, step=0, seconds=0.0):
    began = datetime.fromtimestamp(START + seconds, UTC).isoformat()
    training = {
        "began": began,
        "from_step": step,
        "steps": 300,
        "machine": "another",
        "process": 2**22 + 1,
    }  # more than Linux numbers
    (run / "environment.json").write_text(json.dumps({"training": training}))
    os.utime(run / "environment.json", (START + seconds,) * 2)


def test_the_pace_and_the_time_left_are_those_since_training_began(folder):
    run, log = folder
    log(0, 20, **{"eval_words": 12.0})
    log(50, 100, reward=0.25, loss=0.5)
    log(100, 240, reward=0.5, loss=0.125)
    shown = live.look(run, "grpo", START + 250)
    # 100 steps took 240 s, the looks at held-out rows among them; the 200 that are left take 480 s.
    assert (shown["step"], shown["steps"], shown["pace"]) == (100, 300, "2.40 s a step")
    assert shown["left"] == f"about 8 min left, until {clock(720)}"
    assert (shown["state"], shown["written"]) == ("Running", clock(240))
    assert shown["values"] == [
        {"name": "reward", "first": "0.250", "last": "0.500", "step": "100"},
        {"name": "eval_words", "first": "12.0", "last": "12.0", "step": "0"},
        {"name": "loss", "first": "0.500", "last": "0.125", "step": "100"},
    ]
    assert [panel["name"] for panel in shown["curves"]["panels"]] == ["reward", "eval_words", "loss"]


def test_a_run_that_goes_on_is_as_fast_as_since_then(folder):
    run, log = folder
    log(50, 900)
    begin(run, step=50, seconds=1000)
    log(60, 1030)
    shown = live.look(run, "grpo", START + 1030)
    assert (shown["pace"], shown["left"]) == ("3.00 s a step", f"about 12 min left, until {clock(1030 + 720)}")


def test_before_the_first_line_there_is_no_pace(folder):
    run, _ = folder
    shown = live.look(run, "sft", START + 1)
    assert (shown["step"], shown["steps"], shown["pace"], shown["left"]) == (0, 300, None, None)
    (run / "environment.json").write_text("{}")
    assert live.look(run, "sft", START + 1) is None


def test_a_disk_whose_clock_is_late_makes_no_pace(folder):
    run, log = folder
    log(1, -5)
    assert live.look(run, "grpo", START)["pace"] == "0.000 s a step"


@pytest.mark.parametrize(("seconds", "running"), [(240 + 600, True), (240 + 601, False)])
def test_a_run_that_writes_nothing_for_ten_minutes_is_not_called_running(folder, seconds, running):
    run, log = folder
    log(50, 120)
    log(100, 240)
    assert (live.look(run, "grpo", START + seconds)["state"] == "Running") is running


@pytest.mark.parametrize(("seconds", "running"), [(800 + 2000, True), (800 + 2001, False)])
def test_nor_is_a_slow_run_after_five_times_its_usual_time(folder, seconds, running):
    run, log = folder
    log(1, 400)
    log(2, 800)
    assert (live.look(run, "grpo", START + seconds)["state"] == "Running") is running


def test_a_run_whose_process_has_ended_is_not_called_running(folder):
    run, log = folder
    log(50, 120)
    begins = f"from lastmile_trl.run_folder import *; training_begins(Path({str(run)!r}), 0, 300); input(1)"
    with subprocess.Popen([sys.executable, "-c", begins], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        assert live.look(run, "grpo", START + 121)["state"] == "Running"
        process.communicate(b"\n")
        assert live.look(run, "grpo", START + 121)["state"] == "Stopped: its process has ended"
        assert live.look(run, "grpo", START + 121)["left"] is None
    (run / "environment.json").write_text("{}")
    assert live.look(run, "grpo", START + 121)["state"] == "Starting again"
    begin(run)  # on another machine
    assert live.look(run, "grpo", START + 121)["state"] == "Running"


def test_a_trained_run_waits_for_its_evaluation(folder):
    run, log = folder
    log(300, 600, loss=0.5)
    (run / "environment.json").write_text(json.dumps({"trained": datetime.fromtimestamp(START + 610, UTC).isoformat()}))
    shown = live.look(run, "grpo", START + 10000)
    assert shown["state"] == f"Trained at {clock(610)}, its evaluation is not there yet"
    assert (shown["step"], shown["steps"], shown["pace"]) == (300, 300, None)


@pytest.mark.parametrize("accepted", [True, False])
def test_a_run_is_done_when_it_is_evaluated_even_if_it_is_not_accepted(folder, accepted):
    """An older evaluation may be there, while the run is evaluated anew."""
    run, log = folder
    log(300, 600, loss=0.5)
    evaluation, reports = run / "evaluation.json", []
    evaluation.write_text("{}")
    environment = {"trained": datetime.fromtimestamp(START + 610, UTC).isoformat()}
    (run / "environment.json").write_text(json.dumps(environment))
    os.utime(evaluation, (START,) * 2)

    def watching():
        live.watch([run], 0.01, reports.append)

    thread = threading.Thread(target=watching)
    thread.start()
    deadline = time.monotonic() + 10
    while not (run / "report.html").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "its evaluation is not there yet" in (run / "report.html").read_text() and not reports
    if accepted:
        write_whole(run / "environment.json", json.dumps({**environment, "finished": environment["trained"]}))
    else:
        evaluation.write_text("{}")
    thread.join(10)
    assert not thread.is_alive() and reports == [run]


def test_a_line_that_is_being_written_is_left_for_later_and_a_damaged_one_is_not(folder):
    run, log = folder
    log(1, 1, loss=0.5)
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert live.look(run, "sft", START)["step"] == 1
    with (run / "history.jsonl").open("a") as file:
        file.write("\n")
    log(3, 3)
    with pytest.raises(InputError, match=r"history.jsonl, line 2 is damaged"):
        live.look(run, "sft", START)


def test_what_a_page_says(folder):
    run, log = folder
    log(100, 240, reward=0.5, **{"rewards/<b>/mean": 1.0})
    run_folder.add_history(run, {"step": 100, "sign": "words", "alarm": "outputs are 2.00 times as long"})
    os.utime(run / "history.jsonl", (START + 240,) * 2)
    page = live.write_page(live.look(run, "grpo", START + 250), run, 0.2).read_text()
    assert '<meta http-equiv="refresh" content="1">' in page and "<title>grpo: step 100 of 300</title>" in page
    assert "Alarm of grpo at step 100: outputs are 2.00 times as long." in page
    assert "<b>" not in page and "rewards/&lt;b&gt;/mean" in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page and "<script" not in page
    assert "refresh" not in live.write_page(live.look(run, "grpo", START + 250), run).read_text()


def call(*words):
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    return left.value.code


def write_pairs(run):
    made = RECIPE.replace("grpo", "pairs").replace("rewards: [rouge]", "preferences: {negatives: {irrelevant: 1}}")
    run.mkdir()
    write_whole(run / "recipe.yaml", made)


def test_what_cannot_be_watched_is_refused(folder, tmp_path, capsys):
    run, _ = folder
    write_pairs(tmp_path / "pairs")
    for words, message in {
        (run,): f"has not finished: `lastmile report {run} --watch` shows how it goes.",
        (): "Which run?",
        ("--watch",): "Which run?",
        ("--watch", tmp_path): "holds no recipe.yaml, so it is no run",
        ("--watch", run / "recipe.yaml"): "holds no recipe.yaml, so it is no run",
        (tmp_path / "grop",): "holds no recipe.yaml, so it is no run",
        ("--watch", "0", run): "must be more than 0",
        ("--watch", "nan", run): "must be more than 0",
        ("--watch", tmp_path / "pairs"): "holds pairs",
    }.items():
        assert call("report", *words) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert not (run / "report.html").exists()


def test_a_watch_that_is_stopped_says_so_on_its_pages(folder, tmp_path):
    run, log = folder
    log(100, 240, reward=0.5)
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    (waiting / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "lastmile_trl", "report", "--watch", str(run), str(waiting)]
    watching = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    said = [watching.stderr.readline(), watching.stderr.readline()]
    assert said[0].startswith(f"Open {run / 'report.html'}") and "waiting has nothing to show yet" in said[1]
    page = (run / "report.html").read_text()
    assert "it may have stopped. 2.40 s a step.</p>" in page and 'content="10"' in page
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 130 and watching.stderr.read() == "Stopped.\n"
    page = (run / "report.html").read_text()
    assert "No longer watched." in page and "refresh" not in page
    assert {file.name for file in waiting.iterdir()} == {"recipe.yaml"}


def test_a_watch_waits_for_a_run_that_is_yet_to_come(tmp_path):
    run = tmp_path / "task" / "grpo"
    command = [sys.executable, "-m", "lastmile_trl", "report", "--watch", "0.1", str(run)]
    watching = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert watching.stderr.readline() == f"{run} is not there yet: waiting for it (Ctrl-C ends this).\n"
    run.mkdir(parents=True)
    time.sleep(0.3)
    (run / "recipe.yaml").write_text(RECIPE)
    begin(run)
    run_folder.add_history(run, {"step": 100, "reward": 0.5})
    assert watching.stderr.readline().startswith(f"Open {run / 'report.html'}")
    assert f"GRPO of {run}" in (run / "report.html").read_text()
    watching.send_signal(signal.SIGINT)
    assert watching.wait(10) == 130 and watching.stderr.read() == "Stopped.\n"


def test_a_run_to_come_that_holds_pairs_ends_the_watch(tmp_path):
    run = tmp_path / "pairs"
    made = threading.Timer(0.3, lambda: write_pairs(run))
    made.start()
    with pytest.raises(InputError, match="holds pairs, which have no report"):
        live.watch([run], 0.1, lambda run: None)


def test_the_browser_renews_the_page_until_it_is_the_last(folder, chromium):
    run, log = folder
    log(100, 240, **{name: 0.5 for name in ("reward", "kl", "entropy", "loss", *(f"eval_{n}" for n in range(40)))})

    def shows(text):
        deadline = time.monotonic() + 10
        # one script, as the page may be renewed between finding an element and reading it
        while text not in (chromium.execute_script("return document.body?.innerText") or ""):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)

    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.get(live.write_page(live.look(run, "grpo", START + 250), run, 1).as_uri())
    assert chromium.execute_script("return document.querySelector('h1').innerText") == f"GRPO of {run}"
    shows("Running. 2.40 s a step")
    chromium.execute_script("scrollTo(0, 700)")
    log(150, 300, reward=0.75)
    live.write_page(live.look(run, "grpo", START + 300), run, 1)
    shows("Step 150 of 300")
    assert chromium.execute_script("return scrollY") == 700
    live.write_page(live.look(run, "grpo", START + 300), run)
    time.sleep(2)
    chromium.execute_script("document.title = 'as it was'")
    time.sleep(1.5)
    assert chromium.title == "as it was" and chromium.get_log("browser") == []
