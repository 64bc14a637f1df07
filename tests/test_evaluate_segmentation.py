from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from mobilevitv2.cli import main
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.errors import ConfigurationError, DataError, ImageError
from mobilevitv2.evaluate.class_names import classes_of_outputs
from mobilevitv2.evaluate.confusion import save_confusion_matrix
from mobilevitv2.evaluate.grids import save_mask_grid
from mobilevitv2.evaluate.segmentation import (
    SegmentationCounter,
    SegmentationResult,
    evaluate_segmentation,
    most_probable,
    segmentation_scores,
    worst_pictures,
)
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.segmentation import upsample

CLASSES = ("background", "red", "green")
COLOURS = np.array([(20, 20, 20), (220, 30, 30), (30, 220, 30)], dtype=np.uint8)
SIZE = 32


@dataclasses.dataclass
class Masked:
    """A split of pictures that show their masks in colour."""

    masks: list
    classes: tuple = CLASSES
    name: str = "validation"
    broken: tuple = ()

    def __len__(self) -> int:
        return len(self.masks)

    def describe(self, index: int) -> str:
        return f"picture{index}.png"

    def read(self, index: int) -> Image.Image:
        if index in self.broken:
            raise ImageError(f"{self.describe(index)} is empty (0 bytes)")
        return Image.fromarray(COLOURS[np.where(self.masks[index] < 3, self.masks[index], 0)])

    def read_mask(self, index: int) -> np.ndarray:
        if self.masks[index].shape[0] == 1:
            raise ImageError(f"mask{index}.png is 7 x 9 but its picture 8 x 9")
        return self.masks[index]


class ByColour(nn.Module):
    """Logits (n, classes, h / 4, w / 4) by the distance of the colours; exact on blocks of 4 x 4 pixels."""

    def __init__(self, names=CLASSES, order=None) -> None:
        super().__init__()
        colours = torch.from_numpy(COLOURS).float() / 255
        self.colours = nn.Parameter(colours[list(range(3)) if order is None else order])
        self.config = MobileViTV2Config(id2label=dict(enumerate(names)), label2id={})
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        small = F.avg_pool2d(pixel_values, 4)
        return -20 * (small[:, None] - self.colours[None, :, :, None, None]).square().sum(2)


def processor(**options):
    return MobileViTV2ImageProcessor(size={"height": SIZE, "width": SIZE}, do_center_crop=False, resample=0, **options)


def halves(height=SIZE, width=SIZE, left=0, right=1):
    mask = np.full((height, width), left, dtype=np.uint8)
    mask[:, width // 2 :] = right
    return mask


@pytest.fixture
def split():
    return Masked([halves(), halves(left=1, right=2), halves(48, 64, 2, 0)])


def evaluated(model, split, **options):
    return evaluate_segmentation(model, split, processor=processor(), **{"batch_size": 2, **options})


# ------------------------------------------------------------------------------------------------------------------- the counting


def plain_counts(predicted, truth, classes, ignored):
    counts = np.zeros((classes, classes), dtype=int)
    for found, true in zip(predicted.ravel(), truth.ravel(), strict=True):
        if true != ignored:
            counts[true, found] += 1
    return counts


def plain_iou(predicted, truth, label, ignored):
    seen = truth != ignored
    both = ((predicted == label) & (truth == label) & seen).sum()
    either = (((predicted == label) | (truth == label)) & seen).sum()
    return both / either if either else None


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(1, 7),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    ignored=st.sampled_from([255, -1, 100]),
    seed=st.integers(0, 10_000),
)
def test_one_matrix_against_plain_counts(classes, shape, ignored, seed):
    random = np.random.default_rng(seed)
    predicted, truth = random.integers(0, classes, shape), random.integers(0, classes, shape)
    truth[random.random(shape) < 0.2] = ignored
    counter = SegmentationCounter(classes, ignore_index=ignored)
    for one, other in zip(predicted, truth, strict=True):  # picture by picture, as in a loop
        added = counter.add(torch.from_numpy(one).to(torch.uint8), torch.from_numpy(other))
        assert added.numpy().tolist() == plain_counts(one, other, classes, ignored).tolist()
    assert counter.counts.numpy().tolist() == plain_counts(predicted, truth, classes, ignored).tolist()
    whole = SegmentationCounter(classes, ignore_index=ignored)
    whole.add(torch.from_numpy(predicted), torch.from_numpy(truth))
    assert whole.counts.equal(counter.counts)

    result = SegmentationResult.of_counts(
        counter.counts.numpy(), split="test", classes=[f"c{i}" for i in range(classes)], count=len(truth)
    )
    expected = [plain_iou(predicted, truth, label, ignored) for label in range(classes)]
    assert list(result.per_class_iou.values()) == pytest.approx(expected)
    known = [iou for iou in expected if iou is not None]
    seen = truth != ignored
    if known:
        assert result.miou == pytest.approx(np.mean(known))
        assert result.pixel_accuracy == pytest.approx((predicted == truth)[seen].mean())
        recalls = [(predicted == label)[truth == label].mean() for label in range(classes) if (truth == label).any()]
        assert result.mean_accuracy == pytest.approx(np.mean(recalls))
    else:
        assert math.isnan(result.miou) and math.isnan(result.pixel_accuracy)


