"""Rows of the runtimes: our model exported, a peer's model through the same exporter, and files that are there already."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.errors import ConfigurationError, MissingDependency, WeightsError
from mobilevitv2.runtime import open_model
from mobilevitv2.runtime.engines import ENGINES, Engine
from mobilevitv2.runtime.metadata import METADATA_KEY
from mobilevitv2.runtime.preprocessing import as_input

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

Array = np.ndarray[Any, Any]
Answers = dict[str, Array]
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "executorch": "executorch", "litert": "litert"}


class FileRun:
    """An opened file and its input: calling it answers the pictures, in as many runs as the file's batch size asks for."""

    def __init__(self, engine: Engine, inputs: Array, *, names: tuple[str, ...] | None = None) -> None:
        shape = next(iter(engine.inputs.values()))[0]
        step = shape[0] or len(inputs)
        if len(inputs) % step:
            raise ConfigurationError(f"the file takes {step} pictures at once; give a batch size that is a multiple of {step}.")
        self.engine, self.names = engine, names
        self.parts = [np.ascontiguousarray(inputs[start : start + step]) for start in range(0, len(inputs), step)]
        self.megabytes: float | None = None

    def __call__(self) -> list[Answers]:
        """The outputs of every run."""
        return [self.engine.run(part) for part in self.parts]

    def answers(self, task: str) -> Answers:
        """By the file's own names of the outputs, or by those that were given."""
        runs = self()
        joined = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
        return joined if self.names is None else dict(zip(self.names, joined.values(), strict=False))

    @property
    def note(self) -> str:
        """What a reader of the row should know."""
        return f"{len(self.parts)} runs: the file takes {len(self.parts[0])} at once" if len(self.parts) > 1 else ""


def open_file(path: Path, pictures: Array, *, engine: str, threads: int) -> FileRun:
    """An exported file, ready to answer pictures.

    Args:
        path: of the file.
        pictures: (batch, height, width, 3), uint8.
        engine: "auto" for that of the ending.
        threads: of one answer.

    Raises:
        as `mobilevitv2.runtime.open_model`; ConfigurationError: a file of a fixed size that is not that of the pictures.
    """
    model = open_model(path, engine=engine, threads=threads)
    contract = model.metadata.picture
    height, width = pictures.shape[1:3]
    for name, side, own in (("height", height, contract.height), ("width", width, contract.width)):
        if side != own and name not in model.metadata.dynamic:
            raise ConfigurationError(
                f"{path} takes {contract.height} x {contract.width} pixels, not {height} x {width}; leave --size out, or export "
                "a file of that size."
            )
    return FileRun(model.engine, as_input(pictures, contract, model.metadata.layout))


def export_ours(
    model: MobileViTV2PreTrainedModel,
    processor: MobileViTV2ImageProcessor,
    folder: Path,
    *,
    engine: str,
    dtype: str,
    size: tuple[int, int],
    name: str,
) -> Path:
    """Our model as an engine's file, with raw outputs; not compared with PyTorch: the rows' answers are, one with another.

    Raises:
        MissingDependency: the exporter is not installed. ConfigurationError: a dtype that the format does not have.
    """
    from mobilevitv2.export.formats import get_format
    from mobilevitv2.export.metadata import describe
    from mobilevitv2.export.program import build_program

    fmt, precision = get_format(FORMATS[engine]), PRECISIONS[dtype]
    if precision not in fmt.precisions:
        offered = ", ".join(key for key, value in PRECISIONS.items() if value in fmt.precisions)
        raise ConfigurationError(f"{engine} has no {dtype} here; it has {offered}.")
    path = folder / f"{name}{fmt.suffix}"
    if path.exists():
        return path
    metadata = describe(
        model,
        processor,
        fmt,
        precision=precision,
        size=size,
        dynamic=tuple(axis for axis in fmt.free_axes if axis == "batch"),
        preprocessing=False,
        postprocessing=False,
        suppression=None,
        source=name,
        licence=None,
    )
    try:
        fmt.write(build_program(model, metadata, layout=fmt.layout), path)
    except ImportError as error:
        raise MissingDependency(f"{_module(error)} is not installed: pip install 'mobilevitv2[{fmt.extra}]'") from error
    return path


def export_peer(peer: nn.Module, pixels: torch.Tensor, path: Path, *, engine: str, dtype: str) -> tuple[Path, Array]:
    """A peer's model through an engine's own exporter, for pictures of this very shape: the path, and the input it takes.

    Args:
        peer: a classifier or segmenter, in float32.
        pixels: (batch, 3, height, width), float32.
        path: without ending.
        engine: whose file.
        dtype: float32, or with OpenVINO bfloat16.

    Raises:
        MissingDependency: the exporter is not installed. ConfigurationError: a dtype that this does not write.
        WeightsError: the exporter refuses the model, with its own reason.
    """
    if dtype != "float32" and (engine, dtype) != ("openvino", "bfloat16"):
        raise ConfigurationError(f"a peer's model is not written in {dtype} for {engine}; float32 is.")
    suffix = next(ending for ending, (name, _) in ENGINES.items() if name == engine)
    path = path.with_name(path.name + suffix)
    last = engine == "litert"
    inputs = pixels.permute(0, 2, 3, 1).contiguous() if last else pixels
    from mobilevitv2.export.executorch import quiet

    writers = {"onnxruntime": _peer_onnx, "openvino": _peer_openvino, "executorch": _peer_executorch, "litert": _peer_litert}
    try:
        with quiet():
            writers[engine](_logits(peer, last=last), inputs, path, dtype)
    except ImportError as error:
        raise MissingDependency(f"{_module(error)} is not installed: pip install {_module(error)}") from error
    except Exception as error:  # each exporter raises what it likes
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise WeightsError(f"the exporter of {engine} refuses it: {type(error).__name__}: {reason}") from error
    return path, inputs.numpy()


def _logits(peer: nn.Module, *, last: bool) -> nn.Module:
    """Pictures in, logits out, and nothing else."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peer = peer

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            answer = self.peer(image.permute(0, 3, 1, 2) if last else image)
            logits: torch.Tensor = answer if isinstance(answer, torch.Tensor) else answer.logits
            return logits

    return Logits().eval()


def _peer_onnx(module: nn.Module, inputs: torch.Tensor, path: Path, dtype: str) -> None:
    import torch

    import_module("onnxscript")  # or torch's exporter tells of it at length
    torch.onnx.export(
        module, (inputs,), path, dynamo=True, opset_version=18, verbose=False, external_data=False, output_names=["logits"]
    )


def _peer_openvino(module: nn.Module, inputs: torch.Tensor, path: Path, dtype: str) -> None:
    openvino: Any = import_module("openvino")
    model = openvino.convert_model(module, example_input=inputs, input=[list(inputs.shape)])
    # This package's runtime reads from here what to calculate in.
    model.set_rt_info(f'{{"precision": "{PRECISIONS[dtype]}"}}', [METADATA_KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def _peer_executorch(module: nn.Module, inputs: torch.Tensor, path: Path, dtype: str) -> None:
    import torch

    partition: Any = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir: Any = import_module("executorch.exir")
    exported = torch.export.export(module, (inputs,), strict=False)
    lowered = exir.to_edge_transform_and_lower(exported, partitioner=[partition.XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _peer_litert(module: nn.Module, inputs: torch.Tensor, path: Path, dtype: str) -> None:
    litert: Any = import_module("litert_torch")
    litert.convert(module, sample_kwargs={"image": inputs}).export(str(path))


def _module(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0].replace("_", "-")
    return name or f"a library of the exporter ({error}; Python {sys.version_info.major}.{sys.version_info.minor})"
