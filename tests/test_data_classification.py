from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from classification_data import picture, write_folder

from mobilevitv2.data.classification import PictureSplit, open_classification_data
from mobilevitv2.errors import ConfigurationError, DataError, ImageError, MissingDependency

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Unpacked parquet files go away with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "root"


# ------------------------------------------------------------------------------------------------------------------- image folders


def test_folder_with_splits(root):
    write_folder(root / "train", {"red": 3, "blue": 2})
    write_folder(root / "val", {"red": 1, "blue": 1}, first=10)
    write_folder(root / "test", {"red": 1, "blue": 2}, first=20)
    data = open_classification_data(root)
    assert data.classes == ("blue", "red")
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {
        "train": [0, 0, 1, 1, 1],
        "validation": [0, 1],
        "test": [0, 0, 1],
    }
    assert data.test is not None and data.test.groups is None
    assert data.test.describe(2) == str(root / "test" / "red" / "020.png")
    assert data.test.encoded(2) == (root / "test" / "red" / "020.png").read_bytes()
    shown = data.test.read(2)
    assert shown.mode == "RGB" and shown.size == (40, 36)
    assert np.asarray(shown)[..., 0].mean() > 180


def test_folder_without_splits_gets_a_validation_split_of_each_class(root):
    write_folder(root, {"red": 20, "blue": 10, "green": 1})
    data = open_classification_data(root, validation_fraction=0.2, seed=3)
    assert data.test is None and data.train is not None and data.validation is not None
    assert np.bincount(data.validation.labels, minlength=3).tolist() == [2, 0, 4]
    assert np.bincount(data.train.labels).tolist() == [8, 1, 16]
    described = [split.describe(i) for split in (data.train, data.validation) for i in range(len(split))]
    assert len(set(described)) == 31
    again = open_classification_data(root, validation_fraction=0.2, seed=3).validation
    other = open_classification_data(root, validation_fraction=0.2, seed=4).validation
    names = [data.validation.describe(i) for i in range(6)]
    assert [again.describe(i) for i in range(6)] == names
    assert [other.describe(i) for i in range(6)] != names


def test_no_validation_split_unless_asked_for_and_test_is_never_cut(root):
    write_folder(root / "train", {"red": 10, "blue": 10})
    write_folder(root / "test", {"red": 10, "blue": 10})
    whole = open_classification_data(root, validation_fraction=0)
    assert whole.validation is None and len(whole.train) == 20
    cut = open_classification_data(root, validation_fraction=0.5)
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (10, 10, 20)
    assert list(cut.splits) == ["train", "validation", "test"]


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 7])
def test_validation_fraction_must_be_a_share(root, fraction):
    with pytest.raises(ConfigurationError, match=str(fraction)):
        open_classification_data(root, validation_fraction=fraction)


def test_hidden_files_other_files_and_subfolders_of_a_class(root):
    write_folder(root, {"red": 2, "blue": 2})
    (root / "red" / "notes.txt").write_text("x")
    (root / "red" / ".hidden.png").write_bytes(b"x")
    (root / ".git" / "x").mkdir(parents=True)
    write_folder(root / "red", {"deeper": 1})
    data = open_classification_data(root, validation_fraction=0)
    assert data.classes == ("blue", "red") and len(data.train) == 5


def test_a_class_may_be_called_test(root):
    write_folder(root, {"test": 2, "control": 2})
    assert open_classification_data(root, validation_fraction=0).classes == ("control", "test")


def test_names_that_are_not_unicode(root):
    write_folder(root, {"red": 1, "blue": 1})
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    try:
        (root / "red" / name).write_bytes(picture("red", 5))
    except OSError:
        pytest.skip("this file system takes unicode names alone")
    split = open_classification_data(root, validation_fraction=0).train
    assert split.describe(2).endswith(name)
    assert split.read(2).size == (40, 36)


def test_classes_only_the_test_split_has_come_last(root):
    write_folder(root / "train", {"red": 1, "white": 1})
    write_folder(root / "test", {"blue": 1, "red": 1})
    data = open_classification_data(root, validation_fraction=0)
    assert data.classes == ("red", "white", "blue")
    assert data.test.labels.tolist() == [2, 0]


