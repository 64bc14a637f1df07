"""What is named in place of an exported file: each is told what to give instead, by every verb and in Python."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from mobilevitv2.cli import main
from mobilevitv2.contract import load_model, resolve
from mobilevitv2.errors import ConfigurationError, MissingDependency
from mobilevitv2.runtime import open_model

OURS = ("model.onnx", "model.xml", "model.tflite")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exports leave behind."""
    for name in (*OURS, "model.onnx.report.json", "model.report.json", "other.report.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.bin").write_bytes(b"\x00\x01\x02\x03")
    (tmp_path / "app.mlpackage").mkdir()
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("")
    (tmp_path / "site" / "model.onnx").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FOREIGN = {
    "app.mlpackage": "Apple's systems only; export the model in a format that runs here: onnx (.onnx), openvino (.xml)",
    "model.bin": "give model.xml",
    "model.onnx.report.json": "the report of an export, not the model; give model.onnx.",
    "model.report.json": "give model.onnx or model.xml or model.tflite.",
    "other.report.json": "give the exported file itself, which ends in .onnx, .xml, .pte, .tflite.",
    "site": "give the model in it, site/model.onnx.",
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_parts_of_an_export_are_told_from_models(name: str, folder: Path):
    for opens in (resolve, open_model, load_model):
        with pytest.raises(ConfigurationError) as caught:
            opens(name)
        assert str(caught.value).startswith(name)
        assert FOREIGN[name] in str(caught.value)


@pytest.mark.parametrize("name", ["app.mlpackage", "model.bin"])
@pytest.mark.parametrize("verb", [["predict", "cat.jpg"], ["evaluate", "data"], ["benchmark"]])
def test_every_verb_says_so(verb: list[str], name: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*verb, "--model", name]) == 2
    assert f"{name} " in (err := capsys.readouterr().err)
    assert FOREIGN[name] in err


def test_a_folder_called_like_a_file(folder: Path):
    with pytest.raises(ConfigurationError, match=r"folder\.onnx is a folder"):
        open_model("folder.onnx")


def test_torchs_own_bin_files_stay_weights(folder: Path):
    (folder / "model.bin").write_bytes(b"PK\x03\x04")
    assert resolve("model.bin") == "model.bin"


def test_pytorch_is_not_given_an_exported_file(folder: Path):
    with pytest.raises(ConfigurationError, match=r"model\.onnx is an exported file.*open_model"):
        load_model("model.onnx")


@pytest.mark.parametrize(
    ("suffix", "library", "start"), [("pte", "executorch", b"....ET12"), ("tflite", "ai_edge_litert", b"....TFL3")]
)
def test_a_runtime_that_is_not_installed_is_named(suffix: str, library: str, start: bytes, tmp_path: Path):
    if find_spec(library) is not None:
        pytest.skip(f"{library} is installed")
    (tmp_path / f"model.{suffix}").write_bytes(start)
    with pytest.raises(MissingDependency, match="pip install 'mobilevitv2"):
        open_model(tmp_path / f"model.{suffix}")


@pytest.mark.parametrize("setting", ["threads", "callers"])
def test_no_thread_answers_nothing(setting: str, folder: Path):
    with pytest.raises(ConfigurationError, match=f"{setting}=0"):
        open_model("model.onnx", **{setting: 0})
