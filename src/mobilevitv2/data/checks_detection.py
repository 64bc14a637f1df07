"""What is wrong with a data set for detection, and what is in it, found before the first step of training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.detection import DetectionData, DetectionSplit
from mobilevitv2.data.reports import (
    DIGEST_BYTES,
    DRAFT_SIZE,
    EXAMPLES,
    PLACES,
    Finding,
    Report,
    Severity,
    check_workers,
    digest,
    errors_first,
    look_at_each,
    problem_findings,
    repeated_findings,
    tiny_findings,
    unreadable_findings,
)
from mobilevitv2.data.sources import IntArray
from mobilevitv2.data.splits import NamedBytes
from mobilevitv2.errors import ImageError
from mobilevitv2.text_table import aligned

SMALL, MEDIUM = 32**2, 96**2
"""Square pixels up to which COCO calls an object small, and medium."""
_LISTED_CLASSES = 100


@dataclass(frozen=True)
class DetectionReport(Report[DetectionData, DetectionSplit]):
    """What the checks found. Pictures of another size than annotated are among the unusable ones."""

    def _splits(self) -> str:
        head = ("split", "pictures", "without boxes", "boxes", "most", "small", "medium", "large", "crowd", "difficult")
        rows: list[tuple[str, ...]] = [head]
        for name, split in self.data.splits.items():
            table, counts = split.table, split.table.counts()
            small, medium = table.areas < SMALL, table.areas < MEDIUM
            sizes = (small.sum(), (medium & ~small).sum(), (~medium).sum(), table.crowd.sum(), table.difficult.sum())
            numbers = (len(split), (counts == 0).sum(), len(table.labels), counts.max(initial=0), *sizes)
            rows.append((name, *(f"{number:,}" for number in numbers)))
        note = f"most: boxes in one picture; small under {SMALL:,} square pixels, large from {MEDIUM:,} on"
        return f"{aligned(rows, right=range(1, 10))}\n({note})\n\n{self._classes()}"

    def _classes(self) -> str:
        """Boxes of each class and split."""
        counts = {name: _boxes_of_each(split) for name, split in self.data.splits.items()}
        rows = [("class", *counts)]
        order = range(len(self.data.classes))
        shown = sorted(order, key=lambda label: -sum(int(one[label]) for one in counts.values()))[:_LISTED_CLASSES]
        rows += [(self.data.classes[label], *(f"{one[label]:,}" for one in counts.values())) for label in sorted(shown)]
        text = aligned(rows, right=range(1, 1 + len(counts)))
        rest = len(order) - len(shown)
        return f"{text}\n... and {rest:,} classes with fewer" if rest else text


@dataclass(frozen=True)
class _Seen:
    """What reading the pictures of a split gave."""

    unreadable: dict[int, str]
    resized: dict[int, str]
    """Pictures of another size than annotated."""
    digests: NDArray[np.bytes_]
    short_sides: IntArray


def check_detection_data(
    data: DetectionData, *, read: bool = True, workers: int | None = None, strict: bool = False
) -> DetectionReport:
    """Look for what would spoil training or evaluation, and list what was left out when the data were opened.

    Errors: a split without pictures or of which none can be read, a train split without boxes, boxes most of which lie outside
    their pictures (they are in another format), pictures that all have another size than annotated. Warnings, and errors with
    `strict`: every broken place in `data.problems`, unreadable pictures, pictures of another size than annotated (boxes would not
    lie where they should; `DetectionReport.usable` leaves both out), the same file twice, in one split or in train and another.
    Always warnings: classes without a box, pictures under 32 pixels, boxes that two classes share.

    Args:
        data: what `open_detection_data` gave.
        read: decode every picture (some 1,000 a second and CPU core for small ones); False looks at annotations alone.
        workers: threads that decode; None for one a CPU core.
        strict: make an error of whatever is broken.
    """
    check_workers(workers)
    severity: Severity = "error" if strict else "warning"
    seen = {name: _look(split, workers) for name, split in data.splits.items()} if read else {}
    findings = problem_findings(data.problems, severity) + _format_findings(data) + _box_findings(data)
    for name, one in seen.items():
        split = data.splits[name]
        findings += unreadable_findings(name, list(one.unreadable.values()), len(split), severity)
        findings += _size_findings(split, one, severity)
        findings += tiny_findings(split, one.short_sides)
    findings += repeated_findings(data.splits, {name: one.digests for name, one in seen.items()}, severity)
    unusable = {name: dict(sorted((one.unreadable | one.resized).items())) for name, one in seen.items()}
    return DetectionReport(data, errors_first(findings), {name: some for name, some in unusable.items() if some})


def _boxes_of_each(split: DetectionSplit) -> IntArray:
    return np.bincount(split.table.labels, minlength=len(split.classes)).astype(np.int64)


def _format_findings(data: DetectionData) -> list[Finding]:
    """Boxes that reach out of their pictures by the half are written in another format."""
    outside = Counter(problem.split for problem in data.problems if problem.what in ("box outside its picture", _PARTLY))
    findings = []
    for name, count in outside.items():
        split = data.splits.get(name)
        kept = 0 if split is None else len(split.table.labels)
        if count >= 10 and count * 2 >= kept:
            what = "most boxes reach out of their pictures: they are written in another format (box_format)"
            places = [f"{problem.where}: {problem.detail}" for problem in data.problems if problem.split == name and problem.detail]
            findings.append(Finding("error", name, what, count, tuple(places[:EXAMPLES])))
    return findings


_PARTLY = "box partly outside its picture"


def _box_findings(data: DetectionData) -> list[Finding]:
    findings = []
    counts = {name: _boxes_of_each(split) for name, split in data.splits.items()}
    anywhere = sum(counts.values(), np.zeros(len(data.classes), np.int64))
    findings += _of_classes(data, "all", "class without a box in any split", anywhere == 0)
    for name, split in data.splits.items():
        if len(split) == 0:
            findings.append(Finding("error", name, "no pictures", 0))
            continue
        if not counts[name].any():
            findings.append(Finding("error" if name == "train" else "warning", name, "no boxes", 0))
            continue
        what = "class of another split that train lacks" if name == "train" else "class without a box"
        findings += _of_classes(data, name, what, (counts[name] == 0) & (anywhere > 0))
        findings += _shared_boxes(split)
    return findings


def _of_classes(data: DetectionData, split: str, what: str, which: NDArray[np.bool_]) -> list[Finding]:
    names = [data.classes[index] for index in np.flatnonzero(which)]
    return [Finding("warning", split, what, len(names), tuple(names[:EXAMPLES]))] if names else []


def _shared_boxes(split: DetectionSplit) -> list[Finding]:
    """Boxes with the corners of another of the same picture; of the same class they were left out."""
    table = split.table
    keys = np.column_stack([table.pictures().astype(np.float64), table.corners.astype(np.float64)])
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    examples = []
    for row in np.flatnonzero(first[group] != np.arange(len(keys))):
        picture, other = int(keys[row, 0]), int(first[group[row]])
        pair = f"{split.classes[table.labels[other]]} and {split.classes[table.labels[row]]}"
        corners = " ".join(f"{number:g}" for number in table.corners[row])
        examples.append(f"{split.describe(picture)}: {corners}, {pair}")
    return (
        [Finding("warning", split.name, "same box in two classes (kept)", len(examples), tuple(examples[:PLACES]))]
        if examples
        else []
    )


# ------------------------------------------------------------------------------------------------------------------------- pictures


def _look(split: DetectionSplit, workers: int | None) -> _Seen:
    from mobilevitv2.pictures import picture_size

    digests = np.zeros(len(split), dtype=f"S{DIGEST_BYTES}")
    short_sides = np.zeros(len(split), dtype=np.int64)
    unreadable: dict[int, str] = {}
    resized: dict[int, str] = {}

    def look(index: int) -> None:
        try:
            encoded = split.encoded(index)
            split.decode(index, encoded, draft_size=DRAFT_SIZE)
            width, height = picture_size(NamedBytes(encoded, split.describe(index)))
        except ImageError as error:
            unreadable[index] = str(error)
            return
        short_sides[index] = min(width, height)
        digests[index] = digest(encoded)
        if split.sizes is not None and (split.sizes[index] > 0).all() and tuple(split.sizes[index]) != (width, height):
            annotated = "{} x {}".format(*split.sizes[index])
            resized[index] = f"{split.describe(index)} is {width} x {height}, annotated as {annotated}"

    look_at_each(len(split), split.name, look, workers)
    return _Seen(dict(sorted(unreadable.items())), dict(sorted(resized.items())), digests, short_sides)


def _size_findings(split: DetectionSplit, seen: _Seen, severity: Severity) -> list[Finding]:
    places = tuple(seen.resized.values())
    if not places:
        return []
    if len(places) + len(seen.unreadable) == len(split):
        what = "every picture has another size than annotated: write the annotations anew, or use the pictures they were made for"
        return [Finding("error", split.name, what, len(places), places[:EXAMPLES])]
    return [Finding(severity, split.name, "picture of another size than annotated (left out)", len(places), places[:PLACES])]
