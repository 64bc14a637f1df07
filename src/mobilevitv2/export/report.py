"""What an export came to: numbers for JSON, and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.runtime.metadata import Metadata
from mobilevitv2.text_table import aligned, counted

if TYPE_CHECKING:
    from mobilevitv2.export.comparing import Comparison
    from mobilevitv2.export.verify import Verification

MOST_OPERATORS = 6


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was looked at in a file that cannot be run here, by evaluating it operator by operator.

    Attributes:
        lines: for the report.
        comparison: with PyTorch in float32.
        tolerance: that was allowed, as a share of an output's largest value.
        pictures: how many were compared, and `made` how many of them are noise that was made for it.
        shapes: further sizes that were tried, with their relative difference.
    """

    lines: tuple[str, ...]
    comparison: Comparison
    tolerance: float
    pictures: int
    made: int = 0
    shapes: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; the lines stand elsewhere in the report."""
        told = {name: value for name, value in asdict(self).items() if name != "lines"}
        return {**told, "relative_difference": self.comparison.relative}


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """One exported file.

    Attributes:
        path: the file (or folder) to open.
        files: all that belong to it, with their bytes.
        format: its name.
        delegate: that it was written for, where the format has several.
        metadata: what the file says about itself.
        operators: how many of each kind are inside.
        outside: operators that the delegate does not take.
        seconds: that the writing took.
        verification: None where nothing on this system runs the format; then `checked` says what was looked at instead.
        checked: what was seen without running it.
        notes: what a user should know.
        quantisation: of a quantised file: what was done, and the loss on pictures that had no part in the ranges.
    """

    path: Path
    files: Mapping[str, int]
    format: str
    delegate: str | None = None
    metadata: Metadata
    operators: Mapping[str, int]
    outside: Mapping[str, int]
    seconds: float
    verification: Verification | None
    checked: Checked | None = None
    notes: tuple[str, ...] = ()
    quantisation: Mapping[str, Any] | None = field(default=None)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """As the file's report holds it."""
        return {
            "path": self.path.name,
            "files": dict(self.files),
            "bytes": self.size,
            "format": self.format,
            "delegate": self.delegate,
            "precision": self.metadata.precision,
            "seconds": round(self.seconds, 2),
            "run": self.verification is not None,
            "verification": None if self.verification is None else self.verification.to_dict(),
            "checked": [] if self.checked is None else list(self.checked.lines),
            "evaluation": None if self.checked is None else self.checked.to_dict(),
            "operators": dict(sorted(self.operators.items(), key=lambda item: -item[1])),
            "outside": dict(self.outside),
            "notes": list(self.notes),
            "quantisation": None if self.quantisation is None else dict(self.quantisation),
            "metadata": asdict(self.metadata),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def table(self) -> str:
        """For the terminal."""
        return aligned([(name, value) for name, value in self._rows() if value])

    def _rows(self) -> list[tuple[str, str]]:
        metadata = self.metadata
        ports = [
            (label if number == 0 else "", f"{port.name} {port.dtype} ({', '.join(map(str, port.shape))}): {port.meaning}")
            for label, some in (("input", metadata.inputs), ("outputs", metadata.outputs))
            for number, port in enumerate(some)
        ]
        common = sorted(self.operators.items(), key=lambda item: -item[1])
        more = f" and {counted(len(common) - MOST_OPERATORS, 'other kind')}" if len(common) > MOST_OPERATORS else ""
        shown = ", ".join(f"{count} {name}" for name, count in common[:MOST_OPERATORS])
        delegate = f" ({self.delegate})" if self.delegate else ""
        return [
            ("file", str(self.path)),
            ("format", f"{self.format}{delegate}, {metadata.precision}, {self.size / 1e6:.2f} MB, written in {self.seconds:.1f} s"),
            ("task", f"{metadata.task}, {counted(len(metadata.labels), 'class', 'classes')}, from {metadata.source}"),
            *ports,
            ("operators", f"{sum(self.operators.values())}: {shown}{more}"),
            ("outside", ", ".join(f"{count} {name}" for name, count in self.outside.items())),
            *self._measured(),
            *self._quantised(),
            *self._checked(),
            *(("note" if number == 0 else "", line) for number, line in enumerate(self.notes)),
        ]

    def _measured(self) -> list[tuple[str, str]]:
        found = self.verification
        if found is None:
            return [("verified", "not run: nothing on this system runs this file")]
        comparison = found.comparison
        differences = ", ".join(
            f"{name} {value:.2g} of {comparison.largest[name]:.3g}" for name, value in comparison.differences.items()
        )
        run, plain, load = found.run, found.torch_run, found.load
        where = f"{found.engine} {found.engine_version} on {counted(found.pictures, 'picture')}"
        return [
            ("verified", f"{where}; largest difference: {differences}"),
            *_agreement(comparison, found),
            *(("", note) for note in found.notes),
            ("time", f"{run.median:.1f} ms ({run.low:.1f} to {run.high:.1f}) for one picture; PyTorch eager {plain.median:.1f} ms"),
            ("load", f"{load.median:.0f} ms ({load.low:.0f} to {load.high:.0f})"),
        ]

    def _checked(self) -> list[tuple[str, str]]:
        found = self.checked
        if found is None:
            return []
        rows = [("checked" if number == 0 else "", line) for number, line in enumerate(found.lines)]
        return [rows[0], *_agreement(found.comparison, found), *rows[1:]]

    def _quantised(self) -> list[tuple[str, str]]:
        found = self.quantisation
        if found is None:
            return []
        integer = f"{found['integer_convolutions']} of {found['convolutions']} convolutions read integers"
        rows = [("quantised", f"weights {found['weights']}; values {found['values']}; {integer}")]
        if "loss" in found:
            loss = found["loss"]
            share = f"{100 * loss['agreement']:.2f} % of {loss['count']:,} {loss['answers']} stay the same"
            rows.append(("loss", f"{share} as in PyTorch, on {counted(loss['pictures'], 'calibration picture')}"))
        return rows


def _agreement(comparison: Comparison, found: Verification | Checked) -> list[tuple[str, str]]:
    """How many answers are PyTorch's, how many more it hardly decides itself, and that this is no accuracy."""
    count = comparison.count
    if not count:
        return [("agreement", f"PyTorch finds no {comparison.answers} on the pictures; only the raw outputs were compared")]
    equal, decided = round(comparison.agreement * count), round(comparison.decided * count)
    line = f"{equal:,} of {counted(count, comparison.answers.removesuffix('s'))} as PyTorch's"
    if equal < count:
        line += f" ({100 * comparison.agreement:.2f} %)"
    if decided > equal:
        line += f"; {decided:,} counting those that nearly tie in PyTorch itself"
    meaning = "held against PyTorch, not against right answers: no accuracy"
    if found.made:
        which = "the picture" if found.pictures == 1 else f"{found.made} of the {found.pictures} pictures"
        meaning += f"; {which} {'is' if found.made == 1 else 'are'} made of noise, of which a model is hardly sure"
    return [("agreement", line), ("", meaning)]
