"""Verification: wrong files are refused with the reason and the right advice, and good ones are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_programs import program_of
from PIL import Image
from test_export_onnx import PICTURES, exported, model_of

from mobilevitv2.errors import ConfigurationError, WeightsError
from mobilevitv2.export import export
from mobilevitv2.export.comparing import Comparison, compare
from mobilevitv2.export.departing import advice, departure, stage_failure
from mobilevitv2.export.formats import COREML, EXECUTORCH, LITERT, ONNX, get_format
from mobilevitv2.export.request import Suppression
from mobilevitv2.export.suppressing import suppression_inside
from mobilevitv2.export.truth import torch_outputs
from mobilevitv2.runtime import open_model
from mobilevitv2.runtime.model import RuntimeModel

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

Outputs = dict[str, np.ndarray[Any, Any]]


def tampered(monkeypatch: pytest.MonkeyPatch, change: Callable[[Outputs, np.ndarray[Any, Any]], Outputs]) -> None:
    """Let every file answer otherwise than it does."""
    plain = RuntimeModel.raw
    monkeypatch.setattr(RuntimeModel, "raw", lambda self, pixels: change(plain(self, pixels), pixels))


# ---- detectors with suppression inside -------------------------------------------------------------------------------------------


def scaled_scores(found: Outputs, _: Any) -> Outputs:
    return {**found, "scores": found["scores"] * np.float32(0.98)} if "count" in found else found


def moved_boxes(found: Outputs, _: Any) -> Outputs:
    return {**found, "boxes": found["boxes"] + np.float32(0.002)} if "count" in found else found


def shuffled_labels(found: Outputs, _: Any) -> Outputs:
    return {**found, "labels": (found["labels"] + 1) % 10} if "count" in found else found


def things_that_are_not_there(found: Outputs, _: Any) -> Outputs:
    if "count" not in found:
        return found
    rows = len(found["count"])
    more = {
        "scores": np.full((rows, 9), 0.9, np.float32),
        "labels": np.zeros((rows, 9), np.int64),
        "boxes": np.tile(np.linspace(0, 0.01, 9, dtype=np.float32)[None, :, None], (rows, 1, 4)) + np.float32([0, 0, 0.01, 0.01]),
    }
    return {**{name: np.concatenate([more[name], found[name]], axis=1) for name in more}, "count": found["count"] + 9}


@needs_onnx
@pytest.mark.parametrize("change", [scaled_scores, moved_boxes, shuffled_labels, things_that_are_not_there])
def test_a_detector_whose_detections_are_wrong_is_refused(change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(monkeypatch, change)
    with pytest.raises(WeightsError, match="the onnx file does not answer as PyTorch does: scores by"):
        exported("detect", tmp_path / "model.onnx", size=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_a_quantised_detectors_scores_and_boxes_are_measured(precision: str) -> None:
    program = program_of("detect", precision=precision)
    metadata = replace(program.metadata, suppression={"threshold": 0.05, "iou": 0.5, "candidates": 400, "detections": 200})
    truth = torch_outputs(program, np.stack([np.asarray(each.resize((64, 64))) for each in PICTURES]))
    from mobilevitv2.runtime.postprocessing import suppress

    limits: dict[str, Any] = {"iou": 0.5, "candidates": 400, "detections": 200}
    parts = [
        suppress(scores, boxes, threshold=0.05, **limits) for scores, boxes in zip(truth["scores"], truth["boxes"], strict=True)
    ]
    rows = min(len(part[0]) for part in parts)
    assert rows > 3
    scores, labels, boxes = (np.stack([part[index][:rows] for part in parts]) for index in range(3))
    file = {"scores": scores, "labels": labels, "boxes": boxes, "count": np.full(2, rows)}
    exact = compare(metadata, file, truth, tolerance=0.05)
    assert (exact.differences, exact.agreement) == ({"scores": 0.0, "boxes": 0.0}, 1.0)
    halved = compare(metadata, {**file, "scores": scores * 0.4}, truth, tolerance=0.05)
    assert not halved.fits(precision)
    assert halved.differences["scores"] > 0.2 * halved.largest["scores"]
    nothing = compare(metadata, {**file, "scores": scores * np.nan}, truth, tolerance=0.05)
    assert not nothing.fits(precision)


@pytest.mark.parametrize(
    ("suffix", "precision"),
    [
        *(pytest.param(".onnx", each, marks=needs_onnx) for each in ("fp16", "int8", "int8-weights")),
        *(pytest.param(".xml", each, marks=needs_openvino) for each in ("fp16", "bf16", "int8")),
    ],
)
def test_good_detectors_of_every_precision_pass(suffix: str, precision: str, tmp_path: Path) -> None:
    settings = {"calibration": PICTURES} if precision == "int8" else {}
    report = exported("detect", tmp_path / f"model{suffix}", size=(64, 64), precision=precision, **settings)
    found = report.verification.comparison
    assert set(found.differences) == {"scores", "boxes"}
    assert 0 < found.differences["scores"] < 0.2 * found.largest["scores"]
    assert found.count > 0


# ---- a second size ---------------------------------------------------------------------------------------------------------------


def background(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which pictures show nothing."""
    shown: np.ndarray[Any, Any] = pixels.max(axis=(1, 2, 3)) == 0
    return shown


