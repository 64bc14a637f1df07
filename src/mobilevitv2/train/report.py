"""What a finished run leaves for people: weights with a card, curves, pictures of the scores."""

from __future__ import annotations

import io
import json
import platform
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mobilevitv2.train.callbacks import read_metrics
from mobilevitv2.train.card import model_card
from mobilevitv2.train.checkpoints import save_state
from mobilevitv2.train.trainer import worker_count
from mobilevitv2.weights.writing import write_whole

if TYPE_CHECKING:
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.train.run import TrainingResult
    from mobilevitv2.train.task import Opened, TrainingTask


def write_report(
    result: TrainingResult,
    network: nn.Module,
    processor: MobileViTV2ImageProcessor,
    *,
    task: TrainingTask[Any],
    data: Opened,
    command: str,
) -> None:
    """Fill the run's folder: model/ (weights, config, processor, card), result.json, curves.png, and the task's pictures.

    The network is measured as it is shipped, through its processor, on the validation and the test pictures; `result.metrics`
    become those of the last of them.
    """
    assert result.best is not None
    save_network(network, processor, result.best)
    splits = [split for split in (data.validation, data.test) if split is not None]
    measured = [task.measure(network, split, processor=processor, workers=worker_count(task.recipe)) for split in splits]
    if measured:
        task.draw(measured[-1], splits[-1], result.output)
        result.metrics = task.in_percent(measured[-1])
    summary = _summary(result, network, task, measured, command)
    write_whole(result.output / "result.json", (json.dumps(summary, indent=1) + "\n").encode())
    draw_curves(result.output / "metrics.jsonl", result.output / "curves.png", task=task, chosen_step=result.chosen_step)
    write_whole(result.best / "README.md", model_card(result, summary, data, measured, task).encode())


def save_network(network: nn.Module, processor: MobileViTV2ImageProcessor, folder: Path) -> None:
    """A folder that `from_pretrained` loads; for a foreign module its state dict alone."""
    save: Any = getattr(network, "save_pretrained", None)
    if save is not None:
        save(folder)
    else:
        save_state(network, folder / "model.safetensors", about={"format": "pt"})
    processor.save_pretrained(folder)


def _summary(
    result: TrainingResult, network: nn.Module, task: TrainingTask[Any], measured: list[Any], command: str
) -> dict[str, Any]:
    return {
        "task": task.name,
        "metrics": result.metrics,
        "split": measured[-1].split if measured else None,
        **(task.summary(measured[-1]) if measured else {}),
        "per_split": {one.split: task.in_percent(one) for one in measured},
        "chosen_step": result.chosen_step,
        "seconds": round(result.seconds, 1),
        "steps": result.steps,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device": device_name(),
        "date": date.today().isoformat(),
        "command": command,
        "recipe": task.recipe.to_dict(),
    }


def draw_curves(metrics: Path, picture: Path, *, task: TrainingTask[Any], chosen_step: int | None = None) -> None:
    """Losses, scores and learning rate over the epochs, from metrics.jsonl; a line marks where the weights were chosen."""
    from matplotlib.figure import Figure  # without pyplot: no window, no state left behind

    lines = read_metrics(metrics)
    titles = {**task.curves, "learning_rate": "learning rate"}
    curves = {key: [(line["epoch"], line[key]) for line in lines if key in line and "epoch" in line] for key in titles}
    keys = [key for key in titles if curves[key]]
    chosen = next((line["epoch"] for line in lines if f"eval_{task.metric}" in line and line["step"] == chosen_step), None)
    rows = -(-len(keys) // 2) or 1
    figure = Figure(figsize=(10, 3.3 * rows), layout="constrained")
    for axis, key in zip(figure.subplots(rows, 2, squeeze=False).flat, [*keys, None, None], strict=False):
        if key is None:
            axis.set_axis_off()
            continue
        _draw(axis, curves[key], titles[key], chosen if key.startswith("eval") else None)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    write_whole(picture, content.getvalue())


def _draw(axis: Any, points: list[tuple[float, float]], title: str, chosen: float | None) -> None:
    epochs, values = [x for x, _ in points], [y for _, y in points]
    axis.plot(epochs, values, color="tab:blue", linewidth=1.6, marker="o" if len(points) < 40 else None, markersize=3.5)
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel("epoch")
    axis.set_xlim(0, max(epochs) * 1.02)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if title == "learning rate":
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    if chosen is not None:
        value = values[min(range(len(epochs)), key=lambda place: abs(epochs[place] - chosen))]
        axis.axvline(chosen, color="tab:orange", linestyle="--", linewidth=1)
        axis.plot([chosen], [value], "o", color="tab:orange", markersize=6, label=f"chosen: epoch {chosen:g}, {value:.4g}")
        axis.legend(fontsize=8, frameon=False)


def device_name() -> str:
    """The device that trained, in words."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"a CPU ({platform.machine()})"
