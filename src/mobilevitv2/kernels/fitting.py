"""Smaller tiles for GPUs with less room than those that the tables of tiles were made on.

Triton compiles a kernel for a tile, compares what it needs with what the GPU has, and refuses before anything runs. Then the next
smaller tile is tried, and remembered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
from triton.runtime.errors import OutOfResources  # type: ignore[import-untyped, import-not-found, unused-ignore]

logger = logging.getLogger(__name__)


class Shrinkable(Protocol):
    """A tile that knows the next smaller one."""

    def smaller(self) -> Self | None:
        """None where there is none."""


AnyTile = TypeVar("AnyTile", bound=Shrinkable)
Result = TypeVar("Result")

_found: dict[tuple[object, ...], Shrinkable] = {}
"""By operation, device, dtype and the tile that did not fit."""


def fitted(run: Callable[..., Result], tile: AnyTile, operation: str, x: torch.Tensor) -> Result:
    """`run(tile=...)` with a tile, or with the largest of the smaller ones that the GPU of x has room for.

    Raises:
        OutOfResources: not even the smallest fits.
    """
    wanted = tile
    if _found:  # nothing is looked up at each launch where all tiles fit
        tile = _found.get((operation, x.device, x.dtype, wanted), tile)  # type: ignore[assignment]
    while True:
        try:
            return run(tile=tile)
        except OutOfResources as error:
            less = tile.smaller()
            if less is None:
                raise
            if tile is wanted:
                logger.warning("%s: %s has no room for %s, so smaller tiles are taken: %s", operation, x.device, tile, error)
            tile = less
            _found[operation, x.device, x.dtype, wanted] = tile
