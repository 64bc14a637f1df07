"""Encoded pictures to arrays of bytes, each by the fastest way that gives what Pillow gives.

The decoders of TorchCodec and torchvision use the same libraries as Pillow (libjpeg-turbo, libwebp) and give the same bytes, 1.3 to
2.8 times as fast: they write each pixel once, with no fourth byte. They are taken for JPEG and WebP files that hold nothing but
pixels. All else (turned, transparent, animated, damaged pictures, other formats) is Pillow's, and so are the errors.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from mobilevitv2.data.splits import NamedBytes
from mobilevitv2.pictures import MAX_PIXELS, picture_size, read_picture

ByteArray = NDArray[np.uint8]

_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Markers of JPEG frames that every decoder knows: baseline, extended, progressive."""
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a length."""


class EncodedPicture:
    """One picture file in memory.

    Args:
        content: the file.
        name: what messages call it.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name = content, name
        self._plain = plain_size(content)

    @property
    def shrinks(self) -> bool:
        """Whether it can be decoded at a fraction of its size, which saves most of the work."""
        return self.content[:2] == b"\xff\xd8"

    def size(self) -> tuple[int, int]:
        """Width and height as the picture is seen, from the header. Raises ImageError."""
        return self._plain or picture_size(NamedBytes(self.content, self.name))

    def pixels(self, *, short_side: int | None = None) -> ByteArray:
        """The picture as 8-bit RGB, upright, (H, W, 3); not to be written to.

        Args:
            short_side: pixels that are enough. A JPEG is then decoded at a half, a quarter or an eighth of its size, never below
                this, where its short side is at least twice as long.

        Raises:
            ImageError: as `read_picture`.
        """
        shrunk = self.shrinks and short_side is not None and min(self.size()) >= 2 * short_side
        if self._plain is not None and not shrunk:
            found = _by_torch(self.content)
            if found is not None:
                return found
        picture = read_picture(NamedBytes(self.content, self.name), draft_size=short_side if shrunk else None)
        return np.asarray(picture)


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG or WebP that holds nothing but the pixels of one upright, opaque picture; None for all else."""
    try:
        if content[:2] == b"\xff\xd8":
            size = _plain_jpeg(content)
        elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            size = _plain_webp(content)
        else:
            return None
    except (IndexError, struct.error):  # cut off within its header
        return None
    return size if size is not None and 0 < size[0] * size[1] <= MAX_PIXELS else None


def _plain_jpeg(content: bytes) -> tuple[int, int] | None:
    """Of 8 bits and one or three channels, without EXIF data or XMP, which may turn it."""
    place = 2
    while content[place] == 0xFF:
        kind = content[place + 1]
        if kind == 0xFF:  # filling
            place += 1
        elif kind in _BARE:
            place += 2
        elif kind in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", content, place + 4)
            return (width, height) if bits == 8 and channels in (1, 3) else None
        elif kind == 0xE1 and not _upright(content[place + 4 : place + 2 + _length(content, place)]):
            return None
        else:
            place += 2 + _length(content, place)
    return None


def _length(content: bytes, place: int) -> int:
    length = int.from_bytes(content[place + 2 : place + 4], "big")
    if length < 2:
        raise IndexError("a segment shorter than its own length")
    return length


def _upright(segment: bytes) -> bool:
    """Whether a JPEG's APP1 segment certainly does not turn the picture."""
    if segment[:6] != b"Exif\0\0" or len(segment) < 14:
        return b"Orientation" not in segment and not segment.startswith(b"Exif")
    tiff = segment[6:]
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order = "<" if tiff[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == 0x0112:
            return (kind, values, value) == (3, 1, 1)
    return True


def _plain_webp(content: bytes) -> tuple[int, int] | None:
    kind, flags = content[12:16], content[20]
    if kind == b"VP8X" and flags & ~0x20 == 0:  # a colour profile at most, which is not applied
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and flags == 0x2F:
        bits = int.from_bytes(content[21:25], "little")
        return None if bits >> 28 & 1 else (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    return None


def _by_torch(content: bytes) -> ByteArray | None:
    """A plain picture's pixels, or None where no decoder is there or it fails: Pillow then decodes, or says what is wrong."""
    decode = _decoders()["JPEG" if content[:2] == b"\xff\xd8" else "WEBP"]
    if decode is None:
        return None
    try:
        pixels = decode(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except (RuntimeError, ValueError):
        return None
    array: ByteArray = pixels.permute(1, 2, 0).contiguous().numpy()
    return array


Decoder = Callable[[torch.Tensor], torch.Tensor]
"""A file's bytes (n,) to its pixels (3, H, W)."""


@cache
def _decoders() -> dict[str, Decoder | None]:
    """By format: TorchCodec's, where it is installed; those of torchvision, which hands them over to it; or None."""
    try:
        codec = importlib.import_module("torchcodec.decoders")
        return {"JPEG": partial(codec.decode_jpeg, mode="RGB"), "WEBP": partial(codec.decode_webp, mode="RGB")}
    except (ImportError, AttributeError, RuntimeError, OSError):  # not there, too old, or built for another torch
        pass
    try:
        import torchvision.io  # noqa: F401  # registers the operators; its functions warn at each call that they will go
    except ImportError:
        return {"JPEG": None, "WEBP": None}
    # 3 is RGB; False leaves the orientation, of which a plain picture has none.
    jpeg, webp = (getattr(torch.ops.image, name, None) for name in ("decode_jpeg", "decode_webp"))
    return {"JPEG": jpeg and (lambda data: jpeg(data, 3, False)), "WEBP": webp and (lambda data: webp(data, 3))}
