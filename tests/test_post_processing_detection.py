"""From raw scores and boxes to detections: the official rule, whatever the batch, the sizes and the numbers."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_models import pictures, randomise, relative_difference, small_config
from torch import Tensor

import mobilevitv2.suppression
from mobilevitv2.boxes import to_corners
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.suppression import suppress

PROCESSOR = MobileViTV2ImageProcessor(size={"height": 320, "width": 320}, do_center_crop=False)


def answers(batch: int = 2, anchors: int = 40, classes: int = 3, *, seed: int = 0) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(seed)
    centre, side = torch.rand(batch, anchors, 2, generator=generator), torch.rand(batch, anchors, 2, generator=generator) / 2 + 0.01
    return SimpleNamespace(
        logits=3 * torch.randn(batch, anchors, classes + 1, generator=generator), pred_boxes=torch.cat([centre, side], -1)
    )


def plain(scores: Tensor, boxes: Tensor, *, threshold: float, nms_threshold: float, candidates: int, max_detections: int) -> Any:
    """Class by class, box by box, as the rule is told."""
    found = []
    for label in range(scores.shape[1]):
        order = [a for a in scores[:, label].argsort(descending=True, stable=True).tolist() if scores[a, label] > threshold]
        kept: list[int] = []
        for anchor in order[:candidates]:
            if all(_overlap(boxes[anchor].tolist(), boxes[other].tolist()) <= nms_threshold for other in kept):
                kept.append(anchor)
        found += [(scores[anchor, label].item(), label, anchor) for anchor in kept]
    return sorted(found, key=lambda each: -each[0])[:max_detections]


def _overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    threshold=st.sampled_from([0.0, 0.01, 0.3, 0.9]),
    nms_threshold=st.sampled_from([0.3, 0.5]),
    candidates=st.sampled_from([1, 3, 400]),
    max_detections=st.sampled_from([1, 5, 200]),
    first_look=st.sampled_from([1, 7, 1000]),
)
def test_detections_are_those_of_the_plain_rule(
    seed: int, threshold: float, nms_threshold: float, candidates: int, max_detections: int, first_look: int
) -> None:
    raw = answers(1, seed=seed)
    scores, boxes = raw.logits[0].softmax(-1)[:, 1:], to_corners(raw.pred_boxes[0])
    numbers = {
        "threshold": threshold,
        "nms_threshold": nms_threshold,
        "candidates": candidates,
        "max_detections": max_detections,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mobilevitv2.suppression, "FIRST_LOOK", first_look)
        found = suppress(scores, boxes, **numbers)
    expected = plain(scores, boxes, **numbers)
    assert found.scores.tolist() == [score for score, _, _ in expected]
    assert found.labels.tolist() == [label for _, label, _ in expected]
    assert torch.equal(found.boxes, boxes[[anchor for _, _, anchor in expected]].reshape(-1, 4))


def test_one_image_after_another_and_together() -> None:
    both = answers(3)
    together = PROCESSOR.post_process_object_detection(both, 0.1)
    for index, found in enumerate(together):
        single = SimpleNamespace(logits=both.logits[index : index + 1], pred_boxes=both.pred_boxes[index : index + 1])
        alone = PROCESSOR.post_process_object_detection(single, 0.1)[0]
        assert set(found) == {"scores", "labels", "boxes"}
        assert all(torch.equal(found[name], alone[name]) for name in found)


@pytest.mark.parametrize("sizes", [[(100, 200), (50, 40)], torch.tensor([[100, 200], [50, 40]])])
def test_boxes_in_pixels_and_clipped(sizes: Any) -> None:
    raw = answers()
    relative = PROCESSOR.post_process_object_detection(raw, 0.1)
    for found, shares, (height, width) in zip(
        PROCESSOR.post_process_object_detection(raw, 0.1, sizes), relative, [(100, 200), (50, 40)], strict=True
    ):
        assert torch.allclose(found["boxes"], shares["boxes"] * torch.tensor([width, height, width, height]))
        assert found["boxes"].min() >= 0 and shares["boxes"].max() <= 1
        assert (found["boxes"][:, 2:].amax(0) <= torch.tensor([width, height])).all()
        assert (found["scores"].diff() <= 0).all() and (found["scores"] > 0.1).all()
        assert found["labels"].dtype == torch.int64 and set(found["labels"].tolist()) <= {0, 1, 2}


def test_nothing_found_and_no_pictures() -> None:
    raw = answers()
    raw.logits[..., 0] = 50  # background everywhere
    for found in PROCESSOR.post_process_object_detection(raw):
        assert [tuple(found[name].shape) for name in ("scores", "labels", "boxes")] == [(0,), (0,), (0, 4)]
    assert PROCESSOR.post_process_object_detection(answers(0), 0.1, []) == []


def test_half_precision_and_values_that_are_no_numbers() -> None:
    raw = answers()
    half = SimpleNamespace(logits=raw.logits.half(), pred_boxes=raw.pred_boxes.half())
    assert PROCESSOR.post_process_object_detection(half, 0.1)[0]["scores"].dtype == torch.float32
    raw.logits[0], raw.pred_boxes[1, 3] = torch.nan, torch.inf
    found = PROCESSOR.post_process_object_detection(raw, 0.1)
    assert len(found[0]["scores"]) == 0


def test_it_leaves_its_arguments_and_the_graph_alone() -> None:
    raw = answers()
    raw.logits.requires_grad_()
    before = raw.pred_boxes.clone()
    assert not PROCESSOR.post_process_object_detection(raw, 0.1)[0]["scores"].requires_grad
    assert torch.equal(raw.pred_boxes, before)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"target_sizes": [(10, 10)]}, "1 target_sizes came with the logits of 2 pictures"),
        ({"target_sizes": [(10, 10)] * 3}, "3 target_sizes"),
        ({"target_sizes": torch.ones(2, 3)}, r"\(1, 1, 1\) is no \(height, width\)"),
        ({"target_sizes": [(0, 10), (10, 10)]}, r"\(0, 10\)"),
        ({"target_sizes": (480, 640)}, r"target_sizes is \(480, 640\): give a list with one \(height, width\).*2 pictures"),
        ({"target_sizes": torch.tensor([480, 640])}, r"target_sizes is \[480, 640\]"),
        ({"target_sizes": 3}, "target_sizes is 3"),
        ({"target_sizes": ["a", "b"]}, "target_sizes is"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"nms_threshold": -1}, "nms_threshold is -1"),
        ({"candidates": 0}, "candidates is 0"),
        ({"max_detections": 0}, "max_detections is 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        PROCESSOR.post_process_object_detection(answers(), **arguments)


def test_outputs_of_another_task_are_named() -> None:
    with pytest.raises(ConfigurationError, match="SimpleNamespace have no logits and pred_boxes"):
        PROCESSOR.post_process_object_detection(SimpleNamespace(logits=torch.zeros(1, 3)))
    with pytest.raises(ConfigurationError, match=r"shape \(1, 3\) and pred_boxes of shape \(1, 4\)"):
        PROCESSOR.post_process_object_detection(SimpleNamespace(logits=torch.zeros(1, 3), pred_boxes=torch.zeros(1, 4)))


def test_a_models_own_output() -> None:
    torch.manual_seed(0)
    model = randomise(MobileViTV2ForObjectDetection(small_config(num_labels=4)))
    with torch.no_grad():
        found = PROCESSOR.post_process_object_detection(model(pictures(2, height=96)), 0.01, [(480, 640), (1, 1)])
    assert [len(each["scores"]) for each in found] == [200, 200]


# ---- the official code ------------------------------------------------------------------------------------------------------


def test_official_detector(shared_fixtures: Path, tmp_path: Path) -> None:
    name = shared_fixtures / "cvnets-ssd-0.5"
    file = tmp_path / "detector.pt"
    file.write_bytes(lzma.decompress(name.with_name(f"{name.name}.pt.xz").read_bytes()))
    model = MobileViTV2ForObjectDetection.from_pretrained(file)
    assert (model.config.num_labels, model.config.image_size, model.training) == (80, 320, False)
    official = {
        key: torch.from_numpy(value) for key, value in np.load(io.BytesIO(name.with_name(f"{name.name}.npz").read_bytes())).items()
    }
    with Image.open(name.with_name(f"{name.name}.png")) as photo, torch.no_grad():
        output = model(**PROCESSOR(photo, return_tensors="pt"))
    assert relative_difference(output.logits, official["scores"]) <= 1e-5
    assert relative_difference(output.box_offsets, official["boxes"]) <= 1e-5
    found = PROCESSOR.post_process_object_detection(output, 0.01)[0]
    assert torch.equal(found["labels"] + 1, official["det_labels"])
    assert torch.allclose(found["scores"], official["det_scores"], atol=1e-5)
    assert torch.allclose(found["boxes"], official["det_boxes"].clamp(0, 1), atol=1e-5)
