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
