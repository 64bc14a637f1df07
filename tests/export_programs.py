"""Small programs to export."""

from __future__ import annotations

from typing import Any, Literal

import torch
from small_models import randomise, small_config

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.export.program import Program, build_program
from mobilevitv2.runtime.metadata import Metadata, PictureContract, Port
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

CLASSES = {
    "classify": (MobileViTV2ForImageClassification, "softmax"),
    "segment": (MobileViTV2ForSemanticSegmentation, "argmax"),
    "detect": (MobileViTV2ForObjectDetection, "boxes"),
}
OUTPUTS = {"softmax": ("probabilities",), "argmax": ("mask",), "none": ("logits",), "boxes": ("scores", "boxes")}


def program_of(
    task: str,
    *,
    size: tuple[int, int] = (64, 64),
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    inside: bool = False,
    precision: str = "fp32",
    postprocessing: str | None = None,
    channel_order: str = "RGB",
    dynamic: tuple[str, ...] = (),
    **options: Any,
) -> Program:
    """A program of a random model with ten classes."""
    torch.manual_seed(0)
    kind, usual = CLASSES[task]
    model = randomise(kind(small_config(**options)))
    postprocessing = postprocessing or usual
    batch = "batch" if "batch" in dynamic else 1
    shape = (batch, *size, 3) if inside or layout == "NHWC" else (batch, 3, *size)
    metadata = Metadata(
        task=task,
        labels=tuple(f"class {index}" for index in range(10)),
        picture=PictureContract(
            height=size[0], width=size[1], resize={"height": size[0], "width": size[1]}, channel_order=channel_order, inside=inside
        ),
        layout=layout,
        inputs=(Port(name="image", shape=shape, dtype="uint8" if inside else "float32", meaning="an RGB picture"),),
        outputs=tuple(Port(name=name, shape=(), dtype="float32", meaning=f"the {name}") for name in OUTPUTS[postprocessing]),
        postprocessing=postprocessing,
        activation="softmax",
        precision=precision,
        dynamic=dynamic,
        source="random weights",
        licence="none",
        weights_sha256="0" * 64,
        versions={},
    )
    return build_program(model, metadata, layout=layout)
