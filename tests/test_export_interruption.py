"""A signal in the middle of an export leaves nothing behind, and what was there before as it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_export_onnx import PICTURES, model_of

from mobilevitv2.cli.ending import ended_in_order
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export import export, exporting
from mobilevitv2.export.exporting import _move
from mobilevitv2.export.web.site import _whole_folder

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")

# The verification says that it has begun and waits to be ended. A shell's background job ignores SIGINT, its children too.
PROGRAM = """
import signal, sys, time
import mobilevitv2.export.verify as verifying
from mobilevitv2.cli import main

def verify(*_, **__):
    print("begun", flush=True)
    time.sleep(300)

verifying.verify = verify
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "mine"
    model_of("classify").save_pretrained(folder)
    return folder


@needs_onnx
@pytest.mark.parametrize(("number", "code", "told"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")])
def test_a_signal_leaves_the_old_file_and_nothing_else(number: int, code: int, told: str, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    (tmp_path / "model.onnx.report.json").write_bytes(b"old report")
    words = ["export", str(weights), str(tmp_path / "model.onnx"), "--size", "64", "--overwrite"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        try:
            assert running.stdout.readline() == "begun\n"
            assert any(path.suffix == ".part" for path in tmp_path.iterdir())
            running.send_signal(number)
            assert running.wait(120) == code
        finally:
            running.kill()
        said = running.stderr.read()
        # The package's own lines: some exporters bring libraries that log a line of theirs when torch is imported.
        lines = [line for line in said.splitlines() if line.startswith("mobilevitv2:") and "preprocessor_config" not in line]
        assert "Traceback" not in said
        assert lines == ([f"mobilevitv2: {told}"] if told else [])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "model.onnx": b"old",
        "model.onnx.report.json": b"old report",
    }


@needs_onnx
def test_what_a_killed_export_left_is_not_in_the_way(tmp_path: Path) -> None:
    left = tmp_path / ".model.onnx.abcdefgh.part"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    export(model_of("classify"), tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "model.onnx", "model.onnx.report.json"]


@pytest.mark.parametrize("step", range(1, 4))
@pytest.mark.parametrize("after", [False, True])
def test_files_that_belong_together_are_replaced_together(
    step: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["model.bin", "model.xml.report.json", "model.xml"]  # the report is new
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in names:
        (scratch / name).write_text("new")
    for name in ("model.bin", "model.xml"):
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(Path, "replace", interrupted(Path.replace, step, after))
    with pytest.raises(KeyboardInterrupt):
        _move([scratch / name for name in names], tmp_path)
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert found == {"model.bin": "old", "model.xml": "old"}


def test_a_second_signal_does_not_disturb_the_putting_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["model.bin", "model.xml"]
    (tmp_path / "scratch").mkdir()
    for name in names:
        (tmp_path / "scratch" / name).write_text("new")
        (tmp_path / name).write_text("old")
    replace, signals = Path.replace, iter([None, signal.SIGINT, signal.SIGINT, signal.SIGTERM])

    def signalled(path: Path, target: Path) -> Path:
        number = next(signals)
        if number is not None:
            signal.raise_signal(number)
        return replace(path, target)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), ended_in_order():
            monkeypatch.setattr(Path, "replace", signalled)
            _move([tmp_path / "scratch" / name for name in names], tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(signals) == [signal.SIGTERM]  # one replacement, one begun, one put back
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == dict.fromkeys(names, "old")


@needs_onnx
def test_a_file_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = exporting._written_and_verified

    def slowly(*arguments: Any) -> Any:
        (tmp_path / "model.onnx").write_text("of somebody else")
        return write(*arguments)

    monkeypatch.setattr(exporting, "_written_and_verified", slowly)
    with pytest.raises(ConfigurationError, match="exists already and was left as it is"):
        export(model_of("classify"), tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.onnx": "of somebody else"}
    export(model_of("classify"), tmp_path / "model.onnx", size=(64, 64), pictures=PICTURES, overwrite=True)
    assert (tmp_path / "model.onnx").stat().st_size > 1000


@pytest.mark.parametrize("method", ["rename", "replace"])
@pytest.mark.parametrize("after", [False, True])
def test_a_folder_that_is_replaced_comes_back(method: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, text in ((tmp_path / "scratch" / "model.mlpackage", "new"), (tmp_path / "model.mlpackage", "old")):
        folder.mkdir(parents=True)
        (folder / "part").write_text(text)
    with monkeypatch.context() as patched:
        patched.setattr(Path, method, interrupted(getattr(Path, method), 1, after))
        with pytest.raises(KeyboardInterrupt):
            _move([tmp_path / "scratch" / "model.mlpackage"], tmp_path)
    assert (tmp_path / "model.mlpackage" / "part").read_text() == "old"
    _move([tmp_path / "scratch" / "model.mlpackage"], tmp_path)
    assert (tmp_path / "model.mlpackage" / "part").read_text() == "new"


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_a_page_that_is_replaced_is_the_old_or_the_new_one(
    step: int, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("old")
    monkeypatch.setattr(Path, "rename", interrupted(Path.rename, step, after))
    with pytest.raises(KeyboardInterrupt), _whole_folder(tmp_path / "site") as part:
        (part / "index.html").write_text("new")
    assert (tmp_path / "site" / "index.html").read_text() == ("new" if (step, after) == (2, True) else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_an_old_page_that_cannot_be_put_back_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("old")
    rename, calls = Path.rename, iter([True, False, False])

    def failing(path: Path, target: Path) -> Path:
        if not next(calls):
            raise OSError("no")
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no"):
        patched.setattr(Path, "rename", failing)
        with _whole_folder(tmp_path / "site"):
            pass
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".site.") and (left / "index.html").read_text() == "old"


def interrupted(method: Callable[[Path, Path], Path], step: int, after: bool) -> Callable[[Path, Path], Path]:
    """The method, with Ctrl-C before or after its call number `step`."""
    calls = 0

    def call(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls != step:
            return method(path, target)
        if after:
            method(path, target)
        raise KeyboardInterrupt

    return call


def test_handlers_are_put_back_and_ignored_signals_stay_so() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ended_in_order():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(SystemExit) as told, ended_in_order():
            signal.raise_signal(signal.SIGTERM)
        assert told.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        other = threading.Thread(target=lambda: ended_in_order().__enter__())
        other.start()
        other.join()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
