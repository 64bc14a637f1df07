"""Whole runs of detection on tiny pictures: what they leave, what stops them, what must train all the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_config
from torch import Tensor, nn
from training_data import write_boxes

from mobilevitv2.data.batches import stack_samples
from mobilevitv2.data.detection import open_detection_data
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.train.callbacks import read_metrics
from mobilevitv2.train.detect import DetectionTask, TrainingResult, train_detector
from mobilevitv2.train.recipe import DetectionRecipe

for package in ("accelerate", "datasets", "matplotlib", "pycocotools", "tensorboard", "yaml"):
    pytest.importorskip(package)

RECIPE = DetectionRecipe(
    epochs=1,
    batch_size=4,
    image_size=64,
    learning_rate=0.005,
    minimum_crop=16,
    ema_momentum=1.0,
    eval_every=1,
    save_every=1,
    workers=0,
    score_threshold=0.3,
    name="tiny",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_boxes(tmp_path / "data", {"train": 8, "val": 4})


def _network() -> MobileViTV2ForObjectDetection:
    torch.manual_seed(0)
    return MobileViTV2ForObjectDetection(small_config(num_labels=2, id2label={0: "red", 1: "blue"}))


def _train(data: Path, output: Path, *, model: Any = None, **settings: Any) -> TrainingResult:
    return train_detector(data, model=model or _network(), recipe=replace(RECIPE, **settings), output=output)


def test_a_run_leaves_all_that_people_need(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = _train(data, out)
    assert result.steps == 2 and result.chosen_step == 2 and set(result.metrics) == {"ap", "ap50", "ap75"}
    left = {path.name for path in out.iterdir()}
    assert left == {
        *("model", "last", "checkpoints", "tensorboard", "metrics.jsonl", "result.json", "recipe.yaml"),
        *("curves.png", "predictions.jpg"),
    }
    network = MobileViTV2ForObjectDetection.from_pretrained(out / "model")
    assert network.config.id2label == {0: "red", 1: "blue"} and network.config.num_labels == 2
    processor = MobileViTV2ImageProcessor.from_pretrained(out / "model")
    assert processor(Image.new("RGB", (70, 50)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)
    summary = json.loads((out / "result.json").read_text())
    assert summary["task"] == "detect" and set(summary["per_class_ap"]) == {"red", "blue"}
    card = (out / "model" / "README.md").read_text()
    for told in ("object-detection", "8 train, 4 validation", "| blue | 2 |", "--task detect", "64 x 64 px", "by AP"):
        assert told in card, told
    lines = read_metrics(out / "metrics.jsonl")
    assert {"eval_ap", "eval_ap50", "eval_ap75", "loss_classification", "loss_localization"} <= set().union(*lines)
    logged = next(line for line in lines if "loss_classification" in line)
    assert logged["loss"] == pytest.approx(logged["loss_classification"] + logged["loss_localization"], rel=1e-3)


def test_boxes_reach_the_model_in_its_units(data: Path) -> None:
    split = open_detection_data(data).train
    assert split is not None
    samples = []
    for cache in ("ram", "none"):
        batches = DetectionTask(replace(RECIPE, iou_crop=0.0, flip=0.0, cache=cache, image_size=(32, 48))).train_batches(split)
        samples.append(batches[1])
    left, top, right, bottom = split.boxes(1)[0]
    expected = [(left + right) / 2 / 72, (top + bottom) / 2 / 60, (right - left) / 72, (bottom - top) / 60]
    for sample in samples:
        np.testing.assert_allclose(sample["boxes"], [expected], rtol=1e-5)
        assert sample["class_labels"].tolist() == [1] and sample["pixel_values"].shape == (3, 32, 48)
    batch = stack_samples(samples)
    assert batch["indices"] == [1, 1] and len(batch["boxes"]) == 2 and batch["pixel_values"].shape == (2, 3, 32, 48)


def test_crowds_are_not_learned(data: Path) -> None:
    content = json.loads((data / "instances_train.json").read_text())
    content["annotations"][0]["iscrowd"] = 1
    (data / "instances_train.json").write_text(json.dumps(content))
    split = open_detection_data(data).train
    assert split is not None
    assert len(DetectionTask(RECIPE).train_batches(split)[0]["boxes"]) == 0


def test_pictures_without_boxes_with_many_and_with_tiny_ones_train(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "instances_train.json").read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 0]
    spots = np.random.default_rng(0).integers(0, 58, (500, 2)).tolist()
    content["annotations"] += [
        {"id": 100 + n, "image_id": 1, "category_id": 3, "bbox": [x, y, 1, 1], "area": 1, "iscrowd": 0}
        for n, (x, y) in enumerate(spots)
    ]
    (data / "instances_train.json").write_text(json.dumps(content))
    result = _train(data, tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert result.steps == 2 and np.isfinite(losses).all()


class Broken(nn.Module):
    """Gives no number at its second step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, pixel_values: Tensor, labels: Any = None) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(loss=(self.weight * (float("nan") if self.calls == 2 else 1.0)).sum(), loss_dict=None)


def test_a_loss_that_is_no_number_names_the_pictures_of_its_step(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"It began at step 2, with 4 pictures: \S+\.png") as raised:
        _train(data, tmp_path / "run", model=Broken())
    from mobilevitv2.data.batches import EpochBatches

    second = list(EpochBatches(8, 4, epochs=1, seed=0))[1]
    names = {f"{number:03d}.png" for number in second}
    assert all(name in str(raised.value) for name in names)
    assert not any(f"{number:03d}.png" in str(raised.value) for number in range(8) if f"{number:03d}.png" not in names)


def test_the_anchors_are_the_recipes_and_a_detector_keeps_its_own(tmp_path: Path) -> None:
    task = DetectionTask(replace(RECIPE, finest_stride=8, anchor_scales=(0.05, 0.9)))
    network: Any = task.build("mobilevitv2-0.75-objects112", ("a", "b", "c"))
    assert network.config.detection_strides[0] == 8 and network.config.detection_anchor_scales == [0.05, 0.9]
    assert network.config.num_labels == 3
    _network().save_pretrained(tmp_path / "before")
    again: Any = task.build(tmp_path / "before", ("a", "b", "c"))
    assert again.config.detection_strides[0] == 16 and again.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_the_matching_is_the_recipes_for_a_detector_too(tmp_path: Path) -> None:
    _network().save_pretrained(tmp_path / "before")
    network: Any = DetectionTask(replace(RECIPE, matching_iou=0.4)).build(tmp_path / "before", ("a", "b"))
    assert network.config.detection_matching_iou == 0.4


def test_a_trunk_can_learn_more_slowly() -> None:
    from mobilevitv2.train.schedule import build_optimizer

    network = _network()
    groups = build_optimizer(network, replace(RECIPE, trunk_rate=0.1, weight_decay=0.1), 0.5).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.0005 if name.startswith("mobilevitv2.") else 0.005), name
    decays = {group["weight_decay"] for group in build_optimizer(network, replace(RECIPE, decay_all=True), 0.5).param_groups}
    assert decays == {0.05}
