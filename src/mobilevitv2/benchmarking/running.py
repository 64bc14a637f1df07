"""A benchmark from the request to the report, a batch size at a time."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mobilevitv2.benchmarking.candidates import Candidates, Network, load_network
from mobilevitv2.benchmarking.environment import cores, describe_machine, peak_resident_megabytes
from mobilevitv2.benchmarking.report import Report, Row
from mobilevitv2.benchmarking.request import Request
from mobilevitv2.benchmarking.timing import PAUSE, Times, in_turn, times_faster
from mobilevitv2.errors import ConfigurationError, MobileViTV2Error
from mobilevitv2.runtime import open_model
from mobilevitv2.runtime.engines import ENGINES
from mobilevitv2.text_table import counted

if TYPE_CHECKING:
    from mobilevitv2.benchmarking.files import FileRun
    from mobilevitv2.benchmarking.torch_forms import TorchRun

Array = np.ndarray[Any, Any]
Answers = dict[str, Array]
Tell = Callable[[str], None]
Opened = TypeVar("Opened")


class Benchmark:
    """What a request asks for, with everything loaded that all batch sizes share.

    Attributes:
        report: so far.
        unopened: of the models that could not be opened, why; they have a row without times in every table.
    """

    def __init__(self, request: Request, *, folder: Path, tell: Tell) -> None:
        self.request, self.folder, self.tell = request, folder, tell
        self.device = self._device()
        self.unopened: dict[str, Exception] = {}
        self.networks: list[Network] = list(self._opened(request.networks, lambda name: load_network(name, request)).values())
        self.threads = self._threads()
        self.files = self._opened(request.files, lambda name: open_model(name, threads=self.threads))
        if not self.networks and not self.files:
            raise next(iter(self.unopened.values()))
        self.task = self._task()
        self.size = request.size or self._natural_size()
        own = {"torch", "transformers"} if self.networks else set()
        engines = {model.engine.name for model in self.files.values()} | set(request.runtimes)
        self.report = Report(
            models=request.models,
            task=self.task,
            size=self.size,
            machine=describe_machine(libraries={*own, *engines, *request.against}, threads=self.threads, device=self.device),
            random_weights=request.random_weights and bool(self.networks),
        )

    def measured(self) -> Iterator[Report]:
        """The report after each batch size."""
        for batch in self.request.batch_sizes:
            rows, base = self._batch(batch)
            self.report = self.report.added(tuple(rows), base, peak_resident_megabytes())
            yield self.report

    # ---- what all batch sizes share ----------------------------------------------------------------------------------------------

    def _opened(self, names: Iterable[str], opener: Callable[[str], Opened]) -> dict[str, Opened]:
        """Those that can be opened, by name; a file that is damaged, or not there, does not cost the others."""
        found = {}
        for name in names:
            try:
                found[name] = opener(name)
            except Exception as error:  # loading raises what the libraries raise
                self.unopened[name] = error
                self.tell(f"{self.request.label(name)} fails: {_reason(error)}")
        return found

    def _device(self) -> str:
        request = self.request
        if not request.networks or request.files or request.runtimes:
            return "cpu"
        from mobilevitv2.devices import choose_device

        return str(choose_device(request.device))

    def _threads(self) -> int:
        if not self.networks:
            return self.request.threads or cores()
        import torch

        return self.request.threads or torch.get_num_threads()

    def _task(self) -> str:
        """The one of all models."""
        tasks = {each.label: each.model.task for each in self.networks} | {name: model.task for name, model in self.files.items()}
        first, shared = next(iter(tasks.items()))
        for name, task in tasks.items():
            self.request.check_task(name, task)
            if task != shared:
                raise ConfigurationError(f"{name} is of task {task!r}, {first} of task {shared!r}; time them apart.")
        return shared

    def _natural_size(self) -> tuple[int, int]:
        if self.networks:
            from mobilevitv2.export.metadata import natural_size

            return natural_size(self.networks[0].model, self.networks[0].processor)
        contract = next(iter(self.files.values())).metadata.picture
        return contract.height, contract.width

    # ---- one batch size ----------------------------------------------------------------------------------------------------------

    def _batch(self, batch: int) -> tuple[list[Row], str | None]:
        """The rows, and the title of the one that ratios refer to."""
        rows, runs = self._built(batch)

        def failed(number: int, error: Exception) -> None:
            rows[number] = self._failed(rows[number], error)

        self.tell(f"batch {batch}: timing {counted(len(runs), 'row')} in turn")
        seconds = in_turn(runs, rounds=self.request.rounds, failed=failed, pause=PAUSE if self.device == "cpu" else 0.0)
        base = self._base(rows, seconds)
        for number, each in seconds.items():
            ratio = None if base is None else times_faster(seconds[base], each)
            rows[number] = replace(rows[number], times=Times.of(each), ratio=ratio)
        runs.clear()
        _freed(self.device)
        return rows, None if base is None else rows[base].title

    def _built(self, batch: int) -> tuple[list[Row], dict[int, TorchRun | FileRun]]:
        """The rows without times, and by their places what runs those that could be built."""
        made = Candidates(
            self.request,
            self.networks,
            self.files,
            batch=batch,
            size=self.size,
            device=self.device,
            threads=self.threads,
            folder=self.folder,
        )
        candidates, exact = list(made), self._exact(made)
        rows: list[Row] = []
        runs: dict[int, TorchRun | FileRun] = {}
        for number, candidate in enumerate(candidates):
            row = candidate.row
            self.tell(f"batch {batch}: {number + 1} of {len(candidates)}: {row.title}")
            start = time.perf_counter()
            try:
                run = candidate.build()
                answers = run.answers(self.task)
            except Exception as error:  # one row must not cost the others
                rows.append(self._failed(row, error))
                continue
            runs[number] = run
            row = replace(row, ready=time.perf_counter() - start, megabytes=run.megabytes, note=run.note)
            weights = candidate.weights
            rows.append(row if weights is None else _held_against(row, answers, exact.setdefault(weights, answers)))
        rows += [self._row_of_unopened(name, batch) for name in self.unopened]
        return rows, runs

    def _failed(self, row: Row, error: Exception) -> Row:
        reason = _reason(error)
        self.tell(f"{row.title} fails: {reason}")
        return replace(row, failed=reason)

    def _row_of_unopened(self, name: str, batch: int) -> Row:
        is_file = name in self.request.files
        engine = ENGINES[Path(name).suffix.lower()][0] if is_file else ", ".join(self.request.engines) or "torch"
        return Row(
            model=self.request.label(name),
            form="file" if is_file else "model",
            engine=engine,
            dtype="unknown" if is_file else ", ".join(self.request.dtypes),
            batch=batch,
            failed=_reason(self.unopened[name]),
        )

    def _exact(self, made: Candidates) -> dict[str, Answers]:
        """For each model's weights the answers of the plain form in float32."""
        if not self.networks:
            return {}
        from mobilevitv2.benchmarking.torch_forms import exact_answers

        return {each.weights: exact_answers(each.model, made.tensor(each)) for each in self.networks}

    def _base(self, rows: list[Row], seconds: dict[int, list[float]]) -> int | None:
        """The first row of the first peer that has any; else the first row."""
        timed = [number for number in seconds if seconds[number]]
        for peer in self.request.against:
            theirs = [number for number in timed if rows[number].peer == peer]
            if theirs:
                return min(theirs)
        return min(timed, default=None)


