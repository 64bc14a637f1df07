"""Masks and boxes as pictures: what is painted, legends, labels that stay on the picture, colours, index files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mobilevitv2.colours import FIRST, class_colour
from mobilevitv2.draw_boxes import _placed, _shared, draw_boxes
from mobilevitv2.draw_masks import draw_mask, mask_png
from mobilevitv2.pictures import read_mask

GREY = (128, 128, 128)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def half_mask(width: int, height: int) -> tuple[np.ndarray, list[tuple[str, float, int, int]]]:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = 1
    return mask, [("background", 0.5, mask.size // 2, 0), ("cat", 0.5, mask.size // 2, 1)]


def test_classes_are_painted_and_outlined_and_the_background_is_not() -> None:
    picture = Image.new("RGB", (400, 300), GREY)
    before = pixels(picture)
    mask, areas = half_mask(400, 300)
    drawn = draw_mask(picture, mask, areas)
    shown = pixels(drawn)
    assert drawn.width == 400
    assert drawn.height > 310  # the legend
    assert (shown[:300, :199] == GREY).all()
    assert tuple(shown[150, 200]) == class_colour(1)
    inside = shown[150, 300]
    assert np.abs(inside - (0.55 * np.array(GREY) + 0.45 * np.array(class_colour(1)))).max() <= 2
    assert np.array_equal(pixels(picture), before)


def test_only_the_areas_given_are_painted() -> None:
    mask, areas = half_mask(400, 300)
    mask[:100] = 2
    shown = pixels(draw_mask(Image.new("RGB", (400, 300), GREY), mask, [areas[1]]))
    assert (shown[:98] == GREY).all()
    assert (shown[110:300, 210:] != GREY).any()


@pytest.mark.parametrize("size", [(1, 1), (20, 12), (33, 250), (800, 1), (1, 800), (3000, 40)])
def test_pictures_of_every_size_get_a_legend(size: tuple[int, int]) -> None:
    mask, areas = half_mask(*size)
    drawn = draw_mask(Image.new("L", size), mask, areas)
    assert drawn.width >= 320
    assert drawn.height > size[1] + 10
    assert draw_boxes(Image.new("L", size), [("cat", 0.5, 0, (0.0, 0.0, float(size[0]), float(size[1])))]).mode == "RGB"


def test_frames_of_a_video_keep_one_size_whatever_is_on_them() -> None:
    mask, areas = half_mask(400, 300)
    many = [(f"class number {index}", 0.03, 100, index) for index in range(30)]
    picture = Image.new("RGB", (400, 300))
    sizes = {draw_mask(picture, mask, some, legend_rows=2).size for some in (areas, many, [])}
    assert len(sizes) == 1
    assert draw_mask(picture, mask, many).height > next(iter(sizes))[1]


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="10 x 10"):
        draw_mask(Image.new("RGB", (20, 20)), np.zeros((10, 10), np.uint8), [])


def test_the_index_file_keeps_the_classes() -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = mask_png(mask)
    assert np.array_equal(read_mask(content), mask)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode == "P"
        assert picture.convert("RGB").getpixel((1, 0)) == class_colour(1)
    large = (mask.astype(np.int16) * 3).astype(np.int16)
    assert np.array_equal(read_mask(mask_png(large)), large)


def test_colours_are_the_same_every_time_and_far_apart() -> None:
    assert len({class_colour(index) for index in range(200)}) > 190
    first = np.array(FIRST)
    distance = np.abs(first[:, None] - first[None]).sum(-1) + 999 * np.eye(len(first), dtype=int)
    assert distance.min() > 60


def test_boxes_and_labels_are_on_the_picture() -> None:
    picture = Image.new("RGB", (400, 300), GREY)
    boxes = [
        ("cat", 0.9, 1, (100.0, 100.0, 300.0, 250.0)),
        ("dog", 0.5, 2, (-50.0, -50.0, 40.0, 40.0)),
        ("x", 0.4, 3, (380.0, 290.0, 999.0, 999.0)),
    ]
    shown = pixels(draw_boxes(picture, boxes))
    assert shown.shape == (300, 400, 3)
    assert tuple(shown[175, 100]) == class_colour(1)
    assert tuple(shown[175, 299]) == class_colour(1)
    assert (shown[150:240, 120:290] == GREY).all()
    assert (pixels(picture) == GREY).all()


def test_labels_stay_on_the_picture_and_off_each_other() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 350, (40, 2))
    boxes = [(f"class {i}", 0.9, i, (x, y, x + 50.0, y + 50.0)) for i, (x, y) in enumerate(corners)]
    picture = Image.new("RGB", (400, 400))
    from PIL import ImageDraw

    tags = _placed(ImageDraw.Draw(picture), boxes, picture.size, 12, 1)
    assert len(tags) >= 20
    for number, tag in enumerate(tags):
        left, top, right, bottom = tag.place
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 400
        covered = sum(_shared(tag.place, other.place) for other in tags[:number])
        assert covered <= 0.36 * (right - left) * (bottom - top)


def test_500_boxes_and_odd_ones_are_drawn() -> None:
    rng = np.random.default_rng(0)
    boxes = [("a long name of a class", 0.5, i % 9, tuple(rng.uniform(0, 300, 4))) for i in range(500)]
    assert draw_boxes(Image.new("RGB", (330, 300)), boxes).size == (330, 300)
    drawn = draw_boxes(
        Image.new("RGB", (400, 300)), [("one pixel", 1.0, 0, (5.0, 5.0, 6.0, 6.0)), ("none", 1.0, 0, (9.0, 9.0, 9.0, 9.0))]
    )
    assert drawn.size == (400, 300)
    assert draw_boxes(Image.new("RGB", (400, 300)), []).size == (400, 300)
