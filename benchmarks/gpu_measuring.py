"""What the GPU benchmarks share: clocks, errors, and results that are on disk as soon as they are known."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

START = time.perf_counter()


def guarded(run: Callable[[], Any]) -> Any:
    """The result, or the error as text: one failing row must not cost the others."""
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()[:300]}"


def described(arguments: argparse.Namespace) -> dict[str, str]:
    """The options of a run as text, files by their names: where they lie on a machine tells nothing."""
    return {name: value.name if isinstance(value, Path) else str(value) for name, value in vars(arguments).items()}


def save(results: dict[str, Any], path: Path | None) -> None:
    """Whole or not at all."""
    if path is not None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(results, indent=1))
        part.replace(path)


def elapsed() -> float:
    return time.perf_counter() - START


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((found.float() - exact).abs().max() / exact.abs().max()).item()


def wanted(name: str, rows: str | None) -> bool:
    """Whether a name starts as one of the comma-separated ones."""
    return rows is None or any(name.startswith(row.strip()) for row in rows.split(","))


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
    """GB/s of a copy, bytes read and written."""
    size = 2**31 if device.startswith("cuda") else 2**20
    x, y = torch.empty(size, dtype=torch.int8, device=device), torch.empty(size, dtype=torch.int8, device=device)
    return round(2 * size / milliseconds(lambda: y.copy_(x)) / 1e6, 1)
