"""Pictures to uint8 batches: decoding, cropping and resizing on the processor's cores. The rest of the augmentation runs on the
device, in batches (`train/augment.py`): what crosses the bus is one byte a channel."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler, get_worker_info
from torchvision.transforms import InterpolationMode

from mobilevitv2.data.decoded import DecodedPictures
from mobilevitv2.data.decoding import ByteArray, EncodedPicture
from mobilevitv2.data.resizing import resized
from mobilevitv2.errors import DataError, ImageError

if TYPE_CHECKING:
    from mobilevitv2.data.classification import PictureSplit

logger = logging.getLogger(__name__)

PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
TORCHVISION_FILTERS = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}


Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, the last two outside."""


@dataclass(frozen=True)
class TrainCrop:
    """A random part of the picture, stretched to a square, mirrored half of the time: (size, size, 3) uint8.

    `scale` is the range of the part's share of the area, `ratio` that of its width over height. What is drawn, and the pixels, are
    those of torchvision's `RandomResizedCrop`: ten tries, then the middle; cut first, resized then.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bicubic"

    def __call__(self, picture: Image.Image | ByteArray) -> ByteArray:
        """Cut, resize and perhaps mirror one picture, (H, W, 3) where it is an array."""
        pixels = np.asarray(picture)
        return self.cut(pixels, self.draw(pixels.shape[1], pixels.shape[0]))

    def draw(self, width: int, height: int) -> Box:
        """A part of a picture of this size, drawn from torch's random numbers."""
        shares, ratios, *places = torch.rand(4, 10).tolist()  # one call: each costs more than all the arithmetic
        low, high = (math.log(ratio) for ratio in self.ratio)
        for share, wide, *place in zip(shares, ratios, *places, strict=True):
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * share)
            ratio = math.exp(low + (high - low) * wide)
            across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < across <= width and 0 < down <= height:
                left, top = (int(at * (rest + 1)) for at, rest in zip(place, (width - across, height - down), strict=True))
                return left, top, left + across, top + down
        across = min(width, max(1, round(height * self.ratio[1])))
        down = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down

    def cut(self, pixels: ByteArray, box: Box) -> ByteArray:
        """A part of a picture, (H, W, 3), resized and perhaps mirrored."""
        left, top, right, bottom = box
        part = pixels[top:bottom, left:right]
        if torch.rand(()) < self.flip:
            part = part[:, ::-1]
        return resized(part, (self.size, self.size), interpolation=self.interpolation)

    def of_file(self, picture: EncodedPicture) -> ByteArray:
        """Cut from a file. Of a large JPEG no more is decoded than the part needs, which is drawn first. Raises ImageError."""
        if not picture.shrinks:
            return self(picture.pixels())
        width, height = picture.size()
        box = self.draw(width, height)
        # Twice the pixels that the crop has of the part, so that the filter here and not the decoder decides what is seen.
        across, down = box[2] - box[0], box[3] - box[1]
        pixels = picture.pixels(short_side=math.ceil(min(width, height) * 2 * self.size / min(across, down)))
        return self.cut(pixels, _scaled(box, (width, height), pixels))


def _scaled(box: Box, size: tuple[int, int], pixels: ByteArray) -> Box:
    """A part of a picture of (width, height) in the pixels that were decoded of it, at least one of them each way."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return box
    left, right = (round(at * width / size[0]) for at in box[::2])
    top, bottom = (round(at * height / size[1]) for at in box[1::2])
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


@dataclass(frozen=True)
class CentreCrop:
    """The short side resized to `resize`, then the middle `size` by `size`: (size, size, 3) uint8."""

    size: int
    resize: int
    interpolation: str = "bicubic"

    def __call__(self, picture: Image.Image | ByteArray) -> ByteArray:
        """Resize one picture and cut out its middle."""
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        picture = _without_far_ends(picture)
        scale = self.resize / min(picture.size)
        width, height = (max(self.resize, int(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), PIL_FILTERS[self.interpolation])
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return np.asarray(picture.crop((left, top, left + self.size, top + self.size)))


def _without_far_ends(picture: Image.Image, *, ratio: int = 8) -> Image.Image:
    """The middle of a picture that is more than `ratio` times as long as wide: the rest would be enlarged (a picture of 20000 by 3
    pixels to gigabytes) only to be cut off."""
    limit = ratio * min(picture.size)
    if max(picture.size) <= limit:
        return picture
    left, top = (max(0, (side - limit) // 2) for side in picture.size)
    width, height = picture.size
    return picture.crop((left, top, width - left, height - top))  # as much from both ends: the middle stays the middle


class Split(Protocol):
    """What reading batches needs of a split, whatever its task."""

    @property
    def name(self) -> str:
        """ "train", "validation" or "test"."""

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str:
        """The picture's path, for messages."""


SplitT = TypeVar("SplitT", bound=Split)
Sample = dict[str, Any]


