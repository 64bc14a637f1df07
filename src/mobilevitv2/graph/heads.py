"""The heads of the three tasks as graphs, and what may follow them: softmax, class maps, boxes, suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.graph.network import Map, Network, Stage
from mobilevitv2.graph.weights import Convolution, scoped

Array = np.ndarray[Any, Any]
BOX_NUMBERS = 4


@dataclass(frozen=True)
class SegmentationOptions:
    """Of the segmentation head: "deeplabv3" with its rates, or "pspnet" with its sizes."""

    head: str
    atrous_rates: tuple[int, ...] = ()
    pool_sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class DetectionOptions:
    """Of the detector.

    Attributes:
        strides: of the maps, finest first.
        pooled: the stride that stands for the picture as one pixel.
        cells: for each map the (width, height) of the boxes of a cell, in units of the picture.
        variances: of the box coder.
    """

    strides: tuple[int, ...]
    pooled: int
    cells: tuple[tuple[tuple[float, float], ...], ...]
    variances: tuple[float, float]


@dataclass(frozen=True)
class SuppressionOptions:
    """See `mobilevitv2.export.request.Suppression`."""

    threshold: float
    iou: float
    candidates: int
    detections: int


# ---- classification --------------------------------------------------------------------------------------------------------------


def classifier(network: Network, last: Stage) -> str:
    """The last stage, without its last unit -> logits (B, classes), float32.

    The mean of a linear map is the linear map of the mean, so the unit and the classifier are one matrix behind the mean.
    """
    add, ints, weights = network.builder.add, network.builder.ints, network.weights
    with scoped(network.builder, "classifier"):
        pooled = add("ReduceMean", network.wide(last.x.value), ints(2, 3), keepdims=0)
        matrices = [] if last.last is None else [(last.last.weight[:, :, 0, 0], last.last.bias)]
        if "classifier.weight" in weights:
            matrices.append((weights.get("classifier.weight"), weights.get("classifier.bias")))
        if not matrices:
            return pooled
        (weight, bias), *rest = matrices
        for second, shift in rest:
            weight, bias = second @ weight, second @ bias + shift
        logits = add(
            "Gemm",
            network.narrow(pooled),
            network.tensor("classifier.weight", weight),
            network.tensor("classifier.bias", bias),
            transB=1,
        )
        return network.wide(logits)


# ---- segmentation ----------------------------------------------------------------------------------------------------------------


def segmenter(network: Network, last: Map, options: SegmentationOptions) -> Map:
    """(B, C, H, W) of the last stage -> logits (B, classes, H, W), float32."""
    x = _aspp(network, last, options.atrous_rates) if options.head == "deeplabv3" else _pyramid(network, last, options.pool_sizes)
    logits = network.unit(x, "segmentation_head.classifier")
    return logits._replace(value=network.wide(logits.value))


def _aspp(network: Network, x: Map, rates: tuple[int, ...]) -> Map:
    name = "segmentation_head.aspp"
    branches = [network.unit(x, f"{name}.convs.0", activation="relu")]
    for index, rate in enumerate(rates, 1):
        branches.append(network.unit(x, f"{name}.convs.{index}", dilation=rate, activation="relu"))
    pooling = f"{name}.convs.{len(rates) + 1}"
    with scoped(network.builder, pooling):
        mean = network.narrow(network.builder.add("ReduceMean", network.wide(x.value), network.builder.ints(2, 3), keepdims=1))
    pooled = network.unit(Map(mean, x.channels, 1, 1), f"{pooling}.conv_1x1", activation="relu")
    with scoped(network.builder, pooling):
        like = network.builder.add("Shape", branches[0].value)
        spread = network.builder.add("Expand", pooled.value, like)
    return network.unit(
        _joined(network, [*branches, x._replace(value=spread, channels=pooled.channels)], name),
        f"{name}.project",
        activation="relu",
    )


def _pyramid(network: Network, x: Map, sizes: tuple[int, ...]) -> Map:
    name = "segmentation_head.psp"
    if x.fixed is None:
        raise ConfigurationError("a PSPNet head averages over fixed parts of the map; export it with one size, without --dynamic.")
    maps = [x]
    for index, size in enumerate(sizes):
        with scoped(network.builder, f"{name}.branches.{index}"):
            pooled = _adaptive_mean(network, x, size)
        branch = network.unit(pooled, f"{name}.branches.{index}", activation="relu")
        with scoped(network.builder, f"{name}.branches.{index}"):
            maps.append(network.resize(branch, x.fixed))
    return network.unit(_joined(network, maps, name), f"{name}.fusion", activation="relu")


def _adaptive_mean(network: Network, x: Map, size: int) -> Map:
    """Means over size x size parts that may overlap by a pixel, as torch's adaptive pooling takes them: two matrix products."""
    assert x.fixed is not None
    rows, columns = (_averages(side, size) for side in x.fixed)
    across = network.builder.add("MatMul", x.value, network.tensor("averages", columns.T))
    return Map(network.builder.add("MatMul", network.tensor("averages", rows), across), x.channels, size, size)


