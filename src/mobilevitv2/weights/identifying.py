"""From names and shapes alone: what is this, in which format, and which configuration does it imply?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mobilevitv2.errors import UnknownWeightsFormat, WeightsError, WeightsMismatch
from mobilevitv2.weights.class_names import class_names, label_options
from mobilevitv2.weights.comparing import compare
from mobilevitv2.weights.key_maps import FORMAT_TITLES, FORMATS, Format, names_from_ours, names_to_ours
from mobilevitv2.weights.records import WIDTHS, WeightRecord
from mobilevitv2.weights.shapes import (
    ANCHORS,
    BACKBONE_PREFIX,
    BACKGROUND,
    BOX_NUMBERS,
    EXTRA_CHANNELS,
    LEVEL_CHANNELS,
    Architecture,
    Head,
    Shape,
    Task,
    expanded,
    expected_shapes,
    make_divisible,
    stage_channels,
)

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")

MODEL_CLASSES: dict[str, str] = {
    "classify": "MobileViTV2ForImageClassification",
    "segment": "MobileViTV2ForSemanticSegmentation",
    "detect": "MobileViTV2ForObjectDetection",
    "backbone": "MobileViTV2Model",
}
TASK_NOUNS = {"classify": "a classifier", "segment": "a segmentation model", "detect": "a detector", "backbone": "a bare backbone"}
BASE_DIMS = (128, 192, 256)
HEAD_TITLES = {"deeplabv3": "DeepLabV3", "pspnet": "PSPNet", "ssdlite": "SSDLite"}

# What other models' names look like, the nearest relatives first.
STRANGERS = (
    (
        r"pre_norm_mha|(^|\.)mobilevit\.|attention\.attention\.query|stages\.\d\.\d\.transformer\.\d\.attn\.qkv\.",
        "MobileViT (version 1)",
    ),
    (r"lora_[AB]\b", "a LoRA adapter; merge it into its model first"),
    (r"^(state|param_groups)\b", "the state of an optimiser"),
    (r"^layer\d\.\d\.(conv|bn)\d|^resnet\.", "a ResNet (torchvision or timm)"),
    (r"^features\.\d+\.", "a torchvision model (MobileNet, EfficientNet, VGG, ...)"),
    (r"^blocks\.\d+\.(attn|norm)|patch_embed|^vit\.", "a vision transformer (ViT, DeiT, Swin, ...)"),
    (r"^(model\.)?\d+\.(conv|cv\d|m\.\d)", "a YOLO model"),
    (r"^(conv_stem|blocks\.\d+\.\d+\.)", "a MobileNet or EfficientNet (timm)"),
    (r"^(stem|stages|head)\.", "another timm model"),
    (r"^encoder\.|^decoder\.", "an encoder and decoder of another family"),
)


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo(Architecture):
    """What a state dict turned out to be."""

    format: Format

    def describe(self) -> str:
        """In words: "a detector (SSDLite, 80 classes, width 0.5)"."""
        return _describe(self)


def identify(state_dict: Mapping[str, Tensor]) -> CheckpointInfo:
    """Format, task and architecture of a state dict; every tensor is checked against the architecture's rule.

    Only names and `.shape` are looked at, so tensors on the meta device do as well.

    Raises:
        UnknownWeightsFormat: no MobileViTV2; the message says what it looks like.
        WeightsMismatch: a MobileViTV2 with missing, extra or misshapen tensors; all are named, as they are in the file.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    fmt, ours = _recognise(found)
    info = _measure(fmt, {name.removeprefix(BACKBONE_PREFIX): found[source] for source, name in ours.items()})
    expected = expected_shapes(info)
    theirs = {name: source for source, name in ours.items()}
    named = {theirs.get(name) or new: expected[name] for name, new in names_from_ours(expected, target=fmt).items()}
    message = compare(named, found)
    if message is not None:
        raise WeightsMismatch(
            f"This looks like {info.describe()} with {FORMAT_TITLES[fmt]} names, but it is not complete and sound.\n{message}\n"
            "Get the file again, or save it again from the model that it belongs to."
        )
    return info


