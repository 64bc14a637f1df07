"""The verb `evaluate`."""

from __future__ import annotations

import csv
import io
import json as json_format
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mobilevitv2.cli.arguments import Argument
from mobilevitv2.cli.output import note, say, say_json, whole_file, writable_folder
from mobilevitv2.contract import default_model, resolve
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.runtime.engines import is_runtime_file

if TYPE_CHECKING:
    from mobilevitv2.evaluate.classification import ClassificationResult
    from mobilevitv2.evaluate.detection import DetectionResult
    from mobilevitv2.evaluate.segmentation import SegmentationResult

DATA_HELP = "image folder, parquet files, folder of `datasets`, or hub id; for detect also COCO json, VOC xml, YOLO txt"
BATCH_SIZES = {"classify": 64, "segment": 8, "detect": 16}
FEW_PICTURES = {"classify": 500, "segment": 32, "detect": 32}
"""Fewer than these are read faster than worker processes start."""
DRAWN = {"segment": 8, "detect": 12}
"""Pictures on each grid."""


@dataclass(frozen=True)
class _Run:
    """What is evaluated, and how."""

    model: Any
    processor: Any
    data: str
    split: str | None
    workers: int | None
    folder: Path | None
    scales: tuple[float, ...]
    flip: bool
    options: dict[str, Any] = field(default_factory=dict)
    """For every task's function: batch_size, device, dtype."""


def evaluate(
    data: Annotated[str, Argument(DATA_HELP, metavar="DATA")],
    *,
    model: Annotated[
        str | None,
        Argument("name, folder, weights file, hub id or exported file; without it that of the task inside the package"),
    ] = None,
    task: Annotated[
        Literal["classify", "segment", "detect"] | None, Argument("what to measure; told from the model where it is not given")
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"] | None, Argument("without it test, else validation, else train")
    ] = None,
    scales: Annotated[
        str, Argument("segment: sizes to look at, as factors of the model's, their answers averaged: 0.75,1,1.25", metavar="F,F")
    ] = "1",
    flip: Annotated[bool, Argument("segment: also look at each picture mirrored")] = False,
    batch_size: Annotated[
        int | None, Argument("pictures answered at once; without it 64 to classify, 8 to segment, 16 to detect", metavar="N")
    ] = None,
    workers: Annotated[int | None, Argument("processes that read pictures; 0 for none", metavar="N")] = None,
    device: Annotated[str | None, Argument("cpu, cuda, cuda:1, mps; without it the best there is", metavar="NAME")] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Argument("arithmetic of the model")] = "float32",
    json: Annotated[bool, Argument("write JSON instead of a table; shares in it run from 0 to 1, where tables have %")] = False,
    save: Annotated[
        str | None,
        Argument(
            "also write evaluation.json, tables and pictures (confusion matrix, answers beside the truth) into this folder",
            metavar="DIR",
            aliases=("--output",),
        ),
    ] = None,
) -> int:
    """Measure how good a model is on a data set.

    Classifiers: top-1 and top-5, by class and group. Segmenters: mIoU, IoU of each class, mean and pixel accuracy, at the pictures'
    own size. Detectors: COCO's average precision, by size and class.

    Pictures that cannot be read are left out and listed. Classes are matched by name.
    """
    source = model if model is not None and is_runtime_file(model) else resolve(model or default_model(task))
    folder = None if save is None else writable_folder(save)
    factors = _factors(scales)
    from mobilevitv2.cli.quiet import quiet_libraries
    from mobilevitv2.contract import load_model
    from mobilevitv2.devices import choose_device

    quiet_libraries()
    options = {"device": choose_device("cpu" if is_runtime_file(source) else device), "dtype": _dtype(dtype)}
    network, processor = _exported(source, task, device) if is_runtime_file(source) else load_model(source, task=task)
    if network.task not in BATCH_SIZES:
        raise ConfigurationError(f"{os.fspath(source)} is of task {network.task!r}; evaluate knows {', '.join(BATCH_SIZES)}.")
    if network.task != "segment" and (flip or factors != (1.0,)):
        raise ConfigurationError(f"--scales and --flip are for segmentation; {os.fspath(source)} is of task {network.task!r}.")
    options["batch_size"] = BATCH_SIZES[network.task] if batch_size is None else batch_size
    run = _Run(network, processor, data, split, workers, folder, factors, flip, options)
    measures: dict[str, Callable[[_Run], Any]] = {"classify": _classify, "segment": _segment, "detect": _detect}
    result = measures[network.task](run)
    if json:
        say_json(result.to_dict())
    else:
        say(result.table())
    if folder is not None:
        with whole_file(folder / "evaluation.json") as stream:
            json_format.dump(result.to_dict(), stream, indent=2)
        note(f"evaluation.json, tables and pictures written to {folder}{os.sep}")
    return 0


