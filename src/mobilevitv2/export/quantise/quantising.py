"""From a program and pictures to a quantised graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import mobilevitv2
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.graphs import graph_of
from mobilevitv2.export.quantise.arithmetic import best_grid
from mobilevitv2.export.quantise.matching import matched
from mobilevitv2.export.quantise.observing import observe
from mobilevitv2.export.quantise.plan import FLOAT_PARTS, Dialect, make_plan, silu_functions
from mobilevitv2.export.quantise.rewriting import with_quantised_values, with_quantised_weights
from mobilevitv2.export.quantise.silu import CANDIDATES, FOR_FORMS, fitted_forms, silu_inputs, with_forms
from mobilevitv2.runtime.metadata import METADATA_KEY
from mobilevitv2.runtime.preprocessing import as_input
from mobilevitv2.text_table import counted

if TYPE_CHECKING:
    from mobilevitv2.export.program import Program
    from mobilevitv2.graph.builder import Builder

Array = np.ndarray[Any, Any]
NORMS: dict[Dialect, str] = {"onnxruntime": "instance", "openvino": "moments"}


@dataclass(frozen=True)
class QuantisedGraph:
    """A finished file.

    Attributes:
        content: the bytes.
        operators: how many of each kind.
        integer: convolutions that read integers, and all convolutions.
        summary: what was done, for the report.
    """

    content: bytes
    operators: Counter[str]
    integer: tuple[int, int]
    summary: Mapping[str, Any]


def quantised_graph(
    program: Program,
    pixels: Array | None,
    dialect: Dialect,
    *,
    weight_bits: int = 7,
    silu: Sequence[str] | None = None,
    float_parts: Collection[str] = tuple(FLOAT_PARTS),
    threads: int | None = None,
) -> QuantisedGraph:
    """The program with 8-bit weights, and, where pictures are given, 8-bit values.

    Args:
        program: of precision "int8" or "int8-weights"; with a free batch, where other functions stand for SiLU.
        pixels: uint8 (n, height, width, 3), cut as the file's contract says; None for weights alone.
        dialect: of the runtime that is to be fast.
        weight_bits: 8 or 7.
        silu: functions that may stand for SiLU, of "hardswish" and "gelu", in this order; None for those that pay with the runtime.
        float_parts: ends of names of convolutions that stay float.
        threads: for the runs that measure ranges.

    Raises:
        ConfigurationError: another function, or a fixed batch.
        MissingDependency: no runtime to measure ranges with.
    """
    floats = replace(program, metadata=replace(program.metadata, precision="fp32"))
    builder = graph_of(floats, norms=NORMS[dialect], merged=True).builder
    if pixels is None:
        return _finished(
            with_quantised_weights(builder, lambda _: True), program, {"weights": "int8 by channel", "values": "float"}
        )
    functions = silu_functions(dialect, program.task) if silu is None else silu
    _check_silu(program, functions)
    builder, forms = with_cheap_silu(builder, list(_inputs(program, pixels[:FOR_FORMS])), functions, threads=threads)
    plan = make_plan(builder, dialect, float_parts=float_parts)
    observed = observe(builder, plan.points(builder), _inputs(program, pixels), threads=threads)
    grids = {value: best_grid(min(found.lows), max(found.highs), found.sample) for value, found in observed.items()}
    means = {value: found.channel_means for value, found in observed.items()}
    summary = {
        "weights": f"int8 by channel, {weight_bits} bits of it used",
        "values": f"uint8, {len(grids)} ranges from {counted(len(pixels), 'picture')}",
        "silu": ", ".join(f"{count} as {function}" for function, count in forms.items()) or "as it is",
        "float_parts": list(float_parts),
    }
    return _finished(with_quantised_values(builder, plan, grids, means, weight_bits=weight_bits), program, summary)


def _check_silu(program: Program, functions: Sequence[str]) -> None:
    if list(functions) != [name for name in CANDIDATES if name in functions]:
        raise ConfigurationError(f"silu={tuple(functions)}; it is a choice of {', '.join(CANDIDATES)}, in this order, or empty.")
    if functions and "batch" not in program.metadata.dynamic:
        raise ConfigurationError(
            "other functions in the place of SiLU take a program with a free batch; pass silu=() for this one."
        )


def with_cheap_silu(
    builder: Builder, inputs: list[Array], functions: Sequence[str], *, threads: int | None = None
) -> tuple[Builder, Counter[str]]:
    """The graph with other functions for every SiLU behind a convolution, fitted to its values; how many of each."""
    found = list(silu_inputs(builder))
    if not found or not functions:
        return builder, Counter()
    places = observe(builder, found, inputs, threads=threads)
    forms = fitted_forms({value: (found.sample, found.size) for value, found in places.items()}, functions)
    factors = {value: form.factor for value, form in forms.items()}
    made = matched(builder, with_forms(builder, forms), factors, inputs, threads=threads)
    return made, Counter(form.function for form in forms.values())


def _inputs(program: Program, pixels: Array) -> Iterator[Array]:
    for picture in pixels:
        yield as_input(picture[None], program.metadata.picture, "NCHW")


def _finished(builder: Builder, program: Program, summary: Mapping[str, Any]) -> QuantisedGraph:
    content = builder.to_bytes(
        producer="mobilevitv2", version=mobilevitv2.__version__, metadata={METADATA_KEY: program.metadata.to_json()}
    )
    makers = {output: node.operator for node in builder.nodes for output in node.outputs}
    convolutions = [node for node in builder.nodes if node.operator == "Conv"]
    integer = sum(makers.get(node.inputs[0]) == "DequantizeLinear" for node in convolutions)
    operators = Counter(node.operator for node in builder.nodes)
    told = {**summary, "integer_convolutions": integer, "convolutions": len(convolutions)}
    return QuantisedGraph(content, operators, (integer, len(convolutions)), told)
