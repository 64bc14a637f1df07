"""Every released checkpoint: the 49 official ones and those that the package ships.

A record binds weights to what their user needs to know: where they lie, which input they expect (size, resize, crop, channel
order), how many classes they have, what they score, and their licence. This module imports no torch, so that listing costs nothing.

Names, scores and URLs are those of the official model zoo; parameters (without auxiliary head, as published) and multiply-adds (one
picture of `input_size`, one per multiply-add pair of convolutions and matrix products) were counted on the official models.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.weights.shapes import Head, Task

APPLE_LICENCE = "Apple sample code licence"
BASE_URL = "https://docs-assets.developer.apple.com/ml-research/models/cvnets-v2"
WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """One checkpoint and what belongs to it."""

    name: str
    task: Task
    width: float
    head: Head | None
    dataset: str
    num_labels: int
    """Classes; of a segmenter with the background where it is one, of a detector without."""
    input_size: int
    """Side of the pictures that the published score was measured on, in pixels."""
    resize: int | tuple[int, int]
    """Resize before the crop: the short side to this many pixels, or both (height, width) whatever the aspect."""
    crop: int | None
    """Side of the centre crop in pixels; None takes the whole picture."""
    interpolation: str = "bicubic"
    channel_order: str = "RGB"
    output_stride: int = 32
    atrous_rates: tuple[int, int, int] | None = None
    parameters: int
    """Without the auxiliary head, which works in training only."""
    gmacs: float | None
    """Thousand million multiply-adds for one picture of `input_size`."""
    metric_name: str | None
    metric: float | None
    """Published score in per cent."""
    licence: str
    url: str | None
    """Where the file is downloaded from; None for checkpoints inside the package."""
    hub_id: str | None = None
    """The same weights in transformers' format on the Hugging Face hub."""
    timm_name: str | None = None
    """The same weights in timm."""
    sha256: str | None = None
    path: Path | None = None
    """Folder of a checkpoint inside the package."""

    @property
    def bundled(self) -> bool:
        """Whether the weights are part of the installed package."""
        return self.path is not None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it."""
        return {**asdict(self), "path": None if self.path is None else str(self.path), "bundled": self.bundled}


# ---- the official checkpoints ----------------------------------------------------------------------------------------------------

CLASSIFIER_PARAMETERS = (1_370_593, 2_866_009, 4_901_841, 7_478_089, 10_594_753, 14_251_833, 18_449_329)
CLASSIFIER_GMACS = {
    256: (0.465, 1.028, 1.812, 2.817, 4.042, 5.489, 7.156),
    384: (1.045, 2.312, 4.077, 6.337, 9.095, 12.349, 16.099),
}
# (dataset, folder of the URL, input size): top-1 of widths 0.5 to 2.0.
CLASSIFIER_SCORES: dict[tuple[str, str, int], tuple[float | None, ...]] = {
    ("imagenet1k", "imagenet1k", 256): (70.18, 75.56, 78.09, 79.65, 80.38, 80.84, 81.17),
    ("imagenet1k", "imagenet1k", 384): (72.14, 76.98, 79.68, 80.94, 81.50, 82.04, 82.17),
    ("imagenet21k-to-1k", "imagenet21k_to_1k", 256): (None, None, None, None, 81.46, 81.94, 82.36),
    ("imagenet21k-to-1k", "imagenet21k_to_1k", 384): (None, None, None, None, 82.60, 82.93, 83.41),
}
# timm has no mirror of the 384 px models that saw ImageNet-1k alone.
TIMM_TAGS = {
    ("imagenet1k", 256): "cvnets_in1k",
    ("imagenet21k-to-1k", 256): "cvnets_in22k_ft_in1k",
    ("imagenet21k-to-1k", 384): "cvnets_in22k_ft_in1k_384",
}
HUB_IDS = {
    "mobilevitv2-1.0-imagenet1k-256": "apple/mobilevitv2-1.0-imagenet1k-256",
    "mobilevitv2-2.0-imagenet1k-256": "apple/mobilevitv2-2.0-imagenet1k-256",
    "deeplabv3-mobilevitv2-1.0-voc": "apple/mobilevitv2-1.0-voc-deeplabv3",
    "deeplabv3-mobilevitv2-1.5-voc": "apple/mobilevitv2-1.5-voc-deeplabv3",
}

# (head, dataset): for widths 0.5 to 2.0 the mIoU (None: not released), parameters without auxiliary head, GMACs at 512 px.
SEGMENTERS: dict[tuple[Head, str], tuple[tuple[float | None, ...], tuple[int, ...], tuple[float, ...]]] = {
    ("pspnet", "ade20k"): (
        (31.77, 35.22, 36.57, 38.76, 38.74, 39.82, None),
        (3_616_911, 6_246_151, 9_448_575, 13_224_183, 17_572_975, 22_494_951, 27_990_111),
        (15.11, 26.25, 39.90, 56.05, 74.70, 95.84, 119.49),
    ),
    ("deeplabv3", "ade20k"): (
        (31.93, 34.70, 37.06, 38.42, 38.91, 39.53, 40.94),
        (6_308_495, 9_576_455, 13_384_831, 17_733_623, 22_622_831, 28_052_455, 34_022_495),
        (25.84, 39.67, 56.00, 74.83, 96.16, 119.99, 146.32),
    ),
    ("pspnet", "voc"): (
        (74.62, 77.44, 78.92, 79.40, 79.93, None, None),
        (3_550_734, 6_179_974, 9_382_398, 13_158_006, 17_506_798, 22_428_774, 27_923_934),
        (4.68, 8.63, 13.66, 19.77, 26.96, 35.22, 44.57),
    ),
    ("deeplabv3", "voc"): (
        (75.07, None, 78.94, 79.68, 80.30, None, None),
        (6_242_318, 9_510_278, 13_318_654, 17_667_446, 22_556_654, 27_986_278, 33_956_318),
        (7.36, 11.99, 17.69, 24.46, 32.32, 41.25, 51.27),
    ),
}
# dataset: classes, output stride, atrous rates, folder of the URL.
SEGMENTATION_SETS: dict[str, tuple[int, int, tuple[int, int, int], str]] = {
    "ade20k": (150, 8, (12, 24, 36), "ade20k"),
    "voc": (21, 16, (6, 12, 18), "pascalvoc"),
}

DETECTOR_SCORES = (21.24, 24.57, 26.47, 27.85, 28.83, 29.52, 30.21)
DETECTOR_PARAMETERS = (2_035_395, 3_584_955, 5_608_883, 8_173_227, 11_277_987, 14_923_163, 19_108_755)
DETECTOR_GMACS = (0.891, 1.801, 3.050, 4.644, 6.582, 8.865, 11.494)


def _classifiers() -> Iterator[WeightRecord]:
    for (dataset, folder, size), scores in CLASSIFIER_SCORES.items():
        for index, (width, score) in enumerate(zip(WIDTHS, scores, strict=True)):
            if score is None:
                continue
            name = f"mobilevitv2-{width}-{dataset}-{size}"
            tag = TIMM_TAGS.get((dataset, size))
            yield WeightRecord(
                name=name,
                task="classify",
                width=width,
                head=None,
                dataset=dataset,
                num_labels=1000,
                input_size=size,
                resize=288 if size == 256 else 384,
                crop=size,
                parameters=CLASSIFIER_PARAMETERS[index],
                gmacs=CLASSIFIER_GMACS[size][index],
                metric_name="top-1",
                metric=score,
                licence=APPLE_LICENCE,
                url=f"{BASE_URL}/classification/mobilevitv2/{folder}/{size}x{size}/mobilevitv2-{width}.pt",
                hub_id=HUB_IDS.get(name),
                timm_name=tag and f"mobilevitv2_{round(width * 100):03d}.{tag}",
            )


def _segmenters() -> Iterator[WeightRecord]:
    for (head, dataset), (scores, parameters, gmacs) in SEGMENTERS.items():
        num_labels, stride, rates, folder = SEGMENTATION_SETS[dataset]
        for index, (width, score) in enumerate(zip(WIDTHS, scores, strict=True)):
            if score is None:
                continue
            name = f"{head}-mobilevitv2-{width}-{dataset}"
            yield WeightRecord(
                name=name,
                task="segment",
                width=width,
                head=head,
                dataset=dataset,
                num_labels=num_labels,
                input_size=512,
                resize=(512, 512),
                crop=None,
                output_stride=stride,
                atrous_rates=rates if head == "deeplabv3" else None,
                parameters=parameters[index],
                gmacs=gmacs[index],
                metric_name="mIoU",
                metric=score,
                licence=APPLE_LICENCE,
                url=f"{BASE_URL}/segmentation/{folder}/mobilevitv2/{head}-mobilevitv2-{width}.pt",
                hub_id=HUB_IDS.get(name),
            )


def _detectors() -> Iterator[WeightRecord]:
    for width, score, parameters, gmacs in zip(WIDTHS, DETECTOR_SCORES, DETECTOR_PARAMETERS, DETECTOR_GMACS, strict=True):
        yield WeightRecord(
            name=f"ssdlite-mobilevitv2-{width}-coco",
            task="detect",
            width=width,
            head="ssdlite",
            dataset="coco",
            num_labels=80,
            input_size=320,
            resize=(320, 320),
            crop=None,
            parameters=parameters,
            gmacs=gmacs,
            metric_name="box mAP",
            metric=score,
            licence=APPLE_LICENCE,
            url=f"{BASE_URL}/detection/mobilevitv2/coco-ssd-mobilevitv2-{width}.pt",
        )


# ---- the checkpoints inside the package ------------------------------------------------------------------------------------------

TASKS_BY_ARCHITECTURE: dict[str, Task] = {
    "MobileViTV2Model": "backbone",
    "MobileViTV2ForImageClassification": "classify",
    "MobileViTV2ForSemanticSegmentation": "segment",
    "MobileViTV2ForObjectDetection": "detect",
}


def bundled_folder() -> Path:
    """Where the checkpoints inside the package lie; one folder in transformers' format each."""
    return Path(str(resources.files("mobilevitv2.weights").joinpath("bundled")))


