"""The peers, under one interface: a module that takes `pixel_values` and gives an output with `logits`."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class TimmClassifier(nn.Module):
    """timm's own mobilevitv2 of a width, with random weights."""

    def __init__(self, width: float, num_labels: int) -> None:
        super().__init__()
        import timm

        self.network = timm.create_model(f"mobilevitv2_{round(100 * width):03d}", num_classes=num_labels)
        self.width = width

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        return ImageClassifierOutputWithNoAttention(logits=self.network(pixel_values))


def build(name: str, width: float, num_labels: int) -> nn.Module:
    """ "ours", "timm" or "transformers"."""
    if name == "timm":
        return TimmClassifier(width, num_labels)
    if name == "transformers":
        from transformers import MobileViTV2Config, MobileViTV2ForImageClassification
    else:
        from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification
    return MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=num_labels))
