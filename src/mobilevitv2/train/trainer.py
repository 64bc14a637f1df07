"""transformers' Trainer with what a recipe adds: batches of bytes augmented on the device, a schedule in optimiser steps, averaged
weights, and evaluation of that average."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mobilevitv2.data.batches import EpochBatches, PictureBatches
from mobilevitv2.errors import DataError
from mobilevitv2.train.augment import BatchAugmentation, to_float
from mobilevitv2.train.ema import WeightAverage
from mobilevitv2.train.recipe import ClassificationRecipe

logger = logging.getLogger(__name__)

AVERAGE_FILE = "average.safetensors"


class RecipeTrainer(Trainer):  # type: ignore[misc]  # transformers ships no types
    """Trains a classifier by a recipe. `average` holds the weights to keep.

    Args:
        model: takes `pixel_values`, gives an output with `logits`.
        recipe: every number of the run.
        arguments: transformers' own arguments, from `training_arguments`.
        train: the training pictures.
        evaluation: the pictures to watch, or None.
        num_labels: number of classes.
        width: the model's width multiplier, for numbers that depend on it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        recipe: ClassificationRecipe,
        arguments: TrainingArguments,
        train: PictureBatches,
        evaluation: PictureBatches | None,
        num_labels: int,
        width: float,
    ) -> None:
        self.recipe = recipe
        self.watched = evaluation
        self.steps_per_epoch = max(1, len(train) // batch_size(recipe, len(train)))
        self.augmentation = BatchAugmentation(
            num_labels,
            randaugment_operations=recipe.randaugment_operations,
            randaugment_magnitude=recipe.randaugment_magnitude,
            erasing=recipe.erasing,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            mix_probability=recipe.mix_probability,
        )
        model.to(arguments.device)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plain_model = model
        optimizer = build_optimizer(model, recipe, width)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(recipe, width, self.steps_per_epoch))
        self.average = WeightAverage(model, momentum=recipe.ema_momentum or 1.0, warmup=recipe.ema_warmup)
        super().__init__(model, arguments, train_dataset=train, optimizers=(optimizer, schedule))
        self.add_callback(_Rhythm(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """All epochs as one stream of batches, so that the workers never run dry between epochs."""
        recipe, train = self.recipe, self.train_dataset
        micro_batch = batch_size(recipe, len(train)) // recipe.accumulate
        batches = EpochBatches(len(train), micro_batch // self.args.world_size, epochs=recipe.epochs, seed=recipe.seed)
        return self.accelerator.prepare(make_loader(train, batches, workers=worker_count(recipe), pin=self.args.device.type == "cuda"))  # type: ignore[no-any-return]

    def compute_loss(  # type: ignore[no-untyped-def]
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch=None
    ) -> Any:
        """Cross-entropy against the mixed labels."""
        mixing = self.state.global_step < (self.recipe.epochs - self.recipe.unmixed_epochs) * self.steps_per_epoch
        pictures, targets = self.augmentation(inputs["pixel_values"], inputs["labels"], mixing=mixing)
        outputs = model(pixel_values=pictures)
        loss = F.cross_entropy(outputs.logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Top-1, top-5 and loss of the averaged weights on the watched pictures."""
        if self.watched is None:
            return {}
        metrics = evaluate_batches(
            self.average.module, self.watched, device=self.args.device, workers=worker_count(self.recipe), dtype=autocast_dtype(self.args)
        )
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: transformers would count the parameters anew at every step."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # A foreign module's tensors lie channels last in memory, which safetensors does not write.
        tensors = state_dict or self.plain_model.state_dict()
        super()._save(output_dir, state_dict={name: tensor.contiguous() for name, tensor in tensors.items()})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs count epochs of the data, not of the one long stream."""
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        super().log(logs, start_time)


class _Rhythm(TrainerCallback):  # type: ignore[misc]
    """When to average, evaluate and save; and a first Ctrl-C that ends the run with a checkpoint."""

    def __init__(self, trainer: RecipeTrainer) -> None:
        self.trainer = trainer
        self.interrupted = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        trainer, recipe = self.trainer, self.trainer.recipe
        trainer.average.update()
        done = state.global_step >= state.max_steps
        if state.global_step % trainer.steps_per_epoch == 0:
            epoch = state.global_step // trainer.steps_per_epoch
            control.should_evaluate = trainer.watched is not None and (epoch % recipe.eval_every == 0 or done)
            control.should_save = epoch % recipe.save_every == 0 or done
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Written last: a checkpoint without it was cut off and is not resumed from.
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            tensors = {name: tensor.contiguous() for name, tensor in self.trainer.average.module.state_dict().items()}
            save_file(tensors, folder / f"{AVERAGE_FILE}.part", metadata={"steps": str(self.trainer.average.steps)})
            os.replace(folder / f"{AVERAGE_FILE}.part", folder / AVERAGE_FILE)


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Every log line as one JSON line, with the wall time since the run's start."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "seconds": round(time.monotonic() - self.start, 1), **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def training_arguments(recipe: ClassificationRecipe, output: Path, *, count: int) -> TrainingArguments:
    """The recipe in transformers' words, for `count` training pictures."""
    steps_per_epoch = max(1, count // batch_size(recipe, count))
    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output / "tensorboard"))
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        max_steps=recipe.epochs * steps_per_epoch,
        per_device_train_batch_size=max(1, batch_size(recipe, count) // recipe.accumulate // world),
        gradient_accumulation_steps=recipe.accumulate,
        max_grad_norm=recipe.clip_grad_norm,
        bf16=recipe.precision == "bf16" or (recipe.precision == "auto" and cuda and torch.cuda.is_bf16_supported()),
        fp16=recipe.precision == "fp16",
        torch_compile=recipe.compile,
        logging_steps=min(50, max(1, steps_per_epoch)),
        logging_nan_inf_filter=False,  # it would read the loss back from the device at every step
        save_strategy="no",  # the recipe's rhythm says when
        eval_strategy="no",
        save_total_limit=2,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        seed=recipe.seed,
        ddp_find_unused_parameters=False,
        accelerator_config={"non_blocking": True, "split_batches": False},
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process a device: never torch's DataParallel over the devices in sight
    return arguments


def batch_size(recipe: ClassificationRecipe, count: int) -> int:
    """The recipe's batch, or the largest whole number of accumulated batches that `count` pictures fill."""
    if count < recipe.accumulate:
        raise DataError(f"{count} training pictures are too few for accumulate={recipe.accumulate} batches a step.")
    return min(recipe.batch_size, count // recipe.accumulate * recipe.accumulate)


def worker_count(recipe: ClassificationRecipe) -> int:
    """Decoding processes: the recipe's number, or one a core and at most 16."""
    return recipe.workers if recipe.workers >= 0 else min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def make_loader(pictures: PictureBatches, batches: Any, *, workers: int, pin: bool) -> DataLoader[Any]:
    """Batches in order, decoded ahead by `workers` processes."""
    return DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_interrupts_to_parent,
    )


def _leave_interrupts_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the workers too


def build_optimizer(model: nn.Module, recipe: ClassificationRecipe, width: float) -> torch.optim.Optimizer:
    """AdamW or SGD; one-dimensional parameters (norms, biases) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.at_width(recipe.weight_decay, width)},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = recipe.at_width(recipe.learning_rate, width)
    fused = all(p.is_cuda for p in parameters)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=fused)


def learning_rate_factor(recipe: ClassificationRecipe, width: float, steps_per_epoch: int) -> Callable[[int], float]:
    """Share of the peak rate at each optimiser step: linear warm-up, then cosine down to the lowest rate, or constant."""
    peak, lowest = recipe.at_width(recipe.learning_rate, width), recipe.at_width(recipe.min_learning_rate, width)
    total = recipe.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < recipe.warmup_steps:
            start = recipe.warmup_learning_rate / peak
            return start + (1 - start) * step / recipe.warmup_steps
        if recipe.schedule == "constant":
            return 1.0
        if recipe.schedule_per_epoch:
            progress = (step // steps_per_epoch) / recipe.epochs
        else:
            progress = (step - recipe.warmup_steps) / max(1, total - recipe.warmup_steps)
        return (lowest + (peak - lowest) * (1 + math.cos(math.pi * min(1.0, progress))) / 2) / peak

    return factor


def autocast_dtype(arguments: TrainingArguments) -> torch.dtype | None:
    """The half-precision type of the run, or None."""
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None


@torch.inference_mode()
def evaluate_batches(
    model: nn.Module, pictures: PictureBatches, *, device: torch.device, workers: int, dtype: torch.dtype | None, batch: int = 256
) -> dict[str, float]:
    """Top-1 and top-5 in percent and the mean cross-entropy; read back from the device once, at the end."""
    order = [list(range(start, min(start + batch, len(pictures)))) for start in range(0, len(pictures), batch)]
    totals = torch.zeros(3, device=device)
    for inputs in make_loader(pictures, order, workers=workers, pin=device.type == "cuda"):
        pixels, labels = (inputs[name].to(device, non_blocking=True) for name in ("pixel_values", "labels"))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(pixel_values=to_float(pixels)).logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        totals += torch.stack([best[:, 0].sum(), best.sum(), F.cross_entropy(logits, labels, reduction="sum")])
    top1, top5, loss = (totals / max(1, len(pictures))).tolist()
    return {"top1": 100 * top1, "top5": 100 * top5, "loss": loss}


def latest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    found = [path.parent for path in (output / "checkpoints").glob(f"checkpoint-*/{AVERAGE_FILE}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def restore_average(trainer: RecipeTrainer, checkpoint: Path) -> None:
    """Bring the averaged weights back to where the checkpoint has them."""
    trainer.average.module.load_state_dict(load_file(checkpoint / AVERAGE_FILE))
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer.average.steps = state.global_step


@contextmanager
def resumable_interrupt(trainer: RecipeTrainer) -> Iterator[_Rhythm]:
    """The first Ctrl-C ends the run after the current step, with a checkpoint; a second one ends it at once."""
    rhythm = next(c for c in trainer.callback_handler.callbacks if isinstance(c, _Rhythm))

    def on_signal(number: int, frame: Any) -> None:
        logger.warning("stopping after this step; a second Ctrl-C stops at once")
        rhythm.interrupted = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield rhythm
    finally:
        signal.signal(signal.SIGINT, previous)
