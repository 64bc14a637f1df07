"""Where a file departs from PyTorch, and what to do then: the sentences of the errors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.export.comparing import Comparison, relative_differences
from mobilevitv2.export.formats import QUANTISED
from mobilevitv2.export.program import Program, build_program
from mobilevitv2.export.truth import torch_outputs

if TYPE_CHECKING:
    from mobilevitv2.export.formats import ExportFormat
    from mobilevitv2.export.quantise.calibration import Calibrated

Array = np.ndarray[Any, Any]
Runner = Callable[[Program, Path, Array], Mapping[str, Array]]
"""The outputs of a file for uint8 pictures (n, height, width, 3), as its input contract cuts them."""
STAGE_ALLOWANCE = 2
"""How much more than the answers a single stage may differ: an average over a map takes part of its noise away."""


def run_in_engine(program: Program, path: Path, pixels: Array) -> Mapping[str, Array]:
    """The runner of every format that has an engine here."""
    from mobilevitv2.runtime.engines import open_engine
    from mobilevitv2.runtime.model import RuntimeModel

    return RuntimeModel(open_engine(path), where=str(path)).raw(pixels)


def stage_differences(
    program: Program, fmt: ExportFormat, pixels: Array, *, calibrated: Calibrated | None = None, run: Runner = run_in_engine
) -> dict[str, float]:
    """Relative differences of the stem, each stage and the head, from a second file that gives them."""
    staged = build_program(program.model, program.metadata, layout=fmt.layout, stages=True)
    with tempfile.TemporaryDirectory(prefix="mobilevitv2-") as folder:
        path = Path(folder, f"stages{fmt.suffix}")
        if program.precision in fmt.precisions:
            fmt.write(staged, path)
        else:
            assert fmt.quantise is not None  # checked with the request
            fmt.quantise(staged, path, calibrated)
        return relative_differences(run(staged, path, pixels), torch_outputs(staged, pixels))


def failure(
    program: Program,
    fmt: ExportFormat,
    comparison: Comparison,
    tolerance: float,
    pixels: Array,
    *,
    calibrated: Calibrated | None = None,
    run: Runner = run_in_engine,
) -> str:
    """The message where the answers depart."""
    where = departure(program, fmt, pixels, tolerance, calibrated=calibrated, run=run)
    return (
        f"the {fmt.name} file does not answer as PyTorch does: {differing(comparison, tolerance)}. {where} The file was removed; "
        f"{advice(fmt, program.precision)}"
    )


def stage_failure(fmt: ExportFormat, precision: str, comparison: Comparison, tolerance: float, shares: Mapping[str, float]) -> str:
    """The message where the answers agree and a stage inside does not."""
    allowed = STAGE_ALLOWANCE * tolerance
    first = next(name for name, share in shares.items() if not share <= allowed)
    return (
        f"the {fmt.name} file answers as PyTorch does ({_agreement(comparison)}), "
        f"but departs inside, which answers that hardly depend on the picture hide. The first stage that departs is {first} "
        f"(relative differences: {_told(shares)}; allowed is {allowed:g}). The file was removed; {advice(fmt, precision)}"
    )


def differing(comparison: Comparison, tolerance: float) -> str:
    """The differences and the agreement, in words."""
    found = ", ".join(f"{name} by {value:.3g} of {comparison.largest[name]:.3g}" for name, value in comparison.differences.items())
    agree = _agreement(comparison)
    if comparison.decided < comparison.agreement:  # of detections, some of the file's own are not PyTorch's
        agree += f", {comparison.decided:.1%} with all that the file finds besides"
    return f"{found} (allowed is {tolerance:g} of the largest value), {agree}"


def _agreement(comparison: Comparison) -> str:
    return f"{comparison.agreement:.1%} of {comparison.count} {comparison.answers} agree"


def departure(
    program: Program,
    fmt: ExportFormat,
    pixels: Array,
    tolerance: float,
    *,
    calibrated: Calibrated | None = None,
    run: Runner = run_in_engine,
) -> str:
    """A sentence: the first stage whose output in the file differs by more than the tolerance."""
    try:
        shares = stage_differences(program, fmt, pixels[:1], calibrated=calibrated, run=run)
    except Exception as error:  # whatever the exporter makes of it; the main message stands without
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"Which stage departs cannot be said: a file that gives its stages could not be written and run ({reason})."
    for name, share in shares.items():
        if not share <= tolerance:
            return f"The first stage that departs is {name} (relative differences: {_told(shares)})."
    if program.precision in QUANTISED:
        worst = max(shares, key=lambda name: shares[name])
        return (
            f"No stage by itself departs by more than {tolerance:g}; {worst} differs most (relative differences: {_told(shares)})."
        )
    return f"Every stage by itself agrees ({_told(shares)}); what departs lies behind them."


def _told(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.2g}" for name, share in shares.items())


def advice(fmt: ExportFormat, precision: str) -> str:
    """What to do about a file of this precision, to the end of the sentence."""
    wider = " or ".join(name for name in ("fp32", "fp16") if name in fmt.offered and name != precision)
    if precision == "int8":
        less = "take int8-weights, " if "int8-weights" in fmt.offered else ""
        return (
            "8 bits cost too much here: calibrate on more pictures like those to come (--calibrate), "
            f"{less}or stay in float (--precision {wider})."
        )
    if precision == "int8-weights":
        return f"weights of 8 bits cost too much here: stay in float (--precision {wider})."
    if precision in ("fp16", "bf16"):
        return "16 bits cost too much here: take --precision fp32; where that fails too, report the model's configuration."
    return "no precision is finer, so report the model's configuration, or take another format."
