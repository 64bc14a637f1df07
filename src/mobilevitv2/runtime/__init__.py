"""Exported files as models: numpy in, answers out, with no torch and no transformers behind it.

from mobilevitv2.runtime import open_model

model = open_model("cat.onnx")
print(model.predict("cat.jpg").labels)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevitv2.runtime.metadata import Metadata
    from mobilevitv2.runtime.model import RuntimeModel, open_model

_HOMES = {"Metadata": "metadata", "RuntimeModel": "model", "open_model": "model"}

__all__ = ["Metadata", "RuntimeModel", "open_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
