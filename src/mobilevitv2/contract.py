"""What belongs to weights besides the numbers: the picture they expect, and the names of their classes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.class_names import known_names
from mobilevitv2.errors import ConfigurationError, DownloadError, MobileViTV2Error, WrongTaskError
from mobilevitv2.runtime.foreign import refuse_exported, refuse_foreign
from mobilevitv2.weights.records import get_record, list_records
from mobilevitv2.weights.shapes import Task

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.configuration import MobileViTV2Config
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str]

# Of the official validation: the short side is resized to 288 for a crop of 256, and to the crop itself at 384.
RESIZE_OVER_CROP = {384: 1.0}
USUAL_RESIZE_OVER_CROP = 288 / 256
WHOLE_PICTURE_TASKS = ("segment", "detect")
OFFICIAL_SETS = {("classify", 1000): "imagenet1k", ("segment", 21): "voc", ("segment", 150): "ade20k", ("detect", 80): "coco"}
OFFICIAL_NAMES = {"imagenet1k": "ImageNet-1k", "voc": "PASCAL VOC", "ade20k": "ADE20K", "coco": "COCO"}


# The official checkpoint of middle size, to name where the package has none of its own.
OFFICIAL_MODELS: dict[Task, str] = {
    "classify": "mobilevitv2-1.0-imagenet1k-256",
    "segment": "deeplabv3-mobilevitv2-1.0-voc",
    "detect": "ssdlite-mobilevitv2-1.0-coco",
}


def default_model(task: str | None = None) -> str:
    """The name of the checkpoint of a task inside the package; of the classifier where no task is given.

    Raises:
        ConfigurationError: a package that was built without it, or a task that has none.
    """
    wanted = "classify" if task is None else task
    if wanted not in OFFICIAL_MODELS:
        raise ConfigurationError(f"task={task!r} has no checkpoint in the package; the tasks are {', '.join(OFFICIAL_MODELS)}.")
    bundled = list_records(task=wanted, bundled=True)
    if not bundled:
        what = "no checkpoint of its own" if task is None else f"no checkpoint for the task {task!r}"
        raise ConfigurationError(f"this copy of the package holds {what}; name a model, such as --model {OFFICIAL_MODELS[wanted]}.")
    return bundled[0].name


def resolve(source: Source) -> Source:
    """The source as the model classes take it: a path that exists, a hub id, or the name of a record under any of its names.

    Raises:
        ConfigurationError: a name that is none of these; the message has the nearest names. Or a part of an exported model, or a
            format that does not run here; the message says what to give instead.
    """
    name = os.fspath(source)
    refuse_foreign(name)
    if os.path.exists(name):
        return source
    try:
        record = get_record(name)
        return name if record.hub_id == name else record.name  # a hub id stays with the hub, as in from_pretrained
    except ConfigurationError:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).suffix[1:].isalpha():
            return name  # owner/name, as on the hub
        if os.sep in name or Path(name).suffix in (".pt", ".pth", ".bin", ".safetensors", ".ckpt"):
            raise ConfigurationError(f"{name} does not exist; check the path (the current folder is {Path.cwd()}).") from None
        raise


def load_model(source: Source, *, task: str | None = None) -> tuple[MobileViTV2PreTrainedModel, MobileViTV2ImageProcessor]:
    """A model in float32 and evaluation mode with its class names, and the image processor that belongs to it.

    Args:
        source: the name of a record, a folder, a hub id or a weights file.
        task: "classify", "segment", "detect" or "backbone"; told from the source where it is not given.

    Raises:
        ConfigurationError: a name that there is not, or an exported file; WeightsError: weights that cannot be used, or are of
        another task; DownloadError: a hub id that cannot be fetched.
    """
    import torch

    from mobilevitv2.auto import create, told_task

    source = resolve(source)
    refuse_exported(source)
    with reading(source):
        told = task if task in (None, "backbone") else told_task(source, otherwise=task)
        if told != task:
            raise WrongTaskError(
                f"{os.fspath(source)} is a model to {told}; to {task}, its head would be at random. Choose a model of that task "
                f"(`mobilevitv2 models --task {task}`), or train one from it."
            )
        model = create(source, task=task, dtype=torch.float32)
        processor = load_processor(source, model.config, task=model.task)
    name_classes(model.config, source, task=model.task)
    return model, processor


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Inside, what transformers and the hub raise about a source becomes a DownloadError of one line.

    They raise OSError for everything from a slip of the pen to a cable pulled out.
    """
    try:
        yield
    except MobileViTV2Error:
        raise
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DownloadError(
            f"{os.fspath(source)} cannot be loaded ({reason}); folders, files and the names that `mobilevitv2 models` lists can."
        ) from error


