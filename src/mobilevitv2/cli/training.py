"""The verbs on data sets: `train` and `evaluate`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from mobilevitv2.cli.arguments import Argument
from mobilevitv2.cli.output import note, say, say_json, whole_file, writable_folder
from mobilevitv2.contract import default_model, resolve
from mobilevitv2.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from mobilevitv2.data.classification import ClassificationData, PictureSplit

DATA_HELP = "image folder, parquet files, folder of `datasets`, or hub id"
INTERRUPTED = 130
FEW_PICTURES = 500
"""Fewer than these are read faster than worker processes start."""


def train(
    data: Annotated[str, Argument(DATA_HELP, metavar="DATA")],
    settings: Annotated[
        list[str], Argument("settings of the recipe to replace: epochs=30 learning_rate=0.001", metavar="KEY=VALUE")
    ],
    *,
    task: Annotated[Literal["classify"], Argument("what to learn")] = "classify",
    model: Annotated[str, Argument("name, folder, weights file or hub id to start from, or scratch")] = "scratch",
    recipe: Annotated[str, Argument("name of a recipe, or a YAML file")] = "small",
    output: Annotated[str, Argument("folder of the run; new or empty, unless --resume", metavar="DIR")] = "runs/classify",
    resume: Annotated[bool, Argument("go on where the run in --output stopped")] = False,
) -> int:
    """Train a classifier on your own pictures.

    The data are checked before the first step. Ctrl-C stops after the current step and leaves a run that --resume goes on with
    (exit code 130).
    """
    from mobilevitv2.cli.quiet import quiet_libraries
    from mobilevitv2.train.classify import train_classifier
    from mobilevitv2.train.processes import is_first_process

    overrides = _settings(settings)
    quiet_libraries()
    with _telling():
        result = train_classifier(data, model=model, recipe=recipe, output=output, resume=resume, overrides=overrides)
    if not is_first_process():
        return INTERRUPTED if result.interrupted else 0
    if result.interrupted:
        note(f"interrupted after {result.steps} steps; the same command with --resume goes on (run: {result.output})")
        return INTERRUPTED
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items() if isinstance(value, float))
    say(f"{result.steps} steps in {result.seconds / 60:.1f} minutes" + (f"; {scores}" if scores else ""))
    if result.best is not None:
        say(f"the model: {result.best}; try `mobilevitv2 predict PICTURE --model {result.best}`")
    return 0


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


def evaluate(
    data: Annotated[str, Argument(DATA_HELP, metavar="DATA")],
    *,
    model: Annotated[
        str | None, Argument("name, folder, weights file or hub id; without it the classifier inside the package")
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"] | None, Argument("without it test, else validation, else train")
    ] = None,
    batch_size: Annotated[int, Argument("pictures answered at once", metavar="N")] = 64,
    workers: Annotated[int | None, Argument("processes that read pictures; 0 for none", metavar="N")] = None,
    device: Annotated[str | None, Argument("cpu, cuda, cuda:1, mps; without it the best there is", metavar="NAME")] = None,
    json: Annotated[bool, Argument("write JSON instead of a table")] = False,
    output: Annotated[str | None, Argument("also write evaluation.json and confusion.png into this folder", metavar="DIR")] = None,
) -> int:
    """Measure how good a classifier is on a data set: top-1 and top-5, by class and group.

    Pictures that cannot be read are left out and listed. Classes are matched by name.
    """
    source = resolve(model or default_model())
    folder = None if output is None else writable_folder(output)
    from mobilevitv2.cli.quiet import quiet_libraries
    from mobilevitv2.contract import load_model
    from mobilevitv2.data.classification import open_classification_data
    from mobilevitv2.devices import choose_device
    from mobilevitv2.evaluate.classification import evaluate_classification, save_confusion_matrix

    quiet_libraries()
    pictures = _chosen(open_classification_data(data), split)
    chosen = choose_device(device)
    network, processor = load_model(source, task="classify")
    if workers is None:
        workers = 0 if len(pictures) < FEW_PICTURES else min(8, os.cpu_count() or 1)
    result = evaluate_classification(
        network, pictures, processor=processor, batch_size=batch_size, device=chosen, workers=workers, progress=True
    )
    if json:
        say_json(result.to_dict())
    else:
        say(result.table())
    if folder is not None:
        import json as json_format

        with whole_file(folder / "evaluation.json") as stream:
            json_format.dump(result.to_dict(), stream, indent=2)
        save_confusion_matrix(result, folder / "confusion.png")
        note(f"evaluation.json and confusion.png written to {folder}{os.sep}")
    return 0


def _chosen(data: ClassificationData, split: str | None) -> PictureSplit:
    """The split that was asked for, or the one that nothing was chosen by."""
    name = split or next((name for name in ("test", "validation", "train") if name in data.splits), None)
    if name is None or name not in data.splits:
        raise DataError(f"{data.source} has no split {name!r}; it has {', '.join(data.splits) or 'none'}.")
    return data.splits[name]
