"""Which of several processes this one is, as torchrun and accelerate tell it before anything else is up; and what they share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def world_size() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process is the one that writes and tells."""
    return int(os.environ.get("RANK", "0")) == 0


def with_common_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norms that take their statistics over the pictures of all processes, where there are several GPUs."""
    from torch import nn

    if world_size() == 1 or device.type != "cuda":  # torch has no such norms for the CPU
        return model
    common: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return common
