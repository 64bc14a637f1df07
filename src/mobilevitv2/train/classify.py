"""Training a classifier from one call: data, model, recipe in; weights, curves and a card out."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.data.batches import CentreCrop, DecodedPictures, PictureBatches, TrainCrop, can_share_memory
from mobilevitv2.data.checks import check_classification_data
from mobilevitv2.data.classification import ClassificationData, PictureSplit, open_classification_data
from mobilevitv2.errors import ConfigurationError, DataError, MissingDependency
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.train.processes import is_first_process, world_size
from mobilevitv2.train.recipe import ClassificationRecipe, load_recipe
from mobilevitv2.train.terminal import few_host_threads, quiet_transformers
from mobilevitv2.weights.writing import write_whole

if TYPE_CHECKING:
    from mobilevitv2.train.trainer import RecipeTrainer

logger = logging.getLogger(__name__)

CACHE_LIMIT = 4 * 2**30  # bytes of decoded pictures that cache: auto keeps in memory


@dataclass
class TrainingResult:
    """What a run left behind."""

    output: Path
    """The run's folder."""
    best: Path | None
    """The folder to load, predict with and ship: the averaged weights of the best evaluation on validation pictures, or the final
    ones where nothing could be chosen by. None after an interruption."""
    metrics: dict[str, float]
    """Top-1 and top-5 in percent, and the loss, of `best` on the test pictures, or on the validation pictures if there are no
    others; after an interruption those of the last evaluation."""
    seconds: float
    steps: int
    """Optimiser steps of the whole run, those before a resumption included."""
    interrupted: bool
    report: str = field(repr=False, default="")
    """The table of the data check."""
    last: Path | None = None
    """The folder of the final averaged weights, where `best` was chosen."""
    chosen_step: int | None = None
    """The step after which the weights of `best` were averaged, where they were chosen."""


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
        model: "scratch", what `from_pretrained` takes (a new classifier is put on where the classes differ), or any module that
            takes `pixel_values` and gives an output with `logits`.
        recipe: a recipe, its name or its file.
        output: the folder; it must be empty or new unless `resume`.
        resume: go on from the folder's newest checkpoint.
        overrides: settings of the recipe as text, {"epochs": "30"}.
        check: read every picture first and stop at data that cannot be trained on.

    Raises:
        ConfigurationError: settings that do not fit, a folder that is not empty or cannot be written to, a loss that is no number.
        DataError: data that cannot be trained on; the message holds the table of what is wrong.
        OSError: the disk is full; checkpoints from before are whole.
        MissingDependency: the packages of the extra `train`.
    """
    for name in ("accelerate", "tensorboard", "matplotlib"):
        _require(name)
    command = command_of(data, model=model, recipe=recipe, overrides=overrides, output=output)
    recipe = _settle(recipe, overrides)
    if "width" in (overrides or {}) and not isinstance(model, nn.Module) and os.fspath(model) != "scratch":
        raise ConfigurationError(f"width={recipe.width} goes with --model scratch; {os.fspath(model)} has a width of its own.")
    folder = _prepare_folder(Path(output), recipe, resume=resume)
    opened = open_classification_data(data, validation_fraction=recipe.validation_fraction, seed=recipe.seed)
    opened, report = _checked(opened, check=check)
    assert opened.train is not None
    watched = opened.validation or opened.test
    torch.manual_seed(recipe.seed)
    with quiet_transformers():
        network, processor = build_model(_begun_with(folder, model) if resume else model, recipe, opened.classes)
        _save_recipe(recipe, folder)
        start = time.monotonic()
        trainer, interrupted = _run(network, recipe, folder, opened.train, watched, resume=resume)
        result = TrainingResult(
            output=folder,
            best=None if interrupted else folder / "model",
            metrics=trainer.metrics,
            seconds=time.monotonic() - start,
            steps=trainer.state.global_step,
            interrupted=interrupted,
            report=report,
        )
        if not interrupted and trainer.is_world_process_zero():
            _finish(result, trainer, processor, opened, command)
    trainer.accelerator.end_training()
    return result


def _finish(
    result: TrainingResult, trainer: RecipeTrainer, processor: MobileViTV2ImageProcessor, data: ClassificationData, command: str
) -> None:
    """Write the weights, those chosen and those of the end, and the report on them."""
    from mobilevitv2.train.checkpoints import load_best
    from mobilevitv2.train.report import save_network, write_report

    network = trainer.average.module
    if trainer.best is not None:
        result.last, result.chosen_step = result.output / "last", trainer.best.step
        save_network(network, processor, result.last)
        load_best(network, result.output / "checkpoints")
    with few_host_threads(trainer.args.device):
        write_report(result, network, processor, recipe=trainer.recipe, data=data, command=command)


def _begun_with(folder: Path, model: str | os.PathLike[str] | nn.Module) -> str | os.PathLike[str] | nn.Module:
    """The newest checkpoint of a run, as the model to go on with: whoever resumes need not say again what it began with."""
    from mobilevitv2.train.checkpoints import latest_checkpoint

    checkpoint = latest_checkpoint(folder)
    if isinstance(model, nn.Module) or checkpoint is None or not (checkpoint / "config.json").is_file():
        return model
    return checkpoint


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
        "image_size": recipe.eval_crop,
    }
    if os.fspath(model) == "scratch":
        logger.info("from scratch: random weights of width %s", recipe.width)
        config = MobileViTV2Config(width_multiplier=recipe.width, **options)
        return MobileViTV2ForImageClassification(config), processor
    network = MobileViTV2ForImageClassification.from_pretrained(model, ignore_mismatched_sizes=True, **options)
    return network.float(), processor


def _run(
    network: nn.Module,
    recipe: ClassificationRecipe,
    folder: Path,
    train: PictureSplit,
    watched: PictureSplit | None,
    *,
    resume: bool,
) -> tuple[RecipeTrainer, bool]:
    """Train to the end or to a Ctrl-C; whether it was the latter."""
    from transformers.trainer_callback import PrinterCallback

    from mobilevitv2.train.checkpoints import latest_checkpoint, step_of
    from mobilevitv2.train.trainer import RecipeTrainer, restore_average, resumable_interrupt, training_arguments

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
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        if step_of(checkpoint) >= trainer.args.max_steps and (folder / "result.json").is_file():
            raise ConfigurationError(f"The run in {folder} is finished; its weights are in {folder / 'model'}.")
        restore_average(trainer, checkpoint)
        if is_first_process():
            logger.info("going on from %s", checkpoint)
    # Each process draws mixtures of its own.
    torch.manual_seed(recipe.seed + trainer.args.process_index)
    with _observed(trainer, folder, checkpoint), resumable_interrupt(trainer) as rhythm, few_host_threads(trainer.args.device):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer, rhythm.interrupted and trainer.state.global_step < trainer.state.max_steps


@contextmanager
def _observed(trainer: RecipeTrainer, folder: Path, checkpoint: Path | None) -> Iterator[None]:
    """Inside, the run is written down and shown."""
    from mobilevitv2.train.callbacks import MetricsFile, Progress, Scalars
    from mobilevitv2.train.checkpoints import step_of

    first = trainer.is_world_process_zero()
    progress = Progress(steps_per_epoch=trainer.steps_per_epoch, epochs=trainer.recipe.epochs, show=first)
    scalars = Scalars(folder / "tensorboard") if first else None
    resumed_at = 0 if checkpoint is None else step_of(checkpoint)
    trainer.add_callback(MetricsFile(folder / "metrics.jsonl", resumed_at=resumed_at, write=first))
    trainer.add_callback(progress)
    if scalars is not None:
        trainer.add_callback(scalars)
    try:
        yield
    finally:
        progress.close()
        if scalars is not None:
            trainer.remove_callback(scalars)
            scalars.close()


def command_of(
    data: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | nn.Module,
    recipe: str | os.PathLike[str] | ClassificationRecipe,
    overrides: dict[str, str] | None,
    output: str | os.PathLike[str],
) -> str:
    """The command line that does what a call of `train_classifier` does; a foreign module can only be named."""
    start = "mobilevitv2"
    if world_size() > 1:
        start = f"torchrun --nproc-per-node {world_size()} -m mobilevitv2"
    settings = [f"{key}={value}" for key, value in (overrides or {}).items()]
    words = [os.fspath(data), *settings, "--task", "classify"]
    words += ["--model", f"<{type(model).__name__}>" if isinstance(model, nn.Module) else os.fspath(model)]
    words += ["--recipe", str(Path(output) / "recipe.yaml") if isinstance(recipe, ClassificationRecipe) else os.fspath(recipe)]
    return f"{start} train {shlex.join([*words, '--output', os.fspath(output)])}"


def _settle(recipe: str | os.PathLike[str] | ClassificationRecipe, overrides: dict[str, str] | None) -> ClassificationRecipe:
    if not isinstance(recipe, ClassificationRecipe):
        return load_recipe(recipe, overrides)
    if overrides:
        raise ConfigurationError("Overrides go with a recipe's name; change a recipe object with dataclasses.replace.")
    return recipe


def _prepare_folder(folder: Path, recipe: ClassificationRecipe, *, resume: bool) -> Path:
    from mobilevitv2.train.checkpoints import check_same_run

    if not is_first_process():  # it writes nothing, and the first one may have begun to
        return folder
    if resume and not (folder / "recipe.yaml").is_file():
        raise ConfigurationError(f"{folder} holds no run to resume; check the output folder, or begin without --resume.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and any(folder.iterdir()):
            raise ConfigurationError(f"{folder} is not empty; name another output folder, or resume the run in it.")
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written to ({error.strerror}); name another output folder.") from error
    if resume:
        check_same_run(recipe, folder)
    return folder


def _checked(data: ClassificationData, *, check: bool) -> tuple[ClassificationData, str]:
    """The data without pictures that cannot be read, and the table of the check."""
    if data.train is None:
        raise DataError(f"{data.source} has no training pictures, only {', '.join(data.splits)}.")
    if not check:
        return data, ""
    report = check_classification_data(data)
    report.raise_if_errors()  # with the table
    if is_first_process():
        logger.info("%s", report.table())
    return replace(data, splits={name: report.usable(split) for name, split in data.splits.items()}), report.table()


def _cache(split: PictureSplit, recipe: ClassificationRecipe, side: int) -> DecodedPictures | None:
    """Decoded pictures in memory, where the recipe and the machine allow it."""
    too_large = not can_share_memory() or len(split) * side * side * 4 > CACHE_LIMIT
    if recipe.cache == "none" or (recipe.cache == "auto" and too_large):
        return None
    # Crops of a picture at 1.5 times the wanted side lose nothing that the smallest crops would show.
    cache = DecodedPictures(split, short_side=side * 3 // 2, threads=os.cpu_count() or 1)
    if is_first_process():
        logger.info("%d pictures of %s decoded into %.0f MB of memory", len(split), split.name, cache.nbytes / 1e6)
    return cache


def _save_recipe(recipe: ClassificationRecipe, folder: Path) -> None:
    import yaml

    values = {key: list(value) if isinstance(value, tuple) else value for key, value in recipe.to_dict().items()}
    if is_first_process():
        write_whole(folder / "recipe.yaml", yaml.safe_dump(values, sort_keys=False).encode())


def _require(name: str) -> None:
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise MissingDependency(f"Training needs {name}: pip install 'mobilevitv2[train]'.")
