"""What an exported file says about itself, so that it can be used without the package that made it.

The same JSON lies in every format: in ONNX under the key "mobilevitv2" of `metadata_props`, in OpenVINO's `rt_info`, and so on.
This file knows no torch: the runtime reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mobilevitv2.errors import WeightsError

METADATA_KEY = "mobilevitv2"
"""Name of the entry that holds the JSON, in every format."""
TASKS = ("classify", "segment", "detect")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
SCHEMA = 1
"""Number of this form of metadata; a reader refuses a higher one."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output.

    Attributes:
        name: in the file.
        shape: a number for each fixed axis, a word ("batch", "height", "width", ...) for each free one.
        dtype: numpy's name: "float32", "uint8", "int32", "int64".
        meaning: one sentence for whoever writes the code around it.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class PictureContract:
    """How a picture becomes the input.

    Attributes:
        height, width: of the input; the size to use where the file takes several.
        resize: {"shortest_edge": pixels}, {"height": h, "width": w}, or None to take the picture as it is.
        crop: {"height": h, "width": w} cut from the centre after that, or None.
        interpolation: Pillow's name of the filter, antialiased.
        channel_order: "RGB" or "BGR".
        scale: what the 8-bit values are multiplied by, before mean and deviation.
        mean, std: subtracted and divided by, for each channel, or None.
        inside: whether scale (and mean and deviation) are in the file, which then takes uint8 (batch, height, width, 3).
    """

    height: int
    width: int
    resize: dict[str, int] | None
    crop: dict[str, int] | None = None
    interpolation: str = "bicubic"
    channel_order: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    inside: bool = False


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What every exported file carries.

    Attributes:
        task: "classify", "segment" or "detect".
        labels: names of the classes, by index; a detector's without the background.
        picture: the input contract.
        layout: "NCHW" or "NHWC" of a float input; a uint8 input always is NHWC.
        inputs, outputs: in the file's order.
        postprocessing: what is done inside: "none", "softmax", "sigmoid", "argmax", "boxes" (decoded) or "suppression".
        activation: what turns logits into probabilities: "softmax" or "sigmoid".
        precision: "fp32", "fp16", "bf16", "int8" or "int8-weights".
        dynamic: names of the axes that are free.
        source: name of the weights.
        licence: of the weights.
        weights_sha256: over the tensors' names, shapes and values, whatever file they came from.
        versions: of the package, torch, and the libraries that wrote the file.
        suppression: threshold, IoU and counts that are fixed inside the file, where there are any.
        notes: what a user should know besides.
    """

    task: str
    labels: tuple[str, ...]
    picture: PictureContract
    layout: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    postprocessing: str
    activation: str
    precision: str
    dynamic: tuple[str, ...]
    source: str
    licence: str
    weights_sha256: str
    versions: dict[str, str]
    suppression: dict[str, float] | None = None
    notes: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str, *, where: str = "the file") -> Metadata:
        """What `to_json` wrote.

        Raises:
            WeightsError: no such JSON, values that there are not, or a form of a newer release. Fields that are not known are
                passed over.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values["schema"] > SCHEMA:
                raise WeightsError(f"{where} has metadata of form {values['schema']}, known is {SCHEMA}; update mobilevitv2.")
            values = _known(cls, values)
            values["picture"] = PictureContract(**_known(PictureContract, values["picture"]))
            for name in ("inputs", "outputs"):
                values[name] = tuple(Port(**_known(Port, port)) for port in values[name])
            _check(values)
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{where} has metadata that cannot be read ({error}); export it again.") from error


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: _tuples(value) for name, value in values.items() if name in names}


def _check(values: dict[str, Any]) -> None:
    """Raise ValueError, naming the entry, where one holds what the runtime cannot use."""
    picture: PictureContract = values["picture"]
    offered = {
        "task": (values["task"], TASKS),
        "layout": (values["layout"], ("NCHW", "NHWC")),
        "activation": (values["activation"], ("softmax", "sigmoid")),
        "interpolation": (picture.interpolation, INTERPOLATIONS),
        "channel_order": (picture.channel_order, ("RGB", "BGR")),
        "inside": (picture.inside, (False, True)),
    }
    for name, (value, known) in offered.items():
        if value not in known:
            raise ValueError(f"{name} is {value!r}, known are {', '.join(map(str, known))}")
    sides = [{"height": picture.height, "width": picture.width}]
    sides += [each for each in (picture.resize, picture.crop) if each is not None]
    if not all(_are_pixels(each) for each in sides) or not (picture.crop is None or {"height", "width"} <= picture.crop.keys()):
        raise ValueError(
            f"height, width, resize and crop are {picture.height!r}, {picture.width!r}, {picture.resize!r}, {picture.crop!r}"
        )
    channels = [each for each in (picture.mean, picture.std) if each is not None]
    if not all(len(each) == 3 and all(_is_number(part) for part in each) for each in channels) or not _is_number(picture.scale):
        raise ValueError(f"scale, mean and std are {picture.scale!r}, {picture.mean!r}, {picture.std!r}")
    if not isinstance(values["labels"], tuple) or not all(isinstance(label, str) for label in values["labels"]):
        raise ValueError("the labels are no list of texts")


def _are_pixels(sides: Any) -> bool:
    """Whether it is {"shortest_edge": pixels} or {"height": pixels, "width": pixels}."""
    named = isinstance(sides, dict) and set(sides) in ({"shortest_edge"}, {"height", "width"})
    return named and all(isinstance(side, int) and side > 0 for side in sides.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
