"""The kernels of training in the places of blocks.py's forwards: same modules, parameters, buffers and results, up to rounding.

    use_training_kernels(model)

A module takes its kernels where it trains, on a GPU, in 16 bits (autocast or its own dtype), and blocks.py's forward everywhere
else: in evaluation, in float32, on a CPU, under torch.compile, with dropout inside the transformer, hooks inside the module, or
batch norms of another kind or frozen. `MOBILEVITV2_KERNELS=0` in the environment leaves the kernels out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mobilevitv2.blocks import (
    ConvNormAct,
    FeedForward,
    InvertedResidual,
    MobileViTV2Block,
    SeparableSelfAttention,
    TransformerLayer,
    resize_to_patches,
)
from mobilevitv2.inference.activations import kind_of
from mobilevitv2.kernels import kernels_enabled
from mobilevitv2.kernels.devices import on_its_device

LARGEST_DIM = 512
"""Of a token; beyond it a tile does not fit the registers."""
LARGEST_STEM_INPUT = 256
LARGEST_PATCHES = 16384
"""Scores that one program holds."""
OLDEST_GPU = (8, 0)
"""Compute capability with bfloat16 and a unit for tanh."""


def use_training_kernels(model: nn.Module) -> int:
    """Let the modules of a model train with kernels, in place; how many do. Without Triton, or switched off, none.

    State dict, parameters and evaluation stay as they are; copies of the model take the kernels along. Modules that hold no kernel
    now may find none for a given input, and take the plain way by themselves.
    """
    if not kernels_enabled():
        return 0
    forwards: dict[type[nn.Module], Callable[..., Tensor]] = {
        InvertedResidual: _residual, MobileViTV2Block: _block, ConvNormAct: _stem
    }  # fmt: skip
    count = 0
    for module in model.modules():
        forward = forwards.get(type(module))
        if forward is not None and (not isinstance(module, ConvNormAct) or _is_stem(module)):
            module.forward = functools.partial(forward, module)
            count += 1
    return count


def drop_training_kernels(model: nn.Module) -> None:
    """Undo `use_training_kernels`."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), functools.partial):
            del module.forward


@on_its_device
def _residual(module: InvertedResidual, x: Tensor) -> Tensor:
    dtype = _dtype(module, x)
    if dtype is None or not _covers_residual(module, x):
        return InvertedResidual.forward(module, x)
    from mobilevitv2.kernels.training_functions import InvertedResidualFunction, Residual

    units = module.expand_1x1, module.conv_3x3, module.reduce_1x1
    convolution = module.conv_3x3.convolution
    part = Residual(
        norms=tuple(unit.normalization for unit in units),  # type: ignore[arg-type]
        kinds=tuple(kind_of(unit.activation) for unit in units[:2]),  # type: ignore[arg-type]
        stride=convolution.stride[0],
        dilation=convolution.dilation[0],
        add=module.use_residual,
    )
    parameters = [p for u in units for p in (u.convolution.weight, *_affine(u))]
    return _map(InvertedResidualFunction.apply(_rows(x, dtype), part, *parameters))


@on_its_device
def _block(module: MobileViTV2Block, x: Tensor) -> Tensor:
    dtype = _dtype(module, x)
    if dtype is None or not _covers_block(module, x):
        return MobileViTV2Block.forward(module, x)
    from mobilevitv2.kernels import training_functions as functions

    rows = _rows(resize_to_patches(module.downsampling_layer(x), module.patch_size), dtype)
    filtering = module.conv_kxk
    layers = [layer for layer in module.transformer.layer if isinstance(layer, TransformerLayer)]
    part = functions.Local(
        norm=filtering.normalization,  # type: ignore[arg-type]
        kind=kind_of(filtering.activation),  # type: ignore[arg-type]
        dilation=filtering.convolution.dilation[0],
    )
    weights = filtering.convolution.weight, *_affine(filtering), module.conv_1x1.convolution.weight
    tokens = functions.LocalFunction.apply(rows, part, *weights)
    eps = [norm.eps for layer in layers for norm in (layer.layernorm_before, layer.layernorm_after)]
    shape = functions.Tokens(module.patch_size, (*eps, module.layernorm.eps))
    parameters = [p for layer in layers for p in _layer_parameters(layer)]
    tokens = functions.TokensFunction.apply(tokens, shape, *parameters, module.layernorm.weight, module.layernorm.bias)
    last = module.conv_projection
    return _map(functions.ProjectionFunction.apply(tokens, last.normalization, last.convolution.weight, *_affine(last)))


@on_its_device
def _stem(module: ConvNormAct, x: Tensor) -> Tensor:
    dtype = _dtype(module, x)
    suits = _plain(module) and _trains(module.normalization) and _enough(x, module.convolution.stride[0])
    if dtype is None or x.requires_grad or not suits:
        return ConvNormAct.forward(module, x)
    from mobilevitv2.kernels.training_functions import Stem, StemFunction

    convolution = module.convolution
    part = Stem(
        norm=module.normalization,  # type: ignore[arg-type]
        kind=kind_of(module.activation),  # type: ignore[arg-type]
        side=convolution.kernel_size[0],
        stride=convolution.stride[0],
        dtype=dtype,
    )
    return _map(StemFunction.apply(x, part, convolution.weight, *_affine(module)))


