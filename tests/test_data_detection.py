from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from classification_data import picture
from detection_data import annotation, coco, voc_xml, write_coco, write_picture, write_voc, write_yolo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobilevitv2.data.detection import open_detection_data
from mobilevitv2.errors import ConfigurationError, DataError


def opened(root, **options):
    return open_detection_data(root, **({"validation_fraction": 0} | options))


def told(data):
    return [(problem.what, problem.action) for problem in data.problems]


# ----------------------------------------------------------------------------------------------------------------------------- COCO


def test_coco_json_beside_its_pictures(tmp_path):
    content = coco(2, [annotation(10, [4, 5, 20, 10], 6, area=150.5, id=1), annotation(10, [0, 0, 8, 8], iscrowd=1)])
    write_coco(tmp_path, "annotations/instances_train2017.json", content, folder="train2017")
    data = opened(tmp_path)
    train = data.train
    assert data.classes == ("cat", "dog") and train.category_ids == (3, 6) and train.image_ids == (10, 11)
    assert data.validation is None and data.test is None and data.problems == ()
    assert train.boxes(0).tolist() == [[4, 5, 24, 15], [0, 0, 8, 8]] and train.boxes(0).dtype == np.float32
    assert train.labels(0).tolist() == [1, 0] and train.labels(0).dtype == np.int64
    assert train.areas(0).tolist() == [150.5, 64] and train.crowd(0).tolist() == [False, True]
    assert train.difficult(0).tolist() == [False, False] and train.sizes.tolist() == [[64, 48]] * 2
    assert train.boxes(1).shape == (0, 4) and train.labels(1).shape == (0,)
    assert train.read(1).size == (64, 48) and train.describe(1).endswith("train2017/1.png")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("instances_val.json", "images"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/val.json", "images"),
        ("valid/_annotations.coco.json", "valid"),
        ("val.json", "."),
    ],
)
def test_where_coco_json_and_pictures_may_lie(tmp_path, name, folder):
    path = write_coco(tmp_path, name, coco(2, [annotation(10, [1, 1, 5, 5])]), folder=folder)
    for data in (opened(tmp_path), opened(path)):
        assert list(data.splits) == ["validation"] and len(data.validation) == 2
        assert data.validation.read(0).size == (64, 48)


def test_coco_files_of_other_tasks_are_left_alone(tmp_path):
    write_coco(tmp_path, "annotations/instances_train.json", coco(2, [annotation(10, [1, 1, 5, 5])]))
    write_coco(tmp_path, "annotations/captions_train.json", {"annotations": []}, pictures=0)
    write_coco(tmp_path, "id2label.json", {"0": "background"}, pictures=0)
    assert len(opened(tmp_path).train) == 2


def test_two_json_files_for_a_split_are_refused(tmp_path):
    for year in (2014, 2017):
        write_coco(tmp_path, f"annotations/instances_train{year}.json", coco(2, []))
    with pytest.raises(DataError, match=r"two json files for the split 'train', annotations/instances_train2014.json and"):
        opened(tmp_path)


def test_roboflows_parent_of_all_classes_is_no_class(tmp_path):
    content = coco(1, [annotation(10, [1, 1, 5, 5])])
    content["categories"] = [
        {"id": 0, "name": "cells", "supercategory": "none"}, *({"id": 3, "name": "red", "supercategory": "cells"},)
    ]  # fmt: skip
    path = write_coco(tmp_path, "train/_annotations.coco.json", content, folder="train")
    assert opened(path).classes == ("red",)
    content["annotations"].append(annotation(10, [2, 2, 9, 9], 0))  # used, so it is one
    path.write_text(json.dumps(content))
    assert opened(path).classes == ("cells", "red")


