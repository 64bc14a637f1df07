"""What of a .tflite model is quantised, and what stays float: the lists of `plan`, for XNNPACK's integer kernels.

Those read and write integers, as ONNX Runtime's do, so everything between two convolutions is integer too where it can be: SiLU,
the additions of inverted residuals, and what only moves values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
MOVES = ("RESHAPE", "TRANSPOSE", "PAD")
"""They only move values: integer where their neighbours are."""
POOLING_MATRICES = "PoolingByMatrix"
"""Name of the module whose linear layers pool and spread: their weights are means, not learned."""


class Graph:
    """A model's operators, with who makes and who reads each tensor.

    Attributes:
        model: LiteRT's object form (ModelT).
        operators: of its only graph, in order.
    """

    def __init__(self, model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.model = model
        self.operators: list[Any] = model.subgraphs[0].operators
        self.tensors: list[Any] = model.subgraphs[0].tensors
        names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        codes = [names[max(each.builtinCode, each.deprecatedBuiltinCode)] for each in model.operatorCodes]
        self.kinds = [codes[each.opcodeIndex] for each in self.operators]
        self.makers = {int(each.outputs[0]): index for index, each in enumerate(self.operators)}
        self._readers: dict[int, list[int]] = {}
        for index, each in enumerate(self.operators):
            for tensor in each.inputs:
                self._readers.setdefault(int(tensor), []).append(index)

    def inputs(self, index: int) -> list[int]:
        """Tensors that the operator reads and another one makes, or the model's input."""
        return [int(each) for each in self.operators[index].inputs if each >= 0 and self.values(int(each)) is None]

    def output(self, index: int) -> int:
        """The operator's first output."""
        return int(self.operators[index].outputs[0])

    def sources(self, index: int) -> list[int]:
        """Operators that make what this one reads."""
        return [self.makers[each] for each in self.inputs(index) if each in self.makers]

    def readers(self, index: int) -> list[int]:
        """Operators that read what this one makes."""
        return self._readers.get(self.output(index), [])

    def name(self, index: int) -> str:
        """Of the operator's output, which tells of the module it came from."""
        return str(self.tensors[self.output(index)].name.decode())

    def rank(self, index: int) -> int:
        """Axes of the operator's output."""
        return len(self.tensors[self.output(index)].shape)

    def values(self, tensor: int) -> np.ndarray[Any, Any] | None:
        """The bytes of a constant; None for what is calculated."""
        found: np.ndarray[Any, Any] | None = self.model.buffers[self.tensors[tensor].buffer].data
        return found


def integer_operators(graph: Graph) -> set[int]:
    """Indices of the operators that read and write integers."""
    followed = _followed(graph)
    kept = {
        index for index, kind in enumerate(graph.kinds) if kind in WEIGHTED and index in followed and not _stays_float(graph, index)
    }
    for index, kind in enumerate(graph.kinds):
        gate = kind == "LOGISTIC" and any(graph.kinds[each] == "MUL" for each in graph.readers(index))
        gated = kind == "MUL" and any(graph.kinds[each] == "LOGISTIC" for each in graph.sources(index))
        if gate or gated or _joins_maps(graph, index):
            kept.add(index)
    return kept | _moves_between(graph, kept)


def _followed(graph: Graph) -> set[int]:
    """Operators that another one with weights comes behind: the last answers leave the network, and stay float."""
    found: set[int] = set()
    waiting = [source for index, kind in enumerate(graph.kinds) if kind in WEIGHTED for source in graph.sources(index)]
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += graph.sources(index)
    return found


def _stays_float(graph: Graph, index: int) -> bool:
    """The key of attention (one vector for each pixel of a patch: it reads the sums over tokens), and pooling by matrices."""
    of_sums = any(graph.kinds[each] == "BATCH_MATMUL" for each in graph.sources(index))
    return of_sums or (graph.kinds[index] == "FULLY_CONNECTED" and POOLING_MATRICES in graph.name(index).rpartition("/")[2])


def _joins_maps(graph: Graph, index: int) -> bool:
    """An addition of an inverted residual, or the concatenation of a head's branches: of maps, outside transformers."""
    if graph.kinds[index] not in ("ADD", "CONCATENATION") or graph.rank(index) != 4 or "TokenNorm" in graph.name(index):
        return False
    return len(graph.inputs(index)) > 1 and all(graph.kinds[each] in (*WEIGHTED, "MUL", "ADD") for each in graph.sources(index))


def _moves_between(graph: Graph, integer: Iterable[int]) -> set[int]:
    """What only moves values and has integers behind it, or before it and further moves behind."""
    kept, added = set(integer), True
    moves = {index for index, kind in enumerate(graph.kinds) if kind in MOVES}
    while added:
        added = False
        for index in moves - kept:
            behind, before = graph.readers(index), graph.sources(index)
            into = bool(behind) and all(each in kept for each in behind)
            onward = any(each in kept for each in before) and any(each in moves or each in kept for each in behind)
            if into or onward:
                kept.add(index)
                added = True
    return kept & moves
