"""A model, of any kind, as a function of pixels; and the bar that shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.evaluate.prepared import Readable

Item = TypeVar("Item")


@contextmanager
def running(
    model: Callable[..., Any], device: str | torch.device | None, dtype: torch.dtype | None
) -> Iterator[tuple[Callable[[Tensor], Any], torch.device]]:
    """The model as a function pixels -> its output, and where it computes. A module is as it was afterwards.

    Args:
        model: a module, put into evaluation mode meanwhile, or any function.
        device: where to compute. None: where the module is, the CPU for functions.
        dtype: arithmetic of a module under autocast; None for that of its weights.
    """
    if not isinstance(model, nn.Module):
        at = torch.device(device or "cpu")
        with torch.inference_mode():
            yield lambda pixels: model(pixels.to(at)), at
        return
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.zeros(()))
    home, modes = weight.device, {module: module.training for module in model.modules()}
    at = torch.device(device) if device is not None else home

    def answer(pixels: Tensor) -> Any:
        with nullcontext() if dtype is None else torch.autocast(at.type, dtype, enabled=dtype != torch.float32):
            return model(pixels.to(at, weight.dtype, non_blocking=True))

    try:
        model.to(at).eval()
        with torch.inference_mode():
            yield answer, at
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training


def logits_of(output: Any, shape: str) -> Tensor:
    """The logits in float32 of what a model gave: a tensor, an array, a tuple that begins with them, an object with `.logits`.

    Args:
        output: of the model.
        shape: of the logits in words, "(pictures, classes)" say; it has as many commas as the logits dimensions, less one.
    """
    if isinstance(output, Mapping) and "logits" in output:  # transformers' outputs are mappings too
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, tuple | list):
        output = output[0]
    logits = torch.as_tensor(output)
    if logits.ndim != shape.count(",") + 1:
        raise ConfigurationError(f"the model gave a tensor of shape {tuple(logits.shape)}; one of this task gives {shape}")
    return logits.float()


def with_bar(batches: Iterable[Item], split: Readable, batch_size: int, progress: bool) -> Iterable[Item]:
    """The batches, with a progress bar if that is wanted and stderr is a terminal."""
    from tqdm import tqdm

    total, disable = -(-len(split) // batch_size), None if progress else True
    return tqdm(batches, total=total, desc=f"evaluating {split.name}", unit=" batches", disable=disable, leave=False)
