"""From one format to another, losslessly: names change, tensors stay the same to the bit."""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import ConfigurationError, WeightsError
from mobilevitv2.weights.download import fetch
from mobilevitv2.weights.identifying import MODEL_CLASSES, CheckpointInfo, config_values, identify, to_ours
from mobilevitv2.weights.key_maps import FORMATS, Format, names_from_ours
from mobilevitv2.weights.reading import read_state_dict
from mobilevitv2.weights.records import WeightRecord, get_record

if TYPE_CHECKING:
    from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
BICUBIC = 3
"""Pillow's number of the interpolation."""
# What a file without record is prepared with: the official validation of each task (short side and crop, or both sides).
DEFAULT_INPUTS: dict[str, tuple[int | tuple[int, int], int | None]] = {
    "classify": (288, 256),
    "backbone": (288, 256),
    "segment": ((512, 512), None),
    "detect": ((320, 320), None),
}


def convert_state_dict(state_dict: Mapping[str, Tensor], *, to: Format) -> dict[str, Tensor]:
    """The same tensors under the names of `to`.

    Args:
        state_dict: in this package's names; `to_ours` makes them.
        to: "hf" (this package's own names, which are transformers'), "timm" or "official".

    Raises:
        WeightsError: tensors that `to` has no place for, such as a segmentation head in timm.
        ConfigurationError: an unknown format.
    """
    _check_format(to)
    names = names_from_ours(state_dict, target=to)
    return {names[name]: tensor for name, tensor in state_dict.items()}


