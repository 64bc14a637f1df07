from __future__ import annotations

import json

import pytest
from classification_data import picture
from detection_data import annotation, coco, voc_xml, write_coco, write_picture, write_voc, write_yolo

from mobilevitv2.data.checks_detection import check_detection_data
from mobilevitv2.data.detection import open_detection_data
from mobilevitv2.errors import ConfigurationError, DataError


@pytest.fixture
def root(tmp_path):
    """Three pictures to train, two of them with boxes, and one to test; nothing wrong."""
    texts = {"train": ["0 .5 .5 .5 .5\n1 .5 .5 .25 .25", "0 .5 .5 .9 .9", ""], "test": ["0 .5 .5 .5 .5\n1 .2 .2 .1 .1"]}
    return write_yolo(tmp_path / "root", texts, yaml="names: [cat, dog]\ntrain: images/train\ntest: images/test\n")


def checked(root, **options):
    return check_detection_data(open_detection_data(root, validation_fraction=0), workers=2, **options)


def found(report):
    return [(row.severity, row.split, row.what, row.count) for row in report.findings]


def test_sound_data(root):
    report = checked(root)
    assert report.ok and report.findings == () and report.unreadable == {}
    report.raise_if_errors()
    lines = [line.split() for line in report.table().splitlines()]
    assert lines[0] == [f"{root}:", "2", "classes"]
    assert lines[3] == ["train", "3", "1", "3", "2", "2", "1", "0", "0", "0"]
    assert lines[4] == ["test", "1", "0", "2", "2", "2", "0", "0", "0", "0"]
    assert ["cat", "2", "1"] in lines and ["dog", "1", "1"] in lines
    assert " ".join(lines[-1]) == "No problems found."


def test_each_broken_place_is_named_and_refused_with_strict(root):
    (root / "labels" / "train" / "0.txt").write_text("0 .5 .5 .5 .5\n1 .5 .5 .2 .2\n0 .5 .5 .5 .5\n0 .5 .5 0 0\n5 .5 .5 .1 .1\n")
    report = checked(root)
    assert report.ok
    expected = [
        ("train", "unknown class (left out)", 1),
        ("train", "box of no area (left out)", 1),
        ("train", "box that is there twice (left out)", 1),
    ]
    assert found(report) == [("warning", *one) for one in expected]
    for line in (3, 4, 5):
        assert f"labels/train/0.txt line {line}" in report.table()
    strict = checked(root, strict=True)
    assert found(strict) == [("error", *one) for one in expected]
    with pytest.raises(DataError, match=r"(?s)3 errors that must be put right.*labels/train/0.txt line 4"):
        strict.raise_if_errors()


def test_the_list_is_capped_but_counted(root):
    (root / "labels" / "train" / "0.txt").write_text("1 .5 .5 .3 .3\n" + "0 .5 .5 0 0\n" * 70)
    (finding,) = checked(root).findings
    assert finding.count == 70 and len(finding.examples) == 50


def test_unreadable_pictures_are_left_out(root):
    (root / "images" / "train" / "1.png").write_bytes(picture("red", 1)[:100])
    report = checked(root)
    train = report.data.train
    (finding,) = (row for row in report.findings if row.split == "train" and "cannot be read" in row.what)
    assert (finding.severity, finding.count) == ("warning", 1) and "images/train/1.png" in finding.examples[0]
    usable = report.usable(train)
    assert len(usable) == 2 and usable.boxes(0).tolist() == train.boxes(0).tolist() and usable.image_ids == ("0", "2")
    assert not checked(root, strict=True).ok
    with pytest.raises(ConfigurationError, match="not the one that was checked"):
        report.usable(train.select([0]))


def test_a_split_of_which_nothing_can_be_read(root):
    (root / "images" / "test" / "0.png").write_bytes(b"")
    assert ("error", "test", "no picture can be read", 1) in found(checked(root))


def test_without_reading(root):
    (root / "images" / "test" / "0.png").write_bytes(b"")
    assert all("read" not in row.what for row in checked(root, read=False).findings)


