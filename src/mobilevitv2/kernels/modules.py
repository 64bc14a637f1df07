"""The kernels in the places of blocks.py's modules. Weights are taken from a folded model; maps are channels_last outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.blocks import (
    Activation,
    ConvNormAct,
    InvertedResidual,
    MobileViTV2Block,
    TransformerLayer,
    resize_to_patches,
)
from mobilevitv2.inference.activations import kind_of
from mobilevitv2.inference.fold import FoldedAttention
from mobilevitv2.kernels import operations
from mobilevitv2.kernels.devices import on_its_device

LARGEST_DIM = 512
"""Of a token; beyond it a tile does not fit the registers."""
LARGEST_STEM_INPUT = 256


def fuse_modules(module: nn.Module) -> int:
    """Put the fused modules into a folded model, in place; how many there are. What no kernel covers stays as it is."""
    count = 0
    for name, child in list(module.named_children()):
        fused = _fused(child)
        if fused is not child:
            setattr(module, name, fused)
            count += 1
        count += fuse_modules(fused)
    return count


def _fused(module: nn.Module) -> nn.Module:
    if type(module) is InvertedResidual and _covers(module.expand_1x1.activation, module.conv_3x3.activation):
        return FusedInvertedResidual(module)
    if type(module) is MobileViTV2Block and _covers_block(module):
        return FusedBlock(module)
    if type(module) is ConvNormAct and _is_stem(module):
        return FusedStem(module)
    return module


def _covers(*activations: Activation | None) -> bool:
    return all(kind_of(activation) != "other" for activation in activations)


def _covers_block(block: MobileViTV2Block) -> bool:
    layers = [layer for layer in block.transformer.layer if isinstance(layer, TransformerLayer)]
    dim = block.conv_1x1.convolution.out_channels
    return dim <= LARGEST_DIM and _covers(block.conv_kxk.activation, *(layer.ffn.conv1.activation for layer in layers))


def _is_stem(unit: ConvNormAct) -> bool:
    c = unit.convolution
    taps = c.in_channels * c.kernel_size[0] ** 2
    square = c.kernel_size[0] == c.kernel_size[1] and c.stride[0] == c.stride[1] and c.kernel_size[0] % 2 == 1
    few = c.in_channels <= 4 and taps <= LARGEST_STEM_INPUT and c.out_channels <= 256
    return few and square and c.dilation == (1, 1) and c.groups == 1 and c.bias is not None and _covers(unit.activation)


def _kind(activation: Activation | None) -> operations.Activation:
    kind = kind_of(activation)
    assert kind != "other"  # looked at before the module was fused
    return kind


class FusedStem(nn.Module):
    """Stands for the first convolution."""

    def __init__(self, plain: ConvNormAct) -> None:
        super().__init__()
        self.filters = _Product(plain.convolution)
        self.stride = plain.convolution.stride[0]
        self.kind = _kind(plain.activation)

    @on_its_device
    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride), channels_last."""
        weight, bias = self.filters.weight, self.filters.bias
        assert bias is not None
        return operations.stem(x, weight, bias, stride=self.stride, activation=self.kind).permute(0, 3, 1, 2)


