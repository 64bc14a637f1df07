"""Whole runs on tiny pictures: what they leave, how they stop and go on, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from classification_data import picture, write_folder
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.train import trainer as trainer_module
from mobilevitv2.train.callbacks import Rhythm, read_metrics
from mobilevitv2.train.card import data_licence
from mobilevitv2.train.checkpoints import Best
from mobilevitv2.train.classify import TrainingResult, train_classifier
from mobilevitv2.train.recipe import ClassificationRecipe
from mobilevitv2.train.terminal import few_host_threads

for package in ("accelerate", "datasets", "matplotlib", "tensorboard", "yaml"):
    pytest.importorskip(package)

RECIPE = ClassificationRecipe(
    epochs=3,
    batch_size=16,
    image_size=32,
    width=0.5,
    learning_rate=0.01,
    ema_momentum=0.5,
    randaugment_operations=0,
    erasing=0.0,
    mixup=0.0,
    cutmix=0.0,
    label_smoothing=0.0,
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip=0.0,
    eval_resize=36,
    eval_crop=32,
    eval_every=1,
    save_every=1,
    workers=0,
    name="tiny",
)


class TinyNet(nn.Module):
    """A convolution and a line: no norm, so that batches may be divided without a difference."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.features = nn.Conv2d(3, 8, 3, stride=4)
        self.classifier = nn.Linear(8, classes)

    def forward(self, pixel_values: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.features(pixel_values).relu().mean(dim=(2, 3))))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    write_folder(root / "train", {"blue": 13, "green": 13, "red": 14})
    write_folder(root / "validation", {"blue": 3, "green": 3, "red": 3}, first=100)
    write_folder(root / "test", {"blue": 2, "green": 2, "red": 2}, first=200)
    return root


def _train(data: Path, output: Path, *, model: Any = None, resume: bool = False, **settings: Any) -> TrainingResult:
    network = TinyNet() if model is None else model
    return train_classifier(data, model=network, recipe=replace(RECIPE, **settings), output=output, resume=resume)


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


# ---- a whole run -----------------------------------------------------------------------------------------------------------------


