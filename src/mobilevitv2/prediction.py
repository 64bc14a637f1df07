"""Pictures in, answers out: `predict` for a list, `iter_predictions` for a stream.

What an answer is stands in `answers`, how each kind of model gives it in `tasks`, how pictures flow through it in `streaming`,
where the frames of videos come from in `video`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mobilevitv2.answers import Area, Box, Label, Prediction, ScoreMap, coco_results, to_supervision
from mobilevitv2.class_choice import Class
from mobilevitv2.contract import default_model, load_model, whole_picture_processor
from mobilevitv2.devices import choose_device
from mobilevitv2.errors import ConfigurationError, MobileViTV2Error
from mobilevitv2.streaming import answers_of, callers_for, check_counts, count_of, named_sources
from mobilevitv2.tasks import DEFAULT_THRESHOLD, Classifier, Detector, Segmenter, Task
from mobilevitv2.tiles import check_tile
from mobilevitv2.video import read_video
from mobilevitv2.weights.records import get_record

if TYPE_CHECKING:
    import torch

    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

__all__ = [
    "TASKS",
    "Area",
    "Box",
    "Classifier",
    "Detector",
    "Label",
    "Prediction",
    "ScoreMap",
    "Segmenter",
    "Task",
    "answers_of",
    "coco_results",
    "iter_predictions",
    "named_sources",
    "open_task",
    "predict",
    "read_video",
    "to_supervision",
]

TASKS = ("classify", "segment", "detect")


def predict(
    sources: Any,
    *,
    model: str | os.PathLike[str] | MobileViTV2PreTrainedModel | None = None,
    processor: MobileViTV2ImageProcessor | None = None,
    task: str | None = None,
    top_k: int = 5,
    threshold: float | None = None,
    classes: Class | Iterable[Class] | None = None,
    tile: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    attention: bool = False,
    progress: bool = False,
) -> list[Prediction]:
    """What is on pictures: their most probable classes, the class of each pixel, or the objects on them.

    Args:
        sources: one picture or many: paths, folders (with all below them), globs, URLs, bytes, Pillow pictures, arrays, tensors;
            video files, and what `read_video` gives, whose frames are answered one by one.
        model: the name of a record (`mobilevitv2 models`), a folder, a hub id, a weights file, or a model; without it the one of
            the task inside the package.
        processor: of `model`, where that is a model; the official validation's otherwise.
        task: "classify", "segment" or "detect"; told from the model where it is not given.
        top_k: of "classify", labels for each picture.
        threshold: of "detect", 0 to 1: boxes of lower scores are left out; 0.3 where it is not given.
        classes: of "segment" and "detect", the classes to tell of, by name or index; all where it is not given. Masks keep all.
        tile: of "segment" and "detect", a side in pixels, at least 64: pictures with a longer one are answered in overlapping
            tiles of this size, so that small things show and memory does not grow with the picture.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is where it is not given. A model stays where it is. Where the
            best is the CPU, classifiers of the package and in folders run in ONNX Runtime or OpenVINO if one is installed, as on
            the command line; device="cpu" asks for torch.
        batch_size: pictures, or tiles, that the model answers at once; of many pictures, ONNX Runtime and OpenVINO answer one on
            each core instead.
        workers: threads that read pictures, and in those two answer them; one for each processor core, for torch at most 8, where
            it is not given.
        attention: of "classify", give the context scores of each attention layer as well.
        progress: show a progress bar on stderr.

    Returns:
        One answer for each picture, in order; those that could not be read have `error`.

    Raises:
        ConfigurationError: a setting that gives no answer. WeightsError, DownloadError: a model that cannot be loaded.
    """
    answers = iter_predictions(
        sources,
        model=model,
        processor=processor,
        task=task,
        top_k=top_k,
        threshold=threshold,
        classes=classes,
        tile=tile,
        device=device,
        batch_size=batch_size,
        workers=workers,
        attention=attention,
    )
    if progress:
        from tqdm import tqdm

        answers = iter(tqdm(answers, total=count_of(sources), unit="picture"))
    return list(answers)


def iter_predictions(
    sources: Any,
    *,
    model: str | os.PathLike[str] | MobileViTV2PreTrainedModel | None = None,
    processor: MobileViTV2ImageProcessor | None = None,
    task: str | None = None,
    top_k: int = 5,
    threshold: float | None = None,
    classes: Class | Iterable[Class] | None = None,
    tile: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    attention: bool = False,
    keep_pictures: bool = False,
) -> Iterator[Prediction]:
    """The same as `predict`, one answer after another: for more pictures than fit into memory.

    `sources` may be an endless iterator; it is read as far as pictures are wanted. `keep_pictures` hands each picture over with its
    answer, for drawing. The rest is as in `predict`; settings are checked and the model is loaded at the call.
    """
    check_counts(batch_size, workers)  # before the model is loaded, which takes seconds
    asked = (processor, threshold, classes, tile, device)
    plain = not attention and task in (None, "classify") and all(each is None for each in asked)
    answering: Task | None = _without_torch(model, top_k, callers_for(count_of(sources), workers)) if plain else None
    if answering is None:
        answering = open_task(
            model,
            processor=processor,
            task=task,
            top_k=top_k,
            threshold=threshold,
            classes=classes,
            tile=tile,
            device=device,
            attention=attention,
        )
    return answers_of(named_sources(sources), answering, batch_size=batch_size, workers=workers, keep_pictures=keep_pictures)


def _without_torch(model: object, top_k: int, callers: int) -> Task | None:
    """A classifier of the package or in a folder, in the runtime that the command line takes for it; None where there is none.

    Where there is another device than the CPU, torch is faster.
    """
    from mobilevitv2.runtime import embedded
    from mobilevitv2.runtime.task import RuntimeTask

    name = default_model("classify") if model is None else model
    if not isinstance(name, str | os.PathLike) or embedded.available() is None or choose_device(None).type != "cpu":
        return None
    folder = _local_folder(name)
    if folder is None or not embedded.can_open(folder):
        return None
    opened = embedded.open_folder(folder, callers=callers, source=os.fspath(name))
    return cast(Task, RuntimeTask(opened, top_k=top_k))


def _local_folder(name: str | os.PathLike[str]) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    try:
        return get_record(os.fspath(name)).path
    except MobileViTV2Error:
        return None


def open_task(
    model: str | os.PathLike[str] | MobileViTV2PreTrainedModel | None = None,
    *,
    processor: MobileViTV2ImageProcessor | None = None,
    task: str | None = None,
    top_k: int = 5,
    threshold: float | None = None,
    classes: Class | Iterable[Class] | None = None,
    tile: int | None = None,
    device: str | torch.device | None = None,
    attention: bool = False,
) -> Task:
    """The model, ready on its device, as the object that prepares, answers and draws. Arguments as in `predict`."""
    # What can be wrong is looked at before the model is loaded, which takes seconds.
    chosen = None if device is None else choose_device(device)
    if task is not None and task not in TASKS:
        raise ConfigurationError(f"task={task!r} is none that predict knows; use one of {', '.join(TASKS)}.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigurationError(f"threshold={threshold} is no score; use 0 (all boxes) to 1.")
    check_tile(tile)
    if model is None or isinstance(model, str | os.PathLike):
        loaded, own_processor = load_model(default_model(task) if model is None else model, task=task)
        processor, chosen = processor or own_processor, chosen or choose_device(None)
    else:
        loaded = model
    _check_task(loaded, task, attention=attention, threshold=threshold, classes=classes, tile=tile)
    if processor is None:
        processor = _official_processor(loaded)
    loaded = loaded.eval() if chosen is None else loaded.eval().to(chosen)
    if loaded.task == "classify":
        return Classifier(loaded, processor, top_k=top_k, attention=attention)
    if loaded.task == "segment":
        return Segmenter(loaded, processor, classes=_several(classes), tile=tile)
    limit = DEFAULT_THRESHOLD if threshold is None else threshold
    return Detector(loaded, processor, threshold=limit, classes=_several(classes), tile=tile)


def _check_task(model: MobileViTV2PreTrainedModel, task: str | None, *, attention: bool, **options: Any) -> None:
    """Refuse a model that does not answer, and settings that its task does not have."""
    if model.task not in TASKS:
        raise ConfigurationError(
            f"the model is of task {model.task!r}, which predict does not answer for; it knows {', '.join(TASKS)}: "
            "choose a model of that task."
        )
    if task is not None and model.task != task:
        raise ConfigurationError(
            f"task={task!r}, but the model is of task {model.task!r}; leave task out, or choose another model."
        )
    if attention and model.task != "classify":
        raise ConfigurationError(
            f"attention=True shows where a classifier looks; the model is of task {model.task!r}: leave it out."
        )
    foreign = {"classify": ("threshold", "classes", "tile"), "segment": ("threshold",), "detect": ()}[model.task]
    for name in foreign:
        if options[name] is not None:
            remedy = "; top_k says how many labels to give" if model.task == "classify" and name != "tile" else ""
            raise ConfigurationError(f"{name}={options[name]!r} is no setting of task {model.task!r}: leave it out{remedy}.")


def _official_processor(model: MobileViTV2PreTrainedModel) -> MobileViTV2ImageProcessor:
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

    if model.task == "classify":
        return MobileViTV2ImageProcessor()
    return whole_picture_processor(model.config)


def _several(classes: Class | Iterable[Class] | None) -> list[Class] | None:
    if classes is None:
        return None
    return [classes] if isinstance(classes, str | int) else list(classes)
