"""Models that see colours, so that the right answer is known: stand-ins with the interface of segmenters and detectors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mobilevitv2 import MobileViTV2ImageProcessor

NAMES = ["background", "red", "green", "blue"]
COLOURS = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def whole(side: int = 64) -> MobileViTV2ImageProcessor:
    """The whole picture at this size."""
    return MobileViTV2ImageProcessor(size={"height": side, "width": side}, do_center_crop=False)


class Seeing(nn.Module):
    """What predict asks of a model."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task, self.device, self.dtype = task, torch.device("cpu"), torch.float32
        self.config = SimpleNamespace(
            id2label=dict(enumerate(NAMES)), num_labels=4, problem_type=None, input_size=(64, 64), image_size=64
        )
        self.calls: list[tuple[int, ...]] = []


class ColourSegmenter(Seeing):
    """The nearest colour of each point of an eighth of the size."""

    def __init__(self) -> None:
        super().__init__("segment")

    def forward(self, pixel_values: Tensor) -> Any:
        self.calls.append(tuple(pixel_values.shape))
        small = nn.functional.interpolate(pixel_values, scale_factor=1 / 8, mode="area")
        distance = (small[:, None] - COLOURS[None, :, :, None, None]).square().sum(2)  # (B, 4, h, w)
        return SimpleNamespace(logits=-10 * distance)


class ColourDetector(Seeing):
    """The bounds of what is of each colour; a box for each colour there is."""

    def __init__(self) -> None:
        super().__init__("detect")

    def forward(self, pixel_values: Tensor) -> Any:
        self.calls.append(tuple(pixel_values.shape))
        logits = torch.full((len(pixel_values), 3, 5), 0.0)
        boxes = torch.full((len(pixel_values), 3, 4), 0.5)
        logits[..., 0] = 10.0
        side = pixel_values.shape[-1]
        for number, picture in enumerate(pixel_values):
            for colour in (1, 2, 3):
                inside = (picture - COLOURS[colour][:, None, None]).abs().sum(0) < 0.7
                if not inside.any():
                    continue
                rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
                top, bottom = rows.min() / side, (rows.max() + 1) / side
                left, right = columns.min() / side, (columns.max() + 1) / side
                boxes[number, colour - 1] = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
                logits[number, colour - 1, 0], logits[number, colour - 1, colour + 1] = 0.0, 2.0 + colour
        return SimpleNamespace(logits=logits, pred_boxes=boxes)
