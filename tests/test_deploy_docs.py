"""The snippets of docs/deploy.md: names, types and shapes are those of exported files, and the Python ones run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_export_onnx import PICTURES, model_of

from mobilevitv2.export import export
from mobilevitv2.runtime import open_model
from mobilevitv2.weights.records import bundled_folder

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SNIPPETS = [(names.split(), *rest) for names, *rest in re.findall(r"<!-- ([\w. ]+) -->\n```(\w+)\n(.*?)```", TEXT, re.DOTALL)]
NAMES = {"image", "probabilities", "logits", "mask", "boxes", "scores", "labels", "count", "classLabel", "classLabel_probs"}
TASKS = {"model": "classify", "apple": "classify", "segment": "segment", "detect": "detect"}
BUNDLED = {
    "classify": "mobilevitv2-0.75-objects112",
    "segment": "deeplabv3-mobilevitv2-0.75-pets",
    "detect": "ssdlite-mobilevitv2-0.75-pet-heads",
}
FUNCTION = re.compile(r"(?:fun|func|>) (classify|segment|detect|probabilities)\(")
SIDE = re.compile(r"side: (\d+)|rgb\(picture, (\d+)|pixels, (\d+)|[\[({]1, (\d+), \4, 3[\])}]")

pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


def code_of(file: str, language: str) -> str:
    """The snippet for a file."""
    (code,) = (code for files, its_language, code in SNIPPETS if file in files and its_language == language)
    return str(code)


def part(file: str, language: str) -> str:
    """The function of the snippet that calls the file, up to the next one."""
    code, task = code_of(file, language), TASKS[file.partition(".")[0]]
    found = [*FUNCTION.finditer(code)]
    own = {each[1].replace("probabilities", "classify"): number for number, each in enumerate(found)}[task]
    end = found[own + 1].start() if own + 1 < len(found) else len(code)
    return code[found[own].start() : end]


def named(code: str) -> set[str]:
    """Names of outputs that the code has in quotes, but for keys of the metadata."""
    found = set(re.findall(r"""(?<!about\[)["'](\w+)["']""", code))
    return (found & NAMES) - {"image"}


def sides(code: str) -> set[int]:
    """Heights and widths of the input."""
    return {int(number) for each in SIDE.findall(code) for number in each if number}


def contract(task: str) -> dict[str, Any]:
    """What the model inside the package wants of its pictures."""
    folder = bundled_folder() / BUNDLED[task]
    if not folder.is_dir():
        pytest.skip(f"{BUNDLED[task]} is not inside the package")
    values: dict[str, Any] = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    return values


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
    """A narrow model for small pictures, whose file has the same names and types."""
    task = TASKS[name.partition(".")[0]]
    model = model_of(task, **({"num_labels": 112} if task == "classify" else {}))
    export(model, folder / name, preprocessing=True, pictures=PICTURES, size=(64, 64), **options)
    return folder / name


# ---- what the document has -------------------------------------------------------------------------------------------------------


def test_there_are_snippets_for_every_runtime():
    found = {(name, language) for names, language, _ in SNIPPETS for name in names}
    assert found == {
        *[("model.onnx", language) for language in ("python", "kotlin", "cpp")],
        *[("detect.onnx", language) for language in ("kotlin", "cpp")],
        *[(f"{name}.tflite", "kotlin") for name in TASKS if name != "apple"],
        *[(f"{name}.mlpackage", "swift") for name in TASKS if name != "apple"],
        *[("model.pte", language) for language in ("kotlin", "cpp")],
        ("apple.pte", "swift"),
        ("Pictures.kt", "kotlin"),
        ("Pictures.swift", "swift"),
        ("Suppress.swift", "swift"),
    }


@pytest.mark.parametrize(
    ("file", "language"),
    sorted(
        {(name, language) for names, language, _ in SNIPPETS for name in names if Path(name).stem in TASKS}
        - {("model.onnx", "python")}
    ),
)
def test_pictures_go_in_as_the_models_want_them(file: str, language: str):
    wanted, code = contract(TASKS[file.partition(".")[0]]), part(file, language)
    if "crop_size" in wanted and wanted.get("do_center_crop"):
        side, edge = wanted["crop_size"]["height"], wanted["size"]["shortest_edge"]
        if language != "cpp":  # which takes pixels that are cropped already
            assert re.search(rf"\b{side}(f|\.0)? / {edge}(f|\.0)?\b", code)
    else:
        side = wanted["size"]["height"]
        assert " / " not in code.partition("\n    let scores")[0]
    assert sides(code) == {side}
    assert language == "cpp" or '"image"' in code_of(file, language) or file.endswith(".pte")


@pytest.mark.parametrize("language", ["kotlin", "swift"])
def test_suppression_is_the_runtimes(language: str):
    from mobilevitv2.runtime.model import CANDIDATES, DEFAULT_THRESHOLD, IOU

    code = code_of("Pictures.kt" if language == "kotlin" else "Suppress.swift", language)
    assert re.search(rf"threshold: Float = {DEFAULT_THRESHOLD}f?\b", code)
    assert re.search(rf"> {IOU}f?\b", code) and re.search(rf"(take|prefix)\({CANDIDATES}\)", code)


# ---- against files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [n for n, (_, language, _) in enumerate(SNIPPETS) if language == "python"])
def test_python_snippets_run_without_torch(number: int, onnx_file: Path):
    without = "import sys\nsys.modules['torch'] = sys.modules['transformers'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", without + SNIPPETS[number][2]], cwd=onnx_file.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "cat 0.94"


def test_labels_come_from_the_report(onnx_file: Path):
    (code,) = re.findall(r'^ {4}python -c "(.*)" > labels\.txt$', TEXT, re.MULTILINE)
    done = subprocess.run([sys.executable, "-c", code], cwd=onnx_file.parent, capture_output=True, text=True, check=True)
    assert tuple(done.stdout.splitlines()) == open_model(onnx_file, threads=1).metadata.labels


def test_names_and_types_of_onnx(onnx_file: Path, folder: Path):
    python = [
        code for names, language, code in SNIPPETS if names == ["model.onnx"] and language == "python" and "open_model" not in code
    ]
    for file in ("model.onnx", "detect.onnx"):
        engine = open_model(onnx_file if file == "model.onnx" else small(folder, file), threads=1).engine
        assert {name: dtype for name, (_, dtype) in engine.inputs.items()} == {"image": "uint8"}
        for code in [part(file, "kotlin"), part(file, "cpp"), *(python if file == "model.onnx" else [])]:
            assert named(code) == set(engine.outputs)
    types = {name: dtype for name, (_, dtype) in engine.outputs.items()}
    assert types == {"boxes": "float32", "scores": "float32", "labels": "int64", "count": "int64"}
    kotlin, cpp = part("detect.onnx", "kotlin"), part("detect.onnx", "cpp")
    for name, dtype in types.items():
        assert f'output("{name}").{"float" if dtype == "float32" else "long"}Buffer' in kotlin
        number = re.findall(r'"(\w+)"', cpp).index(name)
        assert f"results[{number}].GetTensorData<{'float' if dtype == 'float32' else 'int64_t'}>()" in cpp
    assert "OnnxJavaType.UINT8" in kotlin and "CreateTensor<uint8_t>" in code_of(file, "cpp")
    assert 'customMetadata["mobilevitv2"]' in code_of(file, "kotlin")


@pytest.mark.skipif(find_spec("litert_torch") is None, reason="litert-torch is not installed")
@pytest.mark.parametrize("file", ["model.tflite", "segment.tflite", "detect.tflite"])
def test_names_types_and_labels_of_litert(file: str, folder: Path):
    from ai_edge_litert.interpreter import Interpreter

    path, code = small(folder, file), part(file, "kotlin")
    interpreter = Interpreter(str(path))
    (signature,) = interpreter.get_signature_list().values()
    assert signature["inputs"] == ["image"] and named(code) == set(signature["outputs"])
    assert interpreter.get_input_details()[0]["dtype"].__name__ == "uint8"
    runner = interpreter.get_signature_runner()
    details = {name: (each["dtype"].__name__, tuple(each["shape"])) for name, each in runner.get_output_details().items()}
    if file == "model.tflite":
        assert details == {"probabilities": ("float32", (1, 112))} and "arrayOf(FloatArray(112))" in code
    elif file == "segment.tflite":
        assert details == {"mask": ("int32", (1, 64, 64))} and "arrayOf(Array(320) { IntArray(320) })" in code
    else:
        (_, (_, anchors, classes)), boxes = details["scores"], details["boxes"]
        assert details["scores"][0] == "float32" and boxes == ("float32", (1, anchors, 4)) and classes > 1
        assert "arrayOf(Array(anchors) { FloatArray(classes) })" in code and "arrayOf(Array(anchors) { FloatArray(4) })" in code
    with zipfile.ZipFile(path) as archive:
        assert "unzip -p model.tflite labels.txt" in TEXT
        assert len(archive.read("labels.txt").decode().splitlines()) == (112 if file == "model.tflite" else 10)


@pytest.mark.filterwarnings("ignore")  # executorch warns of itself, as its own tests here have it
@pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")
def test_places_and_types_of_executorch(folder: Path):
    engine = open_model(small(folder, "model.pte")).engine
    assert engine.inputs["image"][1] == "uint8"
    assert "ScalarType::Byte" in code_of("model.pte", "cpp") and "Tensor.fromBlobUnsigned" in code_of("model.pte", "kotlin")
    assert {name: dtype for name, (_, dtype) in engine.outputs.items()} == {"probabilities": "float32"}
    assert "const auto probabilities = results->at(0)" in code_of("model.pte", "cpp")
    assert "val (probabilities) = module.forward" in code_of("model.pte", "kotlin")
    assert engine.metadata is not None and "The method `mobilevitv2` of the same file" in TEXT.replace("\n", " ")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    find_spec("executorch") is None or find_spec("coremltools") is None, reason="executorch or coremltools is missing"
)
def test_places_and_types_of_executorch_for_apple(folder: Path):
    from executorch.exir._serialize._program import deserialize_pte_binary

    path = small(folder, "apple.pte", delegate="coreml", precision="fp16")
    plans = deserialize_pte_binary(path.read_bytes()).program.execution_plan
    plan = next(each for each in plans if each.name == "forward")
    (taken,), (given,) = ([plan.values[place].val for place in places] for places in (plan.inputs, plan.outputs))
    assert (taken.scalar_type, taken.sizes) == (0, [1, 64, 64, 3])  # torch's number of bytes
    assert (given.scalar_type, given.sizes) == (6, [1, 112])  # and of float32
    code = code_of("apple.pte", "swift")
    assert "Tensor<UInt8>(pixels, shape: [1, 256, 256, 3])" in code and "let output: Tensor<Float>" in code


