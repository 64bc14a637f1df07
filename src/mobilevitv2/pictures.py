"""One picture from anywhere (file, URL, bytes, array, tensor, Pillow image) as 8-bit RGB.

Everything that a picture can be is settled here, once: palettes, transparency, greyscale, CMYK, 16 bit, float, the EXIF
orientation, animations, damaged files, files that are no pictures. What cannot be read raises an ImageError that names the
picture, what is wrong with it, and what to do.

Nothing heavy is imported at the top: Pillow and numpy come in when the first picture is read, torch never.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import warnings
from typing import IO, TYPE_CHECKING, Any

from mobilevitv2.errors import ImageError
from mobilevitv2.picture_sources import SUFFIXES, blaming, find_pictures, is_url, opened

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["MAX_PIXELS", "SUFFIXES", "find_pictures", "is_url", "picture_size", "read_mask", "read_picture"]

logger = logging.getLogger(__name__)

MAX_PIXELS = 200_000_000
"""Largest picture that is decoded unless told otherwise: 600 MB as RGB, above every camera of today."""
# Decoders that are tried, TGA last since it has no signature. Left out on purpose: those that start other programs (EPS starts
# Ghostscript) and those for drawings and scientific stacks. HEIF and JXL come from plug-ins that the user may have registered.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "PPM", "AVIF", "JPEG2000", "DIB", "ICO", "QOI", "PCX", "SGI", "HEIF", "JXL",
    "TGA",
)  # fmt: skip

_FOREIGN = (
    # (what the file starts with, once leading white space is gone; what that is; what to do)
    (rb"(?i)(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body)", "an HTML page, not a picture", "download the picture itself"),
    (rb"(?i)(<\?xml.*?)?<svg", "an SVG drawing, not a bitmap", "render it to PNG first"),
    (rb"%PDF", "a PDF document, not a picture", "export the page as PNG or JPEG first"),
    (rb"%!PS", "a PostScript drawing, not a bitmap", "render it to PNG first"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the picture itself", "run `git lfs pull`"),
    (rb".{4}ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", "a HEIC picture, which Pillow does not read by itself",
     "save it as JPEG, or `pip install pillow-heif` and call `pillow_heif.register_heif_opener()` first"),
    (rb".{4}ftypavi", "an AVIF picture, which this Pillow was built without", "save it as JPEG or PNG, or update Pillow"),
    (rb".{4}ftyp", "a video, not a picture", "save one of its frames as JPEG or PNG"),
    (rb"PK\x03\x04", "a zip archive or office document, not a picture", "unpack it first"),
    (rb"[{\[]\s*[\"\[{]", "JSON text, not a picture", "check the download"),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- file to Pillow


def _quiet_pillow(*, above_pillows_limit: bool = False) -> None:
    """Silence Pillow's decoders on damaged metadata, and on big pictures once one within our own limit was asked for.

    `warnings.catch_warnings` swaps the filters of the whole process back and forth and is not safe with threads; a filter that is
    put in front once, and again only where someone took it away, is.
    """
    from PIL import Image

    noise: list[tuple[type[Warning], str]] = [(UserWarning, r"PIL\.\w+ImagePlugin")]
    if above_pillows_limit:
        noise.append((Image.DecompressionBombWarning, r"PIL\.Image"))
    for category, module in noise:
        if ("ignore", None, category, re.compile(module), 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=category, module=module)


def _undecoded(stream: IO[bytes], name: str) -> Image.Image:
    """Read the header. Like PIL.Image.open, but for the formats above alone, and without Pillow's own limit on pixels."""
    from PIL import Image

    prefix = stream.read(4096)
    if not prefix:
        raise ImageError(f"{name} is empty (0 bytes): download or copy it again")
    if not re.match(_FOREIGN[0][0], prefix.lstrip(b"\xef\xbb\xbf \t\r\n"), re.DOTALL):
        Image.preinit()
        failed = ""
        for known in _FORMATS:
            if known not in Image.OPEN:
                Image.init()
            factory, accept = Image.OPEN.get(known, (None, None))
            accepted = factory is not None and (accept is None or accept(prefix[:16]))
            if factory is None or not accepted or isinstance(accepted, str):  # words: the library for this format is missing
                continue
            try:
                stream.seek(0)
                return factory(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:  # what PIL.Image.open takes for "another format"
                logger.debug("%s is not %s: %s", name, known, error)
                if accept is not None and not failed:
                    failed = f"{known}: {error}"
        if failed:
            raise ImageError(f"{name} starts like a picture but is truncated or damaged ({failed}): download or copy it again")
    raise ImageError(f"{name} {_what_it_looks_like(prefix)}")


def _what_it_looks_like(prefix: bytes) -> str:
    start = prefix.lstrip(b"\xef\xbb\xbf \t\r\n")
    for pattern, what, remedy in _FOREIGN:
        if re.match(pattern, start, re.DOTALL):
            return f"is {what}: {remedy}"
    return f"is in no picture format that Pillow reads, or damaged (first bytes {prefix[:8]!r}): save it as JPEG or PNG"


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int | None) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}): check what wrote it")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels, more than the limit of {max_pixels:,} that guards against"
            " decompression bombs: make it smaller, or, if you trust it, read it in Python with"
            f" read_picture(..., max_pixels={width * height})"
        )


