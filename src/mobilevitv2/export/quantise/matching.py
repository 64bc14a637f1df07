"""Convolutions that make up for another function in the place of SiLU: scaled and shifted, each channel comes near what it was.

Matching means alone is arXiv 1906.04721, section 4.2.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mobilevitv2.export.quantise.observing import values_for
from mobilevitv2.graph.builder import Builder, Node

Array = np.ndarray[Any, Any]
MAP_AXES = (0, 2, 3)
CHANGED = "changed/"
SLOPES = (0.5, 2.0)
"""Of lines: a few points, as in 1x1 maps of few pictures, may ask for any."""
LITTLE_VARIANCE = 1e-4
"""Channels that vary no more than this, such as those of 1x1 maps of one picture, are shifted alone: their slope goes to 1."""
FOR_LINES = 8
"""Pictures, of up to 512 x 512: all go through both graphs at once, so that more would take much memory for little."""
MOST_PIXELS = FOR_LINES * 512 * 512


class _Line(NamedTuple):
    """Values of a graph, (1, C, 1, 1): slope and shift."""

    slope: str
    shift: str


def matched(
    builder: Builder, changed: Builder, factors: Mapping[str, float], inputs: Sequence[Array], *, threads: int | None = None
) -> Builder:
    """`changed` with weights and biases of convolutions by which each channel is, by least squares, what it is in `builder`.

    Both run side by side in one graph, where the changed one is put right behind each convolution, so that what follows sees it put
    right already.

    Args:
        builder: the graph as it was, with a free batch.
        changed: a graph with the same convolutions, and other nodes between them; stays as it is.
        factors: what the outputs of convolutions are multiplied with in `changed`, by name; 1 where there is none.
        inputs: of one picture each, all of one size; the first are taken.
        threads: of the runtime.
    """
    together = inputs[: max(1, min(FOR_LINES, MOST_PIXELS // (inputs[0].shape[2] * inputs[0].shape[3])))]
    both, lines = _side_by_side(builder, changed, factors)
    found = values_for(both, [value for line in lines.values() for value in line], threads)(np.concatenate(together))
    made = copy.deepcopy(changed)
    for (weight, bias), line in lines.items():
        slope, shift = (found[value].reshape(-1) for value in line)
        made.tensors[weight] = (made.tensors[weight] * slope[:, None, None, None]).astype(np.float32)
        made.tensors[bias] = (made.tensors[bias] * slope + shift).astype(np.float32)
    return made


def _side_by_side(builder: Builder, changed: Builder, factors: Mapping[str, float]) -> tuple[Builder, dict[tuple[str, str], _Line]]:
    """Both graphs in one, and the line for each weight and bias of `changed`."""
    both = copy.deepcopy(builder)
    both.tensors |= {f"{CHANGED}{name}": tensor for name, tensor in changed.tensors.items()}
    own = {*changed.tensors, *(output for node in changed.nodes for output in node.outputs)}
    lines = {}
    for node in changed.nodes:
        inputs = tuple(f"{CHANGED}{value}" if value in own else value for value in node.inputs)
        outputs = tuple(f"{CHANGED}{value}" for value in node.outputs)
        moved = Node(node.operator, f"{CHANGED}{node.name}", inputs, outputs, node.attributes)
        if node.operator != "Conv" or len(node.inputs) < 3:
            both.nodes.append(moved)
            continue
        both.scope, before = moved.name, f"{outputs[0]}/before"
        both.nodes.append(moved._replace(outputs=(before,)))
        wanted = both.add("Mul", node.outputs[0], both.constant(factors.get(node.outputs[0], 1.0)))
        line = lines[node.inputs[1], node.inputs[2]] = _fitted_line(both, before, wanted)
        both.add("Add", both.add("Mul", before, line.slope), line.shift, outputs=outputs)
    return both, lines


def _fitted_line(both: Builder, x: str, y: str) -> _Line:
    """The line through (x, y) with the least squared error, by channel over all pictures."""
    axes = both.ints(*MAP_AXES)
    means = [both.add("ReduceMean", each, axes) for each in (x, y)]
    apart_x, apart_y = (both.add("Sub", each, mean) for each, mean in zip((x, y), means, strict=True))
    covariance, variance = (both.add("ReduceMean", both.add("Mul", apart_x, each), axes) for each in (apart_y, apart_x))
    little = both.constant(LITTLE_VARIANCE)
    slope = both.add("Div", both.add("Add", covariance, little), both.add("Add", variance, little))
    slope = both.add("Clip", slope, *map(both.constant, SLOPES))
    return _Line(slope, both.add("Sub", means[1], both.add("Mul", slope, means[0])))
