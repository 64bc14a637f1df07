"""Masks follow their pictures through every change; what is not of the picture is ignored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mobilevitv2.data.segmentation_transforms import IGNORED, SegmentationCrop, Stretched

COLOURS = np.array([[20, 120, 200], [250, 10, 10], [240, 230, 20]])


def _scene(width: int = 120, height: int = 90) -> tuple[Image.Image, np.ndarray]:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 5 : height // 2, width // 6 : width // 2] = 1
    mask[height // 2 :, width * 2 // 3 :] = 2
    return Image.fromarray(COLOURS[mask].astype(np.uint8)), mask


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), stretch=st.sampled_from([1.0, 1.5]))
def test_the_mask_stays_on_the_picture(seed: int, stretch: float) -> None:
    picture, mask = _scene()
    crop = SegmentationCrop((64, 80), short_side=(40, 160), long_side=200, stretch=stretch, interpolation="bilinear")
    pixels, labels = crop(picture, mask, np.random.default_rng(seed))
    assert pixels.shape == (64, 80, 3) and labels.shape == (64, 80) and pixels.dtype == labels.dtype == np.uint8
    inside = labels != IGNORED
    nearest = abs(pixels[inside].astype(int)[:, None] - COLOURS).sum(2).argmin(1)
    assert (nearest == labels[inside]).mean() > 0.9  # all but the pixels on an edge
    assert not pixels[~inside].any()


def test_a_crop_is_the_part_of_the_resized_picture_that_it_says() -> None:
    random = np.random.default_rng(3)
    picture = Image.fromarray(random.integers(0, 255, (50, 70, 3), dtype=np.uint8))
    mask = np.zeros((50, 70), np.uint8)
    crop = SegmentationCrop((32, 40), short_side=(75, 75), flip=0.0, largest_class=1.0)
    pixels, _ = crop(picture, mask, np.random.default_rng(0))
    whole = np.asarray(picture.resize((105, 75), Image.Resampling.BICUBIC)).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(whole, (32, 40, 3))[:, :, 0]
    assert abs(windows - pixels).max(axis=(2, 3, 4)).min() <= 1


def test_small_pictures_are_padded_and_the_padding_is_ignored() -> None:
    picture, mask = Image.new("RGB", (20, 10), (9, 9, 9)), np.ones((10, 20), np.uint8)
    pixels, labels = SegmentationCrop((32, 32), short_side=(10, 10))(picture, mask, np.random.default_rng(0))
    assert (labels[:10, :20] == 1).all() and (labels == 1).sum() == 200 and (labels == IGNORED).sum() == 32 * 32 - 200
    assert pixels[:10, :20].min() == 9 and pixels.sum() == 9 * 3 * 200


def test_the_long_side_is_limited() -> None:
    crop = SegmentationCrop((16, 16), short_side=(100, 100), long_side=200)
    assert crop._resized((1000, 100), np.random.default_rng(0)) == (200, 20)
    assert crop._resized((100, 100), np.random.default_rng(0)) == (100, 100)


def test_crops_of_one_class_are_drawn_again() -> None:
    picture, mask = Image.new("RGB", (200, 40)), np.zeros((40, 200), np.uint8)
    mask[:, 180:] = 1
    random = np.random.default_rng(0)

    def mixed(tries: int) -> int:
        crop = SegmentationCrop((40, 40), short_side=(40, 40), tries=tries)
        return sum(len(np.unique(crop(picture, mask, random)[1])) == 2 for _ in range(100))

    assert mixed(tries=30) > mixed(tries=1) + 30


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (1, 300)])
def test_pictures_of_a_pixel_and_masks_of_nothing(size: tuple[int, int]) -> None:
    mask = np.full((size[1], size[0]), IGNORED, dtype=np.uint8)
    pixels, labels = SegmentationCrop((24, 24), short_side=(20, 40))(Image.new("RGB", size), mask, np.random.default_rng(0))
    assert pixels.shape == (24, 24, 3) and (labels == IGNORED).all()
    assert Stretched((24, 30))(Image.new("RGB", size)).shape == (24, 30, 3)
