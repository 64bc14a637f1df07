"""One run of training, the same for every task: from the data to a folder that people can use."""

from __future__ import annotations

import copy
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

from mobilevitv2.auto import task_class, told_task
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.devices import choose_device
from mobilevitv2.errors import ConfigurationError, DataError, ImageError, MissingDependency
from mobilevitv2.train.processes import is_first_process, world_size
from mobilevitv2.train.quantisation_aware import PICTURES, quantisation_aware, without_rounding
from mobilevitv2.train.recipe import save_recipe
from mobilevitv2.train.settings import Recipe
from mobilevitv2.train.task import Opened, TrainingTask
from mobilevitv2.train.terminal import few_host_threads, quiet_transformers

if TYPE_CHECKING:
    from mobilevitv2.train.trainer import RecipeTrainer

logger = logging.getLogger(__name__)

Model = str | os.PathLike[str] | nn.Module


@dataclass
class TrainingResult:
    """What a run left behind."""

    output: Path
    """The run's folder."""
    best: Path | None
    """The folder to load, predict with and ship: the averaged weights of the best evaluation on validation pictures, or the final
    ones where nothing could be chosen by. None after an interruption."""
    metrics: dict[str, float]
    """Scores in percent (a classifier's top1 and top5, a segmenter's miou and pixel_accuracy, a detector's ap, ap50 and ap75), and
    the loss where it is one of the scores, of `best` on the test pictures, or on the validation pictures if there are no others;
    after an interruption those of the last evaluation."""
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


def train_task(
    task: TrainingTask[Any],
    data: str | os.PathLike[str],
    *,
    model: Model,
    recipe: str | os.PathLike[str] | Recipe,
    output: Path,
    resume: bool,
    overrides: dict[str, str] | None,
    check: bool,
    strict: bool,
) -> TrainingResult:
    """Train by a task's recipe; see `train_classifier` for the arguments and errors. `recipe` is what the user named it by."""
    for name in ("accelerate", "tensorboard", "matplotlib"):
        _require(name)
    command = command_of(data, task=task.name, model=model, recipe=recipe, overrides=overrides, output=output, strict=strict)
    settings = task.recipe
    if "width" in (overrides or {}) and not isinstance(model, nn.Module) and os.fspath(model) != "scratch":
        raise ConfigurationError(f"width={settings.width} goes with --model scratch; {os.fspath(model)} has a width of its own.")
    folder = _prepare_folder(output, settings, resume=resume)
    opened, report = _checked(task.open(data), task, check=check, strict=strict)
    torch.manual_seed(settings.seed)
    with quiet_transformers():
        network = task.build(_begun_with(folder, model) if resume else model, opened.classes)
        if settings.quantise_for != "none":
            network.to("cpu" if world_size() > 1 else choose_device(None))  # where grids are found in seconds
            network = quantisation_aware(network, _calibration(task, opened), settings.quantise_for)
        if is_first_process():
            save_recipe(settings, folder / "recipe.yaml")
        start = time.monotonic()
        trainer, interrupted = _run(network, task, folder, opened, resume=resume)
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
            _finish(result, trainer, task, opened, command)
    trainer.accelerator.end_training()
    return result


def begin(
    task: str, model: str | os.PathLike[str], recipe: Recipe, *, options: dict[str, Any], head: dict[str, Any] | None = None
) -> nn.Module:
    """A network of ours to train, in float32.

    Args:
        task: what it is to learn.
        model: "scratch", or what `from_pretrained` takes.
        recipe: its width is that of random weights.
        options: of the configuration.
        head: further ones, which a model of the same task has settled already.
    """
    head = head or {}
    if recipe.activation:
        options = {**options, "hidden_act": recipe.activation}
    if os.fspath(model) == "scratch":
        logger.info("from scratch: random weights of width %s", recipe.width)
        return task_class(task)(MobileViTV2Config(width_multiplier=recipe.width, **options, **head))
    if head and told_task(model) == task:
        logger.info("%s is a model to %s already; it keeps its own %s", os.fspath(model), task, ", ".join(head))
        head = {}
    network: nn.Module = task_class(task).from_pretrained(model, ignore_mismatched_sizes=True, **options, **head)
    return network.float()


def _finish(result: TrainingResult, trainer: RecipeTrainer, task: TrainingTask[Any], data: Opened, command: str) -> None:
    """Write the weights, those chosen and those of the end, and the report on them."""
    from mobilevitv2.train.checkpoints import load_best
    from mobilevitv2.train.report import save_network, write_report

    network, processor = without_rounding(trainer.average.module), task.processor()
    if trainer.best is not None:
        result.last, result.chosen_step = result.output / "last", trainer.best.step
        save_network(task.shipped(copy.deepcopy(network)), processor, result.last)
        load_best(network, result.output / "checkpoints")
    with few_host_threads(trainer.args.device):
        write_report(result, task.shipped(network), processor, task=task, data=data, command=command)


