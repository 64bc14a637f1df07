"""1x1 convolutions that follow each other with nothing between them, as one, and a classifier's trunk that uses it.

A stage ends with a projection to C channels and the next one begins with an expansion of them; nothing is between the two where
the stage has no sum with its input. Their product costs D * E operations a pixel where the two cost D * C + C * E: with width 1.0
and 256 px 224 million multiply-adds less, an eighth of all, and three maps less to write and read. The last projection is taken of
the mean over the map, since the mean of a linear map is the linear map of the mean.

Only where nobody asks for the outputs of the stages: with output_hidden_states=True, or with a forward hook on anything in the
encoder, the trunk runs as it was.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from mobilevitv2.backbone import MobileViTV2Model, wants
from mobilevitv2.blocks import ConvNormAct, InvertedResidual, MobileNetLayer, MobileViTV2Block
from mobilevitv2.checks import check_pixel_values
from mobilevitv2.classification import MobileViTV2ForImageClassification


def merged_unit(first: ConvNormAct, second: ConvNormAct) -> ConvNormAct | None:
    """One unit for two folded ones with 1x1 kernels, of which the first has no activation; None where that costs more.

    The product is taken in float64 and rounded once.
    """
    one, two = first.convolution, second.convolution
    hidden, between, out = one.in_channels, one.out_channels, two.out_channels
    if hidden * out >= hidden * between + between * out:
        return None
    assert one.bias is not None and two.bias is not None  # folded batch norms leave one
    left, right = (each.weight.detach().double()[:, :, 0, 0] for each in (one, two))
    with torch.device("meta"):
        unit = ConvNormAct(hidden, out, bias=True, norm=False, activation=second.activation)
    shift = right @ one.bias.detach().double() + two.bias.detach().double()
    unit.convolution.weight = nn.Parameter((right @ left)[:, :, None, None].to(one.weight), requires_grad=False)
    unit.convolution.bias = nn.Parameter(shift.to(one.bias), requires_grad=False)
    return unit.eval()


def merge_stages(model: nn.Module) -> int:
    """Give the trunk of a folded classifier its merged way, in place; how many convolutions became one with the next.

    Other models give the outputs of their stages, so nothing is merged.
    """
    if not isinstance(model, MobileViTV2ForImageClassification):
        return 0
    trunk: Any = model.mobilevitv2
    trunk.merged = merged_units(list(trunk.encoder.layer))
    trunk.__class__ = MergedTrunk
    return len(trunk.merged)


def merged_units(stages: list[nn.Module]) -> nn.ModuleDict:
    """For folded stages: under the index of a stage the unit that stands for its last one and the first of the next."""
    units = [_between(stage, after) for stage, after in pairwise(stages)]
    return nn.ModuleDict({str(index): unit for index, unit in enumerate(units) if unit is not None})


def _between(stage: nn.Module, after: nn.Module) -> ConvNormAct | None:
    last, first = _last_unit(stage), _first_residual(after)
    return None if last is None or first.use_residual else merged_unit(last, first.expand_1x1)


def _last_unit(stage: nn.Module) -> ConvNormAct | None:
    """The unit that makes a stage's output; None where that is a sum."""
    if isinstance(stage, MobileViTV2Block):
        return stage.conv_projection
    last = cast(InvertedResidual, cast(MobileNetLayer, stage).layer[-1])
    return None if last.use_residual else last.reduce_1x1


def _first_residual(stage: nn.Module) -> InvertedResidual:
    return stage.downsampling_layer if isinstance(stage, MobileViTV2Block) else cast(MobileNetLayer, stage).layer[0]  # type: ignore[return-value]


class MergedTrunk(MobileViTV2Model):
    """A classifier's trunk; `merged[i]` stands for the end of stage i + 1 and the beginning of the next.

    Its stages take `expand`, a unit in place of their first expansion, and leave out their last unit with `whole=False`.
    """

    merged: nn.ModuleDict

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[Any, ...]:
        """The pooled features; with hidden states, or hooks in the encoder, as `MobileViTV2Model` does it."""
        whole = wants(output_hidden_states, self.config.output_hidden_states) or self._watched()
        if whole or not wants(return_dict, self.config.return_dict):
            return super().forward(pixel_values, output_hidden_states, return_dict)
        x = self.conv_stem(check_pixel_values(pixel_values, self.config.num_channels))
        expand: nn.Module | None = None
        merged = dict(self.merged.items())
        last: Any
        *stages, last = self.encoder.layer
        for index, stage in enumerate(stages):
            after = merged.get(str(index))
            x = stage(x, expand=expand, whole=after is None)
            expand = after
        return BaseModelOutputWithPoolingAndNoAttention(pooler_output=last.pooled(x, expand=expand))

    def _watched(self) -> bool:
        """Whether a hook waits for something in the encoder, which the merged way would leave out or give other values."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.encoder.modules())
