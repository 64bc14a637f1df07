"""Which precisions and delegates a format has, and what one is told who asks for another."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from test_export_onnx import model_of

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export import FORMATS, PRECISIONS, export
from mobilevitv2.export.formats import ExportFormat, get_format

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte", "litert": ".tflite", "coreml": ".mlpackage"}


def kinds() -> list[ExportFormat]:
    """Every format, with each of its delegates."""
    return [get_format(name, delegate=delegate) for name in FORMATS for delegate in get_format(name).delegates or (None,)]


REFUSED = [(fmt.name, fmt.delegate, precision) for fmt in kinds() for precision in PRECISIONS if precision not in fmt.offered]


@pytest.mark.parametrize("fmt", kinds(), ids=lambda fmt: f"{fmt.name}-{fmt.delegate}")
def test_every_precision_is_offered_or_refused_with_a_reason_and_a_remedy(fmt: ExportFormat) -> None:
    assert {*fmt.offered, *fmt.refused} == set(PRECISIONS)
    assert not set(fmt.offered) & set(fmt.refused)
    for reason in fmt.refused.values():
        remedies = [name for name in PRECISIONS if f"'{name}'" in reason.rpartition("; take ")[2]]
        assert remedies, reason
        assert set(remedies) <= set(fmt.offered), reason


@pytest.mark.parametrize(("name", "delegate", "precision"), REFUSED)
def test_the_reason_reaches_who_asks(name: str, delegate: str | None, precision: str, tmp_path: Path) -> None:
    fmt = get_format(name, delegate=delegate)
    with pytest.raises(ConfigurationError) as told:
        export(model_of("classify"), tmp_path / f"model{SUFFIXES[name]}", precision=precision, delegate=delegate, calibration="x")
    message = str(told.value)
    assert f"precision={precision!r} is not offered for {name}" in message
    assert fmt.refused[precision] in message
    assert message.endswith(f"There are {', '.join(fmt.offered)}.")
    assert not list(tmp_path.iterdir())


def test_the_delegates_are_those_of_executorch() -> None:
    assert {name: tuple(get_format(name).delegates) for name in FORMATS if get_format(name).delegates} == {
        "executorch": ("xnnpack", "coreml")
    }
    assert get_format("executorch") is get_format("executorch", delegate="xnnpack")
    assert get_format("executorch").delegate == "xnnpack"


@pytest.mark.parametrize(
    ("path", "delegate", "message"),
    [
        ("model.onnx", "xnnpack", "format onnx has no delegates to choose from; leave it out"),
        ("model.pte", "core-ml", "delegate='core-ml' is unknown to executorch; did you mean 'coreml'"),
        ("model.pte", "qnn", "there are xnnpack, coreml"),
    ],
)
def test_delegates_that_there_are_not(path: str, delegate: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        export(model_of("classify"), tmp_path / path, delegate=delegate)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_one_picture_is_not_called_pictures(tmp_path: Path) -> None:
    from mobilevitv2.export.samples import made_picture

    report = export(model_of("classify"), tmp_path / "model.onnx", size=(64, 64), pictures=[made_picture(0)])
    assert " on 1 picture; " in report.table()
