"""Which tile each operation works on, layer by layer: `TILES` where measured, a rule for all other sizes."""

from __future__ import annotations

from typing import NamedTuple

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]


class Tile(NamedTuple):
    """What one program works on, and how the compiler lays it out.

    Attributes:
        rows: pixels (depthwise: columns of `step` pixels; stem, context and products: pixels in a row).
        step: input channels in a step (depthwise: height of a column).
        outputs: output channels.
        warps: of a program.
        stages: of loads under way ahead of the product that needs them.
        programs: on a multiprocessor, each going through many tiles with its weights at hand; 0 for a program a tile.
    """

    rows: int
    step: int
    outputs: int
    warps: int
    stages: int
    programs: int = 0


LIBRARY = Tile(0, 0, 0, 0, 0)
"""In the place of a tile: torch's own operation is faster for this layer."""

Key = tuple[str | int, ...]

TILES: dict[Key, Tile] = {}
"""Measured (benchmarks/inference_gpu.py --tune); the keys are those of the functions below."""


def stem_tile(taps: int, outputs: int) -> Tile:
    """Taps are channels times the filter's area."""
    rule = Tile(128, power(taps), power(outputs), 4, 1)
    return TILES.get(("stem", taps, outputs), rule)


def depthwise_tile(height: int, channels: int, stride: int) -> Tile:
    """By the height of the result. Eight channels (16 bytes) and two columns a thread; more pixels where the map is large."""
    outputs = min(64, power(channels))
    rule = Tile(2048 // outputs, 4 if height >= 4 else 1, outputs, 4, 1)
    return TILES.get(("depthwise", channels, stride), rule)


def pointwise_tile(inputs: int, outputs: int, *, activation: str, residual: bool, statistics: bool) -> Tile:
    """With `statistics` tiles are within a picture. Small inputs: weights stay with a program that goes through many tiles."""
    block = min(128, power(outputs))
    rule = Tile(128, 64, block, 8, 3)
    if inputs <= 256 and not statistics:
        rule = Tile(128, power(inputs), block, 8, 2, 1 if inputs > 128 else 2)
    return TILES.get(("pointwise", inputs, outputs, activation, int(residual), int(statistics)), rule)


def mlp_tile(dim: int, hidden: int, *, gated: bool) -> Tile:
    """All channels of a token in one tile; the hidden channels in steps."""
    block = power(dim)
    rule = Tile(64 if block <= 256 else 32, 64 if block <= 128 else 32, block, 4 if block <= 128 else 8, 2 if block <= 256 else 1)
    return TILES.get(("mlp", dim, hidden, int(gated)), rule)


def power(number: int) -> int:
    """The next power of two, at least what a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(number)))
