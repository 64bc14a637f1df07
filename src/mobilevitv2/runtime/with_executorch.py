"""ExecuTorch behind the runtime's protocol. Its Python binding takes and gives torch's tensors, so this engine imports torch."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.errors import MissingDependency, WeightsError
from mobilevitv2.runtime.metadata import METADATA_KEY

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Port = tuple[tuple[int | None, ...], str]
Ports = Mapping[str, Port]
METHOD = "forward"
APPLE = b"CoreMLBackend"
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
            if APPLE in data:
                raise WeightsError(
                    f"{path} is for ExecuTorch's Core ML delegate, which runs on Apple's systems only; export one with "
                    "`--delegate xnnpack` to run it here."
                ) from error
            raise WeightsError(f"{path} cannot be opened by ExecuTorch ({error}); the file is damaged: export it again.") from error
        self.version = version("executorch")
        about = self._method.metadata
        ports = [_port(about.output_tensor_meta(index)) for index in range(about.num_outputs())]
        name_in, names_out = port_names(self.metadata, ports)
        taken = [_port(about.input_tensor_meta(index)) for index in range(about.num_inputs())]
        names_in = [name_in, *(f"input_{index}" for index in range(1, len(taken)))][: len(taken)]
        self.inputs: Ports = dict(zip(names_in, taken, strict=True))
        self.outputs: Ports = dict(zip(names_out, ports, strict=True))
        if self.metadata is None and names_out == ["logits"] and len(taken) == 1 and len(ports[0][0]) == 2 and self._gives_shares():
            self.outputs = {"probabilities": ports[0]}

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

    def _gives_shares(self) -> bool:
        """Whether the answer for an empty picture sums to one: a softmax is inside."""
        ((shape, dtype),) = self.inputs.values()
        (answer,) = self.run(np.zeros([side or 1 for side in shape], dtype)).values()
        return bool((answer >= 0).all() and np.allclose(answer.sum(-1), 1, atol=1e-3))


def open_engine(path: Path, *, threads: int | None = None) -> ExecuTorchEngine:
    """Open a .pte file.

    Raises:
        MissingDependency: executorch is not installed. WeightsError: the file is damaged or another runtime's.
    """
    return ExecuTorchEngine(path, threads=threads)


def port_names(metadata: str | None, outputs: Sequence[Port]) -> tuple[str, list[str]]:
    """The input's and the outputs' names as the metadata have them: such files know positions alone.

    Without metadata the outputs' shapes tell what they most likely are.
    """
    try:
        said: dict[str, Any] = json.loads(metadata or "{}")
        names = [str(port["name"]) for port in said.get("outputs", ())]
    except (ValueError, TypeError, KeyError, AttributeError):
        names = []
    if len(names) == len(outputs):
        return "image", names
    kinds = tuple((len(shape), "int" in dtype) for shape, dtype in outputs)
    known = {
        ((2, False),): ["logits"],
        ((4, False),): ["logits"],
        ((3, True),): ["mask"],
        ((3, False), (3, False)): ["scores", "boxes"],
    }
    return "image", known.get(kinds) or [f"output_{index}" for index in range(len(outputs))]


def _port(info: Any) -> Port:
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
