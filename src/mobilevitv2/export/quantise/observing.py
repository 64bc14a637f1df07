"""What a graph's values are on pictures: their ranges, a sample of each, and the means of their channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.errors import MissingDependency

if TYPE_CHECKING:
    from mobilevitv2.graph.builder import Builder
    from mobilevitv2.runtime.engines import Engine

Array = np.ndarray[Any, Any]
SAMPLE = 2048
"""Values of each point that are kept of each picture."""


@dataclass
class Observed:
    """One value of the graph over all pictures.

    Attributes:
        lows, highs: of each picture.
        samples: some of its values, drawn evenly.
        means: of each channel (axis 1), summed over pictures.
        size: the number of its values for a picture.
    """

    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    samples: list[Array] = field(default_factory=list)
    means: Array | float = 0.0
    size: int = 0

    def add(self, value: Array, generator: np.random.Generator) -> None:
        """Look at the value of one picture, (1, C, ...)."""
        self.lows.append(float(value.min()))
        self.highs.append(float(value.max()))
        flat = value.reshape(-1)
        self.size = flat.size
        self.samples.append(flat if flat.size <= SAMPLE else flat[generator.integers(0, flat.size, SAMPLE)])
        self.means = self.means + value.mean(axis=(0, *range(2, value.ndim)), dtype=np.float64)

    @property
    def channel_means(self) -> Array:
        """(C,)."""
        return np.asarray(self.means) / max(len(self.lows), 1)

    @property
    def sample(self) -> Array:
        """Of all pictures, (n,)."""
        return np.concatenate(self.samples)


def observe(builder: Builder, points: Sequence[str], inputs: Iterable[Array], *, threads: int | None = None) -> dict[str, Observed]:
    """Run a float graph on inputs of one picture each and look at the values named `points`.

    Raises:
        MissingDependency: neither ONNX Runtime nor OpenVINO is installed.
    """
    values_of = values_for(builder, points, threads)
    found = {point: Observed() for point in points}
    generator = np.random.default_rng(0)
    for image in inputs:
        for point, value in values_of(image).items():
            found[point].add(value, generator)
    return found


def values_for(builder: Builder, values: Sequence[str], threads: int | None = None) -> Callable[[Array], dict[str, Array]]:
    """A function that gives these values of the graph, by name, for its input.

    Raises:
        MissingDependency: neither ONNX Runtime nor OpenVINO is installed.
    """
    engine = open_graph(builder.reduced_to({value: f"value_{number}" for number, value in enumerate(values)}), threads)
    # By their order: OpenVINO calls an output by any of the names that its value has.
    return lambda image: dict(zip(values, engine.run(image).values(), strict=True))


def open_graph(builder: Builder, threads: int | None = None) -> Engine:
    """A graph in whichever runtime is there.

    Raises:
        MissingDependency: neither ONNX Runtime nor OpenVINO is installed.
    """
    content = builder.to_bytes(producer="mobilevitv2", version="", metadata={})
    if find_spec("onnxruntime") is not None:
        from mobilevitv2.runtime.with_onnxruntime import open_bytes

        return open_bytes(content, where="the graph to calibrate", threads=threads)
    if find_spec("openvino") is not None:
        from mobilevitv2.runtime.with_openvino import open_bytes as with_openvino

        return with_openvino(content, where="the graph to calibrate", threads=threads)
    raise MissingDependency("calibration runs the graph in ONNX Runtime or OpenVINO: pip install 'mobilevitv2[onnx]'")
