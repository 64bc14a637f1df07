"""`optimize_for_inference`: the fastest measured form of a model on the device at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from mobilevitv2.backbone import MobileViTV2PreTrainedModel
from mobilevitv2.devices import choose_device
from mobilevitv2.errors import ConfigurationError, MissingDependency
from mobilevitv2.inference.fold import check_model, fold

Model = TypeVar("Model", bound=MobileViTV2PreTrainedModel)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class Optimization:
    """What `optimize_for_inference` chose; the model carries it as `optimization`.

    Attributes:
        device: where the weights are.
        dtype: of the weights; pictures are given in it too.
        channels_last: whether feature maps keep their channels together; pictures may come in either layout.
        packed: whether weights are laid out for oneDNN (CPU).
        kernels: the number of modules that run on this package's Triton kernels (CUDA).
        compile: torch.compile's mode, or None.
        cuda_graphs: whether small calls that come again are recorded as CUDA graphs.
    """

    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    packed: bool
    kernels: int
    compile: str | None
    cuda_graphs: bool


def optimize_for_inference(
    model: Model,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    compile: bool | str | None = None,
    channels_last: bool | None = None,
    kernels: bool | None = None,
    cuda_graphs: bool | None = None,
) -> Model:
    """An equal model in its fastest form on a device: folded, then laid out, fused or compiled as the device likes best.

    It has the class, configuration and outputs of `model` and works in its place for inference; it cannot be trained or saved.
    `model.optimization` says what was chosen. On a CPU the weights are kept twice, plain and packed.

    Args:
        model: any model of this package, in evaluation mode; it is left as it is.
        device: where to compute; the best there is by default.
        dtype: float32, bfloat16 or float16 (no float16 on a CPU); by default the model's own.
        compile: True or a mode of torch.compile; the first call of each input size then takes a minute or so. Off by default.
            "reduce-overhead" records CUDA graphs: each answer is overwritten by the next call unless it is copied. On a CPU the
            weights become constants of the compiled code (inference/compiled.py): four input sizes are compiled, others run
            uncompiled, weights must not change afterwards, and a C++ compiler is needed.
        channels_last: memory layout of the feature maps. By default on CPU and CUDA.
        kernels: this package's Triton kernels; CUDA alone, and instead of `compile`. By default with 16-bit dtypes where Triton is
            installed and the environment does not say MOBILEVITV2_KERNELS=0.
        cuda_graphs: record calls with up to 256 pictures of 256 px whose shape comes again, at most four shapes at a time, and
            replay them (inference/graphs.py). Answers are copies. Weights must not be moved or replaced afterwards. By default on
            CUDA without `compile`, whose mode "reduce-overhead" has its own.

    Raises:
        ConfigurationError: another object than a model of this package, a model in training mode, one that is optimised already,
            an unknown dtype or mode, a device that there is not, kernels or CUDA graphs on another device than CUDA, or either of
            them together with `compile`.
        MissingDependency: kernels were asked for and Triton is not installed, or compile for a CPU without a C++ compiler.
    """
    check_model(model)
    if isinstance(getattr(model, "optimization", None), Optimization):
        raise ConfigurationError("model is optimised already; call optimize_for_inference on the model it was made from.")
    chosen_device = choose_device(device)
    chosen_dtype = _dtype(dtype, chosen_device, model.dtype)
    mode = _mode(compile)
    use_kernels = _use_kernels(kernels, chosen_device, chosen_dtype, mode)
    use_graphs = _use_graphs(cuda_graphs, chosen_device, mode)
    channels_last = chosen_device.type in ("cpu", "cuda") if channels_last is None else channels_last
    # Weights are folded where and as they are, then rounded once.
    fast: Model = fold(model).to(chosen_device)
    fused, packed = 0, False
    if use_kernels:
        from mobilevitv2.kernels.modules import fuse_modules

        fused = fuse_modules(fast)
    elif chosen_device.type == "cpu" and channels_last and _packing_available():
        from mobilevitv2.inference.cpu import pack_modules
        from mobilevitv2.inference.merging import merge_stages

        merge_stages(fast)
        pack_modules(fast)
        packed = True
    fast.to(chosen_dtype)
    if channels_last:
        fast.to(memory_format=torch.channels_last)
        if packed is False and fused == 0:
            fast.register_forward_pre_hook(_to_channels_last, with_kwargs=True)
    if packed and mode is not None:
        from mobilevitv2.inference.compiled import compile_calls

        compile_calls(fast, mode, chosen_dtype)
    elif mode is not None:
        fast.compile(mode=mode)
    if use_graphs:
        from mobilevitv2.inference.graphs import record_calls

        record_calls(fast)
    fast.optimization = Optimization(chosen_device, chosen_dtype, channels_last, packed, fused, mode, use_graphs)
    return fast


def _dtype(dtype: str | torch.dtype | None, device: torch.device, own: torch.dtype) -> torch.dtype:
    chosen = own if dtype is None else DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ConfigurationError(
            f"dtype={str(own if dtype is None else dtype)!r} is no dtype to infer in; use {', '.join(DTYPES)}."
        )
    assert chosen is not None
    if chosen == torch.float16 and device.type == "cpu":
        raise ConfigurationError("dtype=float16 is slow on a CPU; use bfloat16 or float32.")
    return chosen


def _mode(compile: bool | str | None) -> str | None:
    if not compile:
        return None
    mode = "default" if compile is True else compile
    if mode not in COMPILE_MODES:
        raise ConfigurationError(
            f"compile={mode!r} is no mode of torch.compile; use True, False or one of {', '.join(COMPILE_MODES)}."
        )
    return mode


def _use_kernels(kernels: bool | None, device: torch.device, dtype: torch.dtype, mode: str | None) -> bool:
    from mobilevitv2.kernels import VARIABLE, kernels_enabled

    if kernels is None:
        return device.type == "cuda" and dtype != torch.float32 and mode is None and kernels_enabled()
    if not kernels:
        return False
    if mode is not None:
        raise ConfigurationError("kernels=True and compile exclude each other: little is left to compile; leave one of them out.")
    if not kernels_enabled():
        raise MissingDependency(f"kernels=True needs Triton (pip install triton), and {VARIABLE} must not be 0.")
    from mobilevitv2.kernels.modules import can_run

    if not can_run(device):
        raise ConfigurationError(f"kernels=True needs a CUDA device, and the model goes to {device}; leave kernels out there.")
    return True


def _use_graphs(cuda_graphs: bool | None, device: torch.device, mode: str | None) -> bool:
    possible = device.type == "cuda" and mode is None
    if cuda_graphs and not possible:
        raise ConfigurationError(
            f"cuda_graphs=True needs a CUDA device and no compile (device is {device}, compile {mode!r}); "
            'compile="reduce-overhead" records graphs of its own.'
        )
    return possible if cuda_graphs is None else cuda_graphs


def _packing_available() -> bool:
    """Whether this torch has the oneDNN operations that inference/cpu.py calls; they are not part of its documented interface."""
    operations = torch.ops.mkldnn
    names = ("_convolution_pointwise", "_linear_pointwise", "_reorder_linear_weight")
    return torch._C._has_mkldnn and all(hasattr(operations, name) for name in names)


def _to_channels_last(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    def convert(value: object) -> object:
        image = isinstance(value, torch.Tensor) and value.ndim == 4
        return value.contiguous(memory_format=torch.channels_last) if image and isinstance(value, torch.Tensor) else value

    return tuple(convert(value) for value in args), {name: convert(value) for name, value in kwargs.items()}
