"""The kernels on the layers of a model: inputs, torch's operations for the same, bytes, and tiles worth trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2.blocks import make_divisible
from mobilevitv2.kernels import operations
from mobilevitv2.kernels.tiles import Key, Tile, first_part, power

DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32  # Triton's interpreter knows no products of bfloat16
ELEMENT = DTYPE.itemsize  # bytes
SHARED_MEMORY = 227 * 1024  # bytes of a multiprocessor that programs can use (H100)


class Layer(NamedTuple):
    """A layer by name; `build` is one of the functions below, called with `arguments`, `count` how often the model has it."""

    name: str
    build: str
    arguments: dict[str, Any]
    count: int = 1


@dataclass
class Case:
    ours: Callable[..., Tensor]
    torch: Callable[..., Tensor]
    inputs: list[Tensor | None]
    bytes: int
    key: Key = ()
    tiles: list[Tile] = field(default_factory=list)
    compile_key: Key = ()
    library: bool = False  # whether the operation can leave the layer to torch


def layers(width: float, size: int, batch: int, device: str) -> list[Layer]:
    from mobilevitv2 import MobileViTV2Config

    config = MobileViTV2Config(width_multiplier=width)
    c, common = config.stage_channels, {"batch": batch, "device": device}
    found = [Layer("stem", "stem", {**common, "outputs": c[0], "size": size})]
    sides = [size // 2, size // 4, size // 8, size // 16, size // 32]  # of the stages' results
    residuals = [("1", c[0], c[1], sides[0], 1), ("2.0", c[1], c[2], sides[0], 2), ("2.1", c[2], c[2], sides[1], 1)]
    residuals += [(f"{i}.0", c[i - 1], c[i], sides[i - 2], 2) for i in (3, 4, 5)]
    for name, inputs, outputs, side, stride in residuals:
        hidden = make_divisible(inputs * config.expand_ratio)
        add = stride == 1 and inputs == outputs
        expand = {**common, "inputs": inputs, "outputs": hidden, "side": side, "activation": "silu"}
        reduce = {**common, "inputs": hidden, "outputs": outputs, "side": side // stride, "residual": add}
        found.append(Layer(f"stage{name} expand", "pointwise", expand))
        found.append(Layer(f"stage{name} depthwise", "depthwise", {**common, "channels": hidden, "side": side, "stride": stride}))
        found.append(Layer(f"stage{name} reduce", "pointwise", reduce))
    for i, dim, hidden, count in zip((3, 4, 5), config.attn_dims, config.ffn_dims, config.n_attn_blocks, strict=True):
        channels, side, tokens = c[i], sides[i - 1], {**common, "dim": dim, "side": sides[i - 1]}
        into = {**common, "inputs": channels, "outputs": dim, "side": side, "statistics": True}
        outof = {**common, "inputs": dim, "outputs": channels, "side": side, "norm": True}
        found.append(Layer(f"stage{i} block depthwise", "depthwise", {**common, "channels": channels, "side": side, "stride": 1}))
        found.append(Layer(f"stage{i} block into", "pointwise", into))
        found.append(Layer(f"stage{i} block context", "context", tokens, count))
        found.append(Layer(f"stage{i} block attention", "mlp", {**tokens, "hidden": dim, "gated": True}, count))
        found.append(Layer(f"stage{i} block ffn", "mlp", {**tokens, "hidden": hidden, "gated": False}, count))
        found.append(Layer(f"stage{i} block out of", "pointwise", outof))
    return found


def build_case(layer: Layer) -> Case:
    builders: dict[str, Callable[..., Case]] = {
        "stem": stem, "pointwise": pointwise, "depthwise": depthwise, "context": context, "mlp": mlp
    }  # fmt: skip
    return builders[layer.build](**layer.arguments)


def random(device: str, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, device=device, dtype=DTYPE)


def sums(tokens: Tensor) -> Tensor:
    flat = tokens.float().flatten(1)
    return torch.stack([flat.sum(1), flat.square().sum(1)], dim=-1)[:, None]


def stem(*, batch: int, device: str, outputs: int, size: int) -> Case:
    def ours(x: Tensor, weight: Tensor, bias: Tensor, tile: Tile | None = None) -> Tensor:
        return operations.stem(x, weight.flatten(1), bias, stride=2, activation="silu", tile=tile).permute(0, 3, 1, 2)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.conv2d(x, weight, bias, stride=2, padding=1), inplace=True)

    x = random(device, batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    inputs: list[Tensor | None] = [x, random(device, outputs, 3, 3, 3, scale=0.2), random(device, outputs)]
    moved = ELEMENT * (x.numel() + batch * (size // 2) ** 2 * outputs)
    tiles = [Tile(m, 32, power(outputs), w, 1) for m in (64, 128, 256) for w in (4, 8) if m > 64 or w == 4]
    return Case(ours, theirs, inputs, moved, ("stem", 27, outputs), tiles, ("stem", outputs))


def depthwise(*, batch: int, device: str, channels: int, side: int, stride: int) -> Case:
    filters = random(device, channels, 1, 3, 3, scale=0.4)
    rows = filters.flatten(1).t().contiguous()

    def ours(x: Tensor, taps: Tensor, bias: Tensor, tile: Tile | None = None) -> Tensor:
        out = operations.depthwise(x.permute(0, 2, 3, 1), rows, bias, stride=stride, activation="silu", tile=tile)
        return out.permute(0, 3, 1, 2)

    def theirs(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.conv2d(x, taps, bias, stride=stride, padding=1, groups=channels), inplace=True)

    x = random(device, batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    inputs: list[Tensor | None] = [x, filters, random(device, channels)]
    shapes = [(16, 4, 64, 4), (8, 4, 64, 4), (8, 8, 64, 4), (16, 2, 64, 4), (8, 4, 64, 2)]
    if stride == 2:
        shapes = [(32, 2, 64, 4), (16, 2, 64, 4), (8, 4, 64, 4), (16, 1, 64, 4), (16, 4, 64, 4)]
    tiles = [Tile(*shape, 1) for shape in shapes if shape[0] <= side // stride]
    moved = ELEMENT * batch * channels * (side**2 + (side // stride) ** 2)
    return Case(ours, theirs, inputs, moved, ("depthwise", channels, stride), tiles, ("depthwise", channels, stride))


def pointwise(
    *,
    batch: int,
    device: str,
    inputs: int,
    outputs: int,
    side: int,
    activation: Any = "none",
    residual: bool = False,
    statistics: bool = False,
    norm: bool = False,
) -> Case:
    x = random(device, batch, side, side, inputs)
    weight = random(device, outputs, inputs, scale=inputs**-0.5)
    partials, row_sums = (sums(x), operations.row_sums(weight)) if norm else (None, None)

    def ours(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, tile: Tile | None = None) -> Tensor:
        if statistics:
            return operations.pointwise_with_statistics(x, weight, bias, tile=tile)[0]
        options: dict[str, Any] = {"residual": add, "partials": partials, "sums": row_sums, "eps": 1e-5}
        return operations.pointwise(x, weight, bias, activation=activation, tile=tile, **options)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None) -> Tensor:
        out = F.linear(F.layer_norm(x, x.shape[1:]) if norm else x, weight, bias)
        out = F.silu(out, inplace=True) if activation == "silu" else out
        return out if add is None else out.add_(add)

    within = statistics or norm
    key: Key = ("pointwise", inputs, outputs, activation, int(residual), int(within))
    tensors = [x, weight, random(device, outputs)]
    add = random(device, batch, side, side, outputs) if residual else None
    moved = ELEMENT * batch * side**2 * (inputs + outputs * (2 if residual else 1))
    flags = ("pointwise", inputs, outputs, activation, int(residual), int(statistics), int(norm))
    tiles = within_tiles(inputs, outputs) if within else pointwise_tiles(inputs, outputs) if activation == "silu" else []
    return Case(ours, theirs, [*tensors, add], moved, key, tiles, flags, library=not within)


def within_tiles(inputs: int, outputs: int) -> list[Tile]:
    loops = [
        (128, 64, 128, 8, 3),
        (64, 64, 128, 4, 3),
        (64, 64, 64, 4, 3),
        (128, 64, 64, 4, 3),
        (64, 128, 128, 4, 2),
        (64, 128, 64, 4, 2),
    ]
    return [Tile(*loop) for loop in loops if loop[1] <= power(inputs) and loop[2] <= power(outputs)]


def pointwise_tiles(inputs: int, outputs: int) -> list[Tile]:
    """With an activation: one program a tile, and programs that keep their weights."""
    k, tiles = power(inputs), []
    if inputs >= 128:
        tiles = [Tile(*loop) for loop in ((128, 64, 128, 8, 3), (64, 64, 128, 4, 3), (128, 64, 256, 8, 3), (128, 128, 128, 8, 2))]
    if inputs > 256:
        return [*tiles, Tile(64, 128, 128, 4, 2), Tile(128, 64, 64, 4, 3)]
    for m, n, w, s in [(64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 2), (64, 128, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2)]:
        room = ELEMENT * (m * k * s + k * n + m * n)
        if n <= power(outputs) and room <= SHARED_MEMORY:
            tiles.append(Tile(m, k, n, w, s, min(16 // w, SHARED_MEMORY // (room + 1024))))
    return tiles


def context(*, batch: int, device: str, dim: int, side: int) -> Case:
    tokens = random(device, batch, side, side, dim)
    partials = sums(tokens)

    def ours(x: Tensor, query: Tensor) -> Tensor:
        return operations.context(x, partials, query, patch_size=2, eps=1e-5)

    def theirs(x: Tensor, query: Tensor) -> Tensor:
        normal = patches_of(F.layer_norm(x, x.shape[1:]))
        scores = torch.softmax((normal @ query).float(), dim=-1)
        return (scores.to(x.dtype)[:, :, None] @ normal)[:, :, 0]

    return Case(ours, theirs, [tokens, random(device, dim, scale=0.2)], ELEMENT * tokens.numel())


def patches_of(x: Tensor) -> Tensor:
    """(B, H, W, D) -> (B, 4, N, D) for patches of side 2."""
    batch, height, width, dim = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, dim).permute(0, 2, 4, 1, 3, 5).reshape(batch, 4, -1, dim)


def mlp(*, batch: int, device: str, dim: int, hidden: int, side: int, gated: bool) -> Case:
    tokens = random(device, batch, side, side, dim)
    partials = sums(tokens)
    kind: Any = "relu" if gated else "silu"

    def ours(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor | None, tile: Tile | None = None) -> Tensor:
        options: dict[str, Any] = {"eps": 1e-5, "activation": kind, "patch_size": 2, "first_sums": first_sums}
        return operations.token_mlp(x, partials, w1, b1, w2, b2, gate=gate, tile=tile, **options)[0]

    def theirs(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gate: Tensor | None) -> Tensor:
        middle = F.linear(F.layer_norm(x, x.shape[1:]), w1, b1)
        if gate is None:
            return x + F.linear(F.silu(middle, inplace=True), w2, b2)
        pixels = gate.unflatten(1, (1, 2, 1, 2))  # (B, 1, 2, 1, 2, hidden)
        middle = F.relu(middle, inplace=True).reshape(batch, side // 2, 2, side // 2, 2, hidden) * pixels
        return x + F.linear(middle.reshape(batch, side, side, hidden), w2, b2)

    weights = [random(device, hidden, dim, scale=dim**-0.5), random(device, hidden)]
    weights += [random(device, dim, hidden, scale=hidden**-0.5), random(device, dim)]
    first_sums = operations.row_sums(weights[0])
    gate = random(device, batch, 4, hidden) if gated else None
    shapes = [(64, 64, 4, 2), (64, 64, 4, 1), (64, 32, 4, 3), (64, 32, 4, 2), (128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 8, 2)]
    shapes += [(64, 128, 8, 1)] if dim > 128 else [(64, 128, 4, 1), (64, 128, 4, 2)]
    tiles = [Tile(m, h, first_part(dim), w, s) for m, h, w, s in shapes if not (dim > 192 and w == 4 and h > 32)]
    key = ("mlp", dim, hidden, int(gated))
    return Case(ours, theirs, [tokens, *weights, gate], 2 * ELEMENT * tokens.numel(), key, tiles, key)
