"""COCO's run-length encoding of masks, down the columns; compressed, as pycocotools and the tools around it read it."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def encode_mask(mask: Array, *, compressed: bool = True) -> dict[str, Any]:
    """A mask as {"size": [height, width], "counts": ...}, as COCO has it.

    Args:
        mask: (height, width) of bool, or of numbers of which every one but 0 is inside.
        compressed: the counts as COCO's text; False gives the list of run lengths, outside first.
    """
    height, width = mask.shape
    counts = _runs(np.asarray(mask, dtype=bool).ravel(order="F"))
    return {"size": [height, width], "counts": _text(counts) if compressed else counts.tolist()}


def decode_mask(encoded: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The mask (height, width) of what `encode_mask` or pycocotools gave."""
    height, width = encoded["size"]
    counts = encoded["counts"]
    if isinstance(counts, bytes | str):
        counts = _numbers(counts.encode() if isinstance(counts, str) else counts)
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(height, width, order="F")


def _runs(inside: Array) -> Array:
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], edges, [len(inside)]]))
    return np.concatenate([[0], lengths]) if len(inside) and inside[0] else lengths


def _text(counts: Array) -> str:
    """Differences to the count before the last, in groups of five bits from the lowest, each as one letter from "0" on."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    letters: list[Array] = []
    open_ones = np.ones(len(values), dtype=bool)
    while open_ones.any():
        bits = values & 31
        values >>= 5
        more = np.where(bits & 16, values != -1, values != 0)  # the fifth bit is the sign where no group follows
        letters.append(np.where(open_ones, (bits | (more << 5)) + 48, 0).astype(np.uint8))
        open_ones &= more
    together = np.stack(letters, axis=1)
    letters_alone: bytes = together[together != 0].tobytes()
    return letters_alone.decode("ascii")


def _numbers(text: bytes) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
