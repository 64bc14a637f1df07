"""Checks of single options of the configuration; every message names the option, its value and what is valid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mobilevitv2.errors import ConfigurationError

MAX_CHANNELS = 65536
POOLED = -1
"""Stands among the detector's strides for the whole picture as one pixel."""
TRUNK_STRIDES = (8, 16, 32)
"""Strides of stages 3, 4 and 5, the maps of the trunk that a detector can look at."""


def check_integer(name: str, value: object, *, at_least: int | None = 1) -> None:
    """Refuse all but whole numbers from `at_least` to MAX_CHANNELS."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name}={value!r} must be a whole number.")
    if value > MAX_CHANNELS:
        raise ConfigurationError(f"{name}={value!r} must be at most {MAX_CHANNELS}.")
    if at_least is not None and value < at_least:
        raise ConfigurationError(f"{name}={value!r} must be at least {at_least}.")


def check_integers(name: str, values: object, length: int | None) -> None:
    """Refuse all but lists of whole numbers of at least 1; of this length where one is given, never empty."""
    if not isinstance(values, list):
        raise ConfigurationError(f"{name}={values!r} must be a list of whole numbers.")
    if not values or (length is not None and len(values) != length):
        raise ConfigurationError(f"{name}={values!r} must hold {length or 'at least one'} whole numbers.")
    for value in values:
        check_integer(name, value)


def check_number(name: str, value: object, *, above: float) -> None:
    """Refuse all but finite numbers above `above`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= above:
        raise ConfigurationError(f"{name}={value!r} must be a number above {above}.")


def check_probability(name: str, value: object) -> None:
    """Refuse all but numbers from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigurationError(f"{name}={value!r} must be a probability: at least 0 and below 1.")


def check_detection(
    *,
    strides: object,
    extra_channels: object,
    level_channels: object,
    anchor_scales: object,
    anchor_ratios: object,
    matching_iou: object,
    negative_ratio: object,
    coder_variances: object,
) -> None:
    """Refuse detection options that give no detector, each alone and in their lengths.

    Raises:
        ConfigurationError: names the option.
    """
    _check_strides(strides)
    assert isinstance(strides, list)
    extra = len([stride for stride in strides if stride not in TRUNK_STRIDES])
    _check_channels(
        "detection_extra_channels", extra_channels, extra, f"for the maps of detection_strides={strides} behind stage 5"
    )
    _check_channels("detection_level_channels", level_channels, len(strides), f"for the maps of detection_strides={strides}")
    assert isinstance(extra_channels, list) and isinstance(level_channels, list)
    if strides[-1] == POOLED and level_channels[-1] != extra_channels[-1]:
        raise ConfigurationError(
            f"detection_level_channels={level_channels} ends in {level_channels[-1]}, but the pooled map has {extra_channels[-1]} "
            "channels (the last of detection_extra_channels) and is not projected; give the same number."
        )
    _check_numbers("detection_anchor_scales", anchor_scales)
    assert isinstance(anchor_scales, list)
    if not anchor_scales[0] < anchor_scales[1]:
        raise ConfigurationError(f"detection_anchor_scales={anchor_scales} must grow; the official models have [0.1, 1.05].")
    if (
        not isinstance(anchor_ratios, list)
        or len(anchor_ratios) != len(strides)
        or not all(isinstance(r, list) for r in anchor_ratios)
    ):
        raise ConfigurationError(
            f"detection_anchor_ratios={anchor_ratios!r} must hold a list of ratios for each of the {len(strides)} maps of "
            f"detection_strides={strides}."
        )
    for ratio in [ratio for ratios in anchor_ratios for ratio in ratios]:
        check_number("a ratio of detection_anchor_ratios", ratio, above=0)
    check_number("detection_matching_iou", matching_iou, above=0)
    assert isinstance(matching_iou, int | float)
    if matching_iou > 1:
        raise ConfigurationError(f"detection_matching_iou={matching_iou} must be at most 1: it is a share of the area.")
    check_number("detection_negative_ratio", negative_ratio, above=0)
    _check_numbers("detection_coder_variances", coder_variances)


def _check_strides(strides: object) -> None:
    reason = (
        f"detection_strides={strides!r} gives no detector; begin with 8, 16 or 32, double each time, at least to 32, and end in -1 "
        "for a pooled map if one is wanted; the official models have [16, 32, 64, 128, 256, -1]."
    )
    if not isinstance(strides, list) or not all(isinstance(stride, int) and not isinstance(stride, bool) for stride in strides):
        raise ConfigurationError(reason)
    grown = strides[:-1] if strides and strides[-1] == POOLED else strides
    doubling = all(after == 2 * before for before, after in pairwise(grown))
    if not grown or grown[0] not in TRUNK_STRIDES or grown[-1] < TRUNK_STRIDES[-1] or grown[-1] > MAX_CHANNELS or not doubling:
        raise ConfigurationError(reason)


def _check_channels(name: str, values: object, length: int, what: str) -> None:
    if not isinstance(values, list) or len(values) != length:
        raise ConfigurationError(f"{name}={values!r} must hold {length} whole numbers, {what}.")
    for value in values:
        check_integer(name, value)


def _check_numbers(name: str, values: object) -> None:
    """Two finite numbers above 0."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 2:
        raise ConfigurationError(f"{name}={values!r} must hold two numbers.")
    for value in values:
        check_number(name, value, above=0)
