from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import WIDTHS, pictures, randomise, small_config
from torch import nn
from torch.nn import functional as F

from mobilevitv2.backbone import MobileViTV2Model
from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

DOCUMENTED_DEFAULTS = {
    "num_channels": 3,
    "image_size": 256,
    "patch_size": 2,
    "expand_ratio": 2.0,
    "hidden_act": "swish",
    "conv_kernel_size": 3,
    "output_stride": 32,
    "classifier_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "aspp_out_channels": 512,
    "atrous_rates": [6, 12, 18],
    "aspp_dropout_prob": 0.1,
    "semantic_loss_ignore_index": 255,
    "n_attn_blocks": [2, 4, 3],
    "base_attn_unit_dims": [128, 192, 256],
    "width_multiplier": 1.0,
    "ffn_multiplier": 2,
    "attn_dropout": 0.0,
    "ffn_dropout": 0.0,
}


@pytest.mark.parametrize(("name", "value"), DOCUMENTED_DEFAULTS.items())
def test_documented_defaults(name: str, value: object) -> None:
    assert getattr(MobileViTV2Config(), name) == value
    assert type(getattr(MobileViTV2Config(), name)) is type(value)


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = MobileViTV2Config(), transformers.MobileViTV2Config()
    for name in DOCUMENTED_DEFAULTS:
        theirs_value = getattr(theirs, name)
        assert getattr(ours, name) == (list(theirs_value) if isinstance(theirs_value, tuple) else theirs_value)
    assert (ours.num_labels, ours.model_type) == (theirs.num_labels, theirs.model_type)


# ---- each option changes the model ------------------------------------------------------------------------------------------


def trunk(**options: Any) -> MobileViTV2Model:
    return MobileViTV2Model(small_config(**options))


def segmenter(**options: Any) -> MobileViTV2ForSemanticSegmentation:
    return MobileViTV2ForSemanticSegmentation(small_config(**options))


def pspnet(**options: Any) -> MobileViTV2ForSemanticSegmentation:
    return segmenter(segmentation_head="pspnet", **options)


def detector(**options: Any) -> MobileViTV2ForObjectDetection:
    return MobileViTV2ForObjectDetection(small_config(**options))


