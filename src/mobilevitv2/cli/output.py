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
CSV_START = ("source", "width", "height")
CSV_FRAME = ("frame", "time")
CSV_ANSWERS = {
    "classify": ("rank", "label", "probability", "index"),
    "segment": ("rank", "label", "share", "index", "pixels"),
    "detect": ("rank", "label", "score", "index", "left", "top", "right", "bottom"),
}


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
    """Predictions as one JSON array, one a line, or as JSON lines, written as they come."""

    def __init__(self, stream: IO[str], *, lines: bool = False, masks: bool = False) -> None:
        self.stream, self.lines, self.masks, self.count = stream, lines, masks, 0

    def write(self, prediction: Prediction) -> None:
        """Add one."""
        self.add(prediction.to_dict(masks=self.masks))

    def add(self, entry: dict[str, Any]) -> None:
        """Add what JSON can hold."""
        before = "" if self.lines else "[\n" if self.count == 0 else ",\n"
        self.stream.write(before + json.dumps(entry) + ("\n" if self.lines else ""))
        self.count += 1

    def close(self) -> None:
        """End the array."""
        if not self.lines:
            self.stream.write("\n]\n" if self.count else "[]\n")


class CocoWriter:
    """Predictions as COCO's results: one array of boxes, or of masks with their run lengths."""

    def __init__(self, stream: IO[str]) -> None:
        self.entries, self.place = JsonWriter(stream), 0
        self.category_ids: dict[int, int] | None = None
        """Of the model's classes, where they have other numbers in COCO."""

    def write(self, prediction: Prediction) -> None:
        """Add what was found on one picture."""
        from mobilevitv2.answers import coco_entries

        self.place += 1
        for entry in coco_entries(prediction, self.place, category_ids=self.category_ids):
            self.entries.add(entry)

    def close(self) -> None:
        """End the array."""
        self.entries.close()


class CsvWriter:
    """Predictions as a table: one row for each label, area or box, one for each picture without answer."""

    def __init__(self, stream: IO[str], *, frames: bool = False) -> None:
        self.rows, self.frames = csv.writer(stream, lineterminator="\n"), frames
        self.columns: tuple[str, ...] = ()

    def write(self, prediction: Prediction) -> None:
        """Add one."""
        self._head(prediction.task)
        start: tuple[Any, ...] = (prediction.source, *(prediction.size or ("", "")))
        if self.frames:
            time = "" if prediction.time is None else f"{prediction.time:.6f}"
            start += ("" if prediction.frame is None else prediction.frame, time)
        for rank, values in enumerate(_csv_values(prediction), 1):
            self.rows.writerow((*start, rank, *values, ""))
        if prediction.error is not None:
            self.rows.writerow((*start, *[""] * len(CSV_ANSWERS[prediction.task]), prediction.error))

    def close(self) -> None:
        """See that even an empty table has its head."""
        self._head("classify")

    def _head(self, task: str) -> None:
        if not self.columns:
            self.columns = (*CSV_START, *(CSV_FRAME if self.frames else ()), *CSV_ANSWERS[task], "error")
            self.rows.writerow(self.columns)


def _csv_values(prediction: Prediction) -> list[tuple[Any, ...]]:
    """The columns after the rank."""
    if prediction.task == "segment":
        return [(label, f"{share:.6f}", index, pixels) for label, share, pixels, index in prediction.areas]
    if prediction.task == "detect":
        return [(label, f"{score:.6f}", index, *(f"{side:.2f}" for side in box)) for label, score, index, box in prediction.boxes]
    return [(label, f"{probability:.6f}", index) for label, probability, index in prediction.labels]


def table_of(prediction: Prediction) -> str:
    """A picture's labels or areas with percentages and bars, or its boxes with scores and corners, one a line."""
    width, height = prediction.size or (0, 0)
    rows = [(_shortened(printable(label), WIDEST_LABEL), share, extra) for label, share, extra in _shares(prediction)]
    column = max((len(name) for name, _, _ in rows), default=0)
    room = max(0, min(BAR_WIDTH, shutil.get_terminal_size().columns - column - 13))
    lines = [f"  {name:<{column}}  {100 * share:5.1f} %  {extra or _bar(share, room)}".rstrip() for name, share, extra in rows]
    nothing = ["  nothing found"] if not rows else []
    return "\n".join([f"{_named(prediction)} ({width} x {height})", *lines, *nothing])


def _shares(prediction: Prediction) -> list[tuple[str, float, str]]:
    """(name, 0..1, what stands in place of a bar) for each label, area or box."""
    if prediction.task == "segment":
        return [(area.label, area.share, "") for area in prediction.areas]
    if prediction.task == "detect":
        return [(found.label, found.score, _corners(found.box)) for found in prediction.boxes]
    return [(label.label, label.probability, "") for label in prediction.labels]


def _corners(box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = (round(value) for value in box)
    return f"({left:>4}, {top:>4}) to ({right:>4}, {bottom:>4})"


def line_of(prediction: Prediction) -> str:
    """A picture's best labels, largest areas or surest boxes on one line."""
    rows = _shares(prediction)
    best = ", ".join(f"{printable(label)} {100 * share:.1f} %" for label, share, _ in rows[:3])
    if prediction.task != "classify" and len(rows) > 3:
        best += f" and {len(rows) - 3} more"
    return f"{_named(prediction)}: {best or 'nothing found'}"


def _named(prediction: Prediction) -> str:
    """A picture's name; of a frame also its number and time."""
    name = printable(prediction.source)
    if prediction.frame is None:
        return name
    return f"{name} {prediction.frame}" + ("" if prediction.time is None else f" ({prediction.time:.2f} s)")


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
