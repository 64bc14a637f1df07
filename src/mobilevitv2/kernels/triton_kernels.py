"""The kernels themselves; operations.py calls them.

Letters: B pictures, pixels of one picture H * W, K channels in, N channels out, D channels of a token. All maps are
(B, H, W, channels), those of the transformers too: which patch and which pixel of a patch a token is, its place says.

Group normalisation of one group needs the mean and variance of a whole picture before any of its tokens can be used. Each kernel
that writes tokens leaves the sum and the sum of squares of its tile in `partials` (B, tiles, 2); the kernels that read tokens add
them up. So the statistics cost no pass over the tokens, and no atomics: equal input, equal bits. Products run on the matrix units
with float32 sums; everything between two products stays in float32.
"""

# Capitals mark what is known when a kernel is compiled, as in Triton's own examples. Other arguments have no types: torch.compile
# copies a kernel's text to where no names but Triton's are known.
# ruff: noqa: N803, ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]


@triton.jit
def _activate(x, KIND: tl.constexpr):
    if KIND == "silu":
        x = x * tl.sigmoid(x)
    elif KIND == "fast silu":  # 3 instructions for 12; off by 2^-12 of x, an eighth of what bfloat16 rounds away
        half = 0.5 * x
        bent = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1)
        x = half + half * bent
    elif KIND == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def _mean_and_scale(partials, picture, tiles, count, eps, BLOCK_T: tl.constexpr):
    """Mean and 1 / sqrt(variance + eps) of a picture from its tiles' sums."""
    t = tl.arange(0, BLOCK_T)
    total = tl.sum(tl.load(partials + (picture * tiles + t) * 2, mask=t < tiles, other=0.0))
    squares = tl.sum(tl.load(partials + (picture * tiles + t) * 2 + 1, mask=t < tiles, other=0.0))
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    return mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit(do_not_specialize=["in_height", "in_width", "out_width", "out_pixels", "tiles"])
def stem_kernel(
    x,
    weight,
    bias,
    out,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    in_height,
    in_width,
    out_width,
    out_pixels,
    tiles,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
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
    filters = tl.load(weight + n[None, :] * inputs + tap[:, None], mask=(n < OUTPUTS)[None, :] & (tap < inputs)[:, None], other=0.0)
    result = tl.dot(taps.to(filters.dtype), filters, input_precision=PRECISION)
    result = _activate(result + tl.load(bias + n, mask=n < OUTPUTS, other=0.0).to(tl.float32)[None, :], ACTIVATION)
    target = out + picture * out_pixels * OUTPUTS + pixel[:, None] * OUTPUTS + n[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=(pixel < out_pixels)[:, None] & (n < OUTPUTS)[None, :])


@triton.jit(do_not_specialize=["in_height", "in_width", "out_height", "out_width"])
def depthwise_kernel(
    x,
    taps,
    bias,
    out,
    in_height,
    in_width,
    out_height,
    out_width,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCKS_C: tl.constexpr,
):
    """operations.depthwise: a program makes BLOCK_M columns, ROWS pixels high, of a strip of a picture.

    The text loads each pixel for every result it is part of; the compiler keeps one load of each and no store stands between them,
    so all loads of a program are under way together. What instructions cost bounds it as much as bytes do: the grid has three axes
    so that rows are checked once for a program, and only columns for every thread.
    """
    program = tl.program_id(0)
    column = program // BLOCKS_C * BLOCK_M + tl.arange(0, BLOCK_M)
    c = program % BLOCKS_C * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1) * ROWS
    picture = tl.program_id(2).to(tl.int64)
    known = (column < out_width)[:, None]
    if CHANNELS % BLOCK_C != 0:
        known = known & (c < CHANNELS)[None, :]
    y = first * STRIDE - SIDE // 2 * DILATION
    left = column * STRIDE - SIDE // 2 * DILATION
    source = x + (picture * in_height + y) * in_width * CHANNELS
    y += tl.zeros((1, 1), dtype=tl.int32)  # of one number a tile, for the masks
    place = left[:, None] * CHANNELS + c[None, :]
    shift = tl.load(bias + c, mask=c < CHANNELS, other=0.0).to(tl.float32)
    results = ()
    for row in tl.static_range(ROWS):
        result = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32) + shift[None, :]
        for tap in tl.static_range(SIDE * SIDE):
            down = row * STRIDE + tap // SIDE * DILATION
            right = tap % SIDE * DILATION
            inside = ((left + right >= 0) & (left + right < in_width))[:, None] & known & ((y + down >= 0) & (y + down < in_height))
            values = tl.load(source + down * in_width * CHANNELS + (place + right * CHANNELS), mask=inside, other=0.0)
            factors = tl.load(taps + tap * CHANNELS + c, mask=c < CHANNELS, other=0.0)
            result += values.to(tl.float32) * factors.to(tl.float32)[None, :]
        results = results + (_activate(result, ACTIVATION),)  # noqa: RUF005
    target = out + (picture * out_height + first) * out_width * CHANNELS
    place = column[:, None] * CHANNELS + c[None, :]
    for row in tl.static_range(ROWS):
        mask = known & (first + row + tl.zeros((1, 1), dtype=tl.int32) < out_height)
        tl.store(target + row * out_width * CHANNELS + place, results[row].to(out.dtype.element_ty), mask=mask)


