"""What each way of quantising costs, by width: error of the answers, equal answers, and top-1.

    python benchmarks/quantisation.py --data objects --widths RUNS --output quantisation.json
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/quantisation.py --data objects --models 0.75 --label AVX2 --output quantisation.json \
        --methods "int8" "int8, 8-bit weights"

Models are those of export_table.py: the embedded classifier, and folders in RUNS by name. Ranges come from the training split,
answers from the first pictures of an order of the test split that was drawn once. The values of a model are looked at once for
all methods. Rows that the output holds are not measured again. The error is the root mean square of the logits' difference from
float32 over their spread. Times: export_table.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from export_samples import Sample, read_sample
from export_table import source

from mobilevitv2.contract import load_model
from mobilevitv2.export.formats import get_format
from mobilevitv2.export.graphs import graph_of
from mobilevitv2.export.metadata import describe
from mobilevitv2.export.program import build_program
from mobilevitv2.export.quantise.arithmetic import Grid, best_grid, grid_over
from mobilevitv2.export.quantise.calibration import Calibration, read_calibration
from mobilevitv2.export.quantise.observing import Observed, observe
from mobilevitv2.export.quantise.plan import SILU, Dialect, Plan, make_plan
from mobilevitv2.export.quantise.quantising import NORMS, with_cheap_silu
from mobilevitv2.export.quantise.rewriting import with_quantised_values, with_quantised_weights
from mobilevitv2.export.quantise.silu import FOR_FORMS
from mobilevitv2.graph.builder import Builder
from mobilevitv2.runtime.preprocessing import as_input

Array = np.ndarray[Any, Any]
MODELS = ("0.5", "0.75", "1.0", "2.0", "0.75-aware", "0.75-hardswish")
CALIBRATION = 96
PICTURES = {"0.5": 500, "2.0": 200}
KEPT = 99.99
"""Per cent of the values that percentile ranges keep."""


def squared(found: Observed) -> Grid:
    return best_grid(min(found.lows), max(found.highs), found.sample)


def whole(found: Observed) -> Grid:
    return grid_over(min(found.lows), max(found.highs))


def percentile(found: Observed) -> Grid:
    return grid_over(*(float(each) for each in np.percentile(found.sample, [100 - KEPT, KEPT])))


@dataclass(frozen=True)
class Method:
    """One way: for whom, how ranges are chosen, and what else differs from what the export does."""

    dialect: Dialect = "openvino"
    grid: Callable[[Observed], Grid] = squared
    bits: int = 7
    silu: tuple[str, ...] | None = None
    nothing_float: bool = False


METHODS: dict[str, Method | None] = {
    "float32": None,
    "weights alone": None,
    "int8": Method(),
    "int8, whole ranges": Method(grid=whole),
    f"int8, {KEPT} % of the values": Method(grid=percentile),
    "int8, nothing kept float": Method(nothing_float=True),
    "int8, SiLU as GELU alone": Method(silu=("gelu",)),
    "int8, exact SiLU": Method(silu=()),
    "int8, 8-bit weights": Method(bits=8),
    "int8 for ONNX Runtime": Method(dialect="onnxruntime"),
}


class Subject:
    """A model with its graphs, and what was seen of their values."""

    def __init__(self, name: str, place: str, data: str) -> None:
        model, processor = load_model(place)
        fmt, size = get_format("onnx"), (256, 256)
        options: dict[str, Any] = {"size": size, "dynamic": ("batch",), "preprocessing": False, "postprocessing": False}
        metadata = describe(model, processor, fmt, precision="fp32", suppression=None, source=name, licence=None, **options)
        self.name, self.data, self.contract = name, data, metadata.picture
        self.program = build_program(model, metadata, layout=fmt.layout)
        self.pixels: Array | None = None
        self.seen: dict[tuple[Dialect, tuple[str, ...]], tuple[Builder, dict[str, Observed]]] = {}

    def looked_at(self, dialect: Dialect, silu: tuple[str, ...]) -> tuple[Builder, dict[str, Observed]]:
        """The float graph and its values on the calibration pictures."""
        if (dialect, silu) not in self.seen:
            if self.pixels is None:
                given = Calibration(data=self.data, pictures=CALIBRATION)
                self.pixels = read_calibration(given, self.contract, task="classify").ranges
            inputs = [as_input(picture[None], self.contract, "NCHW") for picture in self.pixels]
            builder = graph_of(self.program, norms=NORMS[dialect]).builder
            if silu:
                builder, _ = with_cheap_silu(builder, inputs[:FOR_FORMS], silu, threads=1)
            points = list(dict.fromkeys([*make_plan(builder, dialect).points(builder), *nothing_float(builder).points(builder)]))
            self.seen[dialect, silu] = builder, observe(builder, points, inputs, threads=1)
        return self.seen[dialect, silu]

    def graph(self, name: str) -> tuple[Builder, Dialect]:
        """The graph of a method, and for whom."""
        method = METHODS[name]
        if method is None:
            builder = graph_of(self.program, norms=NORMS["openvino"]).builder
            return (builder if name == "float32" else with_quantised_weights(builder, lambda _: True)), "openvino"
        builder, seen = self.looked_at(method.dialect, SILU[method.dialect] if method.silu is None else method.silu)
        plan = nothing_float(builder) if method.nothing_float else make_plan(builder, method.dialect)
        grids = {value: method.grid(seen[value]) for value in plan.points(builder)}
        means = {value: found.channel_means for value, found in seen.items()}
        return with_quantised_values(builder, plan, grids, means, weight_bits=method.bits), method.dialect


def nothing_float(builder: Builder) -> Plan:
    """OpenVINO's plan, and what the package keeps out of it: key, softmax, sums, residual stream and its norms, classifier."""
    plan = make_plan(builder, "openvino", float_parts=())
    also = {node.name for node in builder.nodes if node.operator in ("Softmax", "ReduceSum")}
    also |= {
        node.name for node in builder.nodes if node.operator == "Add" and ".transformer." in node.name and _maps(builder, node)
    }
    gemms = {node.name for node in builder.nodes if node.operator == "Gemm"}
    return replace(plan, readers=plan.readers | gemms, writers=plan.writers | also)


