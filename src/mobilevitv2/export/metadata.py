"""Everything an exported file says about itself, from the model, its image processor and what was asked for."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.runtime.metadata import Metadata, PictureContract, Port

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.export.formats import ExportFormat
    from mobilevitv2.export.request import Suppression
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers."""
UNKNOWN_LICENCE = "unknown; that of the weights holds"


def describe(
    model: MobileViTV2PreTrainedModel,
    processor: MobileViTV2ImageProcessor,
    fmt: ExportFormat,
    *,
    precision: str,
    size: tuple[int, int],
    dynamic: tuple[str, ...],
    preprocessing: bool,
    postprocessing: bool,
    suppression: Suppression | None,
    source: str | None,
    licence: str | None,
) -> Metadata:
    """The metadata of one file; arguments as in `mobilevitv2.export.export`, with defaults settled."""
    picture = picture_contract(model, processor, size=size, inside=preprocessing)
    post = _postprocessing(model, postprocessing, suppression)
    labels = tuple(str(model.config.id2label.get(index, f"LABEL_{index}")) for index in range(model.config.num_labels))
    return Metadata(
        task=model.task,
        labels=labels,
        picture=picture,
        layout=fmt.layout,
        inputs=(_input(picture, fmt.layout, dynamic),),
        outputs=_outputs(model, post, size, dynamic, suppression),
        postprocessing=post,
        activation="sigmoid" if _independent(model) else "softmax",
        precision=precision,
        dynamic=dynamic,
        source=source or str(getattr(model.config, "_name_or_path", "") or "unnamed"),
        licence=licence or licence_of(source),
        weights_sha256=weights_sha256(model),
        versions=_versions(),
        suppression=None if suppression is None else {name: float(value) for name, value in asdict(suppression).items()},
    )


def picture_contract(
    model: MobileViTV2PreTrainedModel, processor: MobileViTV2ImageProcessor, *, size: tuple[int, int], inside: bool
) -> PictureContract:
    """The processor's contract at this (height, width).

    A classifier's crop becomes the size, and its resize grows in proportion; the other tasks see the whole picture, stretched.
    """
    height, width = size
    resize: dict[str, int] | None = {"height": height, "width": width}
    crop = None
    if model.task == "classify" and processor.do_center_crop:
        crop = {"height": height, "width": width}
        resize = _resize_before_crop(processor, size) if processor.do_resize else None
    return PictureContract(
        height=height,
        width=width,
        resize=resize,
        crop=crop,
        interpolation=FILTERS.get(int(processor.resample), "bicubic"),
        channel_order="BGR" if processor.do_flip_channel_order else "RGB",
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=tuple(map(float, processor.image_mean)) if processor.do_normalize else None,
        std=tuple(map(float, processor.image_std)) if processor.do_normalize else None,
        inside=inside,
    )


def _resize_before_crop(processor: MobileViTV2ImageProcessor, size: tuple[int, int]) -> dict[str, int]:
    wanted, crop = processor.size, (processor.crop_size["height"], processor.crop_size["width"])
    edge = wanted.get("shortest_edge")
    if edge:
        return {"shortest_edge": int(edge) if size == crop else round(edge * min(size) / min(crop))}
    return {name: round(wanted[name] * side / own) for name, side, own in zip(("height", "width"), size, crop, strict=True)}


def natural_size(model: MobileViTV2PreTrainedModel, processor: MobileViTV2ImageProcessor) -> tuple[int, int]:
    """(height, width) that the processor gives, or the configuration's where that depends on the picture."""
    if processor.do_center_crop and model.task == "classify":
        return int(processor.crop_size["height"]), int(processor.crop_size["width"])
    wanted = processor.size
    if processor.do_resize and wanted.get("height") and wanted.get("width"):
        return int(wanted["height"]), int(wanted["width"])
    return model.config.input_size


# ---- inputs and outputs ----------------------------------------------------------------------------------------------------------


def _input(picture: PictureContract, layout: str, dynamic: tuple[str, ...]) -> Port:
    batch, height, width = (
        name if name in dynamic else side for name, side in (("batch", 1), ("height", picture.height), ("width", picture.width))
    )
    if picture.inside:
        meaning = "pictures in RGB, 0..255, resized and cropped"
        return Port(name="image", shape=(batch, height, width, 3), dtype="uint8", meaning=meaning)
    shape = (batch, height, width, 3) if layout == "NHWC" else (batch, 3, height, width)
    meaning = f"pictures in {picture.channel_order}, resized, cropped and scaled"
    return Port(name="image", shape=shape, dtype="float32", meaning=meaning)


