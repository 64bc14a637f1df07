"""Core ML packages: pictures in, labels inside, operators that the target has, and a graph that answers as PyTorch does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_programs import program_of

from mobilevitv2.errors import ConfigurationError, WeightsError

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from mobilevitv2.export.coreml import check, convert, write
from mobilevitv2.export.coreml_evaluation import evaluate
from mobilevitv2.export.formats import COREML as FORMAT

# coremltools and torch warn about each other's versions.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    program = program_of("classify", inside=True)
    path = tmp_path_factory.mktemp("coreml") / "model.mlpackage"
    return program, path, write(program, path)


def test_the_package_takes_pictures_and_names_classes(classifier: tuple[Any, Path, Any]) -> None:
    import coremltools

    program, path, _ = classifier
    description = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
    image = description.input[0]
    assert (image.name, image.type.WhichOneof("Type")) == ("image", "imageType")
    assert (image.type.imageType.height, image.type.imageType.width) == (64, 64)
    assert description.predictedFeatureName
    assert description.predictedProbabilitiesName
    assert description.metadata.userDefined["mobilevitv2"] == program.metadata.to_json()
    assert json.loads(description.metadata.userDefined["mobilevitv2"])["labels"][9] == "class 9"


def test_the_report_says_that_it_was_not_run(classifier: tuple[Any, Path, Any]) -> None:
    program, path, written = classifier
    assert any("not run" in note for note in written.notes)
    lines = check(program, path)
    assert lines[0].startswith("not run")
    assert lines[1] == "sizes: 64 x 64"
    assert "conv" in lines[2]
    assert FORMAT.engine is None


def test_a_wrong_graph_is_found(classifier: tuple[Any, Path, Any]) -> None:
    program, path, _ = classifier
    other = program_of("classify", inside=True, n_attn_blocks=[2, 1, 1])
    with pytest.raises(WeightsError, match="differs from PyTorch"):
        check(replace(program, module=other.module, model=other.model), path)


@pytest.mark.parametrize(
    ("task", "options"),
    [("segment", {}), ("segment", {"segmentation_head": "pspnet", "postprocessing": "none"}), ("detect", {"size": (96, 64)})],
)
def test_graphs_of_the_other_tasks_answer_as_pytorch_does(task: str, options: dict[str, Any]) -> None:
    program = program_of(task, **options)
    image = torch.rand(1, 3, *program.size, generator=torch.Generator().manual_seed(1))
    found = evaluate(convert(program)._mil_program, image.numpy())
    with torch.no_grad():
        wanted = program.module(image)
    for name, value in zip(program.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        if name == "mask":
            assert (found[name] == value.numpy()).mean() > 0.999
        else:
            np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-5 * float(value.abs().max()))


def test_one_package_takes_several_sizes(tmp_path: Path) -> None:
    import coremltools

    program = replace(program_of("classify", inside=True, size=(128, 192)), dynamic=("height", "width"))
    path = tmp_path / "model.mlpackage"
    write(program, path)
    image = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description.input[0].type.imageType
    assert {(size.height, size.width) for size in image.enumeratedSizes.sizes} == {(128, 192), (256, 384)}
    assert "256 x 384" in check(program, path)[1]


def test_half_precision_keeps_sums_in_single(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    program = program_of("classify", precision="fp16")
    path = tmp_path / "model.mlpackage"
    write(program, path)
    assert check(program, path)
    operations = convert(program)._mil_program.functions["main"].operations
    found = {(each.op_type, types.builtin_to_string(each.outputs[0].dtype)) for each in operations if each.op_type != "const"}
    kinds = {name: {kind for operator, kind in found if operator == name} for name in ("conv", "softmax", "reduce_mean")}
    assert kinds == {"conv": {"fp16"}, "softmax": {"fp32"}, "reduce_mean": {"fp32"}}


def test_weights_of_eight_bits_take_half_the_room_and_answer_nearly_the_same(tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp16", "int8-weights"):
        program = program_of("classify", precision=precision, inside=True)
        path = tmp_path / f"{precision}.mlpackage"
        assert FORMAT.quantise is not None
        written = write(program, path) if precision == "fp16" else FORMAT.quantise(program, path, None)
        sizes[precision] = sum(each.stat().st_size for each in (path / "Data").rglob("weight.bin"))
        line = check(program, path)[0]
    assert sizes["int8-weights"] < 0.6 * sizes["fp16"]
    assert written.operators["constexpr_affine_dequantize"] > 20
    assert written.quantisation is not None
    share = float(line.rpartition("by ")[2].split()[0])
    assert 0 < share < 0.1


def test_a_free_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="batch cannot be free"):
        write(replace(program_of("classify"), dynamic=("batch",)), tmp_path / "model.mlpackage")
    assert not list(tmp_path.iterdir())
