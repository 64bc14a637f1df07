"""The records: all of them, with the published facts, found under every name they go by."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.weights import Architecture, expected_shapes, get_record, list_records, parameter_count, records
from mobilevitv2.weights.class_names import class_names

CARD = """---
license: mit
datasets: [objects112]
gmacs: 1.03
model-index:
- name: small
  results:
  - metrics:
    - {type: accuracy, name: top-1, value: 88.25}
---
# A card
"""


def test_there_are_49_official_checkpoints() -> None:
    official = list_records(bundled=False)
    assert Counter(record.task for record in official) == {"classify": 20, "segment": 22, "detect": 7}
    assert len({record.name for record in official}) == len({record.url for record in official}) == 49


@pytest.mark.parametrize("record", list_records(bundled=False), ids=lambda record: record.name)
def test_parameters_follow_from_the_channel_rule(record: records.WeightRecord) -> None:
    shapes = expected_shapes(Architecture(task=record.task, width=record.width, head=record.head, num_labels=record.num_labels))
    assert parameter_count(shapes) == record.parameters


@pytest.mark.parametrize(
    ("width", "head", "num_labels", "parameters"),
    [(0.5, "pspnet", 150, 3_857_701), (1.0, "deeplabv3", 150, 13_846_805), (2.0, "pspnet", 150, 29_346_549)],
)
def test_auxiliary_heads_add_what_was_published(width: float, head: records.Head, num_labels: int, parameters: int) -> None:
    arch = Architecture(task="segment", width=width, head=head, num_labels=num_labels, has_auxiliary_head=True)
    assert parameter_count(expected_shapes(arch)) == parameters


def test_class_names_are_those_of_torchvision() -> None:
    from torchvision.models.detection import FCOS_ResNet50_FPN_Weights
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    categories = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert class_names("detect", "coco") == tuple(name for name in categories if name not in ("__background__", "N/A"))
    voc = class_names("segment", "voc")
    assert voc == ("background", *DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:])


@pytest.mark.parametrize("record", list_records(bundled=False), ids=lambda record: record.name)
def test_there_is_a_name_for_each_class(record: records.WeightRecord) -> None:
    names = class_names(record.task, record.dataset)
    assert (names is None) == (record.task == "classify")
    assert names is None or len(set(names)) == len(names) == record.num_labels


def test_input_contracts() -> None:
    assert all((record.channel_order, record.interpolation) == ("RGB", "bicubic") for record in list_records(bundled=False))
    small, large = get_record("mobilevitv2-0.5-imagenet1k-256"), get_record("mobilevitv2-0.5-imagenet1k-384")
    assert (small.resize, small.crop, large.resize, large.crop) == (288, 256, 384, 384)
    ade, voc = get_record("deeplabv3-mobilevitv2-2.0-ade20k"), get_record("deeplabv3-mobilevitv2-1.0-voc")
    assert (ade.num_labels, ade.output_stride, ade.atrous_rates) == (150, 8, (12, 24, 36))
    assert (voc.num_labels, voc.output_stride, voc.atrous_rates) == (21, 16, (6, 12, 18))
    coco = get_record("ssdlite-mobilevitv2-1.0-coco")
    assert (coco.num_labels, coco.input_size, coco.resize, coco.crop) == (80, 320, (320, 320), None)


def test_published_scores_and_urls() -> None:
    record = get_record("mobilevitv2-1.5-imagenet21k-to-1k-384")
    assert (record.metric_name, record.metric) == ("top-1", 82.60)
    assert record.url is not None
    assert record.url.endswith("/cvnets-v2/classification/mobilevitv2/imagenet21k_to_1k/384x384/mobilevitv2-1.5.pt")
    segmenter, detector = get_record("pspnet-mobilevitv2-1.25-voc"), get_record("ssdlite-mobilevitv2-0.75-coco")
    assert (segmenter.metric, detector.metric) == (79.40, 24.57)
    assert str(segmenter.url).endswith("/segmentation/pascalvoc/mobilevitv2/pspnet-mobilevitv2-1.25.pt")
    assert str(detector.url).endswith("/detection/mobilevitv2/coco-ssd-mobilevitv2-0.75.pt")


def test_timm_names_are_timms_own() -> None:
    mobilevit = pytest.importorskip("timm.models.mobilevit")
    theirs = {
        f"{model}.{tag}": cfg.input_size[-1]
        for model, default in mobilevit.default_cfgs.items()
        if model.startswith("mobilevitv2_")
        for tag, cfg in default.cfgs.items()
    }
    ours = {record.timm_name: record.input_size for record in list_records() if record.timm_name}
    assert ours == theirs
    assert len(ours) == 13


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("mobilevitv2_050.cvnets_in1k", "mobilevitv2-0.5-imagenet1k-256"),
        ("timm/mobilevitv2_175.cvnets_in22k_ft_in1k_384", "mobilevitv2-1.75-imagenet21k-to-1k-384"),
        ("mobilevitv2_200", "mobilevitv2-2.0-imagenet1k-256"),
        ("apple/mobilevitv2-1.0-imagenet1k-256", "mobilevitv2-1.0-imagenet1k-256"),
        ("apple/mobilevitv2-1.0-voc-deeplabv3", "deeplabv3-mobilevitv2-1.0-voc"),
        ("MobileViTV2-1.0-ImageNet1k-384", "mobilevitv2-1.0-imagenet1k-384"),
    ],
)
def test_other_names_of_the_same_weights(alias: str, name: str) -> None:
    assert get_record(alias).name == name


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"named 'ssdlite-mobilevit2-1.0-coco'.*ssdlite-mobilevitv2-1.0-coco"):
        get_record("ssdlite-mobilevit2-1.0-coco")
    with pytest.raises(ConfigurationError, match="A name looks like"):
        get_record("???")


def test_filters() -> None:
    assert {record.width for record in list_records(task="segment", head="pspnet")} == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75}
    assert all(record.width == 0.75 for record in list_records(width=0.75))
    assert len(list_records(width=0.75, bundled=False)) == 6
    assert list_records(width=0.6) == []


def test_records_are_json_and_cannot_be_changed() -> None:
    record = get_record("deeplabv3-mobilevitv2-1.0-voc")
    assert json.loads(json.dumps(record.to_dict()))["atrous_rates"] == [6, 12, 18]
    with pytest.raises(FrozenInstanceError):
        record.width = 2.0  # type: ignore[misc]


def test_listing_imports_no_torch() -> None:
    code = "import sys; from mobilevitv2.weights import list_records; list_records(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with one checkpoint in it."""
    folder = tmp_path / "bundled" / "mobilevitv2-0.75-objects112"
    folder.mkdir(parents=True)
    labels = {str(i): f"thing {i}" for i in range(112)}
    config = {"architectures": ["MobileViTV2ForImageClassification"], "width_multiplier": 0.75, "id2label": labels}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"size": {"shortest_edge": 288}, "do_center_crop": True, "crop_size": {"height": 256, "width": 256}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text(CARD)
    save_file({"a.weight": torch.zeros(3, 5), "a.running_mean": torch.zeros(7)}, folder / "model.safetensors")
    monkeypatch.setattr(records, "bundled_folder", lambda: tmp_path / "bundled")
    return folder


