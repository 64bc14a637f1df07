"""Pictures of every kind are read right, and what is no picture is answered with its name, the reason and the remedy."""

from __future__ import annotations

import base64
import io
import os
import struct
import threading
import urllib.parse
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps
from skimage.data import chelsea

from mobilevitv2 import picture_sources
from mobilevitv2.errors import ImageError
from mobilevitv2.pictures import find_pictures, is_url, read_mask, read_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def quadrants(side: int = 16) -> Image.Image:
    """Red green / blue white: any turn or swap of channels shows."""
    picture = Image.new("RGB", (side, side), RED)
    half = side // 2
    picture.paste(GREEN, (half, 0, side, half))
    picture.paste(BLUE, (0, half, half, side))
    picture.paste(WHITE, (half, half, side, side))
    return picture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def difference(one: Image.Image, other: Image.Image) -> int:
    """Largest difference of any channel of any pixel."""
    assert one.size == other.size
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(chelsea())


# ------------------------------------------------------------------------------------------------------------------ where from


@pytest.mark.parametrize("wrap", [str, Path, lambda p: p.read_bytes(), lambda p: bytearray(p.read_bytes()), lambda p: p.open("rb")])
def test_paths_bytes_and_file_objects_give_the_same_picture(tmp_path: Path, wrap) -> None:
    path = tmp_path / "a picture.png"
    quadrants().save(path)
    source = wrap(path)
    assert difference(read_picture(source), quadrants()) == 0
    if hasattr(source, "close"):
        assert not source.closed
        source.close()


def test_file_object_is_read_from_its_start_even_when_it_was_read_before() -> None:
    stream = io.BytesIO(encoded(quadrants(), "PNG"))
    stream.read()
    assert difference(read_picture(stream), quadrants()) == 0


def test_stream_without_seek() -> None:
    class Pipe:
        name = "pipe"

        def __init__(self, data: bytes) -> None:
            self.inner = io.BytesIO(data)

        def read(self, size: int = -1) -> bytes:
            return self.inner.read(size)

    assert difference(read_picture(Pipe(encoded(quadrants(), "PNG"))), quadrants()) == 0


def test_named_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(encoded(quadrants(), "PNG")))
    writer.start()
    assert difference(read_picture(pipe), quadrants()) == 0
    writer.join()


def test_pillow_image_is_left_unchanged() -> None:
    source = quadrants()
    answer = read_picture(source)
    answer.paste((0, 0, 0), (0, 0, 16, 16))
    assert difference(source, quadrants()) == 0


@pytest.mark.parametrize("kind", ["base64", "percent"])
def test_data_url(kind: str) -> None:
    data = encoded(quadrants(), "PNG")
    body = "base64," + base64.b64encode(data).decode() if kind == "base64" else "," + urllib.parse.quote_from_bytes(data)
    assert difference(read_picture("data:image/png" + (";" if kind == "base64" else "") + body), quadrants()) == 0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/gone.jpg":
                self.send_error(404)
                return
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("Location", "/good.png")
                self.end_headers()
                return
            body = {
                "/good.png": encoded(quadrants(), "PNG"),
                "/page.jpg": b"<!DOCTYPE html><p>Sign in",
                "/huge.png": bytes(4 * 2**20),
            }
            self.send_response(200)
            self.send_header("Content-Length", str(len(body.get(self.path, b"")) + 100 * (self.path == "/short.png")))
            self.end_headers()
            self.wfile.write(body.get(self.path, b""))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["good.png", "moved.png"])
def test_url_is_fetched(server: str, name: str) -> None:
    assert difference(read_picture(f"{server}/{name}"), quadrants()) == 0


