"""Size, accuracy, time and delegated share of exported files: every format and precision of the package's models and other widths.

    python benchmarks/export_table.py files    --data DATA --widths RUNS --output TABLE
    python benchmarks/export_table.py accuracy --data DATA --widths RUNS --output TABLE
    python benchmarks/export_table.py time     --output TABLE

DATA holds `objects` (classes) and `pets` (masks and boxes); RUNS holds a model folder for each further model, such as widths from
train_widths.sh (OUTPUT/half), or 0.75-aware and 0.75-hardswish from quantisation-aware training. Each pass adds to TABLE/table.json
row by row and writes TABLE/table.md anew. What is there is not measured again, so that a pass can be stopped and started, and times
be taken on another day than accuracies; the files stay in TABLE/files.

Classifiers answer the first pictures of an order of the test split that was drawn once: all of it for float32 and int8 of width
0.75, 1,500 for its weights-only files, 1,000 (300 for width 2.0) for other widths. Other float files answer the first 200: what
counts there is whether they answer as float32 does. Segmenter and detector answer the whole validation split.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from export_samples import answers, read_sample

from mobilevitv2.errors import MobileViTV2Error
from mobilevitv2.export import export
from mobilevitv2.export.exporting import QUANTISED
from mobilevitv2.export.formats import FORMATS, get_format
from mobilevitv2.runtime.engines import open_engine
from mobilevitv2.runtime.metadata import Metadata
from mobilevitv2.weights.writing import write_whole

EMBEDDED = {
    "0.75": "mobilevitv2-0.75-objects112",
    "segmenter": "deeplabv3-mobilevitv2-0.75-pets",
    "detector": "ssdlite-mobilevitv2-0.75-pet-heads",
}
TITLES = {
    "0.75": "classifier 0.75 (inside)",
    "0.75-aware": "0.75, fine-tuned for int8",
    "0.75-hardswish": "0.75 with hard swish",
    "0.5": "classifier 0.5",
    "1.0": "classifier 1.0",
    "2.0": "classifier 2.0",
    "segmenter": "segmenter 0.75 (inside)",
    "detector": "detector 0.75 (inside)",
}
MODELS = tuple(TITLES)
FORMAT_TITLES = {"onnx": "ONNX", "openvino": "OpenVINO", "executorch": "ExecuTorch", "litert": "LiteRT", "coreml": "Core ML"}
SHOWN = (("same", ".1f"), ("ms", ".1f"), ("delegated", ".1f"))
MANY = {"0.5": 1000, "1.0": 1000, "2.0": 300}
ALL, COMPARED = 7024, 200
CALIBRATION = {"0.75": 192, "0.75-aware": 192, "0.75-hardswish": 192}
FEW = 96
"""Calibration pictures of all others."""
SECONDS_EACH = 1.5
"""Of timing for each file, in three rounds over all files of a model."""
Row = dict[str, Any]


class Table:
    """The rows so far, on the disk after every change; several passes may write at once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "table.json"
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Row] = {}
        self._read()

    def _read(self) -> None:
        if self.path.is_file():
            self.rows = json.loads(self.path.read_text())

    def put(self, key: str, **values: Any) -> None:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            row = self.rows.setdefault(key, {})
            if "file" in values:
                row.pop("refused", None)
            row.update(values)
            write_whole(self.path, (json.dumps(self.rows, indent=1) + "\n").encode())
            write_whole(self.folder / "table.md", self.markdown().encode())
        print(key, values, flush=True)

    def of_model(self, model: str) -> dict[str, Row]:
        return {key: row for key, row in self.rows.items() if key.startswith(f"{model}/")}

    def markdown(self) -> str:
        """As docs/deploy.md shows it."""
        heads = (
            "model",
            "format",
            "precision",
            "MB",
            "score, % (pictures)",
            "lost",
            "answers as float32, %",
            "ms",
            "of fp32's time",
        )
        lines = ["| " + " | ".join((*heads, "delegated, %")) + " |", "|" + " --- |" * (len(heads) + 1)]
        for key, row in sorted(self.rows.items(), key=lambda item: _order(item[0])):
            model, fmt, precision = key.split("/")
            if "refused" in row:
                continue
            base = self.rows.get(f"{model}/{fmt}/fp32", {}).get("ms")
            ratio = f"{row['ms'] / base:.2f}" if base and "ms" in row else ""
            score = f"{row['score']:.2f} ({row['pictures']:,})" if "score" in row else ""
            same, ms, share = (f"{row[name]:{form}}" if row.get(name) is not None else "" for name, form in SHOWN)
            lost = self._lost(key)
            cells = (TITLES[model], FORMAT_TITLES[fmt], precision, f"{row['MB']:.1f}", score, lost, same, ms, ratio, share)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def _lost(self, key: str) -> str:
        """Points below ONNX's float32 on the same pictures."""
        row, reference = self.rows[key], self.rows.get(f"{key.split('/')[0]}/onnx/fp32", {})
        base = row.get("float32_score")
        if base is None and row.get("pictures") == reference.get("pictures"):
            base = reference.get("score")
        if base is None or "score" not in row or row is reference:
            return ""
        return f"{base - row['score'] + 0.0:.2f}".replace("-0.00", "0.00")


