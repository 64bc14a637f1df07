"""How each kind of model prepares, answers and draws: labels, the class of each pixel, boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mobilevitv2.answers import Area, Box, Label, Prediction, ScoreMap
from mobilevitv2.attention import answer_with_maps
from mobilevitv2.class_choice import Class, chosen_classes, class_name
from mobilevitv2.contract import seen_box
from mobilevitv2.draw import draw_labels
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.tiles import Found, boxes_in_tiles, check_tile, mask_in_tiles, mask_type

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

Array = np.ndarray[Any, Any]
Size = tuple[int, int]

DEFAULT_THRESHOLD = 0.3
_COUNTED_AT_ONCE = 2**24


class Task(Protocol):
    """How one kind of model answers. `prepare` runs in several threads at once."""

    name: str
    """As `Prediction.task` has it."""
    names: Mapping[int, str]
    """Of the model's classes."""
    tile: int | None
    """Side, in pixels, above which a picture is answered in tiles; None for never."""

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture as the model takes it: (channels, height, width)."""
        ...

    def answer(self, pixel_values: Tensor, sizes: Sequence[Size]) -> list[dict[str, Any]]:
        """For each picture of a batch (B, channels, height, width), whose pictures had these sizes, fields of its Prediction."""
        ...

    def answer_in_tiles(self, picture: Image.Image, *, batch_size: int) -> dict[str, Any]:
        """The fields of a picture larger than `tile`; only for tasks that have one."""
        ...

    def draw(self, picture: Image.Image, prediction: Prediction, *, still: bool = True) -> Image.Image:
        """The picture with the answer on it; with still=False of one size for all frames of a video."""
        ...


class Classifier:
    """The task "classify": the most probable classes, with score maps on request."""

    name = "classify"

    def __init__(
        self, model: MobileViTV2PreTrainedModel, processor: MobileViTV2ImageProcessor, *, top_k: int = 5, attention: bool = False
    ) -> None:
        if top_k < 1:
            raise ConfigurationError(f"top_k={top_k} gives no label; ask for at least 1.")
        if model.config.num_labels < 1:
            raise ConfigurationError("the model has num_labels=0, so no classes to tell; use its features instead.")
        self.model, self.processor, self.attention = model, processor, attention
        self.names: Mapping[int, str] = model.config.id2label
        self.tile: int | None = None
        self.top_k = min(top_k, model.config.num_labels)
        # Independent yes-or-no classes do not share one probability; as in transformers' pipeline.
        self.independent = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1

    def prepare(self, picture: Image.Image) -> Tensor:
        """(channels, height, width), as the image processor makes it."""
        pixel_values: Tensor = self.processor(picture, return_tensors="pt")["pixel_values"][0]
        return pixel_values

    def answer(self, pixel_values: Tensor, sizes: Sequence[Size]) -> list[dict[str, Any]]:
        """Labels for each picture, and score maps if they were asked for."""
        pixel_values = pixel_values.to(device=self.model.device, dtype=self.model.dtype)
        if not self.attention:
            with torch.inference_mode():
                return [{"labels": labels} for labels in self._labels(self.model(pixel_values).logits)]
        maps, output = answer_with_maps(self.model, pixel_values)
        arrays = [(name, scores.cpu().numpy()) for name, scores in maps]
        return [
            {
                "labels": labels,
                "attention": [ScoreMap(name, scores[index]) for name, scores in arrays],
                "seen": seen_box(size, self.processor),
            }
            for index, (labels, size) in enumerate(zip(self._labels(output.logits), sizes, strict=True))
        ]

    def answer_in_tiles(self, picture: Image.Image, *, batch_size: int) -> dict[str, Any]:
        """Never: labels are of the picture as a whole."""
        raise NotImplementedError("labels are of the picture as a whole")

    def draw(self, picture: Image.Image, prediction: Prediction, *, still: bool = True) -> Image.Image:
        """The picture with its labels in rows below."""
        return draw_labels(picture, prediction.labels)

    def _labels(self, logits: Tensor) -> list[list[Label]]:
        logits = logits.float()
        probabilities = logits.sigmoid() if self.independent else logits.softmax(dim=-1)
        best = probabilities.topk(self.top_k)
        return [
            [Label(class_name(self.names, index), value, index) for value, index in zip(values, indices, strict=True)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


class _OfTheWholePicture:
    """What segmenters and detectors share: they see the whole picture, or each tile of it, whatever the processor would cut off."""

    def __init__(
        self,
        model: MobileViTV2PreTrainedModel,
        processor: MobileViTV2ImageProcessor,
        *,
        classes: Iterable[Class] | None = None,
        tile: int | None = None,
    ) -> None:
        check_tile(tile)
        self.model, self.processor, self.tile = model, processor, tile
        self.names: Mapping[int, str] = model.config.id2label
        self.num_labels: int = model.config.num_labels
        self.chosen = chosen_classes(self.names, self.num_labels, classes)

    def prepare(self, picture: Image.Image) -> Tensor:
        """(channels, height, width): the whole picture, resized as the image processor does it."""
        return self._prepared([picture])[0]

    def _prepared(self, pictures: list[Image.Image]) -> Tensor:
        prepared: Tensor = self.processor(pictures, return_tensors="pt", do_center_crop=False, do_pad=False)["pixel_values"]
        return prepared

    def _output(self, pixel_values: Tensor) -> Any:
        with torch.inference_mode():
            return self.model(pixel_values.to(device=self.model.device, dtype=self.model.dtype))

    def _wanted(self, index: int) -> bool:
        return self.chosen is None or index in self.chosen


class Segmenter(_OfTheWholePicture):
    """The task "segment": the class of each pixel, at the picture's own size."""

    name = "segment"

    def answer(self, pixel_values: Tensor, sizes: Sequence[Size]) -> list[dict[str, Any]]:
        """Mask and areas of each picture."""
        logits = self._output(pixel_values).logits
        fields = []
        for each, (width, height) in zip(logits, sizes, strict=True):  # one at a time: the maps are large, the logits small
            found = self.processor.post_process_semantic_segmentation(each[None], target_sizes=[(height, width)])[0]
            fields.append(self._fields(found.to(torch.uint8 if self.num_labels <= 256 else torch.int16).cpu().numpy()))
        return fields

    def answer_in_tiles(self, picture: Image.Image, *, batch_size: int) -> dict[str, Any]:
        """Mask and areas of a large picture."""
        assert self.tile is not None  # asked for above
        mask = mask_in_tiles(
            picture,
            self.tile,
            scores=lambda crops: self._output(self._prepared(crops)).logits,
            num_labels=self.num_labels,
            batch_size=batch_size,
        )
        return self._fields(mask)

    def draw(self, picture: Image.Image, prediction: Prediction, *, still: bool = True) -> Image.Image:
        """The classes as colours over the picture, with a legend below."""
        from mobilevitv2.draw_masks import draw_mask

        if prediction.mask is None:
            return picture
        return draw_mask(picture, prediction.mask, prediction.areas, legend_rows=None if still else 2)

    def _fields(self, mask: Array) -> dict[str, Any]:
        assert mask.dtype == mask_type(self.num_labels)
        counts = count_classes(mask, self.num_labels)
        order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] and self._wanted(int(index))]
        areas = [Area(class_name(self.names, index), counts[index] / mask.size, int(counts[index]), index) for index in order]
        return {"mask": mask, "areas": areas}


