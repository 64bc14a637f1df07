"""Pictures to measure ranges on: from folders, files, data sets of any layout the package opens, or in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.errors import ConfigurationError, DataError, ImageError, MissingDependency
from mobilevitv2.picture_sources import find_pictures
from mobilevitv2.pictures import read_picture
from mobilevitv2.runtime.preprocessing import prepare
from mobilevitv2.text_table import counted

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.runtime.metadata import PictureContract

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Reader = Callable[[], Any]
FEW = 16
"""With fewer pictures all serve for the ranges, and the loss is measured on the same ones."""
HELD_OUT = 4
"""One picture in so many is kept from the ranges, to measure the loss on."""
SAMPLES = 8
MOST_NAMED = 3
SAFE_BITS = 7


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What ranges are measured on, and how.

    Attributes:
        data: a folder of pictures, a data set of any layout that the package opens (its train split, or the first it has), a glob,
            a path, or pictures.
        pictures: at most so many are used, drawn evenly.
        weight_bits: 7 (where None), or 8, for ONNX and OpenVINO. Processors without VNNI (x86 before 2019) add products in 16 bits,
            which overflow with 8; docs/quantisation.md has what 7 cost elsewhere.
    """

    data: Any
    pictures: int = 192
    weight_bits: int | None = None

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ConfigurationError(f"pictures={self.pictures}; calibration needs 1 at least, and 100 to 300 serve best.")
        if self.weight_bits not in (None, 7, 8):
            raise ConfigurationError(
                f"weight_bits={self.weight_bits} (--weight-bits); it is 7, which every processor adds up right, or 8."
            )

    @classmethod
    def of(cls, given: Any) -> Calibration:
        """The argument of `export`: data, or this."""
        return given if isinstance(given, cls) else cls(data=given)


@dataclass(frozen=True)
class Calibrated:
    """Pictures as the file's input contract cuts them.

    Attributes:
        ranges: uint8 (n, height, width, 3), for the ranges.
        held: the same, to measure the loss on; `ranges` itself where there are few.
        skipped: what could not be read, each with the reason.
        samples: some of the held pictures as they were, to verify on.
        found: how many pictures there are in all.
        weight_bits: 7 or 8, as in `Calibration`.
    """

    ranges: Array
    held: Array
    skipped: tuple[str, ...]
    samples: tuple[Image.Image, ...]
    found: int
    weight_bits: int = SAFE_BITS

    @property
    def note(self) -> str:
        """For the report; empty where all could be read and there are enough."""
        parts = []
        if self.skipped:
            shown = "; ".join(self.skipped[:MOST_NAMED])
            more = f"; and {len(self.skipped) - MOST_NAMED} more" if len(self.skipped) > MOST_NAMED else ""
            were = "was" if len(self.skipped) == 1 else "were"
            parts.append(f"{counted(len(self.skipped), 'calibration picture')} could not be read and {were} skipped: {shown}{more}")
        if len(self.ranges) < FEW:
            parts.append(
                f"ranges come from {counted(len(self.ranges), 'picture')} only; 100 to 300 like those to come serve better"
            )
        return "; ".join(parts)


def read_calibration(calibration: Calibration, contract: PictureContract, *, task: str) -> Calibrated:
    """Read the pictures, drawn evenly over the data; unreadable ones are skipped and named.

    Raises:
        ConfigurationError: there are none, or none can be read.
        DataError: a name that is neither folder, file nor data set.
    """
    readers = _readers(calibration.data, task)
    order = np.random.default_rng(0).permutation(len(readers))
    prepared: list[Array] = []
    samples: list[Image.Image] = []
    skipped: list[str] = []
    for index in order:
        if len(prepared) == calibration.pictures:
            break
        try:
            picture = readers[index]()
            prepared.append(prepare(picture, contract))
            if len(prepared) % HELD_OUT == 0 and len(samples) < SAMPLES:
                samples.append(picture)
        except ImageError as error:
            skipped.append(str(error))
    if not prepared:
        last = f" The last one: {skipped[-1]}" if skipped else ""
        what = "the one calibration picture cannot" if len(readers) == 1 else f"none of the {len(readers)} calibration pictures can"
        raise ConfigurationError(f"{what} be read; pass others as calibration (--calibrate DATA).{last}")
    if skipped:  # the report tells the user
        logger.info("%d of %d calibration pictures could not be read; the first: %s", len(skipped), len(readers), skipped[0])
    pixels = np.stack(prepared)
    many = len(pixels) >= FEW
    held = np.arange(len(pixels)) % HELD_OUT == HELD_OUT - 1
    return Calibrated(
        ranges=pixels[~held] if many else pixels,
        held=pixels[held] if many else pixels,
        skipped=tuple(skipped),
        samples=tuple(samples),
        found=len(readers),
        weight_bits=calibration.weight_bits or SAFE_BITS,
    )


def _readers(data: Any, task: str) -> Sequence[Reader]:
    """A function for each picture there is."""
    if isinstance(data, str | os.PathLike):
        return _of_path(os.fspath(data), task)
    if not isinstance(data, Iterable):
        raise ConfigurationError(f"calibration is a {type(data).__name__}; pass a folder, a data set, paths or pictures.")
    readers: list[Reader] = []
    for each in data:
        sources = _found([each]) if isinstance(each, str | os.PathLike) else [each]
        readers += [_reading(source) for source in sources]
    if not readers:
        raise ConfigurationError("calibration (--calibrate) is empty; pass a folder, a data set, paths or pictures.")
    return readers


def _of_path(source: str, task: str) -> Sequence[Reader]:
    """A data set where it is one, so that masks are not taken for pictures; else all pictures below."""
    try:
        split = _split(source, task)
    except (DataError, ConfigurationError, MissingDependency) as error:
        if not os.path.exists(source) and not any(sign in source for sign in "*?["):
            raise
        logger.debug("%s is no data set for the task %s (%s); taken for pictures", source, task, error)
        return [_reading(name) for name in _found([source])]
    return [_reading_of(split, index) for index in range(len(split))]


def _split(source: str, task: str) -> Any:
    from mobilevitv2.data.classification import open_classification_data
    from mobilevitv2.data.detection import open_detection_data
    from mobilevitv2.data.segmentation import open_segmentation_data

    openers: dict[str, Callable[..., Any]] = {
        "classify": open_classification_data,
        "segment": open_segmentation_data,
        "detect": open_detection_data,
    }
    splits = openers[task](source, validation_fraction=0).splits
    return next(iter(splits.values()))


def _found(sources: Sequence[str | os.PathLike[str]]) -> list[str]:
    try:
        return find_pictures(sources)
    except ImageError as error:
        raise ConfigurationError(f"calibration: {error}") from error


def _reading(source: Any) -> Reader:
    return lambda: read_picture(source)


def _reading_of(split: Any, index: int) -> Reader:
    return lambda: split.read(index)
