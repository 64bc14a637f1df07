"""Answers beside the truth as one picture: masks in rows of three, boxes over each other."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mobilevitv2.colours import class_colour, is_background
from mobilevitv2.draw import PANEL, QUIET_TEXT, TEXT
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.image_processing import IGNORED_LABEL
from mobilevitv2.lettering import shortened, writable
from mobilevitv2.weights.writing import write_whole

if TYPE_CHECKING:
    from mobilevitv2.evaluate.box_counts import DetectionResult
    from mobilevitv2.evaluate.detection import WithBoxes
    from mobilevitv2.evaluate.pixel_counts import SegmentationResult
    from mobilevitv2.evaluate.segmentation import WithMasks

Colour = tuple[int, int, int]
Mask = np.ndarray[Any, Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TILE, BOX_TILE, GAP, FONT, LINE = 320, 440, 10, 15, 24
"""Pixels: width of a small picture with masks and with boxes, room between them, letters, and lines of text."""
TALLEST = 1.5
"""Times its width, a small picture is at most as high."""
TAG, TAG_FONT = 15, 12
IGNORED, OTHER_CLASS = (128, 128, 128), (255, 0, 255)
STRENGTH = 0.6
"""How much of a class's colour covers the picture."""
MOST_IN_LEGEND = 48
RIGHT, WRONG, MISSED = (70, 225, 95), (255, 80, 70), (80, 190, 255)
OVERLAP, SURE = 0.5, 0.3
"""In pictures, boxes with at least this score are shown, and right from this overlap with a true box of their class on."""


# ---- masks -----------------------------------------------------------------------------------------------------------------------


def save_mask_grid(
    result: SegmentationResult, split: WithMasks, path: str | os.PathLike[str], *, indices: Sequence[int] | None = None
) -> Path:
    """Write pictures, their masks and the predicted masks side by side, with a legend of the classes on them.

    Args:
        result: of `evaluate_segmentation(..., keep=n)` on this split.
        split: the pictures.
        path: .png, .jpg or .webp.
        indices: of the pictures, among those that were kept, in this order; all that were kept, the worst first, if not given.

    Raises:
        ConfigurationError: another suffix, or a picture whose mask was not kept.
    """
    kept = result.masks
    order = sorted(kept, key=lambda index: _or_best(result.picture_miou[index])) if indices is None else list(indices)
    missing = [index for index in order if index not in kept]
    if missing or not order:
        raise ConfigurationError(
            f"the predicted masks of pictures {missing or 'of any kind'} were not kept: evaluate with keep=8, say, and draw those"
        )
    shown: set[int] = set()
    rows = [_mask_row(result, split, index, shown) for index in order]
    legend = _legend(
        [(_name_of(label, split.classes), _colour_of(label, split.classes)) for label in sorted(shown)], 3 * TILE + 4 * GAP
    )
    return _saved(_stacked([_heads(("picture", "truth", "prediction")), *rows, legend]), path)


