"""Large pictures in tiles: they cover everything, leave no seams, and find each object once."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from answer_models import ColourDetector, ColourSegmenter, whole
from PIL import Image

from mobilevitv2.prediction import predict
from mobilevitv2.tiles import Found, _each_once, _window, mask_in_tiles, spans

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 112, 113, 500, 1001])
def test_tiles_cover_the_side_and_share_a_fourth(length: int) -> None:
    tiles = spans(length, 64)
    assert (tiles[0][0], tiles[-1][1]) == (0, length)
    assert {end - start for start, end in tiles} == {min(64, length)}
    assert all(before[1] - after[0] >= 15 for before, after in pairwise(tiles))


@pytest.mark.parametrize("length", [65, 112, 200, 500])
def test_windows_are_smooth_and_nowhere_nothing(length: int) -> None:
    tiles = spans(length, 64)
    total = np.zeros(length)
    for index, (start, end) in enumerate(tiles):
        window = _window(tiles, index, (start, end)).numpy()
        assert np.abs(np.diff(window)).max() < 0.11
        total[start:end] += window
    assert total.min() > 0.2
    assert total[0] > 0.99
    assert total[-1] > 0.99


def test_a_picture_of_one_tile_is_answered_as_without() -> None:
    picture = Image.effect_noise((128, 96), 120).convert("RGB")
    plain = predict([picture], model=ColourSegmenter(), processor=whole())[0]
    tiled = predict([picture], model=ColourSegmenter(), processor=whole(), tile=128)[0]
    assert plain.mask is not None
    assert np.array_equal(plain.mask, tiled.mask)


def test_one_tile_blended_is_the_untiled_map() -> None:
    logits = torch.randn(1, 5, 6, 7)
    picture = Image.new("RGB", (70, 50))
    mask = mask_in_tiles(picture, 100, scores=lambda crops: logits.expand(len(crops), -1, -1, -1), num_labels=5, batch_size=2)
    up = torch.nn.functional.interpolate(logits, size=(50, 70), mode="bilinear", align_corners=True)[0].argmax(0)
    assert (mask == up.numpy()).mean() > 0.999


def test_no_seams_on_one_colour_and_edges_stay_where_they_are() -> None:
    picture = Image.new("RGB", (600, 500), RED)
    got = predict([picture], model=ColourSegmenter(), processor=whole(), tile=128, batch_size=3)[0]
    assert got.mask is not None
    assert (got.mask == 1).all()
    picture.paste(GREEN, (0, 250, 600, 500))
    mask = predict([picture], model=ColourSegmenter(), processor=whole(), tile=128)[0].mask
    assert mask is not None
    assert (mask[:240] == 1).all()
    assert (mask[260:] == 2).all()


def test_memory_is_that_of_two_rows_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilevitv2.tiles.STRIP_ELEMENTS", 4 * 64 * 10)  # strips of ten rows at most
    model = ColourSegmenter()
    picture = Image.new("RGB", (300, 900), BLUE)
    got = predict([picture], model=model, processor=whole(), tile=64, batch_size=4)[0]
    assert got.mask is not None
    assert (got.mask == 3).all()
    assert max(call[0] for call in model.calls) <= 4
    assert sum(call[0] for call in model.calls) == len(spans(300, 64)) * len(spans(900, 64))  # each tile once


def test_small_things_show_in_tiles_alone() -> None:
    picture = Image.new("RGB", (1600, 1600))
    picture.paste(BLUE, (1200, 300, 1208, 308))
    assert predict([picture], model=ColourDetector(), processor=whole())[0].boxes == []
    found = predict([picture], model=ColourDetector(), processor=whole(), tile=128)[0].boxes
    assert [box.label for box in found] == ["blue"]
    assert found[0].box == pytest.approx((1200, 300, 1208, 308), abs=4)


def test_an_object_across_tiles_is_found_once() -> None:
    picture = Image.new("RGB", (512, 512))
    picture.paste(RED, (100, 100, 420, 400))
    found = predict([picture], model=ColourDetector(), processor=whole(), tile=256)[0].boxes
    assert len(found) == 1
    assert found[0].box == pytest.approx((100, 100, 420, 400), abs=16)


def test_boxes_of_other_classes_and_places_stay() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [2, 2, 6, 10]], dtype=np.float32)
    found = Found(np.array([0.9, 0.8, 0.7, 0.6, 0.95]), np.array([1, 1, 2, 1, 1]), boxes)
    keep = _each_once(found, np.array([False, False, False, False, True]), 0.5)
    assert keep.tolist() == [0, 2, 3]  # the last is a piece of the first, cut off at a tile's side


def test_tiles_of_a_picture_that_cannot_be_stretched_are_an_answer() -> None:
    from mobilevitv2 import MobileViTV2ImageProcessor

    long = MobileViTV2ImageProcessor(size={"shortest_edge": 512}, do_center_crop=False)
    got = predict(
        [Image.new("RGB", (30000, 1)), Image.new("RGB", (64, 64), RED)], model=ColourSegmenter(), processor=long, tile=20000
    )
    assert "long" in (got[0].error or "")
    assert got[1].error is None