def _order(key: str) -> tuple[int, int, int]:
    model, fmt, precision = key.split("/")
    precisions = ("fp32", "fp16", "bf16", "int8-weights", "int8")
    return MODELS.index(model), list(FORMATS).index(fmt), precisions.index(precision)


def precisions(fmt: str) -> list[str]:
    return sorted(get_format(fmt).offered, key=lambda name: _order(f"0.75/onnx/{name}"))


def source(model: str, widths: Path | None) -> str | None:
    if model in EMBEDDED:
        return EMBEDDED[model]
    folder = None if widths is None else widths / model
    return str(folder) if folder is not None and folder.is_dir() else None


def task_data(model: str, data: Path) -> str:
    return str(data / ("pets" if model in ("segmenter", "detector") else "objects"))


# ---- passes ----------------------------------------------------------------------------------------------------------------------


def write_files(table: Table, models: list[str], formats: list[str], data: Path, widths: Path | None) -> None:
    for model in models:
        for fmt in formats:
            for precision in precisions(fmt):
                key, name = f"{model}/{fmt}/{precision}", source(model, widths)
                if name is None or "MB" in table.rows.get(key, {}):
                    continue
                path = table.files / f"{model}-{fmt}-{precision}{get_format(fmt).suffix}"
                try:
                    calibration = _calibration(model, data) if precision == "int8" else None
                    start = time.perf_counter()
                    report = export(name, path, precision=precision, calibration=calibration, overwrite=True, threads=1)
                except (MobileViTV2Error, RuntimeError, ValueError) as error:
                    table.put(key, refused=f"{type(error).__name__}: {error}".splitlines()[0][:300])
                    continue
                table.put(
                    key,
                    MB=sum(report.files.values()) / 1e6,
                    file=path.name,
                    layout=report.metadata.layout,
                    delegated=_delegated(fmt, report.operators, report.outside),
                    seconds=round(time.perf_counter() - start, 1),
                )


def _calibration(model: str, data: Path) -> Any:
    from mobilevitv2.export.quantise import Calibration

    return Calibration(data=task_data(model, data), pictures=CALIBRATION.get(model, FEW))


def _delegated(fmt: str, operators: Any, outside: Any) -> float | None:
    """Of all operators; only ExecuTorch's files say what their delegate took."""
    return 100 * (1 - sum(outside.values()) / sum(operators.values())) if fmt == "executorch" else None


def count_of(model: str, fmt: str, precision: str) -> int:
    quantised, reference = precision in QUANTISED, (fmt, precision) == ("onnx", "fp32")
    if model.startswith("0.75") and (precision == "int8" or reference):
        return ALL
    return MANY.get(model, 1500) if quantised or reference else COMPARED


def measure_accuracy(table: Table, models: list[str], formats: list[str], data: Path) -> None:
    for model in models:
        for key, row in sorted(table.of_model(model).items(), key=lambda item: _order(item[0])):
            fmt = key.split("/")[1]
            if fmt not in formats or "file" not in row or "score" in row or get_format(fmt).engine is None:
                continue
            path = table.files / row["file"]
            try:
                if model in ("segmenter", "detector"):
                    table.put(key, **_dense(path, task_data(model, data)))
                else:
                    table.put(key, **_classified(table, key, path, row["layout"], task_data(model, data)))
            except (MobileViTV2Error, RuntimeError) as error:
                print(key, "not measured:", error, flush=True)