def test_classes_without_pixels_are_left_out_of_the_mean():
    counter = SegmentationCounter(4)
    truth = torch.tensor([[0, 0, 1, 255]])
    counter.add(torch.tensor([[0, 0, 2, 3]]), truth)  # 2 is nowhere in the truth, but predicted; 3 only where it is ignored
    scores = counter.scores()
    np.testing.assert_array_equal(scores.iou, [1, 0, 0, np.nan])
    np.testing.assert_array_equal(scores.accuracy, [1, 0, np.nan, np.nan])
    assert (scores.miou, scores.mean_accuracy, scores.pixel_accuracy) == (pytest.approx(1 / 3), 0.5, pytest.approx(2 / 3))


def test_an_all_ignored_mask_adds_nothing():
    counter = SegmentationCounter(3)
    assert counter.add(torch.zeros(5, 5, dtype=torch.int64), torch.full((5, 5), 255)).sum() == 0
    assert math.isnan(counter.scores().miou)


def test_labels_out_of_range_are_refused_with_their_values():
    counter = SegmentationCounter(3)
    with pytest.raises(DataError, match=r"class numbers -2, 3, 17; 3 classes have 0 to 2, 255 \(ignored\)"):
        counter.add(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 3, 17], [-2, 255, 3]]))
    with pytest.raises(ConfigurationError, match="prediction has class numbers 3"):
        counter.add(torch.full((1, 1), 3), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match=r"\(2, 3\).*\(3, 2\)"):
        counter.add(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ConfigurationError, match="num_classes=0"):
        SegmentationCounter(0)
    assert counter.counts.sum() == 0


# ---------------------------------------------------------------------------------------------------------------------- upsampling


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 57), (200, 3)])
def test_the_most_probable_class_is_that_of_the_upsampled_logits(size, monkeypatch):
    monkeypatch.setattr("mobilevitv2.class_maps.STRIP_ELEMENTS", 500)  # many strips
    logits = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
    found = most_probable([logits], size)
    whole = upsample(logits[None], size)[0]
    assert found.shape == size
    assert (found == whole.argmax(0)).float().mean() > 0.999
    other = torch.randn(5, 4, 9, generator=torch.Generator().manual_seed(1))
    averaged = upsample(logits[None], size)[0].softmax(0) + upsample(other[None], size)[0].softmax(0)
    assert (most_probable([logits, other], size) == averaged.argmax(0)).float().mean() > 0.999


# ------------------------------------------------------------------------------------------------------------------ the evaluation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_model_that_sees_colours_is_right(split, workers):
    model = ByColour()
    result = evaluated(model, split, workers=workers, keep=1)
    assert (result.split, result.classes, result.count) == ("validation", CLASSES, 3)
    assert result.miou > 0.9 and result.pixel_accuracy > 0.95  # at the border, the interpolation of small maps is off
    assert result.confusion.sum() == 2 * SIZE * SIZE + 48 * 64
    assert set(model.seen) == {(2, 3, SIZE, SIZE), (1, 3, SIZE, SIZE)}
    assert set(result.masks) == {0, worst_pictures(result.picture_miou, 1)[0]}
    assert model.training
    assert "mIoU" in result.table() and "green" in result.table()
    assert json.loads(json.dumps(result.to_dict()))["confusion"]["pixels"] == result.confusion.tolist()


