"""An exported file as a model: pictures in, the same answers out that `mobilevitv2.predict` gives."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.answers import Area, Box, Label, Prediction
from mobilevitv2.class_choice import Class, chosen_classes
from mobilevitv2.errors import ConfigurationError, ImageError, MobileViTV2Error, WeightsError
from mobilevitv2.pictures import read_picture
from mobilevitv2.runtime import postprocessing
from mobilevitv2.runtime.checking import INPUTS, check_ports, the_input, told_classes, told_task
from mobilevitv2.runtime.engines import Engine, open_engine
from mobilevitv2.runtime.metadata import Metadata, PictureContract, Port
from mobilevitv2.runtime.preprocessing import as_input, prepare
from mobilevitv2.text_table import counted

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

    A file without metadata is opened with what its shapes tell, and a warning (logger "mobilevitv2.runtime.model") says what was
    assumed.

    Raises:
        ConfigurationError: no such file, an ending that no engine opens, or threads or callers below 1.
        WeightsError: a damaged file, one that is no MobileViTV2's, or metadata that do not fit the file.
        MissingDependency: the engine is not installed; the message has the command.
    """
    place = Path(path)
    model = RuntimeModel(open_engine(place, engine=engine, threads=threads, callers=callers), where=str(place))
    if model.engine.metadata is not None:
        check_ports(model.metadata, model.engine, model.where)
    return model


class RuntimeModel:
    """A file and what it says about itself; `open_model` makes it.

    `predict` answers one picture of any kind; `prepare`, `answer` and `raw` are its steps. One thread may use it at a time, as
    many as `engine.callers` where it was opened with `callers`.

    Attributes:
        metadata: task, labels, input contract; assumed from the shapes, with a warning, where the file says nothing.
        engine: what runs it: `engine.name`, `engine.version`, `engine.inputs`, `engine.outputs`.
    """

    def __init__(self, engine: Engine, *, where: str) -> None:
        self.engine, self.where = engine, where
        if engine.metadata is None:
            self.metadata = assumed_metadata(engine, where)
        else:
            self.metadata = Metadata.from_json(engine.metadata, where=where)

    @property
    def task(self) -> str:
        """ "classify", "segment" or "detect"."""
        return self.metadata.task

    @property
    def names(self) -> Mapping[int, str]:
        """Of the classes, by index; empty where the file does not tell."""
        return dict(enumerate(self.metadata.labels))

    @property
    def largest_batch(self) -> int | None:
        """Pictures that the file takes at once; None for any number."""
        ((shape, _),) = self.engine.inputs.values()
        return shape[0]

    # ---- whole answers -----------------------------------------------------------------------------------------------------------

    def predict(
        self,
        source: Any,
        *,
        top_k: int = 5,
        threshold: float = DEFAULT_THRESHOLD,
        classes: Iterable[Class] | None = None,
    ) -> Prediction:
        """The answer for one picture, resized and cropped as the file's contract says.

        Args:
            source: the picture: a path, URL, the bytes of a file, a Pillow picture, or an array, uint8 (height, width, 3) in RGB.
            top_k: labels of a classifier, at least 1; no more than it has classes.
            threshold: what a detector's boxes score more than, 0 to 1; other tasks pass it over.
            classes: names or indices of the classes to tell of; all where None. For segment and detect.

        Returns:
            By task, the surest or largest first: `labels` with label, probability (0 to 1) and index; `mask`, the class of each
            pixel (height, width) in uint8 or int16 at the picture's own size, with `areas` (share of the picture 0 to 1, pixels);
            `boxes` with score (0 to 1) and box (left, top, right, bottom) in the picture's pixels. `size` is (width, height). A
            picture that cannot be read gives `error`, the reason, and nothing else.

        Raises:
            ConfigurationError: a top_k, threshold or class that there is not. WeightsError: the runtime fails.
        """
        if not 0 <= threshold <= 1:
            raise ConfigurationError(f"threshold={threshold} is no score; use 0 (all boxes) to 1.")
        wanted = None if classes is None else self._chosen(classes)
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "picture 1"
        try:
            picture = read_picture(source)
            pixels = self.prepare(picture)
        except ImageError as error:
            return Prediction(name, task=self.task, error=str(error))
        fields = self.answer(pixels[None], [picture.size], top_k=top_k, threshold=threshold, classes=wanted)[0]
        return Prediction(name, task=self.task, size=picture.size, **fields)

    def prepare(self, picture: Image.Image) -> Array:
        """An RGB Pillow picture as uint8 (height, width, 3), 0 to 255, resized and cropped as the contract says.

        Raises:
            ImageError: a picture that the resize would make enormous.
        """
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
        """For each prepared picture, the fields of its `Prediction`; for whoever reads pictures by himself, or many at once.

        Args:
            pixels: uint8 (batch, height, width, 3), as `prepare` gives them, stacked.
            sizes: (width, height) of each picture before that, in whose pixels masks and boxes are given.
            top_k, threshold: as in `predict`.
            classes: indices.

        Raises:
            ConfigurationError: pixels of another shape or type, or a top_k below 1. WeightsError: the runtime fails.
        """
        raw = self.raw(pixels)
        wanted = None if classes is None else frozenset(classes)
        if self.task == "classify":
            scores = self._probabilities(raw)
            return [{"labels": self._labels(each, top_k)} for each in scores]
        if self.task == "segment":
            return [self._areas(self._mask(raw, index, size), wanted) for index, size in enumerate(sizes)]
        return [self._boxes(raw, index, size, threshold, wanted) for index, size in enumerate(sizes)]

    def raw(self, pixels: Array) -> dict[str, Array]:
        """The file's own outputs for prepared pictures, in as many runs as its batch size asks for.

        Args:
            pixels: uint8 (batch, height, width, 3), RGB, 0 to 255, as `prepare` gives them, stacked.

        Returns:
            Name -> array with the batch in front: `probabilities` or `logits` (batch, classes); `mask` (batch, h, w) or `logits`
            (batch, classes, h, w); `scores` (batch, anchors, classes) and `boxes` (batch, anchors, 4), or after suppression `boxes`
            (batch, n, 4), `scores`, `labels` (batch, n) and `count` (batch,).

        Raises:
            ConfigurationError: pixels of another shape or type. WeightsError: the runtime fails.
        """
        self._check_pixels(pixels)
        inputs = as_input(pixels, self.metadata.picture, self.metadata.layout)
        step = self.largest_batch
        if step is None or len(inputs) == step:
            return self._run(inputs)
        runs = []
        for start in range(0, len(inputs), step):
            part = inputs[start : start + step]
            missing = step - len(part)
            padded = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            runs.append({name: value[: step - missing] for name, value in self._run(padded).items()})
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}

    def _check_pixels(self, pixels: Array) -> None:
        picture, free = self.metadata.picture, self.metadata.dynamic
        sides = pixels.shape[1:3]
        fits = len(sides) == 2 and all(
            side == own or name in free
            for name, side, own in zip(("height", "width"), sides, (picture.height, picture.width), strict=True)
        )
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or not len(pixels) or pixels.shape[3] != 3 or not fits:
            raise ConfigurationError(
                f"pixels of shape {pixels.shape} and type {pixels.dtype} do not fit {self.where}: stack what `prepare` gives, "
                f"uint8 (batch, {picture.height}, {picture.width}, 3), RGB from 0 to 255."
            )

    def _run(self, inputs: Array) -> dict[str, Array]:
        try:
            return self.engine.run(inputs)
        except MobileViTV2Error:
            raise
        except Exception as error:  # each runtime raises its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
            raise WeightsError(
                f"{self.where} fails in {self.engine.name} on pictures {inputs.shape}, {inputs.dtype} ({reason}); give fewer "
                "pictures at once if the memory was too small, else export it again."
            ) from error

    def _chosen(self, classes: Iterable[Class]) -> frozenset[int]:
        """Indices stay what they are, also where a class is called like a number."""
        given = [classes] if isinstance(classes, str | int) else list(classes)
        count = len(self.metadata.labels)
        wrong = [each for each in given if isinstance(each, int) and not 0 <= each < (count or each + 1)]
        if wrong or not given:
            told = f"class {wrong[0]} is not among the model's, numbered from 0 to {count - 1}" if wrong else "classes is empty"
            raise ConfigurationError(f"{told}; leave classes out to have all.")
        found: set[int] = set()
        for each in given:
            found |= {each} if isinstance(each, int) else chosen_classes(self.names, count, [each]) or set()
        return frozenset(found)

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


