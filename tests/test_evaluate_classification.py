from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import sys

import numpy as np
import pytest
import torch
from classification_data import COLOURS, picture, write_folder
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.data.classification import open_classification_data
from mobilevitv2.errors import ConfigurationError, DataError, MissingDependency
from mobilevitv2.evaluate.class_names import match_classes, output_names
from mobilevitv2.evaluate.classification import evaluate_classification, save_confusion_matrix


def mean_colour(image: Image.Image) -> torch.Tensor:
    """A processor: the picture at 8 x 8 as (3, 8, 8) in 0..1."""
    return torch.from_numpy(np.asarray(image.resize((8, 8)), dtype=np.float32)).permute(2, 0, 1) / 255


class Nearest(nn.Module):
    """Logits by the distance of the mean colour to that of each name; always right on the test pictures."""

    def __init__(self, names) -> None:
        super().__init__()
        self.colours = nn.Parameter(torch.tensor([COLOURS.get(name, (0, 0, 0)) for name in names]) / 255)
        self.drop = nn.Dropout()

    def forward(self, pixel_values):
        means = self.drop(pixel_values.mean((2, 3)))
        return -10 * (means[:, None] - self.colours).square().sum(-1)


@pytest.fixture
def split(tmp_path):
    """Three blue, two green, four red pictures."""
    write_folder(tmp_path / "root" / "test", {"blue": 3, "green": 2, "red": 4})
    return open_classification_data(tmp_path / "root").test


def evaluated(model, split, **options):
    return evaluate_classification(model, split, processor=mean_colour, **{"batch_size": 4, **options})


# ------------------------------------------------------------------------------------------------------------------------- metrics


def test_metrics_against_a_plain_computation(split):
    """A function of numpy arrays with fixed logits: one red picture is taken for green, one blue for red."""
    truth = split.labels
    logits = np.random.default_rng(0).normal(size=(9, 3)) * 0.1
    logits[np.arange(9), truth] += 3
    logits[[0, 8]] = [[0, 1, 5], [1, 5, 2]]
    given = iter(range(0, 9, 4))

    def function(pixels):
        assert np.asarray(pixels).shape[1:] == (3, 8, 8)
        start = next(given)
        return logits[start : start + 4]

    result = evaluated(function, split)
    assert (result.split, result.classes, result.count) == ("test", ("blue", "green", "red"), 9)
    assert result.confusion.tolist() == [[2, 0, 1], [0, 2, 0], [0, 1, 3]]
    assert result.top1 == pytest.approx(7 / 9)
    assert result.top5 == 1
    assert result.loss == pytest.approx(float(F.cross_entropy(torch.tensor(logits), torch.tensor(truth))), rel=1e-5)
    assert result.per_class == {"blue": pytest.approx(2 / 3), "green": 1, "red": 0.75}
    assert result.predictions.tolist() == [2, 0, 0, 1, 1, 2, 2, 2, 1]
    assert result.per_group == {} and result.unreadable == ()
    assert "top-1" in result.table() and "77.78" in result.table()
    weakest = result.table().split("weakest classes")[1].splitlines()
    assert weakest[1].split() == ["blue", "3", "66.7", "red", "(1)"]
    assert json.loads(json.dumps(result.to_dict()))["confusion"]["counts"] == [[2, 0, 1], [0, 2, 0], [0, 1, 3]]


def test_top5_is_apart_from_top1(split):
    order = torch.tensor([[0, 9, 8, 7, 6, 5, 4, 3, 2, 1.0]])  # best first: outputs 1, 2, 3, 4, 5; class "blue" (0) is last
    result = evaluated(lambda pixels: order.expand(len(pixels), -1), split, class_names=["blue", "red", *"abcdefg", "green"])
    assert result.top1 == pytest.approx(4 / 9)
    assert result.top5 == pytest.approx(4 / 9)
    result = evaluated(lambda pixels: order.expand(len(pixels), -1), split, class_names=["blue", "a", "red", *"bcdefg", "green"])
    assert (result.top1, result.top5) == (0, pytest.approx(4 / 9))
    assert result.confusion.tolist() == [[0, 0, 0, 3], [0, 0, 0, 2], [0, 0, 0, 4]]
    assert result.predicted_names[-1] == "(another class)"


def test_groups(split):
    grouped = dataclasses.replace(split, groups=("web", "shop", "web", "web", "web", "shop", "shop", "shop", "shop"))
    result = evaluated(lambda pixels: torch.tensor([[1.0, 0, 0]]).expand(len(pixels), -1), grouped)
    assert result.per_group == {"shop": pytest.approx(1 / 5), "web": pytest.approx(2 / 4)}
    assert result.to_dict()["per_group"]["shop"] == {"count": 5, "top1": pytest.approx(1 / 5)}
    assert "  shop" in result.table()


