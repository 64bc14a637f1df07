"""The pictures that are watched while training goes on: the same ones again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mobilevitv2.data.batches import SampleBatches

KEPT = 2**30
"""Bytes of prepared pictures kept on the device: with some thousand pictures, evaluating then needs no worker and no copy."""


class WatchedBatches:
    """Batches for evaluation, with their tensors on the device; kept there after the first time, where they are few enough.

    Args:
        pictures: what to watch.
        batch: pictures at a time.
        workers: processes that decode.
        keep: whether they may be kept.
        loader: makes batches of indices into batches of pictures.
    """

    def __init__(
        self, pictures: SampleBatches[Any], *, batch: int, workers: int, keep: bool, loader: Callable[..., Iterable[dict[str, Any]]]
    ) -> None:
        self.pictures, self.batch, self.workers, self.keep, self.loader = pictures, batch, workers, keep, loader
        self._kept: list[dict[str, Any]] | None = None

    def on(self, device: torch.device) -> Iterator[dict[str, Any]]:
        """The batches in order."""
        if self._kept is not None:
            yield from self._kept
            return
        count = len(self.pictures)
        order = [list(range(start, min(start + self.batch, count))) for start in range(0, count, self.batch)]
        kept: list[dict[str, Any]] | None = [] if self.keep else None
        room = KEPT
        for inputs in self.loader(self.pictures, order, workers=min(self.workers, len(order)), pin=device.type == "cuda"):
            moved = {name: _moved(value, device) for name, value in inputs.items()}
            room -= sum(_bytes(value) for value in moved.values())
            if kept is not None and room >= 0:
                kept.append(moved)
            else:
                kept = None
            yield moved
        self._kept = kept


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [_moved(each, device) for each in value] if isinstance(value, list) else value


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(_bytes(each) for each in value) if isinstance(value, list) else 0
