"""The optimiser and the learning rate of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mobilevitv2.loading import is_trunk
from mobilevitv2.train.settings import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe, width: float) -> torch.optim.Optimizer:
    """AdamW or SGD; one-dimensional parameters (norms, biases) do not decay unless the recipe says so, and the trunk may learn at a
    rate of its own."""
    rate, decay = recipe.at_width(recipe.learning_rate, width), recipe.at_width(recipe.weight_decay, width)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    trunk = [parameter for name, parameter in named if recipe.trunk_rate != 1 and is_trunk(name)]
    slow = set(map(id, trunk))
    groups: list[dict[str, Any]] = _groups([p for _, p in named if id(p) not in slow], rate, decay, recipe)
    if trunk:
        groups += _groups(trunk, rate * recipe.trunk_rate, decay, recipe)
    fused = all(parameter.is_cuda for _, parameter in named)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=fused)


def _groups(parameters: list[nn.Parameter], rate: float, decay: float, recipe: Recipe) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim > 1], "lr": rate, "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": decay if recipe.decay_all else 0.0},
    ]


def learning_rate_factor(recipe: Recipe, width: float, steps_per_epoch: int) -> Callable[[int], float]:
    """Share of the peak rate at each optimiser step: linear warm-up, then cosine down to the lowest rate, or constant."""
    peak, lowest = recipe.at_width(recipe.learning_rate, width), recipe.at_width(recipe.min_learning_rate, width)
    total = recipe.epochs * steps_per_epoch
    warmup = min(recipe.warmup_steps, total // 4)  # a run shorter than its warm-up would never reach its rate

    def factor(step: int) -> float:
        if step < warmup:
            start = recipe.warmup_learning_rate / peak
            return start + (1 - start) * step / warmup
        if recipe.schedule == "constant":
            return 1.0
        if recipe.schedule_per_epoch:
            progress = (step // steps_per_epoch) / recipe.epochs
        else:
            progress = (step - warmup) / max(1, total - warmup)
        return (lowest + (peak - lowest) * (1 + math.cos(math.pi * min(1.0, progress))) / 2) / peak

    return factor
