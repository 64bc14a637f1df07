"""Rounding to 8 bits inside a network that trains: of values, and of weights by output channel.

Gradients pass a rounding as if it were not there, and stop where a value was cut off (arXiv 1712.05877).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevitv2.export.quantise.arithmetic import LEVELS, SMALLEST_SCALE, WEIGHT_LIMITS, Grid, best_grid, store_weights

LIMIT = WEIGHT_LIMITS[7]
SAMPLE = 2048
"""Values of each place that are kept of each picture."""


class Rounded(nn.Module):
    """A value that is stored as uint8 at this place; as it is until a grid was found."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: Grid | None = None
        self.looking = False
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.samples: list[np.ndarray[Any, Any]] = []
        self.sums: Tensor | None = None
        self.pictures = 0
        self.size = 0

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.looking:
            self._look(x)
        if self.grid is None:
            return x
        return torch.fake_quantize_per_tensor_affine(x.float(), self.grid.scale, self.grid.zero, 0, LEVELS)

    def _look(self, x: Tensor) -> None:
        self.lows.append(float(x.min()))
        self.highs.append(float(x.max()))
        flat = x.reshape(-1)
        self.size = flat.numel() // len(x)
        # The same draw for every place of this size: one value at two places is rounded on one grid, so that the second rounding
        # changes nothing.
        generator = torch.Generator().manual_seed(flat.numel())
        drawn = torch.randint(0, flat.numel(), (min(flat.numel(), SAMPLE * len(x)),), generator=generator)
        self.samples.append(flat[drawn.to(x.device)].cpu().numpy())
        sums = x.mean(dim=tuple(range(2, x.ndim))).sum(dim=0)
        self.sums = sums if self.sums is None else self.sums + sums
        self.pictures += len(x)

    def sample(self) -> np.ndarray[Any, Any]:
        """Values seen while looking, (n,)."""
        return np.concatenate(self.samples)

    def means(self) -> Tensor:
        """Of each channel while looking, (C,)."""
        assert self.sums is not None
        return self.sums / self.pictures

    def settle(self) -> None:
        """From looking to rounding."""
        if self.samples:
            self.grid = best_grid(min(self.lows), max(self.highs), self.sample())
        self.looking = False
        self.lows, self.highs, self.samples, self.sums = [], [], [], None


class RoundedRows(nn.Module):
    """Weights of a convolution by output channel, with the bias that makes up for what rounding does to the mean of a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: Tensor | None
        self.means: Tensor | None
        self.zeros: Tensor | None
        for name in ("shares", "means", "zeros"):
            self.register_buffer(name, None, persistent=False)

    def settle(self, weight: Tensor, means: Tensor) -> None:
        """Choose how much of each row's range the grid covers.

        Args:
            weight: (out, in / groups, ...), float.
            means: of the input's channels, (in,).
        """
        rows = weight.detach()
        scales = torch.from_numpy(store_weights(rows.cpu().numpy(), bits=7).scales).to(rows.device)
        self.shares = (scales * LIMIT / _peaks(rows)).clamp(max=1.0)
        self.means = means
        self.zeros = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)

    def forward(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(out, in / groups, ...) and (out,) as the file has them."""
        if self.shares is None or self.means is None or self.zeros is None:
            return weight, bias
        scales = self.shares * _peaks(weight.detach()) / LIMIT
        kept = torch.fake_quantize_per_channel_affine(weight, scales, self.zeros, 0, -LIMIT, LIMIT)
        lost = (weight - kept).detach().flatten(2).sum(dim=2)  # (out, in / groups)
        groups = len(self.means) // weight.shape[1]
        shift = (lost.reshape(groups, -1, weight.shape[1]) * self.means.reshape(groups, 1, -1)).sum(dim=2).reshape(-1)
        return kept, bias + shift


def _peaks(rows: Tensor) -> Tensor:
    return rows.abs().flatten(1).amax(dim=1).clamp(min=SMALLEST_SCALE * LIMIT)
