"""transformers' Trainer with what a recipe adds: batches of bytes augmented on the device, a schedule in optimiser steps, averaged
weights, and evaluation of that average."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState, TrainingArguments

from mobilevitv2.data.batches import EpochBatches, SampleBatches, stack_samples, worker_context
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.train.callbacks import Rhythm
from mobilevitv2.train.checkpoints import AVERAGE_FILE, Best, best_so_far, latest_checkpoint, save_best, step_of
from mobilevitv2.train.ema import WeightAverage
from mobilevitv2.train.processes import with_common_norms, world_size
from mobilevitv2.train.schedule import build_optimizer, learning_rate_factor
from mobilevitv2.train.settings import Recipe
from mobilevitv2.train.task import TrainingTask
from mobilevitv2.train.watching import WatchedBatches

logger = logging.getLogger(__name__)


LOGGED_EVERY = 50
"""Steps between two looks at the loss, or an epoch where that is shorter."""


class RecipeTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types
    """Trains by a task's recipe. `average` holds the running average of the weights, `metrics` the last evaluation of it; where the
    pictures to watch are a validation split, `best` says which evaluation was the best, and its weights lie beside the checkpoints.
    By a test split nothing is chosen.

    Args:
        model: what the task trains.
        task: computes the loss and the scores; its recipe has every number of the run.
        arguments: transformers' own arguments, from `training_arguments`.
        train: the training pictures.
        evaluation: the pictures to watch, or None.
        width: the model's width multiplier, for numbers that depend on it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        task: TrainingTask[Any],
        arguments: TrainingArguments,
        train: SampleBatches[Any],
        evaluation: SampleBatches[Any] | None,
        width: float,
    ) -> None:
        recipe: Recipe = task.recipe
        self.task, self.recipe = task, recipe
        self.watched = None
        if evaluation is not None:
            self.watched = WatchedBatches(
                evaluation, batch=task.eval_batch, workers=worker_count(recipe), keep=recipe.cache != "none", loader=make_loader
            )
        self.chooses = evaluation is not None and evaluation.split.name == "validation"
        self.best: Best | None = None
        self.metrics: dict[str, float] = {}
        self.seen: deque[tuple[int, list[int], Tensor]] = deque(maxlen=LOGGED_EVERY * recipe.accumulate)
        self.parts: dict[str, list[Tensor]] = {}
        self.steps_per_epoch = max(1, len(train) // batch_size(recipe, len(train)))
        self.peak_rate = recipe.at_width(recipe.learning_rate, width)
        model.to(arguments.device)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        if recipe.sync_norms:
            model = with_common_norms(model, arguments.device)
        self.plain_model = model
        optimizer = build_optimizer(model, recipe, width)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(recipe, width, self.steps_per_epoch))
        self.average = WeightAverage(model, momentum=recipe.ema_momentum or 1.0, warmup=recipe.ema_warmup)
        super().__init__(model, arguments, train_dataset=train, optimizers=(optimizer, schedule))
        # Our loss is a mean over the batch and wants dividing by the accumulated batches, whatever the model's forward accepts.
        self.model_accepts_loss_kwargs = False
        self.copying: torch.cuda.Stream | None = None
        self.rhythm = Rhythm(self)
        self.add_callback(self.rhythm)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All epochs as one stream of batches, so that the workers never run dry between epochs."""
        recipe, train, world = self.recipe, self.train_dataset, self.args.world_size
        step = batch_size(recipe, len(train))
        parts = recipe.accumulate * world
        batches = EpochBatches(len(train), step // parts, epochs=recipe.epochs, seed=recipe.seed, per_step=parts)
        loader = make_loader(train, batches, workers=worker_count(recipe), pin=self.args.device.type == "cuda")
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The next batches, copied to a GPU on a stream of their own, while it still works on the step before."""
        if device.type != "cuda":
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.copying is None:
            self.copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        working = torch.cuda.current_stream(device)
        with torch.cuda.stream(self.copying):
            samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        working.wait_stream(self.copying)
        for tensor in filter(torch.is_tensor, chain.from_iterable(batch.values() for batch in samples)):
            if tensor.is_cuda:
                tensor.record_stream(working)  # its memory is not given away before the step has read it
        return samples, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task's loss; its pictures are remembered, and its parts for the logs, all without waiting for the device."""
        step = self.state.global_step
        with self._lone_picture_told(len(inputs["indices"])):
            found = self.task.loss(model, inputs, epochs_left=self.recipe.epochs - step / self.steps_per_epoch)
        self.seen.append((step + 1, inputs["indices"], found.loss.detach()))
        for name, part in found.parts.items():
            self.parts.setdefault(name, []).append(part)
        return (found.loss, found.outputs) if return_outputs else found.loss

    @contextmanager
    def _lone_picture_told(self, pictures: int) -> Iterator[None]:
        """Inside, torch's refusal to take the variance of a single value (a map of one pixel of one picture) says what to do."""
        try:
            yield
        except ValueError as error:
            if pictures > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise ConfigurationError(
                "1 picture at a time is too few to train on: batch norms on maps of one pixel have nothing to take a mean of. "
                f"Steps take batch_size={batch_size(self.recipe, len(self.train_dataset))} pictures, in "
                f"accumulate={self.recipe.accumulate} parts on {world_size()} processes; leave at least 2 for each part."
            ) from error

    def first_broken(self) -> tuple[int, list[str]] | None:
        """The first step since the last look at the loss whose loss was no number, and the files of its batch in this process."""
        for step, indices, loss in self.seen:
            if not loss.isfinite():
                return step, [self.train_dataset.split.describe(index) for index in indices]
        return None

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The scores of the averaged weights on the watched pictures."""
        if self.watched is None:
            return {}
        metrics = evaluate_batches(
            self.task,
            self.average.module,
            self.watched.on(self.args.device),
            self.watched.pictures.split,
            dtype=autocast_dtype(self.args),
        )
        self.metrics = metrics
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(named)
        self._keep_if_best(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def _keep_if_best(self, metrics: dict[str, float]) -> None:
        now = Best(metrics[self.task.metric], metrics.get("loss", 0.0), self.state.global_step)
        if self.chooses and (self.best is None or self.best.beaten_by(now)):
            self.best = now
            if self.is_world_process_zero():
                with self.disk_answers(None):
                    save_best(self.average.module, Path(self.args.output_dir), now)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: transformers would count the parameters anew at every step."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # A foreign module's tensors lie channels last in memory, which safetensors does not write.
        tensors = state_dict or self.plain_model.state_dict()
        super()._save(output_dir, state_dict={name: tensor.contiguous() for name, tensor in tensors.items()})

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.disk_answers(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    @contextmanager
    def disk_answers(self, folder: Path | None) -> Iterator[None]:
        """Inside, a full or failing disk ends the run with what to do about it, and the half-written checkpoint is removed.

        Raises:
            OSError: with the reason, and the checkpoint to go on from.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors report a full disk in their own ways
            if isinstance(error, RuntimeError) and not any(
                name in str(error) for name in ("PytorchStreamWriter", "inline_container")
            ):
                raise
            where = folder or Path(self.args.output_dir)
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            whole = latest_checkpoint(Path(self.args.output_dir).parent)
            go_on = "start again" if whole is None else f"resume, which goes on from step {step_of(whole)}"
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            remedy = (
                "free some space"
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                else "see to the disk"
            )
            raise OSError(
                f"{where} could not be written at step {self.state.global_step} ({reason}); {remedy}, then {go_on}"
            ) from error

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        # The checkpoint's base rates would silently win over a learning rate or decay that was changed for going on.
        wanted = [(group["initial_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        self.lr_scheduler.base_lrs = [rate for rate, _ in wanted]
        factor = self.lr_scheduler.lr_lambdas[0](self.lr_scheduler.last_epoch)
        for group, (rate, decay) in zip(self.optimizer.param_groups, wanted, strict=True):
            group.update(initial_lr=rate, lr=rate * factor, weight_decay=decay)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs count epochs of the data, not of the one long stream, and have the parts of the loss beside it."""
        if "loss" in logs:
            logs = {**logs, **{name: torch.stack(values).mean().item() for name, values in self.parts.items()}}
            self.parts = {}
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, start_time)


def training_arguments(recipe: Recipe, output: Path, *, count: int) -> TrainingArguments:
    """The recipe in transformers' words, for `count` training pictures."""
    steps_per_epoch = max(1, count // batch_size(recipe, count))
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=recipe.epochs * steps_per_epoch,
        per_device_train_batch_size=max(1, batch_size(recipe, count) // recipe.accumulate // world_size()),
        gradient_accumulation_steps=recipe.accumulate,
        max_grad_norm=recipe.clip_grad_norm,
        bf16=recipe.precision == "bf16" or (recipe.precision == "auto" and cuda and torch.cuda.is_bf16_supported()),
        fp16=recipe.precision == "fp16",
        torch_compile=recipe.compile,
        logging_steps=min(LOGGED_EVERY, max(1, steps_per_epoch)),
        logging_nan_inf_filter=False,  # it would read the loss back from the device at every step
        save_strategy="no",  # the recipe's rhythm says when
        eval_strategy="no",
        save_total_limit=2,
        report_to=[],  # our own callbacks write the logs
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),  # not told so, several processes without a device would each train alone
        remove_unused_columns=False,
        seed=recipe.seed,
        ddp_find_unused_parameters=False,
        accelerator_config={"non_blocking": True, "split_batches": False},
    )
    if arguments.world_size != world_size():
        raise ConfigurationError(
            f"WORLD_SIZE={world_size()} is set, but {arguments.world_size} processes found each other; start them with torchrun or "
            "accelerate launch, or unset it."
        )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process a device: never torch's DataParallel over the devices in sight
    return arguments


def batch_size(recipe: Recipe, count: int) -> int:
    """Pictures an optimiser step: the recipe's batch, or the largest that `count` pictures fill and that can be divided alike.

    Raises:
        ConfigurationError: the batch cannot be divided among the processes.
        DataError: too few pictures for one in each part.
    """
    parts = recipe.accumulate * world_size()
    if recipe.batch_size % parts:
        raise ConfigurationError(
            f"batch_size={recipe.batch_size} cannot be divided into accumulate={recipe.accumulate} batches on each of "
            f"{world_size()} processes; use a multiple of {parts}."
        )
    if count < parts:
        raise DataError(
            f"{count} training pictures are too few for accumulate={recipe.accumulate} batches a step on {world_size()} processes."
        )
    return min(recipe.batch_size, count // parts * parts)


def worker_count(recipe: Recipe) -> int:
    """Decoding processes: the recipe's number, or one a core and at most 16."""
    if recipe.workers >= 0:
        return recipe.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def make_loader(pictures: SampleBatches[Any], batches: Any, *, workers: int, pin: bool) -> DataLoader[Any]:
    """Batches in order, decoded ahead by `workers` processes."""
    return DataLoader(
        pictures,
        batch_sampler=batches,
        collate_fn=stack_samples,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_interrupts_to_parent,
        multiprocessing_context=worker_context() if workers else None,
    )


def _leave_interrupts_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the workers too


def autocast_dtype(arguments: TrainingArguments) -> torch.dtype | None:
    """The half-precision type of the run, or None."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None


@torch.inference_mode()
def evaluate_batches(
    task: TrainingTask[Any], model: nn.Module, batches: Iterable[dict[str, Any]], split: Any, *, dtype: torch.dtype | None
) -> dict[str, float]:
    """A task's scores of a network in evaluation mode, without gradients."""
    return task.evaluate(model, batches, split, dtype=dtype)


def restore_average(trainer: RecipeTrainer, checkpoint: Path) -> None:
    """Bring the averaged weights, and the best so far, back to where the checkpoint has them."""
    trainer.average.module.load_state_dict(load_file(checkpoint / AVERAGE_FILE))
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer.average.steps = state.global_step
    if trainer.chooses:
        trainer.best = best_so_far(checkpoint.parent)


@contextmanager
def resumable_interrupt(trainer: RecipeTrainer) -> Iterator[Rhythm]:
    """The first Ctrl-C ends the run after the current step, with a checkpoint; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield trainer.rhythm
        return

    def on_signal(number: int, frame: Any) -> None:
        logger.warning("stopping after this step; a second Ctrl-C stops at once")
        trainer.rhythm.interrupted = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield trainer.rhythm
    finally:
        signal.signal(signal.SIGINT, previous)
