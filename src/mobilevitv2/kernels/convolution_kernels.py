"""The kernels of the convolutions; operations.py calls them, and those of token_kernels.py, which has the transformers'.

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


@triton.jit
def patches(
    x,
    picture,
    pixel,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    in_height,
    in_width,
    out_width,
    out_pixels,
    CHANNELS: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The taps of each pixel as a row of a matrix; channel, row and column of the filter, the order of torch's weights."""
    tap = tl.arange(0, BLOCK_K)
    channel = tap // (SIDE * SIDE)
    y = (pixel // out_width * STRIDE - SIDE // 2)[:, None] + (tap // SIDE % SIDE)[None, :]
    column = (pixel % out_width * STRIDE - SIDE // 2)[:, None] + (tap % SIDE)[None, :]
    inside = (y >= 0) & (y < in_height) & (column >= 0) & (column < in_width)
    inside = inside & (pixel < out_pixels)[:, None] & (channel < CHANNELS)[None, :]
    source = x + picture * stride_b + channel[None, :] * stride_c + y * stride_y + column * stride_x
    return tl.load(source, mask=inside, other=0.0)


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
    tap = tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    taps = patches(
        x, picture, pixel, stride_b, stride_c, stride_y, stride_x, in_height, in_width, out_width, out_pixels,
        CHANNELS, SIDE, STRIDE, BLOCK_K,
    )  # fmt: skip
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
