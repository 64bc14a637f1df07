"""Exported files as models: the same answers as `predict`, and clear words for files that are damaged or another's."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_export_onnx import PICTURES, exported, model_of

from mobilevitv2.errors import ConfigurationError, WeightsError
from mobilevitv2.evaluate.exported import contract_processor, open_exported
from mobilevitv2.export.samples import made_picture
from mobilevitv2.prediction import predict
from mobilevitv2.runtime import open_model, postprocessing
from mobilevitv2.runtime.metadata import Metadata, PictureContract
from mobilevitv2.runtime.model import RuntimeModel
from mobilevitv2.runtime.preprocessing import as_input, prepare
from mobilevitv2.runtime.task import RuntimeTask
from mobilevitv2.streaming import answers_of, named_sources
from mobilevitv2.suppression import suppress

pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


@pytest.mark.parametrize("size", [(320, 240), (111, 300), (64, 64)])
def test_pictures_are_prepared_as_the_image_processor_does_it(size: tuple[int, int]):
    contract = PictureContract(height=96, width=96, resize={"shortest_edge": 108}, crop={"height": 96, "width": 96})
    picture = made_picture(3).resize(size)
    ours = as_input(prepare(picture, contract)[None], contract, "NCHW")
    theirs = contract_processor(contract)(picture, return_tensors="np")["pixel_values"]
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 4 / 255  # torchvision rounds between the two passes, Pillow elsewhere
    assert np.abs(ours - theirs).mean() < 0.0025


def test_suppression_is_that_of_the_image_processor():
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(300, 2, generator=generator) * 0.8
    boxes = torch.cat([start, start + 0.05 + 0.15 * torch.rand(300, 2, generator=generator)], 1)
    scores = torch.rand(300, 4, generator=generator) ** 3
    theirs = suppress(scores, boxes, threshold=0.1, nms_threshold=0.5, candidates=50, max_detections=40)
    found = postprocessing.suppress(scores.numpy(), boxes.numpy(), threshold=0.1, iou=0.5, candidates=50, detections=40)
    for ours, expected in zip(found, theirs, strict=True):
        assert np.array_equal(ours, expected.numpy())


def test_class_maps_are_those_of_the_image_processor():
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

    logits = torch.randn(1, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = MobileViTV2ImageProcessor().post_process_semantic_segmentation(logits, target_sizes=[(50, 61)])[0].numpy()
    assert (postprocessing.class_map(logits[0].numpy(), (50, 61)) == expected).mean() > 0.999


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_answers_equal_those_of_predict(task: str, tmp_path: Path):
    exported(task, tmp_path / "model.onnx", size=(64, 64), postprocessing=False)
    ours = open_model(tmp_path / "model.onnx").predict(PICTURES[0])
    model = model_of(task)
    processor = contract_processor(PictureContract(height=64, width=64, resize={"height": 64, "width": 64}))
    theirs = predict(PICTURES[0], model=model, processor=processor)[0]
    assert ours.size == theirs.size
    if task == "segment":
        assert (ours.mask == theirs.mask).mean() > 0.98
        assert ours.mask.dtype == theirs.mask.dtype
    else:
        assert abs(len(ours.boxes) - len(theirs.boxes)) <= 1


def test_a_fixed_batch_is_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exported("classify", tmp_path / "model.onnx", size=(64, 64))
    model = open_model(tmp_path / "model.onnx")
    pixels = np.stack([model.prepare(PICTURES[index % 2]) for index in range(3)])
    free = model.raw(pixels)["probabilities"]
    monkeypatch.setattr(type(model), "largest_batch", 2)
    assert np.allclose(model.raw(pixels)["probabilities"], free, atol=1e-6)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_several_threads_may_run_a_file_at_once(engine: str, tmp_path: Path):
    pytest.importorskip(engine)
    exported("classify", tmp_path / "model.onnx", size=(64, 64))
    model = open_model(tmp_path / "model.onnx", engine=engine, callers=3)
    assert (model.engine.name, model.engine.callers) == (engine, 3)
    pixels = [model.prepare(PICTURES[index % 2])[None] for index in range(24)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda each: model.raw(each)["probabilities"], pixels))
    alone = open_model(tmp_path / "model.onnx", engine=engine, threads=1)
    assert alone.engine.callers == 1
    for index, answer in enumerate(found):
        assert np.allclose(answer, alone.raw(pixels[index])["probabilities"], atol=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGCHLD is a signal of Unix")
def test_openvino_files_that_are_closed_leave_the_process_its_signals(tmp_path: Path):
    pytest.importorskip("openvino")
    exported("classify", tmp_path / "model.onnx", size=(64, 64))
    code = """
