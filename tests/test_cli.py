"""The command: verbs, exit codes, what goes to which stream, files that appear whole or not at all."""

from __future__ import annotations

import csv
import errno
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification, MobileViTV2ImageProcessor
from mobilevitv2.cli import VERBS, main
from mobilevitv2.cli.arguments import arguments_of, parser_of
from mobilevitv2.errors import DataError
from mobilevitv2.weights import Architecture, expected_shapes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = MobileViTV2Config(width_multiplier=0.5, image_size=64, id2label={0: "red", 1: "green", 2: "blue"})
    MobileViTV2ForImageClassification(config).save_pretrained(folder)
    MobileViTV2ImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, shade in (("a.png", 40), ("b.jpg", 200)):
        Image.new("RGB", (60, 40), (shade, 90, 90)).save(folder / name)
    return folder


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# ---- the command as such ---------------------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, io, contextlib\n"
        "from mobilevitv2.cli import main\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out):\n"
        "    lines = ['--help'], ['predict', '--help'], ['models', '--json'], ['predict', 'x', '--model', 'y']\n"
        "    codes = [main(words) for words in lines]\n"
        "heavy = [name for name in ('torch', 'torchvision', 'transformers', 'PIL', 'numpy', 'datasets') if name in sys.modules]\n"
        "print(codes, heavy)\n"
        "print(out.getvalue())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[0, 0, 0, 2] []"
    assert all(f"  {verb}" in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_for_every_argument(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"usage: mobilevitv2 {verb}" in capsys.readouterr().out
    parser, _ = parser_of(VERBS[verb], prog=verb)
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prdict", "x.jpg"], "did you mean `mobilevitv2 predict`?"),
        (["predict"], "no picture was named"),
        (["predict", "x.jpg", "--modle", "y"], "did you mean --model?"),
        (["predict", "x.jpg", "--top-k", "many"], "--top-k"),
        (["predict", "x.jpg", "--model", "mobilevitv2-1.0-imagenet1k-265"], "mobilevitv2-1.0-imagenet1k-256"),
        (["predict", "x.jpg", "--json", "--csv", "--model", "mobilevitv2-1.0-imagenet1k-256"], "standard output"),
        (["models", "--task", "sing"], "--task"),
        (["convert", "x", "y"], "--to"),
        (["train", "data", "epochs"], "KEY=VALUE"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""


def test_a_picture_in_place_of_a_verb_is_understood(cat_photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cat_photo)]) == 2
    assert f"mobilevitv2 predict {cat_photo}" in capsys.readouterr().err


def test_no_argument_shows_the_verbs_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "predict" in capsys.readouterr().out


def test_debug_shows_where_an_error_came_from(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", "x.jpg", "--model", model, "--top-k", "0"]
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main([*words, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("MOBILEVITV2_DEBUG", "1")
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "version", interrupted)
    assert main(["version"]) == 130
    assert capsys.readouterr().err == "mobilevitv2: interrupted\n"


def test_a_reader_that_has_enough_is_no_error() -> None:
    code = "import sys; from mobilevitv2.cli import main; sys.exit(main(['models', '--json']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_an_installation_without_the_requirements_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needy() -> int:
        importlib.import_module("yaml")
        return 0

    monkeypatch.setitem(sys.modules, "yaml", None)  # as if it were not installed
    monkeypatch.setitem(VERBS, "version", needy)
    assert main(["version"]) == 1
    assert "yaml is not installed, and this needs it" in capsys.readouterr().err


def test_errors_of_the_program_itself_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(VERBS, "version", broken)
    with pytest.raises(ZeroDivisionError):
        main(["version"])


def test_python_m(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-m", "mobilevitv2", "version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mobilevitv2 ")
    assert "torch" in done.stdout


# ---- predict ---------------------------------------------------------------------------------------------------------------------


def test_predict_prints_a_table(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(pictures / "a.png"), "--model", model]) == 0
    streams = capsys.readouterr()
    lines = streams.out.splitlines()
    assert lines[0] == f"{pictures / 'a.png'} (60 x 40)"
    assert {line.split()[0] for line in lines[1:]} == {"red", "green", "blue"}
    shares = [float(line.split()[1]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert "█" in lines[1]
    assert streams.err == ""


def test_options_may_stand_between_pictures(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(pictures / "a.png"), "--model", model, str(pictures / "b.jpg"), "--top-k", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_one_bad_picture_is_told_and_the_rest_answered(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "c.jpg").write_text("<html></html>")
    assert main(["predict", str(pictures), "--model", model, "--json"]) == 1
    streams = capsys.readouterr()
    entries = json.loads(streams.out)
    assert [Path(entry["source"]).name for entry in entries] == ["a.png", "b.jpg", "c.jpg"]
    assert [entry["error"] is None for entry in entries] == [True, True, False]
    assert len(entries[0]["labels"]) == 3
    assert "HTML" in streams.err
    assert "1 of 3 pictures" in streams.err


def test_json_and_csv_files(model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "c.jpg").write_bytes(b"")
    to_json, to_csv = tmp_path / "new" / "answers.json", tmp_path / "answers.csv"
    assert main(["predict", "--json", str(to_json), str(pictures), "--csv", str(to_csv), "--model", model, "--top-k", "2"]) == 1
    assert "a.png" in capsys.readouterr().out  # the table is still shown
    assert len(json.loads(to_json.read_text())) == 3
    rows = list(csv.DictReader(to_csv.read_text().splitlines()))
    assert [(Path(row["source"]).name, row["rank"]) for row in rows] == [
        *(("a.png", "1"), ("a.png", "2"), ("b.jpg", "1"), ("b.jpg", "2"), ("c.jpg", "")),
    ]
    assert "0 bytes" in rows[-1]["error"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_picture_after_json_is_a_picture(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (pictures / "a.png").read_bytes()
    assert main(["predict", "--model", model, "--json", str(pictures / "a.png")]) == 0
    assert json.loads(capsys.readouterr().out)[0]["source"] == str(pictures / "a.png")
    assert (pictures / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sources", "to_json"),
    [
        (["a.jpg", "--json", "b.jpg", "--top-k", "3", "c.jpg"], ["a.jpg", "b.jpg", "c.jpg"], "-"),
        (["--json", "out.json", "a.jpg"], ["a.jpg"], "out.json"),
        (["--json=out.txt", "a.jpg"], ["a.jpg"], "out.txt"),
        (["a.jpg", "--json"], ["a.jpg"], "-"),
        (["a.jpg", "--json", "-"], ["a.jpg"], "-"),
        (["--json", "-"], ["-"], "-"),
        (["--json", "--", "-odd.jpg", "-"], ["./-odd.jpg", "-"], "-"),
    ],
)
def test_what_is_a_source_and_what_a_file_to_write(words: list[str], sources: list[str], to_json: str) -> None:
    values = arguments_of(VERBS["predict"], words, prog="mobilevitv2 predict")
    assert (values["sources"], values["json"]) == (sources, to_json)


@pytest.mark.parametrize("separator", ["\n", "\0"])
@pytest.mark.parametrize("words", [["-", "--csv"], ["--json", "-"]])
def test_paths_on_standard_input(
    words: list[str],
    separator: str,
    model: str,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = separator.join([str(pictures / "a.png"), str(pictures / "b.jpg"), ""])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["predict", *words, "--model", model]) == 0
    out = capsys.readouterr().out
    assert "a.png" in out
    assert "b.jpg" in out


def test_many_pictures_get_a_line_each_and_a_bar_on_a_terminal(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(12):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index:02}.png")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["predict", str(tmp_path), "--model", model]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[3].startswith(f"{tmp_path / '03.png'}: ")
    assert "/12 [" in terminal.getvalue()


def test_saved_pictures_leave_the_originals_alone(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "sub").mkdir()
    Image.new("RGB", (30, 30)).save(pictures / "sub" / "A.png")
    before = {path: path.read_bytes() for path in pictures.rglob("*.*")}
    assert main(["predict", str(pictures), "--model", model, "--save", str(pictures)]) == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    new = {path.name for path in pictures.iterdir()} - {"a.png", "b.jpg", "sub"}
    assert {name.lower() for name in new} == {"a.labels.jpg", "b.labels.jpg", "a-2.labels.jpg"}
    with Image.open(pictures / "a.labels.jpg") as picture:
        assert picture.width == 6 * 60
    assert "3 files written" in capsys.readouterr().err


def test_attention_saves_every_layer(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(pictures / "a.png"), "--model", model, "--attention"]) == 0
    saved = sorted(str(path.relative_to(tmp_path / "predictions")) for path in (tmp_path / "predictions").rglob("*.jpg"))
    assert saved[0] == "a.attention.jpg"
    assert len(saved) == 10
    assert "a.attention/stage5.layer3.jpg" in saved


def test_names_cannot_write_to_the_terminal(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x\x1b[31m\ny.png"
    Image.new("RGB", (8, 8)).save(path)
    assert main(["predict", str(path), "--model", model]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "x?[31m?y.png" in out


def test_a_terminal_without_blocks_gets_number_signs(model: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["predict", str(pictures / "a.png"), "--model", model]) == 0
    assert b"#####" in raw.getvalue()


def test_warnings_of_this_package_are_one_line(
    model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MobileViTV2ForImageClassification.from_pretrained(model).save_pretrained(tmp_path / "bgr")
    capsys.readouterr()
    MobileViTV2ImageProcessor(do_flip_channel_order=True).save_pretrained(tmp_path / "bgr")
    assert main(["predict", str(pictures), "--model", str(tmp_path / "bgr")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("mobilevitv2: warning: ")


# ---- what can go wrong with writing ----------------------------------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "answers.json")


def test_a_full_disk_keeps_the_old_file(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "answers.json"
    target.write_text("old")
    monkeypatch.setattr("mobilevitv2.cli.output.JsonWriter.write", no_space)
    assert main(["predict", str(pictures), "--model", model, "--json", str(target)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_full_disk_leaves_no_half_picture(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.fsync", no_space)
    assert main(["predict", str(pictures), "--model", model, "--save", str(tmp_path / "out")]) == 1
    assert "free some space" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_read_only_folder_is_told_before_the_model_is_loaded(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    monkeypatch.setattr("mobilevitv2.contract.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["predict", str(pictures), "--model", "mobilevitv2-1.0-imagenet1k-256", "--save", str(tmp_path)]) == 1
    streams = capsys.readouterr()
    assert "can be written to" in streams.err
    assert streams.err.count("\n") == 1


def test_a_folder_or_file_in_the_way(model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").mkdir()
    assert main(["predict", str(pictures), "--model", model, "--json", str(tmp_path / "x.json")]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["predict", str(pictures), "--model", model, "--save", str(pictures / "a.png")]) == 1
    assert "file is where a folder should be" in capsys.readouterr().err
    assert main(["predict", str(pictures), "--model", model, "--json=/dev/null"]) == 0


# ---- models, info, convert -------------------------------------------------------------------------------------------------------


def test_models_filters_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--task", "segment", "--width", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all("segment" in line for line in lines[1:])
    assert main(["models", "--json"]) == 0
    assert len([record for record in json.loads(capsys.readouterr().out) if not record["bundled"]]) == 49
    assert main(["models", "--width", "7"]) == 1


def test_info_of_a_record_needs_no_download(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "mobilevitv2-0.75-imagenet1k-256", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 2_866_009
    assert round(facts["operations"]["published"] / 1e9, 3) == 1.028
    assert facts["operations"]["executed"] < facts["operations"]["published"]
    assert facts["input"]["channel_order"] == "RGB"
    assert (facts["input"]["resize"], facts["input"]["crop"]) == ({"shortest_edge": 288}, {"height": 256, "width": 256})
    assert facts["feature_maps"][-1] == {"name": "stage5", "channels": 384, "stride": 32}
    assert facts["labels"][281] == "tabby"
    assert (facts["metric"], facts["licence"]) == (75.56, "Apple sample code licence")


@pytest.mark.parametrize("name", ["deeplabv3-mobilevitv2-0.5-voc", "ssdlite-mobilevitv2-0.5-coco"])
def test_info_of_other_tasks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mobilevitv2.weights import get_record

    assert main(["info", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == get_record(name).parameters
    assert main(["info", name]) == 0
    assert f"{get_record(name).parameters:,}" in capsys.readouterr().out


def test_info_of_a_folder_and_a_file(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model]) == 0
    shown = capsys.readouterr().out
    assert "labels        3: red, green, blue" in shown
    assert "short side to 72, centre 64 x 64, values 0..1" in shown
    assert main(["convert", model, str(tmp_path / "x.safetensors"), "--to", "timm"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.safetensors'}\n"
    assert main(["info", str(tmp_path / "x.safetensors")]) == 0
    assert "LABEL_0" in capsys.readouterr().out


def detector(folder: Path) -> Path:
    shapes = expected_shapes(Architecture(task="detect", head="ssdlite", width=0.5, num_labels=80))
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "detector.pt")
    return folder / "detector.pt"


def test_info_of_a_detectors_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(detector(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "task          detect" in shown
    assert "2,035,395" in shown


def test_predict_says_that_a_file_is_of_another_task(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(pictures), "--model", str(detector(tmp_path))]
    assert main([*words, "--task", "segment"]) == 1
    assert "detector" in capsys.readouterr().err
    assert main(words) == 0  # the file tells its task
    assert "nothing found" in capsys.readouterr().out


def test_convert_there_and_back_answers_the_same(
    model: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official, back = str(tmp_path / "x.pt"), str(tmp_path / "back")
    assert main(["convert", model, official, "--to", "official"]) == 0
    assert main(["convert", official, official, "--to", "official"]) == 2
    assert main(["convert", official, back, "--to", "hf"]) == 0
    capsys.readouterr()
    MobileViTV2ImageProcessor.from_pretrained(model).save_pretrained(back)
    answers = []
    for each in (model, back):
        assert main(["predict", str(pictures), "--model", each, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    shares = [[label["probability"] for entry in entries for label in entry["labels"]] for entries in answers]
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-6)


# ---- train and evaluate ----------------------------------------------------------------------------------------------------------


def test_train_passes_everything_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {}
    metrics = {"top1": 88.25, "mean_accuracy": 81.0, "loss": 0.4567}

    def train_classifier(data: str, **options: Any) -> Any:
        given.update(options, data=data)
        return SimpleNamespace(
            interrupted=False, steps=10, seconds=120.0, metrics=metrics, best=Path("run/model"), output=Path("run")
        )

    monkeypatch.setattr("mobilevitv2.train.classify.train_classifier", train_classifier)
    words = ["train", "photos", "epochs=3", "--recipe", "small-scratch", "crop_scale=0.2,1.0", "--output", "run", "--resume"]
    assert main(words) == 0
    assert given == {
        "data": "photos",
        "model": "scratch",
        "recipe": "small-scratch",
        "output": "run",
        "resume": True,
        "overrides": {"epochs": "3", "crop_scale": "0.2,1.0"},
        "strict": False,
    }
    out = capsys.readouterr().out
    assert "10 steps in 2.0 minutes; top-1 88.25 %, mean accuracy 81.00 %, loss 0.457\n" in out
    assert "--model run/model" in out


def test_an_interrupted_training_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = SimpleNamespace(interrupted=True, steps=7, seconds=1.0, metrics={}, best=None, output=Path("run"))
    monkeypatch.setattr("mobilevitv2.train.classify.train_classifier", lambda data, **_: result)
    assert main(["train", "photos"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_bad_data_is_told_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(data: str, **_: Any) -> Any:
        raise DataError("class cat has no picture\nclass dog has one")

    monkeypatch.setattr("mobilevitv2.train.classify.train_classifier", refuse)
    assert main(["train", "photos"]) == 1
    assert "class dog has one" in capsys.readouterr().err


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name, shade in (("red", 250), ("green", 20)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (40, 40), (shade, index, 0)).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_evaluate(model: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["evaluate", str(data), "--model", model, "--json", "--output", str(out), "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["count"]) == ("test", 4)
    assert 0 <= result["top1"] <= 1
    assert json.loads((out / "evaluation.json").read_text()) == result
    with Image.open(out / "confusion.png") as picture:
        assert min(picture.size) > 100
    assert main(["evaluate", str(data), "--model", model, "--split", "train", "--workers", "0"]) == 0
    assert "top-1" in capsys.readouterr().out


def test_evaluate_on_a_split_that_there_is_not(model: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "test").rename(data.parent / "elsewhere")
    assert main(["evaluate", str(data), "--model", model, "--split", "test"]) == 1
    assert "'test'" in capsys.readouterr().err