def test_pictures_of_another_size_than_annotated(tmp_path):
    xml = voc_xml([("cat", 1, 2, 30, 40)])
    root = write_voc(tmp_path, {"a": xml, "b": voc_xml([("cat", 1, 2, 30, 40)], size=(640, 480))})
    report = checked(root)
    assert found(report) == [("warning", "train", "picture of another size than annotated (left out)", 1)]
    assert report.findings[0].examples[0].endswith("JPEGImages/b.png is 64 x 48, annotated as 640 x 480")
    assert report.usable(report.data.train).image_ids == ("a",)
    (root / "Annotations" / "a.xml").unlink()
    report = checked(root)
    assert not report.ok and "every picture has another size" in report.findings[0].what


def test_the_same_picture_twice(root):
    content = (root / "images" / "train" / "0.png").read_bytes()
    (root / "images" / "train" / "2.png").write_bytes(content)
    (root / "images" / "test" / "0.png").write_bytes(content)
    report = checked(root)
    assert found(report) == [
        ("warning", "train", "same picture twice", 1),
        ("warning", "test", "picture that train has too", 1),
    ]
    assert "2.png = " in report.findings[0].examples[0]
    assert len([row for row in checked(root, strict=True).findings if row.severity == "error"]) == 2


def test_classes_without_boxes(tmp_path):
    write_coco(tmp_path, "train.json", coco(1, [annotation(10, [1, 1, 9, 9], 3)], ["cat", "dog", "emu"]))
    write_coco(tmp_path, "val.json", coco(1, [annotation(10, [1, 1, 9, 9], 6)], ["cat", "dog", "emu"]))
    assert found(checked(tmp_path, read=False)) == [
        ("warning", "all", "class without a box in any split", 1),
        ("warning", "train", "class of another split that train lacks", 1),
        ("warning", "validation", "class without a box", 1),
    ]


def test_no_boxes_at_all(tmp_path):
    write_coco(tmp_path, "train.json", coco(1, []))
    assert ("error", "train", "no boxes", 0) in found(checked(tmp_path))


def test_boxes_in_another_format_are_told(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": picture("red", at, size=(64, 48)), "path": None} for at in range(12)],
        "objects": [{"bbox": [[40.0, 30, 60, 44]], "category": [0]}] * 12,
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train-0.parquet"))
    report = checked(tmp_path)
    assert not report.ok and "another format (box_format)" in report.findings[0].what
    other = open_detection_data(tmp_path, validation_fraction=0, box_format="xyxy")
    assert check_detection_data(other).findings == ()


def test_boxes_of_two_classes(root):
    (root / "labels" / "test" / "0.txt").write_text("0 .5 .5 .5 .5\n1 .5 .5 .5 .5")
    report = checked(root)
    assert found(report) == [("warning", "test", "same box in two classes (kept)", 1)]
    assert report.findings[0].examples[0].endswith("0.png: 16 12 48 36, cat and dog")


def test_tiny_pictures_and_wrong_workers(root):
    write_picture(root / "images" / "train" / "2.png", 5, (64, 1))
    assert ("warning", "train", "picture with a side under 32 pixels", 1) in found(checked(root))
    with pytest.raises(ConfigurationError, match="workers=0"):
        check_detection_data(open_detection_data(root), workers=0)


def test_no_usable_picture_in_a_split(tmp_path):
    content = coco(1, [annotation(10, [1, 1, 9, 9], 3)])
    write_coco(tmp_path, "train.json", content)
    (tmp_path / "val.json").write_text(json.dumps({**content, "images": [{"id": 10, "file_name": "gone.png"}]}))
    report = checked(tmp_path)
    assert ("error", "validation", "no pictures", 0) in found(report)
    assert "gone.png" in report.table()


def test_bccd(shared_data):
    report = checked(shared_data / "bccd")
    what = "box of no area (left out)"
    assert found(report) == [("warning", "train", what, 1), ("warning", "validation", what, 1)]
    table = report.table()
    assert "Annotations/BloodImage_00343.xml object 4 (RBC): 181 329 181 329" in table
    assert "Annotations/BloodImage_00338.xml object 13 (RBC): 504 337 504 337" in table
    assert not check_detection_data(report.data, read=False, strict=True).ok


@pytest.mark.parametrize(
    ("name", "findings"), [("pets", []), ("coco128", [("warning", "all", "class without a box in any split", 7)])]
)
def test_real_data(shared_data, name, findings):
    assert found(checked(shared_data / name)) == findings
