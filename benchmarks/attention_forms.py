"""Which form of the query and value projections trains fastest: one stage of each resolution, forward and backward, compiled.

    python benchmarks/attention_forms.py            # all forms, each in a process of its own

Forms, equal up to rounding: "apart", query and value as two convolutions; "joint", one convolution of 1 + D rows; "padded", the
same with the rows padded to a multiple of 8; "product", the query as a product and a sum over channels; "official", query, key and
value in one convolution of 1 + 2 D rows with the key tensor formed.

One NVIDIA H200, torch 2.11, 2026-11-22, batch 256 at 192 px, width 0.75: apart 23.25 ms, joint 17.84, padded 15.33. The other two
were measured while kernels were still being compiled on the same machine, so their figures say nothing. "padded" is what
`blocks.py` does.
"""

from __future__ import annotations

import fcntl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.backbone import _attention_stage
from mobilevitv2.blocks import SeparableSelfAttention
from mobilevitv2.configuration import MobileViTV2Config

FORMS = ("apart", "joint", "padded", "product", "official")
BATCH, SIZE = 256, 192


def forward(self: SeparableSelfAttention, x: Tensor, form: str) -> Tensor:
    weight, bias = self.qkv_proj.convolution.weight, self.qkv_proj.convolution.bias
    assert bias is not None
    dim = weight.shape[1]
    if form == "official":
        query, keys, value = self.qkv_proj(x).split([1, dim, dim], dim=1)
        scores = torch.softmax(query.float(), dim=-1)
        context = (keys.float() * scores).sum(-1, keepdim=True).to(x.dtype)
        return self.out_proj(F.relu(value) * context)
    if form == "product":
        query = (x * weight[0][None, :, :, 0].reshape(1, dim, 1, 1)).sum(1, keepdim=True) + bias[0]
        value = F.conv2d(x, weight[1 + dim :], bias[1 + dim :])
    elif form == "apart":
        query, value = F.conv2d(x, weight[:1], bias[:1]), F.conv2d(x, weight[1 + dim :], bias[1 + dim :])
    else:
        rows = torch.cat([weight[1 + dim :], weight[:1]])
        shift = torch.cat([bias[1 + dim :], bias[:1]])
        if form == "padded":
            rows, shift = F.pad(rows, (0, 0, 0, 0, 0, 0, 0, 7)), F.pad(shift, (0, 7))
        both = F.conv2d(x, rows, shift)
        value, query = both[:, :dim], both[:, dim : dim + 1]
    scores = torch.softmax(query.float(), dim=-1)
    weighted = (x.float() * scores).sum(dim=-1, keepdim=True)
    context = F.conv2d(weighted.to(x.dtype), weight[1 : 1 + dim]) + bias[1 : 1 + dim, None, None]
    return self.out_proj(F.relu(value) * context)


def measure(form: str, lock: Path) -> None:
    torch.manual_seed(0)
    SeparableSelfAttention.forward = lambda self, x: forward(self, x, form)  # type: ignore[method-assign]
    config = MobileViTV2Config(width_multiplier=0.75, n_attn_blocks=[2, 2, 2])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stages = (
        nn.Sequential(*(_attention_stage(config, stage) for stage in (3, 4, 5))).to(device).to(memory_format=torch.channels_last)
    )
    batch, side = (BATCH, SIZE // 4) if device.type == "cuda" else (2, 16)
    x = torch.randn(batch, config.stage_channels[2], side, side, device=device).to(memory_format=torch.channels_last)
    compiled = torch.compile(stages)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            compiled(x).float().square().mean().backward()
        for parameter in stages.parameters():
            parameter.grad = None

    start = time.perf_counter()
    step()
    ready = time.perf_counter() - start
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        times = []
        for _ in range(30):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
        print(f"{form:9} {1e3 * statistics.median(times):7.2f} ms  {peak:5.2f} GiB  (compiled in {ready:.0f} s)", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            lock = str(Path(folder) / "lock")
            runs = [subprocess.Popen([sys.executable, __file__, form, lock]) for form in FORMS]
            for run in runs:
                run.wait()