def _decoded(picture: Image.Image, name: str, *, max_pixels: int | None, draft_size: int | None = None) -> Image.Image:
    """Decode the first frame, as it is meant to be seen (EXIF orientation)."""
    from PIL import Image

    _check_pixels(picture.size, name, max_pixels)
    width, height = picture.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        _quiet_pillow(above_pillows_limit=True)
    kind = f"{picture.format or 'picture'}, {width} x {height}"
    with blaming(name, f"is truncated or damaged; {kind}", "download or copy it again"):
        if draft_size is not None and min(width, height) > draft_size:
            picture.draft(None, (draft_size, draft_size))
        picture.load()
    return _upright(picture)


def _upright(picture: Image.Image) -> Image.Image:
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception as error:  # damaged EXIF data raise anything; the pixels are good
        logger.debug("EXIF data that cannot be read: %s", error)
        return picture
    turn = turns.get(orientation)
    return picture if turn is None else picture.transpose(turn)


# ------------------------------------------------------------------------------------------------------------- Pillow to 8-bit RGB


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    """Any mode as 8-bit RGB. What is transparent is seen over white, as on a page: dropping alpha would show hidden colours."""
    from PIL import Image

    mode = picture.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        picture = _grey8(picture, name)
    with blaming(name, f"of mode {mode} cannot be turned into RGB", "save it as an RGB picture"):
        if mode in ("La", "RGBa"):  # colours already multiplied by alpha
            picture = picture.convert(mode.upper())
        if mode == "LAB":
            picture = _from_lab(picture)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB")  # a copy if it was RGB already
    picture.info = {}  # the orientation in it has been applied, and must not be again
    return picture


