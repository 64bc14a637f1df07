"""Tables of pictures: parquet files, folders that `datasets` saved, data sets of the hub. All come as `datasets.Dataset`.

`datasets` unpacks parquet once into its cache (HF_DATASETS_CACHE) as Arrow files, which are memory-mapped: worker processes share
their pages, and a picture is found without decompressing its neighbours.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from mobilevitv2.data.sources import IntArray, Labelled, TablePictures, split_named, split_of_file
from mobilevitv2.errors import DataError, MissingDependency

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "picture", "images", "pictures")
LABEL_COLUMNS = ("label", "labels", "class", "target")
GROUP_COLUMNS = ("source", "group", "domain")


def import_datasets() -> Any:
    """The `datasets` library."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("reading this data set needs `datasets`: pip install mobilevitv2[train]") from error
    return datasets


# ----------------------------------------------------------------------------------------------------------- three ways to a table


@dataclass(frozen=True)
class Table:
    """One split as a `datasets.Dataset`, and where it came from."""

    rows: Any
    split: str
    folder: Path
    """Paths of pictures are relative to it."""
    files: tuple[str, ...] = ()
    first_rows: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def where(self) -> str:
        """Split and folder, for messages."""
        return f"the split {self.split!r} of {self.folder}"

    @property
    def features(self) -> Mapping[str, Any]:
        """The type of each column."""
        return cast("Mapping[str, Any]", self.rows.features)

    def pictures(self, column: str) -> TablePictures:
        """A column of pictures, still encoded."""
        datasets = import_datasets()
        if len(self.rows) == 0:
            raise DataError(f"{self.where} has no rows: leave the split out, or write the data again")
        pixels = self.rows.select_columns([column])
        if isinstance(self.features[column], datasets.Image):
            pixels = pixels.cast_column(column, datasets.Image(decode=False))
        rows = np.arange(len(self.rows), dtype=np.int64)
        return TablePictures(pixels, column, rows, self.split, self.files, self.first_rows, self.folder)

    def arrow(self, column: str) -> Any:
        """A column as Arrow has it."""
        return self.rows.select_columns([column]).with_format("arrow")[:].column(0)


ChooseColumns: TypeAlias = Callable[[Mapping[str, Any], str], Sequence[str]]
"""From the type of each column, and words for messages, to the names of those needed."""


def load_parquet(files: Sequence[Path], choose: ChooseColumns) -> dict[str, Table]:
    """Parquet files, the split of each by its name or its folder's; files without such names are "train" if none has one."""
    by_split: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for file in sorted(files):
        split = split_of_file(file)
        (unnamed if split is None else by_split.setdefault(split, [])).append(file)
    if not by_split:
        by_split["train"] = unnamed
    elif unnamed:
        names = ", ".join(file.name for file in unnamed[:5])
        logger.warning("left out %d parquet files whose names say no split: %s", len(unnamed), names)
    return {split: _load_shards(split, shards, choose) for split, shards in by_split.items()}


def _load_shards(split: str, files: Sequence[Path], choose: ChooseColumns) -> Table:
    datasets = import_datasets()
    import pyarrow
    from pyarrow import parquet

    counts: list[int] = []
    columns: Sequence[str] = ()
    for file in files:
        try:
            metadata = parquet.read_metadata(file)
            features = datasets.Features.from_arrow_schema(metadata.schema.to_arrow_schema())
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is no sound parquet file ({_first_line(error)}): write or download it again") from error
        counts.append(metadata.num_rows)
        if not columns:
            columns = choose(features, str(file))
    with _blaming(f"parquet files of the split {split!r} in {files[0].parent}"):
        rows = datasets.load_dataset(
            "parquet", data_files={split: [str(file) for file in files]}, split=split, columns=list(columns)
        )
    first_rows = np.cumsum([0, *counts[:-1]], dtype=np.int64)
    return Table(rows, split, files[0].parent, tuple(file.name for file in files), first_rows)


def load_saved(folder: Path) -> dict[str, Table]:
    """A folder that `save_to_disk` wrote."""
    datasets = import_datasets()
    with _blaming(str(folder)):
        saved = datasets.load_from_disk(str(folder))
    return _load_splits(saved, folder)