def test_urls_that_give_no_picture_say_why(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in {"gone.jpg": "404", "page.jpg": "HTML page", "short.png": "is empty"}.items():
        with pytest.raises(ImageError, match=f"{name}.*{words}"):
            read_picture(f"{server}/{name}")
    monkeypatch.setattr(picture_sources, "MAX_BYTES", 2**20)
    with pytest.raises(ImageError, match=r"huge\.png has more than 1 MiB"):
        read_picture(f"{server}/huge.png")
    monkeypatch.setattr(picture_sources, "SECONDS_TO_FETCH", -1.0)
    with pytest.raises(ImageError, match=r"good\.png took more than"):
        read_picture(f"{server}/good.png")


def test_url_of_a_host_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ImageError, match=r"cannot be fetched .*check the address"):
        read_picture("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,abcde", "base64 that cannot be decoded"),
        ("s3://bucket/a.png", "kind that is not fetched"),
        ("http://[::1/a.png", "cannot be fetched"),
        (12, "cannot read a picture from int"),
        (None, "NoneType"),
        (b"", "empty"),
        ("bad\0name.png", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        (io.StringIO("text"), "binary"),
    ],
)
def test_sources_that_are_none(source: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_picture(source)


# ---------------------------------------------------------------------------------------------------------------- modes and depths


def test_palette_with_transparency_is_seen_over_white() -> None:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (0, 0, 4, 2))
    transparent_by_index = read_picture(encoded(picture, "PNG", transparency=0))
    assert transparent_by_index.getpixel((0, 0)) == BLUE
    assert transparent_by_index.getpixel((0, 3)) == WHITE
    half_transparent = read_picture(encoded(picture, "PNG", transparency=bytes([128, 255])))
    assert half_transparent.getpixel((0, 0)) == BLUE
    assert half_transparent.getpixel((0, 3)) == (255, 127, 127)


def test_palette_without_transparency_keeps_its_colours() -> None:
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert difference(read_picture(encoded(quadrants().quantize(8), kind)), quadrants()) == 0


def test_alpha_is_seen_over_white_and_hidden_colours_stay_hidden() -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    for source in (picture, encoded(picture, "PNG"), encoded(picture, "TIFF"), np.asarray(picture)):
        assert read_picture(source).getpixel((0, 0)) == WHITE
        assert read_picture(source).getpixel((1, 0)) == (127, 127, 127)
    assert read_picture(picture.convert("LA")).getpixel((1, 0)) == (127, 127, 127)
    assert read_picture(picture.convert("RGBa")).getpixel((1, 0)) == (127, 127, 127)


def test_transparent_colour_of_a_png_is_seen_over_white() -> None:
    grey = Image.new("L", (2, 1), 7)
    grey.putpixel((1, 0), 9)
    assert np.asarray(read_picture(encoded(grey, "PNG", transparency=7))).tolist() == [[list(WHITE), [9, 9, 9]]]
    assert read_picture(encoded(quadrants(), "PNG", transparency=RED)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(("mode", "value", "expected"), [("1", 1, 255), ("L", 77, 77), ("LA", (77, 255), 77)])
def test_greyscale_becomes_three_equal_channels(mode: str, value: object, expected: int) -> None:
    assert read_picture(encoded(Image.new(mode, (2, 2), value), "PNG")).getpixel((1, 1)) == (expected,) * 3


def test_cmyk_of_jpeg_which_is_stored_inverted_and_of_tiff_which_is_not() -> None:
    cmyk = quadrants(32).convert("CMYK")
    assert difference(read_picture(encoded(cmyk, "TIFF")), quadrants(32)) == 0
    assert difference(read_picture(cmyk), quadrants(32)) == 0
    assert read_picture(encoded(cmyk, "JPEG", quality=100)).getpixel((4, 4))[0] > 250
    assert max(read_picture(encoded(cmyk, "JPEG", quality=100)).getpixel((4, 4))[1:]) < 5


def test_lab_and_ycbcr() -> None:
    assert difference(read_picture(quadrants().convert("YCbCr")), quadrants()) <= 2
    lab = Image.new("LAB", (1, 1), (138, 209, 198))  # sRGB red: L* 54.3 of 100, a* 80.8 and b* 69.9 (D50), shifted by 128
    assert difference(read_picture(lab), Image.new("RGB", (1, 1), RED)) <= 8


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = np.array([0, 1, 128, 255])
    sources = [ramp, ramp[..., None], Image.fromarray(ramp), torch.from_numpy(ramp), Image.fromarray(ramp.astype(np.int32))]
    sources += [
        encoded(Image.fromarray(ramp), "PNG"),
        encoded(Image.fromarray(ramp), "TIFF"),
        b"P5 4 1 65535\n" + ramp.astype(">u2").tobytes(),
    ]
    for source in sources:
        assert np.array_equal(np.asarray(read_picture(source))[0], np.stack([expected] * 3, -1)), source


def test_float_pictures_run_from_0_to_1_or_to_255() -> None:
    for top in (1.0, 255.0, 65535.0):
        ramp = np.array([[0, top / 2, top]], np.float32)
        for source in (Image.fromarray(ramp), encoded(Image.fromarray(ramp), "TIFF")):
            assert np.asarray(read_picture(source))[0, :, 0].tolist() == [0, 128, 255]
    integers = Image.fromarray(np.array([[0, 1, 200]], np.int32))  # what Pillow's convert("I") makes of 8 bits
    assert np.asarray(read_picture(integers))[0, :, 1].tolist() == [0, 1, 200]


@pytest.mark.parametrize("values", [[0, np.nan], [-1, 1], [0, 1e6], [0, np.inf]])
def test_greyscale_of_unknown_range_is_an_error_that_names_it(values: list[float]) -> None:
    with pytest.raises(ImageError, match=r"greyscale values from .* to .*: scale them"):
        read_picture(Image.fromarray(np.array([values], np.float32)))


def test_animations_give_their_first_frame(tmp_path: Path) -> None:
    frames = [quadrants(), Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), WHITE)]
    for kind, options in {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {"default_image": False}, "TIFF": {}}.items():
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert difference(read_picture(data), frames[0]) == 0, kind


