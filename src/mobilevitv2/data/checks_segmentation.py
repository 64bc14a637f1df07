"""What is wrong with a data set for segmentation, and what is in it, found before the first step of training."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.mask_codes import IGNORED, Values
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
from mobilevitv2.data.segmentation import SegmentationData, SegmentationSplit
from mobilevitv2.data.sources import IntArray
from mobilevitv2.data.splits import NamedBytes
from mobilevitv2.errors import ImageError
from mobilevitv2.text_table import aligned

_MANY = 0.5
"""Share of a split's labelled pixels that may have numbers of no class before that is an error."""


@dataclass(frozen=True)
class SegmentationReport(Report[SegmentationData, SegmentationSplit]):
    """What the checks found. Pictures whose mask is of another size or cannot be read are among the unusable ones."""

    pixels: dict[str, IntArray] = field(default_factory=dict)
    """For each split the pixels of each class, then those ignored, then those with numbers of no class, (N + 2,); if read."""

    def shares(self, split: str) -> NDArray[np.float64]:
        """The share of each class in the labelled pixels of a split, (N,)."""
        counts = self.pixels[split][: len(self.data.classes)].astype(np.float64)
        return np.asarray(counts / max(counts.sum(), 1.0))

    def _splits(self) -> str:
        if not self.pixels:
            return aligned(
                [("split", "pictures"), *((name, f"{len(split):,}") for name, split in self.data.splits.items())], right={1}
            )
        rows: list[tuple[str, ...]] = [("split", "pictures", "usable", "pixels", "ignored", "of no class")]
        for name, split in self.data.splits.items():
            counts = self.pixels[name]
            total = int(counts.sum())
            rest = [_percent(int(count), total) for count in counts[-2:]]
            usable = len(split) - len(self.unreadable.get(name, {}))
            rows.append((name, f"{len(split):,}", f"{usable:,}", f"{total:,}", *rest))
        classes = [("class, share of labelled pixels", *self.pixels)]
        shares = [self.shares(name) for name in self.pixels]
        for label, name in enumerate(self.data.classes):
            classes.append((name, *(_share(one[label]) for one in shares)))
        return f"{aligned(rows, right=range(1, 6))}\n\n{aligned(classes, right=range(1, 1 + len(shares)))}"


def _percent(count: int, total: int) -> str:
    return _share(count / total if total else 0.0)


def _share(share: float) -> str:
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{100 * share:.2f} %"


@dataclass(frozen=True)
class _Seen:
    """What reading the pictures and masks of a split gave."""

    unreadable: dict[int, str]
    resized: dict[int, str]
    """Masks of another size than their picture."""
    strange: dict[int, str]
    """Masks with numbers of no class: which."""
    pixels: IntArray
    """(n, N + 2): of each class, ignored, of no class."""
    digests: NDArray[np.bytes_]
    short_sides: IntArray


def check_segmentation_data(
    data: SegmentationData, *, read: bool = True, workers: int | None = None, strict: bool = False
) -> SegmentationReport:
    """Look for what would spoil training or evaluation, and count the pixels of each class.

    Errors: a split without pictures or of which none can be used, fewer than two classes, a train split with pixels of one class
    alone, masks of which most labelled pixels have numbers of no class. Warnings, and errors with `strict`: every place in
    `data.problems`, unreadable pictures and masks, masks of another size than their picture (`SegmentationReport.usable` leaves
    them out), numbers of no class (ignored), masks with nothing but ignored pixels, the same file twice, in one split or in train
    and another. Always warnings: classes without a pixel, masks of a single class, pictures under 32 pixels.

    Args:
        data: what `open_segmentation_data` gave.
        read: decode every picture and mask (some hundreds a second and CPU core); False looks at the lists alone.
        workers: threads that decode; None for one a CPU core.
        strict: make an error of whatever is broken.
    """
    check_workers(workers)
    severity: Severity = "error" if strict else "warning"
    seen = {name: _look(split, workers) for name, split in data.splits.items()} if read else {}
    findings = problem_findings(data.problems, severity)
    if len(data.classes) < 2:
        findings.append(Finding("error", "all", f"fewer than two classes{_hint(seen)}", len(data.classes), data.classes))
    findings += [Finding("error", name, "no pictures", 0) for name, split in data.splits.items() if len(split) == 0]
    for name, one in seen.items():
        findings += _split_findings(data.splits[name], one, severity)
    findings += _class_findings(data, seen)
    findings += repeated_findings(data.splits, {name: one.digests for name, one in seen.items()}, severity)
    unusable = {name: dict(sorted((one.unreadable | one.resized).items())) for name, one in seen.items()}
    unusable = {name: some for name, some in unusable.items() if some}
    return SegmentationReport(data, errors_first(findings), unusable, {name: one.pixels.sum(axis=0) for name, one in seen.items()})


def _hint(seen: dict[str, _Seen]) -> str:
    """What to say where masks hold 0 and 255 alone, which most likely are two classes."""
    pixels = sum((one.pixels.sum(axis=0) for one in seen.values()), np.zeros(1, np.int64))
    if len(pixels) > 2 and pixels[0] and pixels[-2] and not pixels[1:-2].any():
        return f" (the masks hold 0 and {IGNORED} alone, and {IGNORED} is ignored: write 1 for the object)"
    return ""


# ------------------------------------------------------------------------------------------------------------------------- findings


