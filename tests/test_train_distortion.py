"""Changes of whole batches on the device: blur, colours, rotation of pictures with their masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as vision

from mobilevitv2.train.distortion import IGNORED, adjust_contrast, blur, distort, rotate, shift_hue


def _pictures(count: int = 4, side: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("share", [-0.3, -0.05, 0.02, 0.4])
def test_hue_turns_as_in_torchvision(share: float) -> None:
    pictures = _pictures()
    torch.testing.assert_close(
        shift_hue(pictures, torch.full((4,), share)), vision.adjust_hue(pictures, share), atol=1e-5, rtol=1e-4
    )
    grey = pictures[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(shift_hue(grey, torch.full((4,), share)), grey)


@pytest.mark.parametrize("factor", [0.5, 1.4])
def test_contrast_is_torchvisions(factor: float) -> None:
    pictures = _pictures()
    expected = torch.stack([vision.adjust_contrast(picture, factor) for picture in pictures])
    torch.testing.assert_close(adjust_contrast(pictures, torch.full((4,), factor)), expected, atol=1e-3, rtol=1e-3)


def test_distortion_stays_in_range_and_differs_from_picture_to_picture() -> None:
    torch.manual_seed(0)
    picture = _pictures(1).expand(16, -1, -1, -1)
    changed = distort(picture, probability=0.5)
    assert changed.shape == picture.shape and changed.min() >= 0 and changed.max() <= 1
    assert len({tuple(one.flatten()[:30].tolist()) for one in changed}) > 8
    assert torch.equal(distort(picture, probability=0.0), picture) or torch.allclose(
        distort(picture, probability=0.0), picture, atol=1e-5
    )


def test_a_blur_is_pillows_and_some_pictures_stay_sharp() -> None:
    pictures = _pictures(64, 16)
    torch.manual_seed(1)
    blurred = blur(pictures, probability=0.5)
    same = [torch.allclose(one, other, atol=1e-4) for one, other in zip(blurred, pictures, strict=True)]
    assert 10 < sum(same) < 54
    torch.testing.assert_close(blurred.mean(dim=(2, 3)), pictures.mean(dim=(2, 3)), atol=0.05, rtol=0.1)
    torch.manual_seed(3)
    radius = torch.rand(1).item()
    torch.manual_seed(3)
    ours = blur(pictures[:1], probability=1.0)[0].movedim(0, -1).numpy()
    bytes_in = (pictures[0].movedim(0, -1).numpy() * 255).astype(np.uint8)
    pillows = np.asarray(Image.fromarray(bytes_in).filter(ImageFilter.GaussianBlur(radius))) / 255
    assert abs(ours - pillows)[3:-3, 3:-3].mean() < 0.03


def test_picture_and_mask_turn_together() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(8, 40, 60, dtype=torch.uint8)
    masks[:, 8:20, 35:50] = 2
    pictures = (masks[:, None] == 2).float().expand(-1, 3, -1, -1)
    turned, labels = rotate(pictures, masks, degrees=10)
    assert labels.dtype == torch.uint8 and set(labels.unique().tolist()) == {0, 2, IGNORED}
    inside = labels != IGNORED
    assert ((turned[:, 0] > 0.5) == (labels == 2))[inside].float().mean() > 0.99
    # Not only a shift: the rectangle keeps its area, and some pixels in the corners are not of the picture.
    assert abs((labels == 2).sum(dim=(1, 2)) - 12 * 15).max() <= 12
    assert (labels == IGNORED).any(dim=2).any(dim=1).sum() >= 6  # all but those of the smallest angles
    moved = (labels == 2).float().argmax(dim=2).float()
    assert moved.std(dim=0).max() > 1


def test_no_angle_changes_nothing() -> None:
    masks = torch.randint(0, 150, (2, 20, 30), dtype=torch.uint8)
    pictures = torch.rand(2, 3, 20, 30)
    turned, labels = rotate(pictures, masks, degrees=0)
    torch.testing.assert_close(turned, pictures, atol=1e-5, rtol=1e-4)
    assert torch.equal(labels, masks)