def _calibration(task: TrainingTask[Any], data: Opened) -> list[torch.Tensor]:
    """Training pictures, drawn evenly, as the image processor gives them; without those that cannot be read, as in training."""
    processor, train = task.processor(), data.train
    assert train is not None
    found = []
    drawn = torch.linspace(0, len(train) - 1, min(PICTURES, len(train))).long()
    # Mixed: the first of them are looked at alone, and folders of classes are read one after the other.
    for index in drawn[torch.randperm(len(drawn), generator=torch.Generator().manual_seed(0))].tolist():
        try:
            picture = train.read(index)
        except ImageError as error:
            logger.warning("no values are looked at on %s: %s", train.describe(index), error)
            continue
        found.append(processor(images=picture, return_tensors="pt")["pixel_values"][0])
    if not found:
        raise DataError(f"none of the training pictures that were drawn from {data.source} can be read; run the data check.")
    return found


def _begun_with(folder: Path, model: Model) -> Model:
    """The newest checkpoint of a run, as the model to go on with: whoever resumes need not say again what it began with."""
    from mobilevitv2.train.checkpoints import latest_checkpoint

    checkpoint = latest_checkpoint(folder)
    if isinstance(model, nn.Module) or checkpoint is None or not (checkpoint / "config.json").is_file():
        return model
    return checkpoint


def _run(network: nn.Module, task: TrainingTask[Any], folder: Path, data: Opened, *, resume: bool) -> tuple[RecipeTrainer, bool]:
    """Train to the end or to a Ctrl-C; whether it was the latter."""
    from transformers.trainer_callback import PrinterCallback

    from mobilevitv2.kernels.training import drop_training_kernels, use_training_kernels
    from mobilevitv2.train.checkpoints import latest_checkpoint, step_of
    from mobilevitv2.train.trainer import RecipeTrainer, restore_average, resumable_interrupt, training_arguments

    recipe, train, watched = task.recipe, data.train, data.validation or data.test
    assert train is not None
    trainer = RecipeTrainer(
        network,
        task=task,
        arguments=training_arguments(recipe, folder, count=len(train)),
        train=task.train_batches(train),
        evaluation=None if watched is None else task.eval_batches(watched),
        width=float(getattr(getattr(network, "config", None), "width_multiplier", recipe.width)),
    )
    if recipe.kernels == "auto" and not recipe.compile and trainer.args.device.type == "cuda":
        use_training_kernels(trainer.plain_model)  # behind the copy that is averaged, evaluated and shipped
    trainer.remove_callback(PrinterCallback)
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is not None:
        if step_of(checkpoint) >= trainer.args.max_steps and (folder / "result.json").is_file():
            raise ConfigurationError(f"The run in {folder} is finished; its weights are in {folder / 'model'}.")
        restore_average(trainer, checkpoint)
        if is_first_process():
            logger.info("going on from %s", checkpoint)
    # Each process draws augmentations of its own.
    torch.manual_seed(recipe.seed + trainer.args.process_index)
    try:
        with _observed(trainer, folder, checkpoint), resumable_interrupt(trainer) as rhythm, few_host_threads(trainer.args.device):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:  # the network may be the caller's own
        drop_training_kernels(trainer.plain_model)
    return trainer, rhythm.interrupted and trainer.state.global_step < trainer.state.max_steps


@contextmanager
def _observed(trainer: RecipeTrainer, folder: Path, checkpoint: Path | None) -> Iterator[None]:
    """Inside, the run is written down and shown."""
    from mobilevitv2.train.callbacks import MetricsFile, Progress, Scalars
    from mobilevitv2.train.checkpoints import step_of

    first, task = trainer.is_world_process_zero(), trainer.task
    progress = Progress(
        steps_per_epoch=trainer.steps_per_epoch,
        epochs=task.recipe.epochs,
        metric=task.metric,
        label=task.metric_label,
        show=first,
    )
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
    task: str,
    model: Model,
    recipe: str | os.PathLike[str] | Recipe,
    overrides: dict[str, str] | None,
    output: Path,
    strict: bool = False,
) -> str:
    """The command line that does what a call does; a foreign module can only be named."""
    start = "mobilevitv2"
    if world_size() > 1:
        start = f"torchrun --nproc-per-node {world_size()} -m mobilevitv2"
    settings = [f"{key}={value}" for key, value in (overrides or {}).items()]
    words = [os.fspath(data), *settings, "--task", task]
    words += ["--model", f"<{type(model).__name__}>" if isinstance(model, nn.Module) else os.fspath(model)]
    words += ["--recipe", str(output / "recipe.yaml") if isinstance(recipe, Recipe) else os.fspath(recipe)]
    return f"{start} train {shlex.join([*words, *(['--strict'] if strict else []), '--output', os.fspath(output)])}"


def _prepare_folder(folder: Path, recipe: Recipe, *, resume: bool) -> Path:
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


def _checked(data: Any, task: TrainingTask[Any], *, check: bool, strict: bool) -> tuple[Opened, str]:
    """The data without pictures that cannot be read, and the table of the check."""
    if data.train is None:
        raise DataError(f"{data.source} has no training pictures, only {', '.join(data.splits)}.")
    if not check:
        return data, ""
    report = task.check(data, strict=strict)
    report.raise_if_errors()  # with the table
    if is_first_process():
        logger.info("%s", report.table())
    return replace(data, splits={name: report.usable(split) for name, split in data.splits.items()}), report.table()


def _require(name: str) -> None:
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise MissingDependency(f"Training needs {name}: pip install 'mobilevitv2[train]'.")
