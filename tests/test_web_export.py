"""The site's files, where ONNX Runtime Web comes from, and the server; nothing here needs a browser or the net."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.client
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_export_onnx import model_of

from mobilevitv2.cli import main
from mobilevitv2.errors import ConfigurationError, DownloadError, ImageError
from mobilevitv2.export import export
from mobilevitv2.export.samples import made_picture
from mobilevitv2.export.web import export_site, ort_web
from mobilevitv2.export.web.checking import pattern
from mobilevitv2.export.web.serving import open_server

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


def made_package(folder: Path) -> Path:
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "9.9.9"}')
    for name in ort_web.FILES:
        (folder / "dist" / name).write_text(f"not really {name}")
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that looks like the npm package."""
    return made_package(tmp_path / "onnxruntime-web")


def packed(package: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(package, "package")
    return stream.getvalue()


@pytest.fixture(scope="module")
def made_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    folder = tmp_path_factory.mktemp("site")
    export_site([model_of("classify")], folder / "site", size=(64, 64), ort_web=made_package(folder / "onnxruntime-web"))
    return folder / "site"


@pytest.fixture
def site(made_site: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(made_site, tmp_path / "site")
    return tmp_path / "site"


# ---- the site --------------------------------------------------------------------------------------------------------------------


@needs_onnx
def test_a_site_holds_models_of_all_tasks_with_what_the_page_needs(package: Path, tmp_path: Path):
    models = [model_of(task) for task in ("classify", "segment", "detect")]
    report = export_site(models, tmp_path / "site", size=(64, 64), ort_web=package)
    index = json.loads((tmp_path / "site" / "site.json").read_text())
    assert [each["task"] for each in index["models"]] == ["classify", "segment", "detect"]
    assert len({each["folder"] for each in index["models"]}) == 3
    outputs = {"classify": ["probabilities"], "segment": ["logits"], "detect": ["scores", "boxes"]}
    for entry in index["models"]:
        description = json.loads((tmp_path / "site" / entry["folder"] / "model.json").read_text())
        assert description["bytes"] == (tmp_path / "site" / entry["folder"] / "model.onnx").stat().st_size
        assert [port["name"] for port in description["metadata"]["outputs"]] == outputs[entry["task"]]
        assert len(description["metadata"]["labels"]) == 10
        assert description["check"]["output"] == outputs[entry["task"]][0]
        assert len(description["check"]["values"]) == len(description["check"]["indices"]) > 5
    assert index["runtime"] == report.runtime == "9.9.9"
    assert all((tmp_path / "site" / sample["file"]).is_file() for sample in index["samples"])
    assert report.bytes == sum(path.stat().st_size for path in (tmp_path / "site").rglob("*") if path.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnxruntime-web", "site"]


@needs_onnx
def test_models_whose_names_differ_in_capitals_have_folders_of_their_own(package: Path, tmp_path: Path):
    for name in ("Mine.onnx", "other/mine.onnx"):
        export(model_of("classify"), tmp_path / name, size=(64, 64))
    report = export_site([tmp_path / "Mine.onnx", tmp_path / "other" / "mine.onnx"], tmp_path / "site", ort_web=package)
    assert [each.name for each in report.models] == ["Mine", "mine-2"]


def test_a_sample_that_cannot_be_read_is_told_before_a_model_is_exported(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from mobilevitv2.export.web import site as building

    monkeypatch.setattr(building, "_add_model", lambda *_: pytest.fail("a model was exported"))
    monkeypatch.setattr(building, "check_installed", lambda *_: None)
    (tmp_path / "notes.jpg").write_text("no picture")
    with pytest.raises(ImageError, match=r"notes\.jpg"):
        export_site([model_of("classify")], tmp_path / "site", ort_web=package, pictures=[tmp_path / "notes.jpg"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.jpg", "onnxruntime-web"]


def test_the_page_names_no_outside_address():
    from importlib import resources

    for file in resources.files("mobilevitv2.export.web").joinpath("page").iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, nothing is fetched from it
        assert "http:" not in text and "https:" not in text and 'src="//' not in text, file.name


@needs_onnx
def test_exported_files_and_own_samples_go_on_a_page(package: Path, tmp_path: Path):
    export(model_of("segment"), tmp_path / "half.onnx", size=(64, 64), precision="fp16", preprocessing=True)
    made_picture(1).save(tmp_path / "sea shore.png")
    report = export_site([tmp_path / "half.onnx"], tmp_path / "site", ort_web=package, pictures=[tmp_path / "sea shore.png"])
    assert report.models[0].name == "half" and report.models[0].metadata.precision == "fp16"
    index = json.loads((tmp_path / "site" / "site.json").read_text())
    assert index["samples"] == [{"file": "samples/1.jpg", "label": "sea shore"}]
    description = json.loads((tmp_path / "site" / "models" / "half" / "model.json").read_text())
    assert description["check"]["integers"] and description["check"]["output"] == "mask"
    with pytest.raises(ConfigurationError, match=r"half\.onnx is exported already; leave size \(--size\) out"):
        export_site([tmp_path / "half.onnx"], tmp_path / "other", ort_web=package, size=(96, 96))


@needs_onnx
def test_a_folder_is_replaced_when_it_is_a_site_and_that_was_asked_for(site: Path, package: Path):
    options: dict[str, Any] = {"size": (64, 64), "ort_web": package}
    with pytest.raises(ConfigurationError, match=r"exists already .* another folder, or pass overwrite=True \(--overwrite\)"):
        export_site([model_of("classify")], site, **options)
    (site / "old").write_text("")
    export_site([model_of("classify")], site, overwrite=True, **options)
    assert not (site / "old").exists() and (site / "index.html").is_file()
    other = site.with_name("holiday")
    other.mkdir()
    (other / "photo.jpg").write_text("dear")
    with pytest.raises(ConfigurationError, match="holds other things than a site of this package"):
        export_site([model_of("classify")], other, overwrite=True, **options)
    assert (other / "photo.jpg").read_text() == "dear"


@needs_onnx
def test_a_folder_that_appears_meanwhile_stays(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mobilevitv2.export.web import site as building

    add = building._add_page

    def slowly(*arguments: Any) -> None:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "photo.jpg").write_text("dear")
        add(*arguments)

    monkeypatch.setattr(building, "_add_page", slowly)
    with pytest.raises(ConfigurationError, match="exists already"):
        export_site([model_of("classify")], tmp_path / "site", size=(64, 64), ort_web=package)
    assert (tmp_path / "site" / "photo.jpg").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnxruntime-web", "site"]


@pytest.mark.parametrize("place", ["file", "file/site"])
def test_a_file_in_the_way_is_told(place: str, tmp_path: Path, package: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="is a file"):
        export_site(["any"], tmp_path / place, ort_web=package)


@needs_onnx
def test_nothing_is_left_of_a_site_that_could_not_be_finished(tmp_path: Path, package: Path):
    with pytest.raises(ConfigurationError, match="precision='int4' is unknown"):
        export_site([model_of("classify")], tmp_path / "site", ort_web=package, precision="int4")
    assert [path.name for path in tmp_path.iterdir()] == ["onnxruntime-web"]
    with pytest.raises(ConfigurationError, match="a page without a model"):
        export_site([], tmp_path / "site", ort_web=package)


def test_options_of_files_and_of_pages_are_told_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["export", "any", str(tmp_path / "site"), "--format", "web", "--dynamic"]) == 2
    assert "--dynamic belongs to a file's format" in capsys.readouterr().err
    assert main(["export", "any", str(tmp_path / "a.onnx"), "--also", "one", "two"]) == 2
    assert "--also belongs to --format web; leave it out, or add --format web." in capsys.readouterr().err


def test_the_pattern_is_the_pages():
    """Values that `page/checking.js` gives for these places."""
    values = pattern(40, 20)
    assert values.shape == (20, 40, 3)
    x, y, channel = 33, 17, 2
    assert values[y, x, channel] == ((((x // 8) * 37) ^ ((y // 8) * 59) ^ (x + y * (channel + 1))) + 67 * channel) % 256


# ---- ONNX Runtime Web ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["package", "dist", "archive"])
def test_the_runtime_comes_from_a_folder_or_an_archive(kind: str, package: Path, tmp_path: Path):
    (tmp_path / "package.tgz").write_bytes(packed(package))
    (tmp_path / "ort").mkdir()
    source = {"package": package, "dist": package / "dist", "archive": tmp_path / "package.tgz"}[kind]
    assert ort_web.copy_runtime(tmp_path / "ort", source) == "9.9.9"
    assert sorted(path.name for path in (tmp_path / "ort").iterdir()) == sorted([*ort_web.FILES, "LICENSE.txt"])


def test_a_runtime_that_lacks_files_is_told(package: Path, tmp_path: Path):
    (package / "dist" / ort_web.FILES[2]).unlink()
    (tmp_path / "package.tgz").write_bytes(packed(package))
    (tmp_path / "cut.tgz").write_bytes(packed(package)[:60])
    (tmp_path / "ort").mkdir()
    for source, message in (
        (package, f"lacks {ort_web.FILES[2]}; name the folder onnxruntime-web"),
        (tmp_path / "package.tgz", f"lacks {ort_web.FILES[2]}"),
        (tmp_path / "cut.tgz", "is no whole archive"),
        (tmp_path / "none.tgz", "does not exist; name the folder"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ort_web.copy_runtime(tmp_path / "ort", source)


def test_an_archive_with_a_wrong_bit_is_told(package: Path, tmp_path: Path):
    for name in ort_web.FILES:
        (package / "dist" / name).write_bytes(np.random.default_rng(len(name)).bytes(400))
    whole = packed(package)
    (tmp_path / "ort").mkdir()
    for place in range(12, len(whole) - 8, len(whole) // 60):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        (tmp_path / "package.tgz").write_bytes(damaged)
        with pytest.raises(ConfigurationError, match="is no whole archive"):
            ort_web.copy_runtime(tmp_path / "ort", tmp_path / "package.tgz")


@pytest.fixture
def registry(tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry on this machine, whose folder is given, and an empty cache."""
    from huggingface_hub import constants

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    folder = tmp_path / "registry"
    (folder / "onnxruntime-web" / "-").mkdir(parents=True)
    content = packed(package)
    (folder / "onnxruntime-web" / "-" / ort_web.ARCHIVE).write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ort_web, "INTEGRITY", "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode())
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}")
        yield folder
        server.shutdown()


def test_the_archive_is_fetched_once_and_checked(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = ort_web.archive()
    assert place == tmp_path / "cache" / "mobilevitv2" / ort_web.ARCHIVE
    (registry / "onnxruntime-web" / "-" / ort_web.ARCHIVE).unlink()
    assert ort_web.archive() == place
    assert [path.name for path in place.parent.iterdir()] == [ort_web.ARCHIVE]


def test_an_archive_of_another_content_is_refused(registry: Path, tmp_path: Path):
    (registry / "onnxruntime-web" / "-" / ort_web.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"gave a file with sha512-.*thrown away.*--ort-web"):
        ort_web.archive()
    assert list((tmp_path / "cache" / "mobilevitv2").iterdir()) == []


def test_a_registry_without_it_or_none_at_all_is_told(registry: Path, monkeypatch: pytest.MonkeyPatch):
    (registry / "onnxruntime-web" / "-" / ort_web.ARCHIVE).unlink()
    with pytest.raises(DownloadError, match=r"could not be downloaded: HTTP Error 404.*npm pack onnxruntime-web@"):
        ort_web.archive()
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError, match="could not be downloaded"):
        ort_web.archive()
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(DownloadError, match="is no web address"):
        ort_web.archive()


def test_offline_nothing_is_asked(registry: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set, so http"):
        ort_web.archive()


def test_the_registry_of_npms_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("npm_config_registry", raising=False)
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    (tmp_path / "npmrc").write_text("fund=false\nregistry = https://npm.example/path/\n@own:registry=https://other.example\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    assert ort_web.registry() == "https://npm.example/path/"
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "none"))
    assert ort_web.registry() == ort_web.REGISTRY


# ---- the server ------------------------------------------------------------------------------------------------------------------


def test_files_come_with_the_headers_of_isolation_and_their_types(site: Path):
    types = {
        "/": "text/html; charset=utf-8", "/app.js": "text/javascript; charset=utf-8", "/style.css": "text/css; charset=utf-8",
        f"/ort/{ort_web.FILES[1]}": "text/javascript; charset=utf-8", f"/ort/{ort_web.FILES[2]}": "application/wasm",
        "/site.json": "application/json", "/models/": None, "/../secret": None, "/nothing": None,
    }  # fmt: skip
    (site.parent / "secret").write_text("secret")
    with open_server(site, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path, kind in types.items():
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status == 200) == (kind is not None), path
            assert kind is None or response.headers["Content-Type"] == kind
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            response.read()
            connection.close()
        server.shutdown()


def test_a_taken_port_is_told_and_passed_over(site: Path):
    with open_server(site) as first, open_server(site) as second:
        assert second.server_port > first.server_port >= 8000
        with pytest.raises(ConfigurationError, match=f"port {first.server_port} is taken or not allowed; choose another"):
            open_server(site, port=first.server_port)


def test_what_is_no_site_or_no_port_is_told(site: Path, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"is no site; write one with `mobilevitv2 export MODEL"):
        open_server(tmp_path)
    with pytest.raises(ConfigurationError, match="port=70000 is no port"):
        open_server(site, port=70000)


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1", 200), ("127.0.0.1:9000", 200), ("[::1]", 200), ("[::1]:8000", 200),
        ("rebound.example", 403), ("rebound.example:8000", 403), ("localhost.rebound.example", 403), ("127.0.0.2", 403), ("", 403),
        (None, 403), ("localhost:8000@rebound.example", 403),
    ],
)  # fmt: skip
def test_only_names_of_this_machine_are_answered(host: str | None, code: int, site: Path):
    with open_server(site, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for method in ("GET", "HEAD"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.putrequest(method, "/site.json", skip_host=True)
            if host is not None:
                connection.putheader("Host", host)
            connection.endheaders()
            response = connection.getresponse()
            assert response.status == code, method
            assert (b"generator" in response.read()) == (code == 200 and method == "GET")
            connection.close()
        server.shutdown()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["no-such-model"], "There is no checkpoint named 'no-such-model'"), (["any", "--port", "70000"], "port=70000 is no port")],
)
def test_serve_refuses_before_torch_is_imported(words: list[str], message: str):
    code = "import sys; from mobilevitv2.cli import main; print(main(sys.argv[1:]), {'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "serve", *words], capture_output=True, text=True, check=False)
    assert done.stdout == "2 set()\n"
    assert message in done.stderr and done.stderr.count("\n") == 1


# A shell's background job ignores SIGINT, and under nohup SIGHUP is ignored; their children do too.
SERVE = """
import signal, sys
from mobilevitv2.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(main(["serve", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_serve_ends_quietly(number: signal.Signals, site: Path):
    words = [sys.executable, "-c", SERVE, str(site), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        address = running.stdout.readline().strip()
        assert address.startswith("http://localhost:")
        running.send_signal(number)
        try:
            assert running.wait(60) == 0
        finally:
            running.kill()  # one that goes on would hold up the tests for ever
        assert running.stderr.read() == "mobilevitv2: Ctrl-C stops it\n"