def _averages(side: int, parts: int) -> Array:
    """(parts, side): row i averages over the pixels of part i."""
    matrix = np.zeros((parts, side))
    for part in range(parts):
        start, end = part * side // parts, -(-(part + 1) * side // parts)
        matrix[part, start:end] = 1 / (end - start)
    return matrix


def _joined(network: Network, maps: list[Map], name: str) -> Map:
    with scoped(network.builder, name):
        value = network.builder.add("Concat", *(each.value for each in maps), axis=1)
    return maps[0]._replace(value=value, channels=sum(each.channels for each in maps))


def class_map(network: Network, logits: Map, image: str, size: tuple[int, int] | None) -> str:
    """Logits (B, classes, h, w) -> class of each pixel of the input (B, H, W), int32."""
    add, ints = network.builder.add, network.builder.ints
    with scoped(network.builder, "mask"):
        if size is not None:
            sizes = network.sizes_of(logits, size)
        else:
            sides = add("Shape", image, start=2, end=4)
            sizes = add("Concat", add("Shape", logits.value, start=0, end=2), sides, axis=0)
        large = add("Resize", logits.value, "", "", sizes, mode="linear", coordinate_transformation_mode="align_corners")
        _ = ints
        return network.builder.cast(add("ArgMax", large, axis=1, keepdims=0), "int32")


# ---- detection -------------------------------------------------------------------------------------------------------------------


def detector(network: Network, stages: list[Map], options: DetectionOptions) -> tuple[str, str]:
    """The five stages -> class scores (B, A, classes), softmaxed, without background; boxes (B, A, 4), corners; both float32."""
    add, ints = network.builder.add, network.builder.ints
    maps = _detection_maps(network, stages, options)
    answers = [_level(network, x, f"detection_head.levels.{i}", len(options.cells[i])) for i, x in enumerate(maps)]
    with scoped(network.builder, "boxes"):
        joined = network.wide(add("Concat", *answers, axis=1))
        offsets = add("Slice", joined, ints(0), ints(BOX_NUMBERS), ints(2))
        logits = add("Slice", joined, ints(BOX_NUMBERS), ints(2**31 - 1), ints(2))
        scores = add("Slice", add("Softmax", logits, axis=-1), ints(1), ints(2**31 - 1), ints(2))
        anchors = [_anchors(network, x, cells) for x, cells in zip(maps, options.cells, strict=True)]
        all_anchors = add("Concat", *anchors, axis=0)  # (A, 4)
        centres, sizes = (add("Slice", all_anchors, ints(a), ints(b), ints(1)) for a, b in ((0, 2), (2, 4)))
        moved, grown = (add("Slice", offsets, ints(a), ints(b), ints(2)) for a, b in ((0, 2), (2, 4)))
        first, second = (network.builder.constant(value) for value in options.variances)
        centre = add("Add", add("Mul", add("Mul", moved, first), sizes), centres)
        half = add("Mul", add("Mul", add("Exp", add("Mul", grown, second)), sizes), network.builder.constant(0.5))
        boxes = add("Concat", add("Sub", centre, half), add("Add", centre, half), axis=2)
    return scores, boxes


def _detection_maps(network: Network, stages: list[Map], options: DetectionOptions) -> list[Map]:
    known = dict(zip(network.trunk.strides[1:], stages, strict=True))
    maps = [known[stride] for stride in options.strides if stride in known]
    for index, stride in enumerate(each for each in options.strides if each not in known):
        name, x = f"extra_layers.{index}", maps[-1]
        if stride == options.pooled:
            with scoped(network.builder, name):
                wide = network.builder.add("ReduceMean", network.wide(x.value), network.builder.ints(2, 3), keepdims=1)
                mean = network.narrow(wide)
            maps.append(network.unit(Map(mean, x.channels, 1, 1), name, activation="relu"))
        else:
            filtered = network.unit(x, f"{name}.depthwise", stride=2)
            maps.append(network.unit(filtered, f"{name}.pointwise", activation="relu"))
    return maps


