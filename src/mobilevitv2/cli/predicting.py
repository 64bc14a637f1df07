"""The verb `predict`."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from mobilevitv2.cli.arguments import STDOUT, Argument
from mobilevitv2.cli.engines import runtime_answers
from mobilevitv2.cli.output import (
    CocoWriter,
    CsvWriter,
    JsonWriter,
    line_of,
    note,
    opened,
    printable,
    table_of,
    writable_folder,
)
from mobilevitv2.cli.saving import Saver
from mobilevitv2.contract import default_model, resolve
from mobilevitv2.errors import ConfigurationError, ImageError
from mobilevitv2.picture_sources import Named, find_pictures
from mobilevitv2.runtime.engines import is_runtime_file
from mobilevitv2.text_table import counted
from mobilevitv2.video import Video, is_video, read_video

if TYPE_CHECKING:
    from mobilevitv2.prediction import Prediction, Task
    from mobilevitv2.video import VideoWriter

MOST_TABLES = 10
"""Pictures that get a table each; more get a line each."""
DEFAULT_FOLDER = "predictions"


def predict(
    sources: Annotated[
        list[str],
        Argument(
            "pictures and videos: files, folders (with all below), globs, URLs, or - for paths on standard input", metavar="SOURCE"
        ),
    ],
    *,
    model: Annotated[
        str | None,
        Argument("name (`mobilevitv2 models`), folder, weights file or hub id; without it the one of the task inside the package"),
    ] = None,
    task: Annotated[
        Literal["classify", "segment", "detect"] | None,
        Argument(
            "what to answer: labels, the class of each pixel, or boxes; told from the model, or classify, where it is not given"
        ),
    ] = None,
    top_k: Annotated[int, Argument("classify: labels for each picture", metavar="N")] = 5,
    threshold: Annotated[float | None, Argument("detect: least score of a box, 0 to 1; 0.3 without it", metavar="SCORE")] = None,
    classes: Annotated[
        str | None, Argument("segment, detect: tell of these alone; names or indices with commas between", metavar="A,B")
    ] = None,
    tile: Annotated[
        int | None,
        Argument("segment, detect: answer larger pictures in overlapping tiles with this side, e.g. 1024", metavar="PIXELS"),
    ] = None,
    device: Annotated[str | None, Argument("cpu, cuda, cuda:1, mps; without it the best there is", metavar="NAME")] = None,
    batch_size: Annotated[
        int, Argument("pictures answered at once; of many, ONNX Runtime and OpenVINO answer one on each core", metavar="N")
    ] = 16,
    workers: Annotated[
        int | None,
        Argument("threads that read pictures, and in those two answer them; without it one a core, torch at most 8", metavar="N"),
    ] = None,
    json: Annotated[
        str | None,
        Argument(
            "write JSON to FILE.json, or to standard output; FILE.jsonl has one answer a line",
            metavar="FILE.json",
            file_suffix=(".json", ".jsonl"),
        ),
    ] = None,
    csv: Annotated[
        str | None, Argument("write CSV to FILE.csv, or to standard output", metavar="FILE.csv", file_suffix=".csv")
    ] = None,
    coco: Annotated[
        str | None,
        Argument(
            "segment, detect: write COCO's results to FILE.json, or to standard output", metavar="FILE.json", file_suffix=".json"
        ),
    ] = None,
    masks: Annotated[bool, Argument("segment: put the pixels of each class into the JSON, as COCO's run lengths")] = False,
    save: Annotated[
        str | None, Argument("write each picture or video with its answer, and masks as index PNG, into this folder", metavar="DIR")
    ] = None,
    video: Annotated[bool, Argument("take a folder's pictures as the frames of one video")] = False,
    rate: Annotated[float | None, Argument("with --video: frames a second; 25 without it", metavar="FPS")] = None,
    every: Annotated[int, Argument("of videos, answer each N-th frame", metavar="N")] = 1,
    engine: Annotated[
        Literal["auto", "torch", "onnxruntime", "openvino", "executorch", "litert"],
        Argument("what runs the model; auto takes a file's own runtime, and for classifiers one that starts faster than torch"),
    ] = "auto",
    attention: Annotated[
        bool,
        Argument(f"also write the context scores of each attention layer over the picture (into {DEFAULT_FOLDER}/, or --save)"),
    ] = False,
) -> int:
    """Say what is on pictures and videos.

    Prints the most probable labels of each picture, how much of it each class covers, or the boxes of the objects on it.

    exit codes: 0 every picture was answered; 1 some or all could not be read (the reason is on standard error and, in JSON and CSV,
    under "error"), or nothing could be done at all; 2 bad usage; 130 interrupted.

    examples:
      mobilevitv2 predict cat.jpg
      mobilevitv2 predict photos/ --json answers.json --save annotated
      mobilevitv2 predict cat.jpg --task segment --save annotated
      mobilevitv2 predict street.mp4 --task detect --classes person,car --every 5 --json boxes.jsonl --save annotated
      find . -name '*.png' | mobilevitv2 predict - --csv --model mobilevitv2-1.0-imagenet1k-256
    """
    if (json, csv, coco).count(STDOUT) > 1:
        raise ConfigurationError("only one of --json, --csv and --coco can go to standard output; name a file for the others.")
    if model is None or not is_runtime_file(model):
        model = os.fspath(resolve(model or default_model(task)))
    folder = save or (DEFAULT_FOLDER if attention else None)
    if attention and task not in (None, "classify"):
        raise ConfigurationError(f"--attention shows where a classifier looks; --task {task} has no such maps: leave it out.")
    with ExitStack() as stack:
        # What is to be written is opened before the model is loaded, so that a folder without permission is known at once.
        saver = Saver(writable_folder(folder), labels=save is not None) if folder is not None else None
        writers: list[Any] = []
        if json is not None:
            writers.append(JsonWriter(stack.enter_context(opened(json)), lines=json.lower().endswith(".jsonl"), masks=masks))
        if csv is not None:
            writers.append(CsvWriter(stack.enter_context(opened(csv))))
        if coco is not None:
            writers.append(CocoWriter(stack.enter_context(opened(coco))))

        groups = _groups(sources, folders_are_videos=video, every=every, rate=rate)
        wanted = None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]
        answering: Any = runtime_answers(
            model,
            engine=engine,
            task=task,
            top_k=top_k,
            threshold=threshold,
            classes=wanted,
            tile=tile,
            device=device,
            attention=attention,
            callers=_callers(groups, workers),
        )
        if answering is None:
            from mobilevitv2.cli.quiet import quiet_libraries
            from mobilevitv2.prediction import open_task

            quiet_libraries()
            answering = open_task(
                model,
                task=task,
                top_k=top_k,
                threshold=threshold,
                classes=wanted,
                tile=tile,
                device=device,
                attention=attention,
            )
        _prepare_writers(writers, answering, groups)
        run = _Run(answering, writers, saver, batch_size=batch_size, workers=workers, quiet=STDOUT in (json, csv, coco))
        for group in groups:
            run.answer(group)
        for writer in writers:
            writer.close()
    if saver is not None:
        note(f"{counted(saver.count, 'file')} written to {saver.folder}{os.sep}")
    if run.failed and run.count > 1:
        note(f"{run.failed:,} of {counted(run.count, 'picture')} could not be read")
    return 1 if run.failed else 0


def _callers(groups: Sequence[Video | list[Named]], workers: int | None) -> int:
    """Threads that a runtime should answer with."""
    from mobilevitv2.streaming import callers_for, check_counts

    check_counts(1, workers)
    counts = [group.count if isinstance(group, Video) else len(group) for group in groups]
    return callers_for(None if None in counts else sum(count or 0 for count in counts), workers)


def _prepare_writers(writers: Sequence[Any], answering: Task, groups: Sequence[Video | list[Named]]) -> None:
    """What the writers have to know of the model and the sources."""
    for writer in writers:
        if isinstance(writer, CsvWriter):
            writer.frames = any(isinstance(group, Video) for group in groups)
        if isinstance(writer, CocoWriter):
            if answering.name == "classify":
                raise ConfigurationError(
                    "--coco writes boxes and masks; the model gives labels: use --json, or --task detect or segment."
                )
            from mobilevitv2.class_names import coco_category_ids

            writer.category_ids = coco_category_ids(answering.names)


def _groups(sources: Sequence[str], *, folders_are_videos: bool, every: int, rate: float | None) -> list[Video | list[Named]]:
    """The sources in order: videos by themselves, pictures that follow each other together."""
    from mobilevitv2.streaming import named_sources

    groups: list[Video | list[Named]] = []
    for source in _with_globs(_with_standard_input(sources)):
        found: Video | list[Named]
        if is_video(source) or (folders_are_videos and os.path.isdir(source)):
            try:
                found = read_video(source, every=every, rate=rate if os.path.isdir(source) else None)
            except ImageError as error:
                found = [Named(source, error)]
        else:
            found = list(named_sources(source))
        if isinstance(found, list) and groups and isinstance(groups[-1], list):
            groups[-1] += found
        else:
            groups.append(found)
    return groups


def _with_globs(sources: Iterator[str]) -> Iterator[str]:
    """The sources, with patterns such as *.mp4, where the shell left them alone, replaced by the videos that they match."""
    for source in sources:
        if not (glob.has_magic(source) and is_video(source)) or os.path.exists(source):
            yield source
            continue
        try:
            yield from find_pictures([source])
        except ImageError:
            yield source  # the message comes where it is read


class _Run:
    """One model, answering group after group of pictures."""

    def __init__(
        self, answering: Task, writers: Sequence[Any], saver: Saver | None, *, batch_size: int, workers: int | None, quiet: bool
    ) -> None:
        self.answering, self.writers, self.saver, self.quiet = answering, writers, saver, quiet
        self.batch_size, self.workers = batch_size, workers
        self.count = self.failed = 0

    def answer(self, group: Video | list[Named]) -> None:
        """Answer the pictures of a group or the frames of a video, and write what was asked for."""
        from mobilevitv2.streaming import answers_of, frames

        is_film = isinstance(group, Video)
        answers = answers_of(
            frames(group) if isinstance(group, Video) else group,
            self.answering,
            batch_size=self.batch_size,
            workers=self.workers,
            keep_pictures=self.saver is not None,
        )
        total = group.count if isinstance(group, Video) else len(group)
        tables = not is_film and (total or 0) <= MOST_TABLES
        with ExitStack() as stack:
            shown, tell = stack.enter_context(_progress(answers, total, unit="frame" if is_film else "picture"))
            film: VideoWriter | None = None
            if isinstance(group, Video) and self.saver is not None and self.saver.labels:
                film = stack.enter_context(self.saver.video(group, self.answering))
            for prediction in shown:
                self._one(prediction, tell, film, tables=tables)

    def _one(self, prediction: Prediction, tell: Callable[[str, TextIO], None], film: VideoWriter | None, *, tables: bool) -> None:
        self.count += 1
        for writer in self.writers:
            writer.write(prediction)
        if prediction.error is not None:
            self.failed += 1
            tell(f"mobilevitv2: {printable(prediction.error)}", sys.stderr)
            return
        if not self.quiet:
            tell(table_of(prediction) if tables else line_of(prediction), sys.stdout)
        if film is not None and prediction.picture is not None:
            film.write(self.answering.draw(prediction.picture, prediction, still=False), time=prediction.time)
        elif self.saver is not None:
            self.saver.save(prediction, self.answering)


def _with_standard_input(sources: Sequence[str]) -> Iterator[str]:
    """The sources, with "-" replaced by the lines of standard input (or what `find -print0` writes)."""
    for source in sources:
        if source != STDOUT:
            yield source
            continue
        content = sys.stdin.buffer.read()
        for path in content.split(b"\0") if b"\0" in content else content.splitlines():
            if path.strip():
                yield os.fsdecode(path)


@contextmanager
def _progress(
    answers: Iterator[Prediction], total: int | None, *, unit: str
) -> Iterator[tuple[Iterator[Prediction], Callable[[str, TextIO], None]]]:
    """The answers behind a progress bar, where there are many and somebody watches; and how to write a line past the bar."""
    if (total is not None and total < MOST_TABLES) or not sys.stderr.isatty():
        yield answers, _write_line
        return
    from tqdm import tqdm

    with tqdm(answers, total=total, unit=unit, leave=False) as bar:
        yield iter(bar), lambda text, stream: bar.write(text, file=stream)


def _write_line(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")
