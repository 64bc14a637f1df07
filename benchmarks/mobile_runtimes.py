"""ONNX Runtime, OpenVINO, ExecuTorch and LiteRT: our form, transformers' and timm's models through the same exporters, in one run.

    OMP_NUM_THREADS=2 python benchmarks/mobile_runtimes.py --files FOLDER --threads 2 --out mobile.json
    OMP_NUM_THREADS=2 python benchmarks/mobile_runtimes.py --files FOLDER --threads 2 --runtimes onnxruntime litert --models ours

Files that lie in FOLDER from a run before are used again: writing them takes minutes, and times want an idle machine.

"over theirs" is a row's time over that of transformers' model in the same runtime, "over ORT" over our own in ONNX Runtime. The
last line is the arithmetic limit: multiply-adds of the published model and of our merged form, at the rate of a matrix product of
1024 by 1024 in the same run.

transformers' model has our random weights, timm's has its own; time does not depend on them. Each row is guarded: a model that an
exporter refuses, or that answers wrongly in its runtime, stays a row and says so. A round times each row once: after a pause, in
which ONNX Runtime's threads stop spinning, two answers to get warm, then the median of five. So a busy machine slows all alike, and
no runtime pays for the one before it. `cpu` is the processor time of one answer.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevitv2.benchmarking.timing import PAUSE

Run = Callable[[], "np.ndarray[Any, Any]"]


@dataclass
class Row:
    runtime: str
    model: str
    refused: str = ""
    megabytes: float = 0.0
    difference: float = 0.0
    outside: dict[str, int] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        answer = self.model(image)
        return answer if isinstance(answer, Tensor) else answer.logits


class ChannelsLast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image.permute(0, 3, 1, 2))


def models(width: float, classes: int) -> dict[str, nn.Module]:
    import timm
    from transformers import MobileViTV2Config as TheirConfig
    from transformers import MobileViTV2ForImageClassification as Theirs

    from mobilevitv2.classification import MobileViTV2ForImageClassification
    from mobilevitv2.configuration import MobileViTV2Config

    torch.manual_seed(0)
    ours = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=classes)).eval()
    theirs = Theirs(TheirConfig(width_multiplier=width, num_labels=classes)).eval()
    theirs.load_state_dict(ours.state_dict())
    name = f"mobilevitv2_{round(width * 100):03d}"
    return {"ours": ours, "transformers": theirs, "timm": timm.create_model(name, num_classes=classes).eval()}


def our_program(model: Any, size: int, layout: str) -> Any:
    from mobilevitv2.export.program import build_program
    from mobilevitv2.runtime.metadata import Metadata, PictureContract, Port

    shape = (1, size, size, 3) if layout == "NHWC" else (1, 3, size, size)
    classes = model.config.num_labels
    metadata = Metadata(
        task="classify",
        labels=tuple(f"class {index}" for index in range(classes)),
        picture=PictureContract(height=size, width=size, resize=None),
        layout=layout,
        inputs=(Port(name="image", shape=shape, dtype="float32", meaning="picture"),),
        outputs=(Port(name="logits", shape=(1, classes), dtype="float32", meaning="scores"),),
        postprocessing="none",
        activation="softmax",
        precision="fp32",
        dynamic=(),
        source="random weights",
        licence="none",
        weights_sha256="",
        versions={},
    )
    return build_program(model, metadata, layout=layout)


# ---- files -----------------------------------------------------------------------------------------------------------------------


def write_onnx(name: str, model: nn.Module, image: Tensor, path: Path) -> dict[str, int]:
    if name != "ours":
        torch.onnx.export(Logits(model), (image,), path, dynamo=True, opset_version=18, verbose=False, external_data=False)
        return {}
    from mobilevitv2.export.formats import ONNX

    return dict(ONNX.write(our_program(model, image.shape[-1], "NCHW"), path).outside)


def write_openvino(name: str, model: nn.Module, image: Tensor, path: Path) -> dict[str, int]:
    """The peers' by way of their ONNX files, which OpenVINO reads."""
    if name != "ours":
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            write_onnx(name, model, image, Path(folder, "peer.onnx"))
            openvino.save_model(openvino.convert_model(Path(folder, "peer.onnx")), path, compress_to_fp16=False)
        return {}
    from mobilevitv2.export.formats import OPENVINO

    return dict(OPENVINO.write(our_program(model, image.shape[-1], "NCHW"), path).outside)


