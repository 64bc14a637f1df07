"""The verbs on models as such: `models`, `info`, `convert`, `version`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mobilevitv2.cli.arguments import Argument
from mobilevitv2.cli.output import note, printable, say, say_json

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.weights.records import WeightRecord

JSON_HELP = "write JSON instead of a table"


def models(
    *,
    task: Annotated[Literal["classify", "segment", "detect"] | None, Argument("only those of this task")] = None,
    width: Annotated[float | None, Argument("only those of this width", metavar="W")] = None,
    json: Annotated[bool, Argument(JSON_HELP)] = False,
) -> int:
    """List the checkpoints that are known by name.

    Those with "in the package" need no network; the others are downloaded when they are first used.
    """
    from mobilevitv2.text_table import aligned
    from mobilevitv2.weights.records import list_records

    records = list_records(task=task, width=width)
    if json:
        say_json([record.to_dict() for record in records])
        return 0
    if not records:
        note("no checkpoint fits; `mobilevitv2 models` lists all")
        return 1
    head = ("name", "task", "pixels", "classes", "parameters", "GMACs", "score", "licence")
    say(aligned([head, *(_row(record) for record in records)], right={2, 3, 4, 5}))
    return 0


def _row(record: WeightRecord) -> tuple[str, ...]:
    return (
        record.name,
        record.task,
        str(record.input_size),
        str(record.num_labels),
        f"{record.parameters:,}",
        "" if record.gmacs is None else f"{record.gmacs:.3f}",
        _score(record),
        f"{record.licence}{' (in the package)' if record.bundled else ''}",
    )


def _score(record: WeightRecord) -> str:
    return "" if record.metric is None else f"{record.metric:.2f} % {record.metric_name}"


def info(
    model: Annotated[str, Argument("name (`mobilevitv2 models`), folder, weights file or hub id", metavar="MODEL")],
    *,
    json: Annotated[bool, Argument(JSON_HELP)] = False,
) -> int:
    """Tell what a model is: size, operations, input, feature maps, classes, licence.

    Weights of a known name are not downloaded for this. Operations are multiply-adds of convolutions and matrix products for one
    picture: "published" as the official formulation needs them, "executed" as this package does.
    """
    from mobilevitv2.cli.quiet import quiet_libraries

    quiet_libraries()
    facts = model_facts(model)
    if json:
        say_json(facts)
    else:
        say(_described(facts))
    return 0


def model_facts(source: str) -> dict[str, Any]:
    """What `info` tells, as JSON can hold it. The model is built without memory for its weights."""
    import torch

    from mobilevitv2.auto import TASK_NAMES, create, told_task
    from mobilevitv2.contract import load_processor, name_classes, reading, resolve
    from mobilevitv2.loading import find_record

    place = resolve(source)
    record = find_record(place)
    facts: dict[str, Any] = {"name": os.fspath(place)}
    if record is not None:
        facts |= {"width": record.width, "licence": record.licence, "dataset": record.dataset}
        facts |= {"metric_name": record.metric_name, "metric": record.metric, "parameters": record.parameters}
        facts["source"] = record.url or str(record.path)
    with reading(place):
        task = told_task(place)
        facts["task"] = task
        if task not in TASK_NAMES:  # no class builds it; the record or the names and shapes of the file say what is known
            return facts if record is not None else facts | _file_facts(place)
        options = {"use_auxiliary_head": False} if task == "segment" else {}  # it works in training only
        with torch.device("meta"):
            model = create(place, task=task, pretrained=False, **options)
        name_classes(model.config, place, task=task)
        return facts | _model_facts(model) | _input_facts(load_processor(place, model.config, task=task))


def _file_facts(source: str | os.PathLike[str]) -> dict[str, Any]:
    from mobilevitv2.weights import expected_shapes, identify, parameter_count, read_state_dict

    found = identify(read_state_dict(source))
    return {"width": found.width, "parameters": parameter_count(expected_shapes(found))}


def _model_facts(model: MobileViTV2PreTrainedModel) -> dict[str, Any]:
    from mobilevitv2.complexity import count_operations, count_parameters

    config, operations = model.config, count_operations(model)
    height, width = config.input_size
    stages = zip(config.stage_names, config.stage_channels, config.stage_strides, strict=True)
    labels = [str(name) for _, name in sorted(config.id2label.items())] if model.task != "backbone" else []
    return {
        "width": config.width_multiplier,
        "parameters": count_parameters(model),
        "operations": {"height": height, "width": width, "published": operations.published, "executed": operations.executed},
        "feature_maps": [{"name": name, "channels": channels, "stride": stride} for name, channels, stride in stages],
        "labels": labels,
    }


def _input_facts(processor: MobileViTV2ImageProcessor) -> dict[str, Any]:
    size = {name: side for name, side in dict(processor.size).items() if side} if processor.do_resize else None
    crop = {name: side for name, side in dict(processor.crop_size).items() if side} if processor.do_center_crop else None
    return {
        "input": {
            "channel_order": "BGR" if processor.do_flip_channel_order else "RGB",
            "resize": size,
            "crop": crop,
            "scale": processor.rescale_factor if processor.do_rescale else 1.0,
            "mean": list(processor.image_mean) if processor.do_normalize else None,
            "std": list(processor.image_std) if processor.do_normalize else None,
        }
    }


def _described(facts: dict[str, Any]) -> str:
    """The facts as lines of two columns."""
    rows = [("name", facts["name"]), ("task", facts["task"]), ("width", f"{facts['width']:g}" if "width" in facts else "")]
    if "parameters" in facts:
        rows.append(("parameters", f"{facts['parameters']:,}"))
    if "operations" in facts:
        counts = facts["operations"]
        rows.append(
            (
                "operations",
                f"{counts['published'] / 1e9:.3f} G multiply-adds published, {counts['executed'] / 1e9:.3f} G executed, "
                f"at {counts['width']} x {counts['height']}",
            )
        )
    if "input" in facts:
        rows.append(("input", _described_input(facts["input"])))
        rows += [
            ("feature maps" if index == 0 else "", f"{each['name']:<7} {each['channels']:>5} channels, stride {each['stride']}")
            for index, each in enumerate(facts["feature_maps"])
        ]
        if facts["labels"]:
            some = ", ".join(printable(label) for label in facts["labels"][:5])
            rows.append(("labels", f"{len(facts['labels'])}: {some}{', ...' if len(facts['labels']) > 5 else ''}"))
    if facts.get("metric") is not None:
        rows.append(("score", f"{facts['metric']:.2f} % {facts['metric_name']}"))
    rows += [(name, str(facts[name])) for name in ("dataset", "licence", "source") if name in facts]
    return "\n".join(f"{name:<13} {value}" for name, value in rows)


def _described_input(contract: dict[str, Any]) -> str:
    """The input contract in words."""
    parts = [contract["channel_order"]]
    if contract["resize"] is not None:
        resize = contract["resize"]
        parts.append(
            f"short side to {resize['shortest_edge']}" if "shortest_edge" in resize else f"{resize['width']} x {resize['height']}"
        )
    if contract["crop"] is not None:
        parts.append(f"centre {contract['crop']['width']} x {contract['crop']['height']}")
    parts.append(f"times {contract['scale']:.6g}" if abs(contract["scale"] * 255 - 1) > 1e-6 else "values 0..1")
    parts.append("no mean or deviation" if contract["mean"] is None else f"mean {contract['mean']}, deviation {contract['std']}")
    return ", ".join(parts)


def convert(
    src: Annotated[str, Argument("weights file, folder, or name (`mobilevitv2 models`)", metavar="SRC")],
    dst: Annotated[str, Argument("folder for hf, else a file that ends in .safetensors or .pt", metavar="DST")],
    *,
    to: Annotated[Literal["hf", "timm", "official"], Argument("format to write")],
    overwrite: Annotated[bool, Argument("replace what is there")] = False,
) -> int:
    """Write weights in another format, losslessly.

    hf is transformers' folder, timm its file, official the one of Apple's own code.
    """
    from mobilevitv2.weights import convert_file

    say(f"{convert_file(src, dst, to=to, overwrite=overwrite)}")
    return 0


def version() -> int:
    """Print the versions of this package and of what it runs on."""
    import platform
    from importlib.metadata import version as installed

    import mobilevitv2

    parts = [f"{name} {installed(name)}" for name in ("torch", "torchvision", "transformers")]
    say(f"mobilevitv2 {mobilevitv2.__version__} (Python {platform.python_version()}, {', '.join(parts)})")
    return 0
