"""Does a model learn from its own start? Accuracy on the training batches of the first steps, ours beside transformers'.

    python benchmarks/initialisation.py DATA --classes 10 --steps 150

Width 0.5, 64 px, batch 32, AdamW 2e-3, the same pictures in the same order for both.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from peers import build
from torch.nn import functional as F

from mobilevitv2.data.batches import CentreCrop, EpochBatches, PictureBatches
from mobilevitv2.data.classification import open_classification_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    split = open_classification_data(arguments.data, validation_fraction=0).train
    assert split is not None
    common = np.bincount(split.labels).argsort()[::-1][: arguments.classes]
    chosen = np.flatnonzero(np.isin(split.labels, common))
    rename = {int(label): index for index, label in enumerate(common)}
    pictures = PictureBatches(split.select(chosen), CentreCrop(64, 72))
    batches = list(EpochBatches(len(pictures), 32, epochs=100, seed=0))[: arguments.steps]
    for name in ("ours", "transformers"):
        torch.manual_seed(0)
        model = build(name, 0.5, arguments.classes).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        right = []
        for batch in batches:
            items = [pictures[index] for index in batch]
            labels = torch.tensor([rename[int(item["labels"])] for item in items])
            logits = model(pixel_values=torch.stack([item["pixel_values"] for item in items]).float() / 255).logits
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            right.append(float((logits.argmax(1) == labels).float().mean()))
        tail = right[-arguments.steps // 5 :]
        share = 100 * sum(tail) / len(tail)
        print(f"{name}: {share:.1f} % of the last {len(tail)} batches right (chance {100 / arguments.classes:.0f} %)", flush=True)


if __name__ == "__main__":
    main()
