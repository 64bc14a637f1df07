"""From the description of a model and its tensors to the bytes of an ONNX file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mobilevitv2.errors import WeightsMismatch
from mobilevitv2.graph import heads
from mobilevitv2.graph.builder import Builder, Node
from mobilevitv2.graph.network import Map, Network, Stage, Trunk
from mobilevitv2.graph.weights import Weights, scoped
from mobilevitv2.runtime.metadata import METADATA_KEY, Metadata, PictureContract

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """What is to be built.

    Attributes:
        metadata: task, input contract, precision, outputs; goes into the file.
        trunk: options of the trunk.
        segmentation, detection: of the head, for these tasks.
        suppression: for a detector, put suppression inside.
        stages: give the stem, the stages and the head's raw answers instead, to find where a file departs.
        norms: "instance" or "moments"; see `Network`.
        merged: let convolutions with nothing between them become one where that costs less.
    """

    metadata: Metadata
    trunk: Trunk
    segmentation: heads.SegmentationOptions | None = None
    detection: heads.DetectionOptions | None = None
    suppression: heads.SuppressionOptions | None = None
    stages: bool = False
    norms: str = "instance"
    merged: bool = False


@dataclass(frozen=True)
class Graph:
    """A finished file, and what is in it.

    Attributes:
        content: the bytes.
        operators: how many of each kind.
        nodes: in the order in which they run; names begin with the part of the model that the node belongs to.
        builder: that made it; whoever rewrites the graph starts from it.
    """

    content: bytes
    operators: Mapping[str, int]
    nodes: Sequence[Node] = field(repr=False)
    builder: Builder = field(repr=False)


def build_graph(spec: GraphSpec, tensors: Mapping[str, Array], *, version: str) -> Graph:
    """The graph of a model.

    Args:
        spec: what is to be built.
        tensors: by this package's names, floats of any precision.
        version: of the package, for the file.

    Raises:
        WeightsMismatch: tensors that are missing, or that the graph has no place for.
        ConfigurationError: an option that has no graph.
    """
    builder, weights = Builder(), Weights(tensors)
    network = Network(builder, weights, spec.trunk, half=spec.metadata.precision == "fp16", norms=spec.norms)
    port = spec.metadata.inputs[0]
    image = builder.input(port.name, port.dtype, port.shape, port.meaning)
    pixels = _prepared(network, image, spec.metadata)
    if spec.stages:
        _staged(network, pixels, spec)
    else:
        values = _answers(network, pixels, spec)
        for output in spec.metadata.outputs:
            builder.output(values[output.name], output.name, output.dtype, output.shape, output.meaning)
    if weights.left:
        some = ", ".join(weights.left[:3])
        raise WeightsMismatch(f"the graph has no place for {len(weights.left)} tensors ({some}); check the configuration.")
    content = builder.to_bytes(producer="mobilevitv2", version=version, metadata={METADATA_KEY: spec.metadata.to_json()})
    return Graph(content, Counter(node.operator for node in builder.nodes), builder.nodes, builder)


def _staged(network: Network, pixels: Map, spec: GraphSpec) -> None:
    """The stem, the stages and the head's raw answers as outputs."""
    maps = network.features(pixels)
    names = ("stem", *(f"stage{number}" for number in range(1, 6)))
    staged = {name: network.wide(each.value) for name, each in zip(names, maps, strict=True)}
    for name, value in {**staged, **_head(network, maps, spec)}.items():
        network.builder.output(value, name, "float32", _free_shape(name), "for comparison")


def _free_shape(name: str) -> tuple[str, ...]:
    axes = {"logits": 2}.get(name, 4)
    return tuple(f"{name}_{axis}" for axis in range(axes))


def _prepared(network: Network, image: str, metadata: Metadata) -> Map:
    """The input as the trunk takes it: (B, 3, H, W) in the graph's dtype."""
    picture, builder = metadata.picture, network.builder
    height, width = (
        None if name in metadata.dynamic else side for name, side in (("height", picture.height), ("width", picture.width))
    )
    with scoped(builder, "preprocessing"):
        value = image
        if picture.inside:
            value = builder.add("Transpose", builder.cast(value, "float32"), perm=[0, 3, 1, 2])
            value = _scaled(network, value, picture)
        elif metadata.layout == "NHWC":
            value = builder.add("Transpose", value, perm=[0, 3, 1, 2])
        return Map(network.narrow(value), 3, height, width)


def _scaled(network: Network, value: str, picture: PictureContract) -> str:
    add, constant = network.builder.add, network.builder.constant
    if picture.channel_order == "BGR":
        value = add("Gather", value, network.builder.ints(2, 1, 0), axis=1)
    value = add("Mul", value, constant(picture.scale))
    if picture.mean is not None:
        value = add("Sub", value, constant(np.reshape(picture.mean, (1, -1, 1, 1))))
    if picture.std is not None:
        value = add("Div", value, constant(np.reshape(picture.std, (1, -1, 1, 1))))
    return value


def _answers(network: Network, pixels: Map, spec: GraphSpec) -> dict[str, str]:
    """What the file answers, by name."""
    metadata, add = spec.metadata, network.builder.add
    raw = metadata.postprocessing == "none"
    if metadata.task == "classify":
        last = network.until_pooling(pixels) if spec.merged else Stage(network.features(pixels)[-1], None, "")
        logits = heads.classifier(network, last)
        if raw:
            return {"logits": logits}
        softmax = metadata.postprocessing == "softmax"
        return {"probabilities": add("Softmax", logits, axis=-1) if softmax else add("Sigmoid", logits)}
    maps = network.features(pixels, wanted=_wanted(spec))
    if metadata.task == "segment":
        assert spec.segmentation is not None
        scores = heads.segmenter(network, maps[-1], spec.segmentation)
        return {"logits": scores.value} if raw else {"mask": heads.class_map(network, scores, pixels.value, pixels.fixed)}
    assert spec.detection is not None
    class_scores, boxes = heads.detector(network, maps[1:], spec.detection)
    if spec.suppression is None:
        return {"scores": class_scores, "boxes": boxes}
    return heads.suppressed(network, class_scores, boxes, len(metadata.labels), spec.suppression)


def _wanted(spec: GraphSpec) -> tuple[int, ...]:
    """The stages whose outputs the head takes."""
    every = (1, 2, 3, 4, 5)
    if not spec.merged:
        return every
    if spec.detection is None:
        return (5,)
    strides = spec.detection.strides
    return tuple(number for number in every if spec.trunk.strides[number] in strides)


def _head(network: Network, maps: list[Map], spec: GraphSpec) -> dict[str, str]:
    """The head's raw answers for the outputs of all stages."""
    if spec.metadata.task == "classify":
        return {"logits": heads.classifier(network, Stage(maps[-1], None, ""))}
    if spec.metadata.task == "segment":
        assert spec.segmentation is not None
        return {"logits": heads.segmenter(network, maps[-1], spec.segmentation).value}
    assert spec.detection is not None
    scores, boxes = heads.detector(network, maps[1:], spec.detection)
    return {"scores": scores, "boxes": boxes}
