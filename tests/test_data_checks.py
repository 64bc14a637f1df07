from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from classification_data import picture, write_folder

from mobilevitv2.data.checks import check_classification_data
from mobilevitv2.data.classification import ClassificationData, open_classification_data
from mobilevitv2.errors import ConfigurationError, DataError


@pytest.fixture
def root(tmp_path):
    """Six pictures to train, two to test; nothing wrong."""
    write_folder(tmp_path / "root" / "train", {"red": 3, "blue": 3})
    write_folder(tmp_path / "root" / "test", {"red": 1, "blue": 1}, first=50)
    return tmp_path / "root"


def checked(root, **options):
    return check_classification_data(open_classification_data(root, validation_fraction=0), workers=2, **options)


def found(report):
    return [(row.severity, row.split, row.what, row.count) for row in report.findings]


def test_sound_data(root):
    report = checked(root)
    assert report.ok and report.findings == () and report.unreadable == {}
    report.raise_if_errors()
    lines = report.table().splitlines()
    assert lines[0] == f"{root}: 2 classes"
    assert lines[3].split() == ["train", "6", "2", "3", "(blue)", "3", "(blue)"]
    assert lines[-1] == "No problems found."


def test_unreadable_pictures_are_named_and_left_out(root):
    (root / "train" / "red" / "001.png").write_bytes(picture("red", 1)[:200])
    (root / "train" / "blue" / "000.png").write_bytes(b"")
    report = checked(root)
    assert report.ok
    assert found(report) == [("warning", "train", "picture that cannot be read (left out)", 2)]
    assert "blue/000.png is empty" in report.findings[0].examples[0]
    assert "red/001.png is truncated" in report.findings[0].examples[1]
    assert list(report.unreadable["train"]) == [0, 4]
    train, test = report.data.train, report.data.test
    usable = report.usable(train)
    assert [usable.describe(i) for i in range(4)] == [train.describe(i) for i in (1, 2, 3, 5)]
    assert report.usable(test) is test
    with pytest.raises(ConfigurationError, match="not the one that was checked"):
        report.usable(train.select([1]))


def test_the_list_is_capped_but_counted_and_kept_whole(root):
    for number in range(100, 120):
        (root / "train" / "red" / f"{number}.png").write_bytes(b"\0" * number)
    report = checked(root)
    (finding,) = report.findings
    assert finding.count == 20 and len(finding.examples) == 5
    assert len(report.unreadable["train"]) == 20
    assert "... and 15 more" in report.table()


def test_a_split_of_which_nothing_can_be_read_is_an_error(root):
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"")
    report = checked(root)
    assert ("error", "test", "no picture can be read", 2) in found(report)
    with pytest.raises(DataError, match=r"(?s)1 error .*\n\n.*no picture can be read"):
        report.raise_if_errors()


def test_a_class_whose_pictures_are_all_unreadable_counts_as_missing(root):
    for path in (root / "train" / "red").rglob("*.png"):
        path.write_bytes(b"")
    assert ("error", "train", "class of another split that train lacks", 1) in found(checked(root))


def test_classes_missing_from_splits(root):
    write_folder(root / "train", {"white": 2}, first=70)
    write_folder(root / "test", {"gren": 1, "bleu": 1}, first=80)
    (root / "train" / "empty").mkdir()
    report = checked(root, read=False)
    assert found(report) == [
        ("error", "train", "class of another split that train lacks", 2),
        ("warning", "all", "class without a picture in any split", 1),
        ("warning", "test", "class without a picture", 1),
    ]
    assert report.findings[0].examples == ("bleu (train has blue)", "gren")  # near names tell slips of the pen
    assert report.findings[1].examples == ("empty",)
    assert report.findings[2].examples == ("white",)
    assert not report.ok


def test_single_pictures_and_single_classes(root, tmp_path):
    write_folder(root / "train", {"white": 1})
    write_folder(root / "test", {"white": 1}, first=1)
    assert found(checked(root)) == [("warning", "train", "class with a single picture", 1)]
    write_folder(tmp_path / "one", {"cat": 3})
    assert found(checked(tmp_path / "one")) == [("error", "all", "fewer than two classes", 1)]


def test_a_picture_that_train_and_test_share(root):
    (root / "test" / "red" / "again.png").write_bytes(picture("red", 2))
    report = checked(root)
    assert found(report) == [("warning", "test", "picture that train has too", 1)]
    assert report.findings[0].examples == (f"{root}/test/red/again.png = {root}/train/red/002.png",)


def test_a_picture_in_two_classes(root):
    (root / "train" / "blue" / "again.png").write_bytes(picture("red", 2))
    report = checked(root)
    assert found(report) == [("warning", "all", "same picture in two classes", 1)]
    assert report.findings[0].examples[0].endswith(": blue and red")


def test_unreadable_pictures_are_not_taken_for_each_other(root):
    for split in ("train", "test"):
        (root / split / "red" / "zero.png").write_bytes(b"")
    assert [row.what for row in checked(root).findings] == ["picture that cannot be read (left out)"] * 2


def test_tiny_pictures(root):
    (root / "train" / "red" / "tiny.png").write_bytes(picture("red", 9, size=(200, 31)))
    (root / "train" / "red" / "large.jpg").write_bytes(picture("red", 9, size=(900, 700), kind="JPEG"))
    report = checked(root)
    assert found(report) == [("warning", "train", "picture with a side under 32 pixels", 1)]
    assert report.findings[0].examples == (f"{root}/train/red/tiny.png: 31 pixels",)


def test_unbalanced_classes(root):
    data = open_classification_data(root, validation_fraction=0)
    train = data.train.select([0, 1, *([3] * 250)])
    report = check_classification_data(ClassificationData("x", data.classes, {"train": train}), read=False)
    assert found(report) == [("warning", "train", "class with under 1/100 of the pictures of red (250)", 1)]
    assert report.findings[0].examples == ("blue (2)",)


def test_labels_out_of_range(root):
    data = open_classification_data(root, validation_fraction=0)
    train = dataclasses.replace(data.train, labels=np.array([0, 0, 7, 1, -1, 1]))
    report = check_classification_data(ClassificationData("x", data.classes, {"train": train}))
    assert found(report) == [("error", "train", "label outside 0..1", 2)]
    assert report.findings[0].examples[0].endswith("002.png: label 7")


def test_a_split_without_pictures(root):
    (root / "validation" / "red").mkdir(parents=True)
    assert ("error", "validation", "no pictures", 0) in found(checked(root))


def test_workers_must_be_positive(root):
    with pytest.raises(ConfigurationError, match="workers=0"):
        check_classification_data(open_classification_data(root), workers=0)


def test_no_progress_bar_where_no_terminal_is(root, capfd):
    checked(root)
    assert capfd.readouterr() == ("", "")


def test_a_part_of_the_objects_data(shared_data, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = open_classification_data(shared_data / "objects" / "test-00000-of-00002.parquet")
    assert list(data.splits) == ["test"]
    part = data.test.select(range(0, len(data.test), 40))
    report = check_classification_data(ClassificationData("objects", data.classes, {"test": part}))
    assert report.ok and not report.unreadable
