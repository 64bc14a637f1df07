"""Whether what a file says about itself fits what its runtime sees, before the first picture: a wrong answer would not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mobilevitv2.errors import WeightsError
from mobilevitv2.runtime.engines import Engine, Port
from mobilevitv2.runtime.metadata import Metadata
from mobilevitv2.text_table import counted

INPUTS = ("uint8", "float32")
CLASSES = {"probabilities": 1, "logits": 1, "scores": 2}
"""Outputs with an axis of the classes, and which; not of scores that went through suppression."""


def the_input(engine: Engine, where: str) -> tuple[str, Port]:
    """Name, shape and type of the one input.

    Raises:
        WeightsError: several, or none.
    """
    if len(engine.inputs) != 1:
        count = len(engine.inputs) or "no"
        raise WeightsError(
            f"{where} takes {count} inputs, a MobileViTV2 one picture; it is another model's file: give one that "
            "`mobilevitv2 export` wrote."
        )
    return next(iter(engine.inputs.items()))


def told_task(outputs: Mapping[str, Port]) -> tuple[str | None, str]:
    """The task and the kind of post-processing that a file's outputs speak of; None where no file of this package has such."""
    if {"count", "boxes", "scores", "labels"} <= outputs.keys():
        return "detect", "suppression"
    if {"scores", "boxes"} <= outputs.keys():
        return "detect", "boxes"
    axes = {name: len(shape) for name, (shape, _) in outputs.items()}
    if axes.get("mask") == 3:
        return "segment", "argmax"
    if axes.get("probabilities") == 2:
        return "classify", "softmax"
    return {2: ("classify", "none"), 4: ("segment", "none")}.get(axes.get("logits", 0), (None, ""))


def told_classes(outputs: Mapping[str, Port]) -> int | None:
    """The number of classes that come out; None where the shapes do not tell."""
    for name, axis in CLASSES.items():
        shape = outputs.get(name, ((), ""))[0]
        if len(shape) > axis and "count" not in outputs:
            return shape[axis]
    return None


def check_ports(metadata: Metadata, engine: Engine, where: str) -> None:
    """Hold a file's metadata against its inputs and outputs.

    Raises:
        WeightsError: another model's file, or metadata of another file; the message has both sides.
    """
    _, (shape, dtype) = the_input(engine, where)
    missing = [port.name for port in metadata.outputs if port.name not in engine.outputs]
    if missing:
        raise _apart(where, f"the outputs {', '.join(missing)}", f"has {', '.join(engine.outputs) or 'none'}")
    task, _ = told_task(engine.outputs)
    if task != metadata.task:
        gives = ", ".join(f"{name} of {len(sides)} axes" for name, (sides, _) in engine.outputs.items())
        raise _apart(where, f"the task {metadata.task!r}", f"gives {gives}")
    _check_picture(metadata, shape, dtype, where)
    count = told_classes(engine.outputs)
    if count is not None and count != len(metadata.labels):
        raise _apart(where, counted(len(metadata.labels), "label"), f"has {counted(count, 'class', 'classes')}")


def _check_picture(metadata: Metadata, shape: tuple[int | None, ...], dtype: str, where: str) -> None:
    picture = metadata.picture
    wanted = "uint8" if picture.inside else "float32"
    if dtype != wanted:
        raise _apart(where, f"pictures in {wanted}", f"takes {dtype}")
    sides = (picture.height, picture.width)
    last = picture.inside or metadata.layout == "NHWC"
    said = (None, *sides, 3) if last else (None, 3, *sides)
    free = [None if name in metadata.dynamic else side for name, side in zip(("height", "width"), sides, strict=True)]
    loose = (None, *free, 3) if last else (None, 3, *free)
    fits = len(shape) == 4 and all(None in (has, side) or has == side for has, side in zip(shape, loose, strict=True))
    if not fits:
        raise _apart(where, f"pictures of {_shown(said)}", f"takes {_shown(shape)}")


def _apart(where: str, said: str, found: str) -> WeightsError:
    return WeightsError(
        f"{where} {found}, but its metadata speak of {said}; they were changed, or are another file's: export it again."
    )


def _shown(shape: tuple[Any, ...]) -> str:
    return (
        "("
        + ", ".join(
            "batch" if side is None and place == 0 else "free" if side is None else str(side) for place, side in enumerate(shape)
        )
        + ")"
    )
