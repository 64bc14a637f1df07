from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mobilevitv2.data.detection import open_detection_data
from mobilevitv2.errors import ConfigurationError, DataError, ImageError, MissingDependency
from mobilevitv2.evaluate.detection import DetectionCounter, evaluate_detection
from mobilevitv2.evaluate.grids import save_box_grid

pytest.importorskip("pycocotools")
CLASSES = ("cat", "dog")


@dataclasses.dataclass
class Boxed:
    """A split: for each picture rows of (left, top, right, bottom, label), and which of them are crowds or difficult."""

    rows: list
    crowds: tuple = ()
    difficults: tuple = ()
    given_areas: dict = dataclasses.field(default_factory=dict)
    classes: tuple = CLASSES
    name: str = "test"
    category_ids: tuple = (17, 18)
    broken: tuple = ()

    def __len__(self):
        return len(self.rows)

    @property
    def image_ids(self):
        return tuple(100 + index for index in range(len(self)))

    def _table(self, index):
        return np.array(self.rows[index], dtype=np.float32).reshape(-1, 5)

    def boxes(self, index):
        return self._table(index)[:, :4]

    def labels(self, index):
        return self._table(index)[:, 4].astype(np.int64)

    def areas(self, index):
        boxes = self.boxes(index)
        own = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return np.array([self.given_areas.get((index, row), area) for row, area in enumerate(own)], dtype=np.float32)

    def crowd(self, index):
        return np.array([(index, row) in self.crowds for row in range(len(self.rows[index]))], dtype=bool)

    def difficult(self, index):
        return np.array([(index, row) in self.difficults for row in range(len(self.rows[index]))], dtype=bool)

    def describe(self, index):
        return f"photo{index}.jpg"

    def read(self, index):
        if index in self.broken:
            raise ImageError(f"{self.describe(index)} is empty (0 bytes)")
        return Image.new("RGB", (100 + 20 * index, 80), (10 * index, 90, 200))


def counted(split, found):
    counter = DetectionCounter(split)
    for index, rows in enumerate(found):
        table = np.array(rows, dtype=np.float64).reshape(-1, 6)
        counter.add(index, table[:, 5], table[:, 4].astype(int), table[:, :4])
    return counter.result()


def perfect(split, score=0.9):
    return [[(*row, score) for row in rows] for rows in split.rows]


# --------------------------------------------------------------------------------------------------------------- a plain reference


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


def plain_average_precision(split, found, label, threshold):
    """Precision at 101 recalls: greedy matching from the surest on, no crowds, all sizes; None without true boxes."""
    total, answers = 0, []
    for index in range(len(split)):
        truth = [box for box, each in zip(split.boxes(index), split.labels(index), strict=True) if each == label]
        total += len(truth)
        taken = [False] * len(truth)
        here = sorted((row for row in found[index] if row[4] == label), key=lambda row: -row[5])[:100]
        for row in here:
            best, place = threshold, -1
            for each, true in enumerate(truth):
                if not taken[each] and overlap(row, true) >= best:
                    best, place = overlap(row, true), each
            if place >= 0:
                taken[place] = True
            answers.append((row[5], place >= 0))
    if not total:
        return None
    answers.sort(key=lambda pair: -pair[0])
    right, points = 0, []
    for count, (_, correct) in enumerate(answers, 1):
        right += correct
        points.append((right / total, right / count))
    recalls = np.linspace(0, 1, 101)
    return float(np.mean([max((precision for recall, precision in points if recall >= each), default=0.0) for each in recalls]))


def plain_metrics(split, found):
    thresholds = np.linspace(0.5, 0.95, 10)
    table = [
        [plain_average_precision(split, found, label, threshold) for threshold in thresholds] for label in range(len(split.classes))
    ]
    known = [row for row in table if row[0] is not None]
    per_class = [None if row[0] is None else float(np.mean(row)) for row in table]
    return float(np.mean(known)), float(np.mean([row[0] for row in known])), per_class


