"""SiLU as functions that cost less: OpenVINO's integer files spend a third of their time on its exponential and division.

x sigmoid(x) is nearly gelu(c x) / c for c about 0.6, a polynomial there (.025 to .040 apart at most), and roughly
hardswish(c x) / c for c about 1.15, two comparisons (.18 apart at most, at 3 / c). c is fitted to each place's values and goes
into the convolution before it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mobilevitv2.graph.builder import Builder, Node

Array = np.ndarray[Any, Any]
CANDIDATES = {"hardswish": np.linspace(0.90, 1.30, 41), "gelu": np.linspace(0.50, 0.70, 21)}
"""Values of c, by function; the cheapest function first."""
LIMITS = {"hardswish": 0.07, "gelu": math.inf}
"""The largest error, as a share of the spread of x sigmoid(x), with which a function is taken. Wide maps have .05 to .06 with the
hard swish; in the feed-forward networks of transformers, where most values are negative, it has .08 to .25."""
LEAST_SHARE = 0.04
"""Of all values that SiLUs take for a picture: with less at one place there is no time to win."""
FOR_FORMS = 16
"""Pictures to fit on."""
_POINTS = np.linspace(-6, 6, 6001)
_ERF = np.array([math.erf(point) for point in _POINTS])


class Form(NamedTuple):
    """function(factor * x) / factor."""

    function: str
    factor: float


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


def fitted_forms(places: Mapping[str, tuple[Array, int]], functions: Sequence[str] = tuple(CANDIDATES)) -> dict[str, Form]:
    """For each place the first of the functions that is near enough, with the c of the least squared error.

    Small maps, where there is no time to win, take the last function, the nearest one.

    Args:
        places: a sample of x and the number of its values for a picture, by name.
        functions: of `CANDIDATES`, in that order.
    """
    least = LEAST_SHARE * sum(size for _, size in places.values())
    return {name: _fitted(sample, functions if size >= least else functions[-1:]) for name, (sample, size) in places.items()}


def _fitted(sample: Array, functions: Sequence[str]) -> Form:
    x = sample.astype(np.float64)
    truth = x / (1 + np.exp(-np.clip(x, -500, 500)))
    for function in functions:
        factors = CANDIDATES[function]
        errors = [float(np.square(_value(function, c * x) / c - truth).mean()) for c in factors]
        best = int(np.argmin(errors))
        if math.sqrt(errors[best]) <= LIMITS[function] * truth.std():
            break
    return Form(function, float(factors[best]))


def _value(function: str, x: Array) -> Array:
    value: Array = (
        x * np.clip(x / 6 + 0.5, 0, 1) if function == "hardswish" else 0.5 * x * (1 + np.interp(x / math.sqrt(2), _POINTS, _ERF))
    )
    return value


def with_forms(builder: Builder, forms: Mapping[str, Form]) -> Builder:
    """The graph with other functions in the place of SiLU.

    Args:
        builder: of the float graph; stays as it is.
        forms: for inputs of SiLU, by name, as `silu_inputs` names them.
    """
    made = copy.deepcopy(builder)
    places = silu_inputs(made)
    products = {node.name: value for value, node in places.items() if value in forms}
    gates = {node.inputs[1] for node in places.values() if node.inputs[0] in forms}
    makers = {node.outputs[0]: node for node in made.nodes}
    nodes, made.nodes = made.nodes, []
    for node in nodes:
        if node.outputs[0] in gates:
            continue
        if node.name not in products:
            made.nodes.append(node)
            continue
        value = products[node.name]
        function, factor = forms[value]
        for name in makers[value].inputs[1:3]:
            made.tensors[name] = (made.tensors[name] * factor).astype(np.float32)
        made.scope = node.name.rpartition("/")[0]
        changed = made.add("HardSwish", value) if function == "hardswish" else _plain_gelu(made, value)
        made.nodes.append(Node("Mul", node.name, (changed, made.constant(1 / factor)), node.outputs, {}))
    return made


def _plain_gelu(made: Builder, x: str) -> str:
    erf = made.add("Erf", made.add("Mul", x, made.constant(math.sqrt(0.5))))
    return made.add("Mul", made.add("Mul", x, made.add("Add", erf, made.constant(1.0))), made.constant(0.5))