def read_bundled(folder: Path) -> WeightRecord:
    """The record of one folder: config.json, model.safetensors, preprocessor_config.json, and README.md, whose metadata block may
    say `license`, `datasets`, `model-index` (its first metric counts) and `gmacs`.

    Raises:
        ConfigurationError: a file of the folder is missing or does not say what it must.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        card = _card_metadata(folder / "README.md")
        task = TASKS_BY_ARCHITECTURE[config["architectures"][0]]
        resize, crop = _size(processor["size"]), _crop(processor)
        parameters = _count_parameters(folder / "model.safetensors")
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise ConfigurationError(
            f"{folder} is no complete checkpoint folder: {error!r}. Put it back or remove the folder."
        ) from error
    heads: dict[Task, Head] = {"segment": config.get("segmentation_head", "deeplabv3"), "detect": "ssdlite"}
    metric_name, metric = _card_metric(card)
    return WeightRecord(
        name=folder.name,
        task=task,
        width=float(config.get("width_multiplier", 1.0)),
        head=heads.get(task),
        dataset=next(iter(card.get("datasets", [])), "unknown"),
        num_labels=len(config.get("id2label", {0: "", 1: ""})),
        input_size=crop or (resize if isinstance(resize, int) else resize[0]),
        resize=resize,
        crop=crop,
        channel_order="BGR" if processor.get("do_flip_channel_order") else "RGB",
        output_stride=config.get("output_stride", 32),
        parameters=parameters,
        gmacs=card.get("gmacs"),
        metric_name=metric_name,
        metric=metric,
        licence=card.get("license", "unknown"),
        url=None,
        path=folder,
    )


def _card_metadata(card: Path) -> dict[str, Any]:
    """The YAML block that a model card starts with."""
    import yaml  # on disk with transformers; imported here because most calls never need it

    parts = card.read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    if not isinstance(metadata, dict):
        raise ValueError(f"{card} starts with no metadata block")
    return metadata


def _card_metric(card: dict[str, Any]) -> tuple[str | None, float | None]:
    """Name and value of the first metric of the card's `model-index`."""
    for model in card.get("model-index", []):
        for result in model.get("results", []):
            for metric in result.get("metrics", []):
                return metric.get("name", metric["type"]), float(metric["value"])
    return None, None


