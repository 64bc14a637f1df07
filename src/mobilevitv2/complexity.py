"""What a model costs: its parameters, and the multiply-adds of its convolutions and matrix products.

Activations, norms and sums are not counted, as in the paper's tables.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilevitv2.blocks import SeparableSelfAttention
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel


FLOPS = 2
"""Floating-point operations of a multiply-add, which is what torch counts."""


@dataclass(frozen=True)
class OperationCount:
    """Multiply-adds for one picture.

    Attributes:
        published: of the official formulation, which projects every token to a key; the number of the published tables.
        executed: of this package's formulation, which sums the tokens first and projects the sum.
    """

    published: int
    executed: int


def count_parameters(model: nn.Module) -> int:
    """Trainable and frozen numbers of a model; the running statistics of batch normalisation are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_operations(model: MobileViTV2PreTrainedModel, *, height: int | None = None, width: int | None = None) -> OperationCount:
    """Multiply-adds of one forward pass for one picture, counted on shapes alone: no arithmetic is done.

    Args:
        model: any model of this package; it is left as it is.
        height: of the picture, in pixels; `config.image_size` where it is not given.
        width: of the picture, in pixels; `config.image_size` where it is not given.

    Raises:
        ConfigurationError: a side that is no positive number.
    """
    configured_height, configured_width = model.config.input_size
    size = (_side("height", height, configured_height), _side("width", width, configured_width))
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    attentions = [_Attention(module, counter) for module in shadow.modules() if isinstance(module, SeparableSelfAttention)]
    with counter, torch.no_grad():
        shadow(torch.empty(1, model.config.num_channels, *size, device="meta"))
    executed = counter.get_total_flops() // FLOPS
    saved = sum(attention.published - attention.executed for attention in attentions)
    return OperationCount(published=executed + saved, executed=executed)


class _Attention:
    """What one attention layer spends, told by hooks, and what it would in the official code."""

    def __init__(self, module: SeparableSelfAttention, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.published = self.executed = 0
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.executed -= self.counter.get_total_flops() // FLOPS

    def _leave(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.executed += self.counter.get_total_flops() // FLOPS
        _, dim, pixels, patches = inputs[0].shape
        # Of every token one query, D keys and D values, and D numbers of the projected result.
        self.published += (1 + 3 * dim) * dim * pixels * patches


def _side(name: str, value: int | None, configured: int) -> int:
    if value is None:
        return configured
    if value < 1:
        raise ConfigurationError(f"{name}={value} is no size of a picture; give a number of pixels of at least 1.")
    return value
