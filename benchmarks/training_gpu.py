"""A training step on one NVIDIA GPU: ours in its plain form and with kernels, transformers and timm, in one run.

    PYTHONPATH=src python benchmarks/training_gpu.py --json out.json               # half a minute; --compile adds two minutes
    PYTHONPATH=src python benchmarks/training_gpu.py --rows kernels,plain --profile
    PYTHONPATH=src python benchmarks/training_gpu.py --kernels --rows stage1 --tune  # each kernel by itself (training_kernels.py)

A step is forward under bfloat16 autocast, loss, backward, fused AdamW. Rates are medians over interleaved rounds. `host` is the
time that the step's launches take: where it is not below the step's, the GPU waits for them. `peak` is what the step holds at most,
weights and optimiser included. Errors are distances of all gradients from those of the plain form in float32, over their length;
the plain form's own in bfloat16 stands beside ours. Rows are printed and saved as soon as they are known.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_measuring import copy_bandwidth, described, elapsed, guarded, save, wait, wanted
from peers import build
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.kernels.training import use_training_kernels

CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--rows", help="comma-separated starts of row names to run")
    parser.add_argument("--compile", action="store_true", help="rows of torch.compile at the end, about 40 s each")
    parser.add_argument("--profile", action="store_true", help="list the kernels of a step with ours")
    parser.add_argument("--kernels", action="store_true", help="each kernel by itself instead")
    parser.add_argument("--tune", action="store_true", help="with --kernels: try several tiles for each")
    parser.add_argument("--budget", type=float, default=80.0, help="with --kernels: seconds after which no new row starts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    if arguments.kernels:
        import training_kernels

        training_kernels.run(arguments)
        return
    results: dict[str, Any] = {"arguments": described(arguments), "rows": {}}
    if arguments.device == "cuda":
        results["device"] = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        results["copy_gb_s"] = copy_bandwidth("cuda")
        print(results["device"], results["copy_gb_s"], flush=True)
    if arguments.device == "cuda":
        print("compiled ahead:", guarded(lambda: compile_ahead(arguments)), f"{elapsed():.0f} s", flush=True)
    models = {name: make for name, make in forms(arguments.width).items() if wanted(name, arguments.rows)}
    measure(models, arguments, results)
    for name, part in (("errors", errors), ("losses", losses)):
        if arguments.rows is None or "kernels" in arguments.rows:
            results[name] = guarded(lambda part=part: part(arguments))  # type: ignore[misc]
            print(name, results[name], f"{elapsed():.0f} s", flush=True)
            save(results, arguments.json)
    if arguments.profile:
        print(guarded(lambda: profile(arguments)), flush=True)
    if arguments.compile:
        compiled = {
            f"{name}, compile": (lambda make=make: torch.compile(make())) for name, make in models.items() if name != "kernels"
        }
        for name, make in compiled.items():
            measure({name: make}, arguments, results)  # type: ignore[dict-item]


def compile_ahead(arguments: argparse.Namespace) -> str:
    """A process for each part of the model, into Triton's cache on disk."""
    parts = [(arguments.width, arguments.size, number) for number in range(10)]
    pool = concurrent.futures.ProcessPoolExecutor(len(parts), mp_context=multiprocessing.get_context("spawn"))
    try:
        failed = [error for error in pool.map(compile_part, parts, timeout=60) if error]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return f"{len(failed)} failed {failed[:2]}"