def load_hub(name: str) -> dict[str, Table]:
    """A data set of the hub, "owner/name" or "owner/name:config"; a local copy of such a repository will do."""
    datasets = import_datasets()
    repository, _, config = name.partition(":")
    with _blaming(f"the data set {repository!r}"):
        loaded = datasets.load_dataset(repository, config or None)
    return _load_splits(loaded, Path(repository))


def _load_splits(loaded: Any, folder: Path) -> dict[str, Table]:
    tables: Mapping[str, Any] = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    chosen = {split_named(name): table for name, table in tables.items()}
    chosen.pop(None, None)
    if not chosen and len(tables) == 1:
        chosen = {"train": next(iter(tables.values()))}
    if not chosen:
        raise DataError(f"{folder} has the splits {', '.join(tables)}; rename one of them to train, validation or test")
    if len(chosen) < len(tables):
        logger.warning("%s: of the splits %s, used are %s", folder, ", ".join(tables), ", ".join(str(name) for name in chosen))
    return {str(split): Table(table, str(split), folder) for split, table in chosen.items()}


# ---------------------------------------------------------------------------------------------------- tables of classified pictures


def read_parquet(files: Sequence[Path]) -> dict[str, Labelled]:
    """Parquet files, the split of each by its name or its folder's; files without such names are "train" if none has one."""
    return _without_unlabelled(load_parquet(files, lambda features, where: [name for name in _columns(features, where) if name]))


def read_saved(folder: Path) -> dict[str, Labelled]:
    """A folder that `save_to_disk` wrote."""
    return _without_unlabelled(load_saved(folder))


def read_hub(name: str) -> dict[str, Labelled]:
    """A data set of the hub, "owner/name" or "owner/name:config"; a local copy of such a repository will do."""
    return _without_unlabelled(load_hub(name))


def _labelled(table: Table) -> Labelled | None:
    """Pictures, labels and groups; None for a split whose labels are hidden (all -1)."""
    image, label, group = _columns(table.features, table.where)
    pictures = table.pictures(image)
    names, labels = _names_and_labels(table, label, pictures)
    if bool((labels == -1).all()):
        logger.warning("%s has no labels (all are -1) and is left out", table.where)
        return None
    _check_range(labels, names, pictures)
    return Labelled(names, labels, pictures, None if group is None else _texts(table, group))


def _without_unlabelled(tables: Mapping[str, Table]) -> dict[str, Labelled]:
    splits = {split: _labelled(table) for split, table in tables.items()}
    found = {split: labelled for split, labelled in splits.items() if labelled is not None}
    if not found:
        raise DataError(f"no split has labels ({', '.join(splits)}: all are -1); a labelled split is needed")
    return found


def _columns(features: Mapping[str, Any], where: str) -> tuple[str, str, str | None]:
    """The columns of pictures, labels and groups (None without)."""
    datasets = import_datasets()
    image = choose_column(features, IMAGE_COLUMNS, datasets.Image, "pictures", where)
    label = choose_column(features, LABEL_COLUMNS, datasets.ClassLabel, "labels", where)
    _check_types(features, image, label, where)
    group = next((name for name in GROUP_COLUMNS if _is_text(features.get(name)) and name not in (image, label)), None)
    return image, label, group


def choose_column(features: Mapping[str, Any], names: Sequence[str], kind: type, what: str, where: str) -> str:
    """The column of a type and one of some names, in that order of weight; DataError where there is none, or several."""
    lowered = {name.lower(): name for name in features}
    named = [lowered[name] for name in names if name in lowered]
    typed = [name for name, feature in features.items() if isinstance(feature, kind)]
    # A column of the right type goes before one of the right name alone.
    best = [name for name in named if name in typed] or named or typed
    if not best or (best is typed and len(typed) > 1):
        found = "several" if best else "none"
        raise DataError(
            f"{where} needs one column of {what}, named {', '.join(names[:-1])} or {names[-1]}; {found} found among: "
            f"{', '.join(f'{name} ({_type_name(feature)})' for name, feature in features.items())}. Rename one."
        )
    return best[0]


