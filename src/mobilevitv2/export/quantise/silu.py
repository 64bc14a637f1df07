"""SiLU as a scaled GELU: x sigmoid(x) is nearly gelu(c x) / c for c about 0.6, and c goes into the convolution before it.

OpenVINO's integer convolutions spend half of their time on the exponential and the division of SiLU; its GELU is a polynomial. The
two differ by .025 to .040 at most for c from .56 to .60. c is fitted to each place's values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mobilevitv2.graph.builder import Builder, Node

Array = np.ndarray[Any, Any]
CANDIDATES = np.linspace(0.50, 0.70, 21)
_POINTS = np.linspace(-6, 6, 6001)
_ERF = np.array([math.erf(point) for point in _POINTS])


def silu_inputs(builder: Builder) -> dict[str, Node]:
    """For each SiLU (x times its sigmoid) behind a convolution that nothing else reads: name of x -> the multiplication."""
    makers = {node.outputs[0]: node for node in builder.nodes}
    readers: dict[str, int] = {}
    for node in builder.nodes:
        for value in node.inputs:
            readers[value] = readers.get(value, 0) + 1
    found = {}
    for node in builder.nodes:
        gate = makers.get(node.inputs[1]) if node.operator == "Mul" and len(node.inputs) == 2 else None
        if gate is None or gate.operator != "Sigmoid" or gate.inputs[0] != node.inputs[0]:
            continue
        maker = makers.get(node.inputs[0])
        if maker is not None and maker.operator == "Conv" and readers[node.inputs[0]] == 2 and len(maker.inputs) == 3:
            found[node.inputs[0]] = node
    return found


def fitted_factor(sample: Array) -> float:
    """The c with the least squared error of gelu(c x) / c against x sigmoid(x) on a sample of x."""
    x = sample.astype(np.float64)
    truth = x / (1 + np.exp(-np.clip(x, -500, 500)))
    errors = [float(np.square(_gelu(c * x) / c - truth).mean()) for c in CANDIDATES]
    return float(CANDIDATES[int(np.argmin(errors))])


def _gelu(x: Array) -> Array:
    value: Array = 0.5 * x * (1 + np.interp(x / math.sqrt(2), _POINTS, _ERF))
    return value


def with_gelu(builder: Builder, factors: Mapping[str, float]) -> Builder:
    """The graph with SiLU as GELU.

    Args:
        builder: of the float graph; stays as it is.
        factors: c for inputs of SiLU, by name, as `silu_inputs` names them.
    """
    made = copy.deepcopy(builder)
    products = {node.name: (value, factors[value]) for value, node in silu_inputs(made).items() if value in factors}
    gates = {node.inputs[1] for node in silu_inputs(made).values() if node.inputs[0] in factors}
    makers = {node.outputs[0]: node for node in made.nodes}
    nodes, made.nodes = made.nodes, []
    for node in nodes:
        if node.outputs[0] in gates:
            continue
        if node.name not in products:
            made.nodes.append(node)
            continue
        value, factor = products[node.name]
        for name in makers[value].inputs[1:3]:
            made.tensors[name] = (made.tensors[name] * factor).astype(np.float32)
        made.scope = node.name.rpartition("/")[0]
        made.nodes.append(Node("Mul", node.name, (_plain_gelu(made, value), made.constant(1 / factor)), node.outputs, {}))
    return made


def _plain_gelu(made: Builder, x: str) -> str:
    erf = made.add("Erf", made.add("Mul", x, made.constant(math.sqrt(0.5))))
    return made.add("Mul", made.add("Mul", x, made.add("Add", erf, made.constant(1.0))), made.constant(0.5))
