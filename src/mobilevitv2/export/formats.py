"""The formats that a model can be exported to: what each one can do, and the two functions each one brings.

A format is a description here and a module with the functions, which is imported when one of them is called: a request is checked
without torch and without the exporters. `write` turns a program into a file; the verification then opens it with the engine in
`mobilevitv2.runtime` and holds it against PyTorch, so a format's module neither runs nor judges what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated
    from mobilevitv2.export.report import Checked

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-weights"]
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16", "int8", "int8-weights")
QUANTISED: tuple[str, ...] = ("int8", "int8-weights")


@dataclass(frozen=True)
class Written:
    """What a format says of the file it wrote.

    Attributes:
        files: all of them, the one to open first (`model.xml`, `model.bin`).
        operators: how many of each kind the file holds.
        outside: operators that the delegate or accelerator does not take, with their number; empty where there is no such thing.
        versions: of the libraries that wrote it.
        notes: what a user should know.
        quantisation: of a quantised file, what was done; for the report.
    """

    files: tuple[Path, ...]
    operators: Mapping[str, int]
    outside: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    quantisation: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """One format.

    Attributes:
        name: as `--format` takes it.
        suffix: of the file to open.
        companions: suffixes of the files beside it that belong to it.
        extra: of the package, which brings the libraries.
        modules: that are needed; their absence is told before any work.
        precisions: that `write` itself gives. int8 and int8-weights come by way of `quantise`.
        layout: of a float input: "NCHW" or "NHWC".
        free_axes: that it can leave open: of "batch", "height", "width".
        suppression: whether a detector's suppression can be inside.
        engine: name of the engine in `mobilevitv2.runtime` that runs the file; None where nothing on this system can, and then
            `check` says what can be said.
        quantise: a program of precision "int8" or "int8-weights" to `path`, with the calibration's pictures (None: weights alone).
        write: the program to `path`, a fresh place in a temporary folder; all other files beside it with the same stem. Program and
            metadata are final; options are those of the format (`--format-option` is not offered: keep them few and typed).
        check: for a format without engine: what was checked instead, on a few of these pictures; raises WeightsError where it
            fails.
        quantised: the precisions that `quantise` gives.
        refused: why the format has not the other precisions, and what to take in their place, one sentence each without the final
            dot; the error says it.
        delegates: for a format whose files are made for one of several accelerators: their names as `--delegate` takes them. The
            first is taken where none is asked for.
        delegate: which of them this one writes for; None where there is no choice.
        staged: writing is quick enough to compare the stem and every stage each time, not only where the answers depart: a model
            whose answers hardly depend on the picture hides mistakes in its middle.
        tolerance: for each precision the largest difference of an output, as a share of its largest value; the others use the
            defaults of `verify`.
    """

    name: str
    suffix: str
    extra: str
    modules: tuple[str, ...]
    precisions: tuple[str, ...]
    layout: Literal["NCHW", "NHWC"]
    free_axes: tuple[str, ...]
    suppression: bool
    engine: str | None
    write: Callable[[Program, Path], Written]
    quantise: Callable[[Program, Path, Calibrated | None], Written] | None = None
    quantised: tuple[str, ...] = QUANTISED
    refused: Mapping[str, str] = field(default_factory=dict)
    delegates: tuple[str, ...] = ()
    delegate: str | None = None
    companions: tuple[str, ...] = ()
    check: Callable[[Program, Path, Sequence[Image.Image]], Checked] | None = None
    staged: bool = False
    tolerance: Mapping[str, float] = field(default_factory=dict)

    @property
    def offered(self) -> tuple[str, ...]:
        """All precisions that a file can have, in the order of `PRECISIONS`."""
        known = {*self.precisions, *(self.quantised if self.quantise is not None else ())}
        return tuple(name for name in PRECISIONS if name in known)


# ---- the formats -----------------------------------------------------------------------------------------------------------------


def _later(module: str, name: str) -> Callable[..., Any]:
    """The function of a module beside this one, which is imported at the first call."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"mobilevitv2.export.{module}"), name)(*arguments)

    return call


