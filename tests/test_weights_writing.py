"""Converting files: every way, to the bit; what transformers and timm then load answers as before; nothing is half written."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from weights_helpers import FIXTURES, fixture_file, make_state, same

from mobilevitv2.errors import ConfigurationError, DownloadError, UnknownWeightsFormat, WeightsError
from mobilevitv2.weights import (
    Architecture,
    convert_file,
    convert_state_dict,
    get_record,
    identify,
    read_state_dict,
    write_whole,
    writing,
)

CLASSIFIER = Architecture(task="classify", width=0.5, num_labels=3)
SEGMENTER = Architecture(task="segment", head="deeplabv3", width=0.5, num_labels=21, head_channels=32)
DETECTOR = Architecture(task="detect", head="ssdlite", width=0.5, num_labels=5)
SUFFIX = {"official": ".pt", "timm": ".safetensors", "hf": ""}


@pytest.fixture
def official_file(tmp_path: Path) -> Path:
    """A small classifier in official names."""
    torch.save(convert_state_dict(make_state(CLASSIFIER), to="official"), tmp_path / "official.pt")
    return tmp_path / "official.pt"


def sorted_state(path: Path) -> dict[str, Tensor]:
    """safetensors keeps its own order."""
    return dict(sorted(read_state_dict(path).items()))


# ---- there and back --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", [("timm", "hf", "official"), ("hf", "timm", "official"), ("hf", "official"), ("timm", "official")])
def test_a_classifier_comes_back_to_the_bit(tmp_path: Path, way: tuple[str, ...], dtype: torch.dtype) -> None:
    start = tmp_path / "start.pt"
    torch.save(convert_state_dict(make_state(CLASSIFIER, dtype=dtype), to="official"), start)
    source = start
    for step, to in enumerate(way):
        source = convert_file(source, tmp_path / f"{step}{SUFFIX[to]}", to=to)  # type: ignore[arg-type]
        assert identify(read_state_dict(source)).format == to
    assert same(sorted_state(source), sorted_state(start))


@pytest.mark.parametrize("name", FIXTURES)
def test_official_files_come_back_to_the_bit(shared_fixtures: Path, tmp_path: Path, name: str) -> None:
    start = fixture_file(shared_fixtures, name, tmp_path)
    folder = convert_file(start, tmp_path / "folder", to="hf")
    back = convert_file(folder, tmp_path / "back.pth", to="official")
    assert same(sorted_state(back), sorted_state(start))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_the_suffix_decides_the_kind_of_file(official_file: Path, tmp_path: Path, suffix: str) -> None:
    target = convert_file(official_file, tmp_path / f"out{suffix}", to="timm")
    assert (target.read_bytes()[:2] == b"PK") == (suffix != ".safetensors")
    assert "head.fc.weight" in read_state_dict(target)


def test_tensors_with_shared_or_larger_memory_are_stored_alone(tmp_path: Path) -> None:
    state = convert_state_dict(make_state(CLASSIFIER), to="timm")
    block = torch.rand(100_000)
    state["stem.bn.weight"], state["stem.bn.bias"] = block[:16], block[:16]
    state["head.fc.weight"] = torch.rand(256, 3).t()
    torch.save(state, tmp_path / "shared.pt")
    for name in ("out.safetensors", "out.pt"):
        target = convert_file(tmp_path / "shared.pt", tmp_path / name, to="timm")
        assert same(sorted_state(target), dict(sorted(state.items())))
    assert (tmp_path / "out.pt").stat().st_size < 4 * 1.45e6 + 2e5


# ---- what others make of it ------------------------------------------------------------------------------------------------------


@pytest.fixture
def official_answer(shared_fixtures: Path) -> tuple[Tensor, Tensor]:
    """Picture and logits of the official code's classifier."""
    picture = np.asarray(Image.open(shared_fixtures / "cvnets-classification-0.5.png").convert("RGB"), dtype=np.float32) / 255
    logits = np.load(shared_fixtures / "cvnets-classification-0.5.npz")["logits"]
    return torch.from_numpy(picture).permute(2, 0, 1)[None], torch.from_numpy(logits)


def close(found: Tensor, right: Tensor) -> bool:
    return float((found - right).abs().max() / right.abs().max()) < 1e-5


