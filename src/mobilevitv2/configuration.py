"""MobileViTV2Config: every option of the model family, and every width that follows from them."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from mobilevitv2.blocks import Activation, make_divisible
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.option_checks import (
    MAX_CHANNELS,
    POOLED,
    TRUNK_STRIDES,
    check_detection,
    check_integer,
    check_integers,
    check_number,
    check_probability,
)
from mobilevitv2.weights.writing import write_whole

if TYPE_CHECKING:
    # transformers turns the class body into keyword arguments of __init__; type checkers learn that from this decorator.
    from typing import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[type], type]:  # noqa: D103
        return lambda cls: cls


# Looked through, in this order, for the name of a function: what JSON can hold and transformers' own configuration understands.
NAMED_ACTIVATIONS = ("swish", "relu", "gelu", "gelu_new", "hardswish", "leaky_relu", "mish", "relu6", "sigmoid", "tanh", "linear")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
DETECTION_OPTIONS = (
    "detection_strides",
    "detection_extra_channels",
    "detection_level_channels",
    "detection_anchor_scales",
    "detection_anchor_ratios",
    "detection_matching_iou",
    "detection_negative_ratio",
    "detection_coder_variances",
)
LISTS = (
    "image_size",
    "patch_size",
    "atrous_rates",
    "n_attn_blocks",
    "base_attn_unit_dims",
    "psp_pool_sizes",
    "semantic_loss_class_weights",
    *DETECTION_OPTIONS,  # the two numbers among them stay numbers
)
STAGE_NAMES = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5")


@dataclass_transform(kw_only_default=True)
class MobileViTV2Config(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]  # transformers ships no types for its bases
    """Options of MobileViTV2; the defaults give the classifier of width 1.0 as transformers' configuration has it.

    Args:
        num_channels: channels of the input pictures.
        image_size: side of the pictures the model is meant for, in pixels, or (height, width). The model takes any size; this one
            is what `dummy_inputs`, operation counts, detection anchors and exports use unless told otherwise.
        patch_size: side of the square patches whose pixels attend apart from each other.
        expand_ratio: hidden channels over input channels in the inverted residuals.
        hidden_act: activation of convolutions and feed-forward parts: a name that transformers or torch.nn.functional knows,
            or a function on tensors.
        conv_kernel_size: kernel of the depthwise convolution in front of the attention; odd.
        output_stride: input size over size of the last feature map: 32, 16 or 8. The later strides become dilations, as in the
            official code (transformers leaves out the dilation of the depthwise convolution).
        classifier_dropout_prob: dropout in front of the image classifier, and in the auxiliary segmentation head. The official
            classifiers were trained without.
        initializer_range: standard deviation of the truncated normal that linear layers start from.
        layer_norm_eps: epsilon of the attention's normalisation.
        aspp_out_channels: width of the DeepLabV3 head.
        atrous_rates: three dilations of the DeepLabV3 head.
        aspp_dropout_prob: channel dropout in front of the segmentation classifier (DeepLabV3).
        semantic_loss_ignore_index: label of pixels that the segmentation loss leaves out.
        semantic_loss_class_weights: weight of each class in the segmentation loss, which is then divided by the sum of the labelled
            pixels' weights; None for all alike, as in the official training.
        n_attn_blocks: transformer layers in stages 3, 4 and 5.
        base_attn_unit_dims: attention widths of stages 3, 4 and 5 at width multiplier 1.
        width_multiplier: scales all channels; released: 0.5, 0.75, 1, 1.25, 1.5, 1.75 and 2.
        ffn_multiplier: hidden width over attention width in the feed-forward parts.
        attn_dropout: dropout on the context scores.
        ffn_dropout: dropout between the two layers of the feed-forward parts.
        hidden_dropout_prob: dropout behind attention and feed-forward parts, in front of the sum with the skip connection.
        segmentation_head: "deeplabv3" or "pspnet".
        use_auxiliary_head: a second segmentation head on stage 4, in training only.
        auxiliary_loss_weight: weight of that head's loss.
        psp_out_channels: width of the PSPNet head.
        psp_pool_sizes: sides of the pooled maps of the PSPNet head.
        psp_dropout_prob: channel dropout in front of the segmentation classifier (PSPNet).
        detection_strides: input size over size of each map that the detector looks at: 8, 16 and 32 are stages 3, 4 and 5 (any run
            of them that ends in 32), each one after that doubles, and -1, if it stands at the end, is the picture as one pixel.
        detection_extra_channels: channels of the maps behind stage 5, in the order of `detection_strides`.
        detection_level_channels: channels that each map is projected to in front of its answers; there is no projection where the
            map has them already, and none of the pooled map.
        detection_anchor_scales: side of the smaller square anchor on the first map and on what would come after the last, in units
            of the picture; it grows in equal steps between them.
        detection_anchor_ratios: for each map the ratios of its oblong anchors: each gives a lying and a standing one, beside two
            squares.
        detection_matching_iou: overlap with a true box from which an anchor has to answer for it.
        detection_negative_ratio: background anchors in the loss for each anchor that answers, the hardest of the picture.
        detection_coder_variances: units of a box's raw position and size.
        kwargs: what transformers' `PreTrainedConfig` takes: num_labels, id2label, label2id, problem_type, out_features, ...

    Raises:
        ConfigurationError: a value that gives no valid model, named with the remedy.
    """

    model_type = "mobilevitv2"

    num_channels: int = 3
    image_size: int | Sequence[int] = 256
    patch_size: int | Sequence[int] = 2
    expand_ratio: float = 2.0
    hidden_act: str | Activation = "swish"
    conv_kernel_size: int = 3
    output_stride: int = 32
    classifier_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    aspp_out_channels: int = 512
    atrous_rates: Sequence[int] = (6, 12, 18)
    aspp_dropout_prob: float = 0.1
    semantic_loss_ignore_index: int = 255
    semantic_loss_class_weights: Sequence[float] | None = None
    n_attn_blocks: Sequence[int] = (2, 4, 3)
    base_attn_unit_dims: Sequence[int] = (128, 192, 256)
    width_multiplier: float = 1.0
    ffn_multiplier: int = 2
    attn_dropout: float = 0.0
    ffn_dropout: float = 0.0
    hidden_dropout_prob: float = 0.0
    segmentation_head: str = "deeplabv3"
    use_auxiliary_head: bool = False
    auxiliary_loss_weight: float = 0.4
    psp_out_channels: int = 512
    psp_pool_sizes: Sequence[int] = (1, 2, 3, 6)
    psp_dropout_prob: float = 0.1
    detection_strides: Sequence[int] = (16, 32, 64, 128, 256, POOLED)
    detection_extra_channels: Sequence[int] = (256, 128, 128, 64)
    detection_level_channels: Sequence[int] = (512, 256, 256, 128, 128, 64)
    detection_anchor_scales: Sequence[float] = (0.1, 1.05)
    detection_anchor_ratios: Sequence[Sequence[float]] = ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3), (2,))
    detection_matching_iou: float = 0.5
    detection_negative_ratio: float = 3.0
    detection_coder_variances: Sequence[float] = (0.1, 0.2)

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = list(STAGE_NAMES)
        kwargs.pop("stage_names", None)  # written by save_pretrained, never a choice
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        for name in LISTS:
            setattr(self, name, _lists(getattr(self, name)))  # as the seed documents them and JSON gives them back
        if isinstance(self.patch_size, list):
            self.patch_size = _side(self.patch_size)
        num_labels = kwargs.get("num_labels")
        if num_labels is not None:
            check_integer("num_labels", num_labels, at_least=0)
        _refuse_slips(kwargs)
        super().__post_init__(**kwargs)
        self._check()

    # ---- every width, in one place -------------------------------------------------------------------------------------------

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of `image_size`."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    @property
    def stage_channels(self) -> list[int]:
        """Output channels of the stem and the five stages."""
        width = self.width_multiplier
        stem = make_divisible(min(max(32 * width, 16), 64), 8, 16)
        return [stem, make_divisible(64 * width, 16), *(make_divisible(base * width) for base in (128, 256, 384, 512))]

    @property
    def stage_strides(self) -> list[int]:
        """Input size over output size of the stem and the five stages."""
        return [min(stride, self.output_stride) for stride in (2, 2, 4, 8, 16, 32)]

    @property
    def stage_dilations(self) -> list[int]:
        """Dilation of the stem's and the five stages' later convolutions: what their strides lost to `output_stride`."""
        return [max(1, stride // self.output_stride) for stride in (2, 2, 4, 8, 16, 32)]

    @property
    def attn_dims(self) -> list[int]:
        """Attention widths of stages 3, 4 and 5."""
        return [make_divisible(base * self.width_multiplier) for base in self.base_attn_unit_dims]

    @property
    def ffn_dims(self) -> list[int]:
        """Hidden widths of the feed-forward parts of stages 3, 4 and 5."""
        return [self.ffn_multiplier * dim // 16 * 16 for dim in self.attn_dims]

    @property
    def psp_branch_channels(self) -> int:
        """Width of each pooled branch of the PSPNet head."""
        return max(16, self.stage_channels[-1] // len(self.psp_pool_sizes) // 16 * 16)

    @property
    def auxiliary_channels(self) -> int:
        """Width of the auxiliary segmentation head."""
        return max(self.stage_channels[4] // 4, 128)

    @property
    def detection_map_channels(self) -> list[int]:
        """Channels of each map that the detector looks at, in front of the projection."""
        stages = [
            channels
            for channels, stride in zip(self.stage_channels[3:], TRUNK_STRIDES, strict=True)
            if stride in self.detection_strides
        ]
        return [*stages, *self.detection_extra_channels]

    def activation(self) -> Activation:
        """The activation itself.

        Raises:
            ConfigurationError: a name that neither transformers nor torch.nn.functional knows; anything else that is no function.
        """
        if callable(self.hidden_act):
            return self.hidden_act
        if not isinstance(self.hidden_act, str):
            raise _no_activation(self.hidden_act)
        name = self.hidden_act.removeprefix("torch.nn.functional.")
        if name in ACT2FN:
            module: nn.Module = ACT2FN[name]
            return module
        function: Activation | None = getattr(F, name, None)
        if callable(function):
            return function
        raise _no_activation(self.hidden_act)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """transformers' `from_dict`, for MobileViTV2 alone, with options in `kwargs` checked as those of the dictionary are.

        Raises:
            ConfigurationError: the configuration of another kind of model, or a value that gives no valid model.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ConfigurationError(
                f"This is the configuration of a {kind!r} model, not of MobileViTV2; load it with transformers' AutoModel classes."
            )
        # transformers sets what is in kwargs on the finished configuration, behind the checks.
        options = {name: kwargs.pop(name) for name in MobileViTV2Config.__annotations__ if name in kwargs}
        return super().from_dict({**config_dict, **options}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All options, as JSON can hold them; an activation function becomes its name."""
        values: dict[str, Any] = super().to_dict()
        if callable(self.hidden_act):
            values["hidden_act"] = _activation_name(self.hidden_act)
        return values

    def __eq__(self, other: object) -> bool:
        """Whether all options agree; where the configurations were saved, and by which release, does not matter."""
        if not isinstance(other, MobileViTV2Config):
            return NotImplemented
        return self._options() == other._options()

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_dict().items() if name not in ("transformers_version", "_name_or_path")}

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """transformers' `to_json_file`, whole or not at all."""
        write_whole(Path(json_file_path), self.to_json_string(use_diff=use_diff).encode())

    # ---- checks --------------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        check_number("width_multiplier", self.width_multiplier, above=0)
        for name in (
            "num_channels",
            "patch_size",
            "conv_kernel_size",
            "aspp_out_channels",
            "psp_out_channels",
            "ffn_multiplier",
        ):
            check_integer(name, getattr(self, name))
        check_integer("semantic_loss_ignore_index", self.semantic_loss_ignore_index, at_least=None)
        for name, length in (("n_attn_blocks", 3), ("base_attn_unit_dims", 3), ("atrous_rates", 3), ("psp_pool_sizes", None)):
            check_integers(name, getattr(self, name), length)
        for weight in self.semantic_loss_class_weights or ():
            check_number("semantic_loss_class_weights", weight, above=0)
        if isinstance(self.image_size, list):
            check_integers("image_size", self.image_size, 2)
        else:
            check_integer("image_size", self.image_size)
        if self.conv_kernel_size % 2 == 0:
            raise ConfigurationError(f"conv_kernel_size={self.conv_kernel_size} is even; use an odd number such as 3.")
        if self.output_stride not in (8, 16, 32):
            raise ConfigurationError(f"output_stride={self.output_stride} is not possible; use 8, 16 or 32.")
        if self.segmentation_head not in ("deeplabv3", "pspnet"):
            raise ConfigurationError(f"segmentation_head={self.segmentation_head!r} is unknown; use 'deeplabv3' or 'pspnet'.")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigurationError(f"problem_type={self.problem_type!r} is unknown; use one of {', '.join(PROBLEM_TYPES)}.")
        for name in ("expand_ratio", "initializer_range", "layer_norm_eps", "auxiliary_loss_weight"):
            check_number(name, getattr(self, name), above=0)
        for name in (
            "classifier_dropout_prob",
            "aspp_dropout_prob",
            "psp_dropout_prob",
            "attn_dropout",
            "ffn_dropout",
            "hidden_dropout_prob",
        ):
            check_probability(name, getattr(self, name))
        self._check_widths()
        self._check_activation()
        check_detection(**{n.removeprefix("detection_"): getattr(self, n) for n in DETECTION_OPTIONS})

    def _check_activation(self) -> None:
        tokens = torch.zeros(1, 2, 1, 1, device="cpu")
        try:
            answer: object = self.activation()(tokens)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_activation(self.hidden_act) from error
        if not isinstance(answer, Tensor) or answer.shape != tokens.shape:
            raise _no_activation(self.hidden_act)

    def _check_widths(self) -> None:
        for name in ("num_channels", "aspp_out_channels", "psp_out_channels"):
            if getattr(self, name) > MAX_CHANNELS:
                raise ConfigurationError(f"{name}={getattr(self, name)} is too large; valid are 1 to {MAX_CHANNELS}.")
        if not all(1 <= width <= MAX_CHANNELS for width in (*self.stage_channels, *self.attn_dims, *self.ffn_dims)):
            raise ConfigurationError(
                f"width_multiplier={self.width_multiplier}, base_attn_unit_dims={self.base_attn_unit_dims} and "
                f"ffn_multiplier={self.ffn_multiplier} give no valid channels (stages {self.stage_channels}, attention "
                f"{self.attn_dims}, feed-forward {self.ffn_dims}; valid are 1 to {MAX_CHANNELS}); "
                "released widths are 0.5, 0.75, 1.0, 1.25, 1.5, 1.75 and 2.0."
            )
        if self.expand_ratio * max(self.stage_channels) > MAX_CHANNELS:
            raise ConfigurationError(
                f"expand_ratio={self.expand_ratio} gives stages more than {MAX_CHANNELS} channels; released models have 2.0."
            )


def _lists(value: Any) -> Any:
    """Tuples, those inside other ones too, as lists; anything else as it is."""
    return [_lists(each) for each in value] if isinstance(value, tuple | list) else value


def _side(pair: Sequence[int]) -> int:
    if len(set(pair)) != 1:
        raise ConfigurationError(f"patch_size={list(pair)!r} is not square; use one number such as 2.")
    return pair[0]


def _activation_name(function: Activation) -> str:
    """The name of a function with the same values; its own name where there is none, which then asks for the function."""
    if not (isinstance(function, nn.Module) and any(True for _ in function.parameters())):
        probe = torch.linspace(-10, 10, 201, device="cpu")
        for known in NAMED_ACTIVATIONS:
            if torch.equal(function(probe), ACT2FN[known](probe)):
                return known
    name = getattr(function, "__name__", type(function).__name__)
    return f"torch.nn.functional.{name}" if getattr(F, name, None) is function else name


def _no_activation(value: object) -> ConfigurationError:
    return ConfigurationError(
        f"hidden_act={value!r} is no activation; use a name such as 'swish', 'relu' or 'gelu', or pass a function that keeps a "
        "tensor's shape."
    )


def _refuse_slips(options: dict[str, Any]) -> None:
    """Refuse options that are unknown and close to known ones. Others are kept: configurations of other libraries carry many."""
    known = [field.name for field in dataclasses.fields(MobileViTV2Config)] + ["num_labels", "out_features", "out_indices"]
    for name in options:
        close = [] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if close:
            raise ConfigurationError(f"{name!r} is no option of MobileViTV2Config; did you mean {close[0]!r}?")