def test_the_processor_does_not_crop(split):
    cropping = MobileViTV2ImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": 16, "width": 16}, resample=0)
    model = ByColour()
    result = evaluate_segmentation(model, split, processor=cropping)
    assert result.pixel_accuracy > 0.95
    assert {shape[2:] for shape in model.seen} == {(32, 32), (32, 42)}


def test_scales_and_mirrors_are_averaged(split):
    model = ByColour()
    result = evaluated(model, split, scales=(1.0, 2.0), flip=True)
    assert {shape[2:] for shape in model.seen} == {(32, 32), (64, 64)}
    assert len(model.seen) == 2 * 4  # two batches, each at two scales, twice
    assert result.pixel_accuracy > 0.95

    def one_sided(pixels):  # sees red at the left of whatever it gets
        logits = torch.zeros(len(pixels), 3, 4, 4)
        logits[:, 1, :, :2] = 1.0
        return logits

    mirrored = evaluate_segmentation(one_sided, Masked([halves()]), processor=processor(), flip=True)
    assert mirrored.per_class_accuracy == {"background": pytest.approx(0, abs=0.1), "red": pytest.approx(1, abs=0.1), "green": None}
    with pytest.raises(ConfigurationError, match="scales"):
        evaluated(model, split, scales=(0.0,))


def test_plain_functions_are_scaled_too(split):
    def prepare(image):
        return torch.from_numpy(np.asarray(image.resize((32, 32), 0), dtype=np.float32)).permute(2, 0, 1) / 255

    model = ByColour()
    result = evaluate_segmentation(model, split, processor=prepare, scales=(2.0,))
    assert {shape[2:] for shape in model.seen} == {(64, 64)}
    assert result.pixel_accuracy > 0.9


def test_classes_are_matched_by_name(split):
    names = ("green", "sky", "Background", "red")
    model = ByColour(names, order=[2, 1, 0, 1])
    with torch.no_grad():
        model.colours[1] = 5.0  # never sky
    result = evaluated(model, split)
    assert result.pixel_accuracy > 0.95 and result.confusion.shape == (3, 3)
    with torch.no_grad():
        model.colours[[1, 3]] = model.colours[[3, 1]]  # now sky in place of red
    result = evaluated(model, split)
    assert result.confusion.shape == (3, 4) and result.predicted_names[-1] == "(another class)"
    assert result.per_class_iou["red"] == 0 and result.per_class_iou["green"] > 0.9
    assert classes_of_outputs(CLASSES, names).tolist() == [2, 3, 0, 1]
    assert classes_of_outputs(CLASSES, None).tolist() == [0, 1, 2]


def test_bad_masks(split):
    model = ByColour()
    masks = [*split.masks, np.full((9, 8), 255, dtype=np.uint8)]
    result = evaluated(model, Masked(masks))
    assert result.count == 4 and result.picture_miou[3] is None  # nothing labelled is not an error
    with pytest.raises(DataError, match=r"no mask of 'validation' has a labelled pixel.*picture0\.png"):
        evaluated(model, Masked(masks[3:]))
    with pytest.raises(DataError, match=r"picture1\.png: the mask has class numbers 7; 3 classes"):
        evaluated(model, Masked([masks[0], np.where(masks[1] == 2, 7, masks[1])]))
    result = evaluated(model, Masked([*split.masks, np.zeros((1, 8), dtype=np.uint8)], broken=(0,)))
    assert result.count == 2 and len(result.unreadable) == 2
    assert "left out, unreadable: 2" in result.table() and "mask3.png is 7 x 9 but its picture" in result.table()
    with pytest.raises(DataError, match=r"none of the 1 pictures.*picture0\.png is empty"):
        evaluated(model, Masked(split.masks[:1], broken=(0,)))
    with pytest.raises(DataError, match="no pictures"):
        evaluated(model, Masked([]))


