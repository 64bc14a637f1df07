"""ONNX Runtime: `.onnx` files, or their bytes."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.errors import MissingDependency, WeightsError
from mobilevitv2.runtime.metadata import METADATA_KEY

Array = np.ndarray[Any, Any]
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
SILENT = 4


class OnnxRuntimeEngine:
    """A session on the CPU. With several callers each answers in its own thread: no pool of threads that wait for each other."""

    name = "onnxruntime"

    def __init__(self, content: str | bytes, *, where: str, threads: int | None = None, callers: int = 1) -> None:
        self.callers = callers
        threads = 1 if callers > 1 else threads
        runtime = _library()
        options = runtime.SessionOptions()
        options.log_severity_level = SILENT  # what goes wrong is raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base of their own
            raise WeightsError(
                f"{where} cannot be opened by ONNX Runtime ({_first_line(error)}); copy or export it again."
            ) from error
        self.version: str = runtime.__version__
        self.metadata: str | None = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.inputs: dict[str, tuple[tuple[int | None, ...], str]] = {
            each.name: _shape_and_type(each) for each in self._session.get_inputs()
        }
        self.outputs: dict[str, tuple[tuple[int | None, ...], str]] = {
            each.name: _shape_and_type(each) for each in self._session.get_outputs()
        }
        self._input = next(iter(self.inputs), "")

    def run(self, image: Array) -> dict[str, Array]:
        """All outputs by name."""
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, {self._input: image}), strict=True))


def open_engine(path: Path, *, threads: int | None = None, callers: int = 1) -> OnnxRuntimeEngine:
    """Open a file; see `engines.open_engine`."""
    return OnnxRuntimeEngine(str(path), where=str(path), threads=threads, callers=callers)


def open_bytes(content: bytes, *, where: str, threads: int | None = None, callers: int = 1) -> OnnxRuntimeEngine:
    """Open a model that is in memory; `where` is what messages call it."""
    return OnnxRuntimeEngine(content, where=where, threads=threads, callers=callers)


def _library() -> Any:
    try:
        onnxruntime: Any = import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependency("ONNX Runtime is not installed: pip install 'mobilevitv2[onnx]'") from error
    return onnxruntime


def _shape_and_type(port: Any) -> tuple[tuple[int | None, ...], str]:
    return tuple(side if isinstance(side, int) else None for side in port.shape), DTYPES.get(port.type, port.type)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
