"""Training a classifier from one call: data, model, recipe in; weights, curves and a card out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from mobilevitv2.data.batches import CentreCrop, PictureBatches, TrainCrop
from mobilevitv2.data.checks import DataReport, check_classification_data
from mobilevitv2.data.classification import ClassificationData, PictureSplit, open_classification_data
from mobilevitv2.errors import DataError
from mobilevitv2.evaluate.classification import ClassificationResult, evaluate_classification, save_confusion_matrix
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.train.augment import BatchAugmentation, to_float
from mobilevitv2.train.recipe import ClassificationRecipe, recipe_of
from mobilevitv2.train.run import TrainingResult, begin, train_task
from mobilevitv2.train.task import CardText, StepLoss, TrainingTask, named

if TYPE_CHECKING:
    from mobilevitv2.train.settings import Recipe

__all__ = ["ClassificationTask", "TrainingResult", "train_classifier"]


def train_classifier(
    data: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | nn.Module = "scratch",
    recipe: str | os.PathLike[str] | Recipe = "small",
    output: str | os.PathLike[str] = "runs/classify",
    resume: bool = False,
    overrides: dict[str, str] | None = None,
    check: bool = True,
    strict: bool = False,
) -> TrainingResult:
    """Train a classifier on pictures and leave everything in one folder.

    Args:
        data: an image folder, parquet files, a `datasets` folder or a hub id; see `open_classification_data`.
        model: "scratch", what `from_pretrained` takes (a new classifier is put on where the classes differ), or any module that
            takes `pixel_values` and gives an output with `logits`.
        recipe: a recipe, its name or its file.
        output: the folder; it must be empty or new unless `resume`.
        resume: go on from the folder's newest checkpoint.
        overrides: settings of the recipe as text, {"epochs": "30"}.
        check: read every picture first and stop at data that cannot be trained on.
        strict: stop at anything that the check finds, not at errors alone.

    Raises:
        ConfigurationError: settings that do not fit, a folder that is not empty or cannot be written to, a loss that is no number.
        DataError: data that cannot be trained on; the message holds the table of what is wrong.
        OSError: the disk is full; checkpoints from before are whole.
        MissingDependency: the packages of the extra `train`.
    """
    task = ClassificationTask(recipe_of(ClassificationRecipe, recipe, overrides))
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


class ClassificationTask(TrainingTask[ClassificationRecipe]):
    """One class for each picture."""

    name = "classify"
    metric, metric_label = "top1", "top-1"
    curves = {  # noqa: RUF012
        "loss": "loss on training pictures (augmented, mixed)",
        "eval_loss": "loss on watched pictures (averaged weights)",
        "eval_top1": "top-1 on watched pictures, % (averaged weights)",
    }
    eval_batch = 256

    def __init__(self, recipe: ClassificationRecipe) -> None:
        super().__init__(recipe)
        self.augmentation: BatchAugmentation | None = None

    def open(self, source: str | os.PathLike[str]) -> ClassificationData:
        """See `open_classification_data`."""
        return open_classification_data(source, validation_fraction=self.recipe.validation_fraction, seed=self.recipe.seed)

    def check(self, data: ClassificationData, *, strict: bool) -> DataReport:
        """See `check_classification_data`."""
        report = check_classification_data(data)
        if strict and report.unreadable:
            raise DataError(f"some pictures cannot be read, and --strict was asked for\n\n{report.table()}")
        return report

    def train_batches(self, split: PictureSplit) -> PictureBatches:
        """Random crops."""
        recipe = self.recipe
        crop = TrainCrop(recipe.image_size, recipe.crop_scale, recipe.crop_ratio, recipe.flip, recipe.interpolation)
        # Crops of a picture at 1.5 times the wanted side lose nothing that the smallest crops would show.
        return PictureBatches(split, crop, cache=self.decoded(split, short_side=recipe.image_size * 3 // 2, name=split.name))

    def eval_batches(self, split: PictureSplit) -> PictureBatches:
        """The middles of the pictures."""
        recipe = self.recipe
        centre = CentreCrop(recipe.eval_crop, recipe.eval_resize, recipe.interpolation)
        return PictureBatches(split, centre, cache=self.decoded(split, short_side=recipe.eval_resize * 3 // 2, name=split.name))

    def build(self, model: str | os.PathLike[str] | nn.Module, classes: tuple[str, ...]) -> nn.Module:
        """The classifier."""
        recipe = self.recipe
        self.augmentation = BatchAugmentation(
            len(classes),
            randaugment_operations=recipe.randaugment_operations,
            randaugment_magnitude=recipe.randaugment_magnitude,
            erasing=recipe.erasing,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            mix_probability=recipe.mix_probability,
        )
        if isinstance(model, nn.Module):
            return model
        options: dict[str, Any] = {
            **named(classes),
            "classifier_dropout_prob": recipe.dropout,
            "problem_type": "single_label_classification",
            "image_size": recipe.eval_crop,
        }
        return begin(self.name, model, recipe, options=options)

    def processor(self) -> MobileViTV2ImageProcessor:
        """Short side and centre crop of the recipe's evaluation."""
        crop = self.recipe.eval_crop
        return MobileViTV2ImageProcessor(size={"shortest_edge": self.recipe.eval_resize}, crop_size={"height": crop, "width": crop})

    def loss(self, model: nn.Module, inputs: dict[str, Any], *, epochs_left: float) -> StepLoss:
        """Cross-entropy against the mixed labels."""
        assert self.augmentation is not None
        mixing = epochs_left > self.recipe.unmixed_epochs
        pictures, targets = self.augmentation(inputs["pixel_values"], inputs["labels"], mixing=mixing)
        outputs = model(pixel_values=pictures)
        loss = F.cross_entropy(outputs.logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        return StepLoss(loss, outputs, {})

    def evaluate(
        self, model: nn.Module, batches: Iterable[dict[str, Any]], split: PictureSplit, *, dtype: torch.dtype | None
    ) -> dict[str, float]:
        """Top-1 and top-5 in percent and the mean cross-entropy; read back from the device once, at the end."""
        totals: Any = 0
        for inputs in batches:
            labels = inputs["labels"]
            with torch.autocast(labels.device.type, dtype=dtype, enabled=dtype is not None):
                logits = model(pixel_values=to_float(inputs["pixel_values"])).logits.float()
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            totals = totals + torch.stack([best[:, 0].sum(), best.sum(), F.cross_entropy(logits, labels, reduction="sum")])
        top1, top5, loss = (totals / len(split)).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}

    def measure(
        self, network: nn.Module, split: PictureSplit, *, processor: MobileViTV2ImageProcessor, workers: int
    ) -> ClassificationResult:
        """See `evaluate_classification`."""
        return evaluate_classification(network, split, processor=processor, workers=workers, progress=True)

    def in_percent(self, measured: ClassificationResult) -> dict[str, float]:
        """Top-1, top-5; and the loss."""
        return {"top1": 100 * measured.top1, "top5": 100 * measured.top5, "loss": measured.loss}

    def summary(self, measured: ClassificationResult) -> dict[str, Any]:
        """Top-1 of each group."""
        return {"per_group": {name: 100 * share for name, share in measured.per_group.items()} or None}

    def draw(self, measured: ClassificationResult, split: PictureSplit, folder: Path) -> None:
        """confusion.png and confusion.csv."""
        for suffix in ("png", "csv"):
            save_confusion_matrix(measured, folder / f"confusion.{suffix}")

    def card(self, measured: list[ClassificationResult]) -> CardText:
        """The task's part of the model card."""
        recipe = self.recipe
        lines = ["| pictures | count | top-1, % | top-5, % |", "| --- | --- | --- | --- |"]
        for one in measured:
            lines.append(f"| {one.split} | {one.count:,} | {100 * one.top1:.2f} | {100 * one.top5:.2f} |")
            lines += [
                f"| {one.split}: {group} | {one.group_counts[group]:,} | {100 * share:.2f} | |"
                for group, share in one.per_group.items()
            ]
        return CardText(
            title="Image classifier (MobileViTV2)",
            pipeline_tag="image-classification",
            input=f"RGB in 0..1, short side {recipe.eval_resize} px ({recipe.interpolation}), centre crop {recipe.eval_crop} px",
            results=lines,
            limits=_LIMITS,
        )


_LIMITS = """It knows the classes above and no others: any picture gets one of them as its answer, and the
probabilities say nothing about whether the picture shows something else. Pictures unlike the training data (other cameras,
drawings, several objects) are answered worse than the table says. It was not examined for biases of the data."""
