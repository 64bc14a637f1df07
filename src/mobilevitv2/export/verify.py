"""An exported file, run in its own runtime and held against PyTorch: differences, agreement, times, and where it departs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobilevitv2.errors import WeightsError
from mobilevitv2.export.comparing import TIES, TOLERANCES, Comparison, compare, relative_differences, vanished
from mobilevitv2.export.program import Answering, Program, build_program, stage_names
from mobilevitv2.export.samples import MADE
from mobilevitv2.runtime.engines import open_engine
from mobilevitv2.runtime.model import RuntimeModel
from mobilevitv2.segmentation import upsample

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.export.formats import ExportFormat

Array = np.ndarray[Any, Any]
LOADS = 3
LOSS_BATCH = 8
QUANTISED = ("int8", "int8-weights")
STAGE_ALLOWANCE = 2
"""How much more than the answers a single stage may differ: an average over a map takes part of its noise away."""
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "relative_difference": self.comparison.relative}


def verify(
    program: Program, fmt: ExportFormat, path: Path, pictures: Sequence[Image.Image], *, threads: int | None = None
) -> Verification:
    """Run the file on pictures and compare.

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
        raise WeightsError(_failure(program, fmt, comparison, tolerance, pixels))
    stages = stage_differences(program, fmt, pixels[:1]) if fmt.staged and program.precision not in QUANTISED else {}
    if any(not share <= STAGE_ALLOWANCE * tolerance for share in stages.values()):
        raise WeightsError(_failure(program, fmt, comparison, tolerance, pixels))
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
        shapes=_other_shapes(program, model, pictures, tolerance),
        stages=stages,
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


def torch_outputs(program: Program, pixels: Array) -> dict[str, Array]:
    """The plain model's outputs in float32 for uint8 pictures (batch, height, width, 3), raw and as the file gives them."""
    metadata = program.metadata
    plain = Answering(
        program.model, picture=_inside(metadata), layout="NHWC", postprocessing="none", dtype=torch.float32, stages=program.stages
    ).eval()
    collected: dict[str, list[Array]] = {}
    with torch.inference_mode():
        for start in range(0, len(pixels), 4):
            image = torch.from_numpy(np.ascontiguousarray(pixels[start : start + 4]))
            answer = plain(image)
            if program.stages or metadata.task == "detect":
                names = stage_names(metadata.task) if program.stages else ("scores", "boxes")
                values = dict(zip(names, answer, strict=True))
            else:
                values = {"logits": answer, **_finished(program, answer, (image.shape[1], image.shape[2]))}
            for name, value in values.items():
                collected.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def _finished(program: Program, logits: torch.Tensor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    post = program.metadata.postprocessing
    if post == "softmax":
        return {"probabilities": logits.softmax(-1)}
    if post == "sigmoid":
        return {"probabilities": logits.sigmoid()}
    return {"map_logits": upsample(logits, size)} if post == "argmax" else {}


def _inside(metadata: Any) -> Any:
    from dataclasses import replace

    return replace(metadata.picture, inside=True)


def _other_shapes(program: Program, model: RuntimeModel, pictures: Sequence[Image.Image], tolerance: float) -> dict[str, float]:
    """Relative differences at a second batch size and, where sides are free, a second size.

    Raises:
        WeightsError: the file answers otherwise there, or not at all.
    """
    metadata, found = program.metadata, {}
    free_sides = [axis for axis in ("height", "width") if axis in metadata.dynamic]
    if not metadata.dynamic:
        return {}
    height, width = metadata.picture.height, metadata.picture.width
    size = (height + 64, width + 128) if len(free_sides) == 2 else (height, width)
    batch = 3 if "batch" in metadata.dynamic else 1
    pixels = np.stack([np.asarray(pictures[index % len(pictures)].resize(size[::-1])) for index in range(batch)])
    tie = min(tolerance, TIES[metadata.precision])
    comparison = compare(metadata, model.raw(pixels), torch_outputs(program, pixels), tolerance=tie)
    name = f"{batch} x {size[0]} x {size[1]}"
    if not comparison.fits(metadata.precision, tolerance):
        raise WeightsError(f"the file differs from PyTorch by {comparison.relative:.2g} at {name}, though it takes that size.")
    found[name] = comparison.relative
    return found


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


# ---- where a file departs --------------------------------------------------------------------------------------------------------


def _failure(program: Program, fmt: ExportFormat, comparison: Comparison, tolerance: float, pixels: Array) -> str:
    found = ", ".join(f"{name} by {value:.3g} of {comparison.largest[name]:.3g}" for name, value in comparison.differences.items())
    where = _advice() if program.precision in QUANTISED else departure(program, fmt, pixels, tolerance)
    return (
        f"the {fmt.name} file does not answer as PyTorch does: {found} (allowed is {tolerance:g} of the largest value), "
        f"{comparison.agreement:.1%} of {comparison.count} {comparison.answers} agree. {where} "
        "The file was removed; try another precision (--precision), or report the model's configuration."
    )


def _advice() -> str:
    return "8 bits cost too much here: calibrate on pictures like those to come, take int8-weights, or stay in float."


def departure(program: Program, fmt: ExportFormat, pixels: Array, tolerance: float) -> str:
    """A sentence: the first stage whose output in the file differs by more than the tolerance."""
    try:
        shares = stage_differences(program, fmt, pixels[:1])
    except Exception as error:  # whatever the exporter makes of it; the main message stands without
        return f"Its stages could not be compared ({str(error).splitlines()[0] if str(error) else type(error).__name__})."
    told = ", ".join(f"{name} {share:.2g}" for name, share in shares.items())
    for name, share in shares.items():
        if not share <= tolerance:
            return f"The first stage that departs is {name} (relative differences: {told})."
    return f"Every stage by itself agrees ({told}); what departs lies behind them."


def stage_differences(program: Program, fmt: ExportFormat, pixels: Array) -> dict[str, float]:
    """Relative differences of the stem, each stage and the head, from a file that gives them."""
    staged = build_program(program.model, program.metadata, layout=fmt.layout, stages=True)
    with tempfile.TemporaryDirectory(prefix="mobilevitv2-") as folder:
        path = Path(folder, f"stages{fmt.suffix}")
        fmt.write(staged, path)
        model = RuntimeModel(open_engine(path), where=str(path))
        return relative_differences(model.raw(pixels), torch_outputs(staged, pixels))
