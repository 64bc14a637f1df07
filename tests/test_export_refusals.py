"""Requests that cannot be met are refused before torch is imported, with what was wrong and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

MODEL = "mobilevitv2-0.75-objects112"
PROGRAM = """
import contextlib, io, json, sys
from mobilevitv2.cli import main

told = {}
for name, missing, words in json.load(sys.stdin):
    sys.modules.update(dict.fromkeys(missing))  # None: as if it were not installed
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        code = main(["export", *words])
    for each in missing:
        del sys.modules[each]
    heavy = sorted({"torch", "torchvision", "transformers"} & set(sys.modules))
    told[name] = {"code": code, "text": stream.getvalue(), "heavy": heavy}
json.dump(told, sys.stdout)
"""
# What the words are, which modules are missing, and what one is told.
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "folder for the report": (f"{MODEL} a.onnx --json folder.json", (), "folder.json is a folder; name a file for the report"),
    "file for the report's folder": (f"{MODEL} a.onnx --json there.onnx/new/a.json", (), "there.onnx is a file, so no report"),
    "page: folder for the report": (f"{MODEL} site --format web --json folder.json", (), "folder.json is a folder"),
    "current folder": (f"{MODEL} . --format onnx", (), ". is a folder; name a file in it, such as model.onnx"),
    "root folder": (f"{MODEL} / --format coreml", (), "/ is a folder; name a file in it, such as /model.mlpackage"),
    "unknown precision": (f"{MODEL} a.onnx --precision fp8", (), "invalid choice: 'fp8'"),
    "unknown format": (f"{MODEL} a.onnx --format onx", (), "invalid choice: 'onx'"),
    "precision of another format": (f"{MODEL} a.onnx --precision bf16", (), "precision='bf16' is not offered for onnx"),
    "precision that LiteRT has not": (f"{MODEL} a.tflite --precision bf16", (), "not offered for litert"),
    "precision of another delegate": (
        f"{MODEL} a.pte --delegate coreml --precision int8 --calibrate photos", (), "executorch with the delegate coreml",
    ),
    "precision that Core ML has not": (f"{MODEL} a.mlpackage --precision int8 --calibrate photos", (), "not offered for coreml"),
    "delegate of another format": (f"{MODEL} a.onnx --delegate coreml", (), "format onnx has no delegates"),
    "int8 without pictures": (f"{MODEL} a.onnx --precision int8", (), "--calibrate DATA"),
    "pictures without int8": (f"{MODEL} a.onnx --calibrate photos", (), "leave calibration (--calibrate) out"),
    "ending of another format": (f"{MODEL} a.xml --format onnx", (), "ends in .onnx; name it a.onnx"),
    "ending of no format": (f"{MODEL} a.tfl", (), "or pass format (--format)"),
    "no file named": (MODEL, (), "Name a file to write, such as model.onnx, or --format"),
    "no folder named": (f"{MODEL} --format web", (), "Name a folder for the page"),
    "path taken": (f"{MODEL} there.onnx", (), "name another file, or pass overwrite=True (--overwrite)"),
    "weights of another file taken": (f"{MODEL} mine.xml", (), "mine.bin exists already"),
    "folder for a file": (f"{MODEL} folder.onnx", (), "folder.onnx is a folder"),
    "file for a folder": (f"{MODEL} there.onnx/a.onnx", (), "there.onnx is a file"),
    "missing library": (f"{MODEL} a.onnx", ("onnxruntime",), "onnxruntime not installed, for format onnx: pip install"),
    "missing libraries": (
        f"{MODEL} a.tflite", ("litert_torch", "ai_edge_litert"), "litert_torch and ai_edge_litert not installed",
    ),
    "no such model": ("mobilevitv2-1.0-imagenet1k-255 a.onnx", (), "mobilevitv2-1.0-imagenet1k-256"),
    "no such weights": ("nowhere/a.pt a.onnx", (), "nowhere/a.pt does not exist"),
    "exported file for a model": ("there.onnx a.onnx", (), "there.onnx is an exported file; name the folder or the weights"),
    "size too small": (f"{MODEL} a.onnx --size 16", (), "size (--size) has height 16"),
    "size not free": (f"{MODEL} a.onnx --size 128 100 --dynamic", (), "with dynamic (--dynamic) sides"),
    "no threads": (f"{MODEL} a.onnx --threads 0", (), "threads=0 (--threads) is not possible"),
    "three sizes": (f"{MODEL} a.onnx --size 1 2 3", (), "--size 1 2 3 has 3 numbers"),
    "free sizes of a fixed format": (f"{MODEL} a.pte --dynamic", (), "leave dynamic (--dynamic) out"),
    "bits of another precision": (
        f"{MODEL} a.onnx --precision int8-weights --weight-bits 8", (),
        "weight_bits=8 (--weight-bits) has no effect on precision='int8-weights' of onnx; leave it out",
    ),
    "bits of float weights": (f"{MODEL} a.xml --weight-bits 7", (), "no effect on precision='fp32' of openvino"),
    "bits of another format": (
        f"{MODEL} a.tflite --precision int8 --calibrate photos --weight-bits 7", (), "no effect on precision='int8' of litert",
    ),
    "bits of another delegate": (
        f"{MODEL} a.pte --precision int8 --calibrate photos --weight-bits 8", (), "it is for 'int8' of onnx and openvino",
    ),
    "bits that there are not": (
        f"{MODEL} a.onnx --precision int8 --calibrate photos --weight-bits 4", (), "weight_bits=4 (--weight-bits); it is 7",
    ),
    "bits without pictures": (f"{MODEL} a.onnx --precision int8 --weight-bits 8", (), "--calibrate DATA"),
    "page: licence": (f"{MODEL} site --format web --licence MIT", (), "--licence is of one file; export to model.onnx"),
    "page: precision": (f"{MODEL} site --format web --precision bf16", (), "not offered for onnx"),
    "page: int8 without pictures": (f"{MODEL} site --format web --precision int8", (), "--calibrate DATA"),
    "page: folder taken": (f"{MODEL} folder.onnx --format web", (), "name another folder, or pass overwrite=True (--overwrite)"),
    "page: file": (f"{MODEL} there.onnx --format web", (), "there.onnx is a file"),
    "page: no such model": ("nowhere site --format web", (), "There is no checkpoint named 'nowhere'"),
    "page: size": (f"{MODEL} site --format web --size 16", (), "size (--size) has height 16"),
    "page: missing library": (f"{MODEL} site --format web", ("onnxruntime",), "onnxruntime not installed"),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each request came to, all asked for in one process that has not imported torch."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "there.onnx").write_bytes(b"mine")
    (folder / "mine.bin").write_bytes(b"mine")
    (folder / "folder.onnx").mkdir()
    (folder / "folder.json").mkdir()
    (folder / "folder.onnx" / "photo.jpg").write_bytes(b"dear")
    asked = json.dumps([(name, missing, words.split()) for name, (words, missing, _) in CASES.items()])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=asked, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["folder.json", "folder.onnx", "mine.bin", "there.onnx"]
    assert (folder / "there.onnx").read_bytes() == b"mine"
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_imports_no_torch(name: str, told: dict[str, dict[str, Any]]) -> None:
    found, (_, missing, message) = told[name], CASES[name]
    assert found["heavy"] == []
    assert found["code"] == (1 if missing else 2)
    assert message in found["text"]
    assert found["text"].count("\n") == 1


def test_the_exporters_are_imported_when_they_are_called() -> None:
    code = (
        "import sys, mobilevitv2.export as export, mobilevitv2.export.exporting, mobilevitv2.export.web.site\n"
        "assert all(getattr(export, name) for name in export.__all__)\n"
        "print([name for name in ('torch', 'transformers', 'onnxruntime', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
