"""Pictures in, answers out: `predict` for a list, `iter_predictions` for a stream.

Pictures are read and prepared in threads while the model answers the ones before; order is kept, and never more than a few
batches are in memory, however many pictures there are. A picture that cannot be read gets an answer with `error`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from mobilevitv2.attention import answer_with_maps
from mobilevitv2.contract import default_model, load_model, seen_box
from mobilevitv2.devices import choose_device
from mobilevitv2.draw import draw_labels
from mobilevitv2.errors import ConfigurationError, ImageError
from mobilevitv2.pictures import find_pictures, read_picture

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

Box = tuple[int, int, int, int]


class Label(NamedTuple):
    """One class that a picture may show."""

    label: str
    probability: float
    """0 to 1."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a label
    """Number of the class in the model."""


class ScoreMap(NamedTuple):
    """The context scores of one attention layer; see `mobilevitv2.attention`."""

    layer: str
    scores: np.ndarray[Any, np.dtype[np.float32]]
    """(height, width) of the layer's feature map."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        source: path, URL, or "picture 1" and so on for pictures without a name.
        size: (width, height) of the picture in pixels; None if it could not be read.
        labels: the most probable classes, most probable first; empty if the picture could not be read.
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
    seen: Box | None = field(default=None, repr=False)
    picture: Image.Image | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: source, width, height, labels, error."""
        width, height = self.size or (None, None)
        labels = [{"label": name, "probability": round(share, 6), "index": index} for name, share, index in self.labels]
        return {"source": self.source, "width": width, "height": height, "labels": labels, "error": self.error}


