"""Names and shapes of every tensor that an architecture has, in this package's names, without building a model.

The channel rules are those of the official code; `mobilevitv2.configuration` applies the same ones to build models. They stand here
once more, without torch, so that a file is checked against the published rule and not against whatever the model classes do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]
Task = Literal["classify", "segment", "detect", "backbone"]
Head = Literal["deeplabv3", "pspnet", "ssdlite"]

BACKBONE_PREFIX = "mobilevitv2."
BOX_NUMBERS, BACKGROUND = 4, 1
"""What a detector answers for each anchor besides the scores of the classes."""
ANCHORS = (6, 6, 6, 6, 6, 4)
"""Anchors in a cell of each of the detector's six levels."""
EXTRA_CHANNELS = (256, 128, 128, 64)
"""Official output channels of the detector's layers behind the backbone (strides 64, 128, 256 and the pooled map)."""
LEVEL_CHANNELS = (512, 256, 256, 128, 128, 64)
"""Official channels that the detector's heads work on."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What decides the shape of every tensor."""

    task: Task
    width: float
    head: Head | None = None
    num_labels: int = 1000
    """Classes; a detector's without the background, which its scores have a column for. 0 for a bare backbone."""
    num_channels: int = 3
    attention_blocks: tuple[int, ...] = (2, 4, 3)
    attention_dims: tuple[int, ...] = (128, 192, 256)
    """Attention widths of stages 3 to 5 at width 1."""
    kernel_size: int = 3
    """Kernel of the depthwise convolution in front of the attention."""
    ffn_multiplier: int = 2
    expand_ratio: float = 2.0
    head_channels: int = 512
    """Width of the DeepLabV3 or PSPNet head."""
    psp_branches: int = 4
    has_auxiliary_head: bool = False
    extra_channels: tuple[int, ...] = EXTRA_CHANNELS
    """Output channels of the detector's layers behind the backbone."""
    level_channels: tuple[int, ...] = LEVEL_CHANNELS
    """Channels that the detector's heads work on."""


def make_divisible(value: float, *, divisor: int = 8, minimum: int | None = None) -> int:
    """The nearest multiple of `divisor` that is not below 0.9 times `value`."""
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def stage_channels(width: float) -> tuple[int, ...]:
    """Output channels of the stem and of the five stages."""
    stem = make_divisible(min(max(32 * width, 16), 64), minimum=16)
    return (stem, make_divisible(64 * width, divisor=16), *(make_divisible(base * width) for base in (128, 256, 384, 512)))


def expanded(channels: int, ratio: float) -> int:
    """Hidden channels of an inverted residual with `channels` input channels."""
    return make_divisible(round(channels * ratio))


def expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every tensor of the state dict, buffers included; backbone names carry `mobilevitv2.` except in a bare backbone."""
    prefix = "" if architecture.task == "backbone" else BACKBONE_PREFIX
    shapes = {prefix + name: shape for name, shape in _backbone(architecture)}
    shapes.update(_head(architecture))
    return shapes


def parameter_count(shapes: Mapping[str, Shape]) -> int:
    """Trainable numbers in a state dict of these shapes; statistics and counters of batch normalisation are no parameters."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(buffers))


# ---- layers ----------------------------------------------------------------------------------------------------------------------


def _affine(name: str, channels: int) -> Named:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _conv(name: str, out: int, into: int, *, kernel: int = 1, bias: bool = False) -> Named:
    yield f"{name}.convolution.weight", (out, into, kernel, kernel)
    if bias:
        yield f"{name}.convolution.bias", (out,)


def _conv_norm(name: str, out: int, into: int, *, kernel: int = 1) -> Named:
    yield from _conv(name, out, into, kernel=kernel)
    yield from _affine(f"{name}.normalization", out)
    yield f"{name}.normalization.running_mean", (out,)
    yield f"{name}.normalization.running_var", (out,)
    yield f"{name}.normalization.num_batches_tracked", ()


# ---- backbone --------------------------------------------------------------------------------------------------------------------


def _backbone(arch: Architecture) -> Named:
    stem, *stages = stage_channels(arch.width)
    yield from _conv_norm("conv_stem", stem, arch.num_channels, kernel=3)
    for stage, (into, out) in enumerate(zip([stem, *stages], stages, strict=False)):
        name = f"encoder.layer.{stage}"
        if stage < 2:
            for block in range(stage + 1):
                yield from _inverted_residual(f"{name}.layer.{block}", out if block else into, out, arch.expand_ratio)
        else:
            yield from _inverted_residual(f"{name}.downsampling_layer", into, out, arch.expand_ratio)
            yield from _attention_stage(name, out, arch, stage - 2)


