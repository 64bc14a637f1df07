"""Masks in the columns of tables: parquet files, folders that `datasets` saved, data sets of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilevitv2.data.mask_folders import MaskSet, RawMasks
from mobilevitv2.data.split_files import class_names_in
from mobilevitv2.data.tables import IMAGE_COLUMNS, Table, check_picture_column, import_datasets, load_hub, load_parquet, load_saved
from mobilevitv2.errors import DataError

MASK_COLUMNS = (
    "mask", "masks", "annotation", "annotations", "label", "labels", "segmentation_mask", "segmentation", "semantic_mask", "target",
    "ground_truth", "gt", "labels_mask", "label_mask",
)  # fmt: skip


def read_mask_parquet(files: Sequence[Path]) -> MaskSet:
    """Parquet files, the split of each by its name or its folder's."""
    return _set(load_parquet(files, _columns), files[0].parent)


def read_saved_masks(folder: Path) -> MaskSet:
    """A folder that `save_to_disk` wrote."""
    return _set(load_saved(folder), folder)


def read_mask_hub(name: str) -> MaskSet:
    """A data set of the hub, "owner/name" or "owner/name:config"."""
    return _set(load_hub(name), Path(name.partition(":")[0]))


def _set(tables: Mapping[str, Table], folder: Path) -> MaskSet:
    splits = []
    for split, table in tables.items():
        image, mask = _columns(table.features, table.where)
        splits.append(RawMasks(split, table.pictures(image), table.pictures(mask)))
    names = class_names_in(folder) if folder.is_dir() else None
    return MaskSet(splits, names)


def _columns(features: Mapping[str, Any], where: str) -> list[str]:
    """The columns of pictures and of masks."""
    datasets = import_datasets()
    lowered = {name.lower(): name for name in features}
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    mask = _named(MASK_COLUMNS, lowered, typed)
    image = _named(IMAGE_COLUMNS, {key: name for key, name in lowered.items() if name != mask}, typed)
    rest = [name for name in typed if name not in (image, mask)]
    image = image or (rest.pop(0) if len(rest) == 1 else None)
    mask = mask or (rest[0] if len(rest) == 1 else None)
    if image is None or mask is None:
        what = "pictures" if image is None else "masks"
        raise DataError(
            f"{where} has no column of {what} that can be told; found: {', '.join(features)}. Name the column of pictures "
            "image and that of masks mask"
        )
    check_picture_column(features, image, where)
    check_picture_column(features, mask, where)
    return [image, mask]


def _named(names: Sequence[str], lowered: Mapping[str, str], typed: Sequence[str]) -> str | None:
    """The first of some names among the columns, those of pictures before others."""
    found = [lowered[name] for name in names if name in lowered]
    return next((name for name in found if name in typed), found[0] if found else None)
