"""The kernels against blocks.py, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
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
from torch import Tensor, nn
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources

from mobilevitv2 import MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation
from mobilevitv2.blocks import unfold_patches
from mobilevitv2.inference import fold, optimize_for_inference
from mobilevitv2.kernels import convolution_kernels, fitting, kernels_enabled, operations, tiles, token_kernels
from mobilevitv2.kernels.devices import on_its_device
from mobilevitv2.kernels.modules import FusedBlock, FusedInvertedResidual, FusedStem, _NormedProduct, fuse_modules
from mobilevitv2.kernels.tiles import LIBRARY, Tile

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


@pytest.mark.parametrize("tile", [Tile(32, 32, 32, 4, 2), Tile(16, 64, 32, 4, 2, 1), Tile(64, 64, 64, 4, 1, 3), LIBRARY])
@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
def test_pointwise_is_equal_for_every_kind_of_tile(activation: Any, tile: Tile) -> None:
    x, weight, bias, residual = random(3, 5, 7, 40), random(72, 40, seed=1), random(72, seed=2), random(3, 5, 7, 72, seed=3)
    found = operations.pointwise(x, weight, bias, activation=activation, residual=residual, tile=tile)
    assert relative_difference(found, ACTIVATIONS[activation](F.linear(x, weight, bias)) + residual) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (15, 13)])
def test_pointwise_normalises_on_the_way(height: int, width: int) -> None:
    x, weight, bias = random(2, height, width, 24) + 0.5, random(40, 24, seed=1), random(40, seed=2)
    found = operations.pointwise(x, weight, bias, partials=sums(x), eps=1e-5)
    assert relative_difference(found, F.linear(standardise(x), weight, bias)) < 1e-5


@pytest.mark.parametrize(("height", "width", "outputs"), [(8, 8, 40), (15, 13, 24), (4, 4, 300)])
def test_pointwise_leaves_its_sums(height: int, width: int, outputs: int) -> None:
    x, weight = random(2, height, width, 24), random(outputs, 24, seed=1)
    found, partials = operations.pointwise_with_statistics(x, weight, None)
    assert relative_difference(found, F.linear(x, weight)) < 1e-5
    torch.testing.assert_close(partials.sum(1), sums(found)[:, 0], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize(
    ("height", "width", "channels", "side", "stride", "dilation"),
    [(8, 8, 16, 3, 1, 1), (9, 7, 24, 3, 2, 1), (10, 6, 40, 3, 1, 2), (5, 5, 16, 3, 1, 4), (1, 2, 16, 3, 2, 1), (6, 7, 72, 5, 1, 1)],
)
def test_depthwise(height: int, width: int, channels: int, side: int, stride: int, dilation: int, step: int) -> None:
    x, filters, bias = random(3, channels, height, width), random(channels, 1, side, side, seed=1), random(channels, seed=2)
    expected = F.silu(F.conv2d(x, filters, bias, stride=stride, padding=side // 2 * dilation, dilation=dilation, groups=channels))
    found = operations.depthwise(
        x.permute(0, 2, 3, 1).contiguous(),
        filters.flatten(1).t().contiguous(),
        bias,
        stride=stride,
        dilation=dilation,
        activation="silu",
        tile=Tile(16, step, 32, 4, 1),
    )
    assert relative_difference(found.permute(0, 3, 1, 2), expected) < 1e-5


def patches_of(x: Tensor, side: int) -> Tensor:
    """(B, H, W, D) -> (B, P, N, D)."""
    return unfold_patches(x.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("height", "width", "side", "dim"), [(8, 8, 2, 64), (6, 10, 2, 24), (20, 15, 1, 40), (8, 12, 4, 64)])
def test_context(height: int, width: int, side: int, dim: int) -> None:
    tokens, query = random(2, height, width, dim) + 1, random(dim, seed=1, scale=3.0)
    normal = patches_of(standardise(tokens), side)
    scores = torch.softmax(normal @ query + 7.0, dim=-1)  # a shift falls out
    expected = (scores[..., None] * normal).sum(2)
    assert relative_difference(operations.context(tokens, sums(tokens), query, patch_size=side, eps=1e-5), expected) < 1e-5


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "side", "dim", "hidden"), [(8, 8, 2, 64, 64), (6, 10, 2, 24, 40), (7, 10, 1, 40, 16), (4, 4, 4, 16, 80)]
)
def test_token_mlp(height: int, width: int, side: int, dim: int, hidden: int, gated: bool) -> None:
    tokens = random(2, height, width, dim) + 0.5
    first, shift = random(hidden, dim, seed=1), random(hidden, seed=2)
    second, bias = random(dim, hidden, seed=3), random(dim, seed=4)
    gate = random(2, side**2, hidden, seed=5) if gated else None
    kind: Any = "relu" if gated else "silu"
    found, partials = operations.token_mlp(
        tokens, sums(tokens), first, shift, second, bias, eps=1e-5, activation=kind, gate=gate, patch_size=side
    )
    middle = ACTIVATIONS[kind](F.linear(standardise(tokens), first, shift))
    if gate is not None:
        middle = middle * gate.unflatten(1, (side, side)).repeat(1, height // side, width // side, 1)
    expected = tokens + F.linear(middle, second, bias)
    assert relative_difference(found, expected) < 1e-5
    torch.testing.assert_close(partials.sum(1), sums(found)[:, 0], rtol=1e-4, atol=1e-1)


# ---- GPUs with less room, and other GPUs than the current one ----------------------------------------------------------------


class Small:
    """Stands for a kernel on a GPU that has room for few tiles."""

    def __init__(self, kernel: Any, fits: Any) -> None:
        self.kernel, self.fits, self.refused = kernel, fits, 0

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            if not self.fits(options):
                self.refused += 1
                raise OutOfResources(200_000, 101_376, "shared memory")
            self.kernel[grid](*args, **options)

        return launch


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_found", {})


@pytest.mark.usefixtures("forgetful")
def test_smaller_tiles_where_a_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    small = Small(convolution_kernels.pointwise_kernel, lambda options: options["BLOCK_M"] * options["BLOCK_K"] <= 512)
    none = Small(convolution_kernels.resident_pointwise_kernel, lambda options: False)
    monkeypatch.setattr(convolution_kernels, "pointwise_kernel", small)
    monkeypatch.setattr(convolution_kernels, "resident_pointwise_kernel", none)
    monkeypatch.setattr(tiles, "FEW_PROGRAMS", 1)  # weights stay with a program, as in large maps
    x, weight, bias = random(2, 8, 8, 40), random(24, 40, seed=1), random(24, seed=2)
    refused = []
    for _ in range(2):
        assert relative_difference(operations.pointwise(x, weight, bias), F.linear(x, weight, bias)) < 1e-5
        refused.append((small.refused, none.refused))
    assert 0 not in refused[0]
    assert refused[1] == refused[0]  # the second call knew
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pointwise: cpu has no room for Tile" in caplog.text


@pytest.mark.usefixtures("forgetful")
def test_tokens_where_a_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Small(token_kernels.token_mlp_kernel, lambda options: (options["BLOCK_M"], options["BLOCK_H"]) == (16, 16))
    monkeypatch.setattr(token_kernels, "token_mlp_kernel", small)
    tokens, first, second = random(2, 8, 8, 24), random(40, 24, seed=1), random(24, 40, seed=3)
    shift, bias = random(40, seed=2), random(24, seed=4)
    found, _ = operations.token_mlp(tokens, sums(tokens), first, shift, second, bias, eps=1e-5, activation="silu")
    expected = tokens + F.linear(F.silu(F.linear(standardise(tokens), first, shift)), second, bias)
    assert relative_difference(found, expected) < 1e-5
    assert small.refused > 0


@pytest.mark.usefixtures("forgetful")
def test_a_tile_that_was_asked_for_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    none = Small(convolution_kernels.pointwise_kernel, lambda options: False)
    monkeypatch.setattr(convolution_kernels, "pointwise_kernel", none)
    x, weight = random(2, 4, 4, 40), random(24, 40, seed=1)
    with pytest.raises(OutOfResources):
        operations.pointwise(x, weight, None, tile=Tile(32, 32, 32, 4, 2))
    assert none.refused == 1
    with pytest.raises(OutOfResources):
        operations.pointwise(x, weight, None)


@pytest.mark.parametrize(("index", "entered"), [(0, []), (1, [1])])
def test_kernels_start_on_the_gpu_of_their_input(index: int, entered: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    @contextlib.contextmanager
    def guard(device: torch.device) -> Iterator[None]:
        seen.append(device.index)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", guard)
    x: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))
    assert on_its_device(lambda self, x, y: (self, y))("module", x, 3) == ("module", 3)
    assert seen == entered


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


def test_other_weights_bring_their_sums_along() -> None:
    """Behind a norm the sums of a weight's rows are kept besides the weight."""
    torch.manual_seed(0)
    first, second = (randomise(MobileViTV2ForImageClassification(small_config()), seed=seed) for seed in (0, 1))
    nn.init.normal_(second.mobilevitv2.encoder.layer[2].conv_projection.convolution.weight)
    ours, other, x = fused(first), fused(second), pictures(1, height=32).to(DEVICE)
    kept = [module.sums for module in ours.modules() if isinstance(module, _NormedProduct)]
    with torch.no_grad():
        ours(x)
    ours.load_state_dict(other.state_dict())
    found = [module.sums for module in ours.modules() if isinstance(module, _NormedProduct)]
    assert all(one is another for one, another in zip(kept, found, strict=True))  # a recorded graph reads them where they were
    with torch.no_grad():
        assert relative_difference(ours(x).logits, second(x).logits) < 1e-5
    ours.load_state_dict(fused(first).state_dict(), assign=True)
    with torch.no_grad():
        assert relative_difference(ours(x).logits, first(x).logits) < 1e-5


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
