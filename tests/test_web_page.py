"""The exported page in headless Chromium: its answers are Python's, it asks no other host, and keyboard and phones can use it."""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from PIL import Image
from test_export_onnx import model_of as model_of_task

from mobilevitv2.errors import DownloadError
from mobilevitv2.export.samples import made_picture
from mobilevitv2.export.web import ort_web
from mobilevitv2.export.web.serving import address_of, open_server
from mobilevitv2.export.web.site import export_site
from mobilevitv2.runtime import open_model
from mobilevitv2.runtime.metadata import PictureContract
from mobilevitv2.runtime.preprocessing import center_crop, prepare, resized_size
from mobilevitv2.weights.records import bundled_folder

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.jpg"))
MODELS = ("mobilevitv2-0.75-objects112", "deeplabv3-mobilevitv2-0.75-pets", "ssdlite-mobilevitv2-0.75-pet-heads")
NO_GPU = "No available adapters."
"""What Chromium itself notes where a page asks for WebGPU on a machine without a graphics unit."""
LISTEN = """document.addEventListener("answer", ({ detail }) => { (window.heard ??= []).push(detail); })"""
HELD = """(() => { const fetched = window.fetch, held = new Promise((go) => { window.release = go; });
  window.fetch = async (...words) => { if (String(words[0]).endsWith("model.json")) await held; return fetched(...words); };
  window.unhandled = [];
  window.addEventListener("unhandledrejection", ({ reason }) => window.unhandled.push(String(reason))); })()"""
"""Models load when the page is told to."""
STREAMS = """(() => { const { mediaDevices } = navigator, asked = mediaDevices.getUserMedia.bind(mediaDevices);
  window.streams = []; window.answers = [];
  mediaDevices.getUserMedia = async (wanted) => { if (window.question) await new Promise((go) => window.answers.push(go));
    const stream = await asked(wanted); window.streams.push(stream); return stream; }; })()"""
"""Keeps the camera's streams; where there is a question, each waits for its answer."""
LIVE = "window.streams.filter((each) => each.getTracks().some((track) => track.readyState === 'live')).length"
PACKED = """(() => { const { mask, bitmap, probabilities, ...rest } = window.heard.at(-1); const pack = (bytes) => {
  let text = ""; for (const byte of bytes) text += String.fromCharCode(byte); return btoa(text); };
  return { ...rest, mask: mask && pack(new Uint8Array(mask.buffer)), probabilities: probabilities && [...probabilities] }; })()"""


@pytest.fixture(scope="module")
def ort_archive() -> Path:
    if find_spec("huggingface_hub") is None:
        pytest.skip("huggingface_hub is not installed")
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False  # the npm registry is no hub
    try:
        return ort_web.archive()
    except DownloadError as error:
        pytest.skip(str(error))
    finally:
        constants.HF_HUB_OFFLINE = before


