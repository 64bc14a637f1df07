"""The trunk as a graph: what `mobilevitv2.blocks` and `mobilevitv2.backbone` say in torch, with the norms folded away.

Shape letters as in blocks.py: B batch, C channels, D channels inside attention, H and W height and width, P pixels of a patch,
N patches.
A `Map` is a value with what is known of its shape; sides that are free while the file runs are None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.graph.builder import Builder
from mobilevitv2.graph.weights import Convolution, Weights, cheaper_as_one, product, scoped


class Map(NamedTuple):
    """A value (B, channels, height, width); None for sides that are free."""

    value: str
    channels: int
    height: int | None
    width: int | None

    @property
    def fixed(self) -> tuple[int, int] | None:
        """(height, width) where both are known."""
        return None if self.height is None or self.width is None else (self.height, self.width)


class Stage(NamedTuple):
    """A stage up to its last unit, a 1x1 convolution that is not written yet; `last` is None where the stage ends with a sum."""

    x: Map
    last: Convolution | None
    name: str


@dataclass(frozen=True)
class Trunk:
    """Options of the trunk that its tensors' shapes do not tell."""

    strides: tuple[int, ...]
    """Of the stem and the five stages, input over output."""
    dilations: tuple[int, ...]
    activation: str = "swish"
    patch_size: int = 2
    norm_eps: float = 1e-5