@torch.no_grad()
def test_transformers_own_class_loads_the_folder(
    shared_fixtures: Path, tmp_path: Path, official_answer: tuple[Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2ForImageClassification

    folder = convert_file(fixture_file(shared_fixtures, "classification", tmp_path), tmp_path / "folder", to="hf")
    model, report = MobileViTV2ForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_labels == 1000
    assert close(model.eval()(official_answer[0]).logits, official_answer[1])


@torch.no_grad()
def test_timm_loads_the_file(shared_fixtures: Path, tmp_path: Path, official_answer: tuple[Tensor, Tensor]) -> None:
    timm = pytest.importorskip("timm")
    file = convert_file(fixture_file(shared_fixtures, "classification", tmp_path), tmp_path / "timm.safetensors", to="timm")
    model = timm.create_model("mobilevitv2_050", checkpoint_path=str(file)).eval()
    assert close(model(official_answer[0]), official_answer[1])


def test_transformers_segmentation_class_loads_the_folder(tmp_path: Path) -> None:
    from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2ForSemanticSegmentation

    torch.save(convert_state_dict(make_state(SEGMENTER), to="official"), tmp_path / "seg.pt")
    folder = convert_file(tmp_path / "seg.pt", tmp_path / "folder", to="hf")
    model, report = MobileViTV2ForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (model.config.num_labels, model.config.output_stride, model.config.atrous_rates) == (21, 16, [6, 12, 18])


def test_transformers_processor_keeps_rgb(official_file: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    folder = convert_file(official_file, tmp_path / "folder", to="hf")
    processor = AutoImageProcessor.from_pretrained(folder)
    picture = Image.new("RGB", (300, 400), (255, 0, 102))
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 256, 256)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.4])


# ---- the folder's description ----------------------------------------------------------------------------------------------------


def description(folder: Path, file: str = "config.json") -> dict[str, object]:
    return json.loads((folder / file).read_text())


def test_config_of_a_detector(tmp_path: Path) -> None:
    torch.save(convert_state_dict(make_state(DETECTOR, dtype=torch.float16), to="official"), tmp_path / "det.pt")
    folder = convert_file(tmp_path / "det.pt", tmp_path / "folder", to="hf")
    config, processor = description(folder), description(folder, "preprocessor_config.json")
    assert (config["architectures"], config["model_type"]) == (["MobileViTV2ForObjectDetection"], "mobilevitv2")
    assert (config["dtype"], config["width_multiplier"], config["image_size"]) == ("float16", 0.5, 320)
    assert len(config["id2label"]) == 5  # type: ignore[arg-type]
    assert (processor["size"], processor["do_center_crop"]) == ({"height": 320, "width": 320}, False)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_class_names_are_given_or_kept(official_file: Path, tmp_path: Path) -> None:
    named = convert_file(official_file, tmp_path / "named", to="hf", class_names=["cat", "dog", "eel"])
    assert description(named)["id2label"] == {"0": "cat", "1": "dog", "2": "eel"}
    (named / "preprocessor_config.json").write_text('{"do_flip_channel_order": true}')
    kept = convert_file(named, tmp_path / "kept", to="hf")
    assert description(kept)["label2id"] == {"cat": 0, "dog": 1, "eel": 2}
    assert description(kept, "preprocessor_config.json") == {"do_flip_channel_order": True}
    with pytest.raises(ConfigurationError, match="2 class names for 3 classes"):
        convert_file(official_file, tmp_path / "wrong", to="hf", class_names=["cat", "dog"])


def test_a_records_name_brings_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ade = Architecture(task="segment", head="deeplabv3", width=0.5, num_labels=150)
    torch.save(convert_state_dict(make_state(ade), to="official"), tmp_path / "file.pt")
    monkeypatch.setattr(writing, "fetch", lambda record: tmp_path / "file.pt")
    folder = convert_file("deeplabv3-mobilevitv2-0.5-ade20k", tmp_path / "folder", to="hf")
    config = description(folder)
    assert (config["output_stride"], config["atrous_rates"], config["image_size"]) == (8, [12, 24, 36], 512)
    assert description(folder, "preprocessor_config.json")["size"] == {"height": 512, "width": 512}


