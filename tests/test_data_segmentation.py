from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from classification_data import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from segmentation_data import SIZE, colour_mask, columns, encoded_mask, write, write_pairs

from mobilevitv2.data.segmentation import open_segmentation_data
from mobilevitv2.errors import ConfigurationError, DataError, ImageError

NAMES = json.dumps({"0": "background", "1": "cat", "2": "dog"})


def opened(root, **options):
    return open_segmentation_data(root, **({"validation_fraction": 0} | options))


def counts(data):
    return {name: len(split) for name, split in data.splits.items()}


def test_images_and_masks_without_splits(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abc", (0, 2, 255))
    write(tmp_path / "id2label.json", NAMES)
    data = opened(tmp_path)
    assert data.classes == ("background", "cat", "dog") and counts(data) == {"train": 3} and data.problems == ()
    train = data.train
    mask = train.read_mask(1)
    assert mask.dtype == np.uint8 and (mask == columns((0, 2, 255))).all()
    assert train.read(1).size == SIZE and train.describe(1).endswith("images/b.jpg")
    assert train.describe_mask(1).endswith("masks/b.png")
    shown, both = train.read_pair(2)
    assert shown.size == SIZE and (both == mask).all()


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train.txt": "a\nb\n", "val.txt": "c"}, {"train": 2, "validation": 1}),
        ({"masks_train.txt": "a", "masks_val.txt": "b\nc", "train.txt": "b"}, {"train": 1, "validation": 2}),
        ({"splits/train.txt": "images/a.jpg masks/a.png\nb.jpg", "splits/test.txt": "/data/images/c.jpg"}, {"train": 2, "test": 1}),
        ({"ImageSets/Segmentation/train.txt": "a", "ImageSets/Segmentation/trainval.txt": "a\nb"}, {"train": 1}),
        ({"ImageSets/Segmentation/trainval.txt": "a\nb"}, {"train": 2}),
    ],
)
def test_lists_of_splits(tmp_path, lists, expected):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abc")
    for name, text in lists.items():
        write(tmp_path / name, text)
    data = opened(tmp_path)
    assert counts(data) == expected and data.problems == ()


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        ("{}/images", "{}/masks"),
        ("{}/images", "{}/labels"),
        ("images/{}", "annotations/{}"),
        ("images/{}", "masks/{}"),
        ("{}", "{}_labels"),
        ("{}", "{}annot"),
    ],
)
def test_folders_of_splits(tmp_path, pictures, masks):
    for at, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / pictures.format(split), tmp_path / masks.format(split), "ab"[: at + 1], first=at * 10)
    data = opened(tmp_path)
    assert counts(data) == {"train": 1, "validation": 2, "test": 2} and data.problems == ()
    assert data.classes == ("0", "1") and (data.test.read_mask(0) == columns((0, 1))).all()


def test_voc(tmp_path):
    write_pairs(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", ["a", "b", "c"], (0, 15, 255), kind="P")
    write(tmp_path / "JPEGImages" / "boxes_only.jpg", picture("red", 9, kind="JPEG"))
    for name, text in {"train": "a", "val": "b", "trainval": "a\nb"}.items():
        write(tmp_path / "ImageSets" / "Segmentation" / f"{name}.txt", text)
    data = opened(tmp_path)
    assert counts(data) == {"train": 1, "validation": 1} and data.problems == ()
    assert data.classes[15] == "person" and len(data.classes) == 21
    assert np.unique(data.train.read_mask(0)).tolist() == [0, 15, 255]
    # The augmented masks and their list go first.
    write(tmp_path / "SegmentationClassAug" / "c.png", encoded_mask((0, 7)))
    write(tmp_path / "ImageSets" / "Segmentation" / "train_aug.txt", "a\nc")
    data = opened(tmp_path)
    assert counts(data) == {"train": 2, "validation": 1}
    assert np.unique(data.train.read_mask(1)).tolist() == [0, 7]


def test_vocs_colours_are_known(tmp_path):
    write(tmp_path / "JPEGImages" / "a.jpg", picture("red", 1, size=SIZE, kind="JPEG"))
    write(tmp_path / "SegmentationClass" / "a.png", colour_mask([(0, 0, 0), (128, 0, 0), (192, 128, 128), (224, 224, 192)]))
    assert np.unique(opened(tmp_path).train.read_mask(0)).tolist() == [0, 1, 15, 255]


def test_ade20k(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 2), ("validation", 1)):
        write_pairs(root / "images" / split, root / "annotations" / split, "ab"[:count], (0, 1, 150))
    for source in (root, tmp_path):
        data = opened(source)
        assert counts(data) == {"train": 2, "validation": 1} and len(data.classes) == 150 and data.classes[0] == "wall"
        assert np.unique(data.train.read_mask(0)).tolist() == [0, 149, 255]
    assert np.unique(opened(root, reduce_labels=False).train.read_mask(0)).tolist() == [0, 1, 255]


