"""What is to be measured, and what cannot be: answered before anything heavy is imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobilevitv2.errors import ConfigurationError
from mobilevitv2.runtime.engines import ENGINES as FILE_ENGINES
from mobilevitv2.runtime.engines import is_runtime_file

PEERS = {"transformers": ("classify", "segment"), "timm": ("classify",), "v1": ("classify",)}
"""Name -> tasks that there is a peer for."""
CALLED = {"v1": "transformers' MobileViT (version 1)"}
ENGINES = ("torch", *(name for name, _ in FILE_ENGINES.values()))
DTYPES = ("float32", "bfloat16", "float16")
TASKS = {"classify": "classifier", "segment": "segmenter", "detect": "detector"}
LARGEST_BATCH = 65536


@dataclass(frozen=True, kw_only=True)
class Request:
    """One benchmark.

    Attributes:
        models: names, folders, hub ids and weights files, and exported files; rows of all of them stand side by side.
        against: of `PEERS`, each with the weights of the models beside it, where it can take them.
        engines: of `ENGINES`; of none, torch for models, and for exported files the engine of their ending.
        device: for torch; the best there is where None, and the CPU where anything else than torch takes part.
        dtypes: of `DTYPES`; exported files have their own.
        batch_sizes: pictures at once; each gives a table of its own.
        size: (height, width) of the pictures; the first model's own where None.
        threads: of the CPU, for every engine; torch's own choice where None.
        compile: add rows with torch.compile.
        rounds: how often every row is timed; from the time that one round takes where None.
        task: where the models do not tell.
        random_weights: take the models' shapes alone: nothing is downloaded, and times are the same.
    """

    models: tuple[str, ...]
    against: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    device: str | None = None
    dtypes: tuple[str, ...] = ("float32",)
    batch_sizes: tuple[int, ...] = (1,)
    size: tuple[int, int] | None = None
    threads: int | None = None
    compile: bool = False
    rounds: int | None = None
    task: str | None = None
    random_weights: bool = False

    def __post_init__(self) -> None:
        _known("peer", self.against, tuple(PEERS))
        _known("engine", self.engines, ENGINES)
        _known("dtype", self.dtypes, DTYPES)
        if not self.models or not self.dtypes or not self.batch_sizes:
            raise ConfigurationError("a benchmark needs at least one model, one dtype and one batch size.")
        _check_twice(self.models)
        for name, value in (("threads", self.threads), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise ConfigurationError(f"{name}={value} times nothing; give at least 1, or leave it out.")
        for batch in self.batch_sizes:
            if not 1 <= batch <= LARGEST_BATCH:
                raise ConfigurationError(f"batch size {batch} is not possible; give 1 to {LARGEST_BATCH} pictures.")
        _check_size(self.size)
        self._check_combination()

    @property
    def files(self) -> tuple[str, ...]:
        """The exported files among the models."""
        return tuple(model for model in self.models if is_runtime_file(model))

    @property
    def networks(self) -> tuple[str, ...]:
        """The others, which PyTorch loads."""
        return tuple(model for model in self.models if not is_runtime_file(model))

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The engines other than torch."""
        return tuple(engine for engine in self.engines if engine != "torch")

    def label(self, model: str) -> str:
        """What the rows of one of the models are called: the last part of a path, or all of it where two share that part."""
        shared = [_short(each) for each in self.models].count(_short(model)) > 1
        return model if shared else _short(model)

    def _check_combination(self) -> None:
        if self.files and not self.networks:
            file, what = self.files[0], "--against" if self.against else "--compile" if self.compile else ""
            what = what or ("--engines torch" if "torch" in self.engines else "")
            if what:
                raise ConfigurationError(
                    f"{file} is an exported file, whose weights cannot be taken out for {what}; name the model it was made from "
                    f"beside it: `mobilevitv2 benchmark MODEL {file} ...`."
                )
        if self.device not in (None, "cpu") and (self.files or self.runtimes):
            who = ", ".join(self.runtimes) or self.files[0]
            raise ConfigurationError(f"{who} runs on the CPU; leave --device {self.device} out, or measure torch alone there.")

    def check_task(self, source: str, task: str) -> None:
        """Refuse a model of another task than the one asked for, or than a peer has a model of."""
        if task not in TASKS:
            raise ConfigurationError(
                f"{source} is of task {task!r}, which has no answer to time; give a {', '.join(TASKS.values())}."
            )
        if self.task is not None and task != self.task:
            raise ConfigurationError(f"--task {self.task}, but {source} is of task {task!r}; leave the task out.")
        for peer in self.against:
            if task not in PEERS[peer]:
                others = [name for name, tasks in PEERS.items() if task in tasks]
                remedy = f"take {', '.join(others)}" if others else f"no peer has one: leave --against {peer} out"
                raise ConfigurationError(
                    f"{CALLED.get(peer, peer)} has no MobileViT {TASKS[task]} to stand beside {source}; {remedy}."
                )


def _short(model: str) -> str:
    return (Path(model).name or model) if Path(model).exists() else model


def _check_twice(models: Sequence[str]) -> None:
    """Refuse a model under two spellings, ./model.onnx and model.onnx, or through a link."""
    seen: dict[str, str] = {}
    for model in models:
        place = os.path.realpath(model) if Path(model).exists() else model
        if place in seen:
            first = seen[place]
            again = "" if first == model else f", as {first} and as {model}"
            raise ConfigurationError(f"model {first} is named twice{again}, and its rows would carry one name; once is enough.")
        seen[place] = model


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            after = (
                " The name of a model stands before the options." if not near and (len(name) > 12 or is_runtime_file(name)) else ""
            )
            raise ConfigurationError(f"there is no {what} {name!r}; {hint}{after}")
    if len(set(given)) < len(given):
        raise ConfigurationError(
            f"{what} {next(name for name in given if given.count(name) > 1)!r} is named twice; once is enough."
        )


def _check_size(size: tuple[int, int] | None) -> None:
    for side in size or ():
        if not 32 <= side <= 8192:
            raise ConfigurationError(f"size {' x '.join(map(str, size or ()))} is not possible; a side is 32 to 8192 pixels.")
