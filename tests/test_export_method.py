"""`model.export`: of every model class, with the options and the report of `mobilevitv2.export.export` and of the command."""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from small_models import randomise, small_config
from test_export_onnx import CLASSES, OUTPUTS, PICTURES, model_of

from mobilevitv2 import MobileViTV2ImageProcessor, MobileViTV2Model, MobileViTV2PreTrainedModel, create
from mobilevitv2.contract import own_processor
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export import export
from mobilevitv2.export.metadata import licence_of
from mobilevitv2.export.quantise import Calibration
from mobilevitv2.runtime import open_model

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


@needs_onnx
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_every_model_class_exports_itself(task: str, tmp_path: Path) -> None:
    report = model_of(task).export(tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES, threads=1)
    assert report.verification is not None
    assert report.verification.comparison.agreement > 0.999
    model = open_model(tmp_path / "model.onnx")
    assert model.task == task
    assert list(model.engine.outputs) == OUTPUTS[task]
    assert json.loads((tmp_path / "model.onnx.report.json").read_text())["run"]


def test_the_options_are_those_of_the_function() -> None:
    of_model = dict(inspect.signature(MobileViTV2PreTrainedModel.export).parameters)
    of_function = dict(inspect.signature(export).parameters)
    del of_model["self"], of_function["model"], of_function["task"]  # a model has its task
    assert {name: each.default for name, each in of_model.items()} == {name: each.default for name, each in of_function.items()}
    assert [name for name, each in of_model.items() if each.kind is each.POSITIONAL_OR_KEYWORD] == ["path"]


def test_the_command_has_no_option_that_the_function_has_not() -> None:
    from mobilevitv2.cli.exporting import export as verb

    renamed = {"calibrate": "calibration", "raw_outputs": "postprocessing"}
    of_command = {renamed.get(name, name) for name in inspect.signature(verb).parameters}
    of_command -= {"also", "ort_web", "json", "weight_bits"}  # the last is one of Calibration
    assert of_command <= set(inspect.signature(export).parameters)
    assert get_type_hints(verb)["return"] is int


@needs_onnx
def test_the_file_is_that_of_the_command(tmp_path: Path) -> None:
    name = "mobilevitv2-0.75-objects112"
    ours = create(name).export(tmp_path / "model.onnx", pictures=PICTURES, threads=1)
    theirs = export(name, tmp_path / "command.onnx", pictures=PICTURES, threads=1)
    assert ours.metadata == theirs.metadata
    assert ours.metadata.picture.resize == {"shortest_edge": 272}
    assert (tmp_path / "model.onnx").read_bytes() == (tmp_path / "command.onnx").read_bytes()


@needs_onnx
def test_a_file_that_is_not_named_takes_the_models_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevitv2.cli import main

    model_of("classify").save_pretrained(tmp_path / "mine-0.5")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "mine-0.5", "--format", "onnx", "--size", "64", "--threads", "1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine-0.5", "mine-0.5.onnx", "mine-0.5.onnx.report.json"]