def detection_loss(**options: Any) -> float:
    torch.manual_seed(0)
    model = randomise(detector(**options))
    labels = [{"class_labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.4, 0.3, 0.4]])}]
    return round(model(pictures(height=96), labels=labels).loss.item(), 3)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def class_is_ignored(model: MobileViTV2ForSemanticSegmentation, label: int) -> bool:
    return bool(model(pictures(2), labels=torch.full((2, 64, 64), label)).loss == 0)


def same_weights_output(**options: Any) -> float:
    torch.manual_seed(0)
    model = randomise(trunk(**options))
    return round(model(pictures(height=128)).pooler_output.abs().sum().item(), 3)


def two_training_passes_differ(model: nn.Module, *, with_labels: bool = False) -> bool:
    """The question for a dropout; in evaluation mode the two passes must agree in any case."""
    x = pictures(2)
    keywords = {"labels": torch.zeros(2, 64, 64, dtype=torch.long)} if with_labels else {}
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(x, **keywords)[0], model(x, **keywords)[0])
        model.train()
        return not torch.equal(model(x, **keywords)[0], model(x, **keywords)[0])


def classifier(**options: Any) -> MobileViTV2ForImageClassification:
    return MobileViTV2ForImageClassification(small_config(**options))


NO_DROPOUT = {"classifier_dropout_prob": 0.0, "aspp_dropout_prob": 0.0, "psp_dropout_prob": 0.0}

# What is seen of the model, the value to see with the default, another value, what is then seen.
EFFECTS: dict[str, tuple[Callable[..., Any], Any, Any, Any]] = {
    "num_channels": (lambda **o: trunk(**o).conv_stem.convolution.in_channels, 3, 4, 4),
    "image_size": (lambda **o: trunk(**o).dummy_inputs["pixel_values"].shape[2:], (256, 256), (96, 160), (96, 160)),
    "patch_size": (lambda **o: trunk(**o).encoder.layer[3].patch_size, 2, 4, 4),
    "expand_ratio": (lambda **o: trunk(**o).encoder.layer[0].layer[0].conv_3x3.convolution.groups, 32, 4.0, 64),
    "hidden_act": (lambda **o: type(trunk(**o).conv_stem.activation), nn.SiLU, "relu", nn.ReLU),
    "conv_kernel_size": (lambda **o: trunk(**o).encoder.layer[2].conv_kxk.convolution.kernel_size, (3, 3), 5, (5, 5)),
    "output_stride": (lambda **o: trunk(**o)(pictures(height=128)).last_hidden_state.shape[2:], (4, 4), 8, (16, 16)),
    "classifier_dropout_prob": (lambda **o: two_training_passes_differ(classifier(**{**NO_DROPOUT, **o})), False, 0.5, True),
    "initializer_range": (
        lambda **o: round(MobileViTV2ForImageClassification(small_config(num_labels=1000, **o)).classifier.weight.std().item(), 3),
        0.02,
        0.1,
        0.1,
    ),
    "layer_norm_eps": (lambda **o: trunk(**o).encoder.layer[2].transformer.layer[0].layernorm_before.eps, 1e-5, 1e-3, 1e-3),
    "aspp_out_channels": (
        lambda **o: segmenter(**{"aspp_out_channels": 512, **o}).segmentation_head.classifier.convolution.in_channels,
        512,
        64,
        64,
    ),
    "atrous_rates": (
        lambda **o: [c.convolution.dilation[0] for c in segmenter(**o).segmentation_head.aspp.convs[1:4]],
        [6, 12, 18],
        (1, 2, 3),
        [1, 2, 3],
    ),
    "aspp_dropout_prob": (lambda **o: two_training_passes_differ(segmenter(**{**NO_DROPOUT, **o})), False, 0.5, True),
    "semantic_loss_ignore_index": (lambda **o: class_is_ignored(segmenter(**o), 3), False, 3, True),
    "semantic_loss_class_weights": (
        lambda **o: loss_without_class(segmenter(**o), 3),
        False,
        [1.0, 1.0, 1.0, 1e-9, *(1.0 for _ in range(6))],
        True,
    ),
    "n_attn_blocks": (
        lambda **o: [len(s.transformer.layer) for s in trunk(**{"n_attn_blocks": [2, 4, 3], **o}).encoder.layer[2:]],
        [2, 4, 3],
        (1, 2, 1),
        [1, 2, 1],
    ),
    "base_attn_unit_dims": (
        lambda **o: [s.layernorm.num_channels for s in trunk(**o).encoder.layer[2:]],
        [64, 96, 128],
        (64, 96, 128),
        [32, 48, 64],
    ),
    "width_multiplier": (
        lambda **o: trunk(**{"width_multiplier": 1.0, **o}).encoder.layer[4].conv_projection.convolution.out_channels,
        512,
        2.0,
        1024,
    ),
    "ffn_multiplier": (
        lambda **o: trunk(**o).encoder.layer[2].transformer.layer[0].ffn.conv1.convolution.out_channels,
        128,
        4,
        256,
    ),
    "attn_dropout": (lambda **o: two_training_passes_differ(trunk(**o)), False, 0.5, True),
    "ffn_dropout": (lambda **o: two_training_passes_differ(trunk(**o)), False, 0.5, True),
    "hidden_dropout_prob": (lambda **o: two_training_passes_differ(trunk(**o)), False, 0.5, True),
    "segmentation_head": (lambda **o: hasattr(segmenter(**o).segmentation_head, "psp"), False, "pspnet", True),
    "use_auxiliary_head": (lambda **o: any("auxiliary_head" in n for n in shapes(segmenter(**o))), False, True, True),
    "auxiliary_loss_weight": (lambda **o: auxiliary_share(**o), 0.4, 2.0, 2.0),
    "psp_out_channels": (
        lambda **o: pspnet(**{"psp_out_channels": 512, **o}).segmentation_head.classifier.convolution.in_channels,
        512,
        64,
        64,
    ),
    "psp_pool_sizes": (lambda **o: len(pspnet(**o).segmentation_head.psp.branches), 4, (1, 2), 2),
    "psp_dropout_prob": (lambda **o: two_training_passes_differ(pspnet(**{**NO_DROPOUT, **o})), False, 0.5, True),
    "detection_strides": (lambda **o: len(detector(**o, **(FOUR_MAPS if o else {})).detection_head.levels), 6, (8, 16, 32, -1), 4),
    "detection_extra_channels": (
        lambda **o: [layer.pointwise.convolution.out_channels for layer in detector(**o).extra_layers[:3]],
        [256, 128, 128],
        (96, 32, 16, 64),
        [96, 32, 16],
    ),
    "detection_level_channels": (
        lambda **o: [level.pointwise.convolution.in_channels for level in detector(**o).detection_head.levels],
        [512, 256, 256, 128, 128, 64],
        (32, 48, 64, 80, 96, 64),
        [32, 48, 64, 80, 96, 64],
    ),
    "detection_anchor_scales": (
        lambda **o: [round(boxes[0][0], 3) for boxes in detector(**o)._shapes],
        [0.1, 0.258, 0.417, 0.575, 0.733, 0.892],
        (0.2, 0.8),
        [0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
    ),
    "detection_anchor_ratios": (
        lambda **o: [level.anchors for level in detector(**o).detection_head.levels],
        [6, 6, 6, 6, 6, 4],
        ((), (2,), (2, 3), (2, 3, 4), (2,), ()),
        [2, 4, 6, 8, 4, 2],
    ),
    "detection_matching_iou": (lambda **o: detection_loss(**o) != detection_loss(), False, 0.2, True),
    "detection_negative_ratio": (lambda **o: detection_loss(**o) != detection_loss(), False, 1.0, True),
    "detection_coder_variances": (lambda **o: detection_loss(**o) != detection_loss(), False, (0.2, 0.1), True),
}

FOUR_MAPS = {
    "detection_extra_channels": [64],
    "detection_level_channels": [64, 64, 64, 64],
    "detection_anchor_ratios": [[2]] * 4,
}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"detection_strides": [16, 32, 128]}, r"detection_strides=\[16, 32, 128\] gives no detector"),
        ({"detection_strides": [16, -1]}, "at least to 32"),
        ({"detection_strides": [4, 8, 16, 32]}, "begin with 8, 16 or 32"),
        ({"detection_strides": []}, "gives no detector"),
        ({"detection_strides": 16}, "gives no detector"),
        ({"detection_strides": [16, 32, -1]}, r"detection_extra_channels=\[256, 128, 128, 64\] must hold 1 whole numbers"),
        ({"detection_extra_channels": [256, 128, 128, 0]}, "detection_extra_channels=0 must be at least 1"),
        ({"detection_extra_channels": [256, 128, 128, 32]}, "ends in 64, but the pooled map has 32"),
        ({"detection_level_channels": [512]}, "detection_level_channels=.512. must hold 6"),
        ({"detection_anchor_scales": [0.9, 0.1]}, "must grow"),
        ({"detection_anchor_scales": [0.0, 0.1]}, "must be a number above 0"),
        ({"detection_anchor_scales": [0.1]}, "must hold two numbers"),
        ({"detection_anchor_ratios": [[2, 3]]}, "for each of the 6 maps"),
        ({"detection_anchor_ratios": [[2], [2], [2], [2], [2], [-1]]}, "a ratio of detection_anchor_ratios=-1"),
        ({"detection_matching_iou": 1.5}, "detection_matching_iou=1.5 must be at most 1"),
        ({"detection_matching_iou": 0}, "detection_matching_iou=0"),
        ({"detection_negative_ratio": float("nan")}, "detection_negative_ratio=nan"),
        ({"detection_coder_variances": [0.1, 0.0]}, "detection_coder_variances=0.0"),
    ],
)
def test_detection_options_that_give_no_detector_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        MobileViTV2Config(**options)


