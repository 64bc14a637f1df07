"""Detection by `predict`: boxes in pixels, thresholds, chosen classes, JSON, COCO, supervision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from answer_models import ColourDetector, whole
from PIL import Image
from small_models import small_config

from mobilevitv2.answers import Prediction, coco_results, to_supervision
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.prediction import DEFAULT_THRESHOLD, predict

RED, BLUE = (255, 0, 0), (0, 0, 255)


def scene() -> Image.Image:
    picture = Image.new("RGB", (320, 128))
    picture.paste(RED, (20, 32, 100, 96))
    picture.paste(BLUE, (200, 16, 280, 112))
    return picture


def answer(picture: object, **options: object) -> Prediction:
    return predict([picture], model=ColourDetector(), processor=whole(), **options)[0]


def test_boxes_are_in_pixels_of_the_picture_surest_first() -> None:
    got = answer(scene())
    assert (got.task, got.size) == ("detect", (320, 128))
    assert [box.label for box in got.boxes] == ["blue", "red"]
    assert got.boxes[0].score > got.boxes[1].score > DEFAULT_THRESHOLD
    assert got.boxes[0].box == pytest.approx((200, 16, 280, 112), abs=5)
    assert got.boxes[1].box == pytest.approx((20, 32, 100, 96), abs=5)


def test_threshold_and_classes() -> None:
    both = answer(scene())
    between = (both.boxes[0].score + both.boxes[1].score) / 2
    assert [box.label for box in answer(scene(), threshold=between).boxes] == ["blue"]
    assert [box.label for box in answer(scene(), classes=["Red"]).boxes] == ["red"]
    assert answer(scene(), classes="green").boxes == []
    assert answer(Image.new("RGB", (64, 64))).boxes == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"classes": ["rad"]}, "red"),
        ({"attention": True}, "attention"),
        ({"tile": 0}, "tile=0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        answer(scene(), **options)


@pytest.mark.parametrize("size", [(90, 1), (1, 90), (1, 1)])
def test_pictures_of_a_pixels_height_are_answered(size: tuple[int, int]) -> None:
    got = answer(Image.new("RGB", size, RED))
    assert [box.label for box in got.boxes] == ["red"]
    assert got.boxes[0].box == pytest.approx((0, 0, *size), abs=1)


def test_a_real_detector_is_asked_and_saved_like_any_model(tmp_path: Path, cat_photo: Path) -> None:
    from mobilevitv2.detection import MobileViTV2ForObjectDetection

    torch.manual_seed(0)
    config = small_config(num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, image_size=64)
    model = MobileViTV2ForObjectDetection(config).eval()
    model.save_pretrained(tmp_path)
    whole(64).save_pretrained(tmp_path)
    got = predict([cat_photo, "missing.jpg"], model=tmp_path, task="detect", threshold=0.01)
    assert got[0].boxes
    for box in got[0].boxes:
        left, top, right, bottom = box.box
        assert 0 <= left <= right <= 451
        assert 0 <= top <= bottom <= 300
        assert box.label in "abc"
    assert got[1].to_dict()["boxes"] == []
    assert "missing.jpg" in (got[1].error or "")


def test_json_and_coco() -> None:
    got = answer(scene())
    entries = json.loads(json.dumps(got.to_dict()))["boxes"]
    assert [set(entry) for entry in entries] == [{"label", "score", "index", "box"}] * 2
    named = Prediction("photos/000000000139.jpg", size=got.size, task="detect", boxes=got.boxes)
    results = coco_results([named, got])
    assert [entry["image_id"] for entry in results] == [139, 139, 2, 2]
    left, top, right, bottom = got.boxes[0].box
    assert results[0]["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.02)
    assert results[0]["category_id"] == 3
    assert coco_results([got], image_ids={got.source: "x"}, category_ids={3: 70, 1: 10})[0]["category_id"] == 70


def test_cocos_own_tool_reads_the_results() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "red"}, {"id": 3, "name": "blue"}], "annotations": []}
    truth.createIndex()
    assert len(truth.loadRes(coco_results([answer(scene())])).anns) == 2


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_supervision_gets_boxes() -> None:
    pytest.importorskip("supervision")
    got = answer(scene())
    detections = to_supervision(got)
    assert detections.xyxy.tolist() == [pytest.approx(box.box, abs=1e-3) for box in got.boxes]
    assert detections.confidence.tolist() == pytest.approx([box.score for box in got.boxes])
    assert list(detections.data["class_name"]) == ["blue", "red"]
    assert len(to_supervision(answer(Image.new("RGB", (64, 64))))) == 0
    with pytest.raises(ConfigurationError, match="classify"):
        to_supervision(Prediction("a.png"))


def test_names_of_official_weights() -> None:
    from mobilevitv2.class_names import coco_category_ids, known_names

    names = known_names("coco")
    assert names is not None
    ids = coco_category_ids(dict(enumerate(names)))
    assert ids is not None
    assert (names[0], ids[0], names[79], ids[79]) == ("person", 1, "toothbrush", 90)
    assert coco_category_ids({0: "red"}) is None
    assert [len(known_names(dataset) or ()) for dataset in ("voc", "ade20k", "imagenet1k")] == [21, 150, 1000]
    assert known_names("pets") is None