def test_outputs_that_do_not_fit(split):
    with pytest.raises(ConfigurationError, match=r"logits of shape \(2, 5, 2, 2\).*3 outputs"):
        evaluated(lambda pixels: torch.zeros(len(pixels), 5, 2, 2), split)
    with pytest.raises(ConfigurationError, match=r"shape \(2, 5\).*\(pictures, classes, height, width\)"):
        evaluated(lambda pixels: torch.zeros(len(pixels), 5), split)


# ------------------------------------------------------------------------------------------------------------------------ pictures


def test_confusion_matrix_of_pixels(split, tmp_path):
    pytest.importorskip("matplotlib")
    result = evaluated(ByColour(), split)
    with Image.open(save_confusion_matrix(result, tmp_path / "confusion.png")) as drawn:
        assert drawn.width > 300
    rows = list(csv.reader(save_confusion_matrix(result, tmp_path / "confusion.csv").read_text().splitlines()))
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == result.confusion.tolist()


def test_grid_of_masks(split, tmp_path):
    masks = [*split.masks]
    masks[0] = masks[0].copy()
    masks[0][:4] = 255
    split = Masked(masks)
    result = evaluated(ByColour(), split, keep=8)
    with Image.open(save_mask_grid(result, split, tmp_path / "grid.png")) as drawn:
        assert drawn.width > 3 * 320 and drawn.height > 3 * 320
        seen = {colour for _, colour in drawn.getcolors(1 << 24)}
    assert len(seen) > 100
    assert (128, 128, 128) in seen  # the ignored ones' patch in the legend
    with Image.open(save_mask_grid(result, split, tmp_path / "one.webp", indices=[2])) as drawn:
        assert drawn.height < 400
    with pytest.raises(ConfigurationError, match=r"\[7\].*keep=8"):
        save_mask_grid(result, split, tmp_path / "grid.png", indices=[7])
    with pytest.raises(ConfigurationError, match=r"not '\.txt'"):
        save_mask_grid(result, split, tmp_path / "grid.txt")


def test_scores_of_a_perfect_matrix():
    scores = segmentation_scores(np.diag([5, 6]))
    assert (scores.miou, scores.pixel_accuracy, scores.mean_accuracy) == (1, 1, 1)


# -------------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

    folder = tmp_path_factory.mktemp("segmenter")
    names = dict(enumerate(CLASSES))
    config = MobileViTV2Config(
        width_multiplier=0.5, n_attn_blocks=[1, 1, 1], aspp_out_channels=16, id2label=names, label2id={}, image_size=64
    )
    MobileViTV2ForSemanticSegmentation(config).save_pretrained(folder)
    MobileViTV2ImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(split, tmp_path):
    root = tmp_path / "data" / "val"
    for index, mask in enumerate(split.masks):
        for name, picture in (("images", split.read(index)), ("masks", Image.fromarray(mask))):
            (root / name).mkdir(parents=True, exist_ok=True)
            picture.save(root / name / f"{index}.png")
    (tmp_path / "data" / "id2label.json").write_text(json.dumps(dict(enumerate(CLASSES))))
    return str(tmp_path / "data")


def test_the_command_tells_the_task_from_the_model(segmenter, folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    words = [
        "evaluate",
        folder,
        "--model",
        segmenter,
        "--device",
        "cpu",
        "--scales",
        "1,0.5",
        "--flip",
        "--json",
        "--save",
        str(out),
    ]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["count"] == 3 and 0 <= result["pixel_accuracy"] <= 1
    assert {entry.name for entry in out.iterdir()} == {
        "evaluation.json", "confusion.png", "confusion.csv", "classes.csv", "first.png", "worst.png",
    }  # fmt: skip
    assert main(["evaluate", folder, "--model", segmenter, "--task", "segment", "--device", "cpu"]) == 0
    assert "mIoU %" in capsys.readouterr().out
    assert main(["evaluate", folder, "--model", segmenter, "--scales", "large"]) == 2
    assert "--scales large" in capsys.readouterr().err
    assert main(["evaluate", folder, "--model", segmenter, "--task", "detect"]) == 1
