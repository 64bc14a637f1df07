"""Version 1 beside version 2, of like accuracy: transformers' MobileViT XS and S, our widths 0.75 and 1.0.

    python benchmarks/v1_and_v2.py --threads 2 --json v1.json                           # PyTorch, ONNX Runtime, OpenVINO
    python benchmarks/v1_and_v2.py --threads 2 --engines executorch litert              # the mobile runtimes, on this CPU
    PYTHONPATH=src python benchmarks/v1_and_v2.py --device cuda --dtype bfloat16 --batch-size 1 256

The paper's claim for version 2 is 3.2 times the speed of version 1 on a phone. Weights are random: times do not depend on them.
Of each engine the ratio is the best time of version 1 over our best; the rows are in the JSON. Top-1 on ImageNet-1k from Apple's
model zoo.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mobilevitv2.benchmarking.peers import v1_classifier
from mobilevitv2.benchmarking.report import Report, Row
from mobilevitv2.benchmarking.request import Request
from mobilevitv2.benchmarking.running import prepared

PAIRS = {"XXS": "0.5", "XS": "0.75", "S": "1.0"}
TOP_1 = {"XXS": 69.0, "XS": 74.7, "S": 78.3, "0.5": 70.18, "0.75": 75.56, "1.0": 78.09}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=["XS", "S"], choices=list(PAIRS))
    parser.add_argument("--engines", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    engines = tuple(arguments.engines or (("torch", "onnxruntime", "openvino") if arguments.device == "cpu" else ("torch",)))
    results: list[dict[str, Any]] = []
    lines: list[str] = []
    for size in arguments.pairs:
        costs = {"v1": cost(v1_classifier(size, 1000)), "v2": cost(ours(PAIRS[size]))}
        about = {"v1": size, "v2": PAIRS[size], "top_1": {"v1": TOP_1[size], "v2": TOP_1[PAIRS[size]]}, "costs": costs}
        for name, version in ((size, "v1"), (PAIRS[size], "v2")):
            parameters, operations = costs[version]
            cost_line = f"{parameters / 1e6:.2f} M parameters, {operations / 1e9:.2f} G multiply-adds"
            print(f"{version} {name}: {cost_line}, {TOP_1[name]} % top-1", flush=True)
        request = Request(
            models=(f"mobilevitv2-{PAIRS[size]}-imagenet1k-256",),
            against=("v1",),
            engines=engines,
            device=arguments.device,
            dtypes=tuple(arguments.dtype),
            batch_sizes=tuple(arguments.batch_size),
            threads=arguments.threads,
            rounds=arguments.rounds,
            random_weights=True,
        )
        with prepared(request, tell=lambda text: None) as benchmark:
            print(f"\n{benchmark.report.head()}", flush=True)
            for number, report in enumerate(benchmark.measured()):
                print(report.table(number), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps([*results, {**about, **report.to_dict()}], indent=1) + "\n")
        results.append({**about, **benchmark.report.to_dict()})
        print("\n".join(benchmark.report.doubts()))
        lines += best(size, benchmark.report)
    print("\n| v1 : v2 | engine | dtype | batch | v1, ms | v2, ms | ratio |\n| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(lines))


def best(size: str, report: Report) -> list[str]:
    """The fastest form of each side, by engine, dtype and batch."""
    lines = []
    for engine, dtype, batch in dict.fromkeys((row.engine, row.dtype, row.batch) for row in report.rows):
        rows = [row for row in report.rows if (row.engine, row.dtype, row.batch) == (engine, dtype, batch)]
        old, new = fastest(rows, peer=True), fastest(rows, peer=False)
        shown = f"{old / new:.2f}" if old and new else "a side failed"
        told = [f"{each:.2f}" if each else "" for each in (old, new)]
        lines.append(f"| {size} : {PAIRS[size]} | {engine} | {dtype} | {batch} | {' | '.join(told)} | {shown} |")
    return lines


def fastest(rows: list[Row], *, peer: bool) -> float | None:
    return min((row.times.median for row in rows if row.times is not None and (row.peer is not None) == peer), default=None)


def ours(width: str) -> torch.nn.Module:
    from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification

    return MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=float(width), num_labels=1000))


def cost(model: torch.nn.Module) -> tuple[int, int]:
    """Parameters, and multiply-adds at 256 px as they are executed."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.rand(1, 3, 256, 256))
    return sum(each.numel() for each in model.parameters()), counter.get_total_flops() // 2


if __name__ == "__main__":
    main()