@pytest.fixture(scope="module")
def site(ort_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of the models inside the package; one that was made before can be named, which saves half a minute."""
    if ready := os.environ.get("MOBILEVITV2_TEST_SITE"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("web") / "site"
    models = [bundled_folder() / name for name in MODELS if (bundled_folder() / name).is_dir()]
    export_site(models, folder, pictures=None, ort_web=ort_archive)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with open_server(site, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield address_of(server)
        server.shutdown()


@pytest.fixture
def browser() -> Iterator[Chromium]:
    assert CHROMIUM is not None
    chromium = Chromium(CHROMIUM)
    chromium.look(1280, 900)
    yield chromium
    chromium.close()


def start(browser: Chromium, address: str, *, model: str | None = None) -> None:
    """The page with its first sample's answer, and the model chosen."""
    browser.open(address)
    browser.wait("document.readyState !== 'loading' && document.getElementById('backend') !== null")
    browser.evaluate(LISTEN)
    browser.wait("document.getElementById('answers').childElementCount > 0")
    if model is not None and not browser.evaluate(f"document.querySelector('input[value=\"{model}\"]').checked"):
        browser.evaluate(f"window.heard = []; document.querySelector('input[value=\"{model}\"]').click()")
        browser.wait("window.heard.length")


def answer(browser: Chromium, picture: Path) -> dict[str, Any]:
    browser.evaluate("window.heard = []")
    browser.choose_file("#file", picture)
    browser.wait("window.heard.length")
    found: dict[str, Any] = browser.evaluate(PACKED)
    assert found["name"] == picture.name
    return found


def model_of(site: Path, name: str) -> Any:
    path = site / "models" / name / "model.onnx"
    if not path.is_file():
        pytest.skip(f"{name} is not inside the package")
    return open_model(path, threads=1)


def errors(browser: Chromium) -> list[str]:
    return [text for text in browser.console if not text.startswith(NO_GPU)]


# ---- the same answers ------------------------------------------------------------------------------------------------------------


def test_probabilities_are_pythons(browser: Chromium, address: str, site: Path):
    model = model_of(site, MODELS[0])
    start(browser, address, model=MODELS[0])
    for picture in EXAMPLES:
        expected = model.predict(picture, top_k=len(model.names))
        found = answer(browser, picture)["probabilities"]
        assert int(np.argmax(found)) == expected.labels[0].index
        assert max(abs(found[label.index] - label.probability) for label in expected.labels) < 1e-3
        assert browser.evaluate("document.querySelector('#answers .name').textContent") == expected.labels[0].label


def test_a_file_in_eight_bits_answers_as_pythons(browser: Chromium, ort_archive: Path, tmp_path: Path):
    drawn = [made_picture(seed) for seed in range(16)]
    settings: dict[str, Any] = {"precision": "int8", "calibration": drawn, "size": (64, 64), "pictures": drawn[:4]}
    export_site([model_of_task("classify")], tmp_path / "site", ort_web=ort_archive, **settings)
    (path,) = (tmp_path / "site").glob("models/*/model.onnx")
    model = open_model(path, threads=1)
    assert model.metadata.precision == "int8"
    with open_server(tmp_path / "site", port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start(browser, address_of(server))
        for picture in EXAMPLES:
            expected = model.predict(picture, top_k=len(model.names))
            found = answer(browser, picture)["probabilities"]
            assert int(np.argmax(found)) == expected.labels[0].index
            assert max(abs(found[label.index] - label.probability) for label in expected.labels) < 0.01  # roundings tip over
        server.shutdown()
    assert errors(browser) == []


def test_masks_are_pythons(browser: Chromium, address: str, site: Path):
    model = model_of(site, MODELS[1])
    start(browser, address, model=MODELS[1])
    for picture in EXAMPLES:
        expected = model.predict(picture)
        found = answer(browser, picture)
        mask = np.frombuffer(base64.b64decode(found["mask"]), np.uint16).reshape(found["height"], found["width"])
        assert mask.shape == expected.mask.shape
        assert (mask == expected.mask).mean() >= 0.995


def test_boxes_are_pythons(browser: Chromium, address: str, site: Path):
    model = model_of(site, MODELS[2])
    start(browser, address, model=MODELS[2])
    total = 0
    for picture in EXAMPLES:
        expected = model.predict(picture)
        found = answer(browser, picture)
        boxes = [each for each in found["boxes"] if each["score"] > 0.3]
        assert len(boxes) == len(expected.boxes)
        for ours, theirs in zip(boxes, expected.boxes, strict=True):
            assert ours["index"] == theirs.index
            assert ours["score"] == pytest.approx(theirs.score, abs=1e-3)
            assert overlap(np.array(ours["box"]) * [*found["size"], *found["size"]], np.array(theirs.box)) > 0.98
        assert browser.evaluate("document.querySelectorAll('.box').length") == len(boxes)
        total += len(boxes)
    assert total > 0


def overlap(one: Any, other: Any) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.maximum(high - low, 0))
    return float(shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared))


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_pictures_are_prepared_as_pillow_does_it(interpolation: str, browser: Chromium, address: str):
    start(browser, address)
    contracts = [
        PictureContract(height=48, width=48, resize={"shortest_edge": 54}, crop={"height": 48, "width": 48}),
        PictureContract(height=40, width=72, resize={"height": 40, "width": 72}),
        PictureContract(height=300, width=300, resize={"shortest_edge": 200}, crop={"height": 300, "width": 300}),
        PictureContract(height=120, width=100, resize=None, crop={"height": 120, "width": 100}),
    ]
    for size in ((131, 97), (64, 301), (40, 40)):
        picture = made_picture(size[0]).resize(size)
        for plain in contracts:
            contract = PictureContract(**{**vars(plain), "interpolation": interpolation})
            found = prepared_in_page(browser, picture, contract)
            assert np.array_equal(found, prepared_in_two_passes(picture, contract)), (size, contract)
            apart = np.abs(found.astype(int) - prepare(picture, contract))
            assert apart.max() <= 12 and apart.mean() < 0.5, (size, contract)


