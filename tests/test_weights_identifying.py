"""What a state dict is, from names and shapes alone; and what is said of those that are something else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_helpers import make_state

from mobilevitv2.errors import UnknownWeightsFormat, WeightsError, WeightsMismatch
from mobilevitv2.weights import (
    Architecture,
    config_values,
    convert_state_dict,
    expected_shapes,
    get_record,
    identify,
    list_records,
    to_ours,
    wrong_task_message,
)

CLASSIFIER = Architecture(task="classify", width=0.5)
SEGMENTER = Architecture(task="segment", head="deeplabv3", width=0.5, num_labels=21)
DETECTOR = Architecture(task="detect", head="ssdlite", width=0.5, num_labels=80)


def hollow(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Tensors with shapes and no memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(architecture).items()}


@pytest.mark.parametrize("record", list_records(bundled=False), ids=lambda record: record.name)
def test_every_released_checkpoint_is_recognised(record) -> None:
    arch = Architecture(task=record.task, width=record.width, head=record.head, num_labels=record.num_labels)
    info = identify(convert_state_dict(hollow(arch), to="official"))
    assert (info.format, info.task, info.head, info.width) == ("official", record.task, record.head, record.width)
    assert info.num_labels == record.num_labels
    if record.task == "segment":
        values = config_values(info)
        assert values["output_stride"] == record.output_stride
        assert values.get("atrous_rates", list(record.atrous_rates or ())) == list(record.atrous_rates or ())


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(2, 60).map(lambda twentieths: twentieths / 20),
    num_channels=st.integers(1, 12),
    num_labels=st.integers(1, 30),
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    kernel_size=st.sampled_from([1, 3, 5]),
    ffn_multiplier=st.integers(1, 4),
    expand_ratio=st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0]),
    head=st.sampled_from([None, "deeplabv3", "pspnet", "ssdlite"]),
    head_channels=st.sampled_from([64, 256, 512]),
)
def test_every_shape_is_explained(
    width, num_channels, num_labels, blocks, kernel_size, ffn_multiplier, expand_ratio, head, head_channels
):
    task = {None: "classify", "ssdlite": "detect"}.get(head, "segment")
    arch = Architecture(
        task=task,
        head=head,
        width=width,
        num_channels=num_channels,
        num_labels=num_labels,
        attention_blocks=blocks,
        kernel_size=kernel_size,
        ffn_multiplier=ffn_multiplier,
        expand_ratio=expand_ratio,
        head_channels=head_channels if task == "segment" else 512,
    )
    info = identify(hollow(arch))
    assert expected_shapes(info) == expected_shapes(arch)
    assert (info.num_channels, info.num_labels, info.attention_blocks) == (num_channels, num_labels, blocks)


@pytest.mark.parametrize("width", [0.1, 0.6, 0.65, 0.9, 1.3, 2.6, 4.0])
def test_widths_between_the_released_ones(width: float) -> None:
    assert identify(hollow(Architecture(task="backbone", width=width))).width == pytest.approx(width)


def test_other_attention_widths() -> None:
    arch = Architecture(task="backbone", width=0.75, attention_dims=(64, 96, 144))
    assert identify(hollow(arch)).attention_dims == (64, 96, 144)


def test_a_trunk_in_a_task_models_names_is_a_bare_backbone() -> None:
    state = {f"mobilevitv2.{name}": tensor for name, tensor in hollow(Architecture(task="backbone", width=1.0)).items()}
    info = identify(state)
    assert (info.task, info.num_labels) == ("backbone", 0)
    assert next(iter(to_ours(state, info))) == "conv_stem.convolution.weight"
    encoder = {
        f"encoder.{name}": tensor
        for name, tensor in convert_state_dict(hollow(Architecture(task="backbone", width=1.0)), to="official").items()
    }
    assert identify(encoder).task == "backbone"


# ---- configuration ---------------------------------------------------------------------------------------------------------------


def test_config_of_a_classifier() -> None:
    values = config_values(
        identify(convert_state_dict(hollow(Architecture(task="classify", width=1.5, num_channels=4)), to="timm"))
    )
    assert values["width_multiplier"] == 1.5
    assert values["num_channels"] == 4
    assert values["num_labels"] == 1000
    assert values["classifier_dropout_prob"] == 0.0


def test_config_of_a_segmenter_and_what_the_record_adds() -> None:
    info = identify(
        hollow(Architecture(task="segment", head="pspnet", width=0.5, num_labels=30, has_auxiliary_head=True, head_channels=64))
    )
    values = config_values(info)
    assert (values["segmentation_head"], values["use_auxiliary_head"], values["psp_out_channels"]) == ("pspnet", True, 64)
    assert (values["output_stride"], values["image_size"]) == (16, 512)
    assert config_values(info, record=get_record("pspnet-mobilevitv2-0.5-ade20k"))["output_stride"] == 8


def test_config_values_build_our_model() -> None:
    from mobilevitv2 import MobileViTV2Config, MobileViTV2ForSemanticSegmentation

    arch = Architecture(
        task="segment", head="pspnet", width=0.65, num_labels=9, attention_dims=(64, 96, 128), has_auxiliary_head=True
    )
    with torch.device("meta"):
        model = MobileViTV2ForSemanticSegmentation(MobileViTV2Config(**config_values(identify(hollow(arch)))))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected_shapes(arch)


# ---- damage ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classifier.1.bias", "conv_1.block.conv.weight", "layer_4.1.local_rep.1.block.conv.weight"])
def test_one_odd_tensor_is_named_with_both_shapes(name: str) -> None:
    state = convert_state_dict(hollow(CLASSIFIER), to="official")
    right = tuple(state[name].shape)
    state[name] = torch.empty((right[0] + 1, *right[1:]), device="meta")
    with pytest.raises(WeightsMismatch) as caught:
        identify(state)
    message = str(caught.value)
    assert "a classifier (1000 classes, width 0.5) with official (cvnets) names" in message
    assert "1 tensor of another shape:" in message
    assert f"{name}: {(right[0] + 1, *right[1:])} in the file, {right} in the model" in message


def test_any_single_tensor_may_be_odd() -> None:
    good = hollow(DETECTOR)
    for name, tensor in list(good.items())[::13]:  # 13 has no factor in common with the lengths of the layers
        if tensor.ndim:
            with pytest.raises(WeightsMismatch, match=r"1 tensor of another shape") as caught:
                identify({**good, name: torch.empty((*tensor.shape[:-1], tensor.shape[-1] + 1), device="meta")})
            assert name in str(caught.value)


def test_missing_and_extra_tensors_are_named_as_in_the_file() -> None:
    state = convert_state_dict(hollow(SEGMENTER), to="official")
    del state["encoder.conv_1.block.norm.bias"]
    state["seg_head.extra.weight"] = torch.empty(1, device="meta")
    with pytest.raises(WeightsMismatch) as caught:
        identify(state)
    message = str(caught.value)
    assert "1 tensor missing from the file:\n  encoder.conv_1.block.norm.bias" in message
    assert "1 tensor without a place in the model:\n  seg_head.extra.weight" in message


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["stem.conv.weight", "stages.2.1.transformer.0.attn.qkv.weight"], "MobileViT (version 1)"),
        (["conv_1.block.conv.weight", "layer_3.1.global_rep.0.pre_norm_mha.0.weight"], "MobileViT (version 1)"),
        (["mobilevit.conv_stem.convolution.weight"], "MobileViT (version 1)"),
        (["conv1.weight", "layer1.0.conv1.weight"], "a ResNet"),
        (["features.0.0.weight", "classifier.1.weight"], "a torchvision model"),
        (["cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"], "a vision transformer"),
        (["stem.0.weight", "stages.0.blocks.0.gamma"], "another timm model"),
        (["base_model.model.layer.lora_A.weight"], "LoRA"),
        (["a", "b"], "no model family that this package knows"),
    ],
)
def test_strangers_are_told_by_their_looks(names: list[str], kind: str) -> None:
    with pytest.raises(UnknownWeightsFormat) as caught:
        identify({name: torch.zeros(2, 3) for name in names})
    assert kind in str(caught.value)
    assert f"{names[0]} [2, 3]" in str(caught.value)


def test_real_strangers() -> None:
    timm = pytest.importorskip("timm")
    for name, kind in (("mobilevit_xxs", "version 1"), ("resnet18", "ResNet"), ("vit_tiny_patch16_224", "vision transformer")):
        with torch.device("meta"):
            state = timm.create_model(name).state_dict()
        with pytest.raises(UnknownWeightsFormat, match=kind):
            identify(state)


def test_an_empty_state_dict_is_no_model() -> None:
    with pytest.raises(UnknownWeightsFormat):
        identify({})


# ---- the wrong task --------------------------------------------------------------------------------------------------------------


def test_wrong_task_names_the_right_class() -> None:
    message = wrong_task_message(identify(hollow(DETECTOR)), "classify")
    assert message.startswith(
        "this is a detector (SSDLite, 80 classes, width 0.5); use MobileViTV2ForObjectDetection, or MobileViTV2Model"
    )
    backbone = wrong_task_message(identify(hollow(Architecture(task="backbone", width=0.5))), "segment")
    assert "a bare backbone (width 0.5) without a head, so it cannot segment" in backbone


def test_to_ours_refuses_names_of_another_format() -> None:
    info = identify(hollow(CLASSIFIER))
    with pytest.raises(WeightsError, match="identify"):
        to_ours(convert_state_dict(hollow(CLASSIFIER), to="timm"), info)


def test_values_stay_where_they_are() -> None:
    state = make_state(CLASSIFIER)
    there = convert_state_dict(state, to="timm")
    assert there["head.fc.bias"] is state["classifier.bias"]
