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

from mobilevitv2.export.executorch import FORMAT
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


def test_what_is_sensitive_stays_float() -> None:
    from mobilevitv2.export.forms import token_module
    from mobilevitv2.export.quantise.executorch_plan import WEIGHTED, integer_nodes, module_of
    from mobilevitv2.export.quantise.executorch_quantising import Gated

    module = token_module(program_of("classify"), free_mean=False)
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, torch.nn.SiLU):
                setattr(part, name, Gated())
    with torch.no_grad():
        graph = torch.export.export(module, (torch.rand(1, 3, 64, 64),), strict=False).module().graph
    chosen = integer_nodes(graph)
    names = {str(node.target).split(".")[1] for node in chosen}
    assert {"conv2d", "linear", "sigmoid", "mul"} <= names
    assert not {"softmax", "bmm", "mean", "rsqrt", "sub"} & names
    left = {module_of(node)[0].rpartition(".")[2] for node in graph.nodes if node.target in WEIGHTED and node not in chosen}
    assert left == {"key", "layernorm", "layernorm_before", "layernorm_after", "classifier"}


def test_weights_alone_are_refused(tmp_path: Path) -> None:
    assert FORMAT.quantise is not None
    with pytest.raises(ConfigurationError, match="use 'int8' with pictures"):
        FORMAT.quantise(program_of("classify", precision="int8-weights"), tmp_path / "model.pte", None)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("change", "message"), [({"dynamic": ("batch",)}, "batch cannot be free"), ({"precision": "fp16"}, "'fp16'")]
)
def test_what_the_format_has_not_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FORMAT.write(replace(program_of("classify"), **change), tmp_path / "model.pte")
    assert not list(tmp_path.iterdir())
