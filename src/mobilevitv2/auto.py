"""One name, the right class: `create`, and our classes behind transformers' Auto classes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel

TASK_NAMES = ("classify", "segment", "detect", "backbone")
ARCHITECTURE_ENDINGS = {
    "ForImageClassification": "classify",
    "ForSemanticSegmentation": "segment",
    "ForObjectDetection": "detect",
    "Model": "backbone",
    "Backbone": "backbone",
}


def task_class(task: str) -> type[MobileViTV2PreTrainedModel]:
    """The model class of a task: "classify", "segment", "detect" or "backbone".

    Raises:
        ConfigurationError: a task that there is not.
    """
    from mobilevitv2.backbone import MobileViTV2Model
    from mobilevitv2.classification import MobileViTV2ForImageClassification
    from mobilevitv2.detection import MobileViTV2ForObjectDetection
    from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

    classes: dict[str, type[MobileViTV2PreTrainedModel]] = {
        "classify": MobileViTV2ForImageClassification,
        "segment": MobileViTV2ForSemanticSegmentation,
        "detect": MobileViTV2ForObjectDetection,
        "backbone": MobileViTV2Model,
    }
    if task not in classes:
        raise ConfigurationError(f"task={task!r} is unknown; use one of {', '.join(TASK_NAMES)}.")
    return classes[task]


def create(
    source: str | os.PathLike[str], *, task: str | None = None, pretrained: bool = True, **options: Any
) -> MobileViTV2PreTrainedModel:
    """A model by name, in evaluation mode.

    Args:
        source: what `from_pretrained` takes: a record's name (`list_records`), a folder, a hub id, or a weights file.
        task: "classify", "segment", "detect" or "backbone"; told from the source where it is not given.
        pretrained: False gives random weights in the same configuration.
        options: options of the configuration, such as `num_labels`, and arguments of `from_pretrained`, such as `dtype`.

    Raises:
        ConfigurationError: a task that there is not, or an option that gives no valid model.
        WeightsError: weights that cannot be used; see `MobileViTV2PreTrainedModel.from_pretrained`.
    """
    model_class = task_class(task or told_task(source))
    if pretrained:
        return model_class.from_pretrained(source, **options)
    model: MobileViTV2PreTrainedModel = model_class(_told_configuration(source, options)).eval()
    return model


def told_task(source: str | os.PathLike[str], *, otherwise: str | None = None) -> str:
    """The task that a source's record, weights or `config.json` tell.

    Args:
        source: as in `create`.
        otherwise: the task where `config.json` names no class of ours.

    Raises:
        ConfigurationError: a folder or hub id whose configuration is of another model, or, without `otherwise`, names no class of
        ours.
    """
    from mobilevitv2.loading import find_record
    from mobilevitv2.weights import identify, read_state_dict

    record = find_record(source)
    if record is not None:
        return record.task
    if os.path.isfile(source):
        return identify(read_state_dict(Path(source))).task
    from transformers import PreTrainedConfig

    if os.path.isdir(source) and not Path(source, "config.json").is_file():
        raise ConfigurationError(f"{source} is a folder without config.json, so no model; name its weights file if it holds one.")
    values, _ = PreTrainedConfig.get_config_dict(os.fspath(source))
    kind = values.get("model_type", "mobilevitv2" if "architectures" in values else None)
    if kind != "mobilevitv2":
        raise ConfigurationError(
            f"{source}: config.json is of {'an unnamed' if kind is None else f'a {kind!r}'} model, not of a MobileViTV2; where the "
            "weights are one all the same, as in timm's folders, name the weights file itself."
        )
    for architecture in values.get("architectures") or []:
        for ending, task in ARCHITECTURE_ENDINGS.items():
            if architecture.endswith(ending):
                return task
    if otherwise is not None:
        return otherwise
    raise ConfigurationError(
        f"{source}: config.json names no task (architectures={json.dumps(values.get('architectures'))}); pass task='classify'."
    )


def _told_configuration(source: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    from mobilevitv2.configuration import MobileViTV2Config
    from mobilevitv2.loading import find_record, record_values, with_options
    from mobilevitv2.weights import config_values, identify, read_state_dict

    record = find_record(source)
    if record is not None and record.path is None:
        return MobileViTV2Config(**with_options(record_values(record), options))
    place = source if record is None or record.path is None else record.path
    if os.path.isfile(place):
        return MobileViTV2Config(**with_options(config_values(identify(read_state_dict(Path(place)))), options))
    return MobileViTV2Config.from_pretrained(place, **options)


def register() -> None:
    """Put our classes behind transformers' AutoConfig, AutoModel*, AutoBackbone and AutoImageProcessor, and so its pipelines.

    From then on, in this process, transformers' own MobileViTV2 classes are no longer what the Auto classes give for the model type
    "mobilevitv2". Calling it again changes nothing.
    """
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForObjectDetection,
        AutoModelForSemanticSegmentation,
    )

    from mobilevitv2.backbone import MobileViTV2Backbone, MobileViTV2Model
    from mobilevitv2.classification import MobileViTV2ForImageClassification
    from mobilevitv2.configuration import MobileViTV2Config
    from mobilevitv2.detection import MobileViTV2ForObjectDetection
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation

    AutoConfig.register("mobilevitv2", MobileViTV2Config, exist_ok=True)
    for auto, ours in (
        (AutoModel, MobileViTV2Model),
        (AutoBackbone, MobileViTV2Backbone),
        (AutoModelForImageClassification, MobileViTV2ForImageClassification),
        (AutoModelForSemanticSegmentation, MobileViTV2ForSemanticSegmentation),
        (AutoModelForObjectDetection, MobileViTV2ForObjectDetection),
    ):
        auto.register(MobileViTV2Config, ours, exist_ok=True)
    # For both backends: where only one is given, transformers keeps its own class for the other.
    processors = {"torchvision": MobileViTV2ImageProcessor, "pil": MobileViTV2ImageProcessor}
    AutoImageProcessor.register(MobileViTV2Config, image_processor_classes=processors, exist_ok=True)
