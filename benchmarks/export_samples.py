"""Fixed pictures of a data set for several measurements of exported files, and the answers of a file on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.runtime.engines import Engine
from mobilevitv2.runtime.metadata import PictureContract
from mobilevitv2.runtime.preprocessing import as_input, prepare

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sample:
    """Pictures as a contract cuts them, in an order drawn once: the first n are a fair sample of all.

    Attributes:
        pixels: uint8 (n, height, width, 3).
        labels: (n,).
    """

    pixels: Array
    labels: Array
    contract: PictureContract


def read_sample(data: str, contract: PictureContract, count: int, *, cache: Path) -> Sample:
    """The first `count` pictures of the test split in the drawn order; kept in the folder `cache`."""
    from mobilevitv2.data.classification import open_classification_data

    name = f"{contract.height}x{contract.width}-{contract.resize}-{count}".translate({ord(sign): None for sign in "{}': "})
    pixels, labels = cache / f"{name}.pixels.npy", cache / f"{name}.labels.npy"
    if not labels.is_file():
        split = open_classification_data(data, validation_fraction=0).splits["test"]
        order = np.random.default_rng(0).permutation(len(split))[:count]
        found = [(prepare(split.read(int(index)), contract), split.labels[int(index)]) for index in order]
        cache.mkdir(parents=True, exist_ok=True)
        np.save(pixels, np.stack([picture for picture, _ in found]))
        np.save(labels, np.array([label for _, label in found]))
    return Sample(np.load(pixels, mmap_mode="r"), np.load(labels), contract)


def answers(engine: Engine, sample: Sample, count: int, layout: str) -> Array:
    """The class with the highest score for each of the first `count` pictures, (count,)."""
    found = []
    for picture in sample.pixels[:count]:
        outputs = engine.run(as_input(picture[None], sample.contract, layout))
        found.append(int(next(iter(outputs.values())).argmax()))
    return np.array(found)