@triton.jit
def _shift(bias, n, OUTPUTS: tl.constexpr, BIAS: tl.constexpr, BLOCK_N: tl.constexpr):
    shift = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if BIAS:
        shift = tl.load(bias + n, mask=n < OUTPUTS, other=0.0).to(tl.float32)
    return shift


@triton.jit
def _write(
    result,
    shift,
    residual,
    out,
    partials,
    number,
    picture,
    row,
    rows,
    n,
    OUTPUTS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PARTIALS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """What follows the product of a tile, and its statistics as entry `number` of the partials."""
    result = _activate(result + shift[None, :], ACTIVATION)
    mask = (row < rows)[:, None] & (n < OUTPUTS)[None, :]
    place = (picture * rows + row)[:, None] * OUTPUTS + n[None, :]
    if RESIDUAL:
        result += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    written = result.to(out.dtype.element_ty)
    tl.store(out + place, written, mask=mask)
    if PARTIALS:
        kept = tl.where(mask, written.to(tl.float32), 0.0)
        tl.store(partials + number.to(tl.int64) * 2, tl.sum(kept))
        tl.store(partials + number.to(tl.int64) * 2 + 1, tl.sum(kept * kept))


@triton.jit(do_not_specialize=["rows", "tiles", "read_tiles"])
def pointwise_kernel(
    x,
    weight,
    sums,
    bias,
    residual,
    read_partials,
    out,
    partials,
    rows,
    tiles,
    read_tiles,
    eps,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCKS_N: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PARTIALS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """operations.pointwise, one program a tile, the input channels in steps."""
    program = tl.program_id(0)
    picture = (program // BLOCKS_N // tiles).to(tl.int64)
    row = program // BLOCKS_N % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % BLOCKS_N * BLOCK_N + tl.arange(0, BLOCK_N)
    source = x + picture * rows * INPUTS + row[:, None] * INPUTS
    result = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, INPUTS, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inputs = tl.load(source + k[None, :], mask=(row < rows)[:, None] & (k < INPUTS)[None, :], other=0.0)
        inside = (n < OUTPUTS)[None, :] & (k < INPUTS)[:, None]
        filters = tl.load(weight + n[None, :] * INPUTS + k[:, None], mask=inside, other=0.0)
        result = tl.dot(inputs, filters, acc=result, input_precision=PRECISION)
    shift = _shift(bias, n, OUTPUTS, BIAS, BLOCK_N)
    if NORM:
        mean, scale = _mean_and_scale(read_partials, picture, read_tiles, rows * 1.0 * INPUTS, eps, BLOCK_T)
        result = result * scale
        shift = shift - mean * scale * tl.load(sums + n, mask=n < OUTPUTS, other=0.0)
    _write(result, shift, residual, out, partials, program, picture, row, rows, n, OUTPUTS, RESIDUAL, PARTIALS, ACTIVATION)


@triton.jit(do_not_specialize=["rows", "tiles", "programs"])
def resident_pointwise_kernel(
    x,
    weight,
    bias,
    residual,
    out,
    rows,
    tiles,
    programs,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCKS_N: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """operations.pointwise with all input channels in one step: a program keeps its weights and goes through many tiles."""
    program = tl.program_id(0)
    n = program % BLOCKS_N * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = (n < OUTPUTS)[None, :] & (k < INPUTS)[:, None]
    filters = tl.load(weight + n[None, :] * INPUTS + k[:, None], mask=inside, other=0.0)
    shift = _shift(bias, n, OUTPUTS, BIAS, BLOCK_N)
    for tile in tl.range(program // BLOCKS_N, tiles, programs // BLOCKS_N, num_stages=STAGES):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        source = x + row[:, None] * INPUTS + k[None, :]
        inputs = tl.load(source, mask=(row < rows)[:, None] & (k < INPUTS)[None, :], other=0.0)
        result = tl.dot(inputs, filters, input_precision=PRECISION)
        _write(result, shift, residual, out, out, tile, 0, row, rows, n, OUTPUTS, RESIDUAL, False, ACTIVATION)


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
