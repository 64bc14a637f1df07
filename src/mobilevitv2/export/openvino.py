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

from mobilevitv2.export.formats import Written
from mobilevitv2.runtime.metadata import METADATA_KEY

if TYPE_CHECKING:
    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated

CONSTANTS = ("Constant", "Parameter", "Result")


def write(program: Program, path: Path) -> Written:
    """The program as `path` and `path` with ".bin"."""
    from mobilevitv2.export.graphs import graph_of

    # Half-precision weights are OpenVINO's to store: the graph stays float32 and the plugin may calculate wider.
    graph = graph_of(replace(program, metadata=replace(program.metadata, precision="fp32")), norms="moments", merged=True)
    notes = ("bfloat16 is a wish to the CPU plugin, which this package's runtime passes on",) if program.precision == "bf16" else ()
    return replace(_saved(program, graph.content, path), notes=notes)


def quantise(program: Program, path: Path, calibration: Calibrated | None) -> Written:
    """The program with 8-bit weights, and with pictures also 8-bit values, as `path` and `path` with ".bin"."""
    from mobilevitv2.export.quantise.quantising import quantised_graph

    pixels, bits = (None, 8) if calibration is None else (calibration.ranges, calibration.weight_bits)
    graph = quantised_graph(program, pixels, "openvino", weight_bits=bits)
    return replace(_saved(program, graph.content, path), quantisation=graph.summary)


def _saved(program: Program, content: bytes, path: Path) -> Written:
    from mobilevitv2.export.metadata import with_versions

    openvino: Any = import_module("openvino")
    versions = {"openvino": str(openvino.__version__).split("-")[0]}
    model = openvino.Core().read_model(io.BytesIO(content))
    model.set_rt_info(with_versions(program.metadata, versions).to_json(), [METADATA_KEY])
    openvino.save_model(model, path, compress_to_fp16=program.precision == "fp16")
    operators = Counter(node.get_type_name() for node in model.get_ops())
    for name in CONSTANTS:
        operators.pop(name, None)
    return Written(files=(path, path.with_suffix(".bin")), operators=operators, versions=versions)
