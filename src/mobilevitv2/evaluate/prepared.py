"""Pictures decoded and prepared in worker processes, ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mobilevitv2.data.batches import worker_context
from mobilevitv2.data.classification import PictureSplit
from mobilevitv2.errors import ConfigurationError, ImageError

Prepared: TypeAlias = tuple[list[tuple[list[int], Tensor]], list[tuple[int, str]]]
"""Groups of pictures of one shape: their indices and pixels (n, channels, height, width); and the unreadable ones with reasons."""


class _Batches(Dataset[Prepared]):
    """Batch number -> its pictures, prepared."""

    def __init__(self, split: PictureSplit, processor: Callable[..., Any], batch_size: int) -> None:
        self.split = split
        self.processor = processor
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, number: int) -> Prepared:
        start = number * self.batch_size
        by_shape: dict[torch.Size, tuple[list[int], list[Tensor]]] = {}
        unreadable = []
        for index in range(start, min(start + self.batch_size, len(self.split))):
            try:
                picture = self.split.read(index)
            except ImageError as error:
                unreadable.append((index, str(error)))
                continue
            pixels = _pixel_values(self.processor, picture)
            indices, tensors = by_shape.setdefault(pixels.shape, ([], []))
            indices.append(index)
            tensors.append(pixels)
        return [(indices, torch.stack(tensors)) for indices, tensors in by_shape.values()], unreadable


def _pixel_values(processor: Callable[..., Any], picture: Any) -> Tensor:
    """One picture as (channels, height, width): by a processor of transformers' kind, or any function of a Pillow image."""
    from transformers.image_processing_base import ImageProcessingMixin

    if isinstance(processor, ImageProcessingMixin):
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
    else:
        pixels = processor(picture)
    pixels = torch.as_tensor(pixels)
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim != 3:
        raise ConfigurationError(
            f"the processor made a tensor of shape {tuple(pixels.shape)} of one picture; (channels, height, width) is expected"
        )
    return pixels


def prepared(
    split: PictureSplit, processor: Callable[..., Any], *, batch_size: int, workers: int, pin_memory: bool
) -> Iterable[Prepared]:
    """The pictures of a split in order, in batches.

    Args:
        processor: called with one Pillow image; one of transformers' image processors also with return_tensors="pt".
        batch_size: pictures a batch; pictures of different sizes come in groups of one size.
        workers: processes that prepare ahead; 0 prepares here, in between.
        pin_memory: put the pixels where a GPU copies them from fastest.
    """
    if batch_size < 1 or workers < 0:
        raise ConfigurationError(f"batch_size={batch_size}, workers={workers}: at least 1 picture a batch and 0 workers")
    batches: Iterable[Prepared] = DataLoader(
        _Batches(split, processor, batch_size),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=worker_context() if workers else None,
        pin_memory=pin_memory,
    )
    return batches
