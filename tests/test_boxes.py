"""Coder, overlaps and matching, against plain references that go box by box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mobilevitv2.boxes
from mobilevitv2.boxes import decode, encode, match, overlaps, to_centred, to_corners

VARIANCES = (0.1, 0.2)
sides = st.floats(0.0009765625, 1.0, width=32)
places = st.floats(0.0, 1.0, width=32)
box = st.tuples(places, places, sides, sides)
boxes = st.lists(box, min_size=1, max_size=8).map(torch.tensor)


@settings(max_examples=60, deadline=None)
@given(boxes)
def test_both_ways_to_write_a_box_say_the_same(centred: Tensor) -> None:
    assert torch.allclose(to_centred(to_corners(centred)), centred, atol=1e-6)
    corners = to_corners(centred)
    assert (corners[:, 2:] >= corners[:, :2]).all()


def test_corners_by_hand() -> None:
    assert torch.allclose(to_corners(torch.tensor([0.5, 0.25, 0.2, 0.1])), torch.tensor([0.4, 0.2, 0.6, 0.3]))


@settings(max_examples=60, deadline=None)
@given(boxes, box)
def test_decoding_undoes_encoding(true: Tensor, anchor: tuple[float, ...]) -> None:
    anchors = torch.tensor(anchor).expand_as(true)
    offsets = encode(true.double(), anchors.double(), VARIANCES)
    assert offsets.isfinite().all()
    assert torch.allclose(decode(offsets, anchors.double(), VARIANCES), true.double(), atol=1e-9)


def test_encoding_by_hand() -> None:
    anchor, true = torch.tensor([0.5, 0.5, 0.2, 0.4]), torch.tensor([0.6, 0.4, 0.4, 0.1])
    expected = [0.1 / 0.2 / 0.1, -0.1 / 0.4 / 0.1, math.log(2) / 0.2, math.log(0.25) / 0.2]
    assert torch.allclose(encode(true, anchor, VARIANCES), torch.tensor(expected))


def plain_overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height + 1e-5)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes)
def test_overlaps_are_those_of_the_plain_formula(first: Tensor, second: Tensor) -> None:
    one, two = to_corners(first.double()), to_corners(second.double())
    expected = torch.tensor([[plain_overlap(a, b) for b in two.tolist()] for a in one.tolist()], dtype=torch.float64)
    found = overlaps(one, two)
    assert torch.allclose(found, expected, atol=1e-9)
    assert torch.equal(found, overlaps(two, one).T)
    assert found.min() >= 0 and found.max() <= 1


def test_boxes_without_area_overlap_nothing() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert overlaps(point, point).item() == 0


def plain_match(true: list[list[float]], anchors: list[list[float]], threshold: float) -> list[int | None]:
    """Anchor by anchor; then each true box in turn takes its best one."""
    table = [[plain_overlap(t, a) for t in true] for a in anchors]
    answer: list[int | None] = []
    for row in table:
        best = max(range(len(true)), key=row.__getitem__, default=None)
        answer.append(best if best is not None and row[best] >= threshold else None)
    for index in range(len(true)):
        answer[max(range(len(anchors)), key=lambda a: table[a][index])] = index
    return answer


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(box, max_size=6), min_size=1, max_size=4), boxes, st.sampled_from([0.3, 0.5, 0.8]))
def test_matching_is_that_of_the_plain_rule(pictures: list[list[tuple[float, ...]]], anchors: Tensor, threshold: float) -> None:
    rows = max(1, *(len(each) for each in pictures)) + 1
    padded = torch.ones(len(pictures), rows, 4, dtype=torch.float64)
    valid = torch.zeros(len(pictures), rows, dtype=torch.bool)
    corners = to_corners(anchors.double())
    expected = []
    for index, each in enumerate(pictures):
        if each:
            padded[index, : len(each)] = to_corners(torch.tensor(each, dtype=torch.float64))
            valid[index, : len(each)] = True
        expected.append(plain_match(padded[index, : len(each)].tolist(), corners.tolist(), threshold))
    found, answers = match(padded, valid, corners, threshold=threshold)
    told = [[int(i) if a else None for i, a in zip(*pair, strict=True)] for pair in zip(found, answers, strict=True)]
    assert told == expected


def test_the_last_of_two_true_boxes_gets_the_anchor_that_both_like_best() -> None:
    anchors = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 1.0, 1.0]])
    true = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.3, 0.3]]])
    index, answers = match(true, torch.ones(1, 2, dtype=torch.bool), anchors, threshold=0.5)
    assert (index[0, 0].item(), answers.tolist()) == (1, [[True, False]])


def test_a_batch_in_pieces_is_matched_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    true = to_corners(torch.rand(5, 3, 4, generator=generator) * 0.5 + 0.2)
    valid = torch.rand(5, 3, generator=generator) > 0.3
    anchors = to_corners(torch.rand(40, 4, generator=generator) * 0.5 + 0.2)
    whole = match(true, valid, anchors, threshold=0.4)
    monkeypatch.setattr(mobilevitv2.boxes, "_MATCHING_ELEMENTS", 2 * 3 * 40)
    pieces = match(true, valid, anchors, threshold=0.4)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))
