"""Augmentation of whole batches on the device, each picture with random choices of its own.

The order is the official one: RandAugment on bytes, then division by 255, random erasing, and for the whole batch mixup or cutmix.
All random numbers are drawn on the host, so that no step waits for the device to tell what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional as tvF

# What each operation of RandAugment does at strength 0..1 (torchvision's ranges), and whether its sign is drawn.
Operation = Callable[[Tensor, float, int], Tensor]


def _affine(pixels: Tensor, *, translate: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    # Shears turn about the top left corner, as in torchvision's RandAugment.
    return tvF.affine(
        pixels,
        angle=0.0,
        translate=[round(t) for t in translate],
        scale=1.0,
        shear=[math.degrees(math.atan(s)) for s in shear],
        interpolation=InterpolationMode.BILINEAR,
        center=[0, 0] if any(shear) else None,
    )


OPERATIONS: dict[str, tuple[bool, Operation]] = {
    "Identity": (False, lambda x, m, size: x),
    "ShearX": (True, lambda x, m, size: _affine(x, shear=(0.3 * m, 0.0))),
    "ShearY": (True, lambda x, m, size: _affine(x, shear=(0.0, 0.3 * m))),
    "TranslateX": (True, lambda x, m, size: _affine(x, translate=(150 / 331 * size * m, 0))),
    "TranslateY": (True, lambda x, m, size: _affine(x, translate=(0, 150 / 331 * size * m))),
    "Rotate": (True, lambda x, m, size: tvF.rotate(x, 30 * m, interpolation=InterpolationMode.BILINEAR)),
    "Brightness": (True, lambda x, m, size: tvF.adjust_brightness(x, 1 + 0.9 * m)),
    "Color": (True, lambda x, m, size: tvF.adjust_saturation(x, 1 + 0.9 * m)),
    "Contrast": (True, lambda x, m, size: tvF.adjust_contrast(x, 1 + 0.9 * m)),
    "Sharpness": (True, lambda x, m, size: tvF.adjust_sharpness(x, 1 + 0.9 * m)),
    "Posterize": (False, lambda x, m, size: tvF.posterize(x, 8 - round(4 * m))),
    "Solarize": (False, lambda x, m, size: tvF.solarize(x, 255 * (1 - m))),
    "AutoContrast": (False, lambda x, m, size: tvF.autocontrast(x)),
    "Equalize": (False, lambda x, m, size: tvF.equalize(x)),
}


def rand_augment(pixels: Tensor, labels: Tensor, *, operations: int, magnitude: int, bins: int = 31) -> tuple[Tensor, Tensor]:
    """RandAugment (arXiv 1909.13719) with torchvision's operations and ranges.

    The batch comes back in another order: pictures that drew the same operation stand together, so that each runs once.

    Args:
        pixels: pictures (B, 3, H, W) uint8.
        labels: (B, ...).
        operations: how many operations each picture goes through.
        magnitude: their strength, 0..bins - 1.
        bins: number of strengths.
    """
    strength = magnitude / (bins - 1)
    kinds = [(operation, sign) for signed, operation in OPERATIONS.values() for sign in ((1, -1) if signed else (1, 1))]
    for _ in range(operations):
        drawn = torch.randint(len(kinds), (len(pixels),))  # two entries a kind, so that signs do not make an operation likelier
        order = to_device(drawn.argsort(), pixels.device)
        counts = drawn.bincount(minlength=len(kinds)).tolist()
        groups = zip(kinds, pixels[order].split(counts), strict=True)
        pixels = torch.cat([operation(group, sign * strength, group.shape[-1]) for (operation, sign), group in groups if len(group)])
        labels = labels[order]
    return pixels, labels


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting for the device's queue, which only pinned memory allows."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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
