"""Where pictures come from: which ones a list of paths, folders, globs and URLs names, and the bytes of each as a stream."""

from __future__ import annotations

import base64
import binascii
import difflib
import glob
import io
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from mobilevitv2.errors import ImageError

logger = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20
"""Most that is taken from a URL, a pipe or a file object."""
SECONDS_TO_ANSWER = 10.0
SECONDS_TO_FETCH = 60.0

SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
"""File names that `find_pictures` takes for pictures."""


class Named(NamedTuple):
    """A picture to read, under the name that its answer carries; an ImageError where it is known already that it cannot be read."""

    name: str
    source: Any
    frame: int | None = None
    """Number of the frame in its video, from 0."""
    time: float | None = None
    """When the frame is shown, in seconds from the start of its video."""


def find_pictures(sources: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The pictures that paths, folders, globs and URLs name, each once, in the order given; folders and globs sorted.

    Folders are searched with all below them for the file names in `SUFFIXES`; hidden files and folders are left out. Globs know
    `*`, `?`, `[...]` and `**`; one without a suffix of its own (`photos/*`) gives pictures alone. A file that is named outright is
    taken whatever its suffix, and URLs are passed on.

    Raises:
        ImageError: a path does not exist (the message has the nearest names), or a folder or glob has no picture.
    """
    found: dict[str, None] = {}  # a set that keeps the order
    for source in sources:
        found.update(dict.fromkeys(_pictures_of(os.fspath(source))))
    return list(found)


def _pictures_of(source: str) -> list[str]:
    if not source:
        raise ImageError("an empty path names no picture: pass a file, folder, glob or URL")
    if is_url(source):
        return [source]
    _refuse_other_addresses(source)
    path = _expanded(source)
    if os.path.isdir(path):
        return _pictures_in(path)
    if os.path.exists(path):
        return [str(path)]
    if not glob.has_magic(source):
        raise ImageError(_missing(source))
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  # Path.glob takes no absolute patterns
    found = [name for name in matches if Path(name).is_file() and (path.suffix or _named_as_picture(name))]
    if not found:
        raise ImageError(f"{source} matches no picture: check the pattern (the current folder is {Path.cwd()})")
    return found


def _pictures_in(folder: Path) -> list[str]:
    found, others = [], 0
    for parent, folders, names in os.walk(folder, onerror=lambda error: logger.warning("left out: %s", error)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in names if not name.startswith("."))
        pictures = [str(Path(parent, name)) for name in names if _named_as_picture(name)]
        found += pictures
        others += len(names) - len(pictures)
    if not found:
        raise ImageError(
            f"folder {folder} has no picture, nor have the folders below it ({others} other files): the names looked for end in"
            f" {' '.join(sorted(SUFFIXES))}"
        )
    return found


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises on files named like "~draft.jpg"


def _named_as_picture(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


@contextmanager
def blaming(name: str, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into an ImageError on the picture `name`."""
    try:
        yield
    except ImageError:
        raise
    # Pillow's decoders raise anything on damaged files: OSError, SyntaxError, struct.error, EOFError, zlib.error, OverflowError.
    except Exception as error:
        reason = str(error) or type(error).__name__
        if type(error).__name__ == "DecompressionBombError":  # by name, so that a list of files does not import Pillow
            what, remedy = "is above Pillow's own limit", "make it smaller, or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageError(f"{name} {what} ({reason}): {remedy}") from error


def is_url(source: object) -> bool:
    """Whether `source` is a string that starts like http:, https: or data:, which `read_picture` fetches."""
    return isinstance(source, str) and re.match(r"(?i)(https?://|data:)", source) is not None


def _read_at_most(stream: IO[bytes], name: str, seconds: float | None = None) -> bytes:
    deadline = None if seconds is None else time.monotonic() + seconds
    chunks: list[bytes] = []
    total = 0
    while chunk := stream.read(2**16):
        chunks.append(memoryview(chunk).tobytes())  # raises TypeError on text
        total += len(chunk)
        if total > MAX_BYTES:
            raise ImageError(f"{name} has more than {MAX_BYTES // 2**20} MiB, the limit of what is fetched: save it as a file")
        if deadline is not None and time.monotonic() > deadline:
            raise ImageError(f"{name} took more than {seconds:g} s to come: download it first")
    return b"".join(chunks)


def _fetched(url: str) -> bytes:
    """The bytes behind an http, https or data URL."""
    import urllib.error
    import urllib.parse
    import urllib.request
    from http.client import HTTPException

    if url[:5].lower() == "data:":
        head, comma, body = url.partition(",")
        name = f"data URL {head[:40]}"
        if not comma:
            raise ImageError(f"{name} has no comma, so no data: it should read data:image/png;base64,...")
        try:
            data = urllib.parse.unquote_to_bytes(body)
            return base64.b64decode(data, validate=False) if head.lower().endswith(";base64") else data
        except binascii.Error as error:
            raise ImageError(f"{name} has base64 that cannot be decoded ({error}): it may be cut short") from error
    try:
        # Some servers, Wikimedia's among them, refuse requests that do not say who asks.
        request = urllib.request.Request(url, headers={"User-Agent": "mobilevitv2"})  # noqa: S310  # is_url() passes http and https
        with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER) as answer:  # noqa: S310
            return _read_at_most(answer, url, SECONDS_TO_FETCH)
    except ImageError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{url} cannot be fetched (the server answers {error.code} {error.reason}): check the address") from error
    except (OSError, HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        raise ImageError(f"{url} cannot be fetched ({reason}): check the address and the network, or download it first") from error


@contextmanager
def opened(source: Any) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable stream of the picture's bytes, and the name that messages give it."""
    if is_url(source):
        yield io.BytesIO(_fetched(source)), source if len(source) < 200 else f"{source[:40]}..."
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), f"picture in memory ({len(source)} bytes)"
    elif isinstance(source, (str, os.PathLike)):
        with _file(os.fspath(source)) as stream:
            yield stream, os.fspath(source)
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", "") or "file object")
        with blaming(name, "cannot be read", "pass an open binary file"):
            if getattr(source, "seekable", lambda: False)():
                source.seek(0)
            data = _read_at_most(source, name)
        yield io.BytesIO(data), name
    else:
        raise ImageError(
            f"cannot read a picture from {type(source).__name__}: pass a path, URL, bytes, file object, Pillow image, numpy array"
            " (height, width, channels) or torch tensor (channels, height, width)"
        )


