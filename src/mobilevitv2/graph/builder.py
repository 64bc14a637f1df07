"""Nodes and constants of a graph, with names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mobilevitv2.graph import protobuf

Array = np.ndarray[Any, Any]
OPSET = 18


class Node(NamedTuple):
    """One operator."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, protobuf.Attribute]


class Builder:
    """Collects the nodes of a graph in the order in which they run.

    `scope` stands before the names of nodes, so that a reader of the graph, or a list of operators to keep in float, can tell where
    a node belongs: "encoder.layer.2.transformer.layer.0.attention/Softmax". `tensors` are the constants by name.
    """

    def __init__(self) -> None:
        self.scope = ""
        self.nodes: list[Node] = []
        self.tensors: dict[str, Array] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._taken: Counter[str] = Counter()
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._output_names: dict[str, str] = {}

    def add(self, operator: str, *inputs: str, outputs: Sequence[str] | None = None, **attributes: protobuf.Attribute) -> str:
        """One node; the name of its first output."""
        name = self._fresh(f"{self.scope}/{operator}" if self.scope else operator)
        given = tuple(outputs) if outputs else (f"{name}:0",)
        self.nodes.append(Node(operator, name, inputs, given, attributes))
        return given[0]

    def weight(self, name: str, value: Array) -> str:
        """A tensor of the model, under its own name."""
        name = self._fresh(name)
        self.tensors[name] = value
        return name

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """A small constant; equal ones are kept once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight("constant", array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant of shape (n,), int64."""
        return self.constant(values, "int64")

    def cast(self, x: str, dtype: str) -> str:
        """`x` as another type."""
        return self.add("Cast", x, to=protobuf.ELEMENT_TYPES[dtype])

    def input(self, name: str, dtype: str, shape: Sequence[int | str], meaning: str) -> str:
        """An input of the graph; words are free axes."""
        self._inputs.append(protobuf.value_info(name, dtype, shape, meaning))
        self._taken[name] += 1
        return name

    def output(self, value: str, name: str, dtype: str, shape: Sequence[int | str], meaning: str) -> None:
        """An output of the graph: the value of a node, which takes this name."""
        if value in self._output_names:
            value = self.add("Identity", value)
        self._output_names[value] = name
        self._outputs.append(protobuf.value_info(name, dtype, shape, meaning))

    def reduced_to(self, values: Mapping[str, str]) -> Builder:
        """A graph of what these values need and no more, which gives them under new names; tensors are shared."""
        made = Builder()
        made._inputs, made._taken = list(self._inputs), Counter(self._taken)
        needed = set(values)
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                made.nodes.append(node)
        made.nodes.reverse()
        made.tensors = {name: tensor for name, tensor in self.tensors.items() if name in needed}
        for value, name in values.items():
            made.output(made.add("Identity", value), name, "float32", (), "")
        return made

    def to_bytes(self, *, producer: str, version: str, metadata: Mapping[str, str]) -> bytes:
        """The file."""
        renamed = self._output_names
        nodes = (
            protobuf.node(
                node.operator,
                node.name,
                [renamed.get(each, each) for each in node.inputs],
                [renamed.get(each, each) for each in node.outputs],
                node.attributes,
            )
            for node in self.nodes
        )
        graph = b"".join(
            (
                *(protobuf.content(1, node) for node in nodes),
                protobuf.content(2, "mobilevitv2"),
                *(protobuf.content(5, protobuf.tensor(name, value)) for name, value in self.tensors.items()),
                *(protobuf.content(11, each) for each in self._inputs),
                *(protobuf.content(12, each) for each in self._outputs),
            )
        )
        return protobuf.model(graph, opset=OPSET, producer=producer, version=version, metadata=metadata)

    def _fresh(self, name: str) -> str:
        self._taken[name] += 1
        count = self._taken[name]
        return name if count == 1 else self._fresh(f"{name}_{count - 1}")
