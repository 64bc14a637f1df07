r"""The curves of several training runs on one picture.

    python benchmarks/draw_runs.py docs/pictures/objects112-curves.png \
        ours=docs/runs/objects112-ours.jsonl timm=docs/runs/objects112-timm.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PANELS = (("loss", "training loss, smoothed"), ("eval_top1", "top-1 on the test split, %"))


def points(path: Path, key: str) -> tuple[list[float], list[float]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = [(line["epoch"], line[key]) for line in lines if key in line]
    return [x for x, _ in found], [y for _, y in found]


def main() -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for argument in sys.argv[2:]:
        name, _, path = argument.partition("=")
        for axis, (key, title) in zip(axes, PANELS, strict=True):
            x, y = points(Path(path), key)
            if key == "loss":  # mixing makes single values jump
                y = [sum(y[max(0, i - 4) : i + 1]) / len(y[max(0, i - 4) : i + 1]) for i in range(len(y))]
            axis.plot(x, y, label=name, marker="o" if len(x) < 20 else None)
            axis.set(title=title, xlabel="epoch")
            axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(sys.argv[1], dpi=100)


if __name__ == "__main__":
    main()
