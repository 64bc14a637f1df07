"""Quantised files: near the float model, small, honest about their loss, and clear about bad calibration data."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_programs import program_of
from PIL import Image
from test_export_onnx import model_of

from mobilevitv2.cli import main
from mobilevitv2.errors import ConfigurationError, DataError, WeightsError
from mobilevitv2.export import export
from mobilevitv2.export.comparing import vanished
from mobilevitv2.export.graphs import graph_of
from mobilevitv2.export.quantise.arithmetic import best_grid, grid_over, store_weights
from mobilevitv2.export.quantise.calibration import Calibration, read_calibration
from mobilevitv2.export.quantise.matching import matched
from mobilevitv2.export.quantise.observing import observe, open_graph
from mobilevitv2.export.quantise.plan import make_plan, part_of, silu_functions
from mobilevitv2.export.quantise.quantising import quantised_graph
from mobilevitv2.export.quantise.silu import Form, fitted_forms, silu_inputs, with_forms
from mobilevitv2.export.samples import _photographs, made_picture
from mobilevitv2.graph.builder import Builder
from mobilevitv2.runtime import open_model
from mobilevitv2.runtime.metadata import PictureContract
from mobilevitv2.runtime.with_onnxruntime import open_bytes

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")

PICTURES = [made_picture(seed) for seed in range(6)]
CONTRACT = PictureContract(height=32, width=48, resize={"height": 32, "width": 48})
SUFFIXES = [pytest.param(".onnx", marks=needs_onnx), pytest.param(".xml", marks=needs_openvino)]


def quantised(task: str, path: Path, *, precision: str = "int8", **settings: Any) -> Any:
    settings = {"size": (64, 64), "calibration": PICTURES if precision == "int8" else None, "postprocessing": False, **settings}
    return export(model_of(task), path, precision=precision, **settings)


# ---- files -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_an_int8_file_answers_nearly_as_pytorch(task: str, suffix: str, tmp_path: Path):
    report = quantised(task, tmp_path / f"model{suffix}")
    assert report.verification.comparison.relative < 0.2
    told = json.loads((tmp_path / f"model{suffix}.report.json").read_text())["quantisation"]
    assert told["integer_convolutions"] > 0.8 * told["convolutions"]
    assert (told["calibration_pictures"], told["skipped"], told["loss"]["pictures"]) == (6, [], 6)
    assert told["loss"]["agreement"] > 0.8
    assert "stay the same" in report.table()
    assert open_model(tmp_path / f"model{suffix}").metadata.precision == "int8"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_alone_need_no_pictures_and_lose_less(suffix: str, tmp_path: Path):
    report = quantised("classify", tmp_path / f"model{suffix}", precision="int8-weights")
    assert report.verification.comparison.relative < 0.1
    assert report.quantisation is not None
    assert report.quantisation["values"] == "float"


@needs_onnx
@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_weights_take_a_quarter_of_the_room(precision: str, tmp_path: Path):
    full = export(model_of("classify"), tmp_path / "full.onnx", size=(64, 64))
    small = quantised("classify", tmp_path / "small.onnx", precision=precision)
    assert small.size < 0.45 * full.size  # names and nodes of a narrow model weigh as well


@needs_onnx
def test_preprocessing_and_postprocessing_stay_inside(tmp_path: Path):
    quantised("classify", tmp_path / "model.onnx", preprocessing=True, postprocessing=True)
    prediction = open_model(tmp_path / "model.onnx").predict(PICTURES[0])
    assert 0 < prediction.labels[0].probability <= 1


@needs_onnx
def test_seven_bits_stay_below_the_overflow_of_old_processors(tmp_path: Path):
    quantised("classify", tmp_path / "model.onnx", calibration=Calibration(data=PICTURES, weight_bits=7))
    stored = store_weights(np.random.default_rng(0).normal(size=(8, 4, 3, 3)), bits=7)
    assert np.abs(stored.values).max() <= 63


@needs_onnx
def test_a_file_that_quantisation_spoils_is_removed_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mobilevitv2.export.quantise.quantising.best_grid", lambda *_: grid_over(0.0, 0.01))
    with pytest.raises(WeightsError, match="take int8-weights"):
        quantised("classify", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


# ---- calibration data ------------------------------------------------------------------------------------------------------------


def test_int8_without_data_is_refused_before_any_work(tmp_path: Path):
    if find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    with pytest.raises(ConfigurationError, match="--calibrate DATA"):
        quantised("classify", tmp_path / "model.onnx", calibration=None)
    with pytest.raises(ConfigurationError, match="measures no ranges"):
        quantised("classify", tmp_path / "model.onnx", precision="int8-weights", calibration=PICTURES)


def test_unreadable_pictures_are_skipped_and_named(tmp_path: Path):
    for index, picture in enumerate(PICTURES[:3]):
        picture.save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    found = read_calibration(Calibration(data=tmp_path), CONTRACT, task="classify")
    assert found.ranges.shape == (3, 32, 48, 3)
    assert len(found.skipped) == 1
    assert "broken.png" in found.skipped[0]
    assert "broken.png" in found.note
    assert "3 pictures only" in found.note


@needs_onnx
def test_an_unreadable_picture_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model_of("classify").save_pretrained(tmp_path / "mine")
    (tmp_path / "pictures").mkdir()
    PICTURES[0].save(tmp_path / "pictures" / "0.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    words = ["export", str(tmp_path / "mine"), str(tmp_path / "model.onnx"), "--precision", "int8", "--size", "64"]
    assert main([*words, "--calibrate", str(tmp_path / "pictures")]) == 0
    shown = capsys.readouterr()
    lines = [line for line in (shown.out + shown.err).splitlines() if "broken.png" in line or "could not be read" in line]
    assert len(lines) == 1
    assert "1 calibration picture could not be read and was skipped" in lines[0]
    assert "ranges come from 1 picture only" in lines[0]


@needs_onnx
def test_agreement_is_not_taken_for_accuracy(tmp_path: Path):
    report = quantised("classify", tmp_path / "model.onnx", precision="int8-weights")
    found = report.verification
    assert found.made == found.to_dict()["made"] == 8 - len(_photographs()) > 0
    told = f"held against PyTorch, not against right answers: no accuracy; {found.made} of the 8 pictures are made of noise"
    assert told in report.table()
    for equal, decided, wanted in (
        (8, 8, "8 of 8 top-1 labels as PyTorch's\n"),
        (7, 8, "7 of 8 top-1 labels as PyTorch's (87.50 %); 8 counting those that nearly tie in PyTorch itself\n"),
        (7, 7, "7 of 8 top-1 labels as PyTorch's (87.50 %)\n"),
    ):
        comparison = replace(found.comparison, count=8, agreement=equal / 8, decided=decided / 8)
        assert wanted in replace(report, verification=replace(found, comparison=comparison)).table()
    assert "noise" not in replace(report, verification=replace(found, made=0)).table()


def test_data_without_a_readable_picture_are_refused(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(
        ConfigurationError, match=r"the one calibration picture cannot be read; pass others as calibration \(--calibrate DATA\)"
    ):
        read_calibration(Calibration(data=tmp_path), CONTRACT, task="classify")
    (tmp_path / "broken.png").unlink()
    with pytest.raises(ConfigurationError, match="no picture"):
        read_calibration(Calibration(data=tmp_path), CONTRACT, task="classify")
    with pytest.raises(DataError, match="does not exist"):
        read_calibration(Calibration(data=tmp_path / "nowhere"), CONTRACT, task="classify")
    with pytest.raises(ConfigurationError, match=r"calibration \(--calibrate\) is empty"):
        read_calibration(Calibration(data=[]), CONTRACT, task="classify")
    with pytest.raises(ConfigurationError, match="pictures=0"):
        Calibration(data=[], pictures=0)


def test_some_pictures_are_kept_from_the_ranges():
    pictures = [Image.new("RGB", (48, 32), (index, 0, 0)) for index in range(40)]
    found = read_calibration(Calibration(data=pictures, pictures=32), CONTRACT, task="classify")
    ranges, held = ({int(each[0, 0, 0]) for each in pixels} for pixels in (found.ranges, found.held))
    assert (len(ranges), len(held), found.found) == (24, 8, 40)
    assert not ranges & held


def test_masks_of_a_data_set_are_not_taken_for_pictures(shared_data: Path):
    found = read_calibration(Calibration(data=shared_data / "pets", pictures=4), CONTRACT, task="segment")
    assert found.found in (733, 867)  # the split for training, or all; not twice as many


# ---- arithmetic ------------------------------------------------------------------------------------------------------------------


def test_zero_and_pixels_lie_on_the_grid():
    pixels = np.arange(256) / 255
    assert np.allclose(best_grid(0.0, 1.0, pixels).round(pixels), pixels, atol=1e-6)
    for low, high in ((-0.28, 7.0), (0.5, 3.0), (-2.0, -1.0), (0.0, 0.0)):
        grid = grid_over(low, high)
        assert grid.round(np.zeros(1))[0] == 0
        assert 0 <= grid.zero <= 255


def test_outliers_are_clipped_where_that_costs_less():
    values = np.append(np.random.default_rng(0).normal(size=20_000), 8.0)
    best, full = best_grid(values.min(), values.max(), values), grid_over(values.min(), values.max())
    assert best.scale < full.scale
    assert np.square(best.round(values) - values).mean() < np.square(full.round(values) - values).mean()


def test_each_channel_has_its_own_scale():
    weight = np.random.default_rng(0).normal(size=(3, 4, 1, 1)) * np.array([1e-3, 1.0, 0.0]).reshape(3, 1, 1, 1)
    stored = store_weights(weight)
    assert stored.values.dtype == np.int8
    assert np.allclose(stored.real, weight, atol=0.01 * np.abs(weight).max(axis=(1, 2, 3), keepdims=True) + 1e-12)


def test_a_hard_swish_stands_for_silu_in_large_maps_and_gelu_where_it_is_far_off():
    x = np.random.default_rng(0).normal(size=5000)
    places = {"wide": (3 * x, 4000), "negative": (x - 2, 4000), "small map": (3 * x, 100)}
    forms = fitted_forms(places)
    assert {name: form.function for name, form in forms.items()} == {"wide": "hardswish", "negative": "gelu", "small map": "gelu"}
    assert 1.05 < forms["wide"].factor < 1.25
    assert 0.55 < forms["negative"].factor < 0.65
    assert {form.function for form in fitted_forms(places, ["gelu"]).values()} == {"gelu"}


def test_detectors_take_the_nearest_function_alone():
    assert silu_functions("openvino", "classify") == ("hardswish", "gelu")
    assert silu_functions("openvino", "detect") == ("gelu",)
    assert silu_functions("onnxruntime", "classify") == ()


@needs_onnx
@pytest.mark.parametrize(("form", "limit"), [(Form("gelu", 0.5875), 0.036), (Form("hardswish", 1.15), 0.18)])
def test_the_graph_with_another_function_answers_nearly_the_same(form: Form, limit: float):
    builder = Builder()
    builder.input("image", "float32", (1, 1, 1, "n"), "")
    weight, bias = builder.weight("w", np.ones((1, 1, 1, 1), np.float32)), builder.weight("b", np.zeros(1, np.float32))
    x = builder.add("Conv", "image", weight, bias)
    builder.output(builder.add("Mul", x, builder.add("Sigmoid", x)), "y", "float32", (1, 1, 1, "n"), "")
    changed = with_forms(builder, dict.fromkeys(silu_inputs(builder), form))
    image = np.linspace(-8, 8, 201, dtype=np.float32).reshape(1, 1, 1, -1)
    plain, nearly = (
        open_bytes(each.to_bytes(producer="", version="", metadata={}), where="test").run(image)["y"] for each in (builder, changed)
    )
    # x sigmoid(1.702 x) is within .0203 of GELU, and .0203 / .5875 is .0346; a hard swish is furthest off at 3 / c, by .179.
    assert 0 < np.abs(plain - nearly).max() < limit


@needs_onnx
def test_convolutions_make_up_for_another_function():
    builder = graph_of(program_of("classify", dynamic=("batch",)), merged=True).builder
    inputs = list(np.random.default_rng(0).random((4, 1, 3, 64, 64), dtype=np.float32))
    forms = dict.fromkeys(silu_inputs(builder), Form("hardswish", 1.15))
    changed = with_forms(builder, forms)
    mended = matched(builder, changed, dict.fromkeys(forms, 1.15), inputs, threads=1)
    biased = [node.outputs[0] for node in builder.nodes if node.operator == "Conv" and len(node.inputs) == 3]
    plain = [value for value in biased if value not in forms]
    wanted, before, after = (observe(each, plain, inputs, threads=1) for each in (builder, changed, mended))
    for value in plain:
        assert np.allclose(after[value].channel_means, wanted[value].channel_means, atol=1e-4)
    assert any(np.abs(before[value].channel_means - wanted[value].channel_means).max() > 0.01 for value in plain)
    truth, worse, better = (
        np.concatenate([open_graph(each, 1).run(image)["probabilities"] for image in inputs]) for each in (builder, changed, mended)
    )
    assert np.square(better - truth).mean() < 0.5 * np.square(worse - truth).mean()


def one_convolution(weight: float, bias: float) -> Builder:
    builder = Builder()
    builder.input("image", "float32", ("batch", 1, 2, 2), "")
    names = builder.weight("w", np.full((1, 1, 1, 1), weight, np.float32)), builder.weight("b", np.full(1, bias, np.float32))
    builder.output(builder.add("Conv", "image", *names), "y", "float32", ("batch", 1, 2, 2), "")
    return builder


@needs_onnx
@pytest.mark.parametrize(("weight", "bias", "slope"), [(1.25, 0.5, 0.8), (10.0, 0.5, 0.5), (0.1, 0.5, 2.0), (-1.0, 0.5, 0.5)])
def test_a_channel_is_put_on_the_nearest_line_but_never_torn_apart(weight: float, bias: float, slope: float):
    inputs = list(np.random.default_rng(0).normal(size=(2, 1, 1, 2, 2)).astype(np.float32))
    mended = matched(one_convolution(1.0, 0.0), one_convolution(weight, bias), {}, inputs, threads=1)
    assert mended.tensors["w"].item() == pytest.approx(weight * slope, rel=1e-2)
    mean = float(np.mean(inputs))
    assert mended.tensors["w"].item() * mean + mended.tensors["b"].item() == pytest.approx(mean, abs=1e-5)


@needs_openvino
def test_calibration_needs_no_onnxruntime(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mobilevitv2.export.quantise.observing.find_spec", lambda name: None if name == "onnxruntime" else True)
    program = program_of("classify", dynamic=("batch",), precision="int8")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    summary = quantised_graph(program, pixels, "openvino", threads=1).summary
    assert summary["integer_convolutions"] > 0


@needs_openvino
@pytest.mark.parametrize("activation", ["hardswish", "relu"])
def test_a_model_without_silu_stays_as_it_is(activation: str):
    program = program_of("classify", dynamic=("batch",), precision="int8", hidden_act=activation)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    summary = quantised_graph(program, pixels, "openvino", threads=1).summary
    assert summary["silu"] == "as it is"


def test_what_cannot_stand_for_silu_is_refused():
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(ConfigurationError, match="hardswish, gelu"):
        quantised_graph(program_of("classify", precision="int8"), pixels, "openvino", silu=("gelu", "hardswish"))
    with pytest.raises(ConfigurationError, match="free batch"):
        quantised_graph(program_of("classify", precision="int8"), pixels, "openvino")


@needs_onnx
def test_channels_that_one_picture_shows_at_one_place_keep_their_weights():
    builder = graph_of(program_of("classify", size=(32, 32), dynamic=("batch",)), merged=True).builder
    forms = dict.fromkeys(silu_inputs(builder), Form("gelu", 0.5875))
    changed = with_forms(builder, forms)
    picture = np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    mended = matched(builder, changed, dict.fromkeys(forms, 0.5875), [picture], threads=1)
    name = next(node.inputs[1] for node in builder.nodes if part_of(node).endswith("layer.4.downsampling_layer.reduce_1x1"))
    assert np.allclose(mended.tensors[name], changed.tensors[name], rtol=1e-6)  # of a map of 1 x 1: no line goes through one point


def test_float_parts_stay_float():
    builder = graph_of(program_of("classify")).builder
    for dialect in ("onnxruntime", "openvino"):
        names = make_plan(builder, dialect).readers  # type: ignore[arg-type]
        chosen = [node for node in builder.nodes if node.name in names]
        assert not any("attention.key" in node.inputs[1] for node in chosen if node.operator == "Conv")
        assert {node.operator for node in chosen} <= {"Conv", "Add", "Sigmoid", "Mul"}


@pytest.mark.parametrize(("task", "expected"), [("detect", "detection_head.levels."), ("segment", "segmentation_head.classifier")])
@pytest.mark.parametrize("dialect", ["onnxruntime", "openvino"])
def test_the_last_convolutions_of_heads_stay_float(task: str, expected: str, dialect: Any):
    builder = graph_of(program_of(task)).builder
    readers = make_plan(builder, dialect).readers
    float_ones = [part_of(node) for node in builder.nodes if node.operator == "Conv" and node.name not in readers]
    last = [name for name in float_ones if not name.endswith("attention.key")]
    assert last
    assert all(name.startswith(expected) for name in last)
    assert task == "segment" or all(name.endswith(".pointwise") for name in last)


# ---- what proves nothing ---------------------------------------------------------------------------------------------------------


def test_outputs_that_vanish_are_told():
    truth = {"logits": np.ones((2, 3), np.float32)}
    assert vanished({"logits": np.ones((2, 3), np.float32)}, truth) is None
    assert "(0, 3)" in str(vanished({"logits": np.ones((0, 3), np.float32)}, truth))
    assert "only zeros" in str(vanished({"logits": np.zeros((2, 3))}, {"logits": np.zeros((2, 3))}))


@needs_onnx
def test_a_detector_that_finds_nothing_cannot_be_verified(tmp_path: Path):
    import torch

    model = model_of("detect")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pointwise.convolution" in name and "levels" in name:
                parameter.zero_()
                if name.endswith("bias"):
                    parameter.view(-1, 4 + 11)[:, 4] = 20.0  # background everywhere
    with pytest.raises(WeightsError, match="0 of 0"):
        export(model, tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES[:2])
    assert list(tmp_path.iterdir()) == []
