"""The rows of a benchmark before they are timed: what each is called, and how it is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.benchmarking.files import FileRun, export_ours, export_peer, open_file
from mobilevitv2.benchmarking.report import Row
from mobilevitv2.benchmarking.request import Request
from mobilevitv2.runtime.engines import open_engine

if TYPE_CHECKING:
    from torch import Tensor

    from mobilevitv2.backbone import MobileViTV2PreTrainedModel
    from mobilevitv2.benchmarking.torch_forms import TorchForm, TorchRun
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.runtime.model import RuntimeModel

Array = np.ndarray[Any, Any]


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


class Candidates:
    """All rows of one batch size.

    Args:
        request: what is asked for.
        networks: of the request's networks.
        files: the request's files, opened, for what they say of themselves.
        batch: pictures at once.
        size: (height, width) of them.
        device: of torch.
        threads: of every engine.
        folder: for exported files, shared by all batch sizes.
    """

    def __init__(
        self,
        request: Request,
        networks: list[Network],
        files: dict[str, RuntimeModel],
        *,
        batch: int,
        size: tuple[int, int],
        device: str,
        threads: int,
        folder: Path,
    ) -> None:
        self.request, self.networks, self.files = request, networks, files
        self.batch, self.size, self.device, self.threads, self.folder = batch, size, device, threads, folder
        self._tensors: dict[tuple[str, str], Tensor] = {}

    def __iter__(self) -> Iterator[Candidate]:
        for engine in self.request.engines or ("torch",) if self.networks else ():
            for dtype in self.request.dtypes:
                for network in self.networks:
                    make = self._with_torch if engine == "torch" else self._with_runtime
                    yield from make(
                        network, Row(model=network.label, form="exported", engine=engine, dtype=dtype, batch=self.batch)
                    )
        for name in self.files:
            yield from self._of_file(name)

    def tensor(self, network: Network, device: str | None = None) -> Tensor:
        """Pictures as the network takes them: (batch, 3, height, width), float32."""
        import torch

        from mobilevitv2.export.metadata import picture_contract
        from mobilevitv2.runtime.preprocessing import as_input

        key = (network.label, device or self.device)
        if key not in self._tensors:
            contract = picture_contract(network.model, network.processor, size=self.size, inside=False)
            self._tensors[key] = torch.from_numpy(as_input(pictures(self.batch, *self.size), contract, "NCHW")).to(key[1])
        return self._tensors[key]

    def _with_torch(self, network: Network, row: Row) -> Iterator[Candidate]:
        import torch

        from mobilevitv2.benchmarking.peers import build_peer
        from mobilevitv2.benchmarking.torch_forms import TorchRun, our_forms, peer_forms

        kind = getattr(torch, row.dtype)
        options = {"device": torch.device(self.device), "dtype": kind, "compiled": self.request.compile}

        def built(form: TorchForm) -> Callable[[], TorchRun]:
            return lambda: TorchRun(form, self.tensor(network), dtype=kind)

        for form in our_forms(network.model, **options):
            yield Candidate(replace(row, form=form.name), built(form), network.weights)
        for peer in self.request.against:
            label, same = self._label(peer, network)
            for form in peer_forms(partial(build_peer, peer, network.model), **options):
                yield Candidate(
                    replace(row, model=label, form=form.name, peer=peer), built(form), network.weights if same else None
                )

    def _with_runtime(self, network: Network, row: Row) -> Iterator[Candidate]:
        yield Candidate(row, partial(self._our_file, network, row), network.weights)
        for peer in self.request.against:
            label, same = self._label(peer, network)
            theirs = replace(row, model=label, peer=peer)
            yield Candidate(theirs, partial(self._peer_file, network, theirs), network.weights if same else None)

    def _our_file(self, network: Network, row: Row) -> FileRun:
        name = f"{self.networks.index(network)}-{row.dtype}"
        path = export_ours(
            network.model, network.processor, self.folder, engine=row.engine, dtype=row.dtype, size=self.size, name=name
        )
        return open_file(path, pictures(self.batch, *self.size), engine="auto", threads=self.threads)

    def _peer_file(self, network: Network, row: Row) -> FileRun:
        from mobilevitv2.benchmarking.peers import build_peer

        assert row.peer is not None
        place = self.folder / f"{self.networks.index(network)}-{row.peer}-{row.dtype}-{self.batch}"
        model, pixels = build_peer(row.peer, network.model), self.tensor(network, "cpu")
        path, inputs = export_peer(model, pixels, place, engine=row.engine, dtype=row.dtype)
        return FileRun(open_engine(path, threads=self.threads), inputs, names=("logits",))

    def _of_file(self, name: str) -> Iterator[Candidate]:
        model = self.files[name]
        for engine in self.request.runtimes or (model.engine.name,):

            def build(engine: str = engine) -> FileRun:
                return open_file(Path(name), pictures(self.batch, *self.size), engine=engine, threads=self.threads)

            row = Row(model=self.request.label(name), form="file", engine=engine, dtype=model.metadata.precision, batch=self.batch)
            yield Candidate(row, build, model.metadata.weights_sha256 or None)

    def _label(self, peer: str, network: Network) -> tuple[str, bool]:
        """What a peer's rows are called, and whether it has the weights of ours."""
        from mobilevitv2.benchmarking.peers import v1_size

        label = f"MobileViT-{v1_size(network.model.config.width_multiplier)} (v1)" if peer == "v1" else peer
        beside = f" beside {network.label}" if len(self.networks) > 1 else ""
        return label + beside, peer != "v1"


def load_network(source: str, request: Request) -> Network:
    """A model as the request wants it. Raises what loading raises."""
    from mobilevitv2.contract import load_model, load_processor, resolve
    from mobilevitv2.export.metadata import weights_sha256

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
    return Network(request.label(source), model.eval(), processor, weights_sha256(model))


def pictures(batch: int, height: int, width: int) -> Array:
    """The same noise each time: uint8 (batch, height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