def test_every_broken_annotation_is_named_and_the_rest_kept(tmp_path):
    broken = [
        (annotation(10, [5, 5, 0, 9], id=1), "box of no area", "left out"),
        (annotation(10, [5, 5, 9, -2], id=2), "box of no area", "left out"),
        (annotation(10, [70, 5, 9, 9], id=3), "box outside its picture", "left out"),
        (annotation(10, [5, 5, math.nan, 9], id=4), "box that is no four numbers", "left out"),
        (annotation(10, [5, 5, 9], id=5), "box that is no four numbers", "left out"),
        (annotation(10, [5, 5, "9", None], id=6), "box that is no four numbers", "left out"),
        (annotation(10, [5, 5, 9, 9], 4, id=7), "unknown class", "left out"),
        (annotation(10, [50, 40, 30, 30], id=8), "box partly outside its picture", "clipped"),
        (annotation(99, [5, 5, 9, 9], id=9), "annotation of an image that is not listed", "left out"),
        ({"image_id": 10, "category_id": 3, "segmentation": [[1, 2, 3]], "id": 11}, "outline without a box", "left out"),
        (annotation(10, [1, 2, 3, 4], id=12), None, None),
        (annotation(10, [1, 2, 3, 4], id=13), "box that is there twice", "left out"),
        ("nonsense", "annotation of an image that is not listed", "left out"),
    ]
    write_coco(tmp_path, "instances_train.json", coco(2, [one for one, _, _ in broken]))
    data = opened(tmp_path)
    assert sorted(told(data)) == sorted((what, action) for _, what, action in broken if what)
    assert data.train.boxes(0).tolist() == [[50, 40, 64, 48], [1, 2, 4, 6]]
    place = {problem.what: str(problem) for problem in data.problems}
    assert place["unknown class"] == "instances_train.json annotation 7 (image 10): unknown class (category_id 4), left out"
    assert place["box outside its picture"].endswith("(70 5 79 14 in 64 x 48), left out")


def test_broken_images_are_named_and_left_out_with_their_boxes(tmp_path):
    content = coco(2, [annotation(image, [1, 1, 5, 5]) for image in (10, 11, 20, 21, 22)])
    content["images"] += [
        {"id": 20, "file_name": "gone.png"},
        {"id": 21, "file_name": "../../../etc/passwd"},
        {"id": 22, "file_name": "0.png"},
        {"id": 10, "file_name": "1.png"},
        {"id": 23},
        None,
    ]
    write_coco(tmp_path, "instances_train.json", content)
    data = opened(tmp_path)
    assert data.train.image_ids == (10, 11)
    assert told(data) == [
        ("image without file", "left out"),
        ("image without file", "left out"),
        ("file of two images", "their boxes joined"),
        ("image id that is there twice", "left out"),
        ("image without id or file name", "left out"),
        ("image without id or file name", "left out"),
        ("box that is there twice", "left out"),
    ]
    assert "gone.png" in data.problems[0].where and "outside" in data.problems[1].detail


def test_sizes_that_are_not_written_come_from_the_files(tmp_path):
    content = coco(1, [annotation(10, [30, 30, 500, 500])])
    del content["images"][0]["width"]
    write_coco(tmp_path, "instances_train.json", content)
    train = opened(tmp_path).train
    assert train.sizes.tolist() == [[64, 48]] and train.boxes(0).tolist() == [[30, 30, 64, 48]]


