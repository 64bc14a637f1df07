"""Triton kernels of a training step's first convolution, from pictures; training_filtering.py calls them.

The words and the letters are those of training_convolutions.py.
"""

# ruff: noqa: N803, ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from mobilevitv2.kernels.convolution_kernels import patches
from mobilevitv2.kernels.training_convolutions import _dot, _joined, _leave, _row

COUNTS = ["in_height", "in_width", "out_width", "out_pixels", "tiles", "per_picture", "programs"]


@triton.jit(do_not_specialize=COUNTS)
def stem_forward_kernel(
    x,
    weight,
    out,
    partials,
    counts,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    in_height,
    in_width,
    out_width,
    out_pixels,
    out_channels,
    tiles,
    per_picture,
    programs,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """filtering.stem."""
    program = tl.program_id(0)
    tap = tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    inputs = CHANNELS * SIDE * SIDE
    inside = (n < out_channels)[None, :] & (tap < inputs)[:, None]
    filters = tl.load(weight + n[None, :] * inputs + tap[:, None], mask=inside, other=0.0)
    count = 0.0
    mean = tl.zeros((BLOCK_N,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for tile in range(program, tiles, programs):
        picture = (tile // per_picture).to(tl.int64)
        pixel = tile % per_picture * BLOCK_M + tl.arange(0, BLOCK_M)
        taps = patches(
            x, picture, pixel, stride_b, stride_c, stride_y, stride_x, in_height, in_width, out_width, out_pixels,
            CHANNELS, SIDE, STRIDE, BLOCK_K,
        )  # fmt: skip
        result = _dot(taps.to(filters.dtype), filters, tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32), PRECISION)
        written = result.to(out.dtype.element_ty)
        mask = (pixel < out_pixels)[:, None] & (n < out_channels)[None, :]
        tl.store(out + (picture * out_pixels + pixel[:, None]) * out_channels + n[None, :], written, mask=mask)
        added = tl.minimum(out_pixels - tile % per_picture * BLOCK_M, BLOCK_M).to(tl.float32)
        count, mean, squares = _joined(count, mean, squares, written.to(tl.float32), mask, added)
    _leave(partials, program, out_channels, n, mean, squares)
    tl.store(counts + program, count)


@triton.jit(do_not_specialize=COUNTS)
def stem_backward_kernel(
    d,
    z,
    norm,
    back,
    x,
    weight_partials,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    in_height,
    in_width,
    out_width,
    out_pixels,
    out_channels,
    tiles,
    per_picture,
    programs,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """filtering.stem_backward: the weights' gradient alone, pictures want none."""
    program = tl.program_id(0)
    tap = tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    inputs = CHANNELS * SIDE * SIDE
    scale = _row(norm, 2, out_channels, n)[None, :]
    slope = _row(back, 0, out_channels, n)[None, :]
    offset = _row(back, 1, out_channels, n)[None, :]
    gathered = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for tile in range(program, tiles, programs):
        picture = (tile // per_picture).to(tl.int64)
        pixel = tile % per_picture * BLOCK_M + tl.arange(0, BLOCK_M)
        taps = patches(
            x, picture, pixel, stride_b, stride_c, stride_y, stride_x, in_height, in_width, out_width, out_pixels,
            CHANNELS, SIDE, STRIDE, BLOCK_K,
        )  # fmt: skip
        mask = (pixel < out_pixels)[:, None] & (n < out_channels)[None, :]
        place = (picture * out_pixels + pixel[:, None]) * out_channels + n[None, :]
        dz = tl.load(d + place, mask=mask, other=0.0).to(tl.float32) * scale + tl.where(mask, offset, 0.0)
        dz += tl.load(z + place, mask=mask, other=0.0).to(tl.float32) * slope
        gathered = _dot(tl.trans(dz.to(z.dtype.element_ty)), taps.to(z.dtype.element_ty), gathered, PRECISION)
    target = weight_partials + program * out_channels * inputs + n[:, None] * inputs + tap[None, :]
    tl.store(target, gathered, mask=(n < out_channels)[:, None] & (tap < inputs)[None, :])
