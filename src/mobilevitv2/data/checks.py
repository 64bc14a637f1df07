"""What is wrong with a data set, found before the first step of training rather than in the middle of the night."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.classification import ClassificationData, PictureSplit
from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError, DataError, ImageError
from mobilevitv2.text_table import aligned

TINY = 32
"""Short side in pixels under which a picture has hardly anything to see: one position of the last feature map."""
UNBALANCED = 100
"""Pictures of the largest class for one of the smallest, from which on the small ones are hardly learnt."""
EXAMPLES = 5
_DRAFT_SIZE = 2 * TINY
_CHUNK = 32


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    severity: Literal["error", "warning"]
    split: str
    what: str
    count: int
    examples: tuple[str, ...] = ()
    """The first few."""


@dataclass(frozen=True)
class DataReport:
    """What the checks found."""

    data: ClassificationData
    findings: tuple[Finding, ...]
    """Errors first."""
    unreadable: dict[str, dict[int, str]] = field(default_factory=dict)
    """For each split, all pictures that cannot be read: index -> reason, which names the picture."""

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return not any(finding.severity == "error" for finding in self.findings)

    def usable(self, split: PictureSplit) -> PictureSplit:
        """The split without its unreadable pictures."""
        known = self.data.splits.get(split.name)
        if known is None or len(known) != len(split):
            raise ConfigurationError(
                f"split {split.name!r} of {len(split)} pictures is not the one that was checked; check it first"
            )
        bad = self.unreadable.get(split.name)
        return split.select(np.setdiff1d(np.arange(len(split)), list(bad))) if bad else split

    def table(self) -> str:
        """The splits and the findings as plain text."""
        text = f"{self.data.source}: {len(self.data.classes)} classes\n\n{self._splits()}\n\n"
        if not self.findings:
            return text + "No problems found."
        head = ("severity", "split", "what", "count", "examples")
        rows = [(row.severity, row.split, row.what, f"{row.count:,}", *(row.examples[:1] or [""])) for row in self.findings]
        lines = aligned([head, *rows], right={3}).splitlines()
        indent = " " * lines[0].index("examples")
        found = [lines[0]]
        for row, line in zip(self.findings, lines[1:], strict=True):
            found += [line, *(indent + example for example in row.examples[1:])]
            if row.count > len(row.examples) > 0:
                found.append(f"{indent}... and {row.count - len(row.examples):,} more")
        return text + "\n".join(found)

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

    def raise_if_errors(self) -> None:
        """Raise DataError with the table if there is an error."""
        if not self.ok:
            errors = sum(finding.severity == "error" for finding in self.findings)
            raise DataError(
                f"the data have {errors} error{'s' if errors > 1 else ''} that must be put right first\n\n{self.table()}"
            )


@dataclass(frozen=True)
class _Seen:
    """What reading the pictures of a split gave."""

    unreadable: dict[int, str]
    digests: NDArray[np.bytes_]
    """Digest of each file, (n,); unreadable ones are zeros."""
    short_sides: IntArray
    """In pixels, (n,), not told apart above `_DRAFT_SIZE`; 0 where unreadable."""


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
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers={workers}: the pictures are read by 1 thread or more")
    seen = {name: _look(split, workers) for name, split in data.splits.items()} if read else {}
    findings = _label_findings(data, {name: list(one.unreadable) for name, one in seen.items()})
    for name, one in seen.items():
        findings += _picture_findings(data.splits[name], one)
    findings += _repeated(data, seen)
    findings.sort(key=lambda finding: finding.severity == "warning")
    return DataReport(data, tuple(findings), {name: one.unreadable for name, one in seen.items() if one.unreadable})


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
    severity: Literal["error", "warning"],
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
    from tqdm import tqdm

    digests = np.zeros(len(split), dtype="S16")
    short_sides = np.zeros(len(split), dtype=np.int64)
    unreadable: dict[int, str] = {}

    def look(start: int) -> int:
        stop = min(start + _CHUNK, len(split))
        for index in range(start, stop):
            try:
                encoded = split.encoded(index)
                short_sides[index] = min(split.decode(index, encoded, draft_size=_DRAFT_SIZE).size)
                digests[index] = hashlib.blake2b(encoded, digest_size=16).digest()
            except ImageError as error:
                unreadable[index] = str(error)
        return stop - start

    # Pillow decodes outside the interpreter lock, so threads are as good as processes here and start at once.
    threads = workers or os.cpu_count() or 1
    with (
        tqdm(total=len(split), desc=f"reading {split.name}", unit=" pictures", disable=None, leave=False) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        try:
            for count in pool.map(look, range(0, len(split), _CHUNK)):
                bar.update(count)
        except BaseException:  # Ctrl-C ends at once, not after all pictures
            pool.shutdown(cancel_futures=True)
            raise
    return _Seen(dict(sorted(unreadable.items())), digests, short_sides)


def _picture_findings(split: PictureSplit, seen: _Seen) -> list[Finding]:
    findings = []
    reasons = tuple(seen.unreadable.values())
    if reasons and len(reasons) == len(split):
        findings.append(Finding("error", split.name, "no picture can be read", len(reasons), reasons[:EXAMPLES]))
    elif reasons:
        findings.append(Finding("warning", split.name, "picture that cannot be read (left out)", len(reasons), reasons[:EXAMPLES]))
    tiny = np.flatnonzero((seen.short_sides > 0) & (seen.short_sides < TINY))
    if tiny.size:
        examples = tuple(f"{split.describe(int(i))}: {seen.short_sides[i]} pixels" for i in tiny[:EXAMPLES])
        findings.append(Finding("warning", split.name, f"picture with a side under {TINY} pixels", tiny.size, examples))
    return findings


def _repeated(data: ClassificationData, seen: dict[str, _Seen]) -> list[Finding]:
    """The same file in train and another split, and in two classes."""
    first: dict[bytes, tuple[str, int]] = {}  # digest -> the split and index it was met first at, train before the others
    leaks: dict[str, list[str]] = {}
    conflicts = []
    for name, one in seen.items():
        split = data.splits[name]
        for index, digest in enumerate(one.digests.tolist()):
            if index in one.unreadable:
                continue
            other, other_index = first.setdefault(digest, (name, index))
            if (other, other_index) == (name, index):
                continue
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
