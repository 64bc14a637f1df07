"""What the verbs write: lines on the terminal, files that appear whole or not at all."""

from __future__ import annotations

import csv
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mobilevitv2.cli.arguments import STDOUT
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.prediction import Prediction

BAR_WIDTH, WIDEST_LABEL = 24, 48
CSV_COLUMNS = ("source", "width", "height", "rank", "label", "probability", "index", "error")


def say(text: str) -> None:
    """One line, or several, on standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line on standard error, with the program's name."""
    sys.stderr.write(f"mobilevitv2: {text}\n")


def say_json(value: Any) -> None:
    """A value as JSON on standard output."""
    say(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """File names and labels may hold line breaks and terminal commands; those are shown as question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# ---- files -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file that takes its name when it is complete; until then, and after an error, what was there before stays.

    Raises:
        ConfigurationError: the path is a folder. OSError: as the system gave it; at once where nothing can be written there.
    """
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file to write to.")
    if path.exists() and not path.is_file():  # a device or pipe has nothing to keep whole
        with path.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("x", encoding="utf-8", newline="") as stream:
            yield stream
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def opened(target: str) -> Iterator[IO[str]]:
    """A file that appears whole, or standard output for "-"."""
    if target == STDOUT:
        yield sys.stdout
        return
    with whole_file(Path(target).expanduser()) as stream:
        yield stream


def writable_folder(name: str) -> Path:
    """The folder, made if need be, after a trial: better to learn now than after an hour of work that nothing can be written.

    Raises:
        OSError: as the system gave it.
    """
    folder = Path(name).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


# ---- predictions -----------------------------------------------------------------------------------------------------------------


class JsonWriter:
    """Predictions as one JSON array, one a line, written as they come."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream, self.count = stream, 0

    def write(self, prediction: Prediction) -> None:
        """Add one."""
        self.stream.write(("[\n" if self.count == 0 else ",\n") + json.dumps(prediction.to_dict()))
        self.count += 1

    def close(self) -> None:
        """End the array."""
        self.stream.write("\n]\n" if self.count else "[]\n")


class CsvWriter:
    """Predictions as a table: one row for each label, one for each picture without answer."""

    def __init__(self, stream: IO[str]) -> None:
        self.rows, self.headed = csv.writer(stream, lineterminator="\n"), False

    def write(self, prediction: Prediction) -> None:
        """Add one."""
        self._head()
        start = (prediction.source, *(prediction.size or ("", "")))
        for rank, (label, probability, index) in enumerate(prediction.labels, 1):
            self.rows.writerow((*start, rank, label, f"{probability:.6f}", index, ""))
        if prediction.error is not None:
            self.rows.writerow((*start, "", "", "", "", prediction.error))

    def close(self) -> None:
        """See that even an empty table has its head."""
        self._head()

    def _head(self) -> None:
        if not self.headed:
            self.rows.writerow(CSV_COLUMNS)
            self.headed = True


def table_of(prediction: Prediction) -> str:
    """A picture's labels, one a line, with percentages and bars."""
    width, height = prediction.size or (0, 0)
    labels = [(_shortened(printable(label.label), WIDEST_LABEL), label.probability) for label in prediction.labels]
    column = max((len(name) for name, _ in labels), default=0)
    room = shutil.get_terminal_size().columns - column - 13
    bars = [_bar(probability, max(0, min(BAR_WIDTH, room))) for _, probability in labels]
    rows = [f"  {name:<{column}}  {100 * share:5.1f} %  {bar}".rstrip() for (name, share), bar in zip(labels, bars, strict=True)]
    return "\n".join([f"{printable(prediction.source)} ({width} x {height})", *rows])


def line_of(prediction: Prediction) -> str:
    """A picture's best labels on one line."""
    best = ", ".join(f"{printable(label.label)} {100 * label.probability:.1f} %" for label in prediction.labels[:3])
    return f"{printable(prediction.source)}: {best}"


def _bar(share: float, width: int) -> str:
    """Full blocks and one of eight widths; number signs where the terminal has no blocks."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    text = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "#" * round(share * width)
    return text.rstrip()


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."
