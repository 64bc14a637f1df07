"""Inference on one NVIDIA GPU: every form of the model beside transformers and timm, and every kernel beside cuDNN, in one run.

    PYTHONPATH=src python benchmarks/inference_gpu.py --json out.json            # about two minutes, compilation included
    PYTHONPATH=src python benchmarks/inference_gpu.py --only kernels --tune      # tiles of the kernels, no models
    PYTHONPATH=src python benchmarks/inference_gpu.py --only models --rows kernels,folded

All models have the same weights. A row that fails says why and the others go on; a row that would start after --budget seconds is
left out. Errors are those of the logits against the plain model in float32, in units of the largest logit; the plain model's own
error in bfloat16 stands beside them.
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

START = time.perf_counter()
DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32  # Triton's interpreter knows no products of bfloat16
ELEMENT = DTYPE.itemsize  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=110.0, help="seconds after which no new row starts")
    parser.add_argument("--only", choices=["kernels", "models"], help="one half of the run")
    parser.add_argument("--rows", help="comma-separated starts of row names to run")
    parser.add_argument("--tune", action="store_true", help="try several tiles for each kernel")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    results: dict[str, Any] = {
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
        "device": environment(arguments.device),
    }
    print(results["device"])
    with torch.inference_mode():
        results["copy_gb_s"] = guarded(lambda: copy_bandwidth(arguments.device))
        print(f"copy, bytes read and written: {results['copy_gb_s']} GB/s")
        if arguments.only != "models":
            results["kernels"] = kernel_table(arguments)
            save(results, arguments.json)
        if arguments.only != "kernels":
            results["models"] = model_table(arguments)
    save(results, arguments.json)


def environment(device: str) -> str:
    import triton

    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return f"{name}, torch {torch.__version__}, triton {triton.__version__}"


def guarded(run: Callable[[], Any]) -> Any:
    """The result, or the error as text: one failing row must not cost the others."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()[:300]}"


def save(results: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(results, indent=1))


def elapsed() -> float:
    return time.perf_counter() - START


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], Any], *, repeats: int = 20) -> float:
    """Median time on the device; a write of 256 MB before each run takes earlier results out of the cache."""
    run()
    wait()
    if not torch.cuda.is_available():
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repeats):
        flush.zero_()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        times.append((first, last))
    wait()
    return statistics.median(first.elapsed_time(last) for first, last in times)


def copy_bandwidth(device: str) -> float:
    size = 2**31 if device.startswith("cuda") else 2**20
    x, y = torch.empty(size, dtype=torch.int8, device=device), torch.empty(size, dtype=torch.int8, device=device)
    return round(2 * size / milliseconds(lambda: y.copy_(x)) / 1e6, 1)


# ---- kernels ----------------------------------------------------------------------------------------------------------------


