"""Checkpoints in transformers' folder form, such as the one inside the package, without torch: a graph in memory.

Nothing is cached on disk. Writing the graph down takes a tenth of a second, less than finding out whether a stored one
still fits, and a second file of weights would double the package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import mobilevitv2
from mobilevitv2.errors import ConfigurationError, MissingDependency, WeightsError
from mobilevitv2.graph.build import GraphSpec, build_graph
from mobilevitv2.graph.network import ACTIVATIONS, Trunk
from mobilevitv2.runtime.metadata import Metadata, PictureContract, Port
from mobilevitv2.runtime.model import RuntimeModel

Array = np.ndarray[Any, Any]
ENGINES = ("onnxruntime", "openvino")
"""In the order in which "auto" takes them: the first starts in half the time, and answers as fast."""
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
ARCHITECTURE = "MobileViTV2ForImageClassification"
TYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8"}


def available(engine: str = "auto") -> str | None:
    """The engine that "auto" means here; the engine itself where it is installed; None where there is none.

    Raises:
        MissingDependency: an engine asked for by name is not installed.
    """
    for name in ENGINES if engine == "auto" else (engine,):
        if find_spec(name) is not None:
            return name
    if engine == "auto":
        return None
    extra = {"onnxruntime": "onnx"}.get(engine, engine)
    raise MissingDependency(f"{engine} is not installed: pip install 'mobilevitv2[{extra}]'")


def can_open(folder: Path) -> bool:
    """Whether the folder holds a classifier that has a graph: safetensors, a configuration and the image processor's settings."""
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    if not all((folder / name).is_file() for name in names):
        return False
    config, processor = _json(folder / names[0]), _json(folder / names[1])
    return (
        config.get("model_type") == "mobilevitv2"
        and config.get("architectures") == [ARCHITECTURE]
        and config.get("num_channels", 3) == 3
        and config.get("hidden_act", "swish") in ACTIVATIONS
        and bool(processor.get("do_center_crop"))
        and not processor.get("do_pad")
        and not processor.get("do_flip_channel_order")  # the image processor itself warns of it
    )


def open_folder(
    folder: Path, *, engine: str = "auto", threads: int | None = None, callers: int = 1, source: str | None = None
) -> RuntimeModel:
    """A classifier's folder, ready to answer.

    Args:
        folder: that `can_open` says yes to.
        engine: "onnxruntime", "openvino", or "auto" for the first that is installed.
        threads: for one answer; the runtime's choice where None.
        callers: as in `open_model`.
        source: name for messages.

    Raises:
        MissingDependency: no engine is installed. WeightsError: weights that cannot be read.
        ConfigurationError: a folder that this cannot open.
    """
    if not can_open(folder):
        raise ConfigurationError(f"{folder} is no classifier's folder that runs without torch; export it, and use the file.")
    chosen = available(engine)
    if chosen is None:
        raise MissingDependency("no runtime is installed: pip install 'mobilevitv2[onnx]'")
    config, where = _json(folder / "config.json"), source or str(folder)
    tensors = read_safetensors(folder / "model.safetensors")
    labels = _labels(config, tensors, where)
    metadata = _metadata(config, _json(folder / "preprocessor_config.json"), labels, where)
    trunk = _trunk(config)
    norms = "moments" if chosen == "openvino" else "instance"
    content = build_graph(
        GraphSpec(metadata=metadata, trunk=trunk, norms=norms, merged=True), tensors, version=mobilevitv2.__version__
    ).content
    if chosen == "openvino":
        from mobilevitv2.runtime.with_openvino import open_bytes as with_openvino

        return RuntimeModel(with_openvino(content, where=where, threads=threads, callers=callers), where=where)
    from mobilevitv2.runtime.with_onnxruntime import open_bytes

    return RuntimeModel(open_bytes(content, where=where, threads=threads, callers=callers), where=where)


def read_safetensors(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, not copied; importing the library for this costs more than the reading.

    Raises:
        WeightsError: a truncated or damaged file, or one with types other than float and int64.
    """
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(content[:8].tobytes(), "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + length].tobytes())
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                tensors[name] = content[start:end].view(TYPES[entry["dtype"]]).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise WeightsError(f"{path} is no whole safetensors file ({error}); copy or download it again.") from error
    return tensors


def _trunk(config: Mapping[str, Any]) -> Trunk:
    stride = int(config.get("output_stride", 32))
    plain = (2, 2, 4, 8, 16, 32)
    return Trunk(
        strides=tuple(min(each, stride) for each in plain),
        dilations=tuple(max(1, each // stride) for each in plain),
        activation=config.get("hidden_act", "swish"),
        patch_size=int(config.get("patch_size", 2)),
        norm_eps=float(config.get("layer_norm_eps", 1e-5)),
    )


def _labels(config: Mapping[str, Any], tensors: Mapping[str, Array], where: str) -> tuple[str, ...]:
    """The names of the classes; placeholders where the configuration, as transformers writes it for two classes, has none."""
    if "classifier.weight" not in tensors:
        raise WeightsError(f"{where} has no weights of a classifier, classifier.weight; save the whole model again.")
    count = len(tensors["classifier.weight"])
    names = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    if names and len(names) != count:
        raise WeightsError(
            f"{where} names {len(names)} classes in config.json, its weights have {count}; give id2label a name for each of them."
        )
    return tuple(names.get(index, f"LABEL_{index}") for index in range(count))


def _metadata(config: Mapping[str, Any], processor: Mapping[str, Any], labels: tuple[str, ...], source: str) -> Metadata:
    crop = {name: int(processor["crop_size"][name]) for name in ("height", "width")}
    picture = PictureContract(
        height=crop["height"],
        width=crop["width"],
        resize={name: int(side) for name, side in processor["size"].items() if side} if processor.get("do_resize", True) else None,
        crop=crop,
        interpolation=FILTERS[int(processor.get("resample", 3))],
        scale=float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0,
        mean=tuple(processor["image_mean"]) if processor.get("do_normalize") else None,
        std=tuple(processor["image_std"]) if processor.get("do_normalize") else None,
    )
    independent = config.get("problem_type") == "multi_label_classification" or len(labels) == 1
    activation = "sigmoid" if independent else "softmax"
    shape = ("batch", 3, crop["height"], crop["width"])
    return Metadata(
        task="classify",
        labels=labels,
        picture=picture,
        layout="NCHW",
        inputs=(Port(name="image", shape=shape, dtype="float32", meaning="pictures"),),
        outputs=(Port(name="probabilities", shape=("batch", len(labels)), dtype="float32", meaning="of each class"),),
        postprocessing=activation,
        activation=activation,
        precision="fp32",
        dynamic=("batch",),
        source=source,
        licence="",
        weights_sha256="",
        versions={},
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is no valid JSON ({error}); repair it or copy it again.") from error
    return values if isinstance(values, dict) else {}
