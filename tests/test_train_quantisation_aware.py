"""Quantisation-aware training: it rounds what the int8 file rounds, learns through it, and leaves an ordinary model."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from classification_data import write_folder
from test_export_onnx import model_of
from torch import Tensor
from training_data import write_boxes, write_masks

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.contract import load_model
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.export.formats import get_format
from mobilevitv2.export.metadata import describe
from mobilevitv2.export.program import build_program
from mobilevitv2.export.quantise import quantised_graph
from mobilevitv2.export.samples import made_picture
from mobilevitv2.runtime.with_onnxruntime import open_bytes
from mobilevitv2.train.classify import ClassificationTask, train_classifier
from mobilevitv2.train.quantisation_aware import BareNorm, RoundedAttention, RoundedUnit, quantisation_aware, without_rounding
from mobilevitv2.train.recipe import ClassificationRecipe, load_recipe, recipe_of
from mobilevitv2.train.rounding import Rounded, RoundedRows
from mobilevitv2.train.run import _calibration

SHORT = {
    "epochs": "1",
    "batch_size": "8",
    "image_size": "32",
    "workers": "0",
    "eval_every": "1",
    "save_every": "1",
    "learning_rate": "1e-3",
}


def pictures(count: int = 8, side: int = 64) -> list[Tensor]:
    drawn = (np.asarray(made_picture(seed).convert("RGB").resize((side, side))) for seed in range(count))
    return [torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255 for array in drawn]


def share(given: Tensor, truth: Tensor) -> float:
    """The error's share of the truth's spread."""
    return float((given - truth).square().mean().sqrt() / truth.std())


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
@pytest.mark.parametrize("dialect", ["openvino", "onnxruntime"])
def test_it_rounds_a_little_and_leaves_the_model_that_it_began_with(task: str, dialect: str):
    plain = model_of(task)
    images = torch.stack(pictures(2))
    rounding = quantisation_aware(copy.deepcopy(plain), pictures(), dialect)
    with torch.no_grad():
        truth, given, again = (each(pixel_values=images).logits for each in (plain, rounding, without_rounding(rounding)))
    assert 0 < share(given, truth) < 0.5
    torch.testing.assert_close(again, truth)
    assert set(rounding.state_dict()) == set(plain.state_dict())


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
@pytest.mark.parametrize("dialect", ["openvino", "onnxruntime"])
def test_it_answers_as_the_int8_file(dialect: str):
    plain, processor = load_model("mobilevitv2-0.75-objects112")  # at random weights roundings cancel
    images = torch.stack(pictures(12))
    fmt = get_format("onnx")
    options = {"size": (64, 64), "dynamic": ("batch",), "preprocessing": False, "postprocessing": False, "suppression": None}
    metadata = describe(plain, processor, fmt, precision="int8", source="", licence=None, **options)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    graph = quantised_graph(build_program(plain, metadata, layout="NCHW"), pixels, dialect, threads=1)
    file = open_bytes(graph.content, where="graph", threads=1)
    answers = torch.cat([torch.from_numpy(file.run(image[None].numpy())["logits"]) for image in images])
    rounding = quantisation_aware(copy.deepcopy(plain), list(images), dialect)
    with torch.no_grad():
        truth, given = plain(pixel_values=images).logits, rounding(pixel_values=images).logits
    errors = torch.stack([(given - truth).flatten(), (answers - truth).flatten()])
    assert torch.corrcoef(errors)[0, 1] > 0.4  # unlike rounding gives unlike errors; a grid that differs by a step, others too


def test_the_key_of_attention_and_the_classifier_stay_float():
    model = quantisation_aware(model_of("classify"), pictures(), "openvino")
    attention = next(module for module in model.modules() if isinstance(module, RoundedAttention))
    assert len(attention.folded()[0]) == attention.dim + 1  # value and query
    assert type(model.classifier) is torch.nn.Linear
    assert any(isinstance(module, BareNorm) for module in model.modules())


def test_batch_norms_keep_their_statistics_and_all_parameters_learn():
    model = quantisation_aware(model_of("classify"), pictures(), "onnxruntime").train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    model(pixel_values=torch.stack(pictures(4))).logits.square().sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if "running" in name)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_rounded_rows_keep_the_mean_of_a_channel():
    torch.manual_seed(0)
    weight, bias, means = torch.randn(4, 16, 1, 1), torch.zeros(4), torch.rand(16) + 1
    rows = RoundedRows()
    rows.settle(weight, means)
    kept, shift = rows(weight, bias)
    assert 0 < float((kept - weight).abs().max()) < 0.1
    assert len(torch.unique(kept[0] / (kept[0].abs().max() / 63))) <= 16
    torch.testing.assert_close(kept[:, :, 0, 0] @ means + shift, weight[:, :, 0, 0] @ means)


def test_values_beyond_the_grid_have_no_gradient():
    place = Rounded()
    place.looking = True
    place(torch.linspace(0, 1, 1000)[None])
    place.settle()
    x = torch.tensor([0.5, 3.0], requires_grad=True)
    place(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


def test_a_run_leaves_an_ordinary_model(tmp_path: Path):
    data = write_folder(tmp_path / "data", {"train/red": 8, "train/blue": 8, "test/red": 2, "test/blue": 2})
    start = tmp_path / "start"
    model_of("classify").save_pretrained(start)
    settings = {**SHORT, "eval_resize": "36", "eval_crop": "32"}
    for extra in ({}, {"activation": "hardswish", "quantise_for": "onnxruntime"}):
        output = tmp_path / f"run{len(extra)}"
        result = train_classifier(
            data, model=start, recipe="quantisation-aware", output=output, overrides={**settings, **extra}, check=False
        )
        assert result.best is not None
        model = MobileViTV2ForImageClassification.from_pretrained(result.best)
        assert model.config.hidden_act == extra.get("activation", "swish")
        assert not any(isinstance(module, RoundedUnit) for module in model.modules())
        saved = load_recipe(output / "recipe.yaml")
        assert saved.quantise_for == extra.get("quantise_for", "openvino")


def test_grids_are_found_without_pictures_that_cannot_be_read(tmp_path: Path):
    data = write_folder(tmp_path / "data", {"train/red": 4, "train/blue": 4})
    files = sorted(tmp_path.glob("data/train/*/*"))
    recipe = recipe_of(
        ClassificationRecipe, "quantisation-aware", {"eval_resize": "36", "eval_crop": "32", "validation_fraction": "0"}
    )
    task = ClassificationTask(recipe)
    files[0].write_bytes(b"no picture")
    assert [each.shape for each in _calibration(task, task.open(data))] == 7 * [(3, 32, 32)]
    for file in files:
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="can be read"):
        _calibration(task, task.open(data))


def test_a_stopped_run_goes_on(tmp_path: Path):
    data = write_folder(tmp_path / "data", {"train/red": 8, "train/blue": 8})
    settings = {**SHORT, "eval_resize": "36", "eval_crop": "32", "width": "0.5"}
    first = {"recipe": "quantisation-aware", "output": tmp_path / "run", "check": False}
    train_classifier(data, overrides=settings, **first)
    (tmp_path / "run" / "result.json").unlink()
    result = train_classifier(data, overrides={**settings, "epochs": "2"}, resume=True, **first)
    assert result.steps == 4


def test_segmenters_and_detectors_learn_so_by_their_own_recipes(tmp_path: Path):
    from mobilevitv2.train.detect import train_detector
    from mobilevitv2.train.segment import train_segmenter

    common = {**SHORT, "quantise_for": "openvino", "width": "0.5", "batch_size": "2", "cache": "none"}
    masks = write_masks(tmp_path / "masks", {"train": 4, "val": 2})
    small = {"eval_size": "32", "aspp_out_channels": "16", "short_side": "32,40"}
    found = train_segmenter(masks, recipe="segment-small", output=tmp_path / "s", overrides={**common, **small}, check=False)
    assert "miou" in found.metrics
    boxes = write_boxes(tmp_path / "boxes", {"train": 4, "val": 2})
    found = train_detector(
        boxes, recipe="detect-small", output=tmp_path / "d", overrides={**common, "image_size": "64"}, check=False
    )
    assert "ap" in found.metrics


def test_a_foreign_module_is_refused():
    with pytest.raises(ConfigurationError, match="quantise_for=openvino takes a model of this package, not a Linear"):
        quantisation_aware(torch.nn.Linear(2, 2), pictures(2), "openvino")


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ConfigurationError, match="quantise_for='tensorrt' is unknown; use one of none, openvino, onnxruntime"):
        load_recipe("quantisation-aware", {"quantise_for": "tensorrt"})


def test_an_activation_with_a_slip_is_refused_before_anything_is_read():
    with pytest.raises(ConfigurationError, match="activation='hardswsh' is unknown; use one of swish, silu, hardswish, relu"):
        load_recipe("quantisation-aware", {"activation": "hardswsh"})
    assert load_recipe("quantisation-aware", {"activation": "hardswish"}).activation == "hardswish"
