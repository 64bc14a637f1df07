"""ONNX: one self-contained file, opset 18. Written without the onnx package; ONNX Runtime runs and checks it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobilevitv2.export.formats import ExportFormat, Written
from mobilevitv2.graph.builder import OPSET

if TYPE_CHECKING:
    from mobilevitv2.export.program import Program


def write(program: Program, path: Path) -> Written:
    """The program as `path`."""
    from mobilevitv2.export.graphs import graph_of

    graph = graph_of(program)
    path.write_bytes(graph.content)
    notes: tuple[str, ...] = ()
    if program.precision == "fp16":
        notes = ("float16 pays on GPUs and in browsers; ONNX Runtime's CPU kernels calculate in float32 with casts in between",)
    return Written(files=(path,), operators=graph.operators, versions={"onnx opset": str(OPSET)}, notes=notes)


FORMAT = ExportFormat(
    name="onnx",
    suffix=".onnx",
    extra="onnx",
    modules=("onnxruntime",),
    precisions=("fp32", "fp16"),
    layout="NCHW",
    free_axes=("batch", "height", "width"),
    suppression=True,
    engine="onnxruntime",
    write=write,
    staged=True,
)
