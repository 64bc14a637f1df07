"""`mobilevitv2 benchmark`: which rows there are, what they say, and what is refused. Nothing here looks at times."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from small_models import randomise, small_config

from mobilevitv2 import (
    MobileViTV2ForImageClassification,
    MobileViTV2ForObjectDetection,
    MobileViTV2ForSemanticSegmentation,
    MobileViTV2ImageProcessor,
)
from mobilevitv2.benchmarking.request import Request
from mobilevitv2.benchmarking.timing import Times, in_turn, times_faster
from mobilevitv2.cli import main
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export import export

KINDS: dict[str, Any] = {
    "classify": MobileViTV2ForImageClassification,
    "segment": MobileViTV2ForSemanticSegmentation,
    "detect": MobileViTV2ForObjectDetection,
}
QUICK = ("--rounds", "1", "--threads", "1", "--device", "cpu")
needs_onnxruntime = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small model of each task, as folders."""
    places = {}
    for task, kind in KINDS.items():
        place = tmp_path_factory.mktemp(task)
        torch.manual_seed(0)
        options = {"use_auxiliary_head": False} if task == "segment" else {}
        model = randomise(kind(small_config(image_size=64, **options)))
        model.save_pretrained(place)
        side = {"height": 64, "width": 64}
        crop = {"size": {"shortest_edge": 64}, "crop_size": side} if task == "classify" else {"size": side, "do_center_crop": False}
        MobileViTV2ImageProcessor(**crop).save_pretrained(place)
        places[task] = str(place)
    return places


