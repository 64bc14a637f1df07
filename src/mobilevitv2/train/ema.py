"""The running average of the weights, which is what gets evaluated and shipped."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of a model's whole state, buffers of the norms included, after every optimiser step.

    average = (1 - momentum) * average + momentum * model, as in the official code. With `warmup` the momentum at step n is
    9 / (10 + n) as long as that is more: the average of about the last tenth of the steps, so that short runs are not averaged with
    their random start.

    Args:
        model: what to average; the average starts as its copy, on the same device. The model must stay on that device.
        momentum: share of the new weights.
        warmup: larger shares at the start.
    """

    def __init__(self, model: nn.Module, *, momentum: float, warmup: bool = False) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.momentum, self.warmup, self.steps = momentum, warmup, 0
        # Found once: walking the module tree at every step would take longer than the arithmetic.
        self._floats = _tensors(self.module, floating=True), _tensors(model, floating=True)
        self._counters = _tensors(self.module, floating=False), _tensors(model, floating=False)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's state after an optimiser step."""
        self.steps += 1
        share = max(self.momentum, 9 / (10 + self.steps)) if self.warmup else self.momentum
        torch._foreach_lerp_(*self._floats, share)
        if self._counters[0]:
            torch._foreach_copy_(*self._counters)


def _tensors(model: nn.Module, *, floating: bool) -> list[Tensor]:
    return [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() == floating]
