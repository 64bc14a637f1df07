"""Anchors: the boxes that a detector's answers are relative to.

Each level of the detector is a grid of cells laid over the whole picture; in the middle of each cell stand boxes of a few sizes and
shapes. All are in units of the picture, so they depend on the grids' sizes and on nothing else.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

GridSize = tuple[int, int]
"""(rows, columns) of a level."""
Shapes = tuple[tuple[float, float], ...]
"""(width, height) of each box of a cell."""

CACHE_SIZE = 32
"""Sets of anchors kept: multi-scale training uses a handful of sizes."""


def cell_shapes(scale_range: Sequence[float], aspect_ratios: Sequence[Sequence[float]]) -> tuple[Shapes, ...]:
    """The boxes of a cell, for each level, in units of the picture.

    Args:
        scale_range: side of the smallest square of the first level, and of what would be the smallest of one level more.
        aspect_ratios: for each level the ratios of its oblong boxes; each gives one lying and one standing.

    Returns:
        For each level: the small square, the large one (geometric mean with the next level's small one), then the oblong ones, each
        of the small square's area, lying before standing.
    """
    first, last = scale_range
    levels = len(aspect_ratios)
    sides = [first + (last - first) * level / levels for level in range(levels + 1)]
    shapes = []
    for side, following, ratios in zip(sides[:-1], sides[1:], aspect_ratios, strict=True):
        large = math.sqrt(side * following)
        boxes = [(side, side), (large, large)]
        for ratio in ratios:
            stretch = math.sqrt(ratio)
            boxes += [(side * stretch, side / stretch), (side / stretch, side * stretch)]
        shapes.append(tuple(boxes))
    return tuple(shapes)


def grid_anchors(grids: Sequence[GridSize], shapes: Sequence[Shapes], *, device: torch.device | str | None = None) -> Tensor:
    """All anchors of a picture.

    Args:
        grids: size of each level.
        shapes: boxes of a cell of each level, as `cell_shapes` gives them.
        device: where the answer is.

    Returns:
        (anchors, 4), float32, (centre x, centre y, width, height) in units of the picture, each clamped to 0..1; level by level,
        row by row, cell by cell, in the order of `shapes`.
    """
    levels = [_level(rows, columns, boxes, device) for (rows, columns), boxes in zip(grids, shapes, strict=True)]
    return torch.cat(levels).clamp(0, 1)


def _level(rows: int, columns: int, boxes: Shapes, device: torch.device | str | None) -> Tensor:
    size = torch.tensor(boxes, dtype=torch.float32, device=device)  # (boxes, 2)
    x = (torch.arange(columns, dtype=torch.float32, device=device) + 0.5) / columns
    y = (torch.arange(rows, dtype=torch.float32, device=device) + 0.5) / rows
    grid = (rows, columns, len(boxes))
    parts = (x[None, :, None], y[:, None, None], size[:, 0], size[:, 1])
    return torch.stack([part.expand(grid) for part in parts], dim=-1).flatten(0, 2)


class AnchorCache:
    """`grid_anchors`, remembered for the sizes and devices last used; safe between threads.

    Inside torch.compile, torch.export and tracing nothing is remembered: there the anchors become part of the program.
    """

    def __init__(self, size: int = CACHE_SIZE) -> None:
        self.size = size
        self._kept: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, grids: Sequence[GridSize], shapes: tuple[Shapes, ...], device: torch.device) -> Tensor:
        """See `grid_anchors`."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return grid_anchors(grids, shapes, device=device)
        key = (tuple(grids), shapes, device)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # A tensor made in inference mode could take no part in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            anchors = grid_anchors(grids, shapes, device=device)
        if type(anchors) is Tensor:  # not the stand-in of a mode that traces shapes
            with self._lock:
                self._kept[key] = anchors
                while len(self._kept) > self.size:
                    self._kept.popitem(last=False)
        return anchors


cached_anchors = AnchorCache()
