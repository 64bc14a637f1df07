"""A benchmark from the request to the report, a batch size at a time."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.benchmarking.environment import cores, describe_machine, peak_resident_megabytes
from mobilevitv2.benchmarking.files import FileRun, export_ours, export_peer, open_file
from mobilevitv2.benchmarking.report import Report, Row
from mobilevitv2.benchmarking.request import Request
from mobilevitv2.benchmarking.timing import Times, in_turn, times_faster
from mobilevitv2.errors import MobileViTV2Error
from mobilevitv2.runtime.engines import ENGINES, is_runtime_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.benchmarking.torch_forms import TorchForm, TorchRun
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor

Array = np.ndarray[Any, Any]
Answers = dict[str, Array]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Network:
    """A model that PyTorch loaded.

    Attributes:
        label: what its rows call it.
        model: plain, float32, on the CPU.
        processor: its input contract.
        weights: the sum over its tensors that exported files carry, too.
    """

    label: str
    model: MobileViTV2PreTrainedModel
    processor: MobileViTV2ImageProcessor
    weights: str


@dataclass(frozen=True)
class Candidate:
    """A row before it is built.

    Attributes:
        row: without figures.
        build: gives what runs it, and what the row should note.
        weights: of which model its answers are; None for those of nobody else.
    """

    row: Row
    build: Callable[[], TorchRun | FileRun]
    weights: str | None


class Benchmark:
    """What a request asks for, with everything loaded that all batch sizes share.

    Attributes:
        report: so far.
    """

    def __init__(self, request: Request, *, folder: Path, tell: Tell) -> None:
        self.request, self.folder, self.tell = request, folder, tell
        self._pixels: dict[tuple[str, str], Tensor] = {}
        self.device = self._device()
        self.networks = [_network(name, request) for name in request.networks]
        self.threads = self._threads()
        tasks = {each.label: each.model.task for each in self.networks}
        for name in request.files:
            model, _ = open_file(Path(name), self._any_size, engine="auto", threads=self.threads)
            tasks[name] = model.task
        first, self.task = next(iter(tasks.items()))
        for name, task in tasks.items():
            request.check_task(name, task)
            if task != self.task:
                from mobilevitv2.errors import ConfigurationError

                raise ConfigurationError(f"{name} is of task {task!r}, {first} of task {self.task!r}; time them apart.")
        self.size = request.size or self._natural_size()
        engines = {"torch"} if self.networks and "torch" in self._engines() else set()
        engines |= {ENGINES[Path(name).suffix.lower()][0] for name in request.files} | set(request.runtimes)
        others = {"transformers"} if self.networks else set()
        self.report = Report(
            models=request.models,
            task=self.task,
            size=self.size,
            machine=describe_machine(libraries={*engines, *others, *request.against}, threads=self.threads, device=self.device),
            random_weights=request.random_weights and bool(self.networks),
        )

    def measured(self) -> Iterator[Report]:
        """The report after each batch size."""
        for batch in self.request.batch_sizes:
            with self._searching():
                rows, base = self._batch(batch)
            self.report = self.report.added(tuple(rows), base, peak_resident_megabytes())
            yield self.report

    # ---- what all share ----------------------------------------------------------------------------------------------------------

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

    def _engines(self) -> tuple[str, ...]:
        return self.request.engines or ("torch",)

    def _natural_size(self) -> tuple[int, int]:
        if self.networks:
            from mobilevitv2.export.metadata import natural_size

            return natural_size(self.networks[0].model, self.networks[0].processor)
        model, _ = open_file(Path(self.request.files[0]), self._any_size, engine="auto", threads=self.threads)
        return model.metadata.picture.height, model.metadata.picture.width

    @staticmethod
    def _any_size(height: int, width: int) -> Array:
        return pictures(1, height, width)

    def _searching(self) -> AbstractContextManager[None]:
        """Inside, cuDNN looks for its fastest algorithms."""
        if not self.device.startswith("cuda"):
            return nullcontext()
        import torch

        from mobilevitv2.benchmarking.torch_forms import convolutions

        return convolutions(torch.device(self.device), benchmark=True)

    # ---- one batch size ----------------------------------------------------------------------------------------------------------

    def _batch(self, batch: int) -> tuple[list[Row], str | None]:
        candidates = list(self._candidates(batch))
        rows: list[Row] = []
        runs: dict[int, TorchRun | FileRun] = {}
        exact = self._exact(batch)
        for number, candidate in enumerate(candidates):
            row = candidate.row
            self.tell(f"batch {batch}: {number + 1} of {len(candidates)}: {row.title}")
            start = time.perf_counter()
            try:
                run = candidate.build()
                answers = run.answers(self.task)
            except Exception as error:  # one row must not cost the others
                rows.append(replace(row, failed=_reason(error)))
                continue
            runs[number] = run
            if candidate.weights is not None:
                row = _held_against(row, answers, exact.setdefault(candidate.weights, answers))
            note = "; ".join(part for part in (row.note, getattr(run, "note", "")) if part)
            rows.append(replace(row, ready=time.perf_counter() - start, megabytes=run.megabytes, note=note))

        def failed(number: int, error: Exception) -> None:
            rows[number] = replace(rows[number], failed=_reason(error))

        self._pixels.clear()
        self.tell(f"batch {batch}: timing {len(runs)} rows in turn")
        seconds = in_turn(runs, rounds=self.request.rounds, failed=failed)
        base = self._base(rows, seconds)
        for number, each in seconds.items():
            ratio = None if base is None else times_faster(seconds[base], each)
            rows[number] = replace(rows[number], times=Times.of(each), ratio=ratio)
        runs.clear()
        _freed(self.device)
        return rows, None if base is None else rows[base].title

    def _base(self, rows: list[Row], seconds: dict[int, list[float]]) -> int | None:
        """The first row of the first peer that has any; else the first row."""
        timed = [number for number in seconds if seconds[number]]
        for peer in self.request.against:
            theirs = [number for number in timed if rows[number].peer == peer]
            if theirs:
                return min(theirs)
        return min(timed, default=None)

    def _exact(self, batch: int) -> dict[str, Answers]:
        """For each model's weights the answers of the plain form in float32."""
        if not self.networks:
            return {}
        from mobilevitv2.benchmarking.torch_forms import exact_answers

        return {each.weights: exact_answers(each.model, self._tensor(each, batch)) for each in self.networks}

    def _tensor(self, network: Network, batch: int, device: str | None = None) -> Tensor:
        """Pictures as the network takes them: (batch, 3, height, width), float32."""
        import torch

        from mobilevitv2.export.metadata import picture_contract
        from mobilevitv2.runtime.preprocessing import as_input

        key = (network.label, device or self.device)
        if key not in self._pixels:  # kept for the batch size at hand
            contract = picture_contract(network.model, network.processor, size=self.size, inside=False)
            self._pixels[key] = torch.from_numpy(as_input(pictures(batch, *self.size), contract, "NCHW")).to(key[1])
        return self._pixels[key]

    # ---- rows --------------------------------------------------------------------------------------------------------------------

    def _candidates(self, batch: int) -> Iterator[Candidate]:
        for engine in self._engines() if self.networks else ():
            for dtype in self.request.dtypes:
                for network in self.networks:
                    make = self._torch_rows if engine == "torch" else self._runtime_rows
                    yield from make(network, engine, dtype, batch)
        for name in self.request.files:
            yield from self._file_rows(name, batch)

    def _torch_rows(self, network: Network, engine: str, dtype: str, batch: int) -> Iterator[Candidate]:
        import torch

        from mobilevitv2.benchmarking.torch_forms import TorchRun, our_forms, peer_forms

        device, kind = torch.device(self.device), getattr(torch, dtype)
        options = {"device": device, "dtype": kind, "compiled": self.request.compile}

        def built(form: TorchForm) -> Callable[[], TorchRun]:
            return lambda: TorchRun(form, self._tensor(network, batch), dtype=kind)

        for form in our_forms(network.model, **options):
            row = Row(model=network.label, form=form.name, engine=engine, dtype=dtype, batch=batch)
            yield Candidate(row, built(form), network.weights)
        for peer in self.request.against:
            for form in peer_forms(lambda peer=peer: self._peer(peer, network)[0], **options):  # type: ignore[misc]
                label, same = self._peer_label(peer, network)
                row = Row(model=label, form=form.name, engine=engine, dtype=dtype, batch=batch, peer=peer)
                yield Candidate(row, built(form), network.weights if same else None)

    def _runtime_rows(self, network: Network, engine: str, dtype: str, batch: int) -> Iterator[Candidate]:
        def ours() -> FileRun:
            path = export_ours(
                network.model,
                network.processor,
                self.folder,
                engine=engine,
                dtype=dtype,
                size=self.size,
                name=f"{self.networks.index(network)}-{dtype}",
            )
            return open_file(path, lambda *_: pictures(batch, *self.size), engine="auto", threads=self.threads)[1]

        row = Row(model=network.label, form="exported", engine=engine, dtype=dtype, batch=batch)
        yield Candidate(row, ours, network.weights)
        for peer in self.request.against:
            label, same = self._peer_label(peer, network)
            row = replace(row, model=label, peer=peer)
            yield Candidate(row, self._peer_file(peer, network, engine, dtype, batch), network.weights if same else None)

    def _peer_file(self, peer: str, network: Network, engine: str, dtype: str, batch: int) -> Callable[[], FileRun]:
        def build() -> FileRun:
            from mobilevitv2.runtime.engines import open_engine

            model, _ = self._peer(peer, network)
            place = self.folder / f"{self.networks.index(network)}-{peer}-{dtype}-{batch}"
            pixels = self._tensor(network, batch, "cpu")
            path, inputs = export_peer(model, pixels, place, engine=engine, dtype=dtype)
            return FileRun(open_engine(path, threads=self.threads), inputs, names=("logits",))

        return build

    def _file_rows(self, name: str, batch: int) -> Iterator[Candidate]:
        for engine in self.request.runtimes or ("auto",):
            model, _ = open_file(Path(name), self._any_size, engine="auto", threads=self.threads)
            own = engine if engine != "auto" else model.engine.name
            row = Row(model=Path(name).name, form="file", engine=own, dtype=model.metadata.precision, batch=batch)

            def build(engine: str = engine) -> FileRun:
                return open_file(Path(name), lambda *_: pictures(batch, *self.size), engine=engine, threads=self.threads)[1]

            yield Candidate(row, build, model.metadata.weights_sha256 or None)

    def _peer(self, peer: str, network: Network) -> tuple[nn.Module, str]:
        from mobilevitv2.benchmarking.peers import build_peer

        model, label, _ = build_peer(peer, network.model)
        return model, label

    def _peer_label(self, peer: str, network: Network) -> tuple[str, bool]:
        """What rows call it, and whether it has the weights of ours."""
        from mobilevitv2.benchmarking.peers import v1_size

        label = f"MobileViT-{v1_size(network.model.config.width_multiplier)} (v1)" if peer == "v1" else peer
        beside = f" beside {network.label}" if len(self.networks) > 1 else ""
        return label + beside, peer != "v1"


