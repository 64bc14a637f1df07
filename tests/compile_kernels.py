"""Compiles for an NVIDIA GPU, without one, every kernel that a model launches; test_kernels_compile.py runs this.

    python tests/compile_kernels.py --arch 90 --work inference training

A stand-in for Triton's driver names the GPU, and launches compile and go no further. The model is on torch's device `meta`, which
computes nothing, so it has its real size; the package's own wrappers choose tiles, options and arguments as they do on a GPU. Each
distinct kernel is a line of JSON, with the bytes of shared memory, the registers of a thread and the bytes it spills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # read when Triton is imported

import torch
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mobilevitv2 import (
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2ForObjectDetection,
    MobileViTV2ForSemanticSegmentation,
)
from mobilevitv2.inference import fold
from mobilevitv2.kernels import devices, modules, operations, tiles, training
from mobilevitv2.kernels.modules import fuse_modules
from mobilevitv2.kernels.training import use_training_kernels

PROCESSORS = {75: 40, 80: 108, 86: 84, 89: 128, 90: 132}
SHARED_KB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227}
"""That a program can use, by compute capability (CUDA's programming guide, table of technical specifications)."""


class Address:
    """A tensor as a launch sees it: where torch's allocator puts it, whole tensors start at multiples of 512 bytes."""

    def __init__(self, x: Tensor) -> None:
        self.dtype, self._place = x.dtype, x.storage_offset() * x.element_size()

    def data_ptr(self) -> int:
        return 2**20 + self._place

    def ptr_range(self) -> int:
        return 0


class Driver:
    """What a launch asks Triton's driver for before it compiles."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


class Recorder:
    """Stands for JITFunction.run."""

    def __init__(self, told: Callable[[dict[str, Any]], None], *, dry: bool, only: list[str] | None) -> None:
        self._run, self._told, self._dry, self._only = JITFunction.run, told, dry, only
        self._seen: set[Any] = set()

    def __call__(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if self._only is not None and kernel.fn.__name__ not in self._only:
            return
        shown = [tuple(a.shape) if isinstance(a, Tensor) else a for a in args]
        options = {name: value for name, value in kwargs.items() if isinstance(value, bool | int | str)}
        row: dict[str, Any] = {"kernel": kernel.fn.__name__, "file": kernel.fn.__module__.split(".")[-1], "grid": list(grid)}
        row |= {"options": options, "dtypes": [str(a.dtype) for a in args if isinstance(a, Tensor)]}
        if self._dry:
            self._told({**row, "arguments": [str(a) for a in shown]})
            return
        try:
            made = self._run(kernel, *map(address, args), grid=grid, warmup=True, **kwargs)
        except Exception as error:  # the others are to be compiled, too
            made, text = None, f"{type(error).__name__}: {error}"
            if (row["kernel"], text) not in self._seen:
                self._seen.add((row["kernel"], text))
                self._told({**row, "error": text[-600:]})
            return
        if made.hash not in self._seen:
            self._seen.add(made.hash)
            self._told({**row, "shared": made.metadata.shared, **usage(made), "hash": made.hash, "ptx": ptx_hash(made)})


def address(argument: Any) -> Any:
    return Address(argument) if isinstance(argument, Tensor) else argument


def usage(made: Any) -> dict[str, int]:
    """Registers and spills, as NVIDIA's own tool reads them from the binary."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    binary = next(path for path in made.metadata_group.values() if str(path).endswith(".cubin"))
    if not tool.exists():
        return {}
    told = subprocess.run([str(tool), "-res-usage", str(binary)], capture_output=True, text=True, check=False).stdout
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", told))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"])} if "REG" in found else {}


def ptx_hash(made: Any) -> str:
    """Of the instructions alone: equal where two texts compile to the same."""
    lines = [line.split("//")[0].strip() for line in made.asm["ptx"].split(".section")[0].splitlines()]
    kept = [line for line in lines if line and not line.startswith((".loc", ".file", "$L__tmp", "$L__func"))]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def stand_in(arch: int, told: Callable[[dict[str, Any]], None], **options: Any) -> None:
    """No GPU from here on is asked for anything."""
    driver.set_active(Driver(arch))  # type: ignore[arg-type]
    recorder = Recorder(told, **options)
    JITFunction.run = lambda kernel, *args, **kwargs: recorder(kernel, *args, **kwargs)  # type: ignore[method-assign]
    torch.Tensor.is_cuda = property(lambda x: x.device.type == "meta")  # type: ignore[assignment, method-assign]
    torch.cuda.current_device = lambda: None  # type: ignore[assignment, return-value]  # the index of the device `meta`
    devices.multiprocessors = lambda device: PROCESSORS[arch]
    devices.shared_memory = lambda device: 1024 * SHARED_KB[arch]


# ---- what is run ------------------------------------------------------------------------------------------------------------


