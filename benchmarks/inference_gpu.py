"""Inference on one NVIDIA GPU: every form of the model beside transformers and timm, and every kernel beside cuDNN, in one run.

    PYTHONPATH=src python benchmarks/inference_gpu.py --json out.json            # about two minutes, compilation included
    PYTHONPATH=src python benchmarks/inference_gpu.py --tune --json out.json     # tiles of the kernels first, used by the models
    PYTHONPATH=src python benchmarks/inference_gpu.py --only kernels --rows stage2
    PYTHONPATH=src python benchmarks/inference_gpu.py --only models --rows kernels,folded

All models have the same weights. A row that fails says why and the others go on; a row that would start after --budget seconds is
left out. Errors are those of the logits against the plain model in float32, in units of the largest logit; the plain model's own
error in bfloat16 stands beside them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernel_cases
import torch
from kernel_cases import DTYPE
from torch import Tensor, nn

from mobilevitv2.kernels import tiles

START = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--graph-batches", default="1,16,32,64", help="batch sizes at which forms are recorded as CUDA graphs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=110.0, help="seconds after which no new row starts")
    parser.add_argument("--only", choices=["kernels", "models"], help="one half of the run")
    parser.add_argument("--rows", help="comma-separated starts of row names to run")
    parser.add_argument("--tune", action="store_true", help="try several tiles for each kernel")
    parser.add_argument("--compile-budget", type=float, default=60.0, help="seconds for compiling tiles ahead")
    parser.add_argument("--no-compile", action="store_true", help="leave out the rows of torch.compile, half a minute each")
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
            bandwidth = results["copy_gb_s"] if isinstance(results["copy_gb_s"], float) else 3000.0
            results["kernels"] = guarded(lambda: kernel_table(arguments, bandwidth))
            save(results, arguments.json)
        if arguments.only != "kernels":
            results["models"] = guarded(lambda: model_table(arguments))
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


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((found.float() - exact).abs().max() / exact.abs().max()).item()


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


def kernel_table(arguments: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """Every layer of the model by itself; with --tune the best tiles are used for the models below, too."""
    listed = kernel_cases.layers(arguments.width, arguments.size, arguments.batch_size, arguments.device)
    listed = [layer for layer in listed if arguments.only is None or wanted(layer.name, arguments.rows)]
    if arguments.tune:
        print(f"compiled ahead: {guarded(lambda: compile_tiles(listed, arguments))}, {elapsed():.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    print(f"\n{'layer':24} {'limit':>7} {'ours ms':>8} {'of it':>5} {'torch':>8} {'error':>8} {'torch':>8}")
    for layer in listed:
        if elapsed() > arguments.budget:
            break
        row = guarded(lambda layer=layer: measure_kernel(layer, arguments, bandwidth))  # type: ignore[misc]
        row = {"name": layer.name, "count": layer.count, **(row if isinstance(row, dict) else {"failed": row})}
        rows.append(row)
        if "failed" in row:
            print(f"{layer.name:24} {row['failed']}", flush=True)
            continue
        share = 100 * row["limit_ms"] / row["ms"]
        tuned = f"{row['best']}, by rule {row['ms_rule']}" if "best" in row else ""
        print(
            f"{layer.name:24} {row['limit_ms']:7.4f} {row['ms']:8.4f} {share:4.0f}% {row['torch_ms']:8.4f} "
            f"{row['error']:8.1e} {row['torch_error']:8.1e}  {tuned}",
            flush=True,
        )
    done = [row for row in rows if "failed" not in row]
    totals = {name: round(sum(row[name] * row["count"] for row in done), 3) for name in ("limit_ms", "ms", "torch_ms")}
    print(f"all layers: {totals}; {elapsed():.0f} s")
    return {"rows": rows, "totals": totals, "tiles": [[*key, *tile] for key, tile in tiles.TILES.items()]}


def wanted(name: str, rows: str | None) -> bool:
    return rows is None or any(name.startswith(row.strip()) for row in rows.split(","))


def measure_kernel(layer: kernel_cases.Layer, arguments: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """Time of ours and of torch's operations one after another, both against float32 of the same inputs."""
    case = kernel_cases.build_case(layer)
    inputs = case.inputs
    exact = case.torch(*(None if x is None else x.float() for x in inputs)).float()
    row: dict[str, Any] = {"torch_error": relative_error(case.torch(*inputs), exact)}
    torch_ms = milliseconds(lambda: case.torch(*inputs), repeats=7)
    row |= {"bytes": case.bytes, "limit_ms": case.bytes / bandwidth / 1e6, "torch_ms": torch_ms, "ms_rule": None}
    if arguments.tune and case.tiles:
        row |= tune(case, inputs, torch_ms)
    row |= {"error": relative_error(case.ours(*inputs), exact), "ms": milliseconds(lambda: case.ours(*inputs))}
    return row


