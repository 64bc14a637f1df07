"""Turn a finished run into a checkpoint that ships with the package: fp16, no optimiser state.

    python benchmarks/bundle.py runs/ours mobilevitv2-0.75-objects112 --resize 288 --crop 256
    python benchmarks/bundle.py runs/pets deeplabv3-mobilevitv2-0.75-pets

Writes src/mobilevitv2/weights/bundled/NAME/ (config, weights, image processor); the card, README.md, is written by hand from the
run's result.json and an evaluation of the bundled files themselves:

    mobilevitv2 evaluate DATA --model NAME
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mobilevitv2 import MobileViTV2ImageProcessor, create

BUNDLED = Path(__file__).resolve().parents[1] / "src" / "mobilevitv2" / "weights" / "bundled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--resize", type=int, help="short side, of a classifier; without it the run's own input contract is kept")
    parser.add_argument("--crop", type=int, default=256)
    arguments = parser.parse_args()
    model = create(arguments.run / "model", dtype=torch.float32)
    processor = MobileViTV2ImageProcessor.from_pretrained(arguments.run / "model")
    if arguments.resize:
        model.config.image_size = arguments.crop
        model.config.classifier_dropout_prob = 0.0
        processor = MobileViTV2ImageProcessor(
            size={"shortest_edge": arguments.resize}, crop_size={"height": arguments.crop, "width": arguments.crop}
        )
    folder = BUNDLED / arguments.name
    model.save_pretrained(folder)
    # Stored in half, loaded in full: config.json keeps float32, which is what transformers then gives.
    weights = folder / "model.safetensors"
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    processor.save_pretrained(folder)
    for file in sorted(folder.iterdir()):
        file.chmod(0o644)  # temporary files, which some libraries write first, are for their owner alone
        print(f"{file.stat().st_size:>10,}  {file}")


if __name__ == "__main__":
    main()
