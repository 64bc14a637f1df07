"""Triton kernels of a training step's convolutions with 3x3 filters that take each channel by itself.

The words and the letters are those of training_convolutions.py. A lane of a depthwise kernel makes ROWS x COLUMNS pixels
and loads each pixel that they depend on once; what the text loads and nothing uses, the compiler leaves out.
"""

# ruff: noqa: N803, N806, ANN001, ANN201, ANN202, RUF005, C901, PLR0915
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment, var-annotated, unreachable"

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from mobilevitv2.kernels.training_convolutions import _activate, _activate_with_slope, _leave, _leave_lanes, _row

COUNTS = ["lanes", "tiles", "programs", "strips", "spans", "in_height", "in_width", "out_height", "out_width", "blocks_c"]


@triton.jit
def _input(source, inside, scale, shift, KIND: tl.constexpr):
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if KIND != "raw":
        value = tl.where(inside, _activate(value * scale + shift, KIND), 0.0)
    return value


@triton.jit(do_not_specialize=COUNTS)
def depthwise_forward_kernel(
    x,
    norm,
    taps,
    out,
    partials,
    counts,
    lanes,
    tiles,
    programs,
    strips,
    spans,
    in_height,
    in_width,
    out_height,
    out_width,
    channels,
    blocks_c,
    KIND: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """filtering.depthwise: lanes of all pictures are numbered through, `spans` beside each other, `strips` below each other."""
    HIGH: tl.constexpr = (ROWS - 1) * STRIDE + (SIDE - 1) * DILATION + 1  # of the pixels that a lane looks at
    WIDE: tl.constexpr = (COLUMNS - 1) * STRIDE + (SIDE - 1) * DILATION + 1
    program = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = tl.zeros((1, BLOCK_C), dtype=tl.float32)
    shift = tl.zeros((1, BLOCK_C), dtype=tl.float32)
    if KIND != "raw":
        scale = _row(norm, 2, channels, c)[None, :]
        shift = _row(norm, 3, channels, c)[None, :]
    factors = ()
    for tap in tl.static_range(SIDE * SIDE):
        factors = factors + (_row(taps, tap, channels, c).to(tl.float32)[None, :],)
    count = tl.zeros((BLOCK_M, 1), dtype=tl.float32)
    mean = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for tile in range(program, tiles, programs):
        lane = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        known = (lane < lanes)[:, None] & (c < channels)[None, :]
        picture = (lane // (strips * spans)).to(tl.int64)
        first = lane // spans % strips * ROWS
        left = lane % spans * COLUMNS
        y = first * STRIDE - SIDE // 2 * DILATION
        x_left = left * STRIDE - SIDE // 2 * DILATION
        source = x + ((picture * in_height + y) * in_width + x_left)[:, None] * channels + c[None, :]
        inputs = ()
        for number in tl.static_range(HIGH * WIDE):
            down, right = number // WIDE, number % WIDE
            inside = (y + down >= 0) & (y + down < in_height) & (x_left + right >= 0) & (x_left + right < in_width)
            place = source + (down * in_width + right) * channels
            inputs = inputs + (_input(place, inside[:, None] & known, scale, shift, KIND),)
        results = ()
        for pixel in tl.static_range(ROWS * COLUMNS):
            result = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
            for tap in tl.static_range(SIDE * SIDE):
                result += (
                    inputs[
                        (pixel // COLUMNS * STRIDE + tap // SIDE * DILATION) * WIDE
                        + (pixel % COLUMNS * STRIDE + tap % SIDE * DILATION)
                    ]
                    * factors[tap]
                )
            results = results + (result.to(out.dtype.element_ty),)
        target = out + ((picture * out_height + first) * out_width + left)[:, None] * channels + c[None, :]
        added = tl.zeros((BLOCK_M, 1), dtype=tl.float32)
        total = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
        for pixel in tl.static_range(ROWS * COLUMNS):
            there = ((first + pixel // COLUMNS < out_height) & (left + pixel % COLUMNS < out_width))[:, None] & known
            tl.store(target + (pixel // COLUMNS * out_width + pixel % COLUMNS) * channels, results[pixel], mask=there)
            total += tl.where(there, results[pixel].to(tl.float32), 0.0)
            here = (lane < lanes) & (first + pixel // COLUMNS < out_height) & (left + pixel % COLUMNS < out_width)
            added += here.to(tl.float32)[:, None]
        tile_mean = total / tl.maximum(added, 1.0)
        for pixel in tl.static_range(ROWS * COLUMNS):
            there = ((first + pixel // COLUMNS < out_height) & (left + pixel % COLUMNS < out_width))[:, None] & known
            deviation = tl.where(there, results[pixel].to(tl.float32) - tile_mean, 0.0)
            squares += deviation * deviation
        joined = tl.maximum(count + added, 1.0)
        delta = tile_mean - mean
        mean += delta * (added / joined)
        squares += delta * delta * (count * added / joined)
        count += added
    _leave_lanes(partials, counts, program, channels, c, count, mean, squares)


@triton.jit
def _gradient(d, z, place, inside, scale, slope, offset):
    value = tl.load(d + place, mask=inside, other=0.0).to(tl.float32) * scale
    value += tl.load(z + place, mask=inside, other=0.0).to(tl.float32) * slope
    return value + tl.where(inside, offset, 0.0)


@triton.jit(do_not_specialize=COUNTS)
def depthwise_backward_kernel(
    d,
    z,
    norm,
    back,
    taps,
    x,
    x_norm,
    out,
    partials,
    tap_partials,
    lanes,
    tiles,
    programs,
    strips,
    spans,
    in_height,
    in_width,
    out_height,
    out_width,
    channels,
    blocks_c,
    KIND: tl.constexpr,
    SIDE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """filtering.depthwise_backward: lanes lie on the input; the gradients that reach a pixel serve both products.

    ROWS and COLUMNS are multiples of STRIDE, so which taps reach a pixel is known when the kernel is compiled.
    """
    REACH: tl.constexpr = SIDE // 2 * DILATION
    BEFORE: tl.constexpr = REACH // STRIDE  # gradients looked at in front of a lane's own
    HIGH: tl.constexpr = BEFORE + (ROWS - 1 + REACH) // STRIDE + 1
    WIDE: tl.constexpr = BEFORE + (COLUMNS - 1 + REACH) // STRIDE + 1
    program = tl.program_id(0) // blocks_c
    c = tl.program_id(0) % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    d_scale = _row(norm, 2, channels, c)[None, :]
    slope = _row(back, 0, channels, c)[None, :]
    offset = _row(back, 1, channels, c)[None, :]
    mean = tl.zeros((1, BLOCK_C), dtype=tl.float32)
    scale = tl.zeros((1, BLOCK_C), dtype=tl.float32)
    shift = tl.zeros((1, BLOCK_C), dtype=tl.float32)
    if KIND != "raw":
        mean = _row(x_norm, 0, channels, c)[None, :]
        scale = _row(x_norm, 2, channels, c)[None, :]
        shift = _row(x_norm, 3, channels, c)[None, :]
    gathered, factors = (), ()
    for tap in tl.static_range(SIDE * SIDE):
        factors = factors + (_row(taps, tap, channels, c).to(tl.float32)[None, :],)
        gathered = gathered + (tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32),)
    sum_d = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    sum_dz = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
    for tile in range(program, tiles, programs):
        lane = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        known = (lane < lanes)[:, None] & (c < channels)[None, :]
        picture = (lane // (strips * spans)).to(tl.int64)
        first = lane // spans % strips * ROWS
        left = lane % spans * COLUMNS
        y = first // STRIDE
        x_left = left // STRIDE
        source = ((picture * in_height + first) * in_width + left)[:, None] * channels + c[None, :]
        behind = ((picture * out_height + y) * out_width + x_left)[:, None] * channels + c[None, :]
        inputs, bends = (), ()
        for pixel in tl.static_range(ROWS * COLUMNS):
            there = ((first + pixel // COLUMNS < in_height) & (left + pixel % COLUMNS < in_width))[:, None] & known
            place = source + (pixel // COLUMNS * in_width + pixel % COLUMNS) * channels
            value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
            if KIND == "raw":
                inputs = inputs + (value,)
            else:
                activated, bend = _activate_with_slope(value * scale + shift, KIND)
                inputs, bends = inputs + (tl.where(there, activated, 0.0),), bends + (bend,)
        gradients = ()
        for number in tl.static_range(HIGH * WIDE):
            down, right = number // WIDE - BEFORE, number % WIDE - BEFORE
            inside = (y + down >= 0) & (y + down < out_height) & (x_left + right >= 0) & (x_left + right < out_width)
            place = behind + (down * out_width + right) * channels
            gradients = gradients + (_gradient(d, z, place, inside[:, None] & known, d_scale, slope, offset),)
        results = ()
        for pixel in tl.static_range(ROWS * COLUMNS):
            result = tl.zeros((BLOCK_M, BLOCK_C), dtype=tl.float32)
            for tap in tl.static_range(SIDE * SIDE):
                if (pixel // COLUMNS + (SIDE // 2 - tap // SIDE) * DILATION) % STRIDE == 0 and (
                    pixel % COLUMNS + (SIDE // 2 - tap % SIDE) * DILATION
                ) % STRIDE == 0:
                    result += (
                        gradients[
                            ((pixel // COLUMNS + (SIDE // 2 - tap // SIDE) * DILATION) // STRIDE + BEFORE) * WIDE
                            + (pixel % COLUMNS + (SIDE // 2 - tap % SIDE) * DILATION) // STRIDE
                            + BEFORE
                        ]
                        * factors[tap]
                    )
            results = results + (result,)
        sums = ()
        for tap in tl.static_range(SIDE * SIDE):
            gathering = gathered[tap]
            for pixel in tl.static_range(ROWS * COLUMNS):
                if (pixel // COLUMNS + (SIDE // 2 - tap // SIDE) * DILATION) % STRIDE == 0 and (
                    pixel % COLUMNS + (SIDE // 2 - tap % SIDE) * DILATION
                ) % STRIDE == 0:
                    gathering += (
                        gradients[
                            ((pixel // COLUMNS + (SIDE // 2 - tap // SIDE) * DILATION) // STRIDE + BEFORE) * WIDE
                            + (pixel % COLUMNS + (SIDE // 2 - tap % SIDE) * DILATION) // STRIDE
                            + BEFORE
                        ]
                        * inputs[pixel]
                    )
            sums = sums + (gathering,)
        gathered = sums
        written = ()
        for pixel in tl.static_range(ROWS * COLUMNS):
            if KIND == "raw":
                written = written + (results[pixel].to(out.dtype.element_ty),)
            else:
                there = ((first + pixel // COLUMNS < in_height) & (left + pixel % COLUMNS < in_width))[:, None] & known
                place = source + (pixel // COLUMNS * in_width + pixel % COLUMNS) * channels
                value = tl.load(x + place, mask=there, other=0.0).to(tl.float32)
                rounded = (results[pixel] * bends[pixel]).to(out.dtype.element_ty)
                kept = tl.where(there, rounded.to(tl.float32), 0.0)
                sum_d += kept
                sum_dz += kept * (value - mean)
                written = written + (rounded,)
        for pixel in tl.static_range(ROWS * COLUMNS):
            there = ((first + pixel // COLUMNS < in_height) & (left + pixel % COLUMNS < in_width))[:, None] & known
            place = source + (pixel // COLUMNS * in_width + pixel % COLUMNS) * channels
            tl.store(out + place, written[pixel], mask=there)
    if KIND != "raw":
        _leave(partials, program, channels, c, tl.sum(sum_d, axis=0), tl.sum(sum_dz, axis=0))
    for tap in tl.static_range(SIDE * SIDE):
        target = tap_partials + (program * SIDE * SIDE + tap) * channels + c
        tl.store(target, tl.sum(gathered[tap], axis=0), mask=c < channels)