def write_executorch(name: str, model: nn.Module, image: Tensor, path: Path) -> dict[str, int]:
    from mobilevitv2.export.formats import EXECUTORCH

    if name == "ours":
        return dict(EXECUTORCH.write(our_program(model, image.shape[-1], "NCHW"), path).outside)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from mobilevitv2.export.executorch import _operators

    exported = torch.export.export(Logits(model), (image,), strict=False)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return dict(_operators(lowered.exported_program())[1])


def write_litert(name: str, model: nn.Module, image: Tensor, path: Path) -> dict[str, int]:
    from mobilevitv2.export.formats import LITERT

    if name == "ours":
        return dict(LITERT.write(our_program(model, image.shape[-1], "NHWC"), path).outside)
    import litert_torch

    from mobilevitv2.export.litert import _operators

    last = image.permute(0, 2, 3, 1).contiguous()
    litert_torch.convert(ChannelsLast(Logits(model)).eval(), sample_kwargs={"image": last}).export(str(path))
    return dict(_operators(path.read_bytes())[1])


WRITERS = {".onnx": write_onnx, ".xml": write_openvino, ".pte": write_executorch, ".tflite": write_litert}
RUNTIMES = {"onnxruntime": ".onnx", "openvino": ".xml", "openvino-bf16": ".xml", "executorch": ".pte", "litert": ".tflite"}


def reason(error: Exception) -> str:
    """In a line, without the place of the libraries."""
    text = re.sub(r"/\S*/site-packages/", "", str(error).strip().splitlines()[0])
    return f"{type(error).__name__}: {text[:160]}"


def written(name: str, model: nn.Module, image: Tensor, path: Path) -> dict[str, Any]:
    """What is known of a file, from a run before or after writing it; a refusal is kept too."""
    told = path.with_name(f"{path.name}.json")
    if told.is_file():
        return dict(json.loads(told.read_text()))
    found: dict[str, Any] = {}
    try:
        found["outside"] = WRITERS[path.suffix](name, model, image, path)
        files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
        found["megabytes"] = sum(each.stat().st_size for each in files) / 1e6
    except Exception as error:  # a refusal is a row
        found["refused"] = reason(error)
    told.write_text(json.dumps(found))
    return found


def opened(runtime: str, path: Path, image: Tensor, threads: int) -> Run:
    array = image.numpy()
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: array})[0]
    if runtime.startswith("openvino"):
        hint = "bf16" if runtime.endswith("bf16") else "f32"
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        request = openvino_core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda: np.array(request.infer([array], share_inputs=True)[0])
    from mobilevitv2.runtime.engines import open_engine

    engine = open_engine(path, threads=threads)
    given = np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if runtime == "litert" else array
    return lambda: next(iter(engine.run(given).values()))


@functools.cache
def openvino_core() -> Any:
    import openvino

    return openvino.Core()


WHOLE_OUTSIDE = ("onnxruntime", "openvino", "openvino-bf16")
"""Runtimes without a delegate that could leave operators out."""


