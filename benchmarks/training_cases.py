"""The kernels of a training step on the layers of a model: inputs, torch's operations for the same, bytes, tiles worth trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2.blocks import make_divisible
from mobilevitv2.kernels import training_filtering as filtering
from mobilevitv2.kernels import training_operations as operations
from mobilevitv2.kernels.tiles import power
from mobilevitv2.kernels.training_tiles import LIBRARY, Lanes, Rows

DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32


class Layer(NamedTuple):
    """A convolution with what stands before it (`raw`: nothing, else a batch norm and SiLU) and the batch norm behind it."""

    name: str
    build: str
    channels: tuple[int, int]
    side: int  # of the input
    stride: int = 1
    kind: operations.Kind = "silu"


@dataclass
class Case:
    """`ours` and `torch` give the same tensors, the first of them the one that decides about errors."""

    name: str
    ours: Callable[..., list[Tensor]]
    torch: Callable[[], list[Tensor]] | None
    exact: Callable[[], list[Tensor]] | None
    bytes: int
    tiles: list[Any] = field(default_factory=list)
    key: Any = None


def layers(width: float, size: int) -> list[Layer]:
    from mobilevitv2 import MobileViTV2Config

    config = MobileViTV2Config(width_multiplier=width)
    c = config.stage_channels
    sides = [size // 2, size // 4, size // 8, size // 16, size // 32]  # of the stages' results
    found = [Layer("stem", "stem", (3, c[0]), size, 2, "raw")]
    blocks = [("1", c[0], c[1], sides[0], 1), ("2.0", c[1], c[2], sides[0], 2), ("2.1", c[2], c[2], sides[1], 1)]
    blocks += [(f"{i}.0", c[i - 1], c[i], sides[i - 2], 2) for i in (3, 4, 5)]
    for name, inputs, outputs, side, stride in blocks:
        hidden = make_divisible(inputs * config.expand_ratio)
        found.append(Layer(f"stage{name} expand", "pointwise", (inputs, hidden), side, 1, "raw"))
        found.append(Layer(f"stage{name} depthwise", "depthwise", (hidden, hidden), side, stride))
        found.append(Layer(f"stage{name} reduce", "pointwise", (hidden, outputs), side // stride))
    for i, dim in zip((3, 4, 5), config.attn_dims, strict=True):
        found.append(Layer(f"stage{i} block depthwise", "depthwise", (c[i], c[i]), sides[i - 1], 1, "raw"))
        found.append(Layer(f"stage{i} block into", "pointwise", (c[i], dim), sides[i - 1]))
        found.append(Layer(f"stage{i} block out of", "pointwise", (dim, c[i]), sides[i - 1], 1, "raw"))
    return found


def cases(layer: Layer, batch: int, device: str) -> Iterator[Case]:
    """Forward and backward."""
    builders: dict[str, Callable[..., Iterator[Case]]] = {"stem": _stem, "pointwise": _pointwise, "depthwise": _depthwise}
    yield from builders[layer.build](layer, batch, device)


def random(device: str, *shape: int, scale: float = 1.0, dtype: torch.dtype = DTYPE) -> Tensor:
    return (scale * torch.randn(*shape, device=device)).to(dtype)


def table(device: str, channels: int) -> Tensor:
    """Mean, 1 / deviation, scale and shift."""
    return torch.stack(
        [random(device, channels, scale=s, dtype=torch.float32) + m for s, m in ((0.1, 0), (0.1, 1), (0.1, 1), (0.2, 0))]
    )


def chain(x: Tensor, weight: Tensor, layer: Layer, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """torch's own: norm and activation where the layer has them before it, the convolution, the norm behind."""
    leaf = x.detach().requires_grad_()
    filters = weight.detach().requires_grad_()
    inputs = leaf
    if layer.kind != "raw":
        inputs = F.silu(F.batch_norm(leaf, None, None, torch.ones_like(x[0, :, 0, 0]), None, training=True))
    out = F.conv2d(inputs, filters, **options)
    out = F.batch_norm(out, None, None, torch.ones_like(out[0, :, 0, 0]), None, training=True)
    return out, [leaf, filters]


