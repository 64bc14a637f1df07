"""The site: the page, the models with what they say about themselves, sample pictures, and the runtime, in one folder."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mobilevitv2
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.export.formats import ONNX
from mobilevitv2.export.report import ExportReport
from mobilevitv2.export.request import check_installed, check_precision, check_size, check_source
from mobilevitv2.export.web.checking import expected_answer
from mobilevitv2.export.web.ort_web import copy_runtime
from mobilevitv2.text_table import aligned, counted

if TYPE_CHECKING:
    from mobilevitv2.runtime.metadata import Metadata

INDEX = "site.json"
LARGEST_SAMPLE = 1024
"""Longest side of a sample picture that is written anew."""
HEADERS = """\
# For hosts that read this file (Cloudflare Pages, Netlify): what threads in WebAssembly need.
/*
  Cross-Origin-Opener-Policy: same-origin
  Cross-Origin-Embedder-Policy: require-corp
"""


@dataclass(frozen=True, kw_only=True)
class SiteModel:
    """One model of a site.

    Attributes:
        name: of its folder.
        metadata: of its file.
        bytes: of its file.
        report: of its export; None where the file was there before.
    """

    name: str
    metadata: Metadata
    bytes: int
    report: ExportReport | None


@dataclass(frozen=True, kw_only=True)
class SiteReport:
    """A finished site.

    Attributes:
        path: the folder.
        models: in the order of the page.
        samples: number of sample pictures.
        runtime: version of ONNX Runtime Web.
        bytes: of all files.
    """

    path: Path
    models: tuple[SiteModel, ...]
    samples: int
    runtime: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        models = [
            {"name": each.name, "bytes": each.bytes, "report": None if each.report is None else each.report.to_dict()}
            for each in self.models
        ]
        return {
            "path": str(self.path), "bytes": self.bytes, "samples": self.samples, "onnxruntime-web": self.runtime, "models": models
        }  # fmt: skip

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def table(self) -> str:
        """For the terminal."""
        rows = [("site", f"{self.path}, {self.bytes / 1e6:.1f} MB")]
        for number, each in enumerate(self.models):
            found = each.report.verification if each.report is not None else None
            agreement = f", {100 * found.comparison.agreement:.2f} % of answers as PyTorch's" if found is not None else ""
            told = f"{each.name}: {each.metadata.task}, {each.metadata.precision}, {each.bytes / 1e6:.2f} MB{agreement}"
            rows.append(("models" if number == 0 else "", told))
        rows += [("note", note) for each in self.models if each.report is not None for note in each.report.notes]
        rows += [("samples", counted(self.samples, "picture")), ("runtime", f"ONNX Runtime Web {self.runtime}")]
        return aligned([*rows, ("look at it", f"mobilevitv2 serve {self.path}")])


def export_site(
    models: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    preprocessing: bool = False,
    calibration: Any = None,
    task: str | None = None,
    pictures: Sequence[Any] | None = None,
    ort_web: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> SiteReport:
    """Write a static page that runs models in the browser.

    Args:
        models: each the name of a record, a folder, a hub id, a weights file or a model, as `mobilevitv2.export.export` takes them,
            or an ONNX file that it wrote.
        folder: of the site; must not exist, be empty, or, with `overwrite`, be a site of this package.
        precision, size, preprocessing, calibration, task: as in `mobilevitv2.export.export`.
        pictures: files that the page offers as samples and the export is compared on; some that come with the package where None.
        ort_web: where ONNX Runtime Web lies; see `mobilevitv2.export.web.ort_web.copy_runtime`.
        overwrite: replace the site that is there.

    Raises:
        ConfigurationError: no model, or a folder that is taken. DownloadError: ONNX Runtime Web cannot be fetched.
        The errors of `mobilevitv2.export.export`. In every case nothing is left behind.
    """
    check_site(models, folder, precision=precision, size=size, calibration=calibration, overwrite=overwrite)
    place = Path(folder)
    with _whole_folder(place) as part:
        samples, credit = _add_samples(part / "samples", pictures)  # these two first: cheap, and what most often fails
        (part / "ort").mkdir()
        runtime = copy_runtime(part / "ort", ort_web)
        settings: dict[str, Any] = {
            "precision": precision, "size": size, "preprocessing": preprocessing, "calibration": calibration, "task": task,
            "pictures": pictures,
        }  # fmt: skip
        done: list[SiteModel] = []
        for source in models:
            done.append(_add_model(part, source, {each.name.lower() for each in done}, settings))
        _add_page(part, done, samples, credit, runtime)
        total = sum(each.stat().st_size for each in part.rglob("*") if each.is_file())
        _check_folder(place, overwrite)  # again: somebody may have written there meanwhile
    return SiteReport(path=place, models=tuple(done), samples=len(samples), runtime=runtime, bytes=total)


def check_site(
    models: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    calibration: Any = None,
    overwrite: bool = False,
) -> None:
    """Refuse what cannot be done, before anything is fetched and before torch is imported; arguments as in `export_site`.

    Raises:
        ConfigurationError: no model, a model, precision or size that there is not, or a folder that is taken.
        MissingDependency: ONNX Runtime is not installed.
    """
    if not models:
        raise ConfigurationError("a page without a model shows nothing; name at least one.")
    _check_folder(Path(folder), overwrite)
    check_precision(ONNX, precision, calibration)
    if size is not None:
        check_size(size, dynamic=False)
    for model in models:
        if not _is_exported(model):
            check_source(model)
    check_installed(ONNX)


# ---- parts -----------------------------------------------------------------------------------------------------------------------


def _add_model(part: Path, source: Any, taken: set[str], settings: dict[str, Any]) -> SiteModel:
    from mobilevitv2.runtime import open_model

    report: ExportReport | None = None
    with tempfile.TemporaryDirectory(dir=part, prefix=".model.") as scratch:
        path = Path(scratch, "model.onnx")
        if _is_exported(source):
            _check_given(settings, source)
            model = open_model(source)  # says so where it is missing or damaged
            shutil.copyfile(source, path)
            name = Path(source).stem
        else:
            report = _exported(source, path, settings)
            model = open_model(path)
            name = report.metadata.source
        name = _folder_name(name, taken)
        target = part / "models" / name
        target.mkdir(parents=True)
        path.replace(target / "model.onnx")
    length = (target / "model.onnx").stat().st_size
    description = {
        "name": name,
        "bytes": length,
        "metadata": asdict(model.metadata),
        "check": expected_answer(model),
    }
    _write_json(target / "model.json", description)
    return SiteModel(name=name, metadata=model.metadata, bytes=length, report=report)


def _is_exported(source: Any) -> bool:
    return isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".onnx"


def _exported(source: Any, path: Path, settings: dict[str, Any]) -> ExportReport:
    """Classifiers give probabilities; the others' raw answers, of which the page makes what it shows at the picture's size."""
    from mobilevitv2.export.exporting import export, source_name
    from mobilevitv2.export.metadata import licence_of

    if isinstance(source, str | os.PathLike):
        from mobilevitv2.contract import load_model

        named: dict[str, Any] = {"source": source_name(source), "licence": licence_of(source)}
        model, processor = load_model(source, task=settings["task"])
    else:
        model, processor, named = source, None, {}
    return export(model, path, format="onnx", processor=processor, postprocessing=model.task == "classify", **named, **settings)


def _check_given(settings: dict[str, Any], source: Any) -> None:
    given = {"precision": "fp32", "size": None, "preprocessing": False, "calibration": None}
    options = {"calibration": "calibrate"}
    changed = [f"{name} (--{options.get(name, name)})" for name, usual in given.items() if settings[name] != usual]
    if changed:
        raise ConfigurationError(f"{source} is exported already; leave {', '.join(changed)} out, or name the weights instead.")


def _folder_name(name: str, taken: Iterable[str]) -> str:
    """One that no file system takes for another: macOS and Windows make no difference of capitals; those in `taken` have none."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"
    number, unique = 1, plain
    while unique.lower() in taken:
        number += 1
        unique = f"{plain}-{number}"
    return unique


def _add_samples(folder: Path, pictures: Sequence[Any] | None) -> tuple[list[dict[str, str]], str]:
    """The entries for the page, and whom to thank."""
    folder.mkdir()
    if pictures is not None:
        return list(_own_samples(folder, pictures)), ""
    shipped = resources.files("mobilevitv2.export.web").joinpath("samples")
    listing = json.loads(shipped.joinpath("samples.json").read_text(encoding="utf-8"))
    for sample in listing["samples"]:
        (folder / sample["file"]).write_bytes(shipped.joinpath(sample["file"]).read_bytes())
    return [{**sample, "file": f"samples/{sample['file']}"} for sample in listing["samples"]], str(listing["credits"])


def _own_samples(folder: Path, pictures: Sequence[Any]) -> Iterator[dict[str, str]]:
    """Written anew as JPEG: that drops places and times that a camera notes, and what a browser cannot read."""
    from mobilevitv2.pictures import find_pictures, read_picture

    sources: list[Any] = []
    for each in pictures:
        sources += find_pictures([each]) if isinstance(each, str | Path) else [each]
    for number, source in enumerate(sources, 1):
        picture = read_picture(source)
        picture.thumbnail((LARGEST_SAMPLE, LARGEST_SAMPLE))
        picture.save(folder / f"{number}.jpg", quality=92)
        label = Path(os.fspath(source)).stem if isinstance(source, str | os.PathLike) else f"Sample {number}"
        yield {"file": f"samples/{number}.jpg", "label": label}


def _add_page(part: Path, models: Sequence[SiteModel], samples: list[dict[str, str]], credit: str, runtime: str) -> None:
    for file in resources.files("mobilevitv2.export.web").joinpath("page").iterdir():
        (part / file.name).write_bytes(file.read_bytes())
    entries = [{"name": each.name, "task": each.metadata.task, "folder": f"models/{each.name}"} for each in models]
    index = {
        "generator": f"mobilevitv2 {mobilevitv2.__version__}", "runtime": runtime, "models": entries, "samples": samples,
        "credits": credit,
    }  # fmt: skip
    _write_json(part / INDEX, index)
    (part / "_headers").write_text(HEADERS, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


# ---- the folder, whole or not at all ---------------------------------------------------------------------------------------------


def is_site(folder: Path) -> bool:
    """Whether this package wrote the folder."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and str(index.get("generator", "")).startswith("mobilevitv2 ")


def _check_folder(place: Path, overwrite: bool) -> None:
    if place.is_file():
        raise ConfigurationError(f"{place} is a file; name a folder for the site.")
    if place.parent.exists() and not place.parent.is_dir():
        raise ConfigurationError(f"{place.parent} is a file, so nothing can be written into it; name a folder.")
    if not place.exists() or not any(place.iterdir()):
        return
    if not overwrite:
        raise ConfigurationError(
            f"{place} exists already and was left as it is; name another folder, or pass overwrite=True (--overwrite)."
        )
    if not is_site(place):
        raise ConfigurationError(f"{place} holds other things than a site of this package, so it is not replaced; name another.")


@contextmanager
def _whole_folder(place: Path) -> Iterator[Path]:
    """A sibling that takes the folder's place when it is complete."""
    place = place.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        yield part
        if not place.exists():
            part.rename(place)
            return
        aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
        try:
            place.rename(aside)
            part.rename(place)
        except BaseException:
            if not place.exists():
                aside.rename(place)
            raise
        finally:
            if place.exists():  # else it is all that is left of the old site
                shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