def test_splits_that_number_their_classes_differently_are_united_by_name(tmp_path):
    write_coco(tmp_path, "train.json", coco(1, [annotation(10, [1, 1, 5, 5], 6)], ["cat", "dog"]))
    write_coco(tmp_path, "val.json", coco(1, [annotation(10, [1, 1, 5, 5], 3)], ["dog", "emu"]))
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog", "emu")
    assert data.train.labels(0).tolist() == data.validation.labels(0).tolist() == [1]
    assert len(set(data.train.category_ids)) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read as json"),
        ("[1]", "holds a list"),
        ('{"images": []}', "lacks COCO's list of annotations and of categories"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": "a"}]}', "no id that is a whole number"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 1}]}', "two categories have the id 1"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "no picture that can be used"),
        ("[" * 100_000, "cannot be read as json"),
    ],
)
def test_json_that_is_none_of_cocos(tmp_path, text, says):
    (tmp_path / "instances_train.json").write_text(text)
    with pytest.raises(DataError, match=says):
        opened(tmp_path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
wild = st.fixed_dictionaries(
    {},
    optional={
        "image_id": st.sampled_from([10, 11, 12, "10", None]) | anything,
        "bbox": st.lists(st.floats(-200, 200) | st.integers(-70, 70) | st.floats(), min_size=4, max_size=4) | anything,
        "category_id": st.sampled_from([3, 6, 4]) | anything,
        "area": anything,
        "iscrowd": anything,
        "id": anything,
    },
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(annotations=st.lists(wild | anything, max_size=8), images=st.lists(anything, max_size=2))
def test_no_annotation_whatever_stops_it(tmp_path, annotations, images):
    content = coco(2, [annotation(10, [1, 1, 5, 5]), *annotations])
    content["images"] += images
    data = opened(write_coco(tmp_path, "instances_train.json", content))
    train = data.train
    assert len(train) == 2
    for index in range(2):
        boxes, labels = train.boxes(index), train.labels(index)
        assert np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all() and (boxes <= [64, 48, 64, 48]).all()
        assert ((labels >= 0) & (labels < 2)).all()
        assert np.isfinite(train.areas(index)).all() and (train.areas(index) > 0).all()
        assert len(np.unique(np.column_stack([boxes, labels]), axis=0)) == len(boxes)


# ------------------------------------------------------------------------------------------------------------------------------ VOC


def test_voc_folders(tmp_path):
    xml = voc_xml([("dog", 4, 5, 24, 15), ("cat", 1, 1, 64, 48)])
    write_voc(tmp_path, dict.fromkeys("abcd", xml), {"train": ["a", "b"], "val": ["c"], "test": ["d"], "trainval": ["a", "c"]})
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog") and {name: len(split) for name, split in data.splits.items()} == {
        "train": 2, "validation": 1, "test": 1
    }  # fmt: skip
    assert data.train.image_ids == ("a", "b") and data.train.category_ids == (0, 1)
    assert data.train.boxes(0).tolist() == [[4, 5, 24, 15], [1, 1, 64, 48]] and data.train.labels(0).tolist() == [1, 0]


def test_vocs_own_pixels_count_from_one_with_both_ends_inside(tmp_path):
    xml = voc_xml([("cat", 1, 1, 64, 48), ("cat", 7, 7, 7, 7)], database="The VOC2012 Database")
    data = opened(write_voc(tmp_path, {"a": xml}))
    assert data.train.boxes(0).tolist() == [[0, 0, 64, 48], [6, 6, 7, 7]] and data.problems == ()


def test_voc_without_lists_takes_all_and_names_what_lacks_its_other_half(tmp_path):
    write_voc(tmp_path, {"a": voc_xml([("cat", 1, 2, 3, 4)]), "lonely": None, "none": voc_xml([])})
    (tmp_path / "Annotations" / "orphan.xml").write_text(voc_xml([("cat", 1, 2, 3, 4)]))
    (tmp_path / "Annotations" / "torn.xml").write_text("<annotation><object>")
    write_picture(tmp_path / "JPEGImages" / "torn.png", 9)
    data = opened(tmp_path)
    assert data.train.image_ids == ("a", "none") and len(data.train.boxes(1)) == 0
    assert {(problem.where, problem.what) for problem in data.problems} == {
        ("JPEGImages/lonely.png", "image without annotation"),
        ("Annotations/orphan.xml", "annotation without image"),
        ("Annotations/torn.xml", "annotation that cannot be read"),
    }


def test_voc_lists_may_name_what_is_not_there_twice_or_outside(tmp_path):
    names = ["a", "a", "b", "c", "../../secret", "a.jpg"]
    write_voc(tmp_path, {"a": voc_xml([("cat", 1, 2, 3, 4)]), "b": None}, {"train": names})
    data = opened(tmp_path)
    assert data.train.image_ids == ("a",)
    assert [problem.what for problem in data.problems] == [
        "picture that is listed twice",
        "image without annotation",
        "listed name without image and annotation",
        "listed name without image and annotation",
        "picture that is listed twice",
    ]


def test_broken_objects_of_voc(tmp_path):
    boxes = [("cat", 5, 5, 5, 9), ("cat", 9, 9, 3, 3), ("", 1, 1, 4, 4), ("cat", "x", 1, 4, 4), ("cat", 1, 1, 9, 9)]
    write_voc(tmp_path, {"a": voc_xml([*boxes, ("cat", 1, 1, 9, 9), ("cow", 2, 2, 8, 8)])})
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    data = opened(tmp_path)
    assert data.classes == ("cat", "dog") and data.train.boxes(0).tolist() == [[1, 1, 9, 9]]
    assert sorted(problem.where for problem in data.problems) == [
        f"Annotations/a.xml object {row}" + (f" ({name})" if name else "")
        for row, name in enumerate(["cat", "cat", "", "cat", "", "cat", "cow"], 1)
        if row != 5
    ]


def test_difficult_and_parts_of_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    xml = voc_xml([("cat", 3, 3, 9, 9)], extra=part).replace("<difficult>0", "<difficult>1")
    train = opened(write_voc(tmp_path, {"a": xml})).train
    assert train.difficult(0).tolist() == [True] and train.boxes(0).tolist() == [[3, 3, 9, 9]]


@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;">]>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a SYSTEM "http://example.org/a.dtd">',
    ],
)
def test_xml_with_a_document_type_is_not_read(tmp_path, doctype):
    write_voc(tmp_path, {"a": voc_xml([("cat", 1, 2, 3, 4)]), "bad": doctype + voc_xml([("&b;", 1, 2, 3, 4)])})
    data = opened(tmp_path)
    assert data.train.image_ids == ("a",)
    assert "declares a document type" in data.problems[0].detail


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.binary(max_size=60), field=st.sampled_from(["cat", "<xmin>5", "<width>64", "<annotation>"]))
def test_no_xml_whatever_stops_it(tmp_path, text, field):
    root = tmp_path / "root"
    if not root.exists():
        write_voc(root, {"good": voc_xml([("cat", 1, 2, 3, 4)]), "wild": ""})
    content = voc_xml([("cat", 5, 6, 30, 40)]).encode()
    inner = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (root / "Annotations" / "wild.xml").write_bytes(content.replace(field.encode(), inner))
    data = opened(root)
    assert "good" in data.train.image_ids
    corners = data.train.table.corners
    assert (corners[:, 2:] > corners[:, :2]).all()


