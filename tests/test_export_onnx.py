"""Export to ONNX and OpenVINO: the files answer as PyTorch does, carry their metadata, and appear whole or not at all."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import randomise, small_config

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.errors import ConfigurationError, WeightsError
from mobilevitv2.export import export
from mobilevitv2.export.samples import made_picture
from mobilevitv2.runtime import open_model
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")

# JAX, where tests of LiteRT brought it into the process, warns of every fork; OpenVINO's import makes one.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

CLASSES: dict[str, Any] = {
    "classify": MobileViTV2ForImageClassification,
    "segment": MobileViTV2ForSemanticSegmentation,
    "detect": MobileViTV2ForObjectDetection,
}
PICTURES = [made_picture(seed) for seed in range(2)]
OUTPUTS = {"classify": ["probabilities"], "segment": ["mask"], "detect": ["boxes", "scores", "labels", "count"]}
RAW = {"classify": ["logits"], "segment": ["logits"], "detect": ["scores", "boxes"]}


def model_of(task: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return randomise(CLASSES[task](small_config(**options)))


def exported(kind: str, path: Path, *, options: dict[str, Any] | None = None, **settings: Any) -> Any:
    settings = {"size": (64, 96), "pictures": PICTURES, **settings}
    return export(model_of(kind, **(options or {})), path, **settings)


@needs_onnx
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
@pytest.mark.parametrize("raw", [False, True])
def test_an_onnx_file_answers_as_pytorch(task: str, raw: bool, tmp_path: Path):
    report = exported(task, tmp_path / "model.onnx", postprocessing=not raw)
    assert report.verification.comparison.relative < 1e-4
    assert report.verification.comparison.agreement > 0.999
    model = open_model(tmp_path / "model.onnx")
    assert list(model.engine.outputs) == (RAW if raw else OUTPUTS)[task]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.report.json"]
    assert json.loads((tmp_path / "model.onnx.report.json").read_text())["verification"]["pictures"] == 2


@needs_openvino
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_an_openvino_file_answers_as_pytorch(task: str, tmp_path: Path):
    report = exported(task, tmp_path / "model.xml", preprocessing=True)
    assert report.verification.comparison.relative < 1e-4
    assert list(open_model(tmp_path / "model.xml").engine.outputs) == OUTPUTS[task]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml", "model.xml.report.json"]


@needs_onnx
@needs_openvino
def test_files_of_one_stem_in_a_folder_have_a_report_each(tmp_path: Path):
    for suffix in (".onnx", ".xml"):
        exported("classify", tmp_path / f"model{suffix}", size=(64, 64))
    told = {path.name: json.loads(path.read_text())["format"] for path in tmp_path.glob("*.report.json")}
    assert told == {"model.onnx.report.json": "onnx", "model.xml.report.json": "openvino"}


@needs_onnx
@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
@pytest.mark.parametrize("stride", [8, 16])
def test_segmentation_heads_and_strides(head: str, stride: int, tmp_path: Path):
    options = {"segmentation_head": head, "output_stride": stride, "use_auxiliary_head": True}
    report = exported("segment", tmp_path / "model.onnx", options=options, postprocessing=False, size=(64, 64))
    assert report.verification.comparison.relative < 1e-4


@needs_onnx
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_free_sides_are_tried_at_a_second_size(task: str, tmp_path: Path):
    report = exported(task, tmp_path / "model.onnx", dynamic=True, size=(128, 128))
    assert list(report.verification.shapes) == ["3 x 192 x 256"]
    assert report.metadata.dynamic == ("batch", "height", "width")


@needs_onnx
def test_odd_sizes_are_stretched_as_in_the_model(tmp_path: Path):
    assert exported("classify", tmp_path / "model.onnx", size=(75, 100)).verification.comparison.relative < 1e-4


@needs_onnx
def test_half_precision_stays_close_and_half_the_size(tmp_path: Path):
    full = exported("classify", tmp_path / "full.onnx", size=(64, 64))
    half = exported("classify", tmp_path / "half.onnx", size=(64, 64), precision="fp16")
    assert half.verification.comparison.relative < 0.03
    assert half.size < 0.6 * full.size


@needs_onnx
@pytest.mark.parametrize("activation", ["relu", "gelu", "relu6", "hardswish"])
def test_other_activations(activation: str, tmp_path: Path):
    report = exported("classify", tmp_path / "model.onnx", size=(64, 64), options={"hidden_act": activation})
    assert report.verification.comparison.relative < 1e-4


@needs_onnx
def test_the_file_says_what_it_is(tmp_path: Path):
    exported("classify", tmp_path / "model.onnx", source="weights of a test", licence="MIT")
    metadata = open_model(tmp_path / "model.onnx").metadata
    assert (metadata.task, metadata.source, metadata.licence, metadata.precision) == (
        "classify",
        "weights of a test",
        "MIT",
        "fp32",
    )
    assert (metadata.picture.height, metadata.picture.width, metadata.picture.channel_order) == (64, 96, "RGB")
    assert len(metadata.labels) == 10
    assert len(metadata.weights_sha256) == 64
    assert {"mobilevitv2", "torch"} <= metadata.versions.keys()


@needs_onnx
@pytest.mark.skipif(find_spec("onnx") is None, reason="onnx is not installed")
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_onnx_itself_finds_the_file_sound(task: str, tmp_path: Path):
    import onnx

    exported(task, tmp_path / "model.onnx", preprocessing=True)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 18


@needs_onnx
def test_a_file_that_departs_is_removed_and_the_stage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mobilevitv2.graph.weights import Convolution, Weights

    plain = Weights.convolution

    def broken(self: Weights, unit: str, **options: Any) -> Convolution:
        weight, bias = plain(self, unit, **options)
        return Convolution(weight * (1.5 if unit.startswith("mobilevitv2.encoder.layer.1.") else 1.0), bias)

    monkeypatch.setattr(Weights, "convolution", broken)
    with pytest.raises(WeightsError, match="first stage that departs is stage2"):
        exported("classify", tmp_path / "model.onnx", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mobilevitv2.export.verify.verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported("classify", tmp_path / "model.onnx", size=(64, 64))
    assert list(tmp_path.iterdir()) == []


@needs_onnx
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onx"}, "did you mean 'onnx'"),
        ({"precision": "fp8"}, "'fp8' is unknown"),
        ({"precision": "bf16"}, "not offered for onnx"),
        ({"size": (16, 64)}, "32 to 8192"),
        ({"size": (100, 128), "dynamic": True}, "multiples of 64"),
        ({"task": "detect"}, r"leave task \(--task\) out"),
        ({"pictures": ["nowhere.jpg"]}, "nowhere.jpg"),
    ],
)
def test_bad_requests_are_answered(settings: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        exported("classify", tmp_path / "model.onnx", **settings)
    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_paths_that_are_taken_or_do_not_fit(tmp_path: Path):
    (tmp_path / "there.onnx").write_bytes(b"mine")
    with pytest.raises(
        ConfigurationError, match=r"exists already and was left as it is; name another file, or pass overwrite=True \(--overwrite\)"
    ):
        exported("classify", tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"
    with pytest.raises(ConfigurationError, match=r"ends in \.onnx"):
        exported("classify", tmp_path / "model.bin", format="onnx")
    with pytest.raises(ConfigurationError, match=r"does not tell its format; .* or pass format \(--format\)"):
        exported("classify", tmp_path / "model")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ConfigurationError, match="is a folder"):
        exported("classify", tmp_path / "folder.onnx")


@needs_onnx
def test_uint8_and_float_files_give_the_same(tmp_path: Path):
    exported("classify", tmp_path / "float.onnx")
    exported("classify", tmp_path / "bytes.onnx", preprocessing=True)
    answers = [open_model(tmp_path / f"{name}.onnx").predict(PICTURES[0]).labels for name in ("float", "bytes")]
    assert [label.index for label in answers[0]] == [label.index for label in answers[1]]
    assert np.allclose([label.probability for label in answers[0]], [label.probability for label in answers[1]], atol=1e-5)