def _split_findings(split: SegmentationSplit, seen: _Seen, severity: Severity) -> list[Finding]:
    name, findings = split.name, []
    findings += unreadable_findings(name, list(seen.unreadable.values()), len(split), severity)
    resized, strange = tuple(seen.resized.values()), tuple(seen.strange.values())
    if resized:
        every = len(resized) + len(seen.unreadable) == len(split)
        what = "every mask is of another size than its picture" if every else "mask of another size than its picture (left out)"
        findings.append(Finding("error" if every else severity, name, what, len(resized), resized[:PLACES]))
    labelled = seen.pixels[:, :-2].sum(axis=1)
    total, none = int(labelled.sum()), int(seen.pixels[:, -1].sum())
    if strange:
        many = none > _MANY * (total + none)
        what = "mask with numbers of no class" + (", most of its pixels in all" if many else " (ignored)")
        findings.append(Finding("error" if many else severity, name, what, len(strange), strange[:PLACES]))
    looked = seen.pixels.sum(axis=1) > 0
    empty = np.flatnonzero(looked & (labelled == 0))
    if empty.size:
        places = tuple(split.describe_mask(int(index)) for index in empty[:PLACES])
        every = empty.size == looked.sum()
        what = "every mask has nothing but ignored pixels" if every else "mask with nothing but ignored pixels"
        findings.append(Finding("error" if every else severity, name, what, empty.size, places))
    findings += _single(split, seen)
    return findings + tiny_findings(split, seen.short_sides)


def _single(split: SegmentationSplit, seen: _Seen) -> list[Finding]:
    single = np.flatnonzero((seen.pixels[:, :-2] > 0).sum(axis=1) == 1)
    if not single.size:
        return []
    labels = seen.pixels[single[:EXAMPLES], :-2].argmax(axis=1)
    examples = [f"{split.describe_mask(int(i))}: {split.classes[label]}" for i, label in zip(single, labels, strict=False)]
    return [Finding("warning", split.name, "mask of a single class", single.size, tuple(examples))]


def _class_findings(data: SegmentationData, seen: dict[str, _Seen]) -> list[Finding]:
    if not seen:
        return []
    counts = {name: one.pixels[:, :-2].sum(axis=0) for name, one in seen.items()}
    anywhere = sum(counts.values(), np.zeros(len(data.classes), np.int64))
    findings = _of_classes(data, "all", "class without a pixel in any split", anywhere == 0)
    for name, count in counts.items():
        if not count.any():
            continue
        if name == "train" and (count > 0).sum() == 1 and len(data.classes) > 1:
            what = f"pixels of one class alone{_hint(seen)}"
            findings.append(Finding("error", name, what, 1, (data.classes[int(count.argmax())],)))
        what = "class of another split that train lacks" if name == "train" else "class without a pixel"
        findings += _of_classes(data, name, what, (count == 0) & (anywhere > 0))
    return findings


def _of_classes(data: SegmentationData, split: str, what: str, which: NDArray[np.bool_]) -> list[Finding]:
    names = [data.classes[index] for index in np.flatnonzero(which)]
    return [Finding("warning", split, what, len(names), tuple(names[:EXAMPLES]))] if names else []


# -------------------------------------------------------------------------------------------------------------- pictures and masks


def _look(split: SegmentationSplit, workers: int | None) -> _Seen:
    from mobilevitv2.pictures import picture_size

    classes = len(split.classes)
    seen = _Seen(
        {}, {}, {},
        np.zeros((len(split), classes + 2), dtype=np.int64),
        np.zeros(len(split), dtype=f"S{DIGEST_BYTES}"),
        np.zeros(len(split), dtype=np.int64),
    )  # fmt: skip

    def look(index: int) -> None:
        try:
            encoded = split.encoded(index)
            split.decode(index, encoded, draft_size=DRAFT_SIZE)
            width, height = picture_size(NamedBytes(encoded, split.describe(index)))
            values = split.mask_values(index)
        except ImageError as error:
            seen.unreadable[index] = str(error)
            return
        seen.short_sides[index] = min(width, height)
        seen.digests[index] = digest(encoded)
        if values.shape != (height, width):
            mask = f"{split.describe_mask(index)} is {values.shape[1]} x {values.shape[0]}"
            seen.resized[index] = f"{mask}, its picture {width} x {height}"
            return
        known = split.known(values)
        none = (known == IGNORED) & (values != IGNORED)
        found = np.bincount(known.reshape(-1), minlength=256)
        seen.pixels[index] = [*found[:classes], found[IGNORED] - none.sum(), none.sum()]
        if none.any():
            seen.strange[index] = (
                f"{split.describe_mask(index)}: {_numbers(values[none])} ({_percent(int(none.sum()), none.size)} of it)"
            )

    look_at_each(len(split), split.name, look, workers)
    for some in (seen.unreadable, seen.resized, seen.strange):
        ordered = sorted(some.items())
        some.clear()
        some.update(ordered)
    return seen


def _numbers(values: Values) -> str:
    """The numbers of no class, colours as red, green and blue."""
    numbers = np.unique(values).tolist()
    texts = [str(number) if number >= 0 else _colour(-1 - number) for number in numbers[:EXAMPLES]]
    return ", ".join(texts) + (f" and {len(numbers) - EXAMPLES} more" if len(numbers) > EXAMPLES else "")


def _colour(code: int) -> str:
    return f"colour ({code >> 16}, {code >> 8 & 255}, {code & 255})"
