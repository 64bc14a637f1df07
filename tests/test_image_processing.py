"""The image processor: the contract of the weights, every option, every kind of input, and the way back to labels and maps."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.data import chelsea
from torch.nn import functional as F
from transformers import AutoImageProcessor, MobileViTImageProcessor

from mobilevitv2.errors import ConfigurationError, ImageError
from mobilevitv2.image_processing import IGNORED_LABEL, InputContractWarning, MobileViTV2ImageProcessor
from mobilevitv2.pictures import read_picture

CHELSEA = chelsea()  # 300 x 451, a photograph
BARE = {"do_resize": False, "do_center_crop": False}
PEER = {"size": {"shortest_edge": 288}, "do_flip_channel_order": False}


@pytest.fixture
def processor() -> MobileViTV2ImageProcessor:
    return MobileViTV2ImageProcessor()


def values(processor: MobileViTV2ImageProcessor, images: object, **options: object) -> torch.Tensor:
    return processor(images, return_tensors="pt", **options)["pixel_values"]


def written(folder: Path, content: dict[str, object]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


# ---------------------------------------------------------------------------------------------------------- what the weights want


def test_defaults_are_the_official_validation(processor: MobileViTV2ImageProcessor) -> None:
    """Resize by Pillow, crop, divide: what the official code does. torchvision's bicubic rounds in other places than Pillow's."""
    picture = Image.fromarray(CHELSEA)
    resized = picture.resize((int(288 * 451 / 300), 288), Image.Resampling.BICUBIC)
    left, top = (resized.width - 256) // 2, (resized.height - 256) // 2
    official = torch.from_numpy(np.array(resized.crop((left, top, left + 256, top + 256)))).movedim(-1, 0) / 255
    ours = values(processor, picture)
    assert ours.shape == (1, 3, 256, 256)
    assert ours.dtype == torch.float32
    difference = (ours[0] - official).abs() * 255
    assert difference.max() <= 2.01
    assert (difference <= 1.01).float().mean() > 0.9999


@pytest.mark.parametrize("side", [(300, 451), (451, 300), (288, 288), (97, 131), (1024, 700), (30, 31)])
def test_equal_to_transformers_where_the_settings_are(processor: MobileViTV2ImageProcessor, side: tuple[int, int]) -> None:
    picture = Image.fromarray(CHELSEA).resize(side[::-1])
    peer = MobileViTImageProcessor(**PEER)(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(values(processor, picture), peer)


def test_tiny_picture_computed_by_hand(processor: MobileViTV2ImageProcessor) -> None:
    """2 x 2 pixels to 4 x 4 by bicubic interpolation with a = -0.5; at the edges the remaining weights are made to sum to one."""

    def kernel(x: float) -> float:
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    weights = []
    for place in range(4):
        pair = [kernel((place + 0.5) / 2 - (source + 0.5)) for source in range(2)]
        weights.append([weight / sum(pair) for weight in pair])
    matrix = torch.tensor(weights)
    wide = torch.tensor([[0.0, 100.0], [100.0, 200.0]]) @ matrix.T
    expected = matrix @ wide
    expected_of_bytes = (matrix @ wide.clamp(0, 255).round()).clamp(0, 255).round()  # bytes between the two passes as well
    tiny = np.array([[0, 100], [100, 200]], np.uint8)
    sizes = {"size": {"shortest_edge": 4}, "crop_size": {"height": 4, "width": 4}}
    exact = values(processor, tiny.astype(np.float32), **sizes)[0]
    assert torch.allclose(exact, expected.expand(3, 4, 4) / 255, atol=1e-6)
    assert torch.allclose(values(processor, tiny, **sizes)[0], expected_of_bytes.expand(3, 4, 4) / 255, atol=1e-6)


def test_channels_stay_rgb_and_are_divided_by_255(processor: MobileViTV2ImageProcessor) -> None:
    answer = values(processor, Image.new("RGB", (300, 300), (255, 51, 0)))
    assert answer[0, :, 7, 7].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_crop_is_floored_at_the_centre_like_the_official_code(processor: MobileViTV2ImageProcessor) -> None:
    columns = np.arange(9, dtype=np.uint8)[None].repeat(7, 0)
    answer = values(processor, columns, do_resize=False, do_rescale=False, crop_size={"height": 4, "width": 4})
    assert answer.dtype == torch.uint8
    assert answer[0, 0, 0].tolist() == [2, 3, 4, 5]


# --------------------------------------------------------------------------------------------------------------- every option acts


def test_sizes(processor: MobileViTV2ImageProcessor) -> None:
    assert values(processor, CHELSEA, size={"height": 64, "width": 96}, do_center_crop=False).shape == (1, 3, 64, 96)
    assert values(processor, CHELSEA, size={"shortest_edge": 100}, do_center_crop=False).shape == (1, 3, 100, 150)
    assert values(processor, CHELSEA, size=100, do_center_crop=False).shape == (1, 3, 100, 150)
    assert values(processor, CHELSEA, size=100, default_to_square=True, do_center_crop=False).shape == (1, 3, 100, 100)
    assert values(processor, CHELSEA, size={"shortest_edge": 100, "longest_edge": 120}, do_center_crop=False).shape[-1] == 120
    assert values(processor, CHELSEA, crop_size=96).shape == (1, 3, 96, 96)
    assert values(processor, CHELSEA, **BARE).shape == (1, 3, 300, 451)
    assert values(processor, CHELSEA, do_resize=False).shape == (1, 3, 256, 256)
    assert torch.allclose(values(processor, CHELSEA, **BARE)[0], torch.from_numpy(CHELSEA).movedim(-1, 0) / 255)


def test_filter_scale_and_normalisation(processor: MobileViTV2ImageProcessor) -> None:
    plain = values(processor, CHELSEA)
    assert not torch.equal(plain, values(processor, CHELSEA, resample=Image.Resampling.BILINEAR))
    assert torch.allclose(values(processor, CHELSEA, rescale_factor=1 / 127.5), plain * 2)
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    normalised = values(processor, CHELSEA, do_normalize=True, image_mean=mean, image_std=std)
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.allclose(normalised, expected, atol=1e-5)
    assert torch.allclose(values(processor, CHELSEA, do_normalize=True), plain, atol=1e-6)


def test_crop_larger_than_the_picture_stands_in_zeros(processor: MobileViTV2ImageProcessor) -> None:
    picture = Image.new("RGB", (5, 4), (255, 255, 255))
    answer = values(processor, picture, do_resize=False, crop_size={"height": 7, "width": 8})[0]
    assert torch.equal(answer[0, 1:5, 1:6], torch.ones(4, 5))
    assert answer[0].sum() == 20


def test_padding_layout_and_types(processor: MobileViTV2ImageProcessor) -> None:
    small, large = np.full((4, 6), 255, np.uint8), np.full((5, 3), 255, np.uint8)
    padded = values(processor, [small, large], **BARE, do_pad=True)
    assert padded.shape == (2, 3, 5, 6)
    assert padded.sum((1, 2, 3)).tolist() == [72, 45]
    assert values(processor, small, **BARE, do_pad=True, pad_size={"height": 9, "width": 8}).shape == (1, 3, 9, 8)
    assert values(processor, CHELSEA, data_format="channels_last").shape == (1, 256, 256, 3)
    assert isinstance(processor(CHELSEA, return_tensors="np")["pixel_values"], np.ndarray)
    listed = processor([small, large], **BARE)["pixel_values"]
    assert [tuple(each.shape) for each in listed] == [(3, 4, 6), (3, 5, 3)]
    with pytest.raises(ConfigurationError, match=r"\(3, 4, 6\), \(3, 5, 3\).*do_pad=True"):
        values(processor, [small, large], **BARE)


def test_processing_on_a_device(processor: MobileViTV2ImageProcessor) -> None:
    assert values(processor, CHELSEA, device="meta").device.type == "meta"


def test_options_of_the_class_hold_for_all_calls_and_yield_to_those_of_a_call() -> None:
    processor = MobileViTV2ImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24})
    assert values(processor, CHELSEA).shape[-1] == 24
    assert values(processor, CHELSEA, do_center_crop=False).shape[-2] == 32
    assert values(processor, CHELSEA).shape[-1] == 24


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": {"shortest_edge": 0}}, r"size is .*0.*1 or more"),
        ({"crop_size": {"height": -3, "width": 4}}, r"crop_size is .*-3"),
        ({"pad_size": -1, "do_pad": True}, "pad_size is"),
        ({"do_normalize": True, "image_std": [0.5, 0.0, 0.5]}, "image_std is"),
        ({"do_flip_chanel_order": False}, "did you mean do_flip_channel_order"),
        ({"colour": "blue"}, "no option colour='blue': its options are .*crop_size"),
    ],
)
def test_wrong_options_are_named(processor: MobileViTV2ImageProcessor, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        MobileViTV2ImageProcessor(**options)
    with pytest.raises(ConfigurationError, match=words):
        processor(CHELSEA, **options)


# -------------------------------------------------------------------------------------------------------------------- every input


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def test_every_kind_of_source_gives_the_same(processor: MobileViTV2ImageProcessor, tmp_path: Path) -> None:
    picture = Image.fromarray(CHELSEA)
    path = tmp_path / "cat.png"
    picture.save(path)
    first = torch.from_numpy(CHELSEA).movedim(-1, 0)
    sources = [picture, CHELSEA, first, str(path), path, path.read_bytes(), io.BytesIO(path.read_bytes())]
    sources += [CHELSEA.transpose(2, 0, 1), np.asarray(picture), CHELSEA.astype(">u2") * 257, first.to(torch.uint16) * 257]
    expected = values(processor, picture)
    for source in sources:
        assert torch.equal(values(processor, source), expected), type(source)
    floats = {"do_rescale": False}
    for source in (CHELSEA / np.float32(255), first / 255, first.double() / 255):
        assert torch.allclose(values(processor, source, **floats), expected, atol=2.5 / 255)


def test_batches_lists_and_nested_lists(processor: MobileViTV2ImageProcessor) -> None:
    other = np.ascontiguousarray(CHELSEA[:, ::-1])
    expected = torch.cat([values(processor, CHELSEA), values(processor, other)])
    batch = np.stack([CHELSEA, other])
    for images in (
        [CHELSEA, other],
        (CHELSEA, other),
        batch,
        torch.from_numpy(batch).movedim(-1, 1),
        [[CHELSEA], [other]],
        [batch],
    ):
        assert torch.equal(values(processor, images), expected)


def test_modes_come_out_as_they_are_seen(processor: MobileViTV2ImageProcessor) -> None:
    photo = Image.fromarray(CHELSEA)
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    for source in (photo, photo.convert("P"), photo.convert("LA"), photo.convert("L"), photo.convert("CMYK"), photo.convert("1")):
        assert torch.equal(values(processor, source), values(processor, read_picture(source))), source.mode
    turned = encoded(Image.fromarray(CHELSEA), "PNG", exif=exif)
    assert torch.equal(values(processor, turned), values(processor, Image.fromarray(CHELSEA).rotate(-90, expand=True)))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    assert torch.equal(values(processor, deep), values(processor, photo.convert("L")))
    rgba = np.array(photo)
    assert torch.equal(values(processor, rgba), values(processor, photo))
    assert torch.equal(values(processor, torch.from_numpy(rgba).movedim(-1, 0)), values(processor, photo))
    floats = values(processor, rgba / np.float32(255), do_rescale=False, **BARE)
    assert torch.allclose(floats, values(processor, photo, **BARE), atol=1.01 / 255)
    assert torch.allclose(values(processor, rgba.astype(np.float32), **BARE), floats, atol=1e-5)


def test_other_numbers_of_channels_are_kept_when_asked(processor: MobileViTV2ImageProcessor) -> None:
    grey = torch.zeros(1, 9, 9, dtype=torch.uint8)
    assert values(processor, grey).shape[1] == 3
    assert values(processor, grey, do_convert_rgb=False).shape[1] == 1
    assert values(processor, torch.zeros(4, 9, 9, dtype=torch.uint8), do_convert_rgb=False).shape[1] == 4
    assert values(processor, torch.zeros(2, 5, 40, 40), do_convert_rgb=False).shape == (2, 5, 256, 256)
    assert values(processor, np.zeros((40, 40, 5)), do_convert_rgb=False).shape == (1, 5, 256, 256)
    with pytest.raises(ImageError, match="do_convert_rgb=False"):
        values(processor, torch.zeros(5, 40, 40))


def test_layout_that_the_shape_leaves_open(processor: MobileViTV2ImageProcessor) -> None:
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    as_last, as_first = torch.from_numpy(square).movedim(-1, 0), torch.from_numpy(square)
    raw = {**BARE, "do_rescale": False}
    assert torch.equal(values(processor, square, **raw)[0], as_last)
    assert torch.equal(values(processor, as_first, **raw)[0], as_first)
    assert torch.equal(values(processor, square, input_data_format="channels_first", **raw)[0], as_first)
    assert torch.equal(values(processor, as_first, input_data_format="channels_last", **raw)[0], as_last)
    assert values(processor, torch.zeros(40, 50, 3), **BARE).shape == (1, 3, 40, 50)


def test_floats_from_0_to_1_that_are_rescaled_again_warn_with_the_remedy(processor: MobileViTV2ImageProcessor) -> None:
    ones = torch.ones(3, 8, 8)
    with pytest.warns(InputContractWarning, match="do_rescale=False"):
        values(processor, ones)
    assert values(processor, ones, do_rescale=False).max() == pytest.approx(1)
    assert values(processor, ones * 255).max() == pytest.approx(1)
    assert values(processor, ones * 0).max() == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "no picture was given"),
        (None, "NoneType"),
        (np.zeros((4, 4, 3), np.int64), "convert it to uint8"),
        (np.array([["a", "b"]]), "convert it to uint8"),
        (torch.zeros(3, 0, 4), "no pixels"),
        (torch.zeros(7), "2 dimensions"),
        ([CHELSEA, "no/such/file.jpg"], "picture 2 of 2: no/such/file.jpg does not exist"),
        (b"<html>", "HTML page"),
    ],
)
def test_bad_pictures_are_named(processor: MobileViTV2ImageProcessor, source: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        processor(source)


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000), (1, 2), (257, 1)])
def test_extreme_sizes(processor: MobileViTV2ImageProcessor, size: tuple[int, int]) -> None:
    answer = values(processor, Image.new("RGB", size, (255, 0, 102)))
    assert answer.shape == (1, 3, 256, 256)
    assert torch.allclose(answer, torch.tensor([1, 0, 0.4])[:, None, None].expand(3, 256, 256))


def test_very_long_pictures_show_their_centre(processor: MobileViTV2ImageProcessor) -> None:
    for length in (20000, 20001):
        strip = np.zeros((3, length, 3), np.uint8)
        strip[:, length // 2 :] = 255
        for picture in (strip, strip.transpose(1, 0, 2)):
            answer = values(processor, picture)[0, 0]
            profile = answer.mean(0 if picture is strip else 1)
            assert abs(int((profile < 0.5).sum()) - (128 - 48 * (length % 2))) <= 1
    with pytest.raises(ImageError, match=r"20000 x 3 .*1920000 long.*do_center_crop=True"):
        values(processor, Image.new("RGB", (20000, 3)), do_center_crop=False)
    assert values(processor, Image.new("RGB", (20000, 3)), do_center_crop=False, size={"height": 8, "width": 9}).shape[-1] == 9


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"]),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_any_mode_and_size_gives_what_is_asked_for(mode: str, size: tuple[int, int], edge: int, crop: int) -> None:
    processor = MobileViTV2ImageProcessor(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop + 1})
    answer = values(processor, Image.new(mode, size))
    assert answer.shape == (1, 3, crop, crop + 1)
    assert answer.min() >= 0
    assert answer.max() <= 1


# ----------------------------------------------------------------------------------------------------- preprocessor_config.json


def test_round_trip(tmp_path: Path) -> None:
    saved = MobileViTV2ImageProcessor(size={"height": 40, "width": 50}, do_center_crop=False, do_normalize=True, image_mean=0.5)
    saved.save_pretrained(tmp_path)
    loaded = MobileViTV2ImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict()
    assert torch.equal(values(loaded, CHELSEA), values(saved, CHELSEA))
    assert MobileViTV2ImageProcessor.from_pretrained(tmp_path / "preprocessor_config.json").to_dict() == saved.to_dict()
    assert MobileViTV2ImageProcessor.from_json_file(tmp_path / "preprocessor_config.json").to_dict() == saved.to_dict()
    for copied in (copy.deepcopy(saved), pickle.loads(pickle.dumps(saved))):
        assert copied.to_dict() == saved.to_dict()


def test_defaults_say_mean_0_and_std_1(processor: MobileViTV2ImageProcessor) -> None:
    settings_ = json.loads(processor.to_json_string())
    assert settings_["image_mean"] == [0, 0, 0]
    assert settings_["image_std"] == [1, 1, 1]
    assert settings_["do_flip_channel_order"] is False


def test_old_file_stays_whole_when_saving_fails(processor: MobileViTV2ImageProcessor, tmp_path: Path, monkeypatch) -> None:
    processor.save_pretrained(tmp_path)
    before = (tmp_path / "preprocessor_config.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        MobileViTV2ImageProcessor(do_resize=False).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


HUB_FILE = {
    "crop_size": {"height": 256, "width": 256},
    "do_center_crop": True,
    "do_flip_channel_order": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "MobileViTImageProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 288},
}
OLD_FILE = {
    "crop_size": 256,
    "do_center_crop": True,
    "do_flip_channel_order": True,
    "do_resize": True,
    "feature_extractor_type": "MobileViTFeatureExtractor",
    "resample": 2,
    "size": 288,
}
FAST_FILE = {
    **HUB_FILE,
    "image_processor_type": "MobileViTImageProcessorFast",
    "do_normalize": None,
    "data_format": "channels_first",
}
BARE_FILE = {"image_processor_type": "MobileViTImageProcessor"}
IDLE_FILE = {**HUB_FILE, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.1, 0.1]}


@pytest.mark.parametrize("content", [HUB_FILE, OLD_FILE, FAST_FILE, BARE_FILE, IDLE_FILE])
def test_files_of_mobilevit_keep_their_contract_and_warn_once(tmp_path: Path, content: dict[str, object]) -> None:
    processor = MobileViTV2ImageProcessor.from_pretrained(written(tmp_path, content))
    peer = MobileViTImageProcessor.from_pretrained(tmp_path)
    with pytest.warns(InputContractWarning, match=r"swaps red and blue.*trained on RGB.*do_flip_channel_order=False") as caught:
        answer = values(processor, CHELSEA)
        values(processor, CHELSEA)
    assert len(caught) == 1
    assert torch.equal(answer, peer(Image.fromarray(CHELSEA), return_tensors="pt")["pixel_values"])
    rgb = MobileViTV2ImageProcessor.from_pretrained(tmp_path, do_flip_channel_order=False)
    assert torch.equal(values(rgb, CHELSEA).flip(1), answer)
    rgb.save_pretrained(tmp_path)
    assert torch.equal(values(MobileViTV2ImageProcessor.from_pretrained(tmp_path), CHELSEA).flip(1), answer)


def test_flip_swaps_red_and_blue_alone(processor: MobileViTV2ImageProcessor) -> None:
    with pytest.warns(InputContractWarning):
        assert values(processor, Image.new("RGB", (9, 9), (255, 51, 0)), do_flip_channel_order=True)[
            0, :, 0, 0
        ].tolist() == pytest.approx([0, 0.2, 1])
    four = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 5, 5)
    answer = values(processor, four, do_flip_channel_order=True, do_convert_rgb=False, do_rescale=False, **BARE)
    assert answer[0, :, 0, 0].tolist() == [2, 1, 0, 3]


def test_file_without_a_type_has_our_defaults(tmp_path: Path) -> None:
    processor = MobileViTV2ImageProcessor.from_pretrained(written(tmp_path, {"do_center_crop": False, "unknown_to_us": 1}))
    assert processor.do_flip_channel_order is False
    assert values(processor, CHELSEA).shape == (1, 3, 288, 432)


def test_slips_in_options_of_from_pretrained_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean do_flip_channel_order"):
        MobileViTV2ImageProcessor.from_pretrained(written(tmp_path, HUB_FILE), do_flip_chanel_order=False)
    loaded, unused = MobileViTV2ImageProcessor.from_pretrained(tmp_path, foo=1, do_resize=False, return_unused_kwargs=True)
    assert loaded.do_resize is False
    assert unused["foo"] == 1


def test_transformers_class_reads_our_file_the_same(processor: MobileViTV2ImageProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    peer = MobileViTImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(peer(Image.fromarray(CHELSEA), return_tensors="pt")["pixel_values"], values(processor, CHELSEA))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobilevitv2"}))
    found = AutoImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(found(Image.fromarray(CHELSEA), return_tensors="pt")["pixel_values"], values(processor, CHELSEA))


def test_file_with_settings_that_transformers_class_ignores_is_tied_to_ours(tmp_path: Path) -> None:
    MobileViTV2ImageProcessor(do_normalize=True, image_mean=0.5, image_std=0.5).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobilevitv2"}))
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == "MobileViTV2ImageProcessor"


# ------------------------------------------------------------------------------------------------------------- segmentation maps


def test_labels_have_the_geometry_of_their_picture(processor: MobileViTV2ImageProcessor) -> None:
    """The picture and its map hold the same squares, so what is bright is class 1 wherever the two are cut and resized to."""
    classes = np.kron(np.indices((6, 9)).sum(0) % 2, np.ones((50, 50), int)).astype(np.uint8)
    batch = processor(classes * 255, classes, return_tensors="pt")
    labels, bright = batch["labels"], batch["pixel_values"][:, 0] > 0.5
    assert labels.shape == (1, 256, 256)
    assert labels.dtype == torch.int64
    assert (labels.bool() == bright).float().mean() > 0.99
    for edge in (97, 301):
        kept = processor(classes * 255, classes * 200, size={"shortest_edge": edge}, return_tensors="pt")["labels"]
        assert set(kept.unique().tolist()) <= {0, 200, IGNORED_LABEL}  # never a class between two others
    peer = MobileViTImageProcessor(**PEER)(Image.fromarray(classes * 255), Image.fromarray(classes), return_tensors="pt")
    assert torch.equal(labels, torch.as_tensor(peer["labels"]))


def test_kinds_of_maps(processor: MobileViTV2ImageProcessor, tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 150, (300, 451))
    indexed = Image.fromarray(classes.astype(np.uint8)).convert("P")
    indexed.putpalette([200] * 768)
    indexed.save(tmp_path / "map.png")
    expected = processor(CHELSEA, classes, return_tensors="pt")["labels"]
    for maps in (
        torch.from_numpy(classes),
        indexed,
        tmp_path / "map.png",
        [str(tmp_path / "map.png")],
        classes[None],
        classes[None, ..., None],
    ):
        assert torch.equal(processor(CHELSEA, segmentation_maps=maps, return_tensors="pt")["labels"], expected)
    pair = processor([CHELSEA, CHELSEA[:200]], [classes, classes[:200]], return_tensors="pt")
    assert pair["labels"].shape == (2, 256, 256)
    assert torch.equal(pair["labels"][:1], expected)


def test_label_reduction(processor: MobileViTV2ImageProcessor) -> None:
    classes = np.array([[0, 1, 2], [150, 254, 255]])
    reduced = processor(np.zeros((2, 3), np.uint8), classes, do_reduce_labels=True, **BARE)["labels"][0]
    assert reduced.tolist() == [[255, 0, 1], [149, 253, 255]]
    kept = processor(np.zeros((2, 3), np.uint8), classes, **BARE)["labels"][0]
    assert kept.tolist() == classes.tolist()


def test_padding_of_labels_is_ignored(processor: MobileViTV2ImageProcessor) -> None:
    picture, classes = np.zeros((2, 3), np.uint8), np.ones((2, 3), int)
    for options in (
        {"do_resize": False, "crop_size": {"height": 4, "width": 6}},
        {**BARE, "do_pad": True, "pad_size": {"height": 4, "width": 6}},
    ):
        labels = processor(picture, classes, **options)["labels"][0]
        assert labels.shape == (4, 6)
        assert (labels == 1).sum() == 6
        assert (labels == IGNORED_LABEL).sum() == 18


def test_maps_that_do_not_fit_are_named(processor: MobileViTV2ImageProcessor) -> None:
    with pytest.raises(ImageError, match="segmentation map 1 is 300 x 451 but its picture 451 x 300"):
        processor(CHELSEA, np.zeros((451, 300), int))
    with pytest.raises(ImageError, match="2 segmentation maps came with 1 pictures"):
        processor(CHELSEA, [np.zeros((300, 451), int)] * 2)
    with pytest.raises(ImageError, match="is no mask"):
        processor(CHELSEA, Image.fromarray(CHELSEA))


# ------------------------------------------------------------------------------------------------------------------- outputs


def test_maps_are_upsampled_before_they_are_compared(processor: MobileViTV2ImageProcessor) -> None:
    """Two pixels: class 0 falls from 4 to 0, class 1 rises from 0 to 1. They meet at 4/5 of the way, not in the middle."""
    logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 1.0]]]])
    (answer,) = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=[(1, 8)])
    assert answer.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]]
    assert answer.dtype == torch.int64


def test_upsampling_is_bilinear_with_aligned_corners(processor: MobileViTV2ImageProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    sizes = [(33, 50), (1, 4)]
    for strip in (2**24, 600):  # at once, and a few rows at a time
        monkeypatch.setattr("mobilevitv2.class_maps.STRIP_ELEMENTS", strip)
        answers = processor.post_process_semantic_segmentation(logits, sizes, return_segmentation_scores=True)
        maps = processor.post_process_semantic_segmentation(logits, torch.tensor(sizes))
        for each, size, answer, alone in zip(logits, sizes, answers, maps, strict=True):
            expected = F.interpolate(each[None], size=size, mode="bilinear", align_corners=True)[0]
            assert torch.allclose(answer.segmentation_scores, expected, atol=1e-5)
            assert torch.equal(answer.segmentation, answer.segmentation_scores.argmax(0))
            assert torch.equal(answer.segmentation, alone)


def test_without_target_sizes_maps_have_the_size_of_the_logits(processor: MobileViTV2ImageProcessor) -> None:
    logits = torch.randn(2, 5, 7, 9)
    maps = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits))
    peer = MobileViTImageProcessor().post_process_semantic_segmentation(SimpleNamespace(logits=logits))
    assert all(torch.equal(one, other) for one, other in zip(maps, peer, strict=True))
    scores = processor.post_process_semantic_segmentation(logits, return_segmentation_scores=True)
    assert torch.equal(scores[1]["segmentation_scores"], logits[1])
    assert processor.post_process_semantic_segmentation(logits.bfloat16(), [(4, 4), (5, 5)])[1].shape == (5, 5)


def test_wrong_outputs_and_target_sizes_are_named(processor: MobileViTV2ImageProcessor) -> None:
    logits = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ConfigurationError, match="1 target_sizes came with the logits of 2 pictures"):
        processor.post_process_semantic_segmentation(logits, [(4, 4)])
    with pytest.raises(ConfigurationError, match=r"\(0, 4\) is no \(height, width\)"):
        processor.post_process_semantic_segmentation(logits, [(0, 4), (4, 4)])
    with pytest.raises(ConfigurationError, match=r"shape \(2, 3\) are no logits"):
        processor.post_process_semantic_segmentation(torch.zeros(2, 3))
    with pytest.raises(ConfigurationError, match="type tuple are no logits"):
        processor.post_process_image_classification((logits,))
    with pytest.raises(ConfigurationError, match="top_k is 0"):
        processor.post_process_image_classification(torch.zeros(2, 3), top_k=0)


def test_best_labels(processor: MobileViTV2ImageProcessor) -> None:
    logits = torch.log(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]))
    best = processor.post_process_image_classification(SimpleNamespace(logits=logits), top_k=2)
    assert [[label for label, _ in picture] for picture in best] == [[1, 2], [0, 2]]
    assert best[0][0][1] == pytest.approx(0.7)
    assert len(processor.post_process_image_classification(logits)[0]) == 3


def test_nothing_here_warns_on_an_ordinary_picture(processor: MobileViTV2ImageProcessor) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values(processor, Image.fromarray(CHELSEA))
    assert not caught
