"""Weights: every released checkpoint, the three ways to name tensors, files in and out. Knows names and shapes, never models.

Names are imported on first use, so that listing records needs neither torch nor the network's modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevitv2.weights.comparing import compare
    from mobilevitv2.weights.download import cache_path, fetch
    from mobilevitv2.weights.identifying import CheckpointInfo, config_values, identify, to_ours, wrong_task_message
    from mobilevitv2.weights.key_maps import Format, names_from_ours, names_to_ours
    from mobilevitv2.weights.reading import read_state_dict
    from mobilevitv2.weights.records import WeightRecord, get_record, list_records
    from mobilevitv2.weights.shapes import Architecture, Head, Task, expected_shapes, parameter_count
    from mobilevitv2.weights.writing import convert_file, convert_state_dict, write_whole

_HOMES = {
    "Architecture": "shapes",
    "CheckpointInfo": "identifying",
    "Format": "key_maps",
    "Head": "shapes",
    "Task": "shapes",
    "WeightRecord": "records",
    "cache_path": "download",
    "compare": "comparing",
    "config_values": "identifying",
    "convert_file": "writing",
    "convert_state_dict": "writing",
    "expected_shapes": "shapes",
    "fetch": "download",
    "get_record": "records",
    "identify": "identifying",
    "list_records": "records",
    "names_from_ours": "key_maps",
    "names_to_ours": "key_maps",
    "parameter_count": "shapes",
    "read_state_dict": "reading",
    "to_ours": "identifying",
    "write_whole": "writing",
    "wrong_task_message": "identifying",
}

__all__ = [
    "Architecture",
    "CheckpointInfo",
    "Format",
    "Head",
    "Task",
    "WeightRecord",
    "cache_path",
    "compare",
    "config_values",
    "convert_file",
    "convert_state_dict",
    "expected_shapes",
    "fetch",
    "get_record",
    "identify",
    "list_records",
    "names_from_ours",
    "names_to_ours",
    "parameter_count",
    "read_state_dict",
    "to_ours",
    "write_whole",
    "wrong_task_message",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