def _exported(source: Any, task: str | None, device: str | None) -> tuple[Any, Any]:
    from mobilevitv2.evaluate.exported import open_exported

    if device not in (None, "cpu"):
        raise ConfigurationError(f"{source} is an exported file, which runs on the CPU; leave --device {device} out.")
    network, processor = open_exported(source)
    if task is not None and network.task != task:
        raise ConfigurationError(f"--task {task}, but {source} is of task {network.task!r}; leave the task out.")
    return network, processor


def _factors(scales: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in scales.split(","))
    except ValueError:
        raise ConfigurationError(f"--scales {scales}: write numbers with commas between them, such as 0.75,1,1.25.") from None


def _dtype(name: str) -> Any:
    """For autocast; None for float32, which the weights have."""
    import torch

    return None if name == "float32" else getattr(torch, name)


def _chosen(data: Any, split: str | None) -> Any:
    """The split that was asked for, or the one that nothing was chosen by."""
    name = split or next((name for name in ("test", "validation", "train") if name in data.splits), None)
    if name is None or name not in data.splits:
        raise DataError(f"{data.source} has no split {name!r}; it has {', '.join(data.splits) or 'none'}.")
    return data.splits[name]


def _evaluated(run: _Run, opener: Callable[[str], Any], function: Callable[..., Any], **more: Any) -> tuple[Any, Any]:
    """The result, and the split."""
    pictures = _chosen(opener(run.data), run.split)
    workers = run.workers
    if workers is None:
        workers = 0 if len(pictures) < FEW_PICTURES[run.model.task] else min(8, os.cpu_count() or 1)
    settings = {**run.options, **more}
    return function(run.model, pictures, processor=run.processor, workers=workers, progress=True, **settings), pictures


# ---- tasks -----------------------------------------------------------------------------------------------------------------------


def _classify(run: _Run) -> ClassificationResult:
    from mobilevitv2.data.classification import open_classification_data
    from mobilevitv2.evaluate.classification import evaluate_classification, save_confusion_matrix

    result: ClassificationResult
    result, _ = _evaluated(run, open_classification_data, evaluate_classification)
    if run.folder is not None:
        for suffix in (".png", ".csv"):
            save_confusion_matrix(result, run.folder / f"confusion{suffix}")
    return result


def _segment(run: _Run) -> SegmentationResult:
    from mobilevitv2.data.segmentation import open_segmentation_data
    from mobilevitv2.evaluate.confusion import save_confusion_matrix
    from mobilevitv2.evaluate.grids import save_mask_grid
    from mobilevitv2.evaluate.segmentation import evaluate_segmentation, worst_pictures

    keep = 0 if run.folder is None else DRAWN["segment"]
    result: SegmentationResult
    result, pictures = _evaluated(run, open_segmentation_data, evaluate_segmentation, scales=run.scales, flip=run.flip, keep=keep)
    if run.folder is not None:
        for suffix in (".png", ".csv"):
            save_confusion_matrix(result, run.folder / f"confusion{suffix}")
        head = ("class", "iou", "accuracy", "share_of_pixels", "most_often_taken_for", "share_taken_for")
        _save_table(run.folder / "classes.csv", head, result.rows())
        save_mask_grid(result, pictures, run.folder / "first.png", indices=sorted(result.masks)[:keep])
        if worst := worst_pictures(result.picture_miou, keep):
            save_mask_grid(result, pictures, run.folder / "worst.png", indices=worst)
    return result


def _detect(run: _Run) -> DetectionResult:
    from mobilevitv2.data.detection import open_detection_data
    from mobilevitv2.evaluate.detection import evaluate_detection
    from mobilevitv2.evaluate.grids import save_box_grid

    result: DetectionResult
    result, pictures = _evaluated(run, open_detection_data, evaluate_detection)
    if run.folder is not None:
        rows = [
            (name, count, result.per_class[name], result.per_class_ap50[name]) for name, count in result.per_class_boxes.items()
        ]
        _save_table(run.folder / "classes.csv", ("class", "boxes", "ap", "ap50"), rows)
        with whole_file(run.folder / "detections.json") as stream:
            json_format.dump(result.coco_results(pictures), stream)
        for name, worst in (("first.png", False), ("worst.png", True)):
            save_box_grid(result, pictures, run.folder / name, count=DRAWN["detect"], worst=worst)
    return result


def _save_table(path: Path, head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row)
    with whole_file(path) as stream:
        stream.write(text.getvalue())
