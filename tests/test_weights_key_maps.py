"""The maps between official, timm and our names: complete, lossless, and in agreement with the models themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from weights_helpers import FIXTURES, fixture_file, make_state, same

from mobilevitv2.errors import ConfigurationError, WeightsError
from mobilevitv2.weights import (
    Architecture,
    Format,
    convert_state_dict,
    expected_shapes,
    identify,
    names_from_ours,
    names_to_ours,
    read_state_dict,
    to_ours,
)

WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
DENSE = [
    Architecture(task="segment", head="deeplabv3", width=0.5, num_labels=21, has_auxiliary_head=True),
    Architecture(task="segment", head="pspnet", width=0.5, num_labels=21, has_auxiliary_head=True),
    Architecture(task="detect", head="ssdlite", width=0.5, num_labels=80),
]


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", FIXTURES)
def test_official_files_have_every_expected_tensor_and_no_other(shared_fixtures: Path, tmp_path: Path, name: str) -> None:
    state = read_state_dict(fixture_file(shared_fixtures, name, tmp_path))
    info = identify(state)
    assert shapes_of(to_ours(state, info)) == expected_shapes(info)


@pytest.mark.parametrize("name", FIXTURES)
def test_official_files_come_back_from_our_names(shared_fixtures: Path, tmp_path: Path, name: str) -> None:
    state = read_state_dict(fixture_file(shared_fixtures, name, tmp_path))
    assert same(convert_state_dict(to_ours(state, identify(state)), to="official"), state)


@pytest.mark.parametrize("width", WIDTHS)
def test_timm_models_have_the_same_tensors(width: float) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(f"mobilevitv2_{round(100 * width):03d}").state_dict()
    expected = expected_shapes(Architecture(task="classify", width=width))
    names = names_to_ours(theirs, source="timm")
    assert {names[name]: tuple(tensor.shape) for name, tensor in theirs.items()} == expected
    assert list(names_from_ours(names.values(), target="timm").values()) == list(theirs)


@pytest.mark.parametrize("width", [*WIDTHS, 0.6, 1.1])
@pytest.mark.parametrize(
    ("class_name", "architecture"),
    [
        ("MobileViTV2ForImageClassification", {"task": "classify"}),
        ("MobileViTV2ForSemanticSegmentation", {"task": "segment", "head": "deeplabv3"}),
        ("MobileViTV2Model", {"task": "backbone"}),
    ],
)
def test_transformers_models_have_the_same_tensors(class_name: str, architecture: dict[str, str], width: float) -> None:
    from transformers.models.mobilevitv2 import configuration_mobilevitv2, modeling_mobilevitv2

    config = configuration_mobilevitv2.MobileViTV2Config(width_multiplier=width, num_labels=7)
    with torch.device("meta"):
        theirs = getattr(modeling_mobilevitv2, class_name)(config).state_dict()
    assert shapes_of(theirs) == expected_shapes(Architecture(width=width, num_labels=7, **architecture))  # type: ignore[arg-type]


def test_our_own_models_have_the_same_tensors() -> None:
    from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation

    options = {"width_multiplier": 0.7, "num_labels": 5, "num_channels": 1, "expand_ratio": 3.0, "conv_kernel_size": 5}
    shared = {"width": 0.7, "num_labels": 5, "num_channels": 1, "expand_ratio": 3.0, "kernel_size": 5}
    with torch.device("meta"):
        classifier = MobileViTV2ForImageClassification(MobileViTV2Config(**options))
        segmenter = MobileViTV2ForSemanticSegmentation(
            MobileViTV2Config(segmentation_head="pspnet", use_auxiliary_head=True, psp_out_channels=64, **options)
        )
    pspnet = {"task": "segment", "head": "pspnet", "has_auxiliary_head": True, "head_channels": 64}
    assert shapes_of(classifier.state_dict()) == expected_shapes(Architecture(task="classify", **shared))  # type: ignore[arg-type]
    assert shapes_of(segmenter.state_dict()) == expected_shapes(Architecture(**pspnet, **shared))  # type: ignore[arg-type]


@pytest.mark.parametrize("to", ["official", "timm", "hf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_classifiers_go_every_way_and_back(to: Format, dtype: torch.dtype) -> None:
    ours = make_state(Architecture(task="classify", width=0.5, num_labels=3, attention_blocks=(1, 5, 2)), dtype=dtype)
    there = convert_state_dict(ours, to=to)
    info = identify(there)
    assert info.format == to
    assert same(to_ours(there, info), ours)


@pytest.mark.parametrize("to", ["official", "timm", "hf"])
def test_bare_backbones_go_every_way_and_back(to: Format) -> None:
    ours = make_state(Architecture(task="backbone", width=0.5))
    there = convert_state_dict(ours, to=to)
    assert same(to_ours(there, identify(there)), ours)


@pytest.mark.parametrize("architecture", DENSE, ids=lambda arch: arch.head)
def test_dense_models_go_to_official_and_back(architecture: Architecture) -> None:
    ours = make_state(architecture)
    official = convert_state_dict(ours, to="official")
    assert all(name.startswith(("encoder.", "seg_head.", "extra_layers.", "ssd_heads.")) for name in official)
    assert same(to_ours(official, identify(official)), ours)


@pytest.mark.parametrize("architecture", DENSE, ids=lambda arch: arch.head)
def test_timm_has_no_dense_models(architecture: Architecture) -> None:
    with pytest.raises(WeightsError, match=r"timm has no segmentation or detection.*convert to 'hf' or 'official'"):
        convert_state_dict(make_state(architecture), to="timm")


def test_names_of_another_package_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"conv_1\.block\.conv\.weight.*names_to_ours"):
        names_from_ours(["conv_1.block.conv.weight"], target="hf")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'keras'"):
        convert_state_dict({}, to="keras")  # type: ignore[arg-type]


def test_names_that_only_look_right_are_no_names() -> None:
    assert (
        names_to_ours(["conv_1.block.conv.weight.x", "xconv_1.block.conv.weight", "encoder.classifier.1.weight"], source="official")
        == {}
    )