class SampleBatches(Dataset[Sample], Generic[SplitT]):
    """A split as a map-style data set. A picture that cannot be read is replaced by the next that can, and named in the log once.

    Each sample carries the "index" of the picture that it was made of.
    """

    def __init__(self, split: SplitT) -> None:
        self.split = split
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.split)

    def sample(self, index: int) -> Sample:
        """One picture and what belongs to it. Raises ImageError where it cannot be read."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        for step in range(min(100, len(self.split))):
            place = (index + step) % len(self.split)
            try:
                return {**self.sample(place), "index": place}
            except ImageError as error:
                self._report(place, error)
        raise DataError(f"100 pictures in a row from {self.split.describe(index)} on cannot be read; run the data check.")

    def _report(self, index: int, error: ImageError) -> None:
        if index not in self._reported:
            self._reported.add(index)
            logger.warning("left out of training: %s: %s", self.split.describe(index), error)


class PictureBatches(SampleBatches["PictureSplit"]):
    """uint8 pixels (3, size, size) and class indices.

    Args:
        split: where the pictures come from.
        transform: `TrainCrop` or `CentreCrop`.
        cache: keep decoded pictures in memory, shared by all workers; see `DecodedPictures`.
    """

    def __init__(self, split: PictureSplit, transform: TrainCrop | CentreCrop, *, cache: DecodedPictures | None = None) -> None:
        super().__init__(split)
        self.transform = transform
        self.cache = cache

    def sample(self, index: int) -> Sample:
        """One picture, cut, and its class."""
        if self.cache is not None:
            pixels = self.transform(self.cache.pixels(index))
        elif isinstance(self.transform, TrainCrop):
            pixels = self.transform.of_file(self.split.picture(index))
        else:
            pixels = self.transform(self.split.picture(index).pixels())
        return {"pixel_values": channels_first(pixels), "labels": torch.tensor(int(self.split.labels[index]))}


def channels_first(pixels: ByteArray) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W), channels last in memory as before."""
    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)


def random_numbers() -> np.random.Generator:
    """Numbers for one sample, drawn from torch's, which differ from worker to worker and follow the run's seed."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def stack_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples to a batch: "pixel_values" and "labels" as one tensor each, all else as a list.

    Lists of arrays of numpy stay on the host; "index" becomes the list "indices".
    """
    batch: dict[str, Any] = {name: [sample[name] for sample in samples] for name in samples[0] if name != "index"}
    for name in ("pixel_values", "labels"):
        if name in batch:
            batch[name] = _stacked(batch[name])
    return {**batch, "indices": [sample["index"] for sample in samples]}


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """One tensor of all, laid in memory as they are; in a worker it lies where the parent sees it, not to be copied there after."""
    inside = get_worker_info() is not None
    pictures = tensors[0].ndim == 3 and tensors[0].stride(0) == 1  # (3, H, W), channels last in memory
    parts = [tensor.permute(1, 2, 0) for tensor in tensors] if pictures else tensors
    shape, size = (len(parts), *parts[0].shape), len(parts) * parts[0].nbytes
    # Not `share_memory_`, which would copy what is not yet written.
    made = torch.empty(shape if not inside else 0, dtype=parts[0].dtype)
    if inside:
        made = made.set_(torch.UntypedStorage._new_shared(size)).view(shape)  # type: ignore[no-untyped-call]
    torch.stack(parts, out=made)
    return made.permute(0, 3, 1, 2) if pictures else made


if sys.platform == "linux":
    from multiprocessing.context import ForkContext, ForkProcess

    class _QuietFork(ForkProcess):
        """A forked process without Python's warning (from 3.12 on) that a process with threads was forked.

        torch always has threads. The workers run Python, numpy, Pillow and torch's operations on one thread, and never wait for one
        of the parent's; this is how DataLoader starts its workers on Linux anyway (until Python 3.14), and only a fork sees the
        decoded pictures without copying them.
        """

        def start(self) -> None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
                super().start()

    class _QuietForkContext(ForkContext):
        Process = _QuietFork


def worker_context() -> BaseContext | None:
    """How DataLoader's workers are started: forked on Linux; None, the platform's own way, elsewhere."""
    return _QuietForkContext() if sys.platform == "linux" else None


def can_share_memory() -> bool:
    """Whether worker processes see the parent's memory (fork), so that a cache is filled once and not once a worker."""
    return worker_context() is not None


class EpochBatches(Sampler[list[int]]):
    """Batches of shuffled indices for all epochs, one after another, without a pause between epochs.

    Each epoch is a permutation of its own, drawn from the seed and the epoch's number; what does not fill a whole optimiser step at
    its end is left out.

    Args:
        count: number of pictures.
        batch_size: indices a batch.
        epochs: how many permutations.
        seed: draws them.
        per_step: batches that make one optimiser step: those accumulated, on all processes.
    """

    def __init__(self, count: int, batch_size: int, *, epochs: int, seed: int, per_step: int = 1) -> None:
        self.count, self.batch_size, self.epochs, self.seed = count, batch_size, epochs, seed
        self.batches_per_epoch = count // (batch_size * per_step) * per_step

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in range(self.epochs):
            order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
            for start in range(0, self.batches_per_epoch * self.batch_size, self.batch_size):
                yield order[start : start + self.batch_size].tolist()
