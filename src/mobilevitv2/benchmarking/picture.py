"""The bars of a benchmark."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import ConfigurationError, MissingDependency
from mobilevitv2.text_table import counted

if TYPE_CHECKING:
    from mobilevitv2.benchmarking.report import Report, Row

ENDINGS = (".png", ".svg", ".pdf")
OURS, PEER = "#1f6fb4", "#b0b7bf"


def check_plot(path: Path) -> None:
    """Better to learn now than after the measurement that no picture can be made.

    Raises:
        ConfigurationError: an ending that there is not, or a folder. MissingDependency: matplotlib is not installed.
    """
    if path.suffix.lower() not in ENDINGS or path.is_dir():
        raise ConfigurationError(f"{path} is no file for a picture; name one that ends in {', '.join(ENDINGS)}.")
    if find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib is not installed, which draws --plot: pip install matplotlib (or 'mobilevitv2[train]')")


def draw_bars(report: Report, path: Path) -> None:
    """Pictures a second of every row, one panel a batch size; lines show the quartiles. Written whole or not at all."""
    from matplotlib.figure import Figure  # without pyplot: no window, no state left behind

    from mobilevitv2.weights.writing import write_whole

    counts = [len(rows) for rows in report.batches]
    figure = Figure(figsize=(10, 1.1 + sum(0.34 * count + 0.75 for count in counts)), layout="constrained")
    panels = figure.subplots(len(counts), 1, squeeze=False, gridspec_kw={"height_ratios": [count + 1 for count in counts]})
    for axis, rows, base in zip(panels[:, 0], report.batches, report.bases, strict=True):
        _draw(axis, rows, base)
    weights = ", random weights" if report.random_weights else ""
    figure.suptitle(
        f"{', '.join(report.models)}, {report.size[0]} x {report.size[1]} pixels{weights}", fontsize=11, x=0.01, ha="left"
    )
    versions = report.machine["versions"]
    told = f"{_where(report)}; {counted(report.machine['threads'], 'thread')}; " + ", ".join(
        f"{name} {each}" for name, each in versions.items()
    )
    figure.supxlabel(told, fontsize=7.5, color="#555555", x=0.01, ha="left")
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format=path.suffix[1:].lower())
    write_whole(path, content.getvalue())


def _where(report: Report) -> str:
    machine = report.machine
    return str(machine["cpu"] if machine["device"] == "cpu" else machine["device"])


def _draw(axis: Any, rows: tuple[Row, ...], base: str | None) -> None:
    places = list(range(len(rows)))
    rates = [row.pictures_per_second or 0.0 for row in rows]
    axis.barh(places, rates, color=[OURS if row.peer is None else PEER for row in rows], height=0.7)
    axis.set_yticks(places, [row.title for row in rows], fontsize=8.5)
    axis.invert_yaxis()
    told = f"; x: times as fast as {base}" if base else ""
    axis.set_title(f"batch {rows[0].batch}: pictures a second{told}", fontsize=9.5, loc="left")
    axis.set_xlim(0, 1.45 * max(rates, default=1) or 1)  # room for the words behind the longest bar
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.3, linewidth=0.6)
    axis.set_axisbelow(True)
    for place, row, rate in zip(places, rows, rates, strict=True):
        if row.times is None:
            axis.text(0, place, "  failed", va="center", fontsize=8, color="#a33")
            continue
        ends = [1e3 * row.batch / row.times.high, 1e3 * row.batch / row.times.low]
        axis.plot(ends, [place, place], color="#222222", linewidth=1.3)
        ratio = "" if row.ratio is None else f"  x {row.ratio:.2f}"
        axis.text(max(rate, ends[1]), place, f"  {rate:,.0f}  ({row.times.median:.3g} ms){ratio}", va="center", fontsize=8)