def test_select(root):
    write_folder(root, {"red": 3, "blue": 2})
    split = open_classification_data(root, validation_fraction=0).train
    some = split.select([4, 0])
    assert (len(some), some.labels.tolist(), some.describe(1)) == (2, [1, 0], split.describe(0))
    assert len(split.select([])) == 0


def test_a_picture_that_cannot_be_read_is_named(root):
    write_folder(root, {"red": 1, "blue": 1})
    (root / "red" / "000.png").write_bytes(picture("red", 0)[:300])
    split = open_classification_data(root, validation_fraction=0).train
    with pytest.raises(ImageError, match=r"red/000\.png.*damaged"):
        split.read(1)
    (root / "red" / "000.png").unlink()
    with pytest.raises(ImageError, match=r"red/000\.png.*No such file"):
        split.read(1)


def test_labels_must_match_the_pictures(root):
    write_folder(root, {"red": 3, "blue": 2})
    split = open_classification_data(root, validation_fraction=0).train
    with pytest.raises(ConfigurationError, match="5 pictures"):
        PictureSplit("train", split.classes, split.labels[:4], None, split.pictures)


# ------------------------------------------------------------------------------------------------------- folders that are no data


def test_missing_folder_names_near_ones(tmp_path):
    (tmp_path / "objects").mkdir()
    with pytest.raises(DataError, match=r"did you mean .*objects"):
        open_classification_data(tmp_path / "objcts")
    with pytest.raises(DataError, match="nor does the folder"):
        open_classification_data(tmp_path / "a" / "b")


def test_empty_folder(root):
    root.mkdir()
    with pytest.raises(DataError, match="is empty"):
        open_classification_data(root)


def test_pictures_without_class_folders_say_how_to_lay_them_out(root):
    root.mkdir()
    (root / "a.png").write_bytes(picture("red", 0))
    with pytest.raises(DataError, match=r"1 pictures .*no class folders.*cat/a\.png"):
        open_classification_data(root)


def test_unknown_layout_lists_what_was_found_and_what_is_known(root):
    root.mkdir()
    (root / "labels.csv").write_text("x")
    (root / "pictures.zip").write_text("x")
    with pytest.raises(DataError, match=r"(?s)found: labels\.csv, pictures\.zip.*ROOT/CLASS.*parquet"):
        open_classification_data(root)
    with pytest.raises(DataError, match="unpack"):
        open_classification_data(root / "pictures.zip")


def test_folders_of_other_tasks_are_not_taken_for_classes(root):
    write_folder(root, {"images": 2, "masks": 2})
    with pytest.raises(DataError, match="segmentation or detection"):
        open_classification_data(root)


def test_split_folders_of_another_task(root):
    write_folder(root / "train", {"images": 2, "masks": 2})
    with pytest.raises(DataError, match="segmentation or detection"):
        open_classification_data(root)


def test_a_folder_around_the_data_set(root):
    write_folder(root / "objects" / "train", {"red": 1, "blue": 1})
    with pytest.raises(DataError, match=f"name {root / 'objects'}"):
        open_classification_data(root)


def test_class_folders_without_pictures(root):
    (root / "train" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="no picture"):
        open_classification_data(root)


def test_two_folders_for_one_split(root):
    write_folder(root / "val", {"red": 1})
    write_folder(root / "validation", {"red": 1})
    with pytest.raises(DataError, match="val and validation"):
        open_classification_data(root)


# -------------------------------------------------------------------------------------------------------------------------- parquet

NAMES = ["red", "blue", "green"]


