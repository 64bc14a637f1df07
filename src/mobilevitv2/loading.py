"""Model classes meet weights: `from_pretrained` of a single file or a record's name, and strictness about the trunk."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.errors import WeightsError, WeightsMismatch, WrongTaskError
from mobilevitv2.weights import (
    Architecture,
    CheckpointInfo,
    WeightRecord,
    compare,
    config_values,
    get_record,
    identify,
    read_state_dict,
    to_ours,
    wrong_task_message,
)
from mobilevitv2.weights.class_names import class_names, label_options

if TYPE_CHECKING:
    from torch import Tensor

    from mobilevitv2.backbone import MobileViTV2PreTrainedModel

logger = logging.getLogger(__name__)

WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
TRUNK_PREFIX = "mobilevitv2."
DENSE_HEADS = ("segmentation_head", "detection_head", "extra_layers")
TRUNK_PARTS = ("conv_stem.", "encoder.")
# Options of the trunk; a file of another task says nothing about the rest.
TRUNK_OPTIONS = (
    "num_channels",
    "width_multiplier",
    "n_attn_blocks",
    "base_attn_unit_dims",
    "ffn_multiplier",
    "expand_ratio",
    "conv_kernel_size",
)


def find_record(source: str | os.PathLike[str]) -> WeightRecord | None:
    """The record of that name; None for a path that exists and for any other text, which may be a hub id.

    Raises:
        WeightsError: a weights file that is not there.
        ConfigurationError: what looks like a record's name and is none; the message has the nearest ones.
    """
    name = os.fspath(source)
    if os.path.exists(name):
        return None
    if name.endswith(WEIGHTS_SUFFIXES):
        raise WeightsError(f"{name}: there is no such file; check the path (the folder now is {Path.cwd()}).")
    # A hub id has its owner's name and a slash (timm's repositories hold timm's configuration, so their record serves instead);
    # whatever else speaks of MobileViTV2 was meant for a record.
    owner = name.rpartition("/")[0]
    return get_record(name) if "mobilevitv2" in name.lower() and owner in ("", "timm") else None


def record_values(record: WeightRecord) -> dict[str, Any]:
    """Keyword arguments of MobileViTV2Config that a record implies, without its file."""
    values: dict[str, Any] = {
        "width_multiplier": record.width,
        "num_labels": record.num_labels,
        "image_size": record.input_size,
        "output_stride": record.output_stride,
    }
    values.update(label_options(class_names(record.task, record.dataset)))
    if record.task == "classify":
        return {**values, "classifier_dropout_prob": 0.0}  # the official classifiers have no dropout
    if record.task == "segment":
        values.update(segmentation_head=record.head, use_auxiliary_head=True)
    if record.atrous_rates is not None:
        values["atrous_rates"] = record.atrous_rates
    return values


def with_options(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options over values; another number of classes, or other names, take the place of all that the values say of them."""
    said = ("num_labels", "id2label", "label2id")
    replaced = said if any(options.get(name) is not None for name in said) else ()
    return {**{name: value for name, value in values.items() if name not in replaced}, **options}


def check_task(task: str, record: WeightRecord) -> None:
    """Refuse a record of another task before its file is fetched.

    Raises:
        WrongTaskError: the message names the class to use.
    """
    if not _fits(task, record.task):
        architecture = Architecture(task=record.task, width=record.width, head=record.head, num_labels=record.num_labels)
        raise WrongTaskError(f"{record.name}: {wrong_task_message(architecture, task)}")


def load_file(
    cls: type[MobileViTV2PreTrainedModel], path: Path, *model_args: Any, record: WeightRecord | None = None, **kwargs: Any
) -> Any:
    """A model of `cls` from one weights file of any known format; strict, except that a new task gets a new head.

    Args:
        cls: the class to build.
        path: the file.
        model_args: passed on to the model's `__init__`.
        record: what is known of the file beyond its tensors.
        kwargs: what transformers' `from_pretrained` takes.

    Raises:
        UnknownWeightsFormat, WrongTaskError, WeightsMismatch: see `MobileViTV2PreTrainedModel.from_pretrained`.
    """
    state = read_state_dict(path)
    info = identify(state)
    if not _fits(cls.task, info.task):
        raise WrongTaskError(f"{path}: {wrong_task_message(info, cls.task)}")
    config, kwargs = _configuration(cls.task, info, record, kwargs)
    tensors = _rename_trunk(to_ours(state, info), bare=cls.task == "backbone")
    if info.task != cls.task:
        tensors = {name: tensor for name, tensor in tensors.items() if is_trunk(name)}
    _check_strictly(cls, config, tensors, path, *model_args, resize=bool(kwargs.get("ignore_mismatched_sizes")))
    return cls.from_pretrained(None, *model_args, config=config, state_dict=tensors, **kwargs)


