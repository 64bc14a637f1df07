"""The verb `benchmark`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mobilevitv2.cli.arguments import STDOUT, Argument, height_and_width
from mobilevitv2.cli.output import note, opened, say, whole_file
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.benchmarking.report import Report
    from mobilevitv2.benchmarking.request import Request


def benchmark(
    models: Annotated[
        list[str],
        Argument(
            "names (`mobilevitv2 models`), folders, weights files, hub ids or exported files, side by side; without any the "
            "classifier inside the package",
            metavar="MODEL",
        ),
    ],
    *,
    model: Annotated[list[str] | None, Argument("the same, as the other verbs have it", metavar="MODEL", at_least_one=True)] = None,
    task: Annotated[
        Literal["classify", "segment", "detect"] | None,
        Argument("without MODEL, which one of the package; else told from the model"),
    ] = None,
    against: Annotated[
        list[str] | None,
        Argument(
            "transformers, timm, v1 (transformers' MobileViT of like accuracy, random weights)", metavar="PEER", at_least_one=True
        ),
    ] = None,
    engines: Annotated[
        list[str] | None,
        Argument(
            "torch, onnxruntime, openvino, executorch, litert; models and peers are exported for all but torch. Without it torch, "
            "and for exported files the one of their ending",
            metavar="ENGINE",
            at_least_one=True,
        ),
    ] = None,
    device: Annotated[
        str | None, Argument("cpu, cuda, cuda:1, mps, for torch; without it the best there is", metavar="NAME")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        Argument(
            "float32, bfloat16, float16; float32 without it; exported files have their own", metavar="DTYPE", at_least_one=True
        ),
    ] = None,
    batch_size: Annotated[
        list[str] | None, Argument("pictures at once, a table each; 1 without it", metavar="N", at_least_one=True)
    ] = None,
    size: Annotated[
        list[int] | None,
        Argument("height and width of the pictures; without it the model's own", metavar="PIXELS", at_least_one=True),
    ] = None,
    threads: Annotated[int | None, Argument("of the CPU; without it torch's choice, or one a core", metavar="N")] = None,
    compile: Annotated[bool, Argument("add rows with torch.compile, half a minute or more each")] = False,
    random_weights: Annotated[
        bool, Argument("take the shape of MODEL alone: nothing is downloaded, the times are the same")
    ] = False,
    rounds: Annotated[
        int | None, Argument("how often each row is timed; without it as many as fit into 12 seconds, 9 to 200", metavar="N")
    ] = None,
    json: Annotated[
        str | None, Argument("write the rows to FILE.json, or to standard output", metavar="FILE.json", file_suffix=".json")
    ] = None,
    plot: Annotated[str | None, Argument("draw the bars into this picture (.png, .svg, .pdf)", metavar="FILE.png")] = None,
) -> int:
    """Time models beside their peers: torch, exported files, transformers, timm.

    All rows answer the same pictures in turn, one round after the other, so that a busy machine slows all alike; figures are
    medians with their quartiles, ratios medians of the rounds' own ratios. Peers get the model's weights, and every row with the
    same weights is compared with the plain model in float32. What cannot be opened or fails says why, and the others go on.

    exit codes: 0 every row was timed; 1 some or all failed; 2 bad usage; 130 interrupted (the tables so far are shown).

    examples:
      mobilevitv2 benchmark
      mobilevitv2 benchmark mobilevitv2-1.0-imagenet1k-256 --random-weights --against transformers timm --engines torch openvino
      mobilevitv2 benchmark runs/mine/model model.onnx model.xml --plot bars.png
      mobilevitv2 benchmark --device cuda --dtype bfloat16 --batch-size 1 256 --against timm --compile --json gpu.json
    """
    from mobilevitv2.benchmarking.picture import check_plot, draw_bars
    from mobilevitv2.benchmarking.request import Request
    from mobilevitv2.contract import default_model

    if plot is not None:
        check_plot(Path(plot))
    if json not in (None, STDOUT) and Path(str(json)).is_dir():
        raise ConfigurationError(f"{json} is a folder; name a file to write to.")
    request = Request(
        models=(*models, *(model or ())) or (default_model(task),),
        against=_several(against),
        engines=_several(engines),
        device=device,
        dtypes=_several(dtype) or ("float32",),
        batch_sizes=_numbers(batch_size) or (1,),
        size=height_and_width(size),
        threads=threads,
        compile=compile,
        rounds=rounds,
        task=task,
        random_weights=random_weights,
    )
    report = _measured(request, json)
    if plot is not None:
        draw_bars(report, Path(plot))
    return 0 if report.complete else 1


def _measured(request: Request, json: str | None) -> Report:
    """The report, shown and written as it grows."""
    from mobilevitv2.benchmarking.running import prepared

    if request.networks:
        from mobilevitv2.cli.quiet import quiet_libraries

        quiet_libraries()
    shown = say if json != STDOUT else _unshown
    with prepared(request, tell=note) as benchmark:
        shown(benchmark.report.head())
        for number, report in enumerate(benchmark.measured()):
            shown("\n" + report.table(number))
            if json not in (None, STDOUT):
                _write(report, Path(str(json)).expanduser())
        report = benchmark.report
    for doubt in report.doubts():
        note(f"warning: {doubt}.")
    if json == STDOUT:
        with opened(json) as stream:
            stream.write(json_format.dumps(report.to_dict(), indent=2) + "\n")
    return report


def _write(report: Report, path: Path) -> None:
    with whole_file(path) as stream:
        stream.write(json_format.dumps(report.to_dict(), indent=2) + "\n")


def _unshown(text: str) -> None:
    """Standard output belongs to the JSON."""


def _several(words: list[str] | None) -> tuple[str, ...]:
    """Words with spaces or commas between them."""
    return tuple(part for word in words or () for part in word.split(",") if part)


def _numbers(words: list[str] | None) -> tuple[int, ...]:
    numbers = []
    for word in _several(words):
        try:
            numbers.append(int(word))
        except ValueError:
            raise ConfigurationError(
                f"--batch-size {word} is no number of pictures; write --batch-size 1 8 64, and models before the options."
            ) from None
    return tuple(numbers)
