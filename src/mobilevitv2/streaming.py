"""How pictures flow through a task: sources opened up, pictures read and prepared in threads ahead of the model, answers in order.

Never more than a few batches are in memory, however many pictures there are. A picture that cannot be read gets an answer with
`error`.

Many pictures through a runtime that several threads may call go another way: each thread reads a picture and answers it by itself.
No core waits for another, and the runtime has no threads that spin while pictures are read (docs/performance.md, "Folders").
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from mobilevitv2.answers import Prediction
from mobilevitv2.errors import ConfigurationError, ImageError
from mobilevitv2.picture_sources import Named
from mobilevitv2.pictures import find_pictures, read_picture
from mobilevitv2.video import Video, is_video, read_video

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mobilevitv2.tasks import Task


Work = TypeVar("Work")
Result = TypeVar("Result")
MOST_CALLERS = 32
"""Each holds the feature maps of a picture: 30 MB at 256 px, 120 MB at 512."""


class _Prepared(NamedTuple):
    """A picture as the model takes it, or why there is none."""

    prediction: Prediction
    pixel_values: Tensor | None
    large: Image.Image | None = None
    """A picture to answer in tiles, for which there are no pixel_values."""


def named_sources(sources: Any) -> Iterator[Named]:
    """Every picture that `sources` names, one after another: folders, globs and videos opened up, those without a name numbered."""
    for index, source in enumerate(_each(sources), 1):
        if isinstance(source, Named):
            yield source
        elif isinstance(source, Video):
            yield from frames(source)
        elif isinstance(source, str | os.PathLike):
            yield from _found(source)
        else:
            yield Named(str(getattr(source, "filename", "") or f"picture {index}"), source)


def frames(video: Video) -> Iterator[Named]:
    """The frames; of a video without any that can be decoded the reason alone, so that what is named after it is answered."""
    try:
        yield from video
    except ImageError as error:
        yield Named(video.name, error)


def _each(sources: Any) -> Iterable[Any]:
    """`sources` where it is a collection of pictures; a collection of one where it is a picture itself."""
    one = (
        isinstance(sources, str | bytes | bytearray | os.PathLike | np.ndarray | Named)
        or hasattr(sources, "read")
        or _is_tensor(sources)
    )
    return [sources] if one or not isinstance(sources, Iterable) else sources


def _is_tensor(source: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it; exported files are answered without
    return torch is not None and isinstance(source, torch.Tensor)


def _found(source: str | os.PathLike[str]) -> Iterator[Named]:
    try:
        if is_video(source):
            yield from read_video(source)
            return
        for path in find_pictures([source]):
            if is_video(path):  # a glob such as *.mp4
                yield from _found(path)
            else:
                yield Named(path, path)
    except ImageError as error:
        yield Named(os.fspath(source), error)


def count_of(sources: Any) -> int | None:
    """How many pictures `sources` name, for a progress bar; None where that would take reading them."""
    if isinstance(sources, Video):
        return sources.count
    each = _each(sources)
    if not isinstance(each, list | tuple) or any(isinstance(source, Video) for source in each):
        return None
    paths = [source for source in each if isinstance(source, str | os.PathLike)]
    if any(is_video(path) for path in paths):
        return None
    return len(each) - len(paths) + sum(1 for path in paths for _ in _found(path))


def answers_of(
    items: Iterable[Named],
    task: Task,
    *,
    batch_size: int = 16,
    workers: int | None = None,
    keep_pictures: bool = False,
) -> Iterator[Prediction]:
    """The answers of a task that is open already, one after another; arguments as in `iter_predictions`.

    A task with an attribute `callers` above 1 is called by so many threads, with `together` pictures each time.
    """
    check_counts(batch_size, workers)
    callers: int = getattr(task, "callers", 1)
    if callers > 1:
        return _stream_in_threads(items, task, callers=callers, keep_pictures=keep_pictures)
    threads = workers or min(8, os.cpu_count() or 1)
    if task.tile is not None:  # pictures may be enormous, so few are held; batches are of tiles
        return _stream(items, task, group=1, workers=min(threads, 2), batch_size=batch_size, keep_pictures=keep_pictures)
    return _stream(items, task, group=batch_size, workers=threads, batch_size=batch_size, keep_pictures=keep_pictures)


def check_counts(batch_size: int, workers: int | None) -> None:
    """Raises: ConfigurationError: less than 1."""
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size} gives no batch; use at least 1.")
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers={workers} reads no picture; use at least 1.")


def callers_for(count: int | None, workers: int | None = None) -> int:
    """Threads that should answer `count` pictures at once: one a core where there are many (None: unknown) of them, or 1.

    A few are answered one after another, by all cores together.
    """
    cores = workers or min(MOST_CALLERS, _cores())
    return cores if count is None or count >= 2 * cores else 1


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stream_in_threads(items: Iterable[Named], task: Task, *, callers: int, keep_pictures: bool) -> Iterator[Prediction]:
    together: int = getattr(task, "together", 1)

    def answer(some: list[Named]) -> list[Prediction]:
        return _answer([_prepare(item, task, keep_pictures) for item in some], task, together)

    rest = iter(items)
    groups = iter(lambda: list(islice(rest, together)), [])
    answers = _work_ahead(groups, answer, workers=callers, ahead=2 * callers)
    try:
        for some in answers:
            yield from some
    finally:
        answers.close()


def _stream(
    items: Iterable[Named], task: Task, *, group: int, workers: int, batch_size: int, keep_pictures: bool
) -> Iterator[Prediction]:
    prepared = _work_ahead(items, lambda item: _prepare(item, task, keep_pictures), workers=workers, ahead=group + workers)
    try:
        while batch := list(islice(prepared, group)):
            yield from _answer(batch, task, batch_size)
    finally:
        prepared.close()


def _work_ahead(items: Iterable[Work], work: Callable[[Work], Result], *, workers: int, ahead: int) -> Generator[Result]:
    """Results in order; at most `ahead` of them wait."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mobilevitv2-read")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(item: Named, task: Task, keep_picture: bool) -> _Prepared:
    start = Prediction(item.name, task=task.name, frame=item.frame, time=item.time)
    try:
        if isinstance(item.source, ImageError):
            raise item.source
        picture = read_picture(item.source)
        start = replace(start, size=picture.size, picture=picture if keep_picture else None)
        if task.tile is not None and max(picture.size) > task.tile:
            return _Prepared(start, None, large=picture)
        return _Prepared(start, task.prepare(picture))
    except ImageError as error:
        return _Prepared(replace(start, size=None, picture=None, error=str(error)), None)