def write_parquet(path: Path, labels, *, feature=None, pictures=None, **columns) -> Path:
    """Through `datasets`, with its description of the columns in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = pictures or [{"bytes": picture("red", number), "path": f"{number}.png"} for number in range(len(labels))]
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Value("string") for name in columns}
    # Written by pyarrow, as Dataset.to_parquet would refuse labels out of range.
    table = pa.table(
        {"image": pictures, "label": labels, **columns},
        schema=datasets.Features(features).arrow_schema,
    )
    pq.write_table(table, path)
    return path


def test_parquet_shards(root, monkeypatch):
    write_parquet(root / "train-00000-of-00002.parquet", [2, 0, 1], source=["a", "b", "a"])
    write_parquet(
        root / "train-00001-of-00002.parquet",
        [0, 0],
        source=["a", "b"],
        pictures=[{"bytes": picture("blue", n), "path": None} for n in (8, 9)],
    )
    write_parquet(root / "test-00000-of-00001.parquet", [1], source=["b"])
    data = open_classification_data(root, validation_fraction=0)
    assert data.classes == ("red", "blue", "green")  # the order of ClassLabel, not of the alphabet
    assert data.train.labels.tolist() == [2, 0, 1, 0, 0]
    assert data.train.groups == ("a", "b", "a", "a", "b")
    assert data.train.describe(2) == "train-00000-of-00002.parquet row 2"
    assert data.train.describe(4) == "train-00001-of-00002.parquet row 1"
    assert data.train.encoded(4) == picture("blue", 9)
    assert data.train.select([4, 1]).describe(0) == "train-00001-of-00002.parquet row 1"
    assert data.train.select([4, 1]).groups == ("b", "b")
    assert data.test.read(0).size == (40, 36)
    assert data.validation is None
    assert len(open_classification_data(root / "train-00000-of-00002.parquet", validation_fraction=0).train) == 3
    assert len(open_classification_data(str(root / "train-*.parquet"), validation_fraction=0).train) == 5
    monkeypatch.chdir(root.parent)
    assert len(open_classification_data("root").test) == 1


def test_parquet_in_folders_named_after_splits(root):
    write_parquet(root / "data" / "train-0.parquet", [0, 1])
    assert len(open_classification_data(root, validation_fraction=0).train) == 2
    other = root.parent / "other"
    write_parquet(other / "default" / "train" / "0000.parquet", [0, 1])
    write_parquet(other / "default" / "test" / "0000.parquet", [0])
    data = open_classification_data(other, validation_fraction=0)
    assert (len(data.train), len(data.test)) == (2, 1)


def test_parquet_of_plain_columns_without_description(root):
    root.mkdir()
    (root / "file.png").write_bytes(picture("green", 1))
    table = pa.table({"Img": [picture("red", 1), picture("blue", 2)], "class": ["b", "a"], "id": [1, 2]})
    pq.write_table(table, root / "train.parquet")
    pq.write_table(pa.table({"Img": ["file.png"], "class": ["a"]}), root / "test.parquet")
    data = open_classification_data(root, validation_fraction=0)
    assert data.classes == ("a", "b") and data.train.labels.tolist() == [1, 0]
    assert data.train.encoded(1) == picture("blue", 2)
    assert data.test.encoded(0) == picture("green", 1)


def test_plain_numbers_count_classes_from_zero(root):
    write_parquet(root / "train.parquet", [0, 2, 2], feature=datasets.Value("uint8"))
    data = open_classification_data(root, validation_fraction=0)
    assert data.classes == ("0", "1", "2") and data.train.labels.tolist() == [0, 2, 2]
    assert data.train.labels.dtype == np.int64


def test_a_row_without_a_picture_is_named(root):
    write_parquet(root / "train.parquet", [0, 1], pictures=[{"bytes": b"<html>", "path": None}, {"bytes": None, "path": None}])
    split = open_classification_data(root, validation_fraction=0).train
    with pytest.raises(ImageError, match=r"^train\.parquet row 0 is an HTML page"):
        split.read(0)
    with pytest.raises(ImageError, match=r"^train\.parquet row 1 has neither"):
        split.read(1)


def test_a_path_in_a_column_that_leads_nowhere(root):
    root.mkdir()
    pq.write_table(pa.table({"image": ["gone.png"], "label": ["a"]}), root / "train.parquet")
    with pytest.raises(ImageError, match=r"^train\.parquet row 0 names .*gone\.png, which cannot be read \(No such file"):
        open_classification_data(root, validation_fraction=0).train.read(0)


def test_parquet_files_whose_names_say_no_split(root, caplog):
    write_parquet(root / "a.parquet", [0])
    write_parquet(root / "b.parquet", [1, 2])
    assert open_classification_data(root, validation_fraction=0).train.labels.tolist() == [0, 1, 2]
    write_parquet(root / "test.parquet", [1])
    with caplog.at_level(logging.WARNING):
        assert list(open_classification_data(root).splits) == ["test"]
    assert "left out 2 parquet files" in caplog.text


def test_columns_by_other_names_are_found_by_their_type(root):
    features = {"foto": datasets.Image(), "breed": datasets.ClassLabel(names=NAMES), "group": datasets.ClassLabel(names=["x", "y"])}
    table = datasets.Dataset.from_dict(
        {"foto": [{"bytes": picture("red", 1), "path": None}], "breed": [2], "group": [1]}, features=datasets.Features(features)
    )
    root.mkdir()
    table.to_parquet(root / "train.parquet")
    with pytest.raises(DataError, match=r"one column of labels.*several found among: foto \(Image\), breed \(ClassLabel\)"):
        open_classification_data(root)
    table.rename_column("breed", "target").to_parquet(root / "train.parquet")
    split = open_classification_data(root, validation_fraction=0).train
    assert split.groups == ("y",) and split.classes[split.labels[0]] == "green"


def test_without_datasets_the_extra_is_named(root, monkeypatch):
    write_parquet(root / "train.parquet", [0])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install mobilevitv2\[train\]"):
        open_classification_data(root)


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 3, 1], None, r"train\.parquet row 1 has label 3, outside 0\.\.2"),
        ([0, 1, -2], None, r"row 2 has label -2"),
        ([0, 1, -1], None, r"row 2 has label -1"),
        ([0, None, 1], None, r"row 1 has no label"),
        ([-1, -1, -1], None, "no split has labels"),
        ([0, 1, 70_000_000], datasets.Value("int64"), r"row 2 has label 70000000.*class names"),
        ([0.5, 1.0, 2.0], datasets.Value("float32"), "'label' is of type float32"),
        ([[0], [1, 2], [1]], datasets.List(datasets.Value("int64")), "'label' is of type List"),
    ],
)
def test_labels_that_are_no_classes(root, labels, feature, message):
    write_parquet(root / "train.parquet", labels, feature=feature)
    with pytest.raises(DataError, match=message):
        open_classification_data(root)


def test_a_split_with_hidden_labels_is_left_out(root, caplog):
    write_parquet(root / "train.parquet", [0, 1])
    write_parquet(root / "test.parquet", [-1, -1])
    with caplog.at_level(logging.WARNING):
        assert open_classification_data(root, validation_fraction=0).test is None
    assert "no labels" in caplog.text


def test_columns_that_are_missing_or_of_the_wrong_type(root):
    root.mkdir()
    pq.write_table(pa.table({"pixels": [[1, 2]], "label": [0]}), root / "train.parquet")
    with pytest.raises(DataError, match=r"one column of pictures, named image.*pixels"):
        open_classification_data(root)
    pq.write_table(pa.table({"image": [[1, 2]], "label": [0]}), root / "train.parquet")
    with pytest.raises(DataError, match="'image' is of type List"):
        open_classification_data(root)
    pq.write_table(pa.table({"image": [b"x"], "caption": ["a"]}), root / "train.parquet")
    with pytest.raises(DataError, match="one column of labels"):
        open_classification_data(root)


def test_damaged_parquet(root):
    root.mkdir()
    (root / "train.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.parquet is no sound parquet file"):
        open_classification_data(root)
    whole = write_parquet(root / "train.parquet", [0] * 50).read_bytes()
    (root / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train\.parquet is no sound parquet file"):
        open_classification_data(root)


def test_parquet_without_rows(root):
    write_parquet(root / "train.parquet", [])
    with pytest.raises(DataError, match="rows"):
        open_classification_data(root)


def test_unpacking_is_silent_where_no_terminal_is(root, capfd):
    write_parquet(root / "train.parquet", [0, 1])
    open_classification_data(root)
    assert capfd.readouterr() == ("", "")


def test_a_cache_that_cannot_be_written(root, tmp_path, monkeypatch):
    write_parquet(root / "train.parquet", [0, 1])
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot be loaded"):
        open_classification_data(root)


# ----------------------------------------------------------------------------------------------------- saved by `datasets`, the hub


def rows(labels):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    pictures = [{"bytes": picture("red", number), "path": None} for number in range(len(labels))]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def test_saved_data_set(root):
    datasets.DatasetDict({"train": rows([0, 1, 1]), "valid": rows([2])}).save_to_disk(root)
    data = open_classification_data(root)
    assert data.classes == tuple(NAMES)
    assert data.validation.labels.tolist() == [2]
    assert data.train.describe(1) == "train row 1"
    assert data.train.read(1).size == (40, 36)


def test_saved_single_split(root):
    rows([0, 1, 1]).select([2, 0]).save_to_disk(root)
    data = open_classification_data(root, validation_fraction=0)
    assert data.train.labels.tolist() == [1, 0]
    assert data.train.encoded(0) == picture("red", 2)


def test_saved_data_set_of_splits_by_other_names(root):
    datasets.DatasetDict({"first": rows([0]), "second": rows([1])}).save_to_disk(root)
    with pytest.raises(DataError, match="first, second; rename"):
        open_classification_data(root)


def test_saved_splits_that_are_not_used(root, caplog):
    datasets.DatasetDict({"train": rows([0, 1]), "unsupervised": rows([2])}).save_to_disk(root)
    with caplog.at_level(logging.WARNING):
        assert list(open_classification_data(root, validation_fraction=0).splits) == ["train"]
    assert "used are train" in caplog.text


def test_a_single_saved_split_by_another_name(root):
    datasets.DatasetDict({"full": rows([0, 1])}).save_to_disk(root)
    assert len(open_classification_data(root, validation_fraction=0).train) == 2


def test_damaged_saved_data_set(root):
    rows([0, 1]).save_to_disk(root)
    next(root.glob("*.arrow")).write_bytes(b"short")
    with pytest.raises(DataError, match="cannot be loaded"):
        open_classification_data(root)


def test_hub_data_set_through_load_dataset(root):
    """A repository of the hub, on disk: `load_dataset` reads both alike."""
    from mobilevitv2.data.classification import _united
    from mobilevitv2.data.tables import read_hub

    write_parquet(root / "data" / "train-00000-of-00001.parquet", [0, 2])
    write_parquet(root / "data" / "test-00000-of-00001.parquet", [1])
    classes, splits = _united(read_hub(str(root)))
    assert classes == tuple(NAMES)
    assert splits["train"].labels.tolist() == [0, 2]
    assert splits["test"].read(0).size == (40, 36)


def test_hub_image_folder_keeps_paths_and_reads_them(root):
    from mobilevitv2.data.tables import read_hub

    write_folder(root / "train", {"red": 2, "blue": 1})
    found = read_hub(str(root))["train"]
    assert found.names == ("blue", "red") and found.labels.tolist() == [0, 1, 1]
    assert found.pictures.encoded(0) == picture("blue", 0)


def test_a_name_that_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"nobody/nothing does not exist.*from the hub, the data set 'nobody/nothing' cannot be loaded"
    ):
        open_classification_data("nobody/nothing")


# -------------------------------------------------------------------------------------------------------- in other processes, whole


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_a_split_reads_in_a_fresh_process(root, tmp_path, layout):
    if layout == "folder":
        write_folder(root, {"red": 3, "blue": 3})
    else:
        write_parquet(root / "train.parquet", [0, 1, 2] * 100)
    split = open_classification_data(root, validation_fraction=0).train
    content = pickle.dumps(split)
    assert len(content) < 20_000  # not the pictures themselves
    (tmp_path / "split.pickle").write_bytes(content)
    program = (
        "import json, pickle, sys; s = pickle.load(open(sys.argv[1], 'rb')); print(json.dumps([s.describe(4), s.encoded(4).hex()]))"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "split.pickle"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [split.describe(4), split.encoded(4).hex()]


def test_importing_is_light():
    program = (
        "import sys; import mobilevitv2.data.classification, mobilevitv2.data.checks;"
        " print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_objects_data(shared_data):
    data = open_classification_data(shared_data / "objects")
    assert len(data.classes) == 112 and len(data.test) == 7024
    assert len(data.train) + len(data.validation) == 15_986
    assert set(data.test.groups) == {"caltech101", "imagenette", "pets"}
    assert data.test.describe(3512) == "test-00001-of-00002.parquet row 0"
    assert data.test.read(3512).size == (261, 158)