def build(task: Any, width: float, **options: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = task(MobileViTV2Config(width_multiplier=width, **options)).eval()
    return model


def infer(task: Any, width: float, batches: tuple[int, ...], *, dtype: torch.dtype, size: int = 256, **options: Any) -> None:
    model: Any = fold(build(task, width, **options))  # type: ignore[type-var]
    assert fuse_modules(model) > 0
    model.to(dtype)
    with torch.no_grad():
        for batch in batches:
            x = torch.empty(batch, 3, size, size, device="meta", dtype=dtype).contiguous(memory_format=torch.channels_last)
            model(x)


def train(task: Any, width: float, batch: int, *, size: int = 256, **options: Any) -> None:
    """Forward and backward of the trunk, where all kernels are, its parameters in float32 and its maps in bfloat16."""
    model: Any = build(task, width, **options).train()
    assert use_training_kernels(model) > 0
    x = torch.empty(batch, 3, size, size, device="meta").contiguous(memory_format=torch.channels_last)
    found = model.mobilevitv2(x, output_hidden_states=True).hidden_states[-1]
    found.float().sum().backward()


def tasks(dtype: torch.dtype) -> None:
    infer(MobileViTV2ForSemanticSegmentation, 0.5, (2,), dtype=dtype, size=512, output_stride=16)
    infer(MobileViTV2ForObjectDetection, 0.5, (2,), dtype=dtype, size=320)


def smallest(dtype: torch.dtype) -> None:
    """The last of ever smaller tiles, for the largest tokens there are kernels for."""
    dim, hidden = modules.LARGEST_DIM, 2 * modules.LARGEST_DIM

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*shape, device="meta", dtype=dtype)

    x, partials = empty(2, 16, 16, dim), empty(2, 4, 2, dtype=torch.float32)
    mlp = empty(hidden, dim), empty(hidden), empty(dim, hidden), empty(dim)
    last = tile_behind(tiles.mlp_tile(dim, hidden, 64, 256, gated=False))
    operations.token_mlp(x, partials, *mlp, eps=1e-5, activation="silu", tile=last)
    last = tile_behind(tiles.pointwise_tile(dim, hidden, 2**16, activation="silu", residual=False))
    operations.pointwise(x, mlp[0], mlp[1], activation="silu", tile=last)
    last = tile_behind(tiles.stem_tile(27, 64))
    operations.stem(empty(2, 3, 32, 32), empty(64, 27), empty(64), stride=2, activation="silu", tile=last)


def tile_behind(tile: tiles.Tile) -> tiles.Tile:
    less = tile.smaller()
    return tile if less is None else tile_behind(less)


def works() -> dict[str, Callable[[], None]]:
    classifier, segmenter = MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation
    return {
        "inference": lambda: infer(classifier, 1.0, (256,), dtype=torch.bfloat16),
        "one-picture": lambda: infer(classifier, 1.0, (1,), dtype=torch.bfloat16),
        "tasks": lambda: tasks(torch.bfloat16),
        "float32": lambda: infer(classifier, 0.5, (2,), dtype=torch.float32),
        "float32-wide": lambda: infer(classifier, 2.0, (64,), dtype=torch.float32),
        "smallest": lambda: smallest(torch.bfloat16),
        "smallest-half": lambda: smallest(torch.float16),
        "smallest-float32": lambda: smallest(torch.float32),
        "wide": lambda: infer(classifier, 2.0, (64, 1), dtype=torch.bfloat16),
        "training": lambda: train(classifier, 1.0, 256),
        "training-small": lambda: train(classifier, 0.5, 64),
        "training-dilated": lambda: train(segmenter, 0.5, 4, size=512, output_stride=16),
        "training-wide": lambda: train(classifier, 2.0, 64),
    }


def declared() -> Iterator[str]:
    """All kernels of the package: what is compiled and called by no other compiled function."""
    import importlib
    import pkgutil

    import mobilevitv2.kernels as room

    for module in pkgutil.iter_modules(room.__path__):
        for name, value in vars(importlib.import_module(f"{room.__name__}.{module.name}")).items():
            if isinstance(value, JITFunction) and value.fn.__module__.endswith("." + module.name) and name.endswith("_kernel"):
                yield f"{module.name}.{name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--work", nargs="*", default=["inference", "training"])
    parser.add_argument("--only", nargs="*", help="names of kernels; all by default")
    parser.add_argument("--dry", action="store_true", help="list all launches and compile nothing")
    parser.add_argument("--declared", action="store_true", help="list the names of the package's kernels, too")
    arguments = parser.parse_args()

    current = [""]

    def tell(row: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"work": current[0], **row}) + "\n")
        sys.stdout.flush()

    if arguments.declared:
        tell({"declared": sorted(declared())})
    torch.version.cuda = torch.version.cuda or "13.0"
    stand_in(arguments.arch, tell, dry=arguments.dry, only=arguments.only)
    training._dtype = lambda module, x: torch.bfloat16 if module.training else None  # autocast knows no device `meta`
    for name in arguments.work:
        current[0] = name
        works()[name]()


if __name__ == "__main__":
    main()
