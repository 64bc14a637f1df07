from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import randomise, relative_difference
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mobilevitv2.blocks import (
    ConvNormAct,
    InvertedResidual,
    MobileNetLayer,
    SeparableSelfAttention,
    TransformerLayer,
    fold_patches,
    make_divisible,
    resize_to_patches,
    unfold_patches,
)


@pytest.mark.parametrize(
    ("value", "divisor", "minimum", "expected"),
    [
        (32, 8, None, 32),
        (35, 8, None, 32),
        (36, 8, None, 40),
        (3, 8, None, 8),
        (10, 8, 16, 16),
        (44, 32, None, 64),
        (25.6, 16, None, 32),
    ],
)
def test_make_divisible(value: float, divisor: int, minimum: int | None, expected: int) -> None:
    assert make_divisible(value, divisor, minimum) == expected


def test_make_divisible_never_loses_more_than_a_tenth() -> None:
    assert all(make_divisible(value, 8) >= 0.9 * value and make_divisible(value, 8) % 8 == 0 for value in range(1, 2000))


def test_convolution_keeps_the_size_under_any_dilation() -> None:
    x = torch.rand(1, 4, 11, 13)
    for kernel_size, dilation in ((1, 1), (3, 1), (3, 4), (5, 2)):
        assert ConvNormAct(4, 6, kernel_size=kernel_size, dilation=dilation)(x).shape == (1, 6, 11, 13)
    assert ConvNormAct(4, 6, kernel_size=3, stride=2)(x).shape == (1, 6, 6, 7)


def test_convolution_normalises_then_activates() -> None:
    layer = randomise(ConvNormAct(3, 5, activation=F.relu))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), F.relu(layer.normalization(layer.convolution(x))))
    assert ConvNormAct(3, 5, norm=False).normalization is None


def test_batch_norm_has_the_official_settings() -> None:
    norm = ConvNormAct(3, 5).normalization
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)


def test_inverted_residual_adds_its_input_only_where_shapes_agree() -> None:
    x = torch.randn(1, 8, 6, 6)
    for options, adds in (({}, True), ({"stride": 2}, False)):
        block = randomise(InvertedResidual(8, 8, activation=F.silu, **options))
        inner = block.reduce_1x1(block.conv_3x3(block.expand_1x1(x)))
        assert torch.equal(block(x), x + inner if adds else inner)
    assert not InvertedResidual(8, 16, activation=F.silu).use_residual


def test_first_inverted_residual_carries_the_stride() -> None:
    layer = MobileNetLayer(8, 16, activation=F.silu, depth=3, stride=2, expand_ratio=2)
    assert layer(torch.rand(2, 8, 10, 10)).shape == (2, 16, 5, 5)
    assert [block.use_residual for block in layer.layer] == [False, True, True]


@pytest.mark.parametrize("patch_size", [2, 4])
def test_unfolding_is_the_official_order(patch_size: int) -> None:
    x = torch.randn(2, 3, 8, 12)
    expected = F.unfold(x, patch_size, stride=patch_size).reshape(2, 3, patch_size**2, -1)
    assert torch.equal(unfold_patches(x, patch_size), expected)
    assert torch.equal(fold_patches(expected, patch_size, 8, 12), x)


def test_resizing_touches_only_what_is_no_whole_number_of_patches() -> None:
    x = torch.randn(1, 2, 4, 6)
    assert resize_to_patches(x, 2) is x
    odd = torch.randn(1, 2, 3, 7)
    assert torch.equal(resize_to_patches(odd, 2), F.interpolate(odd, size=(4, 8), mode="bilinear", align_corners=True))
    assert resize_to_patches(odd, 4).shape == (1, 2, 4, 8)


