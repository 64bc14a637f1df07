"""Triton kernels of a training step's transformer layers; training_layers.py calls them. Products are torch's.

Tokens stay in the map, (B, H, W, D): which patch and which pixel of a patch a token is, its place says. P pixels of a patch, N
patches. Statistics, softmax and sums are float32; what is written has the map's dtype.
"""

# ruff: noqa: N803, ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from mobilevitv2.kernels.training_convolutions import sigmoid


@triton.jit(do_not_specialize=["rows", "eps"])
def group_norm_kernel(
    x,
    addend,
    weight,
    bias,
    total,
    out,
    moments,
    rows,
    dim,
    eps,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """layers.add_and_norm: a program a picture. The second pass finds the picture in the cache.

    The variance is taken around the mean of the first tile, which is close to that of the picture.
    """
    picture = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    source = picture * rows * dim + m[:, None] * dim + c[None, :]
    inside = (c < dim)[None, :]
    mask = (m < rows)[:, None] & inside
    value = tl.load(x + source, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(addend + source, mask=mask, other=0.0).to(tl.float32)
    around = tl.sum(tl.where(mask, value, 0.0)) / (tl.minimum(rows, BLOCK_M) * dim)
    first = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, rows, BLOCK_M):
        mask = (start + m < rows)[:, None] & inside
        value = tl.load(x + source + start * dim, mask=mask, other=0.0).to(tl.float32)
        if ADD:
            value += tl.load(addend + source + start * dim, mask=mask, other=0.0).to(tl.float32)
            written = value.to(total.dtype.element_ty)
            tl.store(total + source + start * dim, written, mask=mask)
            value = written.to(tl.float32)
        deviation = tl.where(mask, value - around, 0.0)
        first += deviation
        second += deviation * deviation
    tl.debug_barrier()  # the second pass reads what this program has written
    count = rows * dim * 1.0
    offset = tl.sum(first) / count
    mean = around + offset
    inverse = 1.0 / tl.sqrt(tl.maximum(tl.sum(second) / count - offset * offset, 0.0) + eps)
    tl.store(moments + picture * 2, mean)
    tl.store(moments + picture * 2 + 1, inverse)
    scale = tl.load(weight + c, mask=c < dim, other=0.0).to(tl.float32)[None, :] * inverse
    shift = tl.load(bias + c, mask=c < dim, other=0.0).to(tl.float32)[None, :]
    for start in range(0, rows, BLOCK_M):
        mask = (start + m < rows)[:, None] & inside
        if ADD:
            value = tl.load(total + source + start * dim, mask=mask, other=0.0).to(tl.float32)
        else:
            value = tl.load(x + source + start * dim, mask=mask, other=0.0).to(tl.float32)
        tl.store(out + source + start * dim, ((value - mean) * scale + shift).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def group_norm_backward_kernel(
    gradient,
    x,
    moments,
    weight,
    residual,
    out,
    weight_partials,
    bias_partials,
    column_partials,
    rows,
    dim,
    RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """layers.norm_backward: a program a picture. The sums over a picture are those of its channels, weighted."""
    picture = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    source = picture * rows * dim + m[:, None] * dim + c[None, :]
    inside = (c < dim)[None, :]
    mean = tl.load(moments + picture * 2)
    inverse = tl.load(moments + picture * 2 + 1)
    scale = tl.load(weight + c, mask=c < dim, other=0.0).to(tl.float32)
    first = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    second = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, rows, BLOCK_M):
        mask = (start + m < rows)[:, None] & inside
        d = tl.load(gradient + source + start * dim, mask=mask, other=0.0).to(tl.float32)
        first += d
        second += d * (tl.load(x + source + start * dim, mask=mask, other=0.0).to(tl.float32) - mean) * inverse
    of_bias = tl.sum(first, axis=0)
    of_weight = tl.sum(second, axis=0)
    place = picture * dim + c
    tl.store(weight_partials + place, of_weight, mask=c < dim)
    tl.store(bias_partials + place, of_bias, mask=c < dim)
    count = rows * dim * 1.0
    level = tl.sum(of_bias * scale) / count
    slope = tl.sum(of_weight * scale) / count
    columns = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, rows, BLOCK_M):
        mask = (start + m < rows)[:, None] & inside
        d = tl.load(gradient + source + start * dim, mask=mask, other=0.0).to(tl.float32) * scale[None, :]
        normal = (tl.load(x + source + start * dim, mask=mask, other=0.0).to(tl.float32) - mean) * inverse
        result = (d - level - normal * slope) * inverse
        if RESIDUAL:
            result += tl.load(residual + source + start * dim, mask=mask, other=0.0).to(tl.float32)
        written = result.to(out.dtype.element_ty)
        tl.store(out + source + start * dim, written, mask=mask)
        columns += tl.where(mask, written.to(tl.float32), 0.0)
    tl.store(column_partials + place, tl.sum(columns, axis=0), mask=c < dim)


@triton.jit
def _first_token(program, height, width, PATCH: tl.constexpr):
    """A program has a picture and a pixel of the patch: where that pixel of the first patch is."""
    picture = (program // (PATCH * PATCH)).to(tl.int64)
    pixel = program % (PATCH * PATCH)
    return picture * height * width + pixel // PATCH * width + pixel % PATCH


@triton.jit
def _token(base, patch, wide, width, PATCH: tl.constexpr):
    """The same pixel of other patches."""
    return base + patch // wide * PATCH * width + patch % wide * PATCH


@triton.jit
def _scores(both, base, n, patches, wide, width, dim, stride, PATCH: tl.constexpr):
    """Softmax of the scores of one pixel of all patches."""
    token = _token(base, n, wide, width, PATCH)
    score = tl.load(both + token * stride + dim, mask=n < patches, other=float("-inf")).to(tl.float32)
    score = tl.exp(score - tl.max(score))
    return score / tl.sum(score)


@triton.jit(do_not_specialize=["patches", "wide", "width", "height"])
def context_kernel(
    tokens,
    both,
    out,
    scores,
    patches,
    wide,
    width,
    height,
    dim,
    stride,
    PATCH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """layers.context: a program a pixel of the patch and picture."""
    program = tl.program_id(0)
    base = _first_token(program, height, width, PATCH)
    n = tl.arange(0, BLOCK_N)
    share = _scores(both, base, n, patches, wide, width, dim, stride, PATCH)
    tl.store(scores + program.to(tl.int64) * patches + n, share, mask=n < patches)
    tl.debug_barrier()
    c = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    summed = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, patches, BLOCK_M):
        patch = start + m
        token = _token(base, patch, wide, width, PATCH)
        mask = (patch < patches)[:, None] & (c < dim)[None, :]
        value = tl.load(tokens + token[:, None] * dim + c[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(scores + program.to(tl.int64) * patches + patch, mask=patch < patches, other=0.0)
        summed += value * weight[:, None]
    tl.store(out + program.to(tl.int64) * dim + c, tl.sum(summed, axis=0).to(out.dtype.element_ty), mask=c < dim)


@triton.jit(do_not_specialize=["patches", "wide", "width", "height"])
def context_backward_kernel(
    tokens,
    scores,
    context,
    gradient,
    out,
    both_gradient,
    patches,
    wide,
    width,
    height,
    dim,
    stride,
    PATCH: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """layers.context_backward: the tokens' gradient, and that of the scores before the softmax with zeros behind it."""
    program = tl.program_id(0)
    base = _first_token(program, height, width, PATCH)
    c = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    behind = tl.load(gradient + program.to(tl.int64) * dim + c, mask=c < dim, other=0.0).to(tl.float32)
    level = tl.sum(behind * tl.load(context + program.to(tl.int64) * dim + c, mask=c < dim, other=0.0).to(tl.float32))
    pad = tl.arange(0, PAD)
    for start in range(0, patches, BLOCK_M):
        patch = start + m
        token = _token(base, patch, wide, width, PATCH)
        mask = (patch < patches)[:, None] & (c < dim)[None, :]
        value = tl.load(tokens + token[:, None] * dim + c[None, :], mask=mask, other=0.0).to(tl.float32)
        share = tl.load(scores + program.to(tl.int64) * patches + patch, mask=patch < patches, other=0.0)
        of_score = share * (tl.sum(value * behind[None, :], axis=1) - level)
        tl.store(out + token[:, None] * dim + c[None, :], (share[:, None] * behind[None, :]).to(out.dtype.element_ty), mask=mask)
        row = tl.where((pad == 0)[None, :], of_score[:, None], 0.0).to(both_gradient.dtype.element_ty)
        tl.store(
            both_gradient + token[:, None] * stride + dim + pad[None, :], row, mask=(patch < patches)[:, None] & (pad >= 0)[None, :]
        )


@triton.jit(do_not_specialize=["rows", "width", "height"])
def gate_kernel(
    both, context, out, rows, width, height, dim, stride, PATCH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """layers.gate: a tile of tokens in the order of the map."""
    token = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    mask = (token < rows)[:, None] & (c < dim)[None, :]
    group = token // (height * width) * (PATCH * PATCH) + token // width % height % PATCH * PATCH + token % width % PATCH
    value = tl.load(both + token[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(context + group[:, None] * dim + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token[:, None] * dim + c[None, :], (tl.maximum(value, 0.0) * factor).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["patches", "wide", "width", "height"])
def gate_backward_kernel(
    gradient,
    both,
    context,
    out,
    both_gradient,
    context_gradient,
    value_partials,
    patches,
    wide,
    width,
    height,
    dim,
    stride,
    PATCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """layers.gate_backward: the gated values again, the values' gradient and its sum, the context's gradient."""
    program = tl.program_id(0)
    base = _first_token(program, height, width, PATCH)
    c = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    factor = tl.load(context + program.to(tl.int64) * dim + c, mask=c < dim, other=0.0).to(tl.float32)[None, :]
    of_context = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    of_value = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, patches, BLOCK_M):
        patch = start + m
        token = _token(base, patch, wide, width, PATCH)
        mask = (patch < patches)[:, None] & (c < dim)[None, :]
        value = tl.load(both + token[:, None] * stride + c[None, :], mask=mask, other=0.0).to(tl.float32)
        d = tl.load(gradient + token[:, None] * dim + c[None, :], mask=mask, other=0.0).to(tl.float32)
        positive = tl.maximum(value, 0.0)
        tl.store(out + token[:, None] * dim + c[None, :], (positive * factor).to(out.dtype.element_ty), mask=mask)
        written = tl.where(value > 0, d * factor, 0.0).to(both_gradient.dtype.element_ty)
        tl.store(both_gradient + token[:, None] * stride + c[None, :], written, mask=mask)
        of_context += d * positive
        of_value += written.to(tl.float32)
    place = program.to(tl.int64) * dim + c
    tl.store(context_gradient + place, tl.sum(of_context, axis=0).to(context_gradient.dtype.element_ty), mask=c < dim)
    tl.store(value_partials + place, tl.sum(of_value, axis=0), mask=c < dim)


@triton.jit(do_not_specialize=["rows", "tiles", "programs", "blocks_c"])
def silu_backward_kernel(
    gradient, x, out, activated, partials, rows, tiles, programs, channels, blocks_c, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """layers.silu_backward: the activation again, its input's gradient, and the sums of that for the bias."""
    program = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    summed = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for tile in range(program, tiles, programs):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (row < rows)[:, None] & (c < channels)[None, :]
        place = row[:, None] * channels + c[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        share = sigmoid(value)
        active = value * share
        tl.store(activated + place, active.to(activated.dtype.element_ty), mask=mask)
        d = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32) * (share + active * (1.0 - share))
        written = d.to(out.dtype.element_ty)
        tl.store(out + place, written, mask=mask)
        summed += tl.where(mask, written.to(tl.float32), 0.0)
    tl.store(partials + program * channels + c, tl.sum(summed, axis=0), mask=c < channels)