class Task(Protocol):
    """How one kind of model answers. `prepare` runs in several threads at once."""

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture as the model takes it: (channels, height, width)."""
        ...

    def answer(self, pixel_values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """For each picture of a batch (B, channels, height, width), whose pictures had these sizes, fields of its Prediction."""
        ...

    def draw(self, picture: Image.Image, prediction: Prediction) -> Image.Image:
        """The picture with the answer on it."""
        ...


class Classifier:
    """The task "classify": the most probable classes, with score maps on request."""

    def __init__(
        self, model: MobileViTV2PreTrainedModel, processor: MobileViTV2ImageProcessor, *, top_k: int = 5, attention: bool = False
    ) -> None:
        if top_k < 1:
            raise ConfigurationError(f"top_k={top_k} gives no label; ask for at least 1.")
        if model.config.num_labels < 1:
            raise ConfigurationError("the model has num_labels=0, so no classes to tell; use its features instead.")
        self.model, self.processor, self.attention = model, processor, attention
        self.top_k = min(top_k, model.config.num_labels)
        # Independent yes-or-no classes do not share one probability; as in transformers' pipeline.
        self.independent = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1

    def prepare(self, picture: Image.Image) -> Tensor:
        """(channels, height, width), as the image processor makes it."""
        pixel_values: Tensor = self.processor(picture, return_tensors="pt")["pixel_values"][0]
        return pixel_values

    def answer(self, pixel_values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
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

    def draw(self, picture: Image.Image, prediction: Prediction) -> Image.Image:
        """The picture with its labels written over the lower edge."""
        return draw_labels(picture, prediction.labels)

    def _labels(self, logits: Tensor) -> list[list[Label]]:
        logits = logits.float()
        probabilities = logits.sigmoid() if self.independent else logits.softmax(dim=-1)
        best = probabilities.topk(self.top_k)
        names = self.model.config.id2label
        return [
            [Label(str(names.get(index, f"LABEL_{index}")), value, index) for value, index in zip(values, indices, strict=True)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


TASKS = {"classify": Classifier}


def predict(
    sources: Any,
    *,
    model: str | os.PathLike[str] | MobileViTV2PreTrainedModel | None = None,
    processor: MobileViTV2ImageProcessor | None = None,
    task: str | None = None,
    top_k: int = 5,
    device: str | torch.device | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    attention: bool = False,
    progress: bool = False,
) -> list[Prediction]:
    """The most probable classes of pictures.

    Args:
        sources: one picture or many: paths, folders (with all below them), globs, URLs, bytes, Pillow pictures, arrays, tensors.
        model: the name of a record (`mobilevitv2 models`), a folder, a hub id, a weights file, or a model; the classifier inside
            the package where it is not given.
        processor: of `model`, where that is a model; the default one otherwise.
        task: "classify"; told from the model where it is not given.
        top_k: labels for each picture.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is where it is not given. A model stays where it is.
        batch_size: pictures that the model answers at once.
        workers: threads that read pictures; one for each processor core, at most 8, where it is not given.
        attention: give the context scores of each attention layer as well.
        progress: show a progress bar on stderr.

    Returns:
        One answer for each picture, in order; those that could not be read have `error`.

    Raises:
        ConfigurationError: a setting that gives no answer. WeightsError, DownloadError: a model that cannot be loaded.
    """
    items = list(named_sources(sources))
    answers = iter_predictions(
        items,
        model=model,
        processor=processor,
        task=task,
        top_k=top_k,
        device=device,
        batch_size=batch_size,
        workers=workers,
        attention=attention,
    )
    if progress:
        from tqdm import tqdm

        answers = iter(tqdm(answers, total=len(items), unit="picture"))
    return list(answers)


def iter_predictions(
    sources: Any,
    *,
    model: str | os.PathLike[str] | MobileViTV2PreTrainedModel | None = None,
    processor: MobileViTV2ImageProcessor | None = None,
    task: str | None = None,
    top_k: int = 5,
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
    _check_counts(batch_size, workers)  # before the model is loaded, which takes seconds
    answering = open_task(model, processor=processor, task=task, top_k=top_k, device=device, attention=attention)
    return answers_of(named_sources(sources), answering, batch_size=batch_size, workers=workers, keep_pictures=keep_pictures)


def open_task(
    model: str | os.PathLike[str] | MobileViTV2PreTrainedModel | None = None,
    *,
    processor: MobileViTV2ImageProcessor | None = None,
    task: str | None = None,
    top_k: int = 5,
    device: str | torch.device | None = None,
    attention: bool = False,
) -> Classifier:
    """The model, ready on its device, as the object that prepares, answers and draws. Arguments as in `predict`."""
    chosen = None if device is None else choose_device(device)  # before the model is loaded, which takes seconds
    if task is not None and task not in TASKS:
        raise ConfigurationError(f"task={task!r} is none that predict knows; use one of {', '.join(TASKS)}.")
    if model is None or isinstance(model, str | os.PathLike):
        loaded, own_processor = load_model(default_model() if model is None else model, task=task)
        processor, chosen = processor or own_processor, chosen or choose_device(None)
    else:
        loaded = model
    if loaded.task not in TASKS:
        raise ConfigurationError(
            f"the model is of task {loaded.task!r}, which predict does not answer for; it knows {', '.join(TASKS)}: "
            "choose a model of that task."
        )
    if processor is None:
        from mobilevitv2.image_processing import MobileViTV2ImageProcessor

        processor = MobileViTV2ImageProcessor()
    loaded = loaded.eval() if chosen is None else loaded.eval().to(chosen)
    return TASKS[loaded.task](loaded, processor, top_k=top_k, attention=attention)


# ---- from sources to answers -----------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    """A picture to read, under the name that its answer carries; an ImageError where it is known already that it cannot be read."""

    name: str
    source: Any


class _Prepared(NamedTuple):
    """A picture as the model takes it, or why there is none."""

    prediction: Prediction
    pixel_values: Tensor | None


def named_sources(sources: Any) -> Iterator[Named]:
    """Every picture that `sources` names, one after another: folders and globs opened up, pictures without a name numbered."""
    for index, source in enumerate(_each(sources), 1):
        if isinstance(source, Named):
            yield source
        elif isinstance(source, str | os.PathLike):
            yield from _found(source)
        else:
            yield Named(str(getattr(source, "filename", "") or f"picture {index}"), source)


def _each(sources: Any) -> Iterable[Any]:
    """`sources` where it is a collection of pictures; a collection of one where it is a picture itself."""
    one = isinstance(sources, str | bytes | bytearray | os.PathLike | Tensor | np.ndarray) or hasattr(sources, "read")
    return [sources] if one or not isinstance(sources, Iterable) else sources


def _found(source: str | os.PathLike[str]) -> Iterator[Named]:
    try:
        for path in find_pictures([source]):
            yield Named(path, path)
    except ImageError as error:
        yield Named(os.fspath(source), error)


def answers_of(
    items: Iterable[Named],
    task: Task,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    keep_pictures: bool = False,
) -> Iterator[Prediction]:
    """The answers of a task that is open already, one after another; arguments as in `iter_predictions`."""
    _check_counts(batch_size, workers)
    threads = workers or min(8, os.cpu_count() or 1)
    return _stream(items, task, batch_size=batch_size, workers=threads, keep_pictures=keep_pictures)


def _check_counts(batch_size: int, workers: int | None) -> None:
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size} gives no batch; use at least 1.")
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers={workers} reads no picture; use at least 1.")


def _stream(items: Iterable[Named], task: Task, *, batch_size: int, workers: int, keep_pictures: bool) -> Iterator[Prediction]:
    prepared = _prepare_ahead(items, task, workers=workers, ahead=batch_size + workers, keep_pictures=keep_pictures)
    try:
        while batch := list(islice(prepared, batch_size)):
            yield from _answer(batch, task)
    finally:
        prepared.close()


def _prepare_ahead(items: Iterable[Named], task: Task, *, workers: int, ahead: int, keep_pictures: bool) -> Generator[_Prepared]:
    """Prepared pictures in order; at most `ahead` of them wait."""
    waiting: deque[Future[_Prepared]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mobilevitv2-read")
    try:
        for item in items:
            waiting.append(pool.submit(_prepare, item, task, keep_pictures))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(item: Named, task: Task, keep_picture: bool) -> _Prepared:
    try:
        if isinstance(item.source, ImageError):
            raise item.source
        picture = read_picture(item.source)
        pixel_values = task.prepare(picture)
    except ImageError as error:
        return _Prepared(Prediction(item.name, error=str(error)), None)
    return _Prepared(Prediction(item.name, size=picture.size, picture=picture if keep_picture else None), pixel_values)


def _answer(batch: Sequence[_Prepared], task: Task) -> list[Prediction]:
    """The answers of a batch, in order; pictures of one shape go through the model together."""
    fields: dict[int, dict[str, Any]] = {}
    shapes: dict[torch.Size, list[int]] = {}
    for index, prepared in enumerate(batch):
        if prepared.pixel_values is not None:
            shapes.setdefault(prepared.pixel_values.shape, []).append(index)
    for indices in shapes.values():
        stacked = torch.stack([x for index in indices if (x := batch[index].pixel_values) is not None])
        sizes = [batch[index].prediction.size or (0, 0) for index in indices]
        fields.update(zip(indices, _run(task, stacked, sizes), strict=True))
    return [_with_fields(prepared.prediction, fields.get(index, {})) for index, prepared in enumerate(batch)]


def _run(task: Task, pixel_values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    try:
        return task.answer(pixel_values, sizes)
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"{len(pixel_values)} pictures at once do not fit into the device's memory; use a smaller batch_size, or device='cpu'."
        ) from error


def _with_fields(prediction: Prediction, fields: dict[str, Any]) -> Prediction:
    return replace(prediction, **fields)
