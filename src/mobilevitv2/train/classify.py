"""Training a classifier from one call: data, model, recipe in; weights, curves and a card out."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.data.batches import CentreCrop, DecodedPictures, PictureBatches, TrainCrop, can_share_memory
from mobilevitv2.data.checks import check_classification_data
from mobilevitv2.data.classification import ClassificationData, PictureSplit, open_classification_data
from mobilevitv2.errors import ConfigurationError, DataError, MissingDependency
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.train.recipe import ClassificationRecipe, load_recipe

logger = logging.getLogger(__name__)

CACHE_LIMIT = 4 * 2**30  # bytes of decoded pictures that cache: auto keeps in memory


@dataclass
class TrainingResult:
    """What a run left behind.

    `metrics` are the last evaluation's, of the averaged weights; `best` the folder to load, predict with and ship.
    """

    output: Path
    best: Path | None
    metrics: dict[str, float]
    seconds: float
    steps: int
    interrupted: bool
    report: str = field(repr=False, default="")


def train_classifier(
    data: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | nn.Module = "scratch",
    recipe: str | os.PathLike[str] | ClassificationRecipe = "small",
    output: str | os.PathLike[str] = "runs/classify",
    resume: bool = False,
    overrides: dict[str, str] | None = None,
    check: bool = True,
) -> TrainingResult:
    """Train a classifier on pictures and leave everything in one folder.

    Args:
        data: an image folder, parquet files, a `datasets` folder or a hub id; see `open_classification_data`.
        model: "scratch", what `from_pretrained` takes (a new classifier is put on where the classes differ), or any module that takes
            `pixel_values` and gives an output with `logits`.
        recipe: a recipe, its name or its file.
        output: the folder; it must be empty or new unless `resume`.
        resume: go on from the folder's newest checkpoint.
        overrides: settings of the recipe as text, {"epochs": "30"}.
        check: read every picture first and stop at data that cannot be trained on.

    Raises:
        ConfigurationError: settings that do not fit.
        DataError: data that cannot be trained on; the message holds the table of what is wrong.
    """
    for name in ("accelerate", "tensorboard", "matplotlib"):
        _require(name)
    from mobilevitv2.train.report import write_report

    recipe = _settle(recipe, overrides)
    folder = _prepare_folder(Path(output), resume=resume)
    opened = open_classification_data(data, validation_fraction=recipe.validation_fraction, seed=recipe.seed)
    train, watched, report = _checked(opened, check=check)
    torch.manual_seed(recipe.seed)
    network, processor = build_model(model, recipe, opened.classes)
    _save_recipe(recipe, folder)
    start = time.monotonic()
    trainer, interrupted = _run(network, recipe, folder, train, watched, resume=resume)
    metrics = trainer.evaluate() if watched is not None and not interrupted else {}
    result = TrainingResult(
        output=folder,
        best=None if interrupted else folder / "model",
        metrics={name.removeprefix("eval_"): value for name, value in metrics.items()},
        seconds=time.monotonic() - start,
        steps=trainer.state.global_step,
        interrupted=interrupted,
        report=report,
    )
    if result.best is not None and trainer.is_world_process_zero():
        write_report(result, trainer.average.module, processor, recipe=recipe, data=opened, watched=watched)
    return result


def build_model(
    model: str | os.PathLike[str] | nn.Module, recipe: ClassificationRecipe, classes: tuple[str, ...]
) -> tuple[nn.Module, MobileViTV2ImageProcessor]:
    """The network to train, named after the classes, and the processor that belongs to it."""
    processor = MobileViTV2ImageProcessor(
        size={"shortest_edge": recipe.eval_resize}, crop_size={"height": recipe.eval_crop, "width": recipe.eval_crop}
    )
    if isinstance(model, nn.Module):
        return model, processor
    names = dict(enumerate(classes))
    options: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "classifier_dropout_prob": recipe.dropout,
        "problem_type": "single_label_classification",
    }
    if os.fspath(model) == "scratch":
        config = MobileViTV2Config(width_multiplier=recipe.width, image_size=recipe.image_size, **options)
        return MobileViTV2ForImageClassification(config), processor
    network = MobileViTV2ForImageClassification.from_pretrained(model, ignore_mismatched_sizes=True, **options)
    return network.float(), processor


def _run(
    network: nn.Module, recipe: ClassificationRecipe, folder: Path, train: PictureSplit, watched: PictureSplit | None, *, resume: bool
) -> tuple[Any, bool]:
    """Train to the end or to a Ctrl-C; whether it was the latter."""
    from transformers.trainer_callback import PrinterCallback

    from mobilevitv2.train.trainer import (
        MetricsFile,
        RecipeTrainer,
        latest_checkpoint,
        restore_average,
        resumable_interrupt,
        training_arguments,
    )

    crop = TrainCrop(recipe.image_size, recipe.crop_scale, recipe.crop_ratio, recipe.flip, recipe.interpolation)
    centre = CentreCrop(recipe.eval_crop, recipe.eval_resize, recipe.interpolation)
    trainer = RecipeTrainer(
        network,
        recipe=recipe,
        arguments=training_arguments(recipe, folder, count=len(train)),
        train=PictureBatches(train, crop, cache=_cache(train, recipe, recipe.image_size)),
        evaluation=None if watched is None else PictureBatches(watched, centre, cache=_cache(watched, recipe, recipe.eval_resize)),
        num_labels=len(train.classes),
        width=float(getattr(getattr(network, "config", None), "width_multiplier", recipe.width)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(MetricsFile(folder / "metrics.jsonl"))
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        restore_average(trainer, checkpoint)
        logger.info("going on from %s", checkpoint)
    with resumable_interrupt(trainer) as rhythm:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer, rhythm.interrupted


def _settle(recipe: str | os.PathLike[str] | ClassificationRecipe, overrides: dict[str, str] | None) -> ClassificationRecipe:
    if not isinstance(recipe, ClassificationRecipe):
        return load_recipe(recipe, overrides)
    if overrides:
        raise ConfigurationError("Overrides go with a recipe's name; change a recipe object with dataclasses.replace.")
    return recipe


def _prepare_folder(folder: Path, *, resume: bool) -> Path:
    if folder.exists() and not resume and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty; name another output folder, or resume the run in it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written to ({error.strerror}); name another output folder.") from error
    return folder


def _checked(data: ClassificationData, *, check: bool) -> tuple[PictureSplit, PictureSplit | None, str]:
    """The pictures to train on and to watch (validation, else test), without those that cannot be read."""
    if data.train is None:
        raise DataError(f"{data.source} has no training pictures, only {', '.join(data.splits)}.")
    watched = data.validation or data.test
    if not check:
        return data.train, watched, ""
    report = check_classification_data(data)
    logger.info("%s", report.table())
    report.raise_if_errors()
    return report.usable(data.train), None if watched is None else report.usable(watched), report.table()


def _cache(split: PictureSplit, recipe: ClassificationRecipe, side: int) -> DecodedPictures | None:
    """Decoded pictures in memory, where the recipe and the machine allow it."""
    if recipe.cache == "none" or (recipe.cache == "auto" and (not can_share_memory() or len(split) * side * side * 4 > CACHE_LIMIT)):
        return None
    # Crops of a picture at 1.5 times the wanted side lose nothing that the smallest crops would show.
    cache = DecodedPictures(split, short_side=side * 3 // 2, threads=os.cpu_count() or 1)
    logger.info("%d pictures of %s decoded into %.1f GB", len(split), split.name, cache.nbytes / 1e9)
    return cache


def _save_recipe(recipe: ClassificationRecipe, folder: Path) -> None:
    import yaml

    values = {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.to_dict().items()}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _require(name: str) -> None:
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise MissingDependency(f"Training needs {name}: pip install 'mobilevitv2[train]'.")


def write_json(values: object, path: Path) -> None:
    """JSON, whole or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(values, indent=1), encoding="utf-8")
    part.replace(path)
