"""Small models whose every parameter shows in the output, and inputs for them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mobilevitv2.configuration import MobileViTV2Config

AnyModule = TypeVar("AnyModule", bound=nn.Module)

WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


def small_config(**options: Any) -> MobileViTV2Config:
    """The narrowest released width with one transformer layer a stage and ten classes."""
    defaults: dict[str, Any] = {
        "width_multiplier": 0.5,
        "n_attn_blocks": [1, 1, 1],
        "num_labels": 10,
        "aspp_out_channels": 32,
        "psp_out_channels": 32,
    }
    return MobileViTV2Config(**{**defaults, **options})


def pictures(batch: int = 1, channels: int = 3, height: int = 64, width: int | None = None, *, seed: int = 0) -> Tensor:
    """Random pictures in 0..1."""
    return torch.rand(batch, channels, height, width or height, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomise(model: AnyModule, *, seed: int = 0) -> AnyModule:
    """Random norms, running statistics and biases, in evaluation mode: at their start (0 and 1) they would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            uniform(module.running_mean, -0.2, 0.2)
            uniform(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            uniform(module.weight, 0.5, 1.5)
        if isinstance(getattr(module, "bias", None), Tensor):
            uniform(module.bias, -0.2, 0.2)
    return model.eval()


def checkpoint_activations(model: Any) -> None:
    """Gradient checkpointing on, under its newer name where transformers has it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
