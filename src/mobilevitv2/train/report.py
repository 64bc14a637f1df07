"""What a finished run leaves for people: weights with a card, curves, a confusion matrix."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mobilevitv2.evaluate.classification import ClassificationResult, evaluate_classification, save_confusion_matrix
from mobilevitv2.train.trainer import worker_count

if TYPE_CHECKING:
    from mobilevitv2.data.classification import ClassificationData, PictureSplit
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.train.classify import TrainingResult
    from mobilevitv2.train.recipe import ClassificationRecipe


def write_report(
    result: TrainingResult,
    network: nn.Module,
    processor: MobileViTV2ImageProcessor,
    *,
    recipe: ClassificationRecipe,
    data: ClassificationData,
    watched: PictureSplit | None,
) -> None:
    """Fill the run's folder: model/ (weights, config, processor, card), result.json, curves.png, confusion.png and .csv."""
    assert result.best is not None
    save_network(network, processor, result.best)
    evaluated = None
    if watched is not None:
        evaluated = evaluate_classification(network, watched, processor=processor, batch_size=64, workers=worker_count(recipe))
        for suffix in ("png", "csv"):
            save_confusion_matrix(evaluated, result.output / f"confusion.{suffix}")
        result.metrics.update(top1=100 * evaluated.top1, top5=100 * evaluated.top5, loss=evaluated.loss)
    summary = {
        "metrics": result.metrics,
        "per_group": None if evaluated is None else {group: 100 * share for group, share in (evaluated.per_group or {}).items()},
        "seconds": round(result.seconds, 1),
        "steps": result.steps,
        "device": device_name(),
        "date": date.today().isoformat(),
        "recipe": recipe.to_dict(),
    }
    (result.output / "result.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    draw_curves(result.output / "metrics.jsonl", result.output / "curves.png")
    (result.best / "README.md").write_text(model_card(result, summary, data, watched, evaluated), encoding="utf-8")


def save_network(network: nn.Module, processor: MobileViTV2ImageProcessor, folder: Path) -> None:
    """A folder that `from_pretrained` loads; for a foreign module its state dict alone."""
    if hasattr(network, "save_pretrained"):
        network.save_pretrained(folder)
    else:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in network.state_dict().items()}, folder / "model.safetensors")
    processor.save_pretrained(folder)


def draw_curves(metrics: Path, picture: Path) -> None:
    """Loss, learning rate and accuracy over the epochs, from metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    panels = [("loss", "training loss"), ("eval_loss", "loss on watched pictures"), ("eval_top1", "top-1, %"), ("learning_rate", "learning rate")]
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    for axis, (key, title) in zip(axes.flat, panels, strict=True):
        points = [(line["epoch"], line[key]) for line in lines if key in line and "epoch" in line]
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o" if len(points) < 30 else None, markersize=3)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)


def device_name() -> str:
    """The device that trained, in words."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def model_card(
    result: TrainingResult,
    summary: dict[str, Any],
    data: ClassificationData,
    watched: PictureSplit | None,
    evaluated: ClassificationResult | None,
) -> str:
    """The README.md of the weights: what they are, on what they were trained, how good they are, where they end."""
    recipe = summary["recipe"]
    classes = ", ".join(data.classes[:20]) + (f", ... ({len(data.classes)} in all)" if len(data.classes) > 20 else "")
    train = data.train
    lines = [
        "---",
        "library_name: mobilevitv2",
        "pipeline_tag: image-classification",
        "tags: [mobilevitv2, image-classification]",
        "---",
        "",
        "# Image classifier (MobileViTV2)",
        "",
        f"Trained on {summary['date']} with [mobilevitv2](https://pypi.org/project/mobilevitv2/) on {summary['device']} in "
        f"{result.seconds / 60:.0f} minutes ({result.steps} steps).",
        "",
        "## Data",
        "",
        f"{Path(data.source).name}: {0 if train is None else len(train)} training pictures of {len(data.classes)} classes: {classes}.",
        "The pictures' own licence governs what these weights may be used for.",
        "",
        "## Recipe",
        "",
        f"`{recipe['name']}`: {recipe['epochs']} epochs of {recipe['image_size']} px, batch {recipe['batch_size']}, {recipe['optimizer']}; all of it "
        "in `recipe.yaml` beside the run. The weights are the running average over the steps.",
        "",
        "## Input",
        "",
        f"RGB in 0..1, short side {recipe['eval_resize']} px ({recipe['interpolation']}), centre crop {recipe['eval_crop']} px: what "
        "`preprocessor_config.json` says.",
        "",
        "## Results",
        "",
    ]
    if evaluated is None or watched is None:
        lines.append("No pictures were held out, so nothing was measured.")
    else:
        lines += [
            f"On {evaluated.count} {watched.name} pictures that were not trained on:",
            "",
            "| pictures | top-1, % | top-5, % |",
            "| --- | --- | --- |",
            f"| all | {100 * evaluated.top1:.2f} | {100 * evaluated.top5:.2f} |",
            *(f"| {group} | {100 * share:.2f} | |" for group, share in (evaluated.per_group or {}).items()),
        ]
    lines += [
        "",
        "## Limits",
        "",
        "It knows the classes above and no others: any picture gets one of them as its answer. Pictures unlike the training data",
        "(other cameras, drawings, several objects) are answered worse than the table says.",
        "",
    ]
    return "\n".join(lines)
