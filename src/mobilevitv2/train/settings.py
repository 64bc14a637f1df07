"""The settings of a recipe, with their types, defaults and checks: what all tasks share, and what each adds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from mobilevitv2.errors import ConfigurationError

ByWidth = dict[float, float]
Side = int | tuple[int, int]
"""One side of a square in pixels, or (height, width)."""

CHOICES = {
    # "" for that of the weights; names of transformers, those that MobileViTV2Config knows by their values
    "activation": (
        *("", "swish", "silu", "hardswish", "relu", "relu6", "leaky_relu", "gelu", "gelu_new", "mish", "sigmoid", "tanh", "linear"),
    ),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "constant"),
    "interpolation": ("bicubic", "bilinear"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "cache": ("auto", "ram", "none"),
    "segmentation_head": ("deeplabv3", "pspnet"),
    "output_stride": (8, 16, 32),
    "finest_stride": (8, 16),
    "kernels": ("auto", "none"),
    "quantise_for": ("none", "openvino", "onnxruntime"),
}
SHARES = (
    *("dropout", "label_smoothing", "flip", "erasing", "mix_probability", "ema_momentum", "validation_fraction"),
    *("blur", "photometric", "zoom_out", "iou_crop", "class_balance"),
)
POSITIVE = (
    *("epochs", "batch_size", "accumulate", "eval_every", "save_every", "eval_resize", "eval_crop", "crop_tries"),
    *("aspp_out_channels", "psp_out_channels"),
)
NOT_NEGATIVE = (
    *("mixup", "cutmix", "clip_grad_norm", "warmup_steps", "randaugment_operations", "unmixed_epochs"),
    *("rotation", "trunk_rate", "minimum_crop", "min_learning_rate", "warmup_learning_rate", "weight_decay", "seed"),
    *("auxiliary_loss_weight",),
)


@dataclass(frozen=True)
class Recipe:
    """One way to train. Numbers counted in steps are optimiser steps, whatever the accumulation."""

    task: ClassVar[str]

    # ---- model
    width: float = 1.0  # width multiplier of a model from scratch
    sync_norms: bool = False  # batch norms over the pictures of all GPUs, not of each alone
    activation: str = ""  # another one than that of the weights, such as hardswish
    quantise_for: str = "none"  # openvino, onnxruntime: round in training where that runtime's int8 file does
    # ---- length and size
    epochs: int = 300
    batch_size: int = 1024  # pictures an optimiser step, over all devices and accumulated batches
    accumulate: int = 1  # batches an optimiser step
    # ---- optimiser
    optimizer: str = "adamw"  # or "sgd" (momentum 0.9)
    learning_rate: float | ByWidth = 2e-3  # one number, or one for each width
    min_learning_rate: float | ByWidth = 0.0
    trunk_rate: float = 1.0  # the trunk's learning rate over that of the head
    weight_decay: float | ByWidth = 0.05
    decay_all: bool = False  # also on one-dimensional parameters, norms and biases
    schedule: str = "cosine"  # or "constant"
    schedule_per_epoch: bool = False  # the rate changes between epochs only, as in the official code
    warmup_steps: int = 0  # linear, from warmup_learning_rate; at most a quarter of the run
    warmup_learning_rate: float = 1e-6
    clip_grad_norm: float = 10.0  # 0 for none
    ema_momentum: float = 5e-4  # share of the new weights in each step's average; 0 for no average
    ema_warmup: bool = False  # average over fewer steps at the start: what short runs need
    # ---- pictures
    flip: float = 0.5
    interpolation: str = "bicubic"
    # ---- evaluation
    eval_every: int = 10  # epochs
    validation_fraction: float = 0.0  # held out of training data that come without validation pictures
    # ---- machine
    precision: str = "auto"  # bf16 where the device has it, else fp32; or bf16, fp16, fp32
    channels_last: bool = True
    compile: bool = False  # torch.compile
    kernels: str = "auto"  # our own on a GPU in 16 bits, unless compiled (curves: docs/performance.md); "none": blocks.py's
    workers: int = -1  # processes that decode; -1: one a core, at most 16
    cache: str = "auto"  # decoded pictures in memory: "ram", "none", or "auto" where they fit in 4 GB
    seed: int = 0
    save_every: int = 10  # epochs between resumable checkpoints
    # ---- where it comes from
    name: str = ""

    def __post_init__(self) -> None:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in POSITIVE:
            if field in fields and fields[field] < 1:
                raise ConfigurationError(f"{field}={fields[field]} must be at least 1.")
        for field, choices in CHOICES.items():
            if field in fields and fields[field] not in choices:
                known = ", ".join(str(choice) for choice in choices if choice != "")
                raise ConfigurationError(f"{field}={fields[field]!r} is unknown; use one of {known}.")
        for field in SHARES:
            if field in fields and not 0 <= fields[field] <= 1:
                raise ConfigurationError(f"{field}={fields[field]} must lie in 0..1.")
        for field in NOT_NEGATIVE:
            if field in fields and not all(0 <= number < float("inf") for number in _numbers(fields[field])):
                raise ConfigurationError(f"{field}={fields[field]} must be 0 or more.")
        for rate in _numbers(self.learning_rate):
            if not 0 < rate < float("inf"):
                raise ConfigurationError(f"learning_rate={rate} must be a positive number.")
        if self.batch_size % self.accumulate:
            raise ConfigurationError(
                f"batch_size={self.batch_size} cannot be split into accumulate={self.accumulate} equal batches."
            )
        self._check_own()

    def _check_own(self) -> None:
        """Checks of the settings that a task adds."""

    def at_width(self, value: float | ByWidth, width: float) -> float:
        """A number that may depend on the width: that of the nearest width in the table."""
        if isinstance(value, dict):
            return value[min(value, key=lambda known: abs(known - width))]
        return value

    def to_dict(self) -> dict[str, Any]:
        """The task and all settings, as `load_recipe` reads them."""
        return {"task": self.task, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class ClassificationRecipe(Recipe):
    """One way to train a classifier."""

    task: ClassVar[str] = "classify"

    # ---- model and size
    dropout: float = 0.0  # in front of the classifier
    image_size: int = 256  # side of the training pictures
    # ---- loss and augmentation
    label_smoothing: float = 0.1
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the area that a random crop keeps
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    randaugment_operations: int = 2
    randaugment_magnitude: int = 9
    erasing: float = 0.25  # probability
    mixup: float = 0.2  # alpha; 0 for none
    cutmix: float = 1.0  # alpha; 0 for none
    mix_probability: float = 0.5  # of mixing a batch at all
    unmixed_epochs: int = 0  # at the end, without mixup and cutmix: the network settles on whole pictures
    # ---- evaluation
    eval_resize: int = 288  # short side
    eval_crop: int = 256

    def _check_own(self) -> None:
        sides(self.image_size)
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ConfigurationError(f"randaugment_magnitude={self.randaugment_magnitude} must lie in 0..30.")
        if self.eval_crop > self.eval_resize:
            raise ConfigurationError(f"eval_crop={self.eval_crop} is larger than eval_resize={self.eval_resize}.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigurationError(f"crop_scale={self.crop_scale} must be two rising shares of the area in 0..1.")


@dataclass(frozen=True)
class SegmentationRecipe(Recipe):
    """One way to train a segmenter. The settings of the augmentation stand in the order in which it happens."""

    task: ClassVar[str] = "segment"

    # ---- model and size
    image_size: Side = 512  # of the training crops: one side, or height and width
    output_stride: int = 16
    segmentation_head: str = "deeplabv3"  # or "pspnet"
    aspp_out_channels: int = 512  # width of the DeepLabV3 head
    atrous_rates: tuple[int, int, int] = (6, 12, 18)  # its dilations
    psp_out_channels: int = 512  # width of the PSPNet head
    dropout: float = 0.1  # of whole channels, in front of the classifier
    use_auxiliary_head: bool = True  # on stage 4, in training only
    auxiliary_loss_weight: float = 0.4
    class_balance: float = 0.0  # classes weigh in the loss by their rarity to this power: 0 for all alike, 1 for equal shares
    # ---- augmentation
    short_side: tuple[int, int] = (256, 768)  # the picture is resized to a random one of these
    long_side: int = 1024  # and made smaller where it would be longer than this
    stretch: float = 1.0  # width over height is changed by a random factor up to this
    largest_class: float = 0.75  # crops with more than this share of one class are drawn again
    crop_tries: int = 10
    blur: float = 0.5  # probability of a Gaussian blur with a radius of 0 to 1 pixel
    photometric: float = 0.5  # probability of each change of brightness, contrast, saturation, hue, order of channels
    rotation: float = 10.0  # degrees, to either side
    # ---- evaluation
    eval_size: Side = 512  # height and width, or one side: the whole picture is resized to it

    def _check_own(self) -> None:
        sides(self.image_size), sides(self.eval_size, setting="eval_size")
        low, high = self.short_side
        if not 1 <= low <= high or self.long_side < low:
            raise ConfigurationError(
                f"short_side={self.short_side} must be two rising sides in pixels, with long_side={self.long_side} not below them."
            )
        if not 0 < self.largest_class <= 1:
            raise ConfigurationError(f"largest_class={self.largest_class} must be a share above 0, at most 1.")
        if not 1 <= self.stretch <= 4:
            raise ConfigurationError(f"stretch={self.stretch} must lie in 1..4.")
        if min(self.atrous_rates) < 1:
            raise ConfigurationError(f"atrous_rates={self.atrous_rates} must be at least 1 each.")


@dataclass(frozen=True)
class DetectionRecipe(Recipe):
    """One way to train a detector. The settings of the augmentation stand in the order in which it happens."""

    task: ClassVar[str] = "detect"

    # ---- model and size
    image_size: Side = 320  # one side, or height and width: pictures are stretched to it, in evaluation too
    anchor_scales: tuple[float, float] = (0.1, 1.05)  # smallest square anchor, and what would come after the largest, in pictures
    finest_stride: int = 16  # of the maps that are looked at; 8 for small objects
    matching_iou: float = 0.5  # overlap with a true box from which an anchor has to answer for it
    # ---- augmentation
    zoom_out: float = 0.0  # probability of a picture laid on a larger canvas, in place of a crop
    zoom_out_most: float = 3.0  # sides of that canvas over those of the picture, at most
    iou_crop: float = 1.0  # probability of SSD's crop, which may leave a picture alone
    minimum_crop: int = 100  # pixels of a crop's sides
    photometric: float = 0.5  # probability of each change of brightness, contrast, saturation, hue, order of channels
    # ---- evaluation
    score_threshold: float = 0.01  # answers below it are not counted

    def _check_own(self) -> None:
        sides(self.image_size)
        if not 1 <= self.zoom_out_most <= 8:
            raise ConfigurationError(f"zoom_out_most={self.zoom_out_most} must lie in 1..8.")
        if not 0 < self.anchor_scales[0] < self.anchor_scales[1]:
            raise ConfigurationError(f"anchor_scales={self.anchor_scales} must be two rising sides, in pictures.")
        if not 0 < self.matching_iou <= 1:
            raise ConfigurationError(f"matching_iou={self.matching_iou} must lie above 0, at most at 1.")
        if not 0 <= self.score_threshold < 1:
            raise ConfigurationError(f"score_threshold={self.score_threshold} must lie in 0..1.")


def _numbers(value: float | ByWidth) -> list[float]:
    return list(value.values()) if isinstance(value, dict) else [value]


def sides(size: Side, *, setting: str = "image_size") -> tuple[int, int]:
    """(height, width) of a size.

    Raises:
        ConfigurationError: sides under one pixel.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ConfigurationError(f"{setting}={size} must be at least 1 pixel a side.")
    return height, width
