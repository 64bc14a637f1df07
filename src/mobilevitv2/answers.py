"""What an answer is: the labels of a picture, the class of each of its pixels, or the boxes on it; and its forms as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.run_lengths import encode_mask

if TYPE_CHECKING:
    from PIL import Image

Array = np.ndarray[Any, Any]
SeenBox = tuple[int, int, int, int]


class Label(NamedTuple):
    """One class that a picture may show."""

    label: str
    probability: float
    """0 to 1."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a label
    """Number of the class in the model."""


class Area(NamedTuple):
    """The part of a picture that one class covers."""

    label: str
    share: float
    """Of the picture, 0 to 1."""
    pixels: int
    index: int  # type: ignore[assignment]  # as in Label
    """Number of the class in the model, and in the mask."""


class Box(NamedTuple):
    """One object on a picture."""

    label: str
    score: float
    """0 to 1."""
    index: int  # type: ignore[assignment]  # as in Label
    """Number of the class in the model."""
    box: tuple[float, float, float, float]
    """(left, top, right, bottom) in pixels of the picture."""


class ScoreMap(NamedTuple):
    """The context scores of one attention layer; see `mobilevitv2.attention`."""

    layer: str
    scores: np.ndarray[Any, np.dtype[np.float32]]
    """(height, width) of the layer's feature map."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture, or one frame of a video.

    Attributes:
        source: path, URL, or "picture 1" and so on for pictures without a name.
        task: "classify", "segment" or "detect".
        size: (width, height) of the picture in pixels; None if it could not be read.
        labels: of "classify", the most probable classes, most probable first.
        mask: of "segment", the class of each pixel (height, width) at the picture's own size, uint8 up to 256 classes, else int16.
        areas: of "segment", the classes of the mask, largest first; only the chosen ones where `classes` was given.
        boxes: of "detect", the objects, surest first.
        frame: of a video, the number of the frame, from 0.
        time: of a video, when the frame is shown, in seconds from the start.
        error: why there is no answer, with the remedy; None if there is one.
        attention: the context scores of each attention layer, where they were asked for.
        seen: (left, top, right, bottom), in pixels, of the part that the model saw; the score maps lie over this part.
        picture: the picture itself (RGB), where it was asked to be kept.
    """

    source: str
    size: tuple[int, int] | None = None
    labels: list[Label] = field(default_factory=list)
    error: str | None = None
    attention: list[ScoreMap] | None = field(default=None, repr=False)
    seen: SeenBox | None = field(default=None, repr=False)
    picture: Image.Image | None = field(default=None, repr=False, compare=False)
    task: str = "classify"
    mask: Array | None = field(default=None, repr=False, compare=False)
    areas: list[Area] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    frame: int | None = None
    time: float | None = None

    def to_dict(self, *, masks: bool = False) -> dict[str, Any]:
        """What JSON can hold: source, width, height, labels or areas or boxes, error; of a video's frame its number and time.

        Args:
            masks: give each area its pixels too, as COCO's run lengths ("rle").
        """
        width, height = self.size or (None, None)
        start: dict[str, Any] = {"source": self.source, "width": width, "height": height}
        if self.frame is not None:
            start |= {"frame": self.frame, "time": None if self.time is None else round(self.time, 6)}
        return {**start, **self._answer(masks), "error": self.error}

    def _answer(self, masks: bool) -> dict[str, Any]:
        if self.task == "segment":
            areas: list[dict[str, Any]] = [
                {"label": name, "share": round(share, 6), "pixels": pixels, "index": index}
                for name, share, pixels, index in self.areas
            ]
            if masks and self.mask is not None:
                for area in areas:
                    area["rle"] = encode_mask(self.mask == area["index"])
            return {"areas": areas}
        if self.task == "detect":
            boxes = [
                {"label": name, "score": round(score, 6), "index": index, "box": [round(value, 2) for value in box]}
                for name, score, index, box in self.boxes
            ]
            return {"boxes": boxes}
        return {"labels": [{"label": name, "probability": round(p, 6), "index": index} for name, p, index in self.labels]}