@pytest.fixture
def finds_nothing_on_black(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and its files find nothing on black pictures."""
    import mobilevitv2.export.verify as verifying

    plain = verifying.torch_outputs

    def torch_outputs(program: Any, pixels: np.ndarray[Any, Any]) -> Outputs:
        found = plain(program, pixels)
        return {**found, "scores": np.where(background(pixels)[:, None, None], found["scores"] * 1e-3, found["scores"])}

    def of_file(found: Outputs, pixels: np.ndarray[Any, Any]) -> Outputs:
        return {**found, "count": np.where(background(pixels), 0, found["count"])} if "count" in found else found

    monkeypatch.setattr(verifying, "torch_outputs", torch_outputs)
    tampered(monkeypatch, of_file)


BLACK = [Image.new("RGB", (96, 96))] * 3


@needs_onnx
def test_pictures_with_detections_are_taken_to_the_second_size(finds_nothing_on_black: None, tmp_path: Path) -> None:
    found = exported("detect", tmp_path / "model.onnx", dynamic=True, size=(128, 128), pictures=[*BLACK, *PICTURES]).verification
    assert list(found.shapes) == ["3 x 192 x 256"]
    assert found.shapes["3 x 192 x 256"] > 0
    assert not found.notes


@needs_onnx
def test_a_second_size_without_detections_is_told_not_refused(
    finds_nothing_on_black: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilevitv2.export.verify._surest_first", lambda pictures, _: list(pictures))
    report = exported("detect", tmp_path / "model.onnx", dynamic=True, size=(128, 128), pictures=[*BLACK, *PICTURES])
    assert report.verification.shapes == {"3 x 192 x 256": 0.0}
    told = "at 3 x 192 x 256 neither PyTorch nor the file finds detections on the pictures, so none were compared there"
    assert report.verification.to_dict()["notes"] == (told,)
    assert told in report.table()


@needs_onnx
def test_a_second_size_that_departs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(monkeypatch, lambda found, pixels: {k: v * (0.9 if pixels.shape[1] == 192 else 1) for k, v in found.items()})
    with pytest.raises(WeightsError, match=r"but not at 3 x 192 x 256 pixels.*probabilities by .*leave dynamic \(--dynamic\) out"):
        exported("classify", tmp_path / "model.onnx", dynamic=True, size=(128, 128))
    assert not list(tmp_path.iterdir())


# ---- what is told ----------------------------------------------------------------------------------------------------------------


@needs_onnx
def test_a_quantised_file_that_departs_names_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevitv2.graph.weights import Convolution, Weights

    plain = Weights.convolution

    def broken(self: Weights, unit: str, **options: Any) -> Convolution:
        weight, bias = plain(self, unit, **options)
        return Convolution(weight * (4.0 if unit.startswith("mobilevitv2.encoder.layer.2.") else 1.0), bias)

    monkeypatch.setattr(Weights, "convolution", broken)
    monkeypatch.setattr(Comparison, "fits", lambda *_: False)  # answers of random weights hardly show it
    with pytest.raises(WeightsError, match="first stage that departs is stage3") as told:
        exported("classify", tmp_path / "model.onnx", size=(64, 64), precision="int8-weights", postprocessing=False)
    assert str(told.value).endswith("weights of 8 bits cost too much here: stay in float (--precision fp32 or fp16).")
    with pytest.raises(WeightsError, match="first stage that departs is stage3") as told:
        exported("classify", tmp_path / "model.onnx", size=(64, 64), precision="int8", calibration=PICTURES, postprocessing=False)
    assert "take int8-weights, or stay in float" in str(told.value)
    assert not list(tmp_path.iterdir())


def test_the_advice_is_for_the_precision_and_the_format() -> None:
    assert "int8-weights" not in advice(ONNX, "int8-weights") and "calibrate" not in advice(ONNX, "int8-weights")
    assert "int8-weights" not in advice(EXECUTORCH, "int8")
    assert "take int8-weights" in advice(LITERT, "int8")
    assert "--precision fp32" in advice(ONNX, "fp16")
    assert "precision fp" not in advice(COREML, "fp32")


@needs_onnx
def test_a_stage_that_departs_behind_equal_answers_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"stem": 1e-7, "stage1": 0.3, "stage2": 0.2, "logits": 1e-7}
    monkeypatch.setattr("mobilevitv2.export.verify.stage_differences", lambda *_, **__: shares)
    with pytest.raises(WeightsError, match=r"answers as PyTorch does \(100.0% of 2 top-1.*but departs inside.*departs is stage1"):
        exported("classify", tmp_path / "model.onnx", size=(64, 64))
    comparison = Comparison({"logits": 0.0}, {"logits": 1.0}, 1.0, 1.0, "top-1 labels", 2)
    assert "does not answer" not in stage_failure(ONNX, "fp32", comparison, 1e-4, shares)


def test_stages_that_cannot_be_had_are_told() -> None:
    def unable(*_: Any) -> Any:
        raise RuntimeError("no such form\nmore")

    told = departure(program_of("classify"), replace(ONNX, write=unable), np.zeros((1, 64, 64, 3), np.uint8), 1e-4)
    assert told == "Which stage departs cannot be said: a file that gives its stages could not be written and run (no such form)."


# ---- suppression -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task", "postprocessing", "message"),
    [
        ("onnx", "classify", True, "a model of task 'classify' finds no boxes; leave suppression out"),
        ("litert", "detect", True, "format litert gives boxes before suppression.*or take onnx or openvino"),
        ("onnx", "detect", False, "raw outputs are asked for"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(name: str, task: str, postprocessing: bool, message: str) -> None:
    fmt = get_format(name)
    with pytest.raises(ConfigurationError, match=rf"suppression=Suppression\(threshold=0.2.*{message}"):
        suppression_inside(Suppression(threshold=0.2), fmt, task=task, postprocessing=postprocessing)
    assert suppression_inside(None, fmt, task=task, postprocessing=postprocessing) is None


@needs_onnx
def test_settings_go_inside_where_they_can(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="would have no effect"):
        export(model_of("classify"), tmp_path / "model.onnx", size=(64, 64), suppression=Suppression(threshold=0.2))
    assert not list(tmp_path.iterdir())
    exported("detect", tmp_path / "model.onnx", size=(64, 64), suppression=Suppression(threshold=0.06))
    metadata = open_model(tmp_path / "model.onnx").metadata
    assert metadata.suppression is not None
    assert metadata.suppression["threshold"] == 0.06
