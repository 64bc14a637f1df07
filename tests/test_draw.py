"""Pictures of answers: labels under any picture, score maps over the part that the model saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobilevitv2 import draw, lettering
from mobilevitv2.draw import draw_heatmap, draw_labels, draw_score_maps, fitted

LABELS = [("tabby cat", 0.75, 1), ("Egyptian cat", 0.2, 2), ("lynx", 0.0, 3)]


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 250), (451, 300), (6000, 40), (3, 4000)])
def test_the_picture_is_whole_and_the_labels_are_below(size: tuple[int, int]) -> None:
    picture = Image.effect_noise(size, 80).convert("RGB")
    before = pixels(picture).copy()
    sheet = draw_labels(picture, LABELS)
    assert np.array_equal(pixels(picture), before)
    assert sheet.width >= max(320, size[0])
    row = sheet.height - draw_labels(picture, LABELS[:-1]).height
    shown_height = sheet.height - len(LABELS) * row
    factor = shown_height // size[1]
    assert shown_height == factor * size[1]
    left = (sheet.width - factor * size[0]) // 2
    shown = pixels(sheet)[:shown_height:factor, left : left + factor * size[0] : factor]
    assert np.array_equal(shown, before)


def test_bars_are_as_long_as_the_probabilities() -> None:
    sheet = pixels(draw_labels(Image.new("RGB", (1000, 500)), LABELS))
    first = [y for y in range(500, len(sheet)) if tuple(sheet[y, 2]) == draw.FIRST_BAR]
    assert first
    filled = (sheet[first[0]] == draw.FIRST_BAR).all(axis=-1)
    assert filled[:750].all()
    assert not filled[752:].any()


def test_labels_are_readable_on_large_pictures_too() -> None:
    small, large = draw_labels(Image.new("RGB", (600, 400)), LABELS), draw_labels(Image.new("RGB", (6000, 4000)), LABELS)
    assert (large.height - 4000) >= 8 * (small.height - 400)


def test_names_of_any_length_and_script_stay_inside() -> None:
    long = draw_labels(Image.new("RGB", (320, 64)), [("word " * 100, 0.0, 0)])
    assert (pixels(long)[-10:, 318:] == draw.PANEL).all()
    for name in ("two\nlines", "Ägyptische Katze", "猫", ""):
        assert draw_labels(Image.new("RGB", (320, 64)), [(name, 0.5, 0)]).size == long.size


def test_without_a_system_font_accents_go_and_other_letters_show_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_system_font", lambda size: None)
    assert lettering.writable("Ägypt 猫", 14)[0] == "Agypt ?"


def test_any_mode_is_drawn_upon() -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        picture = Image.new(mode, (64, 48))
        assert draw_labels(picture, LABELS).mode == "RGB"
        assert draw_heatmap(picture, np.eye(4)).size == (64, 48)


def test_the_highest_score_is_the_brightest_place() -> None:
    scores = np.zeros((8, 8), dtype=np.float32)
    scores[2, 6] = 1.0
    heat = pixels(draw_heatmap(Image.new("RGB", (160, 160), (90, 90, 90)), scores)).sum(axis=-1)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert (y // 20, x // 20) == (2, 6)


def test_outside_the_box_the_picture_is_dark_and_grey() -> None:
    picture = Image.new("RGB", (100, 60), (200, 40, 40))
    shown = pixels(draw_heatmap(picture, np.eye(4), box=(20, 0, 80, 60)))
    outside = np.concatenate([shown[:, :20], shown[:, 80:]], axis=1)
    assert (outside.max(axis=-1) == outside.min(axis=-1)).all()
    assert outside.max() < 60
    assert (shown[:, 20:80].max(axis=-1) != shown[:, 20:80].min(axis=-1)).all()


def test_a_box_may_reach_over_the_sides() -> None:
    scores = np.zeros((8, 8), dtype=np.float32)
    scores[:, 4:] = 1.0
    shown = pixels(draw_heatmap(Image.new("RGB", (100, 50)), scores, box=(0, -25, 100, 75))).sum(axis=-1)
    assert shown[:, 80].min() > shown[:, 20].max()


def test_equal_scores_show_as_lowest_everywhere() -> None:
    shown = pixels(draw_heatmap(Image.new("RGB", (40, 40), (90, 90, 90)), np.full((4, 4), 0.25)))
    assert (shown == shown[0, 0]).all()


def test_all_layers_on_one_sheet() -> None:
    maps = [(f"stage{i}", np.random.default_rng(i).random((8, 8))) for i in range(9)]
    sheet = draw_score_maps(Image.new("RGB", (1200, 800), (0, 200, 0)), maps, box=(200, 0, 1000, 800))
    assert sheet.width < 5 * 340
    assert sheet.width > 4 * 320
    green = (pixels(sheet) == (0, 200, 0)).all(axis=-1)
    ys, xs = np.nonzero(green)  # the picture itself is the first tile
    assert (ys.max() - ys.min() + 1, xs.max() - xs.min() + 1) == (213, 320)
    assert draw_score_maps(Image.new("RGB", (9, 400)), maps[:2]).height > 300


def test_fitted_shrinks_the_picture_and_its_box() -> None:
    small, box = fitted(Image.new("RGB", (1000, 500)), 100, box=(100, -50, 900, 550))
    assert (small.size, box) == ((100, 50), (10, -5, 90, 55))
    same, none = fitted(small, 100)
    assert same is small
    assert none is None


def test_a_real_photograph(cat_photo: Path) -> None:
    with Image.open(cat_photo) as picture:
        sheet = draw_labels(picture, LABELS)
        difference = pixels(sheet)[: picture.height].astype(int) - pixels(picture)
    assert not difference.any()