ONNX = ExportFormat(
    name="onnx",
    suffix=".onnx",
    extra="onnx",
    modules=("onnxruntime",),
    precisions=("fp32", "fp16"),
    layout="NCHW",
    free_axes=("batch", "height", "width"),
    suppression=True,
    engine="onnxruntime",
    refused={
        "bf16": "ONNX Runtime has no bfloat16 convolution for CPUs, so that the file could not be run and compared; "
        "take 'fp16', or the format openvino"
    },
    write=_later("onnx", "write"),
    quantise=_later("onnx", "quantise"),
    staged=True,
)
OPENVINO = ExportFormat(
    name="openvino",
    suffix=".xml",
    companions=(".bin",),
    extra="openvino",
    modules=("openvino",),
    precisions=("fp32", "fp16", "bf16"),
    layout="NCHW",
    free_axes=("batch", "height", "width"),
    suppression=True,
    engine="openvino",
    write=_later("openvino", "write"),
    quantise=_later("openvino", "quantise"),
    staged=True,
)
EXECUTORCH = ExportFormat(
    name="executorch",
    suffix=".pte",
    extra="executorch",
    modules=("executorch",),
    precisions=("fp32", "fp16"),
    layout="NCHW",
    free_axes=(),
    suppression=False,
    engine="executorch",
    write=_later("executorch", "write"),
    quantise=_later("executorch", "quantise"),
    quantised=("int8",),
    refused={
        "bf16": "XNNPACK has bfloat16 for fully connected layers alone, so that convolutions would stay outside the delegate; "
        "take 'fp32'",
        "int8-weights": "XNNPACK's partitioner takes 8-bit weights together with 8-bit values, not alone; "
        "take 'int8' with pictures, or the delegate coreml",
    },
    delegates=("xnnpack", "coreml"),
    delegate="xnnpack",
    tolerance={"fp32": 1e-4, "fp16": 2e-2},
)
LITERT = ExportFormat(
    name="litert",
    suffix=".tflite",
    extra="litert",
    modules=("litert_torch", "ai_edge_litert"),
    precisions=("fp32", "fp16"),
    layout="NHWC",
    free_axes=(),
    suppression=False,
    engine="litert",
    refused={"bf16": "litert-torch does not convert bfloat16 weights ('Got unsupported ScalarType BFloat16'); take 'fp16'"},
    write=_later("litert", "write"),
    quantise=_later("litert", "quantise"),
    tolerance={"fp32": 1e-4},
)
COREML = ExportFormat(
    name="coreml",
    suffix=".mlpackage",
    extra="coreml",
    modules=("coremltools",),
    precisions=("fp16", "fp32"),
    layout="NCHW",
    free_axes=("height", "width"),
    suppression=False,
    engine=None,
    write=_later("coreml", "write"),
    quantise=_later("coreml", "quantise"),
    quantised=("int8-weights",),
    refused={
        "bf16": "Core ML's programs know no bfloat16; take 'fp16'",
        "int8": "its integer arithmetic needs iOS 17 and Apple's own runtime, so nothing about the file could be checked; "
        "take 'int8-weights' or 'fp16'",
    },
    check=_later("coreml", "check"),
    tolerance={"fp32": 1e-4, "fp16": 2e-2, "int8-weights": 0.2},
)
EXECUTORCH_COREML = replace(
    EXECUTORCH,
    modules=("executorch", "coremltools"),
    engine=None,
    write=_later("executorch_coreml", "write"),
    quantise=_later("executorch_coreml", "quantise"),
    quantised=COREML.quantised,
    refused=COREML.refused,
    delegate="coreml",
    check=_later("executorch_coreml", "check"),
    tolerance=COREML.tolerance,
)
FORMATS: dict[str, ExportFormat] = {each.name: each for each in (ONNX, OPENVINO, EXECUTORCH, LITERT, COREML)}


def get_format(name: str, *, delegate: str | None = None) -> ExportFormat:
    """The format of this name, for this delegate.

    Raises:
        ConfigurationError: there is none, or it has no such delegate.
    """
    if name not in FORMATS:
        raise ConfigurationError(f"format={name!r} is unknown; {_nearest(name, FORMATS)}")
    found = FORMATS[name]
    if delegate is None:
        return found
    if not found.delegates:
        raise ConfigurationError(f"delegate={delegate!r}, but format {name} has no delegates to choose from; leave it out.")
    if delegate not in found.delegates:
        raise ConfigurationError(f"delegate={delegate!r} is unknown to {name}; {_nearest(delegate, found.delegates)}")
    return EXECUTORCH_COREML if delegate == "coreml" else found


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