def _refuse_other_addresses(path: str) -> None:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        raise ImageError(f"{path} is an address of a kind that is not fetched: use http:, https: or data:, or download it first")


@contextmanager
def _file(path: str) -> Iterator[IO[bytes]]:
    _refuse_other_addresses(path)
    try:
        stream = _expanded(path).open("rb")  # opening alone may fail in these ways
    except FileNotFoundError:
        raise ImageError(_missing(path)) from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture: name a picture in it") from None
    except (OSError, ValueError) as error:  # no permission; names with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path[:200]!r} cannot be opened ({reason}): check its name and permissions") from error
    with stream:
        yield stream if stream.seekable() else io.BytesIO(_read_at_most(stream, path))


def _missing(path: str) -> str:
    """What to say of a path that does not exist: the nearest names in its folder."""
    folder = _expanded(path).parent
    if not os.path.isdir(folder):
        return f"{path[:200]} does not exist, nor does its folder {folder}: check the path (the current folder is {Path.cwd()})"
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        return f"{path} cannot be looked for ({error.strerror}): check the permissions of {folder}"
    folded = {name.casefold(): name for name in names}
    near = [folded[name] for name in difflib.get_close_matches(Path(path).name.casefold(), folded, n=3, cutoff=0.6)]
    if near:
        return f"{path} does not exist: did you mean {' or '.join(str(folder / name) for name in near)}?"
    return f"{path[:200]} does not exist: check the path ({folder} has {len(names)} other entries)"
