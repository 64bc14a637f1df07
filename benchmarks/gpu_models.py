"""The whole-model rows of inference_gpu.py: what is quick to prepare first, what torch.compile makes last, one at a time."""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_measuring import elapsed, guarded, relative_error, wait, wanted
from kernel_cases import DTYPE
from same_weights import classifiers
from torch import Tensor, nn

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A form of the model.

    Attributes:
        build: makes it.
        batches: "large": the large batch; "one": a batch of 1 too; "all": every batch.
        recorded: whether the benchmark records its small batches as CUDA graphs.
    """

    name: str
    build: Callable[[], nn.Module]
    batches: str
    recorded: bool = True
    compiled: bool = False

    def runs_at(self, batch: int, large: int) -> bool:
        return batch == large or self.batches == "all" or (self.batches == "one" and batch == 1)


@dataclass(frozen=True)
class Setting:
    """What all rows share: pictures and the plain model's float32 answers to them."""

    models: dict[str, nn.Module]
    forms: list[Form]
    few: Tensor
    exact: Tensor
    arguments: argparse.Namespace

    def pictures(self, batch: int) -> Tensor:
        size, device = self.arguments.size, self.arguments.device
        x = torch.rand(batch, 3, size, size, device=device, dtype=DTYPE)
        return x.contiguous(memory_format=torch.channels_last)