@pytest.fixture(scope="module")
def file(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    export(folders["classify"], path)
    return str(path)


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON, and standard error."""
    code = main(["benchmark", *words, *QUICK, "--json", "-"])
    out = capsys.readouterr()
    return code, json.loads(out.out) if out.out else {}, out.err


def titles(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(row.get("peer", "ours"), row["form"], row["engine"]) for row in report["rows"]]


# ---- rows ------------------------------------------------------------------------------------------------------------------------


def test_ours_beside_transformers_with_the_same_weights(folders, capsys):
    code, report, _ = run(folders["classify"], "--against", "transformers", capsys=capsys)
    assert code == 0
    assert titles(report) == [
        ("ours", "plain", "torch"),
        ("ours", "optimised", "torch"),
        ("transformers", "as shipped", "torch"),
        ("transformers", "channels_last", "torch"),
    ]
    assert all(row["difference"] < 1e-4 for row in report["rows"])
    assert report["ratio_to"] == ["transformers, as shipped, torch, float32"]
    assert report["rows"][2]["ratio"] == 1.0
    assert (report["task"], report["height"], report["width"]) == ("classify", 64, 64)
    assert report["environment"]["threads"] == 1
    assert {"torch", "transformers", "python", "mobilevitv2"} <= report["environment"]["versions"].keys()


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_the_other_tasks(task, folders, capsys):
    peers = ("--against", "transformers") if task == "segment" else ()
    code, report, _ = run(folders[task], *peers, capsys=capsys)
    assert code == 0
    assert report["task"] == task
    ours = [row for row in report["rows"] if "peer" not in row]
    assert all(row["difference"] < 1e-4 for row in ours)
    assert len(report["rows"]) == (4 if task == "segment" else 2)


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_timm_takes_the_weights_of_a_released_shape(capsys):
    words = ("mobilevitv2-0.5-imagenet1k-256", "--random-weights", "--size", "64", "--against", "timm")
    code, report, _ = run(*words, capsys=capsys)
    assert code == 0
    assert report["random_weights"] is True
    assert all(row["difference"] < 1e-4 for row in report["rows"])


def test_version_1_has_weights_of_its_own(folders, capsys):
    code, report, _ = run(folders["classify"], "--against", "v1", capsys=capsys)
    assert code == 0
    assert all("difference" not in row and row["model"] == "MobileViT-XXS (v1)" for row in report["rows"][2:])


def test_each_batch_size_and_dtype_has_rows(folders, capsys):
    code, report, _ = run(folders["classify"], "--batch-size", "1,2", "--dtype", "float32", "bfloat16", capsys=capsys)
    assert code == 0
    assert [(row["batch"], row["dtype"]) for row in report["rows"]] == [
        (batch, dtype) for batch in (1, 2) for dtype in ("float32", "bfloat16") for _ in range(2)
    ]
    assert all(0 < row["difference"] < 0.1 for row in report["rows"] if row["dtype"] == "bfloat16")


def test_a_row_that_fails_says_why_and_the_others_go_on(folders, capsys):
    words = (folders["classify"], "--against", "timm", "transformers", "--engines", "torch")
    code, report, _ = run(*words, capsys=capsys)
    assert code == 1
    failed = [row for row in report["rows"] if "failed" in row]
    assert {row["peer"] for row in failed} == {"timm"}  # it has no width with one transformer layer a stage
    assert "timm" in failed[0]["failed"]
    assert all("median_ms" in row for row in report["rows"] if row not in failed)
    assert report["ratio_to"] == ["transformers, as shipped, torch, float32"]


def test_a_peer_that_is_not_installed_is_named_with_the_command(folders, capsys, monkeypatch):
    plain = builtins.__import__

    def without_timm(name: str, *rest: Any, **more: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    code, report, _ = run(folders["classify"], "--against", "timm", capsys=capsys)
    assert code == 1
    assert report["rows"][2]["failed"] == "timm is not installed: pip install timm"
    assert "median_ms" in report["rows"][0]


# ---- exported files --------------------------------------------------------------------------------------------------------------


@needs_onnxruntime
@pytest.mark.parametrize("task", list(KINDS))
def test_every_task_exported_for_the_benchmark(task, folders, capsys):
    code, report, _ = run(folders[task], "--engines", "torch", "onnxruntime", "--batch-size", "2", capsys=capsys)
    assert code == 0
    assert titles(report)[-1] == ("ours", "exported", "onnxruntime")
    assert report["rows"][-1]["difference"] < 1e-3


@needs_onnxruntime
def test_a_file_beside_its_model_is_compared_with_it(file, folders, capsys):
    code, report, _ = run(folders["classify"], file, capsys=capsys)
    assert code == 0
    row = report["rows"][-1]
    assert (row["model"], row["form"], row["engine"], row["dtype"]) == ("model.onnx", "file", "onnxruntime", "fp32")
    assert row["difference"] < 1e-4


@needs_onnxruntime
def test_files_that_cannot_be_opened_do_not_cost_the_others(file, tmp_path, capsys):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    code, report, err = run(str(broken), "gone.onnx", file, "--batch-size", "1,2", capsys=capsys)
    assert code == 1
    assert [(row["model"], row["batch"], "median_ms" in row) for row in report["rows"]] == [
        (name, batch, name == "model.onnx") for batch in (1, 2) for name in ("model.onnx", "broken.onnx", "gone.onnx")
    ]
    failed = report["rows"][1]
    assert (failed["form"], failed["engine"]) == ("file", "onnxruntime")
    assert str(broken) in failed["failed"] and "export it again" in failed["failed"]
    assert "gone.onnx does not exist; check the path" in report["rows"][2]["failed"]
    assert f"broken.onnx fails: {broken} cannot be opened" in err
    assert main(["benchmark", str(broken), file, *QUICK]) == 1
    assert "  broken.onnx, file, onnxruntime, unknown: " in capsys.readouterr().out


@needs_onnxruntime
def test_a_model_that_cannot_be_loaded_does_not_cost_the_files(file, folders, tmp_path, capsys):
    code, report, _ = run(file, str(tmp_path), folders["classify"], capsys=capsys)
    assert code == 1
    assert [row["model"] for row in report["rows"] if "failed" in row] == [tmp_path.name]
    assert titles(report)[-1] == ("ours", "model", "torch")


@needs_onnxruntime
def test_nothing_that_can_be_opened_is_an_error(tmp_path, capsys):
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"no model")
    assert main(["benchmark", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert "error: " in out.err.splitlines()[-1] and "b.onnx fails: " in out.err


@needs_onnxruntime
def test_a_file_that_fails_while_it_is_timed_does_not_cost_the_others(file, tmp_path, capsys, monkeypatch):
    from mobilevitv2.benchmarking.files import FileRun

    other = shutil.copy(file, tmp_path / "other.onnx")
    plain, calls = FileRun.__call__, []

    def fails(self: FileRun) -> Any:
        calls.append(self)
        if self is calls[0] and calls.count(self) > 2:
            raise RuntimeError("no memory left")
        return plain(self)

    monkeypatch.setattr(FileRun, "__call__", fails)
    code, report, err = run(file, str(other), capsys=capsys)
    assert code == 1
    assert report["rows"][0]["failed"] == "RuntimeError: no memory left"
    assert "median_ms" not in report["rows"][0] and "median_ms" in report["rows"][1]
    assert "model.onnx, file, onnxruntime, fp32 fails: RuntimeError: no memory left" in err


@needs_onnxruntime
@pytest.mark.parametrize("spelling", ["./model.onnx", "link.onnx", "sub/../model.onnx"])
def test_one_file_under_two_spellings(spelling, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, "model.onnx")
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    (tmp_path / "sub").mkdir()
    assert main(["benchmark", "model.onnx", spelling]) == 2
    assert f"model model.onnx is named twice, as model.onnx and as {spelling}" in capsys.readouterr().err


@needs_onnxruntime
def test_a_file_alone_is_timed_without_torch(file):
    code = (
        "import sys\nfrom mobilevitv2.cli import main\n"
        f"code = main(['benchmark', '--model', {file!r}, '--rounds', '1', '--batch-size', '3'])\n"
        "sys.exit(code or ('torch' in sys.modules) or ('transformers' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model.onnx" in done.stdout


@needs_onnxruntime
def test_a_format_without_the_dtype_says_which_it_has(folders, capsys):
    code, report, _ = run(folders["classify"], "--engines", "onnxruntime", "--dtype", "bfloat16", capsys=capsys)
    assert code == 1
    assert report["rows"][0]["failed"] == "onnxruntime has no bfloat16 here; it has float32, float16."


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_a_peer_through_the_same_exporter(folders, capsys):
    words = (folders["classify"], "--engines", "openvino", "--against", "transformers", "--batch-size", "2")
    code, report, _ = run(*words, capsys=capsys)
    assert code == 0, [row.get("failed") for row in report["rows"]]
    assert titles(report) == [("ours", "exported", "openvino"), ("transformers", "exported", "openvino")]
    assert all(row["difference"] < 1e-3 for row in report["rows"])


# ---- what is written -------------------------------------------------------------------------------------------------------------


def test_table_json_and_picture(folders, tmp_path, capsys):
    words = [folders["classify"], "--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "bars.png"), *QUICK]
    assert main(["benchmark", *words]) == 0
    out = capsys.readouterr()
    assert "batch 1, 1 round; ratio: times as fast as" in out.out
    assert "optimised" in out.out
    assert ", 1 thread" in out.out and "1 threads" not in out.out
    assert "fewer than 5 rounds show no spread" in out.err
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["runs"] == 1
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bars.png", "rows.json"]


def test_a_noisy_machine_is_told():
    from mobilevitv2.benchmarking.report import Report, Row

    machine = {"load_before": 0.0, "cores": 2}
    quiet = Row(model="m", form="f", engine="torch", dtype="float32", batch=1, times=Times.of([1.0, 1.01, 1.0, 1.01, 1.0]))
    noisy = Row(model="m", form="g", engine="torch", dtype="float32", batch=1, times=Times.of([1.0, 2.0, 3.0, 1.0, 2.0]))
    report = Report(models=("m",), task="classify", size=(64, 64), machine=machine)
    assert report.added((quiet,), quiet.title, None).doubts() == []
    (doubt,) = report.added((quiet, noisy), quiet.title, None).doubts()
    assert doubt.startswith("1 of 2 rows varies by more than 15 %")
    assert (
        "load 1.9 on 2 cores"
        in Report(models=("m",), task="classify", size=(64, 64), machine={"load_before": 1.9, "cores": 2}).doubts()[0]
    )


def test_help_answers_without_heavy_imports():
    code = (
        "import sys\nfrom mobilevitv2.cli import main\nmain(['benchmark', '--help'])\n"
        "sys.exit(str({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "--against" in done.stdout


# ---- refused ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "tim"], "there is no peer 'tim'; did you mean timm?"),
        (["--against", "keras"], "there is no peer 'keras'; there are transformers, timm, v1."),
        (["--engines", "tensorrt"], "there is no engine 'tensorrt'; there are torch, onnxruntime, openvino, executorch, litert."),
        (["--dtype", "float23"], "there is no dtype 'float23'; did you mean float32?"),
        (["--batch-size", "0"], "batch size 0 is not possible"),
        (["--batch-size", "many"], "--batch-size many is no number of pictures"),
        (["--size", "16"], "size 16 x 16 is not possible; a side is 32 to 8192 pixels."),
        (["--size", "1", "2", "3"], "--size 1 2 3 has 3 numbers"),
        (["--rounds", "0"], "rounds=0 times nothing"),
        (["--threads", "-1"], "threads=-1 times nothing"),
        (["--against", "timm,timm"], "peer 'timm' is named twice"),
        (["--model", "name", "name"], "model name is named twice, and its rows would carry one name; once is enough"),
        (["--device", "cuda", "--engines", "onnxruntime"], "onnxruntime runs on the CPU; leave --device cuda out"),
        (["no-such.onnx"], "no-such.onnx does not exist"),
        (["--plot", "bars.gif"], "bars.gif is no file for a picture"),
        (["--against", "mobilevitv2-0.5-imagenet1k-256"], "The name of a model stands before the options."),
    ],
)
def test_bad_usage_is_answered_in_one_line(words, said, capsys):
    assert main(["benchmark", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_there_is_not(folders, capsys):
    assert main(["benchmark", folders["classify"], "--device", "cuda"]) == 2
    assert "device='cuda' cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "peer"), [("detect", "timm"), ("detect", "transformers"), ("segment", "timm")])
def test_a_task_that_a_peer_does_not_have(task, peer, folders, capsys):
    assert main(["benchmark", folders[task], "--against", peer, *QUICK]) == 2
    err = capsys.readouterr().err
    assert f"{peer} has no MobileViT {'detector' if task == 'detect' else 'segmenter'}" in err
    assert ("take transformers" in err) == (task == "segment")


def test_models_of_two_tasks(folders, capsys):
    assert main(["benchmark", folders["classify"], folders["detect"], *QUICK]) == 2
    assert "time them apart" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["classify", "segment"])
def test_folders_of_one_name_are_told_apart(other, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, task in (("a", "classify"), ("b", other)):
        shutil.copytree(folders[task], tmp_path / run / "model")
    code = main(["benchmark", "a/model", "b/model", *QUICK, "--json", "-"])
    told = capsys.readouterr()
    if other == "segment":
        assert code == 2 and "b/model is of task 'segment', a/model of task 'classify'" in told.err
    else:
        assert code == 0 and {row["model"] for row in json.loads(told.out)["rows"]} == {"a/model", "b/model"}


def test_a_task_that_is_not_the_models(folders, capsys):
    assert main(["benchmark", folders["classify"], "--task", "detect", *QUICK]) != 0
    assert "detect" in capsys.readouterr().err


@needs_onnxruntime
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "detect"], "is of task 'classify'; leave the task out."),
        (["--against", "timm"], "name the model it was made from beside it"),
        (["--device", "cuda"], "runs on the CPU; leave --device cuda out"),
    ],
)
def test_what_a_file_cannot_do(words, said, file, capsys):
    assert main(["benchmark", file, *words]) == 2
    assert said in capsys.readouterr().err


@needs_onnxruntime
def test_a_size_that_a_file_does_not_take(file, capsys):
    code, report, _ = run_file(file, "--size", "96", capsys=capsys)
    assert code == 1
    assert "takes 64 x 64 pixels, not 96 x 96" in report["rows"][0]["failed"]


def run_file(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    code = main(["benchmark", *words, "--rounds", "1", "--json", "-"])
    out = capsys.readouterr()
    return code, json.loads(out.out), out.err


# ---- parts -----------------------------------------------------------------------------------------------------------------------


def test_every_round_runs_everything_once_and_a_failing_one_drops_out():
    calls: list[str] = []
    failed: list[str] = []

    def fails() -> None:
        calls.append("b")
        if len(calls) > 6:
            raise RuntimeError("no memory left")

    times = in_turn(
        {"a": lambda: calls.append("a"), "b": fails, "c": lambda: calls.append("c")},
        rounds=3,
        failed=lambda key, error: failed.append(f"{key}: {error}"),
        warm_ups=1,
    )
    assert "".join(calls) == "abcabcb" + "ca" + "ac"
    assert failed == ["b: no memory left"]
    assert {key: len(each) for key, each in times.items()} == {"a": 3, "c": 3}


def test_ratios_are_of_the_same_round():
    assert times_faster([1.0, 10.0, 2.0], [0.5, 5.0, 1.0]) == 2.0
    assert Times.of([0.001, 0.003, 0.002]).median == 2.0
    assert np.isclose(Times.of([0.001, 0.003, 0.002]).spread, 0.5)


def test_requests_are_checked_without_the_command():
    with pytest.raises(ConfigurationError, match="at least one model"):
        Request(models=())
    with pytest.raises(ConfigurationError, match="no peer"):
        Request(models=("x",), against=("jax",))
