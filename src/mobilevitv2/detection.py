"""Object detection: SSDLite on stages 4 and 5 and on further, ever coarser maps, down to the picture as one pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from mobilevitv2.anchors import GridSize, cached_anchors, cell_shapes
from mobilevitv2.backbone import MobileViTV2Model, MobileViTV2PreTrainedModel, wants
from mobilevitv2.blocks import ConvNormAct
from mobilevitv2.boxes import decode, encode, match, to_corners
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.detection_targets import PaddedTargets, pad_targets
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.option_checks import POOLED, TRUNK_STRIDES

BOX_NUMBERS = 4


@dataclass
class MobileViTV2ObjectDetectionOutput(ModelOutput):  # type: ignore[misc]  # transformers ships no types for its bases
    """What a detector answers.

    Attributes:
        loss: where labels are given: the sum of `loss_dict`, a scalar.
        loss_dict: where labels are given: "loss_classification" and "loss_localization", scalars without gradient.
        logits: raw class scores (batch, anchors, num_labels + 1); column 0 is the background, column c + 1 class c.
        pred_boxes: boxes (batch, anchors, 4), (centre x, centre y, width, height) in units of the picture, at least float32.
        box_offsets: the raw answers (batch, anchors, 4) that `pred_boxes` are decoded from.
        hidden_states: outputs of the five stages, on request.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    box_offsets: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SeparableDownsampling(nn.Module):
    """The next coarser map: a depthwise 3x3 convolution of stride 2 without activation, then a pointwise one with ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(in_channels, in_channels, kernel_size=3, stride=2, groups=in_channels)
        self.pointwise = ConvNormAct(in_channels, out_channels, activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H / 2, W / 2), sides rounded up."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class PooledConvolution(ConvNormAct):
    """The picture as one pixel: mean, 1x1 convolution without norm or bias, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, norm=False, activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 1, 1)."""
        return super().forward(x.mean(dim=(-2, -1), keepdim=True))


class DetectionLevel(nn.Module):
    """Boxes and classes on one map: a projection where the channels change, then one separable convolution for both.

    A pooled map of one pixel has neither: a 3x3 kernel has nothing to see there.
    """

    def __init__(self, in_channels: int, hidden_channels: int, *, anchors: int, classes: int, pooled: bool) -> None:
        super().__init__()
        self.anchors = anchors
        self.answers = BOX_NUMBERS + classes
        self.projection = (
            ConvNormAct(in_channels, hidden_channels, activation=F.relu) if in_channels != hidden_channels and not pooled else None
        )
        self.depthwise = None if pooled else ConvNormAct(hidden_channels, hidden_channels, kernel_size=3, groups=hidden_channels)
        self.pointwise = ConvNormAct(hidden_channels, anchors * self.answers, bias=True, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, H * W * anchors, 4 + classes): four numbers of the box, then the scores."""
        if self.projection is not None:
            x = self.projection(x)
        if self.depthwise is not None:
            x = self.depthwise(x)
        x = self.pointwise(x).permute(0, 2, 3, 1)  # (B, H, W, anchors * answers)
        return torch.unflatten(x, 3, (self.anchors, self.answers)).flatten(1, 3)