def coco_results(
    predictions: Iterable[Prediction],
    *,
    image_ids: Mapping[str, int | str] | None = None,
    category_ids: Mapping[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Answers of "detect" or "segment" in COCO's result format: a list of entries with image_id, category_id, bbox and score.

    Boxes are (left, top, width, height) in pixels. A segmented class gives one entry with `segmentation` (compressed run lengths)
    and its `area`; its score is 1, for a segmenter chooses and gives none. Pictures without answer are left out.

    Args:
        predictions: of `predict`.
        image_ids: source -> id. Without it the number that a file's name is (000000000139.jpg -> 139), else its place, from 1.
        category_ids: index of a class in the model -> id; the index itself where it is not given.

    Raises:
        ConfigurationError: answers of "classify", which COCO has no results for.
    """
    entries: list[dict[str, Any]] = []
    for place, prediction in enumerate(predictions, 1):
        entries += coco_entries(prediction, place, image_ids=image_ids, category_ids=category_ids)
    return entries


def coco_entries(
    prediction: Prediction,
    place: int,
    *,
    image_ids: Mapping[str, int | str] | None = None,
    category_ids: Mapping[int, int] | None = None,
) -> list[dict[str, Any]]:
    """The entries of one answer; `place` is its number among the answers, from 1. The rest is as in `coco_results`."""
    if prediction.task not in ("segment", "detect"):
        raise ConfigurationError(f"COCO's results hold boxes and masks; task={prediction.task!r} gives none: detect or segment.")
    image_id = _image_id(prediction, place) if image_ids is None else image_ids[prediction.source]
    entries = []
    for label, score, index, (left, top, right, bottom) in prediction.boxes:
        bbox = [round(value, 2) for value in (left, top, right - left, bottom - top)]
        entries.append({**_head(image_id, index, label, category_ids), "bbox": bbox, "score": round(score, 5)})
    for label, _, pixels, index in prediction.areas:
        assert prediction.mask is not None  # areas are counted on it
        inside = prediction.mask == index
        entry = {**_head(image_id, index, label, category_ids), "bbox": _bounds(inside), "score": 1.0}
        entries.append({**entry, "area": pixels, "segmentation": encode_mask(inside)})
    return entries


def _head(image_id: int | str, index: int, label: str, category_ids: Mapping[int, int] | None) -> dict[str, Any]:
    category = index if category_ids is None else category_ids[index]
    return {"image_id": image_id, "category_id": category, "category_name": label}


def _image_id(prediction: Prediction, place: int) -> int:
    stem = PurePath(prediction.source).stem
    return int(stem) if prediction.frame is None and stem.isascii() and stem.isdigit() else place


def _bounds(inside: Array) -> list[int]:
    """(left, top, width, height) of what is True."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1]


def to_supervision(prediction: Prediction) -> Any:
    """An answer of "detect" or "segment" as `supervision.Detections`: boxes, or one mask a class, with class ids and names.

    Raises:
        MissingDependency: supervision is not installed. ConfigurationError: an answer of "classify", or none at all.
    """
    from mobilevitv2.errors import MissingDependency

    if prediction.error is not None or prediction.task not in ("segment", "detect"):
        what = "has no answer" if prediction.error is not None else f"was answered by task={prediction.task!r}"
        raise ConfigurationError(f"{prediction.source} {what}; supervision's Detections hold boxes and masks.")
    try:
        import supervision
    except ImportError as error:
        raise MissingDependency("supervision is not installed: pip install supervision") from error
    found: list[Box] | list[Area] = prediction.boxes if prediction.task == "detect" else prediction.areas
    if not found:
        return supervision.Detections.empty()
    options: dict[str, Any] = {
        "class_id": np.array([each.index for each in found]),
        "data": {"class_name": np.array([each.label for each in found])},
    }
    if prediction.task == "detect":
        boxes = prediction.boxes
        scores = np.array([box.score for box in boxes], dtype=np.float32)
        return supervision.Detections(xyxy=np.array([box.box for box in boxes], np.float32), confidence=scores, **options)
    masks = np.stack([prediction.mask == area.index for area in prediction.areas])
    corners = [(x, y, x + w, y + h) for x, y, w, h in map(_bounds, masks)]
    return supervision.Detections(xyxy=np.array(corners, dtype=np.float32), mask=masks, **options)
