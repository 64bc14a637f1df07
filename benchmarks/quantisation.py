"""Time and agreement of quantised files beside float32 of the same runtime, by width.

    python benchmarks/quantisation.py --widths 0.5 0.75 1.0 2.0 --threads 1 --data objects

Width 0.75 has trained weights (the classifier inside the package), and its agreement means something. The others have random
weights: their times are real, their agreement (of raw answers, as the error's share of their spread) is an indication at most. The
runs of all files of a width are interleaved; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.contract import load_model
from mobilevitv2.export.formats import get_format
from mobilevitv2.export.metadata import describe
from mobilevitv2.export.program import Program, build_program
from mobilevitv2.export.quantise.calibration import Calibrated, Calibration, read_calibration
from mobilevitv2.image_processing import MobileViTV2ImageProcessor
from mobilevitv2.runtime.engines import open_engine
from mobilevitv2.runtime.preprocessing import as_input

TRAINED = {0.75: "mobilevitv2-0.75-objects112"}
METHODS = (("fp32", 8), ("int8-weights", 8), ("int8", 7), ("int8", 8))
SIDE = 256


def programs(width: float) -> dict[tuple[str, str], Program]:
    """One for each format and precision."""
    if width in TRAINED:
        model, processor = load_model(TRAINED[width])
    else:
        torch.manual_seed(0)
        model = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=1000)).eval()
        processor = MobileViTV2ImageProcessor()
    found = {}
    for name in ("onnx", "openvino"):
        fmt = get_format(name)
        for precision in ("fp32", "int8-weights", "int8"):
            options: dict[str, Any] = {"size": (SIDE, SIDE), "dynamic": ("batch",), "preprocessing": False, "postprocessing": False}
            metadata = describe(
                model, processor, fmt, precision=precision, suppression=None, source="benchmark", licence=None, **options
            )
            found[name, precision] = build_program(model, metadata, layout=fmt.layout)
    return found


def write(program: Program, name: str, bits: int, pictures: Calibrated, folder: Path) -> Path:
    fmt = get_format(name)
    path = folder / f"{name}-{program.precision}-{bits}{fmt.suffix}"
    if program.precision == "fp32":
        fmt.write(program, path)
    else:
        assert fmt.quantise is not None
        given = Calibrated(pictures.ranges, pictures.held, (), (), pictures.found, weight_bits=bits)
        fmt.quantise(program, path, given if program.precision == "int8" else None)
    return path


def rows(width: float, data: str, threads: int, runs: int) -> None:
    found = programs(width)
    contract = found["onnx", "fp32"].metadata.picture
    pictures = read_calibration(Calibration(data=data, pictures=96), contract, task="classify")
    images = [as_input(picture[None], contract, "NCHW") for picture in pictures.held]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            (name, precision, bits): write(found[name, precision], name, bits, pictures, Path(folder))
            for name in ("onnx", "openvino")
            for precision, bits in METHODS
        }
        engines = {key: open_engine(path, threads=threads) for key, path in files.items()}
        sizes = {key: sum(each.stat().st_size for each in path.parent.glob(f"{path.stem}.*")) for key, path in files.items()}
        taken: dict[Any, list[float]] = {key: [] for key in engines}
        for turn in range(runs + 2):
            for key, engine in engines.items():
                start = time.perf_counter()
                engine.run(images[0])
                if turn > 1:
                    taken[key].append(1e3 * (time.perf_counter() - start))
        answers = {key: np.concatenate([engine.run(image)["logits"] for image in images]) for key, engine in engines.items()}
    for key, times in taken.items():
        name, precision, bits = key
        truth, base = answers[name, "fp32", 8], statistics.median(taken[name, "fp32", 8])
        error = float(np.sqrt(np.square(answers[key] - truth).mean()) / truth.std())
        same = 100 * float((answers[key].argmax(1) == truth.argmax(1)).mean())
        median = statistics.median(times)
        method = f"{precision}, {bits}-bit weights" if precision == "int8" else precision
        weights = "trained" if width in TRAINED else "random"
        print(
            f"| {width} ({weights}) | {name} | {method} | {sizes[key] / 1e6:.1f} | {median:.1f} | {median / base:.2f} "
            f"| {min(times) / min(taken[name, 'fp32', 8]):.2f} | {error:.3f} | {same:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.5, 0.75, 1.0, 2.0])
    parser.add_argument("--data", required=True, help="pictures for the ranges and to compare on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    print("| width | runtime | method | MB | ms | of float32, medians | of float32, fastest runs | error | equal answers, % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for width in arguments.widths:
        rows(width, arguments.data, arguments.threads, arguments.runs)


if __name__ == "__main__":
    main()