def _maps(builder: Builder, node: Any) -> bool:
    return not any(value in builder.tensors for value in node.inputs) and "layernorm" not in node.name


def logits(builder: Builder, dialect: Dialect, sample: Sample, count: int) -> Array:
    from mobilevitv2.runtime import with_onnxruntime, with_openvino

    opened = with_openvino.open_bytes if dialect == "openvino" else with_onnxruntime.open_bytes
    engine = opened(builder.to_bytes(producer="", version="", metadata={}), where="graph", threads=1)
    inputs = (as_input(picture[None], sample.contract, "NCHW") for picture in sample.pixels[:count])
    return np.concatenate([next(iter(engine.run(image).values())) for image in inputs])


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| model | method | error | equal answers, % | top-1, % | pictures |", "| --- | --- | --- | --- | --- | --- |"]
    for key, row in rows.items():
        model, method = key.split("/", 1)
        told = f"{row['error']:.4f} | {row['same']:.1f}" if row["error"] is not None else " | "
        lines.append(f"| {model} | {method} | {told} | {row['top1']:.2f} | {row['pictures']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--data", required=True)
    parser.add_argument("--widths", type=Path, help="the folder that holds further models")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--label", default="", help="stands behind the method, such as an instruction set")
    parser.add_argument("--cache", type=Path, default=Path("pictures"), help="where the cut pictures are kept")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    for name in arguments.models:
        place = source(name, arguments.widths)
        wanted = {method: f"{name}/{method}{f', {arguments.label}' if arguments.label else ''}" for method in arguments.methods}
        if place is None or all(key in rows for key in wanted.values()):
            continue
        subject, count = Subject(name, place, arguments.data), PICTURES.get(name, 400)
        sample = read_sample(arguments.data, subject.contract, 7024, cache=arguments.cache)
        truth = logits(*subject.graph("float32"), sample, count)
        for method, key in wanted.items():
            if key in rows:
                continue
            given = truth if method == "float32" else logits(*subject.graph(method), sample, count)
            rows[key] = {
                "error": None if method == "float32" else float(np.sqrt(np.square(given - truth).mean()) / truth.std()),
                "same": 100 * float((given.argmax(1) == truth.argmax(1)).mean()),
                "top1": 100 * float((given.argmax(1) == sample.labels[:count]).mean()),
                "pictures": count,
            }
            arguments.output.write_text(json.dumps(rows, indent=1))
            print(key, rows[key], flush=True)
    print(markdown(rows))


if __name__ == "__main__":
    main()
