"""The running average of the weights, which is what gets evaluated and shipped."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's whole state, buffers of the norms included, after every optimiser step.

    average = (1 - momentum) * average + momentum * model, as in the official code. With `warmup` the momentum starts at 1 / 10 of the
    steps taken and falls to its value, so that short runs are not averaged with their random start.

    Args:
        model: what to average; the average starts as its copy, on the same device.
        momentum: share of the new weights.
        warmup: larger shares at the start.
    """

    def __init__(self, model: nn.Module, *, momentum: float, warmup: bool = False) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.momentum, self.warmup, self.steps = momentum, warmup, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's state after an optimiser step."""
        self.steps += 1
        share = max(self.momentum, 9 / (10 + self.steps)) if self.warmup else self.momentum
        ours, theirs = _floats(self.module), _floats(model)
        torch._foreach_lerp_(ours, theirs, share)
        torch._foreach_copy_(_integers(self.module), _integers(model))


def _floats(model: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def _integers(model: nn.Module) -> list[Tensor]:
    return [t for t in model.buffers() if not t.is_floating_point()]
