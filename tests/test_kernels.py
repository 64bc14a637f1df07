"""The kernels against blocks.py, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

# Before Triton is imported: its own functions are made for the interpreter or for a GPU at that moment.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for CUDA")
import triton.language as tl

if os.environ["TRITON_INTERPRET"] == "1" and type(tl.sum).__name__ != "InterpretedFunction":
    pytest.skip("Triton was imported before these tests; set TRITON_INTERPRET=1 in the environment", allow_module_level=True)

from small_models import pictures, randomise, relative_difference, small_config
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2 import MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation
from mobilevitv2.inference import fold, optimize_for_inference
from mobilevitv2.kernels import kernels_enabled, operations
from mobilevitv2.kernels.modules import FusedBlock, FusedInvertedResidual, FusedStem, fuse_modules

ACTIVATIONS: dict[str, Any] = {"none": lambda x: x, "silu": F.silu, "relu": F.relu}
DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def sums(tokens: Tensor) -> Tensor:
    """What the kernel before would have left: (B, 1, 2)."""
    return torch.stack([tokens.flatten(1).sum(1), tokens.flatten(1).square().sum(1)], dim=-1)[:, None]


def standardise(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[1:])


@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
@pytest.mark.parametrize(("height", "width", "side", "stride"), [(16, 16, 3, 2), (13, 7, 3, 2), (9, 10, 5, 1), (1, 1, 3, 2)])
def test_stem(height: int, width: int, side: int, stride: int, activation: Any) -> None:
    x, weight, bias = random(2, 3, height, width), random(24, 3, side, side, seed=1), random(24, seed=2)
    expected = ACTIVATIONS[activation](F.conv2d(x, weight, bias, stride=stride, padding=side // 2))
    for layout in (torch.contiguous_format, torch.channels_last):
        found = operations.stem(x.contiguous(memory_format=layout), weight.flatten(1), bias, stride=stride, activation=activation)
        assert relative_difference(found.permute(0, 3, 1, 2), expected) < 1e-5


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("height", "width", "inputs", "outputs"), [(8, 8, 16, 32), (5, 7, 24, 80), (1, 3, 72, 300)])
def test_pointwise(height: int, width: int, inputs: int, outputs: int, biased: bool) -> None:
    x, weight = random(2, height, width, inputs), random(outputs, inputs, seed=1)
    bias = random(outputs, seed=2) if biased else None
    found = operations.pointwise(x, weight, bias, activation="silu")
    assert relative_difference(found, F.silu(F.linear(x, weight, bias))) < 1e-5


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 2), (6, 10, 2), (8, 12, 4), (4, 4, 1)])
def test_pointwise_from_tokens(height: int, width: int, side: int) -> None:
    from mobilevitv2.blocks import fold_patches

    tokens, weight, bias = random(2, side**2, height * width // side**2, 24) + 0.5, random(40, 24, seed=1), random(40, seed=2)
    found = operations.pointwise(
        tokens, weight, bias, activation="none", partials=sums(tokens), patch_size=side, size=(height, width)
    )
    maps = fold_patches(standardise(tokens).permute(0, 3, 1, 2), side, height, width)
    assert relative_difference(found.permute(0, 3, 1, 2), F.conv2d(maps, weight[:, :, None, None], bias)) < 1e-5


@pytest.mark.parametrize(
    ("height", "width", "channels", "outputs", "stride", "dilation"),
    [(8, 8, 16, 16, 1, 1), (9, 7, 24, 40, 2, 1), (10, 6, 40, 24, 1, 2), (5, 5, 16, 300, 1, 4), (1, 2, 16, 8, 2, 1)],
)
def test_depthwise_pointwise(height: int, width: int, channels: int, outputs: int, stride: int, dilation: int) -> None:
    x, filters, shift = random(2, channels, height, width), random(channels, 1, 3, 3, seed=1), random(channels, seed=2)
    weight, bias = random(outputs, channels, seed=3), random(outputs, seed=4)
    middle = F.silu(F.conv2d(x, filters, shift, stride=stride, padding=dilation, dilation=dilation, groups=channels))
    expected = F.conv2d(middle, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    residual = random(*expected.shape, seed=5)
    arguments = (x.permute(0, 2, 3, 1).contiguous(), filters.flatten(1).t().contiguous(), shift, weight, bias)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "activation": "silu"}
    assert relative_difference(operations.depthwise_pointwise(*arguments, **options)[0], expected) < 1e-5
    found, _ = operations.depthwise_pointwise(*arguments, **options, residual=residual)
    assert relative_difference(found, expected + residual) < 1e-5


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 2), (6, 10, 2), (8, 12, 4)])
def test_depthwise_pointwise_to_tokens(height: int, width: int, side: int) -> None:
    from mobilevitv2.blocks import unfold_patches

    x, filters, shift = random(2, 24, height, width), random(24, 1, 3, 3, seed=1), random(24, seed=2)
    weight = random(40, 24, seed=3)
    found, partials = operations.depthwise_pointwise(
        x.permute(0, 2, 3, 1).contiguous(),
        filters.flatten(1).t().contiguous(),
        shift,
        weight,
        None,
        activation="relu",
        patch_size=side,
    )
    maps = F.conv2d(F.relu(F.conv2d(x, filters, shift, padding=1, groups=24)), weight[:, :, None, None])
    assert relative_difference(found, unfold_patches(maps, side).permute(0, 2, 3, 1)) < 1e-5
    assert partials is not None
    torch.testing.assert_close(partials.sum(1), sums(found)[:, 0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("pixels", "patches", "dim"), [(4, 16, 64), (4, 15, 24), (1, 300, 40), (16, 1, 64)])
def test_context(pixels: int, patches: int, dim: int) -> None:
    tokens, query = random(2, pixels, patches, dim) + 1, random(dim, seed=1, scale=3.0)
    normal = standardise(tokens)
    scores = torch.softmax(normal @ query + 7.0, dim=-1)  # a shift falls out
    expected = (scores[..., None] * normal).sum(2)
    assert relative_difference(operations.context(tokens, sums(tokens), query, eps=1e-5), expected) < 1e-5


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("pixels", "patches", "dim", "hidden"), [(4, 16, 64, 64), (4, 15, 24, 40), (1, 70, 40, 16), (16, 1, 16, 80)]
)
def test_token_mlp(pixels: int, patches: int, dim: int, hidden: int, gated: bool) -> None:
    tokens = random(2, pixels, patches, dim) + 0.5
    first, shift, second, bias = (
        random(hidden, dim, seed=1),
        random(hidden, seed=2),
        random(dim, hidden, seed=3),
        random(dim, seed=4),
    )
    gate = random(2, pixels, hidden, seed=5) if gated else None
    found, partials = operations.token_mlp(
        tokens, sums(tokens), first, shift, second, bias, eps=1e-5, activation="relu" if gated else "silu", gate=gate
    )
    middle = F.linear(standardise(tokens), first, shift)
    middle = F.silu(middle) if gate is None else F.relu(middle) * gate[:, :, None]
    expected = tokens + F.linear(middle, second, bias)
    assert relative_difference(found, expected) < 1e-5
    torch.testing.assert_close(partials.sum(1), sums(found)[:, 0], rtol=1e-4, atol=1e-1)


# ---- whole models -----------------------------------------------------------------------------------------------------------


def fused(model: Any) -> Any:
    folded = fold(model)
    assert fuse_modules(folded) > 0
    return folded


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 48)])
def test_a_classifier_of_kernels_is_equal(height: int, width: int) -> None:
    torch.manual_seed(0)
    model, x = randomise(MobileViTV2ForImageClassification(small_config())), pictures(1, height=height, width=width)
    ours = optimize_for_inference(model, device=DEVICE, dtype="float32", kernels=True)
    assert ours.optimization.kernels == 10
    for kind, count in ((FusedStem, 1), (FusedInvertedResidual, 6), (FusedBlock, 3)):
        assert sum(isinstance(module, kind) for module in ours.modules()) == count
    with torch.no_grad():
        assert relative_difference(ours(x).logits, model(x).logits) < 1e-5


def test_a_dilated_segmenter_of_kernels_is_equal() -> None:
    torch.manual_seed(0)
    model, x = randomise(MobileViTV2ForSemanticSegmentation(small_config(output_stride=8))), pictures(height=32)
    with torch.no_grad():
        assert relative_difference(fused(model)(x).logits, model(x).logits) < 1e-5


def test_what_no_kernel_covers_stays() -> None:
    torch.manual_seed(0)
    model = randomise(MobileViTV2ForImageClassification(small_config(hidden_act="gelu")))
    folded = fold(model)
    assert fuse_modules(folded) == 0
    with torch.no_grad():
        assert torch.equal(folded(pictures()).logits, fold(model)(pictures()).logits)


def test_half_precision_is_no_further_from_float32_than_the_plain_model() -> None:
    torch.manual_seed(0)
    model, x = randomise(MobileViTV2ForImageClassification(small_config())), pictures(2, height=32)
    with torch.no_grad():
        exact = model(x).logits
        ours = (fused(model).half()(x.half()).logits - exact).square().sum()
        plain = (model.half()(x.half()).logits - exact).square().sum()
    assert ours <= 1.05 * plain


def test_the_environment_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEVITV2_KERNELS", "0")
    assert not kernels_enabled()
    monkeypatch.setenv("MOBILEVITV2_KERNELS", "1")
    assert kernels_enabled()


def test_nothing_heavy_is_imported_with_the_room() -> None:
    import subprocess
    import sys

    code = "import sys, mobilevitv2.kernels; assert not {'torch', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