def assumed_metadata(engine: Engine, where: str) -> Metadata:
    """What a file without metadata most likely is, told from its shapes; says so in a warning.

    Raises:
        WeightsError: inputs or outputs that no MobileViTV2 of this package has.
    """
    name, (shape, dtype) = the_input(engine, where)
    task, post = told_task(engine.outputs)
    inside = dtype == "uint8"
    layout = "NHWC" if len(shape) == 4 and shape[3] == 3 else "NCHW"
    if task is None or len(shape) != 4 or dtype not in INPUTS or shape[3 if inside or layout == "NHWC" else 1] != 3:
        told = ", ".join(f"{key} of {len(each)} axes" for key, (each, _) in engine.outputs.items()) or "nothing"
        raise WeightsError(
            f"{where} takes {dtype} {shape} and gives {told}; that is no MobileViTV2 of this package: give a file that "
            "`mobilevitv2 export` wrote."
        )
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
    count = told_classes(engine.outputs) or 0
    classes = f"{counted(count, 'class', 'classes')} without names" if count else "an unknown number of classes"
    logger.warning(
        "%s has no metadata: it is taken for a model of task %s with %s, RGB values 0..%d, %d x %d pixels, %s. To have what it was "
        "made with, export it again.",
        where, task, classes, 255 if inside else 1, width, height,
        f"cut from the centre of pictures whose short side became {edge}" if classify else "to which pictures are stretched",
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