def test_detection_options_survive_saving(tmp_path: Path) -> None:
    config = MobileViTV2Config(detection_strides=(8, 16, 32, -1), **FOUR_MAPS, detection_negative_ratio=2)
    config.save_pretrained(tmp_path)
    assert MobileViTV2Config.from_pretrained(tmp_path) == config


def loss_without_class(model: MobileViTV2ForSemanticSegmentation, label: int) -> bool:
    """Whether pixels of a class hardly count in the loss."""
    x, labels = pictures(2), torch.ones(2, 64, 64, dtype=torch.long)
    with torch.no_grad():
        alone = model.eval()(x, labels=labels).loss
        labels[:, :32] = label
        ignored = torch.ones(2, 64, 64, dtype=torch.long)
        ignored[:, :32] = 255
        return bool(torch.isclose(model(x, labels=labels).loss, model(x, labels=ignored).loss, rtol=1e-4)) and bool(alone > 0)


def auxiliary_share(**options: Any) -> float:
    """By how much the loss grows for each unit of the auxiliary head's own loss."""
    model = segmenter(use_auxiliary_head=True, **NO_DROPOUT, **options).train()
    x, labels = pictures(2), torch.ones(2, 64, 64, dtype=torch.long)
    with torch.no_grad():
        stage4 = model.mobilevitv2.features(x)[-2]
        both = model(x, labels=labels).loss
        own = model._cross_entropy(model.segmentation_head.auxiliary_head(stage4), labels)
        main = model._cross_entropy(model(x).logits, labels)
    return round(((both - main) / own).item(), 4)


