"""The runtimes behind one protocol: an array in, arrays out. Each engine's library is imported when a file is opened with it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.runtime.foreign import refuse_foreign

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


Port = tuple[tuple[int | None, ...], str]
"""Shape, with None for free axes, and numpy's name of the type."""


class Engine(Protocol):
    """An exported file, opened by its runtime.

    Attributes:
        name: "onnxruntime", "openvino", "executorch", "litert".
        version: of the runtime.
        metadata: the text under `METADATA_KEY` in the file (or beside it), None where there is none.
        inputs, outputs: name -> (shape, numpy dtype name), in the file's order; free axes are None.
        callers: threads that may call `run` at the same time.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def version(self) -> str:
        """See the class."""
        ...

    @property
    def metadata(self) -> str | None:
        """See the class."""
        ...

    @property
    def inputs(self) -> Mapping[str, tuple[tuple[int | None, ...], str]]:
        """See the class."""
        ...

    @property
    def outputs(self) -> Mapping[str, tuple[tuple[int | None, ...], str]]:
        """See the class."""
        ...

    @property
    def callers(self) -> int:
        """See the class."""
        ...

    def run(self, image: Array) -> dict[str, Array]:
        """All outputs by name, for the single input `image` as the file takes it (dtype and layout are the caller's business)."""
        ...


class OpenEngine(Protocol):
    """Each engine's module has `open_engine`, which opens a file.

    Raises (all engines): MissingDependency naming the extra; WeightsError for a file that is damaged or another runtime's.
    """

    def __call__(self, path: Path, *, threads: int | None = None) -> Engine:
        """Open `path`; `threads` for one answer, the runtime's choice where None."""
        ...


ENGINES: dict[str, tuple[str, str]] = {
    # suffix: (name of the engine, module with `open_engine`)
    ".onnx": ("onnxruntime", "mobilevitv2.runtime.with_onnxruntime"),
    ".xml": ("openvino", "mobilevitv2.runtime.with_openvino"),
    ".pte": ("executorch", "mobilevitv2.runtime.with_executorch"),
    ".tflite": ("litert", "mobilevitv2.runtime.with_litert"),
}
# OpenVINO reads ONNX files too.
ALSO_READS = {"openvino": (".onnx",)}
SEVERAL_CALLERS = ("onnxruntime", "openvino")
"""Engines that several threads may run at once."""


def is_runtime_file(source: object) -> bool:
    """Whether a name has the ending of a file that an engine opens."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in ENGINES


def check_file(path: Path) -> None:
    """Raise ConfigurationError where there is no file of this name."""
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder, and no exported file, though it is called like one; name the file.")
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist; check the path (the current folder is {Path.cwd()}).")


def open_engine(path: Path, *, engine: str = "auto", threads: int | None = None, callers: int = 1) -> Engine:
    """Open a file with the engine of its ending, or with another one that reads it.

    Args:
        path: the file.
        engine: its name, or "auto".
        threads: for one answer; the runtime's choice where None.
        callers: threads that will call `run` at once, each of which then calculates by itself; engines that cannot do this stay
            with one, as their attribute `callers` says.

    Raises:
        ConfigurationError: no such file, an ending that no engine reads, an engine that does not read this ending, or no thread.
        MissingDependency: the engine is not installed. WeightsError: the file is damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in ENGINES:
        refuse_foreign(path)
        raise ConfigurationError(f"{path}: no engine opens {suffix or 'a file without ending'!r}; known are {', '.join(ENGINES)}.")
    name, module = ENGINES[suffix]
    if engine not in ("auto", name):
        if suffix not in ALSO_READS.get(engine, ()):
            raise ConfigurationError(f"{path} is opened by {name}, not by engine={engine!r}; leave the engine out.")
        module = next(home for known, home in ENGINES.values() if known == engine)
    check_file(path)
    for setting, count in (("threads", threads), ("callers", callers)):
        if count is not None and count < 1:
            raise ConfigurationError(f"{setting}={count} answers nothing; give at least 1, or leave it out.")
    opener = import_module(module).open_engine
    if callers > 1 and (name if engine == "auto" else engine) in SEVERAL_CALLERS:
        return cast(Engine, opener(path, callers=callers))
    return cast(Engine, opener(path, threads=threads))
