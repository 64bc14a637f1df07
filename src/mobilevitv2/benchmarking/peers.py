"""transformers' and timm's models with the weights of one of ours, and random weights whose values stay ordinary numbers.

The only place of the package that imports the peers; nothing but benchmarks imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilevitv2.errors import ConfigurationError, MissingDependency, WeightsMismatch
from mobilevitv2.weights.writing import convert_state_dict

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel

WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""That timm has by name."""
V1 = {
    # name: (hidden_sizes, neck_hidden_sizes, expand_ratio) in transformers' configuration
    "XXS": ([64, 80, 96], [16, 16, 24, 48, 64, 80, 320], 2.0),
    "XS": ([96, 120, 144], [16, 32, 48, 64, 80, 96, 384], 4.0),
    "S": ([144, 192, 240], [16, 32, 64, 96, 128, 160, 640], 4.0),
}
V1_BESIDE = ((0.5, "XXS"), (0.75, "XS"))
"""Up to which width of ours which one is nearest in accuracy; S above."""
SETTLING_SIDE, SETTLING_BATCH = 128, 8


class TimmClassifier(nn.Module):
    """timm's own mobilevitv2 of a width behind our interface, with random weights."""

    def __init__(self, width: float, num_labels: int) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise MissingDependency("timm is not installed: pip install timm") from error
        if width not in WIDTHS:
            raise ConfigurationError(
                f"timm has no mobilevitv2 of width {width:g}; it has {', '.join(f'{each:g}' for each in WIDTHS)}."
            )
        self.network: nn.Module = timm.create_model(f"mobilevitv2_{round(100 * width):03d}", num_classes=num_labels)
        self.width = width

    def forward(self, pixel_values: Tensor) -> Any:
        """(B, 3, H, W) -> an output with `logits` (B, classes)."""
        from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

        return ImageClassifierOutputWithNoAttention(logits=self.network(pixel_values))


def build_peer(name: str, model: MobileViTV2PreTrainedModel) -> nn.Module:
    """A peer's model beside one of ours, in evaluation mode and float32, with our weights; "v1" has random ones.

    Args:
        name: "transformers", "timm" or "v1".
        model: of a task that the peer has; plain.

    Raises:
        MissingDependency: the peer is not installed. ConfigurationError: it has no such model.
        WeightsMismatch: its model does not take our weights.
    """
    if name == "v1":
        torch.manual_seed(0)
        return settle(v1_classifier(v1_size(model.config.width_multiplier), model.config.num_labels))
    return (_timm(model) if name == "timm" else _transformers(model)).eval()


def v1_size(width: float) -> str:
    """The version 1 of nearest top-1 in Apple's model zoo (ImageNet-1k): XXS 69.0 for 70.2 %, XS 74.7 for 75.6, S 78.3 for 78.1."""
    return next((size for most, size in V1_BESIDE if width <= most), "S")


def v1_classifier(size: str, num_labels: int) -> nn.Module:
    """transformers' MobileViT, "XXS", "XS" or "S", with random weights."""
    from transformers import MobileViTConfig, MobileViTForImageClassification

    hidden, neck, expand = V1[size]
    config = MobileViTConfig(hidden_sizes=hidden, neck_hidden_sizes=neck, expand_ratio=expand, num_labels=num_labels)
    model: nn.Module = MobileViTForImageClassification(config)
    return model


@torch.no_grad()
def settle(model: nn.Module) -> nn.Module:
    """Random weights with running statistics that fit them, in place; in evaluation mode then.

    With a fresh model's statistics values shrink from layer to layer until they are denormal numbers, and a CPU takes ten times as
    long.
    """
    device = next(model.parameters()).device
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of the one batch below
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    model.train()(torch.rand(SETTLING_BATCH, 3, SETTLING_SIDE, SETTLING_SIDE, device=device))
    return model.eval()


def _timm(model: MobileViTV2PreTrainedModel) -> nn.Module:
    peer = TimmClassifier(model.config.width_multiplier, model.config.num_labels)
    _load(peer.network, convert_state_dict(model.state_dict(), to="timm"), "timm")
    return peer


def _transformers(model: MobileViTV2PreTrainedModel) -> nn.Module:
    from transformers import MobileViTV2Config, MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation

    segmenter = model.task == "segment"
    if segmenter and model.config.segmentation_head != "deeplabv3":
        raise ConfigurationError(f"transformers has no {model.config.segmentation_head!r} head; its segmenter is DeepLabV3.")
    kind = MobileViTV2ForSemanticSegmentation if segmenter else MobileViTV2ForImageClassification
    peer: nn.Module = kind(MobileViTV2Config.from_dict(model.config.to_dict()))
    _load(peer, {key: value for key, value in model.state_dict().items() if not key.startswith("auxiliary")}, "transformers")
    return peer


def _load(peer: nn.Module, state: dict[str, Tensor], name: str) -> None:
    try:
        peer.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsMismatch(f"{name}'s model does not take these weights ({reason}).") from error
