"""A run's page while it trains: how far it is, the values so far, and their curves."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lastmile_trl.errors import InputError
from lastmile_trl.evaluation.charts import POINTS, curves, decimals_for, in_order, number, points_of
from lastmile_trl.evaluation.report import COLOURS, fill
from lastmile_trl.run_folder import alarms, environment_of, finished, has_ended, history, stored_recipe
from lastmile_trl.screen import note

RUNNING = "Running"
QUIET = 600  # seconds, at least, without a new line until a run is no longer called running
USUAL = 5  # times the usual time between two lines, likewise


def watch(runs: Sequence[Path], seconds: float, report: Callable[[Path], object]) -> None:
    """Rewrite `report.html` of every run as it goes on, looking every few `seconds`, until `report` can write the last.

    A run may be yet to come. Ends when all runs are done; when it is stopped before, the pages say so.
    """
    seen: dict[Path, dict[str, Any] | None] = dict.fromkeys(runs)
    try:
        while seen:
            for run in list(seen):
                shown = look(run, method_of(run), time.time())
                if _is_done(run):
                    _write_last(run, shown, report)
                    del seen[run]
                elif shown is None:
                    if seen[run] is None:
                        missing = "has nothing to show yet" if run.exists() else "is not there yet"
                        note(f"{run} {missing}: waiting for it (Ctrl-C ends this).")
                        seen[run] = {}
                elif shown != seen[run]:
                    page = write_page(shown, run, seconds)
                    if not seen[run]:
                        note(f"Open {page}, which renews itself (Ctrl-C ends this, not the run).")
                    seen[run] = shown
            if seen:
                time.sleep(seconds)
    except KeyboardInterrupt:
        for run, shown in seen.items():
            if shown:
                write_page({**shown, "state": "No longer watched"}, run)
        raise


def method_of(run: Path) -> str | None:
    """The method of a run that has a report; None where there is no run."""
    stored = stored_recipe(run)
    if stored and stored.method == "pairs":
        raise InputError(f"{run} holds pairs, which have no report: look at the rows of its jsonl files.")
    return stored and stored.method


def _is_done(run: Path) -> bool:
    """Whether the run wrote its evaluation after all else, be it one that it was not accepted by."""
    if finished(run):
        return True
    environment, evaluation = run / "environment.json", run / "evaluation.json"
    both = environment.exists() and evaluation.exists()
    return both and evaluation.stat().st_mtime_ns > environment.stat().st_mtime_ns


def _write_last(run: Path, shown: dict[str, Any] | None, report: Callable[[Path], object]) -> None:
    if (run / "evaluation.json").exists():
        report(run)
    elif shown:
        write_page({**shown, "state": "Finished"}, run)


def look(run: Path, method: str | None, at: float) -> dict[str, Any] | None:
    """What the page of a run shows at a time in seconds since 1970; None where training has not begun."""
    rows, environment = history(run), environment_of(run)
    begun, trained = environment.get("training"), environment.get("trained")
    if not rows and not begun:
        return None
    written = (run / ("history.jsonl" if rows else "environment.json")).stat().st_mtime
    step = rows[-1]["step"] if rows else begun["from_step"]
    steps = begun["steps"] if begun else step if trained else None
    # Between two lines, on average since training began; of a run that goes on, since then.
    took = max(0.0, written - datetime.fromisoformat(begun["began"]).timestamp()) if begun else 0.0  # two clocks
    taken = step - begun["from_step"] if begun else 0
    lines = sum(row["step"] > begun["from_step"] for row in rows) if begun else 0
    if trained:
        state = f"Trained at {_clock(datetime.fromisoformat(trained).timestamp())}, its evaluation is not there yet"
    elif not begun:
        state = "Starting again"
    elif has_ended(begun):
        state = "Stopped: its process has ended"
    elif at - written > max(QUIET, USUAL * took / max(lines, 1)):
        state = "Nothing was logged for longer than usual: it may have stopped"
    else:
        state = RUNNING
    left = took / taken * (steps - step) if taken and state == RUNNING else None
    return {
        "name": run.name,
        "run": str(run),
        "method": method,
        "state": state,
        "step": step,
        "steps": steps,
        "pace": f"{number(took / taken, decimals_for(took / taken))} s a step" if taken else None,
        "left": f"about {duration(left)} left, until {_clock(written + left)}" if left else None,
        "written": _clock(written),
        "alarms": alarms({run.name: run}),
        "values": _values(rows),
        "curves": curves({run.name: rows}, {run.name: "run-1"}),
    }


def _values(rows: list[dict]) -> list[dict]:
    """Of everything worth a curve the first and the last value, and the step of that."""
    found = []
    for name in in_order(dict.fromkeys(key for row in rows for key in row)):
        if points := points_of(rows, name):
            (_, first), (step, last) = points[0], points[-1]
            decimals = decimals_for(max(abs(first), abs(last)))
            found.append(
                {"name": name, "first": number(first, decimals), "last": number(last, decimals), "step": f"{step:.0f}"}
            )
    return found


def write_page(shown: dict[str, Any], run: Path, seconds: float | None = None) -> Path:
    """Write what is `shown` as the run's `report.html`, which looks for a newer one every few `seconds`."""
    refresh = None if seconds is None else max(1, round(seconds))
    more = {"looked": _clock(time.time()), "refresh": refresh, "points": POINTS, "colours": COLOURS}
    return fill("live.html.jinja", run / "report.html", **shown, **more)


def duration(seconds: float) -> str:
    """A time to wait, in its two largest units at most.

    >>> duration(4000), duration(125), duration(8.4)
    ('1 h 6 min', '2 min', '8 s')
    """
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