def disturbed(split, random, *, shift, mislabelled, lost, invented):
    found = []
    for index in range(len(split)):
        rows = []
        for box, label in zip(split.boxes(index).astype(float), split.labels(index), strict=True):
            if random.random() < lost:
                continue
            moved = box + random.normal(0, shift, 4) * np.tile(box[2:] - box[:2], 2)
            moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
            wrong = random.random() < mislabelled
            rows.append((*moved, random.integers(len(split.classes)) if wrong else label, random.uniform(0.05, 1)))
        for _ in range(random.poisson(invented)):
            left, top = random.uniform(0, 300, 2)
            rows.append((left, top, left + random.uniform(5, 99), top + random.uniform(5, 99), random.integers(3), random.random()))
        found.append([tuple(map(float, row)) for row in rows])
    return found


# ---------------------------------------------------------------------------------------------------------------- real annotations


@pytest.fixture(scope="module")
def coco128(shared_data):
    data = open_detection_data(shared_data / "coco128")
    split = next(iter(data.splits.values()))
    assert len(split) == 128 and split.category_ids[-1] == 90
    return split


def test_perfect_predictions_on_coco128(coco128):
    counter = DetectionCounter(coco128)
    for index in range(len(coco128)):
        boxes = coco128.boxes(index)
        counter.add(index, np.ones(len(boxes)), coco128.labels(index), boxes)
    result = counter.result()
    values = [result.ap, result.ap50, result.ap75, result.recall, result.ap_small, result.ap_medium, result.ap_large]
    assert values == pytest.approx([1] * 7)
    assert result.per_class == pytest.approx({name: 1 if count else None for name, count in result.per_class_boxes.items()})
    entries = result.coco_results(coco128)
    assert {entry["category_id"] for entry in entries} <= set(coco128.category_ids) and 90 in coco128.category_ids


def test_disturbed_predictions_on_coco128_against_a_plain_reference(coco128):
    without_crowds = [index for index in range(len(coco128)) if not coco128.crowd(index).any()][:60]
    split = coco128.select(without_crowds)
    found = disturbed(split, np.random.default_rng(0), shift=0.05, mislabelled=0.1, lost=0.2, invented=2)
    result = counted(split, found)
    ap, ap50, per_class = plain_metrics(split, found)
    assert 0.1 < ap < 0.9
    assert (result.ap, result.ap50) == (pytest.approx(ap, abs=1e-6), pytest.approx(ap50, abs=1e-6))
    assert list(result.per_class.values()) == pytest.approx(per_class, abs=1e-6)


# -------------------------------------------------------------------------------------------------------------------- made-up ones


@pytest.fixture
def split():
    return Boxed([[(10, 10, 50, 50, 0), (60, 10, 90, 40, 1)], [], [(0, 0, 80, 80, 1)]])


@pytest.mark.parametrize("seed", range(4))
def test_many_boxes_against_a_plain_reference(seed):
    random = np.random.default_rng(seed)
    corners = [random.uniform(0, 300, (random.integers(0, 12), 2)) for _ in range(8)]
    rows = [
        [(x, y, x + random.uniform(4, 120), y + random.uniform(4, 120), random.integers(3)) for x, y in each] for each in corners
    ]
    split = Boxed(rows, classes=("a", "b", "c", "d"), category_ids=(1, 2, 3, 4))
    found = disturbed(split, random, shift=0.08, mislabelled=0.2, lost=0.1, invented=3)
    result = counted(split, found)
    ap, ap50, per_class = plain_metrics(split, found)
    assert (result.ap, result.ap50) == (pytest.approx(ap, abs=1e-6), pytest.approx(ap50, abs=1e-6))
    assert list(result.per_class.values()) == pytest.approx(per_class, abs=1e-6)
    assert result.per_class["d"] is None and result.per_class_boxes["d"] == 0


def test_nothing_is_printed(split, capfd):
    result = counted(split, perfect(split))
    assert capfd.readouterr() == ("", "")
    assert result.ap == pytest.approx(1) and result.count == 3
    assert "AP50" in result.table() and "100.00" in result.table()
    assert json.loads(json.dumps(result.to_dict()))["per_class"] == pytest.approx({"cat": 1, "dog": 1})


def test_shifted_and_mislabelled(split):
    shifted = [[(x + 8, y, r + 8, b, label, s) for x, y, r, b, label, s in rows] for rows in perfect(split)]
    assert counted(split, shifted).ap == pytest.approx(plain_metrics(split, shifted)[0])
    assert 0 < counted(split, shifted).ap < 1
    swapped = [[(*row[:4], 1 - row[4], row[5]) for row in rows] for rows in perfect(split)]
    assert counted(split, swapped).ap == 0


