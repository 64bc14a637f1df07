"""The building blocks of MobileViTV2, from the convolution up to a whole stage.

"Separable Self-attention for Mobile Vision Transformers" (Mehta and Rastegari, 2022, arXiv 2206.02680). The arithmetic is that of
the official code; attribute names are those of transformers' model, so that its checkpoints load without a map.

Shape letters: B batch, C channels of a stage, D channels inside attention, H and W height and width, P pixels of a patch
(patch_size squared), N number of patches (H * W / P).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """Nearest multiple of `divisor`, at least `minimum`, and never more than 10 % below `value` (the rule of the MobileNets)."""
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class ConvNormAct(nn.Module):
    """Convolution with "same" padding, then optionally batch normalisation and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = False,
        norm: bool = True,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=(kernel_size - 1) // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.normalization = nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1) if norm else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up."""
        x = self.convolution(x)
        if self.normalization is not None:
            x = self.normalization(x)
        return x if self.activation is None else self.activation(x)


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, filter each channel by itself, reduce; added to its input where the shapes agree."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        activation: Activation,
        stride: int = 1,
        dilation: int = 1,
        expand_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        hidden = make_divisible(round(in_channels * expand_ratio), 8)
        self.use_residual = stride == 1 and in_channels == out_channels
        self.expand_1x1 = ConvNormAct(in_channels, hidden, activation=activation)
        self.conv_3x3 = ConvNormAct(
            hidden, hidden, kernel_size=3, stride=stride, groups=hidden, dilation=dilation, activation=activation
        )
        self.reduce_1x1 = ConvNormAct(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up."""
        y: Tensor = self.reduce_1x1(self.conv_3x3(self.expand_1x1(x)))
        return x + y if self.use_residual else y


class MobileNetLayer(nn.Module):
    """Inverted residuals one after another; the first one carries the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, *, activation: Activation, depth: int, stride: int, expand_ratio: float
    ) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            InvertedResidual(
                in_channels if i == 0 else out_channels,
                out_channels,
                stride=stride if i == 0 else 1,
                expand_ratio=expand_ratio,
                activation=activation,
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up."""
        for layer in self.layer:
            x = layer(x)
        return x


class SeparableSelfAttention(nn.Module):
    """Attention of linear cost (paper, section 3.2): one score a token, one context vector an image.

    The official code projects the tokens to keys W_k x_n + b_k and sums them with the scores s_n. The sum is linear, so
    sum_n s_n (W_k x_n + b_k) = W_k (sum_n s_n x_n) + b_k sum_n s_n: here the tokens are summed first and only the sum is projected.
    The result is the same and the key tensor, a third of the official query-key-value product, is never formed. The scores sum to
    one except under dropout, so the bias is taken with their sum.
    """

    def __init__(self, dim: int, *, attn_dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        # One tensor of 1 + 2 D rows: query, key, value, the order of every released checkpoint.
        self.qkv_proj = ConvNormAct(dim, 1 + 2 * dim, bias=True, norm=False)
        self.out_proj = ConvNormAct(dim, dim, bias=True, norm=False)
        self.attn_dropout = nn.Dropout(attn_dropout)

    def context_scores(self, x: Tensor) -> Tensor:
        """Softmax over the tokens, for each pixel of the patch by itself: (B, D, P, N) -> (B, 1, P, N), in float32 or wider."""
        return self._query_and_value(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        scores, value = self._query_and_value(x)
        context = self._context_vector(x, self.attn_dropout(scores))
        out: Tensor = self.out_proj(F.relu(value) * context)
        return out

    def _query_and_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scores (B, 1, P, N) and the values (B, D, P, N), from one convolution: one to a single channel is slow to train."""
        weight, bias = self.qkv_proj.convolution.weight, self.qkv_proj.convolution.bias
        assert bias is not None  # built with bias=True above
        first_value = 1 + self.dim
        # Seven rows of zeros make the row count a multiple of 8, which is what matrix units want (benchmarks/attention_forms.py).
        rows = F.pad(torch.cat([weight[first_value:], weight[:1]]), (0, 0, 0, 0, 0, 0, 0, 7))
        shift = F.pad(torch.cat([bias[first_value:], bias[:1]]), (0, 7))
        both = F.conv2d(x, rows, shift)
        value, query = both[:, : self.dim], both[:, self.dim : self.dim + 1]
        return torch.softmax(_at_least_float32(query), dim=-1), value

    def _context_vector(self, x: Tensor, scores: Tensor) -> Tensor:
        """Sum of the keys, weighted with the scores: (B, D, P, N), (B, 1, P, N) -> (B, D, P, 1)."""
        weight, bias = self.qkv_proj.convolution.weight, self.qkv_proj.convolution.bias
        assert bias is not None
        keys = slice(1, 1 + self.dim)
        weighted = (_at_least_float32(x) * scores).sum(dim=-1, keepdim=True)
        bias_share = bias[keys, None, None] * scores.sum(dim=-1, keepdim=True)
        return F.conv2d(weighted.to(x.dtype), weight[keys]) + bias_share.to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    """A sum over thousands of tokens, or its softmax, loses too much in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FeedForward(nn.Module):
    """Two 1x1 convolutions with an activation between them."""

    def __init__(self, dim: int, hidden: int, *, activation: Activation, ffn_dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(dim, hidden, bias=True, norm=False, activation=activation)
        self.dropout = nn.Dropout(ffn_dropout)
        self.conv2 = ConvNormAct(hidden, dim, bias=True, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        out: Tensor = self.conv2(self.dropout(self.conv1(x)))
        return out


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer on tokens (B, D, P, N). GroupNorm of one group: statistics over D, P and N together."""

    def __init__(
        self,
        dim: int,
        ffn_hidden: int,
        *,
        activation: Activation,
        norm_eps: float = 1e-5,
        attn_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layernorm_before = nn.GroupNorm(1, dim, eps=norm_eps)
        self.attention = SeparableSelfAttention(dim, attn_dropout=attn_dropout)
        self.dropout1 = nn.Dropout(dropout)
        self.layernorm_after = nn.GroupNorm(1, dim, eps=norm_eps)
        self.ffn = FeedForward(dim, ffn_hidden, activation=activation, ffn_dropout=ffn_dropout)
        self.dropout2 = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        x = x + self.dropout1(self.attention(self.layernorm_before(x)))
        out: Tensor = x + self.dropout2(self.ffn(self.layernorm_after(x)))
        return out


class Transformer(nn.Module):
    """Transformer layers one after another."""

    def __init__(self, layers: list[TransformerLayer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        for layer in self.layer:
            x = layer(x)
        return x


class MobileViTV2Block(nn.Module):
    """One stage with attention: an inverted residual, then local and global representation (paper, figure 3; no skip, no fusion).

    The input of the second part is resized up to a whole number of patches where it is not one already, and not resized back, as in
    the official code: 7x7 leaves as 8x8.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        transformer: Transformer,
        dim: int,
        activation: Activation,
        stride: int = 2,
        downsampling_dilation: int = 1,
        dilation: int = 1,
        kernel_size: int = 3,
        patch_size: int = 2,
        expand_ratio: float = 2.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.downsampling_layer = InvertedResidual(
            in_channels,
            out_channels,
            stride=stride,
            dilation=downsampling_dilation,
            expand_ratio=expand_ratio,
            activation=activation,
        )
        self.conv_kxk = ConvNormAct(
            out_channels,
            out_channels,
            kernel_size=kernel_size,
            groups=out_channels,
            dilation=dilation,
            activation=activation,
        )
        self.conv_1x1 = ConvNormAct(out_channels, dim, norm=False)
        self.transformer = transformer
        self.layernorm = nn.GroupNorm(1, dim, eps=norm_eps)
        self.conv_projection = ConvNormAct(dim, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up to whole patches."""
        x = resize_to_patches(self.downsampling_layer(x), self.patch_size)  # (B, C, H, W)
        x = self.conv_1x1(self.conv_kxk(x))  # (B, D, H, W)
        height, width = x.shape[-2:]
        x = unfold_patches(x, self.patch_size)  # (B, D, P, N)
        x = self.layernorm(self.transformer(x))
        x = fold_patches(x, self.patch_size, height, width)  # (B, D, H, W)
        out: Tensor = self.conv_projection(x)  # (B, C, H, W)
        return out


def resize_to_patches(x: Tensor, patch_size: int) -> Tensor:
    """Stretch (B, C, H, W) so that both sides are multiples of `patch_size`; as it is where they are already."""
    height, width = x.shape[-2:]
    new_height = (height + patch_size - 1) // patch_size * patch_size
    new_width = (width + patch_size - 1) // patch_size * patch_size
    if (new_height, new_width) == (height, width):
        return x
    return F.interpolate(x, size=(new_height, new_width), mode="bilinear", align_corners=True)


def unfold_patches(x: Tensor, patch_size: int) -> Tensor:
    """(B, D, H, W) -> (B, D, P, N): the pixels of each patch, then the patches row by row; bit for bit F.unfold's order."""
    # Not one reshape: torch.export would spend most of its time on proving that dynamic sizes divide.
    return torch.unflatten(F.pixel_unshuffle(x, patch_size), 1, (x.shape[1], patch_size * patch_size)).flatten(3)


def fold_patches(x: Tensor, patch_size: int, height: int, width: int) -> Tensor:
    """(B, D, P, N) -> (B, D, H, W): the inverse of `unfold_patches`."""
    return F.pixel_shuffle(torch.unflatten(x.flatten(1, 2), 2, (height // patch_size, width // patch_size)), patch_size)
