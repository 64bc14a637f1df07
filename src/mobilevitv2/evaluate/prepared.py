"""Pictures decoded and prepared in worker processes, ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mobilevitv2.data.batches import worker_context
from mobilevitv2.errors import ConfigurationError, ImageError

if TYPE_CHECKING:
    from PIL import Image

SCALED_STEP = 32
"""Scaled sizes are rounded to multiples of it: the largest output stride."""


class Readable(Protocol):
    """What is needed of a split, of any task."""

    @property
    def name(self) -> str:
        """ "train", "validation" or "test"."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """A picture as 8-bit RGB, upright; ImageError where it cannot be read."""


class Group(NamedTuple):
    """Pictures that were prepared to one shape."""

    indices: list[int]
    """In the split."""
    views: list[Tensor]
    """For each scale the pixel values (n, channels, height, width)."""
    sizes: list[tuple[int, int]]
    """(height, width) of each picture as it was read."""
    truths: list[Any]
    """What was read besides each picture: its mask, say."""


Prepared: TypeAlias = tuple[list[Group], list[tuple[int, str]]]
"""The pictures of a batch; and the unreadable ones with reasons."""


@dataclass(frozen=True)
class Views:
    """A picture as the model sees it, once for each scale: tensors (channels, height, width).

    `processor` is called with one Pillow image; one of transformers' image processors also with return_tensors="pt". With `whole`,
    it neither cuts out the centre nor pads. At scales other than 1 an image processor resizes to so many times the size, and what
    other functions give is resized.
    """

    processor: Callable[..., Any]
    scales: tuple[float, ...] = (1.0,)
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise ConfigurationError(f"scales={self.scales}: give one or more factors above 0 and up to 16, such as 0.75, 1, 1.25")

    def __call__(self, picture: Image.Image) -> list[Tensor]:
        """All views of one picture."""
        from transformers.image_processing_base import ImageProcessingMixin

        if isinstance(self.processor, ImageProcessingMixin):
            return [_one(self.processor(picture, **self._options(scale))["pixel_values"]) for scale in self.scales]
        pixels = _one(self.processor(picture))
        return [pixels if scale == 1 else _resized(pixels, scale) for scale in self.scales]

    def _options(self, scale: float) -> dict[str, Any]:
        options: dict[str, Any] = {"return_tensors": "pt"}
        if self.whole:
            options |= {name: False for name in ("do_center_crop", "do_pad") if getattr(self.processor, name, False)}
        if scale != 1:
            size: Any = self.processor.size  # type: ignore[attr-defined]  # image processors have one
            options["size"] = {name: _scaled(length, scale) for name, length in dict(size).items() if length}
        return options


def _scaled(length: int, scale: float) -> int:
    return max(SCALED_STEP, round(length * scale / SCALED_STEP) * SCALED_STEP)


def _resized(pixels: Tensor, scale: float) -> Tensor:
    size = [_scaled(length, scale) for length in pixels.shape[-2:]]
    return F.interpolate(pixels[None], size=size, mode="bicubic", antialias=True)[0]


def _one(values: Any) -> Tensor:
    """The values of one picture as (channels, height, width)."""
    pixels = torch.as_tensor(values)
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim != 3:
        raise ConfigurationError(
            f"the processor made a tensor of shape {tuple(pixels.shape)} of one picture; (channels, height, width) is expected"
        )
    return pixels


class _Batches(Dataset[Prepared]):
    """Batch number -> its pictures, prepared."""

    def __init__(self, split: Readable, views: Views, truth: Callable[[int], Any] | None, batch_size: int) -> None:
        self.split = split
        self.views = views
        self.truth = truth
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, number: int) -> Prepared:
        start = number * self.batch_size
        by_shape: dict[tuple[torch.Size, ...], list[tuple[int, list[Tensor], tuple[int, int], Any]]] = {}
        unreadable = []
        for index in range(start, min(start + self.batch_size, len(self.split))):
            try:
                picture = self.split.read(index)
                truth = None if self.truth is None else self.truth(index)
            except ImageError as error:
                unreadable.append((index, str(error)))
                continue
            views = self.views(picture)
            group = by_shape.setdefault(tuple(view.shape for view in views), [])
            group.append((index, views, (picture.height, picture.width), truth))
        return [_stacked(rows) for rows in by_shape.values()], unreadable


def _stacked(rows: list[tuple[int, list[Tensor], tuple[int, int], Any]]) -> Group:
    indices, views, sizes, truths = (list(column) for column in zip(*rows, strict=True))
    return Group(indices, [torch.stack(each) for each in zip(*views, strict=True)], sizes, truths)


def prepared(
    split: Readable,
    views: Views,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    truth: Callable[[int], Any] | None = None,
) -> Iterable[Prepared]:
    """The pictures of a split in order, in batches.

    Args:
        views: makes the pixel values.
        batch_size: pictures a batch; pictures of different sizes come in groups of one size.
        workers: processes that prepare ahead; 0 prepares here, in between.
        pin_memory: put the pixels where a GPU copies them from fastest.
        truth: reads what else is wanted of a picture, by its index; an ImageError leaves the picture out.
    """
    if batch_size < 1 or workers < 0:
        raise ConfigurationError(f"batch_size={batch_size}, workers={workers}: at least 1 picture a batch and 0 workers")
    batches: Iterable[Prepared] = DataLoader(
        _Batches(split, views, truth, batch_size),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=worker_context() if workers else None,
        pin_memory=pin_memory,
    )
    return batches