def to_ours(state_dict: Mapping[str, Tensor], info: CheckpointInfo) -> dict[str, Tensor]:
    """The same tensors under this package's names; backbone names carry `mobilevitv2.` unless `info` is of a bare backbone.

    Raises:
        WeightsError: names that do not belong to `info.format`; `identify` would have said so.
    """
    names = names_to_ours(state_dict, source=info.format)
    unknown = [name for name in state_dict if name not in names]
    if unknown or len(set(names.values())) != len(names):
        raise WeightsError(
            f"{unknown or 'two tensors of one name'}: not {FORMAT_TITLES[info.format]} names; call identify() first."
        )
    return {names[name]: tensor for name, tensor in state_dict.items()}


def config_values(info: CheckpointInfo, *, record: WeightRecord | None = None) -> dict[str, object]:
    """Keyword arguments of MobileViTV2Config that give a model for these weights; what a record knows goes before guesses."""
    values: dict[str, object] = {
        "width_multiplier": info.width,
        "num_channels": info.num_channels,
        "n_attn_blocks": list(info.attention_blocks),
        "base_attn_unit_dims": list(info.attention_dims),
        "conv_kernel_size": info.kernel_size,
        "ffn_multiplier": info.ffn_multiplier,
        "expand_ratio": info.expand_ratio,
    }
    if info.task != "backbone":
        values["num_labels"] = info.num_labels
    if info.task == "classify":
        values["classifier_dropout_prob"] = 0.0  # the official classifiers have no dropout
    if info.task == "segment":
        values.update(_segmentation_values(info, record))
    if info.task == "detect":
        values["detection_extra_channels"] = list(info.extra_channels)
        values["detection_level_channels"] = list(info.level_channels)
    if record is not None:
        values["image_size"] = record.input_size
        values.update(label_options(class_names(record.task, record.dataset)))
    elif info.task != "classify":
        values["image_size"] = {"segment": 512, "detect": 320}.get(info.task, 256)
    return values


def wrong_task_message(info: Architecture, wanted: str) -> str:
    """Why these weights do not answer the `wanted` task ("classify", "segment", "detect"), and which class they are for."""
    if info.task == "backbone":
        return (
            f"this is {_describe(info)} without a head, so it cannot {wanted}; "
            f"load it with {MODEL_CLASSES['backbone']}, or train a head"
        )
    return f"this is {_describe(info)}; use {MODEL_CLASSES[info.task]}, or {MODEL_CLASSES['backbone']} to take only its backbone"


def _describe(info: Architecture) -> str:
    facts = [HEAD_TITLES[info.head]] if info.head else []
    facts += [f"{info.num_labels} classes"] if info.task != "backbone" else []
    return f"{TASK_NOUNS[info.task]} ({', '.join([*facts, f'width {info.width:g}'])})"


def _segmentation_values(info: CheckpointInfo, record: WeightRecord | None) -> dict[str, object]:
    # No shape tells stride or dilations. The official ADE20K models (150 classes) are the ones of stride 8; all others have 16.
    dense = info.num_labels == 150 if record is None else record.output_stride == 8
    values: dict[str, object] = {
        "segmentation_head": info.head,
        "use_auxiliary_head": info.has_auxiliary_head,
        "output_stride": 8 if dense else 16,
    }
    if info.head == "pspnet":
        return {**values, "psp_out_channels": info.head_channels}
    return {**values, "aspp_out_channels": info.head_channels, "atrous_rates": [12, 24, 36] if dense else [6, 12, 18]}


# ---- which format ----------------------------------------------------------------------------------------------------------------


def _recognise(found: Mapping[str, Shape]) -> tuple[Format, dict[str, str]]:
    """The format that knows the most names, and those names in ours."""
    maps = {fmt: names_to_ours(found, source=fmt) for fmt in FORMATS}
    fmt = max(FORMATS, key=lambda candidate: len(maps[candidate]))
    # Version 1 shares the convolutions' names; the attention with one query, key and value projection is version 2's alone.
    has_attention = any(".attention.qkv_proj." in name for name in maps[fmt].values())
    if not has_attention or 2 * len(maps[fmt]) < len(found):
        raise UnknownWeightsFormat(_stranger_message(found))
    return fmt, maps[fmt]


