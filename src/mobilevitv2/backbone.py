"""The trunk shared by all tasks: MobileViTV2Model, MobileViTV2Backbone, and what every model class here inherits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPoolingAndNoAttention

from mobilevitv2.blocks import ConvNormAct, MobileNetLayer, MobileViTV2Block, Transformer, TransformerLayer
from mobilevitv2.checks import check_pixel_values
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.loading import check_folder, check_task, find_record, load_file
from mobilevitv2.weights import fetch

if TYPE_CHECKING:
    from mobilevitv2.export.report import ExportReport
    from mobilevitv2.export.request import Suppression
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor


class Encoder(nn.Module):
    """The five stages behind the stem."""

    _gradient_checkpointing_func: Callable[..., Tensor]  # set by transformers together with the flag

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__()
        stem, c1, c2, *_ = config.stage_channels
        activation = config.activation()
        self.layer = nn.ModuleList(
            [
                MobileNetLayer(stem, c1, depth=1, stride=1, expand_ratio=config.expand_ratio, activation=activation),
                MobileNetLayer(c1, c2, depth=2, stride=2, expand_ratio=config.expand_ratio, activation=activation),
                *(_attention_stage(config, stage) for stage in (3, 4, 5)),
            ]
        )
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, stem channels, H / 2, W / 2) -> the outputs of the five stages."""
        outputs = []
        for layer in self.layer:
            x = self._gradient_checkpointing_func(layer.__call__, x) if self.gradient_checkpointing and self.training else layer(x)
            outputs.append(x)
        return outputs


def _attention_stage(config: MobileViTV2Config, stage: int) -> MobileViTV2Block:
    """Stage 3, 4 or 5; the first convolution keeps the dilation of the stage before, as in the official code."""
    channels, strides, dilations = config.stage_channels, config.stage_strides, config.stage_dilations
    dim, ffn_hidden = config.attn_dims[stage - 3], config.ffn_dims[stage - 3]
    assert isinstance(config.patch_size, int)  # the configuration makes it so
    layers = [
        TransformerLayer(
            dim,
            ffn_hidden,
            activation=config.activation(),
            norm_eps=config.layer_norm_eps,
            attn_dropout=config.attn_dropout,
            ffn_dropout=config.ffn_dropout,
            dropout=config.hidden_dropout_prob,
        )
        for _ in range(config.n_attn_blocks[stage - 3])
    ]
    return MobileViTV2Block(
        channels[stage - 1],
        channels[stage],
        transformer=Transformer(layers),
        dim=dim,
        activation=config.activation(),
        stride=strides[stage] // strides[stage - 1],
        downsampling_dilation=dilations[stage - 1],
        dilation=dilations[stage],
        kernel_size=config.conv_kernel_size,
        patch_size=config.patch_size,
        expand_ratio=config.expand_ratio,
        norm_eps=config.layer_norm_eps,
    )


def _stem(config: MobileViTV2Config) -> ConvNormAct:
    return ConvNormAct(config.num_channels, config.stage_channels[0], kernel_size=3, stride=2, activation=config.activation())