def _torch(x: Tensor, weight: Tensor, gradient: Tensor, layer: Layer, **options: Any) -> tuple[Callable[[], list[Tensor]], Any]:
    """Forward, and backward of one forward."""
    made: list[Any] = []

    def backward() -> list[Tensor]:
        if not made:
            made.append(chain(x, weight, layer, **options))
        out, leaves = made[0]
        wanted = leaves if layer.build != "stem" else leaves[1:]
        return list(torch.autograd.grad(out, wanted, gradient, retain_graph=True))

    return lambda: [chain(x, weight, layer, **options)[0]], backward


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _pointwise(layer: Layer, batch: int, device: str) -> Iterator[Case]:
    inputs, outputs = layer.channels
    x, weight = random(device, batch, layer.side, layer.side, inputs), random(device, outputs, inputs, scale=inputs**-0.5)
    norm, x_norm, back = table(device, outputs), table(device, inputs), random(device, 2, outputs, scale=0.1, dtype=torch.float32)
    before = {} if layer.kind == "raw" else {"norm": x_norm, "kind": layer.kind}
    z, d = random(device, batch, layer.side, layer.side, outputs), random(device, batch, layer.side, layer.side, outputs)
    forward, backward = _torch(_last(x), weight[:, :, None, None], _last(d), layer)

    def exact_forward() -> list[Tensor]:
        a = x.float()
        if layer.kind != "raw":
            a = F.silu(a * x_norm[2] + x_norm[3])
        return [a @ weight.float().t()]

    def exact_backward() -> list[Tensor]:
        dz = d.float() * norm[2] + z.float() * back[0] + back[1]
        found, n = dz @ weight.float(), x.float() * x_norm[2] + x_norm[3]
        if layer.kind == "raw":
            return [found, dz.flatten(0, 2).t() @ x.flatten(0, 2).float()]
        s = torch.sigmoid(n)
        return [found * s * (1 + n * (1 - s)), dz.flatten(0, 2).t() @ (n * s).flatten(0, 2)]

    def ours(tile: Rows | None = None) -> list[Tensor]:
        out, _ = operations.pointwise(x, weight, tile=tile, **before)
        return [out]

    def ours_backward(tile: Rows | None = None) -> list[Tensor]:
        options = {} if layer.kind == "raw" else {"x_norm": x_norm, "kind": layer.kind}
        found = operations.pointwise_backward(d, weight, x, z=z, norm=norm, back=back, tile=tile, **options)
        return [found.input, found.weight]

    e, rows = x.element_size(), batch * layer.side**2
    wide, deep = min(128, power(outputs)), power(inputs)
    tiles = [LIBRARY]
    if inputs <= 256:
        tiles += [Rows(m, wide, w, p, s) for m, w, s in ((128, 4, 2), (64, 4, 2), (64, 4, 3)) for p in (2, 4)]
        tiles = [t for t in tiles if t.rows * deep * t.stages * 2 + deep * t.channels * 2 < 200_000]
    yield Case(
        f"{layer.name} forward", ours, forward, exact_forward, e * rows * (inputs + outputs), tiles, ("FORWARD", inputs, outputs)
    )
    tiles = [LIBRARY]
    if outputs <= 128:
        tiles += [Rows(64, min(64, deep), w, p, 1) for w in ((4, 8) if outputs <= 64 else (8,)) for p in (1, 2, 4) if p * w <= 16]
    moved = 2 * e * rows * (inputs + outputs)
    yield Case(f"{layer.name} backward", ours_backward, backward, exact_backward, moved, tiles, ("BACK", inputs, outputs))