# ----------------------------------------------------------------------------------------------------------------------------- YOLO

YAML = "names: [cat, dog]\nnc: 2\n"


@pytest.mark.parametrize(
    "yaml",
    [
        YAML + "train: images/train\nval: images/val\n",
        YAML + "path: .\ntrain: ../images/train\nval: ../images/val\n",
        "names: {0: cat, 1: dog}\ntrain: [images/train]\nval: ./images/val\ntest:\n",
        None,
    ],
)
def test_yolo_folders(tmp_path, yaml):
    write_yolo(tmp_path, {"train": ["1 0.5 0.5 0.25 0.5\n\n0 .25 .25 .5 .5 ", ""], "val": ["0 0.5 0.5 1 1"]}, yaml=yaml)
    data = opened(tmp_path)
    assert data.classes == (("cat", "dog") if yaml else ("0", "1")) and data.problems == ()
    assert data.train.boxes(0).tolist() == [[24, 12, 40, 36], [0, 0, 32, 24]] and data.train.labels(0).tolist() == [1, 0]
    assert len(data.train.boxes(1)) == 0 and data.validation.boxes(0).tolist() == [[0, 0, 64, 48]]
    assert data.train.sizes.tolist() == [[64, 48]] * 2


def test_yolo_as_roboflow_lays_it(tmp_path):
    for split in ("train", "valid"):
        write_picture(tmp_path / split / "images" / "a.png", len(split))
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels" / "a.txt").write_text("0 .5 .5 .5 .5")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cell']\n"
    )
    with pytest.raises(DataError, match=r"test names \.\./test/images, which is not there"):
        opened(tmp_path)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cell']\n")
    data = opened(tmp_path)
    assert data.classes == ("cell",) and len(data.train) == len(data.validation) == 1


