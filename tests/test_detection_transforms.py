"""Boxes follow their pictures through every change, and only boxes whose centre stays in the picture stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mobilevitv2.data.detection_batches import relative
from mobilevitv2.data.detection_transforms import DetectionCrop, cropped, mirrored, ssd_crop

RED = np.array([250, 10, 10])


def _painted(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.full((height, width, 3), (20, 120, 200), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = RED
    return Image.fromarray(pixels)


def _extent(pixels: np.ndarray) -> np.ndarray:
    """Corners of what is mostly red."""
    rows, columns = np.nonzero(abs(pixels.astype(int) - RED).sum(2) < 180)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def _boxes(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), zoom=st.sampled_from([0.0, 1.0]))
def test_a_box_stays_on_its_rectangle(seed: int, zoom: float) -> None:
    box = (40, 30, 110, 90)
    picture = _painted(160, 120, box)
    crop = DetectionCrop((96, 128), minimum_crop=20, zoom_out=zoom, interpolation="bilinear")
    pixels, boxes, labels = crop(picture, _boxes(box), np.array([3]), np.random.default_rng(seed))
    assert pixels.shape == (96, 128, 3) and pixels.dtype == np.uint8
    assert boxes.shape == (1, 4) and boxes.dtype == np.float32 and labels.tolist() == [3]
    assert (boxes[0, :2] >= 0).all() and boxes[0, 2] <= 128 and boxes[0, 3] <= 96
    # One pixel of the picture may be several of the outcome.
    assert abs(boxes[0] - _extent(pixels)).max() <= 3.5


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_ssd_crops_have_their_sizes_and_hold_an_object(seed: int) -> None:
    boxes = _boxes((10, 10, 60, 50), (150, 120, 290, 190))
    part = ssd_crop((300, 200), boxes, np.random.default_rng(seed), minimum=50)
    if part is None:
        return
    left, top, right, bottom = part
    width, height = right - left, bottom - top
    assert left >= 0 and top >= 0 and right <= 300 and bottom <= 200
    assert 90 <= width <= 300 and 60 <= height <= 200 and 0.5 <= height / width <= 2
    kept, labels = cropped(boxes, np.array([0, 1]), part)
    assert len(kept) == len(labels) >= 1
    assert (kept[:, 2:] > kept[:, :2]).all() and (kept >= 0).all() and (kept <= [width, height] * 2).all()


def test_ssd_leaves_some_pictures_alone_and_crops_most() -> None:
    random, boxes = np.random.default_rng(0), _boxes((80, 60, 220, 150))
    parts = [ssd_crop((300, 200), boxes, random) for _ in range(200)]
    alone = sum(part is None for part in parts)
    assert 15 < alone < 80  # one of seven overlaps leaves them alone; the highest ones are rarely reached, and drawn again
    assert ssd_crop((300, 200), _boxes(), random) is None
    assert ssd_crop((30, 20), _boxes((5, 5, 20, 15)), random) is None  # too small for any crop: not tried without end


def test_boxes_go_by_their_centre_and_are_cut() -> None:
    boxes = _boxes((0, 0, 20, 20), (5, 5, 30, 30), (40, 40, 50, 50))
    kept, labels = cropped(boxes, np.array([0, 1, 2]), (12, 12, 42, 42))
    assert labels.tolist() == [1]
    np.testing.assert_array_equal(kept, [[0, 0, 18, 18]])
    np.testing.assert_array_equal(mirrored(_boxes((1, 2, 4, 8)), 10), [[6, 2, 9, 8]])


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_boxes_of_one_pixel(count: int) -> None:
    corners = np.random.default_rng(0).integers(0, 150, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 1], axis=1)
    for seed in range(5):
        random = np.random.default_rng(seed)
        pixels, found, labels = DetectionCrop((64, 64))(Image.new("RGB", (160, 160)), boxes, np.zeros(count, np.int64), random)
        centred, kept = relative(found, (64, 64))
        assert pixels.shape == (64, 64, 3) and len(found) == len(labels) and centred.shape == (kept.sum(), 4)
        assert (centred[:, 2:] > 0).all()


@pytest.mark.parametrize("size", [(1, 1), (400, 1), (1, 400)])
def test_pictures_of_a_pixel(size: tuple[int, int]) -> None:
    box = _boxes((0, 0, *size))
    pixels, boxes, _ = DetectionCrop((32, 32), zoom_out=0.5)(Image.new("RGB", size), box, np.array([0]), np.random.default_rng(1))
    assert pixels.shape == (32, 32, 3) and boxes.shape == (1, 4)


def test_relative_boxes_leave_out_those_without_area() -> None:
    centred, kept = relative(_boxes((0, 0, 10, 20), (5, 5, 5, 9)), (40, 20))
    assert kept.tolist() == [True, False]
    np.testing.assert_allclose(centred, [[0.25, 0.25, 0.5, 0.5]])
