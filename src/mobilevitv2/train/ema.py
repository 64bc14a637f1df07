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
        self._model = model
        self._pairs: tuple[_Pair, _Pair] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's state after an optimiser step."""
        self.steps += 1
        share = max(self.momentum, 9 / (10 + self.steps)) if self.warmup else self.momentum
        if self._pairs is None:
            # Found once: walking the module tree at every step would take longer than the arithmetic. And only now: wrapping a
            # model for several processes can give its parameters new memory.
            self._pairs = _pair(self.module, self._model, floating=True), _pair(self.module, self._model, floating=False)
        floats, counters = self._pairs
        torch._foreach_lerp_(*floats, share)
        if counters[0]:
            torch._foreach_copy_(*counters)


_Pair = tuple[list[Tensor], list[Tensor]]


def _pair(average: nn.Module, model: nn.Module, *, floating: bool) -> _Pair:
    """Tensors of the average, and those of the model in the same order."""
    found = [[t for t in (*m.parameters(), *m.buffers()) if t.is_floating_point() == floating] for m in (average, model)]
    return found[0], found[1]
