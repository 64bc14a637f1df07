"""Parts of the model as autograd functions with backward passes written by hand, on maps (B, H, W, C) of one dtype, contiguous.

Between forward and backward live the outputs of the convolutions and what the products of the transformer read; activations,
normalised maps of convolutions and gates are made again. Nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mobilevitv2.kernels import training_filtering as filtering
from mobilevitv2.kernels import training_layers as layers
from mobilevitv2.kernels import training_operations as operations
from mobilevitv2.kernels.training_operations import Kind


def _taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(C, 1, side, side) -> (side^2, C)."""
    return weight.detach().flatten(1).t().to(dtype).contiguous()


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, K, 1, 1) -> (N, K)."""
    return weight.detach().flatten(1).to(dtype)


def _like(gradient: Tensor, weight: Tensor) -> Tensor:
    """A weight's gradient in its shape and dtype."""
    return gradient.to(weight.dtype).view_as(weight)


def _taps_like(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.t().to(weight.dtype).contiguous().view_as(weight)


class Residual(NamedTuple):
    """What an inverted residual is besides its tensors."""

    norms: tuple[nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d]
    kinds: tuple[Kind, Kind]
    stride: int
    dilation: int
    add: bool


class InvertedResidualFunction(torch.autograd.Function):
    """blocks.InvertedResidual in training: expand, filter, reduce, each with its batch norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Residual, *parameters: Tensor) -> Tensor:
        """`parameters`: of each convolution its weight, and its norm's weight and bias."""
        shapes = parameters[::3]
        w1, w2, w3 = _matrix(shapes[0], x.dtype), _taps(shapes[1], x.dtype), _matrix(shapes[2], x.dtype)
        first, found = operations.pointwise(x, w1)
        norm1 = operations.gather(found, part.norms[0])
        second, found = filtering.depthwise(first, w2, norm=norm1, kind=part.kinds[0], stride=part.stride, dilation=part.dilation)
        norm2 = operations.gather(found, part.norms[1])
        third, found = operations.pointwise(second, w3, norm=norm2, kind=part.kinds[1])
        norm3 = operations.gather(found, part.norms[2])
        ctx.part = part
        ctx.save_for_backward(x, first, second, third, norm1, norm2, norm3, w1, w2, w3, *shapes, parameters[1])
        return operations.normalise(third, norm3, kind="none", residual=x if part.add else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A gradient for each argument of `forward` that is a tensor."""
        x, first, second, third, norm1, norm2, norm3, w1, w2, w3, *shapes, scale = ctx.saved_tensors
        part: Residual = ctx.part
        dtype, gradient = scale.dtype, gradient.contiguous()
        _, sums = operations.activation_backward(gradient, third, norm3, kind="none")
        back3 = operations.gather_back(sums, norm3, count=_pixels(third), dtype=dtype)
        reduced = operations.pointwise_backward(
            gradient, w3, second, z=third, norm=norm3, back=back3.table, x_norm=norm2, kind=part.kinds[1]
        )
        assert reduced.partials is not None
        back2 = operations.gather_back(reduced.partials, norm2, count=_pixels(second), dtype=dtype)
        filtered = filtering.depthwise_backward(
            reduced.input,
            second,
            norm2,
            back2.table,
            w2,
            first,
            x_norm=norm1,
            kind=part.kinds[0],
            stride=part.stride,
            dilation=part.dilation,
        )
        assert filtered.partials is not None
        back1 = operations.gather_back(filtered.partials, norm1, count=_pixels(first), dtype=dtype)
        expanded = operations.pointwise_backward(
            filtered.input,
            w1,
            x,
            z=first,
            norm=norm1,
            back=back1.table,
            residual=gradient if part.add else None,
        )
        return (
            expanded.input,
            None,
            *(_like(expanded.weight, shapes[0]), back1.weight, back1.bias),
            *(_taps_like(filtered.weight, shapes[1]), back2.weight, back2.bias),
            *(_like(reduced.weight, shapes[2]), back3.weight, back3.bias),
        )


class Local(NamedTuple):
    """What a block's local part is besides its tensors."""

    norm: nn.BatchNorm2d
    kind: Kind
    dilation: int


class LocalFunction(torch.autograd.Function):
    """The local part of blocks.MobileViTV2Block: filter each channel by itself, norm, activation, 1x1 convolution to tokens."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Local, taps: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
        """The tensors are the parameters in the order of the operations."""
        filtered, found = filtering.depthwise(x, _taps(taps, x.dtype), dilation=part.dilation)
        norm = operations.gather(found, part.norm)
        ctx.part = part
        ctx.save_for_backward(x, filtered, norm, taps, weight, scale)
        return operations.pointwise(filtered, _matrix(weight, x.dtype), norm=norm, kind=part.kind, statistics_wanted=False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A gradient for each argument of `forward` that is a tensor."""
        x, filtered, norm, taps, weight, scale = ctx.saved_tensors
        part: Local = ctx.part
        projected = operations.pointwise_backward(
            gradient.contiguous(), _matrix(weight, x.dtype), filtered, x_norm=norm, kind=part.kind
        )
        assert projected.partials is not None
        back = operations.gather_back(projected.partials, norm, count=_pixels(filtered), dtype=scale.dtype)
        found = filtering.depthwise_backward(
            projected.input, filtered, norm, back.table, _taps(taps, x.dtype), x, dilation=part.dilation
        )
        return found.input, None, _taps_like(found.weight, taps), back.weight, back.bias, _like(projected.weight, weight)


class ProjectionFunction(torch.autograd.Function):
    """1x1 convolution and batch norm, without an activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.BatchNorm2d, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The tensors are the parameters in the order of the operations."""
        z, found = operations.pointwise(x, _matrix(weight, x.dtype))
        table = operations.gather(found, norm)
        ctx.save_for_backward(x, z, table, weight, scale)
        return operations.normalise(z, table, kind="none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A gradient for each argument of `forward` that is a tensor."""
        x, z, norm, weight, scale = ctx.saved_tensors
        gradient = gradient.contiguous()
        _, sums = operations.activation_backward(gradient, z, norm, kind="none")
        back = operations.gather_back(sums, norm, count=_pixels(z), dtype=scale.dtype)
        found = operations.pointwise_backward(gradient, _matrix(weight, x.dtype), x, z=z, norm=norm, back=back.table)
        return found.input, None, _like(found.weight, weight), back.weight, back.bias


class Stem(NamedTuple):
    """What the stem is besides its tensors; `dtype` is that of the maps."""

    norm: nn.BatchNorm2d
    kind: Kind
    side: int
    stride: int
    dtype: torch.dtype


class StemFunction(torch.autograd.Function):
    """The first convolution, on pictures (B, C, H, W) of any layout, which get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Stem, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """The tensors are the parameters in the order of the operations."""
        z, found = filtering.stem(x, _matrix(weight, part.dtype), side=part.side, stride=part.stride)
        norm = operations.gather(found, part.norm)
        ctx.part = part
        ctx.save_for_backward(x, z, norm, weight, scale)
        return operations.normalise(z, norm, kind=part.kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A gradient for each argument of `forward` that is a tensor."""
        x, z, norm, weight, scale = ctx.saved_tensors
        part: Stem = ctx.part
        d, sums = operations.activation_backward(gradient.contiguous(), z, norm, kind=part.kind)
        back = operations.gather_back(sums, norm, count=_pixels(z), dtype=scale.dtype)
        found = filtering.stem_backward(d, z, norm, back.table, x, side=part.side, stride=part.stride)
        return None, None, _like(found, weight), back.weight, back.bias


class Tokens(NamedTuple):
    """What a transformer is besides its tensors; `eps` of each layer's two norms, then of the last one."""

    patch_size: int
    eps: tuple[float, ...]


EACH = 12
"""Parameters of a layer: the first norm's weight and bias, then those of qkv_proj, out_proj, the second norm, conv1, conv2."""


class _Kept(NamedTuple):
    """Of a layer, from forward to backward."""

    before: Tensor
    normed: Tensor
    moments: Tensor
    both: Tensor
    scores: Tensor
    summed: Tensor
    factors: Tensor
    middle: Tensor
    after: Tensor
    after_moments: Tensor
    hidden: Tensor


class _Weights(NamedTuple):
    """Of a layer, in the tokens' dtype."""

    both: Tensor
    both_bias: Tensor
    key: Tensor
    key_bias: Tensor
    out: Tensor
    out_bias: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


def _weights(parameters: tuple[Tensor, ...], dtype: torch.dtype) -> list[_Weights]:
    """Of all layers, with one copy: a launch for each tensor would take longer than the work."""
    zeros = parameters[0].new_zeros(layers.PAD - 1, parameters[4].shape[0])
    pieces: list[Tensor] = []
    for i in range(len(parameters) // EACH):
        own = [p.detach() for p in parameters[EACH * i : EACH * (i + 1)]]
        matrix, shift, dim = own[2].flatten(1), own[3], own[4].shape[0]
        value, key = slice(1 + dim, None), slice(1, 1 + dim)
        pieces += [matrix[value], matrix[:1], zeros, shift[value], shift[:1], zeros[:, 0], matrix[key], shift[key], own[4], own[5]]
        pieces += own[8:]
    flat = torch.cat([piece.reshape(-1) for piece in pieces]).to(dtype)
    found, place = [], 0
    for i in range(len(parameters) // EACH):
        dim, hidden = parameters[EACH * i + 4].shape[0], parameters[EACH * i + 8].shape[0]
        wide = dim + layers.PAD
        shapes = ((wide, dim), (wide,), (dim, dim), (dim,), (dim, dim), (dim,), (hidden, dim), (hidden,), (dim, hidden), (dim,))
        own = []
        for shape in shapes:
            own.append(flat[place : place + math.prod(shape)].view(shape))
            place += own[-1].numel()
        found.append(_Weights(*own))
    return found


class TokensFunction(torch.autograd.Function):
    """The transformer layers of a block and the group norm behind them, on (B, H, W, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Tokens, *parameters: Tensor) -> Tensor:
        """`parameters`: EACH of every layer, then the last norm's weight and bias."""
        kept: list[Tensor] = []
        count = len(parameters) // EACH
        weights = _weights(parameters, x.dtype)
        now = layers.add_and_norm(x, None, *parameters[:2], eps=part.eps[0])
        for i in range(count):
            own = parameters[EACH * i : EACH * (i + 1)]
            following = parameters[EACH * (i + 1) : EACH * (i + 1) + 2]
            now, saved = _layer(now, weights[i], own[6:8], following, part, part.eps[2 * i + 1 : 2 * i + 3])
            kept += (*saved, *weights[i])
        ctx.part, ctx.count = part, count
        ctx.save_for_backward(*kept, now.total, now.moments, *parameters)
        return now.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """A gradient for each argument of `forward` that is a tensor."""
        own_size = len(_Kept._fields)
        size = own_size + len(_Weights._fields)
        kept, rest = ctx.saved_tensors[: size * ctx.count], ctx.saved_tensors[size * ctx.count :]
        total, moments, parameters = rest[0], rest[1], rest[2:]
        now = layers.norm_backward(gradient.contiguous(), total, moments, parameters[-2], None)
        gradients = [_like(now.weight, parameters[-2]), _like(now.bias, parameters[-1])]
        for i in reversed(range(ctx.count)):
            own = parameters[EACH * i : EACH * (i + 1)]
            here = kept[size * i : size * (i + 1)]
            now, found = _layer_backward(now, _Kept(*here[:own_size]), _Weights(*here[own_size:]), own, ctx.part)
            gradients = found + gradients
        return now.input, None, *gradients


def _layer(
    now: layers.Normed, w: _Weights, own: tuple[Tensor, ...], following: tuple[Tensor, ...], part: Tokens, eps: tuple[float, ...]
) -> tuple[layers.Normed, _Kept]:
    """From one layer's normalised input to the next one's."""
    before, normed, moments = now
    shape, dim = normed.shape, normed.shape[-1]
    both = torch.addmm(w.both_bias, normed.view(-1, dim), w.both.t())
    found = layers.context(normed, both, patch_size=part.patch_size)
    factors = torch.addmm(w.key_bias, found.summed, w.key.t())
    gated = layers.gate(both, factors, shape, patch_size=part.patch_size)
    attended = torch.addmm(w.out_bias, gated.view(-1, dim), w.out.t()).view(shape)
    middle = layers.add_and_norm(before, attended, own[0], own[1], eps=eps[0])
    hidden = torch.addmm(w.first_bias, middle.out.view(-1, dim), w.first.t())
    result = torch.addmm(w.second_bias, F.silu(hidden), w.second.t()).view(shape)
    kept = _Kept(before, normed, moments, both, *found, factors, middle.total, middle.out, middle.moments, hidden)
    return layers.add_and_norm(middle.total, result, following[0], following[1], eps=eps[1]), kept


def _layer_backward(
    now: layers.NormBack, kept: _Kept, w: _Weights, own: tuple[Tensor, ...], part: Tokens
) -> tuple[layers.NormBack, list[Tensor]]:
    """From the gradient of a layer's output to that of its input, and of its parameters."""
    dim = kept.before.shape[-1]
    behind = now.input.view(-1, dim)
    bent = layers.silu_backward(behind @ w.second, kept.hidden)
    of_second = behind.t() @ bent.activated
    of_first = bent.input.t() @ kept.after.view(-1, dim)
    after = (bent.input @ w.first).view_as(kept.after)
    middle = layers.norm_backward(after, kept.middle, kept.after_moments, own[6], now.input)
    of_middle = middle.input.view(-1, dim)
    gated = layers.gate_backward((of_middle @ w.out).view_as(kept.normed), kept.both, kept.factors, patch_size=part.patch_size)
    of_out = of_middle.t() @ gated.gated.view(-1, dim)
    found = layers.Context(kept.scores, kept.summed)
    normed = layers.context_backward(kept.normed, found, gated.context @ w.key, gated.both, patch_size=part.patch_size)
    normed.view(-1, dim).addmm_(gated.both, w.both)
    of_both = gated.both.t() @ kept.normed.view(-1, dim)
    of_qkv = torch.cat([of_both[dim : dim + 1], gated.context.t() @ kept.summed, of_both[:dim]])
    # A softmax does not change where all its scores do: the query's bias has no gradient.
    columns = torch.cat([gated.columns.new_zeros(1), gated.context.sum(0, dtype=torch.float32), gated.columns])
    before = layers.norm_backward(normed, kept.before, kept.moments, own[0], middle.input)
    found_gradients = (
        *(before.weight, before.bias, of_qkv, columns, of_out, middle.columns),
        *(middle.weight, middle.bias, of_first, bent.columns, of_second, now.columns),
    )
    return before, [_like(g, p) for g, p in zip(found_gradients, own, strict=True)]


def _pixels(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