def test_labels_shifted_by_one_and_a_number_to_ignore(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "a", (0, 1, 2, 9))
    data = opened(tmp_path, reduce_labels=True, ignore_index=9)
    assert data.classes == ("0", "1") and (data.train.read_mask(0) == columns((255, 0, 1, 255))).all()
    with pytest.raises(ConfigurationError, match="ignore_index=-1"):
        opened(tmp_path, ignore_index=-1)


def test_endings_of_mask_names(tmp_path):
    for stem, name in {"a": "a_mask", "b_mask": "b_mask", "c": "c.L"}.items():
        write(tmp_path / "images" / f"{stem}.jpg", picture("red", ord(stem[0]), size=SIZE, kind="JPEG"))
        write(tmp_path / "masks" / f"{name}.png", encoded_mask((0, 1)))
    data = opened(tmp_path)
    assert counts(data) == {"train": 3} and data.problems == ()


def test_what_lacks_its_other_half_is_named_and_left_out(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abc")
    (tmp_path / "images" / "a.jpg").unlink()
    (tmp_path / "masks" / "b.png").unlink()
    assert {(problem.where, problem.what) for problem in opened(tmp_path).problems} == {
        ("images/b.jpg", "picture without mask"),
        ("masks/a.png", "mask without picture"),
    }
    write(tmp_path / "train.txt", "a\nb\nc\nc\nd\n../../etc/passwd")
    data = opened(tmp_path)
    assert counts(data) == {"train": 1}
    assert [(problem.where, problem.what) for problem in data.problems] == [
        ("train.txt a", "mask without picture"),
        ("train.txt b", "picture without mask"),
        ("train.txt c", "picture that is listed twice"),
        ("train.txt d", "no such picture"),
        ("train.txt passwd", "no such picture"),
    ]


def test_a_mask_of_another_size_than_its_picture(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    write(tmp_path / "masks" / "b.png", encoded_mask((0, 1), (20, 36)))
    train = opened(tmp_path).train
    assert train.read_mask(0).shape == (36, 40)
    for read in (train.read_mask, train.read_pair):
        with pytest.raises(ImageError, match=r"masks/b.png is 20 x 36, but its picture .*images/b.jpg is 40 x 36: make them"):
            read(1)


def test_a_turned_picture_is_measured_upright(tmp_path):
    shown = Image.open(io.BytesIO(picture("red", 1, size=(36, 40))))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    shown.save(stream, "JPEG", exif=exif)
    write(tmp_path / "images" / "a.jpg", stream.getvalue())
    write(tmp_path / "masks" / "a.png", encoded_mask((0, 1)))
    picture_read, mask = opened(tmp_path).train.read_pair(0)
    assert picture_read.size == SIZE and opened(tmp_path).train.read_mask(0).shape == mask.shape == SIZE[::-1]


@pytest.mark.parametrize("kind", ["L", "P", "I;16"])
def test_numbers_of_no_class_are_ignored(tmp_path, kind):
    write_pairs(tmp_path / "images", tmp_path / "masks", "a", (0, 1, 7, 200), kind=kind)
    write(tmp_path / "classes.txt", "background\ncat\n")
    train = opened(tmp_path).train
    assert (train.read_mask(0) == columns((0, 1, 255, 255))).all()
    assert np.unique(train.mask_values(0)).tolist() == [0, 1, 7, 200]


PALETTES = {
    "palette.json": '{"road": [10, 20, 30], "car": [200, 0, 0], "void": [0, 0, 0]}',
    "class_dict.csv": "name,r,g,b\nroad,10,20,30\ncar,200,0,0\nVoid,0,0,0\n",
    "label_colors.txt": "10 20 30 road\n200 0 0\tcar\n0 0 0 Void\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:10,20,30::\ncar:200,0,0::\nvoid:0,0,0::\n",
}


@pytest.mark.parametrize("name", PALETTES)
def test_masks_in_colours(tmp_path, name):
    write(tmp_path / "images" / "a.jpg", picture("red", 1, size=SIZE, kind="JPEG"))
    write(tmp_path / "masks" / "a.png", colour_mask([(0, 0, 0), (200, 0, 0), (10, 20, 30), (1, 2, 3)]))
    write(tmp_path / name, PALETTES[name])
    data = opened(tmp_path)
    assert data.classes == ("road", "car")
    assert (data.train.read_mask(0) == columns((255, 1, 0, 255))).all()
    assert int(data.train.mask_values(0).min()) == -1 - (1 << 16 | 2 << 8 | 3)


def test_masks_in_colours_without_a_palette(tmp_path):
    write(tmp_path / "images" / "a.jpg", picture("red", 1, size=SIZE, kind="JPEG"))
    write(tmp_path / "masks" / "a.png", colour_mask([(0, 0, 0), (200, 0, 0)]))
    with pytest.raises(ImageError, match=r"masks/a.png is in colours, not class numbers.* add palette.json"):
        opened(tmp_path)
    write(tmp_path / "id2label.json", NAMES)
    with pytest.raises(ImageError, match="is in colours"):
        opened(tmp_path).train.read_mask(0)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("palette.json", "[", "cannot be read as json"),
        ("palette.json", '{"a": 1}', "is no palette"),
        ("palette.json", '{"a": [1, 2]}', "no colour of three numbers"),
        ("palette.json", '{"a": [1, 2, 256]}', "run from 0 to 255"),
        ("palette.json", '{"a": [1, 2, 3], "b": [1, 2, 3]}', "to two classes"),
        ("palette.json", "{}", "names no colour"),
        ("label_colors.txt", "road 1 2 3", "not of the form red green blue name"),
        ("class_dict.csv", "road,1,x,3", "no colour of three numbers"),
        ("id2label.json", "{", "cannot be read as json"),
        ("id2label.json", '{"cat": 1}', "no table of class number and name"),
        ("id2label.json", '{"1": "cat"}', "count from 0 without gaps"),
        ("labels.txt", "cat\ncat\n", "names a class twice"),
        ("id2label.json", json.dumps({str(n): str(n) for n in range(256)}), "has 256 classes; up to 255"),
    ],
)
def test_names_and_palettes_that_cannot_be_understood(tmp_path, file, text, says):
    write_pairs(tmp_path / "images", tmp_path / "masks", "a")
    write(tmp_path / file, text)
    with pytest.raises(DataError, match=says):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["0 sky\n1 tree", "0: sky\n1: tree\n", "sky\ntree", "1,sky\n2,tree"])
