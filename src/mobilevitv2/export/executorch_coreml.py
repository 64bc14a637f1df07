"""ExecuTorch with the Core ML delegate: a .pte that holds a Core ML program, written anywhere and run on Apple's systems only.

Core ML takes no arrays of bytes, so a file with preprocessing inside widens them itself, before the delegate. All else lies in one
Core ML program. In 16 bits it has the casts of the model's own half precision, so that sums over tokens, softmax and statistics of
norms stay in 32: the delegate's own setting would take everything in 16.

Nothing here can run such a file on Linux. What is checked: the program is read back from the file and evaluated operator by
operator (`coreml_evaluation`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevitv2.errors import WeightsError
from mobilevitv2.export.coreml import (
    FEWEST_WEIGHTS,
    NOT_RUN,
    TARGET,
    loaded,
    looked_through,
)
from mobilevitv2.export.evaluating import held_against_pytorch, one_by_one
from mobilevitv2.export.executorch import METHOD, check_axes, finished, quiet
from mobilevitv2.export.formats import EXECUTORCH_COREML, Written
from mobilevitv2.export.program import Answering
from mobilevitv2.runtime.metadata import METADATA_KEY
from mobilevitv2.runtime.preprocessing import as_input

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated
    from mobilevitv2.export.report import Checked

Array = np.ndarray[Any, Any]
BACKEND = "CoreMLBackend"
WEIGHTED = ("conv2d", "linear")
WEIGHTS_OF_8_BITS = {
    "mode": "linear_symmetric",
    "dtype": "int8",
    "granularity": "per_channel",
    "weight_threshold": FEWEST_WEIGHTS,
}


class Widened(nn.Module):
    """The module with bytes made floats before all else, so that this alone stays outside the delegate."""

    def __init__(self, module: Answering) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """As `Answering`."""
        return self.module(image.float())  # type: ignore[no-any-return]  # nn.Module's call is untyped


def write(program: Program, path: Path) -> Written:
    """Lower the program to Core ML and write it.

    Raises:
        ConfigurationError: a free axis.
    """
    check_axes(program)
    assert isinstance(program.module, Answering)
    return _written(program, path, program.module, weights=None)


def quantise(program: Program, path: Path, calibration: Calibrated | None) -> Written:
    """The program with 8-bit weights, by channel and symmetric; it calculates in 16 bits.

    Raises:
        ConfigurationError: a free axis.
    """
    check_axes(program)
    module = copy.deepcopy(program.module)
    assert isinstance(module, Answering)
    module.model.half()
    module.dtype = torch.float16
    written = _written(program, path, module, weights=WEIGHTS_OF_8_BITS)
    told = {
        "weights": "int8 by channel",
        "values": "float16",
        "integer_convolutions": 0,
        "convolutions": sum(written.operators.get(name, 0) for name in WEIGHTED),
    }
    return replace(written, quantisation=told)


def _written(program: Program, path: Path, module: Answering, *, weights: dict[str, Any] | None) -> Written:
    with quiet(), torch.no_grad():
        exported = torch.export.export(Widened(module).eval(), (program.example,), strict=False)
        written = finished(program, path, _lowered(program, exported, weights))
    versions = {**written.versions, "coremltools": version("coremltools")}
    return replace(written, versions=versions, notes=(*written.notes, NOT_RUN))


def _lowered(program: Program, exported: Any, weights: dict[str, Any] | None) -> Any:
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.exir import to_edge_transform_and_lower

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(coremltools.target, TARGET),
        compute_precision=coremltools.precision.FLOAT32,  # types as the module has them
        op_linear_quantizer_config=weights,
    )
    return to_edge_transform_and_lower(
        exported, partitioner=[_partitioner(specs)], constant_methods={METADATA_KEY: program.metadata.to_json()}
    )


def _partitioner(specs: list[Any]) -> Any:
    """ExecuTorch's, which knows names of operators alone, without those that read bytes."""
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    class WithoutBytes(CoreMLPartitioner):  # type: ignore[misc]  # executorch ships no types
        def partition(self, exported_program: Any) -> Any:
            result = super().partition(exported_program)
            for node in exported_program.graph.nodes:
                if node.op == "call_function" and any(_holds_bytes(each) for each in node.all_input_nodes):
                    node.meta.pop("delegation_tag", None)
            return result

    return WithoutBytes(compile_specs=specs)


def _holds_bytes(node: Any) -> bool:
    return getattr(node.meta.get("val"), "dtype", None) == torch.uint8


# ---- what was written ------------------------------------------------------------------------------------------------------------


def check(program: Program, path: Path, pictures: Sequence[Image.Image] = ()) -> Checked:
    """What can be said of a file that cannot be run here.

    Args:
        program: that was written.
        path: of the file.
        pictures: to compare on, a few of which are taken.

    Raises:
        WeightsError: more than one program, an operator that is not known here, or a program that does not answer as PyTorch does.
    """
    with tempfile.TemporaryDirectory(prefix="mobilevitv2-") as folder:
        mil = _program_in(path, Path(folder))
        line = looked_through(mil)
    return held_against_pytorch(
        program,
        EXECUTORCH_COREML,
        lambda pixels: _evaluated(program, mil, pixels),
        pictures,
        run=_run,
        what="its Core ML program, read back",
        lines=(line,),
    )


def _program_in(path: Path, folder: Path) -> Any:
    with quiet():
        return loaded(package(path, folder))


def _run(program: Program, path: Path, pixels: Array) -> dict[str, Array]:
    with tempfile.TemporaryDirectory(prefix="mobilevitv2-") as folder:
        return _evaluated(program, _program_in(path, Path(folder)), pixels)


def _evaluated(program: Program, mil: Any, pixels: Array) -> dict[str, Array]:
    from mobilevitv2.export.coreml_evaluation import evaluate

    picture = program.metadata.picture
    inputs = [as_input(each[None], picture, program.layout).astype(np.float32) for each in pixels]
    found = one_by_one(lambda image: evaluate(mil, image), inputs)
    names = [output.name for output in mil.functions["main"].outputs]
    return {ours: found[name] for ours, name in zip(program.outputs, names, strict=True)}


def package(path: Path, folder: Path) -> Path:
    """The .mlpackage inside the file, unpacked in the folder.

    Raises:
        WeightsError: there is not just one.
    """
    from executorch.backends.apple.coreml import executorchcoreml
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    plan = next(each for each in program.execution_plan if each.name == METHOD)
    delegates = [each for each in plan.delegates if each.id == BACKEND]
    if len(delegates) != 1:
        raise WeightsError(f"{path.name} came apart into {len(delegates)} Core ML programs, where one was meant; it was removed.")
    payload = program.backend_delegate_data[delegates[0].processed.index].data
    if not executorchcoreml.unflatten_directory_contents(bytes(payload), str(folder)):
        raise WeightsError(f"the Core ML program inside {path.name} cannot be unpacked; it was removed.")
    return folder / "lowered_module" / "model.mlpackage"  # as the delegate itself unpacks it