import gc, signal, subprocess, sys
from mobilevitv2.runtime import open_model
signal.signal(signal.SIGCHLD, lambda *arguments: None)
models = [open_model(sys.argv[1], engine="openvino") for _ in range(2)]
while models:
    del models[0]
    gc.collect()
subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr


def test_files_of_a_fixed_batch_are_answered_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    exported("classify", tmp_path / "model.onnx", size=(64, 64))
    exact = [open_model(tmp_path / "model.onnx").predict(PICTURES[index % 2]).labels for index in range(5)]
    monkeypatch.setattr(RuntimeModel, "largest_batch", 2)
    task = RuntimeTask(open_model(tmp_path / "model.onnx", callers=2))
    assert (task.callers, task.together) == (2, 2)
    found = list(answers_of(named_sources([PICTURES[index % 2] for index in range(5)]), task))
    for answer, labels in zip(found, exact, strict=True):
        assert [label.index for label in answer.labels] == [label.index for label in labels]


def test_a_file_without_metadata_runs_and_says_what_it_assumes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mobilevitv2.graph.build.METADATA_KEY", "other")
    monkeypatch.setattr(Metadata, "to_json", lambda self: "{}")
    exported("classify", tmp_path / "model.onnx", size=(64, 64), preprocessing=True)
    caplog.clear()
    model = open_model(tmp_path / "model.onnx")
    assert "has no metadata" in caplog.text
    assert (model.task, len(model.names), model.metadata.picture.inside) == ("classify", 10, True)
    assert len(model.predict(PICTURES[0]).labels) == 5


def test_damaged_and_foreign_files_are_answered(tmp_path: Path):
    exported("classify", tmp_path / "model.onnx", size=(64, 64))
    content = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name in ("cut.onnx", "empty.onnx"):
        with pytest.raises(WeightsError, match=name):
            open_model(tmp_path / name)
    with pytest.raises(ConfigurationError, match="does not exist"):
        open_model(tmp_path / "missing.onnx")
    with pytest.raises(ConfigurationError, match="no engine opens"):
        open_model(tmp_path / "model.bin")
    with pytest.raises(ConfigurationError, match="litert"):
        open_model(tmp_path / "model.onnx", engine="litert")


def test_another_models_file_is_refused(tmp_path: Path):
    from mobilevitv2.graph.builder import Builder

    builder = Builder()
    first, second = (builder.input(name, "float32", (1, 4), "") for name in ("a", "b"))
    builder.output(builder.add("Add", first, second), "sum", "float32", (1, 4), "")
    (tmp_path / "sum.onnx").write_bytes(builder.to_bytes(producer="test", version="0", metadata={}))
    with pytest.raises(WeightsError, match="another model"):
        open_model(tmp_path / "sum.onnx")


def test_a_picture_that_cannot_be_read_gets_an_error(tmp_path: Path):
    exported("classify", tmp_path / "model.onnx", size=(64, 64))
    assert open_model(tmp_path / "model.onnx").predict(tmp_path / "none.jpg").error is not None


@pytest.mark.parametrize(("task", "raw"), [("classify", False), ("segment", True), ("detect", True), ("detect", False)])
def test_evaluations_can_call_a_file_like_a_model(task: str, raw: bool, tmp_path: Path):
    exported(task, tmp_path / "model.onnx", size=(64, 64), postprocessing=not raw)
    model, processor = open_exported(tmp_path / "model.onnx")
    pixels: Any = processor(PICTURES, return_tensors="pt")["pixel_values"]
    output = model(pixels)
    with torch.inference_mode():
        plain = model_of(task)(pixels)
    if task == "classify":
        assert torch.allclose(output.logits.softmax(-1), plain.logits.softmax(-1), atol=1e-5)
    elif task == "segment":
        assert torch.allclose(output.logits, plain.logits, atol=1e-3)
    elif raw:
        assert torch.allclose(output.logits.softmax(-1), plain.logits.softmax(-1), atol=1e-5)
        assert torch.allclose(output.pred_boxes, plain.pred_boxes, atol=1e-5)
    else:
        found = processor.post_process_object_detection(output, threshold=0.1)[0]
        assert len(found["scores"]) <= 200
