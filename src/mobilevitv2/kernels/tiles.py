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

    def smaller(self) -> Tile | None:
        """The next one that wants less shared memory; None where there is none."""
        if self.stages > 1:
            return self._replace(stages=self.stages - 1)
        if self.programs:  # weights that do not stay need not all be there
            return Tile(64, 64, min(64, self.outputs), 4, 2)
        if self.rows > 16:
            return self._replace(rows=self.rows // 2)
        return self._replace(step=self.step // 2) if self.step > 16 else None


LIBRARY = Tile(0, 0, 0, 0, 0)
"""In the place of a tile: torch's own operation is faster for this layer."""

Key = tuple[str | int, ...]

TILES: dict[Key, Tile] = {
    ("stem", 27, 32): Tile(256, 32, 32, 4, 1, 0),
    ("pointwise", 32, 64, "silu", 0, 0): Tile(64, 32, 64, 4, 3, 4),
    ("depthwise", 64, 1): Tile(8, 8, 64, 4, 1, 0),
    ("pointwise", 64, 64, "none", 0, 0): Tile(64, 64, 64, 4, 3, 4),
    ("pointwise", 64, 128, "silu", 0, 0): Tile(64, 64, 128, 4, 3, 3),
    ("depthwise", 128, 2): Tile(8, 4, 64, 4, 1, 0),
    ("pointwise", 128, 128, "none", 0, 0): Tile(64, 128, 64, 4, 3, 3),
    ("pointwise", 128, 256, "silu", 0, 0): Tile(64, 128, 128, 4, 3, 2),
    ("depthwise", 256, 1): Tile(8, 4, 64, 4, 1, 0),
    ("pointwise", 256, 128, "none", 1, 0): Tile(64, 256, 128, 4, 3, 1),
    ("depthwise", 256, 2): Tile(8, 4, 64, 4, 1, 0),
    ("pointwise", 256, 256, "none", 0, 0): LIBRARY,
    ("pointwise", 256, 512, "silu", 0, 0): Tile(64, 256, 128, 4, 3, 1),
    ("depthwise", 512, 2): Tile(8, 4, 64, 4, 1, 0),
    ("pointwise", 512, 384, "none", 0, 0): LIBRARY,
    ("pointwise", 384, 768, "silu", 0, 0): Tile(128, 64, 128, 8, 3, 0),
    ("depthwise", 768, 2): Tile(8, 4, 64, 4, 1, 0),
    ("pointwise", 768, 512, "none", 0, 0): LIBRARY,
    ("pointwise", 256, 128, "none", 0, 1): Tile(128, 64, 128, 8, 3, 0),
    ("mlp", 128, 128, 1): Tile(64, 32, 128, 4, 3, 0),
    ("mlp", 128, 256, 0): Tile(64, 32, 128, 4, 3, 0),
    ("pointwise", 128, 256, "none", 0, 1): Tile(64, 64, 128, 4, 3, 0),
    ("depthwise", 384, 1): Tile(8, 8, 64, 4, 1, 0),
    ("pointwise", 384, 192, "none", 0, 1): Tile(128, 64, 64, 4, 3, 0),
    ("mlp", 192, 192, 1): Tile(64, 32, 128, 4, 3, 0),
    ("mlp", 192, 384, 0): Tile(64, 32, 128, 4, 3, 0),
    ("pointwise", 192, 384, "none", 0, 1): Tile(128, 64, 128, 8, 3, 0),
    ("depthwise", 512, 1): Tile(8, 8, 64, 4, 1, 0),
    ("pointwise", 512, 256, "none", 0, 1): Tile(64, 64, 64, 4, 3, 0),
}
"""Measured on an H200 with the layers of width 1.0 (benchmarks/inference_gpu.py --tune); keys are those of the functions below."""


FEW_PROGRAMS = 128
"""About as many as an H100 has multiprocessors; where a layer would have fewer, smaller tiles keep more of them busy."""


def stem_tile(taps: int, outputs: int) -> Tile:
    """Taps are channels times the filter's area."""
    rule = Tile(128, power(taps), power(outputs), 4, 1)
    return TILES.get(("stem", taps, outputs), rule)


def depthwise_tile(height: int, width: int, channels: int, stride: int) -> Tile:
    """By the sides of the result. Eight channels (16 bytes) and several pixels a thread; narrow maps take more channels instead."""
    outputs = min(64, power(channels))
    rule = Tile(512 // outputs, 4 if height >= 4 else 1, outputs, 4, 1)
    tile = TILES.get(("depthwise", channels, stride), rule)
    while tile.rows >= 2 * width and tile.rows > 1:
        tile = tile._replace(rows=tile.rows // 2, outputs=min(2 * tile.outputs, power(channels)))
    return tile


def pointwise_tile(inputs: int, outputs: int, rows: int, *, activation: str, residual: bool, pictures: bool = False) -> Tile:
    """With `pictures` tiles are within a picture. Small inputs: weights stay with a program that goes through many tiles."""
    block = min(128, power(outputs))
    rule = Tile(128, 64, block, 8, 3)
    if inputs <= 256 and not pictures:
        # 128 rows of 256 inputs, twice, and the weights are more than the 227 kB of shared memory.
        rule = Tile(64, power(inputs), block, 4, 2, 1) if inputs > 128 else Tile(128, power(inputs), block, 8, 2, 2)
    tile = TILES.get(("pointwise", inputs, outputs, activation, int(residual), int(pictures)), rule)
    few = tile != LIBRARY and cdiv(rows, tile.rows) * cdiv(outputs, tile.outputs) < FEW_PROGRAMS
    return Tile(32, min(128, power(inputs)), min(32, power(outputs)), 4, 3) if few else tile


def mlp_tile(dim: int, hidden: int, batch: int, rows: int, *, gated: bool) -> Tile:
    """Tokens of a tile have all their channels, the hidden channels come in steps; `rows` are a picture's tokens."""
    block = first_part(dim)
    rule = Tile(64, 32, block, 4, 3 if block <= 128 else 2) if block <= 256 else Tile(32, 32, block, 8, 1)
    tile = TILES.get(("mlp", dim, hidden, int(gated)), rule)
    for smaller in (32, 16):
        if tile.rows > smaller and batch * cdiv(rows, tile.rows) < FEW_PROGRAMS:
            tile = Tile(smaller, 64 if block <= 256 else 32, block, 4, 3 if block <= 256 else 2)
    return tile


def first_part(number: int) -> int:
    """A power of two: the whole of a number, or its larger part where a second power of two, at least 16, saves something."""
    whole, part = power(number), power(number) // 2
    return part if part >= 16 and part + power(number - part) < whole else whole


def cdiv(number: int, by: int) -> int:
    """Quotient, rounded up."""
    return -(-number // by)


def power(number: int) -> int:
    """The next power of two, at least what a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(number)))