def test_mpo_gives_its_first_picture() -> None:
    data = encoded(quadrants(64), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))], quality=95)
    picture = read_picture(data)
    assert picture.size == (64, 64)
    assert picture.getpixel((50, 50)) == pytest.approx(WHITE, abs=4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = quadrants(32).crop((0, 0, 32, 24))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((24, 32) if orientation > 4 else (32, 24))
    assert difference(read_picture(data), expected) == 0
    lazily_opened = Image.open(io.BytesIO(data))
    assert difference(read_picture(lazily_opened), expected) == 0
    assert difference(read_picture(read_picture(data)), expected) == 0


def test_damaged_exif_neither_warns_nor_hides_the_picture() -> None:
    for exif in (
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0",
        b"junk",
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert read_picture(encoded(quadrants(), "JPEG", exif=exif)).size == (16, 16)
        assert not caught


# --------------------------------------------------------------------------------------------------------------- arrays and tensors


@pytest.mark.parametrize("make", [np.asarray, lambda p: np.asarray(p) / 255, lambda p: np.asarray(p, np.float32) / np.float32(255)])
def test_arrays(make) -> None:
    assert difference(read_picture(make(quadrants())), quadrants()) == 0


def test_arrays_with_strides_and_bool_arrays() -> None:
    flipped = np.asarray(quadrants())[::-1, ::-1]
    assert difference(read_picture(flipped), quadrants().rotate(180)) == 0
    assert read_picture(np.array([[True, False]])).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tensors_are_channels_first(dtype: torch.dtype) -> None:
    values = torch.from_numpy(np.array(quadrants())).movedim(-1, 0)
    tensor = values if dtype == torch.uint8 else (values.double() / 255).to(dtype).requires_grad_()
    assert difference(read_picture(tensor), quadrants()) == 0
    assert difference(read_picture(tensor[:1]), quadrants().getchannel("R").convert("RGB")) == 0
    assert difference(read_picture(tensor[0]), quadrants().getchannel("R").convert("RGB")) == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0), np.uint8), "no pixels"),
        (torch.zeros(3, 0, 5), "no pixels"),
        (np.zeros((4, 4, 3), np.int64), "convert it to uint8"),
        (np.zeros((4, 4, 3), np.complex64), "convert it to uint8"),
        (np.full((4, 4, 3), 255.0), "from 255 to 255.*divide by 255"),
        (np.full((4, 4), np.nan), "from nan"),
        (np.zeros((3, 9, 9), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((9, 9, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 9, 9, 3), np.uint8), "one picture at a time"),
        (np.zeros(9, np.uint8), "one picture at a time"),
        (np.array([["a"]]), "convert it to uint8"),
        (torch.zeros(9, 9, 3), "permute"),
        (torch.zeros(2, 3, 9, 9), "one picture at a time"),
        (Image.new("RGB", (0, 5)), "no pixels"),
    ],
)
def test_arrays_that_are_no_pictures(source: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_picture(source)


# --------------------------------------------------------------------------------------------------------------- files that are bad


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    quadrants().save(tmp_path / "Holiday.jpg")
    with pytest.raises(ImageError, match=r"holliday\.jpg does not exist: did you mean .*Holiday\.jpg"):
        read_picture(tmp_path / "holliday.jpg")
    with pytest.raises(ImageError, match=r"nor does its folder .*nowhere"):
        read_picture(tmp_path / "nowhere" / "a.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(ImageError, match=r"cannot be opened \(Not a directory\)"):
        read_picture(tmp_path / "Holiday.jpg" / "a.jpg")


def test_unreadable_file(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / "a.png"
    quadrants().save(path)
    path.chmod(0)
    with pytest.raises(ImageError, match=r"cannot be opened \(Permission denied\)"):
        read_picture(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n  <!DOCTYPE html>\n<html>", "HTML page"),
        (b"\xef\xbb\xbf<html lang='en'>", "HTML page"),
        (b"<!-- saved -->\n<HTML>", "HTML page"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG drawing"),
        (b"%PDF-1.7", "PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "pillow-heif"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"PK\x03\x04....", "zip"),
        (b'{"error": "no access"}', "JSON"),
        (b"not a picture at all", r"first bytes b'not a pi'"),
        (b"\x00" * 64, "first bytes"),
        (b"\xff\xd8\xff\xe0", "truncated|damaged"),
        (b"\x89PNG\r\n\x1a\n", "truncated|damaged"),
        (b"GIF89a", "truncated|damaged"),
        (b"BM" + bytes(20), "truncated|damaged"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "truncated|damaged"),
    ],
)
def test_files_that_are_no_pictures_say_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"(?s)cat\.jpg .*({words})"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "QOI"])
def test_truncated_files_are_errors_not_grey_bottoms(photo: Image.Image, kind: str) -> None:
    data = encoded(photo, kind)
    assert read_picture(data).size == photo.size
    with pytest.raises(ImageError, match=r"picture in memory .*truncated|damaged"):
        read_picture(data[: len(data) // 2])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_damaged_files_give_a_picture_or_an_image_error_and_nothing_else(kind: str, draw: st.DataObject) -> None:
    data = bytearray(encoded(quadrants(24), kind))
    for place in draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=6)):
        data[place] = draw.draw(st.integers(0, 255))
    try:
        assert read_picture(bytes(data), max_pixels=10**6).mode == "RGB"
    except ImageError as error:
        assert "picture in memory" in str(error)


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(50_000, 50_000))
    with pytest.raises(ImageError, match=r"bomb\.png has 50000 x 50000 = 2,500,000,000 pixels.*200,000,000.*max_pixels=2500000000"):
        read_picture(path)


def test_pixel_limit_can_be_raised_and_lowered_without_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow's own: a warning above, an error above twice of it
    for kind in ("PNG", "JPEG", "TIFF", "BMP"):
        data = encoded(quadrants(16), kind)
        assert read_picture(data).size == (16, 16)
        assert read_picture(data, max_pixels=256).size == (16, 16)
        assert read_picture(data, max_pixels=None).size == (16, 16)
        with pytest.raises(ImageError, match="max_pixels=256"):
            read_picture(data, max_pixels=255)
    big = encoded(quadrants(32), "PNG")
    assert read_picture(big).size == (32, 32)
    with pytest.raises(ImageError, match=r"PIL\.Image\.MAX_IMAGE_PIXELS"):
        read_picture(encoded(quadrants(32), "WEBP"))  # Pillow's WebP decoder keeps to Pillow's limit


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000), (1, 9)])
def test_extreme_sizes_are_pictures(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG", "BMP"):
        assert read_picture(encoded(Image.new("RGB", size, RED), kind)).size == size


# --------------------------------------------------------------------------------------------------------------- speed and threads


def test_draft_decodes_near_the_wanted_size_and_never_below(photo: Image.Image) -> None:
    large = photo.resize((1804, 1200))
    data = encoded(large, "JPEG", quality=95)
    assert read_picture(data, draft_size=300).size == (451, 300)
    assert read_picture(data, draft_size=301).size == (902, 600)
    assert read_picture(data, draft_size=5000).size == (1804, 1200)
    assert read_picture(encoded(large, "BMP"), draft_size=300).size == (1804, 1200)
    small = read_picture(data, draft_size=576).resize((433, 288), Image.Resampling.BICUBIC)
    exact = read_picture(data).resize((433, 288), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small, float) - np.asarray(exact, float)).mean() < 0.5
    with pytest.raises(ImageError, match="draft_size is 0"):
        read_picture(data, draft_size=0)


