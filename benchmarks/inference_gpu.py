"""Inference on one NVIDIA GPU: every form of the model beside transformers and timm, and every kernel beside cuDNN, in one run.

    PYTHONPATH=src python benchmarks/inference_gpu.py --json out.json            # about four minutes, compilation included
    PYTHONPATH=src python benchmarks/inference_gpu.py --tune --json out.json     # tiles of the kernels first, used by the models
    PYTHONPATH=src python benchmarks/inference_gpu.py --only kernels --rows stage2
    PYTHONPATH=src python benchmarks/inference_gpu.py --only models --rows kernels,folded --no-compile

All models have the same weights. Rows that take long to prepare (torch.compile) come last; what is measured is printed and in the
file at once. A row that fails says why and the others go on; a row that would start after --budget seconds is left out.
Errors are those of the logits against the plain model in float32, in units of the largest logit; the plain model's own error in
bfloat16 stands beside them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
from pathlib import Path
from typing import Any

import gpu_models
import kernel_cases
import torch
from gpu_measuring import copy_bandwidth, described, elapsed, guarded, milliseconds, relative_error, save, wait, wanted
from torch import Tensor

from mobilevitv2.kernels import tiles

TUNED: set[tiles.Key] = set()
"""Layers whose tile was searched in this run; of layers of the same sizes the first decides."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--graph-batches", default="1,16,32,64", help="batch sizes at which forms are recorded as CUDA graphs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=400.0, help="seconds after which no new row starts")
    parser.add_argument("--kernels-until", type=float, default=300.0, help="seconds after which no layer is measured by itself")
    parser.add_argument("--only", choices=["kernels", "models"], help="one half of the run")
    parser.add_argument("--rows", help="comma-separated starts of row names to run")
    parser.add_argument("--tune", action="store_true", help="try several tiles for each kernel")
    parser.add_argument("--compile-budget", type=float, default=60.0, help="seconds for compiling tiles ahead")
    parser.add_argument("--no-compile", action="store_true", help="leave out the rows of torch.compile, half a minute each")
    parser.add_argument("--compiled", help="comma-separated starts of the compiled rows to run; all by default")
    parser.add_argument("--profile", action="store_true", help="list the kernels of a call, large batch and batch 1")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    results: dict[str, Any] = {
        "arguments": described(arguments),
        "device": environment(arguments.device),
    }
    print(results["device"])
    with torch.inference_mode():
        results["copy_gb_s"] = guarded(lambda: copy_bandwidth(arguments.device))
        print(f"copy, bytes read and written: {results['copy_gb_s']} GB/s")
        print(f"compiled ahead: {guarded(lambda: compile_ahead(arguments))}, {elapsed():.0f} s", flush=True)
        parts = {"kernels": measure_kernels, "models": measure_models}
        order = ("kernels", "models") if arguments.tune else ("models", "kernels")
        for part in (part for part in order if arguments.only in (None, part)):
            parts[part](arguments, results)
        if arguments.only != "kernels" and not arguments.no_compile:
            measure_models(arguments, results, compiled=True)


def measure_kernels(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    bandwidth = results["copy_gb_s"] if isinstance(results["copy_gb_s"], float) else 3000.0
    results["kernels"] = guarded(lambda: kernel_table(arguments, bandwidth))
    save(results, arguments.json)


def measure_models(arguments: argparse.Namespace, results: dict[str, Any], *, compiled: bool = False) -> None:
    rows: list[dict[str, Any]] = results.setdefault("models", [])

    def store() -> None:
        save(results, arguments.json)

    def measure() -> None:
        setting = gpu_models.prepare(arguments)
        print(f"models built, {elapsed():.0f} s", flush=True)
        if compiled:
            gpu_models.compiled_rows(setting, rows, store)
            return
        gpu_models.eager_rows(setting, rows, store)
        if arguments.profile:
            large = guarded(lambda: gpu_models.profile(setting, arguments.batch_size, graph=False))
            results["profiles"] = [large, guarded(lambda: gpu_models.profile(setting, 1, graph=torch.cuda.is_available()))]

    failure = guarded(measure)
    if isinstance(failure, str):
        print(failure, flush=True)
        results["failed"] = failure
    store()


def environment(device: str) -> str:
    import triton

    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return f"{name}, torch {torch.__version__}, triton {triton.__version__}"


# ---- kernels ----------------------------------------------------------------------------------------------------------------


def kernel_table(arguments: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """Every layer of the model by itself; with --tune the best tiles are used for the models below, too."""
    listed = kernel_layers(arguments)
    rows: list[dict[str, Any]] = []
    print(f"\n{'layer':24} {'limit':>7} {'ours ms':>8} {'of it':>5} {'torch':>8} {'error':>8} {'torch':>8}")
    for layer in listed:
        if elapsed() > min(arguments.budget, arguments.kernels_until):
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


def kernel_layers(arguments: argparse.Namespace) -> list[kernel_cases.Layer]:
    listed = kernel_cases.layers(arguments.width, arguments.size, arguments.batch_size, arguments.device)
    return [layer for layer in listed if arguments.only is None or wanted(layer.name, arguments.rows)]


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
        if case.key not in TUNED:
            TUNED.add(case.key)
            tiles.TILES[case.key] = use
        found["best"] = str(best) if use != tiles.LIBRARY else "library"
    return found


def compile_ahead(arguments: argparse.Namespace) -> str:
    """Compile in as many processes as there are cores, into Triton's cache on disk, where this process finds it.

    The tiles that the models use at the batch sizes of this run, and with --tune all that are worth trying.
    """
    jobs: dict[tuple[Any, ...], tuple[kernel_cases.Layer, tiles.Tile | None]] = {}
    listed = kernel_layers(arguments)
    for batch in gpu_models.batches(arguments) if arguments.only != "kernels" else [arguments.batch_size]:
        for layer in listed:  # batches outside, so that what is compiled already is met late
            jobs[layer.name, batch] = (layer._replace(arguments={**layer.arguments, "batch": batch}), None)
    for layer in listed if arguments.tune else []:
        small = layer._replace(arguments={**layer.arguments, "batch": 4})
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


def compile_tile(job: tuple[kernel_cases.Layer, tiles.Tile | None]) -> str:
    layer, tile = job
    options = {} if tile is None else {"tile": tile}
    with torch.inference_mode():
        case = kernel_cases.build_case(layer)
        error = guarded(lambda: [case.ours(*case.inputs, **options), wait()])
    return f"{layer.name} {tile}: {error}" if isinstance(error, str) else ""


if __name__ == "__main__":
    main()
