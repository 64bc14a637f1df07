"""transformers', timm's and our classifier with the same weights, and running statistics that fit them.

Freshly initialised peers do not compare: with transformers' start and untouched statistics values shrink from layer to layer until
they are denormal numbers, and a CPU takes ten times as long.
"""

from __future__ import annotations

import torch
from peers import build
from torch import Tensor, nn

from mobilevitv2.weights.writing import convert_state_dict


@torch.no_grad()
def classifiers(width: float, *, num_labels: int = 1000, seed: int = 0) -> dict[str, nn.Module]:
    """ "ours", "transformers" and "timm", in evaluation mode; each gives an output with `logits`."""
    torch.manual_seed(seed)
    ours = build("ours", width, num_labels)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of the one batch below
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    ours.train()(torch.rand(8, 3, 128, 128))
    models = {"ours": ours.eval(), "transformers": build("transformers", width, num_labels).eval()}
    models["transformers"].load_state_dict(ours.state_dict())
    timm = build("timm", width, num_labels).eval()
    timm.network.load_state_dict(convert_state_dict(ours.state_dict(), to="timm"))  # type: ignore[union-attr, operator]
    return {**models, "timm": timm}


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((found.float() - exact).abs().max() / exact.abs().max()).item()
