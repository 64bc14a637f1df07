"""Augmentation of whole batches on the device, each picture with random choices of its own.

The order is the official one: RandAugment on bytes, then division by 255, random erasing, and for the whole batch mixup or cutmix.
All random numbers are drawn on the host, so that no step waits for the device to tell what was drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms import v2 as transforms

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
    """uint8 pictures and class indices -> float pictures in 0..1 and class probabilities."""

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
        self.mix_probability = mix_probability
        mixes: list[transforms.Transform] = []
        if mixup:
            mixes.append(transforms.MixUp(alpha=mixup, num_classes=num_labels))
        if cutmix:
            mixes.append(transforms.CutMix(alpha=cutmix, num_classes=num_labels))
        self.mix = transforms.RandomChoice(mixes) if mixes else None

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
        pictures = to_float(pixels)
        if self.erasing:
            pictures = random_erase(pictures, probability=self.erasing)
        if mixing and self.mix is not None and torch.rand(()) < self.mix_probability:
            mixed, targets = self.mix(pictures, labels)
            return mixed, targets
        return pictures, torch.nn.functional.one_hot(labels, self.num_labels).float()


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in 0..1, channels last in memory: the layout that convolutions on the device want."""
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)
