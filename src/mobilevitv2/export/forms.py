"""The form of a folded model that the runtimes of phones take whole: attention on rows of tokens.

The folded model holds its tokens as pictures of four axes, (B, D, P, N). Two things in it hurt there. XNNPACK moves tensors of four
axes to channels-last by itself, so that in ExecuTorch a softmax over the last axis silently runs over another one; and group
normalisation, sums over an axis and permutations of six axes stay outside the delegate, which cuts the model into dozens of pieces.

Here a stage's tokens are the rows of a matrix, (B, T, D) with T = P * N, rows of one pixel of the patch together:

- 1x1 convolutions are linear layers;
- the weighted sum of the tokens is a product of matrices, (B * P, 1, N) x (B * P, N, D);
- the mean of a normalisation is a linear layer with weights 1 / D, then the mean over what is left (LiteRT has the mean itself);
- patches are made by two permutations of four axes, which move whole runs of channels.

Every operation is one that XNNPACK has, under ExecuTorch and under LiteRT. The heads lose their operations that it has not: the
expansion of a pooled map, pooling to a grid that does not divide the map, and a mean that drops its axes.

Shape letters: B batch, C channels of a stage, D channels inside attention, H and W height and width, P pixels of a patch,
N number of patches, T tokens.
"""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from mobilevitv2.backbone import MobileViTV2Model, MobileViTV2PreTrainedModel
from mobilevitv2.blocks import InvertedResidual, MobileNetLayer, MobileViTV2Block, TransformerLayer, resize_to_patches
from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.program import Answering, Program
from mobilevitv2.inference.fold import FoldedAttention
from mobilevitv2.inference.merging import merged_units
from mobilevitv2.segmentation import AtrousSpatialPyramidPooling, ImagePooling, PyramidPooling

FloatMatrix = npt.NDArray[np.float64]
FIXED_ANCHORS = "fixed_anchors"


def token_module(program: Program, *, free_mean: bool) -> nn.Module:
    """The program's module in the form above, in float32; a copy.

    With `free_mean` a normalisation's mean is one operation over two axes, for runtimes that have it.

    A program in half precision keeps its rounded weights: formats that store them in 16 bits lose nothing more.

    Raises:
        ConfigurationError: a program with a free height or width, which fixes no shapes.
    """
    free = [axis for axis in program.dynamic if axis != "batch"]
    if free:
        raise ConfigurationError(f"{' and '.join(free)} cannot be free in this format; export one file for each size.")
    module = copy.deepcopy(program.module).float()
    assert isinstance(module, Answering)
    module.dtype = torch.float32
    module.model = token_form(module.model, free_mean=free_mean)
    _fix_matrices(module.eval(), program.example)
    if isinstance(module.model, MobileViTV2ForObjectDetection):
        _fix_anchors(module, program.example)
    return module


def _fix_anchors(module: Answering, example: Tensor) -> None:
    """Let a detector keep its anchors for this size: calculated inside the file they would stay outside the delegate."""
    model = module.model
    assert isinstance(model, MobileViTV2ForObjectDetection)
    plain, found = model.anchors, []

    def noted(grids: list[tuple[int, int]], device: torch.device) -> Tensor:
        found.append(plain(grids, device))
        return found[-1]

    model.anchors = noted  # type: ignore[method-assign]
    with torch.no_grad():
        module(example)
    model.register_buffer(FIXED_ANCHORS, found[-1].clone(), persistent=False)
    model.anchors = lambda grids, device: cast(Tensor, getattr(model, FIXED_ANCHORS))  # type: ignore[method-assign]


