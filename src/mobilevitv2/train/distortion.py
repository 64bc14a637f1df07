"""What segmentation and detection change in whole batches on the device, each picture with random choices of its own: blur,
photometric distortion, rotation.

As in `augment.py`, all random numbers are drawn on the host, so that no step waits for the device to tell what was drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2.train.randaugment import to_device

BRIGHTNESS = (0.875, 1.125)
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 0.05
"""Share of the colour circle, to either side."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a picture's brightness (ITU-R 601)."""
BLUR_REACH = 3
"""Pixels to either side; a blur's radius, its standard deviation, is at most 1."""
IGNORED = 255


def blur(pixels: Tensor, *, probability: float) -> Tensor:
    """A Gaussian blur with a radius of 0 to 1 pixel for some of the pictures: floats (B, C, H, W) -> the same."""
    batch = pixels.shape[0]
    radius = torch.rand(batch) * (torch.rand(batch) < probability)
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1)
    weights = torch.exp(-(offsets**2) / (2 * radius.clamp(min=1e-2)[:, None] ** 2))
    weights = to_device(weights / weights.sum(dim=1, keepdim=True), pixels.device)
    for dim in (2, 3):
        reach = [BLUR_REACH, BLUR_REACH, 0, 0] if dim == 3 else [0, 0, BLUR_REACH, BLUR_REACH]
        padded = F.pad(pixels, reach, mode="replicate")
        length = pixels.shape[dim]
        shifted = (padded.narrow(dim, place, length) for place in range(2 * BLUR_REACH + 1))
        pixels = torch.stack([part * _column(weights[:, place]) for place, part in enumerate(shifted)]).sum(dim=0)
    return pixels


def distort(pixels: Tensor, *, probability: float) -> Tensor:
    """SSD's photometric distortion: brightness, contrast, saturation, hue, the order of the channels, each with a coin of its own
    for each picture; contrast comes before or after saturation and hue.

    Args:
        pixels: floats in 0..1, (B, 3, H, W).
        probability: of each change.

    Returns:
        The same shape, in 0..1.
    """
    batch, device = pixels.shape[0], pixels.device
    coins = torch.rand(5, batch) < probability
    early = torch.rand(batch) < 0.5
    brightness, contrast, saturation = (
        torch.where(coin, torch.empty(batch).uniform_(*reach), 1.0)
        for coin, reach in zip(coins, (BRIGHTNESS, CONTRAST, SATURATION), strict=False)
    )
    hue = torch.where(coins[3], torch.empty(batch).uniform_(-HUE, HUE), 0.0)
    factors = [brightness, torch.where(early, contrast, 1.0), saturation, hue, torch.where(early, 1.0, contrast)]
    bright, first, colour, turn, last = to_device(torch.stack(factors), device)
    pixels = (pixels * _column(bright)).clamp(0, 1)
    pixels = adjust_contrast(pixels, first)
    grey = _grey(pixels)
    pixels = torch.lerp(grey.expand_as(pixels), pixels, _column(colour)).clamp(0, 1)
    pixels = adjust_contrast(shift_hue(pixels, turn), last)
    order = torch.where(coins[4][:, None], torch.rand(batch, 3).argsort(dim=1), torch.arange(3))
    return pixels.gather(1, to_device(order, device)[:, :, None, None].expand_as(pixels))


def adjust_contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Distance from the picture's mean brightness times a factor of each picture: (B, 3, H, W), (B,) -> (B, 3, H, W) in 0..1."""
    mean = _grey(pixels).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(pixels), pixels, _column(factor)).clamp(0, 1)


def shift_hue(pixels: Tensor, share: Tensor) -> Tensor:
    """Turn the colours of each picture by a share of the colour circle: (B, 3, H, W) in 0..1, (B,) -> (B, 3, H, W)."""
    red, green, blue = pixels.unbind(dim=1)
    value, least = pixels.amax(dim=1), pixels.amin(dim=1)
    chroma = value - least
    safe = chroma.clamp(min=1e-6)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * share[:, None, None]
    # HSV to RGB in one formula: channel n lies chroma * max(0, min(k, 4 - k, 1)) below the value, k = (n + 6 hue) mod 6.
    turned = []
    for place in (5, 3, 1):
        k = (place + sixths) % 6
        turned.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(turned, dim=1)


def rotate(pixels: Tensor, masks: Tensor, *, degrees: float) -> tuple[Tensor, Tensor]:
    """Turn each picture and its mask about the centre by a random angle: bilinear with black around it, nearest with `IGNORED`.

    Args:
        pixels: floats (B, C, H, W).
        masks: class indices (B, H, W).
        degrees: the angle is at most this, to either side.
    """
    batch, _, height, width = pixels.shape
    angle = torch.empty(batch).uniform_(-1, 1) * math.radians(degrees)
    # In grid_sample's coordinates, -1 to 1 over each axis, a turn of a picture that is no square stretches by its proportions.
    rows = [
        torch.stack([angle.cos(), -angle.sin() * height / width, torch.zeros(batch)], dim=1),
        torch.stack([angle.sin() * width / height, angle.cos(), torch.zeros(batch)], dim=1),
    ]
    turns = to_device(torch.stack(rows, dim=1), pixels.device)  # (B, 2, 3)
    grid = F.affine_grid(turns, [batch, 1, height, width], align_corners=False)
    turned = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Shifted so that what lies outside, which becomes 0, is told from class 0; floats hold class indices exactly.
    labels = F.grid_sample((masks.float() - IGNORED)[:, None], grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned, (labels[:, 0] + IGNORED).round().to(masks.dtype)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(dim=1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]