def prepare(options: argparse.Namespace) -> tuple[list[Row], list[Run | None]]:
    rows: list[Row] = []
    runs: list[Run | None] = []
    options.files.mkdir(parents=True, exist_ok=True)
    image = torch.rand(1, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    for model_name, model in models(options.width, options.classes).items():
        if model_name not in options.models:
            continue
        with torch.no_grad():
            wanted = Logits(model)(image).numpy()
        for runtime in options.runtimes:
            path = options.files / f"{model_name}-{options.width}-{options.size}{RUNTIMES[runtime]}"
            row, run = Row(runtime, model_name, **written(model_name, model, image, path)), None
            try:
                if not row.refused:
                    run = opened(runtime, path, image, options.threads)
                    row.difference = float(np.abs(run() - wanted).max() / np.abs(wanted).max())
            except Exception as error:
                row.refused, run = reason(error), None
            rows.append(row)
            runs.append(run)
            print(f"prepared {runtime} {model_name} {row.refused}", flush=True)
    return rows, runs


def time_rows(rows: list[Row], runs: list[Run | None], rounds: int) -> None:
    for _ in range(rounds):
        for row, run in zip(rows, runs, strict=True):
            if run is None:
                continue
            time.sleep(PAUSE)
            for _ in range(2):
                run()
            walls, cpus = [], []
            for _ in range(5):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                walls.append(1e3 * (time.perf_counter() - wall))
                cpus.append(1e3 * (time.process_time() - cpu))
            row.milliseconds.append(statistics.median(walls))
            row.cpu.append(statistics.median(cpus))


def table(rows: list[Row]) -> str:
    heads = [
        "runtime",
        "model",
        "median ms (10-90 %)",
        "fastest",
        "over theirs",
        "over ORT",
        "cpu ms",
        "MB",
        "difference",
        "outside",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    timed = {(row.runtime, row.model): row for row in rows if row.milliseconds}
    for row in rows:
        if row.refused:
            lines.append(f"| {row.runtime} | {row.model} | refused: {row.refused} |" + " |" * (len(heads) - 3))
            continue
        low, high = np.quantile(row.milliseconds, (0.1, 0.9))
        outside = ", ".join(f"{count} {name}" for name, count in sorted(row.outside.items(), key=lambda item: -item[1])) or "none"
        cells = (
            row.runtime,
            row.model,
            f"{statistics.median(row.milliseconds):.1f} ({low:.1f}-{high:.1f})",
            f"{min(row.milliseconds):.1f}",
            ratio(row, timed.get((row.runtime, "transformers"))),
            ratio(row, timed.get(("onnxruntime", "ours"))),
            f"{min(row.cpu):.1f}",
            f"{row.megabytes:.1f}",
            f"{row.difference:.1e}",
            "" if row.runtime in WHOLE_OUTSIDE else outside,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(row: Row, base: Row | None) -> str:
    """Of the times of each round, and of the fastest."""
    if base is None:
        return ""
    each = [mine / other for mine, other in zip(row.milliseconds, base.milliseconds, strict=True)]
    return f"{statistics.median(each):.2f} (fastest {min(row.milliseconds) / min(base.milliseconds):.2f})"


def operations(width: float, size: int) -> tuple[int, int]:
    """Multiply-adds of the published formulation, and of ours with merged projections."""
    from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification
    from mobilevitv2.complexity import count_operations
    from mobilevitv2.inference.fold import fold
    from mobilevitv2.inference.merging import merged_units

    model = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width)).eval()
    counted = count_operations(model, height=size, width=size)
    stages = list(fold(model).mobilevitv2.encoder.layer)
    saved = 0
    for index, unit in merged_units(stages).items():
        hidden, out = unit.convolution.in_channels, unit.convolution.out_channels
        between = model.config.stage_channels[int(index) + 1]
        pixels = (size // model.config.stage_strides[int(index) + 1]) ** 2
        saved += pixels * (hidden * between + between * out - hidden * out)
    last = model.config.attn_dims[-1] * model.config.stage_channels[-1]
    return counted.published, counted.executed - saved - last * ((size // 32) ** 2 - 1)


def limit(row: Row, width: float, size: int) -> str:
    rate = 2 * 1024**3 / min(row.milliseconds) / 1e6
    theirs, ours = (2e3 * each / rate / 1e9 for each in operations(width, size))
    return (
        f"a float32 matrix product ran at {rate:.0f} GFLOP/s: the published multiply-adds take {theirs:.1f} ms at that rate, "
        f"those of our merged form {ours:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=Path, required=True, help="folder of the exported files, written where they are missing")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--models", nargs="+", default=["ours", "transformers", "timm"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    rows, runs = prepare(options)
    square = torch.rand(1024, 1024)
    product = Row("torch", "matrix product of 1024")
    rows.append(product)
    runs.append(lambda: (square @ square).numpy())
    time_rows(rows, runs, options.rounds)
    print(table([row for row in rows if row is not product]))
    print(limit(product, options.width, options.size))
    if options.out is not None:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
