"""The kernels themselves; operations.py calls them.

Letters: B pictures, pixels of one picture H * W, K channels in, N channels out. Feature maps are (B, H, W, channels), tokens
(B, P, patches, D) with the P pixels of a patch apart. A program handles one tile of pixels of one picture, all its output channels
where they fit, and loops over input channels. Products run on the matrix units with float32 sums; everything between two products
stays in float32.

Group normalisation of one group needs the mean and variance of a whole picture before any of its tokens can be used. Each kernel
that writes tokens leaves the sum and the sum of squares of its tile in `partials` (B, tiles, 2); the kernels that read tokens add
them up. So the statistics cost no pass over the tokens, and no atomics: equal input, equal bits.
"""

# ruff: noqa: N803  # capitals mark what is known when a kernel is compiled, as in Triton's own examples
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit
def _activate(x: Any, KIND: tl.constexpr) -> Any:
    if KIND == "silu":
        x = x * tl.sigmoid(x)
    elif KIND == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def _mean_and_scale(partials: Any, picture: Any, tiles: Any, count: Any, eps: Any, BLOCK_T: tl.constexpr) -> Any:
    """Mean and 1 / sqrt(variance + eps) of a picture from its tiles' sums."""
    t = tl.arange(0, BLOCK_T)
    total = tl.sum(tl.load(partials + (picture * tiles + t) * 2, mask=t < tiles, other=0.0))
    squares = tl.sum(tl.load(partials + (picture * tiles + t) * 2 + 1, mask=t < tiles, other=0.0))
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    return mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def _token_row(pixel: Any, width: Any, patches: Any, PATCH: tl.constexpr) -> Any:
    """Where a pixel of the map lies among its picture's tokens (P, patches)."""
    y = pixel // width
    x = pixel % width
    return (y % PATCH * PATCH + x % PATCH) * patches + y // PATCH * (width // PATCH) + x // PATCH


