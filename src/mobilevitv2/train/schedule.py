"""The optimiser and the learning rate of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from mobilevitv2.train.recipe import ClassificationRecipe


def build_optimizer(model: nn.Module, recipe: ClassificationRecipe, width: float) -> torch.optim.Optimizer:
    """AdamW or SGD; one-dimensional parameters (norms, biases) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.at_width(recipe.weight_decay, width)},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = recipe.at_width(recipe.learning_rate, width)
    fused = all(p.is_cuda for p in parameters)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=fused)


def learning_rate_factor(recipe: ClassificationRecipe, width: float, steps_per_epoch: int) -> Callable[[int], float]:
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
