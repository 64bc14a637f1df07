"""What is quantised for which runtime, and what stays float: lists found by `benchmarks/quantisation_sensitivity.py`.

ONNX Runtime's integer kernels read and write integers: everything between two convolutions has to be integer too, or be paid with
conversions. OpenVINO's convolutions add, activate and store in one step, with the sums in float: there it is enough to say what a
convolution reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mobilevitv2.graph.builder import Builder, Node

Dialect = Literal["onnxruntime", "openvino"]
DIALECTS: tuple[Dialect, ...] = ("onnxruntime", "openvino")
WEIGHTED = ("Conv", "Gemm")

FLOAT_OPERATORS = {
    "Softmax": "attention scores: a few numbers between 0 and 1 of which most are tiny",
    "ReduceSum": "context vectors: sums over all tokens",
    "ReduceMean": "global averages, and moments of norms",
    "InstanceNormalization": "statistics of a whole map",
    "Gemm": "the classifier's matrix: a thousandth of the time",
    "Resize": "interpolation of masks",
    "Exp": "sizes of boxes",
}
"""Operators that are never integer, with the reason. Whatever is not a convolution, an addition of maps, a concatenation before
one, or (ONNX Runtime) a SiLU stays float as well."""

FLOAT_PARTS = {
    "attention.key": "one vector for each picture: no time to win, and its error reaches every token",
}
"""Convolutions that stay float, by the end of their name, with the reason."""

SILU: dict[Dialect, tuple[str, ...]] = {"onnxruntime": (), "openvino": ("hardswish", "gelu")}
"""What may stand for SiLU, cheapest first (`mobilevitv2.export.quantise.silu`)."""
NEAREST_FOR = "detect"
"""The task for which only the nearest of them is taken: with a hard swish, boxes lose more than a point (docs/quantisation.md)."""


@dataclass(frozen=True)
class Plan:
    """What is quantised.

    Attributes:
        readers: names of nodes that read their inputs as uint8.
        writers: names of nodes whose output is stored as uint8, for all who read it.
        integer_bias: biases as int32 on the grid of the sums, which ONNX Runtime's kernels want; float otherwise.
    """

    readers: frozenset[str]
    writers: frozenset[str]
    integer_bias: bool

    def points(self, builder: Builder) -> list[str]:
        """The values that need a grid, in the order in which they are used."""
        found: dict[str, None] = {}
        for node in builder.nodes:
            if node.name in self.readers:
                found.update((value, None) for value in node.inputs if value and value not in builder.tensors)
            if node.name in self.writers:
                found[node.outputs[0]] = None
        return list(found)


def part_of(node: Node) -> str:
    """The part of the model whose weights the node has: "mobilevitv2.encoder.layer.2.transformer.layer.0.attention.key"."""
    return node.inputs[1].removesuffix(".weight") if node.operator in WEIGHTED else node.name.rpartition("/")[0]


def make_plan(builder: Builder, dialect: Dialect, *, float_parts: Iterable[str] = FLOAT_PARTS) -> Plan:
    """The plan for a runtime.

    Args:
        builder: of the float graph.
        dialect: of the runtime.
        float_parts: ends of names of convolutions that stay float.
    """
    kept = tuple(float_parts)
    convolutions = [node for node in builder.nodes if node.operator == "Conv" and not part_of(node).endswith(kept)]
    joints = [node for node in builder.nodes if _joins_maps(builder, node)]
    last = _before_outputs(builder)
    integer = [node for node in convolutions if node.name not in last]
    if dialect == "openvino":
        return Plan(_names([*integer, *joints]), frozenset(), integer_bias=False)
    gates = [node for node in builder.nodes if _is_silu(builder, node)]
    rectified = _rectified(builder, integer)
    writers = [*(rectified.get(node.name, node) for node in integer), *gates, *joints]
    return Plan(_names([*integer, *gates, *joints]), _names(writers), integer_bias=True)


def silu_functions(dialect: Dialect, task: str) -> tuple[str, ...]:
    """What may stand for SiLU in a file for this runtime; nothing: SiLU stays what it is."""
    return SILU[dialect][-1:] if task == NEAREST_FOR else SILU[dialect]


def _names(nodes: Iterable[Node]) -> frozenset[str]:
    return frozenset(node.name for node in nodes)


def _joins_maps(builder: Builder, node: Node) -> bool:
    """An addition of an inverted residual, or the concatenation of a head's branches (both of maps, outside transformers)."""
    inside = ".transformer." in node.name or "layernorm" in node.name
    if node.operator == "Add" and node.name.startswith("mobilevitv2.encoder.") and not inside:
        return not any(value in builder.tensors for value in node.inputs)
    return node.operator == "Concat" and node.name.startswith("segmentation_head.")


def _is_silu(builder: Builder, node: Node) -> bool:
    gates = {each.outputs[0]: each.inputs[0] for each in builder.nodes if each.operator == "Sigmoid"}
    if node.operator == "Sigmoid":
        return any(each.operator == "Mul" and node.outputs[0] in each.inputs for each in builder.nodes)
    return node.operator == "Mul" and len(node.inputs) == 2 and gates.get(node.inputs[1]) == node.inputs[0]


def _rectified(builder: Builder, convolutions: Iterable[Node]) -> dict[str, Node]:
    """Name of a convolution that only a ReLU reads -> that ReLU: the two are one kernel, and its output is what is stored."""
    readers: dict[str, list[Node]] = {}
    for node in builder.nodes:
        for value in node.inputs:
            readers.setdefault(value, []).append(node)
    found = {}
    for node in convolutions:
        after = readers.get(node.outputs[0], [])
        if len(after) == 1 and after[0].operator == "Relu":
            found[node.name] = after[0]
    return found


def _before_outputs(builder: Builder) -> frozenset[str]:
    """Names of convolutions that no other convolution follows: their answers leave the network, and stay float.

    A detector's last convolutions lose more than any other part of its heads, and nothing behind them evens it out.
    """
    makers = {output: node for node in builder.nodes for output in node.outputs}
    followed: set[str] = set()
    for node in builder.nodes:
        if node.operator not in WEIGHTED:
            continue
        waiting = [node.inputs[0]]
        while waiting:
            maker = makers.get(waiting.pop())
            if maker is not None and maker.name not in followed:
                followed.add(maker.name)
                waiting += maker.inputs
    return frozenset(node.name for node in builder.nodes if node.operator == "Conv" and node.name not in followed)
