"""The model card: what the weights are, on what they were trained, how good they are, where they end."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.train.run import TrainingResult
    from mobilevitv2.train.task import CardText, Opened, TrainingTask

_SHOWN_CLASSES = 20


def model_card(result: TrainingResult, summary: dict[str, Any], data: Opened, measured: list[Any], task: TrainingTask[Any]) -> str:
    """The README.md of the weights.

    Args:
        result: the run.
        summary: what result.json holds.
        data: the pictures, without unreadable ones.
        measured: evaluations of these weights; the last one is what the card is judged by.
        task: says what the scores and limits are.
    """
    text = task.card(measured)
    sections = [
        _head(result, summary, text),
        _data(data),
        _licence(data, summary["command"]),
        _recipe(result, summary, measured),
        f"## Input\n\n{text.input}: what `preprocessor_config.json` says.",
        _results(result, measured, task, text),
        f"## Limits\n\n{text.limits}",
    ]
    return "\n\n".join(sections) + "\n"


def _head(result: TrainingResult, summary: dict[str, Any], text: CardText) -> str:
    return f"""---
library_name: mobilevitv2
pipeline_tag: {text.pipeline_tag}
tags:
- mobilevitv2
- {text.pipeline_tag}
---

# {text.title}

{summary["parameters"]:,} parameters, trained on {summary["date"]} with [mobilevitv2](https://pypi.org/project/mobilevitv2/) on \
{summary["device"]}: {result.steps:,} steps in {result.seconds / 60:.1f} minutes."""


def _data(data: Opened) -> str:
    names = ", ".join(data.classes[:_SHOWN_CLASSES])
    more = f", ... ({len(data.classes)} in all)" if len(data.classes) > _SHOWN_CLASSES else ""
    counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    groups = sorted(set(getattr(data.train, "groups", None) or ()))
    origins = f"\n\nOrigins of the training pictures: {', '.join(groups[:50])}." if groups else ""
    return f"## Data\n\n{Path(data.source).name}: {counts} pictures of {len(data.classes)} classes: {names}{more}.{origins}"


def _licence(data: Opened, command: str) -> str:
    text = (
        f"## Licence\n\nThe data's licence: {data_licence(data.source)}. What the pictures' licences allow is what these weights "
        "may be used for."
    )
    start = _start(command)
    if start == "scratch":
        return text + " Training began from random weights."
    known = start_licence(start)
    told = f"under {known}" if known else "whose own licence holds too"
    return text + f" Training began from `{start}`, {told}."


def _start(command: str) -> str:
    words = shlex.split(command)
    return words[words.index("--model") + 1]


def start_licence(name: str) -> str | None:
    """The licence of the released weights by that name, or None."""
    from mobilevitv2.weights.records import get_record

    try:
        return get_record(name).licence
    except ConfigurationError:
        return None


def data_licence(source: str) -> str:
    """What a data folder says of its licence: the `license` entry of its README.md, or the name of its licence file."""
    folder = Path(source) if os.path.isdir(source) else Path(source).parent
    readme = folder / "README.md"
    if readme.is_file():
        found = re.search(r"^licen[sc]e:[ \t]*(\S.*)$", readme.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)
        if found:
            return found.group(1).strip()
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name.lower().startswith(("licence", "license")):
                return f"see their file {path.name}"
    return "not stated"


def _recipe(result: TrainingResult, summary: dict[str, Any], measured: list[Any]) -> str:
    recipe = summary["recipe"]
    text = (
        f"## Recipe\n\n    {summary['command']}\n\n"
        f"`{recipe['name'] or 'own'}`: {recipe['epochs']} epochs of {_size(recipe['image_size'])} px, batch "
        f"{recipe['batch_size']}, {recipe['optimizer']}; every number is in `result.json` and `recipe.yaml` of the run. The "
        "weights are the running average over the steps"
    )
    if result.chosen_step is not None:
        return text + f", as it stood after step {result.chosen_step:,}: the best evaluation on the validation pictures."
    watched = "; the test pictures were only watched, and nothing was chosen by them" if measured else ""
    return text + f" at the end of the run{watched}."


def _size(size: Any) -> str:
    return str(size) if isinstance(size, int) else " x ".join(map(str, size))


def _results(result: TrainingResult, measured: list[Any], task: TrainingTask[Any], text: CardText) -> str:
    if not measured:
        return "## Results\n\nNo pictures were held out, so nothing was measured."
    told = "## Results\n\nOn pictures that were not trained on:\n\n" + "\n".join(text.results)
    if result.chosen_step is not None:
        told += (
            f"\n\nThe weights were chosen by {task.metric_label} on the validation pictures, so that number is a little too good"
        )
        told += "; the test pictures played no part." if measured[-1].split == "test" else "."
    return told
