"""A record's file on this machine: from the cache, or downloaded into it, resumable and checked."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from mobilevitv2.errors import DownloadError
from mobilevitv2.weights.reading import looks_like_html
from mobilevitv2.weights.records import WeightRecord

SCHEMES = ("https", "http", "file")
TRIES = 4
"""A cut connection is taken up again this often, as long as each try brings something."""
TIMEOUT = 30
"""Seconds without any answer."""
CHUNK = 1 << 20


def cache_path(record: WeightRecord) -> Path:
    """Where the file of a record lies once it is fetched: the folder `mobilevitv2` in the Hugging Face hub's cache."""
    from huggingface_hub import constants

    suffix = Path(urlsplit(record.url or "").path).suffix or ".pt"
    return Path(constants.HF_HUB_CACHE) / "mobilevitv2" / f"{record.name}{suffix}"


def fetch(record: WeightRecord, *, force: bool = False, progress: bool = True) -> Path:
    """The record's file, or the folder of a checkpoint inside the package; downloaded unless it is there already.

    A download that was cut goes on where it stopped, at this call or the next. The file appears under its name only when it is
    complete and its checksum, where one is known, is right.

    Args:
        record: one of `list_records()`.
        force: download again even if the file is there.
        progress: show a progress bar (on a terminal).

    Raises:
        DownloadError: no connection, no such file, a wrong checksum, or offline mode; names the URL and what to do.
    """
    if record.path is not None:
        return record.path
    if record.url is None or urlsplit(record.url).scheme not in SCHEMES:
        raise DownloadError(
            f"{record.name} has no address to download from (url={record.url!r}); pass the path of its file instead."
        )
    target = cache_path(record)
    if target.is_file() and not force:
        return target
    _refuse_offline(record, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if force or not target.is_file():  # another process may have brought it while this one waited
                _download(record, target, progress)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(
            f"{record.name} could not be stored in {target.parent}: {error}. Make room there or set HF_HOME."
        ) from error
    return target


def _refuse_offline(record: WeightRecord, target: Path) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            f"{record.name} is not in the cache and HF_HUB_OFFLINE is set, so {record.url} was not asked. "
            f"Unset HF_HUB_OFFLINE, or {_by_hand(target)}"
        )


def _by_hand(target: Path) -> str:
    return f"download the file by hand and put it at {target}, or pass the file's path instead of the name."


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """One process at a time downloads a file; the others wait and find it there."""
    from filelock import FileLock  # on disk with huggingface_hub

    with FileLock(target.with_name(f".{target.name}.lock")):
        yield


def _download(record: WeightRecord, target: Path, progress: bool) -> None:
    part = target.with_name(f"{target.name}.part")
    most, tries = -1, 0
    while True:
        size = part.stat().st_size if part.exists() else 0
        most, tries = (size, 1) if size > most else (most, tries + 1)
        try:
            _receive(record, part, progress)
            break
        except urllib.error.HTTPError as error:
            error.close()
            raise DownloadError(
                f"{record.url} answered {error.code} {error.reason} for {record.name}. Try later, or {_by_hand(target)}"
            ) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if tries >= TRIES:
                kept = f" {part.stat().st_size:,} bytes are kept for the next try." if part.exists() else ""
                raise DownloadError(
                    f"{record.url} could not be downloaded for {record.name}: {error}.{kept} "
                    f"Check the connection and try again, or {_by_hand(target)}"
                ) from error
    _check(record, part, target)
    part.replace(target)
    _tag_file(part).unlink(missing_ok=True)


# ---- one connection --------------------------------------------------------------------------------------------------------------


def _receive(record: WeightRecord, part: Path, progress: bool) -> None:
    """Bring `part` to its end, from where it is."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = urllib.request.urlopen(_request(record, part, have), timeout=TIMEOUT)  # noqa: S310 - the scheme is checked
    except urllib.error.HTTPError as error:
        if error.code != 416 or have == 0:
            raise
        error.close()
        part.unlink()  # longer than the file is now: not a part of it
        _receive(record, part, progress)
        return
    with response:
        resumed = getattr(response, "status", None) == 206
        have = have if resumed else 0
        total = _total(response, have)
        with part.open("ab" if resumed else "wb") as stream, _bar(record, have, total, progress) as bar:
            _tag_file(part).write_text(_tag(response))  # after the old beginning is gone, so that the two always belong together
            _copy(response, stream, bar)
    received = part.stat().st_size
    if total is not None and received != total:
        raise http.client.IncompleteRead(b"", total - received)


def _request(record: WeightRecord, part: Path, have: int) -> urllib.request.Request:
    headers = {"User-Agent": "mobilevitv2", "Accept-Encoding": "identity"}
    tag = _tag_file(part).read_text() if _tag_file(part).exists() else ""
    if have and tag:
        headers["Range"] = f"bytes={have}-"
        headers["If-Range"] = tag  # a file that changed meanwhile comes whole instead of being glued to the old beginning
    return urllib.request.Request(record.url or "", headers=headers)  # noqa: S310 - the scheme is checked


def _tag_file(part: Path) -> Path:
    """Keeps what the server calls this version of the file."""
    return part.with_name(f"{part.name}.tag")


def _tag(response: Any) -> str:
    etag = response.headers.get("ETag", "")
    return str(response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag)


def _total(response: Any, have: int) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None else have + int(length)


def _copy(response: IO[bytes], stream: IO[bytes], bar: Any) -> None:
    while chunk := response.read(CHUNK):
        stream.write(chunk)
        bar.update(len(chunk))


def _bar(record: WeightRecord, have: int, total: int | None, progress: bool) -> Any:
    from tqdm import tqdm

    # disable=None: no bar where stderr is no terminal
    return tqdm(desc=record.name, initial=have, total=total, unit="B", unit_scale=True, disable=None if progress else True)


# ---- is it what it should be? ----------------------------------------------------------------------------------------------------


def _check(record: WeightRecord, part: Path, target: Path) -> None:
    with part.open("rb") as stream:
        start = stream.read(512)
    if not start or looks_like_html(start):
        part.unlink()
        what = "a web page" if start else "nothing"
        raise DownloadError(
            f"{record.url} gave {what} instead of {record.name}; a proxy or login page? Try again, or {_by_hand(target)}"
        )
    if record.sha256 is None:
        return
    found = _sha256(part)
    if found != record.sha256:
        aside = target.with_name(f"{target.name}.wrong")
        part.replace(aside)
        _tag_file(part).unlink(missing_ok=True)
        raise DownloadError(
            f"{record.url} gave a file with sha256 {found}, but {record.name} has {record.sha256}. It was kept at {aside} and "
            f"is not used. Try again; if it stays wrong, get the file elsewhere: {_by_hand(target)}"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