@contextmanager
def prepared(request: Request, *, tell: Tell) -> Iterator[Benchmark]:
    """A benchmark with its models loaded; its files and settings are gone afterwards.

    Args:
        request: what to measure.
        tell: told in one line what is done next.

    Raises:
        ConfigurationError: models of two tasks, a task that a peer has no model of, a device that there is not. And what loading
        the first model raises, where none can be loaded.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mobilevitv2-benchmark-"))
        if request.networks:
            stack.enter_context(_torch_settings(request.threads))
        yield Benchmark(request, folder=Path(folder), tell=tell)


@contextmanager
def _torch_settings(threads: int | None) -> Iterator[None]:
    """The number of threads, for as long as it lasts."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _held_against(row: Row, answers: Answers, exact: Answers) -> Row:
    """With the largest difference over the answers that both give; of masks, which are class numbers, the share of equal pixels."""
    worst = None
    for name, found in answers.items():
        truth = exact.get(name)
        if truth is None or truth.shape != found.shape:
            continue
        if name == "mask":
            told = f"{100 * np.mean(found == truth):.2f} % of the pixels have the plain model's class"
            row = replace(row, note="; ".join(part for part in (row.note, told) if part))
            continue
        difference = float(np.abs(found.astype(np.float64) - truth).max() / max(float(np.abs(truth).max()), 1e-12))
        worst = difference if worst is None or not difference <= worst else worst
    return replace(row, difference=worst)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return str(error) if isinstance(error, MobileViTV2Error) else f"{type(error).__name__}: {lines[0][:200]}"


def _freed(device: str) -> None:
    gc.collect()
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()