def test_a_folder_in_the_package_is_a_record(bundled: Path) -> None:
    record = list_records()[0]
    assert record == get_record("mobilevitv2-0.75-objects112")
    assert (record.bundled, record.path, record.url, record.parameters) == (True, bundled, None, 15)
    assert (record.task, record.width, record.num_labels, record.dataset) == ("classify", 0.75, 112, "objects112")
    assert (record.metric_name, record.metric, record.gmacs, record.licence) == ("top-1", 88.25, 1.03, "mit")
    assert (record.resize, record.crop, record.input_size, record.channel_order) == (288, 256, 256, "RGB")
    assert list_records(bundled=True) == [record]
    assert json.loads(json.dumps(record.to_dict()))["bundled"] is True


@pytest.mark.parametrize("file", ["preprocessor_config.json", "README.md", "model.safetensors"])
def test_an_incomplete_folder_in_the_package_is_named(bundled: Path, file: str) -> None:
    (bundled / file).unlink()
    with pytest.raises(ConfigurationError, match=r"mobilevitv2-0.75-objects112 is no complete checkpoint folder"):
        list_records()


def test_every_checkpoint_in_the_package_is_complete() -> None:
    for record in list_records(bundled=True):
        assert record.path is not None
        assert record.metric is not None
        assert record.licence != "unknown"