def official_attention(attention: SeparableSelfAttention, x: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """The paper's equations as they stand, with the keys; `keep` multiplies the scores as dropout would."""
    dim = x.shape[1]
    query, key, value = attention.qkv_proj(x).split([1, dim, dim], dim=1)
    scores = query.softmax(dim=-1) if keep is None else query.softmax(dim=-1) * keep
    return attention.out_proj(F.relu(value) * (key * scores).sum(dim=-1, keepdim=True))


def test_attention_is_the_papers() -> None:
    attention = randomise(SeparableSelfAttention(16))
    x = torch.randn(2, 16, 4, 30)
    assert relative_difference(attention(x), official_attention(attention, x)) <= 1e-6


def test_attention_under_dropout_is_the_papers() -> None:
    attention = randomise(SeparableSelfAttention(16, attn_dropout=0.5)).train()
    x = torch.randn(2, 16, 4, 30)
    torch.manual_seed(1)
    found = attention(x)
    torch.manual_seed(1)
    keep = F.dropout(torch.ones(2, 1, 4, 30), 0.5)
    assert relative_difference(found, official_attention(attention, x, keep=keep)) <= 1e-6


def test_attention_has_the_papers_gradients() -> None:
    attention = randomise(SeparableSelfAttention(8)).double()
    x = torch.randn(2, 8, 4, 9, dtype=torch.float64, requires_grad=True)
    parameters = [x, *attention.parameters()]
    ours = torch.autograd.grad(attention(x).square().sum(), parameters)
    theirs = torch.autograd.grad(official_attention(attention, x).square().sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


def test_context_scores_sum_to_one_for_each_pixel_of_the_patch() -> None:
    scores = SeparableSelfAttention(8).context_scores(torch.randn(2, 8, 4, 9))
    assert scores.shape == (2, 1, 4, 9)
    assert torch.allclose(scores.sum(-1), torch.ones(2, 1, 4))


def test_each_dropout_of_a_layer_has_its_place() -> None:
    layer = TransformerLayer(8, 16, activation=F.silu, attn_dropout=0.1, ffn_dropout=0.2, dropout=0.3)
    assert (layer.attention.attn_dropout.p, layer.ffn.dropout.p) == (0.1, 0.2)
    assert (layer.dropout1.p, layer.dropout2.p) == (0.3, 0.3)


def test_transformer_layer_with_everything_dropped_is_its_input() -> None:
    layer = TransformerLayer(8, 16, activation=F.silu, dropout=0.99).train()
    layer.dropout1.p = layer.dropout2.p = 1.0
    x = torch.randn(2, 8, 4, 9)
    assert torch.equal(layer(x), x)


def test_group_norm_takes_one_statistic_a_picture() -> None:
    layer = TransformerLayer(8, 16, activation=F.silu, norm_eps=1e-3)
    assert (layer.layernorm_before.num_groups, layer.layernorm_after.num_groups) == (1, 1)
    assert (layer.layernorm_before.eps, layer.layernorm_after.eps) == (1e-3, 1e-3)


# ---- half precision ---------------------------------------------------------------------------------------------------------


class Types(TorchDispatchMode):
    """Records the type of what softmax and sums give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.seen.setdefault(str(func).split(".")[1], set()).add(out.dtype)
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_softmax_and_sums_over_tokens_are_float32(dtype: torch.dtype, autocast: bool) -> None:
    layer = randomise(TransformerLayer(16, 32, activation=F.silu))
    x = torch.randn(1, 16, 4, 300)
    if not autocast:
        layer, x = layer.to(dtype), x.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=autocast), Types() as types:
        layer(x)
    assert types.seen["_softmax"] == {torch.float32}
    assert types.seen["sum"] == {torch.float32}
    assert dtype in types.seen["convolution"]  # it did run in half precision elsewhere


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_thousands_of_tokens_far_from_zero_keep_their_mean_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    attention = randomise(SeparableSelfAttention(16))
    x = torch.randn(1, 16, 4, 16384) + 4
    with torch.no_grad():
        expected = attention(x)
        found = attention.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert relative_difference(found.float(), expected) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_statistics_hold_in_half_precision_far_from_zero(dtype: torch.dtype) -> None:
    norm = nn.GroupNorm(1, 16)
    x = (torch.randn(2, 16, 4, 4096) + 50).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        found = norm(x)
    assert (found.float() - norm(x.float())).abs().max() <= 0.05