def test_lists_of_class_names(tmp_path, text):
    write_pairs(tmp_path / "images", tmp_path / "masks", "a")
    write(tmp_path / "labels.txt", text)
    assert opened(tmp_path).classes == ("sky", "tree")


def test_without_names_the_highest_number_counts(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "ab", (0, 4, 255))
    assert opened(tmp_path).classes == ("0", "1", "2", "3", "4")
    write(tmp_path / "masks" / "a.png", encoded_mask((0, 1000), kind="I;16"))
    with pytest.raises(DataError, match="numbers up to 1000, but nothing names the classes"):
        opened(tmp_path)
    for stem in "ab":
        write(tmp_path / "masks" / f"{stem}.png", encoded_mask((255,)))
    with pytest.raises(DataError, match="no mask has a class number"):
        opened(tmp_path)


# --------------------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("column", ["annotation", "label", "mask", "segmentation_mask", "something_else"])
def test_tables(tmp_path, column):
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": picture("red", at, size=SIZE), "path": None} for at in range(3)],
        column: [{"bytes": encoded_mask((0, 1)), "path": None}] * 3,
        "scene": ["street"] * 3,
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).cast_column(column, datasets.Image())
    table.to_parquet(str(tmp_path / "train-0.parquet"))
    table.select([0]).to_parquet(str(tmp_path / "test-0.parquet"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "saved"))
    for source in (tmp_path, tmp_path / "saved"):
        data = opened(source)
        assert counts(data) == {"train": 3, "test": 1} and data.classes == ("0", "1")
        assert (data.train.read_mask(2) == columns((0, 1))).all() and data.train.read(2).size == SIZE
        assert data.train.describe_mask(2).endswith("row 2 (mask)")
    write(tmp_path / "id2label.json", NAMES)
    assert opened(tmp_path).classes == ("background", "cat", "dog")


