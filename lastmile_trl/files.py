"""Files that others read while they are written."""

import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file so that whoever opens it finds the old text or the new one, never a part.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_whole(folder / "page.html", "all of it")
    >>> [(file.name, file.read_text()) for file in folder.iterdir()]
    [('page.html', 'all of it')]
    """
    beside = file.with_name(f"{file.name}.{os.getpid()}")  # two processes may write the same page
    beside.write_bytes(text.encode("utf-8", errors="replace"))
    beside.replace(file)


def file_in_the_way(path: Path) -> Path | None:
    """The file that keeps a path from being a folder: the path itself, or one of the folders above it.

    >>> file_in_the_way(Path(__file__, "folder")) == Path(__file__), file_in_the_way(Path("no", "file"))
    (True, None)
    """
    return next((place for place in (path, *path.parents) if place.is_file()), None)
