"""torch.compile for a CPU with the weights as constants, which torch calls freezing.

Only then does Inductor lay weights out for oneDNN beforehand and put SiLU and sums into the epilogues of convolutions; what is left
between them becomes a few loops of generated C++. Freezing is a setting of Inductor that is read while it compiles: it is on during
the calls of the model, which may compile anew after torch._dynamo.reset(), and in their thread alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mobilevitv2.errors import MissingDependency

MOST_SHAPES = 4
"""That are compiled, half a minute or more each; calls with others run uncompiled."""
SETTINGS: dict[str, Any] = {"freezing": True}
SETTINGS_16_BITS: dict[str, Any] = {**SETTINGS, "cpp_wrapper": True}
"""The calls between the kernels in C++, too: 8 to 11 % faster in bfloat16, but 16 % slower in float32 (docs/performance.md)."""
LIMITS: dict[str, Any] = {"recompile_limit": 256, "accumulated_recompile_limit": 1024}
"""torch counts what is compiled by the lines of code, which all models have in common; here MOST_SHAPES counts."""

logger = logging.getLogger(__name__)

Key = tuple[Any, ...]


class FrozenForward:
    """A model's `forward`, compiled at the first call with pictures of a new shape and type, or with new options.

    Calls for gradients, with other tensors than pictures, inside of another torch.compile, and with more shapes than `MOST_SHAPES`
    run uncompiled. Weights must not change after the first call.
    """

    def __init__(self, forward: Callable[..., Any], mode: str, dtype: torch.dtype) -> None:
        self._forward, self._mode, self._told = forward, mode, False
        self._settings = SETTINGS if dtype == torch.float32 else SETTINGS_16_BITS
        self._start()
        functools.update_wrapper(self, forward)  # transformers' pipelines read the signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's `forward`."""
        key = _key(args, kwargs)
        known = key in self._known
        if key is None or not (known or len(self._known) < MOST_SHAPES):
            if key is not None and not self._told:
                self._told = True
                logger.warning("pictures of more than %d shapes: those after them run uncompiled.", MOST_SHAPES)
            return self._forward(*args, **kwargs)
        # One kind of tensors, gradients off and inference mode off, so that nothing is compiled twice.
        with torch.inference_mode(False), torch.no_grad():
            args = tuple(_settled(value) for value in args)
            kwargs = {name: _settled(value) for name, value in kwargs.items()}
            with torch._inductor.config.patch(self._settings), torch._dynamo.config.patch(LIMITS):
                output = self._compiled(*args, **kwargs)
        self._known.add(key)
        return output

    def __getstate__(self) -> dict[str, Any]:
        return {"_forward": self._forward, "_mode": self._mode, "_told": False, "_settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._known: set[Key] = set()
        self._compiled: Any = torch.compile(self._forward, mode=self._mode, dynamic=False)


def compile_calls(model: nn.Module, mode: str, dtype: torch.dtype) -> None:
    """Put the compiled form behind a model's call, in place; `dtype` is that of its weights.

    Raises:
        MissingDependency: there is no C++ compiler.
    """
    check_compiler()
    model.forward = FrozenForward(model.forward, mode, dtype)


def check_compiler() -> None:
    """Raises: MissingDependency: there is no C++ compiler, which torch.compile needs for a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise MissingDependency(
            f"compile on a CPU needs a C++ compiler ({error}); install one (Debian: apt install g++) or name it in CXX, "
            "or leave compile out."
        ) from error


def _key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
    """What a compiled call is good for; None for calls that run uncompiled."""
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    plain = all(value is None or isinstance(value, bool | int | float | str | Tensor) for value in values)
    if len(tensors) != 1 or not plain or torch.compiler.is_compiling():
        return None
    x = tensors[0]
    if x.device.type != "cpu" or x.ndim != 4 or x.requires_grad or x.numel() == 0:
        return None
    described = tuple("pictures" if value is x else value for value in values)
    return (len(args), tuple(kwargs), described, tuple(x.shape), x.dtype)


def _settled(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.contiguous(memory_format=torch.channels_last)
    return value.clone() if value.is_inference() else value
