"""How time and memory grow with the number of tokens (256 to 1024 px) and with the batch: the claim is a straight line.

    python benchmarks/cost_growth.py --threads 2 --json cpu.json                      # ONNX Runtime and PyTorch, about two minutes
    PYTHONPATH=src python benchmarks/cost_growth.py --device cuda --json gpu.json     # bfloat16, half a minute
    python benchmarks/cost_growth.py --draw cpu.json gpu.json --picture docs/pictures/cost-growth.png

"quadratic" is the same network with standard softmax attention (four heads, torch's own fused kernel) in place of the separable
one, on the same tokens. Tokens are counted on stage 3, whose map has a token for every 8 x 8 pixels; stages 4 and 5 have a quarter
and a sixteenth of them. Weights are random. Runs are interleaved: one round times every size once, on a CPU of every form. On a GPU
calls are recorded as CUDA graphs, or the host's time would hide the device's at the small sizes.

The fit is by least squares: a straight line with its R^2, and the exponent of a power law; both for the whole range, the exponent
also for its upper half, where fixed costs weigh less. Memory is what one call takes beside weights and pictures: on a GPU torch's
own count, for ONNX Runtime the resident memory of a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.benchmarking.environment import describe_machine, line_of
from mobilevitv2.benchmarking.files import FileRun, export_ours
from mobilevitv2.benchmarking.peers import settle
from mobilevitv2.benchmarking.timing import Times, in_turn
from mobilevitv2.benchmarking.torch_forms import TorchForm, TorchRun
from mobilevitv2.blocks import SeparableSelfAttention

SIZES = tuple(range(256, 1025, 128))
BATCHES = {"cpu": (1, 2, 4, 8, 16), "cuda": (1, 2, 4, 8, 16, 32, 64, 128, 256)}
PICTURES = {"cpu": 1, "cuda": 8}
"""At once, while the size grows."""
HEADS = 4
Key = tuple[str, int, int]


class Recorded:
    """A call on the GPU as a CUDA graph."""

    def __init__(self, run: TorchRun) -> None:
        self.megabytes = run.megabytes
        self.run = run  # a recording holds addresses alone: without this the weights' memory would be given to others
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = run.model(run.pixels)

    def __call__(self) -> None:
        self.graph.replay()
        torch.cuda.synchronize()


Run = TorchRun | FileRun | Recorded


class StandardAttention(nn.Module):
    """Softmax attention with a score for every pair of tokens, in the place of SeparableSelfAttention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        batch, dim, pixels, tokens = x.shape
        parts = (
            self.qkv(x).reshape(batch, 3, HEADS, dim // HEADS, pixels, tokens).permute(1, 0, 4, 2, 5, 3)
        )  # (3, B, P, heads, N, d)
        query, key, value = (part.flatten(0, 1) for part in parts)
        y = F.scaled_dot_product_attention(query, key, value)  # (B P, heads, N, d)
        y = y.reshape(batch, pixels, HEADS, tokens, dim // HEADS).permute(0, 2, 4, 1, 3).reshape(batch, dim, pixels, tokens)
        return self.out(y)


def quadratic(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    for module in list(other.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SeparableSelfAttention):
                setattr(module, name, StandardAttention(child.dim).to(child.qkv_proj.convolution.weight.device))
    return settle(other)


def build(arguments: argparse.Namespace) -> dict[str, Callable[[], Callable[[Tensor], Run]]]:
    """For each form, what builds it once for all sizes: a function that makes a run for pictures."""
    from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification
    from mobilevitv2.inference import optimize_for_inference

    torch.manual_seed(0)
    config = MobileViTV2Config(width_multiplier=arguments.width, num_labels=1000)
    device = torch.device(arguments.device)
    model = settle(MobileViTV2ForImageClassification(config).to(device))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def moved(network: nn.Module) -> nn.Module:
        return copy.deepcopy(network).to(device, dtype).to(memory_format=torch.channels_last)

    def ours(network: Any) -> nn.Module:
        # Its own CUDA graphs are for small calls alone, which would put a step into the curve; all are recorded below.
        return optimize_for_inference(network, device=device, dtype=dtype, cuda_graphs=False)

    def with_torch(name: str, builder: Callable[[], nn.Module]) -> Callable[[Tensor], Run]:
        module = builder()  # its weights are not counted in any size's memory

        def run(pixels: Tensor) -> Run:
            ready = TorchRun(TorchForm(name, lambda: module, True), pixels.to(device), dtype=dtype)
            return ready if device.type == "cpu" else Recorded(ready)

        return run

    forms = {
        "PyTorch, optimised": lambda: with_torch("optimised", lambda: ours(model)),
        "PyTorch, plain": lambda: with_torch("plain", lambda: moved(model)),
        "PyTorch, quadratic": lambda: with_torch("quadratic", lambda: moved(quadratic(model))),
    }
    if device.type == "cpu":
        forms = {"ONNX Runtime": lambda: lambda pixels: with_onnxruntime(model, pixels, arguments.threads), **forms}
    return {name: form for name, form in forms.items() if not arguments.forms or name in arguments.forms}


def with_onnxruntime(model: Any, pixels: Tensor, threads: int) -> Run:
    from mobilevitv2 import MobileViTV2ImageProcessor
    from mobilevitv2.runtime.engines import open_engine

    size = (pixels.shape[-2], pixels.shape[-1])
    with tempfile.TemporaryDirectory() as folder:
        path = export_ours(
            model, MobileViTV2ImageProcessor(), Path(folder), engine="onnxruntime", dtype="float32", size=size, name="model"
        )
        run = FileRun(open_engine(path, threads=threads), pixels.numpy())
        run.megabytes = resident(path, size[0], len(pixels), threads)
    return run


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    machine = describe_machine(libraries=["torch", "onnxruntime"], threads=arguments.threads, device=arguments.device)
    result: dict[str, Any] = {"width": arguments.width, "device": arguments.device, "environment": machine, "rows": []}
    print(line_of(machine), flush=True)
    kind = arguments.device.partition(":")[0]
    axes = {
        "tokens": [(size, arguments.batch or PICTURES[kind]) for size in arguments.sizes],
        "batch": [(arguments.sizes[0], batch) for batch in arguments.batches or BATCHES[kind]],
    }
    forms = build(arguments)
    # What disturbs a CPU disturbs all forms alike if they take turns; a GPU is nobody else's, and a killed run keeps what it has.
    groups = [list(forms)] if kind == "cpu" else [[name] for name in forms]
    for group in groups:
        built = {name: forms[name]() for name in group}
        for axis, points in axes.items():
            used = {name: form for name, form in built.items() if axis == "tokens" or "quadratic" not in name}
            if used:
                result["rows"] += grown(axis, points, used, arguments)
                save(result, arguments.json)
    return result


def grown(
    axis: str, points: list[tuple[int, int]], forms: dict[str, Callable[[Tensor], Run]], arguments: Any
) -> list[dict[str, Any]]:
    runs: dict[Key, Run] = {}
    memory: dict[Key, float | None] = {}
    for name, form in forms.items():
        for size, batch in points:
            pixels = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                run = runs[name, size, batch] = form(pixels)
            memory[name, size, batch] = run.megabytes
        print(f"{axis}: {name} ready", flush=True)
    times = in_turn(runs, rounds=arguments.rounds, warm_ups=1)
    rows = []
    for (name, size, batch), seconds in times.items():
        each = Times.of(seconds)
        rows.append(
            {
                "axis": axis,
                "form": name,
                "size": size,
                "batch": batch,
                "tokens": (size // 8) ** 2,
                "ms": each.median,
                "quartiles_ms": [each.low, each.high],
                "least_ms": each.least,
                "rounds": each.runs,
                "megabytes": memory[name, size, batch],
            }
        )
    print(table(rows), flush=True)
    return rows


RESIDENT = """
import re, sys
from pathlib import Path
import numpy as np
import onnxruntime
from mobilevitv2.runtime.with_onnxruntime import open_engine

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

path, batch, size, threads = Path(sys.argv[1]), *map(int, sys.argv[2:])
pixels = np.random.default_rng(0).random((batch, 3, size, size), np.float32)
engine = open_engine(path, threads=threads)
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = status("VmRSS")
engine.run(pixels)
print(1024 * (status("VmHWM") - before) / 1e6)
"""


def resident(path: Path, size: int, batch: int, threads: int) -> float | None:
    """Megabytes that a process of its own takes more at most while the model answers; Linux alone tells."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    words = [sys.executable, "-c", RESIDENT, str(path), str(batch), str(size), str(threads)]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


# ---- fits ------------------------------------------------------------------------------------------------------------------------


def fit(x: list[float], y: list[float]) -> dict[str, float]:
    """A straight line with its R^2, and the exponent of a power law, by least squares."""
    slope, offset = np.polyfit(x, y, 1)
    rest = np.sum((np.array(y) - (slope * np.array(x) + offset)) ** 2)
    around = np.sum((np.array(y) - np.mean(y)) ** 2)
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    upper = len(x) // 2
    above = np.polyfit(np.log(x[upper:]), np.log(y[upper:]), 1)[0] if len(x) - upper > 1 else exponent
    return {
        "slope": float(slope),
        "offset": float(offset),
        "r2": float(1 - rest / around) if around else 1.0,
        "exponent": float(exponent),
        "upper_exponent": float(above),
    }


def series(rows: list[dict[str, Any]], axis: str, form: str, value: str) -> tuple[list[float], list[float]]:
    """The axis' numbers and the values; times are those of all pictures of a call."""
    found = [row for row in rows if row["axis"] == axis and row["form"] == form and row.get(value) is not None]
    key = "tokens" if axis == "tokens" else "batch"
    return [row[key] for row in found], [row[value] for row in found]


def table(rows: list[dict[str, Any]]) -> str:
    axis = rows[0]["axis"]
    head = "size" if axis == "tokens" else "batch"
    forms = list(dict.fromkeys(row["form"] for row in rows))
    points = sorted({row[head] for row in rows})
    at = {(row["form"], row[head]): row for row in rows}
    columns = [f"{form}: ms" for form in forms] + [f"{form}: MB" for form in forms if at[form, points[0]]["megabytes"] is not None]
    lines = [f"| {head} | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for point in points:
        cells = [f"{at[form, point]['ms']:.2f} ({at[form, point]['ms'] / at[form, points[0]]['ms']:.2f} x)" for form in forms]
        cells += [f"{at[form, point]['megabytes']:.0f}" for form in forms if at[form, point]["megabytes"] is not None]
        lines.append(f"| {point} | " + " | ".join(cells) + " |")
    lines += ["", "| | R² of a line | exponent | in the upper half |", "| --- | --- | --- | --- |"]
    for value in ("ms", "megabytes"):
        for form in forms:
            x, y = series(rows, axis, form, value)
            if len(x) > 2:
                found = fit(x, y)
                name = f"{form}, {'time' if value == 'ms' else 'memory'}"
                lines.append(f"| {name} | {found['r2']:.4f} | {found['exponent']:.2f} | {found['upper_exponent']:.2f} |")
    return "\n".join(lines)


# ---- picture ---------------------------------------------------------------------------------------------------------------------

COLOURS = {"ONNX Runtime": "#1f6fb4", "PyTorch, optimised": "#2a9d5c", "PyTorch, quadratic": "#c0392b"}
MARKS = {"cpu": "o", "cuda": "s"}


def draw(paths: list[Path], picture: Path) -> None:
    from matplotlib.figure import Figure

    results = [json.loads(path.read_text()) for path in paths]
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axes_, axis in zip(axes, ("tokens", "batch"), strict=True):
        longest = 1.0
        for result in results:
            longest = max(longest, *draw_series(axes_, axis, result))
        axes_.plot([1, longest], [1, longest], color="#d5d5d5", linewidth=5, label="straight line", zorder=0)
        axes_.set_xscale("log", base=2)
        axes_.set_yscale("log", base=2)
        axes_.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes_.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes_.grid(alpha=0.3, linewidth=0.6)
        axes_.spines[["top", "right"]].set_visible(False)
        axes_.legend(fontsize=8, frameon=False, loc="upper left")
        axes_.set_ylabel("times the smallest")
    axes[0].set_title("Number of tokens, 256 to 1024 px", fontsize=11, loc="left")
    axes[0].set_xlabel("times the tokens at 256 px (1,024 on stage 3)")
    axes[1].set_title(f"Pictures at once, {results[0]['rows'][0]['size']} px", fontsize=11, loc="left")
    axes[1].set_xlabel("batch")
    figure.savefig(picture, dpi=130)


def draw_series(axes: Any, axis: str, result: dict[str, Any]) -> list[float]:
    kind = result["device"].partition(":")[0]
    where = "GPU" if kind == "cuda" else "CPU"
    farthest = [1.0]
    for form, colour in COLOURS.items():
        for value, style in (("ms", "-"), ("megabytes", "--")):
            x, y = series(result["rows"], axis, form, value)
            if not x or (value == "megabytes" and "quadratic" in form):
                continue
            ratios = [each / x[0] for each in x]
            farthest.append(max(ratios))
            hollow = "none" if value == "megabytes" else colour
            shown = {"color": colour, "linestyle": style, "marker": MARKS[kind], "markerfacecolor": hollow, "markersize": 5}
            name = form.replace("PyTorch, quadratic", "quadratic attention").replace("PyTorch, optimised", "PyTorch")
            label = f"{name}, {where}, {'time' if value == 'ms' else 'memory'}: exponent {fit(x, y)['exponent']:.2f}"
            axes.plot(ratios, [each / y[0] for each in y], linewidth=1.6, label=label, **shown)
    return farthest


def save(result: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--batch", type=int, help="pictures at once while the size grows; 1 on a CPU, 8 on a GPU without it")
    parser.add_argument("--forms", nargs="+", help="names of forms; all without it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--draw", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--picture", type=Path, default=Path("cost-growth.png"))
    arguments = parser.parse_args(words)
    if arguments.draw:
        draw(arguments.draw, arguments.picture)
    else:
        with torch.inference_mode():
            measure(arguments)


if __name__ == "__main__":
    main()
