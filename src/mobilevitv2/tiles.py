"""Large pictures in pieces: where the tiles lie, scores blended where they overlap, boxes merged where they were found twice.

What is held at a time is two rows of tiles as the model answers them (a few hundred times smaller than the pixels) and one strip
of scores; the map of classes is the only thing of the picture's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL import Image

Array = np.ndarray[Any, Any]
Span = tuple[int, int]

SMALLEST_TILE = 64
OVERLAP = 4
"""Neighbours share at least a fourth of their side."""
STRIP_ELEMENTS = 2**24
"""Scores held at a time (64 MB as float32)."""
EDGE = 0.01
"""A box that ends within this part of the tile's side from a cut may go on behind it."""


class Found(NamedTuple):
    """What a detector found on one picture."""

    scores: Array
    """(n,) 0 to 1."""
    labels: Array
    """(n,) indices of classes."""
    boxes: Array
    """(n, 4) left, top, right, bottom in pixels."""


def check_tile(tile: int | None) -> None:
    """Raises: ConfigurationError: a side of less than 64 pixels."""
    if tile is not None and tile < SMALLEST_TILE:
        raise ConfigurationError(f"tile={tile} is too small to see anything on; use at least {SMALLEST_TILE} pixels, better 1024.")


def spans(length: int, tile: int) -> list[Span]:
    """(start, end) of the tiles along a side: evenly spread, all of the same length, with at least a fourth of overlap."""
    if length <= tile:
        return [(0, length)]
    overlap = tile // OVERLAP
    count = math.ceil((length - overlap) / (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    return [(start, start + tile) for start in starts]


def mask_in_tiles(
    picture: Image.Image, tile: int, *, scores: Callable[[list[Image.Image]], Tensor], num_labels: int, batch_size: int
) -> Array:
    """The class of each pixel (height, width), uint8 or int16.

    Args:
        picture: larger than a tile.
        tile: side in pixels of the picture.
        scores: a list of tiles of one size -> (n, classes, h, w) of any h and w, that reach from corner pixel to corner pixel.
        num_labels: number of classes.
        batch_size: tiles that are scored at once.
    """
    rows, columns = spans(picture.height, tile), spans(picture.width, tile)
    mask = np.empty((picture.height, picture.width), dtype=mask_type(num_labels))
    scored: dict[int, list[Tensor]] = {}
    for top, bottom in _cells(rows):
        over = _covering(rows, top, bottom)
        for index in over:
            if index not in scored:
                scored[index] = list(_scored(picture, rows[index], columns, scores, batch_size))
        scored = {index: scored[index] for index in over}  # the rows above are done with
        for left, right in _cells(columns):
            beside = _covering(columns, left, right)
            step = max(1, STRIP_ELEMENTS // (num_labels * (right - left)))
            for start in range(top, bottom, step):
                strip = (start, min(start + step, bottom))
                blended = _blended(scored, rows, columns, over, beside, strip, (left, right))
                mask[strip[0] : strip[1], left:right] = blended.max(0).indices.cpu().numpy()
    return mask


def mask_type(num_labels: int) -> Any:
    """The smallest type that holds the classes."""
    return np.uint8 if num_labels <= 256 else np.int16


def _cells(tiles: list[Span]) -> list[Span]:
    """The side cut at every start and end of a tile: the same tiles lie over all of a piece."""
    cuts = sorted({end for span in tiles for end in span})
    return list(pairwise(cuts))


def _covering(tiles: list[Span], start: int, end: int) -> list[int]:
    return [index for index, (first, last) in enumerate(tiles) if first <= start and end <= last]


def _scored(
    picture: Image.Image, row: Span, columns: list[Span], scores: Callable[[list[Image.Image]], Tensor], batch_size: int
) -> Iterator[Tensor]:
    for first in range(0, len(columns), batch_size):
        crops = [picture.crop((left, row[0], right, row[1])) for left, right in columns[first : first + batch_size]]
        yield from scores(crops).float()


def _blended(
    scored: dict[int, list[Tensor]], rows: list[Span], columns: list[Span], over: list[int], beside: list[int], y: Span, x: Span
) -> Tensor:
    """(classes, rows, columns) of one piece: the sum of its tiles' scores, each by its window, which sum up to the same everywhere.

    Only which class has the most is asked for, so that the sum need not be divided.
    """
    total: Tensor | None = None
    for i in over:
        for j in beside:
            logits = scored[i][j]
            part = _stretched(logits, (rows[i], columns[j]), y, x)
            if len(over) > 1 or len(beside) > 1:
                down, across = _window(rows, i, y).to(logits.device), _window(columns, j, x).to(logits.device)
                part = part * down[:, None] * across
            total = part if total is None else total + part
    assert total is not None  # the tiles cover the picture
    return total


def _window(tiles: list[Span], index: int, piece: Span) -> Tensor:
    """The weight of a tile along a piece: 1, but rising smoothly (sine squared) over what it shares with its neighbours."""
    start, end = tiles[index]
    place = torch.arange(*piece) + 0.5
    weight = torch.ones(len(place))
    if index > 0:
        weight *= ((place - start) / (tiles[index - 1][1] - start)).clamp(0, 1).mul(math.pi / 2).sin() ** 2
    if index < len(tiles) - 1:
        weight *= ((end - place) / (end - tiles[index + 1][0])).clamp(0, 1).mul(math.pi / 2).sin() ** 2
    return weight


def _stretched(logits: Tensor, tile: tuple[Span, Span], y: Span, x: Span) -> Tensor:
    """(classes, h, w) of a whole tile -> (classes, rows, columns) of a piece of it; bilinear, align_corners=True."""
    wide = _along(logits, -1, tile[1], x)
    return _along(wide, -2, tile[0], y)


def _along(values: Tensor, dim: int, tile: Span, piece: Span) -> Tensor:
    size = values.shape[dim]
    place = torch.arange(piece[0] - tile[0], piece[1] - tile[0], device=values.device) * (
        (size - 1) / max(tile[1] - tile[0] - 1, 1)
    )
    below = place.long().clamp(max=size - 1)
    above = (below + 1).clamp(max=size - 1)
    share = (place - below).to(values.dtype)
    share = share if dim == -1 else share[:, None]
    first, second = values.index_select(dim, below), values.index_select(dim, above)
    return torch.lerp(first, second, share.expand_as(first))


# ---- boxes -----------------------------------------------------------------------------------------------------------------------


def boxes_in_tiles(
    picture: Image.Image, tile: int, *, find: Callable[[list[Image.Image]], list[Found]], batch_size: int, iou: float = 0.5
) -> Found:
    """What is on the picture as a whole and on its tiles, each object once.

    Args:
        picture: larger than a tile.
        tile: side in pixels of the picture.
        find: pictures of one size -> what was found on each.
        batch_size: tiles that are looked at at once.
        iou: boxes of one class that share more than this (intersection over union) are one object; the surest stays.
    """
    places = [
        (left, top, right, bottom) for top, bottom in spans(picture.height, tile) for left, right in spans(picture.width, tile)
    ]
    parts, cut = [find([picture])[0]], []
    cut.append(np.zeros(len(parts[0].scores), dtype=bool))
    for first in range(0, len(places), batch_size):
        some = places[first : first + batch_size]
        for place, found in zip(some, find([picture.crop(place) for place in some]), strict=True):
            boxes = found.boxes + np.array([place[0], place[1], place[0], place[1]], dtype=np.float32)
            cut.append(_cut_off(boxes, place, picture.size))
            parts.append(found._replace(boxes=boxes))
    merged = Found(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    keep = _each_once(merged, np.concatenate(cut), iou)
    return Found(merged.scores[keep], merged.labels[keep], merged.boxes[keep])


def _cut_off(boxes: Array, place: tuple[int, int, int, int], size: tuple[int, int]) -> Array:
    """Which boxes end at a side of their tile that is no side of the picture."""
    left, top, right, bottom = place
    near = EDGE * max(right - left, bottom - top)
    cut = np.zeros(len(boxes), dtype=bool)
    cut |= (left > 0) & (boxes[:, 0] < left + near)
    cut |= (top > 0) & (boxes[:, 1] < top + near)
    cut |= (right < size[0]) & (boxes[:, 2] > right - near)
    cut |= (bottom < size[1]) & (boxes[:, 3] > bottom - near)
    return cut


def _each_once(found: Found, cut: Array, iou: float) -> Array:
    """The places of the boxes to keep, surest first. Of a cut object the whole box counts more, however sure the piece was."""
    order = np.lexsort((-found.scores, cut))
    keep = []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        common, own, its = _overlap(found.boxes[best], found.boxes[order])
        twice = common > iou * (own + its - common)
        twice |= cut[order] & (common > 0.6 * its)  # a piece of what the best shows whole
        order = order[~(twice & (found.labels[order] == found.labels[best]))]
    kept = np.array(keep, dtype=np.int64)
    return kept[np.argsort(-found.scores[kept], kind="stable")]


def _overlap(box: Array, boxes: Array) -> tuple[Array, float, Array]:
    """Areas in pixels: shared by the box and each of the boxes, of the box, of each of the boxes."""
    corner = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    sides, own = boxes[:, 2:] - boxes[:, :2], box[2:] - box[:2]
    return corner.clip(min=0).prod(axis=1), float(own.prod()), sides.prod(axis=1)