def test_a_damaged_config_is_named(official_file: Path, tmp_path: Path) -> None:
    folder = convert_file(official_file, tmp_path / "folder", to="hf")
    for content, problem in (("{", "no valid JSON"), ("[]", "holds a list")):
        (folder / "config.json").write_text(content)
        with pytest.raises(WeightsError, match=problem):
            convert_file(folder, tmp_path / "again", to="hf")


# ---- refusals --------------------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(official_file: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "there.pt", tmp_path / "there"
    file.write_text("old")
    folder.mkdir()
    (folder / "notes.txt").write_text("old")
    for target, to in ((file, "timm"), (folder, "hf")):
        with pytest.raises(ConfigurationError, match="exists already and was left as it is"):
            convert_file(official_file, target, to=to)  # type: ignore[arg-type]
    assert file.read_text() == "old"
    convert_file(official_file, file, to="timm", overwrite=True)
    convert_file(official_file, folder, to="hf", overwrite=True)
    assert identify(read_state_dict(file)).format == "timm"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "notes.txt",
        "preprocessor_config.json",
    ]


@pytest.mark.parametrize(
    ("target", "to"), [("weights.onnx", "timm"), ("weights", "official"), ("folder", "timm"), ("file.pt", "hf")]
)
def test_targets_that_do_not_fit_the_format(official_file: Path, tmp_path: Path, target: str, to: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.pt").touch()
    with pytest.raises(ConfigurationError, match=target):
        convert_file(official_file, tmp_path / target, to=to, overwrite=True)  # type: ignore[arg-type]


def test_timm_gets_no_detector(tmp_path: Path) -> None:
    torch.save(convert_state_dict(make_state(DETECTOR), to="official"), tmp_path / "det.pt")
    with pytest.raises(WeightsError, match="timm has no segmentation or detection models"):
        convert_file(tmp_path / "det.pt", tmp_path / "out.pt", to="timm")
    assert not (tmp_path / "out.pt").exists()


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing.pt does not exist"):
        convert_file(tmp_path / "nothing.pt", tmp_path / "out.pt", to="timm")
    with pytest.raises(ConfigurationError, match="Did you mean"):
        convert_file("mobilevitv2-1.0-imagenet-256", tmp_path / "out.pt", to="timm")
    with pytest.raises(ConfigurationError, match="no format 'onnx'"):
        convert_file(tmp_path, tmp_path / "out.pt", to="onnx")  # type: ignore[arg-type]
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UnknownWeightsFormat):
        convert_file(tmp_path / "other.pt", tmp_path / "out.pt", to="timm")


def test_a_record_cannot_be_fetched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=str(get_record("mobilevitv2_050").url)):
        convert_file("mobilevitv2_050", tmp_path / "out.pt", to="timm")


# ---- whole or not at all ---------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Writes past `limit` bytes of a file fail with an OSError, as they do when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_whole(official_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "weights.safetensors"
    convert_file(official_file, target, to="timm")
    old = target.read_bytes()
    with full_disk(100_000), pytest.raises(WeightsError, match=r"weights.safetensors could not be written: .*unchanged"):
        convert_file(official_file, target, to="official", overwrite=True)
    assert target.read_bytes() == old
    assert list(target.parent.iterdir()) == [target]


def test_a_full_disk_leaves_the_old_folder_whole(official_file: Path, tmp_path: Path) -> None:
    folder = convert_file(official_file, tmp_path / "folder", to="hf")
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    with full_disk(100_000), pytest.raises(WeightsError, match="could not be written"):
        convert_file(official_file, folder, to="hf", overwrite=True, class_names=["a", "b", "c"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    with full_disk(100_000), pytest.raises(WeightsError, match="could not be written"):
        convert_file(official_file, tmp_path / "new", to="hf")
    assert not (tmp_path / "new").exists()


def test_a_parent_that_is_a_file_is_an_error_of_ours(official_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="could not be written"):
        convert_file(official_file, tmp_path / "file" / "weights.pt", to="timm")


def test_write_whole_replaces(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "file", b"one")
    write_whole(tmp_path / "new" / "file", b"two")
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"two"]
