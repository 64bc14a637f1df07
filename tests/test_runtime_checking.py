"""Files whose metadata, or whose shapes, are another model's are refused when they are opened, with both sides of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilevitv2.cli import main
from mobilevitv2.errors import ConfigurationError, MobileViTV2Error, WeightsError
from mobilevitv2.graph.builder import Builder
from mobilevitv2.runtime import open_model
from mobilevitv2.runtime.metadata import METADATA_KEY, Metadata, PictureContract, Port

pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")

SIDE = 64
ABOUT = json.loads(
    Metadata(
        task="classify",
        labels=("red", "green", "blue"),
        picture=PictureContract(height=SIDE, width=SIDE, resize={"shortest_edge": SIDE}, crop={"height": SIDE, "width": SIDE}),
        layout="NCHW",
        inputs=(Port(name="image", shape=("batch", 3, SIDE, SIDE), dtype="float32", meaning=""),),
        outputs=(Port(name="logits", shape=("batch", 3), dtype="float32", meaning=""),),
        postprocessing="none",
        activation="softmax",
        precision="fp32",
        dynamic=("batch",),
        source="test",
        licence="",
        weights_sha256="",
        versions={},
    ).to_json()
)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model whose logits are the mean of each channel; `text` is what it says of itself."""

    def write(text: str | None, *, side: int | str = SIDE) -> Path:
        builder = Builder()
        image = builder.input("image", "float32", ("batch", 3, side, side), "")
        means = builder.add("Flatten", builder.add("GlobalAveragePool", image), axis=1)
        builder.output(means, "logits", "float32", ("batch", 3), "")
        metadata = {} if text is None else {METADATA_KEY: text}
        path = tmp_path / "model.onnx"
        path.write_bytes(builder.to_bytes(producer="test", version="0", metadata=metadata))
        return path

    return write


def saying(**changes: Any) -> str:
    """The metadata with other values; those of "picture" by their own names."""
    picture = {name: value for name, value in changes.items() if name in ABOUT["picture"]}
    return json.dumps({**ABOUT, **changes, "picture": {**ABOUT["picture"], **picture}})


def red() -> np.ndarray[Any, Any]:
    return np.broadcast_to(np.array([255, 0, 0], np.uint8), (SIDE, SIDE, 3))


def test_a_file_that_fits_its_metadata_answers(file):
    model = open_model(file(saying(future=1, picture={**ABOUT["picture"], "gamma": 2})))  # a later release may say more
    assert model.predict(red()).labels[0].label == "red"
    assert model.largest_batch is None


APART = {
    "labels": (saying(labels=["red", "green"]), "has 3 classes, but its metadata speak of 2 labels"),
    "no labels": (saying(labels=[]), "3 classes, but its metadata speak of 0 labels"),
    "task": (saying(task="detect"), "gives logits of 2 axes, but its metadata speak of the task 'detect'"),
    "size": (saying(height=32, width=32), "takes (batch, 3, 64, 64), but its metadata speak of pictures of (batch, 3, 32, 32)"),
    "layout": (saying(layout="NHWC"), "speak of pictures of (batch, 64, 64, 3)"),
    "type": (saying(inside=True), "takes float32, but its metadata speak of pictures in uint8"),
    "outputs": (
        saying(outputs=[{**ABOUT["outputs"][0], "name": "scores"}]),
        "has logits, but its metadata speak of the outputs scores",
    ),
}
UNREADABLE = {
    "broken": (saying()[:50], "cannot be read (Unterminated string"),
    "list": ("[1, 2]", "cannot be read"),
    "number": ("3", "cannot be read"),
    "empty": ("", "cannot be read"),
    "newer": (saying(schema=2), "metadata of form 2, known is 1; update mobilevitv2"),
    "unknown task": (saying(task="paint"), "task is 'paint', known are classify, segment, detect"),
    "unknown filter": (saying(interpolation="cubic"), "interpolation is 'cubic', known are nearest"),
    "unknown activation": (saying(activation="relu"), "activation is 'relu'"),
    "two means": (saying(mean=[0.5, 0.5]), "scale, mean and std are"),
    "crop": (saying(crop="yes"), "height, width, resize and crop are"),
    "label numbers": (saying(labels=[1, 2, 3]), "the labels are no list of texts"),
    "label text": (saying(labels="rgb"), "the labels are no list of texts"),
}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("case", [*APART, *UNREADABLE])
def test_metadata_that_do_not_fit_are_refused(case: str, engine: str, file):
    pytest.importorskip(engine)
    text, said = {**APART, **UNREADABLE}[case]
    path = file(text)
    with pytest.raises(WeightsError) as caught:
        open_model(path, engine=engine)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "export it again" in str(caught.value) or case == "newer"


