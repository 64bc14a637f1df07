"""Which parts of a model lose when they are stored with 8 bits: one group of nodes at a time, all others float.

    python benchmarks/quantisation_sensitivity.py --model mobilevitv2-0.75-objects112 --data objects

For each group the error of the raw answers (root of the mean square, as a share of their spread) and the share of equal answers, on
pictures that had no part in the ranges. The groups at the end are those that `mobilevitv2.export.quantise.plan` keeps float.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mobilevitv2.contract import load_model
from mobilevitv2.export.formats import get_format
from mobilevitv2.export.graphs import graph_of
from mobilevitv2.export.metadata import describe, natural_size
from mobilevitv2.export.program import Program, build_program
from mobilevitv2.export.quantise.arithmetic import best_grid
from mobilevitv2.export.quantise.calibration import Calibration, read_calibration
from mobilevitv2.export.quantise.observing import observe
from mobilevitv2.export.quantise.plan import Plan, make_plan, part_of, silu_functions
from mobilevitv2.export.quantise.quantising import with_cheap_silu
from mobilevitv2.export.quantise.rewriting import with_quantised_values, with_quantised_weights
from mobilevitv2.export.quantise.silu import FOR_FORMS
from mobilevitv2.graph.builder import Builder, Node
from mobilevitv2.runtime.preprocessing import as_input
from mobilevitv2.runtime.with_onnxruntime import open_bytes

Array = np.ndarray[Any, Any]
CONVOLUTIONS = (
    "conv_stem", "expand_1x1", "conv_3x3", "reduce_1x1", "conv_kxk", "conv_1x1", "attention.query", "attention.value",
    "attention.out_proj", "ffn.conv1", "ffn.conv2", "conv_projection", "attention.key",
)  # fmt: skip


def program_of(name: str) -> Program:
    model, processor = load_model(name)
    fmt, size = get_format("onnx"), natural_size(model, processor)
    options: dict[str, Any] = {"size": size, "dynamic": ("batch",), "preprocessing": False, "postprocessing": False}
    metadata = describe(model, processor, fmt, precision="fp32", suppression=None, source=name, licence=None, **options)
    return build_program(model, metadata, layout=fmt.layout)


def _ends(node: Node, end: str) -> bool:
    return node.operator == "Conv" and part_of(node).endswith(end)


def groups(builder: Builder) -> Iterator[tuple[str, Plan]]:
    def readers(wanted: Callable[[Node], bool]) -> Plan:
        return Plan(frozenset(node.name for node in builder.nodes if wanted(node)), frozenset(), integer_bias=False)

    def writers(wanted: Callable[[Node], bool]) -> Plan:
        return Plan(frozenset(), frozenset(node.name for node in builder.nodes if wanted(node)), integer_bias=False)

    whole = make_plan(builder, "openvino")
    for end in CONVOLUTIONS[:-1]:
        yield (
            f"{end}: weights and what it reads",
            readers(lambda node, end=end: _ends(node, end)),
        )
    yield "heads: weights and what they read", readers(lambda node: node.operator == "Conv" and "mobilevitv2." not in part_of(node))
    yield "additions of inverted residuals", Plan(
        frozenset(node.name for node in builder.nodes if node.operator in ("Add", "Concat") and node.name in whole.readers),
        frozenset(), integer_bias=False,
    )  # fmt: skip
    yield "SiLU: its sigmoid", writers(lambda node: node.operator == "Sigmoid")
    yield "everything for OpenVINO, SiLU exact", whole
    yield "everything for ONNX Runtime", make_plan(builder, "onnxruntime")
    yield "float: attention.key", readers(lambda node: _ends(node, "attention.key"))
    last = {node.name for node in builder.nodes if node.operator == "Conv" and not _ends(node, "attention.key")} - whole.readers
    yield "float: last convolutions of heads", readers(lambda node: node.name in last)
    yield "float: softmax over tokens", writers(lambda node: node.operator == "Softmax")
    yield "float: sums over tokens", writers(lambda node: node.operator == "ReduceSum")
    yield "float: what norms read", readers(lambda node: node.operator == "Reshape" and "layernorm" in node.name)
    yield "float: residual stream of transformers", writers(lambda node: node.operator == "Add" and ".transformer." in node.name)
    yield "float: averages and the classifier", readers(lambda node: node.operator == "Gemm")


def answers(builder: Builder, inputs: list[Array]) -> Array:
    engine = open_bytes(builder.to_bytes(producer="", version="", metadata={}), where="graph", threads=1)
    return np.concatenate([next(iter(engine.run(image).values())) for image in inputs])


def error(found: Array, truth: Array) -> float:
    return float(np.sqrt(np.square(found - truth).mean()) / truth.std())


def row(name: str, found: Array, truth: Array) -> str:
    axis = 2 if truth.ndim == 3 else 1  # (pictures, anchors, classes) of a detector
    return f"| {name} | {error(found, truth):.4f} | {100 * float((found.argmax(axis) == truth.argmax(axis)).mean()):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilevitv2-0.75-objects112")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pictures", type=int, default=128, help="three quarters for the ranges, one quarter to measure on")
    arguments = parser.parse_args()
    program = program_of(arguments.model)
    contract = program.metadata.picture
    pictures = read_calibration(Calibration(data=arguments.data, pictures=arguments.pictures), contract, task=program.metadata.task)
    ranges, held = (
        [as_input(picture[None], contract, "NCHW") for picture in pixels] for pixels in (pictures.ranges, pictures.held)
    )
    builder = graph_of(program).builder
    truth = answers(builder, held)
    plans = list(groups(builder))
    points = list(dict.fromkeys(point for _, plan in plans for point in plan.points(builder)))
    observed = observe(builder, points, ranges, threads=1)
    grids = {value: best_grid(min(found.lows), max(found.highs), found.sample) for value, found in observed.items()}
    means = {value: found.channel_means for value, found in observed.items()}
    print("| group | error | equal answers, % |\n| --- | --- | --- |")
    print(row("all weights alone", answers(with_quantised_weights(builder, lambda _: True), held), truth), flush=True)
    replaced, _ = with_cheap_silu(builder, ranges[:FOR_FORMS], silu_functions("openvino", program.task))
    print(row("SiLU as in OpenVINO's files, all float", answers(replaced, held), truth), flush=True)
    for name, plan in plans:
        if plan.points(builder):
            print(row(name, answers(with_quantised_values(builder, plan, grids, means), held), truth), flush=True)


if __name__ == "__main__":
    main()
