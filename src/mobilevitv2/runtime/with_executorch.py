"""ExecuTorch behind the runtime's protocol. Its Python binding takes and gives torch's tensors, so this engine imports torch."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.errors import MissingDependency, WeightsError
from mobilevitv2.runtime.metadata import METADATA_KEY

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Ports = Mapping[str, tuple[tuple[int | None, ...], str]]
METHOD = "forward"
IDENTIFIER = slice(4, 6)
"""Where "ET" stands in a program's first bytes."""
# torch's numbers of scalar types.
DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}


class ExecuTorchEngine:
    """A .pte file; see `Engine`."""

    name = "executorch"
    callers = 1

    def __init__(self, path: Path, *, threads: int | None) -> None:
        data = path.read_bytes()
        if data[IDENTIFIER] != b"ET":
            raise WeightsError(f"{path} is no ExecuTorch program; give a file that `mobilevitv2 export --format executorch` wrote.")
        runtime, binding = _runtime()
        if threads is not None and threads != binding._threadpool_get_thread_count():
            # One pool of the process serves all programs; there is no public way to size it.
            binding._unsafe_reset_threadpool(threads)
        try:
            self._program = runtime.load_program(data)
            self._method = self._program.load_method(METHOD)
            names = self._program.method_names
            self.metadata: str | None = (
                str(self._program.load_method(METADATA_KEY).execute([])[0]) if METADATA_KEY in names else None
            )
        except (RuntimeError, KeyError, ValueError) as error:
            raise WeightsError(f"{path} cannot be opened by ExecuTorch ({error}); the file is damaged: export it again.") from error
        self.version = version("executorch")
        about = self._method.metadata
        names_in, names_out = port_names(self.metadata, about.num_outputs())
        self.inputs: Ports = {names_in: _port(about.input_tensor_meta(0))}
        self.outputs: Ports = {name: _port(about.output_tensor_meta(index)) for index, name in enumerate(names_out)}

    def run(self, image: Array) -> dict[str, Array]:
        """See `Engine`."""
        import torch

        ((name, (shape, dtype)),) = self.inputs.items()
        if image.shape != shape or image.dtype != dtype:
            # The runtime would read past the end of a smaller array.
            raise WeightsError(
                f"{name} of shape {image.shape} and type {image.dtype} does not fit; the file takes {shape}, {dtype}."
            )
        answers = self._method.execute([torch.from_numpy(np.ascontiguousarray(image))])
        return {name: np.array(answer.numpy()) for name, answer in zip(self.outputs, answers, strict=True)}


def open_engine(path: Path, *, threads: int | None = None) -> ExecuTorchEngine:
    """Open a .pte file.

    Raises:
        MissingDependency: executorch is not installed. WeightsError: the file is damaged or another runtime's.
    """
    return ExecuTorchEngine(path, threads=threads)


def port_names(metadata: str | None, outputs: int) -> tuple[str, list[str]]:
    """The input's and the outputs' names as the metadata have them: such files know positions alone."""
    try:
        said: dict[str, Any] = json.loads(metadata or "{}")
        names = [str(port["name"]) for port in said.get("outputs", ())]
    except (ValueError, TypeError, KeyError, AttributeError):
        names = []
    return "image", names if len(names) == outputs else [f"output_{index}" for index in range(outputs)]


def _port(info: Any) -> tuple[tuple[int | None, ...], str]:
    return tuple(info.sizes()), DTYPES.get(info.dtype(), str(info.dtype()))


def _runtime() -> tuple[Any, Any]:
    try:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except ImportError as error:
        raise MissingDependency(
            f"ExecuTorch is not there ({error}); pip install 'mobilevitv2[executorch]' with Python "
            f"{sys.version_info.major}.{sys.version_info.minor}."
        ) from error
    return Runtime.get(), portable_lib