def test_every_option_has_its_effect_tested() -> None:
    assert set(EFFECTS) == set(MobileViTV2Config.__annotations__)


@pytest.mark.parametrize("name", EFFECTS)
def test_option_changes_the_model(name: str) -> None:
    see, before, value, after = EFFECTS[name]
    assert see() == before
    assert see(**{name: value}) == after


def test_auxiliary_dropout_is_the_classifiers() -> None:
    options = {"use_auxiliary_head": True, "aspp_dropout_prob": 0.0}
    model = segmenter(classifier_dropout_prob=0.5, **options)
    assert two_training_passes_differ(model, with_labels=True)
    assert not two_training_passes_differ(segmenter(classifier_dropout_prob=0.0, **options), with_labels=True)


@pytest.mark.parametrize("options", [{"patch_size": 4}, {"hidden_act": "relu"}, {"layer_norm_eps": 0.1}, {"output_stride": 16}])
def test_option_changes_the_output_of_the_same_weights(options: dict[str, Any]) -> None:
    assert same_weights_output() != same_weights_output(**options)


def test_four_channels_and_one() -> None:
    for channels in (1, 4):
        assert trunk(num_channels=channels)(pictures(channels=channels)).pooler_output.shape == (1, 256)


@pytest.mark.parametrize(
    ("output_stride", "sizes", "dilations", "first_dilations"),
    [
        (32, [32, 16, 8, 4], [1, 1, 1], [1, 1, 1]),
        (16, [32, 16, 8, 8], [1, 1, 2], [1, 1, 1]),
        (8, [32, 16, 16, 16], [1, 2, 4], [1, 1, 2]),
    ],
)
def test_output_stride_turns_strides_into_dilations(
    output_stride: int, sizes: list[int], dilations: list[int], first_dilations: list[int]
) -> None:
    model = trunk(output_stride=output_stride)
    maps = model(pictures(height=128), output_hidden_states=True).hidden_states
    assert [x.shape[-1] for x in maps[1:]] == sizes
    stages = model.encoder.layer[2:]
    assert [s.conv_kxk.convolution.dilation[0] for s in stages] == dilations
    assert [s.downsampling_layer.conv_3x3.convolution.dilation[0] for s in stages] == first_dilations


