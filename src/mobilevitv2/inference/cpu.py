"""The folded form with oneDNN's own operations: weights laid out once as its kernels read them, sums and ReLU in their epilogues.

torch's `F.conv2d` brings the weights into oneDNN's layout at every call and takes a slow kernel of its own for one picture and one
thread. Here the layout is made at the first call, feature maps are channels_last, 1x1 convolutions on maps of at most
`LARGEST_LINEAR` pixels are matrix products of the pixels, and tokens stay rows (B, P, N, D) from one end of the transformer to the
other, so that scores and context are a matrix-vector product each. SiLU runs in place behind its convolution: oneDNN's own epilogue
takes longer (benchmarks/inference_cpu.py --operations).

Every module here stands in the place of one of blocks.py, takes and gives the same, and falls back on plain operations where
oneDNN does not take the dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.blocks import (
    Activation,
    ConvNormAct,
    InvertedResidual,
    MobileNetLayer,
    MobileViTV2Block,
    TransformerLayer,
    resize_to_patches,
)
from mobilevitv2.inference.activations import Kind, kind_of
from mobilevitv2.inference.fold import FoldedAttention

LARGEST_LINEAR = 64 * 64
FEWEST_ROWS = 17
"""Rows that oneDNN's product pays for; starting it takes some 25 us, torch's own 5."""
PACKED_DTYPES = (torch.float32, torch.bfloat16)


def pack_modules(module: nn.Module) -> None:
    """Put the packed modules into a folded model, in place."""
    for name, child in list(module.named_children()):
        packed = _packed(child)
        if packed is not child:
            setattr(module, name, packed)
        pack_modules(packed)


def _packed(module: nn.Module) -> nn.Module:
    """The packed form of a module, not of its children."""
    if type(module) is ConvNormAct:
        return PackedConvolution(module.convolution, module.activation)
    if type(module) is InvertedResidual:
        return PackedInvertedResidual(module)
    if type(module) is MobileNetLayer:
        return PackedMobileNetLayer(module)
    return PackedBlock(module) if type(module) is MobileViTV2Block else module


class _Packed(nn.Module):
    """Weights in oneDNN's layout besides the plain ones; made at the first call, never copied or pickled, dropped at a change."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: Any = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._weights = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weights": None}


class PackedLinear(_Packed):
    """A matrix product of rows, with ReLU or the addition of another matrix in its epilogue."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.reshape(weight.shape[0], -1), requires_grad=False)  # (out, in)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, rows: Tensor, *, relu: bool = False, add: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out); `add` has the shape of the result."""
        count = rows.numel() // rows.shape[-1]
        if count < FEWEST_ROWS or rows.dtype not in PACKED_DTYPES or torch.compiler.is_compiling():
            out = F.linear(rows, self.weight, self.bias)
            return (F.relu(out) if relu else out) if add is None else out + add
        if self._weights is None:
            self._weights = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), count)
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(rows, add, self._weights, self.bias, "add")  # type: ignore[no-any-return]
        attribute = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise.default(rows, self._weights, self.bias, attribute, [], "")  # type: ignore[no-any-return]


