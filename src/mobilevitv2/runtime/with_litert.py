"""LiteRT behind the runtime's protocol: .tflite files by their signature. Its interpreter needs numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.errors import MissingDependency, WeightsError
from mobilevitv2.runtime.metadata import METADATA_KEY

Array = np.ndarray[Any, Any]
Ports = Mapping[str, tuple[tuple[int | None, ...], str]]
IDENTIFIER = slice(4, 8)
"""Where "TFL3" stands in a model's first bytes."""


class LiteRTEngine:
    """A .tflite file; see `Engine`."""

    name = "litert"
    callers = 1

    def __init__(self, path: Path, *, threads: int | None) -> None:
        content = path.read_bytes()
        if content[IDENTIFIER] != b"TFL3":
            raise WeightsError(f"{path} is no LiteRT model; give a file that `mobilevitv2 export --format litert` wrote.")
        interpreter_class = _interpreter()
        self.version = version("ai-edge-litert")
        try:
            # From memory: the file may be replaced while the model is in use.
            interpreter = interpreter_class(model_content=content, num_threads=threads)
            interpreter.allocate_tensors()
            self._runner = interpreter.get_signature_runner()
            self.metadata = stored_text(content, METADATA_KEY)
        except Exception as error:  # the flatbuffer reader and the interpreter have no common base
            raise WeightsError(f"{path} cannot be opened by LiteRT ({error}); the file is damaged: export it again.") from error
        self.inputs: Ports = {name: _port(about) for name, about in self._runner.get_input_details().items()}
        self.outputs: Ports = {name: _port(about) for name, about in self._runner.get_output_details().items()}

    def run(self, image: Array) -> dict[str, Array]:
        """See `Engine`."""
        ((name, (shape, dtype)),) = self.inputs.items()
        if image.shape != shape or image.dtype != dtype:
            raise WeightsError(
                f"{name} of shape {image.shape} and type {image.dtype} does not fit; the file takes {shape}, {dtype}."
            )
        answers = self._runner(**{name: image})
        return {name: np.array(answers[name]) for name in self.outputs}


def open_engine(path: Path, *, threads: int | None = None) -> LiteRTEngine:
    """Open a .tflite file.

    Raises:
        MissingDependency: ai-edge-litert is not installed. WeightsError: the file is damaged or another runtime's.
    """
    return LiteRTEngine(path, threads=threads)


def stored_text(content: bytes, name: str) -> str | None:
    """The text of a metadata entry of a .tflite file, None where there is none of this name."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == name.encode():
            data = model.Buffers(entry.Buffer()).DataAsNumpy()
            return bytes(data).decode()
    return None


def _port(about: Mapping[str, Any]) -> tuple[tuple[int | None, ...], str]:
    return tuple(int(side) for side in about["shape"]), np.dtype(about["dtype"]).name


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingDependency(f"LiteRT is not there ({error}); pip install 'mobilevitv2[litert]'.") from error
    return Interpreter
