"""Recipes: every number of a training run, as a small commented YAML file over typed defaults."""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from mobilevitv2.errors import ConfigurationError, MissingDependency

ByWidth = dict[float, float]


@dataclass(frozen=True)
class ClassificationRecipe:
    """One way to train a classifier. Numbers counted in steps are optimiser steps, whatever the accumulation."""

    # ---- model
    width: float = 1.0  # width multiplier of a model from scratch
    dropout: float = 0.0  # in front of the classifier
    # ---- length and size
    epochs: int = 300
    batch_size: int = 1024  # pictures an optimiser step, over all devices and accumulated batches
    accumulate: int = 1  # batches an optimiser step
    image_size: int = 256  # side of the training pictures
    # ---- optimiser
    optimizer: str = "adamw"  # or "sgd" (momentum 0.9)
    learning_rate: float | ByWidth = 2e-3  # one number, or one for each width
    min_learning_rate: float | ByWidth = 0.0
    weight_decay: float | ByWidth = 0.05  # never on one-dimensional parameters
    schedule: str = "cosine"  # or "constant"
    schedule_per_epoch: bool = False  # the rate changes between epochs only, as in the official code
    warmup_steps: int = 0  # linear, from warmup_learning_rate
    warmup_learning_rate: float = 1e-6
    clip_grad_norm: float = 10.0  # 0 for none
    ema_momentum: float = 5e-4  # share of the new weights in each step's average; 0 for no average
    ema_warmup: bool = False  # average over fewer steps at the start: what short runs need
    # ---- loss and augmentation
    label_smoothing: float = 0.1
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the area that a random crop keeps
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bicubic"
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
    eval_every: int = 10  # epochs
    validation_fraction: float = 0.0  # held out of training data that come without validation pictures
    # ---- machine
    precision: str = "auto"  # bf16 where the device has it, else fp32; or bf16, fp16, fp32
    channels_last: bool = True
    compile: bool = False  # torch.compile
    workers: int = -1  # processes that decode; -1: one a core, at most 16
    cache: str = "auto"  # decoded pictures in memory: "ram", "none", or "auto" where they fit in 4 GB
    seed: int = 0
    save_every: int = 10  # epochs between resumable checkpoints
    # ---- where it comes from
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size", "accumulate", "image_size", "eval_resize", "eval_crop", "eval_every", "save_every"):
            if getattr(self, field) < 1:
                raise ConfigurationError(f"{field}={getattr(self, field)} must be at least 1.")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ConfigurationError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(choices)}.")
        for field in ("dropout", "label_smoothing", "flip", "erasing", "mix_probability", "ema_momentum", "validation_fraction"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigurationError(f"{field}={getattr(self, field)} must lie in 0..1.")
        if self.batch_size % self.accumulate:
            raise ConfigurationError(
                f"batch_size={self.batch_size} cannot be split into accumulate={self.accumulate} equal batches."
            )
        self._check_numbers()
        if self.eval_crop > self.eval_resize:
            raise ConfigurationError(f"eval_crop={self.eval_crop} is larger than eval_resize={self.eval_resize}.")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigurationError(f"crop_scale={self.crop_scale} must be two rising shares of the area in 0..1.")

    def _check_numbers(self) -> None:
        for rate in self.learning_rate.values() if isinstance(self.learning_rate, dict) else [self.learning_rate]:
            if not 0 < rate < float("inf"):
                raise ConfigurationError(f"learning_rate={rate} must be a positive number.")
        for field in ("mixup", "cutmix", "clip_grad_norm", "warmup_steps", "randaugment_operations", "unmixed_epochs"):
            if not getattr(self, field) >= 0:
                raise ConfigurationError(f"{field}={getattr(self, field)} must be 0 or more.")
        if not 0 <= self.randaugment_magnitude <= 30:
            raise ConfigurationError(f"randaugment_magnitude={self.randaugment_magnitude} must lie in 0..30.")

    def at_width(self, value: float | ByWidth, width: float) -> float:
        """A number that may depend on the width: that of the nearest width in the table."""
        if isinstance(value, dict):
            return value[min(value, key=lambda known: abs(known - width))]
        return value

    def to_dict(self) -> dict[str, Any]:
        """All settings, as `load_recipe` reads them."""
        return dataclasses.asdict(self)


CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "constant"),
    "interpolation": ("bicubic", "bilinear"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "cache": ("auto", "ram", "none"),
}


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str | os.PathLike[str], overrides: dict[str, str] | None = None) -> ClassificationRecipe:
    """A recipe by name, or from a YAML file, with some of its settings replaced.

    Args:
        name: one of `recipe_names()`, or a path that ends in .yaml or .yml.
        overrides: settings as text, as the command line gives them: {"epochs": "30", "crop_scale": "0.2,1.0"}.

    Raises:
        ConfigurationError: an unknown recipe or setting (the nearest right one is named), or a value that does not fit.
    """
    values = _read_yaml(name)
    values.update(_parse(overrides or {}))
    unknown = [key for key in values if key not in FIELDS]
    if unknown:
        raise ConfigurationError(f"Unknown setting {unknown[0]!r}; {_nearest(unknown[0], list(FIELDS))}")
    label = os.fspath(name) if Path(name).suffix in (".yaml", ".yml") else str(name)
    return ClassificationRecipe(**{"name": label, **{key: _fit(key, value) for key, value in values.items()}})


def _folder() -> Any:
    return resources.files("mobilevitv2.train") / "recipes"


def _read_yaml(name: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependency("Recipes need pyyaml: pip install 'mobilevitv2[train]'.") from error
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise ConfigurationError(f"There is no recipe file {name}.")
        text = Path(name).read_text(encoding="utf-8")
    elif str(name) in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigurationError(f"Unknown recipe {str(name)!r}; {_nearest(str(name), recipe_names())}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigurationError(f"Recipe {name} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"Recipe {name} must be a list of `setting: value` lines.")
    return values


def _parse(overrides: dict[str, str]) -> dict[str, Any]:
    import yaml

    parsed: dict[str, Any] = {}
    for key, text in overrides.items():
        try:
            parsed[key] = [yaml.safe_load(part) for part in text.split(",")] if "," in text else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{key}={text} cannot be read: {error}") from error
    return parsed


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(c) for c in close)}?" if close else f"known: {', '.join(known)}."


FIELDS = get_type_hints(ClassificationRecipe)


def _fit(key: str, value: Any) -> Any:
    """The value in the type of its setting; numbers that YAML reads as text (1e-3) among them."""
    kind = FIELDS[key]
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and not isinstance(value, bool) and float(value) == int(value):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, str):
            return value
        if kind == tuple[float, float] and len(value) == 2:
            return float(value[0]), float(value[1])
        if kind == float | ByWidth:
            return {float(w): float(v) for w, v in value.items()} if isinstance(value, dict) else float(value)
    except (TypeError, ValueError):
        pass
    wanted = getattr(kind, "__name__", str(kind)) if kind in (bool, int, float, str) else str(kind)
    raise ConfigurationError(f"{key}={value!r} does not fit; it takes {wanted}.")
