"""What is asked for, checked before any work: nothing here imports torch or an exporter, so that a refusal comes at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mobilevitv2.errors import ConfigurationError, MissingDependency
from mobilevitv2.export.formats import FORMATS, PRECISIONS, ExportFormat, get_format

ENDINGS = {fmt.suffix: name for name, fmt in FORMATS.items()}
WITH_WEIGHT_BITS = ("onnx", "openvino")
"""The formats of the package's own quantisation; other libraries always use 8 bits."""
SMALLEST_FREE_SIDE = 128
SIDE_STEP = 64
"""With a free height and width, sides are multiples of this: then no map has to be stretched to whole patches."""


@dataclass(frozen=True)
class Suppression:
    """Settings of a detector's suppression, fixed inside the file.

    Attributes:
        threshold: scores below it are dropped; callers may ask for a higher one later, never for a lower one.
        iou: overlap from which the lower of two boxes of a class goes.
        candidates: of each class that take part, the best ones.
        detections: at most, for each picture.
    """

    threshold: float = 0.05
    iou: float = 0.5
    candidates: int = 400
    detections: int = 200


def check_request(
    model: object,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    delegate: str | None = None,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    calibration: Any = None,
    overwrite: bool = False,
    threads: int | None = None,
) -> ExportFormat:
    """The format that is asked for, where the rest fits it; arguments as in `mobilevitv2.export.export`.

    Raises:
        ConfigurationError: a format, delegate, precision, size or model that there is not, or a path that is taken.
        MissingDependency: the format's libraries are not installed.
    """
    place = Path(path)
    if format == "web":
        raise ConfigurationError("format='web' is a folder of files: call mobilevitv2.export.web.export_site, or the command.")
    fmt = get_format(format or _told_format(place), delegate=delegate)
    check_precision(fmt, precision, calibration)
    check_path(place, fmt, overwrite)
    free_axes(fmt, dynamic)
    if size is not None:
        check_size(size, dynamic=dynamic)
    if threads is not None and threads < 1:
        raise ConfigurationError(f"threads={threads} (--threads) is not possible; 1 is the least, without it the runtime chooses.")
    check_source(model)
    check_installed(fmt)
    return fmt


def check_source(model: object) -> None:
    """Refuse names that no model has.

    Raises:
        ConfigurationError: neither a path, a hub id nor the name of a record; or a file that was exported already.
    """
    if not isinstance(model, str | os.PathLike):
        return
    from mobilevitv2.contract import resolve

    resolve(model)
    if os.path.exists(model) and Path(model).suffix.lower() in ENDINGS:
        raise ConfigurationError(f"{os.fspath(model)} is an exported file; name the folder or the weights that it was made from.")


def _told_format(path: Path) -> str:
    if path.suffix.lower() not in ENDINGS:
        raise ConfigurationError(f"{path} does not tell its format; end it in {', '.join(ENDINGS)}, or pass format (--format).")
    return ENDINGS[path.suffix.lower()]


def check_precision(fmt: ExportFormat, precision: str, calibration: Any) -> None:
    """Refuse precisions that the format has not, and pictures and bits where they do not belong, or pictures that are missing."""
    if precision not in PRECISIONS:
        raise ConfigurationError(f"precision={precision!r} is unknown; there are {', '.join(PRECISIONS)}.")
    if precision not in fmt.offered:
        where = f"{fmt.name} with the delegate {fmt.delegate}" if fmt.delegate else fmt.name
        reason = f": {fmt.refused[precision]}" if precision in fmt.refused else ""
        raise ConfigurationError(f"precision={precision!r} is not offered for {where}{reason}. There are {', '.join(fmt.offered)}.")
    data, bits = _data_and_bits(calibration)
    if bits is not None and (precision != "int8" or fmt.name not in WITH_WEIGHT_BITS):
        raise ConfigurationError(
            f"weight_bits={bits} (--weight-bits) has no effect on precision={precision!r} of {fmt.name}; leave it out: it is for "
            f"'int8' of {' and '.join(WITH_WEIGHT_BITS)}."
        )
    if precision == "int8" and data is None:
        raise ConfigurationError("precision='int8' needs pictures to measure ranges on; pass calibration (--calibrate DATA).")
    if precision != "int8" and data is not None:
        raise ConfigurationError(
            f"precision={precision!r} measures no ranges; leave calibration (--calibrate) out, or take "
            "precision='int8' (--precision int8)."
        )


def _data_and_bits(calibration: Any) -> tuple[Any, int | None]:
    if calibration is None:
        return None, None
    from mobilevitv2.export.quantise.calibration import Calibration

    given = Calibration.of(calibration)
    return given.data, given.weight_bits


def check_path(path: Path, fmt: ExportFormat, overwrite: bool) -> None:
    """Refuse paths that the format does not end in, that are taken, or where no file can be."""
    fits = path.suffix.lower() == fmt.suffix
    if path.is_dir() and not (fits and fmt.suffix == ".mlpackage"):
        raise ConfigurationError(f"{path} is a folder; name a file in it, such as {path / f'model{fmt.suffix}'}.")
    if not fits:
        raise ConfigurationError(
            f"{path}: a file of format {fmt.name} ends in {fmt.suffix}; name it {path.with_suffix(fmt.suffix).name}."
        )
    for each in (path, *map(path.with_suffix, fmt.companions)):
        if each.exists() and not overwrite:
            raise ConfigurationError(
                f"{each} exists already and was left as it is; name another file, or pass overwrite=True (--overwrite)."
            )
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigurationError(f"{path.parent} is a file, so nothing can be written into it; name a folder.")


def check_installed(fmt: ExportFormat) -> None:
    """Refuse a format whose libraries are not installed."""
    missing = [name for name in fmt.modules if find_spec(name.partition(".")[0]) is None]
    if missing:
        raise MissingDependency(
            f"{' and '.join(missing)} not installed, for format {fmt.name}: pip install 'mobilevitv2[{fmt.extra}]'"
        )


def free_axes(fmt: ExportFormat, dynamic: bool) -> tuple[str, ...]:
    """The axes that a file leaves open; refuses free sides where the format has none."""
    if not dynamic:
        return tuple(axis for axis in fmt.free_axes if axis == "batch")
    if not {"height", "width"} <= set(fmt.free_axes):
        raise ConfigurationError(
            f"format {fmt.name} has fixed sizes; leave dynamic (--dynamic) out, and export one file for each size."
        )
    return fmt.free_axes


def check_size(size: tuple[int, int], *, dynamic: bool) -> None:
    """Refuse sizes that no exported file is made for.

    Raises:
        ConfigurationError: below 32 pixels a side; with free sides no multiple of 64 from 128 on.
    """
    for name, side in zip(("height", "width"), size, strict=True):
        if side < 32 or side > 8192:
            raise ConfigurationError(f"size (--size) has {name} {side}; a side is 32 to 8192 pixels.")
        if dynamic and (side % SIDE_STEP or side < SMALLEST_FREE_SIDE):
            raise ConfigurationError(
                f"size (--size) has {name} {side}; with dynamic (--dynamic) sides are multiples of {SIDE_STEP} "
                f"from {SMALLEST_FREE_SIDE} on."
            )