class Network:
    """Writes the parts of the model into a builder, one after another.

    With half=True weights and arithmetic are float16; softmax, the sums over tokens and the statistics of norms stay float32.
    `norms` is how a normalisation is written: "instance", one operator on a long row, which ONNX Runtime takes fastest; or
    "moments", mean and variance spelled out, which OpenVINO makes one operator of, with half the reorders around it.
    """

    def __init__(self, builder: Builder, weights: Weights, trunk: Trunk, *, half: bool = False, norms: str = "instance") -> None:
        if trunk.activation not in ACTIVATIONS:
            raise ConfigurationError(
                f"hidden_act={trunk.activation!r} has no graph; these have one: {', '.join(sorted(ACTIVATIONS))}."
            )
        self.builder, self.weights, self.trunk = builder, weights, trunk
        self.dtype = "float16" if half else "float32"
        self.half, self.norms = half, norms

    # ---- parts -------------------------------------------------------------------------------------------------------------------

    def features(self, image: Map, *, wanted: Collection[int] = (1, 2, 3, 4, 5)) -> list[Map]:
        """(B, 3, H, W) in the graph's dtype -> the outputs of the stem and the five stages.

        A stage that is not `wanted` may stand there without its last unit, which has become one with the next stage's first.
        """
        maps, before = [self.stem(image)], None
        for number in range(1, 6):
            stage = self.stage(maps[-1], number, before)
            before = None if number in wanted else self._merges(stage, number)
            maps.append(self.whole(stage) if before is None else stage.x)
        return maps

    def until_pooling(self, image: Map) -> Stage:
        """(B, 3, H, W) in the graph's dtype -> the last stage up to its last unit."""
        x, before = self.stem(image), None
        for number in range(1, 5):
            stage = self.stage(x, number, before)
            before = self._merges(stage, number)
            x = self.whole(stage) if before is None else stage.x
        return self.stage(x, 5, before)

    def stem(self, image: Map) -> Map:
        """(B, 3, H, W) -> (B, C, H / 2, W / 2)."""
        return self.unit(image, "mobilevitv2.conv_stem", stride=self.trunk.strides[0], activation=self.trunk.activation)

    def stage(self, x: Map, number: int, before: Convolution | None = None) -> Stage:
        """Stage 1 to 5; `before` is the last convolution of the one before, where that is not in `x`."""
        strides, dilations = self.trunk.strides, self.trunk.dilations
        name, stride = f"mobilevitv2.encoder.layer.{number - 1}", strides[number] // strides[number - 1] if number > 1 else 1
        if number <= 2:
            return self.mobilenet_layer(x, name, stride=stride, before=before)
        return self.attention_stage(x, name, stride, dilations[number - 1], dilations[number], before=before)

    def whole(self, stage: Stage) -> Map:
        """A stage's output."""
        if stage.last is None:
            return stage.x
        with scoped(self.builder, stage.name):
            return self.convolve(stage.x, stage.last, stage.name)

    def _merges(self, stage: Stage, number: int) -> Convolution | None:
        """The stage's last convolution where it is cheaper as one with the first of the next."""
        if stage.last is None or number == 5:
            return None
        path = f"mobilevitv2.encoder.layer.{number}.{'layer.0' if number == 1 else 'downsampling_layer'}"
        first, out = (self.weights.shape(f"{path}.{each}.convolution.weight") for each in ("expand_1x1", "reduce_1x1"))
        summed = self.trunk.strides[number + 1] == self.trunk.strides[number] and out[0] == first[1]
        return stage.last if not summed and cheaper_as_one(stage.last.weight.shape, first) else None

    def unit(
        self,
        x: Map,
        name: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        activation: str | None = None,
        norm_before: str | None = None,
        before: Convolution | None = None,
    ) -> Map:
        """A ConvNormAct, with the convolution `before` it in it."""
        with scoped(self.builder, name):
            folded = self.weights.convolution(name, norm_before=norm_before)
            if before is not None:
                folded = product(before, folded)
            y = self.convolve(x, folded, name, stride=stride, dilation=dilation)
            return y if activation is None else y._replace(value=self.activate(y.value, activation))

    def convolve(self, x: Map, folded: Convolution, name: str, *, stride: int = 1, dilation: int = 1) -> Map:
        """A convolution with "same" padding."""
        out, into, kernel = folded.weight.shape[0], folded.weight.shape[1], folded.weight.shape[-1]
        pad = (kernel - 1) // 2 * dilation
        value = self.builder.add(
            "Conv",
            x.value,
            self.tensor(f"{name}.weight", folded.weight),
            self.tensor(f"{name}.bias", folded.bias),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            dilations=[dilation, dilation],
            group=x.channels // into,
        )
        return Map(value, out, _side(x.height, stride), _side(x.width, stride))

    def mobilenet_layer(self, x: Map, name: str, *, stride: int, before: Convolution | None = None) -> Stage:
        """Inverted residuals one after another; the first carries the stride."""
        stage = Stage(x, None, name)
        index = 0
        while f"{name}.layer.{index}.expand_1x1.convolution.weight" in self.weights:
            first = index == 0
            stage = self.inverted_residual(
                self.whole(stage), f"{name}.layer.{index}", stride=stride if first else 1, before=before if first else None
            )
            index += 1
        return stage

    def inverted_residual(
        self, x: Map, name: str, *, stride: int = 1, dilation: int = 1, before: Convolution | None = None
    ) -> Stage:
        """Expand, filter each channel, reduce; added to its input where the shapes agree."""
        activation = self.trunk.activation
        y = self.unit(x, f"{name}.expand_1x1", activation=activation, before=before)
        y = self.unit(y, f"{name}.conv_3x3", stride=stride, dilation=dilation, activation=activation)
        reduced = Stage(y, self.weights.convolution(f"{name}.reduce_1x1"), f"{name}.reduce_1x1")
        assert reduced.last is not None
        if stride != 1 or before is not None or len(reduced.last.weight) != x.channels:
            return reduced
        y = self.whole(reduced)
        with scoped(self.builder, name):
            return Stage(y._replace(value=self.builder.add("Add", x.value, y.value)), None, name)

    def attention_stage(
        self, x: Map, name: str, stride: int, first_dilation: int, dilation: int, *, before: Convolution | None = None
    ) -> Stage:
        """MobileViTV2Block: inverted residual, local and global representation."""
        first = self.inverted_residual(x, f"{name}.downsampling_layer", stride=stride, dilation=first_dilation, before=before)
        x = self.whole_patches(self.whole(first), name)
        x = self.unit(x, f"{name}.conv_kxk", dilation=dilation, activation=self.trunk.activation)
        x = self.unit(x, f"{name}.conv_1x1")
        with scoped(self.builder, name):
            tokens, shape = self.unfold(x)
        index = 0
        while f"{name}.transformer.layer.{index}.attention.qkv_proj.convolution.weight" in self.weights:
            tokens = self.transformer_layer(tokens, x.channels, f"{name}.transformer.layer.{index}")
            index += 1
        with scoped(self.builder, f"{name}.layernorm"):
            tokens = self.normalise(tokens, x.channels)
        with scoped(self.builder, name):
            x = x._replace(value=self.fold(tokens, shape))
        last = f"{name}.conv_projection"
        return Stage(x, self.weights.convolution(last, norm_before=f"{name}.layernorm"), last)

    def whole_patches(self, x: Map, name: str) -> Map:
        """Stretched so that both sides are whole patches; free sides are so already, as the size check sees to."""
        if x.fixed is None:
            return x
        patch = self.trunk.patch_size
        height, width = ((side + patch - 1) // patch * patch for side in x.fixed)
        if (height, width) == x.fixed:
            return x
        with scoped(self.builder, name):
            return self.resize(x, (height, width))

    def resize(self, x: Map, size: tuple[int, int]) -> Map:
        """Bilinear, corner pixels on corner pixels."""
        value = self.builder.add(
            "Resize",
            x.value,
            "",
            "",
            self.sizes_of(x, size),
            mode="linear",
            coordinate_transformation_mode="align_corners",
        )
        return Map(value, x.channels, *size)

    def sizes_of(self, x: Map, size: tuple[int, int]) -> str:
        """The shape (B, channels, *size) as a value."""
        batch = self.builder.add("Shape", x.value, start=0, end=1)
        return self.builder.add("Concat", batch, self.builder.ints(x.channels, *size), axis=0)

    # ---- tokens ------------------------------------------------------------------------------------------------------------------

    def unfold(self, x: Map) -> tuple[str, str]:
        """(B, D, H, W) -> (B, D, P, N), and the shape (B, D P, H / p, W / p) to go back by, as a value."""
        patch, pixels = self.trunk.patch_size, self.trunk.patch_size**2
        # SpaceToDepth puts the pixels of a patch before the channels: (B, P D, H / p, W / p).
        spread = self.builder.add("SpaceToDepth", x.value, blocksize=patch)
        if x.fixed is None:
            shape = self.builder.add("Shape", spread)
        else:
            shape = self.builder.ints(0, pixels * x.channels, x.fixed[0] // patch, x.fixed[1] // patch)
        apart = self.builder.add("Reshape", spread, self.builder.ints(0, pixels, x.channels, -1))
        return self.builder.add("Transpose", apart, perm=[0, 2, 1, 3]), shape

    def fold(self, tokens: str, shape: str) -> str:
        """(B, D, P, N) -> (B, D, H, W)."""
        spread = self.builder.add("Reshape", tokens, shape)
        return self.builder.add("DepthToSpace", spread, blocksize=self.trunk.patch_size, mode="CRD")

    def transformer_layer(self, x: str, dim: int, name: str) -> str:
        """(B, D, P, N) -> (B, D, P, N)."""
        with scoped(self.builder, f"{name}.layernorm_before"):
            normed = self.normalise(x, dim)
        attended = self.attention(normed, dim, name)
        with scoped(self.builder, name):
            x = self.builder.add("Add", x, attended)
        with scoped(self.builder, f"{name}.layernorm_after"):
            normed = self.normalise(x, dim)
        tokens = Map(normed, dim, None, None)
        hidden = self.unit(tokens, f"{name}.ffn.conv1", activation=self.trunk.activation, norm_before=f"{name}.layernorm_after")
        forwarded = self.unit(hidden, f"{name}.ffn.conv2")
        with scoped(self.builder, name):
            return self.builder.add("Add", x, forwarded.value)

    def attention(self, x: str, dim: int, layer: str) -> str:
        """Separable self-attention on normed tokens (B, D, P, N), with query, key and value apart."""
        name = f"{layer}.attention"
        weight, bias = self.weights.convolution(f"{name}.qkv_proj", norm_before=f"{layer}.layernorm_before")
        tokens = Map(x, dim, None, None)
        add = self.builder.add
        with scoped(self.builder, name):
            query = self.convolve(tokens, Convolution(weight[:1], bias[:1]), f"{name}.query").value  # (B, 1, P, N)
            scores = add("Softmax", self.wide(query), axis=-1)
            weighted = add("Mul", self.wide(x), scores)
            context = self.narrow(add("ReduceSum", weighted, self.builder.ints(-1), keepdims=1))  # (B, D, P, 1)
            keys, values = slice(1, 1 + dim), slice(1 + dim, 1 + 2 * dim)
            key = self.convolve(Map(context, dim, None, None), Convolution(weight[keys], bias[keys]), f"{name}.key").value
            value = self.convolve(tokens, Convolution(weight[values], bias[values]), f"{name}.value").value
            mixed = add("Mul", add("Relu", value), key)
        return self.unit(Map(mixed, dim, None, None), f"{name}.out_proj").value

    def normalise(self, x: str, dim: int) -> str:
        """Group normalisation of one group: (B, D, P, N), each picture whole. Scale and shift are in the next convolution."""
        if self.norms == "moments":
            return self._by_moments(self.wide(x))
        one_row = self.builder.add("Reshape", self.wide(x), self.builder.ints(0, 1, -1))
        scale, shift = self.builder.constant([1.0]), self.builder.constant([0.0])
        normed = self.builder.add("InstanceNormalization", one_row, scale, shift, epsilon=float(self.trunk.norm_eps))
        return self.narrow(self.builder.add("Reshape", normed, self.builder.ints(0, dim, self.trunk.patch_size**2, -1)))

    def _by_moments(self, x: str) -> str:
        add, axes = self.builder.add, self.builder.ints(1, 2, 3)
        centred = add("Sub", x, add("ReduceMean", x, axes, keepdims=1))
        variance = add("ReduceMean", add("Mul", centred, centred), axes, keepdims=1)
        deviation = add("Sqrt", add("Add", variance, self.builder.constant(self.trunk.norm_eps)))
        return self.narrow(add("Div", centred, deviation))

    # ---- numbers -----------------------------------------------------------------------------------------------------------------

    def tensor(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """A weight in the graph's dtype."""
        return self.builder.weight(name, value.astype(self.dtype))

    def wide(self, x: str) -> str:
        """In float32."""
        return self.builder.cast(x, "float32") if self.half else x

    def narrow(self, x: str) -> str:
        """In the graph's dtype."""
        return self.builder.cast(x, "float16") if self.half else x

    def activate(self, x: str, name: str) -> str:
        """An activation by transformers' name."""
        return ACTIVATIONS[name](self, x)


def _side(side: int | None, stride: int) -> int | None:
    return None if side is None else (side + stride - 1) // stride


def _swish(network: Network, x: str) -> str:
    return network.builder.add("Mul", x, network.builder.add("Sigmoid", x))


def _relu6(network: Network, x: str) -> str:
    low, high = (network.builder.constant(value, network.dtype) for value in (0.0, 6.0))
    return network.builder.add("Clip", x, low, high)


def _gelu(network: Network, x: str) -> str:
    constant = network.builder.constant
    erf = network.builder.add("Erf", network.builder.add("Mul", x, constant(0.5**0.5, network.dtype)))
    half = network.builder.add("Mul", x, constant(0.5, network.dtype))
    return network.builder.add("Mul", half, network.builder.add("Add", erf, constant(1.0, network.dtype)))


def _plain(operator: str) -> Callable[[Network, str], str]:
    return lambda network, x: network.builder.add(operator, x)


ACTIVATIONS: dict[str, Callable[[Network, str], str]] = {
    "swish": _swish,
    "silu": _swish,
    "relu": _plain("Relu"),
    "relu6": _relu6,
    "gelu": _gelu,
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "hardswish": _plain("HardSwish"),
    "mish": _plain("Mish"),
    "linear": _plain("Identity"),
}