def test_image_size_as_a_pair_is_height_then_width() -> None:
    model = trunk(image_size=[64, 96], num_channels=4)
    assert model.dummy_inputs["pixel_values"].shape == (1, 4, 64, 96)
    assert model(**model.dummy_inputs).last_hidden_state.shape == (1, 256, 2, 4)  # 96 / 32 = 3, rounded up to a whole patch


@pytest.mark.parametrize("width", WIDTHS)
def test_channels_of_the_released_widths(width: float) -> None:
    config = MobileViTV2Config(width_multiplier=width)
    assert config.stage_channels == [int(c * width) for c in (32, 64, 128, 256, 384, 512)]
    assert config.attn_dims == [int(c * width) for c in (128, 192, 256)]
    assert config.ffn_dims == [2 * dim for dim in config.attn_dims]


@pytest.mark.parametrize("width", [0.1, 0.33, 0.6, 1.1, 2.7])
def test_channels_of_widths_in_between_are_those_of_transformers(width: float) -> None:
    ours = MobileViTV2Model(MobileViTV2Config(width_multiplier=width))
    theirs = transformers.MobileViTV2Model(transformers.MobileViTV2Config(width_multiplier=width))
    assert shapes(ours) == shapes(theirs)


# ---- activations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by_name", "function"),
    [("relu", F.relu), ("gelu", F.gelu), ("swish", F.silu), ("silu", nn.SiLU()), ("torch.nn.functional.softplus", F.softplus)],
)
def test_activation_by_name_or_function(by_name: str, function: Callable[..., Any]) -> None:
    assert same_weights_output(hidden_act=by_name) == same_weights_output(hidden_act=function)


@pytest.mark.parametrize("act", ["relu", "gelu", F.relu, F.softplus, nn.SiLU(), nn.GELU()])
def test_activation_survives_saving(act: str | Callable[..., Any], tmp_path: Path) -> None:
    model = randomise(trunk(hidden_act=act))
    model.save_pretrained(tmp_path)
    again = MobileViTV2Model.from_pretrained(tmp_path)
    assert torch.equal(model(pictures()).pooler_output, again(pictures()).pooler_output)


@pytest.mark.parametrize("act", [lambda x: x * 2, nn.LeakyReLU(0.3)])
def test_activation_without_a_name_asks_for_it_again(act: Callable[..., Any], tmp_path: Path) -> None:
    model = randomise(trunk(hidden_act=act))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="hidden_act="):
        MobileViTV2Model.from_pretrained(tmp_path)
    again = MobileViTV2Model.from_pretrained(tmp_path, hidden_act=act)
    assert torch.equal(model(pictures()).pooler_output, again(pictures()).pooler_output)


@pytest.mark.parametrize("act", ["swoosh", "conv2d", "linear_cross_entropy", len, torch.sum, 3, None])
def test_what_is_no_activation_is_named(act: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"hidden_act=.* is no activation"):
        MobileViTV2Config(hidden_act=act)


# ---- writing and reading ----------------------------------------------------------------------------------------------------


def test_saved_configuration_is_equal(tmp_path: Path) -> None:
    config = MobileViTV2Config(
        image_size=(96, 160),
        output_stride=16,
        out_features=["stage2", "stage5"],
        segmentation_head="pspnet",
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
        problem_type="multi_label_classification",
    )
    config.save_pretrained(tmp_path)
    again = MobileViTV2Config.from_pretrained(tmp_path)
    assert again == config
    assert again.image_size == [96, 160]
    assert again.out_features == ["stage2", "stage5"]
    assert again.id2label == {0: "cat", 1: "dog"}


