"""What a model costs: its parameters, and the multiply-adds of its convolutions and matrix products.

Activations, norms and sums are not counted, as in the paper's tables.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilevitv2.blocks import SeparableSelfAttention
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel


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
    skipped = [0]
    for module in shadow.modules():
        if isinstance(module, SeparableSelfAttention):
            module.register_forward_pre_hook(_add_skipped(skipped))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, model.config.num_channels, *size, device="meta"))
    executed = counter.get_total_flops() // 2  # a multiply-add is two floating-point operations
    return OperationCount(published=executed + skipped[0], executed=executed)


def _add_skipped(skipped: list[int]) -> Any:
    """A hook that adds what the official code spends on the keys of all tokens beyond the one projected sum."""

    def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
        _, dim, pixels, patches = inputs[0].shape
        skipped[0] += dim * dim * pixels * (patches - 1)

    return hook


def _side(name: str, value: int | None, configured: int) -> int:
    if value is None:
        return configured
    if value < 1:
        raise ConfigurationError(f"{name}={value} is no size of a picture; give a number of pixels of at least 1.")
    return value