def test_without_metadata_it_says_what_it_assumes(file, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        model = open_model(file(None, side="side"))
    assert model.predict(red()).labels[0].label == "LABEL_0"
    assert "3 classes without names, RGB values 0..1, 256 x 256 pixels, cut from the centre" in caplog.text


@pytest.mark.parametrize("verb", [["predict", "{picture}"], ["benchmark", "--rounds", "1", "--threads", "1"]])
def test_verbs_answer_in_one_line(verb: list[str], file, cat_photo: Path, capsys: pytest.CaptureFixture[str]):
    path = file(saying(labels=["red"]))
    words = [word.format(picture=cat_photo) for word in verb]
    assert main([*words, "--model", str(path)]) == 1
    assert f"{path} has 3 classes, but its metadata speak of 1 label;" in (err := capsys.readouterr().err)
    assert "Traceback" not in err


def test_another_models_files(tmp_path: Path):
    def write(name: str, builder: Builder) -> Path:
        (tmp_path / name).write_bytes(builder.to_bytes(producer="test", version="0", metadata={}))
        return tmp_path / name

    for name, dtype, shape, result, said in (
        ("rank.onnx", "float32", (1, 4), "logits", "takes float32 (1, 4) and gives logits of 2 axes"),
        ("integers.onnx", "int64", (1, 3, 8, 8), "logits", "takes int64"),
        ("bytes.onnx", "uint8", (1, 3, 8, 8), "logits", "takes uint8"),
        ("grey.onnx", "float32", (1, 1, 8, 8), "logits", "no MobileViTV2"),
        ("named.onnx", "float32", (1, 3, 8, 8), "y", "gives y of 4 axes"),
    ):
        builder = Builder()
        builder.output(builder.add("Identity", builder.input("x", dtype, shape, "")), result, dtype, shape, "")
        with pytest.raises(WeightsError) as caught:
            open_model(write(name, builder))
        assert said in str(caught.value) and "mobilevitv2 export" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 a JPEG", b"\x89PNG"])
@pytest.mark.parametrize(("suffix", "engine"), [("onnx", "onnxruntime"), ("onnx", "openvino"), ("xml", "openvino")])
def test_what_is_no_model_at_all(suffix: str, content: bytes, engine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    pytest.importorskip(engine)
    (tmp_path / f"model.{suffix}").write_bytes(content)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=rf"model\.{suffix}"):
        open_model(tmp_path / f"model.{suffix}", engine=engine)
    assert capfd.readouterr().err == ""  # the runtimes write past Python


def test_weights_of_another_size_beside_an_openvino_model(tmp_path: Path):
    pytest.importorskip("openvino")
    from test_export_onnx import exported

    exported("classify", tmp_path / "model.xml", size=(SIDE, SIDE))
    content = (tmp_path / "model.bin").read_bytes()
    for cut in (content[:-4], b""):
        (tmp_path / "model.bin").write_bytes(cut)
        with pytest.raises(WeightsError, match=r"copy it and model\.bin, or export it again"):
            open_model(tmp_path / "model.xml")


def test_a_runtime_that_fails_is_an_error_of_ours(file, monkeypatch: pytest.MonkeyPatch):
    model = open_model(file(saying()))

    def fails(image: Any) -> Any:
        raise RuntimeError("bad allocation")

    monkeypatch.setattr(model.engine, "run", fails)
    with pytest.raises(MobileViTV2Error, match=r"fails in onnxruntime on pictures \(1, 3, 64, 64\), float32 \(bad allocation\)"):
        model.predict(red())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"threshold": 1.5}, "threshold=1.5 is no score"),
        ({"threshold": float("nan")}, "threshold=nan is no score"),
        ({"classes": ["rad"]}, "no class 'rad'; did you mean red?"),
        ({"classes": [3]}, "class 3 is not among the model's, numbered from 0 to 2"),
        ({"classes": []}, "classes is empty"),
    ],
)
def test_settings_that_there_are_not(settings: dict[str, Any], said: str, file):
    with pytest.raises(ConfigurationError) as caught:
        open_model(file(saying())).predict(red(), **settings)
    assert said in str(caught.value)


@pytest.mark.parametrize("shape", [(SIDE, SIDE, 3), (1, 3, SIDE, SIDE), (1, 32, 32, 3), (0, SIDE, SIDE, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixels_that_are_not_prepared(shape: tuple[int, ...], dtype: str, file):
    model = open_model(file(saying()))
    for given in (np.zeros(shape, dtype), np.zeros((1, SIDE, SIDE, 3), np.float32)):
        with pytest.raises(ConfigurationError, match=r"uint8 \(batch, 64, 64, 3\), RGB from 0 to 255"):
            model.raw(given)


def test_classes_by_name_or_index(tmp_path: Path):
    from test_export_onnx import PICTURES, exported

    exported("segment", tmp_path / "model.onnx", size=(SIDE, SIDE))
    model = open_model(tmp_path / "model.onnx")
    every = model.predict(PICTURES[0])
    first = every.areas[0]
    for classes in ([first.label], [first.index], first.label):
        assert [area.index for area in model.predict(PICTURES[0], classes=classes).areas] == [first.index]
