"""Training a segmenter from one call: pictures and masks, model, recipe in; weights, curves and a card out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.data.checks_segmentation import SegmentationReport, check_segmentation_data
from mobilevitv2.data.decoded import DecodedMasks
from mobilevitv2.data.segmentation import SegmentationData, SegmentationSplit, open_segmentation_data
from mobilevitv2.data.segmentation_batches import MaskBatches, WholeMaskBatches
from mobilevitv2.data.segmentation_transforms import IGNORED, SegmentationCrop, Stretched
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.evaluate.confusion import save_confusion_matrix
from mobilevitv2.evaluate.grids import save_mask_grid
from mobilevitv2.evaluate.segmentation import SegmentationCounter, SegmentationResult, evaluate_segmentation
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation
from mobilevitv2.train.augment import to_float
from mobilevitv2.train.class_balance import balanced_weights, class_pixels
from mobilevitv2.train.distortion import blur, distort, rotate
from mobilevitv2.train.recipe import SegmentationRecipe, recipe_of
from mobilevitv2.train.run import TrainingResult, begin, train_task
from mobilevitv2.train.settings import sides
from mobilevitv2.train.task import CardText, StepLoss, TrainingTask, named, stretching_processor

if TYPE_CHECKING:
    from mobilevitv2.train.settings import Recipe

__all__ = ["SegmentationTask", "TrainingResult", "train_segmenter"]

logger = logging.getLogger(__name__)

DRAWN = 8
"""Pictures on the grid of predictions, from the worst on."""


def train_segmenter(
    data: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | nn.Module = "scratch",
    recipe: str | os.PathLike[str] | Recipe = "segment-small",
    output: str | os.PathLike[str] = "runs/segment",
    resume: bool = False,
    overrides: dict[str, str] | None = None,
    check: bool = True,
    strict: bool = False,
) -> TrainingResult:
    """Train a segmenter on pictures and masks and leave everything in one folder.

    Args:
        data: what `open_segmentation_data` takes.
        model: "scratch"; what `from_pretrained` takes: a classifier gives its trunk, and the head starts at random; a segmenter
            keeps its own head, whatever the recipe says of it, with new outputs where the classes differ; or any module that takes
            `pixel_values` and `labels` (batch, height, width) and gives `loss` and `logits`.
        recipe: a recipe, its name or its file.
        output: the folder; it must be empty or new unless `resume`.
        resume: go on from the folder's newest checkpoint.
        overrides: settings of the recipe as text, {"epochs": "30"}.
        check: read every picture and mask first and stop at data that cannot be trained on.
        strict: stop at anything broken, instead of leaving it out.

    Raises:
        ConfigurationError, DataError, OSError, MissingDependency: as `train_classifier`.
    """
    task = SegmentationTask(recipe_of(SegmentationRecipe, recipe, overrides))
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


class SegmentationTask(TrainingTask[SegmentationRecipe]):
    """One class for each pixel."""

    name = "segment"
    metric, metric_label = "miou", "mIoU"
    curves = {  # noqa: RUF012
        "loss": "loss on training crops (augmented, with the auxiliary head's)",
        "eval_loss": "loss on watched pictures (averaged weights)",
        "eval_miou": "mIoU on watched pictures, % (averaged weights)",
        "eval_pixel_accuracy": "pixel accuracy on watched pictures, % (averaged weights)",
    }

    def __init__(self, recipe: SegmentationRecipe) -> None:
        super().__init__(recipe)
        self.class_weights: list[float] | None = None

    def open(self, source: str | os.PathLike[str]) -> SegmentationData:
        """See `open_segmentation_data`; with `class_balance`, the training masks are counted as well."""
        data = open_segmentation_data(source, validation_fraction=self.recipe.validation_fraction, seed=self.recipe.seed)
        if self.recipe.class_balance and data.train is not None:
            self.class_weights = balanced_weights(class_pixels(data.train), power=self.recipe.class_balance)
        return data

    def check(self, data: SegmentationData, *, strict: bool) -> SegmentationReport:
        """See `check_segmentation_data`."""
        return check_segmentation_data(data, strict=strict)

    def train_batches(self, split: SegmentationSplit) -> MaskBatches:
        """Random crops."""
        recipe = self.recipe
        crop = SegmentationCrop(
            sides(recipe.image_size),
            short_side=recipe.short_side,
            long_side=recipe.long_side,
            stretch=recipe.stretch,
            flip=recipe.flip,
            largest_class=recipe.largest_class,
            tries=recipe.crop_tries,
            interpolation=recipe.interpolation,
        )
        pictures = self.decoded(split, short_side=recipe.short_side[1], name=split.name, masked=True)
        threads = os.cpu_count() or 1
        masks = None if pictures is None else DecodedMasks(split, pictures, threads=threads)
        return MaskBatches(split, crop, cache=None if pictures is None or masks is None else (pictures, masks))

    def eval_batches(self, split: SegmentationSplit) -> WholeMaskBatches:
        """Whole pictures."""
        return WholeMaskBatches(split, Stretched(sides(self.recipe.eval_size), self.recipe.interpolation))

    def build(self, model: str | os.PathLike[str] | nn.Module, classes: tuple[str, ...]) -> nn.Module:
        """The segmenter."""
        if len(classes) > IGNORED:
            raise ConfigurationError(
                f"{len(classes)} classes do not fit into masks of bytes, in which 255 is ignored; use at most 255."
            )
        if isinstance(model, nn.Module):
            return model
        recipe = self.recipe
        size = sides(recipe.eval_size)
        options: dict[str, Any] = {
            **named(classes),
            "image_size": size[0] if size[0] == size[1] else list(size),
            "use_auxiliary_head": recipe.use_auxiliary_head,
            "auxiliary_loss_weight": recipe.auxiliary_loss_weight,
            "semantic_loss_ignore_index": IGNORED,  # of the crops' masks, whatever the checkpoint's were
            "semantic_loss_class_weights": self.class_weights,
            "classifier_dropout_prob": recipe.dropout,
            "aspp_dropout_prob": recipe.dropout,
            "psp_dropout_prob": recipe.dropout,
        }
        head: dict[str, Any] = {
            "output_stride": recipe.output_stride,
            "segmentation_head": recipe.segmentation_head,
            "aspp_out_channels": recipe.aspp_out_channels,
            "atrous_rates": list(recipe.atrous_rates),
            "psp_out_channels": recipe.psp_out_channels,
        }
        return begin(self.name, model, recipe, options=options, head=head)

    def processor(self) -> MobileViTV2ImageProcessor:
        """The whole picture at the size of the recipe's evaluation."""
        return stretching_processor(sides(self.recipe.eval_size), self.recipe.interpolation)

    def shipped(self, network: nn.Module) -> nn.Module:
        """Without the auxiliary head, which only training needs."""
        if isinstance(network, MobileViTV2ForSemanticSegmentation) and network.config.use_auxiliary_head:
            del network.segmentation_head.auxiliary_head
            network.config.use_auxiliary_head = False
        return network

    def loss(self, model: nn.Module, inputs: dict[str, Any], *, epochs_left: float) -> StepLoss:
        """The model's own loss on a batch that is blurred, distorted and turned on the device."""
        with torch.no_grad(), torch.autocast(inputs["pixel_values"].device.type, enabled=False):
            pictures, masks = self.augmented(inputs["pixel_values"], inputs["labels"])
        outputs = model(pixel_values=pictures, labels=masks)
        return StepLoss(outputs.loss, outputs, {})

    def augmented(self, pixels: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 pictures and masks -> floats in 0..1 and class indices, int64."""
        recipe, pictures = self.recipe, to_float(pixels)
        if recipe.blur:
            pictures = blur(pictures, probability=recipe.blur)
        if recipe.photometric:
            pictures = distort(pictures, probability=recipe.photometric)
        if recipe.rotation:
            pictures, masks = rotate(pictures, masks, degrees=recipe.rotation)
        return pictures.contiguous(memory_format=torch.channels_last), masks.long()

    def evaluate(
        self, model: nn.Module, batches: Iterable[dict[str, Any]], split: SegmentationSplit, *, dtype: torch.dtype | None
    ) -> dict[str, float]:
        """mIoU and pixel accuracy at the pictures' own size, and the mean loss at the size of evaluation."""
        processor, counter, loss, count = self.processor(), None, torch.zeros(()), 0
        for inputs in batches:
            pixels, masks = inputs["pixel_values"], inputs["mask"]
            if counter is None:
                counter = SegmentationCounter(len(split.classes), device=pixels.device)
                loss = loss.to(pixels.device)
            resized = [F.interpolate(mask[None, None], size=pixels.shape[-2:], mode="nearest")[0, 0] for mask in masks]
            with torch.autocast(pixels.device.type, dtype=dtype, enabled=dtype is not None):
                outputs = model(pixel_values=to_float(pixels), labels=torch.stack(resized).long())
            loss, count = loss + outputs.loss.float() * len(masks), count + len(masks)
            answers = processor.post_process_semantic_segmentation(outputs, target_sizes=[tuple(mask.shape) for mask in masks])
            for answer, mask in zip(answers, masks, strict=True):
                counter.add(answer, mask)
        assert counter is not None
        scores = counter.scores()
        return {
            "miou": _percent(scores.miou),
            "pixel_accuracy": _percent(scores.pixel_accuracy),
            "loss": float(loss) / max(1, count),
        }

    def measure(
        self, network: nn.Module, split: SegmentationSplit, *, processor: MobileViTV2ImageProcessor, workers: int
    ) -> SegmentationResult:
        """See `evaluate_segmentation`."""
        return evaluate_segmentation(network, split, processor=processor, workers=workers, progress=True, keep=DRAWN)

    def in_percent(self, measured: SegmentationResult) -> dict[str, float]:
        """mIoU, pixel accuracy, mean accuracy."""
        return {
            "miou": _percent(measured.miou),
            "pixel_accuracy": _percent(measured.pixel_accuracy),
            "mean_accuracy": _percent(measured.mean_accuracy),
        }

    def summary(self, measured: SegmentationResult) -> dict[str, Any]:
        """IoU of each class."""
        return {"per_class_iou": _shares(measured.per_class_iou)}

    def draw(self, measured: SegmentationResult, split: SegmentationSplit, folder: Path) -> None:
        """confusion.png and confusion.csv, predictions.jpg."""
        for suffix in ("png", "csv"):
            save_confusion_matrix(measured, folder / f"confusion.{suffix}")
        save_mask_grid(measured, split, folder / "predictions.jpg")

    def card(self, measured: list[SegmentationResult]) -> CardText:
        """The task's part of the model card."""
        recipe = self.recipe
        height, width = sides(recipe.eval_size)
        lines = ["| pictures | count | mIoU, % | pixel accuracy, % | mean accuracy, % |", "| --- | --- | --- | --- | --- |"]
        for one in measured:
            shares = (_percent(share) for share in (one.miou, one.pixel_accuracy, one.mean_accuracy))
            lines.append(f"| {one.split} | {one.count:,} | {' | '.join(f'{share:.2f}' for share in shares)} |")
        if measured:
            lines += ["", f"Of each class ({measured[-1].split} pictures):", "", "| class | IoU, % |", "| --- | --- |"]
            for name, share in measured[-1].per_class_iou.items():
                lines.append(f"| {name} | {'-' if share is None else f'{100 * share:.2f}'} |")
        return CardText(
            title="Segmenter (MobileViTV2)",
            pipeline_tag="image-segmentation",
            input=f"RGB in 0..1, the whole picture stretched to {height} x {width} px (height x width, {recipe.interpolation})",
            results=lines,
            limits=_LIMITS,
        )


def _percent(share: float) -> float:
    return 100 * share if isfinite(share) else 0.0


def _shares(shares: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if share is None else 100 * share for name, share in shares.items()}


_LIMITS = """It knows the classes above and no others: every pixel gets one of them. Outlines are as fine as the map
that they come from, a part of the input's size. Pictures unlike the training data (other cameras, drawings, other scenes) are
answered worse than the table says. It was not examined for biases of the data."""
