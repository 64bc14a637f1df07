"""transformers', timm's and our classifier with the same random weights, and running statistics that fit them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification
from mobilevitv2.benchmarking.peers import build_peer, settle


def classifiers(width: float, *, num_labels: int = 1000, seed: int = 0) -> dict[str, nn.Module]:
    """ "ours", "transformers" and "timm", in evaluation mode; each gives an output with `logits`."""
    torch.manual_seed(seed)
    ours: Any = settle(MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=num_labels)))
    return {"ours": ours, **{name: build_peer(name, ours) for name in ("transformers", "timm")}}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((found.float() - exact).abs().max() / exact.abs().max()).item()