def tune(case: kernel_cases.Case, inputs: list[Tensor | None], torch_ms: float) -> dict[str, Any]:
    """The time with each tile; the best goes into the table the operations look at, for the first layer of its sizes."""
    rule = guarded(lambda: round(milliseconds(lambda: case.ours(*inputs), repeats=7), 4))
    times: dict[tuple[int, ...], Any] = {}
    for tile in case.tiles:
        times[tuple(tile)] = guarded(lambda tile=tile: milliseconds(lambda: case.ours(*inputs, tile=tile), repeats=7))  # type: ignore[misc]
    measured = {tile: ms for tile, ms in times.items() if not isinstance(ms, str)}
    found: dict[str, Any] = {"ms_rule": rule, "tiles": {str(tile): ms for tile, ms in times.items()}}
    if measured:
        best = min(measured, key=measured.__getitem__)
        use = tiles.LIBRARY if case.library and torch_ms < 0.97 * measured[best] else tiles.Tile(*best)
        tiles.TILES.setdefault(case.key, use)
        found["best"] = str(best) if use != tiles.LIBRARY else "library"
    return found


def compile_tiles(listed: list[kernel_cases.Layer], arguments: argparse.Namespace) -> str:
    """Compile in as many processes as there are cores, into Triton's cache on disk, where this process finds it."""
    jobs: dict[tuple[Any, ...], tuple[kernel_cases.Layer, tiles.Tile]] = {}
    for layer in listed:
        small = layer._replace(arguments={**layer.arguments, "batch": 16})
        case = kernel_cases.build_case(small)
        for tile in case.tiles:
            jobs.setdefault((*case.compile_key, *tile[:5], bool(tile.programs)), (small, tile))
    todo = list(jobs.values())
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(16, os.cpu_count() or 1), mp_context=context)
    try:
        failed = [error for error in pool.map(compile_tile, todo, timeout=arguments.compile_budget) if error]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return f"{len(todo)} kernels, {len(failed)} failed {failed[:2]}"


def compile_tile(job: tuple[kernel_cases.Layer, tiles.Tile]) -> str:
    layer, tile = job
    with torch.inference_mode():
        case = kernel_cases.build_case(layer)
        error = guarded(lambda: [case.ours(*case.inputs, tile=tile), wait()])
    return f"{layer.name} {tuple(tile)}: {error}" if isinstance(error, str) else ""


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
    from same_weights import classifiers

    models = {name: model.to(arguments.device) for name, model in classifiers(arguments.width).items()}
    few = torch.rand(8, 3, arguments.size, arguments.size, device=arguments.device)
    exact = models["ours"](few).logits
    builders = model_builders(models)
    rows: list[dict[str, Any]] = []
    for batch in (arguments.batch_size, *(int(batch) for batch in arguments.graph_batches.split(","))):
        x = torch.rand(batch, 3, arguments.size, arguments.size, device=arguments.device, dtype=DTYPE)
        x = x.contiguous(memory_format=torch.channels_last)
        forms: dict[str, Callable[[Tensor], Any]] = {}
        for name, builder, compiled, graph in builders:
            whole, own = batch == arguments.batch_size, name.endswith("own graphs")
            skip = own if whole else not graph or (batch > 1 and not name.startswith("kernels"))
            skip = skip or not wanted(name, arguments.rows) or (compiled and arguments.no_compile)
            if skip or elapsed() > arguments.budget:
                continue
            row = guarded(
                lambda b=builder, c=compiled, g=graph and not (whole or own) and x.is_cuda, x=x: prepare(b, c, g, x, few, exact)
            )  # type: ignore[misc]
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
        ("folded", ours(kernels=False, cuda_graphs=False), False, True),
        ("kernels", ours(kernels=True, cuda_graphs=False), False, True),
        ("kernels, own graphs", ours(kernels=True), False, True),
        ("transformers", lambda: copy.deepcopy(models["transformers"]).to(DTYPE), False, False),
        ("timm channels_last", peer("timm"), False, True),
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
    inner = 1 if not x.is_cuda else max(3, 50 // batch)
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
