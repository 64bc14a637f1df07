"""Which engine answers: PyTorch, or a runtime that starts in a fraction of the time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mobilevitv2.errors import ConfigurationError, MobileViTV2Error
from mobilevitv2.runtime.engines import is_runtime_file

if TYPE_CHECKING:
    from mobilevitv2.runtime.model import RuntimeModel
    from mobilevitv2.runtime.task import RuntimeTask

ENGINES = ("auto", "torch", "onnxruntime", "openvino", "executorch", "litert")


def runtime_answers(
    model: str,
    *,
    engine: str = "auto",
    task: str | None = None,
    top_k: int = 5,
    threshold: float | None = None,
    classes: Iterable[str] | None = None,
    tile: int | None = None,
    device: str | None = None,
    attention: bool = False,
    callers: int = 1,
) -> RuntimeTask | None:
    """The task that answers without torch, or None where torch is to answer.

    Exported files always run in their runtime. A classifier inside the package, or in a folder, does too where a runtime is
    installed, unless a device, tiles or attention maps were asked for, which need torch. `callers` is as in `open_model`.

    Raises:
        ConfigurationError: an engine that cannot open the model, or options that need torch with an engine that is not it.
    """
    from mobilevitv2.runtime.task import RuntimeTask

    needs = {"--tile": tile is not None, "--attention": attention, "--device": device not in (None, "cpu")}
    asked = [name for name, given in needs.items() if given]
    if is_runtime_file(model):
        if engine == "torch":
            raise ConfigurationError(f"{model} is an exported file, which torch does not run; leave --engine out.")
        if asked:
            raise ConfigurationError(f"{model} is an exported file; {' and '.join(asked)} works on the model it was made from.")
        from mobilevitv2.runtime import open_model

        opened = open_model(model, engine=engine, callers=callers)
    else:
        found = None if engine == "torch" or (asked and engine == "auto") else _folder_model(model, engine, asked, callers)
        if found is None:
            return None
        opened = found
    return RuntimeTask(opened, task=task, top_k=top_k, threshold=threshold, classes=classes)


def _folder_model(model: str, engine: str, asked: list[str], callers: int) -> RuntimeModel | None:
    """The classifier inside the package of this name, or in this folder; None where "auto" leaves it to torch."""
    from mobilevitv2.runtime import embedded

    folder = _folder(model)
    possible = folder is not None and embedded.can_open(folder)
    if engine == "auto" and (not possible or embedded.available() is None):
        return None
    if asked:
        raise ConfigurationError(f"{' and '.join(asked)} needs --engine torch, not {engine}.")
    if folder is None or not possible or engine not in ("auto", *embedded.ENGINES):
        raise ConfigurationError(
            f"--engine {engine} runs classifiers inside the package or in folders, and exported files; export {model} first: "
            f"`mobilevitv2 export {model} model.onnx`."
        )
    return embedded.open_folder(folder, engine=engine, callers=callers, source=model)


def _folder(model: str) -> Path | None:
    from mobilevitv2.weights.records import get_record

    if Path(model).is_dir():
        return Path(model)
    try:
        return get_record(model).path
    except MobileViTV2Error:
        return None
