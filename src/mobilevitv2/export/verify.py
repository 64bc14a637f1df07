"""An exported file, run in its own runtime and held against PyTorch: differences, agreement, and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.errors import WeightsError
from mobilevitv2.export.comparing import TIES, TOLERANCES, Comparison, compare, vanished
from mobilevitv2.export.departing import STAGE_ALLOWANCE, advice, differing, failure, stage_differences, stage_failure
from mobilevitv2.export.formats import QUANTISED
from mobilevitv2.export.program import Program
from mobilevitv2.export.samples import MADE
from mobilevitv2.export.truth import torch_outputs
from mobilevitv2.runtime.engines import open_engine
from mobilevitv2.runtime.model import RuntimeModel

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.export.formats import ExportFormat
    from mobilevitv2.export.quantise.calibration import Calibrated

Array = np.ndarray[Any, Any]
LOADS = 3
LOSS_BATCH = 8
RUN_SECONDS, FEWEST_RUNS, MOST_RUNS = 0.5, 5, 100


@dataclass(frozen=True)
class Times:
    """Of several runs, in milliseconds: the median, and the tenth and ninetieth of a hundred."""

    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Verification:
    """What came out.

    Attributes:
        engine, engine_version: what ran the file.
        pictures: how many were compared.
        made: how many of them are noise that was made for it, whose classes are hardly decided.
        comparison: with PyTorch in float32.
        tolerance: that was allowed, as a share of an output's largest value.
        load, run, torch_run: times of opening the file, of one answer, and of the plain PyTorch model's.
        threads: of the runtime's runs; None for its own choice.
        shapes: further inputs that were tried, with their relative difference.
        stages: relative differences of the stem, the stages and the head, where the format compares them each time.
        notes: what the pictures could not show.
    """

    engine: str
    engine_version: str
    pictures: int
    comparison: Comparison
    tolerance: float
    load: Times
    run: Times
    torch_run: Times
    threads: int | None
    shapes: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    made: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "relative_difference": self.comparison.relative}


def verify(
    program: Program,
    fmt: ExportFormat,
    path: Path,
    pictures: Sequence[Image.Image],
    *,
    threads: int | None = None,
    calibrated: Calibrated | None = None,
) -> Verification:
    """Run the file on pictures and compare; `calibrated` is what it was quantised with, to find where it departs.

    Raises:
        WeightsError: it cannot be opened, or its answers are not PyTorch's; the message names the first stage that departs.
    """
    metadata = program.metadata
    tolerance = fmt.tolerance.get(metadata.precision, TOLERANCES[metadata.precision])
    load = _times(lambda: open_engine(path, threads=threads), least=LOADS, most=LOADS)
    model = RuntimeModel(open_engine(path, threads=threads), where=str(path))
    pixels = np.stack([model.prepare(picture) for picture in pictures])
    outputs, truth = model.raw(pixels), torch_outputs(program, pixels)
    if (nothing := vanished(outputs, truth)) is not None:
        raise WeightsError(f"the {fmt.name} file could not be verified, and was removed: {nothing}")
    comparison = compare(metadata, outputs, truth, tolerance=min(tolerance, TIES[metadata.precision]))
    if not comparison.count:
        raise WeightsError(
            f"the {fmt.name} file could not be verified, and was removed: PyTorch finds no {comparison.answers} on the "
            "pictures, so 0 of 0 agree, which proves nothing; pass pictures (--pictures) with something on them, or export a "
            "trained model."
        )
    if not comparison.fits(metadata.precision, tolerance):
        raise WeightsError(failure(program, fmt, comparison, tolerance, pixels, calibrated=calibrated))
    stages = stage_differences(program, fmt, pixels[:1]) if fmt.staged and program.precision not in QUANTISED else {}
    if any(not share <= STAGE_ALLOWANCE * tolerance for share in stages.values()):
        raise WeightsError(stage_failure(fmt, program.precision, comparison, tolerance, stages))
    shapes, notes = _other_shapes(program, fmt, model, _surest_first(pictures, truth), tolerance)
    one = pixels[:1]
    return Verification(
        engine=model.engine.name,
        engine_version=model.engine.version,
        pictures=len(pixels),
        comparison=comparison,
        tolerance=tolerance,
        load=load,
        run=_times(lambda: model.raw(one)),
        torch_run=_times(lambda: torch_outputs(program, one)),
        threads=threads,
        shapes=shapes,
        stages=stages,
        notes=notes,
        made=sum(bool(picture.info.get(MADE)) for picture in pictures),
    )


def measured_loss(program: Program, path: Path, pixels: Array) -> dict[str, Any]:
    """How a quantised file answers beside PyTorch in float32, for the report.

    Args:
        program: that was written.
        path: of the file.
        pixels: uint8 (n, height, width, 3), cut as the file's contract says.
    """
    model, metadata = RuntimeModel(open_engine(path), where=str(path)), program.metadata
    batches = [pixels[start : start + LOSS_BATCH] for start in range(0, len(pixels), LOSS_BATCH)]
    found = [
        compare(metadata, model.raw(batch), torch_outputs(program, batch), tolerance=TIES[metadata.precision]) for batch in batches
    ]
    count = sum(each.count for each in found)
    same = sum(each.agreement * each.count for each in found)
    return {
        "pictures": len(pixels),
        "agreement": same / max(count, 1),
        "answers": found[0].answers,
        "count": count,
        "largest_relative_difference": max(each.relative for each in found),
    }


def _other_shapes(
    program: Program, fmt: ExportFormat, model: RuntimeModel, pictures: Sequence[Image.Image], tolerance: float
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Relative differences at a second batch size and, where sides are free, a second size; and what could not be seen there.

    Raises:
        WeightsError: the file answers otherwise there, or not at all.
    """
    metadata = program.metadata
    free_sides = [axis for axis in ("height", "width") if axis in metadata.dynamic]
    if not metadata.dynamic:
        return {}, ()
    height, width = metadata.picture.height, metadata.picture.width
    size = (height + 64, width + 128) if len(free_sides) == 2 else (height, width)
    batch = 3 if "batch" in metadata.dynamic else 1
    pixels = np.stack([np.asarray(pictures[index % len(pictures)].resize(size[::-1])) for index in range(batch)])
    tie = min(tolerance, TIES[metadata.precision])
    comparison = compare(metadata, model.raw(pixels), torch_outputs(program, pixels), tolerance=tie)
    name = f"{batch} x {size[0]} x {size[1]}"
    if not comparison.fits(metadata.precision, tolerance):
        raise WeightsError(
            f"the {fmt.name} file answers as PyTorch does at {height} x {width}, but not at {name} pixels, which it takes too: "
            f"{differing(comparison, tolerance)}. The file was removed; {_at_one_size(program, fmt)}"
        )
    nothing = f"at {name} neither PyTorch nor the file finds {comparison.answers} on the pictures, so none were compared there"
    return {name: comparison.relative}, () if comparison.count else (nothing,)


def _at_one_size(program: Program, fmt: ExportFormat) -> str:
    fixed = "leave dynamic (--dynamic) out; or " if "height" in program.metadata.dynamic else ""
    return fixed + advice(fmt, program.precision)


def _surest_first(pictures: Sequence[Image.Image], truth: Mapping[str, Array]) -> list[Image.Image]:
    """A detector's pictures, those with the surest detections first; others as they are."""
    if "scores" not in truth:
        return list(pictures)
    return [pictures[index] for index in np.argsort(-truth["scores"].max(axis=(1, 2)), kind="stable")]


def _times(action: Callable[[], object], *, least: int = FEWEST_RUNS, most: int = MOST_RUNS) -> Times:
    """Times of an action; one run before is not counted."""
    action()
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < least or (len(taken) < most and time.perf_counter() - start < RUN_SECONDS):
        before = time.perf_counter()
        action()
        taken.append(1e3 * (time.perf_counter() - before))
    low, high = np.quantile(taken, (0.1, 0.9))
    return Times(round(statistics.median(taken), 3), round(float(low), 3), round(float(high), 3), len(taken))
