"""The kernels of a training step's convolutions with 3x3 filters as functions of tensors, on maps (B, H, W, C), contiguous.

Bytes in the docstrings are as in training_operations.py.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from mobilevitv2.kernels import training_filters as kernels
from mobilevitv2.kernels import training_stem as stem_kernels
from mobilevitv2.kernels.tiles import power
from mobilevitv2.kernels.training_operations import (
    Gradients,
    Kind,
    Statistics,
    precision_for,
    programs_for,
    room_for,
)
from mobilevitv2.kernels.training_tiles import Lanes, Rows, depthwise_back_tile, depthwise_tile, stem_tile


def depthwise(
    x: Tensor,
    taps: Tensor,
    *,
    norm: Tensor | None = None,
    kind: Kind = "raw",
    stride: int = 1,
    dilation: int = 1,
    tile: Lanes | None = None,
) -> tuple[Tensor, Statistics]:
    """Depthwise convolution of act(norm(x)), and the statistics of its output. `taps` is (side^2, C).

    Reads M C e, writes M C e / stride^2; 2 M C side^2 / stride^2 operations. Against norm, activation, convolution and statistics
    one after another: two passes over the input and one over the output less.
    """
    batch, height, width, channels = x.shape
    side = round(taps.shape[0] ** 0.5)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    out = torch.empty(batch, out_height, out_width, channels, device=x.device, dtype=x.dtype)
    tile = tile or depthwise_tile(channels, stride)
    strips, spans = triton.cdiv(out_height, tile.height), triton.cdiv(out_width, tile.width)
    lanes, blocks_c = batch * strips * spans, triton.cdiv(channels, tile.channels)
    tiles = triton.cdiv(lanes, tile.rows)
    found, programs = room_for(x, tiles, blocks_c, tile.programs, channels)
    kernels.depthwise_forward_kernel[(programs * blocks_c,)](
        x,
        norm,
        taps,
        out,
        *found,
        lanes,
        tiles,
        programs,
        strips,
        spans,
        height,
        width,
        out_height,
        out_width,
        channels,
        blocks_c,
        KIND=kind,
        SIDE=side,
        STRIDE=stride,
        DILATION=dilation,
        ROWS=tile.height,
        COLUMNS=tile.width,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return out, found


def depthwise_backward(
    d: Tensor,
    z: Tensor,
    norm: Tensor,
    back: Tensor,
    taps: Tensor,
    x: Tensor,
    *,
    x_norm: Tensor | None = None,
    kind: Kind = "raw",
    stride: int = 1,
    dilation: int = 1,
    tile: Lanes | None = None,
) -> Gradients:
    """Backward of `depthwise`, from the gradient d behind the batch norm of its output z.

    With M the pixels of x: reads M C e (1 + 2 / stride^2), writes M C e; 4 M C side^2 / stride^2 operations. Against norm's,
    convolution's (twice), activation's backward and the sums one after another: 4 passes over z's map and 5 over x's less.
    """
    batch, height, width, channels = x.shape
    side = round(taps.shape[0] ** 0.5)
    tile = tile or depthwise_back_tile(channels, stride)
    strips, spans = triton.cdiv(height, tile.height), triton.cdiv(width, tile.width)
    lanes, blocks_c = batch * strips * spans, triton.cdiv(channels, tile.channels)
    tiles = triton.cdiv(lanes, tile.rows)
    programs = programs_for(x.device, tiles, blocks_c, tile.programs)
    out = torch.empty_like(x)
    partials = torch.empty(programs, 2, channels, device=x.device, dtype=torch.float32)
    weights = torch.empty(programs, side * side, channels, device=x.device, dtype=torch.float32)
    kernels.depthwise_backward_kernel[(programs * blocks_c,)](
        d,
        z,
        norm,
        back,
        taps,
        x,
        x_norm,
        out,
        partials,
        weights,
        lanes,
        tiles,
        programs,
        strips,
        spans,
        height,
        width,
        *z.shape[1:3],
        channels,
        blocks_c,
        KIND=kind,
        SIDE=side,
        STRIDE=stride,
        DILATION=dilation,
        ROWS=tile.height,
        COLUMNS=tile.width,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return Gradients(out, None if kind == "raw" else partials, weights.sum(0))


def stem(x: Tensor, weight: Tensor, *, side: int, stride: int, tile: Rows | None = None) -> tuple[Tensor, Statistics]:
    """The first convolution and the statistics of its output: (B, C, H, W), any strides and dtype, to (B, H', W', N).

    `weight` is (N, C side^2), torch's filters flattened, in the output's dtype. Reads the pictures, writes M N e.
    """
    batch, channels, height, width = x.shape
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    pixels, outputs = out_height * out_width, weight.shape[0]
    out = torch.empty(batch, out_height, out_width, outputs, device=x.device, dtype=weight.dtype)
    tile = tile or stem_tile()
    per_picture = triton.cdiv(pixels, tile.rows)
    found, programs = room_for(out, batch * per_picture, 1, tile.programs, outputs)
    stem_kernels.stem_forward_kernel[(programs,)](
        x,
        weight,
        out,
        *found,
        *x.stride(),
        height,
        width,
        out_width,
        pixels,
        outputs,
        batch * per_picture,
        per_picture,
        programs,
        CHANNELS=channels,
        SIDE=side,
        STRIDE=stride,
        PRECISION=precision_for(out),
        BLOCK_M=tile.rows,
        BLOCK_K=power(channels * side * side),
        BLOCK_N=power(outputs),
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return out, found


def stem_backward(
    d: Tensor, z: Tensor, norm: Tensor, back: Tensor, x: Tensor, *, side: int, stride: int, tile: Rows | None = None
) -> Tensor:
    """The gradient of `stem`'s weights, (N, C side^2). Reads 2 M N e and the pictures."""
    batch, channels, height, width = x.shape
    _, out_height, out_width, outputs = z.shape
    pixels, taps = out_height * out_width, channels * side * side
    tile = tile or stem_tile()
    per_picture = triton.cdiv(pixels, tile.rows)
    programs = programs_for(x.device, batch * per_picture, 1, tile.programs)
    weights = torch.empty(programs, outputs, taps, device=x.device, dtype=torch.float32)
    stem_kernels.stem_backward_kernel[(programs,)](
        d,
        z,
        norm,
        back,
        x,
        weights,
        *x.stride(),
        height,
        width,
        out_width,
        pixels,
        outputs,
        batch * per_picture,
        per_picture,
        programs,
        CHANNELS=channels,
        SIDE=side,
        STRIDE=stride,
        PRECISION=precision_for(z),
        BLOCK_M=tile.rows,
        BLOCK_K=power(taps),
        BLOCK_N=power(outputs),
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return weights.sum(0)
