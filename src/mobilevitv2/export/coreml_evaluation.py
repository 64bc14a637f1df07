"""A Core ML program evaluated on this system, operator by operator: what Apple's runtime would do, after the documentation of MIL.

It knows the operators that this package's models become, and refuses others. All is calculated in float32 or wider, whatever the
program's precision, so it shows a wrong graph, not the rounding of a device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2.errors import WeightsError

Inputs = Mapping[str, Any]
Array = np.ndarray[Any, Any]


def evaluate(program: Any, image: Array) -> dict[str, Array]:
    """The outputs by name, for one image as the program's input has it; a classifier's probabilities as "probabilities".

    Args:
        program: coremltools' MIL program.
        image: (1, 3, height, width); for an `ImageType` in 0..255.

    Raises:
        WeightsError: an operator that is not known here, or that cannot take what it is given.
    """
    function = program.functions["main"]
    values: dict[str, Any] = {name: torch.from_numpy(image) for name in function.inputs}
    for operation in function.operations:
        if operation.op_type == "const":
            values[operation.outputs[0].name] = _constant(operation.outputs[0].val)
            continue
        inputs = {name: _value(variable, values) for name, variable in operation.inputs.items()}
        if operation.op_type == "classify":
            values["probabilities"] = inputs["probabilities"]
            continue
        if operation.op_type not in OPERATORS:
            raise WeightsError(f"operator {operation.op_type!r} of the Core ML program is not known here, so it cannot be checked.")
        try:
            results = OPERATORS[operation.op_type](inputs)
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            where = f"operator {operation.op_type!r} ({operation.name})"
            raise WeightsError(f"{where} of the Core ML program cannot be evaluated here: {reason}.") from error
        for output, result in zip(operation.outputs, results if isinstance(results, tuple) else (results,), strict=True):
            values[output.name] = result
    names = [output.name for output in function.outputs if output.name in values]
    found = {name: values[name].numpy() for name in names if isinstance(values[name], Tensor)}
    if "probabilities" in values:
        found["probabilities"] = values["probabilities"].numpy()
    return found


def _value(variable: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(variable, list | tuple):
        return [_value(each, values) for each in variable]
    return values[variable.name] if variable.name in values else _constant(variable.val)


def _constant(value: Any) -> Any:
    """Numbers of weights as tensors, settings as Python has them."""
    if isinstance(value, np.ndarray):
        wide = value.astype(np.float32) if value.dtype == np.float16 else value
        return torch.from_numpy(np.ascontiguousarray(wide))
    if isinstance(value, np.generic):
        return value.item()
    return value


def _list(value: Any) -> list[int]:
    return [int(each) for each in (value.tolist() if isinstance(value, Tensor) else value)]


def _axes(inputs: Inputs) -> list[int]:
    return _list(inputs["axes"])


def _convolution(inputs: Inputs) -> Tensor:
    x = inputs["x"]
    kind = inputs.get("pad_type", "valid")
    pad = _list(inputs["pad"]) if kind == "custom" else [0, 0, 0, 0]
    if kind not in ("valid", "custom"):
        raise WeightsError(f"pad_type={kind!r} of a convolution is not known here.")
    top, bottom, left, right = pad
    strides, dilations = _list(inputs.get("strides", [1, 1])), _list(inputs.get("dilations", [1, 1]))
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, inputs["weight"], inputs.get("bias"), stride=strides, dilation=dilations, groups=inputs.get("groups", 1))


def _slice(inputs: Inputs) -> Tensor:
    x = inputs["x"]
    begin, end = _list(inputs["begin"]), _list(inputs["end"])
    stride = _list(inputs["stride"]) if inputs.get("stride") is not None else [1] * x.ndim
    flags = [inputs.get(name) for name in ("begin_mask", "end_mask", "squeeze_mask")]
    begins, ends, squeezes = (_list(flag) if flag is not None else [0] * x.ndim for flag in flags)
    index: list[Any] = []
    for axis in range(x.ndim):
        if squeezes[axis]:
            index.append(begin[axis])
        else:
            index.append(slice(None if begins[axis] else begin[axis], None if ends[axis] else end[axis], stride[axis]))
    return torch.as_tensor(x[tuple(index)])


def _matmul(inputs: Inputs) -> Tensor:
    x, y = inputs["x"], inputs["y"]
    x = x.transpose(-1, -2) if inputs.get("transpose_x") else x
    y = y.transpose(-1, -2) if inputs.get("transpose_y") else y
    return torch.matmul(x, y)


def _bilinear(inputs: Inputs) -> Tensor:
    factors = [float(inputs[name]) for name in ("scale_factor_height", "scale_factor_width")]
    size = [round(side * factor) for side, factor in zip(inputs["x"].shape[-2:], factors, strict=True)]
    return F.interpolate(inputs["x"], size=size, mode="bilinear", align_corners=bool(inputs.get("align_corners", True)))


def _resize(inputs: Inputs) -> Tensor:
    mode = inputs.get("sampling_mode", "DEFAULT")
    if mode not in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        raise WeightsError(f"sampling_mode={mode!r} of a resize is not known here.")
    size = [int(inputs["target_size_height"]), int(inputs["target_size_width"])]
    return F.interpolate(inputs["x"], size=size, mode="bilinear", align_corners=True)


def _split(inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis = inputs["x"], int(inputs["axis"])
    if inputs.get("split_sizes") is not None:
        return tuple(torch.split(x, _list(inputs["split_sizes"]), dim=axis))
    return tuple(torch.chunk(x, int(inputs["num_splits"]), dim=axis))


def _pool(inputs: Inputs) -> Tensor:
    pad = _list(inputs["pad"]) if inputs.get("pad_type") == "custom" else [0, 0, 0, 0]
    if any(pad):
        raise WeightsError("a pooling with padding is not known here.")
    return F.avg_pool2d(inputs["x"], _list(inputs["kernel_sizes"]), _list(inputs["strides"]))


def _concat(inputs: Inputs) -> Tensor:
    parts = [torch.as_tensor(each) for each in inputs["values"]]
    return torch.cat([part if part.ndim else part[None] for part in parts], dim=int(inputs["axis"]))


def _gather(inputs: Inputs) -> Tensor:
    x, indices, axis = inputs["x"], torch.as_tensor(inputs["indices"]).long(), int(inputs.get("axis", 0))
    found = torch.index_select(x, axis, indices.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _squeeze(inputs: Inputs) -> Tensor:
    x: Tensor = inputs["x"]
    axes = inputs.get("axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(_list(axes)))


def _expand(inputs: Inputs) -> Tensor:
    x: Tensor = inputs["x"]
    for axis in sorted(_axes(inputs)):
        x = x.unsqueeze(axis)
    return x


def _cast(inputs: Inputs) -> Tensor:
    kinds = {"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool, "uint8": torch.uint8}
    return torch.as_tensor(inputs["x"]).to(kinds[inputs["dtype"]])


def _dequantised(inputs: Inputs) -> Tensor:
    """Weights that were stored in 8 bits."""
    stored = inputs["quantized_data"]
    scale, zero = (torch.as_tensor(inputs[name]).float() for name in ("scale", "zero_point"))
    shape = [1] * stored.ndim
    if scale.ndim:
        shape[int(inputs["axis"])] = -1
    return torch.as_tensor((stored.float() - zero.reshape(shape)) * scale.reshape(shape))


def _binary(action: Callable[[Any, Any], Any]) -> Callable[[Inputs], Tensor]:
    return lambda inputs: torch.as_tensor(action(inputs["x"], inputs["y"]))


def _unary(action: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Tensor]:
    return lambda inputs: action(inputs["x"])


OPERATORS: dict[str, Callable[[Inputs], Any]] = {
    "add": _binary(lambda x, y: x + y),
    "sub": _binary(lambda x, y: x - y),
    "mul": _binary(lambda x, y: x * y),
    "real_div": _binary(lambda x, y: x / y),
    "equal": _binary(lambda x, y: torch.as_tensor(x) == torch.as_tensor(y)),
    "floor_div": _binary(lambda x, y: torch.floor_divide(torch.as_tensor(x), torch.as_tensor(y))),
    "select": lambda inputs: torch.where(*(torch.as_tensor(inputs[name]) for name in ("cond", "a", "b"))),
    "maximum": _binary(lambda x, y: torch.maximum(torch.as_tensor(x), torch.as_tensor(y))),
    "relu": _unary(F.relu),
    "silu": _unary(F.silu),
    "sigmoid": _unary(torch.sigmoid),
    "square": _unary(torch.square),
    "identity": _unary(lambda x: x),
    "exp": _unary(torch.exp),
    "rsqrt": lambda inputs: torch.rsqrt(inputs["x"] + (inputs.get("epsilon") or 0.0)),
    "softmax": lambda inputs: torch.softmax(inputs["x"], dim=int(inputs.get("axis", -1))),
    "conv": _convolution,
    "linear": lambda inputs: F.linear(inputs["x"], inputs["weight"], inputs.get("bias")),
    "matmul": _matmul,
    "reduce_mean": lambda inputs: inputs["x"].mean(dim=_axes(inputs), keepdim=bool(inputs.get("keep_dims", False))),
    "reduce_sum": lambda inputs: inputs["x"].sum(dim=_axes(inputs), keepdim=bool(inputs.get("keep_dims", False))),
    "reduce_argmax": lambda inputs: (
        inputs["x"].argmax(dim=int(inputs["axis"]), keepdim=bool(inputs.get("keep_dims", True))).to(torch.int32)
    ),
    "reshape": lambda inputs: inputs["x"].reshape(_list(inputs["shape"])),
    "transpose": lambda inputs: inputs["x"].permute(_list(inputs["perm"])),
    "squeeze": _squeeze,
    "expand_dims": _expand,
    "tile": lambda inputs: inputs["x"].tile(_list(inputs["reps"])),
    "concat": _concat,
    "shape": lambda inputs: torch.tensor(inputs["x"].shape, dtype=torch.int32),
    "gather": _gather,
    "split": _split,
    "slice_by_index": _slice,
    "pixel_unshuffle": lambda inputs: F.pixel_unshuffle(inputs["x"], int(inputs["downscale_factor"])),
    "pixel_shuffle": lambda inputs: F.pixel_shuffle(inputs["x"], int(inputs["upscale_factor"])),
    "upsample_bilinear": _bilinear,
    "resize_bilinear": _resize,
    "avg_pool": _pool,
    "cast": _cast,
    "constexpr_affine_dequantize": _dequantised,
}
