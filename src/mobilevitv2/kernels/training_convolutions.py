"""Triton kernels of a training step's convolutions with batch norms; training_operations.py calls them.

Letters: maps are (rows, channels), contiguous, a row a pixel; K channels in, N channels out. Between two convolutions only the
outputs z of the convolutions are stored. Whoever reads one makes act(z * scale + shift) of it on the way; whoever writes one leaves
the mean and the sum of squared deviations of what it wrote in `partials` (programs, 2, channels), for `gather_kernel` to join: no
pass for the statistics, no difference of large sums, no atomics, so equal input gives equal bits.

Backward, d stands for the gradient behind a batch norm (in front of its activation). The norm's own backward is linear in d and z
for each channel, dz = scale * d + slope * z + offset, with numbers that depend on the sums of d and of d times the normalised z;
`gather_back_kernel` makes them of the partial sums that the writer of d left. Both gathering kernels are in training_norms.py.

Rows of `norm` (4, channels): mean, 1 / deviation, scale, shift; rows of `back` (2, channels): slope, offset; all float32.
"""

# Capitals mark what is known when a kernel is compiled, as in Triton's own examples. Other arguments have no types.
# ruff: noqa: N803, ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def sigmoid(x):
    """By the hyperbolic tangent of the hardware: half the instructions.

    Off by at most 2.5e-4 whatever x is: an eighth of what bfloat16 rounds near 1, and more than it rounds below 0.06.
    """
    if INTERPRETED:
        share = tl.sigmoid(x)
    else:
        bent = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1)
        share = 0.5 * bent + 0.5
    return share


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "silu":
        x = x * sigmoid(x)
    elif KIND == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def _slope(x, KIND: tl.constexpr):
    """The activation's derivative."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if KIND == "silu":
        share = sigmoid(x)
        slope = share * (1.0 + x * (1.0 - share))
    elif KIND == "relu":
        slope = tl.where(x > 0, 1.0, 0.0)
    return slope


@triton.jit
def _activate_with_slope(x, KIND: tl.constexpr):
    value = x
    slope = tl.full(x.shape, 1.0, tl.float32)
    if KIND == "silu":
        share = sigmoid(x)
        value = x * share
        slope = share + value * (1.0 - share)
    elif KIND == "relu":
        value = tl.maximum(x, 0.0)
        slope = tl.where(x > 0, 1.0, 0.0)
    return value, slope


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    if PRECISION == "interpreted":  # numpy has no bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc=acc, input_precision="ieee")
    return tl.dot(a, b, acc=acc, input_precision=PRECISION)


@triton.jit
def _row(table, number, channels, c):
    return tl.load(table + number * channels + c, mask=c < channels, other=0.0)


@triton.jit
def _joined(count, mean, squares, values, mask, added):
    """Mean and squared deviations of `count` rows and a tile's `added` (> 0) further ones together (Chan's formula)."""
    tile_mean = tl.sum(tl.where(mask, values, 0.0), axis=0) / added
    deviation = tl.where(mask, values - tile_mean[None, :], 0.0)
    total = count + added
    delta = tile_mean - mean
    mean += delta * (added / total)
    squares += tl.sum(deviation * deviation, axis=0) + delta * delta * (count * added / total)
    return total, mean, squares


@triton.jit
def _leave(partials, program, channels, c, first, second):
    place = partials + program * 2 * channels + c
    tl.store(place, first, mask=c < channels)
    tl.store(place + channels, second, mask=c < channels)


@triton.jit
def _leave_lanes(partials, counts, program, channels, c, count, mean, squares):
    """The same from a mean of each lane by itself: count (M, 1), mean and squares (M, C)."""
    total = tl.sum(count)
    joined = tl.sum(mean * count, axis=0) / tl.maximum(total, 1.0)
    deviation = mean - joined[None, :]
    _leave(partials, program, channels, c, joined, tl.sum(squares + deviation * deviation * count, axis=0))
    tl.store(counts + program, total)


# ---- 1x1 convolutions -------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "blocks_n"])
def pointwise_forward_kernel(
    x,
    norm,
    weight,
    out,
    partials,
    counts,
    rows,
    tiles,
    programs,
    in_channels,
    out_channels,
    blocks_n,
    KIND: tl.constexpr,
    STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """operations.pointwise: a program keeps its weights, all K of them for BLOCK_N results, and goes through many tiles."""
    program = tl.program_id(0) // blocks_n
    n = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = (n < out_channels)[None, :] & (k < in_channels)[:, None]
    filters = tl.load(weight + n[None, :] * in_channels + k[:, None], mask=inside, other=0.0)
    if KIND != "raw":
        scale = _row(norm, 2, in_channels, k)[None, :]
        shift = _row(norm, 3, in_channels, k)[None, :]
    count = 0.0
    mean = tl.zeros((BLOCK_N,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for tile in tl.range(program, tiles, programs, num_stages=STAGES):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        values = tl.load(
            x + row[:, None] * in_channels + k[None, :], mask=(row < rows)[:, None] & (k < in_channels)[None, :], other=0.0
        )
        if KIND != "raw":
            values = _activate(values.to(tl.float32) * scale + shift, KIND).to(filters.dtype)
        result = _dot(values, filters, tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32), PRECISION)
        mask = (row < rows)[:, None] & (n < out_channels)[None, :]
        written = result.to(out.dtype.element_ty)
        tl.store(out + row[:, None] * out_channels + n[None, :], written, mask=mask)
        if STATISTICS:
            added = tl.minimum(rows - tile * BLOCK_M, BLOCK_M).to(tl.float32)
            count, mean, squares = _joined(count, mean, squares, written.to(tl.float32), mask, added)
    if STATISTICS:
        _leave(partials, program, out_channels, n, mean, squares)
        tl.store(counts + program, count)


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "blocks_k"])
def pointwise_backward_kernel(
    d,
    z,
    norm,
    back,
    weight,
    x,
    x_norm,
    residual,
    out,
    partials,
    weight_partials,
    rows,
    tiles,
    programs,
    in_channels,
    out_channels,
    blocks_k,
    NORM: tl.constexpr,
    KIND: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """operations.pointwise_backward: all N channels of a gradient are in one tile, and BLOCK_K channels of the input.

    Both products take the same tile of dz, so it is read and made once for each block of K.
    """
    program = tl.program_id(0) // blocks_k
    k = tl.program_id(0) % blocks_k * BLOCK_K + tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    inside = (n < out_channels)[:, None] & (k < in_channels)[None, :]
    filters = tl.load(weight + n[:, None] * in_channels + k[None, :], mask=inside, other=0.0)  # (N, K)
    if NORM:
        d_scale = _row(norm, 2, out_channels, n)[None, :]
        slope = _row(back, 0, out_channels, n)[None, :]
        offset = _row(back, 1, out_channels, n)[None, :]
    if KIND != "raw":
        mean = _row(x_norm, 0, in_channels, k)[None, :]
        scale = _row(x_norm, 2, in_channels, k)[None, :]
        shift = _row(x_norm, 3, in_channels, k)[None, :]
    first = tl.zeros((BLOCK_K,), dtype=tl.float32)
    second = tl.zeros((BLOCK_K,), dtype=tl.float32)
    gathered = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for tile in tl.range(program, tiles, programs, num_stages=STAGES):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        known = (row < rows)[:, None]
        place = row[:, None] * out_channels + n[None, :]
        dz = tl.load(d + place, mask=known & (n < out_channels)[None, :], other=0.0)
        if NORM:
            behind = tl.load(z + place, mask=known & (n < out_channels)[None, :], other=0.0).to(tl.float32)
            dz = tl.where(known, dz.to(tl.float32) * d_scale + behind * slope + offset, 0.0).to(filters.dtype)
        mask = known & (k < in_channels)[None, :]
        place = row[:, None] * in_channels + k[None, :]
        inputs = tl.load(x + place, mask=mask, other=0.0)
        result = _dot(dz, filters, tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32), PRECISION)
        if KIND == "raw":
            gathered = _dot(tl.trans(dz), inputs, gathered, PRECISION)
            if RESIDUAL:
                result += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
            tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
        else:
            value = inputs.to(tl.float32)
            activated, bend = _activate_with_slope(value * scale + shift, KIND)
            gathered = _dot(tl.trans(dz), activated.to(filters.dtype), gathered, PRECISION)
            written = (result * bend).to(out.dtype.element_ty)
            tl.store(out + place, written, mask=mask)
            kept = tl.where(mask, written.to(tl.float32), 0.0)
            first += tl.sum(kept, axis=0)
            second += tl.sum(kept * (value - mean), axis=0)
    if KIND != "raw":
        _leave(partials, program, in_channels, k, first, second)
    target = weight_partials + program * out_channels * in_channels + n[:, None] * in_channels + k[None, :]
    tl.store(target, gathered, mask=inside)
