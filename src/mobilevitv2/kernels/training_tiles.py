"""Which tile each kernel of a training step works on."""

from __future__ import annotations

from typing import NamedTuple

from mobilevitv2.kernels.tiles import power


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

    def smaller(self) -> Rows | None:
        """The next one that wants less shared memory, at last torch's product; None behind that."""
        if self == LIBRARY:
            return None
        if self.stages > 1:
            return self._replace(stages=self.stages - 1)
        return self._replace(rows=self.rows // 2) if self.rows > 16 else LIBRARY


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
"""Channels up to which a program keeps weights, and the sum of their gradient."""


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
    return rule if inputs <= LARGEST_RESIDENT else LIBRARY


def back_tile(inputs: int, outputs: int) -> Rows:
    """Weights, and the sum of their gradient, stay with a program."""
    large = outputs > 64
    rule = Rows(64, min(64, power(inputs)), 8 if large else 4, 2)
    return rule if max(inputs, outputs) <= LARGEST_RESIDENT else LIBRARY


def depthwise_tile(channels: int, stride: int) -> Lanes:
    """Two to four channels a thread."""
    return narrow(Lanes(8 if stride == 1 else 4, 64, 2, 2, 4, 8), channels)


def depthwise_back_tile(channels: int, stride: int) -> Lanes:
    """Nine sums of the filters' gradient are held by each thread."""
    return narrow(Lanes(8 if stride == 1 else 4, 64, 2, 2, 4, 2 * stride), channels)


def narrow(tile: Lanes, channels: int) -> Lanes:
    """The same number of values with no more channels than there are."""
    wide = min(tile.channels, power(channels))
    return tile._replace(rows=tile.rows * tile.channels // wide, channels=wide)
