"""Videos in and out: frames with their times, rotation, rates, broken files, folders of frames, annotated files."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from answer_models import ColourDetector, ColourSegmenter, whole
from PIL import Image

from mobilevitv2.errors import ConfigurationError, ImageError, MissingDependency
from mobilevitv2.prediction import iter_predictions, predict, read_video
from mobilevitv2.video import VideoWriter, is_video

av = pytest.importorskip("av")

RED, BLUE = (255, 0, 0), (0, 0, 255)


def make(
    path: Path,
    count: int = 12,
    *,
    size: tuple[int, int] = (96, 64),
    rate: Fraction = Fraction(10),
    codec: str = "mpeg4",
    **options: str,
) -> Path:
    """Red frames that turn blue at half, with a black stripe on top."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate, stream.gop_size = 2_000_000, 4
        for index in range(count):
            picture = Image.new("RGB", size, RED if index < count // 2 else BLUE)
            picture.paste((0, 0, 0), (0, 0, size[0], size[1] // 4))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def colours(frames: list[np.ndarray]) -> str:
    return "".join("r" if frame[-4, 4, 0] > 150 else "b" for frame in frames)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov", ".webm"])
def test_frames_come_in_order_with_their_times(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / f"clip{suffix}", codec="libvpx" if suffix == ".webm" else "mpeg4")
    assert is_video(path)
    video = read_video(path)
    assert video.rate == 10
    assert video.count in (12, None)
    frames = list(video)
    assert [frame.frame for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([index / 10 for index in range(12)], abs=0.002)
    assert {frame.name for frame in frames} == {str(path)}
    assert colours([frame.source for frame in frames]) == "rrrrrrbbbbbb"
    assert frames[0].source.shape == (64, 96, 3)
    assert len(list(video)) == 12  # once more


def test_every_nth_frame(tmp_path: Path) -> None:
    video = read_video(make(tmp_path / "clip.mp4", 11), every=5)
    assert (video.rate, video.count) == (2, 3)
    assert [(frame.frame, frame.time) for frame in video] == [(0, 0.0), (5, 0.5), (10, 1.0)]


def test_the_rate_of_film_is_kept(tmp_path: Path) -> None:
    assert read_video(make(tmp_path / "clip.mp4", rate=Fraction(30000, 1001))).rate == Fraction(30000, 1001)


@pytest.mark.parametrize(("degrees", "side"), [(90, "left"), (180, "bottom"), (270, "right")])
def test_frames_are_turned_as_the_file_says(tmp_path: Path, degrees: int, side: str) -> None:
    plain, turned = make(tmp_path / "plain.mp4", 3), tmp_path / "turned.mp4"
    with av.open(str(plain)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.set_display_rotation(degrees)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    frame = next(iter(read_video(turned))).source
    assert frame.shape == ((64, 96, 3) if degrees == 180 else (96, 64, 3))
    dark = {"left": frame[:, 2], "right": frame[:, -3], "bottom": frame[-3], "top": frame[2]}
    assert {name for name, line in dark.items() if line[8:-8].max() < 90} == {side}


def test_predict_takes_videos_among_pictures(tmp_path: Path) -> None:
    path = make(tmp_path / "clip.mp4", 4)
    Image.new("RGB", (64, 64), RED).save(tmp_path / "a.png")
    got = predict([tmp_path / "a.png", path], model=ColourSegmenter(), processor=whole(), progress=True)
    assert [(answer.frame, answer.areas[0].label) for answer in got] == [
        (None, "red"),
        (0, "red"),
        (1, "red"),
        (2, "blue"),
        (3, "blue"),
    ]
    entry = json.loads(json.dumps(got[2].to_dict()))
    assert (entry["source"], entry["frame"], entry["time"]) == (str(path), 1, 0.1)
    assert "frame" not in got[0].to_dict()


def test_no_more_frames_are_read_than_wanted(tmp_path: Path) -> None:
    path = make(tmp_path / "clip.mp4", 60)
    model = ColourDetector()
    answers = iter_predictions(read_video(path), model=model, processor=whole(), batch_size=2, workers=1)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert sum(call[0] for call in model.calls) <= 2


def test_a_file_cut_short_gives_the_frames_it_has_and_says_so(tmp_path: Path) -> None:
    for suffix, options in ((".mp4", {"movflags": "faststart"}), (".mkv", {})):
        path = make(tmp_path / f"clip{suffix}", 40, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
        got = predict(path, model=ColourSegmenter(), processor=whole())
        assert 5 < len(got) < 40
        assert all(answer.error is None and answer.areas for answer in got[:-1])
        assert "truncated" in (got[-1].error or "")
        assert str(path) in (got[-1].error or "")


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole_file = make(tmp_path / "headless.mp4")
    whole_file.write_bytes(whole_file.read_bytes()[:400])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, said in (
        ("text", "no video"),
        ("empty", "0 bytes"),
        ("headless", "cut short"),
        ("sound", "sound"),
        ("gone", "exist"),
    ):
        with pytest.raises(ImageError, match=said):
            read_video(tmp_path / f"{name}.mp4")
    got = predict([tmp_path / "text.mp4", Image.new("RGB", (64, 64), RED)], model=ColourSegmenter(), processor=whole())
    assert [answer.error is None for answer in got] == [False, True]


def test_a_video_without_a_frame_costs_no_other_answer(tmp_path: Path) -> None:
    path = tmp_path / "zeros.mp4"
    with VideoWriter(path, rate=10) as writer:
        for _ in range(12):
            writer.write(Image.new("RGB", (330, 200), RED))
    content = path.read_bytes()
    start = content.index(b"mdat") + 4  # what comes before is whole, so that it opens as a video
    path.write_bytes(content[:start] + bytes(len(content) - start))
    got = predict([read_video(path), Image.new("RGB", (64, 64), RED)], model=ColourSegmenter(), processor=whole())
    assert [answer.error is None for answer in got] == [False, True]


def test_settings_out_of_range(tmp_path: Path) -> None:
    for options, message in (({"every": 0}, "every=0"), ({"rate": -1.0}, "rate=-1.0")):
        with pytest.raises(ConfigurationError, match=message):
            read_video(tmp_path, **options)


def test_a_folder_of_frames_is_a_video_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10, 11):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    video = read_video(tmp_path, rate=5, every=2)
    assert (video.rate, video.count) == (Fraction(5, 2), 2)
    frames = list(video)
    assert [Path(frame.name).name for frame in frames] == ["frame1.png", "frame10.png"]
    assert [(frame.frame, frame.time) for frame in frames] == [(0, 0.0), (2, 0.4)]
    (tmp_path / "frame2.png").write_bytes(b"")
    got = predict(read_video(tmp_path), model=ColourSegmenter(), processor=whole())
    assert [answer.error is None for answer in got] == [True, False, True, True]


def test_what_is_written_has_rate_size_and_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mp4"
    with VideoWriter(path, rate=Fraction(30000, 1001)) as writer:
        for index in range(10):
            writer.write(Image.new("RGB", (95, 63), RED if index < 5 else BLUE))
        writer.write(Image.new("RGB", (200, 300), RED))  # another size is fitted in
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "mpeg4")
    video = read_video(path)
    frames = list(video)
    assert video.rate == Fraction(30000, 1001)
    assert colours([frame.source for frame in frames[:10]]) == "rrrrrbbbbb"
    assert frames[0].source.shape == (64, 96, 3)
    assert len(frames) == 11
    assert [each.name for each in path.parent.iterdir()] == ["out.mp4"]


def test_times_are_kept_where_frames_are_missing(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", rate=10) as writer:
        for time in (0.0, 0.1, 0.5, 0.5):
            writer.write(Image.new("RGB", (64, 64)), time=time)
    assert [frame.time for frame in read_video(tmp_path / "out.mp4")] == pytest.approx([0.0, 0.1, 0.5, 0.6], abs=0.01)


def test_nothing_is_left_of_a_video_that_was_broken_off(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), VideoWriter(tmp_path / "out.mp4", rate=10) as writer:
        writer.write(Image.new("RGB", (64, 64)))
        raise ZeroDivisionError
    with VideoWriter(tmp_path / "none.mp4", rate=10):
        pass
    assert list(tmp_path.iterdir()) == []


def test_mpeg4_is_written_where_there_is_no_h264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilevitv2.video.CODECS", ("no-such-codec", "mpeg4"))
    with VideoWriter(tmp_path / "out.mp4", rate=25) as writer:
        writer.write(Image.new("RGB", (64, 64), RED))
    assert colours([frame.source for frame in read_video(tmp_path / "out.mp4")]) == "r"


def test_without_pyav_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "clip.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependency, match="video"):
        read_video(path)


def test_names_of_videos() -> None:
    assert is_video("a/b.MP4")
    assert not is_video("a.jpg")
    assert not is_video("https://example.org/a.mp4")
    assert not is_video(b"a.mp4")


def test_the_module_imports_nothing_heavy() -> None:
    code = "import sys, mobilevitv2.video; print([name for name in ('av', 'torch', 'numpy', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
