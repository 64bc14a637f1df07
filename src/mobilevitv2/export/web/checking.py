"""A pattern and the file's answer to it, written down for the page, which runs it before it answers anything else.

Graphics drivers exist that calculate wrongly and say nothing; a page that notices can use the processor instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mobilevitv2.runtime.model import RuntimeModel

Array = np.ndarray[Any, Any]
VALUES = 256
TOLERANCES = {"fp32": 0.005, "fp16": 0.05, "bf16": 0.05, "int8": 0.2, "int8-weights": 0.05}
MAPS = 0.05
"""Of the pixels of a class map that may differ: those where two classes are equally likely."""
CHOSEN = ("probabilities", "logits", "mask", "scores")


def pattern(width: int, height: int) -> Array:
    """uint8 (height, width, 3), the same as in `page/checking.js`."""
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    channel = np.arange(3)[None, None]
    values = (((x >> 3) * 37) ^ ((y >> 3) * 59) ^ (x + y * (channel + 1))) + 67 * channel
    return (values & 255).astype(np.uint8)


def expected_answer(model: RuntimeModel) -> dict[str, Any]:
    """What the file gives for the pattern: some values of one output, with their places in it."""
    picture = model.metadata.picture
    raw = model.raw(pattern(picture.width, picture.height)[None])
    name = next(name for name in CHOSEN if name in raw)
    flat = raw[name].reshape(-1)
    integers = bool(np.issubdtype(flat.dtype, np.integer))
    indices = np.unique(np.linspace(0, len(flat) - 1, min(VALUES, len(flat))).astype(np.int64))
    if not integers:  # the largest values tell most
        indices = np.unique(np.concatenate([indices, np.argsort(-np.abs(flat), kind="stable")[: VALUES // 4]]))
    values = flat[indices]
    return {
        "output": name,
        "integers": integers,
        "indices": indices.tolist(),
        "values": values.tolist() if integers else [float(f"{value:.7g}") for value in values.tolist()],
        "largest": 1.0 if integers else max(float(np.abs(flat).max()), 1e-6),
        "tolerance": MAPS if integers else TOLERANCES.get(model.metadata.precision, 0.05),
    }