def _inverted_residual(name: str, into: int, out: int, ratio: float) -> Named:
    hidden = expanded(into, ratio)
    yield from _conv_norm(f"{name}.expand_1x1", hidden, into)
    yield from _conv_norm(f"{name}.conv_3x3", hidden, 1, kernel=3)
    yield from _conv_norm(f"{name}.reduce_1x1", out, hidden)


def _attention_stage(name: str, channels: int, arch: Architecture, index: int) -> Named:
    dim = make_divisible(arch.attention_dims[index] * arch.width)
    hidden = arch.ffn_multiplier * dim // 16 * 16
    yield from _conv_norm(f"{name}.conv_kxk", channels, 1, kernel=arch.kernel_size)
    yield from _conv(f"{name}.conv_1x1", dim, channels)
    for block in range(arch.attention_blocks[index]):
        layer = f"{name}.transformer.layer.{block}"
        yield from _affine(f"{layer}.layernorm_before", dim)
        yield from _conv(f"{layer}.attention.qkv_proj", 1 + 2 * dim, dim, bias=True)
        yield from _conv(f"{layer}.attention.out_proj", dim, dim, bias=True)
        yield from _affine(f"{layer}.layernorm_after", dim)
        yield from _conv(f"{layer}.ffn.conv1", hidden, dim, bias=True)
        yield from _conv(f"{layer}.ffn.conv2", dim, hidden, bias=True)
    yield from _affine(f"{name}.layernorm", dim)
    yield from _conv_norm(f"{name}.conv_projection", channels, dim)


# ---- heads -----------------------------------------------------------------------------------------------------------------------


def _head(arch: Architecture) -> Named:
    channels = stage_channels(arch.width)
    if arch.task == "classify":
        yield "classifier.weight", (arch.num_labels, channels[-1])
        yield "classifier.bias", (arch.num_labels,)
    elif arch.task == "segment":
        yield from _deeplabv3(arch, channels[-1]) if arch.head == "deeplabv3" else _pspnet(arch, channels[-1])
        yield from _conv("segmentation_head.classifier", arch.num_labels, arch.head_channels, bias=True)
        if arch.has_auxiliary_head:
            yield from _auxiliary(arch, channels[-2])
    elif arch.task == "detect":
        yield from _ssdlite(arch, channels[-2:])


def _deeplabv3(arch: Architecture, channels: int) -> Named:
    width, name = arch.head_channels, "segmentation_head.aspp"
    yield from _conv_norm(f"{name}.convs.0", width, channels)
    for branch in (1, 2, 3):
        yield from _conv_norm(f"{name}.convs.{branch}", width, channels, kernel=3)
    yield from _conv_norm(f"{name}.convs.4.conv_1x1", width, channels)
    yield from _conv_norm(f"{name}.project", width, 5 * width)


def _pspnet(arch: Architecture, channels: int) -> Named:
    reduced = max(16, channels // arch.psp_branches // 16 * 16)
    for branch in range(arch.psp_branches):
        yield from _conv_norm(f"segmentation_head.psp.branches.{branch}", reduced, channels)
    yield from _conv_norm("segmentation_head.psp.fusion", arch.head_channels, channels + arch.psp_branches * reduced, kernel=3)


def _auxiliary(arch: Architecture, channels: int) -> Named:
    hidden = max(channels // 4, 128)
    yield from _conv_norm("segmentation_head.auxiliary_head.conv", hidden, channels, kernel=3)
    yield from _conv("segmentation_head.auxiliary_head.classifier", arch.num_labels, hidden, bias=True)


def _ssdlite(arch: Architecture, channels: tuple[int, ...]) -> Named:
    inputs, pooled = (*channels, *arch.extra_channels), len(arch.extra_channels) - 1
    for layer, (into, out) in enumerate(zip(inputs[1:-2], arch.extra_channels[:-1], strict=True)):
        yield from _conv_norm(f"extra_layers.{layer}.depthwise", into, 1, kernel=3)
        yield from _conv_norm(f"extra_layers.{layer}.pointwise", out, into)
    yield from _conv(f"extra_layers.{pooled}", inputs[-1], inputs[-2])
    for level, (into, hidden, anchors) in enumerate(zip(inputs, arch.level_channels, ANCHORS, strict=True)):
        name, last = f"detection_head.levels.{level}", level == len(ANCHORS) - 1
        if into != hidden:
            yield from _conv_norm(f"{name}.projection", hidden, into)
        if not last:  # the last map has one pixel, where a 3x3 kernel has nothing to see
            yield from _conv_norm(f"{name}.depthwise", hidden, 1, kernel=3)
        yield from _conv(f"{name}.pointwise", anchors * (BOX_NUMBERS + BACKGROUND + arch.num_labels), hidden, bias=True)