class PackedConvolution(_Packed):
    """Stands for a ConvNormAct without norm."""

    def __init__(self, convolution: nn.Conv2d, activation: Any) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = activation
        self.kind = kind_of(activation)
        one = (1, 1)
        plain = convolution.kernel_size == one and convolution.stride == one and convolution.groups == 1
        self.linear = PackedLinear(convolution.weight.detach(), convolution.bias) if plain else None

    def forward(self, x: Tensor, *, add: Tensor | None = None) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride), channels_last; `add` is added before the activation."""
        if self.kind == "relu" and add is None:
            return self._convolve(x, relu=True)
        y = self._convolve(x)
        if add is not None:
            y += add
        return _activate(y, self.activation, self.kind)

    def _convolve(self, x: Tensor, *, relu: bool = False) -> Tensor:
        if self.linear is not None and x.shape[-2] * x.shape[-1] <= LARGEST_LINEAR:
            return self.linear(x.permute(0, 2, 3, 1), relu=relu).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
        c = self.convolution
        x = x.contiguous(memory_format=torch.channels_last)
        if x.dtype not in PACKED_DTYPES or torch.compiler.is_compiling():
            return F.relu(c(x)) if relu else c(x)
        attribute = "relu" if relu else "none"
        geometry: tuple[Any, ...] = (c.padding, c.stride, c.dilation, c.groups)
        if self._weights is None:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            self._weights = reorder(c.weight.detach().to_mkldnn(), *geometry, list(x.shape))
        convolve = torch.ops.mkldnn._convolution_pointwise.default
        return convolve(x, self._weights, c.bias, *geometry, attribute, [], "")  # type: ignore[no-any-return]


def _activate(x: Tensor, activation: Activation | None, kind: Kind) -> Tensor:
    """`x` may be overwritten."""
    if kind == "silu":
        return F.silu(x, inplace=True)
    return x if activation is None else activation(x)


class PackedInvertedResidual(nn.Module):
    """Stands for an InvertedResidual."""

    def __init__(self, plain: InvertedResidual) -> None:
        super().__init__()
        self.use_residual = plain.use_residual
        self.expand_1x1, self.conv_3x3, self.reduce_1x1 = plain.expand_1x1, plain.conv_3x3, plain.reduce_1x1

    def forward(self, x: Tensor, *, expand: nn.Module | None = None, whole: bool = True) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up.

        `expand` stands for the first unit; with whole=False the last one is left out.
        """
        y: Tensor = self.conv_3x3((self.expand_1x1 if expand is None else expand)(x))
        if not whole:
            return y
        return self.reduce_1x1(y, add=x) if self.use_residual else self.reduce_1x1(y)  # type: ignore[no-any-return]


class PackedMobileNetLayer(MobileNetLayer):
    """Stands for a MobileNetLayer."""

    def __init__(self, plain: MobileNetLayer) -> None:
        nn.Module.__init__(self)
        self.layer = plain.layer

    def forward(self, x: Tensor, *, expand: nn.Module | None = None, whole: bool = True) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up; options as its parts have them."""
        final = len(self.layer) - 1
        for index, layer in enumerate(self.layer):
            x = layer(x, expand=expand if index == 0 else None, whole=whole or index < final)
        return x


class PackedAttention(FoldedAttention):
    """Stands for a FoldedAttention, on rows (B, P, N, D)."""

    def __init__(self, plain: FoldedAttention) -> None:
        nn.Module.__init__(self)
        self.dim = plain.dim
        parts = {"query": plain.query, "key": plain.key, "value": plain.value, "out_proj": plain.out_proj.convolution}
        for name, part in parts.items():
            setattr(self, name, PackedLinear(part.weight.detach(), part.bias))

    def context_scores(self, x: Tensor) -> Tensor:
        """(B, P, N, D) -> (B, 1, P, N), in float32 or wider."""
        return self._scores(x)[:, None]

    def _scores(self, x: Tensor) -> Tensor:
        """(B, P, N, D) -> (B, P, N). A bias that all tokens have in common changes no softmax, so it is left out."""
        query = torch.mv(x.reshape(-1, self.dim), self.query.weight[0]).view(x.shape[:3])
        return torch.softmax(query, dim=-1, dtype=torch.float32)

    def forward(self, x: Tensor, *, add: Tensor | None = None) -> Tensor:
        """(B, P, N, D) -> (B, P, N, D), plus `add`."""
        batch, pixels, patches, dim = x.shape
        scores = self._scores(x).to(x.dtype).view(-1, 1, patches)
        context = self.key(torch.bmm(scores, x.view(-1, patches, dim)).view(-1, dim))  # (B P, D)
        value = self.value(x, relu=True).mul_(context.view(batch, pixels, 1, dim))
        return self.out_proj(value, add=add)  # type: ignore[no-any-return]


class PackedTransformerLayer(nn.Module):
    """Stands for a TransformerLayer, on rows (B, P, N, D)."""

    def __init__(self, plain: TransformerLayer) -> None:
        super().__init__()
        assert isinstance(plain.attention, FoldedAttention)
        self.norms = plain.layernorm_before.eps, plain.layernorm_after.eps
        self.attention = PackedAttention(plain.attention)
        first, second = plain.ffn.conv1, plain.ffn.conv2
        self.activation = first.activation
        self.kind = kind_of(first.activation)
        self.conv1 = PackedLinear(first.convolution.weight.detach(), first.convolution.bias)
        self.conv2 = PackedLinear(second.convolution.weight.detach(), second.convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, N, D) -> (B, P, N, D)."""
        x = self.attention(standardise(x, self.norms[0]), add=x)
        hidden = _activate(self.conv1(standardise(x, self.norms[1])), self.activation, self.kind)
        return self.conv2(hidden, add=x)  # type: ignore[no-any-return]