def check_picture_column(features: Mapping[str, Any], image: str, where: str) -> None:
    """Raise DataError unless the column can hold pictures."""
    datasets = import_datasets()
    pictures = features[image]
    struct = isinstance(pictures, dict) and "bytes" in pictures
    encoded = getattr(pictures, "dtype", "") in ("binary", "large_binary", "string", "large_string")
    if not (isinstance(pictures, datasets.Image) or struct or (encoded and isinstance(pictures, datasets.Value))):
        raise DataError(
            f"{where}: column {image!r} is of type {_type_name(pictures)}; pictures are encoded bytes, paths, or {{bytes, path}}"
        )


def _check_types(features: Mapping[str, Any], image: str, label: str, where: str) -> None:
    datasets = import_datasets()
    check_picture_column(features, image, where)
    answers = features[label]
    plain = isinstance(answers, datasets.Value) and re.fullmatch(r"u?int\d+|bool|(large_)?string", answers.dtype)
    if not (isinstance(answers, datasets.ClassLabel) or plain):
        raise DataError(
            f"{where}: column {label!r} is of type {_type_name(answers)}; each picture has one class, a whole number or a name"
        )


def _type_name(feature: Any) -> str:
    if isinstance(feature, dict):
        return "{" + ", ".join(feature) + "}"
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _is_text(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel" or getattr(feature, "dtype", None) in ("string", "large_string")


def _names_and_labels(table: Table, column: str, pictures: TablePictures) -> tuple[tuple[str, ...], IntArray]:
    import pyarrow

    values, feature = table.arrow(column), table.features[column]
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise DataError(f"{pictures.describe(row)} has no label ({column!r} is null), one of {values.null_count} such rows")
    if type(feature).__name__ == "ClassLabel":
        return tuple(feature.names), values.cast(pyarrow.int64()).to_numpy()
    if feature.dtype.endswith("string") or feature.dtype == "bool":
        texts = np.array([str(value) for value in values.to_pylist()], dtype=object)
        names, labels = np.unique(texts, return_inverse=True)
        return tuple(str(name) for name in names), labels.astype(np.int64)
    try:
        labels = values.cast(pyarrow.int64()).to_numpy()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"column {column!r} of {pictures.name!r} has numbers that are no class indices ({error})") from error
    # Plain numbers count classes from 0. One above the number of rows is some identifier; a list of names up to it would be absurd.
    highest = int(labels.max())
    if highest >= max(len(labels), 1000):
        row = int(labels.argmax())
        raise DataError(
            f"{pictures.describe(row)} has label {highest}, but there are {len(labels)} rows: plain numbers in {column!r} count "
            "classes from 0; write class names instead, or ClassLabel"
        )
    return tuple(str(index) for index in range(highest + 1)), labels


def _check_range(labels: IntArray, names: Sequence[str], pictures: TablePictures) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if wrong.size:
        raise DataError(
            f"{pictures.describe(int(wrong[0]))} has label {labels[wrong[0]]}, outside 0..{len(names) - 1} (there are {len(names)} "
            f"classes); {wrong.size} such rows"
        )


def _texts(table: Table, column: str) -> tuple[str, ...]:
    feature = table.features[column]
    values = table.arrow(column).to_pylist()
    if type(feature).__name__ == "ClassLabel":
        return tuple(str(feature.names[value]) for value in values)
    return tuple(sys.intern(value or "") for value in values)


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Turn what `datasets` raises into a DataError, and keep its progress bars off anything but a terminal."""
    datasets = import_datasets()
    import pyarrow

    hide = not sys.stderr.isatty() and not datasets.utils.are_progress_bars_disabled()
    if hide:
        datasets.utils.disable_progress_bars()
    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        cache = os.fspath(datasets.config.HF_DATASETS_CACHE)
        remedy = f": set HF_DATASETS_CACHE to a folder with room (now {cache})" if _is_about_room(cause) else ""
        raise DataError(f"{what} cannot be loaded ({_first_line(cause)}){remedy}") from error
    finally:
        if hide:
            datasets.utils.enable_progress_bars()


def _is_about_room(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (13, 28, 30, 122)  # denied, disk full, read-only, quota


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