def _from_lab(picture: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    assert converted is not None  # None is for inPlace=True
    return converted


def _grey8(picture: Image.Image, name: str) -> Image.Image:
    """Greyscale of 16 or 32 bits, or float, as 8 bits; Pillow's own convert() clips at 255.

    The mode "I;16" says what white is; "I" and "F" do not, so the range of the values does: 0..1 (float alone), 0..255, 0..65535.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # false for NaN too
        raise ImageError(
            f"{name} has greyscale values from {low:g} to {high:g}: scale them to 0..1 (float), 0..255 or 0..65535 first"
        )
    white = 65535
    if picture.mode == "F" and high <= 1:
        white = 1
    elif picture.mode in ("I", "F") and high <= 255:
        white = 255
    return Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------------- arrays to Pillow


def _as_array(source: Any) -> tuple[np.ndarray[Any, Any], str] | None:
    """The numpy array behind a numpy array (H, W[, C]) or torch tensor ([C, ]H, W), and its name; None for anything else."""
    import numpy as np

    if isinstance(source, np.ndarray):
        return source, f"array of shape {source.shape} and type {source.dtype}"
    if type(source).__module__.partition(".")[0] == "torch" and hasattr(source, "detach"):
        name = f"tensor of shape {tuple(source.shape)} and type {str(source.dtype).removeprefix('torch.')}"
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
        if array.ndim == 3:
            if array.shape[0] not in (1, 3, 4):
                raise ImageError(f"{name} is no picture: tensors are (1, 3 or 4 channels, height, width); use .permute")
            array = np.moveaxis(array, 0, -1)
        return array, name
    return None


def _from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    """(H, W) or (H, W, 1 | 3 | 4) of bool, uint8, uint16 or float in 0..1."""
    import numpy as np
    from PIL import Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        remedy = "move the channels last with .transpose(1, 2, 0)" if channels_first else "pass one picture at a time"
        raise ImageError(f"{name} is no picture: arrays are (height, width) or (height, width, 1, 3 or 4 channels); {remedy}")
    _check_pixels((array.shape[1], array.shape[0]), name, None)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = np.rint(array * (255.0 / 65535)).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too; the slack is for the rounding of earlier steps
            raise ImageError(f"{name} has values from {low:g} to {high:g}: floats run from 0 to 1; divide by 255")
        array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"{name} is no picture: the types are uint8, uint16, bool and float in 0..1; convert it to uint8")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


# ------------------------------------------------------------------------------------------------------------------- the interface


def read_picture(source: Any, *, max_pixels: int | None = MAX_PIXELS, draft_size: int | None = None) -> Image.Image:
    """Read one picture as 8-bit RGB, turned the way its EXIF orientation says.

    Transparent parts are seen over white. Greyscale of 16 bits or float is scaled to 8 bits, not clipped. Of animations and
    multi-page files the first frame is read. Colour profiles are not applied, as the official training code does not.
    Safe to call from several threads.

    Args:
        source: path; http, https or data URL; bytes; binary file object (read from its start, left open); Pillow image (left
            unchanged); numpy array (H, W) or (H, W, 1, 3 or 4) of uint8, uint16, bool, or float in 0..1; torch tensor (H, W) or
            (1, 3 or 4, H, W) of the same types.
        max_pixels: width x height above which a file is refused before it is decoded; None for no limit.
        draft_size: short side in pixels that is enough: a JPEG that is at least twice as large is decoded at a half, quarter or
            eighth of its size, never below this, which is several times faster. Other formats are not affected. Ask for
            twice the size you will resize to: then the difference is not visible.

    Returns:
        A new Pillow image of mode RGB.

    Raises:
        ImageError: the picture is missing, empty, damaged, too large, or none at all; the message names it and the remedy.
    """
    from PIL import Image

    if draft_size is not None and draft_size < 1:
        raise ImageError(f"draft_size is {draft_size}: give the wanted short side in pixels, 1 or more")
    _quiet_pillow()
    if isinstance(source, Image.Image):
        return _rgb(_decoded(source, _name_of(source), max_pixels=max_pixels), _name_of(source))
    array = None if isinstance(source, (str, bytes, os.PathLike)) else _as_array(source)
    if array is not None:
        return _rgb(_from_array(*array), array[1])
    with opened(source) as (stream, name):
        with blaming(name, "cannot be opened as a picture", "it may be damaged; download or copy it again"):
            picture = _undecoded(stream, name)
        return _rgb(_decoded(picture, name, max_pixels=max_pixels, draft_size=draft_size), name)


def picture_size(source: Any) -> tuple[int, int]:
    """Width and height of a picture as `read_picture` would give it, upright, from its header alone.

    Takes paths, URLs, bytes and binary file objects.

    Raises:
        ImageError: there is no header of a picture.
    """
    _quiet_pillow()
    with opened(source) as (stream, name):
        with blaming(name, "cannot be opened as a picture", "it may be damaged; download or copy it again"):
            picture = _undecoded(stream, name)
        _check_pixels(picture.size, name, None)
        width, height = picture.size
        if picture.format == "PNG" and "exif" not in picture.info:
            return width, height  # Pillow would decode the whole picture to look for an orientation behind the pixels
        try:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:  # as in _upright
            logger.debug("EXIF data that cannot be read: %s", error)
            turned = False
        return (height, width) if turned else (width, height)


def read_mask(source: Any, *, max_pixels: int | None = MAX_PIXELS) -> np.ndarray[Any, Any]:
    """Read one segmentation mask as class numbers: an array (H, W) of int32.

    Takes what `read_picture` takes. Palette pictures give the index of each pixel, not its colour; greyscale of 1, 8, 16 and 32
    bits gives the values as they are; arrays and tensors are integers, (H, W) or with one channel.

    Raises:
        ImageError: as `read_picture`; and for pictures of several channels and arrays of floats, which hold no class numbers.
    """
    import numpy as np
    from PIL import Image

    _quiet_pillow()
    found = None if isinstance(source, (str, bytes, os.PathLike)) else _as_array(source)
    if found is None:
        if isinstance(source, Image.Image):
            name = _name_of(source)
            picture = _decoded(source, name, max_pixels=max_pixels)
        else:
            with opened(source) as (stream, name):
                with blaming(name, "cannot be opened as a picture", "it may be damaged; download or copy it again"):
                    picture = _undecoded(stream, name)
                picture = _decoded(picture, name, max_pixels=max_pixels)
        found = np.asarray(picture), f"{name} of mode {picture.mode}"
    array, name = found
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_):
        raise ImageError(f"{name} is no mask: a mask holds one whole number a pixel, the class; use a greyscale or palette PNG")
    _check_pixels((array.shape[1], array.shape[0]), name, None)
    return array.astype(np.int32)


def _name_of(picture: Image.Image) -> str:
    return str(getattr(picture, "filename", "") or f"Pillow image {picture.size[0]} x {picture.size[1]} of mode {picture.mode}")