def _outputs(
    model: MobileViTV2PreTrainedModel,
    post: str,
    size: tuple[int, int],
    dynamic: tuple[str, ...],
    suppression: Suppression | None,
) -> tuple[Port, ...]:
    batch: int | str = "batch" if "batch" in dynamic else 1
    classes = model.config.num_labels
    height, width = ("height" if "height" in dynamic else size[0]), ("width" if "width" in dynamic else size[1])
    if model.task == "classify":
        name = "logits" if post == "none" else "probabilities"
        return (Port(name=name, shape=(batch, classes or "features"), dtype="float32", meaning=f"{name} of each class"),)
    if model.task == "segment":
        if post == "argmax":
            return (Port(name="mask", shape=(batch, height, width), dtype="int32", meaning="class of each pixel of the input"),)
        shape = (batch, classes, "map_height", "map_width")
        return (Port(name="logits", shape=shape, dtype="float32", meaning="scores on a coarser map; upsample, then argmax"),)
    corners = "left, top, right, bottom in units of the picture"
    if suppression is not None:
        return (
            Port(name="boxes", shape=(batch, "detections", 4), dtype="float32", meaning=f"{corners}; the surest first"),
            Port(name="scores", shape=(batch, "detections"), dtype="float32", meaning="0..1; 0 behind the last detection"),
            Port(name="labels", shape=(batch, "detections"), dtype="int64", meaning="class of each box"),
            Port(name="count", shape=(batch,), dtype="int64", meaning="number of detections of each picture"),
        )
    return (
        Port(name="scores", shape=(batch, "anchors", classes), dtype="float32", meaning="of each class, without background"),
        Port(name="boxes", shape=(batch, "anchors", 4), dtype="float32", meaning=corners),
    )


def _postprocessing(model: MobileViTV2PreTrainedModel, wanted: bool, suppression: Suppression | None) -> str:
    if model.task == "detect":
        return "suppression" if suppression is not None else "boxes"
    if not wanted or (model.task == "classify" and not model.config.num_labels):
        return "none"
    if model.task == "segment":
        return "argmax"
    return "sigmoid" if _independent(model) else "softmax"


def _independent(model: MobileViTV2PreTrainedModel) -> bool:
    return model.task == "classify" and (model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1)


# ---- where it comes from ---------------------------------------------------------------------------------------------------------


def weights_sha256(model: MobileViTV2PreTrainedModel) -> str:
    """Over names, shapes and values of all tensors, in the order of their names: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        digest.update(array.contiguous().view(-1).numpy().tobytes() if array.numel() else b"")
    return digest.hexdigest()


def licence_of(source: str | os.PathLike[str] | None) -> str:
    """The licence of weights: a record's by its name; of a folder or file what lies beside it says (`license` in README.md's
    metadata block, or in config.json); else that it is unknown. A folder that is named as a record is not the record.

    Args:
        source: as it was loaded, with its path.
    """
    from mobilevitv2.weights.records import get_record

    if source is None:
        return UNKNOWN_LICENCE
    if os.path.exists(source):
        folder = Path(source) if os.path.isdir(source) else Path(source).parent
        return _licence_in(_card(folder / "README.md")) or _licence_in(_json(folder / "config.json")) or UNKNOWN_LICENCE
    try:
        return get_record(os.fspath(source)).licence
    except ConfigurationError:
        return UNKNOWN_LICENCE


def _card(path: Path) -> Any:
    """The metadata block that a model card starts with; None where there is none."""
    import yaml  # on disk with transformers

    try:
        before, block, _ = path.read_text(encoding="utf-8-sig").split("---\n", 2)
        return None if before.strip() else yaml.safe_load(block)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _licence_in(told: Any) -> str | None:
    if not isinstance(told, dict):
        return None
    value = told.get("license", told.get("licence"))
    value = told.get("license_name", value) if value == "other" else value  # as cards on the hub have it
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "").strip() or None


def _versions() -> dict[str, str]:
    import torch

    import mobilevitv2

    return {"mobilevitv2": mobilevitv2.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def with_versions(metadata: Metadata, versions: Mapping[str, str]) -> Metadata:
    """The metadata with the versions of the libraries that write the file."""
    from dataclasses import replace

    return replace(metadata, versions={**metadata.versions, **versions})


__all__ = ["describe", "licence_of", "natural_size", "picture_contract", "weights_sha256", "with_versions"]
