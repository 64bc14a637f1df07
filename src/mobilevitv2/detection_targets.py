"""True boxes of a batch: checked, and brought into two tensors, whatever their number in each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mobilevitv2.errors import ConfigurationError

FORM = '{"class_labels": whole numbers (n,), "boxes": floats (n, 4), (centre x, centre y, width, height) in units of the picture}'
FARTHEST = 2.0
"""No relative coordinate of a box in or near the picture is larger; a box in pixels nearly always has one that is."""


class PaddedTargets(NamedTuple):
    """Boxes of B pictures in T rows each; T is a power of two, so that few different shapes occur."""

    boxes: Tensor
    """(B, T, 4), centred, in units of the picture, float32; rows of padding are a box over the whole picture."""
    classes: Tensor
    """(B, T), int64, 0..num_labels - 1."""
    valid: Tensor
    """(B, T), bool: False for padding."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph for every combination of counts would be compiled
def pad_targets(labels: Sequence[Mapping[str, Any]], *, batch: int, num_labels: int, device: torch.device) -> PaddedTargets:
    """The targets of a batch as tensors on `device`.

    Values are looked at where they lie in ordinary memory; reading them back from a GPU would stop the pipeline at every step.

    Raises:
        ConfigurationError: targets that cannot be learned from; the message names the picture and the remedy.
    """
    pairs = _checked_pairs(labels, batch)
    _check_values(pairs, num_labels)
    longest = max(1, *(len(classes) for classes, _ in pairs))
    rows = 1 << (longest - 1).bit_length()
    counts = torch.tensor([len(classes) for classes, _ in pairs])
    valid = torch.arange(rows) < counts[:, None]
    whole = torch.tensor([0.5, 0.5, 1.0, 1.0])
    # On the targets' own device: one transfer of a padded tensor instead of one for each picture.
    boxes = _padded([boxes for _, boxes in pairs], rows, dtype=torch.float32).to(device, non_blocking=True)
    classes = _padded([classes for classes, _ in pairs], rows, dtype=torch.int64).to(device, non_blocking=True)
    valid, whole = valid.to(device, non_blocking=True), whole.to(device, non_blocking=True)
    return PaddedTargets(torch.where(valid[..., None], boxes, whole), classes, valid)


def _padded(tensors: list[Tensor], rows: int, *, dtype: torch.dtype) -> Tensor:
    home = next((each.device for each in tensors if each.device.type != "cpu"), torch.device("cpu"))
    padded = pad_sequence([each.to(home, dtype) for each in tensors], batch_first=True)  # (B, longest, ...)
    out = padded.new_zeros((len(tensors), rows, *padded.shape[2:]))
    out[:, : padded.shape[1]] = padded
    return out


def _checked_pairs(labels: Sequence[Mapping[str, Any]], batch: int) -> list[tuple[Tensor, Tensor]]:
    if isinstance(labels, Tensor | Mapping | str) or not isinstance(labels, Sequence):
        raise ConfigurationError(f"labels is a {type(labels).__name__}; give a list with a dictionary for each picture: {FORM}.")
    if len(labels) != batch:
        raise ConfigurationError(f"{len(labels)} labels came with {batch} pictures; give one dictionary for each picture.")
    return [_checked_pair(index, label) for index, label in enumerate(labels)]


def _checked_pair(index: int, label: object) -> tuple[Tensor, Tensor]:
    where = f"labels[{index}]"
    if not isinstance(label, Mapping):
        raise ConfigurationError(f"{where} is a {type(label).__name__}; give a dictionary {FORM}.")
    missing = [name for name in ("class_labels", "boxes") if name not in label]
    if missing:
        raise ConfigurationError(
            f"{where} has no {' and no '.join(missing)} (it has {', '.join(map(str, label)) or 'nothing'}); give {FORM}."
        )
    classes, boxes = label["class_labels"], label["boxes"]
    for name, tensor in (("class_labels", classes), ("boxes", boxes)):
        if not isinstance(tensor, Tensor):
            raise ConfigurationError(f"{where}[{name!r}] is a {type(tensor).__name__}; give a tensor.")
    if boxes.numel() == 0 and classes.numel() == 0:
        return classes.new_zeros(0, dtype=torch.int64), boxes.new_zeros(0, 4)
    if boxes.ndim != 2 or boxes.shape[-1] != 4 or not boxes.is_floating_point():
        raise ConfigurationError(f"{where}['boxes'] has shape {tuple(boxes.shape)} and type {boxes.dtype}; give floats (n, 4).")
    whole_numbers = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
    if classes.shape != boxes.shape[:1] or not whole_numbers:
        raise ConfigurationError(
            f"{where}['class_labels'] has shape {tuple(classes.shape)} and type {classes.dtype}; give whole numbers "
            f"({len(boxes)},), one for each of the boxes."
        )
    return classes, boxes


def _check_values(pairs: list[tuple[Tensor, Tensor]], num_labels: int) -> None:
    """All pictures at once, because most batches are good; a bad one is searched for its first bad box."""
    seen = [(index, *pair) for index, pair in enumerate(pairs) if all(t.device.type == "cpu" for t in pair) and len(pair[0])]
    if not seen:
        return
    classes, boxes = torch.cat([c.long() for _, c, _ in seen]), torch.cat([b.float() for _, _, b in seen])
    wrong_class = (classes < 0) | (classes >= num_labels)
    good_box = (boxes.abs() <= FARTHEST).all(-1) & (boxes[:, 2:] > 0).all(-1)  # also False for NaN and infinity
    bad = wrong_class | ~good_box
    if not bad.any():
        return
    place = int(bad.nonzero()[0, 0])
    owners = [(index, box) for index, c, _ in seen for box in range(len(c))]
    index, number = owners[place]
    if wrong_class[place]:
        raise ConfigurationError(
            f"labels[{index}]['class_labels'][{number}] is {int(classes[place])}, outside 0..{num_labels - 1}; the model has "
            f"num_labels={num_labels}, and the background is no label of a box."
        )
    raise ConfigurationError(f"labels[{index}]['boxes'][{number}] is {boxes[place].tolist()}, {_what_is_wrong(boxes[place])}")


def _what_is_wrong(box: Tensor) -> str:
    if not box.isfinite().all():
        return "which is no box; drop it or repair the annotation."
    if (box.abs() > FARTHEST).any():
        return (
            "far outside the picture; boxes are (centre x, centre y, width, height) in units of the picture, so divide pixels by "
            "the picture's width and height."
        )
    return "a box without area; width and height must be above 0: drop it, or convert (left, top, right, bottom) first."
