"""What happens between the steps: averaging, evaluating, saving, stopping, and telling how it goes."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.train.checkpoints import AVERAGE_FILE, save_state

if TYPE_CHECKING:
    from mobilevitv2.train.trainer import RecipeTrainer

logger = logging.getLogger(__name__)

AGREE_EVERY = 10
"""Steps between two questions to all processes whether one of them was interrupted; each makes the host wait for the device."""


class Rhythm(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
    """When to average, log, evaluate and save; a first Ctrl-C that ends the run with a checkpoint; a loss that is no number."""

    def __init__(self, trainer: RecipeTrainer) -> None:
        self.trainer = trainer
        self.interrupted = False
        self.last_logged = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count from the step that the run goes on from."""
        self.last_logged = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """After each optimiser step."""
        trainer, recipe = self.trainer, self.trainer.recipe
        trainer.average.update()
        done = state.global_step >= state.max_steps
        if state.global_step % trainer.steps_per_epoch == 0:
            epoch = state.global_step // trainer.steps_per_epoch
            control.should_log = True
            control.should_evaluate = trainer.watched is not None and (epoch % recipe.eval_every == 0 or done)
            control.should_save = epoch % recipe.save_every == 0 or done
        if self._stops(args, state):
            # Logged first, so that weights that are no numbers are found before they are saved.
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Look at the loss where it was read back anyway: a look at every step would make the host wait for the device."""
        if not logs or "loss" not in logs:
            return
        first, self.last_logged = self.last_logged + 1, state.global_step
        # Gradients that overflow are part of how float16 finds its scale; elsewhere they spoil the weights at once.
        norm = 0.0 if args.fp16 else logs.get("grad_norm", 0.0)
        if math.isfinite(logs["loss"]) and math.isfinite(norm):
            return
        what = f"the loss is {logs['loss']}" if not math.isfinite(logs["loss"]) else f"the gradients' norm is {norm}"
        raise ConfigurationError(
            f"{what} at step {state.global_step} (looked at over steps {first} to {state.global_step}); training stopped. "
            f"{self._whose()}Try a lower learning_rate (now {self.trainer.peak_rate:g}), more warmup_steps, or precision=fp32. "
            "Checkpoints from before are whole and can be resumed from."
        )

    def _whose(self) -> str:
        """The pictures of the batch that broke, where it was one of this process."""
        broken = self.trainer.first_broken()
        if broken is None:
            return ""
        step, files = broken
        return f"It began at step {step}, with {len(files)} pictures: {', '.join(files)}. Look at them and their annotations. "

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the average last: a checkpoint without it was cut off and is not resumed from."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            average = self.trainer.average
            with self.trainer.disk_answers(folder):
                save_state(average.module, folder / AVERAGE_FILE, about={"steps": str(average.steps)})

    def _stops(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether all processes stop after this step."""
        if args.world_size == 1:
            return self.interrupted
        if state.global_step % AGREE_EVERY:
            return False
        flag = torch.tensor(float(self.interrupted), device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        self.interrupted = bool(flag.item())
        return self.interrupted


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """Every log line as one JSON line, with the wall time since the run's start.

    Args:
        path: the file; lines are added.
        resumed_at: the step that the run goes on from; lines of later steps are dropped, since these steps are taken again.
        write: False in all processes but the first.
    """

    def __init__(self, path: Path, *, resumed_at: int = 0, write: bool = True) -> None:
        self.path, self.write = path, write
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_at] if resumed_at else []
        self.start = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)
        if write:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Add one line."""
        if self.write and logs:
            line = {"step": state.global_step, "seconds": round(time.monotonic() - self.start, 1), **logs}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that was cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            logger.warning("%s: a line that is no JSON was left out: %r", path, text[:40])
    return lines


class Scalars(TrainerCallback):  # type: ignore[misc]
    """Every log line for TensorBoard. transformers' own takes its folder from the environment, which a second run would share."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Add the numbers."""
        for name, value in (logs or {}).items():
            group, __, rest = name.partition("_")
            tag = f"eval/{rest}" if group == "eval" else f"train/{name}"
            self.writer.add_scalar(tag, value, state.global_step)

    def close(self) -> None:
        """Write what is still in memory."""
        self.writer.close()


class Progress(TrainerCallback):  # type: ignore[misc]
    """One bar over all steps on a terminal; elsewhere one log line an epoch.

    Args:
        steps_per_epoch: optimiser steps an epoch.
        epochs: how many there are.
        metric: the score to tell, in percent.
        label: what it is called.
        show: False in all processes but the first.
    """

    def __init__(self, *, steps_per_epoch: int, epochs: int, metric: str = "top1", label: str = "top-1", show: bool = True) -> None:
        self.steps_per_epoch, self.epochs, self.show = steps_per_epoch, epochs, show
        self.metric, self.label = f"eval_{metric}", label
        self.bar: Any = None
        self.seen: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar."""
        from tqdm import tqdm

        hidden = None if self.show else True  # None: tqdm asks whether standard error is a terminal
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit=" steps", disable=hidden)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        epoch = min(self.epochs, (state.global_step - 1) // self.steps_per_epoch + 1)
        self.bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
        self.bar.update(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """Take in loss and score; at the end of an epoch tell them."""
        logs = logs or {}
        if "loss" in logs:
            self.seen["loss"] = f"{logs['loss']:.3f}"
        if self.metric in logs:
            self.seen[self.label] = f"{logs[self.metric]:.2f} %"
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in self.seen.items()))
        elif self.show and self._ends_epoch(state, control, logs):
            told = [f"{name} {value}" for name, value in self.seen.items() if name == "loss" or self.metric in logs]
            logger.info("epoch %d/%d: %s", state.global_step // self.steps_per_epoch, self.epochs, ", ".join(told))

    def _ends_epoch(self, state: TrainerState, control: TrainerControl, logs: dict[str, float]) -> bool:
        """Whether nothing more is to come of this epoch: its evaluation, or its loss where it is not evaluated."""
        last = self.metric in logs or ("loss" in logs and not control.should_evaluate)
        return last and state.global_step % self.steps_per_epoch == 0

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
