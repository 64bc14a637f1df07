"""Quantisation-aware fine-tuning: a network that rounds in training where its int8 file will round, so that its weights settle so.

What is rounded is what `mobilevitv2.export.quantise` rounds, in the same way: what convolutions and the additions of inverted
residuals read, to 8 bits on one grid each, found on pictures as the export finds it; weights by output channel to 7 bits, with the
biases making up for the shift of the means; for ONNX Runtime also what convolutions and the sigmoids of SiLU write. For OpenVINO
SiLU is the hard swish or GELU of the file. Attention's key, softmax, sums over tokens, norms, the residual stream of the
transformers and the classifier's matrix stay float. Gradients pass a rounding as if it were not there, and stop where a value was
cut off (Jacob and others, arXiv 1712.05877; Krishnamoorthi, arXiv 1806.08342).

Batch norms are folded into the convolutions with the statistics that they came with, and those stay as they are: what is rounded is
then the weight that the file holds, and nothing depends on the batch ("static folding", which Nagel and others, arXiv 2106.08295,
section 5.2.1, recommend). Scale and shift of norms are still learned. The parameters keep their names: checkpoints of such a
network are ordinary ones, and `without_rounding` gives the ordinary network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.backbone import MobileViTV2PreTrainedModel
from mobilevitv2.blocks import Activation, ConvNormAct, InvertedResidual, MobileViTV2Block, SeparableSelfAttention, TransformerLayer
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.quantise.matching import FOR_LINES, LITTLE_VARIANCE, MAP_AXES, SLOPES
from mobilevitv2.export.quantise.plan import Dialect, silu_functions
from mobilevitv2.export.quantise.silu import FOR_FORMS, Form, fitted_forms
from mobilevitv2.train.rounding import Rounded, RoundedRows

logger = logging.getLogger(__name__)

PICTURES = 64
"""To find the grids on."""
BATCH = 8


class RoundedUnit(ConvNormAct):
    """A ConvNormAct as its int8 form calculates; the norms before and behind it are part of the weights."""

    def __init__(self, unit: ConvNormAct, dialect: Dialect, before: nn.GroupNorm | None) -> None:
        nn.Module.__init__(self)
        self.convolution, self.normalization, self.activation = unit.convolution, unit.normalization, unit.activation
        self.reads, self.rows = Rounded(), RoundedRows()
        self.writes = Rounded() if dialect == "onnxruntime" else None
        self._before = (before,)  # in a tuple: it is registered where it was
        if unit.activation is not None and _is_silu(unit.activation):
            self.activation = RoundedSilu() if dialect == "onnxruntime" else CheapSilu()
        self.line = Line()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with the norms inside, float."""
        weight, bias, norm = self.convolution.weight, self.convolution.bias, self.normalization
        weight, bias = _with_norm_before(weight, bias, self._before[0])
        if norm is None:
            return weight, weight.new_zeros(len(weight)) if bias is None else bias
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        return weight * scale[:, None, None, None], shift if bias is None else shift + bias * scale

    def forward(self, x: Tensor) -> Tensor:
        """As ConvNormAct."""
        convolution = self.convolution
        weight, bias = self.rows(*self.folded())
        x = F.conv2d(self.reads(x), weight, bias, convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        x = self.line(x)
        if self.writes is not None:
            x = self.writes(F.relu(x) if self.activation is F.relu else x)
        return x if self.activation is None else self.activation(x)


class Line(nn.Module):
    """What makes up, by channel, for other functions than SiLU before a convolution; nothing where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.matching = False
        self.values: Tensor | None
        self.register_buffer("values", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.matching:
            plain, changed = x.chunk(2)
            self.values = _fitted_line(changed, plain)
            return torch.cat([plain, changed * self.values[:1] + self.values[1:]])
        return x if self.values is None else x * self.values[:1] + self.values[1:]


class CheapSilu(nn.Module):
    """SiLU as OpenVINO's file has it, a hard swish or GELU of c x over c; exact until a form was fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Rounded()
        self.form: Form | None = None
        self.matching = False

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.form is None:
            return F.silu(self.seen(x))
        if self.matching:
            plain, changed = x.chunk(2)
            return torch.cat([F.silu(plain), _calculated(self.form, changed)])
        return _calculated(self.form, x)


def _calculated(form: Form, x: Tensor) -> Tensor:
    function = F.hardswish if form.function == "hardswish" else F.gelu
    return function(form.factor * x) / form.factor


class RoundedSilu(nn.Module):
    """SiLU with a rounded sigmoid; the product is rounded by whoever reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Rounded()

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        out: Tensor = x * self.gate(torch.sigmoid(x))
        return out


class RoundedResidual(InvertedResidual):
    """An inverted residual whose addition reads rounded maps."""

    def __init__(self, block: InvertedResidual) -> None:
        nn.Module.__init__(self)
        self.use_residual = block.use_residual
        self.expand_1x1, self.conv_3x3, self.reduce_1x1 = block.expand_1x1, block.conv_3x3, block.reduce_1x1
        self.left, self.right = Rounded(), Rounded()

    def forward(self, x: Tensor) -> Tensor:
        """As InvertedResidual."""
        y: Tensor = self.reduce_1x1(self.conv_3x3(self.expand_1x1(x)))
        if not self.use_residual:
            return y
        out: Tensor = self.left(x) + self.right(y)
        return out


class RoundedAttention(SeparableSelfAttention):
    """Attention whose query and value read rounded tokens; the key, the softmax and the sum over tokens stay float."""

    def __init__(self, plain: SeparableSelfAttention, dialect: Dialect, before: nn.GroupNorm) -> None:
        nn.Module.__init__(self)
        self.dim, self.attn_dropout = plain.dim, plain.attn_dropout
        self.qkv_proj, self.out_proj = plain.qkv_proj, plain.out_proj
        self.reads, self.rows, self.line, self.key_line = Rounded(), RoundedRows(), Line(), Line()
        writes = dialect == "onnxruntime"
        self.query_writes: nn.Module = Rounded() if writes else nn.Identity()
        self.value_writes: nn.Module = Rounded() if writes else nn.Identity()
        self._before = (before,)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of value and query, in this order."""
        weight, bias = self._all()
        first = 1 + self.dim
        return torch.cat([weight[first:], weight[:1]]), torch.cat([bias[first:], bias[:1]])

    def _all(self) -> tuple[Tensor, Tensor]:
        weight, bias = _with_norm_before(self.qkv_proj.convolution.weight, self.qkv_proj.convolution.bias, self._before[0])
        assert bias is not None
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        both = self.line(F.conv2d(self.reads(x), *self.rows(*self.folded())))
        value = self.value_writes(F.relu(both[:, : self.dim]))
        scores = self.attn_dropout(torch.softmax(self.query_writes(both[:, self.dim :]).float(), dim=-1))
        weight, bias = (part[1 : 1 + self.dim] for part in self._all())
        weighted = (x.float() * scores).sum(dim=-1, keepdim=True)
        context = self.key_line(F.conv2d(weighted, weight) + bias[:, None, None] * scores.sum(dim=-1, keepdim=True))
        out: Tensor = self.out_proj(value * context.to(value.dtype))
        return out


class BareNorm(nn.GroupNorm):
    """A group norm whose scale and shift are in the convolution behind it."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.num_channels, self.eps, self.affine = norm.num_groups, norm.num_channels, norm.eps, norm.affine
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        return F.group_norm(x, self.num_groups, eps=self.eps)


def _with_norm_before(weight: Tensor, bias: Tensor | None, norm: nn.GroupNorm | None) -> tuple[Tensor, Tensor | None]:
    if norm is None:
        return weight, bias
    shift = weight[:, :, 0, 0] @ norm.bias
    return weight * norm.weight[:, None, None], shift if bias is None else bias + shift


def _is_silu(activation: Activation) -> bool:
    points = torch.linspace(-8, 8, 33)
    return bool(torch.equal(activation(points), F.silu(points)))


# ---- to and fro ------------------------------------------------------------------------------------------------------------------


def quantisation_aware(model: nn.Module, pictures: Sequence[Tensor], dialect: Dialect) -> nn.Module:
    """The model with rounding inside, ready for training; its modules take part in it and it must not be used any more.

    Args:
        model: of this package, trained.
        pictures: (3, H, W) each, all of one size, as the image processor gives them: grids are found on them.
        dialect: of the runtime whose int8 file is wanted: "openvino" or "onnxruntime".

    Raises:
        ConfigurationError: a model that is not of this package.
    """
    if not isinstance(model, MobileViTV2PreTrainedModel):
        raise ConfigurationError(
            f"quantise_for={dialect} takes a model of this package, not a {type(model).__name__}; set quantise_for=none for it."
        )
    _replace(model, dialect)
    training = model.training
    model.eval()
    _find_grids(model, pictures, silu_functions(dialect, model.task))
    model.train(training)
    places = sum(isinstance(module, Rounded) and module.grid is not None for module in model.modules())
    logger.info("rounding as %s's int8 files do, at %d places; grids from %d pictures", dialect, places, len(pictures))
    return model


def without_rounding(model: nn.Module) -> nn.Module:
    """The ordinary network with the same parameters; itself, where nothing rounds."""
    if not any(isinstance(module, Rounded) for module in model.modules()):
        return model
    assert isinstance(model, MobileViTV2PreTrainedModel)
    plain: nn.Module = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    return plain.train(model.training).to(next(model.parameters()).device)


def _replace(model: nn.Module, dialect: Dialect) -> None:
    before: dict[nn.Module, nn.GroupNorm] = {}
    for module in list(model.modules()):
        if isinstance(module, TransformerLayer):
            module.layernorm_before, module.layernorm_after = BareNorm(module.layernorm_before), BareNorm(module.layernorm_after)
            before[module.attention], before[module.ffn.conv1] = module.layernorm_before, module.layernorm_after
        if isinstance(module, MobileViTV2Block):
            module.layernorm = BareNorm(module.layernorm)
            before[module.conv_projection] = module.layernorm
    for parent, name, child in _children(model):
        if type(child) is ConvNormAct and name not in ("qkv_proj", "auxiliary_head"):
            _put(parent, name, RoundedUnit(child, dialect, before.get(child)))
        elif type(child) is SeparableSelfAttention:
            _put(parent, name, RoundedAttention(child, dialect, before[child]))
        elif type(child) is InvertedResidual:
            _put(parent, name, RoundedResidual(child))


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Innermost first, so that a block takes over what its parts have become."""
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    return reversed(found)


def _put(parent: nn.Module, name: str, child: nn.Module) -> None:
    parent._modules[name] = child  # also where the parent is a list


@torch.no_grad()  # not inference mode: what is found here takes part in gradients
def _find_grids(model: nn.Module, pictures: Sequence[Tensor], functions: Sequence[str]) -> None:
    activations = {name: module for name, module in model.named_modules() if isinstance(module, CheapSilu)}
    _look(model, pictures[:FOR_FORMS], [each.seen for each in activations.values()])
    forms = fitted_forms({name: (each.seen.sample(), each.seen.size) for name, each in activations.items()}, functions)
    for name, form in forms.items():
        activations[name].form, activations[name].seen = form, Rounded()
    if forms:
        _match(model, pictures[:FOR_LINES])
    places = [module for module in model.modules() if isinstance(module, Rounded)]
    _look(model, pictures, places)
    for module in model.modules():
        if isinstance(module, RoundedUnit | RoundedAttention) and module.reads.samples:
            module.rows.settle(module.folded()[0], module.reads.means())
    for place in places:
        place.settle()


def _match(model: nn.Module, pictures: Sequence[Tensor]) -> None:
    """The lines of `mobilevitv2.export.quantise.matching`: of a batch the first half takes SiLU, the second what replaces it."""
    modules = [module for module in model.modules() if isinstance(module, Line | CheapSilu)]
    for module in modules:
        module.matching = True
    model(pixel_values=torch.stack([*pictures, *pictures]).to(next(model.parameters()).device))
    for module in modules:
        module.matching = False


def _fitted_line(x: Tensor, y: Tensor) -> Tensor:
    """Slope and shift by channel, (2, C, 1, 1), with which x comes nearest to y."""
    means = [each.mean(MAP_AXES, keepdim=True) for each in (x, y)]
    covariance = ((x - means[0]) * (y - means[1])).mean(MAP_AXES, keepdim=True)
    variance = (x - means[0]).square().mean(MAP_AXES, keepdim=True)
    slope = ((covariance + LITTLE_VARIANCE) / (variance + LITTLE_VARIANCE)).clamp(*SLOPES)
    return torch.cat([slope, means[1] - slope * means[0]])


def _look(model: nn.Module, pictures: Sequence[Tensor], places: list[Rounded]) -> None:
    device = next(model.parameters()).device
    for place in places:
        place.looking = True
    for start in range(0, len(pictures), BATCH):
        model(pixel_values=torch.stack(list(pictures[start : start + BATCH])).to(device))
    for place in places:
        place.looking = False
