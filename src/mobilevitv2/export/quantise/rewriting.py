"""A float graph as a graph with QuantizeLinear and DequantizeLinear in it, which runtimes turn into integer kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mobilevitv2.export.quantise.arithmetic import Grid, Stored, store_weights
from mobilevitv2.export.quantise.plan import WEIGHTED, Plan
from mobilevitv2.graph.builder import Builder, Node

Array = np.ndarray[Any, Any]


def with_quantised_values(
    builder: Builder, plan: Plan, grids: Mapping[str, Grid], means: Mapping[str, Array] | None = None, *, weight_bits: int = 8
) -> Builder:
    """The graph with uint8 values and int8 weights.

    Args:
        builder: of the float graph; stays as it is.
        plan: what is quantised.
        grids: of every value that `plan.points` names.
        means: of the channels of convolutions' inputs; where given, biases make up for what rounding the weights does to the mean
            of each output channel.
        weight_bits: 8 or 7.
    """
    made = copy.deepcopy(builder)
    nodes, made.nodes = made.nodes, []
    stored: dict[str, str] = {}
    written = {node.outputs[0] for node in nodes if node.name in plan.writers}

    def rounded(value: str) -> str:
        if value not in stored:
            stored[value] = _stored_and_back(made, value, grids[value])
        return stored[value]

    for node in nodes:
        reads = node.name in plan.readers
        made.scope = node.name.rpartition("/")[0]
        inputs = tuple(rounded(value) if value in written or (reads and value in grids) else value for value in node.inputs)
        if reads and node.operator in WEIGHTED and node.inputs[1] in made.tensors:
            grid, mean = grids[node.inputs[0]], (means or {}).get(node.inputs[0])
            inputs = (inputs[0], *_weights_and_bias(made, node, grid if plan.integer_bias else None, mean, weight_bits))
        made.nodes.append(node._replace(inputs=inputs))
    return made


def with_quantised_weights(builder: Builder, chosen: Callable[[Node], bool]) -> Builder:
    """The graph with the weights of the chosen nodes as int8, made float again where the file is loaded: arithmetic stays float."""
    made = copy.deepcopy(builder)
    nodes, made.nodes = made.nodes, []
    for node in nodes:
        made.scope = node.name.rpartition("/")[0]
        inputs = node.inputs
        if node.operator in WEIGHTED and node.inputs[1] in made.tensors and chosen(node):
            stored = store_weights(made.tensors[node.inputs[1]])
            inputs = (inputs[0], _real_weights(made, node.inputs[1], stored), *inputs[2:])
        made.nodes.append(node._replace(inputs=inputs))
    return made


def _stored_and_back(made: Builder, value: str, grid: Grid) -> str:
    scale, zero = made.constant(grid.scale), made.constant(grid.zero, "uint8")
    return made.add("DequantizeLinear", made.add("QuantizeLinear", value, scale, zero), scale, zero)


def _real_weights(made: Builder, name: str, stored: Stored) -> str:
    """The weights as a product of int8 numbers and scales.

    ONNX Runtime folds Cast and Mul when a session is made, where DequantizeLinear would be run with every picture; OpenVINO takes
    either for quantised weights, and this one is fewer operators.
    """
    made.tensors[name] = stored.values
    shape = (-1,) + (1,) * (stored.values.ndim - 1)
    return made.add("Mul", made.cast(name, "float32"), made.weight(f"{name}.scale", stored.scales.reshape(shape)))


def _weights_and_bias(made: Builder, node: Node, grid: Grid | None, mean: Array | None, bits: int) -> tuple[str, ...]:
    name, bias_name = node.inputs[1:3]
    weight, bias = made.tensors[name], made.tensors[bias_name].astype(np.float64)
    stored = store_weights(weight, bits=bits)
    if mean is not None:
        bias = bias + _shift(weight, stored, mean)
    if grid is None:
        made.tensors[bias_name] = bias.astype(np.float32)
        return _real_weights(made, name, stored), bias_name
    zeros = made.constant(np.zeros(len(weight)), "int8")
    scales = made.weight(f"{name}.scale", stored.scales)
    made.tensors[name] = stored.values
    real = made.add("DequantizeLinear", name, scales, zeros, axis=0)
    steps = stored.scales.astype(np.float64) * grid.scale
    whole = np.clip(np.rint(bias / steps), -(2**31), 2**31 - 1).astype(np.int32)
    bias_scale = made.weight(f"{bias_name}.scale", steps.astype(np.float32))
    none = made.constant(np.zeros(len(weight)), "int32")
    made.tensors[bias_name] = whole
    return real, made.add("DequantizeLinear", bias_name, bias_scale, none, axis=0)


def _shift(weight: Array, stored: Stored, mean: Array) -> Array:
    """What the rounding of weights takes from the mean of each output channel, borders aside."""
    lost = (weight.astype(np.float64) - stored.real).reshape(len(weight), weight.shape[1], -1).sum(axis=2)  # (out, in / groups)
    groups = len(mean) // weight.shape[1]
    by_group = mean.reshape(groups, 1, weight.shape[1])
    shift: Array = (lost.reshape(groups, -1, weight.shape[1]) * by_group).sum(axis=2).reshape(-1)
    return shift