def _fix_matrices(module: nn.Module, example: Tensor) -> None:
    """Let pooling keep its matrices for this size as buffers: delegates take constants only as such."""

    def note(pooling: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(pooling, PoolingByMatrix)
        pooling.fix(int(inputs[0].shape[-2]), int(inputs[0].shape[-1]))

    pools = [each for each in module.modules() if isinstance(each, PoolingByMatrix)]
    handles = [each.register_forward_pre_hook(note) for each in pools]
    if pools:
        with torch.no_grad():
            module(example)
    for handle in handles:
        handle.remove()


def token_form(folded: MobileViTV2PreTrainedModel, *, free_mean: bool = False) -> MobileViTV2PreTrainedModel:
    """An equal model whose attention runs on rows of tokens.

    Args:
        folded: as `exported_model` gives it; it is changed.
        free_mean: take means over two axes in one operation.
    """
    layers = folded.mobilevitv2.encoder.layer
    classifies = isinstance(folded, MobileViTV2ForImageClassification)
    merged = merged_units(list(layers)) if classifies else nn.ModuleDict()
    for index, layer in enumerate(layers):
        if isinstance(layer, MobileViTV2Block):
            layers[index] = TokenBlock(layer)
    for module in folded.modules():
        if isinstance(module, TokenNorm):
            module.free_mean = free_mean
    folded.mobilevitv2 = Trunk(folded.mobilevitv2, merged)
    for module in list(folded.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, AtrousSpatialPyramidPooling):
                setattr(module, name, AddedPooling(child))
            elif isinstance(child, PyramidPooling):
                setattr(module, name, PoolingByMatrix(child))
    return folded


class Trunk(nn.Module):
    """The trunk, pooled without dropping axes; for a classifier with merged units between its stages (inference/merging.py)."""

    def __init__(self, trunk: MobileViTV2Model, merged: nn.ModuleDict) -> None:
        super().__init__()
        self.conv_stem, self.encoder, self.merged = trunk.conv_stem, trunk.encoder, merged

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        """The outputs of the stem and the five stages, finest first."""
        stem = self.conv_stem(pixel_values)
        return [stem, *self.encoder(stem)]

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """The pooled features, which are what a classifier uses. The last unit is linear, so it works on the mean."""
        merged = dict(self.merged.items())
        x, expand = self.conv_stem(pixel_values), None
        *stages, last = self.encoder.layer
        for index, stage in enumerate(stages):
            after = merged.get(str(index))
            x = _run(stage, x, expand, whole=after is None)
            expand = after
        assert isinstance(last, TokenBlock)
        return BaseModelOutputWithPoolingAndNoAttention(pooler_output=last.pooled(x, expand=expand))


def _run(stage: nn.Module, x: Tensor, expand: nn.Module | None, *, whole: bool) -> Tensor:
    """A stage, with `expand` for its first unit, and without its last one unless it is to be whole."""
    if isinstance(stage, TokenBlock):
        return stage.map(x, expand=expand, whole=whole)
    layers = cast(list[InvertedResidual], list(cast(MobileNetLayer, stage).layer))
    for index, layer in enumerate(layers):
        x = _residual(layer, x, expand if index == 0 else None, whole=whole or index < len(layers) - 1)
    return x


def _residual(layer: InvertedResidual, x: Tensor, expand: nn.Module | None, *, whole: bool = True) -> Tensor:
    y: Tensor = layer.conv_3x3((layer.expand_1x1 if expand is None else expand)(x))
    if not whole:
        return y
    y = layer.reduce_1x1(y)
    return x + y if layer.use_residual else y


class TokenNorm(nn.Module):
    """Group normalisation of one group without scale and shift, over all tokens of a picture: (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.free_mean = eps, False
        self.register_buffer("equal_weights", torch.full((1, dim), 1 / dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x - self.mean(x)
        return x * torch.rsqrt(self.mean(x * x) + self.eps)

    def mean(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, 1, 1)."""
        if self.free_mean:
            return x.mean(dim=(1, 2), keepdim=True)
        of_tokens = F.linear(x, cast(Tensor, self.equal_weights))  # (B, T, 1)
        # XNNPACK takes a mean over the last two of four axes, and no other.
        return torch.unflatten(of_tokens, 1, (1, -1)).mean(dim=(2, 3), keepdim=True).flatten(2)


class TokenAttention(nn.Module):
    """Separable self-attention of the folded model on rows of tokens."""

    def __init__(self, folded: FoldedAttention, *, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.query, self.key, self.value = (linear(part) for part in (folded.query, folded.key, folded.value))
        self.out_proj = linear(folded.out_proj.convolution)

    def forward(self, x: Tensor) -> Tensor:
        """(B, P * N, D) -> (B, P * N, D)."""
        tokens, dim = x.shape[1:]
        groups = (-1, tokens // self.pixels, dim)
        scores = torch.softmax(self.query(x).reshape(-1, 1, tokens // self.pixels), dim=-1)  # (B * P, 1, N)
        context = self.key(torch.bmm(scores, x.reshape(groups)))  # (B * P, 1, D)
        out: Tensor = self.out_proj((F.relu(self.value(x)).reshape(groups) * context).reshape(-1, tokens, dim))
        return out


class TokenLayer(nn.Module):
    """The transformer layer on rows of tokens."""

    def __init__(self, folded: TransformerLayer, *, pixels: int) -> None:
        super().__init__()
        dim = folded.ffn.conv1.convolution.in_channels
        assert isinstance(folded.attention, FoldedAttention)
        self.layernorm_before = TokenNorm(dim, folded.layernorm_before.eps)
        self.attention = TokenAttention(folded.attention, pixels=pixels)
        self.layernorm_after = TokenNorm(dim, folded.layernorm_after.eps)
        self.conv1, self.conv2 = linear(folded.ffn.conv1.convolution), linear(folded.ffn.conv2.convolution)
        self.activation = folded.ffn.conv1.activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, P * N, D) -> (B, P * N, D)."""
        x = x + self.attention(self.layernorm_before(x))
        hidden = self.conv1(self.layernorm_after(x))
        out: Tensor = x + self.conv2(hidden if self.activation is None else self.activation(hidden))
        return out


class TokenBlock(nn.Module):
    """A stage with attention on rows of tokens, in and out as the folded one."""

    def __init__(self, folded: MobileViTV2Block) -> None:
        super().__init__()
        self.patch_size = folded.patch_size
        self.downsampling_layer, self.conv_kxk = folded.downsampling_layer, folded.conv_kxk
        self.conv_1x1 = linear(folded.conv_1x1.convolution)
        pixels = folded.patch_size**2
        self.layer = nn.Sequential(
            *(TokenLayer(cast(TransformerLayer, layer), pixels=pixels) for layer in folded.transformer.layer)
        )
        projection = folded.conv_projection.convolution
        self.layernorm = TokenNorm(projection.in_channels, folded.layernorm.eps)
        self.conv_projection = linear(projection)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / stride, W / stride), sides rounded up to whole patches."""
        return self.map(x)

    def map(self, x: Tensor, *, expand: nn.Module | None = None, whole: bool = True) -> Tensor:
        """The same with `expand` for the first unit, and with whole=False without the last one."""
        x, height, width = self._tokens(x, expand)
        x = self.conv_projection(x) if whole else x
        x = ungroup_pixels(x, self.patch_size, width)
        return torch.unflatten(x, 1, (height, width)).permute(0, 3, 1, 2)

    def pooled(self, x: Tensor, *, expand: nn.Module | None = None) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels): the mean over the output."""
        x, height, width = self._tokens(x, expand)
        mean = torch.unflatten(x, 1, (height, width)).permute(0, 3, 1, 2).mean(dim=(2, 3), keepdim=True)
        out: Tensor = self.conv_projection(mean.flatten(1))
        return out

    def _tokens(self, x: Tensor, expand: nn.Module | None) -> tuple[Tensor, int, int]:
        """What the last unit takes, (B, P * N, D), and the sides of the map."""
        x = _residual(self.downsampling_layer, x, expand)
        x = self.conv_kxk(resize_to_patches(x, self.patch_size))  # (B, C, H, W)
        height, width = x.shape[-2:]
        x = self.conv_1x1(x.permute(0, 2, 3, 1).flatten(1, 2))  # (B, T, D)
        return self.layernorm(self.layer(group_pixels(x, self.patch_size, width))), height, width


def group_pixels(x: Tensor, patch_size: int, width: int) -> Tensor:
    """(B, H * W, D) in reading order -> (B, P * N, D): first all tokens that are the first pixel of their patch, and so on."""
    tokens, dim = x.shape[1:]
    rows = x.reshape(-1, tokens // (patch_size * width), patch_size, width * dim).permute(0, 2, 1, 3)  # (B, p, H / p, W * D)
    columns = rows.reshape(-1, tokens // patch_size**2, patch_size, dim).permute(0, 2, 1, 3)  # (B * p, p, N, D)
    return columns.reshape(-1, tokens, dim)


def ungroup_pixels(x: Tensor, patch_size: int, width: int) -> Tensor:
    """(B, P * N, D) -> (B, H * W, D): the inverse of `group_pixels`."""
    tokens, dim = x.shape[1:]
    columns = x.reshape(-1, patch_size, tokens // patch_size**2, dim).permute(0, 2, 1, 3)  # (B * p, N, p, D)
    rows = columns.reshape(-1, patch_size, tokens // (patch_size * width), width * dim).permute(0, 2, 1, 3)  # (B, H / p, p, W * D)
    return rows.reshape(-1, tokens, dim)


class AddedPooling(nn.Module):
    """DeepLabV3's pyramid; the pooled branch, the same everywhere, is added behind the projection, not spread before it."""

    def __init__(self, folded: AtrousSpatialPyramidPooling) -> None:
        super().__init__()
        *convs, pooling = folded.convs
        assert isinstance(pooling, ImagePooling)
        self.convs, self.pooled = nn.ModuleList(convs), pooling.conv_1x1
        project = folded.project.convolution
        seen = project.in_channels - pooling.conv_1x1.convolution.out_channels
        self.project = _part(project, slice(None, seen), project.bias)
        self.project_pooled = _part(project, slice(seen, None), None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        joined = self.project(torch.cat([conv(x) for conv in self.convs], dim=1))
        pooled = self.project_pooled(self.pooled(x.mean(dim=(2, 3), keepdim=True)))
        return F.relu(joined + pooled)


class PoolingByMatrix(nn.Module):
    """PSPNet's pyramid where pooling to a grid and spreading the grid are products with constant matrices."""

    def __init__(self, folded: PyramidPooling) -> None:
        super().__init__()
        self.pool_sizes, self.branches, self.fusion = folded.pool_sizes, folded.branches, folded.fusion
        self.size: tuple[int, int] | None = None

    def fix(self, height: int, width: int) -> None:
        """Keep the matrices for maps of this size."""
        self.size = (height, width)
        for size in self.pool_sizes:
            pooling, spreading = pooling_matrices(size, height, width)
            self.register_buffer(f"pooling_{size}", pooling, persistent=False)
            self.register_buffer(f"spreading_{size}", spreading, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        height, width = int(x.shape[-2]), int(x.shape[-1])
        pyramid = [x]
        for size, branch in zip(self.pool_sizes, self.branches, strict=True):
            pooling, spreading = self._matrices(size, height, width)
            pooled = torch.unflatten(F.linear(x.flatten(2), pooling), 2, (size, size))  # (B, C, size, size)
            spread = F.linear(branch(pooled).flatten(2), spreading)
            pyramid.append(torch.unflatten(spread, 2, (height, width)))
        out: Tensor = self.fusion(torch.cat(pyramid, dim=1))
        return out

    def _matrices(self, size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        if self.size != (height, width):
            return pooling_matrices(size, height, width)
        return cast(Tensor, getattr(self, f"pooling_{size}")), cast(Tensor, getattr(self, f"spreading_{size}"))


def pooling_matrices(size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What pools a map to size x size, (size * size, height * width), and what spreads such a grid over a map, its shape turned."""
    pooling = np.kron(_pooling(size, height), _pooling(size, width))
    spreading = np.kron(_spreading(size, height), _spreading(size, width))
    return torch.tensor(pooling, dtype=torch.float32), torch.tensor(spreading, dtype=torch.float32)


def _pooling(size: int, side: int) -> FloatMatrix:
    """Row i is the mean over the pixels from floor(i * side / size) to ceil((i + 1) * side / size), torch's adaptive pooling."""
    rows = np.zeros((size, side))
    for index in range(size):
        start, end = index * side // size, -(-(index + 1) * side // size)
        rows[index, start:end] = 1 / (end - start)
    return rows


def _spreading(size: int, side: int) -> FloatMatrix:
    """Linear interpolation from `size` to `side` points, corner on corner."""
    places = np.linspace(0, size - 1, side)
    weights: FloatMatrix = np.clip(1 - np.abs(places[:, None] - np.arange(size)), 0, None)
    return weights


def linear(convolution: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution as a linear layer."""
    bias = convolution.bias is not None
    with torch.device("meta"):
        layer = nn.Linear(convolution.in_channels, convolution.out_channels, bias=bias)
    layer.weight = nn.Parameter(convolution.weight.detach()[:, :, 0, 0].clone(), requires_grad=False)
    if convolution.bias is not None:
        layer.bias = nn.Parameter(convolution.bias.detach().clone(), requires_grad=False)
    return layer.eval()


def _part(convolution: nn.Conv2d, channels: slice, bias: Tensor | None) -> nn.Conv2d:
    """The 1x1 convolution of some of the input channels of another."""
    weight = convolution.weight.detach()[:, channels].clone()
    with torch.device("meta"):
        part = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    part.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        part.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return part.eval()
