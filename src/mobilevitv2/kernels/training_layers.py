"""The kernels of a training step's transformer layers as functions of tensors, on tokens (B, H, W, D), contiguous.

Bytes in the docstrings are those of one call, in passes over the tokens of the layer (B H W D e bytes each).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from mobilevitv2.kernels import training_tokens as kernels
from mobilevitv2.kernels.training_operations import programs_for
from mobilevitv2.kernels.training_tiles import plain_tile

PAD = 8
"""Columns behind the values: the score, and zeros up to what matrix units like."""


class Places(NamedTuple):
    """Where the tokens are: patches of a picture and of a row, the map's sides, channels of a token and of `both`."""

    patches: int
    wide: int
    width: int
    height: int
    dim: int
    stride: int


def _places(tokens: Tensor, patch_size: int) -> Places:
    _, height, width, dim = tokens.shape
    return Places(height * width // patch_size**2, width // patch_size, width, height, dim, dim + PAD)


class Normed(NamedTuple):
    """`total` is the sum that was normalised, `moments` (B, 2) its mean and 1 / deviation."""

    total: Tensor
    out: Tensor
    moments: Tensor


def add_and_norm(x: Tensor, addend: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float) -> Normed:
    """x + addend, and its group norm of one group. Reads 2 passes (and 1 from the cache), writes 2; without addend 1 and 1."""
    batch, dim = x.shape[0], x.shape[-1]
    rows = x.numel() // batch // dim
    total = x if addend is None else torch.empty_like(x)
    out = torch.empty_like(x)
    moments = torch.empty(batch, 2, device=x.device, dtype=torch.float32)
    block_d = triton.next_power_of_2(dim)
    kernels.group_norm_kernel[(batch,)](
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
        ADD=addend is not None,
        BLOCK_M=_rows(rows, block_d, 4096),
        BLOCK_D=block_d,
        num_warps=8,
        enable_fp_fusion=True,
    )
    return Normed(total, out, moments)


class NormBack(NamedTuple):
    """`columns` are sums over all tokens of the input's gradient, which is a bias's gradient where one stands before."""

    input: Tensor
    weight: Tensor
    bias: Tensor
    columns: Tensor


def norm_backward(gradient: Tensor, x: Tensor, moments: Tensor, weight: Tensor, residual: Tensor | None) -> NormBack:
    """Backward of the group norm, plus the residual's gradient. Reads 3 passes (and 2 from the cache), writes 1."""
    batch, dim = x.shape[0], x.shape[-1]
    rows = x.numel() // batch // dim
    out = torch.empty_like(x)
    partials = torch.empty(3, batch, dim, device=x.device, dtype=torch.float32)
    block_d = triton.next_power_of_2(dim)
    kernels.group_norm_backward_kernel[(batch,)](
        gradient,
        x,
        moments,
        weight,
        residual,
        out,
        partials[0],
        partials[1],
        partials[2],
        rows,
        dim,
        RESIDUAL=residual is not None,
        BLOCK_M=_rows(rows, block_d, 4096),
        BLOCK_D=block_d,
        num_warps=8,
        enable_fp_fusion=True,
    )
    sums = partials.sum(1)
    return NormBack(out, sums[0], sums[1], sums[2])


class Context(NamedTuple):
    """The scores (B P, N), and the tokens' sum weighted with them, (B P, D)."""

    scores: Tensor
    summed: Tensor


def context(tokens: Tensor, both: Tensor, *, patch_size: int) -> Context:
    """Softmax of the scores over the patches, and the weighted sum of the tokens. `both` (B H W, D + PAD) has values, then scores.

    Reads 1 pass.
    """
    programs, dim, places = tokens.shape[0] * patch_size**2, tokens.shape[-1], _places(tokens, patch_size)
    scores = torch.empty(programs, places.patches, device=tokens.device, dtype=torch.float32)
    summed = torch.empty(programs, dim, device=tokens.device, dtype=tokens.dtype)
    block_d = triton.next_power_of_2(dim)
    kernels.context_kernel[(programs,)](
        tokens,
        both,
        summed,
        scores,
        *places,
        PATCH=patch_size,
        BLOCK_N=triton.next_power_of_2(places.patches),
        BLOCK_M=_rows(places.patches, block_d, 4096),
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return Context(scores, summed)


def context_backward(tokens: Tensor, found: Context, gradient: Tensor, both_gradient: Tensor, *, patch_size: int) -> Tensor:
    """The tokens' gradient; that of the scores is written into `both_gradient`. Reads 1 pass, writes 1."""
    programs, dim, places = tokens.shape[0] * patch_size**2, tokens.shape[-1], _places(tokens, patch_size)
    out = torch.empty_like(tokens)
    block_d = triton.next_power_of_2(dim)
    kernels.context_backward_kernel[(programs,)](
        tokens,
        found.scores,
        found.summed,
        gradient,
        out,
        both_gradient,
        *places,
        PATCH=patch_size,
        PAD=PAD,
        BLOCK_M=_rows(places.patches, block_d, 4096),
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


def gate(both: Tensor, factors: Tensor, shape: torch.Size, *, patch_size: int) -> Tensor:
    """ReLU of the values times the context (B P, D) of their pixel: (B, H, W, D). Reads 1 pass, writes 1."""
    _, height, width, dim = shape
    rows = both.shape[0]
    out = torch.empty(shape, device=both.device, dtype=both.dtype)
    block_d = triton.next_power_of_2(dim)
    block_m = max(1, 4096 // block_d)
    kernels.gate_kernel[(triton.cdiv(rows, block_m),)](
        both,
        factors,
        out,
        rows,
        width,
        height,
        dim,
        dim + PAD,
        PATCH=patch_size,
        BLOCK_M=block_m,
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out


class GateBack(NamedTuple):
    """The gated values again, the gradient of `both` (its scores still to be written), the context's, and the values' sums."""

    gated: Tensor
    both: Tensor
    context: Tensor
    columns: Tensor


def gate_backward(gradient: Tensor, both: Tensor, factors: Tensor, *, patch_size: int) -> GateBack:
    """Backward of `gate`. Reads 2 passes, writes 2."""
    programs, dim, places = gradient.shape[0] * patch_size**2, gradient.shape[-1], _places(gradient, patch_size)
    found = GateBack(
        torch.empty_like(gradient),
        torch.empty_like(both),
        torch.empty_like(factors),
        torch.empty(factors.shape, device=both.device, dtype=torch.float32),
    )
    block_d = triton.next_power_of_2(dim)
    kernels.gate_backward_kernel[(programs,)](
        gradient,
        both,
        factors,
        *found,
        *places,
        PATCH=patch_size,
        BLOCK_M=_rows(places.patches, block_d, 4096),
        BLOCK_D=block_d,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return found._replace(columns=found.columns.sum(0))


class SiluBack(NamedTuple):
    """The gradient in front of SiLU, SiLU's values again, and the gradient's sums over all rows."""

    input: Tensor
    activated: Tensor
    columns: Tensor


def silu_backward(gradient: Tensor, x: Tensor) -> SiluBack:
    """SiLU again, its backward, and the sums of that over all rows: (M, C). Reads 2 M C e, writes 2 M C e."""
    rows, channels = x.shape
    tile = plain_tile(channels)
    tiles, blocks_c = triton.cdiv(rows, tile.rows), triton.cdiv(channels, tile.channels)
    programs = programs_for(x.device, tiles, blocks_c, tile.programs)
    found = SiluBack(
        torch.empty_like(x), torch.empty_like(x), torch.empty(programs, channels, device=x.device, dtype=torch.float32)
    )
    kernels.silu_backward_kernel[(programs * blocks_c,)](
        gradient,
        x,
        *found,
        rows,
        tiles,
        programs,
        channels,
        blocks_c,
        BLOCK_M=tile.rows,
        BLOCK_C=tile.channels,
        num_warps=tile.warps,
        enable_fp_fusion=True,
    )
    return found._replace(columns=found.columns.sum(0))


def _rows(rows: int, block_d: int, values: int) -> int:
    return max(1, min(int(triton.next_power_of_2(rows)), values // block_d))