def _dtype(module: nn.Module, x: Tensor) -> torch.dtype | None:
    """That of the maps, or None where the plain forward is to run."""
    if not module.training or not torch.is_grad_enabled() or torch.compiler.is_compiling() or x.numel() == 0:
        return None
    weight = next(module.parameters())
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        dtype = x.dtype if x.dtype == weight.dtype else torch.float32
    known = dtype in (torch.bfloat16, torch.float16) and _suits(x.device) if x.is_cuda else _interpreted()
    if not known or weight.device != x.device or any(m._forward_hooks or m._forward_pre_hooks for m in list(module.modules())[1:]):
        return None
    return dtype


@functools.cache
def _suits(device: torch.device) -> bool:
    """Whether the kernels run there: an NVIDIA GPU that is not too old."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= OLDEST_GPU


def _interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, on any device: how the tests run without a GPU."""
    if not kernels_enabled():  # a copy that came from where there are kernels
        return False
    import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]

    return bool(triton.knobs.runtime.interpret)


def _covers_residual(module: InvertedResidual, x: Tensor) -> bool:
    units = module.expand_1x1, module.conv_3x3, module.reduce_1x1
    if not all(map(_plain, units)):
        return False
    kinds = {kind_of(unit.activation) for unit in units[:2]}
    return (
        "other" not in kinds
        and all(_trains(unit.normalization) for unit in units)
        and _enough(x, module.conv_3x3.convolution.stride[0])
    )


def _covers_block(module: MobileViTV2Block, x: Tensor) -> bool:
    layers, units = list(module.transformer.layer), (module.conv_kxk, module.conv_1x1, module.conv_projection)
    if not all(type(layer) is TransformerLayer and _covers_layer(layer) for layer in layers):
        return False
    if type(module.layernorm) is not nn.GroupNorm or not all(map(_plain, units)):
        return False
    norms = module.conv_kxk.normalization, module.conv_projection.normalization
    side, kind = module.conv_kxk.convolution.kernel_size[0], kind_of(module.conv_kxk.activation)
    stride = module.downsampling_layer.conv_3x3.convolution.stride[0]
    patch = stride * module.patch_size
    small = -(-x.shape[-2] // patch) * -(-x.shape[-1] // patch) <= LARGEST_PATCHES
    small = small and module.conv_1x1.convolution.out_channels <= LARGEST_DIM
    return side == 3 and kind != "other" and small and all(map(_trains, norms)) and _enough(x, stride)


def _covers_layer(layer: TransformerLayer) -> bool:
    attention, ffn = layer.attention, layer.ffn
    units = attention.qkv_proj, attention.out_proj, ffn.conv1, ffn.conv2
    parts = {type(layer.layernorm_before), type(layer.layernorm_after)} == {nn.GroupNorm} and type(ffn) is FeedForward
    if not parts or type(attention) is not SeparableSelfAttention or not all(map(_plain, units)):
        return False
    dropouts = layer.dropout1, layer.dropout2, attention.attn_dropout, ffn.dropout
    return all(dropout.p == 0 for dropout in dropouts) and kind_of(layer.ffn.conv1.activation) == "silu"


def _plain(unit: nn.Module) -> bool:
    """Whether its convolution is torch's own: another, such as an adapter's, computes more than with its weight."""
    return type(unit) is ConvNormAct and type(unit.convolution) is nn.Conv2d


def _trains(norm: nn.Module | None) -> bool:
    """Whether it is a batch norm of the plain kind that takes its statistics from the batch."""
    return type(norm) is nn.BatchNorm2d and norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None


def _enough(x: Tensor, stride: int) -> bool:
    """Whether there is more than one value for a mean; torch's own refusal is the message where there is not."""
    return x.shape[0] * -(-x.shape[-2] // stride) * -(-x.shape[-1] // stride) > 1


def _is_stem(module: ConvNormAct) -> bool:
    convolution = module.convolution
    side, inputs = convolution.kernel_size[0], convolution.in_channels
    small = inputs * side**2 <= LARGEST_STEM_INPUT and convolution.out_channels <= 128
    return (
        convolution.groups == 1
        and side == 3
        and convolution.dilation == (1, 1)
        and inputs <= 16
        and convolution.bias is None
        and small
        and kind_of(module.activation) != "other"
    )


def _affine(unit: ConvNormAct) -> tuple[Tensor, Tensor]:
    norm = unit.normalization
    assert norm is not None
    return norm.weight, norm.bias


def _layer_parameters(layer: TransformerLayer) -> list[Tensor]:
    """In the order of training_functions.EACH."""
    attention, ffn = layer.attention, layer.ffn
    units = (
        layer.layernorm_before,
        attention.qkv_proj.convolution,
        attention.out_proj.convolution,
        layer.layernorm_after,
        ffn.conv1.convolution,
        ffn.conv2.convolution,
    )
    return [p for unit in units for p in (unit.weight, unit.bias)]  # type: ignore[misc]


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), contiguous: no copy of a channels_last map of that dtype."""
    return x.permute(0, 2, 3, 1).to(dtype).contiguous()


def _map(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2)
