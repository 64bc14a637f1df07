"""Export to the formats of devices; every file is run and compared with PyTorch before it is handed over.

from mobilevitv2.export import export

report = export("mobilevitv2-1.0-imagenet1k-256", "model.onnx", format="onnx")
print(report.table())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevitv2.export.exporting import export
    from mobilevitv2.export.formats import FORMATS, PRECISIONS, ExportFormat
    from mobilevitv2.export.report import ExportReport
    from mobilevitv2.export.request import Suppression

_HOMES = {
    "FORMATS": "formats",
    "PRECISIONS": "formats",
    "ExportFormat": "formats",
    "ExportReport": "report",
    "Suppression": "request",
    "export": "exporting",
}

__all__ = ["FORMATS", "PRECISIONS", "ExportFormat", "ExportReport", "Suppression", "export"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
