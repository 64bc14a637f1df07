"""What stands for SiLU in OpenVINO's int8 files: the error that each choice brings, and the time that it saves.

    python benchmarks/silu_forms.py --data objects --threads 2

The error is the root mean square of the logits' difference from float32 over their standard deviation: of the float graph with the
other functions, of the same after its convolutions were matched, and of the int8 file. Times are medians of runs in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from export_samples import read_sample
from quantisation_sensitivity import error, program_of

from mobilevitv2.export.graphs import graph_of
from mobilevitv2.export.quantise.calibration import Calibration, read_calibration
from mobilevitv2.export.quantise.matching import matched
from mobilevitv2.export.quantise.observing import observe, open_graph
from mobilevitv2.export.quantise.plan import SILU
from mobilevitv2.export.quantise.quantising import quantised_graph
from mobilevitv2.export.quantise.silu import FOR_FORMS, fitted_forms, silu_inputs, with_forms
from mobilevitv2.graph.builder import Builder
from mobilevitv2.runtime.engines import Engine
from mobilevitv2.runtime.preprocessing import as_input
from mobilevitv2.runtime.with_openvino import open_bytes

Array = np.ndarray[Any, Any]
CHOICES: dict[str, tuple[str, ...]] = {
    "exact": (),
    "GELU": ("gelu",),
    "hard swish": ("hardswish",),
    "hard swish in large maps, GELU elsewhere": SILU["openvino"],
}
TURNS, RUNS = 8, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilevitv2-0.75-objects112")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=400, help="of the test split, to measure on")
    parser.add_argument("--ranges", type=int, default=96, help="pictures of the training split; three quarters are for the ranges")
    parser.add_argument("--threads", type=int, default=2, help="while runs are timed")
    arguments = parser.parse_args()
    program = program_of(arguments.model)
    contract = program.metadata.picture
    pixels = read_calibration(Calibration(data=str(arguments.data), pictures=arguments.ranges), contract, task="classify").ranges
    with tempfile.TemporaryDirectory() as folder:
        sample = read_sample(str(arguments.data), contract, arguments.pictures, cache=Path(folder))
        inputs = [as_input(picture[None], contract, "NCHW") for picture in sample.pixels]
    seen = [as_input(picture[None], contract, "NCHW") for picture in pixels[:FOR_FORMS]]
    floats = graph_of(program, norms="moments", merged=True)
    truth = answers(open_bytes(floats.content, where="float32", threads=1), inputs)
    files = {"float32": floats.content}
    print("| SiLU | error, float | matched | int8 | equal answers, % |\n| --- | --- | --- | --- | --- |")
    for name, functions in CHOICES.items():
        replaced, mended = (answers(open_graph(each, 1), inputs) for each in float_graphs(floats.builder, functions, seen))
        graph = quantised_graph(with_int8(program), pixels, "openvino", silu=functions, threads=1)
        files[name] = graph.content
        int8 = answers(open_bytes(graph.content, where=name, threads=1), inputs)
        same = 100 * float((int8.argmax(1) == truth.argmax(1)).mean())
        cells = [f"{error(each, truth):.3f}" for each in (replaced, mended, int8)]
        print(f"| {name} ({graph.summary['silu']}) | {' | '.join(cells)} | {same:.1f} |", flush=True)
    times = in_turn(
        {name: open_bytes(content, where=name, threads=arguments.threads) for name, content in files.items()}, inputs[0]
    )
    print("\n| file | ms | of float32's time |\n| --- | --- | --- |")
    for name, each in times.items():
        print(f"| {name} | {each:.1f} | {each / times['float32']:.2f} |")


def with_int8(program: Any) -> Any:
    return replace(program, metadata=replace(program.metadata, precision="int8"))


def float_graphs(builder: Builder, functions: tuple[str, ...], inputs: list[Array]) -> tuple[Builder, Builder]:
    """With the functions in the place of SiLU, and the same after its convolutions were matched."""
    if not functions:
        return builder, builder
    places = observe(builder, list(silu_inputs(builder)), inputs, threads=1)
    forms = fitted_forms({value: (found.sample, found.size) for value, found in places.items()}, functions)
    replaced = with_forms(builder, forms)
    factors = {value: form.factor for value, form in forms.items()}
    return replaced, matched(builder, replaced, factors, inputs, threads=1)


def answers(engine: Engine, inputs: list[Array]) -> Array:
    return np.concatenate([next(iter(engine.run(image).values())) for image in inputs])


def in_turn(engines: dict[str, Engine], image: Array) -> dict[str, float]:
    """Medians in ms."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(TURNS):
        for name, engine in engines.items():
            for run in range(RUNS + 2):
                start = time.perf_counter()
                engine.run(image)
                if run >= 2:
                    taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in taken.items()}


if __name__ == "__main__":
    main()