def convert_file(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    to: Format,
    overwrite: bool = False,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Write the weights of `src` in another format and return the path written.

    Args:
        src: a file, a folder in Hugging Face format, or the name of a record, which is downloaded if need be.
        dst: for "hf" a folder, which gets config.json, model.safetensors and preprocessor_config.json; for the others a file,
            .safetensors or .pt, .pth, .bin, .ckpt.
        to: "hf", "timm" or "official".
        overwrite: replace what is there. Files are replaced whole or not at all.
        class_names: names of the classes for the config.json of "hf"; the source's own if it has any.

    Raises:
        UnknownWeightsFormat, WeightsMismatch, WeightsError: the source is no sound MobileViTV2, or `to` has no place for it.
        ConfigurationError: an unknown format or record, a suffix that names no format, or a target that exists.
        DownloadError: a record's file cannot be fetched.
    """
    _check_format(to)
    target = Path(dst)
    _check_target(target, to, overwrite)
    source, record = _source(src)
    state = read_state_dict(source)
    info = identify(state)
    ours = to_ours(state, info)
    try:
        if to == "hf":
            _write_folder(target, _folder_contents(ours, info, record, source, class_names))
        else:
            write_whole(target, _serialize(convert_state_dict(ours, to=to), target.suffix))
    except OSError as error:
        raise WeightsError(
            f"{target} could not be written: {error.strerror or error}. What was there before is unchanged."
        ) from error
    return target


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one in the same folder, so that the old one stays until the new one is complete.

    Raises:
        OSError: as the system gave it; the old file is whole and nothing else is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, content) as temporary:
        temporary.replace(path)


@contextmanager
def _temporary(path: Path, content: bytes) -> Iterator[Path]:
    """A complete, synced file beside `path`; removed afterwards unless it was moved away."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """All files or none: each is complete on the disk before the first one takes its place."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            temporaries = {name: stack.enter_context(_temporary(folder / name, content)) for name, content in contents.items()}
            for name, temporary in temporaries.items():
                temporary.replace(folder / name)
    except OSError:
        if new:
            folder.rmdir()
        raise


# ---- checks before any work ------------------------------------------------------------------------------------------------------


def _check_format(to: str) -> None:
    if to not in FORMATS:
        raise ConfigurationError(f"there is no format {to!r} to convert to; use 'hf', 'timm' or 'official'.")


def _check_target(target: Path, to: Format, overwrite: bool) -> None:
    if to == "hf":
        if target.exists() and not target.is_dir():
            raise ConfigurationError(f"{target} is a file, but the Hugging Face format is a folder; name a folder.")
        taken = target.is_dir() and any(target.iterdir())
    else:
        if target.suffix not in (".safetensors", *TORCH_SUFFIXES):
            raise ConfigurationError(f"{target}: {target.suffix or 'no suffix'!r} names no format; end it in .safetensors or .pt.")
        if target.is_dir():
            raise ConfigurationError(f"{target} is a folder, but {to} weights are one file; name a file.")
        taken = target.exists()
    if taken and not overwrite:
        raise ConfigurationError(
            f"{target} exists already and was left as it is; name another target, or pass overwrite=True (--overwrite)."
        )


def _source(src: str | os.PathLike[str]) -> tuple[Path, WeightRecord | None]:
    path = Path(src)
    if path.exists():
        return path, None
    try:
        record = get_record(str(src))
    except ConfigurationError:
        if path.suffix in (".safetensors", *TORCH_SUFFIXES) or path.parent != Path():
            raise WeightsError(f"{path} does not exist; check the path, or use a name that 'mobilevitv2 models' lists.") from None
        raise
    return fetch(record), record


# ---- contents of the files -------------------------------------------------------------------------------------------------------


def _serialize(state: Mapping[str, Tensor], suffix: str) -> bytes:
    # Clones, because tensors that share or lie inside a larger memory block cannot be stored, or would take that block with them.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    if suffix == ".safetensors":
        from safetensors.torch import save

        return save(tensors, metadata={"format": "pt"})  # transformers asks for this entry
    import torch

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _folder_contents(
    state: Mapping[str, Tensor],
    info: CheckpointInfo,
    record: WeightRecord | None,
    source: Path,
    class_names: Sequence[str] | None,
) -> dict[str, bytes]:
    config = {**_config(state, info, record), **_read_json(source / "config.json")}
    if class_names is not None or "id2label" not in config:
        config.update(_labels(info, class_names))
    processor = _read_json(source / "preprocessor_config.json") or _processor(info, record)
    return {
        "config.json": _json(config),
        "preprocessor_config.json": _json(processor),
        "model.safetensors": _serialize(state, ".safetensors"),
    }


def _config(state: Mapping[str, Tensor], info: CheckpointInfo, record: WeightRecord | None) -> dict[str, Any]:
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    values = {name: value for name, value in config_values(info, record=record).items() if name != "num_labels"}  # id2label says it
    return {
        "architectures": [MODEL_CLASSES[info.task]],
        "model_type": "mobilevitv2",
        "dtype": str(dtype).removeprefix("torch."),
        **values,
    }


def _labels(info: CheckpointInfo, class_names: Sequence[str] | None) -> dict[str, Any]:
    if info.task == "backbone":
        return {}
    names = [f"LABEL_{index}" for index in range(info.num_labels)] if class_names is None else list(class_names)
    if len(names) != info.num_labels:
        raise ConfigurationError(f"{len(names)} class names for {info.num_labels} classes; give one name for each class.")
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _processor(info: CheckpointInfo, record: WeightRecord | None) -> dict[str, Any]:
    resize, crop = DEFAULT_INPUTS[info.task] if record is None else (record.resize, record.crop)
    crop_size = {} if crop is None else {"crop_size": {"height": crop, "width": crop}}
    size = {"shortest_edge": resize} if isinstance(resize, int) else {"height": resize[0], "width": resize[1]}
    # No image_processor_type on purpose: it would tie the folder to one library's class. Without it AutoImageProcessor goes by the
    # model type, and finds transformers' class, or this package's once it is registered.
    return {
        "do_resize": True,
        "size": size,
        "resample": BICUBIC,
        "do_center_crop": crop is not None,
        **crop_size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
        "do_flip_channel_order": False,
    }


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        WeightsError: a file that holds no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is no valid JSON ({error}); repair it or remove it.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a JSON object; repair it or remove it.")
    return content


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
