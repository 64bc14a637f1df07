"""Segmentation by `predict`: masks at the picture's own size, areas, chosen classes, JSON, COCO, supervision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from answer_models import NAMES, ColourSegmenter, whole
from PIL import Image
from small_models import randomise, small_config

from mobilevitv2 import MobileViTV2ForSemanticSegmentation, MobileViTV2ImageProcessor
from mobilevitv2.answers import Prediction, coco_results, to_supervision
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.prediction import predict
from mobilevitv2.run_lengths import decode_mask, encode_mask

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def halves(width: int = 100, height: int = 60) -> Image.Image:
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(GREEN, (width // 2, 0, width, height))
    return picture


def answer(picture: object, **options: object) -> Prediction:
    return predict([picture], model=ColourSegmenter(), processor=whole(), **options)[0]


def test_each_pixel_has_its_class_at_the_pictures_own_size() -> None:
    got = answer(halves(100, 60))
    assert (got.task, got.size, got.error) == ("segment", (100, 60), None)
    assert got.mask is not None
    assert (got.mask.shape, got.mask.dtype) == ((60, 100), np.uint8)
    assert (got.mask[:, :44] == 1).all()
    assert (got.mask[:, 56:] == 2).all()
    assert [area.label for area in got.areas] in (["red", "green"], ["green", "red"])
    assert sum(area.pixels for area in got.areas) == 6000
    assert sum(area.share for area in got.areas) == pytest.approx(1)


def test_the_answer_is_the_models_own(cat_photo: Path) -> None:
    model = randomise(MobileViTV2ForSemanticSegmentation(small_config(output_stride=16)))
    processor = whole(96)
    got = predict(cat_photo, model=model, processor=processor)[0]
    logits = model(processor(str(cat_photo), return_tensors="pt")["pixel_values"]).logits
    up = torch.nn.functional.interpolate(logits, size=(300, 451), mode="bilinear", align_corners=True)
    assert (got.mask == up[0].argmax(0).numpy()).mean() > 0.9999


def test_what_the_processor_would_cut_off_is_seen_too() -> None:
    cutting = MobileViTV2ImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    got = predict(halves(200, 64), model=ColourSegmenter(), processor=cutting)[0]
    assert got.mask is not None
    assert (got.mask[:, :90] == 1).all()
    assert (got.mask[:, 110:] == 2).all()


@pytest.mark.parametrize("size", [(50, 1), (1, 50), (1, 1), (700, 2)])
def test_pictures_of_a_pixels_height_are_answered(size: tuple[int, int]) -> None:
    got = answer(Image.new("RGB", size, BLUE))
    assert got.mask is not None
    assert got.mask.shape == (size[1], size[0])
    assert (got.mask == 3).all()


def test_chosen_classes_are_told_of_and_the_mask_keeps_all() -> None:
    for classes in ("GREEN", ["green"], 2, ["2"]):
        got = answer(halves(), classes=classes)
        assert [area.label for area in got.areas] == ["green"]
        assert got.mask is not None
        assert set(np.unique(got.mask)) == {1, 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["gren"]}, "green"),
        ({"classes": [4]}, "0 to 3"),
        ({"classes": []}, "empty"),
        ({"threshold": 0.5}, "threshold"),
        ({"attention": True}, "attention"),
        ({"tile": 8}, "tile=8"),
        ({"task": "detect"}, "'segment'"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        answer(halves(), **options)


def test_classifiers_have_no_boxes_to_choose() -> None:
    from mobilevitv2 import MobileViTV2ForImageClassification

    model = MobileViTV2ForImageClassification(small_config())
    for options in ({"threshold": 0.5}, {"classes": "red"}, {"tile": 512}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            predict("a.png", model=model, **options)


def test_an_unreadable_picture_among_others(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    halves(40, 90).save(tmp_path / "c.png")
    got = predict(tmp_path, model=ColourSegmenter(), processor=whole())
    assert [each.error is None for each in got] == [True, False, True]
    assert got[1].to_dict()["areas"] == []
    assert got[1].mask is None
    assert coco_results(got)[0]["image_id"] == 1


def test_json_with_and_without_run_lengths() -> None:
    got = answer(halves())
    plain = json.loads(json.dumps(got.to_dict()))
    assert set(plain) == {"source", "width", "height", "areas", "error"}
    assert set(plain["areas"][0]) == {"label", "share", "pixels", "index"}
    for area in json.loads(json.dumps(got.to_dict(masks=True)))["areas"]:
        assert (decode_mask(area["rle"]) == (got.mask == area["index"])).all()


def test_coco_results_hold_each_class_once() -> None:
    entries = coco_results([answer(halves(100, 60))], category_ids={0: 90, 1: 91, 2: 92, 3: 93})
    assert {entry["category_id"] for entry in entries} == {91, 92}
    for entry in entries:
        inside = decode_mask(entry["segmentation"])
        assert entry["area"] == inside.sum()
        left, top, width, height = entry["bbox"]
        assert inside[top : top + height, left : left + width].sum() == entry["area"]
    with pytest.raises(ConfigurationError, match="classify"):
        coco_results([Prediction("a.png")])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (37, 53)])
def test_run_lengths_are_cocos(shape: tuple[int, int], share: float) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random(shape) < share
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask)["counts"].encode() == theirs["counts"]
    assert (decode_mask(theirs) == mask).all()
    assert (decode_mask(encode_mask(mask, compressed=False)) == mask).all()
    assert sum(encode_mask(mask, compressed=False)["counts"]) == mask.size


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision_gets_masks() -> None:
    supervision = pytest.importorskip("supervision")
    got = answer(halves(100, 60))
    detections = to_supervision(got)
    assert isinstance(detections, supervision.Detections)
    assert detections.mask.shape == (2, 60, 100)
    assert list(detections.data["class_name"]) == [area.label for area in got.areas]
    assert [int(index) for index in detections.class_id] == [NAMES.index(area.label) for area in got.areas]
    with pytest.raises(ConfigurationError, match="no answer"):
        to_supervision(Prediction("a.png", task="segment", error="gone"))


def test_more_than_256_classes_need_two_bytes() -> None:
    model = ColourSegmenter()
    model.config.num_labels = 300
    got = predict(halves(), model=model, processor=whole())[0]
    assert got.mask is not None
    assert got.mask.dtype == np.int16