def test_tables_without_masks(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": picture("red", 1), "path": None}], "scene": ["street"]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train-0.parquet"))
    with pytest.raises(DataError, match="no column of masks that can be told; found: image, scene"):
        opened(tmp_path)


# --------------------------------------------------------------------------------------------------------------------------- splits


def test_a_validation_split_is_held_out_with_rare_classes_in_it(tmp_path):
    common, rare = [f"c{at:02d}" for at in range(16)], [f"r{at}" for at in range(4)]
    write_pairs(tmp_path / "images", tmp_path / "masks", common, (0, 1))
    write_pairs(tmp_path / "images", tmp_path / "masks", rare, (0, 2), first=50)
    write(tmp_path / "id2label.json", NAMES)
    data = open_segmentation_data(tmp_path, validation_fraction=0.25, seed=1)
    names = [{split.describe(i) for i in range(len(split))} for split in (data.train, data.validation)]
    assert counts(data) == {"train": 15, "validation": 5} and not names[0] & names[1]
    assert sum("/r" in name for name in names[1]) == 1
    again = open_segmentation_data(tmp_path, validation_fraction=0.25, seed=1)
    assert {again.validation.describe(i) for i in range(5)} == names[1]
    with pytest.raises(ConfigurationError, match="validation_fraction=-1"):
        open_segmentation_data(tmp_path, validation_fraction=-1)


def test_select_and_pickle(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", "abcd")
    train = pickle.loads(pickle.dumps(opened(tmp_path).train))
    some = train.select([3, 0])
    assert [some.describe_mask(at) for at in range(2)] == [train.describe_mask(at) for at in (3, 0)]
    assert (some.read_mask(0) == train.read_mask(3)).all() and len(train.select([])) == 0
    assert len(pickle.dumps(train)) < 3000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mask=st.binary(max_size=80) | st.lists(st.integers(0, 255), min_size=1, max_size=6),
    lines=st.lists(st.text(max_size=8) | st.sampled_from(["a", "b", "images/a.jpg"]), max_size=4),
)
def test_no_mask_or_list_whatever_stops_it(tmp_path, mask, lines):
    if not (tmp_path / "images").exists():
        write_pairs(tmp_path / "images", tmp_path / "masks", "ab")
        write(tmp_path / "id2label.json", NAMES)
    write(tmp_path / "masks" / "b.png", mask if isinstance(mask, bytes) else encoded_mask(mask))
    write(tmp_path / "train.txt", "\n".join(["a", "b", *lines]).encode("utf-8", "replace"))
    train = opened(tmp_path).train
    assert len(train) == 2 and train.read_mask(0).max() == 1
    try:
        found = train.read_mask(1)
    except ImageError as error:
        assert "b.png" in str(error)
    else:
        assert set(np.unique(found).tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize("make", [lambda root: None, lambda root: write(root / "cats" / "a.jpg", picture("red", 1))])
def test_folders_without_masks(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match=r"no masks in a layout known; found: (nothing|cats)\. Layouts known for segmentation:"):
        opened(tmp_path)


# ------------------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("pets", 3, {"train": 733, "validation": 134}),
        ("camvid", 11, {"train": 367, "validation": 101, "test": 233}),
    ],
)
def test_real_data(shared_data, name, classes, expected):
    data = open_segmentation_data(shared_data / name)
    assert counts(data) == expected and len(data.classes) == classes and data.problems == ()
    shown, mask = data.train.read_pair(5)
    assert mask.shape == shown.size[::-1] and set(np.unique(mask).tolist()) <= {*range(classes), 255}
