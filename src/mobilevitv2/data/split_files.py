"""Text files beside the pictures: which belong to a split, and what the classes are called."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from mobilevitv2.data.problems import shortened
from mobilevitv2.data.sources import split_named
from mobilevitv2.errors import DataError
from mobilevitv2.picture_sources import SUFFIXES

_LISTED_SUFFIXES = SUFFIXES | {".xml", ".txt"}


def read_text(path: Path) -> str:
    """A small text file; DataError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): check its permissions") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that say something."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def split_files(root: Path, folders: Sequence[str], *, prefix: str = "") -> dict[str, Path]:
    """The lists of names by split, `train.txt` and such, from the first of some folders that has any.

    `trainval.txt` is taken for "train" where there is no `train.txt`. With `prefix` "masks", `masks_train.txt` is looked for.
    """
    for folder in folders:
        found: dict[str, Path] = {}
        both = None
        for path in sorted((root / folder).glob("*.txt")):
            stem = path.stem.lower()
            if prefix:
                if not re.match(rf"{prefix}[-_.]", stem):
                    continue
                stem = stem[len(prefix) + 1 :]
            split = split_named(stem)
            if split in found:
                raise DataError(
                    f"{root / folder} has two lists for the split {split!r}, {found[split].name} and {path.name}: keep one"
                )
            if split:
                found[split] = path
            elif stem == "trainval":
                both = path
        if both and "train" not in found:
            found["train"] = both
        if found:
            return found
    return {}


def pictures_by_stem(folder: Path) -> dict[str, str]:
    """Name without suffix -> file name, of the pictures directly in a folder."""
    if not folder.is_dir():
        return {}
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    return {Path(name).stem: name for name in names if Path(name).suffix.lower() in SUFFIXES}


def listed_name(line: str, known: Container[str] = ()) -> str:
    """The picture that a line of a list means, without folders and suffix; of several words the first, unless all are its name."""
    if line in known:
        return line
    for words in (line, line.split()[0]):
        name = words.replace("\\", "/").rsplit("/", 1)[-1]
        stem, dot, suffix = name.rpartition(".")
        if dot and f".{suffix.lower()}" in _LISTED_SUFFIXES:
            name = stem
        if name in known:
            return name
    return name


def class_names_in(root: Path) -> tuple[str, ...] | None:
    """The names of the classes that a folder says: id2label.json, or one a line in classes.txt, labels.txt and such; else None."""
    path = root / "id2label.json"
    if path.is_file():
        return _id2label(path)
    for name in ("classes.txt", "labels.txt", "class_names.txt", "label_names.txt", "obj.names"):
        if (root / name).is_file():
            return _listed(root / name)
    return None


def _listed(path: Path) -> tuple[str, ...]:
    """One name a line, or "0 name" / "0: name" on each."""
    lines = read_lines(path)
    numbered = [re.fullmatch(r"(\d+)\s*[:,\s]\s*(.+)", line) for line in lines]
    names = lines
    if lines and all(numbered):
        pairs = [(int(match[1]), match[2]) for match in numbered if match]
        if [number for number, _ in pairs] in (list(range(len(pairs))), list(range(1, len(pairs) + 1))):
            names = [name for _, name in pairs]
    if len(set(names)) < len(names):
        raise DataError(f"{path} names a class twice: give each line a name of its own")
    return tuple(names)


def _id2label(path: Path) -> tuple[str, ...]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as json ({shortened(error, 100)})") from error
    if isinstance(content, list):
        content = {str(number): name for number, name in enumerate(content)}
    if not isinstance(content, Mapping) or not all(re.fullmatch(r"\d{1,9}", str(key)) for key in content):
        raise DataError(f'{path} is no table of class number and name, such as {{"0": "background", "1": "cat"}}')
    numbers = sorted(int(key) for key in content)
    if not numbers or numbers != list(range(len(numbers))):
        raise DataError(f"{path} has the class numbers {shortened(numbers)}; they count from 0 without gaps")
    return tuple(str(content[str(number)]) for number in numbers)
