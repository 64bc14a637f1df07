"""ExecuTorch files: whole in the delegate, right in the runtime, with their metadata; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_programs import program_of
from small_models import pictures

from mobilevitv2.errors import ConfigurationError, WeightsError

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from mobilevitv2.export.executorch import gate_silu
from mobilevitv2.export.formats import EXECUTORCH as FORMAT
from mobilevitv2.export.forms import token_module
from mobilevitv2.export.quantise.calibration import Calibrated
from mobilevitv2.export.samples import made_picture
from mobilevitv2.runtime.with_executorch import open_engine

# The exporter and torch's own parts warn about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    program = program_of("classify", size=(64, 96))
    path = tmp_path_factory.mktemp("executorch") / "model.pte"
    return program, path, FORMAT.write(program, path)


def test_every_operator_of_a_classifier_is_in_the_delegate(classifier: tuple[Any, Path, Any]) -> None:
    _, path, written = classifier
    assert written.files == (path,)
    assert written.outside == {}
    assert written.operators["convolution"] > 20
    assert written.operators["bmm"] == 3  # one a transformer layer


def test_the_file_answers_as_pytorch_does(classifier: tuple[Any, Path, Any]) -> None:
    program, path, _ = classifier
    engine = open_engine(path, threads=1)
    for seed in range(3):
        image = pictures(height=64, width=96, seed=seed)
        with torch.no_grad():
            wanted = program.model(image).logits.softmax(-1).numpy()
        np.testing.assert_allclose(engine.run(image.numpy())["probabilities"], wanted, atol=1e-5)


def test_the_file_says_what_it_is(classifier: tuple[Any, Path, Any]) -> None:
    program, path, _ = classifier
    engine = open_engine(path)
    assert engine.metadata == program.metadata.to_json()
    assert engine.inputs == {"image": ((1, 3, 64, 96), "float32")}
    assert engine.outputs == {"probabilities": ((1, 10), "float32")}
    assert json.loads(engine.metadata)["labels"][3] == "class 3"


def test_a_file_without_metadata_runs_and_says_what_it_assumes(
    classifier: tuple[Any, Path, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mobilevitv2.runtime import open_model

    picture = made_picture(0).resize((96, 64))
    named = open_model(classifier[1], threads=1).predict(picture)
    monkeypatch.setattr("mobilevitv2.runtime.with_executorch.METADATA_KEY", "absent")
    model = open_model(classifier[1], threads=1)
    assert model.engine.metadata is None
    assert list(model.engine.outputs) == ["probabilities"]
    assert "has no metadata: it is taken for a model of task classify with 10 classes" in caplog.text
    assert len(model.predict(picture).labels) == len(named.labels)


def test_an_array_that_does_not_fit_is_refused(classifier: tuple[Any, Path, Any]) -> None:
    engine = open_engine(classifier[1])
    with pytest.raises(WeightsError, match=r"\(1, 3, 32, 96\)"):
        engine.run(np.zeros((1, 3, 32, 96), np.float32))


def test_damaged_files_are_refused(classifier: tuple[Any, Path, Any], tmp_path: Path) -> None:
    content = classifier[1].read_bytes()
    other = tmp_path / "other.pte"
    other.write_bytes(b"TFL3" * 20)
    with pytest.raises(WeightsError, match="no ExecuTorch program"):
        open_engine(other)
    cut = tmp_path / "cut.pte"
    cut.write_bytes(content[: len(content) // 3])
    with pytest.raises(WeightsError, match="damaged"):
        open_engine(cut)


def test_eight_bits_stay_in_the_delegate_and_answer_nearly_the_same(classifier: tuple[Any, Path, Any], tmp_path: Path) -> None:
    program = program_of("classify", size=(64, 96), precision="int8", postprocessing="none")
    pixels = np.stack([np.asarray(made_picture(seed).resize((96, 64))) for seed in range(4)])
    assert FORMAT.quantise is not None
    calibrated = Calibrated(ranges=pixels, held=pixels, skipped=(), samples=(), found=4)
    written = FORMAT.quantise(program, tmp_path / "model.pte", calibrated)
    told = written.quantisation
    assert told is not None
    assert told["integer_convolutions"] > 0.5 * told["convolutions"]  # the means of norms are linear layers too
    assert not {"convolution", "linear", "sigmoid", "mul", "add"} & set(written.outside)
    assert (tmp_path / "model.pte").stat().st_size < 0.6 * classifier[1].stat().st_size
    engine = open_engine(tmp_path / "model.pte", threads=1)
    image = np.ascontiguousarray(np.asarray(made_picture(5).resize((96, 64)), np.float32).transpose(2, 0, 1)[None] / 255)
    with torch.no_grad():
        wanted = program.model(torch.from_numpy(image)).logits.numpy()
    assert 0 < np.abs(engine.run(image)["logits"] - wanted).max() < 0.2 * np.abs(wanted).max()


def test_half_precision_takes_less_room_and_casts_at_its_ends_alone(classifier: tuple[Any, Path, Any], tmp_path: Path) -> None:
    program = program_of("classify", size=(64, 96), precision="fp16", postprocessing="none")
    written = FORMAT.write(program, tmp_path / "model.pte")
    assert written.outside == {"_to_dim_order_copy": 2}
    assert any("rounded as this processor's kernels do it" in note for note in written.notes)
    assert (tmp_path / "model.pte").stat().st_size < 0.8 * classifier[1].stat().st_size  # convolutions' weights stay as they are
    image = pictures(height=64, width=96, seed=1)
    with torch.no_grad():
        wanted = program.model(image).logits.numpy()
    found = open_engine(tmp_path / "model.pte", threads=1).run(image.numpy())["logits"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_what_is_sensitive_stays_float() -> None:
    from mobilevitv2.export.quantise.executorch_plan import WEIGHTED, integer_nodes, module_of

    module = token_module(program_of("classify"), free_mean=False)
    gate_silu(module)
    with torch.no_grad():
        graph = torch.export.export(module, (torch.rand(1, 3, 64, 64),), strict=False).module().graph
    chosen = integer_nodes(graph)
    names = {str(node.target).split(".")[1] for node in chosen}
    assert {"conv2d", "linear", "sigmoid", "mul"} <= names
    assert not {"softmax", "bmm", "mean", "rsqrt", "sub"} & names
    left = {module_of(node)[0].rpartition(".")[2] for node in graph.nodes if node.target in WEIGHTED and node not in chosen}
    assert left == {"key", "layernorm", "layernorm_before", "layernorm_after", "classifier"}


def test_a_segmenter_with_pictures_of_bytes(tmp_path: Path) -> None:
    program = program_of("segment", inside=True, postprocessing="none", segmentation_head="pspnet")
    path = tmp_path / "model.pte"
    written = FORMAT.write(program, path)
    assert not {"convolution", "linear", "mm", "addmm", "bmm"} & set(written.outside)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with torch.no_grad():
        wanted = program.model(torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255).logits.numpy()
    found = open_engine(path, threads=1).run(image)["logits"]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_detector_with_its_anchors_as_constants(precision: str, tmp_path: Path) -> None:
    program = program_of("detect", precision=precision)
    written = FORMAT.write(program, tmp_path / "model.pte")
    assert not {"arange", "expand_copy", "select_copy"} & set(written.outside)
    image = pictures(height=64, width=64, seed=1)
    with torch.no_grad():
        wanted = token_module(program, free_mean=False)(image)
    found = open_engine(tmp_path / "model.pte", threads=1).run(image.numpy())
    for name, value in zip(("scores", "boxes"), wanted, strict=True):
        allowed = 1e-5 if precision == "fp32" else 0.02
        np.testing.assert_allclose(found[name], value.numpy(), atol=allowed * float(value.abs().max()))


def test_free_axes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="batch cannot be free"):
        FORMAT.write(replace(program_of("classify"), dynamic=("batch",)), tmp_path / "model.pte")
    assert not list(tmp_path.iterdir())