def test_yolo_outlines_and_broken_lines(tmp_path):
    lines = [
        "0 .25 .25 .75 .25 .5 .75",
        "0 .5 .5 .5",
        "0 .5 .5 0 .5",
        "x .5 .5 .5 .5",
        "7 .5 .5 .5 .5",
        "0 .9 .9 .4 .4",
        "0 nan 1 1 1",
        "0 5 5 1 1",
    ]
    write_yolo(tmp_path, {"train": ["\n".join(lines), None]}, yaml=YAML + "train: images/train\n")
    (tmp_path / "labels" / "train" / "orphan.txt").write_text("0 .5 .5 .5 .5")
    data = opened(tmp_path)
    np.testing.assert_allclose(data.train.boxes(0), [[16, 12, 48, 36], [44.8, 33.6, 64, 48]], atol=1e-4)
    assert {(problem.where, problem.what, problem.action) for problem in data.problems} == {
        ("labels/train/0.txt line 2", "box that is no four numbers", "left out"),
        ("labels/train/0.txt line 3", "box of no area", "left out"),
        ("labels/train/0.txt line 4", "unknown class", "left out"),
        ("labels/train/0.txt line 5", "unknown class", "left out"),
        ("labels/train/0.txt line 6", "box partly outside its picture", "clipped"),
        ("labels/train/0.txt line 7", "box that is no four numbers", "left out"),
        ("labels/train/0.txt line 8", "box outside its picture", "left out"),
        ("images/train/1.png", "image without annotation", "kept, as one without boxes"),
        ("labels/train/orphan.txt", "annotation without image", "left out"),
    }


def test_yolo_lists_of_pictures(tmp_path):
    write_yolo(tmp_path, {"all": ["0 .5 .5 .5 .5", "1 .5 .5 .5 .5"]}, yaml=YAML + "train: train.txt\nval: val.txt\n")
    (tmp_path / "train.txt").write_text("./images/all/0.png\nimages/all/9.png\n/etc/passwd\n./images/all/0.png\n")
    (tmp_path / "val.txt").write_text("images/all/1.png\n")
    data = opened(tmp_path)
    assert data.train.labels(0).tolist() == [0] and data.validation.labels(0).tolist() == [1] and len(data.train) == 1
    assert [problem.what for problem in data.problems] == [
        "image without file",
        "image without file",
        "picture that is listed twice",
    ]


def test_yolo_without_splits(tmp_path):
    for number in range(2):
        write_picture(tmp_path / "images" / f"{number}.png", number)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{number}.txt").write_text(f"{number} .5 .5 .5 .5\n9 .5 .5 .5 .5")
    (tmp_path / "classes.txt").write_text("cat\ndog")
    assert [len(split) for split in opened(tmp_path).splits.values()] == [2]
    (tmp_path / "train.txt").write_text("0.png")
    (tmp_path / "val.txt").write_text("images/1.png\n")
    data = opened(tmp_path)
    assert data.train.labels(0).tolist() == [0] and data.validation.labels(0).tolist() == [1]
    assert [(problem.split, problem.where) for problem in data.problems] == [
        ("train", "labels/0.txt line 2"),
        ("validation", "labels/1.txt line 2"),
    ]


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("a: [", "cannot be read as yaml"),
        ("- 1", "no description of a data set"),
        ("names: [a]", "names no pictures"),
        ("names: {1: a, 5: b}\ntrain: images/train", "count from 0 without gaps"),
        ("names: [a]\ntrain: images/trian", "is not there"),
        ("names: [a]\ntrain: /etc", "is not there"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as yaml"),
    ],
)
def test_yaml_that_says_too_little(tmp_path, yaml, says):
    write_yolo(tmp_path, {"train": [""]}, yaml=yaml)
    with pytest.raises(DataError, match=says):
        opened(tmp_path)


def test_a_yaml_file_named_outright_may_lead_elsewhere(tmp_path):
    write_yolo(tmp_path / "sets" / "one", {"train": ["0 .5 .5 .5 .5"]})
    path = tmp_path / "configs" / "one.yaml"
    path.parent.mkdir()
    path.write_text("path: ../sets/one\ntrain: images/train\nnames: [cat]\n")
    assert opened(path).train.boxes(0).tolist() == [[16, 12, 48, 36]]


# --------------------------------------------------------------------------------------------------------------------------- tables


def rows_of(objects):
    return {"image": [{"bytes": picture("red", at, size=(64, 48)), "path": None} for at in range(len(objects))], "objects": objects}


STRUCT = [{"bbox": [[4.0, 5, 20, 10], [0, 0, 0, 0]], "category": [1, 0]}, {"bbox": [], "category": []}]


