"""The kernels of a training step's batch norms and 1x1 convolutions as functions of tensors, on maps (B, H, W, C), contiguous.

Bytes in the docstrings are those of one call, with e bytes an element and M = B H W; a GPU's time is at least bytes over bandwidth.
Weights and statistics are small and not counted. Partial sums of one call are joined by the next.

All launches ask for fused multiplications and additions, which is what was measured: Triton 3.9 announces another default.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor, nn

from mobilevitv2.kernels import devices
from mobilevitv2.kernels import training_convolutions as kernels
from mobilevitv2.kernels import training_norms as norm_kernels
from mobilevitv2.kernels.fitting import fitted
from mobilevitv2.kernels.tiles import power
from mobilevitv2.kernels.training_tiles import LIBRARY, Rows, back_tile, plain_tile, pointwise_tile

Kind = Literal["raw", "none", "silu", "relu"]
"""What stands between a stored map and its reader: nothing, a batch norm, or a batch norm with an activation."""


class Statistics(NamedTuple):
    """Of a convolution's output, by the programs that wrote it: (programs, 2, C), and how many pixels each has seen."""

    values: Tensor
    counts: Tensor


NOTHING = Statistics(torch.empty(0), torch.empty(0))


def gather(statistics: Statistics, norm: nn.BatchNorm2d) -> Tensor:
    """Mean, 1 / deviation, scale and shift of a batch norm in training, (4, C) in float32; its running statistics move."""
    values, counts = statistics
    programs, _, channels = values.shape
    found = torch.empty(4, channels, device=values.device, dtype=torch.float32)
    norm_kernels.gather_kernel[(triton.cdiv(channels, 8),)](
        values,
        counts,
        norm.weight,
        norm.bias,
        found,
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
        programs,
        channels,
        norm.eps,
        norm.momentum,
        BLOCK_P=triton.next_power_of_2(programs),
        BLOCK_C=8,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return found


class Back(NamedTuple):
    """`table` (2, C) takes the gradient behind a batch norm to that of the convolution in front of it."""

    table: Tensor
    weight: Tensor
    bias: Tensor


def gather_back(partials: Tensor, norm: Tensor, *, count: int, dtype: torch.dtype) -> Back:
    """From the partial sums (programs, 2, C) over `count` pixels; weight's and bias's gradients in `dtype`."""
    programs, _, channels = partials.shape
    table = torch.empty(2, channels, device=partials.device, dtype=torch.float32)
    gradients = torch.empty(2, channels, device=partials.device, dtype=dtype)
    norm_kernels.gather_back_kernel[(triton.cdiv(channels, 8),)](
        partials,
        norm,
        table,
        gradients[0],
        gradients[1],
        programs,
        channels,
        float(count),
        BLOCK_P=triton.next_power_of_2(programs),
        BLOCK_C=8,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return Back(table, gradients[0], gradients[1])


def statistics(z: Tensor, *, tile: Rows | None = None) -> Statistics:
    """Of a map that a library wrote. Reads M C e."""
    rows, channels = z.numel() // z.shape[-1], z.shape[-1]
    tile = tile or plain_tile(channels)
    tiles, blocks_c = triton.cdiv(rows, tile.rows), triton.cdiv(channels, tile.channels)
    found, programs = room_for(z, tiles, blocks_c, tile.programs, channels)
    norm_kernels.statistics_kernel[(programs * blocks_c,)](
        z,
        *found,
        rows,
        channels,
        tiles,
        programs,
        blocks_c,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return found


def normalise(z: Tensor, norm: Tensor, *, kind: Kind, residual: Tensor | None = None, tile: Rows | None = None) -> Tensor:
    """act(z * scale + shift), and the sum with another map. Reads M C e and the other, writes M C e."""
    rows, channels = z.numel() // z.shape[-1], z.shape[-1]
    tile = tile or plain_tile(channels)
    blocks_c = triton.cdiv(channels, tile.channels)
    out = torch.empty_like(z)
    norm_kernels.normalise_kernel[(triton.cdiv(rows, tile.rows) * blocks_c,)](
        z,
        norm,
        residual,
        out,
        rows,
        channels,
        blocks_c,
        KIND=kind,
        RESIDUAL=residual is not None,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return out


def activation_backward(
    gradient: Tensor, z: Tensor, norm: Tensor, *, kind: Kind, out: Tensor | None = None, tile: Rows | None = None
) -> tuple[Tensor, Tensor]:
    """The gradient in front of the activation, and its partial sums. Reads 2 M C e, writes M C e where there is an activation."""
    rows, channels = z.numel() // z.shape[-1], z.shape[-1]
    tile = tile or plain_tile(channels)
    tiles, blocks_c = triton.cdiv(rows, tile.rows), triton.cdiv(channels, tile.channels)
    if kind == "none":
        out = gradient
    elif out is None:
        out = torch.empty_like(z)
    programs = programs_for(z.device, tiles, blocks_c, tile.programs)
    partials = torch.empty(programs, 2, channels, device=z.device, dtype=torch.float32)
    norm_kernels.sums_kernel[(programs * blocks_c,)](
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
        KIND=kind,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return out, partials


def norm_backward(d: Tensor, z: Tensor, norm: Tensor, back: Tensor, *, tile: Rows | None = None) -> Tensor:
    """The gradient in front of a batch norm. Reads 2 M C e, writes M C e."""
    rows, channels = z.numel() // z.shape[-1], z.shape[-1]
    tile = tile or plain_tile(channels)
    blocks_c = triton.cdiv(channels, tile.channels)
    out = torch.empty_like(z)
    norm_kernels.norm_backward_kernel[(triton.cdiv(rows, tile.rows) * blocks_c,)](
        d,
        z,
        norm,
        back,
        out,
        rows,
        channels,
        blocks_c,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return out


def pointwise(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    kind: Kind = "raw",
    statistics_wanted: bool = True,
    tile: Rows | None = None,
) -> tuple[Tensor, Statistics]:
    """1x1 convolution of act(norm(x)), and the statistics of its output where wanted. `weight` is (N, K) in x's dtype.

    Reads M K e, writes M N e; 2 M K N operations. Against norm, activation, convolution and statistics one by one: two passes
    over the input and one over the output less.
    """
    inputs, outputs, rows = x.shape[-1], weight.shape[0], x.numel() // x.shape[-1]
    if tile is None:
        run = functools.partial(pointwise, x, weight, norm=norm, kind=kind, statistics_wanted=statistics_wanted)
        return fitted(run, pointwise_tile(inputs, outputs), "pointwise in training", x)
    if tile == LIBRARY:
        out = (x if norm is None else normalise(x, norm, kind=kind)) @ weight.t()
        return out, statistics(out) if statistics_wanted else NOTHING
    tiles, blocks_n = triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.channels)
    out = torch.empty(*x.shape[:-1], outputs, device=x.device, dtype=x.dtype)
    found, programs = room_for(x, tiles, blocks_n, tile.programs, outputs)
    kernels.pointwise_forward_kernel[(programs * blocks_n,)](
        x,
        norm,
        weight,
        out,
        *found,
        rows,
        tiles,
        programs,
        inputs,
        outputs,
        blocks_n,
        KIND=kind,
        STATISTICS=statistics_wanted,
        PRECISION=precision_for(x),
        BLOCK_M=tile.rows,
        BLOCK_K=power(inputs),
        BLOCK_N=tile.channels,
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return out, found


class Gradients(NamedTuple):
    """Of a convolution: its input's (behind the batch norm where it has one, with the partial sums), and its weights'."""

    input: Tensor
    partials: Tensor | None
    weight: Tensor


def pointwise_backward(
    d: Tensor,
    weight: Tensor,
    x: Tensor,
    *,
    z: Tensor | None = None,
    norm: Tensor | None = None,
    back: Tensor | None = None,
    x_norm: Tensor | None = None,
    kind: Kind = "raw",
    residual: Tensor | None = None,
    tile: Rows | None = None,
) -> Gradients:
    """Backward of `pointwise`, from the gradient d behind the batch norm of its output z; without z, d is the output's gradient.

    Reads M (2 N + K) e, d and z again for every further block of K (from the cache, mostly), writes M K e; 4 M K N operations.
    Against norm's, convolution's (twice), activation's backward and the sums one after another: 4 passes over N and 5 over K less.
    """
    inputs, outputs, rows = x.shape[-1], weight.shape[0], x.numel() // x.shape[-1]
    if tile is None:
        run = functools.partial(pointwise_backward, d, weight, x, z=z, norm=norm, back=back, x_norm=x_norm)
        run = functools.partial(run, kind=kind, residual=residual)
        return fitted(run, back_tile(inputs, outputs), "pointwise, backward", x)
    if tile == LIBRARY:
        return _library_backward(d, weight, x, z, norm, back, x_norm, kind, residual)
    tiles, blocks_k = triton.cdiv(rows, tile.rows), triton.cdiv(inputs, tile.channels)
    programs = programs_for(x.device, tiles, blocks_k, tile.programs)
    out = torch.empty_like(x)
    partials = torch.empty(programs, 2, inputs, device=x.device, dtype=torch.float32)
    weights = torch.empty(programs, outputs, inputs, device=x.device, dtype=torch.float32)
    kernels.pointwise_backward_kernel[(programs * blocks_k,)](
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
        weights,
        rows,
        tiles,
        programs,
        inputs,
        outputs,
        blocks_k,
        NORM=z is not None,
        KIND=kind,
        RESIDUAL=residual is not None,
        PRECISION=precision_for(x),
        BLOCK_M=tile.rows,
        BLOCK_K=tile.channels,
        BLOCK_N=power(outputs),
        STAGES=tile.stages,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return Gradients(out, None if kind == "raw" else partials, weights.sum(0))


def _library_backward(
    d: Tensor,
    weight: Tensor,
    x: Tensor,
    z: Tensor | None,
    norm: Tensor | None,
    back: Tensor | None,
    x_norm: Tensor | None,
    kind: Kind,
    residual: Tensor | None,
) -> Gradients:
    if z is not None:
        assert norm is not None and back is not None
        d = norm_backward(d, z, norm, back)
    inputs = x if x_norm is None else normalise(x, x_norm, kind=kind)
    weights = d.flatten(0, -2).t() @ inputs.flatten(0, -2)
    found = d @ weight
    if x_norm is None:
        return Gradients(found if residual is None else found.add_(residual), None, weights)
    return Gradients(*activation_backward(found, x, x_norm, kind=kind, out=found), weights)


def room_for(x: Tensor, tiles: int, blocks: int, each: int, channels: int) -> tuple[Statistics, int]:
    """Memory for the statistics of a map, and how many programs share its tiles."""
    programs = programs_for(x.device, tiles, blocks, each)
    values = torch.empty(programs, 2, channels, device=x.device, dtype=torch.float32)
    return Statistics(values, torch.empty(programs, device=x.device, dtype=torch.float32)), programs


def programs_for(device: torch.device, tiles: int, blocks: int, each: int) -> int:
    """`each` on a multiprocessor, shared by the blocks of channels; no more than there are tiles, or one program can join."""
    return max(1, min(tiles, 1024, devices.multiprocessors(device) * each // blocks))


def precision_for(x: Tensor) -> str:
    """The matrix units' shortened float32 would cost float32 its meaning."""
    if triton.knobs.runtime.interpret:
        return "interpreted"
    return "ieee" if x.dtype == torch.float32 else "tf32"