def prepared_in_two_passes(picture: Image.Image, contract: PictureContract) -> Any:
    """Columns first, as every Pillow before 13 does it; 13 takes the rows of tall pictures first, which rounds otherwise."""
    width, height = resized_size(picture.size, contract.resize)
    for size in ((width, picture.height), (width, height)):
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling[contract.interpolation.upper()])
    return np.asarray(picture) if contract.crop is None else center_crop(np.asarray(picture), **contract.crop)


def prepared_in_page(browser: Chromium, picture: Image.Image, contract: PictureContract) -> Any:
    pixels = base64.b64encode(picture.convert("RGBA").tobytes()).decode()
    code = f"""(async () => {{
      const {{ prepared }} = await import("./preprocessing.js");
      const all = Uint8Array.from(atob("{pixels}"), (letter) => letter.charCodeAt(0)), width = {picture.width};
      const source = {{ width, height: {picture.height},
        rows: (top, count) => all.subarray(top * width * 4, (top + count) * width * 4) }};
      const {{ data }} = prepared(source, {json.dumps(vars(contract))});
      let text = ""; for (const byte of data) text += String.fromCharCode(byte);
      return btoa(text); }})()"""
    return np.frombuffer(base64.b64decode(browser.evaluate(code)), np.uint8).reshape(contract.height, contract.width, 3)


def test_what_is_transparent_is_seen_over_white(browser: Chromium, address: str, site: Path, tmp_path: Path):
    model = model_of(site, MODELS[0])
    layered = Image.open(EXAMPLES[1]).convert("RGBA")
    layered.putalpha(Image.linear_gradient("L").resize(layered.size))
    layered.save(tmp_path / "layered.png")
    start(browser, address, model=MODELS[0])
    expected = model.predict(tmp_path / "layered.png", top_k=len(model.names))
    found = answer(browser, tmp_path / "layered.png")["probabilities"]
    assert max(abs(found[label.index] - label.probability) for label in expected.labels) < 0.01  # blending rounds elsewhere


# ---- manners ---------------------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_of_other_hosts_and_the_console_is_quiet(browser: Chromium, address: str):
    start(browser, address)
    answer(browser, EXAMPLES[0])
    assert browser.evaluate("crossOriginIsolated")
    assert "WebAssembly" in browser.evaluate("document.getElementById('backend-told').textContent")
    asked = [url for url in browser.requests if not url.startswith(("blob:", "data:"))]
    assert any(url.endswith(".wasm") for url in asked)  # the worker's are seen too
    assert all(url.startswith(address) or url == "about:blank" for url in asked), asked
    assert errors(browser) == []


def test_without_the_headers_of_isolation_one_thread_answers(browser: Chromium, site: Path):
    class Plain(SimpleHTTPRequestHandler):
        def guess_type(self, path: Any) -> str:
            return "text/javascript" if str(path).endswith((".js", ".mjs")) else super().guess_type(path)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Plain, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start(browser, f"http://localhost:{server.server_port}/")
        assert not browser.evaluate("crossOriginIsolated")
        assert "1 thread." in browser.evaluate("document.getElementById('backend-told').textContent")
        server.shutdown()


def test_the_keyboard_reaches_everything(browser: Chromium, address: str):
    start(browser, address)
    browser.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(12):
        browser.press("Tab", code=9)
        seen.append(
            browser.evaluate("(({ activeElement: e }) => e.id || e.name || e.firstElementChild?.alt || e.tagName)(document)")
        )
    wanted = ["model", "file", "camera", "A cat", "backend", "SUMMARY"]
    if browser.evaluate("document.getElementById('models').hidden"):
        wanted.remove("model")
    assert [each for each in seen if each in wanted][: len(wanted)] == wanted
    browser.evaluate("window.heard = []; document.querySelectorAll('#samples button')[2].focus()")
    browser.press("Enter", code=13, text="\r")
    browser.wait("window.heard.length")
    assert browser.evaluate("window.heard[0].name") == "coffee.jpg"
    assert browser.evaluate("document.querySelectorAll('#samples button')[2].getAttribute('aria-pressed')") == "true"


