"""Videos as pictures: frames of a file or a folder, one after another, and annotated frames back into a file. With PyAV.

    for answer in iter_predictions(read_video("street.mp4", every=5), task="detect"):
        print(answer.frame, answer.time, answer.boxes)

Frames come upright and in order. Only those on their way are in memory, so that a video may be of any length. Sound is left out.
PyAV (`pip install 'mobilevitv2[video]'`) is imported when the first file is opened; folders of frames do without.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import ConfigurationError, ImageError, MissingDependency
from mobilevitv2.picture_sources import Named, find_pictures

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SUFFIXES", "Video", "VideoWriter", "is_video", "read_video"]

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"}
)
"""File names that `is_video` takes for videos."""
DEFAULT_RATE = Fraction(25)
"""Frames a second of folders, and of files that do not say."""
HIGHEST_RATE = 1000
CODECS = ("libx264", "libopenh264", "mpeg4")
"""H.264, which every player and browser shows, where PyAV was built with it; else MPEG-4 part 2."""
MISSING_SHARE = 0.02


def is_video(source: object) -> bool:
    """Whether a path is named like a video, and no folder."""
    if not isinstance(source, str | os.PathLike):
        return False
    return Path(source).suffix.lower() in SUFFIXES and "://" not in str(source) and not os.path.isdir(source)


def read_video(path: str | os.PathLike[str], *, every: int = 1, rate: float | None = None) -> Video:
    """The frames of a video file, or of a folder of pictures, to iterate over or to pass to `predict`.

    Args:
        path: a file; or a folder, whose pictures are the frames, in the order of the numbers in their names.
        every: take each n-th frame only.
        rate: of a folder, frames a second; 25 where it is not given.

    Returns:
        The video. Iterating it gives `Named` frames; the last one has an ImageError as its source where the file breaks off.

    Raises:
        ImageError: nothing that can be read as a video, or no frame in it. MissingDependency: PyAV is not installed.
        ConfigurationError: `every` below 1, or a rate that is none.
    """
    if every < 1:
        raise ConfigurationError(f"every={every} takes no frame; use 1 for each, 2 for every other one, and so on.")
    if rate is not None and not 0 < rate <= HIGHEST_RATE:
        raise ConfigurationError(f"rate={rate} is no number of frames a second; use more than 0, at most {HIGHEST_RATE}.")
    name = os.fspath(path)
    if os.path.isdir(name):
        frames = sorted((each for each in find_pictures([name])), key=_by_number)
        spacing = DEFAULT_RATE if rate is None else Fraction(rate).limit_denominator(1001)
        return Video(name, spacing / every, -(-len(frames) // every), every=every, pictures=tuple(frames), base_rate=spacing)
    with _opened(name) as container:
        stream = container.streams.video[0]
        base = _rate_of(stream)
        count = _count_of(container, stream, base)
    return Video(name, base / every, None if count is None else -(-count // every), every=every, base_rate=base, expected=count)


def _by_number(path: str) -> tuple[Any, ...]:
    """frame2 before frame10."""
    return tuple((int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in re.split(r"(\d+)", path))


@dataclass(frozen=True)
class Video:
    """A video file or a folder of frames, of which nothing is read before it is iterated.

    Attributes:
        name: path.
        rate: frames a second, of those that are taken.
        count: number of frames that are taken, as far as the file says; None if it does not.
        every: each n-th frame is taken.
        pictures: of a folder, the frames.
        base_rate: frames a second, before `every`.
        expected: frames in the file, as far as it says.
    """

    name: str
    rate: Fraction
    count: int | None
    every: int = 1
    pictures: tuple[str, ...] | None = None
    base_rate: Fraction = DEFAULT_RATE
    expected: int | None = None

    def __iter__(self) -> Iterator[Named]:
        return self._of_folder(self.pictures) if self.pictures is not None else self._of_file()

    def _of_folder(self, pictures: tuple[str, ...]) -> Iterator[Named]:
        for index in range(0, len(pictures), self.every):
            yield Named(pictures[index], pictures[index], frame=index, time=float(index / self.base_rate))

    def _of_file(self) -> Iterator[Named]:
        index, problem = 0, ""
        with _opened(self.name) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frames = _Frames(container, stream)
            for frame in frames:
                if index % self.every == 0:
                    yield Named(self.name, _upright(frame), frame=index, time=_time_of(frame, stream, index / self.base_rate))
                index += 1
            problem = frames.problem
        if not problem and self.expected is not None and self.expected - index > max(2, MISSING_SHARE * self.expected):
            problem = f"it should have about {self.expected} frames"
        if index == 0:
            raise ImageError(f"{self.name} has no frame that can be decoded ({problem or 'empty'}): download or copy it again")
        if problem:
            error = ImageError(f"{self.name} is truncated or damaged: {index} frames could be read ({problem}); copy it again")
            yield Named(self.name, error, frame=index, time=float(index / self.base_rate))


class _Frames:
    """Decoded frames in order of time; goes on after damaged packets, and says what was wrong in `problem`."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream, self.problem = container, stream, ""

    def __iter__(self) -> Iterator[Any]:
        from av.error import FFmpegError

        damaged = 0
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except FFmpegError as error:
                self.problem = _reason(error)
                break
            try:
                yield from packet.decode()
            except FFmpegError as error:
                logger.debug("a packet of %s cannot be decoded: %s", self.container.name, error)
                damaged += 1
        if damaged and not self.problem:
            self.problem = f"{damaged} packets are damaged"


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependency(
            "videos are read and written with PyAV, which is not installed: pip install 'mobilevitv2[video]'"
        ) from error
    av.logging.set_level(av.logging.PANIC)  # FFmpeg's own complaints on stderr; what matters is raised
    return av