def load_processor(source: Source, config: MobileViTV2Config, *, task: str = "classify") -> MobileViTV2ImageProcessor:
    """The image processor of a source: its own `preprocessor_config.json`, its record's contract, or the official validation's.

    Args:
        source: as `resolve` gives it.
        config: of the source's model; says the size where nothing else does.
        task: of the source's model. The official validation crops for classification; for segmentation and detection it takes the
            whole picture.
    """
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.loading import find_record

    record = find_record(source)
    if record is not None and record.path is None:
        return _processor(record.resize, record.crop, bgr=record.channel_order == "BGR")
    place = source if record is None or record.path is None else record.path
    if os.path.isdir(place) and not Path(place, "preprocessor_config.json").exists():
        logger.warning("%s has no preprocessor_config.json: pictures are prepared as the official validation does it.", place)
    elif not os.path.isfile(place):  # a complete folder, or a hub id
        loaded: MobileViTV2ImageProcessor = MobileViTV2ImageProcessor.from_pretrained(place)
        return loaded
    return official_processor(config, task=task)


def own_processor(model: MobileViTV2PreTrainedModel) -> MobileViTV2ImageProcessor | None:
    """The image processor of the record or folder that a model was loaded from; None where it does not say, or is not there."""
    origin = str(getattr(model.config, "_name_or_path", "") or "")
    if not origin:  # else the current folder would be asked
        return None
    if Path(origin, "preprocessor_config.json").is_file():
        return load_processor(origin, model.config, task=model.task)
    record = next((each for each in list_records() if origin in (each.name, each.hub_id)), None)
    return None if record is None else load_processor(record.name, model.config, task=model.task)


def official_processor(config: MobileViTV2Config, *, task: str = "classify") -> MobileViTV2ImageProcessor:
    """The image processor of the official validation at the model's input size."""
    if task in WHOLE_PICTURE_TASKS:
        return whole_picture_processor(config)
    crop = min(config.input_size)
    return _processor(round(crop * RESIZE_OVER_CROP.get(crop, USUAL_RESIZE_OVER_CROP)), crop, bgr=False)


def whole_picture_processor(config: MobileViTV2Config) -> MobileViTV2ImageProcessor:
    """The image processor of the official validation of segmenters and detectors: the whole picture at the model's input size."""
    return _processor(config.input_size, None, bgr=False)


def _processor(resize: int | tuple[int, int], crop: int | None, *, bgr: bool) -> MobileViTV2ImageProcessor:
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

    options: dict[str, Any] = {"do_center_crop": crop is not None, "do_flip_channel_order": bgr}
    options["size"] = {"shortest_edge": resize} if isinstance(resize, int) else {"height": resize[0], "width": resize[1]}
    if crop is not None:
        options["crop_size"] = {"height": crop, "width": crop}
    return MobileViTV2ImageProcessor(**options)


def name_classes(config: MobileViTV2Config, source: Source, *, task: str = "classify") -> None:
    """Give the classes of the official weights their names where these, as single files do, came without any.

    Files hold numbers alone: one without a record is taken for weights of the official data set of its task and number of classes
    (1000: ImageNet-1k; for segmentation 21: PASCAL VOC, 150: ADE20K; for detection 80: COCO), with a warning.
    """
    from mobilevitv2.loading import find_record

    if config.id2label.get(0) != "LABEL_0":
        return
    record = find_record(source)
    if record is None and not os.path.isfile(source):
        return  # a folder that says LABEL_0 means it
    dataset = OFFICIAL_SETS.get((task, config.num_labels)) if record is None else record.dataset
    names = None if dataset is None else known_names(dataset)
    if names is None or len(names) != config.num_labels:
        return
    if record is None:
        called = OFFICIAL_NAMES[str(dataset)]
        logger.warning("%s names no classes; its %d classes are taken for those of %s.", source, config.num_labels, called)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def seen_box(size: tuple[int, int], processor: MobileViTV2ImageProcessor) -> tuple[int, int, int, int]:
    """The part of a picture that the model gets to see after resize and crop: (left, top, right, bottom) in the picture's pixels.

    A crop larger than the resized picture is filled up with black; then the box reaches over the picture's sides.

    Args:
        size: (width, height) of the picture.
        processor: with `do_resize`, `size`, `do_center_crop` and `crop_size`.
    """
    width, height = size
    resized_width, resized_height = _resized(size, processor)
    if not processor.do_center_crop:
        return 0, 0, width, height
    side_x, side_y = width / resized_width, height / resized_height  # picture pixels for one resized pixel
    crop_width, crop_height = processor.crop_size["width"], processor.crop_size["height"]
    left, top = (resized_width - crop_width) / 2, (resized_height - crop_height) / 2
    box = (left * side_x, top * side_y, (left + crop_width) * side_x, (top + crop_height) * side_y)
    return round(box[0]), round(box[1]), round(box[2]), round(box[3])


def _resized(size: tuple[int, int], processor: MobileViTV2ImageProcessor) -> tuple[int, int]:
    if not processor.do_resize:
        return size
    wanted = processor.size
    if wanted.get("shortest_edge"):
        scale = wanted["shortest_edge"] / min(size)
        return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
    return wanted["width"], wanted["height"]
