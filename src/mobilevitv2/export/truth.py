"""What PyTorch answers, in float32 and with the model as it was given: what every exported file is held against."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobilevitv2.export.program import Answering, Program, stage_names
from mobilevitv2.segmentation import upsample

if TYPE_CHECKING:
    from mobilevitv2.runtime.metadata import Metadata, PictureContract

Array = np.ndarray[Any, Any]
BATCH = 4


def torch_outputs(program: Program, pixels: Array) -> dict[str, Array]:
    """The plain model's outputs in float32 for uint8 pictures (batch, height, width, 3), raw and as the file gives them."""
    metadata = program.metadata
    plain = Answering(
        program.model, picture=_inside(metadata), layout="NHWC", postprocessing="none", dtype=torch.float32, stages=program.stages
    ).eval()
    collected: dict[str, list[Array]] = {}
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            image = torch.from_numpy(np.ascontiguousarray(pixels[start : start + BATCH]))
            answer = plain(image)
            if program.stages or metadata.task == "detect":
                names = stage_names(metadata.task) if program.stages else ("scores", "boxes")
                values = dict(zip(names, answer, strict=True))
            else:
                values = {"logits": answer, **_finished(program, answer, (image.shape[1], image.shape[2]))}
            for name, value in values.items():
                collected.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def _finished(program: Program, logits: torch.Tensor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    post = program.metadata.postprocessing
    if post == "softmax":
        return {"probabilities": logits.softmax(-1)}
    if post == "sigmoid":
        return {"probabilities": logits.sigmoid()}
    return {"map_logits": upsample(logits, size)} if post == "argmax" else {}


def _inside(metadata: Metadata) -> PictureContract:
    return replace(metadata.picture, inside=True)
