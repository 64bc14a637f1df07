"""The snippets of docs/deploy.md: names and shapes are those of exported files, and the Python ones run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_export_onnx import PICTURES, model_of

from mobilevitv2.export import export
from mobilevitv2.runtime import open_model

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"<!-- (\S+) -->\n```(\w+)\n(.*?)```", TEXT, re.DOTALL)
NAMES = {"image", "probabilities", "logits", "mask", "boxes", "scores", "labels", "count", "classLabel", "classLabel_probs"}

pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


def named(code: str) -> set[str]:
    """Names of inputs and outputs that the code has in quotes, but for keys of the metadata."""
    found = set(re.findall(r"""(?<!about\[)["'](\w+)["']""", code))
    return found & NAMES


def shapes(code: str) -> set[tuple[int, ...]]:
    """Shapes of the input: numbers that begin with a batch of one."""
    found = re.findall(r"[({]\s*(1(?:,\s*\d+){3})\s*[)}]", code) + re.findall(r"\((1(?: \* \d+){3})\)", code)
    return {tuple(map(int, re.split(r"\D+", each))) for each in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="module")
def onnx_file(folder: Path) -> Path:
    """The file of the first command."""
    export("mobilevitv2-0.75-objects112", folder / "model.onnx", preprocessing=True, pictures=PICTURES, threads=1)
    shutil.copy(ROOT / "examples" / "cat.jpg", folder / "cat.jpg")
    return folder / "model.onnx"


def small(folder: Path, name: str, **options: Any) -> Path:
    """A narrow model of as many classes and the same size, which has the same names and shapes."""
    export(model_of("classify", num_labels=112), folder / name, preprocessing=True, pictures=PICTURES, **options)
    return folder / name


def test_there_are_snippets_for_every_runtime():
    found = {(Path(name).suffix, language) for name, language, _ in SNIPPETS}
    wanted = {
        (".onnx", "python"),
        (".onnx", "kotlin"),
        (".onnx", "cpp"),
        (".tflite", "kotlin"),
        (".mlpackage", "swift"),
        (".pte", "cpp"),
    }
    assert found == wanted


@pytest.mark.parametrize("number", [n for n, (_, language, _) in enumerate(SNIPPETS) if language == "python"])
def test_python_snippets_run(number: int, onnx_file: Path):
    done = subprocess.run(
        [sys.executable, "-c", SNIPPETS[number][2]], cwd=onnx_file.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "cat 0.94"


def test_names_and_shapes_of_onnx(onnx_file: Path):
    engine = open_model(onnx_file, threads=1).engine
    own = {*engine.inputs, *engine.outputs}
    shape = engine.inputs["image"][0][1:]
    for name, language, code in SNIPPETS:
        if name != "model.onnx" or "open_model" in code:
            continue
        assert named(code) == own, language
        assert shapes(code) == {(1, *shape)}, language


@pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")
def test_names_and_shapes_of_litert(folder: Path):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(small(folder, "model.tflite")))
    (signature,) = interpreter.get_signature_list().values()
    (code,) = (code for name, _, code in SNIPPETS if name == "model.tflite")
    assert named(code) == {*signature["inputs"], *signature["outputs"]}
    assert shapes(code) == {tuple(interpreter.get_input_details()[0]["shape"])}
    assert f"FloatArray({interpreter.get_output_details()[0]['shape'][1]})" in code


@pytest.mark.filterwarnings("ignore")  # executorch warns of itself, as its own tests here have it
@pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")
def test_shapes_of_executorch(folder: Path):
    engine = open_model(small(folder, "model.pte")).engine
    (code,) = (code for name, _, code in SNIPPETS if name == "model.pte")
    assert shapes(code) == {engine.inputs["image"][0]}
    assert engine.inputs["image"][1] == "uint8" and "ScalarType::Byte" in code
    assert list(engine.outputs) == ["probabilities"] and "const auto probabilities = results->at(0)" in code
    assert engine.metadata is not None and "The method `mobilevitv2` of the same file" in TEXT.replace("\n", " ")


@pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed")
def test_names_of_core_ml(folder: Path):
    import coremltools

    path = small(folder, "model.mlpackage", precision="fp16")
    description = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
    (code,) = (code for name, _, code in SNIPPETS if name == "model.mlpackage")
    assert named(code) == {port.name for port in (*description.input, *description.output)}
    assert (description.input[0].type.imageType.height, description.input[0].type.imageType.width) == (256, 256)


def test_commands_are_understood():
    from mobilevitv2.cli.arguments import arguments_of
    from mobilevitv2.cli.exporting import export as verb

    commands = re.findall(r"^ {4}mobilevitv2 export (.*?[^\\])$", TEXT.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 7
    for words in commands:
        assert arguments_of(verb, words.split(), prog="mobilevitv2 export")["model"] == "mobilevitv2-0.75-objects112"


def test_the_table_of_precisions_is_what_the_formats_offer():
    from mobilevitv2.export import FORMATS
    from mobilevitv2.export.formats import get_format

    rows = re.findall(r"^\| `(\w+)`(?:, `--delegate (\w+)`)? \| ([^|]+) \|", TEXT, re.MULTILINE)
    told = {(name, delegate or None): tuple(offered.strip().split(", ")) for name, delegate, offered in rows if name in FORMATS}
    kinds = {(name, delegate) for name in FORMATS for delegate in (None, *list(get_format(name).delegates)[1:])}
    assert told == {(name, delegate): get_format(name, delegate=delegate).offered for name, delegate in kinds}
