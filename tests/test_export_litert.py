"""LiteRT files: channels last, whole in XNNPACK, right in the runtime, with metadata and labels; and what is refused."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_programs import program_of
from small_models import pictures

from mobilevitv2.errors import ConfigurationError, WeightsError

pytest.importorskip("litert_torch", reason="the litert extra is not installed")

from mobilevitv2.export.formats import LITERT as FORMAT
from mobilevitv2.export.litert import left_outside
from mobilevitv2.export.quantise.calibration import Calibrated
from mobilevitv2.export.samples import made_picture
from mobilevitv2.runtime.with_litert import open_engine, stored_text

# The converter and torch's own parts warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    program = program_of("classify", size=(64, 96), layout="NHWC")
    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    return program, path, FORMAT.write(program, path)


def difference(program: Any, path: Path) -> float:
    image = pictures(height=program.size[0], width=program.size[1], seed=5)
    with torch.no_grad():
        wanted = program.model(image).logits.softmax(-1).numpy()
    found = open_engine(path, threads=1).run(np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy()))
    return float(np.abs(found["probabilities"] - wanted).max())


def test_the_file_answers_as_pytorch_does(classifier: tuple[Any, Path, Any]) -> None:
    program, path, written = classifier
    assert difference(program, path) < 1e-5
    assert written.outside == {}
    assert written.operators["FULLY_CONNECTED"] > 20


def test_the_file_says_what_it_is(classifier: tuple[Any, Path, Any]) -> None:
    program, path, _ = classifier
    engine = open_engine(path)
    assert engine.metadata == program.metadata.to_json()
    assert engine.inputs == {"image": ((1, 64, 96, 3), "float32")}
    assert engine.outputs == {"probabilities": ((1, 10), "float32")}


def test_labels_and_the_task_libraries_metadata_are_packed(classifier: tuple[Any, Path, Any]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    content = classifier[1].read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("labels.txt").decode().splitlines() == [f"class {index}" for index in range(10)]
    model = schema.Model.GetRootAs(content, 0)
    entries = {model.Metadata(index).Name(): model.Metadata(index).Buffer() for index in range(model.MetadataLength())}
    packed = bytes(model.Buffers(entries[b"TFLITE_METADATA"]).DataAsNumpy())
    assert packed[4:8] == b"M001"
    assert b"labels.txt" in packed
    assert b"probabilities" in packed
    assert stored_text(content, "another") is None


def test_half_precision_halves_the_file(classifier: tuple[Any, Path, Any], tmp_path: Path) -> None:
    program = program_of("classify", size=(64, 96), layout="NHWC", precision="fp16")
    path = tmp_path / "model.tflite"
    FORMAT.write(program, path)
    assert path.stat().st_size < 0.65 * classifier[1].stat().st_size
    assert 0 < difference(program, path) < 2e-3


def test_a_detectors_outputs_keep_their_names(tmp_path: Path) -> None:
    program = program_of("detect", layout="NHWC", inside=True)
    path = tmp_path / "model.tflite"
    FORMAT.write(program, path)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with torch.no_grad():
        scores, boxes = program.module(torch.from_numpy(image))
    found = open_engine(path, threads=1).run(image)
    np.testing.assert_allclose(found["scores"], scores.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["boxes"], boxes.numpy(), atol=1e-4)


def calibrated(size: tuple[int, int]) -> Calibrated:
    generator = np.random.default_rng(0)
    pixels = np.stack([np.asarray(made_picture(seed).resize(size[::-1])) for seed in generator.integers(0, 99, 4)])
    return Calibrated(ranges=pixels, held=pixels, skipped=(), samples=(), found=4)


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_eight_bits_answer_nearly_the_same(precision: str, classifier: tuple[Any, Path, Any], tmp_path: Path) -> None:
    program = program_of("classify", size=(64, 96), layout="NHWC", precision=precision, postprocessing="none")
    path = tmp_path / "model.tflite"
    assert FORMAT.quantise is not None
    written = FORMAT.quantise(program, path, calibrated((64, 96)) if precision == "int8" else None)
    assert path.stat().st_size < 0.6 * classifier[1].stat().st_size  # names and nodes of a narrow model weigh as well
    told = written.quantisation
    assert told is not None
    assert told["integer_convolutions"] > (0.8 * told["convolutions"] if precision == "int8" else -1)
    assert written.outside == {}
    image = np.asarray(made_picture(3).resize((96, 64)), np.float32)[None] / 255
    with torch.no_grad():
        wanted = program.model(torch.from_numpy(image).permute(0, 3, 1, 2)).logits.numpy()
    found = open_engine(path, threads=1).run(image)["logits"]
    assert 0 < np.abs(found - wanted).max() < (0.2 if precision == "int8" else 0.1) * np.abs(wanted).max()
    assert open_engine(path).metadata == program.metadata.to_json()


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_what_is_sensitive_stays_float(task: str) -> None:
    from ai_edge_litert.tools import flatbuffer_utils

    from mobilevitv2.export.litert import _convert, quiet
    from mobilevitv2.export.quantise.litert_plan import Graph, integer_operators

    with quiet():
        content = _convert(program_of(task, layout="NHWC"))
    graph = Graph(flatbuffer_utils.read_model_from_bytearray(bytearray(content)))
    chosen = integer_operators(graph)
    kinds = {graph.kinds[index] for index in chosen}
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LOGISTIC", "MUL"} <= kinds
    assert not kinds & {"SOFTMAX", "MEAN", "BATCH_MATMUL", "RSQRT", "SUB", "ARG_MAX", "RESIZE_BILINEAR", "EXP"}
    assert not any("TokenNorm" in graph.name(index) for index in chosen if graph.kinds[index] in ("ADD", "MUL"))
    for index in set(range(len(graph.kinds))) - chosen:
        last = not graph.readers(index) or task != "classify"
        of_sums = any(graph.kinds[each] == "BATCH_MATMUL" for each in graph.sources(index))
        assert graph.kinds[index] != "FULLY_CONNECTED" or of_sums or last or "classifier" in graph.name(index)


def test_damaged_files_are_refused(classifier: tuple[Any, Path, Any], tmp_path: Path) -> None:
    other = tmp_path / "other.tflite"
    other.write_bytes(b"12ET" * 20)
    with pytest.raises(WeightsError, match="no LiteRT model"):
        open_engine(other)
    with pytest.raises(WeightsError, match=r"\(1, 32, 96, 3\)"):
        open_engine(classifier[1]).run(np.zeros((1, 32, 96, 3), np.float32))


def test_operators_outside_are_found_by_walking_back() -> None:
    details = [
        {"index": 0, "op_name": "CONV_2D", "inputs": [0, 7], "outputs": [1]},
        {"index": 1, "op_name": "GATHER", "inputs": [1], "outputs": [2]},
        {"index": 2, "op_name": "ADD", "inputs": [2, 2], "outputs": [3]},
        {"index": 3, "op_name": "DELEGATE", "inputs": [0, 7], "outputs": [1]},
        {"index": 4, "op_name": "DELEGATE", "inputs": [2], "outputs": [3]},
    ]
    assert left_outside(details, [3]) == {"GATHER": 1}


def test_free_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="height cannot be free"):
        FORMAT.write(replace(program_of("classify", layout="NHWC"), dynamic=("height",)), tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