def _size(size: dict[str, int] | int) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])


def _crop(processor: dict[str, Any]) -> int | None:
    return int(processor["crop_size"]["height"]) if processor.get("do_center_crop") else None


def _count_parameters(file: Path) -> int:
    """Numbers in a safetensors file, read from its header; statistics of batch normalisation are no parameters."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__" and not name.endswith(buffers))


# ---- looking up ------------------------------------------------------------------------------------------------------------------


@cache
def _official() -> tuple[WeightRecord, ...]:
    return (*_classifiers(), *_segmenters(), *_detectors())


@cache
def _bundled(folder: Path) -> tuple[WeightRecord, ...]:
    folders = sorted(path.parent for path in folder.glob("*/config.json"))
    return tuple(read_bundled(path) for path in folders)


def list_records(
    *, task: Task | None = None, width: float | None = None, head: Head | None = None, bundled: bool | None = None
) -> list[WeightRecord]:
    """All records, those inside the package first, or the ones that fit: of this task, this width, this head; only those inside the
    package (`bundled=True`) or only the others.

    Raises:
        ConfigurationError: a folder inside the package is damaged.
    """
    return [
        record
        for record in (*_bundled(bundled_folder()), *_official())
        if (task is None or record.task == task)
        and (width is None or math.isclose(record.width, width))
        and (head is None or record.head == head)
        and (bundled is None or record.bundled == bundled)
    ]


def get_record(name: str) -> WeightRecord:
    """The record of this name; timm's names ("mobilevitv2_050.cvnets_in1k", with or without "timm/") and hub ids are understood.

    Raises:
        ConfigurationError: no such record; the message has the nearest names.
    """
    known = _names()
    record = known.get(name.strip().lower())
    if record is not None:
        return record
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "A name looks like 'mobilevitv2-1.0-imagenet1k-256'."
    raise ConfigurationError(f"There is no checkpoint named {name!r}. {hint} 'mobilevitv2 models' lists all.")


def _names() -> dict[str, WeightRecord]:
    """Every name that a record answers to, in lower case."""
    names: dict[str, WeightRecord] = {}
    for record in list_records():
        for alias in _aliases(record):
            names.setdefault(alias.lower(), record)
    return names


def _aliases(record: WeightRecord) -> Iterator[str]:
    yield record.name
    if record.hub_id is not None:
        yield record.hub_id
    if record.timm_name is not None:
        yield record.timm_name
        yield f"timm/{record.timm_name}"
        if record.timm_name.endswith(".cvnets_in1k"):  # what timm loads when no tag is given
            yield record.timm_name.split(".")[0]