CARD = "---\nlibrary_name: mobilevitv2\nlicense: {}\n---\n\n# A model\n"
APPLES, UNKNOWN = "Apple sample code licence", "unknown; that of the weights holds"


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, UNKNOWN),
        ({"README.md": CARD.format("cc-by-4.0")}, "cc-by-4.0"),
        ({"README.md": CARD.format("[mit, cc0-1.0]"), "config.json": '{"license": "bsd"}'}, "mit, cc0-1.0"),
        ({"README.md": CARD.format("other\nlicense_name: house rules")}, "house rules"),
        ({"README.md": "# A model\n\nlicense: mit\n", "config.json": '{"license": "bsd"}'}, "bsd"),
        ({"README.md": "---\n: [\n---\n", "config.json": "{"}, UNKNOWN),
        ({"README.md": "---\nlicense:\n---\n"}, UNKNOWN),
    ],
)
def test_the_licence_of_a_folder_is_what_it_says(files: dict[str, str], licence: str, tmp_path: Path) -> None:
    folder = tmp_path / "mobilevitv2-1.0-imagenet1k-256"  # as a record, which it is not
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "model.safetensors").write_bytes(b"")
    assert licence_of(folder) == licence_of(folder / "model.safetensors") == licence


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("mobilevitv2-1.0-imagenet1k-256", APPLES), ("apple/mobilevitv2-1.0-imagenet1k-256", APPLES),
        ("mobilevitv2-0.75-objects112", "cc-by-nc-sa-4.0"), ("somebody/mobilevitv2-1.0-imagenet1k-256", UNKNOWN), (None, UNKNOWN),
    ],
)  # fmt: skip
def test_the_licence_of_a_record_is_had_by_its_name_alone(
    name: str | None, licence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert licence_of(name) == licence
    if name is not None:
        (tmp_path / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert licence_of(name) == UNKNOWN


@needs_onnx
def test_a_fine_tune_in_a_folder_named_as_its_start_has_not_its_licence(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mobilevitv2-1.0-imagenet1k-256"
    model_of("classify").save_pretrained(folder)
    for model in (folder, create(folder)):
        report = export(model, tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES, threads=1, overwrite=True)
        assert (report.metadata.source, report.metadata.licence) == (folder.name, UNKNOWN)
    (folder / "README.md").write_text(CARD.format("mit"))
    report = create(folder).export(tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES, threads=1, overwrite=True)
    assert report.metadata.licence == "mit"


@needs_onnx
def test_source_licence_and_bits_are_options_of_the_command(tmp_path: Path) -> None:
    from mobilevitv2.cli import main

    model_of("classify").save_pretrained(tmp_path / "mine")
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(PICTURES):
        picture.save(tmp_path / "photos" / f"{number}.png")
    words = ["export", str(tmp_path / "mine"), str(tmp_path / "model.onnx"), "--size", "64"]
    words += ["--source", "pets 3", "--licence", "MIT"]
    quantised = ["--precision", "int8", "--calibrate", str(tmp_path / "photos"), "--weight-bits"]
    for bits in ("8", "7"):
        assert main([*words, *quantised, bits, "--overwrite"]) == 0
        report = json.loads((tmp_path / "model.onnx.report.json").read_text())
        assert report["quantisation"]["weights"] == f"int8 by channel, {bits} bits of it used"
    metadata = open_model(tmp_path / "model.onnx").metadata
    assert (metadata.source, metadata.licence) == ("pets 3", "MIT")


@pytest.mark.parametrize("path", ["model.tflite", "model.pte"])
def test_bits_that_would_have_no_effect_are_refused(path: str, tmp_path: Path) -> None:
    calibration = Calibration(data=PICTURES, weight_bits=8)
    with pytest.raises(ConfigurationError, match=r"weight_bits=8 \(--weight-bits\) has no effect"):
        model_of("classify").export(tmp_path / path, precision="int8", calibration=calibration)


@needs_onnx
def test_a_folders_image_processor_is_found(tmp_path: Path) -> None:
    from mobilevitv2 import MobileViTV2ImageProcessor

    randomise(CLASSES["classify"](small_config())).save_pretrained(tmp_path / "mine")
    MobileViTV2ImageProcessor(size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path / "mine")
    report = create(tmp_path / "mine").export(tmp_path / "model.onnx", pictures=PICTURES)
    assert (report.metadata.source, report.metadata.picture.resize) == ("mine", {"shortest_edge": 80})
    assert report.notes == ()


@needs_onnx
def test_what_pictures_the_model_wants_is_said_where_it_was_assumed(tmp_path: Path) -> None:
    report = model_of("classify").export(tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES)
    assert any("official validation" in note for note in report.notes)


@needs_onnx
def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = model_of("classify").to(torch.float64).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export(tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES)
    assert model.training
    after: dict[str, Any] = model.state_dict()
    assert all(value.dtype == before[name].dtype and torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "model.onnx", "precision": "int8"}, "needs pictures"),
        ({"path": "model.onnx", "precision": "fp8"}, "'fp8' is unknown"),
        ({"path": "site", "format": "web"}, "export_site"),
        ({"path": "model.tfl"}, "does not tell its format"),
    ],
)
def test_bad_requests_are_answered(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        model_of("classify").export(**{**settings, "path": tmp_path / settings["path"]})
    assert list(tmp_path.iterdir()) == []


def test_a_trunk_has_no_exported_form(tmp_path: Path) -> None:
    if find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    with pytest.raises(ConfigurationError, match="no exported form"):
        MobileViTV2Model(small_config()).export(tmp_path / "model.onnx")


def test_a_model_of_no_folder_does_not_take_the_current_folders_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MobileViTV2ImageProcessor(size={"shortest_edge": 99}).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert own_processor(model_of("classify")) is None
