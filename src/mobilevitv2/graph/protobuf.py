"""Bytes of ONNX's protocol buffer messages, as far as a network needs them (field numbers: onnx.proto, IR version 8)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mobilevitv2.errors import ConfigurationError

Array = np.ndarray[Any, Any]
Attribute = int | float | str | Sequence[int] | Sequence[float]

IR_VERSION = 8
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10}
LARGEST_MESSAGE = 2**31 - 1
_VARINT, _BYTES, _FLOAT = 0, 2, 5
_ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_STRING, _ATTRIBUTE_FLOATS, _ATTRIBUTE_INTS = 1, 2, 3, 6, 7


def varint(value: int) -> bytes:
    """A whole number, seven bits a byte; negative ones in two's complement of 64 bits."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field that holds a whole number."""
    return varint(field << 3 | _VARINT) + varint(value)


def real(field: int, value: float) -> bytes:
    """A field that holds a 32-bit float."""
    return varint(field << 3 | _FLOAT) + struct.pack("<f", value)


def content(field: int, value: bytes | str) -> bytes:
    """A field that holds bytes, a text, or another message."""
    raw = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | _BYTES) + varint(len(raw)) + raw


def attribute(name: str, value: Attribute) -> bytes:
    """AttributeProto."""
    start = content(1, name)
    if isinstance(value, str):
        return start + content(4, value) + number(20, _ATTRIBUTE_STRING)
    if isinstance(value, int):
        return start + number(3, value) + number(20, _ATTRIBUTE_INT)
    if isinstance(value, float):
        return start + real(2, value) + number(20, _ATTRIBUTE_FLOAT)
    if all(isinstance(each, int) for each in value):
        return start + b"".join(number(8, int(each)) for each in value) + number(20, _ATTRIBUTE_INTS)
    return start + b"".join(real(7, float(each)) for each in value) + number(20, _ATTRIBUTE_FLOATS)


def node(operator: str, name: str, inputs: Iterable[str], outputs: Iterable[str], attributes: Mapping[str, Attribute]) -> bytes:
    """NodeProto."""
    return b"".join(
        (
            *(content(1, each) for each in inputs),
            *(content(2, each) for each in outputs),
            content(3, name),
            content(4, operator),
            *(content(5, attribute(key, value)) for key, value in attributes.items()),
        )
    )


def tensor(name: str, value: Array) -> bytes:
    """TensorProto with raw data."""
    dims = b"".join(number(1, side) for side in value.shape)
    raw = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False).tobytes()
    return dims + number(2, ELEMENT_TYPES[value.dtype.name]) + content(8, name) + content(9, raw)


def value_info(name: str, dtype: str, shape: Sequence[int | str], meaning: str = "") -> bytes:
    """ValueInfoProto of an input or output; words are free axes."""
    dims = b"".join(content(1, number(1, side) if isinstance(side, int) else content(2, side)) for side in shape)
    kind = content(1, number(1, ELEMENT_TYPES[dtype]) + content(2, dims))
    return content(1, name) + content(2, kind) + (content(3, meaning) if meaning else b"")


def model(graph: bytes, *, opset: int, producer: str, version: str, metadata: Mapping[str, str]) -> bytes:
    """ModelProto.

    Raises:
        ConfigurationError: more than the 2 GiB that one message can hold.
    """
    message = b"".join(
        (
            number(1, IR_VERSION),
            content(2, producer),
            content(3, version),
            content(7, graph),
            content(8, content(1, "") + number(2, opset)),
            *(content(14, content(1, key) + content(2, value)) for key, value in metadata.items()),
        )
    )
    if len(message) > LARGEST_MESSAGE:
        raise ConfigurationError(f"the model takes {len(message):,} bytes; one ONNX file holds at most {LARGEST_MESSAGE:,}.")
    return message