def _opened(name: str) -> Any:
    av = _av()
    if not os.path.exists(name):
        raise ImageError(f"{name} does not exist: check the path (the current folder is {Path.cwd()})")
    if Path(name).stat().st_size == 0:
        raise ImageError(f"{name} is empty (0 bytes): download or copy it again")
    try:
        container = av.open(name)
    except (av.error.FFmpegError, ValueError) as error:
        raise ImageError(
            f"{name} is no video that can be read, or was cut short ({_reason(error)}): check or copy it again"
        ) from error
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None or not stream.codec_context.width:
        container.close()
        raise ImageError(f"{name} has no pictures in it (sound or text alone): name a video")
    return container


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")


def _rate_of(stream: Any) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate is not None and 0 < rate <= HIGHEST_RATE:
            return Fraction(rate)
    return DEFAULT_RATE


def _count_of(container: Any, stream: Any, rate: Fraction) -> int | None:
    if stream.frames > 0:
        return int(stream.frames)
    if stream.duration is not None and stream.time_base is not None:
        return int(stream.duration * stream.time_base * rate + Fraction(1, 2))
    # The whole file's length may be that of the sound.
    only_pictures = len(container.streams) == 1 and container.duration is not None
    return round(Fraction(container.duration, 1_000_000) * rate) if only_pictures else None


def _time_of(frame: Any, stream: Any, otherwise: Fraction) -> float:
    if frame.pts is None or frame.time_base is None:
        return float(otherwise)
    return float((frame.pts - (stream.start_time or 0)) * frame.time_base)


def _upright(frame: Any) -> Any:
    """(height, width, 3) of uint8, turned as the file says that it is to be shown."""
    import numpy as np

    array = frame.to_ndarray(format="rgb24")
    quarters = round(_rotation(frame) / 90) % 4
    return np.ascontiguousarray(np.rot90(array, quarters)) if quarters else array


def _rotation(frame: Any) -> float:
    """Degrees, against the clock, by which the frame is to be turned."""
    known = getattr(frame, "rotation", None)
    if known is not None:
        return float(known)
    import math

    import numpy as np

    matrix = frame.side_data.get("DISPLAYMATRIX")  # before PyAV 14.1
    if matrix is None:
        return 0.0
    a, b = np.frombuffer(bytes(matrix), dtype=np.int32)[:2].tolist()
    return -math.degrees(math.atan2(b, a))


# ---- writing ---------------------------------------------------------------------------------------------------------------------


class VideoWriter:
    """Writes pictures as an mp4 file, which takes its name when it is complete; after an error nothing is left.

        with VideoWriter("out.mp4", rate=video.rate) as writer:
            writer.write(picture, time=prediction.time)

    The first picture sets the size, rounded up to even numbers, which H.264 asks for; others are fitted into it.

    Args:
        path: of the file.
        rate: frames a second.
    """

    def __init__(self, path: str | os.PathLike[str], *, rate: Fraction | float) -> None:
        self._av = _av()
        self.path = Path(path)
        self.rate = Fraction(rate).limit_denominator(60_000)
        self.partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
        self.container: Any = None
        self.stream: Any = None
        self.last = -1
        self.size = (0, 0)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(complete=kind is None)

    def write(self, picture: Image.Image, *, time: float | None = None) -> None:
        """Add a picture; without `time` (in seconds) right after the one before.

        Raises:
            OSError: as the system gave it.
        """
        if self.container is None:
            self._open(picture)
        frame = self._av.VideoFrame.from_image(_fitted(picture, self.size))
        wanted = self.last + 1 if time is None else round(time * self.rate)
        self.last = frame.pts = max(self.last + 1, wanted)
        frame.time_base = 1 / self.rate
        self.container.mux(self.stream.encode(frame))

    def close(self, *, complete: bool = True) -> None:
        """End the file; with complete=False, throw it away."""
        container, self.container = self.container, None
        if container is None:
            return
        try:
            if complete:
                container.mux(self.stream.encode())
            container.close()
            if complete:
                self.partial.replace(self.path)
        finally:
            self.partial.unlink(missing_ok=True)

    def _open(self, picture: Image.Image) -> None:
        self.size = (picture.width + picture.width % 2, picture.height + picture.height % 2)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.container = self._av.open(str(self.partial), "w", format="mp4", options={"movflags": "faststart"})
        codec = self._codec()
        self.stream = self.container.add_stream(codec, rate=self.rate)
        self.stream.width, self.stream.height = self.size
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = 1 / self.rate
        if codec == "libx264":
            self.stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            self.stream.bit_rate = max(500_000, round(self.size[0] * self.size[1] * float(self.rate) * 0.15))

    def _codec(self) -> str:
        for name in CODECS:
            try:
                self._av.codec.Codec(name, "w")
            except (self._av.error.FFmpegError, ValueError):
                continue
            return name
        raise MissingDependency("this PyAV writes neither H.264 nor MPEG-4: install the wheel from PyPI (pip install --upgrade av)")


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """At the left top of a sheet of this size, made smaller where it is larger."""
    from PIL import Image

    shown = picture.convert("RGB")
    if shown.size == size:
        return shown
    shown.thumbnail(size)
    sheet = Image.new("RGB", size)
    sheet.paste(shown, (0, 0))
    return sheet
