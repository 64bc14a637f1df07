"""Metadata of a .tflite file, in the two places where they are looked for.

Our own JSON is one entry of the model's metadata. The other, TFLITE_METADATA, is the format of Google's Task libraries and of
Android Studio: a FlatBuffer with what the tensors mean, and a file of labels appended to the model as a zip archive. Its schema has
no Python package that installs everywhere, so the few tables used here are written slot by slot; the numbers are the schema's.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from mobilevitv2.runtime.metadata import METADATA_KEY, Metadata, Port

LABELS = "labels.txt"
SCHEMA_ENTRY = "TFLITE_METADATA"
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"
AXIS_LABELS, NORMALISATION, IMAGE, RGB = 2, 1, 2, 1

Offset = int


def pack(content: bytes, metadata: Metadata, outputs: Sequence[str]) -> bytes:
    """The model with metadata, labels and the outputs' names in its signature."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    for output in model.signatureDefs[0].outputs:
        index = int(output.name.decode().rpartition("_")[2] or 0)
        output.name = outputs[index].encode()
    for name, data in ((METADATA_KEY, metadata.to_json().encode()), (SCHEMA_ENTRY, task_metadata(metadata))):
        buffer = schema.BufferT()
        buffer.data = list(data)
        model.buffers.append(buffer)
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), len(model.buffers) - 1
        model.metadata = [*(model.metadata or []), entry]
    packed = io.BytesIO(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    with zipfile.ZipFile(packed, "a") as archive:
        # A fixed date: the same export gives the same bytes.
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(metadata.labels))
    return packed.getvalue()


def task_metadata(metadata: Metadata) -> bytes:
    """What the Task libraries read, as a FlatBuffer."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    inputs = _vector(builder, [_input(builder, metadata)])
    outputs = _vector(builder, [_output(builder, port, metadata) for port in metadata.outputs])
    graph = _table(builder, 11, {2: _offset(inputs), 3: _offset(outputs)})
    texts = {0: f"MobileViTV2, {metadata.task}", 1: f"weights: {metadata.source}", 5: metadata.licence, 7: PARSER_VERSION}
    slots = {slot: _offset(builder.CreateString(text)) for slot, text in texts.items()}
    graphs = _vector(builder, [graph])
    builder.Finish(_table(builder, 8, {**slots, 3: _offset(graphs)}), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _input(builder: Any, metadata: Metadata) -> Offset:
    picture = metadata.picture
    size = _table(builder, 2, {0: _uint(picture.width), 1: _uint(picture.height)})
    image = _table(builder, 2, {0: _byte(RGB), 1: _offset(size)})
    content = _table(builder, 3, {0: _ubyte(IMAGE), 1: _offset(image)})
    # In units of what goes into the file: nothing is left to do where the scaling is inside.
    mean, std = (picture.mean or (0.0,)), (picture.std or (1.0,))
    means = [0.0] if picture.inside else [each / picture.scale for each in mean]
    stds = [1.0] if picture.inside else [each / picture.scale for each in std]
    options = _table(builder, 2, {0: _offset(_floats(builder, means)), 1: _offset(_floats(builder, stds))})
    unit = _table(builder, 2, {0: _ubyte(NORMALISATION), 1: _offset(options)})
    name, meaning = (builder.CreateString(text) for text in (metadata.inputs[0].name, metadata.inputs[0].meaning))
    units = _vector(builder, [unit])
    return _table(builder, 7, {0: _offset(name), 1: _offset(meaning), 3: _offset(content), 4: _offset(units)})


def _output(builder: Any, port: Port, metadata: Metadata) -> Offset:
    name, meaning = builder.CreateString(port.name), builder.CreateString(port.meaning)
    slots = {0: _offset(name), 1: _offset(meaning)}
    if port.name != "boxes":
        file = _table(builder, 5, {0: _offset(builder.CreateString(LABELS)), 2: _byte(AXIS_LABELS)})
        slots[6] = _offset(_vector(builder, [file]))
    return _table(builder, 7, slots)


Slot = Callable[[Any, int], None]


def _offset(value: Offset) -> Slot:
    return lambda builder, slot: builder.PrependUOffsetTRelativeSlot(slot, value, 0)


def _uint(value: int) -> Slot:
    return lambda builder, slot: builder.PrependUint32Slot(slot, value, 0)


def _byte(value: int) -> Slot:
    return lambda builder, slot: builder.PrependInt8Slot(slot, value, 0)


def _ubyte(value: int) -> Slot:
    return lambda builder, slot: builder.PrependUint8Slot(slot, value, 0)


def _table(builder: Any, slots: int, values: dict[int, Slot]) -> Offset:
    builder.StartObject(slots)
    for slot, write in values.items():
        write(builder, slot)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: Sequence[Offset]) -> Offset:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _floats(builder: Any, values: Sequence[float]) -> Offset:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())