class Detector(_OfTheWholePicture):
    """The task "detect": the objects on a picture."""

    name = "detect"

    def __init__(
        self,
        model: MobileViTV2PreTrainedModel,
        processor: MobileViTV2ImageProcessor,
        *,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Iterable[Class] | None = None,
        tile: int | None = None,
    ) -> None:
        super().__init__(model, processor, classes=classes, tile=tile)
        self.threshold = threshold

    def answer(self, pixel_values: Tensor, sizes: Sequence[Size]) -> list[dict[str, Any]]:
        """The boxes on each picture."""
        return [self._fields(found) for found in self._found(pixel_values, sizes)]

    def answer_in_tiles(self, picture: Image.Image, *, batch_size: int) -> dict[str, Any]:
        """The boxes on a large picture."""
        assert self.tile is not None  # asked for above

        def find(pictures: list[Image.Image]) -> list[Found]:
            return self._found(self._prepared(pictures), [each.size for each in pictures])

        return self._fields(boxes_in_tiles(picture, self.tile, find=find, batch_size=batch_size))

    def draw(self, picture: Image.Image, prediction: Prediction, *, still: bool = True) -> Image.Image:
        """The boxes on the picture."""
        from mobilevitv2.draw_boxes import draw_boxes

        return draw_boxes(picture, prediction.boxes)

    def _found(self, pixel_values: Tensor, sizes: Sequence[Size]) -> list[Found]:
        output = self._output(pixel_values)
        targets = [(height, width) for width, height in sizes]
        found = self.processor.post_process_object_detection(output, threshold=self.threshold, target_sizes=targets)
        return [Found(*(each[name].float().cpu().numpy() for name in ("scores", "labels", "boxes"))) for each in found]

    def _fields(self, found: Found) -> dict[str, Any]:
        boxes = []
        for place in np.argsort(-found.scores, kind="stable"):
            index = int(found.labels[place])
            if self._wanted(index):
                left, top, right, bottom = (float(value) for value in found.boxes[place])
                boxes.append(Box(class_name(self.names, index), float(found.scores[place]), index, (left, top, right, bottom)))
        return {"boxes": boxes}


def count_classes(mask: Array, num_labels: int) -> Array:
    """How many pixels each class has: (num_labels,) int64. In pieces, since numpy counts in 8 bytes a pixel."""
    flat = mask.reshape(-1)
    pieces = range(0, len(flat), _COUNTED_AT_ONCE)
    counts = [np.bincount(flat[start : start + _COUNTED_AT_ONCE], minlength=num_labels) for start in pieces]
    total: Array = np.sum(counts, axis=0)
    return total
