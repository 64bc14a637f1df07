"""State dicts for the tests of weights/: of any architecture, with values that tell every tensor apart."""

from __future__ import annotations

import lzma
from pathlib import Path

import torch
from torch import Tensor

from mobilevitv2.weights import Architecture, expected_shapes

FIXTURES = ("classification", "deeplabv3", "pspnet", "ssd")


def make_state(architecture: Architecture, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under our names; counters of batch normalisation are int64 as torch has them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 10_000, shape, generator=generator)
        if name.endswith("num_batches_tracked")
        else torch.rand(shape, generator=generator).to(dtype)
        for name, shape in expected_shapes(architecture).items()
    }


def fixture_file(shared_fixtures: Path, name: str, folder: Path) -> Path:
    """One official state dict, unpacked."""
    target = folder / f"{name}.pt"
    with lzma.open(shared_fixtures / f"cvnets-{name}-0.5.pt.xz") as packed:
        target.write_bytes(packed.read())
    return target


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Same names in the same order, same types, same bits."""
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
