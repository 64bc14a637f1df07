"""Files that cannot be run on this system, evaluated operator by operator on a few pictures and held against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.errors import WeightsError
from mobilevitv2.export.comparing import TIES, Comparison, compare, vanished
from mobilevitv2.export.departing import Runner, advice, differing, failure
from mobilevitv2.export.report import Checked
from mobilevitv2.export.samples import MADE, made_picture
from mobilevitv2.export.truth import torch_outputs
from mobilevitv2.runtime.preprocessing import prepare
from mobilevitv2.text_table import counted

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.export.formats import ExportFormat
    from mobilevitv2.export.program import Program

Array = np.ndarray[Any, Any]
Evaluate = Callable[[Array], Mapping[str, Array]]
"""Outputs by the program's names for uint8 pictures (n, height, width, 3)."""
MOST_PICTURES = 3
"""Each costs a pass of an evaluator that is slower than any runtime."""
MOST_SIZES = 3


def held_against_pytorch(
    program: Program,
    fmt: ExportFormat,
    evaluate: Evaluate,
    pictures: Sequence[Image.Image],
    *,
    run: Runner,
    what: str,
    sizes: Sequence[tuple[int, int]] = (),
    lines: Sequence[str] = (),
) -> Checked:
    """Compare what the evaluator gives with PyTorch.

    Args:
        program: that was written.
        fmt: its format.
        evaluate: the file, read back.
        pictures: real ones are taken first, at most three; a made one where there are none.
        run: the same for another file, to find the stage that departs.
        what: is evaluated, for the first line.
        sizes: that the file takes besides its usual one; each is tried with one picture.
        lines: for the report, behind the comparison's own.

    Raises:
        WeightsError: its answers are not PyTorch's; the message names the first stage that departs.
    """
    chosen = sorted(pictures or [made_picture(0)], key=lambda each: bool(each.info.get(MADE)))[:MOST_PICTURES]
    tolerance = fmt.tolerance[program.precision]
    pixels = np.stack([prepare(picture, program.metadata.picture) for picture in chosen])
    comparison = _compared(program, fmt, evaluate, pixels, tolerance)
    if not comparison.fits(program.precision, tolerance):
        raise WeightsError(failure(program, fmt, comparison, tolerance, pixels, run=run))
    shapes = {}
    for height, width in sizes:
        name = f"{height} x {width}"
        one = np.asarray(chosen[0].resize((width, height)))[None]
        there = _compared(program, fmt, evaluate, one, tolerance)
        if not there.fits(program.precision, tolerance):
            raise WeightsError(
                f"the {fmt.name} file answers as PyTorch does at its usual size, but not at {name}, which it takes too: "
                f"{differing(there, tolerance)}. The file was removed; leave dynamic (--dynamic) out; or "
                f"{advice(fmt, program.precision)}"
            )
        shapes[name] = there.relative
    first = (
        f"not run: {what}, evaluated operator by operator on {counted(len(chosen), 'picture')}, differs from PyTorch by "
        f"{comparison.relative:.2g} of the largest value"
    )
    return Checked(
        lines=(first, *lines),
        comparison=comparison,
        tolerance=tolerance,
        pictures=len(chosen),
        made=sum(bool(picture.info.get(MADE)) for picture in chosen),
        shapes=shapes,
    )


def _compared(program: Program, fmt: ExportFormat, evaluate: Evaluate, pixels: Array, tolerance: float) -> Comparison:
    metadata = program.metadata
    outputs, truth = evaluate(pixels), torch_outputs(program, pixels)
    if (nothing := vanished(outputs, truth)) is not None:
        raise WeightsError(f"the {fmt.name} file could not be checked, and was removed: {nothing}")
    return compare(metadata, outputs, truth, tolerance=min(tolerance, TIES[metadata.precision]))


def one_by_one(evaluate: Callable[[Array], Mapping[str, Array]], inputs: Sequence[Array]) -> dict[str, Array]:
    """The outputs for a batch from an evaluator of single pictures."""
    found = [evaluate(each) for each in inputs]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


__all__ = ["MOST_SIZES", "held_against_pytorch", "one_by_one"]
