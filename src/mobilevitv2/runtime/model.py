"""An exported file as a model: pictures in, the same answers out that `mobilevitv2.predict` gives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.answers import Area, Box, Label, Prediction
from mobilevitv2.errors import ConfigurationError, ImageError, WeightsError
from mobilevitv2.pictures import read_picture
from mobilevitv2.runtime import postprocessing
from mobilevitv2.runtime.engines import Engine, open_engine
from mobilevitv2.runtime.metadata import Metadata, PictureContract, Port
from mobilevitv2.runtime.preprocessing import as_input, prepare

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Size = tuple[int, int]
DEFAULT_THRESHOLD = 0.3
IOU, CANDIDATES, DETECTIONS = 0.5, 400, 200
"""Of a detector's suppression outside the file; as the image processor's defaults."""


def open_model(path: str | os.PathLike[str], *, engine: str = "auto", threads: int | None = None, callers: int = 1) -> RuntimeModel:
    """A file that `mobilevitv2 export` wrote, ready to answer.

    Args:
        path: `.onnx`, `.xml`, `.pte` or `.tflite`.
        engine: "onnxruntime", "openvino", "executorch", "litert"; the one of the file's ending where it is "auto".
        threads: for one answer; the runtime's choice where None.
        callers: threads that will ask for answers at once, each of which then calculates by itself, which gives more answers a
            second than many threads for one; `model.engine.callers` is 1 where the engine cannot do that.

    Raises:
        ConfigurationError: no such file, or an ending that no engine opens.
        WeightsError: a damaged file, or one that is no MobileViTV2's. MissingDependency: the engine is not installed.
    """
    place = Path(path)
    return RuntimeModel(open_engine(place, engine=engine, threads=threads, callers=callers), where=str(place))


class RuntimeModel:
    """A file and what it says about itself.

    Attributes:
        metadata: task, labels, input contract; assumed from the shapes, with a warning, where the file says nothing.
        engine: what runs it.
    """

    def __init__(self, engine: Engine, *, where: str) -> None:
        self.engine, self.where = engine, where
        if engine.metadata is None:
            self.metadata = assumed_metadata(engine, where)
        else:
            self.metadata = Metadata.from_json(engine.metadata, where=where)
        _check_ports(self.metadata, engine, where)

    @property
    def task(self) -> str:
        """ "classify", "segment" or "detect"."""
        return self.metadata.task

    @property
    def names(self) -> Mapping[int, str]:
        """Of the classes."""
        return dict(enumerate(self.metadata.labels))

    @property
    def largest_batch(self) -> int | None:
        """Pictures that the file takes at once; None for any number."""
        return None if "batch" in self.metadata.dynamic else int(self.metadata.inputs[0].shape[0])

    # ---- whole answers -----------------------------------------------------------------------------------------------------------

    def predict(
        self,
        source: Any,
        *,
        top_k: int = 5,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Iterable[int] | None = None,
    ) -> Prediction:
        """The answer for one picture: a path, URL, bytes, array or Pillow picture.

        Args:
            source: the picture.
            top_k: labels of a classifier.
            threshold: least score of a detector's boxes, exclusive.
            classes: indices of the classes to tell of; all where None (segment, detect).

        Returns:
            The answer; with `error` where the picture cannot be read.
        """
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "picture 1"
        try:
            picture = read_picture(source)
            pixels = self.prepare(picture)
        except ImageError as error:
            return Prediction(name, task=self.task, error=str(error))
        fields = self.answer(pixels[None], [picture.size], top_k=top_k, threshold=threshold, classes=classes)[0]
        return Prediction(name, task=self.task, size=picture.size, **fields)

    def prepare(self, picture: Image.Image) -> Array:
        """A picture as uint8 (height, width, 3), resized and cropped as the contract says."""
        return prepare(picture, self.metadata.picture)

    def answer(
        self,
        pixels: Array,
        sizes: Sequence[Size],
        *,
        top_k: int = 5,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Iterable[int] | None = None,
    ) -> list[dict[str, Any]]:
        """For each prepared picture (batch, height, width, 3) of these (width, height), the fields of its `Prediction`."""
        raw = self.raw(pixels)
        wanted = None if classes is None else frozenset(classes)
        if self.task == "classify":
            scores = self._probabilities(raw)
            return [{"labels": self._labels(each, top_k)} for each in scores]
        if self.task == "segment":
            return [self._areas(self._mask(raw, index, size), wanted) for index, size in enumerate(sizes)]
        return [self._boxes(raw, index, size, threshold, wanted) for index, size in enumerate(sizes)]

    def raw(self, pixels: Array) -> dict[str, Array]:
        """The file's own outputs for prepared pictures, in as many runs as its batch size asks for."""
        inputs = as_input(pixels, self.metadata.picture, self.metadata.layout)
        step = self.largest_batch
        if step is None or len(inputs) == step:
            return self.engine.run(inputs)
        runs = []
        for start in range(0, len(inputs), step):
            part = inputs[start : start + step]
            missing = step - len(part)
            padded = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            runs.append({name: value[: step - missing] for name, value in self.engine.run(padded).items()})
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}

    # ---- tasks -------------------------------------------------------------------------------------------------------------------

    def _probabilities(self, raw: Mapping[str, Array]) -> Array:
        if "probabilities" in raw:
            return raw["probabilities"]
        return postprocessing.probabilities(raw["logits"], self.metadata.activation)

    def _labels(self, scores: Array, top_k: int) -> list[Label]:
        if top_k < 1:
            raise ConfigurationError(f"top_k={top_k} gives no label; ask for at least 1.")
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Label(self._name(int(index)), float(scores[index]), int(index)) for index in order]

    def _mask(self, raw: Mapping[str, Array], index: int, size: Size) -> Array:
        width, height = size
        if "logits" in raw:
            return postprocessing.class_map(raw["logits"][index].astype(np.float32), (height, width))
        kind = np.uint8 if len(self.metadata.labels) <= 256 else np.int16
        return postprocessing.resized_mask(raw["mask"][index].astype(kind), (height, width))

    def _areas(self, mask: Array, wanted: frozenset[int] | None) -> dict[str, Any]:
        counts = np.bincount(mask.reshape(-1), minlength=len(self.metadata.labels))
        order = [
            int(each) for each in np.argsort(-counts, kind="stable") if counts[each] and (wanted is None or int(each) in wanted)
        ]
        areas = [Area(self._name(each), counts[each] / mask.size, int(counts[each]), each) for each in order]
        return {"mask": mask, "areas": areas}

    def _boxes(
        self, raw: Mapping[str, Array], index: int, size: Size, threshold: float, wanted: frozenset[int] | None
    ) -> dict[str, Any]:
        scores, labels, boxes = self.detections(raw, index, threshold)
        corners = np.clip(boxes, 0, 1) * np.array([*size, *size], np.float32)
        found = []
        for score, label, corner in zip(scores.tolist(), labels.tolist(), corners.tolist(), strict=True):
            if wanted is None or label in wanted:
                found.append(Box(self._name(label), score, label, (corner[0], corner[1], corner[2], corner[3])))
        return {"boxes": found}

    def detections(self, raw: Mapping[str, Array], index: int, threshold: float) -> tuple[Array, Array, Array]:
        """Of one picture, the surest first: scores (n,), labels (n,), boxes (n, 4) in units of the picture."""
        if "count" not in raw:
            return postprocessing.suppress(
                raw["scores"][index],
                raw["boxes"][index],
                threshold=threshold,
                iou=IOU,
                candidates=CANDIDATES,
                detections=DETECTIONS,
            )
        inside = (self.metadata.suppression or {}).get("threshold", 0.0)
        if threshold < inside:
            logger.warning(
                "%s holds no boxes that score %g or less; the threshold %g shows no more.", self.where, inside, threshold
            )
        count = int(raw["count"][index])
        scores = raw["scores"][index][:count]
        passing = scores > threshold
        return scores[passing], raw["labels"][index][:count][passing], raw["boxes"][index][:count][passing]

    def _name(self, index: int) -> str:
        return self.metadata.labels[index] if index < len(self.metadata.labels) else f"LABEL_{index}"


