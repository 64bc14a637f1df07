"""What is named in place of a file that runs here: Core ML's packages, and the other parts of an export."""

from __future__ import annotations

import os
from pathlib import Path

from mobilevitv2.errors import ConfigurationError

APPLE = (".mlpackage", ".mlmodelc", ".mlmodel")
RUN_HERE = {".onnx": "onnx", ".xml": "openvino", ".pte": "executorch", ".tflite": "litert"}
REPORT = ".report.json"
TORCH_STARTS = (b"PK", b"\x80")
"""Of the .bin files that PyTorch writes: a zip archive, or a pickle."""


def refuse_foreign(source: str | os.PathLike[str]) -> None:
    """Say what to name instead, where something is no model but belongs to an exported one, or runs on other systems only.

    Raises:
        ConfigurationError: a Core ML package, an OpenVINO model's weights, the report of an export, a web page's folder.
    """
    path = Path(source)
    name = path.name.lower()
    if path.suffix.lower() in APPLE:
        known = ", ".join(f"{kind} ({suffix})" for suffix, kind in RUN_HERE.items())
        raise ConfigurationError(
            f"{path} is made for Core ML, which runs on Apple's systems only; export the model in a format that runs here: {known}."
        )
    if name.endswith(REPORT) and path.is_file():
        raise ConfigurationError(f"{path} is the report of an export, not the model; give {_reported(path)}.")
    if path.suffix.lower() == ".bin" and path.is_file():
        _refuse_openvino_weights(path)
    if (path / "index.html").is_file() and not (path / "config.json").is_file():
        files = sorted(path.rglob("*.onnx"))
        if files:
            raise ConfigurationError(f"{path} is a web page's folder; give the model in it, {files[0]}.")


def refuse_exported(source: str | os.PathLike[str]) -> None:
    """For what needs a model of PyTorch.

    Raises:
        ConfigurationError: an exported file.
    """
    path = Path(source)
    if path.suffix.lower() in RUN_HERE and path.is_file():
        raise ConfigurationError(
            f"{path} is an exported file, which PyTorch does not run: in Python open it with `mobilevitv2.runtime.open_model`; the "
            "verbs predict, evaluate and benchmark take it. Elsewhere name the model it was made from."
        )


def _reported(report: Path) -> str:
    """The file that a report beside it tells of: model.onnx of model.onnx.report.json, or of model.report.json."""
    stem = report.with_name(report.name[: -len(REPORT)])
    beside = [stem, *(stem.with_name(stem.name + suffix) for suffix in RUN_HERE)]
    found = [str(path) for path in beside if path.suffix.lower() in RUN_HERE and path.is_file()]
    return " or ".join(found) if found else f"the exported file itself, which ends in {', '.join(RUN_HERE)}"


def _refuse_openvino_weights(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(2)
    model = path.with_suffix(".xml")
    if model.is_file() and not start.startswith(TORCH_STARTS):
        raise ConfigurationError(f"{path} holds the weights of an OpenVINO model; give {model}, which finds them beside it.")
