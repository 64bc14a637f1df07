"""Training a detector from one call: pictures and boxes, model, recipe in; weights, curves and a card out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mobilevitv2.data.checks_detection import DetectionReport, check_detection_data
from mobilevitv2.data.detection import DetectionData, DetectionSplit, open_detection_data
from mobilevitv2.data.detection_batches import BoxBatches, WholeBoxBatches
from mobilevitv2.data.detection_transforms import DetectionCrop
from mobilevitv2.data.segmentation_transforms import Stretched
from mobilevitv2.evaluate.detection import DetectionCounter, DetectionResult, evaluate_detection
from mobilevitv2.evaluate.grids import save_box_grid
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.train.augment import to_float
from mobilevitv2.train.distortion import distort
from mobilevitv2.train.recipe import DetectionRecipe, recipe_of
from mobilevitv2.train.run import TrainingResult, begin, train_task
from mobilevitv2.train.settings import sides
from mobilevitv2.train.task import CardText, StepLoss, TrainingTask, named, stretching_processor

if TYPE_CHECKING:
    from mobilevitv2.train.settings import Recipe

__all__ = ["DetectionTask", "TrainingResult", "train_detector"]

logger = logging.getLogger(__name__)


def train_detector(
    data: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | nn.Module = "scratch",
    recipe: str | os.PathLike[str] | Recipe = "detect-small",
    output: str | os.PathLike[str] = "runs/detect",
    resume: bool = False,
    overrides: dict[str, str] | None = None,
    check: bool = True,
    strict: bool = False,
) -> TrainingResult:
    """Train a detector on pictures and boxes and leave everything in one folder.

    Args:
        data: what `open_detection_data` takes.
        model: "scratch"; what `from_pretrained` takes: a classifier gives its trunk, and the head starts at random; a detector
            keeps its own anchors and head, whatever the recipe says of them, with new outputs where the classes differ; or any
            module that takes `pixel_values` and `labels` as `MobileViTV2ForObjectDetection` does and gives what it gives.
        recipe: a recipe, its name or its file.
        output: the folder; it must be empty or new unless `resume`.
        resume: go on from the folder's newest checkpoint.
        overrides: settings of the recipe as text, {"epochs": "30"}.
        check: read every picture first and stop at data that cannot be trained on.
        strict: stop at anything broken, instead of leaving it out.

    Raises:
        ConfigurationError, DataError, OSError, MissingDependency: as `train_classifier`.
    """
    task = DetectionTask(recipe_of(DetectionRecipe, recipe, overrides))
    return train_task(
        task,
        data,
        model=model,
        recipe=recipe,
        output=Path(output),
        resume=resume,
        overrides=overrides,
        check=check,
        strict=strict,
    )


class DetectionTask(TrainingTask[DetectionRecipe]):
    """Boxes of objects."""

    name = "detect"
    metric, metric_label = "ap", "AP"
    curves = {  # noqa: RUF012
        "loss": "loss on training pictures (augmented)",
        "loss_classification": "of it: classes",
        "loss_localization": "of it: boxes",
        "eval_ap": "AP on watched pictures, % (averaged weights)",
        "eval_ap50": "AP50 on watched pictures, % (averaged weights)",
    }

    def open(self, source: str | os.PathLike[str]) -> DetectionData:
        """See `open_detection_data`."""
        return open_detection_data(source, validation_fraction=self.recipe.validation_fraction, seed=self.recipe.seed)

    def check(self, data: DetectionData, *, strict: bool) -> DetectionReport:
        """See `check_detection_data`."""
        return check_detection_data(data, strict=strict)

    def train_batches(self, split: DetectionSplit) -> BoxBatches:
        """Random crops."""
        recipe, size = self.recipe, sides(self.recipe.image_size)
        crop = DetectionCrop(
            size,
            iou_crop=recipe.iou_crop,
            minimum_crop=recipe.minimum_crop,
            zoom_out=recipe.zoom_out,
            zoom_out_most=recipe.zoom_out_most,
            flip=recipe.flip,
            interpolation=recipe.interpolation,
        )
        return BoxBatches(split, crop, cache=self.decoded(split, short_side=min(size) * 3 // 2, name=split.name))

    def eval_batches(self, split: DetectionSplit) -> WholeBoxBatches:
        """Whole pictures."""
        return WholeBoxBatches(split, Stretched(sides(self.recipe.image_size), self.recipe.interpolation))

    def build(self, model: str | os.PathLike[str] | nn.Module, classes: tuple[str, ...]) -> nn.Module:
        """The detector."""
        if isinstance(model, nn.Module):
            return model
        recipe = self.recipe
        size = sides(recipe.image_size)
        options: dict[str, Any] = {
            **named(classes),
            "image_size": size[0] if size[0] == size[1] else list(size),
            "detection_matching_iou": recipe.matching_iou,
        }
        head: dict[str, Any] = {
            "output_stride": 32,  # a segmenter's trunk has another
            "detection_anchor_scales": list(recipe.anchor_scales),
            **_FINEST[recipe.finest_stride],
        }
        return begin(self.name, model, recipe, options=options, head=head)

    def processor(self) -> MobileViTV2ImageProcessor:
        """The whole picture at the recipe's size."""
        return stretching_processor(sides(self.recipe.image_size), self.recipe.interpolation)

    def loss(self, model: nn.Module, inputs: dict[str, Any], *, epochs_left: float) -> StepLoss:
        """The model's own loss on a batch whose colours are distorted on the device."""
        pixels = inputs["pixel_values"]
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            pictures = to_float(pixels)
            if self.recipe.photometric:
                pictures = distort(pictures, probability=self.recipe.photometric).contiguous(memory_format=torch.channels_last)
        labels = [
            {"class_labels": torch.from_numpy(classes), "boxes": torch.from_numpy(boxes)}
            for classes, boxes in zip(inputs["class_labels"], inputs["boxes"], strict=True)
        ]
        outputs = model(pixel_values=pictures, labels=labels)
        return StepLoss(outputs.loss, outputs, outputs.loss_dict or {})

    def evaluate(
        self, model: nn.Module, batches: Iterable[dict[str, Any]], split: DetectionSplit, *, dtype: torch.dtype | None
    ) -> dict[str, float]:
        """AP, AP50 and AP75 at the pictures' own size."""
        processor, counter = self.processor(), DetectionCounter(split)
        for inputs in batches:
            pixels = inputs["pixel_values"]
            with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
                outputs = model(pixel_values=to_float(pixels))
            answers = processor.post_process_object_detection(
                outputs, threshold=self.recipe.score_threshold, target_sizes=inputs["size"]
            )
            for index, answer in zip(inputs["indices"], answers, strict=True):
                counter.add(index, answer["scores"], answer["labels"], answer["boxes"])
        result = counter.result()
        return {name: _percent(share) for name, share in (("ap", result.ap), ("ap50", result.ap50), ("ap75", result.ap75))}

    def measure(
        self, network: nn.Module, split: DetectionSplit, *, processor: MobileViTV2ImageProcessor, workers: int
    ) -> DetectionResult:
        """See `evaluate_detection`."""
        return evaluate_detection(network, split, processor=processor, workers=workers, progress=True)

    def in_percent(self, measured: DetectionResult) -> dict[str, float]:
        """AP, AP50, AP75."""
        return {"ap": _percent(measured.ap), "ap50": _percent(measured.ap50), "ap75": _percent(measured.ap75)}

    def summary(self, measured: DetectionResult) -> dict[str, Any]:
        """AP by size and class."""
        sizes = {"small": measured.ap_small, "medium": measured.ap_medium, "large": measured.ap_large}
        return {"per_size_ap": _shares(sizes), "per_class_ap": _shares(measured.per_class)}

    def draw(self, measured: DetectionResult, split: DetectionSplit, folder: Path) -> None:
        """predictions.jpg."""
        save_box_grid(measured, split, folder / "predictions.jpg")

    def card(self, measured: list[DetectionResult]) -> CardText:
        """The task's part of the model card."""
        recipe = self.recipe
        height, width = sides(recipe.image_size)
        lines = ["| pictures | count | AP, % | AP50, % | AP75, % |", "| --- | --- | --- | --- | --- |"]
        lines += [f"| {one.split} | {one.count:,} | {' | '.join(map(_told, (one.ap, one.ap50, one.ap75)))} |" for one in measured]
        if measured:
            last = measured[-1]
            lines += ["", f"Of each class ({last.split} pictures):", "", "| class | boxes | AP, % | AP50, % |"]
            lines.append("| --- | --- | --- | --- |")
            for name, boxes in last.per_class_boxes.items():
                lines.append(f"| {name} | {boxes:,} | {_told(last.per_class[name])} | {_told(last.per_class_ap50[name])} |")
        return CardText(
            title="Detector (MobileViTV2, SSDLite)",
            pipeline_tag="object-detection",
            input=f"RGB in 0..1, the whole picture stretched to {height} x {width} px (height x width, {recipe.interpolation})",
            results=lines,
            limits=_LIMITS,
        )


_FINEST: dict[int, dict[str, Any]] = {
    16: {},  # the configuration's own, which are the official ones
    8: {
        "detection_strides": [8, 16, 32, 64, 128, 256, -1],
        "detection_level_channels": [256, 512, 256, 256, 128, 128, 64],
        "detection_anchor_ratios": [*([2, 3] for _ in range(6)), [2]],
    },
}
"""Options of the configuration by the stride of the finest map."""


def _percent(share: float | None) -> float:
    return 0.0 if share is None else 100 * share


def _shares(shares: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if share is None else 100 * share for name, share in shares.items()}


def _told(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


_LIMITS = """It knows the classes above and no others. Objects much smaller than the smallest anchors, many objects close
together, and pictures unlike the training data (other cameras, drawings, other scenes) are answered worse than the table says.
It was not examined for biases of the data."""
