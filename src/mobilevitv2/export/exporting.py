"""`export`: a model becomes a file that was run and compared, or nothing."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.formats import QUANTISED, ExportFormat, Written
from mobilevitv2.export.metadata import describe, licence_of, natural_size, with_versions
from mobilevitv2.export.report import ExportReport
from mobilevitv2.export.request import Suppression, check_path, check_request, check_size, free_axes
from mobilevitv2.export.suppressing import suppression_inside

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor


def export(
    model: str | os.PathLike[str] | MobileViTV2PreTrainedModel,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    delegate: str | None = None,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    preprocessing: bool = False,
    postprocessing: bool = True,
    suppression: Suppression | None = None,
    calibration: Any = None,
    processor: MobileViTV2ImageProcessor | None = None,
    task: str | None = None,
    pictures: Iterable[Any] | None = None,
    source: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> ExportReport:
    """Write a model in the format of a device's runtime, run the file there, and compare it with PyTorch.

    The file takes its name only when the comparison is passed; a report beside it (`model.onnx.report.json`) holds what came out.

    Args:
        model: the name of a record, a folder, a hub id, a weights file, or a model.
        path: of the file; its ending is the format's.
        format: "onnx", "openvino", "executorch", "litert" or "coreml"; told from the path's ending where None.
        delegate: what calculates on the device, for "executorch": "xnnpack" (where None) or "coreml", whose files run on Apple's
            systems only, so they are evaluated operator by operator in place of being run.
        precision: "fp32", "fp16", "bf16", "int8" or "int8-weights", as far as the format has it.
        size: (height, width) of the input; that of the image processor where None.
        dynamic: leave height and width free too, for multiples of 64 from 128 on. The batch is free in any case where the format
            can do that.
        preprocessing: take uint8 (batch, height, width, 3) in RGB and scale inside.
        postprocessing: give probabilities, class maps, or detections that went through suppression (decoded boxes where the format
            has no suppression), instead of logits, coarse logits, or decoded boxes.
        suppression: settings of a detector's suppression inside the file.
        calibration: data for "int8": a folder of pictures, a data set of any layout that the package opens, paths, pictures, or a
            `mobilevitv2.export.quantise.Calibration` with settings. Pictures that cannot be read are skipped, and named in the
            report.
        processor: of `model`, where that is a model; where None that of the folder or record it was loaded from, else the official
            validation's, which the report notes.
        task: where a source does not tell.
        pictures: to compare on, paths or pictures; where None, some of the calibration's that were kept from the ranges, or
            photographs that are at hand, and made pictures.
        source: name of the weights for the file's metadata; where None that of the record, folder or file.
        licence: of the weights, for the file's metadata; where None that of the record, or what README.md or config.json beside
            the weights says (`license`), else "unknown".
        overwrite: replace what is there.
        threads: of the runtime while it is timed; its own choice where None.

    Raises:
        ConfigurationError: a format, delegate, precision or size that there is not, or a path that is taken.
        MissingDependency: the format's libraries are not installed.
        WeightsError: weights that cannot be read, or a file that does not answer as PyTorch does; it is gone then.
    """
    fmt = check_request(
        model,
        path,
        format=format,
        delegate=delegate,
        precision=precision,
        size=size,
        dynamic=dynamic,
        calibration=calibration,
        overwrite=overwrite,
        threads=threads,
    )
    place = Path(path)
    if isinstance(model, str | os.PathLike):
        from mobilevitv2.contract import load_model

        licence = licence or licence_of(model)
        source = source or source_name(model)
        model, own = load_model(model, task=task)
        processor = processor or own
    _check_task(model, task)
    model = _plain(model)
    notes: tuple[str, ...] = ()
    if processor is None:
        processor, notes = _processor_of(model)
    size = size or natural_size(model, processor)
    check_size(size, dynamic=dynamic)
    limits = suppression_inside(suppression, fmt, task=model.task, postprocessing=postprocessing)
    metadata = describe(
        model,
        processor,
        fmt,
        precision=precision,
        size=size,
        dynamic=free_axes(fmt, dynamic),
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        suppression=limits,
        source=source or source_name(_origin(model)),
        licence=licence or licence_of(source or _origin(model)),
    )
    metadata = replace(metadata, notes=notes)
    calibrated = None
    if calibration is not None:
        from mobilevitv2.export.quantise.calibration import Calibration, read_calibration

        calibrated = read_calibration(Calibration.of(calibration), metadata.picture, task=metadata.task)
    from mobilevitv2.export.program import build_program
    from mobilevitv2.export.samples import sample_pictures

    samples = sample_pictures(calibrated.samples if pictures is None and calibrated and calibrated.samples else pictures)
    program = build_program(model, metadata, layout=fmt.layout, suppression=limits)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", suffix=".part", dir=place.parent) as folder:
        report = _written_and_verified(program, fmt, Path(folder, place.name), samples, calibrated, threads)
        report_path = report.path.with_name(f"{place.name}.report.json")
        report = replace(report, path=place)
        report_path.write_text(report.to_json(), encoding="utf-8")
        check_path(place, fmt, overwrite)  # again: somebody may have written there meanwhile
        _move(
            [*(Path(folder, name) for name in report.files if name != place.name), report_path, Path(folder, place.name)],
            place.parent,
        )
    return report


def _written_and_verified(
    program: Program, fmt: ExportFormat, path: Path, samples: list[Any], calibrated: Calibrated | None, threads: int | None
) -> ExportReport:
    from mobilevitv2.export.verify import verify

    start = time.perf_counter()
    written = _write(program, fmt, path, calibrated)
    seconds = time.perf_counter() - start
    checked = fmt.check(program, path, samples) if fmt.check is not None else None
    verification = None if fmt.engine is None else verify(program, fmt, path, samples, threads=threads, calibrated=calibrated)
    return ExportReport(
        path=path,
        files={each.name: _bytes_of(each) for each in written.files},
        format=fmt.name,
        delegate=fmt.delegate,
        metadata=with_versions(program.metadata, written.versions),
        operators=written.operators,
        outside=written.outside,
        seconds=seconds,
        verification=verification,
        checked=checked,
        notes=tuple(note for note in (*program.metadata.notes, *written.notes, calibrated.note if calibrated else "") if note),
        quantisation=_quantisation(program, fmt, path, written, calibrated),
    )


def _quantisation(
    program: Program, fmt: ExportFormat, path: Path, written: Written, calibrated: Calibrated | None
) -> dict[str, Any] | None:
    """What was done, and what it costs on pictures that had no part in the ranges."""
    if written.quantisation is None:
        return None
    told = dict(written.quantisation)
    if calibrated is not None and fmt.engine is not None:
        from mobilevitv2.export.verify import measured_loss

        told |= {"calibration_pictures": len(calibrated.ranges), "of": calibrated.found, "skipped": list(calibrated.skipped)}
        told["loss"] = measured_loss(program, path, calibrated.held)
    return told


def _write(program: Program, fmt: ExportFormat, path: Path, calibrated: Calibrated | None) -> Written:
    if program.precision in QUANTISED and program.precision not in fmt.precisions:
        assert fmt.quantise is not None  # checked with the request
        return fmt.quantise(program, path, calibrated)
    return fmt.write(program, path)


# ---- the model -------------------------------------------------------------------------------------------------------------------


def _check_task(model: MobileViTV2PreTrainedModel, task: str | None) -> None:
    if model.task not in ("classify", "segment", "detect"):
        raise ConfigurationError(f"a model of task {model.task!r} has no exported form; load it as classify, segment or detect.")
    if task is not None and model.task != task:
        raise ConfigurationError(f"task={task!r}, but the model is of task {model.task!r}; leave task (--task) out.")
    if model.config.num_channels != 3:
        raise ConfigurationError(f"num_channels={model.config.num_channels}; exported files take RGB pictures, 3 channels.")


def _plain(model: MobileViTV2PreTrainedModel) -> MobileViTV2PreTrainedModel:
    """The model in evaluation mode, in float32 on the processor; a copy where it is not, so that the caller's stays as it is."""
    import torch

    tensors = (*model.parameters(), *model.buffers())
    as_wanted = all(each.device.type == "cpu" and each.dtype in (torch.float32, torch.int64) for each in tensors)
    return model if as_wanted and not model.training else copy.deepcopy(model).to("cpu", torch.float32).eval()


