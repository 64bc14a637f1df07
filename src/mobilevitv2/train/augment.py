"""Augmentation of whole batches on the device, each picture with random choices of its own.

The order is the official one: RandAugment, random erasing, and for the whole batch mixup or cutmix. All but mixup is done on bytes,
which are a quarter of what floats are, and the division by 255 comes after it: black stays black. All random numbers are drawn on
the host, so that no step waits for the device to tell what was drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2.train.randaugment import rand_augment, to_device


def random_erase(pixels: Tensor, *, probability: float) -> Tensor:
    """Black out one rectangle of 2 to 33 % of the area in some of the pictures (arXiv 1708.04896): (B, C, H, W) -> the same."""
    batch, _, height, width = pixels.shape
    area = height * width * torch.empty(batch).uniform_(0.02, 0.33)
    ratio = torch.empty(batch).uniform_(math.log(0.3), math.log(3.3)).exp()
    tall = (area * ratio).sqrt().round().clamp(max=height - 1)
    wide = (area / ratio).sqrt().round().clamp(max=width - 1)
    top = (torch.rand(batch) * (height - tall + 1)).floor()
    left = (torch.rand(batch) * (width - wide + 1)).floor()
    tall = torch.where(torch.rand(batch) < probability, tall, 0)
    box = to_device(torch.stack([top, top + tall, left, left + wide]), pixels.device)[..., None]  # (4, B, 1)
    rows, columns = torch.arange(height, device=pixels.device), torch.arange(width, device=pixels.device)
    in_rows = (rows >= box[0]) & (rows < box[1])  # (B, H)
    in_columns = (columns >= box[2]) & (columns < box[3])  # (B, W)
    return pixels.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


class BatchAugmentation:
    """uint8 pictures and class indices -> float pictures in 0..1 and class probabilities.

    Args:
        num_labels: number of classes.
        randaugment_operations: operations of RandAugment on each picture.
        randaugment_magnitude: their strength, 0..30.
        erasing: probability of a rectangle blacked out.
        mixup: alpha of arXiv 1710.09412; 0 for none.
        cutmix: alpha of arXiv 1905.04899; 0 for none. Where both are set, each batch takes one of them.
        mix_probability: of mixing a batch at all.
    """

    def __init__(
        self,
        num_labels: int,
        *,
        randaugment_operations: int = 0,
        randaugment_magnitude: int = 9,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
    ) -> None:
        self.num_labels = num_labels
        self.operations, self.magnitude, self.erasing = randaugment_operations, randaugment_magnitude, erasing
        self.mixup, self.cutmix, self.mix_probability = mixup, cutmix, mix_probability

    @torch.no_grad()
    def __call__(self, pixels: Tensor, labels: Tensor, *, mixing: bool = True) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) uint8 and (B,) -> (B, 3, H, W) float32 in 0..1 and (B, classes) summing to one; perhaps in another order.

        `mixing=False` leaves mixup and cutmix out.
        """
        with torch.autocast(pixels.device.type, enabled=False):  # coordinates and sums want full precision
            return self._augment(pixels, labels, mixing=mixing)

    def _augment(self, pixels: Tensor, labels: Tensor, *, mixing: bool) -> tuple[Tensor, Tensor]:
        if self.operations:
            pixels, labels = rand_augment(pixels, labels, operations=self.operations, magnitude=self.magnitude)
        if self.erasing:
            pixels = random_erase(pixels, probability=self.erasing)
        targets = F.one_hot(labels, self.num_labels).float()
        if not mixing or not (self.mixup or self.cutmix) or torch.rand(()) >= self.mix_probability:
            return to_float(pixels), targets
        if not self.cutmix or (self.mixup and torch.rand(()) < 0.5):
            share = _beta(self.mixup)
            return mixed(to_float(pixels), share), mixed(targets, share)
        pixels, share = cut_and_mixed(pixels, _beta(self.cutmix))
        return to_float(pixels), mixed(targets, share)


def _beta(alpha: float) -> float:
    """A share drawn from Beta(alpha, alpha)."""
    return float(torch.distributions.Beta(alpha, alpha).sample())


def mixed(each: Tensor, share: float) -> Tensor:
    """`share` of each row (B, ...) and the rest of the one before it, of the last one for the first."""
    out = torch.empty_like(each)
    torch.lerp(each[1:], each[:-1], 1 - share, out=out[1:])
    torch.lerp(each[:1], each[-1:], 1 - share, out=out[:1])
    return out


def cut_and_mixed(pixels: Tensor, share: float) -> tuple[Tensor, float]:
    """Pictures (B, C, H, W) with a rectangle of the one before in place of their own, and the share of the area left of them.

    The rectangle has about 1 - share of the area, anywhere; what lies outside the picture is cut off.
    """
    height, width = pixels.shape[-2:]
    half = 0.5 * math.sqrt(1 - share)
    middle_row, middle_column = int(torch.randint(height, ())), int(torch.randint(width, ()))
    top, bottom = max(0, middle_row - int(half * height)), min(height, middle_row + int(half * height))
    left, right = max(0, middle_column - int(half * width)), min(width, middle_column + int(half * width))
    out, inside = pixels.clone(), (..., slice(top, bottom), slice(left, right))
    out[1:][inside] = pixels[:-1][inside]
    out[:1][inside] = pixels[-1:][inside]
    return out, 1 - (bottom - top) * (right - left) / (height * width)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in 0..1, channels last in memory: the layout that convolutions on the device want."""
    return pixels.contiguous(memory_format=torch.channels_last) / 255  # turned as bytes, then divided and widened in one pass