def test_tables_with_a_struct_of_lists(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
            "category": datasets.Sequence(datasets.ClassLabel(names=["cat", "dog"])),
        },
    })  # fmt: skip
    table = datasets.Dataset.from_dict(rows_of(STRUCT), features=features)
    table.to_parquet(str(tmp_path / "train-0.parquet"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved"))
    for source in (tmp_path, tmp_path / "saved"):
        data = opened(source)
        assert data.classes == ("cat", "dog") and data.train.image_ids == (0, 1)
        assert data.train.boxes(0).tolist() == [[4, 5, 24, 15]] and data.train.labels(0).tolist() == [1]
        assert [(problem.what, problem.where[-11:]) for problem in data.problems] == [("box of no area", "row 0 box 2")]
    assert opened(tmp_path, box_format="xyxy").train.boxes(0).tolist() == [[4, 5, 20, 10]]
    assert opened(tmp_path, box_format="cxcywh").train.boxes(0).tolist() == [[0, 0, 14, 10]]
    with pytest.raises(ConfigurationError, match="box_format='yxyx' is not known; choose among xywh"):
        opened(tmp_path, box_format="yxyx")


def test_tables_with_a_list_of_structs_and_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    objects = [
        [{"bbox": [0.25, 0.5, 0.5, 0.5], "label": "dog", "iscrowd": True}],
        [{"bbox": [0.0, 0, 1, 1], "label": "cat", "iscrowd": False}],
    ]
    rows = {**rows_of(objects), "image_id": [7, 9], "width": [64, 64], "height": [48, 48]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "train-0.parquet"))
    data = opened(tmp_path, box_format="relative-xywh")
    assert data.classes == ("cat", "dog") and data.train.image_ids == (7, 9)
    assert data.train.boxes(0).tolist() == [[16, 24, 48, 48]] and data.train.crowd(0).tolist() == [True]


def test_tables_with_plain_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": rows_of(STRUCT)["image"], "bboxes": [[[1.0, 2, 3, 4]], [[1.0, 2, 3]]], "labels": [[2], [0]]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train-0.parquet"))
    data = opened(tmp_path)
    assert data.classes == ("0", "1", "2") and data.train.boxes(0).tolist() == [[1, 2, 4, 6]]
    assert told(data) == [("box that is no four numbers", "left out")]


def test_tables_without_boxes(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": rows_of(STRUCT)["image"], "label": [0, 1]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train-0.parquet"))
    with pytest.raises(DataError, match="no boxes; a column objects of bbox and category is needed"):
        opened(tmp_path)


# --------------------------------------------------------------------------------------------------------------------------- splits


def test_a_validation_split_is_held_out_with_rare_classes_in_it(tmp_path):
    texts = ["0 .5 .5 .5 .5"] * 30 + ["1 .5 .5 .5 .5\n0 .2 .2 .2 .2"] * 4 + [""] * 6
    write_yolo(tmp_path, {"train": texts, "test": texts[:3]}, yaml=YAML + "train: images/train\ntest: images/test\n")
    data = open_detection_data(tmp_path, validation_fraction=0.25, seed=3)
    train, held = data.train, data.validation
    assert len(train) + len(held) == 40 and len(data.test) == 3 and held.name == "validation"
    assert not set(train.image_ids) & set(held.image_ids)
    assert sum(1 in held.labels(index) for index in range(len(held))) == 1
    assert sum(len(held.labels(index)) == 0 for index in range(len(held))) == 2
    again = open_detection_data(tmp_path, validation_fraction=0.25, seed=3)
    assert again.validation.image_ids == held.image_ids
    assert open_detection_data(tmp_path, validation_fraction=0.25, seed=4).validation.image_ids != held.image_ids
    with pytest.raises(ConfigurationError, match="validation_fraction=1"):
        open_detection_data(tmp_path, validation_fraction=1)


