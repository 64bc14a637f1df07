"""ONNX: one self-contained file, opset 18. Written without the onnx package; ONNX Runtime runs and checks it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobilevitv2.export.formats import Written
from mobilevitv2.graph.builder import OPSET

if TYPE_CHECKING:
    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated


def write(program: Program, path: Path) -> Written:
    """The program as `path`."""
    from mobilevitv2.export.graphs import graph_of

    graph = graph_of(program, merged=True)
    path.write_bytes(graph.content)
    notes: tuple[str, ...] = ()
    if program.precision == "fp16":
        notes = ("float16 pays on GPUs and in browsers; ONNX Runtime's CPU kernels calculate in float32 with casts in between",)
    return Written(files=(path,), operators=graph.operators, versions={"onnx opset": str(OPSET)}, notes=notes)


def quantise(program: Program, path: Path, calibration: Calibrated | None) -> Written:
    """The program with 8-bit weights, and with pictures also 8-bit values, as `path`."""
    from mobilevitv2.export.quantise.quantising import quantised_graph

    pixels, bits = (None, 8) if calibration is None else (calibration.ranges, calibration.weight_bits)
    graph = quantised_graph(program, pixels, "onnxruntime", weight_bits=bits)
    path.write_bytes(graph.content)
    return Written(
        files=(path,),
        operators=graph.operators,
        versions={"onnx opset": str(OPSET)},
        quantisation=graph.summary,
    )