def test_nothing_found_and_nothing_to_find(split):
    result = counted(split, [[], [], []])
    assert (result.ap, result.ap50, result.recall) == (0, 0, 0)
    empty = Boxed([[], []])
    result = counted(empty, [[(0, 0, 5, 5, 0, 0.9)], []])
    assert result.ap is None and result.per_class == {"cat": None, "dog": None}
    assert "-" in result.table()


def test_crowds_are_neither_right_nor_wrong():
    split = Boxed([[(10, 10, 50, 50, 0), (60, 0, 200, 100, 0)]], crowds=((0, 1),))
    found = [[(10, 10, 50, 50, 0, 0.5), (70, 10, 80, 30, 0, 0.9), (100, 10, 120, 30, 0, 0.8)]]
    result = counted(split, found)  # small boxes inside the crowd are no mistakes
    assert result.ap == pytest.approx(1) and result.per_class_boxes["cat"] == 1
    assert counted(Boxed(split.rows), found).ap < 0.3


def test_difficult_objects_are_neither_right_nor_wrong():
    split = Boxed([[(10, 10, 50, 50, 0), (60, 0, 200, 100, 0)]], difficults=((0, 1),))
    on_it = (61, 1, 200, 100, 0, 0.9)
    assert counted(split, [[(10, 10, 50, 50, 0, 0.5), on_it, (*on_it[:5], 0.8)]]).ap == pytest.approx(1)  # found twice, no matter
    inside = (70, 10, 80, 30, 0, 0.9)  # but a small box inside is wrong, unlike in a crowd
    assert counted(split, [[(10, 10, 50, 50, 0, 0.5), inside]]).ap == pytest.approx(0.5)
    assert counted(split, [[(10, 10, 50, 50, 0, 0.5)]]).ap == pytest.approx(1)  # and need not be found


def test_sizes_go_by_the_annotated_area():
    split = Boxed([[(0, 0, 50, 50, 0), (100, 100, 220, 220, 0)]], given_areas={(0, 0): 900.0})
    result = counted(split, [[(0, 0, 50, 50, 0, 0.9)]])
    assert (result.ap_small, result.ap_medium, result.ap_large) == (pytest.approx(1), None, 0)


def test_five_hundred_boxes_and_one_pixel():
    rows = [
        (x * 20, y * 20, x * 20 + (1 if x == y == 0 else 15), y * 20 + (1 if x == y == 0 else 15), 0)
        for x in range(25)
        for y in range(20)
    ]
    split = Boxed([rows])
    result = counted(split, perfect(split))
    assert result.per_class_boxes["cat"] == 500
    assert result.recall == pytest.approx(0.2)  # COCO counts 100 of a class and picture


def test_counting_what_does_not_fit(split):
    counter = DetectionCounter(split)
    with pytest.raises(ConfigurationError, match="picture 3 is not in split 'test', which has 3"):
        counter.add(3, [], [], [])
    with pytest.raises(ConfigurationError, match="class 2; there are 0 to 1"):
        counter.add(0, [0.5], [2], [[0, 0, 1, 1]])
    with pytest.raises(ConfigurationError, match="2 boxes"):
        counter.add(0, [0.5], [1], [[0, 0, 1, 1], [0, 0, 2, 2]])
    with pytest.raises(ConfigurationError, match="no numbers"):
        counter.add(0, [float("nan")], [1], [[0, 0, 1, 1]])
    with pytest.raises(DataError, match="none of the 3 pictures"):
        counter.result()
    with pytest.raises(DataError, match=r"photo0\.jpg has boxes of class 4"):
        counted(Boxed([[(0, 0, 9, 9, 4)]]), [[]])


def test_tensors_are_taken(split):
    counter = DetectionCounter(split)
    counter.add(0, torch.ones(1, requires_grad=True), torch.tensor([1]), torch.tensor([[60.0, 10, 90, 40]]))
    assert counter.result().per_class == pytest.approx({"cat": 0, "dog": 1})