def _mask_row(result: SegmentationResult, split: WithMasks, index: int, shown: set[int]) -> Image.Image:
    picture, truth, predicted = split.read(index), np.asarray(split.read_mask(index)), result.masks[index]
    size = _tile_size(picture.size, TILE)
    small = picture.resize(size, Image.Resampling.LANCZOS)
    tiles = [small]
    for mask in (truth, predicted):
        labels = np.asarray(Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        shown |= {int(label) for label in np.unique(labels)}
        tiles.append(_painted(small, labels, split.classes))
    miou = result.picture_miou[index]
    score = "no labelled pixel" if miou is None else f"mIoU {100 * miou:.1f} %"
    return _captioned(tiles, f"{Path(split.describe(index)).name}: {score}", TILE)


def _painted(picture: Image.Image, labels: Mask, classes: Sequence[str]) -> Image.Image:
    """The picture darkened, its classes in their colours with dark outlines; the background stays uncoloured."""
    photo = np.asarray(picture, dtype=np.float32)
    painted = 0.55 * photo
    for label in np.unique(labels):
        colour = _colour_of(int(label), classes)
        if colour is not None:
            inside = labels == label
            painted[inside] = (1 - STRENGTH) * photo[inside] + STRENGTH * np.array(colour)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    painted[edge] *= 0.25
    return Image.fromarray(painted.clip(0, 255).astype(np.uint8))


def _colour_of(label: int, classes: Sequence[str]) -> Colour | None:
    if 0 <= label < len(classes):
        return None if is_background(label, classes[label]) else class_colour(label)
    return OTHER_CLASS if label == len(classes) else IGNORED


def _name_of(label: int, classes: Sequence[str]) -> str:
    if 0 <= label < len(classes):
        return classes[label]
    return "another class" if label == len(classes) != IGNORED_LABEL else "ignored"


def _or_best(miou: float | None) -> float:
    return math.inf if miou is None else miou


# ---- boxes -----------------------------------------------------------------------------------------------------------------------


class _Judged(NamedTuple):
    """Boxes of one picture and how they compare."""

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    right: NDArray[np.bool_]
    """Which found boxes are on a true one of their class, each true box counted once."""
    true_boxes: NDArray[np.float32]
    true_labels: NDArray[np.int64]
    missed: NDArray[np.bool_]
    """Which true boxes nothing was found for."""

    @property
    def mistakes(self) -> int:
        return int(self.missed.sum() + (~self.right).sum())


def save_box_grid(
    result: DetectionResult,
    split: WithBoxes,
    path: str | os.PathLike[str],
    *,
    count: int = 12,
    worst: bool = False,
    threshold: float = SURE,
) -> Path:
    """Write pictures with the boxes found, solid and with name and score, and the true ones, dashed, three in a row.

    Found boxes are green where they are on a true one of their class (overlap at least .5) and red elsewhere; true boxes that
    nothing was found for are blue, the others white. Where names would cover each other, that of the surest is written. Crowds and
    difficult objects are left out, with what was found on them.

    Args:
        result: of `evaluate_detection` on this split.
        split: the pictures.
        path: .png, .jpg or .webp.
        count: how many pictures, from the first on.
        worst: those with most mistakes instead.
        threshold: boxes below this score are not shown.

    Raises:
        ConfigurationError: another suffix, or a count below 1.
    """
    if count < 1:
        raise ConfigurationError(f"count={count}: draw 1 picture or more")
    order = sorted(result.found)
    if worst:
        order.sort(key=lambda index: -_judged(result, split, index, threshold).mistakes)
    judged = [(index, _judged(result, split, index, threshold)) for index in order[:count]]
    tiles = [_box_tile(split, index, each) for index, each in judged]
    columns = min(3, len(tiles))
    rows = [_side_by_side(tiles[start : start + columns], columns) for start in range(0, len(tiles), columns)]
    entries: list[tuple[str, Colour | None]] = [
        ("found, right", RIGHT),
        ("found, wrong", WRONG),
        ("true, dashed", TEXT),
        ("true and missed, dashed", MISSED),
    ]
    return _saved(_stacked([*rows, _legend(entries, rows[0].width + 2 * GAP)]), path)


def _judged(result: DetectionResult, split: WithBoxes, index: int, threshold: float) -> _Judged:
    """Found boxes take the true ones of their class that they overlap most, the surest first."""
    found = result.found[index]
    order = np.argsort(-found.scores, kind="stable")
    order = order[found.scores[order] >= threshold]
    boxes, labels, scores = found.boxes[order], found.labels[order], found.scores[order]
    true_boxes, true_labels = split.boxes(index), split.labels(index)
    ignored = split.crowd(index) | split.difficult(index)
    overlaps = _overlaps(boxes, true_boxes) * (labels[:, None] == true_labels)
    right, free = np.zeros(len(boxes), dtype=bool), ~ignored
    for place in range(len(boxes)):
        candidates = np.where(free, overlaps[place], 0)
        if candidates.size and candidates.max() >= OVERLAP:
            right[place] = True
            free[candidates.argmax()] = False
    on_ignored = (overlaps[:, ignored] >= OVERLAP).any(axis=1) & ~right
    shown = ~on_ignored
    return _Judged(
        boxes[shown], labels[shown], scores[shown], right[shown], true_boxes[~ignored], true_labels[~ignored], free[~ignored]
    )


def _overlaps(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union, (n, m)."""
    a, b = boxes[:, None].astype(np.float64), others[None].astype(np.float64)
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    shared = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    ratio: NDArray[np.float64] = shared / np.maximum(union, 1e-9)
    return ratio


def _box_tile(split: WithBoxes, index: int, judged: _Judged) -> Image.Image:
    picture = split.read(index)
    size = _tile_size(picture.size, BOX_TILE)
    small = picture.resize(size, Image.Resampling.LANCZOS)
    scale = np.array([size[0] / picture.width, size[1] / picture.height] * 2)
    pen = ImageDraw.Draw(small)
    tags: list[tuple[tuple[float, float], str, Colour]] = []
    for place in reversed(range(len(judged.boxes))):  # the surest on top
        colour = RIGHT if judged.right[place] else WRONG
        left, top, right, bottom = judged.boxes[place] * scale
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=2)
        tags.append(((left, top - TAG), f"{split.classes[judged.labels[place]]} {100 * judged.scores[place]:.0f} %", colour))
    tags.reverse()
    for box, label, missed in zip(judged.true_boxes * scale, judged.true_labels, judged.missed, strict=True):
        _dashed(pen, box, MISSED if missed else TEXT)
        if missed:
            tags.append(((box[0], box[3]), split.classes[label], MISSED))
    _write_tags(pen, tags, size)
    return _captioned([small], Path(split.describe(index)).name, BOX_TILE)


def _dashed(pen: ImageDraw.ImageDraw, box: NDArray[np.float64], colour: Colour) -> None:
    left, top, right, bottom = box.tolist()
    step, dash = 8, 4
    for start in np.arange(left, right, step):
        for y in (top, bottom):
            pen.line((start, y, min(start + dash, right), y), fill=colour, width=2)
    for start in np.arange(top, bottom, step):
        for x in (left, right):
            pen.line((x, start, x, min(start + dash, bottom)), fill=colour, width=2)


def _write_tags(pen: ImageDraw.ImageDraw, tags: Sequence[tuple[tuple[float, float], str, Colour]], size: tuple[int, int]) -> None:
    """Names on patches of their colours, moved into the picture; those that would cover earlier ones are left out."""
    taken: list[tuple[float, float, float]] = []
    for (x, y), text, colour in tags:
        words, font = writable(text, TAG_FONT)
        words = shortened(pen, words, size[0] - 8, font)
        width = pen.textlength(words, font=font) + 4
        left, top = max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - TAG))
        if any(left < end and start < left + width and abs(top - other) < TAG for start, end, other in taken):
            continue
        taken.append((left, left + width, top))
        pen.rectangle((left, top, left + width, top + TAG), fill=colour)
        pen.text((left + 2, top + TAG / 2), words, fill=(0, 0, 0), font=font, anchor="lm")


# ---- sheets ----------------------------------------------------------------------------------------------------------------------


def _tile_size(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """As wide as a tile, or as high as the tallest one may be."""
    scale = min(tile / size[0], TALLEST * tile / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _captioned(tiles: Sequence[Image.Image], caption: str, tile_width: int) -> Image.Image:
    """Tiles side by side, each in the middle of its column, and a line of text below."""
    step, height = tile_width + GAP, max(tile.height for tile in tiles)
    width = len(tiles) * step - GAP
    sheet = Image.new("RGB", (width, height + LINE), PANEL)
    for column, tile in enumerate(tiles):
        sheet.paste(tile, (column * step + (tile_width - tile.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    text, font = writable(caption, FONT)
    pen.text((0, height + LINE / 2), shortened(pen, text, width, font), fill=QUIET_TEXT, font=font, anchor="lm")
    return sheet


def _heads(titles: Sequence[str]) -> Image.Image:
    sheet = Image.new("RGB", (len(titles) * (TILE + GAP) - GAP, LINE), PANEL)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        text, font = writable(title, FONT)
        pen.text((column * (TILE + GAP) + TILE / 2, LINE / 2), text, fill=TEXT, font=font, anchor="mm")
    return sheet


def _side_by_side(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    step = tiles[0].width + GAP
    sheet = Image.new("RGB", (columns * step - GAP, max(tile.height for tile in tiles)), PANEL)
    for column, tile in enumerate(tiles):
        sheet.paste(tile, (column * step, 0))
    return sheet


def _legend(entries: Iterable[tuple[str, Colour | None]], width: int) -> Image.Image:
    """Names with patches of their colours, in as many lines as they need; an empty patch for what is not coloured."""
    entries = list(entries)
    more = len(entries) - MOST_IN_LEGEND
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], 0.0, 0
    for name, colour in entries[:MOST_IN_LEGEND] + ([(f"and {more} more", None)] if more > 0 else []):
        words, font = writable(name, FONT)
        words = shortened(pen, words, width - 2 * LINE, font)
        length = LINE + pen.textlength(words, font=font) + GAP
        if x and x + length > width - 2 * GAP:
            x, y = 0.0, y + LINE
        places.append((x, y, words, font, colour))
        x += length
    sheet = Image.new("RGB", (width - 2 * GAP, y + LINE), PANEL)
    pen = ImageDraw.Draw(sheet)
    for left, top, words, font, colour in places:
        pen.rectangle((left, top + 5, left + 14, top + 19), fill=colour, outline=QUIET_TEXT)
        pen.text((left + 20, top + LINE / 2), words, fill=TEXT, font=font, anchor="lm")
    return sheet


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    width, height = max(part.width for part in parts), sum(part.height + GAP for part in parts)
    sheet = Image.new("RGB", (width + 2 * GAP, height + GAP), PANEL)
    top = GAP
    for part in parts:
        sheet.paste(part, (GAP, top))
        top += part.height + GAP
    return sheet


def _saved(sheet: Image.Image, path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(f"{target}: pictures are written as {', '.join(SUFFIXES)}, not {target.suffix!r}")
    content = io.BytesIO()
    Image.init()
    sheet.save(content, Image.EXTENSION[target.suffix.lower()])
    write_whole(target, content.getvalue())
    return target