def test_draft_with_orientation_and_mpo(photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    large = photo.resize((1200, 800))
    assert read_picture(encoded(large, "JPEG", exif=exif), draft_size=200).size == (200, 300)
    assert read_picture(encoded(large, "MPO", save_all=True, append_images=[large]), draft_size=200).size == (300, 200)


def test_many_threads_read_at_once_and_the_warning_filters_stay(photo: Image.Image) -> None:
    sources = [encoded(photo, kind) for kind in ("JPEG", "PNG", "TIFF", "GIF")] * 8 + [b"<html>"] * 8
    read_picture(sources[0])
    before = list(warnings.filters)

    def size(source: bytes) -> object:
        try:
            return read_picture(source).size
        except ImageError:
            return "error"

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(size, sources)) == [photo.size] * 32 + ["error"] * 8
    assert warnings.filters == before


# --------------------------------------------------------------------------------------------------------------------------- masks


def test_masks_keep_class_numbers() -> None:
    classes = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)
    palette = Image.fromarray(classes)
    indexed = Image.new("P", (3, 2))
    indexed.putdata(classes.ravel().tolist())
    indexed.putpalette([i for _ in range(256) for i in (9, 9, 9)])
    for source in (
        palette,
        indexed,
        encoded(palette, "PNG"),
        encoded(indexed, "PNG"),
        encoded(indexed, "GIF"),
        classes,
        classes[..., None],
    ):
        mask = read_mask(source)
        assert mask.dtype == np.int32
        if not (isinstance(source, bytes) and source.startswith(b"GIF")):  # Pillow's GIF writer merges equal colours
            assert np.array_equal(mask, classes)
    wide = np.array([[0, 300, 65535]], np.uint16)
    assert np.array_equal(read_mask(encoded(Image.fromarray(wide), "PNG")), wide)
    assert np.array_equal(read_mask(torch.tensor([[[0, -100, 7]]])), [[0, -100, 7]])
    assert np.array_equal(read_mask(Image.fromarray(np.array([[True, False]]))), [[1, 0]])


