"""The peers with random weights, under one interface: a module that takes `pixel_values` and gives an output with `logits`."""

from __future__ import annotations

from torch import nn

from mobilevitv2.benchmarking.peers import TimmClassifier


def build(name: str, width: float, num_labels: int) -> nn.Module:
    """ "ours", "timm" or "transformers"."""
    if name == "timm":
        return TimmClassifier(width, num_labels)
    if name == "transformers":
        from transformers import MobileViTV2Config, MobileViTV2ForImageClassification
    else:
        from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification
    return MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=num_labels))
