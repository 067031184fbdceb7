"""The checkpoints of a run: how one gets into its place whole, and which one a run goes on from."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, RunError
from .launch import SHARDED
from .screen import note

MANIFEST = "complete.json"  # of a checkpoint: its files with their sizes, who wrote it, of which rows
WRITING = "writing"  # where one lies until it is whole
FULL = ("No space left on device", "Disk quota exceeded", "unexpected pos", "PytorchStreamWriter failed")
NAME = re.compile(r"checkpoint-(\d+)")


def seal(folder: Path, processes: int, distributed: str = "NO", rows: str | None = None) -> None:
    """Write down what the checkpoint holds, once all of that has reached the disk.

    ``distributed`` is accelerate's kind of launch, ``rows`` names the training rows.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    sync(files)
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    manifest = folder / MANIFEST
    about = {"processes": processes, "sharded_by": _sharded_by(distributed), "rows": rows}
    manifest.write_text(json.dumps({**about, "files": sizes}, indent=1), encoding="utf-8")
    sync([manifest, *(path for path in folder.rglob("*") if path.is_dir()), folder])


@contextmanager
def on_full_disk(run: Path, checkpoint: Path | None = None) -> Iterator[None]:
    """Say in a sentence that a run, or a checkpoint of it, found no room, and take away what there is of the latter."""
    try:
        yield
    except (InputError, RunError):  # said already
        raise
    except Exception as error:  # of four libraries, each with its own
        if not any(sign in str(error) for sign in FULL):
            raise
        what, way, goes_on = f"{run} could not be finished", "free some room", "goes on with what is missing"
        if checkpoint:
            shutil.rmtree(checkpoint, ignore_errors=True)
            what, way = f"{checkpoint.name} could not be written to {run}", f"{way}, or set training.save_total_limit"
            goes_on = "goes on from the checkpoint before"
        raise RunError(f"The disk is full, so {what} ({error}): {way}; the same command then {goes_on}.") from error


def put_in_place(folder: Path, run: Path) -> Path:
    """Move a sealed checkpoint to where runs look for them; what stands there is an older one of the same step."""
    place = run / folder.name
    if place.exists():
        _set_aside(place, run, "it was written again")
    folder.rename(place)
    sync([run])
    return place


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint; what is newer and broken is set aside, never loaded and never deleted."""
    for folder in _by_step(run / WRITING):
        if reason := broken(folder):
            _set_aside(folder, run, reason)
        else:  # the process was stopped before it could move it
            put_in_place(folder, run)
    for folder in _by_step(run):
        if reason := broken(folder):
            _set_aside(folder, run, reason)
        else:
            return folder
    return None


def broken(folder: Path) -> str | None:
    """Why nothing can go on from this checkpoint; None if it is whole."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"writing it was not finished: it has no {MANIFEST}"
    for name, size in manifest["files"].items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has {(folder / name).stat().st_size} bytes instead of {size}"
    return None


def read_manifest(folder: Path) -> dict | None:
    """What the checkpoint should hold; None where nothing legible says so."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def last_whole(run: Path) -> Path | None:
    """The newest whole checkpoint, with everything left where it is."""
    return next((folder for folder in _by_step(run) if not broken(folder)), None)


def check_launch(run: Path, processes: int, distributed: str) -> None:
    """Refuse to go on with another number of processes, whose rows would be others, or another way to share weights."""
    folder = last_whole(run)
    if folder is None:
        return
    manifest = read_manifest(folder)
    wrote, before, now = manifest["processes"], manifest["sharded_by"], _sharded_by(distributed)
    if wrote != processes:
        raise InputError(
            f"{folder} was written by {wrote} process{'es' if wrote > 1 else ''} and cannot go on with {processes}: "
            f"use --num_processes {wrote}, or begin anew with --force."
        )
    if before != now:
        raise InputError(
            f"{folder} was written {_with(before)} and cannot go on {_with(now)}: use the --accelerate of before, or "
            "begin anew with --force."
        )


def _sharded_by(distributed: str) -> str | None:
    """What gives a checkpoint a form of its own."""
    return distributed if distributed in SHARDED else None


def _with(sharded_by: str | None) -> str:
    return f"with {sharded_by}" if sharded_by else "by processes with a whole model each"


def check_rows(checkpoint: Path, rows: str) -> None:
    """Refuse to go on with other rows than those before."""
    if read_manifest(checkpoint)["rows"] != rows:
        raise InputError(
            f"The training rows are not those that {checkpoint} was trained on: bring them back, or begin anew with "
            "--force."
        )


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _set_aside(folder: Path, run: Path, reason: str) -> None:
    """Out of the way, under a name that nothing loads."""
    names = (run / f"broken-{folder.name}{f'-{number}' if number else ''}" for number in range(10**6))
    aside = next(name for name in names if not name.exists())
    folder.rename(aside)
    note(f"{folder} is set aside as {aside} and not used ({reason}); remove it if it is of no use to you.")


def sync(paths: Iterable[Path]) -> None:
    """Have the disk hold what was written, so that a power cut after it changes nothing."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