def _processor_of(model: MobileViTV2PreTrainedModel) -> tuple[MobileViTV2ImageProcessor, tuple[str, ...]]:
    """Of a model: that of the folder or record it came from; else the official validation's, with a note that says so."""
    from mobilevitv2.contract import official_processor, own_processor

    found = own_processor(model)
    if found is not None:
        return found, ()
    return official_processor(model.config, task=model.task), ("pictures are prepared as the official validation does it",)


def _origin(model: MobileViTV2PreTrainedModel) -> str | None:
    """What the model was loaded from."""
    return str(getattr(model.config, "_name_or_path", "") or "") or None


def source_name(source: str | os.PathLike[str] | None) -> str | None:
    """Without the folders of this machine."""
    if source is None or not os.path.exists(source):
        return None if source is None else os.fspath(source)
    return Path(source).name or Path(source).resolve().name  # "." has none; what a link leads to is no name


# ---- files -----------------------------------------------------------------------------------------------------------------------


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _move(paths: Iterable[Path], folder: Path) -> None:
    """Each to its place, the one to open last; where that is interrupted, all that was there before is there again.

    A file is replaced in one step, so that whole ones stand there at any time; a folder cannot be.
    """
    begun: list[tuple[Path, Path, Path]] = []
    try:
        for path in paths:
            target, kept = folder / path.name, path.with_name(f"{path.name}.before")
            begun.append((path, target, kept))
            if target.is_dir():
                target.rename(kept)
            elif target.exists():
                shutil.copy2(target, kept)
            path.replace(target)
    except BaseException:
        for path, target, kept in reversed(begun):
            _put_back(path, target, kept)
        raise


def _put_back(path: Path, target: Path, kept: Path) -> None:
    moved = not path.exists()
    if moved and kept.is_file():
        kept.replace(target)
    elif moved:
        target.rename(path)
    if kept.is_dir():
        kept.rename(target)
