"""Batched RandAugment against torchvision's functions, one picture at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from mobilevitv2.train.randaugment import OPERATIONS, apply_sorted, rand_augment

SIZE = 64


def _affine(x: Tensor, *, translate: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    degrees = [math.degrees(math.atan(s)) for s in shear]
    moved = [round(t) for t in translate]
    centre = [0, 0] if any(shear) else None
    return tvF.affine(x, 0.0, moved, 1.0, degrees, interpolation=InterpolationMode.BILINEAR, center=centre)


# What torchvision.transforms.RandAugment calls for each operation at a signed strength in -1..1.
TORCHVISION: dict[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda x, m: x,
    "ShearX": lambda x, m: _affine(x, shear=(0.3 * m, 0)),
    "ShearY": lambda x, m: _affine(x, shear=(0, 0.3 * m)),
    "TranslateX": lambda x, m: _affine(x, translate=(150 / 331 * SIZE * m, 0)),
    "TranslateY": lambda x, m: _affine(x, translate=(0, 150 / 331 * SIZE * m)),
    "Rotate": lambda x, m: tvF.rotate(x, 30 * m, interpolation=InterpolationMode.BILINEAR),
    "Brightness": lambda x, m: tvF.adjust_brightness(x, 1 + 0.9 * m),
    "Color": lambda x, m: tvF.adjust_saturation(x, 1 + 0.9 * m),
    "Contrast": lambda x, m: tvF.adjust_contrast(x, 1 + 0.9 * m),
    "Sharpness": lambda x, m: tvF.adjust_sharpness(x, 1 + 0.9 * m),
    "Posterize": lambda x, m: tvF.posterize(x, 8 - round(4 * abs(m))),
    "Solarize": lambda x, m: tvF.solarize(x, 255 * (1 - abs(m))),
    "AutoContrast": lambda x, m: tvF.autocontrast(x),
    "Equalize": lambda x, m: tvF.equalize(x),
}


def _pictures(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0.1, 0.9)
    return (255 * smooth).to(torch.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [0.3, -0.3, 0.9, -0.9])
def test_each_operation_is_torchvisions(name: str, strength: float) -> None:
    pictures = _pictures(3)
    ours = apply_sorted(pictures, torch.full((3,), OPERATIONS.index(name)), torch.full((3,), strength))
    theirs = TORCHVISION[name](pictures, strength)
    difference = (ours.int() - theirs.int()).abs()
    # Rounding may fall the other way; along the rim of a moved picture the two interpolate with black differently by a hair.
    wrong = float((difference > 1).float().mean())
    assert wrong < 0.002, f"{name}: {difference.max()} at most, {wrong:.4f} of pixels"


def test_a_flat_picture_survives_every_operation() -> None:
    flat = torch.full((len(OPERATIONS), 3, 16, 16), 200, dtype=torch.uint8)
    out = apply_sorted(flat, torch.arange(len(OPERATIONS)), torch.full((len(OPERATIONS),), 0.3))
    assert out.shape == flat.shape and out.dtype == torch.uint8
    assert torch.equal(out[OPERATIONS.index("AutoContrast")], flat[0])
    assert torch.equal(out[OPERATIONS.index("Equalize")], flat[0])


def test_pictures_keep_their_labels() -> None:
    # Each picture is one brightness, which is also its label; magnitude 0 changes nothing but what has no magnitude.
    labels = torch.arange(50, 114)
    pictures = labels.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    out, moved = rand_augment(pictures, labels, operations=3, magnitude=0)
    assert sorted(moved.tolist()) == labels.tolist()
    assert torch.equal(out[:, 0, 4, 4].long(), moved)


def test_pictures_draw_apart_from_each_other_and_the_seed_repeats_them() -> None:
    pictures = _pictures(1).expand(40, -1, -1, -1)
    labels = torch.arange(40)
    first, _ = rand_augment(pictures, labels, operations=2, magnitude=9, generator=torch.Generator().manual_seed(1))
    again, _ = rand_augment(pictures, labels, operations=2, magnitude=9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert len({picture.numpy().tobytes() for picture in first}) > 20
