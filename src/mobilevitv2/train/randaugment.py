"""RandAugment (arXiv 1909.13719) for a whole batch at once, each picture with operations of its own.

The operations and their ranges are torchvision's, which the official recipes use. torchvision's functions take one strength a call
and build small tensors on the device as they go, and each of those makes the host wait for the device's queue; here one picture's
strength is a row of a tensor, all of them cross the bus together, and nothing waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# The order is the order in which a batch is sorted: pictures that drew operations of one kind stand together.
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
PHOTOMETRIC = ("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize")
OPERATIONS = (*GEOMETRIC, *PHOTOMETRIC, "Identity")
GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


def rand_augment(
    pixels: Tensor, labels: Tensor, *, operations: int, magnitude: int, bins: int = 31, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Put each picture through operations drawn for it alone; the batch comes back in another order.

    Args:
        pixels: pictures (B, 3, H, W) uint8.
        labels: (B, ...).
        operations: how many operations each picture goes through.
        magnitude: their strength, 0..bins - 1.
        bins: number of strengths.
        generator: draws the operations and signs, on the host.
    """
    for _ in range(operations):
        drawn, order = torch.randint(len(OPERATIONS), (len(pixels),), generator=generator).sort()
        signs = 2.0 * torch.randint(2, (len(pixels),), generator=generator) - 1
        order = to_device(order, pixels.device)
        pixels, labels = apply_sorted(pixels[order], drawn, signs * (magnitude / (bins - 1))), labels[order]
    return pixels, labels


def apply_sorted(pixels: Tensor, drawn: Tensor, amounts: Tensor) -> Tensor:
    """Operation `drawn[i]` (rising, on the host) of signed strength `amounts[i]` in -1..1 (on the host) on picture i."""
    counts = drawn.bincount(minlength=len(OPERATIONS)).tolist()
    moved = sum(counts[: len(GEOMETRIC)])
    matrices = to_device(sampling_matrices(drawn[:moved], amounts[:moved], pixels.shape[-1]), pixels.device)
    strengths = to_device(amounts, pixels.device)[:, None, None, None]
    parts = [_warp(pixels[:moved], matrices)] if moved else []
    start = moved
    for name, count in zip(PHOTOMETRIC, counts[len(GEOMETRIC) :], strict=False):
        if count:
            parts.append(_FUNCTIONS[name](pixels[start : start + count], strengths[start : start + count], abs(float(amounts[0]))))
        start += count
    return torch.cat([*parts, pixels[start:]])


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from the host without waiting for the device's queue, which only pinned memory allows."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def sampling_matrices(drawn: Tensor, amounts: Tensor, size: int) -> Tensor:
    """For each picture the map from output to input coordinates, -1..1 over the picture: (n,), (n,) -> (n, 2, 3), on the host.

    Shears by 0.3 about the top left corner, translations by 150 / 331 of the side in whole pixels, rotations by 30 degrees, at
    full strength.
    """
    angle = torch.where(drawn == 4, amounts * math.radians(30), 0.0)
    shear_x, shear_y = (torch.where(drawn == kind, 0.3 * amounts, 0.0) for kind in (0, 1))
    move_x, move_y = (torch.where(drawn == kind, (150 / 331 * size * amounts).round() * 2 / size, 0.0) for kind in (2, 3))
    rows = [
        torch.stack([angle.cos(), -angle.sin() + shear_x, shear_x - move_x], dim=1),
        torch.stack([angle.sin() + shear_y, angle.cos(), shear_y - move_y], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _warp(pixels: Tensor, matrices: Tensor) -> Tensor:
    grid = F.affine_grid(matrices, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8)


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp_(0, 255).to(torch.uint8)


def _blend(pixels: Tensor, other: Tensor | None, strengths: Tensor) -> Tensor:
    """`other` (None: black) where 1 + 0.9 * strength is 0, the picture itself at 1, and beyond it past 1."""
    factor = 1 + 0.9 * strengths
    mixed = pixels * factor
    return _bytes(mixed if other is None else mixed.addcmul_(other, 1 - factor))


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.float().unbind(1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).floor_()[:, None]


def _brightness(pixels: Tensor, strengths: Tensor, _: float) -> Tensor:
    return _blend(pixels, None, strengths)


def _color(pixels: Tensor, strengths: Tensor, _: float) -> Tensor:
    return _blend(pixels, _grey(pixels), strengths)


def _contrast(pixels: Tensor, strengths: Tensor, _: float) -> Tensor:
    return _blend(pixels, _grey(pixels).mean(dim=(1, 2, 3), keepdim=True), strengths)


def _sharpness(pixels: Tensor, strengths: Tensor, _: float) -> Tensor:
    inner = pixels.float()
    height, width = pixels.shape[-2:]
    # The mean of nine with the middle counted five times, where all nine exist; the rim stays as it is.
    around = F.avg_pool2d(inner, 3, stride=1) * 9
    smooth = inner.clone()
    smooth[..., 1 : height - 1, 1 : width - 1] = ((around + 4 * inner[..., 1 : height - 1, 1 : width - 1]) / 13).round_()
    return _blend(pixels, smooth, strengths)


def _posterize(pixels: Tensor, _: Tensor, strength: float) -> Tensor:
    dropped = round(4 * strength)
    return pixels.bitwise_and(256 - 2**dropped)


def _solarize(pixels: Tensor, _: Tensor, strength: float) -> Tensor:
    return torch.where(pixels >= math.ceil(255 * (1 - strength)), 255 - pixels, pixels)  # compared as bytes


def _autocontrast(pixels: Tensor, _: Tensor, __: float) -> Tensor:
    values = pixels.float()
    low, high = values.amin(dim=(-2, -1), keepdim=True), values.amax(dim=(-2, -1), keepdim=True)
    flat = low == high
    scale = 255 / torch.where(flat, 255.0, high - low)
    return _bytes((values - torch.where(flat, 0.0, low)) * scale)


def _equalize(pixels: Tensor, _: Tensor, __: float) -> Tensor:
    count = pixels.shape[-2] * pixels.shape[-1]
    values = pixels.flatten(-2).long()  # (n, 3, H * W)
    histogram = torch.zeros(*values.shape[:2], 256, device=pixels.device, dtype=torch.int64)
    histogram.scatter_add_(2, values, torch.ones((), device=pixels.device, dtype=torch.int64).expand_as(values))
    brightest = histogram.gather(2, values.amax(dim=2, keepdim=True))
    step = (count - brightest) // 255
    below = F.pad(histogram.cumsum(dim=2)[..., :-1], (1, 0))
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=pixels.device), table)
    return table.gather(2, values).to(torch.uint8).reshape(pixels.shape)


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
