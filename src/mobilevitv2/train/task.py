"""What a task (classification, segmentation, detection) adds to the one way of training: its data, model, batches, loss, evaluation
and report."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mobilevitv2.data.batches import SampleBatches, can_share_memory
from mobilevitv2.data.decoded import DecodedPictures, Readable, expected_pixels
from mobilevitv2.train.processes import is_first_process
from mobilevitv2.train.settings import Recipe

if TYPE_CHECKING:
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

logger = logging.getLogger(__name__)

CACHE_LIMIT = 4 * 2**30  # bytes of decoded pictures that cache: auto keeps in memory

RecipeT = TypeVar("RecipeT", bound=Recipe)


class Opened(Protocol):
    """A data set of any task."""

    @property
    def source(self) -> str:
        """What was opened."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def splits(self) -> dict[str, Any]:
        """The splits by name."""

    @property
    def train(self) -> Any | None:
        """The pictures to learn from."""

    @property
    def validation(self) -> Any | None:
        """The pictures that choose the best weights."""

    @property
    def test(self) -> Any | None:
        """The pictures that nothing is chosen by."""


@dataclass(frozen=True)
class StepLoss:
    """What one forward pass gives."""

    loss: Tensor
    outputs: Any
    parts: dict[str, Tensor]
    """What the loss is the sum of, without gradient; for the logs."""


@dataclass(frozen=True)
class CardText:
    """What a task says on the model card."""

    title: str
    pipeline_tag: str
    input: str
    results: list[str]
    """The lines of a table in Markdown, and what stands below it."""
    limits: str


class TrainingTask(ABC, Generic[RecipeT]):
    """One task, trained by one recipe."""

    name: ClassVar[str]
    metric: ClassVar[str]
    """The score that chooses the best weights; higher is better."""
    metric_label: ClassVar[str]
    curves: ClassVar[dict[str, str]]
    """Entries of metrics.jsonl to draw, with their titles."""
    eval_batch: ClassVar[int] = 32

    def __init__(self, recipe: RecipeT) -> None:
        self.recipe = recipe

    # ---- data

    @abstractmethod
    def open(self, source: str | os.PathLike[str]) -> Any:
        """The data set."""

    @abstractmethod
    def check(self, data: Any, *, strict: bool) -> Any:
        """The report of the data check; with `strict`, everything it finds is an error."""

    @abstractmethod
    def train_batches(self, split: Any) -> SampleBatches[Any]:
        """Samples to learn from."""

    @abstractmethod
    def eval_batches(self, split: Any) -> SampleBatches[Any]:
        """Samples to watch."""

    # ---- model

    @abstractmethod
    def build(self, model: str | os.PathLike[str] | nn.Module, classes: tuple[str, ...]) -> nn.Module:
        """The network to train, named after the classes."""

    @abstractmethod
    def processor(self) -> MobileViTV2ImageProcessor:
        """The image processor that belongs to it."""

    def shipped(self, network: nn.Module) -> nn.Module:
        """The network as it is saved for use: without what only training needs."""
        return network

    # ---- steps

    @abstractmethod
    def loss(self, model: nn.Module, inputs: dict[str, Any], *, epochs_left: float) -> StepLoss:
        """Augment a batch on its device and compute the loss."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Iterable[dict[str, Any]], split: Any, *, dtype: torch.dtype | None
    ) -> dict[str, float]:
        """Scores of a network in evaluation mode on batches of `eval_batches`, whose tensors lie on its device; in per cent."""

    # ---- report

    @abstractmethod
    def measure(self, network: nn.Module, split: Any, *, processor: MobileViTV2ImageProcessor, workers: int) -> Any:
        """The scores of the network as it is shipped, through its processor."""

    @abstractmethod
    def in_percent(self, measured: Any) -> dict[str, float]:
        """The scores of `measure` as `evaluate` names them."""

    def summary(self, measured: Any) -> dict[str, Any]:
        """More about them, for result.json."""
        return {}

    @abstractmethod
    def draw(self, measured: Any, split: Any, folder: Path) -> None:
        """Pictures of the scores."""

    @abstractmethod
    def card(self, measured: list[Any]) -> CardText:
        """The task's part of the model card."""

    # ---- what tasks share

    def decoded(self, split: Readable, *, short_side: int, name: str, masked: bool = False) -> DecodedPictures | None:
        """Decoded pictures in memory, where the recipe and the machine allow it; `masked`: and their masks, kept beside them."""
        if self.recipe.cache == "none":
            return None
        if self.recipe.cache == "auto":
            if not can_share_memory():
                return None
            if expected_pixels(split, short_side=short_side) * (4 if masked else 3) > CACHE_LIMIT:
                return None
        cache = DecodedPictures(split, short_side=short_side, threads=os.cpu_count() or 1)
        if is_first_process():
            logger.info("%d pictures of %s decoded into %.0f MB of memory", len(split), name, cache.nbytes / 1e6)
        return cache


def named(classes: tuple[str, ...]) -> dict[str, Any]:
    """The names of the classes as options of a configuration."""
    names = dict(enumerate(classes))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def stretching_processor(size: tuple[int, int], interpolation: str) -> MobileViTV2ImageProcessor:
    """Whole pictures stretched to (height, width), as `Stretched` does it in training."""
    from PIL import Image

    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    return MobileViTV2ImageProcessor(size={"height": size[0], "width": size[1]}, resample=resample, do_center_crop=False)