def kernel_table(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    print(f"\n{'kernel':34} {'ours ms':>8} {'GB/s':>6} {'torch ms':>9} {'GB/s':>6} {'times':>6} {'error':>8} {'torch':>8}")
    for name, case in kernel_cases(arguments):
        if elapsed() > arguments.budget or not wanted(name, arguments.rows):
            continue
        row = guarded(lambda case=case: measure_kernel(case, tune=arguments.tune))  # type: ignore[misc]
        row = {"name": name, **row} if isinstance(row, dict) else {"name": name, "failed": row}
        rows.append(row)
        if "failed" in row:
            print(f"{name:34} {row['failed']}")
            continue
        print(
            f"{name:34} {row['ms']:8.4f} {row['gb_s']:6.0f} {row['torch_ms']:9.4f} {row['torch_gb_s']:6.0f} "
            f"{row['torch_ms'] / row['ms']:6.2f} {row['error']:8.1e} {row['torch_error']:8.1e}  {row.get('tile', '')}",
            flush=True,
        )
        for tile, ms in row.get("tiles", {}).items():
            print(f"    {tile:60} {ms if isinstance(ms, str) else round(ms, 4)}")
    return rows


def wanted(name: str, rows: str | None) -> bool:
    return rows is None or any(name.startswith(row.strip()) for row in rows.split(","))


def measure_kernel(case: dict[str, Any], *, tune: bool) -> dict[str, Any]:
    """Time of ours and of torch's operations one after another, both against float32 of the same inputs."""
    inputs = [x.to(DTYPE) if x is not None else None for x in case["inputs"]]
    exact_inputs = [x.float() if x is not None else None for x in inputs]
    exact = case["torch"](*exact_inputs).float()
    ours, theirs = case["ours"](*inputs), case["torch"](*inputs)
    row: dict[str, Any] = {"error": relative_error(ours, exact), "torch_error": relative_error(theirs, exact)}
    del ours, theirs, exact, exact_inputs
    times: dict[str, Any] = {}
    if tune:
        for tile in case["tiles"]:
            times[str(tuple(tile))] = guarded(lambda tile=tile: milliseconds(lambda: case["ours"](*inputs, tile=tile), repeats=7))  # type: ignore[misc]
    ms = milliseconds(lambda: case["ours"](*inputs))
    torch_ms = milliseconds(lambda: case["torch"](*inputs))
    row |= {"ms": ms, "gb_s": case["bytes"] / ms / 1e6, "torch_ms": torch_ms, "torch_gb_s": case["bytes"] / torch_ms / 1e6}
    if times:
        row["tiles"] = times
        measured = {tile: t for tile, t in times.items() if not isinstance(t, str)}
        row["tile"] = "best " + min(measured, key=measured.__getitem__) if measured else ""
    return row


def kernel_cases(arguments: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    from mobilevitv2 import MobileViTV2Config

    config = MobileViTV2Config(width_multiplier=arguments.width)
    c, dims, side = config.stage_channels, config.attn_dims, arguments.size // 2
    cases = [("stem", stem_case(arguments, c[0]))]
    maps = [("stage1", c[0], c[1], side, 1), ("stage2.0", c[1], c[2], side, 2), ("stage2.1", c[2], c[2], side // 2, 1)]
    maps += [(f"stage{i}.0", c[i - 1], c[i], side >> (i - 2), 2) for i in (3, 4, 5)]
    for name, inputs, outputs, height, stride in maps:
        cases.append((f"pointwise {name} expand", pointwise_case(arguments, inputs, 2 * inputs, height)))
        cases.append((f"depthwise {name}", depthwise_case(arguments, 2 * inputs, outputs, height, stride)))
    for stage, dim in zip((3, 4, 5), dims, strict=True):
        height = side >> (stage - 1)
        cases.append((f"depthwise stage{stage} block", depthwise_case(arguments, c[stage], dim, height, 1)))
        cases.append((f"context stage{stage}", context_case(arguments, dim, height)))
        cases.append((f"mlp stage{stage} ffn", mlp_case(arguments, dim, config.ffn_dims[stage - 3], height, gated=False)))
        cases.append((f"mlp stage{stage} attention", mlp_case(arguments, dim, dim, height, gated=True)))
    return cases


def random(arguments: argparse.Namespace, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, device=arguments.device, dtype=DTYPE)


def stem_case(a: argparse.Namespace, outputs: int) -> dict[str, Any]:
    from mobilevitv2.kernels import operations
    from mobilevitv2.kernels.operations import Tile

    def ours(x: Tensor, weight: Tensor, bias: Tensor, tile: Tile | None = None) -> Tensor:
        return operations.stem(x, weight.flatten(1), bias, stride=2, activation="silu", tile=tile).permute(0, 3, 1, 2)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.conv2d(x, weight, bias, stride=2, padding=1), inplace=True)

    x = random(a, a.batch_size, 3, a.size, a.size).contiguous(memory_format=torch.channels_last)
    pixels = a.batch_size * (a.size // 2) ** 2
    block = max(16, 1 << (outputs - 1).bit_length())
    return {
        "ours": ours,
        "torch": theirs,
        "inputs": [x, random(a, outputs, 3, 3, 3, scale=0.2), random(a, outputs)],
        "bytes": ELEMENT * (x.numel() + pixels * outputs),
        "tiles": [Tile(m, 32, block, w, 1) for m in (64, 128, 256) for w in (4, 8)],
    }


def pointwise_case(a: argparse.Namespace, inputs: int, outputs: int, height: int) -> dict[str, Any]:
    from mobilevitv2.kernels import operations
    from mobilevitv2.kernels.operations import Tile

    def ours(x: Tensor, weight: Tensor, bias: Tensor, tile: Tile | None = None) -> Tensor:
        return operations.pointwise(x, weight, bias, activation="silu", tile=tile)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.linear(x, weight, bias), inplace=True)

    x = random(a, a.batch_size, height, height, inputs)
    tiles = [
        Tile(m, k, n, w, s) for m in (64, 128) for n in (64, 128, 256) for k in (32, 64) for w in (4, 8) for s in (2, 3)
        if n <= 2 * outputs and k <= 2 * inputs and m * n <= 128 * 256 and not (m * n >= 128 * 256 and w == 4)
    ]  # fmt: skip
    return {
        "ours": ours,
        "torch": theirs,
        "inputs": [x, random(a, outputs, inputs, scale=inputs**-0.5), random(a, outputs)],
        "bytes": ELEMENT * a.batch_size * height**2 * (inputs + outputs),
        "tiles": tiles,
    }


def depthwise_case(a: argparse.Namespace, inputs: int, outputs: int, height: int, stride: int) -> dict[str, Any]:
    from mobilevitv2.kernels import operations
    from mobilevitv2.kernels.operations import Tile

    def ours(x: Tensor, taps: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, tile: Tile | None = None) -> Tensor:
        rows = taps.flatten(1).t().contiguous()
        return operations.depthwise_pointwise(
            x.permute(0, 2, 3, 1), rows, shift, weight, bias, stride=stride, activation="silu", tile=tile
        )[0].permute(0, 3, 1, 2)

    def theirs(x: Tensor, taps: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        middle = F.silu(F.conv2d(x, taps, shift, stride=stride, padding=1, groups=inputs), inplace=True)
        return F.conv2d(middle, weight[:, :, None, None], bias)

    x = random(a, a.batch_size, inputs, height, height).contiguous(memory_format=torch.channels_last)
    weights = random(a, inputs, 1, 3, 3, scale=0.4), random(a, inputs), random(a, outputs, inputs, scale=inputs**-0.5)
    whole = max(16, 1 << (outputs - 1).bit_length())
    tiles = [
        Tile(m, k, n, w, s)
        for m in (32, 64, 128) for k in (16, 32, 64) for n in sorted({whole, min(256, whole), 128}) for w in (4, 8) for s in (1, 2)
        if n <= whole and n <= 512 and m * n <= 128 * 256 and m * k <= 128 * 32
    ]  # fmt: skip
    return {
        "ours": ours,
        "torch": theirs,
        "inputs": [x, *weights, random(a, outputs)],
        "bytes": ELEMENT * a.batch_size * (height**2 * inputs + (height // stride) ** 2 * outputs),
        "tiles": tiles,
    }


def sums(tokens: Tensor) -> Tensor:
    flat = tokens.float().flatten(1)
    return torch.stack([flat.sum(1), flat.square().sum(1)], dim=-1)[:, None]


def context_case(a: argparse.Namespace, dim: int, height: int) -> dict[str, Any]:
    from mobilevitv2.kernels import operations

    tokens = random(a, a.batch_size, 4, height**2 // 4, dim)
    partials = sums(tokens)

    def ours(x: Tensor, query: Tensor) -> Tensor:
        return operations.context(x, partials, query, eps=1e-5)

    def theirs(x: Tensor, query: Tensor) -> Tensor:
        normal = F.layer_norm(x, x.shape[1:])
        scores = torch.softmax((normal @ query).float(), dim=-1)
        return (scores.to(x.dtype)[:, :, None] @ normal)[:, :, 0]

    return {
        "ours": ours,
        "torch": theirs,
        "inputs": [tokens, random(a, dim, scale=0.2)],
        "bytes": ELEMENT * tokens.numel(),
        "tiles": [],
    }


def mlp_case(a: argparse.Namespace, dim: int, hidden: int, height: int, *, gated: bool) -> dict[str, Any]:
    from mobilevitv2.kernels import operations
    from mobilevitv2.kernels.operations import Tile

    tokens = random(a, a.batch_size, 4, height**2 // 4, dim)
    partials = sums(tokens)

    def ours(
        x: Tensor, first: Tensor, shift: Tensor, second: Tensor, bias: Tensor, gate: Tensor | None, tile: Tile | None = None
    ) -> Tensor:
        kind: Any = "relu" if gated else "silu"
        return operations.token_mlp(x, partials, first, shift, second, bias, eps=1e-5, activation=kind, gate=gate, tile=tile)[0]

    def theirs(x: Tensor, first: Tensor, shift: Tensor, second: Tensor, bias: Tensor, gate: Tensor | None) -> Tensor:
        middle = F.linear(F.layer_norm(x, x.shape[1:]), first, shift)
        middle = F.silu(middle, inplace=True) if gate is None else F.relu(middle, inplace=True) * gate[:, :, None]
        return x + F.linear(middle, second, bias)

    weights = random(a, hidden, dim, scale=dim**-0.5), random(a, hidden), random(a, dim, hidden, scale=hidden**-0.5), random(a, dim)
    block = max(16, 1 << (dim - 1).bit_length())
    return {
        "ours": ours,
        "torch": theirs,
        "inputs": [tokens, *weights, random(a, a.batch_size, 4, hidden) if gated else None],
        "bytes": 2 * ELEMENT * tokens.numel(),
        "tiles": [Tile(m, h, block, w, s) for m in (32, 64, 128) for h in (32, 64) for w in (4, 8) for s in (1, 2, 3)],
    }


# ---- models -----------------------------------------------------------------------------------------------------------------


class Graph:
    """A model recorded as a CUDA graph for one input."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.x = x.clone(memory_format=torch.preserve_format)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(self.x)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = model(self.x)

    def __call__(self, x: Tensor) -> Any:
        self.x.copy_(x)
        self.graph.replay()
        return self.out


def model_table(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    models = {name: model.to(arguments.device) for name, model in classifiers(arguments.width).items()}
    few = torch.rand(8, 3, arguments.size, arguments.size, device=arguments.device)
    exact = models["ours"](few).logits
    builders = model_builders(models)
    rows: list[dict[str, Any]] = []
    for batch in (arguments.batch_size, 1):
        x = torch.rand(batch, 3, arguments.size, arguments.size, device=arguments.device, dtype=DTYPE)
        x = x.contiguous(memory_format=torch.channels_last)
        forms: dict[str, Callable[[Tensor], Any]] = {}
        for name, builder, compiled, graph in builders:
            skip = (batch == 1 and not graph) or not wanted(name, arguments.rows)
            if skip or elapsed() > arguments.budget:
                continue
            row = guarded(lambda b=builder, c=compiled, g=graph and batch == 1 and x.is_cuda, x=x: prepare(b, c, g, x, few, exact))  # type: ignore[misc]
            if isinstance(row, str):
                rows.append({"name": name, "batch": batch, "failed": row})
                print(f"{name:38} batch {batch:4} failed: {row}", flush=True)
                continue
            forms[name], error, seconds = row
            rows.append({"name": name, "batch": batch, "error": error, "ready_s": seconds})
        time_forms(forms, x, rows, batch, arguments)
    return rows


def model_builders(models: dict[str, nn.Module]) -> list[tuple[str, Callable[[], nn.Module], bool, bool]]:
    """Name, how to build, whether to compile, and whether batch 1 is worth a row (recorded as a CUDA graph there)."""
    from mobilevitv2.inference import optimize_for_inference

    def peer(name: str) -> Callable[[], nn.Module]:
        return lambda: copy.deepcopy(models[name]).to(DTYPE).to(memory_format=torch.channels_last)

    def ours(**options: Any) -> Callable[[], nn.Module]:
        return lambda: optimize_for_inference(
            models["ours"], dtype=DTYPE, device=next(models["ours"].parameters()).device, **options
        )  # type: ignore[type-var]

    return [
        ("plain", peer("ours"), False, True),
        ("folded", ours(kernels=False), False, True),
        ("kernels", ours(kernels=True), False, True),
        ("transformers", lambda: copy.deepcopy(models["transformers"]).to(DTYPE), False, False),
        ("timm channels_last", peer("timm"), False, True),
        ("kernels + compile", ours(kernels=True), True, True),
        ("folded + compile", ours(kernels=False), True, True),
        ("timm channels_last + compile", peer("timm"), True, True),
        ("transformers channels_last + compile", peer("transformers"), True, False),
    ]


def prepare(
    builder: Callable[[], nn.Module], compiled: bool, graph: bool, x: Tensor, few: Tensor, exact: Tensor
) -> tuple[Callable[[Tensor], Any], float, float]:
    """The form, warm; its error; the seconds until it was ready."""
    start = time.perf_counter()
    model: Any = builder()
    error = relative_error(model(few.to(x.dtype).contiguous(memory_format=torch.channels_last)).logits, exact)
    if compiled:
        torch._dynamo.reset()
        model = torch.compile(model, dynamic=False)
    for _ in range(2):
        out = model(x).logits
    if compiled:  # the compiled form's own error, on pictures it was compiled for
        filled = x.clone(memory_format=torch.preserve_format)
        count = min(len(few), len(filled))
        filled[:count] = few[:count].to(x.dtype)
        out = model(filled).logits
        error = relative_error(out[:count], exact[:count])
    wait()
    form = Graph(model, x) if graph else model
    wait()
    return form, error, round(time.perf_counter() - start, 1)


def time_forms(
    forms: dict[str, Callable[[Tensor], Any]], x: Tensor, rows: list[dict[str, Any]], batch: int, arguments: argparse.Namespace
) -> None:
    """Interleaved: one round times each form once, on `inner` batches."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    inner = 1 if not x.is_cuda else 3 if batch > 1 else 50
    for _ in range(arguments.rounds):
        for name, form in forms.items():
            wait()
            start = time.perf_counter()
            for _ in range(inner):
                form(x)
            wait()
            times[name].append(1e3 * (time.perf_counter() - start) / inner)
    print(f"\n{'batch ' + str(batch):38} {'ms':>8} {'min':>8} {'max':>8} {'img/s':>8} {'error':>8} {'ready s':>8}")
    for row in rows:
        if row["batch"] != batch or "failed" in row:
            continue
        each = times[row["name"]]
        ms = statistics.median(each)
        row |= {"ms": ms, "min_ms": min(each), "max_ms": max(each), "img_s": 1e3 * batch / ms}
        print(
            f"{row['name']:38} {ms:8.3f} {min(each):8.3f} {max(each):8.3f} {row['img_s']:8.0f} "
            f"{row['error']:8.1e} {row['ready_s']:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
