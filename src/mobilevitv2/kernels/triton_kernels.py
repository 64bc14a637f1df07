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
    out_channels,
    tiles,
    CHANNELS: tl.constexpr,
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
    filters = tl.load(
        weight + n[None, :] * inputs + tap[:, None], mask=(n < out_channels)[None, :] & (tap < inputs)[:, None], other=0.0
    )
    result = tl.dot(taps.to(filters.dtype), filters, input_precision=PRECISION)
    result = _activate(result + tl.load(bias + n, mask=n < out_channels, other=0.0).to(tl.float32)[None, :], ACTIVATION)
    target = out + picture * out_pixels * out_channels + pixel[:, None] * out_channels + n[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=(pixel < out_pixels)[:, None] & (n < out_channels)[None, :])


@triton.jit
def depthwise_kernel(
    x,
    taps,
    bias,
    out,
    columns,
    strips,
    in_height,
    in_width,
    out_height,
    out_width,
    channels,
    blocks_c,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """operations.depthwise: a program makes BLOCK_M columns, ROWS pixels high; columns of all pictures are numbered through.

    The text loads each pixel for every result it is part of; the compiler keeps one load of each and no store stands between them,
    so all loads of a program are under way together.
    """
    program = tl.program_id(0)
    column = program // blocks_c * BLOCK_M + tl.arange(0, BLOCK_M)
    c = program % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    known = (column < columns)[:, None] & (c < channels)[None, :]
    picture = (column // (strips * out_width)).to(tl.int64)
    first = column // out_width % strips * ROWS
    y = first * STRIDE - SIDE // 2 * DILATION
    left = column % out_width * STRIDE - SIDE // 2 * DILATION
    source = x + ((picture * in_height + y) * in_width + left)[:, None] * channels + c[None, :]
    shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    results = ()
    for row in tl.static_range(ROWS):
        result = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32) + shift[None, :]
        for tap in tl.static_range(SIDE * SIDE):
            down = row * STRIDE + tap // SIDE * DILATION
            right = tap % SIDE * DILATION
            inside = (y + down >= 0) & (y + down < in_height) & (left + right >= 0) & (left + right < in_width)
            values = tl.load(source + (down * in_width + right) * channels, mask=inside[:, None] & known, other=0.0)
            factors = tl.load(taps + tap * channels + c, mask=c < channels, other=0.0)
            result += values.to(tl.float32) * factors.to(tl.float32)[None, :]
        results = results + (_activate(result, ACTIVATION),)  # noqa: RUF005
    target = out + ((picture * out_height + first) * out_width + column % out_width)[:, None] * channels + c[None, :]
    for row in tl.static_range(ROWS):
        mask = known & (first + row < out_height)[:, None]
        tl.store(target + row * out_width * channels, results[row].to(out.dtype.element_ty), mask=mask)


@triton.jit
def _shift(bias, n, out_channels, BIAS: tl.constexpr, BLOCK_N: tl.constexpr):
    shift = tl.zeros((BLOCK_N,), dtype=tl.float32)
    if BIAS:
        shift = tl.load(bias + n, mask=n < out_channels, other=0.0).to(tl.float32)
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
    out_channels,
    RESIDUAL: tl.constexpr,
    PARTIALS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """What follows the product of a tile, and its statistics as entry `number` of the partials."""
    result = _activate(result + shift[None, :], ACTIVATION)
    mask = (row < rows)[:, None] & (n < out_channels)[None, :]
    place = (picture * rows + row)[:, None] * out_channels + n[None, :]
    if RESIDUAL:
        result += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    written = result.to(out.dtype.element_ty)
    tl.store(out + place, written, mask=mask)
    if PARTIALS:
        kept = tl.where(mask, written.to(tl.float32), 0.0)
        tl.store(partials + number.to(tl.int64) * 2, tl.sum(kept))
        tl.store(partials + number.to(tl.int64) * 2 + 1, tl.sum(kept * kept))


@triton.jit
def pointwise_kernel(
    x,
    weight,
    bias,
    residual,
    read_partials,
    out,
    partials,
    rows,
    in_channels,
    out_channels,
    tiles,
    blocks_n,
    read_tiles,
    eps,
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
    picture = (program // blocks_n // tiles).to(tl.int64)
    row = program // blocks_n % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if NORM:
        mean, scale = _mean_and_scale(read_partials, picture, read_tiles, rows * 1.0 * in_channels, eps, BLOCK_T)
    source = x + (picture * rows + row)[:, None] * in_channels
    result = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, in_channels, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inputs = tl.load(source + k[None, :], mask=(row < rows)[:, None] & (k < in_channels)[None, :], other=0.0)
        inside = (n < out_channels)[None, :] & (k < in_channels)[:, None]
        filters = tl.load(weight + n[None, :] * in_channels + k[:, None], mask=inside, other=0.0)
        if NORM:
            inputs = ((inputs.to(tl.float32) - mean) * scale).to(filters.dtype)
        result = tl.dot(inputs, filters, acc=result, input_precision=PRECISION)
    shift = _shift(bias, n, out_channels, BIAS, BLOCK_N)
    _write(result, shift, residual, out, partials, program, picture, row, rows, n, out_channels, RESIDUAL, PARTIALS, ACTIVATION)


@triton.jit
def resident_pointwise_kernel(
    x,
    weight,
    bias,
    residual,
    out,
    rows,
    in_channels,
    out_channels,
    tiles,
    blocks_n,
    programs,
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
    n = program % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    inside = (n < out_channels)[None, :] & (k < in_channels)[:, None]
    filters = tl.load(weight + n[None, :] * in_channels + k[:, None], mask=inside, other=0.0)
    shift = _shift(bias, n, out_channels, BIAS, BLOCK_N)
    for tile in tl.range(program // blocks_n, tiles, programs // blocks_n, num_stages=STAGES):
        row = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        source = x + row[:, None] * in_channels + k[None, :]
        inputs = tl.load(source, mask=(row < rows)[:, None] & (k < in_channels)[None, :], other=0.0)
        result = tl.dot(inputs, filters, input_precision=PRECISION)
        _write(result, shift, residual, out, out, tile, 0, row, rows, n, out_channels, RESIDUAL, False, ACTIVATION)


@triton.jit
def context_kernel(
    x,
    query,
    partials,
    out,
    patches,
    width,
    dim,
    read_tiles,
    eps,
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
    count = PATCH * PATCH * 1.0 * patches * dim
    mean, scale = _mean_and_scale(partials, picture, read_tiles, count, eps, BLOCK_T)
    # Of the score only what differs between tokens counts: softmax drops the query's bias and the mean's share.
    rows = tl.load(query + d, mask=d < dim, other=0.0).to(tl.float32) * scale
    source = x + picture * PATCH * PATCH * patches * dim
    largest = tl.full((), float("-inf"), dtype=tl.float32)
    weights = tl.zeros((), dtype=tl.float32)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, patches, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        mask = (m < patches)[:, None] & (d < dim)[None, :]
        y = m // (width // PATCH) * PATCH + pixel // PATCH
        place = y * width + m % (width // PATCH) * PATCH + pixel % PATCH
        tokens = tl.load(source + place[:, None] * dim + d[None, :], mask=mask, other=0.0).to(tl.float32)
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
    x,
    first_weight,
    first_bias,
    second_weight,
    second_bias,
    gate,
    read_partials,
    out,
    partials,
    rows,
    width,
    dim,
    hidden,
    tiles,
    read_tiles,
    eps,
    PATCH: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """operations.token_mlp: a block of hidden channels at a time goes into the result and is forgotten."""
    program = tl.program_id(0)
    picture = (program // tiles).to(tl.int64)
    row = program % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (d < dim)[None, :]
    place = picture * rows * dim + row[:, None] * dim + d[None, :]
    mean, scale = _mean_and_scale(read_partials, picture, read_tiles, rows * 1.0 * dim, eps, BLOCK_T)
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
            pixel = row // width % PATCH * PATCH + row % width % PATCH
            source = gate + (picture * PATCH * PATCH + pixel)[:, None] * hidden + h[None, :]
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
