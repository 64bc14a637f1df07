"""Kernels as functions of tensors, with the choice of tiles. Feature maps are (B, H, W, C), tokens (B, P, N, D), both contiguous.

Bytes and operations in the docstrings are those of one launch, with e bytes an element; a GPU's time is at least bytes over
bandwidth. Weights are small and stay in the cache; they are not counted.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from mobilevitv2.kernels import triton_kernels

Activation = Literal["none", "silu", "relu"]


class Tile(NamedTuple):
    """What one program works on: rows (pixels), channels in a step, output channels; and how the compiler lays it out."""

    rows: int
    step: int
    outputs: int
    warps: int
    stages: int


def stem(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, activation: Activation, tile: Tile | None = None) -> Tensor:
    """The first convolution, of any square filter, with its activation: (B, C, H, W), any strides, to (B, H', W', N).

    `weight` is (N, C side^2), torch's filters flattened.

    Reads B H W C e, writes B H' W' N e; 2 H' W' N C side^2 B operations. Against convolution, then activation: two passes over the
    result less (at 256 px and 32 channels 3.1 MB a picture become 1.4), and no change of layout before.
    """
    batch, channels, height, width = x.shape
    outputs, side = weight.shape[0], round((weight.shape[1] / channels) ** 0.5)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    out = torch.empty(batch, out_height, out_width, outputs, device=x.device, dtype=weight.dtype)
    pixels = out_height * out_width
    tile = tile or Tile(128, _power(channels * side * side), _power(outputs), 4, 1)
    tiles = triton.cdiv(pixels, tile.rows)
    triton_kernels.stem_kernel[(batch * tiles,)](
        x,
        weight,
        bias,
        out,
        *x.stride(),
        height,
        width,
        out_width,
        pixels,
        outputs,
        tiles,
        CHANNELS=channels,
        SIDE=side,
        STRIDE=stride,
        ACTIVATION=activation,
        PRECISION=_precision(weight),
        BLOCK_M=tile.rows,
        BLOCK_K=tile.step,
        BLOCK_N=tile.outputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: Activation,
    partials: Tensor | None = None,
    eps: float = 1e-5,
    patch_size: int = 0,
    size: tuple[int, int] | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """1x1 convolution with activation: (B, H, W, K) to (B, H, W, N).

    With `partials` and `patch_size`, from tokens (B, P, N, K) that are normalised on the way, to the map of `size` they make.

    Reads B H W K e, writes B H W N e; 2 B H W K N operations. Against convolution, then activation: two passes over the result
    less; from tokens, two passes over the input less for the norm and two for the order of the pixels.
    """
    batch, height, width = (x.shape[0], *size) if size else x.shape[:3]
    inputs, outputs = x.shape[-1], weight.shape[0]
    pixels = height * width
    out = torch.empty(batch, height, width, outputs, device=x.device, dtype=x.dtype)
    tile = tile or pointwise_tile(pixels, inputs, outputs)
    tiles, blocks_n = triton.cdiv(pixels, tile.rows), triton.cdiv(outputs, tile.outputs)
    read_tiles = 1 if partials is None else partials.shape[1]
    triton_kernels.pointwise_kernel[(batch * tiles * blocks_n,)](
        x,
        weight,
        bias,
        partials,
        out,
        pixels,
        width,
        pixels // patch_size**2 if patch_size else 1,
        inputs,
        outputs,
        tiles,
        blocks_n,
        read_tiles,
        eps,
        PATCH=patch_size,
        NORM=partials is not None,
        BIAS=bias is not None,
        ACTIVATION=activation,
        PRECISION=_precision(x),
        BLOCK_T=triton.next_power_of_2(read_tiles),
        BLOCK_M=tile.rows,
        BLOCK_K=tile.step,
        BLOCK_N=tile.outputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def depthwise_pointwise(
    x: Tensor,
    taps: Tensor,
    taps_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    activation: Activation,
    residual: Tensor | None = None,
    patch_size: int = 0,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Depthwise convolution, activation, 1x1 convolution, sum: (B, H, W, K) to (B, H', W', N). `taps` is (side^2, K).

    With `patch_size` the result is tokens (B, P, patches, N), and `partials` (B, tiles, 2) comes with them.

    Reads B H W K e (each pixel up to side^2 times, from the cache) and the residual, writes B H' W' N e; 2 B H' W' K (side^2 + N)
    operations. Against depthwise convolution, activation and 1x1 convolution one after another: four passes over the K channels of
    the middle less, and two over the result where it is summed. For the first inverted residual at width 1.0 and 256 px 4.2 MB a
    picture for 10.5 (or 6.3 where the compiler fuses the activation into the depthwise kernel).
    """
    batch, height, width, channels = x.shape
    outputs, side = weight.shape[0], round(taps.shape[0] ** 0.5)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    pixels = out_height * out_width
    shape = (batch, patch_size**2, pixels // patch_size**2, outputs) if patch_size else (batch, out_height, out_width, outputs)
    out = torch.empty(shape, device=x.device, dtype=x.dtype)
    tile = tile or depthwise_tile(pixels, channels, outputs)
    tiles, blocks_n = triton.cdiv(pixels, tile.rows), triton.cdiv(outputs, tile.outputs)
    partials = torch.empty(batch, tiles * blocks_n, 2, device=x.device, dtype=torch.float32) if patch_size else None
    triton_kernels.depthwise_pointwise_kernel[(batch * tiles * blocks_n,)](
        x,
        taps,
        taps_bias,
        weight,
        bias,
        residual,
        out,
        partials,
        height,
        width,
        out_width,
        pixels,
        pixels // patch_size**2 if patch_size else 1,
        channels,
        outputs,
        tiles,
        blocks_n,
        SIDE=side,
        STRIDE=stride,
        DILATION=dilation,
        PATCH=patch_size,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        PARTIALS=partials is not None,
        ACTIVATION=activation,
        PRECISION=_precision(x),
        BLOCK_M=tile.rows,
        BLOCK_K=tile.step,
        BLOCK_N=tile.outputs,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out, partials


def context(x: Tensor, partials: Tensor, query: Tensor, *, eps: float) -> Tensor:
    """Sum of normalised tokens, weighted with the softmax of their scores: (B, P, N, D) to (B, P, D). `query` is (D,).

    One pass with a running maximum: reads B P N D e, writes next to nothing; 4 B P N D operations. Against norm, scores, softmax
    and sum: reads the tokens once instead of three times, and writes them not at all instead of once.
    """
    batch, pixels, patches, dim = x.shape
    out = torch.empty(batch, pixels, dim, device=x.device, dtype=x.dtype)
    block_d = triton.next_power_of_2(dim)
    triton_kernels.context_kernel[(batch * pixels,)](
        x,
        query,
        partials,
        out,
        patches,
        pixels,
        dim,
        partials.shape[1],
        eps,
        BLOCK_T=triton.next_power_of_2(partials.shape[1]),
        BLOCK_M=max(16, min(triton.next_power_of_2(patches), 8192 // block_d)),
        BLOCK_D=block_d,
        num_warps=4,
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
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """x + W2 (gate * activation(W1 norm(x) + b1)) + b2 and its `partials`: both halves of a transformer layer have this form.

    The feed-forward part has no gate; of attention W1 are the value rows, the activation is ReLU, the gate (B, P, D) the projected
    context and W2 the output projection.

    Reads B P N D e, writes the same; 4 B P N D hidden operations. Against norm, two convolutions, activation, gate and sum one
    after another: two passes instead of twelve (five where the compiler fuses all that is no product).
    """
    batch, pixels, patches, dim = x.shape
    hidden, rows = first_weight.shape[0], pixels * patches
    tile = tile or mlp_tile(rows, dim)
    tiles = triton.cdiv(rows, tile.rows)
    out = torch.empty_like(x)
    written = torch.empty(batch, tiles, 2, device=x.device, dtype=torch.float32)
    triton_kernels.token_mlp_kernel[(batch * tiles,)](
        x,
        first_weight,
        first_bias,
        second_weight,
        second_bias,
        gate,
        partials,
        out,
        written,
        rows,
        patches,
        pixels,
        dim,
        hidden,
        tiles,
        partials.shape[1],
        eps,
        GATED=gate is not None,
        ACTIVATION=activation,
        PRECISION=_precision(x),
        BLOCK_T=triton.next_power_of_2(partials.shape[1]),
        BLOCK_M=tile.rows,
        BLOCK_D=tile.outputs,
        BLOCK_H=tile.step,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out, written


def _precision(x: Tensor) -> str:
    """The matrix units' shortened float32 would cost float32 its meaning."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _power(number: int) -> int:
    """The next power of two, at least what a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(number)))


def pointwise_tile(pixels: int, inputs: int, outputs: int) -> Tile:
    """All output channels together where they fit, so that the input is read once."""
    block = min(256, _power(outputs))
    rows = 128 if pixels >= 1024 and block <= 128 else 64
    return Tile(rows, min(64, _power(inputs)), block, 8 if rows * block >= 128 * 128 else 4, 3)


def depthwise_tile(pixels: int, channels: int, outputs: int) -> Tile:
    """One stage: a pipeline would hold all taps of a step in shared memory and leave room for one program on a multiprocessor."""
    block = min(256, _power(outputs))
    return Tile(64, min(32, _power(channels)), block, 8 if block >= 256 else 4, 1)


def mlp_tile(rows: int, dim: int) -> Tile:
    """All channels of a token in one tile; the hidden channels in steps."""
    block = _power(dim)
    return Tile(64 if block <= 256 else 32, 64 if block <= 64 else 32, block, 4 if block <= 64 else 8, 2 if block <= 256 else 1)
