"""Inference on a CPU in PyTorch itself, beside transformers and timm: interleaved runs of all forms in one process.

    python benchmarks/inference_cpu.py --threads 2                  # width 1.0, 256 px, one picture
    python benchmarks/inference_cpu.py --threads 1 --profile        # and where the fast form's time goes
    python benchmarks/inference_cpu.py --compile                    # with torch.compile'd rows, a minute or two each
    python benchmarks/inference_cpu.py --compile max-autotune       # and with Inductor's own products of matrices, searched
    python benchmarks/inference_cpu.py --operations                 # oneDNN's SiLU in the epilogue beside SiLU in place

All models have the same weights. A ratio is the median of the rounds' own, transformers' eager float32 over the row. With one
thread the clock is the thread's own processor time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from same_weights import classifiers, relative_error
from torch import Tensor, nn
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--compile", nargs="?", const="default", help="a mode of torch.compile")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--operations", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    with torch.inference_mode():
        if arguments.operations:
            compare_operations(clock)
            return
        rows = compare_models(arguments, clock)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"arguments": {k: str(v) for k, v in vars(arguments).items()}, "rows": rows}, indent=1)
        )


def compare_models(arguments: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    models = classifiers(arguments.width)
    x = torch.rand(arguments.batch_size, 3, arguments.size, arguments.size)
    exact = models["ours"](x).logits
    forms = build_forms(models, compiled=arguments.compile)
    rows = {name: first_call(name, model, x.to(dtype), exact) for name, (model, dtype) in forms.items()}
    inputs = {name: x.to(dtype).contiguous(memory_format=torch.channels_last) for name, (_, dtype) in forms.items()}
    inputs["transformers"] = x
    times = interleaved({name: lambda m=model, i=inputs[name]: m(i) for name, (model, _) in forms.items()}, arguments.rounds, clock)  # type: ignore[misc]
    gflops = matmul_rate(clock)
    print(f"matrix product: float32 {gflops[torch.float32]:.0f}, bfloat16 {gflops[torch.bfloat16]:.0f} GFLOP/s")
    print(f"{'form':34} {'ms':>8} {'min':>8} {'ratio':>6} {'error':>8}")
    for name, row in rows.items():
        ms = statistics.median(times[name])
        ratio = statistics.median(base / each for base, each in zip(times["transformers"], times[name], strict=True))
        row |= {"ms": 1e3 * ms, "min_ms": 1e3 * min(times[name]), "ratio": ratio}
        print(f"{name:34} {row['ms']:8.2f} {row['min_ms']:8.2f} {row['ratio']:6.2f} {row['error']:8.1e}")
    if arguments.profile:
        profile(forms["ours optimised"][0], inputs["ours optimised"])
        profile(forms["ours optimised bfloat16"][0], inputs["ours optimised bfloat16"])
    return list(rows.values())


def first_call(name: str, model: Any, x: Tensor, exact: Tensor) -> dict[str, Any]:
    start = time.perf_counter()
    error = relative_error(model(x).logits, exact)
    if "compiled" in name:
        print(f"{name}: first call {time.perf_counter() - start:.0f} s", flush=True)
    return {"name": name, "error": error, "first_call": time.perf_counter() - start}


def build_forms(models: dict[str, nn.Module], *, compiled: str | None) -> dict[str, tuple[Any, torch.dtype]]:
    from mobilevitv2.inference import fold, optimize_for_inference

    def last(model: nn.Module) -> nn.Module:
        return copy.deepcopy(model).to(memory_format=torch.channels_last)

    plain: Any = models["ours"]
    forms: dict[str, tuple[Any, torch.dtype]] = {
        "transformers": (models["transformers"], torch.float32),
        "timm channels_last": (last(models["timm"]), torch.float32),
        "ours plain channels_last": (last(plain), torch.float32),
        "ours folded channels_last": (last(fold(plain)), torch.float32),
        "ours optimised": (optimize_for_inference(plain, device="cpu"), torch.float32),
        "transformers bfloat16": (copy.deepcopy(models["transformers"]).bfloat16(), torch.bfloat16),
        "ours plain bfloat16": (last(plain).bfloat16(), torch.bfloat16),
        "ours optimised bfloat16": (optimize_for_inference(plain, device="cpu", dtype="bfloat16"), torch.bfloat16),
    }
    if compiled:
        forms["transformers compiled"] = (torch.compile(last(models["transformers"])), torch.float32)
        forms["ours compiled"] = (optimize_for_inference(plain, device="cpu", compile=compiled), torch.float32)
        forms["ours compiled bfloat16"] = (
            optimize_for_inference(plain, device="cpu", dtype="bfloat16", compile=compiled),
            torch.bfloat16,
        )
    return forms


def interleaved(forms: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 2):
        for name, form in forms.items():
            start = clock()
            form()
            if number >= 2:
                times[name].append(clock() - start)
    return times


def matmul_rate(clock: Callable[[], float]) -> dict[torch.dtype, float]:
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.rand(1024, 1024).to(dtype)
        times = interleaved({"product": lambda x=x: x @ x}, 9, clock)["product"]  # type: ignore[misc]
        rates[dtype] = 2 * 1024**3 / min(times) / 1e9
    return rates


def profile(model: Any, x: Tensor) -> None:
    with torch.profiler.profile() as found:
        for _ in range(5):
            model(x)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


def compare_operations(clock: Callable[[], float]) -> None:
    """1x1 convolutions as convolutions and as products; SiLU in oneDNN's epilogue and in place behind it."""
    for dtype in (torch.float32, torch.bfloat16):
        for inputs, outputs, side in ((32, 64, 128), (64, 128, 128), (128, 256, 64), (128, 256, 32), (192, 384, 16), (512, 256, 8)):
            x = torch.randn(1, inputs, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
            weight, bias = torch.randn(outputs, inputs, 1, 1).to(dtype), torch.randn(outputs).to(dtype)
            print(dtype, (inputs, outputs, side), compare_one(x, weight, bias, clock))


def compare_one(x: Tensor, weight: Tensor, bias: Tensor, clock: Callable[[], float]) -> str:
    operations, rest = torch.ops.mkldnn, ([0, 0], [1, 1], [1, 1], 1)
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    packed = reorder(weight.to_mkldnn(), *rest, list(x.shape))
    rows, matrix = x.permute(0, 2, 3, 1), weight.flatten(1)
    packed_matrix = operations._reorder_linear_weight(matrix, x.shape[-1] ** 2)
    convolve, multiply = operations._convolution_pointwise.default, operations._linear_pointwise.default
    forms: dict[str, Callable[[], Any]] = {
        "F.conv2d, silu_": lambda: F.silu(F.conv2d(x, weight, bias), inplace=True),
        "packed, silu_": lambda: F.silu(convolve(x, packed, bias, *rest, "none", [], ""), inplace=True),
        "packed + swish": lambda: convolve(x, packed, bias, *rest, "swish", [], ""),
        "product, silu_": lambda: F.silu(multiply(rows, packed_matrix, bias, "none", [], ""), inplace=True),
        "product + swish": lambda: multiply(rows, packed_matrix, bias, "swish", [], ""),
    }
    times = interleaved(forms, 15, clock)
    return ", ".join(f"{name} {1e3 * statistics.median(each):.3f}" for name, each in times.items())


if __name__ == "__main__":
    main()