class _Product(nn.Module):
    """Weights of a convolution as a matrix, which no change of memory format touches."""

    def __init__(self, unit: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(unit.weight.detach().flatten(1).contiguous(), requires_grad=False)  # (out, taps)
        self.bias = None if unit.bias is None else nn.Parameter(unit.bias.detach(), requires_grad=False)


class _NormedProduct(_Product):
    """The product behind a norm, with the sums of its rows, which stay float32 whatever the weights become."""

    sums: Tensor

    def __init__(self, unit: nn.Conv2d) -> None:
        super().__init__(unit)
        self.sums = operations.row_sums(self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call, unused-ignore]
        self.sums = operations.row_sums(self.weight)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        sums = operations.row_sums(self.weight)
        if sums.shape == self.sums.shape and sums.device == self.sums.device:
            self.sums.copy_(sums)  # where a recorded CUDA graph finds them
        else:  # load_state_dict(assign=True) took other weights
            self.sums = sums


class _Filter(nn.Module):
    """A depthwise convolution with its activation."""

    def __init__(self, plain: ConvNormAct) -> None:
        super().__init__()
        c = plain.convolution
        assert c.bias is not None  # the folded norm's
        self.taps = nn.Parameter(c.weight.detach().flatten(1).t().contiguous(), requires_grad=False)  # (side^2, channels)
        self.bias = nn.Parameter(c.bias.detach(), requires_grad=False)
        self.stride, self.dilation, self.kind = c.stride[0], c.dilation[0], _kind(plain.activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / stride, W / stride, C)."""
        return operations.depthwise(x, self.taps, self.bias, stride=self.stride, dilation=self.dilation, activation=self.kind)


class FusedInvertedResidual(nn.Module):
    """Stands for an InvertedResidual: three kernels, each with all that follows its product."""

    def __init__(self, plain: InvertedResidual) -> None:
        super().__init__()
        self.use_residual = plain.use_residual
        self.expand = _Product(plain.expand_1x1.convolution)
        self.kind = _kind(plain.expand_1x1.activation)
        self.filter = _Filter(plain.conv_3x3)
        self.reduce = _Product(plain.reduce_1x1.convolution)

    @on_its_device
    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up, channels_last."""
        rows = x.permute(0, 2, 3, 1).contiguous()
        hidden = self.filter(operations.pointwise(rows, self.expand.weight, self.expand.bias, activation=self.kind))
        residual = rows if self.use_residual else None
        return operations.pointwise(hidden, self.reduce.weight, self.reduce.bias, residual=residual).permute(0, 3, 1, 2)


class FusedTransformerLayer(nn.Module):
    """Stands for a TransformerLayer: three kernels and one small product."""

    def __init__(self, plain: TransformerLayer, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        attention = plain.attention
        assert isinstance(attention, FoldedAttention)
        self.eps = plain.layernorm_before.eps, plain.layernorm_after.eps
        self.query = nn.Parameter(
            attention.query.weight.detach().flatten(), requires_grad=False
        )  # its bias falls out of the softmax
        self.key, self.value = _Product(attention.key), _NormedProduct(attention.value)
        self.out = _Product(attention.out_proj.convolution)
        self.kind: Literal["none", "silu", "relu"] = _kind(plain.ffn.conv1.activation)
        self.first, self.second = _NormedProduct(plain.ffn.conv1.convolution), _Product(plain.ffn.conv2.convolution)

    def forward(self, x: Tensor, partials: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, D) and their sums (B, tiles, 2) -> the same of the result."""
        context = operations.context(x, partials, self.query, patch_size=self.patch_size, eps=self.eps[0])  # (B, P, D)
        gate = F.linear(context, self.key.weight, self.key.bias)
        x, partials = self._mlp(x, partials, self.value, self.out, eps=self.eps[0], activation="relu", gate=gate)
        return self._mlp(x, partials, self.first, self.second, eps=self.eps[1], activation=self.kind)

    def _mlp(
        self,
        x: Tensor,
        partials: Tensor,
        first: _NormedProduct,
        second: _Product,
        *,
        eps: float,
        activation: operations.Activation,
        gate: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert first.bias is not None and second.bias is not None
        weights = first.weight, first.bias, second.weight, second.bias
        place = self.patch_size
        return operations.token_mlp(
            x, partials, *weights, eps=eps, activation=activation, gate=gate, patch_size=place, first_sums=first.sums
        )


class FusedBlock(nn.Module):
    """Stands for a MobileViTV2Block; tokens stay where they are in the map, so unfolding and folding cost nothing."""

    def __init__(self, plain: MobileViTV2Block) -> None:
        super().__init__()
        self.patch_size = plain.patch_size
        self.eps = plain.layernorm.eps
        self.downsampling_layer = plain.downsampling_layer
        self.filter, self.product = _Filter(plain.conv_kxk), _Product(plain.conv_1x1.convolution)
        layers = [layer for layer in plain.transformer.layer if isinstance(layer, TransformerLayer)]
        self.layers = nn.ModuleList(FusedTransformerLayer(layer, patch_size=plain.patch_size) for layer in layers)
        self.projection = _NormedProduct(plain.conv_projection.convolution)

    @on_its_device
    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up to whole patches, channels_last."""
        x = resize_to_patches(self.downsampling_layer(x), self.patch_size)  # (B, C, H, W)
        hidden = self.filter(x.permute(0, 2, 3, 1).contiguous())
        tokens, partials = operations.pointwise_with_statistics(hidden, self.product.weight, self.product.bias)  # (B, H, W, D)
        for layer in self.layers:
            tokens, partials = layer(tokens, partials)
        last = self.projection
        out = operations.pointwise(tokens, last.weight, last.bias, partials=partials, sums=last.sums, eps=self.eps)
        return out.permute(0, 3, 1, 2)


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on any device: how the tests run without a GPU."""
    import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]

    return bool(triton.knobs.runtime.interpret)


def can_run(device: torch.device) -> bool:
    """Whether the kernels run on a device."""
    return device.type == "cuda" or interpreted()
