"""The folded form: an equal model with fewer operations, in plain torch.

Everything here is algebra on weights, done once, in float64:

- batch normalisation y = (z - mean) / sqrt(var + eps) * scale + shift becomes part of the convolution before it;
- the scale and shift of a group normalisation become part of the 1x1 convolution behind it, W (scale * n + shift) + b =
  (W * scale) n + (W shift + b). Between the two lies nothing, or a permutation of pixels; there is no padding that would need a
  value for the shift;
- the 1 + 2 D rows of the query-key-value projection become three convolutions, each of which the forward pass uses whole;
- dropouts, and the head that only training uses, go.

What is left of a group normalisation, (x - mean) / sqrt(var + eps), depends on the picture and stays.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from mobilevitv2.backbone import MobileViTV2PreTrainedModel
from mobilevitv2.blocks import ConvNormAct, MobileViTV2Block, SeparableSelfAttention, TransformerLayer
from mobilevitv2.errors import ConfigurationError

Model = TypeVar("Model", bound=MobileViTV2PreTrainedModel)


@dataclass(frozen=True)
class Folding:
    """What `fold` did; the folded model carries it as `folding`.

    Attributes:
        batch_norms: batch normalisations that became part of a convolution.
        group_norms: group normalisations whose scale and shift became part of a convolution.
        attentions: attention layers with separate query, key and value weights.
        dropouts: dropouts taken out.
    """

    batch_norms: int
    group_norms: int
    attentions: int
    dropouts: int


def fold(model: Model) -> Model:
    """An equal model with fewer operations, in plain torch operations: it exports, compiles, copies and pickles like the original.

    The copy has the class, the configuration, `forward` and outputs of `model`; only loss terms that exist in training alone are
    gone. Equal up to rounding: about 1e-6 of the largest output in float32. Weights of 16 bits are folded in float64 and rounded
    once; folding the float32 model and casting then is more exact. The copy cannot be trained or saved: its weights have other
    names and shapes. Keep the original for that.

    Args:
        model: any model of this package, in evaluation mode; it is left as it is. A folded one is copied.

    Raises:
        ConfigurationError: another object than a model of this package, or a model in training mode.
    """
    check_model(model)
    folded = copy.deepcopy(model)
    if is_folded(model):
        return folded
    dropouts = _remove_training_parts(folded)
    with torch.no_grad():
        units = [module for module in folded.modules() if isinstance(module, ConvNormAct) and module.normalization is not None]
        for unit in units:
            _fold_batch_norm(unit)
        layers = [module for module in folded.modules() if isinstance(module, TransformerLayer)]
        for layer in layers:
            _fold_transformer_layer(layer)
        blocks = [module for module in folded.modules() if isinstance(module, MobileViTV2Block)]
        for block in blocks:
            block.layernorm = _fold_group_norm(block.layernorm, block.conv_projection)
    folded.requires_grad_(False)
    folded.folding = Folding(len(units), 2 * len(layers) + len(blocks), len(layers), dropouts)
    folded.save_pretrained = _refuse_to_save  # type: ignore[method-assign]
    return folded


def is_folded(model: nn.Module) -> bool:
    """Whether `fold` made this model."""
    return isinstance(getattr(model, "folding", None), Folding)


def check_model(model: object) -> None:
    """Refuse what cannot be folded.

    Raises:
        ConfigurationError: another object than a model of this package, or a model in training mode.
    """
    if not isinstance(model, MobileViTV2PreTrainedModel):
        raise ConfigurationError(
            f"model is a {type(model).__module__}.{type(model).__qualname__}; the fast forms are made from models of this package "
            "(MobileViTV2ForImageClassification.from_pretrained(...) and its kin read checkpoints of transformers and timm)."
        )
    if model.training:
        raise ConfigurationError("model is in training mode, where batch norms depend on the batch; call model.eval() first.")


class FoldedAttention(SeparableSelfAttention):
    """Separable self-attention with its query, key and value weights apart.

    Attributes:
        query, key, value: 1x1 convolutions from D channels to 1, D and D.
        out_proj: as in the plain form.
    """

    def __init__(self, plain: SeparableSelfAttention) -> None:
        nn.Module.__init__(self)  # not the plain form's, which would build and fill weights only to drop them
        self.dim = plain.dim
        rows = plain.qkv_proj.convolution
        self.query = _rows(rows, 0, 1)
        self.key = _rows(rows, 1, 1 + self.dim)
        self.value = _rows(rows, 1 + self.dim, 1 + 2 * self.dim)
        self.out_proj = plain.out_proj
        self.attn_dropout = plain.attn_dropout  # taken out by now

    def _query_and_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.softmax(_at_least_float32(self.query(x)), dim=-1), self.value(x)

    def _context_vector(self, x: Tensor, scores: Tensor) -> Tensor:
        weighted = (_at_least_float32(x) * scores).sum(dim=-1, keepdim=True)  # (B, D, P, 1)
        context: Tensor = self.key(weighted.to(x.dtype))  # the scores sum to one, so the bias is whole
        return context


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _fold_transformer_layer(layer: TransformerLayer) -> None:
    layer.layernorm_before = _fold_group_norm(layer.layernorm_before, layer.attention.qkv_proj)
    layer.layernorm_after = _fold_group_norm(layer.layernorm_after, layer.ffn.conv1)
    layer.attention = FoldedAttention(layer.attention)


def _fold_batch_norm(unit: ConvNormAct) -> None:
    """Make the batch norm behind a convolution part of it."""
    norm, convolution = unit.normalization, unit.convolution
    assert norm is not None and norm.running_mean is not None and norm.running_var is not None  # built so in blocks.py
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)  # (out,)
    bias = 0.0 if convolution.bias is None else convolution.bias.double()
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    _set_weights(convolution, convolution.weight.double() * scale[:, None, None, None], shift)
    unit.normalization = None


def _fold_group_norm(norm: nn.GroupNorm, unit: ConvNormAct) -> nn.GroupNorm:
    """Make the norm's scale and shift part of the 1x1 convolution behind it; what is left of the norm has neither."""
    convolution = unit.convolution
    assert convolution.kernel_size == (1, 1) and convolution.groups == 1
    weight = convolution.weight.double()  # (out, D, 1, 1)
    bias = 0.0 if convolution.bias is None else convolution.bias.double()
    shift = bias + weight[:, :, 0, 0] @ norm.bias.double()
    _set_weights(convolution, weight * norm.weight.double()[:, None, None], shift)
    return nn.GroupNorm(norm.num_groups, norm.num_channels, eps=norm.eps, affine=False).eval()


