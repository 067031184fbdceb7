"""Files that others read, or would write, while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from .errors import InputError

LOCK = ".lock"  # held by the process that writes to the folder


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but a lock.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with locked(folder):
    ...     is_empty(folder)
    True
    """
    return all(child.name == LOCK for child in folder.iterdir())


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Be the only one that writes to a run folder, until the end, however that comes."""
    import fcntl

    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise InputError(
                f"Process {file.read().strip()} is at work in {run}: wait until it is done, or end it."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_whole(file: Path, text: str) -> None:
    """Write a file so that whoever opens it finds the old text or the new one, never a part.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "page.html", "all of it")
    >>> [(file.name, file.read_text()) for file in folder.iterdir()]
    [('page.html', 'all of it')]
    """
    beside = file.with_name(f"{file.name}.{token_hex(4)}")  # two, on two machines too, may write the same page
    try:
        with beside.open("wb") as handle:
            handle.write(text.encode("utf-8", errors="replace"))
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def file_in_the_way(path: Path) -> Path | None:
    """The file that keeps a path from being a folder: the path itself, or one of the folders above it.

    >>> file_in_the_way(Path(__file__, "folder")) == Path(__file__), file_in_the_way(Path("no", "file"))
    (True, None)
    """
    return next((place for place in (path, *path.parents) if place.is_file()), None)
