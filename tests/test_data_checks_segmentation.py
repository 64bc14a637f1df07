from __future__ import annotations

import numpy as np
import pytest
from classification_data import picture
from segmentation_data import SIZE, colour_mask, encoded_mask, write, write_pairs

from mobilevitv2.data.checks_segmentation import check_segmentation_data
from mobilevitv2.data.segmentation import open_segmentation_data
from mobilevitv2.errors import ConfigurationError, DataError


@pytest.fixture
def root(tmp_path):
    """Three pictures to train, one to test; nothing wrong."""
    write_pairs(tmp_path / "train" / "images", tmp_path / "train" / "masks", "abc", (0, 0, 1, 255))
    write_pairs(tmp_path / "test" / "images", tmp_path / "test" / "masks", "d", (0, 1), first=10)
    write(tmp_path / "classes.txt", "sky\ntree\n")
    return tmp_path


def checked(root, **options):
    return check_segmentation_data(open_segmentation_data(root, validation_fraction=0), workers=2, **options)


def found(report):
    return [(row.severity, row.split, row.what, row.count) for row in report.findings]


def test_sound_data(root):
    report = checked(root)
    assert report.ok and report.findings == () and report.unreadable == {}
    assert report.pixels["train"].tolist() == [3 * 20 * 36, 3 * 10 * 36, 3 * 10 * 36, 0]
    np.testing.assert_allclose(report.shares("train"), [2 / 3, 1 / 3])
    lines = [line.split() for line in report.table().splitlines()]
    assert lines[3] == ["train", "3", "3", "4,320", "25.00", "%", "0.00", "%"]
    assert ["sky", "66.67", "%", "50.00", "%"] in lines
    assert " ".join(lines[-1]) == "No problems found."


def test_a_mask_of_another_size_is_named_and_left_out(root):
    write(root / "train" / "masks" / "b.png", encoded_mask((0, 1), (20, 36)))
    report = checked(root)
    assert found(report) == [("warning", "train", "mask of another size than its picture (left out)", 1)]
    assert report.findings[0].examples[0].endswith("masks/b.png is 20 x 36, its picture 40 x 36")
    assert len(report.usable(report.data.train)) == 2 and list(report.unreadable["train"]) == [1]
    with pytest.raises(DataError, match="another size than its picture"):
        checked(root, strict=True).raise_if_errors()
    write(root / "test" / "masks" / "d.png", encoded_mask((0, 1), (20, 36)))
    assert ("error", "test", "every mask is of another size than its picture", 1) in found(checked(root))


def test_numbers_of_no_class_are_named(root):
    write(root / "train" / "masks" / "b.png", encoded_mask((0, 1, 7, 99)))
    report = checked(root)
    assert found(report) == [("warning", "train", "mask with numbers of no class (ignored)", 1)]
    assert report.findings[0].examples[0].endswith("masks/b.png: 7, 99 (50.00 % of it)")
    assert not checked(root, strict=True).ok
    for stem in "abc":
        write(root / "train" / "masks" / f"{stem}.png", encoded_mask((0, 1, 7, 8, 9, 10)))
    assert ("error", "train", "mask with numbers of no class, most of its pixels in all", 3) in found(checked(root))


def test_masks_with_nothing_but_ignored_pixels(root):
    write(root / "train" / "masks" / "b.png", encoded_mask((255,)))
    report = checked(root)
    assert found(report) == [("warning", "train", "mask with nothing but ignored pixels", 1)]
    assert report.findings[0].examples[0].endswith("masks/b.png")
    for stem in "ac":
        write(root / "train" / "masks" / f"{stem}.png", encoded_mask((255,)))
    assert ("error", "train", "every mask has nothing but ignored pixels", 3) in found(checked(root))


def test_masks_of_a_single_class_and_classes_without_pixels(root):
    for stem in "abc":
        write(root / "train" / "masks" / f"{stem}.png", encoded_mask((0,)))
    write(root / "classes.txt", "sky\ntree\nroad\n")
    report = checked(root)
    assert found(report) == [
        ("error", "train", "pixels of one class alone", 1),
        ("warning", "train", "mask of a single class", 3),
        ("warning", "all", "class without a pixel in any split", 1),
        ("warning", "train", "class of another split that train lacks", 1),
    ]
    assert report.findings[1].examples[0].endswith("masks/a.png: sky")


def test_masks_of_0_and_255_are_explained(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", (0, 255))
    report = checked(tmp_path)
    assert not report.ok and "write 1 for the object" in report.findings[0].what
    write(tmp_path / "classes.txt", "background\nobject\n")
    assert any(row.severity == "error" and "write 1 for the object" in row.what for row in checked(tmp_path).findings)


def test_unreadable_pictures_and_masks(root):
    write(root / "train" / "images" / "a.jpg", picture("red", 1)[:80])
    write(root / "train" / "masks" / "b.png", b"")
    report = checked(root)
    assert found(report) == [("warning", "train", "picture that cannot be read (left out)", 2)]
    assert "images/a.jpg" in report.findings[0].examples[0] and "masks/b.png is empty" in report.findings[0].examples[1]
    assert len(report.usable(report.data.train)) == 1


def test_what_lacks_its_other_half(root):
    (root / "train" / "images" / "a.jpg").unlink()
    (root / "train" / "masks" / "b.png").unlink()
    expected = [
        ("train", "picture without mask (left out)", 1),
        ("train", "mask without picture (left out)", 1),
    ]
    assert found(checked(root, read=False)) == [("warning", *one) for one in expected]
    assert found(checked(root, read=False, strict=True)) == [("error", *one) for one in expected]


def test_the_same_picture_twice(root):
    content = (root / "train" / "images" / "a.jpg").read_bytes()
    write(root / "train" / "images" / "b.jpg", content)
    write(root / "test" / "images" / "d.jpg", content)
    assert found(checked(root)) == [
        ("warning", "train", "same picture twice", 1),
        ("warning", "test", "picture that train has too", 1),
    ]


def test_colours_of_no_class_are_named(tmp_path):
    write(tmp_path / "images" / "a.jpg", picture("red", 1, size=SIZE, kind="JPEG"))
    write(tmp_path / "masks" / "a.png", colour_mask([(0, 0, 0), (200, 0, 0), (0, 0, 0), (1, 2, 3)]))
    write(tmp_path / "palette.json", '{"road": [0, 0, 0], "car": [200, 0, 0]}')
    report = checked(tmp_path)
    assert report.findings[0].examples[0].endswith("masks/a.png: colour (1, 2, 3) (25.00 % of it)")


def test_without_reading_and_wrong_workers(root):
    write(root / "train" / "masks" / "b.png", b"")
    report = checked(root, read=False)
    assert report.findings == () and "train" in report.table()
    with pytest.raises(ConfigurationError, match="workers=0"):
        check_segmentation_data(report.data, workers=0)


@pytest.mark.parametrize("name", ["pets", "camvid"])
def test_real_data(shared_data, name):
    data = open_segmentation_data(shared_data / name)
    some = {split: one.select(range(0, len(one), 12)) for split, one in data.splits.items()}
    report = check_segmentation_data(type(data)(data.source, data.classes, some))
    assert report.ok and report.unreadable == {}
    assert report.shares("train").sum() == pytest.approx(1)
