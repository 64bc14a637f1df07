"""Anchors: the official ones to the last digit, and any other grid."""

from __future__ import annotations

import itertools
import math
import threading

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mobilevitv2.anchors import AnchorCache, cell_shapes, grid_anchors
from mobilevitv2.configuration import MobileViTV2Config

OFFICIAL_GRIDS = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
# Small and large square of each level, as published.
OFFICIAL_SIDES = [
    (0.100000, 0.160728),
    (0.258333, 0.328084),
    (0.416667, 0.489473),
    (0.575000, 0.649359),
    (0.733333, 0.808634),
    (0.891667, 0.967600),
]
CPU = torch.device("cpu")


def official_shapes() -> tuple:
    config = MobileViTV2Config()
    return cell_shapes(config.detection_anchor_scales, config.detection_anchor_ratios)


def test_official_sides() -> None:
    for boxes, (small, large) in zip(official_shapes(), OFFICIAL_SIDES, strict=True):
        assert boxes[0] == pytest.approx((small, small), abs=1e-6)
        assert boxes[1] == pytest.approx((large, large), abs=1e-6)


def test_official_anchors_one_by_one() -> None:
    expected = []
    for (rows, columns), (small, large), ratios in zip(OFFICIAL_GRIDS, OFFICIAL_SIDES, [(2, 3)] * 5 + [(2,)], strict=True):
        for y, x in itertools.product(range(rows), range(columns)):
            sizes = [(small, small), (large, large)]
            for ratio in ratios:
                sizes.append((small * math.sqrt(ratio), small / math.sqrt(ratio)))
                sizes.append((small / math.sqrt(ratio), small * math.sqrt(ratio)))
            expected += [((x + 0.5) / columns, (y + 0.5) / rows, w, h) for w, h in sizes]
    found = grid_anchors(OFFICIAL_GRIDS, official_shapes())
    assert found.shape == (3232, 4) and found.dtype == torch.float32
    assert torch.allclose(found, torch.tensor(expected).clamp(0, 1), atol=2e-6)
    assert found.max() == 1  # the last levels reach over the picture


def test_any_grid() -> None:
    found = grid_anchors([(2, 3), (1, 1)], cell_shapes((0.2, 0.6), [[], [2]]))
    assert found.shape == (2 * 3 * 2 + 4, 4)
    assert found[::2][:6, :2].tolist() == [pytest.approx(((x + 0.5) / 3, (y + 0.5) / 2)) for y in range(2) for x in range(3)]
    assert found[-4].tolist() == pytest.approx([0.5, 0.5, 0.4, 0.4])


def test_float32_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert grid_anchors([(1, 1)], cell_shapes((0.2, 0.6), [[2]])).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# ---- what is remembered -----------------------------------------------------------------------------------------------------


def test_the_same_sizes_give_the_same_tensor() -> None:
    cache = AnchorCache()
    first = cache(OFFICIAL_GRIDS, official_shapes(), CPU)
    assert cache(OFFICIAL_GRIDS, official_shapes(), CPU) is first
    assert cache([(1, 1)] * 6, official_shapes(), CPU) is not first
    assert cache(OFFICIAL_GRIDS, cell_shapes((0.2, 1.0), [[2]] * 6), CPU) is not first
    assert cache(OFFICIAL_GRIDS, official_shapes(), torch.device("meta")).device.type == "meta"


def test_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    cache, shapes = AnchorCache(size=3), cell_shapes((0.2, 0.6), [[]])
    first = cache([(1, 1)], shapes, CPU)
    for side in range(2, 6):
        cache([(side, side)], shapes, CPU)
        assert cache([(1, 1)], shapes, CPU) is first
    assert len(cache) == 3


def test_what_inference_mode_made_can_be_trained_with() -> None:
    cache, shapes = AnchorCache(), cell_shapes((0.2, 0.6), [[]])
    with torch.inference_mode():
        anchors = cache([(2, 2)], shapes, CPU)
    weight = torch.ones(4, requires_grad=True)
    (cache([(2, 2)], shapes, CPU) * weight).sum().backward()
    assert weight.grad is not None and not anchors.is_inference()


def test_stand_ins_of_shape_tracing_are_not_remembered() -> None:
    cache, shapes = AnchorCache(), cell_shapes((0.2, 0.6), [[]])
    with FakeTensorMode():
        assert cache([(2, 2)], shapes, CPU).shape == (8, 4)
    assert len(cache) == 0
    assert type(cache([(2, 2)], shapes, CPU)) is torch.Tensor


def test_threads_may_share_it() -> None:
    cache, shapes = AnchorCache(size=2), cell_shapes((0.2, 0.6), [[]])
    wrong: list[object] = []

    def ask() -> None:
        for step in range(60):
            side = 1 + step % 5
            if cache([(side, side)], shapes, CPU).shape[0] != 2 * side * side:
                wrong.append(side)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(cache) == 2