def test_without_pycocotools_the_extra_is_named(split, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(MissingDependency, match=r"pip install mobilevitv2\[train\]"):
        evaluate_detection(nn.Identity(), split, processor=Knowing(split))


# ------------------------------------------------------------------------------------------------------------------ the evaluation


class Knowing:
    """A processor that knows the boxes of a picture by its colour, as shares of its size."""

    def __init__(self, split, order=(0, 1)):
        self.split, self.order = split, order
        self.calls = []

    def __call__(self, picture):
        return torch.full((3, 4, 4), picture.getpixel((0, 0))[0] / 10)

    def post_process_object_detection(self, outputs, threshold, target_sizes):
        self.calls.append((threshold, [tuple(size) for size in target_sizes]))
        answers = []
        for number, (height, width) in zip(outputs.tolist(), target_sizes, strict=True):
            boxes = torch.from_numpy(self.split.boxes(round(number)))
            assert (height, width) == (80, 100 + 20 * round(number))
            labels = [self.order[label] for label in self.split.labels(round(number))]
            answers.append(
                {"scores": torch.full((len(boxes),), 0.7), "labels": torch.tensor(labels, dtype=torch.int64), "boxes": boxes}
            )
        return answers


class Mean(nn.Module):
    def forward(self, pixel_values):
        return pixel_values.mean((1, 2, 3))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_evaluation(split, workers):
    processor = Knowing(split)
    result = evaluate_detection(Mean(), split, processor=processor, batch_size=2, workers=workers)
    assert (result.ap, result.count, result.split) == (pytest.approx(1), 3, "test")
    assert processor.calls == [(0.01, [(80, 100), (80, 120)]), (0.01, [(80, 140)])]
    assert [entry["category_id"] for entry in result.coco_results(split)] == [17, 18, 18]
    assert result.coco_results(split)[0] == {"image_id": 100, "category_id": 17, "bbox": [10, 10, 40, 40], "score": 0.7}


def test_classes_are_matched_by_name_and_others_left_out(split):
    model = Mean()
    result = evaluate_detection(model, split, processor=Knowing(split, order=(2, 0)), class_names=("Dog", "bird", "cat"))
    assert result.ap == pytest.approx(1)
    result = evaluate_detection(model, split, processor=Knowing(split, order=(1, 0)), class_names=("dog", "bird", "cat"))
    assert result.per_class == pytest.approx({"cat": 0, "dog": 1})
    with pytest.raises(ConfigurationError, match="label 2, but there are names for 0 to 1"):
        evaluate_detection(model, split, processor=Knowing(split, order=(2, 0)), class_names=("dog", "cat"))


def test_unreadable_pictures_are_left_out_with_their_boxes(split):
    broken = dataclasses.replace(split, broken=(2,))
    result = evaluate_detection(Mean(), broken, processor=Knowing(split))
    assert (result.ap, result.count) == (pytest.approx(1), 2)
    assert "photo2.jpg is empty" in result.table()
    with pytest.raises(DataError, match=r"none of the 3 pictures.*photo0\.jpg is empty"):
        evaluate_detection(Mean(), dataclasses.replace(split, broken=(0, 1, 2)), processor=Knowing(split))
    with pytest.raises(DataError, match="no pictures"):
        evaluate_detection(Mean(), Boxed([]), processor=Knowing(split))
    with pytest.raises(ConfigurationError, match="no post_process_object_detection"):
        evaluate_detection(Mean(), split, processor=lambda picture: torch.zeros(3, 4, 4))


def test_grid_of_boxes(split, tmp_path):
    rows = perfect(split)
    rows[1] = [(5, 5, 60, 60, 0, 0.8)]  # nothing is there
    rows[2] = []  # and one is missed
    result = counted(split, rows)
    with Image.open(save_box_grid(result, split, tmp_path / "boxes.png")) as drawn:
        seen = {colour for _, colour in drawn.getcolors(1 << 24)}
        assert drawn.width > 1300
    assert {(70, 225, 95), (255, 80, 70), (80, 190, 255)} <= seen  # right, wrong, missed
    with Image.open(save_box_grid(result, split, tmp_path / "worst.jpg", count=1, worst=True)) as drawn:
        assert drawn.width < 600
    with pytest.raises(ConfigurationError, match="count=0"):
        save_box_grid(result, split, tmp_path / "boxes.png", count=0)
