"""The kernels of training against blocks.py: outputs, all gradients, running statistics; in Triton's interpreter without a GPU."""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any

import pytest
import torch

# Before Triton is imported: its own functions are made for the interpreter or for a GPU at that moment.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for CUDA")
import triton.language as tl

if os.environ["TRITON_INTERPRET"] == "1" and type(tl.sum).__name__ != "InterpretedFunction":
    pytest.skip("Triton was imported before these tests; set TRITON_INTERPRET=1 in the environment", allow_module_level=True)

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import pictures, randomise, relative_difference, small_config
from torch import Tensor, nn
from torch.nn import functional as F
from triton.runtime.errors import OutOfResources

from mobilevitv2 import MobileViTV2ForImageClassification
from mobilevitv2.blocks import (
    ConvNormAct,
    InvertedResidual,
    MobileViTV2Block,
    Transformer,
    TransformerLayer,
)
from mobilevitv2.inference import fold
from mobilevitv2.kernels import fitting, training_convolutions
from mobilevitv2.kernels import training_filtering as filtering
from mobilevitv2.kernels import training_operations as operations
from mobilevitv2.kernels.training import drop_training_kernels, use_training_kernels
from mobilevitv2.kernels.training_tiles import LIBRARY, Lanes, Rows

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
INTERPRETED = DEVICE == "cpu"
DTYPES = [torch.float32, torch.bfloat16] if INTERPRETED else [torch.bfloat16]
few = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def prepared(module: Any, seed: int = 0) -> Any:
    """With random norms, in training, and moved away from running statistics of 0 and 1."""
    torch.manual_seed(seed)
    return randomise(module, seed=seed).to(DEVICE).train()


class Step:
    """Output, gradients and running statistics of one step."""

    def __init__(self, module: nn.Module, x: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        leaf = x.clone().requires_grad_(x.shape[1] != 3)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=dtype != torch.float32):
            out = module(leaf)
        self.output = out.detach().float()
        (out.float() * random(*out.shape, seed=9)).sum().backward()
        self.tensors = {name: p.grad.float() for name, p in module.named_parameters() if p.grad is not None}
        self.parameters = set(self.tensors)
        if leaf.grad is not None:
            self.tensors["input"] = leaf.grad.float()
        self.buffers = {name: buffer.clone().double() for name, buffer in module.named_buffers()}


def nothing(name: str) -> bool:
    """Gradients that are zero but for rounding: of shifts that a norm or a softmax behind them takes out again."""
    return name.endswith("layernorm.bias")


def compare(module: Any, x: Tensor, dtype: torch.dtype) -> None:
    """In float32 to rounding; in bfloat16 no further from float32 than the plain form, up to a factor for chance."""
    plain, ours = copy.deepcopy(module), copy.deepcopy(module)
    assert use_training_kernels(ours) > 0
    exact, found = Step(copy.deepcopy(module), x), Step(ours, x, dtype=dtype)
    assert found.parameters == exact.parameters
    if dtype == torch.float32:
        assert relative_difference(found.output, exact.output) < 1e-5
        for name, gradient in exact.tensors.items():
            if not nothing(name):
                assert relative_difference(found.tensors[name], gradient) < 2e-4, name
        for name, buffer in exact.buffers.items():
            assert torch.allclose(found.buffers[name], buffer, rtol=1e-5, atol=1e-6), name
        return
    reference = Step(plain, x, dtype=dtype)

    def error(step: Step) -> float:
        names = [name for name in exact.tensors if not nothing(name)]
        parts = [((step.tensors[n] - exact.tensors[n]).norm() / exact.tensors[n].norm()).square() for n in names]
        return float(torch.stack(parts).mean().sqrt())

    assert error(found) < 1.3 * error(reference) + 1e-3
    assert (found.output - exact.output).norm() < 1.3 * (reference.output - exact.output).norm() + 1e-3 * exact.output.norm()


# ---- parts of a model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    batch=st.integers(1, 2),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    channels=st.sampled_from([(8, 8), (16, 24)]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    activation=st.sampled_from([F.silu, F.relu]),
)
@few
def test_inverted_residual(
    batch: int, height: int, width: int, channels: tuple[int, int], stride: int, dilation: int, activation: Any, dtype: torch.dtype
) -> None:
    module = InvertedResidual(*channels, activation=activation, stride=stride, dilation=dilation)
    compare(prepared(module), random(batch, channels[0], height, width) + 0.5, dtype)


