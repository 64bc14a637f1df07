"""The verb `train`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from mobilevitv2.cli.arguments import Argument
from mobilevitv2.cli.output import note, say
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.train.run import TrainingResult

DATA_HELP = (
    "classify: image folder, parquet files, folder of `datasets`, hub id; segment: also images and masks folders, VOC, ADE20K; "
    "detect: also COCO json, VOC xml, YOLO txt"
)
RECIPES = {"classify": "small", "segment": "segment-small", "detect": "detect-small"}
SCORES = {"top1": "top-1", "top5": "top-5", "miou": "mIoU", "ap": "AP", "ap50": "AP50", "ap75": "AP75"}
INTERRUPTED = 130


def train(
    data: Annotated[str, Argument(DATA_HELP, metavar="DATA")],
    settings: Annotated[
        list[str], Argument("settings of the recipe to replace: epochs=30 learning_rate=0.001", metavar="KEY=VALUE")
    ],
    *,
    task: Annotated[Literal["classify", "segment", "detect"], Argument("what to learn")] = "classify",
    model: Annotated[str, Argument("name, folder, weights file or hub id to start from, or scratch")] = "scratch",
    recipe: Annotated[
        str | None, Argument("name of a recipe, or a YAML file; without it small, segment-small or detect-small")
    ] = None,
    output: Annotated[
        str | None, Argument("folder of the run, new or empty unless --resume; without it runs/TASK", metavar="DIR")
    ] = None,
    resume: Annotated[bool, Argument("go on where the run in --output stopped")] = False,
    strict: Annotated[bool, Argument("refuse data with anything broken in them, instead of leaving that out")] = False,
) -> int:
    """Train a classifier, a segmenter or a detector on your own pictures.

    The data are checked before the first step. Ctrl-C stops after the current step and leaves a run that --resume goes on with
    (exit code 130).
    """
    from mobilevitv2.cli.quiet import quiet_libraries
    from mobilevitv2.train.processes import is_first_process

    overrides = _settings(settings)
    quiet_libraries()
    with _telling():
        result = _trainer(task)(
            data,
            model=model,
            recipe=recipe or RECIPES[task],
            output=output or f"runs/{task}",
            resume=resume,
            overrides=overrides,
            strict=strict,
        )
    if not is_first_process():
        return INTERRUPTED if result.interrupted else 0
    if result.interrupted:
        note(f"interrupted after {result.steps} steps; the same command with --resume goes on (run: {result.output})")
        return INTERRUPTED
    scores = ", ".join(_told(name, value) for name, value in result.metrics.items() if isinstance(value, float))
    say(f"{result.steps} steps in {result.seconds / 60:.1f} minutes" + (f"; {scores}" if scores else ""))
    if result.best is not None:
        say(f"the model: {result.best}; try `mobilevitv2 predict PICTURE --model {result.best}`")
    return 0


def _told(name: str, value: float) -> str:
    """A score as the epochs' lines have it; all but the loss are in percent."""
    return f"loss {value:.3f}" if name == "loss" else f"{SCORES.get(name, name.replace('_', ' '))} {value:.2f} %"


def _trainer(task: str) -> Callable[..., TrainingResult]:
    if task == "segment":
        from mobilevitv2.train.segment import train_segmenter

        return train_segmenter
    if task == "detect":
        from mobilevitv2.train.detect import train_detector

        return train_detector
    from mobilevitv2.train.classify import train_classifier

    return train_classifier


@contextmanager
def _telling() -> Iterator[None]:
    """Inside, what training has to say (the check's table, where it goes on from, epochs where there is no bar) is shown."""
    logger = logging.getLogger("mobilevitv2.train")
    handler, level = _Told(), logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Told(logging.Handler):
    """Notes on standard error as they are; warnings are the command's own to show."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.INFO <= record.levelno < logging.WARNING:
            sys.stderr.write(record.getMessage() + "\n")


def _settings(words: list[str]) -> dict[str, str]:
    settings = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ConfigurationError(f"{word!r} is no setting; write KEY=VALUE, such as epochs=30.")
        settings[key] = value
    return settings