@pytest.mark.parametrize("source", [quadrants(), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), Image.new("LA", (2, 2))])
def test_masks_of_colours_or_fractions_are_errors(source: object) -> None:
    with pytest.raises(ImageError, match="is no mask: a mask holds one whole number a pixel"):
        read_mask(source)
    with pytest.raises(ImageError, match="no pixels"):
        read_mask(np.zeros((0, 3), np.uint8))


# ----------------------------------------------------------------------------------------------------------------- finding pictures


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in (
        "b.JPG",
        "a.png",
        "notes.txt",
        ".hidden.png",
        "sub/c.webp",
        "sub/deeper/d.gif",
        ".git/e.png",
        "odd.dat",
        "[x].bmp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def relative(found: list[str], folder: Path) -> list[str]:
    return [str(Path(name).relative_to(folder)) for name in found]


def test_folders_are_searched_with_all_below_sorted_without_hidden_ones(album: Path) -> None:
    assert relative(find_pictures([album]), album) == ["[x].bmp", "a.png", "b.JPG", "sub/c.webp", "sub/deeper/d.gif"]


def test_globs(album: Path) -> None:
    assert relative(find_pictures([f"{album}/*.png"]), album) == ["a.png"]
    assert relative(find_pictures([f"{album}/*"]), album) == ["[x].bmp", "a.png", "b.JPG"]
    assert relative(find_pictures([f"{album}/**/*.gif"]), album) == ["sub/deeper/d.gif"]
    assert relative(find_pictures([f"{album}/**"]), album) == ["[x].bmp", "a.png", "b.JPG", "sub/c.webp", "sub/deeper/d.gif"]
    assert relative(find_pictures([f"{album}/*.dat"]), album) == ["odd.dat"]


def test_files_urls_and_repeats(album: Path) -> None:
    url = "https://example.org/cat.jpg"
    found = find_pictures([album / "odd.dat", url, f"{album}/[x].bmp", album / "sub", album / "odd.dat", f"{album}/sub/*.webp"])
    assert found == [f"{album}/odd.dat", url, f"{album}/[x].bmp", f"{album}/sub/c.webp", f"{album}/sub/deeper/d.gif"]
    assert is_url("DATA:image/png;base64,") and not is_url("cat.jpg") and not is_url(b"http://")


def test_nothing_found_says_where_and_for_what_it_looked(album: Path) -> None:
    for source, words in {
        str(album / "empty"): r"folder .*empty has no picture.*\(0 other files\).*\.jpeg \.jpg",
        str(album / "a.pgn"): r"a\.pgn does not exist: did you mean .*a\.png",
        str(album / "none*.jpg"): r"none\*\.jpg matches no picture",
        str(album / "what" / "a.jpg"): "nor does its folder",
        "": "empty path",
        "y" * 5000: "does not exist",
    }.items():
        with pytest.raises(ImageError, match=words):
            find_pictures([source])


def test_home_folder_is_expanded(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(album))
    assert find_pictures(["~/a.png"]) == [f"{album}/a.png"]
    quadrants().save(album / "~draft.png")
    monkeypatch.chdir(album)
    assert read_picture("~draft.png").size == (16, 16)


def test_addresses_of_other_kinds_are_named_as_such() -> None:
    with pytest.raises(ImageError, match="kind that is not fetched"):
        find_pictures(["ftp://example.org/cat.jpg"])