def _classified(table: Table, key: str, path: Path, layout: str, data: str) -> Row:
    model, fmt, precision = key.split("/")
    engine, count = open_engine(path, threads=1), count_of(model, fmt, precision)
    assert engine.metadata is not None
    contract = Metadata.from_json(engine.metadata).picture
    sample = read_sample(data, contract, ALL, cache=table.folder / "pictures")
    given = answers(engine, sample, count, layout)
    np.save(table.files / f"{path.stem}.answers.npy", given)
    row: Row = {"score": 100 * float((given == sample.labels[: len(given)]).mean()), "pictures": len(given)}
    known = table.files / f"{model}-onnx-fp32.answers.npy"
    if not known.is_file():  # nothing to compare with: --formats without onnx
        return row
    truth = np.load(known)
    both = min(len(truth), len(given))
    same = None if (fmt, precision) == ("onnx", "fp32") else 100 * float((truth[:both] == given[:both]).mean())
    return {**row, "same": same, "float32_score": 100 * float((truth[:both] == sample.labels[:both]).mean())}


def _dense(path: Path, data: str) -> Row:
    from mobilevitv2.evaluate.exported import open_exported

    network, processor = open_exported(path)
    if network.task == "segment":
        from mobilevitv2.data.segmentation import open_segmentation_data
        from mobilevitv2.evaluate.segmentation import evaluate_segmentation

        masks = open_segmentation_data(data).splits["validation"]
        measured = evaluate_segmentation(network, masks, processor=processor, batch_size=1)
        return {"score": 100 * measured.miou, "pictures": len(masks)}
    from mobilevitv2.data.detection import open_detection_data
    from mobilevitv2.evaluate.detection import evaluate_detection

    boxes = open_detection_data(data).splits["validation"]
    return {"score": 100 * evaluate_detection(network, boxes, processor=processor, batch_size=1).ap, "pictures": len(boxes)}


def measure_time(table: Table, models: list[str], formats: list[str], threads: int) -> None:
    """Medians over runs in three rounds, so that a slow minute does not hit one file alone."""
    for model in models:
        wanted = {
            key: row
            for key, row in table.of_model(model).items()
            if "file" in row and "ms" not in row and key.split("/")[1] in formats and get_format(key.split("/")[1]).engine
        }
        taken: dict[str, list[float]] = {key: [] for key in wanted}
        for turn in range(3):
            for key, row in wanted.items():
                taken[key] += _burst(table.files / row["file"], threads, SECONDS_EACH / 3, warm=4 if turn == 0 else 2)
        for key, times in taken.items():
            table.put(key, ms=statistics.median(times), fastest=min(times), runs=len(times), threads=threads)


def _burst(path: Path, threads: int, seconds: float, *, warm: int) -> list[float]:
    engine = open_engine(path, threads=threads)
    ((shape, dtype),) = engine.inputs.values()
    image = np.random.default_rng(0).random([side or 1 for side in shape]).astype(dtype)
    times: list[float] = []
    end = 0.0
    for run in range(200):
        start = time.perf_counter()
        engine.run(image)
        now = time.perf_counter()
        if run == warm:
            end = now + seconds
        if run > warm:
            times.append(1e3 * (now - start))
            if now > end and len(times) >= 3:
                break
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("files", "accuracy", "time"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--widths", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--threads", type=int, default=2, help="of the time pass")
    arguments = parser.parse_args()
    table = Table(arguments.output)
    if arguments.do == "time":
        return measure_time(table, arguments.models, arguments.formats, arguments.threads)
    if arguments.data is None:
        parser.error("--data is needed: the folder that holds objects and pets")
    if arguments.do == "files":
        return write_files(table, arguments.models, arguments.formats, arguments.data, arguments.widths)
    return measure_accuracy(table, arguments.models, arguments.formats, arguments.data)


if __name__ == "__main__":
    main()
