"""Each kernel of a training step by itself: its time, that of torch's operations, and what its bytes would take at a copy's rate.

Called by training_gpu.py --kernels. torch's time of a layer has more in it than ours: norm and activation before, the convolution,
the norm behind, which ours does with kernels of their own (`plain`) or inside the neighbours.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
from typing import Any

import torch
import training_cases
from gpu_measuring import copy_bandwidth, described, elapsed, guarded, milliseconds, relative_error, save, wanted

from mobilevitv2.kernels import training_operations as operations


def run(arguments: argparse.Namespace) -> None:
    """A table of all kernels, or of the rows asked for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    listed = [layer for layer in training_cases.layers(arguments.width, arguments.size) if wanted(layer.name, arguments.rows)]
    results: dict[str, Any] = {"arguments": described(arguments), "rows": []}
    if arguments.device == "cuda":
        results["device"] = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        results["copy_gb_s"] = copy_bandwidth("cuda")
        print(results["device"], results["copy_gb_s"], flush=True)
        print("compiled ahead:", guarded(lambda: compile_ahead(listed, arguments)), f"{elapsed():.0f} s", flush=True)
    bandwidth = results.get("copy_gb_s", 3000.0)
    results["plain"] = guarded(lambda: plain(arguments.batch_size, arguments.device, bandwidth))
    print(results["plain"], flush=True)
    print(f"{'layer':32} {'limit':>7} {'ours ms':>8} {'of it':>5} {'torch':>8}  errors, best tiles")
    for layer in listed:
        for case in training_cases.cases(layer, arguments.batch_size, arguments.device):
            if elapsed() > arguments.budget:
                break
            row = guarded(lambda case=case: measure(case, bandwidth, tune=arguments.tune))  # type: ignore[misc]
            row = {"name": case.name, "key": case.key, **(row if isinstance(row, dict) else {"failed": row})}
            results["rows"].append(row)
            tell(row)
            save(results, arguments.json)
    save(results, arguments.json)


def tell(row: dict[str, Any]) -> None:
    if "failed" in row:
        print(f"{row['name']:32} {row['failed']}", flush=True)
        return
    share = 100 * row["limit_ms"] / row["ms"]
    print(
        f"{row['name']:32} {row['limit_ms']:7.3f} {row['ms']:8.3f} {share:4.0f}% {row.get('torch_ms') or 0:8.3f}  "
        f"{' '.join(f'{error:.0e}' for error in row['errors'])}  {row.get('best', '')}",
        flush=True,
    )


def measure(case: training_cases.Case, bandwidth: float, *, tune: bool) -> dict[str, Any]:
    """Errors are relative to the largest value of the same in float32."""
    row: dict[str, Any] = {"bytes": case.bytes, "limit_ms": case.bytes / bandwidth / 1e6}
    tile = None
    if tune and case.tiles:
        times = {tuple(t): guarded(lambda t=t: milliseconds(lambda: case.ours(tile=t), repeats=5)) for t in case.tiles}  # type: ignore[misc]
        known = {t: ms for t, ms in times.items() if not isinstance(ms, str)}
        row["tiles"] = {str(t): ms for t, ms in times.items()}
        order = sorted(known, key=known.__getitem__)
        row["best"] = "; ".join(f"{t} {known[t]:.3f}" for t in order[:3]) + f"; {len(times) - len(known)} failed"
        tile = type(case.tiles[0])(*order[0])
    if case.exact is not None:
        row["errors"] = [relative_error(a, b) for a, b in zip(case.ours(tile=tile), case.exact(), strict=True)]
    row["ms"] = milliseconds(lambda: case.ours(tile=tile), repeats=9)
    if case.torch is not None:
        row["torch_ms"] = guarded(lambda: milliseconds(case.torch, repeats=3))  # type: ignore[arg-type]
        if isinstance(row["torch_ms"], str):
            row["torch_ms"] = None
    return row


def plain(batch: int, device: str, bandwidth: float) -> dict[str, Any]:
    """What takes one value after another, on a map of 64 channels at 128 x 128: milliseconds and share of the copy's rate."""
    from torch import nn

    z = training_cases.random(device, batch, 128, 128, 64)
    norm, back = training_cases.table(device, 64), training_cases.random(device, 2, 64, dtype=torch.float32)
    module = nn.BatchNorm2d(64, device=device)
    found = operations.statistics(z)
    partials = operations.activation_backward(z, z, norm, kind="none")[1]
    size = z.numel() * z.element_size()
    runs: dict[str, tuple[int, Any]] = {
        "statistics": (1, lambda: operations.statistics(z)),
        "normalise": (2, lambda: operations.normalise(z, norm, kind="silu")),
        "normalise, sum": (3, lambda: operations.normalise(z, norm, kind="none", residual=z)),
        "sums": (2, lambda: operations.activation_backward(z, z, norm, kind="none")),
        "activation_backward": (3, lambda: operations.activation_backward(z, z, norm, kind="silu")),
        "norm_backward": (3, lambda: operations.norm_backward(z, z, norm, back)),
        "gather": (0, lambda: operations.gather(found, module)),
        "gather_back": (0, lambda: operations.gather_back(partials, norm, count=1000, dtype=torch.float32)),
    }
    table: dict[str, Any] = {}
    for name, (passes, run) in runs.items():
        ms = guarded(lambda run=run: milliseconds(run, repeats=9))  # type: ignore[misc]
        table[name] = ms if isinstance(ms, str) else (round(ms, 4), round(passes * size / bandwidth / 1e6 / ms, 2))
    return table


def compile_ahead(listed: list[training_cases.Layer], arguments: argparse.Namespace) -> str:
    """In as many processes as there are cores, into Triton's cache on disk."""
    jobs: dict[Any, Any] = {}
    for layer in listed:
        for number, case in enumerate(training_cases.cases(layer._replace(side=max(8, layer.side // 8)), 2, arguments.device)):
            for tile in case.tiles if arguments.tune else [None]:
                short = tile if tile is None else tile._replace(programs=0)
                same = case.key if case.key[0] in ("FORWARD", "BACK") else (case.key[0], layer.stride, layer.kind)
                jobs.setdefault((same, layer.kind, short), (layer, number, tile))
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(16, os.cpu_count() or 1), mp_context=context)
    try:
        failed = [error for error in pool.map(compile_one, list(jobs.values()), timeout=70) if error]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return f"{len(jobs)} kernels, {len(failed)} failed {failed[:2]}"


def compile_one(job: tuple[training_cases.Layer, int, Any]) -> str:
    layer, number, tile = job
    case = list(training_cases.cases(layer._replace(side=max(8, layer.side // 8)), 16, "cuda"))[number]
    found = guarded(lambda: case.ours(tile=tile))
    return found if isinstance(found, str) else ""