def test_select_and_pickle(tmp_path):
    texts = [f"{number % 2} .5 .5 .{number + 1} .5\n" * (number % 3 > 0) for number in range(9)]
    train = opened(write_yolo(tmp_path, {"train": texts}, yaml=YAML + "train: images/train\n")).train
    some = pickle.loads(pickle.dumps(train)).select([7, 0, 4, 7])
    assert len(some) == 4 and len(some.table) == 4
    for at, index in enumerate([7, 0, 4, 7]):
        assert some.boxes(at).tolist() == train.boxes(index).tolist() and some.describe(at) == train.describe(index)
        assert some.labels(at).tolist() == train.labels(index).tolist() and some.image_ids[at] == train.image_ids[index]
    assert len(train.select([])) == 0 and train.boxes(-1).tolist() == train.boxes(8).tolist()
    with pytest.raises(IndexError):
        train.boxes(9)


def test_an_image_with_many_boxes_and_with_boxes_of_a_pixel(tmp_path):
    boxes = [[column, row, 1, 1] for row in range(25) for column in range(20)]
    write_coco(tmp_path, "instances_train.json", coco(1, [annotation(10, box) for box in boxes]))
    data = opened(tmp_path)
    assert len(data.train.boxes(0)) == 500 and data.problems == ()


@pytest.mark.parametrize(
    ("make", "says"), [(lambda root: None, "found: nothing"), (lambda root: write_picture(root / "a" / "1.png", 1), "found: a")]
)
def test_folders_without_boxes(tmp_path, make, says):
    make(tmp_path)
    with pytest.raises(DataError, match=rf"no boxes in a layout known; {says}\. Layouts known for detection:"):
        opened(tmp_path)


@pytest.mark.parametrize("source", [".", "../root"])
def test_files_that_lead_out_of_a_folder_named_relatively(tmp_path, monkeypatch, source):
    content = coco(2, [annotation(10, [1, 1, 5, 5])])
    content["images"].append({"id": 20, "file_name": "../../secret.png"})
    write_coco(tmp_path / "root", "instances_train.json", content)
    write_picture(tmp_path / "secret.png", 1)
    monkeypatch.chdir(tmp_path / "root")
    data = opened(source)
    assert data.train.read(0).size == (64, 48) and len(data.train) == 2
    assert [problem.what for problem in data.problems] == ["image without file"]


def test_a_folder_above_the_data(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {"a": voc_xml([("cat", 1, 2, 3, 4)])})
    assert len(opened(tmp_path / "VOCdevkit").train) == 1
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"a": voc_xml([("cat", 1, 2, 3, 4)])})
    with pytest.raises(DataError, match="several data sets, VOC2007, VOC2012: name one"):
        opened(tmp_path / "VOCdevkit")


# ------------------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.parametrize(
    ("name", "classes", "counts"),
    [
        ("pets", ("cat", "dog"), {"train": (494, 494), "validation": (142, 142)}),
        ("bccd", ("Platelets", "RBC", "WBC"), {"train": (205, 2804), "validation": (87, 1137), "test": (72, 945)}),
    ],
)
def test_real_data(shared_data, name, classes, counts):
    data = open_detection_data(shared_data / name)
    assert data.classes == classes
    assert {split: (len(one), len(one.table.labels)) for split, one in data.splits.items()} == counts


def test_bccd_names_both_of_its_broken_places(shared_data):
    data = open_detection_data(shared_data / "bccd")
    assert {str(problem) for problem in data.problems} == {
        "Annotations/BloodImage_00343.xml object 4 (RBC): box of no area (181 329 181 329), left out",
        "Annotations/BloodImage_00338.xml object 13 (RBC): box of no area (504 337 504 337), left out",
    }


def test_coco128(shared_data):
    data = open_detection_data(shared_data / "coco128")
    assert list(data.splits) == ["validation"] and len(data.classes) == 80 and data.problems == ()
    split = data.validation
    assert (len(split), len(split.table.labels), split.category_ids[-1]) == (128, 898, 90)
    assert split.image_ids[0] == 139 and data.classes[split.labels(0)[0]] == "potted plant"
    assert split.read(0).size == tuple(split.sizes[0])


def test_importing_is_light():
    modules = ", ".join(
        f"mobilevitv2.data.{name}" for name in ("detection", "segmentation", "checks_detection", "checks_segmentation")
    )
    heavy = ("torch", "transformers", "datasets", "pyarrow", "PIL", "yaml")
    program = f"import sys; import {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