@triton.jit
def stem_kernel(
    x: Any,
    weight: Any,
    bias: Any,
    out: Any,
    stride_b: Any,
    stride_c: Any,
    stride_y: Any,
    stride_x: Any,
    in_height: Any,
    in_width: Any,
    out_width: Any,
    out_pixels: Any,
    out_channels: Any,
    tiles: Any,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """operations.stem: the taps of a pixel are gathered as a row of a matrix."""
    program = tl.program_id(0)
    picture = (program // tiles).to(tl.int64)
    pixel = program % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    tap = tl.arange(0, BLOCK_K)  # channel, row and column of the filter, the order of torch's weights
    n = tl.arange(0, BLOCK_N)
    channel = tap // (SIDE * SIDE)
    y = (pixel // out_width * STRIDE - SIDE // 2)[:, None] + (tap // SIDE % SIDE)[None, :]
    column = (pixel % out_width * STRIDE - SIDE // 2)[:, None] + (tap % SIDE)[None, :]
    inside = (y >= 0) & (y < in_height) & (column >= 0) & (column < in_width)
    inside = inside & (pixel < out_pixels)[:, None] & (channel < CHANNELS)[None, :]
    source = x + picture * stride_b + channel[None, :] * stride_c + y * stride_y + column * stride_x
    taps = tl.load(source, mask=inside, other=0.0)  # (M, K)
    inputs = CHANNELS * SIDE * SIDE
    filters = tl.load(
        weight + n[None, :] * inputs + tap[:, None], mask=(n < out_channels)[None, :] & (tap < inputs)[:, None], other=0.0
    )
    result = tl.dot(taps.to(filters.dtype), filters, input_precision=PRECISION)
    result = _activate(result + tl.load(bias + n, mask=n < out_channels, other=0.0).to(tl.float32)[None, :], ACTIVATION)
    target = out + picture * out_pixels * out_channels + pixel[:, None] * out_channels + n[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=(pixel < out_pixels)[:, None] & (n < out_channels)[None, :])


@triton.jit
def pointwise_kernel(
    x: Any,
    weight: Any,
    bias: Any,
    partials: Any,
    out: Any,
    pixels: Any,
    width: Any,
    patches: Any,
    in_channels: Any,
    out_channels: Any,
    tiles: Any,
    blocks_n: Any,
    read_tiles: Any,
    eps: Any,
    PATCH: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """operations.pointwise: a matrix product with what lies around it."""
    program = tl.program_id(0)
    tile = program // blocks_n
    picture = (tile // tiles).to(tl.int64)
    pixel = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = pixel
    if PATCH > 0:
        row = _token_row(pixel, width, patches, PATCH)
    if NORM:
        mean, scale = _mean_and_scale(partials, picture, read_tiles, pixels.to(tl.float32) * in_channels, eps, BLOCK_T)
    source = x + picture * pixels * in_channels + row[:, None] * in_channels
    result = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, in_channels, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inputs = tl.load(source + k[None, :], mask=(pixel < pixels)[:, None] & (k < in_channels)[None, :], other=0.0)
        inside = (n < out_channels)[None, :] & (k < in_channels)[:, None]
        filters = tl.load(weight + n[None, :] * in_channels + k[:, None], mask=inside, other=0.0)
        if NORM:
            inputs = ((inputs.to(tl.float32) - mean) * scale).to(filters.dtype)
        result = tl.dot(inputs, filters, acc=result, input_precision=PRECISION)
    if BIAS:
        result += tl.load(bias + n, mask=n < out_channels, other=0.0).to(tl.float32)[None, :]
    result = _activate(result, ACTIVATION)
    target = out + picture * pixels * out_channels + pixel[:, None] * out_channels + n[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=(pixel < pixels)[:, None] & (n < out_channels)[None, :])


@triton.jit
def depthwise_pointwise_kernel(
    x: Any,
    taps: Any,
    taps_bias: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    out: Any,
    partials: Any,
    in_height: Any,
    in_width: Any,
    out_width: Any,
    out_pixels: Any,
    patches: Any,
    channels: Any,
    out_channels: Any,
    tiles: Any,
    blocks_n: Any,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    PATCH: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PARTIALS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """operations.depthwise_pointwise: filters a block of channels, then adds its product to the result."""
    program = tl.program_id(0)
    tile = program // blocks_n
    picture = (tile // tiles).to(tl.int64)
    pixel = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = pixel < out_pixels
    y = pixel // out_width * STRIDE - SIDE // 2 * DILATION
    column = pixel % out_width * STRIDE - SIDE // 2 * DILATION
    source = x + picture * in_height * in_width * channels
    result = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, channels, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        known = k < channels
        filtered = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)
        for tap in tl.static_range(SIDE * SIDE):
            tap_y = y + tap // SIDE * DILATION
            tap_x = column + tap % SIDE * DILATION
            inside = valid & (tap_y >= 0) & (tap_y < in_height) & (tap_x >= 0) & (tap_x < in_width)
            place = (tap_y * in_width + tap_x) * channels
            values = tl.load(source + place[:, None] + k[None, :], mask=inside[:, None] & known[None, :], other=0.0)
            factors = tl.load(taps + tap * channels + k, mask=known, other=0.0)
            filtered += values.to(tl.float32) * factors.to(tl.float32)[None, :]
        filtered = _activate(filtered + tl.load(taps_bias + k, mask=known, other=0.0).to(tl.float32)[None, :], ACTIVATION)
        filters = tl.load(weight + n[None, :] * channels + k[:, None], mask=(n < out_channels)[None, :] & known[:, None], other=0.0)
        result = tl.dot(filtered.to(filters.dtype), filters, acc=result, input_precision=PRECISION)
    if BIAS:
        result += tl.load(bias + n, mask=n < out_channels, other=0.0).to(tl.float32)[None, :]
    mask = valid[:, None] & (n < out_channels)[None, :]
    start = picture * out_pixels * out_channels
    if RESIDUAL:
        result += tl.load(residual + start + pixel[:, None] * out_channels + n[None, :], mask=mask, other=0.0).to(tl.float32)
    row = pixel
    if PATCH > 0:
        row = _token_row(pixel, out_width, patches, PATCH)
    written = result.to(out.dtype.element_ty)
    tl.store(out + start + row[:, None] * out_channels + n[None, :], written, mask=mask)
    if PARTIALS:
        kept = tl.where(mask, written.to(tl.float32), 0.0)
        tl.store(partials + program.to(tl.int64) * 2, tl.sum(kept))
        tl.store(partials + program.to(tl.int64) * 2 + 1, tl.sum(kept * kept))


@triton.jit
def context_kernel(
    x: Any,
    query: Any,
    partials: Any,
    out: Any,
    patches: Any,
    pixels_of_patch: Any,
    dim: Any,
    read_tiles: Any,
    eps: Any,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """operations.context: softmax with a running maximum; one program for a pixel of the patch of a picture."""
    program = tl.program_id(0)
    picture = (program // pixels_of_patch).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    count = pixels_of_patch.to(tl.float32) * patches * dim
    mean, scale = _mean_and_scale(partials, picture, read_tiles, count, eps, BLOCK_T)
    # Of the score only what differs between tokens counts: softmax drops the query's bias and the mean's share.
    rows = tl.load(query + d, mask=d < dim, other=0.0).to(tl.float32) * scale
    source = x + program.to(tl.int64) * patches * dim
    largest = tl.full((), float("-inf"), dtype=tl.float32)
    weights = tl.zeros((), dtype=tl.float32)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, patches, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        mask = (m < patches)[:, None] & (d < dim)[None, :]
        tokens = tl.load(source + m[:, None] * dim + d[None, :], mask=mask, other=0.0).to(tl.float32)
        score = tl.where(m < patches, tl.sum(tokens * rows[None, :], axis=1), float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, axis=0))
        fade = tl.exp(largest - new_largest)
        share = tl.exp(score - new_largest)
        weights = weights * fade + tl.sum(share, axis=0)
        total = total * fade + tl.sum(share[:, None] * tokens, axis=0)
        largest = new_largest
    context = (total / weights - mean) * scale
    tl.store(out + program.to(tl.int64) * dim + d, context.to(out.dtype.element_ty), mask=d < dim)


@triton.jit
def token_mlp_kernel(
    x: Any,
    first_weight: Any,
    first_bias: Any,
    second_weight: Any,
    second_bias: Any,
    gate: Any,
    read_partials: Any,
    out: Any,
    partials: Any,
    rows: Any,
    patches: Any,
    pixels_of_patch: Any,
    dim: Any,
    hidden: Any,
    tiles: Any,
    read_tiles: Any,
    eps: Any,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """operations.token_mlp: a block of hidden channels at a time goes into the result and is forgotten."""
    program = tl.program_id(0)
    picture = (program // tiles).to(tl.int64)
    row = program % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (d < dim)[None, :]
    place = picture * rows * dim + row[:, None] * dim + d[None, :]
    mean, scale = _mean_and_scale(read_partials, picture, read_tiles, rows.to(tl.float32) * dim, eps, BLOCK_T)
    tokens = tl.load(x + place, mask=mask, other=0.0)
    normal = tl.where(mask, (tokens.to(tl.float32) - mean) * scale, 0.0).to(tokens.dtype)
    result = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for first in range(0, hidden, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        inside = (d < dim)[:, None] & (h < hidden)[None, :]
        into = tl.load(first_weight + h[None, :] * dim + d[:, None], mask=inside, other=0.0)  # (D, hidden)
        middle = tl.dot(normal, into, input_precision=PRECISION)
        middle = _activate(middle + tl.load(first_bias + h, mask=h < hidden, other=0.0).to(tl.float32)[None, :], ACTIVATION)
        if GATED:
            source = gate + (picture * pixels_of_patch + row // patches)[:, None] * hidden + h[None, :]
            middle = middle * tl.load(source, mask=(row < rows)[:, None] & (h < hidden)[None, :], other=0.0).to(tl.float32)
        inside = (h < hidden)[:, None] & (d < dim)[None, :]
        outof = tl.load(second_weight + d[None, :] * hidden + h[:, None], mask=inside, other=0.0)  # (hidden, D)
        result = tl.dot(middle.to(outof.dtype), outof, acc=result, input_precision=PRECISION)
    result += tl.load(second_bias + d, mask=d < dim, other=0.0).to(tl.float32)[None, :]
    result += tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    written = result.to(out.dtype.element_ty)
    tl.store(out + place, written, mask=mask)
    kept = tl.where(mask, written.to(tl.float32), 0.0)
    tl.store(partials + program.to(tl.int64) * 2, tl.sum(kept))
    tl.store(partials + program.to(tl.int64) * 2 + 1, tl.sum(kept * kept))
