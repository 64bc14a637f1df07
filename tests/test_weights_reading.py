"""Files of every kind: read if they hold weights, refused with the reason if not, and never executed."""

from __future__ import annotations

import argparse
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from weights_helpers import same

from mobilevitv2.errors import UnknownWeightsFormat, WeightsError
from mobilevitv2.weights import read_state_dict

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "norm.num_batches_tracked": torch.tensor(7), "half": torch.ones(2).half()}


class Attack:
    """Runs a command when a careless loader unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("new_zip_format", [True, False])
def test_torch_files(tmp_path: Path, suffix: str, new_zip_format: bool) -> None:
    file = tmp_path / f"weights{suffix}"
    torch.save(STATE, file, _use_new_zipfile_serialization=new_zip_format)
    assert same(read_state_dict(file), STATE)


def test_safetensors_whatever_the_suffix(tmp_path: Path) -> None:
    for name in ("weights.safetensors", "weights.pt"):
        save_file(STATE, tmp_path / name)
        found = read_state_dict(str(tmp_path / name))
        assert same({key: found[key] for key in STATE}, STATE)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_folders_in_hugging_face_format(tmp_path: Path, file: str) -> None:
    (save_file if file.endswith("safetensors") else torch.save)(STATE, tmp_path / file)
    assert set(read_state_dict(tmp_path)) == set(STATE)


def test_a_folder_without_weights_is_described(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"without model.safetensors or pytorch_model.bin \(it holds config.json\)"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: {"model_state_dict": state, "epoch": 3, "best_metric": 0.5},
        lambda state: {"state_dict": state, "arch": "mobilevitv2_050", "args": argparse.Namespace(lr=0.1, model="x")},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"model": {name: tensor + 1 for name, tensor in state.items()}, "model_ema": state},
        lambda state: {"state_dict": {name: tensor + 1 for name, tensor in state.items()}, "state_dict_ema": state},
        lambda state: {"state_dict": {"state_dict": state}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model_ema": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "pytorch-lightning_version": "2"},
    ],
)
def test_training_checkpoints(tmp_path: Path, nest, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "checkpoint.pt"
    content = nest(STATE)
    torch.save(content, file)
    with caplog.at_level(logging.INFO, logger="mobilevitv2"):
        assert same(read_state_dict(file), STATE)
    assert ("taking the weights under" in caplog.text) == any(isinstance(value, dict) for value in content.values())


# ---- refused ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_zip_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, new_zip_format: bool) -> None:
    marker, file = tmp_path / "executed", tmp_path / "weights.pt"
    torch.save({"conv.weight": torch.ones(1), "attack": Attack(marker)}, file, _use_new_zipfile_serialization=new_zip_format)
    with pytest.raises(UnknownWeightsFormat) as caught:
        read_state_dict(file)
    assert not marker.exists()
    assert "weights.pt was refused and nothing in it was run" in str(caught.value)
    assert "system" in str(caught.value)
    assert "safetensors.torch.save_file" in str(caught.value)


def test_a_plain_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker, file = tmp_path / "executed", tmp_path / "weights.bin"
    file.write_bytes(pickle.dumps(Attack(marker)))
    with pytest.raises(UnknownWeightsFormat, match=r"weights.bin was refused.*system"):
        read_state_dict(file)
    assert not marker.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UnknownWeightsFormat, match=r"asks for torch\.nn\.modules\.linear\.Linear.*save the model's state dict"):
        read_state_dict(tmp_path / "model.pt")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(WeightsError, match=r"weights.pt is empty \(0 bytes\)"):
        read_state_dict(tmp_path / "weights.pt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights.pt cannot be read: No such file"):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    state: dict[str, Tensor] = {f"layer{i}.weight": torch.rand(30, 30) for i in range(8)}
    file = tmp_path / "weights.pt"
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(WeightsError, match=r"weights.pt is (a|no) .*(truncated|damaged)") as caught:
        read_state_dict(file)
    assert "Get the file again" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n  <html lang=en>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\xfd7zXZ\x00rest", "unpack it first"),
        (b"\x1f\x8b\x08rest", "unpack it first"),
        (b"\xff\xd8\xff\xe0rest of a photograph", "a JPEG picture"),
        (b"epoch,loss\n1,2\n", r"no weights file: it starts with b'epoch"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(UnknownWeightsFormat, match=what):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([torch.ones(1)], "a list"),
        ({}, "an empty dictionary"),
        ({"epoch": 1, "loss": 0.5}, "a dictionary with the keys 'epoch', 'loss'"),
        ({"model": {}, "epoch": 1}, "an empty dictionary"),
        (torch.ones(3), "a Tensor"),
    ],
)
def test_torch_files_without_a_state_dict(tmp_path: Path, content: object, what: str) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UnknownWeightsFormat, match=f"holds {what}, not a state dict"):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.filterwarnings("ignore:.torch.jit")  # torch has announced the end of TorchScript; its files stay around
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(UnknownWeightsFormat, match="TorchScript"):
        read_state_dict(tmp_path / "model.pt")