def test_equality_is_by_value() -> None:
    assert MobileViTV2Config() == MobileViTV2Config()
    assert MobileViTV2Config() != MobileViTV2Config(output_stride=16)
    assert MobileViTV2Config(atrous_rates=(1, 2, 3)) == MobileViTV2Config(atrous_rates=[1, 2, 3])


def test_default_configuration_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    MobileViTV2Config().save_pretrained(tmp_path)
    assert MobileViTV2Config.from_pretrained(tmp_path) == MobileViTV2Config()


def test_json_string_round_trip() -> None:
    config = small_config(hidden_act=F.relu)
    for text in (config.to_json_string(), config.to_json_string(use_diff=False)):
        values = json.loads(text)
        assert MobileViTV2Config(**values).to_dict() == config.to_dict()


def test_no_labels_survive_saving(tmp_path: Path) -> None:
    MobileViTV2Config(num_labels=0).save_pretrained(tmp_path)
    assert MobileViTV2Config.from_pretrained(tmp_path).num_labels == 0


def test_transformers_own_configuration_loads_here() -> None:
    theirs = transformers.MobileViTV2Config(width_multiplier=0.75, output_stride=16, num_labels=7, hidden_act="gelu")
    ours = MobileViTV2Config.from_dict(theirs.to_dict())
    assert (ours.width_multiplier, ours.output_stride, ours.num_labels, ours.hidden_act) == (0.75, 16, 7, "gelu")
    for name in DOCUMENTED_DEFAULTS:
        value = getattr(theirs, name)
        assert getattr(ours, name) == (list(value) if isinstance(value, tuple) else value)


def test_our_configuration_loads_in_transformers(tmp_path: Path) -> None:
    ours = small_config(output_stride=16)
    ours.save_pretrained(tmp_path)
    theirs = transformers.MobileViTV2Config.from_pretrained(tmp_path)
    for name in DOCUMENTED_DEFAULTS:
        value = getattr(theirs, name)
        assert getattr(ours, name) == (list(value) if isinstance(value, tuple) else value)
    assert shapes(transformers.MobileViTV2Model(theirs)) == shapes(MobileViTV2Model(ours))


def test_options_given_while_loading_override_and_are_checked(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)
    config = MobileViTV2Config.from_pretrained(tmp_path, output_stride=16, atrous_rates=(1, 2, 3), num_labels=4)
    assert (config.output_stride, config.atrous_rates, config.num_labels) == (16, [1, 2, 3], 4)
    with pytest.raises(ConfigurationError, match="output_stride=17"):
        MobileViTV2Config.from_pretrained(tmp_path, output_stride=17)


def test_unused_arguments_come_back(tmp_path: Path) -> None:
    small_config().save_pretrained(tmp_path)
    config, unused = MobileViTV2Config.from_pretrained(tmp_path, output_stride=16, nonsense=1, return_unused_kwargs=True)
    assert (config.output_stride, unused) == (16, {"nonsense": 1})


