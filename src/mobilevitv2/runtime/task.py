"""An exported file behind the protocol of `mobilevitv2.tasks.Task`, so that `predict` streams pictures through it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.answers import Prediction
from mobilevitv2.class_choice import Class, chosen_classes
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.runtime.model import DEFAULT_THRESHOLD, RuntimeModel

if TYPE_CHECKING:
    from PIL import Image

Array = np.ndarray[Any, Any]
FOREIGN = {"classify": ("threshold", "classes"), "segment": ("threshold",), "detect": ()}


class RuntimeTask:
    """One exported file, answering.

    Attributes:
        name: "classify", "segment" or "detect".
        names: of the classes.
        tile: None: exported files see whole pictures.
        callers: threads that may call `prepare` and `answer` at once.
        together: pictures that one call of `answer` is for; more go through the file one after another.
    """

    tile: int | None = None

    def __init__(
        self,
        model: RuntimeModel,
        *,
        task: str | None = None,
        top_k: int = 5,
        threshold: float | None = None,
        classes: Iterable[Class] | None = None,
    ) -> None:
        if task is not None and task != model.task:
            raise ConfigurationError(f"task={task!r}, but {model.where} is of task {model.task!r}; leave the task out.")
        for option, value in (("threshold", threshold), ("classes", classes)):
            if value is not None and option in FOREIGN[model.task]:
                raise ConfigurationError(f"{option}={value!r} is no setting of task {model.task!r}: leave it out.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigurationError(f"threshold={threshold} is no score; use 0 (all boxes) to 1.")
        if top_k < 1:
            raise ConfigurationError(f"top_k={top_k} gives no label; ask for at least 1.")
        self.model, self.top_k, self.name = model, top_k, model.task
        self.callers, self.together = model.engine.callers, model.largest_batch or 1
        self.threshold = DEFAULT_THRESHOLD if threshold is None else threshold
        self.names: Mapping[int, str] = model.names
        self.chosen = chosen_classes(self.names, len(self.names), classes)

    def prepare(self, picture: Image.Image) -> Array:
        """A picture as uint8 (height, width, 3)."""
        return self.model.prepare(picture)

    def answer(self, pixel_values: Array, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """For each prepared picture, whose original had this (width, height), fields of its Prediction."""
        return self.model.answer(pixel_values, sizes, top_k=self.top_k, threshold=self.threshold, classes=self.chosen)

    def answer_in_tiles(self, picture: Image.Image, *, batch_size: int) -> dict[str, Any]:
        """Never: there are no tiles."""
        raise NotImplementedError("exported files see whole pictures")

    def draw(self, picture: Image.Image, prediction: Prediction, *, still: bool = True) -> Image.Image:
        """The picture with its labels, classes or boxes."""
        if self.name == "classify":
            from mobilevitv2.draw import draw_labels

            return draw_labels(picture, prediction.labels)
        if self.name == "detect":
            from mobilevitv2.draw_boxes import draw_boxes

            return draw_boxes(picture, prediction.boxes)
        from mobilevitv2.draw_masks import draw_mask

        if prediction.mask is None:
            return picture
        return draw_mask(picture, prediction.mask, prediction.areas, legend_rows=None if still else 2)