def check_folder(info: Mapping[str, Any], source: str | os.PathLike[str], *, resize: bool) -> None:
    """Refuse a folder that leaves parts of the trunk at random, or, without `resize`, any tensor of another shape.

    Args:
        info: transformers' account of the loading.
        source: what was loaded, for the message.
        resize: whether the caller asked for tensors of another shape to start at random.

    Raises:
        WeightsMismatch: names the tensors.
        WrongTaskError: without `resize`, a segmenter's or detector's folder for another task.
    """
    lost, unused = set(info["missing_keys"]), set(info["unexpected_keys"])
    foreign = sorted({name.partition(".")[0] for name in unused} & set(DENSE_HEADS))
    if foreign and not resize and any(not is_trunk(name) for name in lost):
        raise WrongTaskError(
            f"{source} is a model of another task, with {' and '.join(foreign)}; its answers would come from a head at random. "
            "Load it with the class of its task, or pass ignore_mismatched_sizes=True to train a new head on its trunk."
        )
    misshapen = sorted(info["mismatched_keys"])
    if misshapen and not resize:
        told = "; ".join(f"{name}: {tuple(found)} in the file, {tuple(ours)} in the model" for name, found, ours in misshapen)
        raise WeightsMismatch(
            f"{source} has {len(misshapen)} tensors of another shape: {told}. Where a new number of classes is wanted, pass "
            "ignore_mismatched_sizes=True."
        )
    parts = sorted(name for name in lost if is_trunk(name))
    if parts:
        raise WeightsMismatch(
            f"{source} lacks {len(parts)} tensors of the trunk, which would be left at random: {', '.join(parts)}. "
            "Check that the folder holds the weights that belong to its config.json."
        )


def is_trunk(name: str) -> bool:
    """Whether a parameter belongs to the part that all tasks share."""
    return name.removeprefix(TRUNK_PREFIX).startswith(TRUNK_PARTS)


def _fits(wanted: str, found: str) -> bool:
    """Any file gives its trunk; a classifier's trunk is what the other tasks start from."""
    return wanted in (found, "backbone") or found in ("classify", "backbone")


def _configuration(
    task: str, info: CheckpointInfo, record: WeightRecord | None, kwargs: dict[str, Any]
) -> tuple[MobileViTV2Config, dict[str, Any]]:
    """The configuration that the file implies, with the caller's options over it; and the arguments that are no options."""
    if kwargs.get("config") is not None:
        return kwargs.pop("config"), kwargs
    values: Mapping[str, Any] = config_values(info, record=record)
    if info.task != task:
        values = {name: value for name, value in values.items() if name in TRUNK_OPTIONS}
    kwargs.pop("config", None)
    values = {name: value for name, value in with_options(values, kwargs).items() if name in values}
    config, unused = MobileViTV2Config.from_dict(values, return_unused_kwargs=True, **kwargs)
    return config, unused


def _rename_trunk(tensors: Mapping[str, Tensor], *, bare: bool) -> dict[str, Tensor]:
    """Trunk names with the prefix that task models have, or without, as the bare trunk has them (which drops the heads)."""
    if bare:
        return {name.removeprefix(TRUNK_PREFIX): tensor for name, tensor in tensors.items() if is_trunk(name)}
    return {TRUNK_PREFIX + name if name.startswith(TRUNK_PARTS) else name: tensor for name, tensor in tensors.items()}


def _check_strictly(
    cls: type[MobileViTV2PreTrainedModel],
    config: MobileViTV2Config,
    tensors: Mapping[str, Tensor],
    path: Path,
    *model_args: Any,
    resize: bool,
) -> None:
    """Compare names and shapes with a model that holds no memory. A head that the file does not have stays out of it."""
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in cls(config, *model_args).state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if not any(not is_trunk(name) for name in found):
        new = [name for name in expected if not is_trunk(name)]
        if new:
            logger.warning("%s has no head for this task: %d tensors start at random; train before use.", path, len(new))
        expected = {name: shape for name, shape in expected.items() if is_trunk(name)}
    if resize:
        expected = {name: shape if is_trunk(name) else found.get(name, shape) for name, shape in expected.items()}
    message = compare(expected, found)
    if message is not None:
        raise WeightsMismatch(f"{path} does not fit {cls.__name__}. {message}")
