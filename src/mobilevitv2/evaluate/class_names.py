"""Which output of a model stands for which class of a data set."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError

logger = logging.getLogger(__name__)


def output_names(model: Any) -> tuple[str, ...] | None:
    """The names of a model's outputs, from `model.config.id2label`; None where it has none but placeholders (LABEL_0, ...)."""
    id2label = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(id2label, Mapping) or not id2label:
        return None
    names = tuple(str(name) for _, name in sorted(id2label.items(), key=lambda item: int(item[0])))
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    return names


def match_classes(classes: Sequence[str], names: Sequence[str]) -> IntArray:
    """For each class of the data the model's output, (classes,), matched by name; -1 where the model has none.

    Case, `_` and `-` do not matter, and of a name like "tench, Tinca tinca" each part will do, unless several outputs share it.

    Raises:
        ConfigurationError: no class is known to the model.
    """
    if tuple(classes) == tuple(names):
        return np.arange(len(classes), dtype=np.int64)
    exact, folded, parts = _index(names, str), _index(names, _folded), _parts_index(names)
    found = [_first(exact.get(name), folded.get(_folded(name)), parts.get(_folded(name))) for name in classes]
    outputs = np.array(found, dtype=np.int64)
    missing = [name for name, output in zip(classes, found, strict=True) if output < 0]
    if len(missing) == len(classes):
        raise ConfigurationError(
            f"the model knows none of the data's classes: its outputs are {_few(names)}; the data have {_few(classes)}. Evaluate "
            "it on data with its own classes, or pass class_names with the names of its outputs in the data's words"
        )
    if missing:
        logger.warning("the model has no output for %s: whatever shows them counts as wrong", _few(missing))
    return outputs


def classes_of_outputs(classes: Sequence[str], names: Sequence[str] | None) -> IntArray:
    """For each output of a model the class of the data, (outputs,), matched by name; len(classes) for those that the data lack.

    Args:
        classes: of the data.
        names: of the outputs; None where the outputs are the data's classes in their order.

    Raises:
        ConfigurationError: no class is known to the model.
    """
    if names is None:
        return np.arange(len(classes), dtype=np.int64)
    output_of = match_classes(classes, names)
    class_of = np.full(len(names), len(classes), dtype=np.int64)
    known = np.flatnonzero(output_of >= 0)
    class_of[output_of[known]] = known
    return class_of


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _index(names: Sequence[str], key: Any) -> dict[str, int]:
    """Key of each name -> its index; -1 for those that several names share."""
    index: dict[str, int] = {}
    for position, name in enumerate(names):
        index[key(name)] = -1 if key(name) in index else position
    return index


def _parts_index(names: Sequence[str]) -> dict[str, int]:
    index: dict[str, int] = {}
    for position, name in enumerate(names):
        for part in {_folded(part) for part in name.split(",")}:
            index[part] = -1 if part in index else position
    return index


def _first(*candidates: int | None) -> int:
    return next((candidate for candidate in candidates if candidate is not None and candidate >= 0), -1)


def _few(names: Sequence[str]) -> str:
    listed = ", ".join(names[:5])
    return f"{listed}, ... ({len(names)} in all)" if len(names) > 5 else listed
