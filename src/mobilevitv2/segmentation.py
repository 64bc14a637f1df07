"""Semantic segmentation: a DeepLabV3 or PSPNet head on the last stage, and an auxiliary head on the one before, for training."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput

from mobilevitv2.backbone import MobileViTV2Model, MobileViTV2PreTrainedModel, wants
from mobilevitv2.blocks import ConvNormAct
from mobilevitv2.checks import check_class_indices
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.errors import ConfigurationError


class ImagePooling(nn.Module):
    """The whole picture as one more branch of the pyramid: mean, 1x1 convolution, spread over the map again."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_1x1 = ConvNormAct(in_channels, out_channels, activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W), the same values everywhere."""
        pooled: Tensor = self.conv_1x1(x.mean(dim=(-2, -1), keepdim=True))  # (B, C, 1, 1)
        return pooled.expand(-1, -1, *x.shape[-2:])  # what the official bilinear upsampling of a single value gives


class AtrousSpatialPyramidPooling(nn.Module):
    """DeepLabV3's ASPP (arXiv 1706.05587): 1x1, three dilated 3x3 convolutions and image pooling, side by side, then 1x1."""

    def __init__(self, in_channels: int, out_channels: int, *, rates: list[int], dropout: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                ConvNormAct(in_channels, out_channels, activation=F.relu),
                *(ConvNormAct(in_channels, out_channels, kernel_size=3, dilation=r, activation=F.relu) for r in rates),
                ImagePooling(in_channels, out_channels),
            ]
        )
        self.project = ConvNormAct((2 + len(rates)) * out_channels, out_channels, activation=F.relu)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        out: Tensor = self.dropout(self.project(torch.cat([conv(x) for conv in self.convs], dim=1)))
        return out