def test_a_class_without_pictures_has_no_accuracy(split):
    result = evaluated(Nearest(split.classes), split.select([0, 1]))
    assert result.per_class == {"blue": 1, "green": None, "red": None}
    assert "weakest" not in result.table()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_unreadable_pictures_are_reported_and_the_rest_is_counted(tmp_path, workers):
    write_folder(tmp_path / "root" / "test", {"blue": 3, "red": 3})
    (tmp_path / "root" / "test" / "blue" / "001.png").write_bytes(b"")
    split = open_classification_data(tmp_path / "root").test
    result = evaluated(Nearest(split.classes), split, workers=workers)
    assert (result.count, result.top1) == (5, 1)
    assert result.predictions.tolist() == [0, -1, 0, 1, 1, 1]
    assert len(result.unreadable) == 1 and "001.png is empty" in result.unreadable[0]
    assert "left out, unreadable: 1" in result.table()
    with pytest.raises(DataError, match=r"none of the 1 pictures.*001\.png is empty"):
        evaluated(Nearest(split.classes), split.select([1]))
    with pytest.raises(DataError, match="no pictures"):
        evaluated(Nearest(split.classes), split.select([]))


def test_pictures_of_different_sizes_without_a_crop(tmp_path):
    root = write_folder(tmp_path / "root" / "test", {"blue": 2, "red": 2})
    (root / "red" / "wide.png").write_bytes(picture("red", 7, size=(80, 33)))
    split = open_classification_data(tmp_path / "root").test

    def whole(image):
        return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255

    result = evaluate_classification(Nearest(split.classes), split, processor=whole, batch_size=5)
    assert (result.count, result.top1) == (5, 1)


# -------------------------------------------------------------------------------------------------------------------------- models


def test_a_module_is_left_as_it_was(split):
    model = Nearest(split.classes).train()
    model.drop.eval()
    assert evaluated(model, split).top1 == 1  # dropout is off meanwhile
    assert model.training and not model.drop.training
    model.drop.train()

    def broken(pixels):
        raise RuntimeError("stop")

    model.forward = broken
    with pytest.raises(RuntimeError, match="stop"):
        evaluated(model, split)
    assert model.training and model.drop.training


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_our_model_with_our_processor_equals_itself_by_hand(split, dtype):
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

    torch.manual_seed(0)
    names = ["red", "green", "blue"]  # another order than the data's
    config = MobileViTV2Config(width_multiplier=0.5, n_attn_blocks=[1, 1, 1], id2label=dict(enumerate(names)), label2id={})
    model = MobileViTV2ForImageClassification(config).eval()
    processor = MobileViTV2ImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    result = evaluate_classification(model, split, processor=processor, batch_size=4, dtype=dtype)
    pixels = torch.cat([processor(split.read(i), return_tensors="pt")["pixel_values"] for i in range(9)])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        logits = model(pixels).logits.float()
    ours = torch.tensor([2, 1, 0])[torch.tensor(split.labels)]
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, ours)), rel=1e-5 if dtype is None else 0.05)
    if dtype is None:
        assert result.predictions.tolist() == [{0: 2, 1: 1, 2: 0}[i] for i in logits.argmax(1).tolist()]


def test_a_model_of_half_precision_gets_its_own_type(split):
    model = Nearest(split.classes).to(torch.bfloat16)
    assert evaluated(model, split).top1 == 1


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: {"logits": x}, lambda x: x.numpy()])
def test_outputs_of_several_kinds(split, wrap):
    model = Nearest(split.classes).eval().requires_grad_(False)
    assert evaluated(lambda pixels: wrap(model(pixels)), split).top1 == 1


def test_an_output_that_is_no_table_of_logits(split):
    with pytest.raises(ConfigurationError, match=r"\(4, 3, 8, 8\)"):
        evaluated(lambda pixels: pixels, split)
    with pytest.raises(ConfigurationError, match=r"\(4, 2\).*expected are 3"):
        evaluated(lambda pixels: pixels.mean((2, 3))[:, :2], split)
    with pytest.raises(ConfigurationError, match=r"processor.*\(8, 8\)"):
        evaluate_classification(Nearest(split.classes), split, processor=lambda image: mean_colour(image)[0])
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        evaluated(Nearest(split.classes), split, batch_size=0)
    with pytest.raises(DataError, match=r"labels outside 0\.\.2"):
        evaluated(Nearest(split.classes), dataclasses.replace(split, labels=split.labels + 1))


def test_a_model_that_gives_nan_has_a_loss_of_nan(split):
    assert math.isnan(evaluated(lambda pixels: torch.full((len(pixels), 3), torch.nan), split).loss)