def block(*, dim: int, layers: int, patch_size: int, **options: Any) -> MobileViTV2Block:
    transformer = Transformer([TransformerLayer(dim, 2 * dim, activation=F.silu, **options) for _ in range(layers)])
    return MobileViTV2Block(16, 24, transformer=transformer, dim=dim, activation=F.silu, patch_size=patch_size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("height", "width", "layers", "patch_size", "dim"), [(8, 8, 2, 2, 16), (7, 10, 1, 2, 40), (6, 4, 1, 1, 24)]
)
def test_block(height: int, width: int, layers: int, patch_size: int, dim: int, dtype: torch.dtype) -> None:
    compare(prepared(block(dim=dim, layers=layers, patch_size=patch_size)), random(2, 16, height, width), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width", "layout"), [(9, 12, torch.channels_last), (8, 7, torch.contiguous_format)])
def test_stem(height: int, width: int, layout: torch.memory_format, dtype: torch.dtype) -> None:
    module = prepared(ConvNormAct(3, 16, kernel_size=3, stride=2, activation=F.silu))
    compare(module, random(2, 3, height, width).contiguous(memory_format=layout), dtype)


# ---- numbers ----------------------------------------------------------------------------------------------------------------


@given(rows=st.integers(2, 400), channels=st.sampled_from([8, 24]), mean=st.sampled_from([0.0, 100.0, 3000.0]))
@few
def test_variance_far_from_zero(rows: int, channels: int, mean: float) -> None:
    """A difference of the mean square and the squared mean would be off by 60 % at the last mean."""
    x = (random(1, 1, rows, channels) + mean).contiguous()
    norm = nn.BatchNorm2d(channels, device=DEVICE)
    table = operations.gather(operations.statistics(x), norm)
    deviation = (x.double().var((0, 1, 2), unbiased=False) + norm.eps).rsqrt()
    assert relative_difference(table[1].double(), deviation) < 1e-4
    assert norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize("tile", [LIBRARY, Rows(16, 16, 4, 2, 2), Rows(32, 32, 4, 1, 1)])
def test_products_with_any_tile(tile: Rows) -> None:
    x, weight = random(2, 5, 7, 24), random(40, 24, seed=1)
    norm = torch.stack([torch.zeros(24), torch.ones(24), random(24, seed=2).cpu(), random(24, seed=3).cpu()]).to(DEVICE)
    found, (_, counts) = operations.pointwise(x, weight, norm=norm, kind="silu", tile=tile)
    assert relative_difference(found, F.silu(x * norm[2] + norm[3]) @ weight.t()) < 1e-5
    assert counts.sum() == 70
    gradient = random(2, 5, 7, 40, seed=4)
    leaf, matrix = (x * norm[2] + norm[3]).requires_grad_(), weight.clone().requires_grad_()
    exact = torch.autograd.grad(F.silu(leaf) @ matrix.t(), [leaf, matrix], gradient)
    ours = operations.pointwise_backward(gradient, weight, x, x_norm=norm, kind="silu", tile=tile)
    assert relative_difference(ours.input, exact[0]) < 1e-5
    assert relative_difference(ours.weight, exact[1]) < 1e-5
    assert ours.partials is not None
    assert relative_difference(ours.partials.sum(0)[0], exact[0].sum((0, 1, 2))) < 1e-4


@pytest.mark.parametrize(("stride", "dilation", "height", "width"), [(1, 1, 1, 2), (2, 1, 2, 2), (2, 1, 4, 2), (1, 2, 2, 1)])
def test_filters_with_any_tile(stride: int, dilation: int, height: int, width: int) -> None:
    x, weight = random(1, 6, 7, 16), random(16, 1, 3, 3, seed=1)
    taps, tile = weight.flatten(1).t().contiguous(), Lanes(4, 16, height, width, 4, 2)
    norm = torch.stack([torch.zeros(16), torch.ones(16), random(16, seed=2).cpu(), random(16, seed=3).cpu()]).to(DEVICE)
    leaf, filters = (x * norm[2] + norm[3]).permute(0, 3, 1, 2).requires_grad_(), weight.clone().requires_grad_()
    options = {"stride": stride, "dilation": dilation}
    out = F.conv2d(F.silu(leaf), filters, padding=dilation, groups=16, **options)
    found, _ = filtering.depthwise(x, taps, norm=norm, kind="silu", tile=tile, **options)
    assert relative_difference(found.permute(0, 3, 1, 2), out.detach()) < 1e-5
    d, z, back = random(*found.shape, seed=4), found, random(2, 16, seed=5)
    dz = d * norm[2] + z * back[0] + back[1]
    exact = torch.autograd.grad(out, [leaf, filters], dz.permute(0, 3, 1, 2))
    ours = filtering.depthwise_backward(d, z, norm, back, taps, x, x_norm=norm, kind="silu", tile=tile, **options)
    assert relative_difference(ours.input.permute(0, 3, 1, 2), exact[0]) < 1e-5
    assert relative_difference(ours.weight.t(), exact[1].flatten(1)) < 1e-5


class Full:
    """Stands for a kernel on a GPU that has room for no tile."""

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            raise OutOfResources(200_000, 101_376, "shared memory")

        return launch


def test_products_where_a_gpu_has_no_room(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """torch's product on what the other kernels make, and a warning for each direction."""
    monkeypatch.setattr(fitting, "_found", {})
    for name in ("pointwise_forward_kernel", "pointwise_backward_kernel"):
        monkeypatch.setattr(training_convolutions, name, Full())
    compare(prepared(InvertedResidual(16, 16, activation=F.silu)), random(2, 16, 4, 4), DTYPES[0])
    assert len(caplog.records) <= 4  # one for each direction and tile
    assert "has no room for Rows" in caplog.text


# ---- the seam ---------------------------------------------------------------------------------------------------------------


def test_a_model_keeps_all_that_is_not_training(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = randomise(MobileViTV2ForImageClassification(small_config()))
    ours = copy.deepcopy(plain)
    assert use_training_kernels(ours) == 10
    assert list(ours.state_dict()) == list(plain.state_dict())
    x = pictures(1, height=32)
    with torch.no_grad():
        expected = plain(x).logits
        for model in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), fold(ours)):
            assert relative_difference(model(x).logits, expected) < 1e-5
    copied = copy.deepcopy(ours)
    stage = copied.mobilevitv2.encoder.layer[0].layer[0]
    assert stage.forward.args[0] is stage  # a copy's kernels work on the copy
    drop_training_kernels(ours)
    assert not any("forward" in module.__dict__ for module in ours.modules())
    monkeypatch.setenv("MOBILEVITV2_KERNELS", "0")
    assert use_training_kernels(ours) == 0


class Called(Exception):
    """Raised where a kernel's function would run."""


@pytest.fixture
def alarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilevitv2.kernels import training_functions

    def alarm(*_: Any) -> None:
        raise Called

    for name in ("InvertedResidualFunction", "TokensFunction", "StemFunction"):
        monkeypatch.setattr(getattr(training_functions, name), "apply", alarm)


def frozen_norms(module: InvertedResidual) -> None:
    assert module.conv_3x3.normalization is not None
    module.conv_3x3.normalization.eval()


class Adapted(nn.Conv2d):
    """As adapters are: a weight to read, and more in its forward."""


def adapted(module: InvertedResidual) -> None:
    module.reduce_1x1.convolution.__class__ = Adapted


def hooked(module: InvertedResidual) -> None:
    module.conv_3x3.register_forward_hook(lambda *_: None)


@pytest.mark.usefixtures("alarmed")
@pytest.mark.parametrize("change", [frozen_norms, hooked, adapted, lambda module: module.eval()])
def test_what_no_kernel_covers_goes_the_plain_way(change: Any) -> None:
    module = prepared(InvertedResidual(16, 16, activation=F.silu))
    use_training_kernels(module)
    x, half = random(2, 16, 4, 4), torch.autocast(DEVICE, dtype=torch.bfloat16)
    with pytest.raises(Called), half:
        module(x)
    change(module)
    with half:
        assert module(x).shape == x.shape


@pytest.mark.usefixtures("alarmed")
def test_other_activations_and_dropout_go_the_plain_way() -> None:
    other = prepared(InvertedResidual(16, 16, activation=F.gelu))
    assert use_training_kernels(other) == 1
    assert other(random(2, 16, 4, 4)).shape == (2, 16, 4, 4)
    dropping = prepared(block(dim=16, layers=1, patch_size=2, dropout=0.1))
    use_training_kernels(dropping)
    drop_training_kernels(dropping.downsampling_layer)
    assert dropping(random(2, 16, 8, 8)).shape == (2, 24, 4, 4)


def test_gradients_accumulate() -> None:
    module = prepared(InvertedResidual(8, 8, activation=F.silu))
    use_training_kernels(module)
    x, weight = random(2, 8, 4, 4), module.expand_1x1.convolution.weight
    half = torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=not INTERPRETED)
    found = []
    for _ in range(2):
        with half:
            module(x).float().square().sum().backward()
        assert weight.grad is not None
        found.append(weight.grad.clone())
    assert torch.allclose(found[1], 2 * found[0], rtol=1e-3, atol=1e-5)
