"""Which activation a callable is, for forms that compute it themselves."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn import functional as F

from mobilevitv2.blocks import Activation

Kind = Literal["none", "silu", "relu", "other"]


def kind_of(activation: Activation | None) -> Kind:
    """By what it is, not by its name in the configuration, which may be a function of the user's."""
    if activation is None:
        return "none"
    if activation is F.silu or type(activation).__name__ in ("SiLU", "SiLUActivation"):
        return "silu"
    if activation is F.relu or type(activation) is nn.ReLU:
        return "relu"
    return "other"
