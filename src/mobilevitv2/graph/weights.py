"""Tensors by name, and the algebra on them that `mobilevitv2.inference.fold` does in torch: the same here in numpy, in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from mobilevitv2.errors import WeightsMismatch

Array = np.ndarray[Any, Any]
BATCH_NORM_EPS = 1e-5
"""Of every batch norm in `mobilevitv2.blocks`."""


class Convolution(NamedTuple):
    """Weight (out, in / groups, k, k) and bias (out,), float64."""

    weight: Array
    bias: Array


def cheaper_as_one(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether the product of two 1x1 convolutions, given by the shapes of their weights, costs less than the two."""
    hidden, between, out = first[1], first[0], second[0]
    return hidden * out < hidden * between + between * out


def product(first: Convolution, second: Convolution) -> Convolution:
    """The 1x1 convolution that does what `second` does behind `first`."""
    matrix = second.weight[:, :, 0, 0]
    return Convolution((matrix @ first.weight[:, :, 0, 0])[:, :, None, None], matrix @ first.bias + second.bias)


class Weights:
    """The tensors of a model under this package's names, each taken once.

    `left` names those that nothing asked for: a sign of a model that this is not.
    """

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors
        self._asked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Array:
        """The tensor, float64.

        Raises:
            WeightsMismatch: there is none of this name.
        """
        if name not in self._tensors:
            raise WeightsMismatch(f"the weights have no tensor {name}; check that they belong to this configuration.")
        self._asked.add(name)
        return self._tensors[name].astype(np.float64)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is there."""
        return tuple(self._tensors[name].shape)

    @property
    def left(self) -> list[str]:
        """Names that nothing asked for, but the counters of batch norms and the head that only training uses."""
        unused = (name for name in self._tensors if name not in self._asked)
        return [name for name in unused if not name.endswith("num_batches_tracked") and ".auxiliary_head." not in name]

    def convolution(self, unit: str, *, norm_before: str | None = None) -> Convolution:
        """The convolution of a unit, with the batch norm behind it and the scale and shift of a group norm before it folded in."""
        weight = self.get(f"{unit}.convolution.weight")
        bias = self.get(f"{unit}.convolution.bias") if f"{unit}.convolution.bias" in self else np.zeros(len(weight))
        if norm_before is not None:
            bias = bias + weight[:, :, 0, 0] @ self.get(f"{norm_before}.bias")
            weight = weight * self.get(f"{norm_before}.weight")[:, None, None]
        norm = f"{unit}.normalization"
        if f"{norm}.weight" in self:
            scale = self.get(f"{norm}.weight") / np.sqrt(self.get(f"{norm}.running_var") + BATCH_NORM_EPS)
            bias = self.get(f"{norm}.bias") + (bias - self.get(f"{norm}.running_mean")) * scale
            weight = weight * scale[:, None, None, None]
        return Convolution(weight, bias)


@contextmanager
def scoped(builder: Any, name: str) -> Iterator[None]:
    """Inside, nodes are named after this part of the model."""
    before = builder.scope
    builder.scope = name
    try:
        yield
    finally:
        builder.scope = before