class SSDLiteHead(nn.Module):
    """One `DetectionLevel` for each map."""

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            DetectionLevel(into, hidden, anchors=2 + 2 * len(ratios), classes=config.num_labels + 1, pooled=stride == POOLED)
            for into, hidden, ratios, stride in zip(
                config.detection_map_channels,
                config.detection_level_channels,
                config.detection_anchor_ratios,
                config.detection_strides,
                strict=True,
            )
        )

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (B, C, H, W) -> raw offsets (B, anchors, 4) and class scores (B, anchors, classes)."""
        answers = torch.cat([level(x) for level, x in zip(self.levels, maps, strict=True)], dim=1)
        return answers[..., :BOX_NUMBERS], answers[..., BOX_NUMBERS:]


class MobileViTV2ForObjectDetection(MobileViTV2PreTrainedModel):
    """MobileViTV2 with an SSDLite head ("MobileNetV2", arXiv 1801.04381, section 6.2; SSD is arXiv 1512.02325).

    `config.num_labels` counts the real classes; the background is no label, but has the first column of the scores. The options
    that begin with `detection_` shape the head; their defaults are those of the official models for 320 x 320. Any size works.
    """

    task = "detect"

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__(config)
        if config.num_labels < 1:
            raise ConfigurationError("num_labels=0 leaves nothing to detect; give the number of classes, background not counted.")
        if config.output_stride != 32:
            raise ConfigurationError(
                f"output_stride={config.output_stride} is for segmentation; a detector takes output_stride=32, and "
                "detection_strides says which maps it looks at."
            )
        self.num_labels = config.num_labels
        self.mobilevitv2 = MobileViTV2Model(config, expand_output=False)
        into = [config.stage_channels[-1], *config.detection_extra_channels]
        extra_strides = [stride for stride in config.detection_strides if stride not in TRUNK_STRIDES]
        self.extra_layers = nn.ModuleList(
            PooledConvolution(a, b) if stride == POOLED else SeparableDownsampling(a, b)
            for a, b, stride in zip(into[:-1], into[1:], extra_strides, strict=True)
        )
        self.detection_head = SSDLiteHead(config)
        self._shapes = cell_shapes(config.detection_anchor_scales, config.detection_anchor_ratios)
        self._variances = (config.detection_coder_variances[0], config.detection_coder_variances[1])
        self.post_init()

    def _init_convolution(self, module: nn.Conv2d) -> None:
        init.xavier_uniform_(module.weight)  # the official start of everything behind the trunk; the trunk starts itself

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MobileViTV2ObjectDetectionOutput | tuple[Any, ...]:
        """Scores and boxes at every anchor, and the loss where labels are given.

        Args:
            pixel_values: (batch, num_channels, height, width); any size.
            labels: for each picture a dictionary with "class_labels", whole numbers (n,) in 0..num_labels - 1, and "boxes", floats
                (n, 4), (centre x, centre y, width, height) in units of the picture. n may be 0.
            output_hidden_states: give the output of each of the five stages.
            return_dict: False gives a tuple of the values that are not None.

        Returns:
            See `MobileViTV2ObjectDetectionOutput`; the image processor's `post_process_object_detection` makes detections of it.

        Raises:
            ConfigurationError: labels that cannot be learned from; the message names the picture.
        """
        hidden_states = self.mobilevitv2.features(pixel_values)[1:]
        maps = self._maps(hidden_states)
        offsets, logits = self.detection_head(maps)
        anchors = self.anchors([(x.shape[-2], x.shape[-1]) for x in maps], logits.device)
        losses = None if labels is None else self.losses(logits, offsets, labels, anchors)
        output = MobileViTV2ObjectDetectionOutput(
            loss=None if losses is None else losses["loss_classification"] + losses["loss_localization"],
            loss_dict=None if losses is None else {name: value.detach() for name, value in losses.items()},
            logits=logits,
            pred_boxes=decode(_at_least_float32(offsets), anchors, self._variances),
            box_offsets=offsets,
            hidden_states=tuple(hidden_states) if wants(output_hidden_states, self.config.output_hidden_states) else None,
        )
        return output if wants(return_dict, self.config.return_dict) else output.to_tuple()

    def _maps(self, hidden_states: list[Tensor]) -> list[Tensor]:
        """The chosen stages, then the extra layers, each fed by the map before."""
        strides = self.config.stage_strides[1:]
        maps = [x for x, stride in zip(hidden_states, strides, strict=True) if stride in self.config.detection_strides]
        for layer in self.extra_layers:
            maps.append(layer(maps[-1]))
        return maps

    def anchors(self, grids: list[GridSize], device: torch.device) -> Tensor:
        """Anchors of maps of these sizes (rows, columns): (anchors, 4), float32, centred, in units of the picture."""
        return cached_anchors(grids, self._shapes, device)

    def losses(self, logits: Tensor, offsets: Tensor, labels: list[dict[str, Tensor]], anchors: Tensor) -> dict[str, Tensor]:
        """The two parts of SSD's multibox loss, float32 scalars: sums over the number of answering anchors of the batch.

        A picture without boxes adds nothing: as in the official code, negatives are taken in proportion to a picture's positives.

        Args:
            logits: (batch, anchors, num_labels + 1).
            offsets: raw offsets (batch, anchors, 4).
            labels: as `forward` takes them.
            anchors: (anchors, 4), as `anchors` gives them.
        """
        targets = pad_targets(labels, batch=logits.shape[0], num_labels=self.num_labels, device=logits.device)
        # No matrix product or convolution follows, so autocast leaves all of it in float32.
        return self._multibox(_at_least_float32(logits), _at_least_float32(offsets), targets, anchors)

    def _multibox(self, logits: Tensor, offsets: Tensor, targets: PaddedTargets, anchors: Tensor) -> dict[str, Tensor]:
        config = self.config
        with torch.no_grad():
            index, positive = match(
                to_corners(targets.boxes), targets.valid, to_corners(anchors), threshold=config.detection_matching_iou
            )
            classes = torch.where(positive, targets.classes.gather(1, index) + 1, 0)  # (B, A)
            boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, BOX_NUMBERS))
            # An anchor that answers for nothing is its own target, so that no logarithm of another box's sides comes in.
            wanted = encode(torch.where(positive[..., None], boxes, anchors), anchors, self._variances)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        chosen = positive | hard_negatives(-log_probabilities[..., 0].detach(), positive, ratio=config.detection_negative_ratio)
        misclassified = -log_probabilities.gather(2, classes[..., None])[..., 0]
        misplaced = F.smooth_l1_loss(offsets, wanted.to(offsets.dtype), reduction="none").sum(-1)
        count = positive.sum().clamp(min=1)
        return {
            "loss_classification": torch.where(chosen, misclassified, 0).sum() / count,
            "loss_localization": torch.where(positive, misplaced, 0).sum() / count,
        }


def hard_negatives(difficulty: Tensor, positive: Tensor, *, ratio: float) -> Tensor:
    """For each picture the `ratio` times as many negatives as it has positives that look least like background.

    Args:
        difficulty: minus the logarithm of the background's probability, (B, A).
        positive: (B, A), bool.
        ratio: negatives for each positive.

    Returns:
        (B, A), bool; never a positive.
    """
    # Positives come last; ranks by two sorts, because the number to take differs from picture to picture.
    order = torch.where(positive, -torch.inf, difficulty).argsort(dim=1, descending=True)
    rank = order.argsort(dim=1)
    return (rank < ratio * positive.sum(dim=1, keepdim=True)) & ~positive


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
