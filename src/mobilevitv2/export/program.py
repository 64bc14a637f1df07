"""What is exported: the folded model with fixed names, and by choice the preprocessing before and the post-processing behind it.

`image` is float32 (batch, 3, height, width) with values of 0..1 (in "NHWC" layout the channels come last), or, with preprocessing
inside, uint8 (batch, height, width, 3) in RGB. Outputs, by task:

    classify   logits (batch, classes); with post-processing probabilities (batch, classes)
    segment    logits (batch, classes, h, w); with post-processing mask (batch, height, width), int32 class numbers
    detect     scores (batch, anchors, classes), softmaxed, without background; boxes (batch, anchors, 4), corners in units of the
               picture. Formats that can do suppression replace them by boxes, scores, labels and count.

The trunk's precision is the program's business: inputs and outputs are float32 in every precision, and what would lose too much in
half precision (softmax, sums over tokens, statistics of normalisation) is taken in float32 inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from mobilevitv2.boxes import to_corners
from mobilevitv2.inference.fold import fold
from mobilevitv2.runtime.metadata import Metadata, PictureContract, Port
from mobilevitv2.segmentation import upsample

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.export.request import Suppression

Layout = Literal["NCHW", "NHWC"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Program:
    """A module ready for an exporter.

    Attributes:
        module: in evaluation mode; `forward(image)` gives one tensor, or a tuple in the order of `outputs`.
        example: an input of the first size.
        size: (height, width).
        dynamic: axes of the input that are free: of "batch", "height", "width".
        layout: of a float input.
        outputs: names, in order.
        precision: of weights and arithmetic.
        metadata: complete, with labels and input contract; goes into the file.
        model: the plain model in float32, which the file is held against.
        suppression: a detector's format is asked to put suppression inside; None where not.
        stages: the outputs are those of the stem, the stages and the head, for comparison.
    """

    module: nn.Module
    example: Tensor
    size: tuple[int, int]
    dynamic: tuple[str, ...]
    layout: Layout
    outputs: tuple[str, ...]
    precision: str
    metadata: Metadata
    model: MobileViTV2PreTrainedModel
    suppression: Suppression | None = None
    stages: bool = False

    @property
    def task(self) -> str:
        """ "classify", "segment" or "detect"."""
        return self.metadata.task


class Answering(nn.Module):
    """Preprocessing, model, post-processing: what is inside an exported file."""

    def __init__(
        self,
        model: MobileViTV2PreTrainedModel,
        *,
        picture: PictureContract,
        layout: Layout,
        postprocessing: str,
        dtype: torch.dtype,
        stages: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.task = model, model.task
        self.layout, self.postprocessing, self.dtype, self.stages = layout, postprocessing, dtype, stages
        self.inside = picture.inside
        self.swapped = picture.inside and picture.channel_order == "BGR"
        mean, std = picture.mean or (0.0,) * 3, picture.std or (1.0,) * 3
        scale = torch.tensor([picture.scale / each for each in std]).view(1, -1, 1, 1)
        shift = torch.tensor([-centre / each for centre, each in zip(mean, std, strict=True)]).view(1, -1, 1, 1)
        self.scale: Tensor
        self.shift: Tensor | None
        self.register_buffer("scale", scale if picture.std else scale[:, :1], persistent=False)
        self.register_buffer("shift", shift if picture.mean else None, persistent=False)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs in order; with `stages` those of the stem and the stages, then the raw outputs of the head."""
        pixels = self.prepared(image).to(self.dtype)
        if self.stages:
            return self._stages(pixels)
        if self.task == "detect":
            return self._detected(pixels)
        logits = self.model(pixels, return_dict=True).logits.float()
        if self.postprocessing == "softmax":
            return torch.softmax(logits, dim=-1)
        if self.postprocessing == "sigmoid":
            return torch.sigmoid(logits)
        if self.postprocessing == "argmax":
            return upsample(logits, (pixels.shape[-2], pixels.shape[-1])).argmax(dim=1).to(torch.int32)
        return torch.as_tensor(logits)

    def prepared(self, image: Tensor) -> Tensor:
        """The input as the model takes it: (batch, 3, height, width), float32."""
        if not self.inside:
            return image.permute(0, 3, 1, 2) if self.layout == "NHWC" else image
        pixels = image.permute(0, 3, 1, 2).float()
        if self.swapped:
            pixels = pixels.flip(1)
        pixels = pixels * self.scale
        return pixels if self.shift is None else pixels + self.shift

    def _detected(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixels, return_dict=True)
        scores = torch.softmax(output.logits.float(), dim=-1)[..., 1:]
        return scores, to_corners(output.pred_boxes.float())

    def _stages(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = [stage.float() for stage in self.model.mobilevitv2.features(pixels)]
        heads = self._detected(pixels) if self.task == "detect" else (self.model(pixels, return_dict=True).logits.float(),)
        return (*maps, *heads)


def stage_names(task: str) -> tuple[str, ...]:
    """The outputs of a program built with `stages`, in order."""
    return ("stem", *(f"stage{number}" for number in range(1, 6)), *(("scores", "boxes") if task == "detect" else ("logits",)))


class SafeNorm(nn.Module):
    """Group normalisation of one group with its statistics in float32, whatever the dtype of what it normalises.

    Sums of squares over 65,536 values do not fit half precision, and not every runtime widens by itself.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, P, N) -> (B, D, P, N)."""
        wide = x.float()
        wide = wide - wide.mean(dim=(1, 2, 3), keepdim=True)
        variance = (wide * wide).mean(dim=(1, 2, 3), keepdim=True)
        return (wide * torch.rsqrt(variance + self.eps)).to(x.dtype)


def exported_model(model: MobileViTV2PreTrainedModel, dtype: torch.dtype) -> MobileViTV2PreTrainedModel:
    """The folded copy in `dtype`, safe in half precision."""
    folded = fold(model.float() if next(model.parameters()).dtype != torch.float32 else model)
    for module in list(folded.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, SafeNorm(child))
    converted: MobileViTV2PreTrainedModel = folded.to(dtype)
    return converted


def build_program(
    model: MobileViTV2PreTrainedModel,
    metadata: Metadata,
    *,
    layout: Layout = "NCHW",
    suppression: Suppression | None = None,
    stages: bool = False,
) -> Program:
    """The program that `metadata` describes.

    Args:
        model: plain, in float32 and evaluation mode.
        metadata: as `describe` makes it.
        layout: of a float input.
        suppression: for a detector's format that puts it inside.
        stages: the outputs of the stem, each stage and the head instead, to find where a file departs.
    """
    # int8 starts from float32, and bf16 is a hint to the runtime.
    dtype = DTYPES["fp16"] if metadata.precision == "fp16" else DTYPES["fp32"]
    module = Answering(
        exported_model(model, dtype),
        picture=metadata.picture,
        layout=layout,
        postprocessing="none" if stages else metadata.postprocessing,
        dtype=dtype,
        stages=stages,
    ).eval()
    names = stage_names(metadata.task) if stages else tuple(port.name for port in metadata.outputs)
    size = (metadata.picture.height, metadata.picture.width)
    return Program(
        module=module,
        example=example_input(metadata, layout),
        size=size,
        dynamic=metadata.dynamic,
        layout=layout,
        outputs=("scores", "boxes") if metadata.task == "detect" and not stages else names,
        precision=metadata.precision,
        metadata=metadata if not stages else _of_stages(metadata, names),
        model=model,
        suppression=None if stages else suppression,
        stages=stages,
    )


def _of_stages(metadata: Metadata, names: Sequence[str]) -> Metadata:
    ports = tuple(Port(name=name, shape=(), dtype="float32", meaning="for comparison") for name in names)
    return replace(metadata, outputs=ports, postprocessing="none")


def example_input(metadata: Metadata, layout: Layout, *, batch: int = 1) -> Tensor:
    """Noise in the shape and type of the input."""
    height, width = metadata.picture.height, metadata.picture.width
    if metadata.picture.inside:
        return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8)
    shape = (batch, height, width, 3) if layout == "NHWC" else (batch, 3, height, width)
    return torch.rand(shape)
