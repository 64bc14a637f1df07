"""CUDA graphs behind a model's call: at small batches the host takes longer to start the kernels than the GPU to run them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_INPUT = 256 * 3 * 256 * 256
"""Of a recorded call, in numbers; above it the GPU is busy for longer than even a slow host needs to start its kernels."""
MOST_SHAPES = 4
"""Recorded at a time; the one that was not called for longest goes."""

logger = logging.getLogger(__name__)

Key = tuple[Any, ...]


@dataclasses.dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    pictures: Tensor
    output: Any


class GraphedForward:
    """A model's `forward` that is recorded at the second call with an input of the same shape, dtype and options.

    Calls that differ from all before run as they are: a shape is worth a recording when it comes again. So do calls with anything
    but pictures and plain options, with gradients, on another device than CUDA, or with pictures larger than `LARGEST_INPUT`.
    Answers are copies and stay as they are. Recordings share the memory of their calls; at most `MOST_SHAPES` are kept.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._recordings: OrderedDict[Key, _Recording] = OrderedDict()
        self._seen: OrderedDict[Key, bool] = OrderedDict()  # whether the call can be recorded
        self._pool: Any = None  # of memory, made with the first recording
        self._streams: dict[torch.device, torch.cuda.Stream] = {}  # one a device, or recordings could not share the memory
        functools.update_wrapper(self, forward)  # transformers' pipelines read the signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's `forward`."""
        key, pictures = _key(args, kwargs)
        if key is None or pictures is None:
            return self._forward(*args, **kwargs)
        if key not in self._recordings and not (key in self._seen and self._add(key, args, kwargs, pictures)):
            self._seen.setdefault(key, True)
            if len(self._seen) > 16 * MOST_SHAPES:
                self._seen.popitem(last=False)
            return self._forward(*args, **kwargs)
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        with torch.inference_mode():
            recording.pictures.copy_(pictures)
        recording.graph.replay()
        return _copied(recording.output)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recordings": OrderedDict(), "_seen": OrderedDict(), "_pool": None, "_streams": {}}

    def _add(self, key: Key, args: tuple[Any, ...], kwargs: dict[str, Any], pictures: Tensor) -> bool:
        """Whether there is a recording now."""
        if not self._seen[key]:
            return False
        try:
            with torch.inference_mode(), torch.cuda.device(pictures.device):
                self._recordings[key] = self._record(args, kwargs, pictures)
        except RuntimeError as error:
            logger.warning("calls with pictures %s are not recorded as CUDA graphs: %s", tuple(pictures.shape), error)
            self._seen[key] = False
            return False
        if len(self._recordings) > MOST_SHAPES:
            self._recordings.popitem(last=False)
        return True

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any], pictures: Tensor) -> _Recording:
        fixed = pictures.clone(memory_format=torch.preserve_format)

        def run() -> Any:
            replaced = {name: fixed if value is pictures else value for name, value in kwargs.items()}
            return self._forward(*(fixed if value is pictures else value for value in args), **replaced)

        stream = torch.cuda.Stream(pictures.device)  # type: ignore[no-untyped-call, unused-ignore]
        stream.wait_stream(torch.cuda.current_stream(pictures.device))
        with torch.cuda.stream(stream):
            run()  # what is made at a first call is made outside the recording
        torch.cuda.current_stream(pictures.device).wait_stream(stream)
        if pictures.device not in self._streams:
            self._streams[pictures.device] = torch.cuda.Stream(pictures.device)  # type: ignore[no-untyped-call, unused-ignore]
        graph = torch.cuda.CUDAGraph()
        # Recordings run one after another and answers are copied at once, so what one leaves in the memory is nobody's.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._streams[pictures.device]):
            output = run()
        return _Recording(graph, fixed, output)


def record_calls(model: nn.Module) -> None:
    """Put the recordings behind a model's call, in place."""
    model.forward = GraphedForward(model.forward)


def _key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Key | None, Tensor | None]:
    """What has to agree for a recording to be right, and the pictures; nothing if a call cannot be recorded."""
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    plain = all(value is None or isinstance(value, bool | int | float | str | Tensor) for value in values)
    if len(tensors) != 1 or not plain or not _recordable(tensors[0]):
        return None, None
    x = tensors[0]
    described = tuple(None if value is x else value for value in values)
    where = next(i for i, value in enumerate(values) if value is x)
    return (where, len(args), tuple(kwargs), described, tuple(x.shape), x.stride(), x.dtype, x.device), x


def _recordable(x: Tensor) -> bool:
    small = x.is_cuda and x.is_floating_point() and x.ndim == 4 and 0 < x.numel() <= LARGEST_INPUT
    return (
        small and not torch.is_grad_enabled() and not torch.cuda.is_current_stream_capturing() and not torch.compiler.is_compiling()
    )


def _copied(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, dict):  # transformers' outputs are dictionaries, too
        return type(output)(**{name: _copied(value) for name, value in output.items()})
    if isinstance(output, list | tuple):
        return type(output)(_copied(value) for value in output)
    return output