class MobileViTV2PreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # transformers ships no types for its bases
    """Loading, saving and initialisation, the same for every task."""

    config_class = MobileViTV2Config
    config: MobileViTV2Config
    base_model_prefix = "mobilevitv2"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["MobileNetLayer", "MobileViTV2Block"]
    task: ClassVar[str] = "backbone"

    def __init__(self, config: MobileViTV2Config) -> None:
        if not isinstance(config, MobileViTV2Config):
            raise ConfigurationError(
                f"config is a {type(config).__module__}.{type(config).__qualname__}; pass this package's MobileViTV2Config "
                "(MobileViTV2Config.from_dict(config.to_dict()) makes one of transformers' own)."
            )
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any) -> Self:
        """A model with weights from anywhere.

        Args:
            pretrained_model_name_or_path: a folder or hub id in transformers' format; the name of a record (`mobilevitv2 models`
                lists them); or one file: an official `.pt`, a timm or transformers `.safetensors`, `.bin` or `.pth`, or an official
                training checkpoint. Of a single file the format and the configuration are told from names and shapes.
            model_args: passed on to the model's `__init__`.
            kwargs: what transformers' `from_pretrained` takes (dtype, device_map, ignore_mismatched_sizes, output_loading_info,
                any option of the configuration, ...). With ignore_mismatched_sizes=True a folder or record of another task gives
                its trunk, and the head starts at random; without, only a classifier's does.

        Raises:
            UnknownWeightsFormat: the file holds no MobileViTV2 weights.
            WrongTaskError: the file is of another task; the message names the class to use.
            WeightsMismatch: missing, extra or misshapen tensors, all named.
        """
        if pretrained_model_name_or_path is None:  # transformers' way to hand over a state_dict
            return cast(Self, super().from_pretrained(None, *model_args, **kwargs))
        record = find_record(pretrained_model_name_or_path)
        if record is not None and not kwargs.get("ignore_mismatched_sizes"):
            check_task(cls.task, record)
        source = pretrained_model_name_or_path if record is None else fetch(record)
        if os.path.isfile(source):
            return cast(Self, load_file(cls, Path(source), *model_args, record=record, **kwargs))
        with_info = bool(kwargs.pop("output_loading_info", False))
        resize = bool(kwargs.pop("ignore_mismatched_sizes", False))
        # Misshapen tensors are let through here and refused below, where the error can name them.
        model, info = super().from_pretrained(source, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        check_folder(info, source, resize=resize)
        return cast(Self, (model, info) if with_info else model)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """transformers' `save_pretrained`, which would log a line and return where `save_directory` is a file.

        Raises:
            ConfigurationError: the folder is a file.
        """
        if os.path.isfile(save_directory):
            raise ConfigurationError(f"{os.fspath(save_directory)} is a file; name a folder to save the model in.")
        super().save_pretrained(save_directory, *args, **kwargs)

    def optimize_for_inference(
        self,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        compile: bool | str | None = None,
        channels_last: bool | None = None,
        kernels: bool | None = None,
        cuda_graphs: bool | None = None,
    ) -> Self:
        """An equal model in its fastest form on a device; this one is left as it is.

        See `mobilevitv2.inference.optimize_for_inference` for the options and errors.
        """
        from mobilevitv2.inference import optimize_for_inference

        return optimize_for_inference(
            self,
            device=device,
            dtype=dtype,
            compile=compile,
            channels_last=channels_last,
            kernels=kernels,
            cuda_graphs=cuda_graphs,
        )

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        delegate: str | None = None,
        precision: str = "fp32",
        size: tuple[int, int] | None = None,
        dynamic: bool = False,
        preprocessing: bool = False,
        postprocessing: bool = True,
        suppression: Suppression | None = None,
        calibration: Any = None,
        processor: MobileViTV2ImageProcessor | None = None,
        pictures: Iterable[Any] | None = None,
        source: str | None = None,
        licence: str | None = None,
        overwrite: bool = False,
        threads: int | None = None,
    ) -> ExportReport:
        """`mobilevitv2.export.export` of this model, with all its options; the model is left as it is."""
        from mobilevitv2.export.exporting import export

        return export(
            self,
            path,
            format=format,
            delegate=delegate,
            precision=precision,
            size=size,
            dynamic=dynamic,
            preprocessing=preprocessing,
            postprocessing=postprocessing,
            suppression=suppression,
            calibration=calibration,
            processor=processor,
            pictures=pictures,
            source=source,
            licence=licence,
            overwrite=overwrite,
            threads=threads,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The official start: Kaiming normal (fan out) convolutions, truncated normal linear layers, norms at one and zero."""
        if isinstance(module, nn.Conv2d):
            self._init_convolution(module)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def _init_convolution(self, module: nn.Conv2d) -> None:
        init.kaiming_normal_(module.weight, mode="fan_out")

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One random picture of the configured size: (1, num_channels, height, width)."""
        return {"pixel_values": torch.rand(1, self.config.num_channels, *self.config.input_size, device=self.device)}


class MobileViTV2Model(MobileViTV2PreTrainedModel):
    """The trunk alone, with pooled features on request.

    Args:
        config: options of the model.
        expand_output: give the mean over the last feature map besides the map itself.
    """

    def __init__(self, config: MobileViTV2Config, expand_output: bool = True) -> None:
        super().__init__(config)
        self.expand_output = expand_output
        self.conv_stem = _stem(config)
        self.encoder = Encoder(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """Features of pictures.

        Args:
            pixel_values: (batch, num_channels, height, width), RGB in 0..1 for the released weights; any size.
            output_hidden_states: give the output of each of the five stages.
            return_dict: False gives a tuple of the values that are not None.

        Returns:
            last_hidden_state (batch, channels, height / output_stride, width / output_stride), sides rounded up to whole patches;
            pooler_output (batch, channels) with `expand_output`; hidden_states on request.
        """
        hidden_states = self.features(pixel_values)[1:]
        last = hidden_states[-1]
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last,
            pooler_output=last.mean(dim=(-2, -1)) if self.expand_output else None,
            hidden_states=tuple(hidden_states) if wants(output_hidden_states, self.config.output_hidden_states) else None,
        )
        return output if wants(return_dict, self.config.return_dict) else output.to_tuple()

    def features(self, pixel_values: Tensor | None) -> list[Tensor]:
        """The outputs of the stem and the five stages, finest first."""
        stem = self.conv_stem(check_pixel_values(pixel_values, self.config.num_channels))
        return [stem, *self.encoder(stem)]


def wants(argument: bool | None, configured: bool) -> bool:
    """An argument of `forward` where it was given, else what the configuration says."""
    return configured if argument is None else argument


class MobileViTV2Backbone(BackboneMixin, MobileViTV2PreTrainedModel):  # type: ignore[misc]
    """Feature maps for detection and segmentation code written against transformers' backbone interface.

    Stages are named stem, stage1 .. stage5; `config.out_features` or `config.out_indices` chooses among them (the last by default).
    `channels` and `strides` describe the chosen maps.
    """

    has_attentions = False

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__(config)
        self.conv_stem = _stem(config)
        self.encoder = Encoder(config)
        self.num_features = config.stage_channels
        self.post_init()

    @property
    def strides(self) -> list[int]:
        """Input size over size of each chosen feature map (before the rounding up to whole patches)."""
        strides = dict(zip(self.stage_names, self.config.stage_strides, strict=True))
        return [strides[name] for name in self.out_features]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        """The chosen feature maps, finest first, each (batch, channels, height / stride, width / stride).

        `output_attentions` belongs to the interface; there are no attention matrices to give.
        """
        stem = self.conv_stem(check_pixel_values(pixel_values, self.config.num_channels))
        maps = [stem, *self.encoder(stem)]
        output = BackboneOutput(
            feature_maps=tuple(x for name, x in zip(self.stage_names, maps, strict=True) if name in self.out_features),
            hidden_states=tuple(maps) if wants(output_hidden_states, self.config.output_hidden_states) else None,
        )
        return output if wants(return_dict, self.config.return_dict) else output.to_tuple()
