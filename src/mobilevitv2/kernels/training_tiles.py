"""Which tile each kernel of a training step works on: tables where measured, a rule for all other sizes."""

from __future__ import annotations

from typing import NamedTuple

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]


class Rows(NamedTuple):
    """A tile of pixels.

    Attributes:
        rows: pixels in a row.
        channels: of the result (backward: of the input) in a tile.
        warps: of a program.
        programs: on a multiprocessor, each going through many tiles.
        stages: of loads under way.
    """

    rows: int
    channels: int
    warps: int
    programs: int
    stages: int = 1


class Lanes(NamedTuple):
    """A tile of a depthwise kernel: `rows` lanes of `height` x `width` pixels, and the rest as in `Rows`."""

    rows: int
    channels: int
    height: int
    width: int
    warps: int
    programs: int


LIBRARY = Rows(0, 0, 0, 0)
"""In the place of a tile: torch's product on what other kernels make, faster where the weights fill a multiprocessor."""

LARGEST_RESIDENT = 128
"""Channels up to which a program keeps weights, and the sum of their gradient, where no table says otherwise."""

FORWARD: dict[tuple[int, int], Rows] = {}
"""By input and output channels."""

BACK: dict[tuple[int, int], Rows] = {}
"""By input and output channels."""

DEPTHWISE: dict[tuple[int, int], Lanes] = {}
"""By channels and stride."""

DEPTHWISE_BACK: dict[tuple[int, int], Lanes] = {}
"""By channels and stride, of which height and width are multiples."""


def plain_tile(channels: int) -> Rows:
    """For what takes one value after another."""
    wide = min(128, power(channels))
    return Rows(4096 // wide, wide, 4, 8)


def stem_tile() -> Rows:
    """All outputs in one tile."""
    return Rows(128, 0, 4, 8)


def pointwise_tile(inputs: int, outputs: int) -> Rows:
    """Weights stay with a program."""
    rule = Rows(64 if inputs > 64 else 128, min(128, power(outputs)), 4, 4, 2)
    return FORWARD.get((inputs, outputs), rule if inputs <= LARGEST_RESIDENT else LIBRARY)


def back_tile(inputs: int, outputs: int) -> Rows:
    """Weights, and the sum of their gradient, stay with a program."""
    large = outputs > 64
    rule = Rows(64, min(64, power(inputs)), 8 if large else 4, 2)
    return BACK.get((inputs, outputs), rule if max(inputs, outputs) <= LARGEST_RESIDENT else LIBRARY)


def depthwise_tile(channels: int, stride: int) -> Lanes:
    """Two to four channels a thread."""
    rule = Lanes(8 if stride == 1 else 4, 64, 2, 2, 4, 8)
    return DEPTHWISE.get((channels, stride)) or narrow(rule, channels)


def depthwise_back_tile(channels: int, stride: int) -> Lanes:
    """Nine sums of the filters' gradient are held by each thread."""
    rule = Lanes(8 if stride == 1 else 4, 64, 2, 2, 4, 2 * stride)
    return DEPTHWISE_BACK.get((channels, stride)) or narrow(rule, channels)


def narrow(tile: Lanes, channels: int) -> Lanes:
    """The same number of values with no more channels than there are."""
    wide = min(tile.channels, power(channels))
    return tile._replace(rows=tile.rows * tile.channels // wide, channels=wide)


def power(number: int) -> int:
    """The next power of two, at least what a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(number)))