@contextmanager
def prepared(request: Request, *, tell: Tell) -> Iterator[Benchmark]:
    """A benchmark with its models loaded; its files and settings are gone afterwards.

    Args:
        request: what to measure.
        tell: told in one line what is done next.

    Raises:
        ConfigurationError: models of two tasks, a task that a peer has no model of, a device that there is not. And what loading
        raises.
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


def pictures(batch: int, height: int, width: int) -> Array:
    """The same noise each time: uint8 (batch, height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)


def _network(source: str, request: Request) -> Network:
    from mobilevitv2.contract import load_model, load_processor, resolve
    from mobilevitv2.export.metadata import weights_sha256

    label = Path(source).name if os.path.exists(source) else source
    if not request.random_weights:
        model, processor = load_model(source, task=request.task)
    else:
        import torch

        from mobilevitv2.auto import create, told_task
        from mobilevitv2.benchmarking.peers import settle

        place = resolve(source)
        torch.manual_seed(0)
        options: dict[str, Any] = {"use_auxiliary_head": False} if told_task(place) == "segment" else {}
        model = create(place, pretrained=False, **options)
        processor = load_processor(place, model.config, task=model.task)
        settle(model)
    request.check_task(source, model.task)
    return Network(label, model.eval(), processor, weights_sha256(model))


def _held_against(row: Row, answers: Answers, exact: Answers) -> Row:
    """With the largest difference over the answers that both give; of masks, which are class numbers, the share of equal pixels."""
    worst = None
    for name, found in answers.items():
        truth = exact.get(name)
        if truth is None or truth.shape != found.shape:
            continue
        if name == "mask":
            row = replace(row, note=f"{100 * np.mean(found == truth):.2f} % of the pixels have the plain model's class")
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


__all__ = ["Benchmark", "Candidate", "Network", "is_runtime_file", "pictures", "prepared"]
