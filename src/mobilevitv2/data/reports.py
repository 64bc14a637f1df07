"""What the checks of all tasks share: findings, the report, reading pictures in threads, pictures that are there twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.problems import Problem
from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.text_table import aligned

TINY = 32
"""Short side in pixels under which a picture has hardly anything to see: one position of the last feature map."""
EXAMPLES = 5
PLACES = 50
"""Broken places that are listed of a kind."""
DRAFT_SIZE = 2 * TINY
DIGEST_BYTES = 16
_CHUNK = 32

Severity: TypeAlias = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    severity: Severity
    split: str
    what: str
    count: int
    examples: tuple[str, ...] = ()
    """The first few."""


class _Split(Protocol):
    """What a report needs of a split."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str: ...

    def select(self, indices: IntArray) -> Self: ...


SplitT = TypeVar("SplitT", bound=_Split)
DataT = TypeVar("DataT")


@dataclass(frozen=True)
class Report(Generic[DataT, SplitT]):
    """What the checks found."""

    data: DataT
    findings: tuple[Finding, ...]
    """Errors first."""
    unreadable: dict[str, dict[int, str]] = field(default_factory=dict)
    """For each split, all pictures that cannot be used: index -> reason, which names the picture."""

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return not any(finding.severity == "error" for finding in self.findings)

    def usable(self, split: SplitT) -> SplitT:
        """The split without the pictures in `unreadable`."""
        known = self._data.splits.get(split.name)
        if known is None or len(known) != len(split):
            raise ConfigurationError(
                f"split {split.name!r} of {len(split)} pictures is not the one that was checked; check it first"
            )
        bad = self.unreadable.get(split.name)
        return split.select(np.setdiff1d(np.arange(len(split)), list(bad))) if bad else split

    def table(self) -> str:
        """The splits and the findings as plain text."""
        count = len(self._data.classes)
        text = f"{self._data.source}: {count} class{'' if count == 1 else 'es'}\n\n{self._splits()}\n\n"
        return text + (findings_table(self.findings) if self.findings else "No problems found.")

    def raise_if_errors(self) -> None:
        """Raise DataError with the table if there is an error."""
        if not self.ok:
            errors = sum(finding.severity == "error" for finding in self.findings)
            raise DataError(
                f"the data have {errors} error{'s' if errors > 1 else ''} that must be put right first\n\n{self.table()}"
            )

    @property
    def _data(self) -> Any:
        return self.data

    def _splits(self) -> str:
        """The splits as a table."""
        raise NotImplementedError


def findings_table(findings: Sequence[Finding]) -> str:
    """Findings as plain text, each example on a line of its own."""
    head = ("severity", "split", "what", "count", "examples")
    rows = [(row.severity, row.split, row.what, f"{row.count:,}", *(row.examples[:1] or [""])) for row in findings]
    lines = aligned([head, *rows], right={3}).splitlines()
    indent = " " * lines[0].index("examples")
    found = [lines[0]]
    for row, line in zip(findings, lines[1:], strict=True):
        found += [line, *(indent + example for example in row.examples[1:])]
        if row.count > len(row.examples) > 0:
            found.append(f"{indent}... and {row.count - len(row.examples):,} more")
    return "\n".join(found)


def errors_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors before warnings, else in the order given."""
    return tuple(sorted(findings, key=lambda finding: finding.severity == "warning"))


def problem_findings(problems: Sequence[Problem], severity: Severity) -> list[Finding]:
    """One finding for each kind of problem in a split, with its places."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        place = f"{problem.where}: {problem.detail}" if problem.detail else problem.where
        kinds.setdefault((problem.split, problem.what, problem.action), []).append(place)
    return [
        Finding(severity, split, f"{what} ({action})", len(places), tuple(places[:PLACES]))
        for (split, what, action), places in kinds.items()
    ]


# ------------------------------------------------------------------------------------------------------------------------- pictures


def check_workers(workers: int | None) -> None:
    """Raise ConfigurationError for fewer than one thread."""
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers={workers}: the pictures are read by 1 thread or more")


def look_at_each(count: int, name: str, look: Callable[[int], None], workers: int | None) -> None:
    """Call `look` with 0..count - 1 in threads, under a progress bar."""
    from tqdm import tqdm

    def look_at_some(start: int) -> int:
        stop = min(start + _CHUNK, count)
        for index in range(start, stop):
            look(index)
        return stop - start

    # Pillow decodes outside the interpreter lock, so threads are as good as processes here and start at once.
    with (
        tqdm(total=count, desc=f"reading {name}", unit=" pictures", disable=None, leave=False) as bar,
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
    ):
        try:
            for done in pool.map(look_at_some, range(0, count, _CHUNK)):
                bar.update(done)
        except BaseException:  # Ctrl-C ends at once, not after all pictures
            pool.shutdown(cancel_futures=True)
            raise


def digest(encoded: bytes) -> bytes:
    """What tells one file from another."""
    return hashlib.blake2b(encoded, digest_size=DIGEST_BYTES).digest()


def unreadable_findings(name: str, reasons: Sequence[str], count: int, severity: Severity) -> list[Finding]:
    """On the pictures of a split that cannot be read; an error if these are all."""
    if reasons and len(reasons) == count:
        return [Finding("error", name, "no picture can be read", len(reasons), tuple(reasons[:EXAMPLES]))]
    if reasons:
        return [Finding(severity, name, "picture that cannot be read (left out)", len(reasons), tuple(reasons[:EXAMPLES]))]
    return []


def tiny_findings(split: _Split, short_sides: IntArray) -> list[Finding]:
    """On the pictures under `TINY`; 0 is for unreadable ones."""
    tiny = np.flatnonzero((short_sides > 0) & (short_sides < TINY))
    if not tiny.size:
        return []
    examples = tuple(f"{split.describe(int(i))}: {short_sides[i]} pixels" for i in tiny[:EXAMPLES])
    return [Finding("warning", split.name, f"picture with a side under {TINY} pixels", tiny.size, examples)]


def same_files(digests: Mapping[str, NDArray[np.bytes_]]) -> Iterator[tuple[str, int, str, int]]:
    """Split and index of each picture met before, and where that was; empty digests are none.

    Args:
        digests: of each split, train before the others.
    """
    first: dict[bytes, tuple[str, int]] = {}
    for name, some in digests.items():
        for index, one in enumerate(some.tolist()):
            if one:
                other = first.setdefault(one, (name, index))
                if other != (name, index):
                    yield name, index, *other


def repeated_findings(splits: Mapping[str, _Split], digests: Mapping[str, NDArray[np.bytes_]], severity: Severity) -> list[Finding]:
    """On the same file twice in a split, and in train and another split."""
    places: dict[tuple[str, str], list[str]] = {}
    for name, index, other, other_index in same_files(digests):
        pair = f"{splits[name].describe(index)} = {splits[other].describe(other_index)}"
        what = "same picture twice" if other == name else f"picture that {other} has too"
        places.setdefault((name, what), []).append(pair)
    return [Finding(severity, name, what, len(pairs), tuple(pairs[:PLACES])) for (name, what), pairs in places.items()]
