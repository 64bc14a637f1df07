"""ONNX Runtime Web for the page: from a folder or archive of the user's, or from the npm registry, checked, into the cache."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import secrets
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mobilevitv2.errors import ConfigurationError, DownloadError

VERSION = "1.30.0"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""As the registry's own page has it."""
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
REGISTRY = "https://registry.npmjs.org/"
FILES = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
TIMEOUT = 30
"""Seconds without any answer."""
CHUNK, LARGEST = 1 << 20, 200 << 20
NOTICE = """\
ONNX Runtime Web {version}, from the npm package onnxruntime-web: https://onnxruntime.ai

MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files
(the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge,
publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do
so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE
FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def copy_runtime(target: Path, source: str | os.PathLike[str] | None = None) -> str:
    """Put the runtime's files into the folder `target`; gives their version.

    Args:
        target: an existing folder.
        source: a folder `node_modules/onnxruntime-web`, its `dist`, or the archive that `npm pack onnxruntime-web` writes; where
            None, release `VERSION` from the cache, fetched from the npm registry the first time.

    Raises:
        ConfigurationError: a source without the files.
        DownloadError: the registry cannot be reached, or gave something else.
    """
    place = archive() if source is None else Path(source).expanduser()
    version = _from_folder(place, target) if place.is_dir() else _from_archive(place, target)
    (target / "LICENSE.txt").write_text(NOTICE.format(version=version), encoding="utf-8")
    return version


def _from_folder(place: Path, target: Path) -> str:
    package, folder = (place, place / "dist") if (place / "dist").is_dir() else (place.parent, place)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigurationError(_lacking(place, missing))
    for name in FILES:
        (target / name).write_bytes((folder / name).read_bytes())
    listing = package / "package.json"
    return _version_in(listing.read_bytes()) if listing.is_file() else "of unknown version"


def _from_archive(place: Path, target: Path) -> str:
    if not place.is_file():
        raise ConfigurationError(
            f"{place} does not exist; name the folder onnxruntime-web, or the archive that `npm pack onnxruntime-web` writes."
        )
    version, found = "of unknown version", set()
    try:
        with gzip.open(place) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archived:
            for member in archived:
                name = member.name.removeprefix("package/dist/")
                stream = archived.extractfile(member) if name in FILES or member.name == "package/package.json" else None
                if stream is None:
                    continue
                if name in FILES:
                    (target / name).write_bytes(stream.read())
                    found.add(name)
                else:
                    version = _version_in(stream.read())
            while unpacked.read(CHUNK):  # the checksum is at its end
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:  # ValueError: of names and sizes in it
        raise ConfigurationError(
            f"{place} is no whole archive ({error}); fetch it again with `npm pack onnxruntime-web`."
        ) from error
    missing = [name for name in FILES if name not in found]
    if missing:
        raise ConfigurationError(_lacking(place, missing))
    return version


def _lacking(place: Path, missing: list[str]) -> str:
    return (
        f"{place} lacks {', '.join(missing)}; name the folder onnxruntime-web of release {VERSION} or near it, "
        f"or the archive that `npm pack onnxruntime-web@{VERSION}` writes."
    )


def _version_in(text: bytes) -> str:
    try:
        return str(json.loads(text)["version"])
    except (ValueError, KeyError, TypeError):
        return "of unknown version"


# ---- from the registry -----------------------------------------------------------------------------------------------------------


def cache_path() -> Path:
    """Where the archive lies once it is fetched: the folder `mobilevitv2` in the Hugging Face hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "mobilevitv2" / ARCHIVE


def archive() -> Path:
    """The checked archive in the cache, fetched if need be.

    Raises:
        DownloadError: no connection, a wrong checksum, or offline mode; says what to do.
    """
    from huggingface_hub import constants

    target = cache_path()
    if target.is_file() and _integrity(target) == INTEGRITY:
        return target
    url = f"{registry().rstrip('/')}/onnxruntime-web/-/{ARCHIVE}"
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(f"{ARCHIVE} is not in the cache and HF_HUB_OFFLINE is set, so {url} was not asked. {_remedy(target)}")
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url} is no web address; set npm_config_registry to the address of a registry, such as {REGISTRY}.")
    part = target.with_name(f".{ARCHIVE}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(url, part)
        found = _integrity(part)
        if found != INTEGRITY:
            raise DownloadError(f"{url} gave a file with {found}, expected was {INTEGRITY}; it was thrown away. {_remedy(target)}")
        part.replace(target)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{url} could not be downloaded: {error}. {_remedy(target)}") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def registry() -> str:
    """The npm registry's address: from npm's environment variable, its configuration file, or npm's own default."""
    for name, value in os.environ.items():
        if name.lower() == "npm_config_registry" and value:
            return value
    config = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    try:
        lines = config.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return REGISTRY
    named = [found.group(1) for line in lines if (found := re.match(r"\s*registry\s*=\s*\"?([^\s\"]+)", line))]
    return named[-1] if named else REGISTRY


def _remedy(target: Path) -> str:
    return (
        f"Check the connection; or run `npm pack onnxruntime-web@{VERSION}` where there is one and pass the file with --ort-web, "
        f"or put it at {target}; another registry is named by npm_config_registry."
    )


def _receive(url: str, part: Path) -> None:
    from tqdm import tqdm

    request = urllib.request.Request(url, headers={"User-Agent": "mobilevitv2"})  # noqa: S310 - the scheme is checked
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, part.open("xb") as stream:  # noqa: S310
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length)
        received = 0
        with tqdm(desc=ARCHIVE, total=total, unit="B", unit_scale=True, disable=None) as bar:  # none where stderr is no terminal
            while chunk := response.read(CHUNK):
                received += len(chunk)
                if received > LARGEST:
                    raise DownloadError(f"{url} gave more than {LARGEST >> 20} MB; that is not {ARCHIVE}. Check the registry.")
                stream.write(chunk)
                bar.update(len(chunk))
        if total is not None and received != total:
            raise http.client.IncompleteRead(b"", total - received)


def _chunks(stream: io.BufferedReader) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _integrity(path: Path) -> str:
    """As npm writes it: "sha512-" and the digest in base 64."""
    digest = hashlib.sha512()
    with path.open("rb") as stream:
        for chunk in _chunks(stream):
            digest.update(chunk)
    return "sha512-" + base64.b64encode(digest.digest()).decode()