def test_a_run_from_scratch_leaves_all_that_people_need(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (data / "LICENSE.txt").write_text("CC0")
    (data / "train" / "red" / "000.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    result = _train(data, out, model="scratch", epochs=1)
    assert result.steps == 2 and not result.interrupted
    assert (result.best, result.last) == (out / "model", out / "last")
    assert set(result.metrics) == {"top1", "top5", "loss"}
    left = {path.name for path in out.iterdir()}
    assert left == {
        *("model", "last", "checkpoints", "tensorboard", "metrics.jsonl", "result.json", "recipe.yaml"),
        *("curves.png", "confusion.png", "confusion.csv"),
    }
    network = MobileViTV2ForImageClassification.from_pretrained(out / "model")
    assert network.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert network.config.width_multiplier == 0.5
    assert MobileViTV2ImageProcessor.from_pretrained(out / "model").crop_size["height"] == 32
    with Image.open(out / "curves.png") as drawn:
        assert min(drawn.size) > 300
    summary = json.loads((out / "result.json").read_text())
    assert summary["split"] == "test" and set(summary["per_split"]) == {"validation", "test"}
    card = (out / "model" / "README.md").read_text()
    assert f"mobilevitv2 train {data} --task classify --model scratch" in card
    for told in ("39 train, 9 validation, 6 test pictures", "LICENSE.txt", "random weights", "| test | 6 |", "## Limits", "chosen"):
        assert told in card, told
    assert "cannot be read (left out)" in result.report
    said = capfd.readouterr()
    assert said.out == "" and "shards" not in said.err and "'loss'" not in said.err


def test_a_classifier_learns_colours(data: Path, tmp_path: Path) -> None:
    result = _train(data, tmp_path / "run", epochs=15, learning_rate=0.1)
    assert result.metrics["top1"] == 100.0


def test_fine_tuning_with_other_classes_makes_no_noise(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    from small_models import small_config

    before = MobileViTV2ForImageClassification(small_config())
    before.save_pretrained(tmp_path / "before")
    capfd.readouterr()
    _train(data, tmp_path / "run", model=tmp_path / "before", epochs=1, learning_rate=1e-9)
    said = capfd.readouterr()
    assert said.out == said.err == ""
    after = _weights(tmp_path / "run" / "model")
    assert after["classifier.weight"].shape[0] == 3
    name = "mobilevitv2.conv_stem.convolution.weight"
    torch.testing.assert_close(after[name], before.state_dict()[name])


# ---- which weights are kept ------------------------------------------------------------------------------------------------------


def _scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Evaluations that give these top-1 one after another."""
    left = list(scores)

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        return {"top1": left.pop(0), "top5": 100.0, "loss": 1.0}

    monkeypatch.setattr(trainer_module, "evaluate_batches", evaluate)


def test_the_best_evaluation_on_validation_pictures_chooses(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scripted(monkeypatch, [10.0, 60.0, 20.0])
    result = _train(data, tmp_path / "run")
    assert result.chosen_step == 4
    middle = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-4" / "average.safetensors")
    end = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-6" / "average.safetensors")
    for name, tensor in _weights(tmp_path / "run" / "model").items():
        assert torch.equal(tensor, middle[name]) and not torch.equal(tensor, end[name])
    assert all(torch.equal(tensor, end[name]) for name, tensor in _weights(tmp_path / "run" / "last").items())


def test_a_test_split_chooses_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    shutil.rmtree(data / "validation")
    _scripted(monkeypatch, [90.0, 10.0, 20.0])
    result = _train(data, tmp_path / "run")
    end = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-6" / "average.safetensors")
    assert all(torch.equal(tensor, end[name]) for name, tensor in _weights(tmp_path / "run" / "model").items())
    assert result.chosen_step is None and result.last is None and not (tmp_path / "run" / "last").exists()
    assert "nothing was chosen by them" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_equal_scores_are_told_apart_by_the_loss_and_then_the_later_one_wins() -> None:
    best = Best(50.0, 1.0, 10)
    assert best.beaten_by(Best(50.0, 0.9, 20)) and best.beaten_by(Best(50.0, 1.0, 20)) and best.beaten_by(Best(51.0, 2.0, 20))
    assert not best.beaten_by(Best(50.0, 1.1, 20)) and not best.beaten_by(Best(49.0, 0.1, 20))


def test_two_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    _train(data, tmp_path / "run", epochs=4)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


# ---- steps -----------------------------------------------------------------------------------------------------------------------


def test_accumulation_is_counted_in_optimiser_steps(data: Path, tmp_path: Path) -> None:
    whole = _train(data, tmp_path / "whole", warmup_steps=3)
    parts = _train(data, tmp_path / "parts", warmup_steps=3, accumulate=4)
    assert whole.steps == parts.steps == 6  # 40 pictures: 2 steps of 16 an epoch
    logs = [[line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line] for name in ("whole", "parts")]
    for one, other in zip(*logs, strict=True):
        assert one["step"] == other["step"] and one["learning_rate"] == other["learning_rate"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for name, tensor in _weights(tmp_path / "whole" / "last").items():
        torch.testing.assert_close(_weights(tmp_path / "parts" / "last")[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _train(data, tmp_path / "whole", accumulate=2)
    original = Rhythm.on_step_end

    def interrupted(self: Rhythm, args: Any, state: Any, control: Any, **options: Any) -> Any:
        self.interrupted = state.global_step == 3  # in the middle of the second epoch
        return original(self, args, state, control, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Rhythm, "on_step_end", interrupted)
        stopped = _train(data, tmp_path / "run", accumulate=2)
    assert stopped.interrupted and stopped.best is None and stopped.steps == 3
    assert not (tmp_path / "run" / "model").exists()
    with caplog.at_level(logging.INFO, logger="mobilevitv2.train"):
        resumed = _train(data, tmp_path / "run", accumulate=2, resume=True)
    assert "checkpoint-3" in caplog.text
    assert resumed.steps == whole.steps == 6
    for name, tensor in _weights(tmp_path / "whole" / "last").items():
        torch.testing.assert_close(_weights(tmp_path / "run" / "last")[name], tensor, rtol=1e-4, atol=1e-6)
    seen = [
        [(line["step"], line["eval_top1"]) for line in read_metrics(path) if "eval_top1" in line]
        for path in (
            tmp_path / "whole" / "metrics.jsonl",
            tmp_path / "run" / "metrics.jsonl",
        )
    ]
    assert seen[0] == seen[1]


def test_resuming_keeps_the_best_so_far(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scripted(monkeypatch, [80.0, 10.0, 30.0, 40.0])
    _train(data, tmp_path / "run", epochs=2)
    longer = _train(data, tmp_path / "run", epochs=4, resume=True)
    assert longer.steps == 8 and longer.chosen_step == 2


def test_a_learning_rate_changed_for_going_on_counts(data: Path, tmp_path: Path) -> None:
    _train(data, tmp_path / "run", epochs=1, schedule="constant")
    _train(data, tmp_path / "run", epochs=2, schedule="constant", learning_rate=0.003, resume=True)
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert rates == [0.01, 0.003]


def test_resuming_with_another_batch_is_refused(data: Path, tmp_path: Path) -> None:
    _train(data, tmp_path / "run", epochs=1)
    with pytest.raises(ConfigurationError, match="batch_size=16, which cannot become 8"):
        _train(data, tmp_path / "run", epochs=2, batch_size=8, resume=True)
    with pytest.raises(ConfigurationError, match="quantise_for=none, which cannot become openvino"):
        _train(data, tmp_path / "run", epochs=2, quantise_for="openvino", resume=True)


TWO_PROCESSES = """
import json, os, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
from mobilevitv2.data.batches import PictureBatches
from mobilevitv2.train.classify import train_classifier
from test_train_classify import RECIPE, TinyNet

seen, read = [], PictureBatches.__getitem__
def noted(self, index):
    if self.split.name == "train":
        seen.append(index)
    return read(self, index)
PictureBatches.__getitem__ = noted
train_classifier(sys.argv[2], model=TinyNet(), recipe=RECIPE, output=sys.argv[3])
with open(sys.argv[3] + os.environ["RANK"] + ".json", "w") as file:
    json.dump(seen, file)
"""


def test_two_processes_share_the_batch_and_one_writes(data: Path, tmp_path: Path) -> None:
    alone = _train(data, tmp_path / "alone")
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "two.py")]
    words = [*launch, str(Path(__file__).parent), str(data), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"run{rank}.json").read_text()) for rank in (0, 1))
    for start in (0, 16, 32):  # each epoch: 2 steps of 16 pictures, half of them in each process
        assert len({*first[start : start + 16], *second[start : start + 16]}) == 32
    steps = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in line]
    assert steps == [2, 4, 6] and alone.steps == 6
    for name, tensor in _weights(tmp_path / "alone" / "last").items():
        torch.testing.assert_close(_weights(tmp_path / "run" / "last")[name], tensor, rtol=1e-3, atol=1e-5)


# ---- stopping --------------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_leaves_a_resumable_run(data: Path, tmp_path: Path) -> None:
    class Breaking(TinyNet):
        calls = 0

        def forward(self, pixel_values: Tensor, **_: Any) -> SimpleNamespace:
            if self.training:
                type(self).calls += 1
            broken = self.training and type(self).calls == 3  # the first step of the second epoch
            return SimpleNamespace(logits=super().forward(pixel_values).logits * (float("nan") if broken else 1.0))

    with pytest.raises(
        ConfigurationError,
        match=r"step 4 .*began at step 3, with 16 pictures: \S+\.png, .*lower learning_rate \(now 0.01\).*precision=fp32",
    ):
        _train(data, tmp_path / "run", model=Breaking())
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = _train(data, tmp_path / "run", model=Breaking(), resume=True)
    assert resumed.steps == 6
    assert all(tensor.isfinite().all() for tensor in _weights(tmp_path / "run" / "last").values())


def test_ctrl_c_leaves_a_resumable_run_and_exit_code_130(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = (
        "epochs=2000 width=0.5 image_size=32 eval_crop=32 eval_resize=36 batch_size=4 workers=0 eval_every=1000 save_every=1000"
    )
    words = ["train", str(data), *settings.split(), "--recipe", "small", "--output", str(out)]
    started = subprocess.Popen(
        [sys.executable, "-m", "mobilevitv2", *words],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert started.stderr is not None
    told = []
    for line in started.stderr:  # one line an epoch, since this is no terminal
        told.append(line)
        if line.startswith("epoch 1/"):
            started.send_signal(signal.SIGINT)
            break
    told += started.communicate(timeout=60)[1].splitlines()
    assert started.returncode == 130
    text = "\n".join(told)
    assert "No problems found" in text and "--resume" in text and "Traceback" not in text and "shards" not in text
    (average,) = (out / "checkpoints").glob("checkpoint-*/average.safetensors")
    assert int(average.parent.name.partition("-")[2]) >= 10


def test_a_full_disk_is_answered_and_earlier_checkpoints_stay(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.save

    def full(content: Any, file: Any, *args: Any, **options: Any) -> None:
        if "checkpoint-4" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        original(content, file, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left.*free some space.*goes on from step 2"):
        patch.setattr(torch, "save", full)
        _train(data, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert _train(data, tmp_path / "run", resume=True).steps == 6


# ---- what is refused -------------------------------------------------------------------------------------------------------------


def test_folders_that_are_taken_or_read_only_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigurationError, match="taken is not empty"):
        _train(data, tmp_path / "taken")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="cannot be written to"):
        _train(data, tmp_path / "file" / "run")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(ConfigurationError, match="cannot be written to"):
            _train(data, tmp_path / "locked" / "run")


def test_errors_in_the_data_stop_with_the_table(data: Path, tmp_path: Path) -> None:
    (data / "test" / "violet").mkdir()
    (data / "test" / "violet" / "0.png").write_bytes(picture("red", 300))
    with pytest.raises(DataError, match=r"(?s)class of another split that train lacks.*violet"):
        _train(data, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_class_with_one_picture_is_only_a_warning(data: Path, tmp_path: Path) -> None:
    (data / "train" / "white").mkdir()
    (data / "train" / "white" / "0.png").write_bytes(picture("white", 0))
    result = _train(data, tmp_path / "run", model=TinyNet(4), epochs=1)
    assert "class with a single picture" in result.report


def test_too_few_pictures_and_no_training_pictures(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="40 training pictures are too few for accumulate=64"):
        _train(data, tmp_path / "run", batch_size=64, accumulate=64)
    (data / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no training pictures"):
        _train(data, tmp_path / "other")


def test_overrides_go_with_a_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"dataclasses\.replace"):
        train_classifier(data, recipe=RECIPE, output=tmp_path / "run", overrides={"epochs": "1"})


# ---- the machine -----------------------------------------------------------------------------------------------------------------


def test_one_host_thread_beside_a_gpu_and_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with few_host_threads(torch.device("cpu")):
            assert torch.get_num_threads() == 2
        with pytest.raises(ValueError), few_host_threads(torch.device("cuda")):
            assert torch.get_num_threads() == 1
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_data_say_of_their_licence(tmp_path: Path) -> None:
    assert data_licence(str(tmp_path)) == "not stated"
    (tmp_path / "LICENCE").write_text("x")
    assert data_licence(str(tmp_path)) == "see their file LICENCE"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    assert data_licence(str(tmp_path)) == "cc-by-4.0"


def test_resuming_where_there_is_no_run_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run to resume"):
        _train(data, tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()


def test_resuming_a_finished_run_leaves_its_record(data: Path, tmp_path: Path) -> None:
    _train(data, tmp_path / "run")
    record = (tmp_path / "run" / "result.json").read_bytes()
    with pytest.raises(ConfigurationError, match="is finished"):
        _train(data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "result.json").read_bytes() == record


def test_a_width_is_not_taken_with_trained_weights(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"width=2\.0 goes with --model scratch"):
        train_classifier(
            data, model="mobilevitv2-0.75-objects112", recipe="small", output=tmp_path / "run", overrides={"width": "2.0"}
        )