# ---- bad values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"width_multiplier": 0},
        {"width_multiplier": -1},
        {"width_multiplier": math.nan},
        {"width_multiplier": math.inf},
        {"width_multiplier": 1e9},
        {"width_multiplier": "1.0"},
        {"width_multiplier": True},
        {"ffn_multiplier": 0},
        {"ffn_multiplier": -2},
        {"ffn_multiplier": 1.5},
        {"ffn_multiplier": 10**9},
        {"num_channels": 0},
        {"num_channels": -3},
        {"num_channels": 10**9},
        {"image_size": 0},
        {"image_size": -1},
        {"image_size": (64, -64)},
        {"image_size": (1, 2, 3)},
        {"image_size": 64.5},
        {"image_size": "256"},
        {"patch_size": 0},
        {"patch_size": (2, 3)},
        {"patch_size": -2},
        {"expand_ratio": 0},
        {"expand_ratio": math.nan},
        {"expand_ratio": 1e9},
        {"conv_kernel_size": 4},
        {"conv_kernel_size": 0},
        {"output_stride": 4},
        {"output_stride": 64},
        {"output_stride": -32},
        {"output_stride": "16"},
        {"classifier_dropout_prob": 1.0},
        {"classifier_dropout_prob": -0.1},
        {"attn_dropout": 2},
        {"ffn_dropout": math.nan},
        {"hidden_dropout_prob": "0.1"},
        {"aspp_dropout_prob": -1},
        {"psp_dropout_prob": 1},
        {"initializer_range": 0},
        {"initializer_range": -0.02},
        {"layer_norm_eps": 0},
        {"layer_norm_eps": -1e-5},
        {"aspp_out_channels": 0},
        {"aspp_out_channels": 10**9},
        {"psp_out_channels": -1},
        {"atrous_rates": [6, 12]},
        {"atrous_rates": [6, 12, 0]},
        {"atrous_rates": []},
        {"n_attn_blocks": [2, 4]},
        {"n_attn_blocks": [2, 4, -3]},
        {"n_attn_blocks": 3},
        {"n_attn_blocks": "243"},
        {"base_attn_unit_dims": [128, 192, 0]},
        {"base_attn_unit_dims": [128, 192, 10**9]},
        {"psp_pool_sizes": []},
        {"psp_pool_sizes": [0]},
        {"segmentation_head": "unet"},
        {"semantic_loss_ignore_index": "255"},
        {"semantic_loss_ignore_index": None},
        {"semantic_loss_class_weights": [1.0, 0.0]},
        {"auxiliary_loss_weight": -1},
        {"auxiliary_loss_weight": math.nan},
        {"num_labels": -1},
        {"num_labels": 2.5},
    ],
    ids=str,
)
def test_bad_value_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=name):
        MobileViTV2Config(**options)


def test_feed_forward_width_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ffn_multiplier=1"):
        MobileViTV2Config(ffn_multiplier=1, base_attn_unit_dims=[8, 8, 8], width_multiplier=0.5)


def test_unknown_problem_type_is_named() -> None:
    with pytest.raises(Exception, match="problem_type"):  # newer transformers leave the check to us, older ones have their own
        MobileViTV2Config(problem_type="ranking")


def test_error_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="released widths"):
        MobileViTV2Config(width_multiplier=1e9)


def test_configuration_of_another_model(tmp_path: Path) -> None:
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="'vit' model"):
        MobileViTV2Config.from_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="'vit' model"):
        MobileViTV2Model.from_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="ViTConfig"):
        MobileViTV2Model(transformers.ViTConfig())
    with pytest.raises(ConfigurationError, match="from_dict"):
        MobileViTV2Model(transformers.MobileViTV2Config())


def test_stages_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="stage9"):
        MobileViTV2Config(out_features=["stage9"])


def test_a_slip_in_an_options_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(ConfigurationError, match=r"'num_lables'.*did you mean 'num_labels'"):
        MobileViTV2Config(num_lables=4)
    with pytest.raises(ConfigurationError, match="did you mean 'width_multiplier'"):
        MobileViTV2Config(width_multiplyer=0.5)


def test_options_of_other_libraries_are_kept() -> None:
    assert MobileViTV2Config(somebodys_own_note="x").somebodys_own_note == "x"


def test_absurd_numbers_are_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigurationError, match="n_attn_blocks=1000000000 must be at most"):
        MobileViTV2Config(n_attn_blocks=[10**9, 1, 1])


def test_a_configuration_that_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MobileViTV2Config(width_multiplier=0.5).save_pretrained(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        MobileViTV2Config(width_multiplier=2.0).save_pretrained(tmp_path)
    assert MobileViTV2Config.from_pretrained(tmp_path).width_multiplier == 0.5
