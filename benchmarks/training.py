"""Training speed: the bare step, the Trainer's loop around the same step, and a whole run with its loader and augmentation.

    python benchmarks/training.py ../shared/data/objects --width 1.0 --size 256 --batch 256
    python benchmarks/training.py ../shared/data/objects --compile --models ours transformers timm

Forward, backward, clipped gradients, AdamW, and the running average are the same in all three: the loop takes the bare step's own
batch, which lies on the device and is augmented already; the run decodes, copies and augments. Rounds are interleaved, times are
those of many steps between two waits for the device, ratios are medians of those within a round. Prints as it goes. On a processor
only ratios mean anything.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peers import build
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from mobilevitv2.data.batches import PictureBatches
from mobilevitv2.data.classification import PictureSplit, open_classification_data
from mobilevitv2.train.augment import BatchAugmentation
from mobilevitv2.train.classify import ClassificationTask
from mobilevitv2.train.ema import WeightAverage
from mobilevitv2.train.recipe import ClassificationRecipe, recipe_of
from mobilevitv2.train.schedule import build_optimizer
from mobilevitv2.train.terminal import few_host_threads, quiet_transformers
from mobilevitv2.train.trainer import RecipeTrainer, training_arguments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Batch = tuple[Tensor, Tensor]


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def half_precision(recipe: ClassificationRecipe) -> contextlib.AbstractContextManager[Any]:
    """As the Trainer of that recipe has it."""
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=training_arguments(recipe, Path("unused"), count=10**6).bf16)


class BareStep:
    """Forward, backward, clipping, optimiser, average on one batch."""

    def __init__(self, network: nn.Module, recipe: ClassificationRecipe, batch: Batch) -> None:
        self.network = network.to(DEVICE).to(memory_format=torch.channels_last).train()
        self.forward: Callable[..., Any] = torch.compile(self.network) if recipe.compile else self.network
        self.optimizer = build_optimizer(self.network, recipe, recipe.width)
        self.average = WeightAverage(self.network, momentum=recipe.ema_momentum)
        self.parameters = list(self.network.parameters())
        self.batch, self.recipe, self.context = batch, recipe, half_precision(recipe)

    def run(self, steps: int, augment: Callable[[], Batch] | None = None) -> float:
        """Seconds a step."""
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            pictures, targets = self.batch if augment is None else augment()
            with self.context:
                logits = self.forward(pixel_values=pictures).logits
            F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.average.update()
        self.host = (time.perf_counter() - start) / steps
        wait()
        return (time.perf_counter() - start) / steps


class Clock(TrainerCallback):  # type: ignore[misc]
    """Takes the time of the steps after the first ones."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.start, self.seconds = first, last, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Waits for the device twice in a run."""
        if state.global_step == self.first:
            wait()
            self.start = time.perf_counter()
        elif state.global_step == self.last:
            wait()
            self.seconds = (time.perf_counter() - self.start) / (self.last - self.first)
            control.should_training_stop, control.should_save = True, False
        return control