class Graph:
    """A model recorded as a CUDA graph for one input."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model = model  # a recording holds addresses alone: without this the weights' memory would be given to others
        self.x = x.clone(memory_format=torch.preserve_format)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(self.x)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = model(self.x)

    def __call__(self, x: Tensor) -> Any:
        self.x.copy_(x)
        self.graph.replay()
        return self.out


def prepare(arguments: argparse.Namespace) -> Setting:
    models = {name: model.to(arguments.device) for name, model in classifiers(arguments.width).items()}
    few = torch.rand(8, 3, arguments.size, arguments.size, device=arguments.device)
    return Setting(models, list_forms(models), few, models["ours"](few).logits, arguments)


def list_forms(models: dict[str, nn.Module]) -> list[Form]:
    from mobilevitv2.inference import optimize_for_inference

    def peer(name: str) -> Callable[[], nn.Module]:
        return lambda: copy.deepcopy(models[name]).to(DTYPE).to(memory_format=torch.channels_last)

    def ours(**options: Any) -> Callable[[], nn.Module]:
        device = next(models["ours"].parameters()).device
        return lambda: optimize_for_inference(models["ours"], dtype=DTYPE, device=device, **options)  # type: ignore[type-var]

    return [
        Form("kernels", ours(kernels=True, cuda_graphs=False), "all"),
        Form("kernels, own graphs", ours(kernels=True), "all", recorded=False),
        Form("folded", ours(kernels=False, cuda_graphs=False), "one"),
        Form("plain", peer("ours"), "one"),
        Form("timm channels_last", peer("timm"), "one"),
        Form("transformers", lambda: copy.deepcopy(models["transformers"]).to(DTYPE), "large"),
        Form("timm channels_last + compile", peer("timm"), "one", compiled=True),
        Form("transformers channels_last + compile", peer("transformers"), "large", compiled=True),
        Form("folded + compile", ours(kernels=False), "one", compiled=True),
    ]


def eager_rows(setting: Setting, rows: list[Row], store: Callable[[], None]) -> None:
    """Everything without torch.compile, one batch size after the other; the forms of a batch size are timed in turn."""
    arguments = setting.arguments
    for batch in batches(arguments):
        x, ready, begun = setting.pictures(batch), {}, []
        for form in setting.forms:
            skip = form.compiled or not form.runs_at(batch, arguments.batch_size) or not wanted(form.name, arguments.rows)
            if not skip and elapsed() < arguments.budget:
                row = add_row(setting, form, x, ready)
                begun.append(row)
        time_forms(ready, x, begun, arguments.rounds)
        rows += begun
        store()


def compiled_rows(setting: Setting, rows: list[Row], store: Callable[[], None]) -> None:
    """One compiled form at a time, timed in turn with our kernels again; the large batch first."""
    arguments = setting.arguments
    ours = next(form for form in setting.forms if form.name == "kernels, own graphs")
    forms = [form for form in setting.forms if form.compiled and wanted(form.name, arguments.compiled)]
    for batch in (arguments.batch_size, 1):
        for form in (form for form in forms if form.runs_at(batch, arguments.batch_size)):
            if elapsed() > arguments.budget:
                return
            x, ready = setting.pictures(batch), {}
            begun = [add_row(setting, ours, x, ready), add_row(setting, form, x, ready)]
            begun[0]["beside"] = form.name
            time_forms(ready, x, begun, arguments.rounds)
            rows += begun
            store()


def batches(arguments: argparse.Namespace) -> list[int]:
    return [arguments.batch_size, *(int(batch) for batch in arguments.graph_batches.split(",") if batch)]


def add_row(setting: Setting, form: Form, x: Tensor, ready: dict[str, Callable[[Tensor], Any]]) -> Row:
    """Prepare a form; it goes into `ready` unless it fails."""
    found = guarded(lambda: make_ready(form, x, setting))
    if isinstance(found, str):
        print(f"{form.name:38} batch {len(x):4} failed: {found}", flush=True)
        return {"name": form.name, "batch": len(x), "failed": found}
    ready[form.name], error, seconds = found
    return {"name": form.name, "batch": len(x), "error": error, "ready_s": seconds}


def make_ready(form: Form, x: Tensor, setting: Setting) -> tuple[Callable[[Tensor], Any], float, float]:
    """The form, warm; its error against the plain model in float32; the seconds until it was ready."""
    start = time.perf_counter()
    model: Any = form.build()
    few, exact = setting.few.to(x.dtype).contiguous(memory_format=torch.channels_last), setting.exact
    if form.compiled:  # its own error, on pictures of the size it is compiled for
        torch._dynamo.reset()
        model = torch.compile(model, dynamic=False)
        filled = x.clone(memory_format=torch.preserve_format)
        count = min(len(few), len(filled))
        filled[:count] = few[:count]
        error = relative_error(model(filled).logits[:count], exact[:count])
    else:
        error = relative_error(model(few).logits, exact)
    for _ in range(3):  # a form that records its calls does so at the second
        model(x)
    wait()
    graph = form.recorded and len(x) < setting.arguments.batch_size and x.is_cuda
    call = Graph(model, x) if graph else model
    wait()
    return call, error, round(time.perf_counter() - start, 1)


def time_forms(ready: dict[str, Callable[[Tensor], Any]], x: Tensor, rows: list[Row], rounds: int) -> None:
    """In turn: a round times each form once, on several batches."""
    times: dict[str, list[float]] = {name: [] for name in ready}
    batch = len(x)
    inner = 1 if not x.is_cuda else max(3, 50 // batch)
    for _ in range(rounds):
        for name, form in ready.items():
            wait()
            start = time.perf_counter()
            for _ in range(inner):
                form(x)
            wait()
            times[name].append(1e3 * (time.perf_counter() - start) / inner)
    heads = " ".join(f"{head:>8}" for head in ("ms", "min", "max", "img/s", "error", "ready s"))
    print(f"\n{'batch ' + str(batch):38} {heads}  {elapsed():.0f} s")
    for row in rows:
        if "failed" in row:
            continue
        each = times[row["name"]]
        ms = statistics.median(each)
        row |= {"ms": ms, "min_ms": min(each), "max_ms": max(each), "img_s": 1e3 * batch / ms}
        print(
            f"{row['name']:38} {ms:8.3f} {min(each):8.3f} {max(each):8.3f} {row['img_s']:8.0f} "
            f"{row['error']:8.1e} {row['ready_s']:8.1f}",
            flush=True,
        )


def profile(setting: Setting, batch: int, *, graph: bool) -> Row:
    """The kernels of one call of our kernels' form, in their order: name, microseconds, and the pause before it."""
    form = next(form for form in setting.forms if form.name == "kernels")
    x = setting.pictures(batch)
    model = form.build()
    model(x)
    call = Graph(model, x) if graph else model
    for _ in range(5):
        call(x)
    wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        call(x)
        wait()
    events = sorted((e for e in trace.events() if e.device_type.name == "CUDA"), key=lambda e: e.time_range.start)
    kernels: list[list[Any]] = []
    last = None
    for event in events:
        pause = 0.0 if last is None else event.time_range.start - last
        last = event.time_range.end
        kernels.append([event.name[:60], round(event.time_range.elapsed_us(), 2), round(pause, 2)])
    show_profile(kernels, batch)
    return {"batch": batch, "graph": graph, "kernels": kernels}


def show_profile(kernels: list[list[Any]], batch: int) -> None:
    """In order, several to a line, and the sums by name."""
    total, pauses = sum(k[1] for k in kernels), sum(k[2] for k in kernels)
    print(f"\nprofile, batch {batch}: {len(kernels)} kernels, {total:.1f} us in them, {pauses:.1f} us between, {elapsed():.0f} s")
    short = [f"{k[0].replace('_kernel', '')[:14]} {k[1]:.4g}" for k in kernels]
    for first in range(0, len(short), 8):
        print("  " + " | ".join(short[first : first + 8]))
    sums: dict[str, list[float]] = {}
    for name, us, _ in kernels:
        entry = sums.setdefault(name, [0.0, 0.0])
        entry[0] += us
        entry[1] += 1
    for name, (us, count) in sorted(sums.items(), key=lambda item: -item[1][0]):
        print(f"  {us:10.1f} us {count:4.0f} x {name}", flush=True)
