"""A .tflite model with 8-bit weights, and with pictures also 8-bit values; ai-edge-quantizer writes it, the choices are ours.

That library takes ranges by the names of tensors and what is quantised by patterns of names; so every tensor gets a name that says
both, and its own back at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mobilevitv2.export.quantise.arithmetic import LEVELS, WEIGHT_LIMITS, best_grid, store_weights
from mobilevitv2.export.quantise.litert_plan import WEIGHTED, Graph, integer_operators
from mobilevitv2.export.quantise.observing import Observed

Array = np.ndarray[Any, Any]
INTEGER, FLOAT = "integer", "float"
BITS = 8


@dataclass(frozen=True)
class QuantisedModel:
    """The file's content, and what was done.

    Attributes:
        content: the bytes.
        ranges: how many values got one.
        integer: operators with weights that read integers, and all of them.
    """

    content: bytes
    ranges: int
    integer: tuple[int, int]


def quantised_model(content: bytes, images: Iterable[Array] | None, *, threads: int | None = None) -> QuantisedModel:
    """The model with 8-bit weights, and, where inputs are given, 8-bit values.

    Args:
        content: of a float .tflite file.
        images: inputs of the file, one picture each; None for weights alone.
        threads: for the runs that measure ranges.
    """
    from ai_edge_litert.tools import flatbuffer_utils
    from ai_edge_quantizer import qtyping, quantizer

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = Graph(model)
    chosen = integer_operators(graph) if images is not None else {n for n, kind in enumerate(graph.kinds) if kind in WEIGHTED}
    outputs = {graph.output(index) for index in chosen}
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"{INTEGER if index in outputs else FLOAT}/{index}/".encode() + tensor.name
    named = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    work = quantizer.Quantizer(bytearray(named))
    settings: dict[str, Any] = {"regex": f"^{INTEGER}/", "operation_name": qtyping.TFLOperationName.ALL_SUPPORTED}
    ranges = _weights(graph, chosen)
    values = {}
    if images is None:
        work.add_weight_only_config(**settings, num_bits=BITS)
    else:
        work.add_static_config(**settings, activation_num_bits=BITS, weight_num_bits=BITS)
        values = _values(named, graph, chosen, images, threads)
    result = work.quantize({**ranges, **values}, enable_progress_bar=False, enable_progress_report=False)
    return _finished(bytes(result.quantized_model), ranges=len(values))


def _weights(graph: Graph, chosen: Iterable[int]) -> dict[str, dict[str, Array]]:
    """For the weights of the chosen operators the range of each output channel, in the shape that the library has it."""
    found = {}
    for index in chosen:
        if graph.kinds[index] not in WEIGHTED:
            continue
        tensor = graph.tensors[int(graph.operators[index].inputs[1])]
        weight = np.frombuffer(graph.model.buffers[tensor.buffer].data, np.float32).reshape(tensor.shape)
        axis = weight.ndim - 1 if graph.kinds[index] == "DEPTHWISE_CONV_2D" else 0
        shape = [1] * weight.ndim
        shape[axis] = weight.shape[axis]
        limits = WEIGHT_LIMITS[BITS] * store_weights(np.moveaxis(weight, axis, 0)).scales.reshape(shape)
        found[tensor.name.decode()] = {"min": -limits, "max": limits}
    return found


def _values(
    content: bytes, graph: Graph, chosen: Iterable[int], images: Iterable[Array], threads: int | None
) -> dict[str, dict[str, Array]]:
    """For what the chosen operators read and write the range with the least squared error."""
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that all tensors are kept is meant here
        interpreter = Interpreter(model_content=content, num_threads=threads, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    points = {each for index in chosen for each in (*graph.inputs(index), graph.output(index))}
    found = {point: Observed() for point in sorted(points)}
    generator = np.random.default_rng(0)
    entry = interpreter.get_input_details()[0]["index"]
    for image in images:
        interpreter.set_tensor(entry, image)
        interpreter.invoke()
        for point, observed in found.items():
            observed.add(np.atleast_2d(interpreter.get_tensor(point)), generator)
    ranges = {}
    for point, observed in found.items():
        grid = best_grid(min(observed.lows), max(observed.highs), observed.sample)
        shape = (1,) * len(graph.tensors[point].shape)
        low, high = -grid.zero * grid.scale, (LEVELS - grid.zero) * grid.scale
        limits = {"min": np.full(shape, low, np.float32), "max": np.full(shape, high, np.float32)}
        ranges[graph.tensors[point].name.decode()] = limits
    return ranges


def _finished(content: bytes, *, ranges: int) -> QuantisedModel:
    """With the tensors' own names again."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    graph = Graph(model)
    for tensor in graph.tensors:
        kind, _, rest = tensor.name.decode().partition("/")
        if kind in (INTEGER, FLOAT):
            tensor.name = rest.partition("/")[2].encode()
    weighted = [index for index, kind in enumerate(graph.kinds) if kind in WEIGHTED]
    integer = sum(graph.tensors[int(graph.operators[each].inputs[0])].type == schema.TensorType.INT8 for each in weighted)
    return QuantisedModel(bytes(flatbuffer_utils.convert_object_to_bytearray(model)), ranges, (integer, len(weighted)))
