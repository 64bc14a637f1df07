"""OpenVINO: `.xml` with `.bin`, and ONNX files or their bytes."""

from __future__ import annotations

import io
import json
from functools import cache
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from mobilevitv2.errors import MissingDependency, WeightsError
from mobilevitv2.runtime.metadata import METADATA_KEY

Array = np.ndarray[Any, Any]
START = 1000
ONNX_STARTS = tuple(
    bytes([number << 3 | kind]) for number, kind in ((1, 0), (2, 2), (3, 2), (4, 2), (5, 0), (6, 2), (7, 2), (8, 2))
)
"""Of a protobuf message of type ModelProto, whichever of its small fields comes first."""
HINTS = {"bf16": "bf16"}
"""Precision of the file -> what the CPU is asked to calculate in; float32 otherwise."""


class OpenVinoEngine:
    """A model compiled for the CPU, with a stream of one thread for each of several callers."""

    name = "openvino"

    def __init__(self, source: Path | bytes, *, where: str, threads: int | None = None, callers: int = 1) -> None:
        library = _library()
        core = _core()
        try:
            model = core.read_model(source if isinstance(source, Path) else io.BytesIO(source))
            self.metadata = _metadata(model)
            settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _hint(self.metadata)}
            if callers > 1:
                settings |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": callers, "INFERENCE_NUM_THREADS": callers}
            elif threads is not None:
                settings["INFERENCE_NUM_THREADS"] = threads
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:  # RuntimeError and others of its own
            parts = f" it and {Path(where).with_suffix('.bin').name}," if where.endswith(".xml") else ""
            remedy = f"copy{parts} or export it again" if parts else "copy or export it again"
            raise WeightsError(f"{where} cannot be opened by OpenVINO ({_last_line(error)}); {remedy}.") from error
        self.version: str = library.__version__
        self.callers = callers
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(callers):
            self._requests.put(self._compiled.create_infer_request())
        self.inputs = {_name(port): _shape_and_type(port) for port in self._compiled.inputs}
        self.outputs = {_name(port): _shape_and_type(port) for port in self._compiled.outputs}

    def run(self, image: Array) -> dict[str, Array]:
        """All outputs by name."""
        request = self._requests.get()
        try:
            results = request.infer([image], share_inputs=True)
            return {name: np.array(results[index]) for index, name in enumerate(self.outputs)}
        finally:
            self._requests.put(request)


def open_engine(path: Path, *, threads: int | None = None, callers: int = 1) -> OpenVinoEngine:
    """Open a file; see `engines.open_engine`."""
    with path.open("rb") as stream:
        start = stream.read(START)
    if path.suffix.lower() == ".xml":
        # OpenVINO would try all its readers, which complain past Python's standard error.
        if b"<net" not in start:
            raise WeightsError(f"{path} is no OpenVINO model; give a file that `mobilevitv2 export --format openvino` wrote.")
        if not path.with_suffix(".bin").is_file():
            raise WeightsError(
                f"{path} has no {path.with_suffix('.bin').name} beside it, which holds its weights; copy both files."
            )
    elif start[:1] not in ONNX_STARTS:
        raise WeightsError(f"{path} is no ONNX model; give a file that `mobilevitv2 export --format onnx` wrote.")
    return OpenVinoEngine(path, where=str(path), threads=threads, callers=callers)


def open_bytes(content: bytes, *, where: str, threads: int | None = None, callers: int = 1) -> OpenVinoEngine:
    """Open an ONNX model that is in memory; `where` is what messages call it."""
    return OpenVinoEngine(content, where=where, threads=threads, callers=callers)


def _library() -> Any:
    try:
        openvino: Any = import_module("openvino")
    except ImportError as error:
        raise MissingDependency("OpenVINO is not installed: pip install 'mobilevitv2[openvino]'") from error
    return openvino


@cache
def _core() -> Any:
    """The one core of the process, kept until it ends.

    The CPU plugin gives the thread that loads it a signal stack, and puts the one before back when it is unloaded. Of two plugins
    the second to go puts back that of the first, which is gone: the next signal (a child process that ends, where a DataLoader has
    set a handler) then kills the process. So no plugin is ever unloaded.
    """
    return _library().Core()


def _metadata(model: Any) -> str | None:
    """The JSON of an IR's `rt_info`, or of the ONNX file's properties, which OpenVINO puts under "framework"."""
    for path in ([METADATA_KEY], ["framework", METADATA_KEY]):
        if model.has_rt_info(path):
            value = model.get_rt_info(path)
            return str(getattr(value, "value", value))
    return None


def _hint(metadata: str | None) -> str:
    try:
        precision = json.loads(metadata or "{}").get("precision", "fp32")
    except (ValueError, AttributeError):
        return "f32"
    return HINTS.get(str(precision), "f32")


def _name(port: Any) -> str:
    names = sorted(port.get_names())
    return str(names[0]) if names else str(port.get_node().get_friendly_name())


def _shape_and_type(port: Any) -> tuple[tuple[int | None, ...], str]:
    partial = port.get_partial_shape()
    known = partial.rank.is_static
    shape = tuple(side.get_length() if side.is_static else None for side in partial) if known else ()
    return shape, str(np.dtype(port.get_element_type().to_dtype()).name)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
