"""The confusion matrix as a picture, or as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError, MissingDependency

_SUFFIXES = (".png", ".pdf", ".svg")
_NUMBERED = 20
"""Up to so many classes each cell carries its number."""
_NAMED = 250
"""Up to so many classes their names stand at the axes; more cannot be read on a page."""


class Confusing(Protocol):
    """What is needed of a result: a ClassificationResult or a SegmentationResult."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the rows."""

    @property
    def predicted_names(self) -> tuple[str, ...]:
        """Names of the columns."""

    @property
    def confusion(self) -> IntArray:
        """(true class, predicted class)."""

    @property
    def counted(self) -> str:
        """What the matrix counts: "pictures" or "pixels"."""

    @property
    def title(self) -> str:
        """The headline."""


def save_confusion_matrix(result: Confusing, path: str | os.PathLike[str]) -> Path:
    """Write the matrix: rows are true classes, columns predicted ones.

    Args:
        result: what `evaluate_classification` or `evaluate_segmentation` gave.
        path: .png, .pdf or .svg draws each row in shares of its class; .csv writes the counts, of pictures
            or pixels.

    Raises:
        ConfigurationError: another suffix.
        MissingDependency: a picture needs matplotlib.
        OSError: the file cannot be written; an old one is whole.
    """
    from mobilevitv2.weights.writing import write_whole

    target = Path(path)
    suffix = target.suffix.lower()
    if suffix == ".csv":
        content = _csv(result)
    elif suffix in _SUFFIXES:
        content = _picture(result, suffix[1:])
    else:
        raise ConfigurationError(f"{target}: a confusion matrix is written as {', '.join(_SUFFIXES)} or .csv, not {suffix!r}")
    write_whole(target, content)
    return target


def _csv(result: Confusing) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true class", *result.predicted_names])
    for name, counts in zip(result.classes, result.confusion.tolist(), strict=True):
        writer.writerow([name, *counts])
    return text.getvalue().encode()


def _picture(result: Confusing, kind: str) -> bytes:
    try:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure  # without pyplot: no window, no state left behind
    except ImportError as error:
        raise MissingDependency("drawing a confusion matrix needs matplotlib: pip install mobilevitv2[train]") from error
    totals = result.confusion.sum(axis=1, keepdims=True)
    shares = result.confusion / np.maximum(totals, 1)
    rows = len(result.classes)
    cell = 0.6 if rows <= _NUMBERED else 0.17 if rows <= _NAMED else 30 / rows
    side = max(4.0, cell * rows)
    figure = Figure(figsize=(side + 2, side + 1), dpi=100)
    axes = figure.subplots()
    # The root makes a few mistakes in a hundred visible beside a full diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), aspect="equal", interpolation="nearest")
    room = 0.04 if rows <= _NUMBERED else 0.08  # the names at the right side
    colours = figure.colorbar(image, ax=axes, fraction=0.03, pad=room, shrink=min(1, 8 / side), label="share of the true class")
    colours.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    colours.set_ticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"])
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(result.title, fontsize=12)
    _name_axes(axes, result)
    if rows <= _NUMBERED:
        # Pixels go into the millions; what part of the class they are can be read.
        numbers = shares if result.counted == "pixels" else result.confusion
        _number_cells(axes, numbers, shares)
    content = io.BytesIO()
    figure.savefig(content, format=kind, bbox_inches="tight")
    return content.getvalue()


def _name_axes(axes: Any, result: Confusing) -> None:
    if len(result.classes) > _NAMED:
        return
    size = 9 if len(result.classes) <= _NUMBERED else 7
    settings = {"fontsize": size, "parse_math": False}  # a $ in a name is a dollar
    axes.set_xticks(range(len(result.predicted_names)), result.predicted_names, rotation=90, **settings)
    axes.set_yticks(range(len(result.classes)), result.classes, **settings)
    if len(result.classes) > _NUMBERED:  # lead the eye to the names, which stand on all sides
        axes.tick_params(labeltop=True, labelright=True, top=True, right=True)
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_xticks(np.arange(0.5, len(result.predicted_names)), minor=True)
        axes.set_yticks(np.arange(0.5, len(result.classes)), minor=True)
        axes.grid(which="minor", color="0.9", linewidth=0.4)
        axes.tick_params(which="minor", length=0)


def _number_cells(axes: Any, numbers: Any, shares: Any) -> None:
    """Counts as they are, shares in per cent; nothing where that would be 0."""
    for (row, column), number in np.ndenumerate(numbers):
        text = f"{number:,}" if isinstance(number, np.integer) else f"{100 * number:.1f}"
        if text not in ("0", "0.0"):
            colour = "white" if shares[row, column] > 0.35 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
