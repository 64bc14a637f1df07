"""From what the user names (a folder, a file, a glob, a data set of the hub) to the reader that knows it."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from mobilevitv2.errors import DataError

# (what to look for, the files it then is): shards side by side, or in folders named after their splits.
_PARQUET_LAYOUTS = (
    ("*.parquet", "*.parquet"),
    ("data/*.parquet", "data/*.parquet"),
    ("train/*.parquet", "*/*.parquet"),
    ("*/train/*.parquet", "*/*/*.parquet"),
)

ReadT = TypeVar("ReadT")


@dataclass(frozen=True)
class Readers(Generic[ReadT]):
    """What reads each kind of source, for one task."""

    folder: Callable[[Path], ReadT]
    parquet: Callable[[Sequence[Path]], ReadT]
    saved: Callable[[Path], ReadT]
    """A folder that `save_to_disk` of `datasets` wrote."""
    hub: Callable[[str], ReadT]
    layouts: str
    """The layouts known, for messages."""
    files: Mapping[str, Callable[[Path], ReadT]] = field(default_factory=dict)
    """Suffix in small letters -> reader of such a file."""


def read_source(source: str, readers: Readers[ReadT]) -> ReadT:
    """Find out what a data set is, and read it.

    Raises:
        DataError: nothing there, or nothing known; the message says what was found.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _read_folder(path, readers)
        if path.is_file():
            return _read_file(path, readers)
    except PermissionError as error:
        raise DataError(f"{error.filename or path} may not be read: check its permissions") from error
    if glob.has_magic(source):
        files = [Path(file) for file in glob.glob(str(path), recursive=True) if file.lower().endswith(".parquet")]  # noqa: PTH207
        if not files:
            raise DataError(f"{source} matches no .parquet file (the current folder is {Path.cwd()})")
        return readers.parquet(files)
    return _read_elsewhere(source, path, readers)


def _read_folder(folder: Path, readers: Readers[ReadT]) -> ReadT:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return readers.saved(folder)
    for sign, files in _PARQUET_LAYOUTS:
        if next(folder.glob(sign), None) is not None:
            return readers.parquet(list(folder.glob(files)))
    return readers.folder(folder)


def _read_file(path: Path, readers: Readers[ReadT]) -> ReadT:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return readers.parquet([path])
    if suffix in readers.files:
        return readers.files[suffix](path)
    raise DataError(f"{path} is a file of a kind not known for data sets; unpack it first. Layouts known:\n{readers.layouts}")


def _read_elsewhere(source: str, path: Path, readers: Readers[ReadT]) -> ReadT:
    """From the hub, if the name can be one of the hub's; the error speaks of both places."""
    missing = _missing(source, path)
    beside = path.parent.is_dir() and path.parent != Path()
    if beside or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?", source):
        raise DataError(missing)
    try:
        return readers.hub(source)
    except DataError as error:
        raise DataError(f"{missing}; and from the hub, {error}") from error


def _missing(source: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"{source} does not exist, nor does the folder {path.parent} (the current folder is {Path.cwd()})"
    names = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if near:
        return f"{source} does not exist: did you mean {' or '.join(str(path.parent / name) for name in near)}?"
    return f"{source} does not exist (the current folder is {Path.cwd()})"
