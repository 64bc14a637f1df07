"""Numbers to 8 bits and back: scales, zero points, weights by channel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
WEIGHT_LIMITS = {8: 127, 7: 63}
"""Weights are -127..127: symmetric, so that no zero point has to be carried through a convolution."""
LEVELS = 255
SMALLEST_SCALE = 1e-8
MOST_VALUES = 32768
"""Of a sample, to choose a grid by, drawn evenly."""
SHRINKS = np.linspace(1.0, 0.5, 26)
"""Shares of the full range that are tried as a clipping point."""


class Grid(NamedTuple):
    """Of a value that is stored as uint8: real = (stored - zero) * scale."""

    scale: float
    zero: int

    def round(self, values: Array) -> Array:
        """What is left of the values after being stored."""
        stored = np.clip(np.rint(values / self.scale) + self.zero, 0, LEVELS)
        kept: Array = (stored - self.zero) * self.scale
        return kept


def grid_over(low: float, high: float) -> Grid:
    """The grid that covers low..high and has zero on it exactly, for padding is zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / LEVELS, SMALLEST_SCALE)
    return Grid(float(np.float32(scale)), int(np.clip(round(-low / scale), 0, LEVELS)))


def best_grid(low: float, high: float, sample: Array) -> Grid:
    """Of the grids over parts of low..high the one with the least squared error on a sample of the values."""
    values = sample[:: max(1, len(sample) // MOST_VALUES)].astype(np.float64)
    grids = [grid_over(low * share, high * share) for share in SHRINKS]
    errors = [float(np.square(grid.round(values) - values).mean()) for grid in grids]
    return grids[int(np.argmin(errors))]


class Stored(NamedTuple):
    """Weights (out, ...) as int8 and the scale of each output channel, (out,) float32."""

    values: Array
    scales: Array

    @property
    def real(self) -> Array:
        """As the runtime sees them."""
        shape = (-1,) + (1,) * (self.values.ndim - 1)
        kept: Array = self.values.astype(np.float32) * self.scales.reshape(shape)
        return kept


def store_weights(weight: Array, *, bits: int = 8) -> Stored:
    """Each output channel on its own scale: of full range and parts of it the one with the least squared error.

    Args:
        weight: (out, ...), float.
        bits: 8 or 7.
    """
    limit = WEIGHT_LIMITS[bits]
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    peaks = np.maximum(np.abs(rows).max(axis=1), SMALLEST_SCALE * limit)
    scales, least = np.empty(len(rows)), np.full(len(rows), np.inf)
    for share in SHRINKS:
        tried = (share * peaks / limit).astype(np.float32).astype(np.float64)
        error = np.square(_round(rows, tried, limit) * tried[:, None] - rows).sum(axis=1)
        better = error < least
        scales[better], least[better] = tried[better], error[better]
    values = _round(rows, scales, limit).astype(np.int8).reshape(weight.shape)
    return Stored(values, scales.astype(np.float32))


def _round(rows: Array, scales: Array, limit: int) -> Array:
    kept: Array = np.clip(np.rint(rows / scales[:, None]), -limit, limit)
    return kept
