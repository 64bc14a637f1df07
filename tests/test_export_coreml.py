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
from PIL import Image

from mobilevitv2.errors import ConfigurationError, WeightsError

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from mobilevitv2.export.comparing import Comparison
from mobilevitv2.export.coreml import check, convert, write
from mobilevitv2.export.coreml_evaluation import evaluate
from mobilevitv2.export.formats import COREML as FORMAT
from mobilevitv2.export.samples import made_picture

# coremltools and torch warn about each other's versions.
pytestmark = pytest.mark.filterwarnings("ignore")
PICTURES = [made_picture(seed) for seed in range(4)]


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
    found = check(program, path)
    assert found.lines[0].startswith("not run: the package, read back, evaluated operator by operator on 1 picture, differs from")
    assert found.lines[1] == "sizes: 64 x 64"
    assert "each in coremltools' tables for iOS16" in found.lines[2]
    assert "conv" in found.lines[2]
    assert FORMAT.engine is None


def test_a_wrong_graph_is_found(classifier: tuple[Any, Path, Any]) -> None:
    program, path, _ = classifier
    other = program_of("classify", inside=True, n_attn_blocks=[2, 1, 1])
    with pytest.raises(
        WeightsError, match=r"the coreml file does not answer as PyTorch does: probabilities by .* Every stage by itself"
    ):
        check(replace(program, module=other.module, model=other.model), path)


def test_the_stage_that_departs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mobilevitv2.export.coreml as coreml

    plain = coreml.picture_module

    def broken(program: Any) -> Any:
        module = plain(program)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if ".encoder.layer.2." in name and "conv" in name:
                    parameter.mul_(4)
        return module

    monkeypatch.setattr(coreml, "picture_module", broken)
    monkeypatch.setattr(Comparison, "fits", lambda *_: False)  # answers of random weights hardly show it
    program, path = (
        program_of("classify", inside=True, precision="int8-weights", postprocessing="none"),
        tmp_path / "model.mlpackage",
    )
    assert FORMAT.quantise is not None
    FORMAT.quantise(program, path, None)
    with pytest.raises(WeightsError, match="first stage that departs is stage3"):
        check(program, path, PICTURES[:1])


def test_real_pictures_are_compared_before_made_ones(classifier: tuple[Any, Path, Any]) -> None:
    program, path, _ = classifier
    real = Image.effect_noise((70, 66), 90).convert("RGB")
    found = check(program, path, [*PICTURES, real])
    assert (found.pictures, found.made) == (3, 2)
    assert found.comparison.answers == "top-1 labels"
    assert (found.comparison.count, found.comparison.agreement) == (3, 1.0)
    assert 0 < found.to_dict()["relative_difference"] < 1e-4


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_masks_and_boxes_are_compared(task: str, tmp_path: Path) -> None:
    program = program_of(task, inside=True, channel_order="BGR")
    write(program, tmp_path / "model.mlpackage")
    found = check(program, tmp_path / "model.mlpackage", PICTURES[:2])
    assert found.comparison.answers == {"segment": "pixels", "detect": "detections"}[task]
    assert found.comparison.decided > 0.999
    assert found.comparison.count > 2


def test_operators_newer_than_the_target_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mobilevitv2.export.coreml as coreml

    program, path = program_of("classify"), tmp_path / "model.mlpackage"
    monkeypatch.setattr(coreml, "TARGET", "iOS17")
    write(program, path)
    assert "iOS17" in check(program, path).lines[2]
    monkeypatch.setattr(coreml, "TARGET", "iOS16")
    with pytest.raises(WeightsError, match="wants iOS17, where iOS16 was meant"):
        check(program, path)
    mil = coreml.loaded(path)
    mil.functions["main"]._opset_version = None  # as the operators alone tell it
    with pytest.raises(WeightsError, match="wants None"):
        coreml.looked_through(mil)
    operations = [each for each in mil.functions["main"].operations if each.op_type == "conv"]
    import coremltools

    older = type("Function", (), {"opset_version": coremltools.target.iOS16})
    with pytest.raises(WeightsError, match=r"operator 'conv' .* is none of iOS16's"):
        coreml._check_target(older, operations)


def test_the_report_holds_the_comparison(tmp_path: Path) -> None:
    from test_export_onnx import model_of

    from mobilevitv2.export import export

    report = export(model_of("classify"), tmp_path / "model.mlpackage", size=(64, 64), pictures=PICTURES)
    told = json.loads((tmp_path / "model.mlpackage.report.json").read_text())
    assert (told["run"], told["verification"]) == (False, None)
    assert told["checked"][0].startswith("not run")
    assert (told["evaluation"]["pictures"], told["evaluation"]["made"]) == (3, 0)
    assert told["evaluation"]["comparison"]["answers"] == "top-1 labels"
    assert "3 of 3 top-1 labels as PyTorch's" in report.table()


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
    found = check(program, path)
    assert "256 x 384" in found.lines[1]
    assert found.shapes["256 x 384"] < 1e-4


def test_half_precision_keeps_sums_in_single(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    program = program_of("classify", precision="fp16")
    path = tmp_path / "model.mlpackage"
    write(program, path)
    assert check(program, path).comparison.count == 1
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
        share = check(program, path).comparison.relative
    assert sizes["int8-weights"] < 0.6 * sizes["fp16"]
    assert written.operators["constexpr_affine_dequantize"] > 20
    assert written.quantisation is not None
    assert 0 < share < 0.1


def test_a_free_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="batch cannot be free"):
        write(replace(program_of("classify"), dynamic=("batch",)), tmp_path / "model.mlpackage")
    assert not list(tmp_path.iterdir())