class DeepLabV3Head(nn.Module):
    """ASPP and a 1x1 classifier, on the last stage."""

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__()
        self.aspp = AtrousSpatialPyramidPooling(
            config.stage_channels[-1],
            config.aspp_out_channels,
            rates=list(config.atrous_rates),
            dropout=config.aspp_dropout_prob,
        )
        self.classifier = ConvNormAct(config.aspp_out_channels, config.num_labels, bias=True, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of the last stage -> scores (B, num_labels, H, W)."""
        out: Tensor = self.classifier(self.aspp(x))
        return out


class PyramidPooling(nn.Module):
    """PSPNet's pyramid (arXiv 1612.01105): the map pooled to several small sizes, spread again, joined by a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, branch_channels: int, pool_sizes: list[int], dropout: float) -> None:
        super().__init__()
        self.pool_sizes = pool_sizes
        self.branches = nn.ModuleList(ConvNormAct(in_channels, branch_channels, activation=F.relu) for _ in pool_sizes)
        self.fusion = ConvNormAct(in_channels + len(pool_sizes) * branch_channels, out_channels, kernel_size=3, activation=F.relu)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        pyramid = [x]
        for size, branch in zip(self.pool_sizes, self.branches, strict=True):
            pyramid.append(upsample(branch(F.adaptive_avg_pool2d(x, size)), (x.shape[-2], x.shape[-1])))
        out: Tensor = self.dropout(self.fusion(torch.cat(pyramid, dim=1)))
        return out


class PSPNetHead(nn.Module):
    """Pyramid pooling and a 1x1 classifier, on the last stage."""

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__()
        self.psp = PyramidPooling(
            config.stage_channels[-1],
            config.psp_out_channels,
            branch_channels=config.psp_branch_channels,
            pool_sizes=list(config.psp_pool_sizes),
            dropout=config.psp_dropout_prob,
        )
        self.classifier = ConvNormAct(config.psp_out_channels, config.num_labels, bias=True, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of the last stage -> scores (B, num_labels, H, W)."""
        out: Tensor = self.classifier(self.psp(x))
        return out


class AuxiliaryHead(nn.Module):
    """A light head on stage 4 whose loss helps the trunk to learn."""

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__()
        self.conv = ConvNormAct(config.stage_channels[4], config.auxiliary_channels, kernel_size=3, activation=F.relu)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = ConvNormAct(config.auxiliary_channels, config.num_labels, bias=True, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of stage 4 -> scores (B, num_labels, H, W)."""
        out: Tensor = self.classifier(self.dropout(self.conv(x)))
        return out


def upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corner pixels on corner pixels: how the official code brings every map to another size."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class MobileViTV2ForSemanticSegmentation(MobileViTV2PreTrainedModel):
    """MobileViTV2 with `config.segmentation_head`: "deeplabv3" or "pspnet"."""

    task = "segment"

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__(config)
        if config.num_labels < 1:
            raise ConfigurationError("num_labels=0 leaves nothing to segment; give the number of classes, background included.")
        self.num_labels = config.num_labels
        self.mobilevitv2 = MobileViTV2Model(config, expand_output=False)
        self.segmentation_head = DeepLabV3Head(config) if config.segmentation_head == "deeplabv3" else PSPNetHead(config)
        if config.use_auxiliary_head:
            # Beside the main head in the checkpoint's names, as official files have it.
            self.segmentation_head.auxiliary_head = AuxiliaryHead(config)
        self.post_init()

    def _init_convolution(self, module: nn.Conv2d) -> None:
        init.kaiming_uniform_(module.weight, mode="fan_out")  # the official start of the heads; the trunk starts itself

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple[Any, ...]:
        """Scores of each class at each point of the last feature map, and the loss where labels are given.

        Args:
            pixel_values: (batch, num_channels, height, width).
            labels: class indices (batch, height, width); `config.semantic_loss_ignore_index` marks pixels to leave out.
            output_hidden_states: give the output of each of the five stages.
            return_dict: False gives a tuple of the values that are not None.

        Returns:
            loss where labels are given (with the auxiliary head's, in training); logits (batch, num_labels, height / output_stride,
            width / output_stride): the image processor's `post_process_semantic_segmentation` brings them to the picture's size;
            hidden_states on request.

        Raises:
            ConfigurationError: labels of another shape or range, or a model of a single class.
        """
        hidden_states = self.mobilevitv2.features(pixel_values)[1:]
        logits = self.segmentation_head(hidden_states[-1])
        output = SemanticSegmenterOutput(
            loss=None if labels is None else self.loss(logits, labels, hidden_states[-2]),
            logits=logits,
            hidden_states=tuple(hidden_states) if wants(output_hidden_states, self.config.output_hidden_states) else None,
        )
        return output if wants(return_dict, self.config.return_dict) else output.to_tuple()

    def loss(self, logits: Tensor, labels: Tensor, stage4: Tensor) -> Tensor:
        """Cross-entropy at the labels' size; in training with the auxiliary head's, weighted. A scalar."""
        if self.num_labels < 2:
            raise ConfigurationError(f"num_labels={self.num_labels} has no segmentation loss; the number should be at least 2.")
        labels = labels.to(logits.device)
        loss = self._cross_entropy(logits, labels)
        if self.training and self.config.use_auxiliary_head:
            auxiliary_head = cast(AuxiliaryHead, self.segmentation_head.auxiliary_head)
            auxiliary_logits = auxiliary_head(stage4)
            loss = loss + self.config.auxiliary_loss_weight * self._cross_entropy(auxiliary_logits, labels)
        return loss

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        ignore = self.config.semantic_loss_ignore_index
        if labels.ndim != 3 or labels.shape[0] != logits.shape[0] or 0 in labels.shape or labels.is_floating_point():
            raise ConfigurationError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit; give whole numbers "
                f"(batch={logits.shape[0]}, height, width)."
            )
        check_class_indices(labels, self.num_labels, ignore_index=ignore)
        labels = labels.long()
        logits = upsample(logits, (labels.shape[-2], labels.shape[-1]))
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()  # a sum over the pixels is more than float16 can hold
        weights = self._class_weights(logits)
        total = F.cross_entropy(logits, labels, weight=weights, ignore_index=ignore, reduction="sum")
        # A batch of nothing but ignored pixels has loss zero, not zero over zero.
        labelled = labels != ignore
        if weights is None:
            return total / labelled.sum().clamp(min=1)
        weight = torch.where(labelled, weights[torch.where(labelled, labels, 0)], 0).sum()
        return total / torch.where(weight > 0, weight, 1)

    def _class_weights(self, logits: Tensor) -> Tensor | None:
        weights = self.config.semantic_loss_class_weights
        if weights is None:
            return None
        if len(weights) != self.num_labels:
            raise ConfigurationError(
                f"semantic_loss_class_weights has {len(weights)} numbers for num_labels={self.num_labels}; give one for each class."
            )
        return torch.tensor(weights, dtype=logits.dtype).to(logits.device, non_blocking=True)