class Resident(RecipeTrainer):
    """The Trainer on one batch that lies on the device."""

    resident: dict[str, Any]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The same batch again and again."""
        loader: DataLoader[Any] = DataLoader(range(10**6), batch_size=1, collate_fn=lambda _: self.resident)  # type: ignore[arg-type]
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]


def trained(
    kind: type[RecipeTrainer],
    network: nn.Module,
    task: ClassificationTask,
    pictures: PictureBatches,
    batch: Batch,
    *,
    first: int,
    steps: int,
) -> float:
    """Seconds a step of the Trainer, over `steps` steps after the `first`."""
    recipe = dataclasses.replace(task.recipe, epochs=10**5, save_every=10**5)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        settings = training_arguments(recipe, Path(folder), count=len(pictures))
        trainer = kind(network, task=task, arguments=settings, train=pictures, evaluation=None, width=recipe.width)
        if isinstance(trainer, Resident):
            trainer.resident = {"pixel_values": batch[0], "labels": batch[1], "indices": list(range(len(batch[0])))}
        clock = Clock(first, first + steps)
        trainer.add_callback(clock)
        with few_host_threads(trainer.args.device), contextlib.redirect_stdout(None):
            trainer.train()
    return clock.seconds


class Steps:
    """The three kinds of steps of one model, each ready to be timed."""

    def __init__(self, name: str, recipe: ClassificationRecipe, split: PictureSplit, steps: int, *, kernels: bool = False) -> None:
        self.recipe, self.steps = recipe, steps
        self.network = build(name, recipe.width, len(split.classes))
        if kernels:
            from mobilevitv2.kernels.training import use_training_kernels

            print(f"kernels in {use_training_kernels(self.network)} modules", flush=True)
        self.task = ClassificationTask(recipe)
        self.task.build(self.network, split.classes)
        self.pictures = self.task.train_batches(split)
        side, count = recipe.image_size, recipe.batch_size
        self.pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, device=DEVICE)
        self.labels = torch.randint(len(split.classes), (count,), device=DEVICE)
        assert self.task.augmentation is not None
        self.augmentation: BatchAugmentation = self.task.augmentation
        self.batch = self.augmentation(self.pixels, self.labels)
        self.bare = BareStep(copy.deepcopy(self.network), recipe, self.batch)
        self.bare.run(3)

    def kinds(self) -> Iterator[tuple[str, Callable[[], float]]]:
        """Name and what gives its seconds a step."""
        yield "bare step", lambda: self.bare.run(self.steps)
        yield "bare step and augmentation", lambda: self.bare.run(self.steps, lambda: self.augmentation(self.pixels, self.labels))
        yield "Trainer's loop", lambda: self._trainer(Resident, augment=False)
        yield "Trainer's run", lambda: self._trainer(RecipeTrainer, augment=True)

    def _trainer(self, kind: type[RecipeTrainer], *, augment: bool) -> float:
        self.task.augmentation = self.augmentation if augment else (lambda *_, **__: self.batch)  # type: ignore[assignment]
        network = copy.deepcopy(self.network)
        return trained(kind, network, self.task, self.pictures, self.batch, first=max(3, self.steps // 4), steps=self.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--models", nargs="+", default=["ours"], help="bare steps of transformers and timm beside ours")
    parser.add_argument("--recipe", default="small-scratch")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe, as cache=none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pictures", type=int, default=10**9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--kernels", action="store_true", help="the training kernels in ours")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    settings = {"image_size": arguments.size, "batch_size": arguments.batch, "width": arguments.width, "compile": arguments.compile}
    overrides = {name: str(value).lower() for name, value in settings.items()} | dict(pair.split("=") for pair in arguments.set)
    recipe = recipe_of(ClassificationRecipe, arguments.recipe, overrides)
    split = open_classification_data(arguments.data, validation_fraction=0.0).train
    assert split is not None
    split = split.select(range(min(arguments.pictures, len(split))))
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {len(split)} pictures, {overrides}", flush=True)
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "settings": overrides}
    for peer in [peer for peer in arguments.models if peer != "ours"]:
        steps = Steps(peer, recipe, split.select(range(min(len(split), arguments.batch))), arguments.steps)
        found[f"bare step of {peer}"] = arguments.batch / steps.bare.run(arguments.steps)
        print(f"bare step of {peer}: {found[f'bare step of {peer}']:,.0f} pictures a second", flush=True)
    start = time.perf_counter()
    steps = Steps("ours", recipe, split, arguments.steps, kernels=arguments.kernels)
    print(f"ready after {time.perf_counter() - start:.1f} s, decoding once included", flush=True)
    times: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        for kind, measure in steps.kinds():
            start = time.perf_counter()
            times.setdefault(kind, []).append(measure())
            told = f"{1e3 * times[kind][-1]:.1f} ms a step, {time.perf_counter() - start:.1f} s in all"
            host = f", {1e3 * steps.bare.host:.1f} ms of the host" if "bare" in kind else ""
            print(f"round {number + 1}, {kind}: {told}{host}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps({**found, "seconds a step": times}, indent=1))
    print("\n| | ms a step | pictures a second | of the bare step's speed |\n| --- | --- | --- | --- |")
    for kind, values in times.items():
        middle = statistics.median(values)
        share = statistics.median(bare / value for bare, value in zip(times["bare step"], values, strict=True))
        print(f"| {kind} | {1e3 * middle:.1f} | {arguments.batch / middle:,.0f} | {100 * share:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
