"""Triton kernels for NVIDIA GPUs, behind one seam: `fuse_modules` of modules.py puts them into a folded model.

They are an optional, equal way to compute what blocks.py defines, each tested against it. `MOBILEVITV2_KERNELS=0` in the
environment leaves them out.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

VARIABLE = "MOBILEVITV2_KERNELS"


def kernels_enabled() -> bool:
    """Whether Triton is installed and `MOBILEVITV2_KERNELS` does not say 0."""
    return os.environ.get(VARIABLE, "1") != "0" and find_spec("triton") is not None