def _set_weights(convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    dtype = convolution.weight.dtype
    convolution.weight = nn.Parameter(weight.to(dtype).contiguous())
    convolution.bias = nn.Parameter(bias.to(dtype))


def _rows(convolution: nn.Conv2d, first: int, last: int) -> nn.Conv2d:
    """The 1x1 convolution to channels first..last - 1 of another."""
    assert convolution.bias is not None  # the projection has one
    with torch.device("meta"):
        part = nn.Conv2d(convolution.in_channels, last - first, 1)
    part.weight = nn.Parameter(convolution.weight[first:last].clone())
    part.bias = nn.Parameter(convolution.bias[first:last].clone())
    return part.eval()


def _remove_training_parts(model: nn.Module) -> int:
    """Take out dropouts and the auxiliary head; the number of dropouts."""
    count = 0
    for module in list(model.modules()):
        if isinstance(getattr(module, "auxiliary_head", None), nn.Module):
            del module.auxiliary_head
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout | nn.Dropout2d):
                setattr(module, name, nn.Identity().eval())
                count += 1
    return count


def _refuse_to_save(save_directory: object, *args: object, **kwargs: object) -> None:
    raise ConfigurationError(
        "a folded model has no weights that from_pretrained could read; save the model it was made from (or pickle this one)."
    )