def test_arrow_keys_choose_the_model(browser: Chromium, address: str):
    start(browser, address)
    if browser.evaluate("document.getElementById('models').hidden"):
        pytest.skip("the site has one model")
    browser.evaluate("window.heard = []; document.querySelector('#models input').focus()")
    browser.press("ArrowRight", code=39)
    browser.wait("window.heard.length")
    assert browser.evaluate("window.heard[0].task") != "classify"


def test_everything_has_a_name_for_screen_readers(browser: Chromium, address: str):
    start(browser, address)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "radio", "slider", "combobox", "img", "image", "textbox", "progressbar", "checkbox"}
    shown = [node for node in nodes if not node.get("ignored") and node.get("role", {}).get("value") in roles]
    assert len(shown) > 6
    assert [node["role"]["value"] for node in shown if not node.get("name", {}).get("value")] == []
    assert browser.evaluate("document.getElementById('status').textContent").startswith("cat")
    assert "cat" in browser.evaluate("document.getElementById('picture').getAttribute('aria-label')")


@pytest.mark.parametrize("width", [320, 390, 900, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_in_light_and_dark(width: int, dark: bool, browser: Chromium, address: str):
    browser.look(width, 800, dark=dark, touch=width < 500)
    start(browser, address)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = (colours(browser.evaluate(f"getComputedStyle(document.body).{name}")) for name in ("backgroundColor", "color"))
    assert (sum(ground) < sum(ink)) == dark
    small = "[...document.querySelectorAll('.controls .button, #samples button')].map((e) => e.getBoundingClientRect().height)"
    assert min(browser.evaluate(small)) >= 40  # a finger's width


def colours(text: str) -> list[int]:
    return [int(part) for part in text[text.index("(") + 1 : text.index(")")].split(",")[:3]]


def test_the_camera_is_answered_for_until_it_is_stopped(browser: Chromium, address: str):
    start(browser, address)
    browser.evaluate("window.heard = []; document.getElementById('camera').click()")
    browser.wait("window.heard.length > 2")
    assert browser.evaluate("window.heard[0].name") == "camera"
    assert browser.evaluate("document.getElementById('camera').getAttribute('aria-pressed')") == "true"
    browser.evaluate("document.getElementById('camera').click()")
    count = browser.evaluate("new Promise((done) => setTimeout(() => done(window.heard.length), 1500))")
    assert browser.evaluate("new Promise((done) => setTimeout(() => done(window.heard.length), 1000))") == count
    assert errors(browser) == []


def held_back(browser: Chromium, address: str) -> None:
    """The page with a model that is still to come."""
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=f"{HELD}; {STREAMS}")
    browser.open(address)
    browser.wait("document.getElementById('status')?.textContent.startsWith('Loading the model')")
    browser.wait("document.getElementById('samples').childElementCount > 0")
    browser.evaluate(LISTEN)


@pytest.mark.parametrize("clicks", [1, 2, 3])
def test_clicks_on_the_camera_while_a_model_loads_ask_for_one_stream_at_most(clicks: int, browser: Chromium, address: str):
    held_back(browser, address)
    for click in range(clicks):
        browser.evaluate("document.getElementById('camera').click()")
        pressed = browser.evaluate("document.getElementById('camera').getAttribute('aria-pressed')")
        assert pressed == ("true" if click % 2 == 0 else "false")
    browser.evaluate("window.heard = []; release()")
    browser.wait("window.heard.length > 2" if clicks % 2 else "window.heard.length")  # of the camera, or of the first sample
    assert browser.evaluate("window.streams.length") == clicks % 2
    assert browser.evaluate("window.heard[0].name") == ("camera" if clicks % 2 else "cat.jpg")
    if clicks % 2:
        browser.evaluate("document.getElementById('camera').click()")
        assert browser.evaluate(LIVE) == 0
    assert browser.evaluate("window.unhandled") == [] and errors(browser) == []


def test_a_camera_that_is_stopped_and_started_during_the_question_has_one_stream(browser: Chromium, address: str):
    browser.call("Page.addScriptToEvaluateOnNewDocument", source=STREAMS)
    start(browser, address)
    browser.evaluate("window.heard = []; window.question = true")
    for _ in range(3):
        browser.evaluate("document.getElementById('camera').click()")
    browser.wait("window.answers.length === 2")
    browser.evaluate("window.answers.forEach((go) => go())")
    browser.wait("window.heard.length > 2")
    assert (browser.evaluate("window.streams.length"), browser.evaluate(LIVE)) == (2, 1)
    assert browser.evaluate("document.getElementById('camera').getAttribute('aria-pressed')") == "true"
    browser.evaluate("document.getElementById('camera').click()")
    assert browser.evaluate(LIVE) == 0
    assert errors(browser) == []


def test_the_least_score_decides_which_boxes_show(browser: Chromium, address: str, site: Path):
    model_of(site, MODELS[2])
    start(browser, address, model=MODELS[2])
    answer(browser, EXAMPLES[1])
    counts = []
    for score in (5, 30, 95):
        browser.evaluate(f"(() => {{ threshold.value = {score}; threshold.dispatchEvent(new Event('input')); }})()")
        counts.append(browser.evaluate("document.querySelectorAll('.box').length"))
        expected = browser.evaluate(f"window.heard.at(-1).boxes.filter((each) => each.score > {score / 100}).length")
        assert counts[-1] == min(expected, 50)


# ---- when something is wrong -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_site(site: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged, with the first model alone."""
    shutil.copytree(site, tmp_path / "site")
    index = json.loads((site / "site.json").read_text())
    (tmp_path / "site" / "site.json").write_text(json.dumps({**index, "models": index["models"][:1]}))
    return tmp_path / "site"


def status(browser: Chromium, folder: Path) -> str:
    with open_server(folder, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(address_of(server))
        browser.wait(
            "document.getElementById('status')?.className === 'failed' || document.getElementById('answers')?.children.length"
        )
        server.shutdown()
    return str(
        browser.evaluate(
            "`${document.getElementById('status').textContent} ${document.getElementById('backend-told').textContent}`"
        )
    )


def test_a_runtime_that_answers_otherwise_is_noticed(browser: Chromium, own_site: Path):
    for path in (own_site / "models").glob("*/model.json"):
        description = json.loads(path.read_text())
        description["check"]["values"] = [value + 1 for value in description["check"]["values"]]
        path.write_text(json.dumps(description))
    assert "Beware: WebAssembly answers otherwise than it should" in status(browser, own_site)


def test_a_truncated_model_is_told(browser: Chromium, own_site: Path):
    for path in (own_site / "models").glob("*/model.onnx"):
        path.write_bytes(path.read_bytes()[:100_000])
    assert "ended after 100000 of" in status(browser, own_site)


def test_a_damaged_model_is_told(browser: Chromium, own_site: Path):
    for path in (own_site / "models").glob("*/model.onnx"):
        content = path.read_bytes()
        path.write_bytes(b"\xff" * 4096 + content[4096:])
    assert "the model cannot be opened (Can't create a session" in status(browser, own_site)


def test_a_missing_model_is_told(browser: Chromium, own_site: Path):
    for path in (own_site / "models").glob("*/model.onnx"):
        path.unlink()
    assert "cannot be loaded (404" in status(browser, own_site)


def test_a_file_that_is_no_picture_is_told_and_the_next_one_answered(browser: Chromium, address: str, tmp_path: Path):
    (tmp_path / "notes.jpg").write_text("no picture")
    start(browser, address)
    browser.choose_file("#file", tmp_path / "notes.jpg")
    browser.wait("document.getElementById('status').className === 'failed'")
    assert "notes.jpg cannot be read as a picture" in browser.evaluate("document.getElementById('status').textContent")
    assert answer(browser, EXAMPLES[1])["task"] == "classify"
    assert browser.evaluate("document.getElementById('status').className") != "failed"


def test_a_text_that_is_dropped_while_the_model_loads_is_told_and_nothing_sticks(browser: Chromium, address: str):
    held_back(browser, address)
    browser.evaluate("""(() => { const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File(["no picture"], "notes.jpg", { type: "image/jpeg" }));
      document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true })); release(); })()""")
    browser.wait("document.getElementById('status').className === 'failed'")
    assert "notes.jpg cannot be read as a picture" in browser.evaluate("document.getElementById('status').textContent")
    browser.evaluate("window.heard = []; document.getElementById('camera').click()")
    browser.wait("window.heard.length")
    assert browser.evaluate("window.heard[0].name") == "camera"
    browser.evaluate("document.getElementById('camera').click()")
    assert answer(browser, EXAMPLES[1])["task"] == "classify"
    assert browser.evaluate("window.unhandled") == [] and errors(browser) == []