def compile_part(job: tuple[float, int, int]) -> str:
    """One step of the stem, of an inverted residual, or of a block without its own."""
    width, size, number = job
    model = build("ours", width, 10)
    trunk = model.mobilevitv2
    layers = trunk.encoder.layer
    blocks = [layers[2], layers[3], layers[4]]
    sides = [size // 2, size // 2, size // 4, size // 4, size // 8, size // 16]
    residuals = [layers[0].layer[0], *layers[1].layer, *(block.downsampling_layer for block in blocks)]
    if number < 6:
        part, side = residuals[number], sides[number]
        channels = part.expand_1x1.convolution.in_channels
    elif number < 9:
        part, side = blocks[number - 6], size // 2 ** (number - 3)
        part.downsampling_layer = nn.Identity()
        part.downsampling_layer.conv_3x3 = part.conv_kxk  # whose stride of 1 the kernels look up
        channels = part.conv_kxk.convolution.in_channels
    else:
        part, side, channels = trunk.conv_stem, size, 3
    part = part.cuda().to(memory_format=torch.channels_last).train()
    use_training_kernels(part)
    x = torch.rand(16, channels, side, side, device="cuda").contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            part(x.requires_grad_(number < 9)).float().sum().backward()
        wait()

    found = guarded(run)
    return found if isinstance(found, str) else ""


def forms(width: float) -> dict[str, Callable[[], nn.Module]]:
    def with_kernels() -> nn.Module:
        model = build("ours", width, CLASSES)
        assert use_training_kernels(model) > 0, "no kernels: is Triton installed, is MOBILEVITV2_KERNELS=0 set?"
        return model

    return {
        "kernels": with_kernels,
        "kernels, graph": with_kernels,
        "plain": lambda: build("ours", width, CLASSES),
        "transformers": lambda: build("transformers", width, CLASSES),
        "timm": lambda: build("timm", width, CLASSES),
    }


def measure(models: dict[str, Callable[[], nn.Module]], arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Time each form by itself, save it, then all in turn."""
    steps: dict[str, Callable[[], None]] = {}
    for name, make in models.items():
        row: dict[str, Any] = {}
        results["rows"][name] = row
        ready = recorded if name.endswith("graph") else prepare
        found = guarded(lambda make=make, row=row, ready=ready: ready(make, arguments, row))  # type: ignore[misc]
        if isinstance(found, str):
            row["failed"] = found
        else:
            steps[name] = found
            row["alone_ms"] = 1e3 * statistics.median(seconds(found, arguments.steps) for _ in range(3))
        print(f"{name}: {row}, {elapsed():.0f} s", flush=True)
        save(results, arguments.json)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, arguments.steps))
            row, median = results["rows"][name], statistics.median(times[name])
            row |= {"ms": 1e3 * median, "img_s": arguments.batch_size / median}
            row |= {"spread": (max(times[name]) - min(times[name])) / median, "rounds": number + 1}
        save(results, arguments.json)
    for name in steps:
        row = results["rows"][name]
        print(f"{name:24} {row['ms']:8.2f} ms {row['img_s']:8,.0f} img/s, spread {100 * row['spread']:.0f} %, "
              f"host {row.get('host_ms', 0):.1f} ms, peak {row.get('peak_gb', 0):.2f} GB", flush=True)  # fmt: skip


def recorded(make: Callable[[], nn.Module], arguments: argparse.Namespace, row: dict[str, Any]) -> Callable[[], None]:
    """The step as a CUDA graph: the host launches once."""
    torch.manual_seed(0)
    model = make().to(arguments.device).to(memory_format=torch.channels_last).train()
    pictures, labels = inputs(arguments, arguments.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
            logits = model(pixel_values=pictures).logits
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(aside)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    wait()
    start = time.perf_counter()
    graph.replay()
    row["host_ms"] = 1e3 * (time.perf_counter() - start)
    wait()
    return graph.replay


def prepare(make: Callable[[], nn.Module], arguments: argparse.Namespace, row: dict[str, Any]) -> Callable[[], None]:
    torch.manual_seed(0)
    before = allocated()
    model = make().to(arguments.device).to(memory_format=torch.channels_last).train()
    pictures, labels = inputs(arguments, arguments.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=arguments.device == "cuda")

    def step() -> None:
        loss_of(model, pictures, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    start = time.perf_counter()
    for _ in range(3):
        step()
    wait()
    row["first_s"] = round(time.perf_counter() - start, 1)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    hosts = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        hosts.append(1e3 * (time.perf_counter() - start))
        wait()
    row["host_ms"] = min(hosts)
    peak = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else 0
    row["peak_gb"] = (peak - before) / 1e9
    return step


def allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def inputs(arguments: argparse.Namespace, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(arguments.device).manual_seed(1)
    shape = batch, 3, arguments.size, arguments.size
    pictures = torch.rand(shape, device=arguments.device, generator=generator).contiguous(memory_format=torch.channels_last)
    return pictures, torch.randint(CLASSES, (batch,), device=arguments.device, generator=generator)


def loss_of(model: nn.Module, pictures: Tensor, labels: Tensor, *, half: bool = True) -> Tensor:
    with torch.autocast(arguments_device(pictures), dtype=torch.bfloat16, enabled=half):
        logits = model(pixel_values=pictures).logits
    return F.cross_entropy(logits.float(), labels)


def arguments_device(x: Tensor) -> str:
    return x.device.type


def seconds(step: Callable[[], None], steps: int) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - start) / steps


def three(arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """The same weights thrice."""
    torch.manual_seed(0)
    plain = build("ours", arguments.width, CLASSES)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = plain.to(arguments.device).to(memory_format=torch.channels_last).train()
    found = {"float32": plain, "plain": copy.deepcopy(plain), "kernels": copy.deepcopy(plain)}
    use_training_kernels(found["kernels"])
    return found


def errors(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of gradients, logits and running statistics, on a quarter of the batch."""
    models = three(arguments)
    pictures, labels = inputs(arguments, max(2, arguments.batch_size // 4))
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, model in models.items():
        loss_of(model, pictures, labels, half=name != "float32").backward()
        gradients[name] = {key: p.grad.float() for key, p in model.named_parameters()}  # type: ignore[union-attr]
    found: dict[str, Any] = {}
    exact = gradients["float32"]
    statistics_of = {n: {k: b for k, b in m.named_buffers() if b.is_floating_point()} for n, m in models.items()}
    for name in ("plain", "kernels"):
        each = {key: distance([g], [exact[key]]) for key, g in gradients[name].items() if exact[key].norm() > 1e-6}
        found[name] = {
            "gradients": distance(list(gradients[name].values()), list(exact.values())),
            "median": statistics.median(each.values()),
            "worst": max((value, key) for key, value in each.items()),
            "statistics": distance(list(statistics_of[name].values()), list(statistics_of["float32"].values())),
        }
    return found


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    top = sum((a.float() - b).square().sum() for a, b in zip(found, exact, strict=True))
    return float((top / sum(b.square().sum() for b in exact)) ** 0.5)


def losses(arguments: argparse.Namespace, steps: int = 24) -> dict[str, list[float]]:
    """Of one batch learnt by heart, every third step."""
    found: dict[str, list[float]] = {}
    pictures, labels = inputs(arguments, max(2, arguments.batch_size // 4))
    for name, model in three(arguments).items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        seen = []
        for _ in range(steps):
            loss = loss_of(model, pictures, labels, half=name != "float32")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen.append(loss.detach())
        found[name] = [round(float(loss), 3) for loss in seen[::3]]
    return found


def profile(arguments: argparse.Namespace) -> str:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    step = prepare(forms(arguments.width)["kernels"], arguments, {})
    with record(activities=[ProfilerActivity.CUDA]) as found:
        step()
        wait()
    return found.key_averages().table(sort_by="cuda_time_total", row_limit=60, max_name_column_width=60)


if __name__ == "__main__":
    main()
