"""`mobilevitv2 predict` for segments, boxes and videos: tables, files, what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from answer_models import ColourDetector, ColourSegmenter, whole
from PIL import Image

from mobilevitv2.cli import main
from mobilevitv2.pictures import read_mask
from mobilevitv2.run_lengths import decode_mask
from mobilevitv2.weights import list_records

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    shown = Image.new("RGB", (100, 60), RED)
    shown.paste(BLUE, (50, 0, 100, 60))
    shown.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Folders in whose place the colour models are loaded."""
    made = {"segment": ColourSegmenter, "detect": ColourDetector}
    for name in made:
        (tmp_path / "models" / name).mkdir(parents=True)

    def load(source: Any, *, task: str | None = None) -> Any:
        return made[Path(source).name](), whole()

    monkeypatch.setattr("mobilevitv2.prediction.load_model", load)
    return {name: str(tmp_path / "models" / name) for name in made}


def test_segments(models: dict[str, str], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "out", ["predict", str(picture), "--model", models["segment"], "--task", "segment"]
    assert main([*words, "--save", str(out), "--json", str(out / "a.json"), "--masks", "--coco", str(out / "c.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{picture} (100 x 60)"
    assert {line.split()[0] for line in lines[1:]} == {"red", "blue"}
    assert "█" in lines[1]
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "c.json", "photo.mask.png", "photo.segments.jpg"]
    mask = read_mask(out / "photo.mask.png")
    assert mask.shape == (60, 100)
    (entry,) = json.loads((out / "a.json").read_text())
    for area in entry["areas"]:
        assert (decode_mask(area["rle"]) == (mask == area["index"])).all()
    assert {result["category_id"] for result in json.loads((out / "c.json").read_text())} == {1, 3}


def test_boxes(models: dict[str, str], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(picture), "--model", models["detect"]]
    assert main([*words, "--save", str(tmp_path / "out")]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["blue", "red"]
    assert "to ( 100,   60)" in rows[0]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo.boxes.jpg"]
    assert main([*words, "--classes", "red, green", "--coco"]) == 0
    assert [entry["category_id"] for entry in json.loads(capsys.readouterr().out)] == [1]
    assert main([*words, "--threshold", "1.0"]) == 0
    assert "nothing found" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "columns"), [("segment", ["share", "pixels"]), ("detect", ["score", "left", "bottom"])])
def test_csv(task: str, columns: list[str], models: dict[str, str], picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(picture), "gone.png", "--model", models[task], "--csv"]) == 1
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["label"] for row in rows[:2]} == {"red", "blue"}
    assert all(float(row[column]) >= 0 for row in rows[:2] for column in columns)
    assert "gone.png" in rows[2]["error"]


def test_tiles(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 200), RED).save(tmp_path / "large.png")
    for task in models:
        assert main(["predict", str(tmp_path / "large.png"), "--model", models[task], "--tile", "128"]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[0] == "red"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "segment", "--attention"], "--attention"),
        (["--model", "segment", "--threshold", "0.5"], "threshold"),
        (["--model", "detect", "--classes", "rad"], "red"),
        (["--model", "detect", "--tile", "3"], "tile=3"),
        (["--model", "detect", "--json", "--coco"], "standard output"),
        (["--coco", "--model", "mobilevitv2-1.0-imagenet1k-256", "--csv"], "standard output"),
    ],
)
def test_bad_usage(words: list[str], said: str, models: dict[str, str], picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = words[words.index("--model") + 1] if "--model" in words else ""
    words = [models.get(word, word) if word == model else word for word in words]
    if "--model" not in words:
        words += ["--model", models["segment"]]
    assert main(["predict", str(picture), *words]) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.err.count("\n") == 1


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_a_task_without_checkpoint_in_the_package_asks_for_a_model(
    task: str, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mobilevitv2.contract.list_records", lambda **_: [])
    assert main(["predict", str(picture), "--task", task]) == 2
    error = capsys.readouterr().err
    assert task in error
    named = error.split("--model ")[1].strip().rstrip(".")
    assert any(record.name == named and record.task == task for record in list_records())


# ---- videos ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pytest.importorskip("av")
    from mobilevitv2.video import VideoWriter

    with VideoWriter(tmp_path / "clip.mp4", rate=10) as writer:
        for index in range(12):
            writer.write(Image.new("RGB", (330, 200), RED if index < 6 else BLUE))
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_a_video_becomes_an_annotated_one(
    task: str, models: dict[str, str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mobilevitv2.video import read_video

    out = tmp_path / "out"
    words = ["predict", str(clip), "--model", models[task], "--save", str(out), "--every", "2"]
    assert main([*words, "--json", str(out / "a.jsonl"), "--csv", str(out / "a.csv")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].startswith(f"{clip} 2 (0.20 s): red")
    entries = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
    assert [(entry["frame"], entry["time"]) for entry in entries] == [(index, index / 10) for index in range(0, 12, 2)]
    assert next(csv.DictReader((out / "a.csv").read_text().splitlines()))["frame"] == "0"
    (film,) = out.glob("*.mp4")
    video = read_video(film)
    frames = list(video)
    assert (len(frames), video.rate) == (6, 5)
    assert frames[0].source[100, 20].argmax() == 0
    assert frames[-1].source[100, 20].argmax() == 2


def test_a_folder_of_frames(models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), RED).save(frames / f"{index}.png")
    words = ["predict", str(frames), "--video", "--rate", "5", "--model", models["segment"], "--save", str(tmp_path / "out")]
    assert main(words) == 0
    assert "2 (0.40 s): red" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["frames.segments.mp4"]


def test_a_video_without_a_frame_does_not_keep_the_next_source_from_an_answer(
    models: dict[str, str], clip: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(clip.read_bytes())
    start = content.index(b"mdat") + 4  # what comes before is whole, so that it opens as a video
    content[start:] = bytes(len(content) - start)
    broken = clip.with_name("broken.mp4")
    broken.write_bytes(content)
    assert main(["predict", str(broken), str(picture), "--model", models["detect"], "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert "no frame that can be decoded" in first["error"] and first["source"] == str(broken)
    assert second["source"] == str(picture) and second["boxes"]


def test_broken_videos_among_others(models: dict[str, str], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert main(["predict", str(tmp_path / "text.mp4"), str(clip), "--model", models["detect"]]) == 1
    streams = capsys.readouterr()
    assert "text.mp4 is no video" in streams.err
    assert len(streams.out.splitlines()) == 12
    assert main(["predict", f"{tmp_path}/c*.mp4", "--model", models["detect"], "--every", "6", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
