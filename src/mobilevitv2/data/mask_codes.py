"""What the pixels of a mask file mean: class numbers, numbers shifted by one, or colours."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.problems import shortened
from mobilevitv2.data.sources import IntArray
from mobilevitv2.data.split_files import read_lines, read_text
from mobilevitv2.data.splits import NamedBytes
from mobilevitv2.errors import DataError, ImageError

IGNORED = 255
"""The class number of pixels that do not count."""
Values: TypeAlias = NDArray[np.int32]
_IGNORED_NAMES = ("void", "ignore", "ignored", "unlabelled", "unlabeled", "unknown")
_Colour: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Palette:
    """Colours and the class of each."""

    codes: IntArray
    """Red * 65536 + green * 256 + blue, sorted, (k,)."""
    classes: IntArray
    """The class of each, (k,); 255 for colours to ignore."""

    @classmethod
    def of(cls, colours: Mapping[_Colour, int]) -> Palette:
        """From colour -> class."""
        codes = np.array([red << 16 | green << 8 | blue for red, green, blue in colours], dtype=np.int64)
        order = np.argsort(codes)
        return cls(codes[order], np.array(list(colours.values()), dtype=np.int64)[order])

    def values(self, pixels: NDArray[np.uint8]) -> Values:
        """Classes of (H, W, 3) colours, (H, W); a colour that is not in the palette gives -1 minus its code."""
        codes = pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        at = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        known = self.codes[at] == codes
        return np.asarray(np.where(known, self.classes[at], -1 - codes), dtype=np.int32)


@dataclass(frozen=True, eq=False)
class MaskCode:
    """How the masks of a data set are read."""

    ignore_index: int | None = None
    """A number in the files, besides 255, that is to be ignored."""
    reduce_labels: bool = False
    """Whether 0 in the files is to be ignored and classes count from 1, as in ADE20K."""
    palette: Palette | None = None

    def values(self, content: bytes, name: str) -> Values:
        """Class numbers of an encoded mask, (H, W); 255 to be ignored, and whatever else the file has.

        Raises:
            ImageError: it cannot be read, or it is in colours and there is no palette.
        """
        from mobilevitv2.pictures import read_mask, read_picture

        if _in_colours(content):
            if self.palette is None:
                raise ImageError(
                    f"{name} is in colours, not class numbers, and the data set has no palette that says which colour is which "
                    'class: add palette.json ({"road": [128, 64, 128], ...}), label_colors.txt or class_dict.csv beside the '
                    "pictures, or write the masks as greyscale or palette PNG"
                )
            return self.palette.values(np.asarray(read_picture(NamedBytes(content, name))))
        found = read_mask(NamedBytes(content, name))
        ignored = found == IGNORED
        if self.ignore_index is not None:
            ignored |= found == self.ignore_index
        if self.reduce_labels:
            ignored |= found == 0
            found = found - 1
        return np.where(ignored, np.int32(IGNORED), found)


def _in_colours(content: bytes) -> bool:
    """Whether a file has several channels; False where it cannot be read, which `read_mask` then says."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
    except Exception:  # Pillow raises anything on damaged files
        return False


def voc_colours(count: int) -> dict[_Colour, int]:
    """PASCAL VOC's colours of the first classes, and of its border, which is ignored."""
    colours: dict[_Colour, int] = {}
    for number in range(count):
        red = green = blue = 0
        for bit in range(8):
            bits = number >> (3 * bit)
            red |= (bits & 1) << (7 - bit)
            green |= (bits >> 1 & 1) << (7 - bit)
            blue |= (bits >> 2 & 1) << (7 - bit)
        colours[red, green, blue] = number
    return colours | {(224, 224, 192): IGNORED}


# ------------------------------------------------------------------------------------------------------------------------- palettes


def palette_in(root: Path, names: Sequence[str] | None) -> tuple[Palette, tuple[str, ...]] | None:
    """The palette that a folder says, and the names of its classes; None where there is none.

    Read are palette.json (name or number -> colour, or a list of colours), class_dict.csv (name,r,g,b), label_colors.txt
    (r g b name) and labelmap.txt (name:r,g,b::). Colours called void, ignore or unlabelled are ignored.

    Raises:
        DataError: a palette that cannot be understood, or whose names are not those of the classes.
    """
    readers = {"palette.json": _json, "class_dict.csv": _csv, "label_colors.txt": _text, "labelmap.txt": _labelmap}
    for file, reader in readers.items():
        path = root / file
        if path.is_file():
            entries = reader(path)
            if not entries:
                raise DataError(f"{path} names no colour")
            return _palette(entries, path, names)
    return None


def _palette(entries: Sequence[tuple[str, _Colour]], path: Path, names: Sequence[str] | None) -> tuple[Palette, tuple[str, ...]]:
    listed = tuple(names) if names else None
    if listed is None:
        listed = tuple(dict.fromkeys(name for name, _ in entries if name.lower() not in _IGNORED_NAMES))
    index = {name: number for number, name in enumerate(listed)} | {str(number): number for number in range(len(listed))}
    colours: dict[_Colour, int] = {}
    for name, colour in entries:
        number = index.get(name, IGNORED if name.lower() in _IGNORED_NAMES or name == str(IGNORED) else None)
        if number is None:
            raise DataError(
                f"{path} has a colour for {shortened(name)}, which is none of the classes {shortened(', '.join(listed), 200)}"
            )
        if colours.setdefault(colour, number) != number:
            raise DataError(f"{path} gives the colour {colour} to two classes, {shortened(name)} among them")
    return Palette.of(colours), listed


def _colour(values: Sequence[Any], path: Path) -> _Colour:
    try:
        red, green, blue = (int(value) for value in values[:3])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {shortened(values)} is no colour of three numbers, red, green and blue") from error
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise DataError(f"{path}: {shortened(values)} is no colour; red, green and blue run from 0 to 255")
    return red, green, blue


def _json(path: Path) -> list[tuple[str, _Colour]]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as json ({shortened(error, 100)})") from error
    if isinstance(content, list):
        content = {str(number): colour for number, colour in enumerate(content)}
    if not isinstance(content, dict) or not all(isinstance(colour, list) for colour in content.values()):
        raise DataError(f'{path} is no palette: write {{"road": [128, 64, 128], ...}} or a list of colours, one a class')
    return [(str(name), _colour(colour, path)) for name, colour in content.items()]


def _csv(path: Path) -> list[tuple[str, _Colour]]:
    rows = [row for row in csv.reader(read_lines(path)) if row]
    if rows and not rows[0][-1].strip().isdigit():
        rows = rows[1:]
    return [(row[0].strip(), _colour(row[1:], path)) for row in rows]


def _text(path: Path) -> list[tuple[str, _Colour]]:
    found = []
    for line in read_lines(path):
        match = re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)\s+(.+)", line)
        if not match:
            raise DataError(f"{path}: {shortened(line)} is not of the form red green blue name")
        found.append((match[4].strip(), _colour(match.groups()[:3], path)))
    return found


def _labelmap(path: Path) -> list[tuple[str, _Colour]]:
    found = []
    for line in read_lines(path):
        name, _, rest = line.partition(":")
        if not line.startswith("#") and rest.split(":")[0]:
            found.append((name.strip(), _colour(rest.split(":")[0].split(","), path)))
    return found
