"""Triton kernels of a training step's batch norms by themselves; training_operations.py calls them.

The words and the letters are those of training_convolutions.py.
"""

# ruff: noqa: N803, ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from mobilevitv2.kernels.training_convolutions import _activate, _leave, _leave_lanes, _row, _slope

# ---- statistics -------------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["programs", "eps", "momentum"])
def gather_kernel(
    partials,
    counts,
    weight,
    bias,
    norm,
    running_mean,
    running_var,
    batches,
    programs,
    channels,
    eps,
    momentum,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Join the partial statistics of a convolution's output, and move the running ones."""
    p = tl.arange(0, BLOCK_P)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (p < programs)[:, None] & (c < channels)[None, :]
    place = partials + p[:, None] * 2 * channels + c[None, :]
    means = tl.load(place, mask=mask, other=0.0)
    squares = tl.load(place + channels, mask=mask, other=0.0)
    count = tl.load(counts + p, mask=p < programs, other=0.0)[:, None]
    total = tl.sum(count)
    # Shares of the total, not counts: a sum of products with millions would lose digits.
    share = count / total
    mean = tl.sum(means * share, axis=0)
    deviation = means - mean[None, :]
    variance = tl.sum(squares, axis=0) / total + tl.sum(deviation * deviation * share, axis=0)
    inverse = 1.0 / tl.sqrt(variance + eps)
    known = c < channels
    scale = tl.load(weight + c, mask=known, other=0.0).to(tl.float32) * inverse
    shift = tl.load(bias + c, mask=known, other=0.0).to(tl.float32) - mean * scale
    tl.store(norm + c, mean, mask=known)
    tl.store(norm + channels + c, inverse, mask=known)
    tl.store(norm + 2 * channels + c, scale, mask=known)
    tl.store(norm + 3 * channels + c, shift, mask=known)
    old_mean = tl.load(running_mean + c, mask=known, other=0.0)
    old_var = tl.load(running_var + c, mask=known, other=0.0)
    unbiased = variance * (total / tl.maximum(total - 1.0, 1.0))
    new_mean = old_mean.to(tl.float32) * (1.0 - momentum) + mean * momentum
    new_var = old_var.to(tl.float32) * (1.0 - momentum) + unbiased * momentum
    tl.store(running_mean + c, new_mean.to(old_mean.dtype), mask=known)
    tl.store(running_var + c, new_var.to(old_var.dtype), mask=known)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit(do_not_specialize=["programs", "count"])
def gather_back_kernel(
    partials,
    norm,
    back,
    weight_gradient,
    bias_gradient,
    programs,
    channels,
    count,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Join the partial sums of d and of d (z - mean); weight's and bias's gradients, and what dz is made with."""
    p = tl.arange(0, BLOCK_P)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (p < programs)[:, None] & (c < channels)[None, :]
    place = partials + p[:, None] * 2 * channels + c[None, :]
    first = tl.sum(tl.load(place, mask=mask, other=0.0), axis=0)
    second = tl.sum(tl.load(place + channels, mask=mask, other=0.0), axis=0)
    mean, inverse, scale = _row(norm, 0, channels, c), _row(norm, 1, channels, c), _row(norm, 2, channels, c)
    second = second * inverse
    known = c < channels
    tl.store(weight_gradient + c, second.to(weight_gradient.dtype.element_ty), mask=known)
    tl.store(bias_gradient + c, first.to(bias_gradient.dtype.element_ty), mask=known)
    slope = -scale * inverse * (second / count)
    tl.store(back + c, slope, mask=known)
    tl.store(back + channels + c, -scale * (first / count) - slope * mean, mask=known)


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "blocks_c"])
def statistics_kernel(z, partials, counts, rows, channels, tiles, programs, blocks_c, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """operations.statistics."""
    program = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    count = tl.zeros((BLOCK_M, 1), dtype=tl.float32)
    mean = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for tile in range(program, tiles, programs):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (row < rows)[:, None] & (c < channels)[None, :]
        value = tl.load(z + row.to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        count += (row < rows).to(tl.float32)[:, None]
        delta = tl.where(mask, value - mean, 0.0)
        mean += delta * (1.0 / tl.maximum(count, 1.0))
        squares += delta * tl.where(mask, value - mean, 0.0)
    _leave_lanes(partials, counts, program, channels, c, count, mean, squares)


# ---- one value after another ------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows", "blocks_c"])
def normalise_kernel(
    z,
    norm,
    residual,
    out,
    rows,
    channels,
    blocks_c,
    KIND: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """operations.normalise."""
    row = (tl.program_id(0) // blocks_c * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (c < channels)[None, :]
    place = row[:, None] * channels + c[None, :]
    value = tl.load(z + place, mask=mask, other=0.0).to(tl.float32)
    value = _activate(value * _row(norm, 2, channels, c)[None, :] + _row(norm, 3, channels, c)[None, :], KIND)
    if RESIDUAL:
        value += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "blocks_c"])
def sums_kernel(
    gradient,
    z,
    norm,
    out,
    partials,
    rows,
    channels,
    tiles,
    programs,
    blocks_c,
    KIND: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """operations.activation_backward and its sums. Without an activation d is the gradient itself and is not written."""
    program = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = _row(norm, 0, channels, c)[None, :]
    scale = _row(norm, 2, channels, c)[None, :]
    shift = _row(norm, 3, channels, c)[None, :]
    first = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for tile in range(program, tiles, programs):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (row < rows)[:, None] & (c < channels)[None, :]
        place = row[:, None] * channels + c[None, :]
        d = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(z + place, mask=mask, other=0.0).to(tl.float32)
        if KIND != "none":
            written = (d * _slope(value * scale + shift, KIND)).to(out.dtype.element_ty)
            tl.store(out + place, written, mask=mask)
            d = written.to(tl.float32)
        first += d
        second += d * (value - mean)
    _leave(partials, program, channels, c, tl.sum(first, axis=0), tl.sum(second, axis=0))


@triton.jit(do_not_specialize=["rows", "blocks_c"])
def norm_backward_kernel(d, z, norm, back, out, rows, channels, blocks_c, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """operations.norm_backward."""
    row = (tl.program_id(0) // blocks_c * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (row < rows)[:, None] & (c < channels)[None, :]
    place = row[:, None] * channels + c[None, :]
    scale, slope, offset = _row(norm, 2, channels, c), _row(back, 0, channels, c), _row(back, 1, channels, c)
    value = tl.load(d + place, mask=mask, other=0.0).to(tl.float32) * scale[None, :] + offset[None, :]
    value += tl.load(z + place, mask=mask, other=0.0).to(tl.float32) * slope[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
