"""OpenVINO: `.xml` with `.bin` beside it, converted from the ONNX graph in memory.

fp32 keeps all weights; fp16 stores them in half the room, and the plugin decides what it calculates in; bf16 stores as fp16 does
not, but asks the CPU to calculate in bfloat16 (this package's runtime passes the wish on; other callers set
INFERENCE_PRECISION_HINT themselves).
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.export.formats import ExportFormat, Written
from mobilevitv2.runtime.metadata import METADATA_KEY

if TYPE_CHECKING:
    from mobilevitv2.export.program import Program

CONSTANTS = ("Constant", "Parameter", "Result")


def write(program: Program, path: Path) -> Written:
    """The program as `path` and `path` with ".bin"."""
    from mobilevitv2.export.graphs import graph_of
    from mobilevitv2.export.metadata import with_versions

    openvino: Any = import_module("openvino")
    versions = {"openvino": str(openvino.__version__).split("-")[0]}
    # Half-precision weights are OpenVINO's to store: the graph stays float32 and the plugin may calculate wider.
    graph = graph_of(replace(program, metadata=replace(program.metadata, precision="fp32")), norms="moments")
    model = openvino.Core().read_model(io.BytesIO(graph.content))
    model.set_rt_info(with_versions(program.metadata, versions).to_json(), [METADATA_KEY])
    openvino.save_model(model, path, compress_to_fp16=program.precision == "fp16")
    operators = Counter(node.get_type_name() for node in model.get_ops())
    for name in CONSTANTS:
        operators.pop(name, None)
    notes = ("bfloat16 is a wish to the CPU plugin, which this package's runtime passes on",) if program.precision == "bf16" else ()
    return Written(files=(path, path.with_suffix(".bin")), operators=operators, versions=versions, notes=notes)


FORMAT = ExportFormat(
    name="openvino",
    suffix=".xml",
    extra="openvino",
    modules=("openvino",),
    precisions=("fp32", "fp16", "bf16"),
    layout="NCHW",
    free_axes=("batch", "height", "width"),
    suppression=True,
    engine="openvino",
    write=write,
    staged=True,
)
