"""The kernels of the transformers; operations.py calls them.

The words and the letters are those of convolution_kernels.py.
"""

# ruff: noqa: N803, ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from mobilevitv2.kernels.convolution_kernels import _activate, _mean_and_scale


@triton.jit(do_not_specialize=["patches", "width", "read_tiles"])
def context_kernel(
    x,
    query,
    partials,
    out,
    patches,
    width,
    read_tiles,
    eps,
    DIM: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """operations.context: softmax with a running maximum; one program for a pixel of the patch of a picture."""
    program = tl.program_id(0)
    picture = (program // (PATCH * PATCH)).to(tl.int64)
    pixel = program % (PATCH * PATCH)
    d = tl.arange(0, BLOCK_D)
    count = PATCH * PATCH * 1.0 * patches * DIM
    mean, scale = _mean_and_scale(partials, picture, read_tiles, count, eps, BLOCK_T)
    # Of the score only what differs between tokens counts: softmax drops the query's bias and the mean's share.
    rows = tl.load(query + d, mask=d < DIM, other=0.0).to(tl.float32) * scale
    source = x + picture * PATCH * PATCH * patches * DIM
    largest = tl.full((), float("-inf"), dtype=tl.float32)
    weights = tl.zeros((), dtype=tl.float32)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, patches, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        mask = (m < patches)[:, None] & (d < DIM)[None, :]
        y = m // (width // PATCH) * PATCH + pixel // PATCH
        place = y * width + m % (width // PATCH) * PATCH + pixel % PATCH
        tokens = tl.load(source + place[:, None] * DIM + d[None, :], mask=mask, other=0.0).to(tl.float32)
        score = tl.where(m < patches, tl.sum(tokens * rows[None, :], axis=1), float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, axis=0))
        fade = tl.exp(largest - new_largest)
        share = tl.exp(score - new_largest)
        weights = weights * fade + tl.sum(share, axis=0)
        total = total * fade + tl.sum(share[:, None] * tokens, axis=0)
        largest = new_largest
    context = (total / weights - mean) * scale
    tl.store(out + program.to(tl.int64) * DIM + d, context.to(out.dtype.element_ty), mask=d < DIM)


@triton.jit
def _filters(weight, inputs, outputs, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr):
    """Weights (outputs, INPUTS) as (inputs, outputs), the numbers of both given."""
    inside = (inputs < INPUTS)[:, None] & (outputs < OUTPUTS)[None, :]
    return tl.load(weight + outputs[None, :] * INPUTS + inputs[:, None], mask=inside, other=0.0)


@triton.jit
def _put_tokens(result, out, place, mask, EVEN: tl.constexpr):
    """Write them; their sum and sum of squares. What is no channel is zero by itself, what is no row is not."""
    tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
    if not EVEN:
        result = tl.where(mask, result, 0.0)
    return tl.sum(result), tl.sum(result * result)


@triton.jit(do_not_specialize=["rows", "width", "tiles", "read_tiles"])
def token_mlp_kernel(
    x,
    first_weight,
    first_sums,
    first_bias,
    second_weight,
    second_bias,
    gate,
    read_partials,
    out,
    partials,
    rows,
    width,
    tiles,
    read_tiles,
    eps,
    DIM: tl.constexpr,
    HIDDEN: tl.constexpr,
    PATCH: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    EVEN: tl.constexpr,
):
    """operations.token_mlp: a block of hidden channels at a time goes into the result and is forgotten.

    The norm is applied behind the first product, W ((x - mean) scale) = scale (W x - mean sum(W)), so that tokens go from memory to
    the matrix units as they are. A token's channels are BLOCK_D, and BLOCK_E more where they are no power of two (192 = 128 + 64).
    """
    program = tl.program_id(0)
    picture = (program // tiles).to(tl.int64)
    row = program % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    known = (tl.zeros_like(row) == 0 if EVEN else row < rows)[:, None]
    d = tl.arange(0, BLOCK_D)
    mask = known & (d < DIM)[None, :]
    place = picture * rows * DIM + row[:, None] * DIM + d[None, :]
    tokens = tl.load(x + place, mask=mask, other=0.0)
    result = tokens.to(tl.float32) + tl.load(second_bias + d, mask=d < DIM, other=0.0).to(tl.float32)[None, :]
    if BLOCK_E > 0:
        e = BLOCK_D + tl.arange(0, BLOCK_E)
        mask_e = known & (e < DIM)[None, :]
        place_e = picture * rows * DIM + row[:, None] * DIM + e[None, :]
        tokens_e = tl.load(x + place_e, mask=mask_e, other=0.0)
        result_e = tokens_e.to(tl.float32) + tl.load(second_bias + e, mask=e < DIM, other=0.0).to(tl.float32)[None, :]
    mean, scale = _mean_and_scale(read_partials, picture, read_tiles, rows * 1.0 * DIM, eps, BLOCK_T)
    for first in range(0, HIDDEN, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        middle = tl.dot(tokens, _filters(first_weight, d, h, DIM, HIDDEN), input_precision=PRECISION)
        if BLOCK_E > 0:
            middle = tl.dot(tokens_e, _filters(first_weight, e, h, DIM, HIDDEN), acc=middle, input_precision=PRECISION)
        shift = tl.load(first_bias + h, mask=h < HIDDEN, other=0.0).to(tl.float32)
        shift -= mean * scale * tl.load(first_sums + h, mask=h < HIDDEN, other=0.0)
        middle = _activate(middle * scale + shift[None, :], ACTIVATION)
        if GATED:
            pixel = row // width % PATCH * PATCH + row % width % PATCH
            source = gate + (picture * PATCH * PATCH + pixel)[:, None] * HIDDEN + h[None, :]
            middle = middle * tl.load(source, mask=known & (h < HIDDEN)[None, :], other=0.0).to(tl.float32)
        narrow = middle.to(tokens.dtype)
        result = tl.dot(narrow, _filters(second_weight, h, d, HIDDEN, DIM), acc=result, input_precision=PRECISION)
        if BLOCK_E > 0:
            result_e = tl.dot(narrow, _filters(second_weight, h, e, HIDDEN, DIM), acc=result_e, input_precision=PRECISION)
    total, squares = _put_tokens(result, out, place, mask, EVEN)
    if BLOCK_E > 0:
        total_e, squares_e = _put_tokens(result_e, out, place_e, mask_e, EVEN)
        total += total_e
        squares += squares_e
    tl.store(partials + program.to(tl.int64) * 2, total)
    tl.store(partials + program.to(tl.int64) * 2 + 1, squares)
