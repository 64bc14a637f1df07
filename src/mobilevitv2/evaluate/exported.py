"""An exported file in the place of a model, for the evaluations: pixels in, the task's raw outputs out, by its own runtime."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mobilevitv2.boxes import to_centred
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.runtime.model import RuntimeModel, open_model

if TYPE_CHECKING:
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.runtime.metadata import PictureContract

SMALLEST = 1e-12
"""Stands for a probability of zero, which has no logarithm."""


class ExportedModel:
    """A function of pixel values (batch, 3, height, width), as the evaluations call it.

    Attributes:
        task: "classify", "segment" or "detect".
        config: with `id2label`.
    """

    def __init__(self, model: RuntimeModel) -> None:
        self.model, self.task = model, model.task
        self.config = SimpleNamespace(id2label=dict(model.names), num_labels=len(model.names))

    def __call__(self, pixel_values: Tensor) -> Any:
        """Logits, or for a detector an object with `logits` and `pred_boxes`."""
        contract = self.model.metadata.picture
        raw = self.model.raw(_pixels(pixel_values, contract))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in raw.items()}
        if self.task == "detect":
            return self._detections(tensors)
        if "mask" in tensors:
            classes = torch.arange(self.config.num_labels)[None, :, None, None]
            return SimpleNamespace(logits=(tensors["mask"][:, None] == classes).float())
        if "probabilities" in tensors:
            return SimpleNamespace(logits=tensors["probabilities"].clamp(min=SMALLEST).log())
        return SimpleNamespace(logits=tensors["logits"].float())

    def _detections(self, tensors: dict[str, Tensor]) -> Any:
        scores = tensors["scores"]
        if "count" in tensors:  # one class a box; what went through suppression goes through once more unchanged
            scores = torch.nn.functional.one_hot(tensors["labels"], self.config.num_labels) * scores[..., None]
        background = 1 - scores.sum(-1, keepdim=True)
        logits = torch.cat([background, scores], dim=-1).clamp(min=SMALLEST).log()
        return SimpleNamespace(logits=logits, pred_boxes=to_centred(tensors["boxes"]))


def open_exported(path: str | os.PathLike[str], *, engine: str = "auto") -> tuple[ExportedModel, MobileViTV2ImageProcessor]:
    """A file as a model, and the image processor of its input contract.

    Raises:
        ConfigurationError: a file that tells nothing of its classes. And as in `mobilevitv2.runtime.open_model`.
    """
    model = open_model(path, engine=engine)
    if not model.names:
        raise ConfigurationError(
            f"{model.where} does not say how many classes it knows, so its answers cannot be counted; export it again, which gives "
            "it metadata."
        )
    return ExportedModel(model), contract_processor(model.metadata.picture)


def contract_processor(contract: PictureContract) -> MobileViTV2ImageProcessor:
    """The image processor that does what the contract says."""
    from PIL import Image

    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

    options: dict[str, Any] = {} if contract.resize is None else {"size": dict(contract.resize)}
    if contract.crop is not None:
        options["crop_size"] = dict(contract.crop)
    if contract.mean is not None:
        options["image_mean"] = list(contract.mean)
    if contract.std is not None:
        options["image_std"] = list(contract.std)
    return MobileViTV2ImageProcessor(
        do_resize=contract.resize is not None,
        do_center_crop=contract.crop is not None,
        do_normalize=contract.mean is not None or contract.std is not None,
        resample=int(Image.Resampling[contract.interpolation.upper()]),
        rescale_factor=contract.scale,
        do_flip_channel_order=contract.channel_order == "BGR",
        **options,
    )


def _pixels(values: Tensor, contract: PictureContract) -> np.ndarray[Any, Any]:
    """What the processor made of pictures, as uint8 (batch, height, width, 3) in RGB again: the way back is exact."""
    pixels = values.permute(0, 2, 3, 1).double().cpu().numpy()
    if contract.std is not None:
        pixels = pixels * np.asarray(contract.std)
    if contract.mean is not None:
        pixels = pixels + np.asarray(contract.mean)
    pixels = np.clip(np.rint(pixels / contract.scale), 0, 255).astype(np.uint8)
    return pixels[..., ::-1] if contract.channel_order == "BGR" else pixels
