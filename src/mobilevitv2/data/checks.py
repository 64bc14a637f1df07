"""What is wrong with a data set, found before the first step of training rather than in the middle of the night."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.classification import ClassificationData, PictureSplit
from mobilevitv2.data.reports import (
    DIGEST_BYTES,
    DRAFT_SIZE,
    EXAMPLES,
    TINY,
    Finding,
    Report,
    Severity,
    check_workers,
    digest,
    errors_first,
    look_at_each,
    same_files,
    tiny_findings,
    unreadable_findings,
)
from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ImageError
from mobilevitv2.text_table import aligned

__all__ = ["TINY", "UNBALANCED", "DataReport", "Finding", "check_classification_data"]

UNBALANCED = 100
"""Pictures of the largest class for one of the smallest, from which on the small ones are hardly learnt."""


@dataclass(frozen=True)
class DataReport(Report[ClassificationData, PictureSplit]):
    """What the checks found."""

    def _splits(self) -> str:
        rows: list[tuple[str, ...]] = [("split", "pictures", "classes", "smallest class", "largest class")]
        for name, split in self.data.splits.items():
            counts = _counts(split)
            present = np.flatnonzero(counts)
            if not present.size:
                rows.append((name, "0", "0", "", ""))
                continue
            small, large = present[counts[present].argmin()], counts.argmax()
            ends = [f"{counts[index]:,} ({split.classes[index]})" for index in (small, large)]
            rows.append((name, f"{len(split):,}", f"{present.size:,}", *ends))
        return aligned(rows, right={1, 2})


@dataclass(frozen=True)
class _Seen:
    """What reading the pictures of a split gave."""

    unreadable: dict[int, str]
    digests: NDArray[np.bytes_]
    """Digest of each file, (n,); unreadable ones are zeros."""
    short_sides: IntArray
    """In pixels, (n,), not told apart above `DRAFT_SIZE`; 0 where unreadable."""


def check_classification_data(data: ClassificationData, *, read: bool = True, workers: int | None = None) -> DataReport:
    """Look for what would spoil training or evaluation.

    Errors: a split without pictures, fewer than two classes, labels out of range, classes without a picture in the train split
    though another split has some, and splits or classes of which no picture can be read. Warnings: unreadable pictures
    (`DataReport.usable` leaves them out), classes missing elsewhere or with a single picture, very unequal classes, the same
    file in train and another split or in two classes, pictures under 32 pixels.

    Args:
        data: what `open_classification_data` gave.
        read: decode every picture (some 1,000 a second and CPU core for small ones); False looks at labels alone.
        workers: threads that decode; None for one a CPU core.
    """
    check_workers(workers)
    seen = {name: _look(split, workers) for name, split in data.splits.items()} if read else {}
    findings = _label_findings(data, {name: list(one.unreadable) for name, one in seen.items()})
    for name, one in seen.items():
        findings += _picture_findings(data.splits[name], one)
    findings += _repeated(data, seen)
    return DataReport(data, errors_first(findings), {name: one.unreadable for name, one in seen.items() if one.unreadable})


# --------------------------------------------------------------------------------------------------------------------------- labels


def _counts(split: PictureSplit, without: Sequence[int] = ()) -> IntArray:
    """Pictures of each class, (classes,)."""
    labels = np.delete(split.labels, list(without)) if without else split.labels
    return np.bincount(labels[(labels >= 0) & (labels < len(split.classes))], minlength=len(split.classes)).astype(np.int64)


def _label_findings(data: ClassificationData, unreadable: dict[str, list[int]]) -> list[Finding]:
    findings = []
    if len(data.classes) < 2:
        findings.append(Finding("error", "all", "fewer than two classes", len(data.classes), data.classes))
    counts = {name: _counts(split, unreadable.get(name, ())) for name, split in data.splits.items()}
    anywhere = sum(counts.values(), np.zeros(len(data.classes), np.int64))
    findings += _of_classes(data, "all", "class without a picture in any split", anywhere == 0, "warning")
    for name, split in data.splits.items():
        if len(split) == 0:
            findings.append(Finding("error", name, "no pictures", 0))
            continue
        wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(split.classes)))
        if wrong.size:
            examples = tuple(f"{split.describe(int(i))}: label {split.labels[i]}" for i in wrong[:EXAMPLES])
            findings.append(Finding("error", name, f"label outside 0..{len(split.classes) - 1}", wrong.size, examples))
        missing = (counts[name] == 0) & (anywhere > 0)
        if name == "train":
            findings += _of_classes(data, name, "class of another split that train lacks", missing, "error", counts[name])
            findings += _of_classes(data, name, "class with a single picture", counts[name] == 1, "warning")
            findings += _balance(split, counts[name])
        else:
            findings += _of_classes(data, name, "class without a picture", missing, "warning")
    return findings


def _of_classes(
    data: ClassificationData,
    split: str,
    what: str,
    which: NDArray[np.bool_],
    severity: Severity,
    known: IntArray | None = None,
) -> list[Finding]:
    """One finding on the classes chosen, or none.

    With `known`, the pictures of each class, a name near a known one is taken for a slip.
    """
    names = [data.classes[index] for index in np.flatnonzero(which)]
    if not names:
        return []
    examples = names[:EXAMPLES]
    if known is not None:
        present = [data.classes[index] for index in np.flatnonzero(known)]
        near = {name: difflib.get_close_matches(name, present, n=1, cutoff=0.6) for name in examples}
        examples = [f"{name} (train has {near[name][0]})" if near[name] else name for name in examples]
    return [Finding(severity, split, what, len(names), tuple(examples))]


def _balance(split: PictureSplit, counts: IntArray) -> list[Finding]:
    present = np.flatnonzero(counts)
    if not present.size or counts.max() < UNBALANCED * counts[present].min():
        return []
    small = present[np.argsort(counts[present], kind="stable")]
    small = small[counts[small] * UNBALANCED <= counts.max()]
    large = int(counts.argmax())
    examples = tuple(f"{split.classes[index]} ({counts[index]:,})" for index in small[:EXAMPLES])
    what = f"class with under 1/{UNBALANCED} of the pictures of {split.classes[large]} ({counts[large]:,})"
    return [Finding("warning", split.name, what, len(small), examples)]


# ------------------------------------------------------------------------------------------------------------------------- pictures


def _look(split: PictureSplit, workers: int | None) -> _Seen:
    digests = np.zeros(len(split), dtype=f"S{DIGEST_BYTES}")
    short_sides = np.zeros(len(split), dtype=np.int64)
    unreadable: dict[int, str] = {}

    def look(index: int) -> None:
        try:
            encoded = split.encoded(index)
            short_sides[index] = min(split.decode(index, encoded, draft_size=DRAFT_SIZE).size)
            digests[index] = digest(encoded)
        except ImageError as error:
            unreadable[index] = str(error)

    look_at_each(len(split), split.name, look, workers)
    return _Seen(dict(sorted(unreadable.items())), digests, short_sides)


def _picture_findings(split: PictureSplit, seen: _Seen) -> list[Finding]:
    reasons = tuple(seen.unreadable.values())
    return [*unreadable_findings(split.name, reasons, len(split), "warning"), *tiny_findings(split, seen.short_sides)]


def _repeated(data: ClassificationData, seen: dict[str, _Seen]) -> list[Finding]:
    """The same file in train and another split, and in two classes."""
    leaks: dict[str, list[str]] = {}
    conflicts = []
    for name, index, other, other_index in same_files({name: one.digests for name, one in seen.items()}):
        split = data.splits[name]
        pair = f"{split.describe(index)} = {data.splits[other].describe(other_index)}"
        if other == "train" and name != "train":
            leaks.setdefault(name, []).append(pair)
        there, here = data.splits[other].labels[other_index], split.labels[index]
        if there != here:
            conflicts.append(f"{pair}: {_class_name(data, there)} and {_class_name(data, here)}")
    findings = [
        Finding("warning", name, "picture that train has too", len(pairs), tuple(pairs[:EXAMPLES])) for name, pairs in leaks.items()
    ]
    if conflicts:
        findings.append(Finding("warning", "all", "same picture in two classes", len(conflicts), tuple(conflicts[:EXAMPLES])))
    return findings


def _class_name(data: ClassificationData, label: int) -> str:
    return data.classes[label] if 0 <= label < len(data.classes) else str(label)
