"""How far our outputs are from the official code's, timm's and transformers', with the same weights.

    python benchmarks/parity.py                                  # against timm and transformers, all widths and several sizes
    python benchmarks/parity.py --fixtures ../shared/fixtures    # and against stored outputs of the official code

Figures are max |a - b| / max |b| over the logits, float32 on the processor. Weights are random, and so are the statistics of the
batch norms; transformers is expected to differ wherever a feature map has an odd side.
"""

from __future__ import annotations

import argparse
import lzma
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation

WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SIZES = ((256, 256), (384, 384), (224, 224), (250, 270), (33, 47))


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def shake(model: nn.Module) -> None:
    """Random statistics for the batch norms, so that every one of them matters."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@torch.no_grad()
def peers() -> None:
    import timm
    from transformers import MobileViTV2Config as TheirConfig
    from transformers import MobileViTV2ForImageClassification as Theirs

    print("| width | parameters | size | against timm | against transformers |")
    print("| --- | --- | --- | --- | --- |")
    for width in WIDTHS:
        torch.manual_seed(0)
        ours = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=1000)).eval()
        shake(ours)
        timms = timm.create_model(f"mobilevitv2_{round(100 * width):03d}").eval()
        timms.load_state_dict(dict(zip(timms.state_dict(), ours.state_dict().values(), strict=True)))
        theirs = Theirs(TheirConfig(width_multiplier=width, num_labels=1000)).eval()
        theirs.load_state_dict(ours.state_dict())
        count = sum(p.numel() for p in ours.parameters())
        for height, wide in SIZES:
            x = torch.rand(1, 3, height, wide)
            out = ours(x).logits
            print(
                f"| {width} | {count:,} | {height}x{wide} | {apart(out, timms(x)):.1e} | {apart(out, theirs(x).logits):.1e} |",
                flush=True,
            )


@torch.no_grad()
def fixtures(folder: Path) -> None:
    from PIL import Image

    from mobilevitv2.segmentation import upsample

    print("| official output | difference | same argmax |")
    print("| --- | --- | --- |")
    for name, cls in (
        ("cvnets-classification-0.5", MobileViTV2ForImageClassification),
        ("cvnets-deeplabv3-0.5", MobileViTV2ForSemanticSegmentation),
        ("cvnets-pspnet-0.5", MobileViTV2ForSemanticSegmentation),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / f"{name}.pt"
            file.write_bytes(lzma.decompress((folder / f"{name}.pt.xz").read_bytes()))
            model = cls.from_pretrained(file).eval()
        picture = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        logits = model(x).logits
        stored = np.load(folder / f"{name}.npz")
        if "logits" in stored:
            official = torch.from_numpy(stored["logits"])
            same = float((logits.argmax(1) == official.argmax(1)).float().mean())
        else:
            logits = upsample(logits, (picture.shape[0], picture.shape[1]))
            same = float((logits.argmax(1) == torch.from_numpy(stored["argmax"])).float().mean())
            logits, official = logits[..., ::8, ::8], torch.from_numpy(stored["logits_every_8th_pixel"])
        print(f"| {name} | {apart(logits, official):.1e} | {100 * same:.3f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path)
    arguments = parser.parse_args()
    if arguments.fixtures:
        fixtures(arguments.fixtures)
        print()
    peers()


if __name__ == "__main__":
    main()
