"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mobilevitv2
from mobilevitv2.text_table import counted

PACKAGES = {"litert": "ai-edge-litert", "v1": "transformers"}
"""Engines and peers whose package has another name."""


def describe_machine(*, libraries: Iterable[str], threads: int, device: str) -> dict[str, Any]:
    """Processor, cores, threads, versions and load; the GPU's name where `device` is one. JSON can hold it.

    Args:
        libraries: engines and peers that take part.
        threads: of the CPU that the runs use.
        device: as torch names it.
    """
    names = sorted({PACKAGES.get(name, name) for name in libraries})
    return {
        "device": _device_name(device),
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": threads,
        "load_before": load(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "mobilevitv2": mobilevitv2.__version__,
            "python": platform.python_version(),
            **{name: found for name in names if (found := _version(name))},
        },
    }


def line_of(machine: dict[str, Any]) -> str:
    """The same in a line."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = f"{machine['device']}; " if machine["device"] != "cpu" else ""
    busy = "" if machine["load_before"] is None else f", load {machine['load_before']:.1f} before"
    return f"{gpu}{machine['cpu']}, {counted(machine['cores'], 'core')}, {counted(machine['threads'], 'thread')}{busy}; {versions}"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Processes that ran or waited in the last minute, on average; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def peak_resident_megabytes() -> float | None:
    """Of this process since it began; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{torch.cuda.get_device_name(device)} ({device})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