def _answer(batch: Sequence[_Prepared], task: Task, batch_size: int) -> list[Prediction]:
    """The answers of a batch, in order; pictures of one shape go through the model together."""
    fields: dict[int, dict[str, Any]] = {}
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, prepared in enumerate(batch):
        if prepared.pixel_values is not None:
            shapes.setdefault(tuple(prepared.pixel_values.shape), []).append(index)
        elif prepared.large is not None:
            fields[index] = _run_in_tiles(task, prepared.large, batch_size)
    for indices in shapes.values():
        stacked = _stacked([x for index in indices if (x := batch[index].pixel_values) is not None])
        sizes = [batch[index].prediction.size or (0, 0) for index in indices]
        fields.update(zip(indices, _run(task, stacked, sizes), strict=True))
    return [replace(prepared.prediction, **fields.get(index, {})) for index, prepared in enumerate(batch)]


def _stacked(prepared: list[Any]) -> Any:
    """Tensors, or the arrays of an exported file's task, as a batch."""
    if isinstance(prepared[0], np.ndarray):
        return np.stack(prepared)
    import torch

    return torch.stack(prepared)


def _is_out_of_memory(error: RuntimeError) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _run(task: Task, pixel_values: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    try:
        return task.answer(pixel_values, sizes)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise ConfigurationError(
            f"{len(pixel_values)} pictures at once do not fit into the device's memory; use a smaller batch_size, or device='cpu'."
        ) from error


def _run_in_tiles(task: Task, picture: Image.Image, batch_size: int) -> dict[str, Any]:
    try:
        return task.answer_in_tiles(picture, batch_size=batch_size)
    except ImageError as error:
        return {"error": str(error)}
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise ConfigurationError(
            f"{batch_size} tiles at once do not fit into the device's memory; use a smaller batch_size, or device='cpu'."
        ) from error