@pytest.mark.skipif(find_spec("executorch") is None or shutil.which("g++") is None, reason="executorch or g++ is not installed")
def test_the_snippet_for_executorch_in_cpp_compiles(tmp_path: Path):
    (tmp_path / "snippet.cpp").write_text(code_of("model.pte", "cpp"), encoding="utf-8")
    (place,) = find_spec("executorch").submodule_search_locations  # type: ignore[union-attr]
    include = Path(place) / "include"
    if not (include / "executorch" / "extension" / "module" / "module.h").is_file():
        pytest.skip("this executorch has no headers")
    words = ["-std=c++17", "-fsyntax-only", f"-I{include}", f"-I{include}/executorch/runtime/core/portable_type/c10"]
    command = ["g++", *words, "-DC10_USING_CUSTOM_GENERATED_MACROS", "snippet.cpp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec("coremltools") is None, reason="coremltools is not installed")
@pytest.mark.parametrize("file", ["model.mlpackage", "segment.mlpackage", "detect.mlpackage"])
def test_names_and_types_of_core_ml(file: str, folder: Path):
    import coremltools

    path, code = small(folder, file, precision="fp16"), part(file, "swift")
    description = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert [port.name for port in description.input] == ["image"]
    assert description.input[0].type.WhichOneof("Type") == "imageType"
    outputs = {port.name: port.type for port in description.output}
    assert named(code) == set(outputs)
    kinds = {name: kind.multiArrayType.dataType for name, kind in outputs.items() if kind.WhichOneof("Type") == "multiArrayType"}
    names = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType
    expected = {"segment": {"mask": names.INT32}, "detect": {"scores": names.FLOAT16, "boxes": names.FLOAT16}}
    assert kinds == expected.get(file.partition(".")[0], {})
    for name in kinds:  # which a view of another type could not read
        assert re.search(rf'MLShapedArray<\w+>\(converting: output\.featureValue\(for: "{name}"\)', code)


# ---- commands and tables ---------------------------------------------------------------------------------------------------------


def test_commands_are_understood():
    from mobilevitv2.cli.arguments import arguments_of
    from mobilevitv2.cli.exporting import export as verb

    commands = re.findall(r"^ {4}mobilevitv2 export (.*?[^\\])$", TEXT.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 9
    for words in commands:
        values = arguments_of(verb, words.split(), prog="mobilevitv2 export")
        assert values["model"] in BUNDLED.values()
        assert Path(words.split()[1]).stem in {*TASKS, "site"}


def test_the_table_of_precisions_is_what_the_formats_offer():
    from mobilevitv2.export import FORMATS
    from mobilevitv2.export.formats import get_format

    rows = re.findall(r"^\| `(\w+)`(?:, `--delegate (\w+)`)? \| ([^|]+) \|", TEXT, re.MULTILINE)
    told = {(name, delegate or None): tuple(offered.strip().split(", ")) for name, delegate, offered in rows if name in FORMATS}
    kinds = {(name, delegate) for name in FORMATS for delegate in (None, *list(get_format(name).delegates)[1:])}
    assert told == {(name, delegate): get_format(name, delegate=delegate).offered for name, delegate in kinds}
