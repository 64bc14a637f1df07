"""Encoded pictures to bytes: the fast decoders give what Pillow gives, and leave to it what only it reads right."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea

from mobilevitv2.data import decoding
from mobilevitv2.data.decoding import EncodedPicture, plain_size
from mobilevitv2.data.resizing import resized
from mobilevitv2.errors import ImageError
from mobilevitv2.pictures import read_picture

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(chelsea()).resize((161, 107))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def oriented(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif


def of_pillow(content: bytes) -> np.ndarray:
    return np.asarray(read_picture(content))


def test_plain_files_are_decoded_to_pillows_bytes_without_pillow(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "baseline": encoded(photo, "JPEG", quality=90),
        "progressive": encoded(photo, "JPEG", progressive=True),
        "full colour": encoded(photo, "JPEG", subsampling=0),
        "half colour": encoded(photo, "JPEG", subsampling=1),
        "grey": encoded(photo.convert("L"), "JPEG"),
        "red, green and blue": encoded(photo, "JPEG", keep_rgb=True),
        "profile": encoded(photo, "JPEG", icc_profile=b"p" * 300),
        "upright": encoded(photo, "JPEG", exif=oriented(1)),
        "words after the end": encoded(photo, "JPEG") + b"junk" * 50,
        "webp": encoded(photo, "WEBP", quality=70),
        "lossless webp": encoded(photo, "WEBP", lossless=True),
        "webp with a profile": encoded(photo, "WEBP", icc_profile=b"p" * 300),
    }
    expected = {name: of_pillow(content) for name, content in files.items()}
    monkeypatch.setattr(decoding, "read_picture", None)
    for name, content in files.items():
        assert plain_size(content) == photo.size, name
        pixels = EncodedPicture(content, name).pixels()
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected[name]), name


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_turned_pictures_are_upright(photo: Image.Image, kind: str, turn: int) -> None:
    content = encoded(photo, kind, exif=oriented(turn))
    picture = EncodedPicture(content, "turned")
    assert plain_size(content) is None
    assert np.array_equal(picture.pixels(), of_pillow(content))
    height, width, _ = picture.pixels().shape
    assert picture.size() == (width, height) == (photo.size if turn < 5 else photo.size[::-1])


def test_an_orientation_in_xmp_or_in_damaged_exif_is_left_to_pillow(photo: Image.Image) -> None:
    content = encoded(photo, "JPEG")
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for segment in (xmp, b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0XX*\0\x08\0\0\0\0\0"):
        turned = content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
        assert plain_size(turned) is None
        assert np.array_equal(EncodedPicture(turned, "file").pixels(), of_pillow(turned))


def test_what_is_not_plain_is_read_as_pillow_reads_it(photo: Image.Image) -> None:
    see_through = photo.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(photo.size))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    for content in (
        encoded(photo.convert("CMYK"), "JPEG"),
        encoded(see_through, "WEBP"),
        encoded(see_through, "WEBP", lossless=True),
        encoded(see_through, "PNG"),
        encoded(photo, "WEBP", save_all=True, append_images=[photo.rotate(90)]),
        encoded(photo.convert("P"), "GIF"),
        encoded(deep, "PNG"),
        encoded(photo, "PNG"),
    ):
        assert plain_size(content) is None
        assert np.array_equal(EncodedPicture(content, "file").pixels(), of_pillow(content))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.02, 0.5, 0.97])
def test_cut_off_files_are_named(photo: Image.Image, kind: str, share: float) -> None:
    content = encoded(photo, kind)
    with pytest.raises(ImageError, match=r"cat\.file"):
        EncodedPicture(content[: int(share * len(content))], "cat.file").pixels()


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(photo: Image.Image) -> None:
    content = bytearray(encoded(photo, "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    assert plain_size(bytes(content)) is None
    with pytest.raises(ImageError, match="3,600,000,000 pixels"):
        EncodedPicture(bytes(content), "bomb").pixels()


def test_without_a_fast_decoder_pillow_reads(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> torch.Tensor:
        raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")

    content = encoded(photo, "JPEG")
    for decoder in (None, missing):
        monkeypatch.setattr(decoding, "_decoders", lambda decoder=decoder: {"JPEG": decoder})
        assert np.array_equal(EncodedPicture(content, "file").pixels(), of_pillow(content))


@pytest.mark.parametrize(
    ("short_side", "expected"), [(None, 600), (301, 600), (300, 300), (151, 300), (150, 150), (80, 150), (9, 75)]
)
@pytest.mark.parametrize("turn", [1, 6])
def test_large_jpegs_are_decoded_no_smaller_than_needed(
    photo: Image.Image, short_side: int | None, expected: int, turn: int
) -> None:
    large = photo.resize((800, 600))
    content = encoded(large, "JPEG", quality=95, exif=oriented(turn))
    picture = EncodedPicture(content, "large")
    pixels = picture.pixels(short_side=short_side)
    assert min(pixels.shape[:2]) == expected and (pixels.shape[0] > pixels.shape[1]) == (turn == 6)
    assert picture.size() == ((800, 600) if turn == 1 else (600, 800))
    small, whole = (resized(array, (60, 60), interpolation="bicubic").astype(int) for array in (pixels, picture.pixels()))
    assert np.abs(small - whole).mean() < 2


def test_other_formats_are_decoded_whole(photo: Image.Image) -> None:
    assert EncodedPicture(encoded(photo, "PNG"), "file").pixels(short_side=10).shape[:2] == (107, 161)
    assert EncodedPicture(encoded(photo, "WEBP"), "file").pixels(short_side=10).shape[:2] == (107, 161)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (64, 200), (30, 17), (107, 161), (1, 1)])
def test_resizing_is_pillows(photo: Image.Image, size: tuple[int, int], interpolation: str) -> None:
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    expected = np.asarray(photo.resize((size[1], size[0]), filters[interpolation])).astype(int)
    for pixels in (np.asarray(photo), np.asarray(photo)[:, ::-1][:, ::-1]):  # not to be written to; not in one piece
        found = resized(pixels, size, interpolation=interpolation)
        assert found.shape == (*size, 3) and found.flags.c_contiguous
        assert np.abs(found.astype(int) - expected).max() <= 1
