"""Every kernel of the package compiles for an NVIDIA GPU, at the sizes and with the options that the models use; no GPU is needed.

compile_kernels.py does it in processes of its own, since Triton is here for its interpreter. What was compiled stays in a folder
among the temporary files, under the kernels' texts, so that a second run is quick. What takes longer is left to

    python tests/compile_kernels.py --arch 86 --work one-picture tasks float32 training-dilated
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for CUDA")

SCRIPT = Path(__file__).with_name("compile_kernels.py")
KB = 1024
SMALLEST = 99 * KB
"""Shared memory that a program can have on the smallest of the GPUs that train with kernels (compute capability 8.6)."""

Row = dict[str, Any]


def start(*arguments: str) -> subprocess.Popen[str]:
    cache = Path(tempfile.gettempdir()) / f"mobilevitv2-compiled-kernels-{os.getuid()}"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "MOBILEVITV2_KERNELS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows_of(process: subprocess.Popen[str]) -> list[Row]:
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """What the models launch, and the smallest tiles, compiled for an H100; two processes at once."""
    parts = [start("--work", "smallest", "inference"), start("--work", "training", "--declared")]
    return [row for part in parts for row in rows_of(part)]


@pytest.fixture(scope="module")
def compiled(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["work"] in ("inference", "training")]


def test_every_kernel_compiles(rows: list[Row], compiled: list[Row]) -> None:
    failed = [row for row in rows if "error" in row]
    assert not failed, failed
    (names,) = (row["declared"] for row in rows if "declared" in row)
    assert {f"{row['file']}.{row['kernel']}" for row in compiled} == set(names)


def test_tiles_of_the_tables_have_room_on_the_gpu_they_are_for(compiled: list[Row]) -> None:
    assert max(row["shared"] for row in compiled) <= 227 * KB


def test_what_has_no_smaller_tiles_has_room_where_kernels_train(compiled: list[Row]) -> None:
    shrinking = {"stem_kernel", "pointwise_kernel", "resident_pointwise_kernel", "token_mlp_kernel"}
    shrinking |= {"pointwise_forward_kernel", "pointwise_backward_kernel"}
    largest = {row["kernel"]: row["shared"] for row in sorted(compiled, key=lambda row: row["shared"])}
    assert all(shared <= SMALLEST for kernel, shared in largest.items() if kernel not in shrinking), largest


def test_the_smallest_tiles_have_room_everywhere(rows: list[Row]) -> None:
    """With the widest tokens there are kernels for; 48 kB are what any GPU gives without being asked."""
    smallest = {row["kernel"]: row["shared"] for row in rows if row["work"] == "smallest"}
    assert set(smallest) == {"stem_kernel", "pointwise_kernel", "token_mlp_kernel"}
    assert max(smallest.values()) <= 48 * KB
