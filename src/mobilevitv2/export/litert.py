"""LiteRT: a .tflite file that takes pictures with the channels last, with metadata and labels packed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.executorch import quiet
from mobilevitv2.export.formats import Written
from mobilevitv2.export.forms import token_module
from mobilevitv2.export.litert_packing import pack
from mobilevitv2.runtime.preprocessing import as_input
from mobilevitv2.text_table import counted

if TYPE_CHECKING:
    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated

DELEGATE = "DELEGATE"


def write(program: Program, path: Path) -> Written:
    """Convert the program and write it; in fp16 the weights are stored in 16 bits and calculated with in 32.

    Raises:
        ConfigurationError: a free axis.
    """
    _check_axes(program)
    with quiet():
        content = _convert(program)
        if program.precision == "fp16":
            content = _halved(content)
        return _written(content, program, path)


def quantise(program: Program, path: Path, calibration: Calibrated | None) -> Written:
    """The program with 8-bit weights, and with pictures also 8-bit values, as `path`.

    Raises:
        ConfigurationError: a free axis.
    """
    from mobilevitv2.export.quantise.litert_quantising import quantised_model

    _check_axes(program)
    with quiet():
        images = None if calibration is None else _inputs(program, calibration.ranges)
        made = quantised_model(_convert(program), images)
        written = _written(made.content, program, path)
    integer, weighted = made.integer
    pictures = 0 if calibration is None else len(calibration.ranges)
    told = {
        "weights": "int8 by channel",
        "values": "float" if calibration is None else f"int8, {made.ranges} ranges from {counted(pictures, 'picture')}",
        "integer_convolutions": integer,
        "convolutions": weighted,
        "float_parts": ["attention.key", "softmax", "sums over tokens", "norms", "residual stream of transformers", "last layers"],
    }
    return replace(written, quantisation=told, versions={**written.versions, "ai-edge-quantizer": version("ai-edge-quantizer")})


def _inputs(program: Program, pixels: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    for picture in pixels:
        yield as_input(picture[None], program.metadata.picture, "NHWC")


def _check_axes(program: Program) -> None:
    if program.dynamic:
        raise ConfigurationError(f"{' and '.join(program.dynamic)} cannot be free in LiteRT; export one file for each shape.")


def _written(content: bytes, program: Program, path: Path) -> Written:
    """Pack and write it, and see which operators it has."""
    content = pack(content, program.metadata, program.outputs)
    path.write_bytes(content)
    operators, outside = _operators(content)
    versions = {name: version(name) for name in ("litert-torch", "ai-edge-litert", "torch")}
    notes = (f"operators outside XNNPACK: {', '.join(outside)}",) if outside else ()
    return Written(files=(path,), operators=operators, outside=outside, versions=versions, notes=notes)


def _convert(program: Program) -> bytes:
    import litert_torch
    from litert_torch.progress import config

    config.show_progress = False
    module = token_module(program, free_mean=True)
    with torch.no_grad():
        converted = litert_torch.convert(module, sample_kwargs={"image": program.example})
    return bytes(converted.model_content())


def _halved(content: bytes) -> bytes:
    """The model with its weights in 16 bits."""
    from ai_edge_quantizer import qtyping, quantizer

    work = quantizer.Quantizer(bytearray(content))
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    for operation in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        work.update_quantization_recipe(
            regex=".*",
            operation_name=qtyping.TFLOperationName[operation],
            op_config=qtyping.OpQuantizationConfig(
                weight_tensor_config=weights,
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            algorithm_key="float_casting",
        )
    return bytes(work.quantize().quantized_model)


def _operators(content: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """How many operators of each kind there are in all, and outside XNNPACK on this system."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    operators = Counter(each["op_name"] for each in details if each["op_name"] != DELEGATE)
    wanted = [each["index"] for each in interpreter.get_output_details()]
    return dict(operators), dict(left_outside(details, wanted))


def left_outside(details: Sequence[Mapping[str, Any]], outputs: Sequence[int]) -> Counter[str]:
    """The operators that run by themselves. The interpreter lists replaced ones too, so what the outputs need is walked back."""
    makers: dict[int, Mapping[str, Any]] = {}
    for each in sorted(details, key=lambda each: each["op_name"] == DELEGATE):  # a delegate stands for what it replaced
        makers.update({int(index): each for index in each["outputs"]})
    wanted, seen, outside = [int(index) for index in outputs], set(), Counter[str]()
    while wanted:
        maker = makers.get(wanted.pop())
        if maker is None or maker["index"] in seen:
            continue
        seen.add(maker["index"])
        if maker["op_name"] != DELEGATE:
            outside[maker["op_name"]] += 1
        wanted += [int(index) for index in maker["inputs"] if index >= 0]
    return outside