def _level(network: Network, x: Map, name: str, anchors: int) -> str:
    """(B, C, H, W) -> (B, H W anchors, 4 + classes)."""
    if f"{name}.projection.convolution.weight" in network.weights:
        x = network.unit(x, f"{name}.projection", activation="relu")
    if f"{name}.depthwise.convolution.weight" in network.weights:
        x = network.unit(x, f"{name}.depthwise")
    x = network.unit(x, f"{name}.pointwise")
    with scoped(network.builder, name):
        last = network.builder.add("Transpose", x.value, perm=[0, 2, 3, 1])
        return network.builder.add("Reshape", last, network.builder.ints(0, -1, x.channels // anchors))


def _anchors(network: Network, x: Map, cells: tuple[tuple[float, float], ...]) -> str:
    """Boxes of a map's cells (H W cells, 4), centred, clamped to the picture."""
    if x.fixed is not None:
        return network.builder.weight("anchors", fixed_anchors(x.fixed, cells))
    add, ints, constant = network.builder.add, network.builder.ints, network.builder.constant
    centres = []
    for axis in (3, 2):  # x along the width, y along the height
        count = add("Shape", x.value, start=axis, end=axis + 1)
        steps = add("Range", constant(0, "int64"), add("Squeeze", count, ints(0)), constant(1, "int64"))
        middle = add("Add", network.builder.cast(steps, "float32"), constant(0.5))
        centres.append(add("Div", middle, network.builder.cast(count, "float32")))
    across = add("Reshape", centres[0], ints(1, -1, 1, 1))
    down = add("Reshape", centres[1], ints(-1, 1, 1, 1))
    shapes = np.minimum(np.asarray(cells, dtype=np.float32), 1.0).reshape(1, 1, len(cells), 2)
    zeros = constant(np.zeros((1, 1, len(cells), 1), np.float32))
    left = add("Add", add("Add", across, add("Mul", down, constant(0.0))), zeros)
    top = add("Add", add("Add", down, add("Mul", across, constant(0.0))), zeros)
    wide = add("Add", add("Mul", add("Concat", left, top, axis=3), constant(0.0)), constant(shapes))
    return add("Reshape", add("Concat", left, top, wide, axis=3), ints(-1, BOX_NUMBERS))


def fixed_anchors(grid: tuple[int, int], cells: tuple[tuple[float, float], ...]) -> Array:
    """`mobilevitv2.anchors.grid_anchors` of one map, in numpy."""
    rows, columns = grid
    boxes = np.empty((rows, columns, len(cells), BOX_NUMBERS), dtype=np.float32)
    boxes[..., 0] = ((np.arange(columns, dtype=np.float32) + 0.5) / columns)[None, :, None]
    boxes[..., 1] = ((np.arange(rows, dtype=np.float32) + 0.5) / rows)[:, None, None]
    boxes[..., 2:] = np.minimum(np.asarray(cells, dtype=np.float32), 1.0)
    return boxes.reshape(-1, BOX_NUMBERS)


def suppressed(network: Network, scores: str, boxes: str, classes: int, options: SuppressionOptions) -> dict[str, str]:
    """The best boxes of each picture: boxes (B, K, 4), scores (B, K), labels (B, K) int64, count (B,) int64; zeros fill up.

    NonMaxSuppression gives rows (picture, class, anchor); their scores are put back into a table that is zero elsewhere, whose K
    largest values are the answer: one form for every batch size.
    """
    add, ints, constant = network.builder.add, network.builder.ints, network.builder.constant
    with scoped(network.builder, "suppression"):
        by_class = add("Transpose", scores, perm=[0, 2, 1])  # (B, classes, A)
        kept = add(
            "NonMaxSuppression",
            boxes,
            by_class,
            constant(options.candidates, "int64"),
            constant(options.iou),
            constant(options.threshold),
        )  # (M, 3)
        table = add("Shape", by_class)
        found = add("GatherND", by_class, kept)
        empty = add("Expand", constant([0.0]), table)
        flat = add("Reshape", add("ScatterND", empty, kept, found), ints(0, -1))  # (B, classes A)
        anchors = add("Shape", boxes, start=1, end=2)
        room = add("Mul", anchors, ints(classes))
        best, place = (f"suppression/best:{index}" for index in range(2))
        add("TopK", flat, add("Min", room, ints(options.detections)), axis=1, outputs=[best, place])
        labels = add("Div", place, anchors)
        anchor = add("Mod", place, anchors)
        rows = add("Expand", add("Unsqueeze", anchor, ints(2)), ints(1, 1, BOX_NUMBERS))
        chosen = add("GatherElements", boxes, rows, axis=1)
        real = add("Greater", best, constant(0.0))
        count = add("ReduceSum", network.builder.cast(real, "int64"), ints(1), keepdims=0)
    return {"boxes": chosen, "scores": best, "labels": labels, "count": count}


__all__ = [
    "Convolution",
    "DetectionOptions",
    "SegmentationOptions",
    "SuppressionOptions",
    "class_map",
    "classifier",
    "detector",
    "fixed_anchors",
    "segmenter",
    "suppressed",
]
