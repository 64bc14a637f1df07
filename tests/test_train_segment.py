"""Whole runs of segmentation on tiny pictures: what they leave, what is refused, what must train all the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_models import small_config
from torch import nn
from training_data import write_masks

from mobilevitv2.data.segmentation import open_segmentation_data
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation
from mobilevitv2.train.callbacks import Rhythm, read_metrics
from mobilevitv2.train.class_balance import balanced_weights, class_pixels
from mobilevitv2.train.processes import with_common_norms
from mobilevitv2.train.recipe import SegmentationRecipe
from mobilevitv2.train.segment import SegmentationTask, TrainingResult, train_segmenter

for package in ("accelerate", "datasets", "matplotlib", "tensorboard", "yaml"):
    pytest.importorskip(package)

RECIPE = SegmentationRecipe(
    epochs=1,
    batch_size=4,
    image_size=(32, 64),
    eval_size=(32, 64),
    short_side=(32, 48),
    learning_rate=0.01,
    ema_momentum=1.0,
    eval_every=1,
    save_every=1,
    workers=0,
    name="tiny",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "data", {"train": 8, "val": 4})


def _network(**options: Any) -> MobileViTV2ForSemanticSegmentation:
    torch.manual_seed(0)
    names = {0: "ground", 1: "red", 2: "blue"}
    return MobileViTV2ForSemanticSegmentation(
        small_config(output_stride=16, use_auxiliary_head=True, id2label=names, num_labels=3, **options)
    )


def _train(data: Path, output: Path, *, model: Any = None, resume: bool = False, **settings: Any) -> TrainingResult:
    return train_segmenter(data, model=model or _network(), recipe=replace(RECIPE, **settings), output=output, resume=resume)


def test_a_run_leaves_all_that_people_need(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = _train(data, out)
    assert result.steps == 2 and result.chosen_step == 2
    assert set(result.metrics) == {"miou", "pixel_accuracy", "mean_accuracy"}
    left = {path.name for path in out.iterdir()}
    assert left == {
        *("model", "last", "checkpoints", "tensorboard", "metrics.jsonl", "result.json", "recipe.yaml"),
        *("curves.png", "confusion.png", "confusion.csv", "predictions.jpg"),
    }
    network = MobileViTV2ForSemanticSegmentation.from_pretrained(out / "model")
    assert network.config.id2label == {0: "ground", 1: "red", 2: "blue"}
    assert not network.config.use_auxiliary_head
    assert not any("auxiliary" in name for name in load_file(out / "model" / "model.safetensors"))
    assert any("auxiliary" in name for name in load_file(next((out / "checkpoints").glob("checkpoint-2/model.safetensors"))))
    processor = MobileViTV2ImageProcessor.from_pretrained(out / "model")
    assert processor(Image.new("RGB", (70, 50)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 64)
    summary = json.loads((out / "result.json").read_text())
    assert summary["task"] == "segment" and set(summary["per_class_iou"]) == {"ground", "red", "blue"}
    card = (out / "model" / "README.md").read_text()
    for told in ("image-segmentation", "8 train, 4 validation", "| red |", "--task segment", "32 x 64 px", "by mIoU"):
        assert told in card, told
    lines = read_metrics(out / "metrics.jsonl")
    assert {"eval_miou", "eval_pixel_accuracy", "eval_loss"} <= set().union(*lines)


def test_scores_in_training_are_those_of_the_shipped_model(data: Path, tmp_path: Path) -> None:
    # The processor's resizing is torchvision's, that of training Pillow's: a pixel on an edge may differ.
    result = _train(data, tmp_path / "run")
    seen = next(line["eval_miou"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_miou" in line)
    assert result.metrics["miou"] == pytest.approx(seen, abs=2)


def test_the_head_is_the_recipes_and_the_trunk_the_classifiers() -> None:
    task = SegmentationTask(replace(RECIPE, segmentation_head="pspnet", psp_out_channels=48, output_stride=8, eval_size=64))
    network: Any = task.build("mobilevitv2-0.75-objects112", ("ground", "red"))
    config = network.config
    assert (config.segmentation_head, config.psp_out_channels, config.output_stride) == ("pspnet", 48, 8)
    assert config.num_labels == 2 and config.image_size == 64 and config.use_auxiliary_head and config.width_multiplier == 0.75


def test_a_segmenter_keeps_its_head_and_gets_new_classes(tmp_path: Path) -> None:
    before = _network()
    before.save_pretrained(tmp_path / "before")
    after: Any = SegmentationTask(RECIPE).build(tmp_path / "before", ("ground", "tree"))
    assert after.config.aspp_out_channels == 32 and after.config.num_labels == 2
    name = "segmentation_head.aspp.project.convolution.weight"
    assert torch.equal(after.state_dict()[name], before.state_dict()[name])


def test_pixels_without_a_label_are_ignored_whatever_the_checkpoint_ignored(data: Path, tmp_path: Path) -> None:
    _network(semantic_loss_ignore_index=-1).save_pretrained(tmp_path / "before")
    assert _train(data, tmp_path / "run", model=tmp_path / "before").steps == 2


def test_a_batch_of_one_picture_is_answered_with_what_to_do(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"1 picture at a time.*batch_size=4.*accumulate=4.*at least 2"):
        _train(data, tmp_path / "run", accumulate=4)


def test_norms_of_several_gpus_are_common_and_change_no_weight_and_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    network, gpu = _network().eval(), torch.device("cuda")
    pictures = torch.rand(1, 3, 32, 64)
    before, names = network(pictures).logits, list(network.state_dict())
    assert with_common_norms(network, gpu) is network
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())  # one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with_common_norms(network, torch.device("cpu"))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    common = with_common_norms(network, gpu)
    assert {type(module) for module in common.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)} == {
        nn.SyncBatchNorm
    }
    assert list(common.state_dict()) == names and torch.equal(common(pictures).logits, before)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_recipe_says_whether_norms_are_common(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    asked = []
    monkeypatch.setattr("mobilevitv2.train.trainer.with_common_norms", lambda model, device: asked.append(device) or model)
    _train(data, tmp_path / "run", sync_norms=wanted)
    assert len(asked) == wanted


def test_an_official_detector_is_refused(tmp_path: Path) -> None:
    from mobilevitv2.detection import MobileViTV2ForObjectDetection

    MobileViTV2ForObjectDetection(small_config(num_labels=2)).save_pretrained(tmp_path / "detector")
    with pytest.raises(Exception, match="detect"):
        SegmentationTask(RECIPE).build(tmp_path / "detector" / "model.safetensors", ("a", "b"))


def test_masks_of_another_size_are_left_out_or_refused(data: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(data / "train" / "masks" / "003.png")
    result = _train(data, tmp_path / "run", batch_size=7)
    assert result.steps == 1 and "003" in result.report
    with pytest.raises(DataError, match="003"):
        train_segmenter(data, model=_network(), recipe=RECIPE, output=tmp_path / "strict", strict=True)


def test_masks_of_nothing_but_ignored_pixels_have_no_loss(data: Path) -> None:
    task = SegmentationTask(RECIPE)
    split = open_segmentation_data(data).train
    assert split is not None
    inputs = {
        "pixel_values": torch.randint(0, 255, (2, 3, 32, 64), dtype=torch.uint8),
        "labels": torch.full((2, 32, 64), 255, dtype=torch.uint8),
    }
    found = task.loss(_network().train(), inputs, epochs_left=1)
    assert found.loss.item() == 0
    found.loss.backward()


def test_a_cache_gives_what_the_files_give(data: Path) -> None:
    split = open_segmentation_data(data).train
    assert split is not None
    samples = []
    for cache in ("ram", "none"):
        batches = SegmentationTask(replace(RECIPE, cache=cache, short_side=(60, 60))).train_batches(split)
        assert (batches.cache is not None) == (cache == "ram")
        torch.manual_seed(4)
        samples.append(batches[2])
    assert torch.equal(samples[0]["labels"], samples[1]["labels"])
    assert torch.equal(samples[0]["pixel_values"], samples[1]["pixel_values"])
    small = SegmentationTask(replace(RECIPE, cache="ram", short_side=(20, 30))).train_batches(split)
    assert small.cache is not None
    picture, mask = small.cache[0].read(0), small.cache[1].read(0)
    assert min(picture.size) == 30 and mask.shape == (picture.height, picture.width) and set(np.unique(mask)) >= {0, 1}


@pytest.mark.parametrize("short_side", [30, 400])
def test_pictures_and_masks_are_kept_only_where_all_of_both_fit(
    data: Path, monkeypatch: pytest.MonkeyPatch, short_side: int
) -> None:
    split = open_segmentation_data(data).train
    assert split is not None
    kept = SegmentationTask(replace(RECIPE, cache="ram", short_side=(20, short_side))).train_batches(split).cache
    assert kept is not None
    size = kept[0].nbytes + kept[1].nbytes
    for limit, fits in ((size + 1, True), (size - 1, False)):
        monkeypatch.setattr("mobilevitv2.train.task.CACHE_LIMIT", limit)
        task = SegmentationTask(replace(RECIPE, cache="auto", short_side=(20, short_side)))
        assert (task.train_batches(split).cache is not None) == fits


def test_resuming_goes_on_with_head_and_best(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Rhythm.on_step_end

    def interrupted(self: Rhythm, args: Any, state: Any, control: Any, **options: Any) -> Any:
        self.interrupted = state.global_step == 2
        return original(self, args, state, control, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Rhythm, "on_step_end", interrupted)
        stopped = _train(data, tmp_path / "run", epochs=2)
    assert stopped.interrupted and stopped.steps == 2
    resumed = train_segmenter(data, recipe=replace(RECIPE, epochs=2), output=tmp_path / "run", resume=True)
    assert resumed.steps == 4 and not resumed.interrupted
    with pytest.raises(ConfigurationError, match="task=segment, which cannot become detect"):
        from mobilevitv2.train.recipe import DetectionRecipe
        from mobilevitv2.train.run import _prepare_folder

        _prepare_folder(tmp_path / "run", DetectionRecipe(), resume=True)


def test_a_recipe_of_another_task_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Recipe detect-small is one for --task detect.*segment-ade20k"):
        train_segmenter(data, recipe="detect-small", output=tmp_path / "run", overrides={"zoom_out": "0.5"})


def test_balanced_weights_give_rare_classes_more_and_a_pixel_one_on_average() -> None:
    pixels = [900, 90, 10, 0]
    assert balanced_weights(pixels, power=0) == [1.0] * 4
    weights = np.array(balanced_weights(pixels, power=1))
    shares = weights * pixels
    assert shares[:3] == pytest.approx([1000 / 3] * 3) and weights[3] == weights[2]
    half = np.array(balanced_weights(pixels, power=0.5))
    assert (half * pixels).sum() == pytest.approx(1000) and half[1] / half[0] == pytest.approx(10**0.5)
    assert balanced_weights([0, 0], power=1) == [1.0, 1.0]


def test_a_run_with_balanced_classes_learns_with_the_weights_of_its_training_masks(data: Path, tmp_path: Path) -> None:
    task = SegmentationTask(replace(RECIPE, class_balance=1.0))
    opened = task.open(data)
    assert opened.train is not None
    counts = class_pixels(opened.train)
    assert counts.sum() == sum(mask.size - (mask == 255).sum() for mask in map(opened.train.read_mask, range(len(opened.train))))
    network = task.build("scratch", opened.classes)
    assert network.config.semantic_loss_class_weights == pytest.approx(balanced_weights(counts, power=1.0))
