"""The verb `export`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mobilevitv2.cli.arguments import STDOUT, Argument, height_and_width
from mobilevitv2.cli.ending import ended_in_order
from mobilevitv2.cli.output import opened, say
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from mobilevitv2.export import ExportReport
    from mobilevitv2.export.quantise.calibration import Calibration
    from mobilevitv2.export.web import SiteReport


def export(
    model: Annotated[str, Argument("name (`mobilevitv2 models`), folder, weights file or hub id", metavar="MODEL")],
    path: Annotated[
        str | None,
        Argument(
            "file to write; its ending tells the format; for web a folder. Without it, with --format: a file of the model's name "
            "in the current folder",
            metavar="FILE|DIR",
        ),
    ] = None,
    *,
    format: Annotated[
        Literal["onnx", "openvino", "executorch", "litert", "coreml", "web"] | None,
        Argument(
            "onnx (.onnx), openvino (.xml), executorch (.pte), litert (.tflite), coreml (.mlpackage) or web (a page in a folder)"
        ),
    ] = None,
    task: Annotated[Literal["classify", "segment", "detect"] | None, Argument("told from the model where it is not given")] = None,
    delegate: Annotated[
        Literal["xnnpack", "coreml"] | None,
        Argument("for executorch: what calculates on the device; xnnpack without it. coreml's files run on Apple's systems only"),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "int8-weights"], Argument("of weights and arithmetic, as far as the format has it")
    ] = "fp32",
    size: Annotated[
        list[int] | None,
        Argument("height and width of the input in pixels; without it those of the model", metavar="PIXELS", at_least_one=True),
    ] = None,
    dynamic: Annotated[bool, Argument("leave height and width free: multiples of 64 from 128 on")] = False,
    preprocessing: Annotated[
        bool, Argument("take 8-bit RGB pictures (batch, height, width, 3) and scale inside; without it floats from 0 to 1")
    ] = False,
    raw_outputs: Annotated[bool, Argument("give logits, or decoded boxes, instead of probabilities, masks or detections")] = False,
    calibrate: Annotated[str | None, Argument("for int8: pictures to measure ranges on", metavar="DATA")] = None,
    weight_bits: Annotated[
        int | None,
        Argument(
            "for int8 of onnx and openvino: 7, which every processor adds up right, or 8, for ARM and for x86 with VNNI (from 2019 "
            "on); without it 7",
            metavar="7|8",
        ),
    ] = None,
    pictures: Annotated[
        list[str] | None, Argument("to compare the file with PyTorch on; without it some that are at hand", at_least_one=True)
    ] = None,
    also: Annotated[
        list[str] | None, Argument("for web: further models on the same page", metavar="MODEL", at_least_one=True)
    ] = None,
    ort_web: Annotated[
        str | None, Argument("for web: onnxruntime-web's folder or npm archive; without it from the npm registry", metavar="PATH")
    ] = None,
    threads: Annotated[int | None, Argument("of the runtime while it is timed; without it its own choice", metavar="N")] = None,
    source: Annotated[
        str | None, Argument("name of the weights for the file's metadata; without it the model's", metavar="TEXT")
    ] = None,
    licence: Annotated[
        str | None,
        Argument(
            "of the weights, for the file's metadata; without it the record's, or what README.md or config.json beside them says",
            metavar="TEXT",
            aliases=("--license",),
        ),
    ] = None,
    overwrite: Annotated[bool, Argument("replace what is there")] = False,
    json: Annotated[
        str | None, Argument("write the report to FILE.json, or to standard output", metavar="FILE.json", file_suffix=".json")
    ] = None,
) -> int:
    """Write a model for a device's runtime, and see that it answers as PyTorch does.

    The file is run in its own runtime on pictures before it takes its name; where its answers depart, nothing is written, and the
    message says in which part of the model. The report beside it (model.onnx.report.json) holds differences, times, operators and
    metadata.

    exit codes: 0 written and compared; 1 the file would not answer as PyTorch does, or something could not be read or written;
    2 bad usage; 130 interrupted, 143 terminated. In every case but the first nothing is left behind, and what was there stays.

    examples:
      mobilevitv2 export mobilevitv2-1.0-imagenet1k-256 model.onnx
      mobilevitv2 export mobilevitv2-1.0-imagenet1k-256 --format litert
      mobilevitv2 export runs/pets model.xml --precision bf16 --preprocessing
      mobilevitv2 export deeplabv3-mobilevitv2-1.0-voc voc.onnx --dynamic
      mobilevitv2 export mobilevitv2-0.75-objects112 model.pte --delegate coreml --precision fp16
      mobilevitv2 export mobilevitv2-0.75-objects112 site --format web
    """
    wanted = height_and_width(size)
    of_files = {"delegate": delegate, "dynamic": dynamic, "raw_outputs": raw_outputs, "threads": threads}
    _check_web(format, {"also": also, "ort_web": ort_web}, of_files, {"source": source, "licence": licence})
    if path is None:
        path = _own_name(model, format)
    with ended_in_order():
        _check_json(json)
        calibration = _calibration(calibrate, weight_bits)
        from mobilevitv2.cli.quiet import quiet_libraries
        from mobilevitv2.export.request import check_request

        if format == "web":
            from mobilevitv2.export.web.site import check_site, export_site

            models = [model, *(also or [])]
            check_site(models, path, precision=precision, size=wanted, calibration=calibration, overwrite=overwrite)
            quiet_libraries()
            site = export_site(
                models,
                path,
                precision=precision,
                size=wanted,
                preprocessing=preprocessing,
                calibration=calibration,
                task=task,
                pictures=pictures,
                ort_web=ort_web,
                overwrite=overwrite,
            )
            return _told(site, json)
        check_request(  # first: quiet_libraries imports transformers
            model,
            path,
            format=format,
            delegate=delegate,
            precision=precision,
            size=wanted,
            dynamic=dynamic,
            calibration=calibration,
            overwrite=overwrite,
            threads=threads,
        )
        quiet_libraries()
        from mobilevitv2.export import export as export_model

        report = export_model(
            model,
            path,
            format=format,
            delegate=delegate,
            task=task,
            precision=precision,
            size=wanted,
            dynamic=dynamic,
            preprocessing=preprocessing,
            postprocessing=not raw_outputs,
            calibration=calibration,
            pictures=pictures,
            source=source,
            licence=licence,
            threads=threads,
            overwrite=overwrite,
        )
        return _told(report, json)


def _calibration(data: str | None, weight_bits: int | None) -> Calibration | str | None:
    if weight_bits is None:
        return data
    from mobilevitv2.export.quantise.calibration import Calibration

    return Calibration(data=data, weight_bits=weight_bits)


def _own_name(model: str, format: str | None) -> str:
    """Of the file that is not named: the model's own, with the format's ending."""
    if format is None or format == "web":
        wanted = "a folder for the page" if format == "web" else "a file to write, such as model.onnx, or --format"
        raise ConfigurationError(f"where should {model} go? Name {wanted}.")
    from mobilevitv2.export.formats import get_format

    place = Path(model).resolve() if Path(model).exists() else Path(model)
    return f"{place.stem if place.is_file() else place.name}{get_format(format).suffix}"


def _check_json(json: str | None) -> None:
    """A trial, before any work: the report is written when the files have their names already.

    Raises:
        ConfigurationError: the path is a folder, or below a file. OSError: as the system gave it.
    """
    if json is None or json == STDOUT:
        return
    path = Path(json).expanduser().absolute()
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a file for the report (--json).")
    if path.exists() and not path.is_file():  # a device or pipe
        return
    folder = next(each for each in path.parents if each.exists())  # the others are made with the report
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file, so no report can be written into it; name a folder (--json).")
    with tempfile.TemporaryFile(dir=folder):
        pass


def _told(report: ExportReport | SiteReport, json: str | None) -> int:
    if json is not None:
        with opened(json) as stream:
            stream.write(report.to_json())
    if json != STDOUT:
        say(report.table())
    return 0


def _check_web(
    format: str | None, of_web: Mapping[str, object], of_files: Mapping[str, object], of_one: Mapping[str, object]
) -> None:
    """Options that the other kind of format has, and those of one file, where a page may have several."""
    named = [name for name, value in of_one.items() if value]
    if format == "web" and named:
        raise ConfigurationError(
            f"--{named[0]} is of one file; export to model.onnx with it first, and name that as the page's model."
        )
    wrong = [name for name, value in (of_files if format == "web" else of_web).items() if value]
    if wrong:
        option = f"--{wrong[0].replace('_', '-')}"
        where = "a file's format: a web page's files have one form" if format == "web" else "--format web"
        raise ConfigurationError(f"{option} belongs to {where}; leave it out{'' if format == 'web' else ', or add --format web'}.")
