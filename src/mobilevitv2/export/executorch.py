"""ExecuTorch: a .pte file whose operators run in XNNPACK.

The metadata lie in the file as a method of their own that returns the text, which every binding of the runtime can call.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.formats import Written
from mobilevitv2.export.forms import FIXED_ANCHORS, TokenNorm, token_module
from mobilevitv2.export.program import Answering
from mobilevitv2.runtime.metadata import METADATA_KEY
from mobilevitv2.runtime.preprocessing import as_input
from mobilevitv2.text_table import counted

if TYPE_CHECKING:
    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated

METHOD = "forward"
ROUNDING = "sums in 16 bits were rounded as this processor's kernels do it; those of a phone may round otherwise"


def write(program: Program, path: Path) -> Written:
    """Lower the program to XNNPACK and write it.

    In fp16 all but the last softmax and a detector's boxes is calculated in 16 bits; ExecuTorch's exporter stores the weights of
    convolutions, a quarter of the classifier's, in 32.

    Raises:
        ConfigurationError: a free axis (XNNPACK's reshape takes none).
    """
    check_axes(program)
    with quiet():
        module = token_module(program, free_mean=False)
        if program.precision == "fp16":
            _halve(module)
        with torch.no_grad():
            exported = torch.export.export(module, (program.example,), strict=False)
        written = finished(program, path, _lower(program, exported))
    return replace(written, notes=(*written.notes, ROUNDING)) if program.precision == "fp16" else written


class Gated(nn.Module):
    """SiLU in two operations: integers have no other, and in 16 bits torch's own would come apart with casts around it."""

    def forward(self, x: Tensor) -> Tensor:
        """x sigmoid(x)."""
        return x * torch.sigmoid(x)


def gate_silu(module: nn.Module) -> None:
    """Put `Gated` in the place of every SiLU."""
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(part, name, Gated())


def _halve(module: nn.Module) -> None:
    """Weights and arithmetic in 16 bits, in place. XNNPACK changes no types, so every cast would cut the delegate in two."""
    assert isinstance(module, Answering)
    gate_silu(module)
    for part in module.modules():
        if isinstance(part, TokenNorm):  # a number would become a float32 constant with a cast behind it
            eps = torch.full((1, 1, 1), part.eps)
            del part.eps
            part.register_buffer("eps", eps, persistent=False)
    anchors = getattr(module.model, FIXED_ANCHORS, None)
    module.model.half()
    module.dtype = torch.float16
    if anchors is not None:  # places in the picture, which boxes are calculated from in float32
        setattr(module.model, FIXED_ANCHORS, anchors)


def quantise(program: Program, path: Path, calibration: Calibrated | None) -> Written:
    """The program with 8-bit weights and values, as `path`.

    Raises:
        ConfigurationError: a free axis.
    """
    check_axes(program)
    assert calibration is not None  # weights alone are not offered
    with quiet():
        from mobilevitv2.export.quantise.executorch_quantising import PARTITIONER_CONFIGS, quantised_program

        images = (torch.from_numpy(as_input(each[None], program.metadata.picture, "NCHW")) for each in calibration.ranges)
        made = quantised_program(token_module(program, free_mean=False), program.example, images)
        written = finished(program, path, _lower(program, made.exported, PARTITIONER_CONFIGS))
    integer, weighted = made.integer
    told = {
        "weights": "int8 by channel",
        "values": f"int8, ranges from {counted(len(calibration.ranges), 'picture')}",
        "integer_convolutions": integer,
        "convolutions": weighted,
        "float_parts": ["attention.key", "softmax", "sums over tokens", "norms", "residual stream of transformers", "last layers"],
    }
    return replace(written, quantisation=told, versions={**written.versions, "torchao": version("torchao")})


def check_axes(program: Program) -> None:
    """Refuse free axes."""
    if program.dynamic:
        raise ConfigurationError(f"{' and '.join(program.dynamic)} cannot be free in ExecuTorch; export one file for each shape.")


def finished(program: Program, path: Path, lowered: Any) -> Written:
    """Write a lowered program, and see which operators it has."""
    operators, outside = _operators(lowered.exported_program())
    path.write_bytes(lowered.to_executorch().buffer)
    notes = (f"operators outside the delegate: {', '.join(outside)}",) if outside else ()
    versions = {name: version(name) for name in ("executorch", "torch")}
    return Written(files=(path,), operators=operators, outside=outside, versions=versions, notes=notes)


def _lower(program: Program, exported: Any, configs: list[Any] | None = None) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(
        exported,
        partitioner=[XnnpackPartitioner(configs=configs)],
        constant_methods={METADATA_KEY: program.metadata.to_json()},
    )


def _operators(exported: Any) -> tuple[dict[str, int], dict[str, int]]:
    """How many operators of each kind there are in all, and outside the delegate."""
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    for node in exported.graph.nodes:
        if node.op == "call_function" and "call_delegate" not in str(node.target) and "getitem" not in str(node.target):
            outside[_name(node.target)] += 1
    for _, part, _ in _delegates(exported):
        inside.update(_name(node.target) for node in part.original_module.graph.nodes if node.op == "call_function")
    return dict(inside + outside), dict(outside)


def _delegates(exported: Any) -> Iterator[tuple[str, Any, Any]]:
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    return iter(get_lowered_submodules(exported.graph_module))


def _name(target: Any) -> str:
    """ "aten::convolution" -> "convolution"."""
    schema = getattr(target, "_schema", None)
    return str(getattr(schema, "name", target)).split("::")[-1].split(".")[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn, log and print about their own insides; inside, only what raises is heard."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