def standardise(x: Tensor, eps: float) -> Tensor:
    """(B, P, N, D) with mean 0 and variance 1 over each picture: GroupNorm of one group, in the layout at hand."""
    rows = x.reshape(x.shape[0], -1)  # of one axis, whose length torch finds out sooner
    return F.layer_norm(rows, rows.shape[1:], eps=eps).view(x.shape)


class PackedBlock(MobileViTV2Block):
    """Stands for a MobileViTV2Block."""

    def __init__(self, plain: MobileViTV2Block) -> None:
        nn.Module.__init__(self)
        self.patch_size = plain.patch_size
        self.eps = plain.layernorm.eps
        self.downsampling_layer, self.conv_kxk, self.conv_1x1 = plain.downsampling_layer, plain.conv_kxk, plain.conv_1x1
        layers = [layer for layer in plain.transformer.layer if isinstance(layer, TransformerLayer)]
        self.transformer = nn.Sequential(*(PackedTransformerLayer(layer) for layer in layers))  # type: ignore[assignment]
        self.conv_projection = plain.conv_projection

    def forward(self, x: Tensor, *, expand: nn.Module | None = None, whole: bool = True) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up to whole patches.

        `expand` stands for the first unit; with whole=False the last one is left out: (B, D, H / stride, W / stride).
        """
        rows, height, width = self._tokens(x, expand)
        x = _from_rows(rows, self.patch_size, height, width)
        return self.conv_projection(x) if whole else x

    def pooled(self, x: Tensor, *, expand: nn.Module | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels): the mean over the block's output."""
        rows, _, _ = self._tokens(x, expand)
        mean = rows.mean(dim=(1, 2), dtype=torch.float32).to(rows.dtype) if rows.dtype in PACKED_DTYPES else rows.mean(dim=(1, 2))
        convolution = self.conv_projection.convolution
        return F.linear(mean, convolution.weight.flatten(1), convolution.bias)

    def _tokens(self, x: Tensor, expand: nn.Module | None) -> tuple[Tensor, int, int]:
        """What the last unit takes, as rows (B, P, N, D), and the sides of the map."""
        x = resize_to_patches(self.downsampling_layer(x, expand=expand), self.patch_size)  # (B, C, H, W)
        x = self.conv_1x1(self.conv_kxk(x))  # (B, D, H, W)
        height, width = x.shape[-2:]
        return standardise(self.transformer(_to_rows(x, self.patch_size)), self.eps), height, width


def _to_rows(x: Tensor, side: int) -> Tensor:
    """(B, D, H, W) -> (B, P, N, D): pixels of a patch, patches row by row."""
    batch, dim, height, width = x.shape
    x = x.reshape(batch, dim, height // side, side, width // side, side)
    return x.permute(0, 3, 5, 2, 4, 1).reshape(batch, side * side, -1, dim)


def _from_rows(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """(B, P, N, D) -> (B, D, H, W), channels_last."""
    batch, dim = x.shape[0], x.shape[-1]
    x = x.reshape(batch, side, side, height // side, width // side, dim)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, height, width, dim).permute(0, 3, 1, 2)
