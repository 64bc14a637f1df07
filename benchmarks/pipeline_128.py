"""A folder of 128 pictures: transformers' pipeline and ours in turn, both warm; and from the shell to the answer.

    python benchmarks/pipeline_128.py FOLDER                # the classifier inside the package
    python benchmarks/pipeline_128.py FOLDER --width 1.0    # random weights of a width

Rows: transformers' `pipeline` as its documentation calls it, with a list of files; the same with batches of 16; `predict`, the
Python call; and what `mobilevitv2 predict FOLDER` runs: one thread a core, each of which reads a picture and answers it, with ONNX
Runtime (what "auto" takes) and OpenVINO where they are installed. "shared session": all threads for one batch of 16, pictures read
ahead, as before. A ratio is of medians, over the first row. All have the same weights and picture settings; `same` is the share of
pictures whose first label is the first row's; "cpu ms" is the processor time of a picture, which a busy machine changes least.
`--shell` adds whole processes, from the command to its end: one picture, and the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], list[int]]
THEIR_ANSWER = """
import sys
from transformers import pipeline
classify = pipeline("image-classification", model=sys.argv[1])
for answer in classify(sys.argv[2:]):
    print(answer[0]["label"], answer[0]["score"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with pictures; the first 128 are taken, again from the start where it has fewer")
    parser.add_argument("--width", type=float, help="random weights of this width; the classifier inside the package without it")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--shell", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    files = sorted(str(path) for path in arguments.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    files = [files[index % len(files)] for index in range(arguments.count)]
    with tempfile.TemporaryDirectory() as scratch:
        model = str(model_folder(arguments.width, Path(scratch)))
        rows = streams(model, files, arguments.rounds)
        if arguments.shell:
            rows += processes(model, files, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def model_folder(width: float | None, scratch: Path) -> Path:
    """In transformers' format, which both read."""
    from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification, MobileViTV2ImageProcessor
    from mobilevitv2.contract import default_model
    from mobilevitv2.weights.records import get_record

    if width is None:
        packed = get_record(default_model(None)).path
        assert packed is not None  # it is inside the package
        return Path(packed)
    torch.manual_seed(0)
    model = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=1000)).eval()
    model.save_pretrained(scratch)
    MobileViTV2ImageProcessor().save_pretrained(scratch)
    return scratch


def streams(model: str, files: list[str], rounds: int) -> list[dict[str, Any]]:
    """Pictures a second of all ways, in one process."""
    ways = {"transformers pipeline": theirs(model, 1), "transformers pipeline, batches of 16": theirs(model, 16)}
    ways["mobilevitv2.predict"] = ours_in_python(model)
    for engine in installed_engines():
        ways[f"mobilevitv2 predict, {engine}"] = ours_in_the_shell(model, engine, count=len(files))
        ways[f"{engine}, shared session"] = ours_in_the_shell(model, engine, count=1)
    found = {name: way(files[:16]) for name, way in ways.items()}  # warm
    times: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            found[name] = way(files)
            processor[name].append((time.process_time() - used) / len(files))
            times[name].append(time.perf_counter() - start)
            print(f"  {name}: {len(files) / times[name][-1]:.1f} img/s", flush=True)
    first = next(iter(ways))
    rows = []
    print(f"{'way':40} {'img/s':>7} {'ratio':>6} {'same':>6} {'cpu ms':>7}")
    for name, each in times.items():
        same = sum(a == b for a, b in zip(found[name], found[first], strict=True)) / len(files)
        rate, ratio = len(files) / statistics.median(each), statistics.median(times[first]) / statistics.median(each)
        rows.append({"way": name, "rate": rate, "ratio": ratio, "same": same, "seconds": each})
        print(f"{name:40} {rate:7.1f} {ratio:6.2f} {same:6.3f} {1e3 * min(processor[name]):7.1f}")
    return rows


def theirs(model: str, batch_size: int) -> Callable[[list[str]], list[int]]:
    from transformers import pipeline

    classify = pipeline("image-classification", model=model)
    numbers = classify.model.config.label2id
    return lambda files: [numbers[answer[0]["label"]] for answer in classify(files, batch_size=batch_size)]


def ours_in_python(model: str) -> Callable[[list[str]], list[int]]:
    """A call opens the model each time, as a user's does."""
    from mobilevitv2 import predict

    return lambda some: [answer.labels[0].index for answer in predict(some, model=model)]


def installed_engines() -> list[str]:
    from mobilevitv2.runtime.embedded import ENGINES

    found = [name for name in ENGINES if find_spec(name) is not None]
    if not found:
        raise SystemExit("no runtime is installed: pip install 'mobilevitv2[onnx]'")
    return found


def ours_in_the_shell(model: str, engine: str, *, count: int) -> Callable[[list[str]], list[int]]:
    """As the command opens the model for `count` pictures."""
    from mobilevitv2.cli.engines import runtime_answers
    from mobilevitv2.streaming import answers_of, callers_for, named_sources

    task: Any = runtime_answers(model, engine=engine, callers=callers_for(count))
    return lambda some: [answer.labels[0].index for answer in answers_of(named_sources(some), task)]


def processes(model: str, files: list[str], rounds: int) -> list[dict[str, Any]]:
    """Seconds of whole processes; each was run once before."""
    ours, their = [sys.executable, "-m", "mobilevitv2", "predict"], [sys.executable, "-c", THEIR_ANSWER, model]
    commands = {
        "transformers, one picture": [*their, files[0]],
        "mobilevitv2 predict, one picture": [*ours, files[0], "--model", model],
        f"transformers, {len(files)} pictures": [*their, *files],
        f"mobilevitv2 predict, {len(files)} pictures": [*ours, *files, "--model", model],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            if number == 0 and len(command) > 16:
                continue  # what is read from the disk once is in memory by now
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                times[name].append(time.perf_counter() - start)
    print(f"{'process':40} {'seconds':>8}")
    for name, each in times.items():
        print(f"{name:40} {statistics.median(each):8.2f}  (fastest {min(each):.2f})")
    return [{"process": name, "seconds": each} for name, each in times.items()]


if __name__ == "__main__":
    main()