# ---- files that say little -------------------------------------------------------------------------------------------------------


def _check_ports(metadata: Metadata, engine: Engine, where: str) -> None:
    if len(engine.inputs) != 1:
        raise WeightsError(f"{where} takes {len(engine.inputs)} inputs, a MobileViTV2 one picture; it is another model's file.")
    missing = [port.name for port in metadata.outputs if port.name not in engine.outputs]
    if missing:
        raise WeightsError(
            f"{where} has the outputs {', '.join(engine.outputs)}, but its metadata speak of {', '.join(missing)}; export it again."
        )


def assumed_metadata(engine: Engine, where: str) -> Metadata:
    """What a file without metadata most likely is, told from its shapes; says so in a warning.

    Raises:
        WeightsError: inputs or outputs that no MobileViTV2 of this package has.
    """
    if len(engine.inputs) != 1:
        raise WeightsError(f"{where} takes {len(engine.inputs)} inputs, a MobileViTV2 one picture; it is another model's file.")
    name, (shape, dtype) = next(iter(engine.inputs.items()))
    outputs = {key: len(sides) for key, (sides, _) in engine.outputs.items()}
    task, post = _told_task(outputs)
    inside = dtype == "uint8"
    layout = "NHWC" if len(shape) == 4 and shape[3] == 3 else "NCHW"
    if task is None or len(shape) != 4 or dtype not in ("uint8", "float32") or 3 not in (shape[1], shape[3]):
        told = ", ".join(f"{key} of {count} axes" for key, count in outputs.items())
        raise WeightsError(f"{where} takes {dtype} {shape} and gives {told}; that is no MobileViTV2 of this package.")
    usual = {"classify": 256, "segment": 512, "detect": 320}[task]
    sides = shape[1:3] if layout == "NHWC" else shape[2:4]
    height, width = (side or usual for side in sides)
    classify = task == "classify"
    edge = round(min(height, width) * 288 / 256)
    picture = PictureContract(
        height=height,
        width=width,
        resize={"shortest_edge": edge} if classify else {"height": height, "width": width},
        crop={"height": height, "width": width} if classify else None,
        inside=inside,
    )
    axes = ("batch", *(("height", "width") if layout == "NCHW" or inside else ()))
    places = (0, *((2, 3) if layout == "NCHW" else (1, 2)))
    free = tuple(axis for axis, place in zip(axes, places, strict=False) if shape[place] is None)
    count = _told_classes(engine, task)
    logger.warning(
        "%s has no metadata: it is taken for a model of task %s with %d classes without names, RGB values 0..%d, %d x %d pixels.",
        where, task, count, 255 if inside else 1, width, height,
    )  # fmt: skip
    return Metadata(
        task=task,
        labels=tuple(f"LABEL_{index}" for index in range(count)),
        picture=picture,
        layout=layout,
        inputs=(Port(name=name, shape=tuple(side if side is not None else "free" for side in shape), dtype=dtype, meaning=""),),
        outputs=tuple(Port(name=key, shape=(), dtype=kind, meaning="") for key, (_, kind) in engine.outputs.items()),
        postprocessing=post,
        activation="softmax",
        precision="fp32",
        dynamic=free,
        source="unknown",
        licence="unknown",
        weights_sha256="",
        versions={},
    )


def _told_task(outputs: Mapping[str, int]) -> tuple[str | None, str]:
    if "count" in outputs and "boxes" in outputs:
        return "detect", "suppression"
    if {"scores", "boxes"} <= outputs.keys():
        return "detect", "boxes"
    if outputs.get("mask") == 3:
        return "segment", "argmax"
    if "probabilities" in outputs:
        return "classify", "softmax"
    axes = outputs.get("logits")
    return {2: ("classify", "none"), 4: ("segment", "none")}.get(axes or 0, (None, ""))


def _told_classes(engine: Engine, task: str) -> int:
    name = {
        "classify": "probabilities" if "probabilities" in engine.outputs else "logits",
        "segment": "logits",
        "detect": "scores",
    }[task]
    shape = engine.outputs.get(name, ((), ""))[0]
    axis = 1 if task != "detect" else 2
    return (shape[axis] or 0) if len(shape) > axis else 0
