"""Pictures a second into training: this package beside torchvision's ImageFolder, transforms and DataLoader, on the same cores.

    python benchmarks/input_pipeline.py ../shared/data/objects/train-00000-of-00004.parquet --json docs/runs/input-pipeline.json

The pictures of the table are written out as JPEG files, from which both read; ours reads the table itself as well. Augmentation is
equal: random resized crop, flip, RandAugment (2 operations, magnitude 9), erasing (.25), mixup or cutmix for each batch.
torchvision does it in the workers as its users do, on Pillow's pictures and on tensors, and mixes on the device; ours crops and
flips in the workers and does the rest on the device. Bytes cross the bus in both. Without a GPU the device's part is timed by
itself, since the workers' cores would have to do it too.

Each rate is taken between the arrival of a first batch and of a later one, all workers busy; the rounds are interleaved, and the
ratios are medians of those within a round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from mobilevitv2.data.batches import EpochBatches, PictureBatches, TrainCrop
from mobilevitv2.data.classification import PictureSplit, open_classification_data
from mobilevitv2.data.decoded import DecodedPictures
from mobilevitv2.train.augment import BatchAugmentation
from mobilevitv2.train.trainer import make_loader

Batch = tuple[torch.Tensor, torch.Tensor]
Step = Callable[[torch.Tensor, torch.Tensor], object]


def write_files(split: PictureSplit, folder: Path) -> None:
    """Each picture as a JPEG of quality 90, in a folder named after its class."""

    def write(index: int) -> None:
        place = folder / f"{int(split.labels[index]):03d}"
        place.mkdir(parents=True, exist_ok=True)
        split.read(index).save(place / f"{index}.jpg", quality=90)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(len(split))))


def write_photographs(folder: Path, count: int) -> None:
    """JPEGs of 4,000 x 3,000 from scikit-image's photographs, with a camera's noise, in two classes."""
    from skimage import data

    def write(number: int) -> None:
        place = folder / f"{number % 2:03d}"
        place.mkdir(parents=True, exist_ok=True)
        photograph = Image.fromarray((data.astronaut, data.coffee, data.chelsea)[number % 3]())
        picture = photograph.resize((4000, 3000), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(number).integers(-4, 5, (3000, 4000, 3))
        Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)).save(place / f"{number}.jpg", quality=88)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(write, range(count)))


# ---------------------------------------------------------------------------------------------------------------- the contenders


def torchvision_loader(folder: Path, form: str, arguments: argparse.Namespace) -> Iterable[Batch]:
    """ImageFolder and its transforms, on "PIL" pictures or on "tensors"; an endless stream of batches."""
    bicubic = InterpolationMode.BICUBIC
    steps: list[Any] = [
        v2.RandomResizedCrop(arguments.size, interpolation=bicubic, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandAugment(interpolation=InterpolationMode.BILINEAR),
    ]
    steps = [*steps, v2.PILToTensor()] if form == "PIL" else [v2.PILToTensor(), *steps]
    pictures = ImageFolder(folder, v2.Compose([*steps, v2.RandomErasing(0.25)]))
    return DataLoader(
        pictures,
        batch_size=arguments.batch,
        sampler=RandomSampler(pictures, replacement=True, num_samples=10**7),
        num_workers=arguments.workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=2,
    )


def our_loader(split: PictureSplit, cache: DecodedPictures | None, arguments: argparse.Namespace) -> Iterator[Batch]:
    """What the trainer reads from; an endless stream of batches."""
    pictures = PictureBatches(split, TrainCrop(arguments.size), cache=cache)
    batches = EpochBatches(len(pictures), min(arguments.batch, len(pictures)), epochs=10**6, seed=0)
    for inputs in make_loader(pictures, batches, workers=arguments.workers, pin=torch.cuda.is_available()):
        yield inputs["pixel_values"], inputs["labels"]


def mixed(device: torch.device, pixels: torch.Tensor, labels: torch.Tensor, *, classes: int) -> object:
    """What is left to do for torchvision's batches."""
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)])
    pictures = pixels.to(device, non_blocking=True).float().div_(255).contiguous(memory_format=torch.channels_last)
    return mix(pictures, labels.to(device, non_blocking=True))


def augmented(device: torch.device, pixels: torch.Tensor, labels: torch.Tensor, *, augmentation: BatchAugmentation) -> object:
    """What is left to do for ours."""
    return augmentation(pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True))


# ------------------------------------------------------------------------------------------------------------------- measuring


def rate(loader: Iterable[Batch], step: Step | None, *, workers: int, seconds: float) -> float:
    """Pictures a second of a stream, from the first batch on, over whole turns of the workers."""
    stream = iter(loader)
    pixels, labels = next(stream)
    if step is not None:
        step(pixels, labels)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for pixels, labels in itertools.islice(stream, max(1, workers)):
            count += len(labels)
            if step is not None:
                step(pixels, labels)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    found = count / (time.perf_counter() - start)
    del stream
    return found