def _depthwise(layer: Layer, batch: int, device: str) -> Iterator[Case]:
    channels, stride = layer.channels[0], layer.stride
    small = layer.side // stride
    x, weight = random(device, batch, layer.side, layer.side, channels), random(device, channels, 1, 3, 3, scale=0.4)
    taps = weight.flatten(1).t().contiguous()
    norm, x_norm, back = (
        table(device, channels),
        table(device, channels),
        random(device, 2, channels, scale=0.1, dtype=torch.float32),
    )
    before = {} if layer.kind == "raw" else {"norm": x_norm, "kind": layer.kind}
    z, d = random(device, batch, small, small, channels), random(device, batch, small, small, channels)
    options = {"stride": stride, "padding": 1, "groups": channels}
    forward, backward = _torch(_last(x), weight, _last(d), layer, **options)

    def activated() -> Tensor:
        a = _last(x).float()
        return a if layer.kind == "raw" else F.silu(a * x_norm[2][:, None, None] + x_norm[3][:, None, None])

    def exact_forward() -> list[Tensor]:
        return [F.conv2d(activated(), weight.float(), **options).permute(0, 2, 3, 1)]

    def exact_backward() -> list[Tensor]:
        with torch.enable_grad():
            leaf, filters = activated().requires_grad_(), weight.float().requires_grad_()
            dz = _last(d.float() * norm[2] + z.float() * back[0] + back[1])
            found, weights = torch.autograd.grad(F.conv2d(leaf, filters, **options), [leaf, filters], dz)
        if layer.kind != "raw":
            n = _last(x).float() * x_norm[2][:, None, None] + x_norm[3][:, None, None]
            s = torch.sigmoid(n)
            found = found * s * (1 + n * (1 - s))
        return [found.permute(0, 2, 3, 1), weights.flatten(1).t()]

    def ours(tile: Lanes | None = None) -> list[Tensor]:
        return [filtering.depthwise(x, taps, stride=stride, tile=tile, **before)[0]]

    def ours_backward(tile: Lanes | None = None) -> list[Tensor]:
        options = {} if layer.kind == "raw" else {"x_norm": x_norm, "kind": layer.kind}
        found = filtering.depthwise_backward(d, z, norm, back, taps, x, stride=stride, tile=tile, **options)
        return [found.input, found.weight]

    shapes = [(8, 4, 1), (8, 2, 2), (16, 4, 1)] if stride == 1 else [(4, 2, 2), (4, 4, 1), (8, 2, 2)]
    tiles = [Lanes(m, 64, h, w, 4, p) for m, h, w in shapes for p in (4, 8)]
    shapes = [(4, 2, 2), (8, 2, 2), (4, 4, 2)] if stride == 1 else [(8, 2, 2), (4, 2, 2)]
    back_tiles = [Lanes(m, 64, h, w, 4, p) for m, h, w in shapes for p in (2, 4)]
    e, pixels = x.element_size(), batch * channels * layer.side**2
    yield Case(
        f"{layer.name} forward",
        ours,
        forward,
        exact_forward,
        e * (pixels + pixels // stride**2),
        tiles,
        ("DEPTHWISE", channels, stride),
    )
    moved = 2 * e * (pixels + pixels // stride**2)
    yield Case(
        f"{layer.name} backward", ours_backward, backward, exact_backward, moved, back_tiles, ("DEPTHWISE_BACK", channels, stride)
    )


def _stem(layer: Layer, batch: int, device: str) -> Iterator[Case]:
    outputs, small = layer.channels[1], layer.side // 2
    x = random(device, batch, 3, layer.side, layer.side).contiguous(memory_format=torch.channels_last)
    weight = random(device, outputs, 3, 3, 3, scale=0.2)
    norm, back = table(device, outputs), random(device, 2, outputs, scale=0.1, dtype=torch.float32)
    z, d = random(device, batch, small, small, outputs), random(device, batch, small, small, outputs)
    forward, backward = _torch(x, weight, _last(d), layer, stride=2, padding=1)
    tiles = [Rows(m, 0, w, p) for m, w in ((64, 4), (128, 4), (256, 8), (128, 8)) for p in (4, 8)]

    def exact_backward() -> list[Tensor]:
        dz = _last(d.float() * norm[2] + z.float() * back[0] + back[1])
        return [torch.nn.grad.conv2d_weight(x.float(), list(weight.shape), dz, stride=2, padding=1).flatten(1)]

    e = z.element_size()
    yield Case(
        "stem forward",
        lambda tile=None: [filtering.stem(x, weight.flatten(1), side=3, stride=2, tile=tile)[0]],
        forward,
        lambda: [F.conv2d(x.float(), weight.float(), stride=2, padding=1).permute(0, 2, 3, 1)],
        e * (x.numel() + z.numel()),
        tiles,
        ("STEM",),
    )
    yield Case(
        "stem backward",
        lambda tile=None: [filtering.stem_backward(d, z, norm, back, x, side=3, stride=2, tile=tile)],
        backward,
        exact_backward,
        e * (x.numel() + 2 * z.numel()),
        tiles,
        ("STEM_BACK",),
    )  # fmt: skip