# --------------------------------------------------------------------------------------------------------------------- class names


def test_names_in_another_order_are_matched(split):
    names = ["red", "blue", "green"]
    model = Nearest(names)
    assert evaluated(model, split, class_names=names).top1 == 1
    assert evaluated(model, split).top1 == 0  # without names the order of the data counts
    model.config = MobileViTV2Config(width_multiplier=0.5, id2label=dict(enumerate(names)), label2id={})
    assert evaluated(model, split).top1 == 1


def test_a_model_with_more_classes_than_the_data(split):
    names = ["red", "white", "blue", "green", "black"]
    result = evaluated(Nearest(names), split, class_names=names)
    assert result.top1 == 1
    assert result.confusion.shape == (3, 4) and result.confusion[:, 3].sum() == 0


def test_a_model_with_fewer_classes_than_the_data(split, caplog):
    with caplog.at_level(logging.WARNING):
        result = evaluated(Nearest(["red", "blue"]), split, class_names=["red", "blue"])
    assert "no output for green" in caplog.text
    assert result.top1 == pytest.approx(7 / 9) and result.per_class["green"] == 0
    assert math.isfinite(result.loss)


def test_disjoint_names_are_refused(split):
    with pytest.raises(ConfigurationError, match=r"none of the data's classes.*tench, shark.*blue, green, red"):
        evaluated(Nearest(["tench", "shark"]), split, class_names=["tench", "shark"])


@pytest.mark.parametrize(
    ("classes", "names", "outputs"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["golf_ball", "Tench"], ["tench, Tinca tinca", "golf ball"], [1, 0]),
        (["Tinca-tinca"], ["tench, Tinca tinca", "golf ball"], [0]),
        (["cat", "CAT"], ["CAT", "cat"], [1, 0]),
        (["crane", "dog"], ["crane", "dog", "crane"], [-1, 1]),
        (["crane", "crane"], ["crane", "crane"], [0, 1]),
    ],
)
def test_matching(classes, names, outputs):
    assert match_classes(classes, names).tolist() == outputs


def test_output_names():
    model = nn.Module()
    assert output_names(model) is None
    model.config = MobileViTV2Config(num_labels=12)
    assert output_names(model) is None  # LABEL_0, ... are no names
    model.config = MobileViTV2Config(id2label={index: f"c{index}" for index in range(12)}, label2id={})
    assert output_names(model) == tuple(f"c{index}" for index in range(12))


# ---------------------------------------------------------------------------------------------------------------- confusion matrix


@pytest.fixture
def result(split):
    names = ["red", "white", "blue"]
    return evaluated(Nearest(names), split, class_names=names)


def test_confusion_matrix_as_csv(result, tmp_path):
    path = save_confusion_matrix(result, tmp_path / "new" / "confusion.csv")
    rows = list(csv.reader(path.read_text().splitlines()))
    assert rows[0] == ["true class", "blue", "green", "red", "(another class)"]
    assert rows[1] == ["blue", "3", "0", "0", "0"]
    assert [int(cell) for cell in rows[2][1:]] == result.confusion[1].tolist() and sum(map(int, rows[2][1:])) == 2


@pytest.mark.parametrize("classes", [3, 40, 260])
def test_confusion_matrix_as_a_picture(split, tmp_path, classes):
    pytest.importorskip("matplotlib")
    names = ["blue", "green", "red", *(f"$class_{i}" for i in range(3, classes))]
    wide = dataclasses.replace(split, classes=tuple(names))
    path = save_confusion_matrix(evaluated(Nearest(names), wide), tmp_path / "confusion.png")
    with Image.open(path) as drawn:
        assert 500 < drawn.width < 5000 and 400 < drawn.height < 5000
        assert len(drawn.convert("RGB").getcolors(1 << 24)) > 20  # not blank
    assert [entry.name for entry in tmp_path.iterdir() if "confusion" in entry.name] == ["confusion.png"]


def test_confusion_matrix_of_an_unknown_kind(result, tmp_path):
    with pytest.raises(ConfigurationError, match=r"\.png.*not '\.docx'"):
        save_confusion_matrix(result, tmp_path / "confusion.docx")


def test_without_matplotlib_the_extra_is_named(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency, match=r"pip install mobilevitv2\[train\]"):
        save_confusion_matrix(result, tmp_path / "confusion.png")
    assert not (tmp_path / "confusion.png").exists()


def test_evaluating_is_silent_where_no_terminal_is(split, capfd):
    evaluated(Nearest(split.classes), split, progress=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_and_back(split):
    model = Nearest(split.classes)
    assert evaluated(model, split, device="cuda", dtype=torch.float16, workers=1).top1 == 1
    assert model.colours.device.type == "cpu"
