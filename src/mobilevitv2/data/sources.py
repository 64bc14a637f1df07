"""Where the pictures of a split lie: files in folders, or rows of a table.

Both are small to pickle and safe in worker processes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

IntArray: TypeAlias = NDArray[np.int64]

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def split_named(name: str) -> str | None:
    """The split that a name stands for, as "val" for "validation"; None for other names."""
    return _SPLITS.get(name.lower())


def split_of_file(path: Path) -> str | None:
    """The split that a file's name begins with, up to the first `-`, `_` or `.`, or its folder is named after."""
    return split_named(re.split(r"[-_.]", path.name, maxsplit=1)[0]) or split_named(path.parent.name)


class PictureSource(Protocol):
    """Pictures by number, still encoded."""

    def __len__(self) -> int: ...

    def encoded(self, index: int) -> bytes:
        """The file as it is, a JPEG say. Raises ImageError where there is none."""

    def describe(self, index: int) -> str:
        """Where the picture lies, for messages."""

    def select(self, indices: IntArray) -> PictureSource:
        """Some of them, in the order given."""


class FilePictures:
    """Picture files below one folder.

    The names are kept as one array of bytes: a list of a million strings would be copied into each worker process, page by page,
    as its reference counts are touched.
    """

    def __init__(self, root: Path, names: NDArray[np.bytes_]) -> None:
        self.root = root
        self.names = names

    @classmethod
    def of_paths(cls, root: Path, paths: Sequence[str]) -> FilePictures:
        """From paths below `root`."""
        return cls(root, np.array([os.fsencode(os.path.relpath(path, root)) for path in paths], dtype=np.bytes_))

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        path = Path(self.describe(index))
        try:
            return path.read_bytes()
        except OSError as error:
            raise ImageError(f"{path} cannot be read ({error.strerror or error}): check that it exists and may be read") from error

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(self.root / os.fsdecode(self.names[index]))

    def select(self, indices: IntArray) -> FilePictures:
        """Some of them, in the order given."""
        return FilePictures(self.root, self.names[indices])


@dataclass(frozen=True, eq=False)
class TablePictures:
    """Pictures in a column of a `datasets.Dataset`: encoded bytes, a path, or {bytes, path}.

    The table is a memory map, which goes to worker processes as the name of its file.
    """

    table: Any
    """A `datasets.Dataset` of this column alone, undecoded."""
    column: str
    rows: IntArray
    name: str
    """What rows are called where no files are known: "train row 17"."""
    files: tuple[str, ...] = ()
    """The files the table was read from, in order."""
    first_rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """The row of the table that each file begins with."""
    folder: Path = Path()
    """Paths in the column are relative to it."""

    def __len__(self) -> int:
        return len(self.rows)

    def encoded(self, index: int) -> bytes:
        """The row's bytes, or those of the file it names."""
        cell = self.table[int(self.rows[index])][self.column]
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(content, str):
            content, path = None, content
        if content is not None:
            return bytes(content)
        if not path:
            raise ImageError(f"{self.describe(index)} has neither bytes nor a path of a picture: leave the row out")
        try:
            return Path(self.folder, path).read_bytes()
        except OSError as error:
            raise ImageError(
                f"{self.describe(index)} names {self.folder / path}, which cannot be read ({error.strerror or error})"
            ) from error

    def describe(self, index: int) -> str:
        """File and row, as in "train-00000-of-00004.parquet row 17"; rows count from 0."""
        row = int(self.rows[index])
        if not self.files:
            return f"{self.name} row {row}"
        file = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return f"{self.files[file]} row {row - int(self.first_rows[file])}"

    def select(self, indices: IntArray) -> TablePictures:
        """Some of them, in the order given."""
        return TablePictures(self.table, self.column, self.rows[indices], self.name, self.files, self.first_rows, self.folder)


@dataclass(frozen=True, eq=False)
class Labelled:
    """The pictures and answers of one split, with the class names as this split has them."""

    names: tuple[str, ...]
    labels: IntArray
    """Indices into `names`, (n,)."""
    pictures: PictureSource
    groups: tuple[str, ...] | None = None