def _stranger_message(found: Mapping[str, Shape]) -> str:
    names = list(found)
    kind = next((title for pattern, title in STRANGERS if any(re.search(pattern, name) for name in names)), None)
    looks = f"it looks like {kind}" if kind else "no model family that this package knows has such names"
    first = ", ".join(f"{name} {list(found[name])}" for name in names[:5])
    return (
        f"These are not the weights of a MobileViTV2: {looks}. First of {len(names)} tensors: {first}. "
        "This package reads official (cvnets), timm and Hugging Face MobileViTV2 weights; 'mobilevitv2 models' lists what exists."
    )


# ---- which architecture ----------------------------------------------------------------------------------------------------------


class _Shapes:
    """Shapes by name (ours, backbone without prefix); questions are put to many tensors, so that one bad tensor misleads nobody."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes

    def any(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.shapes)

    def axis(self, pattern: str, axis: int) -> Iterator[int]:
        for name, shape in self.shapes.items():
            if len(shape) > axis and re.fullmatch(pattern, name):
                yield shape[axis]

    def count(self, pattern: str) -> int:
        """How many numbers there are at the place of the group, counted from 0."""
        numbers = [int(match[1]) for name in self.shapes if (match := re.match(pattern, name))]
        return max(numbers, default=-1) + 1


def _vote(values: Iterable[Value], default: Value) -> Value:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else default


# The vectors that go with a convolution have its number of output channels.
OUTPUT = r"(convolution\.weight|normalization\.(weight|bias|running_mean|running_var))"


def _measure(fmt: Format, shapes: Mapping[str, Shape]) -> CheckpointInfo:
    tensors = _Shapes(shapes)
    task, head = _task(tensors)
    attention = [
        _vote(tensors.axis(rf"encoder\.layer\.{stage}\.(conv_1x1\.convolution|layernorm)\..*", 0), 0) for stage in (2, 3, 4)
    ]
    width = _solve_width(_stage_outputs(tensors), attention)
    return CheckpointInfo(
        format=fmt,
        task=task,
        head=head,
        width=width,
        num_labels=_num_labels(tensors, task),
        num_channels=_vote(tensors.axis(r"conv_stem\.convolution\.weight", 1), 3),
        attention_blocks=tuple(
            tensors.count(rf"encoder\.layer\.{stage}\.transformer\.layer\.(\d+)\.") or default
            for stage, default in ((2, 2), (3, 4), (4, 3))
        ),
        attention_dims=tuple(_base_dim(dim, width, default) for dim, default in zip(attention, BASE_DIMS, strict=True)),
        kernel_size=_vote(tensors.axis(r".*\.conv_kxk\.convolution\.weight", 2), 3),
        ffn_multiplier=_ffn_multiplier(tensors),
        expand_ratio=_expand_ratio(tensors),
        head_channels=_vote(tensors.axis(rf"segmentation_head\.(aspp\.project|psp\.fusion)\.{OUTPUT}", 0), 512),
        psp_branches=tensors.count(r"segmentation_head\.psp\.branches\.(\d+)\.") or 4,
        has_auxiliary_head=tensors.any("segmentation_head.auxiliary_head."),
        extra_channels=tuple(_extra_channels(tensors)),
        level_channels=tuple(_level_channels(tensors)),
    )


def _task(tensors: _Shapes) -> tuple[Task, Head | None]:
    if tensors.any("segmentation_head."):
        return "segment", "pspnet" if tensors.any("segmentation_head.psp.") else "deeplabv3"
    if tensors.any("detection_head.") or tensors.any("extra_layers."):
        return "detect", "ssdlite"
    return ("classify", None) if tensors.any("classifier.") else ("backbone", None)


def _num_labels(tensors: _Shapes, task: Task) -> int:
    if task == "classify":
        return _vote(tensors.axis(r"classifier\.(weight|bias)", 0), 1000)
    if task == "segment":
        return _vote(tensors.axis(r"segmentation_head\.(auxiliary_head\.)?classifier\.convolution\.(weight|bias)", 0), 21)
    if task == "detect":
        return _vote(_detector_classes(tensors), 80)
    return 0


def _detector_classes(tensors: _Shapes) -> Iterator[int]:
    for level, anchors in enumerate(ANCHORS):
        for out in tensors.axis(rf"detection_head\.levels\.{level}\.pointwise\.convolution\.(weight|bias)", 0):
            yield out // anchors - BOX_NUMBERS - BACKGROUND


def _extra_channels(tensors: _Shapes) -> Iterator[int]:
    for layer, default in enumerate(EXTRA_CHANNELS):
        path = rf"extra_layers\.{layer}\.(pointwise\.)?{OUTPUT}"
        yield _vote(tensors.axis(path, 0), default)


def _level_channels(tensors: _Shapes) -> Iterator[int]:
    for level, default in enumerate(LEVEL_CHANNELS):
        name = rf"detection_head\.levels\.{level}"
        inputs = tensors.axis(rf"{name}\.pointwise\.convolution\.weight", 1)
        yield _vote([*inputs, *tensors.axis(rf"{name}\.(projection|depthwise)\.{OUTPUT}", 0)], default)


def _stage_outputs(tensors: _Shapes) -> list[int]:
    """Channels of the stem and the five stages; 0 where the file does not say."""
    paths = ["conv_stem", r"encoder\.layer\.0\.layer\.\d+\.reduce_1x1", r"encoder\.layer\.1\.layer\.\d+\.reduce_1x1"]
    paths += [rf"encoder\.layer\.{stage}\.(downsampling_layer\.reduce_1x1|conv_projection)" for stage in (2, 3, 4)]
    return [_vote(tensors.axis(rf"{path}\.{OUTPUT}", 0), 0) for path in paths]


def _solve_width(outputs: list[int], attention: list[int]) -> float:
    """The width multiplier under which most of the measured channels follow the rule; of equally good ones the roundest."""

    def agreement(width: float) -> int:
        rule = (*stage_channels(width), *(make_divisible(base * width) for base in BASE_DIMS))
        return sum(a == b for a, b in zip(rule, (*outputs, *attention), strict=True))

    ratios = sorted(channels / base for channels, base in zip(outputs[2:], (128, 256, 384, 512), strict=True))
    middle = (ratios[1] + ratios[2]) / 2
    candidates = [*WIDTHS, *_round_numbers(max(0.85 * middle - 0.1, 0.0), 1.15 * middle + 0.1)]
    return max(candidates, key=agreement)  # max keeps the first of equals


def _round_numbers(low: float, high: float) -> Iterator[float]:
    """Numbers with few decimals first: tenths, twentieths, hundredths, thousandths."""
    for steps in (10, 20, 100, 1000):
        yield from (number / steps for number in range(max(1, int(low * steps)), int(high * steps) + 2))


def _base_dim(dim: int, width: float, default: int) -> int:
    """The attention width at multiplier 1 that gives `dim` at this one; of several the roundest in binary."""
    near = round(dim / width)
    fitting = [base for base in (default, *range(max(1, near - 16), near + 17)) if make_divisible(base * width) == dim]
    return default if default in fitting else max(fitting, key=lambda base: base & -base, default=default)


def _ffn_multiplier(tensors: _Shapes) -> int:
    """The hidden width is cut down to a multiple of 16, which rounding makes up for."""
    shapes = (shape for name, shape in tensors.shapes.items() if name.endswith(".ffn.conv1.convolution.weight") and len(shape) > 1)
    return max(1, _vote((round(shape[0] / max(shape[1], 1)) for shape in shapes), 2))


def _expand_ratio(tensors: _Shapes) -> float:
    pairs = [
        shape[:2] for name, shape in tensors.shapes.items() if name.endswith(".expand_1x1.convolution.weight") and len(shape) > 1
    ]
    candidates = [2.0, *(round(out / max(into, 1), decimals) for decimals in (0, 1, 2) for out, into in pairs)]
    return max(candidates, key=lambda ratio: sum(expanded(into, ratio) == out for out, into in pairs))
