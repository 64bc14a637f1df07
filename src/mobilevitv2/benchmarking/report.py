"""What a benchmark came to: rows for JSON, tables for the terminal, and how far the figures can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from mobilevitv2.benchmarking.environment import line_of
from mobilevitv2.benchmarking.timing import Times
from mobilevitv2.text_table import aligned, counted

NOISY = 0.15
"""Spread between the quartiles, as a share of the median, from which a line says so."""
BUSY = 0.3
"""Load before the first run, as a share of the cores, from which a line says so."""
FEW = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was timed.

    Attributes:
        model: whose: the model's or the file's name, or the peer's.
        form: "plain", "optimised", "as shipped", "exported", "file", ...
        engine: what ran it.
        dtype: of the arithmetic; of a file its precision.
        batch: pictures at once.
        peer: name of the peer it belongs to; None for ours.
        times: None where it failed.
        ratio: how many times as fast as the table's base; None where there is none.
        difference: largest difference of an answer from the plain float32 model's with the same weights, as a share of its largest
            value; from the first file's with them where only files take part. None where nothing has the same weights.
        megabytes: of GPU memory, weights and one call.
        ready: seconds of building, exporting, opening and the first runs.
        note: what a reader should know.
        failed: why it has no times.
    """

    model: str
    form: str
    engine: str
    dtype: str
    batch: int
    peer: str | None = None
    times: Times | None = None
    ratio: float | None = None
    difference: float | None = None
    megabytes: float | None = None
    ready: float | None = None
    note: str = ""
    failed: str = ""

    @property
    def title(self) -> str:
        """All that tells it from the other rows of its batch."""
        return f"{self.model}, {self.form}, {self.engine}, {self.dtype}"

    @property
    def pictures_per_second(self) -> float | None:
        """At the median."""
        return None if self.times is None else 1e3 * self.batch / self.times.median

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; times in milliseconds a batch. A difference that is no number is the text "nan" or "inf"."""
        times, difference = self.times, self.difference
        measured = {} if times is None else {
            "median_ms": times.median,
            "quartiles_ms": [times.low, times.high],
            "least_ms": times.least,
            "most_ms": times.most,
            "runs": times.runs,
            "pictures_per_second": self.pictures_per_second,
        }  # fmt: skip
        told = {
            "model": self.model,
            "form": self.form,
            "engine": self.engine,
            "dtype": self.dtype,
            "batch": self.batch,
            "peer": self.peer,
            **measured,
            "ratio": self.ratio,
            "difference": difference if difference is None or math.isfinite(difference) else str(difference),
            "megabytes": self.megabytes,
            "ready_seconds": self.ready,
            "note": self.note,
            "failed": self.failed,
        }
        return {name: value for name, value in told.items() if value not in (None, "")}


@dataclass(frozen=True, kw_only=True)
class Report:
    """A benchmark so far.

    Attributes:
        models: as they were named.
        task: of all of them.
        size: (height, width) of the pictures.
        machine: as `describe_machine` tells it.
        batches: the rows of each batch size that is done.
        bases: for each of them the title of the row that ratios refer to.
        resident: megabytes of memory that the whole process took at most; None where the system does not tell.
        random_weights: whether the weights were drawn.
    """

    models: tuple[str, ...]
    task: str
    size: tuple[int, int]
    machine: dict[str, Any]
    batches: tuple[tuple[Row, ...], ...] = ()
    bases: tuple[str | None, ...] = ()
    resident: float | None = None
    random_weights: bool = False

    @property
    def rows(self) -> list[Row]:
        """Of all batch sizes."""
        return [row for rows in self.batches for row in rows]

    @property
    def complete(self) -> bool:
        """Whether every row has its times."""
        return bool(self.rows) and all(row.times is not None for row in self.rows)

    def added(self, rows: tuple[Row, ...], base: str | None, resident: float | None) -> Report:
        """With one more batch size."""
        return replace(self, batches=(*self.batches, rows), bases=(*self.bases, base), resident=resident)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "models": list(self.models),
            "task": self.task,
            "height": self.size[0],
            "width": self.size[1],
            "random_weights": self.random_weights,
            "environment": self.machine,
            "peak_resident_megabytes": self.resident,
            "ratio_to": list(self.bases),
            "doubts": self.doubts(),
            "rows": [row.to_dict() for row in self.rows],
        }

    def head(self) -> str:
        """What was measured on what."""
        weights = ", random weights" if self.random_weights else ""
        return f"{', '.join(self.models)}: {self.task}, {self.size[0]} x {self.size[1]} pixels{weights}\n{line_of(self.machine)}"

    def table(self, number: int) -> str:
        """Of one batch size, with what its figures mean."""
        rows, base = self.batches[number], self.bases[number]
        with_memory = any(row.megabytes is not None for row in rows)
        heads = ["model", "form", "engine", "dtype", "ms", "quartiles", "img/s", "ratio", "difference"]
        lines = [[*heads, "MB"] if with_memory else heads]
        for row in rows:
            cells = [
                row.model,
                row.form,
                row.engine,
                row.dtype,
                *_figures(row),
                *([_shown(row.megabytes, ".0f")] if with_memory else []),
            ]
            lines.append(cells)
        done = next((row.times.runs for row in rows if row.times is not None), 0)
        told = [f"batch {rows[0].batch}, {counted(done, 'round')}" + (f"; ratio: times as fast as {base}" if base else "")]
        told.append(aligned(lines, right=range(4, len(lines[0]))))
        told += [f"  {row.title}: {row.failed or row.note}" for row in rows if row.failed or row.note]
        return "\n".join(told)

    def doubts(self) -> list[str]:
        """Why the figures may be less exact than they look; empty on a quiet machine."""
        timed = [(row, row.times) for row in self.rows if row.times is not None]
        said = []
        load, cores = self.machine["load_before"], self.machine["cores"]
        if load is not None and load > BUSY * cores:
            said.append(f"the machine was busy before the first run (load {load:.1f} on {cores} cores)")
        noisy = [(times.spread, row) for row, times in timed if times.spread > NOISY]
        if noisy:
            most, row = max(noisy, key=lambda each: each[0])
            vary = "varies" if len(noisy) == 1 else "vary"
            said.append(
                f"{len(noisy)} of {counted(len(timed), 'row')} {vary} by more than {100 * NOISY:.0f} % between the quartiles, most "
                f"{row.title}, batch {row.batch}, by {100 * most:.0f} %: other programs ran, or the clock changed; ratios, which "
                "compare runs of one round, suffer less than times"
            )
        if timed and min(times.runs for _, times in timed) < FEW:
            said.append(f"fewer than {FEW} rounds show no spread")
        return said


def _figures(row: Row) -> list[str]:
    times = row.times
    if times is None:
        return ["failed", "", "", "", ""]
    difference = "" if row.difference is None else f"{row.difference:.1e}"
    quartiles = f"{_ms(times.low)}-{_ms(times.high)}"
    return [_ms(times.median), quartiles, f"{row.pictures_per_second:,.1f}", _shown(row.ratio, ".2f"), difference]


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