def beside_each_other(
    contenders: dict[str, Callable[[], float]], rounds: int, *, keep: Callable[[str, list[float]], None]
) -> dict[str, list[float]]:
    """Rates of each in interleaved rounds."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            found[name].append(measure())
            keep(name, found[name])
    return found


def report(title: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and ratios to the faster of torchvision's forms."""
    peers = [name for name in found if name.startswith("torchvision")]
    best = max(peers, key=lambda name: statistics.median(found[name]))
    rows = {}
    print(f"\n{title}\n| | pictures a second | times torchvision's best |\n| --- | --- | --- |")
    for name, values in found.items():
        ratio = statistics.median(value / peer for value, peer in zip(values, found[best], strict=True))
        rows[name] = {"rate": statistics.median(values), "rounds": values, "ratio": ratio}
        print(f"| {name} | {statistics.median(values):,.0f} | {ratio:.2f} |", flush=True)
    return rows


def fill_rate(split: PictureSplit, arguments: argparse.Namespace) -> tuple[DecodedPictures, float]:
    """The decoded pictures, and how many a second were."""
    start = time.perf_counter()
    cache = DecodedPictures(split, short_side=arguments.size * 3 // 2, threads=arguments.workers or 1)
    return cache, len(split) / (time.perf_counter() - start)


def device_part(device: torch.device, arguments: argparse.Namespace, classes: int) -> float:
    """Pictures a second of our augmentation by itself."""
    augmentation = our_augmentation(classes)
    pixels = torch.randint(0, 256, (arguments.batch, 3, arguments.size, arguments.size), dtype=torch.uint8, device=device)
    labels = torch.randint(classes, (arguments.batch,), device=device)
    times = []
    for _ in range(8 if device.type == "cuda" else 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10 if device.type == "cuda" else 1):
            augmentation(pixels, labels)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / (10 if device.type == "cuda" else 1))
    return float(arguments.batch / statistics.median(times))


def our_augmentation(classes: int) -> BatchAugmentation:
    """The same as torchvision's."""
    return BatchAugmentation(classes, randaugment_operations=2, erasing=0.25, mixup=0.2, cutmix=1.0)


def contenders_of(
    folder: Path, cases: dict[str, tuple[PictureSplit, DecodedPictures | None]], arguments: argparse.Namespace, classes: int
) -> dict[str, Callable[[], float]]:
    """Everything to be timed on one set of pictures."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    timed = partial(rate, workers=arguments.workers, seconds=arguments.seconds)
    theirs: Step | None = partial(mixed, device, classes=classes) if on_gpu else None
    ours: Step | None = partial(augmented, device, augmentation=our_augmentation(classes)) if on_gpu else None
    found: dict[str, Callable[[], float]] = {}
    for form in ("PIL", "tensors"):
        found[f"torchvision, {form}"] = lambda form=form: timed(torchvision_loader(folder, form, arguments), theirs)  # type: ignore[misc]
    for name, (split, cache) in cases.items():
        found[f"ours, {name}"] = lambda split=split, cache=cache: timed(our_loader(split, cache, arguments), ours)  # type: ignore[misc]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="parquet files of pictures with labels")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--photographs", type=int, default=48, help="of 4,000 x 3,000; 0 for none")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=min(16, len(os.sched_getaffinity(0))))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, at least")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else "CPU: rates are the workers', without the device's part",
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": Image.__version__},
        "size": arguments.size,
        "batch": arguments.batch,
        "workers": arguments.workers,
    }
    print(result, flush=True)

    def keep(place: str, name: str, values: object) -> None:
        result.setdefault(place, {})[name] = values
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1))

    table = open_classification_data(arguments.data, validation_fraction=0)
    split = next(iter(table.splits.values()))
    split = split.select(np.linspace(0, len(split) - 1, min(arguments.pictures, len(split))).astype(int))
    classes = len(table.classes)
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary, "small"), Path(temporary, "large")
        write_files(split, small)
        files = open_classification_data(small, validation_fraction=0).splits["train"]
        cache, filled = fill_rate(files, arguments)
        memory = cache.nbytes / len(files) / 1e3
        print(f"{len(files)} JPEG files; decoded into memory at {filled:,.0f} a second, {memory:.0f} kB each", flush=True)
        keep("decoded once", "rate", filled)
        cases = {"files": (files, None), "files, decoded in memory": (files, cache), "table": (split, None)}
        contenders = contenders_of(small, cases, arguments, classes)
        found = beside_each_other(contenders, arguments.rounds, keep=partial(keep, "small, raw"))
        keep("result", "small", report(f"small pictures, {arguments.size} px", found))
        alone = device_part(device, arguments, classes)
        print(f"our augmentation by itself on {device.type}: {alone:,.0f} pictures a second", flush=True)
        keep("augmentation alone", device.type, alone)
        if arguments.photographs:
            write_photographs(large, arguments.photographs)
            photographs = open_classification_data(large, validation_fraction=0).splits["train"]
            cache, filled = fill_rate(photographs, arguments)
            keep("photographs decoded once", "rate", filled)
            arguments.batch = min(arguments.batch, 4)
            cases = {"files": (photographs, None), "files, decoded in memory": (photographs, cache)}
            found = beside_each_other(contenders_of(large, cases, arguments, 2), arguments.rounds, keep=partial(keep, "large, raw"))
            keep("result", "large", report("photographs of 4,000 x 3,000", found))
            print(f"decoded into memory at {filled:,.0f} a second", flush=True)


if __name__ == "__main__":
    main()
