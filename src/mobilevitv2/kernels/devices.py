"""What the launches of kernels know of a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

This = TypeVar("This")
Others = ParamSpec("Others")
Result = TypeVar("Result")

LARGEST_SHARED_MEMORY = 227 * 1024
"""Bytes, of an H100; no tile wants more."""


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; two anywhere else, where Triton's interpreter runs one program after the other."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program can have on a GPU."""
    if device.type != "cuda":
        return LARGEST_SHARED_MEMORY
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def on_its_device(
    forward: Callable[Concatenate[This, Tensor, Others], Result],
) -> Callable[Concatenate[This, Tensor, Others], Result]:
    """A forward whose kernels run where its input is: Triton starts them on the current GPU, whichever that is."""

    @functools.wraps(forward)
    def run(self: This, x: Tensor, /, *args: Others.args, **kwargs: Others.kwargs) -> Result:
        if not x.is_cuda or torch.compiler.is_compiling() or x.device.index == torch.cuda.current_device():
            return forward(self, x, *args, **kwargs)
        with torch.cuda.device(x.device):
            return forward(self, x, *args, **kwargs)

    return run
