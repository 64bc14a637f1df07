"""Kernels as functions of tensors, on feature maps (B, H, W, C), contiguous.

Bytes and operations in the docstrings are those of one launch, with e bytes an element; a GPU's time is at least bytes over
bandwidth. Weights are small and stay in the cache; they are not counted.

All launches ask for fused multiplications and additions, which is what was measured: Triton 3.9 announces another default.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2.kernels import convolution_kernels, devices, token_kernels
from mobilevitv2.kernels.fitting import fitted
from mobilevitv2.kernels.tiles import LIBRARY, Tile, depthwise_tile, mlp_tile, pointwise_tile, power, stem_tile

Activation = Literal["none", "silu", "relu"]


def stem(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, activation: Activation, tile: Tile | None = None) -> Tensor:
    """The first convolution, of any square filter, with its activation: (B, C, H, W), any strides, to (B, H', W', N).

    `weight` is (N, C side^2), torch's filters flattened.

    Reads B H W C e, writes B H' W' N e; 2 H' W' N C side^2 B operations. Against convolution, then activation: two passes over the
    result less (at 256 px and 32 channels 3.1 MB a picture become 1.4), and no change of layout before.
    """
    batch, channels, height, width = x.shape
    outputs, side = weight.shape[0], round((weight.shape[1] / channels) ** 0.5)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    if tile is None:
        run = functools.partial(stem, x, weight, bias, stride=stride, activation=activation)
        return fitted(run, stem_tile(channels * side * side, outputs), "stem", x)
    out = torch.empty(batch, out_height, out_width, outputs, device=x.device, dtype=weight.dtype)
    pixels = out_height * out_width
    tiles = triton.cdiv(pixels, tile.rows)
    convolution_kernels.stem_kernel[(batch * tiles,)](
        x,
        weight,
        bias,
        out,
        *x.stride(),
        height,
        width,
        out_width,
        pixels,
        tiles,
        CHANNELS=channels,
        OUTPUTS=outputs,
        SIDE=side,
        STRIDE=stride,
        ACTIVATION=_form(activation, weight),
        PRECISION=_precision(weight),
        BLOCK_M=tile.rows,
        BLOCK_K=tile.step,
        BLOCK_N=tile.outputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
    return out


def depthwise(
    x: Tensor,
    taps: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    activation: Activation,
    tile: Tile | None = None,
) -> Tensor:
    """Depthwise convolution with its activation: (B, H, W, K) to (B, H', W', K). `taps` is (side^2, K).

    Reads B H W K e (2 / tile.step of it once more, from the cache), writes B H' W' K e; 2 B H' W' K side^2 operations, no products
    of matrices. Against convolution, then activation: two passes over the result less.
    """
    batch, height, width, channels = x.shape
    side = round(taps.shape[0] ** 0.5)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    out = torch.empty(batch, out_height, out_width, channels, device=x.device, dtype=x.dtype)
    tile = tile or depthwise_tile(out_height, out_width, channels, stride)
    blocks_c = triton.cdiv(channels, tile.outputs)
    grid = (triton.cdiv(out_width, tile.rows) * blocks_c, triton.cdiv(out_height, tile.step), batch)
    convolution_kernels.depthwise_kernel[grid](
        x,
        taps,
        bias,
        out,
        height,
        width,
        out_height,
        out_width,
        CHANNELS=channels,
        SIDE=side,
        STRIDE=stride,
        DILATION=dilation,
        ACTIVATION=_form(activation, x),
        ROWS=tile.step,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.outputs,
        BLOCKS_C=blocks_c,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
    return out


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: Activation = "none",
    residual: Tensor | None = None,
    partials: Tensor | None = None,
    sums: Tensor | None = None,
    eps: float = 0.0,
    tile: Tile | None = None,
) -> Tensor:
    """1x1 convolution, activation, sum: (B, H, W, K) to (B, H, W, N). With `partials`, the sums of x, x is normalised on the way.

    `sums` are `row_sums(weight)`, which the norm needs; they are computed where they are not given.

    Reads B H W K e and the residual, writes B H W N e; 2 B H W K N operations. Against the three one after another: two passes over
    the result less for the activation, three less for the sum,
    two over the input less for the norm.
    """
    if partials is not None:
        sums = row_sums(weight) if sums is None else sums
        return _pointwise(
            x, weight, bias, activation, residual, parts=x.shape[0], sums=sums, partials=partials, eps=eps, tile=tile
        )[0]
    inputs, outputs, rows = x.shape[-1], weight.shape[0], x.numel() // x.shape[-1]
    if tile is None:
        run = functools.partial(pointwise, x, weight, bias, activation=activation, residual=residual)
        rule = pointwise_tile(inputs, outputs, rows, activation=activation, residual=residual is not None)
        return fitted(run, rule, "pointwise", x)
    if tile == LIBRARY:
        return _library_pointwise(x, weight, bias, activation, residual)
    if tile.programs == 0:
        return _pointwise(x, weight, bias, activation, residual, tile=tile)[0]
    assert tile.step >= inputs, f"{tile} takes {tile.step} of {inputs} input channels in its one step"
    out = torch.empty(*x.shape[:-1], outputs, device=x.device, dtype=x.dtype)
    tiles, blocks_n = triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs)
    programs = blocks_n * max(1, min(tiles, devices.multiprocessors(x.device) * tile.programs // blocks_n))
    convolution_kernels.resident_pointwise_kernel[(programs,)](
        x,
        weight,
        bias,
        residual,
        out,
        rows,
        tiles,
        programs,
        INPUTS=inputs,
        OUTPUTS=outputs,
        BLOCKS_N=blocks_n,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        ACTIVATION=_form(activation, x),
        PRECISION=_precision(x),
        BLOCK_M=tile.rows,
        BLOCK_K=tile.step,
        BLOCK_N=tile.outputs,
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return out


def pointwise_with_statistics(x: Tensor, weight: Tensor, bias: Tensor | None, *, tile: Tile | None = None) -> tuple[Tensor, Tensor]:
    """1x1 convolution in front of a transformer: (B, H, W, K) to (B, H, W, N) and its sums (B, tiles, 2).

    Bytes and operations of `pointwise`. The norm behind it has its sums without a pass over the map.
    """
    return _pointwise(x, weight, bias, "none", None, parts=x.shape[0], statistics=True, tile=tile)


def _pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation,
    residual: Tensor | None,
    *,
    parts: int = 1,
    statistics: bool = False,
    partials: Tensor | None = None,
    sums: Tensor | None = None,
    eps: float = 0.0,
    tile: Tile | None,
) -> tuple[Tensor, Tensor]:
    """Tiles within each of `parts`, pictures where there are statistics to write or `partials` to read; else these are empty."""
    inputs, outputs = x.shape[-1], weight.shape[0]
    rows = x.numel() // inputs // parts
    if tile is None:
        run = functools.partial(_pointwise, x, weight, bias, activation, residual, parts=parts, statistics=statistics)
        rule = pointwise_tile(
            inputs, outputs, rows * parts, activation=activation, residual=residual is not None, pictures=parts > 1
        )
        return fitted(functools.partial(run, partials=partials, sums=sums, eps=eps), rule, "pointwise", x)
    out = torch.empty(*x.shape[:-1], outputs, device=x.device, dtype=x.dtype)
    tiles, blocks_n = triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs)
    written = torch.empty(parts, tiles * blocks_n if statistics else 0, 2, device=x.device, dtype=torch.float32)
    read_tiles = 1 if partials is None else partials.shape[1]
    convolution_kernels.pointwise_kernel[(parts * tiles * blocks_n,)](
        x,
        weight,
        sums,
        bias,
        residual,
        partials,
        out,
        written,
        rows,
        tiles,
        read_tiles,
        eps,
        INPUTS=inputs,
        OUTPUTS=outputs,
        BLOCKS_N=blocks_n,
        NORM=partials is not None,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        PARTIALS=statistics,
        ACTIVATION=_form(activation, x),
        PRECISION=_precision(x),
        BLOCK_T=_block(read_tiles),
        BLOCK_M=tile.rows,
        BLOCK_K=tile.step,
        BLOCK_N=tile.outputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
    return out, written


def _library_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, residual: Tensor | None) -> Tensor:
    out = F.linear(x, weight, bias)
    if activation == "silu":
        F.silu(out, inplace=True)
    elif activation == "relu":
        F.relu(out, inplace=True)
    return out if residual is None else out.add_(residual)


def context(x: Tensor, partials: Tensor, query: Tensor, *, patch_size: int, eps: float) -> Tensor:
    """Sum of normalised tokens, weighted with the softmax of their scores: (B, H, W, D) to (B, P, D). `query` is (D,).

    Each of the P pixels of a patch has a softmax of its own, over all patches; H and W are whole numbers of patches.

    One pass with a running maximum: reads B H W D e, writes next to nothing; 4 B H W D operations. Against norm, scores, softmax
    and sum: reads the tokens once instead of three times, and writes them not at all instead of once.
    """
    batch, height, width, dim = x.shape
    pixels = patch_size**2
    patches = height * width // pixels
    out = torch.empty(batch, pixels, dim, device=x.device, dtype=x.dtype)
    block_d = triton.next_power_of_2(dim)
    token_kernels.context_kernel[(batch * pixels,)](
        x,
        query,
        partials,
        out,
        patches,
        width,
        partials.shape[1],
        eps,
        DIM=dim,
        PATCH=patch_size,
        BLOCK_T=_block(partials.shape[1]),
        BLOCK_M=max(16, min(triton.next_power_of_2(patches), 8192 // block_d)),
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


def token_mlp(
    x: Tensor,
    partials: Tensor,
    first_weight: Tensor,
    first_bias: Tensor,
    second_weight: Tensor,
    second_bias: Tensor,
    *,
    eps: float,
    activation: Activation,
    gate: Tensor | None = None,
    patch_size: int = 1,
    first_sums: Tensor | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """x + W2 (gate * activation(W1 norm(x) + b1)) + b2 and its `partials`: both halves of a transformer layer have this form.

    The feed-forward part has no gate; of attention W1 are the value rows, the activation is ReLU, the gate (B, P, D) the projected
    context, a row for each pixel of a patch, and W2 the output projection. `first_sums` are `row_sums(first_weight)`.

    Reads B H W D e, writes the same; 4 B H W D hidden operations. Against norm, two convolutions, activation, gate and sum one
    after another: two passes instead of twelve (five where the compiler fuses all that is no product).
    """
    batch, height, width, dim = x.shape
    hidden, rows = first_weight.shape[0], height * width
    if tile is None:
        run = functools.partial(token_mlp, x, partials, first_weight, first_bias, second_weight, second_bias)
        run = functools.partial(run, eps=eps, activation=activation, gate=gate, patch_size=patch_size, first_sums=first_sums)
        return fitted(run, mlp_tile(dim, hidden, batch, rows, gated=gate is not None), "token_mlp", x)
    tiles = triton.cdiv(rows, tile.rows)
    out = torch.empty_like(x)
    written = torch.empty(batch, tiles, 2, device=x.device, dtype=torch.float32)
    token_kernels.token_mlp_kernel[(batch * tiles,)](
        x,
        first_weight,
        row_sums(first_weight) if first_sums is None else first_sums,
        first_bias,
        second_weight,
        second_bias,
        gate,
        partials,
        out,
        written,
        rows,
        width,
        tiles,
        partials.shape[1],
        eps,
        DIM=dim,
        HIDDEN=hidden,
        PATCH=patch_size,
        GATED=gate is not None,
        ACTIVATION=_form(activation, x),
        PRECISION=_precision(x),
        BLOCK_T=_block(partials.shape[1]),
        BLOCK_M=tile.rows,
        BLOCK_D=tile.outputs,
        BLOCK_E=power(dim - tile.outputs) if dim > tile.outputs else 0,
        BLOCK_H=tile.step,
        EVEN=rows % tile.rows == 0,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
    return out, written


def row_sums(weight: Tensor) -> Tensor:
    """(out, in) -> (out,), in float32: what a mean of the inputs adds to each output."""
    return weight.detach().float().sum(1)


def _form(activation: Activation, x: Tensor) -> str:
    """bfloat16 takes the unit for tanh that NVIDIA's GPUs have; its error is an eighth of the dtype's own."""
    fast = activation == "silu" and x.dtype == torch.bfloat16 and x.is_cuda and torch.version.cuda is not None
    return "fast silu" if fast else activation


def _block(tiles: int) -> int:
    """Sums to read at once; the same for most layers, so that few kernels are compiled."""
    return max(64, int(triton.next_power_of_2(tiles)))


def _precision(x: Tensor) -> str:
    """The matrix units' shortened float32 would cost float32 its meaning."""
    return "ieee" if x.dtype == torch.float32 else "tf32"
