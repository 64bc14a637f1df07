"""Training speed: the bare step of each model, and what augmentation, loader and Trainer add to it.

    python benchmarks/training.py objects --width 0.75 --size 160 192 224

Prints medians of interleaved rounds, pictures a second. On a processor only ratios mean anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers import build
from torch.nn import functional as F


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median time of one call."""
    times = []
    for _ in range(rounds):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bare_step(name: str, width: float, size: int, batch: int, *, device: torch.device, compiled: bool) -> Callable[[], None]:
    """Forward, backward and optimiser step of `name` on one fixed batch, ten times a call."""
    model = build(name, width, 112).to(device).to(memory_format=torch.channels_last).train()
    forward: Callable[..., object] = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    pictures = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(112, (batch,), device=device)

    def run() -> None:
        for _ in range(10):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = forward(pixel_values=pictures).logits  # type: ignore[attr-defined]
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    run()
    return run


def parts(data: str, recipe_name: str, size: int, batch: int, *, device: torch.device) -> dict[str, float]:
    """Pictures a second of the augmentation alone, the loader alone, and a whole short run of the Trainer."""
    from mobilevitv2.data.classification import open_classification_data
    from mobilevitv2.train.augment import BatchAugmentation
    from mobilevitv2.train.classify import _run, build_model
    from mobilevitv2.train.recipe import load_recipe

    recipe = load_recipe(recipe_name, {"image_size": str(size), "batch_size": str(batch), "width": "0.75"})
    opened = open_classification_data(data, validation_fraction=0.0)
    assert opened.train is not None
    found: dict[str, float] = {}
    augmentation = BatchAugmentation(112, randaugment_operations=2, erasing=0.25, mixup=0.2, cutmix=1.0)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(112, (batch,), device=device)
    found["augmentation"] = batch / seconds(lambda: augmentation(pixels, labels), 20)
    from mobilevitv2.data.batches import EpochBatches, PictureBatches, TrainCrop
    from mobilevitv2.train.classify import _cache
    from mobilevitv2.train.trainer import make_loader, worker_count

    start = time.perf_counter()
    cache = _cache(opened.train, recipe, size)
    found["decode once"] = len(opened.train) / (time.perf_counter() - start)
    pictures = PictureBatches(opened.train, TrainCrop(size, recipe.crop_scale), cache=cache)
    batches = EpochBatches(len(pictures), batch, epochs=4, seed=0)
    start, count = 0.0, -20
    for inputs in make_loader(pictures, batches, workers=worker_count(recipe), pin=device.type == "cuda"):
        count += 1
        if count == 0:
            start = time.perf_counter()
        inputs["pixel_values"].to(device, non_blocking=True)
    found["loader"] = count * batch / (time.perf_counter() - start)
    epochs = 6
    short = dataclasses.replace(recipe, epochs=epochs, eval_every=epochs, save_every=epochs, warmup_steps=10)
    network, _ = build_model("scratch", short, opened.classes)
    with tempfile.TemporaryDirectory() as folder:
        _run(network, short, Path(folder), opened.train, opened.test, resume=False)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    points = [(line["step"], line["seconds"]) for line in lines if "grad_norm" in line]
    found["Trainer"] = batch * (points[-1][0] - points[1][0]) / (points[-1][1] - points[1][1])
    found["Trainer's evaluation, s"] = next(line["seconds"] for line in lines if "eval_top1" in line) - points[-1][1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--width", type=float, default=0.75)
    parser.add_argument("--size", type=int, nargs="+", default=[192])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--models", nargs="+", default=["ours", "timm"])
    parser.add_argument("--recipe", default="small-scratch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    print("device:", torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "torch", torch.__version__, flush=True)
    for size in arguments.size:
        steps: dict[str, Callable[[], None]] = {}
        for name in arguments.models:
            start = time.perf_counter()
            steps[name] = bare_step(name, arguments.width, size, arguments.batch, device=device, compiled=not arguments.eager)
            print(f"  {size} px {name}: ready after {time.perf_counter() - start:.0f} s", flush=True)
        for name, step in steps.items():
            rate = 10 * arguments.batch / seconds(step, arguments.rounds)
            print(f"{size} px, bare step of {name}: {rate:,.0f} img/s", flush=True)
    for name, value in parts(arguments.data, arguments.recipe, arguments.size[-1], arguments.batch, device=device).items():
        print(f"{arguments.size[-1]} px, {name}: {value:,.1f}", flush=True)


if __name__ == "__main__":
    main()
