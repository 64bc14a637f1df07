"""What belongs to weights: names resolved, the right image processor, class names, the part of a picture that is seen."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevitv2 import (
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
    MobileViTV2ImageProcessor,
)
from mobilevitv2.contract import default_model, load_model, load_processor, name_classes, resolve, seen_box
from mobilevitv2.errors import ConfigurationError, DownloadError
from mobilevitv2.weights import list_records


def save_model(folder: Path, **options: object) -> Path:
    config = MobileViTV2Config(width_multiplier=0.5, image_size=64, **options)
    MobileViTV2ForImageClassification(config).save_pretrained(folder)
    return folder


def test_names_paths_and_hub_ids_resolve(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve("mobilevitv2-1.0-imagenet1k-256") == "mobilevitv2-1.0-imagenet1k-256"
    assert resolve("mobilevitv2_100.cvnets_in1k") == "mobilevitv2-1.0-imagenet1k-256"
    assert resolve("somebody/my-model-0.5") == "somebody/my-model-0.5"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mobilevitv2-1.0-imagenet1k-265", "mobilevitv2-1.0-imagenet1k-256"),
        ("missing/weights.pt", "does not exist"),
        ("weights.safetensors", "does not exist"),
        ("/no/such/folder", "does not exist"),
    ],
)
def test_wrong_names_say_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        resolve(name)


def test_the_default_is_the_classifier_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = list_records(task="classify", bundled=True)
    if bundled:
        assert default_model() == bundled[0].name
    monkeypatch.setattr("mobilevitv2.contract.list_records", lambda **_: [])
    with pytest.raises(ConfigurationError, match="--model"):
        default_model()


def test_a_folder_keeps_its_own_contract(tmp_path: Path) -> None:
    save_model(tmp_path)
    MobileViTV2ImageProcessor(size={"shortest_edge": 70}, crop_size={"height": 60, "width": 50}).save_pretrained(tmp_path)
    model, processor = load_model(tmp_path)
    assert not model.training
    assert (processor.size["shortest_edge"], processor.crop_size["width"]) == (70, 50)


def test_half_precision_weights_are_loaded_in_float32(tmp_path: Path) -> None:
    config = MobileViTV2Config(width_multiplier=0.5)
    MobileViTV2ForImageClassification(config).half().save_pretrained(tmp_path)
    MobileViTV2ImageProcessor().save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].dtype == torch.float32


def test_a_folder_without_contract_gets_the_official_one_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(tmp_path)
    with caplog.at_level(logging.WARNING):
        _, processor = load_model(tmp_path)
    assert "preprocessor_config.json" in caplog.text
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (72, 64)
    assert not processor.do_flip_channel_order


@pytest.mark.parametrize(
    ("name", "resize", "crop"),
    [("mobilevitv2-1.0-imagenet1k-256", 288, 256), ("mobilevitv2-0.5-imagenet1k-384", 384, 384)],
)
def test_records_bring_their_contract(name: str, resize: int, crop: int) -> None:
    processor = load_processor(name, MobileViTV2Config())
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (resize, crop)
    assert not processor.do_flip_channel_order


def test_segmenters_see_the_whole_picture() -> None:
    processor = load_processor("deeplabv3-mobilevitv2-1.0-voc", MobileViTV2Config(image_size=512))
    assert (processor.size["height"], processor.size["width"], processor.do_center_crop) == (512, 512, False)


def test_a_single_file_of_1000_classes_is_named_after_imagenet_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mobilevitv2-0.5.pt"
    folder = save_model(tmp_path / "model", num_labels=1000)
    from mobilevitv2.weights import convert_file

    convert_file(folder, file, to="official")
    with caplog.at_level(logging.WARNING):
        model, processor = load_model(file)
    assert "names no classes" in caplog.text
    assert model.config.id2label[281] == "tabby"
    assert model.config.label2id["goldfish"] == 1
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (288, 256)


def test_classes_are_not_renamed_where_they_may_be_others(tmp_path: Path) -> None:
    for source, count in ((tmp_path, 1000), ("mobilevitv2-1.0-imagenet1k-256", 3)):
        config = MobileViTV2Config(num_labels=count)
        name_classes(config, source)
        assert config.id2label[0] == "LABEL_0"
    named = MobileViTV2Config(id2label={i: f"own {i}" for i in range(1000)})
    name_classes(named, "mobilevitv2-1.0-imagenet1k-256")
    assert named.id2label[1] == "own 1"


def test_a_hub_id_that_cannot_be_fetched_is_one_line() -> None:
    with pytest.raises(DownloadError, match="somebody/nothing") as caught:
        load_model("somebody/nothing")
    assert "\n" not in str(caught.value)


def prepared_columns(picture: Image.Image, processor: MobileViTV2ImageProcessor) -> np.ndarray:
    return processor(picture, return_tensors="np")["pixel_values"][0, 0].mean(axis=0) * 255


def test_the_seen_box_is_what_the_processor_cuts_out() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 600)[None, :, None], (300, 600, 3)).round().astype(np.uint8)
    processor = MobileViTV2ImageProcessor()
    left, top, right, bottom = seen_box((600, 300), processor)
    columns = prepared_columns(Image.fromarray(ramp), processor)
    assert columns[0] == pytest.approx(left * 255 / 600, abs=1.5)
    assert columns[-1] == pytest.approx(right * 255 / 600, abs=1.5)
    assert (top, bottom) == (17, 283)


def test_the_seen_box_without_crop_and_beyond_the_sides() -> None:
    whole = MobileViTV2ImageProcessor(do_center_crop=False)
    assert seen_box((640, 480), whole) == (0, 0, 640, 480)
    unresized = MobileViTV2ImageProcessor(do_resize=False)
    assert seen_box((100, 300), unresized) == (-78, 22, 178, 278)
    stretched = MobileViTV2ImageProcessor(size={"height": 256, "width": 256})
    assert seen_box((100, 300), stretched) == (0, 0, 100, 300)


def test_a_segmentation_file_sees_the_whole_picture(tmp_path: Path) -> None:
    model = MobileViTV2ForSemanticSegmentation(MobileViTV2Config(width_multiplier=0.5, num_labels=21, output_stride=16))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    _, processor = load_model(tmp_path / "model.pt")
    assert not processor.do_center_crop
    assert (processor.size["height"], processor.size["width"]) == (512, 512)
