"""What the models refuse to compute with, and how they say so."""

from __future__ import annotations

import torch
from torch import Tensor

from mobilevitv2.errors import ConfigurationError, ImageError


def check_pixel_values(pixel_values: Tensor | None, num_channels: int) -> Tensor:
    """The input as it is, if a model of `num_channels` input channels can take it.

    Raises:
        ImageError: no tensor, one of another shape than (batch, channels, height, width), an empty one, or one of whole numbers.
    """
    if pixel_values is None:
        raise ImageError("You have to specify pixel_values, a tensor (batch, channels, height, width).")
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ImageError(
            f"pixel_values of shape {tuple(pixel_values.shape)} do not fit; the model takes (batch, {num_channels}, height, width)."
        )
    if pixel_values.shape[2] < 1 or pixel_values.shape[3] < 1:
        raise ImageError(f"pixel_values of shape {tuple(pixel_values.shape)} have no pixels; both sides must be at least 1.")
    if not pixel_values.is_floating_point():
        raise ImageError(f"pixel_values of type {pixel_values.dtype} do not fit; convert to floats in 0..1 (divide bytes by 255).")
    return pixel_values


def check_class_indices(labels: Tensor, num_labels: int, *, ignore_index: int | None = None) -> None:
    """Refuse class indices outside 0..num_labels - 1.

    Only labels in ordinary memory are looked at: reading them back from a GPU would stop the pipeline at every step, and the data
    checks before training have seen them already.
    """
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or labels.numel() == 0:
        return
    wrong = (labels < 0) | (labels >= num_labels)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        raise ConfigurationError(
            f"label {int(labels[wrong][0])} is outside 0..{num_labels - 1}; the model has num_labels={num_labels}."
        )
