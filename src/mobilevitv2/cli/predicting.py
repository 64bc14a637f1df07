"""The verb `predict`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Literal, TextIO
from urllib.parse import unquote, urlsplit

from mobilevitv2.cli.arguments import STDOUT, Argument
from mobilevitv2.cli.output import CsvWriter, JsonWriter, line_of, note, opened, printable, table_of, writable_folder
from mobilevitv2.contract import default_model, resolve
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.prediction import Prediction, Task

MOST_TABLES = 10
"""Pictures that get a table each; more get a line each."""
DEFAULT_FOLDER = "predictions"
LARGEST_MAP_SIDE = 1280


def predict(
    sources: Annotated[
        list[str], Argument("files, folders (with all below), globs, URLs, or - for paths on standard input", metavar="SOURCE")
    ],
    *,
    model: Annotated[
        str | None,
        Argument("name (`mobilevitv2 models`), folder, weights file or hub id; without it the classifier inside the package"),
    ] = None,
    task: Annotated[Literal["classify"] | None, Argument("what to answer; told from the model where it is not given")] = None,
    top_k: Annotated[int, Argument("labels for each picture", metavar="N")] = 5,
    device: Annotated[str | None, Argument("cpu, cuda, cuda:1, mps; without it the best there is", metavar="NAME")] = None,
    batch_size: Annotated[int, Argument("pictures answered at once", metavar="N")] = 16,
    workers: Annotated[int | None, Argument("threads that read pictures; without it one a core, at most 8", metavar="N")] = None,
    json: Annotated[
        str | None, Argument("write JSON to FILE.json, or to standard output", metavar="FILE.json", file_suffix=".json")
    ] = None,
    csv: Annotated[
        str | None, Argument("write CSV to FILE.csv, or to standard output", metavar="FILE.csv", file_suffix=".csv")
    ] = None,
    save: Annotated[str | None, Argument("write each picture with its labels into this folder", metavar="DIR")] = None,
    attention: Annotated[
        bool,
        Argument(f"also write the context scores of each attention layer over the picture (into {DEFAULT_FOLDER}/, or --save)"),
    ] = False,
) -> int:
    """Say what is on pictures.

    Prints the most probable labels of each picture; a bar shows how sure the model is.

    exit codes: 0 every picture was answered; 1 some or all could not be read (the reason is on standard error and, in JSON and CSV,
    under "error"), or nothing could be done at all; 2 bad usage; 130 interrupted.

    examples:
      mobilevitv2 predict cat.jpg
      mobilevitv2 predict photos/ --json answers.json --save annotated
      find . -name '*.png' | mobilevitv2 predict - --csv --model mobilevitv2-1.0-imagenet1k-256
    """
    if json == csv == STDOUT:
        raise ConfigurationError("--json and --csv cannot both go to standard output; name a file for one of them.")
    model = os.fspath(resolve(model or default_model()))
    folder = save or (DEFAULT_FOLDER if attention else None)
    with ExitStack() as stack:
        # What is to be written is opened before the model is loaded, so that a folder without permission is known at once.
        saver = Saver(writable_folder(folder), labels=save is not None) if folder is not None else None
        writers = [make(stack.enter_context(opened(to))) for make, to in ((JsonWriter, json), (CsvWriter, csv)) if to is not None]

        from mobilevitv2.cli.quiet import quiet_libraries
        from mobilevitv2.prediction import answers_of, named_sources, open_task

        quiet_libraries()
        items = list(named_sources(_with_standard_input(sources)))
        answering = open_task(model, task=task, top_k=top_k, device=device, attention=attention)
        answers = answers_of(items, answering, batch_size=batch_size, workers=workers, keep_pictures=saver is not None)
        failed = 0
        with _progress(answers, len(items)) as (shown, tell):
            for prediction in shown:
                for writer in writers:
                    writer.write(prediction)
                if prediction.error is not None:
                    failed += 1
                    tell(f"mobilevitv2: {printable(prediction.error)}", sys.stderr)
                    continue
                if STDOUT not in (json, csv):
                    tell(table_of(prediction) if len(items) <= MOST_TABLES else line_of(prediction), sys.stdout)
                if saver is not None:
                    saver.save(prediction, answering)
        for writer in writers:
            writer.close()
    if saver is not None:
        note(f"{saver.count} files written to {saver.folder}{os.sep}")
    if failed and len(items) > 1:
        note(f"{failed} of {len(items)} pictures could not be read")
    return 1 if failed else 0


def _with_standard_input(sources: list[str]) -> Iterator[str]:
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
def _progress(answers: Iterator[Prediction], total: int) -> Iterator[tuple[Iterator[Prediction], Callable[[str, TextIO], None]]]:
    """The answers behind a progress bar, where there are many and somebody watches; and how to write a line past the bar."""
    if total < MOST_TABLES or not sys.stderr.isatty():
        yield answers, _write_line
        return
    from tqdm import tqdm

    with tqdm(answers, total=total, unit="picture", leave=False) as bar:
        yield iter(bar), lambda text, stream: bar.write(text, file=stream)


def _write_line(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")


class Saver:
    """Writes what was answered as pictures: NAME.labels.jpg, NAME.attention.jpg, and NAME.attention/LAYER.jpg."""

    def __init__(self, folder: Path, *, labels: bool) -> None:
        self.folder, self.labels, self.count = folder, labels, 0
        self.taken: set[str] = set()

    def save(self, prediction: Prediction, task: Task) -> None:
        """Write the pictures of one answer.

        Raises:
            OSError: as the system gave it; no half-written picture is left behind.
        """
        picture, name = prediction.picture, self._name(prediction.source)
        assert picture is not None  # asked for above
        if self.labels:
            self._write(f"{name}.labels.jpg", task.draw(picture, prediction))
        if prediction.attention is None:
            return
        from mobilevitv2.draw import draw_heatmap, draw_score_maps, fitted

        self._write(f"{name}.attention.jpg", draw_score_maps(picture, prediction.attention, box=prediction.seen))
        small, box = fitted(picture, LARGEST_MAP_SIDE, box=prediction.seen)
        for layer, scores in prediction.attention:
            self._write(f"{name}.attention/{layer}.jpg", draw_heatmap(small, scores, box=box))

    def _write(self, name: str, picture: Image.Image) -> None:
        from mobilevitv2.weights import write_whole

        buffer = io.BytesIO()
        if max(picture.size) > 65_500:  # JPEG's limit
            picture.save(buffer, "PNG")
            name = f"{name.removesuffix('.jpg')}.png"
        else:
            picture.save(buffer, "JPEG", quality=92)
        write_whole(self.folder / name, buffer.getvalue())
        self.count += 1

    def _name(self, source: str) -> str:
        """The picture's own name, numbered where another one of this run has it: a/cat.jpg, b/cat.png -> cat, cat-2."""
        path = unquote(urlsplit(source).path) if "://" in source else source
        stem = PurePath(path).stem[:120] if not source.startswith("data:") else "picture"
        stem, number = stem or "picture", 2
        name = stem
        while name.lower() in self.taken:
            name, number = f"{stem}-{number}", number + 1
        self.taken.add(name.lower())
        return name
