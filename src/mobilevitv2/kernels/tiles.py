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

TILES: dict[Key, Tile] = {
    ("stem", 27, 32): Tile(256, 32, 32, 4, 1, 0),
    ("pointwise", 32, 64, "silu", 0, 0): Tile(64, 32, 64, 4, 3, 4),
    ("depthwise", 64, 1): Tile(16, 4, 64, 4, 1, 0),
    ("pointwise", 64, 64, "none", 0, 0): Tile(64, 64, 64, 4, 3, 4),
    ("pointwise", 64, 128, "silu", 0, 0): Tile(128, 64, 64, 8, 3, 2),
    ("depthwise", 128, 2): Tile(32, 2, 64, 4, 1, 0),
    ("pointwise", 128, 128, "none", 0, 0): Tile(64, 128, 64, 4, 3, 3),
    ("pointwise", 128, 256, "silu", 0, 0): Tile(64, 128, 64, 4, 3, 3),
    ("depthwise", 256, 1): Tile(16, 4, 64, 4, 1, 0),
    ("pointwise", 256, 128, "none", 1, 0): Tile(64, 256, 128, 4, 3, 1),
    ("depthwise", 256, 2): Tile(32, 2, 64, 4, 1, 0),
    ("pointwise", 256, 256, "none", 0, 0): LIBRARY,
    ("pointwise", 256, 512, "silu", 0, 0): Tile(128, 64, 128, 8, 3, 0),
    ("depthwise", 512, 2): Tile(32, 2, 64, 4, 1, 0),
    ("pointwise", 512, 384, "none", 0, 0): LIBRARY,
    ("pointwise", 384, 768, "silu", 0, 0): Tile(128, 64, 128, 8, 3, 0),
    ("depthwise", 768, 2): Tile(32, 2, 64, 4, 1, 0),
    ("pointwise", 768, 512, "none", 0, 0): LIBRARY,
    ("pointwise", 256, 128, "none", 0, 1): Tile(128, 64, 128, 8, 3, 0),
    ("mlp", 128, 128, 1): Tile(64, 64, 128, 4, 2, 0),
    ("mlp", 128, 256, 0): Tile(64, 64, 128, 4, 1, 0),
    ("pointwise", 128, 256, "none", 0, 1): Tile(128, 64, 128, 8, 3, 0),
    ("depthwise", 384, 1): Tile(16, 4, 64, 4, 1, 0),
    ("pointwise", 384, 192, "none", 0, 1): Tile(128, 64, 64, 4, 3, 0),
    ("mlp", 192, 192, 1): Tile(128, 32, 256, 8, 3, 0),
    ("mlp", 192, 384, 0): Tile(128, 64, 256, 8, 2, 0),
    ("pointwise", 192, 384, "none", 0, 1): Tile(128, 64, 128, 8, 3, 0),
    ("depthwise", 512, 1): Tile(16, 4, 64, 4, 1, 0),
    ("pointwise", 512, 256, "none", 0, 1): Tile(64, 64, 64, 4, 3, 0),
}
"""Measured on an H200 with the layers of width 1.0 (benchmarks/inference_gpu.py --tune); keys are those of the functions below."""


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
        # 128 rows of 256 inputs, twice, and the weights are more than the 227 kB of shared memory.
        rule = Tile(64, power(inputs), block, 4, 2, 1) if inputs > 128 else Tile(128, power(inputs), block, 8, 2, 2)
    return TILES.get(("pointwise", inputs, outputs, activation, int(residual), int(statistics)), rule)


def mlp_tile(dim: int, hidden: int, *, gated: bool) -> Tile:
    """All channels of a token in one tile; the hidden channels in steps."""
    block = power(dim)
    rule = Tile(64 if block <= 256 else 32, 64 if block <= 128 else 32, block, 4 if block <= 128 else 8, 2 if block <= 256 else 1)
    return TILES.get(("mlp", dim, hidden, int(gated)), rule)


def power(number: int) -> int:
    """The next power of two, at least what a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(number)))
